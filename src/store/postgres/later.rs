//! Retries that are spread over time: each dead event keeps when it is due.

use super::{Postgres, sql};
use crate::event::EventId;
use crate::store::Result;

/// What stands in the index of these, and in no other.
const DATED: &str = "retry_ms is not null and retried_as is null";

/// In one statement: all of an order, or none.
pub(super) async fn retry_later(store: &Postgres, dates: &[(EventId, i64)]) -> Result<u64> {
    let (ids, times): (Vec<i64>, Vec<i64>) = dates.iter().map(|(id, at)| (id.0, *at)).unzip();
    let done = sqlx::query(
        "update events_dead d set retry_ms = t.at from unnest($1::bigint[], $2::bigint[]) t(id, at)
         where d.id = t.id and d.retried_as is null",
    )
    .bind(ids)
    .bind(times)
    .execute(&store.pool)
    .await
    .map_err(sql("date retries"))?;
    Ok(done.rows_affected())
}

pub(super) async fn retries_due(store: &Postgres, limit: usize) -> Result<Vec<(EventId, i64)>> {
    let text = format!(
        "select id, retry_ms from events_dead where {DATED} order by retry_ms, id desc limit $1"
    );
    let rows: Vec<(i64, i64)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&store.pool)
        .await
        .map_err(sql("look for retries that are due"))?;
    Ok(rows.into_iter().map(|(id, at)| (EventId(id), at)).collect())
}

/// It stays dead.
pub(super) async fn forgo_retry(store: &Postgres, id: EventId) -> Result<()> {
    sqlx::query("update events_dead set retry_ms = null where id = $1")
        .bind(id.0)
        .execute(&store.pool)
        .await
        .map_err(sql("forgo a retry"))?;
    Ok(())
}

/// All by the same time, so that they stay as far apart as they were.
pub(super) async fn move_retries(store: &Postgres, now_ms: i64) -> Result<u64> {
    let text = format!(
        "with first as (select min(retry_ms) as at from events_dead where {DATED})
         update events_dead set retry_ms = retry_ms + ($1 - first.at) from first
         where {DATED} and first.at < $1"
    );
    let done = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(now_ms)
        .execute(&store.pool)
        .await
        .map_err(sql("move retries on"))?;
    Ok(done.rows_affected())
}
