//! The audit trail of the doors: a change is answered only after it is in the audit table.
//! Notes that gather while one is being written go into the table together, one row per
//! caller and kind. Posts are not noted here: their rows are written by their own transaction.

use std::sync::{Mutex, PoisonError};

use crate::store::{Store, one_detail};

/// Notes on their way into the audit table.
#[derive(Default)]
pub struct Trail {
    pending: Mutex<Pending>,
    /// Number of the last note that was written; its lock is held while writing.
    written: tokio::sync::Mutex<u64>,
}

#[derive(Default)]
struct Pending {
    last: u64,
    notes: Vec<Note>,
}

struct Note {
    who: String,
    what: &'static str,
    details: Vec<String>,
}

impl Trail {
    /// Returns when the note is in the table. If the table cannot be written, the daemon log
    /// keeps the note: the change itself has happened and must not be reported as failed.
    pub async fn note(&self, store: &dyn Store, who: &str, what: &'static str, detail: String) {
        let mine = self.add(who, what, detail);
        let mut written = self.written.lock().await;
        if *written >= mine {
            return;
        }
        let (last, notes) = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            (pending.last, std::mem::take(&mut pending.notes))
        };
        for note in notes {
            let detail = one_detail(&note.details);
            if let Err(error) = store.audit(&note.who, note.what, &detail).await {
                tracing::error!(who = note.who, what = note.what, detail, %error,
                    "cannot write the audit table; this line is the only record");
            }
        }
        *written = last;
    }

    fn add(&self, who: &str, what: &'static str, detail: String) -> u64 {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let known = pending
            .notes
            .iter_mut()
            .find(|n| n.who == who && n.what == what);
        match known {
            Some(note) => note.details.push(detail),
            None => pending.notes.push(Note {
                who: who.to_owned(),
                what,
                details: vec![detail],
            }),
        }
        pending.last += 1;
        pending.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_one_caller_and_kind_become_one_row() {
        let trail = Trail::default();
        assert_eq!(trail.add("crm", "retry", "id=1".to_owned()), 1);
        assert_eq!(trail.add("crm", "retry", "id=2".to_owned()), 2);
        assert_eq!(trail.add("crm", "drop", "id=1".to_owned()), 3);
        let pending = trail.pending.lock().unwrap();
        let rows: Vec<_> = pending
            .notes
            .iter()
            .map(|n| one_detail(&n.details))
            .collect();
        assert_eq!(rows, ["id=1; id=2", "id=1"]);
    }
}
