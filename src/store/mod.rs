//! The durable log: every promise of the daemon about events, in domain words. SQLite and
//! PostgreSQL keep it alike (`tests/store_contract/` runs the same body on both). The
//! database is the log, not the scheduler: `dispatch::lanes` decides what may run, the store
//! makes each transition a compare-and-set on (id, state, epoch, try).

pub mod about;
mod audit;
mod billing;
mod error;
mod nas_row;
mod operator;
pub mod postgres;
mod posts;
pub mod preview;
pub mod query;
pub mod rows;
pub mod sample;
pub mod sqlite;
mod statement;
mod url;
pub mod walk;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

pub use audit::{AuditRow, audit_rows, one_detail};
pub use error::Error;
pub use nas_row::is_host;
pub use operator::NEVER;
pub use posts::{Idempotency, Post, Posted};
pub use rows::{
    AccountFlags, Backlog, Cause, Counts, EventRow, Expansion, Filter, GuardOrder, OrderKind,
    SqlAnswer, Token, WhereIs,
};
pub use url::{shown_url, sqlite_file};
pub use walk::LOOK_MAX;

use crate::attempt::DoneResult;
use crate::clock;
use crate::event::{Cmd, CompactEvent, EventId, Params, StoredParams, UserId, Waiting};
use crate::nas::{BadNas, Nas, NasChange, NasId, NasSecret, NasState};

/// Who owns the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Number of its ownership; it grows with each.
    pub epoch: i64,
    /// `host pid=…`.
    pub holder: String,
    /// Age of its last sign of life, ms.
    pub seen_ms: i64,
}

/// Which owner may be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// One that gave no sign of life for so long, ms.
    Silence(i64),
    /// The one of this epoch, which is known to be dead. Of several daemons that saw it dead
    /// one gets the ownership; for the others the epoch is another one by then.
    Death(i64),
}

impl After {
    fn allows(self, owner: &Owner) -> bool {
        match self {
            Self::Silence(stale_ms) => owner.seen_ms >= stale_ms,
            Self::Death(epoch) => owner.epoch == epoch,
        }
    }
}

/// Short form.
pub type Result<T> = std::result::Result<T, Error>;

/// One writer turn: settles before starts, one transaction. Settling A and starting B of the
/// same lane is allowed in one turn; B executes only after the commit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Turn {
    /// Ownership epoch; nothing is written if it is not the current one.
    pub epoch: i64,
    /// Finished attempts, and waiting events that expired.
    pub settles: Vec<Settle>,
    /// Events to mark `running`.
    pub starts: Vec<EventId>,
    /// The same turn went out before and its answer was lost: a start that is `running` under
    /// this epoch was ours, and its try is not counted again.
    pub again: bool,
}

/// One event's way out of `running` (or out of waiting, if `try_count` is none).
#[derive(Debug, Clone, PartialEq)]
pub struct Settle {
    /// Event.
    pub id: EventId,
    /// Try that was claimed; the compare-and-set. `None` = the event was not running
    /// (expired or superseded while it waited).
    pub try_count: Option<u32>,
    /// Where it goes.
    pub to: SettleTo,
    /// Exit code, trap category or HTTP status; 0 = none.
    pub code: i32,
    /// Duration of the attempt, ms.
    pub ms: i64,
    /// Error text, without secrets.
    pub error: Option<String>,
}

/// Destination of a settled event.
#[derive(Debug, Clone, PartialEq)]
pub enum SettleTo {
    /// `events_done`.
    Done {
        /// Result word.
        result: DoneResult,
        /// Answer of an interactive command.
        answer: Option<String>,
        /// Hash of the scheme.
        scheme_hash: String,
    },
    /// Back to the stack, state `deferred`, not before this wall time.
    Deferred {
        /// Wall time, ms.
        until_ms: i64,
        /// It may have been applied.
        possible_duplicate: bool,
    },
    /// `events_dead`.
    Dead {
        /// Why, in one line.
        reason: String,
        /// It may have been applied: a retry of it says so.
        possible_duplicate: bool,
    },
    /// Back to `ready`; the try is not counted.
    Ready {
        /// It may have been applied.
        possible_duplicate: bool,
    },
}

/// What a turn really changed. What is missing here was fenced or is gone.
#[derive(Debug, Clone, Default)]
pub struct Turned {
    /// Settled ids.
    pub settled: Vec<EventId>,
    /// Started events with everything an attempt needs.
    pub started: Vec<Started>,
}

/// A started event, as it stands in the row that is now `running`.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    /// Event.
    pub id: EventId,
    /// Command.
    pub cmd: String,
    /// Account.
    pub user: Option<UserId>,
    /// Abonent.
    pub abonent: Option<i64>,
    /// Service.
    pub usluga: Option<i64>,
    /// Variables.
    pub params: StoredParams,
    /// Accepted at, wall ms.
    pub accepted_ms: i64,
    /// Number of this try, from 1.
    pub try_count: u32,
    /// May have been executed before.
    pub possible_duplicate: bool,
}

/// Everything that the daemon and its tools ask of a database.
#[async_trait]
pub trait Store: Send + Sync {
    // -- start-up ---------------------------------------------------------------------------

    /// Checks the billing's tables and views: one text per missing thing. Empty = fine.
    async fn check_billing(&self) -> Result<Vec<String>>;

    /// Becomes the owner (scope `all`) and returns the new epoch, or [`Error::Owned`] while
    /// there is one that may not be followed.
    async fn own(&self, holder: &str, after: After) -> Result<i64>;

    /// Who owns the database, dead or alive; none if it was given up.
    async fn owner(&self) -> Result<Option<Owner>>;

    /// Renews the sign of life. `false` = somebody else is the owner now.
    async fn still_own(&self, epoch: i64) -> Result<bool>;

    /// Gives the ownership up, so that the next daemon need not wait.
    async fn disown(&self, epoch: i64) -> Result<()>;

    /// Returns what an older epoch left `running` to `ready`, flagged `possible_duplicate`,
    /// with one more death. `max_deaths` deaths = dead. Returns (returned, buried).
    async fn recover(&self, epoch: i64, max_deaths: u32) -> Result<(u64, u64)>;

    // -- intake -----------------------------------------------------------------------------

    /// Puts events onto the compact stack: one transaction, all or nothing.
    async fn post(&self, events: &[CompactEvent], guard: Option<&Idempotency>) -> Result<Posted> {
        let who = None;
        let each = self.post_all(&[Post { events, guard, who }]).await?;
        let lost = || Error::Refused("the store does not say what a post did".to_owned());
        each.into_iter().next().ok_or_else(lost)?
    }

    /// The same for several posts in one transaction, with their rows in the audit table, and what
    /// each did in their order. One that is refused writes nothing and leaves the others alone; if
    /// the database fails, none is written.
    async fn post_all(&self, posts: &[Post<'_>]) -> Result<Vec<Result<Posted>>>;

    /// What a post of this key was answered, if there was one.
    async fn posted_before(&self, guard: &Idempotency) -> Result<Option<Posted>>;

    /// The posts of these keys will not be made again: lasting ones are kept like others now.
    async fn confirm_keys(&self, keys: &[String]) -> Result<()>;

    // -- expansion --------------------------------------------------------------------------

    /// Expands up to `limit` compact events (lowest ids first) in one transaction. `cmds` are
    /// the commands outside the catalogue that loaded schemes define.
    async fn expand(&self, limit: usize, cmds: &[Cmd]) -> Result<Expansion>;

    /// The same for the accounts that are to get access, with what was asked for them before,
    /// and for questions of operators: what is still taken while too much is waiting.
    async fn expand_urgent(&self, limit: usize, cmds: &[Cmd]) -> Result<Expansion>;

    /// Lets rows with an error be tried at once (settings changed).
    async fn retry_expansion(&self) -> Result<u64>;

    // -- dispatch ---------------------------------------------------------------------------

    /// Waiting events of one NAS with `id >= from`, ordered by id.
    async fn load(&self, nas: NasId, from: EventId, limit: usize) -> Result<Vec<Waiting>>;

    /// The first waiting events of each of these lanes, at most `limit` of each; those of one
    /// lane ordered by id.
    async fn refill(&self, lanes: &[(NasId, Option<UserId>)], limit: usize)
    -> Result<Vec<Waiting>>;

    /// The account's variables as they are now, without those that the event brought itself
    /// (`user_del` with old data keeps them, a RADIUS event its session). None = no such event,
    /// no account row any more, or an event of a service, which keeps all of its variables.
    async fn params_now(&self, event: EventId) -> Result<Option<Params>>;

    /// NASes that have anything on the main stack.
    async fn stacked_nases(&self) -> Result<Vec<NasId>>;

    /// One writer turn.
    async fn turn(&self, turn: &Turn) -> Result<Turned>;

    // -- the intent guard -------------------------------------------------------------------

    /// Whose orders these events of the main stack are, in the order of their ids.
    async fn causes(&self, ids: &[EventId]) -> Result<Vec<Cause>>;

    /// Marks events `held`, with the reason of each, unless they were ever started or the epoch
    /// is over; the ids that are held now.
    async fn hold(&self, epoch: i64, events: &[(EventId, String)]) -> Result<Vec<EventId>>;

    /// What operators have told the guard.
    async fn guard_orders(&self) -> Result<Vec<GuardOrder>>;

    /// Tells the guard something; the number of the order.
    async fn add_guard_order(&self, order: &GuardOrder) -> Result<i64>;

    /// Removes an order that was carried out or taken back; `false` = there is none.
    async fn remove_guard_order(&self, id: i64, kind: OrderKind) -> Result<bool>;

    // -- settings ---------------------------------------------------------------------------

    /// Every row of `nas`, checked one by one; its mode is the operator's, where one was said.
    async fn nases(&self) -> Result<Vec<std::result::Result<Nas, BadNas>>>;

    /// Operator's settings.
    async fn nas_states(&self) -> Result<BTreeMap<NasId, NasState>>;

    /// Changes one of the operator's settings of one NAS, and leaves the others.
    async fn change_nas(&self, nas: NasId, change: &NasChange) -> Result<()>;

    /// Replaces the learned SSH host key, if it still is `was`; `false` = it is another one.
    async fn set_host_key(&self, nas: NasId, was: Option<&str>, key: Option<&str>) -> Result<bool>;

    /// Credentials of one NAS; empty ones if there is no row.
    async fn secret(&self, nas: NasId) -> Result<NasSecret>;

    // -- looks and operators' changes -------------------------------------------------------

    /// Numbers for `event_count.sh`, `stack count` and the metrics.
    async fn counts(&self) -> Result<Counts>;

    /// How much waits, each stack counted up to `most` at the furthest: cheap to ask often.
    async fn backlog(&self, most: usize) -> Result<Backlog>;

    /// Events of one place, newest first, at most `filter.limit`.
    async fn events(&self, filter: &Filter) -> Result<Vec<EventRow>>;

    /// One event, wherever it is.
    async fn event(&self, id: EventId) -> Result<Option<EventRow>>;

    /// Columns of a model of the classic API; of the billing's as they were last read.
    fn columns(&self, model: query::Model) -> Vec<query::Column>;

    /// Rows of a model as objects of the wanted columns, times as `YYYY-MM-DD HH:MM:SS` UTC.
    async fn find(&self, query: &query::Query) -> Result<Vec<Map<String, Value>>>;

    /// How many rows fit, whatever limit and offset say.
    async fn count(&self, query: &query::Query) -> Result<i64>;

    /// Replaces what a producer gave of an event that still is on the compact stack, which is
    /// then tried at once. `false` = it has moved on, nothing was changed.
    async fn rewrite(&self, id: EventId, event: &CompactEvent) -> Result<bool>;

    /// Posts a dead event anew at its lane's tail with fresh PARAMS and marks it `retried_as`.
    /// If it may have been applied before it died, the new one carries `possible_duplicate`.
    /// Skips it (`None`) if it is not dead, was retried already, or its lane has a later
    /// state-changing event that is waiting or done.
    async fn retry_dead(&self, id: EventId) -> Result<Option<EventId>>;

    /// Says when each of these dead events is to be retried, wall ms. How many of them are dead and
    /// not retried yet. In their order and in pieces, so that nothing else waits long: an order that
    /// breaks off has dated its first ones.
    async fn retry_later(&self, dates: &[(EventId, i64)]) -> Result<u64>;

    /// The next dead events that are to be retried, with their times, the first one first; of two
    /// at one time the later event.
    async fn retries_due(&self, limit: usize) -> Result<Vec<(EventId, i64)>>;

    /// Forgets when a dead event was to be retried.
    async fn forgo_retry(&self, id: EventId) -> Result<()>;

    /// If the first retry is overdue, moves all on until it is due at `now_ms`: the time in which
    /// nobody was there to do them does not count, and they come as far apart as was wanted. How
    /// many were moved.
    async fn move_retries(&self, now_ms: i64) -> Result<u64>;

    /// Removes an event that is not running: to `events_done` with result `dropped`. With `state`
    /// (of a [`Filter`], not `running`) only if it is in that now, as the removal itself sees it.
    async fn drop_event(&self, id: EventId, state: Option<&str>, why: &str) -> Result<bool>;

    /// Flags of the accounts of a NAS (or of one account), for `resync`.
    async fn account_flags(
        &self,
        nas: Option<NasId>,
        user: Option<UserId>,
    ) -> Result<Vec<AccountFlags>>;

    /// Deletes at most `limit` done events finished before `before_ms`.
    async fn prune_done(&self, before_ms: i64, limit: usize) -> Result<u64>;

    /// Deletes at most `limit` rows of the audit from before `before_ms`, the oldest first.
    async fn prune_audit(&self, before_ms: i64, limit: usize) -> Result<u64>;

    // -- access -----------------------------------------------------------------------------

    /// Stores a token by its SHA-256.
    async fn add_token(&self, token: &Token) -> Result<()>;

    /// Every token, by name.
    async fn tokens(&self) -> Result<Vec<Token>> {
        Ok(Vec::new())
    }

    /// Takes a token back; `false` = there is none of this name.
    async fn remove_token(&self, _name: &str) -> Result<bool> {
        Ok(false)
    }

    /// Finds a token by its SHA-256.
    async fn token(&self, hash: &str) -> Result<Option<Token>>;

    /// Appends to the audit table.
    async fn audit(&self, who: &str, what: &str, detail: &str) -> Result<()>;

    /// Runs an operator's own statement; `nas_secret` and `token` are never readable, and
    /// nothing can be changed unless `write`.
    async fn sql(&self, statement: &str, write: bool) -> Result<SqlAnswer>;

    /// Whether [`Store::sql`] would refuse a statement for its words alone.
    fn sql_allowed(&self, statement: &str, write: bool) -> Result<()>;

    /// Writes a copy of the whole database as it stands at one moment into a new file, while the
    /// daemon goes on. Only where the database is a file.
    async fn backup(&self, _to: &std::path::Path) -> Result<()> {
        Err(Error::Refused(about::OWN_COPIES.to_owned()))
    }

    /// Tells a database that it came out of a copy: what waits in it may have been done since the
    /// copy was made (`possible_duplicate`), its ids go on far above those that were given since,
    /// and nobody owns it. Returns how many events wait.
    async fn restored(&self) -> Result<u64> {
        Err(Error::Refused(
            "this database cannot be restored".to_owned(),
        ))
    }

    /// Puts rows into tables of the sample billing, in one transaction; without `keep` it only says
    /// what that would do. What belongs to a billing is refused. `told` hears how many rows are in.
    async fn fill(
        &self,
        _all: &[sample::Filling],
        _keep: bool,
        _told: sample::Told<'_>,
    ) -> Result<Vec<sample::Filled>> {
        Err(Error::Refused(
            "this database has no sample billing".to_owned(),
        ))
    }

    /// Runs a script that fills the sample billing of the demo, which is always SQLite.
    async fn fill_sample(&self, _script: &str) -> Result<()> {
        Err(Error::Refused(
            "the demo's billing is an SQLite file".to_owned(),
        ))
    }
}

/// Notes how long the database took, the wait for its connection included.
async fn timed<T>(op: &'static str, work: impl Future<Output = T>) -> T {
    let began = clock::up_us();
    let out = work.await;
    let took = Duration::from_micros(clock::up_us().saturating_sub(began));
    metrics::histogram!("nas_event_daemon_db_query_duration_seconds", "op" => op)
        .record(took.as_secs_f64());
    out
}

/// Opens and migrates the database behind `url`.
pub async fn connect(url: &str) -> Result<Arc<dyn Store>> {
    if url.starts_with("sqlite:") {
        Ok(Arc::new(sqlite::Sqlite::open(url).await?))
    } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        Ok(Arc::new(postgres::Postgres::open(url).await?))
    } else {
        Err(Error::Refused(format!(
            "database url {} is neither sqlite://FILE nor postgres://USER@HOST/DATABASE",
            shown_url(url)
        )))
    }
}

/// Our own tables, from the files of one kind of database: version, name, text.
fn migrator(files: &[(i64, &'static str, &'static str)]) -> Migrator {
    let each = files.iter().map(|(version, name, text)| {
        let text = sqlx::AssertSqlSafe((*text).to_owned()).into_sql_str();
        Migration::new(
            *version,
            Cow::Borrowed(*name),
            MigrationType::Simple,
            text,
            false,
        )
    });
    Migrator::with_migrations(each.collect())
}

/// An error with its causes, one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(&format!(": {e}"));
        cause = e.source();
    }
    text
}
