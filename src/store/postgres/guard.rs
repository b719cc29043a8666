//! What the intent guard asks of the database: whose order an event is, holding it, and what
//! operators have told the guard. It looks only at commands that can cut an account off.

use super::{Postgres, sql, storable};
use crate::event::{Class, EventId};
use crate::store::rows::{CauseValues, ORDER, OrderValues};
use crate::store::{Cause, GuardOrder, OrderKind, Result};

pub(super) async fn causes(store: &Postgres, ids: &[EventId]) -> Result<Vec<Cause>> {
    // PARAMS are parsed once, and only where a speed matters: of a batch of rates this question
    // is a third of the expansion.
    let rows: Vec<CauseValues> = sqlx::query_as(
        "select e.id, e.event_type, e.source, coalesce(e.owner_script, 'sql'),
           s.rate_in, s.rate_out, s.ceil_in, s.ceil_out
         from events_stack e cross join lateral
           json_to_record(case when e.class = $2 then e.params else '{}' end)
             as s(rate_in text, rate_out text, ceil_in text, ceil_out text)
         where e.id = any($1) order by e.id",
    )
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .bind(Class::Rate.number())
    .fetch_all(&store.pool)
    .await
    .map_err(sql("read whose orders events are"))?;
    Ok(rows.into_iter().map(Cause::from).collect())
}

pub(super) async fn hold(
    store: &Postgres,
    epoch: i64,
    events: &[(EventId, String)],
) -> Result<Vec<EventId>> {
    let ids: Vec<i64> = events.iter().map(|(id, _)| id.0).collect();
    let reasons: Vec<String> = events
        .iter()
        .map(|(_, reason)| storable(reason).into_owned())
        .collect();
    // Only what has never been started, and only by the owner.
    let rows: Vec<(i64,)> = sqlx::query_as(
        "update events_stack e set state = 'held', last_error = o.reason
         from unnest($1::bigint[], $2::text[]) o(id, reason)
         where e.id = o.id and e.id = any($1) and e.state = 'ready' and e.epoch = 0
           and exists (select 1 from owner where scope = 'all' and epoch = $3)
         returning e.id",
    )
    .bind(ids)
    .bind(reasons)
    .bind(epoch)
    .fetch_all(&store.pool)
    .await
    .map_err(sql("hold events"))?;
    Ok(rows.into_iter().map(|(id,)| EventId(id)).collect())
}

pub(super) async fn orders(store: &Postgres) -> Result<Vec<GuardOrder>> {
    let text = format!("select {ORDER} from guard_order order by id");
    let rows: Vec<OrderValues> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .fetch_all(&store.pool)
        .await
        .map_err(sql("read the orders to the guard"))?;
    Ok(rows.into_iter().filter_map(GuardOrder::of).collect())
}

pub(super) async fn add_order(store: &Postgres, order: &GuardOrder) -> Result<i64> {
    let (id,): (i64,) = sqlx::query_as(
        "insert into guard_order (kind, source, cmd, event_id, from_ms, for_ms, most, monthly, who)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning id",
    )
    .bind(order.kind.as_str())
    .bind(&order.source)
    .bind(&order.cmd)
    .bind(order.event.map(|e| e.0))
    .bind(order.from_ms)
    .bind(order.for_ms)
    .bind(order.most)
    .bind(order.monthly)
    .bind(&order.who)
    .fetch_one(&store.pool)
    .await
    .map_err(sql("write an order to the guard"))?;
    Ok(id)
}

pub(super) async fn remove_order(store: &Postgres, id: i64, kind: OrderKind) -> Result<bool> {
    let gone = sqlx::query("delete from guard_order where id = $1 and kind = $2")
        .bind(id)
        .bind(kind.as_str())
        .execute(&store.pool)
        .await
        .map_err(sql("take an order to the guard back"))?;
    Ok(gone.rows_affected() == 1)
}
