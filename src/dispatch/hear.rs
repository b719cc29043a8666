//! What the scheduler hears and what follows from it: events handed over, ended attempts, rows
//! read for lanes, changed settings, time to live, interactive events that cannot be asked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::attempts::{Ended, Joined};
use super::breaker::{Evidence, Start};
use super::fork::random;
use super::knock::Knock;
use super::lane::owner_of;
use super::lanes::{Gone, Owner, REFILL_ROWS, Wanted};
use super::parent::Settings;
use super::plan::Step;
use super::pool::Pool;
use super::scheduler::{Scheduler, State};
use super::{Finished, Message};
use crate::attempt::DoneResult;
use crate::clock;
use crate::event::{Class, EventId, UserId, Waiting};
use crate::nas::NasId;
use crate::store::{Error, Settle, SettleTo, chain};

/// Rows of one page when ids are loaded.
const PAGE: usize = 500;
/// Lanes refilled by one question: a few milliseconds of reading.
const REFILL_LANES: usize = 200;
/// A driver gives the last refusal to who comes so shortly behind it, ms; a NAS that was mended in
/// that moment is asked after it.
pub(super) const STALE_MS: u64 = 500;
/// Wait before rows that could not be read are read again.
const READ_AGAIN: Duration = Duration::from_millis(500);

impl State {
    /// Leaves out rows whose end is not written yet: it should not be written together with a claim.
    /// Not where as many were asked for: their number says whether there are more.
    fn without_ended(&self, rows: &mut Vec<Waiting>, asked: usize) {
        let ended = self.settles.iter().filter(|(s, _)| s.try_count.is_none());
        let ended: HashSet<EventId> = ended.map(|(s, _)| s.id).collect();
        if !ended.is_empty() && rows.len() < asked {
            rows.retain(|w| !ended.contains(&w.id));
        }
    }
}

impl Scheduler {
    pub(super) fn hear(&self, s: &mut State, message: Message) {
        let (now, wall_ms) = (clock::tick_ms(), clock::wall_ms());
        match message {
            Message::Waiting(events) => {
                for w in &events {
                    match s.pools.get(&w.nas) {
                        Some(pool) if !pool.stopping => {
                            s.lanes.add(&self.clamped(w, wall_ms), now, wall_ms)
                        }
                        // Read before it was handed over, it may run already: its result counts.
                        _ if w.class == Class::Interactive && !s.out.contains_key(&w.id) => {
                            let why = s
                                .skipped
                                .get(&w.nas)
                                .map_or("it is not served", |skip| skip.why.as_str());
                            let reason = format!("nobody can ask NAS {}: {why}", w.nas);
                            s.settles
                                .push((unstarted(w.id, dead(reason)), Gone::Finished));
                            s.answers = true;
                            self.untold(s, w.id, w.nas);
                        }
                        // It stands in the store and is loaded when the NAS is served.
                        _ => {}
                    }
                }
            }
            Message::Finished(finished) => self.finished(s, finished),
            Message::Refilled(lanes, rows) => {
                s.refilling = false;
                let mut of_lane: HashMap<(NasId, Owner), Vec<Waiting>> = HashMap::new();
                for w in rows.iter().flatten() {
                    let waiting = self.clamped(w, wall_ms);
                    let lane = of_lane.entry((w.nas, owner_of(w))).or_default();
                    lane.push(waiting);
                }
                for lane in lanes {
                    let mut kept = of_lane.remove(&lane).unwrap_or_default();
                    s.without_ended(&mut kept, REFILL_ROWS);
                    let kept = match s.pools.get(&lane.0) {
                        Some(pool) if !pool.stopping => rows.is_some().then_some(kept.as_slice()),
                        // It stopped meanwhile: its events stay in the store.
                        _ => Some(&[][..]),
                    };
                    s.lanes.refilled(lane.0, lane.1, kept, now, wall_ms);
                }
            }
            Message::Loaded(nas, _) if s.pools.get(&nas).is_none_or(|p| p.stopping) => {
                // It stopped meanwhile: its events stay in the store.
                s.lanes.loaded(nas, &[], false, now, wall_ms);
            }
            Message::Loaded(nas, None) => s.lanes.load_failed(nas),
            Message::Loaded(nas, Some((mut rows, full))) => {
                s.without_ended(&mut rows, if full { 0 } else { usize::MAX });
                let rows: Vec<Waiting> = rows.iter().map(|w| self.clamped(w, wall_ms)).collect();
                s.lanes.loaded(nas, &rows, full, now, wall_ms);
            }
            Message::Dropped(id, nas, user) => s.lanes.drop_event(id, nas, user, now),
            Message::Resumed(nas) => {
                if let Some(pool) = s.pools.get(&nas) {
                    pool.breaker().poke(now.saturating_add(STALE_MS));
                }
            }
            Message::Settings(settings) => {
                self.apply(s, settings, now);
                let nases: Vec<NasId> = s.pools.keys().copied().collect();
                for nas in nases {
                    self.follow(s, nas);
                }
                // Who asks what a change has done must not be told what was before.
                s.status_at = 0;
            }
        }
    }

    /// The wait of a deferred event, bounded: a clock that was set back must not stall it.
    pub(super) fn clamped(&self, w: &Waiting, wall_ms: i64) -> Waiting {
        let base = i64::try_from(self.config.retry_base.as_millis()).unwrap_or(i64::MAX);
        let most = wall_ms.saturating_add(base.saturating_mul(i64::from(w.tries)));
        Waiting {
            next_try_ms: w.next_try_ms.min(most),
            ..*w
        }
    }

    pub(super) fn finished(&self, s: &mut State, f: Finished) {
        let Some(out) = s.out.get_mut(&f.id) else {
            return;
        };
        out.finished = true;
        s.answers |= out.taken.class == Class::Interactive;
        let nas = out.nas;
        let (result, gone) = match &f.to {
            SettleTo::Done { result, .. } => (result.as_str(), Gone::Finished),
            SettleTo::Dead { .. } => ("dead", Gone::Finished),
            SettleTo::Deferred { .. } => ("deferred", Gone::Deferred(f.due)),
            SettleTo::Ready { .. } => ("ready", Gone::Released),
        };
        if let Some(pool) = s.pools.get_mut(&out.nas) {
            pool.taken = pool.taken.saturating_sub(1);
            if out.holds_fork {
                pool.running = pool.running.saturating_sub(1);
            }
            pool.took(clock::tick_ms(), f.ms);
            match &f.to {
                SettleTo::Done { .. } => pool.done += 1,
                SettleTo::Dead { .. } => pool.dead += 1,
                SettleTo::Deferred { .. } => pool.deferred += 1,
                SettleTo::Ready { .. } => {}
            }
            super::status::count_attempt(&pool.served, result, f.ms);
        }
        if let (Gone::Finished, Some((accepted_ms, cmd))) = (&gone, out.accepted) {
            super::status::count_event(cmd, result, accepted_ms);
        }
        let settle = Settle {
            id: f.id,
            try_count: Some(f.try_count),
            to: f.to,
            code: f.code,
            ms: f.ms,
            error: f.error,
        };
        s.settles.push((settle, gone));
        self.follow(s, nas);
    }

    pub(super) fn ended(&self, s: &mut State, ended: Joined) {
        match ended {
            Ok((task, Ended::Finished(finished))) => {
                s.tasks.remove(&task);
                self.finished(s, *finished);
            }
            Ok((task, Ended::Obeyed(rest))) => {
                s.tasks.remove(&task);
                let id = rest.event();
                let task = s.attempts.conclude(rest);
                s.tasks.insert(task.id(), id);
                let Some(out) = s.out.get_mut(&id) else {
                    return;
                };
                out.holds_fork = false;
                let nas = out.nas;
                if let Some(pool) = s.pools.get_mut(&nas) {
                    pool.running = pool.running.saturating_sub(1);
                }
                self.follow(s, nas);
            }
            Err(error) => {
                // A bug in an executor: the event is not lost, and nobody else is hurt.
                let Some(id) = s.tasks.remove(&error.id()) else {
                    return;
                };
                let Some(out) = s.out.get(&id) else { return };
                if let Some(pool) = s.pools.get(&out.nas) {
                    pool.breaker().ended(
                        clock::tick_ms(),
                        out.ticket,
                        None,
                        Evidence::Other,
                        random(),
                    );
                }
                let reason =
                    "the attempt ended by a bug of the daemon (panic); please report it".to_owned();
                tracing::error!("event={id} {reason}");
                let finished = Finished {
                    id,
                    user: None,
                    nas: out.nas,
                    try_count: out.try_count,
                    // Nobody knows how far it got.
                    to: SettleTo::Dead {
                        reason: reason.clone(),
                        possible_duplicate: true,
                    },
                    due: 0,
                    code: 70,
                    ms: 0,
                    error: Some(reason),
                };
                self.untold(s, id, finished.nas);
                self.finished(s, finished);
            }
        }
    }

    pub(super) fn reap(&self, s: &mut State) {
        while let Some(ended) = s.attempts.try_next() {
            self.ended(s, ended);
        }
        while s.readers.try_join_next().is_some() {}
    }

    pub(super) fn expire(&self, s: &mut State, now: u64, wall_ms: i64) {
        for (id, nas) in s.lanes.expire(now, wall_ms) {
            let to = SettleTo::Done {
                result: DoneResult::Expired,
                answer: None,
                scheme_hash: String::new(),
            };
            s.settles.push((unstarted(id, to), Gone::Finished));
            self.untold(s, id, nas);
        }
    }

    /// While a NAS is paused or its breaker is open, an operator must not wait for an answer.
    pub(super) fn fail_interactive(&self, s: &mut State, now: u64, wall_ms: i64) {
        let mut failed = Vec::new();
        for (nas, pool) in &s.pools {
            if !s.lanes.has_interactive(*nas) {
                continue;
            }
            let why = if pool.is_paused(wall_ms) {
                Some("it is paused".to_owned())
            } else if pool.stopping {
                Some("it is no longer served".to_owned())
            } else {
                let breaker = pool.breaker();
                (breaker.may_start(now) != Start::Free).then(|| breaker.reason().to_owned())
            };
            if let Some(why) = why {
                failed.push((*nas, why));
            }
        }
        for (nas, why) in failed {
            for id in s.lanes.fail_interactive(nas) {
                let reason = format!("NAS {nas} cannot be asked now: {why}");
                s.settles
                    .push((unstarted(id, dead(reason)), Gone::Finished));
                self.untold(s, id, nas);
            }
        }
    }

    pub(super) fn apply(&self, s: &mut State, settings: Settings, now: u64) {
        s.skipped = settings.skipped;
        for step in settings.steps {
            match step {
                Step::Stop(nas) => {
                    if let Some(pool) = s.pools.get_mut(&nas) {
                        pool.stopping = true;
                    }
                    let why = s
                        .skipped
                        .get(&nas)
                        .map_or("its row is gone", |skip| skip.why.as_str());
                    let reason = format!("NAS {nas} is no longer served: {why}");
                    for id in s.lanes.drop_nas(nas) {
                        s.settles
                            .push((unstarted(id, dead(reason.clone())), Gone::Finished));
                        self.untold(s, id, nas);
                    }
                }
                Step::Change(nas, served) => {
                    super::status::count_from_now_on(&served.nas);
                    if let Some(pool) = s.pools.get_mut(&nas) {
                        if served.may_mend(&pool.served) {
                            pool.breaker().poke(now);
                        }
                        pool.log = self.logs.nas_file(&served.log_name);
                        pool.served = served;
                        // Its door may be another one now.
                        pool.knock = Knock::default();
                    }
                }
                Step::Start(nas, served) => {
                    super::status::count_from_now_on(&served.nas);
                    let log = self.logs.nas_file(&served.log_name);
                    match s.pools.get_mut(&nas) {
                        Some(pool) => {
                            // It was stopped and still has running events.
                            pool.stopping = false;
                            pool.breaker().poke(now);
                            pool.log = log;
                            pool.served = served;
                        }
                        None => {
                            s.pools.insert(nas, Pool::new(served, log));
                        }
                    }
                    s.lanes.expect(nas);
                }
            }
        }
        s.pools.retain(|_, p| !(p.stopping && p.taken == 0));
    }

    pub(super) fn read_wanted(&self, s: &mut State) {
        let wall_ms = clock::wall_ms();
        for (nas, pool) in &s.pools {
            let dark =
                pool.stopping || pool.is_paused(wall_ms) || pool.breaker().state() != "closed";
            s.lanes.set_dark(*nas, dark);
        }
        for wanted in s.lanes.wanted() {
            match wanted {
                Wanted::Refill(nas, owner) => s.refills.push_back((nas, owner)),
                Wanted::Load(nas, from) => {
                    let (store, sender) = (Arc::clone(&self.store), self.sender.clone());
                    s.readers.spawn(async move {
                        let rows = told(store.load(nas, from, PAGE).await).await;
                        let rows = rows.map(|r| {
                            let full = r.len() >= PAGE;
                            (r, full)
                        });
                        // Only fails when the scheduler has ended.
                        let _ = sender.send(Message::Loaded(nas, rows)).await;
                    });
                }
            }
        }
        if !s.refilling && !s.refills.is_empty() {
            // One question at a time: what gathers meanwhile is the next one.
            s.refilling = true;
            let n = s.refills.len().min(REFILL_LANES);
            let lanes: Vec<(NasId, Owner)> = s.refills.drain(..n).collect();
            let (store, sender) = (Arc::clone(&self.store), self.sender.clone());
            s.readers.spawn(async move {
                let keys: Vec<(NasId, Option<UserId>)> = lanes
                    .iter()
                    .map(|(nas, owner)| match owner {
                        Owner::User(user) => (*nas, Some(*user)),
                        Owner::Nas(_) => (*nas, None),
                    })
                    .collect();
                let rows = told(store.refill(&keys, REFILL_ROWS).await).await;
                let _ = sender.send(Message::Refilled(lanes, rows)).await;
            });
        }
    }
}

/// For what was never sent.
fn dead(reason: String) -> SettleTo {
    SettleTo::Dead {
        reason,
        possible_duplicate: false,
    }
}

fn unstarted(id: EventId, to: SettleTo) -> Settle {
    let error = match &to {
        SettleTo::Dead { reason, .. } => Some(reason.clone()),
        SettleTo::Done { .. } | SettleTo::Deferred { .. } | SettleTo::Ready { .. } => None,
    };
    Settle {
        id,
        try_count: None,
        to,
        code: 0,
        ms: 0,
        error,
    }
}

/// The rows, or none after a pause: a database that is away is not asked in a circle.
async fn told<T>(read: Result<T, Error>) -> Option<T> {
    match read {
        Ok(rows) => Some(rows),
        Err(error) => {
            tracing::warn!("waiting events cannot be read now: {}", chain(&error));
            tokio::time::sleep(READ_AGAIN).await;
            None
        }
    }
}

#[cfg(test)]
#[path = "hear_test.rs"]
mod tests;
