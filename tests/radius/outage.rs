//! The whole daemon and a NAS that does not answer: no try is burnt, no other NAS notices, and
//! nothing is lost when it is back; a wrong secret and another NAS's identity are told as such.

use nas_event_daemon::sim::radius::{Faults, Sim};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{SECRET, sim};

on_each_store!(silence_burns_no_try_and_delays_nobody_else);

async fn serve(lab: &Lab, nas: i64, sim: &Sim, secret: &str) {
    let more = [
        ("coa_port", sim.addr().port().to_string()),
        ("timeout_ms", "400".to_owned()),
    ];
    lab.nas(nas, "Mikrotik-CoA", 3, &more).await;
    lab.db
        .sql(&format!(
            "insert into nas_secret (nas_id, coa_secret) values ({nas}, '{secret}')"
        ))
        .await;
}

async fn silence_burns_no_try_and_delays_nobody_else(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let silent = Faults {
        silent: true,
        ..Faults::default()
    };
    let (dead, fine) = (sim(silent).await, sim(Faults::default()).await);
    serve(&lab, 1, &dead, SECRET).await;
    serve(&lab, 2, &fine, SECRET).await;
    lab.accounts(1, 1..=20).await;
    lab.accounts(2, 21..=40).await;
    let _daemon = lab.start().await;
    let mut waiting = Vec::new();
    for user in 1..=20 {
        waiting.push(lab.event(user, "user_redirect").await);
    }
    lab.said("no answer from 127.0.0.1").await;
    for user in 21..=40 {
        let id = lab.event(user, "user_redirect").await;
        assert_eq!(lab.ended(id).await.1, "done");
    }
    let burnt = "select count(*) from events_stack where try_count > 1 or state = 'deferred'";
    assert_eq!(lab.number(burnt).await, 0);
    let gone = "select count(*) from events_dead";
    assert_eq!(lab.number(gone).await, 0);
    dead.set_faults(Faults::default());
    for id in waiting {
        assert_eq!(lab.ended(id).await.1, "done");
    }
    // Each account's last word is there, once it is back: nobody has a session, all are 503.
    assert!(dead.seen().naks >= 20);
    let alarms = lab.daemon_log();
    let alarms = alarms.iter().filter(|l| l.contains("no answer from"));
    assert!(alarms.count() <= 2, "an outage is told once");
}

/// A secret that does not fit looks like silence from here, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_is_named_and_corrected_without_a_restart() {
    let lab = Lab::new(Kind::Sqlite, "settings_interval = \"200ms\"").await;
    let nas = sim(Faults::default()).await;
    serve(&lab, 1, &nas, "not-this-one").await;
    lab.accounts(1, [1]).await;
    let _daemon = lab.start().await;
    let id = lab.event(1, "user_redirect").await;
    let said = lab.said("coa_secret").await;
    assert!(!said.contains("not-this-one"), "{said}");
    lab.sql(&format!(
        "update nas_secret set coa_secret = '{SECRET}' where nas_id = 1"
    ))
    .await;
    assert_eq!(lab.ended(id).await.1, "done");
    let log = lab.nas_log(1).join("\n");
    assert!(!log.contains(SECRET) && !log.contains("not-this-one"));
}

/// 403 says that it is another NAS: parked, with an alarm, and nothing is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_nas_is_parked_and_nothing_dies() {
    let lab = Lab::new(Kind::Sqlite, "settings_interval = \"200ms\"").await;
    let other = Faults {
        nak: Some(403),
        ..Faults::default()
    };
    let nas = sim(other).await;
    serve(&lab, 1, &nas, SECRET).await;
    lab.accounts(1, 1..=5).await;
    let _daemon = lab.start().await;
    let mut ids = Vec::new();
    for user in 1..=5 {
        ids.push(lab.event(user, "user_redirect").await);
    }
    lab.said("NAS-Identification-Mismatch").await;
    assert_eq!(lab.number("select count(*) from events_dead").await, 0);
    nas.set_faults(Faults::default());
    // A change of its settings is a reason to look again at once.
    lab.sql("update nas set timeout_ms = 500 where id = 1")
        .await;
    for id in ids {
        assert_eq!(lab.ended(id).await.1, "done");
    }
}
