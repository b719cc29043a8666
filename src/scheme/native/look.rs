//! What stands on a NAS beside what an account's commands would make of it: the same steps,
//! walked with eyes only. A later command of the account wins over an earlier one, as it would on
//! the router. Rows are printed; nothing that changes anything is ever sent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::compare;
use super::step::Kind;
use super::walk::value;
use crate::driver::Row;
use crate::driver::sessions::Sessions;

type Words = [(Arc<str>, String)];

/// Something that stands otherwise than an account's flags want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `missing`, `foreign` (stands and should not, or is in the way) or `different`.
    pub kind: &'static str,
    /// Menu.
    pub path: String,
    /// What finds the row, or its `.id`.
    pub row: String,
    /// As it is.
    pub has: String,
    /// As it should be; empty = gone.
    pub wants: String,
}

/// What a walk has seen of one account.
pub(super) struct Look<'a> {
    pub(super) sessions: &'a Sessions,
    found: Mutex<Found>,
}

#[derive(Default)]
pub(super) struct Found {
    entries: Vec<Entry>,
    /// Menus in which rows of ours may stand.
    pub(super) paths: BTreeSet<String>,
    /// Steps that cannot be compared.
    pub(super) skipped: usize,
}

struct Entry {
    difference: Difference,
    /// The row itself; a missing one as it would be.
    stands: Row,
    keys: Vec<(String, String, String)>,
}

impl<'a> Look<'a> {
    pub(super) fn new(sessions: &'a Sessions) -> Self {
        Self {
            sessions,
            found: Mutex::default(),
        }
    }

    /// Whether a step cannot be compared: then it is counted, and not carried out.
    pub(super) fn skips(&self, kind: &Kind) -> bool {
        match kind {
            Kind::Ensure(_) | Kind::Absent(_) | Kind::Read(_) | Kind::Run(_) => false,
            Kind::Answer(_) | Kind::Assert { .. } => true,
            Kind::Call(_)
            | Kind::Coa(_)
            | Kind::Disconnect(_)
            | Kind::Exec(_)
            | Kind::Request(_) => {
                self.state().skipped += 1;
                true
            }
        }
    }

    /// What was found, in the order of the steps.
    pub(super) fn end(self) -> (Vec<Difference>, Found) {
        let mut found = self
            .found
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let entries = std::mem::take(&mut found.entries);
        let differences = entries.into_iter().filter_map(|entry| {
            let mut difference = entry.difference;
            if difference.kind == DIFFERENT {
                if entry.keys.is_empty() {
                    return None;
                }
                let shown = |pick: fn(&(String, String, String)) -> &String| {
                    let words = entry.keys.iter().map(|k| format!("{}={}", k.0, pick(k)));
                    words.collect::<Vec<_>>().join(" ")
                };
                difference.has = shown(|k| &k.1);
                difference.wants = shown(|k| &k.2);
            }
            Some(difference)
        });
        (differences.collect(), found)
    }

    /// `ensure` found `rows` by `find`; `mine` of them are ours.
    pub(super) fn wanted(
        &self,
        path: &str,
        find: &Words,
        set: &Words,
        all: &[(String, String)],
        mine: &[&Row],
        others: bool,
    ) {
        let mut found = self.state();
        found.paths.insert(path.to_owned());
        let row = shown(find);
        let is_mine = |stands: &Row| mine.iter().any(|m| same_row(m, stands));
        // What an earlier command wanted of the same row, and this one does not speak of.
        let mut before = Vec::new();
        found.entries.retain_mut(|entry| {
            let old = &entry.difference;
            if old.path != path || (old.row != row && !is_mine(&entry.stands)) {
                return true;
            }
            before.append(&mut entry.keys);
            false
        });
        before.retain(|(key, ..)| !set.iter().any(|(k, _)| **k == **key));
        let difference = |kind, has: String, wants: String| Difference {
            kind,
            path: path.to_owned(),
            row: row.clone(),
            has,
            wants,
        };
        if mine.is_empty() {
            let stands = all.iter().cloned().collect();
            let wants = all
                .iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect::<Vec<_>>()
                .join(" ");
            let (kind, has) = if others {
                (FOREIGN, "a row without our mark".to_owned())
            } else {
                (MISSING, String::new())
            };
            found.entries.push(Entry {
                difference: difference(kind, has, wants),
                stands,
                keys: Vec::new(),
            });
            return;
        }
        for stands in mine {
            let mut keys = before.clone();
            for (key, want) in set {
                let has = value(stands, key);
                if !compare::same(key, has, want) {
                    keys.push((key.to_string(), has.to_owned(), want.clone()));
                }
            }
            found.entries.push(Entry {
                difference: difference(DIFFERENT, String::new(), String::new()),
                stands: (*stands).clone(),
                keys,
            });
        }
    }

    /// `absent` matches `rows` of ours; `fits` says whether it would match another.
    pub(super) fn unwanted(&self, path: &str, rows: &[Row], fits: impl Fn(&Row) -> bool) {
        let mut found = self.state();
        found.paths.insert(path.to_owned());
        found.entries.retain(|entry| {
            let concerned = rows.iter().any(|row| same_row(row, &entry.stands));
            entry.difference.path != path || !(concerned || fits(&entry.stands))
        });
        for stands in rows {
            let words = stands
                .iter()
                .filter(|(k, v)| !v.is_empty() && *k != "dynamic" && *k != ".id");
            let has: Vec<_> = words.map(|(k, v)| format!("{k}={v}")).collect();
            found.entries.push(Entry {
                difference: Difference {
                    kind: FOREIGN,
                    path: path.to_owned(),
                    row: format!(".id={}", value(stands, ".id")),
                    has: has.join(" "),
                    wants: String::new(),
                },
                stands: stands.clone(),
                keys: Vec::new(),
            });
        }
    }

    fn state(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wanted, and not there.
const MISSING: &str = "missing";
/// There, and not wanted.
pub(super) const FOREIGN: &str = "foreign";
/// There, with other values.
const DIFFERENT: &str = "different";

fn same_row(a: &Row, b: &Row) -> bool {
    let id = value(a, ".id");
    !id.is_empty() && id == value(b, ".id")
}

fn shown(words: &Words) -> String {
    let words: Vec<_> = words.iter().map(|(k, v)| format!("{k}={v}")).collect();
    words.join(" ")
}
