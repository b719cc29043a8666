//! Expansion: one statement moves the plain rows of a batch with their PARAMS; what it leaves
//! (services, own variables, addresses of NASes, mistakes) is read at once, decided row by row,
//! and moved at once. A group that one row breaks is halved until that row is alone.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};

use super::compact::interactive;
use super::stack::{WAITING, waiting};
use super::{Postgres, billing, connection, sql, storable};
use crate::event::{CATALOGUE, Cmd, EventId, Params, Waiting};
use crate::store::{Error, Expansion, Result};

/// Failed rows looked at again in one batch; they never fill it.
const AGAIN_PER_BATCH: i64 = 50;
/// Largest batch: it is one transaction, whose ids are kept until the answer to its COMMIT.
const BATCH_MAX: usize = 10_000;

/// Rows moved by a batch whose COMMIT got no answer: they may be on the main stack, and nobody
/// was told.
pub(super) type Doubt = Vec<i64>;

/// Commands that may be expanded, as columns.
struct Known {
    cmds: Vec<String>,
    classes: Vec<i16>,
    ttls_ms: Vec<Option<i64>>,
    index: BTreeMap<String, (i16, Option<i64>)>,
}

impl Known {
    fn new(own: &[Cmd]) -> Self {
        let catalogue = CATALOGUE
            .iter()
            .filter_map(|(name, _)| Cmd::parse(name).ok());
        let index: BTreeMap<String, (i16, Option<i64>)> = catalogue
            .chain(own.iter().cloned())
            .map(|c| (c.as_str().to_owned(), (c.class().number(), c.ttl_ms())))
            .collect();
        Self {
            cmds: index.keys().cloned().collect(),
            classes: index.values().map(|k| k.0).collect(),
            ttls_ms: index.values().map(|k| k.1).collect(),
            index,
        }
    }
}

pub(super) async fn expand(store: &Postgres, limit: usize, cmds: &[Cmd]) -> Result<Expansion> {
    let known = Known::new(cmds);
    let limit = limit.clamp(1, BATCH_MAX);
    let shape = store.shape();
    let mut held = store.expander.hold().await?;
    let (conn, doubt) = held.parts();
    let mut out = batch(conn, doubt, &shape, limit, &known).await;
    if let Err(Error::Sql { source, .. }) = &out
        && class_of(source) == Some("42".to_owned())
    {
        // A name or a type does not fit: the billing changed its views since they were read.
        let read = billing::Shape::read(conn).await;
        out = match read {
            Err(error) => Err(error),
            Ok(shape) => {
                let again = batch(conn, doubt, &shape, limit, &known).await;
                if let Ok(mut kept) = store.billing.write() {
                    *kept = shape;
                }
                again
            }
        };
    }
    held.ended(out).await
}

/// First two characters of the SQLSTATE.
fn class_of(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?;
    code.get(..2).map(str::to_owned)
}

/// Errors that a single row can cause, as opposed to a locked, full or broken database
/// (PostgreSQL manual, appendix A): 21 cardinality, 22 data, 23 integrity, 38 and 39 external
/// routines, 54 limits, P0 what a function of the billing raises.
fn is_row_trouble(error: &sqlx::Error) -> bool {
    class_of(error).is_some_and(|class| {
        matches!(
            class.as_str(),
            "21" | "22" | "23" | "38" | "39" | "54" | "P0"
        )
    })
}

async fn batch(
    conn: &mut PgConnection,
    doubt: &mut Doubt,
    shape: &billing::Shape,
    limit: usize,
    known: &Known,
) -> Result<Expansion> {
    if doubt.is_empty() && idle(conn).await? {
        return Ok(Expansion::default());
    }
    let mut tx = Connection::begin(conn)
        .await
        .map_err(sql("begin an expansion"))?;
    let mut out = Expansion::default();
    if !doubt.is_empty() {
        out.moved = doubtful(&mut tx, doubt).await?;
    }
    run(&mut tx, "savepoint plain").await?;
    let (picked, moved) = match plain_rows(&mut tx, shape, limit, known).await {
        Err(Error::Sql { source, .. }) if is_row_trouble(&source) => {
            // One row of the billing's view breaks the statement: find it by halves.
            run(&mut tx, "rollback to plain").await?;
            (pick(&mut tx, limit).await?, Vec::new())
        }
        other => other?,
    };
    out.full = picked.len() >= limit;
    let gone: HashSet<i64> = moved.iter().map(|w| w.id.0).collect();
    out.moved.extend(moved);
    let slow: Vec<i64> = picked.into_iter().filter(|id| !gone.contains(id)).collect();
    by_halves(&mut tx, shape, known, slow, &mut out).await?;
    let again: Vec<(i64,)> = sqlx::query_as(
        "select id from events_stack_compact where error is not null and next_expand_at <= now()
           and not id = any($1) order by next_expand_at limit $2 for update skip locked",
    )
    .bind(out.failed.iter().map(|f| f.0.0).collect::<Vec<_>>())
    .bind(AGAIN_PER_BATCH)
    .fetch_all(&mut *tx)
    .await
    .map_err(sql("pick failed compact events"))?;
    let mut again: Vec<i64> = again.into_iter().map(|row| row.0).collect();
    again.sort_unstable();
    by_halves(&mut tx, shape, known, again, &mut out).await?;
    out.moved.sort_by_key(|w| w.id);
    // Noted before the commit, for this call may be cancelled while it waits for the answer.
    let before = std::mem::replace(doubt, out.moved.iter().map(|w| w.id.0).collect());
    match tx.commit().await {
        Ok(()) => {
            doubt.clear();
            Ok(out)
        }
        Err(source) => {
            if connection::rolled_back(&source) {
                *doubt = before;
            }
            Err(sql("commit an expansion")(source))
        }
    }
}

async fn run(tx: &mut PgConnection, statement: &'static str) -> Result<()> {
    sqlx::raw_sql(statement)
        .execute(tx)
        .await
        .map_err(sql("expand a batch"))?;
    Ok(())
}

async fn idle(conn: &mut PgConnection) -> Result<bool> {
    let (idle,): (bool,) = sqlx::query_as(
        "select not exists (select 1 from events_stack_compact where error is null)
           and not exists (select 1 from events_stack_compact where error is not null
             and next_expand_at <= now())",
    )
    .fetch_one(conn)
    .await
    .map_err(sql("look for compact events"))?;
    Ok(idle)
}

/// What a lost batch did move after all.
async fn doubtful(tx: &mut PgConnection, doubt: &Doubt) -> Result<Vec<Waiting>> {
    // Waits until the lost transaction has ended, if the server still works on it.
    sqlx::query("select 1 from events_stack_compact where id = any($1) for update")
        .bind(doubt)
        .execute(&mut *tx)
        .await
        .map_err(sql("look for rows of a lost batch"))?;
    let text = format!(
        "select {WAITING} from events_stack where id = any($1) and state in ('ready', 'deferred')"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(doubt)
        .fetch_all(tx)
        .await
        .map_err(sql("look for rows of a lost batch"))?;
    rows.iter().map(waiting).collect()
}

async fn pick(tx: &mut PgConnection, limit: usize) -> Result<Vec<i64>> {
    let rows: Vec<(i64,)> = sqlx::query_as(
        "select id from events_stack_compact where error is null order by id limit $1
         for update skip locked",
    )
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(tx)
    .await
    .map_err(sql("pick compact events"))?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Moves the rows that need no overlay and name their NAS by id or not at all. Returns the ids
/// of the whole batch, and what was moved.
async fn plain_rows(
    tx: &mut PgConnection,
    shape: &billing::Shape,
    limit: usize,
    known: &Known,
) -> Result<(Vec<i64>, Vec<Waiting>)> {
    let (params, session) = match &shape.params_of_session {
        Some(params) => (params, ""),
        None => (&shape.params, "and b.acct_session_id is null"),
    };
    // The limit is written out, so that the planner knows it. `offset 0` keeps it from reading
    // all accounts for a join: each is looked up by index, whatever the statistics say.
    let text = format!(
        "with batch as materialized (
           select * from events_stack_compact where error is null order by id limit {limit}
           for update skip locked),
         moved as (
           insert into events_stack (id, event_type, user_id, abonent_id, nas_id, acct_session_id, params,
             class, event_date, owner_script, owner_function, source, batch_id, expires_at)
           select b.id, b.cmd, b.user_id, coalesce(b.abonent_id, p.abonent_id::bigint), n.id, b.acct_session_id,
             {params}, k.class, b.created_at, b.owner_script, b.owner_function, b.source, b.batch_id,
             coalesce(b.expires_at, b.created_at + k.ttl_ms * interval '1 millisecond')
           from batch b
             join unnest($1::text[], $2::smallint[], $3::bigint[]) k(cmd, class, ttl_ms) on k.cmd = b.cmd
             cross join lateral (select * from event_params where user_id = {user} offset 0) p
             cross join lateral (select id::bigint as id from nas where id = {nas} offset 0) n
           where b.user_id is not null and b.params is null and b.usluga_id is null
             and not b.params_complete and b.nas_ip is null {session}
           returning {WAITING}),
         taken as (delete from events_stack_compact c using moved where c.id = moved.id)
         select b.id as picked, moved.* from batch b left join moved on moved.id = b.id order by b.id",
        user = shape.like("event_params", "user_id", "b.user_id"),
        nas = shape.like("nas", "id", "coalesce(b.nas_id, p.nas_id::bigint)"),
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(&known.cmds)
        .bind(&known.classes)
        .bind(&known.ttls_ms)
        .fetch_all(tx)
        .await
        .map_err(sql("expand a batch"))?;
    let mut picked = Vec::with_capacity(rows.len());
    let mut moved = Vec::with_capacity(rows.len());
    for row in &rows {
        let doing = "read an expanded row";
        picked.push(row.try_get("picked").map_err(sql(doing))?);
        let id: Option<i64> = row.try_get("id").map_err(sql(doing))?;
        if id.is_some() {
            moved.push(waiting(row)?);
        }
    }
    Ok((picked, moved))
}

async fn by_halves(
    tx: &mut PgConnection,
    shape: &billing::Shape,
    known: &Known,
    ids: Vec<i64>,
    out: &mut Expansion,
) -> Result<()> {
    let mut groups = vec![ids];
    while let Some(mut ids) = groups.pop() {
        if ids.is_empty() {
            continue;
        }
        run(tx, "savepoint rows").await?;
        match group(tx, shape, known, &ids).await {
            Ok(done) => {
                run(tx, "release rows").await?;
                out.moved.extend(done.moved);
                out.failed.extend(done.failed);
                out.overtaken += done.overtaken;
            }
            Err(Error::Sql { doing, source }) if is_row_trouble(&source) => {
                run(tx, "rollback to rows").await?;
                match ids.as_slice() {
                    [id] => {
                        let failed = vec![(EventId(*id), format!("{doing}: {source}"))];
                        write_failures(tx, &failed).await?;
                        out.failed.extend(failed);
                    }
                    _ => {
                        let second = ids.split_off(ids.len() / 2);
                        groups.push(second);
                        groups.push(ids);
                    }
                }
            }
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// A row that can be expanded.
struct Ready {
    id: i64,
    user: Option<i64>,
    abonent: Option<i64>,
    nas: i64,
    params: String,
    class: i16,
    ttl_ms: Option<i64>,
    tried: bool,
}

/// Expands a group of locked rows, or writes why not.
async fn group(
    tx: &mut PgConnection,
    shape: &billing::Shape,
    known: &Known,
    ids: &[i64],
) -> Result<Expansion> {
    let text = format!(
        "select c.id, c.cmd, c.user_id, c.nas_id, c.nas_ip, c.usluga_id, c.acct_session_id,
           c.params::text as own, c.params_complete, c.expand_tries, a.found as accounts, g.found as services
         from events_stack_compact c
           cross join lateral (select json_agg(o.v)::text as found
             from (select {} as v from event_params p where p.user_id = {} limit 2) o) a
           cross join lateral (select json_agg(o.v)::text as found
             from (select {} as v from event_usluga s where s.user_id = {} and s.usluga_id = {} limit 1) o) g
         where c.id = any($1) order by c.id",
        shape.params,
        shape.like("event_params", "user_id", "c.user_id"),
        shape.usluga,
        shape.like("event_usluga", "user_id", "c.user_id"),
        shape.like("event_usluga", "usluga_id", "c.usluga_id"),
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(ids)
        .fetch_all(&mut *tx)
        .await
        .map_err(sql("read the billing's views"))?;
    let mut wanted = Vec::with_capacity(rows.len());
    for row in &rows {
        wanted.push(Wanted::read(row).map_err(sql("read a compact event"))?);
    }
    let nases = Nases::read(tx, shape, &wanted).await?;
    let mut out = Expansion::default();
    let mut ready = Vec::new();
    for row in wanted {
        let id = row.id;
        match row.decide(known, &nases) {
            Ok(row) => ready.push(row),
            Err(reason) => out.failed.push((EventId(id), reason)),
        }
    }
    let late = overtaken(tx, &ready).await?;
    let (late, ready): (Vec<Ready>, Vec<Ready>) =
        ready.into_iter().partition(|r| late.contains(&r.id));
    out.overtaken = late.len();
    bury_overtaken(tx, &late).await?;
    out.moved = take(tx, &ready).await?;
    write_failures(tx, &out.failed).await?;
    Ok(out)
}

/// A compact row with what the billing says of it.
struct Wanted {
    id: i64,
    cmd: String,
    user: Option<i64>,
    nas_id: Option<i64>,
    nas_ip: Option<String>,
    usluga: Option<i64>,
    session: Option<String>,
    own: Option<String>,
    complete: bool,
    tries: i32,
    accounts: Vec<Map<String, Value>>,
    services: Vec<Map<String, Value>>,
}

impl Wanted {
    fn read(row: &PgRow) -> std::result::Result<Self, sqlx::Error> {
        let maps = |name: &str| -> std::result::Result<Vec<Map<String, Value>>, sqlx::Error> {
            let text: Option<&str> = row.try_get(name)?;
            Ok(text
                .and_then(|t| serde_json::from_str(t).ok())
                .unwrap_or_default())
        };
        let nas_ip: Option<String> = row.try_get("nas_ip")?;
        Ok(Self {
            id: row.try_get("id")?,
            cmd: row.try_get("cmd")?,
            user: row.try_get("user_id")?,
            nas_id: row.try_get("nas_id")?,
            nas_ip: nas_ip.filter(|ip| !ip.trim().is_empty()),
            usluga: row.try_get("usluga_id")?,
            session: row.try_get("acct_session_id")?,
            own: row.try_get("own")?,
            complete: row.try_get("params_complete")?,
            tries: row.try_get("expand_tries")?,
            accounts: maps("accounts")?,
            services: maps("services")?,
        })
    }

    fn account_nas(&self) -> Option<i64> {
        whole(self.accounts.first()?.get("nas_id")?)
    }

    fn decide(self, known: &Known, nases: &Nases) -> std::result::Result<Ready, String> {
        let name = &self.cmd;
        let Some((class, ttl_ms)) = known.index.get(name).copied() else {
            return Err(Cmd::parse(name).err().unwrap_or_else(|| {
                format!(
                    "unknown cmd {name}: it is neither in the catalogue nor defined by a loaded scheme"
                )
            }));
        };
        let own: Option<Map<String, Value>> = match &self.own {
            None => None,
            Some(text) => Some(
                serde_json::from_str(text)
                    .map_err(|e| format!("params is not a JSON object: {e}"))?,
            ),
        };
        let account_nas = self.account_nas();
        let mut services = self.services.into_iter();
        let service = services.next();
        let mut account = Map::new();
        if let Some(user) = self.user {
            let mut accounts = self.accounts.into_iter();
            match (accounts.next(), accounts.next()) {
                (Some(one), None) => account = one,
                (None, _) if self.complete => {}
                (None, _) => return Err(format!("user_id {user} has no row in event_params")),
                (Some(_), Some(_)) => {
                    return Err(format!("user_id {user} has several rows in event_params"));
                }
            }
            if let Some(usluga) = self.usluga
                && service.is_none()
                && !self.complete
            {
                return Err(format!(
                    "user_id {user} has no row for usluga_id {usluga} in event_usluga"
                ));
            }
        }
        let abonent = account.get("abonent_id").and_then(whole);
        let mut params = Params::overlaid(account, service, own.as_ref())?;
        let nas = nases.choose(self.nas_id, self.nas_ip.as_deref(), account_nas)?;
        if let Some(session) = self.session {
            params
                .0
                .insert("acct_session_id".to_owned(), Value::String(session));
        }
        if let Some(usluga) = self.usluga {
            params.0.insert("usluga_id".to_owned(), Value::from(usluga));
        }
        Ok(Ready {
            id: self.id,
            user: self.user,
            abonent,
            nas,
            params: Value::Object(params.0).to_string(),
            class,
            ttl_ms,
            tried: self.tries > 0,
        })
    }
}

/// A whole number, also where the billing keeps it as text.
fn whole(value: &Value) -> Option<i64> {
    value
        .as_i64()
        .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()))
}

/// The NASes that a group may mean.
struct Nases {
    ids: BTreeSet<i64>,
    by_ip: BTreeMap<String, Vec<i64>>,
}

impl Nases {
    async fn read(tx: &mut PgConnection, shape: &billing::Shape, rows: &[Wanted]) -> Result<Self> {
        let ids: BTreeSet<i64> = rows
            .iter()
            .flat_map(|r| r.nas_id.into_iter().chain(r.account_nas()))
            .collect();
        let ips: BTreeSet<&str> = rows
            .iter()
            .filter_map(|r| r.nas_ip.as_deref())
            .map(str::trim)
            .collect();
        let text = format!(
            "select id::bigint, trim({ip}) from nas
             where id::bigint = any($1) or trim({ip}) = any($2) order by 1",
            ip = shape.text("nas", "ip")
        );
        let found: Vec<(i64, Option<String>)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(ids.into_iter().collect::<Vec<_>>())
            .bind(ips.into_iter().collect::<Vec<_>>())
            .fetch_all(tx)
            .await
            .map_err(sql("look NASes up"))?;
        let mut nases = Self {
            ids: BTreeSet::new(),
            by_ip: BTreeMap::new(),
        };
        for (id, ip) in found {
            nases.ids.insert(id);
            nases
                .by_ip
                .entry(ip.unwrap_or_default())
                .or_default()
                .push(id);
        }
        Ok(nases)
    }

    /// The event's `nas_id`, else its `nas_ip`, else the account's.
    fn choose(
        &self,
        id: Option<i64>,
        ip: Option<&str>,
        account: Option<i64>,
    ) -> std::result::Result<i64, String> {
        if id.is_none()
            && let Some(ip) = ip
        {
            let found = self.by_ip.get(ip.trim()).map(Vec::as_slice);
            return match found.unwrap_or_default() {
                [id] => Ok(*id),
                [] => Err(format!("nas_ip {ip} is no NAS's address")),
                _ => Err(format!(
                    "nas_ip {ip} belongs to several NASes: name the nas_id"
                )),
            };
        }
        let Some(id) = id.or(account) else {
            return Err(
                "the account has no NAS, and the event names neither nas_id nor nas_ip".to_owned(),
            );
        };
        if self.ids.contains(&id) {
            Ok(id)
        } else {
            Err(format!("nas_id {id} is not in table nas"))
        }
    }
}

/// Which of the rows that failed before have a later state-changing event of their lane.
async fn overtaken(tx: &mut PgConnection, ready: &[Ready]) -> Result<BTreeSet<i64>> {
    let mut ids = Vec::new();
    let mut users = Vec::new();
    let mut nases = Vec::new();
    for r in ready {
        if let (true, Some(user)) = (r.tried && r.class > 0, r.user) {
            ids.push(r.id);
            users.push(user);
            nases.push(r.nas);
        }
    }
    if ids.is_empty() {
        return Ok(BTreeSet::new());
    }
    let rows: Vec<(i64,)> = sqlx::query_as(
        "select j.id from unnest($1::bigint[], $2::bigint[], $3::bigint[]) j(id, user_id, nas_id)
         where exists (select 1 from events_stack e where e.nas_id = j.nas_id and e.user_id = j.user_id
             and e.id + 0 > j.id and e.class > 0)
           or exists (select 1 from events_done d where d.user_id = j.user_id and d.nas_id = j.nas_id
             and d.id > j.id and d.event_type <> all($4))",
    )
    .bind(ids)
    .bind(users)
    .bind(nases)
    .bind(interactive())
    .fetch_all(tx)
    .await
    .map_err(sql("look for later events of the lane"))?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

async fn bury_overtaken(tx: &mut PgConnection, late: &[Ready]) -> Result<()> {
    if late.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "with gone as (
           delete from events_stack_compact c
           using unnest($1::bigint[], $2::bigint[], $3::text[], $4::smallint[]) j(id, nas, params, class)
           where c.id = j.id returning c.*, j.nas, j.params as all_params, j.class)
         insert into events_dead (id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id,
           params, class, event_date, owner_script, owner_function, source, batch_id, expires_at, last_error,
           own_params, params_complete, reason)
         select id, cmd, user_id, abonent_id, nas, usluga_id, acct_session_id, all_params::json, class,
           created_at, owner_script, owner_function, source, batch_id, expires_at, error, params,
           params_complete, 'overtaken' from gone",
    )
    .bind(late.iter().map(|r| r.id).collect::<Vec<_>>())
    .bind(late.iter().map(|r| r.nas).collect::<Vec<_>>())
    .bind(late.iter().map(|r| r.params.as_str()).collect::<Vec<_>>())
    .bind(late.iter().map(|r| r.class).collect::<Vec<_>>())
    .execute(tx)
    .await
    .map_err(sql("bury overtaken rows"))?;
    Ok(())
}

async fn take(tx: &mut PgConnection, ready: &[Ready]) -> Result<Vec<Waiting>> {
    if ready.is_empty() {
        return Ok(Vec::new());
    }
    let text = format!(
        "with gone as (
           delete from events_stack_compact c
           using unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::smallint[], $6::bigint[])
             j(id, abonent, nas, params, class, ttl_ms)
           where c.id = j.id returning c.*, j.abonent, j.nas, j.params as all_params, j.class, j.ttl_ms)
         insert into events_stack (id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id,
           params, class, event_date, owner_script, owner_function, source, batch_id, expires_at, own_params,
           params_complete)
         select id, cmd, user_id, coalesce(abonent_id, abonent), nas, usluga_id, acct_session_id,
           all_params::json, class, created_at, owner_script, owner_function, source, batch_id,
           coalesce(expires_at, created_at + ttl_ms * interval '1 millisecond'), params, params_complete
         from gone order by id returning {WAITING}"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(ready.iter().map(|r| r.id).collect::<Vec<_>>())
        .bind(ready.iter().map(|r| r.abonent).collect::<Vec<_>>())
        .bind(ready.iter().map(|r| r.nas).collect::<Vec<_>>())
        .bind(ready.iter().map(|r| r.params.as_str()).collect::<Vec<_>>())
        .bind(ready.iter().map(|r| r.class).collect::<Vec<_>>())
        .bind(ready.iter().map(|r| r.ttl_ms).collect::<Vec<_>>())
        .fetch_all(tx)
        .await
        .map_err(sql("expand rows"))?;
    rows.iter().map(waiting).collect()
}

async fn write_failures(tx: &mut PgConnection, failed: &[(EventId, String)]) -> Result<()> {
    if failed.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update events_stack_compact c set error = j.error, expand_tries = c.expand_tries + 1,
           next_expand_at = now() + least(60, 1 << least(c.expand_tries, 6)) * interval '1 second'
         from unnest($1::bigint[], $2::text[]) j(id, error) where c.id = j.id",
    )
    .bind(failed.iter().map(|f| f.0.0).collect::<Vec<_>>())
    .bind(failed.iter().map(|f| storable(&f.1)).collect::<Vec<_>>())
    .execute(tx)
    .await
    .map_err(sql("write why rows cannot be expanded"))?;
    Ok(())
}
