//! What every list takes: columns, order, rows that match, how many; the form by the environment;
//! what lies behind a number: an event with all its records, the database, the depth of a health.

use serde_json::{Value, json};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, Said, command, finished, ned};

on_each_store!(
    lists_are_sorted_matched_cut_and_bare,
    columns_of_a_list_are_chosen,
    the_environment_says_how_lists_are_printed,
    an_event_is_described_with_what_was_sent,
    the_database_says_how_it_stands,
    a_deep_look_finds_what_no_restart_helps,
);

async fn lists_are_sorted_matched_cut_and_bare(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    for (id, forks) in [(5, 9), (6, 30), (17, 10)] {
        lab.nas(id, RECORD, forks, &[]).await;
    }
    lab.nas(8, "No-Such-Scheme", 1, &[]).await;
    let ids = async |more: &[&str]| {
        let words = [&["nas", "list", "--columns", "id"], more].concat();
        ned(&lab, &words).await.fine().replace('\n', " ")
    };
    assert_eq!(ids(&["--sort", "forks"]).await, "8 5 17 6 ");
    assert_eq!(ids(&["--sort", "-forks"]).await, "6 17 5 8 ");
    assert_eq!(ids(&["--sort=-forks", "-n", "2"]).await, "6 17 ");
    assert_eq!(
        ids(&["--match", "scheme=^Rec", "--match", "name=7$"]).await,
        "17 "
    );
    assert_eq!(ids(&["--limit", "1"]).await, "5 ");
    let bare = [
        "-o",
        "csv",
        "--no-headers",
        "--columns",
        "id,forks",
        "nas",
        "list",
    ];
    assert_eq!(ned(&lab, &bare).await.fine().lines().next(), Some("5,9"));
    let table = ["-o", "table", "--columns", "id,forks", "nas", "list", "-n1"];
    let whole = ned(&lab, &table).await.fine();
    assert_eq!(whole, "ID  FORKS\n 5      9\n");
    let bare = ned(&lab, &[&table[..], &["--no-headers"]].concat()).await;
    assert_eq!(bare.fine(), " 5      9\n");
    for (wrong, said) in [
        (&["nas", "list", "--sort", "frks"][..], "no column \"frks\""),
        (&["nas", "list", "--match", "frks=1"], "no column \"frks\""),
        (&["nas", "list", "--match", "forks"], "COLUMN=REGEX"),
        (&["nas", "pause", "5", "--sort", "id"], "print one list"),
        (&["status", "-n", "3"], "print one list"),
        (&["logs", "--sort", "time"], "print one list"),
        (&["event", "list", "-n", "0"], "is not 1..1000"),
        (&["audit", "-n", "1001"], "is not 1..1000"),
    ] {
        ned(&lab, wrong).await.failed(2, &[said]);
    }
    assert_eq!(lab.number("select count(*) from nas_state").await, 0);
    // The database reads no more than is asked for, and says how to go on.
    let rows: Vec<String> = (1..=60).map(|n| format!("('user_add', {n})")).collect();
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values {}",
        rows.join(", ")
    ))
    .await;
    for (words, count) in [
        (&["event", "list"][..], 50),
        (&["stack", "list"], 50),
        (&["stack", "list", "--state", "compact", "-n", "7"], 7),
        (&["event", "list", "--limit", "60"], 60),
    ] {
        let said = ned(&lab, words).await;
        said.failed(0, &["there may be more: --before"]);
        assert_eq!(said.out.lines().count(), count, "{words:?}");
    }
}

async fn columns_of_a_list_are_chosen(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, "No-Such-Scheme", 3, &[]).await;
    lab.accounts(5, [1]).await;
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
        (&["stack", "list"], "id,error"),
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

async fn the_environment_says_how_lists_are_printed(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    let asked = async |name: &str, form: &str, words: &[&str]| -> Said {
        let mut asked = command(name, words);
        asked
            .env("NED_CONFIG", lab.path("ned.toml"))
            .env("NED_OUTPUT", form);
        finished(asked, "").await
    };
    let list = ["nas", "list", "--columns", "id"];
    let binary = "nas_event_daemon";
    assert_eq!(asked(binary, "jsonl", &list).await.fine(), "{\"id\":5}\n");
    assert_eq!(asked(binary, "csv", &list).await.fine(), "id\n5\n");
    let flag = [&list[..], &["-o", "plain"]].concat();
    assert_eq!(asked(binary, "csv", &flag).await.fine(), "5\n");
    asked(binary, "yaml", &list).await.failed(2, &["yaml"]);
    // The classic names print as they always did.
    let count = asked("event_count.sh", "json", &[]).await.fine();
    assert!(count.starts_with("# compact stack\nTOTAL\n"), "{count}");
}

async fn an_event_is_described_with_what_was_sent(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.session(
        "Bad",
        "user_add() { echo \"no pool for $login\"; exit 3; }\n",
    );
    lab.nas(5, "Bad", 2, &[]).await;
    lab.accounts(5, [50]).await;
    let daemon = lab.start().await;
    let id = lab.event(50, "user_add").await;
    assert_eq!(lab.ended(id).await.0, "dead");
    let id = id.to_string();
    let described = lab
        .until("the log has the end of it", async || {
            let said = ned(&lab, &["event", "describe", &id]).await.fine();
            said.contains(" end result=dead ").then_some(said)
        })
        .await;
    let shown = ned(&lab, &["event", "show", &id]).await.fine();
    assert!(described.starts_with(&shown), "{described}");
    assert!(described.contains(" < no pool for login50"), "{described}");
    assert!(!shown.contains(" < no pool"), "{shown}");
    let json = ned(&lab, &["-o", "json", "event", "describe", &id]).await;
    let json = json.json();
    let log = json["log"].as_array().unwrap();
    assert!(log.iter().any(|line| line.to_string().contains("no pool")));
    assert_eq!(json["attempts"].as_array().unwrap().len(), 1, "{json}");
    let json = ned(&lab, &["-o", "json", "event", "show", &id]).await;
    assert_eq!(json.json()["log"], Value::Null);
    ned(&lab, &["event", "describe", "999999999"])
        .await
        .failed(5, &["NED-0502"]);
    daemon.kill_9().await;
}

async fn the_database_says_how_it_stands(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, 1..=3).await;
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_add', 1)")
        .await;
    let status = async || ned(&lab, &["-o", "json", "db", "status"]).await.json();
    let said = status().await;
    let (name, mode, files) = match kind {
        Kind::Sqlite => ("sqlite", "wal", "migrations/sqlite"),
        Kind::Postgres => ("postgresql", "primary", "migrations/postgres"),
    };
    assert_eq!(
        (said["kind"].as_str(), said["mode"].as_str()),
        (Some(name), Some(mode))
    );
    let newest = std::fs::read_dir(files).unwrap().map(|file| {
        let name = file.unwrap().file_name().into_string().unwrap();
        name[..4].parse::<i64>().unwrap()
    });
    assert_eq!(said["schema"].as_i64(), newest.max(), "{said}");
    assert!(said["bytes"].as_i64().unwrap() > 10_000, "{said}");
    assert!(said["version"].as_str().unwrap().contains('.'), "{said}");
    for (rows, count) in [
        ("compact", 1),
        ("main", 0),
        ("dead", 0),
        ("done", 0),
        ("accounts", 3),
    ] {
        assert_eq!(said[rows], json!(count), "{rows}: {said}");
    }
    assert_eq!(said["last_backup"], Value::Null);
    assert_eq!(said["owner_works"], false);
    assert!(!said.to_string().contains("password"), "{said}");
    let daemon = lab.start().await;
    lab.drained().await;
    let said = status().await;
    assert_eq!(
        (&said["owner_works"], &said["compact"], &said["done"]),
        (&json!(true), &json!(0), &json!(1))
    );
    if kind == Kind::Sqlite {
        let copy = lab.path("copy.db").display().to_string();
        ned(&lab, &["db", "backup", &copy]).await.fine();
        let said = status().await;
        assert_eq!(said["last_backup_file"], json!(copy));
        assert!(
            said["last_backup"].as_str().unwrap().starts_with("20"),
            "{said}"
        );
        let whole = ned(&lab, &["db", "sql", "pragma quick_check"]).await.fine();
        assert!(whole.contains("ok"), "{whole}");
    }
    daemon.kill_9().await;
    // What cannot be counted leaves the rest.
    lab.sql("alter table audit rename to elsewhere").await;
    let said = status().await;
    assert_eq!(
        (&said["audit"], &said["last_backup"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(said["done"], 1, "{said}");
}

async fn a_deep_look_finds_what_no_restart_helps(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.session("Bad", "user_add() { exit 3; }\nuser_drop() { :; }\n");
    lab.nas(5, "Bad", 2, &[]).await;
    lab.accounts(5, [50, 51]).await;
    let deep = ["health", "deep"];
    ned(&lab, &deep)
        .await
        .failed(4, &["NED-0401", "no daemon listens"]);
    let daemon = lab.start().await;
    lab.event(51, "user_drop").await;
    lab.drained().await;
    let said = ned(&lab, &deep).await;
    assert_eq!(
        (said.code, said.out.as_str()),
        (0, "ok 1 NASes, 0 events wait\n"),
        "{said:?}"
    );
    // What is switched off or paused is meant to stand still, for however long.
    lab.nas(7, RECORD, 2, &[("mode", "'off'".to_owned())]).await;
    lab.nas(8, RECORD, 2, &[]).await;
    lab.accounts(7, [70]).await;
    lab.accounts(8, [80]).await;
    ned(&lab, &["nas", "pause", "8"]).await.fine();
    ned(&lab, &["nas", "reload"]).await.fine();
    lab.sql(
        "insert into events_stack_compact (cmd, user_id, created_at) values
           ('user_add', 70, '2020-01-01 00:00:00'), ('user_add', 80, '2020-01-01 00:00:00')",
    )
    .await;
    lab.until("both wait, and it is well", async || {
        let said = ned(&lab, &deep).await;
        (said.code == 0 && said.out == "ok 2 NASes, 2 events wait\n").then_some(())
    })
    .await;
    let dead = lab.event(50, "user_add").await;
    assert_eq!(lab.ended(dead).await.0, "dead");
    lab.nas(6, "No-Such-Scheme", 2, &[]).await;
    ned(&lab, &["nas", "reload"]).await.fine();
    lab.until("both are found", async || {
        let said = ned(&lab, &deep).await;
        let found = said.code == 9
            && said.out.starts_with("unhealthy ")
            && said.out.contains("1 NASes are not served")
            && said.out.contains("1 events died within 15 minutes");
        found.then_some(())
    })
    .await;
    // The daemon itself lives, and can work: nothing is to be restarted.
    for stage in ["live", "ready"] {
        assert_eq!(ned(&lab, &["health", stage]).await.code, 0);
    }
    lab.sql("delete from nas where id = 6").await;
    ned(&lab, &["event", "drop", &dead.to_string(), "-y"])
        .await
        .fine();
    ned(&lab, &["nas", "reload"]).await.fine();
    lab.until("it is well again", async || {
        (ned(&lab, &deep).await.code == 0).then_some(())
    })
    .await;
    daemon.kill_9().await;
}
