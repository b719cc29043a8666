//! The command line: one file per noun, each verb a call into the library. Bare call = `run`.
//! Called by another name (link or copy) the binary behaves as that command.

pub mod account;
pub mod bridge;
pub mod bulk;
pub mod check;
pub mod classic;
pub mod config;
pub mod ctl;
pub mod demo;
pub mod effects;
pub mod event;
pub mod exit;
pub mod follow;
pub mod guard;
pub mod health;
pub mod logs;
pub mod migrate;
pub mod nas;
pub mod nas_diff;
pub mod nas_test;
pub mod post;
pub mod rekey;
pub mod resync;
pub mod run;
pub mod scheme;
pub mod scheme_new;
pub mod scheme_run;
pub mod scheme_test;
pub mod scheme_vars;
pub mod send_http;
pub mod send_mikrotik;
pub mod send_radius;
pub mod send_ssh;
pub mod send_telnet;
pub mod sim;
pub mod sqlexec;
pub mod stack;
pub mod table;
pub mod token;
pub mod verdict;
pub mod waiting;
pub mod why;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Parser, Subcommand};
use serde_json::Value;

use crate::config::Config;
use crate::store::{self, Store, shown_url};
use exit::{DONE, Failed, NOT_REACHABLE, Outcome};
use table::Format;

/// Takes subscriber events from a billing and makes every NAS obey.
#[derive(Debug, Parser)]
#[command(name = "nas_event_daemon", version, about, long_about = None)]
pub struct Cli {
    /// Configuration file; default /etc/nas_event_daemon/nas_event_daemon.toml if it exists.
    #[arg(short, long, global = true, env = "NED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How lists are printed; default: table on a terminal, plain (tabs, no header) in a pipe.
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Nouns and verbs.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon in the foreground (the default).
    Run,
    /// Why an account is in the state it is in, and what to do: one screen.
    Why(why::Why),
    /// Numbers of the stacks and of every NAS.
    Status,
    /// Ask the daemon whether its loops turn: exit code 0 well, 4 not reached, 9 not well.
    Health,
    /// Events: post, look, retry, drop.
    #[command(subcommand)]
    Event(event::Verb),
    /// Accounts: look, log, history; set right what a NAS holds of one.
    #[command(subcommand)]
    Account(account::Verb),
    /// Who changed what.
    Audit(bulk::Audit),
    /// One line for Nagios and its relatives, with their exit codes.
    Check(check::Check),
    /// NASes: look, pause, test, set right.
    #[command(subcommand)]
    Nas(nas::Verb),
    /// Take the events of a foreign stack (Firebird, PostgreSQL, MySQL).
    Bridge(bridge::Bridge),
    /// Moving in from the classic daemon: compare what both send.
    #[command(subcommand)]
    Migrate(migrate::Verb),
    /// The intent guard: held events, announced batches.
    #[command(subcommand)]
    Guard(guard::Verb),
    /// The event stacks in numbers.
    #[command(subcommand)]
    Stack(stack::Verb),
    /// Schemes: look, check, see what would be sent.
    #[command(subcommand)]
    Scheme(scheme::Verb),
    /// The configuration: check, show.
    #[command(subcommand)]
    Config(config::Verb),
    /// The database.
    #[command(subcommand)]
    Db(sqlexec::Verb),
    /// Log files.
    #[command(subcommand)]
    Logs(logs::Verb),
    /// Tokens for the API.
    #[command(subcommand)]
    Token(token::Verb),
    /// Simulated NASes.
    #[command(subcommand)]
    Sim(sim::Verb),
    /// Show the whole product in a temporary directory, with simulated NASes.
    Demo(demo::DemoArgs),
    /// The version.
    Version,
}

/// Runs the command line; the result is the exit code (design §6).
pub fn main() -> u8 {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args
        .first()
        .and_then(|name| Path::new(name).file_name())
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .to_owned();
    match name.as_str() {
        "event_count.sh" => exit::told(stack::event_count(args)),
        "sqlexec" => exit::told(sqlexec::by_name(args)),
        "send_mikrotik_cmd" => send_mikrotik::by_name(args),
        "send_http_cmd" => send_http::by_name(args),
        "send_ssh_cmd" | "ssh_send" => send_ssh::by_name(args),
        "send_telnet_cmd" => send_telnet::by_name(args),
        "send_radius_cmd" => send_radius::by_name(args),
        _ => exit::told(dispatch(Cli::parse_from(args))),
    }
}

fn dispatch(cli: Cli) -> Outcome {
    let console = Console {
        file: cli.config,
        output: cli.output,
    };
    match cli.verb.unwrap_or(Verb::Run) {
        Verb::Run => run::run(console.config()?),
        Verb::Why(args) => runtime()?.block_on(why::why(&console, args)),
        Verb::Status => runtime()?.block_on(health::status(&console)),
        Verb::Health => runtime()?.block_on(health::health(&console)),
        Verb::Event(verb) => runtime()?.block_on(event::run(&console, verb)),
        Verb::Account(verb) => runtime()?.block_on(account::run(&console, verb)),
        Verb::Audit(args) => runtime()?.block_on(bulk::audit(&console, args)),
        Verb::Check(args) => runtime()?.block_on(check::check(&console, args)),
        Verb::Nas(verb) => runtime()?.block_on(nas::run(&console, verb)),
        Verb::Bridge(args) => runtime()?.block_on(bridge::bridge(&console, args)),
        Verb::Migrate(verb) => runtime()?.block_on(migrate::run(&console, verb)),
        Verb::Guard(verb) => runtime()?.block_on(guard::run(&console, verb)),
        Verb::Stack(verb) => runtime()?.block_on(stack::run(&console, verb)),
        Verb::Scheme(verb) => runtime()?.block_on(scheme::run(&console, verb)),
        Verb::Config(verb) => runtime()?.block_on(config::run(&console, verb)),
        Verb::Db(verb) => runtime()?.block_on(sqlexec::run(&console, verb)),
        Verb::Logs(verb) => logs::run(&console, verb),
        Verb::Token(verb) => runtime()?.block_on(token::run(&console, verb)),
        Verb::Sim(verb) => runtime()?.block_on(sim::run(verb)),
        Verb::Demo(args) => demo::demo(&args),
        Verb::Version => {
            let version = Value::from(env!("CARGO_PKG_VERSION"));
            match console.output {
                Some(Format::Json | Format::Jsonl | Format::Csv) => {
                    console.record(&[("version", version)]);
                }
                Some(Format::Table | Format::Plain) | None => {
                    exit::say(concat!("nas_event_daemon ", env!("CARGO_PKG_VERSION")));
                }
            }
            Ok(DONE)
        }
    }
}

/// Where a verb reads its settings from and how it prints.
#[derive(Debug, Default)]
pub struct Console {
    /// `--config` or `NED_CONFIG`.
    pub file: Option<PathBuf>,
    /// `--output`.
    pub output: Option<Format>,
}

impl Console {
    /// The effective configuration.
    pub fn config(&self) -> Result<Config, Failed> {
        Config::load(self.file.as_deref(), std::env::vars())
            .map_err(|e| Failed::config(e.to_string()))
    }

    /// How to print: as asked, else by what stdout is.
    pub fn format(&self) -> Format {
        self.output.unwrap_or_else(|| {
            if std::io::stdout().is_terminal() {
                Format::Table
            } else {
                Format::Plain
            }
        })
    }

    /// Prints one thing, a line per property (or one object).
    pub fn record(&self, properties: &[(&'static str, Value)]) {
        exit::say_all(&table::record(self.format(), properties));
    }

    /// Prints a list.
    pub fn list(&self, table: &table::Table) {
        exit::say_all(&table.text(self.format()));
    }

    /// Opens the database. An SQLite file that is not there is never made by a tool: a
    /// mistyped path would look like an empty stack.
    pub async fn store(&self, config: &Config) -> Result<Arc<dyn Store>, Failed> {
        let url = &config.database.url;
        if let Some(path) = sqlite_file(url)
            && !path.exists()
        {
            return Err(Failed::new(
                NOT_REACHABLE,
                format!(
                    "cannot open the database {}: there is no such file\n\
                     hint: check database.url (config show); the daemon makes the file when it starts",
                    shown_url(url)
                ),
            ));
        }
        Ok(store::connect(url).await?)
    }
}

/// The file behind an SQLite URL; none for a server or a database in memory.
pub fn sqlite_file(url: &str) -> Option<&Path> {
    let rest = url.strip_prefix("sqlite:")?;
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let path = rest.split('?').next().unwrap_or_default();
    (!path.is_empty() && !path.contains(":memory:")).then(|| Path::new(path))
}

/// Who changes something from the command line, for the audit table.
pub fn who() -> String {
    format!("cli:uid:{}", nix::unistd::getuid())
}

/// A runtime for a verb that talks to the store or a server.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failed::new(1, format!("cannot start the runtime: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_file_of_a_url() {
        assert_eq!(
            sqlite_file("sqlite:///a/b.db?mode=rw"),
            Some(Path::new("/a/b.db"))
        );
        assert_eq!(sqlite_file("sqlite:b.db"), Some(Path::new("b.db")));
        assert_eq!(sqlite_file("sqlite::memory:"), None);
        assert_eq!(sqlite_file("postgres://u@h/d"), None);
    }
}
