//! Lists whose conditions no index helps: walked from the newest id down in pieces of which each is
//! quick, until the page is full or the time of one look-up is over. Then the answer is what was
//! found, and from which id to go on: however large a table is, each page gets further.

use std::time::Duration;

use super::query::{Bound, Condition, Group, Model, Query, Test};
use super::{Error, EventRow, Filter, Result, Store, WhereIs};
use crate::clock;
use crate::event::EventId;

/// Longest time of one look-up of people, tools and the billing: with the rest of its answer it
/// is under a second.
pub const LOOK_MAX: Duration = Duration::from_millis(900);
/// Rows of the first piece, and of the largest.
const FIRST: u64 = 100;
const LARGEST: u64 = 1_000_000;
/// What one piece is to take: the last one may begin when the rest of the time is as long.
const PIECE: Duration = Duration::from_millis(120);
/// Most by which one piece is larger or smaller than the one before it.
const STEP: u64 = 4;

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Looked {
    /// Events that fit, newest first, at most `filter.limit`.
    pub rows: Vec<EventRow>,
    /// The time was over: events below this one were not looked at.
    pub down_to: Option<EventId>,
}

/// Events that fit `filter`, newest first, as far as the time of one look-up goes.
pub async fn look(store: &dyn Store, filter: &Filter) -> Result<Looked> {
    let tables = tables(filter)?;
    let (began, mut size) = (clock::tick_ms(), FIRST);
    let mut piece = filter.clone();
    let mut found = Looked::default();
    loop {
        let piece_began = clock::tick_ms();
        match one(store, &mut piece, &tables, size, began).await {
            Ok(rows) => found.rows.extend(rows),
            // It was too large; what is above it counts.
            Err(Error::TooLong) if piece.before != filter.before => {
                found.down_to = piece.before.map(EventId);
                return Ok(found);
            }
            Err(other) => return Err(other),
        }
        let Some(floor) = piece.from.filter(|_| found.rows.len() < filter.limit) else {
            found.rows.truncate(filter.limit);
            return Ok(found);
        };
        let now = clock::tick_ms();
        let left = LOOK_MAX.saturating_sub(since(began, now));
        if left < PIECE * 2 {
            found.down_to = Some(EventId(floor));
            return Ok(found);
        }
        size = next_size(size, since(piece_began, now));
        piece.before = Some(floor);
        piece.limit = filter.limit - found.rows.len();
    }
}

fn since(began_ms: u64, now_ms: u64) -> Duration {
    Duration::from_millis(now_ms.saturating_sub(began_ms))
}

/// As many rows as would have taken [`PIECE`], in steps: what lies deeper may be slower.
fn next_size(size: u64, took: Duration) -> u64 {
    let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    let wanted = size.saturating_mul(u64::try_from(PIECE.as_millis()).unwrap_or(1)) / took;
    wanted.clamp(size / STEP, size * STEP).clamp(1, LARGEST)
}

/// Tables that have to be read row by row for what is asked; the others find it by an index.
fn tables(filter: &Filter) -> Result<Vec<Model>> {
    let (places, state) = filter.places()?;
    let numbers = [filter.nas, filter.user, filter.abonent];
    let texts = [&filter.cmd, &filter.error];
    let asked = numbers.iter().any(Option::is_some)
        || texts.iter().any(|text| text.is_some())
        // Of these two all rows are.
        || state.is_some_and(|state| !["compact", "dead"].contains(&state));
    let read = |place: &&WhereIs| {
        let by_account = match place {
            WhereIs::Dead | WhereIs::Done => filter.user.is_some(),
            WhereIs::Compact | WhereIs::Stack => false,
        };
        asked && filter.batch.is_none() && !by_account
    };
    let model = |place: &WhereIs| match place {
        WhereIs::Compact => Model::Compact,
        WhereIs::Stack => Model::Stack,
        WhereIs::Dead => Model::Dead,
        WhereIs::Done => Model::Done,
    };
    Ok(places.iter().filter(read).map(model).collect())
}

/// The events of the piece below `piece.before` that has so many rows of each table; `piece.from` is
/// where it ends, none = at the end of all. A look that began at `began_ms` has one bound for all of
/// its statements.
async fn one(
    store: &dyn Store,
    piece: &mut Filter,
    tables: &[Model],
    size: u64,
    began_ms: u64,
) -> Result<Vec<EventRow>> {
    let in_time = || {
        let over = since(began_ms, clock::tick_ms()) >= LOOK_MAX;
        if over { Err(Error::TooLong) } else { Ok(()) }
    };
    piece.from = None;
    for table in tables {
        let below = piece.before.map(|before| Condition {
            path: Vec::new(),
            column: "id".to_owned(),
            test: Test::Below(Bound::Integer(before)),
        });
        let last = Query {
            groups: vec![Group {
                negated: false,
                all: below.into_iter().collect(),
            }],
            limit: 1,
            offset: size,
            ..Query::all(*table)
        };
        in_time()?;
        let row = store.find(&last).await?.pop();
        let floor = row.and_then(|row| row.get("id")?.as_i64());
        piece.from = piece.from.max(floor);
    }
    in_time()?;
    store.events(piece).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_fit_what_they_take() {
        let ms = Duration::from_millis;
        assert_eq!(next_size(500, ms(0)), 2_000, "in steps");
        assert_eq!(next_size(500, ms(60)), 1_000);
        assert_eq!(next_size(500, ms(120)), 500);
        assert_eq!(next_size(500, ms(60_000)), 125, "in steps");
        assert_eq!(next_size(1, ms(60_000)), 1, "it goes on");
        assert_eq!(next_size(900_000, ms(1)), LARGEST);
    }

    #[test]
    fn only_what_has_no_index_is_read_in_pieces() {
        use Model::{Compact, Dead, Done, Stack};
        let of = |state: Option<&str>| Filter {
            state: state.map(str::to_owned),
            ..Filter::default()
        };
        let cmd = |state: Option<&str>| Filter {
            cmd: Some("user_add".to_owned()),
            ..of(state)
        };
        let user = |state: Option<&str>| Filter {
            user: Some(7),
            ..cmd(state)
        };
        let batch = Filter {
            batch: Some("b".to_owned()),
            ..user(Some("all"))
        };
        for (filter, wanted) in [
            (of(None), vec![]),
            (of(Some("all")), vec![]),
            (of(Some("done")), vec![]),
            (of(Some("dead")), vec![]),
            (of(Some("dropped")), vec![Done]),
            (of(Some("held")), vec![Stack]),
            (cmd(Some("all")), vec![Compact, Stack, Dead, Done]),
            (cmd(None), vec![Compact, Stack]),
            (user(Some("all")), vec![Compact, Stack]),
            (user(Some("dead")), vec![]),
            (batch, vec![]),
        ] {
            assert_eq!(tables(&filter).unwrap(), wanted, "{filter:?}");
        }
    }
}
