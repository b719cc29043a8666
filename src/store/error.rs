//! What can go wrong with the database, and whose fault it is.

use std::borrow::Cow;

use super::{LOOK_MAX, Owner, postgres, sqlite};

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL, the file or the server cannot be opened.
    #[error("cannot open the database {url}")]
    Open {
        /// Without a password.
        url: String,
        /// Cause.
        #[source]
        source: sqlx::Error,
    },
    /// Our own tables cannot be brought up to date.
    #[error("cannot migrate the database {url}")]
    Migrate {
        /// Without a password.
        url: String,
        /// Cause.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// The billing's tables lack something that the daemon reads.
    #[error("the billing's tables do not fit: {0}")]
    Billing(String),
    /// Another daemon holds the database.
    #[error("the database is owned by {}, seen alive {} ms ago", .0.holder, .0.seen_ms)]
    Owned(Owner),
    /// A later owner has taken over; this process must stop.
    #[error("epoch {epoch} is over: another daemon owns the database now")]
    Fenced {
        /// Ours.
        epoch: i64,
    },
    /// A statement failed; may work later.
    #[error("{doing}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// Cause.
        #[source]
        source: sqlx::Error,
    },
    /// The request itself makes no sense.
    #[error("{0}")]
    Refused(String),
    /// A look-up was ended.
    #[error(
        "the look-up took longer than {} ms and was ended: narrow it by account, NAS or batch, by id (ids grow with time), or by fewer look-ups without an index",
        LOOK_MAX.as_millis()
    )]
    TooLong,
}

/// Characters of an SQLSTATE; SQLite's numbers are shorter.
const POSTGRES_CODE: usize = 5;

impl Error {
    /// Another process has held SQLite's write lock for longer than we waited
    /// (<https://sqlite.org/rescode.html#busy>).
    pub fn is_locked(&self) -> bool {
        const BUSY: i64 = 5;
        self.sqlite_code() == Some(BUSY)
    }

    /// The database has no room on its disk (<https://sqlite.org/rescode.html#full>, and
    /// PostgreSQL's appendix A, `disk_full`).
    pub fn is_full(&self) -> bool {
        const FULL: i64 = 13;
        self.sqlite_code() == Some(FULL) || self.code().as_deref() == Some("53100")
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Sql { source, .. } | Self::Open { source, .. } => {
                source.as_database_error()?.code()
            }
            Self::Migrate { .. }
            | Self::Billing(_)
            | Self::Owned(_)
            | Self::Fenced { .. }
            | Self::Refused(_)
            | Self::TooLong => None,
        }
    }

    /// The primary result code, in the lowest byte of the extended one.
    fn sqlite_code(&self) -> Option<i64> {
        let code = self.code().filter(|code| code.len() != POSTGRES_CODE)?;
        code.parse::<i64>().ok().map(|code| code % 256)
    }

    /// Whether the database refused one row of what was written, so that the rest may fit.
    pub fn blames_a_row(&self) -> bool {
        let Self::Sql { source, .. } = self else {
            return false;
        };
        let code = source.as_database_error().and_then(|error| error.code());
        match code {
            Some(code) if code.len() == POSTGRES_CODE => postgres::is_row_trouble(source),
            Some(_) => sqlite::is_row_trouble(source),
            None => false,
        }
    }
}
