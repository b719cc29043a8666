//! The models of the classic API: their columns, their rows, and the rewriting of a compact
//! event that nobody has taken yet.

use serde_json::{Map, Value};
use sqlx::sqlite::SqliteArguments;
use sqlx::{Row, SqlSafeStr};

use super::{Sqlite, billing, bound, sql};
use crate::clock;
use crate::event::{CompactEvent, EventId};
use crate::store::query::{self, Bound, Column, Kind, Model, Query};
use crate::store::statement::{self, Dialect};
use crate::store::{Error, Result};

/// Wall time of a column, ms, whatever form of time it holds.
fn ms(column: &str) -> String {
    format!("cast(round(unixepoch({column}, 'subsec') * 1000) as integer)")
}

fn column(name: &str, sql: &str, kind: Kind, shown: bool) -> Column {
    let (compare, json) = match kind {
        Kind::Integer => (sql.to_owned(), sql.to_owned()),
        Kind::Boolean => (
            sql.to_owned(),
            format!(
                "json(case when {sql} is null then 'null' when {sql} then 'true' else 'false' end)"
            ),
        ),
        Kind::Time => (
            ms(sql),
            format!("ifnull(strftime('%Y-%m-%d %H:%M:%S', {sql}), {sql})"),
        ),
        Kind::Json => (
            sql.to_owned(),
            format!("case when json_valid({sql}) then json({sql}) else {sql} end"),
        ),
        Kind::Decimal | Kind::Text => (
            sql.to_owned(),
            format!("case when typeof({sql}) = 'blob' then lower(hex({sql})) else {sql} end"),
        ),
    };
    Column {
        name: name.to_owned(),
        kind,
        shown,
        compare,
        json,
    }
}

/// What a declared type promises (sqlite.org, "Determination Of Column Affinity").
fn kind(declared: &str) -> Kind {
    let has = |words: &[&str]| words.iter().any(|word| declared.contains(word));
    if has(&["JSON"]) {
        Kind::Json
    } else if has(&["BOOL"]) {
        Kind::Boolean
    } else if has(&["INT"]) {
        Kind::Integer
    } else if has(&["TIME", "DATE"]) {
        Kind::Time
    } else if has(&["REAL", "FLOA", "DOUB", "NUM", "DEC"]) {
        Kind::Decimal
    } else {
        Kind::Text
    }
}

fn of_model(shape: &billing::Shape, model: Model) -> Vec<Column> {
    if let Some(own) = model.ours() {
        let columns = own.iter();
        return columns
            .map(|(name, sql, kind, shown)| column(name, sql, *kind, *shown))
            .collect();
    }
    let columns = shape.columns(model.table()).iter();
    columns
        .filter(|(name, _)| query::may_be_asked(name))
        .map(|(name, declared)| column(name, &format!("\"{name}\""), kind(declared), true))
        .collect()
}

pub(super) fn columns(store: &Sqlite, model: Model) -> Vec<Column> {
    of_model(&store.shape(), model)
}

pub(super) async fn find(store: &Sqlite, query: &Query) -> Result<Vec<Map<String, Value>>> {
    let shape = store.shape();
    let known = |model| of_model(&shape, model);
    let (text, bound) = statement::objects(Dialect::Sqlite, &known, query)?;
    let text = sqlx::AssertSqlSafe(text).into_sql_str();
    let query_with = sqlx::query_with(text, arguments(bound)?);
    let rows = if query.unbounded {
        let rows = query_with.fetch_all(&store.readers).await;
        rows.map_err(sql("look objects up"))?
    } else {
        let mut look = bound::look(store).await?;
        let rows = query_with.fetch_all(look.conn()).await;
        rows.map_err(look.failed("look objects up"))?
    };
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        // A producer's text may be in any encoding.
        let text: Vec<u8> = row.try_get(0).map_err(sql("read an object"))?;
        found.push(
            serde_json::from_str(&String::from_utf8_lossy(&text)).map_err(|e| {
                Error::Refused(format!("a row of {} is no JSON: {e}", query.model.name()))
            })?,
        );
    }
    Ok(found)
}

pub(super) async fn count(store: &Sqlite, query: &Query) -> Result<i64> {
    let shape = store.shape();
    let known = |model| of_model(&shape, model);
    let (text, bound) = statement::number(Dialect::Sqlite, &known, query)?;
    let text = sqlx::AssertSqlSafe(text).into_sql_str();
    let query_with = sqlx::query_with(text, arguments(bound)?);
    let row = if query.unbounded {
        let row = query_with.fetch_one(&store.readers).await;
        row.map_err(sql("count objects"))?
    } else {
        let mut look = bound::look(store).await?;
        let row = query_with.fetch_one(look.conn()).await;
        row.map_err(look.failed("count objects"))?
    };
    row.try_get(0).map_err(sql("count objects"))
}

fn arguments(bound: Vec<Bound>) -> Result<SqliteArguments> {
    use sqlx::Arguments;
    let mut all = SqliteArguments::default();
    for value in bound {
        match value {
            Bound::Integer(n) => all.add(n),
            Bound::Boolean(b) => all.add(i64::from(b)),
            Bound::Decimal(text) | Bound::Text(text) => all.add(text),
        }
        .map_err(|e| Error::Refused(format!("a value cannot be bound: {e}")))?;
    }
    Ok(all)
}

pub(super) async fn rewrite(store: &Sqlite, id: EventId, event: &CompactEvent) -> Result<bool> {
    let params = event.params.clone().map(|p| Value::Object(p).to_string());
    let mut writer = store.write().await;
    let done = sqlx::query(
        "update events_stack_compact set cmd = ?2, user_id = ?3, abonent_id = ?4, nas_id = ?5, nas_ip = ?6,
           usluga_id = ?7, acct_session_id = ?8, params = ?9, params_complete = ?10, owner_script = ?11,
           owner_function = ?12, source = ?13, batch_id = ?14, expires_at = ?15,
           error = null, expand_tries = 0, next_expand_at = null
         where id = ?1",
    )
    .bind(id.0)
    .bind(&event.cmd)
    .bind(event.user_id)
    .bind(event.abonent_id)
    .bind(event.nas_id)
    .bind(&event.nas_ip)
    .bind(event.usluga_id)
    .bind(&event.acct_session_id)
    .bind(params)
    .bind(event.params_complete)
    .bind(&event.owner_script)
    .bind(&event.owner_function)
    .bind(&event.source)
    .bind(&event.batch_id)
    .bind(event.expires_at_ms.map(clock::utc_text))
    .execute(&mut writer.conn)
    .await
    .map_err(sql("rewrite a compact event"))?;
    Ok(done.rows_affected() == 1)
}
