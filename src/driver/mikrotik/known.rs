//! The rows of a busy menu, read once and kept for a minute: while a batch changes thousands of
//! accounts, each of them needs one sentence, not a look first. A router reads its whole table
//! for each look. Pure: time and the count of ended sessions are arguments.
//!
//! Only rows with a mark of ours are kept. What goes over our sessions keeps them true, whoever
//! sends it; a row that somebody else changes within that minute is seen when the router refuses
//! its `.id`, or at the next reading. So what is not among them is always looked for.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Command;
use crate::attempt::{Failure, FailureClass};
use crate::driver::Row;

/// Looks at once that make a menu busy; they are forgotten one a second.
const BUSY: f64 = 64.0;
/// Rows are believed for this time after they were read, ms.
const BELIEVED_MS: u64 = 60_000;
/// A busy menu is read again after this time, ms.
const AGAIN_MS: u64 = 45_000;
/// A menu that could not be read is not read for this time, ms.
const PAUSE_MS: u64 = 600_000;
/// Nor for this time after something of which nobody knows what it has changed: it may be
/// carried out late.
const DOUBT_MS: u64 = 60_000;
/// Menus of one router that are watched; paths may be made of an account's data.
const MENUS_MAX: usize = 64;
/// Rows with one mark that are found without asking: more are not of one account.
const MARKED_MAX: usize = 256;
/// Menus, of all NASes together, that are being read at once: each may be 64 MiB meanwhile.
const READINGS_MAX: usize = 4;
/// Rows kept of all NASes together, some 150 MB.
const ROWS_MAX: usize = 300_000;
/// Changes that may come in while a menu is being read.
const CHANGES_MAX: usize = 10_000;

static ROWS: AtomicUsize = AtomicUsize::new(0);
static READINGS: AtomicUsize = AtomicUsize::new(0);

/// What is known of the menus of one router.
#[derive(Default)]
pub(crate) struct Known {
    /// By path, and the property that carries the mark.
    menus: Mutex<HashMap<(String, String), Menu>>,
}

/// What [`Known::find`] says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Rows with the mark; none says nothing.
    pub(crate) rows: Vec<Row>,
    /// As [`Known::looked`].
    pub(crate) read: Option<Vec<String>>,
}

#[derive(Default)]
struct Menu {
    wanted: BTreeSet<String>,
    level: f64,
    level_at: u64,
    not_before: u64,
    reading: Option<Reading>,
    rows: Option<Rows>,
}

struct Reading {
    props: Vec<String>,
    changes: Vec<Change>,
    void: bool,
    ended: u64,
    /// The snapshot is no older.
    began: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        READINGS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
enum Change {
    Added(String, Vec<(String, String)>),
    Set(Vec<String>, Vec<(String, String)>),
    Removed(Vec<String>),
    /// Nobody knows what stands now.
    Void,
}

struct Rows {
    mark: usize,
    props: Vec<String>,
    of: HashMap<Box<str>, Box<[Box<str>]>>,
    marked: HashMap<Box<str>, Vec<Box<str>>>,
    /// Rows that were added without some of the properties: the router has filled them in.
    unsure: HashSet<Box<str>>,
    at: u64,
    ended: u64,
}

impl Drop for Rows {
    fn drop(&mut self) {
        ROWS.fetch_sub(self.of.len(), Ordering::Relaxed);
    }
}

impl Known {
    /// The rows of `path` that carry `mark`, with the properties `props`. `ended`: sessions that
    /// have ended so far, since the router may have been restarted then, or replaced.
    pub(crate) fn find(
        &self,
        path: &str,
        mark: (&str, &str),
        props: &[String],
        now: u64,
        ended: u64,
    ) -> Found {
        let mut menus = self.menus();
        let Some(menu) = menus.get_mut(&(path.to_owned(), mark.0.to_owned())) else {
            return Found::default();
        };
        menu.forget_old(now, ended);
        let Some(rows) = menu.rows.as_ref().filter(|rows| rows.cover(props)) else {
            return Found::default();
        };
        let rows = if rows.many(mark.1) {
            Vec::new()
        } else {
            rows.marked(mark.1)
        };
        // They spare a look.
        let read = if rows.is_empty() {
            None
        } else {
            menu.count(now, ended)
        };
        Found { rows, read }
    }

    /// Somebody looks for such rows: `Some` = the menu is busy, and the caller is to read it, with
    /// these properties, and to tell [`Self::read`].
    pub(crate) fn looked(
        &self,
        path: &str,
        mark: &str,
        props: &[String],
        now: u64,
        ended: u64,
    ) -> Option<Vec<String>> {
        let mut menus = self.menus();
        let key = (path.to_owned(), mark.to_owned());
        if menus.len() >= MENUS_MAX && !menus.contains_key(&key) {
            return None;
        }
        let menu = menus.entry(key).or_default();
        let wanted = props.iter().filter(|p| *p != ".id").cloned();
        menu.wanted.extend(wanted);
        menu.wanted.insert(mark.to_owned());
        menu.forget_old(now, ended);
        menu.count(now, ended)
    }

    /// The menu was read; `None` = it could not be.
    pub(crate) fn read(
        &self,
        path: &str,
        mark: &str,
        rows: Option<Vec<Row>>,
        now: u64,
        ended: u64,
    ) {
        let mut menus = self.menus();
        let Some(menu) = menus.get_mut(&(path.to_owned(), mark.to_owned())) else {
            return;
        };
        let Some(reading) = menu.reading.take() else {
            return;
        };
        // They are replaced, and must not stand in the way of those that replace them.
        menu.rows = None;
        let made = rows
            .and_then(|rows| Rows::new(&reading.props, mark, &rows, reading.began, reading.ended));
        let made = made.filter(|_| ROWS.load(Ordering::Relaxed) <= ROWS_MAX);
        let Some(mut made) = made else {
            menu.not_before = now.saturating_add(PAUSE_MS);
            return;
        };
        // A session that ended meanwhile, or a change that nobody knows the outcome of: next time.
        if reading.void || reading.ended != ended {
            return;
        }
        if reading.changes.iter().all(|change| made.apply(change)) {
            menu.rows = Some(made);
        }
    }

    /// What a command over one of the sessions has changed; `result` is its `=ret=`.
    pub(crate) fn heard(
        &self,
        command: &Command,
        result: Result<Option<&str>, &Failure>,
        now: u64,
    ) {
        let Some((path, verb)) = command.path.rsplit_once('/') else {
            return;
        };
        if is_look(verb) {
            return;
        }
        let mut menus = self.menus();
        for (_, menu) in menus.iter_mut().filter(|(key, _)| key.0 == path) {
            let change = match result {
                Ok(ret) => change_of(verb, &command.args, ret),
                Err(failure) if is_refusal(failure) => continue,
                Err(_) => Change::Void,
            };
            menu.change(change, now);
        }
    }

    /// These rows of ours were found by a look: one that is not known was made by somebody else,
    /// or late.
    pub(crate) fn seen(&self, path: &str, mark: &str, rows: &[Row], now: u64) {
        let mut menus = self.menus();
        let Some(menu) = menus.get_mut(&(path.to_owned(), mark.to_owned())) else {
            return;
        };
        let is_new = |known: &Rows| {
            let mut ids = rows.iter().filter(|row| is_ours(row, mark));
            ids.any(|row| row.get(".id").is_some_and(|id| !known.knows(id)))
        };
        if menu.rows.as_ref().is_some_and(is_new) {
            menu.change(Change::Void, now);
        }
    }

    /// Lets go of what is no longer true, and of menus that nobody looks into: a router that has
    /// become quiet does not take memory, and places among [`ROWS_MAX`], from the others.
    pub(crate) fn forget(&self, now: u64, ended: u64) {
        self.menus().retain(|_, menu| {
            menu.forget_old(now, ended);
            menu.is_in_use(now)
        });
    }

    fn menus(&self) -> MutexGuard<'_, HashMap<(String, String), Menu>> {
        self.menus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_look(verb: &str) -> bool {
    let looks = ["print", "getall", "get", "find", "listen", "monitor"];
    looks.contains(&verb) || verb.starts_with("reset-counters")
}

/// Rows that the router has made by itself carry no mark of ours that counts.
fn is_ours(row: &Row, mark: &str) -> bool {
    let dynamic = row
        .get("dynamic")
        .is_some_and(|d| d == "true" || d == "yes");
    !dynamic && row.get(mark).is_some_and(|m| !m.is_empty())
}

/// The router said no, and has changed nothing; an `.id` that it does not know means that what is
/// known of the menu is no longer true.
fn is_refusal(failure: &Failure) -> bool {
    let said = matches!(
        failure.class,
        FailureClass::Permanent | FailureClass::Refused
    );
    said && !failure.text.to_ascii_lowercase().contains("no such item")
}

fn change_of(verb: &str, args: &[(String, String)], ret: Option<&str>) -> Change {
    let ids = || {
        if args.iter().any(|(key, _)| key == "numbers") {
            return None;
        }
        let (_, ids) = args.iter().find(|(key, _)| key == ".id")?;
        let ids: Vec<String> = ids.split(',').map(str::to_owned).collect();
        ids.iter().all(|id| id.starts_with('*')).then_some(ids)
    };
    let values = || args.iter().filter(|(key, _)| key != ".id").cloned();
    match verb {
        "add" => {
            // A row with a time of its own is dynamic, and ends by itself.
            let timed = args.iter().any(|(key, _)| key == "timeout");
            match ret.filter(|_| !timed) {
                Some(id) => Change::Added(id.to_owned(), values().collect()),
                None => Change::Void,
            }
        }
        "set" => ids().map_or(Change::Void, |ids| Change::Set(ids, values().collect())),
        "remove" => ids().map_or(Change::Void, Change::Removed),
        _ => Change::Void,
    }
}

impl Menu {
    fn forget_old(&mut self, now: u64, ended: u64) {
        let is_true =
            |rows: &Rows| rows.ended == ended && now.saturating_sub(rows.at) < BELIEVED_MS;
        if !self.rows.as_ref().is_some_and(is_true) {
            self.rows = None;
        }
    }

    fn is_in_use(&self, now: u64) -> bool {
        self.rows.is_some()
            || self.reading.is_some()
            || now < self.not_before
            || now.saturating_sub(self.level_at) < BELIEVED_MS
    }

    /// One look more; what is to be read, if the menu is busy now.
    fn count(&mut self, now: u64, ended: u64) -> Option<Vec<String>> {
        let gone = now.saturating_sub(self.level_at) as f64 / 1_000.0;
        self.level = (self.level - gone).max(0.0) + 1.0;
        self.level_at = now;
        let is_fresh = |rows: &Rows| {
            now.saturating_sub(rows.at) < AGAIN_MS && self.wanted.iter().all(|p| rows.has(p))
        };
        let is_due = self.level >= BUSY
            && now >= self.not_before
            && self.reading.is_none()
            && ROWS.load(Ordering::Relaxed) < ROWS_MAX
            && READINGS.load(Ordering::Relaxed) < READINGS_MAX
            && !self.rows.as_ref().is_some_and(is_fresh);
        is_due.then(|| self.begin(now, ended))
    }

    fn begin(&mut self, now: u64, ended: u64) -> Vec<String> {
        READINGS.fetch_add(1, Ordering::Relaxed);
        let props: Vec<String> = self.wanted.iter().cloned().collect();
        self.reading = Some(Reading {
            props: props.clone(),
            changes: Vec::new(),
            void: false,
            ended,
            began: now,
        });
        std::iter::once(".id".to_owned()).chain(props).collect()
    }

    fn change(&mut self, change: Change, now: u64) {
        if matches!(change, Change::Void) {
            self.not_before = self.not_before.max(now.saturating_add(DOUBT_MS));
        }
        if self.rows.as_mut().is_some_and(|rows| !rows.apply(&change)) {
            self.rows = None;
        }
        if let Some(reading) = &mut self.reading {
            reading.void |= matches!(change, Change::Void) || reading.changes.len() >= CHANGES_MAX;
            if !reading.void {
                reading.changes.push(change);
            }
        }
    }
}

impl Rows {
    fn new(props: &[String], mark: &str, rows: &[Row], at: u64, ended: u64) -> Option<Self> {
        let mut made = Self {
            mark: props.iter().position(|p| p == mark)?,
            props: props.to_vec(),
            of: HashMap::new(),
            marked: HashMap::new(),
            unsure: HashSet::new(),
            at,
            ended,
        };
        for row in rows.iter().filter(|row| is_ours(row, mark)) {
            if let Some(id) = row.get(".id") {
                made.insert(id, |prop| row.get(prop).map_or("", String::as_str));
            }
        }
        Some(made)
    }

    fn insert<'v>(&mut self, id: &str, value: impl Fn(&str) -> &'v str) {
        let values: Box<[Box<str>]> = self.props.iter().map(|p| value(p).into()).collect();
        let Some(mark) = values.get(self.mark).filter(|m| !m.is_empty()).cloned() else {
            return;
        };
        if self.of.insert(id.into(), values).is_none() {
            ROWS.fetch_add(1, Ordering::Relaxed);
            self.marked.entry(mark).or_default().push(id.into());
        }
    }

    fn remove(&mut self, id: &str) {
        let Some(values) = self.of.remove(id) else {
            return;
        };
        ROWS.fetch_sub(1, Ordering::Relaxed);
        if let Some(mark) = values.get(self.mark)
            && let Some(ids) = self.marked.get_mut(mark)
        {
            ids.retain(|known| **known != *id);
            if ids.is_empty() {
                self.marked.remove(mark);
            }
        }
    }

    fn has(&self, prop: &str) -> bool {
        self.props.iter().any(|known| known == prop)
    }

    fn cover(&self, props: &[String]) -> bool {
        props.iter().all(|p| p == ".id" || self.has(p))
    }

    fn knows(&self, id: &str) -> bool {
        self.of.contains_key(id) || self.unsure.contains(id)
    }

    fn many(&self, mark: &str) -> bool {
        let ids = self.marked.get(mark);
        ids.is_some_and(|ids| ids.len() > MARKED_MAX)
    }

    fn marked(&self, mark: &str) -> Vec<Row> {
        let ids = self.marked.get(mark).into_iter().flatten();
        let row = |id: &str| {
            let values = self.of.get(id)?;
            let mut row: Row = BTreeMap::from([(".id".to_owned(), id.to_owned())]);
            let present = self.props.iter().zip(values).filter(|(_, v)| !v.is_empty());
            row.extend(present.map(|(k, v)| (k.clone(), v.to_string())));
            Some(row)
        };
        ids.filter_map(|id| row(id)).collect()
    }

    /// `false`: it is not known any more what stands.
    fn apply(&mut self, change: &Change) -> bool {
        let value = |args: &[(String, String)], prop: &str| {
            args.iter().find(|(k, _)| k == prop).map(|(_, v)| v.clone())
        };
        match change {
            Change::Added(id, args) => {
                let of = |prop: &str| {
                    let found = args.iter().find(|(key, _)| key == prop);
                    found.map_or("", |(_, value)| value.as_str())
                };
                let told =
                    |prop: &String| prop == "dynamic" || args.iter().any(|(key, _)| key == prop);
                if self.props.iter().all(told) {
                    self.insert(id, of);
                } else {
                    self.unsure.insert(id.as_str().into());
                }
            }
            Change::Set(ids, args) => {
                let mark = self.props.get(self.mark).map_or("", String::as_str);
                if value(args, mark).is_some() {
                    return false;
                }
                for id in ids {
                    let Some(values) = self.of.get_mut(id.as_str()) else {
                        continue;
                    };
                    for (prop, old) in self.props.iter().zip(values.iter_mut()) {
                        if let Some(new) = value(args, prop) {
                            *old = new.into();
                        }
                    }
                }
            }
            Change::Removed(ids) => ids.iter().for_each(|id| self.remove(id)),
            Change::Void => return false,
        }
        true
    }
}

#[cfg(test)]
#[path = "known_test.rs"]
mod tests;
