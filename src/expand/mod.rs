//! Expansion: moves compact events to the main stack with their PARAMS, in batches, each one
//! transaction, and hands what was moved to dispatch. Rows that cannot be expanded keep their
//! error, are tried again with back-off (1 → 60 s) and never stand in the way.

pub mod foresee;
pub mod guard;
pub mod hold;
pub mod level;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::event::{self, Cmd, EventId, Waiting};
use crate::store::Store;
use hold::Watch;
use level::Level;

/// Rows of one batch; SQLite's one writer also settles and starts, so it takes fewer.
pub const BATCH_SQLITE: usize = 500;
/// Rows of one batch on PostgreSQL.
pub const BATCH_POSTGRES: usize = 1_000;
/// First and longest wait after the database refused a batch.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);
/// Rows whose reason is remembered, so that it is said once.
const SAID_MAX: usize = 10_000;

/// Why rows are not expanded, as a label.
const REASONS: [&str; 6] = [CMD, ACCOUNT, NAS, PARAMS, OVERTAKEN, OTHER];
const CMD: &str = "cmd";
const ACCOUNT: &str = "account";
const NAS: &str = "nas";
const PARAMS: &str = "params";
const OVERTAKEN: &str = "overtaken";
/// Mostly what the billing's view cannot give.
const OTHER: &str = "other";

/// The label of what the store says, which names the field first.
fn reason(why: &str) -> &'static str {
    let begins = |words: &[&str]| words.iter().any(|word| why.starts_with(word));
    if begins(&["unknown cmd", "cmd "]) {
        CMD
    } else if begins(&["user_id "]) {
        ACCOUNT
    } else if begins(&["nas_id ", "nas_ip ", "the account has no NAS"]) {
        NAS
    } else if begins(&["params"]) {
        PARAMS
    } else {
        OTHER
    }
}

fn errors(reason: &'static str) -> metrics::Counter {
    metrics::counter!("nas_event_daemon_expand_errors_total", "reason" => reason)
}

/// The loop and what it needs.
pub struct Expander {
    /// Both stacks.
    pub store: Arc<dyn Store>,
    /// Notified by the doors, so that what enters through us need not wait for the poll.
    pub wake: Arc<Notify>,
    /// `dispatch.poll_interval`, for rows inserted by others.
    pub poll: Duration,
    /// Rows of one batch.
    pub batch: usize,
    /// Commands that loaded schemes define.
    pub cmds: watch::Receiver<Vec<Cmd>>,
    /// Moved events go here.
    pub moved: mpsc::Sender<Vec<Waiting>>,
    /// The intent guard.
    pub watch: Watch,
    /// How full the main stack may be.
    pub level: Level,
    /// How many events the guard holds, for others to see.
    pub held: Arc<AtomicUsize>,
}

impl Expander {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut wait = RETRY_FIRST;
        let mut said: HashMap<EventId, String> = HashMap::new();
        // Born at 0: what is born with its first error has not grown, as far as rules can see.
        REASONS.iter().for_each(|why| errors(why).increment(0));
        self.watch.remember().await;
        while !stop.is_cancelled() {
            let released = self.watch.orders().await;
            if !released.is_empty() && self.moved.send(released).await.is_err() {
                return;
            }
            let cmds = self.cmds.borrow_and_update().clone();
            let held = self.watch.held();
            self.held.store(held, Ordering::Relaxed);
            let limited = self.level.is_above(self.store.as_ref()).await;
            let began = clock::tick_ms();
            let asked = if limited {
                self.store.expand_urgent(self.batch, &cmds).await
            } else {
                self.store.expand(self.batch, &cmds).await
            };
            if !asked.as_ref().is_ok_and(|out| out.moved.is_empty()) {
                let took = Duration::from_millis(clock::tick_ms().saturating_sub(began));
                metrics::histogram!("nas_event_daemon_expand_duration_seconds")
                    .record(took.as_secs_f64());
            }
            let pause = match asked {
                Ok(out) => {
                    wait = RETRY_FIRST;
                    for ((way, cmd), rows) in &out.came {
                        metrics::counter!("nas_event_daemon_events_received_total",
                            "source" => *way, "cmd" => event::label(cmd))
                        .increment(*rows);
                    }
                    errors(OVERTAKEN).increment(u64::try_from(out.overtaken).unwrap_or(0));
                    for (id, why) in out.failed {
                        errors(reason(&why)).increment(1);
                        // Tried again each time that settings change, mostly for the same end.
                        if said.get(&id) != Some(&why) {
                            tracing::warn!("event={id} cannot be expanded: {why}");
                            if said.len() >= SAID_MAX {
                                said.clear();
                            }
                            said.insert(id, why);
                        }
                    }
                    if out.overtaken > 0 {
                        tracing::warn!(
                            "{} events were overtaken before they could be expanded: dead",
                            out.overtaken
                        );
                    }
                    let moved = out.moved.len();
                    self.level.add(moved);
                    if moved > 0 {
                        metrics::counter!("nas_event_daemon_events_expanded_total")
                            .increment(u64::try_from(moved).unwrap_or(0));
                        let (go, seen) = self.watch.before(out.moved).await;
                        if self.moved.send(go).await.is_err() {
                            return;
                        }
                        self.watch.after(&seen).await;
                    }
                    match (out.full, limited) {
                        (true, _) => Duration::ZERO,
                        (false, true) => self.poll.max(level::LOOK),
                        (false, false) => self.poll,
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        "expansion stopped, again in {wait:?}: {}",
                        crate::store::chain(&error)
                    );
                    let pause = wait;
                    wait = (wait * 2).min(RETRY_LAST);
                    pause
                }
            };
            if pause.is_zero() {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_label() {
        let bad = Cmd::parse("Bad!").unwrap_err();
        for (why, label) in [
            (bad.as_str(), CMD),
            ("unknown cmd user_frobnicate: it is neither in", CMD),
            ("user_id 7 has no row in event_params", ACCOUNT),
            (
                "user_id 7 has no row for usluga_id 5 in event_usluga",
                ACCOUNT,
            ),
            ("nas_ip 10.0.0.2 belongs to several NASes", NAS),
            ("nas_id 77 is not in table nas", NAS),
            ("the account has no NAS, and the event names neither", NAS),
            ("params is not a JSON object: x", PARAMS),
            ("params: \"LD_PRELOAD\" is no variable name", PARAMS),
            ("expand one row: division by zero", OTHER),
        ] {
            assert_eq!(reason(why), label, "{why}");
        }
    }
}
