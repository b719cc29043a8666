//! What the contract says of accepting and expanding events.

use nas_event_daemon::clock;

use super::*;

pub(super) async fn expansion_moves_with_the_same_id_and_canonical_params(db: Db) {
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
        ("t_tenth", "0.1"),
        ("t_small", "0.0000001"),
        ("t_sum", "0.3"),
        ("t_minus", "-1.5"),
        ("t_tiny", "0"),
        ("t_wide", "12345678901234567"),
    ];
    // Types that SQLite does not have.
    let more = [
        ("t_inet", "10.0.0.1"),
        ("t_net", "10.0.0.0/24"),
        ("t_inet6", "2001:db8::1"),
        ("t_cidr", "10.1.0.0/16"),
        ("t_real", "0.1"),
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

pub(super) async fn own_params_overlay_and_bad_names_are_told(db: Db) {
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

pub(super) async fn the_nas_is_chosen_by_id_then_address_then_account(db: Db) {
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
    // The same by SQL, as the contract writes it.
    db.sql(
        "insert into events_stack_compact (id, cmd, user_id, nas_id, params, params_complete)
         values (900, 'user_add', 5555, 2, '{}', 1)",
    )
    .await;
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
            (ids[5], 2, Some(4444)),
            (EventId(900), 2, Some(5555))
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

pub(super) async fn unexpandable_rows_never_stand_in_the_way(db: Db) {
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
    let own = [Cmd::parse("user_frobnicate").unwrap()];
    db.store.retry_expansion().await.unwrap();
    let moved = db.store.expand(10, &own).await.unwrap().moved;
    assert_eq!(moved.iter().map(|w| w.id).collect::<Vec<_>>(), unknown);
}

pub(super) async fn a_row_that_cannot_be_expanded_is_tried_more_and_more_seldom(db: Db) {
    fill(&db).await;
    let id = posted(&db.store, &[event("user_add", 1000)]).await[0];
    for (n, pause_s) in (1..).zip([1, 2, 4, 8, 16, 32, 60, 60, 60, 60]) {
        let before_ms = clock::wall_ms();
        let out = db.store.expand(10, &[]).await.unwrap();
        let after_ms = clock::wall_ms();
        assert_eq!(out.failed.len(), 1, "try {n}");
        let row = db.store.event(id).await.unwrap().unwrap();
        assert_eq!(row.try_count, n);
        let pause_ms = row.next_try_ms.unwrap() - pause_s * 1000;
        assert!(
            (before_ms - 2..=after_ms + 2).contains(&pause_ms),
            "try {n}: the next one {} ms from now, {pause_s} s wanted",
            row.next_try_ms.unwrap() - after_ms
        );
        let early = db.store.expand(10, &[]).await.unwrap();
        if clock::wall_ms() < row.next_try_ms.unwrap() {
            assert_eq!(early.failed, vec![], "try {n}: before its time");
        }
        db.sql("update events_stack_compact set next_expand_at = '2020-01-01 00:00:00'")
            .await;
    }
}

pub(super) async fn an_overtaken_row_goes_to_dead(db: Db) {
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

pub(super) async fn one_bad_row_of_the_view_stops_only_itself(db: Db) {
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

pub(super) async fn a_view_may_have_many_columns(db: Db) {
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

pub(super) async fn two_daemons_expand_each_event_once(db: Db) {
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

pub(super) async fn an_expiring_command_carries_its_time(db: Db) {
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

pub(super) async fn params_are_read_again_but_for_what_the_event_brought(db: Db) {
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

pub(super) async fn a_deposed_daemon_expands_nothing(db: Db) {
    fill(&db).await;
    let first = connect(&db.url).await.unwrap();
    let second = connect(&db.url).await.unwrap();
    first
        .own("first pid=1", After::Silence(10_000))
        .await
        .unwrap();
    second
        .own("second pid=2", After::Silence(-1))
        .await
        .unwrap();
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

pub(super) async fn above_the_mark_payers_come_first_and_in_order(db: Db) {
    fill(&db).await;
    let asked = [
        event("user_rate_set", 1),
        event("user_redirect", 2),
        event("user_redirect_cancel", 2),
        event("user_redirect", 2),
        event("user_info", 3),
        event("user_redirect", 3),
        event("user_accept", 4),
    ];
    let ids = posted(&db.store, &asked).await;
    let backlog = db.store.backlog(5).await.unwrap();
    assert_eq!((backlog.compact, backlog.main), (5, 0));
    let expanded = async |limit| {
        let out = db.store.expand_urgent(limit, &[]).await.unwrap();
        let moved: Vec<EventId> = out.moved.iter().map(|w| w.id).collect();
        (moved, out.full)
    };
    // What was asked for a payer before comes before: he must not be cut off by it later.
    assert_eq!(expanded(2).await, (vec![ids[1], ids[2]], true));
    assert_eq!(expanded(100).await, (vec![ids[4], ids[6]], false));
    assert_eq!(expanded(100).await, (vec![], false));
    let backlog = db.store.backlog(5).await.unwrap();
    assert_eq!((backlog.compact, backlog.main), (3, 4));
    // Below the mark the rest follows; what was moved before may be told again.
    let rest = db.store.expand(100, &[]).await.unwrap();
    let rest: Vec<EventId> = rest.moved.iter().map(|w| w.id).collect();
    assert!(
        [ids[0], ids[3], ids[5]].iter().all(|id| rest.contains(id)),
        "{rest:?}"
    );
    let backlog = db.store.backlog(10).await.unwrap();
    assert_eq!((backlog.compact, backlog.main), (0, 7));
    // A scheme's own command that gives access (u_b_*) is one, too.
    let own = [
        event("user_rate_set", 5),
        event("u_b_holiday", 5),
        event("b_holiday", 6),
    ];
    let ids = posted(&db.store, &own).await;
    let cmds = ["u_b_holiday", "b_holiday"].map(|name| Cmd::parse(name).unwrap());
    let out = db.store.expand_urgent(100, &cmds).await.unwrap();
    let moved: Vec<EventId> = out.moved.iter().map(|w| w.id).collect();
    assert_eq!(moved, ids[..2]);
}
