//! What operators do over the modern API with real databases behind it: many events at once,
//! accounts, batches, the audit.

use nas_event_daemon::intake::later;
use nas_event_daemon::store::{Filter, audit_rows};
use serde_json::{Value, json};

use crate::lab::daemon::wait_for;
use crate::lab::db::{Db, Kind};
use crate::lab::on_each_store;
use crate::models::house;

on_each_store!(
    many_events_are_counted_first_then_retried_or_dropped,
    a_spread_retry_takes_its_time,
    a_look_up_that_takes_too_long_is_ended,
    a_page_whose_time_is_up_says_where_to_go_on,
    accounts_batches_and_the_audit,
    a_hundred_thousand_events_come_in_one_call,
    every_change_is_in_the_audit_and_no_other,
);

async fn many_events_are_counted_first_then_retried_or_dropped(kind: Kind) {
    let (db, h) = house(kind).await;
    db.sql(
        "insert into events_dead (id, event_type, user_id, nas_id, class, event_date, reason) values
           (200, 'user_add', 2, 5, 1, '2026-01-01 00:00:00', 'x'),
           (201, 'user_add', 3, 6, 1, '2026-01-01 00:00:00', 'x'),
           (202, 'user_rate_set', 4, 6, 3, '2026-01-01 00:00:00', 'x');
         insert into events_done (id, event_type, user_id, nas_id, event_date, result) values
           (300, 'user_add', 4, 6, '2026-01-01 00:00:00', 'done')",
    )
    .await;
    let retry = "/api/v1/events/retry";
    let dry = h
        .with(
            "operator",
            "POST",
            retry,
            r#"{"state":"dead","nas":6,"dry_run":true}"#,
        )
        .await;
    assert_eq!(dry.json(), json!({"dry_run": true, "events": 2}));
    for (more, events) in [
        (r#""error":"x""#, 2),
        (r#""error":"X""#, 0),
        (r#""abonent":1"#, 0),
    ] {
        let body = format!(r#"{{"state":"dead","nas":6,"dry_run":true,{more}}}"#);
        let dry = h.with("operator", "POST", retry, &body).await;
        assert_eq!(dry.json()["events"], events, "{body}");
    }
    let gone = db.store.sql(
        "select count(*) from events_dead where retried_as is not null",
        false,
    );
    assert_eq!(gone.await.unwrap().rows[0][0].as_deref(), Some("0"));
    let viewer = h.with("viewer", "POST", retry, r#"{"state":"dead"}"#).await;
    assert_eq!(viewer.status, 403);
    for (body, text) in [
        ("{}", "state is not dead"),
        (r#"{"state":"ready"}"#, "state is not dead"),
        (r#"{"state":"dead","nas":"x"}"#, "nas is not a whole number"),
        (r#"{"state":"dead","pasport":1}"#, "unknown key"),
        (r#"{"state":"dead","spread":"2d"}"#, "at most 24h"),
        (
            r#"{"state":"dead","spread":"2h"}"#,
            "spread is not below history.keep, 7200s",
        ),
    ] {
        let said = h.with("operator", "POST", retry, body).await;
        assert_eq!(said.status, 400, "{body}");
        assert!(said.text.contains(text), "{body}: {}", said.text);
    }
    let done = h
        .with("operator", "POST", retry, r#"{"state":"dead","nas":6}"#)
        .await;
    // What would undo a later event stays dead.
    assert_eq!(
        done.json(),
        json!({"retried": 1, "skipped": 1}),
        "{}",
        done.text
    );
    let spread = h
        .with(
            "operator",
            "POST",
            retry,
            r#"{"state":"dead","nas":5,"spread":"10ms"}"#,
        )
        .await;
    assert_eq!(spread.status, 202);
    let dry = h
        .with(
            "operator",
            "POST",
            "/api/v1/events/drop",
            r#"{"state":"ready","user":1,"dry_run":true}"#,
        )
        .await;
    assert_eq!(dry.json(), json!({"dry_run": true, "events": 2}));
    let kept = db
        .store
        .sql("select count(*) from events_stack where user_id = 1", false);
    assert_eq!(kept.await.unwrap().rows[0][0].as_deref(), Some("2"));
    // Who meant a held one does not get one that has gone on.
    for (body, status) in [(r#"{"state":"held"}"#, 409), (r#"{"state":"done"}"#, 400)] {
        let one = h
            .with("operator", "POST", "/api/v1/events/1/drop", body)
            .await;
        assert_eq!(one.status, status, "{}", one.text);
    }
    let dropped = h
        .with(
            "operator",
            "POST",
            "/api/v1/events/drop",
            r#"{"state":"ready","user":1,"why":"moved"}"#,
        )
        .await;
    assert_eq!(dropped.json(), json!({"dropped": 2, "skipped": 0}));
    let why = db
        .store
        .sql("select error from events_done where id = 1", false);
    assert_eq!(
        why.await.unwrap().rows[0][0].as_deref(),
        Some("crm-operator: moved")
    );
}

/// Events 200 to 202 of accounts 2 to 4 are dead, on these NASes.
async fn three_dead(db: &Db, nases: [i64; 3]) {
    for (n, nas) in (0..).zip(nases) {
        let row = format!("{}, 'user_add', {}, {nas}", 200 + n, 2 + n);
        db.sql(&format!(
            "insert into events_dead (id, event_type, user_id, nas_id, class, event_date, reason)
             values ({row}, 1, '2026-01-01 00:00:00', 'x')"
        ))
        .await;
    }
}

async fn a_spread_retry_takes_its_time(kind: Kind) {
    let (db, h) = house(kind).await;
    three_dead(&db, [9, 9, 9]).await;
    let body = r#"{"state":"dead","nas":9,"spread":"600ms"}"#;
    let said = h
        .with("operator", "POST", "/api/v1/events/retry", body)
        .await;
    assert_eq!(
        (said.status, said.json()),
        (202, json!({"events": 3, "spread_s": 0}))
    );
    // What the daemon runs beside the doors.
    let stop = tokio_util::sync::CancellationToken::new();
    let due = later::run(db.store.clone(), h.wake.clone(), stop.clone());
    let mut beside = tokio::task::JoinSet::new();
    beside.spawn(due);
    let at = match kind {
        Kind::Sqlite => "cast(round(unixepoch(c.created_at, 'subsec') * 1000) as integer)",
        Kind::Postgres => "cast(extract(epoch from c.created_at) * 1000 as bigint)",
    };
    let text = format!(
        "select c.retried_from, {at} - d.retry_ms, d.retry_ms from events_stack_compact c
         join events_dead d on d.id = c.retried_from order by c.id"
    );
    let rows = wait_for(async || {
        let rows = db.store.sql(&text, false).await.unwrap().rows;
        (rows.len() == 3).then_some(rows)
    });
    let rows = rows.await.expect("all three are retried");
    let number =
        |row: usize, column: usize| -> i64 { rows[row][column].as_ref().unwrap().parse().unwrap() };
    let order: Vec<i64> = (0..3).map(|row| number(row, 0)).collect();
    assert_eq!(order, [202, 201, 200], "the later ones first");
    for row in 0..3 {
        assert!(number(row, 1) >= 0, "before its date: {rows:?}");
        assert_eq!(
            number(row, 2) - number(0, 2),
            200 * i64::try_from(row).unwrap()
        );
    }
    let left = "select count(*) from events_dead where retried_as is null";
    let left = db.store.sql(left, false).await.unwrap();
    assert_eq!(left.rows[0][0].as_deref(), Some("0"));
    stop.cancel();
    beside.join_next().await.unwrap().unwrap();
}

const COMPACT: &str = "/rest_api/v2/EventsStackCompact/";
const STACK: &str = "/rest_api/v2/EventsStack/";

/// Every call that changes something: path, body, its status, and the audit's word and parts of its
/// detail.
type Change = (
    &'static str,
    &'static str,
    u16,
    &'static str,
    &'static [&'static str],
);

const CHANGES: &[Change] = &[
    (
        "/api/v1/events",
        r#"{"cmd":"user_add","user_id":1}"#,
        201,
        "post",
        &["event=", "cmd=user_add"],
    ),
    (
        "/api/v1/events/bulk?batch_id=night",
        "{\"cmd\":\"user_add\",\"user_id\":1}\n{\"cmd\":\"user_del\",\"user_id\":1}\n",
        200,
        "post",
        &["events=", "n=2", "batch=\"night\""],
    ),
    (
        COMPACT,
        r#"method1=objects.create&arg1={"user_id":2,"cmd":"user_del"}"#,
        200,
        "post",
        &["event=", "cmd=user_del"],
    ),
    (
        COMPACT,
        r#"method1=objects.get&arg1={"user_id":4}&method2=set&arg2={"cmd":"user_del"}&method3=save"#,
        200,
        "save",
        &["event=6", "set=cmd"],
    ),
    (
        STACK,
        r#"method1=objects.filter&arg1={"user_id":3}&method2=delete"#,
        200,
        "drop",
        &["model=EventsStack", "n=2", "events=3..4"],
    ),
    (
        COMPACT,
        r#"method1=objects.delete&arg1={"user_id":2}"#,
        200,
        "drop",
        &["model=EventsStackCompact", "n=1"],
    ),
    (
        "/api/v1/events/200/retry",
        r#"{"why":"the core is back"}"#,
        201,
        "retry",
        &["event=200 as=", "why=\"the core is back\""],
    ),
    (
        "/api/v1/events/201/drop",
        r#"{"why":"moved away"}"#,
        200,
        "drop",
        &["event=201", "moved away"],
    ),
    (
        "/api/v1/events/retry",
        r#"{"state":"dead","nas":6,"why":"new firmware"}"#,
        200,
        "retry_many",
        &["n=1", "nas=6", "why=\"new firmware\""],
    ),
    (
        "/api/v1/events/drop",
        r#"{"state":"ready","user":1,"reason":"terminated"}"#,
        200,
        "drop_many",
        &["n=2", "terminated", "user=1"],
    ),
    (
        "/api/v1/nas/5/pause",
        r#"{"reason":"firmware","for":"30m"}"#,
        200,
        "nas_pause",
        &["nas=5", "30m", "firmware"],
    ),
    (
        "/api/v1/nas/5/pause",
        r#"{"at":"2999-01-01 02:00:00","for":"30m"}"#,
        200,
        "nas_pause",
        &["nas=5", "2999-01-01 02:00:00", "30m"],
    ),
    ("/api/v1/nas/5/resume", "", 200, "nas_resume", &["nas=5"]),
    (
        "/api/v1/nas/5/resume",
        r#"{"why":"done"}"#,
        200,
        "nas_resume",
        &["nas=5 why=\"done\""],
    ),
    (
        "/api/v1/nas/5/forks",
        r#"{"forks":7,"reason":"evening"}"#,
        200,
        "nas_forks",
        &["nas=5", "7", "why=\"evening\""],
    ),
    (
        "/api/v1/nas/5/mode",
        r#"{"mode":"observe","why":"hand-over"}"#,
        200,
        "nas_mode",
        &["nas=5 mode=observe why=\"hand-over\""],
    ),
    (
        "/api/v1/nas/5/mode",
        r#"{"mode":null}"#,
        200,
        "nas_mode",
        &["nas=5 mode=default"],
    ),
    ("/api/v1/reload", "", 202, "reload", &[]),
    (
        "/api/v1/reload",
        r#"{"why":"new card"}"#,
        202,
        "reload",
        &["why=\"new card\""],
    ),
];

/// Calls that look as if they changed something.
const ONLY_COUNTED: &[(&str, &str)] = &[
    ("/api/v1/events/retry", r#"{"state":"dead","dry_run":true}"#),
    ("/api/v1/events/drop", r#"{"state":"ready","dry_run":true}"#),
    (
        "/api/v1/events?plan=true",
        r#"{"cmd":"user_add","user_id":1}"#,
    ),
    (STACK, r#"method1=objects.filter&arg1={"user_id":1}"#),
];

async fn every_change_is_in_the_audit_and_no_other(kind: Kind) {
    let (db, h) = house(kind).await;
    three_dead(&db, [9, 6, 6]).await;
    let mut known = 0;
    let mut fresh = async || {
        let mut rows = audit_rows(db.store.as_ref(), None, 100).await.unwrap();
        rows.retain(|row| row.id > known);
        known = rows.first().map_or(known, |row| row.id);
        rows
    };
    for (path, body) in ONLY_COUNTED {
        let said = h.with("operator", "POST", path, body).await;
        assert_eq!(said.status, 200, "{path} {body}: {}", said.text);
    }
    assert!(fresh().await.is_empty());
    for (path, body, status, what, parts) in CHANGES {
        let refused = h.with("viewer", "POST", path, body).await;
        assert_eq!(refused.status, 403, "{path} {body}: {}", refused.text);
        assert!(fresh().await.is_empty(), "{path} {body} was refused");
        let said = h.with("operator", "POST", path, body).await;
        assert_eq!(said.status, *status, "{path} {body}: {}", said.text);
        let rows = fresh().await;
        let [row] = rows.as_slice() else {
            panic!("{path} {body}: {rows:?}")
        };
        assert_eq!(
            (row.who.as_str(), row.what.as_str()),
            ("crm-operator", *what),
            "{path} {body}"
        );
        for part in *parts {
            assert!(row.detail.contains(part), "{path} {body}: {row:?}");
        }
    }
}

async fn a_hundred_thousand_events_come_in_one_call(kind: Kind) {
    let (db, h) = house(kind).await;
    let lines: String = (0..100_000)
        .map(|n| format!("{{\"user_id\":{},\"cmd\":\"user_redirect\"}}\n", n % 4 + 1))
        .collect();
    let path = "/api/v1/events/bulk?batch_id=night";
    let said = h.with("operator", "POST", path, &lines).await;
    assert_eq!(said.status, 200, "{}", said.text);
    let said = said.json();
    assert_eq!(
        (&said["accepted"], &said["rejected_total"]),
        (&json!(100_000), &json!(0)),
        "{said}"
    );
    // What is counted is in the database, each once, under the batch that progress is asked for.
    let rows = "select count(distinct id), count(distinct user_id) from events_stack_compact where batch_id = 'night'";
    let rows = db.store.sql(rows, false).await.unwrap().rows;
    assert_eq!(rows[0][0].as_deref(), Some("100000"));
    assert_eq!(rows[0][1].as_deref(), Some("4"));
    let progress = h
        .with("viewer", "GET", "/api/v1/batches/night", "")
        .await
        .json();
    assert_eq!(
        (&progress["events"], &progress["finished"]),
        (&json!(100_000), &json!(false)),
        "{progress}"
    );
}

async fn a_look_up_that_takes_too_long_is_ended(kind: Kind) {
    let (db, h) = house(kind).await;
    let answer = "a".repeat(4_000);
    db.sql(&format!(
        "insert into events_done (id, event_type, user_id, nas_id, event_date, result, answer)
         with recursive n(i) as (select 1 union all select i + 1 from n where i < 10000)
         select 10000 + i, 'user_add', 1, 5, '2026-01-01 00:00:00', 'done', '{answer}' from n"
    ))
    .await;
    // Almost everywhere in each row they almost fit, for a search from the front or from the end.
    let part = "a".repeat(1_000);
    let costly: String = (0..14)
        .map(|n| {
            let part = if n % 2 == 0 {
                format!("{part}b")
            } else {
                format!("b{part}")
            };
            format!(
                "&method{0}=exclude&arg{0}={{\"answer__contains\":\"{part}\"}}",
                n + 2
            )
        })
        .collect();
    let ask = async |rows: &str, more: &str| {
        let body = format!("method1=objects.filter&arg1={{{rows}}}{costly}{more}");
        h.with("viewer", "POST", "/rest_api/v2/EventsDone/", &body)
            .await
    };
    for more in [
        "&method16=order_by&arg16=[\"ms\"]",
        "&method16=count&arg16={}",
    ] {
        let refused = ask("\"pk__gt\":10000", more).await;
        assert_eq!(refused.status, 400, "{more}: {}", refused.text);
        let said = refused.json()["error"].to_string();
        for text in ["took longer than 900 ms", "narrow it by account", "sqlexec"] {
            assert!(said.contains(text), "{said}");
        }
    }
    // The control: the same look-ups of few rows are answered, on the same connections.
    for _ in 0..5 {
        let few = ask("\"pk__in\":[10001,10002,10003]", "&fields=[\"id\"]").await;
        assert_eq!(few.status, 200, "{}", few.text);
        assert_eq!(few.json()["result"].as_array().unwrap().len(), 3);
    }
    // Nor is anything of the daemon's own held up by the limit.
    let own = Filter {
        state: Some("done".to_owned()),
        cmd: Some("no_such".to_owned()),
        limit: 1,
        unbounded: true,
        ..Filter::default()
    };
    assert_eq!(db.store.events(&own).await.unwrap(), []);
}

async fn a_page_whose_time_is_up_says_where_to_go_on(kind: Kind) {
    let (db, h) = house(kind).await;
    db.slow_dead(12_000).await;
    let (mut next, mut found, mut short) = (Value::Null, Vec::new(), 0);
    loop {
        let before = next.as_i64().map(|id| format!("&before={id}"));
        let path = format!(
            "/api/v1/events?state=dead&error=refused%2050%25&limit=1000{}",
            before.unwrap_or_default()
        );
        let page = h.with("viewer", "GET", &path, "").await;
        assert_eq!(page.status, 200, "{}", page.text);
        let page = page.json();
        let events = page["events"].as_array().unwrap();
        found.extend(events.iter().map(|event| event["id"].as_i64().unwrap()));
        short += usize::from(page["time_is_up"] == true);
        assert_eq!(
            page["time_is_up"],
            page["next_before"].is_number(),
            "{page}"
        );
        next = page["next_before"].clone();
        if next.is_null() {
            break;
        }
    }
    let wanted: Vec<i64> = (1..=24).rev().map(|n| n * 500).collect();
    assert_eq!(found, wanted);
    assert!(short > 0, "there was time for all");
    // An order for all of them goes on by itself.
    let retry = r#"{"state":"dead","error":"refused 50%","dry_run":true}"#;
    let dry = h
        .with("operator", "POST", "/api/v1/events/retry", retry)
        .await;
    assert_eq!(dry.json(), json!({"dry_run": true, "events": 24}));
}

async fn accounts_batches_and_the_audit(kind: Kind) {
    let (_db, h) = house(kind).await;
    let get = async |path: &str| h.with("operator", "GET", path, "").await;
    let batch = get("/api/v1/batches/b").await.json();
    assert_eq!(batch["events"], 2);
    assert_eq!(batch["states"]["ready"], 2);
    assert_eq!(batch["finished"], false);
    assert_eq!(get("/api/v1/batches/none").await.status, 404);
    let account = get("/api/v1/accounts/1").await.json();
    assert_eq!(account["account"]["accept"], true);
    assert_eq!(account["waiting"].as_array().unwrap().len(), 2);
    assert_eq!(get("/api/v1/accounts/777").await.status, 404);
    let history = get("/api/v1/accounts/1/history?limit=1").await.json();
    assert_eq!(history["events"][0]["id"], 5);
    assert_eq!(history["next_before"], 5);
    let history = get("/api/v1/accounts/1/history?before=5").await.json();
    assert_eq!(history["events"][0]["id"], 1);
    assert_eq!(history["next_before"], Value::Null);
    // All were accepted now, none before 2020.
    let now = get("/api/v1/accounts/1/history?from=2020-01-01")
        .await
        .json();
    assert_eq!(now["events"].as_array().unwrap().len(), 2);
    let then = get("/api/v1/accounts/1/history?to=2020-01-01%2000:00:00")
        .await
        .json();
    assert_eq!(then["events"].as_array().unwrap().len(), 0);
    let ended = get("/api/v1/accounts/1/history?from=2999-01-01&limit=1")
        .await
        .json();
    assert_eq!(
        (&ended["events"], &ended["next_before"]),
        (&json!([]), &Value::Null)
    );
    assert_eq!(
        get("/api/v1/accounts/1/history?from=yesterday")
            .await
            .status,
        400
    );
    let forks = h
        .with("operator", "POST", "/api/v1/nas/5/forks", r#"{"forks":7}"#)
        .await;
    assert_eq!(forks.json()["forks_override"], 7, "{}", forks.text);
    for body in [
        "{}",
        r#"{"forks":0}"#,
        r#"{"forks":101}"#,
        r#"{"forks":"x"}"#,
    ] {
        let said = h
            .with("operator", "POST", "/api/v1/nas/5/forks", body)
            .await;
        assert_eq!(said.status, 400, "{body}");
    }
    for (body, status) in [
        (r#"{"mode":"observe"}"#, 200),
        (r#"{"mode":"off"}"#, 400),
        ("{}", 400),
    ] {
        let said = h.with("operator", "POST", "/api/v1/nas/5/mode", body).await;
        assert_eq!(said.status, status, "{body}");
    }
    let nas = get("/api/v1/nas/5").await;
    assert_eq!(nas.json()["mode_override"], "observe");
    let nas = h
        .with("operator", "POST", "/api/v1/nas/5/mode", r#"{"mode":null}"#)
        .await;
    assert_eq!(nas.json()["mode_override"], Value::Null);
    assert_eq!(nas.json()["forks_override"], 7);
    let forks = h
        .with("operator", "POST", "/api/v1/nas/5/forks", r#"{"forks":7}"#)
        .await;
    assert_eq!(forks.status, 200);
    let nas = get("/api/v1/nas/5").await;
    assert_eq!(nas.json()["forks_override"], 7);
    assert!(!nas.text.contains("geheim"), "{}", nas.text);
    assert_eq!(get("/api/v1/nas/55").await.status, 404);
    let audit = get("/api/v1/audit?limit=1").await.json();
    assert_eq!(audit["audit"][0]["what"], "nas_forks");
    assert_eq!(audit["audit"][0]["who"], "crm-operator");
    let viewer = h.with("viewer", "GET", "/api/v1/audit", "").await;
    assert_eq!(viewer.status, 403);
}
