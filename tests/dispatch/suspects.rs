//! A suspect (three processes died while it ran) runs alone: everything else holds until it has
//! had its turn. It holds nobody up longer than it may itself be the next to start.

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::journal::{self, gated, let_through, running, starts};
use crate::lab::on_each_store;

on_each_store!(
    a_suspect_waits_until_nothing_runs,
    a_dropped_suspect_holds_nobody_up,
    what_must_run_before_a_suspect_is_not_held_up_by_it,
);

/// A lab with two gated NASes. On the second an event of account 20 runs, and behind it one of
/// account 21 is a suspect; `reserved` ids come before both.
async fn with_suspect(kind: Kind, reserved: usize) -> (Lab, crate::lab::daemon::Daemon, [i64; 2]) {
    // Nothing that runs ends before the test says so.
    let lab = Lab::new(kind, "script_timeout = \"1h\"").await;
    let body = gated(&lab.path("gate"));
    lab.session("Mine", &journal::session(&lab.path("journal"), &body));
    lab.nas(1, "Mine", 2, &[]).await;
    lab.nas(2, "Mine", 2, &[]).await;
    lab.accounts(1, [10]).await;
    lab.accounts(2, [20, 21]).await;
    let post = "insert into events_stack_compact (cmd, user_id) values ('user_redirect', ";
    for _ in 0..reserved {
        lab.sql(&format!("{post} 10); delete from events_stack_compact"))
            .await;
    }
    lab.sql(&format!("{post} 20); {post} 21)")).await;
    lab.db.store.expand(10, &[]).await.unwrap();
    lab.sql("update events_stack set deaths = 3 where user_id = 21")
        .await;
    let rows = lab.rows("select id from events_stack order by id").await;
    let ids = [rows[0][0].parse().unwrap(), rows[1][0].parse().unwrap()];
    let daemon = lab.start().await;
    until_running(&lab, &[ids[0]]).await;
    (lab, daemon, ids)
}

fn now(lab: &Lab) -> Vec<i64> {
    running(&journal::read_script(&lab.path("journal")))
}

async fn until_running(lab: &Lab, ids: &[i64]) {
    lab.until(&format!("{ids:?} run"), async || {
        (now(lab) == ids).then_some(())
    })
    .await;
}

async fn a_suspect_waits_until_nothing_runs(kind: Kind) {
    let (lab, daemon, [busy, suspect]) = with_suspect(kind, 0).await;
    let gate = lab.path("gate");
    let other = lab.event(10, "user_redirect").await;
    lab.until("the other one is expanded", async || {
        (lab.number("select count(*) from events_stack").await == 3).then_some(())
    })
    .await;
    let_through(&gate, busy);
    until_running(&lab, &[suspect]).await;
    let_through(&gate, suspect);
    until_running(&lab, &[other]).await;
    let_through(&gate, other);
    lab.drained().await;
    daemon.stop().await;
}

async fn a_dropped_suspect_holds_nobody_up(kind: Kind) {
    let (lab, daemon, [busy, suspect]) = with_suspect(kind, 0).await;
    let other = lab.event(10, "user_redirect").await;
    lab.until("the other one is expanded", async || {
        (lab.number("select count(*) from events_stack").await == 3).then_some(())
    })
    .await;
    assert_eq!(now(&lab), [busy], "all wait for the suspect");
    let path = format!("/api/v1/events/{suspect}/drop");
    let (status, answer) = lab
        .try_post(&path, &serde_json::json!({}), None)
        .await
        .unwrap();
    assert_eq!(status, 200, "{answer}");
    until_running(&lab, &[busy, other]).await;
    let_through(&lab.path("gate"), "all");
    lab.drained().await;
    daemon.stop().await;
}

async fn what_must_run_before_a_suspect_is_not_held_up_by_it(kind: Kind) {
    let (lab, daemon, [busy, suspect]) = with_suspect(kind, 1).await;
    let gate = lab.path("gate");
    // An id that was given before the suspect's may be committed after it.
    let before = busy - 1;
    lab.sql(&format!(
        "insert into events_stack_compact (id, cmd, user_id, nas_id)
         values ({before}, 'user_redirect', 21, 1)"
    ))
    .await;
    until_running(&lab, &[busy, before]).await;
    let_through(&gate, busy);
    let_through(&gate, before);
    until_running(&lab, &[suspect]).await;
    let_through(&gate, suspect);
    lab.drained().await;
    let order = starts(&journal::read_script(&lab.path("journal")));
    let order: Vec<i64> = order.into_iter().map(|(event, ..)| event).collect();
    assert_eq!(order, [busy, before, suspect]);
    daemon.stop().await;
}
