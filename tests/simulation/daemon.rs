//! One daemon: the real `lanes`, `breaker`, `settle` and `plan`, and between them what
//! `dispatch::scheduler` does in one round, cut at each place where a process can die, freeze
//! or be told nothing. No clock, no task, no database.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nas_event_daemon::attempt::{DoneResult, Report};
use nas_event_daemon::dispatch::ahead::Ahead;
use nas_event_daemon::dispatch::breaker::{Breaker, Change, Start, Ticket};
use nas_event_daemon::dispatch::lanes::{Gone, Lanes, Next, Owner, REFILL_ROWS, Taken, Wanted};
use nas_event_daemon::dispatch::plan::{Step, plan};
use nas_event_daemon::event::{Class, EventId, UserId, Waiting};
use nas_event_daemon::nas::NasId;
use nas_event_daemon::scheme::ExitPolicy;
use nas_event_daemon::store::{Settle, SettleTo, Started, Turn, Turned};

use super::Planted;

pub(super) const RETRY_BASE: Duration = Duration::from_millis(61_200);
/// A turn that took so long, ms, is not believed to be ours still.
const FOLLOWED_MS: u64 = 5_000;

/// What is asked of a NAS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    pub forks: usize,
    pub paused: bool,
}

pub type Wish = BTreeMap<NasId, Served>;

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
    /// Claimed and not ended: in the turn that is being written, ahead, or running.
    pub taken: usize,
    pub running: usize,
    pub ahead: Ahead<Waits>,
    pub forks: usize,
    pub paused: bool,
    pub stopping: bool,
}

#[derive(Clone, Copy)]
pub struct Out {
    pub nas: NasId,
    pub try_count: u32,
    pub taken: Taken,
    pub ticket: Ticket,
    pub(super) finished: bool,
    pub(super) holds_fork: bool,
}

/// What starting a claimed event needs.
pub struct Waits {
    pub(super) event: Started,
    /// Every row of the NASes was known when it was picked, and how often others were taken up
    /// by then.
    pub(super) sure: Option<u64>,
}

/// A turn between its first writing and the answer to it.
pub struct Written {
    pub turn: Turn,
    pub began: u64,
    /// What the database said, which is on its way.
    pub answer: Option<Turned>,
    pub(super) batch: Vec<(EventId, Gone)>,
    pub(super) after: Vec<(EventId, Gone)>,
    pub(super) sure: Option<u64>,
}

impl Written {
    /// Whether another may have followed the daemon meanwhile, see `Scheduler::claimed_since`.
    pub fn is_long(&self, now: u64) -> bool {
        !self.turn.starts.is_empty() && now - self.began >= FOLLOWED_MS
    }
}

/// An attempt that begins.
#[derive(Clone)]
pub struct Begun {
    pub event: Started,
    pub out: Out,
    pub forks: usize,
    pub sure: bool,
    pub at: u64,
    /// What the breaker says at this moment.
    pub gate: Start,
}

/// A result that came in.
pub struct Ended {
    pub id: EventId,
    pub user: UserId,
    pub report: Report,
    pub ms: i64,
}

pub struct Daemon {
    pub epoch: i64,
    pub lanes: Lanes,
    pub pools: BTreeMap<NasId, Pool>,
    pub out: BTreeMap<EventId, Out>,
    pub settles: Vec<(Settle, Gone)>,
    /// Results that nobody has looked at yet.
    pub ended: VecDeque<Ended>,
    /// Those that were obeyed, and are only to be written down: their forks are free.
    pub rests: VecDeque<Ended>,
    /// Nothing starts any more.
    pub leaving: bool,
    pub inbox: VecDeque<Message>,
    pub reads: Vec<(Wanted, Option<Message>)>,
    pub written: Option<Written>,
    /// Alarms and all-clears, in their order.
    pub told: Vec<(NasId, Change)>,
    /// When an attempt of each NAS was last heard to end, and the longest, ms.
    pub heard: BTreeMap<NasId, (u64, i64)>,
    /// Events that found no fork.
    pub went_back: u64,
    pub(super) turn_ms: f64,
    pub(super) taken_up: u64,
    served: Wish,
    pub(super) alone: Option<EventId>,
    quiet: Option<(NasId, Next)>,
    rotate: usize,
    sizes: Sizes,
    pub(super) planted: Planted,
    pub(super) policy: ExitPolicy,
    /// Negative controls of `isolation`: nobody doubts what a device refuses; a NAS that fails is
    /// tried again at once; an outage is forgotten with the first success.
    pub answers_are_final: bool,
    pub without_breaker: bool,
    pub without_memory: bool,
    highest: i64,
    /// Rows may be missing that nobody has asked for yet.
    expecting: bool,
    /// Messages that are older than the rows which were read last.
    behind: usize,
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
            rests: VecDeque::new(),
            leaving: false,
            inbox: VecDeque::new(),
            reads: Vec::new(),
            written: None,
            told: Vec::new(),
            heard: BTreeMap::new(),
            went_back: 0,
            turn_ms: 1.0,
            taken_up: 0,
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
            behind: 0,
        }
    }

    /// The settings loop read this.
    pub fn settings(&mut self, wish: &Wish, now: u64) -> Vec<Begun> {
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
                Step::Change(nas, served) => {
                    if let Some(pool) = self.pools.get_mut(&nas) {
                        if pool.paused && !served.paused {
                            pool.breaker.poke(now);
                        }
                        (pool.forks, pool.paused) = (served.forks, served.paused);
                    }
                }
                Step::Start(nas, Served { forks, paused }) => {
                    let pool = self.pools.entry(nas).or_insert_with(|| Pool {
                        breaker: Breaker::new(),
                        taken: 0,
                        running: 0,
                        ahead: Ahead::default(),
                        forks,
                        paused,
                        stopping: false,
                    });
                    if pool.stopping {
                        pool.stopping = false;
                        pool.breaker.poke(now);
                        (pool.forks, pool.paused) = (forks, paused);
                    }
                    self.lanes.expect(nas);
                    self.expecting = true;
                    self.taken_up += 1;
                }
            }
        }
        self.served = wish.clone();
        self.pools.retain(|_, p| !(p.stopping && p.taken == 0));
        let nases: Vec<NasId> = self.pools.keys().copied().collect();
        nases
            .into_iter()
            .flat_map(|nas| self.follow(nas, now))
            .collect()
    }

    pub(super) fn unanswered(&mut self, id: EventId) {
        let to = SettleTo::Dead {
            reason: "nobody can be asked".to_owned(),
            possible_duplicate: false,
        };
        self.settles.push((unstarted(id, to), Gone::Finished));
    }

    /// As `hear::State::without_ended`.
    fn without_ended(&self, mut rows: Vec<Waiting>, asked: usize) -> Vec<Waiting> {
        if rows.len() >= asked {
            return rows;
        }
        let ends = |w: &Waiting| {
            let mut ends = self.settles.iter();
            ends.any(|(settle, _)| settle.try_count.is_none() && settle.id == w.id)
        };
        rows.retain(|w| !ends(w));
        rows
    }

    pub fn hear(&mut self, message: Message, now: u64, wall_ms: i64) {
        self.behind = match message {
            Message::Refilled(..) | Message::Loaded(..) => self.inbox.len(),
            Message::Waiting(..) | Message::Dropped(..) => self.behind.saturating_sub(1),
        };
        match message {
            Message::Waiting(events) => {
                for w in events {
                    self.highest = self.highest.max(w.id.0);
                    match self.pools.get(&w.nas) {
                        Some(pool) if !pool.stopping => {
                            self.lanes.add(&clamped(&w, wall_ms), now, wall_ms)
                        }
                        // Read before it was handed over, it may run already.
                        _ if w.class == Class::Interactive && !self.out.contains_key(&w.id) => {
                            self.unanswered(w.id);
                        }
                        _ => {}
                    }
                }
            }
            Message::Refilled(nas, owner, rows) => {
                self.expecting = true;
                let rows = rows.map(|rows| self.without_ended(rows, REFILL_ROWS));
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
                let rows = self.without_ended(rows, if full { 0 } else { usize::MAX });
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
                    && (p.stopping || p.paused || p.breaker.may_start(now) != Start::Free)
            })
            .map(|(nas, _)| *nas)
            .collect();
        for nas in mute {
            for id in self.lanes.fail_interactive(nas) {
                self.unanswered(id);
            }
        }
        self.give_back(now);
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
            .partition(|(_, gone)| !self.leaving && *gone == Gone::Finished);
        for (id, gone) in at_once {
            self.lanes.settled(id, gone, now);
        }
        let sure = self.reads.is_empty() && !self.expecting && self.behind == 0;
        let sure = sure.then_some(self.taken_up);
        if !self.leaving {
            self.pick(&mut turn, now);
        }
        if turn.settles.is_empty() && turn.starts.is_empty() {
            self.want();
            return false;
        }
        self.written = Some(Written {
            turn,
            began: now,
            answer: None,
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
        let busy = |pools: &BTreeMap<NasId, Pool>| pools.values().any(|p| p.taken > 0);
        if let Some((nas, suspect)) = self.quiet.take() {
            let start = match self.pools.get(&nas) {
                Some(pool)
                    if !pool.stopping
                        && !pool.paused
                        && self.lanes.may_take(nas, &suspect, now) =>
                {
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
                if pool.paused || turn.settles.len() + turn.starts.len() >= self.sizes.turn_max {
                    break;
                }
                let start = match pool.breaker.may_start(now) {
                    _ if self.without_breaker => Start::Free,
                    start => start,
                };
                let places = match start {
                    Start::Free => self.places(nas, pool, now),
                    Start::Probe if pool.stopping => 0,
                    Start::Probe => pool.forks.saturating_sub(pool.taken),
                    Start::Wait { .. } => break,
                };
                if places == 0 {
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
        pool.taken += 1;
        turn.starts.push(taken.id);
        if taken.suspect && self.planted != Planted::SuspectsInCompany {
            self.alone = Some(taken.id);
        }
        let out = Out {
            nas,
            try_count: 0,
            taken,
            ticket,
            finished: false,
            holds_fork: false,
        };
        self.out.insert(taken.id, out);
        if self.planted == Planted::LaneIgnoresOut {
            self.lanes.settled(taken.id, Gone::Finished, now);
        }
    }

    pub(super) fn want(&mut self) {
        self.expecting = false;
        for (nas, pool) in &self.pools {
            let dark = pool.stopping || pool.paused || pool.breaker.state() != "closed";
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
            if let Some(overdue) = pool.ahead.next_overdue() {
                at = at.min(overdue);
            }
            let free = !pool.paused && !pool.stopping && pool.taken < pool.forks;
            let alone = self.alone.is_some() || self.quiet.is_some();
            if self.lanes.has_ready(*nas)
                && free
                && !alone
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

pub(super) fn done(result: DoneResult) -> SettleTo {
    SettleTo::Done {
        result,
        answer: None,
        scheme_hash: String::new(),
    }
}

pub(super) fn unstarted(id: EventId, to: SettleTo) -> Settle {
    Settle {
        id,
        try_count: None,
        to,
        code: 0,
        ms: 0,
        error: None,
    }
}
