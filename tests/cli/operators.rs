//! What operators use all day: one account's state, history and log, many events at once, the
//! audit, the line for the monitoring.

use nas_event_daemon::clock;
use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, named, ned};

on_each_store!(
    an_account_is_shown_with_its_history_and_log,
    many_events_come_from_a_pipe,
    the_monitoring_gets_one_line,
);

async fn an_account_is_shown_with_its_history_and_log(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [50]).await;
    let daemon = lab.start().await;
    ned(&lab, &["account", "resync", "50"]).await.fine();
    lab.drained().await;
    let show = ned(&lab, &["-o", "json", "account", "show", "50"])
        .await
        .json();
    assert_eq!(show["abonent"], crate::lab::daemon::abonent(50));
    assert_eq!(show["accept"], true);
    assert_eq!(show["waiting"], "");
    ned(&lab, &["account", "show", "51"])
        .await
        .failed(5, &["no account 51", "hint"]);

    let csv = ned(&lab, &["-o", "csv", "account", "history", "50"])
        .await
        .fine();
    let cmds: Vec<&str> = csv
        .lines()
        .skip(1)
        .map(|l| l.split(',').nth(3).unwrap())
        .collect();
    assert_eq!(
        cmds,
        [
            "user_add",
            "user_rate_set",
            "user_accept",
            "user_redirect_cancel"
        ]
    );
    let none = ["account", "history", "50", "--to", "2020-01-01"];
    assert_eq!(ned(&lab, &none).await.fine(), "");
    let all = ["account", "history", "50", "--from", "2020-01-01"];
    assert_eq!(ned(&lab, &all).await.fine().lines().count(), 4);
    ned(&lab, &["account", "history", "50", "--from", "yesterday"])
        .await
        .failed(2, &["YYYY-MM-DD"]);

    let log = ned(&lab, &["account", "log", "50", "-n", "2"]).await.fine();
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(
        log.lines().last().unwrap().contains("end result=done"),
        "{log}"
    );
    let csv = ned(
        &lab,
        &["-o", "csv", "account", "log", "50", "--from", "2020-01-01"],
    )
    .await
    .fine();
    let mut rows = csv.lines();
    assert!(
        rows.next()
            .unwrap()
            .starts_with("time,event,user,cmd,try,kind,text,result")
    );
    let ends: Vec<&str> = rows.filter(|row| row.contains(",end,")).collect();
    assert!(
        ends.len() == 4 && ends[0].contains(",50,user_add,1,end,,done,0,"),
        "{csv}"
    );
    // A rotation sets aside what was; nothing of it is lost for who asks.
    let file = lab
        .path("log")
        .join(crate::lab::daemon::account_log_name(50));
    let aside = |end: &str| std::path::PathBuf::from(format!("{}{end}", file.display()));
    std::fs::rename(&file, aside("-20260102-1767312000")).unwrap();
    let all = ["-o", "csv", "account", "log", "50"];
    assert_eq!(ned(&lab, &all).await.fine(), csv);
    lab.event(50, "user_drop").await;
    let now = lab
        .until("the new log's record", async || {
            let now = ned(&lab, &all).await.fine();
            now.contains(",50,user_drop,1,end,,done,0,").then_some(now)
        })
        .await;
    assert!(now.starts_with(&csv), "{now}");
    let few = ned(&lab, &["account", "log", "50", "-n", "1"]).await.fine();
    assert!(
        few.lines().count() == 1 && few.contains("cmd=user_drop"),
        "{few}"
    );
    ned(&lab, &["-o", "json", "account", "log", "50", "-f"])
        .await
        .failed(2, &["-o jsonl"]);
    ned(&lab, &["account", "log", "51"])
        .await
        .failed(5, &["cannot be read"]);
    let audit = ned(&lab, &["-o", "json", "audit", "--limit", "5"])
        .await
        .json();
    let whats: Vec<&str> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["what"].as_str().unwrap())
        .collect();
    assert!(
        whats.contains(&"resync") && whats.contains(&"post"),
        "{whats:?}"
    );
    daemon.stop().await;
}

async fn many_events_come_from_a_pipe(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 8, &[]).await;
    lab.accounts(5, 1..=40).await;
    let ids: String = (1..=40).map(|id| format!("{id}\n")).collect();
    let args = [
        "-o", "json", "event", "bulk", "--cmd", "user_add", "--batch", "night",
    ];
    named(&lab, "nas_event_daemon", &args, &ids)
        .await
        .failed(4, &["no daemon listens", "0 events are stored"]);
    let dry = [&args[..], &["--dry-run"]].concat();
    let said = named(&lab, "nas_event_daemon", &dry, &ids).await;
    assert_eq!(said.json(), json!({"events": 40}));
    let daemon = lab.start().await;
    let said = named(&lab, "nas_event_daemon", &args, &ids).await;
    assert_eq!(
        said.json(),
        json!({"batch_id": "night", "accepted": 40, "rejected": 0, "rejected_lines": []})
    );
    lab.drained().await;
    let done = lab
        .number("select count(*) from events_done where batch_id = 'night'")
        .await;
    assert_eq!(done, 40);
    // Evenly within a time: three pauses of 100 ms between four events.
    let args = ["event", "bulk", "--cmd", "user_add", "--batch", "slow"];
    let spread = [&args[..], &["--spread", "400ms"]].concat();
    let began = clock::tick_ms();
    named(&lab, "nas_event_daemon", &spread, "1\n2\n3\n4\n")
        .await
        .fine();
    assert!(clock::tick_ms() - began >= 300, "all at once");
    let posted = "select count(*) from events_done where batch_id = 'slow'";
    lab.drained().await;
    assert_eq!(lab.number(posted).await, 4);
    // Wrong lines are named and hurt no other.
    let lines = "user_id,cmd\n1,user_add\n2,user_dal\n3,user_add\n";
    let said = named(&lab, "nas_event_daemon", &["event", "bulk"], lines).await;
    assert_eq!(said.code, 8, "{said:?}");
    assert!(said.out.contains("accepted\t2\n"), "{said:?}");
    assert!(said.out.contains("did you mean user_del?"), "{said:?}");
    let nothing = named(&lab, "nas_event_daemon", &["event", "bulk"], "").await;
    nothing.failed(2, &["no event in it"]);
    daemon.stop().await;
}

async fn the_monitoring_gets_one_line(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [50]).await;
    let check = ["check", "--warn", "1", "--crit", "2"];
    let said = ned(&lab, &check).await;
    assert_eq!(
        (said.code, said.out.as_str()),
        (2, "CRITICAL - no daemon is running\n")
    );
    let daemon = lab.start().await;
    let fine = lab
        .until("the NAS is counted", async || {
            let said = ned(&lab, &check).await;
            (said.code == 0 && said.out.contains("1 NASes")).then_some(said.out)
        })
        .await;
    assert!(
        fine.starts_with("OK - 1 NASes, 0 events wait | waiting=0;1;2;0"),
        "{fine}"
    );
    ned(&lab, &["nas", "pause", "5"]).await.fine();
    lab.sql(
        "insert into events_stack_compact (cmd, user_id, created_at)
         values ('user_add', 50, '2020-01-01 00:00:00')",
    )
    .await;
    let warned = lab
        .until("a warning", async || {
            let said = ned(&lab, &check).await;
            (said.code == 1).then_some(said.out)
        })
        .await;
    assert!(warned.starts_with("WARNING - 1 events wait | "), "{warned}");
    assert_eq!(warned.lines().count(), 1);
    // On a NAS that is paused it is meant to wait, however long.
    let said = ned(&lab, &["check", "--age", "1"]).await.fine();
    assert!(said.starts_with("OK - 1 NASes, 1 events wait | "), "{said}");
    lab.nas(6, "No-Such-Scheme", 2, &[]).await;
    lab.accounts(6, [60]).await;
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_add', 60)")
        .await;
    ned(&lab, &["nas", "reload"]).await.fine();
    lab.until("it waits for a second", async || {
        let said = ned(&lab, &["check", "--age", "1"]).await;
        (said.code == 2 && said.out.starts_with("CRITICAL - the oldest waits for ")).then_some(())
    })
    .await;
    // What cannot be asked is unknown, and says so on the line.
    let said = ned(&lab, &["--config", "/nonexistent", "check"]).await;
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.out.starts_with("UNKNOWN - "), "{said:?}");
    daemon.stop().await;
}
