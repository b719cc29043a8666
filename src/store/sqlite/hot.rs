//! The usual turn in one step: settles that all ended alike, and starts. A step is a hand-over
//! to the thread that owns the connection and back, which costs more than the SQL, so the whole
//! transaction goes out together. Between its statements stand guards that fail unless every
//! compare-and-set matched; then nothing is kept and the turn is taken the careful way.

use std::sync::OnceLock;

use serde_json::json;

use super::stack::Read;
use super::{Writer, sql};
use crate::store::{Result, SettleTo, Turn};

/// Settles per statement text; a turn takes the next larger one and leaves the rest NULL.
const SIZES: [usize; 6] = [0, 4, 16, 64, 128, 512];
/// Parameters before the first settle. They are named (`$n`): a statement that skips a number of
/// `?n` would shift what the library binds to the next statements of the text.
const FIXED: usize = 7;
/// SQLite's extended result code of a NOT NULL constraint, which only a guard violates here.
const GUARD: &str = "1299";

/// What the settles of a turn have in common.
pub(super) struct Alike<'a> {
    result: &'a str,
    code: i32,
    hash: &'a str,
}

/// Whether this turn is of the usual kind.
pub(super) fn alike(turn: &Turn) -> Option<Alike<'_>> {
    if turn.again || turn.settles.len() > 512 {
        return None;
    }
    let mut common: Option<Alike<'_>> = None;
    for s in &turn.settles {
        let SettleTo::Done {
            result,
            answer: None,
            scheme_hash,
        } = &s.to
        else {
            return None;
        };
        if s.try_count.is_none() || s.error.is_some() {
            return None;
        }
        let this = Alike {
            result: result.as_str(),
            code: s.code,
            hash: scheme_hash,
        };
        match &common {
            None => common = Some(this),
            Some(c) if c.result == this.result && c.code == this.code && c.hash == this.hash => {}
            Some(_) => return None,
        }
    }
    Some(common.unwrap_or(Alike {
        result: "done",
        code: 0,
        hash: "",
    }))
}

/// Writes the turn; `false` = not every row was as expected, and nothing was written.
pub(super) async fn write(
    writer: &mut Writer,
    turn: &Turn,
    starts: &mut [Read],
    alike: &Alike<'_>,
) -> Result<bool> {
    if starts.iter().any(|s| !s.waits) {
        return Ok(false);
    }
    let Some((size, text)) = text(turn.settles.len(), !starts.is_empty()) else {
        return Ok(false);
    };
    let ids = json!(starts.iter().map(|s| s.event.id).collect::<Vec<_>>()).to_string();
    let mut query = sqlx::query(text)
        .bind(alike.result)
        .bind(alike.code)
        .bind(alike.hash)
        .bind(turn.epoch)
        .bind(ids)
        .bind(i64::try_from(turn.settles.len()).unwrap_or(i64::MAX))
        .bind(i64::try_from(starts.len()).unwrap_or(i64::MAX));
    for s in &turn.settles {
        query = query
            .bind(s.id.0)
            .bind(s.try_count.map(i64::from))
            .bind(s.ms);
    }
    // The library stops binding at the first number that has no value.
    for _ in turn.settles.len()..size {
        query = query.bind(None::<i64>).bind(None::<i64>).bind(None::<i64>);
    }
    // Until it is known how the transaction ended, also if this call is cancelled.
    writer.open = true;
    match query.execute(&mut writer.conn).await {
        Ok(_) => writer.open = false,
        Err(error) => {
            writer.close().await;
            let code = error.as_database_error().and_then(|e| e.code());
            if code.as_deref() == Some(GUARD) {
                metrics::counter!("nas_event_daemon_turns_retaken_total").increment(1);
                return Ok(false);
            }
            return Err(sql("write a turn")(error));
        }
    }
    for s in starts {
        s.event.try_count += 1;
    }
    Ok(true)
}

/// The statements for up to this many settles, built once, and how many they hold.
fn text(settles: usize, starts: bool) -> Option<(usize, &'static str)> {
    static TEXTS: OnceLock<Vec<[String; 2]>> = OnceLock::new();
    let texts = TEXTS.get_or_init(|| {
        SIZES
            .iter()
            .map(|n| [build(*n, false), build(*n, true)])
            .collect()
    });
    let (at, size) = SIZES.iter().enumerate().find(|(_, n)| **n >= settles)?;
    let text = texts.get(at)?.get(usize::from(starts))?;
    Some((*size, text))
}

fn build(settles: usize, starts: bool) -> String {
    let mut text = "begin immediate;".to_owned();
    let guard = |expected: &str| {
        format!(
            "insert into owner (scope, epoch, holder, seen_at)
             select '', null, '', '' where changes() <> {expected};"
        )
    };
    if settles > 0 {
        let first = |i: usize| FIXED + 3 * i + 1;
        let rows: Vec<String> = (0..settles)
            .map(|i| format!("(${},${},${})", first(i), first(i) + 1, first(i) + 2))
            .collect();
        let ids: Vec<String> = (0..settles).map(|i| format!("${}", first(i))).collect();
        text.push_str(&format!(
            "with j(id, try, ms) as (values {})
             insert into events_done (id, event_type, user_id, abonent_id, nas_id, usluga_id,
               acct_session_id, event_date, owner_script, owner_function, source, batch_id, result, code,
               ms, attempts, scheme_hash, possible_duplicate, started_at)
             select e.id, e.event_type, e.user_id, e.abonent_id, e.nas_id, e.usluga_id, e.acct_session_id,
               e.event_date, e.owner_script, e.owner_function, e.source, e.batch_id, $1, $2, j.ms,
               e.try_count, $3, e.possible_duplicate, e.started_at
             from j cross join events_stack e
             where e.id = j.id and e.state = 'running' and e.epoch = $4 and e.try_count = j.try
               and (select epoch from owner where scope = 'all') = $4;
             {}
             delete from events_stack where id in ({});
             {}",
            rows.join(","),
            guard("$6"),
            ids.join(","),
            guard("$6")
        ));
    }
    if starts {
        text.push_str(
            "update events_stack set state = 'running', epoch = $4, try_count = try_count + 1,
               started_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
             where id in (select value from json_each($5)) and state in ('ready', 'deferred')
               and (select epoch from owner where scope = 'all') = $4;",
        );
        text.push_str(&guard("$7"));
    }
    text.push_str("commit;");
    text
}

#[cfg(test)]
mod tests {
    use super::super::Sqlite;
    use super::*;
    use crate::attempt::DoneResult;
    use crate::event::{EventId, Params};
    use crate::store::{Settle, Started};

    // The careful way gives the same result, so nothing else would notice that this one fails.
    #[tokio::test]
    async fn the_usual_turn_takes_the_short_way_and_any_other_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/short.db", dir.path().display());
        let store = Sqlite::open(&url).await.unwrap();
        let mut writer = store.write().await;
        let fill = "insert into owner values ('all', 3, 'me', '');
          with recursive n(i) as (select 1 union all select i + 1 from n where i < 200)
          insert into events_stack (id, event_type, nas_id, params, class, event_date)
            select i, 'user_edit', 1, '{}', 3, '' from n";
        sqlx::raw_sql(fill).execute(&mut writer.conn).await.unwrap();
        let turn =
            |settles: std::ops::Range<i64>, try_count: u32, starts: std::ops::Range<i64>| Turn {
                epoch: 3,
                settles: settles
                    .map(|id| Settle {
                        id: EventId(id),
                        try_count: Some(try_count),
                        to: SettleTo::Done {
                            result: DoneResult::Done,
                            answer: None,
                            scheme_hash: String::new(),
                        },
                        code: 0,
                        ms: 1,
                        error: None,
                    })
                    .collect(),
                starts: starts.map(EventId).collect(),
                again: false,
            };
        let mut taken = Vec::new();
        for (turn, right) in [
            (turn(1..1, 1, 1..71), true),
            (turn(1..4, 1, 71..72), true),
            (turn(4..71, 1, 72..140), true),
            (turn(71..140, 2, 140..150), false),
            (turn(71..140, 1, 139..150), false),
            (turn(71..140, 1, 1..1), true),
        ] {
            let read = |id: &EventId| Read {
                event: Started {
                    id: *id,
                    cmd: String::new(),
                    user: None,
                    abonent: None,
                    usluga: None,
                    params: Params::default(),
                    try_count: 0,
                    possible_duplicate: false,
                },
                waits: true,
            };
            let mut starts: Vec<Read> = turn.starts.iter().map(read).collect();
            let alike = alike(&turn).unwrap();
            let done = write(&mut writer, &turn, &mut starts, &alike)
                .await
                .unwrap();
            taken.push((done, right));
        }
        assert!(taken.iter().all(|(done, right)| done == right), "{taken:?}");
        let count =
            "select (select count(*) from events_done), (select count(*) from events_stack)";
        let (done, left): (i64, i64) = sqlx::query_as(count)
            .fetch_one(&mut writer.conn)
            .await
            .unwrap();
        assert_eq!((done, left), (139, 61));
    }
}
