//! Looks for tools and people, dropping events, pruning history, the operator's own SQL.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use serde_json::json;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Column, Row, TypeInfo, ValueRef};

use super::{Sqlite, bound, sql};
use crate::clock;
use crate::event::{EventId, Params};
use crate::store::{
    Backlog, Counts, Error, EventRow, Filter, Result, SqlAnswer, WhereIs, operator, rows,
};

/// Most rows that `events` returns in one call.
const LIST_MAX: usize = 1_000;

const COMPACT: &str = "select id, 'compact' as place, 'compact' as state, cmd, user_id, abonent_id, nas_id,
  source, batch_id, cast(round(unixepoch(created_at, 'subsec') * 1000) as integer) as event_ms, expand_tries as tries,
  cast(round(unixepoch(next_expand_at, 'subsec') * 1000) as integer) as next_ms, null as ended_ms, 0 as dup, null as code,
  error, null as ms, null as answer, params, null as retried_as, null as hash from events_stack_compact";
const STACK: &str = "select id, 'stack' as place, state, event_type as cmd, user_id, abonent_id, nas_id,
  source, batch_id, cast(round(unixepoch(event_date, 'subsec') * 1000) as integer) as event_ms, try_count as tries,
  cast(round(unixepoch(next_try_at, 'subsec') * 1000) as integer) as next_ms, null as ended_ms, possible_duplicate as dup,
  last_code as code, last_error as error, null as ms, null as answer, params, null as retried_as, null as hash
  from events_stack";
const DEAD: &str = "select id, 'dead' as place, 'dead' as state, event_type as cmd, user_id, abonent_id, nas_id,
  source, batch_id, cast(round(unixepoch(event_date, 'subsec') * 1000) as integer) as event_ms, try_count as tries,
  case when retried_as is null then retry_ms end as next_ms, cast(round(unixepoch(died_at, 'subsec') * 1000) as integer) as ended_ms, possible_duplicate as dup,
  last_code as code, reason as error, null as ms, null as answer, params, retried_as, null as hash from events_dead";
const DONE: &str = "select id, 'done' as place, result as state, event_type as cmd, user_id, abonent_id, nas_id,
  source, batch_id, cast(round(unixepoch(event_date, 'subsec') * 1000) as integer) as event_ms, attempts as tries,
  null as next_ms, cast(round(unixepoch(finished_at, 'subsec') * 1000) as integer) as ended_ms, possible_duplicate as dup,
  code, error, ms, answer, null as params, null as retried_as, scheme_hash as hash from events_done";

/// What a row says, as far as it can be shown: SQLite keeps any value in any column, and one odd
/// value must not hide the others of a list.
fn event_row(row: &SqliteRow) -> Result<EventRow> {
    let id = row.try_get("id").map_err(sql("read an event"))?;
    let number = |name: &str| row.try_get::<Option<i64>, _>(name).ok().flatten();
    let text = |name: &str| {
        let bytes = row.try_get_unchecked::<Option<Vec<u8>>, _>(name);
        let bytes = bytes.ok().flatten()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(EventRow {
        id: EventId(id),
        place: match text("place").as_deref() {
            Some("compact") => WhereIs::Compact,
            Some("stack") => WhereIs::Stack,
            Some("dead") => WhereIs::Dead,
            _ => WhereIs::Done,
        },
        state: text("state").unwrap_or_default(),
        cmd: text("cmd").unwrap_or_default(),
        user_id: number("user_id"),
        abonent_id: number("abonent_id"),
        nas_id: number("nas_id"),
        source: text("source"),
        batch_id: text("batch_id"),
        event_date_ms: number("event_ms").unwrap_or(0),
        try_count: number("tries").unwrap_or(0),
        next_try_ms: number("next_ms"),
        ended_ms: number("ended_ms"),
        possible_duplicate: number("dup").unwrap_or(0) != 0,
        code: number("code"),
        error: text("error"),
        ms: number("ms"),
        answer: text("answer"),
        params: text("params").map(|p| Params(serde_json::from_str(&p).unwrap_or_default())),
        retried_as: number("retried_as"),
        scheme_hash: text("hash"),
    })
}

pub(super) async fn counts(store: &Sqlite) -> Result<Counts> {
    rows::connections(&store.readers);
    let (compact, unexpandable): (i64, i64) = sqlx::query_as(
        "select (select count(*) from events_stack_compact),
           (select count(*) from events_stack_compact where error is not null)",
    )
    .fetch_one(&store.readers)
    .await
    .map_err(sql("count events"))?;
    let main = sqlx::query_as(
        "select event_type, count(*) from events_stack group by event_type order by event_type",
    )
    .fetch_all(&store.readers)
    .await
    .map_err(sql("count events by type"))?;
    let by_nas: Vec<(i64, String, i64)> = sqlx::query_as(
        "select nas_id, state, count(*) from events_stack group by nas_id, state order by nas_id, state",
    )
    .fetch_all(&store.readers)
    .await
    .map_err(sql("count events by NAS"))?;
    let dead_by_nas: Vec<(Option<i64>, i64)> = sqlx::query_as(
        "select nas_id, count(*) from events_dead where retried_as is null
         group by nas_id order by nas_id nulls first",
    )
    .fetch_all(&store.readers)
    .await
    .map_err(sql("count dead events"))?;
    let (oldest_s, oldest_compact_s): (i64, i64) = sqlx::query_as(
        "select ifnull(cast(max(0, unixepoch('now') - unixepoch(min(oldest))) as integer), 0),
           ifnull(cast(max(0, unixepoch('now') - unixepoch(min(oldest) filter (where compact))) as integer), 0)
         from (
           select min(event_date) as oldest, 0 as compact
             from (select event_date from events_stack order by id limit 100)
           union all select min(created_at), 1
             from (select created_at from events_stack_compact order by id limit 100))",
    )
    .fetch_one(&store.readers)
    .await
    .map_err(sql("find the oldest event"))?;
    let nases: BTreeSet<i64> = by_nas.iter().map(|(nas, _, _)| *nas).collect();
    // As above, of each NAS by its index; what the guard holds waits for a person.
    let oldest_by_nas = sqlx::query_as(
        "select j.value, ifnull(cast(max(0, unixepoch('now') - unixepoch((
             select min(event_date) from (select event_date, state from events_stack
               where nas_id = j.value order by id limit 100) where state <> 'held'))) as integer), 0)
         from json_each(?1) j order by 1",
    )
    .bind(json!(nases).to_string())
    .fetch_all(&store.readers)
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

pub(super) async fn backlog(store: &Sqlite, most: usize) -> Result<Backlog> {
    let (compact, main): (i64, i64) = sqlx::query_as(
        "select (select count(*) from (select 1 from events_stack_compact limit ?1) c),
           (select count(*) from (select 1 from events_stack limit ?1) s)",
    )
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_one(&store.readers)
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
    let (conditions, limit) = filter.conditions(state.is_some(), '?');
    // Each table by itself: ordered and cut before the rows of all are merged.
    let tables: Vec<String> = places
        .iter()
        .map(|place| {
            format!(
                "select * from (select * from ({}) {conditions} order by id desc limit {limit})",
                table(*place)
            )
        })
        .collect();
    let source = tables.join(" union all ");
    let text = format!("select * from ({source}) order by id desc limit {limit}");
    Ok((text, state))
}

pub(super) async fn events(store: &Sqlite, filter: &Filter) -> Result<Vec<EventRow>> {
    let (text, state) = list_text(filter)?;
    let mut query = sqlx::query(sqlx::AssertSqlSafe(text));
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
        query = query.bind(text);
    }
    for id in [filter.from, filter.before].into_iter().flatten() {
        query = query.bind(id);
    }
    let query = query.bind(i64::try_from(filter.limit.clamp(1, LIST_MAX)).unwrap_or(100));
    let rows = if filter.unbounded {
        let rows = query.fetch_all(&store.readers).await;
        rows.map_err(sql("list events"))?
    } else {
        let mut look = bound::look(store).await?;
        let rows = query.fetch_all(look.conn()).await;
        rows.map_err(look.failed("list events"))?
    };
    rows.iter().map(event_row).collect()
}

pub(super) async fn event(store: &Sqlite, id: EventId) -> Result<Option<EventRow>> {
    // In the order of the flow: what moves on between two looks is found at the next place.
    for source in [COMPACT, STACK, DEAD, DONE] {
        let text = format!("select * from ({source}) where id = ?1");
        let row = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(id.0)
            .fetch_optional(&store.readers)
            .await
            .map_err(sql("look an event up"))?;
        if let Some(row) = row {
            return event_row(&row).map(Some);
        }
    }
    Ok(None)
}

pub(super) async fn drop_event(
    store: &Sqlite,
    id: EventId,
    state: Option<&str>,
    why: &str,
) -> Result<bool> {
    let columns =
        "id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id, event_date,
      owner_script, owner_function, source, batch_id";
    let mut writer = store.write().await;
    let mut tx = writer.begin().await?;
    for (table, condition, cmd, date) in [
        (
            "events_stack",
            "state in ('ready', 'deferred', 'held') and coalesce(?3, state) = state",
            "event_type",
            "event_date",
        ),
        (
            "events_dead",
            "retried_as is null and coalesce(?3, 'dead') = 'dead'",
            "event_type",
            "event_date",
        ),
        (
            "events_stack_compact",
            "coalesce(?3, 'compact') = 'compact'",
            "cmd",
            "created_at",
        ),
    ] {
        let from = columns
            .replace("event_type", cmd)
            .replace("event_date", date);
        let text = format!(
            "insert or replace into events_done ({columns}, result, error)
             select {from}, 'dropped', ?2 from {table} where id = ?1 and {condition}"
        );
        let moved = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(id.0)
            .bind(why)
            .bind(state)
            .execute(&mut *tx)
            .await
            .map_err(sql("drop an event"))?;
        if moved.rows_affected() == 1 {
            let text = format!("delete from {table} where id = ?1");
            sqlx::query(sqlx::AssertSqlSafe(text))
                .bind(id.0)
                .execute(&mut *tx)
                .await
                .map_err(sql("drop an event"))?;
            tx.commit().await.map_err(sql("drop an event"))?;
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) async fn prune_done(store: &Sqlite, before_ms: i64, limit: usize) -> Result<u64> {
    let mut writer = store.write().await;
    let done = sqlx::query(
        "delete from events_done where id in (select id from events_done order by id limit ?2)
           and finished_at < ?1",
    )
    .bind(clock::utc_text(before_ms))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .execute(&mut writer.conn)
    .await
    .map_err(sql("delete old done events"))?;
    Ok(done.rows_affected())
}

pub(super) async fn prune_audit(store: &Sqlite, before_ms: i64, limit: usize) -> Result<u64> {
    let mut writer = store.write().await;
    let done = sqlx::query(
        "delete from audit where id in (select id from audit order by id limit ?2) and at < ?1",
    )
    .bind(clock::utc_text(before_ms))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .execute(&mut writer.conn)
    .await
    .map_err(sql("delete old rows of the audit"))?;
    Ok(done.rows_affected())
}

/// First words of statements that only look.
const LOOKS: [&str; 4] = ["select", "with", "values", "explain"];
/// What one that changes may begin with. Not `attach`: what lies in another file was not looked at.
const CHANGES: [&str; 16] = [
    "insert",
    "replace",
    "update",
    "delete",
    "create",
    "alter",
    "drop",
    "pragma",
    "analyze",
    "reindex",
    "vacuum",
    "begin",
    "commit",
    "end",
    "rollback",
    "savepoint",
];
/// Statements whose program is looked at before they run. The others open tables without showing
/// what is in them (`analyze`), or to keep keys in order (`delete`).
const PROGRAMS: [&str; 7] = [
    "select", "with", "values", "insert", "replace", "update", "create",
];
/// Pragmas that only look (sqlite.org, "PRAGMA Statements"); most others also change a setting.
const LOOK_PRAGMAS: [&str; 6] = [
    "integrity_check",
    "quick_check",
    "foreign_key_check",
    "table_info",
    "index_list",
    "index_info",
];
/// The switch that keeps readers from writing must stay where it is.
const AROUND: &str = "query_only";
/// Ways around [`operator::HIDDEN`]: giving a table another name, and samples that the planner
/// keeps of columns.
const DETOURS: [&str; 4] = [
    "writable_schema",
    "sqlite_stat3",
    "sqlite_stat4",
    "sqlite_dbpage",
];
/// The columns of `explain` (sqlite.org, "EXPLAIN").
const STEP: [&str; 8] = ["addr", "opcode", "p1", "p2", "p3", "p4", "p5", "comment"];
/// In `p5`: `p2` is no page but the number of a register (sqlite.org, `OPFLAG_P2ISREG`).
const IN_REGISTER: i64 = 0x10;

/// The word that a statement begins with, if its words allow it.
pub(super) fn allowed(statement: &str, write: bool) -> Result<String> {
    let lower = statement.to_ascii_lowercase();
    operator::hides_secrets(&lower)?;
    if let Some(way) = DETOURS.iter().find(|way| lower.contains(**way)) {
        return Err(Error::Refused(format!(
            "{way} is not allowed here: it could show tables that are never readable"
        )));
    }
    operator::is_one(statement)?;
    let first = operator::first_word(&lower);
    let looks = match first.as_str() {
        "pragma" => operator::words(&lower)
            .nth(1)
            .is_some_and(|w| LOOK_PRAGMAS.contains(&w)),
        first => LOOKS.contains(&first),
    };
    if !write && (!looks || lower.contains(AROUND)) {
        return Err(Error::Refused(format!(
            "the statement may change something: only {} are allowed without write",
            LOOKS.join(", ")
        )));
    }
    if write {
        operator::keeps_the_audit(&lower, &first)?;
        // Its module reads what it is told to, in statements of its own.
        if first == "create" && operator::words(&lower).nth(1) == Some("virtual") {
            return Err(Error::Refused(
                "a virtual table is not allowed here: it could show tables that are never readable"
                    .to_owned(),
            ));
        }
        let known = LOOKS.iter().chain(&CHANGES).any(|word| *word == first);
        if !known || (first == "vacuum" && operator::words(&lower).any(|word| word == "into")) {
            return Err(Error::Refused(format!(
                "{first:?} is not allowed here: it is unknown, or reaches beyond this database"
            )));
        }
    }
    Ok(first)
}

pub(super) async fn sql_statement(
    store: &Sqlite,
    statement: &str,
    write: bool,
) -> Result<SqlAnswer> {
    let first = allowed(statement, write)?;
    let text = sqlx::AssertSqlSafe(statement.to_owned());
    let mut answer = SqlAnswer::default();
    if write {
        let mut writer = store.write().await;
        opens_nothing_hidden(&mut writer.conn, &first, statement).await?;
        let done = sqlx::raw_sql(text)
            .execute(&mut writer.conn)
            .await
            .map_err(sql("run the statement"))?;
        answer.changed = done.rows_affected();
        return Ok(answer);
    }
    let mut conn = store
        .readers
        .acquire()
        .await
        .map_err(sql("connect for the statement"))?;
    opens_nothing_hidden(&mut conn, &first, statement).await?;
    let mut rows = sqlx::raw_sql(text).fetch(&mut *conn);
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
    Ok(answer)
}

/// Asks the database which tables the statement would open, by views and triggers too: its program
/// names each by the page that the table begins with.
async fn opens_nothing_hidden(
    conn: &mut SqliteConnection,
    first: &str,
    statement: &str,
) -> Result<()> {
    if !PROGRAMS.contains(&first) {
        return Ok(());
    }
    let pages: Vec<(i64, String)> =
        sqlx::query_as("select rootpage, lower(tbl_name) from sqlite_schema where rootpage > 0")
            .fetch_all(&mut *conn)
            .await
            .map_err(sql("look hidden tables up"))?;
    let explained = operator::body(statement, first).unwrap_or(statement);
    // Cut out of a name in quotes it could be more than one.
    operator::is_one(explained)?;
    let text = sqlx::AssertSqlSafe(format!("explain {explained}"));
    let program = sqlx::query(text)
        .persistent(false)
        .fetch_all(&mut *conn)
        .await
        .map_err(sql("run the statement"))?;
    for step in &program {
        let opened = opened(step).map_err(sql("read the statement's program"))?;
        let table = pages.iter().find(|(page, _)| Some(*page) == opened);
        if let Some((_, table)) = table.filter(|(_, t)| operator::HIDDEN.contains(&t.as_str())) {
            return Err(operator::would_open(table));
        }
    }
    Ok(())
}

/// The page of the table that a step of a program opens. A row that is no step is an error.
fn opened(step: &SqliteRow) -> std::result::Result<Option<i64>, sqlx::Error> {
    let names: Vec<&str> = step.columns().iter().map(Column::name).collect();
    if names != STEP {
        return Err(sqlx::Error::Protocol(format!(
            "no step of a program: {names:?}"
        )));
    }
    let opcode: String = step.try_get("opcode")?;
    let (page, file, flags): (i64, i64, i64) = (
        step.try_get("p2")?,
        step.try_get("p3")?,
        step.try_get("p5")?,
    );
    let opens = ["OpenRead", "OpenWrite", "ReopenIdx"].contains(&opcode.as_str());
    Ok((opens && file == 0 && flags & IN_REGISTER == 0).then_some(page))
}

fn value_text(row: &SqliteRow, i: usize) -> std::result::Result<Option<String>, sqlx::Error> {
    let raw = row.try_get_raw(i)?;
    if raw.is_null() {
        return Ok(None);
    }
    let kind = raw.type_info().name().to_owned();
    Ok(Some(match kind.as_str() {
        "INTEGER" | "BOOLEAN" => row.try_get_unchecked::<i64, _>(i)?.to_string(),
        "REAL" => row.try_get_unchecked::<f64, _>(i)?.to_string(),
        "BLOB" => row
            .try_get_unchecked::<Vec<u8>, _>(i)?
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect(),
        _ => row.try_get_unchecked::<String, _>(i)?,
    }))
}
