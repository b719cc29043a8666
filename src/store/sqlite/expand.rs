//! Expansion: one statement moves the plain rows of a batch with their PARAMS; what it leaves
//! (services, own variables, addresses of NASes, mistakes) is taken row by row.

use std::collections::BTreeMap;

use sqlx::{Sqlite as Db, Transaction};

use super::stack::{WAITING, waiting_from_json};
use super::{Sqlite, Writer, billing, compact, decide, sql};
use crate::event::{Class, Cmd, Waiting, of_class};
use crate::store::rows::{CAME, way_in};
use crate::store::{Error, Expansion, Result};

/// Failed rows looked at again in one batch; they never fill it.
const AGAIN_PER_BATCH: i64 = 50;

/// Ids that one batch spans at most: what it hands over is found by this range.
const SPAN: i64 = 4_000;

/// A row that needs no overlay and names its NAS by id or not at all. SQLite keeps any value in any
/// column: what is not of its column's type is looked at by itself.
const PLAIN: &str = "typeof(c.user_id) = 'integer' and c.params is null and c.usluga_id is null
  and c.params_complete = 0 and c.nas_ip is null and typeof(c.abonent_id) in ('integer', 'null')
  and (c.expires_at is null or unixepoch(c.expires_at) is not null)
  and 'blob' not in (typeof(c.owner_script), typeof(c.owner_function), typeof(c.source),
    typeof(c.batch_id), typeof(c.acct_session_id), typeof(c.created_at))";

/// Whether a compact row `c` retries a dead event that may have been applied.
pub(super) const DUPLICATE: &str =
    "ifnull((select d.possible_duplicate from events_dead d where d.id = c.retried_from), 0)";

pub(super) async fn expand(store: &Sqlite, limit: usize, cmds: &[Cmd]) -> Result<Expansion> {
    some(store, limit, cmds, None).await
}

/// What is still taken while too much is waiting: rows of accounts that are to get access, up to
/// that event, in their order; and questions. Reads the whole stack, so it is not for every poll.
pub(super) async fn urgent(store: &Sqlite, limit: usize, cmds: &[Cmd]) -> Result<Expansion> {
    let names = |class| serde_json::to_string(&of_class(class, cmds)).unwrap_or_default();
    let rows: Vec<(i64,)> = sqlx::query_as(
        "with urgent as materialized (
           select user_id, max(id) as upto from events_stack_compact
           where error is null and user_id is not null and cmd in (select value from json_each(?2))
           group by user_id)
         select c.id from events_stack_compact c left join urgent u on u.user_id = c.user_id
         where c.error is null and (c.id <= u.upto or c.cmd in (select value from json_each(?3)))
         order by c.id limit ?1",
    )
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .bind(names(Class::Access))
    .bind(names(Class::Interactive))
    .fetch_all(&store.readers)
    .await
    .map_err(sql("pick urgent compact events"))?;
    some(
        store,
        limit,
        cmds,
        Some(rows.into_iter().map(|row| row.0).collect()),
    )
    .await
}

/// `only`: these rows, and failed ones that are due; none = the first of the stack.
async fn some(
    store: &Sqlite,
    limit: usize,
    cmds: &[Cmd],
    only: Option<Vec<i64>>,
) -> Result<Expansion> {
    let shape = store.shape();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let idle: (bool,) = sqlx::query_as(
        "select not exists (select 1 from events_stack_compact where error is null)
           and not exists (select 1 from events_stack_compact where error is not null
             and next_expand_at <= strftime('%Y-%m-%d %H:%M:%f', 'now'))",
    )
    .fetch_one(&store.readers)
    .await
    .map_err(sql("look for compact events"))?;
    if idle.0 {
        return Ok(Expansion::default());
    }
    let mut writer = store.write().await;
    if writer.known_cmds != cmds {
        compact::add_to_catalogue(&mut writer.conn, cmds).await?;
        writer.known_cmds = cmds.to_vec();
    }
    let epoch = store.owned.load(std::sync::atomic::Ordering::Relaxed);
    if let Some(ids) = only {
        return chosen(&mut writer, &shape, limit, ids, epoch).await;
    }
    match batch(&mut writer, &shape, limit, true, epoch).await {
        Err(Error::Sql { source, .. }) if is_row_trouble(&source) => {
            // One row of the billing's view breaks the statement: take the batch row by row.
            batch(&mut writer, &shape, limit, false, epoch).await
        }
        other => other,
    }
}

/// Errors that a single row can cause, as opposed to a locked, full or broken database.
pub(in crate::store) fn is_row_trouble(error: &sqlx::Error) -> bool {
    let is_misread = matches!(
        error,
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)
    );
    is_misread
        || error.as_database_error().is_some_and(|e| {
            // 1 SQLITE_ERROR (a function refused its argument), 18 TOOBIG, 19 CONSTRAINT, 20 MISMATCH;
            // extended codes carry the primary one in the low byte (sqlite.org, "Result Codes").
            e.code()
                .and_then(|c| c.parse::<i64>().ok())
                .is_some_and(|c| matches!(c & 0xff, 1 | 18 | 19 | 20))
        })
}

async fn batch(
    writer: &mut Writer,
    shape: &billing::Shape,
    limit: i64,
    at_once: bool,
    epoch: i64,
) -> Result<Expansion> {
    let mut tx = writer.begin().await?;
    still_owned(&mut tx, epoch).await?;
    let text = format!(
        "select ifnull(min(id), 0), ifnull(max(id), 0), count(*), ifnull(sum(plain), 0),
           ifnull((select max(id) from events_stack_compact where error is null), 0), count(came)
         from (select c.id, ({PLAIN}) as plain, {CAME} as came from events_stack_compact c
               where c.error is null
                 and c.id < ?2 + (select min(id) from events_stack_compact where error is null)
               order by c.id limit ?1)"
    );
    let (first, last, fresh, plain, end, came): (i64, i64, i64, i64, i64, i64) =
        sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(limit)
            .bind(SPAN)
            .fetch_one(&mut *tx)
            .await
            .map_err(sql("pick compact events"))?;
    let mut out = Expansion {
        full: last < end,
        ..Expansion::default()
    };
    if came > 0 {
        let ways = sqlx::query_as(sqlx::AssertSqlSafe(ways_in("c.id between ?1 and ?2")))
            .bind(first)
            .bind(last)
            .fetch_all(&mut *tx)
            .await
            .map_err(sql("look how compact events came in"))?;
        out.came = labelled(ways);
    }
    let mut moved = 0;
    let mut slow: Vec<i64> = Vec::new();
    if at_once && plain > 0 {
        (moved, out.moved) = plain_rows(&mut tx, shape, first, last).await?;
    }
    if i64::try_from(moved).is_ok_and(|moved| moved < fresh) {
        let left: Vec<(i64,)> = sqlx::query_as(
            "select id from events_stack_compact where error is null and id between ?1 and ?2 order by id",
        )
        .bind(first)
        .bind(last)
        .fetch_all(&mut *tx)
        .await
        .map_err(sql("pick compact events"))?;
        slow.extend(left.into_iter().map(|row| row.0));
    }
    one_by_one(tx, shape, slow, out).await
}

/// [`Expansion::came`] of those of the rows. Counted here: a row each would cost more than the
/// expansion itself.
fn ways_in(these: &str) -> String {
    format!(
        "select way, cmd, count(*) from (select {CAME} as way, ifnull(k.cmd, '') as cmd
           from events_stack_compact c left join catalogue k on k.cmd = c.cmd
           where c.error is null and {these}) where way is not null group by way, cmd"
    )
}

fn labelled(ways: Vec<(String, String, i64)>) -> BTreeMap<(&'static str, String), u64> {
    let each = ways.into_iter();
    each.map(|(way, cmd, rows)| ((way_in(&way), cmd), rows.unsigned_abs()))
        .collect()
}

/// Rows that were chosen before the writer was free; what is gone since is passed over.
async fn chosen(
    writer: &mut Writer,
    shape: &billing::Shape,
    limit: i64,
    ids: Vec<i64>,
    epoch: i64,
) -> Result<Expansion> {
    let mut tx = writer.begin().await?;
    still_owned(&mut tx, epoch).await?;
    let these = ways_in("c.id in (select value from json_each(?1))");
    let ways = sqlx::query_as(sqlx::AssertSqlSafe(these))
        .bind(serde_json::to_string(&ids).unwrap_or_default())
        .fetch_all(&mut *tx)
        .await
        .map_err(sql("look how compact events came in"))?;
    let out = Expansion {
        full: i64::try_from(ids.len()).is_ok_and(|n| n >= limit),
        came: labelled(ways),
        ..Expansion::default()
    };
    one_by_one(tx, shape, ids, out).await
}

/// A daemon that has been deposed must not take events that nobody would run.
async fn still_owned(tx: &mut Transaction<'_, Db>, epoch: i64) -> Result<()> {
    if epoch > 0 {
        let owner: Option<(i64,)> = sqlx::query_as("select epoch from owner where scope = 'all'")
            .fetch_optional(&mut **tx)
            .await
            .map_err(sql("check the ownership"))?;
        if owner != Some((epoch,)) {
            return Err(Error::Fenced { epoch });
        }
    }
    Ok(())
}

/// The rest of a batch, and failed rows that are due; ends the transaction.
async fn one_by_one(
    mut tx: Transaction<'_, Db>,
    shape: &billing::Shape,
    mut slow: Vec<i64>,
    mut out: Expansion,
) -> Result<Expansion> {
    let again: Vec<(i64,)> = sqlx::query_as(
        "select id from events_stack_compact where error is not null
           and next_expand_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')
         order by next_expand_at limit ?1",
    )
    .bind(AGAIN_PER_BATCH)
    .fetch_all(&mut *tx)
    .await
    .map_err(sql("pick failed compact events"))?;
    slow.extend(again.into_iter().map(|row| row.0));
    for id in slow {
        decide::one(&mut tx, shape, id, &mut out).await?;
    }
    tx.commit().await.map_err(sql("commit an expansion"))?;
    out.moved.sort_by_key(|w| w.id);
    Ok(out)
}

async fn plain_rows(
    tx: &mut Transaction<'_, Db>,
    shape: &billing::Shape,
    first: i64,
    last: i64,
) -> Result<(u64, Vec<Waiting>)> {
    let params = &shape.params;
    let text = format!(
        "insert into events_stack (id, event_type, user_id, abonent_id, nas_id, acct_session_id, params,
           class, event_date, owner_script, owner_function, source, batch_id, expires_at, possible_duplicate)
         select c.id, c.cmd, c.user_id, ifnull(c.abonent_id, p.abonent_id), n.id, c.acct_session_id,
           case when c.acct_session_id is null then {params}
             else json_set({params}, '$.acct_session_id', c.acct_session_id) end,
           k.class, c.created_at, c.owner_script, c.owner_function, c.source, c.batch_id,
           ifnull(c.expires_at, case when k.ttl_s is not null then
             strftime('%Y-%m-%d %H:%M:%f', c.created_at, '+' || k.ttl_s || ' seconds') end), {DUPLICATE}
         from events_stack_compact c
           cross join catalogue k on k.cmd = c.cmd
           cross join event_params p on p.user_id = c.user_id
           cross join nas n on n.id = ifnull(c.nas_id, p.nas_id)
         where c.id between ?1 and ?2 and c.error is null and {PLAIN}
           and cast(n.id as integer) || '' = n.id || ''
           and (p.abonent_id is null or cast(p.abonent_id as integer) || '' = p.abonent_id || '')"
    );
    let moved = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(first)
        .bind(last)
        .execute(&mut **tx)
        .await
        .map_err(sql("expand a batch"))?
        .rows_affected();
    if moved == 0 {
        return Ok((0, Vec::new()));
    }
    sqlx::query(
        "delete from events_stack_compact where id between ?1 and ?2
           and id in (select id from events_stack where id between ?1 and ?2)",
    )
    .bind(first)
    .bind(last)
    .execute(&mut **tx)
    .await
    .map_err(sql("take expanded rows off the compact stack"))?;
    // One text instead of a row each, which would cost more than the expansion itself. A few
    // that were moved before may stand between the first and the last id: the lanes know them.
    let text = format!(
        "select json_group_array(json_array({WAITING})) from events_stack where id between ?1 and ?2 and state = 'ready' and epoch = 0"
    );
    let (rows,): (String,) = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(first)
        .bind(last)
        .fetch_one(&mut **tx)
        .await
        .map_err(sql("hand over a batch"))?;
    Ok((moved, waiting_from_json(&rows)?))
}
