//! `run`: the daemon in the foreground; or what would keep it from working, and no daemon.

use clap::Args;

use super::exit::{DONE, Outcome};
use super::{Console, config, runtime};
use crate::daemon;

/// Whether to run at all.
#[derive(Debug, Args, Default)]
pub struct Run {
    /// Do what config check does, and end: 0, or 3 if anything is wrong
    #[arg(long)]
    check_config: bool,
}

/// Runs until a signal.
pub fn run(console: &Console, args: &Run) -> Outcome {
    let runtime = runtime()?;
    if args.check_config {
        return runtime.block_on(config::run(console, config::Verb::Check));
    }
    runtime.block_on(daemon::run_with_signals(console.config()?))?;
    Ok(DONE)
}
