//! `GET /api/openapi.json`: the description of every path, kept by hand beside the router and
//! held against it by a test. OpenAPI 3.1.

use axum::Json;
use serde_json::{Map, Value, json};

use crate::intake::compact;

/// The document, for anybody: it says what exists, not what is in it.
pub async fn served() -> Json<Value> {
    Json(document())
}

/// The document.
pub fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "nas_event_daemon",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Events for subscribers in, every NAS obeys. 2xx means committed."
        },
        "security": [{ "token": [] }],
        "components": { "securitySchemes": securities(), "schemas": schemas() },
        "paths": paths(),
    })
}

fn securities() -> Value {
    json!({ "token": { "type": "http", "scheme": "bearer",
        "description": "nas_event_daemon token create NAME --scope viewer|support|operator|admin" } })
}

fn paths() -> Value {
    let id = path_id();
    json!({
        "/healthz": { "get": open("The parent loop turns", &["200", "503"]) },
        "/readyz": { "get": open("The database answers", &["200", "503"]) },
        "/metrics": { "get": {
            "summary": "Prometheus text format; without a token on loopback",
            "responses": { "200": { "description": "Numbers",
                "content": { "text/plain": { "schema": { "type": "string" } } } },
                "401": failed(), "404": failed() } } },
        "/rest_api/v2/": { "get": classic("The models of the classic API") },
        "/rest_api/v2/{model}/": {
            "parameters": [{ "name": "model", "in": "path", "required": true,
                "schema": { "type": "string" } }],
            "get": classic("Fields and methods of one model"),
            "post": with_body(
                classic("method1=objects.create&arg1={\"user_id\": 1424,\"cmd\":\"user_add\"}"),
                &["application/x-www-form-urlencoded", "application/json"],
                json!({ "type": ["object", "string"] }),
            )
        },
        "/api/openapi.json": { "get": open("This document", &["200"]) },
        "/api/v1/events": {
            "get": {
                "summary": "Events of one state (or compact and main stack), newest first",
                "parameters": list_parameters(),
                "responses": responses("200", reference("EventPage")),
            },
            "post": with_body(json!({
                "summary": "Posts one event or a list, all or nothing",
                "parameters": [
                    query("wait", "string", "at most 60s: wait for the outcome and the answer"),
                    idempotency_key(),
                ],
                "responses": responses("201", reference("Posted")),
            }), &["application/json"], json!({ "oneOf": [
                reference("NewEvent"),
                { "type": "object", "required": ["events"], "additionalProperties": false,
                  "properties": { "events": { "type": "array", "items": reference("NewEvent") } } }
            ] })),
        },
        "/api/v1/events/bulk": { "post": with_body(json!({
            "summary": "Posts many events as a stream, 1000 in one transaction",
            "parameters": [query("batch_id", "string", "default: a new one"), idempotency_key()],
            "responses": responses("200", reference("Bulk")),
        }), &["application/x-ndjson", "text/csv"], json!({ "type": "string" })) },
        "/api/v1/events/{id}": { "parameters": [id.clone()],
            "get": answered("One event, wherever it is", "200", reference("Event")) },
        "/api/v1/events/{id}/retry": { "parameters": [id.clone()],
            "post": answered("Posts a dead event anew", "201", json!({ "type": "object",
                "properties": { "id": whole(), "retried_from": whole() } })) },
        "/api/v1/events/{id}/drop": { "parameters": [id.clone()],
            "post": with_optional_body(
                answered("Removes an event that is not running", "200", json!({ "type": "object" })),
                json!({ "type": "object", "additionalProperties": false,
                    "properties": { "why": { "type": "string", "maxLength": 500 } } })) },
        "/api/v1/events/retry": { "post": with_optional_body(
            answered("Posts dead events that fit anew; dry_run counts, spread takes its time", "200",
                json!({ "type": "object" })), crowd_body(&["spread"])) },
        "/api/v1/events/drop": { "post": with_optional_body(
            answered("Removes events that fit and do not run; dry_run counts", "200",
                json!({ "type": "object" })), crowd_body(&["why"])) },
        "/api/v1/batches/{batch}": {
            "parameters": [{ "name": "batch", "in": "path", "required": true,
                "schema": { "type": "string" } }],
            "get": answered("Progress of a bulk call", "200", json!({ "type": "object" })) },
        "/api/v1/accounts/{id}": { "parameters": [id.clone()],
            "get": answered("What the billing wants of an account, and its events", "200",
                json!({ "type": "object" })) },
        "/api/v1/accounts/{id}/history": { "parameters": [id.clone()],
            "get": { "summary": "Every event of an account that is kept, newest first",
                "parameters": page_parameters(),
                "responses": responses("200", reference("EventPage")) } },
        "/api/v1/audit": { "get": { "summary": "Who changed what, newest first",
            "parameters": page_parameters(),
            "responses": responses("200", json!({ "type": "object" })) } },
        "/api/v1/nas/{id}": { "parameters": [id.clone()],
            "get": answered("One NAS, with what the dispatcher says of it", "200",
                json!({ "type": "object" })) },
        "/api/v1/nas/{id}/forks": { "parameters": [id.clone()],
            "post": with_optional_body(
                answered("Overrides the forks of a NAS; null ends it", "200", json!({ "type": "object" })),
                json!({ "type": "object", "required": ["forks"], "additionalProperties": false,
                    "properties": { "forks": { "type": ["integer", "null"], "minimum": 1, "maximum": 100 } } })) },
        "/api/v1/nas": { "get": answered("All NASes", "200", json!({ "type": "object" })) },
        "/api/v1/nas/{id}/pause": { "parameters": [id.clone()],
            "post": with_optional_body(
                answered("Starts nothing new on a NAS", "200", json!({ "type": "object" })),
                json!({ "type": "object", "additionalProperties": false, "properties": {
                    "reason": { "type": "string", "maxLength": 500 },
                    "for": { "type": "string", "description": "like 30m; else until resumed" } } })) },
        "/api/v1/nas/{id}/resume": { "parameters": [id],
            "post": answered("Ends a pause", "200", json!({ "type": "object" })) },
        "/api/v1/reload": {
            "post": answered("Reads NAS settings now", "202", json!({ "type": "object" })) },
        "/api/v1/status": {
            "get": answered("The stacks in numbers", "200", json!({ "type": "object" })) },
    })
}

fn schemas() -> Value {
    let fields: Map<String, Value> = compact::FIELDS
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), field_schema(kind)))
        .collect();
    json!({
        "NewEvent": { "type": "object", "required": ["cmd"], "additionalProperties": false,
            "description": "Needs user_id, or a NAS for an event of the NAS as a whole",
            "properties": fields },
        "Posted": { "type": "object", "required": ["ids"], "properties": {
            "ids": { "type": "array", "items": whole() },
            "final": { "type": "boolean" },
            "events": { "type": "array", "items": { "type": "object" } } } },
        "Bulk": { "type": "object",
            "required": ["batch_id", "accepted", "rejected", "rejected_total"],
            "properties": {
                "batch_id": { "type": "string" }, "accepted": whole(), "rejected_total": whole(),
                "rejected": { "type": "array", "items": { "type": "object", "properties": {
                    "line": whole(), "error": { "type": "string" } } } } } },
        "Event": { "type": "object", "required": ["id", "place", "state", "cmd"], "properties": {
            "id": whole(), "place": { "type": "string" }, "state": { "type": "string" },
            "cmd": { "type": "string" }, "event_date_ms": whole() } },
        "EventPage": { "type": "object", "required": ["events", "next_before"], "properties": {
            "events": { "type": "array", "items": reference("Event") },
            "next_before": { "type": ["integer", "null"] } } },
        "Error": { "type": "object", "required": ["error"], "properties": { "error": {
            "type": "object", "required": ["code", "message", "hint"], "properties": {
                "code": { "type": "string" }, "message": { "type": "string" },
                "hint": { "type": "string" } } } } },
        "Classic": { "type": "object", "required": ["call"], "properties": {
            "call": { "type": "string" }, "result": {}, "error": { "type": "string" } } },
    })
}

fn field_schema(kind: &str) -> Value {
    match kind {
        "integer" => json!({ "type": ["integer", "string", "null"] }),
        "boolean" => json!({ "type": ["boolean", "integer", "string", "null"] }),
        "object" => json!({ "type": ["object", "string", "null"] }),
        "datetime" => json!({ "type": ["string", "null"],
            "description": "YYYY-MM-DD HH:MM:SS, YYYY-MM-DD (both UTC), or RFC 3339" }),
        _ => json!({ "type": ["string", "null"] }),
    }
}

fn whole() -> Value {
    json!({ "type": "integer", "format": "int64" })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn path_id() -> Value {
    json!({ "name": "id", "in": "path", "required": true, "schema": whole() })
}

fn query(name: &str, kind: &str, description: &str) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": { "type": kind } })
}

fn list_parameters() -> Vec<Value> {
    vec![
        query(
            "state",
            "string",
            "compact, ready, running, deferred, held, dead or done",
        ),
        query("nas", "integer", "only this NAS"),
        query("user", "integer", "only this account"),
        query("cmd", "string", "only this command"),
        query("batch", "string", "only this bulk call"),
        query("before", "integer", "next_before of the page before"),
        query("limit", "integer", "1..1000, default 100"),
    ]
}

fn page_parameters() -> Vec<Value> {
    vec![
        query("before", "integer", "next_before of the page before"),
        query("limit", "integer", "1..1000, default 100"),
    ]
}

/// The body of an order for all events that fit.
fn crowd_body(more: &[&str]) -> Value {
    let mut properties = json!({
        "state": { "type": "string" }, "nas": whole(), "user": whole(),
        "cmd": { "type": "string" }, "batch": { "type": "string" }, "dry_run": { "type": "boolean" },
    });
    if let Some(map) = properties.as_object_mut() {
        for name in more {
            map.insert((*name).to_owned(), json!({ "type": "string" }));
        }
    }
    json!({ "type": "object", "required": ["state"], "additionalProperties": false,
        "properties": properties })
}

fn idempotency_key() -> Value {
    json!({ "name": "Idempotency-Key", "in": "header", "schema": { "type": "string" },
        "description": "the same key and body within 24 h give the same ids; another body 409" })
}

fn failed() -> Value {
    json!({ "description": "Refused",
        "content": { "application/json": { "schema": reference("Error") } } })
}

fn json_answer(schema: &Value) -> Value {
    json!({ "description": "Done", "content": { "application/json": { "schema": schema } } })
}

fn responses(good: &str, schema: Value) -> Value {
    let mut map = Map::new();
    map.insert(good.to_owned(), json_answer(&schema));
    map.insert("default".to_owned(), failed());
    Value::Object(map)
}

fn answered(summary: &str, good: &str, schema: Value) -> Value {
    json!({ "summary": summary, "responses": responses(good, schema) })
}

fn open(summary: &str, codes: &[&str]) -> Value {
    let answers: Map<String, Value> = codes
        .iter()
        .map(|code| {
            (
                (*code).to_owned(),
                json_answer(&json!({ "type": "object" })),
            )
        })
        .collect();
    json!({ "summary": summary, "security": [], "responses": answers })
}

fn classic(summary: &str) -> Value {
    let answer = json_answer(&reference("Classic"));
    json!({ "summary": summary, "description": "Also without a token from http.open_from",
        "responses": { "200": answer.clone(), "default": answer } })
}

fn with_body(mut operation: Value, kinds: &[&str], schema: Value) -> Value {
    let content: Map<String, Value> = kinds
        .iter()
        .map(|kind| ((*kind).to_owned(), json!({ "schema": schema })))
        .collect();
    if let Some(map) = operation.as_object_mut() {
        let body = json!({ "required": true, "content": content });
        map.insert("requestBody".to_owned(), body);
    }
    operation
}

fn with_optional_body(mut operation: Value, schema: Value) -> Value {
    if let Some(map) = operation.as_object_mut() {
        let body = json!({ "content": { "application/json": { "schema": schema } } });
        map.insert("requestBody".to_owned(), body);
    }
    operation
}
