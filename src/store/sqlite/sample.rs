//! Rows from elsewhere into the sample billing, in one transaction.

use sqlx::SqliteConnection;

use super::{Sqlite, sql};
use crate::store::Result;
use crate::store::sample::{Filled, Filling, Sheet, Told, ours, text_of};

/// Rows of one statement.
const CHUNK: usize = 500;
const DOING: &str = "fill the sample billing";

pub(super) async fn fill(
    store: &Sqlite,
    all: &[Filling],
    keep: bool,
    told: Told<'_>,
) -> Result<Vec<Filled>> {
    let mut writer = store.write().await;
    let mut tx = writer.begin().await?;
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
    tx: &mut SqliteConnection,
    filling: &Filling,
    written: &mut u64,
    told: Told<'_>,
) -> Result<Filled> {
    let Sheet { table, key, .. } = filling.sheet;
    let is_table: (bool,) = sqlx::query_as(
        "select exists (select 1 from sqlite_master where type = 'table' and lower(name) = ?1)",
    )
    .bind(table)
    .fetch_one(&mut *tx)
    .await
    .map_err(sql(DOING))?;
    let columns: Vec<(String,)> = sqlx::query_as("select lower(name) from pragma_table_info(?1)")
        .bind(table)
        .fetch_all(&mut *tx)
        .await
        .map_err(sql(DOING))?;
    let columns: Vec<String> = columns.into_iter().map(|(name,)| name).collect();
    ours(filling.sheet, is_table.0, &columns)?;
    let counted = format!("select count(*) from {table}");
    let (there,): (i64,) = sqlx::query_as(sqlx::AssertSqlSafe(counted))
        .fetch_one(&mut *tx)
        .await
        .map_err(sql(DOING))?;
    let names = std::iter::once(*key).chain(filling.columns.iter().copied());
    let cells: Vec<String> = names
        .map(|name| format!("value ->> '$.{name}' as {name}"))
        .collect();
    let source = format!("(select {} from json_each(?1)) r", cells.join(", "));
    let upsert = filling.upsert(&source, "is not");
    let known = format!(
        "select count(*) from {table} where {key} in (select value ->> '$.{key}' from json_each(?1))"
    );
    let (mut given_there, mut touched) = (0, 0);
    for chunk in filling.rows.chunks(CHUNK) {
        let rows = text_of(chunk);
        let (some,): (i64,) = sqlx::query_as(sqlx::AssertSqlSafe(known.clone()))
            .bind(&rows)
            .fetch_one(&mut *tx)
            .await
            .map_err(sql(DOING))?;
        let done = sqlx::query(sqlx::AssertSqlSafe(upsert.clone()))
            .bind(&rows)
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
