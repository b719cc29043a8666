//! `nas diff`: what the flags call for beside what stands on the router; nothing is changed.

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::Value;

use crate::lab::daemon::{Lab, address};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::Router;
use crate::{RECORD, named, ned};

on_each_store!(a_nas_is_compared_with_the_flags_and_left_alone);

/// (user, kind, path, row or what it has) of each difference.
async fn diff(lab: &Lab, more: &[&str]) -> Vec<(i64, String, String, Value)> {
    let mut words = vec!["-o", "json", "nas", "diff", "5"];
    words.extend(more);
    let said = ned(lab, &words).await;
    let rows: Value = serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"));
    let rows = rows.as_array().unwrap().clone();
    said.failed(
        if rows.is_empty() { 0 } else { 9 },
        &["nothing was changed"],
    );
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let mut rows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let user = row["user"].as_i64().unwrap();
            (user, text(&row, "kind"), text(&row, "path"), row)
        })
        .collect();
    rows.sort_by(|a, b| (a.0, &a.1, &a.2).cmp(&(b.0, &b.1, &b.2)));
    rows
}

fn heads(rows: &[(i64, String, String, Value)]) -> Vec<(i64, &str, &str)> {
    rows.iter()
        .map(|(user, kind, path, _)| (*user, kind.as_str(), path.as_str()))
        .collect()
}

const LIST: &str = "/ip/firewall/address-list";
const QUEUE: &str = "/queue/simple";

async fn a_nas_is_compared_with_the_flags_and_left_alone(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 5, "Mikrotik-Simple", 4).await;
    lab.accounts(5, 1..=4).await;
    lab.sql("update users set redirect = 1 where id = 2").await;
    lab.sql("update users set accept = 0 where id = 3").await;
    lab.sql("update users set deleted = 1 where id = 4").await;
    // An empty router lacks all that the flags want.
    let rows = diff(&lab, &[]).await;
    let expected = [
        (1, "missing", QUEUE),
        (2, "missing", LIST),
        (2, "missing", QUEUE),
        (3, "missing", LIST),
        (3, "missing", QUEUE),
    ];
    assert_eq!(heads(&rows), expected, "{rows:#?}");
    assert_eq!(router.sim.seen().changes, 0);
    // What resync makes of it differs in nothing.
    let daemon = lab.start().await;
    ned(&lab, &["nas", "resync", "5"]).await.fine();
    lab.drained().await;
    daemon.stop().await;
    assert_eq!(heads(&diff(&lab, &[]).await), []);
    // Somebody changes a rate, a payer stays blocked, a row of ours goes, another billing's account
    // and an engineer's row stand there, a deleted account still has its queue.
    let changed = async |words: &[&str]| {
        let mut all = vec!["--nas", "5"];
        all.extend(words);
        named(&lab, "send_mikrotik_cmd", &all, "").await.fine()
    };
    let queue = router
        .sim
        .rows(QUEUE)
        .into_iter()
        .find(|q| q["name"] == "crb_1");
    let id = format!(".id={}", queue.unwrap()[".id"]);
    changed(&["/queue/simple/set", &id, "max-limit=1k/1k"]).await;
    let of = |user: i64| format!("address={}", address(user));
    let blocked = "list=crb_blocked";
    changed(&[
        "/ip/firewall/address-list/add",
        blocked,
        &of(1),
        "comment=crb_1",
    ])
    .await;
    changed(&[
        "/ip/firewall/address-list/remove",
        "list=crb_negbal",
        "comment=crb_2",
    ])
    .await;
    changed(&[
        "/ip/firewall/address-list/add",
        "list=crb_negbal",
        &of(2),
        "comment=by hand",
    ])
    .await;
    changed(&[
        "/queue/simple/add",
        "name=crb_4",
        "target=10.0.0.4/32",
        "comment=crb_4",
    ])
    .await;
    changed(&[
        "/queue/simple/add",
        "name=crb_77",
        "target=10.0.0.77/32",
        "comment=crb_77",
    ])
    .await;
    changed(&[
        "/queue/simple/add",
        "name=office",
        "target=10.9.9.9/32",
        "comment=do not touch",
    ])
    .await;
    let stood = router.sim.dump();
    let before = router.sim.seen().changes;
    let rows = diff(&lab, &[]).await;
    let expected = [
        (1, "different", QUEUE),
        (1, "foreign", LIST),
        (2, "foreign", LIST),
        (4, "foreign", QUEUE),
        (77, "foreign", QUEUE),
    ];
    assert_eq!(heads(&rows), expected, "{rows:#?}");
    assert!(
        rows[0].3["has"]
            .as_str()
            .unwrap()
            .starts_with("max-limit=1"),
        "{rows:#?}"
    );
    assert!(
        rows[0].3["wants"].as_str().unwrap().contains("max-limit="),
        "{rows:#?}"
    );
    assert_eq!(rows[2].3["has"], "a row without our mark", "{rows:#?}");
    // One account only, and no look at others' rows.
    assert_eq!(heads(&diff(&lab, &["--user", "1"]).await), expected[..2]);
    assert_eq!(heads(&diff(&lab, &["--user", "3"]).await), []);
    assert_eq!(router.sim.seen().changes, before, "it only looks");
    assert_eq!(router.sim.dump(), stood);
    // Nobody to ask, and nothing that could be compared.
    ned(&lab, &["nas", "diff", "5", "--user", "99"])
        .await
        .failed(5, &["has no account 99"]);
    lab.nas(6, RECORD, 1, &[]).await;
    ned(&lab, &["nas", "diff", "6"])
        .await
        .failed(6, &["cannot be compared"]);
    router.sim.stop().await;
    ned(&lab, &["nas", "diff", "5", "--user", "1"])
        .await
        .failed(4, &["hint: nas test"]);
}
