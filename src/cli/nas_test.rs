//! `nas test ID`: can this NAS be reached, is the login right, how fast does it answer? For a
//! native scheme by its own driver; a script logs in by itself, so only the script is looked at.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::Console;
use super::exit::{DONE, FAILED, Failed, NOT_REACHABLE, Outcome, REFUSED, UNHEALTHY, remark, say};
use super::nas::find;
use super::table::one_line;
use crate::attempt::{Failure, FailureClass, Scope};
use crate::clock;
use crate::config::Config;
use crate::daemon;
use crate::driver::http::Request;
use crate::driver::mikrotik::Command;
use crate::driver::mikrotik::answer::is_session_trouble;
use crate::driver::radius::dictionary::Dictionary;
use crate::driver::radius::{self, Kind};
use crate::driver::sessions::Sessions;
use crate::driver::waits::Waits;
use crate::nas::{Mode, Nas, NasId, NasSecret};
use crate::scheme::native::NativeScheme;
use crate::store::{Store, shown_url};

/// What one command may take: the original's norm, 1000 events in 5 minutes.
const NORM_MS: u64 = 300;
/// For connection, login and answer together.
const LIMIT: Duration = Duration::from_secs(15);
/// Reads one row, changes nothing, and every login may ask it (MikroTik manual, "Identity").
const HARMLESS: &str = "/system/identity/print";
/// A session that no NAS has.
const NO_SESSION: &str = "ned-test-no-such-session";

/// Does nothing on any Unix; another device at least says so.
const HARMLESS_LINE: &str = "true";

/// What each driver is asked, for those who want to know before.
const HARMLESS_OF: [(&str, &str); 5] = [
    ("mikrotik", HARMLESS),
    (
        "ssh",
        "true; with nas.ssh_host_key = tofu the first key is kept",
    ),
    ("telnet", "an empty line"),
    ("http", "GET /"),
    ("radius", "a disconnect of a session that nobody has"),
];

/// Their test talks to no device: a script logs in by itself.
const SENDS_NOTHING: [&str; 2] = ["", "record"];

/// What the test of a driver would do.
fn spoken_of(driver: &str) -> String {
    let asked = HARMLESS_OF.iter().find(|(name, _)| *name == driver);
    let then = asked.map_or_else(String::new, |(_, harmless)| format!(", then {harmless}"));
    format!("would log in by {driver}{then}")
}

/// What a test has to tell, for a terminal or for the API.
#[derive(Debug, Default)]
struct Told {
    said: Mutex<Vec<(bool, String)>>,
    /// Only what would be done is told.
    is_dry: bool,
}

impl Told {
    fn say(&self, text: impl Into<String>) {
        self.push(true, text.into());
    }

    fn remark(&self, text: impl Into<String>) {
        self.push(false, text.into());
    }

    fn push(&self, says: bool, text: String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.push((says, text));
    }

    fn take(&self) -> Vec<(bool, String)> {
        std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs the test and prints what it tells.
pub async fn test(console: &Console, config: &Config, store: &dyn Store, id: NasId) -> Outcome {
    let told = Told {
        is_dry: console.dry_run,
        ..Told::default()
    };
    let outcome = run(config, store, id, &told).await;
    if console.wants_data() {
        let said: Vec<String> = told.take().into_iter().map(|(_, text)| text).collect();
        let (code, error) = match &outcome {
            Ok(code) => (*code, None),
            Err(failed) => (failed.code, Some(&failed.text)),
        };
        console.record(&[
            ("nas_id", json!(id.0)),
            ("well", json!(code == DONE)),
            ("said", json!(said)),
            ("error", json!(error)),
        ]);
        return outcome;
    }
    for (says, text) in told.take() {
        if says {
            say(text);
        } else {
            remark(text);
        }
    }
    outcome
}

/// Runs the test for the API: whether the NAS is well, and what was told.
pub async fn told(config: &Config, store: &dyn Store, id: NasId) -> (bool, Value) {
    let told = Told::default();
    let outcome = run(config, store, id, &told).await;
    let (code, error) = match outcome {
        Ok(code) => (code, None),
        Err(failed) => (failed.code, Some(failed.text)),
    };
    let said: Vec<String> = told.take().into_iter().map(|(_, text)| text).collect();
    (
        code == DONE,
        json!({ "code": code, "said": said, "error": error }),
    )
}

async fn run(config: &Config, store: &dyn Store, id: NasId, told: &Told) -> Outcome {
    let nas = find(store, id).await?.map_err(|bad| {
        let hint = "hint: correct its row in the billing";
        Failed::skipped(id, format!("{}\n{hint}", bad.reason))
    })?;
    match nas.mode {
        Mode::Active | Mode::Observe => {}
        Mode::Off => told.remark("mode = off: the daemon does not serve this NAS"),
    }
    let resolve = daemon::resolver(config, Arc::default());
    let execute = resolve(&nas).map_err(|reason| {
        let hint = "hint: docs/schemes.md says where schemes are looked for";
        Failed::skipped(id, format!("{reason}\n{hint}"))
    })?;
    let identity = execute.identity();
    let place = identity
        .oss_pathname
        .as_ref()
        .or(identity.script_name.as_ref());
    let place = place.map(|p| p.display().to_string()).unwrap_or_default();
    let driver = match (identity.kind, identity.oss_pathname.as_deref()) {
        ("native", Some(dir)) => NativeScheme::load(dir).map(|s| s.driver()).unwrap_or(""),
        _ => "",
    };
    if told.is_dry && !SENDS_NOTHING.contains(&driver) {
        told.say(format!(
            "NAS {id} {} ({}): {}",
            one_line(&nas.name),
            nas.ip,
            spoken_of(driver)
        ));
        told.remark("dry run: nothing was sent");
        return Ok(DONE);
    }
    match driver {
        "mikrotik" => {
            let secret = store.secret(id).await?;
            mikrotik(&nas, &secret, told).await
        }
        "ssh" => {
            let secret = store.secret(id).await?;
            ssh(store, &nas, &secret, told).await
        }
        "telnet" => {
            let secret = store.secret(id).await?;
            let dir = identity.oss_pathname.clone().unwrap_or_default();
            telnet(&nas, &secret, &dir, told).await
        }
        "http" => {
            let secret = store.secret(id).await?;
            http(&nas, &secret, told).await
        }
        "" => {
            told.say(format!(
                "NAS {id} {}: {} {place} (hash {}) is found and can be loaded",
                one_line(&nas.name),
                identity.kind,
                identity.hash
            ));
            told.remark(
                "a script logs in by itself: what it says is in the log of the NAS after the next event",
            );
            Ok(DONE)
        }
        "radius" => {
            let secret = store.secret(id).await?;
            by_radius(&nas, &secret, told).await
        }
        "record" => {
            told.say(format!(
                "NAS {id} {}: scheme {place} sends nothing, there is nothing to log in to",
                one_line(&nas.name)
            ));
            Ok(DONE)
        }
        other => Err(Failed::new(
            REFUSED,
            format!("the driver {other} of {place} cannot be tested by this version"),
        )),
    }
}

async fn mikrotik(nas: &Nas, secret: &NasSecret, told: &Told) -> Outcome {
    let sessions = Sessions::default().mikrotik(nas, secret);
    let command = Command {
        path: HARMLESS.to_owned(),
        ..Command::default()
    };
    let what = format!("NAS {} {} ({})", nas.id, one_line(&nas.name), nas.ip);
    let failed = |failure: Failure| refused(&what, &failure);
    let began = clock::tick_ms();
    let reply = sessions.talk(&command, LIMIT).await.map_err(&failed)?;
    let login_ms = clock::tick_ms().saturating_sub(began);
    let began = clock::tick_ms();
    sessions.talk(&command, LIMIT).await.map_err(&failed)?;
    let ms = clock::tick_ms().saturating_sub(began);
    let name = reply.rows.first().and_then(|row| row.get("name"));
    told.say(format!(
        "{what}: logged in, first answer after {login_ms} ms, {HARMLESS} took {ms} ms (norm {NORM_MS} ms), identity {}",
        one_line(name.map_or("unknown", String::as_str))
    ));
    if ms > NORM_MS {
        told.remark(
            "slower than the norm: look at the CPU of the NAS; more forks help only if it works on several commands at once",
        );
        return Ok(UNHEALTHY);
    }
    Ok(DONE)
}

/// Logs in, with `enable` and the lines of `setup`, and sends an empty line.
async fn telnet(nas: &Nas, secret: &NasSecret, dir: &std::path::Path, told: &Told) -> Outcome {
    let what = format!("NAS {} {} ({})", nas.id, one_line(&nas.name), nas.ip);
    let manners = NativeScheme::load(dir)
        .map_err(|_| "its scheme cannot be loaded".to_owned())
        .and_then(|scheme| scheme.manners(nas))
        .map_err(|why| Failed::config(format!("{what}: {why}")))?;
    let failed = |failure: Failure| {
        let (code, hint) = match (failure.scope, failure.class) {
            (_, FailureClass::Transport | FailureClass::Unknown) => (
                NOT_REACHABLE,
                "check the address and nas.telnet_port, that its telnet is on, and firewalls in between; a prompt that is not recognised is taught by nas.vars.prompt",
            ),
            (Scope::Nas | Scope::Event, FailureClass::Refused | FailureClass::Permanent) => (
                REFUSED,
                "check nas_secret.login, password and enable_password",
            ),
        };
        Failed::new(code, format!("{what}: {failure}\nhint: {hint}")).numbered(number(code))
    };
    let telnet = Sessions::default()
        .telnet(nas, secret, manners)
        .map_err(&failed)?;
    let began = clock::tick_ms();
    let mut leased = telnet
        .lease(&Waits::up_to(LIMIT), LIMIT)
        .await
        .map_err(&failed)?;
    let login_ms = clock::tick_ms().saturating_sub(began);
    let began = clock::tick_ms();
    leased.run("", &[], LIMIT).await.map_err(&failed)?;
    let ms = clock::tick_ms().saturating_sub(began);
    told.say(format!(
        "{what}: logged in after {login_ms} ms, an empty line took {ms} ms (norm {NORM_MS} ms), prompt {:?}",
        leased.prompt()
    ));
    told.remark("telnet: name, password and commands cross the network in plain text");
    if let Some(said) = leased.setup_said() {
        told.remark(format!(
            "a line of setup was not understood: {}",
            one_line(said)
        ));
    }
    Ok(if ms > NORM_MS { UNHEALTHY } else { DONE })
}

async fn ssh(store: &dyn Store, nas: &Nas, secret: &NasSecret, told: &Told) -> Outcome {
    let learned: Arc<Mutex<Option<String>>> = Arc::default();
    let keep = Arc::clone(&learned);
    let sessions = Sessions::learning(Arc::new(move |_, line| {
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(line.to_owned());
    }));
    let what = format!("NAS {} {} ({})", nas.id, one_line(&nas.name), nas.ip);
    let failed = |failure: Failure| ssh_refused(&what, &failure);
    let ssh = sessions.ssh(nas, secret).map_err(&failed)?;
    let command = crate::driver::ssh::Command {
        line: HARMLESS_LINE.to_owned(),
        stdin: None,
    };
    let began = clock::tick_ms();
    ssh.exec(&command, LIMIT).await.map_err(&failed)?;
    let login_ms = clock::tick_ms().saturating_sub(began);
    let began = clock::tick_ms();
    let output = ssh.exec(&command, LIMIT).await.map_err(&failed)?;
    let ms = clock::tick_ms().saturating_sub(began);
    told.say(format!(
        "{what}: logged in, first answer after {login_ms} ms, `{HARMLESS_LINE}` took {ms} ms (norm {NORM_MS} ms), exit status {}",
        output.status
    ));
    let learned = learned
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(key) = learned {
        store.set_host_key(nas.id, None, Some(&key)).await?;
        told.remark(format!("host key learned: {}", one_line(&key)));
    }
    if ms > NORM_MS {
        told.remark("slower than the norm: look at the CPU of the NAS and at its login shell");
        return Ok(UNHEALTHY);
    }
    Ok(DONE)
}

fn ssh_refused(what: &str, failure: &Failure) -> Failed {
    let (code, hint) = match (failure.scope, failure.class) {
        (_, FailureClass::Transport | FailureClass::Unknown) => (
            NOT_REACHABLE,
            "check the address and nas.ssh_port, that the SSH server runs, and firewalls in between",
        ),
        (Scope::Nas, FailureClass::Refused | FailureClass::Permanent) => (
            REFUSED,
            "check nas_secret (login, password, ssh_key) and nas.ssh_host_key; docs/operate.md, \"SSH host keys\"",
        ),
        (Scope::Event, FailureClass::Refused | FailureClass::Permanent) => {
            (FAILED, "the login works, the command does not")
        }
    };
    Failed::new(code, format!("{what}: {failure}\nhint: {hint}")).numbered(number(code))
}

/// Any status but a refused login says that somebody is there who speaks HTTP: what a device
/// answers to a look at its root is its own affair.
async fn http(nas: &Nas, secret: &NasSecret, told: &Told) -> Outcome {
    let device = Sessions::default().http(nas, secret);
    let look = Request {
        method: "GET".to_owned(),
        path: "/".to_owned(),
        ..Request::default()
    };
    let url = shown_url(nas.http_url.as_deref().unwrap_or_default());
    let what = format!("NAS {} {} ({url})", nas.id, one_line(&nas.name));
    let began = clock::tick_ms();
    let answered = device.talk(&look, LIMIT).await;
    let ms = clock::tick_ms().saturating_sub(began);
    let code = match answered {
        Ok(reply) => reply.code,
        Err(failure) if failure.scope == Scope::Event && failure.code >= 200 => failure.code,
        Err(failure) => return Err(refused(&what, &failure)),
    };
    told.say(format!(
        "{what}: HTTP {code} to GET / after {ms} ms (norm {NORM_MS} ms); nothing was changed"
    ));
    Ok(if ms > NORM_MS { UNHEALTHY } else { DONE })
}

/// A disconnect of a session that nobody has: whatever the NAS answers, it has the secret.
async fn by_radius(nas: &Nas, secret: &NasSecret, told: &Told) -> Outcome {
    let dictionary = Dictionary::shipped();
    let pairs = [("Acct-Session-Id".to_owned(), NO_SESSION.to_owned())];
    let request = radius::Request::new(Kind::Disconnect, &pairs, &dictionary)
        .map_err(|reason| Failed::new(FAILED, reason))?;
    let what = format!("NAS {} {} ({})", nas.id, one_line(&nas.name), nas.ip);
    let sessions = Sessions::default().radius(nas, secret);
    let began = clock::tick_ms();
    let answer = sessions.talk(&request, &dictionary, LIMIT).await;
    let ms = clock::tick_ms().saturating_sub(began);
    if answer.line.is_empty() {
        let failure = answer
            .failure
            .unwrap_or_else(|| Failure::transport("no answer"));
        return Err(Failed::new(
            NOT_REACHABLE,
            format!(
                "{what}: {failure}\nhint: check nas.coa_port, nas_secret.coa_secret, that CoA is enabled and this host is allowed, and firewalls in between (UDP)"
            ),
        )
        .numbered(303));
    }
    told.say(format!(
        "{what}: answers after {ms} ms (norm {NORM_MS} ms), the secret is right: {}",
        one_line(&answer.line)
    ));
    Ok(if ms > NORM_MS { UNHEALTHY } else { DONE })
}

fn refused(what: &str, failure: &Failure) -> Failed {
    let full = is_session_trouble(&failure.text);
    let (code, hint) = match (failure.scope, failure.class) {
        _ if full => (
            REFUSED,
            "lower nas.max_sessions, or end sessions of other programs (/user active on the NAS)",
        ),
        (_, FailureClass::Transport | FailureClass::Unknown) => (
            NOT_REACHABLE,
            "check the address and nas.api_port (nas.http_url), that the service api is enabled (/ip service), certificates, and firewalls in between",
        ),
        (Scope::Nas, FailureClass::Refused | FailureClass::Permanent) => (
            REFUSED,
            "check nas_secret.login and nas_secret.password, and the policy api of its group (/user group)",
        ),
        (Scope::Event, FailureClass::Refused | FailureClass::Permanent) => (
            FAILED,
            "the login works, the command does not; is it a MikroTik, with read rights for this login?",
        ),
    };
    Failed::new(code, format!("{what}: {failure}\nhint: {hint}")).numbered(number(code))
}

/// Number of the page in docs/errors.md.
pub(super) fn number(code: u8) -> u16 {
    match code {
        NOT_REACHABLE => 303,
        REFUSED => 304,
        _ => 305,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_done_is_told_of_every_driver() {
        assert_eq!(spoken_of("http"), "would log in by http, then GET /");
        assert_eq!(spoken_of("of-tomorrow"), "would log in by of-tomorrow");
    }

    #[test]
    fn each_failure_has_its_code() {
        let code = |failure: Failure| refused("NAS 1", &failure).code;
        assert_eq!(code(Failure::transport("no route")), NOT_REACHABLE);
        assert_eq!(code(Failure::timeout("no answer")), NOT_REACHABLE);
        assert_eq!(code(Failure::permanent("no such command")), FAILED);
        let login = Failure {
            scope: Scope::Nas,
            parks: true,
            ..Failure::permanent("invalid user name or password (6)")
        };
        assert_eq!(code(login), REFUSED);
    }
}
