//! Tests of the shipped schemes FRR-Vty and XGE: what they render, and that no value becomes
//! syntax. What the first does to routes is in `tests/telnet/frr.rs`.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::tests::{account, at, job, nas};

/// The commands that an event would send.
async fn sent(cmd: &str, params: &Json, vars: &Json) -> Result<Vec<String>, String> {
    rendered("oss/core/FRR-Vty", cmd, params, vars).await
}

async fn rendered(
    scheme: &str,
    cmd: &str,
    params: &Json,
    vars: &Json,
) -> Result<Vec<String>, String> {
    let scheme = at(scheme);
    assert!(scheme.warnings().is_empty(), "{:?}", scheme.warnings());
    let mut job = job(cmd, params);
    job.nas = Arc::new(nas(vars));
    let lines = scheme.render_dry(&job).await;
    lines
        .map(Option::unwrap_or_default)
        .map_err(|f| f.to_string())
}

fn shown(line: &str) -> String {
    format!("send_telnet_cmd --nas 1 'configure terminal' ';' '{line}' ';' end")
}

/// Before anything is removed its owner is looked up.
const LOOK: &str = "send_telnet_cmd --nas 1 \
    'show running-config | include route (0|10.88.0.15/32|2001:db8:1::/56)'";

#[tokio::test]
async fn both_families_are_blocked_and_opened_when_no_flag_blocks() {
    for (cmd, accept, redirect, gone) in [
        ("user_drop", 0, 0, false),
        ("user_redirect", 1, 1, false),
        ("user_accept", 1, 0, true),
        ("user_redirect_cancel", 1, 0, true),
    ] {
        let mut account = account();
        account["accept"] = json!(accept);
        account["redirect"] = json!(redirect);
        let lines = sent(cmd, &account, &json!({})).await.unwrap();
        let want = if gone {
            vec![
                LOOK.to_owned(),
                shown("no ip route 10.88.0.15/32 blackhole"),
                shown("no ipv6 route 2001:db8:1::/56 blackhole"),
            ]
        } else {
            vec![
                shown("ip route 10.88.0.15/32 blackhole tag 1424"),
                shown("ipv6 route 2001:db8:1::/56 blackhole tag 1424"),
            ]
        };
        assert_eq!(lines, want, "{cmd}");
    }
    // The other reason still holds.
    for (cmd, accept, redirect) in [("user_accept", 1, 1), ("user_redirect_cancel", 0, 0)] {
        let mut account = account();
        account["accept"] = json!(accept);
        account["redirect"] = json!(redirect);
        let lines = sent(cmd, &account, &json!({})).await.unwrap();
        assert!(lines.is_empty(), "{cmd}: {lines:?}");
    }
}

#[tokio::test]
async fn an_account_is_added_as_its_flags_say_and_removed_whole() {
    let mut account = account();
    account["accept"] = json!(0);
    account["redirect"] = json!(1);
    let via = json!({"via": "10.90.0.2"});
    let lines = sent("user_add", &account, &via).await.unwrap();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.contains(&shown("ip route 10.88.0.15/32 10.90.0.2 tag 1424 200")));
    let lines = sent("user_del", &account, &via).await.unwrap();
    assert_eq!(lines.len(), 1 + 1 + 2, "{lines:?}");
    assert_eq!(lines[0], LOOK);
    assert!(
        lines[1..].iter().all(|line| line.contains("'no ip")),
        "{lines:?}"
    );
    account["accept"] = json!(1);
    account["redirect"] = json!(0);
    let lines = sent("user_add", &account, &json!({})).await.unwrap();
    assert!(lines.is_empty(), "{lines:?}");
}

#[tokio::test]
async fn no_value_becomes_syntax() {
    for hostile in [
        "10.0.0.1 255.0.0.0 Null0",
        "10.0.0.1\nend\nreload",
        "-x",
        "10.0.0.1?",
    ] {
        let mut params = account();
        params["addresses"] = json!([hostile]);
        params["accept"] = json!(1);
        params["redirect"] = json!(0);
        for cmd in ["user_drop", "user_accept", "user_del", "user_add"] {
            let refused = sent(cmd, &params, &json!({"via": "10.90.0.2", "via6": "::1"})).await;
            assert!(refused.is_err(), "{cmd} {hostile:?}: {refused:?}");
        }
        let via = json!({"via": hostile});
        assert!(
            sent("user_add", &account(), &via).await.is_err(),
            "{hostile:?}"
        );
    }
}

#[tokio::test]
async fn an_xge_gets_one_text_per_command() {
    let xge =
        async |cmd: &str, params: &Json| rendered("oss/core/XGE", cmd, params, &json!({})).await;
    let mut account = account();
    account["snatip"] = json!("203.0.113.7");
    account["rate_in"] = json!(512);
    account["rate_out"] = json!(1024);
    account["ceil_in"] = json!(10240);
    account["ceil_out"] = json!(20480);
    let rate = "rate set in 512 10240 0 out 1024 20480 0";
    for (cmd, wanted) in [
        (
            "user_accept",
            &["redirect blocked cancel", "nat 203.0.113.7"][..],
        ),
        ("user_drop", &["redirect blocked"]),
        ("user_redirect", &["redirect negbal"]),
        ("user_redirect_cancel", &["redirect negbal cancel"]),
        ("user_rate_set", &[rate]),
        ("user_rate_set_cancel", &["rate remove"]),
        ("user_del", &["stop", "remove"]),
        ("user_disconnect", &["disconnect"]),
        ("user_info", &["info"]),
        ("user_test", &["test"]),
        ("user_get_mac", &["mac"]),
    ] {
        let lines = xge(cmd, &account).await.unwrap();
        let wanted: Vec<String> = wanted
            .iter()
            .map(|say| {
                format!(
                    "send_radius_cmd --nas 1 coa Framed-IP-Address=10.88.0.15 'Filter-Id=session 10.88.0.15 {say}'"
                )
            })
            .collect();
        assert_eq!(lines, wanted, "{cmd}");
        // A second run says the same; what is there already is the device's to know.
        assert_eq!(xge(cmd, &account).await.unwrap(), wanted, "{cmd}");
    }
    // A change of address: the old data name the old one only.
    let mut old = account.clone();
    old["ip"] = json!("10.88.0.99");
    old["addresses"] = json!(["10.88.0.99"]);
    let gone = xge("user_del", &old).await.unwrap().join(" ");
    assert!(
        gone.contains("10.88.0.99") && !gone.contains("10.88.0.15"),
        "{gone}"
    );
    for hostile in ["10.0.0.1 remove", "x; session 10.0.0.2 stop"] {
        let mut params = account.clone();
        params["addresses"] = json!([hostile]);
        assert!(xge("user_drop", &params).await.is_err(), "{hostile:?}");
        let mut params = account.clone();
        params["ceil_in"] = json!(hostile);
        assert!(xge("user_rate_set", &params).await.is_err(), "{hostile:?}");
    }
}
