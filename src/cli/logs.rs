//! `logs …`: the end of a log, of the daemon, a NAS or an account, and what is written next;
//! removing what nobody will read any more. Works on the files, with and without a daemon.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use regex::Regex;
use serde_json::json;

use super::exit::{
    DONE, FAILED, Failed, NOT_FOUND, Outcome, PART_FAILED, USAGE, remark, say, say_all,
};
use super::table::{Format, one_line};
use super::{Console, account, guard, log_rows};
use crate::clock;
use crate::config::{Config, parse_duration};
pub use crate::intake::attempts::tail;
use crate::logs;
use crate::logs::read::TIME;
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
        /// Only count
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which lines.
#[derive(Debug, Args, Default)]
pub struct Look {
    /// The last N lines: 50, or all where -o makes rows of them
    #[arg(short = 'n', long, value_name = "N")]
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

fn since(text: &str) -> Result<i64, String> {
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
            let name = name_of(console, &config, NasId(id)).await?;
            let path = dir.join("nas_event_daemon").join(name);
            shown(console, &path, &look).await
        }
        Some(Verb::Account { user, look }) => {
            let store = console.store(&config).await?;
            let abonent = account::abonent(store.as_ref(), user).await?.unwrap_or(0);
            let name = format!("abonents/{abonent}/event_{user}.log");
            shown(console, &dir.join(name), &look).await
        }
        Some(Verb::Prune {
            older_than,
            dry_run,
        }) => prune(console, dir, older_than, dry_run),
    }
}

/// The file name of a NAS's log: names that look alike in the file system are told apart.
async fn name_of(console: &Console, config: &Config, id: NasId) -> Result<String, Failed> {
    let rows = console.store(config).await?.nases().await?;
    let all = rows.iter().map(|row| match row {
        Ok(nas) => (nas.id, nas.name.as_str(), nas.ip.as_str()),
        Err(bad) => (bad.id, "", bad.ip.as_str()),
    });
    log_file_names(all).remove(&id).ok_or_else(|| {
        Failed::new(
            NOT_FOUND,
            format!("there is no NAS {id}\nhint: nas list shows all"),
        )
        .numbered(301)
    })
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
    let missing = |e: std::io::Error| {
        let code = if e.kind() == std::io::ErrorKind::NotFound {
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
        ).numbered(504)
    };
    let mut reader = BufReader::new(std::fs::File::open(path).map_err(missing)?);
    let wants = look.filter();
    let mut last = VecDeque::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(missing)? > 0 {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if !wants(&text) {
            continue;
        }
        if last.len() >= most.clamp(1, LINES_MAX) {
            last.pop_front();
        }
        last.push_back(text);
    }
    if rows {
        say_all(&log_rows::text(last.iter().map(String::as_str), format));
    } else {
        last.iter().for_each(|line| say(one_line(line)));
    }
    if !look.follow {
        return Ok(DONE);
    }
    let mut ours = inode(path);
    loop {
        if reader.read_until(b'\n', &mut line).map_err(missing)? > 0 {
            if line.ends_with(b"\n") {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if wants(&text) && rows {
                    say_all(&log_rows::more(&text, format));
                } else if wants(&text) {
                    say(one_line(&text));
                }
            }
            continue;
        }
        let now = inode(path);
        if now.is_some() && now != ours {
            ours = now;
            reader = BufReader::new(std::fs::File::open(path).map_err(missing)?);
            continue;
        }
        // Cut to nothing by copytruncate.
        let read = reader.stream_position().map_err(missing)?;
        if std::fs::metadata(path).is_ok_and(|meta| meta.len() < read) {
            reader.rewind().map_err(missing)?;
            continue;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

fn prune(console: &Console, dir: &Path, older_than: Duration, dry_run: bool) -> Outcome {
    let pruned = logs::prune(dir, older_than, dry_run).map_err(|e| {
        Failed::new(
            FAILED,
            format!(
                "{} cannot be looked through: {e}\nhint: run it as the daemon's user",
                dir.display()
            ),
        )
    })?;
    console.record(&[
        ("files", json!(pruned.files)),
        ("bytes", json!(pruned.bytes)),
        ("directories", json!(pruned.dirs)),
        ("failed", json!(pruned.failed)),
    ]);
    if dry_run {
        remark("dry run: nothing was removed");
    }
    if let Some(first) = &pruned.first_failure {
        remark(format!("could not be removed: {first}"));
        return Ok(PART_FAILED);
    }
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

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
