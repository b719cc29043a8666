//! Many events for a NAS that takes one at a time: they wait for their turn, far longer than the
//! deadline of one attempt, and none is deferred. `scripts/faults queues` runs the long form.

use std::time::Duration;

use super::daemon::Lab;

/// How many events, and how long the NAS works on each.
pub struct Queue {
    pub events: i64,
    pub each: Duration,
}

impl Queue {
    /// So many events of so many ms, unless the long form is asked for.
    pub fn of(events: i64, each_ms: u64) -> Self {
        let asked = |name: &str| std::env::var(name).ok().map(|n| n.parse().unwrap());
        Self {
            events: asked("NED_QUEUE_EVENTS").unwrap_or(events),
            each: Duration::from_millis(
                asked("NED_QUEUE_MS").map_or(each_ms, |ms: i64| ms.unsigned_abs()),
            ),
        }
    }
}

/// Accepts them at once on NAS 1, and waits until all are done: each at its first try, and none
/// deferred meanwhile.
pub async fn all_done(lab: &Lab, queue: &Queue) {
    let users = 10..10 + queue.events;
    lab.accounts(1, users.clone()).await;
    let _daemon = lab.start().await;
    let events: Vec<String> = users.map(|user| format!("('user_drop', {user})")).collect();
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values {}",
        events.join(", ")
    ))
    .await;
    // Meanwhile the status says that the session is in use and others wait for it.
    lab.until("one is at work and others wait", async || {
        let status = lab.scheduler().await?;
        let sessions = &status["nases"][0]["sessions"][0];
        let of = |name: &str| sessions[name].as_u64().unwrap_or(0);
        assert!(of("leased") <= 1, "{status}");
        let busy = (of("open"), of("leased")) == (1, 1);
        (busy && of("waiting") > 0).then_some(())
    })
    .await;
    lab.drained().await;
    let done = "select count(*) from events_done where result = 'done' and attempts = 1";
    assert_eq!(lab.number(done).await, queue.events, "{:#?}", last(lab));
    let status = lab.scheduler().await.unwrap();
    assert_eq!(status["nases"][0]["deferred"], 0, "{status}");
    let sessions = &status["nases"][0]["sessions"][0];
    assert_eq!(sessions["logins"], 1, "{status}");
    assert_eq!(sessions["leased"], 0, "{status}");
    assert_eq!(sessions["waiting"], 0, "{status}");
    assert_eq!(sessions["last_error"], serde_json::Value::Null, "{status}");
}

fn last(lab: &Lab) -> Vec<String> {
    let log = lab.nas_log(1);
    log.iter().rev().take(40).rev().cloned().collect()
}
