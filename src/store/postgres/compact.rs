//! The compact stack: accepting events, retrying dead ones, waking unexpandable rows.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Value, json};
use sqlx::{PgConnection, Row};

use super::{Postgres, kept_ms, sql};
use crate::event::{CATALOGUE, Class, CompactEvent, EventId};
use crate::store::{Error, Idempotency, Post, Posted, Result};

/// How long an idempotency key is remembered.
const KEY_LIFE: &str = "24 hours";

/// Commands that change no state, for looks at the lane in `events_done`, which has no class.
pub(super) fn interactive() -> Vec<&'static str> {
    CATALOGUE
        .iter()
        .filter(|(_, class)| *class == Class::Interactive)
        .map(|(name, _)| *name)
        .collect()
}

pub(super) async fn post_all(store: &Postgres, posts: &[Post<'_>]) -> Result<Vec<Result<Posted>>> {
    let rows: Vec<Result<Vec<Value>>> = posts.iter().map(rows_of).collect();
    // Of several posts with one key the first writes.
    let mut first: BTreeMap<&str, (usize, &Idempotency)> = BTreeMap::new();
    for (index, (post, rows)) in posts.iter().zip(&rows).enumerate() {
        if let (Some(guard), Ok(_)) = (post.guard, rows) {
            first.entry(&guard.key).or_insert((index, guard));
        }
    }
    let mut tx = store
        .pool
        .begin()
        .await
        .map_err(sql("begin to accept events"))?;
    let mut known = take_keys(&mut tx, first.values().map(|(_, guard)| *guard)).await?;
    first.retain(|key, _| !known.contains_key(*key));
    let writes = |index: usize, post: &Post<'_>| {
        let key = post.guard.map(|guard| guard.key.as_str());
        key.is_none_or(|key| first.get(key).is_some_and(|(writer, _)| *writer == index))
    };
    let mut batch = Vec::new();
    let mut places: Vec<Result<Range<usize>>> = Vec::with_capacity(posts.len());
    for (index, (post, rows)) in posts.iter().zip(rows).enumerate() {
        let start = batch.len();
        let here = writes(index, post);
        places.push(rows.map(|rows| {
            batch.extend(rows.into_iter().filter(|_| here));
            start..batch.len()
        }));
    }
    let ids = insert(&mut tx, batch).await?;
    let of = |place: &Range<usize>| ids.get(place.clone()).unwrap_or_default().to_vec();
    for (key, (index, guard)) in &first {
        if let Some(Ok(place)) = places.get(*index) {
            let kept = (guard.body_hash.clone(), json!(of(place)).to_string());
            known.insert((*key).to_owned(), kept);
        }
    }
    keep_ids(
        &mut tx,
        first.keys().filter_map(|key| known.get_key_value(*key)),
    )
    .await?;
    tx.commit().await.map_err(sql("commit accepted events"))?;
    let answer = |(index, (post, place)): (usize, (&Post<'_>, Result<Range<usize>>))| {
        let place = place?;
        match post.guard {
            Some(guard) if !writes(index, post) => {
                let (hash, ids) = known.get(&guard.key).ok_or_else(forgotten)?;
                Ok(Posted::known(guard, hash, ids))
            }
            Some(_) | None => Ok(Posted::New(of(&place))),
        }
    };
    Ok(posts.iter().zip(places).enumerate().map(answer).collect())
}

/// A key whose first post was taken back between two statements.
fn forgotten() -> Error {
    sql("look an idempotency key up")(sqlx::Error::RowNotFound)
}

/// Takes those keys that are new, and returns what is kept of the others: hash and ids.
async fn take_keys<'a>(
    tx: &mut PgConnection,
    guards: impl Iterator<Item = &'a Idempotency>,
) -> Result<BTreeMap<String, (String, String)>> {
    let (keys, hashes): (Vec<&str>, Vec<&str>) = guards
        .map(|guard| (guard.key.as_str(), guard.body_hash.as_str()))
        .unzip();
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    sqlx::query("delete from idempotency where created_at <= now() - $1::text::interval")
        .bind(KEY_LIFE)
        .execute(&mut *tx)
        .await
        .map_err(sql("forget old idempotency keys"))?;
    // Taken before the events: of two posts with one key the second waits here for the first to
    // commit. In one order, so that two transactions never wait for each other.
    let taken: Vec<(String,)> = sqlx::query_as(
        "insert into idempotency (key, body_hash, ids)
         select key, hash, '[]' from unnest($1::text[], $2::text[]) as g(key, hash) order by key
         on conflict do nothing returning key",
    )
    .bind(&keys)
    .bind(&hashes)
    .fetch_all(&mut *tx)
    .await
    .map_err(sql("keep an idempotency key"))?;
    if taken.len() == keys.len() {
        return Ok(BTreeMap::new());
    }
    let taken: Vec<String> = taken.into_iter().map(|(key,)| key).collect();
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "select key, body_hash, ids from idempotency where key = any($1) and not key = any($2)",
    )
    .bind(&keys)
    .bind(&taken)
    .fetch_all(tx)
    .await
    .map_err(sql("look an idempotency key up"))?;
    Ok(rows
        .into_iter()
        .map(|(key, hash, ids)| (key, (hash, ids)))
        .collect())
}

async fn keep_ids<'a>(
    tx: &mut PgConnection,
    kept: impl Iterator<Item = (&'a String, &'a (String, String))>,
) -> Result<()> {
    let (keys, ids): (Vec<&str>, Vec<&str>) = kept
        .map(|(key, (_, ids))| (key.as_str(), ids.as_str()))
        .unzip();
    if keys.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update idempotency i set ids = g.ids from unnest($1::text[], $2::text[]) as g(key, ids)
         where i.key = g.key",
    )
    .bind(&keys)
    .bind(&ids)
    .execute(tx)
    .await
    .map_err(sql("keep an idempotency key"))?;
    Ok(())
}

pub(super) async fn posted_before(store: &Postgres, guard: &Idempotency) -> Result<Option<Posted>> {
    if guard.key.contains('\0') {
        return Ok(None);
    }
    let kept: Option<(String, String)> = sqlx::query_as(
        "select body_hash, ids from idempotency
         where key = $1 and created_at > now() - $2::text::interval",
    )
    .bind(&guard.key)
    .bind(KEY_LIFE)
    .fetch_optional(&store.pool)
    .await
    .map_err(sql("look an idempotency key up"))?;
    Ok(kept.map(|(hash, ids)| Posted::known(guard, &hash, &ids)))
}

/// The rows of a post, if PostgreSQL can store them.
fn rows_of(post: &Post<'_>) -> Result<Vec<Value>> {
    if post.guard.is_some_and(|guard| guard.key.contains('\0')) {
        return Err(nul("idempotency key"));
    }
    let rows = post.events.iter().map(|event| row_of(event, post.guard));
    rows.collect()
}

fn nul(place: &str) -> Error {
    Error::Refused(format!(
        "{place} holds a NUL character (U+0000), which PostgreSQL cannot store: take it out"
    ))
}

/// Where a NUL character hides, as a path of names.
fn nul_in(value: &Value) -> Option<String> {
    let below = |name: &str, value: &Value| {
        nul_in(value).map(|rest| format!("{name}.{rest}").trim_end_matches('.').to_owned())
    };
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(list) => list.iter().find_map(nul_in),
        Value::Object(map) => map.iter().find_map(|(name, value)| {
            if name.contains('\0') {
                Some("a name".to_owned())
            } else {
                below(name, value)
            }
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// One compact row as an object of column names.
fn row_of(event: &CompactEvent, guard: Option<&Idempotency>) -> Result<Value> {
    let row = json!({
        "cmd": event.cmd,
        "user_id": event.user_id,
        "abonent_id": event.abonent_id,
        "nas_id": event.nas_id,
        "nas_ip": event.nas_ip,
        "usluga_id": event.usluga_id,
        "acct_session_id": event.acct_session_id,
        "params": event.params.clone().map(Value::Object),
        "params_complete": event.params_complete,
        "owner_script": event.owner_script,
        "owner_function": event.owner_function,
        "source": event.source,
        "batch_id": event.batch_id,
        "expires_ms": event.expires_at_ms.map(kept_ms),
        "idempotency_key": guard.map(|g| &g.key),
        "retried_from": event.retried_from,
    });
    match nul_in(&row) {
        None => Ok(row),
        Some(place) => Err(nul(&place)),
    }
}

/// Inserts rows in their order: one statement for any number.
async fn insert(tx: &mut PgConnection, rows: Vec<Value>) -> Result<Vec<EventId>> {
    let inserted: Vec<(i64,)> = sqlx::query_as(
        "insert into events_stack_compact (cmd, user_id, abonent_id, nas_id, nas_ip, usluga_id,
           acct_session_id, params, params_complete, owner_script, owner_function, source, batch_id,
           expires_at, idempotency_key, retried_from)
         select cmd, user_id, abonent_id, nas_id, nas_ip, usluga_id, acct_session_id, params,
           params_complete, owner_script, owner_function, source, batch_id,
           to_timestamp(expires_ms / 1000.0), idempotency_key, retried_from
         from rows from (json_to_recordset($1::json) as (cmd text, user_id bigint, abonent_id bigint,
           nas_id bigint, nas_ip text, usluga_id bigint, acct_session_id text, params json,
           params_complete boolean, owner_script text, owner_function text, source text, batch_id text,
           expires_ms bigint, idempotency_key text, retried_from bigint)) with ordinality
           as r(cmd, user_id, abonent_id, nas_id, nas_ip, usluga_id, acct_session_id, params,
             params_complete, owner_script, owner_function, source, batch_id, expires_ms,
             idempotency_key, retried_from, place)
         order by place
         returning id",
    )
    .bind(Value::Array(rows).to_string())
    .fetch_all(tx)
    .await
    .map_err(sql("insert compact events"))?;
    Ok(inserted.into_iter().map(|(id,)| EventId(id)).collect())
}

pub(super) async fn retry_expansion(store: &Postgres) -> Result<u64> {
    let done = sqlx::query(
        "update events_stack_compact set next_expand_at = now() where error is not null",
    )
    .execute(&store.pool)
    .await
    .map_err(sql("wake unexpandable rows"))?;
    Ok(done.rows_affected())
}

pub(super) async fn retry_dead(store: &Postgres, id: EventId) -> Result<Option<EventId>> {
    let mut tx = store
        .pool
        .begin()
        .await
        .map_err(sql("begin to retry an event"))?;
    let row = sqlx::query(
        "select event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id, owner_script,
           owner_function, batch_id, class, own_params::text, params_complete
         from events_dead where id = $1 and retried_as is null for update",
    )
    .bind(id.0)
    .fetch_optional(&mut *tx)
    .await
    .map_err(sql("read a dead event"))?;
    let Some(row) = row else { return Ok(None) };
    let read = || -> std::result::Result<(CompactEvent, i16), sqlx::Error> {
        Ok((
            CompactEvent {
                cmd: row.try_get("event_type")?,
                user_id: row.try_get("user_id")?,
                abonent_id: row.try_get("abonent_id")?,
                nas_id: row.try_get("nas_id")?,
                usluga_id: row.try_get("usluga_id")?,
                acct_session_id: row.try_get("acct_session_id")?,
                owner_script: row.try_get("owner_script")?,
                owner_function: row.try_get("owner_function")?,
                batch_id: row.try_get("batch_id")?,
                params: row
                    .try_get::<Option<&str>, _>("own_params")?
                    .and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok()),
                params_complete: row.try_get("params_complete")?,
                source: Some("retry".to_owned()),
                retried_from: Some(id),
                ..CompactEvent::default()
            },
            row.try_get("class")?,
        ))
    };
    let (event, class) = read().map_err(sql("read a dead event"))?;
    let changes_state = Class::from_number(class.into()) != Class::Interactive;
    if changes_state && let (Some(user), Some(nas)) = (event.user_id, event.nas_id) {
        let (later,): (bool,) = sqlx::query_as(
            "select exists (select 1 from events_stack where nas_id = $2 and user_id = $1 and id + 0 > $3 and class > 0)
               or exists (select 1 from events_done where user_id = $1 and nas_id = $2 and id > $3
                  and event_type <> all($4))
               or exists (select 1 from events_stack_compact where user_id = $1 and id > $3)",
        )
        .bind(user)
        .bind(nas)
        .bind(id.0)
        .bind(interactive())
        .fetch_one(&mut *tx)
        .await
        .map_err(sql("look for later events of the lane"))?;
        if later {
            return Ok(None);
        }
    }
    let rows = vec![row_of(&event, None)?];
    let new = insert(&mut tx, rows).await?.into_iter().next();
    sqlx::query("update events_dead set retried_as = $2 where id = $1")
        .bind(id.0)
        .bind(new.map(|new| new.0))
        .execute(&mut *tx)
        .await
        .map_err(sql("mark a dead event retried"))?;
    tx.commit().await.map_err(sql("commit a retry"))?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_is_found_wherever_it_hides() {
        let place = |event: CompactEvent| match row_of(&event, None) {
            Err(Error::Refused(text)) => text,
            other => format!("{other:?}"),
        };
        let nas_ip = CompactEvent {
            nas_ip: Some("10.0.0.1\0".into()),
            ..CompactEvent::default()
        };
        assert!(place(nas_ip).starts_with("nas_ip holds"));
        let params = CompactEvent {
            params: json!({"a": {"b": ["x", "y\0"]}}).as_object().cloned(),
            ..CompactEvent::default()
        };
        assert!(place(params).starts_with("params.a.b holds"));
        let written = CompactEvent {
            params: json!({"a": "\\u0000"}).as_object().cloned(),
            ..CompactEvent::default()
        };
        assert!(row_of(&written, None).is_ok(), "six characters, not one");
    }
}
