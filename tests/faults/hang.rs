//! The database does not take a turn for long while events are claimed ahead of their forks. What
//! was true when they were claimed may not be so any more: nothing of them starts on that old
//! claim, whoever makes room meanwhile. They go back and are claimed anew, and nothing is lost,
//! doubled or reordered by it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nas_event_daemon::clock::tick_ms;
use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::json;
use sqlx::Connection;

use crate::lab::daemon::Lab;
use crate::lab::db::{Foreign, Kind};
use crate::lab::journal::{self, Accepted, Entry, gated, let_through, repeated};
use crate::lab::on_each_store;
use crate::lab::sim::Router;
use crate::{AtRest, check_at_rest};

on_each_store!(what_is_ahead_does_not_start_late_behind_a_turn_that_hangs);

/// Of the NAS whose events are ahead.
const FORKS: usize = 8;
/// Its accounts, enough for every fork and for all that may be ahead; and events of each.
const ACCOUNTS: std::ops::Range<i64> = 200..280;
const EVENTS: i64 = 3;
/// On a router, so that there is a turn to hang at any moment.
const OTHERS: std::ops::Range<i64> = 1_000..1_050;
const OTHER_EVENTS: i64 = 10;
/// How long forks may take to find what is ahead of them: one that becomes free too late starts
/// nothing of it.
const FILLED_MS: u64 = 3_000;

/// Puts events of these accounts on the compact stack, as a billing does.
async fn inserted(lab: &Lab, users: std::ops::Range<i64>, each: i64) -> Vec<Accepted> {
    let rounds = (0..each).flat_map(|_| users.clone());
    let rows: Vec<String> = rounds
        .map(|user| format!("('user_redirect', {user})"))
        .collect();
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values {}",
        rows.join(", ")
    ))
    .await;
    let rows = lab
        .rows(&format!(
            "select id, user_id from events_stack_compact
             where user_id between {} and {} order by id",
            users.start,
            users.end - 1
        ))
        .await;
    let accepted = |row: &Vec<String>| Accepted {
        event: row[0].parse().unwrap(),
        user: row[1].parse().unwrap(),
    };
    rows.iter().map(accepted).collect()
}

/// Posts one more event of each of these accounts.
async fn posted(lab: &Lab, users: std::ops::Range<i64>) -> Vec<Accepted> {
    let event = |user| json!({"cmd": "user_redirect", "user_id": user});
    let events: Vec<_> = users.clone().map(event).collect();
    let ids = lab.post(json!({ "events": events })).await;
    let accepted = |(event, user)| Accepted { event, user };
    ids.into_iter().zip(users).map(accepted).collect()
}

/// From here on nobody can write what a turn writes.
async fn lock(lab: &Lab) -> Foreign {
    let mut other = Foreign::connect(&lab.db.url).await;
    other
        .run(match lab.db.kind {
            Kind::Sqlite => "begin immediate",
            Kind::Postgres => "begin; lock table events_stack in exclusive mode",
        })
        .await;
    other
}

/// What SQLite's daemon says of a turn that has hung for five seconds.
const REFUSED: &str = "the database refused a turn";

fn refused(lab: &Lab) -> usize {
    let lines = lab.daemon_log();
    lines.iter().filter(|line| line.contains(REFUSED)).count()
}

/// Waits until a turn has hung for longer than anything may be ahead; so many were refused before.
async fn until_it_is_late(lab: &Lab, before: usize) {
    match lab.db.kind {
        Kind::Sqlite => {
            lab.said_times(REFUSED, before + 1).await;
        }
        Kind::Postgres => {
            let mut eyes = sqlx::PgConnection::connect(&lab.db.url).await.unwrap();
            lab.until("a turn hangs", async || {
                let hung: i64 = sqlx::query_scalar(
                    "select count(*) from pg_stat_activity where datname = current_database()
                     and application_name = 'nas_event_daemon' and wait_event_type = 'Lock'
                     and clock_timestamp() - query_start > interval '1 second'",
                )
                .fetch_one(&mut eyes)
                .await
                .unwrap();
                (hung > 0).then_some(())
            })
            .await;
        }
    }
}

/// The claimed events of the first NAS and when they were claimed, as the database has it.
async fn claims(lab: &Lab, table: &str, filter: &str) -> BTreeMap<i64, String> {
    let rows = lab
        .rows(&format!(
            "select id, started_at from {table} where nas_id = 2 and {filter}"
        ))
        .await;
    let claim = |row: Vec<String>| (row[0].parse().unwrap(), row[1].clone());
    rows.into_iter().map(claim).collect()
}

/// Events that have started on the script NAS, and how many of them have not ended.
fn begun(script: &Path) -> (BTreeSet<i64>, usize) {
    let entries = journal::read_script(script);
    let started = entries.iter().filter_map(|entry| match entry {
        Entry::Start { event, .. } => Some(*event),
        Entry::End { .. } | Entry::Kill { .. } => None,
    });
    (started.collect(), journal::running(&entries).len())
}

/// Events that are ahead while every fork is busy and the database is locked.
struct Caught {
    /// Each with its claim.
    ahead: BTreeMap<i64, String>,
    lock: Foreign,
    /// Turns that were refused before.
    refused: usize,
}

/// Closes the gate and locks the database while events are ahead. `None`: all of them had found a
/// fork meanwhile, or some fork had become free too late for them.
async fn caught(lab: &Lab, script: &Path, gate: &Path) -> Option<Caught> {
    let refused = refused(lab);
    std::fs::remove_file(gate.join("all")).unwrap();
    let mut lock = lock(lab).await;
    let claimed = claims(lab, "events_stack", "state = 'running'").await;
    let began = tick_ms();
    let ahead = lab
        .until("every fork is busy, or nothing is ahead", async || {
            let (started, running) = begun(script);
            let mut ahead = claimed.clone();
            ahead.retain(|event, _| !started.contains(event));
            if ahead.is_empty() || tick_ms() - began > FILLED_MS {
                return Some(None);
            }
            (running == FORKS).then_some(Some(ahead))
        })
        .await;
    let Some(ahead) = ahead else {
        lock.run("rollback").await;
        let_through(gate, "all");
        return None;
    };
    Some(Caught {
        ahead,
        lock,
        refused,
    })
}

async fn what_is_ahead_does_not_start_late_behind_a_turn_that_hangs(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let script = lab.path("script.journal");
    let gate = lab.path("gate");
    lab.session("Journal", &journal::session(&script, &gated(&gate)));
    let_through(&gate, "all");
    lab.native("Queue", &journal::native());
    let faults = Faults {
        latency_ms: 5,
        ..Faults::default()
    };
    let router = Router::start(lab.root(), "router", faults);
    router.serve_as(&lab, 1, "Queue", 2).await;
    let forks = i64::try_from(FORKS).unwrap();
    lab.nas(2, "Journal", forks, &[]).await;
    lab.accounts(1, OTHERS).await;
    lab.accounts(2, ACCOUNTS).await;
    let mut accepted = inserted(&lab, ACCOUNTS, EVENTS).await;
    let mut others = inserted(&lab, OTHERS, OTHER_EVENTS).await;
    let daemon = lab.start().await;

    let mut seen = 0;
    let Caught {
        ahead,
        mut lock,
        refused,
    } = loop {
        // What its attempts take is known from those that have ended.
        seen += FORKS;
        lab.until("some have ended", async || {
            let ended = "select count(*) from events_done where nas_id = 2";
            let ended = usize::try_from(lab.number(ended).await).unwrap();
            (ended >= seen).then_some(())
        })
        .await;
        if let Some(caught) = caught(&lab, &script, &gate).await {
            break caught;
        }
        // As many tries as it takes.
        accepted.extend(posted(&lab, ACCOUNTS).await);
        for _ in 0..2 {
            others.extend(posted(&lab, OTHERS).await);
        }
    };
    until_it_is_late(&lab, refused).await;
    // The forks become free for them, and nobody may use that.
    let (before, _) = begun(&script);
    let_through(&gate, "all");
    lab.until("what ran has ended", async || {
        (begun(&script).1 == 0).then_some(())
    })
    .await;
    let ids: Vec<String> = ahead.keys().map(i64::to_string).collect();
    let ids = format!("id in ({})", ids.join(", "));
    assert_eq!(claims(&lab, "events_stack", &ids).await, ahead);
    assert_eq!(begun(&script).0, before, "it started late");
    lock.run("rollback").await;
    lab.drained().await;
    daemon.stop().await;

    let again = claims(&lab, "events_done", &ids).await;
    assert_eq!(again.len(), ahead.len());
    for (event, claim) in &ahead {
        assert_ne!(again[event], *claim, "event {event} ran on its old claim");
    }
    let touched = "select count(*) from events_done where attempts <> 1 or possible_duplicate";
    assert_eq!(lab.number(touched).await, 0);
    let nases = [
        AtRest::router(&router, others),
        AtRest::script("script", &script, accepted),
    ];
    for nas in &nases {
        assert_eq!(repeated(&nas.entries), 0, "{}", nas.name);
    }
    check_at_rest(lab.db.store.as_ref(), &BTreeSet::new(), &nases).await;
}
