//! What the dispatcher says of itself, for `status`, `nas list`, the demo and the metrics.

use std::time::Duration;

use serde::Serialize;

use super::breaker::Change;
use super::scheduler::{Scheduler, State};
use crate::attempt::{Failure, Verdict};
use crate::clock;
use crate::event::CATALOGUE;
use crate::nas::NasId;

/// How often `status` is renewed at most, ms.
pub(super) const STATUS_MS: u64 = 200;

/// One served NAS, as of the last turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NasStatus {
    /// `nas.id`
    pub id: i64,
    /// `nas.name`
    pub name: String,
    /// `nas.ip`
    pub ip: String,
    /// Ids waiting in memory (more may stand in the database).
    pub waiting: usize,
    /// Slots taken.
    pub running: usize,
    /// Slots in all.
    pub forks: usize,
    /// Events done since the daemon started.
    pub done: u64,
    /// Attempts that ended deferred.
    pub deferred: u64,
    /// Events that died.
    pub dead: u64,
    /// closed, open, half-open, parked.
    pub breaker: &'static str,
    /// Why it is not closed.
    pub reason: String,
    /// Paused by the operator.
    pub paused: bool,
    /// 95th percentile of the last 200 attempts, ms.
    pub p95_ms: i64,
}

/// All of them, and how far the scheduler has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Status {
    /// Turns written.
    pub turns: u64,
    /// Ids in memory.
    pub held: usize,
    /// Attempts running.
    pub running: usize,
    /// Served NASes.
    pub nases: Vec<NasStatus>,
    /// NASes that are not served, with the reason.
    pub skipped: Vec<(i64, String)>,
}

/// A command as a label: those of the catalogue by name, schemes' own together, so that no label
/// has more values than a graph has colours.
pub(super) fn label(cmd: &str) -> &'static str {
    let known = CATALOGUE.iter().find(|(name, _)| *name == cmd);
    known.map_or("other", |(name, _)| name)
}

/// Counts one event that has reached its end, and how long that took since it was accepted.
pub(super) fn count_event(cmd: &'static str, result: &'static str, accepted_ms: i64) {
    let ms = clock::wall_ms().saturating_sub(accepted_ms);
    let took = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    metrics::counter!("nas_event_daemon_events_total", "cmd" => cmd, "result" => result)
        .increment(1);
    metrics::histogram!("nas_event_daemon_event_latency_seconds", "result" => result)
        .record(took.as_secs_f64());
}

/// Counts an attempt that failed, by the kind of failure.
pub(super) fn count_error(nas: NasId, verdict: &Verdict) {
    let class = match verdict {
        Verdict::Done | Verdict::Observed | Verdict::NotImplemented => return,
        Verdict::Failed(failure) if failure.code == Failure::CODE_TIMEOUT => "timeout",
        Verdict::Failed(failure) => failure.class.as_str(),
        Verdict::Exit(0) => return,
        Verdict::Exit(Failure::CODE_TIMEOUT) => "timeout",
        Verdict::Exit(_) => "exit",
    };
    metrics::counter!("nas_event_daemon_attempt_errors_total", "nas_id" => nas.to_string(),
        "class" => class)
    .increment(1);
}

/// Counts one ended attempt.
pub(super) fn count_attempt(nas: NasId, result: &'static str, ms: i64) {
    let nas = nas.to_string();
    let took = Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    if result == "done" {
        let now = Duration::from_millis(u64::try_from(clock::wall_ms()).unwrap_or_default());
        metrics::gauge!("nas_event_daemon_nas_last_success_timestamp_seconds", "nas_id" => nas.clone())
            .set(now.as_secs_f64());
    }
    metrics::histogram!("nas_event_daemon_attempt_duration_seconds", "nas_id" => nas.clone())
        .record(took.as_secs_f64());
    metrics::counter!("nas_event_daemon_dispatch_attempts_total", "nas_id" => nas, "result" => result)
        .increment(1);
}

impl Scheduler {
    pub(super) fn publish(&self, s: &mut State, wall_ms: i64) {
        let now = clock::tick_ms();
        if now.saturating_sub(s.status_at) < STATUS_MS {
            s.unpublished = true;
            return;
        }
        s.status_at = now;
        s.unpublished = false;
        for pool in s.pools.values() {
            if let Some(Change::Closed) = pool.breaker().tick(now) {
                tracing::info!(
                    "NAS obeys again nasid={} nas_ip={}",
                    pool.served.nas.id,
                    pool.served.nas.ip
                );
            }
        }
        let nases = s
            .pools
            .iter()
            .map(|(id, p)| {
                let breaker = p.breaker();
                NasStatus {
                    id: id.0,
                    name: p.served.nas.name.clone(),
                    ip: p.served.nas.ip.clone(),
                    waiting: s.lanes.held_of(*id),
                    running: p.running,
                    forks: p.served.nas.forks.get(),
                    done: p.done,
                    deferred: p.deferred,
                    dead: p.dead,
                    breaker: breaker.state(),
                    reason: breaker.reason().to_owned(),
                    paused: p.is_paused(wall_ms),
                    p95_ms: p.p95_ms(),
                }
            })
            .collect();
        let status = Status {
            turns: s.turns,
            held: s.lanes.held(),
            running: s.out.len(),
            nases,
            skipped: s
                .skipped
                .iter()
                .map(|(id, skip)| (id.0, skip.why.clone()))
                .collect(),
        };
        self.status.send_replace(status);
    }
}
