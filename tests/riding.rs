//! Helper commands inside scripts ride on the daemon's sessions: one login for many events, the
//! commands in the logs without secrets, and nobody but the attempt itself on its own NAS.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "lab/mod.rs"]
mod lab;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use lab::daemon::{Lab, PATIENCE};
use lab::db::Kind;
use lab::on_each_store;
use lab::sim::{LOGIN, PASSWORD, Router};
use nas_event_daemon::clock;
use nas_event_daemon::sim::http;
use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::json;

on_each_store!(
    scripts_share_the_sessions_and_their_commands_are_in_the_logs,
    a_token_is_good_for_one_nas_and_one_attempt,
    a_rate_paces_what_scripts_send,
    scripts_find_the_database_of_their_daemon,
);

/// The ways in which operators' scripts call the helpers.
const SESSION: &str = r#"
list=/ip/firewall/address-list
user_redirect() {
    send_mikrotik_cmd -s "$nas_ip" "$telnet_login" "$telnet_password" \
        /ip firewall address-list add list=crb_negbal "address=$ip" "comment=crb_$user_id" || exit $?
}
user_redirect_cancel() {
    send_mikrotik_cmd --nas "$nas_id" $list/remove list=crb_negbal "comment=crb_$user_id"
}
user_drop() {
    send_mikrotik_cmd --nas 8 $list/print
    echo "nas 8: $?"
    send_mikrotik_cmd -s 10.9.9.9 a b $list/print
    echo "10.9.9.9: $?"
    NED_ATTEMPT=$(<token) send_mikrotik_cmd --nas "$nas_id" $list/print
    echo "token: $?"
}
user_accept() {
    printf %s "$NED_ATTEMPT" > token.new && mv token.new token
    until [ -e go ]; do sleep 0.02; done
}
user_edit() {
    send_http_cmd --nas "$nas_id" PUT "/u/$user_id" --json "{\"ip\":\"$ip\"}" || exit $?
    send_http_cmd --nas "$nas_id" GET "/u/$user_id"
}
user_test() { sqlexec "select name from nas where id = $nas_id" && event_count.sh; }
user_info() { send_mikrotik_cmd --nas "$nas_id" $list/print "?comment=crb_$user_id"; }
"#;

async fn place(kind: Kind) -> (Lab, Router) {
    let lab = Lab::new(kind, "").await;
    lab.session("Riding", SESSION);
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 7, "Riding", 4).await;
    lab.accounts(7, 1..=60).await;
    (lab, router)
}

async fn scripts_share_the_sessions_and_their_commands_are_in_the_logs(kind: Kind) {
    let (lab, router) = place(kind).await;
    let daemon = lab.start().await;
    for user in 1..=60 {
        lab.event(user, "user_redirect").await;
    }
    lab.drained().await;
    assert_eq!(router.listed("crb_negbal").len(), 60);
    let asked = lab.event(5, "user_info").await;
    assert_eq!(lab.ended(asked).await.0, "done");
    lab.event(5, "user_redirect_cancel").await;
    lab.drained().await;
    assert_eq!(router.listed("crb_negbal").len(), 59);
    // Four forks never have more than four commands under way: one connection serves them.
    let seen = router.sim.seen();
    assert_eq!((seen.logins, seen.connections), (1, 1), "{seen:?}");
    let answer = lab
        .rows(&format!(
            "select answer from events_done where id = {asked}"
        ))
        .await;
    assert!(answer[0][0].contains("comment=crb_5"), "{answer:?}");
    let log = lab.account_log(5).join("\n");
    let add = "> send_mikrotik_cmd --nas 7 /ip/firewall/address-list/add list=crb_negbal address=10.0.0.5 comment=crb_5";
    assert!(log.contains(add), "{log}");
    assert!(log.contains("< done ret=*"), "{log}");
    assert!(
        log.contains("/ip/firewall/address-list/remove '.id=*"),
        "{log}"
    );
    assert!(!lab.nas_log(7).join("\n").contains(PASSWORD));
    let socket = lab.path("run/session.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    daemon.stop().await;
    assert!(!socket.exists());
}

/// The daemon was told its configuration by a flag; nothing of that is in a script's environment.
async fn scripts_find_the_database_of_their_daemon(kind: Kind) {
    let (lab, _router) = place(kind).await;
    let daemon = lab.start().await;
    let asked = lab.event(5, "user_test").await;
    let ended = lab.ended(asked).await;
    assert_eq!(ended.0, "done", "{}", lab.nas_log(7).join("\n"));
    let answer = lab
        .rows(&format!(
            "select answer from events_done where id = {asked}"
        ))
        .await;
    for part in ["# compact stack", "user_test"] {
        assert!(answer[0][0].contains(part), "{answer:?}");
    }
    daemon.stop().await;
}

async fn a_token_is_good_for_one_nas_and_one_attempt(kind: Kind) {
    let (lab, router) = place(kind).await;
    let other = Router::start(lab.root(), "other", Faults::default());
    other.serve_as(&lab, 8, "Riding", 4).await;
    lab.accounts(8, [80]).await;
    let daemon = lab.start().await;
    let scheme = lab.path("oss/local/Riding");
    // An attempt on the other NAS is under way, and its token is known.
    let long = lab.event(80, "user_accept").await;
    let token = lab
        .until("the token is written", async || {
            std::fs::read_to_string(scheme.join("token")).ok()
        })
        .await;
    assert_eq!(token.len(), 32);
    let id = lab.event(1, "user_drop").await;
    assert_eq!(lab.ended(id).await.0, "done");
    let log = lab.nas_log(7).join("\n");
    for line in ["< nas 8: 249", "< 10.9.9.9: 249", "< token: 249"] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    assert!(log.contains("this attempt is for NAS 7"), "{log}");
    assert!(log.contains("this attempt is for NAS 8"), "{log}");
    assert_eq!(router.sim.seen().logins + other.sim.seen().logins, 0);
    // While it lives it works from anywhere on this machine, for its own NAS.
    let words = ["--nas", "8", "/system/identity/print"];
    let (code, out) = ride(&lab, &token, &words).await;
    assert_eq!(code, 0, "{out}");
    assert_eq!(other.sim.seen().logins, 1);
    std::fs::write(scheme.join("go"), "").unwrap();
    assert_eq!(lab.ended(long).await.0, "done");
    let before = other.sim.seen().sentences;
    let (code, out) = ride(&lab, &token, &words).await;
    assert_eq!(code, 249);
    assert!(out.contains("has ended"), "{out}");
    assert_eq!(other.sim.seen().sentences, before);
    daemon.stop().await;
}

/// 20 commands a second: 30 scripts take a second and a half, and none suffers.
async fn a_rate_paces_what_scripts_send(kind: Kind) {
    const RATE: u64 = 20;
    /// What may go at once: a tenth of a second's worth.
    const BURST: u64 = 2;
    let (lab, router) = place(kind).await;
    lab.sql(&format!("update nas set max_rate = {RATE} where id = 7"))
        .await;
    let daemon = lab.start().await;
    let began = clock::tick_ms();
    for user in 1..=30 {
        lab.event(user, "user_redirect").await;
    }
    lab.drained().await;
    let took = clock::tick_ms() - began;
    assert_eq!(router.listed("crb_negbal").len(), 30);
    let sent = router.sim.seen().sentences;
    assert!(sent >= 30, "{sent} sentences");
    let at_least = (30 - BURST) * 1_000 / RATE;
    // The clock and the bucket count whole milliseconds.
    assert!(took + 50 >= at_least, "{sent} sentences in {took} ms");
    let first = "select count(*) from events_done where result = 'done' and attempts = 1";
    assert_eq!(lab.number(first).await, 30);
    daemon.stop().await;
}

/// A helper outside of any script, with somebody's token.
async fn ride(lab: &Lab, token: &str, words: &[&str]) -> (i32, String) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test is a program"
    )]
    let mut command = tokio::process::Command::new(lab.path("run/bin/send_mikrotik_cmd"));
    let output = command
        .args(words)
        .env("NED_ATTEMPT", token)
        .env("NED_CONFIG", lab.path("ned.toml"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .unwrap()
        .unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observe_mode_notes_what_scripts_would_send() {
    let (lab, router) = place(Kind::Sqlite).await;
    let beside = lab.path("oss/local/Riding/scheme.toml");
    std::fs::write(beside, "observe = true\n").unwrap();
    lab.session(
        "Riding",
        "user_redirect() { unset NED_OBSERVE; send_mikrotik_cmd --nas \"$nas_id\" /queue/simple/add \"name=q$user_id\"; }",
    );
    lab.sql("update nas set mode = 'observe' where id = 7")
        .await;
    let daemon = lab.start().await;
    let id = lab.event(1, "user_redirect").await;
    assert_eq!(lab.ended(id).await.1, "observed");
    let log = lab.nas_log(7).join("\n");
    assert!(
        log.contains("> send_mikrotik_cmd --nas 7 /queue/simple/add name=q1"),
        "{log}"
    );
    assert_eq!(router.sim.seen().connections, 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_devices_are_ridden_to_as_well() {
    let (lab, _router) = place(Kind::Sqlite).await;
    let hook = http::Sim::start(http::Options {
        authorization: Some("Basic bmVkOnNlcnZpY2Vtb2Rl".into()),
        ..http::Options::default()
    })
    .await
    .unwrap();
    assert_eq!((LOGIN, PASSWORD), ("ned", "servicemode"));
    let url = format!("http://{}/api", hook.addr());
    lab.sql(&format!("update nas set http_url = '{url}' where id = 7"))
        .await;
    let daemon = lab.start().await;
    let id = lab.event(3, "user_edit").await;
    assert_eq!(lab.ended(id).await.0, "done");
    assert_eq!(hook.documents()["/api/u/3"], json!({"ip": "10.0.0.3"}));
    assert_eq!(
        hook.seen().connections,
        1,
        "one connection for both requests"
    );
    let log = lab.nas_log(7).join("\n");
    assert!(
        log.contains("> send_http_cmd --nas 7 PUT /u/3 --json"),
        "{log}"
    );
    assert!(log.contains("< done code=201"), "{log}");
    daemon.stop().await;
}
