//! The compact stack: accepting events, retrying dead ones, waking unexpandable rows.

use serde_json::{Value, json};
use sqlx::{Row, Sqlite as Db, SqliteConnection, Transaction};

use super::{Sqlite, sql};
use crate::clock;
use crate::event::{CATALOGUE, Class, Cmd, CompactEvent, EventId};
use crate::store::{Error, Idempotency, Post, Posted, Result};

/// How long an idempotency key is remembered.
const KEY_LIFE: &str = "-24 hours";

/// The command catalogue as a temporary table of the writer connection, so that expansion can
/// stay one statement.
pub(super) async fn create_catalogue(conn: &mut SqliteConnection) -> Result<()> {
    sqlx::raw_sql(
        "create temp table catalogue (cmd text primary key, class integer not null, ttl_s real) without rowid",
    )
    .execute(&mut *conn)
    .await
    .map_err(sql("create the catalogue"))?;
    let known: Vec<Cmd> = CATALOGUE
        .iter()
        .filter_map(|(name, _)| Cmd::parse(name).ok())
        .collect();
    add_to_catalogue(conn, &known).await
}

pub(super) async fn add_to_catalogue(conn: &mut SqliteConnection, cmds: &[Cmd]) -> Result<()> {
    let rows: Vec<Value> = cmds
        .iter()
        .map(|c| {
            json!([
                c.as_str(),
                c.class().number(),
                c.ttl_ms().map(|ms| ms / 1000)
            ])
        })
        .collect();
    sqlx::query(
        "insert or replace into catalogue (cmd, class, ttl_s)
         select value ->> 0, value ->> 1, value ->> 2 from json_each(?1)",
    )
    .bind(Value::Array(rows).to_string())
    .execute(conn)
    .await
    .map_err(sql("fill the catalogue"))?;
    Ok(())
}

pub(super) async fn post_all(store: &Sqlite, posts: &[Post<'_>]) -> Result<Vec<Result<Posted>>> {
    let mut writer = store.write().await;
    let mut tx = writer.begin().await?;
    let mut answers = Vec::with_capacity(posts.len());
    for Post { events, guard } in posts {
        if let Some(guard) = guard
            && let Some(answer) = known(&mut tx, guard).await?
        {
            answers.push(Ok(answer));
            continue;
        }
        let mut ids = Vec::with_capacity(events.len());
        for event in *events {
            ids.push(insert(&mut tx, event, *guard).await?);
        }
        if let Some(guard) = guard {
            keep_key(&mut tx, guard, &ids).await?;
        }
        answers.push(Ok(Posted::New(ids)));
    }
    tx.commit().await.map_err(sql("commit accepted events"))?;
    Ok(answers)
}

pub(super) async fn posted_before(store: &Sqlite, guard: &Idempotency) -> Result<Option<Posted>> {
    let doing = "look an idempotency key up";
    let mut reader = store.readers.acquire().await.map_err(sql(doing))?;
    known(&mut reader, guard).await
}

/// What a post gets whose key is known.
async fn known(conn: &mut SqliteConnection, guard: &Idempotency) -> Result<Option<Posted>> {
    let kept: Option<(String, String)> = sqlx::query_as(
        "select body_hash, ids from idempotency
         where key = ?1 and created_at > strftime('%Y-%m-%d %H:%M:%f', 'now', ?2)",
    )
    .bind(&guard.key)
    .bind(KEY_LIFE)
    .fetch_optional(conn)
    .await
    .map_err(sql("look an idempotency key up"))?;
    Ok(kept.map(|(hash, ids)| Posted::known(guard, &hash, &ids)))
}

async fn keep_key(
    tx: &mut Transaction<'_, Db>,
    guard: &Idempotency,
    ids: &[EventId],
) -> Result<()> {
    sqlx::query(
        "delete from idempotency where created_at <= strftime('%Y-%m-%d %H:%M:%f', 'now', ?1)",
    )
    .bind(KEY_LIFE)
    .execute(&mut **tx)
    .await
    .map_err(sql("forget old idempotency keys"))?;
    sqlx::query("insert into idempotency (key, body_hash, ids) values (?1, ?2, ?3)")
        .bind(&guard.key)
        .bind(&guard.body_hash)
        .bind(json!(ids).to_string())
        .execute(&mut **tx)
        .await
        .map_err(sql("keep an idempotency key"))?;
    Ok(())
}

async fn insert(
    tx: &mut Transaction<'_, Db>,
    event: &CompactEvent,
    guard: Option<&Idempotency>,
) -> Result<EventId> {
    let (id,): (i64,) = sqlx::query_as(
        "insert into events_stack_compact (cmd, user_id, abonent_id, nas_id, nas_ip, usluga_id,
           acct_session_id, params, params_complete, owner_script, owner_function, source, batch_id,
           expires_at, idempotency_key, retried_from)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16) returning id",
    )
    .bind(&event.cmd)
    .bind(event.user_id)
    .bind(event.abonent_id)
    .bind(event.nas_id)
    .bind(&event.nas_ip)
    .bind(event.usluga_id)
    .bind(&event.acct_session_id)
    .bind(event.params.as_ref().map(|p| Value::Object(p.clone()).to_string()))
    .bind(event.params_complete)
    .bind(&event.owner_script)
    .bind(&event.owner_function)
    .bind(&event.source)
    .bind(&event.batch_id)
    .bind(event.expires_at_ms.map(clock::utc_text))
    .bind(guard.map(|g| g.key.clone()))
    .bind(event.retried_from.map(|e| e.0))
    .fetch_one(&mut **tx)
    .await
    .map_err(sql("insert a compact event"))?;
    Ok(EventId(id))
}

pub(super) async fn retry_expansion(store: &Sqlite) -> Result<u64> {
    let mut writer = store.write().await;
    let done = sqlx::query(
        "update events_stack_compact set next_expand_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
         where error is not null",
    )
    .execute(&mut writer.conn)
    .await
    .map_err(sql("wake unexpandable rows"))?;
    Ok(done.rows_affected())
}

pub(super) async fn retry_dead(store: &Sqlite, id: EventId) -> Result<Option<EventId>> {
    let mut writer = store.write().await;
    let mut tx = writer.begin().await?;
    let row = sqlx::query(
        "select event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id, owner_script,
           owner_function, batch_id, class, own_params, params_complete from events_dead where id = ?1 and retried_as is null",
    )
    .bind(id.0)
    .fetch_optional(&mut *tx)
    .await
    .map_err(sql("read a dead event"))?;
    let Some(row) = row else { return Ok(None) };
    let read = || -> std::result::Result<(CompactEvent, i64), sqlx::Error> {
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
                    .try_get::<Option<String>, _>("own_params")?
                    .and_then(|text| serde_json::from_str(&text).ok()),
                params_complete: row.try_get::<i64, _>("params_complete")? != 0,
                source: Some("retry".to_owned()),
                retried_from: Some(id),
                ..CompactEvent::default()
            },
            row.try_get("class")?,
        ))
    };
    let (event, class) = read().map_err(sql("read a dead event"))?;
    let changes_state = Class::from_number(class) != Class::Interactive;
    if changes_state && let (Some(user), Some(nas)) = (event.user_id, event.nas_id) {
        let (later,): (bool,) = sqlx::query_as(
            "select exists (select 1 from events_stack where nas_id = ?2 and user_id = ?1 and id > ?3 and class > 0)
               or exists (select 1 from events_done d where d.user_id = ?1 and d.nas_id = ?2 and d.id > ?3
                  and d.event_type not in (select cmd from catalogue where class = 0))
               or exists (select 1 from events_stack_compact where user_id = ?1 and id > ?3)",
        )
        .bind(user)
        .bind(nas)
        .bind(id.0)
        .fetch_one(&mut *tx)
        .await
        .map_err(sql("look for later events of the lane"))?;
        if later {
            return Ok(None);
        }
    }
    let new = insert(&mut tx, &event, None).await?;
    let changed =
        sqlx::query("update events_dead set retried_as = ?2 where id = ?1 and retried_as is null")
            .bind(id.0)
            .bind(new.0)
            .execute(&mut *tx)
            .await
            .map_err(sql("mark a dead event retried"))?;
    if changed.rows_affected() != 1 {
        return Err(Error::Refused(format!(
            "event {id} was retried by somebody else meanwhile"
        )));
    }
    tx.commit().await.map_err(sql("commit a retry"))?;
    Ok(Some(new))
}
