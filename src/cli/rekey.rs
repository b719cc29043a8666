//! `nas rekey ID`: the SSH host key of a NAS was changed on purpose. Shows the believed and the
//! presented key, and, for a NAS whose key was learned, takes the new one after a confirmation.

use clap::Args;

use super::exit::{DONE, FAILED, Failed, NOT_REACHABLE, Outcome, REFUSED, remark, say};
use super::nas::{find, poke};
use super::{Console, Reason, who};
use crate::attempt::{Failure, FailureClass};
use crate::config::Config;
use crate::driver::ssh;
use crate::driver::ssh::settings;
use crate::driver::ssh::trust::{self, TOFU};
use crate::nas::NasId;
use crate::store::Store;

/// Which NAS.
#[derive(Debug, Args)]
pub struct Rekey {
    /// nas.id
    pub id: i64,
    /// Why.
    #[command(flatten)]
    pub reason: Reason,
}

/// Runs the verb.
pub async fn rekey(console: &Console, config: &Config, store: &dyn Store, args: Rekey) -> Outcome {
    let id = NasId(args.id);
    let nas = find(store, id)
        .await?
        .map_err(|bad| Failed::skipped(id, bad.reason))?;
    let secret = store.secret(id).await?;
    let (target, limits) = settings::of(&nas, &secret).map_err(|f| not_seen(id, &f))?;
    let presented = ssh::host_key(&target, &limits)
        .await
        .map_err(|failure| not_seen(id, &failure))?;
    let column = nas
        .ssh_host_key
        .as_deref()
        .map(str::trim)
        .unwrap_or_default();
    let believed = match (column, nas.ssh_known_key.as_deref()) {
        ("", _) => "none: nas.ssh_host_key is empty".to_owned(),
        (TOFU, None) => "none yet: the first one will be learned".to_owned(),
        (TOFU, Some(known)) => shown(known),
        (pinned, _) => pinned.lines().map(shown).collect::<Vec<_>>().join(" or "),
    };
    say(format!("believed:  {believed}"));
    say(format!("presented: {}", shown(&presented)));
    if column != TOFU {
        if column.lines().any(|line| {
            shown(line) == shown(&presented)
                || shown(&presented).ends_with(line.trim()) && !line.trim().is_empty()
        }) {
            remark("they are the same: nothing to do");
            return Ok(DONE);
        }
        return Err(Failed::new(
            REFUSED,
            format!(
                "nas.ssh_host_key belongs to the billing, which this program only reads\n\
                 hint: compare the presented key with the one on the NAS, then write it into nas.ssh_host_key: {presented}"
            ),
        ));
    }
    let was = nas.ssh_known_key.as_deref();
    if was == Some(presented.as_str()) {
        remark("they are the same: nothing to do");
        return Ok(DONE);
    }
    if console.dry_run {
        remark("dry run: the presented key would be believed; nothing was changed");
        return Ok(DONE);
    }
    let danger = "a wrong key lets somebody stand in between: compare both with the NAS first";
    if !console.agreed(danger, "believe the presented key?")? {
        remark("nothing was changed");
        return Ok(REFUSED);
    }
    if !store.set_host_key(id, was, Some(&presented)).await? {
        return Err(Failed::new(
            REFUSED,
            "somebody else has just changed the believed key\nhint: look again",
        ));
    }
    let detail = format!("nas={id} was={believed:?} is={:?}", shown(&presented));
    let detail = args.reason.of(&detail);
    store.audit(&who(), "nas_rekey", &detail).await?;
    poke(config).await;
    say("the presented key is believed from now on");
    Ok(DONE)
}

/// A key for people; what is none is shown as it is.
fn shown(line: &str) -> String {
    russh::keys::PublicKey::from_openssh(line.trim())
        .map_or_else(|_| line.trim().to_owned(), |key| trust::shown(&key))
}

fn not_seen(id: NasId, failure: &Failure) -> Failed {
    let (code, number) = match failure.class {
        FailureClass::Transport | FailureClass::Unknown => (NOT_REACHABLE, 303),
        FailureClass::Refused | FailureClass::Permanent => (FAILED, 305),
    };
    Failed::new(
        code,
        format!(
            "NAS {id} presents no host key: {failure}\nhint: check its address, nas.ssh_port, and firewalls in between"
        ),
    )
    .numbered(number)
}
