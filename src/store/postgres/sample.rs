//! Rows from elsewhere into the sample billing, in one transaction.

use serde_json::Value;
use sqlx::PgConnection;

use super::{Postgres, sql};
use crate::store::Result;
use crate::store::sample::{Filled, Filling, Sheet, Told, ours, text_of};

/// Rows of one statement.
const CHUNK: usize = 1_000;
const DOING: &str = "fill the sample billing";

pub(super) async fn fill(
    store: &Postgres,
    all: &[Filling],
    keep: bool,
    told: Told<'_>,
) -> Result<Vec<Filled>> {
    let mut tx = store.pool.begin().await.map_err(sql(DOING))?;
    let mut out = Vec::with_capacity(all.len());
    let mut written = 0;
    for filling in all {
        out.push(one(&mut tx, filling, &mut written, told).await?);
    }
    if keep {
        tx.commit()
            .await
            .map_err(sql("commit the sample billing"))?;
    } else {
        tx.rollback().await.map_err(sql(DOING))?;
    }
    Ok(out)
}

async fn one(
    tx: &mut PgConnection,
    filling: &Filling,
    written: &mut u64,
    told: Told<'_>,
) -> Result<Filled> {
    let Sheet { table, key, .. } = filling.sheet;
    let columns: Vec<(String, bool)> = sqlx::query_as(
        "select a.attname::text, c.relkind = 'r' from pg_class c join pg_attribute a on a.attrelid = c.oid
         where c.oid = to_regclass(quote_ident($1)) and a.attnum > 0 and not a.attisdropped",
    )
    .bind(table)
    .fetch_all(&mut *tx)
    .await
    .map_err(sql(DOING))?;
    let is_table = columns.iter().all(|(_, is_table)| *is_table);
    let columns: Vec<String> = columns.into_iter().map(|(name, _)| name).collect();
    ours(filling.sheet, is_table, &columns)?;
    let counted = format!("select count(*) from {table}");
    let (there,): (i64,) = sqlx::query_as(sqlx::AssertSqlSafe(counted))
        .fetch_one(&mut *tx)
        .await
        .map_err(sql(DOING))?;
    let source = format!("json_populate_recordset(null::{table}, $1::json) r");
    let upsert = filling.upsert(&source, "is distinct from");
    let known = format!("select count(*) from {table} where {key} = any($1)");
    let (mut given_there, mut touched) = (0, 0);
    for chunk in filling.rows.chunks(CHUNK) {
        let keys: Vec<i64> = chunk
            .iter()
            .filter_map(|row| row.get(*key).and_then(Value::as_i64))
            .collect();
        let (some,): (i64,) = sqlx::query_as(sqlx::AssertSqlSafe(known.clone()))
            .bind(&keys)
            .fetch_one(&mut *tx)
            .await
            .map_err(sql(DOING))?;
        let done = sqlx::query(sqlx::AssertSqlSafe(upsert.clone()))
            .bind(text_of(chunk))
            .execute(&mut *tx)
            .await
            .map_err(sql(DOING))?;
        given_there += some;
        touched += i64::try_from(done.rows_affected()).unwrap_or(i64::MAX);
        *written += chunk.len() as u64;
        told(*written);
    }
    Ok(filling.filled(there, given_there, touched))
}
