//! The daemon is killed (`kill -9`) at random points while it works for NASes of four drivers at
//! once: SSH, telnet, RADIUS, HTTP. What each NAS itself has written down must show that nothing
//! accepted was lost, nothing reordered or overlapped, and that every repetition was announced.

use std::collections::BTreeSet;
use std::time::Duration;

use nas_event_daemon::clock;
use serde_json::json;
use tokio::sync::watch;

use crate::fakes::{Driver, Fakes, Kill, as_router};
use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::journal::{self, Accepted, Entry, Finding, check, peak, repeated, starts};
use crate::lab::on_each_store;
use crate::{
    AtRest, Dice, Scene, buried, check_at_rest, from_environment, rest_producer, say, sql_producer,
    suspects_have_ended, watch_backlog,
};

on_each_store!(killed_at_random_no_driver_loses_or_reorders_anything);

/// Kills of one run, unless `NED_KILLS` says otherwise.
const KILLS: usize = 10;
/// More are not made to see that each NAS was hit.
const KILLS_MAX: usize = 50;
/// Kills that have to hit each NAS at work.
const HITS: usize = 2;
/// Producers that post by REST; one more inserts by SQL.
const PRODUCERS: i64 = 2;
/// Accounts of a producer on each NAS.
const ACCOUNTS: i64 = 6;
/// Forks of each NAS.
const FORKS: usize = 5;

/// Accounts of a producer on one NAS.
fn accounts(driver: Driver, producer: i64) -> Vec<i64> {
    let first = driver.nas() * 1_000 + producer * 100;
    (first..first + ACCOUNTS).collect()
}

fn on_all(producer: i64) -> Vec<i64> {
    let all = Driver::ALL.map(|driver| accounts(driver, producer));
    all.concat()
}

/// Starts of one NAS that a kill has cut.
fn hits(fakes: &Fakes, driver: Driver, kill: &Kill) -> usize {
    let entries = fakes.entries(driver, &[]);
    let begun = starts(&entries);
    let cut = |(event, try_count, _): &&(i64, u32, bool)| kill.1.contains(&(*event, *try_count));
    begun.iter().filter(cut).count()
}

/// Kills until each NAS was hit at work often enough.
async fn kill_again_and_again(lab: &Lab, fakes: &Fakes, seed: u64) -> Vec<Kill> {
    let mut dice = Dice(seed);
    let wanted = from_environment("NED_KILLS").map_or(KILLS, |n| usize::try_from(n).unwrap());
    let mut kills: Vec<Kill> = Vec::new();
    let mut hit = Driver::ALL.map(|driver| (driver, 0));
    while kills.len() < wanted || hit.iter().any(|(_, times)| *times < HITS) {
        assert!(kills.len() < wanted + KILLS_MAX, "hits in vain: {hit:?}");
        let before = Driver::ALL.map(|driver| fakes.obeyed(driver));
        // One in five dies while it starts, the others at work.
        let daemon = if dice.roll(5) == 0 {
            let daemon = lab.spawn();
            tokio::time::sleep(Duration::from_millis(10 + dice.roll(240))).await;
            daemon
        } else {
            let daemon = lab.start().await;
            // Of the NAS whose turn it is, something has begun.
            let (driver, _) = *hit.iter().min_by_key(|(_, times)| *times).unwrap();
            let at = Driver::ALL.iter().position(|d| *d == driver).unwrap();
            lab.until("a NAS is given something", async || {
                (fakes.obeyed(driver) > before[at]).then_some(())
            })
            .await;
            tokio::time::sleep(Duration::from_millis(dice.roll(80))).await;
            daemon
        };
        suspects_have_ended(lab).await;
        daemon.kill_9().await;
        let killed_us = clock::wall_us();
        let kill = (killed_us, lab.running().await);
        for (driver, times) in &mut hit {
            *times += usize::from(hits(fakes, *driver, &kill) > 0);
        }
        kills.push(kill);
    }
    say(&format!("{} kills, at work: {hit:?}", kills.len()));
    kills
}

async fn killed_at_random_no_driver_loses_or_reorders_anything(kind: Kind) {
    let seed = from_environment("NED_SEED").unwrap_or_else(|| clock::wall_us().unsigned_abs());
    say(&format!("NED_SEED={seed}"));
    let mut dice = Dice(seed);
    let lab = Lab::new(kind, "retry_base = \"100ms\"").await;
    let users = |driver| (0..=PRODUCERS).flat_map(|p| accounts(driver, p)).collect();
    let fakes = Fakes::start(&lab, i64::try_from(FORKS).unwrap(), users).await;

    let (scene, watched) = watch::channel(Scene::default());
    let mut seeds = || dice.roll(u64::MAX);
    let producers = async {
        tokio::join!(
            rest_producer(&lab, 0, on_all(0), seeds(), watched.clone()),
            rest_producer(&lab, 1, on_all(1), seeds(), watched.clone()),
            sql_producer(&lab, on_all(PRODUCERS), seeds(), watched.clone()),
        )
    };
    let murder = async {
        let kills = kill_again_and_again(&lab, &fakes, seed).await;
        let last = lab.start().await;
        scene.send_modify(|s| s.over = true);
        (kills, last)
    };
    let ((a, b, c), (), (kills, last)) =
        tokio::join!(producers, watch_backlog(&lab, &scene), murder);
    let accepted = [a, b, c].concat();
    lab.drained().await;
    last.stop().await;

    let excused = buried(&lab, accepted.len()).await;
    let nases = Driver::ALL.map(|driver| {
        let mine = |a: &&Accepted| a.user / 1_000 == driver.nas();
        let entries = fakes.entries(driver, &kills);
        AtRest {
            name: driver.name(),
            accepted: accepted.iter().filter(mine).copied().collect(),
            state: fakes.state(driver, &entries),
            entries,
        }
    });
    check_at_rest(lab.db.store.as_ref(), &excused, &nases).await;
    for nas in nases {
        let (name, again) = (nas.name, repeated(&nas.entries));
        say(&format!(
            "{name}: {} events accepted, {again} executed again",
            nas.accepted.len()
        ));
        assert!(peak(&nas.entries) <= FORKS, "{name}");
        assert!(again > 0, "{name}: no kill hit anything");
    }
}

/// One line of each driver's journal.
fn line(driver: Driver, at_us: i64, who: &str) -> String {
    let record = match driver {
        Driver::Ssh => json!({"at_us": at_us, "line": format!("obey {who}"), "stdin": ""}),
        Driver::Telnet => json!({"at_us": at_us, "line": format!("description {who}")}),
        Driver::Radius => json!({"at_us": at_us, "ack": true,
            "attributes": [["User-Name", "u"], ["Filter-Id", who]]}),
        Driver::Http => json!({"at_us": at_us, "body": {"who": who}}),
    };
    format!("{record}\n")
}

/// Negative controls: what is planted in the journal of each driver is found.
#[test]
fn what_is_planted_in_a_journal_of_any_driver_is_found() {
    let accepted = [(1, 7), (2, 7)].map(|(event, user)| Accepted { event, user });
    for driver in Driver::ALL {
        let entries = |lines: &[(i64, &str)], kills: &[Kill]| {
            let text: String = lines
                .iter()
                .map(|(at, who)| line(driver, *at, who))
                .collect();
            journal::of_router(&as_router(driver, &text, kills))
        };
        let found = |entries: &[Entry]| check(&accepted, &BTreeSet::new(), entries);
        let (first, second) = ((0, "1 7 1 0"), (100_000, "2 7 1 0"));
        assert_eq!(found(&entries(&[first, second], &[])), []);
        assert_eq!(found(&entries(&[first], &[])), [Finding::Lost { event: 2 }]);
        let swapped = entries(&[(0, "2 7 1 0"), (100_000, "1 7 1 0")], &[]);
        let reordered = Finding::Reordered {
            earlier: 1,
            later: 2,
        };
        assert_eq!(found(&swapped), [reordered]);
        let beside = entries(&[first, (5_000, "2 7 1 0")], &[]);
        let overlap = Finding::Overlap {
            first: 1,
            second: 2,
        };
        assert_eq!(found(&beside), [overlap]);
        let kill = (30_000, BTreeSet::from([(1, 1)]));
        let again = |who| entries(&[first, (60_000, who), second], std::slice::from_ref(&kill));
        assert_eq!(found(&again("1 7 2 1")), []);
        let unflagged = Finding::Unflagged {
            event: 1,
            try_count: 2,
        };
        assert_eq!(found(&again("1 7 2 0")), [unflagged]);
    }
}
