//! What operators do over the modern API with real databases behind it: many events at once,
//! accounts, batches, the audit.

use nas_event_daemon::intake::crowd::SPREADS_MAX;
use serde_json::{Value, json};

use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::models::house;

on_each_store!(
    many_events_are_counted_first_then_retried_or_dropped,
    so_many_retries_are_spread_at_once,
    accounts_batches_and_the_audit,
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
    let dropped = h
        .with(
            "operator",
            "POST",
            "/api/v1/events/drop",
            r#"{"state":"ready","user":1,"why":"moved"}"#,
        )
        .await;
    assert_eq!(dropped.json(), json!({"dropped": 2}));
    let why = db
        .store
        .sql("select error from events_done where id = 1", false);
    assert_eq!(
        why.await.unwrap().rows[0][0].as_deref(),
        Some("crm-operator: moved")
    );
}

async fn so_many_retries_are_spread_at_once(kind: Kind) {
    let (db, h) = house(kind).await;
    // It would undo a later event, so it stays dead and fits each time.
    db.sql(
        "insert into events_dead (id, event_type, user_id, nas_id, class, event_date, reason) values
           (202, 'user_rate_set', 4, 6, 3, '2026-01-01 00:00:00', 'x');
         insert into events_done (id, event_type, user_id, nas_id, event_date, result) values
           (300, 'user_add', 4, 6, '2026-01-01 00:00:00', 'done')",
    )
    .await;
    let body = r#"{"state":"dead","nas":6,"spread":"24h"}"#;
    let post = async || {
        h.with("operator", "POST", "/api/v1/events/retry", body)
            .await
    };
    for _ in 0..SPREADS_MAX {
        assert_eq!(post().await.status, 202);
    }
    let refused = post().await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert!(
        refused.text.contains("too_many_spreads"),
        "{}",
        refused.text
    );
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
