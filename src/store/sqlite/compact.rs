//! The compact stack: accepting events, retrying dead ones, waking unexpandable rows.

use serde_json::{Value, json};
use sqlx::{Row, Sqlite as Db, SqliteConnection, Transaction};

use super::{Sqlite, owner, sql};
use crate::event::{CATALOGUE, Class, Cmd, CompactEvent, EventId};
use crate::store::posts::{Kept, LASTING_DAYS, Plan, row_of};
use crate::store::{Error, Idempotency, Post, Posted, Result, audit};

/// Whether a key is forgotten. The first part is what its index finds.
fn old_key() -> String {
    format!(
        "created_at <= strftime('%Y-%m-%d %H:%M:%f', 'now', '-24 hours')
           and (not lasting or created_at <= strftime('%Y-%m-%d %H:%M:%f', 'now', '-{LASTING_DAYS} days'))"
    )
}

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
    let mut plan = Plan::new(posts);
    let mut writer = store.write().await;
    let mut tx = writer.begin().await?;
    let mut kept = Kept::new();
    for guard in plan.guards() {
        if let Some(found) = kept_of(&mut tx, guard).await? {
            kept.insert(guard.key.clone(), found);
        }
    }
    plan.know(kept);
    let ids = insert(&mut tx, plan.rows()).await?;
    for (guard, ids) in plan.keys(&ids) {
        keep_key(&mut tx, guard, &ids).await?;
    }
    let answers = plan.answers(&ids)?;
    for (who, detail) in audit::of_posts(posts, &answers) {
        owner::audit_row(&mut tx, who, "post", &detail).await?;
    }
    tx.commit().await.map_err(sql("commit accepted events"))?;
    Ok(answers)
}

pub(super) async fn posted_before(store: &Sqlite, guard: &Idempotency) -> Result<Option<Posted>> {
    let doing = "look an idempotency key up";
    let mut reader = store.readers.acquire().await.map_err(sql(doing))?;
    let kept = kept_of(&mut reader, guard).await?;
    Ok(kept.map(|(hash, ids)| Posted::known(guard, &hash, &ids)))
}

/// What is kept of a key: hash of the body, ids as JSON.
async fn kept_of(
    conn: &mut SqliteConnection,
    guard: &Idempotency,
) -> Result<Option<(String, String)>> {
    let text = format!(
        "select body_hash, ids from idempotency where key = ?1 and not ({})",
        old_key()
    );
    sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(&guard.key)
        .fetch_optional(conn)
        .await
        .map_err(sql("look an idempotency key up"))
}

async fn keep_key(tx: &mut Transaction<'_, Db>, guard: &Idempotency, ids: &str) -> Result<()> {
    let forget = format!("delete from idempotency where {}", old_key());
    sqlx::query(sqlx::AssertSqlSafe(forget))
        .execute(&mut **tx)
        .await
        .map_err(sql("forget old idempotency keys"))?;
    sqlx::query("insert into idempotency (key, body_hash, ids, lasting) values (?1, ?2, ?3, ?4)")
        .bind(&guard.key)
        .bind(&guard.body_hash)
        .bind(ids)
        .bind(guard.lasting)
        .execute(&mut **tx)
        .await
        .map_err(sql("keep an idempotency key"))?;
    Ok(())
}

pub(super) async fn confirm_keys(store: &Sqlite, keys: &[String]) -> Result<()> {
    let mut writer = store.write().await;
    sqlx::query(
        "update idempotency set lasting = 0
         where lasting and key in (select value from json_each(?1))",
    )
    .bind(json!(keys).to_string())
    .execute(&mut writer.conn)
    .await
    .map_err(sql("confirm idempotency keys"))?;
    Ok(())
}

/// Inserts rows in their order: one statement for any number, since each costs a hand-over to
/// the thread that owns the connection.
async fn insert(tx: &mut Transaction<'_, Db>, rows: Vec<&Value>) -> Result<Vec<EventId>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut ids: Vec<(i64,)> = sqlx::query_as(
        "insert into events_stack_compact (cmd, user_id, abonent_id, nas_id, nas_ip, usluga_id,
           acct_session_id, params, params_complete, owner_script, owner_function, source, batch_id,
           expires_at, idempotency_key, retried_from)
         select value ->> 'cmd', value ->> 'user_id', value ->> 'abonent_id', value ->> 'nas_id',
           value ->> 'nas_ip', value ->> 'usluga_id', value ->> 'acct_session_id', value ->> 'params',
           value ->> 'params_complete', value ->> 'owner_script', value ->> 'owner_function',
           value ->> 'source', value ->> 'batch_id',
           strftime('%Y-%m-%d %H:%M:%f', (value ->> 'expires_ms') / 1000.0, 'unixepoch'),
           value ->> 'idempotency_key', value ->> 'retried_from'
         from json_each(?1) order by key returning id",
    )
    .bind(json!(rows).to_string())
    .fetch_all(&mut **tx)
    .await
    .map_err(sql("insert compact events"))?;
    // RETURNING promises no order, AUTOINCREMENT does.
    ids.sort_unstable();
    Ok(ids.into_iter().map(|(id,)| EventId(id)).collect())
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
    let row = row_of(&event, None)?;
    let Some(&new) = insert(&mut tx, vec![&row]).await?.first() else {
        return Ok(None);
    };
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
