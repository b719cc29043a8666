//! PostgreSQL: production. One connection for writer turns and one for expansion, so that the
//! two run side by side, each opened again after it broke; a small pool for the rest. Arrays
//! instead of IN lists keep every statement one prepared statement.

mod billing;
mod compact;
mod connection;
mod decide;
mod expand;
mod guard;
mod hot;
mod later;
mod look;
mod model;
mod nas;
mod owner;
mod sample;
mod stack;

pub(super) use expand::is_row_trouble;
pub use look::list_text;

use std::borrow::Cow;
use std::future::Future;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};

use self::connection::{CONNECT_TIMEOUT, Reopening};
use super::rows::kept_ms;
use super::{
    AccountFlags, After, Backlog, Cause, Counts, Error, EventRow, Expansion, Filter, GuardOrder,
    Idempotency, LOOK_MAX, OrderKind, Owner, Post, Posted, Result, SqlAnswer, Store, Token, Turn,
    Turned, shown_url, timed,
};
use crate::event::{Cmd, CompactEvent, EventId, Params, UserId, Waiting};
use crate::nas::{BadNas, Nas, NasChange, NasId, NasSecret, NasState};
use crate::store::query::{Column, Model, Query};
use crate::store::sample::{Filled, Filling, Told};

/// Connections for intake, tools and settings at once; the server's own limit is often 100.
const POOL: u32 = 8;
/// Look-ups at once; the next ones wait.
const LOOKERS: u32 = 4;
/// The server ends a statement of ours that runs longer.
const STATEMENT_TIMEOUT: &str = "30s";
/// The server ends a transaction of ours that waits longer: a forgotten one keeps vacuum from
/// cleaning the queue tables.
const IDLE_TIMEOUT: &str = "30s";
/// Longest wait for one call; only a dead line reaches it, for the server's own limit is lower.
const CALL_LIMIT: Duration = Duration::from_secs(90);
/// The writer finds every row by its key. The planner, which sees the queue now empty and now
/// full, must not come to think otherwise: a scan of the bloat, once per turn, is a standstill.
const BY_KEY: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
];
/// Prepared statements kept by one connection.
const STATEMENTS: usize = 200;

/// The production store.
pub struct Postgres {
    options: PgConnectOptions,
    writer: Reopening<stack::Doubt>,
    expander: Reopening<expand::Doubt>,
    pool: PgPool,
    /// Look-ups of people and of the billing: what no index helps may read a million rows, and
    /// holds neither a connection that the daemon needs nor its caller.
    lookers: PgPool,
    billing: std::sync::RwLock<billing::Shape>,
    /// Epoch of the ownership that was taken through this store; 0 = none.
    owned: AtomicI64,
}

/// Maps a failed statement to what was being done.
fn sql(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |source| Error::Sql { doing, source }
}

/// SQL for a time as wall ms; NULL stays NULL.
fn ms_of(column: &str) -> String {
    format!("(date_part('epoch', {column}) * 1000)::bigint")
}

/// Text as PostgreSQL can keep it: a NUL character becomes U+FFFD. For texts of devices and
/// people that must be stored whatever they hold; what producers post is refused instead.
fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// What a look-up that failed means: the server ends it at [`LOOK_MAX`].
fn look_failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    // query_canceled: PostgreSQL's manual, "PostgreSQL Error Codes".
    const ENDED: &str = "57014";
    move |source| {
        let code = source.as_database_error().and_then(|error| error.code());
        if code.is_some_and(|code| code == ENDED) {
            Error::TooLong
        } else {
            sql(doing)(source)
        }
    }
}

impl Postgres {
    /// Connects, migrates our tables, creates the sample billing where none of its names exists.
    pub async fn open(url: &str) -> Result<Self> {
        let fail = |source| Error::Open {
            url: shown_url(url),
            source,
        };
        // Statements are not logged: they carry what producers and devices wrote. Zone and style
        // are fixed, for the text of a value must not depend on the server's settings.
        let options = PgConnectOptions::from_str(url)
            .map_err(fail)?
            .application_name("nas_event_daemon")
            .statement_cache_capacity(STATEMENTS)
            .options([
                ("statement_timeout", STATEMENT_TIMEOUT),
                ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
                ("timezone", "UTC"),
                ("datestyle", "ISO"),
                // Compiling a statement takes longer than any of ours runs.
                ("jit", "off"),
            ])
            .disable_statement_logging();
        let mut conn = connection::open(&options).await.map_err(fail)?;
        migrator()
            .run_direct(None, &mut conn, false)
            .await
            .map_err(|source| Error::Migrate {
                url: shown_url(url),
                source,
            })?;
        billing::create_sample(&mut conn).await?;
        let shape = billing::Shape::read(&mut conn).await?;
        let pool = PgPoolOptions::new()
            .max_connections(POOL)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(options.clone());
        let limit = format!("{}ms", LOOK_MAX.as_millis());
        let lookers = PgPoolOptions::new()
            .max_connections(LOOKERS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(options.clone().options([("statement_timeout", limit)]));
        Ok(Self {
            writer: Reopening::new(options.clone().options(BY_KEY), None),
            expander: Reopening::new(options.clone(), Some(conn)),
            options,
            pool,
            lookers,
            billing: std::sync::RwLock::new(shape),
            owned: AtomicI64::new(0),
        })
    }

    fn shape(&self) -> billing::Shape {
        self.billing.read().map(|s| s.clone()).unwrap_or_default()
    }

    /// A connection for one look-up, where it ends at [`LOOK_MAX`] unless it is `unbounded`.
    async fn looker(&self, unbounded: bool) -> Result<PoolConnection<sqlx::Postgres>> {
        let pool = match unbounded {
            true => &self.pool,
            false => &self.lookers,
        };
        let conn = pool.acquire().await;
        conn.map_err(sql("connect for a look-up"))
    }

    /// Looks at the billing's tables again.
    async fn reshape(&self) -> Result<billing::Shape> {
        let doing = "read the columns of the billing's tables";
        let mut conn = self.pool.acquire().await.map_err(sql(doing))?;
        let shape = billing::Shape::read(&mut conn).await?;
        if let Ok(mut kept) = self.billing.write() {
            *kept = shape.clone();
        }
        Ok(shape)
    }
}

/// `work`, or an error of the line after `limit`: without it a call over a line that died
/// silently would wait for the kernel's quarter of an hour.
async fn within<T>(
    limit: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match connection::within(limit, async { Ok(work.await) }).await {
        Ok(out) => out,
        Err(source) => Err(Error::Sql { doing, source }),
    }
}

/// [`within`] the usual limit.
async fn call<T>(doing: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    within(CALL_LIMIT, doing, work).await
}

/// A call that the metrics know by `op`.
async fn asked<T>(
    op: &'static str,
    doing: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    timed(op, call(doing, work)).await
}

fn migrator() -> Migrator {
    super::migrator(&[
        (
            1,
            "events",
            include_str!("../../../migrations/postgres/0001_events.sql"),
        ),
        (
            3,
            "guard",
            include_str!("../../../migrations/postgres/0003_guard.sql"),
        ),
        (
            4,
            "nas_mode",
            include_str!("../../../migrations/postgres/0004_nas_mode.sql"),
        ),
        (
            5,
            "batches",
            include_str!("../../../migrations/postgres/0005_batches.sql"),
        ),
        (
            6,
            "audit",
            include_str!("../../../migrations/postgres/0006_audit.sql"),
        ),
        (
            7,
            "pause_from",
            include_str!("../../../migrations/postgres/0007_pause_from.sql"),
        ),
        (
            8,
            "keys",
            include_str!("../../../migrations/postgres/0008_keys.sql"),
        ),
        (
            9,
            "lasting_keys",
            include_str!("../../../migrations/postgres/0009_lasting_keys.sql"),
        ),
        (
            10,
            "dead_by_nas",
            include_str!("../../../migrations/postgres/0010_dead_by_nas.sql"),
        ),
        (
            11,
            "audit_guard",
            include_str!("../../../migrations/postgres/0011_audit_guard.sql"),
        ),
        (
            12,
            "spread",
            include_str!("../../../migrations/postgres/0012_spread.sql"),
        ),
        (
            13,
            "flag_of_producers",
            include_str!("../../../migrations/postgres/0013_flag_of_producers.sql"),
        ),
    ])
}

#[async_trait]
impl Store for Postgres {
    async fn check_billing(&self) -> Result<Vec<String>> {
        let shape = call("read the billing's tables", self.reshape()).await?;
        Ok(shape.missing())
    }

    async fn own(&self, holder: &str, after: After) -> Result<i64> {
        let epoch = call("take the ownership", owner::own(self, holder, after)).await?;
        self.owned.store(epoch, Ordering::Relaxed);
        Ok(epoch)
    }

    async fn owner(&self) -> Result<Option<Owner>> {
        call("read the owner", owner::owner(self)).await
    }

    async fn still_own(&self, epoch: i64) -> Result<bool> {
        call("renew the ownership", owner::still_own(self, epoch)).await
    }

    async fn disown(&self, epoch: i64) -> Result<()> {
        call("give up the ownership", owner::disown(self, epoch)).await
    }

    async fn recover(&self, epoch: i64, max_deaths: u32) -> Result<(u64, u64)> {
        let work = owner::recover(self, epoch, max_deaths);
        within(owner::RECOVER_LIMIT * 2, "recover", work).await
    }

    async fn post_all(&self, posts: &[Post<'_>]) -> Result<Vec<Result<Posted>>> {
        asked("post", "accept events", compact::post_all(self, posts)).await
    }

    async fn confirm_keys(&self, keys: &[String]) -> Result<()> {
        let work = compact::confirm_keys(self, keys);
        asked("confirm_keys", "confirm idempotency keys", work).await
    }

    async fn posted_before(&self, guard: &Idempotency) -> Result<Option<Posted>> {
        let work = compact::posted_before(self, guard);
        call("look an idempotency key up", work).await
    }

    async fn expand(&self, limit: usize, cmds: &[Cmd]) -> Result<Expansion> {
        asked(
            "expand",
            "expand a batch",
            expand::expand(self, limit, cmds),
        )
        .await
    }

    async fn expand_urgent(&self, limit: usize, cmds: &[Cmd]) -> Result<Expansion> {
        asked(
            "expand",
            "expand a batch",
            expand::urgent(self, limit, cmds),
        )
        .await
    }

    async fn retry_expansion(&self) -> Result<u64> {
        call("wake unexpandable rows", compact::retry_expansion(self)).await
    }

    async fn load(&self, nas: NasId, from: EventId, limit: usize) -> Result<Vec<Waiting>> {
        asked(
            "load",
            "load waiting events",
            stack::load(self, nas, from, limit),
        )
        .await
    }

    async fn refill(
        &self,
        lanes: &[(NasId, Option<UserId>)],
        limit: usize,
    ) -> Result<Vec<Waiting>> {
        asked("load", "refill lanes", stack::refill(self, lanes, limit)).await
    }

    async fn params_now(&self, event: EventId) -> Result<Option<Params>> {
        let work = stack::params_now(self, event);
        asked("params", "read PARAMS again", work).await
    }

    async fn stacked_nases(&self) -> Result<Vec<NasId>> {
        let work = stack::stacked_nases(self);
        call("list the NASes of the main stack", work).await
    }

    async fn turn(&self, turn: &Turn) -> Result<Turned> {
        asked("turn", "write a turn", stack::turn(self, turn)).await
    }

    async fn causes(&self, ids: &[EventId]) -> Result<Vec<Cause>> {
        asked(
            "guard",
            "read whose orders events are",
            guard::causes(self, ids),
        )
        .await
    }

    async fn hold(&self, epoch: i64, events: &[(EventId, String)]) -> Result<Vec<EventId>> {
        call("hold events", guard::hold(self, epoch, events)).await
    }

    async fn guard_orders(&self) -> Result<Vec<GuardOrder>> {
        call("read the orders to the guard", guard::orders(self)).await
    }

    async fn add_guard_order(&self, order: &GuardOrder) -> Result<i64> {
        call("write an order to the guard", guard::add_order(self, order)).await
    }

    async fn remove_guard_order(&self, id: i64, kind: OrderKind) -> Result<bool> {
        call(
            "take an order to the guard back",
            guard::remove_order(self, id, kind),
        )
        .await
    }

    async fn nases(&self) -> Result<Vec<std::result::Result<Nas, BadNas>>> {
        asked("settings", "read the NAS settings", nas::nases(self)).await
    }

    async fn nas_states(&self) -> Result<std::collections::BTreeMap<NasId, NasState>> {
        asked("settings", "read the NAS states", nas::states(self)).await
    }

    async fn set_host_key(&self, nas: NasId, was: Option<&str>, key: Option<&str>) -> Result<bool> {
        nas::set_host_key(self, nas, was, key).await
    }

    async fn change_nas(&self, nas: NasId, change: &NasChange) -> Result<()> {
        let work = nas::change(self, nas, change);
        call("change the settings of a NAS", work).await
    }

    async fn secret(&self, nas: NasId) -> Result<NasSecret> {
        asked(
            "secret",
            "read the credentials of a NAS",
            nas::secret(self, nas),
        )
        .await
    }

    async fn counts(&self) -> Result<Counts> {
        asked("count", "count events", look::counts(self)).await
    }

    async fn backlog(&self, most: usize) -> Result<Backlog> {
        asked("count", "count what waits", look::backlog(self, most)).await
    }

    async fn events(&self, filter: &Filter) -> Result<Vec<EventRow>> {
        asked("list", "list events", look::events(self, filter)).await
    }

    async fn event(&self, id: EventId) -> Result<Option<EventRow>> {
        asked("show", "look an event up", look::event(self, id)).await
    }

    fn columns(&self, model: Model) -> Vec<Column> {
        model::columns(self, model)
    }

    async fn find(&self, query: &Query) -> Result<Vec<Map<String, Value>>> {
        timed("list", model::find(self, query)).await
    }

    async fn count(&self, query: &Query) -> Result<i64> {
        model::count(self, query).await
    }

    async fn rewrite(&self, id: EventId, event: &CompactEvent) -> Result<bool> {
        model::rewrite(self, id, event).await
    }

    async fn retry_dead(&self, id: EventId) -> Result<Option<EventId>> {
        call("retry a dead event", compact::retry_dead(self, id)).await
    }

    async fn retry_later(&self, dates: &[(EventId, i64)]) -> Result<u64> {
        let work = later::retry_later(self, dates);
        call("date retries", work).await
    }

    async fn retries_due(&self, limit: usize) -> Result<Vec<(EventId, i64)>> {
        let work = later::retries_due(self, limit);
        call("look for retries that are due", work).await
    }

    async fn forgo_retry(&self, id: EventId) -> Result<()> {
        call("forgo a retry", later::forgo_retry(self, id)).await
    }

    async fn move_retries(&self, now_ms: i64) -> Result<u64> {
        let work = later::move_retries(self, now_ms);
        call("move retries on", work).await
    }

    async fn drop_event(&self, id: EventId, state: Option<&str>, why: &str) -> Result<bool> {
        call("drop an event", look::drop_event(self, id, state, why)).await
    }

    async fn account_flags(
        &self,
        nas: Option<NasId>,
        user: Option<UserId>,
    ) -> Result<Vec<AccountFlags>> {
        let work = nas::account_flags(self, nas, user);
        call("read the flags of accounts", work).await
    }

    async fn prune_audit(&self, before_ms: i64, limit: usize) -> Result<u64> {
        let work = look::prune_audit(self, before_ms, limit);
        call("delete old rows of the audit", work).await
    }

    async fn prune_done(&self, before_ms: i64, limit: usize) -> Result<u64> {
        let work = look::prune_done(self, before_ms, limit);
        call("delete old done events", work).await
    }

    async fn add_token(&self, token: &Token) -> Result<()> {
        call("store the token", owner::add_token(self, token)).await
    }

    async fn tokens(&self) -> Result<Vec<Token>> {
        call("list the tokens", owner::tokens(self)).await
    }

    async fn remove_token(&self, name: &str) -> Result<bool> {
        call("take a token back", owner::remove_token(self, name)).await
    }

    async fn token(&self, hash: &str) -> Result<Option<Token>> {
        asked("token", "look a token up", owner::token(self, hash)).await
    }

    async fn audit(&self, who: &str, what: &str, detail: &str) -> Result<()> {
        asked(
            "audit",
            "write the audit",
            owner::audit(self, who, what, detail),
        )
        .await
    }

    async fn restored(&self) -> Result<u64> {
        owner::restored(self).await
    }

    async fn fill(&self, all: &[Filling], keep: bool, told: Told<'_>) -> Result<Vec<Filled>> {
        call(
            "fill the sample billing",
            sample::fill(self, all, keep, told),
        )
        .await
    }

    fn sql_allowed(&self, statement: &str, write: bool) -> Result<()> {
        look::allowed(statement, write).map(|_| ())
    }

    async fn sql(&self, statement: &str, write: bool) -> Result<SqlAnswer> {
        let work = look::sql_statement(self, statement, write);
        call("run the statement", work).await
    }
}
