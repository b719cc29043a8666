//! Independent software on the other end: Python's HTTPS server for our driver and for the shipped
//! web hook, Python's client for our simulator.

use std::path::Path;
use std::process::Stdio;

use nas_event_daemon::attempt::{FailureClass, Scope};
use nas_event_daemon::driver::http::Request;
use nas_event_daemon::driver::tls::Trust;
use nas_event_daemon::sim::http::{Options, Sim};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::tls::Pki;
use crate::{LONG, device, talk};

on_each_store!(an_event_reaches_the_https_of_others);

fn python(script: &str) -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "an independent program is a program"
    )]
    let mut command = Command::new("python3");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    command
        .arg(path.join(script))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn server(pki: &Pki) -> (Child, String) {
    let mut child = python("https_server.py")
        .arg(&pki.identity.cert)
        .arg(&pki.identity.key)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LONG, lines.next_line()).await;
    let port = line.unwrap().unwrap().expect("python3 is installed");
    (child, format!("https://127.0.0.1:{port}/base"))
}

#[tokio::test]
async fn our_driver_speaks_to_the_https_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (Pki::new(dir.path(), "right"), Pki::new(dir.path(), "wrong"));
    let (_server, url) = server(&right).await;
    let hook = device(&url, Trust::Ca(right.ca.clone()));
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        let json = (method != "GET").then(|| "{\"имя\":\"a\\nb\"}".to_owned());
        let request = Request {
            method: method.into(),
            path: "/u/%D1%8E?q=1".into(),
            headers: vec![("X-Who".into(), "nobody".into())],
            json: json.clone(),
        };
        let reply = hook.talk(&request, LONG).await.unwrap();
        assert_eq!(reply.code, 200);
        let told: Value = serde_json::from_str(&reply.text).unwrap();
        assert_eq!(told["method"], method);
        assert_eq!(told["path"], "/base/u/%D1%8E?q=1");
        assert_eq!(told["body"], json.unwrap_or_default());
        let who: String = told["who"].as_str().unwrap().chars().rev().collect();
        assert_eq!(who, "Bearer t0ken-of-the-hook");
        assert_eq!(told["headers"]["authorization"], "Bearer ***");
        assert_eq!(told["headers"]["x-who"], "nobody");
    }
    let failure = talk(&device(&url, Trust::Ca(wrong.ca)), "/")
        .await
        .unwrap_err();
    assert_eq!(
        (failure.scope, failure.class, failure.parks),
        (Scope::Nas, FailureClass::Transport, true)
    );
}

/// The whole way: an event, the daemon, the shipped scheme, and a server that tells what it got.
async fn an_event_reaches_the_https_of_others(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let (right, wrong) = (Pki::new(lab.root(), "right"), Pki::new(lab.root(), "wrong"));
    let (_server, url) = server(&right).await;
    for (nas, pki) in [(7, &right), (8, &wrong)] {
        let vars = json!({"tls_ca": pki.ca}).to_string();
        let more = [
            ("http_url", format!("'{url}'")),
            ("vars", format!("'{vars}'")),
        ];
        lab.nas(nas, "HTTP-Webhook", 1, &more).await;
        lab.secret(nas, "ned", "servicemode").await;
        lab.accounts(nas, [nas]).await;
    }
    let daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    let id = lab.event(7, "user_redirect").await;
    assert_eq!(lab.ended(id).await, done, "{:?}", lab.account_log(7));
    // The operator sees what the server says: here all that it was told.
    let id = lab.event(7, "user_info").await;
    assert_eq!(lab.ended(id).await, done, "{:?}", lab.account_log(7));
    let answer = format!("select answer from events_done where id = {id}");
    let answer = lab.rows(&answer).await.remove(0).remove(0);
    let told: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
    assert_eq!(told["method"], "POST");
    assert_eq!(told["path"], "/base/events");
    assert_eq!(told["headers"]["idempotency-key"], id.to_string());
    assert_eq!(told["headers"]["content-type"], "application/json");
    let who: String = told["who"].as_str().unwrap().chars().rev().collect();
    assert_eq!(who, "Basic bmVkOnNlcnZpY2Vtb2Rl");
    let body: Value = serde_json::from_str(told["body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&body["event_id"], &body["cmd"], &body["user_id"]),
        (&json!(id), &json!("user_info"), &json!(7)),
        "{body}"
    );
    assert_eq!(
        (&body["params"]["login"], &body["params"]["ip"]),
        (&json!("login7"), &json!("10.0.0.7")),
        "{body}"
    );
    assert_eq!(lab.opened(7), 1, "both on one connection");
    // Who trusts another CA tells it nothing.
    lab.event(8, "user_redirect").await;
    let parked = lab.said("NAS is parked").await;
    assert!(parked.contains(&right.pin), "{parked}");
    assert!(!lab.nas_log(8).join("\n").contains("< done"));
    daemon.stop().await;
}

#[tokio::test]
async fn our_simulator_is_spoken_to_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path(), "sim");
    let sim = Sim::start(Options {
        tls: Some(pki.identity.clone()),
        authorization: Some("Bearer t".into()),
        ..Options::default()
    })
    .await
    .unwrap();
    let output = python("https_client.py")
        .arg(sim.addr().port().to_string())
        .arg(&pki.ca)
        .arg("t")
        .stderr(Stdio::piped())
        .output();
    let output = tokio::time::timeout(LONG, output).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.trim(), "ok", "{err}");
    let seen = sim.seen();
    assert_eq!((seen.changes, seen.repeated, seen.unauthorized), (4, 1, 1));
}
