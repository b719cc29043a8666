//! `migrate …`: whether a NAS may be handed over. `compare` holds what the classic daemon sent,
//! from its logs, against what observe mode rendered, NAS by NAS, by effect.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Console;
use super::effects::{Accounts, Effects, Match};
use super::exit::{DONE, FAILED, Failed, NOT_FOUND, Outcome, UNHEALTHY, remark};
use super::table::Table;
use crate::nas::{NasId, log_file_names};
use crate::store::Store;
use crate::store::query::{Bound, Condition, Group, Model, Query, Test};

/// Largest log that is read, bytes: a month of a busy NAS.
const LOG_MAX: u64 = 1024 * 1024 * 1024;
/// Accounts read at once.
const PAGE: usize = 1_000;

/// Verbs of moving in.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Commands in the classic daemon's NAS logs against those of ours, by effect.
    Compare(Compare),
}

/// Which logs.
#[derive(Debug, Args)]
pub struct Compare {
    /// Directory with the logs of the classic daemon, <name>_<ip>.log
    #[arg(long, value_name = "DIR")]
    old_log: PathBuf,
    /// Only this NAS
    #[arg(long, value_name = "ID")]
    nas: Option<i64>,
    /// Only what was sent since "YYYY-MM-DD HH:MM:SS" (or the beginning of one)
    #[arg(long, default_value = "", value_name = "TIME")]
    from: String,
    /// Only what was sent until then
    #[arg(long, default_value = "", value_name = "TIME")]
    to: String,
    /// List what is not the same, instead of the numbers
    #[arg(long)]
    differences: bool,
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let Verb::Compare(args) = verb;
    compare(console, &args).await
}

const NUMBERS: &[&str] = &[
    "nas",
    "name",
    "ip",
    "old",
    "ours",
    "same",
    "different",
    "missing",
    "extra",
    "match_percent",
    "note",
];
const DIFFERENCES: &[&str] = &["nas", "verdict", "account", "what", "old", "ours"];

async fn compare(console: &Console, args: &Compare) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let accounts = accounts(store.as_ref()).await?;
    let old = logs_in(&args.old_log)?;
    let rows = store.nases().await?;
    let names = log_file_names(rows.iter().map(|row| match row {
        Ok(nas) => (nas.id, nas.name.as_str(), nas.ip.as_str()),
        Err(bad) => (bad.id, "", bad.ip.as_str()),
    }));
    let mut numbers = Table::new(NUMBERS);
    let mut list = Table::new(DIFFERENCES);
    let (mut seen, mut alike) = (0, true);
    for row in &rows {
        let (id, name, ip) = match row {
            Ok(nas) => (nas.id, nas.name.as_str(), nas.ip.as_str()),
            Err(bad) => (bad.id, "", bad.ip.as_str()),
        };
        if args.nas.is_some_and(|wanted| NasId(wanted) != id) {
            continue;
        }
        seen += 1;
        let file = names.get(&id).map_or("", String::as_str);
        let theirs = old_log(&old, file, ip);
        let ours = config.paths.log.join("nas_event_daemon").join(file);
        let (Some(theirs), true) = (theirs, ours.exists()) else {
            let note = if theirs.is_none() {
                "no old log"
            } else {
                "no log of ours"
            };
            let mut cells = vec![json!(id), json!(name), json!(ip)];
            cells.resize(NUMBERS.len() - 1, Value::Null);
            cells.push(json!(note));
            numbers.push(cells);
            alike = false;
            continue;
        };
        // A later time is greater as text; one that is given short means its end.
        let to = if args.to.is_empty() {
            String::new()
        } else {
            format!("{}~", args.to)
        };
        let read = |file: &Path| -> Result<Effects, Failed> {
            Ok(Effects::read(&text(file)?, &accounts, &args.from, &to))
        };
        let (theirs, ours) = (read(theirs)?, read(&ours)?);
        let mut counts = [0_u64; 4];
        for ((who, what), verdict, was, is) in Effects::compare(&theirs, &ours) {
            if let Some(count) = counts.get_mut(verdict as usize) {
                *count += 1;
            }
            if verdict != Match::Same {
                alike = false;
                list.push(vec![
                    json!(id),
                    json!(verdict.as_str()),
                    json!(who),
                    json!(what),
                    json!(was.map(|s| s.to_string())),
                    json!(is.map(|s| s.to_string())),
                ]);
            }
        }
        let [same, different, missing, extra] = counts;
        let percent = (same * 100).checked_div(counts.iter().sum());
        // What was not compared is not the same.
        alike &= percent.is_some();
        numbers.push(vec![
            json!(id),
            json!(name),
            json!(ip),
            json!(theirs.commands),
            json!(ours.commands),
            json!(same),
            json!(different),
            json!(missing),
            json!(extra),
            json!(percent),
            json!(if percent.is_none() {
                "nothing to compare"
            } else {
                ""
            }),
        ]);
    }
    if seen == 0 {
        return Err(
            Failed::new(NOT_FOUND, "there is no such NAS\nhint: nas list shows all").numbered(301),
        );
    }
    console.list(if args.differences { &list } else { &numbers });
    if !alike && !args.differences {
        remark("not everything is the same: --differences lists what is not");
    }
    Ok(if alike { DONE } else { UNHEALTHY })
}

/// The classic daemon's log of a NAS: of the same name, else the one that ends in its address.
fn old_log<'a>(old: &'a [PathBuf], file: &str, ip: &str) -> Option<&'a Path> {
    let named = |path: &&PathBuf| path.file_name().is_some_and(|name| name == file);
    let end = format!("_{ip}.log");
    let ends = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.ends_with(&end))
    };
    old.iter()
        .find(named)
        .or_else(|| old.iter().find(ends))
        .map(PathBuf::as_path)
}

fn logs_in(dir: &Path) -> Result<Vec<PathBuf>, Failed> {
    let fail = |e: std::io::Error| {
        Failed::new(
            NOT_FOUND,
            format!(
                "--old-log {}: {e}\nhint: the classic daemon's var/log/nas_event_daemon, with a file per NAS",
                dir.display()
            ),
        )
        .numbered(504)
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        files.push(entry.map_err(fail)?.path());
    }
    files.sort();
    Ok(files)
}

fn text(file: &Path) -> Result<String, Failed> {
    let fail = |why: String| Failed::new(FAILED, format!("{}: {why}", file.display()));
    let size = std::fs::metadata(file)
        .map_err(|e| fail(e.to_string()))?
        .len();
    if size > LOG_MAX {
        return Err(fail(format!(
            "larger than {LOG_MAX} bytes: give a part of it"
        )));
    }
    let bytes = std::fs::read(file).map_err(|e| fail(e.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Addresses and logins of every account, page by page.
async fn accounts(store: &dyn Store) -> Result<Accounts, Failed> {
    let known = store.columns(Model::Users);
    let wanted = ["id", "login", "ip", "addresses"];
    let columns: Vec<String> = wanted
        .iter()
        .filter(|name| known.iter().any(|c| c.name == **name))
        .map(|name| (*name).to_owned())
        .collect();
    let mut accounts = Accounts::default();
    let mut last = None;
    loop {
        // From where the page before ended: to skip what was read takes the longer the more it is.
        let after = last.map(|id| Condition {
            path: Vec::new(),
            column: "id".to_owned(),
            test: Test::Above(Bound::Integer(id)),
        });
        let query = Query {
            groups: vec![Group {
                negated: false,
                all: after.into_iter().collect(),
            }],
            columns: columns.clone(),
            limit: PAGE,
            unbounded: true,
            ..Query::all(Model::Users)
        };
        let rows = store.find(&query).await?;
        let before = last;
        for row in &rows {
            let Some(id) = row.get("id").and_then(Value::as_i64) else {
                continue;
            };
            last = Some(id);
            let listed = row.get("addresses").and_then(Value::as_array);
            let listed = listed.into_iter().flatten().filter_map(Value::as_str);
            let own = ["ip", "login"]
                .iter()
                .filter_map(|name| row.get(*name)?.as_str());
            accounts.add(id, listed.chain(own));
        }
        if rows.len() < PAGE || last == before {
            return Ok(accounts);
        }
    }
}
