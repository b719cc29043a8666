//! Copies of the database file. SQLite's own `VACUUM INTO` reads one consistent state in a read
//! transaction and writes it into another file; in WAL mode the writer goes on meanwhile.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::{Sqlite, sql};
use crate::store::{Error, Result};

/// How far ids jump after a restore. The daemon that made the copy went on giving ids; nobody
/// gives more than these between two backups, and an id must never name two events.
pub(in crate::store) const ID_GAP: i64 = 100_000_000;

/// Only the owner of the file may read it: it holds credentials.
const MODE: u32 = 0o600;

/// Makes a database that is not there yet, for its owner alone; SQLite gives the files beside it
/// the same rights. What goes wrong is told by the opening that follows.
pub(super) fn make(file: &Path) {
    let name = file.to_string_lossy();
    // Not what is no file: `:memory:`, and sqlx's own name for it.
    if !name.starts_with(':') && !name.starts_with("file:") {
        let mut options = std::fs::OpenOptions::new();
        let _ = options.write(true).create_new(true).mode(MODE).open(file);
    }
}

pub(super) async fn backup(store: &Sqlite, to: &Path) -> Result<()> {
    let options = store.write().await.options.clone();
    let refused = |e: std::io::Error| Error::Refused(format!("{}: {e}", to.display()));
    // Made here, so that it is never readable for others, nor somebody's file.
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(to)
        .map_err(refused)?;
    let copied = copied(options, to).await;
    if copied.is_err() {
        let _ = std::fs::remove_file(to);
    }
    copied
}

async fn copied(options: SqliteConnectOptions, to: &Path) -> Result<()> {
    let doing = "copy the database";
    let mut conn = SqliteConnection::connect_with(&options)
        .await
        .map_err(sql(doing))?;
    let name = to.to_string_lossy().into_owned();
    sqlx::query("vacuum into ?1")
        .bind(name)
        .execute(&mut conn)
        .await
        .map_err(sql(doing))?;
    conn.close().await.map_err(sql(doing))?;
    check(to).await?;
    let synced = std::fs::File::open(to).and_then(|file| file.sync_all());
    synced.map_err(|e| Error::Refused(format!("{}: {e}", to.display())))
}

/// Whether a file is a sound copy of a database of ours.
pub async fn check(file: &Path) -> Result<()> {
    let doing = "read the copy";
    let mut conn = SqliteConnectOptions::new()
        .filename(file)
        .read_only(true)
        .immutable(true)
        .disable_statement_logging()
        .connect()
        .await
        .map_err(sql(doing))?;
    let said: String = sqlx::query_scalar("pragma quick_check(1)")
        .fetch_one(&mut conn)
        .await
        .map_err(sql(doing))?;
    let ours: i64 = sqlx::query_scalar(
        "select count(*) from sqlite_master where name in ('events_stack', 'owner', 'nas_state')",
    )
    .fetch_one(&mut conn)
    .await
    .map_err(sql(doing))?;
    conn.close().await.map_err(sql(doing))?;
    if said != "ok" {
        return Err(Error::Refused(format!(
            "{} is damaged: {said}",
            file.display()
        )));
    }
    if ours != 3 {
        let text = format!("{} is no copy of a database of ours", file.display());
        return Err(Error::Refused(text));
    }
    Ok(())
}

pub(super) async fn restored(store: &Sqlite) -> Result<u64> {
    let doing = "tell the database that it was restored";
    let mut writer = store.write().await;
    let mut tx = writer.begin().await?;
    let waiting =
        sqlx::query("update events_stack set possible_duplicate = 1 where state <> 'held'")
            .execute(&mut *tx)
            .await
            .map_err(sql(doing))?
            .rows_affected();
    sqlx::query("update sqlite_sequence set seq = seq + ?1 where name = 'events_stack_compact'")
        .bind(ID_GAP)
        .execute(&mut *tx)
        .await
        .map_err(sql(doing))?;
    sqlx::query("update owner set holder = '' where scope = 'all'")
        .execute(&mut *tx)
        .await
        .map_err(sql(doing))?;
    tx.commit().await.map_err(sql(doing))?;
    Ok(waiting)
}
