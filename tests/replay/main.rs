//! Every shipped scheme against what it did before: each command of the catalogue for two
//! accounts, in observe mode, and the account's log compared with the recording beside this
//! file. A changed command, order, value or form of a record shows up as a difference of texts.
//! A session is a script, of which observe mode knows only the name: it really runs. As shipped it
//! sends nothing and says what it would send.
//!
//! `NED_REPLAY=write scripts/test -E 'binary(replay)'` writes the recordings anew; what changed
//! is then read in the commit.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "../lab/mod.rs"]
mod lab;
mod registry;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lab::daemon::{Lab, account_log_name};
use lab::db::Kind;
use nas_event_daemon::event::CATALOGUE;
use nas_event_daemon::shell;
use serde_json::json;

/// IPv4 and IPv6 with a session, and the least that an account has.
const FULL: i64 = 1424;
const BARE: i64 = 1425;

fn beside() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay")
}

fn core() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("oss/core")
}

fn is_session(scheme: &str) -> bool {
    core().join(scheme).join("bin/session").exists()
}

/// Shipped schemes.
fn schemes() -> BTreeSet<String> {
    let all = std::fs::read_dir(core()).unwrap();
    all.map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// What the accounts' logs hold after every command, without what differs from run to run.
async fn run(scheme: &str) -> String {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let url = ("http_url", "'http://127.0.0.1:9/hook'".to_owned());
    let mode = if is_session(scheme) {
        "'active'"
    } else {
        "'observe'"
    };
    lab.nas(1, scheme, 1, &[("mode", mode.to_owned()), url])
        .await;
    lab.sql(
        "insert into nas_secret (nas_id, login, password, coa_secret) values (1, 'billing', 'canary', 'canary');
         insert into abonents (id, name) values (1001424, 'Ivanov'), (1001425, 'Petrov');
         insert into usluga (id, name, policy, lists) values (7, 'Night', 'night', '[\"social\"]');
         insert into users (id, abonent_id, nas_id, login, ip, mac, addresses, accept, redirect, rate_in,
             rate_out, ceil_in, ceil_out, acct_session_id)
           values (1424, 1001424, 1, 'ivanov', '10.88.0.15', '02:00:00:00:00:15',
             '[\"10.88.0.15\", \"2001:db8:15::/56\"]', 0, 1, 5120, 10240, 10240, 20480, '8a0f001c');
         insert into users (id, abonent_id, nas_id, ip, addresses)
           values (1425, 1001425, 1, '10.88.0.16', '[\"10.88.0.16\"]');",
    )
    .await;
    let daemon = lab.start().await;
    let events: Vec<_> = [FULL, BARE]
        .iter()
        .flat_map(|user| CATALOGUE.iter().map(move |(cmd, _)| (*user, *cmd)))
        .map(|(user, cmd)| {
            let mut event = json!({ "cmd": cmd, "user_id": user });
            if cmd.starts_with("usluga_") {
                event["usluga_id"] = json!(7);
            }
            event
        })
        .collect();
    for id in lab.post(json!({ "events": events })).await {
        lab.ended(id).await;
    }
    daemon.stop().await;
    let mut text = String::new();
    for user in [FULL, BARE] {
        let mut lines: Vec<(i64, String)> = lab
            .log(&account_log_name(user))
            .iter()
            .map(|line| settled(line, scheme))
            .collect();
        // Diagnostics run beside the account's other events.
        lines.sort_by_key(|(event, _)| *event);
        assert!(lines.len() > CATALOGUE.len(), "{scheme}: {lines:?}");
        for (_, line) in lines {
            assert!(!line.contains("canary"), "{scheme}: {line}");
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

/// The event's number, and the record without time, host, process, duration and the place of
/// this tree.
fn settled(line: &str, scheme: &str) -> (i64, String) {
    let here = core().join(scheme);
    let line = line.replace(
        &shell::quote(here.to_str().unwrap()),
        &format!("…/{scheme}"),
    );
    let (_, record) = line
        .split_once("]: ")
        .unwrap_or_else(|| panic!("no record: {line}"));
    let number = record
        .strip_prefix("event=")
        .and_then(|rest| rest.split(' ').next());
    let number = number
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("no event: {line}"));
    let words = record
        .split(' ')
        .map(|word| match word.strip_prefix("ms=") {
            Some(ms) if ms.bytes().all(|b| b.is_ascii_digit()) => "ms=…",
            _ => word,
        });
    (number, words.collect::<Vec<_>>().join(" "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shipped_schemes_do_what_they_did() {
    let write = std::env::var("NED_REPLAY").is_ok_and(|word| word == "write");
    let mut wrong = Vec::new();
    for scheme in schemes() {
        let file = beside().join(format!("{scheme}.log"));
        let now = run(&scheme).await;
        if write {
            std::fs::write(&file, &now).unwrap();
            continue;
        }
        let was = std::fs::read_to_string(&file).unwrap_or_default();
        let first = was.lines().zip(now.lines()).position(|(a, b)| a != b);
        if was != now {
            let at = first.unwrap_or(was.lines().count().min(now.lines().count()));
            wrong.push(format!(
                "{scheme}, line {}:\n  was {}\n  now {}",
                at + 1,
                was.lines().nth(at).unwrap_or("(nothing)"),
                now.lines().nth(at).unwrap_or("(nothing)")
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nif that is meant: NED_REPLAY=write, and read the difference",
        wrong.join("\n")
    );
}

#[test]
fn every_recording_is_of_a_scheme_that_is_shipped() {
    let recorded: BTreeSet<String> = std::fs::read_dir(beside())
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".log").map(str::to_owned)
        })
        .collect();
    assert_eq!(recorded, schemes());
}
