//! SQLite: the embedded default. WAL, `synchronous=FULL`, one writer connection behind a fair
//! queue, a few `query_only` readers. Every write begins with `BEGIN IMMEDIATE`: a deferred
//! transaction that upgrades fails at once, whatever the busy timeout says.

pub mod backup;
mod billing;
mod bound;
mod compact;
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

use std::ops::{Deref, DerefMut};
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Sqlite as Db, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    AccountFlags, After, Backlog, Cause, Counts, Error, EventRow, Expansion, Filter, GuardOrder,
    Idempotency, OrderKind, Owner, Post, Posted, Result, SqlAnswer, Store, Token, Turn, Turned,
    shown_url, timed,
};
use crate::clock;
use crate::event::{Cmd, CompactEvent, EventId, Params, UserId, Waiting};
use crate::nas::{BadNas, Nas, NasChange, NasId, NasSecret, NasState};
use crate::store::query::{Column, Model, Query};
use crate::store::sample::{Filled, Filling, Told};

/// How long a write waits for another process that holds the lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Readers at once: REST, tools, PARAMS of the next turn.
const READERS: u32 = 4;
/// Page cache of one connection, KiB; the hot stacks fit.
const CACHE_KIB: i64 = 16 * 1024;
/// Pages in the log before they are moved into the file (16 MiB): hot pages are written often
/// and should be moved once.
const CHECKPOINT_PAGES: u32 = 4_000;
/// After this time in which the lock was hardly free it is left free for a moment, so that other
/// processes get their inserts in (SQLite's back-off would starve them), µs.
const WRITE_STRETCH_US: u64 = 25_000;
/// The moment itself.
const WRITE_GAP: Duration = Duration::from_millis(1);
/// Free time within a stretch that is as good as that moment, µs.
const WRITE_REST_US: u64 = 1_500;

/// The embedded store.
pub struct Sqlite {
    writer: Mutex<Writer>,
    readers: SqlitePool,
    /// Connections of [`bound`].
    lookers: SqlitePool,
    billing: std::sync::RwLock<billing::Shape>,
    /// Epoch of the ownership that was taken through this store; 0 = none.
    owned: AtomicI64,
}

struct Writer {
    conn: SqliteConnection,
    options: SqliteConnectOptions,
    /// Times of `clock::up_us`: since when the stretch counts, and when the lock was freed last.
    stretch_from: u64,
    freed_at: u64,
    /// How long the lock was free in this stretch, µs.
    rested: u64,
    known_cmds: Vec<Cmd>,
    /// A transaction that was sent as one text may still be open: it broke off.
    open: bool,
}

/// The writer while it is somebody's.
struct Held<'a>(MutexGuard<'a, Writer>);

impl Deref for Held<'_> {
    type Target = Writer;

    fn deref(&self) -> &Writer {
        &self.0
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Writer {
        &mut self.0
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.freed_at = clock::up_us();
    }
}

/// Maps a failed statement to what was being done.
fn sql(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |source| Error::Sql { doing, source }
}

impl Sqlite {
    /// Opens (creates) the file, migrates our tables, creates the sample billing where none of
    /// its names exists.
    pub async fn open(url: &str) -> Result<Self> {
        let fail = |source| Error::Open {
            url: shown_url(url),
            source,
        };
        let options = SqliteConnectOptions::from_str(url)
            .map_err(fail)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("cache_size", format!("-{CACHE_KIB}"))
            .pragma("temp_store", "memory")
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
            .statement_cache_capacity(200)
            .disable_statement_logging();
        backup::make(options.get_filename());
        let mut conn = SqliteConnection::connect_with(&options)
            .await
            .map_err(fail)?;
        migrator()
            .run_direct(None, &mut conn, false)
            .await
            .map_err(|source| Error::Migrate {
                url: shown_url(url),
                source,
            })?;
        billing::create_sample(&mut conn).await?;
        let shape = billing::Shape::read(&mut conn).await?;
        let reading = options
            .clone()
            .create_if_missing(false)
            .pragma("query_only", "on");
        let pool = |most| {
            SqlitePoolOptions::new()
                .max_connections(most)
                .test_before_acquire(false)
        };
        let readers = pool(READERS)
            .connect_with(reading.clone())
            .await
            .map_err(fail)?;
        let lookers = pool(bound::LOOKERS).connect_lazy_with(reading);
        compact::create_catalogue(&mut conn).await?;
        let writer = Writer {
            conn,
            options: options.create_if_missing(false),
            stretch_from: clock::up_us(),
            freed_at: clock::up_us(),
            rested: 0,
            known_cmds: Vec::new(),
            open: false,
        };
        Ok(Self {
            writer: Mutex::new(writer),
            readers,
            lookers,
            billing: std::sync::RwLock::new(shape),
            owned: AtomicI64::new(0),
        })
    }

    /// The writer, in turn; leaves the database free for a moment after a long stretch.
    async fn write(&self) -> Held<'_> {
        let mut held = Held(self.writer.lock().await);
        let now = clock::up_us();
        held.rested += now.saturating_sub(held.freed_at);
        if now.saturating_sub(held.stretch_from) >= WRITE_STRETCH_US {
            if held.rested < WRITE_REST_US {
                tokio::time::sleep(WRITE_GAP).await;
            }
            held.stretch_from = clock::up_us();
            held.rested = 0;
        }
        if held.open {
            held.close().await;
        }
        held
    }

    fn shape(&self) -> billing::Shape {
        self.billing.read().map(|s| s.clone()).unwrap_or_default()
    }
}

impl Writer {
    /// Takes back what a broken-off text left open. The database's answer may be that nothing
    /// is: the text failed before it began, or after it had ended.
    async fn close(&mut self) {
        let answer = sqlx::query("rollback").execute(&mut self.conn).await;
        self.open = !matches!(answer, Ok(_) | Err(sqlx::Error::Database(_)));
    }

    /// SQLite takes a transaction back by itself when the disk is full or fails (sqlite.org,
    /// "Response To Errors Within A Transaction"). The rollback that follows is then an error, and
    /// the library goes on counting a transaction that is none, for ever: the connection is opened
    /// anew.
    async fn mend(&mut self) -> Result<()> {
        // What was under way when a transaction was dropped is waited for first.
        let doing = "open the writing connection anew";
        sqlx::query("select 1")
            .execute(&mut self.conn)
            .await
            .map_err(sql(doing))?;
        if self.conn.is_in_transaction() {
            let mut conn = SqliteConnection::connect_with(&self.options)
                .await
                .map_err(sql(doing))?;
            // A disk that is read-only at this moment gives one that can read only, for ever; even its
            // immediate transactions begin.
            sqlx::raw_sql("begin immediate; update owner set epoch = epoch where 0; rollback")
                .execute(&mut conn)
                .await
                .map_err(sql(doing))?;
            compact::create_catalogue(&mut conn).await?;
            self.known_cmds.clear();
            self.conn = conn;
        }
        Ok(())
    }

    async fn begin(&mut self) -> Result<Transaction<'_, Db>> {
        if self.conn.is_in_transaction() {
            self.mend().await?;
        }
        self.conn
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(sql("begin a write transaction"))
    }
}

fn migrator() -> Migrator {
    super::migrator(&[
        (
            1,
            "events",
            include_str!("../../../migrations/sqlite/0001_events.sql"),
        ),
        (
            3,
            "guard",
            include_str!("../../../migrations/sqlite/0003_guard.sql"),
        ),
        (
            4,
            "nas_mode",
            include_str!("../../../migrations/sqlite/0004_nas_mode.sql"),
        ),
        (
            5,
            "batches",
            include_str!("../../../migrations/sqlite/0005_batches.sql"),
        ),
        (
            6,
            "audit",
            include_str!("../../../migrations/sqlite/0006_audit.sql"),
        ),
        (
            7,
            "pause_from",
            include_str!("../../../migrations/sqlite/0007_pause_from.sql"),
        ),
        (
            8,
            "keys",
            include_str!("../../../migrations/sqlite/0008_keys.sql"),
        ),
        (
            9,
            "lasting_keys",
            include_str!("../../../migrations/sqlite/0009_lasting_keys.sql"),
        ),
        (
            10,
            "dead_by_nas",
            include_str!("../../../migrations/sqlite/0010_dead_by_nas.sql"),
        ),
        (
            11,
            "audit_guard",
            include_str!("../../../migrations/sqlite/0011_audit_guard.sql"),
        ),
        (
            12,
            "spread",
            include_str!("../../../migrations/sqlite/0012_spread.sql"),
        ),
    ])
}

#[async_trait]
impl Store for Sqlite {
    async fn check_billing(&self) -> Result<Vec<String>> {
        let shape = {
            let mut writer = self.write().await;
            billing::Shape::read(&mut writer.conn).await?
        };
        let missing = shape.missing();
        if let Ok(mut kept) = self.billing.write() {
            *kept = shape;
        }
        Ok(missing)
    }

    async fn own(&self, holder: &str, after: After) -> Result<i64> {
        let epoch = owner::own(self, holder, after).await?;
        self.owned.store(epoch, Ordering::Relaxed);
        Ok(epoch)
    }

    async fn owner(&self) -> Result<Option<Owner>> {
        owner::owner(self).await
    }

    async fn still_own(&self, epoch: i64) -> Result<bool> {
        owner::still_own(self, epoch).await
    }

    async fn disown(&self, epoch: i64) -> Result<()> {
        owner::disown(self, epoch).await
    }

    async fn recover(&self, epoch: i64, max_deaths: u32) -> Result<(u64, u64)> {
        owner::recover(self, epoch, max_deaths).await
    }

    async fn post_all(&self, posts: &[Post<'_>]) -> Result<Vec<Result<Posted>>> {
        timed("post", compact::post_all(self, posts)).await
    }

    async fn confirm_keys(&self, keys: &[String]) -> Result<()> {
        compact::confirm_keys(self, keys).await
    }

    async fn posted_before(&self, guard: &Idempotency) -> Result<Option<Posted>> {
        compact::posted_before(self, guard).await
    }

    async fn expand(&self, limit: usize, cmds: &[Cmd]) -> Result<Expansion> {
        timed("expand", expand::expand(self, limit, cmds)).await
    }

    async fn expand_urgent(&self, limit: usize, cmds: &[Cmd]) -> Result<Expansion> {
        timed("expand", expand::urgent(self, limit, cmds)).await
    }

    async fn retry_expansion(&self) -> Result<u64> {
        compact::retry_expansion(self).await
    }

    async fn load(&self, nas: NasId, from: EventId, limit: usize) -> Result<Vec<Waiting>> {
        timed("load", stack::load(self, nas, from, limit)).await
    }

    async fn refill(
        &self,
        lanes: &[(NasId, Option<UserId>)],
        limit: usize,
    ) -> Result<Vec<Waiting>> {
        timed("load", stack::refill(self, lanes, limit)).await
    }

    async fn params_now(&self, event: EventId) -> Result<Option<Params>> {
        timed("params", stack::params_now(self, event)).await
    }

    async fn stacked_nases(&self) -> Result<Vec<NasId>> {
        stack::stacked_nases(self).await
    }

    async fn turn(&self, turn: &Turn) -> Result<Turned> {
        timed("turn", stack::turn(self, turn)).await
    }

    async fn causes(&self, ids: &[EventId]) -> Result<Vec<Cause>> {
        timed("guard", guard::causes(self, ids)).await
    }

    async fn hold(&self, epoch: i64, events: &[(EventId, String)]) -> Result<Vec<EventId>> {
        guard::hold(self, epoch, events).await
    }

    async fn guard_orders(&self) -> Result<Vec<GuardOrder>> {
        guard::orders(self).await
    }

    async fn add_guard_order(&self, order: &GuardOrder) -> Result<i64> {
        guard::add_order(self, order).await
    }

    async fn remove_guard_order(&self, id: i64, kind: OrderKind) -> Result<bool> {
        guard::remove_order(self, id, kind).await
    }

    async fn nases(&self) -> Result<Vec<std::result::Result<Nas, BadNas>>> {
        timed("settings", nas::nases(self)).await
    }

    async fn nas_states(&self) -> Result<std::collections::BTreeMap<NasId, NasState>> {
        timed("settings", nas::states(self)).await
    }

    async fn set_host_key(&self, nas: NasId, was: Option<&str>, key: Option<&str>) -> Result<bool> {
        nas::set_host_key(self, nas, was, key).await
    }

    async fn change_nas(&self, nas: NasId, change: &NasChange) -> Result<()> {
        nas::change(self, nas, change).await
    }

    async fn secret(&self, nas: NasId) -> Result<NasSecret> {
        timed("secret", nas::secret(self, nas)).await
    }

    async fn counts(&self) -> Result<Counts> {
        timed("count", look::counts(self)).await
    }

    async fn backlog(&self, most: usize) -> Result<Backlog> {
        timed("count", look::backlog(self, most)).await
    }

    async fn events(&self, filter: &Filter) -> Result<Vec<EventRow>> {
        timed("list", look::events(self, filter)).await
    }

    async fn event(&self, id: EventId) -> Result<Option<EventRow>> {
        timed("show", look::event(self, id)).await
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
        compact::retry_dead(self, id).await
    }

    async fn retry_later(&self, dates: &[(EventId, i64)]) -> Result<u64> {
        later::retry_later(self, dates).await
    }

    async fn retries_due(&self, limit: usize) -> Result<Vec<(EventId, i64)>> {
        later::retries_due(self, limit).await
    }

    async fn forgo_retry(&self, id: EventId) -> Result<()> {
        later::forgo_retry(self, id).await
    }

    async fn move_retries(&self, now_ms: i64) -> Result<u64> {
        later::move_retries(self, now_ms).await
    }

    async fn drop_event(&self, id: EventId, state: Option<&str>, why: &str) -> Result<bool> {
        look::drop_event(self, id, state, why).await
    }

    async fn account_flags(
        &self,
        nas: Option<NasId>,
        user: Option<UserId>,
    ) -> Result<Vec<AccountFlags>> {
        nas::account_flags(self, nas, user).await
    }

    async fn prune_audit(&self, before_ms: i64, limit: usize) -> Result<u64> {
        look::prune_audit(self, before_ms, limit).await
    }

    async fn prune_done(&self, before_ms: i64, limit: usize) -> Result<u64> {
        look::prune_done(self, before_ms, limit).await
    }

    async fn add_token(&self, token: &Token) -> Result<()> {
        owner::add_token(self, token).await
    }

    async fn tokens(&self) -> Result<Vec<Token>> {
        owner::tokens(self).await
    }

    async fn remove_token(&self, name: &str) -> Result<bool> {
        owner::remove_token(self, name).await
    }

    async fn token(&self, hash: &str) -> Result<Option<Token>> {
        timed("token", owner::token(self, hash)).await
    }

    async fn audit(&self, who: &str, what: &str, detail: &str) -> Result<()> {
        timed("audit", owner::audit(self, who, what, detail)).await
    }

    async fn backup(&self, to: &std::path::Path) -> Result<()> {
        backup::backup(self, to).await
    }

    async fn restored(&self) -> Result<u64> {
        backup::restored(self).await
    }

    async fn fill(&self, all: &[Filling], keep: bool, told: Told<'_>) -> Result<Vec<Filled>> {
        sample::fill(self, all, keep, told).await
    }

    fn sql_allowed(&self, statement: &str, write: bool) -> Result<()> {
        look::allowed(statement, write).map(|_| ())
    }

    async fn sql(&self, statement: &str, write: bool) -> Result<SqlAnswer> {
        look::sql_statement(self, statement, write).await
    }

    async fn fill_sample(&self, script: &str) -> Result<()> {
        let mut writer = self.write().await;
        let mut tx = writer.begin().await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(script.to_owned()))
            .execute(&mut *tx)
            .await
            .map_err(sql("fill the sample billing"))?;
        tx.commit().await.map_err(sql("fill the sample billing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // With NORMAL or OFF a loss of power takes answered posts with it, and nothing else would show.
    #[tokio::test]
    async fn the_writer_syncs_each_commit_also_when_it_is_opened_anew() {
        const FULL: i64 = 2;
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/sync.db", dir.path().display());
        let store = Sqlite::open(&url).await.unwrap();
        let mut writer = store.write().await;
        let synchronous = "select synchronous from pragma_synchronous";
        let now = sqlx::query_scalar::<_, i64>(synchronous);
        assert_eq!(now.fetch_one(&mut writer.conn).await.unwrap(), FULL);
        sqlx::raw_sql("create temp table of_the_old_one (n)")
            .execute(&mut writer.conn)
            .await
            .unwrap();
        // As after a full disk: the database has taken the transaction back, the library has not.
        std::mem::forget(writer.begin().await.unwrap());
        sqlx::raw_sql("rollback")
            .execute(&mut writer.conn)
            .await
            .unwrap();
        writer.begin().await.unwrap().rollback().await.unwrap();
        let old = sqlx::raw_sql("select * from of_the_old_one");
        assert!(old.execute(&mut writer.conn).await.is_err(), "it is new");
        let now = sqlx::query_scalar::<_, i64>(synchronous);
        assert_eq!(now.fetch_one(&mut writer.conn).await.unwrap(), FULL);
    }
}
