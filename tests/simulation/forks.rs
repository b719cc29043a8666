//! What the simulated daemon does when an attempt or a turn ends: results are weighed, what was
//! claimed takes a fork or waits ahead, and goes back when it finds none; as `hear`, `start` and
//! `drain` of `dispatch` do it.

use std::collections::{BTreeMap, BTreeSet};

use nas_event_daemon::attempt::Outcome;
use nas_event_daemon::dispatch::ahead::Claimed;
use nas_event_daemon::dispatch::breaker::{Breaker, Evidence, Start};
use nas_event_daemon::dispatch::doubt::{self, Doubt};
use nas_event_daemon::dispatch::lanes::Gone;
use nas_event_daemon::dispatch::settle::{self, Facts};
use nas_event_daemon::event::{Class, EventId};
use nas_event_daemon::nas::{NasId, OnError};
use nas_event_daemon::store::{Settle, SettleTo, Started, Turned};

use super::Planted;
use super::daemon::{Begun, Daemon, Ended, Pool, RETRY_BASE, Waits, Written, done, unstarted};

const MAX_TRIES: u32 = 10;
/// Longest turn that counts, ms, and how much the last says of the next.
const TURN_MOST_MS: u64 = 100;
const TURN_WEIGHT: f64 = 0.1;

impl Pool {
    fn has_fork(&self, planted: Planted) -> bool {
        !self.stopping && (self.running < self.forks || planted == Planted::NoForkBound)
    }
}

impl Daemon {
    /// Looks at the results that came in, as `hear::ended` does: what was obeyed frees its fork
    /// at once and is written down after that.
    pub fn reap(&mut self, now: u64, wall_ms: i64, jitter: u32) -> Vec<Begun> {
        let mut begun = Vec::new();
        for rest in std::mem::take(&mut self.rests) {
            begun.extend(self.finished(&rest, now, wall_ms, jitter));
        }
        while let Some(ended) = self.ended.pop_front() {
            let obeyed = Evidence::of(&ended.report, &self.policy) == Evidence::Success;
            if !obeyed {
                begun.extend(self.finished(&ended, now, wall_ms, jitter));
                continue;
            }
            let Some(out) = self.out.get_mut(&ended.id) else {
                continue;
            };
            out.holds_fork = false;
            let nas = out.nas;
            if let Some(pool) = self.pools.get_mut(&nas) {
                pool.running -= 1;
            }
            self.rests.push_back(ended);
            begun.extend(self.follow(nas, now));
        }
        begun
    }

    /// As `fork::judge` and `hear::finished`.
    fn finished(&mut self, ended: &Ended, now: u64, wall_ms: i64, jitter: u32) -> Vec<Begun> {
        let Ended {
            id,
            user,
            report,
            ms,
        } = ended;
        let (id, user, ms) = (*id, *user, *ms);
        let Some(out) = self.out.get_mut(&id) else {
            return Vec::new();
        };
        out.finished = true;
        let out = *out;
        let Some(pool) = self.pools.get_mut(&out.nas) else {
            return Vec::new();
        };
        let evidence = Evidence::of(report, &self.policy);
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
        let outcome = settle::weighed(settle::settle(report, &facts), &facts, free, doubt);
        let change = pool
            .breaker
            .ended(now, out.ticket, Some(user), evidence, jitter);
        self.told.extend(change.map(|change| (out.nas, change)));
        if self.without_memory && pool.breaker.state() == "closed" {
            pool.breaker = Breaker::new();
        }
        pool.taken -= 1;
        if out.holds_fork {
            pool.running -= 1;
        }
        pool.ahead.ended(now, ms);
        let longest = self.heard.get(&out.nas).map_or(0, |(_, most)| *most);
        self.heard.insert(out.nas, (now, longest.max(ms)));
        let possible_duplicate =
            settle::possible_duplicate(report) && self.planted != Planted::UnflaggedUnknown;
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
        self.follow(out.nas, now)
    }

    /// The second half: the database answered. `since`: from when on its claims hold.
    pub fn end_turn(
        &mut self,
        written: Written,
        turned: Turned,
        now: u64,
        since: u64,
    ) -> Vec<Begun> {
        let ms = (now - written.began).min(TURN_MOST_MS) as f64;
        self.turn_ms += (ms - self.turn_ms) * TURN_WEIGHT;
        for (id, _) in &written.batch {
            if self.out.get(id).is_some_and(|out| !out.finished) {
                continue;
            }
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
        let mut nases = BTreeSet::new();
        for id in &written.turn.starts {
            let Some(out) = self.out.get_mut(id) else {
                continue;
            };
            let Some(pool) = self.pools.get_mut(&out.nas) else {
                continue;
            };
            let Some(event) = started.remove(id) else {
                pool.taken -= 1;
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
            pool.ahead.push(Claimed {
                id: *id,
                interactive: out.ticket.is_probe() || out.taken.class == Class::Interactive,
                since,
                start: Waits {
                    event,
                    sure: written.sure,
                },
            });
            nases.insert(out.nas);
        }
        let begun = nases
            .into_iter()
            .flat_map(|nas| self.follow(nas, now))
            .collect();
        self.want();
        begun
    }

    /// A turn that failed and of which the daemon believes that nothing of it was written.
    pub fn give_up_turn(&mut self, written: Written, now: u64) {
        let nothing = Turned::default();
        self.end_turn(written, nothing, now, now);
    }

    pub(super) fn places(&self, nas: NasId, pool: &Pool, now: u64) -> usize {
        if pool.stopping {
            return 0;
        }
        let at = match self.heard.get(&nas) {
            // As if it had just answered.
            Some((last, _)) if self.planted == Planted::AheadOfTheSilent => *last,
            _ => now,
        };
        let ahead = pool.ahead.places(pool.forks, at, self.turn_ms);
        let more = match self.planted {
            Planted::NoForkBound => pool.forks,
            _ => 0,
        };
        (pool.forks + ahead + more).saturating_sub(pool.taken)
    }

    /// What is ahead runs, as far as there are forks.
    pub(super) fn follow(&mut self, nas: NasId, now: u64) -> Vec<Begun> {
        let mut begun = Vec::new();
        let planted = self.planted;
        let Some(pool) = self.pools.get_mut(&nas) else {
            return begun;
        };
        if (self.leaving && planted != Planted::AheadAfterTheEnd)
            || (pool.paused && planted != Planted::AheadInAPause)
        {
            return begun;
        }
        while pool.has_fork(planted)
            && (!pool.ahead.is_late(now) || planted == Planted::AheadStartsLate)
            && let Some(claimed) = pool.ahead.pop()
        {
            let Some(out) = self.out.get_mut(&claimed.id) else {
                pool.taken -= 1;
                continue;
            };
            let gate = match pool.breaker.may_start(now) {
                _ if self.without_breaker => Start::Free,
                gate => gate,
            };
            if claimed.since < now && !out.ticket.is_probe() {
                if gate != Start::Free && planted != Planted::AheadOfTheBroken {
                    pool.ahead.push(claimed);
                    return begun;
                }
                out.ticket = pool.breaker.renewed(out.ticket);
            }
            pool.running += 1;
            out.holds_fork = true;
            let Waits { event, sure } = claimed.start;
            begun.push(Begun {
                event,
                out: *out,
                forks: pool.forks,
                sure: sure == Some(self.taken_up),
                at: now,
                gate,
            });
        }
        begun
    }

    /// Events ahead go back, as `start::give_back` says.
    pub(super) fn give_back(&mut self, now: u64) {
        if self.planted == Planted::AheadStays {
            return;
        }
        for (nas, pool) in self.pools.iter_mut().filter(|(_, p)| !p.ahead.is_empty()) {
            let broken = pool.breaker.may_start(now) != Start::Free && !self.without_breaker;
            let all = self.leaving || pool.stopping || pool.paused || broken;
            for claimed in pool.ahead.overdue(now, all) {
                pool.taken -= 1;
                let Some(out) = self.out.get_mut(&claimed.id) else {
                    continue;
                };
                out.finished = true;
                if out.ticket.is_probe() {
                    pool.breaker
                        .ended(now, out.ticket, None, Evidence::Nothing, 0);
                }
                self.went_back += 1;
                let mut settle = unstarted(
                    claimed.id,
                    SettleTo::Ready {
                        possible_duplicate: self.planted == Planted::BackWithAFlag,
                    },
                );
                settle.try_count = Some(out.try_count);
                let mut gone = match self.planted {
                    Planted::BackFreesTheLane => Gone::Finished,
                    _ => Gone::Back,
                };
                if pool.stopping && out.taken.class == Class::Interactive {
                    settle.to = SettleTo::Dead {
                        reason: format!("NAS {nas} is no longer served"),
                        possible_duplicate: false,
                    };
                    gone = Gone::Finished;
                }
                self.settles.push((settle, gone));
            }
        }
    }

    /// The time of a daemon that leaves is over: its attempts end where they are, and go back.
    pub fn cut(&mut self) {
        for (id, out) in &mut self.out {
            if out.finished || out.try_count == 0 {
                continue;
            }
            out.finished = true;
            let to = SettleTo::Ready {
                possible_duplicate: true,
            };
            let mut settle = unstarted(*id, to);
            settle.try_count = Some(out.try_count);
            self.settles.push((settle, Gone::Released));
        }
    }

    /// Whether a daemon that leaves has written everything down.
    pub fn has_left(&self) -> bool {
        self.leaving && self.written.is_none() && self.out.is_empty() && self.settles.is_empty()
    }
}
