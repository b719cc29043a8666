//! Tests of the steps of the loop: what a turn takes, how long the loop waits, from when on claims
//! hold, what a settled turn leaves.

use super::*;
use crate::dispatch::plan::Step;
use crate::dispatch::stand_test::{Change, FRESH, NAS, Stand, served, waiting};
use crate::event::{Class, UserId, Waiting};
use crate::store::After;

const CUT: Class = Class::Cut;

/// Nothing of it has run.
fn given_back(id: i64) -> Settle {
    Settle {
        id: EventId(id),
        try_count: None,
        to: crate::store::SettleTo::Ready {
            possible_duplicate: false,
        },
        code: 0,
        ms: 0,
        error: None,
    }
}

#[tokio::test]
async fn a_turn_takes_what_finds_a_fork() {
    let obstacles: [(&str, usize, Change); 5] = [
        ("none", 3, |_| {}),
        ("a pause", 0, Stand::pause),
        ("it is given up", 0, |stand| stand.pool().stopping = true),
        ("one fork is taken", 2, |stand| stand.pool().taken = 1),
        ("it does not obey", 0, |stand| {
            stand.breaks();
        }),
    ];
    for (what, takes, obstacle) in obstacles {
        let mut stand = Stand::new(3).await;
        for id in 1..=5 {
            stand.add(id, id, CUT);
        }
        obstacle(&mut stand);
        let before = stand.pool().taken;
        assert_eq!(stand.pick(clock::tick_ms()).starts.len(), takes, "{what}");
        assert_eq!(stand.pool().taken, before + takes, "{what}");
    }
    let mut stand = Stand::new(3).await;
    let settles = (0..i64::try_from(TURN_MAX).unwrap() - 1).map(|id| given_back(1_000 + id));
    let mut turn = Turn {
        settles: settles.collect(),
        ..Turn::default()
    };
    for id in 1..=2 {
        stand.add(id, id, CUT);
    }
    stand.scheduler.pick(&mut stand.s, &mut turn, 0, 0);
    assert_eq!(turn.starts.len(), 1, "a turn has an end");
}

#[tokio::test]
async fn an_outage_is_probed_by_one_that_finds_a_free_fork() {
    let mut stand = Stand::new(2).await;
    for id in 1..=3 {
        stand.add(id, id, CUT);
    }
    let at = stand.breaks();
    assert!(stand.pick(at - 1).starts.is_empty());
    stand.pool().took(at, 0);
    stand.pool().taken = 2;
    assert!(
        stand.pick(at).starts.is_empty(),
        "none is ahead for a probe"
    );
    stand.pool().taken = 1;
    assert_eq!(stand.pick(at).starts, [EventId(1)]);
    assert!(stand.s.out[&EventId(1)].ticket.is_probe());
    assert!(stand.pick(at).starts.is_empty());
}

#[tokio::test]
async fn nases_take_turns_at_being_first() {
    let mut stand = Stand::new(1).await;
    let second = served(NasId(2), 1, &stand.device.clone());
    stand.apply(vec![Step::Start(NasId(2), second)]);
    stand.s.lanes.wanted();
    stand.s.lanes.loaded(NasId(2), &[], false, 0, 0);
    let mut firsts = Vec::new();
    for round in 0..2 {
        let id = 10 * round;
        stand.add(id + 1, id + 1, CUT);
        let there = Waiting {
            nas: NasId(2),
            ..waiting(id + 2, id + 2, CUT)
        };
        stand.s.lanes.add(&there, 0, 0);
        let turn = stand.pick(0);
        assert_eq!(turn.starts.len(), 2);
        firsts.push(turn.starts[0].0 - id);
        stand.s.pools.values_mut().for_each(|pool| pool.taken = 0);
    }
    firsts.sort_unstable();
    assert_eq!(firsts, [1, 2]);
}

fn suspect(id: i64, user: i64) -> Waiting {
    Waiting {
        deaths: 3,
        ..waiting(id, user, CUT)
    }
}

#[tokio::test]
async fn a_suspect_waits_until_nothing_is_claimed_and_then_is_alone() {
    let mut stand = Stand::new(3).await;
    stand.add(1, 1, CUT);
    assert_eq!(stand.claim(FRESH), [1]);
    stand.s.lanes.add(&suspect(2, 2), 0, 0);
    stand.add(3, 3, CUT);
    assert!(stand.pick(0).starts.is_empty(), "3 would keep 2 waiting");
    assert_eq!(
        stand.s.quiet.map(|(nas, next)| (nas, next.taken.id)),
        Some((NAS, EventId(2)))
    );
    assert!(stand.pick(0).starts.is_empty());
    stand.pool().taken = 0;
    assert_eq!(stand.pick(0).starts, [EventId(2)]);
    assert_eq!(
        (stand.s.alone, stand.s.quiet.is_none()),
        (Some(EventId(2)), true)
    );
    assert!(stand.pick(0).starts.is_empty(), "nothing beside it");
    stand.s.out.get_mut(&EventId(2)).unwrap().finished = true;
    let turned = Turned {
        settled: vec![EventId(2)],
        started: Vec::new(),
    };
    stand
        .scheduler
        .settled(&mut stand.s, &[(EventId(2), Gone::Finished)], &turned);
    assert!(stand.s.alone.is_none() && !stand.s.out.contains_key(&EventId(2)));
    assert_eq!(stand.pick(0).starts, [EventId(3)]);
}

#[tokio::test]
async fn a_suspect_that_may_not_start_holds_nobody_up() {
    let obstacles: [Change; 3] = [
        Stand::pause,
        |stand| stand.pool().stopping = true,
        |stand| {
            stand
                .s
                .lanes
                .drop_event(EventId(2), NAS, Some(UserId(2)), 0);
        },
    ];
    for (n, obstacle) in obstacles.into_iter().enumerate() {
        let mut stand = Stand::new(3).await;
        let second = served(NasId(2), 1, &stand.device.clone());
        stand.apply(vec![Step::Start(NasId(2), second)]);
        stand.s.lanes.wanted();
        stand.s.lanes.loaded(NasId(2), &[], false, 0, 0);
        stand.add(1, 1, CUT);
        stand.claim(FRESH);
        stand.s.lanes.add(&suspect(2, 2), 0, 0);
        assert!(stand.pick(0).starts.is_empty() && stand.s.quiet.is_some());
        let other = Waiting {
            nas: NasId(2),
            ..waiting(3, 3, CUT)
        };
        stand.s.lanes.add(&other, 0, 0);
        assert!(stand.pick(0).starts.is_empty(), "{n}");
        obstacle(&mut stand);
        assert_eq!(stand.pick(0).starts, [EventId(3)], "{n}");
        assert!(stand.s.quiet.is_none(), "{n}");
    }
}

#[tokio::test]
async fn an_event_of_another_turn_leaves_the_suspect_alone() {
    let mut stand = Stand::new(1).await;
    stand.s.alone = Some(EventId(4));
    let one = [(EventId(5), Gone::Finished)];
    stand
        .scheduler
        .settled(&mut stand.s, &one, &Turned::default());
    assert_eq!(stand.s.alone, Some(EventId(4)));
}

#[tokio::test]
async fn the_loop_sleeps_until_something_is_due() {
    // Some ms pass while it is asked.
    let about = |ms: u64, wanted: u64| (1..=wanted).contains(&ms);
    let mut stand = Stand::new(1).await;
    let wait = |stand: &Stand| stand.scheduler.wait_ms(&stand.s);
    assert_eq!(wait(&stand), IDLE_MS);
    let now = clock::tick_ms();
    stand.s.status_at = now;
    assert_eq!(wait(&stand), IDLE_MS, "everything is told");
    stand.s.unpublished = true;
    assert!(about(wait(&stand), STATUS_MS), "{}", wait(&stand));
    stand.s.unpublished = false;
    // A probe is due, and somebody waits for it.
    stand.breaks();
    let soon = now + 500;
    stand.pool().breaker().reached(soon);
    assert_eq!(wait(&stand), IDLE_MS, "nobody waits");
    stand.add(1, 1, CUT);
    let probe = stand.pool().breaker().next_probe().unwrap();
    let left = probe.saturating_sub(clock::tick_ms()).clamp(1, IDLE_MS);
    assert!(about(wait(&stand), left), "{} {left}", wait(&stand));
    // A deferred event.
    let mut stand = Stand::new(1).await;
    let deferred = Waiting {
        next_try_ms: 700,
        tries: 1,
        ..waiting(1, 1, CUT)
    };
    stand.s.lanes.add(&deferred, clock::tick_ms(), 0);
    assert!(about(wait(&stand), 700), "{}", wait(&stand));
    // One ahead.
    let mut stand = Stand::new(1).await;
    stand.add(1, 1, CUT);
    stand.claim(FRESH);
    stand.add(2, 2, CUT);
    stand.claim(clock::tick_ms());
    assert_eq!(stand.counts(), (2, 1, 1));
    assert!(about(wait(&stand), 250), "{}", wait(&stand));
    let mut stand = Stand::new(1).await;
    stand.s.lanes.add(&deferred, 0, 0);
    assert_eq!(wait(&stand), 1, "it never turns in a circle");
}

#[tokio::test]
async fn claims_of_a_long_turn_hold_for_the_owner_only() {
    let mut stand = Stand::new(1).await;
    let store = Arc::clone(&stand.scheduler.store);
    let epoch = store.own("one pid=1", After::Silence(0)).await.unwrap();
    let hard = CancellationToken::new();
    let claims = Turn {
        starts: vec![EventId(1)],
        ..Turn::default()
    };
    let now = clock::tick_ms();
    let (short, long) = (now, now - FOLLOWED_MS);
    for (mine, turn, began, holds) in [
        (epoch, &claims, long, true),
        (epoch + 1, &claims, long, false),
        (epoch + 1, &claims, now.saturating_add(60_000), true),
        (epoch + 1, &Turn::default(), long, true),
        (epoch, &claims, short, true),
    ] {
        stand.scheduler.epoch = mine;
        let since = stand
            .scheduler
            .claimed_since(&mut stand.s, turn, began, &hard)
            .await;
        assert_eq!(since >= now, holds, "{mine} {began}");
        assert!(holds || since == 0);
    }
}

#[tokio::test]
async fn a_turn_of_a_deposed_daemon_ends_it_and_one_that_is_refused_is_written_again() {
    let mut stand = Stand::new(1).await;
    let store = Arc::clone(&stand.scheduler.store);
    let epoch = store.own("one pid=1", After::Silence(0)).await.unwrap();
    let hard = CancellationToken::new();
    let turn = |epoch| Turn {
        epoch,
        starts: vec![EventId(1)],
        ..Turn::default()
    };
    let mut mine = turn(epoch);
    let turned = stand.scheduler.write(&mut mine, &hard).await.unwrap();
    assert!(turned.started.is_empty() && !mine.again);
    let fenced = stand.scheduler.write(&mut turn(epoch + 1), &hard).await;
    assert!(matches!(fenced, Err(Error::Fenced { .. })), "{fenced:?}");

    // A round writes what has gathered, each event once, and says whether more is to be done.
    stand.scheduler.epoch = epoch;
    stand.s.settles.push((given_back(1), Gone::Finished));
    stand.s.settles.push((given_back(1), Gone::Finished));
    assert!(
        !stand
            .scheduler
            .round(&mut stand.s, false, &hard)
            .await
            .unwrap()
    );
    assert_eq!((stand.s.turns, stand.s.settles.len()), (1, 0));
    assert!(
        !stand
            .scheduler
            .round(&mut stand.s, false, &hard)
            .await
            .unwrap()
    );
    assert_eq!(stand.s.turns, 1, "nothing is to be written");
    stand.s.settles.push((given_back(1), Gone::Back));
    assert!(
        stand
            .scheduler
            .round(&mut stand.s, false, &hard)
            .await
            .unwrap(),
        "it may start now"
    );
    let many = i64::try_from(TURN_MAX).unwrap() + 1;
    stand
        .s
        .settles
        .extend((0..many).map(|id| (given_back(id), Gone::Finished)));
    assert!(
        stand
            .scheduler
            .round(&mut stand.s, false, &hard)
            .await
            .unwrap()
    );
    assert_eq!((stand.s.turns, stand.s.settles.len()), (3, 1));
}

#[tokio::test]
async fn nothing_is_picked_while_the_daemon_stops() {
    let mut stand = Stand::new(1).await;
    let store = Arc::clone(&stand.scheduler.store);
    stand.scheduler.epoch = store.own("one pid=1", After::Silence(0)).await.unwrap();
    stand.add(1, 1, CUT);
    let hard = CancellationToken::new();
    stand
        .scheduler
        .round(&mut stand.s, true, &hard)
        .await
        .unwrap();
    assert!(stand.s.out.is_empty() && stand.s.lanes.held() == 1);
    // The row is not there: the start finds nothing, and its fork is free again.
    stand
        .scheduler
        .round(&mut stand.s, false, &hard)
        .await
        .unwrap();
    assert!(stand.s.out.is_empty() && stand.s.lanes.held() == 0);
    assert_eq!((stand.counts(), stand.s.turns), ((0, 0, 0), 1));
}

#[tokio::test]
async fn records_that_take_long_keep_no_fork_and_no_log_waiting() {
    let mut stand = Stand::new(1).await;
    let done = crate::attempt::Report::of(crate::attempt::Verdict::Done);
    let answer = crate::dispatch::stand_test::Answer::Report(done);
    stand.device.answers.lock().unwrap().push_back(answer);
    stand.add(1, 1, CUT);
    stand.claim(FRESH);
    // As many turns are being told as may be.
    for _ in 0..2 {
        stand.s.records.spawn(std::future::pending());
    }
    let settle = given_back(9);
    let (scheduler, s) = (&stand.scheduler, &mut stand.s);
    let hard = CancellationToken::new();
    let path = scheduler
        .logs
        .nas_path(&scheduler.logs.nas_file("Bras.log"));
    let ended = async {
        let has_ended = || std::fs::read_to_string(&path).is_ok_and(|log| log.contains(" end "));
        while !has_ended() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = scheduler.tell(s, vec![(settle, None)], &hard) => unreachable!("nothing has ended"),
        () = ended => {}
    }
    assert_eq!(stand.counts().1, 0, "its fork is free");
}

#[tokio::test]
async fn what_is_claimed_while_its_end_is_written_gives_its_place_back() {
    let mut stand = Stand::new(1).await;
    stand.add(1, 1, CUT);
    let turn = stand.pick(FRESH);
    assert_eq!(turn.starts, [EventId(1)]);
    // The same turn ends it: the database moves it away and starts nothing.
    let turned = Turned {
        settled: vec![EventId(1)],
        started: Vec::new(),
    };
    let (scheduler, s) = (&stand.scheduler, &mut stand.s);
    scheduler.settled(s, &[(EventId(1), Gone::Finished)], &turned);
    scheduler.start(s, &turn, turned, FRESH);
    assert!(stand.s.out.is_empty());
    assert_eq!(stand.counts(), (0, 0, 0));
    stand.add(2, 2, CUT);
    assert_eq!(stand.pick(FRESH).starts, [EventId(2)], "its fork is free");
}
