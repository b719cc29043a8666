//! Posts that come at the same time: they share commits and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nas_event_daemon::store::WhereIs;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fake::{House, house};
use crate::lab::daemon::{Lab, ids};
use crate::lab::db::Kind;
use crate::lab::on_each_store;

on_each_store!(a_burst_is_acknowledged_exactly_once);

const EVENTS: &str = "/api/v1/events";

/// Posts of accounts 1..=n that are under way at once; the answers by account.
async fn burst(h: &Arc<House>, n: i64, cmd_of: fn(i64) -> &'static str) -> Vec<(i64, u16, Value)> {
    let mut posts = JoinSet::new();
    for user in 1..=n {
        let h = Arc::clone(h);
        posts.spawn(async move {
            let body = json!({ "cmd": cmd_of(user), "user_id": user }).to_string();
            let answer = h.with("operator", "POST", EVENTS, &body).await;
            (user, answer.status, answer.json())
        });
    }
    posts.join_all().await
}

#[tokio::test]
async fn what_gathers_during_a_commit_shares_the_next_one() {
    let h = Arc::new(house(0));
    let answers = burst(&h, 60, |_| "user_add").await;
    assert!(answers.iter().all(|(_, status, _)| *status == 201));
    let ids: BTreeSet<i64> = answers.iter().map(|(.., body)| ids(body)[0]).collect();
    assert_eq!(ids.len(), 60, "each has an id of its own");
    for (user, _, body) in &answers {
        let rows = h.fake.rows.lock().unwrap();
        assert_eq!(rows[&ids_of(body)].user_id, Some(*user), "each has its own");
    }
    let commits = h.fake.batches.lock().unwrap().clone();
    assert!(commits.len() < 30, "{commits:?}");
    // A lone post does not wait for others.
    let lone = h.with(
        "operator",
        "POST",
        EVENTS,
        r#"{"cmd":"user_add","user_id":1}"#,
    );
    assert_eq!(lone.await.status, 201);
    assert_eq!(h.fake.batches.lock().unwrap().last(), Some(&1));
}

fn ids_of(body: &Value) -> i64 {
    ids(body)[0]
}

#[tokio::test]
async fn a_post_that_the_database_refuses_hurts_no_other() {
    let h = Arc::new(house(0));
    *h.fake.trouble.lock().unwrap() = Some("user_del");
    let answers = burst(
        &h,
        60,
        |user| if user == 30 { "user_del" } else { "user_add" },
    )
    .await;
    for (user, status, body) in answers {
        assert_eq!(status, if user == 30 { 503 } else { 201 }, "{user}: {body}");
    }
    let stored: Vec<Option<i64>> = h.fake.events().iter().map(|e| e.user_id).collect();
    let once: BTreeSet<_> = stored.iter().collect();
    assert_eq!((stored.len(), once.len()), (59, 59));
    // A database that does not answer is no reason to ask it once per post.
    h.fake.batches.lock().unwrap().clear();
    *h.fake.trouble.lock().unwrap() = None;
    h.fake.broken.store(true, Ordering::SeqCst);
    let answers = burst(&h, 60, |_| "user_add").await;
    assert!(answers.iter().all(|(_, status, _)| *status == 503));
    assert_eq!(h.fake.events().len(), 59);
}

#[tokio::test]
async fn above_the_mark_those_who_paid_and_known_keys_are_served() {
    let h = house(10);
    let keyed = async |key: &str, body: &str| {
        let operator = ("authorization", "Bearer t-operator");
        h.open(EVENTS, &[operator, ("idempotency-key", key)], body)
            .await
    };
    let rate = r#"{"cmd":"user_rate_set","user_id":7}"#;
    let first = keyed("k", rate).await;
    assert_eq!(first.status, 201, "{}", first.text);
    h.fake.main.store(10, Ordering::SeqCst);
    let status = h.with("viewer", "GET", "/api/v1/status", "").await.status;
    assert_eq!(status, 200, "the mark is noticed");
    assert_eq!(keyed("other", rate).await.status, 429);
    // The answer that was lost is given again, and a key is still no cover for another body.
    let again = keyed("k", rate).await;
    assert_eq!((again.status, again.text), (201, first.text));
    assert_eq!(again.head["idempotency-replayed"], "true");
    let other = keyed("k", r#"{"cmd":"user_rate_set","user_id":8}"#).await;
    assert_eq!(other.status, 409);
    for (cmd, status) in [
        ("user_redirect_cancel", 201),
        ("u_b_negbal", 201),
        ("user_info", 201),
        ("user_redirect", 429),
        ("user_add", 429),
    ] {
        let body = json!({ "cmd": cmd, "user_id": 7 }).to_string();
        let answer = h.with("operator", "POST", EVENTS, &body).await;
        assert_eq!(answer.status, status, "{cmd}: {}", answer.text);
    }
    let mixed = json!({ "events": [
        { "cmd": "user_redirect_cancel", "user_id": 7 },
        { "cmd": "user_add", "user_id": 7 },
    ] });
    let answer = h.with("operator", "POST", EVENTS, &mixed.to_string()).await;
    assert_eq!(answer.status, 429);
    assert!(
        answer.text.contains("in posts of their own"),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn a_bulk_call_stops_at_the_mark_and_is_sent_again_for_the_rest() {
    let h = house(2_000);
    let bulk = async |cmd: &str, events: i64| {
        let line = |user| format!("{{\"cmd\":\"{cmd}\",\"user_id\":{user}}}\n");
        let body: String = (1..=events).map(line).collect();
        let headers = [
            ("authorization", "Bearer t-operator"),
            ("idempotency-key", cmd),
        ];
        h.open("/api/v1/events/bulk", &headers, &body).await
    };
    let counted = async || {
        let status = h.with("viewer", "GET", "/api/v1/status", "").await;
        assert_eq!(status.status, 200, "the stacks are counted now");
    };
    counted().await;
    // Each thousand is a transaction: the third finds the mark reached.
    let half = bulk("user_add", 2_500).await;
    assert_eq!(half.status, 429, "{}", half.text);
    assert_eq!(half.head["retry-after"], "5");
    let said = half.json();
    assert_eq!(said["accepted"], 2_000);
    assert_eq!(
        (&said["error"]["code"], &said["error"]["number"]),
        (&json!("stack_full"), &json!("NED-0404"))
    );
    let hint = said["error"]["hint"].as_str().unwrap();
    assert!(
        hint.contains("2000 events of this call are stored; send it again"),
        "{hint}"
    );
    let none = bulk("user_rate_set", 10).await;
    assert_eq!((none.status, &none.json()["accepted"]), (429, &json!(0)));
    assert_eq!(none.head["retry-after"], "5");
    // Who paid gets through, in a bulk call as well.
    let paid = bulk("user_redirect_cancel", 10).await;
    assert_eq!((paid.status, &paid.json()["accepted"]), (200, &json!(10)));
    assert_eq!(h.fake.events().len(), 2_010);
    for id in 1..=2_010 {
        h.fake.end(id, WhereIs::Done, None);
    }
    counted().await;
    // Sent again with its key it stores only what was refused.
    let rest = bulk("user_add", 2_500).await;
    assert_eq!(
        (rest.status, &rest.json()["accepted"]),
        (200, &json!(2_500))
    );
    assert_eq!(h.fake.events().len(), 2_510);
}

async fn a_burst_is_acknowledged_exactly_once(kind: Kind) {
    let lab = Arc::new(Lab::new(kind, "").await);
    let daemon = lab.start().await;
    let mut posters = JoinSet::new();
    for poster in 0..16_i64 {
        let lab = Arc::clone(&lab);
        posters.spawn(async move {
            let mut mine = Vec::new();
            for n in 0..10 {
                let user = poster * 10 + n;
                let body = json!({ "cmd": "user_add", "user_id": user });
                let key = format!("{poster}-{n}");
                let key = (n % 2 == 0).then_some(key.as_str());
                let (status, answer) = lab.try_post(EVENTS, &body, key).await.unwrap();
                assert_eq!(status, 201, "{answer}");
                mine.push(vec![ids(&answer)[0].to_string(), user.to_string()]);
            }
            mine
        });
    }
    let mut told: Vec<Vec<String>> = posters.join_all().await.concat();
    told.sort();
    // There are no accounts, so all of them stay where they came.
    let mut rows = lab
        .rows("select id, user_id from events_stack_compact")
        .await;
    rows.sort();
    assert_eq!(rows, told);
    let audited = lab
        .rows("select detail from audit where what = 'post'")
        .await
        .concat();
    // Each post is spelled, or one of those that a full row only counts.
    let parts = audited.iter().flat_map(|row| row.split("; "));
    let noted: usize = parts
        .map(|part| {
            let more = part.strip_prefix("and ");
            let more = more.and_then(|part| part.strip_suffix(" more"));
            more.map_or(1, |n| n.parse().unwrap())
        })
        .sum();
    assert_eq!(noted, told.len(), "{audited:?}");
    daemon.stop().await;
}
