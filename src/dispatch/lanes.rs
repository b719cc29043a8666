//! Which event may run now. Pure: `now` is an argument, nothing is read or written.
//!
//! A lane is one account's state-changing events on one NAS, in order; at most one of them is
//! out at a time. A lane is freed by a durable settlement only (`settled`), never by a result.
//! Interactive events only read and have a queue of their own. Memory is bounded: 8 ids per
//! lane and a `more` mark (refilled by index), `window` ids in all and an `overflow` mark per
//! NAS (the lowest id that was not kept), so that nothing relies on `id > last`.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};

use super::lane::{Head, Item, Lane, NasQueue, item, lane_mut, lower, nudge, owner_of};
use super::leave::Dropped;
use crate::event::{Class, EventId, UserId, Waiting};
use crate::nas::NasId;

/// Ids kept per lane; the rest is known by the `more` mark.
const LANE_MAX: usize = 8;
/// Rows asked for in a refill: what may be in memory already, and a full lane.
pub const REFILL_ROWS: usize = 2 * LANE_MAX + 1;
/// A lane asks for a refill when it has no more than this many ids left.
const REFILL_AT: usize = 2;
/// A head rises one class for each of these periods that it waits, ms.
const AGEING_MS: u64 = 60_000;
/// Process deaths that make an event a suspect, which then runs alone.
pub const SUSPECT_DEATHS: u32 = 3;

/// Whose lane: an account's, or the NAS's own for events without an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// `users.id`
    User(UserId),
    /// Events of the NAS as a whole.
    Nas(NasId),
}

/// An event that may be started now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Event.
    pub id: EventId,
    /// Its class.
    pub class: Class,
    /// It starts although an earlier event of the account on another NAS still waits.
    pub overtakes: bool,
    /// Three processes died while it ran: it must run alone.
    pub suspect: bool,
}

/// What may be taken, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// The event.
    pub taken: Taken,
    /// In the ready set of its class; none for an interactive event.
    key: Option<(u64, EventId, Owner)>,
}

/// Where a settled event went, as far as its lane is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Done, dead, or no longer there.
    Finished,
    /// Deferred until this tick, ms.
    Deferred(u64),
    /// Back at the head, may run at once, behind others of its class.
    Released,
    /// It never ran: back at the head, as old as it was.
    Back,
}

/// What to read from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The first `REFILL_ROWS` waiting events of a lane.
    Refill(NasId, Owner),
    /// A page of a NAS's waiting events from this id on.
    Load(NasId, EventId),
}

/// All lanes of all NASes.
#[derive(Debug)]
pub struct Lanes {
    pub(super) lanes: HashMap<Owner, Vec<Lane>>,
    pub(super) nases: HashMap<NasId, NasQueue>,
    out: HashMap<EventId, (NasId, Owner, bool)>,
    timers: BTreeSet<(u64, NasId, Owner)>,
    pub(super) expiring: BTreeSet<(i64, EventId, NasId, Owner)>,
    /// The last dropped ids: rows that were read before must not come back.
    pub(super) dropped: Dropped,
    refills: VecDeque<(NasId, Owner)>,
    window: usize,
    cross_wait_ms: u64,
    held: usize,
}

impl Lanes {
    /// `window`: ids kept in memory; `cross_wait_ms`: see `[dispatch] cross_nas_wait`.
    pub fn new(window: usize, cross_wait_ms: u64) -> Self {
        Self {
            lanes: HashMap::new(),
            nases: HashMap::new(),
            out: HashMap::new(),
            timers: BTreeSet::new(),
            expiring: BTreeSet::new(),
            dropped: Dropped::default(),
            refills: VecDeque::new(),
            window,
            cross_wait_ms,
            held: 0,
        }
    }

    /// Everything of this NAS that stands in the store shall be loaded.
    pub fn expect(&mut self, nas: NasId) {
        let queue = self.nases.entry(nas).or_default();
        queue.overflow = Some(EventId(0));
    }

    /// A dark NAS (paused, breaker open, not served) makes nobody wait on another NAS.
    pub fn set_dark(&mut self, nas: NasId, dark: bool) {
        self.nases.entry(nas).or_default().dark = dark;
    }

    /// A new event, handed over by expansion.
    pub fn add(&mut self, w: &Waiting, now: u64, wall_ms: i64) {
        self.keep(w, now, wall_ms, true);
    }

    /// Takes a page of `Wanted::Load`; `full` = there may be more behind it.
    pub fn loaded(&mut self, nas: NasId, page: &[Waiting], full: bool, now: u64, wall_ms: i64) {
        let queue = self.nases.entry(nas).or_default();
        let from = queue.loading.take();
        // What was left out before this page comes first in its lanes: all is read from there on.
        let behind = queue
            .overflow
            .is_some_and(|left_out| from.is_some_and(|from| left_out < from));
        if std::mem::take(&mut queue.stale) || behind {
            return;
        }
        if full && let Some(last) = page.last() {
            lower(&mut queue.overflow, EventId(last.id.0 + 1));
        }
        for w in page {
            self.keep(w, now, wall_ms, false);
        }
    }

    /// The page could not be read: it stays wanted.
    pub fn load_failed(&mut self, nas: NasId) {
        let queue = self.nases.entry(nas).or_default();
        let stale = std::mem::take(&mut queue.stale);
        if let Some(from) = queue.loading.take().filter(|_| !stale) {
            lower(&mut queue.overflow, from);
        }
    }

    /// Takes the rows of `Wanted::Refill`, or none if they could not be read.
    pub fn refilled(
        &mut self,
        nas: NasId,
        owner: Owner,
        rows: Option<&[Waiting]>,
        now: u64,
        wall_ms: i64,
    ) {
        let Some(lane) = lane_mut(&mut self.lanes, owner, nas) else {
            return;
        };
        lane.refilling = false;
        let missed = std::mem::take(&mut lane.missed);
        let stale = std::mem::take(&mut lane.stale);
        let Some(rows) = rows.filter(|_| !stale) else {
            self.refills.push_back((nas, owner));
            return;
        };
        lane.more = missed || rows.len() >= REFILL_ROWS;
        let room = self.has_room(nas);
        for w in rows.iter().filter(|w| w.class != Class::Interactive) {
            let Some(lane) = lane_mut(&mut self.lanes, owner, nas) else {
                return;
            };
            if lane.knows(w.id) || self.dropped.contains(w.id) {
                continue;
            }
            // A full window leaves each lane what it needs to go on, and not to ask again at once.
            if lane.queue.len() >= if room { LANE_MAX } else { REFILL_AT + 1 } {
                lane.more = true;
                break;
            }
            let item = item(w, now, wall_ms);
            lane.queue.push_back(item);
            self.note_kept(nas, owner, &item);
        }
        self.renew_head(nas, owner, now);
        self.look_again(owner, now);
    }

    /// The event of `nas` that may start now; call it again while slots are free.
    pub fn take(&mut self, nas: NasId, now: u64) -> Option<Taken> {
        let next = self.next(nas, now)?;
        self.take_at(nas, next)
    }

    /// What `take` would hand out.
    pub fn next(&mut self, nas: NasId, now: u64) -> Option<Next> {
        let queue = self.nases.get(&nas)?;
        if let Some(&(_, id)) = queue.interactive.first() {
            let facts = queue.interactive_facts.get(&id);
            return Some(Next {
                taken: Taken {
                    id,
                    class: Class::Interactive,
                    overtakes: false,
                    suspect: facts.is_some_and(|i| i.suspect),
                },
                key: None,
            });
        }
        loop {
            let (class, key) = self.best(nas, now)?;
            let (_, id, owner) = key;
            match self.crossing(nas, owner, id, now) {
                Crossing::Wait(until) => {
                    self.unready(nas, class, &key);
                    if let Some(lane) = lane_mut(&mut self.lanes, owner, nas) {
                        lane.head = Head::Crossed(until);
                        self.timers.insert((until, nas, owner));
                    }
                }
                verdict => {
                    let lane = lane_mut(&mut self.lanes, owner, nas)?;
                    return Some(Next {
                        taken: Taken {
                            id,
                            class,
                            overtakes: verdict == Crossing::Overtake,
                            suspect: lane.queue.front()?.suspect,
                        },
                        key: Some(key),
                    });
                }
            }
        }
    }

    /// Whether what `next` said before may still be taken, be it the next or not.
    pub fn may_take(&mut self, nas: NasId, next: &Next, now: u64) -> bool {
        let Some(queue) = self.nases.get(&nas) else {
            return false;
        };
        let Some(key) = next.key else {
            return queue.interactive_facts.contains_key(&next.taken.id);
        };
        let ready = queue.ready.get(usize::from(next.taken.class as u8));
        ready.is_some_and(|set| set.contains(&key))
            && !matches!(self.crossing(nas, key.2, key.1, now), Crossing::Wait(_))
    }

    /// Takes what `next` said, while `may_take` says so.
    pub fn take_at(&mut self, nas: NasId, next: Next) -> Option<Taken> {
        let Next { taken, key } = next;
        let Some(key) = key else {
            let queue = self.nases.get_mut(&nas)?;
            let item = queue.interactive_facts.remove(&taken.id)?;
            queue.interactive.remove(&(item.since, taken.id));
            let owner = Owner::Nas(nas);
            self.expiring
                .remove(&(item.expires_ms, taken.id, nas, owner));
            self.forget(nas, 1);
            self.out.insert(taken.id, (nas, owner, true));
            return Some(taken);
        };
        self.unready(nas, taken.class, &key);
        let owner = key.2;
        let lane = lane_mut(&mut self.lanes, owner, nas)?;
        let item = lane.queue.pop_front()?;
        lane.head = Head::Out(item.id);
        lane.out = Some(item);
        lane.crossed_since = None;
        lane.nudged = false;
        self.expiring
            .remove(&(item.expires_ms, item.id, nas, owner));
        self.out.insert(item.id, (nas, owner, false));
        self.forget(nas, 1);
        Some(taken)
    }

    fn unready(&mut self, nas: NasId, class: Class, key: &(u64, EventId, Owner)) {
        if let Some(queue) = self.nases.get_mut(&nas)
            && let Some(set) = queue.ready.get_mut(usize::from(class as u8))
        {
            set.remove(key);
        }
    }

    /// The event left `running` durably (or its start found nothing to start).
    pub fn settled(&mut self, id: EventId, gone: Gone, now: u64) {
        let Some((nas, owner, interactive)) = self.out.remove(&id) else {
            return;
        };
        if interactive {
            if gone != Gone::Finished {
                let queue = self.nases.entry(nas).or_default();
                lower(&mut queue.overflow, id);
            }
            return;
        }
        if let Some(lane) = lane_mut(&mut self.lanes, owner, nas) {
            let item = lane.out.take();
            lane.head = Head::Idle;
            let since = match (gone, &item) {
                // Others of its class go first: a NAS is not probed with the same event for ever.
                (Gone::Released, _) | (_, None) => now,
                (_, Some(item)) => item.since,
            };
            let due = match gone {
                Gone::Finished => None,
                Gone::Deferred(due) => Some(if lane.nudged { now } else { due }),
                Gone::Released | Gone::Back => Some(now),
            };
            if let (Some(due), Some(mut item)) = (due, item) {
                item.due = due;
                item.since = since;
                lane.queue.push_front(item);
                self.note_kept(nas, owner, &item);
            }
        }
        self.renew_head(nas, owner, now);
        self.look_again(owner, now);
    }

    /// Whoever waited on another NAS for an event of this account looks again.
    pub(super) fn look_again(&mut self, owner: Owner, now: u64) {
        let crossed: Vec<(NasId, u64)> = self
            .lanes
            .get(&owner)
            .into_iter()
            .flatten()
            .filter_map(|l| {
                if let Head::Crossed(until) = l.head {
                    Some((l.nas, until))
                } else {
                    None
                }
            })
            .collect();
        for (other, until) in crossed {
            self.timers.remove(&(until, other, owner));
            self.renew_head(other, owner, now);
        }
    }

    /// Makes the heads ready whose time has come.
    pub fn wake(&mut self, now: u64) {
        while let Some(&(due, nas, owner)) = self.timers.first()
            && due <= now
        {
            self.timers.pop_first();
            self.renew_head(nas, owner, now);
        }
    }

    /// The tick at which `wake` has something to do.
    pub fn next_wake(&self) -> Option<u64> {
        self.timers.first().map(|t| t.0)
    }

    /// What should be read from the store now.
    pub fn wanted(&mut self) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        while let Some((nas, owner)) = self.refills.pop_front() {
            if let Some(lane) = lane_mut(&mut self.lanes, owner, nas)
                && lane.more
                && !lane.refilling
            {
                lane.refilling = true;
                wanted.push(Wanted::Refill(nas, owner));
            }
        }
        let share = self.window / self.nases.len().max(1);
        for (nas, queue) in &mut self.nases {
            let room = self.held < self.window * 3 / 4 || queue.held < share / 2;
            if room
                && queue.loading.is_none()
                && let Some(from) = queue.overflow.take()
            {
                queue.loading = Some(from);
                wanted.push(Wanted::Load(*nas, from));
            }
        }
        wanted
    }

    /// Ids in memory that wait.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Ids of one NAS in memory that wait.
    pub fn held_of(&self, nas: NasId) -> usize {
        self.nases.get(&nas).map_or(0, |q| q.held)
    }

    /// Whether one of the NAS's events waits for nothing but a place.
    pub fn has_ready(&self, nas: NasId) -> bool {
        let queue = self.nases.get(&nas);
        queue
            .is_some_and(|q| !q.interactive.is_empty() || q.ready.iter().any(|set| !set.is_empty()))
    }

    /// Whether the NAS has interactive events waiting.
    pub fn has_interactive(&self, nas: NasId) -> bool {
        self.nases
            .get(&nas)
            .is_some_and(|q| !q.interactive.is_empty())
    }

    fn keep(&mut self, w: &Waiting, now: u64, wall_ms: i64, new: bool) {
        let (nas, owner) = (w.nas, owner_of(w));
        if self.out.contains_key(&w.id) || self.dropped.contains(w.id) {
            return;
        }
        let room = self.has_room(nas);
        let queue = self.nases.entry(nas).or_default();
        let item = item(w, now, wall_ms);
        if w.class == Class::Interactive {
            // Bounded by their time to live; an operator waits for each.
            // Read again while it waits: it keeps its place.
            if let Entry::Vacant(place) = queue.interactive_facts.entry(w.id) {
                place.insert(item);
                queue.interactive.insert((item.since, w.id));
                self.note_kept(nas, Owner::Nas(nas), &item);
            }
            return;
        }
        if new && let Some(lane) = lane_mut(&mut self.lanes, owner, nas) {
            nudge(lane, &mut self.timers, owner, now);
        }
        let partly = queue.overflow.is_some() || queue.loading.is_some();
        match lane_mut(&mut self.lanes, owner, nas) {
            Some(lane) if lane.knows(w.id) => {}
            Some(lane) if lane.more || !room || (new && partly) || lane.queue.len() >= LANE_MAX => {
                lane.more = true;
                lane.missed |= lane.refilling;
            }
            Some(lane) => {
                lane.queue.push_back(item);
                self.note_kept(nas, owner, &item);
            }
            // Earlier events of this lane may stand in the store only: it is filled by index.
            None if new && partly && (room || matches!(w.class, Class::Access | Class::Cut)) => {
                let mut lane = Lane::new(nas);
                lane.more = true;
                self.lanes.entry(owner).or_default().push(lane);
            }
            None if !room || (new && partly) => lower(&mut queue.overflow, w.id),
            None => {
                let mut lane = Lane::new(nas);
                lane.queue.push_back(item);
                self.lanes.entry(owner).or_default().push(lane);
                self.note_kept(nas, owner, &item);
            }
        }
        self.renew_head(nas, owner, now);
    }

    /// Whether another id of this NAS is kept: while the window is not full, and up to its share
    /// whatever the others hold, for one that does not obey must not starve the rest.
    fn has_room(&self, nas: NasId) -> bool {
        let share = self.window / self.nases.len().max(1);
        self.held < self.window || self.held_of(nas) < share
    }

    fn note_kept(&mut self, nas: NasId, owner: Owner, item: &Item) {
        self.held += 1;
        self.nases.entry(nas).or_default().held += 1;
        if item.expires_ms > 0 {
            self.expiring.insert((item.expires_ms, item.id, nas, owner));
        }
    }

    pub(super) fn forget(&mut self, nas: NasId, n: usize) {
        self.held = self.held.saturating_sub(n);
        if let Some(queue) = self.nases.get_mut(&nas) {
            queue.held = queue.held.saturating_sub(n);
        }
    }

    /// Puts the lane's head where it belongs; removes a lane that is empty.
    pub(super) fn renew_head(&mut self, nas: NasId, owner: Owner, now: u64) {
        let Some(lane) = lane_mut(&mut self.lanes, owner, nas) else {
            return;
        };
        match lane.head {
            Head::Out(_) => return self.ask_refill(nas, owner),
            Head::Ready(class, since, id) => {
                if let Some(queue) = self.nases.get_mut(&nas)
                    && let Some(set) = queue.ready.get_mut(usize::from(class as u8))
                {
                    set.remove(&(since, id, owner));
                }
            }
            Head::Timed(at) | Head::Crossed(at) => {
                self.timers.remove(&(at, nas, owner));
            }
            Head::Idle => {}
        }
        lane.head = Head::Idle;
        if let Some(first) = lane.queue.front() {
            if first.due <= now {
                lane.head = Head::Ready(first.class, first.since, first.id);
                let key = (first.since, first.id, owner);
                if let Some(set) = self
                    .nases
                    .entry(nas)
                    .or_default()
                    .ready
                    .get_mut(usize::from(first.class as u8))
                {
                    set.insert(key);
                }
            } else {
                lane.head = Head::Timed(first.due);
                self.timers.insert((first.due, nas, owner));
            }
        } else if !lane.more {
            if let Some(all) = self.lanes.get_mut(&owner) {
                all.retain(|l| l.nas != nas);
                if all.is_empty() {
                    self.lanes.remove(&owner);
                }
            }
            return;
        }
        self.ask_refill(nas, owner);
    }

    fn ask_refill(&mut self, nas: NasId, owner: Owner) {
        if let Some(lane) = lane_mut(&mut self.lanes, owner, nas)
            && lane.more
            && !lane.refilling
            && lane.queue.len() <= REFILL_AT
        {
            self.refills.push_back((nas, owner));
        }
    }

    /// The ready head with the lowest class after ageing, then the oldest.
    fn best(&self, nas: NasId, now: u64) -> Option<(Class, (u64, EventId, Owner))> {
        let queue = self.nases.get(&nas)?;
        let aged = |class: Class, since: u64| {
            u64::from(class as u8).saturating_sub(now.saturating_sub(since) / AGEING_MS)
        };
        Class::ALL
            .into_iter()
            .zip(&queue.ready)
            .filter_map(|(class, set)| set.first().map(|key| (class, *key)))
            .min_by_key(|(class, key)| (aged(*class, key.0), key.0, key.1))
    }

    fn crossing(&mut self, nas: NasId, owner: Owner, id: EventId, now: u64) -> Crossing {
        let Some(all) = self.lanes.get(&owner) else {
            return Crossing::Free;
        };
        let earlier = all
            .iter()
            .any(|l| l.nas != nas && l.first().is_some_and(|f| f < id));
        if !earlier {
            return Crossing::Free;
        }
        let all_dark = all.iter().filter(|l| l.nas != nas).all(|l| {
            l.first().is_none_or(|f| f > id) || self.nases.get(&l.nas).is_some_and(|q| q.dark)
        });
        let wait = self.cross_wait_ms;
        let Some(lane) = lane_mut(&mut self.lanes, owner, nas) else {
            return Crossing::Free;
        };
        let since = *lane.crossed_since.get_or_insert(now);
        if all_dark || now >= since + wait {
            Crossing::Overtake
        } else {
            Crossing::Wait(since + wait)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crossing {
    Free,
    Overtake,
    Wait(u64),
}
