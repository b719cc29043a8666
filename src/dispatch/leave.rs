//! How waiting events leave the lanes without being started: their time has run out, nobody
//! can answer them, their NAS is no longer served, an operator dropped them. Pure, like `lanes`.

use std::collections::{HashSet, VecDeque};

use super::lane::{Head, lane_mut};
use super::lanes::{Lanes, Owner};
use crate::event::{EventId, UserId};
use crate::nas::NasId;

/// Dropped ids that are remembered: many times what operators drop while one page of rows is
/// read.
const DROPPED_MAX: usize = 1_000;

/// The last dropped ids; of too many the one that was dropped first is forgotten, whatever its
/// number is.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
}

impl Dropped {
    pub(super) fn contains(&self, id: EventId) -> bool {
        self.ids.contains(&id)
    }

    fn note(&mut self, id: EventId) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > DROPPED_MAX
            && let Some(first) = self.order.pop_front()
        {
            self.ids.remove(&first);
        }
    }
}

impl Lanes {
    /// An operator dropped this waiting event; the store has it no more. What waited behind it
    /// may start.
    pub fn drop_event(&mut self, id: EventId, nas: NasId, user: Option<UserId>, now: u64) {
        let owner = user.map_or(Owner::Nas(nas), Owner::User);
        self.dropped.note(id);
        self.take_out(id, nas, owner, now);
    }

    /// Takes a waiting event out, wherever it stands; `false` if it waits nowhere.
    fn take_out(&mut self, id: EventId, nas: NasId, owner: Owner, now: u64) -> bool {
        if let Some(queue) = self.nases.get_mut(&nas)
            && let Some(item) = queue.interactive_facts.remove(&id)
        {
            queue.interactive.remove(&(item.since, id));
            self.expiring
                .remove(&(item.expires_ms, id, nas, Owner::Nas(nas)));
            self.forget(nas, 1);
            return true;
        }
        let Some(lane) = lane_mut(&mut self.lanes, owner, nas) else {
            return false;
        };
        let Some(at) = lane.queue.iter().position(|i| i.id == id) else {
            return false;
        };
        if at == 0 {
            // The next head has a wait of its own for other NASes.
            lane.crossed_since = None;
        }
        if let Some(item) = lane.queue.remove(at) {
            self.expiring.remove(&(item.expires_ms, id, nas, owner));
            self.forget(nas, 1);
        }
        self.renew_head(nas, owner, now);
        self.look_again(owner, now);
        true
    }

    /// Takes out the waiting events whose time to live has ended.
    pub fn expire(&mut self, now: u64, wall_ms: i64) -> Vec<(EventId, NasId)> {
        let mut gone = Vec::new();
        while let Some(&(expires, id, nas, owner)) = self.expiring.first()
            && expires <= wall_ms
        {
            self.expiring.pop_first();
            if self.take_out(id, nas, owner, now) {
                gone.push((id, nas));
            }
        }
        gone
    }

    /// Takes out every interactive event of a NAS: they fail at once while it is dark.
    pub fn fail_interactive(&mut self, nas: NasId) -> Vec<EventId> {
        let Some(queue) = self.nases.get_mut(&nas) else {
            return Vec::new();
        };
        let ids: Vec<EventId> = std::mem::take(&mut queue.interactive)
            .into_iter()
            .map(|k| k.1)
            .collect();
        let facts = std::mem::take(&mut queue.interactive_facts);
        for (id, item) in facts {
            self.expiring
                .remove(&(item.expires_ms, id, nas, Owner::Nas(nas)));
        }
        self.forget(nas, ids.len());
        ids
    }

    /// Forgets what waits for a NAS that is no longer served; it stays in the store, but for
    /// the interactive events, which are given back: nobody waits for them any longer.
    pub fn drop_nas(&mut self, nas: NasId) -> Vec<EventId> {
        let interactive = self.fail_interactive(nas);
        let owners: Vec<Owner> = self
            .lanes
            .iter()
            .filter(|(_, all)| all.iter().any(|l| l.nas == nas))
            .map(|(owner, _)| *owner)
            .collect();
        for owner in owners {
            let Some(lane) = lane_mut(&mut self.lanes, owner, nas) else {
                continue;
            };
            let gone = lane.queue.len();
            for item in lane.queue.drain(..) {
                self.expiring
                    .remove(&(item.expires_ms, item.id, nas, owner));
            }
            // Rows that were asked for before may come after the NAS is served again, and would
            // then stand before lower ids: they are not taken.
            lane.stale = lane.refilling;
            lane.more = lane.refilling || matches!(lane.head, Head::Out(_));
            self.forget(nas, gone);
            self.renew_head(nas, owner, 0);
        }
        if let Some(queue) = self.nases.get_mut(&nas) {
            queue.overflow = None;
            queue.stale = queue.loading.is_some();
            queue.dark = true;
        }
        interactive
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Class, Waiting};

    #[test]
    fn who_asked_a_dark_nas_is_named_once_and_forgotten() {
        let mut lanes = Lanes::new(10, 0);
        for id in 1..=2 {
            let asked = Waiting {
                id: EventId(id),
                nas: NasId(7),
                user: None,
                class: Class::Interactive,
                since_ms: 0,
                next_try_ms: 0,
                expires_ms: 5_000,
                tries: 0,
                deaths: 0,
            };
            lanes.add(&asked, 0, 0);
        }
        assert_eq!(lanes.fail_interactive(NasId(7)), [EventId(1), EventId(2)]);
        assert_eq!(lanes.held_of(NasId(7)), 0);
        assert!(lanes.expire(0, 9_999).is_empty(), "nobody waits for them");
    }

    #[test]
    fn the_oldest_drop_is_forgotten_not_the_lowest_id() {
        let mut dropped = Dropped::default();
        // A low id that is dropped last is the one that a late page of rows may still hold.
        let ids = || (10..10 + DROPPED_MAX as i64).chain([1]).map(EventId);
        ids().for_each(|id| dropped.note(id));
        assert!(dropped.contains(EventId(1)));
        assert!(!dropped.contains(EventId(10)), "dropped first");
        assert_eq!(
            ids().filter(|id| dropped.contains(*id)).count(),
            DROPPED_MAX
        );
        dropped.note(EventId(1));
        assert!(
            dropped.contains(EventId(11)),
            "a second drop costs nobody's place"
        );
    }
}
