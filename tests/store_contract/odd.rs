//! SQLite keeps any value in any column, and producers and billings write with many tools: what is
//! odd hurts its own row and nobody else's. PostgreSQL refuses most of it when it is written.

use super::*;

/// Insert of one odd compact row; what its error says, or nothing where it is understood.
const ODD: &[(&str, &str)] = &[
    (
        "(cmd, user_id) values ('user_edit', 'abc')",
        "user_id is no whole number: \"abc\"",
    ),
    (
        "(cmd, user_id) values ('user_edit', 1424.5)",
        "user_id is no whole number: \"1424.5\"",
    ),
    (
        "(cmd, user_id) values ('user_edit', x'00ff')",
        "user_id is no whole number",
    ),
    (
        "(cmd, user_id, nas_id) values ('user_edit', 2, 'bras')",
        "nas_id is no whole number: \"bras\"",
    ),
    (
        "(cmd, user_id, usluga_id) values ('user_edit', 2, 'x')",
        "usluga_id is no whole number",
    ),
    (
        "(cmd, user_id, abonent_id) values ('user_edit', 2, 'x')",
        "abonent_id is no whole number",
    ),
    (
        "(cmd, user_id, params_complete) values ('user_edit', 2, 'true')",
        "params_complete is no whole number",
    ),
    (
        "(cmd, user_id) values (x'7573', 2)",
        "cmd is no text in UTF-8",
    ),
    (
        "(cmd, user_id) values (cast(x'cff0e8' as text), 2)",
        "cmd is no text in UTF-8",
    ),
    (
        "(cmd, user_id, params) values ('user_edit', 2, x'7b7d')",
        "params is no text in UTF-8",
    ),
    (
        "(cmd, user_id, params) values ('user_edit', 2, '[]')",
        "params is not a JSON object",
    ),
    (
        "(cmd, user_id, source) values ('user_edit', 2, x'00')",
        "source is no text in UTF-8",
    ),
    (
        "(cmd, user_id, expires_at) values ('user_edit', 2, 'garbage')",
        "expires_at is no time: \"garbage\"",
    ),
    (
        "(cmd, user_id, expires_at) values ('user_edit', 2, '01.01.2020')",
        "expires_at is no time",
    ),
    (
        "(cmd, user_id, nas_id, usluga_id, nas_ip, params, expires_at) values ('user_edit', 2, '', '', '', '', '')",
        "",
    ),
    ("(cmd, user_id, params) values ('user_edit', 2, 'null')", ""),
    (
        "(cmd, user_id, expand_tries) values ('user_edit', 2, 'x')",
        "",
    ),
    (
        "(cmd, user_id, owner_script) values ('user_edit', 2, cast(x'cff0e8' as text))",
        "",
    ),
    (
        "(cmd, user_id, expires_at) values ('user_edit', 2, '2099-01-02T03:04:05Z')",
        "",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_odd_value_stops_its_own_row_only() {
    let db = Db::new(Kind::Sqlite).await;
    fill(&db).await;
    for (values, _) in ODD {
        db.sql(&format!("insert into events_stack_compact {values}"))
            .await;
    }
    let good = posted(&db.store, &[event("user_edit", 1)]).await;
    let mut moved = Vec::new();
    for _ in 0..4 {
        moved.extend(db.store.expand(100, &[]).await.unwrap().moved);
    }
    assert!(moved.iter().any(|w| w.id == good[0]), "{moved:?}");
    for (at, (values, told)) in ODD.iter().enumerate() {
        let id = EventId(i64::try_from(at).unwrap() + 1);
        let row = db.store.event(id).await.unwrap().unwrap();
        let error = row.error.unwrap_or_default();
        assert!(error.contains(told), "{values}: {error:?}");
        let is_moved = moved.iter().any(|w| w.id == id);
        assert_eq!(is_moved, told.is_empty(), "{values}: {error:?}");
    }
    let counts = db.store.counts().await.unwrap();
    let refused = ODD.iter().filter(|(_, told)| !told.is_empty()).count();
    assert_eq!(counts.unexpandable, i64::try_from(refused).unwrap());
}

/// What a billing keeps in its own tables, in the short way of a turn and in the careful one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_values_of_an_account_hold_up_no_turn() {
    let db = Db::new(Kind::Sqlite).await;
    let epoch = owned(&db).await;
    db.sql("update users set abonent_id = 'abc' where id = 1")
        .await;
    db.sql("update users set login = cast(x'cff0e8' as text) where id = 2")
        .await;
    for again in [false, true] {
        let ids = posted(&db.store, &[1, 2, 3].map(|user| event("user_edit", user))).await;
        let moved = db.store.expand(100, &[]).await.unwrap().moved;
        assert_eq!(moved.len(), ids.len());
        let turn = Turn {
            epoch,
            starts: ids.clone(),
            again,
            ..Turn::default()
        };
        let started = db.store.turn(&turn).await.unwrap().started;
        assert_eq!(started.len(), ids.len());
        let of = |user: i64| {
            started
                .iter()
                .find(|s| s.user == Some(UserId(user)))
                .unwrap()
        };
        assert_eq!((of(1).abonent, of(3).abonent), (None, Some(70)));
        assert_eq!(
            of(2).params.clone().read().text("login"),
            "\u{fffd}\u{fffd}\u{fffd}"
        );
        assert_eq!(of(1).params.clone().read().text("abonent_id"), "abc");
    }
}

/// A number that a foreign program has used for an event of its own, long ago.
async fn a_number_that_was_used_before_holds_up_nobody(kind: Kind) {
    let db = Db::new(kind).await;
    let epoch = owned(&db).await;
    let ids = posted(&db.store, &[1, 2, 3].map(|user| event("user_edit", user))).await;
    for (table, more, id) in [
        ("events_done", "result", ids[0]),
        ("events_done", "result", ids[1]),
        ("events_dead", "reason", ids[2]),
    ] {
        db.sql(&format!(
            "insert into {table} (id, event_type, event_date, {more})
             values ({id}, 'user_add', '2026-01-01 00:00:00', 'old')"
        ))
        .await;
    }
    db.store.expand(100, &[]).await.unwrap();
    let turn = Turn {
        epoch,
        starts: ids.clone(),
        ..Turn::default()
    };
    db.store.turn(&turn).await.unwrap();
    let dead = Settle {
        to: SettleTo::Dead {
            reason: "for good".into(),
            possible_duplicate: false,
        },
        ..done(ids[2], 1)
    };
    // The short way, then the careful one.
    for settles in [vec![done(ids[0], 1)], vec![done(ids[1], 1), dead]] {
        let turn = Turn {
            epoch,
            settles,
            ..Turn::default()
        };
        let settled = db.store.turn(&turn).await.unwrap().settled;
        assert_eq!(settled.len(), turn.settles.len());
    }
    for (id, state) in [(ids[0], "done"), (ids[1], "done"), (ids[2], "dead")] {
        let row = db.store.event(id).await.unwrap().unwrap();
        assert_eq!((row.cmd.as_str(), row.state.as_str()), ("user_edit", state));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_number_on_sqlite() {
    a_number_that_was_used_before_holds_up_nobody(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_number_on_postgres() {
    a_number_that_was_used_before_holds_up_nobody(Kind::Postgres).await;
}
