//! `/rest_api/v2/<Model>/`: the API that billing services have always used. Answers are
//! `{"call", "result"}` or `{"call", "error"}`; clients of the original look at the body only.
//! The status adds to that, for `curl -f` and for people: 2xx exactly when the call was done,
//! 400 for a body that makes no sense, 401/403 for access, 404 for an unknown model or object,
//! 409, 413, 429 and 503 as in RFC 9110 and RFC 6585.

use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::clock;
use crate::event::{CompactEvent, EventId};
use crate::intake::access::{self, Caller, Openness, Scope};
use crate::intake::form::{self, Call};
use crate::intake::rest::{self, Desk, Refusal};
use crate::intake::{compact, health};
use crate::store::{EventRow, Filter, WhereIs};

/// What all classic paths start with.
pub const ROOT: &str = "/rest_api/v2";

/// Most objects of one `filter`; the original gives whole tables, which is what kills it.
const LIST_MAX: usize = 1000;

/// One model of the classic API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Model {
    name: &'static str,
    place: WhereIs,
    methods: &'static [&'static str],
}

const READS: &[&str] = &[
    "objects.get",
    "objects.filter",
    "objects.all",
    "objects.count",
];

const MODELS: &[Model] = &[
    Model {
        name: "EventsStackCompact",
        place: WhereIs::Compact,
        methods: &[
            "objects.create",
            "objects.get",
            "objects.filter",
            "objects.all",
            "objects.count",
        ],
    },
    Model {
        name: "EventsStack",
        place: WhereIs::Stack,
        methods: READS,
    },
    Model {
        name: "EventsDead",
        place: WhereIs::Dead,
        methods: READS,
    },
    Model {
        name: "EventsDone",
        place: WhereIs::Done,
        methods: READS,
    },
];

/// What the models of stored events show, with the types.
const COLUMNS: &[(&str, &str)] = &[
    ("event_type", "text"),
    ("id", "integer"),
    ("state", "text"),
    ("user_id", "integer"),
    ("abonent_id", "integer"),
    ("nas_id", "integer"),
    ("source", "text"),
    ("batch_id", "text"),
    ("event_date", "datetime"),
    ("try_count", "integer"),
    ("next_try_at", "datetime"),
    ("ended_at", "datetime"),
    ("possible_duplicate", "boolean"),
    ("code", "integer"),
    ("error", "text"),
    ("ms", "integer"),
    ("answer", "text"),
    ("params", "object"),
    ("retried_as", "integer"),
];

/// Look-ups that reading methods know.
const LOOKUPS: &[&str] = &[
    "id",
    "pk",
    "user_id",
    "nas_id",
    "cmd",
    "event_type",
    "state",
    "batch_id",
    "limit",
    "before",
];

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
        Ok(result) => axum::Json(json!({ "call": path, "result": result })).into_response(),
        Err(refusal) => refused(&path, refusal),
    }
}

/// `GET /rest_api/v2/`: the models.
pub async fn models(State(desk): State<Desk>, request: Request) -> Response {
    page(&desk, request, format!("{ROOT}/"), || {
        Ok(MODELS.iter().map(described).collect())
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
    page(&desk, request, path, || model_named(&name).map(described)).await
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

fn described(model: &Model) -> Value {
    let columns = match model.place {
        WhereIs::Compact => compact::FIELDS,
        WhereIs::Stack | WhereIs::Dead | WhereIs::Done => COLUMNS,
    };
    let fields: Map<String, Value> = columns
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), Value::from(*kind)))
        .collect();
    json!({
        "model": model.name,
        "url": format!("{ROOT}/{}/", model.name),
        "fields": fields,
        "methods": model.methods,
        "lookups": LOOKUPS,
    })
}

fn shown_name(name: &str) -> String {
    name.chars().take(64).collect()
}

fn model_named(name: &str) -> Result<&'static Model, Refusal> {
    MODELS.iter().find(|m| m.name == name).ok_or_else(|| {
        let known: Vec<_> = MODELS.iter().map(|m| m.name).collect();
        Refusal::not_found(
            format!("unknown model {}", shown_name(name)),
            &format!("known: {}", known.join(", ")),
        )
    })
}

async fn run(
    desk: &Desk,
    caller: &Caller,
    model: &Model,
    parts: &Parts,
    body: &[u8],
) -> Result<Value, Refusal> {
    let form = form::read(body).map_err(|e| Refusal::malformed(e.to_string()))?;
    let mut calls = form.calls.into_iter();
    let Some(call) = calls.next() else {
        return Err(Refusal::malformed("method1 is missing".to_owned()));
    };
    let counted = match calls.next() {
        None => false,
        Some(next) if next.method == "count" && is_empty(&next.arg) && calls.len() == 0 => true,
        Some(next) => return Err(unsupported(&next.method, model)),
    };
    let fields = form.fields.as_deref();
    match (call.method.as_str(), counted) {
        ("objects.create", false) if model.place == WhereIs::Compact => {
            create(desk, caller, call, fields, parts, body).await
        }
        ("objects.create", _) => Err(Refusal::new(
            400,
            "not_here",
            format!("{} takes no objects", model.name),
            "post to EventsStackCompact; the daemon moves events on",
        )),
        ("objects.get", false) => {
            caller.at_least(Scope::Viewer)?;
            get(desk, model, &call.arg, fields).await
        }
        ("objects.filter" | "objects.all", false) => {
            caller.at_least(Scope::Viewer)?;
            let rows = rows(desk, model, &call.arg, LIST_MAX).await?;
            let objects = rows.iter().map(|row| object(model, row, fields));
            Ok(Value::Array(objects.collect::<Result<_, _>>()?))
        }
        ("objects.count", false) | ("objects.filter" | "objects.all", true) => {
            caller.at_least(Scope::Viewer)?;
            count(desk, model, &call.arg).await
        }
        (other, _) => Err(unsupported(other, model)),
    }
}

fn is_empty(arg: &Value) -> bool {
    arg.as_object().is_some_and(Map::is_empty)
}

fn unsupported(method: &str, model: &Model) -> Refusal {
    let method: String = method.chars().take(64).collect();
    Refusal::new(
        400,
        "not_supported",
        format!("{method} is not supported yet on {}", model.name),
        &format!(
            "supported: {}, and count after filter",
            model.methods.join(", ")
        ),
    )
}

async fn create(
    desk: &Desk,
    caller: &Caller,
    call: Call,
    fields: Option<&[String]>,
    parts: &Parts,
    body: &[u8],
) -> Result<Value, Refusal> {
    let (wanted, bulk) = match call.arg {
        Value::Array(items) => (items, true),
        one => (vec![one], false),
    };
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

/// One stored event as the model's columns are called.
fn stored(model: &Model, row: &EventRow) -> Map<String, Value> {
    let values = json!({
        "id": row.id,
        "state": row.state,
        "user_id": row.user_id,
        "abonent_id": row.abonent_id,
        "nas_id": row.nas_id,
        "source": row.source,
        "batch_id": row.batch_id,
        "event_date": classic_time(row.event_date_ms),
        "try_count": row.try_count,
        "next_try_at": row.next_try_ms.map(classic_time),
        "ended_at": row.ended_ms.map(classic_time),
        "possible_duplicate": row.possible_duplicate,
        "code": row.code,
        "error": row.error,
        "ms": row.ms,
        "answer": row.answer,
        "params": row.params,
        "retried_as": row.retried_as,
    });
    let mut map = Map::new();
    let kind = if model.place == WhereIs::Compact {
        "cmd"
    } else {
        "event_type"
    };
    map.insert(kind.to_owned(), Value::from(row.cmd.as_str()));
    if let Value::Object(values) = values {
        map.extend(values);
    }
    map
}

fn object(model: &Model, row: &EventRow, fields: Option<&[String]>) -> Result<Value, Refusal> {
    let all = stored(model, row);
    let shown = match fields {
        Some(names) => projected(all, names)?,
        None => all,
    };
    Ok(json!({ "pk": row.id, "model": model.name, "fields": shown }))
}

fn projected(mut all: Map<String, Value>, names: &[String]) -> Result<Map<String, Value>, Refusal> {
    let known: Vec<String> = all.keys().cloned().collect();
    names
        .iter()
        .map(|name| match all.remove(name) {
            Some(value) => Ok((name.clone(), value)),
            None => {
                let name: String = name.chars().take(64).collect();
                Err(Refusal::malformed(format!(
                    "fields names {name:?}, once and among: {}",
                    known.join(", ")
                )))
            }
        })
        .collect()
}

/// What a reading method looks for.
struct Lookup {
    id: Option<i64>,
    filter: Filter,
}

fn lookup(arg: &Value, most: usize) -> Result<Lookup, Refusal> {
    let Value::Object(map) = arg else {
        return Err(Refusal::malformed(
            "arg1 is not an object of look-ups".to_owned(),
        ));
    };
    let mut found = Lookup {
        id: None,
        filter: Filter {
            limit: most,
            ..Filter::default()
        },
    };
    for (name, value) in map {
        let number = || {
            let n = match value {
                Value::Number(n) => n.as_i64(),
                Value::String(s) => s.trim_ascii().parse().ok(),
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
            };
            n.ok_or_else(|| Refusal::malformed(format!("{name} is not a whole number")))
        };
        let text = || {
            let text = value
                .as_str()
                .filter(|s| !s.is_empty() && !s.contains('\0'));
            text.map(str::to_owned)
                .ok_or_else(|| Refusal::malformed(format!("{name} is not a text")))
        };
        let filter = &mut found.filter;
        match name.as_str() {
            "id" | "pk" => found.id = Some(number()?),
            "user_id" => filter.user = Some(number()?),
            "nas_id" => filter.nas = Some(number()?),
            "cmd" | "event_type" => filter.cmd = Some(text()?),
            "state" => filter.state = Some(text()?),
            "batch_id" => filter.batch = Some(text()?),
            "before" => filter.before = Some(number()?),
            "limit" => {
                let wanted = usize::try_from(number()?).unwrap_or(0);
                if !(1..=LIST_MAX).contains(&wanted) {
                    return Err(Refusal::malformed(format!(
                        "limit is outside 1..{LIST_MAX}"
                    )));
                }
                filter.limit = wanted.min(most);
            }
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(Refusal::new(
                    400,
                    "not_supported",
                    format!("look-up {other} is not supported yet"),
                    &format!("supported: {}", LOOKUPS.join(", ")),
                ));
            }
        }
    }
    Ok(found)
}

/// Rows of one model, newest first.
async fn rows(
    desk: &Desk,
    model: &Model,
    arg: &Value,
    most: usize,
) -> Result<Vec<EventRow>, Refusal> {
    let Lookup { id, filter } = lookup(arg, most)?;
    let store = &desk.doors.store;
    if let Some(id) = id {
        let row = store.event(EventId(id)).await.map_err(Refusal::store)?;
        let row = row.filter(|row| row.place == model.place && fits(row, &filter));
        return Ok(row.into_iter().collect());
    }
    let all: &[&str] = match model.place {
        WhereIs::Compact => &["compact"],
        WhereIs::Stack => &["ready", "running", "deferred", "held"],
        WhereIs::Dead => &["dead"],
        WhereIs::Done => &["done"],
    };
    let mut rows = Vec::new();
    for state in all {
        if filter
            .state
            .as_deref()
            .is_some_and(|wanted| wanted != *state)
        {
            continue;
        }
        let one = Filter {
            state: Some((*state).to_owned()),
            ..filter.clone()
        };
        rows.extend(store.events(&one).await.map_err(Refusal::store)?);
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.id));
    rows.truncate(filter.limit);
    Ok(rows)
}

fn fits(row: &EventRow, filter: &Filter) -> bool {
    filter.user.is_none_or(|user| row.user_id == Some(user))
        && filter.nas.is_none_or(|nas| row.nas_id == Some(nas))
        && filter.cmd.as_ref().is_none_or(|cmd| row.cmd == *cmd)
        && filter
            .state
            .as_ref()
            .is_none_or(|state| row.state == *state)
        && (filter.batch.is_none() || filter.batch == row.batch_id)
        && filter.before.is_none_or(|before| row.id.0 < before)
}

async fn get(
    desk: &Desk,
    model: &Model,
    arg: &Value,
    fields: Option<&[String]>,
) -> Result<Value, Refusal> {
    let found = rows(desk, model, arg, 2).await?;
    match found.as_slice() {
        [row] => object(model, row, fields),
        [] => Err(Refusal::not_found(
            format!("no object of {} fits", model.name),
            "events move on: look in EventsStack, EventsDone and EventsDead by the same id",
        )),
        _ => Err(Refusal::new(
            400,
            "several",
            format!("more than one object of {} fits", model.name),
            "use objects.filter, or look it up by id",
        )),
    }
}

async fn count(desk: &Desk, model: &Model, arg: &Value) -> Result<Value, Refusal> {
    if is_empty(arg) {
        let counts = health::counts(desk, health::Freshness::Now).await?;
        match model.place {
            WhereIs::Compact => return Ok(Value::from(counts.compact)),
            WhereIs::Stack => {
                return Ok(counts.main.iter().map(|(_, rows)| rows).sum::<i64>().into());
            }
            WhereIs::Dead => return Ok(Value::from(counts.dead)),
            WhereIs::Done => {}
        }
    }
    let found = rows(desk, model, arg, LIST_MAX).await?;
    if found.len() >= LIST_MAX {
        return Err(Refusal::new(
            400,
            "not_supported",
            format!("counting more than {LIST_MAX} objects by look-ups is not supported yet"),
            "narrow the look-up, or count all of them with arg1={}",
        ));
    }
    Ok(Value::from(found.len()))
}
