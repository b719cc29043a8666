//! Every promise of `Store`, on each database alike: one body per promise, run on SQLite and on
//! PostgreSQL (`NED_TEST_PG` names a throw-away server, see `scripts/test`).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

use std::sync::Arc;

use nas_event_daemon::attempt::DoneResult;
use nas_event_daemon::event::{Class, CompactEvent, EventId, UserId};
use nas_event_daemon::nas::NasId;
use nas_event_daemon::store::{
    Error, Filter, Idempotency, Posted, Settle, SettleTo, Store, Turn, WhereIs, connect,
};
use serde_json::json;

mod lab;
use lab::db::{Db, Kind};

/// Writes one test per promise and database.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Db::new(super::Kind::Sqlite).await).await; })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Db::new(super::Kind::Postgres).await).await; })*
        }
    };
}

on_both!(
    ids_never_repeat_and_posts_are_all_or_nothing,
    expansion_moves_with_the_same_id_and_canonical_params,
    own_params_overlay_and_bad_names_are_told,
    the_nas_is_chosen_by_id_then_address_then_account,
    unexpandable_rows_never_stand_in_the_way,
    an_overtaken_row_goes_to_dead,
    a_turn_settles_and_starts_in_one_transaction,
    every_transition_is_a_compare_and_set,
    a_second_owner_is_refused_and_a_late_one_fenced,
    what_a_dead_owner_left_running_comes_back_flagged,
    deferred_events_load_with_their_time,
    dead_events_are_retried_at_the_tail,
    dropping_needs_a_waiting_event,
    every_missing_column_is_named,
    nas_rows_are_checked_one_by_one,
    secrets_are_never_readable_by_statements,
    params_are_read_again_but_for_what_the_event_brought,
    a_deposed_daemon_expands_nothing,
    a_statement_that_looks_changes_nothing,
    many_posts_keep_their_order,
    one_bad_row_of_the_view_stops_only_itself,
    a_view_may_have_many_columns,
    a_nul_never_blocks_a_settle,
    two_daemons_expand_each_event_once,
    an_expiring_command_carries_its_time,
);

fn event(cmd: &str, user: i64) -> CompactEvent {
    CompactEvent {
        cmd: cmd.into(),
        user_id: Some(user),
        ..CompactEvent::default()
    }
}

async fn posted(store: &Arc<dyn Store>, events: &[CompactEvent]) -> Vec<EventId> {
    match store.post(events, None).await.unwrap() {
        Posted::New(ids) => ids,
        other => panic!("{other:?}"),
    }
}

async fn fill(db: &Db) {
    db.sql("insert into nas (id, name, ip, forks) values (1, 'A', '10.0.0.1', 5), (2, 'B', '10.0.0.2', 5), (3, 'C', '10.0.0.2', 5)").await;
    db.sql("insert into abonents (id, name) values (70, 'Ann')")
        .await;
    for user in 1..=9 {
        db.sql(&format!(
            "insert into users (id, abonent_id, nas_id, login, ip, rate_in, ceil_in) values ({user}, 70, 1, 'u{user}', '10.88.0.{user}', 1024, 2048)"
        ))
        .await;
    }
}

async fn owned(db: &Db) -> i64 {
    fill(db).await;
    db.store.own("test pid=1", 10_000).await.unwrap()
}

/// Posts, expands and starts one event; returns it as started.
async fn running(db: &Db, epoch: i64, user: i64) -> EventId {
    let ids = posted(&db.store, &[event("user_add", user)]).await;
    db.store.expand(100, &[]).await.unwrap();
    let turn = Turn {
        epoch,
        starts: ids.clone(),
        ..Turn::default()
    };
    assert_eq!(db.store.turn(&turn).await.unwrap().started.len(), 1);
    ids[0]
}

fn done(id: EventId, try_count: u32) -> Settle {
    Settle {
        id,
        try_count: Some(try_count),
        to: SettleTo::Done {
            result: DoneResult::Done,
            answer: Some("yes".into()),
            scheme_hash: "ab".into(),
        },
        code: 0,
        ms: 12,
        error: None,
    }
}

async fn place(db: &Db, id: EventId) -> Option<(WhereIs, String)> {
    db.store
        .event(id)
        .await
        .unwrap()
        .map(|e| (e.place, e.state))
}

async fn ids_never_repeat_and_posts_are_all_or_nothing(db: Db) {
    fill(&db).await;
    let guard = Idempotency {
        key: "k1".into(),
        body_hash: "h".into(),
    };
    let first = db
        .store
        .post(&[event("user_add", 1)], Some(&guard))
        .await
        .unwrap();
    let Posted::New(ids) = &first else {
        panic!("{first:?}")
    };
    assert_eq!(
        db.store
            .post(&[event("user_add", 1)], Some(&guard))
            .await
            .unwrap(),
        Posted::Again(ids.clone())
    );
    let other = Idempotency {
        key: "k1".into(),
        body_hash: "other".into(),
    };
    assert_eq!(
        db.store
            .post(&[event("user_add", 1)], Some(&other))
            .await
            .unwrap(),
        Posted::Conflict
    );
    db.store.expand(10, &[]).await.unwrap();
    db.sql("delete from events_stack").await;
    let again = posted(&db.store, &[event("user_add", 1)]).await;
    assert!(again[0] > ids[0], "{again:?} after {ids:?}");
}

async fn expansion_moves_with_the_same_id_and_canonical_params(db: Db) {
    fill(&db).await;
    db.replace_params_view().await;
    let ids = posted(&db.store, &[event("user_rate_set", 1)]).await;
    let out = db.store.expand(100, &[]).await.unwrap();
    assert_eq!(out.failed, vec![]);
    assert_eq!(out.moved.len(), 1);
    let w = &out.moved[0];
    assert_eq!(
        (w.id, w.nas, w.user, w.class),
        (ids[0], NasId(1), Some(UserId(1)), Class::Rate)
    );
    let row = db.store.event(ids[0]).await.unwrap().unwrap();
    let params = row.params.unwrap();
    let expected = [
        ("user_id", "1"),
        ("t_null", ""),
        ("t_true", "1"),
        ("t_false", "0"),
        ("t_int", "-42"),
        ("t_big", "9007199254740993"),
        ("t_dec", "50.5"),
        ("t_whole", "50"),
        ("t_text", "it's \"q\" \n$(x) юзер"),
        ("t_time", "2026-01-02 03:04:05"),
        ("t_date", "2026-01-02"),
        ("t_list", r#"["10.88.0.1","2001:db8::/56"]"#),
        ("t_map", r#"{"a":1}"#),
        ("t_digits", "007"),
    ];
    // Types that SQLite does not have.
    let more = [
        ("t_inet", "10.0.0.1"),
        ("t_net", "10.0.0.0/24"),
        ("t_inet6", "2001:db8::1"),
        ("t_cidr", "10.1.0.0/16"),
        ("t_real", "0.1"),
        ("t_small", "0.0000001"),
        ("t_huge", "12345678901234567890"),
        ("t_local", "2026-01-02 03:04:05"),
        ("t_bytes", "00ff"),
        ("t_array", r#"["10.0.0.2","10.0.0.3"]"#),
        ("t_uuid", "00000000-0000-0000-0000-00000000000a"),
        ("t_domain", "7"),
        ("t_json_text", "plain"),
        ("t_json_true", "1"),
        ("t_json_null", ""),
        ("t_json_number", "2.5"),
    ];
    let more = if db.kind == Kind::Postgres {
        more.as_slice()
    } else {
        &[]
    };
    for (name, text) in expected.iter().chain(more) {
        assert_eq!(params.text(name), *text, "{name}");
    }
    assert!(params.0["t_list"].is_array() && params.0["t_map"].is_object());
    assert!(params.0["t_digits"].is_string());
    assert_eq!(db.store.counts().await.unwrap().compact, 0);
}

async fn own_params_overlay_and_bad_names_are_told(db: Db) {
    fill(&db).await;
    let mut with = event("user_del", 1);
    with.params = json!({"ip": "10.88.0.99", "flag": true, "rate": 1.5, "nothing": null})
        .as_object()
        .cloned();
    let mut bad = event("user_del", 2);
    bad.params = json!({"LD_PRELOAD": "x"}).as_object().cloned();
    let mut secret = event("user_del", 3);
    secret.params = json!({"coa_psw": "x"}).as_object().cloned();
    db.sql("insert into usluga (id, name, policy) values (5, 'social', 'p5')")
        .await;
    let mut service = event("usluga_add", 4);
    service.usluga_id = Some(5);
    let mut session = event("user_disconnect", 5);
    session.acct_session_id = Some("S-1".into());
    let ids = posted(&db.store, &[with, bad, secret, service, session]).await;
    let out = db.store.expand(100, &[]).await.unwrap();
    assert_eq!(
        out.moved.iter().map(|w| w.id).collect::<Vec<_>>(),
        vec![ids[0], ids[3], ids[4]]
    );
    let told: Vec<_> = out.failed.iter().map(|f| (f.0, f.1.clone())).collect();
    assert!(
        told[0].1.contains("LD_PRELOAD") && told[1].1.contains("coa_psw"),
        "{told:?}"
    );
    let params = db
        .store
        .event(ids[0])
        .await
        .unwrap()
        .unwrap()
        .params
        .unwrap();
    assert_eq!(params.text("ip"), "10.88.0.99");
    assert_eq!(
        (
            params.text("flag"),
            params.text("rate"),
            params.text("nothing")
        ),
        ("1".into(), "1.5".into(), String::new())
    );
    assert_eq!(params.text("login"), "u1");
    let service = db
        .store
        .event(ids[3])
        .await
        .unwrap()
        .unwrap()
        .params
        .unwrap();
    assert_eq!(
        (service.text("usluga_name"), service.text("usluga_id")),
        ("social".into(), "5".into())
    );
    assert_eq!(service.0["service"]["policy"], "p5");
    let session = db
        .store
        .event(ids[4])
        .await
        .unwrap()
        .unwrap()
        .params
        .unwrap();
    assert_eq!(session.text("acct_session_id"), "S-1");
}

async fn the_nas_is_chosen_by_id_then_address_then_account(db: Db) {
    fill(&db).await;
    let by_id = CompactEvent {
        nas_id: Some(2),
        nas_ip: Some("10.0.0.1".into()),
        ..event("user_add", 1)
    };
    let by_ip = CompactEvent {
        nas_ip: Some("10.0.0.1".into()),
        ..event("user_add", 2)
    };
    let twice = CompactEvent {
        nas_ip: Some("10.0.0.2".into()),
        ..event("user_add", 3)
    };
    let unknown = CompactEvent {
        nas_id: Some(77),
        ..event("user_add", 4)
    };
    let whole = CompactEvent {
        cmd: "users_from_nas".into(),
        nas_id: Some(3),
        ..CompactEvent::default()
    };
    let stranger = CompactEvent {
        nas_id: Some(2),
        params: json!({"ip": "1.2.3.4"}).as_object().cloned(),
        params_complete: true,
        ..event("user_add", 4444)
    };
    let ids = posted(&db.store, &[by_id, by_ip, twice, unknown, whole, stranger]).await;
    let out = db.store.expand(100, &[]).await.unwrap();
    let went: Vec<_> = out
        .moved
        .iter()
        .map(|w| (w.id, w.nas.0, w.user.map(|u| u.0)))
        .collect();
    assert_eq!(
        went,
        vec![
            (ids[0], 2, Some(1)),
            (ids[1], 1, Some(2)),
            (ids[4], 3, None),
            (ids[5], 2, Some(4444))
        ]
    );
    assert!(
        out.failed
            .iter()
            .any(|f| f.0 == ids[2] && f.1.contains("several")),
        "{:?}",
        out.failed
    );
    assert!(
        out.failed
            .iter()
            .any(|f| f.0 == ids[3] && f.1.contains("77")),
        "{:?}",
        out.failed
    );
}

async fn unexpandable_rows_never_stand_in_the_way(db: Db) {
    fill(&db).await;
    let bad: Vec<_> = (0..20).map(|n| event("user_add", 1000 + n)).collect();
    let bad_ids = posted(&db.store, &bad).await;
    let unknown = posted(&db.store, &[event("user_frobnicate", 9)]).await;
    let good = posted(&db.store, &[event("user_add", 1)]).await;
    let mut moved = Vec::new();
    for _ in 0..4 {
        moved.extend(db.store.expand(10, &[]).await.unwrap().moved);
    }
    assert_eq!(moved.iter().map(|w| w.id).collect::<Vec<_>>(), good);
    let counts = db.store.counts().await.unwrap();
    assert_eq!((counts.compact, counts.unexpandable), (21, 21));
    let row = db.store.event(bad_ids[0]).await.unwrap().unwrap();
    assert!(
        row.error.unwrap().contains("user_id 1000"),
        "the reason is visible"
    );
    let row = db.store.event(unknown[0]).await.unwrap().unwrap();
    assert!(row.error.unwrap().contains("user_frobnicate"));
    // The account appears, settings change: the row is tried at once.
    db.sql("insert into users (id, abonent_id, nas_id, ip) values (1000, 70, 1, '10.1.1.1')")
        .await;
    db.store.retry_expansion().await.unwrap();
    let moved = db.store.expand(10, &[]).await.unwrap().moved;
    assert_eq!(
        moved.iter().map(|w| w.id).collect::<Vec<_>>(),
        vec![bad_ids[0]]
    );
    // A loaded scheme defines the command.
    let own = [nas_event_daemon::event::Cmd::parse("user_frobnicate").unwrap()];
    db.store.retry_expansion().await.unwrap();
    let moved = db.store.expand(10, &own).await.unwrap().moved;
    assert_eq!(moved.iter().map(|w| w.id).collect::<Vec<_>>(), unknown);
}

async fn an_overtaken_row_goes_to_dead(db: Db) {
    fill(&db).await;
    let early = posted(
        &db.store,
        &[CompactEvent {
            nas_id: Some(77),
            ..event("user_redirect", 1)
        }],
    )
    .await;
    db.store.expand(10, &[]).await.unwrap();
    posted(
        &db.store,
        &[CompactEvent {
            nas_id: Some(2),
            ..event("user_redirect_cancel", 1)
        }],
    )
    .await;
    db.store.expand(10, &[]).await.unwrap();
    db.sql("update events_stack_compact set nas_id = 2").await;
    db.store.retry_expansion().await.unwrap();
    let out = db.store.expand(10, &[]).await.unwrap();
    assert_eq!((out.moved.len(), out.overtaken), (0, 1));
    let row = db.store.event(early[0]).await.unwrap().unwrap();
    assert_eq!(
        (row.place, row.error.as_deref()),
        (WhereIs::Dead, Some("overtaken"))
    );
}

async fn a_turn_settles_and_starts_in_one_transaction(db: Db) {
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
    assert_eq!(s.params.text("ip"), "10.88.0.1");
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

async fn every_transition_is_a_compare_and_set(db: Db) {
    let epoch = owned(&db).await;
    let id = running(&db, epoch, 1).await;
    // Not twice, not with another try, not from the wrong state.
    let again = db
        .store
        .turn(&Turn {
            epoch,
            starts: vec![id],
            ..Turn::default()
        })
        .await
        .unwrap();
    assert!(again.started.is_empty());
    let wrong_try = db
        .store
        .turn(&Turn {
            epoch,
            settles: vec![done(id, 2)],
            ..Turn::default()
        })
        .await
        .unwrap();
    assert!(wrong_try.settled.is_empty());
    let waiting = Settle {
        try_count: None,
        ..done(id, 1)
    };
    let not_waiting = db
        .store
        .turn(&Turn {
            epoch,
            settles: vec![waiting],
            ..Turn::default()
        })
        .await
        .unwrap();
    assert!(not_waiting.settled.is_empty());
    let right = db
        .store
        .turn(&Turn {
            epoch,
            settles: vec![done(id, 1)],
            ..Turn::default()
        })
        .await
        .unwrap();
    assert_eq!(right.settled, vec![id]);
    let twice = db
        .store
        .turn(&Turn {
            epoch,
            settles: vec![done(id, 1)],
            ..Turn::default()
        })
        .await
        .unwrap();
    assert!(twice.settled.is_empty());
    assert_eq!(place(&db, id).await, Some((WhereIs::Done, "done".into())));
}

async fn a_second_owner_is_refused_and_a_late_one_fenced(db: Db) {
    let epoch = owned(&db).await;
    let refused = db.store.own("other pid=2", 10_000).await;
    assert!(
        matches!(&refused, Err(Error::Owned { holder, .. }) if holder == "test pid=1"),
        "{refused:?}"
    );
    let id = running(&db, epoch, 1).await;
    let next = db.store.own("other pid=2", -1).await.unwrap();
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
    assert!(db.store.own("third pid=3", 10_000).await.unwrap() > next);
}

async fn what_a_dead_owner_left_running_comes_back_flagged(db: Db) {
    let epoch = owned(&db).await;
    let id = running(&db, epoch, 1).await;
    let mut epoch = db.store.own("second pid=2", -1).await.unwrap();
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
        epoch = db.store.own("next pid=3", -1).await.unwrap();
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
    epoch = db.store.own("last pid=4", -1).await.unwrap();
    assert_eq!(db.store.recover(epoch, 3).await.unwrap(), (0, 1));
    assert_eq!(place(&db, id).await, Some((WhereIs::Dead, "dead".into())));
}

async fn deferred_events_load_with_their_time(db: Db) {
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
        db.store.refill(NasId(1), Some(UserId(1)), 8).await.unwrap(),
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

async fn dead_events_are_retried_at_the_tail(db: Db) {
    let epoch = owned(&db).await;
    let bury = |id| Settle {
        to: SettleTo::Dead {
            reason: "no such command".into(),
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

async fn dropping_needs_a_waiting_event(db: Db) {
    let epoch = owned(&db).await;
    let id = running(&db, epoch, 1).await;
    assert!(
        !db.store.drop_event(id, "operator").await.unwrap(),
        "a running event stays"
    );
    let waiting = posted(&db.store, &[event("user_add", 2), event("user_add", 3)]).await;
    assert!(db.store.drop_event(waiting[0], "operator").await.unwrap());
    db.store.expand(10, &[]).await.unwrap();
    assert!(db.store.drop_event(waiting[1], "operator").await.unwrap());
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

async fn every_missing_column_is_named(db: Db) {
    assert_eq!(
        db.store.check_billing().await.unwrap(),
        Vec::<String>::new()
    );
    db.sql("drop view event_params").await;
    db.sql("create view event_params as select id as user_id, nas_id, login as web_password from users").await;
    let missing = db.store.check_billing().await.unwrap();
    assert!(
        missing
            .iter()
            .any(|m| m.contains("event_params.abonent_id")),
        "{missing:?}"
    );
    assert!(
        missing.iter().any(|m| m.contains("web_password")),
        "{missing:?}"
    );
}

async fn nas_rows_are_checked_one_by_one(db: Db) {
    fill(&db).await;
    db.sql("update nas set mode = 'maybe' where id = 2").await;
    let rows = db.store.nases().await.unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0].as_ref().unwrap().name, "A");
    assert!(rows[1].as_ref().unwrap_err().reason.contains("maybe"));
    db.sql("insert into nas_secret (nas_id, login, password) values (1, 'admin', 'servicemode')")
        .await;
    let secret = db.store.secret(NasId(1)).await.unwrap();
    assert_eq!(
        (secret.login.as_str(), secret.password.as_str()),
        ("admin", "servicemode")
    );
    assert!(!format!("{secret:?}").contains("servicemode"));
    let mut state = nas_event_daemon::nas::NasState {
        paused_until_ms: Some(i64::MAX),
        pause_reason: "night".into(),
        forks: Some(2),
    };
    db.store.set_nas_state(NasId(1), &state).await.unwrap();
    assert_eq!(db.store.nas_states().await.unwrap()[&NasId(1)], state);
    state.paused_until_ms = None;
    db.store.set_nas_state(NasId(1), &state).await.unwrap();
    assert_eq!(db.store.nas_states().await.unwrap()[&NasId(1)], state);
    let flags = db.store.account_flags(Some(NasId(1)), None).await.unwrap();
    assert_eq!(flags.len(), 9);
    assert!(flags[0].accept && !flags[0].redirect && !flags[0].deleted && flags[0].rated);
}

async fn secrets_are_never_readable_by_statements(db: Db) {
    fill(&db).await;
    db.sql("insert into nas_secret (nas_id, login, password) values (1, 'admin', 'servicemode')")
        .await;
    for statement in [
        "select * from nas_secret",
        "select * from NAS_SECRET",
        "select * from token",
    ] {
        assert!(
            matches!(db.store.sql(statement, false).await, Err(Error::Refused(_))),
            "{statement}"
        );
    }
    let answer = db
        .store
        .sql("select id, login from users order by id limit 2", false)
        .await
        .unwrap();
    assert_eq!(answer.columns, vec!["id", "login"]);
    assert_eq!(
        answer.rows[0],
        vec![Some("1".to_owned()), Some("u1".to_owned())]
    );
    assert!(
        db.store.sql("delete from users", false).await.is_err(),
        "read only without --write"
    );
    assert_eq!(db.store.account_flags(None, None).await.unwrap().len(), 9);
    assert!(
        connect("sqlite:///nonexistent-directory/x.db")
            .await
            .is_err()
    );
}

async fn a_statement_that_looks_changes_nothing(db: Db) {
    fill(&db).await;
    for statement in [
        "commit; delete from users; begin",
        "delete from users",
        "with gone as (delete from users returning id) select * from gone",
        "insert into users (id) values (77)",
    ] {
        assert!(db.store.sql(statement, false).await.is_err(), "{statement}");
    }
    assert_eq!(db.store.account_flags(None, None).await.unwrap().len(), 9);
    let changed = db
        .store
        .sql("delete from users where id > 7", true)
        .await
        .unwrap();
    assert_eq!(changed.changed, 2);
    assert_eq!(db.store.account_flags(None, None).await.unwrap().len(), 7);
}

async fn many_posts_keep_their_order(db: Db) {
    fill(&db).await;
    let many: Vec<_> = (0..300)
        .map(|n| CompactEvent {
            acct_session_id: Some(format!("S{n}")),
            ..event("user_add", n % 9 + 1)
        })
        .collect();
    let ids = posted(&db.store, &many).await;
    assert!(ids.is_sorted() && ids.len() == 300, "{ids:?}");
    let mut moved = Vec::new();
    loop {
        let out = db.store.expand(64, &[]).await.unwrap();
        moved.extend(out.moved);
        if !out.full {
            break;
        }
    }
    assert_eq!(moved.iter().map(|w| w.id).collect::<Vec<_>>(), ids);
    for n in [0, 150, 299] {
        let row = db.store.event(ids[n]).await.unwrap().unwrap();
        assert_eq!(row.params.unwrap().text("acct_session_id"), format!("S{n}"));
    }
}

async fn one_bad_row_of_the_view_stops_only_itself(db: Db) {
    fill(&db).await;
    db.sql("update users set login = '{}' where id <> 4").await;
    db.sql("drop view event_params").await;
    let column = match db.kind {
        Kind::Sqlite => "json_extract(login, '$.x') as x",
        Kind::Postgres => "login::json as x",
    };
    db.sql(&format!(
        "create view event_params as select id as user_id, abonent_id, nas_id, {column} from users"
    ))
    .await;
    db.store.check_billing().await.unwrap();
    let mut events: Vec<_> = (1..=9).map(|user| event("user_add", user)).collect();
    let own = json!({"a": 1});
    events.extend((1..=9).map(|user| CompactEvent {
        params: own.as_object().cloned(),
        ..event("user_edit", user)
    }));
    let ids = posted(&db.store, &events).await;
    let out = db.store.expand(100, &[]).await.unwrap();
    let failed: Vec<_> = out.failed.iter().map(|f| f.0).collect();
    assert_eq!(failed, vec![ids[3], ids[12]], "{:?}", out.failed);
    assert!(
        out.failed
            .iter()
            .all(|f| f.1.contains("json") || f.1.contains("JSON"))
    );
    assert_eq!(out.moved.len(), 16);
    assert!(out.moved.is_sorted_by_key(|w| w.id));
}

async fn a_view_may_have_many_columns(db: Db) {
    fill(&db).await;
    let columns: Vec<String> = (0..120).map(|n| format!("{n} as c{n}")).collect();
    db.sql("drop view event_params").await;
    db.sql(&format!(
        "create view event_params as select id as user_id, abonent_id, nas_id, {} from users",
        columns.join(", ")
    ))
    .await;
    db.store.check_billing().await.unwrap();
    let ids = posted(&db.store, &[event("user_add", 1)]).await;
    let out = db.store.expand(100, &[]).await.unwrap();
    assert_eq!(out.failed, vec![]);
    let row = db.store.event(ids[0]).await.unwrap().unwrap();
    assert_eq!(row.params.unwrap().text("c119"), "119");
}

async fn a_nul_never_blocks_a_settle(db: Db) {
    let epoch = owned(&db).await;
    let mut ids = Vec::new();
    for user in 1..=3 {
        ids.push(running(&db, epoch, user).await);
    }
    let nul = || "before\0after".to_owned();
    let settles = vec![
        Settle {
            to: SettleTo::Done {
                result: DoneResult::Done,
                answer: Some(nul()),
                scheme_hash: "ab".into(),
            },
            error: Some(nul()),
            ..done(ids[0], 1)
        },
        Settle {
            to: SettleTo::Dead { reason: nul() },
            error: Some(nul()),
            ..done(ids[1], 1)
        },
        Settle {
            to: SettleTo::Deferred {
                until_ms: i64::MAX,
                possible_duplicate: false,
            },
            error: Some(nul()),
            ..done(ids[2], 1)
        },
    ];
    let turn = Turn {
        epoch,
        settles,
        ..Turn::default()
    };
    let mut settled = db.store.turn(&turn).await.unwrap().settled;
    settled.sort();
    assert_eq!(settled, ids);
    let row = db.store.event(ids[0]).await.unwrap().unwrap();
    assert!(row.answer.unwrap().starts_with("before"));
    assert!(db.store.drop_event(ids[2], &nul()).await.unwrap());
    db.store.audit("who", "what", &nul()).await.unwrap();
    // What a producer posts is kept as it is, or refused in words.
    let post = CompactEvent {
        nas_ip: Some(nul()),
        ..event("user_add", 1)
    };
    match db.store.post(&[post], None).await {
        Ok(Posted::New(_)) => {}
        Err(Error::Refused(text)) => {
            assert!(text.contains("NUL") && text.contains("nas_ip"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

async fn two_daemons_expand_each_event_once(db: Db) {
    fill(&db).await;
    let second = connect(&db.url).await.unwrap();
    let many: Vec<_> = (0..400).map(|n| event("user_add", n % 9 + 1)).collect();
    let ids = posted(&db.store, &many).await;
    let drain = async |store: &Arc<dyn Store>| {
        let mut moved = Vec::new();
        while store.counts().await.unwrap().compact > 0 {
            moved.extend(store.expand(20, &[]).await.unwrap().moved);
        }
        moved
    };
    let (one, two) = tokio::join!(drain(&db.store), drain(&second));
    let mut moved: Vec<_> = one.iter().chain(&two).map(|w| w.id).collect();
    moved.sort();
    assert_eq!(moved, ids);
}

async fn an_expiring_command_carries_its_time(db: Db) {
    fill(&db).await;
    let wished = CompactEvent {
        expires_at_ms: Some(1_900_000_000_000),
        ..event("user_add", 1)
    };
    let own = CompactEvent {
        params: json!({"a": 1}).as_object().cloned(),
        ..event("user_info", 2)
    };
    posted(
        &db.store,
        &[
            wished,
            event("user_disconnect", 1),
            own,
            event("user_add", 3),
        ],
    )
    .await;
    let out = db.store.expand(10, &[]).await.unwrap();
    let life: Vec<i64> = out
        .moved
        .iter()
        .map(|w| {
            if w.expires_ms == 0 {
                0
            } else {
                w.expires_ms - w.since_ms
            }
        })
        .collect();
    assert_eq!(out.moved[0].expires_ms, 1_900_000_000_000);
    assert!(
        (life[1] - 600_000).abs() <= 1 && (life[2] - 60_000).abs() <= 1,
        "{life:?}"
    );
    assert_eq!(life[3], 0);
}

async fn params_are_read_again_but_for_what_the_event_brought(db: Db) {
    fill(&db).await;
    let mut del = event("user_del", 1);
    del.params = json!({"ip": "10.9.9.9"}).as_object().cloned();
    let ids = posted(&db.store, &[del, event("user_disconnect", 2)]).await;
    db.store.expand(10, &[]).await.unwrap();
    db.sql("update users set ip = '10.7.7.7', acct_session_id = 'S-new'")
        .await;
    let now = db.store.params_now(ids[0]).await.unwrap().unwrap();
    assert_eq!(now.text("acct_session_id"), "S-new");
    assert!(
        !now.0.contains_key("ip"),
        "the old address stays what the event said"
    );
    let now = db.store.params_now(ids[1]).await.unwrap().unwrap();
    assert_eq!(now.text("ip"), "10.7.7.7");
    db.sql("delete from users where id = 2").await;
    assert_eq!(db.store.params_now(ids[1]).await.unwrap(), None);
    assert_eq!(db.store.params_now(EventId(999_999)).await.unwrap(), None);
}

async fn a_deposed_daemon_expands_nothing(db: Db) {
    fill(&db).await;
    let first = connect(&db.url).await.unwrap();
    let second = connect(&db.url).await.unwrap();
    first.own("first pid=1", 10_000).await.unwrap();
    second.own("second pid=2", -1).await.unwrap();
    let ids = posted(&db.store, &[event("user_add", 1)]).await;
    let late = first.expand(10, &[]).await;
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    assert_eq!(
        place(&db, ids[0]).await,
        Some((WhereIs::Compact, "compact".into()))
    );
    let moved = second.expand(10, &[]).await.unwrap().moved;
    assert_eq!(moved.iter().map(|w| w.id).collect::<Vec<_>>(), ids);
}
