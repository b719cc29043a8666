//! Tests of the watch's parts beside a database: what it remembers, forgets, releases and hands over,
//! and when it looks.

use super::*;
use crate::store::{After, connect};

type Change = fn(&mut GuardOrder);

struct Stand {
    watch: Watch,
    _dir: tempfile::TempDir,
}

impl Stand {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/ned.db", dir.path().display());
        let store = connect(&url).await.unwrap();
        let epoch = store.own("test pid=1", After::Silence(0)).await.unwrap();
        Self {
            watch: Watch::new(store, GuardMode::Hold, epoch),
            _dir: dir,
        }
    }

    async fn sql(&self, text: &str) {
        self.watch.store.sql(text, true).await.unwrap();
    }

    /// Events `from..from + many` of NAS 5, each of the account with its number.
    async fn stack(&self, from: i64, many: i64, state: &str, cmd: &str) {
        let class = Cmd::parse(cmd).unwrap().class() as u8;
        self.sql(&format!(
            "insert into events_stack (id, event_type, user_id, nas_id, params, class, event_date, owner_script, state)
             with recursive n(i) as (select 0 union all select i + 1 from n where i + 1 < {many})
             select {from} + i, '{cmd}', {from} + i, 5, '{{}}', {class}, '2026-01-01 00:00:00', 'night.pl', '{state}' from n"
        ))
        .await;
    }

    async fn state(&self, id: i64) -> String {
        let row = self.watch.store.event(EventId(id)).await.unwrap().unwrap();
        row.state
    }

    fn lanes(&self) -> usize {
        self.watch.lanes.values().map(BTreeSet::len).sum()
    }

    async fn approve(&self, change: impl FnOnce(&mut GuardOrder)) {
        let mut order = GuardOrder {
            id: 0,
            kind: OrderKind::Approve,
            source: None,
            cmd: None,
            event: None,
            from_ms: 0,
            for_ms: 0,
            most: 0,
            monthly: false,
            who: "admin".to_owned(),
        };
        change(&mut order);
        self.watch.store.add_guard_order(&order).await.unwrap();
    }
}

fn ids(rows: &[Waiting]) -> Vec<i64> {
    rows.iter().map(|row| row.id.0).collect()
}

const REDIRECT: &str = "user_redirect";

#[tokio::test]
async fn all_held_events_are_remembered_and_those_that_are_gone_forgotten() {
    let mut it = Stand::new().await;
    let many = i64::try_from(PAGE).unwrap() + 2;
    it.stack(1, many, "held", REDIRECT).await;
    it.stack(5_000, 3, "ready", REDIRECT).await;
    it.watch.remember().await;
    assert_eq!((it.watch.held(), it.lanes()), (PAGE + 2, PAGE + 2));
    let one = &it.watch.held[&EventId(2)];
    assert_eq!(
        (one.nas, one.user, one.cmd.as_str(), one.source.as_str()),
        (NasId(5), UserId(2), REDIRECT, "night.pl")
    );

    // So many are compared with the rows now and then only.
    it.sql("delete from events_stack where id in (1, 1002)")
        .await;
    let now = 1_000_000;
    it.watch.compared_at = Some(now);
    it.watch.compare(now + COMPARE_MS - 1).await.unwrap();
    assert_eq!(it.watch.held(), PAGE + 2);
    it.watch.compare(now + COMPARE_MS).await.unwrap();
    assert_eq!((it.watch.held(), it.lanes()), (PAGE, PAGE));
    assert_eq!(it.watch.compared_at, Some(now + COMPARE_MS));
    // A page of them each time.
    it.sql("delete from events_stack where id = 7").await;
    it.watch.compare(now + COMPARE_MS + 1).await.unwrap();
    assert_eq!(it.watch.held(), PAGE - 1);
    assert!(!it.watch.held.contains_key(&EventId(7)));
    it.watch.held.clear();
    it.watch.compared_at = None;
    it.watch.compare(now).await.unwrap();
    assert_eq!(it.watch.compared_at, None, "there is nothing to compare");
}

#[tokio::test]
async fn what_was_freed_is_handed_over_once_and_in_order() {
    let mut it = Stand::new().await;
    let many = i64::try_from(RELEASE_MAX).unwrap() + 2;
    it.stack(1, many, "ready", REDIRECT).await;
    // Two of one account, and one that was not freed.
    it.sql("update events_stack set user_id = 1 where id <= 3")
        .await;
    let held = |user: i64| Held {
        nas: NasId(5),
        user: UserId(user),
        cmd: REDIRECT.to_owned(),
        source: "night.pl".to_owned(),
    };
    let freed = (1..=many).rev().filter(|id| *id != 2);
    it.watch.freed = freed
        .map(|id| (EventId(id), held(if id <= 3 { 1 } else { id })))
        .collect();
    let rows = it.watch.hand_over().await.unwrap();
    let expected: Vec<i64> = (1..=many).filter(|id| *id != 2).collect();
    assert_eq!(ids(&rows), expected);
    assert!(it.watch.freed.is_empty());
    assert!(it.watch.hand_over().await.unwrap().is_empty());
}

#[tokio::test]
async fn orders_are_looked_for_once_a_second() {
    let mut it = Stand::new().await;
    it.stack(1, 2, "held", REDIRECT).await;
    it.watch.remember().await;
    it.approve(|_| {}).await;
    let now = clock::tick_ms();
    it.watch.looked_at = Some(now + ORDERS_MS);
    assert!(it.watch.orders().await.is_empty(), "too soon");
    assert_eq!(it.watch.held(), 2);
    it.watch.looked_at = Some(now - ORDERS_MS);
    assert_eq!(ids(&it.watch.orders().await), [1, 2]);
    assert!(it.watch.looked_at.is_some_and(|at| at >= now));
    assert_eq!((it.watch.held(), it.state(1).await.as_str()), (0, "ready"));
    assert!(it.watch.store.guard_orders().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_approval_releases_what_fits_all_of_it() {
    let fits: [(Change, &[i64]); 6] = [
        (|_| {}, &[1, 2, 3]),
        (|order| order.event = Some(EventId(2)), &[2]),
        (|order| order.cmd = Some("user_drop".to_owned()), &[3]),
        (
            |order| order.source = Some("night.pl".to_owned()),
            &[1, 2, 3],
        ),
        (|order| order.source = Some("other".to_owned()), &[]),
        (
            |order| {
                order.event = Some(EventId(2));
                order.cmd = Some("user_drop".to_owned());
            },
            &[],
        ),
    ];
    for (change, released) in fits {
        let mut it = Stand::new().await;
        it.stack(1, 2, "held", REDIRECT).await;
        it.stack(3, 1, "held", "user_drop").await;
        it.watch.remember().await;
        it.approve(change).await;
        let rows = it.watch.orders().await;
        assert_eq!(ids(&rows), released);
        assert_eq!(it.watch.held(), 3 - released.len());
        assert!(it.watch.store.guard_orders().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn nothing_is_released_into_the_past() {
    // What else stands in the lane, and whether the held event is superseded by it.
    for (later, superseded) in [
        ("", false),
        ("update events_stack set user_id = 1 where id = 9", true),
        ("update events_stack set user_id = 1, state = 'running' where id = 9", true),
        ("update events_stack set user_id = 1, state = 'held' where id = 9", false),
        ("update events_stack set user_id = 1, event_type = 'user_info' where id = 9", false),
        ("update events_stack set user_id = 1, nas_id = 6 where id = 9", false),
        ("update events_stack set user_id = 1, id = 0 where id = 9", false),
        ("insert into events_stack_compact (id, cmd, user_id, nas_id) values (20, 'user_add', 1, 5)", false),
        ("insert into events_done (id, event_type, user_id, nas_id, event_date, finished_at, result)
          values (20, 'user_add', 1, 5, '2026-01-01', '2026-01-01', 'done')", true),
        ("insert into events_done (id, event_type, user_id, nas_id, event_date, finished_at, result)
          values (20, 'user_add', 1, 5, '2026-01-01', '2026-01-01', 'superseded')", false),
        ("insert into events_done (id, event_type, user_id, nas_id, event_date, finished_at, result)
          values (20, 'user_add', 1, 5, '2026-01-01', '2026-01-01', 'dropped')", false),
    ] {
        let mut it = Stand::new().await;
        it.stack(1, 1, "held", REDIRECT).await;
        it.stack(9, 1, "ready", REDIRECT).await;
        if !later.is_empty() {
            it.sql(later).await;
        }
        it.watch.remember().await;
        it.approve(|order| order.event = Some(EventId(1))).await;
        let rows = it.watch.orders().await;
        assert_eq!(ids(&rows).contains(&1), !superseded, "{later}");
        let state = it.state(1).await;
        assert_eq!(state == "superseded", superseded, "{later}: {state}");
    }
}

#[tokio::test]
async fn access_supersedes_what_is_held_of_its_lane_before_it() {
    let mut it = Stand::new().await;
    it.stack(1, 4, "held", REDIRECT).await;
    it.sql("update events_stack set user_id = 1 where id in (2, 4)")
        .await;
    it.watch.remember().await;
    let moved = |id: i64, user: i64, nas: i64, class: Class| Waiting {
        id: EventId(id),
        nas: NasId(nas),
        user: Some(UserId(user)),
        class,
        since_ms: 0,
        next_try_ms: 0,
        expires_ms: 0,
        tries: 0,
        deaths: 0,
    };
    it.watch
        .supersede(&[moved(9, 1, 5, Class::Rest), moved(9, 1, 6, Class::Access)])
        .await;
    assert_eq!(it.watch.held(), 4);
    it.watch.supersede(&[moved(3, 1, 5, Class::Access)]).await;
    assert_eq!((it.watch.held(), it.lanes()), (2, 2));
    let left: Vec<i64> = it.watch.held.keys().map(|id| id.0).collect();
    assert_eq!(left, [3, 4], "another account, and a later one");
    assert_eq!(
        (it.state(1).await, it.state(4).await),
        ("superseded".to_owned(), "held".to_owned())
    );
}

#[tokio::test]
async fn accounts_are_counted_anew_every_ten_minutes() {
    let mut it = Stand::new().await;
    it.sql("insert into users (id, nas_id, deleted) values (1, 5, 0), (2, 5, 0), (3, 6, 0), (4, 5, 1), (5, null, 0)").await;
    let now = 1_000_000;
    assert_eq!(it.watch.accounts(NasId(5), now).await.unwrap(), (2, 3));
    it.sql("insert into users (id, nas_id) values (6, 5)").await;
    let later = now + ACCOUNTS_MS;
    assert_eq!(
        it.watch.accounts(NasId(5), later - 1).await.unwrap(),
        (2, 3)
    );
    assert_eq!(it.watch.accounts(NasId(5), later).await.unwrap(), (3, 4));
    assert_eq!(it.watch.accounts(NasId(9), later).await.unwrap(), (0, 4));
}
