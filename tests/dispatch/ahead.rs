//! Events that are claimed before a fork is free for them: they keep the forks busy, and go back
//! as if nothing had been when none becomes free.

use nas_event_daemon::sim::mikrotik::Faults;

use crate::lab::daemon::{Daemon, Lab};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::Router;

on_each_store!(
    what_is_ahead_goes_back_when_the_nas_falls_silent,
    what_is_ahead_goes_back_at_a_pause,
    what_is_ahead_goes_back_at_the_end,
);

const FORKS: i64 = 2;
const ACCOUNTS: std::ops::Range<i64> = 1_000..4_000;
/// What a router takes that never answers in time, ms.
const NEVER_MS: u64 = 300_000;

fn slow(latency_ms: u64) -> Faults {
    Faults {
        latency_ms,
        ..Faults::default()
    }
}

/// A router with short commands and a queue; more events are claimed than it has forks.
async fn ahead(kind: Kind) -> (Lab, Router, Daemon) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", slow(2));
    router.serve_as(&lab, 1, "Mikrotik-Simple", FORKS).await;
    lab.accounts(1, ACCOUNTS).await;
    let events: Vec<String> = ACCOUNTS
        .map(|user| format!("('user_redirect', {user})"))
        .collect();
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values {}",
        events.join(", ")
    ))
    .await;
    let daemon = lab.start().await;
    lab.until("more are claimed than there are forks", async || {
        (claimed(&lab).await > FORKS).then_some(())
    })
    .await;
    (lab, router, daemon)
}

async fn claimed(lab: &Lab) -> i64 {
    let running = "select count(*) from events_stack where state = 'running'";
    lab.number(running).await
}

/// Only so many are claimed, and of the others nothing tells that they ever were.
async fn gone_back(lab: &Lab, running: i64) {
    lab.until("the others are as they were", async || {
        let touched = "select count(*) from events_stack where state <> 'running'
           and (try_count <> 0 or state <> 'ready' or last_error is not null)";
        (claimed(lab).await == running && lab.number(touched).await == 0).then_some(())
    })
    .await;
    let flagged =
        "select (select count(*) from events_stack where possible_duplicate and state = 'ready')
       + (select count(*) from events_done where possible_duplicate)";
    assert_eq!(lab.number(flagged).await, 0);
}

async fn what_is_ahead_goes_back_when_the_nas_falls_silent(kind: Kind) {
    let (lab, router, _daemon) = ahead(kind).await;
    router.sim.set_faults(slow(NEVER_MS));
    gone_back(&lab, FORKS).await;
    assert_eq!(router.sim.seen().running, FORKS.unsigned_abs());
    assert!(lab.waiting().await > FORKS, "else nothing was shown");
}

async fn what_is_ahead_goes_back_at_a_pause(kind: Kind) {
    let (lab, router, daemon) = ahead(kind).await;
    lab.ned(&["nas", "pause", "1"]).await;
    gone_back(&lab, 0).await;
    let done = router.sim.seen().changes;
    assert!(lab.waiting().await > 0, "else nothing was shown");
    lab.ned(&["nas", "resume", "1"]).await;
    lab.drained().await;
    assert!(router.sim.seen().changes > done);
    // Once each: an address that is added twice would be refused.
    assert_eq!(router.listed("crb_negbal").len(), ACCOUNTS.count());
    let again = "select count(*) from events_done where result <> 'done' or attempts <> 1";
    assert_eq!(lab.number(again).await, 0);
    daemon.stop().await;
}

async fn what_is_ahead_goes_back_at_the_end(kind: Kind) {
    let (lab, router, daemon) = ahead(kind).await;
    daemon.stop().await;
    gone_back(&lab, 0).await;
    let (waiting, done) = (lab.waiting().await, router.sim.seen().changes);
    assert!(waiting > 0, "else nothing was shown");
    assert_eq!(
        waiting + i64::try_from(done).unwrap(),
        ACCOUNTS.count() as i64
    );
}
