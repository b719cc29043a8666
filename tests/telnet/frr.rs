//! From an event to a route: the real daemon, the shipped scheme FRR-Vty, FRR's own command line.

use std::process::Stdio;

use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sshd::program;
use crate::lab::vty::{ENABLE, Frr, PASSWORD};

on_each_store!(
    an_event_changes_a_route,
    a_pager_of_frr_is_paged_to_its_end,
    a_late_user_del_leaves_the_new_holder_alone,
    a_wrong_password_parks_the_nas,
    the_tools_speak_to_the_router,
);

async fn nas_of(lab: &Lab, frr: &Frr, forks: i64, password: &str) {
    let columns = [
        ("telnet_port", frr.port.to_string()),
        ("max_sessions", "1".to_owned()),
        (
            "vars",
            r#"'{"via": "10.90.0.2", "via6": "2001:db8:90::2"}'"#.to_owned(),
        ),
    ];
    lab.nas(1, "FRR-Vty", forks, &columns).await;
    lab.sql(&format!(
        "insert into nas_secret (nas_id, login, password, enable_password) values (1, '', '{password}', '{ENABLE}')"
    ))
    .await;
}

async fn an_event_changes_a_route(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let frr = Frr::start().await;
    nas_of(&lab, &frr, 20, PASSWORD).await;
    lab.accounts(1, [10, 11]).await;
    lab.sql("update users set addresses = '[\"10.0.0.10\", \"2001:db8:1::/56\"]' where id = 10")
        .await;
    let _daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    let go = async |user: i64, cmd: &str| {
        let id = lab.event(user, cmd).await;
        assert_eq!(
            lab.ended(id).await,
            done,
            "{cmd}: {:?}",
            lab.account_log(user)
        );
        id
    };
    // zebra installs what staticd was told a moment later.
    let routes = async |what: &str, net: &str, wanted: &str| {
        let family = if net.contains(':') { "-6" } else { "-4" };
        lab.until(what, async || {
            let found = frr.routes(family, net).await.join("\n");
            let fits = if wanted.is_empty() {
                found.is_empty()
            } else {
                found.contains(wanted)
            };
            fits.then_some(())
        })
        .await;
    };
    // Twice: the second changes nothing.
    for _ in 0..2 {
        go(10, "user_add").await;
        routes("host route", "10.0.0.10", "via 10.90.0.2").await;
        routes("host route", "2001:db8:1::/56", "via 2001:db8:90::2").await;
    }
    let flags = async |accept: i64, redirect: i64| {
        lab.sql(&format!(
            "update users set accept = {accept}, redirect = {redirect} where id = 10"
        ))
        .await;
    };
    flags(1, 1).await;
    for _ in 0..2 {
        go(10, "user_redirect").await;
        routes("blackhole", "10.0.0.10", "blackhole 10.0.0.10").await;
        routes("blackhole", "2001:db8:1::/56", "blackhole 2001:db8:1::/56").await;
    }
    // Another reason stays when one is lifted.
    flags(0, 0).await;
    go(10, "user_drop").await;
    go(10, "user_redirect_cancel").await;
    routes("still blocked", "10.0.0.10", "blackhole 10.0.0.10").await;
    let info = go(10, "user_info").await;
    let answer = lab
        .rows(&format!("select answer from events_done where id = {info}"))
        .await;
    assert!(
        answer[0][0].contains("ip route 10.0.0.10/32 blackhole tag 10"),
        "{answer:?}"
    );
    flags(1, 0).await;
    for _ in 0..2 {
        go(10, "user_accept").await;
    }
    routes("open", "10.0.0.10", "via 10.90.0.2").await;
    // A change of address: the old data go, the new come, nothing old is left.
    go(10, "user_drop").await;
    let old = json!({"addresses": ["10.0.0.10", "2001:db8:1::/56"]});
    lab.sql("update users set addresses = '[\"10.0.0.77\"]', accept = 0 where id = 10")
        .await;
    let ids = lab
        .post(json!({"cmd": "user_del", "user_id": 10, "params": old}))
        .await;
    assert_eq!(lab.ended(ids[0]).await, done, "{:?}", lab.account_log(10));
    go(10, "user_add").await;
    routes("gone", "10.0.0.10", "").await;
    routes("gone", "2001:db8:1::/56", "").await;
    routes("blocked anew", "10.0.0.77", "blackhole 10.0.0.77").await;
    // What is not an address never becomes a line.
    lab.sql("update users set addresses = '[\"10.0.0.1 255.0.0.0 Null0\"]' where id = 11")
        .await;
    let id = lab.event(11, "user_drop").await;
    assert_eq!(lab.ended(id).await.0, "dead");
    // One session and one login served all that; its state and its weakness are told.
    let status = lab.scheduler().await.unwrap();
    let seen = &status["nases"][0]["sessions"][0];
    assert_eq!(
        (&seen["driver"], &seen["open"], &seen["logins"]),
        (&json!("telnet"), &json!(1), &json!(1)),
        "{status}"
    );
    let log = lab.account_log(10).join("\n");
    let pasteable = "send_telnet_cmd --nas 1 'configure terminal' ';' 'ip route 10.0.0.10/32 blackhole tag 10' ';' end";
    assert!(log.contains(pasteable), "{log}");
    assert!(!log.contains(PASSWORD) && !log.contains(ENABLE), "{log}");
}

/// A router whose pager nobody has switched off: all of its configuration comes, nothing of the
/// pager's is in it, and what is asked next gets its own answer.
async fn a_pager_of_frr_is_paged_to_its_end(kind: Kind) {
    const ROUTES: usize = 60;
    const PAGED: &str = r#"
driver = "telnet"
[[on.user_info]]
exec = ["show running-config", "show running-config | include 10.66.0.7/32", "show running-config"]
fail_on = ['(?m)^% ']
save = "t"
[[on.user_info]]
answer = "{{ t.rows[0].out }}\n==\n{{ t.rows[1].out }}\n==\n{{ t.rows[2].out }}"
"#;
    let lab = Lab::new(kind, "").await;
    let route = |n: usize| format!("ip route 10.66.0.{n}/32 blackhole tag {n}");
    let routes: Vec<String> = (1..=ROUTES).map(route).collect();
    let frr = Frr::start_paging(&(routes.join("\n") + "\n")).await;
    lab.native("Paged", PAGED);
    nas_of(&lab, &frr, 1, PASSWORD).await;
    lab.sql("update nas set oss_path = 'Paged' where id = 1")
        .await;
    lab.accounts(1, [10]).await;
    let _daemon = lab.start().await;
    let id = lab.event(10, "user_info").await;
    let done = ("done".to_owned(), "done".to_owned());
    assert_eq!(lab.ended(id).await, done, "{:#?}", lab.account_log(10));
    let answer = format!("select answer from events_done where id = {id}");
    let answer = lab.rows(&answer).await.remove(0).remove(0);
    let parts: Vec<&str> = answer.split("\n==\n").collect();
    assert_eq!(parts.len(), 3, "{answer}");
    for whole in [parts[0], parts[2]] {
        let found: Vec<&str> = whole
            .lines()
            .filter(|line| line.starts_with("ip route "))
            .collect();
        assert_eq!(found, routes, "{whole}");
        assert!(whole.trim_end().ends_with("end"), "{whole}");
        assert!(!whole.contains("More"), "{whole}");
    }
    assert_eq!(parts[1], route(7));
    // That it did page is what makes this a test.
    let said = frr.said();
    let pages = said.matches("--More--").count();
    assert!(pages >= 2 * (ROUTES / 10), "{pages} pages: {said}");
}

/// The address goes from one account to another, and the first one's `user_del` comes last: the
/// routes of the new holder stay. An account number that begins like another is another's.
async fn a_late_user_del_leaves_the_new_holder_alone(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let frr = Frr::start().await;
    nas_of(&lab, &frr, 5, PASSWORD).await;
    lab.accounts(1, [10, 101]).await;
    lab.sql(
        "update users set accept = 0, addresses = '[\"10.0.0.10\", \"2001:db8:1::/56\"]' where id = 10;
         update users set accept = 0, addresses = '[\"10.0.0.10\"]' where id = 101",
    )
    .await;
    let _daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    let go = async |body: serde_json::Value| {
        let user = body["user_id"].as_i64().unwrap();
        let id = lab.post(body).await[0];
        assert_eq!(lab.ended(id).await, done, "{:?}", lab.account_log(user));
    };
    let config = async || -> Vec<String> {
        let output = program(env!("CARGO_BIN_EXE_nas_event_daemon"))
            .arg0("send_telnet_cmd")
            .args(["--nas", "1", "show running-config | include route "])
            .env("NED_CONFIG", lab.path("ned.toml"))
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    go(json!({"cmd": "user_add", "user_id": 10})).await;
    go(json!({"cmd": "user_add", "user_id": 101})).await;
    let theirs = [
        "ip route 10.0.0.10/32 blackhole tag 101",
        "ip route 10.0.0.10/32 10.90.0.2 tag 101 200",
    ];
    let all = config().await;
    assert!(
        all.len() == 4 && theirs.iter().all(|l| all.iter().any(|line| line == l)),
        "{all:#?}"
    );
    for cmd in ["user_del", "user_del", "user_accept"] {
        let old =
            json!({"addresses": ["10.0.0.10", "2001:db8:1::/56"], "accept": 1, "redirect": 0});
        go(json!({"cmd": cmd, "user_id": 10, "params": old})).await;
        assert_eq!(config().await, theirs, "{cmd}");
    }
    // A route from before there were tags is removed as ever.
    let bare = [
        "configure terminal",
        ";",
        "ip route 10.0.0.10/32 blackhole",
        ";",
        "end",
    ];
    let typed = program(env!("CARGO_BIN_EXE_nas_event_daemon"))
        .arg0("send_telnet_cmd")
        .args(["--nas", "1"])
        .args(bare)
        .env("NED_CONFIG", lab.path("ned.toml"))
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(typed.status.success(), "{typed:?}");
    go(json!({"cmd": "user_del", "user_id": 101})).await;
    assert_eq!(config().await, [""; 0]);
}

async fn a_wrong_password_parks_the_nas(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let frr = Frr::start().await;
    nas_of(&lab, &frr, 1, "not-this-one").await;
    lab.accounts(1, [10]).await;
    let _daemon = lab.start().await;
    lab.event(10, "user_drop").await;
    let line = lab.said("NAS is parked").await;
    assert!(
        line.contains("login refused") && !line.contains("not-this-one"),
        "{line}"
    );
    assert_eq!(
        lab.number("select count(*) from events_stack where try_count > 1")
            .await,
        0
    );
}

async fn the_tools_speak_to_the_router(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let frr = Frr::start().await;
    nas_of(&lab, &frr, 1, PASSWORD).await;
    let by = async |name: &str, args: &[&str]| {
        let output = program(env!("CARGO_BIN_EXE_nas_event_daemon"))
            .arg0(name)
            .args(args)
            .env("NED_CONFIG", lab.path("ned.toml"))
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, out, err) = by("nas_event_daemon", &["nas", "test", "1"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains("nas-frr# ") && err.contains("plain text"),
        "{out}{err}"
    );
    let (_, out, _) = by("nas_event_daemon", &["status"]).await;
    assert!(out.contains("plain text: telnet"), "{out}");
    let conf = [
        "--nas",
        "1",
        "configure terminal",
        ";",
        "ip route 10.77.0.1/32 blackhole",
        ";",
        "end",
    ];
    let (code, out, err) = by("send_telnet_cmd", &conf).await;
    assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
    // No pager: FRR pages only for a client that has told its window.
    let (code, out, err) = by("send_telnet_cmd", &["--nas", "1", "show", "running-config"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("ip route 10.77.0.1/32 blackhole"), "{out}");
    let (code, _, err) = by("send_telnet_cmd", &["--nas", "1", "ip", "rout"]).await;
    assert_eq!(code, Some(249), "{err}");
    assert!(err.starts_with("ERROR: UnknownParameter"), "{err}");
    let port = frr.port.to_string();
    let typed = [
        "--port",
        &port,
        "-s",
        "127.0.0.1",
        "",
        PASSWORD,
        "show",
        "version",
    ];
    let (code, out, err) = by("send_telnet_cmd", &typed).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("FRRouting"), "{out}");
    let dry = ["--dry-run", "--nas", "1", "a b", ";", "c"];
    assert_eq!(by("send_telnet_cmd", &dry).await.1, "a b\nc\n");
    let nobody = ["--port", "1", "-s", "127.0.0.1", "", "x", "show"];
    let (code, _, err) = by("send_telnet_cmd", &nobody).await;
    assert_eq!(code, Some(254), "{err}");
    let wrong = [
        "--port",
        &port,
        "--timeout",
        "30s",
        "-s",
        "127.0.0.1",
        "",
        "wrong-one",
        "show",
    ];
    let (code, _, err) = by("send_telnet_cmd", &wrong).await;
    assert_eq!(code, Some(1), "{err}");
    assert!(!err.contains("wrong-one"), "{err}");
}
