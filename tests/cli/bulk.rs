//! `event bulk`: a plan of a file before it is posted, and uploads that can be sent again.

use serde_json::{Value, json};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, named, ned};

on_each_store!(a_file_is_planned_then_posted_once);

async fn a_file_is_planned_then_posted_once(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, RECORD, 2, &[]).await;
    lab.accounts(5, 1..=60).await;
    lab.sql("insert into nas_state (nas_id, paused_until) values (5, '2999-01-01 00:00:00')")
        .await;
    let ids: String = (1..=60).map(|id| format!("{id}\n")).collect();
    let bulk = async |more: &[&str]| {
        let words = [
            "-o",
            "json",
            "event",
            "bulk",
            "-",
            "--format",
            "ids",
            "--cmd",
            "user_drop",
        ];
        let words: Vec<&str> = words.iter().chain(more).copied().collect();
        named(&lab, "nas_event_daemon", &words, &ids).await
    };
    // Without a daemon nothing can be done, and that is said at once.
    bulk(&["--plan"]).await.failed(4, &["no daemon listens"]);
    bulk(&["--key", "two words"])
        .await
        .failed(2, &["without spaces"]);
    let daemon = lab.start().await;
    lab.until("the dispatcher says what it serves", async || {
        let served = lab.scheduler().await?;
        (served["nases"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let plan = bulk(&["--plan"]).await.json();
    let all = &plan;
    assert_eq!(
        (&all["events"], &all["unknown_accounts"], &all["seconds"]),
        (&json!(60), &json!(0), &json!(9)),
        "{plan}"
    );
    assert!(
        all["guard"]
            .as_str()
            .unwrap()
            .contains("60 accounts within a minute"),
        "{plan}"
    );
    let nases = &plan["nas"];
    assert_eq!(
        (&nases[0]["nas_id"], &nases[0]["events"]),
        (&json!(5), &json!(60)),
        "{plan}"
    );
    assert!(
        nases[0]["stands_still"]
            .as_str()
            .unwrap()
            .contains("paused"),
        "{plan}"
    );
    assert_eq!(lab.waiting().await, 0);
    let first = bulk(&["--key", "evening"]).await.json();
    assert_eq!(first["accepted"], 60);
    // The line to the daemon may have been lost: the same again stores nothing.
    let again = bulk(&["--key", "evening"]).await.json();
    assert_eq!(
        (&again["accepted"], &again["batch_id"]),
        (&json!(60), &first["batch_id"])
    );
    assert_eq!(lab.waiting().await, 60);
    // Without a key of one's own it is another upload.
    assert_eq!(bulk(&[]).await.json()["accepted"], 60);
    assert_eq!(lab.waiting().await, 120);
    let batch = format!("/api/v1/batches/{}", first["batch_id"].as_str().unwrap());
    let progress = async || -> Value { serde_json::from_str(&lab.get(&batch).await).unwrap() };
    let waiting = progress().await;
    assert_eq!(
        (&waiting["events"], &waiting["finished"]),
        (&json!(60), &json!(false))
    );
    ned(&lab, &["nas", "resume", "5"]).await.fine();
    lab.drained().await;
    let ended = progress().await;
    assert_eq!(
        (&ended["events"], &ended["ended"], &ended["finished"]),
        (&json!(60), &json!(60), &json!(true)),
        "{ended}"
    );
    assert_eq!(ended["states"]["done"], 60, "{ended}");
    daemon.stop().await;
    ned(&lab, &["event", "list"]).await.fine();
}
