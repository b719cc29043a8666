//! Sessions that belong to one attempt at a time, as those of telnet and of ssh shells do: at
//! most so many at once, first come first served, kept for the next one for a while, few
//! logins per minute. What a session is, and how one is opened, is the driver's business.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::attempt::Failure;
use crate::clock;
use crate::driver::Counted;
use crate::driver::rate::Bucket;
use crate::driver::waits::Waits;

/// Between two looks for sessions that nobody has used for long.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Bounds of one NAS.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Sessions at once, at least 1.
    pub sessions: usize,
    /// Logins per minute; as many sessions as there are may open at once after a pause.
    pub logins_per_minute: f64,
    /// A session that nobody uses is closed after this time.
    pub linger: Duration,
}

/// Numbers for status pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Seen {
    /// Sessions that are logged in and wait for work.
    pub idle: usize,
    /// Places taken: sessions in use or being opened.
    pub leased: usize,
    /// Attempts that wait for a place.
    pub waiting: usize,
    /// Logins since the start.
    pub logins: u64,
    /// Why the last session could not be opened, if none was opened since.
    pub last_error: Option<String>,
}

/// The sessions of one NAS. Dropping it closes the idle ones; leased ones end with their lease.
#[derive(Debug)]
pub struct Leases<S> {
    shared: Arc<Shared<S>>,
    /// The one task that closes what is idle for long.
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Shared<S> {
    rules: Rules,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    state: Mutex<State<S>>,
}

#[derive(Debug)]
struct State<S> {
    idle: Vec<Idle<S>>,
    logins: Bucket,
    opened: u64,
    failures: u64,
    last: Option<Failure>,
    /// The task that closes idle sessions runs.
    watched: bool,
}

#[derive(Debug)]
struct Idle<S> {
    session: S,
    since: u64,
}

/// A place among the sessions, and the session in it, if one was waiting. Dropped without
/// [`Turn::keep`], its session is closed.
#[derive(Debug)]
pub struct Turn<S> {
    shared: Arc<Shared<S>>,
    _place: OwnedSemaphorePermit,
    /// Failed openings when the wait began.
    failures: u64,
}

impl<S: Send + 'static> Leases<S> {
    /// Nothing is opened before the first turn.
    pub fn new(rules: Rules) -> Self {
        let sessions = rules.sessions.clamp(1, Semaphore::MAX_PERMITS);
        let burst = f64::from(u32::try_from(sessions).unwrap_or(u32::MAX));
        let logins = Bucket::new(rules.logins_per_minute / 60.0, burst, clock::tick_ms());
        Self {
            shared: Arc::new(Shared {
                places: Arc::new(Semaphore::new(sessions)),
                waiting: AtomicUsize::new(0),
                state: Mutex::new(State {
                    idle: Vec::new(),
                    logins,
                    opened: 0,
                    failures: 0,
                    last: None,
                    watched: false,
                }),
                rules,
            }),
            tasks: Mutex::default(),
        }
    }

    /// Waits for a place; those who came earlier go first.
    pub async fn turn(&self, waits: &Waits) -> Result<Turn<S>, Failure> {
        let failures = self.shared.state().failures;
        let place = {
            let _counted = Counted::new(&self.shared.waiting);
            let place = Arc::clone(&self.shared.places).acquire_owned();
            waits.during(place).await
        };
        let Some((Ok(place), _)) = place else {
            return Err(Failure::transport(format!(
                "no session became free within {} ms: all {} (nas.max_sessions) are in use",
                waits.most().as_millis(),
                self.shared.rules.sessions
            )));
        };
        Ok(Turn {
            shared: Arc::clone(&self.shared),
            _place: place,
            failures,
        })
    }

    /// Gives a session back for the next turn, and frees the place.
    pub fn keep(&self, turn: Turn<S>, session: S) {
        let watch = {
            let mut state = self.shared.state();
            let since = clock::tick_ms();
            state.idle.push(Idle { session, since });
            !std::mem::replace(&mut state.watched, true)
        };
        drop(turn);
        if watch {
            let shared = Arc::clone(&self.shared);
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move { shared.close_idle().await });
        }
    }

    /// Numbers of this moment.
    pub fn seen(&self) -> Seen {
        let state = self.shared.state();
        Seen {
            idle: state.idle.len(),
            leased: self
                .shared
                .rules
                .sessions
                .saturating_sub(self.shared.places.available_permits()),
            waiting: self.shared.waiting.load(Ordering::Relaxed),
            logins: state.opened,
            last_error: state.last.as_ref().map(ToString::to_string),
        }
    }
}

impl<S> Turn<S> {
    /// The session that was used last, with the ms since then.
    pub fn take_idle(&mut self) -> Option<(S, u64)> {
        let Idle { session, since } = self.shared.state().idle.pop()?;
        Some((session, clock::tick_ms().saturating_sub(since)))
    }

    /// Somebody tried to open a session while this turn was waited for, and could not: to try
    /// again at once would only ask the same question once more.
    pub fn failed_meanwhile(&self) -> Option<Failure> {
        let state = self.shared.state();
        let since = state.failures > self.failures;
        since.then(|| state.last.clone()).flatten()
    }

    /// Takes one of the logins per minute; ms to wait before it.
    pub fn login_wait_ms(&self, now_ms: u64) -> u64 {
        self.shared.state().logins.take(now_ms)
    }

    /// A session has been opened.
    pub fn opened(&self) {
        let mut state = self.shared.state();
        state.opened += 1;
        state.last = None;
    }

    /// None could be opened.
    pub fn failed(&self, failure: &Failure) {
        let mut state = self.shared.state();
        state.failures += 1;
        state.last = Some(failure.clone());
    }
}

impl<S> Shared<S> {
    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn close_idle(&self) {
        let linger = u64::try_from(self.rules.linger.as_millis()).unwrap_or(u64::MAX);
        let look = (self.rules.linger / 4).clamp(Duration::from_millis(10), LOOK_MAX);
        loop {
            tokio::time::sleep(look).await;
            let now = clock::tick_ms();
            let mut state = self.state();
            let old = |idle: &mut Idle<S>| now.saturating_sub(idle.since) >= linger;
            let closed: Vec<_> = state.idle.extract_if(.., old).collect();
            let done = state.idle.is_empty();
            if done {
                state.watched = false;
            }
            drop(state);
            drop(closed);
            if done {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn leases(sessions: usize, linger: Duration) -> Leases<u32> {
        Leases::new(Rules {
            sessions,
            logins_per_minute: 60.0,
            linger,
        })
    }

    #[tokio::test]
    async fn one_place_serves_all_in_turn_with_one_login() {
        let leases = Arc::new(leases(1, LONG));
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = leases.turn(&Waits::up_to(LONG)).await.unwrap();
        let mut tasks = JoinSet::new();
        for n in 0..50_usize {
            let (own, order) = (Arc::clone(&leases), Arc::clone(&order));
            tasks.spawn(async move {
                let mut turn = own.turn(&Waits::up_to(LONG)).await.unwrap();
                let (session, _) = turn.take_idle().unwrap();
                order.lock().unwrap().push(n);
                tokio::task::yield_now().await;
                own.keep(turn, session);
            });
            while leases.seen().waiting <= n {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(first.login_wait_ms(clock::tick_ms()), 0);
        first.opened();
        leases.keep(first, 7);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert!(order.lock().unwrap().is_sorted());
        let seen = leases.seen();
        assert_eq!(
            (seen.idle, seen.leased, seen.waiting, seen.logins),
            (1, 0, 0, 1)
        );
    }

    #[tokio::test]
    async fn waits_are_bounded_and_a_dropped_turn_frees_its_place() {
        let leases = leases(1, LONG);
        let turn = leases.turn(&Waits::up_to(LONG)).await.unwrap();
        let refused = leases
            .turn(&Waits::up_to(Duration::from_millis(20)))
            .await
            .unwrap_err();
        assert!(refused.text.contains("nas.max_sessions"), "{refused}");
        drop(turn);
        let turn = leases.turn(&Waits::up_to(LONG)).await.unwrap();
        assert_eq!(leases.seen().leased, 1);
        assert!(turn.failed_meanwhile().is_none());
        turn.failed(&Failure::transport("down"));
        assert!(leases.seen().last_error.is_some());
        assert!(turn.failed_meanwhile().is_some());
        turn.opened();
        assert!(leases.seen().last_error.is_none());
    }

    #[tokio::test]
    async fn idle_sessions_are_closed_after_their_time() {
        let leases = leases(2, Duration::from_millis(50));
        for session in [1, 2] {
            let turn = leases.turn(&Waits::up_to(LONG)).await.unwrap();
            leases.keep(turn, session);
        }
        assert_eq!(leases.seen().idle, 2);
        let closed = async {
            while leases.seen().idle > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, closed).await.unwrap();
        // The watcher starts again for the next one.
        let turn = leases.turn(&Waits::up_to(LONG)).await.unwrap();
        leases.keep(turn, 3);
        let closed = async {
            while leases.seen().idle > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, closed).await.unwrap();
    }

    #[tokio::test]
    async fn logins_are_few() {
        let leases = leases(2, LONG);
        let turn = leases.turn(&Waits::up_to(LONG)).await.unwrap();
        let waits: Vec<u64> = (0..4).map(|_| turn.login_wait_ms(1_000_000_000)).collect();
        assert_eq!(waits, [0, 0, 1_000, 2_000]);
    }
}
