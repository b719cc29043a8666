//! Retries that are spread over time: each dead event keeps when it is due.

use serde_json::json;

use super::{Sqlite, sql};
use crate::event::EventId;
use crate::store::Result;

/// What stands in the index of these, and in no other.
const DATED: &str = "retry_ms is not null and retried_as is null";

/// In one statement: all of an order, or none.
pub(super) async fn retry_later(store: &Sqlite, dates: &[(EventId, i64)]) -> Result<u64> {
    let dates: Vec<(i64, i64)> = dates.iter().map(|(id, at)| (id.0, *at)).collect();
    let mut writer = store.write().await;
    let done = sqlx::query(
        "update events_dead set retry_ms = j.value ->> 1 from json_each(?1) j
         where events_dead.id = j.value ->> 0 and retried_as is null",
    )
    .bind(json!(dates).to_string())
    .execute(&mut writer.conn)
    .await
    .map_err(sql("date retries"))?;
    Ok(done.rows_affected())
}

pub(super) async fn retries_due(store: &Sqlite, limit: usize) -> Result<Vec<(EventId, i64)>> {
    let text = format!(
        "select id, retry_ms from events_dead where {DATED} order by retry_ms, id desc limit ?1"
    );
    let rows: Vec<(i64, i64)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&store.readers)
        .await
        .map_err(sql("look for retries that are due"))?;
    Ok(rows.into_iter().map(|(id, at)| (EventId(id), at)).collect())
}

/// It stays dead.
pub(super) async fn forgo_retry(store: &Sqlite, id: EventId) -> Result<()> {
    let mut writer = store.write().await;
    sqlx::query("update events_dead set retry_ms = null where id = ?1")
        .bind(id.0)
        .execute(&mut writer.conn)
        .await
        .map_err(sql("forgo a retry"))?;
    Ok(())
}

/// All by the same time, so that they stay as far apart as they were.
pub(super) async fn move_retries(store: &Sqlite, now_ms: i64) -> Result<u64> {
    let first = format!("(select min(retry_ms) from events_dead where {DATED})");
    let text = format!(
        "update events_dead set retry_ms = retry_ms + (?1 - {first}) where {DATED} and {first} < ?1"
    );
    let mut writer = store.write().await;
    let done = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(now_ms)
        .execute(&mut writer.conn)
        .await
        .map_err(sql("move retries on"))?;
    Ok(done.rows_affected())
}
