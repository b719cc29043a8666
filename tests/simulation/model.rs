//! The database as its contract describes it, in memory: every transition a compare-and-set on
//! (id, state, epoch, try), a turn all or nothing, reads as of one moment. What the real stores
//! do is compared with the same contract in `tests/store_contract`.

use std::collections::{BTreeMap, BTreeSet};

use nas_event_daemon::attempt::DoneResult;
use nas_event_daemon::event::{Class, EventId, StoredParams, UserId, Waiting};
use nas_event_daemon::nas::NasId;
use nas_event_daemon::store::{SettleTo, Started, Turn, Turned};

use super::Planted;

/// Deaths of the daemon after which an event is buried with the next (see `recover`).
const DEATHS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    Deferred,
    Running,
}

/// A row of the main stack.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub nas: i64,
    pub user: i64,
    pub class: Class,
    pub since_ms: i64,
    pub expires_ms: i64,
    pub next_try_ms: i64,
    pub state: State,
    pub epoch: i64,
    pub tries: u32,
    pub deaths: u32,
    pub dup: bool,
}

impl Row {
    /// An event as it is posted.
    pub fn new(nas: i64, user: i64, class: Class, since_ms: i64) -> Self {
        Self {
            nas,
            user,
            class,
            since_ms,
            expires_ms: 0,
            next_try_ms: 0,
            state: State::Ready,
            epoch: 0,
            tries: 0,
            deaths: 0,
            dup: false,
        }
    }
}

/// Where an event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Done(DoneResult),
    Dead,
}

/// A later owner has taken over.
pub struct Fenced;

pub struct Model {
    pub compact: BTreeMap<i64, Row>,
    pub stack: BTreeMap<i64, Row>,
    pub ended: BTreeMap<i64, End>,
    /// What ended, as it was then, and what of it was posted anew.
    pub past: BTreeMap<i64, Row>,
    pub retried: BTreeSet<i64>,
    pub epoch: i64,
    /// Times that an event was marked running, and times that it came back from there.
    pub marks: BTreeMap<i64, u32>,
    planted: Planted,
}

impl Model {
    pub fn new(planted: Planted) -> Self {
        Self {
            compact: BTreeMap::new(),
            stack: BTreeMap::new(),
            ended: BTreeMap::new(),
            past: BTreeMap::new(),
            retried: BTreeSet::new(),
            epoch: 0,
            marks: BTreeMap::new(),
            planted,
        }
    }

    /// A new owner: what the last one left running comes back, flagged.
    pub fn own(&mut self) -> i64 {
        self.epoch += 1;
        let epoch = self.epoch;
        let left: Vec<i64> = self
            .stack
            .iter()
            .filter(|(_, r)| r.state == State::Running && r.epoch < epoch)
            .map(|(id, _)| *id)
            .collect();
        for id in left {
            let row = self.stack.get_mut(&id).unwrap();
            if row.deaths >= DEATHS {
                row.dup = true;
                self.end(id, End::Dead);
                continue;
            }
            row.state = State::Ready;
            row.deaths += 1;
            row.dup |= self.planted != Planted::UnflaggedRecovery;
            row.next_try_ms = 0;
        }
        epoch
    }

    /// Moves up to `limit` rows, lowest ids first.
    pub fn expand(&mut self, epoch: i64, limit: usize) -> Result<Vec<Waiting>, Fenced> {
        self.fence(epoch)?;
        let mut moved = Vec::new();
        for _ in 0..limit {
            let Some((id, row)) = self.compact.pop_first() else {
                break;
            };
            moved.push(waiting(id, &row));
            self.stack.insert(id, row);
        }
        Ok(moved)
    }

    fn fence(&self, epoch: i64) -> Result<(), Fenced> {
        if epoch == self.epoch || self.planted == Planted::NoFence {
            Ok(())
        } else {
            Err(Fenced)
        }
    }

    pub fn load(&self, nas: NasId, from: EventId, limit: usize) -> Vec<Waiting> {
        self.waiting(|id, r| r.nas == nas.0 && id >= from.0, limit)
    }

    pub fn refill(&self, nas: NasId, user: i64, limit: usize) -> Vec<Waiting> {
        self.waiting(|_, r| r.nas == nas.0 && r.user == user, limit)
    }

    fn waiting(&self, which: impl Fn(i64, &Row) -> bool, limit: usize) -> Vec<Waiting> {
        self.stack
            .iter()
            .filter(|(id, r)| r.state != State::Running && which(**id, r))
            .take(limit)
            .map(|(id, r)| waiting(*id, r))
            .collect()
    }

    /// One writer turn: settles before starts, all of it or nothing.
    pub fn turn(&mut self, turn: &Turn) -> Result<Turned, Fenced> {
        self.fence(turn.epoch)?;
        let mut turned = Turned::default();
        for settle in &turn.settles {
            let id = settle.id.0;
            let Some(row) = self.stack.get_mut(&id) else {
                continue;
            };
            let claimed = match settle.try_count {
                Some(n) => {
                    let same = row.epoch == turn.epoch && row.tries == n;
                    row.state == State::Running && (same || self.planted == Planted::NoFence)
                }
                None => row.state != State::Running,
            };
            if !claimed {
                continue;
            }
            turned.settled.push(settle.id);
            match &settle.to {
                SettleTo::Done { result, .. } => self.end(id, End::Done(*result)),
                SettleTo::Dead {
                    possible_duplicate, ..
                } => {
                    row.dup |= possible_duplicate;
                    self.end(id, End::Dead);
                }
                SettleTo::Deferred {
                    until_ms,
                    possible_duplicate,
                } => {
                    row.state = State::Deferred;
                    row.next_try_ms = *until_ms;
                    row.dup |= possible_duplicate;
                }
                SettleTo::Ready { possible_duplicate } => {
                    row.state = State::Ready;
                    row.next_try_ms = 0;
                    row.dup |= possible_duplicate;
                    if settle.try_count.is_some() {
                        row.tries -= 1;
                    }
                }
            }
        }
        for id in &turn.starts {
            let Some(row) = self.stack.get_mut(&id.0) else {
                continue;
            };
            let ours = turn.again && row.state == State::Running && row.epoch == turn.epoch;
            if row.state == State::Running && !ours {
                continue;
            }
            if !ours {
                row.state = State::Running;
                row.epoch = turn.epoch;
                row.tries += 1;
                *self.marks.entry(id.0).or_default() += 1;
            }
            turned.started.push(started(*id, row));
        }
        Ok(turned)
    }

    /// An operator drops a waiting event.
    pub fn drop_event(&mut self, id: i64) -> bool {
        let waits = self
            .stack
            .get(&id)
            .is_some_and(|r| r.state != State::Running);
        if waits {
            self.end(id, End::Done(DoneResult::Dropped));
        }
        waits
    }

    fn end(&mut self, id: i64, how: End) {
        if let Some(row) = self.stack.remove(&id) {
            self.past.insert(id, row);
            self.ended.insert(id, how);
        }
    }

    /// Whether a dead event may be posted anew: nothing enters a lane in the past.
    pub fn may_retry(&self, id: i64) -> bool {
        if self.ended.get(&id) != Some(&End::Dead) || self.retried.contains(&id) {
            return false;
        }
        let dead = self.past[&id];
        let later = |(other, row): (&i64, &Row)| {
            let changes = row.class != Class::Interactive;
            *other > id && row.user == dead.user && row.nas == dead.nas && changes
        };
        let mut done = self.past.iter();
        let done = done.any(|one| later(one) && self.ended[one.0] != End::Dead);
        let mut posted = self.compact.range(id..);
        let posted = posted.any(|(_, row)| row.user == dead.user);
        dead.class == Class::Interactive || !(done || posted || self.stack.iter().any(later))
    }

    /// Posts a dead event anew, as `new`.
    pub fn retry(&mut self, id: i64, new: i64, since_ms: i64) {
        let dead = self.past[&id];
        let row = Row {
            dup: dead.dup,
            ..Row::new(dead.nas, dead.user, dead.class, since_ms)
        };
        self.retried.insert(id);
        self.compact.insert(new, row);
    }
}

pub fn waiting(id: i64, row: &Row) -> Waiting {
    Waiting {
        id: EventId(id),
        nas: NasId(row.nas),
        user: Some(UserId(row.user)),
        class: row.class,
        since_ms: row.since_ms,
        next_try_ms: row.next_try_ms,
        expires_ms: row.expires_ms,
        tries: row.tries,
        deaths: row.deaths,
    }
}

fn started(id: EventId, row: &Row) -> Started {
    Started {
        id,
        cmd: "user_add".to_owned(),
        user: Some(UserId(row.user)),
        abonent: None,
        usluga: None,
        params: StoredParams::default(),
        try_count: row.tries,
        possible_duplicate: row.dup,
        accepted_ms: 0,
    }
}
