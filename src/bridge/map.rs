//! `bridge.toml`: where a foreign stack is, which of its columns mean what, and what becomes of
//! a row that was taken. Pure: texts of a row go in, an event or the reason against it comes out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map as Object, Value};

use crate::config::parse_duration;
use crate::event::{Cmd, CompactEvent};

/// What an event may be given by a row; `cmd` must be there, and an account or a NAS.
pub const EVENT_COLUMNS: &[&str] = &[
    "cmd",
    "user_id",
    "abonent_id",
    "nas_id",
    "nas_ip",
    "usluga_id",
    "acct_session_id",
    "params",
    "params_complete",
    "owner_script",
    "owner_function",
];

/// Rows of one turn: one transaction at the source, a few milliseconds each here.
const BATCH: usize = 200;
/// Between two looks at an idle source.
const EVERY: Duration = Duration::from_secs(1);
/// Texts that are written back are cut to so many characters.
const BACK_MAX: usize = 250;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    /// Where the stack is.
    pub source: Place,
    /// Which rows are taken, and how that is marked there.
    pub take: Take,
    /// Our name → an SQL expression over a row there, usually its column.
    pub columns: BTreeMap<String, String>,
    /// What is written back into the row; only where rows are marked, not deleted.
    pub back: Option<Back>,
}

/// What kind of database the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Firebird, by its own `isql` as a child process.
    Firebird,
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB.
    Mysql,
}

/// `[source]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// First part of every key, and `source` of every event: letters, digits, `_`, `-`.
    pub name: String,
    /// Kind of database.
    pub kind: Kind,
    /// Firebird: `host:/path` or an alias. Others: `postgres://user@host/db`, `mysql://…`.
    pub database: String,
    /// Who logs in (Firebird; others have it in the URL).
    pub user: Option<String>,
    /// Holds the password, one line. Never in the map itself, which is shown and mailed.
    pub password_file: Option<PathBuf>,
    /// Firebird's command line client; Debian calls it `isql-fb`.
    #[serde(default = "isql")]
    pub isql: PathBuf,
    /// Between two looks while nothing comes.
    #[serde(default = "every", deserialize_with = "duration")]
    pub every: Duration,
    /// Rows of one turn, 1..=1000.
    #[serde(default = "batch")]
    pub batch: usize,
}

/// `[take]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Take {
    /// Table, `schema.table` where needed.
    pub table: String,
    /// Its key: a whole number that grows.
    pub id: String,
    /// Further condition, in the source's SQL.
    #[serde(default, rename = "where")]
    pub only: String,
    /// `delete`, or `mark`.
    pub then: Then,
    /// With `mark`: a column (whole number, NULL at first) that gets the number of our event;
    /// 0 = the row is no event.
    pub mark: Option<String>,
}

/// What becomes of a row that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// It is gone.
    Delete,
    /// It stays, with our number.
    Mark,
}

/// `[back]`: columns there that are told how an event stands.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Back {
    /// compact, ready, running, deferred, held, dead, a result, `refused`, `gone`.
    pub state: String,
    /// Tries burnt.
    pub tries: Option<String>,
    /// Why it is not done.
    pub error: Option<String>,
    /// Answer of a diagnostic command.
    pub answer: Option<String>,
    /// Texts are cut to so many characters.
    #[serde(default = "back_max")]
    pub max: usize,
}

fn isql() -> PathBuf {
    PathBuf::from("isql-fb")
}

fn every() -> Duration {
    EVERY
}

fn batch() -> usize {
    BATCH
}

fn back_max() -> usize {
    BACK_MAX
}

fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    parse_duration(&text).map_err(serde::de::Error::custom)
}

/// One value of a row: its text, nothing, or a text that is too long to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// NULL.
    Null,
    /// As text.
    Text(String),
    /// Longer than the limit of its column.
    TooLong,
}

impl Place {
    /// Whether the name fits into keys, and the numbers into their ranges.
    pub(super) fn check(&self) -> Result<(), String> {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(word) {
            return Err("source.name is not 1 to 64 letters, digits, _ or -".to_owned());
        }
        if !(1..=1000).contains(&self.batch) {
            return Err("source.batch is not 1..1000".to_owned());
        }
        Ok(())
    }
}

impl Map {
    /// Reads and checks the file.
    pub fn load(file: &Path) -> Result<Self, String> {
        let shown = file.display();
        let text =
            std::fs::read_to_string(file).map_err(|e| format!("{shown} cannot be read: {e}"))?;
        Self::parse(&text).map_err(|reason| format!("{shown}: {reason}"))
    }

    /// The same from a text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let map: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        map.check()?;
        Ok(map)
    }

    fn check(&self) -> Result<(), String> {
        self.source.check()?;
        let names = [
            ("take.table", Some(&self.take.table)),
            ("take.id", Some(&self.take.id)),
            ("take.mark", self.take.mark.as_ref()),
            ("back.state", self.back.as_ref().map(|b| &b.state)),
            (
                "back.tries",
                self.back.as_ref().and_then(|b| b.tries.as_ref()),
            ),
            (
                "back.error",
                self.back.as_ref().and_then(|b| b.error.as_ref()),
            ),
            (
                "back.answer",
                self.back.as_ref().and_then(|b| b.answer.as_ref()),
            ),
        ];
        for (key, name) in names {
            if let Some(name) = name
                && !is_identifier(name)
            {
                return Err(format!("{key}: {name:?} is no name of a table or column"));
            }
        }
        if let Some(name) = self
            .columns
            .keys()
            .find(|n| !EVENT_COLUMNS.contains(&n.as_str()))
        {
            return Err(format!(
                "columns.{name}: an event has {}",
                EVENT_COLUMNS.join(", ")
            ));
        }
        if self
            .columns
            .values()
            .any(|e| e.trim().is_empty() || e.contains(';'))
        {
            return Err("columns: each is one SQL expression over the row".to_owned());
        }
        if !self.columns.contains_key("cmd") {
            return Err("columns.cmd is missing".to_owned());
        }
        if !["user_id", "nas_id", "nas_ip"]
            .iter()
            .any(|n| self.columns.contains_key(*n))
        {
            return Err("columns: user_id is missing (or nas_id, nas_ip)".to_owned());
        }
        match (self.take.then, &self.take.mark, &self.back) {
            (Then::Mark, None, _) => Err(
                "take.then = \"mark\" needs take.mark: a column for the number of our event"
                    .to_owned(),
            ),
            (Then::Delete, Some(_), _) => {
                Err("take.mark makes no sense with take.then = \"delete\"".to_owned())
            }
            (Then::Delete, None, Some(_)) => Err(
                "[back] needs take.then = \"mark\": a deleted row can be told nothing".to_owned(),
            ),
            (Then::Mark, Some(_), _) | (Then::Delete, None, None) => Ok(()),
        }
    }

    /// `name:id`: what makes taking a row twice impossible, and finds its event.
    pub fn key(&self, id: i64) -> String {
        format!("{}:{id}", self.source.name)
    }

    /// The event that a row asks for; cells in the order of `columns`.
    pub fn event(&self, id: i64, cells: &[Cell]) -> Result<CompactEvent, String> {
        let mut row = BTreeMap::new();
        for (name, cell) in self.columns.keys().zip(cells) {
            match cell {
                Cell::Null => {}
                Cell::TooLong => return Err(format!("{name} is too long")),
                Cell::Text(text) => {
                    row.insert(name.as_str(), text.trim_end());
                }
            }
        }
        let text = |name: &str| {
            row.get(name)
                .map(|t| (*t).to_owned())
                .filter(|t| !t.is_empty())
        };
        let number = |name: &str| match row.get(name).filter(|t| !t.is_empty()) {
            None => Ok(None),
            Some(text) => text
                .parse::<i64>()
                .map(Some)
                .map_err(|_| format!("{name} is {text:?}, not a whole number")),
        };
        let params: Option<Object<String, Value>> = match text("params") {
            None => None,
            Some(text) => match serde_json::from_str(&text) {
                Ok(Value::Object(map)) => Some(map),
                Ok(_) => return Err("params is not a JSON object".to_owned()),
                Err(e) => return Err(format!("params is not JSON: {e}")),
            },
        };
        let event = CompactEvent {
            cmd: Cmd::parse(&text("cmd").ok_or("cmd is empty")?)?.to_string(),
            user_id: number("user_id")?,
            abonent_id: number("abonent_id")?,
            nas_id: number("nas_id")?,
            nas_ip: text("nas_ip"),
            usluga_id: number("usluga_id")?,
            acct_session_id: text("acct_session_id"),
            params,
            params_complete: matches!(row.get("params_complete"), Some(&("1" | "t" | "true"))),
            owner_script: text("owner_script"),
            owner_function: text("owner_function"),
            source: Some(self.source.name.clone()),
            batch_id: Some(self.key(id)),
            ..CompactEvent::default()
        };
        if event.user_id.is_none() && event.nas_id.is_none() && event.nas_ip.is_none() {
            return Err("it names neither an account nor a NAS".to_owned());
        }
        Ok(event)
    }
}

/// `name` or `schema.name`; taken as it stands, so that each database folds case as usual.
pub(super) fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 127
        && text.split('.').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[source]\nname = \"asr\"\nkind = \"firebird\"\ndatabase = \"x\"\n\
        [take]\ntable = \"S\"\nid = \"ID\"\nthen = \"mark\"\nmark = \"NED\"\n\
        [columns]\ncmd = \"CMD\"\nuser_id = \"USER_ID\"\nparams = \"P\"\n\
        [back]\nstate = \"STATE\"\n";

    #[test]
    fn a_map_that_cannot_work_is_told() {
        let map = Map::parse(GOOD).unwrap();
        assert_eq!((map.source.batch, map.source.every), (BATCH, EVERY));
        for (from, to, says) in [
            ("\"asr\"", "\"a:b\"", "source.name"),
            ("mark = \"NED\"\n", "", "take.mark"),
            ("then = \"mark\"", "then = \"delete\"", "take.mark"),
            ("cmd = ", "command = ", "columns.command"),
            ("\"S\"", "\"S; drop table x\"", "take.table"),
            ("\"CMD\"", "\"CMD; delete\"", "one SQL expression"),
            ("user_id = \"USER_ID\"\n", "", "user_id is missing"),
            ("id = \"ID\"", "key = \"ID\"", "unknown field"),
            ("\"firebird\"", "\"oracle\"", "unknown variant"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = Map::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(says), "{from} → {to}: {error}");
        }
    }

    #[test]
    fn a_row_is_an_event_or_tells_why_not() {
        let map = Map::parse(GOOD).unwrap();
        let text = |t: &str| Cell::Text(t.to_owned());
        // cmd, params, user_id: the order of the names.
        let event = map
            .event(
                9,
                &[
                    text("user_add  "),
                    text("{\"ip\": \"10.0.0.1\"}"),
                    text("1424"),
                ],
            )
            .unwrap();
        assert_eq!(
            (event.cmd.as_str(), event.user_id),
            ("user_add", Some(1424))
        );
        assert_eq!(event.batch_id.as_deref(), Some("asr:9"));
        assert_eq!(event.params.unwrap()["ip"], "10.0.0.1");
        for (cells, says) in [
            ([Cell::Null, Cell::Null, text("1")], "cmd is empty"),
            ([text("a"), Cell::Null, text("1; x")], "not a whole number"),
            ([text("a"), text("[1]"), text("1")], "not a JSON object"),
            ([text("a"), Cell::TooLong, text("1")], "params is too long"),
            ([text("a"), Cell::Null, Cell::Null], "neither an account"),
        ] {
            let error = map.event(9, &cells).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
