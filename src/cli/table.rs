//! How lists and single things are printed: for eyes, for pipes, for programs. Whatever a
//! value holds, one row stays one line.

use serde_json::{Map, Value};

use crate::event::value_text;
use crate::shell::must_escape;

/// Choices of `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns with a header.
    Table,
    /// Columns between tabs, no header.
    Plain,
    /// One JSON document.
    Json,
    /// One JSON object per line.
    Jsonl,
    /// RFC 4180, with a header.
    Csv,
}

/// Rows under named columns; the names are keys in JSON and part of the interface.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<&'static str>,
    pub(super) rows: Vec<Vec<Value>>,
}

impl Table {
    /// Without rows.
    pub fn new(columns: &'static [&'static str]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Where a column stands, or which ones there are.
    pub(super) fn place(&self, name: &str) -> Result<usize, String> {
        let found = self.columns.iter().position(|column| *column == name);
        found.ok_or_else(|| {
            let all = self.columns.join(", ");
            format!("there is no column {name:?}\nhint: {all}")
        })
    }

    /// These columns only, in this order; or why not.
    pub fn only(&self, names: &[String]) -> Result<Self, String> {
        let places = names.iter().map(|name| self.place(name));
        let places = places.collect::<Result<Vec<_>, _>>()?;
        let column = |at: &usize| self.columns.get(*at).copied();
        let row = |row: &Vec<Value>| -> Vec<Value> {
            places
                .iter()
                .filter_map(|at| row.get(*at).cloned())
                .collect()
        };
        Ok(Self {
            columns: places.iter().filter_map(column).collect(),
            rows: self.rows.iter().map(row).collect(),
        })
    }

    /// Adds a row, one value per column.
    pub fn push(&mut self, row: Vec<Value>) {
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The whole text, each line ended.
    pub fn text(&self, format: Format) -> String {
        match format {
            Format::Table => self.aligned(),
            Format::Plain => self
                .rows
                .iter()
                .map(|row| joined(row.iter().map(|v| one_line(&value_text(v))), "\t"))
                .collect(),
            Format::Json => {
                let all: Value = self.rows.iter().map(|row| self.object(row)).collect();
                let mut text = serde_json::to_string_pretty(&all).unwrap_or_default();
                text.push('\n');
                text
            }
            Format::Jsonl => self
                .rows
                .iter()
                .map(|row| format!("{}\n", self.object(row)))
                .collect(),
            Format::Csv => {
                let mut text = joined(self.columns.iter().map(|c| (*c).to_owned()), ",");
                for row in &self.rows {
                    text.push_str(&joined(row.iter().map(|v| csv(&value_text(v))), ","));
                }
                text
            }
        }
    }

    fn object(&self, row: &[Value]) -> Value {
        let pairs = self.columns.iter().zip(row);
        Value::Object(pairs.map(|(c, v)| ((*c).to_owned(), v.clone())).collect())
    }

    fn aligned(&self) -> String {
        let mut lines: Vec<Vec<String>> =
            vec![self.columns.iter().map(|c| c.to_uppercase()).collect()];
        lines.extend(self.rows.iter().map(|row| {
            row.iter()
                .map(|v| match one_line(&value_text(v)) {
                    text if text.is_empty() => "-".to_owned(),
                    text => text,
                })
                .collect()
        }));
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                let cells = lines.iter().filter_map(|line| line.get(i));
                cells.map(|c| c.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let right: Vec<bool> = (0..self.columns.len())
            .map(|i| {
                let mut cells = self.rows.iter().filter_map(|row| row.get(i));
                cells.all(|v| v.is_number() || v.is_null())
            })
            .collect();
        let mut out = String::new();
        for line in lines {
            let mut text = String::new();
            for ((cell, width), right) in line.iter().zip(&widths).zip(&right) {
                if *right {
                    text.push_str(&format!("{cell:>width$}  "));
                } else {
                    text.push_str(&format!("{cell:<width$}  "));
                }
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        out
    }
}

/// One thing: `name: value` lines for eyes, `name<tab>value` for pipes, else an object.
pub fn record(format: Format, properties: &[(&'static str, Value)]) -> String {
    let object = || -> Value {
        let pairs = properties.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
        Value::Object(pairs.collect::<Map<_, _>>())
    };
    match format {
        Format::Table => {
            let width = properties.iter().map(|(k, _)| k.len()).max().unwrap_or(0) + 1;
            let line = |(name, value): &(&str, Value)| {
                let text = format!(
                    "{:<width$} {}",
                    format!("{name}:"),
                    one_line(&value_text(value))
                );
                format!("{}\n", text.trim_end())
            };
            properties.iter().map(line).collect()
        }
        Format::Plain => properties
            .iter()
            .map(|(name, value)| format!("{name}\t{}\n", one_line(&value_text(value))))
            .collect(),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(&object()).unwrap_or_default();
            text.push('\n');
            text
        }
        Format::Jsonl => format!("{}\n", object()),
        Format::Csv => {
            let names = properties.iter().map(|(name, _)| (*name).to_owned());
            let values = properties.iter().map(|(_, v)| csv(&value_text(v)));
            joined(names, ",") + &joined(values, ",")
        }
    }
}

/// Escapes what would begin another line, or act on a terminal.
pub fn one_line(text: &str) -> String {
    if !text.chars().any(must_escape) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if must_escape(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

fn joined(cells: impl Iterator<Item = String>, by: &str) -> String {
    let mut line = cells.collect::<Vec<_>>().join(by);
    line.push('\n');
    line
}

fn csv(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table() -> Table {
        let mut table = Table::new(&["id", "name"]);
        table.push(vec![json!(7), json!("a\nb\t\"c\",")]);
        table.push(vec![json!(1116), Value::Null]);
        table
    }

    #[test]
    fn one_row_is_one_line_in_every_form_but_csv() {
        let text = |f| table().text(f);
        assert_eq!(
            text(Format::Table),
            "  ID  NAME\n   7  a\\nb\\t\"c\",\n1116  -\n"
        );
        assert_eq!(text(Format::Plain), "7\ta\\nb\\t\"c\",\n1116\t\n");
        assert_eq!(
            text(Format::Jsonl),
            "{\"id\":7,\"name\":\"a\\nb\\t\\\"c\\\",\"}\n{\"id\":1116,\"name\":null}\n"
        );
        assert_eq!(
            text(Format::Csv),
            "id,name\n7,\"a\nb\t\"\"c\"\",\"\n1116,\n"
        );
        let parsed: Value = serde_json::from_str(&text(Format::Json)).unwrap();
        assert_eq!(parsed[1]["id"], 1116);
        let empty = Table::new(&["id"]);
        assert_eq!(empty.text(Format::Json), "[]\n");
        assert_eq!(empty.text(Format::Plain), "");
    }

    #[test]
    fn columns_are_chosen() {
        let names = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let only = table().only(&names("name,id")).unwrap();
        assert_eq!(only.text(Format::Plain), "a\\nb\\t\"c\",\t7\n\t1116\n");
        assert_eq!(
            only.text(Format::Jsonl).lines().last(),
            Some("{\"name\":null,\"id\":1116}")
        );
        let wrong = table().only(&names("id,nmae")).unwrap_err();
        assert_eq!(wrong, "there is no column \"nmae\"\nhint: id, name");
    }

    #[test]
    fn records() {
        let properties = [("id", json!(7)), ("name", json!("x\u{1b}[2J"))];
        assert_eq!(
            record(Format::Table, &properties),
            "id:   7\nname: x\\u{1b}[2J\n"
        );
        assert_eq!(
            record(Format::Plain, &properties),
            "id\t7\nname\tx\\u{1b}[2J\n"
        );
    }
}
