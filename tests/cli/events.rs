//! `event …`: post, follow, look, retry, drop.

use serde_json::{Value, json};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, ned};

on_each_store!(
    an_event_is_posted_followed_and_shown,
    without_a_daemon_events_go_to_the_database,
    dead_events_are_retried_unless_a_later_one_would_be_undone,
    what_waits_says_why,
    what_ends_is_chosen_by_what_it_is,
    dropping_needs_a_yes,
    a_dropped_head_lets_its_lane_go_on,
    wrong_events_are_refused_with_a_hint,
    a_list_that_has_no_time_for_all_says_where_to_go_on,
);

/// Every command of it fails for good, but those that defer.
const FAILING: &str = "user_add() { exit 3; }\nuser_redirect() { exit 254; }\nuser_drop() { :; }\n";

async fn an_event_is_posted_followed_and_shown(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [1424]).await;
    let daemon = lab.start().await;
    let args = ["event", "post", "--user", "1424", "--cmd", "user_redirect"];
    let out = ned(&lab, &[&args[..], &["--follow"]].concat()).await.fine();
    let mut lines = out.lines();
    let id = lines.next().unwrap();
    assert!(id.parse::<i64>().is_ok(), "{out}");
    let end = lines.last().unwrap();
    assert!(end.contains("result=done code=0 ms="), "{out}");

    let row = ned(&lab, &["-o", "json", "event", "show", id]).await.json();
    assert_eq!(row["cmd"], "user_redirect");
    assert_eq!(row["source"], "cli");
    assert_eq!(row["state"], "done");
    assert_eq!(row["why"], Value::Null);
    let attempts = row["attempts"].as_array().unwrap();
    assert!(
        attempts.len() == 1 && attempts[0]["try"] == 1 && attempts[0]["result"] == "done",
        "{row}"
    );
    let log = ned(&lab, &["event", "log", id]).await.fine();
    assert!(
        log.lines().next().unwrap().ends_with(" try=1 start"),
        "{log}"
    );
    assert!(
        log.lines().last().unwrap().contains("end result=done"),
        "{log}"
    );
    let csv = ned(&lab, &["-o", "csv", "event", "log", id]).await.fine();
    assert_eq!(csv.lines().count(), log.lines().count() + 1, "{csv}");
    let plain = ned(&lab, &["event", "show", id]).await.fine();
    assert!(plain.contains("table\tevents_done\n"), "{plain}");
    let attempt = plain.lines().last().unwrap();
    assert!(
        attempt.starts_with("1\t20") && attempt.contains("\tdone\t0\t"),
        "{plain}"
    );
    ned(&lab, &["event", "show", "999999"])
        .await
        .failed(5, &["there is no event 999999", "hint:"]);

    let json = [
        "-o", "json", "event", "post", "--nas", "5", "--user", "1424",
    ];
    let more = ["--cmd", "user_add", "--param", "ip=10.1.2.3", "--follow"];
    let said = ned(&lab, &[&json[..], &more].concat()).await;
    let begin = said.err.lines().next().unwrap_or_default().to_owned();
    let end = said.json();
    assert_eq!(begin, format!("event {}", end["id"]), "it is said at once");
    assert_eq!(
        (end["result"].as_str(), end["code"].as_i64()),
        (Some("done"), Some(0))
    );
    let log = lab.account_log(1424).join("\n");
    assert!(log.contains("user 1424 user_add 10.1.2.3"), "{log}");

    let list = ned(
        &lab,
        &[
            "-o", "json", "event", "list", "--state", "done", "--user", "1424",
        ],
    );
    let list = list.await.json();
    let cmds: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["cmd"].as_str().unwrap())
        .collect();
    assert_eq!(cmds, ["user_add", "user_redirect"], "newest first");
    let one = ["event", "list", "--state", "done", "--limit", "1"];
    let said = ned(&lab, &one).await;
    assert!(said.err.contains("--before"), "{said:?}");
    assert_eq!(said.fine().lines().count(), 1);
    let csv = ned(
        &lab,
        &[
            "-o", "csv", "event", "list", "--state", "done", "--cmd", "user_add",
        ],
    );
    assert!(csv.await.fine().starts_with("id,state,cmd,user,nas,"));
    ned(&lab, &["event", "list", "--state", "lost"])
        .await
        .failed(2, &["lost"]);
    daemon.stop().await;
}

async fn without_a_daemon_events_go_to_the_database(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [7]).await;
    let args = [
        "event",
        "post",
        "--user",
        "7",
        "--cmd",
        "user_add",
        "--params",
        "{\"a\": [1]}",
    ];
    let said = ned(&lab, &args).await;
    said.failed(0, &["no daemon listens on", "written to the database"]);
    let id = said.fine().trim().to_owned();
    let show = ned(&lab, &["-o", "json", "event", "show", &id])
        .await
        .json();
    assert_eq!(show["state"], "compact");
    assert_eq!(show["why"], "no daemon is running: it waits until one does");
    assert_eq!(show["params"], json!({"a": [1]}));
    assert_eq!(show["attempts"], json!([]));
    ned(&lab, &["event", "log", &id])
        .await
        .failed(5, &["no log tells of event", "hint:"]);
    let follow = [
        "event",
        "post",
        "--user",
        "7",
        "--cmd",
        "user_add",
        "--follow",
        "--timeout",
        "50ms",
    ];
    ned(&lab, &follow)
        .await
        .failed(7, &["no daemon runs that could carry it out", "event show"]);
    let waiting = lab.waiting().await;
    let dry = [&args[..], &["--dry-run"]].concat();
    let event = ned(&lab, &dry).await.json();
    assert_eq!(event["params"]["a"], json!([1]));
    assert_eq!(lab.waiting().await, waiting, "a dry run posts nothing");
    let daemon = lab.start().await;
    lab.drained().await;
    daemon.stop().await;
}

async fn dead_events_are_retried_unless_a_later_one_would_be_undone(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.session("Failing", FAILING);
    lab.nas(5, "Failing", 2, &[]).await;
    lab.accounts(5, [1, 2, 3]).await;
    let daemon = lab.start().await;
    let post = |user: &'static str| {
        [
            "event", "post", "--cmd", "user_add", "--follow", "--user", user,
        ]
    };
    let mut ids = Vec::new();
    for user in ["1", "2", "3"] {
        let said = ned(&lab, &post(user)).await;
        said.failed(1, &["event retry"]);
        assert!(said.out.contains("result=dead code=3"), "{said:?}");
        ids.push(said.out.lines().next().unwrap().to_owned());
    }
    // Account 2 has a later event that is done: a retry would undo it.
    let later = [
        "event",
        "post",
        "--cmd",
        "user_drop",
        "--user",
        "2",
        "--follow",
    ];
    ned(&lab, &later).await.fine();
    let bulk = [
        "event", "retry", "--state", "dead", "--nas", "5", "--cmd", "user_add",
    ];
    let dry = ned(&lab, &[&bulk[..], &["--dry-run"]].concat()).await;
    dry.failed(0, &["dry run: 3 dead events"]);
    assert_eq!(dry.fine().lines().count(), 3);
    let said = ned(&lab, &bulk).await;
    said.failed(0, &["2 retried, 1 skipped"]);
    let retried = said.fine();
    assert_eq!(retried.lines().count(), 2, "{retried}");
    let new = retried
        .lines()
        .last()
        .unwrap()
        .split('\t')
        .next_back()
        .unwrap()
        .to_owned();
    assert_eq!(lab.ended(new.parse().unwrap()).await.0, "dead");
    ned(&lab, &["event", "retry", &ids[1]])
        .await
        .failed(6, &["was not retried", "later event"]);
    ned(&lab, &["event", "retry", &ids[0]])
        .await
        .failed(6, &["was not retried"]);
    ned(&lab, &["event", "retry", "999999"])
        .await
        .failed(5, &["no event 999999"]);
    ned(&lab, &["event", "retry"]).await.failed(2, &["Usage"]);
    let one = ned(&lab, &["event", "retry", &new]).await.fine();
    assert!(one.starts_with(&format!("{new}\t")), "{one}");
    let shown = ned(&lab, &["event", "show", &new]).await.fine();
    assert!(shown.contains("posted anew as event"), "{shown}");
    daemon.stop().await;
}

async fn what_ends_is_chosen_by_what_it_is(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let failing = "user_add() { exit 3; }\nuser_edit() { exit 4; }\n";
    lab.session("Failing", failing);
    lab.nas(5, "Failing", 2, &[]).await;
    lab.accounts(5, 1..=4).await;
    let daemon = lab.start().await;
    for user in 1..=3 {
        lab.event(user, "user_add").await;
    }
    lab.event(4, "user_edit").await;
    let dead = "select count(*) from events_dead where retried_as is null";
    let all_dead = async || {
        lab.until("all are dead", async || {
            (lab.waiting().await == 0 && lab.number(dead).await == 4).then_some(())
        })
        .await;
    };
    all_dead().await;
    let list = ["event", "list", "--state", "dead"];
    let count = async |more: &[&str]| {
        let said = ned(&lab, &[&list[..], more].concat()).await;
        said.fine().lines().count()
    };
    let abonent = crate::lab::daemon::abonent(2).to_string();
    assert_eq!(count(&["--error", "code 3"]).await, 3);
    assert_eq!(count(&["--error", "^nothing of it$"]).await, 0);
    assert_eq!(count(&["--error", "code 3", "--limit", "2"]).await, 2);
    assert_eq!(count(&["--abonent", &abonent]).await, 1);
    assert_eq!(count(&["--since", "1h", "--cmd", "user_edit"]).await, 1);
    assert_eq!(count(&["--since", "2999-01-01"]).await, 0);
    ned(&lab, &[&list[..], &["--error", "("]].concat())
        .await
        .failed(2, &["--error"]);
    let status = ned(&lab, &["-o", "json", "status"]).await.json();
    assert_eq!(status["problems"].as_array().unwrap().len(), 4, "{status}");
    assert!(
        status["problems"][3]["error"]
            .as_str()
            .unwrap()
            .contains("code 3")
    );

    let retry = ["event", "retry", "--state", "dead", "--error", "code 3"];
    let never = [&retry[..], &["--spread", "25h"]].concat();
    ned(&lab, &never).await.failed(2, &["at most 24h"]);
    lab.configure("[history]\nkeep = \"2h\"", "");
    let longer = [&retry[..], &["--spread", "2h"]].concat();
    ned(&lab, &longer).await.failed(2, &["history.keep"]);
    lab.configure("", "");
    let slow = [&retry[..], &["--spread", "600ms"]].concat();
    let said = ned(&lab, &slow).await;
    said.failed(0, &["the daemon retries 3 events within 600ms"]);
    lab.until("all three are retried", async || {
        let retried = "select count(*) from events_dead where retried_as is not null";
        (lab.number(retried).await == 3).then_some(())
    })
    .await;
    let dates = "select retry_ms from events_dead where retried_as is not null order by retry_ms";
    let dates = lab.rows(dates).await.concat();
    let dates: Vec<i64> = dates.iter().map(|at| at.parse().unwrap()).collect();
    let apart: Vec<i64> = dates.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(apart, [200, 200], "all at once");
    all_dead().await;
    ned(&lab, &["event", "retry", "7", "--error", "x"])
        .await
        .failed(2, &["cannot be used with"]);

    let drop = ["event", "drop", "--state", "dead", "--error", "code 3"];
    let dry = [&drop[..], &["--dry-run"]].concat();
    let said = ned(&lab, &dry).await;
    said.failed(0, &["dry run: 3 events would be dropped"]);
    assert_eq!(said.fine().lines().count(), 3);
    ned(&lab, &drop).await.failed(2, &["say -y"]);
    assert_eq!(lab.number(dead).await, 4);
    let other = ["event", "drop", "--state", "deferred", "-y"];
    ned(&lab, &other).await.failed(0, &["no event matches"]);
    let said = ned(&lab, &[&drop[..], &["-y"]].concat()).await.fine();
    assert!(said.lines().count() == 3 && said.lines().all(|l| l.ends_with("\tdropped")));
    assert_eq!(lab.number(dead).await, 1);
    daemon.stop().await;
}

async fn what_waits_says_why(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.session("Failing", FAILING);
    lab.nas(5, "Failing", 2, &[]).await;
    lab.nas(6, "No-Such-Scheme", 2, &[]).await;
    lab.accounts(5, [1]).await;
    lab.accounts(6, [2]).await;
    let daemon = lab.start().await;
    let why = async |id: i64, text: &str| {
        lab.until(text, async || {
            let said = ned(&lab, &["-o", "json", "event", "show", &id.to_string()]).await;
            let row = said.json();
            row["why"]
                .as_str()
                .unwrap_or_default()
                .contains(text)
                .then_some(())
        })
        .await;
    };
    let deferred = lab.event(1, "user_redirect").await;
    why(deferred, "deferred until").await;
    let behind = lab.event(1, "user_add").await;
    why(behind, &format!("earlier event {deferred}")).await;
    let skipped = lab.event(2, "user_add").await;
    why(skipped, "NAS 6 is not served: scheme directory missing").await;
    let unknown = lab.event(777, "user_add").await;
    why(unknown, "cannot be expanded").await;
    ned(&lab, &["nas", "pause", "5", "--reason", "new cable"])
        .await
        .fine();
    lab.until("the pause is noticed", async || {
        let id = lab.event(1, "user_add").await;
        let said = ned(&lab, &["event", "show", &id.to_string()]).await.fine();
        said.contains("NAS 5 is paused until resumed: new cable")
            .then_some(())
    })
    .await;
    daemon.stop().await;
    why(behind, "no daemon is running").await;
}

async fn dropping_needs_a_yes(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [1]).await;
    let post = ["event", "post", "--user", "1", "--cmd", "user_add"];
    let id = ned(&lab, &post).await.fine().trim().to_owned();
    ned(&lab, &["event", "drop", &id])
        .await
        .failed(2, &["say -y"]);
    let dry = ["--dry-run", "event", "drop", &id];
    ned(&lab, &dry)
        .await
        .failed(0, &["dry run: 1 events would"]);
    assert_eq!(lab.waiting().await, 1);
    ned(&lab, &["event", "drop", "-y", "999999"])
        .await
        .failed(5, &["999999"]);
    let drop = ["event", "drop", "-y", &id, "--reason", "test of mine"];
    assert_eq!(ned(&lab, &drop).await.fine(), format!("{id}\tdropped\n"));
    assert_eq!(lab.waiting().await, 0);
    let row = ned(&lab, &["-o", "json", "event", "show", &id])
        .await
        .json();
    assert_eq!(row["state"], "dropped");
    assert!(
        row["error"].as_str().unwrap().ends_with("test of mine"),
        "{row}"
    );
    ned(&lab, &drop)
        .await
        .failed(6, &["only events that are neither running nor done"]);
    let audit = lab
        .rows("select what, detail from audit where what = 'drop'")
        .await;
    assert!(audit[0][1].contains(&format!("event={id}")), "{audit:?}");
}

async fn a_dropped_head_lets_its_lane_go_on(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"1h\"").await;
    lab.session("Mine", FAILING);
    lab.nas(5, "Mine", 2, &[]).await;
    lab.accounts(5, [1]).await;
    // Both are there before the first try: nothing comes later that would wake the head.
    let post = async |cmd: &str| {
        let args = ["event", "post", "--user", "1", "--cmd", cmd];
        ned(&lab, &args).await.fine().trim().to_owned()
    };
    let (head, next) = (post("user_redirect").await, post("user_drop").await);
    let daemon = lab.start().await;
    lab.until("the head is deferred", async || {
        let states = lab.rows("select state from events_stack order by id").await;
        (states == [["deferred"], ["ready"]]).then_some(())
    })
    .await;
    let drop = ["event", "drop", "-y", &head, "--reason", "by mistake"];
    assert_eq!(ned(&lab, &drop).await.fine(), format!("{head}\tdropped\n"));
    let (place, _) = lab.ended(next.parse().unwrap()).await;
    assert_eq!(place, "done");
    ned(&lab, &drop)
        .await
        .failed(6, &["is dropped: only events that are neither"]);
    daemon.stop().await;
}

async fn wrong_events_are_refused_with_a_hint(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    let table: &[(&[&str], &str)] = &[
        (
            &["--user", "1", "--cmd", "user_redirekt"],
            "did you mean user_redirect?",
        ),
        (&["--user", "1", "--cmd", "$(reboot)"], "does not match"),
        (&["--cmd", "user_add"], "--user"),
        (
            &["--user", "1", "--cmd", "user_add", "--param", "x"],
            "NAME=VALUE",
        ),
        (
            &["--user", "1", "--cmd", "user_add", "--params", "[]"],
            "not a JSON object",
        ),
        (
            &["--user", "1", "--cmd", "user_add", "--param", "A b=1"],
            "does not match",
        ),
        (&["--user", "x", "--cmd", "user_add"], "invalid"),
        (
            &["--user", "1", "--cmd", "user_add", "--timeout", "5"],
            "not a duration",
        ),
    ];
    let daemon = lab.start().await;
    for (more, text) in table {
        let args = [&["event", "post"][..], more].concat();
        ned(&lab, &args).await.failed(2, &[text]);
    }
    daemon.stop().await;
    for (more, text) in table {
        let args = [&["event", "post"][..], more].concat();
        ned(&lab, &args).await.failed(2, &[text]);
    }
    assert_eq!(lab.waiting().await, 0);
}

async fn a_list_that_has_no_time_for_all_says_where_to_go_on(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.db.slow_dead(12_000).await;
    let mut list = vec!["-o", "csv", "--columns", "id", "event", "list"];
    list.extend(["--state", "dead", "--error", "refused 50%"]);
    let (mut found, mut short, mut before) = (Vec::new(), 0, String::new());
    loop {
        let more = ["--before", before.as_str()];
        let more = if before.is_empty() { &[][..] } else { &more };
        let said = ned(&lab, &[&list[..], more].concat()).await;
        let ids = said.out.lines().skip(1);
        found.extend(ids.map(|id| id.parse::<i64>().unwrap()));
        if said.code == 0 {
            break;
        }
        said.failed(8, &["were not looked at", "go on with --before "]);
        let (_, hint) = said.err.split_once("go on with --before ").unwrap();
        before = hint.split(',').next().unwrap().to_owned();
        short += 1;
    }
    let wanted: Vec<i64> = (1..=24).rev().map(|n| n * 500).collect();
    assert_eq!(found, wanted);
    assert!(short > 0, "there was time for all");
}
