//! `sqlexec` (also `db sql`): the operator's own SQL, printed as the SQL prompt of the original
//! (isql) prints it, in its two shapes: a table, and `set list`.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Parser};

use super::exit::{DONE, FAILED, Failed, Outcome, USAGE, remark, say_all};
use super::table::one_line;
use super::{Console, runtime, who};
use crate::store::{Error, NEVER, SqlAnswer};

/// Widths as isql has them: a number has 20 digits and a sign, a name 31 letters.
const NUMBER_WIDTH: usize = 21;
const NAME_WIDTH: usize = 31;
/// Longest text of statements, bytes: a script of an operator, not a dump.
const TEXT_MAX: u64 = 16 * 1024 * 1024;

/// What to run.
#[derive(Debug, Args)]
pub struct Sql {
    /// Statements, separated by semicolons; default: standard input
    #[arg(value_name = "SQL", conflicts_with = "file")]
    statements: Option<String>,
    /// Read the statements from a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Let statements change things; each is noted in the audit before it runs
    #[arg(long)]
    write: bool,
}

#[derive(Debug, Parser)]
#[command(
    name = "sqlexec",
    version,
    about = "Runs SQL statements on the daemon's database"
)]
struct Sqlexec {
    /// Configuration file.
    #[arg(short, long, env = "NED_CONFIG", value_name = "CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    sql: Sql,
}

/// Its description, for the manual.
pub fn command() -> clap::Command {
    <Sqlexec as clap::CommandFactory>::command()
}

/// `sqlexec …`.
pub fn by_name(args: Vec<OsString>) -> Outcome {
    let parsed = Sqlexec::parse_from(args);
    let console = Console {
        file: parsed.config,
        ..Console::default()
    };
    runtime()?.block_on(run(&console, parsed.sql))
}

/// Runs the statements.
pub async fn run(console: &Console, args: Sql) -> Outcome {
    let text = match (args.statements, &args.file) {
        (Some(text), _) => text,
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|e| Failed::new(USAGE, format!("{} cannot be read: {e}", file.display())))?,
        (None, None) => {
            let mut text = String::new();
            let mut stdin = std::io::stdin().lock().take(TEXT_MAX);
            stdin
                .read_to_string(&mut text)
                .map_err(|e| Failed::new(FAILED, format!("standard input: {e}")))?;
            text
        }
    };
    let store = console.store(&console.config()?).await?;
    let mut list = false;
    for statement in statements(&text) {
        if let Some(on) = set_list(&statement, list) {
            list = on;
            continue;
        }
        let fail = |error| refused(error, args.write);
        if args.write {
            // Before it: who is killed in the middle has changed something. What is refused for its
            // words is not noted, for it may hold the secret that it was refused for.
            store.sql_allowed(&statement, true).map_err(fail)?;
            store.audit(&who(), "sql", &statement).await?;
        }
        let answer = store.sql(&statement, args.write).await;
        if let (Err(error), true) = (&answer, args.write) {
            let detail = crate::store::chain(error);
            // What went wrong is what he asked for, also where it cannot be noted.
            if let Err(unnoted) = store.audit(&who(), "sql_failed", &detail).await {
                let why = crate::store::chain(&unnoted);
                remark(format!("the failure is not in the audit: {why}"));
            }
        }
        let answer = answer.map_err(fail)?;
        if answer.columns.is_empty() {
            if answer.changed > 0 {
                remark(format!("{} rows changed", answer.changed));
            }
        } else if list {
            say_all(&listed(&answer));
        } else {
            say_all(&tabled(&answer));
        }
    }
    Ok(DONE)
}

/// As in the original, whatever is wrong with a statement is exit code 1.
fn refused(error: Error, write: bool) -> Failed {
    let hint = if write {
        "the database's own prompt (psql, sqlite3) does it"
    } else {
        "--write lets statements change things"
    };
    match error {
        Error::Refused(text) if text.contains(NEVER) => Failed::new(
            FAILED,
            format!(
                "{text}\nhint: passwords are read and changed in the billing, or at the database's own prompt"
            ),
        ),
        Error::Refused(text) => Failed::new(FAILED, format!("{text}\nhint: {hint}")),
        other => other.into(),
    }
}

/// `set list`, `set list on`, `set list off`: the only commands of isql that are understood.
fn set_list(statement: &str, now: bool) -> Option<bool> {
    let words: Vec<String> = statement
        .split_whitespace()
        .map(str::to_ascii_lowercase)
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["set", "list"] => Some(!now),
        ["set", "list", "on"] => Some(true),
        ["set", "list", "off"] => Some(false),
        _ => None,
    }
}

/// Splits at semicolons that are outside quotes and comments; empty statements are left out.
fn statements(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut current = String::new();
    let mut chars = text.chars().peekable();
    let mut has_code = false;
    while let Some(c) = chars.next() {
        match c {
            ';' => {
                if has_code {
                    found.push(current.trim().to_owned());
                }
                current.clear();
                has_code = false;
                continue;
            }
            '\'' | '"' => {
                current.push(c);
                for inner in chars.by_ref() {
                    current.push(inner);
                    if inner == c {
                        break;
                    }
                }
                has_code = true;
                continue;
            }
            '-' if chars.peek() == Some(&'-') => {
                for inner in chars.by_ref() {
                    if inner == '\n' {
                        break;
                    }
                }
                current.push('\n');
                continue;
            }
            '/' if chars.peek() == Some(&'*') => {
                let mut last = ' ';
                chars.next();
                for inner in chars.by_ref() {
                    if last == '*' && inner == '/' {
                        break;
                    }
                    last = inner;
                }
                current.push(' ');
                continue;
            }
            _ => {}
        }
        has_code |= !c.is_whitespace();
        current.push(c);
    }
    if has_code {
        found.push(current.trim().to_owned());
    }
    found
}

/// How a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// To the right, as wide as the longest number.
    Number,
    /// To the left, as wide as the longest name.
    Name,
    /// To the left, as wide as what it holds.
    Text,
}

/// A table between two empty lines, with a row of `=` under the header; NULL is `<null>`.
pub fn isql_table(columns: &[(&str, Align)], rows: &[Vec<Option<String>>]) -> String {
    let shown: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(value).collect())
        .collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, (name, align))| {
            let least = match align {
                Align::Number => NUMBER_WIDTH,
                Align::Name => NAME_WIDTH,
                Align::Text => 1,
            };
            let cells = shown.iter().filter_map(|row| row.get(i));
            let longest = cells.map(|c| c.chars().count()).max().unwrap_or(0);
            longest.max(name.chars().count()).max(least)
        })
        .collect();
    let line = |cells: &[String]| {
        let mut text = String::new();
        for ((cell, (_, align)), width) in cells.iter().zip(columns).zip(&widths) {
            match align {
                Align::Number => text.push_str(&format!("{cell:>width$} ")),
                Align::Name | Align::Text => text.push_str(&format!("{cell:<width$} ")),
            }
        }
        format!("{}\n", text.trim_end())
    };
    let mut out = String::from("\n");
    let names: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    out.push_str(&line(&names));
    let rule: Vec<String> = widths.iter().map(|width| "=".repeat(*width)).collect();
    out.push_str(&format!("{}\n", rule.join(" ")));
    for row in &shown {
        out.push_str(&line(row));
    }
    out.push('\n');
    out
}

fn value(value: &Option<String>) -> String {
    value
        .as_deref()
        .map_or_else(|| "<null>".to_owned(), one_line)
}

fn tabled(answer: &SqlAnswer) -> String {
    let names: Vec<String> = answer.columns.iter().map(|c| c.to_uppercase()).collect();
    let columns: Vec<(&str, Align)> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let mut cells = answer.rows.iter().filter_map(|row| row.get(i)).flatten();
            let number = answer
                .rows
                .iter()
                .any(|row| row.get(i).is_some_and(Option::is_some))
                && cells.all(|text| text.parse::<f64>().is_ok());
            (
                name.as_str(),
                if number { Align::Number } else { Align::Text },
            )
        })
        .collect();
    isql_table(&columns, &answer.rows)
}

/// `NAME` padded to 32, then the value; an empty line before the first row and after each.
fn listed(answer: &SqlAnswer) -> String {
    let mut out = String::from("\n");
    for row in &answer.rows {
        for (name, cell) in answer.columns.iter().zip(row) {
            let name = name.to_uppercase();
            let line = format!("{name:<NAME_WIDTH$} {}", value(cell));
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_split_outside_quotes_and_comments() {
        assert_eq!(
            statements("set list; select ';' as \"a;b\" -- x;y\n from t /* ; */ ;;\n; select 1"),
            ["set list", "select ';' as \"a;b\" \n from t", "select 1"]
        );
        assert_eq!(statements(" -- nothing;\n ; "), Vec::<String>::new());
        assert_eq!(statements("select 'it''s;'"), ["select 'it''s;'"]);
        assert_eq!(statements("select 'open; "), ["select 'open;"]);
    }

    #[test]
    fn set_list_switches() {
        assert_eq!(set_list("SET  List", false), Some(true));
        assert_eq!(set_list("set list", true), Some(false));
        assert_eq!(set_list("set list on", false), Some(true));
        assert_eq!(set_list("set list off", true), Some(false));
        assert_eq!(set_list("select 1", false), None);
    }

    fn answer() -> SqlAnswer {
        SqlAnswer {
            columns: vec!["id".into(), "name".into()],
            rows: vec![
                vec![Some("7".into()), Some("a\nb".into())],
                vec![Some("-80".into()), None],
            ],
            changed: 0,
        }
    }

    #[test]
    fn both_shapes() {
        assert_eq!(
            tabled(&answer()),
            "\n                   ID NAME\n===================== ======\n\
             \x20                   7 a\\nb\n                  -80 <null>\n\n"
        );
        assert_eq!(
            listed(&answer()),
            "\nID                              7\nNAME                            a\\nb\n\n\
             ID                              -80\nNAME                            <null>\n\n"
        );
    }
}
