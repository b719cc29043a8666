//! The intent guard, from a burst to the operator's decision, with the real daemon on both kinds
//! of database.

use serde_json::{Value, json};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, ned};

on_each_store!(
    a_burst_is_held_until_an_operator_decides,
    a_burst_is_told_and_carried_out_by_default,
    an_announced_batch_goes_through,
    held_events_survive_the_daemon,
);

/// Accounts of the NAS: 30 % of them are 60.
const ACCOUNTS: i64 = 200;
const LIMIT: i64 = 60;

async fn lab(kind: Kind, guard: &str) -> Lab {
    let lab = Lab::new(kind, guard).await;
    lab.nas(5, RECORD, 4, &[]).await;
    lab.accounts(5, 1..=ACCOUNTS).await;
    // 10 % of all accounts are 70: the limit of the NAS comes first.
    lab.nas(6, RECORD, 4, &[]).await;
    lab.accounts(6, 1_001..=1_500).await;
    lab
}

/// One bulk call that redirects the accounts `from..=to`.
async fn redirect(lab: &Lab, source: &str, from: i64, to: i64) -> Vec<i64> {
    let event = |user| json!({"cmd": "user_redirect", "user_id": user, "source": source});
    let events: Vec<Value> = (from..=to).map(event).collect();
    lab.post(json!({ "events": events })).await
}

async fn count(lab: &Lab, statement: &str) -> i64 {
    lab.number(statement).await
}

async fn held(lab: &Lab, n: i64) {
    lab.until(&format!("{n} events are held"), async || {
        let held = "select count(*) from events_stack where state = 'held'";
        let rest = "select (select count(*) from events_stack_compact)
            + (select count(*) from events_stack where state <> 'held')";
        (count(lab, held).await == n && count(lab, rest).await == 0).then_some(())
    })
    .await;
}

async fn a_burst_is_held_until_an_operator_decides(kind: Kind) {
    let lab = lab(kind, "guard = \"hold\"").await;
    let daemon = lab.start().await;
    let ids = redirect(&lab, "crm", 1, 70).await;
    held(&lab, 70 - LIMIT).await;
    lab.said("guard: source \"crm\" cuts off on NAS 5 61 accounts within a minute")
        .await;
    // Another source is not hurt, nor is what does not cut.
    let other = redirect(&lab, "desk", 100, 101).await;
    let rate = lab.event(70, "user_add").await;
    for id in other.into_iter().chain([rate]) {
        assert_eq!(lab.ended(id).await.1, "done");
    }
    let list = ned(&lab, &["-o", "json", "guard", "list"]).await.json();
    let rows = list.as_array().unwrap();
    assert_eq!(rows.len(), 10, "{list}");
    assert_eq!(rows[0]["source"], "crm");
    assert!(rows[0]["reason"].as_str().unwrap().contains("30 % of 200"));
    let shown = ned(&lab, &["event", "show", &ids[69].to_string()]).await;
    assert!(shown.fine().contains("within a minute"));

    // A payment: the held redirect is pointless, the cancel runs at once.
    let cancel = lab.event(61, "user_redirect_cancel").await;
    assert_eq!(lab.ended(cancel).await.1, "done");
    assert_eq!(lab.ended(ids[60]).await.1, "superseded");

    let one = ids[61].to_string();
    ned(&lab, &["guard", "approve", &one]).await.fine();
    assert_eq!(lab.ended(ids[61]).await.1, "done");
    // 70 had its user_add after the redirect, which would now undo it.
    let last = ids[69].to_string();
    ned(&lab, &["guard", "approve", &last]).await.fine();
    assert_eq!(lab.ended(ids[69]).await.1, "superseded");
    let two = ids[62].to_string();
    ned(&lab, &["guard", "deny", &two]).await.fine();
    assert_eq!(lab.ended(ids[62]).await.1, "dropped");
    ned(&lab, &["guard", "deny", &two])
        .await
        .failed(5, &["is not held"]);
    ned(&lab, &["guard", "approve", "--source", "crm"])
        .await
        .fine();
    for id in &ids[63..69] {
        assert_eq!(lab.ended(*id).await.1, "done");
    }
    let orders = "select count(*) from guard_order";
    lab.until("no order is left", async || {
        (count(&lab, orders).await == 0).then_some(())
    })
    .await;
    let said = "select count(*) from audit where what like 'guard%'";
    assert_eq!(count(&lab, said).await, 5);
    daemon.stop().await;
}

async fn a_burst_is_told_and_carried_out_by_default(kind: Kind) {
    let lab = lab(kind, "").await;
    let daemon = lab.start().await;
    redirect(&lab, "crm", 1, 70).await;
    lab.said("guard: source \"crm\"").await;
    lab.drained().await;
    let done = "select count(*) from events_done where result = 'done'";
    assert_eq!(count(&lab, done).await, 70);
    daemon.stop().await;
}

async fn an_announced_batch_goes_through(kind: Kind) {
    let lab = lab(kind, "guard = \"hold\"").await;
    let allow = [
        "guard",
        "allow",
        "--source",
        "crm",
        "--cmd",
        "user_redirect",
    ];
    let more = ["--for", "1h", "--max", "80", "--monthly"];
    let id = ned(&lab, &[&allow[..], &more].concat()).await.fine();
    let daemon = lab.start().await;
    // 80 are announced, and 60 need no announcement.
    redirect(&lab, "crm", 1, 145).await;
    held(&lab, 145 - 80 - LIMIT).await;
    ned(&lab, &["guard", "deny", "--all"]).await.fine();
    held(&lab, 0).await;
    ned(&lab, &["guard", "revoke", id.trim()]).await.fine();
    ned(&lab, &["guard", "revoke", id.trim()])
        .await
        .failed(5, &["guard list"]);
    ned(&lab, &[&allow[..], &["--for", "0s", "--max", "1"]].concat())
        .await
        .failed(2, &["--for is 0"]);
    daemon.stop().await;
}

async fn held_events_survive_the_daemon(kind: Kind) {
    let lab = lab(kind, "guard = \"hold\"").await;
    let daemon = lab.start().await;
    let ids = redirect(&lab, "crm", 1, 62).await;
    held(&lab, 2).await;
    daemon.kill_9().await;
    // Decided while no daemon runs: the next one carries it out.
    let first = ids[60].to_string();
    ned(&lab, &["guard", "approve", &first]).await.fine();
    let daemon = lab.start().await;
    assert_eq!(lab.ended(ids[60]).await.1, "done");
    held(&lab, 1).await;
    let cancel = lab.event(62, "user_accept").await;
    assert_eq!(lab.ended(cancel).await.1, "done");
    assert_eq!(lab.ended(ids[61]).await.1, "superseded");
    daemon.stop().await;
}
