//! The compact stack: accepting events, retrying dead ones, waking unexpandable rows.

use serde_json::{Map, Value, json};
use sqlx::{PgConnection, Row};

use super::{Postgres, owner, sql};
use crate::event::{CATALOGUE, Class, CompactEvent, EventId};
use crate::store::posts::{Kept, LASTING_DAYS, Plan, row_of};
use crate::store::{Idempotency, Post, Posted, Result, audit};

/// Whether a key is forgotten. The first part is what its index finds.
fn old_key() -> String {
    format!(
        "created_at <= now() - interval '24 hours'
           and (not lasting or created_at <= now() - interval '{LASTING_DAYS} days')"
    )
}

/// Commands that change no state, for looks at the lane in `events_done`, which has no class.
pub(super) fn interactive() -> Vec<&'static str> {
    CATALOGUE
        .iter()
        .filter(|(_, class)| *class == Class::Interactive)
        .map(|(name, _)| *name)
        .collect()
}

pub(super) async fn post_all(store: &Postgres, posts: &[Post<'_>]) -> Result<Vec<Result<Posted>>> {
    let mut plan = Plan::new(posts);
    let begun = store.pool.begin().await;
    let mut tx = begun.map_err(sql("begin to accept events"))?;
    let known = take_keys(&mut tx, plan.guards()).await?;
    plan.know(known);
    let ids = insert(&mut tx, plan.rows()).await?;
    keep_ids(&mut tx, plan.keys(&ids)).await?;
    let answers = plan.answers(&ids)?;
    let audit = audit::of_posts(posts, &answers);
    owner::audit_all(&mut tx, "post", &audit).await?;
    tx.commit().await.map_err(sql("commit accepted events"))?;
    Ok(answers)
}

/// Takes those keys that are new, and returns what is kept of the others: hash and ids.
async fn take_keys<'a>(
    tx: &mut PgConnection,
    guards: impl Iterator<Item = &'a Idempotency>,
) -> Result<Kept> {
    let (mut keys, mut hashes, mut lasting) = (Vec::new(), Vec::new(), Vec::new());
    for guard in guards {
        keys.push(guard.key.as_str());
        hashes.push(guard.body_hash.as_str());
        lasting.push(guard.lasting);
    }
    if keys.is_empty() {
        return Ok(Kept::new());
    }
    let forget = format!("delete from idempotency where {}", old_key());
    sqlx::query(sqlx::AssertSqlSafe(forget))
        .execute(&mut *tx)
        .await
        .map_err(sql("forget old idempotency keys"))?;
    // Taken before the events: of two posts with one key the second waits here for the first to
    // commit. In one order, so that two transactions never wait for each other.
    let taken: Vec<(String,)> = sqlx::query_as(
        "insert into idempotency (key, body_hash, ids, lasting)
         select key, hash, '[]', lasting
         from unnest($1::text[], $2::text[], $3::boolean[]) as g(key, hash, lasting) order by key
         on conflict do nothing returning key",
    )
    .bind(&keys)
    .bind(&hashes)
    .bind(&lasting)
    .fetch_all(&mut *tx)
    .await
    .map_err(sql("keep an idempotency key"))?;
    if taken.len() == keys.len() {
        return Ok(Kept::new());
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

async fn keep_ids(tx: &mut PgConnection, keys: Vec<(&Idempotency, String)>) -> Result<()> {
    let (keys, ids): (Vec<&str>, Vec<String>) = keys
        .into_iter()
        .map(|(guard, ids)| (guard.key.as_str(), ids))
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
    let text = format!(
        "select body_hash, ids from idempotency where key = $1 and not ({})",
        old_key()
    );
    let kept: Option<(String, String)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(&guard.key)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("look an idempotency key up"))?;
    Ok(kept.map(|(hash, ids)| Posted::known(guard, &hash, &ids)))
}

pub(super) async fn confirm_keys(store: &Postgres, keys: &[String]) -> Result<()> {
    sqlx::query("update idempotency set lasting = false where lasting and key = any($1)")
        .bind(keys)
        .execute(&store.pool)
        .await
        .map_err(sql("confirm idempotency keys"))?;
    Ok(())
}

/// Inserts rows in their order: one statement for any number.
async fn insert(tx: &mut PgConnection, rows: Vec<&Value>) -> Result<Vec<EventId>> {
    let inserted: Vec<(i64,)> = sqlx::query_as(
        "insert into events_stack_compact (cmd, user_id, abonent_id, nas_id, nas_ip, usluga_id,
           acct_session_id, params, params_complete, owner_script, owner_function, source, batch_id,
           expires_at, idempotency_key, retried_from)
         select cmd, user_id, abonent_id, nas_id, nas_ip, usluga_id, acct_session_id, params,
           params_complete::int, owner_script, owner_function, source, batch_id,
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
    .bind(json!(rows).to_string())
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
    let row = row_of(&event, None)?;
    let new = insert(&mut tx, vec![&row]).await?.into_iter().next();
    sqlx::query("update events_dead set retried_as = $2 where id = $1")
        .bind(id.0)
        .bind(new.map(|new| new.0))
        .execute(&mut *tx)
        .await
        .map_err(sql("mark a dead event retried"))?;
    tx.commit().await.map_err(sql("commit a retry"))?;
    Ok(new)
}
