//! The database fails in every way that a server knows, under load: killed, restarted, all
//! sessions ended, read-only, its queue locked, no connection left. The daemon stays, nothing
//! accepted is lost, nothing runs twice, and work goes on as soon as the database does.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use sqlx::Connection;

use crate::lab::daemon::{self, Daemon, Lab};
use crate::lab::db::{Db, Kind, run_sql};
use crate::lab::journal::{self, Accepted, CMDS, check, repeated};
use crate::lab::server::Server;
use crate::{Dice, from_environment, say};

/// Kills of the database, unless `NED_DATABASE_KILLS` says otherwise.
const KILLS: u64 = 12;
/// Producers and what each posts between two faults.
const PRODUCERS: i64 = 3;
const CALLS: i64 = 12;
/// How long a lock is held, or the database read-only.
const FAULT: Duration = Duration::from_millis(1_500);

struct Scene {
    lab: Lab,
    daemon: Daemon,
    journal: std::path::PathBuf,
    accepted: Vec<Accepted>,
    calls: i64,
}

impl Scene {
    async fn new(server: &Server) -> Self {
        let db = Db::at(server.url.clone(), Kind::Postgres).await;
        let lab = Lab::with(db, "retry_base = \"100ms\"").await;
        let journal = lab.path("script.journal");
        lab.session("Journal", &journal::session(&journal, ":"));
        lab.nas(2, "Journal", 4, &[]).await;
        for producer in 0..PRODUCERS {
            lab.accounts(2, users(producer)).await;
        }
        let daemon = lab.start().await;
        Self {
            lab,
            daemon,
            journal,
            accepted: Vec::new(),
            calls: 0,
        }
    }

    /// Producers post while `fault` happens, each until it is told of all of its calls.
    async fn during(&mut self, dice: &mut Dice, fault: impl Future<Output = ()>) {
        let lab = &self.lab;
        let from = self.calls;
        self.calls += CALLS;
        let seeds: Vec<u64> = (0..PRODUCERS).map(|_| dice.roll(u64::MAX)).collect();
        let one = async |number: i64| {
            let mut dice = Dice(seeds[usize::try_from(number).unwrap()]);
            let users: Vec<i64> = users(number).collect();
            let mut told = Vec::new();
            for call in from..from + CALLS {
                let mine: Vec<i64> = (0..=dice.roll(3)).map(|_| dice.one(&users)).collect();
                let events: Vec<_> = mine
                    .iter()
                    .map(|user| json!({"cmd": dice.one(&CMDS), "user_id": user}))
                    .collect();
                let body = json!({ "events": events });
                let key = format!("producer-{number}-call-{call}");
                let ids = lab
                    .until("a call is accepted", async || {
                        match lab.try_post("/api/v1/events", &body, Some(&key)).await {
                            Ok((201, answer)) => Some(daemon::ids(&answer)),
                            Ok((503, _)) | Err(_) => None,
                            Ok((status, answer)) => panic!("{status}: {answer}"),
                        }
                    })
                    .await;
                let new = ids.into_iter().zip(mine);
                told.extend(new.map(|(event, user)| Accepted { event, user }));
            }
            told
        };
        let (a, b, c, ()) = tokio::join!(one(0), one(1), one(2), fault);
        self.accepted.extend([a, b, c].concat());
    }

    /// Everything has ended, once each.
    async fn check(mut self) {
        self.lab.drained().await;
        assert_eq!(self.daemon.child.try_wait().unwrap(), None, "it died");
        self.daemon.stop().await;
        let entries = journal::read_script(&self.journal);
        assert_eq!(check(&self.accepted, &BTreeSet::new(), &entries), []);
        assert_eq!(repeated(&entries), 0, "nothing died that had to run again");
        let done = self.lab.number("select count(*) from events_done").await;
        assert_eq!(done, i64::try_from(self.accepted.len()).unwrap());
        say(&format!("{done} events, each executed once"));
    }
}

fn users(producer: i64) -> impl Iterator<Item = i64> {
    2_000 + producer * 100..2_000 + producer * 100 + 6
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_killed_again_and_again_loses_nothing() {
    let seed = from_environment("NED_SEED").unwrap_or(7);
    say(&format!("NED_SEED={seed}"));
    let mut dice = Dice(seed);
    let mut server = Server::start(&[]).await;
    let mut scene = Scene::new(&server).await;
    for _ in 0..from_environment("NED_DATABASE_KILLS").unwrap_or(KILLS) {
        let after = Duration::from_millis(dice.roll(150));
        let fault = async {
            tokio::time::sleep(after).await;
            server.kill().await;
            server.up().await;
        };
        scene.during(&mut dice, fault).await;
    }
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_refuses_for_a_while_loses_nothing() {
    let mut dice = Dice(from_environment("NED_SEED").unwrap_or(11));
    let server = Server::start(&["max_connections=24", "superuser_reserved_connections=1"]).await;
    let mut scene = Scene::new(&server).await;
    let url = server.url.clone();
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity
        where application_name = 'nas_event_daemon' and pid <> pg_backend_pid()";
    for _ in 0..3 {
        scene.during(&mut dice, run_sql(&url, cut)).await;
    }
    // Read-only, as a primary that has been demoted.
    let read_only = async {
        let on = "alter database postgres set default_transaction_read_only = on";
        run_sql(&url, on).await;
        run_sql(&url, cut).await;
        tokio::time::sleep(FAULT).await;
        let off = "begin read write;
            alter database postgres reset default_transaction_read_only; commit";
        run_sql(&url, off).await;
        run_sql(&url, cut).await;
    };
    scene.during(&mut dice, read_only).await;
    // Somebody holds the queue, as a careless migration does.
    let locked = async {
        let mut other = sqlx::PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("begin; lock table events_stack in access exclusive mode")
            .execute(&mut other)
            .await
            .unwrap();
        tokio::time::sleep(FAULT).await;
        sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    };
    scene.during(&mut dice, locked).await;
    // Every connection is taken by others.
    let crowded = async {
        let mut others = Vec::new();
        run_sql(&url, cut).await;
        while let Ok(other) = sqlx::PgConnection::connect(&url).await {
            others.push(other);
        }
        assert!(others.len() > 2, "only {} connections", others.len());
        tokio::time::sleep(FAULT).await;
    };
    scene.during(&mut dice, crowded).await;
    scene.check().await;
}
