//! The connections of one NAS: few, opened when needed, one at a time, and not again at once
//! after a failure. Everybody who waits for a connection shares the outcome of the one try.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::attempt::Failure;
use crate::clock;
use crate::driver::mikrotik::login::{self, Refusal};
use crate::driver::mikrotik::session::{Session, Slot};
use crate::driver::mikrotik::stream::{Stream, Tls};
use crate::driver::mikrotik::{Limits, Report, Target};
use crate::driver::rate::Bucket;
use crate::driver::{Counted, timed};

/// Commands in flight that are few: RouterOS works on one connection's commands side by side,
/// so another login pays only beyond this.
const FEW: usize = 4;
/// Waits before the second, third and fourth try of a login that was refused.
const LOGIN_PAUSES_MS: [u64; 3] = [100, 500, 2_000];
/// Back-off after a connection that could not be opened: doubles up to this, ms. Below the
/// first step of the breaker, which owns the longer waits.
const BACK_OFF_MAX_MS: u64 = 400;
/// The first step of that back-off, ms.
const BACK_OFF_MS: u64 = 50;
/// After a further connection was refused, the pool stays as it is for this time, ms.
const GROW_PAUSE_MS: u64 = 30_000;

/// Shared by the callers and the tasks of the connections.
pub(crate) struct Pool {
    target: Target,
    limits: Limits,
    tls: Option<Tls>,
    state: Mutex<State>,
    logins: Mutex<Bucket>,
    waiting: AtomicUsize,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    sessions: Vec<Arc<Session>>,
    opening: bool,
    /// Connections opened so far.
    opened: u64,
    /// Connections ended so far.
    ended: u64,
    /// Tries that failed for good, so that a waiter sees that one failed since it came.
    failures: u64,
    last: Option<Failure>,
    /// Failed logins of the try that goes on now.
    trouble: Option<Failure>,
    streak: u32,
    again_at: u64,
    grow_at: u64,
    /// Tick at which the bound on logins lets the one go that is under way.
    login_at: u64,
}

impl Pool {
    pub(crate) fn new(target: Target, limits: Limits, tls: Option<Tls>) -> Self {
        let many = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        let logins = Bucket::new(
            many(limits.logins_per_minute.max(1)) / 60.0,
            many(limits.connections),
            clock::tick_ms(),
        );
        Self {
            target,
            limits,
            tls,
            state: Mutex::default(),
            logins: Mutex::new(logins),
            waiting: AtomicUsize::new(0),
            changed: Arc::new(Notify::new()),
        }
    }

    /// A place on a connection, and whether a connection was opened for it. Waits for as long
    /// as one is being opened or all are full.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        tasks: &Mutex<JoinSet<()>>,
    ) -> Result<(Slot, bool), Failure> {
        let mut opened = false;
        let failures = self.state().failures;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                state.sessions.retain(|s| !s.is_closed());
                let best = state
                    .sessions
                    .iter()
                    .filter_map(|s| s.load().map(|load| (load, Arc::clone(s))))
                    .min_by_key(|(load, _)| *load);
                let now = clock::tick_ms();
                let none = state.sessions.is_empty();
                let wanted = best.as_ref().is_none_or(|(load, _)| *load > FEW);
                let from = if none { state.again_at } else { state.grow_at };
                if wanted
                    && !state.opening
                    && state.sessions.len() < self.limits.connections
                    && now >= from
                    && (!none || state.failures == failures)
                {
                    state.opening = true;
                    state.trouble = None;
                    opened |= none;
                    self.open_in(tasks);
                }
                if let Some(slot) = best.and_then(|(_, session)| session.reserve()) {
                    return Ok((slot, opened));
                }
                if none && !state.opening {
                    return Err(state.last.clone().unwrap_or_else(|| {
                        Failure::transport("the connection closed while it was waited for")
                    }));
                }
            }
            let _counted = Counted::new(&self.waiting);
            changed.await;
        }
    }

    /// What kept a caller waiting until its deadline.
    pub(crate) fn waited_in_vain(&self, limit: Duration) -> Failure {
        let state = self.state();
        if let Some(trouble) = &state.trouble {
            // Not all tries of this login have been made: too early to park the NAS.
            return Failure {
                parks: false,
                ..trouble.clone()
            };
        }
        let Target { host, port, .. } = &self.target;
        let why = if state.sessions.is_empty() {
            "no connection"
        } else {
            "no free place on its connections"
        };
        let ms = limit.as_millis();
        let mut text = format!("RouterOS API at {host}:{port}: {why} within {ms} ms");
        let held = state.login_at.saturating_sub(clock::tick_ms());
        if held > 0 {
            text.push_str(&format!(
                "; the next login may go in {held} ms (logins_per_minute in nas.vars is {})",
                self.limits.logins_per_minute
            ));
        }
        Failure::transport(text)
    }

    /// Connections opened so far.
    pub(crate) fn opened(&self) -> u64 {
        self.state().opened
    }

    /// Connections ended so far.
    pub(crate) fn ended(&self) -> u64 {
        self.state().ended
    }

    /// Why the last connection could not be opened, if none was opened since.
    pub(crate) fn last_error(&self) -> Option<String> {
        let state = self.state();
        let last = state.last.as_ref().filter(|_| state.streak > 0);
        last.map(ToString::to_string)
    }

    pub(crate) fn report(&self) -> Report {
        let state = self.state();
        Report {
            connections: state.sessions.iter().filter(|s| !s.is_closed()).count(),
            in_flight: state.sessions.iter().map(|s| s.in_flight()).sum(),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_in(self: &Arc<Self>, tasks: &Mutex<JoinSet<()>>) {
        let pool = Arc::clone(self);
        let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move { pool.open().await });
    }

    async fn open(self: Arc<Self>) {
        let mut pauses = LOGIN_PAUSES_MS.into_iter();
        loop {
            self.login_turn().await;
            let opening = login::open(&self.target, &self.limits, self.tls.as_ref());
            match timed("mikrotik", opening).await {
                Ok((stream, decoder)) => {
                    let (session, mailbox) = Session::new(Arc::clone(&self.changed));
                    {
                        let mut state = self.state();
                        state.sessions.push(Arc::clone(&session));
                        state.opening = false;
                        state.opened += 1;
                        state.trouble = None;
                        state.streak = 0;
                    }
                    self.changed.notify_waiters();
                    let linger = self.limits.linger;
                    match stream {
                        Stream::Plain(stream) => {
                            let (reader, writer) = stream.into_split();
                            session.run(reader, writer, decoder, mailbox, linger).await;
                        }
                        Stream::Tls(stream) => {
                            let (reader, writer) = tokio::io::split(*stream);
                            session.run(reader, writer, decoder, mailbox, linger).await;
                        }
                    }
                    {
                        let mut state = self.state();
                        state.sessions.retain(|s| !Arc::ptr_eq(s, &session));
                        state.ended += 1;
                    }
                    self.changed.notify_waiters();
                    return;
                }
                Err(Refusal::Unreachable(failure)) => return self.failed(failure),
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

    /// Waits until the bound on logins lets the next one go.
    async fn login_turn(&self) {
        let now = clock::tick_ms();
        let wait = {
            let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
            logins.take(now)
        };
        if wait > 0 {
            self.state().login_at = now.saturating_add(wait);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    fn failed(&self, failure: Failure) {
        let mut state = self.state();
        let now = clock::tick_ms();
        state.opening = false;
        state.trouble = None;
        state.failures += 1;
        state.last = Some(failure);
        let wait = BACK_OFF_MS
            .saturating_mul(1 << state.streak.min(10))
            .min(BACK_OFF_MAX_MS);
        state.streak = state.streak.saturating_add(1);
        state.again_at = now.saturating_add(wait);
        state.grow_at = now.saturating_add(GROW_PAUSE_MS);
        drop(state);
        self.changed.notify_waiters();
    }
}
