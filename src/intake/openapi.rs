//! `GET /api/openapi.json`: the description of every path, kept by hand beside the router and
//! held against it by a test. OpenAPI 3.1.

use axum::Json;
use serde_json::{Map, Value, json};

use crate::intake::api;
use crate::intake::schemas::{self, reference, whole};

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
        "components": { "securitySchemes": securities(), "schemas": schemas::all() },
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
        "/healthz": { "get": open("The parent loop turns", &[("200", "Alive"), ("503", "Error")]) },
        "/readyz": { "get": open("The database answers and has room", &[("200", "Ready"), ("503", "Error")]) },
        "/metrics": { "get": {
            "summary": "Prometheus text format; without a token on loopback",
            "responses": { "200": { "description": "Numbers",
                "content": { "text/plain": { "schema": { "type": "string" } } } },
                "401": failed(), "404": failed() } } },
        "/metrics/detailed": { "get": {
            "summary": "The series of each NAS, however many there are; without a token on loopback",
            "parameters": [query("nas", "string", "only of these: nas.id between commas")],
            "responses": { "200": { "description": "Numbers",
                "content": { "text/plain": { "schema": { "type": "string" } } } },
                "400": failed(), "401": failed(), "404": failed() } } },
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
        "/api/openapi.json": { "get": open("This document", &[("200", "")]) },
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
                    query("plan", "boolean", "store nothing, say what it would do"),
                    idempotency_key(),
                ],
                "responses": also(responses("201", reference("Posted")), "200", "Plan"),
            }), &["application/json"], json!({ "oneOf": [
                reference("NewEvent"),
                { "type": "object", "required": ["events"], "additionalProperties": false,
                  "properties": { "events": { "type": "array", "items": reference("NewEvent") } } }
            ] })),
        },
        "/api/v1/events/bulk": { "post": with_body(json!({
            "summary": "Posts many events as a stream, 1000 in one transaction",
            "parameters": [query("batch_id", "string", "default: a new one"),
                query("plan", "boolean", "store nothing, say what it would do"), idempotency_key()],
            "responses": responses("200", json!({ "oneOf": [reference("Bulk"), reference("Plan")] })),
        }), &["application/x-ndjson", "text/csv"], json!({ "type": "string" })) },
        "/api/v1/events/{id}": { "parameters": [id.clone()],
            "get": answered("One event, wherever it is, why it waits, and its attempts", "200", reference("EventDetail")) },
        "/api/v1/events/{id}/retry": { "parameters": [id.clone()],
            "post": with_optional_body(
                answered("Posts a dead event anew", "201", reference("Retried")), reason()) },
        "/api/v1/events/{id}/drop": { "parameters": [id.clone()],
            "post": with_optional_body(
                answered("Removes an event that is not running; with a state only if it is in that", "200",
                    reference("Dropped")),
                reasoned(json!({ "type": "object", "additionalProperties": false,
                    "properties": { "state": { "type": "string" } } }))) },
        "/api/v1/events/retry": { "post": with_optional_body(
            json!({ "summary": "Posts dead events that fit anew; dry_run counts, spread takes its time",
                "responses": also(responses("200", reference("RetriedMany")), "202", "Spread") }), crowd_body(&["spread"])) },
        "/api/v1/events/drop": { "post": with_optional_body(
            answered("Removes events that fit and do not run; dry_run counts", "200",
                reference("DroppedMany")), crowd_body(&[])) },
        "/api/v1/batches/{batch}": {
            "parameters": [{ "name": "batch", "in": "path", "required": true,
                "schema": { "type": "string" } }],
            "get": answered("Progress of a bulk call", "200", reference("Batch")) },
        "/api/v1/accounts/{id}": { "parameters": [id.clone()],
            "get": answered("What the billing wants of an account, and its events", "200",
                reference("Account")) },
        "/api/v1/accounts/{id}/history": { "parameters": [id.clone()],
            "get": { "summary": "Every event of an account that is kept, newest first",
                "parameters": history_parameters(),
                "responses": responses("200", reference("EventHistory")) } },
        "/api/v1/audit": { "get": { "summary": "Who changed what, newest first",
            "parameters": page_parameters(),
            "responses": responses("200", reference("AuditPage")) } },
        "/api/v1/nas/{id}": { "parameters": [id.clone()],
            "get": answered("One NAS, with what the dispatcher says of it", "200",
                reference("Nas")) },
        "/api/v1/nas/{id}/forks": { "parameters": [id.clone()],
            "post": with_optional_body(
                answered("Overrides the forks of a NAS; null ends it", "200", reference("Nas")),
                reasoned(json!({ "type": "object", "required": ["forks"], "additionalProperties": false,
                    "properties": { "forks": { "type": ["integer", "null"], "minimum": 1, "maximum": 100 } } }))) },
        "/api/v1/nas/{id}/mode": { "parameters": [id.clone()],
            "post": with_optional_body(
                answered("Lets a NAS act or only look on; null for what the billing says", "200", reference("Nas")),
                reasoned(json!({ "type": "object", "required": ["mode"], "additionalProperties": false,
                    "properties": { "mode": { "type": ["string", "null"], "enum": ["active", "observe", null] } } }))) },
        "/api/v1/nas": { "get": answered("All NASes", "200", reference("NasList")) },
        "/api/v1/nas/{id}/pause": { "parameters": [id.clone()],
            "post": with_optional_body(
                answered("Starts nothing new on a NAS", "200", reference("Nas")),
                reasoned(json!({ "type": "object", "additionalProperties": false, "properties": {
                    "at": { "type": "string", "description": "YYYY-MM-DD HH:MM:SS, UTC, to come; else now" },
                    "for": { "type": "string", "description": "like 30m; else until resumed" } } }))) },
        "/api/v1/nas/{id}/resume": { "parameters": [id.clone()],
            "post": with_optional_body(
                answered("Ends a pause", "200", reference("Nas")), reason()) },
        "/api/v1/nas/{id}/test": { "parameters": [id],
            "post": answered("Logs in and times one harmless command", "200", reference("NasTest")) },
        "/api/v1/logs/daemon": { "get": tailed("The end of the daemon log", None) },
        "/api/v1/logs/nas/{id}": { "get": tailed("The end of a NAS's log", Some(path_id())) },
        "/api/v1/logs/accounts/{id}": { "get": tailed("The end of an account's log", Some(path_id())) },
        "/api/v1/reload": {
            "post": with_optional_body(
                answered("Reads NAS settings now", "202", reference("Reload")), reason()) },
        "/api/v1/status": {
            "get": answered("The stacks in numbers", "200", reference("Status")) },
    })
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
            "compact, ready, running, deferred, held, dead, done or all",
        ),
        query("nas", "integer", "only this NAS"),
        query("user", "integer", "only this account"),
        query("abonent", "integer", "only this abonent"),
        query("cmd", "string", "only this command"),
        query("batch", "string", "only this bulk call"),
        query(
            "error",
            "string",
            "only with this text in the error, in the same letter case",
        ),
        query("before", "integer", "next_before of the page before"),
        query("limit", "integer", "1..1000, default 100"),
    ]
}

fn history_parameters() -> Vec<Value> {
    let mut all = page_parameters();
    all.push(query(
        "from",
        "string",
        "accepted then or later: YYYY-MM-DD or YYYY-MM-DD HH:MM:SS, UTC",
    ));
    all.push(query("to", "string", "accepted before: the same forms"));
    all
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
        "state": { "type": "string" }, "nas": whole(), "user": whole(), "abonent": whole(),
        "cmd": { "type": "string" }, "batch": { "type": "string" }, "error": { "type": "string" }, "dry_run": { "type": "boolean" },
    });
    if let Some(map) = properties.as_object_mut() {
        for name in more {
            map.insert((*name).to_owned(), json!({ "type": "string" }));
        }
    }
    reasoned(
        json!({ "type": "object", "required": ["state"], "additionalProperties": false,
        "properties": properties }),
    )
}

/// A body that only says why.
fn reason() -> Value {
    reasoned(json!({ "type": "object", "additionalProperties": false, "properties": {} }))
}

/// A body that also says why, by either name.
fn reasoned(mut body: Value) -> Value {
    if let Some(properties) = body.get_mut("properties").and_then(Value::as_object_mut) {
        for name in api::REASON {
            let text =
                json!({ "type": "string", "maxLength": 500, "description": "why, for the audit" });
            properties.insert(name.to_owned(), text);
        }
    }
    body
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

fn open(summary: &str, codes: &[(&str, &str)]) -> Value {
    let answers: Map<String, Value> = codes
        .iter()
        .map(|(code, name)| {
            let schema = match *name {
                "" => json!({ "type": "object" }),
                name => reference(name),
            };
            ((*code).to_owned(), json_answer(&schema))
        })
        .chain([("default".to_owned(), failed())])
        .collect();
    json!({ "summary": summary, "security": [], "responses": answers })
}

/// One more good answer.
fn also(mut responses: Value, code: &str, name: &str) -> Value {
    if let Some(map) = responses.as_object_mut() {
        map.insert(code.to_owned(), json_answer(&reference(name)));
    }
    responses
}

/// The end of a log: JSON, or events for as long as the client listens.
fn tailed(summary: &str, id: Option<Value>) -> Value {
    let mut parameters = vec![
        query("lines", "integer", "0..1000, default 50"),
        query("follow", "boolean", "go on with server-sent events"),
    ];
    parameters.extend(id);
    json!({ "summary": summary, "parameters": parameters, "responses": {
        "200": { "description": "Done", "content": {
            "application/json": { "schema": reference("Tail") },
            "text/event-stream": { "schema": { "type": "string" } } } },
        "default": failed() } })
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
