//! Looks for tools and people, dropping events, pruning history, the operator's own SQL.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{Column, Connection, Executor, PgConnection, Row, SqlSafeStr, TypeInfo, ValueRef};

use super::{Postgres, connection, kept_ms, look_failed, sql, stack, storable};
use crate::event::{EventId, Params};
use crate::store::{
    Backlog, Counts, Error, EventRow, Filter, Result, SqlAnswer, WhereIs, operator, rows,
};

/// Most rows that `events` returns in one call.
const LIST_MAX: usize = 1_000;

const COMPACT: &str = "select id, 'compact' as place, 'compact' as state, cmd, user_id, abonent_id, nas_id,
  source, batch_id, (date_part('epoch', created_at) * 1000)::bigint as event_ms, expand_tries as tries,
  (date_part('epoch', next_expand_at) * 1000)::bigint as next_ms, null::bigint as ended_ms, false as dup,
  null::int as code, error, null::bigint as ms, null as answer, params::text, null::bigint as retried_as,
  null as hash from events_stack_compact";
const STACK: &str = "select id, 'stack' as place, state, event_type as cmd, user_id, abonent_id, nas_id,
  source, batch_id, (date_part('epoch', event_date) * 1000)::bigint as event_ms, try_count as tries,
  (date_part('epoch', next_try_at) * 1000)::bigint as next_ms, null::bigint as ended_ms,
  possible_duplicate as dup, last_code as code, last_error as error, null::bigint as ms, null as answer,
  params::text, null::bigint as retried_as, null as hash from events_stack";
const DEAD: &str =
    "select id, 'dead' as place, 'dead' as state, event_type as cmd, user_id, abonent_id, nas_id,
  source, batch_id, (date_part('epoch', event_date) * 1000)::bigint as event_ms, try_count as tries,
  case when retried_as is null then retry_ms end as next_ms, (date_part('epoch', died_at) * 1000)::bigint as ended_ms,
  possible_duplicate as dup, last_code as code, reason as error, null::bigint as ms, null as answer,
  params::text, retried_as, null as hash from events_dead";
const DONE: &str = "select id, 'done' as place, result as state, event_type as cmd, user_id, abonent_id, nas_id,
  source, batch_id, (date_part('epoch', event_date) * 1000)::bigint as event_ms, attempts as tries,
  null::bigint as next_ms, (date_part('epoch', finished_at) * 1000)::bigint as ended_ms,
  possible_duplicate as dup, code, error, ms, answer, null::text as params, null::bigint as retried_as,
  scheme_hash as hash from events_done";

fn event_row(row: &PgRow) -> Result<EventRow> {
    let read = || -> std::result::Result<EventRow, sqlx::Error> {
        let params: Option<&str> = row.try_get("params")?;
        Ok(EventRow {
            id: EventId(row.try_get("id")?),
            place: match row.try_get::<&str, _>("place")? {
                "compact" => WhereIs::Compact,
                "stack" => WhereIs::Stack,
                "dead" => WhereIs::Dead,
                _ => WhereIs::Done,
            },
            state: row.try_get("state")?,
            cmd: row.try_get("cmd")?,
            user_id: row.try_get("user_id")?,
            abonent_id: row.try_get("abonent_id")?,
            nas_id: row.try_get("nas_id")?,
            source: row.try_get("source")?,
            batch_id: row.try_get("batch_id")?,
            event_date_ms: row.try_get::<Option<i64>, _>("event_ms")?.unwrap_or(0),
            try_count: row.try_get::<i32, _>("tries")?.into(),
            next_try_ms: row.try_get("next_ms")?,
            ended_ms: row.try_get("ended_ms")?,
            possible_duplicate: row.try_get("dup")?,
            code: row.try_get::<Option<i32>, _>("code")?.map(i64::from),
            error: row.try_get("error")?,
            ms: row.try_get("ms")?,
            answer: row.try_get("answer")?,
            params: params.map(|p| Params(serde_json::from_str(p).unwrap_or_default())),
            retried_as: row.try_get("retried_as")?,
            scheme_hash: row.try_get("hash")?,
        })
    };
    read().map_err(sql("read an event"))
}

pub(super) async fn counts(store: &Postgres) -> Result<Counts> {
    rows::connections(&store.pool);
    let (compact, unexpandable): (i64, i64) = sqlx::query_as(
        "select (select count(*) from events_stack_compact),
           (select count(*) from events_stack_compact where error is not null)",
    )
    .fetch_one(&store.pool)
    .await
    .map_err(sql("count events"))?;
    // `collate "C"`: by bytes, like SQLite, whatever the database's language.
    let main = sqlx::query_as(
        "select event_type, count(*) from events_stack group by event_type order by event_type collate \"C\"",
    )
    .fetch_all(&store.pool)
    .await
    .map_err(sql("count events by type"))?;
    let by_nas: Vec<(i64, String, i64)> = sqlx::query_as(
        "select nas_id, state, count(*) from events_stack group by nas_id, state
         order by nas_id, state collate \"C\"",
    )
    .fetch_all(&store.pool)
    .await
    .map_err(sql("count events by NAS"))?;
    let dead_by_nas: Vec<(Option<i64>, i64)> = sqlx::query_as(
        "select nas_id, count(*) from events_dead where retried_as is null
         group by nas_id order by nas_id nulls first",
    )
    .fetch_all(&store.pool)
    .await
    .map_err(sql("count dead events"))?;
    let (oldest_s, oldest_compact_s): (i64, i64) = sqlx::query_as(
        "select coalesce(greatest(0, date_part('epoch', clock_timestamp() - min(oldest)))::bigint, 0),
           coalesce(greatest(0, date_part('epoch',
             clock_timestamp() - min(oldest) filter (where compact)))::bigint, 0)
         from (
           select min(event_date) as oldest, false as compact
             from (select event_date from events_stack order by id limit 100) s
           union all select min(created_at), true
             from (select created_at from events_stack_compact order by id limit 100) c) o",
    )
    .fetch_one(&store.pool)
    .await
    .map_err(sql("find the oldest event"))?;
    let nases: BTreeSet<i64> = by_nas.iter().map(|(nas, _, _)| *nas).collect();
    // As above, of each NAS by its index; what the guard holds waits for a person.
    let oldest_by_nas = sqlx::query_as(
        "select n.id, coalesce(greatest(0, date_part('epoch', clock_timestamp() - o.oldest))::bigint, 0)
         from unnest($1::bigint[]) n(id) cross join lateral (
           select min(s.event_date) as oldest from (select event_date, state from events_stack
             where nas_id = n.id order by id + 0 limit 100) s where s.state <> 'held') o
         order by 1",
    )
    .bind(nases.into_iter().collect::<Vec<_>>())
    .fetch_all(&store.pool)
    .await
    .map_err(sql("find the oldest event of each NAS"))?;
    Ok(Counts {
        compact,
        unexpandable,
        main,
        by_nas,
        dead: dead_by_nas.iter().map(|(_, rows)| rows).sum(),
        dead_by_nas,
        oldest_s,
        oldest_compact_s,
        oldest_by_nas,
    })
}

pub(super) async fn backlog(store: &Postgres, most: usize) -> Result<Backlog> {
    let (compact, main): (i64, i64) = sqlx::query_as(
        "select (select count(*) from (select 1 from events_stack_compact limit $1) c),
           (select count(*) from (select 1 from events_stack limit $1) s)",
    )
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_one(&store.pool)
    .await
    .map_err(sql("count what waits"))?;
    Ok(Backlog {
        compact: usize::try_from(compact).unwrap_or(0),
        main: usize::try_from(main).unwrap_or(0),
    })
}

/// The rows of a place, with the columns of `EventRow`.
fn table(place: WhereIs) -> &'static str {
    match place {
        WhereIs::Compact => COMPACT,
        WhereIs::Stack => STACK,
        WhereIs::Dead => DEAD,
        WhereIs::Done => DONE,
    }
}

/// The statement behind [`Store::events`](crate::store::Store::events), and the state that is its
/// first parameter, if there is one; the others follow in the order of `Filter::conditions`.
pub fn list_text(filter: &Filter) -> Result<(String, Option<&str>)> {
    let (places, state) = filter.places()?;
    let (conditions, limit) = filter.conditions(state.is_some(), '$');
    // Each table by itself: ordered and cut before the rows of all are merged.
    let tables: Vec<String> = places
        .iter()
        .map(|place| {
            format!(
                "select * from (select * from ({}) e {conditions} order by id desc limit {limit}) p",
                table(*place)
            )
        })
        .collect();
    let source = tables.join(" union all ");
    let text = format!("select * from ({source}) e order by id desc limit {limit}");
    Ok((text, state))
}

pub(super) async fn events(store: &Postgres, filter: &Filter) -> Result<Vec<EventRow>> {
    let (text, state) = list_text(filter)?;
    // Planned anew each time: only with the values at hand does a filter find its index.
    let mut query = sqlx::query(sqlx::AssertSqlSafe(text)).persistent(false);
    if let Some(state) = state {
        query = query.bind(state.to_owned());
    }
    let numbers = [filter.nas, filter.user, filter.abonent];
    for number in numbers.into_iter().flatten() {
        query = query.bind(number);
    }
    for text in [&filter.cmd, &filter.batch, &filter.error]
        .into_iter()
        .flatten()
    {
        query = query.bind(storable(text));
    }
    for id in [filter.from, filter.before].into_iter().flatten() {
        query = query.bind(id);
    }
    let query = query.bind(i64::try_from(filter.limit.clamp(1, LIST_MAX)).unwrap_or(100));
    let rows = if filter.unbounded {
        let rows = query.fetch_all(&store.pool).await;
        rows.map_err(sql("list events"))?
    } else {
        let mut conn = store.looker(false).await?;
        let rows = connection::look(false, query.fetch_all(&mut *conn)).await;
        connection::give_back(conn, &rows);
        rows.map_err(look_failed("list events"))?
    };
    rows.iter().map(event_row).collect()
}

pub(super) async fn event(store: &Postgres, id: EventId) -> Result<Option<EventRow>> {
    // One statement sees one moment: an event on its way is in exactly one place.
    let text = format!(
        "select * from ({COMPACT} union all {STACK} union all {DEAD} union all {DONE}) e where id = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(id.0)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("look an event up"))?;
    row.as_ref().map(event_row).transpose()
}

pub(super) async fn drop_event(
    store: &Postgres,
    id: EventId,
    state: Option<&str>,
    why: &str,
) -> Result<bool> {
    let columns =
        "id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id, event_date,
      owner_script, owner_function, source, batch_id";
    // In the order of the flow, each a statement of its own: one that is being moved meanwhile
    // is waited for, and found at the next place.
    for (table, condition, cmd, date) in [
        (
            "events_stack_compact",
            "coalesce($3, 'compact') = 'compact'",
            "cmd",
            "created_at",
        ),
        (
            "events_stack",
            "state in ('ready', 'deferred', 'held') and coalesce($3, state) = state",
            "event_type",
            "event_date",
        ),
        (
            "events_dead",
            "retried_as is null and coalesce($3, 'dead') = 'dead'",
            "event_type",
            "event_date",
        ),
    ] {
        let from = columns
            .replace("event_type", cmd)
            .replace("event_date", date);
        let text = format!(
            "with gone as (delete from {table} where id = $1 and {condition} returning *)
             insert into events_done ({columns}, result, error) select {from}, 'dropped', $2 from gone
             {}",
            stack::anew_done()
        );
        let moved = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(id.0)
            .bind(storable(why))
            .bind(state)
            .execute(&store.pool)
            .await
            .map_err(sql("drop an event"))?;
        if moved.rows_affected() == 1 {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) async fn prune_done(store: &Postgres, before_ms: i64, limit: usize) -> Result<u64> {
    let done = sqlx::query(
        "delete from events_done where id = any(array(select id from events_done order by id limit $2))
           and finished_at < to_timestamp($1::bigint / 1000.0)",
    )
        .bind(kept_ms(before_ms))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .execute(&store.pool)
        .await
        .map_err(sql("delete old done events"))?;
    Ok(done.rows_affected())
}

pub(super) async fn prune_audit(store: &Postgres, before_ms: i64, limit: usize) -> Result<u64> {
    let done = sqlx::query(
        "delete from audit where id = any(array(select id from audit order by id limit $2))
           and at < to_timestamp($1::bigint / 1000.0)",
    )
    .bind(kept_ms(before_ms))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .execute(&store.pool)
    .await
    .map_err(sql("delete old rows of the audit"))?;
    Ok(done.rows_affected())
}

/// Ways around [`operator::HIDDEN`]: names spelt by escapes, functions that run a text as a statement,
/// samples that the planner keeps of columns, and files of the server.
const AROUND: [&str; 18] = [
    "u&\"",
    "u&'",
    "_to_xml",
    "ts_stat",
    "ts_rewrite",
    "dblink",
    "crosstab",
    "connectby",
    "pg_logical_",
    "pg_stats",
    "pg_statistic",
    "pg_read_",
    "pg_ls_",
    "lo_import",
    "lo_export",
    "get_raw_page",
    "page_items",
    "xpath_table",
];
/// What a statement that only looks may begin with.
const LOOKS: [&str; 6] = ["select", "with", "values", "table", "show", "explain"];
/// What one that changes may begin with. Not `do`, `call`, `execute`, `copy` and their like: they run
/// a text that is put together only then, and no look at the statement says what it reads.
const CHANGES: [&str; 23] = [
    "insert", "update", "delete", "merge", "truncate", "create", "alter", "drop", "comment",
    "grant", "revoke", "analyze", "vacuum", "reindex", "cluster", "refresh", "set", "reset",
    "begin", "start", "commit", "end", "rollback",
];
/// What `create` and `alter` may not make or change, for the same reason.
const CODE: [&str; 17] = [
    "function",
    "procedure",
    "routine",
    "language",
    "extension",
    "aggregate",
    "trigger",
    "rule",
    "policy",
    // What another server would show, or be shown.
    "foreign",
    "server",
    "publication",
    "subscription",
    // Their passwords would stand in the audit.
    "role",
    "user",
    "group",
    "system",
];
/// What `drop` and `alter` may not be about: our tables, or what their triggers are written in, go
/// with it.
const WHOLE: [&str; 8] = [
    "schema",
    "owned",
    "database",
    "extension",
    "language",
    "role",
    "user",
    "group",
];
/// Statements that have a plan; it names each table that is read, by views too.
const PLANNED: [&str; 9] = [
    "select", "with", "values", "table", "insert", "update", "delete", "merge", "create",
];

/// The word that a statement begins with, if its words allow it.
pub(super) fn allowed(statement: &str, write: bool) -> Result<String> {
    let lower = statement.to_ascii_lowercase();
    operator::hides_secrets(&lower)?;
    if let Some(way) = AROUND.iter().find(|way| lower.contains(**way)) {
        return Err(Error::Refused(format!(
            "{way} is not allowed here: it could show tables that are never readable"
        )));
    }
    if statement.contains('\0') {
        return Err(Error::Refused(
            "the statement holds a NUL character (U+0000)".to_owned(),
        ));
    }
    let first = operator::first_word(&lower);
    if !write && !LOOKS.contains(&first.as_str()) {
        return Err(Error::Refused(format!(
            "{first:?} may change something: only {} are allowed without write",
            LOOKS.join(", ")
        )));
    }
    if write {
        operator::keeps_the_audit(&lower, &first)?;
        // Its argument may be put together, so that no name is seen.
        if operator::words(&operator::outside(&lower)).any(|word| word == "setval") {
            return Err(Error::Refused(
                "setval is not allowed here: it could end the numbers of the audit; alter sequence \
                 NAME restart N names its sequence"
                    .to_owned(),
            ));
        }
    }
    let has = |names: &[&str]| operator::words(&lower).any(|word| names.contains(&word));
    let about = |names: &[&str]| match operator::kind(&lower) {
        Some(kind) => names.contains(&kind),
        None => has(names),
    };
    // `create schema` may make more than the schema.
    let many = first == "create"
        && about(&["schema"])
        && operator::words(&lower).skip(1).any(|word| word == "create");
    let makes_code = many || (["create", "alter"].contains(&first.as_str()) && about(&CODE));
    let known = LOOKS.iter().chain(&CHANGES).any(|word| *word == first);
    if write && (makes_code || !known) {
        return Err(Error::Refused(format!(
            "{first:?} is not allowed here{}: it could run a text as a statement, and show tables that are never readable",
            if makes_code { " with code" } else { "" }
        )));
    }
    if first == "grant" && (!has(&["on"]) || has(&["tables"])) {
        return Err(Error::Refused(
            "grant names its tables here: of a role, or of all tables, it could show those that are \
             never readable"
                .to_owned(),
        ));
    }
    if write && ["drop", "alter"].contains(&first.as_str()) && about(&WHOLE) {
        return Err(Error::Refused(format!(
            "{first:?} of so much is not allowed here: our tables and the audit may be in it"
        )));
    }
    Ok(first)
}

pub(super) async fn sql_statement(
    store: &Postgres,
    statement: &str,
    write: bool,
) -> Result<SqlAnswer> {
    let first = allowed(statement, write)?;
    // A connection of its own: what the statement sets, creates or leaves open ends with it.
    let mut conn = connection::open(&store.options)
        .await
        .map_err(sql("connect for the statement"))?;
    let out = if write {
        change(&mut conn, &first, statement).await
    } else {
        look(&mut conn, &first, statement).await
    };
    let closed = conn.close().await;
    let answer = out?;
    closed.map_err(sql("end the statement's connection"))?;
    Ok(answer)
}

/// Asks the server which tables the statement would read. What functions read inside is not in
/// the plan: those that run a text are refused by name, those of the billing are its own affair.
async fn reads_nothing_hidden(conn: &mut PgConnection, first: &str, statement: &str) -> Result<()> {
    let view = operator::body(statement, first).filter(|_| !statement_is_copy(statement));
    let explained = match first {
        "explain" => after_explain(statement),
        _ => view.unwrap_or(statement),
    };
    let inner = operator::first_word(&explained.to_ascii_lowercase());
    if !PLANNED.contains(&inner.as_str()) {
        if first != "explain" && view.is_none() {
            return Ok(());
        }
        return Err(Error::Refused(format!(
            "{inner:?} has no plan: what it would read cannot be seen"
        )));
    }
    let text = sqlx::AssertSqlSafe(format!("explain (format json) {explained}"));
    // Prepared, for it is cut out of the statement: out of a name in quotes it could be several.
    let plan = sqlx::query(text).persistent(false).fetch_one(conn);
    let row = match plan.await {
        Ok(row) => row,
        // Of what is created only `as select` has a plan; the rest reads nothing.
        Err(sqlx::Error::Database(_)) if first == "create" && view.is_none() => return Ok(()),
        Err(error) => return Err(sql("run the statement")(error)),
    };
    let plan = value_text(&row, 0).map_err(sql("read the statement's plan"))?;
    let plan = plan.unwrap_or_default().to_ascii_lowercase();
    for table in operator::HIDDEN {
        if plan.contains(&format!("\"relation name\": \"{table}\"")) {
            return Err(operator::would_open(table));
        }
    }
    Ok(())
}

/// A materialized view has a plan of its own.
fn statement_is_copy(statement: &str) -> bool {
    let lower = statement.to_ascii_lowercase();
    operator::words(&lower).nth(1) == Some("materialized")
}

/// What `explain` with its options is about.
fn after_explain(statement: &str) -> &str {
    let mut rest = statement
        .trim_start()
        .get("explain".len()..)
        .unwrap_or_default()
        .trim_start();
    if rest.starts_with('(') {
        return rest.split_once(')').map_or("", |(_, inner)| inner);
    }
    loop {
        let word = operator::first_word(&rest.to_ascii_lowercase());
        if !["analyze", "analyse", "verbose"].contains(&word.as_str()) {
            return rest;
        }
        rest = rest.get(word.len()..).unwrap_or_default().trim_start();
    }
}

async fn change(conn: &mut PgConnection, first: &str, statement: &str) -> Result<SqlAnswer> {
    // Refuses more than one command: only the first was looked at.
    let text = sqlx::AssertSqlSafe(statement.to_owned()).into_sql_str();
    (&mut *conn)
        .prepare(text)
        .await
        .map_err(sql("check the statement"))?;
    let mut tx = conn
        .begin_with("begin read only")
        .await
        .map_err(sql("begin to check the statement"))?;
    reads_nothing_hidden(&mut tx, first, statement).await?;
    tx.rollback().await.map_err(sql("check the statement"))?;
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()))
        .execute(conn)
        .await
        .map_err(sql("run the statement"))?;
    Ok(SqlAnswer {
        changed: done.rows_affected(),
        ..SqlAnswer::default()
    })
}

async fn look(conn: &mut PgConnection, first: &str, statement: &str) -> Result<SqlAnswer> {
    let mut tx = conn
        .begin_with("begin read only")
        .await
        .map_err(sql("begin to run the statement"))?;
    // Refuses more than one command: a `commit;` in front would end the read-only transaction.
    let text = sqlx::AssertSqlSafe(statement.to_owned()).into_sql_str();
    (&mut *tx)
        .prepare(text)
        .await
        .map_err(sql("check the statement"))?;
    reads_nothing_hidden(&mut tx, first, statement).await?;
    let mut answer = SqlAnswer::default();
    {
        // Asked as plain text: the server writes every type as text by itself.
        let text = sqlx::AssertSqlSafe(statement.to_owned());
        let mut rows = sqlx::raw_sql(text).fetch(&mut *tx);
        while let Some(row) = rows.try_next().await.map_err(sql("run the statement"))? {
            if answer.columns.is_empty() {
                answer.columns = row.columns().iter().map(|c| c.name().to_owned()).collect();
            }
            let mut values = Vec::with_capacity(row.len());
            for i in 0..row.len() {
                values.push(value_text(&row, i).map_err(sql("read a value"))?);
            }
            answer.add(values)?;
        }
    }
    tx.rollback().await.map_err(sql("end the statement"))?;
    Ok(answer)
}

fn value_text(row: &PgRow, i: usize) -> std::result::Result<Option<String>, sqlx::Error> {
    let raw = row.try_get_raw(i)?;
    if raw.is_null() {
        return Ok(None);
    }
    let kind = raw.type_info().name().to_owned();
    let text = raw.as_str().map_err(sqlx::Error::Decode)?;
    Ok(Some(match (kind.as_str(), text) {
        ("BOOL", "t") => "1".to_owned(),
        ("BOOL", "f") => "0".to_owned(),
        ("TIMESTAMPTZ", text) => text.trim_end_matches("+00").to_owned(),
        ("BYTEA", text) => text.trim_start_matches("\\x").to_owned(),
        (_, text) => text.to_owned(),
    }))
}
