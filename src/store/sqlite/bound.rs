//! Look-ups of people and of the billing run on connections of their own and end at
//! [`LOOK_MAX`](super::super::LOOK_MAX): what no index helps may read a million rows, and must
//! neither hold a reader that the daemon needs nor keep its caller waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sqlx::SqliteConnection;
use sqlx::pool::PoolConnection;

use super::{Db, Sqlite, sql};
use crate::clock;
use crate::store::{Error, LOOK_MAX, Result};

/// Look-ups at once; the next ones wait.
pub(super) const LOOKERS: u32 = 4;
/// Steps of the database's machine between two looks at the clock: some 10 µs.
const STEPS: i32 = 1_000;
/// A look-up with fewer looks at the clock than these, some thousand rows, is never ended: it
/// is not large, the machine is busy.
const SMALL: u32 = 20;

/// A connection whose statements end at the limit.
pub(super) struct Bounded {
    conn: PoolConnection<Db>,
    ended: Arc<AtomicBool>,
}

/// A connection for one look-up, whose time begins now.
pub(super) async fn look(store: &Sqlite) -> Result<Bounded> {
    let doing = "connect for a look-up";
    let mut conn = store.lookers.acquire().await.map_err(sql(doing))?;
    let ended = Arc::new(AtomicBool::new(false));
    let (told, looks) = (Arc::clone(&ended), AtomicU32::new(0));
    let began = clock::tick_ms();
    let mut handle = conn.lock_handle().await.map_err(sql(doing))?;
    handle.set_progress_handler(STEPS, move || {
        let looks = looks.fetch_add(1, Ordering::Relaxed);
        let took = Duration::from_millis(clock::tick_ms().saturating_sub(began));
        let goes_on = looks < SMALL || took < LOOK_MAX;
        told.fetch_or(!goes_on, Ordering::Relaxed);
        goes_on
    });
    drop(handle);
    Ok(Bounded { conn, ended })
}

impl Bounded {
    /// To run a statement on.
    pub(super) fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.conn
    }

    /// What a statement that failed here means. The next one sets its own limit.
    pub(super) fn failed(&self, doing: &'static str) -> impl FnOnce(sqlx::Error) -> Error + use<> {
        let ended = self.ended.load(Ordering::Relaxed);
        move |source| {
            if ended {
                Error::TooLong
            } else {
                sql(doing)(source)
            }
        }
    }
}
