//! What is looked at: logs that are followed and searched, looks that are repeated, the request
//! behind a verb.

use serde_json::Value;

use crate::lab::daemon::{Lab, PATIENCE, account_log_name};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, command, finished, ned};

on_each_store!(
    the_shown_request_does_what_the_verb_does,
    looks_repeat_until_nobody_reads,
    columns_of_a_list_are_chosen,
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

async fn columns_of_a_list_are_chosen(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, "No-Such-Scheme", 3, &[]).await;
    let list = ["nas", "list", "--columns", "scheme,id"];
    let plain = ned(&lab, &list).await.fine();
    assert_eq!(plain, "Record\t5\nNo-Such-Scheme\t6\n");
    let csv = ned(&lab, &[&["-o", "csv"][..], &list].concat())
        .await
        .fine();
    assert!(csv.starts_with("scheme,id\nRecord,5\n"), "{csv}");
    let json = ned(&lab, &[&["-o", "json"][..], &list].concat())
        .await
        .json();
    assert_eq!(
        json[1],
        serde_json::json!({ "scheme": "No-Such-Scheme", "id": 6 })
    );
    for (words, columns) in [
        (&["event", "list"][..], "id,error"),
        (&["account", "history", "1"], "cmd"),
        (&["stack", "count", "--by", "nas"], "state,count"),
        (&["guard", "list"], "id"),
        (&["audit"], "who,what"),
        (&["scheme", "list"], "name"),
        (&["scheme", "vars"], "name"),
        (&["token", "list"], "name"),
    ] {
        let args = [&["-o", "csv", "--columns", columns], words].concat();
        let said = ned(&lab, &args).await.fine();
        assert_eq!(said.lines().next(), Some(columns), "{words:?}");
    }
    let wrong = ned(&lab, &["nas", "list", "--columns", "id,brekaer"]).await;
    wrong.failed(2, &["no column \"brekaer\"", "breaker"]);
    assert_eq!(wrong.out, "");
    ned(&lab, &["--columns", "id", "nas", "pause", "5"])
        .await
        .failed(2, &["print one list"]);
    assert_eq!(lab.number("select count(*) from nas_state").await, 0);
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
