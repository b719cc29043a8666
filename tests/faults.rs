//! The daemon is killed (`kill -9`) again and again at random points under load, on each kind of
//! database, with a router and a script NAS. The journals that these write themselves must show
//! that nothing accepted was lost, nothing reordered, nothing overlapped, and that every
//! repetition was announced.
//!
//! `NED_KILLS` changes the number of kills, `NED_SEED` repeats a sequence of random choices
//! (the seed is printed; where the kills hit still depends on the machine).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

mod lab;

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use lab::daemon::Lab;
use lab::db::{Foreign, Kind};
use lab::journal::{self, Accepted, Attempt, CMDS, Entry, Finding, check, peak, repeated};
use lab::on_each_store;
use lab::sim::Router;
use nas_event_daemon::clock;
use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::json;
use tokio::sync::watch;

on_each_store!(killed_at_random_it_loses_and_reorders_nothing);

/// Kills of one run, unless `NED_KILLS` says otherwise.
const KILLS: usize = 40;
/// Producers that post by REST; one more inserts by SQL.
const PRODUCERS: i64 = 4;
/// Accounts of a producer on the router, and on the script NAS.
const ON_ROUTER: i64 = 8;
const ON_SCRIPT: i64 = 3;
/// Events on both stacks above which producers wait: every kill finds work, and at the end it is
/// done within seconds.
const BACKLOG: i64 = 200;
/// Forks of each NAS.
const FORKS: usize = 6;

/// Random choices that can be repeated (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap()]
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Accounts of a producer: (on the router, on the script NAS).
fn accounts(producer: i64) -> (Vec<i64>, Vec<i64>) {
    let (router, script) = (1_000 + producer * 100, 2_000 + producer * 100);
    (
        (router..router + ON_ROUTER).collect(),
        (script..script + ON_SCRIPT).collect(),
    )
}

fn all_accounts(producer: i64) -> Vec<i64> {
    let (router, script) = accounts(producer);
    [router, script].concat()
}

/// What the producers watch.
#[derive(Clone, Copy, Default)]
struct Scene {
    backlog: i64,
    over: bool,
}

/// Waits until there is room for more; `false` = it is over.
async fn room(scene: &mut watch::Receiver<Scene>) -> bool {
    let now = scene.wait_for(|s| s.over || s.backlog < BACKLOG).await;
    now.is_ok_and(|s| !s.over)
}

/// Posts by REST with a key per call, and again until it is told that the call was accepted.
async fn rest_producer(
    lab: &Lab,
    number: i64,
    seed: u64,
    mut scene: watch::Receiver<Scene>,
) -> Vec<Accepted> {
    let mut dice = Dice(seed);
    let users = all_accounts(number);
    let mut accepted = Vec::new();
    for call in 0.. {
        if !room(&mut scene).await {
            break;
        }
        let mine: Vec<i64> = (0..=dice.roll(4)).map(|_| dice.one(&users)).collect();
        let events: Vec<_> = mine
            .iter()
            .map(|user| json!({"cmd": dice.one(&CMDS), "user_id": user}))
            .collect();
        let body = json!({ "events": events });
        let key = format!("producer-{number}-call-{call}");
        let ids = lab
            .until("a call is accepted", async || {
                match lab.try_post("/api/v1/events", &body, Some(&key)).await {
                    Ok((201, answer)) => Some(lab::daemon::ids(&answer)),
                    Ok((503, _)) | Err(_) => None,
                    Ok((status, answer)) => panic!("{status}: {answer}"),
                }
            })
            .await;
        assert_eq!(ids.len(), mine.len());
        let new = ids.into_iter().zip(mine);
        accepted.extend(new.map(|(event, user)| Accepted { event, user }));
    }
    accepted
}

/// Inserts rows as a billing does.
async fn sql_producer(lab: &Lab, seed: u64, mut scene: watch::Receiver<Scene>) -> Vec<Accepted> {
    let mut dice = Dice(seed);
    let mut foreign = Foreign::connect(&lab.db.url).await;
    let users = all_accounts(PRODUCERS);
    let mut accepted = Vec::new();
    while room(&mut scene).await {
        let (cmd, user) = (dice.one(&CMDS), dice.one(&users));
        // A database that is busy for longer than the time-out refuses, and has stored nothing.
        if let Ok(event) = foreign.insert(cmd, user).await {
            accepted.push(Accepted { event, user });
        }
    }
    accepted
}

/// Tells the producers how much waits.
async fn watch_backlog(lab: &Lab, scene: &watch::Sender<Scene>) {
    while !scene.borrow().over {
        let backlog = lab.waiting().await;
        scene.send_modify(|s| s.backlog = backlog);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn kill_again_and_again(lab: &Lab, router: &Router, script: &std::path::Path, seed: u64) {
    let mut dice = Dice(seed);
    let kills = from_environment("NED_KILLS").map_or(KILLS, |n| usize::try_from(n).unwrap());
    for _ in 0..kills {
        // One in five dies while it starts, the others at work.
        let daemon = if dice.roll(5) == 0 {
            lab.spawn()
        } else {
            lab.start().await
        };
        tokio::time::sleep(Duration::from_millis(20 + dice.roll(580))).await;
        // A slow machine does so little between two kills that the same events are hit each
        // time; the fourth time would bury them.
        lab.until("suspects have ended", async || {
            let suspects = "select count(*) from events_stack where deaths >= 3";
            (lab.number(suspects).await == 0).then_some(())
        })
        .await;
        daemon.kill_9().await;
        let killed_us = clock::wall_us();
        let running = lab.running().await;
        journal::note_kill(script, &running);
        journal::note_kill_of_router(&router.journal, &running, killed_us);
    }
}

async fn killed_at_random_it_loses_and_reorders_nothing(kind: Kind) {
    let seed = from_environment("NED_SEED").unwrap_or_else(|| clock::wall_us().unsigned_abs());
    say(&format!("NED_SEED={seed}"));
    let mut dice = Dice(seed);
    let lab = Lab::new(kind, "retry_base = \"100ms\"").await;
    let script = lab.path("script.journal");
    lab.session("Journal", &journal::session(&script, "sleep 0.01"));
    lab.native("Queue", &journal::native());
    let faults = Faults {
        latency_ms: 10,
        ..Faults::default()
    };
    let router = Router::start(lab.root(), "router", faults);
    let forks = i64::try_from(FORKS).unwrap();
    router.serve_as(&lab, 1, "Queue", forks).await;
    lab.nas(2, "Journal", forks, &[]).await;
    for producer in 0..=PRODUCERS {
        let (on_router, on_script) = accounts(producer);
        lab.accounts(1, on_router).await;
        lab.accounts(2, on_script).await;
    }

    let (scene, watched) = watch::channel(Scene::default());
    let mut seeds = || dice.roll(u64::MAX);
    let producers = async {
        tokio::join!(
            rest_producer(&lab, 0, seeds(), watched.clone()),
            rest_producer(&lab, 1, seeds(), watched.clone()),
            rest_producer(&lab, 2, seeds(), watched.clone()),
            rest_producer(&lab, 3, seeds(), watched.clone()),
            sql_producer(&lab, seeds(), watched.clone()),
        )
    };
    let murder = async {
        kill_again_and_again(&lab, &router, &script, seed).await;
        let last = lab.start().await;
        scene.send_modify(|s| s.over = true);
        last
    };
    let ((a, b, c, d, e), (), last) = tokio::join!(producers, watch_backlog(&lab, &scene), murder);
    let accepted = [a, b, c, d, e].concat();
    lab.drained().await;
    last.stop().await;

    // An event during whose execution the daemon died too often is buried, not lost.
    let dead = lab.rows("select id, reason from events_dead").await;
    for row in &dead {
        assert!(row[1].starts_with("the daemon died"), "{row:?}");
    }
    let excused: BTreeSet<i64> = dead.iter().map(|row| row[0].parse().unwrap()).collect();
    assert!(excused.len() <= 1 + accepted.len() / 100, "{dead:?}");
    let on_script = |a: &Accepted| a.user >= 2_000;
    for (name, mine, entries) in [
        (
            "router",
            accepted.iter().copied().filter(|a| !on_script(a)).collect(),
            journal::read_router(&router.journal),
        ),
        (
            "script",
            accepted
                .iter()
                .copied()
                .filter(on_script)
                .collect::<Vec<_>>(),
            journal::read_script(&script),
        ),
    ] {
        let again = repeated(&entries);
        say(&format!(
            "{name}: {} events accepted, {again} executed again",
            mine.len()
        ));
        assert_eq!(check(&mine, &excused, &entries), [], "{name}");
        assert!(peak(&entries) <= FORKS, "{name}");
        assert!(again > 0, "{name}: no kill hit anything");
    }
    let ended = lab.number("select count(*) from events_done").await;
    let total = i64::try_from(accepted.len() - excused.len()).unwrap();
    assert_eq!(ended, total, "each event is in one place");
    if kind == Kind::Sqlite {
        assert_eq!(
            lab.rows("select * from pragma_integrity_check").await,
            [["ok"]]
        );
    }
}

// -- negative controls: the checker finds what is planted ---------------------------------------

fn start(event: i64, user: i64, try_count: u32, dup: bool) -> Entry {
    Entry::Start {
        event,
        user,
        try_count,
        dup,
    }
}

fn end(event: i64, try_count: u32) -> Entry {
    Entry::End { event, try_count }
}

fn kill(running: &[Attempt]) -> Entry {
    Entry::Kill {
        running: running.iter().copied().collect(),
    }
}

/// Two accounts, 7 with the events 1 and 3, 8 with 2; a kill while 1 runs, which runs again.
fn sound() -> (Vec<Accepted>, Vec<Entry>) {
    let accepted = [(1, 7), (2, 8), (3, 7)].map(|(event, user)| Accepted { event, user });
    let entries = vec![
        start(1, 7, 1, false),
        start(2, 8, 1, false),
        end(2, 1),
        kill(&[(1, 1)]),
        start(1, 7, 2, true),
        end(1, 2),
        start(3, 7, 1, false),
        end(3, 1),
    ];
    (accepted.to_vec(), entries)
}

fn found(change: impl FnOnce(&mut Vec<Accepted>, &mut Vec<Entry>)) -> Vec<Finding> {
    let (mut accepted, mut entries) = sound();
    change(&mut accepted, &mut entries);
    check(&accepted, &BTreeSet::new(), &entries)
}

#[test]
fn a_sound_journal_has_no_findings() {
    assert_eq!(found(|_, _| {}), []);
    let (_, entries) = sound();
    assert_eq!((peak(&entries), repeated(&entries)), (2, 1));
}

#[test]
fn a_lost_event_is_found() {
    let lost = found(|_, entries| entries.truncate(6));
    assert_eq!(lost, [Finding::Lost { event: 3 }]);
    let (accepted, entries) = sound();
    assert_eq!(check(&accepted, &BTreeSet::from([3]), &entries[..6]), []);
    let alien = found(|accepted, _| {
        accepted.pop();
    });
    assert_eq!(alien, [Finding::Alien { event: 3 }]);
}

#[test]
fn a_reordered_event_is_found() {
    let findings = found(|accepted, _| accepted.swap(0, 2));
    let expected = Finding::Reordered {
        earlier: 3,
        later: 1,
    };
    assert_eq!(findings, [expected]);
}

#[test]
fn overlapping_events_are_found() {
    let both = Finding::Overlap {
        first: 1,
        second: 3,
    };
    let findings = found(|_, entries| entries.swap(5, 6));
    assert_eq!(findings, [both]);
    // The first attempt outlives its daemon, until after it was started again.
    let same = Finding::Overlap {
        first: 1,
        second: 1,
    };
    let findings = found(|_, entries| entries.insert(5, end(1, 1)));
    assert_eq!(findings, std::slice::from_ref(&same));
    // Or it even starts after that; in time it would have been only late.
    let findings = found(|_, entries| {
        let late = entries.remove(0);
        entries.insert(4, late);
        entries[4] = start(1, 7, 1, true);
    });
    assert_eq!(findings, [same]);
    let findings = found(|_, entries| {
        let late = entries.remove(0);
        entries.insert(3, late);
    });
    assert_eq!(findings, []);
}

#[test]
fn an_unannounced_repetition_is_found() {
    let findings = found(|_, entries| entries[4] = start(1, 7, 2, false));
    let expected = Finding::Unflagged {
        event: 1,
        try_count: 2,
    };
    assert_eq!(findings, [expected]);
}

#[test]
fn a_repetition_without_a_kill_is_found() {
    let findings = found(|_, entries| entries[3] = kill(&[(2, 1)]));
    let expected = Finding::Repeated {
        event: 1,
        times: 2,
        kills: 0,
    };
    assert_eq!(findings, [expected]);
}

#[test]
fn journals_are_read_as_they_are_written() {
    let text = "start 1 7 1 0\nend 1 1\nkill 1/1 2/3\nkill\n";
    let expected = [
        start(1, 7, 1, false),
        end(1, 1),
        kill(&[(1, 1), (2, 3)]),
        kill(&[]),
    ];
    assert_eq!(journal::of_script(text), expected);
    let record = |from: i64, to: i64, comment: &str, trap: Option<&str>| {
        json!({"at_us": from, "path": "/queue/simple/add", "args": {"comment": comment},
            "rows": [], "trap": trap, "done_at_us": to})
    };
    let lines = [
        record(10, 20, "1 7 1 0", Some("failure: already have such name")),
        record(21, 30, "1 7 1 0", None),
        record(25, 26, "2 8 1 0", Some("failure: already have such name")),
        json!({"killed_at_us": 31, "running": [[2, 1]]}),
        record(40, 40, "2 8 2 1", None),
    ];
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    let expected = [
        start(1, 7, 1, false),
        end(1, 1),
        kill(&[(2, 1)]),
        start(2, 8, 2, true),
        end(2, 2),
    ];
    assert_eq!(journal::of_router(&text), expected);
}
