//! What the dispatcher says of itself, for `status`, `nas list`, the demo and the metrics.

use std::time::Duration;

use serde::Serialize;

use super::Obstacle;
use super::breaker::Change;
use super::pool::Served;
use super::scheduler::{Scheduler, State};
use crate::attempt::{Failure, FailureClass, Verdict};
use crate::clock;
use crate::nas::{Mode, Nas};

/// How often `status` is renewed at most, ms.
pub(super) const STATUS_MS: u64 = 200;

/// One served NAS, as of the last turn.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
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
    /// Rendered and logged only (`mode = observe`).
    pub observe: bool,
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
    /// NASes that are not served: id, reason, its kind, name.
    pub skipped: Vec<(i64, String, Obstacle, String)>,
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

/// Kinds of failure, as a label.
const TIMEOUT: &str = "timeout";
const EXIT: &str = "exit";
const CLASSES: [&str; 6] = [
    FailureClass::Transport.as_str(),
    FailureClass::Refused.as_str(),
    FailureClass::Unknown.as_str(),
    FailureClass::Permanent.as_str(),
    TIMEOUT,
    EXIT,
];

/// Counts an attempt that failed, by the kind of failure.
pub(super) fn count_error(nas: &Nas, verdict: &Verdict) {
    let class = match verdict {
        Verdict::Done | Verdict::Observed | Verdict::NotImplemented => return,
        Verdict::Failed(failure) if failure.code == Failure::CODE_TIMEOUT => TIMEOUT,
        Verdict::Failed(failure) => failure.class.as_str(),
        Verdict::Exit(0) => return,
        Verdict::Exit(Failure::CODE_TIMEOUT) => TIMEOUT,
        Verdict::Exit(_) => EXIT,
    };
    errors(nas, class).increment(1);
}

/// Failures of a NAS begin to be counted at 0: a counter that is born with its first failure has
/// not grown, as far as `increase()` knows.
pub(super) fn count_from_now_on(nas: &Nas) {
    for class in CLASSES {
        errors(nas, class).increment(0);
    }
}

fn errors(nas: &Nas, class: &'static str) -> metrics::Counter {
    metrics::counter!("nas_event_daemon_attempt_errors_total", "nas_id" => nas.id.to_string(),
        "nas" => nas.name.clone(), "class" => class)
}

/// Counts one ended attempt.
pub(super) fn count_attempt(served: &Served, result: &'static str, ms: i64) {
    let (nas, name) = (served.nas.id.to_string(), served.nas.name.clone());
    let driver = match served.execute.driver() {
        "" => "script",
        driver => driver,
    };
    let took = Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    if result == "done" {
        let now = Duration::from_millis(u64::try_from(clock::wall_ms()).unwrap_or_default());
        metrics::gauge!("nas_event_daemon_nas_last_success_timestamp_seconds",
            "nas_id" => nas.clone(), "nas" => name.clone())
        .set(now.as_secs_f64());
    }
    metrics::histogram!("nas_event_daemon_attempt_duration_seconds", "nas_id" => nas.clone(),
        "nas" => name.clone(), "driver" => driver)
    .record(took.as_secs_f64());
    metrics::counter!("nas_event_daemon_dispatch_attempts_total", "nas_id" => nas, "nas" => name,
        "driver" => driver, "result" => result)
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
        for (nas, pool) in &mut s.pools {
            let waits = s.lanes.held_of(*nas) > 0 && !pool.is_paused(wall_ms);
            pool.knock(waits, now);
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
                    waiting: s.lanes.held_of(*id) + p.ahead.len(),
                    running: p.running,
                    forks: p.served.nas.forks.get(),
                    done: p.done,
                    deferred: p.deferred,
                    dead: p.dead,
                    breaker: breaker.state(),
                    // What is over is no news of the NAS.
                    reason: match breaker.state() {
                        "closed" => String::new(),
                        _ => breaker.reason().to_owned(),
                    },
                    paused: p.is_paused(wall_ms),
                    observe: p.served.nas.mode == Mode::Observe,
                    p95_ms: p.p95_ms(),
                }
            })
            .collect();
        let status = Status {
            turns: s.turns,
            held: s.lanes.held(),
            running: s.pools.values().map(|p| p.running).sum(),
            nases,
            skipped: s
                .skipped
                .iter()
                .map(|(id, skip)| (id.0, skip.why.clone(), skip.obstacle, skip.name.clone()))
                .collect(),
        };
        self.status.send_replace(status);
    }
}

#[cfg(test)]
#[path = "status_test.rs"]
mod tests;
