//! The rows of a busy menu, read once and kept for a minute: while a batch changes thousands of
//! accounts, each of them needs one sentence, not a look first. A router reads its whole table
//! for each look. Pure: time and the count of ended sessions are arguments.
//!
//! Only rows with a mark of ours are kept. What goes over our sessions keeps them true, whoever
//! sends it; a row that somebody else changes within that minute is seen when the router refuses
//! its `.id`, or at the next reading. So what is not among them is always looked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
/// Rows kept of all NASes together, about 60 MB.
const ROWS_MAX: usize = 300_000;
/// Changes that may come in while a menu is being read.
const CHANGES_MAX: usize = 10_000;

static ROWS: AtomicUsize = AtomicUsize::new(0);

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
        let rows = rows.marked(mark.1);
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
        let menu = menus.entry((path.to_owned(), mark.to_owned())).or_default();
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
        let made = rows
            .filter(|rows| rows.len() + ROWS.load(Ordering::Relaxed) <= ROWS_MAX)
            .and_then(|rows| Rows::new(reading.props, mark, &rows, now, reading.ended));
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
    pub(crate) fn heard(&self, command: &Command, result: Result<Option<&str>, &Failure>) {
        let Some((path, verb)) = command.path.rsplit_once('/') else {
            return;
        };
        if matches!(
            verb,
            "print" | "getall" | "get" | "find" | "listen" | "monitor"
        ) {
            return;
        }
        let mut menus = self.menus();
        for (_, menu) in menus.iter_mut().filter(|(key, _)| key.0 == path) {
            let change = match result {
                Ok(ret) => change_of(verb, &command.args, ret),
                Err(failure) if is_refusal(failure) => continue,
                Err(_) => Change::Void,
            };
            menu.change(change);
        }
    }

    fn menus(&self) -> MutexGuard<'_, HashMap<(String, String), Menu>> {
        self.menus.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            && !self.rows.as_ref().is_some_and(is_fresh);
        is_due.then(|| self.begin(ended))
    }

    fn begin(&mut self, ended: u64) -> Vec<String> {
        let props: Vec<String> = self.wanted.iter().cloned().collect();
        self.reading = Some(Reading {
            props: props.clone(),
            changes: Vec::new(),
            void: false,
            ended,
        });
        std::iter::once(".id".to_owned()).chain(props).collect()
    }

    fn change(&mut self, change: Change) {
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
    fn new(props: Vec<String>, mark: &str, rows: &[Row], at: u64, ended: u64) -> Option<Self> {
        let mut made = Self {
            mark: props.iter().position(|p| p == mark)?,
            props,
            of: HashMap::new(),
            marked: HashMap::new(),
            at,
            ended,
        };
        for row in rows {
            let dynamic = row
                .get("dynamic")
                .is_some_and(|d| d == "true" || d == "yes");
            if let Some(id) = row.get(".id").filter(|_| !dynamic) {
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

    fn marked(&self, mark: &str) -> Vec<Row> {
        let ids = self.marked.get(mark).into_iter().flatten();
        let row = |id: &str| {
            let values = self.of.get(id)?;
            let mut row: Row = BTreeMap::from([(".id".to_owned(), id.to_string())]);
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
                self.insert(id, of);
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
mod tests {
    use super::*;

    const PATH: &str = "/queue/simple";

    /// Verb, arguments, `=ret=`.
    type Said<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);

    fn props() -> Vec<String> {
        [".id", "name", "max-limit", "comment", "dynamic"]
            .map(str::to_owned)
            .to_vec()
    }

    fn row(id: &str, name: &str, limit: &str, comment: &str) -> Row {
        let all = [
            (".id", id),
            ("name", name),
            ("max-limit", limit),
            ("comment", comment),
        ];
        all.iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn find(known: &Known, mark: &str, now: u64, ended: u64) -> Found {
        known.find(PATH, ("comment", mark), &props(), now, ended)
    }

    /// So many looks at once; how often the menu is to be read.
    fn look(known: &Known, times: usize, now: u64, ended: u64) -> usize {
        let looks = (0..times).map(|_| known.looked(PATH, "comment", &props(), now, ended));
        looks.flatten().count()
    }

    /// A menu that has just been read.
    fn read(rows: Vec<Row>) -> Known {
        let known = Known::default();
        assert_eq!(look(&known, 63, 1_000, 0), 0);
        let due = known.looked(PATH, "comment", &props(), 1_000, 0).unwrap();
        assert_eq!(due, [".id", "comment", "dynamic", "max-limit", "name"]);
        assert_eq!(look(&known, 1, 1_000, 0), 0, "once");
        known.read(PATH, "comment", Some(rows), 1_500, 0);
        known
    }

    fn two() -> Known {
        read(vec![
            row("*1", "crb_1", "1M/1M", "crb_1"),
            row("*2", "crb_2", "1M/1M", "crb_2"),
            row("*3", "engineer", "1M/1M", ""),
        ])
    }

    fn ids(known: &Known, mark: &str) -> Vec<String> {
        let rows = find(known, mark, 2_000, 0).rows;
        rows.iter().map(|r| r[".id"].clone()).collect()
    }

    fn did(known: &Known, verb: &str, args: &[(&str, &str)], ret: Option<&str>) {
        let args = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let command = Command {
            path: format!("{PATH}/{verb}"),
            args: args.collect(),
            ..Command::default()
        };
        known.heard(&command, Ok(ret));
    }

    #[test]
    fn a_quiet_menu_is_never_read() {
        let known = Known::default();
        for n in 0..1_000 {
            assert_eq!(look(&known, 1, n * 1_000, 0), 0);
            assert_eq!(find(&known, "crb_1", n * 1_000, 0), Found::default());
        }
    }

    #[test]
    fn our_rows_are_found_by_their_mark() {
        let known = two();
        assert_eq!(
            find(&known, "crb_2", 2_000, 0).rows,
            [row("*2", "crb_2", "1M/1M", "crb_2")]
        );
        assert!(ids(&known, "crb_9").is_empty());
        assert!(ids(&known, "").is_empty(), "rows of nobody are not kept");
    }

    #[test]
    fn they_follow_what_goes_over_the_sessions() {
        let known = two();
        did(&known, "remove", &[(".id", "*1")], None);
        did(
            &known,
            "set",
            &[(".id", "*2"), ("max-limit", "5M/5M")],
            None,
        );
        did(
            &known,
            "add",
            &[("name", "crb_7"), ("comment", "crb_7")],
            Some("*7"),
        );
        assert!(ids(&known, "crb_1").is_empty());
        assert_eq!(ids(&known, "crb_7"), ["*7"]);
        assert_eq!(
            find(&known, "crb_2", 2_000, 0).rows[0]["max-limit"],
            "5M/5M"
        );
    }

    #[test]
    fn they_are_forgotten_when_it_is_not_known_what_stands() {
        assert_eq!(ids(&two(), "crb_2"), ["*2"]);
        let verbs: [Said<'_>; 6] = [
            ("move", &[(".id", "*1")], None),
            ("remove", &[(".id", "crb_1")], None),
            ("remove", &[("numbers", "0")], None),
            ("add", &[("name", "x"), ("comment", "crb_1")], None),
            ("add", &[("name", "x"), ("timeout", "1h")], Some("*9")),
            ("set", &[(".id", "*1"), ("comment", "mine")], None),
        ];
        for (verb, args, ret) in verbs {
            let known = two();
            did(&known, verb, args, ret);
            assert!(ids(&known, "crb_2").is_empty(), "{verb} {args:?}");
        }
        let failed = |failure: Failure| {
            let known = two();
            let command = Command {
                path: format!("{PATH}/remove"),
                args: vec![(".id".to_owned(), "*1".to_owned())],
                ..Command::default()
            };
            known.heard(&command, Err(&failure));
            ids(&known, "crb_2").len()
        };
        assert_eq!(failed(Failure::timeout("no answer")), 0);
        assert_eq!(failed(Failure::permanent("no such item (4)")), 0);
        assert_eq!(failed(Failure::permanent("failure: not permitted (9)")), 1);
        assert!(
            find(&two(), "crb_1", 2_000, 1).rows.is_empty(),
            "a session ended"
        );
        assert_eq!(find(&two(), "crb_1", 61_499, 0).rows.len(), 1);
        assert!(
            find(&two(), "crb_1", 61_500, 0).rows.is_empty(),
            "a minute old"
        );
    }

    #[test]
    fn changes_during_the_reading_are_not_lost() {
        let known = Known::default();
        look(&known, 64, 1_000, 0);
        did(&known, "remove", &[(".id", "*1")], None);
        did(
            &known,
            "add",
            &[("name", "crb_7"), ("comment", "crb_7")],
            Some("*7"),
        );
        let rows = vec![row("*1", "crb_1", "1M/1M", "crb_1")];
        known.read(PATH, "comment", Some(rows.clone()), 1_500, 0);
        assert!(ids(&known, "crb_1").is_empty());
        assert_eq!(ids(&known, "crb_7"), ["*7"]);
        // An unknown outcome during the reading, or a lost session: as if it had not been read.
        for ended in [0, 1] {
            let known = Known::default();
            look(&known, 64, 1_000, 0);
            if ended == 0 {
                did(&known, "move", &[], None);
            }
            known.read(PATH, "comment", Some(rows.clone()), 1_500, ended);
            assert_eq!(find(&known, "crb_1", 2_000, ended), Found::default());
            assert_eq!(look(&known, 9, 2_000, ended), 1, "{ended}");
        }
    }

    #[test]
    fn a_menu_that_cannot_be_read_is_left_alone_for_a_while() {
        let known = Known::default();
        look(&known, 64, 1_000, 0);
        known.read(PATH, "comment", None, 30_000, 0);
        assert_eq!(look(&known, 100, 629_999, 0), 0);
        assert_eq!(look(&known, 1, 630_000, 0), 1);
    }

    #[test]
    fn a_busy_menu_is_read_again_before_its_rows_are_too_old() {
        let known = two();
        let spared = |now| {
            let found = find(&known, "crb_1", now, 0);
            assert_eq!(found.rows.len(), 1);
            found.read.is_some()
        };
        assert!((0..100).all(|_| !spared(46_499)));
        assert!(spared(46_500));
        assert!(!spared(46_500), "once");
    }

    #[test]
    fn rows_with_a_property_that_was_not_read_are_not_known() {
        let known = two();
        let mut more = props();
        more.push("target".to_owned());
        let found = known.find(PATH, ("comment", "crb_1"), &more, 2_000, 0);
        assert_eq!(found, Found::default());
        let read = known.looked(PATH, "comment", &more, 1_600, 0).unwrap();
        assert!(read.contains(&"target".to_owned()));
    }
}
