//! `/api/v1/` for many events, one account, and the audit: retry and drop by filter
//! (counted first, spread over time), progress of a bulk call, what an account had.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::clock;
use crate::config;
use crate::event::{EventId, UserId};
use crate::intake::access::{At, Operator, Viewer};
use crate::intake::api::{self, Asked, asked};
use crate::intake::compact;
use crate::intake::later;
use crate::intake::rest::{self, Desk, Refusal};
use crate::store::query::{self, Bound, Condition, Group, Model, Test};
use crate::store::walk::{self, Looked};
use crate::store::{EventRow, Filter, audit_rows};

/// Most events of one order by filter.
const CROWD_MAX: usize = 10_000;
/// Events read at once.
const PAGE: usize = 1_000;
/// Longest time to find them: the caller waits, and looks of others go on between two pages.
const LOOK_MS: u64 = 30_000;
/// Keys of an order by filter.
const KEYS: &[&str] = &[
    "state", "nas", "user", "abonent", "cmd", "batch", "error", "dry_run", "spread", "why",
    "reason",
];

/// An order for all events that fit.
struct Order {
    filter: Filter,
    dry_run: bool,
    spread: Duration,
    why: String,
}

impl Order {
    async fn read(desk: &Desk, request: Request, states: &[&str]) -> Result<Self, Refusal> {
        let map = api::order(request, KEYS).await?;
        let bad = |key: &str, what: &str| Refusal::malformed(format!("{key} is not {what}"));
        let number = |key: &str| match map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_i64() {
                Some(n) => Ok(Some(n)),
                None => Err(bad(key, "a whole number")),
            },
        };
        let text = |key: &str| match map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.len() <= 500 && !text.contains('\0') => {
                Ok(Some(text.clone()))
            }
            Some(_) => Err(bad(key, "a text of at most 500 bytes")),
        };
        let state = text("state")?.ok_or_else(|| bad("state", &states.join(" or ")))?;
        if !states.contains(&state.as_str()) {
            return Err(bad("state", &states.join(" or ")));
        }
        let filter = Filter {
            state: Some(state),
            nas: number("nas")?,
            user: number("user")?,
            abonent: number("abonent")?,
            cmd: text("cmd")?,
            batch: text("batch")?,
            error: text("error")?,
            from: None,
            before: None,
            limit: PAGE,
            unbounded: false,
        };
        let spread = match text("spread")? {
            None => Duration::ZERO,
            Some(text) => config::parse_duration(&text)
                .map_err(|e| Refusal::malformed(format!("spread: {e}")))?,
        };
        if spread > later::SPREAD_MAX {
            return Err(bad("spread", "at most 24h"));
        }
        // Whether a lane has later events is read from what is kept of them.
        let keep = desk.doors.history_keep;
        if !spread.is_zero() && spread >= keep {
            return Err(bad("spread", &format!("below history.keep, {keep:?}")));
        }
        let dry_run = match map.get("dry_run") {
            None | Some(Value::Null) => false,
            Some(value) => value
                .as_bool()
                .ok_or_else(|| bad("dry_run", "true or false"))?,
        };
        Ok(Self {
            filter,
            dry_run,
            spread,
            why: api::why(&map)?,
        })
    }

    /// The events that fit, newest first: of two dead events of one lane the later one counts.
    /// Without what may be large.
    async fn rows(&self, desk: &Desk) -> Result<Vec<EventRow>, Refusal> {
        let mut filter = self.filter.clone();
        let (mut fit, began) = (Vec::new(), clock::tick_ms());
        loop {
            let found = walk::look(desk.doors.store.as_ref(), &filter).await;
            let Looked { rows, down_to } = found.map_err(Refusal::store)?;
            let last = rows.last().filter(|_| rows.len() >= PAGE);
            filter.before = down_to.or(last.map(|row| row.id)).map(|id| id.0);
            let fresh = rows.into_iter().filter(|row| row.retried_as.is_none());
            fit.extend(fresh.map(|row| EventRow {
                params: None,
                answer: None,
                ..row
            }));
            if fit.len() > CROWD_MAX {
                return Err(Refusal::new(
                    400,
                    "too_many",
                    format!("more than {CROWD_MAX} events fit"),
                    "nothing was done; narrow the filter, for example to one NAS or one command",
                ));
            }
            if filter.before.is_none() {
                return Ok(fit);
            }
            if clock::tick_ms().saturating_sub(began) > LOOK_MS {
                return Err(Refusal::new(
                    400,
                    "too_long",
                    format!("what fits was not found within {} s", LOOK_MS / 1_000),
                    "nothing was done; narrow the filter, for example to one NAS or one batch",
                ));
            }
        }
    }
}

/// `POST /api/v1/events/retry`: dead events that fit, anew. `dry_run` only counts, `spread` gives
/// each a date within that time, which it keeps whatever happens to the daemon.
pub async fn retry(
    State(desk): State<Desk>,
    At(caller): Operator,
    request: Request,
) -> Result<Response, Refusal> {
    let order = Order::read(&desk, request, &["dead"]).await?;
    let rows = order.rows(&desk).await?;
    if order.dry_run {
        return Ok(Json(json!({ "dry_run": true, "events": rows.len() })).into_response());
    }
    let (count, spread) = (rows.len(), order.spread);
    let detail = format!("n={count} spread={spread:?} {}", order.filter.said());
    let detail = api::reasoned(detail, &order.why);
    if spread.is_zero() {
        let work = async move |desk: Desk| retry_now(&desk, &caller.who, detail, rows).await;
        let (retried, skipped) = rest::to_the_end(&desk, work).await?;
        return Ok(Json(json!({ "retried": retried, "skipped": skipped })).into_response());
    }
    let events = rest::to_the_end(&desk, async move |desk: Desk| {
        let store = &desk.doors.store;
        desk.trail
            .note(store.as_ref(), &caller.who, "retry_many", detail)
            .await;
        let ordered = later::order(store.as_ref(), &rows, spread).await;
        Ok(ordered.map_err(Refusal::store)?.dated)
    })
    .await?;
    let answer = json!({ "events": events, "spread_s": spread.as_secs() });
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

async fn retry_now(
    desk: &Desk,
    who: &str,
    detail: String,
    rows: Vec<EventRow>,
) -> Result<(usize, usize), Refusal> {
    let store = &desk.doors.store;
    desk.trail
        .note(store.as_ref(), who, "retry_many", detail)
        .await;
    let (mut retried, mut skipped) = (0, 0);
    for row in rows {
        match store.retry_dead(row.id).await.map_err(Refusal::store)? {
            Some(_) => retried += 1,
            None => skipped += 1,
        }
        desk.doors.wake.notify_one();
    }
    Ok((retried, skipped))
}

/// `POST /api/v1/events/drop`: events that fit and do not run. `dry_run` only counts. To find them
/// takes a while: what is in another state by then is left alone, and counted as skipped.
pub async fn drop_many(
    State(desk): State<Desk>,
    At(caller): Operator,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let order = Order::read(&desk, request, &api::DROPPED_FROM).await?;
    let rows = order.rows(&desk).await?;
    if order.dry_run {
        return Ok(Json(json!({ "dry_run": true, "events": rows.len() })));
    }
    let ids: Vec<EventId> = rows.iter().map(|row| row.id).collect();
    let detail = format!(
        "n={} why={:?} {}",
        ids.len(),
        order.why,
        order.filter.said()
    );
    let reason = format!("{}: {}", caller.who, order.why);
    let state = order.filter.state;
    let (dropped, skipped) = rest::to_the_end(&desk, move |desk| async move {
        let store = &desk.doors.store;
        desk.trail
            .note(store.as_ref(), &caller.who, "drop_many", detail)
            .await;
        let (mut dropped, mut skipped) = (0, 0);
        for id in ids {
            let gone = store.drop_event(id, state.as_deref(), &reason).await;
            if gone.map_err(Refusal::store)? {
                dropped += 1;
                api::told_of_drop(&desk, id).await;
            } else {
                skipped += 1;
            }
        }
        Ok((dropped, skipped))
    })
    .await?;
    Ok(Json(json!({ "dropped": dropped, "skipped": skipped })))
}

fn of_batch(model: Model, batch: &str, state: Option<&str>) -> query::Query {
    let is = |column: &str, value: &str| Condition {
        path: Vec::new(),
        column: column.to_owned(),
        test: Test::In(vec![Bound::Text(value.to_owned())]),
    };
    let mut all = vec![is("batch_id", batch)];
    all.extend(state.map(|state| is("state", state)));
    query::Query {
        groups: vec![Group {
            negated: false,
            all,
        }],
        ..query::Query::all(model)
    }
}

/// `GET /api/v1/batches/{batch}`: how far a bulk call has come.
pub async fn batch(
    State(desk): State<Desk>,
    At(_): Viewer,
    Path(batch): Path<String>,
) -> Result<Json<Value>, Refusal> {
    if batch.contains('\0') {
        return Err(Refusal::malformed(
            "the batch holds a NUL character".to_owned(),
        ));
    }
    let store = &desk.doors.store;
    let mut numbers = Map::new();
    let mut total = 0;
    for (name, model, state) in [
        ("compact", Model::Compact, None),
        ("ready", Model::Stack, Some("ready")),
        ("running", Model::Stack, Some("running")),
        ("deferred", Model::Stack, Some("deferred")),
        ("held", Model::Stack, Some("held")),
        ("dead", Model::Dead, None),
        ("done", Model::Done, None),
    ] {
        let query = of_batch(model, &batch, state);
        let count = store.count(&query).await.map_err(Refusal::store)?;
        numbers.insert(name.to_owned(), Value::from(count));
        total += count;
    }
    if total == 0 {
        return Err(Refusal::not_found(
            "there is no event of this batch".to_owned(),
            "done events are kept for history.keep",
        ));
    }
    let ended: i64 = ["dead", "done"]
        .iter()
        .filter_map(|name| numbers.get(*name).and_then(Value::as_i64))
        .sum();
    Ok(Json(json!({
        "batch_id": batch, "events": total, "ended": ended,
        "finished": ended == total, "states": numbers,
    })))
}

/// `GET /api/v1/accounts/{id}`: what the billing wants of an account, and its events.
pub async fn account(
    State(desk): State<Desk>,
    At(_): Viewer,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let user = api::number(&id)?;
    let store = &desk.doors.store;
    let flags = store.account_flags(None, Some(UserId(user))).await;
    let flags = flags.map_err(Refusal::store)?.into_iter().next();
    let flags = flags.ok_or_else(|| {
        Refusal::not_found(
            format!("there is no account {user}"),
            "users.id of the billing is asked for, not the abonent",
        )
    })?;
    let mut answer = json!({ "account": flags });
    for (name, state) in [
        ("waiting", None),
        ("dead", Some("dead")),
        ("done", Some("done")),
    ] {
        let filter = Filter {
            state: state.map(str::to_owned),
            user: Some(user),
            limit: 20,
            ..Filter::default()
        };
        let rows = store.events(&filter).await.map_err(Refusal::store)?;
        let shown: Vec<Value> = rows.iter().map(|row| api::shown(row, false)).collect();
        if let Some(map) = answer.as_object_mut() {
            map.insert(name.to_owned(), Value::from(shown));
        }
    }
    Ok(Json(answer))
}

/// Query of an account's history.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryQuery {
    before: Option<i64>,
    limit: Option<usize>,
    from: Option<String>,
    to: Option<String>,
}

/// Query of pages.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    before: Option<i64>,
    limit: Option<usize>,
}

impl PageQuery {
    fn limit(&self) -> Result<usize, Refusal> {
        let limit = self.limit.unwrap_or(100);
        if (1..=PAGE).contains(&limit) {
            Ok(limit)
        } else {
            Err(Refusal::malformed(format!("limit is outside 1..{PAGE}")))
        }
    }
}

/// `GET /api/v1/accounts/{id}/history`: every event of an account that is still kept, newest first,
/// accepted at `from` or later and before `to`. A page is shorter than `limit` where the look took its time.
pub async fn history(
    State(desk): State<Desk>,
    At(_): Viewer,
    Path(id): Path<String>,
    query: Asked<HistoryQuery>,
) -> Result<Json<Value>, Refusal> {
    let HistoryQuery {
        before,
        limit,
        from,
        to,
    } = asked(query)?;
    let page = PageQuery { before, limit };
    let limit = page.limit()?;
    let moment = |text: Option<String>, name: &str| match text {
        None => Ok(None),
        Some(text) => match compact::time_ms(&text) {
            Some(ms) => Ok(Some(ms)),
            None => Err(Refusal::malformed(format!(
                "{name} is not YYYY-MM-DD or YYYY-MM-DD HH:MM:SS, UTC"
            ))),
        },
    };
    let (from, to) = (moment(from, "from")?, moment(to, "to")?);
    let mut filter = Filter {
        state: Some("all".to_owned()),
        user: Some(api::number(&id)?),
        before: page.before,
        limit: if from.is_none() && to.is_none() {
            (limit + 1).min(PAGE)
        } else {
            PAGE
        },
        ..Filter::default()
    };
    let began = clock::tick_ms();
    // Ids grow with time: what is older than `from` ends the pages.
    let older = |row: &EventRow| from.is_some_and(|from| row.event_date_ms < from);
    let mut found: Vec<EventRow> = Vec::new();
    let mut more = true;
    while more && found.len() <= limit {
        let rows = desk.doors.store.events(&filter).await;
        let rows = rows.map_err(Refusal::store)?;
        filter.before = rows.last().map(|row| row.id.0);
        more = rows.len() >= filter.limit && !rows.last().is_some_and(older);
        let fits = |row: &EventRow| !older(row) && to.is_none_or(|to| row.event_date_ms < to);
        found.extend(rows.into_iter().filter(fits));
        if clock::tick_ms().saturating_sub(began) > LOOK_MS {
            break;
        }
    }
    let cut = found.len() > limit;
    found.truncate(limit);
    // Behind the last one that is told, or behind all that was looked at.
    let told = found.last().filter(|_| cut).map(|row| row.id.0);
    let next = told.or(filter.before.filter(|_| more));
    let events: Vec<Value> = found.iter().map(|row| api::shown(row, false)).collect();
    Ok(Json(json!({ "events": events, "next_before": next })))
}

/// `GET /api/v1/audit`: who changed what, newest first.
pub async fn audit(
    State(desk): State<Desk>,
    At(_): Operator,
    query: Asked<PageQuery>,
) -> Result<Json<Value>, Refusal> {
    let page = asked(query)?;
    let limit = page.limit()?;
    let rows = audit_rows(desk.doors.store.as_ref(), page.before, limit).await;
    let rows = rows.map_err(Refusal::store)?;
    let next = rows
        .last()
        .filter(|_| rows.len() >= limit)
        .map(|row| row.id);
    Ok(Json(json!({ "audit": rows, "next_before": next })))
}
