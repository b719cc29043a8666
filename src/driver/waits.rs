//! What an attempt spends waiting for its turn on the NAS: for a session, for the next login, for
//! the commands per second. It does not count against the attempt's deadline, and has a bound
//! of its own.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock;

/// The waits of one attempt. Several of its commands may wait at once: time counts once.
#[derive(Debug)]
pub struct Waits {
    most: Duration,
    state: Mutex<State>,
    waiting: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// Commands that wait now.
    now: usize,
    /// Tick since which at least one does.
    since_ms: u64,
    /// Of the waits that are over, ms.
    past_ms: u64,
}

/// One wait; it ends when this is dropped, also because its caller gave up.
struct Wait<'a>(&'a Waits);

impl<'a> Wait<'a> {
    fn begin(waits: &'a Waits) -> Self {
        let mut state = waits.state();
        if state.now == 0 {
            state.since_ms = clock::tick_ms();
            waits.waiting.send_replace(true);
        }
        state.now += 1;
        drop(state);
        Self(waits)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.now -= 1;
        if state.now == 0 {
            let waited = clock::tick_ms().saturating_sub(state.since_ms);
            state.past_ms = state.past_ms.saturating_add(waited);
            self.0.waiting.send_replace(false);
        }
    }
}

impl Waits {
    /// At most `most` in all.
    pub fn up_to(most: Duration) -> Self {
        Self {
            most,
            state: Mutex::default(),
            waiting: watch::Sender::new(false),
        }
    }

    /// Waited so far, the wait that goes on now included.
    pub fn total(&self) -> Duration {
        let state = self.state();
        let current = if state.now > 0 {
            clock::tick_ms().saturating_sub(state.since_ms)
        } else {
            0
        };
        Duration::from_millis(state.past_ms.saturating_add(current))
    }

    /// How long it may still wait.
    pub fn left(&self) -> Duration {
        self.most.saturating_sub(self.total())
    }

    /// The bound.
    pub fn most(&self) -> Duration {
        self.most
    }

    /// What is waited for, and how long it took; none if it did not come in time. What is there
    /// at once was not waited for.
    pub async fn during<F: Future>(&self, awaited: F) -> Option<(F::Output, Duration)> {
        let mut awaited = pin!(awaited);
        if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(awaited.as_mut().poll(cx))).await {
            return Some((output, Duration::ZERO));
        }
        let left = self.left();
        let began = clock::tick_ms();
        let _wait = Wait::begin(self);
        let output = timeout(left, awaited).await.ok()?;
        let waited = clock::tick_ms().saturating_sub(began);
        Some((output, Duration::from_millis(waited)))
    }

    /// Whether it waits: changes as it begins and ends.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.waiting.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work that may take so long, whose waits do not count.
#[derive(Debug)]
pub struct Stint<'a> {
    waits: &'a Waits,
    limit: Duration,
    began_ms: u64,
    /// What had been waited before it began.
    before: Duration,
}

impl<'a> Stint<'a> {
    /// Begins now.
    pub fn begin(waits: &'a Waits, limit: Duration) -> Self {
        Self {
            waits,
            limit,
            began_ms: clock::tick_ms(),
            before: waits.total(),
        }
    }

    /// How long it may still take.
    pub fn left(&self) -> Duration {
        let gone = Duration::from_millis(clock::tick_ms().saturating_sub(self.began_ms));
        let waited = self.waits.total().saturating_sub(self.before);
        self.limit.saturating_sub(gone.saturating_sub(waited))
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn waits_add_up_to_their_bound() {
        let waits = Waits::up_to(Duration::from_millis(60));
        assert_eq!(waits.during(ready(7)).await.map(|(n, _)| n), Some(7));
        let (_, waited) = waits.during(tokio::time::sleep(MOMENT)).await.unwrap();
        assert!(waited >= MOMENT && waits.total() >= MOMENT);
        assert!(waits.during(pending::<()>()).await.is_none());
        assert!(waits.left().is_zero(), "{waits:?}");
        // What is there already needs no wait.
        assert!(waits.during(ready(())).await.is_some());
        assert!(waits.during(pending::<()>()).await.is_none());
    }

    #[tokio::test]
    async fn waits_are_no_part_of_a_stint() {
        let waits = Waits::up_to(Duration::from_secs(30));
        waits.during(tokio::time::sleep(MOMENT)).await.unwrap();
        let began = clock::tick_ms();
        let stint = Stint::begin(&waits, MOMENT);
        let (_, waited) = waits.during(tokio::time::sleep(2 * MOMENT)).await.unwrap();
        let worked = Duration::from_millis(clock::tick_ms() - began).saturating_sub(waited);
        assert!(stint.left() + worked + Duration::from_millis(1) >= MOMENT);
        tokio::time::sleep(MOMENT).await;
        assert!(stint.left().is_zero());
    }

    #[tokio::test]
    async fn two_at_once_count_once_and_are_told() {
        let waits = Waits::up_to(Duration::from_secs(30));
        let mut watch = waits.watch();
        let both = async {
            tokio::join!(
                waits.during(tokio::time::sleep(MOMENT)),
                waits.during(tokio::time::sleep(2 * MOMENT))
            )
        };
        let began = clock::tick_ms();
        tokio::select! {
            _ = both => panic!("it does not wait"),
            changed = watch.changed() => changed.unwrap(),
        }
        // Given up: the wait is over.
        let gone = Duration::from_millis(clock::tick_ms() - began);
        assert!(waits.total() <= gone);
        assert!(!*watch.borrow_and_update());
        let both = async {
            tokio::join!(
                waits.during(tokio::time::sleep(MOMENT)),
                waits.during(tokio::time::sleep(2 * MOMENT))
            )
        };
        let before = waits.total();
        let (one, other) = both.await;
        let sum = one.unwrap().1 + other.unwrap().1;
        let counted = waits.total() - before;
        assert!(
            counted >= 2 * MOMENT && counted < sum,
            "{counted:?} {sum:?}"
        );
    }
}
