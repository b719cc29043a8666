//! How the sessions of a router stand, as the daemon's status and the logs tell it: while commands
//! wait, while they are under way, after a refused login, and after a connection has ended.

#![expect(clippy::indexing_slicing, reason = "a failed step fails the test")]

#[path = "lab/mod.rs"]
mod lab;

use lab::daemon::Lab;
use lab::db::Kind;
use lab::sim::Router;
use nas_event_daemon::clock;
use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::{Value, json};

/// What a router takes that never answers in time, ms.
const NEVER_MS: u64 = 300_000;
const USERS: std::ops::Range<i64> = 10..15;

/// A served router, and one event for each account, accepted at once.
async fn loaded(lab: &Lab, faults: Faults) -> (Router, lab::daemon::Daemon) {
    let router = Router::start(lab.root(), "router", faults);
    router.serve_as(lab, 1, "Mikrotik-Simple", 5).await;
    lab.accounts(1, USERS).await;
    let daemon = lab.start().await;
    let events: Vec<String> = USERS
        .map(|user| format!("('user_redirect', {user})"))
        .collect();
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values {}",
        events.join(", ")
    ))
    .await;
    (router, daemon)
}

/// Waits until the status says this of the router's sessions.
async fn told(lab: &Lab, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    lab.until(what, async || {
        let status = lab.scheduler().await?;
        let sessions = status["nases"][0]["sessions"][0].clone();
        wanted(&sessions).then_some(sessions)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_tells_who_waits_and_who_is_served() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let (router, _daemon) = loaded(
        &lab,
        Faults {
            // Long enough to be seen, shorter than the daemon gives a login.
            login_latency_ms: 2_000,
            latency_ms: NEVER_MS,
            ..Faults::default()
        },
    )
    .await;
    let all = USERS.count();
    let seen = told(&lab, "all wait for the login", |s| s["waiting"] == all).await;
    assert_eq!((&seen["open"], &seen["leased"]), (&json!(0), &json!(0)));
    let seen = told(&lab, "all are under way", |s| s["leased"] == all).await;
    assert_eq!((&seen["open"], &seen["logins"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&seen["driver"], &seen["waiting"], &seen["last_error"]),
        (&json!("mikrotik"), &json!(0), &Value::Null)
    );
    assert_eq!(router.sim.seen().running, u64::try_from(all).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_tells_why_no_session_is_there() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let (_router, _daemon) = loaded(
        &lab,
        Faults {
            refuse_logins: true,
            ..Faults::default()
        },
    )
    .await;
    let seen = told(&lab, "the refusal is told", |s| s["last_error"].is_string()).await;
    let why = seen["last_error"].as_str().unwrap();
    assert!(why.contains("invalid user name or password"), "{why}");
    assert!(!why.contains(lab::sim::PASSWORD), "{why}");
    assert_eq!((&seen["open"], &seen["logins"]), (&json!(0), &json!(0)));
}

/// The log says of each login which attempt paid for it; the others found a kept session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_tells_which_attempt_opened_a_session() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let (router, _daemon) = loaded(&lab, Faults::default()).await;
    lab.drained().await;
    assert_eq!((router.sim.seen().logins, lab.opened(1)), (1, 1));
    // The router hangs up while nothing is under way.
    router.sim.set_faults(Faults {
        refuse_connections: true,
        ..Faults::default()
    });
    told(&lab, "the session has ended", |s| s["open"] == 0).await;
    router.sim.set_faults(Faults::default());
    let done = ("done".to_owned(), "done".to_owned());
    for user in [10, 11] {
        let id = lab.event(user, "user_redirect_cancel").await;
        assert_eq!(lab.ended(id).await, done, "{:?}", lab.account_log(user));
    }
    assert_eq!((router.sim.seen().logins, lab.opened(1)), (2, 2));
    // It stands before the answers, the last of which is what an operator looks for.
    let log = lab.account_log(10);
    let at = |text: &str| log.iter().rposition(|line| line.contains(text)).unwrap();
    let opened = at("a session was opened for this");
    assert!(opened < at(" end result=done"), "{log:#?}");
}

/// Well before an idle connection is closed by itself: a device that is taken away, or given to
/// somebody else, is let go at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nas_that_is_served_no_longer_keeps_no_session() {
    const AT_ONCE_MS: u64 = 30_000;
    let lab = Lab::new(Kind::Sqlite, "").await;
    let (router, daemon) = loaded(&lab, Faults::default()).await;
    let other = Router::start(lab.root(), "other", Faults::default());
    other.serve_as(&lab, 2, "Mikrotik-Simple", 5).await;
    lab.accounts(2, [20]).await;
    lab.reload(&daemon).await;
    let of_other = lab.event(20, "user_redirect").await;
    assert_eq!(lab.ended(of_other).await.1, "done");
    lab.drained().await;
    assert!(router.sim.seen().sessions > 0);
    let began = clock::tick_ms();
    lab.sql("delete from nas where id = 1").await;
    lab.reload(&daemon).await;
    lab.until("its sessions have ended", async || {
        (router.sim.seen().sessions == 0).then_some(())
    })
    .await;
    assert!(
        clock::tick_ms() - began < AT_ONCE_MS,
        "it was idle for long"
    );
    assert_eq!(other.sim.seen().sessions, 1, "the other's are its own");
    daemon.stop().await;
}
