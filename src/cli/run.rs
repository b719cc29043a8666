//! `run`: the daemon in the foreground; or what would keep it from working, and no daemon.

use clap::Args;

use super::exit::{DONE, Outcome};
use super::{Console, config, runtime};
use crate::daemon;
use crate::scheme::ride;

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
    let config = console.config()?;
    if let Err(e) = ride::link_config(&config.paths.run, console.file.as_deref()) {
        tracing::debug!("helpers in scripts will not find this configuration: {e}");
    }
    runtime.block_on(daemon::run_with_signals(config))?;
    Ok(DONE)
}
