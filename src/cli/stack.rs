//! `stack count`, and the classic `event_count.sh`: how much waits. Needs the database only.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::json;

use super::exit::{DONE, Outcome, say_all};
use super::sqlexec::{Align, isql_table};
use super::table::{Format, Table};
use super::{Console, event, runtime};
use crate::store::Counts;

/// Verbs of the stacks.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The events themselves: the same as event list.
    List(event::List),
    /// How many events wait.
    Count {
        /// By NAS and state, or by command; default: by command, with the compact stack
        #[arg(long, value_enum)]
        by: Option<By>,
        /// The two blocks of event_count.sh
        #[arg(long, conflicts_with = "by")]
        classic: bool,
    },
}

/// What to count by.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum By {
    /// NAS and state.
    Nas,
    /// Command.
    Cmd,
}

/// The classic name takes no arguments; what it takes here is ours.
#[derive(Debug, Parser)]
#[command(
    name = "event_count.sh",
    version,
    about = "Events of both stacks, as the original counts them"
)]
struct EventCount {
    /// Configuration file.
    #[arg(short, long, env = "NED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// By NAS and state, not the two classic blocks
    #[arg(long)]
    by_nas: bool,
    /// As rows, not as the two classic blocks
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

/// Its description, for the manual.
pub fn command() -> clap::Command {
    <EventCount as clap::CommandFactory>::command()
}

/// `event_count.sh`.
pub fn event_count(args: Vec<OsString>) -> Outcome {
    let asked = EventCount::parse_from(args);
    let console = Console {
        file: asked.config,
        output: asked.output,
        ..Console::default()
    };
    let verb = Verb::Count {
        by: asked.by_nas.then_some(By::Nas),
        classic: !asked.by_nas && asked.output.is_none(),
    };
    runtime()?.block_on(run(&console, verb))
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let (by, classic) = match verb {
        Verb::List(args) => return event::list(console, args).await,
        Verb::Count { by, classic } => (by, classic),
    };
    let store = console.store(&console.config()?).await?;
    let counts = store.counts().await?;
    if classic {
        say_all(&self::classic(&counts));
        return Ok(DONE);
    }
    let table = match by {
        None => {
            let mut table = Table::new(&["stack", "cmd", "count"]);
            table.push(vec![json!("compact"), json!(null), json!(counts.compact)]);
            for (cmd, count) in &counts.main {
                table.push(vec![json!("main"), json!(cmd), json!(count)]);
            }
            table.push(vec![json!("dead"), json!(null), json!(counts.dead)]);
            table
        }
        Some(By::Cmd) => {
            let mut table = Table::new(&["cmd", "count"]);
            for (cmd, count) in &counts.main {
                table.push(vec![json!(cmd), json!(count)]);
            }
            table
        }
        Some(By::Nas) => {
            let mut table = Table::new(&["nas", "state", "count"]);
            for (nas, state, count) in &counts.by_nas {
                table.push(vec![json!(nas), json!(state), json!(count)]);
            }
            table
        }
    };
    console.list(&table);
    Ok(DONE)
}

/// The two blocks: a title each, then a table as the SQL prompt of the original prints it.
pub fn classic(counts: &Counts) -> String {
    let compact = isql_table(
        &[("COUNT", Align::Number)],
        &[vec![Some(counts.compact.to_string())]],
    );
    let mut rows: Vec<_> = counts.main.clone();
    rows.sort();
    let rows: Vec<Vec<Option<String>>> = rows
        .into_iter()
        .map(|(cmd, count)| vec![Some(count.to_string()), Some(cmd)])
        .collect();
    let main = isql_table(
        &[("COUNT", Align::Number), ("EVENT_TYPE", Align::Name)],
        &rows,
    );
    format!("# compact stack\nTOTAL\n{compact}# main stack\n{main}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_blocks_to_the_byte() {
        let mut counts = Counts {
            main: vec![("user_add".into(), 12), ("b_negbal".into(), 1)],
            ..Counts::default()
        };
        assert_eq!(
            classic(&counts),
            "# compact stack\nTOTAL\n\
             \n                COUNT\n=====================\n                    0\n\n\
             # main stack\n\
             \n                COUNT EVENT_TYPE\n===================== ===============================\
             \n                    1 b_negbal\n                   12 user_add\n\n"
        );
        counts.main.clear();
        counts.compact = 1_234_567;
        let text = classic(&counts);
        assert!(text.contains("\n              1234567\n"), "{text}");
        assert!(
            text.ends_with("EVENT_TYPE\n===================== ===============================\n\n")
        );
    }
}
