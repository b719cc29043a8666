//! What befalls the simulated world (answers of devices, dead NASes, time, crashes, take-overs), and how a run ends:
//! everything is mended, comes to rest, and is compared with the devices.

use std::collections::BTreeMap;

use nas_event_daemon::attempt::{DoneResult, Failure, FailureClass, Scope, Verdict};
use nas_event_daemon::event::Class;

use super::Planted;
use super::daemon::Daemon;
use super::model::{End, State};
use super::world::{DAY, ROUNDS, World};

/// What runs when a daemon is told to stop gets so long, ms.
const DRAIN_MS: u64 = 30_000;
/// Silence after which a daemon is followed by another, ms.
const SILENCE_MS: u64 = 10_000;

impl World {
    /// What the NAS did and what the attempt knows of it: (verdict, obeyed, perhaps obeyed).
    pub(super) fn verdict(&mut self, nas: i64, trouble: bool) -> (Verdict, bool, bool) {
        let script = nas % 2 == 0;
        if self.down.contains(&nas) {
            return if script {
                (Verdict::Exit(254), false, true)
            } else {
                (Verdict::Failed(Failure::transport("down")), false, false)
            };
        }
        let failed = |class, parks| {
            Verdict::Failed(Failure {
                scope: if parks { Scope::Nas } else { Scope::Event },
                class,
                code: 1,
                text: "no".to_owned(),
                parks,
            })
        };
        let obeyed = self.dice.once_in(2);
        match self.dice.roll(if trouble { 40 } else { 1 }) {
            0..32 => (Verdict::Done, true, false),
            32 => (failed(FailureClass::Unknown, false), obeyed, true),
            33 => (failed(FailureClass::Refused, false), false, false),
            34 => (failed(FailureClass::Permanent, false), false, false),
            35 => (failed(FailureClass::Permanent, true), false, false),
            36 => (Verdict::Exit(143), obeyed, true),
            37 => (Verdict::Exit(137), obeyed, true),
            38 => (Verdict::NotImplemented, false, false),
            _ => (Verdict::Exit(1), false, false),
        }
    }

    pub(super) fn flip_nas(&mut self) {
        let names: Vec<i64> = self.all.keys().map(|n| n.0).collect();
        let nas = self.dice.one(&names);
        if !self.down.remove(&nas) {
            self.down.insert(nas);
        }
        self.trace.note("flip", &[nas]);
    }

    // -- time and death -------------------------------------------------------------------------

    pub(super) fn pass_time(&mut self) {
        let ms = match self.dice.roll(10) {
            0..9 if self.hasty => self.dice.between(1, 3),
            9 if self.hasty && !self.dice.once_in(6) => self.dice.between(4, 300),
            0..2 => self.dice.between(1, 20),
            2..4 => self.dice.between(20, 400),
            4..7 => self.dice.between(1, 2_000),
            7..9 => self.dice.between(2_000, 70_000),
            _ => self.dice.between(70_000, 700_000),
        };
        self.advance(ms);
    }

    pub(super) fn advance(&mut self, ms: u64) {
        self.now += ms;
        self.wall_ms += i64::try_from(ms).unwrap();
        self.trace.note("time", &[i64::try_from(ms).unwrap()]);
    }

    pub(super) fn step_clock(&mut self) {
        let step = self
            .dice
            .one(&[-2_000, -2_000, 2_000, -DAY, DAY, -365 * DAY, 365 * DAY]);
        self.wall_ms += step;
        self.count("clock steps");
        self.trace.note("clock", &[step]);
    }

    pub(super) fn crash(&mut self) {
        self.count("crashes");
        let epoch = self.live.epoch;
        // A turn on its way to the database may still arrive.
        if let Some(written) = self.live.written.take()
            && self.dice.once_in(2)
        {
            let _ = self.model.turn(&written.turn);
        }
        self.end_with(epoch);
        self.start_anew();
    }

    /// What the daemon of this epoch ran ends with it, wherever it was.
    fn end_with(&mut self, epoch: i64) {
        let mut kept = Vec::new();
        for exec in std::mem::take(&mut self.execs) {
            if exec.epoch != epoch {
                kept.push(exec);
                continue;
            }
            let (id, nas) = (exec.begun.event.id.0, exec.begun.out.nas.0);
            let fact = self.facts.get_mut(&id).unwrap();
            fact.perhaps = true;
            if epoch == self.live.epoch && fact.class != Class::Interactive && self.dice.once_in(2)
            {
                self.device.insert((nas, exec.user), id);
            }
        }
        self.execs = kept;
    }

    fn start_anew(&mut self) {
        self.note_cut();
        let epoch = self.model.own();
        if self.planted == Planted::UnflaggedAhead {
            for (id, row) in &mut self.model.stack {
                row.dup &= self.facts[id].starts > 0;
            }
        }
        self.live = Daemon::new(epoch, self.sizes, self.planted);
        self.settings();
        self.trace.note("own", &[epoch]);
    }

    /// It is told to stop: what runs gets its time.
    pub(super) fn leave(&mut self) {
        if !self.live.leaving {
            self.count("stops");
            self.trace.note("leave", &[]);
            self.live.leaving = true;
            self.leave_by = self.now + DRAIN_MS;
        }
    }

    /// Its time is over: what still runs is ended where it is.
    pub(super) fn cut(&mut self) {
        self.reap();
        self.reap();
        self.trace.note("cut", &[]);
        // These never ran.
        self.live.give_back(self.now);
        for exec in &self.execs {
            if exec.epoch == self.live.epoch {
                self.claims.cut.insert(exec.begun.event.id.0);
            }
        }
        self.end_with(self.live.epoch);
        self.live.cut();
    }

    /// A daemon that has left in order leaves nothing running, and nothing of it to flag.
    pub(super) fn gone(&mut self) {
        if !self.live.has_left() {
            return;
        }
        let rows = self.model.stack.iter();
        let mine =
            rows.filter(|(_, row)| row.state == State::Running && row.epoch == self.live.epoch);
        if let Some((id, _)) = mine.into_iter().next() {
            let text = format!("event {id} stays running after the end of its daemon");
            self.wrong(text);
        }
        self.count("left in order");
        self.start_anew();
    }

    /// The daemon stands still long enough that another takes over.
    pub(super) fn freeze(&mut self) {
        self.count("take-overs");
        if let Some(old) = self.frozen.take() {
            self.end_with(old.epoch);
        }
        // Nobody is followed before so much silence.
        let silence = self.dice.between(SILENCE_MS, 2 * SILENCE_MS);
        self.advance(silence);
        for exec in &self.execs {
            self.facts.get_mut(&exec.begun.event.id.0).unwrap().perhaps = true;
        }
        self.note_cut();
        let epoch = self.model.own();
        let new = Daemon::new(epoch, self.sizes, self.planted);
        self.frozen = Some(std::mem::replace(&mut self.live, new));
        self.settings();
        self.trace.note("freeze", &[epoch]);
    }

    /// The old one goes on where it stood, until it is told that its time is over.
    pub(super) fn thawed(&mut self) {
        let Some(mut old) = self.frozen.take() else {
            return;
        };
        let jitter = u32::try_from(self.dice.roll(u64::from(u32::MAX))).unwrap();
        let epoch = old.epoch;
        let mut begun = Vec::new();
        if let Some(mut written) = old.written.take() {
            // An answer may have come in time, and be heard only now.
            let answer = match written.answer.take() {
                Some(turned) => Ok(turned),
                None => self.model.turn(&written.turn),
            };
            let Ok(turned) = answer else {
                self.count("fenced");
                self.end_with(epoch);
                return;
            };
            let since = self.since(&written, epoch);
            self.told(&turned.started);
            begun.extend(old.end_turn(written, turned, self.now, since));
        }
        begun.extend(old.reap(self.now, self.wall_ms, jitter));
        if !old.leaving {
            while let Some(message) = old.inbox.pop_front() {
                old.hear(message, self.now, self.wall_ms);
            }
        }
        old.begin_turn(self.now, self.wall_ms);
        self.frozen = Some(old);
        self.all_begin(epoch, begun);
    }

    // -- the end --------------------------------------------------------------------------------

    pub(super) fn mend(&mut self) {
        self.trace.note("mend", &[]);
        self.down.clear();
        while let Some((id, row)) = self.late.pop() {
            self.model.compact.insert(id, row);
        }
        for _ in 0..3 {
            self.thawed();
        }
        if let Some(old) = self.frozen.take() {
            self.end_with(old.epoch);
        }
        while self.live.written.is_some() {
            self.write(9);
        }
        self.wish = self.all.clone();
        while self.live.leaving && self.found.is_empty() {
            self.cut();
            self.begin_turn();
            self.write(9);
            self.gone();
        }
        self.settings();
    }

    pub(super) fn come_to_rest(&mut self) {
        for _ in 0..ROUNDS {
            if !self.found.is_empty() || self.is_empty() {
                return;
            }
            let before = self.trace.hash;
            self.expand();
            while let Some(message) = self.live.inbox.pop_front() {
                self.live.hear(message, self.now, self.wall_ms);
            }
            self.reap();
            while !self.live.reads.is_empty() {
                self.read_at(0, false);
            }
            while self.begin_turn() {
                self.write(9);
            }
            while !self.execs.is_empty() {
                self.end_at(0, false);
            }
            let nothing = self.trace.hash == before
                && self.live.reads.is_empty()
                && self.live.ended.is_empty()
                && self.live.rests.is_empty();
            if nothing {
                let at = self.live.wake_at(self.now);
                self.advance(at - self.now);
            }
        }
        let left: Vec<i64> = self.model.stack.keys().copied().take(5).collect();
        self.wrong(format!(
            "stuck: events {left:?} and perhaps more do not end"
        ));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.model.compact.is_empty() && self.model.stack.is_empty() && self.execs.is_empty()
    }

    pub(super) fn check_the_end(&mut self) {
        if !self.found.is_empty() {
            return;
        }
        let mut wrong = Vec::new();
        let held = self.live.lanes.held();
        if held > 0 {
            wrong.push(format!("{held} ids are held although nothing waits"));
        }
        let mut last: BTreeMap<(i64, i64), i64> = BTreeMap::new();
        for (id, fact) in &self.facts {
            match self.model.ended.get(id) {
                None => wrong.push(format!("lost: event {id} is nowhere")),
                Some(End::Done(DoneResult::Done)) => {
                    if !fact.succeeded {
                        wrong.push(format!("event {id} is done, but no attempt succeeded"));
                    }
                    if fact.ordered && fact.class != Class::Interactive {
                        last.insert((fact.nas, fact.user), *id);
                    }
                }
                Some(End::Done(_) | End::Dead) => {}
            }
        }
        for (lane, id) in last {
            let at = self.device.get(&lane).copied().unwrap_or(0);
            // Obeyed, and its daemon died before that was written: it ended another way.
            let unheard = || {
                let end = self.model.ended.get(&at);
                self.facts[&at].succeeded && !matches!(end, Some(End::Done(DoneResult::Done)))
            };
            let later_and_perhaps = at > id && (self.facts[&at].perhaps || unheard());
            if at != id && !later_and_perhaps && !self.touched.contains(&lane) {
                wrong.push(format!(
                    "diverged: account {} on NAS {} is as event {at} left it, not as event {id}",
                    lane.1, lane.0
                ));
            }
        }
        for text in wrong {
            self.wrong(text);
        }
    }
}
