//! The one connection of a NAS: opened when it is needed, kept while it is used and a while
//! longer, and not opened again at once after a failure. Everybody who waits for it shares the
//! outcome of the one try.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use russh::client::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::attempt::Failure;
use crate::clock;
use crate::driver::ssh::login::{self, Cord, Refusal};
use crate::driver::ssh::trust::Trust;
use crate::driver::ssh::watch::{Watch, Watched};
use crate::driver::ssh::window::Window;
use crate::driver::ssh::{Learn, Limits, Report, Target};
use crate::driver::timed;

/// Waits before the second, third and fourth try of a login that was refused.
const LOGIN_PAUSES_MS: [u64; 3] = [100, 500, 2_000];
/// The first back-off after a connection that could not be opened, ms; it doubles.
const BACK_OFF_MS: u64 = 50;
/// The longest, ms. Below the first step of the breaker, which owns the longer waits.
const BACK_OFF_MAX_MS: u64 = 400;
/// Logins are counted over this time, ms.
const MINUTE_MS: u64 = 60_000;
/// For saying goodbye; the socket is closed anyway.
const GOODBYE: Duration = Duration::from_secs(1);

/// Shared by the callers and the tasks of the connections.
pub(super) struct Pool {
    target: Target,
    limits: Limits,
    learn: Learn,
    trust: Arc<Mutex<Trust>>,
    state: Mutex<State>,
    changed: Arc<Notify>,
    pub(super) window: Window,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Connection>>,
    open: usize,
    opening: bool,
    /// Tries that failed for good, so that a waiter sees that one failed since it came.
    failures: u64,
    last: Option<Failure>,
    /// Failed logins of the try that goes on now.
    trouble: Option<Failure>,
    streak: u32,
    again_at: u64,
    /// Times of the logins of the last minute.
    recent: VecDeque<u64>,
    logins: u64,
    last_error: String,
}

impl State {
    /// Ms until the bound on logins in a minute allows the next one.
    fn login_wait(&mut self, now: u64, per_minute: usize) -> u64 {
        while self.recent.front().is_some_and(|t| t + MINUTE_MS <= now) {
            self.recent.pop_front();
        }
        let full = self.recent.len() >= per_minute.max(1);
        let oldest = self.recent.front().filter(|_| full);
        oldest.map_or(0, |t| (t + MINUTE_MS).saturating_sub(now))
    }
}

/// A connection that is logged in.
pub(super) struct Connection {
    pub(super) handle: Handle<Watch>,
    watched: Arc<Watched>,
    in_use: AtomicUsize,
    idle_since: AtomicU64,
    retired: AtomicBool,
    changed: Arc<Notify>,
    _cord: Cord,
}

/// A connection in use; it is not closed for idleness meanwhile.
pub(super) struct Used(Arc<Connection>);

impl Connection {
    /// Marks it as used until the result is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Used {
        self.in_use.fetch_add(1, Ordering::AcqRel);
        Used(Arc::clone(self))
    }

    /// Gets no new commands, and is closed when its last one has ended.
    pub(super) fn retire(&self, why: &str) {
        if !self.retired.swap(true, Ordering::AcqRel) {
            tracing::debug!("ssh connection retired: {why}");
        }
        self.changed.notify_waiters();
    }

    /// Why it ended, if it has.
    pub(super) fn why_ended(&self) -> String {
        self.watched.why()
    }

    fn is_usable(&self) -> bool {
        !self.is_closed() && !self.retired.load(Ordering::Acquire)
    }

    fn is_closed(&self) -> bool {
        self.watched.has_ended() || self.handle.is_closed()
    }
}

impl std::ops::Deref for Used {
    type Target = Arc<Connection>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.0.idle_since.store(clock::tick_ms(), Ordering::Relaxed);
        if self.0.in_use.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl Pool {
    pub(super) fn new(target: Target, limits: Limits, learn: Learn) -> Self {
        let window = Window::new(limits.channels);
        Self {
            trust: Arc::new(Mutex::new(target.trust.clone())),
            target,
            limits,
            learn,
            state: Mutex::default(),
            changed: Arc::new(Notify::new()),
            window,
        }
    }

    /// The connection, and whether it was opened for this caller.
    pub(super) async fn connection(
        self: &Arc<Self>,
        tasks: &Mutex<JoinSet<()>>,
    ) -> Result<(Arc<Connection>, bool), Failure> {
        let mut opened = false;
        let failures = self.state().failures;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if let Some(connection) = &state.current {
                    if connection.is_usable() {
                        return Ok((Arc::clone(connection), opened));
                    }
                    state.current = None;
                }
                if state.failures != failures {
                    return Err(state.last.clone().unwrap_or_else(|| {
                        login::lost(&self.target, "the connection could not be opened")
                    }));
                }
                if !state.opening {
                    state.opening = true;
                    state.trouble = None;
                    opened = true;
                    let pool = Arc::clone(self);
                    let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
                    while tasks.try_join_next().is_some() {}
                    tasks.spawn(pool.open());
                }
            }
            changed.await;
        }
    }

    /// Waits for as long as the bound on logins keeps the next one back.
    pub(super) async fn login_turn(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wait = {
                let mut state = self.state();
                if state.current.as_ref().is_some_and(|c| c.is_usable()) {
                    return;
                }
                state.login_wait(clock::tick_ms(), self.limits.logins_per_minute)
            };
            if wait == 0 {
                return;
            }
            let _ = timeout(Duration::from_millis(wait), changed).await;
        }
    }

    /// What kept a caller waiting until its deadline: nothing was sent for it.
    pub(super) fn waited_in_vain(&self, limit: Duration) -> Failure {
        let state = self.state();
        if let Some(trouble) = &state.trouble {
            // Not all tries of this login have been made: too early to park the NAS.
            return Failure {
                parks: false,
                ..trouble.clone()
            };
        }
        let why = if state.opening {
            "no connection"
        } else {
            "no free session"
        };
        login::lost(
            &self.target,
            &format!("{why} within {} ms", limit.as_millis()),
        )
    }

    /// Which keys are believed now: a learned one is.
    pub(super) fn trust(&self) -> Trust {
        let trust = self.trust.lock();
        trust.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A failure of the connection.
    pub(super) fn lost(&self, why: &str) -> Failure {
        login::lost(&self.target, why)
    }

    pub(super) fn report(&self) -> Report {
        let state = self.state();
        Report {
            open: state.open,
            leased: self.window.leased(),
            waiting: self.window.waiting(),
            window: self.window.size(),
            logins: state.logins,
            last_error: state.last_error.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a connection, then keeps it until it ends: the task of one connection.
    async fn open(self: Arc<Self>) {
        let mut pauses = LOGIN_PAUSES_MS.into_iter();
        loop {
            self.may_log_in().await;
            let watched = Watched::new(Arc::clone(&self.changed));
            let opening = login::open(
                &self.target,
                &self.limits,
                &self.trust,
                &watched,
                &self.learn,
            );
            match timed("ssh", opening).await {
                Ok(link) => {
                    let connection = Arc::new(Connection {
                        handle: link.handle,
                        watched,
                        in_use: AtomicUsize::new(0),
                        idle_since: AtomicU64::new(clock::tick_ms()),
                        retired: AtomicBool::new(false),
                        changed: Arc::clone(&self.changed),
                        _cord: link.cord,
                    });
                    {
                        let mut state = self.state();
                        state.current = Some(Arc::clone(&connection));
                        state.opening = false;
                        state.open += 1;
                        state.trouble = None;
                        state.streak = 0;
                    }
                    self.changed.notify_waiters();
                    self.keep(&connection).await;
                    return;
                }
                Err(Refusal::Unreachable(failure) | Refusal::Final(failure)) => {
                    return self.failed(failure);
                }
                Err(Refusal::Login(failure)) => {
                    let Some(pause) = pauses.next() else {
                        return self.failed(failure);
                    };
                    self.state().trouble = Some(failure);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            }
        }
    }

    /// Waits out the back-off and the bound on logins, and counts this one.
    async fn may_log_in(&self) {
        loop {
            let wait = {
                let mut state = self.state();
                let now = clock::tick_ms();
                let bound = now + state.login_wait(now, self.limits.logins_per_minute);
                let from = bound.max(state.again_at);
                if from <= now {
                    state.recent.push_back(now);
                    state.logins += 1;
                    return;
                }
                from - now
            };
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    /// Until it is closed by the server, idle for too long, or retired and unused.
    async fn keep(&self, connection: &Arc<Connection>) {
        let linger = u64::try_from(self.limits.linger.as_millis()).unwrap_or(u64::MAX);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if connection.is_closed() {
                self.state().last_error = connection.why_ended();
                break;
            }
            let unused = connection.in_use.load(Ordering::Acquire) == 0;
            let idle =
                clock::tick_ms().saturating_sub(connection.idle_since.load(Ordering::Relaxed));
            let retired = connection.retired.load(Ordering::Acquire);
            if unused && (retired || idle >= linger) {
                connection.retire("idle");
                let _ = timeout(GOODBYE, self.take_leave(connection)).await;
                break;
            }
            let look = linger.saturating_sub(idle).clamp(10, MINUTE_MS);
            let _ = timeout(Duration::from_millis(look), changed).await;
        }
        let mut state = self.state();
        state.open -= 1;
        if state
            .current
            .as_ref()
            .is_some_and(|c| Arc::ptr_eq(c, connection))
        {
            state.current = None;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Says goodbye, and waits until it has been said: what is queued only is lost when the
    /// socket is shut down.
    async fn take_leave(&self, connection: &Connection) {
        let reason = russh::Disconnect::ByApplication;
        let queued = connection.handle.disconnect(reason, "", "en").await;
        while queued.is_ok() {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if connection.is_closed() {
                return;
            }
            changed.await;
        }
    }

    fn failed(&self, failure: Failure) {
        let mut state = self.state();
        state.opening = false;
        state.trouble = None;
        state.failures += 1;
        state.last_error.clone_from(&failure.text);
        state.last = Some(failure);
        let wait = BACK_OFF_MS
            .saturating_mul(1 << state.streak.min(10))
            .min(BACK_OFF_MAX_MS);
        state.streak = state.streak.saturating_add(1);
        state.again_at = clock::tick_ms().saturating_add(wait);
        drop(state);
        self.changed.notify_waiters();
    }
}
