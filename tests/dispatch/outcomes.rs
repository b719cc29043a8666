//! What the end of an attempt means for its event, and which event is next.

use nas_event_daemon::clock;
use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::journal::{self, gated, let_through, running, starts};
use crate::lab::on_each_store;

on_each_store!(
    code_254_defers_longer_each_time_and_ends_dead,
    other_codes_are_as_on_error_says,
    a_scheme_beside_a_session_says_what_its_codes_mean,
    a_new_event_wakes_the_deferred_head_of_its_lane,
    a_head_that_is_woken_while_it_runs_is_tried_again_at_once,
    a_dropped_head_lets_its_lane_go_on,
    classes_go_before_age,
    a_diagnostic_has_one_try_and_is_never_deferred,
    an_event_that_waits_too_long_expires,
);

/// Waits until the log of the NAS and the log of the account have this record as their last of
/// an event.
pub(crate) async fn ends_in_both_logs(lab: &Lab, nas: i64, user: i64, record: &str) {
    let event = record.split_inclusive(' ').next().unwrap();
    lab.until(record, async || {
        [lab.nas_log(nas), lab.account_log(user)]
            .iter()
            .all(|log| {
                let last = log.iter().rfind(|line| line.contains(event));
                last.is_some_and(|line| line.ends_with(record))
            })
            .then_some(())
    })
    .await;
}

async fn code_254_defers_longer_each_time_and_ends_dead(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"150ms\"\nmax_tries = 4").await;
    let (times, gate) = (lab.path("times"), lab.path("gate"));
    lab.session(
        "Mine",
        &format!(
            "user_redirect() {{ echo \"$try_count $EPOCHREALTIME\" >> {}; {}; exit 254; }}
             user_accept() {{ :; }}",
            times.display(),
            gated(&gate)
        ),
    );
    lab.nas(1, "Mine", 2, &[]).await;
    lab.accounts(1, [10]).await;
    let daemon = lab.start().await;
    let id = lab.event(10, "user_redirect").await;
    let after = lab.event(10, "user_accept").await;
    // The lane's second event wakes the head once: it has come while the first try runs.
    lab.scheduled(1, 1).await;
    let_through(&gate, "all");
    let (place, reason) = lab.ended(id).await;
    assert_eq!(place, "dead");
    assert!(
        reason.starts_with("4 tries") && reason.contains("254"),
        "{reason}"
    );
    assert_eq!(lab.ended(after).await.1, "done", "dead releases the lane");
    let text = std::fs::read_to_string(&times).unwrap();
    let (mut tries, mut at) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let (number, seconds) = line.split_once(' ').unwrap();
        tries.push(number.to_owned());
        at.push(seconds.parse::<f64>().unwrap());
    }
    assert_eq!(tries, ["1", "2", "3", "4"]);
    for (n, wait) in [(2.0, at[2] - at[1]), (3.0, at[3] - at[2])] {
        assert!(wait >= 0.15 * n, "{at:?}");
    }
    let log = lab.account_log(10);
    let deferred: Vec<&String> = log
        .iter()
        .filter(|l| l.contains("end result=deferred code=254 ms="))
        .collect();
    assert_eq!(deferred.len(), 3, "{log:?}");
    assert!(deferred.iter().all(|l| l.contains(" next_try=")));
    assert!(log.iter().any(|l| l.contains("try=4 end result=dead")));
    daemon.stop().await;
}

async fn other_codes_are_as_on_error_says(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"10ms\"\nmax_tries = 3").await;
    lab.session("Mine", "user_redirect() { return 3; }");
    for (nas, on_error) in [(1, "null"), (2, "'dead'"), (3, "'retry'"), (4, "'drop'")] {
        lab.nas(nas, "Mine", 1, &[("on_error", on_error.to_owned())])
            .await;
        lab.accounts(nas, [nas * 10]).await;
    }
    let daemon = lab.start().await;
    for (nas, place, said, tries) in [
        (1, "dead", "code 3", 1),
        (2, "dead", "code 3", 1),
        (3, "dead", "3 tries", 3),
        (4, "done", "dropped", 1),
    ] {
        let id = lab.event(nas * 10, "user_redirect").await;
        let ended = lab.ended(id).await;
        assert_eq!(ended.0, place, "{ended:?}");
        assert!(ended.1.contains(said), "{ended:?}");
        let log = lab.account_log(nas * 10);
        let ends = log.iter().filter(|l| l.contains(" end result=")).count();
        assert_eq!(ends, tries, "{log:?}");
    }
    daemon.stop().await;
}

async fn a_scheme_beside_a_session_says_what_its_codes_mean(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"10ms\"\nmax_tries = 2").await;
    lab.session(
        "Mine",
        "user_redirect() { exit 7; }\nuser_rate_set() { exit 75; }\nuser_add() { exit 9; }\nuser_del() { exit 254; }",
    );
    lab.native(
        "Mine",
        "exit = { done = [0, 7], defer = [75] }\non_error = \"drop\"\n",
    );
    lab.nas(1, "Mine", 1, &[]).await;
    lab.accounts(1, [10, 11, 12, 13]).await;
    let daemon = lab.start().await;
    for (user, cmd, place, said) in [
        (10, "user_redirect", "done", "done"),
        (11, "user_rate_set", "dead", "2 tries"),
        (12, "user_add", "done", "dropped"),
        (13, "user_del", "done", "dropped"),
    ] {
        let id = lab.event(user, cmd).await;
        let ended = lab.ended(id).await;
        assert_eq!(ended.0, place, "{cmd}: {ended:?}");
        assert!(ended.1.contains(said), "{cmd}: {ended:?}");
    }
    daemon.stop().await;
}

async fn a_new_event_wakes_the_deferred_head_of_its_lane(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"1h\"").await;
    let (journal, mended) = (lab.path("journal"), lab.path("mended"));
    let body = format!("[[ -e {} ]] || exit 254", mended.display());
    lab.session("Mine", &journal::session(&journal, &body));
    lab.nas(1, "Mine", 2, &[]).await;
    lab.accounts(1, [10, 11]).await;
    let daemon = lab.start().await;
    let head = lab.event(10, "user_redirect").await;
    let other = lab.event(11, "user_redirect").await;
    lab.until("both are deferred", async || {
        let state = "select count(*) from events_stack where state = 'deferred'";
        (lab.number(state).await == 2).then_some(())
    })
    .await;
    std::fs::write(&mended, "").unwrap();
    let next = lab.event(10, "user_redirect_cancel").await;
    assert_eq!(lab.ended(next).await.1, "done");
    let mut order = starts(&journal::read_script(&journal));
    order.retain(|(event, ..)| *event != other);
    assert_eq!(
        order,
        [(head, 1, false), (head, 2, true), (next, 1, false)],
        "254 may have been applied"
    );
    let state = format!("select state, try_count from events_stack where id = {other}");
    assert_eq!(lab.rows(&state).await, [["deferred", "1"]]);
    daemon.stop().await;
}

async fn a_head_that_is_woken_while_it_runs_is_tried_again_at_once(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"1h\"").await;
    let (journal, gate) = (lab.path("journal"), lab.path("gate"));
    let body = format!(
        "{}\n[[ $cmd != user_redirect || $try_count -gt 1 ]] || exit 254",
        gated(&gate)
    );
    lab.session("Mine", &journal::session(&journal, &body));
    lab.nas(1, "Mine", 1, &[]).await;
    lab.accounts(1, [10]).await;
    let daemon = lab.start().await;
    let head = lab.event(10, "user_redirect").await;
    lab.until("the head runs", async || {
        (running(&journal::read_script(&journal)) == [head]).then_some(())
    })
    .await;
    let next = lab.event(10, "user_redirect_cancel").await;
    lab.scheduled(1, 1).await;
    let_through(&gate, "all");
    lab.drained().await;
    assert_eq!(
        starts(&journal::read_script(&journal)),
        [(head, 1, false), (head, 2, true), (next, 1, false)]
    );
    daemon.stop().await;
}

async fn a_dropped_head_lets_its_lane_go_on(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"1h\"").await;
    lab.session(
        "Mine",
        "user_redirect() { exit 254; }\nuser_redirect_cancel() { :; }",
    );
    lab.nas(1, "Mine", 2, &[]).await;
    lab.accounts(1, [10]).await;
    // Both are there before the first try: nothing comes later that would wake the head.
    lab.sql(
        "insert into events_stack_compact (cmd, user_id)
         values ('user_redirect', 10), ('user_redirect_cancel', 10)",
    )
    .await;
    let ids = lab.rows("select id from events_stack_compact order by id");
    let ids: Vec<i64> = ids.await.iter().map(|r| r[0].parse().unwrap()).collect();
    let (head, next) = (ids[0], ids[1]);
    let daemon = lab.start().await;
    let states = "select state, try_count from events_stack order by id";
    lab.until(
        "the head is deferred, the next one waits for it",
        async || (lab.rows(states).await == [["deferred", "1"], ["ready", "0"]]).then_some(()),
    )
    .await;
    let path = format!("/api/v1/events/{head}/drop");
    let (status, answer) = lab.try_post(&path, &json!({}), None).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(lab.ended(next).await, ("done".into(), "done".into()));
    assert_eq!(lab.ended(head).await, ("done".into(), "dropped".into()));
    daemon.stop().await;
}

async fn classes_go_before_age(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let (journal, gate) = (lab.path("journal"), lab.path("gate"));
    let mut text = journal::session(&journal, &gated(&gate));
    text.push_str("user_info() { work; }\n");
    lab.session("Mine", &text);
    lab.nas(1, "Mine", 1, &[]).await;
    lab.accounts(1, 1..=50).await;
    let daemon = lab.start().await;
    let blocker = lab.event(1, "user_add").await;
    lab.until("the only fork is taken", async || {
        (running(&journal::read_script(&journal)) == [blocker]).then_some(())
    })
    .await;
    // A batch of tariff changes, and behind it one of each class, the last shall be first.
    let batch: Vec<_> = (10..=50)
        .map(|user| json!({"cmd": "user_rate_set", "user_id": user}))
        .collect();
    let batch = lab.post(json!({ "events": batch })).await;
    let rest = lab.event(2, "user_add").await;
    let cut = lab.event(3, "user_redirect").await;
    let payer = lab.event(4, "user_redirect_cancel").await;
    let asked = lab.event(5, "user_info").await;
    lab.scheduled(1, batch.len() + 4).await;
    // Some of the batch is enough to see the order.
    for id in [blocker, asked, payer, cut, batch[0], batch[1], rest] {
        let_through(&gate, id);
    }
    let order = lab
        .until("the batch goes on", async || {
            let starts = starts(&journal::read_script(&journal));
            (starts.len() >= 7).then_some(starts)
        })
        .await;
    let order: Vec<i64> = order.into_iter().map(|(event, ..)| event).collect();
    let expected = [blocker, asked, payer, cut, batch[0], batch[1], batch[2]];
    assert_eq!(order, expected);
    let_through(&gate, "all");
    lab.drained().await;
    let order = starts(&journal::read_script(&journal));
    assert_eq!(order.last().unwrap().0, rest, "the rest comes last");
    daemon.stop().await;
}

async fn a_diagnostic_has_one_try_and_is_never_deferred(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let (journal, gate) = (lab.path("journal"), lab.path("gate"));
    let mut text = journal::session(&journal, &gated(&gate));
    text.push_str("user_info() { exit 254; }\nuser_test() { echo fine; }\n");
    lab.session("Mine", &text);
    lab.nas(1, "Mine", 2, &[]).await;
    lab.nas(2, "Mine", 1, &[("mode", "'off'".to_owned())]).await;
    lab.accounts(1, [10]).await;
    lab.accounts(2, [20]).await;
    let daemon = lab.start().await;
    let id = lab.event(10, "user_info").await;
    let (place, reason) = lab.ended(id).await;
    assert_eq!(place, "dead");
    assert!(reason.contains("254"), "{reason}");
    // It only reads: it runs beside the account's running event.
    let busy = lab.event(10, "user_redirect").await;
    lab.until("the account's event runs", async || {
        (running(&journal::read_script(&journal)) == [busy]).then_some(())
    })
    .await;
    let beside = lab.event(10, "user_test").await;
    assert_eq!(lab.ended(beside).await.1, "done");
    // A NAS that is not served cannot be asked, and the operator hears it at once.
    let nobody = lab.event(20, "user_info").await;
    let (place, reason) = lab.ended(nobody).await;
    assert_eq!(place, "dead");
    assert!(reason.contains("mode=off"), "{reason}");
    let record = format!(
        "event={nobody} user=20 cmd=user_info try=0 end result=dead code=0 ms=0 error=\"{reason}\""
    );
    ends_in_both_logs(&lab, 2, 20, &record).await;
    let_through(&gate, "all");
    lab.drained().await;
    daemon.stop().await;
}

async fn an_event_that_waits_too_long_expires(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let (journal, gate) = (lab.path("journal"), lab.path("gate"));
    lab.session("Mine", &journal::session(&journal, &gated(&gate)));
    lab.nas(1, "Mine", 1, &[]).await;
    lab.accounts(1, [10, 11]).await;
    let daemon = lab.start().await;
    let blocker = lab.event(10, "user_redirect").await;
    lab.until("the only fork is taken", async || {
        (running(&journal::read_script(&journal)) == [blocker]).then_some(())
    })
    .await;
    let soon = clock::utc_text(clock::wall_ms() + 1_300);
    let soon = soon.split('.').next().unwrap();
    let late = json!({"cmd": "user_redirect", "user_id": 11, "expires_at": soon});
    let late = lab.post(late).await[0];
    assert_eq!(lab.ended(late).await, ("done".into(), "expired".into()));
    let record =
        format!("event={late} user=11 cmd=user_redirect try=0 end result=expired code=0 ms=0");
    ends_in_both_logs(&lab, 1, 11, &record).await;
    let_through(&gate, "all");
    lab.drained().await;
    let all = starts(&journal::read_script(&journal));
    assert_eq!(all, [(blocker, 1, false)], "never sent");
    daemon.stop().await;
}
