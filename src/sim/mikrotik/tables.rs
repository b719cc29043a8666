//! The rows of the simulated router: add, set, remove and print with the refusals of RouterOS.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Map, Value};

use crate::driver::mikrotik::wire;
use crate::event::value_text;
use crate::sim::mikrotik::catalogue::{MENUS, Menu, Prop};
use crate::sim::mikrotik::query::Query;
use crate::sim::mikrotik::values::{Kind, canonical, duration_s, duration_text};

/// A refusal: the attributes of `!trap` (MikroTik manual, "API", "!trap").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trap {
    /// 0 missing item or command, 1 argument value, 2 interrupted; most have none.
    pub(crate) category: Option<u8>,
    /// Text.
    pub(crate) message: String,
}

impl Trap {
    /// Category 1.
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self {
            category: Some(1),
            message: message.into(),
        }
    }

    /// Category 0.
    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self {
            category: Some(0),
            message: message.into(),
        }
    }

    /// Without a category, as configuration refusals come.
    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self {
            category: None,
            message: message.into(),
        }
    }
}

/// Attributes of one row in the order of an answer.
pub(crate) type Attributes = Vec<(String, Vec<u8>)>;

/// What a change did.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// `=ret=` of `!done`.
    pub(crate) ret: Option<String>,
    /// The rows after `add` and `set`, before `remove`; for the journal.
    pub(crate) rows: Vec<Attributes>,
}

#[derive(Debug, Clone, Default)]
struct Stored {
    id: u64,
    values: BTreeMap<String, Vec<u8>>,
    /// Monotonic ms at which a timed row vanishes.
    vanishes: Option<u64>,
}

#[derive(Debug, Default)]
struct Stock {
    /// In the order of the menu: that of their ids, but for `place-before`.
    rows: Vec<Stored>,
    /// Monotonic ms at which the first timed row vanishes, or a row that is gone would have.
    vanishes: Option<u64>,
    last_id: u64,
    keys: HashSet<Vec<Vec<u8>>>,
}

/// Every menu's rows.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    stocks: BTreeMap<&'static str, Stock>,
}

impl Tables {
    /// Matching rows, each with the wanted properties (empty = all).
    pub(crate) fn print(
        &mut self,
        menu: &'static Menu,
        query: &Query,
        proplist: &[String],
        now: u64,
    ) -> Vec<Attributes> {
        let stock = self.stock(menu, now);
        stock
            .rows
            .iter()
            .filter_map(|row| {
                let id = OnceCell::new();
                let matches = query.matches(&|name| match name {
                    ".id" => Some(id.get_or_init(|| id_text(row.id)).as_bytes()),
                    _ => row.values.get(name).map(Vec::as_slice),
                });
                matches.then(|| attributes(menu, row, now, proplist))
            })
            .collect()
    }

    /// Runs `add`, `set`, `remove`, `enable`, `disable` or `make-static`.
    pub(crate) fn change(
        &mut self,
        menu: &'static Menu,
        verb: &str,
        args: &[(String, Vec<u8>)],
        now: u64,
    ) -> Result<Change, Trap> {
        let stock = self.stock(menu, now);
        if verb == "add" {
            return add(menu, stock, args, now);
        }
        let mut ids = None;
        let mut rest = Vec::new();
        for (name, value) in args {
            match name.as_str() {
                ".id" | "numbers" => ids = Some(value),
                _ => rest.push((name.clone(), value.clone())),
            }
        }
        let ids = ids.ok_or_else(|| Trap::missing("missing =.id="))?;
        let found = find(menu, stock, ids)?;
        match verb {
            "set" => set(menu, stock, &found, &rest, now),
            "remove" => remove(menu, stock, &found, &rest, now),
            "make-static" => {
                refuse_extra(&rest)?;
                for id in found {
                    if let Some(row) = stock.place(id).and_then(|at| stock.rows.get_mut(at)) {
                        row.values.insert("dynamic".to_owned(), b"false".to_vec());
                    }
                }
                Ok(Change::default())
            }
            _ => {
                refuse_extra(&rest)?;
                let flag: &[u8] = if verb == "disable" { b"yes" } else { b"no" };
                let rest = [("disabled".to_owned(), flag.to_vec())];
                set(menu, stock, &found, &rest, now)
            }
        }
    }

    /// Replaces everything by `{"/path": [{"name": "value"}]}`; nothing changes on an error.
    pub(crate) fn load(&mut self, state: &Map<String, Value>, now: u64) -> Result<(), String> {
        let mut fresh = Self::default();
        for (path, rows) in state {
            let menu = Menu::find(path).ok_or_else(|| {
                let known: Vec<_> = MENUS.iter().map(|m| m.path).collect();
                format!("{path}: no such menu; known are {}", known.join(", "))
            })?;
            let rows = rows
                .as_array()
                .ok_or_else(|| format!("{path}: expected a list of rows"))?;
            let stock = fresh.stock(menu, now);
            for (index, row) in rows.iter().enumerate() {
                let row = row
                    .as_object()
                    .ok_or_else(|| format!("{path}[{index}]: expected an object"))?;
                load_row(menu, stock, row, now).map_err(|e| format!("{path}[{index}]: {e}"))?;
            }
        }
        *self = fresh;
        Ok(())
    }

    /// The same form that [`Self::load`] takes; bytes that are not UTF-8 as `\xNN`.
    pub(crate) fn dump(&mut self, now: u64) -> Map<String, Value> {
        let all = Query::default();
        MENUS
            .iter()
            .filter_map(|menu| {
                let rows = self.print(menu, &all, &[], now);
                (!rows.is_empty()).then(|| {
                    let rows = rows.iter().map(|r| Value::Object(json(r))).collect();
                    (menu.path.to_owned(), Value::Array(rows))
                })
            })
            .collect()
    }

    fn stock(&mut self, menu: &'static Menu, now: u64) -> &mut Stock {
        let stock = self.stocks.entry(menu.path).or_default();
        if stock.vanishes.is_some_and(|t| t <= now) {
            stock.rows.retain(|r| r.vanishes.is_none_or(|t| t > now));
            stock.keys = stock.rows.iter().filter_map(|r| key(menu, r)).collect();
            stock.vanishes = stock.rows.iter().filter_map(|r| r.vanishes).min();
        }
        stock
    }
}

impl Stock {
    /// A router with many rows must not be slower than the latency that it is told to have.
    fn place(&self, id: u64) -> Option<usize> {
        let guess = self.rows.partition_point(|r| r.id < id);
        if self.rows.get(guess).is_some_and(|r| r.id == id) {
            return Some(guess);
        }
        self.rows.iter().position(|r| r.id == id)
    }

    fn by_id(&self, id: u64) -> Option<&Stored> {
        self.rows.get(self.place(id)?)
    }

    /// The rows of `found`, as they stand in the menu.
    fn these(&self, found: &[u64]) -> impl Iterator<Item = &Stored> {
        let places: BTreeSet<usize> = found.iter().filter_map(|id| self.place(*id)).collect();
        places.into_iter().filter_map(|at| self.rows.get(at))
    }

    fn put(&mut self, at: usize, row: Stored) {
        self.vanishes = self.vanishes.into_iter().chain(row.vanishes).min();
        self.rows.insert(at, row);
    }
}

/// A row as JSON.
pub(crate) fn json(row: &Attributes) -> Map<String, Value> {
    row.iter()
        .map(|(name, value)| (name.clone(), Value::String(wire::text(value))))
        .collect()
}

fn id_text(id: u64) -> String {
    format!("*{id:X}")
}

fn key(menu: &Menu, row: &Stored) -> Option<Vec<Vec<u8>>> {
    let (names, _) = menu.unique?;
    Some(
        names
            .iter()
            .map(|n| row.values.get(*n).cloned().unwrap_or_default())
            .collect(),
    )
}

fn attributes(menu: &Menu, row: &Stored, now: u64, proplist: &[String]) -> Attributes {
    let wanted = |name: &str| proplist.is_empty() || proplist.iter().any(|p| p == name);
    let mut out = Vec::new();
    if wanted(".id") {
        out.push((".id".to_owned(), id_text(row.id).into_bytes()));
    }
    for prop in menu.props.iter().filter(|p| wanted(p.name)) {
        if prop.name == "timeout"
            && let Some(vanishes) = row.vanishes
        {
            let left = duration_text(vanishes.saturating_sub(now).div_ceil(1000));
            out.push((prop.name.to_owned(), left.into_bytes()));
        } else if let Some(value) = row.values.get(prop.name) {
            out.push((prop.name.to_owned(), value.clone()));
        }
    }
    out
}

fn writable(menu: &Menu, name: &str) -> Result<&'static Prop, Trap> {
    menu.prop(name)
        .filter(|p| p.writable)
        .ok_or_else(|| Trap::argument(format!("unknown parameter {name}")))
}

fn refuse_extra(args: &[(String, Vec<u8>)]) -> Result<(), Trap> {
    match args.first() {
        Some((name, _)) => Err(Trap::argument(format!("unknown parameter {name}"))),
        None => Ok(()),
    }
}

/// Stores one value; an empty one of a property without a default unsets it.
fn put(prop: &Prop, row: &mut Stored, value: &[u8], now: u64) -> Result<(), Trap> {
    if value.is_empty() && !prop.required && matches!(prop.default, None | Some("")) {
        match prop.default {
            Some(_) => drop(row.values.insert(prop.name.to_owned(), Vec::new())),
            None => drop(row.values.remove(prop.name)),
        }
        return Ok(());
    }
    let value = canonical(prop.kind, prop.name, value)?;
    if prop.kind == Kind::Duration && prop.name == "timeout" && prop.writable {
        let seconds = std::str::from_utf8(&value).ok().and_then(duration_s);
        row.vanishes = seconds.map(|s| now.saturating_add(s.saturating_mul(1000)));
        row.values.insert("dynamic".to_owned(), b"true".to_vec());
    }
    row.values.insert(prop.name.to_owned(), value);
    Ok(())
}

fn defaults(menu: &Menu, row: &mut Stored) {
    for prop in menu.props {
        if let Some(default) = prop.default {
            let value = default.as_bytes().to_vec();
            row.values.entry(prop.name.to_owned()).or_insert(value);
        }
    }
}

fn admit(menu: &Menu, stock: &mut Stock, row: &Stored) -> Result<(), Trap> {
    match (key(menu, row), menu.unique) {
        (Some(key), Some((_, refusal))) => {
            if stock.keys.insert(key) {
                Ok(())
            } else {
                Err(Trap::failure(refusal))
            }
        }
        _ => Ok(()),
    }
}

fn add(
    menu: &'static Menu,
    stock: &mut Stock,
    args: &[(String, Vec<u8>)],
    now: u64,
) -> Result<Change, Trap> {
    let mut row = Stored {
        id: stock.last_id + 1,
        ..Stored::default()
    };
    let mut before = None;
    for (name, value) in args {
        if name == "place-before" && menu.path == "/queue/simple" {
            before = find(menu, stock, value)?.first().copied();
            continue;
        }
        put(writable(menu, name)?, &mut row, value, now)?;
    }
    if menu.path == "/queue/simple" && !row.values.contains_key("name") {
        let name = format!("queue{}", row.id).into_bytes();
        row.values.insert("name".to_owned(), name);
    }
    for prop in menu.props.iter().filter(|p| p.required) {
        if !row.values.contains_key(prop.name) {
            return Err(Trap::missing(format!("missing ={}=", prop.name)));
        }
    }
    defaults(menu, &mut row);
    admit(menu, stock, &row)?;
    stock.last_id = row.id;
    let shown = attributes(menu, &row, now, &[]);
    let ret = id_text(row.id);
    let place = before.and_then(|id| stock.place(id));
    stock.put(place.unwrap_or(stock.rows.len()), row);
    Ok(Change {
        ret: Some(ret),
        rows: vec![shown],
    })
}

/// `*1,*2`, or names where the menu has them; one unknown refuses all.
fn find(menu: &Menu, stock: &Stock, ids: &[u8]) -> Result<Vec<u64>, Trap> {
    let mut found = Vec::new();
    let by_hex = |part: &[u8]| {
        let text = std::str::from_utf8(part).ok()?.strip_prefix('*')?;
        u64::from_str_radix(text, 16).ok()
    };
    for part in ids.split(|b| *b == b',') {
        let row = match by_hex(part) {
            Some(id) => stock.by_id(id),
            None if menu.by_name => stock
                .rows
                .iter()
                .find(|r| r.values.get("name").is_some_and(|n| n == part)),
            None => None,
        };
        found.push(row.ok_or_else(|| Trap::missing("no such item"))?.id);
    }
    Ok(found)
}

fn is_dynamic(row: &Stored) -> bool {
    row.values.get("dynamic").is_some_and(|d| d == b"true")
}

fn set(
    menu: &'static Menu,
    stock: &mut Stock,
    found: &[u64],
    args: &[(String, Vec<u8>)],
    now: u64,
) -> Result<Change, Trap> {
    let mut changed = Vec::new();
    for row in stock.these(found) {
        if is_dynamic(row) {
            return Err(Trap::failure("failure: can not change dynamic"));
        }
        let mut row = row.clone();
        for (name, value) in args {
            put(writable(menu, name)?, &mut row, value, now)?;
        }
        changed.push(row);
    }
    // Nothing is written before every row has been admitted.
    let old: Vec<_> = stock.these(found).filter_map(|r| key(menu, r)).collect();
    for key in &old {
        stock.keys.remove(key);
    }
    let mut admitted = Vec::new();
    for row in &changed {
        match admit(menu, stock, row) {
            Ok(()) => admitted.extend(key(menu, row)),
            Err(trap) => {
                for key in admitted {
                    stock.keys.remove(&key);
                }
                stock.keys.extend(old);
                return Err(trap);
            }
        }
    }
    let mut change = Change::default();
    for row in changed {
        change.rows.push(attributes(menu, &row, now, &[]));
        stock.vanishes = stock.vanishes.into_iter().chain(row.vanishes).min();
        let place = stock.place(row.id);
        if let Some(place) = place.and_then(|at| stock.rows.get_mut(at)) {
            *place = row;
        }
    }
    Ok(change)
}

fn remove(
    menu: &'static Menu,
    stock: &mut Stock,
    found: &[u64],
    rest: &[(String, Vec<u8>)],
    now: u64,
) -> Result<Change, Trap> {
    refuse_extra(rest)?;
    let going: Vec<Stored> = stock.these(found).cloned().collect();
    if !menu.dynamic_goes && going.iter().any(is_dynamic) {
        return Err(Trap::failure("failure: can not remove dynamic"));
    }
    for id in found {
        if let Some(at) = stock.place(*id) {
            stock.rows.remove(at);
        }
    }
    let mut change = Change::default();
    for row in going {
        if let Some(key) = key(menu, &row) {
            stock.keys.remove(&key);
        }
        change.rows.push(attributes(menu, &row, now, &[]));
    }
    Ok(change)
}

fn load_row(
    menu: &'static Menu,
    stock: &mut Stock,
    given: &Map<String, Value>,
    now: u64,
) -> Result<(), String> {
    let mut row = Stored {
        id: stock.last_id + 1,
        ..Stored::default()
    };
    for (name, value) in given {
        let value = value_text(value);
        if name == ".id" {
            row.id = value
                .strip_prefix('*')
                .and_then(|id| u64::from_str_radix(id, 16).ok())
                .filter(|id| *id > stock.last_id || stock.rows.iter().all(|r| r.id != *id))
                .ok_or_else(|| format!("the .id {value} is not *HEX or not unique"))?;
            continue;
        }
        let prop = menu
            .prop(name)
            .ok_or_else(|| format!("unknown property {name}"))?;
        put(prop, &mut row, value.as_bytes(), now).map_err(|t| t.message)?;
    }
    defaults(menu, &mut row);
    admit(menu, stock, &row).map_err(|t| t.message)?;
    stock.last_id = stock.last_id.max(row.id);
    stock.put(stock.rows.len(), row);
    Ok(())
}
