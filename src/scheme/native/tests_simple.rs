//! Tests of the shipped scheme Mikrotik-Simple as a whole.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::table::Table;
use super::tests::{account, at, job, nas, run};
use super::*;

#[tokio::test]
async fn a_change_of_address_leaves_nothing_of_the_old_one() {
    let scheme = at("oss/core/Mikrotik-Simple");
    let table = Mutex::new(Table::default());
    let mut old = account();
    old["redirect"] = json!(1);
    let mut new = old.clone();
    new["ip"] = json!("10.88.0.77");
    new["addresses"] = json!(["10.88.0.77"]);
    for (cmd, params) in [("user_add", &old), ("user_del", &old), ("user_add", &new)] {
        let (report, _) = run(&scheme, &job(cmd, params), &table).await;
        assert_eq!(report.verdict, Verdict::Done, "{cmd}");
    }
    let t = table.lock().unwrap();
    assert!(t.menus["/ipv6/firewall/address-list"].is_empty());
    let rows = &t.menus["/ip/firewall/address-list"];
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0]["list"].as_str(), rows[0]["address"].as_str()),
        ("crb_negbal", "10.88.0.77")
    );
    assert_eq!(t.menus["/queue/simple"][0]["target"], "10.88.0.77/32");
}

#[tokio::test]
async fn pairs_of_commands_undo_each_other_and_repeat_without_harm() {
    let scheme = at("oss/core/Mikrotik-Simple");
    for (give, take) in [
        ("user_redirect", "user_redirect_cancel"),
        ("user_drop", "user_accept"),
        ("own_disabled", "own_disabled_cancel"),
        ("b_sys", "u_b_sys"),
        ("b_admin", "u_b_admin"),
        ("user_auth", "user_disconnect"),
        ("usluga_add", "usluga_del"),
        ("user_rate_set", "user_rate_set_cancel"),
        ("user_edit", "user_del"),
    ] {
        let table = Mutex::new(Table::default());
        let mut params = account();
        params["usluga_id"] = json!("5");
        for cmd in [give, give, take, take] {
            let (report, sent) = run(&scheme, &job(cmd, &params), &table).await;
            assert_eq!(report.verdict, Verdict::Done, "{cmd}: {sent:?}");
            let t = table.lock().unwrap();
            let rows: usize = t.menus.values().map(Vec::len).sum();
            assert_eq!(rows == 0, cmd == take, "{cmd}: {:?}", t.menus);
        }
    }
}

#[tokio::test]
async fn a_fresh_redirect_is_one_sentence_per_address() {
    let scheme = at("oss/core/Mikrotik-Simple");
    let table = Mutex::new(Table::default());
    let (_, sent) = run(&scheme, &job("user_redirect", &account()), &table).await;
    assert_eq!(
        sent,
        [
            "/ip/firewall/address-list/add list=crb_negbal address=10.88.0.15 comment=crb_1424",
            "/ipv6/firewall/address-list/add list=crb_negbal address=2001:db8:1::/56 comment=crb_1424",
        ]
    );
}

#[tokio::test]
async fn settings_of_the_nas_override_vars() {
    let scheme = at("oss/core/Mikrotik-Simple");
    let table = Mutex::new(Table::default());
    table.lock().unwrap().put(
        "/ip/firewall/connection",
        &[("protocol", "tcp"), ("src-address", "10.88.0.15:99")],
    );
    let mut job = job("user_drop", &account());
    job.nas = Arc::new(nas(
        &json!({"prefix": "isp", "flush": "yes", "queue_before": "all"}),
    ));
    let (report, sent) = run(&scheme, &job, &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert!(sent[0].contains("list=isp_blocked"), "{sent:?}");
    assert!(
        sent.last()
            .unwrap()
            .starts_with("/ip/firewall/connection/remove"),
        "{sent:?}"
    );
    job.cmd = Cmd::parse("user_add").unwrap();
    let (_, sent) = run(&scheme, &job, &table).await;
    assert!(sent[0].contains("place-before=all"), "{sent:?}");
}

#[tokio::test]
async fn diagnostics_answer() {
    let scheme = at("oss/core/Mikrotik-Simple");
    let table = Mutex::new(Table::default());
    {
        let mut t = table.lock().unwrap();
        t.put(
            "/ip/firewall/address-list",
            &[
                ("list", "crb_negbal"),
                ("address", "10.88.0.15"),
                ("comment", "crb_1424"),
            ],
        );
        t.put(
            "/ppp/active",
            &[
                ("name", "ivanov"),
                ("uptime", "1h2m"),
                ("address", "10.88.0.15"),
            ],
        );
        t.put(
            "/ip/arp",
            &[
                ("address", "10.88.0.15"),
                ("mac-address", "AA:BB:CC:00:11:22"),
                ("interface", "bridge"),
            ],
        );
        let row = |time: &str| [("time".to_owned(), time.to_owned())].into();
        t.replies.insert(
            "/ping".into(),
            crate::driver::Reply {
                rows: vec![
                    row("1ms"),
                    row("2ms"),
                    [("status".to_owned(), "timeout".to_owned())].into(),
                ],
                ..Default::default()
            },
        );
    }
    let answer = async |cmd: &str| {
        run(&scheme, &job(cmd, &account()), &table)
            .await
            .0
            .answer
            .unwrap()
    };
    assert_eq!(
        answer("user_test").await,
        "ping 10.88.0.15: 2 of 3 answered"
    );
    assert_eq!(answer("user_get_mac").await, "AA:BB:CC:00:11:22");
    let info = answer("user_info").await;
    for part in [
        "list crb_negbal: 10.88.0.15",
        "queue: none",
        "ppp: 10.88.0.15 for 1h2m",
        "arp: AA:BB:CC:00:11:22 on bridge",
    ] {
        assert!(info.contains(part), "{part}\n{info}");
    }
}
