//! `logs …`: the end of a log, of the daemon, a NAS or an account, and what is written next;
//! removing what nobody will read any more. Works on the files, with and without a daemon.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use regex::Regex;
use serde_json::json;

use super::exit::{
    DONE, FAILED, Failed, NOT_FOUND, Outcome, PART_FAILED, REFUSED, USAGE, remark, say, say_all,
};
use super::request::Request;
use super::table::{Format, one_line};
use super::{Console, account, guard, log_rows, who};
use crate::clock;
use crate::config::{Config, parse_duration};
pub use crate::intake::attempts::tail;
use crate::logs;
use crate::logs::read::{self, TIME};
use crate::nas::{NasId, log_file_names};

/// Lines that are shown where nothing else is asked for.
const LINES: usize = 50;
/// Most lines that are kept for the end of a log.
const LINES_MAX: usize = 100_000;
/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// What a record of trouble holds, in any of the logs.
const TROUBLE: &[&str] = &[
    "error: ",
    "warning: ",
    " error=\"",
    " result=dead ",
    " result=deferred ",
    "Skip nas ",
];

/// Lines, and the log that they end in.
type Lines = (VecDeque<String>, Option<BufReader<File>>);

/// Which log, and which of its lines.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Logs {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    look: Look,
}

/// Verbs of logs; without one, the daemon's.
#[derive(Debug, Subcommand)]
enum Verb {
    /// The daemon's own: which NASes are served, alarms.
    Daemon(Look),
    /// What was sent to a NAS, and what it answered.
    Nas {
        /// nas.id
        id: i64,
        #[command(flatten)]
        look: Look,
    },
    /// What was sent for an account.
    Account {
        /// users.id
        user: i64,
        #[command(flatten)]
        look: Look,
    },
    /// Remove logs of accounts that were last written to long ago.
    Prune {
        /// For example 400d
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        older_than: Duration,
    },
}

/// Which lines.
#[derive(Debug, Args, Default)]
pub struct Look {
    /// The last N lines: 50, or all where -o makes rows of them
    // The id of the flag of all lists: the same letter, the same number.
    #[arg(
        id = "limit",
        short = 'n',
        long = "lines",
        alias = "limit",
        value_name = "N"
    )]
    pub lines: Option<usize>,
    /// Go on with what is written next, also after a rotation
    #[arg(short, long)]
    pub follow: bool,
    /// Only lines in which this regular expression is found
    #[arg(long, value_name = "REGEX")]
    pub grep: Option<Regex>,
    /// Only lines of trouble: errors, warnings, what was deferred or died
    #[arg(long)]
    pub errors: bool,
    /// Only lines since: 30m, YYYY-MM-DD or "YYYY-MM-DD HH:MM" in the server's time
    #[arg(long, alias = "from", value_name = "TIME", value_parser = since)]
    pub since: Option<i64>,
    /// Only lines before this time, in the same forms
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub to: Option<i64>,
}

impl Look {
    /// Tells the lines that are wanted.
    fn filter(&self) -> impl Fn(&str) -> bool + '_ {
        let since = self.since.map(clock::local_text);
        let to = self.to.map(clock::local_text);
        move |line| {
            let at = line.get(..TIME);
            let late = |since: &String| at.is_some_and(|t| *t >= **since);
            let before = |to: &String| at.is_some_and(|t| *t < **to);
            since.as_ref().is_none_or(late)
                && to.as_ref().is_none_or(before)
                && (!self.errors || TROUBLE.iter().any(|mark| line.contains(mark)))
                && self.grep.as_ref().is_none_or(|regex| regex.is_match(line))
        }
    }
}

impl Logs {
    /// The same over the API.
    pub fn requests(&self) -> Vec<Request> {
        match &self.verb {
            None => self.look.requests("daemon"),
            Some(Verb::Daemon(look)) => look.requests("daemon"),
            Some(Verb::Nas { id, look }) => look.requests(&format!("nas/{id}")),
            Some(Verb::Account { user, look }) => look.requests(&format!("accounts/{user}")),
            Some(Verb::Prune { .. }) => Vec::new(),
        }
    }
}

impl Look {
    /// The end of a log over the API, which does not search it.
    pub fn requests(&self, log: &str) -> Vec<Request> {
        let searched = self.errors || self.grep.is_some();
        if searched || self.since.is_some() || self.to.is_some() {
            return Vec::new();
        }
        vec![Request::get(format!("/api/v1/logs/{log}")).with(&[
            ("lines", self.lines.map(|n| n.to_string())),
            ("follow", self.follow.then(|| "true".to_owned())),
        ])]
    }
}

/// A moment: so long ago, a day, or a time of the server; wall ms.
pub fn since(text: &str) -> Result<i64, String> {
    if let Ok(ago) = parse_duration(text) {
        let ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        return Ok(clock::wall_ms().saturating_sub(ms));
    }
    guard::local(text)
        .or_else(|_| guard::local(&format!("{text} 00:00")))
        .map_err(|_| "expected 30m, YYYY-MM-DD or \"YYYY-MM-DD HH:MM\"".to_owned())
}

/// Runs one verb.
pub async fn run(console: &Console, args: Logs) -> Outcome {
    let config = console.config()?;
    let dir = &config.paths.log;
    match args.verb {
        None => shown(console, &dir.join("nas_event_daemon.log"), &args.look).await,
        Some(Verb::Daemon(look)) => shown(console, &dir.join("nas_event_daemon.log"), &look).await,
        Some(Verb::Nas { id, look }) => {
            let path = of_nas(console, &config, NasId(id)).await?;
            shown(console, &path, &look).await
        }
        Some(Verb::Account { user, look }) => {
            let store = console.store(&config).await?;
            let abonent = account::abonent(store.as_ref(), user).await?;
            shown(console, &of_account(&config, abonent, user), &look).await
        }
        Some(Verb::Prune { older_than }) => prune(console, &config, older_than).await,
    }
}

/// The log of an account; an unknown abonent is 0.
pub fn of_account(config: &Config, abonent: Option<i64>, user: i64) -> PathBuf {
    let abonent = abonent.unwrap_or(0);
    let name = format!("abonents/{abonent}/event_{user}.log");
    config.paths.log.join(name)
}

/// The log of a NAS: names that look alike in the file system are told apart.
pub async fn of_nas(console: &Console, config: &Config, id: NasId) -> Result<PathBuf, Failed> {
    let rows = console.store(config).await?.nases().await?;
    let all = rows.iter().map(|row| match row {
        Ok(nas) => (nas.id, nas.name.as_str(), nas.ip.as_str()),
        Err(bad) => (bad.id, "", bad.ip.as_str()),
    });
    let name = log_file_names(all).remove(&id).ok_or_else(|| {
        Failed::new(
            NOT_FOUND,
            format!("there is no NAS {id}\nhint: nas list shows all"),
        )
        .numbered(301)
    })?;
    Ok(config.paths.log.join("nas_event_daemon").join(name))
}

/// Prints the last lines of a log that are wanted; with `follow` also what is written next, until
/// it is interrupted.
pub async fn shown(console: &Console, path: &Path, look: &Look) -> Outcome {
    let format = console.format();
    let rows = log_rows::is_rows(format);
    if look.follow && matches!(format, Format::Json) {
        return Err(Failed::new(
            USAGE,
            "one JSON document has an end, and a followed log has none\nhint: -o jsonl",
        ));
    }
    let most = look.lines.unwrap_or(if rows { LINES_MAX } else { LINES });
    let (last, log) = lines(path, look, most)?;
    print(console, last.iter().map(String::as_str));
    match log.filter(|_| look.follow) {
        Some(log) => follow(path, log, look, format).await,
        None => Ok(DONE),
    }
}

/// Prints lines of a log, as they are or as rows.
pub fn print<'a>(console: &Console, lines: impl Iterator<Item = &'a str>) {
    let format = console.format();
    if log_rows::is_rows(format) {
        say_all(&log_rows::text(lines, format));
    } else {
        lines.for_each(|line| say(one_line(line)));
    }
}

/// The last lines of a log that are wanted, at most `most`, also of what rotations have set aside;
/// and the log itself, read so far, if it is there.
pub fn lines(path: &Path, look: &Look, most: usize) -> Result<Lines, Failed> {
    let most = most.clamp(1, LINES_MAX);
    let older = read::rotated(path);
    let (mut last, log) = match File::open(path) {
        Ok(file) => {
            let mut log = BufReader::new(file);
            let last = wanted(&mut log, look, most).map_err(|e| missing(path, &e))?;
            (last, Some(log))
        }
        // Rotated, and nothing was written since.
        Err(e) if e.kind() == ErrorKind::NotFound && !older.is_empty() && !look.follow => {
            (VecDeque::new(), None)
        }
        Err(e) => return Err(missing(path, &e)),
    };
    for older in older {
        if last.len() >= most || look.since.is_some_and(|since| older.until_ms < since) {
            break;
        }
        let room = most.saturating_sub(last.len());
        match read::open(&older.path).and_then(|log| wanted(log, look, room)) {
            Ok(mut before) => {
                before.append(&mut last);
                last = before;
            }
            Err(e) => {
                let path = older.path.display();
                remark(format!("{path} is left out, it cannot be read: {e}"));
            }
        }
    }
    Ok((last, log))
}

fn wanted(mut log: impl BufRead, look: &Look, most: usize) -> std::io::Result<VecDeque<String>> {
    let wants = look.filter();
    let mut last = VecDeque::new();
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if !wants(&text) {
            continue;
        }
        if last.len() >= most {
            last.pop_front();
        }
        last.push_back(text);
    }
    Ok(last)
}

fn missing(path: &Path, e: &std::io::Error) -> Failed {
    let code = if e.kind() == ErrorKind::NotFound {
        NOT_FOUND
    } else {
        FAILED
    };
    Failed::new(
        code,
        format!(
            "{} cannot be read: {e}\nhint: a log begins with its first event; read it as the daemon's user",
            path.display()
        ),
    )
    .numbered(504)
}

/// Prints what is written next, until it is interrupted.
async fn follow(path: &Path, log: BufReader<File>, look: &Look, format: Format) -> Outcome {
    let missing = |e: std::io::Error| missing(path, &e);
    let wants = look.filter();
    let mut followed = Followed::new(path, log).map_err(missing)?;
    loop {
        while let Some(text) = followed.line().map_err(missing)? {
            if wants(&text) && log_rows::is_rows(format) {
                say_all(&log_rows::more(&text, format));
            } else if wants(&text) {
                say(one_line(&text));
            }
        }
        if !followed.goes_on().map_err(missing)? {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A log that others append to, rename and shorten, read from where it was read to.
struct Followed<'a> {
    path: &'a Path,
    log: BufReader<File>,
    inode: u64,
    /// The next file is in use: what this one holds by now is all that it will ever hold.
    left: bool,
    part: Vec<u8>,
}

impl<'a> Followed<'a> {
    fn new(path: &'a Path, log: BufReader<File>) -> std::io::Result<Self> {
        // Of the file that is read, not of the one that has its name by now.
        let inode = log.get_ref().metadata()?.ino();
        Ok(Self {
            path,
            log,
            inode,
            left: false,
            part: Vec::new(),
        })
    }

    /// The next whole line; none at the end of what is written.
    fn line(&mut self) -> std::io::Result<Option<String>> {
        self.log.read_until(b'\n', &mut self.part)?;
        if !self.part.ends_with(b"\n") {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&self.part).trim_end().to_owned();
        self.part.clear();
        Ok(Some(text))
    }

    /// At the end: whether there may be more to read at once.
    fn goes_on(&mut self) -> std::io::Result<bool> {
        if self.left {
            self.log = match File::open(self.path) {
                Ok(next) => BufReader::new(next),
                // Renamed, too, by now.
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            };
            self.inode = self.log.get_ref().metadata()?.ino();
            self.left = false;
            self.part.clear();
            return Ok(true);
        }
        let Ok(named) = std::fs::metadata(self.path) else {
            return Ok(false); // renamed, and nothing was written since
        };
        // A new file that is still empty was made by logrotate: the daemon writes to the old one
        // until it notices. And what it wrote there between our last line and this look is read
        // before the new one is opened.
        if named.ino() != self.inode {
            self.left = named.len() > 0;
            return Ok(self.left);
        }
        // Cut to nothing by copytruncate.
        if named.len() < self.log.stream_position()? {
            self.log.rewind()?;
            self.part.clear();
            return Ok(true);
        }
        Ok(false)
    }
}

async fn prune(console: &Console, config: &Config, older_than: Duration) -> Outcome {
    let dir = &config.paths.log;
    let failed = |e: std::io::Error| {
        Failed::new(
            FAILED,
            format!(
                "{} cannot be looked through: {e}\nhint: run it as the daemon's user",
                dir.display()
            ),
        )
    };
    if !console.dry_run {
        let old = logs::prune(dir, older_than, true).map_err(failed)?;
        let question = format!("remove {} files, {} bytes, for good?", old.files, old.bytes);
        if old.files > 0 && !console.not_refused(&question)? {
            remark("nothing was removed");
            return Ok(REFUSED);
        }
    }
    let pruned = logs::prune(dir, older_than, console.dry_run).map_err(failed)?;
    console.record(&[
        ("files", json!(pruned.files)),
        ("bytes", json!(pruned.bytes)),
        ("directories", json!(pruned.dirs)),
        ("failed", json!(pruned.failed)),
    ]);
    if console.dry_run {
        remark("dry run: nothing was removed");
    } else if pruned.files + pruned.dirs > 0 {
        let detail = format!(
            "older_than={older_than:?} files={} bytes={} directories={}",
            pruned.files, pruned.bytes, pruned.dirs
        );
        audited(console, config, &detail).await;
    }
    if let Some(first) = &pruned.first_failure {
        remark(format!("could not be removed: {first}"));
        return Ok(PART_FAILED);
    }
    Ok(DONE)
}

/// Without a database the logs are pruned all the same: a full disk may be why it is away.
async fn audited(console: &Console, config: &Config, detail: &str) {
    let written = async {
        let store = console.store(config).await?;
        store.audit(&who(), "logs_prune", detail).await?;
        Ok::<(), Failed>(())
    };
    if let Err(failed) = written.await {
        remark(format!(
            "the logs were pruned, but the audit does not know of it: {}",
            failed.text
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_rotation_takes_nothing_from_who_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let write = |name: &str, text: &str| {
            let mut options = File::options();
            let file = options.create(true).append(true);
            let mut file = file.open(dir.path().join(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let rename = |to: &str| std::fs::rename(&path, dir.path().join(to)).unwrap();
        write("a.log", "1\n");
        let log = BufReader::new(File::open(&path).unwrap());
        let mut followed = Followed::new(&path, log).unwrap();
        let lines = |followed: &mut Followed<'_>| -> Vec<String> {
            std::iter::from_fn(|| followed.line().unwrap()).collect()
        };
        assert_eq!(lines(&mut followed), ["1"]);
        // Written after the last look at the old file, and before the look at its name.
        write("a.log", "2\n");
        rename("a.log.1");
        write("a.log", "3\n");
        assert!(followed.goes_on().unwrap());
        assert_eq!(lines(&mut followed), ["2"]);
        assert!(followed.goes_on().unwrap());
        assert_eq!(lines(&mut followed), ["3"]);
        // logrotate made the new file, and the daemon has not noticed yet.
        rename("a.log.2");
        write("a.log", "");
        assert!(!followed.goes_on().unwrap());
        write("a.log.2", "4\n");
        assert_eq!(lines(&mut followed), ["4"]);
        write("a.log.2", "5\n");
        write("a.log", "6\nhal");
        assert_eq!(lines(&mut followed), ["5"]);
        assert!(followed.goes_on().unwrap());
        assert_eq!(lines(&mut followed), Vec::<String>::new());
        assert!(followed.goes_on().unwrap());
        assert_eq!(lines(&mut followed), ["6"]);
        assert!(!followed.goes_on().unwrap());
        write("a.log", "f\n");
        assert_eq!(lines(&mut followed), ["half"]);
        // copytruncate
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        write("a.log", "7\n");
        assert!(followed.goes_on().unwrap());
        assert_eq!(lines(&mut followed), ["7"]);
        // Renamed, and nothing was written since.
        rename("a.log.3");
        assert!(!followed.goes_on().unwrap());
    }

    #[test]
    fn a_log_that_was_renamed_before_it_is_followed_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        std::fs::write(&path, "1\n").unwrap();
        let log = BufReader::new(File::open(&path).unwrap());
        std::fs::rename(&path, dir.path().join("a.log.1")).unwrap();
        std::fs::write(&path, "2\n").unwrap();
        let mut followed = Followed::new(&path, log).unwrap();
        assert_eq!(followed.line().unwrap().as_deref(), Some("1"));
        while followed.line().unwrap().is_none() {
            assert!(followed.goes_on().unwrap());
        }
    }

    #[test]
    fn lines_are_chosen() {
        let line = "2026-03-01 10:00:00 host nas_event_daemon[1]: event=1 user=2 cmd=user_add try=1 end result=dead code=3 ms=1";
        assert!(Look::default().filter()(line));
        let errors = Look {
            errors: true,
            ..Look::default()
        };
        assert!(errors.filter()(line));
        assert!(!errors.filter()(
            &line.replace("result=dead", "result=done")
        ));
        let since = |text: &str| Look {
            since: Some(guard::local(text).unwrap()),
            ..Look::default()
        };
        assert!(since("2026-03-01 10:00").filter()(line));
        assert!(!since("2026-03-01 10:01").filter()(line));
        assert!(!since("2026-03-01 10:01").filter()(""));
        let to = |text: &str| Look {
            to: Some(guard::local(text).unwrap()),
            ..Look::default()
        };
        assert!(to("2026-03-01 10:01").filter()(line));
        assert!(!to("2026-03-01 10:00").filter()(line));
        let grep = |text: &str| Look {
            grep: Some(Regex::new(text).unwrap()),
            ..Look::default()
        };
        assert!(grep("user=2 .*code=3").filter()(line));
        assert!(!grep("user=3").filter()(line));
    }
}
