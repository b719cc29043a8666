//! The one task that decides and writes. Each round takes everything that came in meanwhile,
//! asks `lanes` what may start, and writes settles and starts in one transaction; while that
//! commits, the next batch gathers by itself. B of a lane executes only after the commit that
//! settled A.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::breaker::{Evidence, Start, Ticket};
use super::fork::{Fork, random};
use super::lanes::{Gone, Lanes, Owner, REFILL_ROWS, Taken, Wanted};
use super::parent::Settings;
use super::plan::Step;
use super::pool::Pool;
use super::status::{NasStatus, Status};
use super::{Finished, Message, Skipped};
use crate::attempt::{DoneResult, Job};
use crate::clock;
use crate::config;
use crate::event::{Class, Cmd, EventId, Waiting};
use crate::logs::Logs;
use crate::logs::line::{End, Key};
use crate::nas::NasId;
use crate::store::{Error, Settle, SettleTo, Started, Store, Turn, Turned, chain};

/// Most settles plus starts of one turn: past a hundred nothing is gained, and the writer must
/// not be held longer than a few milliseconds.
const TURN_MAX: usize = 500;
/// Rows of one page when ids are loaded.
const PAGE: usize = 500;
/// First and longest wait before a turn that the database refused is written again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);
/// Wait before rows that could not be read are read again.
const READ_AGAIN: Duration = Duration::from_millis(500);
/// The loop looks at expiry and breakers at least this often, ms.
const IDLE_MS: u64 = 1_000;
/// How often `status` is renewed at most, ms.
const STATUS_MS: u64 = 200;

/// What the scheduler works with.
pub struct Scheduler {
    /// The durable log.
    pub store: Arc<dyn Store>,
    /// All logs.
    pub logs: Logs,
    /// `[dispatch]`
    pub config: Arc<config::Dispatch>,
    /// Directory of classic result files.
    pub result_dir: Option<std::path::PathBuf>,
    /// Ownership epoch.
    pub epoch: i64,
    /// Renewed a few times per second.
    pub status: watch::Sender<Status>,
    /// For tasks that read the store and send messages back.
    pub sender: mpsc::Sender<Message>,
}

struct State {
    lanes: Lanes,
    pools: BTreeMap<NasId, Pool>,
    skipped: Skipped,
    forks: JoinSet<Finished>,
    out: HashMap<EventId, OutEvent>,
    tasks: HashMap<Id, EventId>,
    settles: Vec<(Settle, Gone)>,
    readers: JoinSet<()>,
    rotate: usize,
    alone: Option<EventId>,
    quiet: Option<NasId>,
    turns: u64,
    status_at: u64,
    unpublished: bool,
}

/// An event between its start and its settlement.
struct OutEvent {
    nas: NasId,
    try_count: u32,
    taken: Taken,
    ticket: Ticket,
    finished: bool,
}

impl Scheduler {
    /// Runs until `stop`, then drains: running events get `config.drain`, or until `hard`.
    pub async fn run(
        self,
        mut inbox: mpsc::Receiver<Message>,
        stop: CancellationToken,
        hard: CancellationToken,
    ) -> Result<(), Error> {
        let cross_wait =
            u64::try_from(self.config.cross_nas_wait.as_millis()).unwrap_or(u64::MAX / 4);
        let mut s = State {
            lanes: Lanes::new(self.config.window, cross_wait),
            pools: BTreeMap::new(),
            skipped: Skipped::new(),
            forks: JoinSet::new(),
            out: HashMap::new(),
            tasks: HashMap::new(),
            settles: Vec::new(),
            readers: JoinSet::new(),
            rotate: 0,
            alone: None,
            quiet: None,
            turns: 0,
            status_at: 0,
            unpublished: false,
        };
        loop {
            let pending = self.round(&mut s, stop.is_cancelled(), &hard).await?;
            if stop.is_cancelled() {
                break;
            }
            if pending {
                // More is startable than one turn takes; still let messages in.
                while let Ok(message) = inbox.try_recv() {
                    self.hear(&mut s, message);
                }
                self.reap(&mut s);
                continue;
            }
            let wait = self.wait_ms(&s);
            tokio::select! {
                // Cancel-safe: recv and join_next lose nothing, the rest only wakes.
                () = stop.cancelled() => {}
                message = inbox.recv() => if let Some(m) = message { self.hear(&mut s, m) },
                Some(ended) = s.forks.join_next_with_id() => self.ended(&mut s, ended),
                Some(_) = s.readers.join_next() => {}
                () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            }
            while let Ok(message) = inbox.try_recv() {
                self.hear(&mut s, message);
            }
            self.reap(&mut s);
        }
        self.drain(&mut s, &mut inbox, &hard).await
    }

    /// One turn; says whether another should follow at once.
    async fn round(
        &self,
        s: &mut State,
        stopping: bool,
        hard: &CancellationToken,
    ) -> Result<bool, Error> {
        let (now, wall_ms) = (clock::tick_ms(), clock::wall_ms());
        s.lanes.wake(now);
        self.expire(s, now, wall_ms);
        self.fail_interactive(s, now, wall_ms);
        let batch: Vec<(Settle, Gone)> = {
            let n = s.settles.len().min(TURN_MAX);
            s.settles.drain(..n).collect()
        };
        let mut turn = Turn {
            epoch: self.epoch,
            ..Turn::default()
        };
        turn.settles = batch.iter().map(|b| b.0.clone()).collect();
        // The lanes that this turn settles for good are free for it, too: same transaction. An
        // event that comes back starts in a later turn: what its own settlement writes (its
        // flag, its try) must be read before it runs again.
        let (at_once, after): (Vec<_>, Vec<_>) = batch
            .iter()
            .map(|(settle, gone)| (settle.id, *gone))
            .partition(|(_, gone)| !stopping && *gone == Gone::Finished);
        for (id, gone) in at_once {
            s.lanes.settled(id, gone, now);
        }
        if !stopping {
            self.pick(s, &mut turn, now, wall_ms);
        }
        if !turn.settles.is_empty() || !turn.starts.is_empty() {
            let turned = self.write(turn.clone(), hard).await?;
            s.turns += 1;
            self.settled(s, &batch, &turned);
            for (id, gone) in &after {
                s.lanes.settled(*id, *gone, now);
            }
            self.start(s, &turn, turned);
        }
        self.read_wanted(s);
        self.publish(s, wall_ms);
        let full = turn.settles.len() + turn.starts.len() >= TURN_MAX || !s.settles.is_empty();
        Ok(full || !after.is_empty())
    }

    fn pick(&self, s: &mut State, turn: &mut Turn, now: u64, wall_ms: i64) {
        if s.alone.is_some() {
            return;
        }
        if s.quiet.is_some() && s.pools.values().any(|p| p.running > 0) {
            return;
        }
        let order: Vec<NasId> = match s.quiet {
            Some(nas) => vec![nas],
            None => {
                let ids: Vec<NasId> = s.pools.keys().copied().collect();
                let at = if ids.is_empty() {
                    0
                } else {
                    s.rotate % ids.len()
                };
                s.rotate = s.rotate.wrapping_add(1);
                ids.iter()
                    .cycle()
                    .skip(at)
                    .take(ids.len())
                    .copied()
                    .collect()
            }
        };
        let quiet = s.quiet.take();
        for nas in order {
            if s.lanes.held_of(nas) == 0 {
                continue;
            }
            let Some(pool) = s.pools.get_mut(&nas) else {
                continue;
            };
            if pool.is_paused(wall_ms) {
                continue;
            }
            let mut free = pool.free();
            while free > 0 && turn.settles.len() + turn.starts.len() < TURN_MAX {
                let probe = match pool.may_start(now) {
                    Start::Free => false,
                    Start::Probe => true,
                    Start::Wait { .. } => break,
                };
                let Some(taken) = s.lanes.take(nas, now) else {
                    break;
                };
                if taken.suspect && !(quiet.is_some() && turn.starts.is_empty()) {
                    // It waits until nothing else runs, then runs alone.
                    s.lanes.settled(taken.id, Gone::Released, now);
                    s.quiet = Some(nas);
                    return;
                }
                let ticket = pool.breaker().started(probe);
                pool.running += 1;
                free -= 1;
                turn.starts.push(taken.id);
                s.out.insert(
                    taken.id,
                    OutEvent {
                        nas,
                        try_count: 0,
                        taken,
                        ticket,
                        finished: false,
                    },
                );
                if taken.suspect {
                    s.alone = Some(taken.id);
                    return;
                }
                if quiet.is_some() {
                    s.quiet = quiet;
                    return;
                }
            }
        }
    }

    /// Writes a turn, again and again while the database cannot: results stay in memory, their
    /// lanes stay held, nothing else starts.
    async fn write(&self, mut turn: Turn, hard: &CancellationToken) -> Result<Turned, Error> {
        let mut wait = RETRY_FIRST;
        loop {
            match self.store.turn(&turn).await {
                Ok(turned) => return Ok(turned),
                Err(fenced @ Error::Fenced { .. }) => return Err(fenced),
                Err(error) => {
                    if hard.is_cancelled() {
                        return Err(error);
                    }
                    tracing::warn!(
                        "the database refused a turn of {} settles and {} starts, again in {wait:?}: {}",
                        turn.settles.len(),
                        turn.starts.len(),
                        chain(&error)
                    );
                    metrics::counter!("nas_event_daemon_turn_errors_total").increment(1);
                }
            }
            turn.again = true;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = hard.cancelled() => {}
            }
            wait = (wait * 2).min(RETRY_LAST);
        }
    }

    fn settled(&self, s: &mut State, batch: &[(Settle, Gone)], turned: &Turned) {
        for (settle, _) in batch {
            if let Some(out) = s.out.remove(&settle.id)
                && s.alone == Some(settle.id)
            {
                s.alone = None;
                let _ = out;
            }
        }
        if turned.settled.len() < batch.len() {
            let fenced = batch.len() - turned.settled.len();
            metrics::counter!("nas_event_daemon_fenced_settles_total")
                .increment(u64::try_from(fenced).unwrap_or(0));
        }
    }

    fn start(&self, s: &mut State, turn: &Turn, turned: Turned) {
        let now = clock::tick_ms();
        let mut started: HashMap<EventId, Started> =
            turned.started.into_iter().map(|e| (e.id, e)).collect();
        for id in &turn.starts {
            let Some(out) = s.out.get_mut(id) else {
                continue;
            };
            let Some(pool) = s.pools.get_mut(&out.nas) else {
                continue;
            };
            let Some(event) = started.remove(id) else {
                // Dropped by an operator, or gone otherwise: there is nothing to run.
                pool.running = pool.running.saturating_sub(1);
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
            let fork = Fork {
                execute: Arc::clone(&pool.served.execute),
                breaker: Arc::clone(&pool.breaker),
                ticket: out.ticket,
                logs: self.logs.clone(),
                log: pool.log.clone(),
                config: Arc::clone(&self.config),
                result_dir: self.result_dir.clone(),
                remark: out.taken.overtakes.then_some(
                    "cross_nas_overtake: an earlier event of the account waits on another NAS",
                ),
            };
            let job = self.job(pool, out.taken.class, event);
            let task = match job {
                Ok(job) => s.forks.spawn(fork.run(job)),
                Err(finished) => s.forks.spawn(async move { finished }),
            };
            s.tasks.insert(task.id(), *id);
        }
    }

    #[expect(
        clippy::result_large_err,
        reason = "the error is the message that is sent either way"
    )]
    fn job(&self, pool: &Pool, class: Class, event: Started) -> Result<Job, Finished> {
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
                params: event.params,
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
                },
                due: 0,
                code: 1,
                ms: 0,
                error: Some(reason),
            }),
        }
    }

    fn hear(&self, s: &mut State, message: Message) {
        let (now, wall_ms) = (clock::tick_ms(), clock::wall_ms());
        match message {
            Message::Waiting(events) => {
                for w in &events {
                    match s.pools.get(&w.nas) {
                        Some(pool) if !pool.stopping => {
                            s.lanes.add(&self.clamped(w, wall_ms), now, wall_ms)
                        }
                        _ if w.class == Class::Interactive => {
                            let why = s
                                .skipped
                                .get(&w.nas)
                                .map_or("it is not served", String::as_str);
                            let reason = format!("nobody can ask NAS {}: {why}", w.nas);
                            s.settles
                                .push((unstarted(w.id, SettleTo::Dead { reason }), Gone::Finished));
                        }
                        // It stands in the store and is loaded when the NAS is served.
                        _ => {}
                    }
                }
            }
            Message::Finished(finished) => self.finished(s, finished),
            Message::Refilled(nas, owner, rows) => {
                let rows = rows.map(|r| {
                    r.iter()
                        .map(|w| self.clamped(w, wall_ms))
                        .collect::<Vec<_>>()
                });
                s.lanes.refilled(nas, owner, rows.as_deref(), now, wall_ms);
            }
            Message::Loaded(nas, None) => s.lanes.load_failed(nas),
            Message::Loaded(nas, Some((rows, full))) => {
                let rows: Vec<Waiting> = rows.iter().map(|w| self.clamped(w, wall_ms)).collect();
                s.lanes.loaded(nas, &rows, full, now, wall_ms);
            }
            Message::Settings(settings) => self.apply(s, settings, now),
        }
    }

    /// The wait of a deferred event, bounded: a clock that was set back must not stall it.
    fn clamped(&self, w: &Waiting, wall_ms: i64) -> Waiting {
        let base = i64::try_from(self.config.retry_base.as_millis()).unwrap_or(i64::MAX);
        let most = wall_ms.saturating_add(base.saturating_mul(i64::from(w.tries)));
        Waiting {
            next_try_ms: w.next_try_ms.min(most),
            ..*w
        }
    }

    fn finished(&self, s: &mut State, f: Finished) {
        let Some(out) = s.out.get_mut(&f.id) else {
            return;
        };
        out.finished = true;
        let (result, gone) = match &f.to {
            SettleTo::Done { result, .. } => (result.as_str(), Gone::Finished),
            SettleTo::Dead { .. } => ("dead", Gone::Finished),
            SettleTo::Deferred { .. } => ("deferred", Gone::Deferred(f.due)),
            SettleTo::Ready { .. } => ("ready", Gone::Released),
        };
        if let Some(pool) = s.pools.get_mut(&out.nas) {
            pool.running = pool.running.saturating_sub(1);
            pool.took(f.ms);
            match &f.to {
                SettleTo::Done { .. } => pool.done += 1,
                SettleTo::Dead { .. } => pool.dead += 1,
                SettleTo::Deferred { .. } => pool.deferred += 1,
                SettleTo::Ready { .. } => {}
            }
        }
        metrics::counter!("nas_event_daemon_attempts_total", "result" => result).increment(1);
        let settle = Settle {
            id: f.id,
            try_count: Some(f.try_count),
            to: f.to,
            code: f.code,
            ms: f.ms,
            error: f.error,
        };
        s.settles.push((settle, gone));
    }

    fn ended(&self, s: &mut State, ended: Result<(Id, Finished), tokio::task::JoinError>) {
        match ended {
            Ok((task, finished)) => {
                s.tasks.remove(&task);
                self.finished(s, finished);
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
                    to: SettleTo::Dead {
                        reason: reason.clone(),
                    },
                    due: 0,
                    code: 70,
                    ms: 0,
                    error: Some(reason),
                };
                self.finished(s, finished);
            }
        }
    }

    fn reap(&self, s: &mut State) {
        while let Some(ended) = s.forks.try_join_next_with_id() {
            self.ended(s, ended);
        }
        while s.readers.try_join_next().is_some() {}
    }

    fn expire(&self, s: &mut State, now: u64, wall_ms: i64) {
        for (id, nas) in s.lanes.expire(now, wall_ms) {
            let to = SettleTo::Done {
                result: DoneResult::Expired,
                answer: None,
                scheme_hash: String::new(),
            };
            s.settles.push((unstarted(id, to), Gone::Finished));
            self.note(s, nas, id, "expired", wall_ms);
        }
    }

    /// While a NAS is paused or its breaker is open, an operator must not wait for an answer.
    fn fail_interactive(&self, s: &mut State, now: u64, wall_ms: i64) {
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
                    .push((unstarted(id, SettleTo::Dead { reason }), Gone::Finished));
                self.note(s, nas, id, "dead", wall_ms);
            }
        }
    }

    /// An event that ends without an attempt leaves a record, too.
    fn note(&self, s: &State, nas: NasId, id: EventId, result: &str, wall_ms: i64) {
        let Some(pool) = s.pools.get(&nas) else {
            return;
        };
        let key = Key {
            event: id,
            user: None,
            cmd: "-",
            try_count: 0,
        };
        let mut out = Vec::new();
        let end = End {
            result,
            code: 0,
            ms: 0,
            next_try_ms: None,
            error: None,
        };
        self.logs.records().end(&mut out, wall_ms, &key, &end);
        self.logs.write(&pool.log, None, &out);
    }

    fn apply(&self, s: &mut State, settings: Settings, now: u64) {
        s.skipped = settings.skipped;
        for step in settings.steps {
            match step {
                Step::Stop(nas) => {
                    if let Some(pool) = s.pools.get_mut(&nas) {
                        pool.stopping = true;
                    }
                    s.lanes.drop_nas(nas);
                }
                Step::Change(nas, served) => {
                    if let Some(pool) = s.pools.get_mut(&nas) {
                        if served.may_mend(&pool.served) {
                            pool.breaker().poke(now);
                        }
                        pool.log = self.logs.nas_file(&served.log_name);
                        pool.served = served;
                    }
                }
                Step::Start(nas, served) => {
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
        s.pools.retain(|_, p| !(p.stopping && p.running == 0));
    }

    fn read_wanted(&self, s: &mut State) {
        let wall_ms = clock::wall_ms();
        for (nas, pool) in &s.pools {
            let dark = pool.is_paused(wall_ms) || pool.breaker().state() != "closed";
            s.lanes.set_dark(*nas, dark);
        }
        for wanted in s.lanes.wanted() {
            let (store, sender) = (Arc::clone(&self.store), self.sender.clone());
            s.readers.spawn(async move {
                let message = match wanted {
                    Wanted::Refill(nas, owner) => {
                        let user = match owner {
                            Owner::User(user) => Some(user),
                            Owner::Nas(_) => None,
                        };
                        let rows = store.refill(nas, user, REFILL_ROWS).await;
                        Message::Refilled(nas, owner, told(rows).await)
                    }
                    Wanted::Load(nas, from) => {
                        let rows = store.load(nas, from, PAGE).await;
                        Message::Loaded(
                            nas,
                            told(rows).await.map(|r| {
                                let full = r.len() >= PAGE;
                                (r, full)
                            }),
                        )
                    }
                };
                // Only fails when the scheduler has ended.
                let _ = sender.send(message).await;
            });
        }
    }

    fn wait_ms(&self, s: &State) -> u64 {
        let now = clock::tick_ms();
        let mut at = now + IDLE_MS;
        if s.unpublished {
            at = at.min(s.status_at + STATUS_MS);
        }
        if let Some(wake) = s.lanes.next_wake() {
            at = at.min(wake);
        }
        for (nas, pool) in &s.pools {
            if s.lanes.held_of(*nas) > 0
                && let Some(probe) = pool.breaker().next_probe()
            {
                at = at.min(probe);
            }
        }
        at.saturating_sub(now).max(1)
    }

    fn publish(&self, s: &mut State, wall_ms: i64) {
        let now = clock::tick_ms();
        if now.saturating_sub(s.status_at) < STATUS_MS {
            s.unpublished = true;
            return;
        }
        s.status_at = now;
        s.unpublished = false;
        for pool in s.pools.values() {
            if let Some(super::breaker::Change::Closed) = pool.breaker().tick(now) {
                tracing::info!(
                    "NAS obeys again nasid={} nas_ip={}",
                    pool.served.nas.id,
                    pool.served.nas.ip
                );
            }
        }
        let nases = s
            .pools
            .iter()
            .map(|(id, p)| {
                let breaker = p.breaker();
                NasStatus {
                    id: id.0,
                    name: p.served.nas.name.clone(),
                    ip: p.served.nas.ip.clone(),
                    waiting: s.lanes.held_of(*id),
                    running: p.running,
                    forks: p.served.nas.forks.get(),
                    done: p.done,
                    deferred: p.deferred,
                    dead: p.dead,
                    breaker: breaker.state(),
                    reason: breaker.reason().to_owned(),
                    paused: p.is_paused(wall_ms),
                    p95_ms: p.p95_ms(),
                }
            })
            .collect();
        let status = Status {
            turns: s.turns,
            held: s.lanes.held(),
            running: s.out.len(),
            nases,
            skipped: s
                .skipped
                .iter()
                .map(|(id, why)| (id.0, why.clone()))
                .collect(),
        };
        self.status.send_replace(status);
    }

    /// Nothing starts any more; running events get their time, then are ended and go back to
    /// ready, flagged.
    async fn drain(
        &self,
        s: &mut State,
        inbox: &mut mpsc::Receiver<Message>,
        hard: &CancellationToken,
    ) -> Result<(), Error> {
        let end = tokio::time::sleep(self.config.drain);
        tokio::pin!(end);
        while !s.forks.is_empty() {
            tokio::select! {
                Some(ended) = s.forks.join_next_with_id() => self.ended(s, ended),
                message = inbox.recv() => if let Some(Message::Finished(f)) = message { self.finished(s, f) },
                () = &mut end => break,
                () = hard.cancelled() => break,
            }
            self.reap(s);
            while !s.settles.is_empty() {
                self.round(s, true, hard).await?;
            }
        }
        // Aborting a fork drops its session and closes the pipe of its shim, which ends the script.
        s.forks.shutdown().await;
        let cut: Vec<(EventId, u32)> = s
            .out
            .iter()
            .filter(|(_, o)| !o.finished && o.try_count > 0)
            .map(|(id, o)| (*id, o.try_count))
            .collect();
        for (id, try_count) in cut {
            tracing::warn!("event={id} was cut short by the shutdown and goes back to ready");
            let settle = Settle {
                id,
                try_count: Some(try_count),
                to: SettleTo::Ready {
                    possible_duplicate: true,
                },
                code: 0,
                ms: 0,
                error: Some("cut short by a shutdown of the daemon".to_owned()),
            };
            s.settles.push((settle, Gone::Released));
        }
        while !s.settles.is_empty() {
            self.round(s, true, hard).await?;
        }
        Ok(())
    }
}

fn unstarted(id: EventId, to: SettleTo) -> Settle {
    let error = match &to {
        SettleTo::Dead { reason } => Some(reason.clone()),
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
