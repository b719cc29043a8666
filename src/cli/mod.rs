//! The command line: one file per noun, each verb a call into the library. Bare call = `run`.
//! Called by another name (link or copy) the binary behaves as that command.

pub mod account;
pub mod bridge;
pub mod bulk;
pub mod bundle;
pub mod check;
pub mod classic;
pub mod config;
pub mod console;
pub mod ctl;
pub mod db;
pub mod demo;
pub mod doctor;
pub mod effects;
pub mod errors;
pub mod event;
pub mod event_end;
pub mod exit;
pub mod follow;
pub mod guard;
pub mod health;
pub mod import;
pub mod init;
pub mod listing;
pub mod log_rows;
pub mod logs;
pub mod manual;
pub mod migrate;
pub mod nas;
pub mod nas_diff;
pub mod nas_pause;
pub mod nas_show;
pub mod nas_test;
pub mod post;
pub mod progress;
pub mod reference;
pub mod rekey;
pub mod request;
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
pub mod verdict_device;
pub mod waiting;
pub mod why;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::Value;

pub use console::{ALONE, Console};
use exit::{DONE, Failed, Outcome, USAGE};
use listing::Listing;
use request::Request;
use table::Format;

/// Goes to the screen's first line and clears it (ECMA-48, CUP and ED).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";
/// Least pause between two looks of `--watch`; each is some queries.
const WATCH_LEAST: Duration = Duration::from_millis(200);

/// Takes subscriber events from a billing and makes every NAS obey.
#[derive(Debug, Parser)]
#[command(name = "nas_event_daemon", version, about, long_about = None)]
pub struct Cli {
    /// Configuration file; default /etc/nas_event_daemon/nas_event_daemon.toml if it exists.
    #[arg(short, long, global = true, env = "NED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How lists are printed; default: table on a terminal, plain (tabs, no header) in a pipe.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        env = "NED_OUTPUT"
    )]
    output: Option<Format>,
    /// Look again and again, every 2 s or so often; verbs that look only
    #[arg(short, long, global = true, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_parser = crate::config::parse_duration)]
    watch: Option<Duration>,
    #[command(flatten)]
    listing: Listing,
    /// Print the curl line that does the same, and do nothing
    #[arg(long, global = true)]
    show_request: bool,
    /// Say what would be done, and change nothing
    #[arg(long, global = true)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long, global = true)]
    yes: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Nouns and verbs.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon in the foreground (the default).
    Run(run::Run),
    /// Why an account is in the state it is in, and what to do: one screen.
    Why(why::Why),
    /// Numbers of the stacks and of every NAS.
    Status,
    /// Ask the daemon whether its loops turn: exit code 0 well, 4 not reached, 9 not well.
    Health {
        /// live: its loops turn; ready: it can work, the database answers
        #[arg(value_enum, default_value_t = health::Stage::Live)]
        stage: health::Stage,
    },
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
    /// Bring NASes and accounts of a file or of a foreign database into the sample billing.
    #[command(subcommand)]
    Import(import::Verb),
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
    /// What is wrong here, and what to do about it; a masked bundle for those who help.
    Doctor(doctor::Doctor),
    /// Make a first configuration and the database; nothing that is there is touched.
    Init(init::Init),
    /// The configuration: check, show.
    #[command(subcommand)]
    Config(config::Verb),
    /// The database.
    #[command(subcommand)]
    Db(db::Verb),
    /// Log files: follow, search, prune.
    Logs(logs::Logs),
    /// Tokens for the API.
    #[command(subcommand)]
    Token(token::Verb),
    /// Simulated NASes.
    #[command(subcommand)]
    Sim(sim::Verb),
    /// Show the whole product in a temporary directory, with simulated NASes.
    Demo(demo::DemoArgs),
    /// Completions for a shell, on standard output.
    Completions(manual::Completions),
    /// The manual pages: the first on standard output, or all into a directory.
    Man(manual::Man),
    /// The page of an error's number.
    Explain(errors::Explain),
    /// The description of the API (OpenAPI 3.1), as the daemon serves it.
    Openapi,
    /// The version.
    Version,
}

/// Runs the command line; the result is the exit code (design §6).
pub fn main() -> u8 {
    survived(|| called(std::env::args_os().collect()))
}

/// The exit code of `work`; if it panics, the one of a bug.
fn survived(work: impl FnOnce() -> u8) -> u8 {
    // Nothing of what it held is used afterwards: the process ends with the code.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        exit::told(Err(Failed::new(
            exit::BUG,
            "a bug of this program: what happened, and where, stands above\n\
             hint: please report it, with the file that doctor --bundle FILE writes",
        )))
    })
}

fn called(args: Vec<OsString>) -> u8 {
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
        _ => watched(&args),
    }
}

/// The verb among the words of a command line that cannot be read.
fn verb<'a>(words: &[&'a str]) -> Option<&'a str> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "-c" | "--config" | "-o" | "--output" => drop(words.next()),
            flag if flag.starts_with('-') => {}
            verb => return Some(verb),
        }
    }
    None
}

/// Runs a verb, with `--watch` again and again, until it is interrupted or nobody reads any more.
fn watched(args: &[OsString]) -> u8 {
    // `help NED-0201` is asked as naturally as `help pause`.
    let words: Vec<&str> = args.iter().skip(1).filter_map(|arg| arg.to_str()).collect();
    if let ["help", number] = words.as_slice()
        && errors::number(number).is_ok()
    {
        let cli = Cli::parse_from(["nas_event_daemon", "explain", number]);
        return exit::told(dispatch(cli));
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // A monitor knows no usage: 2 would be critical, and it reads the output only.
        Err(e) if e.use_stderr() && verb(&words) == Some("check") => {
            let text = e.to_string();
            let text = text.lines().next().unwrap_or_default();
            exit::say(format!("UNKNOWN - {}", table::one_line(text)));
            return check::UNKNOWN;
        }
        Err(e) => e.exit(),
    };
    let Some(pause) = cli.watch else {
        return exit::told(dispatch(cli));
    };
    if !cli.verb.as_ref().is_some_and(Verb::only_looks) {
        return exit::told(Err(Failed::new(
            USAGE,
            "--watch is for verbs that look only\nhint: status, nas list, event list, stack count, why, …",
        )));
    }
    let terminal = std::io::stdout().is_terminal();
    loop {
        exit::say_all(if terminal { CLEAR } else { "" });
        let code = exit::told(dispatch(Cli::parse_from(args)));
        if matches!(code, USAGE | exit::BAD_CONFIG) {
            return code;
        }
        // In a pipe a blank line ends each look.
        exit::say_all(if terminal { "" } else { "\n" });
        if exit::nobody_reads() {
            return DONE;
        }
        // The verb and its runtime have ended: nothing else runs here that this could hold up, and
        // Ctrl-C ends the process as ever.
        std::thread::sleep(pause.max(WATCH_LEAST));
    }
}

impl Verb {
    /// Whether it can be repeated without changing anything.
    fn only_looks(&self) -> bool {
        match self {
            Self::Why(args) => !args.asks_the_device(),
            Self::Status | Self::Health { .. } | Self::Audit(_) | Self::Stack(_) => true,
            Self::Event(verb) => matches!(
                verb,
                event::Verb::List(_)
                    | event::Verb::Show { .. }
                    | event::Verb::Describe { .. }
                    | event::Verb::Log { .. }
            ),
            Self::Account(verb) => {
                matches!(verb, account::Verb::Show { .. } | account::Verb::History(_))
            }
            Self::Nas(verb) => matches!(verb, nas::Verb::List | nas::Verb::Show { .. }),
            Self::Db(verb) => matches!(verb, db::Verb::Status),
            Self::Guard(verb) => matches!(verb, guard::Verb::List),
            _ => false,
        }
    }

    /// Whether it prints one list.
    fn lists(&self) -> bool {
        match self {
            Self::Audit(_) | Self::Stack(_) => true,
            Self::Event(verb) => matches!(verb, event::Verb::List(_)),
            Self::Account(verb) => matches!(verb, account::Verb::History(_)),
            Self::Nas(verb) => matches!(verb, nas::Verb::List),
            Self::Guard(verb) => matches!(verb, guard::Verb::List),
            Self::Scheme(verb) => matches!(verb, scheme::Verb::List | scheme::Verb::Vars { .. }),
            Self::Token(verb) => matches!(verb, token::Verb::List),
            _ => false,
        }
    }

    /// Whether it prints the end of a log, whose lines are counted as the rows of a list are.
    fn is_a_log(&self) -> bool {
        match self {
            Self::Logs(_) => true,
            Self::Account(verb) => matches!(verb, account::Verb::Log(_)),
            Self::Nas(verb) => matches!(verb, nas::Verb::Log { .. }),
            _ => false,
        }
    }

    /// Whether it shows what a daemon may know better than the database.
    fn looks_at_events(&self) -> bool {
        match self {
            Self::Why(_) => true,
            // It has a remark of its own, or speaks of nothing else.
            Self::Status | Self::Health { .. } | Self::Db(_) => false,
            // Out of the files, as ever.
            Self::Event(verb) => !matches!(verb, event::Verb::Log { .. }) && self.only_looks(),
            other => other.only_looks(),
        }
    }

    /// Whether `--dry-run` means something: the verb says what it would do, or only looks anyway.
    fn can_be_tried(&self) -> bool {
        match self {
            Self::Event(_)
            | Self::Account(_)
            | Self::Guard(_)
            | Self::Bridge(_)
            | Self::Import(_)
            | Self::Logs(_)
            | Self::Nas(_)
            | Self::Token(_)
            | Self::Init(_)
            | Self::Migrate(_)
            | Self::Config(_)
            | Self::Check(_)
            | Self::Completions(_)
            | Self::Explain(_)
            | Self::Openapi
            | Self::Version => true,
            Self::Db(verb) => !matches!(verb, db::Verb::Sql(_)),
            Self::Scheme(verb) => !matches!(verb, scheme::Verb::Test { .. }),
            Self::Why(_) | Self::Status | Self::Health { .. } | Self::Audit(_) | Self::Stack(_) => {
                self.only_looks()
            }
            Self::Run(_) | Self::Doctor(_) | Self::Sim(_) | Self::Demo(_) | Self::Man(_) => false,
        }
    }

    /// The calls of the API that do the same; none if none does.
    fn requests(&self, console: &Console) -> Result<Vec<Request>, Failed> {
        Ok(match self {
            Self::Status | Self::Check(_) => vec![Request::get("/api/v1/status")],
            Self::Health { stage } => vec![Request::get(stage.path())],
            Self::Event(verb) => verb.requests(console)?,
            Self::Stack(stack::Verb::List(args)) => args.requests(console)?,
            Self::Stack(stack::Verb::Count { .. }) => vec![Request::get("/api/v1/status")],
            Self::Account(verb) => verb.requests(),
            Self::Nas(verb) => verb.requests(),
            Self::Logs(args) => args.requests(),
            Self::Audit(args) => vec![args.request(console)?],
            Self::Openapi => vec![Request::get("/api/openapi.json")],
            _ => Vec::new(),
        })
    }
}

fn dispatch(cli: Cli) -> Outcome {
    let mut console = Console {
        file: cli.config,
        output: cli.output,
        dry_run: cli.dry_run,
        yes: cli.yes,
        listing: cli.listing,
        looks: cli.verb.as_ref().is_some_and(Verb::looks_at_events),
        ..Console::default()
    };
    if cli.verb.is_none() && std::io::stderr().is_terminal() {
        exit::remark(
            "no verb: this is run, the daemon in the foreground; nas_event_daemon help names the verbs",
        );
    }
    let verb = cli.verb.unwrap_or_else(|| Verb::Run(run::Run::default()));
    if verb.is_a_log() {
        // Its own lines were counted, not the rows of a list.
        console.listing.limit = None;
    }
    if console.listing.is_asked() && !verb.lists() {
        return Err(Failed::new(
            USAGE,
            "--columns, --sort, --match, --limit and --no-headers are for verbs that print one list\nhint: nas list, event list, account history, audit, …",
        ));
    }
    if cli.dry_run && !verb.can_be_tried() {
        return Err(Failed::new(
            USAGE,
            "this verb has no --dry-run: nothing was done\nhint: help VERB says what it does",
        ));
    }
    if cli.show_request {
        return request::show(&console.config()?, &verb.requests(&console)?);
    }
    let outcome = match verb {
        Verb::Run(args) => run::run(&console, &args),
        Verb::Why(args) => runtime()?.block_on(why::why(&console, args)),
        Verb::Status => runtime()?.block_on(health::status(&console)),
        Verb::Health { stage } => runtime()?.block_on(health::health(&console, stage)),
        Verb::Event(verb) => runtime()?.block_on(event::run(&console, verb)),
        Verb::Account(verb) => runtime()?.block_on(account::run(&console, verb)),
        Verb::Audit(args) => runtime()?.block_on(bulk::audit(&console, args)),
        Verb::Check(args) => runtime()?.block_on(check::check(&console, args)),
        Verb::Nas(verb) => runtime()?.block_on(nas::run(&console, verb)),
        Verb::Bridge(args) => runtime()?.block_on(bridge::bridge(&console, args)),
        Verb::Import(verb) => runtime()?.block_on(import::run(&console, verb)),
        Verb::Migrate(verb) => runtime()?.block_on(migrate::run(&console, verb)),
        Verb::Guard(verb) => runtime()?.block_on(guard::run(&console, verb)),
        Verb::Stack(verb) => runtime()?.block_on(stack::run(&console, verb)),
        Verb::Scheme(verb) => runtime()?.block_on(scheme::run(&console, verb)),
        Verb::Doctor(args) => runtime()?.block_on(doctor::doctor(&console, args)),
        Verb::Init(args) => runtime()?.block_on(init::init(&console, args)),
        Verb::Config(verb) => runtime()?.block_on(config::run(&console, verb)),
        Verb::Db(verb) => runtime()?.block_on(db::run(&console, verb)),
        Verb::Logs(args) => runtime()?.block_on(logs::run(&console, args)),
        Verb::Token(verb) => runtime()?.block_on(token::run(&console, verb)),
        Verb::Sim(verb) => runtime()?.block_on(sim::run(verb)),
        Verb::Demo(args) => demo::demo(&args),
        Verb::Completions(args) => manual::completions(&args),
        Verb::Explain(args) => errors::explain(&console, &args),
        Verb::Man(args) => manual::man(&args),
        Verb::Openapi => {
            let document = crate::intake::openapi::document();
            exit::say(serde_json::to_string_pretty(&document).unwrap_or_default());
            Ok(DONE)
        }
        Verb::Version => {
            let version = Value::from(env!("CARGO_PKG_VERSION"));
            if console.wants_data() {
                console.record(&[("version", version)]);
            } else {
                exit::say(concat!("nas_event_daemon ", env!("CARGO_PKG_VERSION")));
            }
            Ok(DONE)
        }
    };
    match console.wrong.into_inner() {
        Ok(Some(wrong)) => Err(Failed::new(USAGE, wrong)),
        Ok(None) | Err(_) => outcome,
    }
}

/// Why something is changed, for the audit table.
#[derive(Debug, Args, Default, Clone)]
pub struct Reason {
    /// Why, for those who look later; kept in the audit
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub reason: String,
}

impl Reason {
    /// The detail of a row of the audit, with the reason if there is one.
    pub fn of(&self, detail: &str) -> String {
        match self.reason.as_str() {
            "" => detail.to_owned(),
            why => format!("{detail} why={why:?}"),
        }
    }

    /// For a body of the API.
    pub fn field(&self) -> (&'static str, Value) {
        let why = Some(&self.reason).filter(|why| !why.is_empty());
        ("why", serde_json::json!(why))
    }
}

/// What somebody gave, for the audit and for people; `-` is nothing.
pub fn given<T: std::fmt::Debug>(value: &Option<T>) -> String {
    let shown = value.as_ref().map(|value| format!("{value:?}"));
    shown.unwrap_or_else(|| "-".to_owned())
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
    fn a_panic_is_a_bug_and_has_its_code() {
        assert_eq!(survived(|| 5), 5);
        assert_eq!(survived(|| panic!("planted")), exit::BUG);
    }
}
