//! A turn that nobody waits for takes in more: writing it costs hardly more for many events than
//! for few, and while enough is ahead no fork stands idle for want of it.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Message;
use super::breaker::Start;
use super::pool::Pool;
use super::scheduler::{Scheduler, State};
use crate::clock;

/// How long a turn is put off while nobody waits for it, ms: attempts that were started together
/// end together, and those that follow them are on their way before it takes the cores.
const GATHER_MS: u64 = 2;
/// Turns that what is ahead must last for: the one that is put off, and one that takes longer.
const TURNS: f64 = 2.0;

impl Scheduler {
    /// Hears what comes in until somebody waits for the next turn, at most for `GATHER_MS`.
    pub(super) async fn gather(
        &self,
        s: &mut State,
        inbox: &mut mpsc::Receiver<Message>,
        stop: &CancellationToken,
    ) {
        let until = clock::tick_ms().saturating_add(GATHER_MS);
        loop {
            let now = clock::tick_ms();
            if now >= until || stop.is_cancelled() || s.is_awaited(now, clock::wall_ms()) {
                return;
            }
            tokio::select! {
                // Cancel-safe, as in the loop around it.
                () = stop.cancelled() => return,
                message = inbox.recv() => if let Some(m) = message { self.hear(s, m) },
                ended = s.attempts.next() => self.ended(s, ended),
                () = tokio::time::sleep(Duration::from_millis(until - now)) => {}
            }
            while let Ok(message) = inbox.try_recv() {
                self.hear(s, message);
            }
            self.reap(s);
        }
    }
}

impl State {
    /// Whether somebody waits for the next turn: a person for an answer, a fork for an event, or
    /// everybody since nothing is ahead.
    fn is_awaited(&self, now: u64, wall_ms: i64) -> bool {
        let nothing_ahead = self.pools.values().all(|p| p.ahead.is_empty());
        if nothing_ahead || self.answers || self.alone.is_some() || self.quiet.is_some() {
            return true;
        }
        self.pools.iter().any(|(nas, pool)| {
            if self.lanes.held_of(*nas) == 0 {
                return false;
            }
            // Asked, or told at once that it cannot be.
            self.lanes.has_interactive(*nas)
                || !pool.is_paused(wall_ms)
                    && match pool.may_start(now) {
                        Start::Free => pool.runs_short(now, self.turn_ms),
                        Start::Probe => true,
                        Start::Wait { .. } => false,
                    }
        })
    }
}

impl Pool {
    /// Whether its forks would stand idle if the next turn came late.
    fn runs_short(&self, now: u64, turn_ms: f64) -> bool {
        let lasts = || self.ahead.lasts_ms(self.gate());
        self.free() > 0 || (self.places(now, turn_ms) > 0 && lasts() < TURNS * turn_ms)
    }
}

#[cfg(test)]
#[path = "gather_test.rs"]
mod tests;
