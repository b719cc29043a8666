//! `nas …` and `account …`: look, pause, forks, test, set right.

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::{Value, json};

use crate::lab::daemon::{Lab, address};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::{PASSWORD, Router};
use crate::{RECORD, ned};

on_each_store!(
    a_nas_is_listed_paused_and_resumed,
    a_nas_is_tested_by_its_own_driver,
    a_resync_brings_the_router_to_the_flags,
    a_nas_is_drained_before_somebody_works_on_it,
    a_resumed_nas_is_tried_at_once,
    a_breaker_is_reset_and_a_pause_stays,
);

async fn list(lab: &Lab) -> Vec<Value> {
    let said = ned(lab, &["-o", "json", "nas", "list"]).await;
    said.json().as_array().unwrap().clone()
}

async fn a_nas_is_listed_paused_and_resumed(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, "No-Such-Scheme", 3, &[("mode", "'maybe'".into())])
        .await;
    lab.accounts(5, [1]).await;
    let rows = list(&lab).await;
    assert_eq!(rows[0]["breaker"], Value::Null, "no daemon, no breaker");
    assert!(
        rows[1]["note"]
            .as_str()
            .unwrap()
            .contains("mode is 'maybe'"),
        "{rows:?}"
    );
    let daemon = lab.start().await;
    // What would be done is said, and nothing is.
    for would in [
        &["nas", "pause", "5", "--reason", "works"][..],
        &["nas", "drain", "5"],
        &["nas", "forks", "5", "7"],
        &["nas", "observe", "5"],
    ] {
        let dry = [would, &["--dry-run"]].concat();
        ned(&lab, &dry)
            .await
            .failed(0, &["dry run: nothing was changed"]);
    }
    assert_eq!(lab.number("select count(*) from nas_state").await, 0);
    ned(&lab, &["nas", "pause", "5", "99"])
        .await
        .failed(5, &["there is no NAS 99"]);
    assert_eq!(list(&lab).await[0]["note"], "", "half of an order");
    ned(
        &lab,
        &["nas", "pause", "5", "--for", "30m", "--reason", "works"],
    )
    .await
    .fine();
    let rows = list(&lab).await;
    assert!(
        rows[0]["note"]
            .as_str()
            .unwrap()
            .starts_with("paused until 2"),
        "{rows:?}"
    );
    assert!(
        rows[0]["note"].as_str().unwrap().ends_with(": works"),
        "{rows:?}"
    );
    lab.said("paused").await;
    lab.until("the pause is in force", async || {
        (lab.scheduler().await?["nases"][0]["paused"] == true).then_some(())
    })
    .await;
    let id = lab.event(1, "user_add").await;
    lab.until("it waits on the main stack", async || {
        let row = list(&lab).await.remove(0);
        (row["waiting"] == 1).then_some(())
    })
    .await;
    ned(&lab, &["nas", "resume", "5"]).await.fine();
    assert_eq!(lab.ended(id).await, ("done".into(), "done".into()));
    lab.until("the daemon's own numbers are shown", async || {
        let row = list(&lab).await.remove(0);
        (row["done"] == 1 && row["breaker"] == "closed").then_some(())
    })
    .await;

    ned(&lab, &["nas", "forks", "5", "7"]).await.fine();
    lab.said("Change work with nas nasid=5 nas_ip=127.0.0.1 forks=7")
        .await;
    let row = ned(&lab, &["-o", "json", "nas", "show", "5"]).await.json();
    assert_eq!(
        (&row["forks"], &row["forks_override"]),
        (&json!(2), &json!(7))
    );
    assert_eq!(row["scheme_kind"], "native");
    ned(&lab, &["nas", "forks", "5", "default"]).await.fine();
    lab.said("nasid=5 nas_ip=127.0.0.1 forks=2").await;
    // One command over, one back; the billing's row stays as it is.
    ned(&lab, &["nas", "observe", "5"]).await.fine();
    lab.said("forks=2 mode=observe").await;
    let id = lab.event(1, "user_add").await;
    assert_eq!(lab.ended(id).await, ("done".into(), "observed".into()));
    let row = list(&lab).await.remove(0);
    assert_eq!(row["mode"], "observe");
    assert_eq!(row["note"], "mode observe by an operator");
    ned(&lab, &["nas", "activate", "5"]).await.fine();
    lab.said_times("forks=2 mode=active", 2).await;
    let id = lab.event(1, "user_add").await;
    assert_eq!(lab.ended(id).await, ("done".into(), "done".into()));
    ned(&lab, &["nas", "mode", "5", "default"]).await.fine();
    assert_eq!(list(&lab).await.remove(0)["note"], "");
    lab.sql("update nas set mode = 'off' where id = 5").await;
    ned(&lab, &["nas", "activate", "5"])
        .await
        .failed(6, &["nas.mode = 'off'", "hint:"]);
    lab.sql("update nas set mode = 'active' where id = 5").await;
    ned(&lab, &["nas", "activate", "6"])
        .await
        .failed(6, &["mode is 'maybe'"]);
    let audit = ned(&lab, &["-o", "json", "audit"]).await.fine();
    assert!(audit.contains("nas=5 mode=observe"), "{audit}");

    ned(&lab, &["nas", "forks", "5", "101"])
        .await
        .failed(2, &["1 to 100"]);
    for verb in [
        &["show"][..],
        &["pause"],
        &["resume"],
        &["activate"],
        &["observe"],
        &["test"],
        &["resync"],
    ] {
        let args = [&["nas"][..], verb, &["99"]].concat();
        ned(&lab, &args)
            .await
            .failed(5, &["there is no NAS 99", "hint:"]);
    }
    let status = ned(&lab, &["-o", "json", "status"]).await.json();
    assert_eq!(status["daemon"], "running");
    assert_eq!(status["nas"][0]["id"], 5);
    daemon.stop().await;
    ned(&lab, &["status"])
        .await
        .failed(0, &["no daemon is running"]);
}

async fn a_nas_is_tested_by_its_own_driver(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 5, "Mikrotik-Simple", 2).await;
    // On a busy machine an answer may be late once.
    let said = lab
        .until("an answer within the norm", async || {
            let said = ned(&lab, &["nas", "test", "5"]).await;
            (said.code != 9).then(|| said.fine())
        })
        .await;
    assert!(said.contains("/system/identity/print took"), "{said}");
    assert!(said.contains("norm 300 ms"), "{said}");
    router.sim.set_faults(Faults {
        latency_ms: 350,
        ..Faults::default()
    });
    ned(&lab, &["nas", "test", "5"])
        .await
        .failed(9, &["slower than the norm"]);
    router.sim.set_faults(Faults::default());
    lab.sql("update nas_secret set password = 'wrong-password' where nas_id = 5")
        .await;
    let said = ned(&lab, &["nas", "test", "5"]).await;
    said.failed(6, &["invalid user name or password", "nas_secret"]);
    assert!(!said.err.contains("wrong-password") && !said.err.contains(PASSWORD));
    // A port that nothing listens on.
    lab.sql("update nas set api_port = 1 where id = 5").await;
    ned(&lab, &["nas", "test", "5"])
        .await
        .failed(4, &["127.0.0.1", "hint:"]);

    lab.session("Mine", "user_add() { :; }\n");
    lab.nas(6, "Mine", 1, &[]).await;
    let said = ned(&lab, &["nas", "test", "6"]).await;
    said.failed(0, &["logs in by itself"]);
    assert!(said.fine().contains("session"));
    lab.nas(7, "No-Such-Scheme", 1, &[]).await;
    ned(&lab, &["nas", "test", "7"])
        .await
        .failed(3, &["scheme directory missing"]);
}

async fn a_resync_brings_the_router_to_the_flags(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 5, "Mikrotik-Simple", 4).await;
    lab.accounts(5, 1..=6).await;
    lab.sql("update users set redirect = 1 where id in (2, 3)")
        .await;
    lab.sql("update users set accept = 0 where id = 4").await;
    lab.sql("update users set deleted = 1 where id = 5").await;
    let counts = |out: &str| -> Vec<(String, i64)> {
        let each = out.lines().map(|line| line.split_once('\t').unwrap());
        each.map(|(cmd, n)| (cmd.to_owned(), n.parse().unwrap()))
            .collect()
    };
    let expected = [
        ("user_accept", 4),
        ("user_add", 5),
        ("user_del", 1),
        ("user_drop", 1),
        ("user_rate_set", 5),
        ("user_redirect", 2),
        ("user_redirect_cancel", 3),
    ]
    .map(|(cmd, n)| (cmd.to_owned(), n));
    let dry = ned(&lab, &["nas", "resync", "5", "--dry-run"]).await;
    dry.failed(0, &["dry run: 21 events for 6 accounts"]);
    assert_eq!(counts(&dry.fine()), expected);
    assert_eq!(lab.waiting().await, 0);

    let daemon = lab.start().await;
    let said = ned(&lab, &["nas", "resync", "5", "--rate", "200"]).await;
    said.failed(
        0,
        &["21 events for 6 accounts posted", "--batch resync-nas5-"],
    );
    assert_eq!(counts(&said.fine()), expected);
    lab.drained().await;
    assert_eq!(router.listed("crb_negbal"), [address(2), address(3)]);
    assert_eq!(router.listed("crb_blocked"), [address(4)]);
    let queues = router.sim.rows("/queue/simple").len();
    assert_eq!(queues, 5, "every account but the deleted one has a queue");
    let batch = lab
        .number("select count(*) from events_done where batch_id like 'resync-nas5-%' and source = 'cli' and result = 'done'")
        .await;
    assert_eq!(batch, 21);

    lab.sql("update users set redirect = 0 where id = 2").await;
    let one = ned(&lab, &["account", "resync", "2"]).await.fine();
    assert_eq!(counts(&one).len(), 4, "{one}");
    lab.drained().await;
    assert_eq!(router.listed("crb_negbal"), [address(3)]);
    ned(&lab, &["account", "resync", "99"])
        .await
        .failed(5, &["there is no account 99"]);
    daemon.stop().await;
}

async fn a_nas_is_drained_before_somebody_works_on_it(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let gate = lab.path("go").display().to_string();
    lab.session(
        "Slow",
        &format!("user_add() {{ until [ -e '{gate}' ]; do sleep 0.02; done; }}\n"),
    );
    lab.nas(5, "Slow", 2, &[]).await;
    lab.accounts(5, [1, 2]).await;
    let daemon = lab.start().await;
    let first = lab.event(1, "user_add").await;
    lab.until("it runs", async || {
        (lab.scheduler().await?["running"] == 1).then_some(())
    })
    .await;
    let drain = ["nas", "drain", "5", "--timeout", "300ms"];
    ned(&lab, &drain)
        .await
        .failed(7, &["1 events still run on NAS 5", "--state running"]);
    let second = lab.event(2, "user_add").await;
    std::fs::write(&gate, "").unwrap();
    ned(&lab, &["nas", "drain", "5"])
        .await
        .failed(0, &["nothing runs on NAS 5", "nas resume 5"]);
    assert_eq!(lab.ended(first).await.0, "done");
    let rows = lab.rows("select id, state from events_stack").await;
    assert!(rows.is_empty() || rows == [[second.to_string(), "ready".to_owned()]]);
    ned(&lab, &["nas", "resume", "5"]).await.fine();
    assert_eq!(lab.ended(second).await.0, "done");
    daemon.stop().await;
}

/// A router that refuses every login, as NAS 5 with account 1.
async fn refused(kind: Kind) -> (Lab, Router) {
    let lab = Lab::new(kind, "").await;
    let refusing = Faults {
        refuse_logins: true,
        ..Faults::default()
    };
    let router = Router::start(lab.root(), "router", refusing);
    router.serve_as(&lab, 5, "Mikrotik-Simple", 2).await;
    lab.accounts(5, [1]).await;
    (lab, router)
}

async fn a_resumed_nas_is_tried_at_once(kind: Kind) {
    let (lab, router) = refused(kind).await;
    let daemon = lab.start().await;
    let id = lab.event(1, "user_add").await;
    lab.until("it is parked", async || {
        (list(&lab).await[0]["breaker"] == "parked").then_some(())
    })
    .await;
    // Mended on the device: no settings change, and the next probe is minutes away.
    router.sim.set_faults(Faults::default());
    ned(&lab, &["nas", "resume", "5"]).await.fine();
    assert_eq!(lab.ended(id).await.0, "done");
    lab.until("it obeys", async || {
        (list(&lab).await[0]["breaker"] == "closed").then_some(())
    })
    .await;
    daemon.stop().await;
}

async fn a_breaker_is_reset_and_a_pause_stays(kind: Kind) {
    let (lab, router) = refused(kind).await;
    let reset = ["nas", "reset-breaker", "5"];
    ned(&lab, &reset).await.failed(4, &["no daemon is running"]);
    let daemon = lab.start().await;
    let id = lab.event(1, "user_add").await;
    lab.until("it is parked", async || {
        (list(&lab).await[0]["breaker"] == "parked").then_some(())
    })
    .await;
    router.sim.set_faults(Faults::default());
    ned(&lab, &[&reset[..], &["--dry-run"]].concat())
        .await
        .failed(0, &["would be tried at once"]);
    assert_eq!(list(&lab).await[0]["breaker"], "parked");
    ned(&lab, &[&reset[..], &["--reason", "new password"]].concat())
        .await
        .fine();
    assert_eq!(lab.ended(id).await.0, "done");
    let noted = "select count(*) from audit where what = 'nas_resume'
       and detail like '%nas=5%' and detail like '%why=\"new password\"%'";
    assert_eq!(lab.number(noted).await, 1);
    for pause in [
        &["nas", "pause", "5", "--reason", "works"][..],
        &["nas", "pause", "5", "--at", "2999-01-01 02:00"],
    ] {
        ned(&lab, pause).await.fine();
        let before = list(&lab).await[0]["note"].clone();
        ned(&lab, &reset)
            .await
            .failed(6, &["NAS 5 is paused", "nas resume 5"]);
        let note = &list(&lab).await[0]["note"];
        assert!(
            note == &before && note.to_string().contains("pause"),
            "{note}"
        );
    }
    ned(&lab, &["nas", "reset-breaker", "99"])
        .await
        .failed(5, &["there is no NAS 99"]);
    daemon.stop().await;
}
