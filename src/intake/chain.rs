//! The chain `method1 … methodN` of the classic API. First the whole chain is read against the
//! model (pure: what is wrong anywhere in it changes nothing), then it is carried out.
//!
//! ```text
//! start ── objects.create ──► object ◄── get ── rows ◄── objects.filter, exclude, all, order_by
//!                      set, save ▲│                └── count, delete ──► number
//!                                └┘
//! ```

use serde_json::{Map, Value};

use crate::event::EventId;
use crate::intake::form::Call;
use crate::intake::lookup::{self, Columns};
use crate::store::query::{Group, Model, Query};

/// Most objects of one answer; the original gives whole tables, which is what kills it.
pub const LIST_MAX: usize = 1000;
/// Largest offset: paging goes by `id__lt` beyond it.
const OFFSET_MAX: u64 = 1_000_000;

/// What a chain asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Wish {
    /// New events; the first value is one or a list, already with what `set` said.
    Create {
        /// Objects as the caller gave them.
        objects: Vec<Value>,
        /// `arg1` was a list.
        many: bool,
    },
    /// A list of objects.
    Rows(Query),
    /// Exactly one object.
    One(Query),
    /// How many there are.
    Count(Query),
    /// Exactly one object, changed and saved.
    Change(Query, Map<String, Value>),
    /// All that fit, or (true) exactly one.
    Delete(Query, bool),
}

/// A chain that makes no sense: what a caller is told.
pub type Wrong = String;

/// How far the chain has come.
enum At {
    Start,
    Rows(Query),
    One {
        query: Query,
        set: Map<String, Value>,
        saved: bool,
    },
    New {
        objects: Vec<Value>,
        many: bool,
        saved: bool,
    },
    End(Wish),
}

/// Reads a chain. `limit` and `offset` are those of the body.
pub fn read(
    model: Model,
    calls: Vec<Call>,
    limit: Option<u64>,
    offset: Option<u64>,
    columns: Columns<'_>,
) -> Result<Wish, Wrong> {
    let mut at = At::Start;
    for (index, call) in calls.into_iter().enumerate() {
        let number = index + 1;
        at =
            step(model, at, call, columns).map_err(|reason| format!("method{number}: {reason}"))?;
    }
    let mut wish = match at {
        At::Start => return Err("method1 is missing".to_owned()),
        At::Rows(query) => Wish::Rows(query),
        At::One { set, saved, .. } if !set.is_empty() && !saved => {
            return Err("set changes nothing without save: add the method save".to_owned());
        }
        At::One { query, set, saved } => {
            if saved && !set.is_empty() {
                Wish::Change(query, set)
            } else {
                Wish::One(query)
            }
        }
        At::New { saved: false, .. } => {
            return Err("set changes nothing without save: add the method save".to_owned());
        }
        At::New { objects, many, .. } => Wish::Create { objects, many },
        At::End(wish) => wish,
    };
    page(&mut wish, limit, offset)?;
    Ok(wish)
}

fn page(wish: &mut Wish, limit: Option<u64>, offset: Option<u64>) -> Result<(), Wrong> {
    let query = match wish {
        Wish::Rows(query) => query,
        _ if limit.is_some() || offset.is_some() => {
            return Err("limit and offset are for lists of objects".to_owned());
        }
        _ => return Ok(()),
    };
    if let Some(limit) = limit {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if !(1..=LIST_MAX).contains(&limit) {
            return Err(format!("limit is outside 1..{LIST_MAX}"));
        }
        query.limit = limit;
    }
    query.offset = offset.unwrap_or(query.offset);
    if query.offset > OFFSET_MAX {
        return Err(format!(
            "offset is above {OFFSET_MAX}: page on by {{\"id__lt\": …}}"
        ));
    }
    Ok(())
}

fn step(model: Model, at: At, call: Call, columns: Columns<'_>) -> Result<At, Wrong> {
    let Call { method, arg } = call;
    let name = method.strip_prefix("objects.").unwrap_or(&method);
    match (at, name) {
        (At::Start, _) if name == method => Err(unknown(
            model,
            &method,
            "a chain begins with objects.create, objects.get, objects.filter, objects.exclude, objects.all, objects.order_by, objects.count or objects.delete",
        )),
        (At::Start, "create") => create(model, arg),
        (At::Start, _) => rows(model, start(model), name, &method, arg, columns),
        (At::Rows(query), _) => rows(model, query, name, &method, arg, columns),
        (At::One { query, mut set, .. }, "set") => {
            changeable(model)?;
            set.extend(fields_of(arg)?);
            Ok(At::One {
                query,
                set,
                saved: false,
            })
        }
        (At::One { query, set, .. }, "save") => {
            changeable(model)?;
            nothing(&arg)?;
            Ok(At::One {
                query,
                set,
                saved: true,
            })
        }
        (At::One { query, set, .. }, "delete") if set.is_empty() => {
            deletable(model)?;
            nothing(&arg)?;
            Ok(At::End(Wish::Delete(query, true)))
        }
        (
            At::New {
                mut objects, many, ..
            },
            "set",
        ) => {
            let set = fields_of(arg)?;
            for object in &mut objects {
                let Value::Object(object) = object else {
                    return Err("set needs an object that was created".to_owned());
                };
                object.extend(set.clone());
            }
            Ok(At::New {
                objects,
                many,
                saved: false,
            })
        }
        (At::New { objects, many, .. }, "save") => {
            nothing(&arg)?;
            Ok(At::New {
                objects,
                many,
                saved: true,
            })
        }
        (At::One { .. }, _) => Err(unknown(model, &method, "an object knows set, save, delete")),
        (At::New { .. }, _) => Err(unknown(model, &method, "a new object knows set, save")),
        (At::End(_), _) => Err(unknown(
            model,
            &method,
            "nothing can follow count and delete",
        )),
    }
}

fn start(model: Model) -> Query {
    Query {
        limit: LIST_MAX,
        ..Query::all(model)
    }
}

fn rows(
    model: Model,
    mut query: Query,
    name: &str,
    method: &str,
    arg: Value,
    columns: Columns<'_>,
) -> Result<At, Wrong> {
    match name {
        "filter" | "all" | "exclude" | "get" | "count" | "delete" => {
            if name == "delete" {
                deletable(model)?;
            }
            let arg = paged(model, &mut query, arg, columns)?;
            let group = Group {
                negated: name == "exclude",
                all: lookup::read(model, &arg, columns)?,
            };
            if name == "all" && !group.all.is_empty() {
                return Err("all takes no look-ups: use filter".to_owned());
            }
            if !group.all.is_empty() {
                query.groups.push(group);
            }
            match name {
                "get" => Ok(At::One {
                    query,
                    set: Map::new(),
                    saved: false,
                }),
                "count" => Ok(At::End(Wish::Count(query))),
                "delete" if query.groups.is_empty() => {
                    Err("delete needs a look-up: an empty one would mean every event".to_owned())
                }
                "delete" => Ok(At::End(Wish::Delete(query, false))),
                _ => Ok(At::Rows(query)),
            }
        }
        "order_by" => {
            query.order = lookup::order(model, &arg, columns)?;
            Ok(At::Rows(query))
        }
        _ => Err(unknown(
            model,
            method,
            "objects know filter, exclude, all, order_by, get, count, delete",
        )),
    }
}

/// Takes `limit`, `offset` and `before` out of look-ups, where no field has such a name.
fn paged(
    model: Model,
    query: &mut Query,
    arg: Value,
    columns: Columns<'_>,
) -> Result<Value, Wrong> {
    let Value::Object(mut map) = arg else {
        return Ok(arg);
    };
    let known = columns(model);
    for name in ["limit", "offset", "before"] {
        if known.iter().any(|c| c.name == name) {
            continue;
        }
        let Some(value) = map.remove(name) else {
            continue;
        };
        let number = match &value {
            Value::Number(n) => n.as_u64(),
            Value::String(text) => text.trim_ascii().parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        let number = number.ok_or_else(|| format!("{name} is not a whole number"))?;
        match name {
            "limit" => {
                let limit = usize::try_from(number).unwrap_or(usize::MAX);
                if !(1..=LIST_MAX).contains(&limit) {
                    return Err(format!("limit is outside 1..{LIST_MAX}"));
                }
                query.limit = limit;
            }
            "offset" => query.offset = number,
            _ => {
                map.insert("id__lt".to_owned(), Value::from(number));
            }
        }
    }
    Ok(Value::Object(map))
}

fn create(model: Model, arg: Value) -> Result<At, Wrong> {
    if model.is_theirs() {
        return Err(theirs(model));
    }
    if model != Model::Compact {
        return Err(format!(
            "{} takes no objects: post to EventsStackCompact, the daemon moves events on",
            model.name()
        ));
    }
    let (objects, many) = match arg {
        Value::Array(list) => (list, true),
        one => (vec![one], false),
    };
    Ok(At::New {
        objects,
        many,
        saved: true,
    })
}

fn theirs(model: Model) -> Wrong {
    format!(
        "this table belongs to your billing: {} is only read here, change it there",
        model.name()
    )
}

fn changeable(model: Model) -> Result<(), Wrong> {
    match model {
        Model::Compact => Ok(()),
        Model::Stack | Model::Dead | Model::Done => Err(format!(
            "{} is changed by the daemon only; set and save are for events of EventsStackCompact",
            model.name()
        )),
        Model::Nas | Model::Users | Model::Abonents | Model::Usluga => Err(theirs(model)),
    }
}

fn deletable(model: Model) -> Result<(), Wrong> {
    match model {
        Model::Compact | Model::Stack | Model::Dead => Ok(()),
        Model::Done => {
            Err("EventsDone is history: it goes by itself after history.keep".to_owned())
        }
        Model::Nas | Model::Users | Model::Abonents | Model::Usluga => Err(theirs(model)),
    }
}

fn fields_of(arg: Value) -> Result<Map<String, Value>, Wrong> {
    match arg {
        Value::Object(map) if !map.is_empty() => Ok(map),
        _ => Err("set takes an object of fields like {\"cmd\": \"user_add\"}".to_owned()),
    }
}

fn nothing(arg: &Value) -> Result<(), Wrong> {
    match arg {
        Value::Object(map) if map.is_empty() => Ok(()),
        _ => Err("this method takes no argument: send {}".to_owned()),
    }
}

fn unknown(model: Model, method: &str, known: &str) -> Wrong {
    format!(
        "{} is not possible here on {}: {known}",
        lookup::short(method),
        model.name()
    )
}

/// Methods that a model knows, for its page.
pub fn methods(model: Model) -> Vec<&'static str> {
    let mut all = vec![
        "objects.get",
        "objects.filter",
        "objects.exclude",
        "objects.all",
        "objects.order_by",
        "objects.count",
    ];
    if deletable(model).is_ok() {
        all.extend(["objects.delete", "delete"]);
    }
    if changeable(model).is_ok() {
        all.insert(0, "objects.create");
        all.extend(["set", "save"]);
    }
    all
}

/// What a stored compact event holds, in the form in which a producer gives it, with changes.
pub fn merged(
    stored: &Map<String, Value>,
    set: &Map<String, Value>,
    fields: &[(&str, &str)],
) -> Result<Value, Wrong> {
    let mut event = Map::new();
    for (name, _) in fields {
        if let Some(value) = stored.get(*name).filter(|value| !value.is_null()) {
            event.insert((*name).to_owned(), value.clone());
        }
    }
    for (name, value) in set {
        if name == "id" || name == "pk" {
            return Err("set: the number of an event cannot be changed".to_owned());
        }
        event.insert(name.clone(), value.clone());
    }
    Ok(Value::Object(event))
}

/// The number of a stored object.
pub fn id_of(row: &Map<String, Value>) -> EventId {
    EventId(row.get("id").and_then(Value::as_i64).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::query::{Column, Kind};

    fn columns(_: Model) -> Vec<Column> {
        ["id", "cmd", "user_id", "limit_in"]
            .iter()
            .map(|name| Column::for_tests(name, Kind::Integer))
            .collect()
    }

    fn chain(model: Model, calls: &[(&str, Value)]) -> Result<Wish, Wrong> {
        let calls = calls.iter().map(|(method, arg)| Call {
            method: (*method).to_owned(),
            arg: arg.clone(),
        });
        read(model, calls.collect(), None, None, &columns)
    }

    #[test]
    fn the_documented_chains() {
        let edit = chain(
            Model::Compact,
            &[
                ("objects.get", json!({"id": "45"})),
                ("set", json!({"cmd": "user_add"})),
                ("save", json!({})),
            ],
        );
        assert!(matches!(edit, Ok(Wish::Change(_, set)) if set["cmd"] == "user_add"));
        let new = chain(
            Model::Compact,
            &[
                ("objects.create", json!({"user_id": 1})),
                ("set", json!({"user_id": 2})),
                ("save", json!({})),
            ],
        );
        assert_eq!(
            new,
            Ok(Wish::Create {
                objects: vec![json!({"user_id": 2})],
                many: false
            })
        );
        let list = chain(
            Model::Users,
            &[
                ("objects.filter", json!({"user_id__gt": 1, "limit": "5"})),
                ("exclude", json!({"cmd": 3})),
                ("objects.order_by", json!(["-id"])),
            ],
        );
        let Ok(Wish::Rows(query)) = list else {
            panic!("{list:?}")
        };
        assert_eq!((query.limit, query.groups.len()), (5, 2));
        assert!(query.groups[1].negated);
    }

    #[test]
    fn nothing_is_done_for_a_chain_that_makes_no_sense() {
        let id = json!({"id": 1});
        let no = json!({});
        for (model, calls, text) in [
            (
                Model::Compact,
                vec![("set", no.clone())],
                "method1: set is not possible",
            ),
            (
                Model::Compact,
                vec![("objects.get", id.clone()), ("set", json!({"cmd": 1}))],
                "without save",
            ),
            (
                Model::Compact,
                vec![("objects.create", no.clone()), ("set", json!({"cmd": 1}))],
                "without save",
            ),
            (
                Model::Compact,
                vec![("objects.delete", no.clone())],
                "every event",
            ),
            (
                Model::Compact,
                vec![("objects.all", no.clone()), ("delete", no.clone())],
                "every event",
            ),
            (
                Model::Compact,
                vec![("objects.count", no.clone()), ("save", no.clone())],
                "method2: save is not possible",
            ),
            (
                Model::Users,
                vec![("objects.create", id.clone())],
                "belongs to your billing",
            ),
            (
                Model::Users,
                vec![
                    ("objects.get", id.clone()),
                    ("set", id.clone()),
                    ("save", no.clone()),
                ],
                "belongs to your billing",
            ),
            (
                Model::Users,
                vec![("objects.delete", id.clone())],
                "belongs to your billing",
            ),
            (
                Model::Stack,
                vec![("objects.create", id.clone())],
                "takes no objects",
            ),
            (
                Model::Stack,
                vec![("objects.get", id.clone()), ("set", id.clone())],
                "by the daemon only",
            ),
            (Model::Done, vec![("objects.delete", id.clone())], "history"),
            (
                Model::Stack,
                vec![("objects.drop", id.clone())],
                "objects know filter",
            ),
            (
                Model::Stack,
                vec![("objects.all", id.clone())],
                "takes no look-ups",
            ),
            (
                Model::Compact,
                vec![
                    ("objects.get", id.clone()),
                    ("set", id),
                    ("save", json!({"a": 1})),
                ],
                "takes no argument",
            ),
        ] {
            let said = chain(model, &calls).unwrap_err();
            assert!(said.contains(text), "{calls:?}: {said}");
        }
    }
}
