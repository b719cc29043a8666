//! The shapes of `/api/v1` for the OpenAPI document: what each answer holds, and nothing that is
//! not listed here (`additionalProperties: false`), so that a judge from outside notices when
//! document and answers part.

use serde_json::{Map, Value, json};

use crate::intake::compact;

/// All of them, by name.
pub fn all() -> Value {
    let fields: Map<String, Value> = compact::FIELDS
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), field_schema(kind)))
        .collect();
    let event = [
        ("id", "int"),
        ("place", "text"),
        ("state", "text"),
        ("cmd", "text"),
        ("user_id", "int?"),
        ("abonent_id", "int?"),
        ("nas_id", "int?"),
        ("source", "text?"),
        ("batch_id", "text?"),
        ("event_date_ms", "int"),
        ("try_count", "int"),
        ("next_try_ms", "int?"),
        ("ended_ms", "int?"),
        ("possible_duplicate", "bool"),
        ("code", "int?"),
        ("error", "text?"),
        ("ms", "int?"),
        ("retried_as", "int?"),
        ("scheme_hash", "text?"),
    ];
    let detail: Vec<_> = event
        .into_iter()
        .chain([
            ("answer", "text?"),
            ("params", "any"),
            ("why", "text?"),
            ("attempts", "[Attempt]"),
        ])
        .collect();
    let list: [(&str, Vec<(&str, &str)>); 23] = [
        ("Event", event.to_vec()),
        ("EventDetail", detail),
        (
            "Attempt",
            vec![
                ("try", "int"),
                ("started", "text?"),
                ("ended", "text?"),
                ("result", "text?"),
                ("code", "int?"),
                ("ms", "int?"),
                ("error", "text?"),
                ("lines", "[text]"),
            ],
        ),
        (
            "Outcome",
            vec![
                ("id", "int"),
                ("place", "text"),
                ("state", "text"),
                ("code", "int?"),
                ("error", "text?"),
                ("ms", "int?"),
                ("answer", "text?"),
            ],
        ),
        (
            "EventPage",
            vec![
                ("events", "[Event]"),
                ("next_before", "int?"),
                ("time_is_up", "bool"),
            ],
        ),
        (
            "EventHistory",
            vec![("events", "[Event]"), ("next_before", "int?")],
        ),
        ("Retried", vec![("id", "int"), ("retried_from", "int")]),
        ("Dropped", vec![("id", "int"), ("result", "text")]),
        (
            "Bulk",
            vec![
                ("batch_id", "text"),
                ("accepted", "int"),
                ("rejected", "[Rejected]"),
                ("rejected_total", "int"),
            ],
        ),
        ("Rejected", vec![("line", "int"), ("error", "text")]),
        (
            "Batch",
            vec![
                ("batch_id", "text"),
                ("events", "int"),
                ("ended", "int"),
                ("finished", "bool"),
                ("states", "any"),
            ],
        ),
        (
            "Account",
            vec![
                ("account", "AccountFlags"),
                ("waiting", "[Event]"),
                ("dead", "[Event]"),
                ("done", "[Event]"),
            ],
        ),
        (
            "AccountFlags",
            vec![
                ("user_id", "int"),
                ("nas_id", "int?"),
                ("deleted", "bool"),
                ("accept", "bool"),
                ("redirect", "bool"),
                ("rated", "bool"),
            ],
        ),
        (
            "AuditPage",
            vec![("audit", "[AuditRow]"), ("next_before", "int?")],
        ),
        (
            "AuditRow",
            vec![
                ("id", "int"),
                ("at", "text"),
                ("who", "text"),
                ("what", "text"),
                ("detail", "text"),
            ],
        ),
        ("NasList", vec![("nas", "[Nas]")]),
        (
            "NasTest",
            vec![
                ("id", "int"),
                ("well", "bool"),
                ("code", "int"),
                ("said", "[text]"),
                ("error", "text?"),
            ],
        ),
        ("Tail", vec![("lines", "[text]")]),
        ("Reload", vec![("reload", "text")]),
        (
            "Status",
            vec![
                ("version", "text"),
                ("up_ms", "int"),
                ("parent_turned_ms_ago", "int"),
                ("compact", "int"),
                ("unexpandable", "int"),
                ("main", "any"),
                ("by_nas", "[any]"),
                ("dead", "int"),
                ("oldest_s", "int"),
                ("oldest_compact_s", "int"),
                ("oldest_by_nas", "[any]"),
                ("accounts", "int?"),
                ("intake", "Intake"),
                ("dispatch", "any"),
            ],
        ),
        ("Intake", vec![("high_water", "int"), ("limited", "bool")]),
        (
            "PlanOfNas",
            vec![
                ("nas_id", "int"),
                ("name", "text?"),
                ("events", "int"),
                ("accounts", "int"),
                ("waiting", "int"),
                ("forks", "int"),
                ("ms_each", "int"),
                ("measured", "bool"),
                ("seconds", "int"),
                ("stands_still", "text?"),
            ],
        ),
        ("Ready", vec![("status", "text")]),
    ];
    let mut schemas: Map<String, Value> = list
        .into_iter()
        .map(|(name, fields)| (name.to_owned(), shape(&fields, &[])))
        .collect();
    let more = [
        (
            "NewEvent",
            json!({ "type": "object", "required": ["cmd"], "additionalProperties": false,
                "description": "Needs user_id, or a NAS for an event of the NAS as a whole",
                "properties": fields }),
        ),
        (
            "Posted",
            shape(
                &[("ids", "[int]")],
                &[("final", "bool"), ("events", "[Outcome]")],
            ),
        ),
        (
            "Plan",
            shape(
                &[
                    ("plan", "bool"),
                    ("events", "int"),
                    ("by_cmd", "any"),
                    ("unknown_accounts", "int"),
                    ("without_nas", "int"),
                    ("nas", "[PlanOfNas]"),
                    ("seconds", "int"),
                    ("above_high_water", "bool"),
                    ("guard", "any"),
                ],
                &[("rejected", "[Rejected]"), ("rejected_total", "int")],
            ),
        ),
        (
            "RetriedMany",
            shape(
                &[],
                &[
                    ("dry_run", "bool"),
                    ("events", "int"),
                    ("retried", "int"),
                    ("skipped", "int"),
                ],
            ),
        ),
        (
            "Spread",
            shape(&[("events", "int"), ("spread_s", "int")], &[]),
        ),
        (
            "DroppedMany",
            shape(
                &[],
                &[
                    ("dry_run", "bool"),
                    ("events", "int"),
                    ("dropped", "int"),
                    ("skipped", "int"),
                ],
            ),
        ),
        (
            "Nas",
            shape(
                &[("id", "int"), ("ip", "text")],
                &[
                    ("error", "text"),
                    ("name", "text"),
                    ("mode", "text"),
                    ("mode_override", "text?"),
                    ("forks", "int"),
                    ("forks_override", "int?"),
                    ("mode_override", "text?"),
                    ("oss_path", "text?"),
                    ("script_name", "text?"),
                    ("max_sessions", "int?"),
                    ("max_rate", "any"),
                    ("timeout_ms", "int?"),
                    ("on_error", "text?"),
                    ("http_url", "text?"),
                    ("paused", "bool"),
                    ("paused_until", "text?"),
                    ("pause_planned", "text?"),
                    ("pause_reason", "text?"),
                    ("dispatch", "any"),
                ],
            ),
        ),
        (
            "Alive",
            shape(&[("status", "text"), ("parent_turned_ms_ago", "int")], &[]),
        ),
        (
            "Error",
            // A bulk call that failed half way says what it stored, beside the error.
            json!({ "type": "object", "required": ["error"], "properties": {
                "error": shape(&[("code", "text"), ("number", "text"), ("message", "text"),
                    ("hint", "text")], &[]) } }),
        ),
        (
            "Classic",
            json!({ "type": "object", "required": ["call"], "properties": {
                "call": { "type": "string" }, "result": {}, "error": { "type": "string" },
                "next_offset": whole() } }),
        ),
    ];
    for (name, schema) in more {
        schemas.insert(name.to_owned(), schema);
    }
    Value::Object(schemas)
}

/// An object: fields that are always there, and those that may be.
fn shape(always: &[(&str, &str)], perhaps: &[(&str, &str)]) -> Value {
    let properties: Map<String, Value> = always
        .iter()
        .chain(perhaps)
        .map(|(name, kind)| ((*name).to_owned(), kind_schema(kind)))
        .collect();
    let required: Vec<&str> = always.iter().map(|(name, _)| *name).collect();
    json!({ "type": "object", "required": required, "additionalProperties": false,
        "properties": properties })
}

/// `int`, `text`, `bool`, `any`, with `?` where it may be null, `[…]` for lists, or a name.
fn kind_schema(kind: &str) -> Value {
    if let Some(inner) = kind.strip_prefix('[').and_then(|k| k.strip_suffix(']')) {
        return json!({ "type": "array", "items": kind_schema(inner) });
    }
    match kind {
        "int" => whole(),
        "int?" => json!({ "type": ["integer", "null"] }),
        "text" => json!({ "type": "string" }),
        "text?" => json!({ "type": ["string", "null"] }),
        "bool" => json!({ "type": "boolean" }),
        "any" => json!({}),
        name => reference(name),
    }
}

/// A whole number of 64 bits.
pub fn whole() -> Value {
    json!({ "type": "integer", "format": "int64" })
}

/// A schema by its name.
pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_is_referred_to_is_there() {
        let all = all();
        let text = all.to_string();
        let mut named = 0;
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(all.get(name).is_some(), "{name}");
            named += 1;
        }
        assert!(named > 10);
        assert_eq!(all["Event"]["additionalProperties"], false);
        assert_eq!(
            all["EventDetail"]["properties"]["attempts"]["items"]["$ref"],
            "#/components/schemas/Attempt"
        );
    }
}
