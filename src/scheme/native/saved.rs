//! What `save` keeps of an answer, for later steps of the same attempt: `x.ok`, `x.class`,
//! `x.code`, `x.text`, `x.lines`, `x.rows`, `x.json`, `x.all("Attr")`.

use std::sync::Arc;

use minijinja::value::{Object, Value};
use minijinja::{Error, ErrorKind, State};

use super::names::from_json;
use crate::driver::{Reply, Row};

/// Rows, and lines of text, of one answer that go to the log; a print of connections has
/// thousands.
const LOGGED_MAX: usize = 32;

/// One kept answer.
#[derive(Debug)]
pub(super) struct Saved {
    /// The step counts as done.
    ok: bool,
    /// `ok`, `skipped`, or the class of the failure.
    class: &'static str,
    /// 0, or the driver's number.
    code: i32,
    /// The answer as text.
    text: String,
    /// Rows of a table.
    rows: Vec<Row>,
}

impl Saved {
    /// Of a step that has run.
    pub(super) fn keep(
        ok: bool,
        class: &'static str,
        code: i32,
        text: String,
        rows: Vec<Row>,
    ) -> Value {
        Value::from_object(Self {
            ok,
            class,
            code,
            text,
            rows,
        })
    }

    /// Of a step whose `when` was false.
    pub(super) fn skipped() -> Value {
        Self::keep(false, "skipped", 0, String::new(), Vec::new())
    }
}

impl Object for Saved {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        Some(match key.as_str()? {
            "ok" => Value::from(self.ok),
            "class" => Value::from(self.class),
            "code" => Value::from(self.code),
            "text" => Value::from(&self.text),
            "lines" => Value::from(self.text.lines().map(Value::from).collect::<Vec<_>>()),
            "rows" => Value::from(self.rows.iter().map(row).collect::<Vec<_>>()),
            // Undefined where the answer is not JSON.
            "json" => from_json(&serde_json::from_str(&self.text).ok()?),
            _ => return None,
        })
    }

    fn call_method(
        self: &Arc<Self>,
        _state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let name = args.first().and_then(Value::as_str);
        match (method, name, args.len()) {
            ("all", Some(name), 1) => {
                let values = self.rows.iter().filter_map(|row| row.get(name));
                Ok(Value::from(values.map(Value::from).collect::<Vec<_>>()))
            }
            ("all", ..) => Err(Error::new(
                ErrorKind::MissingArgument,
                "all takes one name, for example all(\"Framed-IP-Address\")",
            )),
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

fn row(row: &Row) -> Value {
    Value::from_pairs(row.iter().map(|(k, v)| (k.clone(), Value::from(v))))
}

/// One line per row, then `ret`, then the text: what `ok_on` and the others look at.
pub(super) fn reply_text(reply: &Reply) -> String {
    let mut lines: Vec<String> = reply.rows.iter().map(row_text).collect();
    if let Some(ret) = &reply.ret {
        lines.push(format!("ret={ret}"));
    }
    if !reply.text.is_empty() {
        lines.push(reply.text.clone());
    }
    lines.join("\n")
}

/// The lines of an answer that go to the log: the first rows and lines of text, and how it
/// ended.
pub(in crate::scheme) fn logged(reply: &Reply) -> Vec<String> {
    let mut lines: Vec<String> = reply.rows.iter().take(LOGGED_MAX).map(row_text).collect();
    let more = reply.rows.len().saturating_sub(LOGGED_MAX);
    if more > 0 {
        lines.push(format!("… {more} more rows"));
    }
    lines.extend(reply.text.lines().take(LOGGED_MAX).map(str::to_owned));
    let more = reply.text.lines().count().saturating_sub(LOGGED_MAX);
    if more > 0 {
        lines.push(format!("… {more} more lines"));
    }
    match &reply.ret {
        Some(ret) => lines.push(format!("done ret={ret}")),
        None if reply.code != 0 => lines.push(format!("done code={}", reply.code)),
        None if lines.is_empty() => lines.push("done".to_owned()),
        None => {}
    }
    lines
}

/// `k=v k=v`, `.id` first as the map sorts it.
pub(super) fn row_text(row: &Row) -> String {
    let words: Vec<_> = row
        .iter()
        .map(|(k, v)| crate::shell::quote(&format!("{k}={v}")))
        .collect();
    words.join(" ")
}
