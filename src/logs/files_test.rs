//! Tests of the log files, on a real file system: rotation, bounds, links, full disks.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn logs() -> (tempfile::TempDir, Logs) {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), "bras", 812).unwrap();
    logs.echo(false);
    (dir, logs)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Descriptors of this process that point into `dir`; others belong to other tests.
fn open_in(dir: &Path) -> usize {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .filter(|target| target.starts_with(dir))
        .count()
}

fn dropped(logs: &Logs) -> [u64; 3] {
    let count = |l: &Loss| {
        l.untold.load(Ordering::Relaxed) + u64::from(l.told.load(Ordering::Relaxed) != 0)
    };
    let [a, b, c] = &logs.0.losses;
    [count(a), count(b), count(c)]
}

#[test]
fn records_go_to_nas_and_account_at_once() {
    let (dir, logs) = logs();
    let nas = logs.nas_file("Test_NAS_10.90.185.2.log");
    logs.write(&nas, Some((Some(77), UserId(1424))), b"a\nb\n");
    logs.write(&nas, Some((None, UserId(1425))), b"c\n");
    logs.write(&nas, None, b"d\n");
    let nas_path = dir.path().join("nas_event_daemon/Test_NAS_10.90.185.2.log");
    assert_eq!(logs.nas_path(&nas), nas_path);
    assert_eq!(read(&nas_path), "a\nb\nc\nd\n");
    let account = dir.path().join("abonents/77/event_1424.log");
    assert_eq!(read(&account), "a\nb\n");
    assert_eq!(read(dir.path().join("abonents/0/event_1425.log")), "c\n");
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&account) & !FILE_MODE, 0);
    assert_eq!(mode(account.parent().unwrap()) & !DIR_MODE, 0);
    assert_eq!(dropped(&logs), [0, 0, 0]);
}

#[test]
fn a_daemon_record_is_exact() {
    let (dir, logs) = logs();
    let text = "Start work with nas nasid=1116 nas_ip=10.90.185.2 \
                oss_pathname=/var/oss/core/Mikrotik-Simple script_name=<null>";
    logs.daemon(text);
    let line = read(dir.path().join("nas_event_daemon.log"));
    let shape = regex::Regex::new(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d bras nas_event_daemon\[812\]: Start work .*<null>\n$",
    )
    .unwrap();
    assert!(shape.is_match(&line), "{line}");
    assert!(line.ends_with(&format!("]: {text}\n")));
}

#[test]
fn the_record_after_a_rename_is_in_the_new_file() {
    let (dir, logs) = logs();
    let nas = logs.nas_file("n.log");
    let path = logs.nas_path(&nas);
    let rotated = dir.path().join("n.log.1");
    logs.write(&nas, None, b"1\n");
    fs::rename(&path, &rotated).unwrap();
    logs.write(&nas, None, b"2\n");
    assert_eq!((read(&rotated), read(&path)), ("1\n".into(), "2\n".into()));

    fs::rename(&path, &rotated).unwrap();
    File::create(&path).unwrap();
    logs.write(&nas, None, b"3\n");
    assert_eq!((read(&rotated), read(&path)), ("2\n".into(), "3\n".into()));

    fs::remove_file(&path).unwrap();
    logs.write(&nas, None, b"4\n");
    assert_eq!(read(&path), "4\n");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(0)
        .unwrap();
    logs.write(&nas, None, b"5\n");
    assert_eq!(read(&path), "5\n", "copytruncate leaves no hole");

    fs::remove_dir_all(dir.path().join("nas_event_daemon")).unwrap();
    logs.write(&nas, None, b"6\n");
    assert_eq!(read(&path), "6\n", "also when the directory went");

    let daemon = dir.path().join("nas_event_daemon.log");
    fs::rename(&daemon, &rotated).unwrap();
    logs.daemon("after");
    assert!(read(&daemon).ends_with("]: after\n"));
}

#[test]
fn reopen_gives_all_descriptors_back() {
    let (dir, logs) = logs();
    logs.write(&logs.nas_file("n.log"), None, b"1\n");
    assert_eq!(open_in(dir.path()), 2);
    logs.reopen();
    assert_eq!(open_in(dir.path()), 0);
    logs.write(&logs.nas_file("n.log"), None, b"2\n");
    assert_eq!(read(dir.path().join("nas_event_daemon/n.log")), "1\n2\n");
}

#[test]
fn twenty_thousand_accounts_and_two_hundred_nases_need_few_descriptors() {
    let (dir, logs) = logs();
    let nases: Vec<_> = (0..200)
        .map(|n| logs.nas_file(&format!("nas_{n}.log")))
        .collect();
    let mut most = 0;
    for account in 0..20_000_i64 {
        let nas = &nases[usize::try_from(account / 50).unwrap() % nases.len()];
        logs.write(nas, Some((Some(account / 100), UserId(account))), b"x\n");
        if account % 500 == 499 {
            most = most.max(open_in(dir.path()));
        }
    }
    assert_eq!(most, NAS_FILES_MAX + 1, "and the daemon's own log");
    assert_eq!(dropped(&logs), [0, 0, 0]);
    let all: usize = nases.iter().map(|n| read(logs.nas_path(n)).len()).sum();
    assert_eq!(all, 20_000 * 2);
    assert_eq!(read(logs.account_path(Some(199), UserId(19_999))), "x\n");
}

#[test]
fn the_file_used_longest_ago_is_given_up() {
    let (dir, logs) = logs();
    let write = |n: usize| logs.write(&logs.nas_file(&format!("{n}.log")), None, b"x\n");
    (0..NAS_FILES_MAX).for_each(write);
    write(0);
    write(NAS_FILES_MAX);
    assert_eq!(open_in(&dir.path().join("nas_event_daemon/0.log")), 1);
    assert_eq!(open_in(&dir.path().join("nas_event_daemon/1.log")), 0);
}

#[test]
fn parallel_writers_lose_and_mix_nothing() {
    let (_dir, logs) = logs();
    let nas = logs.nas_file("n.log");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (logs, nas) = (&logs, &nas);
            scope.spawn(move || {
                for n in 0..500 {
                    let record = format!("{writer} {n} start\n{writer} {n} end\n");
                    logs.write(nas, None, record.as_bytes());
                    if n % 50 == 0 {
                        logs.reopen();
                    }
                }
            });
        }
    });
    let text = read(logs.nas_path(&nas));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4_000);
    for pair in lines.chunks(2) {
        assert_eq!(pair[0].strip_suffix("start"), pair[1].strip_suffix("end"));
    }
}

#[test]
fn links_are_not_followed_and_names_stay_inside() {
    let (dir, logs) = logs();
    let victim = dir.path().join("victim");
    fs::write(&victim, "").unwrap();
    let nas = logs.nas_file("n.log");
    symlink(&victim, logs.nas_path(&nas)).unwrap();
    let account = logs.account_path(Some(1), UserId(2));
    fs::create_dir_all(account.parent().unwrap()).unwrap();
    symlink(&victim, &account).unwrap();
    logs.write(&nas, Some((Some(1), UserId(2))), b"x\n");
    assert_eq!(read(&victim), "");
    assert_eq!(dropped(&logs), [0, 1, 1]);
    for name in ["../../x", ".hidden", "", "..", "a/b", "a\0b"] {
        let path = logs.nas_path(&logs.nas_file(name));
        assert_eq!(path.parent().unwrap(), dir.path().join("nas_event_daemon"));
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(!file.starts_with('.') && !file.contains('\0'), "{file}");
    }
}

#[test]
fn what_cannot_be_written_is_counted_and_said_once_a_minute() {
    let (dir, logs) = logs();
    let nas = logs.nas_file("n.log");
    fs::create_dir(logs.nas_path(&nas)).unwrap();
    fs::create_dir_all(logs.account_path(Some(1), UserId(2))).unwrap();
    for _ in 0..3 {
        logs.write(&nas, Some((Some(1), UserId(2))), b"x\n");
    }
    assert_eq!(dropped(&logs), [0, 3, 3]);
    let said = read(dir.path().join("nas_event_daemon.log"));
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains("cannot write the nas log"), "{said}");

    fs::remove_dir(logs.nas_path(&nas)).unwrap();
    logs.write(&nas, None, b"y\n");
    assert_eq!(read(logs.nas_path(&nas)), "y\n", "goes on once it can");

    fs::remove_file(dir.path().join("nas_event_daemon.log")).unwrap();
    fs::create_dir(dir.path().join("nas_event_daemon.log")).unwrap();
    logs.daemon("lost");
    assert_eq!(dropped(&logs)[0], 1);
}

#[test]
fn a_loss_is_reported_with_its_number_at_most_once_a_minute() {
    let loss = Loss::default();
    assert_eq!(loss.note(0), Some(1));
    assert_eq!(loss.note(1), None);
    assert_eq!(loss.note(REPORT_MS - 1), None);
    assert_eq!(loss.note(REPORT_MS), Some(3));
    assert_eq!(loss.note(REPORT_MS + 1), None);
}

#[test]
fn a_full_disk_is_an_error_and_a_torn_record_ends_before_the_next() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = write_once(&full, b"x\n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);

    let (_dir, logs) = logs();
    let nas = logs.nas_file("n.log");
    logs.write(&nas, None, b"whole\ntor");
    logs.lost(Kind::Nas, &nas.0, &error);
    logs.write(&nas, None, b"next\n");
    logs.write(&nas, None, b"next\n");
    assert_eq!(read(logs.nas_path(&nas)), "whole\ntor\nnext\nnext\n");
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(Logs::open(file.join("log"), "bras", 1).is_err());
}
