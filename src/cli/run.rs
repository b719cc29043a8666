//! `run`: the daemon in the foreground.

use super::exit::{DONE, Outcome};
use super::runtime;
use crate::config::Config;
use crate::daemon;

/// Runs until a signal.
pub fn run(config: Config) -> Outcome {
    let runtime = runtime()?;
    runtime.block_on(daemon::run_with_signals(config))?;
    Ok(DONE)
}
