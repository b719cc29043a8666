//! A retry that is spread over time outlives its daemon: killed between two of them, it does the
//! rest after its next start, each once, and as far apart as was wanted, however long it was away.

use std::collections::BTreeSet;

use nas_event_daemon::clock;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;

on_each_store!(
    a_spread_retry_outlives_a_kill,
    without_its_dates_nothing_is_retried
);

/// Dead events, one of each account from 1; one more account, the last, is no part of the order.
const DEAD: i64 = 8;
/// Over how many seconds they are spread; the next if a slow machine kills too late.
const SPREADS: [i64; 4] = [4, 8, 16, 32];
/// How much time passes while no daemon runs, as far as the dates can tell.
const AWAY_MS: i64 = 3_600_000;

const LEFT: &str = "select count(*) from events_dead where retried_as is null and user_id <> 9";

/// A daemon that was killed after it had done some of a spread retry.
struct Killed {
    lab: Lab,
    /// How many are left, and how far apart.
    left: i64,
    apart_ms: i64,
}

async fn killed_between(kind: Kind) -> Killed {
    for spread in SPREADS {
        let (lab, left) = killed_during(kind, spread).await;
        if left > 2 {
            let apart_ms = spread * 1_000 / DEAD;
            return Killed {
                lab,
                left,
                apart_ms,
            };
        }
    }
    panic!("killed too late each time")
}

async fn killed_during(kind: Kind, spread: i64) -> (Lab, i64) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, "Record", 2, &[]).await;
    lab.accounts(5, 1..=DEAD + 1).await;
    for user in 1..=DEAD {
        let id = 200 + user;
        lab.sql(&format!(
            "insert into events_dead (id, event_type, user_id, nas_id, class, event_date, reason)
             values ({id}, 'user_add', {user}, 5, 1, '2026-01-01 00:00:00', 'x')"
        ))
        .await;
    }
    let daemon = lab.start().await;
    let spread = format!("{spread}s");
    let order = ["event", "retry", "--state", "dead", "--spread", &spread];
    let dated = lab.ned(&order).await;
    assert_eq!(
        i64::try_from(dated.lines().count()).unwrap(),
        DEAD,
        "{dated}"
    );
    let left = lab
        .until("two of them are retried", async || {
            let left = lab.number(LEFT).await;
            (left <= DEAD - 2).then_some(left)
        })
        .await;
    daemon.kill_9().await;
    let left = lab.number(LEFT).await.min(left);
    lab.sql(&format!(
        "update events_dead set retry_ms = retry_ms - {AWAY_MS} where retried_as is null"
    ))
    .await;
    (lab, left)
}

async fn a_spread_retry_outlives_a_kill(kind: Kind) {
    let Killed {
        lab,
        left,
        apart_ms,
    } = killed_between(kind).await;
    let before = retried(&lab).await;
    let started = clock::wall_ms();
    let daemon = lab.start().await;
    lab.until("all are retried", async || {
        (lab.number(LEFT).await == 0).then_some(())
    })
    .await;
    lab.drained().await;
    let done = lab
        .rows("select user_id, count(*) from events_done where result = 'done' group by user_id order by user_id")
        .await;
    let each_once: Vec<Vec<String>> = (1..=DEAD)
        .map(|user| vec![user.to_string(), "1".to_owned()])
        .collect();
    assert_eq!(done, each_once);
    let at = match kind {
        Kind::Sqlite => "cast(round(unixepoch(n.event_date, 'subsec') * 1000) as integer)",
        Kind::Postgres => "cast(extract(epoch from n.event_date) * 1000 as bigint)",
    };
    let text = format!(
        "select n.id, d.retry_ms, {at} - d.retry_ms from events_done n
         join events_dead d on d.retried_as = n.id order by n.id"
    );
    let rows = lab.rows(&text).await;
    let after: Vec<(i64, i64)> = rows
        .iter()
        .filter(|row| !before.contains(&row[0]))
        .map(|row| (row[1].parse().unwrap(), row[2].parse().unwrap()))
        .collect();
    assert_eq!(i64::try_from(after.len()).unwrap(), left, "{rows:?}");
    for (_, late) in &after {
        assert!(*late >= 0, "before its date: {after:?}");
    }
    for pair in after.windows(2) {
        assert_eq!(
            pair[1].0 - pair[0].0,
            apart_ms,
            "not as far apart: {after:?}"
        );
    }
    assert!(after[0].0 >= started, "{started}: {after:?}");
    daemon.stop().await;
}

/// Numbers of the new events.
async fn retried(lab: &Lab) -> BTreeSet<String> {
    let rows = lab
        .rows("select retried_as from events_dead where retried_as is not null")
        .await;
    rows.into_iter().flatten().collect()
}

/// The control: it is the dates in the database, and nothing else, by which they are done.
async fn without_its_dates_nothing_is_retried(kind: Kind) {
    let Killed {
        lab,
        left,
        apart_ms,
    } = killed_between(kind).await;
    lab.sql("update events_dead set retry_ms = null").await;
    let daemon = lab.start().await;
    // One that is dated after all others were due.
    let due = clock::wall_ms() + (DEAD + 2) * apart_ms;
    lab.sql(&format!(
        "insert into events_dead
         (id, event_type, user_id, nas_id, class, event_date, reason, retry_ms)
         values (190, 'user_add', 9, 5, 1, '2026-01-01 00:00:00', 'x', {due})"
    ))
    .await;
    lab.until("the last one is done", async || {
        let done = "select count(*) from events_done where user_id = 9";
        (lab.number(done).await == 1).then_some(())
    })
    .await;
    assert_eq!(lab.number(LEFT).await, left, "retried without a date");
    daemon.stop().await;
}
