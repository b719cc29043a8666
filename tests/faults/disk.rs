//! Full disks: of the logs, which stops nothing, and of the database, where nothing is lost and
//! nothing runs twice although no result can be written. The disks are small file systems in
//! memory that only the daemon under test sees (a mount namespace of its own).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::{Db, Kind};
use crate::lab::journal::{self, Accepted, check, gated, let_through, repeated, starts};

/// Puts a file system of `$1` bytes over the directory `$2`, with what is in it, and becomes the
/// rest of its arguments.
const SMALL_DISK: &str = r#"
set -e
size=$1 dir=$2
shift 2
kept=$(mktemp -d)
cp -a "$dir/." "$kept/"
mount -t tmpfs -o "size=$size" none "$dir"
cp -a "$kept/." "$dir/"
rm -r "$kept"
exec "$@"
"#;

fn on_small_disk<'a>(size: &'a str, dir: &'a str) -> [&'a str; 9] {
    [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        SMALL_DISK,
        "sh",
        size,
        dir,
    ]
}

/// A path as the daemon sees it.
fn inside(pid: i32, path: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{}", path.display()))
}

/// Takes every free byte.
fn fill(file: &Path) {
    let mut ballast = std::fs::File::create(file).unwrap();
    for size in [64 * 1024, 4 * 1024, 1] {
        let block = vec![0; size];
        while ballast.write_all(&block).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_disk_stops_nothing() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let journal = lab.path("script.journal");
    lab.session("Journal", &journal::session(&journal, "echo answered"));
    lab.nas(2, "Journal", 4, &[]).await;
    lab.accounts(2, 200..206).await;
    let log = lab.path("log");
    let dir = log.to_string_lossy().into_owned();
    let daemon = lab.start_by(&on_small_disk("512k", &dir)).await;
    let before = lab.event(200, "user_add").await;
    assert_eq!(lab.ended(before).await.1, "done");
    let ballast = inside(daemon.pid, &log.join("ballast"));
    fill(&ballast);
    let mut accepted = Vec::new();
    for user in (200..206).cycle().take(60) {
        let event = lab.event(user, "user_redirect").await;
        accepted.push(Accepted { event, user });
    }
    lab.drained().await;
    let done = lab
        .number("select count(*) from events_done where result = 'done'")
        .await;
    assert_eq!(done, 61);
    // The operator is told on the other channel, and by a metric.
    lab.until("the lost lines are counted", async || {
        let metrics = lab.get("/metrics").await;
        let lost = metrics
            .lines()
            .find(|l| l.starts_with("nas_event_daemon_log_write_errors_total"))?;
        (!lost.ends_with(" 0")).then_some(())
    })
    .await;
    std::fs::remove_file(&ballast).unwrap();
    let after = lab.event(205, "user_add").await;
    assert_eq!(lab.ended(after).await.1, "done");
    let account = inside(
        daemon.pid,
        &log.join(crate::lab::daemon::account_log_name(205)),
    );
    lab.until("logging goes on", async || {
        let text = std::fs::read_to_string(&account).ok()?;
        text.contains(&format!("event={after} ")).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_disk_loses_nothing_and_repeats_nothing() {
    let db = Db::new(Kind::Sqlite).await;
    let file = PathBuf::from(db.url.strip_prefix("sqlite://").unwrap());
    let dir = file.parent().unwrap().to_owned();
    let lab = Lab::with(db, "").await;
    let journal = lab.path("script.journal");
    let gate = lab.path("gate");
    lab.session("Journal", &journal::session(&journal, &gated(&gate)));
    lab.nas(2, "Journal", 4, &[]).await;
    lab.accounts(2, 200..208).await;
    let text = dir.to_string_lossy().into_owned();
    let daemon = lab.start_by(&on_small_disk("24m", &text)).await;
    let mut accepted = Vec::new();
    for user in 200..208 {
        let event = lab.event(user, "user_redirect").await;
        accepted.push(Accepted { event, user });
    }
    lab.until("four run", async || {
        let running = journal::running(&journal::read_script(&journal));
        (running.len() == 4).then_some(())
    })
    .await;
    let ballast = inside(daemon.pid, &dir.join("ballast"));
    fill(&ballast);
    let_through(&gate, "all");
    lab.said("the database refused a turn").await;
    // Results wait in memory; nothing else starts, and nothing is accepted that cannot be kept.
    let body = json!({"events": [{"cmd": "user_add", "user_id": 200}]});
    let (status, answer) = lab.try_post("/api/v1/events", &body, None).await.unwrap();
    assert!((500..600).contains(&status), "{status}: {answer}");
    assert!(lab.is_up().await, "it lives");
    assert_eq!(starts(&journal::read_script(&journal)).len(), 4);
    std::fs::remove_file(&ballast).unwrap();
    // Asked through its doors: a path below /proc leads SQLite to the file outside.
    for Accepted { event, .. } in &accepted {
        lab.until("all are done", async || {
            let text = lab.get(&format!("/api/v1/events/{event}")).await;
            let row: serde_json::Value = serde_json::from_str(&text).ok()?;
            (row["state"] == "done").then_some(())
        })
        .await;
    }
    let entries = journal::read_script(&journal);
    assert_eq!(check(&accepted, &BTreeSet::new(), &entries), []);
    assert_eq!(repeated(&entries), 0);
    daemon.stop().await;
}
