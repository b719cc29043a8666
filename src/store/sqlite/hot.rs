//! The usual turn in one step: settles that all ended alike, and starts. A step is a hand-over
//! to the thread that owns the connection and back, which costs more than the SQL, so the whole
//! transaction goes out together. Between its statements stand guards that fail unless every
//! compare-and-set matched; then nothing is kept and the turn is taken the careful way.

use std::sync::OnceLock;

use serde_json::json;

use super::{Writer, sql};
use crate::clock;
use crate::event::{EventId, StoredParams, UserId};
use crate::store::{Result, SettleTo, Started, Turn};

/// Settles per statement text; a turn takes the next larger one and leaves the rest NULL.
const SIZES: [usize; 7] = [0, 4, 16, 32, 64, 128, 512];
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

/// Writes the turn and gives what it started; `None` = not every row was as expected, and
/// nothing was written.
pub(super) async fn write(
    writer: &mut Writer,
    turn: &Turn,
    alike: &Alike<'_>,
) -> Result<Option<Vec<Started>>> {
    let Some((size, text)) = text(turn.settles.len(), !turn.starts.is_empty()) else {
        return Ok(None);
    };
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let now = clock::utc_text(clock::wall_ms());
    // Values in the order of their places in the text: a named place costs a search of all names.
    let mut query = sqlx::query_as::<_, (Option<Vec<u8>>,)>(text);
    if size > 0 {
        for s in &turn.settles {
            query = query
                .bind(s.id.0)
                .bind(s.try_count.map(i64::from))
                .bind(s.ms);
        }
        for _ in turn.settles.len()..size {
            query = query.bind(None::<i64>).bind(None::<i64>).bind(None::<i64>);
        }
        query = query
            .bind(alike.result)
            .bind(alike.code)
            .bind(alike.hash)
            .bind(&now)
            .bind(turn.epoch)
            .bind(turn.epoch)
            .bind(count(turn.settles.len()));
        for s in &turn.settles {
            query = query.bind(s.id.0);
        }
        for _ in turn.settles.len()..size {
            query = query.bind(None::<i64>);
        }
        query = query.bind(count(turn.settles.len()));
    }
    if !turn.starts.is_empty() {
        let ids = json!(turn.starts).to_string();
        query = query
            .bind(turn.epoch)
            .bind(&now)
            .bind(ids.clone())
            .bind(turn.epoch)
            .bind(count(turn.starts.len()))
            .bind(ids);
    }
    // Until it is known how the transaction ended, also if this call is cancelled.
    writer.open = true;
    // All rows: to stop at the first would leave the rest of the text, its commit, undone.
    let rows = match query.fetch_all(&mut writer.conn).await {
        Ok(rows) => {
            writer.open = false;
            rows
        }
        Err(error) => {
            writer.close().await;
            let code = error.as_database_error().and_then(|e| e.code());
            if code.as_deref() == Some(GUARD) {
                metrics::counter!("nas_event_daemon_turns_retaken_total").increment(1);
                return Ok(None);
            }
            return Err(sql("write a turn")(error));
        }
    };
    let rows = rows.into_iter().next().and_then(|row| row.0);
    // A billing's text may be in any encoding: what is no UTF-8 must not hold up a whole turn.
    rows.map_or_else(
        || Ok(Vec::new()),
        |rows| started(&String::from_utf8_lossy(&rows)),
    )
    .map(Some)
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
    const GUARDED: &str = "insert into owner (scope, epoch, holder, seen_at)
        select '', null, '', '' where changes() <> ?;";
    let mut text = "begin immediate;".to_owned();
    if settles > 0 {
        text.push_str(&format!(
            "with j(id, try, ms) as (values {})
             insert or replace into events_done (id, event_type, user_id, abonent_id, nas_id, usluga_id,
               acct_session_id, event_date, owner_script, owner_function, source, batch_id, result, code,
               ms, attempts, scheme_hash, possible_duplicate, started_at, finished_at)
             select e.id, e.event_type, e.user_id, e.abonent_id, e.nas_id, e.usluga_id, e.acct_session_id,
               e.event_date, e.owner_script, e.owner_function, e.source, e.batch_id, ?, ?, j.ms,
               e.try_count, ?, e.possible_duplicate, e.started_at, ?
             from j cross join events_stack e
             where e.id = j.id and e.state = 'running' and e.epoch = ? and e.try_count = j.try
               and (select epoch from owner where scope = 'all') = ?;
             {GUARDED}
             delete from events_stack where id in ({});
             {GUARDED}",
            vec!["(?,?,?)"; settles].join(","),
            vec!["?"; settles].join(",")
        ));
    }
    if starts {
        text.push_str(&format!(
            "update events_stack set state = 'running', epoch = ?, try_count = try_count + 1, started_at = ?
             where id in (select value from json_each(?)) and state in ('ready', 'deferred')
               and (select epoch from owner where scope = 'all') = ?;
             {GUARDED}
             select {STARTED} from events_stack where id in (select value from json_each(?));"
        ));
    }
    text.push_str("commit;");
    text
}

/// Between the fields of a started event, and behind each event: neither stands in JSON, nor in
/// a number, nor in the name of a command.
const FIELD: char = '\u{1f}';
const ROW: char = '\u{1e}';

/// One text for all started events: a row of its own for each would wake this task each time,
/// and a JSON text would have PARAMS written and read once more.
const STARTED: &str = "group_concat(id || char(31) || event_type || char(31) || ifnull(user_id, '') || char(31)
  || ifnull(abonent_id, '') || char(31) || ifnull(usluga_id, '') || char(31) || try_count || char(31)
  || possible_duplicate || char(31) || ifnull(cast(round(unixepoch(event_date, 'subsec') * 1000) as integer), 0)
  || char(31) || params, char(30))";

fn started(rows: &str) -> Result<Vec<Started>> {
    rows.split(ROW)
        .map(|row| {
            one_started(row).ok_or_else(|| {
                sql("read PARAMS")(sqlx::Error::Protocol(
                    "a started event has other fields".to_owned(),
                ))
            })
        })
        .collect()
}

fn one_started(row: &str) -> Option<Started> {
    let mut fields = row.splitn(9, FIELD);
    let mut field = || fields.next();
    let number = |text: &str| text.parse::<i64>().ok();
    Some(Started {
        id: EventId(number(field()?)?),
        cmd: field()?.to_owned(),
        user: number(field()?).map(UserId),
        abonent: number(field()?),
        usluga: number(field()?),
        try_count: field()?.parse().ok()?,
        possible_duplicate: field()? != "0",
        accepted_ms: field()?.parse().ok()?,
        params: StoredParams(field()?.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Sqlite;
    use super::*;
    use crate::attempt::DoneResult;
    use crate::store::Settle;

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
            let alike = alike(&turn).unwrap();
            let written = write(&mut writer, &turn, &alike).await.unwrap();
            if let Some(started) = &written {
                let ids: Vec<EventId> = started.iter().map(|s| s.id).collect();
                assert_eq!(ids, turn.starts);
                assert!(
                    started
                        .iter()
                        .all(|s| s.try_count == 1 && s.cmd == "user_edit")
                );
            }
            let done = written.is_some();
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
