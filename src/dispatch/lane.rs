//! One lane: an account's waiting events on one NAS, its head, and how a head is woken; and what
//! waits for one NAS, over all lanes.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::lanes::{Owner, SUSPECT_DEATHS};
use crate::event::{Class, EventId, Waiting};
use crate::nas::NasId;

#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) id: EventId,
    pub(super) class: Class,
    pub(super) since: u64,
    pub(super) due: u64,
    pub(super) expires_ms: i64,
    pub(super) suspect: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Nothing to do, or a refill is awaited.
    Idle,
    /// In the NAS's ready set under this key.
    Ready(Class, u64, EventId),
    /// In `timers` under this time.
    Timed(u64),
    /// Waits for an earlier event of the account on another NAS; also in `timers`.
    Crossed(u64),
    /// Handed out by `take`, not yet settled.
    Out(EventId),
}

/// What waits for one NAS, over all lanes.
#[derive(Debug, Default)]
pub(super) struct NasQueue {
    pub(super) ready: [BTreeSet<(u64, EventId, Owner)>; 5],
    pub(super) interactive: BTreeSet<(u64, EventId)>,
    pub(super) interactive_facts: HashMap<EventId, Item>,
    pub(super) held: usize,
    pub(super) overflow: Option<EventId>,
    pub(super) loading: Option<EventId>,
    /// The page under way was asked for before the NAS was given up: it is read anew.
    pub(super) stale: bool,
    pub(super) dark: bool,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) nas: NasId,
    pub(super) queue: VecDeque<Item>,
    pub(super) head: Head,
    /// The item that is out; it comes back if it is deferred.
    pub(super) out: Option<Item>,
    pub(super) more: bool,
    pub(super) refilling: bool,
    /// The refill under way was asked for before the NAS was given up: it is asked for anew.
    pub(super) stale: bool,
    /// An event was handed over but not kept while a refill was under way.
    pub(super) missed: bool,
    /// A new event came while the head was out: a deferral of the head is cut short once.
    pub(super) nudged: bool,
    pub(super) crossed_since: Option<u64>,
}

impl Lane {
    pub(super) fn new(nas: NasId) -> Self {
        Self {
            nas,
            queue: VecDeque::new(),
            head: Head::Idle,
            out: None,
            more: false,
            refilling: false,
            stale: false,
            missed: false,
            nudged: false,
            crossed_since: None,
        }
    }

    /// The lowest id that it may hold: while rows are to be read that nobody knows, the lowest
    /// of all.
    pub(super) fn first(&self) -> Option<EventId> {
        self.out
            .or_else(|| self.queue.front().copied())
            .map(|item| item.id)
            .or_else(|| self.more.then_some(EventId(0)))
    }

    pub(super) fn knows(&self, id: EventId) -> bool {
        self.out.is_some_and(|i| i.id == id) || self.queue.iter().any(|i| i.id == id)
    }
}

/// A new event makes a deferred head ready at once, once per new event.
pub(super) fn nudge(
    lane: &mut Lane,
    timers: &mut BTreeSet<(u64, NasId, Owner)>,
    owner: Owner,
    now: u64,
) {
    lane.nudged = true;
    if let Head::Timed(at) = lane.head
        && let Some(first) = lane.queue.front_mut()
    {
        first.due = now;
        timers.remove(&(at, lane.nas, owner));
        lane.head = Head::Idle;
    }
}

pub(super) fn lane_mut(
    lanes: &mut HashMap<Owner, Vec<Lane>>,
    owner: Owner,
    nas: NasId,
) -> Option<&mut Lane> {
    lanes.get_mut(&owner)?.iter_mut().find(|l| l.nas == nas)
}

pub(super) fn lower(mark: &mut Option<EventId>, id: EventId) {
    *mark = Some(mark.map_or(id, |m| m.min(id)));
}

pub(super) fn item(w: &Waiting, now: u64, wall_ms: i64) -> Item {
    let age = u64::try_from(wall_ms.saturating_sub(w.since_ms)).unwrap_or(0);
    let wait = if w.next_try_ms > 0 {
        u64::try_from(w.next_try_ms - wall_ms).unwrap_or(0)
    } else {
        0
    };
    Item {
        id: w.id,
        class: w.class,
        since: now.saturating_sub(age),
        due: if wait > 0 { now + wait } else { 0 },
        expires_ms: w.expires_ms,
        suspect: w.deaths >= SUSPECT_DEATHS,
    }
}

/// Whose lane an event belongs to.
pub(super) fn owner_of(w: &Waiting) -> Owner {
    w.user.map_or(Owner::Nas(w.nas), Owner::User)
}
