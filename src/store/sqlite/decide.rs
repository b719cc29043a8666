//! What becomes of one compact row that the plain statement left: services, own variables,
//! addresses of NASes, mistakes.

use serde_json::{Map, Value};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite as Db, Transaction};

use super::expand::{DUPLICATE, is_row_trouble};
use super::stack::{WAITING, waiting_from_json};
use super::{billing, sql};
use crate::event::{Cmd, EventId, Params, Waiting};
use crate::store::{Error, Expansion, Result};

/// One row: expands it, or writes why not.
pub(super) async fn one(
    tx: &mut Transaction<'_, Db>,
    shape: &billing::Shape,
    id: i64,
    out: &mut Expansion,
) -> Result<()> {
    let text = "select *, trim(expires_at) <> '' and unixepoch(expires_at) is null as expires_never
      from events_stack_compact where id = ?1";
    let row = sqlx::query(text)
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(sql("read a compact event"))?;
    let Some(row) = row else { return Ok(()) };
    sqlx::query("savepoint one_row")
        .execute(&mut **tx)
        .await
        .map_err(sql("expand one row"))?;
    let trouble = match moved(tx, shape, &row).await {
        Ok(Ok(Some(waiting))) => {
            out.moved.push(waiting);
            None
        }
        Ok(Ok(None)) => {
            out.overtaken += 1;
            None
        }
        Ok(Err(reason)) => Some(reason),
        Err(Error::Sql { doing, source }) if is_row_trouble(&source) => {
            Some(format!("{doing}: {source}"))
        }
        Err(other) => return Err(other),
    };
    let end = if trouble.is_some() {
        "rollback to one_row"
    } else {
        "release one_row"
    };
    sqlx::query(end)
        .execute(&mut **tx)
        .await
        .map_err(sql("expand one row"))?;
    if let Some(reason) = trouble {
        sqlx::query(
            "update events_stack_compact set error = ?2, expand_tries = expand_tries + 1,
               next_expand_at = strftime('%Y-%m-%d %H:%M:%f', 'now',
                 '+' || min(60, 1 << min(cast(expand_tries as integer), 6)) || ' seconds')
             where id = ?1",
        )
        .bind(id)
        .bind(&reason)
        .execute(&mut **tx)
        .await
        .map_err(sql("write why a row cannot be expanded"))?;
        out.failed.push((EventId(id), reason));
    }
    Ok(())
}

/// `Ok(Some)` = expanded, `Ok(None)` = overtaken and dead, `Err(text)` = cannot be expanded.
async fn moved(
    tx: &mut Transaction<'_, Db>,
    shape: &billing::Shape,
    row: &SqliteRow,
) -> Result<std::result::Result<Option<Waiting>, String>> {
    let values = match Values::read(row) {
        Ok(values) => values,
        Err(why) => return Ok(Err(why)),
    };
    let Values {
        id,
        user,
        usluga,
        complete,
        ..
    } = values;
    let name = values.cmd;
    let known: Option<(i64, Option<f64>)> =
        sqlx::query_as("select class, ttl_s from catalogue where cmd = ?1")
            .bind(&name)
            .fetch_optional(&mut **tx)
            .await
            .map_err(sql("look a cmd up"))?;
    let Some((class, ttl_s)) = known else {
        let why = Cmd::parse(&name).err().unwrap_or_else(|| {
            format!(
                "unknown cmd {name}: it is neither in the catalogue nor defined by a loaded scheme"
            )
        });
        return Ok(Err(why));
    };
    let own: Option<Map<String, Value>> = match values.params {
        None => None,
        Some(t) => match serde_json::from_str(&t) {
            Ok(map) => map,
            Err(e) => return Ok(Err(format!("params is not a JSON object: {e}"))),
        },
    };
    let mut account = Map::new();
    let mut service = None;
    if let Some(user) = user {
        let found = object(
            tx,
            &shape.params,
            "event_params p where p.user_id = ?1 limit 2",
            user,
            None,
        )
        .await?;
        match found.as_slice() {
            [one] => account = one.clone(),
            [] if complete => {}
            [] => return Ok(Err(format!("user_id {user} has no row in event_params"))),
            _ => {
                return Ok(Err(format!(
                    "user_id {user} has several rows in event_params"
                )));
            }
        }
        if let Some(usluga) = usluga {
            let from = "event_usluga s where s.user_id = ?1 and s.usluga_id = ?2 limit 2";
            let found = object(tx, &shape.usluga, from, user, Some(usluga)).await?;
            match found.into_iter().next() {
                Some(one) => service = Some(one),
                None if complete => {}
                None => {
                    return Ok(Err(format!(
                        "user_id {user} has no row for usluga_id {usluga} in event_usluga"
                    )));
                }
            }
        }
    }
    let account_nas = account.get("nas_id").and_then(whole);
    let account_abonent = account.get("abonent_id").and_then(whole);
    let mut params = match Params::overlaid(account, service, own.as_ref()) {
        Ok(params) => params,
        Err(why) => return Ok(Err(why)),
    };
    if let Some(session) = values.session {
        params
            .0
            .insert("acct_session_id".to_owned(), Value::String(session));
    }
    if let Some(usluga) = usluga {
        params.0.insert("usluga_id".to_owned(), Value::from(usluga));
    }
    let nas = match choose_nas(tx, values.nas, values.nas_ip, account_nas).await? {
        Ok(nas) => nas,
        Err(why) => return Ok(Err(why)),
    };
    if values.tries > 0
        && class != 0
        && let Some(user) = user
    {
        let (overtaken,): (bool,) = sqlx::query_as(
            "select exists (select 1 from events_stack where nas_id = ?1 and user_id = ?2 and id > ?3 and class > 0)
               or exists (select 1 from events_done where user_id = ?2 and nas_id = ?1 and id > ?3
                 and event_type not in (select cmd from catalogue where class = 0))",
        )
        .bind(nas)
        .bind(user)
        .bind(id)
        .fetch_one(&mut **tx)
        .await
        .map_err(sql("look for later events of the lane"))?;
        if overtaken {
            bury_overtaken(tx, id, nas, class, &params).await?;
            return Ok(Ok(None));
        }
    }
    let text = format!(
        "insert into events_stack (id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id,
           params, class, event_date, owner_script, owner_function, source, batch_id, expires_at, own_params,
           params_complete, possible_duplicate)
         select id, cmd, ?7, ?2, ?3, ?8, acct_session_id, ?4, ?5, created_at,
           owner_script, owner_function, source, batch_id,
           ifnull(nullif(trim(expires_at), ''), case when ?6 is not null then
             strftime('%Y-%m-%d %H:%M:%f', created_at, '+' || ?6 || ' seconds') end),
           nullif(nullif(trim(params), ''), 'null'), ?9, {DUPLICATE}
         from events_stack_compact c where id = ?1
         returning json_array(json_array({WAITING}))"
    );
    let (waiting,): (String,) = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(id)
        .bind(values.abonent.or(account_abonent))
        .bind(nas)
        .bind(Value::Object(params.0).to_string())
        .bind(class)
        .bind(ttl_s)
        .bind(user)
        .bind(usluga)
        .bind(complete)
        .fetch_one(&mut **tx)
        .await
        .map_err(sql("expand one row"))?;
    take_off(tx, id).await?;
    Ok(Ok(waiting_from_json(&waiting)?.pop()))
}

/// Columns that are handed on as they are, if they are text.
const OTHERS: [&str; 5] = [
    "owner_script",
    "owner_function",
    "source",
    "batch_id",
    "created_at",
];

/// What a row says, whatever it is made of: SQLite keeps any value in any column.
struct Values {
    id: i64,
    cmd: String,
    user: Option<i64>,
    abonent: Option<i64>,
    nas: Option<i64>,
    nas_ip: Option<String>,
    usluga: Option<i64>,
    session: Option<String>,
    params: Option<String>,
    complete: bool,
    tries: i64,
}

impl Values {
    /// The error names the column. An empty text, as some producers write it, is no value.
    fn read(row: &SqliteRow) -> std::result::Result<Self, String> {
        let text = |name: &str| match row.try_get::<Option<String>, _>(name) {
            Ok(value) => Ok(value.filter(|text| !text.trim().is_empty())),
            Err(_) => Err(format!("{name} is no text in UTF-8")),
        };
        let number = |name: &str| match row.try_get::<Option<i64>, _>(name) {
            Ok(value) => Ok(value),
            Err(_) => match row.try_get_unchecked::<Option<String>, _>(name) {
                Ok(value) => match value.filter(|text| !text.trim().is_empty()) {
                    Some(text) => Err(format!("{name} is no whole number: {text:?}")),
                    None => Ok(None),
                },
                Err(_) => Err(format!("{name} is no whole number")),
            },
        };
        for name in OTHERS {
            text(name)?;
        }
        if row.try_get("expires_never").unwrap_or(false) {
            let at = text("expires_at")?.unwrap_or_default();
            return Err(format!(
                "expires_at is no time: {at:?}; write YYYY-MM-DD HH:MM:SS, in UTC"
            ));
        }
        Ok(Self {
            id: number("id")?.unwrap_or_default(),
            cmd: text("cmd")?.unwrap_or_default(),
            user: number("user_id")?,
            abonent: number("abonent_id")?,
            nas: number("nas_id")?,
            nas_ip: text("nas_ip")?,
            usluga: number("usluga_id")?,
            session: row
                .try_get("acct_session_id")
                .map_err(|_| "acct_session_id is no text in UTF-8")?,
            params: text("params")?,
            complete: number("params_complete")?.unwrap_or_default() != 0,
            tries: number("expand_tries").ok().flatten().unwrap_or_default(),
        })
    }
}

/// A whole number, which a billing may keep as a text.
fn whole(value: &Value) -> Option<i64> {
    let text = || value.as_str()?.trim().parse().ok();
    value.as_i64().or_else(text)
}

async fn take_off(tx: &mut Transaction<'_, Db>, id: i64) -> Result<()> {
    sqlx::query("delete from events_stack_compact where id = ?1")
        .bind(id)
        .execute(&mut **tx)
        .await
        .map_err(sql("take a row off the compact stack"))?;
    Ok(())
}

async fn bury_overtaken(
    tx: &mut Transaction<'_, Db>,
    id: i64,
    nas: i64,
    class: i64,
    params: &Params,
) -> Result<()> {
    let text = format!(
        "insert or replace into events_dead (id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id,
           params, class, event_date, owner_script, owner_function, source, batch_id, expires_at, last_error,
           own_params, params_complete, possible_duplicate, reason)
         select id, cmd, nullif(user_id, ''), nullif(abonent_id, ''), ?2, nullif(usluga_id, ''), acct_session_id,
           ?4, ?3, created_at, owner_script, owner_function, source, batch_id, expires_at, error,
           nullif(nullif(trim(params), ''), 'null'), ifnull(nullif(params_complete, ''), 0), {DUPLICATE}, 'overtaken'
         from events_stack_compact c where id = ?1"
    );
    sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(id)
        .bind(nas)
        .bind(class)
        .bind(Value::Object(params.0.clone()).to_string())
        .execute(&mut **tx)
        .await
        .map_err(sql("bury an overtaken row"))?;
    take_off(tx, id).await
}

/// The event's `nas_id`, else its `nas_ip`, else the account's.
async fn choose_nas(
    tx: &mut Transaction<'_, Db>,
    id: Option<i64>,
    ip: Option<String>,
    account: Option<i64>,
) -> Result<std::result::Result<i64, String>> {
    if id.is_none()
        && let Some(ip) = ip.filter(|ip| !ip.trim().is_empty())
    {
        let found: Vec<(i64,)> =
            sqlx::query_as("select id from nas where ip = ?1 order by id limit 2")
                .bind(ip.trim())
                .fetch_all(&mut **tx)
                .await
                .map_err(sql("look a NAS up by address"))?;
        return Ok(match found.as_slice() {
            [(id,)] => Ok(*id),
            [] => Err(format!("nas_ip {ip} is no NAS's address")),
            _ => Err(format!(
                "nas_ip {ip} belongs to several NASes: name the nas_id"
            )),
        });
    }
    let Some(id) = id.or(account) else {
        return Ok(Err(
            "the account has no NAS, and the event names neither nas_id nor nas_ip".to_owned(),
        ));
    };
    let found: Option<(i64,)> = sqlx::query_as("select cast(id as integer) from nas where id = ?1")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(sql("look a NAS up"))?;
    Ok(found
        .map(|(id,)| id)
        .ok_or_else(|| format!("nas_id {id} is not in table nas")))
}

/// Canonical rows of a view as maps.
async fn object(
    tx: &mut Transaction<'_, Db>,
    expression: &str,
    from: &'static str,
    user: i64,
    usluga: Option<i64>,
) -> Result<Vec<Map<String, Value>>> {
    let text = format!("select {expression} from {from}");
    let mut query = sqlx::query_as::<_, (Vec<u8>,)>(sqlx::AssertSqlSafe(text)).bind(user);
    if let Some(usluga) = usluga {
        query = query.bind(usluga);
    }
    let rows = query
        .fetch_all(&mut **tx)
        .await
        .map_err(sql("read the billing's view"))?;
    Ok(rows
        .into_iter()
        .map(|(t,)| serde_json::from_str(&String::from_utf8_lossy(&t)).unwrap_or_default())
        .collect())
}
