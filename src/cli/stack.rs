//! `stack count` and the classic `event_count.sh`.

use crate::store::Counts;

/// The two blocks of the original, as its database shell prints them.
pub fn classic(counts: &Counts) -> String {
    let _ = counts;
    String::new()
}
