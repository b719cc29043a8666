//! From a written claim to a fork: at once if one is free, else ahead, to follow the next that
//! ends; and back to ready if none becomes free.

use std::collections::HashMap;
use std::sync::Arc;

use super::Finished;
use super::ahead::Claimed;
use super::attempts::Ended;
use super::breaker::{Evidence, Start};
use super::fork::Fork;
use super::lanes::Gone;
use super::pool::Pool;
use super::scheduler::{OutEvent, Scheduler, State};
use crate::attempt::Job;
use crate::clock;
use crate::event::{self, Class, Cmd, EventId, Params};
use crate::nas::NasId;
use crate::store::{Settle, SettleTo, Started, Turn, Turned};

impl Scheduler {
    /// What the turn has claimed runs, as far as there are forks.
    /// `since`: from when on its claims hold.
    pub(super) fn start(&self, s: &mut State, turn: &Turn, turned: Turned, since: u64) {
        let now = clock::tick_ms();
        let mut started: HashMap<EventId, Started> =
            turned.started.into_iter().map(|e| (e.id, e)).collect();
        let mut nases = Vec::new();
        for id in &turn.starts {
            let Some(out) = s.out.get_mut(id) else {
                continue;
            };
            let Some(pool) = s.pools.get_mut(&out.nas) else {
                continue;
            };
            let Some(event) = started.remove(id) else {
                // Dropped by an operator, or gone otherwise: there is nothing to run.
                pool.taken = pool.taken.saturating_sub(1);
                pool.breaker()
                    .ended(now, out.ticket, None, Evidence::Nothing, 0);
                s.out.remove(id);
                if s.alone == Some(*id) {
                    s.alone = None;
                }
                s.lanes.settled(*id, Gone::Finished, now);
                continue;
            };
            out.try_count = event.try_count;
            out.accepted = Some((event.accepted_ms, event::label(&event.cmd)));
            pool.ahead.push(Claimed {
                id: *id,
                // A probe was counted when it was picked, and takes its fork at once.
                interactive: out.ticket.is_probe() || out.taken.class == Class::Interactive,
                since,
                start: event,
            });
            if nases.last() != Some(&out.nas) {
                nases.push(out.nas);
            }
        }
        for nas in nases {
            self.follow(s, nas);
        }
    }

    /// What is ahead runs, as far as there are forks.
    pub(super) fn follow(&self, s: &mut State, nas: NasId) {
        let Some(pool) = s.pools.get_mut(&nas) else {
            return;
        };
        let now = clock::tick_ms();
        // A turn that the database does not take may last: nobody hears meanwhile what has changed.
        if pool.ahead.is_empty() || s.stop.is_cancelled() || pool.is_paused(clock::wall_ms()) {
            return;
        }
        while pool.has_fork()
            && !pool.ahead.is_late(now)
            && let Some(claimed) = pool.ahead.pop()
        {
            let Some(out) = s.out.get_mut(&claimed.id) else {
                pool.taken = pool.taken.saturating_sub(1);
                continue;
            };
            let id = claimed.id;
            if claimed.since < now && !out.ticket.is_probe() {
                if pool.may_start(now) != Start::Free {
                    // It goes back with the others, in the next round.
                    pool.ahead.push(claimed);
                    return;
                }
                // What is learned from it counts from now on, not from when it was picked.
                out.ticket = pool.breaker().renewed(out.ticket);
            }
            let mut event = claimed.start;
            let fork = self.fork(pool, out);
            let params = std::mem::take(&mut event.params);
            pool.running += 1;
            out.holds_fork = true;
            let task = match self.job(pool, out.taken.class, event) {
                Ok(job) => s.attempts.start(fork.run(job, params)),
                Err(finished) => {
                    pool.breaker()
                        .ended(now, out.ticket, None, Evidence::Nothing, 0);
                    s.untold.insert(id, Some(pool.log.clone()));
                    s.attempts
                        .start(async move { Ended::Finished(Box::new(finished)) })
                }
            };
            s.tasks.insert(task.id(), id);
        }
    }

    /// Events ahead go back to ready when no fork becomes free for them, and at once when nothing
    /// may be sent to their NAS: nothing of them has run.
    pub(super) fn give_back(&self, s: &mut State, now: u64, wall_ms: i64, stopping: bool) {
        for pool in s.pools.values_mut().filter(|p| !p.ahead.is_empty()) {
            let all = stopping
                || pool.stopping
                || pool.is_paused(wall_ms)
                || pool.may_start(now) != Start::Free;
            for claimed in pool.ahead.overdue(now, all) {
                pool.taken = pool.taken.saturating_sub(1);
                let Some(out) = s.out.get_mut(&claimed.id) else {
                    continue;
                };
                out.finished = true;
                if out.ticket.is_probe() {
                    pool.breaker()
                        .ended(now, out.ticket, None, Evidence::Nothing, 0);
                }
                if pool.stopping && out.taken.class == Class::Interactive {
                    // Nobody would answer it, or let it expire, before the NAS is served again.
                    let reason = format!("NAS {} is no longer served", out.nas);
                    let settle = Settle {
                        id: claimed.id,
                        try_count: Some(out.try_count),
                        to: SettleTo::Dead {
                            reason: reason.clone(),
                            possible_duplicate: false,
                        },
                        code: 0,
                        ms: 0,
                        error: Some(reason),
                    };
                    s.untold.insert(claimed.id, Some(pool.log.clone()));
                    s.settles.push((settle, Gone::Finished));
                    continue;
                }
                let settle = Settle {
                    id: claimed.id,
                    try_count: Some(out.try_count),
                    to: SettleTo::Ready {
                        possible_duplicate: false,
                    },
                    code: 0,
                    ms: 0,
                    error: None,
                };
                s.settles.push((settle, Gone::Back));
            }
        }
    }

    fn fork(&self, pool: &Pool, out: &OutEvent) -> Fork {
        Fork {
            execute: Arc::clone(&pool.served.execute),
            breaker: Arc::clone(&pool.breaker),
            ticket: out.ticket,
            logs: self.logs.clone(),
            log: pool.log.clone(),
            config: Arc::clone(&self.config),
            result_dir: self.result_dir.clone(),
            store: Arc::clone(&self.store),
            remark: out.taken.overtakes.then_some(
                "cross_nas_overtake: an earlier event of the account waits on another NAS",
            ),
        }
    }

    #[expect(
        clippy::result_large_err,
        reason = "the error is the message that is sent either way"
    )]
    pub(super) fn job(&self, pool: &Pool, class: Class, event: Started) -> Result<Job, Finished> {
        let nas = &pool.served.nas;
        match Cmd::parse(&event.cmd) {
            Ok(cmd) => Ok(Job {
                event: event.id,
                epoch: self.epoch,
                try_count: event.try_count,
                possible_duplicate: event.possible_duplicate,
                cmd,
                class,
                user: event.user,
                abonent: event.abonent,
                usluga: event.usluga,
                // Read by its fork, beside the next turn.
                params: Params::default(),
                nas: Arc::clone(nas),
                secret: Arc::clone(&pool.served.secret),
                deadline: nas.timeout.unwrap_or(self.config.script_timeout),
            }),
            Err(reason) => Err(Finished {
                id: event.id,
                user: event.user,
                nas: nas.id,
                try_count: event.try_count,
                to: SettleTo::Dead {
                    reason: reason.clone(),
                    possible_duplicate: false,
                },
                due: 0,
                code: 1,
                ms: 0,
                error: Some(reason),
            }),
        }
    }
}

#[cfg(test)]
#[path = "start_test.rs"]
mod tests;
