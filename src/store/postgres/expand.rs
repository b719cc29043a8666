//! Expansion: one statement moves the plain rows of a batch with their PARAMS; what it leaves
//! (services, own variables, addresses of NASes, mistakes) is read at once, decided row by row,
//! and moved at once. A group that one row breaks is halved until that row is alone.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sqlx::{Connection, PgConnection};

use super::compact::interactive;
use super::decide::{Known, Nases, Ready, Wanted};
use super::stack::{WAITING, anew_dead, waiting};
use super::{Postgres, billing, connection, sql, storable};
use crate::event::{Class, Cmd, EventId, Waiting};
use crate::store::rows::{CAME, way_in};
use crate::store::{Error, Expansion, Result};

/// Failed rows looked at again in one batch; they never fill it.
const AGAIN_PER_BATCH: i64 = 50;
/// Largest batch: it is one transaction, whose ids are kept until the answer to its COMMIT.
const BATCH_MAX: usize = 10_000;

/// Rows moved by a batch whose COMMIT got no answer: they may be on the main stack, and nobody
/// was told.
pub(super) type Doubt = Vec<i64>;

pub(super) async fn expand(store: &Postgres, limit: usize, cmds: &[Cmd]) -> Result<Expansion> {
    some(store, limit, cmds, Pick::All).await
}

/// What is still taken while too much is waiting.
pub(super) async fn urgent(store: &Postgres, limit: usize, cmds: &[Cmd]) -> Result<Expansion> {
    some(store, limit, cmds, Pick::Urgent).await
}

/// Which rows a batch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pick {
    All,
    /// Of accounts that are to get access, up to that event, in their order; and questions.
    Urgent,
}

async fn some(store: &Postgres, limit: usize, cmds: &[Cmd], which: Pick) -> Result<Expansion> {
    let known = Known::new(cmds);
    let limit = limit.clamp(1, BATCH_MAX);
    let shape = store.shape();
    let mut held = store.expander.hold().await?;
    let (conn, doubt) = held.parts();
    let epoch = store.owned.load(std::sync::atomic::Ordering::Relaxed);
    let mut out = batch(conn, doubt, &shape, (limit, which), &known, epoch).await;
    if let Err(Error::Sql { source, .. }) = &out
        && class_of(source) == Some("42".to_owned())
    {
        // A name or a type does not fit: the billing changed its views since they were read.
        let read = billing::Shape::read(conn).await;
        out = match read {
            Err(error) => Err(error),
            Ok(shape) => {
                let again = batch(conn, doubt, &shape, (limit, which), &known, epoch).await;
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
pub(in crate::store) fn is_row_trouble(error: &sqlx::Error) -> bool {
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
    (limit, which): (usize, Pick),
    known: &Known,
    epoch: i64,
) -> Result<Expansion> {
    if doubt.is_empty() && idle(conn).await? {
        return Ok(Expansion::default());
    }
    let mut tx = Connection::begin(conn)
        .await
        .map_err(sql("begin an expansion"))?;
    // A daemon that has been deposed must not take events that nobody would run.
    if epoch > 0 {
        let owner: Option<(i64,)> =
            sqlx::query_as("select epoch from owner where scope = 'all' for share")
                .fetch_optional(&mut *tx)
                .await
                .map_err(sql("check the ownership"))?;
        if owner != Some((epoch,)) {
            return Err(Error::Fenced { epoch });
        }
    }
    let mut out = Expansion::default();
    let mut came = Came::new();
    if !doubt.is_empty() {
        out.moved = doubtful(&mut tx, doubt).await?;
    }
    let picked = match which {
        Pick::All => pick(&mut tx, limit, &mut came).await?,
        Pick::Urgent => pick_urgent(&mut tx, limit, known, &mut came).await?,
    };
    out.came = came;
    run(&mut tx, "savepoint plain").await?;
    let moved = match plain_rows(&mut tx, shape, &picked, known).await {
        Err(Error::Sql { source, .. }) if is_row_trouble(&source) => {
            // One row of the billing's view breaks the statement: find it by halves.
            run(&mut tx, "rollback to plain").await?;
            Vec::new()
        }
        other => other?,
    };
    out.full = picked.len() >= limit;
    let gone: HashSet<i64> = moved.iter().map(|w| w.id.0).collect();
    out.moved.extend(moved);
    let slow: Vec<i64> = picked.into_iter().filter(|id| !gone.contains(id)).collect();
    by_halves(&mut tx, shape, known, slow, &mut out).await?;
    let again: Vec<(i64,)> = sqlx::query_as(
        "select id from events_stack_compact where error is not null
           and next_expand_at <= now() and not id = any($1) order by next_expand_at limit $2 for update skip locked",
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

/// Locks the first rows. The planner, which sees the compact stack now empty and now full, must
/// not come to read and sort all of it; in statements over the billing's views it is free.
async fn pick(tx: &mut PgConnection, limit: usize, came: &mut Came) -> Result<Vec<i64>> {
    run(
        &mut *tx,
        "set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off",
    )
    .await?;
    let text = format!(
        "select c.id, {CAME}, c.cmd from events_stack_compact c where c.error is null order by c.id limit $1
         for update skip locked"
    );
    let rows: Vec<Picked> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *tx)
        .await
        .map_err(sql("pick compact events"))?;
    run(
        tx,
        "set local enable_seqscan to default; set local enable_bitmapscan to default; set local enable_sort to default",
    )
    .await?;
    Ok(noted(rows, came))
}

/// A row's number, its way in, its command.
type Picked = (i64, Option<String>, String);
/// See [`Expansion::came`].
type Came = BTreeMap<(&'static str, String), u64>;

/// Notes how the rows came in; their numbers.
fn noted(rows: Vec<Picked>, came: &mut Came) -> Vec<i64> {
    let mut ids = Vec::with_capacity(rows.len());
    for (id, way, cmd) in rows {
        ids.push(id);
        if let Some(way) = way {
            *came.entry((way_in(&way), cmd)).or_default() += 1;
        }
    }
    ids
}

/// Locks what is still taken while too much is waiting. Reads the whole stack, so it is not for
/// every poll.
async fn pick_urgent(
    tx: &mut PgConnection,
    limit: usize,
    known: &Known,
    came: &mut Came,
) -> Result<Vec<i64>> {
    let text = format!(
        "with urgent as (
           select user_id, max(id) as upto from events_stack_compact
           where error is null and user_id is not null and cmd = any($2) group by user_id)
         select c.id, {CAME}, c.cmd from events_stack_compact c left join urgent u on u.user_id = c.user_id
         where c.error is null and (c.id <= u.upto or c.cmd = any($3))
         order by c.id limit $1 for update of c skip locked"
    );
    let rows: Vec<Picked> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(known.of_class(Class::Access))
        .bind(known.of_class(Class::Interactive))
        .fetch_all(tx)
        .await
        .map_err(sql("pick urgent compact events"))?;
    Ok(noted(rows, came))
}

/// Whether a compact row retries a dead event that may have been applied. No `exists`: that may
/// be planned as a hash over the whole of `events_dead`.
fn duplicate(row: &str) -> String {
    format!(
        "coalesce((select d.possible_duplicate from events_dead d where d.id = {row}.retried_from), false)"
    )
}

/// Moves those of the locked rows that need no overlay and name their NAS by id or not at all.
async fn plain_rows(
    tx: &mut PgConnection,
    shape: &billing::Shape,
    picked: &[i64],
    known: &Known,
) -> Result<Vec<Waiting>> {
    if picked.is_empty() {
        return Ok(Vec::new());
    }
    let (params, session) = match &shape.params_of_session {
        Some(params) => (params, ""),
        None => (&shape.params, "and b.acct_session_id is null"),
    };
    // `offset 0` keeps the planner from reading all accounts for a join: each is looked up by
    // index, whatever the statistics say.
    let text = format!(
        "with batch as materialized (
           select * from events_stack_compact where id = any($4)),
         moved as (
           insert into events_stack (id, event_type, user_id, abonent_id, nas_id, acct_session_id, params,
             class, event_date, owner_script, owner_function, source, batch_id, expires_at, possible_duplicate)
           select b.id, b.cmd, b.user_id, coalesce(b.abonent_id, p.abonent_id::bigint), n.id, b.acct_session_id,
             {params}, k.class, b.created_at, b.owner_script, b.owner_function, b.source, b.batch_id,
             coalesce(b.expires_at, b.created_at + k.ttl_ms * interval '1 millisecond'), {duplicate}
           from batch b
             cross join lateral (select array_position($1::text[], b.cmd) as at offset 0) known
             cross join lateral (select ($2::smallint[])[known.at] as class,
               ($3::bigint[])[known.at] as ttl_ms) k
             cross join lateral (select * from event_params where user_id = {user} offset 0) p
             cross join lateral (select id::bigint as id from nas where id = {nas} offset 0) n
           where known.at is not null and b.user_id is not null and b.params is null and b.usluga_id is null
             and b.params_complete = 0 and b.nas_ip is null {session}
           returning {WAITING}),
         taken as (delete from events_stack_compact c using moved where c.id = moved.id)
         select * from moved",
        duplicate = duplicate("b"),
        user = shape.like("event_params", "user_id", "b.user_id"),
        nas = shape.like("nas", "id", "coalesce(b.nas_id, p.nas_id::bigint)"),
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(&known.cmds)
        .bind(&known.classes)
        .bind(&known.ttls_ms)
        .bind(picked)
        .fetch_all(tx)
        .await
        .map_err(sql("expand a batch"))?;
    rows.iter().map(waiting).collect()
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

/// Expands a group of locked rows, or writes why not.
async fn group(
    tx: &mut PgConnection,
    shape: &billing::Shape,
    known: &Known,
    ids: &[i64],
) -> Result<Expansion> {
    let text = format!(
        "select c.id, c.cmd, c.user_id, c.nas_id, c.nas_ip, c.usluga_id, c.acct_session_id,
           c.params::text as own, c.params_complete <> 0 as params_complete, c.expand_tries, a.found as accounts, g.found as services
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
    let text = format!(
        "with gone as (
           delete from events_stack_compact c
           using unnest($1::bigint[], $2::bigint[], $3::text[], $4::smallint[]) j(id, nas, params, class)
           where c.id = j.id returning c.*, j.nas, j.params as all_params, j.class)
         insert into events_dead (id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id,
           params, class, event_date, owner_script, owner_function, source, batch_id, expires_at, last_error,
           own_params, params_complete, possible_duplicate, reason)
         select id, cmd, user_id, abonent_id, nas, usluga_id, acct_session_id, all_params::json, class,
           created_at, owner_script, owner_function, source, batch_id, expires_at, error, params,
           params_complete <> 0, {}, 'overtaken' from gone {}",
        duplicate("gone"),
        anew_dead()
    );
    sqlx::query(sqlx::AssertSqlSafe(text))
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
           params_complete, possible_duplicate)
         select id, cmd, user_id, coalesce(abonent_id, abonent), nas, usluga_id, acct_session_id,
           all_params::json, class, created_at, owner_script, owner_function, source, batch_id,
           coalesce(expires_at, created_at + ttl_ms * interval '1 millisecond'), params, params_complete <> 0,
           {duplicate}
         from gone order by id returning {WAITING}",
        duplicate = duplicate("gone"),
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
