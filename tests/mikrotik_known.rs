//! A batch on one router: the rows of its menus are read once, then each account needs one
//! sentence; and what somebody else has changed meanwhile is still seen.

#[path = "lab/mod.rs"]
mod lab;

use std::time::Duration;

use lab::daemon::{Daemon, Lab};
use lab::db::Kind;
use lab::sim::{LOGIN, PASSWORD, Router};
use nas_event_daemon::driver::mikrotik::{Command, Limits, Mikrotik, Target};
use nas_event_daemon::sim::mikrotik::Faults;

const USERS: std::ops::Range<i64> = 100..300;
const LISTS: &str = "/ip/firewall/address-list";
/// Looks that make a menu busy, and as many again for what goes on while it is read.
const FIRST_LOOKS: u64 = 130;

/// A router that is served with these `nas.vars`, and its accounts.
async fn served(lab: &Lab, vars: &str) -> (Router, Daemon) {
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(lab, 1, "Mikrotik-Simple", 10).await;
    lab.sql(&format!("update nas set vars = '{vars}' where id = 1"))
        .await;
    lab.accounts(1, USERS).await;
    let daemon = lab.start().await;
    (router, daemon)
}

/// Every account gets this command; gives how many sentences that took.
async fn batch(lab: &Lab, router: &Router, cmd: &str) -> u64 {
    let before = router.sim.seen();
    let events: Vec<String> = USERS.map(|user| format!("('{cmd}', {user})")).collect();
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values {}",
        events.join(", ")
    ))
    .await;
    let n = USERS.count() as u64;
    let changed = router
        .sim
        .wait_until(|seen| seen.changes >= before.changes + n);
    let changed = tokio::time::timeout(Duration::from_secs(120), changed).await;
    assert!(changed.is_ok(), "{cmd}: {:?}", router.sim.seen());
    lab.drained().await;
    let bad = "select count(*) from events_done where result <> 'done' or attempts <> 1";
    assert_eq!(lab.number(bad).await, 0);
    let after = router.sim.seen();
    assert_eq!(after.changes - before.changes, n, "{cmd}");
    after.sentences - before.sentences
}

/// Rates that differ from the last.
async fn rates(lab: &Lab, kbit: u32) {
    lab.sql(&format!(
        "update users set ceil_in = {kbit}, ceil_out = {kbit}"
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_takes_one_sentence_for_each_account() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let (router, _daemon) = served(&lab, "{}").await;
    let n = USERS.count() as u64;
    assert_eq!(
        batch(&lab, &router, "user_redirect").await,
        n,
        "added at once"
    );
    assert_eq!(router.listed("crb_negbal").len(), USERS.count());
    // The first ones look, until the menu is read.
    let first = batch(&lab, &router, "user_redirect_cancel").await;
    assert!(first <= n + FIRST_LOOKS, "{first}");
    assert!(router.listed("crb_negbal").is_empty());
    batch(&lab, &router, "user_redirect").await;
    let cancel = batch(&lab, &router, "user_redirect_cancel").await;
    assert!(router.listed("crb_negbal").is_empty());
    rates(&lab, 1_024).await;
    batch(&lab, &router, "user_rate_set").await;
    rates(&lab, 2_048).await;
    let first = batch(&lab, &router, "user_rate_set").await;
    assert!(first <= n + 2 * FIRST_LOOKS, "{first}");
    rates(&lab, 4_096).await;
    let rate = batch(&lab, &router, "user_rate_set").await;
    let queues = router.sim.rows("/queue/simple");
    assert_eq!(queues.len(), USERS.count());
    assert!(
        queues.iter().all(|q| q["max-limit"] == "4096000/4096000"),
        "{queues:?}"
    );
    assert!(
        cancel * 10 <= n * 12 && rate * 10 <= n * 12,
        "{cancel} {rate}"
    );
    // Nothing differs: the router says so, nothing is set.
    let before = router.sim.seen();
    let id = lab.event(USERS.start, "user_rate_set").await;
    lab.ended(id).await;
    let after = router.sim.seen();
    assert_eq!(after.changes, before.changes);
    assert_eq!(after.sentences - before.sentences, 1, "one look");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_want_it_gets_a_look_for_each() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let (router, _daemon) = served(&lab, r#"{"know_rows": "no"}"#).await;
    let n = USERS.count() as u64;
    for _ in 0..2 {
        batch(&lab, &router, "user_redirect").await;
        assert_eq!(batch(&lab, &router, "user_redirect_cancel").await, 2 * n);
    }
}

/// An engineer beside the daemon, while its rows are known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_did_meanwhile_is_seen() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let (router, _daemon) = served(&lab, "{}").await;
    for cmd in ["user_redirect", "user_redirect_cancel", "user_redirect"] {
        batch(&lab, &router, cmd).await;
    }
    let target = Target {
        host: router.sim.addr().ip().to_string(),
        port: router.sim.addr().port(),
        login: LOGIN.to_owned(),
        password: PASSWORD.to_owned(),
    };
    let limits = Limits {
        connections: 1,
        connect_timeout: Duration::from_secs(20),
        linger: Duration::from_secs(60),
        logins_per_minute: 600,
        know_rows: false,
    };
    let engineer = Mikrotik::new(target, limits);
    let says = async |verb: &str, args: &[(&str, &str)]| {
        let args = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let command = Command {
            path: format!("{LISTS}/{verb}"),
            args: args.collect(),
            ..Command::default()
        };
        engineer
            .talk(&command, Duration::from_secs(20))
            .await
            .unwrap()
    };
    let row = |user: i64| {
        let rows = router.sim.rows(LISTS);
        let mark = format!("crb_{user}");
        rows.into_iter().find(|r| r["comment"] == mark).unwrap()
    };
    let (moved, gone, theirs) = (USERS.start, USERS.start + 1, USERS.start + 2);
    // One row is made anew under another `.id`, one is removed.
    let old = row(moved);
    says("remove", &[(".id", &old[".id"])]).await;
    let again = [
        ("list", "list"),
        ("address", "address"),
        ("comment", "comment"),
    ];
    let again = again.map(|(key, of)| (key, old[of].as_str()));
    says("add", &again).await;
    says("remove", &[(".id", &row(gone)[".id"])]).await;
    for user in [moved, gone, theirs] {
        let id = lab.event(user, "user_redirect_cancel").await;
        let (place, result) = lab.ended(id).await;
        assert_eq!(
            (place.as_str(), result.as_str()),
            ("done", "done"),
            "{user}"
        );
    }
    assert_eq!(router.listed("crb_negbal").len(), USERS.count() - 3);
}
