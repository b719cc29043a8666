//! NASes over `/api/v1/`: what they are, what the dispatcher says of them, and what operators
//! may say beside the billing: pause, resume, forks.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use serde_json::{Value, json};

use crate::clock;
use crate::config;
use crate::intake::access::{At, Operator, Viewer};
use crate::intake::api::{number, only_why, order, reasoned, why};
use crate::intake::compact;
use crate::intake::rest::{self, Desk, Refusal};
use crate::nas::{Forks, Mode, Nas, NasChange, NasId, NasState};
use crate::store::shown_url;

/// Tests at once: each logs in to a device.
pub const TESTS_MAX: usize = 4;

/// `POST /api/v1/nas/{id}/test`: logs in and times one harmless command; changes nothing.
pub async fn test(
    State(desk): State<Desk>,
    At(caller): Operator,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let id = NasId(number(&id)?);
    let rows = desk.doors.store.nases().await.map_err(Refusal::store)?;
    let known = rows.iter().any(|row| match row {
        Ok(nas) => nas.id == id,
        Err(bad) => bad.id == id,
    });
    let Some(tester) = desk.doors.tester.as_ref().filter(|_| known) else {
        return Err(Refusal::not_found(
            format!("there is no NAS {id} that could be tested from here"),
            "GET /api/v1/nas lists them",
        ));
    };
    let _place = desk.tests.try_acquire().map_err(|_| Refusal {
        retry_after: Some(5),
        ..Refusal::new(
            429,
            "too_many_tests",
            format!("{TESTS_MAX} NASes are tested at once"),
            "wait for one of them",
        )
    })?;
    let (well, mut said) = tester(id).await;
    let detail = format!("nas={id} well={well}");
    let store = Arc::clone(&desk.doors.store);
    desk.trail
        .note(store.as_ref(), &caller.who, "nas_test", detail)
        .await;
    if let Some(map) = said.as_object_mut() {
        map.insert("id".to_owned(), json!(id));
        map.insert("well".to_owned(), Value::from(well));
    }
    Ok(Json(said))
}

/// `GET /api/v1/nas`: settings and operators' settings, without credentials and `vars`.
pub async fn nases(State(desk): State<Desk>, At(_): Viewer) -> Result<Json<Value>, Refusal> {
    let store = &desk.doors.store;
    let rows = store.nases().await.map_err(Refusal::store)?;
    let states = store.nas_states().await.map_err(Refusal::store)?;
    let now = clock::wall_ms();
    let list: Vec<Value> = rows
        .iter()
        .map(|row| match row {
            Ok(nas) => {
                let state = states.get(&nas.id).cloned().unwrap_or_default();
                nas_shown(nas, &state, now)
            }
            Err(bad) => json!({ "id": bad.id, "ip": bad.ip, "error": bad.reason }),
        })
        .collect();
    Ok(Json(json!({ "nas": list })))
}

fn nas_shown(nas: &Nas, state: &NasState, now: i64) -> Value {
    let paused = state.paused(now);
    let planned = state.paused_from_ms.filter(|from| *from > now);
    let until = paused.filter(|until| *until != i64::MAX);
    json!({
        "id": nas.id,
        "name": nas.name,
        "ip": nas.ip,
        "mode": nas.mode,
        "mode_override": state.mode,
        "forks": nas.forks,
        "forks_override": state.forks,
        "oss_path": nas.oss_path,
        "script_name": nas.script_name,
        "max_sessions": nas.max_sessions,
        "max_rate": nas.max_rate,
        "timeout_ms": nas.timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        "on_error": nas.on_error,
        "http_url": nas.http_url.as_deref().map(shown_url),
        "paused": paused.is_some(),
        "paused_until": until.map(clock::utc_text),
        "pause_planned": planned.map(clock::utc_text),
        "pause_reason": paused.map(|_| state.pause_reason.as_str()),
    })
}

/// `POST /api/v1/nas/{id}/pause`, body `{"reason", "for", "at"}`: nothing new is started there, from
/// now or from that moment on.
pub async fn pause(
    State(desk): State<Desk>,
    At(caller): Operator,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let order = order(request, &["reason", "why", "for", "at"]).await?;
    let reason = why(&order)?;
    let length = match order.get("for") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(
            config::parse_duration(text).map_err(|e| Refusal::malformed(format!("for: {e}")))?,
        ),
        Some(_) => {
            return Err(Refusal::malformed(
                "for is not a duration like \"30m\"".to_owned(),
            ));
        }
    };
    let now = clock::wall_ms();
    let from = match order.get("at") {
        None | Some(Value::Null) => None,
        Some(at) => Some(
            at.as_str()
                .and_then(compact::time_ms)
                .filter(|at| *at > now)
                .ok_or_else(|| {
                    Refusal::malformed(
                        "at is no moment to come, YYYY-MM-DD HH:MM:SS, UTC".to_owned(),
                    )
                })?,
        ),
    };
    let until = length.map_or(i64::MAX, |length| {
        let ms = i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
        from.unwrap_or(now).saturating_add(ms)
    });
    let shown = |name: &str| order.get(name).unwrap_or(&Value::Null).to_string();
    let mut detail = format!("for={} reason={reason:?}", shown("for"));
    if from.is_some() {
        detail.insert_str(0, &format!("at={} ", shown("at")));
    }
    let change = NasChange::Pause {
        from,
        until,
        reason,
    };
    change_nas(desk, caller.who, &id, "nas_pause", detail, change).await
}

/// `POST /api/v1/nas/{id}/resume`: ends a pause; a NAS that did not obey is tried at once.
pub async fn resume(
    State(desk): State<Desk>,
    At(caller): Operator,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let why = only_why(request).await?;
    let (what, resumed) = ("nas_resume", desk.doors.resumed.clone());
    let detail = reasoned(String::new(), &why);
    let shown = change_nas(desk, caller.who, &id, what, detail, NasChange::Resume).await?;
    if let Some(resumed) = resumed {
        // Fails only when the scheduler has ended.
        let _ = resumed.send(NasId(number(&id)?)).await;
    }
    Ok(shown)
}

/// Changes the operator's settings of one NAS.
pub async fn change_nas(
    desk: Desk,
    who: String,
    id: &str,
    what: &'static str,
    detail: String,
    change: NasChange,
) -> Result<Json<Value>, Refusal> {
    let id = NasId(number(id)?);
    let shown = rest::to_the_end(&desk, move |desk| async move {
        let store = &desk.doors.store;
        let rows = store.nases().await.map_err(Refusal::store)?;
        let known = rows.iter().find(|row| match row {
            Ok(nas) => nas.id == id,
            Err(bad) => bad.id == id,
        });
        if known.is_none() {
            return Err(Refusal::not_found(
                format!("there is no NAS {id}"),
                "GET /api/v1/nas lists them",
            ));
        }
        let changed = store.change_nas(id, &change).await;
        changed.map_err(Refusal::store)?;
        let mut states = store.nas_states().await.map_err(Refusal::store)?;
        let state = states.remove(&id).unwrap_or_default();
        // Its mode may be another one now.
        let rows = store.nases().await.map_err(Refusal::store)?;
        let known = rows.iter().find(|row| match row {
            Ok(nas) => nas.id == id,
            Err(bad) => bad.id == id,
        });
        desk.doors.reload.notify_one();
        let detail = format!("nas={id} {detail}");
        let detail = detail.trim_end().to_owned();
        desk.trail.note(store.as_ref(), &who, what, detail).await;
        Ok(match known {
            Some(Ok(nas)) => nas_shown(nas, &state, clock::wall_ms()),
            Some(Err(bad)) => json!({ "id": bad.id, "ip": bad.ip, "error": bad.reason }),
            None => json!({ "id": id, "error": "its row is gone" }),
        })
    })
    .await?;
    Ok(Json(shown))
}

/// `GET /api/v1/nas/{id}`: one NAS, with what the dispatcher says of it.
pub async fn nas(
    State(desk): State<Desk>,
    At(caller): Viewer,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let wanted = number(&id)?;
    let Json(all) = nases(State(Arc::clone(&desk)), At(caller)).await?;
    let list = all.get("nas").and_then(Value::as_array);
    let found = list
        .into_iter()
        .flatten()
        .find(|nas| nas.get("id") == Some(&json!(wanted)));
    let mut nas = found.cloned().ok_or_else(|| {
        Refusal::not_found(
            format!("there is no NAS {wanted}"),
            "GET /api/v1/nas lists them",
        )
    })?;
    let status = desk
        .doors
        .dispatch
        .as_ref()
        .map(|say| say())
        .unwrap_or_default();
    let live = status.get("nases").and_then(Value::as_array);
    let live = live
        .into_iter()
        .flatten()
        .find(|nas| nas.get("id") == Some(&json!(wanted)));
    if let Some(map) = nas.as_object_mut() {
        map.insert("dispatch".to_owned(), live.cloned().unwrap_or_default());
    }
    Ok(Json(nas))
}

/// `POST /api/v1/nas/{id}/forks`, body `{"forks": 10, "why"}`; null for what the billing says.
pub async fn forks(
    State(desk): State<Desk>,
    At(caller): Operator,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let order = order(request, &["forks", "why", "reason"]).await?;
    let why = why(&order)?;
    let wrong = || Refusal::malformed(format!("forks is not 1..{}, or null", Forks::MAX));
    let forks = match order.get("forks") {
        None => return Err(wrong()),
        Some(Value::Null) => None,
        Some(value) => {
            let number = value
                .as_i64()
                .filter(|n| (1..=i64::from(Forks::MAX)).contains(n));
            Some(number.ok_or_else(wrong)?)
        }
    };
    let detail = reasoned(
        format!(
            "forks={}",
            forks.map_or_else(|| "default".to_owned(), |n| n.to_string())
        ),
        &why,
    );
    let change = NasChange::Forks(forks);
    change_nas(desk, caller.who, &id, "nas_forks", detail, change).await
}

/// `POST /api/v1/nas/{id}/mode`, body `{"mode": "active"}` or `observe`; null for what the billing
/// says. What the billing has switched off stays off.
pub async fn mode(
    State(desk): State<Desk>,
    At(caller): Operator,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let order = order(request, &["mode", "why", "reason"]).await?;
    let why = why(&order)?;
    let mode = match order.get("mode") {
        Some(Value::Null) => None,
        Some(Value::String(word)) if word == Mode::Active.as_str() => Some(Mode::Active),
        Some(Value::String(word)) if word == Mode::Observe.as_str() => Some(Mode::Observe),
        _ => {
            return Err(Refusal::malformed(
                "mode is not active, observe or null".to_owned(),
            ));
        }
    };
    if mode.is_some() {
        let rows = desk.doors.store.nases().await.map_err(Refusal::store)?;
        let is_off = |nas: &Nas| id.parse() == Ok(nas.id.0) && nas.mode == Mode::Off;
        if rows.iter().flatten().any(is_off) {
            return Err(Refusal::new(
                400,
                "refused",
                format!("the billing says nas.mode = 'off' for NAS {id}"),
                "set it to active or observe there first",
            ));
        }
    }
    let detail = format!("mode={}", mode.map_or("default", Mode::as_str));
    let detail = reasoned(detail, &why);
    let change = NasChange::Mode(mode);
    change_nas(desk, caller.who, &id, "nas_mode", detail, change).await
}
