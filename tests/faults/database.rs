//! The database fails in every way that a server knows, under load: killed (with the daemon, too),
//! restarted, all sessions ended, read-only, its queue locked, no connection left, the answers to
//! its commits lost. Nothing accepted is lost, nothing runs twice that did not die, and work goes
//! on within seconds of the database.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::clock;
use serde_json::json;
use sqlx::Connection;

use crate::lab::daemon::{self, Daemon, Lab};
use crate::lab::db::{Db, Kind, run_sql};
use crate::lab::journal::{self, Accepted, CMDS, repeated};
use crate::lab::lossy::Lossy;
use crate::lab::server::Server;
use crate::lab::sim::Router;
use crate::{
    AtRest, Dice, buried, check_at_rest, from_environment, jumps, say, suspects_have_ended, told,
    two_nases,
};

/// Kills of the database, the daemon or both, unless `NED_DATABASE_KILLS` says otherwise.
const KILLS: u64 = 6;
/// Producers and what each posts between two faults.
const PRODUCERS: i64 = 3;
const CALLS: i64 = 8;
/// Longest time from the end of a fault to the next event that is posted and done, ms.
const RECOVERY_MS: u64 = 5_000;
/// The account of that event.
const WITNESS: i64 = 2_900;
/// Answers to commits that get lost.
const LOST: usize = 20;

/// Names the daemon's sessions.
const OURS: &str = "application_name = 'nas_event_daemon' and pid <> pg_backend_pid()";

struct Scene {
    lab: Arc<Lab>,
    daemon: Option<Daemon>,
    script: PathBuf,
    router: Router,
    accepted: Vec<Accepted>,
    calls: i64,
    /// The longest recovery, ms.
    slowest: u64,
}

impl Scene {
    async fn new(db: Db) -> Self {
        let lab = Arc::new(Lab::with(db, "retry_base = \"100ms\"").await);
        let (router, script) = two_nases(&lab, "sleep 0.01", 10, 4).await;
        for producer in 0..PRODUCERS {
            let (on_router, on_script): (Vec<i64>, _) =
                users(producer).into_iter().partition(|user| *user < 2_000);
            lab.accounts(1, on_router).await;
            lab.accounts(2, on_script).await;
        }
        lab.accounts(2, [WITNESS]).await;
        let daemon = Some(lab.start().await);
        Self {
            lab,
            daemon,
            script,
            router,
            accepted: Vec::new(),
            calls: 0,
            slowest: 0,
        }
    }

    /// Producers post while `fault` happens, each until it is told of all of its calls; then an
    /// event more is posted and done in time.
    async fn during(&mut self, dice: &mut Dice, fault: impl Future<Output = ()>) {
        let lab = &self.lab;
        let from = self.calls;
        self.calls += CALLS;
        let seeds: Vec<u64> = (0..PRODUCERS).map(|_| dice.roll(u64::MAX)).collect();
        let one = async |number: i64| {
            let mut dice = Dice(seeds[usize::try_from(number).unwrap()]);
            let users = users(number);
            let mut accepted = Vec::new();
            for call in from..from + CALLS {
                let mine: Vec<i64> = (0..=dice.roll(3)).map(|_| dice.one(&users)).collect();
                let events: Vec<_> = mine
                    .iter()
                    .map(|user| json!({"cmd": dice.one(&CMDS), "user_id": user}))
                    .collect();
                let key = format!("producer-{number}-call-{call}");
                let ids = told(lab, &json!({ "events": events }), &key).await;
                let new = ids.into_iter().zip(mine);
                accepted.extend(new.map(|(event, user)| Accepted { event, user }));
            }
            accepted
        };
        let witnessed = async {
            fault.await;
            let over = clock::tick_ms();
            let body = json!({"cmd": "user_redirect", "user_id": WITNESS});
            let event = told(lab, &body, &format!("witness-{from}")).await[0];
            assert_eq!(lab.ended(event).await.1, "done");
            (event, clock::tick_ms() - over)
        };
        let (a, b, c, (event, took)) = tokio::join!(one(0), one(1), one(2), witnessed);
        assert!(took <= RECOVERY_MS, "{took} ms from the end of the fault");
        self.slowest = self.slowest.max(took);
        self.accepted.extend([a, b, c].concat());
        self.accepted.push(Accepted {
            event,
            user: WITNESS,
        });
    }

    /// Kills the daemon, and its database before that if it is given, and starts both again.
    async fn kill_the_daemon(&mut self, dice: &mut Dice, server: Option<&mut Server>) {
        suspects_have_ended(&self.lab).await;
        let daemon = self.daemon.take().unwrap();
        let lab = Arc::clone(&self.lab);
        let (script, router) = (self.script.clone(), self.router.journal.clone());
        let after = Duration::from_millis(dice.roll(150));
        let (back, next) = tokio::sync::oneshot::channel();
        let fault = async {
            tokio::time::sleep(after).await;
            let killed_us = match server {
                Some(server) => {
                    server.kill().await;
                    daemon.kill_9().await;
                    let killed_us = clock::wall_us();
                    server.up().await;
                    killed_us
                }
                None => {
                    daemon.kill_9().await;
                    clock::wall_us()
                }
            };
            let running = lab.running().await;
            journal::note_kill(&script, &running);
            journal::note_kill_of_router(&router, &running, killed_us);
            assert!(back.send(lab.start().await).is_ok());
        };
        self.during(dice, fault).await;
        self.daemon = Some(next.await.unwrap());
    }

    /// Everything has ended; how often something ran again.
    async fn check(mut self) -> usize {
        self.lab.drained().await;
        let mut daemon = self.daemon.take().unwrap();
        assert_eq!(daemon.child.try_wait().unwrap(), None, "it died");
        daemon.stop().await;
        let excused = buried(&self.lab, self.accepted.len()).await;
        let all = self.accepted.iter().copied();
        let (on_router, on_script) = all.partition(|a| a.user < 2_000);
        let nases = [
            AtRest::router(&self.router, on_router),
            AtRest::script("script", &self.script, on_script),
        ];
        check_at_rest(self.lab.db.store.as_ref(), &excused, &nases).await;
        let again: usize = nases.iter().map(|nas| repeated(&nas.entries)).sum();
        say(&format!(
            "{} events, {again} executed again; next one done {} ms after a fault at most",
            self.accepted.len(),
            self.slowest
        ));
        again
    }
}

/// Accounts of a producer: half on the router, half on the script NAS.
fn users(producer: i64) -> Vec<i64> {
    let first = producer * 100;
    let on_router = 1_000 + first..1_000 + first + 4;
    on_router.chain(2_000 + first..2_000 + first + 4).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_killed_again_and_again_loses_nothing() {
    let seed = from_environment("NED_SEED").unwrap_or(7);
    say(&format!("NED_SEED={seed}"));
    let mut dice = Dice(seed);
    let mut server = Server::start(&[]).await;
    let mut scene = Scene::new(Db::at(server.url.clone(), Kind::Postgres).await).await;
    let kills = from_environment("NED_DATABASE_KILLS").unwrap_or(KILLS);
    let mut alone = 0;
    for kill in 0..kills {
        // Each of the three happens, then whatever the dice say.
        let what = if kill < 3 { kill } else { dice.roll(3) };
        match what {
            0 => {
                alone += 1;
                let after = Duration::from_millis(dice.roll(150));
                let fault = async {
                    tokio::time::sleep(after).await;
                    server.kill().await;
                    server.up().await;
                };
                scene.during(&mut dice, fault).await;
            }
            1 => scene.kill_the_daemon(&mut dice, None).await,
            _ => scene.kill_the_daemon(&mut dice, Some(&mut server)).await,
        }
    }
    say(&format!("{kills} kills, of the database alone {alone}"));
    let again = scene.check().await;
    assert!(again > 0, "no kill hit anything");
}

/// Waits until the daemon has said once more that its database refuses.
async fn refused_again(lab: &Lab) {
    let said = || {
        let lines = lab.daemon_log();
        let refused = |line: &&String| {
            line.contains("the database refused a turn")
                || line.contains("a request failed at the database")
                || line.contains("the sign of life could not be written")
        };
        lines.iter().filter(refused).count()
    };
    let before = said();
    lab.until("the daemon is refused", async || {
        (said() > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_refuses_for_a_while_loses_nothing() {
    let mut dice = Dice(from_environment("NED_SEED").unwrap_or(11));
    let server = Server::start(&["max_connections=24", "superuser_reserved_connections=1"]).await;
    let mut scene = Scene::new(Db::at(server.url.clone(), Kind::Postgres).await).await;
    let lab = Arc::clone(&scene.lab);
    let url = server.url.clone();
    let cut = format!("select pg_terminate_backend(pid) from pg_stat_activity where {OURS}");
    for _ in 0..3 {
        scene.during(&mut dice, run_sql(&url, &cut)).await;
    }
    // Read-only, as a primary that has been demoted.
    let read_only = async {
        let on = "alter database postgres set default_transaction_read_only = on";
        run_sql(&url, on).await;
        run_sql(&url, &cut).await;
        refused_again(&lab).await;
        let off = "begin read write;
            alter database postgres reset default_transaction_read_only; commit";
        run_sql(&url, off).await;
        run_sql(&url, &cut).await;
    };
    scene.during(&mut dice, read_only).await;
    // Somebody holds the queue, as a careless migration does.
    let locked = async {
        let mut other = sqlx::PgConnection::connect(&url).await.unwrap();
        // Within its transaction a session sees the others as they were.
        let mut eyes = sqlx::PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("begin; lock table events_stack in access exclusive mode")
            .execute(&mut other)
            .await
            .unwrap();
        let waits = format!(
            "select count(*) from pg_stat_activity where {OURS} and wait_event_type = 'Lock'"
        );
        lab.until("the daemon waits for the lock", async || {
            let text = sqlx::AssertSqlSafe(waits.clone());
            let waiting: i64 = sqlx::query_scalar(text).fetch_one(&mut eyes).await.unwrap();
            (waiting > 0).then_some(())
        })
        .await;
        sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    };
    scene.during(&mut dice, locked).await;
    // Every connection is taken by others, those of the daemon with them, until it has said so.
    let crowded = async {
        let mut others = Vec::new();
        let crowd = async {
            loop {
                while let Ok(other) = sqlx::PgConnection::connect(&url).await {
                    others.push(other);
                }
                // Nobody else has a connection left to do it by.
                let text = sqlx::AssertSqlSafe(cut.clone());
                let cut = sqlx::raw_sql(text).execute(&mut others[0]).await;
                cut.unwrap();
            }
        };
        tokio::select! {
            () = crowd => {}
            () = refused_again(&lab) => {}
        }
        say(&format!("{} connections of others", others.len()));
        assert!(others.len() > 2, "only {} connections", others.len());
    };
    scene.during(&mut dice, crowded).await;
    let again = scene.check().await;
    assert_eq!(again, 0, "nothing died that had to run again");
}

/// What the server's clock shows, against the true one.
const JUMPS: [&str; 5] = ["+1d", "-1d", "+365d", "-2", "+0"];
/// Exit code of "another daemon owns the database".
const OWNED: i32 = 6;

/// Work goes on, nothing runs again, and a daemon that starts in that moment does not take a living
/// owner for one that has been silent for a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_whose_clock_jumps_loses_and_repeats_nothing() {
    let mut dice = Dice(from_environment("NED_SEED").unwrap_or(17));
    // The server is another user.
    let place = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path(), open).unwrap();
    let clock = place.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    let server = Server::with_clock(&jumps::library(), &clock).await;
    let mut scene = Scene::new(Db::at(server.url.clone(), Kind::Postgres).await).await;
    let lab = Arc::clone(&scene.lab);
    let mut days = BTreeSet::new();
    for jump in JUMPS {
        let fault = async {
            // In one step: a server that reads half a line goes its own way.
            let next = place.path().join("next");
            std::fs::write(&next, jump).unwrap();
            std::fs::rename(&next, &clock).unwrap();
            let other = Lab::on(Arc::clone(&lab.db), "");
            let mut second = other.spawn();
            assert_eq!(
                second.end().await.code(),
                Some(OWNED),
                "{jump}: {}",
                other.stderr()
            );
            days.insert(lab.rows("select current_date").await[0][0].clone());
        };
        scene.during(&mut dice, fault).await;
    }
    assert!(days.len() >= 4, "the clock did not jump: {days:?}");
    assert_eq!(scene.check().await, 0, "nothing died that had to run again");
}

/// Whoever asked does not know whether it has happened: the daemon, of its turns and expansions;
/// a producer, of its post, which it repeats with the same key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_whose_answers_are_lost_lose_and_repeat_nothing() {
    let mut dice = Dice(from_environment("NED_SEED").unwrap_or(13));
    let mut db = Db::new(Kind::Postgres).await;
    let line = Lossy::before(&db.url).await;
    // The daemon's way; the test looks past it.
    db.url.clone_from(&line.url);
    let scene = Scene::new(db).await;
    let lab = &scene.lab;
    let mut accepted = Vec::new();
    // Posts that were written, and whose producers were told that they failed.
    let (mut in_doubt, mut call) = (0, 0);
    while line.lost() < LOST || in_doubt < 3 {
        call += 1;
        let user = dice.one(&users(call % PRODUCERS));
        let body = json!({"cmd": dice.one(&CMDS), "user_id": user});
        let key = format!("call-{call}");
        line.arm();
        let first = lab.try_post("/api/v1/events", &body, Some(&key)).await;
        let event = match first.unwrap() {
            (201, answer) => daemon::ids(&answer)[0],
            (503, _) => {
                let known = format!("select count(*) from idempotency where key = '{key}'");
                in_doubt += lab.number(&known).await;
                told(lab, &body, &key).await[0]
            }
            (status, answer) => panic!("{status}: {answer}"),
        };
        accepted.push(Accepted { event, user });
    }
    say(&format!(
        "{} answers lost, of {in_doubt} posts among {call}",
        line.lost()
    ));
    let scene = Scene { accepted, ..scene };
    assert_eq!(scene.check().await, 0, "what was committed runs once");
}
