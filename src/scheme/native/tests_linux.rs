//! Tests of the shipped scheme Linux-SSH: what it renders, and that no value becomes syntax. What
//! it does on a Linux NAS is in `tests/ssh/linux_nas.rs`.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::tests::{account, at, job, nas};

/// The commands that an event would send.
async fn sent(cmd: &str, params: &Json, vars: &Json) -> Result<Vec<String>, String> {
    let scheme = at("oss/core/Linux-SSH");
    let mut job = job(cmd, params);
    job.nas = Arc::new(nas(vars));
    let lines = scheme.render_dry(&job).await;
    lines
        .map(Option::unwrap_or_default)
        .map_err(|f| f.to_string())
}

/// The lines of a batch, without the quoting.
fn batch(line: &str) -> Vec<String> {
    let quoted = line.split_once("<<< ").unwrap().1;
    let text = quoted.trim_start_matches('$').trim_matches('\'');
    let lines = text.split("\\n").filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn each_event_is_one_transaction_for_both_families() {
    let account = account();
    for (cmd, set, gone) in [
        ("user_redirect", "negbal", false),
        ("user_redirect_cancel", "negbal", true),
        ("user_drop", "blocked", false),
        ("user_accept", "blocked", true),
        ("user_auth", "auth", false),
        ("own_disabled", "own_disabled", false),
        ("own_disabled_cancel", "own_disabled", true),
        ("b_sys", "b_sys", false),
        ("u_b_sys", "b_sys", true),
        ("u_b_own", "b_own", true),
        ("b_admin", "b_admin", false),
    ] {
        let lines = sent(cmd, &account, &json!({})).await.unwrap();
        assert_eq!(lines.len(), 1, "{cmd}: {lines:?}");
        assert!(lines[0].starts_with("send_ssh_cmd --nas 1 'nft -f -' <<< "));
        let mut want = Vec::new();
        for element in ["4 { 10.88.0.15 }", "6 { 2001:db8:1::/56 }"] {
            want.push(format!("add element inet crb {set}{element}"));
            if gone {
                want.push(format!("delete element inet crb {set}{element}"));
            }
        }
        assert_eq!(batch(&lines[0]), want, "{cmd}");
    }
}

/// The whole account, speed included; an account number that tc has no class for is no reason to
/// leave the rest.
#[tokio::test]
async fn user_del_is_one_transaction_and_asks_whose_the_address_is() {
    let mut account = account();
    for (user, parts) in [(1424, 1 + 7 + 1), (70_000, 1 + 7)] {
        account["user_id"] = json!(user);
        let lines = sent("user_del", &account, &json!({})).await.unwrap();
        let nft: Vec<_> = lines.iter().filter(|l| l.contains("'nft -f -'")).collect();
        assert_eq!(nft.len(), 1, "{lines:?}");
        assert_eq!(
            lines.len() - 1,
            if user == 1424 { 2 } else { 0 },
            "{lines:?}"
        );
        let batch = batch(nft[0]);
        assert_eq!(batch.len(), 2 + 2 * 2 * parts, "{batch:?}");
        let holder = format!("holder4 {{ 10.88.0.15 : {user} }}");
        assert_eq!(batch[2], format!("add element inet crb {holder}"));
        assert_eq!(batch[3], format!("delete element inet crb {holder}"));
    }
    account["addresses"] = json!([]);
    account["ip"] = json!("");
    let lines = sent("user_del", &account, &json!({})).await.unwrap();
    assert_eq!(lines, [""; 0]);
}

#[tokio::test]
async fn a_rate_is_a_class_first_and_the_way_there_then() {
    let lines = sent("user_rate_set", &account(), &json!({"dev_down": "bond0"}))
        .await
        .unwrap();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("tc -batch -"), "{}", lines[0]);
    for part in [
        "dev bond0 parent 1:ffff classid 1:590 htb",
        "dev wan0 parent 1:ffff classid 1:590",
    ] {
        assert!(lines[0].contains(part), "{part} in {}", lines[0]);
    }
    for part in [
        "class4 { 10.88.0.15 : 1:590 }",
        "class6 { 2001:db8:1::/56 : 1:590 }",
    ] {
        assert!(lines[1].contains(part), "{part} in {}", lines[1]);
    }
    // A column of the billing gives large account numbers a class.
    let mut big = account();
    big["user_id"] = json!(1_000_000);
    big["slot"] = json!(7);
    let lines = sent("user_rate_set", &big, &json!({})).await.unwrap();
    assert!(lines[0].contains("classid 1:7 "), "{}", lines[0]);
}

#[tokio::test]
async fn services_have_their_lists_and_a_default() {
    let mut account = account();
    account["usluga_id"] = json!(5);
    account["service"] = json!({"lists": ["social", "tv"]});
    let lines = sent("usluga_add", &account, &json!({})).await.unwrap();
    for part in [
        "add set inet crb social4 { type ipv4_addr; flags interval; }",
        "tv6 { 2001:db8:1::/56 }",
    ] {
        assert!(lines[0].contains(part), "{part} in {}", lines[0]);
    }
    account["service"] = json!({});
    let lines = sent("usluga_del", &account, &json!({})).await.unwrap();
    assert!(
        lines[0].contains("delete element inet crb usluga_54 { 10.88.0.15 }"),
        "{}",
        lines[0]
    );
    let sets = json!({"service_sets": "social tv", "table": "isp"});
    let lines = sent("user_del", &account, &sets).await.unwrap();
    for part in [
        "isp social4 {",
        "isp tv6 {",
        "isp b_admin4 {",
        "isp auth6 {",
    ] {
        assert!(
            lines[0].contains(&format!("delete element inet {part}")),
            "{part} in {}",
            lines[0]
        );
    }
}

#[tokio::test]
async fn no_value_becomes_syntax() {
    for hostile in [
        "10.0.0.1 }; flush ruleset; #",
        "$(reboot)",
        "10.0.0.1\nflush ruleset",
        "-x",
    ] {
        let mut params = account();
        params["addresses"] = json!([hostile]);
        for cmd in [
            "user_redirect",
            "user_rate_set",
            "user_info",
            "user_test",
            "user_get_mac",
        ] {
            let refused = sent(cmd, &params, &json!({})).await;
            assert!(refused.is_err(), "{cmd} {hostile:?}: {refused:?}");
        }
        let mut params = account();
        params["usluga_id"] = json!(5);
        params["service"] = json!({"lists": [hostile]});
        let refused = sent("usluga_add", &params, &json!({})).await;
        assert!(refused.is_err(), "{hostile:?}: {refused:?}");
    }
    // A name that accel-ppp gave is one word, whatever is in it.
    let mut account = account();
    account["ifname"] = json!("ppp0; reboot");
    let lines = sent("user_disconnect", &account, &json!({})).await.unwrap();
    let quoted = r#"'accel-cmd terminate if '\''ppp0; reboot'\'' hard'"#;
    assert!(lines[0].contains(quoted), "{}", lines[0]);
}
