//! The models of the classic API: their columns, their rows, and the rewriting of a compact
//! event that nobody has taken yet.

use serde_json::{Map, Value};
use sqlx::postgres::PgArguments;
use sqlx::{Row, SqlSafeStr};

use super::{Postgres, billing, connection, kept_ms, look_failed, ms_of, sql};
use crate::event::{CompactEvent, EventId};
use crate::store::query::{self, Bound, Column, Kind, Model, Query};
use crate::store::statement::{self, Dialect};
use crate::store::{Error, Result};

fn column(name: &str, sql: &str, kind: Kind, shown: bool) -> Column {
    let (compare, json) = match kind {
        Kind::Integer | Kind::Boolean | Kind::Text => (sql.to_owned(), sql.to_owned()),
        Kind::Decimal => (
            format!("({sql})::numeric"),
            format!("trim_scale(({sql})::numeric)"),
        ),
        Kind::Time => (
            ms_of(sql),
            format!("coalesce(to_char({sql}, 'YYYY-MM-DD HH24:MI:SS'), ({sql})::text)"),
        ),
        Kind::Json => (format!("({sql})::text"), format!("to_json({sql})")),
    };
    Column {
        name: name.to_owned(),
        kind,
        shown,
        compare,
        json,
    }
}

/// A column of the billing: what is no number, time or JSON is compared and shown as text.
fn of_theirs(name: &str, base: &str, category: &str) -> Column {
    let quoted = format!("\"{name}\"");
    let text = |sql: String| Column {
        name: name.to_owned(),
        kind: Kind::Text,
        shown: true,
        compare: sql.clone(),
        json: sql,
    };
    match base {
        "bool" => column(name, &quoted, Kind::Boolean, true),
        "int2" | "int4" | "int8" => column(name, &quoted, Kind::Integer, true),
        "numeric" | "float4" | "float8" => column(name, &quoted, Kind::Decimal, true),
        "timestamptz" | "timestamp" | "date" => column(name, &quoted, Kind::Time, true),
        "json" | "jsonb" => column(name, &quoted, Kind::Json, true),
        "inet" | "cidr" => text(format!("abbrev({quoted}::inet)")),
        "bytea" => text(format!("encode({quoted}, 'hex')")),
        _ if matches!(category, "A" | "C") => Column {
            json: format!("to_json({quoted})"),
            kind: Kind::Json,
            ..text(format!("{quoted}::text"))
        },
        _ => text(format!("{quoted}::text")),
    }
}

fn of_model(shape: &billing::Shape, model: Model) -> Vec<Column> {
    if let Some(own) = model.ours() {
        let columns = own.iter();
        return columns
            .map(|(name, sql, kind, shown)| match kind {
                // What producers write is a number, what we write is a boolean.
                Kind::Boolean => column(name, &format!("({sql}::int <> 0)"), *kind, *shown),
                _ => column(name, sql, *kind, *shown),
            })
            .collect();
    }
    let columns = shape.columns(model.table());
    columns
        .filter(|(name, _, _)| query::may_be_asked(name))
        .map(|(name, base, category)| of_theirs(name, base, category))
        .collect()
}

pub(super) fn columns(store: &Postgres, model: Model) -> Vec<Column> {
    of_model(&store.shape(), model)
}

pub(super) async fn find(store: &Postgres, query: &Query) -> Result<Vec<Map<String, Value>>> {
    let shape = store.shape();
    let known = |model| of_model(&shape, model);
    let (text, bound) = statement::objects(Dialect::Postgres, &known, query)?;
    // Planned anew each time: only with the values at hand does a look-up find its index.
    let text = sqlx::AssertSqlSafe(text).into_sql_str();
    let query_with = sqlx::query_with(text, arguments(bound)?).persistent(false);
    let mut conn = store.looker(query.unbounded).await?;
    let rows = connection::look(query.unbounded, query_with.fetch_all(&mut *conn)).await;
    connection::give_back(conn, &rows);
    let rows = rows.map_err(look_failed("look objects up"))?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let text: &str = row.try_get(0).map_err(sql("read an object"))?;
        found.push(serde_json::from_str(text).map_err(|e| {
            Error::Refused(format!("a row of {} is no JSON: {e}", query.model.name()))
        })?);
    }
    Ok(found)
}

pub(super) async fn count(store: &Postgres, query: &Query) -> Result<i64> {
    let shape = store.shape();
    let known = |model| of_model(&shape, model);
    let (text, bound) = statement::number(Dialect::Postgres, &known, query)?;
    let text = sqlx::AssertSqlSafe(text).into_sql_str();
    let query_with = sqlx::query_with(text, arguments(bound)?).persistent(false);
    let mut conn = store.looker(query.unbounded).await?;
    let row = connection::look(query.unbounded, query_with.fetch_one(&mut *conn)).await;
    connection::give_back(conn, &row);
    let row = row.map_err(look_failed("count objects"))?;
    row.try_get(0).map_err(sql("count objects"))
}

fn arguments(bound: Vec<Bound>) -> Result<PgArguments> {
    use sqlx::Arguments;
    let mut all = PgArguments::default();
    for value in bound {
        match value {
            Bound::Integer(n) => all.add(n),
            Bound::Boolean(b) => all.add(b),
            Bound::Decimal(text) | Bound::Text(text) => all.add(text),
        }
        .map_err(|e| Error::Refused(format!("a value cannot be bound: {e}")))?;
    }
    Ok(all)
}

pub(super) async fn rewrite(store: &Postgres, id: EventId, event: &CompactEvent) -> Result<bool> {
    let params = event.params.clone().map(|p| Value::Object(p).to_string());
    let done = sqlx::query(
        "update events_stack_compact set cmd = $2, user_id = $3, abonent_id = $4, nas_id = $5, nas_ip = $6,
           usluga_id = $7, acct_session_id = $8, params = $9::text::json, params_complete = $10::boolean::int, owner_script = $11,
           owner_function = $12, source = $13, batch_id = $14, expires_at = to_timestamp($15::bigint / 1000.0),
           error = null, expand_tries = 0, next_expand_at = null
         where id = $1",
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
    .bind(event.expires_at_ms.map(kept_ms))
    .execute(&store.pool)
    .await
    .map_err(sql("rewrite a compact event"))?;
    Ok(done.rows_affected() == 1)
}
