//! A real session that our Disconnect really ends: hostapd as a wired authenticator, a
//! supplicant over veth, and the daemon, all in a network namespace of their own. The test
//! speaks to them through files and the database only.

use std::process::Stdio;

use crate::SECRET;
use crate::lab::daemon::Lab;
use crate::lab::db::Kind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_hostapd_ends_when_an_event_says_so() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "a network namespace takes root: run scripts/test as root"
    );
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.nas(1, "Mikrotik-CoA", 2, &[]).await;
    lab.db
        .sql(&format!(
            "insert into nas_secret (nas_id, coa_secret) values (1, '{SECRET}')"
        ))
        .await;
    lab.accounts(1, [1]).await;
    let dir = tempfile::Builder::new().prefix("ned").tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/radius/hostapd.sh");
    let _space = tokio::process::Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child", "bash", script])
        .arg(dir.path())
        .arg(SECRET)
        .arg(env!("CARGO_BIN_EXE_nas_event_daemon"))
        .arg(lab.path("ned.toml"))
        .env_remove("NED_CONFIG")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("unshare cannot be started (package util-linux; needs root)");
    let file = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    let times = |text: &str| file("hostapd.log").matches(text).count();
    let session = async |other_than: &str| {
        lab.until("a supplicant is let in", async || {
            let now = file("session").trim().to_owned();
            (!now.is_empty() && now != other_than).then_some(now)
        })
        .await
    };
    let event = async |cmd: &str, session: &str| {
        lab.sql(&format!(
            "update users set acct_session_id = '{session}' where id = 1"
        ))
        .await;
        let before = lab
            .number("select coalesce(max(id), 0) from events_done")
            .await;
        lab.sql(&format!(
            "insert into events_stack_compact (cmd, user_id) values ('{cmd}', 1)"
        ))
        .await;
        lab.until(&format!("{cmd} ends"), async || {
            let rows = lab
                .rows(&format!(
                    "select result, '' from events_done where id > {before}
                     union all select 'dead', reason from events_dead where id > {before}"
                ))
                .await;
            rows.into_iter().next()
        })
        .await
    };

    let first = session("").await;
    assert_eq!(times("AP-STA-DISCONNECTED"), 0);
    // A session that nobody has is gone already: done, and nobody is thrown out.
    assert_eq!(
        event("user_disconnect", "0000000000000000").await[0],
        "done"
    );
    assert_eq!(times("AP-STA-DISCONNECTED"), 0);
    assert_eq!(event("user_disconnect", &first).await[0], "done");
    lab.until("the port is closed", async || {
        (times("AP-STA-DISCONNECTED") == 1).then_some(())
    })
    .await;

    // It comes back, with another session. hostapd takes no rate by CoA: the ladder ends it.
    let second = session(&first).await;
    assert_eq!(event("user_rate_set", &second).await[0], "done");
    lab.until("the port is closed again", async || {
        (times("AP-STA-DISCONNECTED") >= 2).then_some(())
    })
    .await;
    let log = lab.nas_log(1).join("\n");
    for wanted in [
        "< CoA-NAK Error-Cause=",
        "< Disconnect-ACK",
        "disconnect Acct-Session-Id=",
    ] {
        assert!(log.contains(wanted), "{wanted}\n{log}");
    }
}
