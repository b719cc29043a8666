//! The doors of a running daemon: the mark above which producers wait.

use serde_json::{Value, json};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;

on_each_store!(above_the_mark_producers_wait_and_payers_get_through);

/// A scheme that renders and sends nothing.
const RECORD: &str = "Record";

async fn above_the_mark_producers_wait_and_payers_get_through(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.configure("high_water = 10", "");
    lab.native(
        RECORD,
        "driver = \"record\"\n[[on.user_add]]\ncall = \"/x\"\n",
    );
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, 50..=60).await;
    lab.sql("insert into nas_state (nas_id, paused_until) values (5, '2999-01-01 00:00:00')")
        .await;
    let daemon = lab.start().await;
    for user in 50..=59 {
        lab.event(user, "user_rate_set").await;
    }
    let limited = async || {
        let status: Value = serde_json::from_str(&lab.get("/api/v1/status").await).unwrap();
        status["intake"]["limited"].as_bool().unwrap()
    };
    lab.until("the mark is noticed", async || {
        limited().await.then_some(())
    })
    .await;
    // What comes by SQL waits on the compact stack, but for those who paid.
    lab.sql(
        "insert into events_stack_compact (cmd, user_id) values
           ('user_rate_set', 50), ('user_redirect', 60), ('user_redirect_cancel', 60)",
    )
    .await;
    lab.until("the payer on the main stack", async || {
        let rows = "select count(*) from events_stack where user_id = 60";
        (lab.number(rows).await == 2).then_some(())
    })
    .await;
    assert_eq!(
        lab.rows("select cmd, user_id from events_stack_compact")
            .await,
        [["user_rate_set", "50"]]
    );
    let body = json!({ "cmd": "user_add", "user_id": 51 });
    let refused = lab
        .client
        .post(lab.url("/rest_api/v2/EventsStackCompact/"))
        .body(format!("method1=objects.create&arg1={body}"))
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status().as_u16(), 429);
    assert_eq!(refused.headers()["retry-after"], "5");
    assert!(
        refused
            .text()
            .await
            .unwrap()
            .contains("more than 10 events are waiting")
    );
    lab.said("only those that give access and questions are expanded")
        .await;
    let metrics = lab.get("/metrics").await;
    assert!(
        metrics.contains("nas_event_daemon_intake_limited 1"),
        "{metrics}"
    );
    // Below nine tenths of the mark everything goes on.
    let resume = lab.try_post("/api/v1/nas/5/resume", &json!({}), None).await;
    assert_eq!(resume.unwrap().0, 200);
    lab.drained().await;
    assert!(!limited().await);
    lab.until("the door is open again", async || {
        let (status, _) = lab.try_post("/api/v1/events", &body, None).await.unwrap();
        (status == 201).then_some(())
    })
    .await;
    daemon.stop().await;
}
