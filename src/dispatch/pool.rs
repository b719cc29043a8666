//! One NAS as the scheduler serves it: its slots, its breaker, its executor.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::ahead::Ahead;
use super::breaker::{Breaker, Start};
use super::hear::STALE_MS;
use super::knock::Knock;
use crate::logs::NasLog;
use crate::nas::{Mode, Nas, NasSecret};
use crate::scheme::Execute;
use crate::store::Started;

/// Durations kept for the 95th percentile of `status`.
const DURATIONS: usize = 200;

/// Everything that an attempt on this NAS needs; replaced as a whole when settings change.
#[derive(Clone)]
pub struct Served {
    /// Settings row, with the operator's overrides applied.
    pub nas: Arc<Nas>,
    /// Credentials.
    pub secret: Arc<NasSecret>,
    /// Its scheme.
    pub execute: Arc<dyn Execute>,
    /// Hash over the scheme's files, so that a changed scheme is noticed.
    pub scheme_hash: String,
    /// Name of its log file.
    pub log_name: String,
    /// From this wall time on (ms) nothing starts; none = at once.
    pub paused_from_ms: Option<i64>,
    /// Nothing starts before this wall time (ms).
    pub paused_until_ms: Option<i64>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Served(nas {}, scheme {})",
            self.nas.id, self.scheme_hash
        )
    }
}

impl PartialEq for Served {
    fn eq(&self, other: &Self) -> bool {
        self.nas == other.nas
            && self.secret == other.secret
            && self.scheme_hash == other.scheme_hash
            && self.log_name == other.log_name
            && self.paused_from_ms == other.paused_from_ms
            && self.paused_until_ms == other.paused_until_ms
    }
}

impl Served {
    /// Whether a change from `old` to this may have mended the NAS.
    pub fn may_mend(&self, old: &Self) -> bool {
        self.secret != old.secret || self.scheme_hash != old.scheme_hash || {
            let apart_from_forks = Nas {
                forks: old.nas.forks,
                forks_warning: None,
                ..(*self.nas).clone()
            };
            apart_from_forks
                != Nas {
                    forks_warning: None,
                    ..(*old.nas).clone()
                }
        }
    }
}

/// A served NAS.
pub struct Pool {
    /// What attempts need.
    pub served: Served,
    /// Its log.
    pub log: NasLog,
    /// Shared with the forks, which tell it how attempts ended.
    pub breaker: Arc<Mutex<Breaker>>,
    /// Events claimed and not ended: in the turn that is being written, ahead, or running.
    pub taken: usize,
    /// Forks at work: a fork is freed by a result.
    pub running: usize,
    /// Claimed, and waiting for a fork.
    pub(super) ahead: Ahead<Started>,
    pub(super) knock: Knock,
    /// Not wanted any more: running events finish, nothing starts.
    pub stopping: bool,
    /// Finished attempts since the start, by result word.
    pub done: u64,
    /// Deferred attempts since the start.
    pub deferred: u64,
    /// Dead events since the start.
    pub dead: u64,
    durations: VecDeque<i64>,
}

impl Pool {
    /// A NAS that starts being served.
    pub fn new(served: Served, log: NasLog) -> Self {
        Self {
            served,
            log,
            breaker: Arc::new(Mutex::new(Breaker::new())),
            taken: 0,
            running: 0,
            ahead: Ahead::default(),
            knock: Knock::default(),
            stopping: false,
            done: 0,
            deferred: 0,
            dead: 0,
            durations: VecDeque::with_capacity(DURATIONS),
        }
    }

    /// How many may run at once now.
    pub(super) fn gate(&self) -> usize {
        let room = self.served.execute.room(&self.served.nas);
        self.served.nas.forks.get().min(room.max(1))
    }

    /// Whether a fork is free; none while more run than there are (shrinking).
    pub fn has_fork(&self) -> bool {
        !self.stopping && self.running < self.gate()
    }

    /// Forks that nothing is claimed for.
    pub fn free(&self) -> usize {
        if self.stopping {
            0
        } else {
            self.gate().saturating_sub(self.taken)
        }
    }

    /// Events that may be claimed: for its free forks, and ahead for those that will be free
    /// before the next turn of `turn_ms` is written.
    pub fn places(&self, now: u64, turn_ms: f64) -> usize {
        if self.stopping {
            return 0;
        }
        let gate = self.gate();
        let ahead = self.ahead.places(gate, now, turn_ms);
        (gate + ahead).saturating_sub(self.taken)
    }

    /// Whether the operator has paused it.
    pub fn is_paused(&self, wall_ms: i64) -> bool {
        let begun = self
            .served
            .paused_from_ms
            .is_none_or(|from| wall_ms >= from);
        begun
            && self
                .served
                .paused_until_ms
                .is_some_and(|until| wall_ms < until)
    }

    /// What the breaker lets start.
    pub fn may_start(&self, now: u64) -> Start {
        self.breaker().may_start(now)
    }

    /// A NAS for which events wait is probed as soon as it can be reached again.
    pub(super) fn knock(&mut self, waits: bool, now: u64) {
        let nas = Arc::clone(&self.served.nas);
        let probe = match self.breaker() {
            // What is heard meanwhile is asked for when the probe has ended.
            breaker if breaker.state() == "half-open" => return,
            breaker if breaker.state() == "open" && waits && !self.stopping => Some(breaker.probes),
            _ => None,
        };
        let execute = &self.served.execute;
        let knock = || execute.knock(&nas).filter(|_| nas.mode == Mode::Active);
        if self.knock.is_back(probe, knock) {
            tracing::debug!(
                "NAS can be reached again, it is probed nasid={} nas_ip={}",
                nas.id,
                nas.ip
            );
            self.breaker().reached(now.saturating_add(STALE_MS));
        }
    }

    /// The breaker, whoever panicked while holding it.
    pub fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the duration of an attempt, ms.
    pub fn took(&mut self, now: u64, ms: i64) {
        self.ahead.ended(now, ms);
        if self.durations.len() >= DURATIONS {
            self.durations.pop_front();
        }
        self.durations.push_back(ms);
    }

    /// The 95th percentile of the last attempts, ms; 0 without any.
    pub fn p95_ms(&self) -> i64 {
        let mut sorted: Vec<i64> = self.durations.iter().copied().collect();
        sorted.sort_unstable();
        let at = (sorted.len() * 95).div_ceil(100).saturating_sub(1);
        sorted.get(at).copied().unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "pool_test.rs"]
mod tests;
