//! `nas diff`: what the flags call for beside what stands on the router; nothing is changed.

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::Value;

use crate::lab::daemon::{Lab, address};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::Router;
use crate::{RECORD, named, ned};

on_each_store!(
    a_nas_is_compared_with_the_flags_and_left_alone,
    what_cannot_be_read_is_told_and_the_rest_is_compared,
    steps_that_are_orders_are_left_out,
);

/// (user, kind, path, row or what it has) of each difference.
async fn diff(lab: &Lab, more: &[&str]) -> Vec<(i64, String, String, Value)> {
    let mut words = vec!["5"];
    words.extend(more);
    told(lab, &words, &["nothing was changed"]).await.1
}

/// Exit code and rows; the user of a row without one is 0.
async fn told(
    lab: &Lab,
    words: &[&str],
    remarks: &[&str],
) -> (i32, Vec<(i64, String, String, Value)>) {
    let mut all = vec!["-o", "json", "nas", "diff"];
    all.extend(words);
    let said = ned(lab, &all).await;
    let rows: Value = serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"));
    let rows = rows.as_array().unwrap().clone();
    let unread = rows.iter().any(|row| row["kind"] == "unread");
    let code = match (unread, rows.is_empty()) {
        (true, _) => said.code,
        (false, empty) => {
            if empty {
                0
            } else {
                9
            }
        }
    };
    said.failed(code, remarks);
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let mut rows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let user = row["user"].as_i64().unwrap_or_default();
            (user, text(&row, "kind"), text(&row, "path"), row)
        })
        .collect();
    rows.sort_by(|a, b| (a.0, &a.1, &a.2).cmp(&(b.0, &b.1, &b.2)));
    (code, rows)
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

const LIST6: &str = "/ipv6/firewall/address-list";

async fn what_cannot_be_read_is_told_and_the_rest_is_compared(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 5, "Mikrotik-Simple", 4).await;
    router.serve_as(&lab, 7, "Mikrotik-Simple", 4).await;
    lab.accounts(5, 1..=4).await;
    // Nobody can say what these two want.
    lab.sql("update users set ip = 'nowhere', addresses = '[\"nowhere\"]' where id = 2")
        .await;
    lab.sql(
        "drop view event_params;
         create view event_params as
         select id as user_id, abonent_id, nas_id, login, ip, addresses, accept, redirect, deleted,
           ceil_in, ceil_out, auth_type
         from users where id <> 3",
    )
    .await;
    // Rows of account 3, of one that is gone, and of another in a menu that nobody's flags lead to.
    for words in [
        &[
            "/queue/simple/add",
            "name=crb_3",
            "target=10.0.0.3/32",
            "comment=crb_3",
        ][..],
        &[
            "/queue/simple/add",
            "name=crb_77",
            "target=10.0.0.77/32",
            "comment=crb_77",
        ],
        &[
            "/ipv6/firewall/address-list/add",
            "list=crb_negbal",
            "address=2001:db8::78",
            "comment=crb_78",
        ],
    ] {
        let mut all = vec!["--nas", "5"];
        all.extend(words);
        named(&lab, "send_mikrotik_cmd", &all, "").await.fine();
    }
    let others = [(77, "foreign", QUEUE), (78, "foreign", LIST6)];
    let (code, rows) = told(&lab, &["5"], &["no row for account 3", "kind unread"]).await;
    let mut expected = vec![
        (1, "missing", QUEUE),
        (2, "unread", ""),
        (3, "foreign", QUEUE),
        (4, "missing", QUEUE),
    ];
    expected.extend(others);
    assert_eq!((code, heads(&rows)), (8, expected), "{rows:#?}");
    assert!(
        rows[1].3["has"].as_str().unwrap().contains("nowhere"),
        "{rows:#?}"
    );
    // One by one.
    let (code, rows) = told(&lab, &["5", "--user", "2"], &["nowhere"]).await;
    assert_eq!((code, heads(&rows)), (1, vec![(2, "unread", "")]));
    let (code, rows) = told(&lab, &["5", "--user", "3"], &["no row for account 3"]).await;
    assert_eq!((code, heads(&rows)), (9, vec![(3, "foreign", QUEUE)]));
    // A NAS without any account: all that stands there is foreign.
    let (code, rows) = told(&lab, &["7"], &["0 accounts compared"]).await;
    let mut expected = vec![(3, "foreign", QUEUE)];
    expected.extend(others);
    assert_eq!((code, heads(&rows)), (9, expected), "{rows:#?}");
    // A NAS that does not answer is not asked for each of its accounts.
    lab.accounts(5, 8..=40).await;
    router.sim.stop().await;
    let (code, rows) = told(&lab, &["5"], &["others were not asked", "hint: nas test"]).await;
    assert_eq!(code, 4);
    assert!(
        rows.len() < 8 && rows.iter().all(|row| row.1 == "unread"),
        "{rows:#?}"
    );
}

async fn steps_that_are_orders_are_left_out(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    lab.native(
        "Mixed",
        r#"
driver = "radius"
own = { comment = "mixed_{{ user_id }}" }
[[on.user_drop]]
ensure = "/ip/firewall/address-list"
where = { list = "mixed", address = "{{ ip }}" }
[[on.user_drop]]
disconnect = { User-Name = "{{ login }}" }
"#,
    );
    router.serve_as(&lab, 5, "Mixed", 1).await;
    lab.accounts(5, [1]).await;
    lab.sql("update users set accept = 0 where id = 1").await;
    let (_, rows) = told(&lab, &["5"], &["1 steps were not compared"]).await;
    assert_eq!(heads(&rows), [(1, "missing", LIST)]);
    // Nothing but orders, and what only a script knows.
    let orders =
        "driver = \"radius\"\n[[on.user_drop]]\ndisconnect = { User-Name = \"{{ login }}\" }\n";
    lab.native("Orders", orders);
    lab.session("Script", "user_drop() { :; }\n");
    lab.nas(6, "Orders", 1, &[]).await;
    lab.nas(8, "Script", 1, &[]).await;
    ned(&lab, &["nas", "diff", "6"])
        .await
        .failed(6, &["only orders (driver radius)", "hint: nas resync 6"]);
    ned(&lab, &["nas", "diff", "8"])
        .await
        .failed(6, &["it is a script"]);
}
