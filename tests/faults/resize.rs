//! NASes and their forks change again and again under load: forks from 1 to 100 and back, NASes
//! taken out of service and put back (also while their events run), renamed. Nobody is killed, the number of
//! forks in force is kept, a NAS that is out gets nothing, and what waited for it goes on when it
//! is back. `NED_RESIZES` changes the number of changes, `NED_SEED` repeats their order.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::clock;
use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::Value;
use tokio::sync::watch;

use crate::lab::daemon::{Daemon, Lab};
use crate::lab::db::Kind;
use crate::lab::journal::{self, Accepted, peak, peak_between, repeated};
use crate::lab::on_each_store;
use crate::lab::sim::Router;
use crate::{AtRest, Dice, check_at_rest, from_environment, rest_producer, say};

on_each_store!(forks_and_nases_that_come_and_go_lose_and_kill_nothing);

/// The NAS behind the router; the others are script NASes.
const ROUTER: i64 = 1;
const NASES: [i64; 3] = [ROUTER, 2, 3];
/// Changes of one run, unless `NED_RESIZES` says otherwise; every one on every NAS are fifteen.
const RESIZES: u64 = 8;
/// Accounts of each NAS: so many forks can be seen at work at once.
const ACCOUNTS: i64 = 30;
/// Forks that count as many.
const MANY: usize = 5;
/// Events of a NAS that must have been done to say that it goes on.
const SOME: i64 = 3;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    Shrink,
    Grow,
    /// Stays out until its next turn.
    Remove,
    /// Out and back while its events run.
    Flicker,
    Rename,
}

const CHANGES: [Change; 5] = [
    Change::Shrink,
    Change::Grow,
    Change::Remove,
    Change::Flicker,
    Change::Rename,
];

/// Between these lines of a script's journal, or moments of the router's, at most so many may run.
struct Window {
    nas: i64,
    from: i64,
    to: i64,
    most: usize,
}

struct Scene {
    lab: Arc<Lab>,
    daemon: Daemon,
    router: Router,
    out: BTreeSet<i64>,
    windows: Vec<Window>,
}

impl Scene {
    async fn new(kind: Kind) -> Self {
        let lab = Arc::new(Lab::new(kind, "").await);
        lab.native("Queue", &journal::native());
        let faults = Faults {
            latency_ms: 150,
            ..Faults::default()
        };
        let router = Router::start(lab.root(), "router", faults);
        router.serve_as(&lab, ROUTER, "Queue", 5).await;
        for nas in NASES {
            lab.accounts(nas, users(nas)).await;
            if nas != ROUTER {
                let text = journal::session(&journal_of(&lab, nas), "sleep 0.15");
                lab.session(&scheme(nas), &text);
                lab.nas(nas, &scheme(nas), 5, &[]).await;
            }
        }
        let daemon = lab.start().await;
        Self {
            lab,
            daemon,
            router,
            out: BTreeSet::new(),
            windows: Vec::new(),
        }
    }

    async fn reload(&self) {
        self.lab.reload(&self.daemon).await;
    }

    /// Waits until the scheduler says of a NAS what is wanted; none = it serves no such NAS.
    async fn until_nas(&self, nas: i64, what: &str, wanted: impl Fn(Option<&Value>) -> bool) {
        self.lab
            .until(&format!("{what} on NAS {nas}"), async || {
                let now = self.lab.scheduler().await?;
                let all = now["nases"].as_array()?;
                wanted(all.iter().find(|n| n["id"] == nas)).then_some(())
            })
            .await;
    }

    /// Waits until so many events more are done on a NAS.
    async fn goes_on(&self, nas: i64) {
        let count = format!("select count(*) from events_done where nas_id = {nas}");
        let before = self.lab.number(&count).await;
        self.lab
            .until(&format!("more is done on NAS {nas}"), async || {
                (self.lab.number(&count).await >= before + SOME).then_some(())
            })
            .await;
    }

    fn lines(&self, nas: i64) -> usize {
        journal::read_script(&journal_of(&self.lab, nas)).len()
    }

    /// From now until more is done on NAS `meanwhile`, at most `most` run on a NAS.
    async fn at_most(&mut self, nas: i64, most: usize, meanwhile: i64) {
        let from = self.mark(nas);
        self.goes_on(meanwhile).await;
        let to = self.mark(nas);
        self.windows.push(Window {
            nas,
            from,
            to,
            most,
        });
    }

    /// Where a NAS's journal is now.
    fn mark(&self, nas: i64) -> i64 {
        if nas == ROUTER {
            clock::wall_us()
        } else {
            i64::try_from(self.lines(nas)).unwrap()
        }
    }

    async fn set_forks(&self, nas: i64, forks: i64) {
        let text = format!("update nas set forks = {forks} where id = {nas}");
        self.lab.sql(&text).await;
        self.reload().await;
    }

    async fn remove(&self, nas: i64) {
        let stop = format!("Stop work with nas nasid={nas} ");
        let before = self.said(&stop);
        self.lab
            .sql(&format!("update nas set mode = 'off' where id = {nas}"))
            .await;
        self.reload().await;
        self.lab.said_times(&stop, before + 1).await;
    }

    async fn put_back(&mut self, nas: i64) {
        let start = format!("Start work with nas nasid={nas} ");
        let before = self.said(&start);
        self.lab
            .sql(&format!("update nas set mode = 'active' where id = {nas}"))
            .await;
        self.reload().await;
        self.lab.said_times(&start, before + 1).await;
        self.out.remove(&nas);
        self.goes_on(nas).await;
    }

    fn said(&self, text: &str) -> usize {
        let lines = self.lab.daemon_log();
        lines.iter().filter(|line| line.contains(text)).count()
    }

    async fn change(&mut self, number: usize, nas: i64, change: Change) {
        if self.out.contains(&nas) {
            self.put_back(nas).await;
        }
        match change {
            Change::Shrink => {
                self.set_forks(nas, 1).await;
                // Running ones end by themselves, and are not replaced until one is left.
                self.until_nas(nas, "one fork", |now| {
                    now.is_some_and(|n| n["forks"] == 1 && n["running"].as_u64() <= Some(1))
                })
                .await;
                self.at_most(nas, 1, nas).await;
            }
            Change::Grow => {
                self.set_forks(nas, 100).await;
                if nas == ROUTER {
                    self.until_nas(nas, "many forks", |now| {
                        now.is_some_and(|n| n["forks"] == 100 && n["running"].as_u64() > Some(1))
                    })
                    .await;
                    return;
                }
                let (journal, from) = (journal_of(&self.lab, nas), self.lines(nas));
                self.lab
                    .until(&format!("many run on NAS {nas}"), async || {
                        let entries = journal::read_script(&journal);
                        (peak_between(&entries, from, entries.len()) >= MANY).then_some(())
                    })
                    .await;
            }
            Change::Remove => {
                // Another one must go on meanwhile.
                let others: Vec<i64> = NASES.into_iter().filter(|other| *other != nas).collect();
                if others.iter().all(|other| self.out.contains(other)) {
                    self.put_back(others[0]).await;
                }
                self.remove(nas).await;
                self.out.insert(nas);
                self.lab
                    .until(&format!("NAS {nas} rests"), async || {
                        let now = self.lab.scheduler().await?;
                        let mut out = now["skipped"].as_array()?.iter();
                        let mut served = now["nases"].as_array()?.iter();
                        let rests = served.all(|n| n["id"] != nas || n["running"] == 0);
                        (rests && out.any(|skip| skip[0] == nas)).then_some(())
                    })
                    .await;
                let other = others.iter().find(|other| !self.out.contains(*other));
                self.at_most(nas, 0, *other.unwrap()).await;
            }
            Change::Flicker => {
                self.remove(nas).await;
                self.put_back(nas).await;
            }
            Change::Rename => {
                let name = format!("bras{nas}n{number}");
                let text = format!("update nas set name = '{name}' where id = {nas}");
                self.lab.sql(&text).await;
                self.reload().await;
                let log = format!("nas_event_daemon/{name}_127.0.0.1.log");
                self.lab
                    .until(&format!("{log} is written"), async || {
                        let lines = self.lab.log(&log);
                        lines.iter().any(|l| l.contains(" end ")).then_some(())
                    })
                    .await;
            }
        }
    }
}

/// Every event has ended once in the logs of its NAS, under whatever name.
fn check_logs(lab: &Lab, accepted: &[Accepted]) {
    let mut lines: Vec<String> = Vec::new();
    for file in std::fs::read_dir(lab.path("log/nas_event_daemon")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        lines.extend(text.lines().map(str::to_owned));
    }
    let event = |line: &String| -> i64 {
        let rest = line.split_once("event=").unwrap().1;
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let ends = lines.iter().filter(|l| l.contains(" end result=done "));
    let mut told: Vec<i64> = ends.map(event).collect();
    told.sort_unstable();
    let mut wanted: Vec<i64> = accepted.iter().map(|a| a.event).collect();
    wanted.sort_unstable();
    if let Some(other) = wanted.iter().find(|id| !told.contains(id)) {
        let of = lines
            .iter()
            .filter(|l| l.contains(&format!("event={other} ")));
        panic!("event {other}: {:#?}", of.collect::<Vec<_>>());
    }
    assert_eq!(told, wanted, "the logs of the NASes");
}

fn users(nas: i64) -> Vec<i64> {
    (nas * 1_000..nas * 1_000 + ACCOUNTS).collect()
}

fn scheme(nas: i64) -> String {
    format!("Journal{nas}")
}

fn journal_of(lab: &Lab, nas: i64) -> PathBuf {
    lab.path(&format!("script{nas}.journal"))
}

/// Tells each producer how much waits for its NAS.
async fn watch_backlogs(lab: &Lab, scenes: &[watch::Sender<crate::Scene>]) {
    while !scenes[0].borrow().over {
        let rows = lab
            .rows("select nas_id, count(*) from events_stack group by nas_id")
            .await;
        let number = |text: &String| -> i64 { text.parse().unwrap() };
        for (nas, scene) in NASES.iter().zip(scenes) {
            let mine = rows.iter().find(|row| number(&row[0]) == *nas);
            let backlog = mine.map_or(0, |row| number(&row[1]));
            scene.send_modify(|s| s.backlog = backlog);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The most sentences that a router carried out at once in a window of its journal.
fn sentences_at_once(journal: &str, window: &Window) -> usize {
    let mut moments = Vec::new();
    for line in journal.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let us = |name: &str| record[name].as_i64().unwrap();
        let (from, to) = (
            us("at_us").max(window.from),
            us("done_at_us").min(window.to),
        );
        if from < to {
            // An end comes before a start of the same moment.
            moments.extend([(from, 1), (to, -1)]);
        }
    }
    moments.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, step) in moments {
        now += step;
        most = most.max(now);
    }
    usize::try_from(most).unwrap()
}

/// The negative control of that count.
#[test]
fn sentences_that_overlap_are_counted() {
    let journal = "{\"at_us\": 100, \"done_at_us\": 200}\n{\"at_us\": 150, \"done_at_us\": 250}\n\
                   {\"at_us\": 250, \"done_at_us\": 300}\n";
    let most = |from, to| {
        let window = Window {
            nas: ROUTER,
            from,
            to,
            most: 1,
        };
        sentences_at_once(journal, &window)
    };
    assert_eq!(most(0, 400), 2);
    assert_eq!(most(160, 180), 2);
    assert_eq!(most(200, 400), 1);
    assert_eq!(most(300, 400), 0);
}

/// What the quick form must have: without them nothing is said of the number of forks.
const FIRST: [(i64, Change); 4] = [
    (ROUTER, Change::Shrink),
    (ROUTER, Change::Remove),
    (2, Change::Shrink),
    (3, Change::Remove),
];

/// Every change on every NAS, in the order that the dice say; but the first of a run has
/// [`FIRST`] among its first changes.
fn deck(dice: &mut Dice) -> Vec<(i64, Change)> {
    let mut deck: Vec<(i64, Change)> = NASES
        .iter()
        .flat_map(|nas| CHANGES.map(|change| (*nas, change)))
        .collect();
    shuffle(dice, &mut deck);
    deck.sort_by_key(|change| !FIRST.contains(change));
    let quick = usize::try_from(RESIZES).unwrap();
    shuffle(dice, &mut deck[..quick]);
    deck
}

fn shuffle<T>(dice: &mut Dice, what: &mut [T]) {
    for at in (1..what.len()).rev() {
        let other = usize::try_from(dice.roll(at as u64 + 1)).unwrap();
        what.swap(at, other);
    }
}

async fn forks_and_nases_that_come_and_go_lose_and_kill_nothing(kind: Kind) {
    let seed = from_environment("NED_SEED").unwrap_or_else(|| clock::wall_us().unsigned_abs());
    say(&format!("NED_SEED={seed}"));
    let mut dice = Dice(seed);
    let mut scene = Scene::new(kind).await;
    let view = Arc::clone(&scene.lab);
    let (scenes, watched): (Vec<_>, Vec<_>) = NASES
        .iter()
        .map(|_| watch::channel(crate::Scene::default()))
        .unzip();
    let mut seeds = || dice.roll(u64::MAX);
    let one = |at: usize, seed| {
        let users = users(NASES[at]);
        rest_producer(&view, NASES[at], users, seed, watched[at].clone())
    };
    let (a, b, c) = (one(0, seeds()), one(1, seeds()), one(2, seeds()));
    let producers = async { tokio::join!(a, b, c) };
    let changes = async {
        let wanted = from_environment("NED_RESIZES").unwrap_or(RESIZES);
        let wanted = usize::try_from(wanted).unwrap();
        let mut dice = Dice(seed);
        let mut changes = Vec::new();
        while changes.len() < wanted {
            changes.extend(deck(&mut dice));
        }
        changes.truncate(wanted);
        for (number, (nas, change)) in changes.iter().enumerate() {
            scene.change(number, *nas, *change).await;
        }
        for nas in scene.out.clone() {
            scene.put_back(nas).await;
        }
        for nas in NASES {
            scene.set_forks(nas, 100).await;
        }
        for scene in &scenes {
            scene.send_modify(|s| s.over = true);
        }
        (scene, wanted)
    };
    let ((a, b, c), (), (scene, changes)) =
        tokio::join!(producers, watch_backlogs(&view, &scenes), changes);
    let accepted = [a, b, c].concat();
    scene.lab.drained().await;
    let Scene {
        lab,
        daemon,
        router,
        windows,
        ..
    } = scene;
    daemon.stop().await;
    let of = |nas: i64| -> Vec<Accepted> {
        let mine = accepted.iter().filter(|a| a.user / 1_000 == nas);
        mine.copied().collect()
    };
    let nases = [
        AtRest::router(&router, of(ROUTER)),
        AtRest::script("script 2", &journal_of(&lab, 2), of(2)),
        AtRest::script("script 3", &journal_of(&lab, 3), of(3)),
    ];
    check_at_rest(lab.db.store.as_ref(), &BTreeSet::new(), &nases).await;
    check_logs(&lab, &accepted);
    let of_router = std::fs::read_to_string(&router.journal).unwrap();
    for window in &windows {
        let most = if window.nas == ROUTER {
            sentences_at_once(&of_router, window)
        } else {
            let entries = &nases[usize::try_from(window.nas - 1).unwrap()].entries;
            let line = |at: i64| usize::try_from(at).unwrap();
            peak_between(entries, line(window.from), line(window.to))
        };
        assert!(
            most <= window.most,
            "{most} ran on NAS {}, {} may",
            window.nas,
            window.most
        );
    }
    let seen = |nas: i64, most: usize| windows.iter().any(|w| w.nas == nas && w.most == most);
    // Fewer changes do not hold them all.
    if changes as u64 >= RESIZES {
        for (nas, most) in [(ROUTER, 1), (ROUTER, 0), (2, 1), (3, 0)] {
            assert!(seen(nas, most), "{most} on NAS {nas} was not looked at");
        }
    }
    for nas in &nases {
        assert_eq!(
            repeated(&nas.entries),
            0,
            "{}: somebody was killed",
            nas.name
        );
    }
    say(&format!(
        "{changes} changes, {} times the number of forks was seen to be kept, {} events, at most {} at once",
        windows.len(),
        accepted.len(),
        peak(&nases[1].entries)
    ));
}
