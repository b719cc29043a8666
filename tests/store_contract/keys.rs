//! What the contract says of an idempotency key's age: known for 24 hours, then forgotten, also by
//! the table.

use super::*;

/// Makes the key so old.
async fn age(db: &Db, key: &str, seconds: i64) {
    let at = match db.kind {
        Kind::Sqlite => format!("strftime('%Y-%m-%d %H:%M:%f', 'now', '-{seconds} seconds')"),
        Kind::Postgres => format!("now() - interval '{seconds} seconds'"),
    };
    let text = format!("update idempotency set created_at = {at} where key = '{key}'");
    db.sql(&text).await;
}

async fn keys(db: &Db) -> Vec<String> {
    let text = "select key from idempotency order by key";
    let rows = db.store.sql(text, false).await.unwrap().rows;
    rows.into_iter().flatten().flatten().collect()
}

pub(super) async fn a_key_is_known_for_a_day_and_then_forgotten(db: Db) {
    const DAY: i64 = 24 * 3600;
    fill(&db).await;
    let guard = |key: &str, hash: &str| Idempotency {
        key: key.into(),
        body_hash: hash.into(),
        lasting: false,
    };
    let post = async |guard: &Idempotency| {
        let events = [event("user_add", 1)];
        db.store.post(&events, Some(guard)).await.unwrap()
    };
    let (kept, other_body) = (guard("k", "h"), guard("k", "other"));
    let Posted::New(ids) = post(&kept).await else {
        panic!("a new key is known")
    };
    for other in ["old", "young"] {
        assert!(matches!(post(&guard(other, "h")).await, Posted::New(_)));
    }
    let rows = || async { db.store.backlog(100).await.unwrap().compact };
    assert_eq!(rows().await, 3);

    age(&db, "k", DAY - 60).await;
    assert_eq!(post(&kept).await, Posted::Again(ids.clone()));
    assert_eq!(post(&other_body).await, Posted::Conflict);
    let known = db.store.posted_before(&kept).await.unwrap();
    assert_eq!(known, Some(Posted::Again(ids.clone())));
    assert_eq!(rows().await, 3, "nothing was stored twice");

    age(&db, "k", DAY + 1).await;
    age(&db, "old", DAY + 1).await;
    age(&db, "young", DAY - 60).await;
    assert_eq!(db.store.posted_before(&kept).await.unwrap(), None);
    // It is a new key now, whatever the body was before.
    let Posted::New(again) = post(&other_body).await else {
        panic!("the key is known after a day")
    };
    assert!(again[0] > ids[0], "{again:?} after {ids:?}");
    assert_eq!(rows().await, 4);
    assert_eq!(post(&other_body).await, Posted::Again(again));
    assert_eq!(post(&kept).await, Posted::Conflict);
    // What is too old is not kept for ever.
    assert_eq!(keys(&db).await, ["k", "young"]);
}
