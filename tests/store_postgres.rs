//! Promises that only a server can break: lost answers, ended connections, a take-over in the
//! middle of a turn, and the shape of the queue tables (`NED_TEST_PG`, see `scripts/test`).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed step fails the test"
)]

use std::sync::Arc;

use nas_event_daemon::attempt::DoneResult;
use nas_event_daemon::event::{CompactEvent, EventId, Waiting};
use nas_event_daemon::nas::NasId;
use nas_event_daemon::store::query::{Model, Query};
use nas_event_daemon::store::{
    After, Error, Posted, Settle, SettleTo, Store, Turn, WhereIs, connect,
};
use sqlx::{Connection, PgConnection, Row};

mod lab;
use lab::db::{Db, Kind};
use lab::lossy::Lossy;

async fn filled() -> Db {
    let db = Db::new(Kind::Postgres).await;
    db.sql("insert into nas (id, name, ip) values (1, 'A', '10.0.0.1')")
        .await;
    db.sql(
        "insert into users (id, nas_id, login) select n, 1, 'u' || n from generate_series(1, 9) n",
    )
    .await;
    db
}

async fn posted(store: &Arc<dyn Store>, users: &[i64]) -> Vec<EventId> {
    let events: Vec<_> = users
        .iter()
        .map(|user| CompactEvent {
            cmd: "user_add".into(),
            user_id: Some(*user),
            ..CompactEvent::default()
        })
        .collect();
    match store.post(&events, None).await.unwrap() {
        Posted::New(ids) => ids,
        other => panic!("{other:?}"),
    }
}

fn done(id: EventId) -> Settle {
    Settle {
        id,
        try_count: Some(1),
        to: SettleTo::Done {
            result: DoneResult::Done,
            answer: None,
            scheme_hash: "ab".into(),
        },
        code: 0,
        ms: 1,
        error: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_whose_commit_got_no_answer_is_read_back() {
    let db = filled().await;
    let line = Lossy::before(&db.url).await;
    let store = connect(&line.url).await.unwrap();
    let epoch = store
        .own("test pid=1", After::Silence(10_000))
        .await
        .unwrap();
    let ids = posted(&store, &[1, 2]).await;
    store.expand(10, &[]).await.unwrap();
    let first = Turn {
        epoch,
        starts: vec![ids[0]],
        ..Turn::default()
    };
    assert_eq!(store.turn(&first).await.unwrap().started.len(), 1);
    let both = Turn {
        epoch,
        settles: vec![done(ids[0])],
        starts: vec![ids[1]],
        ..Turn::default()
    };
    line.arm();
    let lost = store.turn(&both).await;
    assert!(matches!(lost, Err(Error::Sql { .. })), "{lost:?}");
    // It did happen.
    let row = db.store.event(ids[1]).await.unwrap().unwrap();
    assert_eq!((row.state.as_str(), row.try_count), ("running", 1));
    // The caller says the same again and is answered as if nothing had been lost.
    let again = store.turn(&both).await.unwrap();
    assert_eq!(again.settled, vec![ids[0]]);
    assert_eq!(
        again
            .started
            .iter()
            .map(|s| (s.id, s.try_count))
            .collect::<Vec<_>>(),
        vec![(ids[1], 1)]
    );
    // And only once.
    let third = store.turn(&both).await.unwrap();
    assert!(third.settled.is_empty() && third.started.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expansion_whose_commit_got_no_answer_is_handed_over_later() {
    let db = filled().await;
    let line = Lossy::before(&db.url).await;
    let store = connect(&line.url).await.unwrap();
    let ids = posted(&store, &[1, 2, 3]).await;
    line.arm();
    assert!(store.expand(10, &[]).await.is_err());
    let moved: Vec<Waiting> = store.expand(10, &[]).await.unwrap().moved;
    assert_eq!(moved.iter().map(|w| w.id).collect::<Vec<_>>(), ids);
    assert!(store.expand(10, &[]).await.unwrap().moved.is_empty());
}

/// Calls until it succeeds; a connection that was just used may be found broken once, and the
/// pool may hold several of those.
macro_rules! soon {
    ($call:expr) => {{
        let mut tries = 0;
        loop {
            match $call.await {
                Ok(out) => break out,
                Err(error) if tries < 10 => {
                    let _: Error = error;
                    tries += 1;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_works_again_after_the_server_ended_all_connections() {
    let db = filled().await;
    let store = &db.store;
    let epoch = store
        .own("test pid=1", After::Silence(10_000))
        .await
        .unwrap();
    let ids = posted(store, &[1, 2, 3]).await;
    store.expand(1, &[]).await.unwrap();
    for round in 0..2 {
        db.sql(
            "select pg_terminate_backend(pid, 60000) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()",
        )
        .await;
        let turn = Turn {
            epoch,
            starts: vec![ids[round]],
            ..Turn::default()
        };
        assert_eq!(soon!(store.turn(&turn)).started.len(), 1);
        assert_eq!(soon!(store.expand(1, &[])).moved.len(), 1);
        assert!(soon!(store.still_own(epoch)));
        assert_eq!(soon!(store.nases()).len(), 1);
        assert_eq!(soon!(store.check_billing()), Vec::<String>::new());
        assert!(soon!(store.event(ids[0])).is_some());
        soon!(store.audit("who", "what", "detail"));
        soon!(store.load(NasId(1), EventId(0), 10));
        soon!(store.sql("select 1", false));
    }
}

/// Waits until a backend of this database waits for a lock while it runs `part`.
async fn waits_for_lock(conn: &mut PgConnection, part: &str) {
    loop {
        let row = sqlx::query(
            "select exists (select 1 from pg_stat_activity where datname = current_database()
               and wait_event_type = 'Lock' and position($1 in query) > 0)",
        )
        .bind(part)
        .fetch_one(&mut *conn)
        .await
        .unwrap();
        if row.get::<bool, _>(0) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_take_over_waits_for_the_running_turn() {
    let db = filled().await;
    let epoch = db
        .store
        .own("test pid=1", After::Silence(10_000))
        .await
        .unwrap();
    let ids = posted(&db.store, &[1]).await;
    db.store.expand(10, &[]).await.unwrap();
    let turn = Turn {
        epoch,
        starts: ids.clone(),
        ..Turn::default()
    };
    // A foreign lock holds the turn up after its look at the owner.
    let mut foreign = PgConnection::connect(&db.url).await.unwrap();
    let mut eye = PgConnection::connect(&db.url).await.unwrap();
    let mut lock = Connection::begin(&mut foreign).await.unwrap();
    sqlx::query("select 1 from events_stack for update")
        .execute(&mut *lock)
        .await
        .unwrap();
    let second = connect(&db.url).await.unwrap();
    let late = async {
        waits_for_lock(&mut eye, "with owned").await;
        tokio::join!(second.own("other pid=2", After::Silence(-1)), async {
            // Without the turn's lock on the owner's row this would never come.
            let wait = waits_for_lock(&mut eye, "insert into owner");
            let waited = tokio::time::timeout(std::time::Duration::from_secs(90), wait).await;
            lock.rollback().await.unwrap();
            waited.unwrap();
        })
        .0
    };
    let (turned, next) = tokio::join!(db.store.turn(&turn), late);
    assert_eq!(turned.unwrap().started.len(), 1);
    let next = next.unwrap();
    assert_eq!(second.recover(next, 3).await.unwrap(), (1, 0));
    let late = db.store.turn(&turn).await;
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_tables_are_shaped_for_churn() {
    let db = filled().await;
    let mut conn = PgConnection::connect(&db.url).await.unwrap();
    let indexes: Vec<(String, String)> = sqlx::query_as(
        "select tablename::text, indexdef from pg_indexes where tablename in ('events_stack', 'events_dead')",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    for (table, index) in &indexes {
        assert!(!index.contains("state"), "marking would write to {index}");
        // No event on its way is looked up by its batch: that index cannot be chosen.
        let partial = index.contains("WHERE (batch_id IS NOT NULL)");
        if table == "events_stack" && !index.contains("UNIQUE") && !partial {
            assert!(index.contains("(id + 0)"), "settling could choose {index}");
        }
    }
    let options: Vec<(String, Vec<String>)> = sqlx::query_as(
        "select relname::text, reloptions from pg_class
         where relname in ('events_stack', 'events_stack_compact') order by 1",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    assert!(options[0].1.contains(&"fillfactor=45".to_owned()));
    for (table, options) in &options {
        assert!(
            options.contains(&"autovacuum_vacuum_scale_factor=0".to_owned()),
            "{table}"
        );
        assert!(
            options.contains(&"autovacuum_vacuum_cost_delay=0".to_owned()),
            "{table}"
        );
    }
    // A load finds its index, whatever the statistics say.
    let plan: Vec<(String,)> = sqlx::query_as(
        "explain select id from events_stack where nas_id = 1 and id + 0 >= 5
           and state in ('ready', 'deferred') order by id + 0 limit 500",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    assert!(
        plan.iter()
            .any(|l| l.0.contains("events_stack_nas") || l.0.contains("events_stack_lane")),
        "{plan:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_needs_cmd_and_user_only() {
    let db = filled().await;
    db.sql("insert into events_stack_compact (cmd, user_id) values ('user_add', 1)")
        .await;
    db.sql("insert into events_stack_compact (cmd, user_id, params) values ('user_del', 2, '{\"ip\": \"10.1.1.1\"}')")
        .await;
    let moved = db.store.expand(10, &[]).await.unwrap().moved;
    assert_eq!(moved.len(), 2);
    let row = db.store.event(moved[1].id).await.unwrap().unwrap();
    assert_eq!(row.place, WhereIs::Stack);
    assert_eq!(row.params.unwrap().text("ip"), "10.1.1.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_not_reached_by_detours() {
    let db = filled().await;
    db.sql("create view cards as select nas_id, password from nas_secret")
        .await;
    for statement in [
        "select * from U&\"nas\\005fsecret\"",
        "select query_to_xml('select * from nas_' || 'sec' || 'ret', true, true, '')",
        "select most_common_vals from pg_stats where tablename like 'nas_sec%'",
        "copy users to program 'cat'",
        "do $$ begin null; end $$",
        "select pg_read_file('pg_hba.conf')",
        "select get_raw_page('nas_' || 'secret', 0)",
        "select * from bt_page_items('token_' || 'pkey', 1)",
        "select * from xpath_table('id', 'x', 'tok' || 'en', '/', 'true') t (id int, x text)",
        // Under another name: a plan and what it counts tell of rows, too.
        "select * from cards",
        "(select password from cards)",
        "table cards",
        "explain analyze select * from cards where password like 'a%'",
        "explain (costs off, analyze) select * from cards",
        "explain analyze(select * from cards)",
        "explain/**/analyze select * from cards",
        "explain ( costs off ) (select * from cards)",
    ] {
        let answer = db.store.sql(statement, false).await;
        assert!(
            matches!(answer, Err(Error::Refused(_))),
            "{statement}: {answer:?}"
        );
    }
    // Who may change things may not read them either, nor run what is put together only then.
    let body = "execute 'create table stolen as select * from nas_' || 'secret'";
    for statement in [
        "select * from nas_secret".to_owned(),
        format!("do $$ begin {body}; end $$"),
        format!("/**/ do $$ begin {body}; end $$"),
        format!("create function f() returns void language plpgsql as $$ begin {body}; end $$"),
        "create or replace function f() returns text language sql as E'select password from nas_\\x73ecret'".to_owned(),
        "prepare p as select 1".to_owned(),
        "execute p".to_owned(),
        "call f()".to_owned(),
        "copy users to stdout".to_owned(),
        "select lo_import('/etc/passwd')".to_owned(),
        "create materialized view stolen as select * from cards".to_owned(),
        "select * into stolen from cards".to_owned(),
        "create or replace temp view shown (a) as (select password from cards)".to_owned(),
        "create view shown as select password from cards with check option".to_owned(),
        "create view shown /* as */ as select password from cards".to_owned(),
        "create foreign table f (a text) server s options (table_name 'nas_'\n'secret')".to_owned(),
        "create publication p for all tables".to_owned(),
        "grant select on all tables in schema public to public".to_owned(),
        "grant current_user to public".to_owned(),
        "merge into users u using cards c on u.id = c.nas_id when matched then update set login = c.password".to_owned(),
        "alter user postgres with password 'x'".to_owned(),
        "create/**/role another login".to_owned(),
        "create group others".to_owned(),
        "create constraint trigger t after update on users execute function f()".to_owned(),
        "create event trigger t on ddl_command_end execute function f()".to_owned(),
        "create or replace trusted procedural language l".to_owned(),
        "create policy p on users using (true)".to_owned(),
        "create foreign data wrapper w".to_owned(),
        "create /* table */ server s foreign data wrapper w".to_owned(),
        "alter system set log_statement = 'all'".to_owned(),
        "create schema s create view v as select password from cards".to_owned(),
        "create schema s create table t (a int) create view v as select password from cards".to_owned(),
        "drop user someone".to_owned(),
        // What takes the audit along, or the numbers of its rows.
        "select setval('aud' || 'it_id_seq', 9223372036854775807)".to_owned(),
        "select pg_catalog.\"setval\"('audit_id_seq', 1)".to_owned(),
        "drop schema public cascade".to_owned(),
        "drop owned by current_user".to_owned(),
        "drop extension plpgsql cascade".to_owned(),
        "alter role current_user set session_replication_role = replica".to_owned(),
        "select ts_rewrite('a'::tsquery, 'select password::tsquery, login::tsquery from nas_' || 'secret')".to_owned(),
    ] {
        let answer = db.store.sql(&statement, true).await;
        assert!(
            matches!(answer, Err(Error::Refused(_))),
            "{statement}: {answer:?}"
        );
    }
    // Cut out of a name in quotes it would be several.
    let inside =
        format!("create view \"as select 1; commit; do $$ begin {body}; end $$; --\" as select 1");
    assert!(db.store.sql(&inside, true).await.is_err(), "{inside}");
    // Two commands that look like one where only quotes without escapes are known.
    let two = format!("select E'\\''; do $$ begin {body}; end $$; --'");
    assert!(db.store.sql(&two, true).await.is_err(), "{two}");
    let stolen = "select count(*) from pg_class where relname = 'stolen'";
    let stolen = db.store.sql(stolen, false).await.unwrap();
    assert_eq!(stolen.rows, vec![vec![Some("0".to_owned())]]);
    for statement in [
        "create table notes (id bigint, text text)",
        "insert into notes values (1, 'do')",
        // Columns and keys may be called what no object may be.
        "alter table users add constraint of_nas foreign key (nas_id) references nas (id)",
        "alter table notes add column language text",
        "alter table notes add column role text default 'no server', add \"user\" text",
        "create table offers (id int, server text default 'a function')",
        "create index on offers (server)",
        "alter table users drop constraint of_nas",
        "drop table offers",
        "commit",
        "drop table notes",
    ] {
        db.store.sql(statement, true).await.unwrap();
    }
    let answer = db
        .store
        .sql(
            "select true, 1.50, timestamptz '2026-01-02 03:04:05+00', null",
            false,
        )
        .await
        .unwrap();
    let row: Vec<_> = answer.rows[0].iter().map(Option::as_deref).collect();
    assert_eq!(
        row,
        vec![Some("1"), Some("1.50"), Some("2026-01-02 03:04:05"), None]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_named_without_the_password() {
    let (port, _kept) = lab::daemon::own_port();
    let url = format!("postgres://ned:servicemode@127.0.0.1:{port}/billing");
    let Err(error) = connect(&url).await else {
        panic!("nobody listens there")
    };
    let told = format!(
        "{error} {error:?} {:?}",
        std::error::Error::source(&error).map(ToString::to_string)
    );
    assert!(matches!(error, Error::Open { .. }), "{told}");
    assert!(
        told.contains("127.0.0.1") && told.contains("refused"),
        "{told}"
    );
    assert!(!told.contains("servicemode"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_up_on_a_dead_line_ends_and_costs_no_connection() {
    let db = filled().await;
    let line = Lossy::before(&db.url).await;
    let store = connect(&line.url).await.unwrap();
    let all = Query::all(Model::Users);
    let mut other = PgConnection::connect(&db.url).await.unwrap();
    // Twice as many as there are connections for look-ups: a lost one would be missed.
    for _ in 0..2 {
        let mut lock = other.begin().await.unwrap();
        sqlx::raw_sql("lock table users in access exclusive mode")
            .execute(&mut *lock)
            .await
            .unwrap();
        let looks = async {
            let (a, b, c, d) = tokio::join!(
                store.find(&all),
                store.count(&all),
                store.find(&all),
                store.count(&all)
            );
            [a.map(|_| ()), b.map(|_| ()), c.map(|_| ()), d.map(|_| ())]
        };
        let breaks = async {
            let mut watcher = PgConnection::connect(&db.url).await.unwrap();
            waits_for_lock(&mut watcher, "users").await;
            line.cut(true);
        };
        let (ended, ()) = tokio::join!(looks, breaks);
        assert!(ended.iter().all(|end| end.is_err()), "{ended:?}");
        let of_the_line = |end: &Result<(), Error>| matches!(end, Err(Error::Sql { .. }));
        assert!(ended.iter().any(of_the_line), "{ended:?}");
        line.cut(false);
        lock.rollback().await.unwrap();
        assert_eq!(store.find(&all).await.unwrap().len(), 9);
        assert_eq!(store.count(&all).await.unwrap(), 9);
    }
}
