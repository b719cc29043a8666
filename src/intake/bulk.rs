//! `POST /api/v1/events/bulk`: many events in one call, as NDJSON (one event per line) or CSV
//! with a header. The body is read as a stream; each full thousand of good lines is one
//! transaction. A wrong line is reported with its number and hurts no other. A small body is
//! read to its end before anything is stored, so that a broken upload stores nothing.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::event::CompactEvent;
use crate::intake::access::{self, At, Caller, Operator};
use crate::intake::rest::{self, Desk, Refusal};
use crate::intake::{compact, json, plan};
use crate::store::Idempotency;

/// Longest line, bytes.
pub const LINE_MAX: usize = 64 * 1024;
/// Events of one transaction.
const BATCH: usize = 1_000;
/// A body of at most this many bytes and events is checked whole before it is stored.
const SMALL_BYTES: usize = rest::BODY_MAX;
const SMALL_EVENTS: usize = 20_000;
/// Largest body, bytes: a million events.
const BODY_MAX: usize = 256 * 1024 * 1024;
/// Wrong lines that the answer names; the others are counted.
const REJECTED_MAX: usize = 1_000;
/// Longest silence of a sender.
const CHUNK_TIME: Duration = Duration::from_secs(30);
/// Longest name of a batch, characters.
const BATCH_ID_MAX: usize = 128;

/// Query of a bulk call.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BulkQuery {
    batch_id: Option<String>,
    plan: Option<bool>,
}

/// 200 with counts if anything was accepted, also beside wrong lines; 400 if nothing was.
pub async fn post(
    State(desk): State<Desk>,
    At(caller): Operator,
    query: Result<Query<BulkQuery>, axum::extract::rejection::QueryRejection>,
    request: Request,
) -> Result<Response, Refusal> {
    let Query(BulkQuery { batch_id, plan }) =
        query.map_err(|e| Refusal::malformed(format!("the query string: {}", e.body_text())))?;
    let (parts, body) = request.into_parts();
    let key = rest::idempotency(&parts.headers, &[])?.map(|guard| guard.key);
    let batch_id = match batch_id {
        Some(id) if (1..=BATCH_ID_MAX).contains(&id.chars().count()) && !id.contains('\0') => id,
        Some(_) => {
            return Err(Refusal::malformed(format!(
                "batch_id is not 1 to {BATCH_ID_MAX} characters"
            )));
        }
        None => new_batch_id(key.as_deref())?,
    };
    let mut call = Call {
        batch_id,
        key,
        format: announced(&parts.headers),
        batches: Vec::new(),
        plan: (plan == Some(true)).then(Vec::new),
        stored: 0,
        accepted: 0,
        lines: 0,
        rejected: Vec::new(),
        rejected_total: 0,
    };
    let done = call.run(&desk, &caller, Lines::new(body, BODY_MAX)).await;
    if let Some(asks) = call.plan.take() {
        done?;
        let mut plan = plan::of(&desk, &caller, asks).await?;
        if let Some(map) = plan.as_object_mut() {
            map.insert("rejected".to_owned(), call.rejected());
            map.insert("rejected_total".to_owned(), call.rejected_total.into());
        }
        return Ok(Json(plan).into_response());
    }
    Ok(call.answer(done))
}

/// The same key gives the same batch, so that a repeated call is told apart from a new one.
fn new_batch_id(key: Option<&str>) -> Result<String, Refusal> {
    let mut id = [0_u8; 8];
    match key {
        Some(key) => {
            let hash = Sha256::digest(key.as_bytes());
            id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        }
        None => getrandom::fill(&mut id).map_err(|e| {
            Refusal::new(
                503,
                "unavailable",
                format!("no random numbers: {e}"),
                "try again",
            )
        })?,
    }
    Ok(access::hex(&id))
}

/// How lines are read.
enum Format {
    /// The first line will tell.
    Unknown,
    /// One JSON object per line.
    Ndjson,
    /// The header's columns, once it has been read.
    Csv(Option<Vec<String>>),
}

fn announced(headers: &HeaderMap) -> Format {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind.contains("csv") {
        Format::Csv(None)
    } else if kind.contains("json") {
        Format::Ndjson
    } else {
        Format::Unknown
    }
}

/// One future transaction: its events, and the digest of their lines for the guard.
#[derive(Default)]
struct Batch {
    events: Vec<CompactEvent>,
    digest: Sha256,
}

/// One bulk call.
struct Call {
    batch_id: String,
    key: Option<String>,
    format: Format,
    batches: Vec<Batch>,
    /// Only planned: what the events ask for.
    plan: Option<Vec<plan::Ask>>,
    /// Batches already stored.
    stored: usize,
    accepted: usize,
    lines: u64,
    rejected: Vec<(u64, String)>,
    rejected_total: u64,
}

impl Call {
    async fn run(&mut self, desk: &Desk, caller: &Caller, mut lines: Lines) -> Result<(), Refusal> {
        while let Some(line) = lines.next().await? {
            self.lines += 1;
            let read = match line {
                Ok(line) if line.trim_ascii().is_empty() => continue,
                Ok(line) => self.line(desk, caller, &line)?.map(|event| (event, line)),
                Err(reason) => Err(reason),
            };
            match read {
                Ok((Some(event), line)) => self.add(event, &line),
                Ok((None, _)) => {}
                Err(reason) => self.reject(reason),
            }
            let waiting = self.batches.len() * BATCH;
            if lines.taken > SMALL_BYTES || waiting > SMALL_EVENTS {
                self.store(desk, caller, false).await?;
            }
        }
        self.store(desk, caller, true).await
    }

    /// The event of a line, `None` for the header; the outer error ends the call.
    fn line(
        &mut self,
        desk: &Desk,
        caller: &Caller,
        line: &[u8],
    ) -> Result<Result<Option<CompactEvent>, String>, Refusal> {
        let Ok(text) = std::str::from_utf8(line) else {
            return Ok(Err("is not UTF-8".to_owned()));
        };
        if matches!(self.format, Format::Unknown) {
            self.format = if text.trim_ascii_start().starts_with('{') {
                Format::Ndjson
            } else {
                Format::Csv(None)
            };
        }
        let object = match &mut self.format {
            Format::Ndjson | Format::Unknown => json::strict_json(text),
            Format::Csv(columns @ None) => {
                *columns = Some(header_of(text)?);
                return Ok(Ok(None));
            }
            Format::Csv(Some(columns)) => csv_object(columns, text),
        };
        let cmds = desk.doors.cmds.borrow();
        Ok(object
            .and_then(|object| compact::read(object, &caller.who, &cmds))
            .map(|event| {
                Some(CompactEvent {
                    batch_id: Some(self.batch_id.clone()),
                    ..event
                })
            }))
    }

    fn add(&mut self, event: CompactEvent, line: &[u8]) {
        if let Some(asks) = &mut self.plan {
            asks.push(event.into());
            return;
        }
        if self.batches.last().is_none_or(|b| b.events.len() >= BATCH) {
            self.batches.push(Batch::default());
        }
        if let Some(batch) = self.batches.last_mut() {
            batch.events.push(event);
            batch.digest.update(line);
            batch.digest.update(b"\n");
        }
    }

    fn reject(&mut self, reason: String) {
        self.rejected_total += 1;
        if self.rejected.len() < REJECTED_MAX {
            self.rejected.push((self.lines, reason));
        }
    }

    /// Stores the full batches; at the end also the one that is not full.
    async fn store(&mut self, desk: &Desk, caller: &Caller, end: bool) -> Result<(), Refusal> {
        while self
            .batches
            .first()
            .is_some_and(|b| end || b.events.len() >= BATCH)
        {
            let Batch { events, digest } = self.batches.remove(0);
            let count = events.len();
            let guard = self.key.as_ref().map(|key| Idempotency {
                key: format!("{key}/{}", self.stored),
                body_hash: access::hex(&digest.finalize()),
                lasting: false,
            });
            rest::accept(desk, caller, events, guard).await?;
            self.stored += 1;
            self.accepted += count;
        }
        Ok(())
    }

    fn rejected(&self) -> Value {
        let each = self.rejected.iter();
        each.map(|(line, error)| json!({ "line": line, "error": error }))
            .collect()
    }

    fn answer(self, done: Result<(), Refusal>) -> Response {
        let rejected = self.rejected();
        let body = json!({
            "batch_id": self.batch_id,
            "accepted": self.accepted,
            "rejected": rejected,
            "rejected_total": self.rejected_total,
        });
        let done = match done {
            Ok(()) if self.accepted == 0 => Err(Refusal::malformed(match self.rejected_total {
                0 => "the body holds no event".to_owned(),
                n => format!("all {n} lines were rejected"),
            })),
            other => other,
        };
        match done {
            Ok(()) => (StatusCode::OK, Json(body)).into_response(),
            Err(mut refusal) => {
                if self.accepted > 0 {
                    refusal.hint = format!(
                        "{} events of this call are stored; send it again with the same \
                         Idempotency-Key to add only the rest",
                        self.accepted
                    );
                }
                refusal.with(body)
            }
        }
    }
}

fn header_of(line: &str) -> Result<Vec<String>, Refusal> {
    let bad = |text: String| Refusal::malformed(format!("line 1, the CSV header: {text}"));
    let columns = cells(line.trim_start_matches('\u{feff}'), ',').map_err(bad)?;
    for (index, column) in columns.iter().enumerate() {
        if !compact::FIELDS.iter().any(|(name, _)| name == column) {
            let known: Vec<_> = compact::FIELDS.iter().map(|(name, _)| *name).collect();
            let column: String = column.chars().take(64).collect();
            return Err(bad(format!(
                "{column:?} is not a field; known: {}",
                known.join(", ")
            )));
        }
        if columns.iter().skip(index + 1).any(|other| other == column) {
            return Err(bad(format!("{column} is given twice")));
        }
    }
    Ok(columns)
}

fn csv_object(columns: &[String], line: &str) -> Result<Value, String> {
    let cells = cells(line, ',')?;
    if cells.len() != columns.len() {
        return Err(format!(
            "has {} values, the header has {}",
            cells.len(),
            columns.len()
        ));
    }
    let mut object = Map::new();
    for (name, cell) in columns.iter().zip(cells) {
        if cell.is_empty() && name == "user_id" {
            return Err(
                "user_id is empty: that would be an event of the whole NAS; post such ones in a file without the column user_id, or as JSON"
                    .to_owned(),
            );
        }
        if cell.is_empty() && name != "cmd" {
            continue;
        }
        object.insert(name.clone(), Value::from(cell));
    }
    Ok(Value::Object(object))
}

/// The values of one CSV line (RFC 4180, or with another character between them); a quoted value
/// ends on its line.
pub fn cells(line: &str, between: char) -> Result<Vec<String>, String> {
    let mut cells = Vec::new();
    let mut rest = line;
    loop {
        let (cell, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_cell(quoted)?,
            None => {
                let end = rest.find(between).unwrap_or(rest.len());
                let (cell, after) = rest.split_at(end);
                if cell.contains('"') {
                    return Err("has a \" inside a value that does not start with one".to_owned());
                }
                (cell.trim_ascii().to_owned(), after)
            }
        };
        cells.push(cell);
        match after.strip_prefix(between) {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(cells),
            None => return Err("has text after a closing \"".to_owned()),
        }
    }
}

/// A value after its opening quote, and what follows the closing one.
fn quoted_cell(text: &str) -> Result<(String, &str), String> {
    let mut cell = String::new();
    let mut rest = text;
    loop {
        let Some((part, after)) = rest.split_once('"') else {
            return Err("has a \" that is not closed on its line".to_owned());
        };
        cell.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                cell.push('"');
                rest = more;
            }
            None => return Ok((cell, after)),
        }
    }
}

/// The lines of a body, as they come.
struct Lines {
    body: Body,
    /// Longest body, bytes.
    most: usize,
    buffer: BytesMut,
    /// Up to here the buffer has no line end.
    searched: usize,
    ended: bool,
    /// The line is too long; its rest is thrown away.
    skipping: bool,
    /// Bytes of all lines so far.
    taken: usize,
}

impl Lines {
    fn new(body: Body, most: usize) -> Self {
        Self {
            body,
            most,
            buffer: BytesMut::new(),
            searched: 0,
            ended: false,
            skipping: false,
            taken: 0,
        }
    }

    /// The next line without its end, `Err` inside for one that is too long.
    async fn next(&mut self) -> Result<Option<Result<BytesMut, String>>, Refusal> {
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1);
                return Ok(Some(self.line(line)));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_MAX {
                self.taken += self.buffer.len();
                self.skipping = true;
                self.buffer.clear();
                self.searched = 0;
            }
            if self.ended {
                let rest = self.buffer.split();
                let nothing = rest.is_empty() && !self.skipping;
                return Ok((!nothing).then(|| self.line(rest)));
            }
            self.read().await?;
        }
    }

    fn line(&mut self, mut line: BytesMut) -> Result<BytesMut, String> {
        self.taken += line.len();
        self.searched = 0;
        while line.last().is_some_and(|b| *b == b'\n' || *b == b'\r') {
            line.truncate(line.len() - 1);
        }
        if std::mem::take(&mut self.skipping) || line.len() > LINE_MAX {
            return Err(format!("is longer than {LINE_MAX} bytes"));
        }
        Ok(line)
    }

    async fn read(&mut self) -> Result<(), Refusal> {
        let frame = tokio::time::timeout(CHUNK_TIME, self.body.frame()).await;
        match frame {
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
                if self.taken + self.buffer.len() > self.most {
                    return Err(Refusal::new(
                        413,
                        "too_large",
                        format!("the body is longer than {} bytes", self.most),
                        "split it",
                    ));
                }
                Ok(())
            }
            Ok(Some(Err(e))) => Err(Refusal::malformed(format!("the body broke off: {e}"))),
            Ok(None) => {
                self.ended = true;
                Ok(())
            }
            Err(_) => Err(Refusal::new(
                408,
                "too_slow",
                format!("nothing came for {CHUNK_TIME:?}"),
                "send it again",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_lines() {
        assert_eq!(cells("a,b", ',').unwrap(), ["a", "b"]);
        assert_eq!(cells("", ',').unwrap(), [""]);
        assert_eq!(cells(" a ,,", ',').unwrap(), ["a", "", ""]);
        assert_eq!(
            cells(r#""a,b","say ""x""",c"#, ',').unwrap(),
            ["a,b", "say \"x\"", "c"]
        );
        for bad in [r#""a"#, r#"a"b"#, r#""a"b"#] {
            assert!(cells(bad, ',').is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn lines_end_where_they_end() {
        let long = "x".repeat(LINE_MAX + 1);
        let text = format!("a\r\n\n{long}\nb\n{long}");
        let mut lines = Lines::new(Body::from(text), BODY_MAX);
        let mut seen = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            seen.push(line.map(|l| String::from_utf8(l.to_vec()).unwrap()).is_ok());
        }
        assert_eq!(seen, [true, true, false, true, false]);
    }

    #[tokio::test]
    async fn a_body_is_bounded_also_when_its_lines_are_thrown_away() {
        let mut lines = Lines::new(Body::from("x".repeat(11)), 10);
        assert_eq!(lines.next().await.unwrap_err().status.as_u16(), 413);
        let mut lines = Lines::new(Body::from("x\n".repeat(5)), 10);
        assert!(lines.next().await.unwrap().is_some());
    }
}
