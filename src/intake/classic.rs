//! `/rest_api/v2/<Model>/`: the API that billing services have always used. Answers are
//! `{"call", "result"}` or `{"call", "error"}`; clients of the original look at the body only.
//! The status adds to that, for `curl -f` and for people: 2xx exactly when the call was done,
//! 400 for a body that makes no sense, 401/403 for access, 404 for an unknown model or object,
//! 409, 413, 429 and 503 as in RFC 9110 and RFC 6585. `chain` reads what a body asks for, here
//! it is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;

use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::clock;
use crate::event::{CompactEvent, EventId};
use crate::intake::access::{self, Caller, Openness, Scope};
use crate::intake::chain::{self, LIST_MAX, Wish};
use crate::intake::rest::{self, Desk, Refusal};
use crate::intake::wanted::Wanted;
use crate::intake::{api, compact, form, lookup};
use crate::store::query::{Bound, Column, Condition, Group, Model, Query, Relation, Test};

/// What all classic paths start with.
pub const ROOT: &str = "/rest_api/v2";

/// Events that one `delete` takes away.
const DELETE_MAX: usize = 1000;

/// An error in the classic shape.
pub fn refused(path: &str, refusal: Refusal) -> Response {
    let text = if refusal.hint.is_empty() {
        refusal.message.clone()
    } else {
        format!("{} ({})", refusal.message, refusal.hint)
    };
    refusal.answer(json!({ "call": path, "error": text }))
}

/// `POST /rest_api/v2/<Model>/`.
pub async fn call(
    State(desk): State<Desk>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let path = format!("{ROOT}/{}/", shown_name(&name));
    let done = async {
        let caller = access::caller(&desk, &parts, Openness::Classic).await?;
        let model = model_named(&name)?;
        let body = rest::whole_body(&parts.headers, body).await?;
        run(&desk, &caller, model, &parts, &body).await
    };
    match done.await {
        Ok(Answer { result, next }) => {
            let mut body = json!({ "call": path, "result": result });
            if let (Some(next), Some(map)) = (next, body.as_object_mut()) {
                map.insert("next_offset".to_owned(), Value::from(next));
            }
            axum::Json(body).into_response()
        }
        Err(refusal) => refused(&path, refusal),
    }
}

/// `GET /rest_api/v2/`: the models.
pub async fn models(State(desk): State<Desk>, request: Request) -> Response {
    page(&desk, request, format!("{ROOT}/"), || {
        Ok(Model::ALL.iter().map(|m| described(&desk, *m)).collect())
    })
    .await
}

/// `GET /rest_api/v2/<Model>/`: its fields and methods.
pub async fn model(
    State(desk): State<Desk>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let path = format!("{ROOT}/{}/", shown_name(&name));
    page(&desk, request, path, || {
        Ok(described(&desk, model_named(&name)?))
    })
    .await
}

async fn page(
    desk: &Desk,
    request: Request,
    path: String,
    content: impl FnOnce() -> Result<Value, Refusal>,
) -> Response {
    let (parts, _) = request.into_parts();
    let found = match access::caller(desk, &parts, Openness::Classic).await {
        Ok(_) => content(),
        Err(refusal) => Err(refusal),
    };
    match found {
        Ok(result) => axum::Json(json!({ "call": path, "result": result })).into_response(),
        Err(refusal) => refused(&path, refusal),
    }
}

/// What a call gives, and the offset of the rest of a list.
struct Answer {
    result: Value,
    next: Option<u64>,
}

impl Answer {
    fn of(result: Value) -> Self {
        Self { result, next: None }
    }
}

fn described(desk: &Desk, model: Model) -> Value {
    let columns = desk.doors.store.columns(model);
    let fields: Map<String, Value> = columns
        .iter()
        .filter(|c| c.shown)
        .map(|c| (c.name.clone(), Value::from(c.kind.as_str())))
        .collect();
    let relations: Map<String, Value> = model
        .relations()
        .iter()
        .map(|r| (r.name.to_owned(), Value::from(r.model.name())))
        .collect();
    json!({
        "model": model.name(),
        "url": format!("{ROOT}/{}/", model.name()),
        "fields": fields,
        "relations": relations,
        "methods": chain::methods(model),
        "lookups": lookup::WORDS,
        "belongs_to": if model.is_theirs() { "your billing" } else { "the daemon" },
    })
}

fn shown_name(name: &str) -> String {
    name.chars().take(64).collect()
}

fn model_named(name: &str) -> Result<Model, Refusal> {
    let found = Model::ALL.into_iter().find(|m| m.name() == name);
    found.ok_or_else(|| {
        let known: Vec<_> = Model::ALL.iter().map(|m| m.name()).collect();
        Refusal::not_found(
            format!("unknown model {}", shown_name(name)),
            &format!("known: {}", known.join(", ")),
        )
    })
}

async fn run(
    desk: &Desk,
    caller: &Caller,
    model: Model,
    parts: &Parts,
    body: &[u8],
) -> Result<Answer, Refusal> {
    let form = form::read(body).map_err(|e| Refusal::malformed(e.to_string()))?;
    // Of one call: the billing's columns may be read anew meanwhile.
    let known: BTreeMap<Model, Vec<Column>> = Model::ALL
        .into_iter()
        .map(|m| (m, desk.doors.store.columns(m)))
        .collect();
    let columns = move |m: Model| known.get(&m).cloned().unwrap_or_default();
    let wish = chain::read(model, form.calls, form.limit, form.offset, &columns)
        .map_err(Refusal::malformed)?;
    let fields = form.fields.as_deref();
    if let Wish::Create { objects, many } = wish {
        return create(desk, caller, objects, many, fields, parts, body)
            .await
            .map(Answer::of);
    }
    caller.at_least(match &wish {
        Wish::Change(..) | Wish::Delete(..) => Scope::Operator,
        Wish::Create { .. } | Wish::Rows(_) | Wish::One(_) | Wish::Count(_) => Scope::Viewer,
    })?;
    let wanted = match fields {
        Some(names) => Wanted::read(model, names, &columns).map_err(Refusal::malformed)?,
        None => Wanted::all(model, &columns),
    };
    match wish {
        Wish::Create { .. } => Ok(Answer::of(Value::Null)),
        Wish::Count(query) => {
            let count = desk.doors.store.count(&query).await;
            Ok(Answer::of(Value::from(count.map_err(Refusal::store)?)))
        }
        Wish::Rows(mut query) => {
            let limit = query.limit;
            query.limit = limit + 1;
            let mut rows = objects(desk, &query, &wanted).await?;
            let more = rows.len() > limit;
            rows.truncate(limit);
            let next = query.offset.saturating_add(limit as u64);
            Ok(Answer {
                result: Value::Array(rows),
                next: more.then_some(next),
            })
        }
        Wish::One(query) => one(desk, query, &wanted).await.map(Answer::of),
        Wish::Change(query, set) => {
            let id = change(desk, caller, query, set).await?;
            let again = Query {
                groups: vec![same("id", vec![Bound::Integer(id.0)])],
                ..Query::all(model)
            };
            let mut shown = objects(desk, &again, &wanted).await?;
            // It may have moved on right after it was saved.
            let shown = shown
                .pop()
                .unwrap_or_else(|| json!({ "pk": id, "model": model.name(), "fields": {} }));
            Ok(Answer::of(shown))
        }
        Wish::Delete(query, single) => delete(desk, caller, query, single).await.map(Answer::of),
    }
}

async fn create(
    desk: &Desk,
    caller: &Caller,
    wanted: Vec<Value>,
    bulk: bool,
    fields: Option<&[String]>,
    parts: &Parts,
    body: &[u8],
) -> Result<Value, Refusal> {
    let events = {
        let cmds = desk.doors.cmds.borrow();
        let each = wanted.into_iter().enumerate().map(|(index, value)| {
            compact::read(value, &caller.who, &cmds).map_err(|reason| {
                let place = if bulk {
                    format!("arg1[{index}]: ")
                } else {
                    String::new()
                };
                Refusal::malformed(format!("{place}{reason}"))
            })
        });
        each.collect::<Result<Vec<_>, _>>()?
    };
    let mut shown = events.iter().map(given).collect::<Vec<_>>();
    if let Some(names) = fields {
        shown = shown
            .into_iter()
            .map(|all| projected(all, names))
            .collect::<Result<_, _>>()?;
    }
    let guard = rest::idempotency(&parts.headers, body)?;
    let accepted = rest::accept(desk, caller, events, guard).await?;
    let mut objects = accepted
        .ids
        .iter()
        .zip(shown)
        .map(|(id, fields)| created(*id, fields));
    if bulk {
        Ok(objects.collect())
    } else {
        Ok(objects.next().unwrap_or(Value::Null))
    }
}

fn created(id: EventId, mut fields: Map<String, Value>) -> Value {
    if let Some(place) = fields.get_mut("id") {
        *place = Value::from(id.0);
    }
    json!({ "pk": id, "model": "EventsStackCompact", "fields": fields })
}

/// A posted event as its row will look; the number is filled in afterwards.
fn given(event: &CompactEvent) -> Map<String, Value> {
    let values = json!({
        "id": null,
        "cmd": event.cmd,
        "user_id": event.user_id,
        "abonent_id": event.abonent_id,
        "nas_id": event.nas_id,
        "nas_ip": event.nas_ip,
        "usluga_id": event.usluga_id,
        "acct_session_id": event.acct_session_id,
        "params": event.params,
        "params_complete": event.params_complete,
        "owner_script": event.owner_script,
        "owner_function": event.owner_function,
        "source": event.source,
        "batch_id": event.batch_id,
        "expires_at": event.expires_at_ms.map(classic_time),
    });
    match values {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// `%Y-%m-%d %H:%M:%S`, UTC.
fn classic_time(ms: i64) -> String {
    let text = clock::utc_text(ms);
    text.split('.').next().unwrap_or_default().to_owned()
}

fn projected(mut all: Map<String, Value>, names: &[String]) -> Result<Map<String, Value>, Refusal> {
    let known: Vec<String> = all.keys().cloned().collect();
    names
        .iter()
        .map(|name| match all.remove(name) {
            Some(value) => Ok((name.clone(), value)),
            None => Err(Refusal::malformed(format!(
                "fields names {:?}, once and among: {}",
                lookup::short(name),
                known.join(", ")
            ))),
        })
        .collect()
}

fn same(column: &str, values: Vec<Bound>) -> Group {
    Group {
        negated: false,
        all: vec![Condition {
            path: Vec::new(),
            column: column.to_owned(),
            test: Test::In(values),
        }],
    }
}

/// Rows as `{"pk", "model", "fields"}`, with the objects behind their relations.
async fn objects(desk: &Desk, query: &Query, wanted: &Wanted) -> Result<Vec<Value>, Refusal> {
    let rows = read(desk, query, wanted).await?;
    let model = query.model.name();
    let shown = rows
        .into_iter()
        .map(|(id, _, fields)| json!({ "pk": id, "model": model, "fields": fields }));
    Ok(shown.collect())
}

/// Of each row: its number, what was read, and the wanted fields.
type Row = (Value, Map<String, Value>, Map<String, Value>);
type Reading<'a> = Pin<Box<dyn Future<Output = Result<Vec<Row>, Refusal>> + Send + 'a>>;

fn read<'a>(desk: &'a Desk, query: &'a Query, wanted: &'a Wanted) -> Reading<'a> {
    Box::pin(async move {
        let mut query = query.clone();
        query.columns = vec!["id".to_owned()];
        let keys = wanted.related.iter().map(|(r, _)| r.from.to_owned());
        for name in wanted.names.iter().cloned().chain(keys) {
            if !query.columns.contains(&name) {
                query.columns.push(name);
            }
        }
        let found = desk
            .doors
            .store
            .find(&query)
            .await
            .map_err(Refusal::store)?;
        let mut rows: Vec<Row> = found
            .into_iter()
            .map(|row| {
                let id = row.get("id").cloned().unwrap_or_default();
                let of = |name: &String| {
                    let value = row.get(name).cloned().unwrap_or_default();
                    (name.clone(), value)
                };
                let fields = wanted.names.iter().map(of).collect();
                (id, row, fields)
            })
            .collect();
        for (relation, wanted) in &wanted.related {
            related(desk, &mut rows, relation, wanted).await?;
        }
        Ok(rows)
    })
}

/// Puts the objects behind one relation into the fields of each row.
async fn related(
    desk: &Desk,
    rows: &mut [Row],
    relation: &'static Relation,
    wanted: &Wanted,
) -> Result<(), Refusal> {
    let number = |row: &Map<String, Value>, name: &str| row.get(name).and_then(Value::as_i64);
    let keys: BTreeSet<i64> = rows
        .iter()
        .filter_map(|(_, row, _)| number(row, relation.from))
        .collect();
    let mut by_key: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
    if !keys.is_empty() {
        let query = Query {
            groups: vec![same(
                relation.to,
                keys.into_iter().map(Bound::Integer).collect(),
            )],
            ..Query::all(relation.model)
        };
        let with_key = Wanted {
            names: wanted
                .names
                .iter()
                .cloned()
                .chain([relation.to.to_owned()])
                .collect(),
            related: Vec::new(),
        };
        let found = if wanted.names.iter().any(|name| name == relation.to) {
            read(desk, &query, wanted).await?
        } else {
            // The key is read, but not shown.
            let keys = read(desk, &query, &with_key).await?;
            let shown = read(desk, &query, wanted).await?;
            shown
                .into_iter()
                .zip(keys)
                .map(|((id, _, fields), (_, row, _))| (id, row, fields))
                .collect()
        };
        if found.len() > LIST_MAX {
            return Err(Refusal::malformed(format!(
                "more than {LIST_MAX} objects of {} stand behind {}: ask for fewer rows",
                relation.model.name(),
                relation.name
            )));
        }
        for (id, row, fields) in found {
            if let Some(key) = number(&row, relation.to) {
                let object = json!({ "pk": id, "model": relation.model.name(), "fields": fields });
                by_key.entry(key).or_default().push(object);
            }
        }
    }
    for (_, row, fields) in rows {
        let found = number(row, relation.from).and_then(|key| by_key.get(&key));
        let found = found.cloned().unwrap_or_default();
        let value = if relation.many {
            Value::Array(found)
        } else {
            found.into_iter().next().unwrap_or_default()
        };
        fields.insert(relation.name.to_owned(), value);
    }
    Ok(())
}

async fn one(desk: &Desk, mut query: Query, wanted: &Wanted) -> Result<Value, Refusal> {
    query.limit = 2;
    let model = query.model;
    let mut found = objects(desk, &query, wanted).await?;
    match (found.pop(), found.is_empty()) {
        (Some(object), true) => Ok(object),
        (None, _) => Err(Refusal::not_found(
            format!("no object of {} fits", model.name()),
            if model.is_theirs() {
                "objects.filter with fewer look-ups shows what there is"
            } else {
                "events move on: look in EventsStack, EventsDone and EventsDead by the same id"
            },
        )),
        (Some(_), false) => Err(Refusal::new(
            400,
            "several",
            format!("more than one object of {} fits", model.name()),
            "use objects.filter, or look it up by id",
        )),
    }
}

/// `get`, `set`, `save`: replaces what a producer gave of one event of the compact stack.
async fn change(
    desk: &Desk,
    caller: &Caller,
    query: Query,
    set: Map<String, Value>,
) -> Result<EventId, Refusal> {
    let all = Wanted {
        names: compact::FIELDS
            .iter()
            .map(|(n, _)| (*n).to_owned())
            .collect(),
        related: Vec::new(),
    };
    let stored = one(desk, query, &all).await?;
    let id = EventId(stored.get("pk").and_then(Value::as_i64).unwrap_or_default());
    let fields = stored.get("fields").and_then(Value::as_object);
    let merged = chain::merged(&fields.cloned().unwrap_or_default(), &set, compact::FIELDS)
        .map_err(Refusal::malformed)?;
    let event = {
        let cmds = desk.doors.cmds.borrow();
        compact::read(merged, &caller.who, &cmds).map_err(Refusal::malformed)?
    };
    caller.may_post(&event.cmd)?;
    let who = caller.who.clone();
    rest::to_the_end(desk, move |desk| async move {
        let store = &desk.doors.store;
        if !store.rewrite(id, &event).await.map_err(Refusal::store)? {
            return Err(Refusal::new(
                409,
                "moved_on",
                format!("event {id} has left the compact stack"),
                "nothing was changed; drop it if it still waits, and post a new one",
            ));
        }
        desk.doors.wake.notify_one();
        let names: Vec<&str> = set.keys().map(String::as_str).collect();
        let detail = format!("event={id} set={}", names.join(","));
        desk.trail.note(store.as_ref(), &who, "save", detail).await;
        Ok(id)
    })
    .await
}

/// Drops what fits and does not run; like `POST /api/v1/events/{id}/drop`.
async fn delete(
    desk: &Desk,
    caller: &Caller,
    mut query: Query,
    single: bool,
) -> Result<Value, Refusal> {
    let model = query.model;
    query.limit = DELETE_MAX + 1;
    let rows = desk
        .doors
        .store
        .find(&query)
        .await
        .map_err(Refusal::store)?;
    let ids: Vec<EventId> = rows.iter().map(chain::id_of).collect();
    if single && ids.len() != 1 {
        return one(desk, query, &Wanted::default()).await;
    }
    if ids.len() > DELETE_MAX {
        return Err(Refusal::new(
            400,
            "too_many",
            format!("more than {DELETE_MAX} objects of {} fit", model.name()),
            "nothing was deleted; narrow the look-up",
        ));
    }
    let who = caller.who.clone();
    rest::to_the_end(desk, move |desk| async move {
        let store = &desk.doors.store;
        let reason = format!("{who}: deleted by the classic API");
        let (mut deleted, mut kept) = (Vec::new(), Vec::new());
        for id in ids {
            if store
                .drop_event(id, None, &reason)
                .await
                .map_err(Refusal::store)?
            {
                deleted.push(id);
            } else {
                kept.push(id);
            }
        }
        if let (Some(first), Some(last)) = (deleted.first(), deleted.last()) {
            let detail = format!(
                "model={} n={} events={last}..{first}",
                model.name(),
                deleted.len()
            );
            desk.trail.note(store.as_ref(), &who, "drop", detail).await;
        }
        for id in &deleted {
            api::told_of_drop(&desk, *id).await;
        }
        Ok(json!({ "deleted": deleted.len(), "kept": kept }))
    })
    .await
}
