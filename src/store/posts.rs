//! Posts that share a transaction: which of them write, what becomes of their keys, and what each
//! is answered. Both stores ask it; only the statements are theirs.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Value, json};

use super::rows::kept_ms;
use super::{Error, Result};
use crate::event::{CompactEvent, EventId};

/// What `post` did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Posted {
    /// New rows, ids in the order of the events.
    New(Vec<EventId>),
    /// The same idempotency key came before with the same body: its ids.
    Again(Vec<EventId>),
    /// The same key came with another body.
    Conflict,
}

impl Posted {
    /// What a post gets whose key is known, given what is kept of the first one.
    pub(super) fn known(guard: &Idempotency, body_hash: &str, ids: &str) -> Self {
        if body_hash == guard.body_hash {
            Self::Again(serde_json::from_str(ids).unwrap_or_default())
        } else {
            Self::Conflict
        }
    }
}

/// Guards one `post` against being done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// Chosen by the producer; kept 24 h.
    pub key: String,
    /// SHA-256 of the body, hex.
    pub body_hash: String,
    /// Kept until [`super::Store::confirm_keys`], at most a year, and 24 h from the post in any case.
    pub lasting: bool,
}

/// One of several posts that share a transaction.
#[derive(Debug, Clone, Copy)]
pub struct Post<'a> {
    /// What it brings.
    pub events: &'a [CompactEvent],
    /// Its guard against being done twice.
    pub guard: Option<&'a Idempotency>,
    /// Under what name it stands in the audit table, from the same transaction on; none = it is
    /// not written there.
    pub who: Option<&'a str>,
}

/// Days that a lasting key is remembered; others have 24 hours.
pub(super) const LASTING_DAYS: u32 = 365;

/// Keys that were answered before: hash of the body, ids as JSON.
pub(super) type Kept = BTreeMap<String, (String, String)>;

/// Posts on their way into the compact stack.
pub(super) struct Plan<'a> {
    posts: &'a [Post<'a>],
    /// Of each post, or why it is refused.
    rows: Vec<Result<Vec<Value>>>,
    /// Of several posts with one key the first writes.
    first: BTreeMap<&'a str, (usize, &'a Idempotency)>,
    known: Kept,
}

impl<'a> Plan<'a> {
    pub(super) fn new(posts: &'a [Post<'a>]) -> Self {
        let rows: Vec<_> = posts.iter().map(rows_of).collect();
        let mut first = BTreeMap::new();
        for (index, (post, rows)) in posts.iter().zip(&rows).enumerate() {
            if let (Some(guard), Ok(_)) = (post.guard, rows) {
                first.entry(guard.key.as_str()).or_insert((index, guard));
            }
        }
        Self {
            posts,
            rows,
            first,
            known: Kept::new(),
        }
    }

    /// The keys of these posts, in their order, each once.
    pub(super) fn guards(&self) -> impl Iterator<Item = &'a Idempotency> {
        self.first.values().map(|(_, guard)| *guard)
    }

    /// Now it is known which of them were answered before.
    pub(super) fn know(&mut self, known: Kept) {
        self.first.retain(|key, _| !known.contains_key(*key));
        self.known = known;
    }

    fn writes(&self, index: usize) -> bool {
        let guard = self.posts.get(index).and_then(|post| post.guard);
        guard.is_none_or(|guard| {
            let first = self.first.get(guard.key.as_str());
            first.is_some_and(|(writer, _)| *writer == index)
        })
    }

    fn places(&self) -> Vec<Range<usize>> {
        let mut at = 0;
        let each = self.rows.iter().enumerate().map(|(index, rows)| {
            let start = at;
            if let (true, Ok(rows)) = (self.writes(index), rows) {
                at += rows.len();
            }
            start..at
        });
        each.collect()
    }

    /// What is to be inserted, in this order.
    pub(super) fn rows(&self) -> Vec<&Value> {
        let each = self.rows.iter().enumerate();
        each.filter(|(index, _)| self.writes(*index))
            .filter_map(|(_, rows)| rows.as_ref().ok())
            .flatten()
            .collect()
    }

    /// What is to be kept of each new key, now that the rows have their ids: ids as JSON.
    pub(super) fn keys(&self, ids: &[EventId]) -> Vec<(&'a Idempotency, String)> {
        let places = self.places();
        let each = self.first.values().map(|(index, guard)| {
            let place = places.get(*index).cloned().unwrap_or_default();
            (
                *guard,
                json!(ids.get(place).unwrap_or_default()).to_string(),
            )
        });
        each.collect()
    }

    /// What each post is answered.
    ///
    /// # Errors
    /// A key that was known is known no more: its first post was taken back meanwhile.
    pub(super) fn answers(self, ids: &[EventId]) -> Result<Vec<Result<Posted>>> {
        let new: Kept = self
            .keys(ids)
            .into_iter()
            .map(|(guard, ids)| (guard.key.clone(), (guard.body_hash.clone(), ids)))
            .collect();
        let places = self.places();
        let mut answers = Vec::with_capacity(self.posts.len());
        let wrote: Vec<bool> = (0..self.posts.len()).map(|i| self.writes(i)).collect();
        let each = self.posts.iter().zip(self.rows).zip(places).zip(wrote);
        for (((post, rows), place), wrote) in each {
            answers.push(match (rows, post.guard) {
                (Err(refused), _) => Err(refused),
                (Ok(_), Some(guard)) if !wrote => {
                    let kept = self.known.get(&guard.key).or_else(|| new.get(&guard.key));
                    let (hash, ids) = kept.ok_or_else(forgotten)?;
                    Ok(Posted::known(guard, hash, ids))
                }
                (Ok(_), _) => Ok(Posted::New(ids.get(place).unwrap_or_default().to_vec())),
            });
        }
        Ok(answers)
    }
}

fn forgotten() -> Error {
    Error::Sql {
        doing: "look an idempotency key up",
        source: sqlx::Error::RowNotFound,
    }
}

/// The rows of a post, if they can be stored.
fn rows_of(post: &Post<'_>) -> Result<Vec<Value>> {
    if post.guard.is_some_and(|guard| guard.key.contains('\0')) {
        return Err(nul("idempotency key"));
    }
    let rows = post.events.iter().map(|event| row_of(event, post.guard));
    rows.collect()
}

fn nul(place: &str) -> Error {
    Error::Refused(format!(
        "{place} holds a NUL character (U+0000), which a database cannot store: take it out"
    ))
}

/// Where a NUL character hides, as a path of names.
fn nul_in(value: &Value) -> Option<String> {
    let below = |name: &str, value: &Value| {
        nul_in(value).map(|rest| format!("{name}.{rest}").trim_end_matches('.').to_owned())
    };
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(list) => list.iter().find_map(nul_in),
        Value::Object(map) => map.iter().find_map(|(name, value)| {
            if name.contains('\0') {
                Some("a name".to_owned())
            } else {
                below(name, value)
            }
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// One compact row as an object of column names; `expires_ms` stands for `expires_at`.
pub(super) fn row_of(event: &CompactEvent, guard: Option<&Idempotency>) -> Result<Value> {
    let row = json!({
        "cmd": event.cmd,
        "user_id": event.user_id,
        "abonent_id": event.abonent_id,
        "nas_id": event.nas_id,
        "nas_ip": event.nas_ip,
        "usluga_id": event.usluga_id,
        "acct_session_id": event.acct_session_id,
        "params": event.params.clone().map(Value::Object),
        "params_complete": event.params_complete,
        "owner_script": event.owner_script,
        "owner_function": event.owner_function,
        "source": event.source,
        "batch_id": event.batch_id,
        "expires_ms": event.expires_at_ms.map(kept_ms),
        "idempotency_key": guard.map(|g| &g.key),
        "retried_from": event.retried_from,
    });
    match nul_in(&row) {
        None => Ok(row),
        Some(place) => Err(nul(&place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_is_found_wherever_it_hides() {
        let place = |event: CompactEvent| match row_of(&event, None) {
            Err(Error::Refused(text)) => text,
            other => format!("{other:?}"),
        };
        let nas_ip = CompactEvent {
            nas_ip: Some("10.0.0.1\0".into()),
            ..CompactEvent::default()
        };
        assert!(place(nas_ip).starts_with("nas_ip holds"));
        let params = CompactEvent {
            params: json!({"a": {"b": ["x", "y\0"]}}).as_object().cloned(),
            ..CompactEvent::default()
        };
        assert!(place(params).starts_with("params.a.b holds"));
        let written = CompactEvent {
            params: json!({"a": "\\u0000"}).as_object().cloned(),
            ..CompactEvent::default()
        };
        assert!(row_of(&written, None).is_ok(), "six characters, not one");
    }
}
