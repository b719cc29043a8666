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

/// Most posts spelled out in one merged row; of the rest the numbers are kept.
const SPELLED_MAX: usize = 50;

/// The detail of one row for several changes of one caller and kind.
pub fn one_detail(details: &[String]) -> String {
    details.join("; ")
}

/// `3..7,9`
fn ranges(mut ids: Vec<EventId>) -> String {
    ids.sort_unstable();
    let mut runs: Vec<(EventId, EventId)> = Vec::new();
    for id in ids {
        match runs.last_mut() {
            Some((_, last)) if last.0 + 1 == id.0 => *last = id,
            _ => runs.push((id, id)),
        }
    }
    let each = runs.iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}..{last}")
        }
    });
    each.collect::<Vec<_>>().join(",")
}

/// What posts that share a transaction leave in the table: caller and detail, one row per caller,
/// so that a flood of posts costs one row per commit. `done`: what each did.
pub(super) fn of_posts<'a>(posts: &[Post<'a>], done: &[Result<Posted>]) -> Vec<(&'a str, String)> {
    let mut callers: Vec<(&str, Vec<String>, Vec<EventId>)> = Vec::new();
    for (post, done) in posts.iter().zip(done) {
        let (Some(who), Ok(Posted::New(ids))) = (post.who, done) else {
            continue;
        };
        let known = callers.iter().position(|(name, ..)| *name == who);
        let at = known.unwrap_or_else(|| {
            callers.push((who, Vec::new(), Vec::new()));
            callers.len() - 1
        });
        if let Some((_, details, rest)) = callers.get_mut(at) {
            if details.len() < SPELLED_MAX {
                details.push(of_post(ids, post.events));
            } else {
                rest.extend(ids);
            }
        }
    }
    let each = callers.into_iter().map(|(who, details, rest)| {
        let mut text = one_detail(&details);
        if !rest.is_empty() {
            let n = rest.len();
            text.push_str(&format!("; and events={} n={n}", ranges(rest)));
        }
        (who, text)
    });
    each.collect()
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
    fn of_what_is_not_spelled_out_the_numbers_are_kept() {
        let event = CompactEvent {
            cmd: "user_del".to_owned(),
            ..CompactEvent::default()
        };
        let posts: Vec<Post<'_>> = (0..60)
            .map(|_| Post {
                events: std::slice::from_ref(&event),
                guard: None,
                who: Some("crm"),
            })
            .collect();
        // Another caller's posts lie between some of them.
        let id = |n: i64| EventId(if n < 55 { n } else { n * 2 });
        let done: Vec<_> = (0..60).map(|n| Ok(Posted::New(vec![id(n)]))).collect();
        let rows = of_posts(&posts, &done);
        let detail = &rows[0].1;
        assert!(
            detail.starts_with("event=0 cmd=user_del; event=1 "),
            "{detail}"
        );
        let end = "event=49 cmd=user_del; and events=50..54,110,112,114,116,118 n=10";
        assert!(detail.ends_with(end), "{detail}");
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
