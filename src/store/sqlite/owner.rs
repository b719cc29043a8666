//! Who owns the database (scope `all`), what a dead owner left behind, tokens, audit.

use sqlx::SqliteConnection;

use super::{Sqlite, sql};
use crate::store::{After, Error, Owner, Result, Token};

pub(super) async fn own(store: &Sqlite, holder: &str, after: After) -> Result<i64> {
    let mut writer = store.write().await;
    let mut tx = writer.begin().await?;
    let held = held(&mut tx).await?;
    if let Some(owner) = &held
        && !owner.holder.is_empty()
        && !after.allows(owner)
    {
        return Err(Error::Owned(owner.clone()));
    }
    let epoch = held.map_or(0, |owner| owner.epoch) + 1;
    sqlx::query(
        "insert into owner (scope, epoch, holder, seen_at)
         values ('all', ?1, ?2, strftime('%Y-%m-%d %H:%M:%f', 'now'))
         on conflict (scope) do update set epoch = excluded.epoch, holder = excluded.holder,
           seen_at = excluded.seen_at",
    )
    .bind(epoch)
    .bind(holder)
    .execute(&mut *tx)
    .await
    .map_err(sql("take the ownership"))?;
    tx.commit().await.map_err(sql("take the ownership"))?;
    Ok(epoch)
}

async fn held(conn: &mut SqliteConnection) -> Result<Option<Owner>> {
    let row: Option<(i64, String, i64)> = sqlx::query_as(
        "select epoch, holder, cast((unixepoch('now', 'subsec') - unixepoch(seen_at, 'subsec')) * 1000 as integer)
         from owner where scope = 'all'",
    )
    .fetch_optional(conn)
    .await
    .map_err(sql("read the owner"))?;
    Ok(row.map(|(epoch, holder, seen_ms)| Owner {
        epoch,
        holder,
        seen_ms,
    }))
}

pub(super) async fn owner(store: &Sqlite) -> Result<Option<Owner>> {
    let mut conn = store
        .readers
        .acquire()
        .await
        .map_err(sql("read the owner"))?;
    let held = held(&mut conn).await?;
    Ok(held.filter(|owner| !owner.holder.is_empty()))
}

pub(super) async fn still_own(store: &Sqlite, epoch: i64) -> Result<bool> {
    let mut writer = store.write().await;
    let done = sqlx::query(
        "update owner set seen_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
         where scope = 'all' and epoch = ?1",
    )
    .bind(epoch)
    .execute(&mut writer.conn)
    .await
    .map_err(sql("renew the ownership"))?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn disown(store: &Sqlite, epoch: i64) -> Result<()> {
    let mut writer = store.write().await;
    sqlx::query("update owner set holder = '' where scope = 'all' and epoch = ?1")
        .bind(epoch)
        .execute(&mut writer.conn)
        .await
        .map_err(sql("give up the ownership"))?;
    Ok(())
}

pub(super) async fn recover(store: &Sqlite, epoch: i64, max_deaths: u32) -> Result<(u64, u64)> {
    let mut writer = store.write().await;
    let mut tx = writer.begin().await?;
    let buried = sqlx::query(
        "insert or replace into events_dead (id, event_type, user_id, abonent_id, nas_id, usluga_id,
           acct_session_id, params, class, event_date, owner_script, owner_function, source, batch_id,
           expires_at, try_count, deaths, epoch, started_at, possible_duplicate, last_code, last_error,
           own_params, params_complete, reason)
         select id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id, params, class,
           event_date, owner_script, owner_function, source, batch_id, expires_at, try_count, deaths + 1,
           epoch, started_at, 1, last_code, last_error, own_params, params_complete,
           'the daemon died ' || (deaths + 1) || ' times while it ran'
         from events_stack where state = 'running' and epoch < ?1 and deaths >= ?2",
    )
    .bind(epoch)
    .bind(i64::from(max_deaths))
    .execute(&mut *tx)
    .await
    .map_err(sql("bury suspects"))?
    .rows_affected();
    sqlx::query("delete from events_stack where state = 'running' and epoch < ?1 and deaths >= ?2")
        .bind(epoch)
        .bind(i64::from(max_deaths))
        .execute(&mut *tx)
        .await
        .map_err(sql("bury suspects"))?;
    let returned = sqlx::query(
        "update events_stack set state = 'ready', deaths = deaths + 1, possible_duplicate = 1,
           next_try_at = null
         where state = 'running' and epoch < ?1",
    )
    .bind(epoch)
    .execute(&mut *tx)
    .await
    .map_err(sql("return what a dead daemon left running"))?
    .rows_affected();
    tx.commit().await.map_err(sql("recover"))?;
    Ok((returned, buried))
}

pub(super) async fn add_token(store: &Sqlite, token: &Token) -> Result<()> {
    let mut writer = store.write().await;
    let done = sqlx::query(
        "insert into token (hash, name, scope) values (?1, ?2, ?3) on conflict do nothing",
    )
    .bind(&token.hash)
    .bind(&token.name)
    .bind(&token.scope)
    .execute(&mut writer.conn)
    .await
    .map_err(sql("store the token"))?;
    if done.rows_affected() == 0 {
        return Err(Token::is_there(&token.name));
    }
    Ok(())
}

pub(super) async fn token(store: &Sqlite, hash: &str) -> Result<Option<Token>> {
    let row: Option<(String, String, String)> =
        sqlx::query_as("select name, scope, hash from token where hash = ?1")
            .bind(hash)
            .fetch_optional(&store.readers)
            .await
            .map_err(sql("look a token up"))?;
    Ok(row.map(|(name, scope, hash)| Token { name, scope, hash }))
}

pub(super) async fn tokens(store: &Sqlite) -> Result<Vec<Token>> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("select name, scope, hash from token order by name")
            .fetch_all(&store.readers)
            .await
            .map_err(sql("list the tokens"))?;
    let token = |(name, scope, hash)| Token { name, scope, hash };
    Ok(rows.into_iter().map(token).collect())
}

pub(super) async fn remove_token(store: &Sqlite, name: &str) -> Result<bool> {
    let mut writer = store.write().await;
    let done = sqlx::query("delete from token where name = ?1")
        .bind(name)
        .execute(&mut writer.conn)
        .await
        .map_err(sql("take a token back"))?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn audit(store: &Sqlite, who: &str, what: &str, detail: &str) -> Result<()> {
    let mut writer = store.write().await;
    audit_row(&mut writer.conn, who, what, detail).await
}

pub(super) async fn audit_row(
    conn: &mut SqliteConnection,
    who: &str,
    what: &str,
    detail: &str,
) -> Result<()> {
    sqlx::query("insert into audit (who, what, detail) values (?1, ?2, ?3)")
        .bind(who)
        .bind(what)
        .bind(detail)
        .execute(conn)
        .await
        .map_err(sql("write the audit"))?;
    Ok(())
}
