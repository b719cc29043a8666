//! The wall clock jumps under a working daemon: a day and a year in both directions, and two
//! seconds back again and again. Waits run on the other clock, so nothing stalls, nothing runs
//! early for ever, and no account's order changes. The daemon alone sees the jumps (libfaketime).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::lab::daemon::{Daemon, Lab};
use crate::lab::db::Kind;
use crate::lab::journal::{self, Accepted, Rest, check_rest};
use crate::lab::on_each_store;
use crate::places;

on_each_store!(
    a_clock_that_jumps_stalls_nothing,
    a_clock_that_was_ahead_stalls_nothing_after_a_start,
);

/// What the clock shows, against the true one.
const JUMPS: [&str; 10] = [
    "+1d", "-1d", "+365d", "-365d", "-2", "-4", "-6", "+3600", "-3600", "+0",
];

pub(crate) fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .find(|file| file.exists())
        .unwrap_or_else(|| panic!("libfaketime is missing; see scripts/test --install"))
}

/// A daemon whose wall clock shows what stands in the file `clock`.
async fn start(lab: &Lab, clock: &Path, shows: &str) -> Daemon {
    std::fs::write(clock, shows).unwrap();
    let by = [
        "env".to_owned(),
        format!("LD_PRELOAD={}", library().display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    lab.start_by(&by.each_ref().map(String::as_str)).await
}

async fn a_clock_that_jumps_stalls_nothing(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"300ms\"").await;
    let script = lab.path("script.journal");
    // Every event is deferred once. Two accounts are too few to doubt the NAS.
    let body = "if [[ $try_count = 1 ]]; then note end $event_id 1; exit 254; fi";
    lab.session("Journal", &journal::session(&script, body));
    lab.nas(2, "Journal", 4, &[]).await;
    lab.accounts(2, 200..202).await;
    let clock = lab.path("clock");
    let daemon = start(&lab, &clock, "+0").await;
    let mut accepted = Vec::new();
    for jump in JUMPS {
        // It jumps while one is deferred alone: nothing that comes behind it in its lane makes the
        // daemon read its row again. The other account's have each other.
        for user in [200, 200] {
            let event = lab.event(user, "user_redirect").await;
            accepted.push(Accepted { event, user });
        }
        // On a machine that is slow enough it may be done before it is seen to wait.
        loop {
            let event = lab.event(201, "user_redirect").await;
            accepted.push(Accepted { event, user: 201 });
            let of = |table: &str| format!("select count(*) from {table} where id = {event}");
            let waits = format!("{} and state = 'deferred'", of("events_stack"));
            let waits = lab
                .until("one waits for its next try", async || {
                    if lab.number(&waits).await > 0 {
                        return Some(true);
                    }
                    (lab.number(&of("events_done")).await > 0).then_some(false)
                })
                .await;
            if waits {
                break;
            }
        }
        std::fs::write(&clock, jump).unwrap();
        let after = lab.event(200, "user_redirect_cancel").await;
        accepted.push(Accepted {
            event: after,
            user: 200,
        });
        lab.drained().await;
    }
    let years: BTreeSet<String> = lab
        .account_log(200)
        .iter()
        .map(|line| line[..4].to_owned())
        .collect();
    assert!(years.len() >= 3, "the clock did not jump: {years:?}");
    daemon.stop().await;
    let entries = journal::read_script(&script);
    let (done, places) = places(lab.db.store.as_ref()).await;
    assert_eq!(done.len(), accepted.len());
    let rest = Rest {
        state: journal::state_of_script(&entries),
        done,
        places,
    };
    let found = check_rest(&accepted, &BTreeSet::new(), &entries, &rest);
    assert_eq!(found, []);
    let firsts = journal::starts(&entries);
    let firsts: Vec<i64> = firsts.iter().filter(|s| s.1 == 1).map(|s| s.0).collect();
    for user in [200, 201] {
        let mine = accepted.iter().filter(|a| a.user == user);
        let wanted: Vec<i64> = mine.map(|a| a.event).collect();
        let found = firsts.iter().copied().filter(|id| wanted.contains(id));
        assert_eq!(found.collect::<Vec<_>>(), wanted, "account {user}");
    }
}

/// The next try stands in the database as a time of day. When the clock was wrong, that is days
/// away for a daemon that starts with the right one.
async fn a_clock_that_was_ahead_stalls_nothing_after_a_start(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"1s\"").await;
    lab.session(
        "Mine",
        "user_redirect() { [[ $try_count != 1 ]] || exit 254; }",
    );
    lab.nas(2, "Mine", 4, &[]).await;
    lab.accounts(2, [200]).await;
    let clock = lab.path("clock");
    // A machine that is slow enough may have tried it again before the daemon is stopped.
    let event = loop {
        let daemon = start(&lab, &clock, "+365d").await;
        let event = lab.event(200, "user_redirect").await;
        lab.until("it has been tried", async || {
            let tried = format!(
                "select (select count(*) from events_stack where id = {event} and state = 'deferred')
                 + (select count(*) from events_done where id = {event})"
            );
            (lab.number(&tried).await > 0).then_some(())
        })
        .await;
        daemon.stop().await;
        if lab.waiting().await > 0 {
            break event;
        }
    };
    let daemon = start(&lab, &clock, "+0").await;
    assert_eq!(lab.ended(event).await.1, "done");
    daemon.stop().await;
}
