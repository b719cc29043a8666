//! Retries that are spread over time: each dead event keeps when it is due.

use serde_json::json;

use super::{Sqlite, sql};
use crate::event::EventId;
use crate::store::Result;
use crate::store::rows::{DATED, PIECE, dated};

pub(super) async fn retry_later(store: &Sqlite, dates: &[(EventId, i64)]) -> Result<u64> {
    let mut done = 0;
    for piece in dates.chunks(PIECE) {
        let piece: Vec<(i64, i64)> = piece.iter().map(|(id, at)| (id.0, *at)).collect();
        let mut writer = store.write().await;
        let piece_done = sqlx::query(
            "update events_dead set retry_ms = j.value ->> 1 from json_each(?1) j
             where events_dead.id = j.value ->> 0 and retried_as is null",
        )
        .bind(json!(piece).to_string())
        .execute(&mut writer.conn)
        .await
        .map_err(sql("date retries"))?;
        done += piece_done.rows_affected();
    }
    Ok(done)
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
    Ok(dated(rows))
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
    let first = retries_due(store, 1).await?;
    let Some((_, first)) = first.first().filter(|(_, at)| *at < now_ms) else {
        return Ok(0);
    };
    let text = format!(
        "update events_dead set retry_ms = retry_ms + ?1 where {DATED}
           and id in (select id from events_dead where {DATED} and id > ?2 order by id limit ?3)
         returning id"
    );
    let (mut moved, mut last) = (0, i64::MIN);
    loop {
        let mut writer = store.write().await;
        let ids: Vec<(i64,)> = sqlx::query_as(sqlx::AssertSqlSafe(text.clone()))
            .bind(now_ms.saturating_sub(*first))
            .bind(last)
            .bind(i64::try_from(PIECE).unwrap_or(i64::MAX))
            .fetch_all(&mut writer.conn)
            .await
            .map_err(sql("move retries on"))?;
        moved += ids.len() as u64;
        match ids.into_iter().max() {
            Some((id,)) => last = id,
            None => return Ok(moved),
        }
    }
}
