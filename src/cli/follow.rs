//! `event post --follow`: watches one event through the database until it ends, and says each
//! state that is seen on the way.

use std::time::Duration;

use serde_json::{Value, json};

use super::event::time;
use super::exit::{DONE, FAILED, Failed, Outcome, TIMED_OUT, remark, say};
use super::table::{Format, one_line};
use super::{Console, waiting};
use crate::clock;
use crate::event::{EventId, value_text};
use crate::store::{EventRow, Store, WhereIs};

/// First pause between two looks and the longest: most events take some 10 ms, the slow ones
/// wait for minutes.
const LOOK_FIRST: Duration = Duration::from_millis(10);
const LOOK_LONGEST: Duration = Duration::from_millis(250);

/// Prints the id of a new event, before anything else is said of it.
pub fn tell_id(console: &Console, id: EventId, follows: bool) {
    if follows && console.wants_data() {
        // The end is one document, with the number in it.
        remark(format!("event {id}"));
        return;
    }
    match console.format() {
        Format::Table | Format::Plain => say(id.to_string()),
        Format::Json | Format::Jsonl => say(json!({ "id": id }).to_string()),
        Format::Csv => say(format!("id\n{id}")),
    }
}

/// Waits for the end; the exit code says how it was.
pub async fn follow(console: &Console, store: &dyn Store, id: EventId, limit: Duration) -> Outcome {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let until = clock::tick_ms().saturating_add(limit_ms);
    let mut pause = LOOK_FIRST;
    let mut said = String::new();
    loop {
        // Between two looks an event may move on; one that is nowhere is looked for again.
        let row = store.event(id).await?;
        if let Some(row) = &row {
            let ended = match row.place {
                WhereIs::Done | WhereIs::Dead => true,
                WhereIs::Compact | WhereIs::Stack => false,
            };
            if ended {
                return Ok(end(console, row));
            }
            let now = change(row);
            if now != said {
                tell(console, &now);
                said = now;
                pause = LOOK_FIRST;
            }
        }
        let left = until.saturating_sub(clock::tick_ms());
        if left == 0 {
            if console.wants_data() {
                console.record(&properties(id, row.as_ref()));
            }
            let state = row.map_or_else(|| "not found".to_owned(), |row| row.state);
            return Err(Failed::new(
                TIMED_OUT,
                format!(
                    "event {id} is still {state} after {limit:?}\nhint: it goes on by itself; event show {id} says why it waits"
                ),
            ));
        }
        tokio::time::sleep(pause.min(Duration::from_millis(left))).await;
        pause = (pause * 2).min(LOOK_LONGEST);
    }
}

fn change(row: &EventRow) -> String {
    let mut text = row.state.clone();
    if row.try_count > 0 {
        text.push_str(&format!(" try={}", row.try_count));
    }
    if row.state == "deferred" {
        text.push_str(&format!(" until={:?}", value_text(&time(row.next_try_ms))));
    }
    if let Some(error) = row.error.as_deref().filter(|e| !e.is_empty()) {
        text.push_str(&format!(" error={error:?}"));
    }
    one_line(&text)
}

/// Changes are data for eyes and pipes, remarks beside JSON and CSV.
fn tell(console: &Console, text: &str) {
    let line = format!("{} {text}", clock::local_text(clock::wall_ms()));
    match console.format() {
        Format::Table | Format::Plain => say(line),
        Format::Json | Format::Jsonl | Format::Csv => remark(line),
    }
}

/// How it is now, for programs.
pub fn properties(id: EventId, row: Option<&EventRow>) -> [(&'static str, Value); 6] {
    [
        ("id", json!(id)),
        ("result", json!(row.map(|row| &row.state))),
        ("code", json!(row.and_then(|row| row.code))),
        ("ms", json!(row.and_then(|row| row.ms))),
        ("error", json!(row.and_then(|row| row.error.as_ref()))),
        ("answer", json!(row.and_then(|row| row.answer.as_ref()))),
    ]
}

fn end(console: &Console, row: &EventRow) -> u8 {
    match console.format() {
        Format::Table | Format::Plain => {
            let mut text = format!(
                "{} result={}",
                clock::local_text(clock::wall_ms()),
                row.state
            );
            text.push_str(&format!(" code={}", row.code.unwrap_or(0)));
            if let Some(ms) = row.ms {
                text.push_str(&format!(" ms={ms}"));
            }
            if let Some(error) = row.error.as_deref().filter(|e| !e.is_empty()) {
                text.push_str(&format!(" error={error:?}"));
            }
            say(one_line(&text));
            if let Some(answer) = &row.answer {
                // The answer keeps its lines; what acts on a terminal is escaped.
                for line in answer.lines() {
                    say(one_line(line));
                }
            }
        }
        Format::Json | Format::Jsonl | Format::Csv => {
            console.record(&properties(row.id, Some(row)));
        }
    }
    if let Some(next) = waiting::after_the_end(row) {
        remark(next);
    }
    match row.state.as_str() {
        "done" | "observed" | "not_implemented" | "superseded" => DONE,
        _ => FAILED,
    }
}
