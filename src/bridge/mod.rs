//! The bridge: takes rows of a foreign stack and makes them events here, for billings whose
//! programs cannot insert elsewhere. A process of its own (`nas_event_daemon bridge`), so that a
//! slow source never slows the daemon.
//!
//! A row is posted with the key `source:id` first, and only then deleted or marked there. Killed
//! between the two, it is posted again after the restart with the same key, which gives the
//! number of the event that is there already: nothing is lost, nothing is doubled. Until the
//! source has said that it is done, the key is kept for a year, and after that like any other.

mod isql;
pub mod map;
pub mod sheet;
pub mod source;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::attempt::DoneResult;
use crate::event::{CompactEvent, EventId};
use crate::store::{self, Idempotency, Post, Posted, Store};

use map::{Cell, Map, Then};
use source::Source;

/// Rows that share a commit.
const SHARING_MAX: usize = 100;
/// Rows told of their events in one turn.
const ENDS: usize = 500;
/// Rows that are no events and cannot be marked, remembered so that they are not looked at in
/// vain; with more of them somebody has to look at the source.
const BAD_MAX: usize = 10_000;

/// States at the source after which a row is not looked at again.
const FINALS: &[&str] = &[
    DoneResult::Done.as_str(),
    DoneResult::Observed.as_str(),
    DoneResult::Expired.as_str(),
    DoneResult::Superseded.as_str(),
    DoneResult::NotImplemented.as_str(),
    DoneResult::Dropped.as_str(),
    "dead",
    "gone",
    "refused",
];

/// What can go wrong; all of it may work later.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// At the source.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// Here.
    #[error("our database: {}", store::chain(.0))]
    Store(#[from] store::Error),
}

/// What one turn did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Rows that are events now, and taken there.
    pub taken: usize,
    /// Those of them that had been posted by a bridge that died before it could take them.
    pub again: usize,
    /// Rows that are no events, with the reason.
    pub refused: Vec<(i64, String)>,
    /// Rows that were told how their events stand.
    pub told: usize,
    /// There may be more rows at once.
    pub more: bool,
}

/// One source and our stack.
pub struct Bridge {
    map: Map,
    source: Source,
    store: Arc<dyn Store>,
    bad: BTreeSet<i64>,
    ends_after: i64,
}

impl Bridge {
    /// Nothing is asked yet.
    pub fn new(map: Map, store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self {
            source: Source::open(&map.source)?,
            map,
            store,
            bad: BTreeSet::new(),
            ends_after: 0,
        })
    }

    /// The first rows as they would be taken; nothing is changed anywhere.
    pub async fn look(&self) -> Result<Vec<(i64, Result<CompactEvent, String>)>, Error> {
        let rows = self
            .source
            .waiting(&self.map, self.map.source.batch)
            .await?;
        let mut seen = Vec::with_capacity(rows.len());
        for (id, cells) in rows.iter().filter_map(|row| split(row)) {
            seen.push((id, self.map.event(id, cells)));
        }
        Ok(seen)
    }

    /// Takes what waits, then tells rows how their events stand.
    pub async fn turn(&mut self) -> Result<Moved, Error> {
        let mut moved = self.take().await?;
        moved.told = self.tell().await?;
        Ok(moved)
    }

    async fn take(&mut self) -> Result<Moved, Error> {
        let mut moved = Moved::default();
        let limit = self.map.source.batch + self.bad.len();
        let rows = self.source.waiting(&self.map, limit).await?;
        let full = rows.len() >= limit;
        let mut asked = Vec::new();
        for (id, cells) in rows.iter().filter_map(|row| split(row)) {
            if self.bad.contains(&id) {
                continue;
            }
            let event = match self.map.event(id, cells) {
                Ok(event) => event,
                Err(reason) => {
                    moved.refused.push((id, reason));
                    continue;
                }
            };
            let key = self.map.key(id);
            let guard = Idempotency {
                // The key alone decides: a row that was changed meanwhile is still the same row.
                body_hash: key.clone(),
                key,
                lasting: true,
            };
            asked.push((id, [event], guard));
        }
        let mut taken = Vec::new();
        let mut keys = Vec::new();
        for some in asked.chunks(SHARING_MAX) {
            for ((id, _, guard), done) in some.iter().zip(self.post(some).await?) {
                let ids = match done {
                    Ok(Posted::New(ids)) => ids,
                    Ok(Posted::Again(ids)) => {
                        moved.again += 1;
                        ids
                    }
                    Ok(Posted::Conflict) => {
                        let reason = format!("its key {} is used by somebody else", guard.key);
                        moved.refused.push((*id, reason));
                        continue;
                    }
                    Err(error) => {
                        moved.refused.push((*id, store::chain(&error)));
                        continue;
                    }
                };
                taken.extend(ids.first().map(|event| (*id, *event)));
                keys.push(guard.key.clone());
            }
        }
        moved.taken = taken.len();
        self.source.change(self.taken(&taken)).await?;
        if let Err(error) = self.store.confirm_keys(&keys).await {
            // They are kept for longer than they need to be.
            tracing::warn!("bridge: {}", store::chain(&error));
        }
        self.refuse(&moved.refused).await?;
        // Rows that are marked as refused are not met again; unmarked ones would be.
        let marked = self.map.take.mark.is_some() && !moved.refused.is_empty();
        moved.more = full && (moved.taken > 0 || marked);
        Ok(moved)
    }

    /// Posts rows with one commit; if the database refuses it for one of them, each by itself.
    async fn post(
        &self,
        rows: &[(i64, [CompactEvent; 1], Idempotency)],
    ) -> Result<Vec<store::Result<Posted>>, Error> {
        let posts: Vec<Post<'_>> = rows
            .iter()
            .map(|(_, events, guard)| Post {
                events,
                guard: Some(guard),
                who: None,
            })
            .collect();
        match self.store.post_all(&posts).await {
            Ok(each) => return Ok(each),
            Err(error) if error.blames_a_row() => {}
            Err(error) => return Err(error.into()),
        }
        let mut each = Vec::with_capacity(posts.len());
        for post in &posts {
            each.push(
                match self.store.post_all(std::slice::from_ref(post)).await {
                    Ok(done) => done.into_iter().next().unwrap_or(Ok(Posted::Conflict)),
                    Err(error) if error.blames_a_row() => Err(error),
                    Err(error) => return Err(error.into()),
                },
            );
        }
        Ok(each)
    }

    /// What takes rows at the source. `and … is null`: a row is marked once.
    fn taken(&self, rows: &[(i64, EventId)]) -> Vec<String> {
        let (table, id) = (&self.map.take.table, &self.map.take.id);
        match (self.map.take.then, &self.map.take.mark) {
            (Then::Mark, Some(mark)) => rows
                .iter()
                .map(|(row, event)| {
                    format!(
                        "update {table} set {mark} = {event} where {id} = {row} and {mark} is null"
                    )
                })
                .collect(),
            (Then::Mark | Then::Delete, _) => rows
                .chunks(500)
                .map(|some| {
                    let ids: Vec<String> = some.iter().map(|(row, _)| row.to_string()).collect();
                    format!("delete from {table} where {id} in ({})", ids.join(", "))
                })
                .collect(),
        }
    }

    /// Marks rows that are no events, so that they are seen there and not looked at again.
    async fn refuse(&mut self, rows: &[(i64, String)]) -> Result<(), Error> {
        let Some(mark) = &self.map.take.mark else {
            for (id, _) in rows {
                if self.bad.len() < BAD_MAX {
                    self.bad.insert(*id);
                }
            }
            return Ok(());
        };
        let (table, id) = (&self.map.take.table, &self.map.take.id);
        let mut statements = Vec::new();
        for (row, reason) in rows {
            let mut set = vec![format!("{mark} = 0")];
            if let Some(back) = &self.map.back {
                set.push(format!("{} = 'refused'", back.state));
                let text = self.source.literal(&cut(reason, back.max));
                set.extend(back.error.as_ref().map(|error| format!("{error} = {text}")));
            }
            let set = set.join(", ");
            statements.push(format!(
                "update {table} set {set} where {id} = {row} and {mark} is null"
            ));
        }
        Ok(self.source.change(statements).await?)
    }

    /// Writes back how the events of taken rows stand, where that has changed.
    async fn tell(&mut self) -> Result<usize, Error> {
        let Some(back) = self.map.back.clone() else {
            return Ok(0);
        };
        let rows = self
            .source
            .open_ends(&self.map, FINALS, self.ends_after, ENDS)
            .await?;
        let full = rows.len() >= ENDS;
        let mut statements = Vec::new();
        let mut last = 0;
        for row in &rows {
            let Some((id, rest)) = split(row) else {
                continue;
            };
            last = id;
            let Some(event) = rest.first().and_then(number) else {
                continue;
            };
            let now = self.store.event(EventId(event)).await?;
            let (state, tries) = now
                .as_ref()
                .map_or(("gone", 0), |row| (row.state.as_str(), row.try_count));
            let told_state = rest.get(1) == Some(&Cell::Text(state.to_owned()));
            let told_tries = back.tries.is_none() || rest.get(2).and_then(number) == Some(tries);
            if told_state && told_tries {
                continue;
            }
            let text = |text: Option<&String>| match text {
                None => "null".to_owned(),
                Some(text) => self.source.literal(&cut(text, back.max)),
            };
            let mut set = vec![format!("{} = '{state}'", back.state)];
            set.extend(
                back.tries
                    .as_ref()
                    .map(|column| format!("{column} = {tries}")),
            );
            let error = text(now.as_ref().and_then(|row| row.error.as_ref()));
            set.extend(
                back.error
                    .as_ref()
                    .map(|column| format!("{column} = {error}")),
            );
            let answer = text(now.as_ref().and_then(|row| row.answer.as_ref()));
            set.extend(
                back.answer
                    .as_ref()
                    .map(|column| format!("{column} = {answer}")),
            );
            statements.push(format!(
                "update {} set {} where {} = {id}",
                self.map.take.table,
                set.join(", "),
                self.map.take.id
            ));
        }
        let told = statements.len();
        self.source.change(statements).await?;
        // Rows that wait for long must not hide those behind them.
        self.ends_after = if full { last } else { 0 };
        Ok(told)
    }
}

/// Key and the rest of a row; none if the key is no whole number.
fn split(row: &[Cell]) -> Option<(i64, &[Cell])> {
    let (id, rest) = row.split_first()?;
    Some((number(id)?, rest))
}

fn number(cell: &Cell) -> Option<i64> {
    match cell {
        Cell::Text(text) => text.trim().parse().ok(),
        Cell::Null | Cell::TooLong => None,
    }
}

fn cut(text: &str, max: usize) -> String {
    text.chars().filter(|c| *c != '\0').take(max).collect()
}
