//! The one task that decides and writes. Each round takes everything that came in meanwhile,
//! asks `lanes` what may start, and writes settles and starts in one transaction; while that
//! commits, the next batch gathers by itself. B of a lane executes only after the commit that
//! settled A.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::attempts::Attempts;
use super::breaker::{Start, Ticket};
use super::lanes::{Gone, Lanes, Next, Owner, Taken};
use super::pool::Pool;
use super::status::{STATUS_MS, Status};
use super::{Message, Skipped};
use crate::clock;
use crate::config;
use crate::event::EventId;
use crate::logs::{Logs, NasLog};
use crate::nas::NasId;
use crate::store::{Error, Settle, Store, Turn, Turned, chain};

/// Most settles plus starts of one turn: past a hundred nothing is gained, and the writer must
/// not be held longer than a few milliseconds.
const TURN_MAX: usize = 500;
/// A turn that took so long is not believed to be ours still, ms: half of the silence after which
/// another daemon follows.
const FOLLOWED_MS: u64 = 5_000;
/// For the answer to whose the database is.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Longest turn that counts, ms.
const TURN_MOST_MS: u64 = 100;
/// How much the last turn says of what the next will take.
const TURN_WEIGHT: f64 = 0.1;
/// First and longest wait before a turn that the database refused is written again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);
/// After the drain, for ending what still runs and writing it down.
const DRAIN_GRACE: Duration = Duration::from_secs(10);
/// The loop looks at expiry and breakers at least this often, ms.
const IDLE_MS: u64 = 1_000;

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

pub(super) struct State {
    /// Nothing starts any more.
    pub(super) stop: CancellationToken,
    pub(super) lanes: Lanes,
    pub(super) pools: BTreeMap<NasId, Pool>,
    pub(super) skipped: Skipped,
    pub(super) attempts: Attempts,
    pub(super) out: HashMap<EventId, OutEvent>,
    pub(super) tasks: HashMap<Id, EventId>,
    pub(super) settles: Vec<(Settle, Gone)>,
    pub(super) readers: JoinSet<()>,
    /// Lanes that want rows, beside those that are being read (`refilling`).
    pub(super) refills: VecDeque<(NasId, Owner)>,
    pub(super) refilling: bool,
    /// Events whose end nobody has written yet, with the log of their NAS.
    pub(super) untold: HashMap<EventId, Option<NasLog>>,
    pub(super) records: JoinSet<()>,
    pub(super) rotate: usize,
    /// A suspect that runs.
    pub(super) alone: Option<EventId>,
    /// A suspect that waits until nothing else runs.
    pub(super) quiet: Option<(NasId, Next)>,
    pub(super) turns: u64,
    /// What a turn takes to be written, ms, as a moving mean.
    pub(super) turn_ms: f64,
    /// Somebody waits for the answer of an attempt that no turn has written yet.
    pub(super) answers: bool,
    pub(super) status_at: u64,
    pub(super) unpublished: bool,
}

/// An event between its start and its settlement.
pub(super) struct OutEvent {
    pub(super) nas: NasId,
    pub(super) try_count: u32,
    /// Accepted at, wall ms, and the command's label; known once it has started.
    pub(super) accepted: Option<(i64, &'static str)>,
    pub(super) taken: Taken,
    pub(super) ticket: Ticket,
    pub(super) finished: bool,
    /// Its fork is busy with it.
    pub(super) holds_fork: bool,
}

impl State {
    pub(super) fn new(stop: CancellationToken, config: &config::Dispatch) -> Self {
        let cross_wait = u64::try_from(config.cross_nas_wait.as_millis()).unwrap_or(u64::MAX / 4);
        Self {
            stop,
            lanes: Lanes::new(config.window, cross_wait),
            pools: BTreeMap::new(),
            skipped: Skipped::new(),
            attempts: Attempts::default(),
            out: HashMap::new(),
            tasks: HashMap::new(),
            settles: Vec::new(),
            readers: JoinSet::new(),
            refills: VecDeque::new(),
            refilling: false,
            untold: HashMap::new(),
            records: JoinSet::new(),
            rotate: 0,
            alone: None,
            quiet: None,
            turns: 0,
            turn_ms: 1.0,
            answers: false,
            status_at: 0,
            unpublished: false,
        }
    }
}

impl Scheduler {
    /// Runs until `stop`, then drains: running events get `config.drain`, or until `hard`.
    pub async fn run(
        self,
        mut inbox: mpsc::Receiver<Message>,
        stop: CancellationToken,
        hard: CancellationToken,
    ) -> Result<(), Error> {
        let mut s = State::new(stop.clone(), &self.config);
        // Also a turn that the database refuses again and again must not outlive the drain.
        let mut watchdog = JoinSet::new();
        let (soft, last, patience) = (stop.clone(), hard.clone(), self.config.drain + DRAIN_GRACE);
        watchdog.spawn(async move {
            soft.cancelled().await;
            tokio::time::sleep(patience).await;
            last.cancel();
        });
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
                // Cancel-safe: recv and next lose nothing, the rest only wakes.
                () = stop.cancelled() => {}
                message = inbox.recv() => if let Some(m) = message { self.hear(&mut s, m) },
                ended = s.attempts.next() => self.ended(&mut s, ended),
                Some(_) = s.readers.join_next() => {}
                () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            }
            // What can end at once ends before the turn: a turn of many costs hardly more than a
            // turn of few. Nothing waits for a clock here, and on an idle daemon for nothing.
            tokio::task::yield_now().await;
            while let Ok(message) = inbox.try_recv() {
                self.hear(&mut s, message);
            }
            self.reap(&mut s);
            self.gather(&mut s, &mut inbox, &stop).await;
        }
        self.drain(&mut s, &mut inbox, &hard).await
    }

    /// One turn; says whether another should follow at once.
    pub(super) async fn round(
        &self,
        s: &mut State,
        stopping: bool,
        hard: &CancellationToken,
    ) -> Result<bool, Error> {
        let (now, wall_ms) = (clock::tick_ms(), clock::wall_ms());
        s.lanes.wake(now);
        self.expire(s, now, wall_ms);
        self.fail_interactive(s, now, wall_ms);
        self.give_back(s, now, wall_ms, stopping);
        let mut turn = Turn {
            epoch: self.epoch,
            ..Turn::default()
        };
        let n = s.settles.len().min(TURN_MAX);
        s.answers = false;
        let mut batch = Vec::with_capacity(n);
        let mut seen = HashSet::with_capacity(n);
        for (settle, gone) in s.settles.drain(..n) {
            // A waiting event may be read again, and expire again, before it is settled.
            if seen.insert(settle.id) {
                batch.push((settle.id, gone));
                turn.settles.push(settle);
            }
        }
        // The lanes that this turn settles for good are free for it, too: same transaction. An
        // event that comes back starts in a later turn: what its own settlement writes (its
        // flag, its try) must be read before it runs again.
        let (at_once, after): (Vec<_>, Vec<_>) = batch
            .iter()
            .copied()
            .partition(|(_, gone)| !stopping && *gone == Gone::Finished);
        for (id, gone) in at_once {
            s.lanes.settled(id, gone, now);
        }
        if !stopping {
            self.pick(s, &mut turn, now, wall_ms);
        }
        if !turn.settles.is_empty() || !turn.starts.is_empty() {
            let turned = self.write_beside(s, &mut turn, hard).await?;
            let since = self.claimed_since(s, &turn, now, hard).await;
            s.turns += 1;
            metrics::counter!("nas_event_daemon_turns_total").increment(1);
            metrics::histogram!("nas_event_daemon_claim_batch_events").record(f64::from(
                u32::try_from(turn.starts.len()).unwrap_or(u32::MAX),
            ));
            self.settled(s, &batch, &turned);
            let told = Self::to_tell(s, &turn, &turned);
            for (id, gone) in &after {
                s.lanes.settled(*id, *gone, now);
            }
            self.start(s, &turn, turned, since);
            self.tell(s, told, hard).await;
        }
        self.read_wanted(s);
        self.publish(s, wall_ms);
        let full = turn.settles.len() + turn.starts.len() >= TURN_MAX || !s.settles.is_empty();
        Ok(full || !after.is_empty())
    }

    pub(super) fn pick(&self, s: &mut State, turn: &mut Turn, now: u64, wall_ms: i64) {
        if s.alone.is_some() {
            return;
        }
        if let Some((nas, suspect)) = s.quiet.take() {
            // Nothing starts for its sake while it could be the next to start, and no longer: it
            // may have been dropped, or an event that came late must run before it.
            match suspect_may_start(s, nas, &suspect, now, wall_ms) {
                Start::Wait { .. } => {}
                _ if s.pools.values().any(|p| p.taken > 0) => {
                    s.quiet = Some((nas, suspect));
                    return;
                }
                start => {
                    if let Some(taken) = s.lanes.take_at(nas, suspect) {
                        begin(s, turn, nas, taken, start);
                        return;
                    }
                }
            }
        }
        let ids: Vec<NasId> = s.pools.keys().copied().collect();
        let at = s.rotate.checked_rem(ids.len()).unwrap_or(0);
        s.rotate = s.rotate.wrapping_add(1);
        for nas in ids.iter().cycle().skip(at).take(ids.len()).copied() {
            if s.lanes.held_of(nas) == 0 {
                continue;
            }
            while let Some(pool) = s.pools.get(&nas) {
                if pool.is_paused(wall_ms) || turn.settles.len() + turn.starts.len() >= TURN_MAX {
                    break;
                }
                let start = pool.may_start(now);
                let places = match start {
                    Start::Free => pool.places(now, s.turn_ms),
                    Start::Probe => pool.free(),
                    Start::Wait { .. } => break,
                };
                if places == 0 {
                    break;
                }
                let Some(next) = s.lanes.next(nas, now) else {
                    break;
                };
                if next.taken.suspect && s.pools.values().any(|p| p.taken > 0) {
                    // It waits until nothing else runs, then runs alone.
                    s.quiet = Some((nas, next));
                    return;
                }
                let Some(taken) = s.lanes.take_at(nas, next) else {
                    break;
                };
                begin(s, turn, nas, taken, start);
                if s.alone.is_some() {
                    return;
                }
            }
        }
    }

    /// Writes a turn; what ends meanwhile makes place for what was claimed ahead.
    async fn write_beside(
        &self,
        s: &mut State,
        turn: &mut Turn,
        hard: &CancellationToken,
    ) -> Result<Turned, Error> {
        let began = clock::tick_ms();
        let writing = self.write(turn, hard);
        tokio::pin!(writing);
        let turned = loop {
            tokio::select! {
                biased;
                turned = &mut writing => break turned,
                ended = s.attempts.next() => self.ended(s, ended),
            }
        };
        // One that the database did not take for an hour says nothing of the next.
        let ms = clock::tick_ms().saturating_sub(began).min(TURN_MOST_MS) as f64;
        s.turn_ms += (ms - s.turn_ms) * TURN_WEIGHT;
        turned
    }

    /// From when on the claims of a turn that began at `began` hold. After one that took so long
    /// that another may have followed this daemon meanwhile it is asked for: whether the claims
    /// were written before or after the pause, nobody knows. Without the answer that it is still
    /// the owner they are late, and go back by a turn, which is fenced itself.
    async fn claimed_since(
        &self,
        s: &mut State,
        turn: &Turn,
        began: u64,
        hard: &CancellationToken,
    ) -> u64 {
        let asked = clock::tick_ms();
        if turn.starts.is_empty() || asked.saturating_sub(began) < FOLLOWED_MS {
            return asked;
        }
        let asking = tokio::time::timeout(ASK_LIMIT, self.store.still_own(self.epoch));
        tokio::pin!(asking);
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut asking => break answer,
                ended = s.attempts.next() => self.ended(s, ended),
                () = hard.cancelled() => return 0,
            }
        };
        let unknown = match answer {
            Ok(Ok(true)) => return asked,
            Ok(Ok(false)) => return 0,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {ASK_LIMIT:?}"),
        };
        tracing::warn!("whether this daemon is still the owner: {unknown}");
        0
    }

    /// Writes a turn, again and again while the database cannot: results stay in memory, their
    /// lanes stay held, nothing else starts.
    pub(super) async fn write(
        &self,
        turn: &mut Turn,
        hard: &CancellationToken,
    ) -> Result<Turned, Error> {
        let mut wait = RETRY_FIRST;
        loop {
            match self.store.turn(turn).await {
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

    pub(super) fn settled(&self, s: &mut State, batch: &[(EventId, Gone)], turned: &Turned) {
        for (id, _) in batch {
            // Read again and claimed while its end waited to be written: `start` gives its place back.
            if s.out.get(id).is_some_and(|out| !out.finished) {
                continue;
            }
            s.out.remove(id);
            if s.alone == Some(*id) {
                s.alone = None;
            }
        }
        if turned.settled.len() < batch.len() {
            let fenced = batch.len() - turned.settled.len();
            metrics::counter!("nas_event_daemon_fenced_settles_total")
                .increment(u64::try_from(fenced).unwrap_or(0));
        }
    }

    fn wait_ms(&self, s: &State) -> u64 {
        let (now, wall_ms) = (clock::tick_ms(), clock::wall_ms());
        let mut at = now + IDLE_MS;
        if s.unpublished {
            at = at.min(s.status_at + STATUS_MS);
        }
        if let Some(wake) = s.lanes.next_wake() {
            at = at.min(wake);
        }
        for (nas, pool) in &s.pools {
            if let Some(overdue) = pool.ahead.next_overdue() {
                at = at.min(overdue);
            }
            // Only a probe that could be made now is waited for.
            let may_probe = s.lanes.has_ready(*nas)
                && !pool.stopping
                && !pool.is_paused(wall_ms)
                && pool.free() > 0
                && s.alone.is_none()
                && s.quiet.is_none();
            if may_probe && let Some(probe) = pool.breaker().next_probe() {
                at = at.min(probe);
            }
        }
        at.saturating_sub(now).max(1)
    }
}

/// Whether a suspect could start now if nothing else ran.
fn suspect_may_start(s: &mut State, nas: NasId, suspect: &Next, now: u64, wall_ms: i64) -> Start {
    let never = Start::Wait { until: u64::MAX };
    match s.pools.get(&nas) {
        Some(pool) if !pool.stopping && !pool.is_paused(wall_ms) => {
            if s.lanes.may_take(nas, suspect, now) {
                pool.may_start(now)
            } else {
                never
            }
        }
        Some(_) | None => never,
    }
}

/// Puts a taken event into the turn, on a slot of its NAS.
fn begin(s: &mut State, turn: &mut Turn, nas: NasId, taken: Taken, start: Start) {
    let Some(pool) = s.pools.get_mut(&nas) else {
        return;
    };
    let ticket = pool.breaker().started(start == Start::Probe);
    pool.taken += 1;
    turn.starts.push(taken.id);
    if taken.suspect {
        s.alone = Some(taken.id);
    }
    s.out.insert(
        taken.id,
        OutEvent {
            nas,
            try_count: 0,
            accepted: None,
            taken,
            ticket,
            finished: false,
            holds_fork: false,
        },
    );
}

#[cfg(test)]
#[path = "scheduler_test.rs"]
mod tests;
