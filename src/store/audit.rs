//! The audit table as people read it. Built on the operator's own SQL, so that both stores serve
//! it alike; it is only ever appended to, and shortened by `audit.keep`.

use serde::Serialize;

use super::{Post, Posted, Result, Store};
use crate::event::{CompactEvent, EventId};

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

/// Most single notes spelled out in one merged row; the rest is counted.
const SPELLED_MAX: usize = 50;

/// The detail of one row for several changes of one caller and kind.
pub fn one_detail(details: &[String]) -> String {
    let spelled: Vec<&str> = details
        .iter()
        .take(SPELLED_MAX)
        .map(String::as_str)
        .collect();
    let mut text = spelled.join("; ");
    if details.len() > SPELLED_MAX {
        text.push_str(&format!("; and {} more", details.len() - SPELLED_MAX));
    }
    text
}

/// What posts that share a transaction leave in the table: caller and detail, one row per caller,
/// so that a flood of posts costs one row per commit. `done`: what each did.
pub(super) fn of_posts<'a>(posts: &[Post<'a>], done: &[Result<Posted>]) -> Vec<(&'a str, String)> {
    let mut callers: Vec<(&str, Vec<String>)> = Vec::new();
    for (post, done) in posts.iter().zip(done) {
        let (Some(who), Ok(Posted::New(ids))) = (post.who, done) else {
            continue;
        };
        let detail = of_post(ids, post.events);
        match callers.iter_mut().find(|(name, _)| *name == who) {
            Some((_, details)) => details.push(detail),
            None => callers.push((who, vec![detail])),
        }
    }
    let each = callers.into_iter();
    each.map(|(who, details)| (who, one_detail(&details)))
        .collect()
}

fn of_post(ids: &[EventId], events: &[CompactEvent]) -> String {
    let cmd = events.first().map_or("", |e| e.cmd.as_str());
    match ids {
        [id] => format!("event={id} cmd={cmd}"),
        [first, .., last] => {
            let batch = events.first().and_then(|e| e.batch_id.as_deref());
            let batch = batch.map(|b| format!(" batch={b:?}")).unwrap_or_default();
            format!("events={first}..{last} n={}{batch}", ids.len())
        }
        [] => "no events".to_owned(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn posts_of_one_caller_are_one_row_and_those_that_wrote_nothing_none() {
        let event = CompactEvent {
            cmd: "user_del".to_owned(),
            ..CompactEvent::default()
        };
        let two = vec![event.clone(), event.clone()];
        let post = |who, events| Post {
            events,
            guard: None,
            who,
        };
        let one = std::slice::from_ref(&event);
        let posts = [
            post(Some("crm"), one),
            post(Some("shop"), one),
            post(Some("crm"), &two),
            post(None, one),
            post(Some("crm"), one),
        ];
        let ids = |ids: &[i64]| ids.iter().copied().map(EventId).collect();
        let done = [
            Ok(Posted::New(ids(&[1]))),
            Ok(Posted::Again(ids(&[2]))),
            Ok(Posted::New(ids(&[3, 4]))),
            Ok(Posted::New(ids(&[5]))),
            Ok(Posted::Conflict),
        ];
        let rows = of_posts(&posts, &done);
        assert_eq!(
            rows,
            [("crm", "event=1 cmd=user_del; events=3..4 n=2".to_owned())]
        );
    }

    #[test]
    fn what_is_too_much_for_a_row_is_counted() {
        let many: Vec<_> = (0..60).map(|n| n.to_string()).collect();
        assert!(one_detail(&many).ends_with("49; and 10 more"));
    }

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
