//! In steady state: how often each driver logs in, and that `nas.max_rate` paces what it sends.

use std::collections::BTreeSet;

use nas_event_daemon::clock;
use nas_event_daemon::sim::mikrotik::Faults;
use nas_event_daemon::sim::telnet;

use crate::fakes::{Driver, Fakes};
use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::journal;
use crate::lab::on_each_store;
use crate::lab::sim::Router;

on_each_store!(
    every_driver_keeps_its_sessions,
    a_rate_paces_the_steps_of_a_router
);

/// Events on each NAS that are counted.
const EVENTS: i64 = 300;
/// Logins, connections or sockets that 1,000 events may cost; fewer, to be exact.
const PER_THOUSAND: u64 = 5;
/// Accounts of a NAS.
const ACCOUNTS: i64 = 100;
/// Forks of a NAS.
const FORKS: i64 = 10;
/// The router's NAS.
const ROUTER: i64 = 10;

/// One event for each of `turns` × all accounts, and waits until all have ended.
async fn load(lab: &Lab, turns: i64) {
    for _ in 0..turns {
        lab.sql(
            "insert into events_stack_compact (cmd, user_id) select 'user_redirect', id from users",
        )
        .await;
    }
    lab.drained().await;
}

/// Logins over MikroTik's API, SSH and telnet, connections over HTTP, sockets of RADIUS.
fn opened(fakes: &Fakes, router: &Router) -> [(&'static str, u64); 5] {
    let records = fakes.records(Driver::Radius);
    let sockets: BTreeSet<&str> = records
        .iter()
        .map(|r| r["from"].as_str().unwrap())
        .collect();
    [
        ("mikrotik", router.sim.seen().logins),
        ("ssh", fakes.ssh.seen().logins),
        ("telnet", fakes.telnet.seen().logins),
        ("http", fakes.http.seen().connections),
        ("radius", sockets.len() as u64),
    ]
}

async fn every_driver_keeps_its_sessions(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let users = |nas: i64| (nas * 1_000..nas * 1_000 + ACCOUNTS).collect::<Vec<_>>();
    lab.native("Queue", &journal::native());
    let faults = Faults {
        latency_ms: 5,
        ..Faults::default()
    };
    let router = Router::start(lab.root(), "router", faults);
    router.serve_as(&lab, ROUTER, "Queue", FORKS).await;
    lab.accounts(ROUTER, users(ROUTER)).await;
    let fakes = Fakes::start(&lab, FORKS, |driver| users(driver.nas())).await;
    // Three lines are one event.
    fakes.telnet.set_faults(telnet::Faults {
        latency_ms: 5,
        ..Default::default()
    });
    let _daemon = lab.start().await;
    // The state is steady when every fork has worked.
    load(&lab, 1).await;
    let before = opened(&fakes, &router);
    load(&lab, EVENTS / ACCOUNTS).await;
    let after = opened(&fakes, &router);
    crate::say(&format!("opened before {before:?}, after {after:?}"));
    for ((name, before), (_, after)) in before.into_iter().zip(after) {
        assert!(before > 0, "{name}: nothing was opened at all");
        let cost = (after - before) * 1_000;
        let allowed = PER_THOUSAND * EVENTS.unsigned_abs();
        assert!(cost < allowed, "{name}: {before} before, {after} after");
    }
    let done = "select count(*) from events_done where result = 'done' and attempts = 1";
    let each = ACCOUNTS + EVENTS;
    assert_eq!(lab.number(done).await, 5 * each);
}

/// 20 commands a second: 40 events take two seconds, and none suffers.
async fn a_rate_paces_the_steps_of_a_router(kind: Kind) {
    const RATE: u64 = 20;
    /// What may go at once: a tenth of a second's worth.
    const BURST: u64 = 2;
    let lab = Lab::new(kind, "").await;
    lab.native("Queue", &journal::native());
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 1, "Queue", 20).await;
    lab.sql(&format!("update nas set max_rate = {RATE} where id = 1"))
        .await;
    lab.accounts(1, 10..50).await;
    let _daemon = lab.start().await;
    let began = clock::tick_ms();
    load(&lab, 1).await;
    let took = clock::tick_ms() - began;
    let sent = router.sim.seen().sentences;
    assert!(sent >= 40, "{sent} sentences");
    let at_least = (sent - BURST) * 1_000 / RATE;
    // The clock and the bucket count whole milliseconds.
    assert!(took + 50 >= at_least, "{sent} sentences in {took} ms");
    let done = "select count(*) from events_done where result = 'done' and attempts = 1";
    assert_eq!(lab.number(done).await, 40);
}
