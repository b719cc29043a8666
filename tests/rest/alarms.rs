//! What the web hook tells whoever is on duty: once when something is wrong, once when it is well
//! again, also if the receiver was away at first.

use std::sync::{Arc, Mutex};

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::{Value, json};

use crate::lab::daemon::{Lab, own_port};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::{LOGIN, PASSWORD, Router};
use crate::running::RECORD;

on_each_store!(
    an_alarm_rings_and_is_called_off,
    old_events_and_lost_records_ring_too,
    guard_mark_and_database_ring_too,
);

/// Posts that a webhook got.
type Got = Arc<Mutex<Vec<Value>>>;

/// Waits until the receiver has been told of this alarm; what it was told.
async fn rung(lab: &Lab, got: &Mutex<Vec<Value>>, alarm: &str, state: &str) -> String {
    let what = format!("{alarm} is {state}");
    let text = lab.until(&what, async || {
        let got = got.lock().unwrap();
        let found = got
            .iter()
            .find(|m| m["alarm"] == alarm && m["state"] == state);
        found.map(|m| m["text"].as_str().unwrap().to_owned())
    });
    text.await
}

async fn receiver() -> (std::net::SocketAddr, Got, tokio::task::JoinSet<()>) {
    receiver_that_refuses(&Got::default(), 0).await
}

/// The first `most` posts are answered 500 and land in `refused`.
async fn receiver_that_refuses(
    refused: &Got,
    most: usize,
) -> (std::net::SocketAddr, Got, tokio::task::JoinSet<()>) {
    let got = Got::default();
    let (kept, refused) = (Arc::clone(&got), Arc::clone(refused));
    let take = move |axum::Json(message): axum::Json<Value>| {
        let mut refused = refused.lock().unwrap();
        let away = refused.len() < most;
        let told = if away {
            &mut *refused
        } else {
            &mut *kept.lock().unwrap()
        };
        told.push(message);
        let status = if away { 500 } else { 200 };
        async move { axum::http::StatusCode::from_u16(status).unwrap() }
    };
    let router = axum::Router::new().route("/hook", axum::routing::post(take));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let stop = tokio_util::sync::CancellationToken::new();
    tasks.spawn(nas_event_daemon::intake::serve::serve(
        listener, router, stop,
    ));
    (address, got, tasks)
}

async fn an_alarm_rings_and_is_called_off(kind: Kind) {
    let refused = Got::default();
    let (address, got, _tasks) = receiver_that_refuses(&refused, 2).await;
    let lab = Lab::new(kind, "").await;
    lab.configure(
        &format!("[alarm]\nwebhook = \"http://{address}/hook?token=geheim\"\nafter = \"100ms\""),
        "settings_interval = \"200ms\"",
    );
    lab.native(
        RECORD,
        "driver = \"record\"\n[[on.user_add]]\ncall = \"/x\"\n",
    );
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(7, "Missing", 2, &[]).await;
    // One that is down, and one that refuses the login.
    let router = Router::start(lab.root(), "router", Faults::default());
    let closed = own_port();
    for (nas, port, password) in [
        (8, closed.0, PASSWORD),
        (9, router.sim.addr().port(), "another"),
    ] {
        lab.nas(nas, "Mikrotik-Simple", 2, &[("api_port", port.to_string())])
            .await;
        lab.secret(nas, LOGIN, password).await;
        lab.accounts(nas, [nas * 10]).await;
    }
    let daemon = lab.start().await;
    lab.event(80, "user_add").await;
    lab.event(90, "user_add").await;
    let with = |alarm: &str, state: &str| {
        let got = got.lock().unwrap();
        let found = got
            .iter()
            .find(|m| m["alarm"] == alarm && m["state"] == state);
        found.cloned()
    };
    for (alarm, begins, says) in [
        ("nas_7", "NAS 7 is not served: ", "Missing"),
        (
            "nas_8",
            "NAS 8 bras8 (127.0.0.1) does not obey, breaker ",
            "refused",
        ),
        (
            "nas_9",
            "NAS 9 bras9 (127.0.0.1) does not obey, breaker parked",
            "password",
        ),
    ] {
        let raised = lab.until(alarm, async || with(alarm, "raised")).await;
        let text = raised["text"].as_str().unwrap();
        assert!(text.starts_with(begins) && text.contains(says), "{raised}");
        assert!(raised["at"].is_string() && raised["host"].is_string());
    }
    // It was away at first, and heard of all the same.
    assert_eq!(refused.lock().unwrap().len(), 2);
    let port = router.sim.addr().port();
    lab.sql(&format!(
        "update nas set oss_path = 'Record' where id = 7;
         update nas set api_port = {port} where id = 8;
         update nas_secret set password = '{PASSWORD}' where nas_id = 9"
    ))
    .await;
    for nas in [7, 8, 9] {
        let path = format!("/api/v1/nas/{nas}/resume");
        let why = json!({ "reason": "mended" });
        let resume = lab.try_post(&path, &why, None).await;
        assert_eq!(resume.unwrap().0, 200);
        let alarm = format!("nas_{nas}");
        lab.until("the all-clear", async || with(&alarm, "cleared"))
            .await;
    }
    let noted =
        "select count(*) from audit where what = 'nas_resume' and detail like '%why=\"mended\"'";
    assert_eq!(lab.rows(noted).await, [["3"]]);
    let told = got.lock().unwrap().clone();
    assert_eq!(told.len(), 6, "each once up and once down: {told:?}");
    assert!(!lab.daemon_log().concat().contains("geheim"));
    daemon.stop().await;
}

async fn old_events_and_lost_records_ring_too(kind: Kind) {
    let (address, got, _tasks) = receiver().await;
    let lab = Lab::new(kind, "").await;
    lab.configure(
        &format!("[alarm]\nwebhook = \"http://{address}/hook\"\nafter = \"100ms\""),
        "",
    );
    lab.native(
        RECORD,
        "driver = \"record\"\n[[on.user_add]]\ncall = \"/x\"\n",
    );
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, RECORD, 2, &[]).await;
    lab.accounts(5, [50, 51, 52]).await;
    lab.accounts(6, [60]).await;
    lab.sql("insert into nas_state (nas_id, paused_until) values (6, '2999-01-01 00:00:00')")
        .await;
    // Where its log should be there is something else.
    let in_the_way = lab.path("log/nas_event_daemon/bras5_127.0.0.1.log");
    std::fs::create_dir_all(&in_the_way).unwrap();
    let waits = |id: i64, user: i64, nas: i64| {
        format!(
            "insert into events_stack (id, event_type, user_id, nas_id, params, class, event_date, state, next_try_at)
             values ({id}, 'user_add', {user}, {nas}, '{{}}', 2, '2026-01-01 00:00:00.000', 'deferred',
               '2999-01-01 00:00:00.000')"
        )
    };
    lab.sql(&waits(900_001, 60, 6)).await;
    // Nor does what the guard holds: it waits for a person.
    let held = waits(900_003, 52, 5).replace("'deferred'", "'held'");
    lab.sql(&held).await;
    let daemon = lab.start().await;
    let told = async |alarm: &str, state: &str| rung(&lab, &got, alarm, state).await;
    lab.event(50, "user_add").await;
    let text = told("logs", "raised").await;
    assert!(text.contains("cannot be written (nas)"), "{text}");
    // What is lost once rings once, and is called off when nothing more is lost.
    std::fs::remove_dir(&in_the_way).unwrap();
    lab.event(51, "user_add").await;
    told("logs", "cleared").await;
    // The paused one is as old, and rings for nobody; the held one as what it is.
    told("guard", "raised").await;
    let early = got.lock().unwrap().iter().any(|m| m["alarm"] == "oldest");
    assert!(!early, "{got:?}");
    lab.sql(&waits(900_002, 51, 5)).await;
    let text = told("oldest", "raised").await;
    assert!(
        text.contains("(NAS 5 bras5: ") && !text.contains("NAS 6"),
        "{text}"
    );
    lab.ned(&["event", "drop", "900002", "-y"]).await;
    told("oldest", "cleared").await;
    assert_eq!(got.lock().unwrap().len(), 5, "{got:?}");
    daemon.stop().await;
}

async fn guard_mark_and_database_ring_too(kind: Kind) {
    let (address, got, _tasks) = receiver().await;
    let lab = Lab::new(kind, "").await;
    lab.configure(
        &format!(
            "high_water = 40\n[alarm]\nwebhook = \"http://{address}/hook\"\nafter = \"100ms\""
        ),
        "guard = \"hold\"",
    );
    lab.native(
        RECORD,
        "driver = \"record\"\n[[on.user_redirect]]\ncall = \"/x\"\n",
    );
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, 1..=70).await;
    lab.sql("insert into nas_state (nas_id, paused_until) values (5, '2999-01-01 00:00:00')")
        .await;
    let daemon = lab.start().await;
    let told = async |alarm: &str, state: &str| rung(&lab, &got, alarm, state).await;
    // More than the guard lets one source cut off, and more than the mark.
    let cut: Vec<Value> = (1..=60)
        .map(|user| json!({ "cmd": "user_redirect", "user_id": user }))
        .collect();
    lab.post(json!({ "events": cut })).await;
    let text = told("guard", "raised").await;
    assert!(
        text.starts_with("the intent guard holds 10 events"),
        "{text}"
    );
    let text = told("high_water", "raised").await;
    assert!(text.contains("above http.high_water"), "{text}");
    lab.ned(&["guard", "deny", "--source", "lab"]).await;
    told("guard", "cleared").await;
    let resume = lab.try_post("/api/v1/nas/5/resume", &json!({}), None).await;
    assert_eq!(resume.unwrap().0, 200);
    told("high_water", "cleared").await;
    // A database that refuses what is asked of it, until it is as it was.
    lab.sql("alter table owner rename to owner_away").await;
    let text = told("database", "raised").await;
    assert!(text.starts_with("the database does not answer: "), "{text}");
    lab.sql("alter table owner_away rename to owner").await;
    told("database", "cleared").await;
    let rung: Vec<String> = got
        .lock()
        .unwrap()
        .iter()
        .map(|m| m["alarm"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(rung.len(), 6, "each once up and once down: {rung:?}");
    daemon.stop().await;
}
