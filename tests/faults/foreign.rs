//! Others who use the database as they like: a transaction that reads for long, one that writes
//! for long, and many small ones without a pause. The daemon goes on, loses nothing, and what
//! they insert is carried out like everything else.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::lab::daemon::{self, Lab};
use crate::lab::db::{Foreign, Kind};
use crate::lab::journal::{self, Accepted, CMDS, check, repeated};
use crate::lab::on_each_store;

on_each_store!(foreign_transactions_stop_nothing);

/// How long somebody holds the only lock for writing: longer than any transaction of ours.
const HELD: Duration = Duration::from_secs(3);
/// Small transactions of a busy writer.
const BUSY: usize = 150;

/// Posts `calls` events one by one, each until it is accepted.
async fn post(lab: &Lab, calls: usize) -> Vec<Accepted> {
    let round = lab.number("select count(*) from events_done").await;
    let mut accepted = Vec::new();
    for call in 0..calls {
        let user = 200 + i64::try_from(call % 5).unwrap();
        let body = json!({"events": [{"cmd": CMDS[call % CMDS.len()], "user_id": user}]});
        let key = format!("round-{round}-call-{call}");
        let ids = lab
            .until("it is accepted", async || {
                match lab.try_post("/api/v1/events", &body, Some(&key)).await {
                    Ok((201, answer)) => Some(daemon::ids(&answer)),
                    Ok((503, _)) | Err(_) => None,
                    Ok((status, answer)) => panic!("{status}: {answer}"),
                }
            })
            .await;
        accepted.push(Accepted {
            event: ids[0],
            user,
        });
    }
    accepted
}

async fn foreign_transactions_stop_nothing(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"100ms\"").await;
    let script = lab.path("script.journal");
    lab.session("Journal", &journal::session(&script, ":"));
    lab.nas(2, "Journal", 4, &[]).await;
    lab.accounts(2, 200..207).await;
    let mut daemon = lab.start().await;

    // A report reads: its snapshot keeps every old row, and the whole log of SQLite.
    let mut reader = Foreign::connect(&lab.db.url).await;
    let begin = match kind {
        Kind::Sqlite => "begin; select count(*) from events_stack_compact",
        Kind::Postgres => {
            "begin isolation level repeatable read; select count(*) from events_stack"
        }
    };
    reader.run(begin).await;
    let mut accepted = post(&lab, 60).await;
    lab.drained().await;
    reader.run("rollback").await;

    // An import writes for long, then commits an event of its own.
    let mut writer = Foreign::connect(&lab.db.url).await;
    writer
        .run(match kind {
            Kind::Sqlite => "begin immediate",
            Kind::Postgres => "begin",
        })
        .await;
    let theirs = writer.insert("user_redirect", 205).await.unwrap();
    let import = async {
        tokio::time::sleep(HELD).await;
        assert!(lab.is_up().await, "it answers while somebody writes");
        writer.run("commit").await;
    };
    let (mine, ()) = tokio::join!(post(&lab, 10), import);
    accepted.extend(mine);
    accepted.push(Accepted {
        event: theirs,
        user: 205,
    });
    lab.drained().await;

    // Somebody inserts row by row without a pause.
    let busy = async {
        let mut told = Vec::new();
        for _ in 0..BUSY {
            if let Ok(event) = writer.insert("user_redirect", 206).await {
                told.push(Accepted { event, user: 206 });
            }
        }
        told
    };
    let (mine, told) = tokio::join!(post(&lab, 30), busy);
    assert!(told.len() >= BUSY / 2, "only {} got in", told.len());
    accepted.extend(mine);
    accepted.extend(told);
    lab.drained().await;

    assert_eq!(daemon.child.try_wait().unwrap(), None, "it died");
    daemon.stop().await;
    let entries = journal::read_script(&script);
    assert_eq!(check(&accepted, &BTreeSet::new(), &entries), []);
    assert_eq!(repeated(&entries), 0);
}
