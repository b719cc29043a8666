//! `nas diff ID`: what the flags of a NAS's accounts call for, beside what stands on it. Looks
//! only: nothing that changes anything is sent. `nas resync` is what sets it right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::Console;
use super::exit::{
    DONE, FAILED, Failed, NOT_FOUND, NOT_REACHABLE, Outcome, REFUSED, UNHEALTHY, remark,
};
use super::nas::find;
use super::resync::commands;
use super::table::Table;
use crate::attempt::{Failure, FailureClass, Job};
use crate::config::Config;
use crate::daemon;
use crate::driver::sessions::Sessions;
use crate::event::{Cmd, EventId, Params, UserId};
use crate::nas::{Nas, NasId, NasSecret};
use crate::scheme::native::{Difference, NativeScheme};
use crate::store::{AccountFlags, Store, preview};

/// Which NAS.
#[derive(Debug, Args)]
pub struct Diff {
    /// nas.id
    id: i64,
    /// Only this account
    #[arg(long, value_name = "N")]
    user: Option<i64>,
    /// For all that is read of one account
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::config::parse_duration)]
    timeout: Duration,
}

/// Prints one line per difference; exit code 9 if there is one.
pub async fn diff(console: &Console, config: &Config, store: &dyn Store, args: Diff) -> Outcome {
    let id = NasId(args.id);
    let nas = find(store, id)
        .await?
        .map_err(|bad| Failed::config(format!("NAS {id} is skipped: {}", bad.reason)))?;
    let scheme = scheme(config, &nas)?;
    let flags = store.account_flags(Some(id), args.user.map(UserId)).await?;
    if flags.is_empty() && args.user.is_some() {
        return Err(Failed::new(
            NOT_FOUND,
            format!(
                "NAS {id} has no account {}\nhint: users.id of the billing is asked for, not the abonent",
                args.user.unwrap_or_default()
            ),
        ));
    }
    let nas = Arc::new(nas);
    let secret = Arc::new(store.secret(id).await?);
    let sessions = Sessions::default();
    let mut table = Table::new(&["user", "kind", "path", "row", "has", "wants"]);
    let mut push = |user: i64, found: &Difference| {
        table.push(vec![
            json!(user),
            json!(found.kind),
            json!(found.path),
            json!(found.row),
            json!(found.has),
            json!(found.wants),
        ]);
    };
    let (mut differences, mut skipped) = (0, 0);
    let mut paths = BTreeSet::new();
    let mut any = None;
    for account in &flags {
        let jobs = jobs(store, account, &nas, &secret, args.timeout).await?;
        let compared = scheme.compare(&jobs, &sessions).await;
        let mut compared = compared.map_err(|failure| {
            let failure = Failure {
                text: format!("account {}: {}", account.user_id, failure.text),
                ..failure
            };
            unread(&failure)
        })?;
        compared
            .differences
            .iter()
            .for_each(|d| push(account.user_id, d));
        differences += compared.differences.len();
        skipped += compared.skipped;
        paths.append(&mut compared.paths);
        any = any.or(jobs.into_iter().next());
    }
    if let (Some(job), None) = (any, args.user) {
        let known = flags.iter().map(|account| account.user_id).collect();
        let orphans = scheme.orphans(&job, &paths, &known, &sessions).await;
        let orphans = orphans.map_err(|failure| unread(&failure))?;
        differences += orphans.len();
        orphans.iter().for_each(|(user, d)| push(*user, d));
    }
    console.list(&table);
    if skipped > 0 {
        remark(format!(
            "{skipped} steps were not compared: only ensure, absent and read can be"
        ));
    }
    remark(format!(
        "{} accounts compared, {differences} differences; nothing was changed",
        flags.len()
    ));
    if differences == 0 {
        return Ok(DONE);
    }
    remark(format!("nas resync {id} posts what sets accounts right"));
    Ok(UNHEALTHY)
}

fn scheme(config: &Config, nas: &Nas) -> Result<NativeScheme, Failed> {
    let id = nas.id;
    let resolve = daemon::resolver(config, Arc::default());
    let execute =
        resolve(nas).map_err(|reason| Failed::config(format!("NAS {id} is skipped: {reason}")))?;
    let identity = execute.identity();
    let dir = identity
        .oss_pathname
        .as_deref()
        .filter(|_| identity.kind == "native");
    let scheme = dir.and_then(|dir| NativeScheme::load(dir).ok());
    scheme.filter(NativeScheme::compares).ok_or_else(|| {
        Failed::new(
            REFUSED,
            format!(
                "the scheme of NAS {id} cannot be compared\nhint: a native scheme of driver mikrotik can, whose steps are ensure, absent and read"
            ),
        )
    })
}

/// The commands that the account's flags call for, with its variables of now.
async fn jobs(
    store: &dyn Store,
    account: &AccountFlags,
    nas: &Arc<Nas>,
    secret: &Arc<NasSecret>,
    deadline: Duration,
) -> Result<Vec<Job>, Failed> {
    let user = account.user_id;
    let Some(row) = preview::account(store, user).await? else {
        remark(format!(
            "event_params has no row for account {user}: left out"
        ));
        return Ok(Vec::new());
    };
    let params = Params::overlaid(row, None, None)
        .map_err(|reason| Failed::new(FAILED, format!("account {user}: {reason}")))?;
    let job = |cmd: &str| {
        let cmd = Cmd::parse(cmd).map_err(|reason| Failed::new(FAILED, reason))?;
        Ok(Job {
            event: EventId(0),
            epoch: 0,
            try_count: 1,
            possible_duplicate: false,
            class: cmd.class(),
            cmd,
            user: Some(UserId(user)),
            abonent: None,
            usluga: None,
            params: params.clone(),
            nas: Arc::clone(nas),
            secret: Arc::clone(secret),
            deadline,
        })
    };
    commands(account).into_iter().map(job).collect()
}

fn unread(failure: &Failure) -> Failed {
    let code = match failure.class {
        FailureClass::Transport | FailureClass::Unknown => NOT_REACHABLE,
        FailureClass::Refused => REFUSED,
        FailureClass::Permanent => FAILED,
    };
    Failed::new(
        code,
        format!("{failure}\nhint: nas test shows what the NAS says"),
    )
}
