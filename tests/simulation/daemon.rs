//! One daemon: the real `lanes`, `breaker`, `settle` and `plan`, and between them what
//! `dispatch::scheduler` does in one round, cut at each place where a process can die, freeze
//! or be told nothing. No clock, no task, no database.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nas_event_daemon::attempt::{DoneResult, Outcome, Report};
use nas_event_daemon::dispatch::breaker::{Breaker, Change, Evidence, Start, Ticket};
use nas_event_daemon::dispatch::doubt::{self, Doubt};
use nas_event_daemon::dispatch::lanes::{Gone, Lanes, Next, Owner, Taken, Wanted};
use nas_event_daemon::dispatch::plan::{Step, plan};
use nas_event_daemon::dispatch::settle::{self, Facts};
use nas_event_daemon::event::{Class, EventId, UserId, Waiting};
use nas_event_daemon::nas::{NasId, OnError};
use nas_event_daemon::scheme::ExitPolicy;
use nas_event_daemon::store::{Settle, SettleTo, Started, Turn, Turned};

use super::Planted;

const RETRY_BASE: Duration = Duration::from_millis(61_200);
const MAX_TRIES: u32 = 10;

/// What is asked of a NAS: its forks.
pub type Wish = BTreeMap<NasId, usize>;

/// Sizes of one run, chosen by its seed.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub window: usize,
    pub cross_wait_ms: u64,
    pub turn_max: usize,
    pub page: usize,
}

pub enum Message {
    Waiting(Vec<Waiting>),
    Refilled(NasId, Owner, Option<Vec<Waiting>>),
    Loaded(NasId, Option<(Vec<Waiting>, bool)>),
    Dropped(EventId, NasId, UserId),
}

pub struct Pool {
    pub breaker: Breaker,
    pub running: usize,
    pub forks: usize,
    pub stopping: bool,
}

#[derive(Clone, Copy)]
pub struct Out {
    pub nas: NasId,
    pub try_count: u32,
    pub taken: Taken,
    pub ticket: Ticket,
}

/// A turn between its first writing and the answer to it.
pub struct Written {
    pub turn: Turn,
    batch: Vec<(EventId, Gone)>,
    after: Vec<(EventId, Gone)>,
    /// Every row of the NASes was known when its starts were picked.
    pub sure: bool,
}

/// An attempt that begins.
#[derive(Clone)]
pub struct Begun {
    pub event: Started,
    pub out: Out,
    pub forks: usize,
    pub sure: bool,
}

pub struct Daemon {
    pub epoch: i64,
    pub lanes: Lanes,
    pub pools: BTreeMap<NasId, Pool>,
    pub out: BTreeMap<EventId, Out>,
    pub settles: Vec<(Settle, Gone)>,
    /// Results that nobody has looked at yet.
    pub ended: VecDeque<(EventId, UserId, Report)>,
    pub inbox: VecDeque<Message>,
    pub reads: Vec<(Wanted, Option<Message>)>,
    pub written: Option<Written>,
    /// Alarms and all-clears, in their order.
    pub told: Vec<(NasId, Change)>,
    served: Wish,
    alone: Option<EventId>,
    quiet: Option<(NasId, Next)>,
    rotate: usize,
    sizes: Sizes,
    planted: Planted,
    policy: ExitPolicy,
    /// Negative controls of `isolation`: nobody doubts what a device refuses; a NAS that fails is
    /// tried again at once; an outage is forgotten with the first success.
    pub answers_are_final: bool,
    pub without_breaker: bool,
    pub without_memory: bool,
    highest: i64,
    /// Rows may be missing that nobody has asked for yet.
    expecting: bool,
}

impl Daemon {
    pub fn new(epoch: i64, sizes: Sizes, planted: Planted) -> Self {
        Self {
            epoch,
            lanes: Lanes::new(sizes.window, sizes.cross_wait_ms),
            pools: BTreeMap::new(),
            out: BTreeMap::new(),
            settles: Vec::new(),
            ended: VecDeque::new(),
            inbox: VecDeque::new(),
            reads: Vec::new(),
            written: None,
            told: Vec::new(),
            served: Wish::new(),
            alone: None,
            quiet: None,
            rotate: 0,
            sizes,
            planted,
            policy: ExitPolicy::default(),
            answers_are_final: false,
            without_breaker: false,
            without_memory: false,
            highest: 0,
            expecting: false,
        }
    }

    /// The settings loop read this.
    pub fn settings(&mut self, wish: &Wish, now: u64) {
        for step in plan(&self.served, wish) {
            match step {
                Step::Stop(nas) => {
                    if let Some(pool) = self.pools.get_mut(&nas) {
                        pool.stopping = true;
                    }
                    for id in self.lanes.drop_nas(nas) {
                        self.unanswered(id);
                    }
                }
                Step::Change(nas, forks) => {
                    if let Some(pool) = self.pools.get_mut(&nas) {
                        pool.forks = forks;
                    }
                }
                Step::Start(nas, forks) => {
                    match self.pools.get_mut(&nas) {
                        Some(pool) => {
                            pool.stopping = false;
                            pool.breaker.poke(now);
                            pool.forks = forks;
                        }
                        None => {
                            let pool = Pool {
                                breaker: Breaker::new(),
                                running: 0,
                                forks,
                                stopping: false,
                            };
                            self.pools.insert(nas, pool);
                        }
                    }
                    self.lanes.expect(nas);
                    self.expecting = true;
                }
            }
        }
        self.served = wish.clone();
        self.pools.retain(|_, p| !(p.stopping && p.running == 0));
    }

    fn unanswered(&mut self, id: EventId) {
        let to = SettleTo::Dead {
            reason: "nobody can be asked".to_owned(),
            possible_duplicate: false,
        };
        self.settles.push((unstarted(id, to), Gone::Finished));
    }

    pub fn hear(&mut self, message: Message, now: u64, wall_ms: i64) {
        match message {
            Message::Waiting(events) => {
                for w in events {
                    self.highest = self.highest.max(w.id.0);
                    match self.pools.get(&w.nas) {
                        Some(pool) if !pool.stopping => {
                            self.lanes.add(&clamped(&w, wall_ms), now, wall_ms)
                        }
                        _ if w.class == Class::Interactive => self.unanswered(w.id),
                        _ => {}
                    }
                }
            }
            Message::Refilled(nas, owner, rows) => {
                self.expecting = true;
                let rows = rows.map(|r| r.iter().map(|w| clamped(w, wall_ms)).collect::<Vec<_>>());
                self.lanes
                    .refilled(nas, owner, rows.as_deref(), now, wall_ms);
            }
            Message::Loaded(nas, _) if self.pools.get(&nas).is_none_or(|p| p.stopping) => {
                self.lanes.loaded(nas, &[], false, now, wall_ms);
            }
            Message::Loaded(nas, None) => {
                self.expecting = true;
                self.lanes.load_failed(nas);
            }
            Message::Loaded(nas, Some((rows, full))) => {
                let rows: Vec<Waiting> = rows.iter().map(|w| clamped(w, wall_ms)).collect();
                self.highest = rows.iter().map(|w| w.id.0).fold(self.highest, i64::max);
                self.expecting |= full;
                self.lanes.loaded(nas, &rows, full, now, wall_ms);
            }
            Message::Dropped(id, nas, user) => {
                self.lanes.drop_event(id, nas, Some(user), now);
            }
        }
    }

    /// Looks at the results that came in, as `fork::judge` and `hear::finished` do.
    pub fn reap(&mut self, now: u64, wall_ms: i64, jitter: u32) {
        while let Some((id, user, report)) = self.ended.pop_front() {
            let Some(out) = self.out.get(&id).copied() else {
                continue;
            };
            let Some(pool) = self.pools.get_mut(&out.nas) else {
                continue;
            };
            let evidence = Evidence::of(&report, &self.policy);
            let facts = Facts {
                try_count: out.try_count,
                class: out.taken.class,
                max_tries: MAX_TRIES,
                retry_base: RETRY_BASE,
                policy: &self.policy,
                on_error: OnError::Dead,
            };
            let free = pool.breaker.is_free(&evidence) && !self.without_breaker;
            let alone = doubt::alone(RETRY_BASE).as_millis();
            let alone_ms = u64::try_from(alone).unwrap();
            let doubt = match pool.breaker.doubt(now, id, Some(user), &evidence, alone_ms) {
                _ if self.answers_are_final => Doubt::None,
                doubt => doubt,
            };
            let outcome = settle::weighed(settle::settle(&report, &facts), &facts, free, doubt);
            let change = pool
                .breaker
                .ended(now, out.ticket, Some(user), evidence, jitter);
            self.told.extend(change.map(|change| (out.nas, change)));
            if self.without_memory && pool.breaker.state() == "closed" {
                pool.breaker = Breaker::new();
            }
            pool.running = pool.running.saturating_sub(1);
            let possible_duplicate =
                settle::possible_duplicate(&report) && self.planted != Planted::UnflaggedUnknown;
            let (to, gone) = match outcome {
                Outcome::Done(result) => (done(result), Gone::Finished),
                Outcome::Dead(reason) => (
                    SettleTo::Dead {
                        reason,
                        possible_duplicate,
                    },
                    Gone::Finished,
                ),
                Outcome::Deferred(wait) => {
                    let wait = u64::try_from(wait.as_millis()).unwrap();
                    let until_ms = wall_ms + i64::try_from(wait).unwrap();
                    (
                        SettleTo::Deferred {
                            until_ms,
                            possible_duplicate,
                        },
                        Gone::Deferred(now + wait),
                    )
                }
                Outcome::Released => (SettleTo::Ready { possible_duplicate }, Gone::Released),
            };
            let settle = Settle {
                id,
                try_count: Some(out.try_count),
                to,
                code: 0,
                ms: 0,
                error: None,
            };
            if self.planted == Planted::LaneFreedByResult {
                self.lanes.settled(id, gone, now);
            }
            self.settles.push((settle, gone));
        }
    }

    /// The first half of a round: what shall be written; none if there is nothing.
    pub fn begin_turn(&mut self, now: u64, wall_ms: i64) -> bool {
        self.lanes.wake(now);
        for (id, _) in self.lanes.expire(now, wall_ms) {
            let to = done(DoneResult::Expired);
            self.settles.push((unstarted(id, to), Gone::Finished));
        }
        let mute: Vec<NasId> = self
            .pools
            .iter()
            .filter(|(nas, p)| {
                self.lanes.has_interactive(**nas)
                    && (p.stopping || p.breaker.may_start(now) != Start::Free)
            })
            .map(|(nas, _)| *nas)
            .collect();
        for nas in mute {
            for id in self.lanes.fail_interactive(nas) {
                self.unanswered(id);
            }
        }
        let mut turn = Turn {
            epoch: self.epoch,
            ..Turn::default()
        };
        let n = self.settles.len().min(self.sizes.turn_max);
        let mut batch = Vec::new();
        let mut seen = BTreeSet::new();
        for (settle, gone) in self.settles.drain(..n) {
            if seen.insert(settle.id) {
                batch.push((settle.id, gone));
                turn.settles.push(settle);
            }
        }
        let (at_once, after): (Vec<_>, Vec<_>) = batch
            .iter()
            .copied()
            .partition(|(_, gone)| *gone == Gone::Finished);
        for (id, gone) in at_once {
            self.lanes.settled(id, gone, now);
        }
        let sure = self.reads.is_empty() && !self.expecting;
        self.pick(&mut turn, now);
        if turn.settles.is_empty() && turn.starts.is_empty() {
            self.want();
            return false;
        }
        self.written = Some(Written {
            turn,
            batch,
            after,
            sure,
        });
        true
    }

    fn pick(&mut self, turn: &mut Turn, now: u64) {
        if self.alone.is_some() {
            return;
        }
        let busy = |pools: &BTreeMap<NasId, Pool>| pools.values().any(|p| p.running > 0);
        if let Some((nas, suspect)) = self.quiet.take() {
            let start = match self.pools.get(&nas) {
                Some(pool) if !pool.stopping && self.lanes.may_take(nas, &suspect, now) => {
                    pool.breaker.may_start(now)
                }
                _ => Start::Wait { until: u64::MAX },
            };
            match start {
                Start::Wait { .. } => {}
                _ if busy(&self.pools) => {
                    self.quiet = Some((nas, suspect));
                    return;
                }
                start => {
                    if let Some(taken) = self.lanes.take_at(nas, suspect) {
                        self.begin(turn, nas, taken, start, now);
                        return;
                    }
                }
            }
        }
        let ids: Vec<NasId> = self.pools.keys().copied().collect();
        let at = self.rotate.checked_rem(ids.len()).unwrap_or(0);
        self.rotate = self.rotate.wrapping_add(1);
        for nas in ids.iter().cycle().skip(at).take(ids.len()).copied() {
            if self.lanes.held_of(nas) == 0 {
                continue;
            }
            while let Some(pool) = self.pools.get(&nas) {
                let full = pool.running >= pool.forks && self.planted != Planted::NoForkBound;
                if pool.stopping
                    || full
                    || turn.settles.len() + turn.starts.len() >= self.sizes.turn_max
                {
                    break;
                }
                let start = match pool.breaker.may_start(now) {
                    _ if self.without_breaker => Start::Free,
                    start => start,
                };
                if matches!(start, Start::Wait { .. }) {
                    break;
                }
                let Some(next) = self.lanes.next(nas, now) else {
                    break;
                };
                if next.taken.suspect
                    && busy(&self.pools)
                    && self.planted != Planted::SuspectsInCompany
                {
                    self.quiet = Some((nas, next));
                    return;
                }
                let Some(taken) = self.lanes.take_at(nas, next) else {
                    break;
                };
                self.begin(turn, nas, taken, start, now);
                if self.alone.is_some() {
                    return;
                }
            }
        }
    }

    fn begin(&mut self, turn: &mut Turn, nas: NasId, taken: Taken, start: Start, now: u64) {
        let Some(pool) = self.pools.get_mut(&nas) else {
            return;
        };
        let ticket = pool.breaker.started(start == Start::Probe);
        pool.running += 1;
        turn.starts.push(taken.id);
        if taken.suspect && self.planted != Planted::SuspectsInCompany {
            self.alone = Some(taken.id);
        }
        let out = Out {
            nas,
            try_count: 0,
            taken,
            ticket,
        };
        self.out.insert(taken.id, out);
        if self.planted == Planted::LaneIgnoresOut {
            self.lanes.settled(taken.id, Gone::Finished, now);
        }
    }

    /// The second half: the database answered.
    pub fn end_turn(&mut self, written: Written, turned: Turned, now: u64) -> Vec<Begun> {
        for (id, _) in &written.batch {
            self.out.remove(id);
            if self.alone == Some(*id) {
                self.alone = None;
            }
        }
        for (id, gone) in &written.after {
            self.lanes.settled(*id, *gone, now);
        }
        let mut started: BTreeMap<EventId, Started> =
            turned.started.into_iter().map(|e| (e.id, e)).collect();
        let mut begun = Vec::new();
        for id in &written.turn.starts {
            let Some(out) = self.out.get_mut(id) else {
                continue;
            };
            let Some(pool) = self.pools.get_mut(&out.nas) else {
                continue;
            };
            let Some(event) = started.remove(id) else {
                pool.running = pool.running.saturating_sub(1);
                pool.breaker
                    .ended(now, out.ticket, None, Evidence::Nothing, 0);
                self.out.remove(id);
                if self.alone == Some(*id) {
                    self.alone = None;
                }
                self.lanes.settled(*id, Gone::Finished, now);
                continue;
            };
            out.try_count = event.try_count;
            begun.push(Begun {
                event,
                out: *out,
                forks: pool.forks,
                sure: written.sure,
            });
        }
        self.want();
        begun
    }

    /// A turn that failed and of which the daemon believes that nothing of it was written.
    pub fn give_up_turn(&mut self, written: Written, now: u64) {
        let nothing = Turned::default();
        self.end_turn(written, nothing, now);
    }

    fn want(&mut self) {
        self.expecting = false;
        for (nas, pool) in &self.pools {
            let dark = pool.stopping || pool.breaker.state() != "closed";
            self.lanes.set_dark(*nas, dark);
        }
        // In the order of a hash map, which no seed rules.
        let mut wanted = self.lanes.wanted();
        wanted.sort_by_key(|w| match w {
            Wanted::Refill(nas, owner) => (*nas, Some(*owner)),
            Wanted::Load(nas, _) => (*nas, None),
        });
        for wanted in wanted {
            let wanted = match wanted {
                Wanted::Load(nas, _) if self.planted == Planted::Cursor => {
                    Wanted::Load(nas, EventId(self.highest + 1))
                }
                other => other,
            };
            self.reads.push((wanted, None));
        }
    }

    /// When there is something to do although nothing happens.
    pub fn wake_at(&self, now: u64) -> u64 {
        let mut at = now + 60_000;
        if let Some(wake) = self.lanes.next_wake() {
            at = at.min(wake);
        }
        for (nas, pool) in &self.pools {
            if self.lanes.held_of(*nas) > 0
                && let Some(probe) = pool.breaker.next_probe()
            {
                at = at.min(probe);
            }
        }
        at.max(now + 1)
    }
}

/// As `hear::clamped`: a clock that was set back must not stall an event.
fn clamped(w: &Waiting, wall_ms: i64) -> Waiting {
    let base = i64::try_from(RETRY_BASE.as_millis()).unwrap();
    let most = wall_ms.saturating_add(base.saturating_mul(i64::from(w.tries)));
    Waiting {
        next_try_ms: w.next_try_ms.min(most),
        ..*w
    }
}

fn done(result: DoneResult) -> SettleTo {
    SettleTo::Done {
        result,
        answer: None,
        scheme_hash: String::new(),
    }
}

fn unstarted(id: EventId, to: SettleTo) -> Settle {
    Settle {
        id,
        try_count: None,
        to,
        code: 0,
        ms: 0,
        error: None,
    }
}
