//! `/api/v1/`: posting, waiting, looking, retrying, dropping, pausing, bulk calls, and the
//! document that describes it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::Request;
use hyper::body::Frame;
use nas_event_daemon::intake::openapi;
use nas_event_daemon::nas::NasId;
use nas_event_daemon::store::WhereIs;
use serde_json::{Value, json};

use crate::fake::{Answer, House, LONG, house, rung};

const EVENTS: &str = "/api/v1/events";

#[tokio::test]
async fn posting_one_and_many() {
    let h = house(0);
    let one = h
        .with(
            "operator",
            "POST",
            EVENTS,
            r#"{"user_id":1424,"cmd":"user_add"}"#,
        )
        .await;
    assert_eq!((one.status, one.json()), (201, json!({"ids": [1]})));
    let many =
        r#"{"events":[{"user_id":1,"cmd":"user_add"},{"nas_id":1116,"cmd":"users_from_nas"}]}"#;
    let answer = h.with("operator", "POST", EVENTS, many).await;
    assert_eq!(answer.json(), json!({"ids": [2, 3]}));
    assert!(rung(&h.wake, false).await);
    assert_eq!(h.fake.events()[0].source.as_deref(), Some("crm-operator"));
    let crowd = format!(
        r#"{{"events":[{}]}}"#,
        vec![r#"{"user_id":1,"cmd":"user_add"}"#; 5_001].join(",")
    );
    let cases = [
        (crowd.as_str(), "5001 events in one call"),
        ("", "not JSON"),
        ("[]", "an event is an object"),
        (r#"{"events":{}}"#, "events is not a list"),
        (r#"{"events":[],"x":1}"#, "no other key"),
        (r#"{"events":[]}"#, "0 events"),
        (
            r#"{"events":[{"user_id":1,"cmd":"user_add"},{"cmd":"user_add"}]}"#,
            "events[1]: user_id is missing",
        ),
        (
            r#"{"user_id":1,"user_id":2,"cmd":"user_add"}"#,
            "given twice",
        ),
    ];
    for (body, text) in cases {
        let answer = h.with("operator", "POST", EVENTS, body).await;
        assert_eq!(answer.status, 400, "{body}");
        let error = &answer.json()["error"];
        assert!(
            error["message"].as_str().unwrap().contains(text),
            "{body}: {error}"
        );
        assert!(error["code"].is_string() && error["hint"].is_string());
    }
    assert_eq!(h.fake.events().len(), 3);
    let support = h
        .with(
            "support",
            "POST",
            EVENTS,
            r#"{"user_id":1,"cmd":"user_del"}"#,
        )
        .await;
    assert_eq!(support.status, 403);
    assert_eq!(support.json()["error"]["code"], "scope_too_narrow");
}

#[tokio::test]
async fn waiting_for_the_answer() {
    let h = house(0);
    let body = r#"{"user_id":1424,"cmd":"user_info"}"#;
    let fake = Arc::clone(&h.fake);
    let done = async {
        h.wake.notified().await;
        fake.end(1, WhereIs::Done, Some("uptime 3d"));
    };
    let path = format!("{EVENTS}?wait=60s");
    let (answer, ()) = tokio::join!(h.with("support", "POST", &path, body), done);
    assert_eq!(answer.status, 201, "{}", answer.text);
    let answer = answer.json();
    assert_eq!(answer["final"], true);
    assert_eq!(answer["events"][0]["answer"], "uptime 3d");
    let late = h
        .with("support", "POST", &format!("{EVENTS}?wait=20ms"), body)
        .await;
    assert_eq!(late.status, 201);
    assert_eq!(late.json()["final"], false);
    for bad in ["wait=1h", "wait=x", "weight=1s"] {
        let answer = h
            .with("support", "POST", &format!("{EVENTS}?{bad}"), body)
            .await;
        assert_eq!(answer.status, 400, "{bad}");
    }
    assert_eq!(h.fake.events().len(), 2);
}

#[tokio::test]
async fn places_to_wait_are_bounded_and_nothing_is_stored_without_one() {
    let h = house(0);
    let body = r#"{"user_id":1,"cmd":"user_info"}"#;
    let path = format!("{EVENTS}?wait=60s");
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let request = Request::post(&path)
            .header("authorization", "Bearer t-support")
            .body(Body::from(body))
            .unwrap();
        let router = h.router.clone();
        waiting.spawn(async move { tower::ServiceExt::oneshot(router, request).await });
    }
    let all = async {
        while h.fake.events().len() < 64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, all).await.unwrap();
    let answer = h.with("support", "POST", &path, body).await;
    assert_eq!(answer.status, 429);
    assert_eq!(h.fake.events().len(), 64);
    waiting.shutdown().await;
    assert_eq!(
        h.with("support", "POST", &format!("{EVENTS}?wait=1ms"), body)
            .await
            .status,
        201
    );
}

#[tokio::test]
async fn lists_pages_and_details() {
    let h = house(0);
    for _ in 0..5 {
        h.with(
            "operator",
            "POST",
            EVENTS,
            r#"{"user_id":7,"cmd":"user_add"}"#,
        )
        .await;
    }
    let page = h
        .with("viewer", "GET", &format!("{EVENTS}?user=7&limit=2"), "")
        .await
        .json();
    let ids = |page: &Value| -> Vec<i64> {
        let events = page["events"].as_array().unwrap();
        events.iter().map(|e| e["id"].as_i64().unwrap()).collect()
    };
    assert_eq!(ids(&page), [5, 4]);
    assert_eq!(page["next_before"], 4);
    assert!(page["events"][0].get("answer").is_none());
    let last = h
        .with("viewer", "GET", &format!("{EVENTS}?before=2&limit=2"), "")
        .await
        .json();
    assert_eq!((ids(&last), &last["next_before"]), (vec![1], &Value::Null));
    for bad in [
        "state=lost",
        "limit=0",
        "limit=1001",
        "user=x",
        "nass=1",
        "cmd=%00",
    ] {
        let answer = h
            .with("viewer", "GET", &format!("{EVENTS}?{bad}"), "")
            .await;
        assert_eq!(answer.status, 400, "{bad}");
    }
    let one = h.with("viewer", "GET", "/api/v1/events/3", "").await.json();
    assert_eq!(one["cmd"], "user_add");
    assert_eq!(
        h.with("viewer", "GET", "/api/v1/events/99", "")
            .await
            .status,
        404
    );
    assert_eq!(
        h.with("viewer", "GET", "/api/v1/events/x", "").await.status,
        400
    );
}

#[tokio::test]
async fn retry_and_drop() {
    let h = house(0);
    for _ in 0..3 {
        h.with(
            "operator",
            "POST",
            EVENTS,
            r#"{"user_id":7,"cmd":"user_add"}"#,
        )
        .await;
    }
    h.fake.end(2, WhereIs::Dead, None);
    h.fake.rows.lock().unwrap().get_mut(&3).unwrap().state = "running".to_owned();
    assert!(rung(&h.wake, false).await);
    let post = async |path: &str, body: &str| -> Answer {
        h.with("operator", "POST", &format!("{EVENTS}/{path}"), body)
            .await
    };
    let retried = post("2/retry", "").await;
    assert_eq!(
        (retried.status, retried.json()),
        (201, json!({"id": 102, "retried_from": 2}))
    );
    assert!(rung(&h.wake, false).await);
    assert_eq!(post("1/retry", "").await.status, 409);
    assert_eq!(post("9/retry", "").await.status, 404);
    assert_eq!(
        post("1/drop", r#"{"why":"sent by mistake"}"#).await.status,
        200
    );
    let why = h.fake.rows.lock().unwrap()[&1].error.clone();
    assert_eq!(why.as_deref(), Some("crm-operator: sent by mistake"));
    assert_eq!(post("3/drop", "").await.status, 409);
    assert_eq!(post("9/drop", "").await.status, 404);
    assert_eq!(post("2/drop", r#"{"cause":"x"}"#).await.status, 400);
    let audits = h.fake.audit_lines();
    assert!(
        audits.contains(&"crm-operator retry event=2 as=102".to_owned()),
        "{audits:?}"
    );
    assert!(audits.contains(&"crm-operator drop event=1 why=\"sent by mistake\"".to_owned()));
    for path in ["2/retry", "2/drop"] {
        let answer = h
            .with("support", "POST", &format!("{EVENTS}/{path}"), "")
            .await;
        assert_eq!(answer.status, 403);
    }
}

#[tokio::test]
async fn nas_list_pause_resume_reload_status() {
    let h = house(0);
    let list = h.with("viewer", "GET", "/api/v1/nas", "").await;
    assert!(!list.text.contains("servicemode"), "{}", list.text);
    let nas = &list.json()["nas"];
    assert_eq!(
        (&nas[0]["id"], &nas[0]["paused"]),
        (&json!(1116), &json!(false))
    );
    assert_eq!(nas[0]["http_url"], "https://admin@10.90.185.2/");
    assert_eq!(nas[1]["error"], "mode is 'x'");
    let order = r#"{"reason":"new board","for":"30m"}"#;
    let paused = h
        .with("operator", "POST", "/api/v1/nas/1116/pause", order)
        .await
        .json();
    assert_eq!(
        (&paused["paused"], &paused["pause_reason"]),
        (&json!(true), &json!("new board"))
    );
    assert!(paused["paused_until"].is_string());
    assert!(rung(&h.reload, false).await);
    h.fake
        .states
        .lock()
        .unwrap()
        .get_mut(&NasId(1116))
        .unwrap()
        .forks = Some(3);
    let resumed = h
        .with("operator", "POST", "/api/v1/nas/1116/resume", "")
        .await
        .json();
    assert_eq!(
        (&resumed["paused"], &resumed["forks_override"]),
        (&json!(false), &json!(3))
    );
    let forever = h
        .with("operator", "POST", "/api/v1/nas/1116/pause", "")
        .await
        .json();
    assert_eq!(
        (&forever["paused"], &forever["paused_until"]),
        (&json!(true), &Value::Null)
    );
    for (path, body, status) in [
        ("/api/v1/nas/5/pause", "", 404),
        ("/api/v1/nas/7/pause", "", 200),
        ("/api/v1/nas/1116/pause", r#"{"for":"soon"}"#, 400),
        ("/api/v1/nas/1116/pause", "[]", 400),
        ("/api/v1/nas/x/resume", "", 400),
        ("/api/v1/reload", "", 202),
    ] {
        let answer = h.with("operator", "POST", path, body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text);
    }
    assert!(rung(&h.reload, false).await);
    let audits = h.fake.audit_lines();
    let pause = "crm-operator nas_pause nas=1116 for=\"30m\" reason=\"new board\"";
    assert!(audits.contains(&pause.to_owned()), "{audits:?}");
    assert!(audits.contains(&"crm-operator nas_resume nas=1116".to_owned()));
    assert!(audits.contains(&"crm-operator reload ".to_owned()));
    h.fake.main.store(5, Ordering::SeqCst);
    let status = h.with("viewer", "GET", "/api/v1/status", "").await.json();
    assert_eq!(status["main"]["user_add"], 5);
    assert_eq!(
        status["by_nas"][0],
        json!({"nas_id": 1116, "state": "ready", "events": 5})
    );
    let fresh = h
        .with(
            "operator",
            "POST",
            EVENTS,
            r#"{"user_id":7,"cmd":"user_add"}"#,
        )
        .await;
    assert_eq!(fresh.status, 201);
    assert_eq!(
        h.with("viewer", "GET", "/api/v1/status", "").await.json()["compact"],
        1
    );
}

async fn bulk(h: &House, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let mut request =
        Request::post("/api/v1/events/bulk").header("authorization", "Bearer t-operator");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    h.send(request.body(body.into()).unwrap()).await
}

#[tokio::test]
async fn bulk_lines_wrong_ones_hurt_no_other() {
    let h = house(0);
    let body = "{\"user_id\":1,\"cmd\":\"user_add\"}\n\n{\"user_id\":2}\nnonsense\r\n{\"user_id\":3,\"cmd\":\"user_del\"}";
    let answer = bulk(&h, &[], body).await;
    assert_eq!(answer.status, 200);
    let said = answer.json();
    assert_eq!(
        (&said["accepted"], &said["rejected_total"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(
        said["rejected"][0],
        json!({"line": 3, "error": "cmd is missing"})
    );
    assert_eq!(said["rejected"][1]["line"], 4);
    let batch = said["batch_id"].as_str().unwrap().to_owned();
    let events = h.fake.events();
    assert!(events.iter().all(|e| e.batch_id.as_ref() == Some(&batch)));
    assert!(rung(&h.wake, false).await);

    let csv = "cmd,user_id,nas_id,params\nuser_add,5,,\"{\"\"ip\"\":\"\"10.0.0.1\"\"}\"\nuser_drop,,1116,\nuser_add,6\n";
    let answer = bulk(&h, &[("content-type", "text/csv")], csv).await.json();
    assert_eq!(answer["accepted"], 1, "{answer}");
    assert_eq!(
        answer["rejected"][0]["error"],
        "user_id is empty: that would be an event of the whole NAS; post such ones in a file without the column user_id, or as JSON"
    );
    assert_eq!(
        answer["rejected"][1]["error"],
        "has 2 values, the header has 4"
    );
    assert_eq!(
        h.fake.events()[2].params.as_ref().unwrap()["ip"],
        "10.0.0.1"
    );

    for (body, text) in [
        ("", "holds no event"),
        ("{\"user_id\":2}", "all 1 lines"),
        ("cmd,speed\na,b", "\"speed\" is not a field"),
        ("cmd,cmd\na,b", "cmd is given twice"),
    ] {
        let answer = bulk(&h, &[], body).await;
        assert_eq!(answer.status, 400, "{body}");
        let said = answer.json();
        assert!(
            said["error"]["message"].as_str().unwrap().contains(text),
            "{said}"
        );
        assert_eq!(said["accepted"], 0);
    }
}

#[tokio::test]
async fn bulk_goes_in_thousands_and_a_repeated_call_adds_nothing() {
    let h = house(0);
    let lines: String = (0..2_500)
        .map(|user| format!("{{\"user_id\":{user},\"cmd\":\"user_add\"}}\n"))
        .collect();
    let key = [("idempotency-key", "night")];
    let first = bulk(&h, &key, lines.clone()).await.json();
    let again = bulk(&h, &key, lines.clone()).await.json();
    assert_eq!(first, again);
    let sizes: Vec<_> = h.fake.posts.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1_000, 1_000, 500]);
    let order: Vec<_> = h.fake.events().iter().filter_map(|e| e.user_id).collect();
    assert!(order.is_sorted());
    let other = bulk(&h, &key, lines.replacen(":5,", ":6,", 1)).await;
    assert_eq!(other.status, 409);
    assert_eq!(h.fake.events().len(), 2_500);
}

/// A body that breaks off after its first part.
struct BrokenOff(Option<String>);

impl hyper::body::Body for BrokenOff {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<bytes::Bytes>>>> {
        Poll::Ready(Some(match self.0.take() {
            Some(part) => Ok(Frame::data(part.into())),
            None => Err(std::io::Error::other("the line went dead")),
        }))
    }
}

fn broken_off(part: String) -> Body {
    Body::new(BrokenOff(Some(part)))
}

#[tokio::test]
async fn a_small_upload_that_breaks_off_stores_nothing_and_a_large_one_says_how_much() {
    let h = house(0);
    let line = "{\"user_id\":1,\"cmd\":\"user_add\"}\n";
    let small = bulk(&h, &[], broken_off(line.repeat(1_500))).await;
    assert_eq!(small.status, 400, "{}", small.text);
    assert!(h.fake.events().is_empty());
    let large = bulk(&h, &[], broken_off(line.repeat(40_000))).await.json();
    assert!(
        large["error"]["message"]
            .as_str()
            .unwrap()
            .contains("broke off"),
        "{large}"
    );
    let stored = h.fake.events().len();
    assert!(stored >= 19_000, "{stored}");
    assert_eq!(large["accepted"], stored);
    assert!(
        large["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("are stored")
    );
}

#[tokio::test]
async fn a_line_that_is_too_long_is_one_wrong_line() {
    let h = house(0);
    let long = "x".repeat(64 * 1024 + 1);
    let body = format!(
        "{{\"user_id\":1,\"cmd\":\"user_add\"}}\n{long}\n{{\"user_id\":2,\"cmd\":\"user_add\"}}\n"
    );
    let said = bulk(&h, &[], body).await.json();
    assert_eq!(said["accepted"], 2);
    assert_eq!(
        said["rejected"],
        json!([{"line": 2, "error": "is longer than 65536 bytes"}])
    );
}

#[tokio::test]
async fn the_document_is_true_and_every_path_is_guarded() {
    let h = house(0);
    let served = h
        .with("viewer", "GET", "/api/openapi.json", "")
        .await
        .json();
    assert_eq!(served, openapi::document());
    let open = ["/healthz", "/readyz", "/api/openapi.json"];
    let mut seen = 0;
    for (path, item) in served["paths"].as_object().unwrap() {
        let real = path
            .replace("{id}", "1")
            .replace("{batch}", "b")
            .replace("{model}", "EventsStack");
        for method in ["get", "post", "put", "delete"] {
            let known = item.get(method).is_some();
            let request = Request::builder()
                .method(method.to_uppercase().as_str())
                .uri(&real)
                .body(Body::from("{}"))
                .unwrap();
            let without = h.send(request).await.status;
            let want = match (known, open.contains(&path.as_str())) {
                (true, true) => 200,
                (true, false) => 401,
                (false, _) => 405,
            };
            assert_eq!(without, want, "{method} {path}");
            seen += usize::from(known);
        }
    }
    assert_eq!(
        seen, 32,
        "a path was added to the document or taken from it"
    );
    // Who may say why may call it `reason`, and each change takes it.
    let mut reasons = 0;
    for (path, item) in served["paths"].as_object().unwrap() {
        let body = "/post/requestBody/content/application~1json/schema/properties";
        let Some(body) = item.pointer(body) else {
            continue;
        };
        assert_eq!(body.get("why"), body.get("reason"), "{path}");
        reasons += usize::from(body.get("reason").is_some());
    }
    assert_eq!(reasons, 9, "a body that says why");
    // Nor is a path in the router that the document does not know.
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/intake/rest.rs");
    let source = std::fs::read_to_string(source).unwrap();
    let routes = source.split(".route(").skip(1).map(|rest| {
        let path = rest.split('"').nth(1).unwrap();
        path.trim_end_matches('/').to_owned()
    });
    let known: std::collections::BTreeSet<String> = served["paths"]
        .as_object()
        .unwrap()
        .keys()
        .map(|path| path.trim_end_matches('/').to_owned())
        .collect();
    let routes: std::collections::BTreeSet<String> = routes.collect();
    assert_eq!(routes, known);
    for (path, status) in [("/", 404), ("/api/v1/", 404), ("/api/v1/events/1/2", 404)] {
        let answer = h.with("admin", "GET", path, "").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.json()["error"]["code"], "no_such_path");
    }
}
