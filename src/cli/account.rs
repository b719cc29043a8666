//! `account …`: what an account shall have and had, its log; set right what a NAS holds of it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::event::time;
use super::exit::{DONE, FAILED, Failed, NOT_FOUND, Outcome, say};
use super::table::{Table, one_line};
use super::{Console, resync};
use crate::event::UserId;
use crate::store::query::{Model, Query};
use crate::store::{Filter, Store};

/// Rows of one page of the history; the store's own limit.
const PAGE: usize = 1000;
/// Most lines that `log` keeps.
const LINES_MAX: usize = 100_000;
/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Verbs of accounts.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// What the billing wants of an account, and what waits for it.
    Show {
        /// users.id
        user: i64,
    },
    /// The account's log, its end first.
    Log(LogArgs),
    /// Every event of an account that is still kept, oldest first.
    History(History),
    /// Post the commands that the account's flags call for.
    Resync {
        /// users.id
        user: i64,
        /// Say what would be posted
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which lines.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// users.id
    user: i64,
    /// The last N lines
    #[arg(short = 'n', long, default_value_t = 50, value_name = "N")]
    lines: usize,
    /// Go on with what is written next
    #[arg(short, long)]
    follow: bool,
}

/// Which events.
#[derive(Debug, Args)]
pub struct History {
    /// users.id
    user: i64,
    /// Not before: YYYY-MM-DD or "YYYY-MM-DD HH:MM:SS", UTC
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<i64>,
    /// Before: the same forms
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<i64>,
}

fn moment(text: &str) -> Result<i64, String> {
    crate::intake::compact::time_ms(text)
        .ok_or_else(|| "expected YYYY-MM-DD or YYYY-MM-DD HH:MM:SS, UTC".to_owned())
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    match verb {
        Verb::Show { user } => show(console, store.as_ref(), user).await,
        Verb::Log(args) => {
            let abonent = abonent(store.as_ref(), args.user).await?.unwrap_or(0);
            let name = format!("abonents/{abonent}/event_{}.log", args.user);
            log(&config.paths.log.join(name), args.lines, args.follow).await
        }
        Verb::History(args) => history(console, store.as_ref(), args).await,
        Verb::Resync { user, dry_run } => {
            let whom = resync::Whom::Account(UserId(user));
            resync::resync(console, &config, store, whom, None, dry_run).await
        }
    }
}

async fn show(console: &Console, store: &dyn Store, user: i64) -> Outcome {
    let flags = store.account_flags(None, Some(UserId(user))).await?;
    let Some(flags) = flags.into_iter().next() else {
        return Err(Failed::new(
            NOT_FOUND,
            format!(
                "there is no account {user}\nhint: users.id of the billing is asked for, not the abonent"
            ),
        ));
    };
    let filter = Filter {
        user: Some(user),
        limit: PAGE,
        ..Filter::default()
    };
    let waiting = store.events(&filter).await?;
    let names: Vec<String> = waiting
        .iter()
        .map(|row| format!("{} {} {}", row.id, row.cmd, row.state))
        .collect();
    console.record(&[
        ("account", json!(user)),
        ("abonent", json!(abonent(store, user).await?)),
        ("nas", json!(flags.nas_id)),
        ("deleted", json!(flags.deleted)),
        ("accept", json!(flags.accept)),
        ("redirect", json!(flags.redirect)),
        ("has_rate", json!(flags.rated)),
        ("wants", json!(resync::commands(&flags).join(", "))),
        ("waiting", json!(names.join("; "))),
    ]);
    Ok(DONE)
}

/// The account's abonent, as the billing has it.
async fn abonent(store: &dyn Store, user: i64) -> Result<Option<i64>, Failed> {
    let mut query = Query::one_of(Model::Users, user);
    if store
        .columns(Model::Users)
        .iter()
        .any(|c| c.name == "abonent_id")
    {
        query.columns.push("abonent_id".to_owned());
    }
    let row = store.find(&query).await?.pop().unwrap_or_default();
    Ok(row.get("abonent_id").and_then(Value::as_i64))
}

const HISTORY: &[&str] = &[
    "id", "accepted", "ended", "cmd", "state", "nas", "source", "batch", "tries", "code", "ms",
    "error",
];

async fn history(console: &Console, store: &dyn Store, args: History) -> Outcome {
    let mut filter = Filter {
        state: Some("all".to_owned()),
        user: Some(args.user),
        limit: PAGE,
        ..Filter::default()
    };
    let mut rows = Vec::new();
    loop {
        let page = store.events(&filter).await?;
        filter.before = page.last().map(|row| row.id.0);
        let full = page.len() >= PAGE;
        rows.extend(page);
        if !full {
            break;
        }
    }
    rows.retain(|row| {
        args.from.is_none_or(|from| row.event_date_ms >= from)
            && args.to.is_none_or(|to| row.event_date_ms < to)
    });
    rows.reverse();
    let mut table = Table::new(HISTORY);
    for row in &rows {
        table.push(vec![
            json!(row.id),
            time(Some(row.event_date_ms)),
            time(row.ended_ms),
            json!(row.cmd),
            json!(row.state),
            json!(row.nas_id),
            json!(row.source),
            json!(row.batch_id),
            json!(row.try_count),
            json!(row.code),
            json!(row.ms),
            json!(row.error),
        ]);
    }
    console.list(&table);
    Ok(DONE)
}

/// Prints the last lines of a log; with `follow` also what is written next, also after a rotation,
/// until it is interrupted.
pub async fn log(path: &std::path::Path, lines: usize, follow: bool) -> Outcome {
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
        )
    };
    let mut reader = BufReader::new(std::fs::File::open(path).map_err(missing)?);
    let mut last = VecDeque::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(missing)? > 0 {
        if last.len() >= lines.clamp(1, LINES_MAX) {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
    last.iter().for_each(|line| say(one_line(line)));
    if !follow {
        return Ok(DONE);
    }
    let mut ours = inode(path);
    loop {
        if reader.read_until(b'\n', &mut line).map_err(missing)? > 0 {
            if line.ends_with(b"\n") {
                say(one_line(String::from_utf8_lossy(&line).trim_end()));
                line.clear();
            }
            continue;
        }
        let now = inode(path);
        if now.is_some() && now != ours {
            ours = now;
            reader = BufReader::new(std::fs::File::open(path).map_err(missing)?);
            continue;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn inode(path: &std::path::Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}
