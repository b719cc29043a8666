//! Order per account and the number of forks, under load.

use std::collections::BTreeSet;

use nas_event_daemon::sim::mikrotik::Faults;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::journal::{
    self, Accepted, CMDS, check, gated, let_through, peak, repeated, running,
};
use crate::lab::on_each_store;
use crate::lab::sim::Router;

on_each_store!(
    order_is_kept_under_load,
    forks_shrink_and_grow_while_busy,
    forks_outside_the_range_are_clamped,
);

const ACCOUNTS: i64 = 100;
const ROUNDS: i64 = 12;
/// Of scripts: each is a process, and one of each class is enough for order to show itself.
const SCRIPT_ROUNDS: i64 = 4;
const PRODUCERS: i64 = 4;

/// Posts `rounds` events for each of the accounts from `first` on, all classes mixed, by
/// several producers at once; each owns its accounts.
async fn produce(lab: &Lab, first: i64, accounts: i64, rounds: i64) -> Vec<Accepted> {
    let producer = async |number: i64| {
        let mut accepted = Vec::new();
        for round in 0..rounds {
            let users: Vec<i64> = (first..first + accounts)
                .filter(|user| user % PRODUCERS == number)
                .collect();
            let event = |user: &i64| {
                let cmd = CMDS[usize::try_from((user + round) % 4).unwrap()];
                json!({"cmd": cmd, "user_id": user})
            };
            let events: Vec<_> = users.iter().map(event).collect();
            let ids = lab.post(json!({ "events": events })).await;
            accepted.extend(
                ids.into_iter()
                    .zip(users)
                    .map(|(event, user)| Accepted { event, user }),
            );
        }
        accepted
    };
    let (a, b, c, d) = tokio::join!(producer(0), producer(1), producer(2), producer(3));
    [a, b, c, d].concat()
}

async fn order_is_kept_under_load(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let journal = lab.path("script.journal");
    lab.session("Journal", &journal::session(&journal, ""));
    lab.native("Queue", &journal::native());
    let faults = Faults {
        latency_ms: 1,
        ..Faults::default()
    };
    let router = Router::start(lab.root(), "router", faults);
    router.serve_as(&lab, 1, "Queue", 5).await;
    lab.nas(2, "Journal", 5, &[]).await;
    lab.accounts(1, 1_000..1_000 + ACCOUNTS).await;
    lab.accounts(2, 2_000..2_000 + ACCOUNTS).await;
    let daemon = lab.start().await;
    let (native, scripts) = tokio::join!(
        produce(&lab, 1_000, ACCOUNTS, ROUNDS),
        produce(&lab, 2_000, ACCOUNTS, SCRIPT_ROUNDS)
    );
    lab.drained().await;
    let none = BTreeSet::new();
    for (accepted, rounds, entries) in [
        (native, ROUNDS, journal::read_router(&router.journal)),
        (scripts, SCRIPT_ROUNDS, journal::read_script(&journal)),
    ] {
        assert_eq!(i64::try_from(accepted.len()).unwrap(), ACCOUNTS * rounds);
        assert_eq!(check(&accepted, &none, &entries), []);
        assert_eq!(repeated(&entries), 0);
        let peak = peak(&entries);
        assert!(peak <= 5, "{peak} at once");
    }
    assert!(router.sim.seen().running_peak <= 5);
    daemon.stop().await;
}

async fn forks_shrink_and_grow_while_busy(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let journal = lab.path("script.journal");
    // Each attempt goes on until the test lets it: the state of the forks stands still.
    let gate = lab.path("gate");
    lab.session("Journal", &journal::session(&journal, &gated(&gate)));
    lab.nas(1, "Journal", 5, &[]).await;
    lab.accounts(1, 1..=40).await;
    let daemon = lab.start().await;
    let events: Vec<_> = (1..=40)
        .map(|user| json!({"cmd": "user_redirect", "user_id": user}))
        .collect();
    let ids = lab.post(json!({ "events": events })).await;
    let open = || running(&journal::read_script(&journal));
    let until_open = async |number: usize| {
        lab.until(&format!("{number} run"), async || {
            let open = open();
            (open.len() == number).then_some(open)
        })
        .await
    };
    let forks = async |number: i64| {
        lab.sql(&format!("update nas set forks = {number}")).await;
        daemon.signal(Signal::SIGHUP);
        lab.said(&format!(
            "Change work with nas nasid=1 nas_ip=127.0.0.1 forks={number} "
        ))
        .await;
        lab.until("the forks are changed", async || {
            let now = lab.scheduler().await?;
            (now["nases"][0]["forks"] == number).then_some(())
        })
        .await;
    };
    let first = until_open(5).await;
    forks(2).await;
    // Running ones are let go on; none of the first three that end is replaced.
    assert_eq!(open().len(), 5);
    for id in &first[..3] {
        let_through(&gate, id);
    }
    until_open(2).await;
    for id in &first[..3] {
        assert_eq!(lab.ended(*id).await.1, "done");
    }
    assert_eq!(open().len(), 2, "shrunk to 2");
    // One more ends, one takes its place.
    let_through(&gate, first[3]);
    lab.ended(first[3]).await;
    until_open(2).await;
    assert_eq!(peak(&journal::read_script(&journal)), 5);
    forks(10).await;
    until_open(10).await;
    let_through(&gate, "all");
    lab.drained().await;
    let entries = journal::read_script(&journal);
    assert_eq!(peak(&entries), 10);
    assert_eq!(repeated(&entries), 0, "nobody was killed");
    let result = "select count(*) from events_done where result = 'done' and attempts = 1";
    assert_eq!(lab.number(result).await, i64::try_from(ids.len()).unwrap());
    daemon.stop().await;
}

async fn forks_outside_the_range_are_clamped(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(1, "Record", 101, &[]).await;
    lab.nas(2, "Record", 0, &[]).await;
    let daemon = lab.start().await;
    lab.said("nasid=1 nas_ip=127.0.0.1 forks=101 is outside 1..100, 100 is used")
        .await;
    lab.said("nasid=2 nas_ip=127.0.0.1 forks=0 is outside 1..100, 1 is used")
        .await;
    lab.said("Start work with nas nasid=1 ").await;
    lab.said("Start work with nas nasid=2 ").await;
    daemon.stop().await;
}
