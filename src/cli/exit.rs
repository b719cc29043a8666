//! Exit codes and error texts of our own commands.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use super::errors;
use crate::store::{self, chain};

/// Set once stdout could not be written.
static GONE: AtomicBool = AtomicBool::new(false);

/// Done (also "nothing to do").
pub const DONE: u8 = 0;
/// Failed, the reason is on stderr.
pub const FAILED: u8 = 1;
/// Usage, or a confirmation is missing.
pub const USAGE: u8 = 2;
/// The configuration, the database's shape or a scheme is wrong.
pub const BAD_CONFIG: u8 = 3;
/// Daemon, server or database not reachable.
pub const NOT_REACHABLE: u8 = 4;
/// Not found.
pub const NOT_FOUND: u8 = 5;
/// Refused: wrong state, no right, another daemon owns the database.
pub const REFUSED: u8 = 6;
/// Timed out waiting; the work goes on.
pub const TIMED_OUT: u8 = 7;
/// Part of a bulk failed.
pub const PART_FAILED: u8 = 8;
/// A check says unhealthy, lint found something.
pub const UNHEALTHY: u8 = 9;
/// A bug.
pub const BUG: u8 = 70;

/// What to do about a database that stays locked.
pub const LOCKED: &str = "another process holds the database's write lock: a daemon that was stopped (kill -CONT lets \
     it go on, kill -KILL ends it), a prompt or a backup with an open transaction; fuser FILE names it";

/// A verb that did not do what was asked.
#[derive(Debug)]
pub struct Failed {
    /// Exit code.
    pub code: u8,
    /// What happened, where, why; `hint: …` on a line of its own.
    pub text: String,
    /// Number of its page; none = the usual one of the exit code.
    pub number: Option<u16>,
}

/// What a verb returns: an exit code of its own, or a failure with a text.
pub type Outcome = Result<u8, Failed>;

impl Failed {
    /// With any code.
    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            number: None,
        }
    }

    /// With a page of its own (`errors`).
    pub fn numbered(mut self, number: u16) -> Self {
        self.number = Some(number);
        self
    }

    /// A NAS that the daemon does not serve, for its row or its scheme.
    pub fn skipped(nas: impl Display, reason: impl Display) -> Self {
        Self::config(format!("NAS {nas} is skipped: {reason}")).numbered(302)
    }

    /// Bad configuration.
    pub fn config(text: impl Into<String>) -> Self {
        Self::new(BAD_CONFIG, text)
    }
}

impl From<store::Error> for Failed {
    fn from(error: store::Error) -> Self {
        let number = number_of(&error);
        let (code, hint) = match &error {
            store::Error::Open { .. } | store::Error::Sql { .. } if error.is_locked() => {
                (NOT_REACHABLE, LOCKED)
            }
            store::Error::Open { .. } => (
                NOT_REACHABLE,
                "check database.url, that the server runs (or the directory exists and is writable), and the rights",
            ),
            store::Error::Migrate { .. } => (
                BAD_CONFIG,
                "the database may be newer than this program; restore the matching version",
            ),
            store::Error::Billing(_) => (
                BAD_CONFIG,
                "docs/operate.md, \"The billing's tables\", lists what must be there",
            ),
            store::Error::Owned(_) | store::Error::Fenced { .. } => (
                REFUSED,
                "only one daemon may work on a database: stop the other one first",
            ),
            store::Error::Refused(_) => (REFUSED, ""),
            store::Error::TooLong => (USAGE, "sqlexec reads without this limit"),
            store::Error::Sql { .. } => (FAILED, "the database log says more"),
        };
        let mut text = chain(&error);
        if !hint.is_empty() {
            text.push_str("\nhint: ");
            text.push_str(hint);
        }
        Self {
            code,
            text,
            number: Some(number),
        }
    }
}

fn number_of(error: &store::Error) -> u16 {
    match error {
        store::Error::Open { .. } => 201,
        store::Error::Migrate { .. } => 202,
        store::Error::Billing(_) => 203,
        store::Error::Owned(_) => 204,
        store::Error::Fenced { .. } => 205,
        store::Error::Sql { .. } => 206,
        store::Error::Refused(_) => 207,
        store::Error::TooLong => 208,
    }
}

/// Writes the failure to stderr and gives the exit code.
pub fn told(outcome: Outcome) -> u8 {
    match outcome {
        Ok(code) => code,
        Err(failed) => {
            let number = failed.number.unwrap_or_else(|| errors::usual(failed.code));
            let number = errors::shown(number);
            let _ = writeln!(std::io::stderr(), "error[{number}]: {}", failed.text);
            failed.code
        }
    }
}

/// Writes a line to stdout; a reader that went away is no error.
pub fn say(line: impl AsRef<str>) {
    noted(writeln!(std::io::stdout(), "{}", line.as_ref()));
}

/// Writes a line to stderr.
pub fn remark(line: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
}

/// Writes lines that are already ended to stdout.
pub fn say_all(text: &str) {
    noted(std::io::stdout().write_all(text.as_bytes()));
    noted(std::io::stdout().flush());
}

/// Whether the reader of stdout went away.
pub fn nobody_reads() -> bool {
    GONE.load(Ordering::Relaxed)
}

fn noted(written: std::io::Result<()>) {
    if written.is_err() {
        GONE.store(true, Ordering::Relaxed);
    }
}
