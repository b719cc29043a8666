//! Why an event waits, for the command line: the sentence is the API's own, the facts come from the
//! database and from a running daemon, if there is one.

use super::ctl::Ctl;
use super::exit::Failed;
use crate::config::Config;
pub use crate::intake::waiting::{Facts, facts, of_the_daemon, sentence};
use crate::store::{EventRow, Store, WhereIs};

/// Gathers the facts and says why; none for an event that has ended well.
pub async fn why(
    config: &Config,
    store: &dyn Store,
    row: &EventRow,
) -> Result<Option<String>, Failed> {
    let live = match row.place {
        WhereIs::Done | WhereIs::Dead => None,
        WhereIs::Compact | WhereIs::Stack => Ctl::new(config)?.look("/api/v1/status").await?,
    };
    let facts = facts(store, row, live.as_ref()).await?;
    Ok(sentence(row, &facts))
}

/// What an operator can do about an event that ended badly.
pub fn after_the_end(row: &EventRow) -> Option<String> {
    (row.place == WhereIs::Dead && row.retried_as.is_none()).then(|| {
        format!(
            "hint: correct the cause, then event retry {}; the account's log has every line that was sent",
            row.id
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    #[test]
    fn only_what_can_be_retried_is_offered() {
        let mut row = EventRow {
            user_id: Some(1),
            nas_id: Some(5),
            try_count: 2,
            ..EventRow::new(EventId(9), WhereIs::Dead, "dead", "user_add")
        };
        assert!(after_the_end(&row).unwrap().contains("event retry 9"));
        row.retried_as = Some(10);
        assert_eq!(after_the_end(&row), None);
    }
}
