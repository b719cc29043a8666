//! What monitoring asks: is the process alive (`/healthz`, never touches the database), can it
//! work (`/readyz`), and the numbers (`/metrics`). Also the one count of the stacks that these,
//! `/api/v1/status` and the high-water mark share, so that a busy poller costs one query a
//! second at most.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::event::{self, CompactEvent};
use crate::intake::access::{self, Openness, Scope};
use crate::intake::rest::{Desk, Refusal};
use crate::intake::{api, exposition, gauges, tails};
use crate::store::query::{Model, Query};
use crate::store::{Counts, Idempotency};

/// The parent loop is alive if it turned within this many of its intervals …
const LIVE_INTERVALS: u64 = 3;
/// … and this much more, ms: a turn itself takes time on a busy machine.
const LIVE_SLACK_MS: u64 = 10_000;
/// How long the database may take to answer `/readyz`.
const READY_TIME: Duration = Duration::from_secs(2);
/// Counts younger than this are not asked for again, ms.
const COUNTS_AGE_MS: u64 = 1_000;
/// Far below the mark, where only rows inserted by SQL are unknown, the count may be so old, ms.
const BELOW_AGE_MS: u64 = 10_000;
/// How often the lag of the loop is looked at.
const LAG_EVERY: Duration = Duration::from_secs(1);
/// Samples of histograms lie in memory until they are folded in; this often, in those, they are.
const UPKEEP_TURNS: u32 = 5;
/// How old the number of accounts may be, ms: the billing is asked to count them all.
const ACCOUNTS_AGE_MS: u64 = 600_000;

const HTTP_REQUESTS: &str = "nas_event_daemon_http_requests_total";
const HTTP_SECONDS: &str = "nas_event_daemon_http_request_duration_seconds";
const RECEIVED: &str = "nas_event_daemon_events_received_total";
const LAG: &str = "nas_event_daemon_loop_lag_seconds";
const BUILD: &str = "nas_event_daemon_build_info";

/// Bounds of durations that people wait for, seconds.
const SHORT_S: &[f64] = &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0];
/// Bounds of attempts, seconds; 0.3 is the norm of the original's documentation.
const ATTEMPT_S: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
/// Bounds from insertion to the final state, seconds: up to a day of retries.
const LATENCY_S: &[f64] = &[
    0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0,
];
/// Bounds of batch sizes, events.
const BATCH: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

/// Installs the process's one metrics recorder; called again, it gives the same handle.
/// Somebody must run [`metrics_upkeep`].
pub fn install_metrics() -> PrometheusHandle {
    static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
    let install = || {
        let recorder = bounded()
            .unwrap_or_else(|_| PrometheusBuilder::new())
            .build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed; /metrics stays empty");
        }
        handle
    };
    INSTALLED.get_or_init(install).clone()
}

fn bounded() -> Result<PrometheusBuilder, metrics_exporter_prometheus::BuildError> {
    let full = |name: &str| Matcher::Full(format!("nas_event_daemon_{name}"));
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SHORT_S)?
        .set_buckets_for_metric(Matcher::Suffix("_batch_events".to_owned()), BATCH)?
        .set_buckets_for_metric(full("attempt_duration_seconds"), ATTEMPT_S)?
        .set_buckets_for_metric(full("event_latency_seconds"), LATENCY_S)
}

/// Keeps the memory of histograms bounded while nobody scrapes, and notes how late it is called:
/// as late as every other task of this process. Ends at `stop`.
pub async fn metrics_upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    let mut turns = tokio::time::interval(LAG_EVERY);
    let mut turn: u32 = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            due = turns.tick() => {
                histogram!(LAG).record(due.elapsed().as_secs_f64());
                turn = turn.wrapping_add(1);
                if turn.is_multiple_of(UPKEEP_TURNS) {
                    handle.run_upkeep();
                }
            }
        }
    }
}

/// Help texts of the metrics that the doors own.
pub fn describe() {
    describe_counter!(HTTP_REQUESTS, "Answered HTTP requests");
    describe_histogram!(HTTP_SECONDS, "From the request's head to the answer's head");
    describe_counter!(
        RECEIVED,
        "Events that came in: by a door when it accepts them, otherwise at expansion"
    );
    gauges::describe();
    describe_gauge!(BUILD, "Always 1; the labels say what runs");
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION"),
        "revision" => option_env!("NED_REVISION").unwrap_or("unknown"),
        "rustc" => env!("NED_RUSTC"))
    .set(1.0);
}

/// Counts one answered request.
pub fn count_request(handler: &str, method: &'static str, code: u16, ms: u64) {
    let handler = handler.to_owned();
    counter!(HTTP_REQUESTS, "handler" => handler.clone(), "method" => method,
        "code" => code.to_string())
    .increment(1);
    histogram!(HTTP_SECONDS, "handler" => handler, "method" => method)
        .record(Duration::from_millis(ms).as_secs_f64());
}

/// Counts accepted events. What our own tools post may come here or into the database, so that is
/// counted by expansion, like all that comes by SQL; see [`Expansion::came`].
///
/// [`Expansion::came`]: crate::store::Expansion::came
pub fn count_events(events: &[CompactEvent], guard: Option<&Idempotency>) {
    for accepted in events {
        let source = accepted.source.as_deref().unwrap_or_default();
        let rest = guard.and_then(|guard| guard.key.strip_prefix(source));
        if source != "cli" && rest.is_none_or(|rest| !rest.starts_with(':')) {
            counter!(RECEIVED, "source" => "rest", "cmd" => event::label(&accepted.cmd))
                .increment(1);
        }
    }
}

/// The stacks as last counted.
#[derive(Default)]
pub struct Seen {
    /// Waiting events at the last count, and those accepted since.
    waiting: AtomicI64,
    /// [`clock::tick_ms`] of the last count.
    counted_at: AtomicU64,
    counting: AtomicBool,
    last: tokio::sync::Mutex<Option<(u64, Counts)>>,
    /// When the accounts were counted, and how many; none = the billing could not say.
    accounts: tokio::sync::Mutex<Option<(u64, Option<i64>)>>,
    shown: gauges::Shown,
}

impl Seen {
    /// Notes newly accepted events.
    pub fn add(&self, events: usize) {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        self.waiting.fetch_add(events, Ordering::Relaxed);
    }

    /// Whether posts are to be refused. Never waits: an old count is renewed beside the request.
    pub fn is_above_mark(&self, desk: &Desk) -> bool {
        let mark = i64::try_from(desk.doors.high_water).unwrap_or(i64::MAX);
        if mark == 0 {
            return false;
        }
        let now = clock::tick_ms();
        let age = now.saturating_sub(self.counted_at.load(Ordering::Relaxed));
        let above = self.waiting.load(Ordering::Relaxed) >= mark;
        let longest = if above { COUNTS_AGE_MS } else { BELOW_AGE_MS };
        if age >= longest && !self.counting.swap(true, Ordering::Relaxed) {
            let renewed = std::sync::Arc::clone(desk);
            desk.beside(async move {
                let asked = renewed.doors.store.backlog(renewed.doors.high_water);
                if let Ok(Ok(backlog)) = tokio::time::timeout(READY_TIME, asked).await {
                    let rows = backlog.compact.saturating_add(backlog.main);
                    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
                    renewed.seen.waiting.store(rows, Ordering::Relaxed);
                }
                renewed
                    .seen
                    .counted_at
                    .store(clock::tick_ms(), Ordering::Relaxed);
                renewed.seen.counting.store(false, Ordering::Relaxed);
            });
        }
        above
    }
}

/// How old a count may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Asked for anew.
    Now,
    /// At most [`COUNTS_AGE_MS`] old: for what anybody may ask, as often as they like.
    Second,
}

/// The numbers of the stacks.
pub async fn counts(desk: &Desk, freshness: Freshness) -> Result<Counts, Refusal> {
    let seen = &desk.seen;
    let mut last = seen.last.lock().await;
    if let Some((at, counts)) = last.as_ref()
        && freshness == Freshness::Second
        && clock::tick_ms().saturating_sub(*at) < COUNTS_AGE_MS
    {
        return Ok(counts.clone());
    }
    let asked = tokio::time::timeout(READY_TIME, desk.doors.store.counts()).await;
    let now = clock::tick_ms();
    seen.counted_at.store(now, Ordering::Relaxed);
    let counts = match asked {
        Ok(counts) => counts.map_err(Refusal::store)?,
        Err(_) => {
            return Err(Refusal::new(
                503,
                "unavailable",
                format!("the database did not answer within {READY_TIME:?}"),
                "look at the database server and at the daemon log",
            ));
        }
    };
    let main: i64 = counts.main.iter().map(|(_, rows)| rows).sum();
    seen.waiting.store(counts.compact + main, Ordering::Relaxed);
    *last = Some((now, counts.clone()));
    Ok(counts)
}

/// Accounts of the billing; none = it does not say. Counted seldom, also if that failed.
pub async fn accounts(desk: &Desk) -> Option<i64> {
    let mut last = desk.seen.accounts.lock().await;
    if let Some((at, accounts)) = *last
        && clock::tick_ms().saturating_sub(at) < ACCOUNTS_AGE_MS
    {
        return accounts;
    }
    // Its end is READY_TIME.
    let all = Query {
        unbounded: true,
        ..Query::all(Model::Users)
    };
    let asked = tokio::time::timeout(READY_TIME, desk.doors.store.count(&all)).await;
    let accounts = asked.ok().and_then(Result::ok);
    *last = Some((clock::tick_ms(), accounts));
    accounts
}

/// How long ago the parent loop turned, ms; counted from the start before its first turn.
pub fn parent_age_ms(desk: &Desk) -> u64 {
    let turned = desk.doors.parent_tick.load(Ordering::Relaxed);
    clock::tick_ms().saturating_sub(turned)
}

/// `GET /healthz`: 200 while the parent loop turns; restarting helps if it does not.
pub async fn live(State(desk): State<Desk>) -> Response {
    let age = parent_age_ms(&desk);
    let limit = live_limit_ms(desk.doors.settings_interval);
    if age < limit {
        return axum::Json(json!({ "status": "alive", "parent_turned_ms_ago": age }))
            .into_response();
    }
    Refusal::new(
        503,
        "parent_loop_stands",
        format!("the parent loop turned last {age} ms ago, the limit is {limit} ms"),
        "read the end of the daemon log, then restart the daemon: nothing is lost",
    )
    .into_response()
}

/// Longest time between two turns of the parent loop, ms.
pub fn live_limit_ms(settings_interval: Duration) -> u64 {
    u64::try_from(settings_interval.as_millis())
        .unwrap_or(u64::MAX)
        .saturating_mul(LIVE_INTERVALS)
        .saturating_add(LIVE_SLACK_MS)
}

/// `GET /readyz`: 200 while the database answers and has room.
pub async fn ready(State(desk): State<Desk>) -> Response {
    if desk.doors.is_full.as_ref().is_some_and(|full| full()) {
        return Refusal::new(
            503,
            "unavailable",
            "there is no room left where the database lies".to_owned(),
            "make room: doctor on that machine says where",
        )
        .into_response();
    }
    match counts(&desk, Freshness::Second).await {
        Ok(_) => axum::Json(json!({ "status": "ready" })).into_response(),
        Err(refusal) => Refusal {
            status: axum::http::StatusCode::SERVICE_UNAVAILABLE,
            ..refusal
        }
        .into_response(),
    }
}

/// `GET /metrics`: the Prometheus text format 0.0.4; without a token on loopback. Of so many NASes
/// as `metrics.max_nas` says each has its series, of more there are only sums.
pub async fn metrics(State(desk): State<Desk>, request: Request) -> Result<Response, Refusal> {
    let text = rendered(&desk, request).await?;
    let max = desk.doors.metrics_max_nas;
    if exposition::nases(&text) > max {
        return Ok(shown(exposition::summed(&text)));
    }
    Ok(shown(text))
}

/// Query of `/metrics/detailed`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetailedQuery {
    /// `nas.id`s between commas.
    nas: Option<String>,
}

/// `GET /metrics/detailed?nas=7,8`: what is told of these NASes, or of all, however many there are.
pub async fn detailed(
    State(desk): State<Desk>,
    query: api::Asked<DetailedQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    let nases = api::asked(query)?.nas;
    let text = rendered(&desk, request).await?;
    let Some(nases) = nases else {
        return Ok(shown(text));
    };
    let each = nases.split(',').map(|id| id.trim().parse::<i64>());
    let wanted: BTreeSet<i64> = each
        .collect::<Result<_, _>>()
        .map_err(|_| Refusal::malformed("nas is not a list of nas.id between commas".to_owned()))?;
    let of_them = exposition::only(&text, &wanted);
    if of_them.is_empty() {
        return Err(Refusal::not_found(
            "there are no numbers of these NASes".to_owned(),
            "GET /api/v1/nas lists the NASes",
        ));
    }
    Ok(shown(of_them))
}

async fn rendered(desk: &Desk, request: Request) -> Result<String, Refusal> {
    let (parts, _) = request.into_parts();
    let caller = access::caller(desk, &parts, Openness::Loopback).await?;
    caller.at_least(Scope::Viewer)?;
    let Some(handle) = &desk.doors.metrics else {
        return Err(Refusal::not_found(
            "this process keeps no metrics".to_owned(),
            "ask the daemon itself",
        ));
    };
    // Without the database the other numbers are wanted all the more.
    if let Some(status) = &desk.doors.dispatch {
        gauges::dispatch(&desk.seen.shown, &status());
    }
    let streams = tails::STREAMS_MAX.saturating_sub(desk.tails.available_permits());
    gauges::intake(desk.doors.limited.load(Ordering::Relaxed), streams);
    gauges::process();
    if let Ok(counts) = counts(desk, Freshness::Second).await {
        gauges::stacks(&desk.seen.shown, &counts);
        if let Some(accounts) = accounts(desk).await {
            gauges::accounts(accounts);
        }
    }
    Ok(handle.render())
}

fn shown(text: String) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_intervals_and_ten_seconds() {
        assert_eq!(live_limit_ms(Duration::from_secs(60)), 190_000);
        assert_eq!(live_limit_ms(Duration::MAX), u64::MAX);
    }

    #[test]
    fn the_norm_of_the_documentation_is_a_bound_and_the_handle_is_one() {
        let handle = install_metrics();
        histogram!("nas_event_daemon_attempt_duration_seconds").record(0.2);
        let text = install_metrics().render();
        let bound = "nas_event_daemon_attempt_duration_seconds_bucket{le=\"0.3\"} 1";
        assert!(text.contains(bound), "{text}");
        handle.run_upkeep();
    }
}
