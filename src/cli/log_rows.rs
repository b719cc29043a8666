//! Records of a log as rows, for spreadsheets and programs (`-o csv|json|jsonl`): what the account
//! logs, the NAS logs and the daemon log have in common is the time, the rest is empty where a
//! record does not say it.

use serde_json::{Value, json};

use super::table::{Format, Table};
use crate::logs::read;

/// Names of the cells; part of the interface.
const COLUMNS: &[&str] = &[
    "time", "event", "user", "cmd", "try", "kind", "text", "result", "code", "ms", "next_try",
    "error",
];
/// Place of `kind` among them.
const KIND: usize = 5;

/// Whether this form is made of rows and not of lines as they are.
pub fn is_rows(format: Format) -> bool {
    match format {
        Format::Csv | Format::Json | Format::Jsonl => true,
        Format::Table | Format::Plain => false,
    }
}

/// All lines in one of those forms.
pub fn text<'a>(lines: impl Iterator<Item = &'a str>, format: Format) -> String {
    let mut table = Table::new(COLUMNS);
    lines.for_each(|line| table.push(row(line)));
    table.text(format)
}

/// One more line, after [`text`].
pub fn more(line: &str, format: Format) -> String {
    let whole = text(std::iter::once(line), format);
    match (format, whole.split_once('\n')) {
        (Format::Csv, Some((_, row))) => row.to_owned(),
        _ => whole,
    }
}

fn row(line: &str) -> Vec<Value> {
    let (time, message) = read::message(line);
    let Some(record) = read::record(message) else {
        let mut cells = vec![json!(time)];
        cells.resize(KIND, Value::Null);
        cells.extend([json!("message"), json!(message)]);
        cells.resize(COLUMNS.len(), Value::Null);
        return cells;
    };
    let end = read::end(record.said);
    let (kind, text) = match record.said.split_once(' ') {
        None if record.said == "start" => ("start", ""),
        Some((">", command)) => ("command", command),
        Some(("<", answer)) => ("answer", answer),
        Some(_) if end.is_some() => ("end", ""),
        None | Some(_) => ("message", record.said),
    };
    vec![
        json!(time),
        json!(record.event),
        json!(record.user),
        json!(record.cmd),
        json!(record.try_count),
        json!(kind),
        json!(text),
        json!(end.and_then(|end| end.result)),
        json!(end.and_then(|end| end.code)),
        json!(end.and_then(|end| end.ms)),
        json!(end.and_then(|end| end.next_try)),
        json!(end.and_then(|end| end.error)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_rows_and_their_text_stays_one_cell() {
        let at = "2026-01-02 03:04:05 bras nas_event_daemon[812]: ";
        let key = format!("{at}event=7 user=1 cmd=user_add try=1 ");
        let lines = [
            format!("{key}start"),
            format!("{key}> /x add comment=\"a, event=8\""),
            format!("{key}< !trap"),
            format!(
                "{key}end result=deferred code=254 ms=12 next_try=2026-01-02 03:05:07 error=\"said ms=9\""
            ),
            format!("{at}event=9 user=- cmd=users_from_nas try=2 end result=done code=0 ms=3"),
            format!("{at}Start work with nas nasid=5"),
            "torn".to_owned(),
        ];
        let csv = text(lines.iter().map(String::as_str), Format::Csv);
        assert_eq!(
            csv,
            "\
time,event,user,cmd,try,kind,text,result,code,ms,next_try,error
2026-01-02 03:04:05,7,1,user_add,1,start,,,,,,
2026-01-02 03:04:05,7,1,user_add,1,command,\"/x add comment=\"\"a, event=8\"\"\",,,,,
2026-01-02 03:04:05,7,1,user_add,1,answer,!trap,,,,,
2026-01-02 03:04:05,7,1,user_add,1,end,,deferred,254,12,2026-01-02 03:05:07,said ms=9
2026-01-02 03:04:05,9,,users_from_nas,2,end,,done,0,3,,
2026-01-02 03:04:05,,,,,message,Start work with nas nasid=5,,,,,
,,,,,message,torn,,,,,
"
        );
        let last = more(&lines[2], Format::Csv);
        assert_eq!(
            last,
            "2026-01-02 03:04:05,7,1,user_add,1,answer,!trap,,,,,\n"
        );
        let object: Value = serde_json::from_str(&more(&lines[3], Format::Jsonl)).unwrap();
        assert_eq!(object["code"], 254);
    }
}
