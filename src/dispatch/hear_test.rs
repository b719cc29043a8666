//! Tests of what the scheduler makes of each thing that it hears.

use super::*;
use crate::attempt::{Report, Verdict};
use crate::dispatch::stand_test::{Answer, Change, FRESH, NAS, Stand, failed, served, waiting};
use crate::dispatch::{Obstacle, Skip, Skipped};
use crate::nas::{Forks, Nas};

const CUT: Class = Class::Cut;
const ASKS: Class = Class::Interactive;
const OTHER: NasId = NasId(2);

fn on(nas: NasId, w: Waiting) -> Waiting {
    Waiting { nas, ..w }
}

fn off() -> Skipped {
    let skip = Skip {
        name: "Off".to_owned(),
        why: "mode=off".to_owned(),
        obstacle: Obstacle::Off,
        log_name: "Off.log".to_owned(),
    };
    Skipped::from([(OTHER, skip)])
}

impl Stand {
    fn hear(&mut self, message: Message) {
        self.scheduler.hear(&mut self.s, message);
    }

    /// Reasons of what has died, in the order of the settlements.
    fn dead(&self) -> Vec<(i64, &str)> {
        let reason = |settle: &'_ Settle| match &settle.to {
            SettleTo::Dead { .. } => settle.id.0,
            _ => panic!("{settle:?}"),
        };
        let all = self.s.settles.iter();
        all.map(|(settle, gone)| {
            assert_eq!((*gone, settle.try_count), (Gone::Finished, None));
            (reason(settle), settle.error.as_deref().unwrap())
        })
        .collect()
    }
}

#[tokio::test]
async fn a_question_to_a_nas_that_is_not_served_is_answered_at_once() {
    let mut stand = Stand::new(1).await;
    stand.s.skipped = off();
    let third = NasId(3);
    let rows = vec![
        waiting(1, 1, CUT),
        on(OTHER, waiting(2, 2, CUT)),
        on(OTHER, waiting(3, 3, ASKS)),
        on(third, waiting(4, 4, ASKS)),
    ];
    stand.hear(Message::Waiting(rows));
    assert_eq!((stand.s.lanes.held(), stand.s.lanes.held_of(NAS)), (1, 1));
    let reasons = [
        (3, "nobody can ask NAS 2: mode=off"),
        (4, "nobody can ask NAS 3: it is not served"),
    ];
    assert_eq!(stand.dead(), reasons);
    assert!(
        stand.s.untold[&EventId(3)].is_some(),
        "it is skipped, and has a log"
    );
    assert!(stand.s.untold[&EventId(4)].is_none());

    // On a NAS that is being given up likewise, but not what runs already: its result counts.
    stand.s.settles.clear();
    stand.add(5, 5, ASKS);
    assert_eq!(stand.claim(FRESH), [5, 1]);
    stand.pool().stopping = true;
    stand.hear(Message::Waiting(vec![
        waiting(5, 5, ASKS),
        waiting(6, 6, ASKS),
    ]));
    assert_eq!(
        stand.dead(),
        [(6, "nobody can ask NAS 1: it is not served")]
    );
}

#[tokio::test]
async fn a_wait_is_bounded_by_the_tries() {
    let stand = Stand::new(1).await;
    let base = i64::try_from(stand.scheduler.config.retry_base.as_millis()).unwrap();
    for (tries, next, is) in [
        (2, 1_000 + 3 * base, 1_000 + 2 * base),
        (2, 1_500, 1_500),
        (0, 9_000, 1_000),
    ] {
        let w = Waiting {
            tries,
            next_try_ms: next,
            ..waiting(1, 1, CUT)
        };
        assert_eq!(
            stand.scheduler.clamped(&w, 1_000).next_try_ms,
            is,
            "{tries}"
        );
    }
}

#[tokio::test]
async fn rows_of_lanes_reach_their_lanes_and_no_nas_that_is_given_up() {
    for stopping in [false, true] {
        let mut stand = Stand::new(1).await;
        // The first of many: the lane keeps eight and asks for the rest.
        for id in 1..=9 {
            stand.add(id, 7, CUT);
        }
        let owner = Owner::User(UserId(7));
        for id in 1..=6 {
            assert_eq!(stand.s.lanes.take(NAS, 0).unwrap().id, EventId(id));
            stand.s.lanes.settled(EventId(id), Gone::Finished, 0);
        }
        assert_eq!(stand.s.lanes.wanted(), [Wanted::Refill(NAS, owner)]);
        stand.s.refilling = true;
        stand.pool().stopping = stopping;
        let rows = (7..=10).map(|id| waiting(id, 7, CUT)).collect();
        stand.hear(Message::Refilled(vec![(NAS, owner)], Some(rows)));
        assert!(!stand.s.refilling, "the next may be asked for");
        assert_eq!(stand.s.lanes.held_of(NAS), if stopping { 2 } else { 4 });
        assert!(stand.s.lanes.wanted().is_empty());
    }
    // What could not be read is asked for again.
    let mut stand = Stand::new(1).await;
    for id in 1..=9 {
        stand.add(id, 7, CUT);
    }
    let owner = Owner::User(UserId(7));
    for id in 1..=6 {
        stand.s.lanes.take(NAS, 0).unwrap();
        stand.s.lanes.settled(EventId(id), Gone::Finished, 0);
    }
    let refill = [Wanted::Refill(NAS, owner)];
    assert_eq!(stand.s.lanes.wanted(), refill);
    stand.hear(Message::Refilled(vec![(NAS, owner)], None));
    assert_eq!(stand.s.lanes.wanted(), refill);
}

#[tokio::test]
async fn a_page_reaches_a_nas_that_is_served() {
    for (stopping, rows, held, again) in [
        (false, Some((vec![waiting(1, 1, CUT)], false)), 1, false),
        (true, Some((vec![waiting(1, 1, CUT)], false)), 0, false),
        (false, None, 0, true),
        (true, None, 0, false),
    ] {
        let mut stand = Stand::new(1).await;
        stand.s.lanes.expect(NAS);
        let load = [Wanted::Load(NAS, EventId(0))];
        assert_eq!(stand.s.lanes.wanted(), load);
        stand.pool().stopping = stopping;
        stand.hear(Message::Loaded(NAS, rows));
        assert_eq!(stand.s.lanes.held_of(NAS), held);
        assert_eq!(stand.s.lanes.wanted() == load, again);
    }
}

#[tokio::test]
async fn a_drop_and_a_resumption_are_heard() {
    let mut stand = Stand::new(1).await;
    stand.add(1, 7, CUT);
    stand.hear(Message::Dropped(EventId(1), NAS, Some(UserId(7))));
    assert_eq!(stand.s.lanes.held(), 0);
    stand.breaks();
    let before = clock::tick_ms();
    stand.hear(Message::Resumed(NAS));
    let after = clock::tick_ms();
    let next = stand.pool().breaker().next_probe().unwrap();
    assert!((before + STALE_MS..=after + STALE_MS).contains(&next));
}

fn ended(id: i64, to: SettleTo) -> Finished {
    Finished {
        id: EventId(id),
        user: Some(UserId(id)),
        nas: NAS,
        try_count: 3,
        to,
        due: 777,
        code: 9,
        ms: 40,
        error: Some("so".to_owned()),
    }
}

#[tokio::test]
async fn each_end_is_counted_frees_its_fork_and_is_to_be_written() {
    let done = SettleTo::Done {
        result: DoneResult::Done,
        answer: None,
        scheme_hash: String::new(),
    };
    let deferred = SettleTo::Deferred {
        until_ms: 5,
        possible_duplicate: true,
    };
    let ready = SettleTo::Ready {
        possible_duplicate: false,
    };
    for (to, counted, goes) in [
        (done, (1, 0, 0), Gone::Finished),
        (deferred, (0, 1, 0), Gone::Deferred(777)),
        (dead("no".to_owned()), (0, 0, 1), Gone::Finished),
        (ready, (0, 0, 0), Gone::Released),
    ] {
        let mut stand = Stand::new(1).await;
        stand.add(1, 1, CUT);
        stand.add(2, 2, CUT);
        assert_eq!(stand.claim(FRESH), [1, 2]);
        stand.hear(Message::Finished(ended(9, to.clone())));
        assert!(stand.s.settles.is_empty(), "nobody knows it");
        stand.hear(Message::Finished(ended(1, to.clone())));
        let pool = stand.pool();
        assert_eq!((pool.done, pool.deferred, pool.dead), counted);
        assert_eq!(pool.p95_ms(), 40);
        // The next has followed it.
        assert_eq!(stand.counts(), (1, 1, 0));
        assert!(stand.runs(2) && stand.s.out[&EventId(1)].finished);
        let (settle, gone) = &stand.s.settles[0];
        assert_eq!((&settle.to, *gone), (&to, goes));
        assert_eq!((settle.id, settle.try_count), (EventId(1), Some(3)));
        assert_eq!(
            (settle.code, settle.ms, settle.error.as_deref()),
            (9, 40, Some("so"))
        );
    }
}

#[tokio::test]
async fn what_is_obeyed_frees_its_fork_before_it_is_written_down() {
    let mut stand = Stand::new(1).await;
    stand.add(1, 1, CUT);
    stand.add(2, 2, CUT);
    let done = Report::of(Verdict::Done);
    stand
        .device
        .answers
        .lock()
        .unwrap()
        .push_back(Answer::Report(done));
    assert_eq!(stand.claim(FRESH), [1, 2]);
    stand.end().await;
    assert!(stand.s.settles.is_empty() && !stand.runs(1) && stand.runs(2));
    assert_eq!(stand.counts(), (2, 1, 0));
    assert_eq!(stand.s.tasks.len(), 2);
    stand.end().await;
    assert_eq!(stand.counts(), (1, 1, 0), "its fork is not freed twice");
    assert_eq!((stand.s.settles.len(), stand.s.tasks.len()), (1, 1));
}

#[tokio::test]
async fn an_attempt_that_breaks_hurts_nobody_else() {
    let mut stand = Stand::new(1).await;
    stand.add(1, 1, CUT);
    let at = stand.breaks();
    let turn = stand.pick(at);
    stand
        .device
        .answers
        .lock()
        .unwrap()
        .push_back(Answer::Panic);
    stand.written(&turn, FRESH);
    stand.end().await;
    assert_eq!(stand.counts(), (0, 0, 0));
    let (settle, gone) = &stand.s.settles[0];
    assert!(
        matches!(&settle.to, SettleTo::Dead { possible_duplicate: true, reason } if reason.contains("panic"))
    );
    assert_eq!(
        (settle.code, settle.try_count, *gone),
        (70, Some(3), Gone::Finished)
    );
    assert!(stand.s.untold.contains_key(&EventId(1)) && stand.s.tasks.is_empty());
    assert_eq!(
        stand.pool().breaker().state(),
        "closed",
        "the probe was heard: no NAS was at fault"
    );
}

#[tokio::test]
async fn what_has_waited_too_long_expires_untold() {
    let mut stand = Stand::new(1).await;
    let w = Waiting {
        expires_ms: 500,
        ..waiting(1, 1, CUT)
    };
    stand.s.lanes.add(&w, 0, 0);
    stand.scheduler.expire(&mut stand.s, 0, 499);
    assert!(stand.s.settles.is_empty());
    stand.scheduler.expire(&mut stand.s, 0, 500);
    let (settle, gone) = &stand.s.settles[0];
    assert_eq!(
        (settle.id, settle.try_count, *gone),
        (EventId(1), None, Gone::Finished)
    );
    assert!(matches!(
        settle.to,
        SettleTo::Done {
            result: DoneResult::Expired,
            ..
        }
    ));
    assert_eq!(settle.error, None);
    assert!(stand.s.untold.contains_key(&EventId(1)));
}

#[tokio::test]
async fn a_question_fails_at_once_while_its_nas_cannot_be_asked() {
    let obstacles: [(&str, Change); 4] = [
        ("", |_| {}),
        ("NAS 1 cannot be asked now: it is paused", Stand::pause),
        (
            "NAS 1 cannot be asked now: it is no longer served",
            |stand| {
                stand.pool().stopping = true;
            },
        ),
        ("NAS 1 cannot be asked now: no connection", |stand| {
            stand.breaks();
        }),
    ];
    for (why, obstacle) in obstacles {
        let mut stand = Stand::new(1).await;
        stand.add(1, 1, ASKS);
        stand.add(2, 2, CUT);
        obstacle(&mut stand);
        let (now, wall_ms) = (clock::tick_ms(), clock::wall_ms());
        stand.scheduler.fail_interactive(&mut stand.s, now, wall_ms);
        let expected: &[_] = if why.is_empty() { &[] } else { &[(1, why)] };
        assert_eq!(stand.dead(), expected);
        assert_eq!(stand.s.untold.contains_key(&EventId(1)), !why.is_empty());
        assert_eq!(stand.s.lanes.held(), if why.is_empty() { 2 } else { 1 });
    }
}

#[tokio::test]
async fn a_nas_that_is_given_up_keeps_what_runs_and_no_question() {
    let mut stand = Stand::new(2).await;
    stand.add(1, 1, CUT);
    assert_eq!(stand.claim(FRESH), [1]);
    stand.add(2, 2, ASKS);
    stand.add(3, 3, CUT);
    let settings = Settings {
        steps: vec![Step::Stop(NAS)],
        skipped: off(),
    };
    stand.hear(Message::Settings(settings));
    assert_eq!(
        stand.dead(),
        [(2, "NAS 1 is no longer served: its row is gone")]
    );
    assert!(stand.s.untold.contains_key(&EventId(2)));
    assert_eq!((stand.s.lanes.held(), stand.s.skipped.len()), (0, 1));
    assert!(stand.pool().stopping, "1 runs on");
    // It is served again before 1 has ended.
    stand.breaks();
    let again = Settings {
        steps: vec![Step::Start(NAS, served(NAS, 5, &stand.device.clone()))],
        skipped: Skipped::new(),
    };
    stand.hear(Message::Settings(again));
    let now = clock::tick_ms();
    let pool = stand.pool();
    assert!(!pool.stopping && pool.served.nas.forks.get() == 5);
    assert_eq!(
        (pool.taken, pool.may_start(now)),
        (1, Start::Probe),
        "it is tried at once"
    );
    let load = Wanted::Load(NAS, EventId(0));
    assert!(stand.s.lanes.wanted().contains(&load));
    // And one on which nothing runs is gone.
    stand.pool().taken = 0;
    stand.apply(vec![Step::Stop(NAS)]);
    assert!(stand.s.pools.is_empty());
    let mut stand = Stand::new(1).await;
    stand.add(1, 1, ASKS);
    let of_this = Skipped::from([(NAS, off()[&OTHER].clone())]);
    let settings = Settings {
        steps: vec![Step::Stop(NAS)],
        skipped: of_this,
    };
    stand.hear(Message::Settings(settings));
    assert_eq!(stand.dead(), [(1, "NAS 1 is no longer served: mode=off")]);
}

#[tokio::test]
async fn a_change_takes_hold_and_may_mend_the_nas() {
    let mut stand = Stand::new(1).await;
    stand.breaks();
    let mut new = served(NAS, 7, &stand.device.clone());
    new.log_name = "Other.log".to_owned();
    stand.apply(vec![Step::Change(NAS, new.clone())]);
    let now = clock::tick_ms();
    let pool = stand.pool();
    assert_eq!(
        (pool.served.nas.forks.get(), pool.served.log_name.as_str()),
        (7, "Other.log")
    );
    assert_ne!(pool.may_start(now), Start::Probe, "more forks mend nothing");
    new.nas = Arc::new(Nas {
        forks: Forks::clamped(7).0,
        ..Nas::new(NAS, "Bras", "10.90.185.9")
    });
    stand.apply(vec![Step::Change(NAS, new)]);
    assert_eq!(stand.pool().may_start(clock::tick_ms()), Start::Probe);
}

#[tokio::test]
async fn who_asks_after_a_change_is_not_told_what_was_before() {
    let mut stand = Stand::new(1).await;
    stand.add(1, 1, CUT);
    stand.add(2, 2, CUT);
    assert_eq!(stand.claim(FRESH), [1, 2]);
    stand.s.status_at = 5;
    let settings = Settings {
        steps: vec![Step::Change(NAS, served(NAS, 2, &stand.device.clone()))],
        skipped: Skipped::new(),
    };
    stand.hear(Message::Settings(settings));
    assert_eq!(stand.s.status_at, 0);
    assert!(stand.runs(2), "there is a second fork now");
}

#[tokio::test]
async fn a_nas_that_obeys_nobody_makes_nobody_wait() {
    let dark: [(bool, Change); 4] = [
        (false, |_| {}),
        (true, Stand::pause),
        (true, |stand| stand.pool().stopping = true),
        (true, |stand| {
            let mut breaker = stand.pool().breaker();
            let ticket = breaker.started(false);
            let _ = breaker.ended(clock::tick_ms(), ticket, None, failed(true), 0);
        }),
    ];
    for (is_dark, set) in dark {
        let mut stand = Stand::new(1).await;
        let second = served(OTHER, 1, &stand.device.clone());
        stand.apply(vec![Step::Start(OTHER, second)]);
        stand.s.lanes.wanted();
        stand.s.lanes.loaded(OTHER, &[], false, 0, 0);
        stand.add(1, 7, CUT);
        stand.s.lanes.add(&on(OTHER, waiting(2, 7, CUT)), 0, 0);
        set(&mut stand);
        stand.scheduler.read_wanted(&mut stand.s);
        let next = stand.s.lanes.next(OTHER, 0);
        assert_eq!(next.is_some_and(|next| next.taken.overtakes), is_dark);
    }
}

#[tokio::test]
async fn lanes_are_read_by_one_question_at_a_time() {
    let mut stand = Stand::new(1).await;
    let lane = |n: i64| (NAS, Owner::User(UserId(n)));
    stand.s.refills = (0..250).map(lane).collect();
    stand.scheduler.read_wanted(&mut stand.s);
    assert!(stand.s.refilling && stand.s.refills.len() == 50);
    stand.scheduler.read_wanted(&mut stand.s);
    assert_eq!((stand.s.refills.len(), stand.s.readers.len()), (50, 1));
    let Some(Message::Refilled(lanes, Some(rows))) = stand.inbox.recv().await else {
        panic!("it is read");
    };
    assert_eq!((lanes.len(), rows.len()), (REFILL_LANES, 0));
    stand.s.lanes.expect(NAS);
    stand.scheduler.read_wanted(&mut stand.s);
    let Some(Message::Loaded(NAS, Some((rows, false)))) = stand.inbox.recv().await else {
        panic!("a page of nothing");
    };
    assert!(rows.is_empty());
}

#[tokio::test]
async fn rows_whose_end_is_not_written_yet_are_not_taken_up_again() {
    let mut stand = Stand::new(1).await;
    let end = unstarted(EventId(1), dead("nobody can be asked".to_owned()));
    stand.s.settles.push((end, Gone::Finished));
    let rows = || vec![waiting(1, 1, CUT), waiting(2, 2, CUT)];
    stand.hear(Message::Loaded(NAS, Some((rows(), false))));
    assert_eq!(stand.s.lanes.held(), 1);
    assert_eq!(stand.s.lanes.take(NAS, FRESH).unwrap().id, EventId(2));
}
