//! What the contract says of turns, ownership, recovery, retrying and dropping.

use super::*;

pub(super) async fn a_turn_settles_and_starts_in_one_transaction(db: Db) {
    let epoch = owned(&db).await;
    let first = running(&db, epoch, 1).await;
    let next = posted(&db.store, &[event("user_del", 1)]).await;
    db.store.expand(10, &[]).await.unwrap();
    let turn = Turn {
        epoch,
        settles: vec![done(first, 1)],
        starts: next.clone(),
        ..Turn::default()
    };
    let turned = db.store.turn(&turn).await.unwrap();
    assert_eq!(turned.settled, vec![first]);
    let s = &turned.started[0];
    assert_eq!(
        (s.id, s.cmd.as_str(), s.try_count, s.possible_duplicate),
        (next[0], "user_del", 1, false)
    );
    assert_eq!((s.user, s.abonent), (Some(UserId(1)), Some(70)));
    assert_eq!(s.params.read().text("ip"), "10.88.0.1");
    let row = db.store.event(first).await.unwrap().unwrap();
    assert_eq!(
        (row.place, row.state.as_str(), row.ms, row.answer.as_deref()),
        (WhereIs::Done, "done", Some(12), Some("yes"))
    );
    assert_eq!(
        place(&db, next[0]).await,
        Some((WhereIs::Stack, "running".into()))
    );
}

pub(super) async fn a_turn_of_many_does_each_of_them_once(db: Db) {
    let epoch = owned(&db).await;
    let plain = |id: EventId, try_count: u32| Settle {
        to: SettleTo::Done {
            result: DoneResult::Done,
            answer: None,
            scheme_hash: "h".into(),
        },
        try_count: Some(try_count),
        ..done(id, 1)
    };
    let events: Vec<CompactEvent> = (0..140).map(|_| event("user_edit", 1)).collect();
    let ids = posted(&db.store, &events).await;
    db.store.expand(200, &[]).await.unwrap();
    let (first, second) = ids.split_at(70);
    let turn = async |settles: Vec<Settle>, starts: &[EventId]| {
        let turn = Turn {
            epoch,
            settles,
            starts: starts.to_vec(),
            ..Turn::default()
        };
        let turned = db.store.turn(&turn).await.unwrap();
        let mut started: Vec<EventId> = turned.started.iter().map(|s| s.id).collect();
        let mut settled = turned.settled;
        started.sort();
        settled.sort();
        (settled, started)
    };
    let places = async || {
        let text = "select count(*) filter (where state = 'ready'), count(*) filter (where state = 'running'),
              (select count(*) from events_done) from events_stack";
        let row = db.store.sql(text, false).await.unwrap().rows.remove(0);
        let number = |i: usize| row[i].as_deref().unwrap().parse::<u32>().unwrap();
        (number(0), number(1), number(2))
    };
    assert_eq!(turn(Vec::new(), first).await, (vec![], first.to_vec()));
    assert_eq!(places().await, (70, 70, 0));
    // One of each kind does not match: the others are not held up, and nothing is done to it.
    let mut settles: Vec<Settle> = first.iter().map(|id| plain(*id, 1)).collect();
    settles[33] = plain(first[33], 2);
    let (settled, started) = turn(settles, second).await;
    assert_eq!((settled.len(), started.len()), (69, 70));
    assert!(!settled.contains(&first[33]));
    assert_eq!(places().await, (0, 71, 69));
    let settles = second.iter().map(|id| plain(*id, 1)).collect();
    let (settled, started) = turn(settles, &first[33..34]).await;
    assert_eq!((settled.len(), started.len()), (70, 0));
    assert_eq!(places().await, (0, 1, 139));
    let (settled, _) = turn(vec![plain(first[33], 1)], &[]).await;
    assert_eq!(settled, [first[33]]);
    assert_eq!(places().await, (0, 0, 140));
}

pub(super) async fn every_transition_is_a_compare_and_set(db: Db) {
    let epoch = owned(&db).await;
    let id = running(&db, epoch, 1).await;
    let settled = async |settle: Settle| {
        let turn = Turn {
            epoch,
            settles: vec![settle],
            ..Turn::default()
        };
        db.store.turn(&turn).await.unwrap().settled
    };
    // Not twice, not with another try, not from the wrong state.
    let again = Turn {
        epoch,
        starts: vec![id],
        ..Turn::default()
    };
    assert!(db.store.turn(&again).await.unwrap().started.is_empty());
    assert!(settled(done(id, 2)).await.is_empty());
    let waiting = Settle {
        try_count: None,
        ..done(id, 1)
    };
    assert!(settled(waiting).await.is_empty());
    assert_eq!(settled(done(id, 1)).await, vec![id]);
    assert!(settled(done(id, 1)).await.is_empty());
    assert_eq!(place(&db, id).await, Some((WhereIs::Done, "done".into())));
}

pub(super) async fn a_second_owner_is_refused_and_a_late_one_fenced(db: Db) {
    let epoch = owned(&db).await;
    let refused = db.store.own("other pid=2", After::Silence(10_000)).await;
    assert!(
        matches!(&refused, Err(Error::Owned(owner)) if owner.holder == "test pid=1"),
        "{refused:?}"
    );
    let id = running(&db, epoch, 1).await;
    let next = db
        .store
        .own("other pid=2", After::Silence(-1))
        .await
        .unwrap();
    assert!(next > epoch);
    assert!(!db.store.still_own(epoch).await.unwrap());
    let late = db
        .store
        .turn(&Turn {
            epoch,
            settles: vec![done(id, 1)],
            ..Turn::default()
        })
        .await;
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    assert_eq!(
        place(&db, id).await,
        Some((WhereIs::Stack, "running".into()))
    );
    db.store.disown(next).await.unwrap();
    assert!(
        db.store
            .own("third pid=3", After::Silence(10_000))
            .await
            .unwrap()
            > next
    );
}

pub(super) async fn a_dead_owner_is_followed_by_one(db: Db) {
    let dead = owned(&db).await;
    let found = db.store.owner().await.unwrap().unwrap();
    assert_eq!((found.epoch, found.holder.as_str()), (dead, "test pid=1"));
    // Each over connections of its own, as daemons are.
    let mut daemons = Vec::new();
    for _ in 0..5 {
        daemons.push(connect(&db.url).await.unwrap());
    }
    let mut starting = tokio::task::JoinSet::new();
    for (number, store) in daemons.into_iter().enumerate() {
        let after = After::Death(dead);
        starting.spawn(async move { store.own(&format!("new pid={number}"), after).await });
    }
    let (mut owners, mut refused) = (Vec::new(), Vec::new());
    for result in starting.join_all().await {
        match result {
            Ok(epoch) => owners.push(epoch),
            Err(Error::Owned(owner)) => refused.push(owner.epoch),
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((owners.len(), refused.len()), (1, 4), "{owners:?}");
    assert!(refused.iter().all(|epoch| *epoch == owners[0]));
    assert!(db.store.still_own(owners[0]).await.unwrap());
    db.store.disown(owners[0]).await.unwrap();
    assert_eq!(db.store.owner().await.unwrap(), None);
}

pub(super) async fn what_a_dead_owner_left_running_comes_back_flagged(db: Db) {
    let epoch = owned(&db).await;
    let id = running(&db, epoch, 1).await;
    let mut epoch = db
        .store
        .own("second pid=2", After::Silence(-1))
        .await
        .unwrap();
    assert_eq!(db.store.recover(epoch, 3).await.unwrap(), (1, 0));
    let mut tries = 1;
    for _ in 0..2 {
        let turned = db
            .store
            .turn(&Turn {
                epoch,
                starts: vec![id],
                ..Turn::default()
            })
            .await
            .unwrap();
        tries += 1;
        assert_eq!(
            (
                turned.started[0].possible_duplicate,
                turned.started[0].try_count
            ),
            (true, tries)
        );
        epoch = db
            .store
            .own("next pid=3", After::Silence(-1))
            .await
            .unwrap();
        assert_eq!(db.store.recover(epoch, 3).await.unwrap(), (1, 0));
    }
    let loaded = db.store.load(NasId(1), EventId(0), 10).await.unwrap();
    assert_eq!(loaded[0].deaths, 3);
    db.store
        .turn(&Turn {
            epoch,
            starts: vec![id],
            ..Turn::default()
        })
        .await
        .unwrap();
    epoch = db
        .store
        .own("last pid=4", After::Silence(-1))
        .await
        .unwrap();
    assert_eq!(db.store.recover(epoch, 3).await.unwrap(), (0, 1));
    assert_eq!(place(&db, id).await, Some((WhereIs::Dead, "dead".into())));
}

pub(super) async fn deferred_events_load_with_their_time(db: Db) {
    let epoch = owned(&db).await;
    let id = running(&db, epoch, 1).await;
    let until_ms = 1_900_000_000_123;
    let to = SettleTo::Deferred {
        until_ms,
        possible_duplicate: true,
    };
    let settle = Settle {
        to,
        code: 143,
        error: Some("no answer".into()),
        ..done(id, 1)
    };
    db.store
        .turn(&Turn {
            epoch,
            settles: vec![settle],
            ..Turn::default()
        })
        .await
        .unwrap();
    let loaded = db.store.load(NasId(1), EventId(0), 10).await.unwrap();
    assert!(
        (loaded[0].next_try_ms - until_ms).abs() <= 1,
        "{}",
        loaded[0].next_try_ms
    );
    assert_eq!(loaded[0].tries, 1);
    assert_eq!(
        db.store
            .refill(
                &[
                    (NasId(1), Some(UserId(9))),
                    (NasId(1), Some(UserId(1))),
                    (NasId(1), None)
                ],
                8
            )
            .await
            .unwrap(),
        loaded
    );
    assert_eq!(db.store.stacked_nases().await.unwrap(), vec![NasId(1)]);
    let row = db.store.event(id).await.unwrap().unwrap();
    assert_eq!(
        (
            row.state.as_str(),
            row.code,
            row.error.as_deref(),
            row.possible_duplicate
        ),
        ("deferred", Some(143), Some("no answer"), true)
    );
    // Released: the try is not counted.
    let turned = db
        .store
        .turn(&Turn {
            epoch,
            starts: vec![id],
            ..Turn::default()
        })
        .await
        .unwrap();
    assert_eq!(turned.started[0].try_count, 2);
    let to = SettleTo::Ready {
        possible_duplicate: false,
    };
    let settle = Settle { to, ..done(id, 2) };
    db.store
        .turn(&Turn {
            epoch,
            settles: vec![settle],
            ..Turn::default()
        })
        .await
        .unwrap();
    let row = db.store.event(id).await.unwrap().unwrap();
    assert_eq!(
        (row.state.as_str(), row.try_count, row.possible_duplicate),
        ("ready", 1, true)
    );
}

pub(super) async fn dead_events_are_retried_at_the_tail(db: Db) {
    let epoch = owned(&db).await;
    let bury = |id| Settle {
        to: SettleTo::Dead {
            reason: "no such command".into(),
            possible_duplicate: false,
        },
        code: 1,
        ..done(id, 1)
    };
    let id = running(&db, epoch, 1).await;
    db.store
        .turn(&Turn {
            epoch,
            settles: vec![bury(id)],
            ..Turn::default()
        })
        .await
        .unwrap();
    let row = db.store.event(id).await.unwrap().unwrap();
    assert_eq!(
        (row.place, row.error.as_deref()),
        (WhereIs::Dead, Some("no such command"))
    );
    let new = db.store.retry_dead(id).await.unwrap().unwrap();
    assert!(new > id);
    assert_eq!(db.store.retry_dead(id).await.unwrap(), None, "only once");
    db.store.expand(10, &[]).await.unwrap();
    assert_eq!(
        place(&db, new).await,
        Some((WhereIs::Stack, "ready".into()))
    );
    // A later event of the lane makes a retry pointless.
    let other = running(&db, epoch, 2).await;
    db.store
        .turn(&Turn {
            epoch,
            settles: vec![bury(other)],
            ..Turn::default()
        })
        .await
        .unwrap();
    let later = running(&db, epoch, 2).await;
    db.store
        .turn(&Turn {
            epoch,
            settles: vec![done(later, 1)],
            ..Turn::default()
        })
        .await
        .unwrap();
    assert_eq!(db.store.retry_dead(other).await.unwrap(), None);
}

pub(super) async fn a_retry_of_what_may_have_been_applied_says_so(db: Db) {
    let epoch = owned(&db).await;
    let turn = async |settles: Vec<Settle>, starts: Vec<EventId>| {
        let turn = Turn {
            epoch,
            settles,
            starts,
            ..Turn::default()
        };
        db.store.turn(&turn).await.unwrap()
    };
    let flags = |possible_duplicate| {
        let reason = "no answer".to_owned();
        SettleTo::Dead {
            reason,
            possible_duplicate,
        }
    };
    let deferred = SettleTo::Deferred {
        until_ms: 0,
        possible_duplicate: true,
    };
    // Of the last try, of an earlier one, of none; each as a plain row and as one with PARAMS of
    // its own.
    let mut expected = Vec::new();
    let mut retried = Vec::new();
    for (user, earlier, last) in [(1, false, true), (2, true, false), (3, false, false)] {
        for params in [None, json!({"reason": "x"}).as_object().cloned()] {
            let mut wanted = event("user_add", user);
            wanted.params = params;
            let id = posted(&db.store, &[wanted]).await[0];
            db.store.expand(100, &[]).await.unwrap();
            let mut tries = 1;
            assert_eq!(turn(vec![], vec![id]).await.started.len(), 1);
            if earlier {
                let to = deferred.clone();
                turn(vec![Settle { to, ..done(id, 1) }], vec![]).await;
                assert_eq!(turn(vec![], vec![id]).await.started.len(), 1);
                tries = 2;
            }
            let to = flags(last);
            turn(
                vec![Settle {
                    to,
                    ..done(id, tries)
                }],
                vec![],
            )
            .await;
            let row = db.store.event(id).await.unwrap().unwrap();
            assert_eq!(row.possible_duplicate, earlier || last, "dead {id}");
            let new = db.store.retry_dead(id).await.unwrap().unwrap();
            db.store.expand(100, &[]).await.unwrap();
            let started = turn(vec![], vec![new]).await.started;
            retried.push((started[0].try_count, started[0].possible_duplicate));
            expected.push((1, earlier || last));
            turn(vec![done(new, 1)], vec![]).await;
        }
    }
    assert_eq!(retried, expected);
}

pub(super) async fn a_drop_by_state_leaves_what_has_gone_on(db: Db) {
    fill(&db).await;
    let [one, other, dead] = <[EventId; 3]>::try_from(
        posted(&db.store, &[1, 2, 3].map(|user| event("user_add", user))).await,
    )
    .unwrap();
    let drops = async |id: EventId, state: &str| {
        let dropped = db.store.drop_event(id, Some(state), "operator").await;
        dropped.unwrap()
    };
    assert!(!drops(one, "held").await && drops(one, "compact").await);
    db.store.expand(10, &[]).await.unwrap();
    assert!(!drops(other, "compact").await);
    // It was held when it was looked for, and approved before its turn came.
    db.sql("update events_stack set state = 'held'").await;
    assert!(!drops(other, "ready").await);
    db.sql("update events_stack set state = 'ready'").await;
    assert!(!drops(other, "held").await && !drops(other, "dead").await);
    assert!(drops(other, "ready").await);
    db.sql("delete from events_stack").await;
    db.sql(&format!(
        "insert into events_dead (id, event_type, user_id, nas_id, class, event_date, reason)
         values ({}, 'user_add', 3, 1, 1, '2026-01-01 00:00:00', 'x')",
        dead.0
    ))
    .await;
    assert!(!drops(dead, "ready").await && drops(dead, "dead").await);
    for id in [one, other, dead] {
        assert_eq!(
            place(&db, id).await,
            Some((WhereIs::Done, "dropped".into()))
        );
    }
}

pub(super) async fn dropping_needs_a_waiting_event(db: Db) {
    let epoch = owned(&db).await;
    let id = running(&db, epoch, 1).await;
    assert!(
        !db.store.drop_event(id, None, "operator").await.unwrap(),
        "a running event stays"
    );
    let waiting = posted(&db.store, &[event("user_add", 2), event("user_add", 3)]).await;
    assert!(
        db.store
            .drop_event(waiting[0], None, "operator")
            .await
            .unwrap()
    );
    db.store.expand(10, &[]).await.unwrap();
    assert!(
        db.store
            .drop_event(waiting[1], None, "operator")
            .await
            .unwrap()
    );
    for id in waiting {
        assert_eq!(
            place(&db, id).await,
            Some((WhereIs::Done, "dropped".into()))
        );
    }
    let listed = db
        .store
        .events(&Filter {
            state: Some("done".into()),
            limit: 10,
            ..Filter::default()
        })
        .await
        .unwrap();
    assert_eq!(listed.len(), 2);
    assert!(
        db.store
            .events(&Filter {
                state: Some("nonsense".into()),
                limit: 10,
                ..Filter::default()
            })
            .await
            .is_err()
    );
}

pub(super) async fn lanes_are_refilled_together(db: Db) {
    owned(&db).await;
    let events: Vec<CompactEvent> = (0..30).map(|i| event("user_edit", 1 + i % 3)).collect();
    let ids = posted(&db.store, &events).await;
    let of_nas = CompactEvent {
        cmd: "user_edit".into(),
        nas_id: Some(2),
        params_complete: true,
        ..CompactEvent::default()
    };
    let nas_wide = posted(&db.store, &[of_nas]).await[0];
    db.store.expand(100, &[]).await.unwrap();
    let lanes = [
        (NasId(1), Some(UserId(2))),
        (NasId(2), None),
        (NasId(1), Some(UserId(3))),
        (NasId(2), Some(UserId(1))),
        (NasId(1), None),
    ];
    let rows = db.store.refill(&lanes, 4).await.unwrap();
    let found = |user: Option<i64>| -> Vec<EventId> {
        let of = rows.iter().filter(|w| w.user.map(|u| u.0) == user);
        of.map(|w| w.id).collect()
    };
    let wanted = |user: usize| -> Vec<EventId> {
        let of = ids.iter().skip(user - 1).step_by(3);
        of.take(4).copied().collect()
    };
    assert_eq!(found(Some(2)), wanted(2));
    assert_eq!(found(Some(3)), wanted(3));
    assert_eq!(found(None), vec![nas_wide]);
    assert_eq!(rows.len(), 9);
}
