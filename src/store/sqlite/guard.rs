//! What the intent guard asks of the database: whose order an event is, holding it, and what
//! operators have told the guard. It looks only at commands that can cut an account off.

use serde_json::json;

use super::{Sqlite, sql};
use crate::event::EventId;
use crate::store::rows::{CauseValues, ORDER, OrderValues};
use crate::store::{Cause, GuardOrder, OrderKind, Result};

pub(super) async fn causes(store: &Sqlite, ids: &[EventId]) -> Result<Vec<Cause>> {
    let rows: Vec<CauseValues> = sqlx::query_as(
        "select id, event_type, source, coalesce(owner_script, 'sql'),
           cast(params ->> '$.rate_in' as text), cast(params ->> '$.rate_out' as text),
           cast(params ->> '$.ceil_in' as text), cast(params ->> '$.ceil_out' as text)
         from events_stack where id in (select value from json_each(?1)) order by id",
    )
    .bind(json!(ids).to_string())
    .fetch_all(&store.readers)
    .await
    .map_err(sql("read whose orders events are"))?;
    Ok(rows.into_iter().map(Cause::from).collect())
}

pub(super) async fn hold(
    store: &Sqlite,
    epoch: i64,
    events: &[(EventId, String)],
) -> Result<Vec<EventId>> {
    let mut writer = store.write().await;
    // Only what has never been started, and only by the owner.
    let rows: Vec<(i64,)> = sqlx::query_as(
        "update events_stack as e set state = 'held', last_error = j.value ->> 1
         from json_each(?1) j
         where e.id = j.value ->> 0 and e.state = 'ready' and e.epoch = 0
           and exists (select 1 from owner where scope = 'all' and epoch = ?2)
         returning id",
    )
    .bind(json!(events).to_string())
    .bind(epoch)
    .fetch_all(&mut writer.conn)
    .await
    .map_err(sql("hold events"))?;
    Ok(rows.into_iter().map(|(id,)| EventId(id)).collect())
}

pub(super) async fn orders(store: &Sqlite) -> Result<Vec<GuardOrder>> {
    let text = format!("select {ORDER} from guard_order order by id");
    let rows: Vec<OrderValues> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .fetch_all(&store.readers)
        .await
        .map_err(sql("read the orders to the guard"))?;
    Ok(rows.into_iter().filter_map(GuardOrder::of).collect())
}

pub(super) async fn add_order(store: &Sqlite, order: &GuardOrder) -> Result<i64> {
    let mut writer = store.write().await;
    let (id,): (i64,) = sqlx::query_as(
        "insert into guard_order (kind, source, cmd, event_id, from_ms, for_ms, most, monthly, who)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) returning id",
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
    .fetch_one(&mut writer.conn)
    .await
    .map_err(sql("write an order to the guard"))?;
    Ok(id)
}

pub(super) async fn remove_order(store: &Sqlite, id: i64, kind: OrderKind) -> Result<bool> {
    let mut writer = store.write().await;
    let gone = sqlx::query("delete from guard_order where id = ?1 and kind = ?2")
        .bind(id)
        .bind(kind.as_str())
        .execute(&mut writer.conn)
        .await
        .map_err(sql("take an order to the guard back"))?;
    Ok(gone.rows_affected() == 1)
}
