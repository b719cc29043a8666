//! Tests of the way from a claim to a fork and back.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::attempt::{Report, Verdict};
use crate::dispatch::breaker::Ticket;
use crate::dispatch::stand_test::{Answer, Change, FRESH, NAS, Stand, started, waiting};
use crate::event::{UserId, Waiting};
use crate::nas::Nas;

const ACCESS: Class = Class::Access;

#[tokio::test]
async fn a_start_that_finds_nothing_gives_everything_back() {
    let mut stand = Stand::new(2).await;
    let suspect = Waiting {
        deaths: 3,
        ..waiting(1, 7, ACCESS)
    };
    stand.s.lanes.add(&suspect, 0, 0);
    stand.add(2, 7, ACCESS);
    let at = stand.breaks();
    let turn = stand.pick(at);
    assert_eq!(
        (turn.starts.as_slice(), stand.s.alone),
        (&[EventId(1)][..], Some(EventId(1)))
    );
    assert_eq!(stand.counts(), (1, 0, 0));
    assert_ne!(
        stand.pool().may_start(at),
        Start::Probe,
        "it is being probed"
    );
    stand
        .scheduler
        .start(&mut stand.s, &turn, Turned::default(), FRESH);
    assert_eq!(stand.counts(), (0, 0, 0));
    assert!(stand.s.out.is_empty() && stand.s.alone.is_none());
    assert_eq!(stand.pool().may_start(at), Start::Probe, "another may be");
    assert_eq!(stand.pick(at).starts, [EventId(2)], "the lane goes on");
}

#[tokio::test]
async fn what_is_claimed_takes_its_fork_or_waits_for_one() {
    let mut stand = Stand::new(2).await;
    for id in 1..=4 {
        stand.add(id, id, ACCESS);
    }
    assert_eq!(stand.claim(FRESH), [1, 2, 3, 4]);
    assert_eq!(stand.counts(), (4, 2, 2));
    assert!(stand.runs(1) && stand.runs(2) && !stand.runs(3) && !stand.runs(4));
    assert_eq!(
        (stand.s.tasks.len(), stand.s.out[&EventId(1)].try_count),
        (2, 3)
    );
    assert_eq!(stand.s.out[&EventId(3)].accepted, Some((0, "user_add")));
    // Who waits for an answer goes before the others.
    stand.add(5, 5, Class::Interactive);
    assert_eq!(stand.claim(FRESH), [5]);
    assert_eq!(stand.counts(), (5, 2, 3));
    stand.pool().running -= 1;
    stand.scheduler.follow(&mut stand.s, NAS);
    assert!(stand.runs(5) && !stand.runs(3), "one fork, one event");
    assert_eq!(stand.counts(), (5, 2, 2));
    stand.pool().running = 0;
    stand.scheduler.follow(&mut stand.s, NAS);
    assert!(stand.runs(3) && stand.runs(4));
    assert_eq!(stand.counts(), (5, 2, 0));
}

/// A tick of the clock passes.
fn passes() {
    let now = clock::tick_ms();
    while clock::tick_ms() == now {
        std::hint::spin_loop();
    }
}

/// A NAS with one fork, on which 1 runs and 2 is ahead since `since`; 1 = this moment.
async fn one_ahead(since: u64) -> Stand {
    let mut stand = Stand::new(1).await;
    stand.add(1, 1, ACCESS);
    assert_eq!(stand.claim(FRESH), [1]);
    stand.add(2, 2, ACCESS);
    let since = if since == 1 { clock::tick_ms() } else { since };
    assert_eq!(stand.claim(since), [2]);
    assert_eq!(stand.counts(), (2, 1, 1));
    stand
}

#[tokio::test]
async fn what_is_ahead_starts_only_where_it_still_may() {
    // A claim of this moment: none of the obstacles is its age.
    const NOW: u64 = 1;
    let obstacles: [(&str, u64, Change); 7] = [
        ("none", FRESH, |_| {}),
        ("the NAS is paused", FRESH, Stand::pause),
        ("the daemon stops", FRESH, |stand| stand.s.stop.cancel()),
        ("its claim is old", 0, |_| {}),
        ("it broke meanwhile", NOW, |stand| {
            stand.breaks();
        }),
        ("no fork is free", FRESH, |stand| stand.pool().running = 1),
        ("it is not served any more", FRESH, |stand| {
            stand.pool().stopping = true
        }),
    ];
    for (what, since, obstacle) in obstacles {
        let mut stand = one_ahead(since).await;
        stand.pool().running = 0;
        obstacle(&mut stand);
        passes();
        stand.scheduler.follow(&mut stand.s, NAS);
        assert_eq!(stand.runs(2), what == "none", "{what}");
        let left = usize::from(what != "none");
        assert_eq!(stand.counts().2, left, "{what}");
    }
    // A claim whose answer came in this moment is not asked again.
    let mut stand = one_ahead(FRESH).await;
    stand.pool().running = 0;
    stand.breaks();
    stand.scheduler.follow(&mut stand.s, NAS);
    assert!(stand.runs(2));
}

#[tokio::test]
async fn a_probe_takes_its_fork_before_what_is_ahead() {
    let mut stand = Stand::new(3).await;
    stand.add(1, 1, ACCESS);
    stand.claim(FRESH);
    stand.pool().running = 3;
    stand.add(2, 2, ACCESS);
    assert_eq!(stand.claim(0), [2]);
    stand.pool().running = 1;
    stand.add(3, 3, ACCESS);
    let at = stand.breaks();
    let turn = stand.pick(at);
    assert_eq!(turn.starts, [EventId(3)]);
    stand.written(&turn, clock::tick_ms() - 1);
    assert!(
        stand.runs(3) && !stand.runs(2),
        "2 is behind it, and not sent"
    );
}

#[tokio::test]
async fn what_starts_late_is_told_apart_from_what_started_before() {
    let ticket = |stand: &Stand| stand.s.out[&EventId(2)].ticket;
    let renewed = |was: Ticket, stand: &mut Stand| stand.pool().breaker().renewed(was) != was;
    // Claims are young for a quarter of a second: a busy machine may need more than one try.
    for _ in 0..20 {
        let mut stand = one_ahead(1).await;
        let was = ticket(&stand);
        // Another start, so that a new ticket is another one.
        let _ = stand.pool().breaker().started(false);
        assert!(renewed(was, &mut stand));
        stand.pool().running = 0;
        passes();
        stand.scheduler.follow(&mut stand.s, NAS);
        if stand.runs(2) {
            assert_ne!(ticket(&stand), was);
            return;
        }
    }
    panic!("it never started");
}

#[tokio::test]
async fn what_finds_no_fork_goes_back_as_if_nothing_had_been() {
    let mut stand = one_ahead(1_000).await;
    let back = |stand: &mut Stand, now, stopping| {
        stand.scheduler.give_back(&mut stand.s, now, 0, stopping);
        std::mem::take(&mut stand.s.settles)
    };
    assert!(back(&mut stand, 1_249, false).is_empty());
    assert_eq!(stand.counts(), (2, 1, 1));
    let settles = back(&mut stand, 1_250, false);
    assert_eq!(stand.counts(), (1, 1, 0));
    let (settle, gone) = &settles[0];
    let ready = SettleTo::Ready {
        possible_duplicate: false,
    };
    assert_eq!(
        (settle.id, settle.try_count, &settle.to),
        (EventId(2), Some(3), &ready)
    );
    assert_eq!(
        (settle.code, settle.ms, settle.error.as_deref()),
        (0, 0, None)
    );
    assert_eq!((settles.len(), *gone), (1, Gone::Back));
    let out = &stand.s.out;
    assert!(out[&EventId(2)].finished && !out[&EventId(1)].finished);
    assert!(stand.s.untold.is_empty(), "there is nothing to tell");

    let reasons: [Change; 3] = [
        Stand::pause,
        |stand| {
            stand.breaks();
        },
        |stand| stand.pool().stopping = true,
    ];
    for (n, reason) in reasons.into_iter().enumerate() {
        let mut stand = one_ahead(FRESH).await;
        let now = clock::tick_ms();
        assert!(back(&mut stand, now, false).is_empty());
        reason(&mut stand);
        assert_eq!(back(&mut stand, now, false).len(), 1, "{n}");
    }
    let mut stand = one_ahead(FRESH).await;
    assert_eq!(back(&mut stand, 0, true).len(), 1, "the daemon stops");
}

#[tokio::test]
async fn a_question_that_nobody_will_answer_dies_and_a_probe_is_given_up() {
    for stopping in [true, false] {
        let mut stand = Stand::new(1).await;
        stand.add(1, 1, ACCESS);
        stand.claim(FRESH);
        stand.add(2, 2, Class::Interactive);
        assert_eq!(stand.claim(FRESH), [2]);
        stand.pause();
        stand.pool().stopping = stopping;
        stand.scheduler.give_back(&mut stand.s, 0, 0, false);
        let (settle, gone) = &stand.s.settles[0];
        assert_eq!(settle.try_count, Some(3));
        if stopping {
            let error = settle.error.as_deref().unwrap();
            assert_eq!(
                (error, *gone),
                ("NAS 1 is no longer served", Gone::Finished)
            );
            assert!(
                matches!(&settle.to, SettleTo::Dead { reason, possible_duplicate: false } if reason == error)
            );
            assert!(stand.s.untold.contains_key(&EventId(2)));
        } else {
            assert_eq!(*gone, Gone::Back);
            assert!(matches!(settle.to, SettleTo::Ready { .. }));
        }
    }
    let mut stand = Stand::new(1).await;
    stand.add(1, 1, ACCESS);
    let at = stand.breaks();
    let turn = stand.pick(at);
    stand.written(&turn, 0);
    assert_eq!(stand.counts(), (1, 0, 1), "its answer came too late");
    assert_ne!(stand.pool().may_start(at), Start::Probe);
    stand.scheduler.give_back(&mut stand.s, at, 0, false);
    assert_eq!(stand.counts(), (0, 0, 0));
    assert_eq!(stand.pool().may_start(at), Start::Probe);
}

#[tokio::test]
async fn a_job_has_what_its_event_and_its_nas_say() {
    let mut stand = Stand::new(1).await;
    let script_timeout = stand.scheduler.config.script_timeout;
    let event = Started {
        abonent: Some(70),
        usluga: Some(5),
        possible_duplicate: true,
        ..started(EventId(4))
    };
    let job = |stand: &mut Stand, event: Started| {
        let pool = &stand.s.pools[&NAS];
        stand
            .scheduler
            .job(pool, Class::Cut, event)
            .map_err(Box::new)
    };
    let made = job(&mut stand, event.clone()).unwrap();
    assert_eq!((made.event, made.epoch, made.try_count), (EventId(4), 1, 3));
    assert_eq!(
        (made.user, made.abonent, made.usluga),
        (Some(UserId(7)), Some(70), Some(5))
    );
    assert_eq!((made.cmd.as_str(), made.class), ("user_add", Class::Cut));
    assert!(made.possible_duplicate && made.deadline == script_timeout);
    let own = std::time::Duration::from_secs(3);
    stand.pool().served.nas = Arc::new(Nas {
        timeout: Some(own),
        ..Nas::new(NAS, "Bras", "10.90.185.2")
    });
    assert_eq!(job(&mut stand, event.clone()).unwrap().deadline, own);
    let bad = Started {
        cmd: "No!".to_owned(),
        ..event
    };
    let refused = job(&mut stand, bad).unwrap_err();
    assert_eq!(
        (refused.id, refused.nas, refused.try_count, refused.code),
        (EventId(4), NAS, 3, 1)
    );
    let dead = SettleTo::Dead {
        reason: refused.error.clone().unwrap(),
        possible_duplicate: false,
    };
    assert_eq!((refused.to, refused.user), (dead, Some(UserId(7))));
}

#[tokio::test]
async fn what_is_no_command_ends_without_the_nas() {
    let mut stand = Stand::new(1).await;
    stand.add(1, 1, ACCESS);
    let at = stand.breaks();
    let turn = stand.pick(at);
    let bad = Started {
        cmd: "No!".to_owned(),
        ..started(EventId(1))
    };
    let turned = Turned {
        settled: Vec::new(),
        started: vec![bad],
    };
    stand.scheduler.start(&mut stand.s, &turn, turned, FRESH);
    assert_eq!(
        stand.pool().may_start(at),
        Start::Probe,
        "it says nothing of the NAS"
    );
    assert!(stand.s.untold.contains_key(&EventId(1)));
    stand.end().await;
    assert_eq!(stand.counts(), (0, 0, 0));
    assert!(matches!(stand.s.settles[0].0.to, SettleTo::Dead { .. }));
    assert!(stand.s.tasks.is_empty());
}

#[tokio::test]
async fn an_overtaking_says_so_in_the_log() {
    for overtakes in [false, true] {
        let mut stand = Stand::new(1).await;
        stand.add(1, 1, ACCESS);
        let turn = stand.pick(0);
        stand.s.out.get_mut(&EventId(1)).unwrap().taken.overtakes = overtakes;
        let done = Report::of(Verdict::Done);
        stand
            .device
            .answers
            .lock()
            .unwrap()
            .push_back(Answer::Report(done));
        stand.written(&turn, FRESH);
        stand.end().await;
        stand.end().await;
        assert_eq!(stand.log().contains("cross_nas_overtake"), overtakes);
    }
}

#[tokio::test]
async fn a_stop_token_of_the_state_is_the_daemons() {
    let stand = Stand::new(1).await;
    let token = CancellationToken::new();
    let state = State::new(token.clone(), &stand.scheduler.config);
    token.cancel();
    assert!(state.stop.is_cancelled());
}
