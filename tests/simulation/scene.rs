//! A whole network in virtual time, for `isolation`: how devices behave when they are sick, and the
//! loop around the daemon's own decisions. Time passes only where a database or a device takes it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use nas_event_daemon::attempt::{DoneResult, Failure, FailureClass, Report, Scope, Verdict};
use nas_event_daemon::dispatch::breaker::Change;
use nas_event_daemon::dispatch::lanes::{Owner, REFILL_ROWS, Wanted};
use nas_event_daemon::event::{Class, EventId, UserId};
use nas_event_daemon::nas::NasId;

use super::Planted;
use super::daemon::{Begun, Daemon, Ended, Message, Served, Sizes, Wish};
use super::dice::Dice;
use super::model::{End, Model, Row};
use super::world::{START, WALL};

pub const SECOND: u64 = 1_000;
pub const MINUTE: u64 = 60 * SECOND;
pub const HOUR: u64 = 60 * MINUTE;
/// An account's number is its NAS's times this, and its own.
pub const ACCOUNTS: i64 = 10_000;

/// How a device behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Obeys within 15 to 25 ms.
    Obeys,
    /// Every packet is lost: no connection within 10 s.
    BlackHole,
    /// Takes the connection and says nothing until the deadline.
    TarPit,
    /// Ends every connection at once.
    Resets,
    /// Says a byte a second, which is no answer before the deadline.
    Drips,
    /// The login is refused for good.
    WrongPassword,
    /// Refuses a parameter of every command.
    WrongParameter,
    /// A script that finds no device.
    ScriptDefers,
}

pub const DEADLINE: u64 = 60 * SECOND;

impl Manner {
    /// How long an attempt takes, and how it ends.
    fn attempt(self, dice: &mut Dice) -> (u64, Verdict) {
        let failed = |scope, class, parks| {
            Verdict::Failed(Failure {
                scope,
                class,
                code: 1,
                text: format!("{self:?}"),
                parks,
            })
        };
        match self {
            Self::Obeys => (dice.between(15, 25), Verdict::Done),
            Self::BlackHole => (
                10 * SECOND,
                failed(Scope::Nas, FailureClass::Transport, false),
            ),
            Self::TarPit | Self::Drips => {
                (DEADLINE, failed(Scope::Event, FailureClass::Unknown, false))
            }
            Self::Resets => (2, failed(Scope::Nas, FailureClass::Transport, false)),
            Self::WrongPassword => (30, failed(Scope::Nas, FailureClass::Refused, true)),
            Self::WrongParameter => (20, failed(Scope::Event, FailureClass::Permanent, false)),
            Self::ScriptDefers => (3 * SECOND, Verdict::Exit(254)),
        }
    }
}

/// What will happen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Post(i64),
    Written,
    Read(usize),
    Ended(i64),
    Wake,
}

pub struct Attempted {
    pub event: i64,
    pub at: u64,
    pub nas: i64,
}

pub struct Scene {
    pub now: u64,
    pub dice: Dice,
    pub model: Model,
    pub daemon: Daemon,
    pub queue: BinaryHeap<Reverse<(u64, u64, What)>>,
    pub order: u64,
    pub woken: u64,
    pub manners: BTreeMap<i64, Manner>,
    pub verdicts: BTreeMap<i64, (UserId, u64, Verdict)>,
    pub posted: BTreeMap<i64, (i64, i64, u64)>,
    /// When an event was obeyed, in that order.
    pub obeyed: Vec<Attempted>,
    pub starts: Vec<Attempted>,
    pub tries: BTreeMap<i64, u32>,
    /// The negative control: the loop waits for the devices that it has begun to speak to.
    pub waits_for_devices: bool,
}

impl Scene {
    pub fn new(nases: i64, forks: usize, seed: u64) -> Self {
        let sizes = Sizes {
            window: 200_000,
            cross_wait_ms: 30_000,
            turn_max: 500,
            page: 500,
        };
        let served = Served {
            forks,
            paused: false,
        };
        let wish: Wish = (1..=nases).map(|n| (NasId(n), served)).collect();
        let mut model = Model::new(Planted::Nothing);
        let epoch = model.own();
        let mut daemon = Daemon::new(epoch, sizes, Planted::Nothing);
        daemon.settings(&wish, START);
        Self {
            now: START,
            dice: Dice(seed),
            model,
            daemon,
            queue: BinaryHeap::new(),
            order: 0,
            woken: 0,
            manners: (1..=nases).map(|n| (n, Manner::Obeys)).collect(),
            verdicts: BTreeMap::new(),
            posted: BTreeMap::new(),
            obeyed: Vec::new(),
            starts: Vec::new(),
            tries: BTreeMap::new(),
            waits_for_devices: false,
        }
    }

    fn wall(&self) -> i64 {
        WALL + i64::try_from(self.now - START).unwrap()
    }

    fn at(&mut self, when: u64, what: What) {
        self.order += 1;
        self.queue.push(Reverse((when, self.order, what)));
    }

    /// Events of `nas`, one every `every` ms from now on, over `accounts` accounts.
    pub fn load(&mut self, nas: i64, events: u64, every: u64, accounts: i64) {
        let from = self.now + self.dice.roll(every.max(1));
        for n in 0..events {
            let user = nas * ACCOUNTS + i64::try_from(n).unwrap() % accounts;
            self.at(from + n * every, What::Post(user));
        }
    }

    pub fn post(&mut self, user: i64) {
        let id = i64::try_from(self.posted.len()).unwrap() + 1;
        let nas = user / ACCOUNTS;
        self.posted.insert(id, (nas, user, self.now));
        let row = Row::new(nas, user, Class::Access, self.wall());
        self.model.compact.insert(id, row);
        let Ok(moved) = self.model.expand(self.daemon.epoch, 500) else {
            panic!("nobody else is there");
        };
        self.daemon.inbox.push_back(Message::Waiting(moved));
    }

    /// Runs until this moment.
    pub fn run(&mut self, until: u64) {
        while let Some(Reverse((when, ..))) = self.queue.peek()
            && *when <= until
        {
            let Some(Reverse((when, _, what))) = self.queue.pop() else {
                return;
            };
            self.now = when;
            self.happen(what);
            // All of this moment before the daemon looks.
            if self
                .queue
                .peek()
                .is_none_or(|Reverse((next, ..))| *next > when)
            {
                self.look();
            }
        }
        self.now = until;
        self.look();
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Post(user) => self.post(user),
            What::Read(at) => self.read(at),
            What::Ended(event) => {
                let (user, began, verdict) = self.verdicts.remove(&event).unwrap();
                if verdict == Verdict::Done {
                    let (nas, ..) = self.posted[&event];
                    let at = self.now;
                    self.obeyed.push(Attempted { event, at, nas });
                }
                self.daemon.ended.push_back(Ended {
                    id: EventId(event),
                    user,
                    report: Report::of(verdict),
                    ms: i64::try_from(self.now - began).unwrap(),
                });
            }
            What::Written => self.written(),
            What::Wake => {}
        }
    }

    fn read(&mut self, at: usize) {
        let Some((wanted, message)) = self.daemon.reads.get_mut(at) else {
            return;
        };
        *message = Some(match *wanted {
            Wanted::Refill(nas, owner) => {
                let Owner::User(user) = owner else {
                    panic!("every event has an account");
                };
                Message::Refilled(
                    nas,
                    owner,
                    Some(self.model.refill(nas, user.0, REFILL_ROWS)),
                )
            }
            Wanted::Load(nas, from) => {
                let rows = self.model.load(nas, from, 500);
                let full = rows.len() >= 500;
                Message::Loaded(nas, Some((rows, full)))
            }
        });
    }

    fn written(&mut self) {
        let written = self.daemon.written.take().unwrap();
        let Ok(turned) = self.model.turn(&written.turn) else {
            panic!("nobody else is there");
        };
        let begun = self.daemon.end_turn(written, turned, self.now, self.now);
        let last = self.begin(begun);
        if self.waits_for_devices {
            // Nothing is looked at before: as a loop that runs its attempts itself.
            let mut early = Vec::new();
            while let Some(Reverse((when, order, what))) = self.queue.pop() {
                early.push(Reverse((when.max(last), order, what)));
            }
            self.queue.extend(early);
        }
    }

    /// Attempts begin; the moment at which the last of them ends.
    fn begin(&mut self, begun: Vec<Begun>) -> u64 {
        let mut last = self.now;
        for begun in begun {
            let (event, nas, at) = (begun.event.id.0, begun.out.nas.0, self.now);
            self.starts.push(Attempted { event, at, nas });
            self.tries.insert(event, begun.event.try_count);
            let (ms, verdict) = self.manners[&nas].attempt(&mut self.dice);
            let user = begun.event.user.unwrap();
            self.verdicts.insert(event, (user, at, verdict));
            self.at(at + ms, What::Ended(event));
            last = last.max(at + ms);
        }
        last
    }

    fn reap(&mut self) {
        while !self.daemon.ended.is_empty() || !self.daemon.rests.is_empty() {
            let jitter = u32::try_from(self.dice.roll(u64::from(u32::MAX))).unwrap();
            let begun = self.daemon.reap(self.now, self.wall(), jitter);
            self.begin(begun);
        }
    }

    /// What the loop does whenever something woke it; while a turn is written it hears what ended.
    fn look(&mut self) {
        self.reap();
        if self.daemon.written.is_none() {
            let (now, wall) = (self.now, self.wall());
            self.daemon.reads.retain_mut(|(_, message)| {
                let Some(message) = message.take() else {
                    return true;
                };
                self.daemon.inbox.push_back(message);
                false
            });
            while let Some(message) = self.daemon.inbox.pop_front() {
                self.daemon.hear(message, now, wall);
            }
            for (nas, pool) in &mut self.daemon.pools {
                let change = pool.breaker.tick(now);
                self.daemon.told.extend(change.map(|change| (*nas, change)));
            }
            if self.daemon.begin_turn(now, wall) {
                let size = self
                    .daemon
                    .written
                    .as_ref()
                    .map_or(0, |w| w.turn.settles.len() + w.turn.starts.len());
                // Measured: a transaction of 500 takes under 5 ms.
                let ms = 1 + u64::try_from(size).unwrap() / 125;
                self.at(now + ms, What::Written);
            }
        }
        let unread: Vec<usize> = (0..self.daemon.reads.len())
            .filter(|at| self.daemon.reads[*at].1.is_none())
            .collect();
        for at in unread {
            self.at(self.now + 1, What::Read(at));
        }
        let wake = self.daemon.wake_at(self.now);
        if wake != self.woken {
            self.woken = wake;
            self.at(wake, What::Wake);
        }
    }

    pub fn told(&self, of: i64) -> Vec<&'static str> {
        let mine = self.daemon.told.iter().filter(|(nas, _)| nas.0 == of);
        mine.map(|(_, change)| match change {
            Change::Opened { .. } => "opened",
            Change::Parked { .. } => "parked",
            Change::Closed => "closed",
        })
        .collect()
    }

    pub fn dead(&self) -> usize {
        let ends = self.model.ended.values();
        ends.filter(|end| **end == End::Dead).count()
    }

    pub fn done(&self) -> usize {
        let ends = self.model.ended.values();
        ends.filter(|end| **end == End::Done(DoneResult::Done))
            .count()
    }

    /// Starts on `nas` in this time.
    pub fn started(&self, nas: i64, from: u64, to: u64) -> Vec<u64> {
        let mine = self.starts.iter().filter(|s| s.nas == nas);
        mine.map(|s| s.at)
            .filter(|at| (from..to).contains(at))
            .collect()
    }

    /// The NAS obeys again, and its settings say so.
    pub fn mend(&mut self, nas: i64) -> u64 {
        self.manners.insert(nas, Manner::Obeys);
        let pool = self.daemon.pools.get_mut(&NasId(nas)).unwrap();
        pool.breaker.poke(self.now);
        self.look();
        self.now
    }

    /// Each account saw its events in their order and nothing else.
    pub fn check_order(&self) {
        let mut last: BTreeMap<i64, i64> = BTreeMap::new();
        for one in &self.obeyed {
            let user = self.posted[&one.event].1;
            let before = last.insert(user, one.event).unwrap_or(0);
            assert!(
                before < one.event,
                "account {user}: {before}, {}",
                one.event
            );
        }
    }
}
