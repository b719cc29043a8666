//! What the contract says of the billing's tables, NAS rows, secrets and statements.

use std::collections::BTreeMap;

use nas_event_daemon::nas::{Mode, NasChange, NasState};
use nas_event_daemon::store::{SqlAnswer, postgres, sqlite};

use super::*;

pub(super) async fn every_missing_column_is_named(db: Db) {
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

pub(super) async fn nas_rows_are_checked_one_by_one(db: Db) {
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
    // Each change leaves what others have set.
    let pause = |from| NasChange::Pause {
        from,
        until: i64::MAX,
        reason: "night".into(),
    };
    let mut state = NasState::default();
    for change in [
        pause(Some(1_700_000_000_123)),
        NasChange::Forks(Some(2)),
        NasChange::Mode(Some(Mode::Observe)),
        pause(None),
        NasChange::Forks(None),
        NasChange::Resume,
        NasChange::Forks(Some(3)),
    ] {
        db.store.change_nas(NasId(1), &change).await.unwrap();
        state.apply(&change);
        assert_eq!(db.store.nas_states().await.unwrap()[&NasId(1)], state);
    }
    // The operator's word on the mode holds until it is taken back.
    for (word, mode) in [(Some(Mode::Active), Mode::Active), (None, Mode::Observe)] {
        db.sql("update nas set mode = 'observe' where id = 1").await;
        let change = NasChange::Mode(word);
        db.store.change_nas(NasId(1), &change).await.unwrap();
        let rows = db.store.nases().await.unwrap();
        assert_eq!(rows[0].as_ref().unwrap().mode, mode);
    }
    host_keys_are_replaced_only_by_who_knows_the_old_one(&db).await;
    let flags = db.store.account_flags(Some(NasId(1)), None).await.unwrap();
    assert_eq!(flags.len(), 9);
    assert!(flags[0].accept && !flags[0].redirect && !flags[0].deleted && flags[0].rated);
}

async fn host_keys_are_replaced_only_by_who_knows_the_old_one(db: &Db) {
    // With a state row and without one.
    for nas in [NasId(1), NasId(2)] {
        for (was, key, done) in [
            (Some("a"), Some("b"), false),
            (None, Some("a"), true),
            (None, Some("b"), false),
            (Some("a"), Some("c"), true),
        ] {
            let told = db.store.set_host_key(nas, was, key).await.unwrap();
            assert_eq!(told, done, "{nas} {was:?} {key:?}");
        }
        // The operator's settings and the key live side by side.
        let change = NasChange::Forks(Some(7));
        db.store.change_nas(nas, &change).await.unwrap();
        let state = db.store.nas_states().await.unwrap().remove(&nas).unwrap();
        assert_eq!(state.ssh_host_key.as_deref(), Some("c"));
        assert_eq!(state.forks, Some(7));
        assert!(db.store.set_host_key(nas, Some("c"), None).await.unwrap());
    }
}

pub(super) async fn secrets_are_never_readable_by_statements(db: Db) {
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
    for statement in [
        "create table stolen as select * from nas_secret",
        "pragma writable_schema = on",
        "alter table nas_secret rename to open",
        "attach 'elsewhere.db' as elsewhere",
        "vacuum into 'elsewhere.db'",
        "create virtual table found using fts5(password, content=cards)",
    ] {
        assert!(db.store.sql(statement, true).await.is_err(), "{statement}");
    }
    // What the billing shows of it under another name the database itself tells apart.
    db.sql("create view cards as select n.id, s.password from nas n, nas_secret s where s.nas_id = n.id")
        .await;
    db.sql("create view cards_again as select * from cards; create table copied (id integer, password text)")
        .await;
    for (statement, write) in [
        ("select * from cards", false),
        (
            "select 1 from users where exists (select * from cards_again)",
            false,
        ),
        (
            "with c as (select password from cards) select * from c",
            false,
        ),
        (
            "select * from (values (1)) v left join cards on true",
            false,
        ),
        ("insert into copied select id, password from cards", true),
        (
            "update users set login = (select password from cards)",
            true,
        ),
        ("create table stolen as select * from cards_again", true),
        // Expansion would read it, too.
        (
            "create view shown as select id as user_id, password as comment from cards",
            true,
        ),
    ] {
        let refused = db.store.sql(statement, write).await;
        let Err(Error::Refused(text)) = refused else {
            panic!("{statement}: {refused:?}")
        };
        assert!(
            text.contains("would read nas_secret"),
            "{statement}: {text}"
        );
    }
    // SQLite takes `$a(…)` for one name, quotes and all; a name in quotes may hold statements.
    if db.kind == Kind::Sqlite {
        for (two, write) in [
            (
                "select '' as opcode, $a('); select password as opcode from cards --'",
                false,
            ),
            ("select $a('); drop table audit --'", true),
            ("select :a('); drop table users --'", true),
            ("select @a('); drop table users --'", true),
            ("select #a('); drop table users --'", true),
            (
                "create view \"as select 1; drop table users --\" as select 1",
                true,
            ),
        ] {
            let refused = db.store.sql(two, write).await;
            assert!(
                matches!(refused, Err(Error::Refused(_))),
                "{two}: {refused:?}"
            );
        }
    }
    for fine in [
        "create view logins as select id, login from users",
        "insert into copied select id, login from logins",
        "delete from copied",
    ] {
        db.store.sql(fine, true).await.unwrap();
    }
    let copied = "select count(*) from copied";
    let copied = db.store.sql(copied, false).await.unwrap().rows;
    assert_eq!(copied, [[Some("0".to_owned())]]);
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

pub(super) async fn a_statement_returns_so_many_rows_at_most(db: Db) {
    let count = |n: usize| {
        format!(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < {n}) select i from n"
        )
    };
    let most = SqlAnswer::ROWS_MAX;
    let all = db.store.sql(&count(most), false).await.unwrap();
    assert_eq!(all.rows.len(), most);
    let refused = db.store.sql(&count(most + 1), false).await.unwrap_err();
    assert!(refused.to_string().contains("add a limit"), "{refused}");
}

pub(super) async fn a_statement_that_looks_changes_nothing(db: Db) {
    fill(&db).await;
    for statement in [
        "commit; delete from users; begin",
        "select 1 as [']; delete from users; select [']",
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

pub(super) async fn a_nul_never_blocks_a_settle(db: Db) {
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
            to: SettleTo::Dead {
                reason: nul(),
                possible_duplicate: false,
            },
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
    assert!(db.store.drop_event(ids[2], None, &nul()).await.unwrap());
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

pub(super) async fn old_audit_rows_are_deleted_in_pieces(db: Db) {
    for n in 1..=3 {
        db.sql(&format!(
            "insert into audit (at, who, what, detail) values ('2020-01-01 00:00:0{n}', 'crm', 'post', 'old')"
        ))
        .await;
    }
    for n in 4..=5 {
        db.store
            .audit("crm", "post", &format!("event={n}"))
            .await
            .unwrap();
    }
    // Nobody covers his traces, not even who may write.
    for change in [
        "update audit set who = 'somebody else' where id = 5",
        "delete from audit where id = 5",
        "replace into audit (id, who, what, detail) values (5, 'crm', 'post', 'another')",
        "truncate audit",
        "drop table audit",
        "alter table audit rename to audit_of_old",
        "drop trigger audit_is_kept on audit",
        "drop trigger \"audit_is_kept\"",
        "with gone as (select 5 as id) delete from audit where id in (select id from gone)",
        // After which there would be no number for the next row.
        "insert into audit (id, who, what) values (9223372036854775807, 'x', 'y')",
        "update sqlite_sequence set seq = 9223372036854775807",
        "alter sequence audit_id_seq restart 1",
    ] {
        let refused = db.store.sql(change, true).await.unwrap_err();
        let refused = nas_event_daemon::store::chain(&refused);
        assert!(refused.contains("the audit table"), "{refused}");
    }
    // Nor a foreign program, by what asks no trigger of an update or a delete.
    let ways: &[&str] = match db.kind {
        Kind::Sqlite => &[
            "replace into audit (id, who, what, detail) values (5, 'crm', 'post', 'another')",
            "insert or replace into audit (id, who, what) values (5, 'crm', 'post')",
            "insert into audit (id, who, what) values (5, 'x', 'y') on conflict (id) do update set who = 'x'",
            "insert into audit (id, who, what) values (-1, 'x', 'y')",
            "insert into audit (id, who, what) values (9223372036854775807, 'x', 'y')",
            "insert into audit (id, who, what) values (7, 'x', 'y')",
        ],
        Kind::Postgres => &[
            "truncate audit",
            "truncate audit cascade",
            "set session_replication_role = replica; update audit set who = 'x'",
            "set session_replication_role = replica; truncate audit",
        ],
    };
    for way in ways {
        let refused = db.try_sql(way).await.unwrap_err().to_string();
        assert!(refused.contains("the audit table"), "{way}: {refused}");
    }
    // What only speaks of it is not about it.
    for fine in [
        "update users set login = 'the audit'",
        "select * from audit where what = 'token_create'",
    ] {
        db.store
            .sql(fine, fine.starts_with("update"))
            .await
            .unwrap();
    }
    let five = "select detail from audit where id = 5";
    let five = db.store.sql(five, false).await.unwrap().rows;
    assert_eq!(five, [[Some("event=5".to_owned())]]);
    let now = nas_event_daemon::clock::wall_ms();
    let year = 366 * 86_400_000;
    let store = db.store.as_ref();
    let gone = async |before| store.prune_audit(before, 2).await.unwrap();
    assert_eq!(gone(now - 20 * year).await, 0);
    let pieces = [
        gone(now - year).await,
        gone(now - year).await,
        gone(now - year).await,
    ];
    assert_eq!(pieces, [2, 1, 0]);
    let left = audit_rows(store, None, 10).await.unwrap();
    assert_eq!(left.len(), 2);
}

/// A small form of a crowded database, and what the planner makes of each list: a table may be
/// read in the order of its key until a page is full, but never as a whole for an account or a
/// batch.
pub(super) async fn lists_of_a_crowded_database_are_read_by_index(db: Db) {
    let done =
        "insert into events_done (id, event_type, user_id, nas_id, event_date, result, batch_id)
      select n, 'user_add', n % 5000, n % 40, '2026-01-01 00:00:00', 'done',
        case when n % 100 = 0 then 'b' || (n / 1000) end from numbers";
    let dead =
        "insert into events_dead (id, event_type, user_id, nas_id, event_date, reason, batch_id)
      select n + 1000000, 'user_add', n % 5000, n % 40, '2026-01-01 00:00:00', 'x',
        case when n % 100 = 0 then 'b' || (n / 1000) end from numbers";
    for into in [done, dead] {
        let numbers = "with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 20000)";
        db.sql(&into.replacen("select n", &format!("{numbers} select n"), 1))
            .await;
    }
    db.sql("analyze").await;
    let filter = |state: &str| Filter {
        state: Some(state.to_owned()),
        limit: 100,
        ..Filter::default()
    };
    for state in ["all", "done", "dead"] {
        let of_account = Filter {
            user: Some(77),
            ..filter(state)
        };
        let of_batch = Filter {
            batch: Some("b7".to_owned()),
            ..filter(state)
        };
        let next_page = Filter {
            before: Some(15_000),
            ..filter(state)
        };
        for (filter, index) in [
            (of_account, "account"),
            (of_batch, "batch"),
            (next_page, ""),
            (filter(state), ""),
        ] {
            let plan = plan(&db, &filter).await;
            let whole = plan.lines().find(|line| {
                let scan = line.contains("Seq Scan on events_d")
                    || (line.contains("SCAN events_d") && !line.contains("USING"))
                    || line.contains("Sort Method");
                scan && !index.is_empty()
            });
            assert_eq!(whole, None, "{filter:?}\n{plan}");
            assert!(plan.contains(index), "{filter:?}\n{plan}");
            let rows = db.store.events(&filter).await.unwrap();
            assert!(!rows.is_empty() || filter.before.is_some(), "{filter:?}");
            assert!(rows.windows(2).all(|w| w[0].id > w[1].id));
        }
    }
}

/// How the database would read a list.
async fn plan(db: &Db, filter: &Filter) -> String {
    let (text, mark, explain) = match db.kind {
        Kind::Sqlite => (sqlite::list_text(filter), '?', "explain query plan"),
        Kind::Postgres => (postgres::list_text(filter), '$', "explain"),
    };
    let (mut text, state) = text.unwrap();
    let given = [
        state.map(|text| format!("'{text}'")),
        filter.user.map(|n| n.to_string()),
        filter.batch.as_ref().map(|text| format!("'{text}'")),
        filter.before.map(|n| n.to_string()),
        Some(filter.limit.to_string()),
    ];
    for (index, value) in given.into_iter().flatten().enumerate() {
        text = text.replace(&format!("{mark}{}", index + 1), &value);
    }
    let answer = db
        .store
        .sql(&format!("{explain} {text}"), false)
        .await
        .unwrap();
    let lines = answer
        .rows
        .iter()
        .map(|row| row.last().cloned().flatten().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Moves between two looks must not make an event vanish: a bridge, a waiting client and
/// `event show` would take it for one that was deleted long ago.
pub(super) async fn an_event_on_its_way_is_always_found(db: Db) {
    fill(&db).await;
    for _ in 0..200 {
        let id = posted(&db.store, &[event("user_add", 1)]).await[0];
        let mut moving = tokio::task::JoinSet::new();
        let store = Arc::clone(&db.store);
        moving.spawn(async move { store.expand(10, &[]).await.unwrap() });
        let moved = loop {
            let found = db.store.event(id).await.unwrap();
            assert!(found.is_some(), "event {id} was nowhere");
            if let Some(moved) = moving.try_join_next() {
                break moved.unwrap().moved;
            }
        };
        assert_eq!(moved.len(), 1);
    }
}

pub(super) async fn ways_in_and_numbers_of_each_nas(db: Db) {
    fill(&db).await;
    let from = |source: &str, cmd: &str, user| CompactEvent {
        source: Some(source.to_owned()),
        ..event(cmd, user)
    };
    db.sql("insert into events_stack_compact (cmd, user_id) values ('user_add', 1), ('user_add', 4711)")
        .await;
    posted(&db.store, &[from("cli", "user_del", 2)]).await;
    // Events of a door: with the token's name, and a key of the producer.
    posted(&db.store, &[from("shop", "user_add", 3)]).await;
    for (source, key) in [("asr", "asr:7"), ("shop", "asr:8")] {
        let guard = Idempotency {
            key: key.to_owned(),
            body_hash: "h".to_owned(),
            lasting: false,
        };
        let rate = from(source, "user_rate_set", 4);
        db.store.post(&[rate], Some(&guard)).await.unwrap();
    }
    let came = db.store.expand(100, &[]).await.unwrap().came;
    let way = |way: &'static str, cmd: &str, rows: u64| ((way, cmd.to_owned()), rows);
    let expected = BTreeMap::from([
        way("bridge", "user_rate_set", 1),
        way("cli", "user_del", 1),
        way("sql", "user_add", 2),
    ]);
    assert_eq!(came, expected, "also what cannot be expanded");
    db.sql("update events_stack_compact set next_expand_at = '2020-01-01 00:00:00'")
        .await;
    let again = db.store.expand(100, &[]).await.unwrap();
    assert_eq!((again.failed.len(), again.came.len()), (1, 0), "once");
    db.sql(
        "insert into events_stack_compact (cmd, user_id, nas_id, created_at)
              values ('user_redirect_cancel', 5, 2, '2020-01-01 00:00:00')",
    )
    .await;
    let urgent = db.store.expand_urgent(100, &[]).await.unwrap();
    let expected = BTreeMap::from([way("sql", "user_redirect_cancel", 1)]);
    assert_eq!(urgent.came, expected);

    let counts = db.store.counts().await.unwrap();
    let [(1, young), (2, old)] = counts.oldest_by_nas.as_slice() else {
        panic!("{counts:?}");
    };
    assert!(*young < 600 && *old > 100_000_000, "{counts:?}");
    db.sql("update events_stack set state = 'held' where nas_id = 2")
        .await;
    db.sql(
        "insert into events_dead (id, event_type, nas_id, event_date, reason, retried_as) values
              (9001, 'user_add', 1, '2020-01-01 00:00:00', 'no', null),
              (9002, 'user_add', 1, '2020-01-01 00:00:00', 'no', null),
              (9003, 'user_add', null, '2020-01-01 00:00:00', 'no', null),
              (9004, 'user_add', 2, '2020-01-01 00:00:00', 'no', 9005)",
    )
    .await;
    db.sql(
        "insert into events_stack_compact (cmd, user_id, nas_id, created_at)
              values ('user_add', 6, 2, '2021-01-01 00:00:00')",
    )
    .await;
    let counts = db.store.counts().await.unwrap();
    assert_eq!(counts.oldest_by_nas[1], (2, 0), "the guard holds it");
    let (all, compact) = (counts.oldest_s, counts.oldest_compact_s);
    assert!(all > compact && compact > 100_000_000, "{counts:?}");
    assert_eq!(counts.dead, 3);
    assert_eq!(counts.dead_by_nas, [(None, 1), (Some(1), 2)]);
}
