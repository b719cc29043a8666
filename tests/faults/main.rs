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

#[path = "../lab/mod.rs"]
mod lab;

mod checker;
mod database;
mod dead;
mod disk;
mod drivers;
mod fakes;
mod foreign;
mod hang;
mod jumps;
mod later;
mod power;
mod resize;
mod steady;
mod stops;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::daemon::Lab;
use lab::db::{Foreign, Kind};
use lab::dice::Dice;
use lab::journal::{self, Accepted, CMDS, Entry, Rest, check, check_rest, peak, repeated};
use lab::sim::Router;
use lab::{from_environment, on_each_store, say};
use nas_event_daemon::clock;
use nas_event_daemon::sim::mikrotik::Faults;
use nas_event_daemon::store::Store;
use serde_json::{Value, json};
use tokio::sync::watch;

on_each_store!(killed_at_random_it_loses_and_reorders_nothing);

/// Kills of one run, unless `NED_KILLS` says otherwise.
const KILLS: usize = 100;
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

/// Posts with a key, again and again until it is told that the call was accepted; the ids.
async fn told(lab: &Lab, body: &Value, key: &str) -> Vec<i64> {
    lab.until("a call is accepted", async || {
        match lab.try_post("/api/v1/events", body, Some(key)).await {
            Ok((201, answer)) => Some(lab::daemon::ids(&answer)),
            Ok((503, _)) | Err(_) => None,
            Ok((status, answer)) => panic!("{status}: {answer}"),
        }
    })
    .await
}

/// Posts by REST with a key per call, and again until it is told that the call was accepted.
async fn rest_producer(
    lab: &Lab,
    number: i64,
    users: Vec<i64>,
    seed: u64,
    mut scene: watch::Receiver<Scene>,
) -> Vec<Accepted> {
    let mut dice = Dice(seed);
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
        let ids = told(lab, &body, &key).await;
        assert_eq!(ids.len(), mine.len());
        let new = ids.into_iter().zip(mine);
        accepted.extend(new.map(|(event, user)| Accepted { event, user }));
    }
    accepted
}

/// Inserts rows as a billing does.
async fn sql_producer(
    lab: &Lab,
    users: Vec<i64>,
    seed: u64,
    mut scene: watch::Receiver<Scene>,
) -> Vec<Accepted> {
    let mut dice = Dice(seed);
    let mut foreign = Foreign::connect(&lab.db.url).await;
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

async fn kill_again_and_again(lab: &Lab, router: &Router, script: &Path, seed: u64) {
    let mut dice = Dice(seed);
    let kills = from_environment("NED_KILLS").map_or(KILLS, |n| usize::try_from(n).unwrap());
    for _ in 0..kills {
        // One in five dies while it starts, the others at work.
        let daemon = if dice.roll(5) == 0 {
            lab.spawn()
        } else {
            lab.start().await
        };
        tokio::time::sleep(Duration::from_millis(10 + dice.roll(240))).await;
        suspects_have_ended(lab).await;
        daemon.kill_9().await;
        let killed_us = clock::wall_us();
        let running = lab.running().await;
        journal::note_kill(script, &running);
        journal::note_kill_of_router(&router.journal, &running, killed_us);
    }
}

/// The done events, and in how many tables each event stands.
async fn places(store: &dyn Store) -> (BTreeSet<i64>, BTreeMap<i64, usize>) {
    let statement = "select id, max(done), count(*) from (
               select id, 1 as done from events_done
               union all select id, 0 from events_dead
               union all select id, 0 from events_stack
               union all select id, 0 from events_stack_compact) every_place group by id";
    let rows = store.sql(statement, false).await.unwrap().rows;
    let number = |row: &Vec<Option<String>>, at: usize| -> i64 {
        row[at].as_ref().unwrap().parse().unwrap()
    };
    let done = rows.iter().filter(|row| number(row, 1) == 1);
    let place = |row| (number(row, 0), usize::try_from(number(row, 2)).unwrap());
    (
        done.map(|row| number(row, 0)).collect(),
        rows.iter().map(place).collect(),
    )
}

/// A NAS at the end of a run: what was accepted for it, its journal, and which event left each
/// of its accounts as it is there.
struct AtRest<'a> {
    name: &'a str,
    accepted: Vec<Accepted>,
    entries: Vec<Entry>,
    state: BTreeMap<i64, i64>,
}

impl<'a> AtRest<'a> {
    fn router(router: &Router, accepted: Vec<Accepted>) -> Self {
        Self {
            name: "router",
            accepted,
            entries: journal::read_router(&router.journal),
            state: state_of_router(router),
        }
    }

    fn script(name: &'a str, journal: &Path, accepted: Vec<Accepted>) -> Self {
        let entries = journal::read_script(journal);
        Self {
            name,
            accepted,
            state: journal::state_of_script(&entries),
            entries,
        }
    }
}

/// Nothing was lost, reordered, overlapped or repeated in silence; NASes and database agree.
/// `excused` events are dead, and only they.
async fn check_at_rest(store: &dyn Store, excused: &BTreeSet<i64>, nases: &[AtRest<'_>]) {
    let (done, places) = places(store).await;
    let mut total = 0;
    for nas in nases {
        let found = check(&nas.accepted, excused, &nas.entries);
        assert_eq!(found, [], "{}", nas.name);
        let rest = Rest {
            state: nas.state.clone(),
            done: done.clone(),
            places: places.clone(),
        };
        let found = check_rest(&nas.accepted, excused, &nas.entries, &rest);
        assert_eq!(found, [], "{} at rest", nas.name);
        total += nas.accepted.len();
    }
    assert_eq!(done.len(), total - excused.len(), "what is done");
}

/// What the NAS has accepted (for this account alone, if one is named) and this log does not know to
/// be done. A try that a kill cut may have no record: they are written with its first answers.
fn untold(
    nas: &AtRest<'_>,
    excused: &BTreeSet<i64>,
    user: Option<i64>,
    log: &[String],
) -> Vec<i64> {
    let ended = log.iter().filter(|line| line.contains(" end result=done "));
    let event = |line: &String| -> i64 {
        let rest = line.split_once("event=").unwrap().1;
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let told: BTreeSet<i64> = ended.map(event).collect();
    let mine = nas
        .accepted
        .iter()
        .filter(|one| user.is_none_or(|user| user == one.user));
    mine.map(|one| one.event)
        .filter(|event| !told.contains(event) && !excused.contains(event))
        .collect()
}

/// Nothing is missing in the log of the NAS, nor in those of its accounts.
fn check_logs(lab: &Lab, id: i64, nas: &AtRest<'_>, excused: &BTreeSet<i64>) {
    let lost = untold(nas, excused, None, &lab.nas_log(id));
    assert_eq!(lost, [0; 0], "log of the {}", nas.name);
    let users: BTreeSet<i64> = nas.accepted.iter().map(|one| one.user).collect();
    for user in users {
        let mut log = lab.account_log(user);
        let lost = untold(nas, excused, Some(user), &log);
        assert_eq!(lost, [0; 0], "log of account {user}");
        // The control: the end of its last event is missed, however often that was carried out.
        let last = nas.accepted.iter().rfind(|one| one.user == user).unwrap();
        let gone = format!("event={} ", last.event);
        log.retain(|line| !(line.contains(&gone) && line.contains(" end result=done ")));
        let lost = untold(nas, &BTreeSet::new(), Some(user), &log);
        assert!(
            lost.contains(&last.event),
            "the control of account {user}: {lost:?}"
        );
    }
}

/// The events that were buried because the daemon died too often while they ran: not lost.
async fn buried(lab: &Lab, accepted: usize) -> BTreeSet<i64> {
    let dead = lab.rows("select id, reason from events_dead").await;
    for row in &dead {
        assert!(row[1].starts_with("the daemon died"), "{row:?}");
    }
    assert!(dead.len() <= 1 + accepted / 100, "{dead:?}");
    dead.iter().map(|row| row[0].parse().unwrap()).collect()
}

/// Waits until no event is left that the next death would bury: a slow machine does so little
/// between two kills that the same events are hit each time.
async fn suspects_have_ended(lab: &Lab) {
    lab.until("suspects have ended", async || {
        let suspects = "select count(*) from events_stack where deaths >= 3";
        (lab.number(suspects).await == 0).then_some(())
    })
    .await;
}

/// Which event left each account as it is on the router, by the router's own tables.
fn state_of_router(router: &Router) -> BTreeMap<i64, i64> {
    let rows = router.sim.rows("/queue/simple");
    rows.iter()
        .map(|row| {
            let words: Vec<&str> = row["comment"].split(' ').collect();
            (words[1].parse().unwrap(), words[0].parse().unwrap())
        })
        .collect()
}

/// NAS 1 is a router, NAS 2 a script, and both write down what they do; and where the script does.
async fn two_nases(lab: &Lab, step: &str, latency_ms: u64, forks: i64) -> (Router, PathBuf) {
    let script = lab.path("script.journal");
    lab.session("Journal", &journal::session(&script, step));
    lab.native("Queue", &journal::native());
    let faults = Faults {
        latency_ms,
        ..Faults::default()
    };
    let router = Router::start(lab.root(), "router", faults);
    router.serve_as(lab, 1, "Queue", forks).await;
    lab.nas(2, "Journal", forks, &[]).await;
    (router, script)
}

async fn killed_at_random_it_loses_and_reorders_nothing(kind: Kind) {
    let seed = from_environment("NED_SEED").unwrap_or_else(|| clock::wall_us().unsigned_abs());
    say(&format!("NED_SEED={seed}"));
    let mut dice = Dice(seed);
    let lab = Lab::new(kind, "retry_base = \"100ms\"").await;
    let forks = i64::try_from(FORKS).unwrap();
    let (router, script) = two_nases(&lab, "sleep 0.01", 10, forks).await;
    for producer in 0..=PRODUCERS {
        let (on_router, on_script) = accounts(producer);
        lab.accounts(1, on_router).await;
        lab.accounts(2, on_script).await;
    }

    let (scene, watched) = watch::channel(Scene::default());
    let mut seeds = || dice.roll(u64::MAX);
    let producers = async {
        tokio::join!(
            rest_producer(&lab, 0, all_accounts(0), seeds(), watched.clone()),
            rest_producer(&lab, 1, all_accounts(1), seeds(), watched.clone()),
            rest_producer(&lab, 2, all_accounts(2), seeds(), watched.clone()),
            rest_producer(&lab, 3, all_accounts(3), seeds(), watched.clone()),
            sql_producer(&lab, all_accounts(PRODUCERS), seeds(), watched.clone()),
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

    let excused = buried(&lab, accepted.len()).await;
    let (on_script, on_router) = accepted.into_iter().partition(|a| a.user >= 2_000);
    let nases = [
        AtRest::router(&router, on_router),
        AtRest::script("script", &script, on_script),
    ];
    check_at_rest(lab.db.store.as_ref(), &excused, &nases).await;
    for (nas, id) in nases.iter().zip(1..) {
        check_logs(&lab, id, nas, &excused);
    }
    for nas in nases {
        let (name, again) = (nas.name, repeated(&nas.entries));
        say(&format!(
            "{name}: {} events accepted, {again} executed again",
            nas.accepted.len()
        ));
        assert!(peak(&nas.entries) <= FORKS, "{name}");
        assert!(again > 0, "{name}: no kill hit anything");
    }
    if kind == Kind::Sqlite {
        assert_eq!(
            lab.rows("select * from pragma_integrity_check").await,
            [["ok"]]
        );
    }
}
