//! The command line: one file per noun, each verb a call into the library. Bare call = `run`.
//! Called by another name (link or copy) the binary behaves as that command.

pub mod demo;
pub mod exit;
pub mod run;
pub mod stack;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::Config;
use exit::{Failed, Outcome};

/// Takes subscriber events from a billing and makes every NAS obey.
#[derive(Debug, Parser)]
#[command(name = "nas_event_daemon", version, about, long_about = None)]
pub struct Cli {
    /// Configuration file; default /etc/nas_event_daemon/nas_event_daemon.toml if it exists.
    #[arg(short, long, global = true, env = "NED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Nouns and verbs.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon in the foreground (the default).
    Run,
    /// Show the whole product in a temporary directory, with simulated NASes.
    Demo(demo::DemoArgs),
}

/// Runs the command line; the result is the exit code (design §6).
pub fn main() -> u8 {
    let cli = Cli::parse();
    exit::told(dispatch(cli))
}

fn dispatch(cli: Cli) -> Outcome {
    let config = || {
        Config::load(cli.config.as_deref(), std::env::vars())
            .map_err(|e| Failed::config(e.to_string()))
    };
    match cli.verb.unwrap_or(Verb::Run) {
        Verb::Run => run::run(config()?),
        Verb::Demo(args) => demo::demo(&args),
    }
}

/// A runtime for a verb that talks to the store or a server.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failed::new(1, format!("cannot start the runtime: {e}")))
}
