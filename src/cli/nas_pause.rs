//! `nas pause`, `nas resume`, `nas drain`: starting nothing new on a NAS, starting again, and waiting
//! until it is idle, so that somebody may work on it.

use std::time::Duration;

use clap::Args;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::ctl::{Ctl, refusal};
use super::exit::{DONE, Failed, NOT_REACHABLE, Outcome, REFUSED, TIMED_OUT, remark};
use super::nas::{change, find};
use super::nas_show::live_of;
use super::request::Request;
use super::{Console, Reason, given};
use crate::clock;
use crate::config::{Config, parse_duration};
use crate::nas::{NasChange, NasId};
use crate::store::{Filter, Store};

/// How often a NAS that drains is looked at: as often as the daemon renews its numbers.
const LOOK: Duration = Duration::from_millis(200);

/// Which, how long, why.
#[derive(Debug, Args)]
pub struct Pause {
    /// nas.id, one or several
    #[arg(required = true)]
    ids: Vec<i64>,
    /// For so long, for example 30m; else until resumed
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    length: Option<Duration>,
    /// Not now but at this time, server's time: "HH:MM" (the next), or "YYYY-MM-DD HH:MM"
    #[arg(long, value_name = "TIME", value_parser = super::guard::coming)]
    at: Option<i64>,
    /// Why, for those who look later
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

/// Which.
#[derive(Debug, Args)]
pub struct Resume {
    /// nas.id, one or several
    #[arg(required = true)]
    ids: Vec<i64>,
    #[command(flatten)]
    reason: Reason,
}

/// Which, and how long is waited.
#[derive(Debug, Args)]
pub struct Drain {
    /// nas.id
    id: i64,
    /// How long running events are waited for
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// Why, for those who look later
    #[arg(long, default_value = "drained", value_name = "TEXT")]
    reason: String,
}

fn path(id: i64, what: &str) -> String {
    format!("/api/v1/nas/{id}/{what}")
}

impl Pause {
    /// The same over the API, which announces none.
    pub fn requests(&self) -> Vec<Request> {
        let length = self.length.map(|l| format!("{}ms", l.as_millis()));
        let fields = [("for", json!(length)), ("reason", json!(self.reason))];
        let each = self.ids.iter().filter(|_| self.at.is_none());
        each.map(|id| Request::post(path(*id, "pause"), &fields))
            .collect()
    }
}

impl Resume {
    /// The same over the API.
    pub fn requests(&self) -> Vec<Request> {
        let fields = [self.reason.field()];
        let each = self.ids.iter();
        each.map(|id| Request::post(path(*id, "resume"), &fields))
            .collect()
    }
}

/// All or none: a wrong number must not leave half of them paused.
async fn known(store: &dyn Store, ids: &[i64]) -> Result<(), Failed> {
    for id in ids {
        let _ = find(store, NasId(*id)).await?;
    }
    Ok(())
}

/// Pauses them.
pub async fn pause(console: &Console, config: &Config, store: &dyn Store, args: &Pause) -> Outcome {
    known(store, &args.ids).await?;
    let Pause { length, at, .. } = args;
    let until = length.map_or(i64::MAX, |length| {
        let ms = i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
        at.unwrap_or_else(clock::wall_ms).saturating_add(ms)
    });
    for id in &args.ids {
        let detail = format!(
            "nas={id} at={} for={} reason={:?}",
            at.map_or_else(|| "now".to_owned(), clock::local_text),
            given(length),
            args.reason
        );
        let paused = NasChange::Pause {
            from: *at,
            until,
            reason: args.reason.clone(),
        };
        change(
            console,
            config,
            store,
            NasId(*id),
            "nas_pause",
            &detail,
            paused,
        )
        .await?;
    }
    Ok(DONE)
}

/// Ends pauses. The daemon does it, if there is one: it then also tries a NAS at once that did not
/// obey, without waiting for the time of its next probe.
pub async fn resume(
    console: &Console,
    config: &Config,
    store: &dyn Store,
    args: &Resume,
) -> Outcome {
    known(store, &args.ids).await?;
    let ctl = Ctl::new(config)?;
    let (key, why) = args.reason.field();
    let body = json!({ key: why });
    for id in &args.ids {
        if !console.dry_run {
            let path = path(*id, "resume");
            match ctl.raw(Method::POST, &path, Some(&body)).await? {
                Some((status, _)) if status.is_success() => continue,
                // Who may change the database need not be who runs the daemon.
                Some((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)) | None => {}
                Some((status, text)) => return Err(refusal(status, &text)),
            }
        }
        let detail = args.reason.of(&format!("nas={id}"));
        let resume = NasChange::Resume;
        change(
            console,
            config,
            store,
            NasId(*id),
            "nas_resume",
            &detail,
            resume,
        )
        .await?;
    }
    Ok(DONE)
}

/// Tries a NAS at once that does not obey, as [`resume`] does; but a pause is somebody's wish, and
/// stays.
pub async fn reset_breaker(
    console: &Console,
    config: &Config,
    store: &dyn Store,
    id: i64,
    reason: &Reason,
) -> Outcome {
    known(store, &[id]).await?;
    let state = store.nas_states().await?.remove(&NasId(id));
    if state.is_some_and(|state| {
        state
            .paused_until_ms
            .is_some_and(|at| at > clock::wall_ms())
    }) {
        return Err(Failed::new(
            REFUSED,
            format!("NAS {id} is paused, or will be\nhint: nas resume {id} ends the pause, too"),
        ));
    }
    if console.dry_run {
        remark(format!("dry run: NAS {id} would be tried at once"));
        return Ok(DONE);
    }
    let asked = Ctl::new(config)?;
    let (key, why) = reason.field();
    match asked
        .post(&path(id, "resume"), &json!({ key: why }))
        .await?
    {
        Some(_) => Ok(DONE),
        None => Err(Failed::new(
            NOT_REACHABLE,
            "no daemon is running: there is no breaker, each begins closed",
        )
        .numbered(401)),
    }
}

async fn running_rows(store: &dyn Store, nas: i64) -> Result<i64, Failed> {
    let filter = Filter {
        state: Some("running".to_owned()),
        nas: Some(nas),
        limit: 1000,
        unbounded: true,
        ..Filter::default()
    };
    let rows = store.events(&filter).await?;
    Ok(i64::try_from(rows.len()).unwrap_or(i64::MAX))
}

/// Pauses a NAS until it is resumed, and waits until nothing runs there any more.
pub async fn drain(console: &Console, config: &Config, store: &dyn Store, args: &Drain) -> Outcome {
    let pause_it = Pause {
        ids: vec![args.id],
        length: None,
        at: None,
        reason: args.reason.clone(),
    };
    pause(console, config, store, &pause_it).await?;
    if console.dry_run {
        return Ok(DONE);
    }
    let ctl = Ctl::new(config)?;
    let limit = u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX);
    let until = clock::tick_ms().saturating_add(limit);
    loop {
        let live = ctl.get("/api/v1/status").await?;
        let nas = live.as_ref().map(|live| live_of(live, NasId(args.id)));
        let (running, paused) = match nas {
            Some(Some(nas)) => (
                nas.get("running").and_then(Value::as_i64).unwrap_or(0),
                nas.get("paused").and_then(Value::as_bool) == Some(true),
            ),
            // It is not served.
            Some(None) => (0, true),
            // Whether a daemon runs that cannot be reached from here, the rows tell.
            None => (running_rows(store, args.id).await?, true),
        };
        if paused && running == 0 {
            break;
        }
        if clock::tick_ms() >= until {
            return Err(Failed::new(
                TIMED_OUT,
                format!(
                    "{running} events still run on NAS {}, nothing new starts there\nhint: event list --state running --nas {} names them; nas resume {} goes on",
                    args.id, args.id, args.id
                ),
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
    remark(format!(
        "nothing runs on NAS {}; nas resume {} goes on",
        args.id, args.id
    ));
    Ok(DONE)
}
