//! The usual turn in one statement: everything that ended is done, and the rest starts. A turn
//! waits for each answer of the server, so one question instead of three is worth more than any
//! index; what the statement did, and whether the epoch still holds, comes back as rows.

use std::sync::OnceLock;

use sqlx::{PgConnection, Row};

use super::stack::{CLAIMED, Columns, SAME, anew_done, started};
use super::{sql, storable};
use crate::event::EventId;
use crate::store::{Error, Result, Settle, SettleTo, Started, Turn};

/// A settle that ends as done: result, answer, scheme hash.
pub(super) type Done<'a> = (&'a Settle, &'a str, Option<&'a str>, &'a str);

/// A settle that ends as done; none if it ends otherwise.
pub(super) fn done(settle: &Settle) -> Option<Done<'_>> {
    match &settle.to {
        SettleTo::Done {
            result,
            answer,
            scheme_hash,
        } => Some((
            settle,
            result.as_str(),
            answer.as_deref(),
            scheme_hash.as_str(),
        )),
        SettleTo::Dead { .. } | SettleTo::Deferred { .. } | SettleTo::Ready { .. } => None,
    }
}

/// The settles of a turn that knows no other end than done.
pub(super) fn alike(turn: &Turn) -> Option<Vec<Done<'_>>> {
    turn.settles.iter().map(done).collect()
}

/// Writes settles and starts within the caller's transaction.
pub(super) async fn write(
    tx: &mut PgConnection,
    epoch: i64,
    done: &[Done<'_>],
    starts: &[EventId],
) -> Result<(Vec<EventId>, Vec<Started>)> {
    let columns = Columns::of(done.iter().map(|d| d.0));
    let rows = sqlx::query(text())
        .bind(&columns.ids)
        .bind(&columns.tries)
        .bind(epoch)
        .bind(&columns.codes)
        .bind(&columns.errors)
        .bind(done.iter().map(|d| d.0.ms).collect::<Vec<_>>())
        .bind(done.iter().map(|d| d.1).collect::<Vec<_>>())
        .bind(done.iter().map(|d| d.2.map(storable)).collect::<Vec<_>>())
        .bind(done.iter().map(|d| d.3).collect::<Vec<_>>())
        .bind(starts.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_all(tx)
        .await
        .map_err(sql("write a turn"))?;
    let (mut owned, mut settled, mut begun) = (false, Vec::new(), Vec::new());
    for row in &rows {
        let doing = "read what a turn did";
        match row.try_get::<i32, _>("kind").map_err(sql(doing))? {
            0 => owned = true,
            1 => settled.push(EventId(row.try_get("id").map_err(sql(doing))?)),
            _ => begun.push(started(row)?),
        }
    }
    if !owned {
        return Err(Error::Fenced { epoch });
    }
    Ok((settled, begun))
}

/// The statement. The lock on the owner makes a take-over wait for this turn, and a turn that
/// waited for a take-over finds the new epoch and does nothing.
fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let kept: Vec<String> = SAME.split(',').map(|c| format!("e.{}", c.trim())).collect();
        format!(
            "with owned as materialized (
               select 1 from owner where scope = 'all' and epoch = $3 for share),
             gone as (
               delete from events_stack e
               using unnest($1::bigint[], $2::int[], $4::int[], $5::text[], $6::bigint[], $7::text[],
                 $8::text[], $9::text[]) j(id, try, code, error, ms, result, answer, hash)
               where {CLAIMED} and exists (select 1 from owned)
               returning {kept}, e.try_count, j.code, j.error, j.ms, j.result, j.answer, j.hash),
             done as (
               insert into events_done ({SAME}, result, code, ms, answer, attempts, scheme_hash, error)
               select {SAME}, result, code, ms, answer, try_count, hash, error from gone
               {anew}
               returning id),
             started as (
               update events_stack set state = 'running', epoch = $3, try_count = try_count + 1,
                 started_at = now()
               where id = any($10) and state in ('ready', 'deferred') and exists (select 1 from owned)
               returning id, event_type, user_id, abonent_id, usluga_id, params::text, try_count,
                 possible_duplicate, (date_part('epoch', event_date) * 1000)::bigint as accepted_ms)
             select 0 as kind, null::bigint as id, null as event_type, null::bigint as user_id,
               null::bigint as abonent_id, null::bigint as usluga_id, null as params,
               null::int as try_count, null::boolean as possible_duplicate, null::bigint as accepted_ms from owned
             union all select 1, id, null, null, null, null, null, null, null, null from done
             union all select 2, id, event_type, user_id, abonent_id, usluga_id, params, try_count,
               possible_duplicate, accepted_ms from started",
            kept = kept.join(", "),
            anew = anew_done(),
        )
    })
}
