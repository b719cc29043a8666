//! A NAS that does not obey: its events wait and lose nothing, others do not notice.

use nas_event_daemon::clock;
use nas_event_daemon::sim::mikrotik::Faults;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::journal::{self, gated, let_through, running, starts};
use crate::lab::on_each_store;
use crate::lab::sim::{LOGIN, PASSWORD, Router};

on_each_store!(
    events_of_a_dead_nas_wait_and_lose_no_try,
    a_refused_password_parks_until_it_is_corrected,
    one_account_on_two_nases_keeps_its_order,
    an_event_on_another_nas_waits_only_so_long,
    nobody_waits_for_a_dead_nas,
    a_nas_that_is_back_is_served_within_seconds,
    events_of_a_removed_nas_wait_for_its_row,
);

/// Every event on the main stack, by state and tries.
async fn stacked(lab: &Lab) -> Vec<Vec<String>> {
    let statement = "select state, try_count, count(*) from events_stack group by 1, 2";
    lab.rows(statement).await
}

async fn events_of_a_dead_nas_wait_and_lose_no_try(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let down = Faults {
        refuse_connections: true,
        ..Faults::default()
    };
    let dead = Router::start(lab.root(), "dead", down);
    let good = Router::start(lab.root(), "good", Faults::default());
    dead.serve_as(&lab, 1, "Mikrotik-Simple", 5).await;
    good.serve_as(&lab, 2, "Mikrotik-Simple", 5).await;
    lab.accounts(1, 100..120).await;
    lab.accounts(2, 200..220).await;
    // The port is taken by a simulator that accepts and closes until it has heard of the fault.
    lab.until("nothing listens", async || {
        let tried = std::net::TcpStream::connect(dead.sim.addr());
        tried.is_err().then_some(())
    })
    .await;
    let daemon = lab.start().await;
    let events: Vec<_> = (100..120)
        .chain(200..220)
        .map(|user| json!({"cmd": "user_redirect", "user_id": user}))
        .collect();
    lab.post(json!({ "events": events })).await;
    let alarm = lab.said("NAS does not obey").await;
    assert!(alarm.contains("nasid=1 nas_ip=127.0.0.1 "), "{alarm}");
    assert!(alarm.contains("cannot connect"), "{alarm}");
    lab.until("the others are done, these wait", async || {
        let left = stacked(&lab).await;
        (good.listed("crb_negbal").len() == 20 && left == [["ready", "0", "20"]]).then_some(())
    })
    .await;
    // While nobody can be reached, a diagnostic is told so at once.
    let asked = lab.event(100, "user_info").await;
    let (place, reason) = lab.ended(asked).await;
    assert_eq!(place, "dead");
    assert!(reason.contains("cannot be asked now"), "{reason}");
    let log = lab.nas_log(1).join("\n");
    assert!(log.contains("end result=ready code=254 "), "{log}");
    // The next probe fails as well, and costs nothing either.
    lab.until("a second probe", async || {
        let log = lab.nas_log(1);
        let ends = log.iter().filter(|l| l.contains(" end result=ready"));
        let tries: std::collections::BTreeSet<&str> =
            ends.filter_map(|l| l.split(" event=").next()).collect();
        (tries.len() >= 2).then_some(())
    })
    .await;
    dead.sim.set_faults(Faults::default());
    lab.drained().await;
    assert_eq!(dead.listed("crb_negbal").len(), 20);
    let result = "select result, attempts, count(*) from events_done group by 1, 2";
    assert_eq!(lab.rows(result).await, [["done", "1", "40"]]);
    assert_eq!(lab.number("select count(*) from events_dead").await, 1);
    daemon.stop().await;
}

async fn a_refused_password_parks_until_it_is_corrected(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    let port = router.sim.addr().port().to_string();
    lab.nas(1, "Mikrotik-Simple", 3, &[("api_port", port)])
        .await;
    lab.secret(1, LOGIN, "a wrong one").await;
    lab.accounts(1, 100..115).await;
    let daemon = lab.start().await;
    let events: Vec<_> = (100..115)
        .map(|user| json!({"cmd": "user_redirect", "user_id": user}))
        .collect();
    lab.post(json!({ "events": events })).await;
    let alarm = lab.said("NAS is parked").await;
    assert!(alarm.contains("nasid=1 "), "{alarm}");
    lab.until("all wait", async || {
        (stacked(&lab).await == [["ready", "0", "15"]]).then_some(())
    })
    .await;
    let refused = router.sim.seen().logins_refused;
    assert!(refused <= 4, "{refused} logins: some routers lock out");
    lab.sql(&format!("update nas_secret set password = '{PASSWORD}'"))
        .await;
    daemon.signal(Signal::SIGHUP);
    lab.drained().await;
    assert_eq!(router.listed("crb_negbal").len(), 15);
    assert_eq!(router.sim.seen().logins_refused, refused);
    let result = "select result, attempts, count(*) from events_done group by 1, 2";
    assert_eq!(lab.rows(result).await, [["done", "1", "15"]]);
    assert_eq!(lab.number("select count(*) from events_dead").await, 0);
    let said = [lab.daemon_log(), lab.nas_log(1)].concat().join("\n");
    for password in ["a wrong one", PASSWORD] {
        assert!(!said.contains(password), "a password is in a log");
    }
    daemon.stop().await;
}

/// Two NASes with one gated journal each, and the account 10.
async fn two_nases(lab: &Lab) {
    for nas in [1, 2] {
        let journal = lab.path(&format!("journal{nas}"));
        let gate = lab.path(&format!("gate{nas}"));
        let name = format!("Mine{nas}");
        lab.session(&name, &journal::session(&journal, &gated(&gate)));
        lab.nas(nas, &name, 2, &[]).await;
    }
    lab.accounts(1, [10, 11]).await;
}

async fn on_nas(lab: &Lab, nas: i64, user: i64) -> i64 {
    let event = json!({"cmd": "user_redirect", "user_id": user, "nas_id": nas});
    lab.post(event).await[0]
}

async fn one_account_on_two_nases_keeps_its_order(kind: Kind) {
    let lab = Lab::new(kind, "cross_nas_wait = \"1h\"").await;
    two_nases(&lab).await;
    let_through(&lab.path("gate2"), "all");
    let daemon = lab.start().await;
    let first = on_nas(&lab, 1, 10).await;
    let second = on_nas(&lab, 2, 10).await;
    let third = on_nas(&lab, 1, 10).await;
    // Another account overtakes on the second NAS: it is served, and only order holds back.
    let other = on_nas(&lab, 2, 11).await;
    assert_eq!(lab.ended(other).await.1, "done");
    let journal = |nas: i64| journal::read_script(&lab.path(&format!("journal{nas}")));
    lab.until("the first runs", async || {
        (running(&journal(1)) == [first]).then_some(())
    })
    .await;
    assert_eq!(starts(&journal(2)), [(other, 1, false)]);
    let_through(&lab.path("gate1"), first);
    assert_eq!(lab.ended(second).await.1, "done");
    lab.until("the third runs", async || {
        (running(&journal(1)) == [third]).then_some(())
    })
    .await;
    let_through(&lab.path("gate1"), third);
    lab.drained().await;
    let said = [lab.nas_log(1), lab.nas_log(2)].concat().join("\n");
    assert!(!said.contains("cross_nas_overtake"), "{said}");
    daemon.stop().await;
}

async fn an_event_on_another_nas_waits_only_so_long(kind: Kind) {
    let lab = Lab::new(kind, "cross_nas_wait = \"200ms\"").await;
    two_nases(&lab).await;
    let_through(&lab.path("gate2"), "all");
    let daemon = lab.start().await;
    let first = on_nas(&lab, 1, 10).await;
    let second = on_nas(&lab, 2, 10).await;
    assert_eq!(lab.ended(second).await.1, "done");
    // The earlier one still runs: nobody has opened its gate. It may get to its first line late.
    lab.until("the earlier one runs", async || {
        let entries = journal::read_script(&lab.path("journal1"));
        (running(&entries) == [first]).then_some(())
    })
    .await;
    let log = lab.nas_log(2).join("\n");
    assert!(log.contains("cross_nas_overtake"), "{log}");
    let_through(&lab.path("gate1"), "all");
    lab.drained().await;
    daemon.stop().await;
}

async fn nobody_waits_for_a_dead_nas(kind: Kind) {
    let lab = Lab::new(kind, "cross_nas_wait = \"1h\"").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 3, "Mikrotik-Simple", 2).await;
    two_nases(&lab).await;
    let_through(&lab.path("gate2"), "all");
    let daemon = lab.start().await;
    router.sim.set_faults(Faults {
        refuse_connections: true,
        ..Faults::default()
    });
    lab.until("nothing listens", async || {
        let tried = std::net::TcpStream::connect(router.sim.addr());
        tried.is_err().then_some(())
    })
    .await;
    let dead = on_nas(&lab, 3, 10).await;
    lab.said("NAS does not obey").await;
    let other = on_nas(&lab, 2, 10).await;
    assert_eq!(lab.ended(other).await.1, "done");
    let log = lab.nas_log(2).join("\n");
    assert!(log.contains("cross_nas_overtake"), "{log}");
    router.sim.set_faults(Faults::default());
    assert_eq!(lab.ended(dead).await.1, "done");
    daemon.stop().await;
}

async fn a_nas_that_is_back_is_served_within_seconds(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let down = Faults {
        refuse_connections: true,
        ..Faults::default()
    };
    let router = Router::start(lab.root(), "router", down);
    router.serve_as(&lab, 1, "Mikrotik-Simple", 5).await;
    lab.accounts(1, [100]).await;
    lab.until("nothing listens", async || {
        let tried = std::net::TcpStream::connect(router.sim.addr());
        tried.is_err().then_some(())
    })
    .await;
    let daemon = lab.start().await;
    lab.event(100, "user_redirect").await;
    // The first attempt and four probes, after 1, 2, 4 and 8 s: the next would be due in 12.8 s or
    // later.
    lab.until("long steps", async || {
        let log = lab.nas_log(1);
        let ends = log.iter().filter(|l| l.contains(" end result=ready"));
        (ends.count() >= 5).then_some(())
    })
    .await;
    router.sim.set_faults(Faults::default());
    let back = clock::tick_ms();
    lab.drained().await;
    let ms = clock::tick_ms() - back;
    assert!(ms < 10_000, "{ms} ms after it was back");
    assert_eq!(router.listed("crb_negbal").len(), 1);
    // One connection was the knock, one the login.
    assert!(
        router.sim.seen().connections <= 3,
        "{:?}",
        router.sim.seen()
    );
    daemon.stop().await;
}

async fn events_of_a_removed_nas_wait_for_its_row(kind: Kind) {
    let lab = Lab::new(kind, "settings_interval = \"100ms\"").await;
    lab.nas(1, "Record", 2, &[]).await;
    lab.nas(2, "Record", 2, &[]).await;
    lab.accounts(1, [10]).await;
    let daemon = lab.start().await;
    lab.said("Start work with nas nasid=1 ").await;
    lab.ned(&["nas", "pause", "1", "--for", "1h", "--reason", "a look"])
        .await;
    lab.until("the pause is known", async || {
        let known = lab.scheduler().await?;
        let nases = known["nases"].as_array()?;
        nases
            .iter()
            .any(|nas| nas["id"] == 1 && nas["paused"] == true)
            .then_some(())
    })
    .await;
    let waits = lab.event(10, "user_add").await;
    lab.until("it is expanded", async || {
        (stacked(&lab).await == [["ready", "0", "1"]]).then_some(())
    })
    .await;
    lab.sql("delete from nas where id = 1").await;
    lab.said("Stop work with nas nasid=1 nas_ip=127.0.0.1 reason=its row is gone")
        .await;
    let shown = lab.ned(&["event", "show", &waits.to_string()]).await;
    let why = "NAS 1 is not served: the daemon does not know it; is it in the table nas?";
    assert!(shown.contains(why), "{shown}");
    assert_eq!(stacked(&lab).await, [["ready", "0", "1"]]);
    lab.nas(1, "Record", 2, &[]).await;
    lab.said_times("Start work with nas nasid=1 ", 2).await;
    lab.ned(&["nas", "resume", "1", "--reason", "it is back"])
        .await;
    assert_eq!(lab.ended(waits).await, ("done".into(), "done".into()));
    daemon.stop().await;
}
