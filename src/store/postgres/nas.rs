//! NAS settings, their secrets, the operator's state of each, and the flags of accounts.

use std::collections::BTreeMap;

use sqlx::Row;

use super::{Postgres, kept_ms, ms_of, sql, storable};
use crate::event::UserId;
use crate::nas::{BadNas, Mode, Nas, NasChange, NasId, NasSecret, NasState};
use crate::store::billing::NAS_OPTIONAL;
use crate::store::nas_row::{OPERATORS_MODE, StateRow, changed, nas_from, state_from};
use crate::store::{AccountFlags, Result};

const NAS_TEXTS: &[&str] = &["name", "ip", "forks", "oss_path", "script_name"];

pub(super) async fn nases(store: &Postgres) -> Result<Vec<std::result::Result<Nas, BadNas>>> {
    let shape = store.shape();
    let columns: Vec<String> = NAS_TEXTS
        .iter()
        .chain(NAS_OPTIONAL)
        .map(|name| format!("{} as \"{name}\"", shape.text("nas", name)))
        .collect();
    let text = format!(
        "select id::bigint as id,
           (select s.mode from nas_state s where s.nas_id = nas.id::bigint) as {OPERATORS_MODE},
           {} from nas order by 1",
        columns.join(", ")
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .fetch_all(&store.pool)
        .await
        .map_err(sql("read the NAS settings"))?;
    let mut nases = Vec::with_capacity(rows.len());
    for row in &rows {
        let id: Option<i64> = row.try_get("id").map_err(sql("read a NAS id"))?;
        let Some(id) = id else { continue };
        nases.push(nas_from(id, |name| {
            row.try_get::<Option<String>, _>(name).ok().flatten()
        }));
    }
    Ok(nases)
}

/// NAS, begin and end of its pause in ms, why, forks, mode, learned SSH host key.
pub(super) async fn states(store: &Postgres) -> Result<BTreeMap<NasId, NasState>> {
    let text = format!(
        "select nas_id, {}, case when paused_until = 'infinity' then {} else {} end, pause_reason, forks,
           mode, ssh_host_key
         from nas_state",
        ms_of("paused_from"),
        i64::MAX,
        ms_of("paused_until")
    );
    let rows: Vec<StateRow> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .fetch_all(&store.pool)
        .await
        .map_err(sql("read the NAS states"))?;
    Ok(rows.into_iter().map(state_from).collect())
}

pub(super) async fn change(store: &Postgres, nas: NasId, change: &NasChange) -> Result<()> {
    let (state, columns) = changed(change);
    let text = format!(
        "insert into nas_state (nas_id, paused_until, pause_reason, forks, mode, paused_from)
         values ($1, case when $2 then 'infinity' else to_timestamp($3::bigint / 1000.0) end, $4, $5, $6,
           to_timestamp($7::bigint / 1000.0))
         on conflict (nas_id) do update set {columns}"
    );
    sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(nas.0)
        .bind(state.paused_until_ms == Some(i64::MAX))
        .bind(state.paused_until_ms.map(kept_ms))
        .bind(storable(&state.pause_reason))
        .bind(state.forks)
        .bind(state.mode.map(Mode::as_str))
        .bind(state.paused_from_ms.map(kept_ms))
        .execute(&store.pool)
        .await
        .map_err(sql("change the settings of a NAS"))?;
    Ok(())
}

pub(super) async fn set_host_key(
    store: &Postgres,
    nas: NasId,
    was: Option<&str>,
    key: Option<&str>,
) -> Result<bool> {
    let done = sqlx::query(
        "insert into nas_state (nas_id, ssh_host_key) select $1, $3
         where $2::text is null or exists (select 1 from nas_state where nas_id = $1)
         on conflict (nas_id) do update set ssh_host_key = excluded.ssh_host_key
         where nas_state.ssh_host_key is not distinct from $2",
    )
    .bind(nas.0)
    .bind(was)
    .bind(key)
    .execute(&store.pool)
    .await
    .map_err(sql("write the host key of a NAS"))?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn secret(store: &Postgres, nas: NasId) -> Result<NasSecret> {
    let shape = store.shape();
    let column = |name: &str| format!("coalesce({}, '')", shape.text("nas_secret", name));
    let text = format!(
        "select {}, {}, {}, {}, {} from nas_secret where nas_id = {}",
        column("login"),
        column("password"),
        column("enable_password"),
        column("coa_secret"),
        column("ssh_key"),
        shape.like("nas_secret", "nas_id", "$1::bigint")
    );
    let row: Option<(String, String, String, String, String)> =
        sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(nas.0)
            .fetch_optional(&store.pool)
            .await
            .map_err(sql("read the credentials of a NAS"))?;
    Ok(row.map_or_else(
        NasSecret::default,
        |(login, password, enable_password, coa_secret, ssh_key)| NasSecret {
            login,
            password,
            enable_password,
            coa_secret,
            ssh_key,
        },
    ))
}

pub(super) async fn account_flags(
    store: &Postgres,
    nas: Option<NasId>,
    user: Option<UserId>,
) -> Result<Vec<AccountFlags>> {
    let shape = store.shape();
    let flag = |name: &str, default: bool| shape.flag("users", name, default);
    let nas_id = shape.number("users", "nas_id");
    let text = format!(
        "select id::bigint, {nas_id}, {}, {}, {}, {} or {} or {} or {}
         from users where ($1::bigint is null or {nas_id} = $1) and ($2::bigint is null or id = {})
         order by 1",
        flag("deleted", false),
        flag("accept", true),
        flag("redirect", false),
        flag("rate_in", false),
        flag("rate_out", false),
        flag("ceil_in", false),
        flag("ceil_out", false),
        shape.like("users", "id", "$2::bigint")
    );
    let rows: Vec<(i64, Option<i64>, bool, bool, bool, bool)> =
        sqlx::query_as(sqlx::AssertSqlSafe(text))
            .persistent(false)
            .bind(nas.map(|n| n.0))
            .bind(user.map(|u| u.0))
            .fetch_all(&store.pool)
            .await
            .map_err(sql("read the flags of accounts"))?;
    Ok(rows
        .into_iter()
        .map(
            |(user_id, nas_id, deleted, accept, redirect, rated)| AccountFlags {
                user_id,
                nas_id,
                deleted,
                accept,
                redirect,
                rated,
            },
        )
        .collect())
}
