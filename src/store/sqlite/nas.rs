//! NAS settings, their secrets, the operator's state of each, and the flags of accounts.

use std::collections::BTreeMap;

use sqlx::Row;

use super::{Sqlite, sql};
use crate::clock;
use crate::event::UserId;
use crate::nas::{BadNas, Mode, Nas, NasChange, NasId, NasSecret, NasState};
use crate::store::billing::NAS_OPTIONAL;
use crate::store::nas_row::{OPERATORS_MODE, StateRow, changed, nas_from, state_from};
use crate::store::{AccountFlags, Result};

const NAS_TEXTS: &[&str] = &["name", "ip", "forks", "oss_path", "script_name"];

pub(super) async fn nases(store: &Sqlite) -> Result<Vec<std::result::Result<Nas, BadNas>>> {
    let shape = store.shape();
    let columns: Vec<String> = NAS_TEXTS
        .iter()
        .chain(NAS_OPTIONAL)
        .map(|name| match shape.column("nas", name) {
            plain if plain == *name => format!("cast(\"{name}\" as text) as \"{name}\""),
            null => null,
        })
        .collect();
    let text = format!(
        "select cast(id as integer) as id,
           (select s.mode from nas_state s where s.nas_id = cast(nas.id as integer)) as {OPERATORS_MODE},
           {} from nas order by 1",
        columns.join(", ")
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .fetch_all(&store.readers)
        .await
        .map_err(sql("read the NAS settings"))?;
    let mut nases = Vec::with_capacity(rows.len());
    for row in &rows {
        let id: i64 = row.try_get("id").map_err(sql("read a NAS id"))?;
        nases.push(nas_from(id, |name| {
            row.try_get::<Option<String>, _>(name).ok().flatten()
        }));
    }
    Ok(nases)
}

/// NAS, begin and end of its pause in ms, why, forks, mode, learned SSH host key.
pub(super) async fn states(store: &Sqlite) -> Result<BTreeMap<NasId, NasState>> {
    let rows: Vec<StateRow> = sqlx::query_as(
        "select nas_id, cast(round(unixepoch(paused_from, 'subsec') * 1000) as integer),
           case when paused_until = 'until resumed' then 9223372036854775807
             else cast(round(unixepoch(paused_until, 'subsec') * 1000) as integer) end, pause_reason, forks,
           mode, ssh_host_key
         from nas_state",
    )
    .fetch_all(&store.readers)
    .await
    .map_err(sql("read the NAS states"))?;
    Ok(rows.into_iter().map(state_from).collect())
}

pub(super) async fn change(store: &Sqlite, nas: NasId, change: &NasChange) -> Result<()> {
    let (state, columns) = changed(change);
    let until = match state.paused_until_ms {
        None => None,
        Some(i64::MAX) => Some("until resumed".to_owned()),
        Some(ms) => Some(clock::utc_text(ms)),
    };
    let mut writer = store.write().await;
    let text = format!(
        "insert into nas_state (nas_id, paused_until, pause_reason, forks, mode, paused_from)
         values (?1, ?2, ?3, ?4, ?5, ?6)
         on conflict (nas_id) do update set {columns}"
    );
    sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(nas.0)
        .bind(until)
        .bind(&state.pause_reason)
        .bind(state.forks)
        .bind(state.mode.map(Mode::as_str))
        .bind(state.paused_from_ms.map(clock::utc_text))
        .execute(&mut writer.conn)
        .await
        .map_err(sql("change the settings of a NAS"))?;
    Ok(())
}

pub(super) async fn set_host_key(
    store: &Sqlite,
    nas: NasId,
    was: Option<&str>,
    key: Option<&str>,
) -> Result<bool> {
    let mut writer = store.write().await;
    let done = sqlx::query(
        "insert into nas_state (nas_id, ssh_host_key) select ?1, ?3
         where ?2 is null or exists (select 1 from nas_state where nas_id = ?1)
         on conflict (nas_id) do update set ssh_host_key = excluded.ssh_host_key
         where nas_state.ssh_host_key is ?2",
    )
    .bind(nas.0)
    .bind(was)
    .bind(key)
    .execute(&mut writer.conn)
    .await
    .map_err(sql("write the host key of a NAS"))?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn secret(store: &Sqlite, nas: NasId) -> Result<NasSecret> {
    let shape = store.shape();
    let column = |name: &str| match shape.column("nas_secret", name) {
        plain if plain == name => format!("ifnull(cast(\"{name}\" as text), '')"),
        _ => "''".to_owned(),
    };
    let text = format!(
        "select {}, {}, {}, {}, {} from nas_secret where nas_id = ?1",
        column("login"),
        column("password"),
        column("enable_password"),
        column("coa_secret"),
        column("ssh_key")
    );
    let row: Option<(String, String, String, String, String)> =
        sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(nas.0)
            .fetch_optional(&store.readers)
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
    store: &Sqlite,
    nas: Option<NasId>,
    user: Option<UserId>,
) -> Result<Vec<AccountFlags>> {
    let shape = store.shape();
    let c = |name: &str, default: &str| match shape.column("users", name) {
        plain if plain == name => format!("ifnull(\"{name}\", {default})"),
        _ => default.to_owned(),
    };
    let nas_id = match shape.column("users", "nas_id") {
        plain if plain == "nas_id" => "nas_id",
        _ => "null",
    };
    let text = format!(
        "select id, {nas_id}, {} <> 0, {} <> 0, {} <> 0, {} <> 0 or {} <> 0 or {} <> 0 or {} <> 0
         from users where (?1 is null or {nas_id} = ?1) and (?2 is null or id = ?2) order by id",
        c("deleted", "0"),
        c("accept", "1"),
        c("redirect", "0"),
        c("rate_in", "0"),
        c("rate_out", "0"),
        c("ceil_in", "0"),
        c("ceil_out", "0")
    );
    let rows: Vec<(i64, Option<i64>, bool, bool, bool, bool)> =
        sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(nas.map(|n| n.0))
            .bind(user.map(|u| u.0))
            .fetch_all(&store.readers)
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
