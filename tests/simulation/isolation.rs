//! Sick NASes in virtual time, to the millisecond: what half a network that is dead, slow or
//! resetting costs the other half, and what a day's outage, a changed password, a refused
//! parameter and a flapping link do to the events of one NAS. The decisions are the daemon's own;
//! time passes only where a database or a device takes it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use nas_event_daemon::attempt::{DoneResult, Failure, FailureClass, Report, Scope, Verdict};
use nas_event_daemon::dispatch::breaker::Change;
use nas_event_daemon::dispatch::lanes::{Owner, REFILL_ROWS, Wanted};
use nas_event_daemon::event::{Class, EventId, UserId};
use nas_event_daemon::nas::NasId;

use super::daemon::{Daemon, Message, Sizes, Wish};
use super::dice::Dice;
use super::model::{End, Model, Row, State};
use super::world::{START, WALL};
use super::{Planted, say};

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
/// An account's number is its NAS's times this, and its own.
const ACCOUNTS: i64 = 10_000;

/// How a device behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
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

const DEADLINE: u64 = 60 * SECOND;

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
enum What {
    Post(i64),
    Written,
    Read(usize),
    Ended(i64),
    Wake,
}

struct Attempted {
    event: i64,
    at: u64,
    nas: i64,
}

struct Scene {
    now: u64,
    dice: Dice,
    model: Model,
    daemon: Daemon,
    queue: BinaryHeap<Reverse<(u64, u64, What)>>,
    order: u64,
    woken: u64,
    manners: BTreeMap<i64, Manner>,
    verdicts: BTreeMap<i64, (UserId, Verdict)>,
    posted: BTreeMap<i64, (i64, i64, u64)>,
    /// When an event was obeyed, in that order.
    obeyed: Vec<Attempted>,
    starts: Vec<Attempted>,
    tries: BTreeMap<i64, u32>,
    /// The negative control: the loop waits for the devices that it has begun to speak to.
    waits_for_devices: bool,
}

impl Scene {
    fn new(nases: i64, forks: usize, seed: u64) -> Self {
        let sizes = Sizes {
            window: 200_000,
            cross_wait_ms: 30_000,
            turn_max: 500,
            page: 500,
        };
        let wish: Wish = (1..=nases).map(|n| (NasId(n), forks)).collect();
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
    fn load(&mut self, nas: i64, events: u64, every: u64, accounts: i64) {
        let from = self.now + self.dice.roll(every.max(1));
        for n in 0..events {
            let user = nas * ACCOUNTS + i64::try_from(n).unwrap() % accounts;
            self.at(from + n * every, What::Post(user));
        }
    }

    fn post(&mut self, user: i64) {
        let id = i64::try_from(self.posted.len()).unwrap() + 1;
        let nas = user / ACCOUNTS;
        self.posted.insert(id, (nas, user, self.now));
        let row = Row {
            nas,
            user,
            class: Class::Access,
            since_ms: self.wall(),
            expires_ms: 0,
            next_try_ms: 0,
            state: State::Ready,
            epoch: 0,
            tries: 0,
            deaths: 0,
            dup: false,
        };
        self.model.compact.insert(id, row);
        let Ok(moved) = self.model.expand(self.daemon.epoch, 500) else {
            panic!("nobody else is there");
        };
        self.daemon.inbox.push_back(Message::Waiting(moved));
    }

    /// Runs until this moment.
    fn run(&mut self, until: u64) {
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
                let (user, verdict) = self.verdicts.remove(&event).unwrap();
                if verdict == Verdict::Done {
                    let (nas, ..) = self.posted[&event];
                    let at = self.now;
                    self.obeyed.push(Attempted { event, at, nas });
                }
                let ended = (EventId(event), user, Report::of(verdict));
                self.daemon.ended.push_back(ended);
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
        let mut last = self.now;
        for begun in self.daemon.end_turn(written, turned, self.now) {
            let (event, nas, at) = (begun.event.id.0, begun.out.nas.0, self.now);
            self.starts.push(Attempted { event, at, nas });
            self.tries.insert(event, begun.event.try_count);
            let (ms, verdict) = self.manners[&nas].attempt(&mut self.dice);
            let user = begun.event.user.unwrap();
            self.verdicts.insert(event, (user, verdict));
            self.at(at + ms, What::Ended(event));
            last = last.max(at + ms);
        }
        if self.waits_for_devices {
            // Nothing is looked at before: as a loop that runs its attempts itself.
            let mut early = Vec::new();
            while let Some(Reverse((when, order, what))) = self.queue.pop() {
                early.push(Reverse((when.max(last), order, what)));
            }
            self.queue.extend(early);
        }
    }

    /// What the loop does whenever something woke it.
    fn look(&mut self) {
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
            let jitter = u32::try_from(self.dice.roll(u64::from(u32::MAX))).unwrap();
            self.daemon.reap(now, wall, jitter);
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

    fn told(&self, of: i64) -> Vec<&'static str> {
        let mine = self.daemon.told.iter().filter(|(nas, _)| nas.0 == of);
        mine.map(|(_, change)| match change {
            Change::Opened { .. } => "opened",
            Change::Parked { .. } => "parked",
            Change::Closed => "closed",
        })
        .collect()
    }

    fn dead(&self) -> usize {
        let ends = self.model.ended.values();
        ends.filter(|end| **end == End::Dead).count()
    }

    fn done(&self) -> usize {
        let ends = self.model.ended.values();
        ends.filter(|end| **end == End::Done(DoneResult::Done))
            .count()
    }

    /// Starts on `nas` in this time.
    fn started(&self, nas: i64, from: u64, to: u64) -> Vec<u64> {
        let mine = self.starts.iter().filter(|s| s.nas == nas);
        mine.map(|s| s.at)
            .filter(|at| (from..to).contains(at))
            .collect()
    }

    /// The NAS obeys again, and its settings say so.
    fn mend(&mut self, nas: i64) -> u64 {
        self.manners.insert(nas, Manner::Obeys);
        let pool = self.daemon.pools.get_mut(&NasId(nas)).unwrap();
        pool.breaker.poke(self.now);
        self.look();
        self.now
    }

    /// Each account saw its events in their order and nothing else.
    fn check_order(&self) {
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

// -- half of the network --------------------------------------------------------------------

const NASES: i64 = 500;
/// Events of each NAS: 8 a second for 3 s.
const EVENTS: u64 = 24;
const EVERY: u64 = 125;

/// The 99th percentile of the healthy half's time from acceptance to obedience, ms, and how many
/// were done within the time of the load. Odd NASes are sick.
fn half(sick: Option<Manner>, waits_for_devices: bool) -> (u64, usize) {
    let mut scene = Scene::new(NASES, 4, 3);
    scene.waits_for_devices = waits_for_devices;
    for nas in 1..=NASES {
        if let Some(manner) = sick
            && nas % 2 == 1
        {
            scene.manners.insert(nas, manner);
        }
        scene.load(nas, EVENTS, EVERY, 10);
    }
    scene.run(START + EVENTS * EVERY + SECOND);
    let mut times: Vec<u64> = scene
        .obeyed
        .iter()
        .filter(|one| one.nas % 2 == 0)
        .map(|one| one.at - scene.posted[&one.event].2)
        .collect();
    times.sort_unstable();
    scene.check_order();
    let p99 = times.get(times.len() * 99 / 100).copied();
    (p99.unwrap_or(u64::MAX), times.len())
}

#[test]
fn a_sick_half_of_the_network_costs_the_other_half_nothing() {
    let (p99, done) = half(None, false);
    assert_eq!(
        done,
        usize::try_from(NASES / 2 * 24).unwrap(),
        "all are done"
    );
    for sick in [
        Manner::BlackHole,
        Manner::TarPit,
        Manner::Resets,
        Manner::Drips,
    ] {
        let (with, some) = half(Some(sick), false);
        say(&format!(
            "{sick:?}: p99 {p99} → {with} ms, {done} → {some} done"
        ));
        assert!(with * 10 <= p99 * 11, "{sick:?}: p99 {p99} → {with} ms");
        assert!(some * 100 >= done * 95, "{sick:?}: {done} → {some} done");
    }
    // The negative control: a loop that waits for its devices is found out.
    let (_, some) = half(Some(Manner::BlackHole), true);
    assert!(
        some * 2 < done,
        "{some} of {done} done by a loop that waits"
    );
}

// -- one NAS --------------------------------------------------------------------------------

const SICK: i64 = 1;
const SCRIPT: i64 = 2;
const FORKS: usize = 8;
const QUEUED: u64 = 5_000;

/// A day without a NAS, with 5,000 events that wait; it is back after 24 hours.
fn day_long(nas: i64, manner: Manner) {
    let mut scene = Scene::new(2, FORKS, 7);
    scene.manners.insert(nas, manner);
    scene.load(nas, QUEUED, 0, 1_000);
    let (begin, back) = (START, START + 24 * HOUR);
    scene.run(back);
    assert_eq!((scene.obeyed.len(), scene.dead()), (0, 0), "{manner:?}");
    assert_eq!(scene.told(nas), ["opened"]);
    // At most one probe a minute once the steps have grown, and about one a minute then.
    let steady = scene.started(nas, begin + 5 * MINUTE, back);
    assert!(
        steady.windows(2).all(|w| w[1] - w[0] >= MINUTE),
        "{manner:?}"
    );
    assert!(steady.len() > 1_000, "{} probes", steady.len());
    // What was in flight at first, and what a script needs to be believed, burnt a try.
    let burnt: u32 = scene.model.stack.values().map(|row| row.tries).sum();
    assert!(
        burnt <= u32::try_from(FORKS).unwrap() + 5,
        "{burnt} tries are burnt"
    );

    scene.manners.insert(nas, Manner::Obeys);
    scene.run(back + 10 * MINUTE);
    let first = scene.obeyed.first().unwrap().at;
    // The longest step, behind a probe that was under way.
    let late = first - back;
    assert!(late <= (72 + 10) * SECOND + 25, "noticed after {late} ms");
    // All forks work within 5 s of that, and the whole queue takes as long as they need for it.
    let ideal = QUEUED * 25 / u64::try_from(FORKS).unwrap();
    let last = scene.obeyed.last().unwrap().at;
    let drained = last - first;
    say(&format!(
        "{manner:?}: {} probes, noticed after {} ms, {QUEUED} drained in {drained} ms",
        steady.len(),
        late
    ));
    let all = usize::try_from(QUEUED).unwrap();
    let waited = scene.obeyed.len() < all || drained > ideal + 5 * SECOND;
    assert!(!waited, "{} done in {drained} ms", scene.obeyed.len());
    let soon = scene.obeyed.iter().filter(|o| o.at <= first + 5 * SECOND);
    assert!(soon.count() >= 5 * FORKS * 30, "not at full rate");
    assert_eq!((scene.done(), scene.dead()), (all, 0));
    assert_eq!(scene.told(nas), ["opened", "closed"]);
    scene.check_order();
}

#[test]
fn a_day_without_a_nas_burns_no_tries_and_ends_at_full_rate() {
    day_long(SICK, Manner::BlackHole);
    day_long(SICK, Manner::Resets);
    day_long(SCRIPT, Manner::ScriptDefers);
}

/// A password that was changed on the NAS: parked with one alarm, probed every five minutes, and
/// at once when the settings say the new one.
#[test]
fn a_changed_password_kills_nothing() {
    let mut scene = Scene::new(1, FORKS, 9);
    scene.load(SICK, QUEUED, 10, 1_000);
    scene.run(START + 10 * SECOND);
    let before = scene.obeyed.len();
    assert!(before > 900, "{before}");
    scene.manners.insert(SICK, Manner::WrongPassword);
    let broke = scene.now;
    scene.run(broke + 2 * HOUR);
    assert_eq!((scene.told(SICK), scene.dead()), (vec!["parked"], 0));
    let probes = scene.started(SICK, broke + SECOND, scene.now);
    assert!(probes.windows(2).all(|w| w[1] - w[0] >= 4 * MINUTE));
    assert!((20..=30).contains(&probes.len()), "{} probes", probes.len());
    let mended = scene.mend(SICK);
    scene.run(mended + 5 * MINUTE + SECOND);
    let all = usize::try_from(QUEUED).unwrap();
    assert_eq!((scene.done(), scene.dead()), (all, 0));
    let next = scene.obeyed[before..].iter().find(|o| o.at > mended);
    assert!(next.unwrap().at - mended <= SECOND, "not at once");
    assert_eq!(scene.told(SICK), ["parked", "closed"]);
    scene.check_order();
}

/// A firmware that refuses a parameter: after twenty equal refusals of ten accounts the NAS is
/// parked. Those are dead (an answer is an answer), the thousands behind them are not.
#[test]
fn a_refused_parameter_parks_the_nas() {
    let mut scene = Scene::new(1, FORKS, 11);
    scene.manners.insert(SICK, Manner::WrongParameter);
    scene.load(SICK, QUEUED, 0, 1_000);
    scene.run(START + 2 * HOUR);
    let dead = scene.dead();
    assert!(dead < 20 + FORKS, "{dead} dead");
    assert_eq!(scene.told(SICK), ["parked"]);
    let mended = scene.mend(SICK);
    scene.run(mended + 10 * MINUTE);
    let all = usize::try_from(QUEUED).unwrap();
    assert_eq!((scene.done(), scene.dead()), (all - dead, dead));
    assert_eq!(scene.told(SICK), ["parked", "closed"]);
    say(&format!("{dead} refusals until it was parked"));
    scene.check_order();
}

/// A link that is gone for a minute thirty times an hour: one alarm, one all-clear.
#[test]
fn a_flapping_link_alarms_once() {
    let mut scene = Scene::new(1, FORKS, 13);
    scene.load(SICK, 3_600, SECOND, 100);
    for minute in 0..60 {
        let manner = if minute % 2 == 0 {
            Manner::Resets
        } else {
            Manner::Obeys
        };
        scene.manners.insert(SICK, manner);
        scene.run(START + (minute + 1) * MINUTE);
    }
    assert_eq!(scene.told(SICK), ["opened"]);
    scene.run(START + 80 * MINUTE);
    assert_eq!(scene.told(SICK), ["opened", "closed"]);
    assert_eq!((scene.done(), scene.dead()), (3_600, 0));
    scene.check_order();
}
