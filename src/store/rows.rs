//! What the store hands out: rows for tools, counts, filters.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Error, Result};
use crate::event::{EventId, Params, Waiting, poster};

/// Latest time that a column is asked to keep, ms (year 9999).
const TIME_MAX_MS: i64 = 253_402_300_799_000;

/// What stands in the index of spread retries, and in no other row.
pub(super) const DATED: &str = "retry_ms is not null and retried_as is null";

/// Rows of one statement that dates or moves them: nobody waits long for its locks.
pub(super) const PIECE: usize = 500;

/// Spread retries as they were read: the dead event, and when it is due.
pub(super) fn dated(rows: Vec<(i64, i64)>) -> Vec<(EventId, i64)> {
    rows.into_iter().map(|(id, at)| (EventId(id), at)).collect()
}

/// A time that a column can keep: what is wild is bent into the range, so that it never blocks
/// a settle. PostgreSQL makes it a time by `to_timestamp($n / 1000.0)`.
pub(super) fn kept_ms(ms: i64) -> i64 {
    ms.clamp(0, TIME_MAX_MS)
}

/// Result of one expansion batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Expansion {
    /// Now on the main stack, in the order in which they were expanded.
    pub moved: Vec<Waiting>,
    /// Rows that got an `error`, with it.
    pub failed: Vec<(EventId, String)>,
    /// Rows that went to dead (reason `overtaken`).
    pub overtaken: usize,
    /// Rows met for the first time that no door of the daemon has counted, by way in and command.
    pub came: BTreeMap<(&'static str, String), u64>,
    /// The batch was as large as its limit: there may be more.
    pub full: bool,
}

/// Which way a compact row `c` came in, in SQL of both databases: none for what a door of the
/// daemon has counted, and for retries. The bridge's key begins with its source.
pub(super) const CAME: &str = "case when c.retried_from is not null then null
  when c.source is null then 'sql' when c.source = 'cli' then 'cli'
  when substr(c.idempotency_key, 1, length(c.source) + 1) = c.source || ':' then 'bridge' end";

/// The word of [`CAME`] as a label.
pub(super) fn way_in(word: &str) -> &'static str {
    match word {
        "sql" => "sql",
        "cli" => "cli",
        _ => "bridge",
    }
}

/// Numbers of the stacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Rows of the compact stack.
    pub compact: i64,
    /// Those of them that carry an `error`.
    pub unexpandable: i64,
    /// (event_type, rows) of the main stack, by name.
    pub main: Vec<(String, i64)>,
    /// (nas_id, state, rows) of the main stack.
    pub by_nas: Vec<(i64, String, i64)>,
    /// Rows of `events_dead` that were not retried.
    pub dead: i64,
    /// (nas_id, rows) of them; none = they never had a NAS.
    pub dead_by_nas: Vec<(Option<i64>, i64)>,
    /// Age of the oldest waiting row, seconds.
    pub oldest_s: i64,
    /// Age of the oldest row of the compact stack, seconds.
    pub oldest_compact_s: i64,
    /// (nas_id, age in seconds) of the oldest row of each NAS on the main stack that the guard does
    /// not hold, running ones included; 0 = the first hundred are all held.
    pub oldest_by_nas: Vec<(i64, i64)>,
}

/// Shows the connections that looks and the doors share; writing and expansion have their own.
pub(super) fn connections<D: sqlx::Database>(pool: &sqlx::Pool<D>) {
    let idle = pool.num_idle();
    let used = usize::try_from(pool.size()).unwrap_or_default();
    for (state, many) in [("idle", idle), ("used", used.saturating_sub(idle))] {
        metrics::gauge!("nas_event_daemon_db_pool_connections", "state" => state)
            .set(f64::from(u32::try_from(many).unwrap_or(u32::MAX)));
    }
}

/// Rows of the stacks, each counted only so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Of the compact stack.
    pub compact: usize,
    /// Of the main stack.
    pub main: usize,
}

/// Where an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WhereIs {
    /// `events_stack_compact`
    Compact,
    /// `events_stack`
    Stack,
    /// `events_dead`
    Dead,
    /// `events_done`
    Done,
}

/// One event for people: every column that they ask for, times in wall ms.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventRow {
    /// Number.
    pub id: EventId,
    /// Which table.
    pub place: WhereIs,
    /// compact, ready, running, deferred, held, dead, or the result of a done event.
    pub state: String,
    /// Command.
    pub cmd: String,
    /// Account.
    pub user_id: Option<i64>,
    /// Abonent.
    pub abonent_id: Option<i64>,
    /// NAS, as far as it is known.
    pub nas_id: Option<i64>,
    /// Who posted it.
    pub source: Option<String>,
    /// Bulk call.
    pub batch_id: Option<String>,
    /// Accepted at.
    pub event_date_ms: i64,
    /// Tries burnt.
    pub try_count: i64,
    /// Deferred until.
    pub next_try_ms: Option<i64>,
    /// Finished, died.
    pub ended_ms: Option<i64>,
    /// May have been executed twice.
    pub possible_duplicate: bool,
    /// Last code.
    pub code: Option<i64>,
    /// Last error, reason of death, or why it cannot be expanded.
    pub error: Option<String>,
    /// Duration of the last attempt, ms.
    pub ms: Option<i64>,
    /// Answer of an interactive command.
    pub answer: Option<String>,
    /// Variables, while the event is on the stack or dead.
    pub params: Option<Params>,
    /// The event that a retry of this one became.
    pub retried_as: Option<i64>,
    /// Short hash of the scheme.
    pub scheme_hash: Option<String>,
}

impl EventRow {
    /// An event of which only this much is known.
    pub fn new(id: EventId, place: WhereIs, state: &str, cmd: &str) -> Self {
        Self {
            id,
            place,
            state: state.to_owned(),
            cmd: cmd.to_owned(),
            user_id: None,
            abonent_id: None,
            nas_id: None,
            source: None,
            batch_id: None,
            event_date_ms: 0,
            try_count: 0,
            next_try_ms: None,
            ended_ms: None,
            possible_duplicate: false,
            code: None,
            error: None,
            ms: None,
            answer: None,
            params: None,
            retried_as: None,
            scheme_hash: None,
        }
    }
}

/// Which events to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// compact, ready, running, deferred, held, dead, done; none = compact + main stack.
    pub state: Option<String>,
    /// Only this NAS.
    pub nas: Option<i64>,
    /// Only this account.
    pub user: Option<i64>,
    /// Only this abonent.
    pub abonent: Option<i64>,
    /// Only this command.
    pub cmd: Option<String>,
    /// Only this bulk call.
    pub batch: Option<String>,
    /// Only with this text in the error, in the same letter case.
    pub error: Option<String>,
    /// Ids from this one on.
    pub from: Option<i64>,
    /// Keyset paging: ids below this one.
    pub before: Option<i64>,
    /// At most this many, 1..=1000.
    pub limit: usize,
    /// A look that has to be answered however long it takes: the daemon's own, or of a process of
    /// its own that is about to act on the answer; other looks end at [`LOOK_MAX`](super::LOOK_MAX).
    pub unbounded: bool,
}

impl Filter {
    /// What was asked for, for the audit.
    pub fn said(&self) -> String {
        let texts = [
            ("state", &self.state),
            ("cmd", &self.cmd),
            ("batch", &self.batch),
            ("error", &self.error),
        ];
        let numbers = [
            ("nas", self.nas),
            ("user", self.user),
            ("abonent", self.abonent),
        ];
        let texts = texts
            .into_iter()
            .filter_map(|(name, text)| Some(format!("{name}={:?}", text.as_ref()?)));
        let numbers = numbers
            .into_iter()
            .filter_map(|(name, number)| Some(format!("{name}={}", number?)));
        texts.chain(numbers).collect::<Vec<_>>().join(" ")
    }

    /// The conditions on a row as SQL, with parameters that `mark` numbers from 1 in the order
    /// state, nas, user, abonent, cmd, batch, error, from, before, limit; those that are not asked for
    /// are left out, because only a plain comparison finds its index. Also the mark of the limit.
    pub(super) fn conditions(&self, state: bool, mark: char) -> (String, String) {
        let holds = if mark == '$' {
            "strpos(error,"
        } else {
            "instr(error,"
        };
        let asked = [
            ("state =", "", state),
            ("nas_id =", "", self.nas.is_some()),
            ("user_id =", "", self.user.is_some()),
            ("abonent_id =", "", self.abonent.is_some()),
            ("cmd =", "", self.cmd.is_some()),
            ("batch_id =", "", self.batch.is_some()),
            (holds, ") > 0", self.error.is_some()),
            ("id >=", "", self.from.is_some()),
            ("id <", "", self.before.is_some()),
        ];
        let parts = asked.iter().filter(|(.., is)| *is);
        let each: Vec<String> = parts
            .enumerate()
            .map(|(index, (part, end, _))| format!("{part} {mark}{}{end}", index + 1))
            .collect();
        let limit = format!("{mark}{}", each.len() + 1);
        let all = match each.is_empty() {
            true => String::new(),
            false => format!("where {}", each.join(" and ")),
        };
        (all, limit)
    }

    /// The tables to look in, and the state that a row must have there (none = any).
    pub(super) fn places(&self) -> Result<(&'static [WhereIs], Option<&str>)> {
        use WhereIs::{Compact, Dead, Done, Stack};
        let state = self.state.as_deref();
        Ok(match state {
            None => (&[Compact, Stack], None),
            Some("all") => (&[Compact, Stack, Dead, Done], None),
            Some("done") => (&[Done], None),
            Some("compact") => (&[Compact], state),
            Some("ready" | "running" | "deferred" | "held") => (&[Stack], state),
            Some("dead") => (&[Dead], state),
            Some("observed" | "expired" | "superseded" | "not_implemented" | "dropped") => {
                (&[Done], state)
            }
            Some(other) => {
                return Err(Error::Refused(format!(
                    "state {other:?} is unknown: use compact, ready, running, deferred, held, dead, done or all"
                )));
            }
        })
    }
}

/// What the billing says an account shall have (states of the vendor's state model).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccountFlags {
    /// Account.
    pub user_id: i64,
    /// Its NAS.
    pub nas_id: Option<i64>,
    /// Moved to trash.
    pub deleted: bool,
    /// At least one traffic service without admin block.
    pub accept: bool,
    /// No paid traffic service: "no money" page.
    pub redirect: bool,
    /// Has a speed to set.
    pub rated: bool,
}

/// An API token; the secret itself is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Token {
    /// Operator's name for it.
    pub name: String,
    /// viewer, support, operator or admin.
    pub scope: String,
    /// SHA-256 of the secret, hex.
    #[serde(skip)]
    pub hash: String,
}

impl Token {
    /// Why there is no second one of this name.
    pub fn is_there(name: &str) -> Error {
        Error::Refused(format!("a token named {name:?} exists already"))
    }
}

/// Whose order an expanded event is, for the intent guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Event.
    pub id: EventId,
    /// Command.
    pub cmd: String,
    /// The token, else the script that added it, else `sql`.
    pub source: String,
    /// The same as it stands in the row, whatever the event says itself included.
    pub told: String,
    /// Its `rate_*` and `ceil_*`, as far as there are any.
    pub speeds: Vec<String>,
}

/// Number, command, source, else the script, and the four speeds of a [`Cause`].
pub(super) type CauseValues = (
    i64,
    String,
    Option<String>,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
);

impl From<CauseValues> for Cause {
    fn from((id, cmd, source, script, a, b, c, d): CauseValues) -> Self {
        Self {
            id: EventId(id),
            cmd,
            source: source.as_deref().map_or(script.as_str(), poster).to_owned(),
            told: source.unwrap_or(script),
            speeds: [a, b, c, d].into_iter().flatten().collect(),
        }
    }
}

/// What an operator tells the intent guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderKind {
    /// An announced batch.
    Allow,
    /// Held events shall run.
    Approve,
}

impl OrderKind {
    /// The word in `guard_order.kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Approve => "approve",
        }
    }

    /// Reads the word; none if a later version wrote it.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Allow, Self::Approve]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// A row of `guard_order`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuardOrder {
    /// Number; 0 before it is written.
    pub id: i64,
    /// What it is.
    pub kind: OrderKind,
    /// Whose events; none = whoever's (approve only).
    pub source: Option<String>,
    /// Only this command; none = any.
    pub cmd: Option<String>,
    /// Approve only this event.
    pub event: Option<EventId>,
    /// Allow: begin of the first window, wall ms.
    pub from_ms: i64,
    /// Allow: length of a window, ms.
    pub for_ms: i64,
    /// Allow: events in one window.
    pub most: i64,
    /// Allow: again each month.
    pub monthly: bool,
    /// Who said so.
    pub who: String,
}

/// Columns of a [`GuardOrder`], in the order of [`OrderValues`].
pub(super) const ORDER: &str =
    "id, kind, source, cmd, event_id, from_ms, for_ms, most, monthly, who";

/// Values of [`ORDER`].
pub(super) type OrderValues = (
    i64,
    String,
    Option<String>,
    Option<String>,
    Option<i64>,
    i64,
    i64,
    i64,
    bool,
    String,
);

impl GuardOrder {
    /// From a row; none if it is of a kind that a later version has written.
    pub(super) fn of(values: OrderValues) -> Option<Self> {
        let (id, kind, source, cmd, event, from_ms, for_ms, most, monthly, who) = values;
        Some(Self {
            id,
            kind: OrderKind::parse(&kind)?,
            source,
            cmd,
            event: event.map(EventId),
            from_ms,
            for_ms,
            most,
            monthly,
            who,
        })
    }
}

/// Answer of an operator's own statement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SqlAnswer {
    /// Column names.
    pub columns: Vec<String>,
    /// Values as canonical text; none = NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// Rows changed by a writing statement.
    pub changed: u64,
}

impl SqlAnswer {
    /// Most rows that a statement may return; they are kept in memory.
    pub const ROWS_MAX: usize = 100_000;

    /// Takes a row, unless there are too many.
    pub(super) fn add(&mut self, row: Vec<Option<String>>) -> Result<()> {
        if self.rows.len() >= Self::ROWS_MAX {
            let most = Self::ROWS_MAX;
            return Err(Error::Refused(format!(
                "the statement returns more than {most} rows: add a limit"
            )));
        }
        self.rows.push(row);
        Ok(())
    }
}
