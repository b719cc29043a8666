//! `/api/v1/`: JSON in, JSON out, for programs and for our own command line. Errors are
//! `{"error": {"code", "number", "message", "hint"}}`; `/api/openapi.json` describes every path.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::clock;
use crate::config;
use crate::event::{EventId, UserId};
use crate::intake::access::{At, Operator, Support, Viewer};
use crate::intake::rest::{self, Desk, Refusal};
use crate::intake::{attempts, compact, health, json, plan, tails, waiting};
use crate::nas::NasId;
use crate::store::walk::{self, Looked};
use crate::store::{EventRow, Filter, WhereIs, chain};

/// Longest `?wait=`; connections without a byte are cut at twice that.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Most events that one `?wait=` watches.
const WAIT_EVENTS_MAX: usize = 16;
/// First pause between two looks, and the longest: an interactive answer takes some 100 ms.
const LOOK_FIRST: Duration = Duration::from_millis(10);
const LOOK_LONGEST: Duration = Duration::from_millis(250);
/// Most events of one page, and without `limit`.
const PAGE_MAX: usize = 1000;
const PAGE: usize = 100;
/// Longest reason of a pause or a drop, characters.
const WHY_MAX: usize = 500;
/// States from which an event can be dropped.
pub(super) const DROPPED_FROM: [&str; 5] = ["compact", "ready", "deferred", "held", "dead"];
/// What the reason of a change is called in a body: either name will do.
pub(super) const REASON: [&str; 2] = ["why", "reason"];

/// States by which events are listed (design §2).
const STATES: &[&str] = &[
    "compact", "ready", "running", "deferred", "held", "dead", "done", "all",
];

/// An extracted query, or the reason why it is none.
pub type Asked<T> = Result<Query<T>, QueryRejection>;

/// The query of a call.
pub fn asked<T>(query: Asked<T>) -> Result<T, Refusal> {
    match query {
        Ok(Query(query)) => Ok(query),
        Err(e) => Err(Refusal::malformed(format!(
            "the query string: {}",
            e.body_text()
        ))),
    }
}

/// Query of a post.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostQuery {
    wait: Option<String>,
    plan: Option<bool>,
}

/// `POST /api/v1/events`: one event or `{"events": […]}`, all or nothing; 201 with the ids.
pub async fn post(
    State(desk): State<Desk>,
    At(caller): Support,
    query: Asked<PostQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    let PostQuery { wait, plan } = asked(query)?;
    let wait = wait.map(|text| wait_of(&text)).transpose()?;
    let (parts, body) = request.into_parts();
    let body = rest::whole_body(&parts.headers, body).await?;
    let (wanted, many) = match read_json(&body)? {
        Value::Object(mut map) if map.contains_key("events") => match map.remove("events") {
            Some(Value::Array(list)) if map.is_empty() => (list, true),
            Some(Value::Array(_)) => {
                let text = "beside \"events\" there may be no other key".to_owned();
                return Err(Refusal::malformed(text));
            }
            _ => return Err(Refusal::malformed("events is not a list".to_owned())),
        },
        one => (vec![one], false),
    };
    let events = {
        let cmds = desk.doors.cmds.borrow();
        let each = wanted.into_iter().enumerate().map(|(index, value)| {
            compact::read(value, &caller.who, &cmds).map_err(|reason| {
                let place = if many {
                    format!("events[{index}]: ")
                } else {
                    String::new()
                };
                Refusal::malformed(format!("{place}{reason}"))
            })
        });
        each.collect::<Result<Vec<_>, _>>()?
    };
    if plan == Some(true) {
        let asks: Vec<plan::Ask> = events.into_iter().map(plan::Ask::from).collect();
        return Ok(Json(plan::of(&desk, &caller, asks).await?).into_response());
    }
    if wait.is_some() && events.len() > WAIT_EVENTS_MAX {
        return Err(Refusal::malformed(format!(
            "wait is for at most {WAIT_EVENTS_MAX} events"
        )));
    }
    // The place is taken first: nothing is stored if nobody could wait for it.
    let place = match wait {
        Some(_) => Some(desk.waiters.try_acquire().map_err(|_| Refusal {
            retry_after: Some(1),
            ..Refusal::new(
                429,
                "too_many_waiting",
                "too many callers are waiting for answers".to_owned(),
                "nothing was stored; post without wait and ask for the event later",
            )
        })?),
        None => None,
    };
    let guard = rest::idempotency(&parts.headers, &body)?;
    let accepted = rest::accept(&desk, &caller, events, guard).await?;
    let mut answer = json!({ "ids": accepted.ids });
    if let Some(wait) = wait
        && let Some(map) = answer.as_object_mut()
    {
        let (rows, complete) = settled(&desk, &accepted.ids, wait).await?;
        map.insert("final".to_owned(), Value::from(complete));
        map.insert("events".to_owned(), rows.iter().map(outcome).collect());
    }
    drop(place);
    let mut answer = (StatusCode::CREATED, Json(answer)).into_response();
    if accepted.again {
        let yes = axum::http::HeaderValue::from_static("true");
        answer.headers_mut().insert("idempotency-replayed", yes);
    }
    Ok(answer)
}

fn wait_of(text: &str) -> Result<Duration, Refusal> {
    let wait =
        config::parse_duration(text).map_err(|e| Refusal::malformed(format!("wait: {e}")))?;
    if wait > WAIT_MAX {
        return Err(Refusal::malformed(format!(
            "wait is longer than {WAIT_MAX:?}"
        )));
    }
    Ok(wait)
}

fn read_json(body: &[u8]) -> Result<Value, Refusal> {
    let text = std::str::from_utf8(body)
        .map_err(|_| Refusal::malformed("the body is not UTF-8".to_owned()))?;
    json::strict_json(text).map_err(|e| Refusal::malformed(format!("the body is not JSON: {e}")))
}

/// Watches events until all are done or dead, or the time is over; `false` = over.
async fn settled(
    desk: &Desk,
    ids: &[EventId],
    wait: Duration,
) -> Result<(Vec<EventRow>, bool), Refusal> {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let until = clock::tick_ms().saturating_add(wait_ms);
    let mut pause = LOOK_FIRST;
    loop {
        let mut rows = Vec::new();
        for id in ids {
            rows.extend(desk.doors.store.event(*id).await.map_err(Refusal::store)?);
        }
        let complete = rows.len() == ids.len() && rows.iter().all(is_final);
        let left = until.saturating_sub(clock::tick_ms());
        if complete || left == 0 {
            return Ok((rows, complete));
        }
        tokio::time::sleep(pause.min(Duration::from_millis(left))).await;
        pause = (pause * 2).min(LOOK_LONGEST);
    }
}

fn is_final(row: &EventRow) -> bool {
    match row.place {
        WhereIs::Done | WhereIs::Dead => true,
        WhereIs::Compact | WhereIs::Stack => false,
    }
}

fn outcome(row: &EventRow) -> Value {
    json!({
        "id": row.id,
        "place": row.place,
        "state": row.state,
        "code": row.code,
        "error": row.error,
        "ms": row.ms,
        "answer": row.answer,
    })
}

/// Query of a list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    state: Option<String>,
    nas: Option<i64>,
    user: Option<i64>,
    abonent: Option<i64>,
    cmd: Option<String>,
    batch: Option<String>,
    error: Option<String>,
    before: Option<i64>,
    limit: Option<usize>,
}

/// `GET /api/v1/events`: newest first; `next_before` is the `before` of the next page, also of one
/// that is short because its time was over.
pub async fn list(
    State(desk): State<Desk>,
    At(_): Viewer,
    query: Asked<ListQuery>,
) -> Result<Json<Value>, Refusal> {
    let query = asked(query)?;
    if let Some(state) = &query.state
        && !STATES.contains(&state.as_str())
    {
        return Err(Refusal::malformed(format!(
            "state is none of: {}",
            STATES.join(", ")
        )));
    }
    let texts = [&query.cmd, &query.batch, &query.error];
    if texts.into_iter().flatten().any(|text| text.contains('\0')) {
        return Err(Refusal::malformed(
            "the query holds a NUL character".to_owned(),
        ));
    }
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Refusal::malformed(format!(
            "limit is outside 1..{PAGE_MAX}"
        )));
    }
    let filter = Filter {
        state: query.state,
        nas: query.nas,
        user: query.user,
        abonent: query.abonent,
        cmd: query.cmd,
        batch: query.batch,
        error: query.error,
        from: None,
        before: query.before,
        limit,
        unbounded: false,
    };
    let found = walk::look(desk.doors.store.as_ref(), &filter).await;
    let Looked { rows, down_to } = found.map_err(Refusal::store)?;
    let last = rows.last().filter(|_| rows.len() >= limit);
    let next = down_to.or(last.map(|row| row.id));
    let events: Vec<Value> = rows.iter().map(|row| shown(row, false)).collect();
    Ok(Json(
        json!({ "events": events, "next_before": next, "time_is_up": down_to.is_some() }),
    ))
}

/// A row for people; lists leave out what may be large.
pub fn shown(row: &EventRow, whole: bool) -> Value {
    let mut value = serde_json::to_value(row).unwrap_or(Value::Null);
    if !whole && let Some(map) = value.as_object_mut() {
        map.remove("params");
        map.remove("answer");
    }
    value
}

/// `GET /api/v1/events/{id}`: one event, wherever it is, why it waits, and its attempts.
pub async fn show(
    State(desk): State<Desk>,
    At(_): Viewer,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let id = EventId(number(&id)?);
    let row = desk.doors.store.event(id).await.map_err(Refusal::store)?;
    let row = row.ok_or_else(|| no_event(id))?;
    let live = desk
        .doors
        .dispatch
        .as_ref()
        .map(|say| json!({ "dispatch": say() }));
    let facts = waiting::facts(desk.doors.store.as_ref(), &row, live.as_ref()).await;
    let why = waiting::sentence(&row, &facts.map_err(Refusal::store)?);
    let attempts = attempts_of(&desk, &row).await?;
    let mut value = shown(&row, true);
    if let Some(map) = value.as_object_mut() {
        map.insert("why".to_owned(), Value::from(why));
        map.insert("attempts".to_owned(), json!(attempts));
    }
    Ok(Json(value))
}

/// What the log of its account, or of its NAS, says of an event; nothing where there is none.
async fn attempts_of(desk: &Desk, row: &EventRow) -> Result<Vec<attempts::Attempt>, Refusal> {
    let Some(logs) = &desk.doors.logs else {
        return Ok(Vec::new());
    };
    let path = match (row.user_id, row.nas_id) {
        (Some(user), _) => logs.account_path(row.abonent_id, UserId(user)),
        (None, Some(nas)) => match tails::nas_path(desk, NasId(nas)).await? {
            Some(path) => path,
            None => return Ok(Vec::new()),
        },
        (None, None) => return Ok(Vec::new()),
    };
    let id = row.id;
    let read = tokio::task::spawn_blocking(move || {
        // An event that was never tried has no log.
        let log = attempts::tail(&path, attempts::TAIL_MAX).unwrap_or_default();
        attempts::of_event(&log, id)
    });
    Ok(read.await.unwrap_or_default())
}

/// The number in a path.
pub fn number(text: &str) -> Result<i64, Refusal> {
    text.parse()
        .map_err(|_| Refusal::malformed("the id in the path is not a whole number".to_owned()))
}

fn no_event(id: EventId) -> Refusal {
    Refusal::not_found(
        format!("there is no event {id}"),
        "done events are kept for history.keep; older ones are in the account's log only",
    )
}

/// `POST /api/v1/events/{id}/retry`: posts a dead event anew; 201 with the new id.
pub async fn retry(
    State(desk): State<Desk>,
    At(caller): Operator,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let id = EventId(number(&id)?);
    let why = only_why(request).await?;
    let new = rest::to_the_end(&desk, move |desk| async move {
        let store = &desk.doors.store;
        let Some(new) = store.retry_dead(id).await.map_err(Refusal::store)? else {
            store
                .event(id)
                .await
                .map_err(Refusal::store)?
                .ok_or_else(|| no_event(id))?;
            return Err(Refusal::new(
                409,
                "not_retried",
                format!("event {id} was not retried"),
                "it is not dead, was retried already, or its account has a later event, \
                 waiting or done, which a retry would undo",
            ));
        };
        desk.doors.wake.notify_one();
        let detail = reasoned(format!("event={id} as={new}"), &why);
        desk.trail
            .note(store.as_ref(), &caller.who, "retry", detail)
            .await;
        Ok(new)
    })
    .await?;
    let answer = json!({ "id": new, "retried_from": id });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// `POST /api/v1/events/{id}/drop`: removes an event that is not running, with the reason; with a
/// `state` only if it is in that.
pub async fn give_up(
    State(desk): State<Desk>,
    At(caller): Operator,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let id = EventId(number(&id)?);
    let [one, other] = REASON;
    let map = order(request, &["state", one, other]).await?;
    let why = why(&map)?;
    let state = match map.get("state") {
        None | Some(Value::Null) => None,
        Some(Value::String(state)) if DROPPED_FROM.contains(&state.as_str()) => Some(state.clone()),
        Some(_) => {
            let states = DROPPED_FROM.join(" or ");
            return Err(Refusal::malformed(format!("state is not {states}")));
        }
    };
    rest::to_the_end(&desk, move |desk| async move {
        let store = &desk.doors.store;
        let reason = format!("{}: {why}", caller.who);
        let gone = store.drop_event(id, state.as_deref(), &reason).await;
        if !gone.map_err(Refusal::store)? {
            let row = store.event(id).await.map_err(Refusal::store)?;
            let row = row.ok_or_else(|| no_event(id))?;
            return Err(Refusal::new(
                409,
                "not_dropped",
                format!("event {id} is {}", row.state),
                "only events that are neither running nor done can be dropped, and with a state \
                 in the order only those that are in it",
            ));
        }
        let detail = format!("event={id} why={why:?}");
        desk.trail
            .note(store.as_ref(), &caller.who, "drop", detail)
            .await;
        told_of_drop(&desk, id).await;
        Ok(())
    })
    .await?;
    Ok(Json(json!({ "id": id, "result": "dropped" })))
}

/// What waits behind a dropped event in its lane may start now. Only where it stands after the
/// drop is sure: before, it may have been on its way from stack to stack.
pub(super) async fn told_of_drop(desk: &rest::Shared, id: EventId) {
    let Some(dropped) = &desk.doors.dropped else {
        return;
    };
    match desk.doors.store.event(id).await {
        Ok(Some(row)) => {
            if let Some(nas) = row.nas_id {
                // Fails only when the scheduler has ended.
                let _ = dropped
                    .send((id, NasId(nas), row.user_id.map(UserId)))
                    .await;
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(
            "event={id} was dropped, but its lane could not be told and waits until the event was due: {}",
            chain(&error)
        ),
    }
}

/// The optional body of an order: an object with some of `known`.
pub async fn order(request: Request, known: &[&str]) -> Result<Map<String, Value>, Refusal> {
    let (parts, body) = request.into_parts();
    let body = rest::whole_body(&parts.headers, body).await?;
    if body.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    let Value::Object(map) = read_json(&body)? else {
        return Err(Refusal::malformed("the body is not an object".to_owned()));
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(map),
        Some(key) => {
            let key: String = key.chars().take(64).collect();
            Err(Refusal::malformed(format!(
                "unknown key {key:?}; known: {}",
                known.join(", ")
            )))
        }
    }
}

/// The reason of an operator, by either of its names.
pub(super) fn why(order: &Map<String, Value>) -> Result<String, Refusal> {
    let [why, reason] = REASON;
    let key = if order.contains_key(why) { why } else { reason };
    match order.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) if text.chars().count() <= WHY_MAX && !text.contains('\0') => {
            Ok(text.clone())
        }
        Some(_) => Err(Refusal::malformed(format!(
            "{key} is not a text of at most {WHY_MAX} characters"
        ))),
    }
}

/// The reason that is all a body says.
pub(super) async fn only_why(request: Request) -> Result<String, Refusal> {
    why(&order(request, &REASON).await?)
}

/// What is noted of a change, with its reason if one was given.
pub(super) fn reasoned(detail: String, why: &str) -> String {
    if why.is_empty() {
        return detail;
    }
    format!("{detail} why={why:?}").trim_start().to_owned()
}

/// `POST /api/v1/reload`: NAS settings are read again now, not in a minute.
pub async fn reload(
    State(desk): State<Desk>,
    At(caller): Operator,
    request: Request,
) -> Result<Response, Refusal> {
    let why = only_why(request).await?;
    rest::to_the_end(&desk, move |desk| async move {
        desk.doors.reload.notify_one();
        let store = desk.doors.store.as_ref();
        desk.trail
            .note(store, &caller.who, "reload", reasoned(String::new(), &why))
            .await;
        Ok(())
    })
    .await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "reload": "asked" }))).into_response())
}

/// `GET /api/v1/status`: the stacks in numbers, and what the dispatcher says of each NAS.
pub async fn status(State(desk): State<Desk>, At(_): Viewer) -> Result<Json<Value>, Refusal> {
    let counts = health::counts(&desk, health::Freshness::Now).await?;
    let main: Map<String, Value> = counts
        .main
        .iter()
        .map(|(cmd, rows)| (cmd.clone(), Value::from(*rows)))
        .collect();
    let by_nas: Vec<Value> = counts
        .by_nas
        .iter()
        .map(|(nas, state, rows)| json!({ "nas_id": nas, "state": state, "events": rows }))
        .collect();
    let oldest = counts.oldest_by_nas.iter();
    let oldest: Vec<Value> = oldest
        .map(|(nas, age)| json!({ "nas_id": nas, "age_s": age }))
        .collect();
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "up_ms": clock::up_ms(),
        "parent_turned_ms_ago": health::parent_age_ms(&desk),
        "compact": counts.compact,
        "unexpandable": counts.unexpandable,
        "main": main,
        "by_nas": by_nas,
        "dead": counts.dead,
        "oldest_s": counts.oldest_s,
        "oldest_compact_s": counts.oldest_compact_s,
        "oldest_by_nas": oldest,
        "accounts": health::accounts(&desk).await,
        "intake": { "high_water": desk.doors.high_water,
            "limited": desk.doors.limited.load(Ordering::Relaxed) },
        "dispatch": desk.doors.dispatch.as_ref().map(|say| say()),
    })))
}
