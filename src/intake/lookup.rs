//! Look-ups as the classic API writes them, `{"user__login__startswith": "a"}`, into conditions
//! of a question to the store. Pure. Numbers may come as text; what cannot be understood is an
//! error that names the look-up and what would be possible.

use serde_json::Value;

use crate::intake::compact;
use crate::store::query::{
    Bound, CONDITIONS_MAX, Column, Condition, IN_MAX, Kind, Model, Relation, Test,
};

/// The words after the name of a field.
pub const WORDS: &[&str] = &[
    "exact",
    "in",
    "range",
    "gt",
    "gte",
    "lt",
    "lte",
    "isnull",
    "contains",
    "startswith",
];

/// Longest way over relations, as in `user__abonent__name`.
pub const STEPS_MAX: usize = 3;

/// Longest text of a look-up, bytes.
const TEXT_MAX: usize = 1024;

/// Where the columns of each model come from.
pub type Columns<'a> = &'a (dyn Fn(Model) -> Vec<Column> + Sync);

/// Reads an object of look-ups; all of them must hold.
pub fn read(model: Model, arg: &Value, columns: Columns<'_>) -> Result<Vec<Condition>, String> {
    let Value::Object(map) = arg else {
        return Err(format!(
            "look-ups are an object like {{\"user_id\": 1424}}, not {}",
            compact::shown(arg)
        ));
    };
    if map.len() > CONDITIONS_MAX {
        return Err(format!(
            "{} look-ups, at most {CONDITIONS_MAX} are possible",
            map.len()
        ));
    }
    let mut all = Vec::new();
    for (name, value) in map {
        one(&mut all, model, name, value, columns)
            .map_err(|reason| format!("look-up {} {reason}", short(name)))?;
    }
    Ok(all)
}

/// A name as an error repeats it.
pub fn short(name: &str) -> String {
    name.chars().take(64).flat_map(char::escape_debug).collect()
}

fn one(
    all: &mut Vec<Condition>,
    model: Model,
    name: &str,
    value: &Value,
    columns: Columns<'_>,
) -> Result<(), String> {
    let parts: Vec<&str> = name.split("__").collect();
    let (path, model, rest) = walk(model, &parts)?;
    let known = columns(model);
    let (column, rest) = match rest.split_first() {
        // The relation itself: `user` is the account behind it.
        None => (path.last().map_or("id", |r| r.to), rest),
        Some((&"pk", rest)) => ("id", rest),
        Some((word, rest)) if known.iter().any(|c| c.name == *word) => (*word, rest),
        Some((word, _)) if !path.is_empty() && WORDS.contains(word) => {
            (path.last().map_or("id", |r| r.to), rest)
        }
        Some((word, _)) => return Err(no_field(model, word, &known)),
    };
    let word = match rest {
        [] => "exact",
        [word] if WORDS.contains(word) => word,
        _ => {
            return Err(format!(
                "is unknown: after {column} may follow {}",
                WORDS.join(", ")
            ));
        }
    };
    let kind = known
        .iter()
        .find(|c| c.name == column)
        .map_or(Kind::Integer, |c| c.kind);
    for test in tests(kind, word, value)? {
        all.push(Condition {
            path: path.clone(),
            column: column.to_owned(),
            test,
        });
    }
    Ok(())
}

/// The relations at the beginning of a name, the model behind them, what follows.
type Way<'a, 'p> = (Vec<&'static Relation>, Model, &'a [&'p str]);

/// Follows relations as far as the name does.
pub fn walk<'a, 'p>(model: Model, parts: &'a [&'p str]) -> Result<Way<'a, 'p>, String> {
    let (mut path, mut model, mut rest) = (Vec::new(), model, parts);
    while let Some((word, after)) = rest.split_first()
        && let Some(relation) = model.relations().iter().find(|r| r.name == *word)
    {
        if path.len() >= STEPS_MAX {
            return Err(format!("goes over more than {STEPS_MAX} relations"));
        }
        path.push(relation);
        model = relation.model;
        rest = after;
    }
    Ok((path, model, rest))
}

/// Says which fields there are.
pub fn no_field(model: Model, word: &str, known: &[Column]) -> String {
    let names = known.iter().map(|c| c.name.as_str());
    let related = model.relations().iter().map(|r| r.name);
    let names: Vec<&str> = names.chain(related).collect();
    format!(
        "is unknown: {} has no field {}; known: {}",
        model.name(),
        short(word),
        names.join(", ")
    )
}

fn tests(kind: Kind, word: &str, value: &Value) -> Result<Vec<Test>, String> {
    let fits = match word {
        "isnull" => true,
        "contains" => matches!(kind, Kind::Text | Kind::Json),
        "startswith" => kind == Kind::Text,
        "exact" if value.is_null() => true,
        "range" | "gt" | "gte" | "lt" | "lte" => !matches!(kind, Kind::Json | Kind::Boolean),
        _ => kind != Kind::Json,
    };
    if !fits {
        return Err(format!(
            "is not possible: the field is of the kind {}",
            kind.as_str()
        ));
    }
    let ordered = |test: fn(Bound) -> Test| Ok(vec![test(bound(kind, value)?)]);
    match word {
        "exact" if value.is_null() => Ok(vec![Test::IsNull(true)]),
        "exact" => exact(kind, value),
        "gt" => ordered(Test::Above),
        "gte" => ordered(Test::From),
        "lt" => ordered(Test::Below),
        "lte" => ordered(Test::To),
        "in" => {
            let list = value.as_array().filter(|list| list.len() <= IN_MAX);
            let list = list.ok_or_else(|| format!("is not a list of at most {IN_MAX} values"))?;
            let each = list.iter().map(|value| bound(kind, value));
            Ok(vec![Test::In(each.collect::<Result<_, _>>()?)])
        }
        "range" => match value.as_array().map(Vec::as_slice) {
            Some([from, to]) => Ok(vec![
                Test::From(bound(kind, from)?),
                Test::To(bound(kind, to)?),
            ]),
            _ => Err("is not a list of two values, the first and the last".to_owned()),
        },
        "isnull" => match truth(value) {
            Some(yes) => Ok(vec![Test::IsNull(yes)]),
            None => Err(format!(
                "is {}, expected true or false",
                compact::shown(value)
            )),
        },
        "contains" => Ok(vec![Test::Contains(text(value)?)]),
        _ => Ok(vec![Test::StartsWith(text(value)?)]),
    }
}

/// Times are kept by the millisecond and written by the second: equal is within that second.
fn exact(kind: Kind, value: &Value) -> Result<Vec<Test>, String> {
    let bound = bound(kind, value)?;
    Ok(match (kind, &bound) {
        (Kind::Time, Bound::Integer(ms)) => vec![
            Test::From(Bound::Integer(*ms)),
            Test::Below(Bound::Integer(ms.saturating_add(1000))),
        ],
        _ => vec![Test::In(vec![bound])],
    })
}

fn bound(kind: Kind, value: &Value) -> Result<Bound, String> {
    let wrong = |expected: &str| format!("is {}, expected {expected}", compact::shown(value));
    match kind {
        Kind::Integer => {
            let number = match value {
                Value::Number(n) => n.as_i64(),
                Value::String(s) => s.trim_ascii().parse().ok(),
                Value::Bool(yes) => Some(i64::from(*yes)),
                Value::Null | Value::Array(_) | Value::Object(_) => None,
            };
            let number = number.ok_or_else(|| wrong("a whole number"))?;
            Ok(Bound::Integer(number))
        }
        Kind::Decimal => {
            let text = match value {
                Value::Number(n) => n.to_string(),
                Value::String(s) => s.trim_ascii().to_owned(),
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => String::new(),
            };
            let plain = text.len() <= 64
                && text.parse::<f64>().is_ok_and(f64::is_finite)
                && text
                    .bytes()
                    .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
            plain
                .then_some(Bound::Decimal(text))
                .ok_or_else(|| wrong("a number"))
        }
        Kind::Boolean => truth(value)
            .map(Bound::Boolean)
            .ok_or_else(|| wrong("true or false")),
        Kind::Time => value
            .as_str()
            .and_then(|text| compact::time_ms(text.trim_ascii()))
            .map(Bound::Integer)
            .ok_or_else(|| wrong("YYYY-MM-DD HH:MM:SS or YYYY-MM-DD, UTC")),
        Kind::Text | Kind::Json => text(value).map(Bound::Text),
    }
}

fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(yes) => Some(*yes),
        Value::Number(n) => match n.as_i64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        },
        Value::String(s) => match s.as_str() {
            "1" | "true" | "True" => Some(true),
            "0" | "false" | "False" => Some(false),
            _ => None,
        },
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn text(value: &Value) -> Result<String, String> {
    let text = match value {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            return Err(format!("is {}, expected a text", compact::shown(value)));
        }
    };
    if text.len() > TEXT_MAX || text.contains('\0') {
        return Err(format!(
            "is longer than {TEXT_MAX} bytes, or holds a NUL character"
        ));
    }
    Ok(text)
}

/// The order of `order_by`: a name, or a list of names; `-` in front descends.
pub fn order(
    model: Model,
    arg: &Value,
    columns: Columns<'_>,
) -> Result<Vec<(String, bool)>, String> {
    let names: Vec<&Value> = match arg {
        Value::String(_) => vec![arg],
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) if map.is_empty() => Vec::new(),
        other => {
            return Err(format!(
                "order_by takes a list like [\"-id\"], not {}",
                compact::shown(other)
            ));
        }
    };
    let known = columns(model);
    let each = names.into_iter().map(|name| {
        let name = name.as_str().ok_or("order_by takes names of fields")?;
        let (name, descending) = match name.strip_prefix('-') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let name = if name == "pk" { "id" } else { name };
        match known.iter().find(|c| c.name == name) {
            Some(column) if column.kind != Kind::Json => Ok((name.to_owned(), descending)),
            Some(_) => Err(format!("order_by {name}: a list has no order")),
            None => Err(format!(
                "order_by {} {}",
                short(name),
                no_field(model, name, &known)
            )),
        }
    });
    let order: Vec<(String, bool)> = each.collect::<Result<_, String>>()?;
    if order.len() > CONDITIONS_MAX {
        return Err(format!("order_by takes at most {CONDITIONS_MAX} fields"));
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn columns(_: Model) -> Vec<Column> {
        let of = |name: &str, kind| Column::for_tests(name, kind);
        vec![
            of("id", Kind::Integer),
            of("login", Kind::Text),
            of("rate", Kind::Decimal),
            of("accept", Kind::Boolean),
            of("created_at", Kind::Time),
            of("addresses", Kind::Json),
        ]
    }

    fn asked(arg: Value) -> Result<Vec<Condition>, String> {
        read(Model::Users, &arg, &columns)
    }

    #[test]
    fn every_word_and_coercion() {
        let one = |arg: Value| asked(arg).unwrap().remove(0).test;
        assert_eq!(one(json!({"pk": "45"})), Test::In(vec![Bound::Integer(45)]));
        assert_eq!(
            one(json!({"accept__exact": "1"})),
            Test::In(vec![Bound::Boolean(true)])
        );
        assert_eq!(one(json!({"login": null})), Test::IsNull(true));
        assert_eq!(one(json!({"login__isnull": "0"})), Test::IsNull(false));
        assert_eq!(
            one(json!({"rate__gte": 50.5})),
            Test::From(Bound::Decimal("50.5".to_owned()))
        );
        assert_eq!(
            one(json!({"login__startswith": 7})),
            Test::StartsWith("7".to_owned())
        );
        let range = asked(json!({"created_at__range": ["2024-01-01", "2024-02-01"]})).unwrap();
        assert_eq!(range[0].test, Test::From(Bound::Integer(1_704_067_200_000)));
        assert_eq!(range.len(), 2);
        let second = asked(json!({"created_at": "2024-01-01 00:00:00"})).unwrap();
        assert_eq!(
            second[1].test,
            Test::Below(Bound::Integer(1_704_067_201_000))
        );
        let far = asked(json!({"abonent__users__login__in": ["a", "b"]})).unwrap();
        assert_eq!(far[0].path.len(), 2);
        assert_eq!(one(json!({"nas": 5})), Test::In(vec![Bound::Integer(5)]));
        assert_eq!(one(json!({"nas__in": []})), Test::In(vec![]));
        let order = order(Model::Users, &json!(["-login", "pk"]), &columns).unwrap();
        assert_eq!(
            order,
            [("login".to_owned(), true), ("id".to_owned(), false)]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (arg, text) in [
            (json!([1]), "look-ups are an object"),
            (json!({"pasport": 1}), "no field pasport; known: id, login"),
            (json!({"login__like": "a"}), "after login may follow exact"),
            (json!({"id": "1 or 1"}), "expected a whole number"),
            (json!({"id__contains": "1"}), "of the kind integer"),
            (json!({"rate": "NaN"}), "expected a number"),
            (json!({"accept": 2}), "expected true or false"),
            (json!({"created_at": "yesterday"}), "YYYY-MM-DD"),
            (json!({"created_at__range": ["2024-01-01"]}), "two values"),
            (json!({"addresses": "x"}), "of the kind object"),
            (json!({"login__in": "a"}), "is not a list"),
            (json!({"login": "a\0"}), "NUL"),
            (
                json!({"abonent__users__abonent__users__login": "a"}),
                "more than 3 relations",
            ),
        ] {
            let said = asked(arg.clone()).unwrap_err();
            assert!(said.contains(text), "{arg}: {said}");
        }
        assert!(order(Model::Users, &json!("-pasport"), &columns).is_err());
        assert!(order(Model::Users, &json!({"a": 1}), &columns).is_err());
    }

    proptest! {
        /// Whatever a caller writes, it is a value or an error.
        #[test]
        fn text_stays_a_value(name in any::<String>(), text in any::<String>()) {
            let _ = asked(json!({ name: text.clone() }));
            if let Ok(found) = asked(json!({ "login": text.clone() })) {
                prop_assert_eq!(&found[0].test, &Test::In(vec![Bound::Text(text)]));
            }
        }
    }
}
