//! Full and broken disks: of the logs, which stops nothing, and of the database, where nothing is
//! lost and nothing runs twice although no result can be written; and no free descriptors. Small
//! disks are file systems in memory that only the program under test sees (a mount namespace of its
//! own); errors are injected by strace, by the number of the call in its thread.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use nas_event_daemon::clock;
use nas_event_daemon::sim::mikrotik::Faults;
use nas_event_daemon::store::Store;
use serde_json::{Value, json};

use crate::lab::daemon::{self, Lab, account_log_name};
use crate::lab::db::{Db, Foreign, Kind};
use crate::lab::journal::{self, Accepted, CMDS, gated, let_through, repeated, starts};
use crate::lab::server::Server;
use crate::lab::sim::Router;
use crate::{AtRest, check_at_rest, say, told};

/// Longest time from the moment when there is room again to the first result in the database, ms.
const RECOVERY_MS: u64 = 5_000;

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
    let mut accepted = Vec::new();
    let before = lab.event(200, "user_add").await;
    accepted.push(Accepted {
        event: before,
        user: 200,
    });
    assert_eq!(lab.ended(before).await.1, "done");
    let ballast = inside(daemon.pid, &log.join("ballast"));
    fill(&ballast);
    for user in (200..206).cycle().take(60) {
        let event = lab.event(user, "user_redirect").await;
        accepted.push(Accepted { event, user });
    }
    lab.drained().await;
    let done = lab
        .number("select count(*) from events_done where result = 'done'")
        .await;
    assert_eq!(done, 61);
    lost_lines_are_counted(&lab).await;
    std::fs::remove_file(&ballast).unwrap();
    let after = lab.event(205, "user_add").await;
    accepted.push(Accepted {
        event: after,
        user: 205,
    });
    assert_eq!(lab.ended(after).await.1, "done");
    let account = inside(daemon.pid, &log.join(account_log_name(205)));
    lab.until("logging goes on", async || {
        let text = std::fs::read_to_string(&account).ok()?;
        text.contains(&format!("event={after} ")).then_some(())
    })
    .await;
    daemon.stop().await;
    done_once(lab.db.store.as_ref(), &journal, accepted).await;
}

/// The operator is told by a metric, too.
async fn lost_lines_are_counted(lab: &Lab) {
    lab.until("the lost lines are counted", async || {
        let metrics = lab.get("/metrics").await;
        let lost = metrics
            .lines()
            .find(|l| l.starts_with("nas_event_daemon_log_write_errors_total"))?;
        (!lost.ends_with(" 0")).then_some(())
    })
    .await;
}

/// All of these were executed once, in their order, and are done.
async fn done_once(store: &dyn Store, journal: &Path, accepted: Vec<Accepted>) {
    let nas = AtRest::script("script", journal, accepted);
    assert_eq!(repeated(&nas.entries), 0);
    check_at_rest(store, &BTreeSet::new(), &[nas]).await;
}

/// strace before the daemon: these calls of it fail with EIO, by `when`; on `paths`, if there are
/// any.
fn failing(calls: &str, when: &str, paths: &[PathBuf]) -> Vec<String> {
    // -D: the daemon stays our child, strace is a grandchild.
    let mut by: Vec<String> = [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-q",
        "-o",
        "/dev/null",
    ]
    .map(str::to_owned)
    .to_vec();
    for path in paths {
        by.extend(["-P".to_owned(), path.display().to_string()]);
    }
    by.extend(["-e".to_owned(), format!("trace={calls}")]);
    by.extend(["-e".to_owned(), format!("inject={calls}:error=EIO{when}")]);
    by
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_disk_with_errors_stops_nothing() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let journal = lab.path("script.journal");
    lab.session("Journal", &journal::session(&journal, "echo answered"));
    lab.nas(2, "Journal", 4, &[]).await;
    lab.accounts(2, 200..206).await;
    let mut logs = vec![
        lab.path("log/nas_event_daemon.log"),
        lab.path("log/nas_event_daemon/bras2_127.0.0.1.log"),
    ];
    logs.extend((200..206).map(|user| lab.path("log").join(account_log_name(user))));
    let by = failing("write", "", &logs);
    let by: Vec<&str> = by.iter().map(String::as_str).collect();
    let daemon = lab.start_by(&by).await;
    let mut accepted = Vec::new();
    for user in (200..206).cycle().take(30) {
        let event = lab.event(user, "user_redirect").await;
        accepted.push(Accepted { event, user });
    }
    lab.drained().await;
    lost_lines_are_counted(&lab).await;
    for log in &logs {
        let text = std::fs::read_to_string(log).unwrap();
        assert_eq!(text, "", "{}: no line got through", log.display());
    }
    let said = lab.stderr();
    let why = "cannot write the daemon log ";
    assert_eq!(said.matches(why).count(), 1, "once a minute: {said}");
    assert!(said.contains("Input/output error"), "{said}");
    daemon.stop().await;
    done_once(lab.db.store.as_ref(), &journal, accepted).await;
}

/// From some call on the writes, or the syncs, of SQLite fail for a while: what was answered stays,
/// what was refused can be posted again, and no result is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_disk_with_errors_loses_and_repeats_nothing() {
    for (calls, when) in [
        ("fsync,fdatasync", ":when=30..45"),
        ("pwrite64", ":when=200..240"),
    ] {
        let lab = Lab::new(Kind::Sqlite, "").await;
        let journal = lab.path("script.journal");
        lab.session("Journal", &journal::session(&journal, ":"));
        lab.nas(2, "Journal", 4, &[]).await;
        lab.accounts(2, 200..206).await;
        let by = failing(calls, when, &[]);
        let by: Vec<&str> = by.iter().map(String::as_str).collect();
        let mut daemon = lab.start_by(&by).await;
        let mut accepted = Vec::new();
        for call in 0..100 {
            let user = 200 + i64::try_from(call % 6).unwrap();
            let body = json!({"cmd": CMDS[call % CMDS.len()], "user_id": user});
            let event = told(&lab, &body, &format!("call-{call}")).await[0];
            accepted.push(Accepted { event, user });
        }
        lab.drained().await;
        let said = lab.said_times("disk I/O error", 1).await;
        say(&format!(
            "{calls}: the daemon log names the disk {} times",
            said.len()
        ));
        assert_eq!(daemon.child.try_wait().unwrap(), None, "it died");
        daemon.stop().await;
        done_once(lab.db.store.as_ref(), &journal, accepted).await;
        let sound = lab.rows("select * from pragma_integrity_check").await;
        assert_eq!(sound, [["ok"]]);
    }
}

/// How many descriptors a process may open from now on; what it has stays open.
async fn limit_descriptors(pid: i32, most: u32) {
    #[expect(clippy::disallowed_methods, reason = "the limit of another process")]
    let mut command = tokio::process::Command::new("prlimit");
    let pid = pid.to_string();
    let limit = format!("--nofile={most}:");
    let status = command.args(["--pid", &pid, &limit]).status().await;
    assert!(status.unwrap().success());
}

/// No script can be started, no log of an account opened, nobody accepted at the doors; the open
/// session of a router goes on, and so does everything once there are descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_descriptors_nothing_is_lost_and_open_sessions_go_on() {
    let lab = Lab::new(Kind::Sqlite, "retry_base = \"100ms\"").await;
    let journal = lab.path("script.journal");
    lab.session("Journal", &journal::session(&journal, ":"));
    lab.native("Queue", &journal::native());
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 1, "Queue", 1).await;
    lab.nas(2, "Journal", 2, &[]).await;
    lab.accounts(1, 100..103).await;
    lab.accounts(2, 200..203).await;
    let mut daemon = lab.start().await;
    let mut accepted = Vec::new();
    for user in [100, 200] {
        let event = lab.event(user, "user_redirect").await;
        assert_eq!(lab.ended(event).await.1, "done");
        accepted.push(Accepted { event, user });
    }
    limit_descriptors(daemon.pid, 1).await;
    let mut billing = Foreign::connect(&lab.db.url).await;
    for user in [100, 101, 102, 200, 201, 202] {
        let event = billing.insert("user_redirect_cancel", user).await.unwrap();
        accepted.push(Accepted { event, user });
    }
    lab.until(
        "the script NAS cannot be served, and says why",
        async || {
            let log = lab.nas_log(2);
            log.iter()
                .any(|line| line.contains("Too many open files"))
                .then_some(())
        },
    )
    .await;
    lab.until("the router is served", async || {
        let done = "select count(*) from events_done where nas_id = 1";
        (lab.number(done).await == 4).then_some(())
    })
    .await;
    let lost = lab.said("cannot write the account log").await;
    assert!(lost.contains("Too many open files"), "{lost}");
    limit_descriptors(daemon.pid, 1_024).await;
    lab.drained().await;
    assert!(lab.is_up().await);
    assert_eq!(daemon.child.try_wait().unwrap(), None, "it died");
    daemon.stop().await;
    let (on_router, on_script) = accepted.into_iter().partition(|a| a.user < 200);
    let nases = [
        AtRest::router(&router, on_router),
        AtRest::script("script", &journal, on_script),
    ];
    for nas in &nases {
        assert_eq!(repeated(&nas.entries), 0, "{}", nas.name);
    }
    check_at_rest(lab.db.store.as_ref(), &BTreeSet::new(), &nases).await;
}

/// Four events that run, four that wait, all up to the test's word.
struct Full {
    lab: Lab,
    journal: PathBuf,
    gate: PathBuf,
    daemon: daemon::Daemon,
    accepted: Vec<Accepted>,
}

impl Full {
    async fn new(db: Db, by: &[&str]) -> Self {
        let lab = Lab::with(db, "").await;
        let journal = lab.path("script.journal");
        let gate = lab.path("gate");
        lab.session("Journal", &journal::session(&journal, &gated(&gate)));
        lab.nas(2, "Journal", 4, &[]).await;
        lab.accounts(2, 200..208).await;
        let daemon = lab.start_by(by).await;
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
        Self {
            lab,
            journal,
            gate,
            daemon,
            accepted,
        }
    }

    /// Gives what `/readyz` says meanwhile.
    async fn fill_and_free(&mut self, ballast: &Path) -> String {
        let free = || std::fs::remove_file(ballast).unwrap();
        let (refused, ready) = self.break_and_mend(|| fill(ballast), free).await;
        assert!(refused.contains("no room on its disk"), "{refused}");
        ready
    }

    /// Makes the disk take nothing, sees what holds meanwhile, makes it take everything, and sees that
    /// all are done, the first in time. Gives what a refused producer was told, and whoever asked whether it is ready.
    async fn break_and_mend(
        &mut self,
        shut: impl FnOnce(),
        mend: impl FnOnce(),
    ) -> (String, String) {
        let lab = &self.lab;
        shut();
        let_through(&self.gate, "all");
        lab.said("the database refused a turn").await;
        // Results wait in memory; nothing else starts, and nothing is accepted that cannot be kept.
        // Pages that are there already may take a few more.
        let body = json!({"cmd": "user_add", "user_id": 207});
        let refused = lab
            .until("a post is refused", async || {
                match lab.try_post("/api/v1/events", &body, None).await.unwrap() {
                    (201, answer) => {
                        self.accepted.push(Accepted {
                            event: daemon::ids(&answer)[0],
                            user: 207,
                        });
                        None
                    }
                    refused => Some(refused),
                }
            })
            .await;
        assert_eq!(refused.0, 503, "{}", refused.1);
        assert!(lab.is_up().await, "it lives");
        let ready = lab.get("/readyz").await;
        assert_eq!(starts(&journal::read_script(&self.journal)).len(), 4);
        mend();
        let freed = clock::tick_ms();
        let mut first = None;
        // Asked through its doors: a path below /proc leads SQLite to the file outside.
        for Accepted { event, .. } in &self.accepted {
            lab.until("all are done", async || {
                let text = lab.get(&format!("/api/v1/events/{event}")).await;
                let row: Value = serde_json::from_str(&text).ok()?;
                (row["state"] == "done").then_some(())
            })
            .await;
            first.get_or_insert_with(|| clock::tick_ms() - freed);
        }
        let took = first.unwrap();
        say(&format!("the first is done {took} ms after there was room"));
        assert!(took <= RECOVERY_MS, "{took} ms");
        (refused.1.to_string(), ready)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_disk_loses_nothing_and_repeats_nothing() {
    let db = Db::new(Kind::Sqlite).await;
    let file = PathBuf::from(db.url.strip_prefix("sqlite://").unwrap());
    let dir = file.parent().unwrap().to_owned();
    let text = dir.to_string_lossy().into_owned();
    let mut full = Full::new(db, &on_small_disk("24m", &text)).await;
    let pid = full.daemon.pid;
    let ready = full.fill_and_free(&inside(pid, &dir.join("ballast"))).await;
    assert!(ready.contains("no room left where"), "{ready}");
    // The disk ends with the daemon: what it holds is looked at in a copy, log and all.
    let kept = tempfile::tempdir().unwrap();
    for name in ["ned.db", "ned.db-wal"] {
        std::fs::copy(inside(pid, &dir.join(name)), kept.path().join(name)).unwrap();
    }
    let url = format!("sqlite://{}/ned.db", kept.path().display());
    let copy = Db::at(url, Kind::Sqlite).await;
    done_once(copy.store.as_ref(), &full.journal, full.accepted).await;
    full.daemon.stop().await;
}

/// What makes a directory read-only for the program that it is loaded into.
async fn read_only_library(place: &Path) -> PathBuf {
    let library = place.join("read_only.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/read_only.c");
    #[expect(clippy::disallowed_methods, reason = "the compiler is a program")]
    let mut command = tokio::process::Command::new("cc");
    command
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&library);
    let status = command.arg(source).arg("-ldl").status().await;
    assert!(status.unwrap().success());
    library
}

/// A connection that is opened meanwhile can only read: it is not kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_disk_that_turns_read_only_loses_and_repeats_nothing() {
    let place = tempfile::tempdir().unwrap();
    let library = read_only_library(place.path()).await;
    let shut = place.path().join("shut");
    let db = Db::new(Kind::Sqlite).await;
    let dir = db.file().unwrap().parent().unwrap().to_owned();
    let by = [
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("NED_READ_ONLY_BELOW={}", dir.display()),
        format!("NED_READ_ONLY_WHEN={}", shut.display()),
    ];
    let by = by.each_ref().map(String::as_str);
    let mut full = Full::new(db, &by).await;
    let (close, open) = (
        || std::fs::write(&shut, "").unwrap(),
        || std::fs::remove_file(&shut).unwrap(),
    );
    full.break_and_mend(close, open).await;
    full.daemon.stop().await;
    done_once(full.lab.db.store.as_ref(), &full.journal, full.accepted).await;
    let sound = full.lab.rows("select * from pragma_integrity_check").await;
    assert_eq!(sound, [["ok"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_postgresql_loses_nothing_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let small = [
        "shared_buffers=16MB",
        "min_wal_size=32MB",
        "max_wal_size=64MB",
        "autovacuum=off",
    ];
    let server = Server::on_small_disk("128m", dir.path(), &small).await;
    let db = Db::at(server.url.clone(), Kind::Postgres).await;
    let mut full = Full::new(db, &[]).await;
    let ballast = server.inside(&dir.path().join("ballast"));
    full.fill_and_free(&ballast).await;
    full.daemon.stop().await;
    done_once(full.lab.db.store.as_ref(), &full.journal, full.accepted).await;
}
