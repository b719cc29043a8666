//! The log files: opened, followed through rotation, appended to. The only place that opens
//! them for writing.
//!
//! NAS files and the daemon's file are kept open, at most [`NAS_FILES_MAX`] at once, and
//! checked before each write: if the path is another file now, or none, it is opened anew, so
//! that `logrotate` needs no signal. Account files are opened, appended and closed for each
//! write: measured as fast as a cache, and 20,000 accounts cost no descriptors.
//!
//! Nobody is ever failed for a log: what cannot be written is dropped, counted
//! (`nas_event_daemon_log_write_errors_total`), and reported at most once a minute.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::OFlag;

use crate::clock;
use crate::event::UserId;
use crate::logs::line::{Origin, Records};

/// NAS files open at once; more NASes take turns. Leaves room for sessions under the usual
/// smallest limit of descriptors (256).
pub const NAS_FILES_MAX: usize = 64;
/// Directory of the account logs, below the log directory.
pub(super) const ACCOUNTS: &str = "abonents";
/// Directory of the NAS logs, below the log directory.
const NASES: &str = "nas_event_daemon";
/// The daemon's log, below the log directory.
const DAEMON: &str = "nas_event_daemon.log";
/// The daemon's user writes, its group reads: the logs tell who paid and who did not.
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;
/// Least time between two reports of the same kind of loss, ms.
const REPORT_MS: u64 = 60_000;
/// A directory that `logs prune` removes between "made" and "opened" is made again, so often.
const OPEN_TRIES: u32 = 3;

/// All logs of one daemon; clones share everything.
#[derive(Clone)]
pub struct Logs(Arc<Inner>);

/// The log of one NAS. Holds no descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NasLog(Arc<Path>);

struct Inner {
    dir: PathBuf,
    daemon: KeptFiles,
    daemon_path: Arc<Path>,
    nases: KeptFiles,
    records: Mutex<Records>,
    echo: AtomicBool,
    /// Some write failed since the start: a record may have been cut in the middle, so the end
    /// of a file is looked at before more is added.
    torn: AtomicBool,
    losses: [Loss; 3],
}

impl Logs {
    /// Makes the directories under `dir` and opens the daemon log. `host` and `pid` stand in
    /// every record. Events also go to stderr if that is a terminal (see [`Logs::echo`]).
    pub fn open(dir: impl Into<PathBuf>, host: &str, pid: u32) -> io::Result<Self> {
        let dir = dir.into();
        for sub in [NASES, ACCOUNTS] {
            make_dir(&dir.join(sub))?;
        }
        let daemon_path: Arc<Path> = dir.join(DAEMON).into();
        let daemon = KeptFiles::new(1);
        daemon.file(&daemon_path)?;
        Ok(Self(Arc::new(Inner {
            records: Mutex::new(Records::new(Origin::new(host, pid))),
            dir,
            daemon,
            daemon_path,
            nases: KeptFiles::new(NAS_FILES_MAX),
            echo: AtomicBool::new(io::stderr().is_terminal()),
            torn: AtomicBool::new(false),
            losses: Default::default(),
        })))
    }

    /// Whether records of the daemon log also go to stderr.
    pub fn echo(&self, on: bool) {
        self.0.echo.store(on, Ordering::Relaxed);
    }

    /// A writer of records with this daemon's prefix; each task keeps its own.
    pub fn records(&self) -> Records {
        let mut records = lock(&self.0.records);
        records.look(clock::wall_ms());
        records.clone()
    }

    /// The log of a NAS. `name` as made by `nas::log_file_names`; should it be anything but a
    /// plain file name, it is made one.
    pub fn nas_file(&self, name: &str) -> NasLog {
        let mut plain: String = name
            .chars()
            .map(|c| if c == '/' || c == '\0' { '_' } else { c })
            .collect();
        if plain.is_empty() || plain.starts_with('.') {
            plain.insert(0, '_');
        }
        NasLog(self.0.dir.join(NASES).join(plain).into())
    }

    /// Writes one record to the daemon log, exactly `text` after the prefix, whatever the
    /// level of the log.
    pub fn daemon(&self, text: &str) {
        let mut record = Vec::with_capacity(text.len() + 80);
        lock(&self.0.records).daemon(&mut record, clock::wall_ms(), text);
        if self.0.echo.load(Ordering::Relaxed) {
            to_stderr(&record);
        }
        let written = self
            .0
            .daemon
            .file(&self.0.daemon_path)
            .and_then(|file| self.append(&file, &record));
        if let Err(error) = written {
            self.lost(Kind::Daemon, &self.0.daemon_path, &error);
        }
    }

    /// Appends `records` (whole lines) to the NAS's log and, for an event of an account
    /// (abonent, user), to the account's: one write(2) each. Has no result: logs never stop
    /// enforcement.
    pub fn write(&self, nas: &NasLog, account: Option<(Option<i64>, UserId)>, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        let written = self
            .0
            .nases
            .file(&nas.0)
            .and_then(|file| self.append(&file, records));
        if let Err(error) = written {
            self.lost(Kind::Nas, &nas.0, &error);
        }
        if let Some((abonent, user)) = account {
            self.write_account(abonent, user, records);
        }
    }

    /// Appends `records` to the log of an account alone.
    pub fn write_account(&self, abonent: Option<i64>, user: UserId, records: &[u8]) {
        let path = self.account_path(abonent, user);
        let written = open(&path).and_then(|file| self.append(&file, records));
        if let Err(error) = written {
            self.lost(Kind::Account, &path, &error);
        }
    }

    /// `<log>/abonents/<abonent_id>/event_<user_id>.log`; an unknown abonent is `0`. Made of
    /// numbers only.
    pub fn account_path(&self, abonent: Option<i64>, user: UserId) -> PathBuf {
        let abonent = abonent.unwrap_or(0);
        self.0
            .dir
            .join(format!("{ACCOUNTS}/{abonent}/event_{user}.log"))
    }

    /// Where the daemon log is.
    pub fn daemon_path(&self) -> PathBuf {
        self.0.daemon_path.to_path_buf()
    }

    /// Where the log of a NAS is.
    pub fn nas_path(&self, nas: &NasLog) -> PathBuf {
        nas.0.to_path_buf()
    }

    /// Families of logs of which a record was lost within the last `ms`.
    pub fn losing(&self, ms: u64) -> Vec<&'static str> {
        let kinds = [Kind::Daemon, Kind::Nas, Kind::Account];
        let since = clock::tick_ms().saturating_sub(ms);
        let lost = |loss: &Loss| loss.last.load(Ordering::Relaxed) > since.max(1);
        let each = self.0.losses.iter().zip(kinds);
        each.filter(|(loss, _)| lost(loss))
            .map(|(_, kind)| kind.as_str())
            .collect()
    }

    /// Closes every kept file; the next record opens it anew (SIGHUP).
    pub fn reopen(&self) {
        self.0.daemon.close_all();
        self.0.nases.close_all();
    }

    fn append(&self, file: &File, records: &[u8]) -> io::Result<()> {
        if self.0.torn.load(Ordering::Relaxed) && !ends_in_newline(file)? {
            let mut fresh = Vec::with_capacity(records.len() + 1);
            fresh.push(b'\n');
            fresh.extend_from_slice(records);
            return write_once(file, &fresh);
        }
        write_once(file, records)
    }

    /// Counts a write that failed and, once a minute, says so: in the daemon log, or on stderr
    /// if that is the one that fails.
    fn lost(&self, kind: Kind, path: &Path, error: &io::Error) {
        self.0.torn.store(true, Ordering::Relaxed);
        metrics::counter!("nas_event_daemon_log_write_errors_total", "kind" => kind.as_str())
            .increment(1);
        let [daemon, nas, account] = &self.0.losses;
        let loss = match kind {
            Kind::Daemon => daemon,
            Kind::Nas => nas,
            Kind::Account => account,
        };
        let Some(dropped) = loss.note(clock::tick_ms()) else {
            return;
        };
        let text = format!(
            "error: cannot write the {} log {}: {error}; {dropped} writes dropped since the \
             last report, events are executed all the same; make room or mend the permissions",
            kind.as_str(),
            path.display(),
        );
        match kind {
            Kind::Daemon => to_stderr(format!("nas_event_daemon: {text}\n").as_bytes()),
            Kind::Nas | Kind::Account => self.daemon(&text),
        }
    }
}

/// A family of logs, as in the label of the metric.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Daemon,
    Nas,
    Account,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Nas => "nas",
            Self::Account => "account",
        }
    }
}

/// What was dropped, and when that was last said.
#[derive(Debug, Default)]
struct Loss {
    untold: AtomicU64,
    /// Tick of the last report plus one; 0 = never.
    told: AtomicU64,
    /// Tick of the last dropped write plus one; 0 = none.
    last: AtomicU64,
}

impl Loss {
    /// Notes one dropped write; gives the number of those not reported yet when a report is due.
    fn note(&self, now: u64) -> Option<u64> {
        self.untold.fetch_add(1, Ordering::Relaxed);
        self.last.store(now + 1, Ordering::Relaxed);
        let told = self.told.load(Ordering::Relaxed);
        if told != 0 && now < told - 1 + REPORT_MS {
            return None;
        }
        self.told
            .compare_exchange(told, now + 1, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
            .then(|| self.untold.swap(0, Ordering::Relaxed))
    }
}

/// Files kept open, the least recently used given up first.
struct KeptFiles {
    max: usize,
    open: Mutex<(u64, HashMap<Arc<Path>, Kept>)>,
}

#[derive(Clone)]
struct Kept {
    file: Arc<File>,
    dev: u64,
    ino: u64,
    used: u64,
}

impl KeptFiles {
    fn new(max: usize) -> Self {
        Self {
            max,
            open: Mutex::default(),
        }
    }

    /// The file that is at `path` now.
    fn file(&self, path: &Arc<Path>) -> io::Result<Arc<File>> {
        let kept = {
            let (turn, open) = &mut *lock(&self.open);
            *turn += 1;
            open.get_mut(path).map(|kept| {
                kept.used = *turn;
                kept.clone()
            })
        };
        if let Some(kept) = kept
            && std::fs::symlink_metadata(path).is_ok_and(|at| kept.is(&at))
        {
            return Ok(kept.file);
        }
        let file = Arc::new(open(path)?);
        let at = file.metadata()?;
        if !at.is_file() {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "is not a regular file",
            ));
        }
        let (turn, open) = &mut *lock(&self.open);
        if open.len() >= self.max && !open.contains_key(path) {
            let oldest = open.iter().min_by_key(|(_, kept)| kept.used);
            if let Some(oldest) = oldest.map(|(path, _)| Arc::clone(path)) {
                open.remove(&oldest);
            }
        }
        let kept = Kept {
            file: Arc::clone(&file),
            dev: at.dev(),
            ino: at.ino(),
            used: *turn,
        };
        open.insert(Arc::clone(path), kept);
        Ok(file)
    }

    fn close_all(&self) {
        lock(&self.open).1.clear();
    }
}

impl Kept {
    fn is(&self, at: &Metadata) -> bool {
        at.dev() == self.dev && at.ino() == self.ino
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes hold here is whole at every moment, also if a holder panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens for appending, never through a link and never waiting (for the reader of a FIFO).
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Read is for `ends_in_newline`.
    options
        .read(true)
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
    let mut tries = 1;
    loop {
        match options.open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound && tries < OPEN_TRIES => {
                tries += 1;
                path.parent().map_or(Ok(()), make_dir)?;
            }
            opened => return opened,
        }
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)
}

fn ends_in_newline(file: &File) -> io::Result<bool> {
    let Some(last) = file.metadata()?.len().checked_sub(1) else {
        return Ok(true);
    };
    let mut byte = [0];
    let read = file.read_at(&mut byte, last)?;
    Ok(read == 0 || byte == *b"\n")
}

/// One write(2). A part written means that the disk is full: the rest would fail as well.
fn write_once(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    loop {
        match file.write(bytes) {
            Ok(n) if n == bytes.len() => return Ok(()),
            Ok(n) => {
                return Err(io::Error::new(
                    ErrorKind::WriteZero,
                    format!("only {n} of {} bytes written, no space left?", bytes.len()),
                ));
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn to_stderr(bytes: &[u8]) {
    // Nothing is left to tell it to if this fails as well.
    let _ = io::stderr().lock().write_all(bytes);
}

#[cfg(test)]
#[path = "files_test.rs"]
mod tests;
