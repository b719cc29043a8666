//! `nas …`: how each NAS stands, pausing it, its forks, testing it, setting it right.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::ctl::Ctl;
use super::exit::{DONE, Failed, NOT_FOUND, Outcome, REFUSED, remark};
use super::nas_pause::{self, Drain, Pause, Resume};
use super::request::Request;
use super::table::Table;
use super::{Console, Reason, nas_diff, nas_test, rekey, resync, who};
use crate::clock;
use crate::config::Config;
use crate::daemon;
use crate::dispatch::parent::Resolve;
pub use crate::intake::waiting::paused_text;
use crate::nas::{BadNas, Forks, Mode, Nas, NasChange, NasId, NasState};
use crate::store::{Counts, Store, shown_url};

/// Verbs of NASes.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Every NAS with its numbers and what keeps it from working.
    List,
    /// Settings of one NAS, its scheme, its state; never its credentials.
    Show {
        /// nas.id
        id: i64,
    },
    /// Start nothing new on a NAS; running events finish, waiting ones stay ready.
    Pause(Pause),
    /// End a pause, and try a NAS that does not obey at once.
    Resume(Resume),
    /// Pause a NAS and wait until nothing runs there any more.
    Drain(Drain),
    /// Try a NAS that does not obey at once; a pause stays.
    ResetBreaker {
        /// nas.id
        id: i64,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Override nas.forks.
    Forks {
        /// nas.id
        id: i64,
        /// 1 to 100, or "default" for what the billing says
        #[arg(value_parser = forks)]
        forks: Override,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Send commands from now on, whatever nas.mode says (but off).
    Activate {
        /// nas.id
        id: i64,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Send nothing from now on: everything is rendered, ordered and logged only.
    Observe {
        /// nas.id
        id: i64,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Override nas.mode, or take the override back.
    Mode {
        /// nas.id
        id: i64,
        /// active, observe, or "default" for what the billing says
        #[arg(value_parser = mode)]
        mode: ModeOverride,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Log in and time one harmless command.
    Test {
        /// nas.id
        id: i64,
    },
    /// Let the daemon read the settings of all NASes now, not within settings_interval.
    Reload(Reason),
    /// Show the SSH host keys that are believed and presented, and take the new one.
    Rekey(rekey::Rekey),
    /// Compare what the flags of its accounts call for with what stands on it; changes nothing.
    Diff(nas_diff::Diff),
    /// Post the commands that the flags of its accounts call for.
    Resync(Resync),
}

/// Which NAS, and how fast.
#[derive(Debug, Args)]
pub struct Resync {
    /// nas.id
    id: i64,
    /// Events per second; default: as fast as the database takes them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Why.
    #[command(flatten)]
    reason: Reason,
}

/// A number of forks, or none.
#[derive(Debug, Clone, Copy)]
pub struct Override(Option<i64>);

fn forks(text: &str) -> Result<Override, String> {
    if text == "default" {
        return Ok(Override(None));
    }
    match text.parse() {
        Ok(n) if (1..=i64::from(Forks::MAX)).contains(&n) => Ok(Override(Some(n))),
        _ => Err("expected 1 to 100, or default".to_owned()),
    }
}

/// A mode, or none.
#[derive(Debug, Clone, Copy)]
pub struct ModeOverride(Option<Mode>);

fn mode(text: &str) -> Result<ModeOverride, String> {
    match text {
        "default" => Ok(ModeOverride(None)),
        "active" => Ok(ModeOverride(Some(Mode::Active))),
        "observe" => Ok(ModeOverride(Some(Mode::Observe))),
        _ => Err("expected active, observe or default (pause stops a NAS)".to_owned()),
    }
}

impl Verb {
    /// The same over the API.
    pub fn request(&self) -> Option<Request> {
        let path = |id: &i64, what: &str| format!("/api/v1/nas/{id}{what}");
        match self {
            Self::List => Some(Request::get("/api/v1/nas")),
            Self::Show { id } => Some(Request::get(path(id, ""))),
            Self::Pause(args) => args.request(),
            Self::Resume(args) => args.request(),
            Self::Reload(reason) => Some(Request::post("/api/v1/reload", &[reason.field()])),
            Self::Forks { id, forks, reason } => {
                let fields = [("forks", json!(forks.0)), reason.field()];
                let request = Request::post(path(id, "/forks"), &fields);
                // null takes the override back, and must be said.
                Some(if forks.0.is_none() {
                    request.null("forks")
                } else {
                    request
                })
            }
            // The call alone would also end a pause.
            Self::ResetBreaker { .. }
            | Self::Drain(_)
            | Self::Test { .. }
            | Self::Rekey(_)
            | Self::Resync(_)
            | Self::Activate { .. }
            | Self::Observe { .. }
            | Self::Mode { .. }
            | Self::Diff(_) => None,
        }
    }
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    match verb {
        Verb::List => list(console, &config, store.as_ref()).await,
        Verb::Show { id } => show(console, &config, store.as_ref(), NasId(id)).await,
        Verb::Pause(args) => nas_pause::pause(console, &config, store.as_ref(), &args).await,
        Verb::Resume(args) => nas_pause::resume(console, &config, store.as_ref(), &args).await,
        Verb::Drain(args) => nas_pause::drain(console, &config, store.as_ref(), &args).await,
        Verb::ResetBreaker { id, reason } => {
            nas_pause::reset_breaker(console, &config, store.as_ref(), id, &reason).await
        }
        Verb::Forks { id, forks, reason } => {
            let detail = reason.of(&format!("nas={id} forks={:?}", forks.0));
            let set = NasChange::Forks(forks.0);
            change(
                console,
                &config,
                store.as_ref(),
                NasId(id),
                "nas_forks",
                &detail,
                set,
            )
            .await
        }
        Verb::Activate { id, reason } => {
            let mode = Some(Mode::Active);
            set_mode(console, &config, store.as_ref(), id, mode, &reason).await
        }
        Verb::Observe { id, reason } => {
            let mode = Some(Mode::Observe);
            set_mode(console, &config, store.as_ref(), id, mode, &reason).await
        }
        Verb::Mode { id, mode, reason } => {
            set_mode(console, &config, store.as_ref(), id, mode.0, &reason).await
        }
        Verb::Test { id } => nas_test::test(&config, store.as_ref(), NasId(id)).await,
        Verb::Diff(args) => nas_diff::diff(console, &config, store.as_ref(), args).await,
        Verb::Reload(reason) => {
            poke_because(&config, &reason).await;
            Ok(DONE)
        }
        Verb::Rekey(args) => rekey::rekey(&config, store.as_ref(), args).await,
        Verb::Resync(args) => {
            let _ = find(store.as_ref(), NasId(args.id)).await?;
            let whom = resync::Whom::Nas(NasId(args.id));
            resync::resync(console, &config, store, whom, args.rate, &args.reason).await
        }
    }
}

/// The row of one NAS, good or bad.
pub async fn find(store: &dyn Store, id: NasId) -> Result<Result<Nas, BadNas>, Failed> {
    let rows = store.nases().await?;
    let mut found = rows.into_iter().find(|row| id_of(row) == id);
    if let Some(Ok(nas)) = &mut found {
        let mut states = store.nas_states().await?;
        nas.ssh_known_key = states.remove(&id).and_then(|state| state.ssh_host_key);
    }
    found.ok_or_else(|| {
        Failed::new(
            NOT_FOUND,
            format!("there is no NAS {id}\nhint: nas list shows all"),
        )
        .numbered(301)
    })
}

fn id_of(row: &Result<Nas, BadNas>) -> NasId {
    match row {
        Ok(nas) => nas.id,
        Err(bad) => bad.id,
    }
}

/// Changes what an operator sets of a NAS, and tells the daemon.
pub(super) async fn change(
    console: &Console,
    config: &Config,
    store: &dyn Store,
    id: NasId,
    what: &str,
    detail: &str,
    change: NasChange,
) -> Outcome {
    let _ = find(store, id).await?;
    if console.dry_run {
        remark(format!(
            "dry run: nothing was changed; it is: {what} {detail}"
        ));
        return Ok(DONE);
    }
    store.change_nas(id, &change).await?;
    store.audit(&who(), what, detail).await?;
    poke(config).await;
    Ok(DONE)
}

async fn set_mode(
    console: &Console,
    config: &Config,
    store: &dyn Store,
    id: i64,
    mode: Option<Mode>,
    reason: &Reason,
) -> Outcome {
    let id = NasId(id);
    match find(store, id).await? {
        Ok(nas) if nas.mode == Mode::Off && mode.is_some() => {
            return Err(Failed::new(
                REFUSED,
                format!(
                    "the billing says nas.mode = 'off' for NAS {id}\nhint: set it to active or observe there first"
                ),
            ));
        }
        Ok(_) => {}
        Err(bad) => {
            return Err(Failed::new(
                REFUSED,
                format!(
                    "NAS {id} cannot be served: {}\nhint: correct its row",
                    bad.reason
                ),
            ));
        }
    }
    let word = mode.map_or("default", Mode::as_str);
    let detail = reason.of(&format!("nas={id} mode={word}"));
    change(
        console,
        config,
        store,
        id,
        "nas_mode",
        &detail,
        NasChange::Mode(mode),
    )
    .await?;
    // What it comes to, for those who took an override back.
    if !console.dry_run
        && let Ok(nas) = find(store, id).await?
    {
        remark(format!("NAS {id} is in the mode {}", nas.mode.as_str()));
    }
    Ok(DONE)
}

/// Makes a running daemon read its settings now; without one there is nobody to tell.
pub(super) async fn poke(config: &Config) {
    poke_because(config, &Reason::default()).await;
}

async fn poke_because(config: &Config, reason: &Reason) {
    let (key, why) = reason.field();
    let told = match Ctl::new(config) {
        Ok(ctl) => ctl.post("/api/v1/reload", &json!({ key: why })).await,
        Err(failed) => Err(failed),
    };
    match told {
        Ok(Some(_)) => {}
        Ok(None) => remark("no daemon is running: stored for the next one"),
        Err(failed) => remark(format!(
            "stored, but the daemon was not told, and will see it within {:?}: {}",
            config.dispatch.settings_interval, failed.text
        )),
    }
}

/// `pause planned from … until …: reason`, if it has not begun.
fn planned_text(state: &NasState, now_ms: i64) -> Option<String> {
    let from = state.paused_from_ms.filter(|from| *from > now_ms)?;
    let begun = paused_text(state, from)?;
    let rest = begun.strip_prefix("paused ").unwrap_or(&begun);
    Some(format!(
        "pause planned from {} {rest}",
        clock::local_text(from)
    ))
}

const LIST: &[&str] = &[
    "id", "name", "ip", "mode", "forks", "scheme", "waiting", "running", "done", "deferred",
    "dead", "breaker", "p95_ms", "note",
];

async fn list(console: &Console, config: &Config, store: &dyn Store) -> Outcome {
    let live = Ctl::new(config)?.get("/api/v1/status").await?;
    let table = listed(config, store, live.as_ref()).await?;
    console.list(&table);
    Ok(DONE)
}

/// One row per NAS; `live` is what the daemon says of itself.
pub async fn listed(
    config: &Config,
    store: &dyn Store,
    live: Option<&Value>,
) -> Result<Table, Failed> {
    let rows = store.nases().await?;
    let states = store.nas_states().await?;
    let counts = store.counts().await?;
    let resolve = daemon::resolver(config, std::sync::Arc::default());
    let now = clock::wall_ms();
    let mut table = Table::new(LIST);
    for row in rows {
        let id = id_of(&row);
        let state = states.get(&id).cloned().unwrap_or_default();
        let live = live.and_then(|live| live_of(live, id));
        table.push(match row {
            Ok(nas) => line(&nas, &state, now, live, &counts, &resolve),
            Err(bad) => {
                let mut cells = vec![json!(bad.id), Value::Null, json!(bad.ip)];
                cells.resize(LIST.len() - 1, Value::Null);
                cells.push(json!(format!("skipped: {}", bad.reason)));
                cells
            }
        });
    }
    Ok(table)
}

/// What the daemon says of one NAS; none = it does not serve it.
pub(super) fn live_of(live: &Value, id: NasId) -> Option<&Value> {
    let nases = live.pointer("/dispatch/nases").and_then(Value::as_array)?;
    nases
        .iter()
        .find(|nas| nas.get("id").and_then(Value::as_i64) == Some(id.0))
}

fn line(
    nas: &Nas,
    state: &NasState,
    now: i64,
    live: Option<&Value>,
    counts: &Counts,
    resolve: &Resolve,
) -> Vec<Value> {
    let field = |name: &str| live.and_then(|l| l.get(name)).cloned().unwrap_or_default();
    let stacked = |wanted: &[&str]| -> Value {
        let rows = counts
            .by_nas
            .iter()
            .filter(|(id, state, _)| *id == nas.id.0 && wanted.contains(&state.as_str()));
        json!(rows.map(|(_, _, n)| *n).sum::<i64>())
    };
    let mut notes = Vec::new();
    notes.extend(paused_text(state, now));
    notes.extend(
        state
            .mode
            .map(|mode| format!("mode {} by an operator", mode.as_str())),
    );
    notes.extend(planned_text(state, now));
    let (scheme, skipped) = scheme_of(nas, resolve);
    notes.extend(skipped.map(|why| format!("skipped: {why}")));
    notes.extend(plain_text(nas, resolve));
    let reason = field("reason");
    if let Some(reason) = reason.as_str().filter(|r| !r.is_empty()) {
        notes.push(reason.to_owned());
    }
    let deferred = stacked(&["deferred"]);
    vec![
        json!(nas.id),
        json!(nas.name),
        json!(nas.ip),
        json!(nas.mode),
        json!(state.forks.map_or(nas.forks, |n| Forks::clamped(n).0)),
        json!(scheme),
        stacked(&["ready", "deferred", "held"]),
        stacked(&["running"]),
        field("done"),
        deferred,
        field("dead"),
        field("breaker"),
        field("p95_ms"),
        json!(notes.join("; ")),
    ]
}

/// What `status` says of a NAS whose credentials cross the network in plain text.
fn plain_text(nas: &Nas, resolve: &Resolve) -> Option<String> {
    let driver = resolve(nas).ok()?.driver();
    (driver == "telnet" && nas.mode != Mode::Off)
        .then(|| "plain text: telnet shows passwords to the network".to_owned())
}

/// Name of the scheme's directory or script, and why the NAS cannot be served.
fn scheme_of(nas: &Nas, resolve: &Resolve) -> (Option<String>, Option<String>) {
    let named = nas.oss_path.clone().or_else(|| nas.script_name.clone());
    if nas.mode == Mode::Off {
        return (named, Some("mode=off".to_owned()));
    }
    match resolve(nas) {
        Ok(_) => (named, None),
        Err(reason) => (named, Some(reason)),
    }
}

async fn show(console: &Console, config: &Config, store: &dyn Store, id: NasId) -> Outcome {
    let nas = match find(store, id).await? {
        Ok(nas) => nas,
        Err(bad) => {
            console.record(&[
                ("id", json!(bad.id)),
                ("ip", json!(bad.ip)),
                ("skipped", json!(bad.reason)),
            ]);
            return Ok(DONE);
        }
    };
    let state = store.nas_states().await?.remove(&id).unwrap_or_default();
    let secret = store.secret(id).await?;
    let live = Ctl::new(config)?.get("/api/v1/status").await?;
    let live = live.as_ref().and_then(|live| live_of(live, id));
    let field = |name: &str| live.and_then(|l| l.get(name)).cloned().unwrap_or_default();
    let resolve = daemon::resolver(config, std::sync::Arc::default());
    let (execute, skipped) = match resolve(&nas) {
        _ if nas.mode == Mode::Off => (None, Some("mode=off".to_owned())),
        Ok(execute) => (Some(execute), None),
        Err(reason) => (None, Some(reason)),
    };
    let identity = execute.as_ref().map(|e| e.identity().clone());
    let path = |p: &Option<std::path::PathBuf>| p.as_ref().map(|p| p.display().to_string());
    let set = |text: &str| if text.is_empty() { "no" } else { "yes" };
    let vars: Vec<&String> = nas.vars.keys().collect();
    console.record(&[
        ("id", json!(nas.id)),
        ("name", json!(nas.name)),
        ("ip", json!(nas.ip)),
        ("mode", json!(nas.mode)),
        ("mode_override", json!(state.mode)),
        ("forks", json!(nas.forks)),
        ("forks_override", json!(state.forks)),
        ("forks_warning", json!(nas.forks_warning)),
        ("paused", json!(paused_text(&state, clock::wall_ms()))),
        (
            "pause_planned",
            json!(planned_text(&state, clock::wall_ms())),
        ),
        ("skipped", json!(skipped)),
        ("oss_path", json!(nas.oss_path)),
        ("script_name", json!(nas.script_name)),
        ("scheme_kind", json!(identity.as_ref().map(|i| i.kind))),
        (
            "scheme_dir",
            json!(identity.as_ref().and_then(|i| path(&i.oss_pathname))),
        ),
        (
            "scheme_script",
            json!(identity.as_ref().and_then(|i| path(&i.script_name))),
        ),
        (
            "scheme_hash",
            json!(identity.as_ref().map(|i| i.hash.clone())),
        ),
        ("api_port", json!(nas.api_port)),
        ("api_tls", json!(nas.api_tls)),
        ("ssh_port", json!(nas.ssh_port)),
        ("ssh_host_key", json!(nas.ssh_host_key)),
        ("ssh_known_key", json!(state.ssh_host_key)),
        ("telnet_port", json!(nas.telnet_port)),
        ("coa_port", json!(nas.coa_port)),
        ("http_url", json!(nas.http_url.as_deref().map(shown_url))),
        ("max_sessions", json!(nas.max_sessions)),
        ("max_rate", json!(nas.max_rate)),
        (
            "timeout_ms",
            json!(nas.timeout.map(|t| t.as_secs_f64() * 1000.0)),
        ),
        ("on_error", json!(nas.on_error)),
        // Values may be secrets of the operator's own.
        ("vars", json!(vars)),
        ("login_set", json!(set(&secret.login))),
        ("password_set", json!(set(&secret.password))),
        ("coa_secret_set", json!(set(&secret.coa_secret))),
        ("ssh_key_set", json!(set(&secret.ssh_key))),
        ("running", field("running")),
        ("breaker", field("breaker")),
        ("breaker_reason", field("reason")),
        ("p95_ms", field("p95_ms")),
        ("sessions", field("sessions")),
    ]);
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_that_was_announced_is_none_yet() {
        let mut state = NasState::default();
        state.apply(&NasChange::Pause {
            from: Some(2_000),
            until: 3_000,
            reason: "firmware".to_owned(),
        });
        assert_eq!(paused_text(&state, 1_000), None);
        let planned = planned_text(&state, 1_000).unwrap();
        assert!(planned.contains("pause planned from"), "{planned}");
        assert!(planned.ends_with(": firmware"), "{planned}");
        assert!(paused_text(&state, 2_000).unwrap().contains("firmware"));
        assert_eq!(planned_text(&state, 2_000), None);
        assert_eq!(paused_text(&state, 3_000), None);
    }
}
