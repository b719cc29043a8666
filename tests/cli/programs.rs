//! What a program asked for by `--output` is one document, whatever the verb says to people.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, Said, named, ned};

on_each_store!(
    each_verb_answers_with_one_document,
    a_daemon_that_hangs_is_read_around,
);

/// The one document on standard output, whatever the verb ended with.
fn document(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

async fn each_verb_answers_with_one_document(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, "no-such-scheme", 2, &[]).await;
    lab.accounts(5, 1..=3).await;
    let told = async |args: &[&str]| {
        let said = ned(&lab, &[&["-o", "json"], args].concat()).await;
        (document(&said), said.code)
    };
    // Before a daemon runs: what cannot be reached is an answer, too.
    let (check, code) = told(&["check"]).await;
    assert_eq!((check["state"].as_str(), code), (Some("CRITICAL"), 2));
    assert_eq!(check["said"], "no daemon is running");
    let (found, code) = told(&["config", "check"]).await;
    let rows = found.as_array().unwrap();
    assert_eq!((rows.len(), code), (4, 3), "{found}");
    assert!(rows[2]["ok"] == true && rows[3]["ok"] == false, "{found}");
    assert!(rows[3]["said"].as_str().unwrap().starts_with("skipped: "));
    let (shown, _) = told(&["config", "show"]).await;
    assert!(shown["database"]["url"].is_string(), "{shown}");

    let daemon = lab.start().await;
    lab.until("the daemon serves", async || {
        let served = lab.scheduler().await?;
        (served["nases"].as_array()?.len() == 1).then_some(())
    })
    .await;
    for stage in ["live", "ready"] {
        let (health, code) = told(&["health", stage]).await;
        assert_eq!((&health["well"], code), (&json!(true), 0), "{health}");
    }
    let (deep, code) = told(&["health", "deep"]).await;
    assert_eq!((&deep["well"], code), (&json!(false), 9), "{deep}");
    let (check, code) = told(&["check"]).await;
    assert_eq!((check["code"].as_i64(), code), (Some(1), 1), "{check}");
    assert_eq!(
        (&check["waiting"], &check["not_served"]),
        (&json!(0), &json!(1))
    );
    let (status, _) = told(&["status"]).await;
    assert_eq!(status["held"], 0, "{status}");
    assert_eq!(status["nas"].as_array().unwrap().len(), 2);
    let (test, code) = told(&["nas", "test", "5"]).await;
    assert_eq!((&test["well"], code), (&json!(true), 0), "{test}");
    let (test, code) = told(&["nas", "test", "6"]).await;
    assert_eq!((&test["well"], code), (&json!(false), 3), "{test}");
    assert!(test["error"].as_str().unwrap().contains("no-such-scheme"));
    let (token, _) = told(&["token", "create", "crm", "--scope", "operator"]).await;
    assert_eq!(token["token"].as_str().unwrap().len(), 43, "{token}");
    assert_eq!(told(&["explain", "NED-0201"]).await.0["number"], "NED-0201");
    let (pages, _) = told(&["explain"]).await;
    assert!(pages.as_array().unwrap().len() > 20);
    let (lint, code) = told(&["scheme", "lint", "Mikrotik-Simple"]).await;
    assert_eq!((lint, code), (json!([]), 0));
    let (commands, _) = told(&[
        "scheme",
        "run",
        "Mikrotik-Simple",
        "--cmd",
        "user_redirect",
        "--user",
        "1",
        "--dry-run",
    ])
    .await;
    assert!(commands[0]["command"].is_string(), "{commands}");
    // One event, followed: the end, and nothing before it.
    let (end, code) = told(&[
        "event",
        "post",
        "--cmd",
        "user_accept",
        "--user",
        "1",
        "--follow",
    ])
    .await;
    assert_eq!((end["result"].as_str(), code), (Some("done"), 0), "{end}");
    // Of a file in part wrong: what became of it, and its lines.
    let lines = "{\"cmd\":\"user_accept\",\"user_id\":2}\n{\"cmd\":\"user_acept\",\"user_id\":3}\n";
    let bulk = ["-o", "json", "event", "bulk", "-"];
    let said = named(&lab, "nas_event_daemon", &bulk, lines).await;
    let all = document(&said);
    assert_eq!((&all["accepted"], said.code), (&json!(1), 8), "{all}");
    assert_eq!(all["rejected_lines"][0]["line"], 2, "{all}");
    let csv = "user_id,cmd\n,user_accept\n2,user_accept\n";
    let said = named(&lab, "nas_event_daemon", &bulk, csv).await;
    let error = document(&said)["rejected_lines"][0]["error"].to_string();
    assert!(error.contains("without the column user_id"), "{error}");
    // For a table of another program, rows; for people, sentences as ever.
    let rows = ned(&lab, &["-o", "csv", "health", "live"]).await.fine();
    assert!(rows.starts_with("well,said\n1,"), "{rows}");
    let plain = ned(&lab, &["health", "live"]).await.fine();
    assert!(plain.starts_with("ok "), "{plain}");
    lab.drained().await;
    daemon.stop().await;
}

/// It listens and says nothing: what the database knows is told all the same, and that it hangs.
async fn a_daemon_that_hangs_is_read_around(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [1]).await;
    let daemon = lab.start().await;
    daemon.signal(Signal::SIGSTOP);
    let why = ned(&lab, &["-o", "json", "why", "1"]).await.json();
    assert_eq!(why["cause"], "no_daemon", "{why}");
    let said = ned(&lab, &["-o", "json", "status"]).await;
    assert_eq!(document(&said)["daemon"], "does not answer", "{said:?}");
    assert!(!said.err.contains("no daemon is running"), "{said:?}");
    assert!(
        said.code == 0 && said.err.contains("gave no answer within 5s"),
        "{said:?}"
    );
    let why = ned(&lab, &["-o", "json", "why", "1"]).await.json();
    assert_eq!(why["cause"], "no_daemon", "{why}");
    assert!(why["verdict"].as_str().unwrap().contains("does not answer"));
    daemon.signal(Signal::SIGCONT);
    daemon.stop().await;
}
