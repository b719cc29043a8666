//! The mark above which the main stack takes only what is urgent. Rows that producers insert by
//! SQL cannot be refused at a door: beyond `http.high_water` they stay on the compact stack, where
//! they cost least, while those who paid still get through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock;
use crate::store::{Store, chain};

/// How often rows are counted at most, and urgent ones looked for: both read whole tables.
pub const LOOK: Duration = Duration::from_secs(1);
/// It ends at this share of the mark, in tenths, so that it does not flap.
const EASED: usize = 9;

/// How full the main stack is, as far as it is known.
#[derive(Debug)]
pub struct Level {
    mark: usize,
    /// Rows at the last count, and those moved since; what was settled since is not known.
    rows: usize,
    counted: Option<u64>,
    limited: Arc<AtomicBool>,
}

impl Level {
    /// `mark` 0 = none. `limited` tells the doors.
    pub fn new(mark: usize, limited: Arc<AtomicBool>) -> Self {
        Self {
            mark,
            rows: mark,
            counted: None,
            limited,
        }
    }

    /// Notes rows that came onto the main stack.
    pub fn add(&mut self, moved: usize) {
        self.rows = self.rows.saturating_add(moved);
    }

    /// Whether only urgent events may be expanded. Counts only where the answer is in doubt.
    pub async fn is_above(&mut self, store: &dyn Store) -> bool {
        let before = self.limited.load(Ordering::Relaxed);
        if self.mark == 0 || (self.rows < self.mark && !before) {
            return false;
        }
        let now = clock::tick_ms();
        let fresh = u64::try_from(LOOK.as_millis()).unwrap_or(1_000);
        if self
            .counted
            .is_some_and(|at| now.saturating_sub(at) < fresh)
        {
            return before;
        }
        self.counted = Some(now);
        match store.backlog(self.mark).await {
            Ok(backlog) => self.rows = backlog.main,
            Err(error) => {
                tracing::warn!("the main stack cannot be counted: {}", chain(&error));
                return before;
            }
        }
        let above = limited(before, self.rows, self.mark);
        if above != before {
            self.limited.store(above, Ordering::Relaxed);
            if above {
                tracing::error!(
                    "more than {} events are on the main stack (http.high_water): only those that give access and questions are expanded until it is below {}",
                    self.mark,
                    eased(self.mark)
                );
            } else {
                tracing::info!(
                    "the main stack is below http.high_water again: everything is expanded"
                );
            }
        }
        above
    }
}

fn eased(mark: usize) -> usize {
    (mark / 10).saturating_mul(EASED).max(1)
}

/// Between the two marks it stays as it was.
fn limited(before: bool, rows: usize, mark: usize) -> bool {
    rows >= mark || (before && rows >= eased(mark))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connect;

    #[tokio::test]
    async fn rows_are_counted_where_the_answer_is_in_doubt() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/ned.db", dir.path().display());
        let store = connect(&url).await.unwrap();
        let told = Arc::new(AtomicBool::new(false));
        let mut level = Level::new(10, Arc::clone(&told));
        assert!(!level.is_above(store.as_ref()).await);
        assert!(
            level.rows == 0 && level.counted.is_some(),
            "at first nobody knows"
        );
        level.counted = None;
        level.add(9);
        assert!(!level.is_above(store.as_ref()).await);
        assert_eq!((level.rows, level.counted), (9, None), "there is room");
        level.add(1);
        assert!(!level.is_above(store.as_ref()).await);
        assert!(
            level.rows == 0 && level.counted.is_some(),
            "it was in doubt"
        );
        // As long as a count is fresh it stays as it was.
        let now = clock::tick_ms();
        let fresh = u64::try_from(LOOK.as_millis()).unwrap();
        for (before, counted, above, rows) in [
            (true, now + fresh, true, 10),
            (false, now + fresh, false, 10),
            (true, now - fresh, false, 0),
        ] {
            told.store(before, Ordering::Relaxed);
            (level.rows, level.counted) = (10, Some(counted));
            assert_eq!(level.is_above(store.as_ref()).await, above);
            assert_eq!((level.rows, told.load(Ordering::Relaxed)), (rows, above));
        }
    }

    #[test]
    fn it_ends_below_nine_tenths() {
        for (before, rows, is) in [
            (false, 99, false),
            (false, 100, true),
            (true, 99, true),
            (true, 90, true),
            (true, 89, false),
        ] {
            assert_eq!(limited(before, rows, 100), is, "{before} {rows}");
        }
        // A mark of one event still has an end.
        assert!(!limited(true, 0, 1));
    }
}
