//! The main stack: loading ids, and the writer turn that moves events between states.

use std::collections::HashMap;

use serde_json::{Value, json};
use sqlx::{Sqlite as Db, Transaction};

use super::{Sqlite, hot, sql};
use crate::event::{Class, EventId, Params, StoredParams, UserId, Waiting};
use crate::nas::NasId;
use crate::store::{Error, Result, Settle, SettleTo, Started, Turn, Turned};

/// What `Waiting` needs, in the order of `WaitingValues`, times as wall ms.
pub(super) const WAITING: &str = "id, nas_id, user_id, class, try_count, deaths,
  cast(round(unixepoch(event_date, 'subsec') * 1000) as integer),
  ifnull(cast(round(unixepoch(next_try_at, 'subsec') * 1000) as integer), 0),
  ifnull(cast(round(unixepoch(expires_at, 'subsec') * 1000) as integer), 0)";

type WaitingValues = (i64, i64, Option<i64>, i64, u32, u32, Option<i64>, i64, i64);

/// Reads what `json_group_array(json_array(WAITING))` gave.
pub(super) fn waiting_from_json(text: &str) -> Result<Vec<Waiting>> {
    let rows: Vec<WaitingValues> = serde_json::from_str(text)
        .map_err(|e| sql("read waiting events")(sqlx::Error::Decode(Box::new(e))))?;
    Ok(rows
        .into_iter()
        .map(
            |(id, nas, user, class, tries, deaths, since_ms, next_try_ms, expires_ms)| Waiting {
                id: EventId(id),
                nas: NasId(nas),
                user: user.map(UserId),
                class: Class::from_number(class),
                since_ms: since_ms.unwrap_or(0),
                next_try_ms,
                expires_ms,
                tries,
                deaths,
            },
        )
        .collect())
}

pub(super) async fn load(
    store: &Sqlite,
    nas: NasId,
    from: EventId,
    limit: usize,
) -> Result<Vec<Waiting>> {
    let text = format!(
        "select json_group_array(json_array({WAITING})) from (select * from events_stack
         where nas_id = ?1 and id >= ?2 and state in ('ready', 'deferred') order by id limit ?3)"
    );
    let (rows,): (String,) = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(nas.0)
        .bind(from.0)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_one(&store.readers)
        .await
        .map_err(sql("load waiting events"))?;
    waiting_from_json(&rows)
}

pub(super) async fn refill(
    store: &Sqlite,
    lanes: &[(NasId, Option<UserId>)],
    limit: usize,
) -> Result<Vec<Waiting>> {
    let text = format!(
        "select json_group_array(json_array({WAITING})) from events_stack where id in (
           select w.value from json_each(?1) j, json_each((
             select json_group_array(id) from (select id from events_stack
               where nas_id = j.value ->> 0 and user_id is j.value ->> 1 and state in ('ready', 'deferred')
               order by id limit ?2))) w)"
    );
    let (rows,): (String,) = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(json!(lanes).to_string())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_one(&store.readers)
        .await
        .map_err(sql("refill lanes"))?;
    let mut rows = waiting_from_json(&rows)?;
    rows.sort_unstable_by_key(|w| w.id);
    Ok(rows)
}

pub(super) async fn params_now(store: &Sqlite, event: EventId) -> Result<Option<Params>> {
    let text = format!(
        "select {}, case when e.acct_session_id is null then e.own_params
             else json_set(ifnull(e.own_params, '{{}}'), '$.acct_session_id', e.acct_session_id) end
         from events_stack e join event_params p on p.user_id = e.user_id
         where e.id = ?1 and e.params_complete = 0 and e.usluga_id is null limit 1",
        store.shape().params
    );
    let row: Option<(String, Option<String>)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(event.0)
        .fetch_optional(&store.readers)
        .await
        .map_err(sql("read PARAMS again"))?;
    Ok(row.map(|(now, own)| Params::without(&now, own.as_deref())))
}

pub(super) async fn stacked_nases(store: &Sqlite) -> Result<Vec<NasId>> {
    // A loose index scan: `distinct` would read every row of a stack of millions.
    let rows: Vec<(i64,)> = sqlx::query_as(
        "with recursive found(nas_id) as (
           select min(nas_id) from events_stack
           union all
           select (select min(nas_id) from events_stack e where e.nas_id > found.nas_id)
           from found where found.nas_id is not null)
         select nas_id from found where nas_id is not null",
    )
    .fetch_all(&store.readers)
    .await
    .map_err(sql("list the NASes of the main stack"))?;
    Ok(rows.into_iter().map(|(id,)| NasId(id)).collect())
}

pub(super) async fn turn(store: &Sqlite, turn: &Turn) -> Result<Turned> {
    if turn.settles.is_empty() && turn.starts.is_empty() {
        return Ok(Turned::default());
    }
    if let Some(alike) = hot::alike(turn) {
        let mut writer = store.write().await;
        if let Some(started) = hot::write(&mut writer, turn, &alike).await? {
            return Ok(Turned {
                settled: turn.settles.iter().map(|s| s.id).collect(),
                started,
            });
        }
    }
    // PARAMS are read before the write transaction, on another connection: they never change
    // once written, and the writer stays short.
    let mut started = if turn.starts.is_empty() {
        Vec::new()
    } else {
        read_starts(store, &turn.starts).await?
    };
    let mut writer = store.write().await;
    let mut tx = writer.begin().await?;
    let owner: Option<(i64,)> = sqlx::query_as("select epoch from owner where scope = 'all'")
        .fetch_optional(&mut *tx)
        .await
        .map_err(sql("check the ownership"))?;
    if owner != Some((turn.epoch,)) {
        return Err(Error::Fenced { epoch: turn.epoch });
    }
    let settled = settle(&mut tx, turn).await?;
    mark(&mut tx, turn, &mut started).await?;
    tx.commit().await.map_err(sql("commit a turn"))?;
    Ok(Turned {
        settled,
        started: started.into_iter().map(|s| s.event).collect(),
    })
}

/// An event to start, as it stood before the write transaction.
pub(super) struct Read {
    pub(super) event: Started,
    pub(super) waits: bool,
}

type StartValues = (
    i64,
    String,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    String,
    u32,
    i64,
    i64,
    i64,
);

async fn read_starts(store: &Sqlite, ids: &[EventId]) -> Result<Vec<Read>> {
    // One text for all: each row of its own would wake this task once.
    let (rows,): (Vec<u8>,) = sqlx::query_as(
        "select json_group_array(json_array(id, event_type, user_id,
           iif(typeof(abonent_id) = 'integer', abonent_id, null), usluga_id, params, try_count,
           possible_duplicate, state in ('ready', 'deferred'), ifnull(cast(round(unixepoch(event_date, 'subsec') * 1000) as integer), 0)))
         from events_stack where id in (select value from json_each(?1))",
    )
    .bind(json!(ids).to_string())
    .fetch_one(&store.readers)
    .await
    .map_err(sql("read PARAMS"))?;
    let rows: Vec<StartValues> = serde_json::from_str(&String::from_utf8_lossy(&rows))
        .map_err(|e| sql("read PARAMS")(sqlx::Error::Decode(Box::new(e))))?;
    Ok(rows
        .into_iter()
        .map(
            |(id, cmd, user, abonent, usluga, params, try_count, duplicate, waits, accepted_ms)| {
                Read {
                    event: Started {
                        id: EventId(id),
                        cmd,
                        user: user.map(UserId),
                        abonent,
                        usluga,
                        params: StoredParams(params),
                        try_count,
                        possible_duplicate: duplicate != 0,
                        accepted_ms,
                    },
                    waits: waits != 0,
                }
            },
        )
        .collect())
}

/// Marks the starts running and leaves in `starts` those that were, with the number of their
/// try. A row for each would cost more than the update, so rows are asked for only if some
/// start changed nothing since it was read.
async fn mark(tx: &mut Transaction<'_, Db>, turn: &Turn, starts: &mut Vec<Read>) -> Result<()> {
    starts.retain(|s| s.waits || turn.again);
    if starts.is_empty() {
        return Ok(());
    }
    let ids = json!(starts.iter().map(|s| s.event.id).collect::<Vec<_>>()).to_string();
    let marked = sqlx::query(
        "update events_stack set state = 'running', epoch = ?2, try_count = try_count + 1,
           started_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
         where id in (select value from json_each(?1)) and state in ('ready', 'deferred')",
    )
    .bind(&ids)
    .bind(turn.epoch)
    .execute(&mut **tx)
    .await
    .map_err(sql("mark events running"))?
    .rows_affected();
    for s in starts.iter_mut().filter(|s| s.waits) {
        s.event.try_count += 1;
    }
    if usize::try_from(marked).is_ok_and(|n| n == starts.len()) {
        return Ok(());
    }
    let rows: Vec<(i64, i64)> = sqlx::query_as(
        "select id, try_count from events_stack where id in (select value from json_each(?1))
           and state = 'running' and epoch = ?2",
    )
    .bind(&ids)
    .bind(turn.epoch)
    .fetch_all(&mut **tx)
    .await
    .map_err(sql("mark events running"))?;
    let running: HashMap<i64, i64> = rows.into_iter().collect();
    starts.retain(|s| running.get(&s.event.id.0) == Some(&i64::from(s.event.try_count)));
    Ok(())
}

/// The compare-and-set of a settle: claimed try of this epoch, or still waiting.
const CLAIMED: &str = "e.id = j.value ->> '$.id'
  and ((j.value ->> '$.try' is not null and e.state = 'running' and e.epoch = ?2
        and e.try_count = j.value ->> '$.try')
    or (j.value ->> '$.try' is null and e.state in ('ready', 'deferred', 'held')))";

async fn settle(tx: &mut Transaction<'_, Db>, turn: &Turn) -> Result<Vec<EventId>> {
    let mut done = Vec::new();
    let mut dead = Vec::new();
    let mut back = Vec::new();
    for s in &turn.settles {
        match &s.to {
            SettleTo::Done { .. } => done.push(to_json(s)),
            SettleTo::Dead { .. } => dead.push(to_json(s)),
            SettleTo::Deferred { .. } | SettleTo::Ready { .. } => back.push(to_json(s)),
        }
    }
    let mut ids = Vec::with_capacity(turn.settles.len());
    if !done.is_empty() {
        let text = format!(
            "insert or replace into events_done (id, event_type, user_id, abonent_id, nas_id, usluga_id,
               acct_session_id, event_date, owner_script, owner_function, source, batch_id, result, code,
               ms, answer, attempts, scheme_hash, error, possible_duplicate, started_at)
             select e.id, e.event_type, e.user_id, e.abonent_id, e.nas_id, e.usluga_id, e.acct_session_id,
               e.event_date, e.owner_script, e.owner_function, e.source, e.batch_id,
               j.value ->> '$.result', j.value ->> '$.code', j.value ->> '$.ms', j.value ->> '$.answer',
               e.try_count, j.value ->> '$.hash', j.value ->> '$.error', e.possible_duplicate, e.started_at
             from json_each(?1) j cross join events_stack e where {CLAIMED}"
        );
        ids.extend(leave(tx, "events_done", text, done, turn.epoch).await?);
    }
    if !dead.is_empty() {
        let text = format!(
            "insert or replace into events_dead (id, event_type, user_id, abonent_id, nas_id, usluga_id,
               acct_session_id, params, class, event_date, owner_script, owner_function, source, batch_id,
               expires_at, try_count, deaths, epoch, started_at, possible_duplicate, last_code, last_error,
               own_params, params_complete, reason)
             select e.id, e.event_type, e.user_id, e.abonent_id, e.nas_id, e.usluga_id, e.acct_session_id,
               e.params, e.class, e.event_date, e.owner_script, e.owner_function, e.source, e.batch_id,
               e.expires_at, e.try_count, e.deaths, e.epoch, e.started_at,
               max(e.possible_duplicate, j.value ->> '$.dup'), j.value ->> '$.code', j.value ->> '$.error', e.own_params, e.params_complete,
               j.value ->> '$.reason'
             from json_each(?1) j cross join events_stack e where {CLAIMED}"
        );
        ids.extend(leave(tx, "events_dead", text, dead, turn.epoch).await?);
    }
    for value in back {
        // One by one: only failures come here, and each has its own time.
        let text = format!(
            "update events_stack as e set state = j.value ->> '$.state',
               try_count = e.try_count - (j.value ->> '$.uncount'),
               next_try_at = case when j.value ->> '$.until' is null then null
                 else strftime('%Y-%m-%d %H:%M:%f', (j.value ->> '$.until') / 1000.0, 'unixepoch') end,
               possible_duplicate = max(e.possible_duplicate, j.value ->> '$.dup'),
               last_code = case when j.value ->> '$.error' is null then last_code else j.value ->> '$.code' end,
               last_error = coalesce(j.value ->> '$.error', last_error)
             from json_each(?1) j where {CLAIMED} returning id"
        );
        let rows: Vec<(i64,)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(Value::Array(vec![value]).to_string())
            .bind(turn.epoch)
            .fetch_all(&mut **tx)
            .await
            .map_err(sql("put an event back"))?;
        ids.extend(rows.into_iter().map(|(id,)| EventId(id)));
    }
    Ok(ids)
}

/// Moves rows out of the stack by `insert` (an insert … select over the settles) and deletes
/// them. Asking for the ids row by row costs more than the move itself, so they are asked for
/// only if some settle changed nothing.
async fn leave(
    tx: &mut Transaction<'_, Db>,
    target: &'static str,
    insert: String,
    settles: Vec<Value>,
    epoch: i64,
) -> Result<Vec<EventId>> {
    let wanted: Vec<EventId> = settles
        .iter()
        .filter_map(|s| s.get("id").and_then(Value::as_i64))
        .map(EventId)
        .collect();
    let moved = sqlx::query(sqlx::AssertSqlSafe(insert))
        .bind(Value::Array(settles).to_string())
        .bind(epoch)
        .execute(&mut **tx)
        .await
        .map_err(sql("settle events"))?
        .rows_affected();
    let ids = if usize::try_from(moved).is_ok_and(|n| n == wanted.len()) {
        wanted
    } else {
        // Ids never repeat: what is in the target now and was on the stack was moved just now.
        let text = format!(
            "select id from {target} where id in (select value from json_each(?1))
               and id in (select id from events_stack)"
        );
        let rows: Vec<(i64,)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(json!(wanted).to_string())
            .fetch_all(&mut **tx)
            .await
            .map_err(sql("settle events"))?;
        rows.into_iter().map(|(id,)| EventId(id)).collect()
    };
    sqlx::query("delete from events_stack where id in (select value from json_each(?1))")
        .bind(json!(ids).to_string())
        .execute(&mut **tx)
        .await
        .map_err(sql("settle events"))?;
    Ok(ids)
}

fn to_json(s: &Settle) -> Value {
    let mut value = json!({
        "id": s.id, "try": s.try_count, "code": s.code, "ms": s.ms, "error": s.error,
    });
    let more = match &s.to {
        SettleTo::Done {
            result,
            answer,
            scheme_hash,
        } => {
            json!({"result": result.as_str(), "answer": answer, "hash": scheme_hash})
        }
        SettleTo::Dead {
            reason,
            possible_duplicate,
        } => json!({"reason": reason, "dup": i64::from(*possible_duplicate)}),
        SettleTo::Deferred {
            until_ms,
            possible_duplicate,
        } => {
            json!({"state": "deferred", "until": until_ms, "uncount": 0, "dup": i64::from(*possible_duplicate)})
        }
        SettleTo::Ready { possible_duplicate } => {
            json!({"state": "ready", "until": null, "uncount": i64::from(s.try_count.is_some()),
                "dup": i64::from(*possible_duplicate)})
        }
    };
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}
