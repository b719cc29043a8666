//! The classic body, `method1=objects.create&arg1={json}&method2=…`, into calls. Pure.
//!
//! Billing services send it in three shapes: raw (the documented curl: JSON that is not
//! percent-encoded under a form content type), properly encoded, and as one JSON object. A
//! value that starts with `{`, `[` or `"` is read by the JSON parser and ends where the JSON
//! ends; nothing is searched for inside it, so `&`, `+`, `%` and `=` in a subscriber's name
//! never cut or change a command. Anything else is form-decoded up to the next `&`.

use serde_json::{Map, Value};

use crate::intake::json::{first_json, shown, strict_json};

/// Longest chain `method1 … methodN`: documented chains have three links.
pub const CALLS_MAX: usize = 16;

/// One link of the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// `objects.create`, `objects.filter`, `set`, `save`, …
    pub method: String,
    /// Its argument; `{}` if the body has none.
    pub arg: Value,
}

/// A whole body.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// In the order of their numbers; never empty.
    pub calls: Vec<Call>,
    /// Which fields of the last object are wanted.
    pub fields: Option<Vec<String>>,
    /// At most so many objects.
    pub limit: Option<u64>,
    /// So many objects are skipped.
    pub offset: Option<u64>,
}

/// Why a body was not understood. Nothing is done for such a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// The body, or an encoded value in it, is not text.
    #[error("{0} is not UTF-8")]
    NotUtf8(String),
    /// A value that must be JSON is not.
    #[error("{key} is not JSON: {reason}")]
    NotJson {
        /// `arg1`, `fields`, or `the body`.
        key: String,
        /// What the parser says.
        reason: String,
    },
    /// Something follows a value that had already ended.
    #[error("{key}: something follows the end of its JSON at byte {at} of the body: {shown:?}")]
    Garbage {
        /// Which value.
        key: String,
        /// Offset in the body, bytes.
        at: usize,
        /// The first characters of it.
        shown: String,
    },
    /// A key that is none of ours.
    #[error(
        "unknown key {0:?}; a body has method1, arg1, method2, arg2, …, fields, limit and offset"
    )]
    UnknownKey(String),
    /// The same key twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// `%` without two hex digits.
    #[error("{0} has a % that two hexadecimal digits do not follow")]
    BadPercent(String),
    /// The chain does not start at 1, or has a gap.
    #[error("{0} is missing")]
    Missing(String),
    /// A chain that is too long.
    #[error("method{0} is more than a chain may have ({CALLS_MAX})")]
    TooMany(usize),
    /// A key has no value, or a value of the wrong kind.
    #[error("{key} {reason}")]
    Kind {
        /// Which key.
        key: String,
        /// What is expected.
        reason: &'static str,
    },
}

/// Reads a body of any of the three shapes.
pub fn read(body: &[u8]) -> Result<Form, FormError> {
    let text = std::str::from_utf8(body).map_err(|_| FormError::NotUtf8("the body".to_owned()))?;
    let mut parts = Parts::default();
    if text.trim_ascii_start().starts_with('{') {
        read_object(text, &mut parts)?;
    } else {
        read_pairs(text, &mut parts)?;
    }
    parts.finish()
}

/// What has been gathered of a body, by number.
#[derive(Default)]
struct Parts {
    methods: Vec<Option<String>>,
    args: Vec<Option<Value>>,
    fields: Option<Vec<String>>,
    limit: Option<u64>,
    offset: Option<u64>,
}

/// What a key stands for; the number counts from 1.
enum Key {
    Method(usize),
    Arg(usize),
    Fields,
    Limit,
    Offset,
}

impl Parts {
    fn put(&mut self, name: &str, key: &Key, value: Value) -> Result<(), FormError> {
        let twice = || FormError::Twice(name.to_owned());
        let kind = |reason| FormError::Kind {
            key: name.to_owned(),
            reason,
        };
        match key {
            Key::Method(n) => match value {
                Value::String(method) if !method.trim().is_empty() => {
                    put_at(&mut self.methods, *n, method.trim().to_owned()).ok_or_else(twice)
                }
                _ => Err(kind("is not the name of a method")),
            },
            Key::Arg(n) => put_at(&mut self.args, *n, value).ok_or_else(twice),
            Key::Limit | Key::Offset => {
                let number = match &value {
                    Value::Number(n) => n.as_u64(),
                    Value::String(text) => text.trim_ascii().parse().ok(),
                    Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
                };
                let number = number.ok_or_else(|| kind("is not a whole number"))?;
                let place = match key {
                    Key::Limit => &mut self.limit,
                    _ => &mut self.offset,
                };
                match place.replace(number) {
                    None => Ok(()),
                    Some(_) => Err(twice()),
                }
            }
            Key::Fields => {
                if self.fields.is_some() {
                    return Err(twice());
                }
                let wrong = || kind("is not a list of field names");
                let Value::Array(items) = value else {
                    return Err(wrong());
                };
                let names = items
                    .into_iter()
                    .map(|item| match item {
                        Value::String(name) => Ok(name),
                        _ => Err(wrong()),
                    })
                    .collect::<Result<_, _>>()?;
                self.fields = Some(names);
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Form, FormError> {
        let mut args = self.args.into_iter();
        let mut calls = Vec::new();
        for (index, method) in self.methods.into_iter().enumerate() {
            let method =
                method.ok_or_else(|| FormError::Missing(format!("method{}", index + 1)))?;
            let arg = args
                .next()
                .flatten()
                .unwrap_or_else(|| Value::Object(Map::new()));
            calls.push(Call { method, arg });
        }
        if calls.is_empty() || args.any(|arg| arg.is_some()) {
            return Err(FormError::Missing(format!("method{}", calls.len() + 1)));
        }
        Ok(Form {
            calls,
            fields: self.fields,
            limit: self.limit,
            offset: self.offset,
        })
    }
}

/// Puts a value at a number (from 1); `None` if one is there already.
fn put_at<T>(list: &mut Vec<Option<T>>, number: usize, value: T) -> Option<()> {
    while list.len() < number {
        list.push(None);
    }
    let place = list.get_mut(number.checked_sub(1)?)?;
    if place.is_some() {
        return None;
    }
    *place = Some(value);
    Some(())
}

fn key_of(name: &str) -> Result<Key, FormError> {
    match name {
        "fields" => return Ok(Key::Fields),
        "limit" => return Ok(Key::Limit),
        "offset" => return Ok(Key::Offset),
        _ => {}
    }
    let unknown = || FormError::UnknownKey(shown(name));
    let number = |digits: &str| -> Result<usize, FormError> {
        let plain = digits.len() <= 4
            && !digits.starts_with('0')
            && digits.bytes().all(|b| b.is_ascii_digit());
        match digits.parse() {
            Ok(n) if plain && n <= CALLS_MAX => Ok(n),
            Ok(n) if plain => Err(FormError::TooMany(n)),
            _ => Err(unknown()),
        }
    };
    if let Some(digits) = name.strip_prefix("method") {
        Ok(Key::Method(number(digits)?))
    } else if let Some(digits) = name.strip_prefix("arg") {
        Ok(Key::Arg(number(digits)?))
    } else {
        Err(unknown())
    }
}

fn read_object(text: &str, parts: &mut Parts) -> Result<(), FormError> {
    let not_json = |reason| FormError::NotJson {
        key: "the body".to_owned(),
        reason,
    };
    let Value::Object(map) = strict_json(text).map_err(not_json)? else {
        return Err(not_json("it is not an object".to_owned()));
    };
    for (name, value) in map {
        let key = key_of(&name)?;
        parts.put(&name, &key, value)?;
    }
    Ok(())
}

fn read_pairs(text: &str, parts: &mut Parts) -> Result<(), FormError> {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c == '&' || c.is_ascii_whitespace());
        if rest.is_empty() {
            return Ok(());
        }
        let end = rest.find(['=', '&']).unwrap_or(rest.len());
        let (raw_name, after) = rest.split_at(end);
        let name = decoded(raw_name.trim_ascii(), "a key")?;
        let key = key_of(&name)?;
        let Some(value) = after.strip_prefix('=') else {
            return Err(FormError::Kind {
                key: name,
                reason: "has no value",
            });
        };
        let value = value.trim_ascii_start();
        let at = text.len() - value.len();
        rest = if value.starts_with(['{', '[', '"']) {
            let length = read_raw(&name, &key, value, at, parts)?;
            value.get(length..).unwrap_or_default()
        } else {
            let end = value.find('&').unwrap_or(value.len());
            let (encoded, after) = value.split_at(end);
            read_encoded(&name, &key, encoded.trim_ascii_end(), parts)?;
            after
        };
    }
}

/// A value that is JSON as it stands: returns its length, bytes.
fn read_raw(
    name: &str,
    key: &Key,
    value: &str,
    at: usize,
    parts: &mut Parts,
) -> Result<usize, FormError> {
    let (parsed, length) = first_json(value).map_err(|reason| not_json(name, reason))?;
    let after = value.get(length..).unwrap_or_default();
    let next = after.trim_ascii_start();
    if !next.is_empty() && !next.starts_with('&') {
        return Err(FormError::Garbage {
            key: name.to_owned(),
            at: at + length,
            shown: shown(next),
        });
    }
    parts.put(name, key, parsed)?;
    Ok(length)
}

fn read_encoded(name: &str, key: &Key, encoded: &str, parts: &mut Parts) -> Result<(), FormError> {
    let text = decoded(encoded, name)?;
    let starts_json = text.trim_ascii_start().starts_with(['{', '[', '"']);
    let value = match key {
        Key::Method(_) if !starts_json => Value::String(text),
        Key::Arg(_) if text.trim_ascii().is_empty() => Value::Object(Map::new()),
        Key::Method(_) | Key::Arg(_) | Key::Fields | Key::Limit | Key::Offset => {
            strict_json(&text).map_err(|reason| not_json(name, reason))?
        }
    };
    parts.put(name, key, value)
}

fn not_json(key: &str, reason: String) -> FormError {
    FormError::NotJson {
        key: key.to_owned(),
        reason,
    }
}

/// Form decoding (WHATWG URL, section 5.1): `+` is a space, `%XX` a byte. `name` is for the
/// error only.
pub fn decoded(text: &str, name: &str) -> Result<String, FormError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let bad = || FormError::BadPercent(name.to_owned());
                let (high, low, after) = match after {
                    [high, low, after @ ..] => (hex(*high), hex(*low), after),
                    _ => return Err(bad()),
                };
                let (Some(high), Some(low)) = (high, low) else {
                    return Err(bad());
                };
                bytes.push(high << 4 | low);
                rest = after;
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).map_err(|_| FormError::NotUtf8(name.to_owned()))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|n| u8::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn encoded(text: &str) -> String {
        let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._*".contains(&b);
        text.bytes()
            .map(|b| match b {
                b' ' => "+".to_owned(),
                b if keep(b) => char::from(b).to_string(),
                b => format!("%{b:02X}"),
            })
            .collect()
    }

    fn one(body: &str) -> Call {
        let form = read(body.as_bytes()).unwrap();
        assert_eq!(form.calls.len(), 1, "{body}");
        form.calls.into_iter().next().unwrap()
    }

    fn refused(body: impl AsRef<[u8]>) -> String {
        read(body.as_ref()).unwrap_err().to_string()
    }

    #[test]
    fn the_documented_curl() {
        let body = r#"method1=objects.create&arg1={"user_id": 1424,"cmd":"user_redirect_cancel"}"#;
        let call = one(body);
        assert_eq!(call.method, "objects.create");
        assert_eq!(
            call.arg,
            json!({"user_id": 1424, "cmd": "user_redirect_cancel"})
        );
    }

    #[test]
    fn chains_fields_and_order() {
        let body = r#"fields=["a_home_number","tarif__name"]&arg2={"a_home_number":"3"}&method1=objects.get&method3=save&arg3={}&arg1={"id":"45"}&method2=set&"#;
        let form = read(body.as_bytes()).unwrap();
        let methods: Vec<_> = form.calls.iter().map(|c| c.method.as_str()).collect();
        assert_eq!(methods, ["objects.get", "set", "save"]);
        assert_eq!(form.calls[1].arg, json!({"a_home_number": "3"}));
        assert_eq!(form.calls[2].arg, json!({}));
        assert_eq!(form.fields.unwrap(), ["a_home_number", "tarif__name"]);
        let spaced = "method1 = objects.all & arg1 = {} \r\n";
        assert_eq!(one(spaced).method, "objects.all");
    }

    #[test]
    fn malformed_bodies_say_what_is_wrong() {
        let deep = format!("method1=m&arg1={}{}", "[".repeat(33), "]".repeat(33));
        let cases: &[(&str, &str)] = &[
            ("", "method1 is missing"),
            ("arg1={}", "method1 is missing"),
            ("method2=a&arg2={}", "method1 is missing"),
            ("method1=a&method3=c", "method2 is missing"),
            ("method1=a&arg2={}", "method2 is missing"),
            ("method1=", "method1 is not the name of a method"),
            ("method1", "method1 has no value"),
            ("method1=a&method1=b", "method1 is given twice"),
            ("method1=a&arg1={}&arg1={}", "arg1 is given twice"),
            (r#"method1=a&arg1={"x":1,"x":2}"#, "\"x\" is given twice"),
            (
                r#"{"method1":"a","method1":"b"}"#,
                "\"method1\" is given twice",
            ),
            ("method1=a&arg1={\"x\":1", "arg1 is not JSON: EOF"),
            ("method1=a&arg1=x", "arg1 is not JSON"),
            (
                "method1=a&arg1={}x",
                "follows the end of its JSON at byte 17",
            ),
            (
                "method1=a&arg1=%7B%7D%7B",
                "arg1 is not JSON: \"{\" follows",
            ),
            ("method1=a&arg1=%7", "arg1 has a %"),
            ("method1=a&arg1=%zz", "arg1 has a %"),
            ("method1=a&arg1=%ff", "arg1 is not UTF-8"),
            ("method1=a&fields={}", "fields is not a list"),
            ("method1=a&fields=[1]", "fields is not a list"),
            ("method17=a", "method17 is more"),
            ("method01=a", "unknown key \"method01\""),
            ("method0=a", "unknown key \"method0\""),
            ("method1=a&x=1", "unknown key \"x\""),
            (r#"{"method1":1}"#, "method1 is not the name"),
            ("{\"method1\":\"a\"} x", "the body is not JSON"),
            (&deep, "deeper than 32"),
        ];
        for (body, text) in cases {
            let said = refused(body);
            assert!(said.contains(text), "{body}: {said}");
        }
        assert!(refused(b"method1=a&arg1={\"x\":\"\xff\"}").contains("UTF-8"));
        let fits = format!("method1=m&arg1={}{}", "[".repeat(32), "]".repeat(32));
        assert!(read(fits.as_bytes()).is_ok());
    }

    #[test]
    fn limit_and_offset_are_told_apart() {
        for body in [
            "method1=a&limit=5&offset=7",
            r#"{"method1":"a","limit":5,"offset":"7"}"#,
        ] {
            let form = read(body.as_bytes()).unwrap();
            assert_eq!((form.limit, form.offset), (Some(5), Some(7)), "{body}");
        }
        assert!(refused("method1=a&limit=1&limit=2").contains("limit is given twice"));
        assert!(refused("method1=a&offset=-1").contains("offset is not a whole number"));
    }

    #[test]
    fn an_encoded_method_may_be_json_and_an_argument_empty() {
        assert_eq!(one("method1=%22objects.get%22").method, "objects.get");
        assert_eq!(one("method1=objects.get&arg1=").arg, json!({}));
        assert_eq!(one("arg1=+%20&method1=objects.get").arg, json!({}));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Any JSON string in any field gives exactly one call with that string.
        #[test]
        fn subscriber_text_is_never_syntax(
            key in any::<String>(), text in any::<String>(), inner in any_json(),
        ) {
            let arg = json!({ key.clone(): text, format!("{key}.in"): inner });
            let want = Form {
                calls: vec![Call { method: "objects.create".to_owned(), arg: arg.clone() }],
                fields: None,
                limit: None,
                offset: None,
            };
            let json = arg.to_string();
            let bodies = [
                format!("method1=objects.create&arg1={json}"),
                format!("arg1={json}&method1=objects.create"),
                format!("method1=objects.create&arg1={}", encoded(&json)),
                format!("{{\"method1\":\"objects.create\",\"arg1\":{json}}}"),
            ];
            for body in bodies {
                prop_assert_eq!(read(body.as_bytes()).unwrap(), want.clone(), "{}", body);
            }
        }

        /// Whatever comes, it is a form or an error, and a cut body never becomes a shorter command.
        #[test]
        fn a_cut_body_is_refused(text in any::<String>(), cut in 1_usize..200) {
            let json = json!({ "user_id": 1, "cmd": "user_add", "owner_script": text }).to_string();
            let body = format!("method1=objects.create&arg1={json}");
            let cut = body.len().saturating_sub(cut).max("method1=objects.create&arg1={".len());
            prop_assert!(read(&body.as_bytes()[..cut]).is_err());
        }

        /// No bytes make it panic.
        #[test]
        fn any_bytes(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
        }
    }
}
