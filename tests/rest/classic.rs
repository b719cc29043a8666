//! The classic API, access to it, and what monitoring asks.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::Request;
use hyper::body::Frame;
use nas_event_daemon::intake::access::{Peer, Scope};
use serde_json::json;

use crate::fake::{House, LONG, house, rung};

const EVENTS: &str = "/rest_api/v2/EventsStackCompact/";
const DOCUMENTED: &str =
    r#"method1=objects.create&arg1={"user_id": 1424,"cmd":"user_redirect_cancel"}"#;

#[tokio::test]
async fn the_documented_call() {
    let h = house(0);
    let answer = h.open(EVENTS, &[], DOCUMENTED).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let body = answer.json();
    assert_eq!(body["call"], EVENTS);
    assert_eq!(body["result"]["pk"], 1);
    assert_eq!(body["result"]["model"], "EventsStackCompact");
    assert_eq!(body["result"]["fields"]["user_id"], 1424);
    assert_eq!(body["result"]["fields"]["cmd"], "user_redirect_cancel");
    assert!(body.get("error").is_none());
    let event = &h.fake.events()[0];
    assert_eq!(event.user_id, Some(1424));
    assert_eq!(event.source.as_deref(), Some("open:10.1.2.3"));
    assert!(rung(&h.wake, false).await);
    assert_eq!(
        h.fake.audit_lines(),
        ["open:10.1.2.3 post event=1 cmd=user_redirect_cancel"]
    );
}

#[tokio::test]
async fn other_shapes_of_the_same_call() {
    let h = house(0);
    let bodies = [
        "method1=objects.create&arg1=%7B%22user_id%22%3A+%221424%22%2C%22cmd%22%3A%22my_own%22%7D",
        r#"{"method1":"objects.create","arg1":{"user_id":1424,"cmd":"my_own"}}"#,
        r#"arg1={"user_id":1424,"cmd":"my_own","params":{"x":"a&method1=objects.delete%00+"}}&method1=objects.create"#,
    ];
    for body in bodies {
        for kind in [
            "application/x-www-form-urlencoded",
            "application/json",
            "text/plain",
        ] {
            let path = EVENTS.trim_end_matches('/');
            let answer = h.open(path, &[("content-type", kind)], body).await;
            assert_eq!(answer.status, 200, "{body}: {}", answer.text);
            assert_eq!(answer.json()["call"], EVENTS);
        }
    }
    let events = h.fake.events();
    assert_eq!(events.len(), 9);
    assert!(events.iter().all(|e| e.user_id == Some(1424)));
    let params = events[8].params.as_ref().unwrap();
    assert_eq!(params["x"], "a&method1=objects.delete%00+");
}

#[tokio::test]
async fn a_list_is_all_or_nothing() {
    let h = house(0);
    let good = r#"method1=objects.create&arg1=[{"user_id":1,"cmd":"user_add"},{"user_id":2,"cmd":"user_del"}]&fields=["cmd"]"#;
    let answer = h.open(EVENTS, &[], good).await;
    let result = &answer.json()["result"];
    assert_eq!(
        result[1],
        json!({"pk": 2, "model": "EventsStackCompact", "fields": {"cmd": "user_del"}})
    );
    assert_eq!(h.fake.posts.lock().unwrap().len(), 1);
    let bad = r#"method1=objects.create&arg1=[{"user_id":1,"cmd":"user_add"},{"user_id":2,"cmd":"user_dal"}]"#;
    let answer = h.open(EVENTS, &[], bad).await;
    assert_eq!(answer.status, 400);
    let said = answer.json()["error"].to_string();
    assert!(
        said.contains("arg1[1]: unknown cmd user_dal; did you mean user_del?"),
        "{said}"
    );
    assert_eq!(h.fake.events().len(), 2);
}

#[tokio::test]
async fn what_makes_no_sense_changes_nothing() {
    let h = house(0);
    let cases = [
        (EVENTS, "", 400, "method1 is missing"),
        (
            EVENTS,
            "method1=objects.create&arg1={\"user_id\":1424,\"cmd\":\"user_",
            400,
            "arg1 is not JSON",
        ),
        (
            EVENTS,
            "method1=objects.create&arg1={\"user_id\":1,\"cmd\":\"reboot\"}",
            400,
            "unknown cmd reboot",
        ),
        (
            EVENTS,
            "method1=objects.create&arg1={\"cmd\":\"user_add\"}",
            400,
            "user_id is missing",
        ),
        (
            EVENTS,
            "method1=objects.create&arg1={\"user_id\":1,\"cmd\":\"user_add\",\"speed\":5}",
            400,
            "speed is not a field",
        ),
        (EVENTS, "method1=objects.create&arg1=[]", 400, "0 events"),
        (
            EVENTS,
            "method1=objects.create&arg1={\"user_id\":1,\"cmd\":\"user_add\"}&fields=[\"x\"]",
            400,
            "fields names \"x\"",
        ),
        (
            EVENTS,
            "method1=objects.delete&arg1={}",
            400,
            "an empty one would mean every event",
        ),
        (
            EVENTS,
            "method1=objects.get&arg1={}&method2=set&arg2={}",
            400,
            "method2: set takes an object of fields",
        ),
        (
            EVENTS,
            "method1=objects.filter&arg1={\"user_id__in\":[1]}",
            400,
            "has no field user_id",
        ),
        (
            "/rest_api/v2/EventsStack/",
            "method1=objects.create&arg1={\"user_id\":1,\"cmd\":\"user_add\"}",
            400,
            "EventsStack takes no objects",
        ),
        (
            "/rest_api/v2/Tarif/",
            DOCUMENTED,
            404,
            "unknown model Tarif",
        ),
        (
            "/rest_api/v2/Events%ff/",
            DOCUMENTED,
            400,
            "the path is not UTF-8",
        ),
        (
            "/rest_api/v2/EventsStackCompact/x",
            DOCUMENTED,
            404,
            "nothing at",
        ),
    ];
    for (path, body, status, text) in cases {
        let answer = h.open(path, &[], body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        let said = answer.json();
        assert!(
            said["call"].as_str().unwrap().starts_with("/rest_api/v2"),
            "{said}"
        );
        assert!(said["error"].as_str().unwrap().contains(text), "{said}");
        assert!(said.get("result").is_none());
    }
    assert!(h.fake.events().is_empty());
    assert!(h.fake.audit_lines().is_empty());
    assert!(!rung(&h.wake, false).await);
}

fn from(peer: Peer, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method("POST").uri(EVENTS);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::from(DOCUMENTED)).unwrap();
    request.extensions_mut().insert(peer);
    request
}

#[tokio::test]
async fn who_may_post_without_and_with_a_token() {
    let h = house(0);
    let tcp = |ip: &str| Peer::Tcp(format!("{ip}:4000").parse().unwrap());
    let local = |uid, scope| Peer::Unix { uid, scope };
    let own = nix::unistd::geteuid().as_raw();
    let host = ("host", "127.0.0.1:8082");
    type Case<'a> = (Peer, &'a [(&'a str, &'a str)], u16);
    let cases: &[Case<'_>] = &[
        (tcp("10.1.2.3"), &[], 200),
        (tcp("10.1.3.3"), &[], 401),
        (tcp("[::ffff:10.1.2.3]"), &[], 200),
        (tcp("[::1]"), &[], 401),
        (tcp("10.1.2.3"), &[("x-forwarded-for", "8.8.8.8")], 401),
        (tcp("10.1.2.3"), &[("host", "evil.example")], 403),
        (
            tcp("10.1.2.3"),
            &[host, ("origin", "http://evil.example")],
            403,
        ),
        (tcp("10.1.2.3"), &[host, ("origin", "null")], 403),
        (
            tcp("10.1.2.3"),
            &[host, ("origin", "http://127.0.0.1:8082")],
            200,
        ),
        (tcp("10.1.2.3"), &[("authorization", "Bearer wrong")], 401),
        (tcp("10.1.2.3"), &[("authorization", "Basic YTpi")], 401),
        (
            tcp("192.0.2.1"),
            &[("authorization", "Bearer t-viewer")],
            403,
        ),
        (
            tcp("192.0.2.1"),
            &[("authorization", "Bearer t-support")],
            403,
        ),
        (
            tcp("192.0.2.1"),
            &[("authorization", "Bearer t-operator")],
            200,
        ),
        (
            tcp("192.0.2.1"),
            &[("authorization", "bearer t-admin")],
            200,
        ),
        (local(own, Some(Scope::Admin)), &[("host", "ctl")], 200),
        (local(own + 1, Some(Scope::Operator)), &[], 200),
        (local(own + 1, Some(Scope::Viewer)), &[], 403),
        (local(own + 1, None), &[], 401),
        (
            local(own + 1, None),
            &[("authorization", "Bearer t-operator")],
            200,
        ),
    ];
    let mut accepted = 0;
    for (peer, headers, status) in cases {
        let answer = h.send(from(*peer, headers)).await;
        assert_eq!(
            answer.status, *status,
            "{peer:?} {headers:?}: {}",
            answer.text
        );
        assert_eq!(answer.json()["call"], EVENTS);
        assert_eq!(answer.json().get("error").is_some(), *status != 200);
        assert_eq!(answer.head.contains_key("www-authenticate"), *status == 401);
        assert!(!answer.text.contains("t-operator"));
        accepted += usize::from(*status == 200);
    }
    assert_eq!(h.fake.events().len(), accepted);
    let whos: Vec<_> = h
        .fake
        .audits
        .lock()
        .unwrap()
        .iter()
        .map(|a| a.0.clone())
        .collect();
    assert!(whos.contains(&format!("uid:{own}")) && whos.contains(&"crm-operator".to_owned()));
    let read = r#"method1=objects.create&arg1={"user_id":1,"cmd":"user_info"}"#;
    assert_eq!(h.with("support", "POST", EVENTS, read).await.status, 200);
    assert_eq!(h.with("viewer", "POST", EVENTS, read).await.status, 403);
}

#[tokio::test]
async fn the_same_key_is_one_event() {
    let h = house(0);
    let key = [("idempotency-key", "pay-77")];
    let first = h.open(EVENTS, &key, DOCUMENTED).await;
    let again = h.open(EVENTS, &key, DOCUMENTED).await;
    assert_eq!(first.json(), again.json());
    assert_eq!(h.fake.events().len(), 1);
    let other = h
        .open(EVENTS, &key, &DOCUMENTED.replace("1424", "1425"))
        .await;
    assert_eq!(other.status, 409, "{}", other.text);
    let bad = h
        .open(EVENTS, &[("idempotency-key", "a b")], DOCUMENTED)
        .await;
    assert_eq!(bad.status, 400);
    assert_eq!(h.fake.events().len(), 1);
    assert_eq!(h.fake.audit_lines().len(), 1);
}

#[tokio::test]
async fn a_new_event_may_be_set_before_it_is_stored_once() {
    let h = house(0);
    let body = r#"method1=objects.create&arg1={"user_id":1,"cmd":"user_add"}&method2=set&arg2={"cmd":"user_del"}&method3=save&arg3={}"#;
    let answer = h.open(EVENTS, &[], body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["result"]["fields"]["cmd"], "user_del");
    let events = h.fake.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].cmd, "user_del");
    let plain = r#"method1=objects.create&arg1={"user_id":1,"cmd":"user_add"}&method2=save"#;
    assert_eq!(h.open(EVENTS, &[], plain).await.status, 200);
    assert_eq!(h.fake.events().len(), 2);
}

#[tokio::test]
async fn large_bodies_are_refused_announced_or_not() {
    let h = house(0);
    let large = format!(
        "method1=objects.create&arg1={{\"cmd\":\"{}\"}}",
        "x".repeat(1024 * 1024)
    );
    let announced = large.len().to_string();
    for headers in [&[][..], &[("content-length", announced.as_str())]] {
        let answer = h.open(EVENTS, headers, &large).await;
        assert_eq!(answer.status, 413, "{}", answer.text);
        assert!(answer.json()["error"].is_string());
    }
}

#[tokio::test]
async fn a_database_that_is_away_is_said_and_nothing_is_promised() {
    let h = house(0);
    h.fake.broken.store(true, Ordering::SeqCst);
    let answer = h.open(EVENTS, &[], DOCUMENTED).await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains_key("retry-after"));
    assert!(
        answer.json()["error"]
            .as_str()
            .unwrap()
            .contains("database")
    );
    assert_eq!(get(&h, "127.0.0.1", "/healthz").await.0, 200);
    assert_eq!(get(&h, "127.0.0.1", "/readyz").await.0, 503);
    assert_eq!(get(&h, "127.0.0.1", "/metrics").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_given_up() {
    let h = house(0);
    for path in [EVENTS, "/api/v1/events", "/api/v1/events/bulk"] {
        let request = Request::post(path)
            .header("authorization", "Bearer t-operator")
            .body(Body::new(Never))
            .unwrap();
        assert_eq!(h.send(request).await.status, 408, "{path}");
    }
}

/// A body of which nothing ever comes.
struct Never;

impl hyper::body::Body for Never {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<bytes::Bytes>>>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_stuck_database_is_not_ready_and_does_not_hang_the_answer() {
    let h = house(0);
    assert_eq!(get(&h, "192.0.2.1", "/readyz").await.0, 200);
    let h = house(0);
    h.fake.stuck.store(true, Ordering::SeqCst);
    assert_eq!(get(&h, "192.0.2.1", "/healthz").await.0, 200);
    let (status, text) = get(&h, "192.0.2.1", "/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("did not answer within"), "{text}");
}

async fn get(h: &House, ip: &str, path: &str) -> (u16, String) {
    let mut request = Request::get(path).body(Body::empty()).unwrap();
    let peer = Peer::Tcp(format!("{ip}:4000").parse().unwrap());
    request.extensions_mut().insert(peer);
    let answer = h.send(request).await;
    (answer.status, answer.text)
}

#[tokio::test]
async fn metrics_are_for_loopback_and_tokens() {
    let h = house(0);
    h.fake.main.store(17, Ordering::SeqCst);
    h.open(EVENTS, &[], DOCUMENTED).await;
    let (status, text) = get(&h, "127.0.0.1", "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "nas_event_daemon_http_requests_total{handler=\"/rest_api/v2/{model}/\",method=\"POST\",code=\"200\"}",
        "nas_event_daemon_http_request_duration_seconds_bucket",
        "nas_event_daemon_events_received_total{source=\"rest\",cmd=\"user_redirect_cancel\"}",
        "nas_event_daemon_stack_events{stack=\"main\",cmd=\"user_add\"} 17",
        "nas_event_daemon_build_info{version=",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert_eq!(get(&h, "10.1.2.3", "/metrics").await.0, 401);
    assert_eq!(h.with("viewer", "GET", "/metrics", "").await.status, 200);
    let mut proxied = Request::get("/metrics")
        .header("x-forwarded-for", "8.8.8.8")
        .body(Body::empty())
        .unwrap();
    proxied
        .extensions_mut()
        .insert(Peer::Tcp("127.0.0.1:4000".parse().unwrap()));
    assert_eq!(h.send(proxied).await.status, 401);
}

#[tokio::test]
async fn above_the_high_water_mark_producers_are_told_to_wait() {
    let h = house(10);
    let waits = &DOCUMENTED.replace("_cancel", "");
    h.fake.main.store(10, Ordering::SeqCst);
    assert_eq!(
        h.with("viewer", "GET", "/api/v1/status", "").await.status,
        200
    );
    let answer = h.open(EVENTS, &[], waits).await;
    assert_eq!(answer.status, 429, "{}", answer.text);
    assert_eq!(answer.head["retry-after"], "5");
    assert!(h.fake.events().is_empty());
    h.fake.main.store(0, Ordering::SeqCst);
    let eased = async {
        while h.open(EVENTS, &[], waits).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, eased).await.unwrap();
    // What comes between two counts counts too.
    let mut taken = 0;
    while h.open(EVENTS, &[], waits).await.status == 200 {
        taken += 1;
        assert!(taken <= 10);
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_leave_a_change_half_done() {
    let h = house(0);
    h.fake.gate.forget_permits(usize::MAX);
    tokio::select! {
        _ = h.open(EVENTS, &[], DOCUMENTED) => panic!("answered before it was stored"),
        () = h.fake.arrived(1) => {}
    }
    h.fake.gate.add_permits(1);
    assert!(rung(&h.wake, true).await);
    let audited = async {
        while h.fake.audit_lines().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, audited).await.unwrap();
}
