//! Others who use the database as they like: a transaction that reads for long, one that writes
//! for long, and many small ones without a pause. The daemon goes on, loses nothing, and what
//! they insert is carried out like everything else.

use std::collections::BTreeSet;

use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::{Foreign, Kind};
use crate::lab::journal::{self, Accepted, CMDS, gated, let_through, repeated};
use crate::lab::on_each_store;
use crate::{AtRest, check_at_rest, told};

on_each_store!(foreign_transactions_stop_nothing);

/// What a program holds that is writing to a row, nobody waits for: the others are taken past it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_somebody_holds_stops_nothing() {
    let lab = Lab::new(Kind::Postgres, "").await;
    let script = lab.path("script.journal");
    lab.session("Journal", &journal::session(&script, ""));
    lab.nas(2, "Journal", 4, &[]).await;
    lab.accounts(2, 200..207).await;
    let mut writer = Foreign::connect(&lab.db.url).await;
    let held = writer.insert("user_redirect", 205).await.unwrap();
    writer
        .run("begin; update events_stack_compact set batch_id = 'import'")
        .await;
    let daemon = lab.start().await;
    let mut accepted = post(&lab, 10).await;
    lab.until("the others are done", async || {
        (lab.waiting().await == 1).then_some(())
    })
    .await;
    writer.run("commit").await;
    accepted.push(Accepted {
        event: held,
        user: 205,
    });
    lab.drained().await;
    daemon.stop().await;
    let nas = AtRest::script("script", &script, accepted);
    assert_eq!(repeated(&nas.entries), 0);
    check_at_rest(lab.db.store.as_ref(), &BTreeSet::new(), &[nas]).await;
}

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
        let ids = told(lab, &body, &key).await;
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
    let gate = lab.path("gate");
    lab.session("Journal", &journal::session(&script, &gated(&gate)));
    let_through(&gate, "all");
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

    // An import writes for long while a script ends and a producer posts; then it commits an event
    // of its own.
    std::fs::remove_file(gate.join("all")).unwrap();
    let runs = lab.event(200, "user_redirect").await;
    accepted.push(Accepted {
        event: runs,
        user: 200,
    });
    lab.until("it runs", async || {
        (journal::running(&journal::read_script(&script)) == [runs]).then_some(())
    })
    .await;
    let mut writer = Foreign::connect(&lab.db.url).await;
    writer
        .run(match kind {
            Kind::Sqlite => "begin immediate",
            Kind::Postgres => "begin",
        })
        .await;
    let theirs = writer.insert("user_redirect", 205).await.unwrap();
    let_through(&gate, "all");
    let import = async {
        match kind {
            // There is one lock for writing, and it is held for longer than anybody waits for it.
            Kind::Sqlite => {
                lab.said("the database refused a turn").await;
                lab.said("a request failed at the database").await;
            }
            // Nobody waits for it at all.
            Kind::Postgres => assert_eq!(lab.ended(runs).await.1, "done"),
        }
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
    let nas = AtRest::script("script", &script, accepted);
    assert_eq!(repeated(&nas.entries), 0);
    check_at_rest(lab.db.store.as_ref(), &BTreeSet::new(), &[nas]).await;
}
