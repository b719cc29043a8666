//! What stands between expansion and the lanes, step by step on both kinds of database, without a
//! daemon: the intent guard's watch, and the mark above which only urgent events are expanded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nas_event_daemon::config::GuardMode;
use nas_event_daemon::event::{EventId, Waiting};
use nas_event_daemon::expand::hold::Watch;
use nas_event_daemon::expand::level::Level;
use nas_event_daemon::store::{After, GuardOrder, OrderKind};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;

on_each_store!(
    a_watch_holds_forgets_and_hands_over,
    a_watch_that_only_warns_holds_nothing,
    the_main_stack_has_a_mark,
    an_announcement_is_of_who_posted,
    two_of_one_account_are_handed_over_once_each,
);

/// Of 200 accounts of a NAS, 60 may be cut off in a minute.
const LIMIT: usize = 60;

async fn lab(kind: Kind) -> (Lab, i64) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, "Record", 4, &[]).await;
    lab.accounts(5, 1..=200).await;
    lab.nas(6, "Record", 4, &[]).await;
    lab.accounts(6, 1_001..=1_500).await;
    let epoch = lab.db.store.own("test pid=1", After::Silence(0)).await;
    (lab, epoch.unwrap())
}

/// Events of one script, as they come from expansion.
async fn moved(lab: &Lab, cmd: &str, users: std::ops::RangeInclusive<i64>) -> Vec<Waiting> {
    let rows: Vec<String> = users
        .map(|user| format!("('{cmd}', {user}, 'night.pl')"))
        .collect();
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id, owner_script) values {}",
        rows.join(", ")
    ))
    .await;
    lab.db.store.expand(1_000, &[]).await.unwrap().moved
}

fn order(kind: OrderKind) -> GuardOrder {
    GuardOrder {
        id: 0,
        kind,
        source: Some("night.pl".to_owned()),
        cmd: None,
        event: None,
        from_ms: 0,
        for_ms: i64::MAX,
        most: 100,
        monthly: false,
        who: "admin".to_owned(),
    }
}

async fn a_watch_holds_forgets_and_hands_over(kind: Kind) {
    let (lab, epoch) = lab(kind).await;
    let watch = || Watch::new(Arc::clone(&lab.db.store), GuardMode::Hold, epoch);
    let mut first = watch();
    first.remember().await;
    assert_eq!(first.held(), 0);
    let all = moved(&lab, "user_redirect", 1..=63).await;
    let ids: Vec<EventId> = all.iter().map(|w| w.id).collect();
    let (go, later) = first.before(all).await;
    assert_eq!((go.len(), later.len(), first.held()), (LIMIT, 0, 3));

    // The next daemon reads them, and forgets what is superseded or gone.
    let mut next = watch();
    next.remember().await;
    assert_eq!(next.held(), 3);
    let paid = moved(&lab, "user_redirect_cancel", 61..=61).await;
    let (go, _) = next.before(paid).await;
    assert_eq!((go.len(), next.held()), (1, 2), "61 has paid");
    lab.sql(&format!("delete from events_stack where id = {}", ids[61]))
        .await;

    let approve = |cmd: &str| GuardOrder {
        cmd: Some(cmd.to_owned()),
        ..order(OrderKind::Approve)
    };
    let store = &lab.db.store;
    store.add_guard_order(&approve("user_del")).await.unwrap();
    assert!(next.orders().await.is_empty(), "another command");
    assert_eq!(next.held(), 1, "62 is gone");
    let fits = approve("user_redirect");
    store.add_guard_order(&fits).await.unwrap();
    let released = lab
        .until("it is released", async || {
            let rows = next.orders().await;
            (!rows.is_empty()).then_some(rows)
        })
        .await;
    let released: Vec<EventId> = released.iter().map(|w| w.id).collect();
    assert_eq!((released, next.held()), (vec![ids[62]], 0));
    assert_eq!(store.guard_orders().await.unwrap().len(), 0);
    let state = format!("select state from events_stack where id = {}", ids[62]);
    assert_eq!(lab.rows(&state).await[0][0], "ready");
}

async fn a_watch_that_only_warns_holds_nothing(kind: Kind) {
    let (lab, epoch) = lab(kind).await;
    let all = moved(&lab, "user_redirect", 1..=70).await;
    let rest = moved(&lab, "user_add", 71..=72).await;
    let both = [all, rest].concat();
    for (mode, looked_at) in [(GuardMode::Off, 0), (GuardMode::Warn, 70)] {
        let mut watch = Watch::new(Arc::clone(&lab.db.store), mode, epoch);
        let (go, later) = watch.before(both.clone()).await;
        assert_eq!((go.len(), later.len()), (72, looked_at), "{mode:?}");
        watch.after(&later).await;
        assert_eq!(watch.held(), 0);
    }
    let held = "select count(*) from events_stack where state = 'held'";
    assert_eq!(lab.number(held).await, 0);
}

async fn the_main_stack_has_a_mark(kind: Kind) {
    let (lab, _) = lab(kind).await;
    let store = lab.db.store.as_ref();
    let limited = Arc::new(AtomicBool::new(false));
    let level = |mark| Level::new(mark, Arc::clone(&limited));
    assert!(!level(2).is_above(store).await);
    moved(&lab, "user_add", 1..=2).await;
    let mut two = level(2);
    assert!(two.is_above(store).await && limited.load(Ordering::Relaxed));
    assert!(!level(0).is_above(store).await, "there is no mark");
    lab.sql("delete from events_stack").await;
    lab.until("it is below the mark", async || {
        (!two.is_above(store).await).then_some(())
    })
    .await;
    assert!(!limited.load(Ordering::Relaxed));
    // As far as is known there is room: it is not counted before so many came.
    moved(&lab, "user_add", 3..=5).await;
    two.add(1);
    assert!(!two.is_above(store).await);
    two.add(1);
    lab.until("it is above the mark", async || {
        two.is_above(store).await.then_some(())
    })
    .await;
    assert!(limited.load(Ordering::Relaxed));
}

/// Whose order an event is: who posted it (`source`, to the first `/`), and the script that added it
/// only where nobody is known to have.
async fn an_announcement_is_of_who_posted(kind: Kind) {
    for (announced, posted, go) in [
        ("crm", "'crm'", 70),
        ("crm", "'crm/cron'", 70),
        ("crm/cron", "'crm/cron'", 70),
        ("cron", "'crm/cron'", LIMIT),
        ("night.pl", "'crm'", LIMIT),
        ("night.pl", "null", 70),
        ("crm", "null", LIMIT),
    ] {
        let (lab, epoch) = lab(kind).await;
        let allow = GuardOrder {
            source: Some(announced.to_owned()),
            ..order(OrderKind::Allow)
        };
        lab.db.store.add_guard_order(&allow).await.unwrap();
        let mut watch = Watch::new(Arc::clone(&lab.db.store), GuardMode::Hold, epoch);
        assert!(watch.orders().await.is_empty());
        let rows: Vec<String> = (1..=70)
            .map(|user| format!("('user_redirect', {user}, 'night.pl', {posted})"))
            .collect();
        lab.sql(&format!(
            "insert into events_stack_compact (cmd, user_id, owner_script, source) values {}",
            rows.join(", ")
        ))
        .await;
        let moved = lab.db.store.expand(1_000, &[]).await.unwrap().moved;
        let (goes, _) = watch.before(moved).await;
        assert_eq!(
            (goes.len(), watch.held()),
            (go, 70 - go),
            "{announced} {posted}"
        );
    }
}

async fn two_of_one_account_are_handed_over_once_each(kind: Kind) {
    let (lab, epoch) = lab(kind).await;
    let mut watch = Watch::new(Arc::clone(&lab.db.store), GuardMode::Hold, epoch);
    let mut all = moved(&lab, "user_redirect", 1..=61).await;
    all.extend(moved(&lab, "user_drop", 61..=61).await);
    let held: Vec<EventId> = all[LIMIT..].iter().map(|w| w.id).collect();
    let (go, _) = watch.before(all).await;
    assert_eq!((go.len(), watch.held()), (LIMIT, 2));
    let approve = order(OrderKind::Approve);
    lab.db.store.add_guard_order(&approve).await.unwrap();
    let released: Vec<EventId> = watch.orders().await.iter().map(|w| w.id).collect();
    assert_eq!(released, held);
}
