//! The doors of a running daemon: the mark above which producers wait, what an event, a log and a
//! NAS tell, plans, and a thousand slow clients.

use std::io::ErrorKind;
use std::time::Duration;

use nas_event_daemon::intake::tails::STREAMS_MAX;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::lab::daemon::{Daemon, Lab, PATIENCE, SECRET};
use crate::lab::db::Kind;
use crate::lab::on_each_store;

on_each_store!(
    above_the_mark_producers_wait_and_payers_get_through,
    an_event_tells_its_attempts_and_why_it_waits,
    logs_are_read_and_followed,
    a_nas_is_tested_over_the_api,
    a_plan_says_what_a_call_would_do,
    so_many_logs_are_followed_at_once,
    a_thousand_slow_clients_delay_nobody,
    what_is_nested_too_deep_is_refused_by_every_door,
);

/// A scheme that renders and sends nothing.
pub(crate) const RECORD: &str = "Record";

async fn above_the_mark_producers_wait_and_payers_get_through(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.configure("high_water = 10", "");
    lab.native(
        RECORD,
        "driver = \"record\"\n[[on.user_add]]\ncall = \"/x\"\n",
    );
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, 50..=60).await;
    lab.sql("insert into nas_state (nas_id, paused_until) values (5, '2999-01-01 00:00:00')")
        .await;
    let daemon = lab.start().await;
    // The door counts beside the posts: one that was counted and is then noted counts twice until
    // the next count, and the door shuts an event early.
    for user in 50..=59 {
        let event = json!({ "cmd": "user_rate_set", "user_id": user });
        lab.until("an event is taken", async || {
            let (status, _) = lab.try_post("/api/v1/events", &event, None).await.unwrap();
            (status == 201).then_some(())
        })
        .await;
    }
    let limited = async || {
        let status: Value = serde_json::from_str(&lab.get("/api/v1/status").await).unwrap();
        status["intake"]["limited"].as_bool().unwrap()
    };
    lab.until("the mark is noticed", async || {
        limited().await.then_some(())
    })
    .await;
    // What comes by SQL waits on the compact stack, but for those who paid.
    lab.sql(
        "insert into events_stack_compact (cmd, user_id) values
           ('user_rate_set', 50), ('user_redirect', 60), ('user_redirect_cancel', 60)",
    )
    .await;
    lab.until("the payer on the main stack", async || {
        let rows = "select count(*) from events_stack where user_id = 60";
        (lab.number(rows).await == 2).then_some(())
    })
    .await;
    assert_eq!(
        lab.rows("select cmd, user_id from events_stack_compact")
            .await,
        [["user_rate_set", "50"]]
    );
    let body = json!({ "cmd": "user_add", "user_id": 51 });
    let refused = lab
        .client
        .post(lab.url("/rest_api/v2/EventsStackCompact/"))
        .body(format!("method1=objects.create&arg1={body}"))
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status().as_u16(), 429);
    assert_eq!(refused.headers()["retry-after"], "5");
    assert!(
        refused
            .text()
            .await
            .unwrap()
            .contains("more than 10 events are waiting")
    );
    // Who paid gets through by this door, too.
    let paid = json!({ "cmd": "user_redirect_cancel", "user_id": 51 });
    let (status, answer) = lab.try_post("/api/v1/events", &paid, None).await.unwrap();
    assert_eq!(status, 201, "{answer}");
    lab.until("the payer of the door on the main stack", async || {
        let rows = "select count(*) from events_stack where user_id = 51 and class = 1";
        (lab.number(rows).await == 1).then_some(())
    })
    .await;
    lab.said("only those that give access and questions are expanded")
        .await;
    let metrics = lab.get("/metrics").await;
    assert!(
        metrics.contains("nas_event_daemon_intake_limited 1"),
        "{metrics}"
    );
    let check = lab.ned(&["check"]).await;
    assert!(
        check.contains("CRITICAL") && check.contains("above http.high_water"),
        "{check}"
    );
    let status = lab.ned(&["status"]).await;
    assert!(
        status.contains("limited: above http.high_water"),
        "{status}"
    );
    // Below nine tenths of the mark everything goes on.
    let resume = lab.try_post("/api/v1/nas/5/resume", &json!({}), None).await;
    assert_eq!(resume.unwrap().0, 200);
    lab.drained().await;
    assert!(!limited().await);
    lab.until("the door is open again", async || {
        let (status, _) = lab.try_post("/api/v1/events", &body, None).await.unwrap();
        (status == 201).then_some(())
    })
    .await;
    daemon.stop().await;
}

async fn json_of(lab: &Lab, path: &str) -> Value {
    let text = lab.get(path).await;
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
}

/// A daemon with a NAS that is served, a paused one, and one whose scheme is missing.
async fn small_house(kind: Kind) -> (Lab, Daemon) {
    let lab = Lab::new(kind, "").await;
    lab.native(
        RECORD,
        "driver = \"record\"\n[[on.user_add]]\ncall = \"/x\"\nargs = { ip = \"{{ ip }}\" }\n",
    );
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, RECORD, 2, &[]).await;
    lab.nas(7, "Missing", 2, &[]).await;
    lab.accounts(5, 50..=119).await;
    lab.accounts(6, [600]).await;
    lab.sql("insert into nas_state (nas_id, paused_until, pause_reason) values (6, '2999-01-01 00:00:00', 'works')")
        .await;
    let daemon = lab.start().await;
    lab.until("the dispatcher says what it serves", async || {
        let served = lab.scheduler().await?;
        (served["nases"].as_array()?.len() == 2).then_some(())
    })
    .await;
    (lab, daemon)
}

async fn an_event_tells_its_attempts_and_why_it_waits(kind: Kind) {
    let (lab, daemon) = small_house(kind).await;
    let id = lab.event(50, "user_add").await;
    lab.drained().await;
    let event = lab
        .until("the attempt in the log", async || {
            let event = json_of(&lab, &format!("/api/v1/events/{id}")).await;
            event["attempts"][0]["ended"].is_string().then_some(event)
        })
        .await;
    assert_eq!(event["place"], "done");
    assert_eq!(event["why"], Value::Null);
    let attempts = event["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{event}");
    assert_eq!(attempts[0]["try"], 1);
    assert_eq!(attempts[0]["result"], event["state"]);
    let line = attempts[0]["lines"][0].as_str().unwrap();
    assert!(line.starts_with("> ") && line.contains("/x"), "{line}");
    let waiting = lab.event(600, "user_add").await;
    lab.until("the event on the main stack", async || {
        let event = json_of(&lab, &format!("/api/v1/events/{waiting}")).await;
        let why = event["why"].as_str().unwrap_or_default().to_owned();
        (why.contains("NAS 6 is paused until") && why.ends_with("works")).then_some(())
    })
    .await;
    daemon.stop().await;
}

async fn logs_are_read_and_followed(kind: Kind) {
    let (lab, daemon) = small_house(kind).await;
    let first = lab.event(50, "user_add").await;
    lab.drained().await;
    for path in ["nas/5", "accounts/50"] {
        lab.until("the end in the log", async || {
            let tail = json_of(&lab, &format!("/api/v1/logs/{path}?lines=1")).await;
            let lines = tail["lines"].as_array().unwrap();
            let last = lines.first()?.as_str().unwrap();
            (lines.len() == 1
                && last.contains(&format!("event={first} "))
                && last.contains("end result="))
            .then_some(())
        })
        .await;
    }
    let text = lab.get("/api/v1/logs/daemon?lines=1000").await;
    assert!(text.contains("Start work with nas nasid=5"), "{text}");
    assert!(lab.get("/api/v1/logs/nas/77").await.contains("not_found"));
    assert!(
        lab.get("/api/v1/logs/accounts/7777")
            .await
            .contains("not_found")
    );
    assert!(
        lab.get("/api/v1/logs/daemon?lines=1001")
            .await
            .contains("lines is outside")
    );

    let mut stream = lab
        .stream("/api/v1/logs/accounts/51?follow=true&lines=0")
        .await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let second = lab.event(51, "user_add").await;
    let mark = format!("event={second} user=51 cmd=user_add try=1 end result=");
    let mut got = String::new();
    let read = async {
        while !got.contains(&mark) {
            got.push_str(&String::from_utf8_lossy(
                &stream.chunk().await.unwrap().unwrap(),
            ));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    assert!(got.contains("event: lines\ndata: "), "{got}");
    // A followed log does not keep the daemon from stopping.
    daemon.stop().await;
}

async fn a_nas_is_tested_over_the_api(kind: Kind) {
    let (lab, daemon) = small_house(kind).await;
    let (status, told) = lab
        .try_post("/api/v1/nas/5/test", &json!({}), None)
        .await
        .unwrap();
    assert_eq!(
        (status, &told["well"], &told["code"]),
        (200, &json!(true), &json!(0)),
        "{told}"
    );
    assert!(
        told["said"][0].as_str().unwrap().contains("sends nothing"),
        "{told}"
    );
    let (status, told) = lab
        .try_post("/api/v1/nas/7/test", &json!({}), None)
        .await
        .unwrap();
    assert_eq!((status, &told["well"]), (200, &json!(false)), "{told}");
    assert!(
        told["error"].as_str().unwrap().contains("NAS 7 is skipped"),
        "{told}"
    );
    let (status, _) = lab
        .try_post("/api/v1/nas/77/test", &json!({}), None)
        .await
        .unwrap();
    assert_eq!(status, 404);
    let audit = lab
        .rows("select detail from audit where what = 'nas_test' order by id")
        .await;
    assert_eq!(audit, [["nas=5 well=true"], ["nas=7 well=false"]]);
    daemon.stop().await;
}

async fn a_plan_says_what_a_call_would_do(kind: Kind) {
    let (lab, daemon) = small_house(kind).await;
    let before = lab.number("select count(*) from events_done").await;
    let cut: Vec<Value> = (50..110)
        .map(|user| json!({ "cmd": "user_drop", "user_id": user }))
        .chain([
            json!({ "cmd": "user_add", "user_id": 600 }),
            json!({ "cmd": "user_add", "user_id": 9999 }),
        ])
        .collect();
    let body = json!({ "events": cut });
    let (status, plan) = lab
        .try_post("/api/v1/events?plan=true", &body, None)
        .await
        .unwrap();
    assert_eq!(status, 200, "{plan}");
    assert_eq!(
        (
            &plan["events"],
            &plan["unknown_accounts"],
            &plan["without_nas"]
        ),
        (&json!(62), &json!(1), &json!(1))
    );
    assert_eq!(plan["by_cmd"], json!({ "user_add": 2, "user_drop": 60 }));
    let nas = plan["nas"].as_array().unwrap();
    assert_eq!(nas.len(), 2, "{plan}");
    assert_eq!(
        (&nas[0]["nas_id"], &nas[0]["events"], &nas[0]["forks"]),
        (&json!(5), &json!(60), &json!(2))
    );
    // Nothing was measured: 30 rounds of the norm, 300 ms.
    assert_eq!(
        (&nas[0]["measured"], &nas[0]["seconds"], &plan["seconds"]),
        (&json!(false), &json!(9), &json!(9))
    );
    assert!(
        nas[1]["stands_still"].as_str().unwrap().contains("paused"),
        "{plan}"
    );
    assert_eq!(
        (&plan["guard"]["mode"], &plan["guard"]["beyond"]),
        (&json!("warn"), &json!(10)),
        "{plan}"
    );
    assert!(
        plan["guard"]["says"][0]
            .as_str()
            .unwrap()
            .contains("60 accounts within a minute")
    );
    let lines: String = cut.iter().map(|e| format!("{e}\n")).collect::<String>() + "{\"cmd\":1}\n";
    let bulk = lab
        .client
        .post(lab.url("/api/v1/events/bulk?plan=true"))
        .bearer_auth("token-of-the-lab")
        .body(lines)
        .send()
        .await
        .unwrap();
    assert_eq!(bulk.status().as_u16(), 200);
    let bulk: Value = bulk.json().await.unwrap();
    assert_eq!(
        (
            &bulk["events"],
            &bulk["rejected_total"],
            &bulk["rejected"][0]["line"]
        ),
        (&json!(62), &json!(1), &json!(63))
    );
    assert_eq!(bulk["nas"], plan["nas"]);
    // Nothing was stored.
    assert_eq!(lab.waiting().await, 0);
    assert_eq!(lab.number("select count(*) from events_done").await, before);
    daemon.stop().await;
}

async fn so_many_logs_are_followed_at_once(kind: Kind) {
    let (lab, daemon) = small_house(kind).await;
    let follow = async || lab.stream("/api/v1/logs/daemon?follow=true&lines=0").await;
    let mut followed = Vec::new();
    for _ in 0..STREAMS_MAX {
        let stream = follow().await;
        assert_eq!(stream.status().as_u16(), 200);
        followed.push(stream);
    }
    let refused = follow().await;
    assert_eq!(refused.status().as_u16(), 429);
    assert_eq!(refused.headers()["retry-after"], "5");
    let refused = refused.text().await.unwrap();
    assert!(refused.contains("too_many_tails"), "{refused}");
    // A look without following takes no place, and a place that was left is free again.
    let lines = json_of(&lab, "/api/v1/logs/daemon?lines=1").await;
    assert!(lines["lines"].is_array(), "{lines}");
    drop(followed.pop());
    lab.until("the place is free", async || {
        (follow().await.status().as_u16() == 200).then_some(())
    })
    .await;
    daemon.stop().await;
}

/// How many slow clients there are, and how many of them must still be there after a round.
const SLOW: usize = 1_000;
const SLOW_LEAST: usize = 950;

/// A client that begins a head and never ends it.
async fn slow_client(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream
        .write_all(b"POST /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
        .await
        .unwrap();
    stream
}

/// Nothing came from the daemon, an answer or an end.
fn is_open(stream: &TcpStream) -> bool {
    // An answer (408), an end or a reset is there to be read.
    matches!(stream.try_read(&mut [0; 1]), Err(e) if e.kind() == ErrorKind::WouldBlock)
}

async fn a_thousand_slow_clients_delay_nobody(kind: Kind) {
    let (lab, daemon) = small_house(kind).await;
    let mut slow = Vec::new();
    // Twenty answers one after another within 100 ms each, while they drip. Several rounds,
    // because this machine may be busy with other tests, and the daemon closes heads that do not
    // end: only a round through which the thousand stayed counts.
    let mut rounds = Vec::new();
    let calm = async {
        loop {
            slow.retain(is_open);
            while slow.len() < SLOW {
                slow.push(slow_client(lab.port).await);
            }
            let mut worst = Duration::ZERO;
            for _ in 0..20 {
                for stream in slow.iter_mut().take(50) {
                    let _ = stream.write_all(b"a").await;
                }
                slow.rotate_left(50);
                let began = nas_event_daemon::clock::tick_ms();
                assert!(lab.is_up().await);
                let took = nas_event_daemon::clock::tick_ms() - began;
                worst = worst.max(Duration::from_millis(took));
            }
            let open = slow.iter().filter(|stream| is_open(stream)).count();
            rounds.push((worst, open));
            if worst < Duration::from_millis(100) && open >= SLOW_LEAST {
                return;
            }
        }
    };
    let calm = tokio::time::timeout(PATIENCE, calm).await;
    assert!(
        calm.is_ok(),
        "worst answer and open sockets of each round: {rounds:?}"
    );
    drop(slow);
    daemon.stop().await;
}

async fn what_is_nested_too_deep_is_refused_by_every_door(kind: Kind) {
    let (lab, daemon) = small_house(kind).await;
    let event = |lists: usize| {
        let (open, shut) = ("[".repeat(lists), "]".repeat(lists));
        format!(r#"{{"cmd":"user_add","user_id":600,"params":{{"a":{open}{shut}}}}}"#)
    };
    // Event and params are two levels, a list of events and its call two more, text that goes on
    // opening lists for as long as a body may be any number.
    let deepest = event(30);
    let endless = format!(
        r#"{{"cmd":"user_add","params":{{"a":{}"#,
        "[".repeat(900_000)
    );
    let classic = |event: &str| format!("method1=objects.create&arg1={event}");
    const CLASSIC: &str = "/rest_api/v2/EventsStackCompact/";
    let call = async |path: &str, body: String| {
        let sent = lab
            .client
            .post(lab.url(path))
            .bearer_auth(SECRET)
            .body(body);
        let answer = sent.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let rows =
        "select (select count(*) from events_stack_compact) + (select count(*) from events_stack)
        + (select count(*) from events_done) + (select count(*) from events_dead)
        + (select count(*) from audit)";
    let before = lab.number(rows).await;
    for (path, body) in [
        ("/api/v1/events", event(31)),
        ("/api/v1/events", format!(r#"{{"events":[{deepest}]}}"#)),
        ("/api/v1/events", endless.clone()),
        ("/api/v1/events/bulk", event(31)),
        ("/api/v1/events/retry", event(31)),
        ("/api/v1/nas/6/pause", event(31)),
        (CLASSIC, classic(&event(31))),
        (CLASSIC, classic(&endless)),
    ] {
        let (status, said) = call(path, body).await;
        assert_eq!(status, 400, "{path}: {said}");
        assert!(
            said.contains("nested deeper than 32 levels"),
            "{path}: {said}"
        );
    }
    assert_eq!(lab.number(rows).await, before);
    // The control: one level less is taken by the same doors; of a bulk only the line is refused.
    let (status, said) = call("/api/v1/events", deepest.clone()).await;
    assert_eq!(status, 201, "{said}");
    let (status, said) = call(CLASSIC, classic(&deepest)).await;
    assert_eq!(status, 200, "{said}");
    let lines = format!("{}\n{deepest}\n", event(31));
    let (status, said) = call("/api/v1/events/bulk", lines).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((status, &said["accepted"]), (200, &json!(1)), "{said}");
    let line = &said["rejected"][0];
    assert_eq!(line["line"], 1, "{said}");
    assert!(line["error"].to_string().contains("deeper"), "{said}");
    assert!(lab.number(rows).await > before);
    daemon.stop().await;
}
