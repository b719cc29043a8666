//! What the contract says of retries that are spread over time, and what their orders make of it.

use std::time::Duration;

use nas_event_daemon::clock;
use nas_event_daemon::intake::later;
use nas_event_daemon::store::EventRow;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::*;

const DAY_MS: i64 = 86_400_000;

/// Dead events `from..from + many`, each of its own account.
async fn dead(db: &Db, from: i64, many: i64) {
    db.sql(&format!(
        "insert into events_dead (id, event_type, user_id, nas_id, class, event_date, reason)
         with recursive n(i) as (select 0 union all select i + 1 from n where i + 1 < {many})
         select {from} + i, 'user_add', {from} + i, 5, 1, '2026-01-01 00:00:00', 'x' from n"
    ))
    .await;
}

async fn rows(db: &Db) -> Vec<EventRow> {
    let filter = Filter {
        state: Some("dead".into()),
        limit: 1000,
        ..Filter::default()
    };
    db.store.events(&filter).await.unwrap()
}

async fn due(db: &Db) -> Vec<(i64, i64)> {
    let due = db.store.retries_due(5_000).await.unwrap();
    due.into_iter().map(|(id, at)| (id.0, at)).collect()
}

pub(super) async fn retries_are_dated_and_moved_in_pieces(db: Db) {
    // More than one piece, and not a whole number of them.
    let many = 1_234;
    dead(&db, 1_000, many).await;
    let dates: Vec<(EventId, i64)> = (0..many).map(|n| (EventId(1_000 + n), 7 * n)).collect();
    let count = u64::try_from(many).unwrap();
    assert_eq!(db.store.retry_later(&dates).await.unwrap(), count);
    let expected =
        |by: i64| -> Vec<(i64, i64)> { dates.iter().map(|(id, at)| (id.0, at + by)).collect() };
    assert_eq!(due(&db).await, expected(0));
    // By less than they are apart from end to end: nothing is moved twice.
    assert_eq!(db.store.move_retries(50).await.unwrap(), count);
    assert_eq!(due(&db).await, expected(50));
    assert_eq!(db.store.move_retries(50).await.unwrap(), 0);
    assert_eq!(due(&db).await, expected(50));
}

pub(super) async fn an_old_order_does_not_move_a_new_one(db: Db) {
    dead(&db, 100, 3).await;
    let friday = clock::wall_ms() - 3 * DAY_MS;
    let old = [100, 101, 102].map(|id| (EventId(id), friday + 1_000 * (id - 100)));
    db.store.retry_later(&old).await.unwrap();
    dead(&db, 200, 2).await;
    let monday: Vec<EventRow> = rows(&db)
        .await
        .into_iter()
        .filter(|row| row.id.0 >= 200)
        .collect();
    let now = clock::wall_ms();
    let ordered = later::order(db.store.as_ref(), &monday, Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!((ordered.dated, ordered.left), (2, 0));
    // What the daemon does when it starts, some time later.
    db.store.move_retries(clock::wall_ms()).await.unwrap();
    let within = |at: i64| (now..now + 120_000).contains(&at);
    let due = due(&db).await;
    assert!(
        due.len() == 5 && due.iter().all(|(_, at)| within(*at)),
        "{due:?} at {now}"
    );
}

pub(super) async fn of_a_lane_only_the_newest_dead_event_is_dated(db: Db) {
    dead(&db, 10, 3).await;
    db.sql("update events_dead set user_id = 1").await;
    // An order for one of them by itself holds until the next one.
    let all = rows(&db).await;
    let spread = Duration::from_secs(60);
    later::order(db.store.as_ref(), &all[2..], spread)
        .await
        .unwrap();
    assert_eq!(due(&db).await[0].0, 10);
    let all = rows(&db).await;
    let ordered = later::order(db.store.as_ref(), &all, spread).await.unwrap();
    assert_eq!((ordered.dated, ordered.left), (1, 2));
    let due = due(&db).await;
    assert!(due.len() == 1 && due[0].0 == 12, "{due:?}");
}

pub(super) async fn what_is_refused_keeps_no_other_retry_from_its_turn(db: Db) {
    dead(&db, 10, 2).await;
    db.sql(r#"update events_dead set own_params = '{"a": "\u0000"}' where id = 11"#)
        .await;
    assert!(matches!(
        db.store.retry_dead(EventId(11)).await,
        Err(Error::Refused(_))
    ));
    let dates = [(EventId(11), 1_000), (EventId(10), 2_000)];
    db.store.retry_later(&dates).await.unwrap();
    let stop = CancellationToken::new();
    let wake = Arc::new(Notify::new());
    let run = later::run(Arc::clone(&db.store), wake, stop.clone());
    let seen = async {
        let done = lab::daemon::wait_for(async || due(&db).await.is_empty().then_some(())).await;
        stop.cancel();
        done
    };
    let ((), done) = tokio::join!(run, seen);
    done.unwrap();
    let rows = rows(&db).await;
    let retried: Vec<(i64, bool)> = rows
        .iter()
        .map(|row| (row.id.0, row.retried_as.is_some()))
        .collect();
    assert_eq!(retried, [(11, false), (10, true)]);
}
