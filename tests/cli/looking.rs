//! What is looked at: logs that are followed and searched, looks that are repeated, the request
//! behind a verb.

use serde_json::Value;

use crate::lab::daemon::{Lab, PATIENCE, account_log_name};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, command, finished, ned};

on_each_store!(
    the_shown_request_does_what_the_verb_does,
    dead_events_are_retried_and_dropped_by_the_shown_request,
    looks_repeat_until_nobody_reads,
    logs_are_followed_and_searched,
    a_full_stack_keeps_no_operator_from_it,
);

async fn the_shown_request_does_what_the_verb_does(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [50]).await;
    let daemon = lab.start().await;
    let run = async |args: &[&str]| -> Value {
        let line = ned(&lab, &[&["--show-request"], args].concat())
            .await
            .fine();
        #[expect(
            clippy::disallowed_methods,
            reason = "an operator's shell is a program"
        )]
        let mut shell = tokio::process::Command::new("sh");
        shell
            .args(["-c", line.trim()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true);
        let said = finished(shell, "").await.fine();
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {line} said {said}"))
    };
    let before = lab.number("select count(*) from audit").await;
    run(&["nas", "pause", "5", "--for", "30m", "--reason", "works"]).await;
    let list = ned(&lab, &["-o", "json", "nas", "list"]).await.json();
    assert!(
        list[0]["note"].as_str().unwrap().contains("works"),
        "{list}"
    );
    assert_eq!(run(&["nas", "show", "5"]).await["paused"], true);
    let posted = run(&[
        "event",
        "post",
        "--user",
        "50",
        "--cmd",
        "user_add",
        "--param",
        "note=it's",
    ])
    .await;
    let id = posted["ids"][0].as_i64().unwrap().to_string();
    lab.until("it waits, with its variables", async || {
        let shown = ned(&lab, &["-o", "json", "event", "show", &id]).await;
        (shown.json()["params"]["note"] == "it's").then_some(())
    })
    .await;
    run(&["nas", "resume", "5"]).await;
    lab.drained().await;
    assert_eq!(run(&["event", "show", &id]).await["state"], "done");
    let listed = run(&["event", "list", "--state", "done", "--user", "50"]).await;
    assert_eq!(listed["events"][0]["id"].to_string(), id, "{listed}");
    run(&["nas", "forks", "5", "7"]).await;
    assert_eq!(
        ned(&lab, &["-o", "json", "nas", "show", "5"]).await.json()["forks_override"],
        7
    );
    run(&["nas", "forks", "5", "default"]).await;
    assert_eq!(
        ned(&lab, &["-o", "json", "nas", "show", "5"]).await.json()["forks_override"],
        Value::Null
    );
    assert!(run(&["status"]).await["version"].is_string());
    assert_eq!(run(&["health", "deep"]).await["compact"], 0);
    run(&["nas", "observe", "5", "--reason", "trial"]).await;
    assert_eq!(run(&["nas", "show", "5"]).await["mode_override"], "observe");
    run(&["nas", "mode", "5", "default"]).await;
    assert_eq!(
        run(&["nas", "show", "5"]).await["mode_override"],
        Value::Null
    );
    assert_eq!(run(&["nas", "test", "5"]).await["well"], true);
    let tail = run(&["nas", "log", "5", "-n", "1"]).await;
    assert_eq!(tail["lines"].as_array().unwrap().len(), 1, "{tail}");
    let tail = run(&["account", "log", "50"]).await.to_string();
    assert!(tail.contains("user_add"), "{tail}");
    let history = ["account", "history", "50", "--from", "2999-01-01"];
    assert_eq!(run(&history).await["events"], serde_json::json!([]));
    let many = lab.path("many.jsonl");
    std::fs::write(&many, "{\"cmd\":\"user_auth\",\"user_id\":50}\n").unwrap();
    let many = many.display().to_string();
    let bulk = run(&["event", "bulk", &many, "--batch", "mine", "--key", "k1"]).await;
    assert_eq!(
        (&bulk["accepted"], &bulk["batch_id"]),
        (&Value::from(1), &Value::from("mine"))
    );
    assert!(run(&["audit"]).await.to_string().contains("nas_pause"));
    // Showing does nothing.
    let after = lab.number("select count(*) from audit").await;
    ned(&lab, &["--show-request", "nas", "pause", "5"])
        .await
        .fine();
    assert!(after > before);
    assert_eq!(lab.number("select count(*) from audit").await, after);
    ned(&lab, &["--show-request", "scheme", "list"])
        .await
        .failed(2, &["no call of the API"]);
    daemon.kill_9().await;
}

/// A line for each event, or one for all that match; what the API cannot say is refused.
async fn dead_events_are_retried_and_dropped_by_the_shown_request(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.session("Bad", "user_add() { exit 3; }\nuser_drop() { exit 3; }\n");
    lab.nas(5, "Bad", 2, &[]).await;
    lab.accounts(5, [50, 51, 52, 53]).await;
    let daemon = lab.start().await;
    let mut ids = Vec::new();
    for (user, cmd) in [
        (50, "user_add"),
        (51, "user_add"),
        (52, "user_drop"),
        (53, "user_drop"),
    ] {
        let id = lab.event(user, cmd).await;
        assert_eq!(lab.ended(id).await.0, "dead");
        ids.push(id.to_string());
    }
    let lines = async |words: &[&str]| -> Vec<String> {
        let said = ned(&lab, &[&["--show-request"], words].concat())
            .await
            .fine();
        said.lines().map(str::to_owned).collect()
    };
    let dead = "select count(*) from events_dead where retried_as is null";
    let run = async |line: &str| -> Value {
        let shell = crate::judge("sh", &["-c", line]);
        finished(shell, "").await.json()
    };
    // Two by number.
    let two = lines(&[
        "event",
        "retry",
        &ids[0],
        &ids[1],
        "--reason",
        "pool is back",
    ])
    .await;
    assert_eq!(two.len(), 2, "{two:?}");
    assert_eq!(lab.number(dead).await, 4, "showing does nothing");
    for (line, id) in two.iter().zip(&ids) {
        assert_eq!(run(line).await["retried_from"].to_string(), *id);
    }
    // All that match, by a filter.
    let one = lines(&[
        "event",
        "drop",
        "--state",
        "dead",
        "--cmd",
        "user_drop",
        "-y",
    ])
    .await;
    assert_eq!(one.len(), 1, "{one:?}");
    assert_eq!(run(&one[0]).await["dropped"], 2);
    let noted = "select count(*) from audit where what = 'retry' and detail like '%pool is back%'";
    assert_eq!(lab.number(noted).await, 2);
    lab.until("the retried ones die again", async || {
        (lab.number(dead).await == 2).then_some(())
    })
    .await;
    let all = lines(&["event", "retry", "--state", "dead", "--nas", "5"]).await;
    assert_eq!(run(&all[0]).await["retried"], 2);
    for only_here in [
        &["event", "retry", "--state", "dead", "--error", "^x"][..],
        &["event", "drop", "--state", "dead", "--since", "2h"],
        &["nas", "pause", "5", "--at", "2999-01-01 02:00"],
        &["logs", "--grep", "x"],
        &["nas", "reset-breaker", "5"],
    ] {
        ned(&lab, &[&["--show-request"], only_here].concat())
            .await
            .failed(2, &["no call of the API"]);
    }
    daemon.kill_9().await;
}

async fn looks_repeat_until_nobody_reads(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    ned(
        &lab,
        &[
            "--watch", "event", "post", "--user", "1", "--cmd", "user_add",
        ],
    )
    .await
    .failed(2, &["look only"]);
    let mut watch = command(
        "nas_event_daemon",
        &["-o", "plain", "--watch=200ms", "nas", "list"],
    );
    watch.env("NED_CONFIG", lab.path("ned.toml"));
    let mut child = watch.spawn().unwrap();
    let out = child.stdout.take().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(out));
    let reading = async {
        let mut seen = 0;
        while let Some(line) = lines.next_line().await.unwrap() {
            assert!(
                !line.contains('\u{1b}'),
                "no terminal, no colours: {line:?}"
            );
            seen += usize::from(line.starts_with("5\tbras5\t"));
            if seen == 3 {
                break;
            }
        }
        seen
    };
    assert_eq!(tokio::time::timeout(PATIENCE, reading).await.unwrap(), 3);
    drop(lines);
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("it goes on for nobody");
    assert!(status.unwrap().success());
}

async fn logs_are_followed_and_searched(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.session("Bad", "user_add() { exit 3; }\nuser_drop() { :; }\n");
    lab.nas(5, "Bad", 2, &[]).await;
    lab.accounts(5, [50]).await;
    let daemon = lab.start().await;
    let mut follow = command(
        "nas_event_daemon",
        &["logs", "nas", "5", "-f", "--grep", "cmd=user_drop"],
    );
    follow.env("NED_CONFIG", lab.path("ned.toml"));
    lab.event(50, "user_add").await;
    lab.until("the logs are there", async || {
        let nas = ned(&lab, &["logs", "nas", "5"]).await;
        let account = ned(&lab, &["account", "log", "50"]).await;
        (nas.code == 0 && account.code == 0).then_some(())
    })
    .await;
    let mut child = follow.spawn().unwrap();
    let out = child.stdout.take().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(out));
    let mut account = command(
        "nas_event_daemon",
        &["account", "log", "50", "-f", "-n", "1"],
    );
    account.env("NED_CONFIG", lab.path("ned.toml"));
    let mut other = account.spawn().unwrap();
    let out = other.stdout.take().unwrap();
    let mut its = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(out));
    // Through rotations: each record is told once, and none is missing.
    for rotation in 0..3 {
        let id = lab.event(50, "user_drop").await;
        let event = format!("event={id} user=50 cmd=user_drop try=1 ");
        let (start, end) = (format!("{event}start"), format!("{event}end result=done"));
        let told = async {
            let mut started = 0;
            while let Some(line) = lines.next_line().await.unwrap() {
                assert!(line.contains(&event), "{rotation}: {line}");
                started += usize::from(line.ends_with(&start));
                if line.contains(&end) {
                    break;
                }
            }
            assert_eq!(started, 1, "{rotation}");
            while let Some(line) = its.next_line().await.unwrap() {
                if line.contains(&end) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, told).await.unwrap();
        let logs = [
            "nas_event_daemon/bras5_127.0.0.1.log",
            &account_log_name(50),
        ];
        for name in logs.iter().filter(|_| rotation < 2) {
            let log = lab.path("log").join(name);
            std::fs::rename(&log, log.with_extension(format!("log.{rotation}"))).unwrap();
        }
    }
    child.kill().await.unwrap();
    other.kill().await.unwrap();
    lab.until("the end is logged", async || {
        let said = ned(&lab, &["logs", "nas", "5", "--errors"]).await.fine();
        (said.lines().count() == 1 && said.contains("result=dead")).then_some(())
    })
    .await;
    let account = ned(&lab, &["logs", "account", "50", "-n", "1"])
        .await
        .fine();
    assert!(
        account.lines().count() == 1 && account.contains("cmd=user_drop"),
        "{account}"
    );
    let last = ned(&lab, &["logs", "nas", "5", "-n", "1"]).await.fine();
    assert_eq!(last.lines().count(), 1, "{last}");
    for same in [
        &["nas", "log", "5", "-n1"][..],
        &["logs", "nas", "5", "--lines", "1"],
        &["logs", "nas", "5", "--limit", "1"],
        &["-n", "1", "logs", "nas", "5"],
    ] {
        assert_eq!(ned(&lab, same).await.fine(), last, "{same:?}");
    }
    assert!(
        ned(&lab, &["logs"])
            .await
            .fine()
            .contains("Start work with nas nasid=5")
    );
    let none = ned(&lab, &["logs", "daemon", "--since", "2999-01-01 00:00"])
        .await
        .fine();
    assert_eq!(none, "");
    assert!(
        ned(&lab, &["logs", "--since", "1h"])
            .await
            .fine()
            .contains("Start work")
    );
    ned(&lab, &["logs", "nas", "77"])
        .await
        .failed(5, &["NED-0301"]);
    let none = ned(&lab, &["account", "log", "50", "--to", "2020-01-01 00:00"]).await;
    assert_eq!(none.fine(), "");
    daemon.kill_9().await;
}

/// Each look at the main stack takes longer than a look-up may, as if millions of rows waited.
async fn slow_stack(lab: &Lab) {
    let slow = match lab.db.kind {
        Kind::Sqlite => {
            "(with recursive n(i) as (select 1 union all select i + 1 from n where i < 5000000)
               select max(i) from n) > 0"
        }
        Kind::Postgres => "(select pg_sleep(1.2)::text) is not null",
    };
    lab.sql(&format!(
        "alter table events_stack rename to events_stack_rows;
         create view events_stack as select * from events_stack_rows where {slow}"
    ))
    .await;
}

async fn a_full_stack_keeps_no_operator_from_it(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [50, 51, 52]).await;
    lab.sql(
        "insert into events_stack (id, event_type, user_id, nas_id, params, class, event_date, state) values
           (900001, 'user_redirect', 50, 5, '{}', 2, '2026-01-01 00:00:00', 'held'),
           (900002, 'user_add', 51, 5, '{}', 2, '2026-01-01 00:00:00', 'deferred'),
           (900003, 'user_add', 52, 5, '{}', 2, '2026-01-01 00:00:00', 'running')",
    )
    .await;
    slow_stack(&lab).await;
    // The control: who only looks is told to narrow it.
    let list = ["event", "list", "--state", "held"];
    ned(&lab, &list)
        .await
        .failed(2, &["took longer than 900 ms"]);
    let held = ned(&lab, &["-o", "json", "guard", "list"]).await.json();
    assert_eq!(held[0]["id"], 900_001, "{held}");
    let drain = ["nas", "drain", "5", "--timeout", "1ms"];
    let said = ned(&lab, &drain).await;
    said.failed(7, &["1 events still run on NAS 5"]);
    let shown = ned(&lab, &["-o", "json", "account", "show", "51"]).await;
    let shown = shown.json()["waiting"].to_string();
    assert!(shown.contains("900002 user_add deferred"), "{shown}");
    let status = ned(&lab, &["-o", "json", "status"]).await;
    status.failed(0, &["the last deferred events are not named"]);
    assert_eq!(status.json()["deferred"], 1);
}
