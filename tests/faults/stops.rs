//! The daemon is told to stop again and again under load: SIGTERM, SIGINT, twice, with SIGHUP
//! before and after, while it starts and while it drains. It ends well and in time, leaves nothing
//! `running`, and what a stop cut short runs again with its warning. `NED_STOPS` changes the number
//! of stops, `NED_SEED` the choices.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use nas_event_daemon::clock;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::journal::{self, Accepted, Attempt, repeated};
use crate::lab::on_each_store;
use crate::lab::sim::Router;
use crate::{
    AtRest, Dice, Scene, all_accounts, check_at_rest, from_environment, rest_producer, say,
    sql_producer, state_of_router, two_nases, watch_backlog,
};

on_each_store!(stopped_at_random_it_ends_in_time_and_leaves_nothing_running);

/// Stops of one run, unless `NED_STOPS` says otherwise.
const STOPS: u64 = 10;
/// What running events get.
const DRAIN_MS: u64 = 300;
/// Longest time from the first signal to the end.
const END_MS: u64 = DRAIN_MS + 5_000;
/// Producers that post by REST; one more inserts by SQL.
const PRODUCERS: i64 = 2;
/// Tries of one life of the daemon are told from those of the others by so much.
const LIFE: i64 = 1_000;

/// One in so many scripts takes longer than the drain.
const SLOW: &str = "if (( event_id % 19 == 0 )); then sleep 1; else sleep 0.01; fi";

/// Within so much after a signal events may still be claimed. Asked of the middle one of all stops: a
/// machine that is busy with other things spoils some.
const CLAIMS_MS: i64 = 100;

/// One stop.
struct Stopped {
    /// From the first signal to the end.
    took_ms: u64,
    /// From the first signal to the last claim; below 0 if that came before. None: it was told while
    /// it started, before it claimed anything.
    claimed_ms: Option<i64>,
}

/// When the last event was claimed.
async fn last_claim_ms(lab: &Lab) -> i64 {
    let ms = match lab.db.kind {
        Kind::Sqlite => "cast(round(unixepoch(max(at), 'subsec') * 1000) as integer)",
        Kind::Postgres => "cast(extract(epoch from max(at)) * 1000 as bigint)",
    };
    lab.number(&format!(
        "select coalesce({ms}, 0) from (select started_at as at from events_done
           union all select started_at from events_stack) claims"
    ))
    .await
}

/// Starts a daemon and stops it in one of many ways.
async fn stopped(lab: &Lab, dice: &mut Dice) -> Stopped {
    let moment = |dice: &mut Dice, most| Duration::from_millis(dice.roll(most));
    // One in five is told while it starts; before it listens to signals it just ends.
    let early = dice.roll(5) == 0;
    let mut daemon = if early {
        lab.spawn()
    } else {
        lab.start().await
    };
    tokio::time::sleep(moment(dice, 250)).await;
    if !early {
        for _ in 0..dice.roll(3) {
            daemon.signal(Signal::SIGHUP);
        }
    }
    let first = dice.one(&[Signal::SIGTERM, Signal::SIGINT]);
    let told_ms = clock::wall_ms();
    daemon.signal(first);
    let began = clock::tick_ms();
    match dice.roll(3) {
        0 if !early => {
            tokio::time::sleep(moment(dice, 100)).await;
            daemon.signal(Signal::SIGHUP);
        }
        1 => {
            tokio::time::sleep(moment(dice, 100)).await;
            daemon.signal(dice.one(&[Signal::SIGTERM, Signal::SIGINT]));
        }
        _ => {}
    }
    let status = daemon.end().await;
    let took = clock::tick_ms() - began;
    let unheard = early && status.signal() == Some(first as i32);
    assert!(status.success() || unheard, "{status}\n{}", lab.stderr());
    assert!(took <= END_MS, "{took} ms from the first signal to the end");
    let claimed_ms = last_claim_ms(lab).await - told_ms;
    Stopped {
        took_ms: took,
        claimed_ms: (!early).then_some(claimed_ms),
    }
}

/// What the last stop cut short: those events are back and flagged. The try was given back, so the
/// number that it had is one more.
async fn cut(lab: &Lab, known: &mut BTreeSet<(String, String)>) -> BTreeSet<Attempt> {
    let rows = lab
        .rows("select id, started_at, try_count from events_stack where possible_duplicate")
        .await;
    let mut attempts = BTreeSet::new();
    for row in rows {
        if known.insert((row[0].clone(), row[1].clone())) {
            let tries: u32 = row[2].parse().unwrap();
            attempts.insert((row[0].parse().unwrap(), tries + 1));
        }
    }
    attempts
}

async fn stop_again_and_again(lab: &Lab, router: &Router, script: &Path, seed: u64) {
    let mut dice = Dice(seed);
    let mut known = BTreeSet::new();
    let (mut stops, mut slowest, mut all) = (0, 0, 0);
    let mut claims = Vec::new();
    let wanted = from_environment("NED_STOPS").unwrap_or(STOPS);
    while stops < wanted || all == 0 {
        stops += 1;
        let stop = stopped(lab, &mut dice).await;
        slowest = slowest.max(stop.took_ms);
        claims.extend(stop.claimed_ms);
        assert_eq!(lab.running().await, BTreeSet::new(), "left running");
        // The router carries out what had reached it.
        lab.until("the router rests", async || {
            (router.sim.seen().running == 0).then_some(())
        })
        .await;
        let cut = cut(lab, &mut known).await;
        all += cut.len();
        journal::note_kill(script, &cut);
        journal::note_kill_of_router(&router.journal, &cut, clock::wall_us());
    }
    claims.sort_unstable();
    // None, if nothing was claimed after any signal.
    let middle = claims.get(claims.len() / 2).copied().unwrap_or_default();
    let latest = claims.last().copied().unwrap_or_default();
    say(&format!(
        "{stops} stops, {all} attempts cut short, slowest end {slowest} ms; last claims {middle} ms \
         after the signal in the middle, {latest} ms at most"
    ));
    assert!(
        middle <= CLAIMS_MS,
        "ms from signals to last claims: {claims:?}"
    );
}

/// The journal of a script with tries that differ between the lives of the daemon: the next one
/// counts a try anew that was given back.
fn of_script(text: &str) -> String {
    let mut life = 0;
    let mut out = String::new();
    for line in text.lines() {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let later = |text: &str| (text.parse::<i64>().unwrap() + life * LIFE).to_string();
        match words[0].as_str() {
            "start" => words[3] = later(&words[3]),
            "end" => words[2] = later(&words[2]),
            "kill" => {
                for word in &mut words[1..] {
                    let (event, tries) = word.split_once('/').unwrap();
                    *word = format!("{event}/{}", later(tries));
                }
                life += 1;
            }
            other => panic!("{other:?} in a journal"),
        }
        out.push_str(&words.join(" "));
        out.push('\n');
    }
    out
}

/// The same of a router's.
fn of_router(text: &str) -> String {
    let mut life = 0;
    let mut out = String::new();
    for line in text.lines() {
        let mut record: Value = serde_json::from_str(line).unwrap();
        if let Some(running) = record["running"].as_array_mut() {
            for attempt in running {
                attempt[1] = json!(attempt[1].as_i64().unwrap() + life * LIFE);
            }
            life += 1;
        } else {
            let comment = record["args"]["comment"].as_str().unwrap();
            let mut words: Vec<String> = comment.split(' ').map(str::to_owned).collect();
            words[2] = (words[2].parse::<i64>().unwrap() + life * LIFE).to_string();
            record["args"]["comment"] = json!(words.join(" "));
        }
        out.push_str(&format!("{record}\n"));
    }
    out
}

async fn stopped_at_random_it_ends_in_time_and_leaves_nothing_running(kind: Kind) {
    let seed = from_environment("NED_SEED").unwrap_or_else(|| clock::wall_us().unsigned_abs());
    say(&format!("NED_SEED={seed}"));
    let mut dice = Dice(seed);
    let dispatch = format!("retry_base = \"100ms\"\ndrain = \"{DRAIN_MS}ms\"");
    let lab = Lab::new(kind, &dispatch).await;
    let (router, script) = two_nases(&lab, SLOW, 20, 6).await;
    for producer in 0..=PRODUCERS {
        let (on_router, on_script) = crate::accounts(producer);
        lab.accounts(1, on_router).await;
        lab.accounts(2, on_script).await;
    }
    let (scene, watched) = watch::channel(Scene::default());
    let mut seeds = || dice.roll(u64::MAX);
    let producers = async {
        tokio::join!(
            rest_producer(&lab, 0, all_accounts(0), seeds(), watched.clone()),
            rest_producer(&lab, 1, all_accounts(1), seeds(), watched.clone()),
            sql_producer(&lab, all_accounts(PRODUCERS), seeds(), watched.clone()),
        )
    };
    let stops = async {
        stop_again_and_again(&lab, &router, &script, seed).await;
        let last = lab.start().await;
        scene.send_modify(|s| s.over = true);
        last
    };
    let ((a, b, c), (), last) = tokio::join!(producers, watch_backlog(&lab, &scene), stops);
    let accepted = [a, b, c].concat();
    lab.drained().await;
    last.stop().await;

    let (on_script, on_router): (Vec<Accepted>, _) =
        accepted.iter().copied().partition(|a| a.user >= 2_000);
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let entries = journal::of_script(&of_script(&read(&script)));
    let nases = [
        AtRest {
            name: "router",
            accepted: on_router,
            entries: journal::of_router(&of_router(&read(&router.journal))),
            state: state_of_router(&router),
        },
        AtRest {
            name: "script",
            accepted: on_script,
            state: journal::state_of_script(&entries),
            entries,
        },
    ];
    check_at_rest(lab.db.store.as_ref(), &BTreeSet::new(), &nases).await;
    let again: usize = nases.iter().map(|nas| repeated(&nas.entries)).sum();
    say(&format!(
        "{} events accepted, {again} executed again",
        accepted.len()
    ));
}
