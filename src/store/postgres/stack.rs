//! The main stack: loading ids, and the writer turn that moves events between states.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};

use super::{Postgres, connection, hot, kept_ms, sql, storable};
use crate::event::{Class, EventId, Params, StoredParams, UserId, Waiting};
use crate::nas::NasId;
use crate::store::{Error, Result, Settle, SettleTo, Started, Turn, Turned};

/// Columns that `Waiting` needs, times as wall ms.
pub(super) const WAITING: &str = "id, nas_id, user_id, class, try_count, deaths,
  (date_part('epoch', event_date) * 1000)::bigint as since_ms,
  coalesce((date_part('epoch', next_try_at) * 1000)::bigint, 0) as next_try_ms,
  coalesce((date_part('epoch', expires_at) * 1000)::bigint, 0) as expires_ms";

pub(super) fn waiting(row: &PgRow) -> Result<Waiting> {
    let read = || -> std::result::Result<Waiting, sqlx::Error> {
        Ok(Waiting {
            id: EventId(row.try_get("id")?),
            nas: NasId(row.try_get("nas_id")?),
            user: row.try_get::<Option<i64>, _>("user_id")?.map(UserId),
            class: Class::from_number(row.try_get::<i16, _>("class")?.into()),
            since_ms: row.try_get("since_ms")?,
            next_try_ms: row.try_get("next_try_ms")?,
            expires_ms: row.try_get("expires_ms")?,
            tries: u32::try_from(row.try_get::<i32, _>("try_count")?).unwrap_or(0),
            deaths: u32::try_from(row.try_get::<i32, _>("deaths")?).unwrap_or(0),
        })
    };
    read().map_err(sql("read a waiting event"))
}

// `id + 0` is how the two load indexes are spelt; see the migration.

pub(super) async fn load(
    store: &Postgres,
    nas: NasId,
    from: EventId,
    limit: usize,
) -> Result<Vec<Waiting>> {
    let text = format!(
        "select {WAITING} from events_stack
         where nas_id = $1 and id + 0 >= $2 and state in ('ready', 'deferred') order by id + 0 limit $3"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(nas.0)
        .bind(from.0)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&store.pool)
        .await
        .map_err(sql("load waiting events"))?;
    rows.iter().map(waiting).collect()
}

pub(super) async fn refill(
    store: &Postgres,
    lanes: &[(NasId, Option<UserId>)],
    limit: usize,
) -> Result<Vec<Waiting>> {
    // `is not distinct from` would not use the index.
    let of = |lane: &str| {
        format!(
            "select w.* from unnest($1::bigint[], $2::bigint[]) j(nas, account) cross join lateral (
               select {WAITING} from events_stack where nas_id = j.nas and {lane}
                 and state in ('ready', 'deferred') order by id + 0 limit $3) w"
        )
    };
    let text = format!(
        "{} union all {}",
        of("user_id = j.account"),
        of("user_id is null and j.account is null")
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(lanes.iter().map(|l| l.0.0).collect::<Vec<_>>())
        .bind(lanes.iter().map(|l| l.1.map(|u| u.0)).collect::<Vec<_>>())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&store.pool)
        .await
        .map_err(sql("refill lanes"))?;
    let mut rows = rows.iter().map(waiting).collect::<Result<Vec<_>>>()?;
    rows.sort_unstable_by_key(|w| w.id);
    Ok(rows)
}

pub(super) async fn params_now(store: &Postgres, event: EventId) -> Result<Option<Params>> {
    let shape = store.shape();
    let text = format!(
        "select ({})::text, case when e.acct_session_id is null then e.own_params::text
             else (coalesce(e.own_params::jsonb, '{{}}') || jsonb_build_object('acct_session_id', e.acct_session_id))::text end
         from events_stack e join event_params p on p.user_id = {}
         where e.id = $1 and not e.params_complete and e.usluga_id is null limit 1",
        shape.params,
        shape.like("event_params", "user_id", "e.user_id"),
    );
    let row: Option<(String, Option<String>)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(event.0)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read PARAMS again"))?;
    Ok(row.map(|(now, own)| Params::without(&now, own.as_deref())))
}

pub(super) async fn stacked_nases(store: &Postgres) -> Result<Vec<NasId>> {
    // A loose index scan: `distinct` would read every row of a stack of millions.
    let rows: Vec<(i64,)> = sqlx::query_as(
        "with recursive found(nas_id) as (
           select min(nas_id) from events_stack
           union all
           select (select min(e.nas_id) from events_stack e where e.nas_id > found.nas_id)
           from found where found.nas_id is not null)
         select nas_id from found where nas_id is not null",
    )
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list the NASes of the main stack"))?;
    Ok(rows.into_iter().map(|(id,)| NasId(id)).collect())
}

/// Most settled ids remembered from lost commits; each lost turn adds at most its own.
const DOUBT_MAX: usize = 10_000;

/// What turns did whose COMMIT got no answer: they may have happened or not, and their caller
/// was told of an error.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubt {
    settled: BTreeSet<EventId>,
    started: BTreeMap<i64, i32>,
}

impl Doubt {
    fn note(&mut self, settled: &[EventId], started: &[Started]) {
        self.settled.extend(settled);
        self.started.extend(
            started
                .iter()
                .map(|s| (s.id.0, i32::try_from(s.try_count).unwrap_or(i32::MAX))),
        );
    }

    /// What is still in doubt after a committed turn: its starts put every earlier one back, its
    /// settles were answered.
    fn after(mut self, settled: &[EventId]) -> Self {
        self.started.clear();
        for id in settled {
            self.settled.remove(id);
        }
        if self.settled.len() > DOUBT_MAX {
            self.settled.clear();
        }
        self
    }
}

pub(super) async fn turn(store: &Postgres, turn: &Turn) -> Result<Turned> {
    let mut held = store.writer.hold().await?;
    let (conn, doubt) = held.parts();
    let out = write(conn, doubt, turn).await;
    held.ended(out).await
}

async fn write(conn: &mut PgConnection, doubt: &mut Doubt, turn: &Turn) -> Result<Turned> {
    let mut tx = Connection::begin(conn)
        .await
        .map_err(sql("begin a writer turn"))?;
    let usual = doubt.started.is_empty() && !turn.again;
    let (mut settled, started) = match hot::alike(turn).filter(|_| usual) {
        Some(done) => hot::write(&mut tx, turn.epoch, &done, &turn.starts).await?,
        None => carefully(&mut tx, doubt, turn).await?,
    };
    if !doubt.settled.is_empty() {
        // Settled by the turn whose answer was lost: the compare-and-set found nothing to do.
        let now: BTreeSet<EventId> = settled.iter().copied().collect();
        settled.extend(
            turn.settles
                .iter()
                .map(|s| s.id)
                .filter(|id| !now.contains(id) && doubt.settled.contains(id)),
        );
    }
    // Noted before the commit, for this call may be cancelled while it waits for the answer.
    let before = doubt.clone();
    doubt.note(&settled, &started);
    match tx.commit().await {
        Ok(()) => {
            *doubt = before.after(&settled);
            Ok(Turned { settled, started })
        }
        Err(source) => {
            if connection::rolled_back(&source) {
                *doubt = before;
            }
            Err(sql("commit a turn")(source))
        }
    }
}

/// Step by step: ownership, what is in doubt, settles of every kind, starts.
async fn carefully(
    tx: &mut PgConnection,
    doubt: &Doubt,
    turn: &Turn,
) -> Result<(Vec<EventId>, Vec<Started>)> {
    // The lock makes a take-over wait for this turn, and every later turn see the new epoch.
    let owner: Option<(i64,)> =
        sqlx::query_as("select epoch from owner where scope = 'all' for share")
            .fetch_optional(&mut *tx)
            .await
            .map_err(sql("check the ownership"))?;
    if owner != Some((turn.epoch,)) {
        return Err(Error::Fenced { epoch: turn.epoch });
    }
    if !doubt.started.is_empty() {
        unstart(&mut *tx, doubt, turn.epoch).await?;
    }
    let settled = settle(&mut *tx, turn).await?;
    let started = if turn.starts.is_empty() {
        Vec::new()
    } else {
        mark(&mut *tx, turn).await?
    };
    Ok((settled, started))
}

/// Puts back what a lost turn may have marked `running`: nobody executed it, for its caller
/// never got the answer.
async fn unstart(tx: &mut PgConnection, doubt: &Doubt, epoch: i64) -> Result<()> {
    let doing = "put back what a lost turn started";
    let (ids, tries): (Vec<i64>, Vec<i32>) = doubt.started.iter().map(|(id, t)| (*id, *t)).unzip();
    // Waits until the lost transaction has ended, if the server still works on it.
    sqlx::query("select 1 from events_stack where id = any($1) for update")
        .bind(&ids)
        .execute(&mut *tx)
        .await
        .map_err(sql(doing))?;
    sqlx::query(
        "update events_stack e set state = 'ready', try_count = e.try_count - 1
         from unnest($1::bigint[], $2::int[]) j(id, try)
         where e.id = j.id and e.state = 'running' and e.epoch = $3 and e.try_count = j.try",
    )
    .bind(&ids)
    .bind(&tries)
    .bind(epoch)
    .execute(&mut *tx)
    .await
    .map_err(sql(doing))?;
    Ok(())
}

async fn mark(tx: &mut PgConnection, turn: &Turn) -> Result<Vec<Started>> {
    let ids: Vec<i64> = turn.starts.iter().map(|id| id.0).collect();
    let rows = sqlx::query(
        "update events_stack set state = 'running', epoch = $2,
           try_count = try_count + (state <> 'running')::int, started_at = now()
         where id = any($1) and (state in ('ready', 'deferred') or ($3 and state = 'running' and epoch = $2))
         returning id, event_type, user_id, abonent_id, usluga_id, params::text, try_count, possible_duplicate,
           (date_part('epoch', event_date) * 1000)::bigint as accepted_ms",
    )
    .bind(ids)
    .bind(turn.epoch)
    .bind(turn.again)
    .fetch_all(&mut *tx)
    .await
    .map_err(sql("mark events running"))?;
    rows.iter().map(started).collect()
}

/// A row that was marked `running`.
pub(super) fn started(row: &PgRow) -> Result<Started> {
    let read = || -> std::result::Result<Started, sqlx::Error> {
        let text: &str = row.try_get("params")?;
        Ok(Started {
            id: EventId(row.try_get("id")?),
            cmd: row.try_get("event_type")?,
            user: row.try_get::<Option<i64>, _>("user_id")?.map(UserId),
            abonent: row.try_get("abonent_id")?,
            usluga: row.try_get("usluga_id")?,
            params: StoredParams(text.to_owned()),
            try_count: u32::try_from(row.try_get::<i32, _>("try_count")?).unwrap_or(0),
            possible_duplicate: row.try_get("possible_duplicate")?,
            accepted_ms: row.try_get::<Option<i64>, _>("accepted_ms")?.unwrap_or(0),
        })
    };
    read().map_err(sql("read a started event"))
}

/// The compare-and-set of a settle: claimed try of this epoch (`$3`), or still waiting. `$1`
/// are ids, `$2` the claimed tries. `any ($1)` says the same as the join once more, for a planner
/// that believes the table empty: it would read all of it by the key and compare each row with
/// each settle (seen at 4,000 events/s: 100 settles took 0.8 s and more).
pub(super) const CLAIMED: &str = "e.id = j.id and e.id = any ($1)
  and ((j.try is not null and e.state = 'running' and e.epoch = $3 and e.try_count = j.try)
    or (j.try is null and e.state in ('ready', 'deferred', 'held')))";

/// Columns common to `events_stack`, `events_done` and `events_dead`.
pub(super) const SAME: &str =
    "id, event_type, user_id, abonent_id, nas_id, usluga_id, acct_session_id,
  event_date, owner_script, owner_function, source, batch_id, possible_duplicate, started_at";

/// Columns of a dead event beside [`SAME`] that its row takes over, and those that begin anew.
const OF_DEAD: &str = "params, class, expires_at, try_count, deaths, epoch, last_code, last_error,
  own_params, params_complete, reason, died_at, retried_as, retry_ms";

/// Behind an insert: a number that was given before (others insert rows with numbers of their own)
/// has its newest story. Refused, it would hold up every turn.
fn anew(columns: &str) -> String {
    let columns = columns
        .split(',')
        .map(str::trim)
        .filter(|name| *name != "id");
    let set: Vec<String> = columns
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    format!("on conflict (id) do update set {}", set.join(", "))
}

/// The same for an event that is done.
pub(super) fn anew_done() -> String {
    anew(&format!(
        "{SAME}, result, code, ms, answer, attempts, scheme_hash, error, finished_at"
    ))
}

/// The same for a dead event.
pub(super) fn anew_dead() -> String {
    anew(&format!("{SAME}, {OF_DEAD}"))
}

/// The columns of some settles, as arrays.
pub(super) struct Columns<'a> {
    pub(super) ids: Vec<i64>,
    pub(super) tries: Vec<Option<i32>>,
    pub(super) codes: Vec<i32>,
    pub(super) errors: Vec<Option<std::borrow::Cow<'a, str>>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(settles: impl Iterator<Item = &'a Settle>) -> Self {
        let mut columns = Self {
            ids: Vec::new(),
            tries: Vec::new(),
            codes: Vec::new(),
            errors: Vec::new(),
        };
        for s in settles {
            columns.ids.push(s.id.0);
            columns
                .tries
                .push(s.try_count.map(|t| i32::try_from(t).unwrap_or(i32::MAX)));
            columns.codes.push(s.code);
            columns.errors.push(s.error.as_deref().map(storable));
        }
        columns
    }
}

async fn settle(tx: &mut PgConnection, turn: &Turn) -> Result<Vec<EventId>> {
    let mut done = Vec::new();
    let mut dead = Vec::new();
    let mut back = Vec::new();
    for s in &turn.settles {
        match &s.to {
            SettleTo::Done { .. } => done.extend(hot::done(s)),
            SettleTo::Dead {
                reason,
                possible_duplicate,
            } => dead.push((s, reason.as_str(), *possible_duplicate)),
            SettleTo::Deferred {
                until_ms,
                possible_duplicate,
            } => back.push((s, Some(*until_ms), *possible_duplicate)),
            SettleTo::Ready { possible_duplicate } => back.push((s, None, *possible_duplicate)),
        }
    }
    let mut ids = Vec::with_capacity(turn.settles.len());
    if !done.is_empty() {
        let (settled, _) = hot::write(&mut *tx, turn.epoch, &done, &[]).await?;
        ids.extend(settled);
    }
    if !dead.is_empty() {
        let columns = Columns::of(dead.iter().map(|d| d.0));
        let text = format!(
            "with gone as (
               delete from events_stack e
               using unnest($1::bigint[], $2::int[], $4::int[], $5::text[], $6::text[], $7::boolean[])
                 j(id, try, code, error, reason, dup)
               where {CLAIMED}
               returning e.*, j.code, j.error, j.reason, j.dup)
             insert into events_dead ({SAME}, params, class, expires_at, try_count, deaths, epoch,
               last_code, last_error, own_params, params_complete, reason)
             select {same}, params, class, expires_at, try_count, deaths, epoch, code, error, own_params,
               params_complete, reason from gone
             {anew}
             returning id",
            anew = anew_dead(),
            same = SAME.replace("possible_duplicate", "possible_duplicate or dup"),
        );
        let rows: Vec<(i64,)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(&columns.ids)
            .bind(&columns.tries)
            .bind(turn.epoch)
            .bind(&columns.codes)
            .bind(&columns.errors)
            .bind(dead.iter().map(|d| storable(d.1)).collect::<Vec<_>>())
            .bind(dead.iter().map(|d| d.2).collect::<Vec<_>>())
            .fetch_all(&mut *tx)
            .await
            .map_err(sql("bury events"))?;
        ids.extend(rows.into_iter().map(|(id,)| EventId(id)));
    }
    if !back.is_empty() {
        let columns = Columns::of(back.iter().map(|b| b.0));
        // Ready: the try is not counted.
        let text = format!(
            "update events_stack e
             set state = case when j.until_ms is null then 'ready' else 'deferred' end,
               try_count = e.try_count - case when j.until_ms is null and j.try is not null then 1 else 0 end,
               next_try_at = to_timestamp(j.until_ms / 1000.0),
               possible_duplicate = e.possible_duplicate or j.dup,
               last_code = case when j.error is null then e.last_code else j.code end,
               last_error = coalesce(j.error, e.last_error)
             from unnest($1::bigint[], $2::int[], $4::int[], $5::text[], $6::bigint[], $7::boolean[])
               j(id, try, code, error, until_ms, dup)
             where {CLAIMED} returning e.id"
        );
        let untils: Vec<Option<i64>> = back.iter().map(|b| b.1.map(kept_ms)).collect();
        let rows: Vec<(i64,)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(&columns.ids)
            .bind(&columns.tries)
            .bind(turn.epoch)
            .bind(&columns.codes)
            .bind(&columns.errors)
            .bind(untils)
            .bind(back.iter().map(|b| b.2).collect::<Vec<_>>())
            .fetch_all(&mut *tx)
            .await
            .map_err(sql("put events back"))?;
        ids.extend(rows.into_iter().map(|(id,)| EventId(id)));
    }
    Ok(ids)
}
