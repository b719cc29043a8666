//! JSON as the doors read it: strictly. One value, no key twice in one object (which of the
//! two would count?), and a bounded depth. Pure.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Deepest nesting of lists and objects in any JSON that a door reads.
pub const DEPTH_MAX: usize = 32;

/// Reads a text that is one JSON value and nothing else.
pub fn strict_json(text: &str) -> Result<Value, String> {
    let (value, length) = first_json(text)?;
    let rest = text.get(length..).unwrap_or_default().trim_ascii_start();
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(format!("{:?} follows its end", shown(rest)))
    }
}

/// Reads the JSON value at the beginning of a text, and says where it ends, bytes.
pub fn first_json(text: &str) -> Result<(Value, usize), String> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Strict>();
    match values.next() {
        Some(Ok(Strict(value))) => Ok((value, values.byte_offset())),
        Some(Err(e)) => Err(e.to_string()),
        None => Err("it is empty".to_owned()),
    }
}

/// The beginning of a text, for messages.
pub fn shown(text: &str) -> String {
    /// Enough to recognise the place, too little to repeat a subscriber's data.
    const SHOWN_MAX: usize = 40;
    text.chars().take(SHOWN_MAX).collect()
}

/// A JSON value without repeated keys and not nested deeper than [`DEPTH_MAX`].
struct Strict(Value);

impl<'de> serde::Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Depth(0).deserialize(deserializer).map(Self)
    }
}

/// How many lists and objects are open around the value that is read.
#[derive(Clone, Copy)]
struct Depth(usize);

impl Depth {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.0 < DEPTH_MAX {
            Ok(Self(self.0 + 1))
        } else {
            Err(E::custom(format_args!(
                "nested deeper than {DEPTH_MAX} levels"
            )))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Depth {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Depth {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(inner)?;
            let short = shown(&key);
            if object.insert(key, value).is_some() {
                return Err(A::Error::custom(format_args!(
                    "key {short:?} is given twice"
                )));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_value_without_repeated_keys_and_not_too_deep() {
        assert_eq!(
            strict_json(" {\"a\":[1,-2,3.5,null,true]} "),
            Ok(json!({"a":[1,-2,3.5,null,true]}))
        );
        assert_eq!(first_json("[1]&x"), Ok((json!([1]), 3)));
        for (bad, text) in [
            ("", "empty"),
            ("{} {}", "follows"),
            (r#"{"a":{"b":1,"b":2}}"#, "\"b\" is given twice"),
            ("[1", "EOF"),
            ("1e999", "out of range"),
        ] {
            let said = strict_json(bad).unwrap_err();
            assert!(said.contains(text), "{bad}: {said}");
        }
        let nested = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(strict_json(&nested(DEPTH_MAX)).is_ok());
        assert!(
            strict_json(&nested(DEPTH_MAX + 1))
                .unwrap_err()
                .contains("deeper")
        );
    }
}
