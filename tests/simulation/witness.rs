//! What the NASes see, and what must be true when an attempt reaches one. The witness keeps its own
//! book of claims: it believes neither the lanes nor what waits ahead.

use std::collections::{BTreeMap, BTreeSet};

use nas_event_daemon::attempt::{Report, Verdict};
use nas_event_daemon::dispatch::breaker::Start;
use nas_event_daemon::event::{Class, EventId, UserId};
use nas_event_daemon::nas::NasId;
use nas_event_daemon::store::Started;

use super::daemon::{Begun, Ended};
use super::model::{Row, State};
use super::world::{Exec, World};

/// After so long without a fork a claim is not started, ms (docs/architecture.md).
const WAIT_MS: u64 = 250;
/// Claimed ahead of each fork at most.
const FOR_EACH_FORK: usize = 4;
/// A NAS is silent after so many of its longest attempts, and not before so long, ms.
const SILENT_ATTEMPTS: i64 = 10;
const SILENT_MS: i64 = 50;

/// What is known of claims.
#[derive(Default)]
pub struct Claims {
    /// When the daemon was told that its claim is written, ms.
    told: BTreeMap<i64, u64>,
    /// Those that were claimed when a daemon ended in any way but in order, run or not.
    pub(super) cut: BTreeSet<i64>,
    /// Retries, whose flag is that of the event which died.
    pub(super) again: BTreeSet<i64>,
}

impl World {
    /// The daemon hears that these are claimed now.
    pub(super) fn told(&mut self, started: &[Started]) {
        for event in started {
            self.claims.told.insert(event.id.0, self.now);
        }
    }

    /// A daemon ends, or is taken for dead: whatever is claimed may have been carried out.
    pub(super) fn note_cut(&mut self) {
        let rows = self.model.stack.iter();
        let running = rows.filter(|(_, row)| row.state == State::Running);
        self.claims.cut.extend(running.map(|(id, _)| *id));
    }

    /// More than its forks can use is never claimed, and nothing ahead for who is silent.
    pub(super) fn check_claims(&mut self) {
        let Some(written) = &self.live.written else {
            return;
        };
        let mut wrong = Vec::new();
        for id in &written.turn.starts {
            let Some(pool) = self
                .live
                .out
                .get(id)
                .and_then(|o| self.live.pools.get(&o.nas))
            else {
                continue;
            };
            let nas = self.live.out[id].nas;
            if pool.taken > pool.forks * (1 + FOR_EACH_FORK) {
                wrong.push(format!(
                    "NAS {nas}: {} are claimed for {} forks",
                    pool.taken, pool.forks
                ));
            }
            let silent = match self.live.heard.get(&nas) {
                None => true,
                Some((last, longest)) => {
                    let patience = SILENT_MS.max(longest * SILENT_ATTEMPTS);
                    self.now - last > u64::try_from(patience).unwrap()
                }
            };
            if silent && pool.taken > pool.forks {
                wrong.push(format!(
                    "NAS {nas} answers nobody, and {} are claimed",
                    pool.taken
                ));
            }
        }
        for text in wrong {
            self.wrong(text);
        }
    }

    pub(super) fn all_begin(&mut self, epoch: i64, begun: Vec<Begun>) {
        for one in begun {
            self.begin(epoch, one);
        }
    }

    /// What a claim has to be when its event starts.
    fn check_claim(&mut self, epoch: i64, begun: &Begun, starts: u32) {
        let (id, nas) = (begun.event.id.0, begun.out.nas);
        let (tries, flagged) = (begun.event.try_count, begun.event.possible_duplicate);
        let told = self.claims.told.get(&id).copied().unwrap_or(0);
        let age = self.now - told;
        if age >= WAIT_MS {
            self.wrong(format!("event {id} starts on a claim of {age} ms ago"));
        }
        let cut = self.claims.cut.contains(&id);
        if cut && !flagged {
            self.wrong(format!(
                "event {id} was claimed at a crash and starts without a flag"
            ));
        }
        let fresh = !cut && !self.claims.again.contains(&id);
        if fresh && starts == 1 && (flagged || tries != 1) {
            self.wrong(format!(
                "event {id} never ran, but starts as its try {tries}, flag {flagged}"
            ));
        }
        if epoch != self.live.epoch {
            return;
        }
        if self.live.leaving {
            self.wrong(format!("event {id} starts although the daemon is leaving"));
        }
        if self
            .live
            .pools
            .get(&nas)
            .is_none_or(|p| p.stopping || p.paused)
        {
            self.wrong(format!(
                "event {id} starts on NAS {nas}, which is paused or not served"
            ));
        }
        // What was claimed for a free fork takes it, whatever came in while that was written.
        if age > 0 {
            self.count("followed");
            if begun.gate != Start::Free && !begun.out.ticket.is_probe() {
                self.wrong(format!(
                    "event {id} starts on NAS {nas}, which does not obey"
                ));
            }
        }
    }

    /// An attempt reaches its NAS: this is where everything has to be right.
    fn begin(&mut self, epoch: i64, begun: Begun) {
        let id = begun.event.id.0;
        let nas = begun.out.nas.0;
        let interactive = begun.out.taken.class == Class::Interactive;
        self.count("attempts");
        self.trace
            .note("start", &[id, nas, i64::from(begun.event.try_count)]);
        let fact = self.facts.get_mut(&id).unwrap();
        fact.starts += 1;
        let (user, ordered, starts) = (fact.user, fact.ordered, fact.starts);
        let unflagged = fact.perhaps && !begun.event.possible_duplicate;
        if unflagged {
            self.wrong(format!("event {id} runs again without a flag"));
        }
        if starts > self.model.marks.get(&id).copied().unwrap_or(0) {
            self.wrong(format!(
                "event {id} runs more often than it was marked running"
            ));
        }
        if epoch != self.model.epoch {
            self.wrong(format!(
                "event {id} is started by a daemon that was deposed"
            ));
        }
        self.check_claim(epoch, &begun, starts);
        let recorded = self.model.stack.get(&id).is_some_and(|r| {
            r.state == State::Running && r.epoch == epoch && r.tries == begun.event.try_count
        });
        if !recorded {
            self.wrong(format!("event {id} runs without a record of it"));
        }
        let mine = self.execs.iter().filter(|e| e.epoch == epoch);
        let beside = mine.clone().filter(|e| e.begun.out.nas.0 == nas).count();
        let company = mine.clone().count();
        let overlap = mine
            .clone()
            .filter(|e| e.user == user && e.begun.out.nas.0 == nas)
            .find(|e| e.begun.out.taken.class != Class::Interactive && !interactive)
            .map(|e| e.begun.event.id.0);
        let suspect = mine.clone().any(|e| e.begun.out.taken.suspect);
        if beside >= begun.forks {
            self.wrong(format!(
                "NAS {nas} runs more than its {} forks",
                begun.forks
            ));
        }
        if let Some(other) = overlap {
            self.wrong(format!("event {id} overlaps event {other}"));
        }
        if company > 0 && (begun.out.taken.suspect || suspect) {
            self.wrong(format!("event {id}: a suspect has company"));
        }
        if ordered && !interactive {
            let earlier = |r: &Row| r.user == user && r.class != Class::Interactive;
            let first = |same: bool| {
                let mut rows = self.model.stack.range(..id);
                rows.find(|(_, r)| earlier(r) && (r.nas == nas) == same)
                    .map(|(id, _)| *id)
            };
            let (lane, elsewhere) = (first(true), first(false));
            if let Some(before) = lane {
                self.wrong(format!("event {id} starts before event {before}"));
            }
            if let Some(before) = elsewhere
                && begun.sure
                && self.sizes.window > 1_000
                && !begun.out.taken.overtakes
                && self
                    .wish
                    .contains_key(&NasId(self.model.stack[&before].nas))
            {
                self.wrong(format!(
                    "event {id} overtakes event {before} on another NAS and does not say so"
                ));
            }
        }
        self.execs.push(Exec { epoch, begun, user });
    }

    pub(super) fn end_one(&mut self) {
        let some = if self.hasty { 3 } else { 1 };
        for _ in 0..some {
            if self.hasty {
                let ms = self.dice.roll(4);
                self.advance(ms);
            }
            if !self.execs.is_empty() {
                let at = self.dice.index(self.execs.len());
                self.end_at(at, true);
            }
        }
    }

    pub(super) fn all_ends_at_once(&mut self) {
        while !self.execs.is_empty() {
            self.end_at(0, true);
        }
    }

    pub(super) fn end_at(&mut self, at: usize, trouble: bool) {
        let exec = &self.execs[at];
        let frozen = self.frozen.as_ref().is_some_and(|d| d.epoch == exec.epoch);
        if frozen && trouble && !self.dice.once_in(3) {
            return;
        }
        let exec = self.execs.swap_remove(at);
        let (id, nas) = (exec.begun.event.id.0, exec.begun.out.nas.0);
        let (verdict, applied, perhaps) = self.verdict(nas, trouble);
        self.trace.note("end", &[id, nas, i64::from(applied)]);
        let stale = exec.epoch != self.live.epoch;
        let fact = self.facts.get_mut(&id).unwrap();
        fact.perhaps |= perhaps || (stale && applied);
        if applied && fact.class != Class::Interactive {
            if stale {
                self.touched.insert((nas, exec.user));
            } else {
                self.device.insert((nas, exec.user), id);
            }
        }
        fact.succeeded |= verdict == Verdict::Done;
        let ended = Ended {
            id: EventId(id),
            user: UserId(exec.user),
            report: Report::of(verdict),
            ms: i64::try_from(self.now - exec.begun.at).unwrap(),
        };
        if !stale {
            self.live.ended.push_back(ended);
        } else if let Some(old) = &mut self.frozen {
            old.ended.push_back(ended);
        }
    }
}
