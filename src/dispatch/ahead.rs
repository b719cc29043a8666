//! Events that are claimed before a fork is free for them, so that forks with short attempts do
//! not stand idle while a turn is written. Pure: `now` is an argument.
//!
//! They are claimed like running ones, and nothing of their lanes starts meanwhile; a crash flags
//! them as possible duplicates although they never ran. So they are as few as will find a fork
//! before the next turn is written, and they go back when none becomes free.

use std::collections::VecDeque;

use crate::event::EventId;

/// Most events ahead for each fork, whatever the attempts take.
const FOR_EACH_FORK: usize = 4;
/// Turns that the events ahead must last for: the one under way and their own, and as many again,
/// since some turns take longer than others.
const TURNS: f64 = 4.0;
/// And for this long, ms: attempts that were started together end together, and each of them has
/// its way through the scheduler.
const BURST_MS: f64 = 7.0;
/// An event ahead goes back after this time without a fork, ms.
const WAIT_MAX_MS: u64 = 250;
/// A NAS whose forks are all silent for this many usual attempts gets no more ahead.
const SILENT_ATTEMPTS: f64 = 10.0;
/// At least so long, ms: below it the clock and the other tasks say more than the NAS.
const SILENT_MIN_MS: f64 = 50.0;
/// An attempt takes at least this, ms; the clock counts whole ones.
const ATTEMPT_MIN_MS: f64 = 0.25;
/// How much the last attempt says of what the next will take.
const WEIGHT: f64 = 0.1;

/// A claimed event that waits for a fork; `T` is what starting it needs.
#[derive(Debug)]
pub struct Claimed<T> {
    /// Event.
    pub id: EventId,
    /// It goes before the others.
    pub interactive: bool,
    /// Tick at which its claim was written.
    pub since: u64,
    /// What starting it needs.
    pub start: T,
}

impl<T> Claimed<T> {
    fn is_late(&self, now: u64) -> bool {
        now.saturating_sub(self.since) >= WAIT_MAX_MS
    }
}

/// The events ahead of one NAS, and what its attempts take.
#[derive(Debug)]
pub struct Ahead<T> {
    queue: VecDeque<Claimed<T>>,
    /// Moving mean of the attempts, ms.
    usual_ms: Option<f64>,
    /// Tick at which the last attempt ended.
    ended: u64,
}

impl<T> Default for Ahead<T> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            usual_ms: None,
            ended: 0,
        }
    }
}

impl<T> Ahead<T> {
    /// How many may be claimed ahead for `forks`, when a turn takes `turn_ms`. None before the
    /// first attempt has ended, and none while the NAS answers nobody.
    pub fn places(&self, forks: usize, now: u64, turn_ms: f64) -> usize {
        let Some(usual) = self.usual_ms else {
            return 0;
        };
        let silent = (usual * SILENT_ATTEMPTS).max(SILENT_MIN_MS);
        if now.saturating_sub(self.ended) as f64 > silent {
            return 0;
        }
        let usual = usual.max(ATTEMPT_MIN_MS);
        // As many as will have found a fork in half the time after which they would go back.
        let in_time = forks as f64 * WAIT_MAX_MS as f64 / 2.0 / usual;
        let lasts = TURNS * turn_ms + BURST_MS;
        let wanted = (forks as f64 * lasts / usual).min(in_time);
        // A claim that saves a fork less than half an attempt is not worth its doubt.
        let most = 1..=forks * FOR_EACH_FORK;
        most.take_while(|n| *n as f64 <= wanted.round()).count()
    }

    /// For how long `forks` find one here, ms.
    pub(super) fn lasts_ms(&self, forks: usize) -> f64 {
        let usual = self.usual_ms.unwrap_or(0.0).max(ATTEMPT_MIN_MS);
        self.queue.len() as f64 * usual / forks.max(1) as f64
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// An attempt of `ms` ended.
    pub fn ended(&mut self, now: u64, ms: i64) {
        let ms = ms as f64;
        let usual = self.usual_ms.get_or_insert(ms);
        *usual += (ms - *usual) * WEIGHT;
        self.ended = now;
    }

    /// Who waits for an answer goes first; the others go as they were picked, which knows how long
    /// each has waited already.
    pub fn push(&mut self, claimed: Claimed<T>) {
        let at = if claimed.interactive {
            self.queue.partition_point(|c| c.interactive)
        } else {
            self.queue.len()
        };
        self.queue.insert(at, claimed);
    }

    /// Whether the next has waited too long: what was true when it was claimed may not be so.
    pub fn is_late(&self, now: u64) -> bool {
        self.queue.front().is_some_and(|c| c.is_late(now))
    }

    /// The next.
    pub fn pop(&mut self) -> Option<Claimed<T>> {
        self.queue.pop_front()
    }

    /// Those that have waited too long; all of them if the NAS may not be sent anything.
    pub fn overdue(&mut self, now: u64, all: bool) -> Vec<Claimed<T>> {
        let late = |c: &Claimed<T>| all || c.is_late(now);
        if !self.queue.iter().any(late) {
            return Vec::new();
        }
        let (gone, kept) = self.queue.drain(..).partition(late);
        self.queue = kept;
        Vec::from(gone)
    }

    /// Tick at which the first goes back.
    pub fn next_overdue(&self) -> Option<u64> {
        let since = self.queue.iter().map(|c| c.since).min();
        since.map(|since| since.saturating_add(WAIT_MAX_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(id: i64, interactive: bool, since: u64) -> Claimed<()> {
        Claimed {
            id: EventId(id),
            interactive,
            since,
            start: (),
        }
    }

    fn after(ms: i64) -> Ahead<()> {
        let mut ahead = Ahead::default();
        ahead.ended(1_000, ms);
        ahead
    }

    #[test]
    fn as_many_as_will_find_a_fork_before_the_next_turn_is_written() {
        assert_eq!(
            Ahead::<()>::default().places(10, 0, 3.0),
            0,
            "nothing known"
        );
        assert_eq!(after(0).places(10, 1_000, 3.0), 40, "four for each fork");
        assert_eq!(after(5).places(10, 1_000, 0.5), 18);
        assert_eq!(after(50).places(10, 1_000, 5.0), 5);
        assert_eq!(
            after(300).places(5, 1_000, 5.0),
            0,
            "it would save a sixtieth"
        );
        assert_eq!(after(30_000).places(100, 1_000, 5.0), 0);
        // However slow the turns are, none more than would find a fork in 125 ms.
        assert_eq!(after(50).places(10, 1_000, 100.0), 25);
    }

    #[test]
    fn none_for_a_nas_that_answers_nobody() {
        assert_eq!(after(5).places(10, 1_050, 0.5), 18);
        assert_eq!(after(5).places(10, 1_051, 3.0), 0);
        assert!(after(20).places(10, 1_200, 3.0) > 0, "ten usual attempts");
        assert_eq!(after(20).places(10, 1_201, 3.0), 0);
    }

    #[test]
    fn what_attempts_take_is_learned_anew() {
        let mut ahead = after(0);
        for n in 0..60 {
            ahead.ended(2_000 + n, 400);
        }
        assert_eq!(ahead.places(10, 2_060, 3.0), 0);
    }

    #[test]
    fn who_waits_for_an_answer_goes_first_and_the_others_in_their_order() {
        let mut ahead = Ahead::default();
        for (id, interactive) in [(1, false), (2, true), (3, false), (4, true)] {
            ahead.push(claimed(id, interactive, 0));
        }
        let order: Vec<i64> = std::iter::from_fn(|| ahead.pop()).map(|c| c.id.0).collect();
        assert_eq!(order, [2, 4, 1, 3]);
    }

    #[test]
    fn who_finds_no_fork_goes_back() {
        let mut ahead = Ahead::default();
        ahead.push(claimed(1, false, 100));
        ahead.push(claimed(2, false, 200));
        assert_eq!(ahead.next_overdue(), Some(350));
        assert!(ahead.overdue(349, false).is_empty() && !ahead.is_late(349));
        assert!(ahead.is_late(350), "it is not started any more");
        let gone = ahead.overdue(350, false);
        assert_eq!((gone.len(), gone[0].id, ahead.len()), (1, EventId(1), 1));
        assert_eq!(ahead.overdue(350, true).len(), 1, "all");
        assert_eq!((ahead.len(), ahead.next_overdue()), (0, None));
    }

    #[test]
    fn how_long_the_forks_find_one_here() {
        let mut ahead = after(5);
        assert_eq!(ahead.lasts_ms(10), 0.0);
        (0..20).for_each(|id| ahead.push(claimed(id, false, 0)));
        assert_eq!((ahead.lasts_ms(10), ahead.lasts_ms(0)), (10.0, 100.0));
    }
}
