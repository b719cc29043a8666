//! The audit table as people read it. Built on the operator's own SQL, so that both stores serve
//! it alike; it is only ever appended to, and shortened by `audit.keep`.

use serde::Serialize;

use super::{Result, Store};
use crate::clock;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    /// Number.
    pub id: i64,
    /// `YYYY-MM-DD HH:MM:SS…`, UTC.
    pub at: String,
    /// Token, `uid:0`, `cli:uid:0`, `open:10.0.0.5`.
    pub who: String,
    /// post, retry, drop, nas_pause, …
    pub what: String,
    /// With what.
    pub detail: String,
}

/// Rows below `before`, newest first, at most `limit`.
pub async fn audit_rows(
    store: &dyn Store,
    before: Option<i64>,
    limit: usize,
) -> Result<Vec<AuditRow>> {
    let before = before.unwrap_or(i64::MAX);
    let text = format!(
        "select id, at, who, what, detail from audit where id < {before} order by id desc limit {limit}"
    );
    let answer = store.sql(&text, false).await?;
    let each = answer.rows.into_iter().map(|row| {
        let mut values = row.into_iter().map(Option::unwrap_or_default);
        let mut next = || values.next().unwrap_or_default();
        AuditRow {
            id: next().parse().unwrap_or_default(),
            at: next(),
            who: next(),
            what: next(),
            detail: next(),
        }
    });
    Ok(each.collect())
}

/// Deletes at most `limit` rows from before `before_ms` (wall ms), the oldest first; how many.
pub async fn prune_audit(store: &dyn Store, before_ms: i64, limit: usize) -> Result<u64> {
    let before = clock::utc_text(before_ms);
    // The zone is for PostgreSQL, whatever its setting; SQLite compares as far as its texts go.
    let text = format!(
        "delete from audit where id in (select id from audit order by id limit {limit}) and at < '{before}+00'"
    );
    store.sql(&text, true).await.map(|answer| answer.changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_row_is_first_and_pages_follow() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/ned.db", dir.path().display());
        let store = crate::store::connect(&url).await.unwrap();
        for n in 1..=3 {
            store
                .audit("crm", "post", &format!("event={n}"))
                .await
                .unwrap();
        }
        let rows = audit_rows(store.as_ref(), None, 2).await.unwrap();
        let details: Vec<&str> = rows.iter().map(|r| r.detail.as_str()).collect();
        assert_eq!(details, ["event=3", "event=2"]);
        let rest = audit_rows(store.as_ref(), Some(rows[1].id), 2)
            .await
            .unwrap();
        assert_eq!(rest.len(), 1);
        assert_eq!(
            (rest[0].who.as_str(), rest[0].what.as_str()),
            ("crm", "post")
        );
        assert!(rest[0].at.starts_with("20"));
    }
}
