//! Events chosen by whose they are and by what their error says: the same ones in a list, a count,
//! a retry and a drop, and none where nobody fits.

use serde_json::{Value, json};

use crate::fake::House;
use crate::lab::db::{Db, Kind};
use crate::lab::on_each_store;
use crate::models::house;

on_each_store!(
    dead_events_are_listed_by_abonent_and_error,
    only_those_of_the_abonent_and_error_are_retried_and_dropped,
);

/// Events 200 to 203: two of abonent 71, one of 72, one of nobody; two of them timed out.
async fn four_dead(kind: Kind) -> (Db, House) {
    let (db, h) = house(kind).await;
    db.sql(
        "insert into events_dead (id, event_type, user_id, abonent_id, nas_id, class, event_date, reason) values
           (200, 'user_add', 1, 71, 5, 1, '2026-01-01 00:00:00', 'timed out after 5s'),
           (201, 'user_add', 2, 71, 5, 1, '2026-01-01 00:00:00', 'no such list'),
           (202, 'user_add', 3, 72, 6, 1, '2026-01-01 00:00:00', 'timed out after 5s'),
           (203, 'user_add', 4, null, 6, 1, '2026-01-01 00:00:00', 'no such list')",
    )
    .await;
    (db, h)
}

/// What each choice fits, newest first: words of a query, keys of an order, ids.
const CHOICES: &[(&str, &str, &[i64])] = &[
    ("abonent=71", r#""abonent":71"#, &[201, 200]),
    ("abonent=72", r#""abonent":72"#, &[202]),
    ("abonent=73", r#""abonent":73"#, &[]),
    ("error=timed%20out", r#""error":"timed out""#, &[202, 200]),
    ("error=Timed", r#""error":"Timed""#, &[]),
    ("error=no%25list", r#""error":"no%list""#, &[]),
    (
        "abonent=71&error=timed",
        r#""abonent":71,"error":"timed""#,
        &[200],
    ),
    (
        "abonent=72&error=such",
        r#""abonent":72,"error":"such""#,
        &[],
    ),
];

async fn listed(h: &House, query: &str) -> Vec<i64> {
    let path = format!("/api/v1/events?state=dead&{query}");
    let said = h.with("viewer", "GET", &path, "").await;
    assert_eq!(said.status, 200, "{path}: {}", said.text);
    let page = said.json();
    let events = page["events"].as_array().unwrap().iter();
    events.map(|event| event["id"].as_i64().unwrap()).collect()
}

async fn order(h: &House, what: &str, keys: &str) -> Value {
    let path = format!("/api/v1/events/{what}");
    let body = format!(r#"{{"state":"dead",{keys}}}"#);
    let said = h.with("operator", "POST", &path, &body).await;
    assert_eq!(said.status, 200, "{path} {body}: {}", said.text);
    said.json()
}

/// Dead events that were not retried, and those that are ready again, by account.
async fn left(db: &Db) -> (Vec<String>, Vec<String>) {
    let column = async |text: &str| {
        let rows = db.store.sql(text, false).await.unwrap().rows;
        let cells = rows.into_iter().map(|mut row| row.remove(0).unwrap());
        cells.collect::<Vec<String>>()
    };
    (
        column("select id from events_dead where retried_as is null order by id").await,
        column("select user_id from events_stack_compact where retried_from is not null").await,
    )
}

async fn dead_events_are_listed_by_abonent_and_error(kind: Kind) {
    let (_db, h) = four_dead(kind).await;
    for (query, keys, ids) in CHOICES {
        assert_eq!(listed(&h, query).await, *ids, "{query}");
        for what in ["retry", "drop"] {
            let dry = order(&h, what, &format!("{keys},\"dry_run\":true")).await;
            assert_eq!(
                dry,
                json!({ "dry_run": true, "events": ids.len() }),
                "{what} {keys}"
            );
        }
    }
    let wrong = h
        .with("viewer", "GET", "/api/v1/events?abonent=ivan", "")
        .await;
    assert_eq!(wrong.status, 400, "{}", wrong.text);
}

async fn only_those_of_the_abonent_and_error_are_retried_and_dropped(kind: Kind) {
    let (db, h) = four_dead(kind).await;
    for keys in [r#""abonent":73"#, r#""abonent":72,"error":"such""#] {
        let none = order(&h, "retry", keys).await;
        assert_eq!(none, json!({ "retried": 0, "skipped": 0 }), "{keys}");
        assert_eq!(
            order(&h, "drop", keys).await,
            json!({ "dropped": 0, "skipped": 0 })
        );
    }
    let all = ["200", "201", "202", "203"].map(str::to_owned).to_vec();
    assert_eq!(left(&db).await, (all, Vec::new()));
    let one = order(&h, "retry", r#""abonent":72"#).await;
    assert_eq!(one, json!({ "retried": 1, "skipped": 0 }));
    let dropped = order(&h, "drop", r#""abonent":71,"error":"such""#).await;
    assert_eq!(dropped, json!({ "dropped": 1, "skipped": 0 }));
    let dead = ["200", "203"].map(str::to_owned).to_vec();
    assert_eq!(left(&db).await, (dead, vec!["3".to_owned()]));
}
