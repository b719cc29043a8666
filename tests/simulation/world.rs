//! Everything around the daemon: producers, the database and its faults, NASes, operators, the
//! clocks, and whatever kills, freezes or replaces the process. One seed decides all of it.
//! What must hold is checked at each step, by what the NASes see and the database keeps.

use std::collections::{BTreeMap, BTreeSet};

use nas_event_daemon::dispatch::lanes::{Owner, REFILL_ROWS, Wanted};
use nas_event_daemon::event::{Class, EventId, UserId, Waiting};
use nas_event_daemon::nas::NasId;
use nas_event_daemon::store::{Started, Turned};

use super::Planted;
use super::daemon::{Begun, Daemon, Message, Served, Sizes, Wish, Written};
use super::dice::Dice;
use super::model::{Model, Row};
use super::trace::Trace;
use super::witness::Claims;

/// Steps of disorder; then everything is mended and must end.
const STEPS: u64 = 300;
/// Rounds within which a mended world has to come to rest: each does all that can be done at
/// its moment, then time passes until something is due.
pub(super) const ROUNDS: usize = 3_000;
/// A NAS's own start of the monotonic clock, ms: as that of a real process.
pub(super) const START: u64 = 30 * 86_400_000;
pub(super) const WALL: i64 = 1_800_000_000_000;
pub(super) const DAY: i64 = 86_400_000;

/// One account: its NASes (most have one), and whether one producer posts for it, which waits
/// for each answer. Only then is there an order that must be kept.
pub(super) struct Account {
    pub(super) user: i64,
    pub(super) nases: Vec<i64>,
    pub(super) one_producer: bool,
}

/// What is known about an event from outside.
pub(super) struct Fact {
    pub(super) user: i64,
    pub(super) nas: i64,
    pub(super) class: Class,
    pub(super) ordered: bool,
    pub(super) starts: u32,
    /// The NAS may have obeyed although nobody was told so.
    pub(super) perhaps: bool,
    pub(super) succeeded: bool,
}

/// An attempt at work on a NAS.
pub(super) struct Exec {
    pub(super) epoch: i64,
    pub(super) begun: Begun,
    pub(super) user: i64,
}

/// What came out of one seed.
pub struct Outcome {
    pub hash: u64,
    pub found: Vec<String>,
    pub lines: Vec<String>,
    /// Crashes, take-overs, lost answers, attempts: a run without any would prove nothing.
    pub counts: BTreeMap<&'static str, u64>,
}

pub struct World {
    pub(super) dice: Dice,
    pub(super) trace: Trace,
    pub(super) now: u64,
    pub(super) wall_ms: i64,
    pub(super) model: Model,
    pub(super) live: Daemon,
    pub(super) frozen: Option<Daemon>,
    pub(super) execs: Vec<Exec>,
    pub(super) wish: Wish,
    pub(super) all: Wish,
    pub(super) sizes: Sizes,
    pub(super) next_id: i64,
    pub(super) late: Vec<(i64, Row)>,
    pub(super) accounts: Vec<Account>,
    pub(super) down: BTreeSet<i64>,
    pub(super) facts: BTreeMap<i64, Fact>,
    pub(super) device: BTreeMap<(i64, i64), i64>,
    /// Lanes that a frozen daemon touched after its time: flagged, but not to be compared.
    pub(super) touched: BTreeSet<(i64, i64)>,
    pub(super) found: Vec<String>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) planted: Planted,
    pub(super) claims: Claims,
    /// When the time of a daemon that leaves is over.
    pub(super) leave_by: u64,
    /// Little time passes between its steps.
    pub(super) hasty: bool,
}

/// Runs one seed to its end.
pub fn run(seed: u64, planted: Planted, keep: bool) -> Outcome {
    let mut world = World::new(seed, planted, keep);
    for _ in 0..STEPS {
        world.step();
        if !world.found.is_empty() {
            return world.outcome();
        }
    }
    world.mend();
    world.come_to_rest();
    world.check_the_end();
    world.outcome()
}

impl World {
    pub(super) fn new(seed: u64, planted: Planted, keep: bool) -> Self {
        let mut dice = Dice(seed);
        let sizes = Sizes {
            window: dice.one(&[6, 20, 200_000, 200_000]),
            cross_wait_ms: dice.one(&[0, 500, 30_000]),
            turn_max: dice.one(&[1, 2, 5, 500]),
            page: dice.one(&[3, 7, 500]),
        };
        // Many accounts and short attempts are what lets events be claimed ahead.
        let hasty = dice.once_in(2);
        let nases = dice.between(1, if hasty { 2 } else { 4 });
        let all: Wish = (1..=nases)
            .map(|n| {
                let forks = usize::try_from(dice.between(1, 4)).unwrap();
                let served = Served {
                    forks,
                    paused: false,
                };
                (NasId(i64::try_from(n).unwrap()), served)
            })
            .collect();
        let crowd = if hasty { 10 } else { 0 };
        let accounts = (0..dice.between(2, 7) + crowd)
            .map(|n| {
                let some: Vec<i64> = all.keys().map(|n| n.0).collect();
                let mut nases = vec![dice.one(&some)];
                if dice.once_in(4) {
                    nases.push(dice.one(&some));
                }
                Account {
                    user: i64::try_from(n).unwrap() + 100,
                    nases,
                    one_producer: !dice.once_in(4),
                }
            })
            .collect();
        let mut model = Model::new(planted);
        let epoch = model.own();
        let mut live = Daemon::new(epoch, sizes, planted);
        live.settings(&all, START);
        Self {
            dice,
            trace: Trace::new(keep),
            now: START,
            wall_ms: WALL,
            model,
            live,
            frozen: None,
            execs: Vec::new(),
            wish: all.clone(),
            all,
            sizes,
            next_id: 1,
            late: Vec::new(),
            accounts,
            down: BTreeSet::new(),
            facts: BTreeMap::new(),
            device: BTreeMap::new(),
            touched: BTreeSet::new(),
            found: Vec::new(),
            counts: BTreeMap::new(),
            planted,
            claims: Claims::default(),
            leave_by: 0,
            hasty,
        }
    }

    fn outcome(self) -> Outcome {
        Outcome {
            hash: self.trace.hash,
            found: self.found,
            lines: self.trace.lines.unwrap_or_default(),
            counts: self.counts,
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(super) fn wrong(&mut self, text: String) {
        self.trace.note("wrong", &[]);
        self.found.push(text);
    }

    fn step(&mut self) {
        match self.dice.roll(100) {
            0..16 => self.post(),
            16..19 => self.commit_late(),
            19..29 => self.expand(),
            29..41 => self.hear(),
            41..58 => self.turn(),
            58..65 => self.read(),
            65..79 => self.end_one(),
            79..90 => self.pass_time(),
            // A daemon that knows its NASes has lived for a while.
            90..93 if self.hasty && !self.dice.once_in(4) => self.turn(),
            90 => self.crash(),
            91 if self.dice.once_in(3) => self.leave(),
            91 => self.crash(),
            92 => self.freeze(),
            93..95 => self.thawed(),
            95 => self.step_clock(),
            96 => self.flip_nas(),
            97 => self.change_settings(),
            98 if self.dice.once_in(2) => self.drop_one(),
            98 => self.retry_one(),
            _ => self.all_ends_at_once(),
        }
    }

    // -- producers and operators ----------------------------------------------------------------

    fn post(&mut self) {
        let mut at = self.dice.index(self.accounts.len());
        let burst = if self.dice.once_in(if self.hasty { 6 } else { 12 }) {
            12
        } else {
            1
        };
        let of_one = self.dice.once_in(2);
        for _ in 0..burst {
            if !of_one {
                at = self.dice.index(self.accounts.len());
            }
            let (user, ordered) = (self.accounts[at].user, self.accounts[at].one_producer);
            let nas = self.dice.one(&self.accounts[at].nases);
            let class = self.dice.one(&[
                Class::Interactive,
                Class::Access,
                Class::Cut,
                Class::Cut,
                Class::Rate,
                Class::Rest,
            ]);
            let id = self.next_id;
            self.next_id += 1;
            let ttl = match class {
                Class::Interactive => 60_000,
                Class::Cut if self.dice.once_in(8) => 600_000,
                _ => 0,
            };
            let row = Row {
                expires_ms: if ttl > 0 { self.wall_ms + ttl } else { 0 },
                ..Row::new(nas, user, class, self.wall_ms)
            };
            let fact = Fact {
                user,
                nas,
                class,
                ordered,
                starts: 0,
                perhaps: false,
                succeeded: false,
            };
            self.facts.insert(id, fact);
            self.trace.note("post", &[id, nas, user]);
            if !ordered && self.dice.once_in(3) {
                self.late.push((id, row));
            } else {
                self.model.compact.insert(id, row);
            }
        }
    }

    /// A lower id may be committed after a higher one.
    fn commit_late(&mut self) {
        if !self.late.is_empty() {
            let at = self.dice.index(self.late.len());
            let (id, row) = self.late.swap_remove(at);
            self.model.compact.insert(id, row);
            self.trace.note("late", &[id]);
        }
    }

    fn drop_one(&mut self) {
        let ids: Vec<i64> = self.model.stack.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = self.dice.one(&ids);
        if self.model.drop_event(id) {
            let fact = &self.facts[&id];
            let message = Message::Dropped(EventId(id), NasId(fact.nas), UserId(fact.user));
            self.live.inbox.push_back(message);
            self.trace.note("drop", &[id]);
        }
    }

    /// An operator has a dead event tried anew.
    fn retry_one(&mut self) {
        let dead = self.model.ended.keys().copied();
        let dead: Vec<i64> = dead.filter(|id| self.model.may_retry(*id)).collect();
        if dead.is_empty() {
            return;
        }
        let old = self.dice.one(&dead);
        let id = self.next_id;
        self.next_id += 1;
        self.model.retry(old, id, self.wall_ms);
        let fact = &self.facts[&old];
        let again = Fact {
            starts: 0,
            succeeded: false,
            ..*fact
        };
        self.facts.insert(id, again);
        self.claims.again.insert(id);
        self.count("retries");
        self.trace.note("retry", &[old, id]);
    }

    fn change_settings(&mut self) {
        if self.live.written.is_some() || self.live.leaving {
            return;
        }
        let names: Vec<NasId> = self.all.keys().copied().collect();
        let nas = self.dice.one(&names);
        let forks = usize::try_from(self.dice.between(1, 4)).unwrap();
        let old = self.wish.get(&nas).copied();
        match old {
            Some(_) if self.dice.once_in(3) => {
                self.wish.remove(&nas);
            }
            Some(Served { forks, paused }) if self.dice.once_in(2) => {
                let paused = !paused;
                self.wish.insert(nas, Served { forks, paused });
            }
            _ => {
                let paused = old.is_some_and(|served| served.paused);
                self.wish.insert(nas, Served { forks, paused });
            }
        }
        let served = self.wish.get(&nas).map_or(0, |s| s.forks);
        let paused = self.wish.get(&nas).is_some_and(|s| s.paused);
        let numbers = [nas.0, i64::try_from(served).unwrap(), i64::from(paused)];
        self.trace.note("settings", &numbers);
        self.settings();
    }

    pub(super) fn settings(&mut self) {
        let begun = self.live.settings(&self.wish, self.now);
        self.all_begin(self.live.epoch, begun);
    }

    // -- the daemon -----------------------------------------------------------------------------

    pub(super) fn expand(&mut self) {
        let limit = usize::try_from(self.dice.between(1, 20)).unwrap();
        if let Ok(moved) = self.model.expand(self.live.epoch, limit)
            && !moved.is_empty()
        {
            let numbers: Vec<i64> = moved.iter().map(|w| w.id.0).collect();
            self.trace.note("expand", &numbers);
            self.live.inbox.push_back(Message::Waiting(moved));
        }
    }

    /// It hears some of what was said, in that order; while a turn is written only what ended.
    pub(super) fn hear(&mut self) {
        if self.live.written.is_some() || self.live.leaving {
            self.reap();
            return;
        }
        for _ in 0..self.dice.between(1, 4) {
            let Some(message) = self.live.inbox.pop_front() else {
                break;
            };
            self.note_read(&message);
            self.live.hear(message, self.now, self.wall_ms);
        }
        self.reap();
    }

    pub(super) fn reap(&mut self) {
        let jitter = u32::try_from(self.dice.roll(u64::from(u32::MAX))).unwrap();
        let begun = self.live.reap(self.now, self.wall_ms, jitter);
        self.all_begin(self.live.epoch, begun);
    }

    pub(super) fn turn(&mut self) {
        if self.live.written.is_none() {
            self.reap();
            if self.live.leaving && self.now >= self.leave_by {
                self.cut();
            }
            self.begin_turn();
            self.gone();
            return;
        }
        let fate = self.dice.roll(11);
        self.write(fate);
    }

    pub(super) fn begin_turn(&mut self) -> bool {
        let something = self.live.begin_turn(self.now, self.wall_ms);
        let back = std::mem::take(&mut self.live.went_back);
        *self.counts.entry("went back").or_default() += back;
        self.check_claims();
        something
    }

    /// The turn under way meets the database: 0 = refused, 1 = written but the answer is lost,
    /// 2 = it takes longer, 3 = written and the answer takes longer, else written and answered.
    pub(super) fn write(&mut self, fate: u64) {
        let Some(mut written) = self.live.written.take() else {
            return;
        };
        if let Some(turned) = written.answer.take() {
            self.answered(written, turned);
            return;
        }
        if fate == 2 {
            self.live.written = Some(written);
            return;
        }
        if fate == 0 {
            self.count("refused turns");
            if self.planted == Planted::RefusalIsSuccess {
                let turned = self.as_if(&written.turn.starts);
                self.answered(written, turned);
                return;
            }
            written.turn.again = true;
            self.live.written = Some(written);
            return;
        }
        match self.model.turn(&written.turn) {
            Err(_) => self.crash(),
            Ok(_) if fate == 1 => {
                self.count("lost answers");
                if self.planted == Planted::LostAnswerIsFailure {
                    self.live.give_up_turn(written, self.now);
                } else {
                    written.turn.again = true;
                    self.live.written = Some(written);
                }
            }
            Ok(turned) if fate == 3 => {
                written.answer = Some(turned);
                self.live.written = Some(written);
            }
            Ok(turned) => self.answered(written, turned),
        }
    }

    /// What a daemon would believe that takes a refusal for an answer.
    fn as_if(&self, starts: &[EventId]) -> Turned {
        let started = starts.iter().filter_map(|id| {
            let row = self.model.stack.get(&id.0)?;
            Some(Started {
                id: *id,
                cmd: "user_add".to_owned(),
                user: Some(UserId(row.user)),
                abonent: None,
                usluga: None,
                params: nas_event_daemon::event::StoredParams::default(),
                try_count: row.tries + 1,
                possible_duplicate: row.dup,
                accepted_ms: 0,
            })
        });
        Turned {
            settled: Vec::new(),
            started: started.collect(),
        }
    }

    fn answered(&mut self, written: Written, turned: Turned) {
        let epoch = self.live.epoch;
        let since = self.since(&written, epoch);
        self.told(&turned.started);
        let begun = self.live.end_turn(written, turned, self.now, since);
        self.all_begin(epoch, begun);
        let held = self.live.lanes.held();
        // A full window leaves each lane three ids.
        let lanes: usize = self
            .accounts
            .iter()
            .map(|account| account.nases.len())
            .sum();
        if held > 2 * self.sizes.window + 3 * lanes + 16 {
            self.wrong(format!("{held} ids are held"));
        }
    }

    /// From when on the claims of a turn hold: after a long one the database is asked whose it is,
    /// and may not answer.
    pub(super) fn since(&mut self, written: &Written, epoch: i64) -> u64 {
        if !written.is_long(self.now) || self.planted == Planted::LateAnswerIsBelieved {
            return self.now;
        }
        self.count("long turns");
        if epoch == self.model.epoch && !self.dice.once_in(4) {
            self.now
        } else {
            0
        }
    }

    fn read(&mut self) {
        if self.live.reads.is_empty() {
            return;
        }
        let at = self.dice.index(self.live.reads.len());
        let fails = self.dice.once_in(10);
        self.read_at(at, fails);
    }

    /// A read takes two steps: what the database says at one moment, and its arrival later.
    pub(super) fn read_at(&mut self, at: usize, fails: bool) {
        let page = self.sizes.page;
        let (wanted, message) = &mut self.live.reads[at];
        if message.is_none() {
            *message = Some(match *wanted {
                Wanted::Refill(nas, owner) => {
                    let Owner::User(user) = owner else {
                        panic!("every event of the simulation has an account");
                    };
                    let rows = self.model.refill(nas, user.0, REFILL_ROWS);
                    Message::Refilled(nas, owner, (!fails).then_some(rows))
                }
                Wanted::Load(nas, from) => {
                    let rows = self.model.load(nas, from, page);
                    let full = rows.len() >= page;
                    Message::Loaded(nas, (!fails).then_some((rows, full)))
                }
            });
            return;
        }
        if self.live.written.is_some() || self.live.leaving {
            return;
        }
        let (_, message) = self.live.reads.swap_remove(at);
        if let Some(message) = message {
            self.note_read(&message);
            self.live.hear(message, self.now, self.wall_ms);
        }
    }

    fn note_read(&mut self, message: &Message) {
        let ids = |rows: &[Waiting]| rows.iter().map(|w| w.id.0).collect::<Vec<_>>();
        match message {
            Message::Waiting(rows) => self.trace.note("handed", &ids(rows)),
            Message::Refilled(_, _, Some(rows)) => self.trace.note("refilled", &ids(rows)),
            Message::Loaded(_, Some((rows, _))) => self.trace.note("loaded", &ids(rows)),
            Message::Refilled(..) | Message::Loaded(..) | Message::Dropped(..) => {
                self.trace.note("heard", &[]);
            }
        }
    }
}
