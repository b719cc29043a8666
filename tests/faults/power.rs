//! Power loss under SQLite. The daemon works under `strace`, which records each write and each
//! sync of its database in their order, and what it says to producers and to the router. Then the
//! power goes off at many points of the record: what was synced is there, of what was only
//! written any part may be missing, sector by sector and in any order. The database must open, be
//! sound, and know everything that had been promised or begun before.
//!
//! A kill leaves the page cache alive, so no kill can show this. `NED_POWER_CUTS` changes the
//! number of cuts, `NED_SEED` the choices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::json;
use sqlx::{Connection, SqliteConnection};

use crate::lab::daemon::{self, Lab};
use crate::lab::db::Kind;
use crate::lab::journal::{self, CMDS};
use crate::lab::sim::Router;
use crate::{Dice, from_environment, say};

/// Cuts of one run, unless `NED_POWER_CUTS` says otherwise.
const CUTS: u64 = 150;
/// Events of the run.
const EVENTS: i64 = 280;
/// Frames that the log holds before: the daemon copies it into the database file past 4,000, and then
/// begins it anew.
const FRAMES: u64 = 3_900;
/// A page and its header in the log (sqlite.org, "WAL-mode File Format").
const FRAME: u64 = 4_096 + 24;
/// What a disk writes at once; a page may be torn between two of them.
const SECTOR: usize = 512;
const CALLS: &str = "trace=pwrite64,pwritev,write,writev,sendto,sendmsg,fsync,fdatasync,\
                     ftruncate,fallocate,unlink,unlinkat,rename";

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Write {
        file: Part,
        at: usize,
        data: Vec<u8>,
    },
    Truncate {
        file: Part,
        len: usize,
    },
    /// Everything of this file that was written before the line `since` is on the disk now.
    Sync {
        file: Part,
        since: usize,
    },
    /// A producer is told of these events.
    Told(Vec<i64>),
    /// A command of this attempt goes to the router.
    Sent {
        event: i64,
        try_count: i64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Database,
    Log,
}

// -- the record -----------------------------------------------------------------------------

/// A text of `strace -x` as bytes.
fn unescaped(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len() / 4), 0);
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        let hex = |b: u8| char::from(b).to_digit(16).unwrap();
        match bytes[at + 1] {
            b'x' => {
                out.push(u8::try_from(hex(bytes[at + 2]) * 16 + hex(bytes[at + 3])).unwrap());
                at += 4;
                continue;
            }
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(0x0b),
            b'f' => out.push(0x0c),
            digit @ b'0'..=b'7' => out.push(digit - b'0'),
            other => out.push(other),
        }
        at += 2;
    }
    out
}

/// The texts between quotes of a line's arguments, joined.
fn data(line: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = line;
    while let Some(from) = rest.find('"') {
        rest = &rest[from + 1..];
        let mut end = 0;
        while rest.as_bytes()[end] != b'"' {
            end += if rest.as_bytes()[end] == b'\\' { 2 } else { 1 };
        }
        assert!(
            !rest[end..].starts_with("\"..."),
            "strace cut it: {line:.100}"
        );
        out.extend(unescaped(&rest[..end]));
        rest = &rest[end + 1..];
    }
    out
}

/// The numbers after `before` in `text`, for as long as they go on after single blanks.
fn numbers(text: &str, before: &str) -> Vec<i64> {
    let Some(from) = text.find(before) else {
        return Vec::new();
    };
    let rest = &text[from + before.len()..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != ' ' && c != ',');
    let words = rest[..end.unwrap_or(rest.len())].split([' ', ',']);
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Reads the record: lines in their order.
fn read(text: &str, database: &Path) -> Vec<Op> {
    let main = format!("<{}>", database.display());
    let log = format!("<{}-wal>", database.display());
    let mut ops: Vec<Op> = Vec::new();
    // Syncs that have begun, by thread: the file, and how much had been written before.
    let mut begun: BTreeMap<&str, (Part, usize)> = BTreeMap::new();
    for line in text.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        let part = if call.contains(&log) {
            Some(Part::Log)
        } else if call.contains(&main) {
            Some(Part::Database)
        } else {
            None
        };
        let name = call.split('(').next().unwrap_or_default();
        match (name, part) {
            ("pwrite64", Some(file)) => {
                let data = data(call);
                let tail = call.rsplit_once('"').unwrap().1;
                let at = numbers(tail, ", ");
                assert_eq!(usize::try_from(at[0]).unwrap(), data.len());
                let at = usize::try_from(at[1]).unwrap();
                ops.push(Op::Write { file, at, data });
            }
            ("ftruncate", Some(file)) => {
                let len = usize::try_from(numbers(call, ">, ")[0]).unwrap();
                ops.push(Op::Truncate { file, len });
            }
            ("fsync" | "fdatasync", Some(file)) if call.ends_with("= 0") => {
                let since = ops.len();
                ops.push(Op::Sync { file, since });
            }
            ("fsync" | "fdatasync", Some(file)) => {
                assert!(call.ends_with("<unfinished ...>"), "a sync failed: {call}");
                begun.insert(thread, (file, ops.len()));
            }
            (_, Some(_)) => panic!("not modelled: {call:.200}"),
            (name, None) if name.starts_with("<... f") && call.ends_with("= 0") => {
                if let Some((file, since)) = begun.remove(thread) {
                    ops.push(Op::Sync { file, since });
                }
            }
            ("write" | "writev" | "sendto" | "sendmsg", None) if call.contains('"') => {
                let data = data(call);
                let text = String::from_utf8_lossy(&data);
                let told = numbers(&text, "\"ids\":[");
                if !told.is_empty() {
                    ops.push(Op::Told(told));
                }
                if let [event, _, try_count, _] = numbers(&text, "=comment=")[..] {
                    ops.push(Op::Sent { event, try_count });
                }
            }
            _ => {}
        }
    }
    ops
}

// -- the disk -------------------------------------------------------------------------------

/// What is on the disk for certain, and what has been written since.
#[derive(Clone)]
struct Disk {
    sure: BTreeMap<Part, Vec<u8>>,
    /// By their place in the record.
    loose: Vec<(usize, Op)>,
}

impl Disk {
    fn settle(&mut self, file: Part, since: usize) {
        let loose = std::mem::take(&mut self.loose);
        for (at, op) in loose {
            let mine = matches!(&op, Op::Write { file: f, .. } | Op::Truncate { file: f, .. } if *f == file);
            if mine && at < since {
                put(self.sure.get_mut(&file).unwrap(), &op, |_| true);
            } else {
                self.loose.push((at, op));
            }
        }
    }

    /// The files after a power cut.
    fn cut(&self, dice: &mut Dice) -> BTreeMap<Part, Vec<u8>> {
        let mut files = self.sure.clone();
        let kind = dice.roll(4);
        for (_, op) in &self.loose {
            let (Op::Write { file, .. } | Op::Truncate { file, .. }) = op else {
                continue;
            };
            let whole = dice.roll(2) == 0;
            put(files.get_mut(file).unwrap(), op, |_| match kind {
                0 => false,
                1 => true,
                2 => whole,
                _ => dice.roll(2) == 0,
            });
        }
        files
    }
}

/// Does to `file` what `op` says, as far as its sectors arrive.
fn put(file: &mut Vec<u8>, op: &Op, mut arrives: impl FnMut(usize) -> bool) {
    match op {
        Op::Write { at, data, .. } => {
            for (n, sector) in data.chunks(SECTOR).enumerate() {
                if arrives(n) {
                    let from = at + n * SECTOR;
                    let end = from + sector.len();
                    if file.len() < end {
                        file.resize(end, 0);
                    }
                    file[from..end].copy_from_slice(sector);
                }
            }
        }
        Op::Truncate { len, .. } => {
            if arrives(0) {
                file.resize(*len, 0);
            }
        }
        Op::Sync { .. } | Op::Told(_) | Op::Sent { .. } => {}
    }
}

/// What is wrong with a database after a cut, if anything.
async fn examine(
    dir: &Path,
    files: &BTreeMap<Part, Vec<u8>>,
    told: &BTreeSet<i64>,
    sent: &BTreeMap<i64, i64>,
) -> Result<(), String> {
    let file = dir.join("cut.db");
    std::fs::write(&file, &files[&Part::Database]).unwrap();
    std::fs::write(dir.join("cut.db-wal"), &files[&Part::Log]).unwrap();
    let _ = std::fs::remove_file(dir.join("cut.db-shm"));
    let broken = |e: sqlx::Error| format!("it cannot be read: {e}");
    let url = format!("sqlite://{}", file.display());
    let mut conn = SqliteConnection::connect(&url).await.map_err(broken)?;
    let sound: String = sqlx::query_scalar("select * from pragma_integrity_check")
        .fetch_one(&mut conn)
        .await
        .map_err(broken)?;
    if sound != "ok" {
        return Err(format!("it is not sound: {sound}"));
    }
    let rows: Vec<(i64, i64)> = sqlx::query_as(
        "select id, -1 from events_stack_compact union all
         select id, try_count from events_stack union all
         select id, 1000 from events_done union all select id, 1000 from events_dead",
    )
    .fetch_all(&mut conn)
    .await
    .map_err(broken)?;
    conn.close().await.map_err(broken)?;
    let known: BTreeMap<i64, i64> = rows.iter().copied().collect();
    if known.len() != rows.len() {
        return Err("an event stands in two places".to_owned());
    }
    if let Some(lost) = told.iter().find(|id| !known.contains_key(*id)) {
        return Err(format!("event {lost} was accepted and is lost"));
    }
    let unknown = |(event, tries): &(&i64, &i64)| known.get(*event).is_none_or(|n| n < *tries);
    match sent.iter().find(unknown) {
        Some((event, tries)) => Err(format!("event {event} ran, try {tries}, without a record")),
        None => Ok(()),
    }
}

/// Which syncs the disk obeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Syncs {
    All,
    /// `synchronous=NORMAL`: the log is synced only before it is copied into the database.
    Normal,
    /// `synchronous=OFF`, or a disk that lies.
    None,
}

/// Whether what is written next is the database itself, not its log.
fn copies_next(ops: &[Op]) -> bool {
    let next = ops.iter().find_map(|op| match op {
        Op::Write { file, .. } | Op::Truncate { file, .. } => Some(*file),
        Op::Sync { .. } | Op::Told(_) | Op::Sent { .. } => None,
    });
    next == Some(Part::Database)
}

/// Cuts the power at `cuts` points; what was found, by the number of the line.
async fn cut_again_and_again(
    before: &BTreeMap<Part, Vec<u8>>,
    ops: &[Op],
    cuts: u64,
    seed: u64,
    syncs: Syncs,
) -> Vec<(usize, String)> {
    let mut dice = Dice(seed);
    let all = ops.len() as u64;
    let mut points: Vec<usize> = (0..cuts)
        .map(|_| usize::try_from(dice.roll(all)).unwrap())
        .collect();
    points.sort_unstable();
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk {
        sure: before.clone(),
        loose: Vec::new(),
    };
    let (mut told, mut sent) = (BTreeSet::new(), BTreeMap::new());
    let mut found = Vec::new();
    let mut next = points.into_iter().peekable();
    for (at, op) in ops.iter().enumerate() {
        while next.next_if_eq(&at).is_some() {
            let files = disk.cut(&mut dice);
            if let Err(why) = examine(dir.path(), &files, &told, &sent).await {
                found.push((at, why));
            }
        }
        match op {
            Op::Write { .. } | Op::Truncate { .. } => disk.loose.push((at, op.clone())),
            Op::Sync { file, since } => {
                let obeys = match syncs {
                    Syncs::All => true,
                    Syncs::Normal => *file == Part::Database || copies_next(&ops[at..]),
                    Syncs::None => false,
                };
                if obeys {
                    disk.settle(*file, *since);
                }
            }
            Op::Told(events) => told.extend(events),
            Op::Sent { event, try_count } => {
                sent.insert(*event, *try_count);
            }
        }
    }
    found
}

// -- the run --------------------------------------------------------------------------------

/// Lengthens the log: others have written, and nobody has copied it into the database yet.
async fn lengthen(url: &str, log: &Path) {
    let mut conn = SqliteConnection::connect(url).await.unwrap();
    let first = "pragma wal_autocheckpoint = 0; pragma synchronous = off;
                 create table others (n integer); insert into others values (0)";
    sqlx::raw_sql(first).execute(&mut conn).await.unwrap();
    while std::fs::metadata(log).unwrap().len() < FRAMES * FRAME {
        let one = "update others set n = n + 1";
        sqlx::raw_sql(one).execute(&mut conn).await.unwrap();
    }
    conn.close().await.unwrap();
}

/// Works through some load under strace; the files before it, and the record.
async fn recorded() -> (BTreeMap<Part, Vec<u8>>, Vec<Op>) {
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.native("Queue", &journal::native());
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 1, "Queue", 4).await;
    lab.accounts(1, 100..110).await;
    let file = PathBuf::from(lab.db.url.strip_prefix("sqlite://").unwrap());
    let log = PathBuf::from(format!("{}-wal", file.display()));
    lengthen(&lab.db.url, &log).await;
    let before = BTreeMap::from([
        (Part::Database, std::fs::read(&file).unwrap()),
        (Part::Log, std::fs::read(&log).unwrap()),
    ]);
    let record = lab.path("record").display().to_string();
    // -D: the daemon stays our child, strace is a grandchild.
    let by = [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-q",
        "-x",
        "-y",
        "-s",
        "100000",
        "-o",
        record.as_str(),
        "-e",
        CALLS,
    ];
    let daemon = lab.start_by(&by).await;
    let pid = daemon.pid;
    let mut dice = Dice(1);
    let mut posted = 0;
    while posted < EVENTS {
        let n = 1 + i64::try_from(dice.roll(4)).unwrap();
        let events: Vec<_> = (0..n)
            .map(|_| json!({"cmd": dice.one(&CMDS), "user_id": 100 + dice.roll(10)}))
            .collect();
        let body = json!({ "events": events });
        let (status, answer) = lab.try_post("/api/v1/events", &body, None).await.unwrap();
        assert_eq!(status, 201, "{answer}");
        posted += i64::try_from(daemon::ids(&answer).len()).unwrap();
    }
    lab.drained().await;
    daemon.stop().await;
    // Short numbers are padded.
    let is_last = |line: &str| {
        let end = line.strip_prefix(&format!("{pid} "));
        end.is_some_and(|end| end.trim_start() == "+++ exited with 0 +++")
    };
    let text = lab
        .until("the record is whole", async || {
            let text = std::fs::read_to_string(&record).unwrap_or_default();
            text.lines().any(is_last).then_some(text)
        })
        .await;
    let ops = read(&text, &file);
    let told: usize = ops
        .iter()
        .map(|op| if let Op::Told(ids) = op { ids.len() } else { 0 })
        .sum();
    assert_eq!(
        i64::try_from(told).unwrap(),
        posted,
        "every answer is in it"
    );
    (before, ops)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_promised() {
    let (before, ops) = recorded().await;
    let count = |like: fn(&Op) -> bool| ops.iter().filter(|op| like(op)).count();
    let sent = count(|op| matches!(op, Op::Sent { .. }));
    assert!(sent >= 280, "{sent} commands");
    let main = count(|op| {
        matches!(
            op,
            Op::Write {
                file: Part::Database,
                ..
            }
        )
    });
    assert!(main > 20, "{main} writes of a checkpoint");
    let seed = from_environment("NED_SEED").unwrap_or(5);
    let cuts = from_environment("NED_POWER_CUTS").unwrap_or(CUTS);
    let found = cut_again_and_again(&before, &ops, cuts, seed, Syncs::All).await;
    assert_eq!(found, Vec::new());
    say(&format!(
        "NED_SEED={seed}: {} lines, {cuts} cuts, nothing found",
        ops.len()
    ));
    // The negative controls: with weaker syncs the same finds what is lost.
    for syncs in [Syncs::Normal, Syncs::None] {
        let cuts = CUTS / 3;
        let found = cut_again_and_again(&before, &ops, cuts, seed, syncs).await;
        let lost = found.iter().filter(|(_, why)| why.contains("is lost"));
        let (lost, all) = (lost.count(), found.len());
        say(&format!(
            "{syncs:?} syncs: {all} of {cuts} are broken, {lost} have lost an event"
        ));
        assert!(lost > 0, "{syncs:?}: {found:?}");
    }
}

/// What the reader makes of the forms of lines.
#[test]
fn a_record_is_read_as_it_was_written() {
    let text = concat!(
        "7  pwrite64(9</x/ned.db-wal>, \"\\x01\\x00\\xff\", 3, 32) = 3\n",
        "8  fdatasync(9</x/ned.db-wal> <unfinished ...>\n",
        "7  pwrite64(9</x/ned.db>, \"a\\\"b\\n\", 4, 4096 <unfinished ...>\n",
        "8  <... fdatasync resumed>)          = 0\n",
        "7  <... pwrite64 resumed>)           = 4\n",
        "7  writev(12<socket:[5]>, [{iov_base=\"HTTP/1.1 201 Created\\r\\n\\r\\n\", iov_len=24}, ",
        "{iov_base=\"{\\\"ids\\\":[4,5]}\", iov_len=13}], 2) = 37\n",
        "7  sendto(13<socket:[6]>, \"\\x04=comment=4 100 1 0\", 20, 0, NULL, 0) = 20\n",
        "7  fsync(9</x/ned.db>) = 0\n",
        "7  ftruncate(9</x/ned.db-wal>, 512) = 0\n",
        "7  write(2</dev/null>, \"log\", 3) = 3\n",
    );
    let write = |file, at, data: &[u8]| Op::Write {
        file,
        at,
        data: data.to_vec(),
    };
    let expected = [
        write(Part::Log, 32, b"\x01\x00\xff"),
        write(Part::Database, 4096, b"a\"b\n"),
        Op::Sync {
            file: Part::Log,
            since: 1,
        },
        Op::Told(vec![4, 5]),
        Op::Sent {
            event: 4,
            try_count: 1,
        },
        Op::Sync {
            file: Part::Database,
            since: 5,
        },
        Op::Truncate {
            file: Part::Log,
            len: 512,
        },
    ];
    assert_eq!(read(text, Path::new("/x/ned.db")), expected);
}
