//! Looking after a daemon: copies of the database and back from them, the doctor and the bundle
//! for those who help, first steps, logs, what is looked at again and again, the page of an error.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::{Value, json};

use crate::lab::daemon::{Lab, wait_for};
use crate::lab::db::{Db, Kind, fresh_url};
use crate::lab::journal::{gated, let_through, session};
use crate::lab::on_each_store;
use crate::lab::sim::{LOGIN, Router};
use crate::{RECORD, command, finished, judge, named, ned};

on_each_store!(
    a_restored_database_does_nothing_twice_that_the_copy_knew_done,
    the_doctor_finds_what_is_wrong_and_the_bundle_holds_no_secret,
    an_announced_pause_begins_by_itself,
    a_token_that_was_taken_back_opens_nothing,
);

async fn post_many(lab: &Lab, users: std::ops::RangeInclusive<i64>) {
    let rows: Vec<String> = users.map(|user| format!("('user_add', {user})")).collect();
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values {}",
        rows.join(", ")
    ))
    .await;
}

/// Ids of attempts that the NASes' logs know, each as often as it was started.
fn started(lab: &Lab) -> Vec<i64> {
    let lines = [lab.nas_log(5), lab.nas_log(6)].concat();
    let starts = lines.iter().filter(|line| line.ends_with(" start"));
    let id = |line: &String| line.split("event=").nth(1)?.split(' ').next()?.parse().ok();
    starts.filter_map(id).collect()
}

async fn a_restored_database_does_nothing_twice_that_the_copy_knew_done(kind: Kind) {
    match kind {
        Kind::Sqlite => restored_from_a_copy(kind).await,
        Kind::Postgres => restored_from_a_dump(kind).await,
    }
}

async fn restored_from_a_copy(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 4, &[]).await;
    lab.accounts(5, 1..=400).await;
    let daemon = lab.start().await;
    let copy = lab.path("copy.db").display().to_string();
    post_many(&lab, 1..=400).await;
    lab.until("work is under way", async || {
        (lab.number("select count(*) from events_done").await > 20).then_some(())
    })
    .await;
    let said = ned(&lab, &["-o", "json", "db", "backup", &copy]).await;
    assert_eq!(said.json()["file"], copy);
    let mode = std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "it holds credentials");
    ned(&lab, &["db", "backup", &copy])
        .await
        .failed(6, &["exists already"]);
    ned(&lab, &["db", "restore", &copy, "-y"])
        .await
        .failed(6, &["a daemon is running"]);
    lab.drained().await;
    let last = lab.number("select max(id) from events_done").await;
    daemon.kill_9().await;
    let first_run: BTreeSet<i64> = started(&lab).into_iter().collect();
    assert_eq!(first_run.len(), 400);

    ned(&lab, &["db", "restore", &copy])
        .await
        .failed(2, &["say -y", "NED-0003"]);
    ned(&lab, &["db", "restore", "/nonexistent", "-y"])
        .await
        .failed(5, &["there is no file"]);
    let ned_toml = lab.path("ned.toml").display().to_string();
    ned(&lab, &["db", "restore", &ned_toml, "-y"]).await;
    let restored = wait_for(async || {
        let said = ned(&lab, &["-o", "json", "db", "restore", &copy, "-y"]).await;
        (said.code == 0).then(|| said.json())
    });
    let restored = restored.await.expect("the owner counts as dead");
    // What the file says now, by somebody else's eyes: our store has the old file open.
    let ask = async |statement: &str| -> Vec<i64> {
        let said = named(&lab, "sqlexec", &[statement], "").await.fine();
        said.lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect()
    };
    let done: BTreeSet<i64> = ask("select id from events_done")
        .await
        .into_iter()
        .collect();
    let waiting = ask("select id from events_stack").await;
    assert!(
        done.len() > 20 && done.len() < 400,
        "{} done in the copy",
        done.len()
    );
    assert_eq!(restored["waiting"], json!(waiting.len()));
    let unflagged = ask("select count(*) from events_stack where possible_duplicate = 0").await;
    assert_eq!(unflagged, [0]);
    assert!(
        restored["before"]
            .as_str()
            .unwrap()
            .contains("before-restore")
    );
    let set_aside = std::path::PathBuf::from(restored["before"].as_str().unwrap());
    let asides = || {
        let files = std::fs::read_dir(set_aside.parent().unwrap()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("before-restore")).count()
    };
    let before = asides();
    ned(&lab, &["--dry-run", "db", "restore", &copy])
        .await
        .failed(0, &["dry run: the copy is whole"]);
    assert!(before > 0 && asides() == before);
    let daemon = lab.start().await;
    lab.until("all is done again", async || {
        (ask("select count(*) from events_done").await == [400]).then_some(())
    })
    .await;
    let mut again: Vec<i64> = started(&lab);
    for id in &first_run {
        let at = again.iter().position(|a| a == id).unwrap();
        again.remove(at);
    }
    let again: BTreeSet<i64> = again.into_iter().collect();
    assert!(again.is_disjoint(&done), "done in the copy, and done again");
    assert_eq!(again.len() + done.len(), 400);
    // A number that was given after the copy names no second event.
    let posted = ned(
        &lab,
        &[
            "-o", "json", "event", "post", "--user", "7", "--cmd", "user_add",
        ],
    );
    let id = posted.await.json()["id"].as_i64().unwrap();
    assert!(id > last + 1_000_000, "{id} after {last}");
    daemon.kill_9().await;
}

/// PostgreSQL has its own tools for a copy; what comes after is ours. The dump is put into a fresh
/// database, as on another server.
async fn restored_from_a_dump(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let gate = lab.path("gate");
    let slow = session(&lab.path("journal"), &gated(&gate));
    lab.session("Slow", &slow);
    lab.nas(5, RECORD, 4, &[]).await;
    lab.nas(6, "Slow", 4, &[]).await;
    lab.accounts(5, 1..=300).await;
    lab.accounts(6, 301..=400).await;
    let daemon = lab.start().await;
    let copy = lab.path("copy").display().to_string();
    ned(&lab, &["db", "backup", &copy])
        .await
        .failed(6, &["pg_dump", "NED-0207"]);
    ned(&lab, &["db", "restored", "-y"])
        .await
        .failed(6, &["a daemon is running"]);
    // Of the first NAS events are done while the dump is made; of the other one four run.
    post_many(&lab, 301..=400).await;
    lab.until("the slow ones run", async || {
        (lab.running().await.len() == 4).then_some(())
    })
    .await;
    post_many(&lab, 1..=100).await;
    lab.until("work is under way", async || {
        (lab.number("select count(*) from events_done").await > 20).then_some(())
    })
    .await;
    let dump = ["-Fc", "-f", &copy, &lab.db.url];
    let (said, ()) = tokio::join!(
        finished(tool("pg_dump", &dump), ""),
        post_many(&lab, 101..=300)
    );
    said.fine();
    let_through(&gate, "all");
    lab.drained().await;
    let last = lab.number("select max(id) from events_done").await;
    daemon.kill_9().await;
    let first_run: BTreeSet<i64> = started(&lab).into_iter().collect();
    assert_eq!(first_run.len(), 400);

    let (url, _) = fresh_url(kind).await;
    finished(tool("pg_restore", &["-d", &url, &copy]), "")
        .await
        .fine();
    let other = Lab::on(Arc::new(Db::at(url, kind).await), "");
    other.session("Slow", &slow);
    let ids = async |rows: &str| -> BTreeSet<i64> {
        let rows = other.rows(rows).await;
        rows.iter().map(|row| row[0].parse().unwrap()).collect()
    };
    let done = ids("select id from events_done").await;
    let waiting = ids("select id from events_stack").await;
    let unread = other
        .number("select count(*) from events_stack_compact")
        .await;
    assert!(done.len() > 20, "{} done in the dump", done.len());
    assert!(waiting.len() >= 100, "{} wait in the dump", waiting.len());
    assert!(done.is_subset(&first_run) && done.is_disjoint(&waiting));
    ned(&other, &["db", "restored"])
        .await
        .failed(2, &["say -y", "NED-0003"]);
    let restored = wait_for(async || {
        let said = ned(&other, &["-o", "json", "db", "restored", "-y"]).await;
        (said.code == 0).then(|| said.json())
    });
    let restored = restored.await.expect("the owner counts as dead");
    assert_eq!(restored["waiting"], json!(waiting.len()));
    let unflagged = "select count(*) from events_stack where not possible_duplicate";
    assert_eq!(other.number(unflagged).await, 0);
    // What was committed after the dump began is not in it, and is the producer's to post again.
    let whole = done.len() + waiting.len() + usize::try_from(unread).unwrap();
    let daemon = other.start().await;
    other.drained().await;
    let all = ids("select id from events_done").await;
    assert_eq!(all.len(), whole, "{all:?}");
    let again = started(&other);
    let once: BTreeSet<i64> = again.iter().copied().collect();
    assert_eq!(once.len(), again.len(), "twice: {again:?}");
    assert!(once.is_disjoint(&done), "done in the dump, and done again");
    assert_eq!(&once | &done, all);
    // A number that was given after the dump names no second event.
    let id = other.event(7, "user_add").await;
    assert!(id > last + 1_000_000, "{id} after {last}");
    daemon.kill_9().await;
}

/// A tool of PostgreSQL's, of the newest server that is installed: an older one refuses its dumps.
fn tool(name: &str, args: &[&str]) -> tokio::process::Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut places: Vec<_> = versions
        .map(|version| version.unwrap().path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    places.sort();
    let place = places.pop().unwrap_or_else(|| name.into());
    judge(place.to_str().unwrap(), args)
}

async fn the_doctor_finds_what_is_wrong_and_the_bundle_holds_no_secret(kind: Kind) {
    const CANARIES: &[&str] = &[
        "canary-login",
        "canary-password",
        "canary-enable",
        "canary-coa",
        "canary-key",
        "canary-vars",
        "canary-name",
        "canary-abonent",
        "10.77.66.55",
        "10.77.66.44",
    ];
    let lab = Lab::new(kind, "").await;
    lab.nas(
        5,
        RECORD,
        2,
        &[("vars", "'{\"x\": \"canary-vars\"}'".to_owned())],
    )
    .await;
    lab.nas(6, "No-Such-Scheme", 2, &[]).await;
    lab.session(
        "Bad",
        "user_add() { echo \"$login $ip canary-password\" >&2; exit 3; }\n",
    );
    lab.nas(7, "Bad", 2, &[]).await;
    lab.accounts(7, [70]).await;
    let locked = Router::start(lab.root(), "locked", Faults::default());
    let port = locked.sim.addr().port().to_string();
    lab.nas(8, "Mikrotik-Simple", 2, &[("api_port", port)])
        .await;
    lab.secret(8, LOGIN, "wrong").await;
    lab.accounts(8, [80]).await;
    lab.sql(
        "insert into nas_secret (nas_id, login, password, enable_password, coa_secret, ssh_key)
           values (7, 'canary-login', 'canary-password', 'canary-enable', 'canary-coa', 'canary-key');
         update users set login = 'canary-name', ip = '10.77.66.55' where id = 70;
         update abonents set name = 'canary-abonent';
         update nas set ip = '10.77.66.44', name = 'canary/nas' where id = 6",
    )
    .await;
    let bundle = lab.path("bundle.txt").display().to_string();
    let said = ned(&lab, &["doctor"]).await;
    assert_eq!(said.code, 9, "{said:?}");
    assert!(said.out.contains("nobody listens on"), "{said:?}");
    let daemon = lab.start().await;
    post_many(&lab, 70..=70).await;
    post_many(&lab, 80..=80).await;
    lab.until("it is dead", async || {
        (lab.number("select count(*) from events_dead").await == 1).then_some(())
    })
    .await;
    lab.until("a refused login is a finding", async || {
        let said = ned(&lab, &["doctor"]).await;
        said.out
            .contains("[FAIL] NAS: 8 bras8 does not obey (parked): ")
            .then_some(())
    })
    .await;
    let said = ned(&lab, &["-o", "json", "doctor", "--bundle", &bundle]).await;
    assert_eq!(said.code, 9, "{said:?}");
    let rows: Value = serde_json::from_str(&said.out).unwrap();
    let row = |check: &str, result: &str| {
        let found = rows
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["check"] == check && row["result"] == result);
        found
            .unwrap_or_else(|| panic!("no {result} {check} in {rows}"))
            .clone()
    };
    row("configuration", "OK");
    row("database", "OK");
    row("daemon", "OK");
    let nas = row("NAS", "FAIL");
    assert!(
        nas["text"].as_str().unwrap().contains("No-Such-Scheme"),
        "{nas}"
    );
    assert!(
        nas["fix"].as_str().unwrap().contains("scheme lint"),
        "{nas}"
    );
    let dead = row("stacks", "WARN");
    assert!(
        dead["fix"].as_str().unwrap().contains("event retry"),
        "{dead}"
    );

    let text = std::fs::read_to_string(&bundle).unwrap();
    let mode = std::fs::metadata(&bundle).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    for part in [
        "== doctor",
        "== configuration",
        "== NASes",
        "== dead events",
        "cmd=user_add",
        "Start work with nas",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    for canary in CANARIES {
        assert!(!text.contains(canary), "{canary} is in {text}");
        let everything = format!("{said:?}");
        assert!(!everything.contains(canary), "{canary} is in {everything}");
    }
    assert!(text.contains("ip-1"), "{text}");
    // Whose log's name it is, too.
    for name in ["canary/nas", "canary_nas", "bras7"] {
        assert!(!text.contains(name), "{name:?} is in {text}");
    }
    assert!(text.contains("nas-1"), "{text}");
    // The canaries were where they could have been taken from.
    let log = lab.log("abonents/1000070/event_70.log").join("\n");
    assert!(log.contains("canary-name"), "{log}");
    ned(&lab, &["doctor", "--bundle", &bundle])
        .await
        .failed(6, &["cannot be written"]);

    lab.sql("delete from nas where id in (6, 8)").await;
    let id = lab.rows("select id from events_dead").await[0][0].clone();
    ned(&lab, &["event", "drop", &id, "-y"]).await.fine();
    let said = ned(&lab, &["doctor", "--nas", "5"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("sends nothing"), "{said:?}");
    daemon.kill_9().await;
}

async fn an_announced_pause_begins_by_itself(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [50, 51]).await;
    let daemon = lab.start().await;
    // It publishes its numbers some moments after its doors are open.
    lab.until("the daemon says what it serves", async || {
        let served = lab.scheduler().await?;
        (served["nases"].as_array()?.len() == 1).then_some(())
    })
    .await;
    ned(&lab, &["nas", "pause", "5", "--at", "2020-01-01 02:00"])
        .await
        .failed(2, &["is over"]);
    ned(
        &lab,
        &[
            "nas",
            "pause",
            "5",
            "--at",
            "2999-01-01 02:00",
            "--for",
            "30m",
            "--reason",
            "firmware",
        ],
    )
    .await
    .fine();
    let list = ned(&lab, &["-o", "json", "nas", "list"]).await.json();
    let note = list[0]["note"].as_str().unwrap();
    assert!(
        note.contains("pause planned from 2999-01-01 02:00:00"),
        "{note}"
    );
    assert!(
        note.contains("until 2999-01-01 02:30:00: firmware"),
        "{note}"
    );
    // Not yet: it works.
    lab.event(50, "user_add").await;
    lab.drained().await;
    // The moment comes.
    let past = match kind {
        Kind::Sqlite => "'2020-01-01 00:00:00.000'",
        Kind::Postgres => "'2020-01-01 00:00:00+00'",
    };
    lab.sql(&format!("update nas_state set paused_from = {past}"))
        .await;
    lab.reload(&daemon).await;
    lab.until("the pause has begun", async || {
        let list = ned(&lab, &["-o", "json", "nas", "list"]).await.json();
        list[0]["note"]
            .as_str()
            .unwrap()
            .starts_with("paused until")
            .then_some(())
    })
    .await;
    lab.event(51, "user_add").await;
    let why = ned(&lab, &["-o", "json", "why", "51"]).await.json();
    assert_eq!(why["cause"], "nas_paused", "{why}");
    // And its end, without anybody: another pause, which is short, in place of this one.
    ned(&lab, &["nas", "pause", "5", "--for", "300ms"])
        .await
        .fine();
    lab.drained().await;
    let after = "select count(*) from events_done d, nas_state s
                 where d.user_id = 51 and d.finished_at >= s.paused_until";
    assert_eq!(lab.number(after).await, 1, "it ran within the pause");
    daemon.kill_9().await;
}

async fn a_token_that_was_taken_back_opens_nothing(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let daemon = lab.start().await;
    let made = ned(&lab, &["token", "create", "shop", "--scope", "viewer"])
        .await
        .fine();
    let secret = made.split_whitespace().last().unwrap().to_owned();
    let ask = async || {
        let request = lab
            .client
            .get(lab.url("/api/v1/status"))
            .bearer_auth(&secret);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask().await, 200);
    let list = ned(&lab, &["token", "list"]).await.fine();
    assert!(
        list.contains("shop\tviewer") && !list.contains(&secret),
        "{list}"
    );
    ned(&lab, &["token", "revoke", "shop"]).await.fine();
    assert_eq!(ask().await, 401);
    ned(&lab, &["token", "revoke", "shop"])
        .await
        .failed(5, &["token list"]);
    daemon.kill_9().await;
}

#[tokio::test]
async fn from_nothing_to_a_daemon_by_init() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("ned").display().to_string();
    let file = format!("{place}/nas_event_daemon.toml");
    let init = || {
        let mut init = command(
            "nas_event_daemon",
            &["init", "--dir", &place, "--open-from", "127.0.0.1/32"],
        );
        init.current_dir(env!("CARGO_MANIFEST_DIR"));
        init
    };
    let said = finished(init(), "").await.fine();
    assert!(said.contains(&format!("{file}: written")), "{said}");
    let written = std::fs::read_to_string(&file).unwrap();
    for name in ["log", "run", "oss/local", "nas_event_daemon.db"] {
        assert!(dir.path().join("ned").join(name).exists(), "{name}");
    }
    // Again: nothing is touched.
    let said = finished(init(), "").await.fine();
    assert!(said.contains("left as it is"), "{said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
    let check = command("nas_event_daemon", &["--config", &file, "config", "check"]);
    finished(check, "").await.fine();
    let schemes = command("nas_event_daemon", &["--config", &file, "scheme", "list"]);
    assert!(
        finished(schemes, "")
            .await
            .fine()
            .contains("Mikrotik-Simple")
    );
}

#[tokio::test]
async fn manual_completions_and_pages_of_errors_are_printed() {
    let said = async |args: &[&str]| finished(command("nas_event_daemon", args), "").await;
    assert!(said(&["man"]).await.fine().starts_with(".ie"));
    for shell in ["bash", "zsh", "fish"] {
        let text = said(&["completions", shell]).await.fine();
        assert!(text.contains("resync") && text.contains("ned"), "{shell}");
    }
    let api: Value = serde_json::from_str(&said(&["openapi"]).await.fine()).unwrap();
    assert!(api["paths"]["/api/v1/events"].is_object());
    let page = said(&["explain", "NED-0204"]).await.fine();
    assert!(page.contains("Another daemon owns the database"), "{page}");
    assert_eq!(said(&["help", "NED-0204"]).await.fine(), page);
    said(&["explain", "9999"])
        .await
        .failed(5, &["no error NED-9999"]);
    // Every error carries a number that has a page.
    let wrong = said(&["--config", "/nonexistent", "config", "check"]).await;
    wrong.failed(3, &["error[NED-0101]"]);
    assert!(said(&["explain", "101"]).await.fine().contains("NED-0101"));
}
