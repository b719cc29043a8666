//! `logs …`: removing what nobody will read any more.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::Console;
use super::exit::{DONE, FAILED, Failed, Outcome, PART_FAILED, remark};
use crate::config::parse_duration;
pub use crate::intake::attempts::tail;
use crate::logs;

/// Verbs of logs.
#[derive(Debug, Subcommand)]
pub enum Verb {
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

/// Runs one verb.
pub fn run(console: &Console, verb: Verb) -> Outcome {
    let Verb::Prune {
        older_than,
        dry_run,
    } = verb;
    let config = console.config()?;
    let dir = &config.paths.log;
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
