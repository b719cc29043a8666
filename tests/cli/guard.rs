//! The intent guard, from a burst to the operator's decision, with the real daemon on both kinds
//! of database.

use serde_json::{Value, json};

use crate::lab::daemon::{Lab, ids};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, ned};

on_each_store!(
    a_burst_is_held_until_an_operator_decides,
    a_burst_is_told_and_carried_out_by_default,
    one_token_is_one_source_whatever_its_events_say,
    rows_that_came_by_sql_count_for_their_script,
    a_speed_below_a_tenth_of_the_last_one_is_a_cut,
    a_batch_that_is_announced_for_later_is_not_yet_allowed,
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
    for name in ["crm", "desk"] {
        lab.token(name, "operator", name).await;
    }
    lab
}

/// One bulk call of the token `source`.
async fn posted(lab: &Lab, source: &str, events: Vec<Value>) -> Vec<i64> {
    let request = lab.client.post(lab.url("/api/v1/events"));
    let request = request
        .bearer_auth(source)
        .json(&json!({ "events": events }));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 201);
    ids(&answer.json().await.unwrap())
}

/// One bulk call that redirects the accounts `from..=to`.
async fn redirect(lab: &Lab, source: &str, from: i64, to: i64) -> Vec<i64> {
    let event = |user| json!({"cmd": "user_redirect", "user_id": user});
    posted(lab, source, (from..=to).map(event).collect()).await
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
    for would in ["approve", "deny"] {
        let dry = ["--dry-run", "guard", would, &one];
        let said = ned(&lab, &dry).await;
        said.failed(0, &["dry run: 1 held events"]);
        assert!(
            said.fine()
                .starts_with(&format!("{one}\tcrm\tuser_redirect"))
        );
    }
    held(&lab, 9).await;
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

/// The negative control is the token's rest: by the names that the events give, nobody has cut off
/// more than 35.
async fn one_token_is_one_source_whatever_its_events_say(kind: Kind) {
    let lab = lab(kind, "guard = \"hold\"").await;
    let daemon = lab.start().await;
    let event = |user: i64| {
        let own = if user % 2 == 0 { "day" } else { "night" };
        json!({"cmd": "user_redirect", "user_id": user, "source": own})
    };
    let ids = posted(&lab, "crm", (1..=70).map(event).collect()).await;
    held(&lab, 70 - LIMIT).await;
    let list = ned(&lab, &["-o", "json", "guard", "list"]).await.json();
    let rows = list.as_array().unwrap();
    assert!(rows.iter().all(|row| row["source"] == "crm"), "{list}");
    // What the event says is kept, behind the token.
    let kept = format!("select source from events_stack where id = {}", ids[69]);
    assert_eq!(lab.rows(&kept).await, [["crm/day"]]);
    ned(&lab, &["guard", "deny", "--source", "crm"])
        .await
        .fine();
    held(&lab, 0).await;
    daemon.stop().await;
}

async fn rows_that_came_by_sql_count_for_their_script(kind: Kind) {
    let lab = lab(kind, "guard = \"hold\"").await;
    // 62 by one script, and 40 by another, which is no burst.
    let row = |user: i64| {
        let script = if user <= 62 { "day.pl" } else { "night.pl" };
        format!("('user_redirect', {user}, '/usr/lib/billing/{script}')")
    };
    let rows: Vec<String> = (1..=102).map(row).collect();
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id, owner_script) values {}",
        rows.join(", ")
    ))
    .await;
    let daemon = lab.start().await;
    held(&lab, 62 - LIMIT).await;
    let list = ned(&lab, &["-o", "json", "guard", "list"]).await.json();
    let rows = list.as_array().unwrap();
    let by = |row: &Value| row["source"] == "/usr/lib/billing/day.pl";
    assert!(rows.len() == 2 && rows.iter().all(by), "{list}");
    daemon.stop().await;
}

async fn a_speed_below_a_tenth_of_the_last_one_is_a_cut(kind: Kind) {
    let lab = lab(kind, "guard = \"hold\"").await;
    let daemon = lab.start().await;
    let set = |out: i64| {
        move |user: i64| {
            let params = json!({"ceil_in": out / 2, "ceil_out": out});
            json!({"cmd": "user_rate_set", "user_id": user, "params": params})
        }
    };
    let all = 1..=100;
    // The first of an account is never a cut, and neither is a fifth of it.
    for out in [20_480, 4_096] {
        posted(&lab, "crm", all.clone().map(set(out)).collect()).await;
        lab.drained().await;
    }
    let done = "select count(*) from events_done where result = 'done'";
    assert_eq!(count(&lab, done).await, 200);
    posted(&lab, "crm", all.map(set(400)).collect()).await;
    held(&lab, 100 - LIMIT).await;
    lab.said("guard: source \"crm\" cuts off on NAS 5").await;
    daemon.stop().await;
}

async fn a_batch_that_is_announced_for_later_is_not_yet_allowed(kind: Kind) {
    let lab = lab(kind, "guard = \"hold\"").await;
    let allow = async |from: i64| {
        let from = nas_event_daemon::clock::local_text(from);
        let args = ["guard", "allow", "--source", "crm", "--for", "1h"];
        let more = ["--max", "70", "--from", &from];
        ned(&lab, &[&args[..], &more].concat()).await.fine()
    };
    let (now, minute) = (nas_event_daemon::clock::wall_ms(), 60_000);
    // One that is to come, and one that is over.
    allow(now + 30 * minute).await;
    allow(now - 90 * minute).await;
    let daemon = lab.start().await;
    redirect(&lab, "crm", 1, 65).await;
    held(&lab, 65 - LIMIT).await;
    ned(&lab, &["guard", "deny", "--all"]).await.fine();
    held(&lab, 0).await;
    daemon.stop().await;
    // One that has begun: it covers what is posted now.
    allow(now - 30 * minute).await;
    let daemon = lab.start().await;
    redirect(&lab, "crm", 1, 130).await;
    lab.drained().await;
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
    let dry = [&["--dry-run"], &allow[..], &more].concat();
    ned(&lab, &dry).await.failed(0, &["nothing was announced"]);
    assert_eq!(lab.number("select count(*) from guard_order").await, 0);
    let id = ned(&lab, &[&allow[..], &more].concat()).await.fine();
    let dry = ["--dry-run", "guard", "revoke", id.trim()];
    ned(&lab, &dry).await.failed(0, &["would be taken back"]);
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
