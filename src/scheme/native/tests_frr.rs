//! Tests of the shipped scheme FRR-Vty: what it renders, and that no value becomes syntax. What
//! it does to routes is in `tests/telnet/frr.rs`.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::tests::{account, at, job, nas};

/// The commands that an event would send.
async fn sent(cmd: &str, params: &Json, vars: &Json) -> Result<Vec<String>, String> {
    let scheme = at("oss/core/FRR-Vty");
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

#[tokio::test]
async fn each_reason_has_its_distance_in_both_families() {
    for (cmd, distance, gone) in [
        ("user_drop", 2, false),
        ("user_accept", 2, true),
        ("user_redirect", 3, false),
        ("user_redirect_cancel", 3, true),
        ("own_disabled", 4, false),
        ("own_disabled_cancel", 4, true),
        ("b_sys", 5, false),
        ("u_b_sys", 5, true),
        ("b_own", 6, false),
        ("u_b_own", 6, true),
        ("b_admin", 7, false),
        ("u_b_admin", 7, true),
    ] {
        let lines = sent(cmd, &account(), &json!({})).await.unwrap();
        let no = if gone { "no " } else { "" };
        let want = [
            shown(&format!("{no}ip route 10.88.0.15/32 blackhole {distance}")),
            shown(&format!(
                "{no}ipv6 route 2001:db8:1::/56 blackhole {distance}"
            )),
        ];
        assert_eq!(lines, want, "{cmd}");
    }
}

#[tokio::test]
async fn an_account_is_added_as_its_flags_say_and_removed_whole() {
    let mut account = account();
    account["accept"] = json!(0);
    account["redirect"] = json!(1);
    let via = json!({"via": "10.90.0.2"});
    let lines = sent("user_add", &account, &via).await.unwrap();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(lines.contains(&shown("ip route 10.88.0.15/32 10.90.0.2 200")));
    let lines = sent("user_del", &account, &via).await.unwrap();
    assert_eq!(lines.len(), 1 + 6 * 2, "{lines:?}");
    assert!(
        lines.iter().all(|line| line.contains("'no ip")),
        "{lines:?}"
    );
    account["accept"] = json!(1);
    account["redirect"] = json!(0);
    assert!(
        sent("user_add", &account, &json!({}))
            .await
            .unwrap()
            .is_empty()
    );
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
