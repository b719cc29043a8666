//! The shipped rules of logrotate, and their relatives with `copytruncate`, by logrotate itself,
//! while a daemon writes as fast as it can.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nas_event_daemon::clock;
use nas_event_daemon::logs::Logs;

use crate::lab::daemon::{Lab, PATIENCE};
use crate::lab::db::Kind;
use crate::{judge, read};

/// Events of one run; each leaves a record of its end in the NAS log.
const EVENTS: usize = 3000;
/// Most records of one run of the daemon's own log: seconds of a fast writer, some 250 MB.
const RECORDS_MAX: usize = 4_000_000;
/// Rotations while they run.
const ROTATIONS: usize = 3;

/// Our rules for the lab's directory, and with another kind of rotation.
fn rules(lab: &Lab, kind: &str) -> PathBuf {
    let shipped = "/var/log/nas_event_daemon/nas_event_daemon/*.log";
    let ours = lab.path("log/nas_event_daemon/*.log");
    let path = lab.path("rules");
    rules_for("nas_event_daemon-nas", shipped, &ours, kind, &path);
    path
}

/// The shipped rules of this name for another place and kind, written to `path`.
fn rules_for(name: &str, shipped: &str, ours: &Path, kind: &str, path: &Path) {
    let text = read(&format!("logrotate/{name}"));
    let ours = ours.display().to_string();
    assert!(
        text.contains(shipped) && text.contains("\n    create\n"),
        "{text}"
    );
    let text = text
        .replace(shipped, &ours)
        .replace("\n    create\n", &format!("\n    {kind}\n"));
    std::fs::write(path, text).unwrap();
}

/// Every file of the NAS's log, rotated ones unpacked.
fn all(dir: &Path) -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let text = |path: &PathBuf| {
        let output = judge("zcat", &["-f", path.to_str().unwrap()]);
        String::from_utf8(output.stdout).unwrap()
    };
    entries.map(|path| (path.clone(), text(&path))).collect()
}

async fn rotated(kind: &str) -> (Vec<(PathBuf, String)>, String) {
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.nas(5, "Record", 8, &[]).await;
    lab.accounts(5, 1..=60).await;
    let daemon = lab.start().await;
    let rules = rules(&lab, kind);
    let dir = lab.path("log/nas_event_daemon");
    let state = lab.path("state").display().to_string();
    let rotate = || {
        let rules = rules.to_str().unwrap();
        // May be refused within the second of the last one: names have that resolution.
        judge("logrotate", &["--force", "--state", &state, rules])
            .status
            .success()
    };
    let files = || std::fs::read_dir(&dir).map_or(0, Iterator::count);
    let per_part = EVENTS / ROTATIONS;
    for part in 1..=ROTATIONS {
        let rows: Vec<String> = (0..per_part)
            .map(|n| format!("('user_auth', {})", n % 60 + 1))
            .collect();
        let rows = rows.join(", ");
        lab.sql(&format!(
            "insert into events_stack_compact (cmd, user_id) values {rows}"
        ))
        .await;
        lab.until("the log is written to", async || {
            let done = lab.number("select count(*) from events_done").await;
            (done > (part as i64 - 1) * per_part as i64 + 20).then_some(())
        })
        .await;
        lab.until("a rotation", async || {
            (rotate() && files() > part).then_some(())
        })
        .await;
    }
    lab.drained().await;
    // One more, so that what follows the last cut is seen, too.
    let id = lab.event(7, "user_auth").await;
    lab.drained().await;
    daemon.kill_9().await;
    (all(&dir), format!("event={id} "))
}

/// Lines that are no whole record.
fn torn(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with("20") || !line.contains(" nas_event_daemon["))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rename_and_create_lose_nothing() {
    let (files, last) = rotated("create").await;
    assert!(files.len() > ROTATIONS, "{} files", files.len());
    let ends: usize = files
        .iter()
        .map(|(_, text)| text.matches(" end result=").count())
        .sum();
    assert_eq!(ends, EVENTS + 1);
    for (path, text) in &files {
        assert!(
            torn(text).is_empty(),
            "{}: {:?}",
            path.display(),
            torn(text)
        );
    }
    let live = files
        .iter()
        .find(|(path, _)| path.extension().unwrap() == "log")
        .unwrap();
    assert!(
        live.1.contains(&last),
        "the last record is not in the new file"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copytruncate_leaves_no_hole_and_no_torn_record() {
    let (files, last) = rotated("copytruncate").await;
    assert!(files.len() > ROTATIONS, "{} files", files.len());
    // logrotate itself loses what is written between its copy and its cut (logrotate(8)), and
    // says so: it is little, and never ours.
    let ends: usize = files
        .iter()
        .map(|(_, text)| text.matches(" end result=").count())
        .sum();
    assert!(
        ends <= EVENTS + 1 && ends > EVENTS * 9 / 10,
        "{ends} of {EVENTS}"
    );
    for (path, text) in &files {
        assert!(!text.contains('\0'), "{} has a hole", path.display());
    }
    let live = files
        .iter()
        .find(|(path, _)| path.extension().unwrap() == "log")
        .unwrap();
    assert!(torn(&live.1).is_empty(), "{:?}", torn(&live.1));
    assert!(live.1.contains(&last), "nothing is written after the cut");
}

/// How often each numbered record of the daemon's own log is in its files, and how many were
/// written, through rotations of this kind by the shipped rules.
fn daemon_log(kind: &str) -> (BTreeMap<usize, usize>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path().join("log"), "billing1", 4711).unwrap();
    let live = dir.path().join("log/nas_event_daemon.log");
    let path = dir.path().join("rules");
    let shipped = "/var/log/nas_event_daemon/nas_event_daemon.log";
    rules_for("nas_event_daemon", shipped, &live, kind, &path);
    let state = dir.path().join("state").display().to_string();
    let (written, ends) = (AtomicUsize::new(0), AtomicBool::new(false));
    let files = || {
        let files = std::fs::read_dir(live.parent().unwrap()).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        paths.filter(|path| path.is_file()).count()
    };
    // Nothing here goes on for ever, nor fills a disk.
    let until = clock::tick_ms() + u64::try_from(PATIENCE.as_millis()).unwrap();
    let in_time = || clock::tick_ms() < until;
    let past = |least: usize| {
        while written.load(Ordering::Relaxed) < least && in_time() {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..RECORDS_MAX {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                logs.daemon(&format!("record {n}"));
                written.store(n + 1, Ordering::Relaxed);
            }
        });
        for rotation in 1..=ROTATIONS {
            past(written.load(Ordering::Relaxed) + 200);
            // Refused within the second of the last one: names have that resolution.
            while files() <= rotation {
                assert!(in_time(), "no rotation {rotation}");
                judge(
                    "logrotate",
                    &["--force", "--state", &state, path.to_str().unwrap()],
                );
            }
        }
        past(written.load(Ordering::Relaxed) + 200);
        ends.store(true, Ordering::Relaxed);
    });
    let mut found = BTreeMap::new();
    for (path, text) in all(live.parent().unwrap())
        .iter()
        .filter(|(path, _)| path.is_file())
    {
        assert!(!text.contains('\0'), "{} has a hole", path.display());
        for line in text.lines() {
            let number = line.rsplit_once(" nas_event_daemon[4711]: record ");
            match number.and_then(|(_, number)| number.parse().ok()) {
                Some(number) => *found.entry(number).or_default() += 1,
                // Where logrotate's copy ends is not ours.
                None => assert!(kind == "copytruncate" && *path != live, "torn: {line:?}"),
            }
        }
    }
    (found, written.into_inner())
}

#[test]
fn the_daemons_own_log_loses_nothing_by_the_shipped_rule() {
    let (found, written) = daemon_log("create");
    assert_eq!(found.len(), written, "some are lost");
    assert!(found.values().all(|times| *times == 1), "some are twice");
    assert!(read("docs/operate.md").contains("`copytruncate` loses"));
}

/// What the manual says of the other rule: some may be lost, by logrotate, between its copy and its
/// cut; what is written after the cut is whole, and nothing is there twice.
#[test]
fn after_the_cut_of_copytruncate_the_daemons_log_is_whole_and_nothing_is_there_twice() {
    let (found, written) = daemon_log("copytruncate");
    assert!(
        found.len() <= written && found.len() > written / 2,
        "{} of {written}",
        found.len()
    );
    assert!(found.values().all(|times| *times == 1), "some are twice");
    let last = written - 1;
    assert!(
        found.contains_key(&last),
        "nothing is written after the cut"
    );
}
