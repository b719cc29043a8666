//! A connection that is opened again after it broke, lent to one caller at a time. What the
//! caller does not give back in order (an error of the line, a cancelled call) is closed, so a
//! half-read answer or an open transaction never meets the next caller.

use std::future::Future;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgSeverity};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::{Mutex, MutexGuard};

use super::{CALL_LIMIT, sql};
use crate::clock;
use crate::store::{Error, Result};

/// Longest wait for a server to accept a connection: an address that swallows packets would
/// hold the caller for two minutes.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the answer of a look-up; the server's own limit is far lower, and only a dead
/// line reaches this one.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// A connection that rested longer is asked first whether it is still alive, ms. Under load it
/// never rests, and the question costs nothing.
const TRUSTED_MS: u64 = 1_000;

/// One connection and what its owner must remember across a break.
pub(super) struct Reopening<T> {
    options: PgConnectOptions,
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    conn: Option<PgConnection>,
    used_at: u64,
    doubt: T,
}

/// The connection, lent.
pub(super) struct Held<'a, T> {
    conn: PgConnection,
    guard: MutexGuard<'a, Inner<T>>,
}

impl<T: Default> Reopening<T> {
    pub(super) fn new(options: PgConnectOptions, conn: Option<PgConnection>) -> Self {
        let inner = Inner {
            conn,
            used_at: clock::tick_ms(),
            doubt: T::default(),
        };
        Self {
            options,
            inner: Mutex::new(inner),
        }
    }

    /// Waits for its turn; opens the connection if it is not there or does not answer.
    pub(super) async fn hold(&self) -> Result<Held<'_, T>> {
        let mut guard = self.inner.lock().await;
        if let Some(mut conn) = guard.conn.take() {
            let rested = clock::tick_ms().saturating_sub(guard.used_at);
            if rested < TRUSTED_MS || conn.ping().await.is_ok() {
                return Ok(Held { conn, guard });
            }
        }
        let conn = open(&self.options)
            .await
            .map_err(sql("connect to the database again"))?;
        Ok(Held { conn, guard })
    }
}

impl<T> Held<'_, T> {
    /// The connection, and what an earlier break left in doubt.
    pub(super) fn parts(&mut self) -> (&mut PgConnection, &mut T) {
        (&mut self.conn, &mut self.guard.doubt)
    }

    /// Gives the connection back unless `out` says that it broke.
    pub(super) async fn ended<R>(mut self, out: Result<R>) -> Result<R> {
        let whole = match &out {
            Ok(_) => true,
            // The roll-back of a dropped transaction is sent with the next question only; asked
            // now, it frees its locks now.
            Err(error) => survives(error) && self.conn.ping().await.is_ok(),
        };
        if whole {
            self.guard.used_at = clock::tick_ms();
            self.guard.conn = Some(self.conn);
        }
        out
    }
}

/// Opens a connection within [`CONNECT_TIMEOUT`].
pub(super) async fn open(
    options: &PgConnectOptions,
) -> std::result::Result<PgConnection, sqlx::Error> {
    within(CONNECT_TIMEOUT, options.connect()).await
}

/// `work`, or an error of the line after `limit`.
pub(super) async fn within<R>(
    limit: Duration,
    work: impl Future<Output = std::result::Result<R, sqlx::Error>>,
) -> std::result::Result<R, sqlx::Error> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let text = format!("no answer from the database within {} s", limit.as_secs());
        Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            text,
        )))
    })
}

/// A look-up's answer, within [`LOOK_LIMIT`], or within the limit of all calls if the server does
/// not end it.
pub(super) async fn look<R>(
    unbounded: bool,
    work: impl Future<Output = std::result::Result<R, sqlx::Error>>,
) -> std::result::Result<R, sqlx::Error> {
    let limit = if unbounded { CALL_LIMIT } else { LOOK_LIMIT };
    within(limit, work).await
}

/// Gives a look-up's connection back; closes it if its line gave no answer, for its pool would wait
/// for that.
pub(super) fn give_back<R>(
    conn: PoolConnection<sqlx::Postgres>,
    answer: &std::result::Result<R, sqlx::Error>,
) {
    if matches!(answer, Err(sqlx::Error::Io(_))) {
        drop(conn.detach());
    }
}

/// Whether the connection can still be used after `error`.
fn survives(error: &Error) -> bool {
    match error {
        Error::Sql { source, .. } => rolled_back(source),
        Error::Fenced { .. }
        | Error::Refused(_)
        | Error::Owned(_)
        | Error::Billing(_)
        | Error::TooLong => true,
        Error::Open { .. } | Error::Migrate { .. } => false,
    }
}

/// The server answered with an error and goes on: what the transaction did is undone for
/// certain. Anything else leaves a COMMIT in doubt.
pub(super) fn rolled_back(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|e| e.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|e| !matches!(e.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}
