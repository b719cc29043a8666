//! Who owns the database (scope `all`), what a dead owner left behind, tokens, audit.

use std::time::Duration;

use sqlx::PgConnection;

use super::stack::anew_dead;
use super::{Postgres, sql, storable};
use crate::store::sqlite::backup::ID_GAP;
use crate::store::{After, Error, Owner, Result, Token};

/// `recover` reads the whole main stack once, at start-up; it may take longer than other
/// statements.
pub(super) const RECOVER_LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn own(store: &Postgres, holder: &str, after: After) -> Result<i64> {
    let mut tx = store
        .pool
        .begin()
        .await
        .map_err(sql("take the ownership"))?;
    // Two daemons that start at the same moment: the second waits here, then sees the first.
    // Running turns hold the row itself `for share` and are waited for below.
    sqlx::query("lock table owner in share row exclusive mode")
        .execute(&mut *tx)
        .await
        .map_err(sql("take the ownership"))?;
    let held = held(&mut tx).await?;
    if let Some(owner) = &held
        && !owner.holder.is_empty()
        && !after.allows(owner)
    {
        return Err(Error::Owned(owner.clone()));
    }
    let epoch = held.map_or(0, |owner| owner.epoch) + 1;
    sqlx::query(
        "insert into owner (scope, epoch, holder, seen_at) values ('all', $1, $2, clock_timestamp())
         on conflict (scope) do update set epoch = excluded.epoch, holder = excluded.holder,
           seen_at = clock_timestamp()",
    )
    .bind(epoch)
    .bind(storable(holder))
    .execute(&mut *tx)
    .await
    .map_err(sql("take the ownership"))?;
    tx.commit().await.map_err(sql("take the ownership"))?;
    Ok(epoch)
}

async fn held(conn: &mut PgConnection) -> Result<Option<Owner>> {
    let row: Option<(i64, String, i64)> = sqlx::query_as(
        "select epoch, holder, (date_part('epoch', clock_timestamp() - seen_at) * 1000)::bigint
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

pub(super) async fn owner(store: &Postgres) -> Result<Option<Owner>> {
    let mut conn = store.pool.acquire().await.map_err(sql("read the owner"))?;
    let held = held(&mut conn).await?;
    Ok(held.filter(|owner| !owner.holder.is_empty()))
}

pub(super) async fn still_own(store: &Postgres, epoch: i64) -> Result<bool> {
    let done = sqlx::query(
        "update owner set seen_at = clock_timestamp() where scope = 'all' and epoch = $1",
    )
    .bind(epoch)
    .execute(&store.pool)
    .await
    .map_err(sql("renew the ownership"))?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn disown(store: &Postgres, epoch: i64) -> Result<()> {
    sqlx::query("update owner set holder = '' where scope = 'all' and epoch = $1")
        .bind(epoch)
        .execute(&store.pool)
        .await
        .map_err(sql("give up the ownership"))?;
    Ok(())
}

pub(super) async fn recover(store: &Postgres, epoch: i64, max_deaths: u32) -> Result<(u64, u64)> {
    let mut tx = store.pool.begin().await.map_err(sql("recover"))?;
    sqlx::query("select set_config('statement_timeout', $1, true)")
        .bind(format!("{}ms", RECOVER_LIMIT.as_millis()))
        .execute(&mut *tx)
        .await
        .map_err(sql("recover"))?;
    let text = format!(
        "with gone as (
           delete from events_stack where state = 'running' and epoch < $1 and deaths >= $2 returning *)
         insert into events_dead (id, event_type, user_id, abonent_id, nas_id, usluga_id,
           acct_session_id, params, class, event_date, owner_script, owner_function, source, batch_id,
           expires_at, try_count, deaths, epoch, started_at, possible_duplicate, last_code, last_error,
           own_params, params_complete, reason)
         select id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id, params, class,
           event_date, owner_script, owner_function, source, batch_id, expires_at, try_count, deaths + 1,
           epoch, started_at, true, last_code, last_error, own_params, params_complete,
           'the daemon died ' || (deaths + 1) || ' times while it ran'
         from gone {}",
        anew_dead()
    );
    let buried = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(epoch)
        .bind(i64::from(max_deaths))
        .execute(&mut *tx)
        .await
        .map_err(sql("bury suspects"))?
        .rows_affected();
    let returned = sqlx::query(
        "update events_stack set state = 'ready', deaths = deaths + 1, possible_duplicate = true,
           next_try_at = null
         where state = 'running' and epoch < $1",
    )
    .bind(epoch)
    .execute(&mut *tx)
    .await
    .map_err(sql("return what a dead daemon left running"))?
    .rows_affected();
    tx.commit().await.map_err(sql("recover"))?;
    Ok((returned, buried))
}

pub(super) async fn restored(store: &Postgres) -> Result<u64> {
    let doing = "tell the database that it was restored";
    let mut tx = store.pool.begin().await.map_err(sql(doing))?;
    let waiting =
        sqlx::query("update events_stack set possible_duplicate = true where state <> 'held'")
            .execute(&mut *tx)
            .await
            .map_err(sql(doing))?
            .rows_affected();
    sqlx::query(
        "select setval(seq, nextval(seq) + $1)
         from (select pg_get_serial_sequence('events_stack_compact', 'id')::regclass as seq) s",
    )
    .bind(ID_GAP)
    .execute(&mut *tx)
    .await
    .map_err(sql(doing))?;
    sqlx::query("update owner set holder = '' where scope = 'all'")
        .execute(&mut *tx)
        .await
        .map_err(sql(doing))?;
    tx.commit().await.map_err(sql(doing))?;
    Ok(waiting)
}

pub(super) async fn add_token(store: &Postgres, token: &Token) -> Result<()> {
    let done = sqlx::query(
        "insert into token (hash, name, scope) values ($1, $2, $3) on conflict do nothing",
    )
    .bind(&token.hash)
    .bind(storable(&token.name))
    .bind(&token.scope)
    .execute(&store.pool)
    .await
    .map_err(sql("store the token"))?;
    if done.rows_affected() == 0 {
        return Err(Token::is_there(&token.name));
    }
    Ok(())
}

pub(super) async fn token(store: &Postgres, hash: &str) -> Result<Option<Token>> {
    let row: Option<(String, String, String)> =
        sqlx::query_as("select name, scope, hash from token where hash = $1")
            .bind(storable(hash))
            .fetch_optional(&store.pool)
            .await
            .map_err(sql("look a token up"))?;
    Ok(row.map(|(name, scope, hash)| Token { name, scope, hash }))
}

pub(super) async fn tokens(store: &Postgres) -> Result<Vec<Token>> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("select name, scope, hash from token order by name")
            .fetch_all(&store.pool)
            .await
            .map_err(sql("list the tokens"))?;
    let token = |(name, scope, hash)| Token { name, scope, hash };
    Ok(rows.into_iter().map(token).collect())
}

pub(super) async fn remove_token(store: &Postgres, name: &str) -> Result<bool> {
    let done = sqlx::query("delete from token where name = $1")
        .bind(storable(name))
        .execute(&store.pool)
        .await
        .map_err(sql("take a token back"))?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn audit(store: &Postgres, who: &str, what: &str, detail: &str) -> Result<()> {
    let mut conn = store.pool.acquire().await.map_err(sql("write the audit"))?;
    audit_all(&mut conn, what, &[(who, detail.to_owned())]).await
}

/// Rows of one kind: who, and with what.
pub(super) async fn audit_all(
    conn: &mut PgConnection,
    what: &str,
    rows: &[(&str, String)],
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (who, details): (Vec<_>, Vec<_>) = rows
        .iter()
        .map(|(who, detail)| (storable(who), storable(detail)))
        .unzip();
    sqlx::query(
        "insert into audit (who, what, detail)
         select who, $2, detail from unnest($1::text[], $3::text[]) as a(who, detail)",
    )
    .bind(who)
    .bind(storable(what))
    .bind(details)
    .execute(conn)
    .await
    .map_err(sql("write the audit"))?;
    Ok(())
}
