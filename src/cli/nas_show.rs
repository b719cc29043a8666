//! `nas list` and `nas show`: every NAS with its numbers and what keeps it from working, one with its
//! settings; never credentials.

use serde_json::{Value, json};

use super::Console;
use super::ctl::Ctl;
use super::exit::{DONE, Failed, Outcome};
use super::nas::{find, id_of};
use super::table::Table;
use crate::clock;
use crate::config::Config;
use crate::daemon;
use crate::dispatch::parent::Resolve;
pub use crate::intake::waiting::paused_text;
use crate::nas::{Forks, Mode, Nas, NasId, NasState};
use crate::store::{Counts, Store, shown_url};

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

/// Prints every NAS.
pub async fn list(console: &Console, config: &Config, store: &dyn Store) -> Outcome {
    let live = Ctl::new(config)?.look("/api/v1/status").await?;
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
    let script = nas.script_name.clone();
    let script = script.filter(|name| !name.trim().is_empty());
    let named = script.or_else(|| nas.oss_path.clone());
    if nas.mode == Mode::Off {
        return (named, Some("mode=off".to_owned()));
    }
    match resolve(nas) {
        Ok(_) => (named, None),
        Err(reason) => (named, Some(reason)),
    }
}

/// Prints one NAS.
pub async fn show(console: &Console, config: &Config, store: &dyn Store, id: NasId) -> Outcome {
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
    let live = Ctl::new(config)?.look("/api/v1/status").await?;
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
    use crate::nas::NasChange;

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
