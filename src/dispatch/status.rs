//! What the dispatcher says of itself, for `status`, `nas list`, the demo and the metrics.

use serde::Serialize;

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
