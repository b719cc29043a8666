//! What a producer asks for, one JSON object, into a checked [`CompactEvent`]. Pure: the
//! classic API, the modern one and bulk calls share it, so that a field means the same at
//! every door. Nothing is guessed: an unknown field, an empty number or an unknown command is
//! an error that names it.

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde_json::{Map, Value};

use crate::event::{self, CATALOGUE, Cmd, CompactEvent, POSTER_END, poster};
use crate::intake::json;

/// Every field that a producer may give, with its type, as the model pages show them.
pub const FIELDS: &[(&str, &str)] = &[
    ("cmd", "text"),
    ("user_id", "integer"),
    ("abonent_id", "integer"),
    ("nas_id", "integer"),
    ("nas_ip", "text"),
    ("usluga_id", "integer"),
    ("acct_session_id", "text"),
    ("params", "object"),
    ("params_complete", "boolean"),
    ("owner_script", "text"),
    ("owner_function", "text"),
    ("source", "text"),
    ("batch_id", "text"),
    ("expires_at", "datetime"),
];

/// Longest text field, bytes: RADIUS session ids end at 253, the rest are names.
const TEXT_MAX: usize = 1024;

/// What the name of a caller begins with who came by the control socket.
const AT_THE_MACHINE: &str = "uid:";

/// Most characters of a wrong value that an error repeats.
const SHOWN_MAX: usize = 60;

/// Reads one event. `who` posts it; `cmds` are the commands outside the catalogue that loaded
/// schemes define.
pub fn read(value: Value, who: &str, cmds: &[Cmd]) -> Result<CompactEvent, String> {
    let Value::Object(map) = value else {
        return Err(format!(
            "an event is an object like {{\"user_id\": 1424, \"cmd\": \"user_add\"}}, not {}",
            shown(&value)
        ));
    };
    let mut event = CompactEvent::default();
    for (name, value) in map {
        put(&mut event, &name, value).map_err(|reason| format!("{name} {reason}"))?;
    }
    known_cmd(&event.cmd, cmds)?;
    if event.user_id.is_none() && event.nas_id.is_none() && event.nas_ip.is_none() {
        return Err(
            "user_id is missing (or nas_id, nas_ip for an event of a NAS as a whole)".to_owned(),
        );
    }
    event.source = Some(source(who, event.source));
    Ok(event)
}

/// Who posts, and behind it what the event itself says of its source: a token must not be able to
/// spread a burst over many names. Only who is at the machine may say in whose name.
fn source(who: &str, own: Option<String>) -> String {
    let Some(own) = own else {
        return who.to_owned();
    };
    if who.starts_with(AT_THE_MACHINE) || poster(&own) == who {
        return own;
    }
    format!("{who}{POSTER_END}{own}")
}

fn put(event: &mut CompactEvent, name: &str, value: Value) -> Result<(), String> {
    match name {
        "cmd" => match value {
            Value::String(cmd) => event.cmd = cmd,
            other => {
                return Err(format!(
                    "is {}, expected the name of a command",
                    shown(&other)
                ));
            }
        },
        "user_id" => event.user_id = account(&value)?,
        "abonent_id" => event.abonent_id = integer(&value)?,
        "nas_id" => event.nas_id = integer(&value)?,
        // One that is empty by mistake would send the event to another NAS.
        "nas_ip" if value == "" => return Err("is empty; leave it out instead".to_owned()),
        "nas_ip" => event.nas_ip = text(value)?,
        "usluga_id" => event.usluga_id = integer(&value)?,
        "acct_session_id" => event.acct_session_id = text(value)?,
        "params" => event.params = params(value)?,
        "params_complete" => event.params_complete = boolean(&value)?,
        "owner_script" => event.owner_script = text(value)?,
        "owner_function" => event.owner_function = text(value)?,
        "source" => event.source = text(value)?,
        "batch_id" => event.batch_id = text(value)?,
        "expires_at" => event.expires_at_ms = time(value)?,
        _ => {
            let known: Vec<_> = FIELDS.iter().map(|(name, _)| *name).collect();
            return Err(format!("is not a field; known: {}", known.join(", ")));
        }
    }
    Ok(())
}

/// The command exists: in the catalogue, or in a loaded scheme.
fn known_cmd(text: &str, cmds: &[Cmd]) -> Result<(), String> {
    if text.is_empty() {
        return Err("cmd is missing".to_owned());
    }
    let cmd = Cmd::parse(text)?;
    if cmd.in_catalogue() || cmds.contains(&cmd) {
        return Ok(());
    }
    let names = CATALOGUE
        .iter()
        .map(|(name, _)| *name)
        .chain(cmds.iter().map(Cmd::as_str));
    let near = names
        .map(|name| (distance(text, name), name))
        .min()
        .filter(|(apart, name)| *apart <= name.len() / 3);
    Err(match near {
        Some((_, name)) => format!("unknown cmd {text}; did you mean {name}?"),
        None => format!(
            "unknown cmd {text}; it is neither in the catalogue nor defined by a loaded scheme"
        ),
    })
}

/// Edits between two names (Levenshtein); both are at most 64 bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut next = vec![i + 1];
        for ((y, above_left), above) in b.bytes().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or_default();
            let changed = above_left + usize::from(x != y);
            next.push(changed.min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// Numbers come as numbers or as text (`"1424"`): PHP and shell billings send both.
fn integer(value: &Value) -> Result<Option<i64>, String> {
    let number = match value {
        Value::Null => return Ok(None),
        Value::Number(n) => n.as_i64(),
        // An empty number is never "absent": without it the event would reach a whole NAS.
        Value::String(s) => s.trim_ascii().parse().ok(),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    match number {
        Some(n) => Ok(Some(n)),
        None => Err(format!("is {}, expected a whole number", shown(value))),
    }
}

fn account(value: &Value) -> Result<Option<i64>, String> {
    match integer(value)? {
        Some(id) if id < 0 => Err(format!("is {id}, no account has a number below 0")),
        id => Ok(id),
    }
}

fn text(value: Value) -> Result<Option<String>, String> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(s) => s,
        Value::Number(n) => n.to_string(),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            return Err(format!("is {}, expected a text", shown(&value)));
        }
    };
    // A producer that has none sends its variable all the same.
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > TEXT_MAX {
        return Err(format!(
            "is {} bytes long, at most {TEXT_MAX} are taken",
            text.len()
        ));
    }
    no_nul(&text)?;
    Ok(Some(text))
}

fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Null => Ok(false),
        Value::Bool(b) => Ok(*b),
        Value::Number(n) if n.as_i64() == Some(0) => Ok(false),
        Value::Number(n) if n.as_i64() == Some(1) => Ok(true),
        Value::String(s) if ["1", "true"].contains(&s.as_str()) => Ok(true),
        Value::String(s) if ["0", "false"].contains(&s.as_str()) => Ok(false),
        other => Err(format!("is {}, expected 1 or 0", shown(other))),
    }
}

fn params(value: Value) -> Result<Option<Map<String, Value>>, String> {
    let wrong = |value: &Value| format!("is {}, expected an object", shown(value));
    let object = match value {
        Value::Null => return Ok(None),
        Value::Object(map) => map,
        Value::String(text) => match json::strict_json(&text) {
            Ok(Value::Object(map)) => map,
            Ok(other) => return Err(wrong(&other)),
            Err(reason) => return Err(format!("is not JSON: {reason}")),
        },
        other => return Err(wrong(&other)),
    };
    for (name, value) in &object {
        if !event::is_name(name) {
            return Err(format!(
                "has the name {}, which does not match ^[a-z][a-z0-9_]{{0,63}}$",
                shown(&Value::from(name.as_str()))
            ));
        }
        if event::refused_name(name) {
            return Err(format!(
                ".{name} could hold a secret or an address of a proxy by its name, and is refused: \
                 what a NAS is told of them stands in nas_secret"
            ));
        }
        nul_free(value).map_err(|reason| format!(".{name} {reason}"))?;
    }
    Ok(Some(object))
}

fn nul_free(value: &Value) -> Result<(), String> {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        Value::String(s) => no_nul(s),
        Value::Array(items) => items.iter().try_for_each(nul_free),
        Value::Object(map) => map
            .iter()
            .try_for_each(|(name, value)| no_nul(name).and_then(|()| nul_free(value))),
    }
}

/// Neither PostgreSQL nor an environment variable can hold it.
fn no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err("holds a NUL character, which neither a database nor a script can".to_owned());
    }
    Ok(())
}

fn time(value: Value) -> Result<Option<i64>, String> {
    let Some(text) = text(value)? else {
        return Ok(None);
    };
    time_ms(&text).map(Some).ok_or_else(|| {
        format!(
            "is {}, expected YYYY-MM-DD HH:MM:SS or YYYY-MM-DD, UTC",
            shown(&Value::from(text.as_str()))
        )
    })
}

/// Wall time (ms) of the classic forms `%Y-%m-%d %H:%M:%S`, also with a fraction, and `%Y-%m-%d`
/// (00:00:00), both UTC, or of RFC 3339.
pub fn time_ms(text: &str) -> Option<i64> {
    let seconds = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").ok();
    let day = || {
        NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .ok()?
            .and_hms_opt(0, 0, 0)
    };
    let zoned = || DateTime::parse_from_rfc3339(text).ok();
    seconds
        .or_else(day)
        .map(|t| t.and_utc().timestamp_millis())
        .or_else(|| Some(zoned()?.timestamp_millis()))
}

/// A wrong value, cut, as JSON (so that its control characters are escaped).
pub fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(value: Value) -> Result<CompactEvent, String> {
        read(value, "crm", &[Cmd::parse("my_own").unwrap()])
    }

    #[test]
    fn every_field_and_coercion() {
        let full = event(json!({
            "cmd": "user_del", "user_id": "1424", "abonent_id": 7, "nas_id": " 1116 ",
            "nas_ip": "10.90.185.2", "usluga_id": null, "acct_session_id": 81,
            "params": "{\"ip\":\"10.0.0.1\"}", "params_complete": "1", "owner_script": "a.sh",
            "owner_function": "f", "batch_id": "b", "expires_at": "2026-01-02 03:04:05",
        }))
        .unwrap();
        assert_eq!(full.user_id, Some(1424));
        assert_eq!(full.nas_id, Some(1116));
        assert_eq!(full.usluga_id, None);
        assert_eq!(full.acct_session_id.as_deref(), Some("81"));
        assert_eq!(full.params.unwrap()["ip"], "10.0.0.1");
        assert!(full.params_complete);
        assert_eq!(full.source.as_deref(), Some("crm"));
        assert_eq!(full.expires_at_ms, Some(1_767_323_045_000));
        for (text, ms) in [
            ("2026-01-02", 1_767_312_000_000),
            ("2026-01-02T03:04:05+03:00", 1_767_312_245_000),
        ] {
            let e = event(json!({"cmd": "user_add", "user_id": 1, "expires_at": text})).unwrap();
            assert_eq!(e.expires_at_ms, Some(ms), "{text}");
        }
    }

    #[test]
    fn a_token_stays_the_source_whatever_its_events_say() {
        let own = |who: &str, source: &str| {
            let event = json!({"cmd": "user_add", "user_id": 1, "source": source});
            read(event, who, &[]).unwrap().source.unwrap()
        };
        for (who, says, becomes) in [
            ("crm", "cron", "crm/cron"),
            ("crm", "crm", "crm"),
            // As it is read back when a row is saved again, by the same and by another token.
            ("crm", "crm/cron", "crm/cron"),
            ("desk", "crm/cron", "desk/crm/cron"),
            ("crm", "crm2", "crm/crm2"),
            ("open:10.0.0.5", "cron", "open:10.0.0.5/cron"),
            ("uid:0", "cli", "cli"),
        ] {
            assert_eq!(own(who, says), becomes, "{who} {says}");
        }
        for (source, who) in [
            ("crm/cron/x", "crm"),
            ("crm", "crm"),
            ("/usr/lib/x", "/usr/lib/x"),
            ("", ""),
        ] {
            assert_eq!(poster(source), who, "{source}");
        }
    }

    #[test]
    fn every_field_is_listed_and_read() {
        for (name, _) in FIELDS {
            let mut e = CompactEvent::default();
            let said = put(&mut e, name, json!([])).unwrap_err();
            assert!(!said.contains("not a field"), "{name}: {said}");
        }
    }

    #[test]
    fn errors_name_the_field_and_the_way_out() {
        let cases = [
            (json!([1]), "an event is an object"),
            (json!({"user_id": 1}), "cmd is missing"),
            (json!({"cmd": "user_add"}), "user_id is missing"),
            (json!({"cmd": "user_add", "user_id": ""}), "user_id is \"\""),
            (
                json!({"cmd": "user_add", "user_id": "", "nas_id": 1}),
                "user_id is \"\"",
            ),
            (json!({"cmd": "user_add", "user_id": 1.5}), "user_id is 1.5"),
            (
                json!({"cmd": "user_add", "user_id": "1 or 1"}),
                "whole number",
            ),
            (
                json!({"cmd": "user_add", "user_id": 1, "nas_ip": ""}),
                "nas_ip is empty",
            ),
            (
                json!({"cmd": "user_add", "user_id": 1, "nas_ip": "a\0b"}),
                "NUL",
            ),
            (
                json!({"cmd": "user_add", "user_id": 1, "userid": 2}),
                "userid is not a field; known: cmd, user_id",
            ),
            (
                json!({"cmd": "user_redirect_cancle", "user_id": 1}),
                "did you mean user_redirect_cancel?",
            ),
            (json!({"cmd": "reboot", "user_id": 1}), "unknown cmd reboot"),
            (json!({"cmd": "$(reboot)", "user_id": 1}), "does not match"),
            (
                json!({"cmd": "user_add", "user_id": 1, "params": "[1]"}),
                "params is [1], expected an object",
            ),
            (
                json!({"cmd": "user_add", "user_id": 1, "params": "{"}),
                "params is not JSON",
            ),
            (
                json!({"cmd": "user_add", "user_id": 1, "params": {"A": 1}}),
                "params has the name \"A\"",
            ),
            (
                json!({"cmd": "user_add", "user_id": 1, "params": {"a": [{"b": "\0"}]}}),
                "NUL",
            ),
            (
                json!({"cmd": "user_add", "user_id": 1, "params_complete": 2}),
                "expected 1 or 0",
            ),
            (
                json!({"cmd": "user_add", "user_id": 1, "expires_at": "tomorrow"}),
                "YYYY-MM-DD",
            ),
            (
                json!({"cmd": "user_add", "user_id": 1, "source": "x".repeat(1025)}),
                "1025 bytes",
            ),
        ];
        for (value, text) in cases {
            let said = event(value.clone()).unwrap_err();
            assert!(said.contains(text), "{value}: {said}");
        }
    }
}
