//! Stops work for a NAS that cannot obey, and finds out cheaply when it can again. Pure: `now`
//! is the monotonic clock in ms, randomness is an argument.
//!
//! - *Closed*: events run.
//! - *Open*: the NAS as a whole failed. One probe event per step; the steps are 1, 2, 4 … 60 s
//!   (± 20 %, and at 60 s never shorter). A probe that fails costs its event nothing
//!   ([`Breaker::is_free`]).
//! - *Half-open*: the probe is running.
//! - *Parked*: only a human can help (login refused for good, or everybody gets the same
//!   permanent answer). Probed every 5 min, and at once when the settings change.
//!
//! What an attempt that was under way when it opened says against the NAS costs its event nothing,
//! either. The permanent answers before it parked are kept open ([`Breaker::doubt`]).
//!
//! Hysteresis. A success lets all events run at once, but the outage is only over after
//! [`HEALTH_MS`] without a failure. Until then a new failure goes on with the next longer
//! step, and the operator is told nothing new: a link that flaps all day gives one alarm, one
//! all-clear, and soon at most one probe a minute. The all-clear therefore comes
//! [`HEALTH_MS`] after the last recovery, from [`Breaker::tick`] or [`Breaker::ended`].
//!
//! Every attempt carries the [`Ticket`] that `started` gave it. The breaker counts eras: a new
//! one begins when it closes and when the settings change. What an attempt of an older era
//! reports is stale: its failure changes nothing, its success still proves that the NAS lives.
//! The same holds, while it is open, for every attempt but the probe.

use std::collections::{BTreeSet, VecDeque};

use super::doubt::{Doubt, Doubts};
use crate::attempt::{FailureClass, Report, Scope, Verdict};
use crate::dispatch::settle;
use crate::event::{EventId, UserId};
use crate::scheme::ExitPolicy;

/// First step between probes, ms.
pub const STEP_FIRST_MS: u64 = 1_000;
/// Longest step, ms: a NAS that came back is noticed within about a minute.
pub const STEP_LAST_MS: u64 = 60_000;
/// Step while parked, ms: each probe of a refused login may be counted by the NAS.
pub const PARKED_STEP_MS: u64 = 300_000;
/// Health that ends an outage, ms.
pub const HEALTH_MS: u64 = 300_000;

/// Times in one outage that a NAS which can be reached again is probed at once.
const REACHED_MAX: u32 = 5;
/// Attempts that are looked back at.
const SILENT_ATTEMPTS: usize = 5;
/// Accounts among them: one bad account must not stop a NAS.
const SILENT_ACCOUNTS: usize = 3;
/// Equal permanent answers that park a NAS.
const EQUAL_ANSWERS: usize = 20;
/// Accounts among them.
const EQUAL_ACCOUNTS: usize = 10;
/// Different permanent answers counted at once; the rarest is forgotten for a new one.
const ANSWERS_MAX: usize = 8;

/// Whether an event may start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Any number of events.
    Free,
    /// Exactly one, as a probe: `started(true)`.
    Probe,
    /// None before this time; `u64::MAX` = none before the running probe has ended.
    Wait {
        /// Monotonic ms.
        until: u64,
    },
}

/// Given by [`Breaker::started`], given back to [`Breaker::ended`]: which era an attempt
/// belongs to, and whether it is the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    era: u64,
    start: u64,
    probe: Option<u64>,
}

impl Ticket {
    /// Whether the attempt was started as a probe.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

/// What an attempt says about the NAS, as opposed to its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// It obeyed.
    Success,
    /// The NAS as a whole failed.
    NasFailure {
        /// What happened.
        text: String,
        /// Login refused for good.
        parks: bool,
    },
    /// It answered that this will never work.
    Permanent {
        /// Its words; equal ones are counted together.
        text: String,
    },
    /// No answer came: a script ended 143 or 254, or by its time-out; a device was sent something
    /// and said nothing, or broke off. One proves little, many in a row that nobody is heard.
    Silence,
    /// It answered, or swallowed, one event in some other way.
    Other,
    /// Nobody spoke to the NAS: not implemented, only observed, or not started after all.
    Nothing,
}

impl Evidence {
    /// Reads a report.
    pub fn of(report: &Report, policy: &ExitPolicy) -> Self {
        match &report.verdict {
            Verdict::Done => Self::Success,
            Verdict::Observed | Verdict::NotImplemented => Self::Nothing,
            Verdict::Failed(failure) => match (failure.scope, failure.class) {
                (Scope::Nas, _) => Self::NasFailure {
                    text: failure.text.clone(),
                    parks: failure.parks,
                },
                (Scope::Event, FailureClass::Unknown | FailureClass::Transport) => Self::Silence,
                (Scope::Event, FailureClass::Permanent) => Self::Permanent {
                    text: failure.text.clone(),
                },
                (Scope::Event, FailureClass::Refused) => Self::Other,
            },
            Verdict::Exit(code) if settle::is_done(*code, policy) => Self::Success,
            Verdict::Exit(code) if settle::is_later(*code, policy) => Self::Silence,
            Verdict::Exit(_) => Self::Other,
        }
    }
}

/// What the operator must be told; an alarm and its all-clear come once per outage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Alarm: events wait, probes run.
    Opened {
        /// What the NAS, or the failed attempt, said.
        reason: String,
    },
    /// All-clear: [`HEALTH_MS`] without a failure.
    Closed,
    /// Alarm: a human is needed. May follow `Opened` within one outage.
    Parked {
        /// What the NAS said.
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Gate {
    #[default]
    Closed,
    Open,
    /// `by_answers`: not by its login but by equal permanent answers; then only a success
    /// proves that it is mended, another kind of answer does not.
    Parked {
        by_answers: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    Opened,
    Parked,
}

/// Equal permanent answers since the last success.
#[derive(Debug, Clone)]
struct Answers {
    text: String,
    count: usize,
    users: BTreeSet<Option<UserId>>,
}

/// The breaker of one NAS.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    gate: Gate,
    era: u64,
    /// Probes so far.
    pub(super) probes: u64,
    /// The probe that is running.
    probe: Option<u64>,
    /// The settings changed while it ran: the next one need not wait.
    poked: bool,
    step: u64,
    next: u64,
    /// What the operator was told and not yet cleared of.
    alarm: Option<Alarm>,
    /// How often it could be reached again in this outage.
    reached: u32,
    /// When it was closed, while the outage is not over.
    recovered: Option<u64>,
    reason: String,
    last: VecDeque<(Option<UserId>, bool)>,
    answers: Vec<Answers>,
    doubts: Doubts,
    /// Attempts that had started when an answer was last heard.
    heard: u64,
    /// The answer that was asked about last came to the same event before.
    repeated: bool,
}

impl Breaker {
    /// Closed: a NAS is trusted until it fails.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether an event may start.
    pub fn may_start(&self, now: u64) -> Start {
        match self.gate {
            Gate::Closed => Start::Free,
            Gate::Open | Gate::Parked { .. } if self.probe.is_some() => {
                Start::Wait { until: u64::MAX }
            }
            Gate::Open | Gate::Parked { .. } if now >= self.next => Start::Probe,
            Gate::Open | Gate::Parked { .. } => Start::Wait { until: self.next },
        }
    }

    /// Notes a start. Call it as soon as the event is picked, before the store is asked, and
    /// give every ticket back to `ended` (with [`Evidence::Nothing`] if the start failed).
    #[must_use]
    pub fn started(&mut self, probe: bool) -> Ticket {
        let number = (probe && self.gate != Gate::Closed).then(|| {
            self.probes += 1;
            self.probes
        });
        if number.is_some() {
            self.probe = number;
            self.poked = false;
        }
        Ticket {
            era: self.era,
            start: self.doubts.started(),
            probe: number,
        }
    }

    /// The ticket of an event that was picked a while ago and starts only now: what is learned
    /// from it counts from now on.
    #[must_use]
    pub fn renewed(&mut self, ticket: Ticket) -> Ticket {
        Ticket {
            era: self.era,
            start: self.doubts.started(),
            ..ticket
        }
    }

    /// Whether the attempt's failure is the NAS's, not the event's: the failed probe of an
    /// outage, or one that was under way when it began. Such an event goes back to ready and
    /// burns no try. Ask before `ended`.
    pub fn is_free(&self, evidence: &Evidence) -> bool {
        self.gate != Gate::Closed && self.is_against(evidence)
    }

    /// Whether a permanent answer may be the NAS's and not the event's: then the event waits.
    /// `alone_ms`: see [`super::doubt::alone`]. Ask before `ended`.
    pub fn doubt(
        &mut self,
        now: u64,
        event: EventId,
        user: Option<UserId>,
        evidence: &Evidence,
        alone_ms: u64,
    ) -> Doubt {
        let Evidence::Permanent { text } = evidence else {
            return Doubt::None;
        };
        let equal = self.answers.iter().filter(|a| a.text == *text);
        let shared = equal.flat_map(|a| &a.users).any(|other| *other != user);
        self.repeated = self.doubts.knows(event);
        self.doubts.judge(now, event, shared, alone_ms)
    }

    /// Takes in how an attempt ended. `user`: whose event it was; `jitter`: any random number,
    /// spread evenly over its whole range.
    pub fn ended(
        &mut self,
        now: u64,
        ticket: Ticket,
        user: Option<UserId>,
        evidence: Evidence,
        jitter: u32,
    ) -> Option<Change> {
        let is_probe = ticket.probe.is_some() && ticket.probe == self.probe;
        let stale = ticket.era != self.era && !is_probe;
        let repeated = std::mem::take(&mut self.repeated);
        match evidence {
            Evidence::Success | Evidence::Permanent { .. } | Evidence::Other => {
                self.heard = self.doubts.starts();
            }
            // Others were answered while it waited: it is not the NAS that is silent.
            Evidence::Silence if ticket.start <= self.heard && !is_probe => return self.tick(now),
            Evidence::Silence | Evidence::NasFailure { .. } | Evidence::Nothing => {}
        }
        if evidence == Evidence::Success {
            self.doubts.obeyed(ticket.start);
            self.succeeded(now, user, stale);
            return self.tick(now);
        }
        if is_probe {
            return self.probe_failed(now, user, evidence, repeated, jitter);
        }
        if stale || self.gate != Gate::Closed {
            return self.tick(now);
        }
        match self.weigh(user, evidence, repeated) {
            Some((gate, reason)) => self.open(now, gate, reason, jitter),
            None => self.tick(now),
        }
    }

    /// Gives the all-clear when it is due. Call it now and then (every minute will do).
    pub fn tick(&mut self, now: u64) -> Option<Change> {
        if !self.is_healthy(now) {
            return None;
        }
        self.recovered = None;
        self.step = 0;
        self.reached = 0;
        self.reason.clear();
        self.alarm.take().map(|_| Change::Closed)
    }

    /// The settings changed (address, credentials, scheme): probe at once, and forget what was
    /// learnt with the old ones. Not for a settings round that changed nothing: it would probe
    /// a dead NAS every time.
    pub fn poke(&mut self, now: u64) {
        self.era += 1;
        self.last.clear();
        self.answers.clear();
        self.doubts.clear();
        self.next = now;
        self.poked = self.probe.is_some();
    }

    /// The NAS can be reached again: the next probe is due at `at`, and once in an outage the
    /// steps begin anew. After a few times it is not believed: it is reached, and does not obey.
    pub fn reached(&mut self, at: u64) {
        if self.gate == Gate::Open && self.probe.is_none() && self.reached < REACHED_MAX {
            self.next = self.next.min(at);
            if self.reached == 0 {
                self.step = 0;
            }
            self.reached += 1;
        }
    }

    /// `closed`, `open`, `half-open` or `parked`.
    pub fn state(&self) -> &'static str {
        match self.gate {
            Gate::Closed => "closed",
            Gate::Parked { .. } => "parked",
            Gate::Open if self.probe.is_some() => "half-open",
            Gate::Open => "open",
        }
    }

    /// When the next probe may start (monotonic ms); none while closed or while one is running.
    pub fn next_probe(&self) -> Option<u64> {
        (self.gate != Gate::Closed && self.probe.is_none()).then_some(self.next)
    }

    /// Why it is, or during this outage last was, open or parked; empty when healthy.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    fn is_healthy(&self, now: u64) -> bool {
        self.gate == Gate::Closed
            && self
                .recovered
                .is_some_and(|at| now.saturating_sub(at) >= HEALTH_MS)
    }

    /// Whether a probe with this evidence leaves the breaker as it is.
    fn is_against(&self, evidence: &Evidence) -> bool {
        match evidence {
            Evidence::Success => false,
            Evidence::NasFailure { .. } | Evidence::Silence => true,
            Evidence::Permanent { .. } => self.gate == Gate::Parked { by_answers: true },
            Evidence::Other | Evidence::Nothing => false,
        }
    }

    fn succeeded(&mut self, now: u64, user: Option<UserId>, stale: bool) {
        self.answers.clear();
        if self.gate == Gate::Closed {
            if !stale {
                self.look_back(user, false);
            }
        } else {
            self.close(now);
        }
    }

    fn close(&mut self, now: u64) {
        self.gate = Gate::Closed;
        self.era += 1;
        self.probe = None;
        self.poked = false;
        self.recovered = Some(now);
        self.last.clear();
        self.answers.clear();
    }

    fn probe_failed(
        &mut self,
        now: u64,
        user: Option<UserId>,
        evidence: Evidence,
        repeated: bool,
        jitter: u32,
    ) -> Option<Change> {
        self.probe = None;
        let by_answers = self.gate == Gate::Parked { by_answers: true };
        if evidence == Evidence::Nothing {
            self.next = now;
            return None;
        }
        if !self.is_against(&evidence) && !by_answers {
            self.close(now);
            self.weigh(user, evidence, repeated);
            return None;
        }
        let parks = match evidence {
            Evidence::NasFailure { text, parks } => {
                self.reason = text;
                parks
            }
            Evidence::Permanent { text } => {
                self.reason = text;
                false
            }
            Evidence::Silence | Evidence::Other | Evidence::Success | Evidence::Nothing => false,
        };
        if parks {
            self.gate = Gate::Parked { by_answers: false };
        }
        self.step = longer(self.step);
        let wait = match self.gate {
            Gate::Parked { .. } => spread(PARKED_STEP_MS, jitter),
            Gate::Open | Gate::Closed => spread(self.step, jitter),
        };
        self.next = if std::mem::take(&mut self.poked) {
            now
        } else {
            now.saturating_add(wait)
        };
        self.announce()
    }

    fn open(&mut self, now: u64, gate: Gate, reason: String, jitter: u32) -> Option<Change> {
        self.step = if self.recovered.is_some() && !self.is_healthy(now) {
            longer(self.step)
        } else {
            STEP_FIRST_MS
        };
        let step = match gate {
            Gate::Parked { .. } => PARKED_STEP_MS,
            Gate::Open | Gate::Closed => self.step,
        };
        self.gate = gate;
        self.recovered = None;
        self.reason = reason;
        self.next = now.saturating_add(spread(step, jitter));
        self.announce()
    }

    /// The alarm, unless the operator already knows.
    fn announce(&mut self) -> Option<Change> {
        let (alarm, reason) = match self.gate {
            Gate::Closed => return None,
            Gate::Open => (Alarm::Opened, self.reason.clone()),
            Gate::Parked { .. } => (Alarm::Parked, self.reason.clone()),
        };
        if self.alarm >= Some(alarm) {
            return None;
        }
        self.alarm = Some(alarm);
        Some(match alarm {
            Alarm::Opened => Change::Opened { reason },
            Alarm::Parked => Change::Parked { reason },
        })
    }

    /// Counts evidence while closed; gives the gate that it calls for.
    fn weigh(
        &mut self,
        user: Option<UserId>,
        evidence: Evidence,
        repeated: bool,
    ) -> Option<(Gate, String)> {
        match evidence {
            Evidence::NasFailure { text, parks: true } => {
                Some((Gate::Parked { by_answers: false }, text))
            }
            Evidence::NasFailure { text, parks: false } => Some((Gate::Open, text)),
            Evidence::Permanent { text } => {
                self.look_back(user, false);
                self.equal_answers(user, &text, repeated).then(|| {
                    let reason = format!(
                        "{text}: the same {EQUAL_ANSWERS} times for {EQUAL_ACCOUNTS} accounts or \
                         more, none done between; their events wait and run when it is mended"
                    );
                    (Gate::Parked { by_answers: true }, reason)
                })
            }
            Evidence::Silence => {
                self.look_back(user, true);
                self.all_silent().then(|| {
                    let reason = format!(
                        "the last {SILENT_ATTEMPTS} attempts, of at least {SILENT_ACCOUNTS} \
                         accounts, got no answer (143, 254, time-out)"
                    );
                    (Gate::Open, reason)
                })
            }
            Evidence::Other | Evidence::Success => {
                self.look_back(user, false);
                None
            }
            Evidence::Nothing => None,
        }
    }

    fn look_back(&mut self, user: Option<UserId>, deferred: bool) {
        if self.last.len() == SILENT_ATTEMPTS {
            self.last.pop_front();
        }
        self.last.push_back((user, deferred));
    }

    fn all_silent(&self) -> bool {
        let users: BTreeSet<_> = self.last.iter().map(|(user, _)| user).collect();
        self.last.len() == SILENT_ATTEMPTS
            && self.last.iter().all(|(_, deferred)| *deferred)
            && users.len() >= SILENT_ACCOUNTS
    }

    /// An event counts once, however often it is tried.
    fn equal_answers(&mut self, user: Option<UserId>, text: &str, repeated: bool) -> bool {
        if !self.answers.iter().any(|a| a.text == text) {
            if self.answers.len() >= ANSWERS_MAX {
                let rarest = self.answers.iter().enumerate().min_by_key(|(_, a)| a.count);
                if let Some((at, _)) = rarest {
                    self.answers.swap_remove(at);
                }
            }
            self.answers.push(Answers {
                text: text.to_owned(),
                count: 0,
                users: BTreeSet::new(),
            });
        }
        let Some(equal) = self.answers.iter_mut().find(|a| a.text == text) else {
            return false;
        };
        equal.count += usize::from(!repeated);
        if equal.users.len() < EQUAL_ACCOUNTS {
            equal.users.insert(user);
        }
        equal.count >= EQUAL_ANSWERS && equal.users.len() >= EQUAL_ACCOUNTS
    }
}

fn longer(step: u64) -> u64 {
    step.saturating_mul(2).clamp(STEP_FIRST_MS, STEP_LAST_MS)
}

/// `step` ± 20 %, so that many NASes behind one dead link are not probed in one beat; the last
/// step only grows, so that probes come at most once a minute.
fn spread(step: u64, jitter: u32) -> u64 {
    let fifth = step / 5;
    let part = |of: u64| of * u64::from(jitter) / u64::from(u32::MAX);
    if step == STEP_LAST_MS {
        step + part(fifth)
    } else {
        step - fifth + part(2 * fifth)
    }
}

#[cfg(test)]
#[path = "breaker_test.rs"]
mod tests;
