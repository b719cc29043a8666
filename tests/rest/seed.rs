//! The bulk loop of the original's documentation, unchanged: its first line, its address without a
//! token, `sqlexec`, `awk` and the documented `curl`. It gets a network of its own, in which the
//! original's internal address is this machine's.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use crate::lab::daemon::{Lab, PATIENCE};
use crate::lab::db::Kind;

/// As operators have it; the missing `!` of the first line is theirs.
const LOOP: &str = r#"#/bin/bash

sqlexec "set list; select id from users u where nas_id=1112" | awk '$2{print $2}' | while read id; do
    curl -XPOST http://169.254.80.82:8082/rest_api/v2/EventsStackCompact/ -d 'method1=objects.create&arg1={"user_id": '$id',"cmd":"user_redirect_cancel"}'
done
"#;

/// Brings the network up, waits for the daemon, runs the loop, ends the daemon.
const AROUND: &str = r#"
set -eu
ip link set lo up
ip addr add 169.254.80.82/32 dev lo
"$NED" --config "$NED_CONFIG" run &
daemon=$!
trap 'kill "$daemon"; wait "$daemon"' EXIT
until curl -fs http://169.254.80.82:8082/healthz >/dev/null; do
    kill -0 "$daemon"
    sleep 0.05
done
./bulk.sh
"#;

// PostgreSQL is outside of that network; the doors are the same.
#[tokio::test]
async fn the_bulk_loop_of_the_original_runs_unchanged() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let text = std::fs::read_to_string(lab.path("ned.toml")).unwrap();
    let text = text
        .replace(&format!("127.0.0.1:{}", lab.port), "169.254.80.82:8082")
        .replace("127.0.0.1/32", "169.254.80.82/32");
    assert!(text.contains("169.254.80.82:8082"), "{text}");
    std::fs::write(lab.path("ned.toml"), text).unwrap();
    lab.native(
        "Record",
        "driver = \"record\"\n[[on.user_redirect_cancel]]\ncall = \"/x\"\n",
    );
    lab.nas(1112, "Record", 2, &[]).await;
    lab.nas(1113, "Record", 2, &[]).await;
    lab.accounts(1112, 1..=30).await;
    lab.accounts(1113, [77]).await;
    let bin = lab.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let ned = env!("CARGO_BIN_EXE_nas_event_daemon");
    symlink(ned, bin.join("sqlexec")).unwrap();
    let script = lab.path("bulk.sh");
    std::fs::write(&script, LOOP).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    #[expect(clippy::disallowed_methods, reason = "operators run it by a shell")]
    let mut command = tokio::process::Command::new("unshare");
    let child = command
        .args(["--net", "--fork", "--kill-child", "bash", "-c", AROUND])
        .env("NED", ned)
        .env("NED_CONFIG", lab.path("ned.toml"))
        .env(
            "PATH",
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()),
        )
        .current_dir(lab.root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("unshare cannot be started (package util-linux; needs root)");
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("the loop does not end")
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert_eq!(said.matches("\"result\"").count(), 30, "{said}\n{errors}");
    assert!(!said.contains("\"error\""), "{said}");
    let posted = "select count(*), count(distinct user_id) from (
        select user_id from events_stack_compact union all select user_id from events_stack
        union all select user_id from events_done) e";
    assert_eq!(lab.rows(posted).await, [["30", "30"]]);
}
