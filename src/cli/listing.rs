//! Which part of a list is printed, and in which order: flags of every verb that prints one list.

use std::cmp::Ordering;

use clap::Args;
use regex::Regex;
use serde_json::Value;

use super::table::{Format, Table};
use crate::event::value_text;

/// Flags of a list.
#[derive(Debug, Default, Args)]
pub struct Listing {
    /// Of a list only these columns, in this order, for example id,breaker,note
    #[arg(long, global = true, value_name = "NAMES", value_delimiter = ',')]
    pub columns: Option<Vec<String>>,
    /// Sort a list by this column; -COLUMN: the largest first
    #[arg(long, global = true, value_name = "COLUMN", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// Of a list only rows in whose column this regular expression is found
    #[arg(long = "match", global = true, value_name = "COLUMN=REGEX", value_parser = matching)]
    pub matching: Vec<Match>,
    /// Of a list at most N rows
    #[arg(short = 'n', long, global = true, value_name = "N")]
    pub limit: Option<usize>,
    /// No line of headers above a table or CSV
    #[arg(long, global = true)]
    pub no_headers: bool,
}

/// What a row must say in one column.
#[derive(Debug, Clone)]
pub struct Match {
    column: String,
    regex: Regex,
}

fn matching(text: &str) -> Result<Match, String> {
    let (column, regex) = text.split_once('=').ok_or("expected COLUMN=REGEX")?;
    Ok(Match {
        column: column.to_owned(),
        regex: Regex::new(regex).map_err(|e| e.to_string())?,
    })
}

impl Listing {
    /// Whether one of them was given.
    pub fn is_asked(&self) -> bool {
        self.columns.is_some()
            || self.sort.is_some()
            || !self.matching.is_empty()
            || self.limit.is_some()
            || self.no_headers
    }

    /// The list as it is printed, or which column is not there.
    pub fn text(&self, table: &Table, format: Format) -> Result<String, String> {
        let mut shown = table.clone();
        for Match { column, regex } in &self.matching {
            let at = table.place(column)?;
            let is_there = |row: &Vec<Value>| {
                row.get(at)
                    .is_some_and(|value| regex.is_match(&value_text(value)))
            };
            shown.rows.retain(is_there);
        }
        if let Some(column) = &self.sort {
            let (name, falling) = match column.strip_prefix('-') {
                Some(name) => (name, true),
                None => (column.as_str(), false),
            };
            let at = table.place(name)?;
            shown
                .rows
                .sort_by(|a, b| in_order(a.get(at), b.get(at), falling));
        }
        shown.rows.truncate(self.limit.unwrap_or(usize::MAX));
        if let Some(names) = &self.columns {
            shown = shown.only(names)?;
        }
        let text = shown.text(format);
        Ok(match (format, text.split_once('\n')) {
            (Format::Table | Format::Csv, Some((_, rows))) if self.no_headers => rows.to_owned(),
            _ => text,
        })
    }
}

/// Numbers by their value, what is not there last, whichever way it goes.
fn in_order(a: Option<&Value>, b: Option<&Value>, falling: bool) -> Ordering {
    let is_there = |value: Option<&Value>| value.is_some_and(|value| !value_text(value).is_empty());
    match (is_there(a), is_there(b)) {
        (true, true) => {}
        (true, false) => return Ordering::Less,
        (false, true) => return Ordering::Greater,
        (false, false) => return Ordering::Equal,
    }
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    let order = match (number(a), number(b)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => a.map(value_text).cmp(&b.map(value_text)),
    };
    if falling { order.reverse() } else { order }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(listing: &Listing, format: Format) -> Result<String, String> {
        let mut table = Table::new(&["id", "name", "p95"]);
        table.push(vec![json!(9), json!("north"), json!(2.5)]);
        table.push(vec![json!(10), json!("south"), Value::Null]);
        table.push(vec![json!(8), json!(""), json!(11)]);
        listing.text(&table, format)
    }

    #[test]
    fn rows_are_sorted_by_what_they_are_worth() {
        let by = |column: &str| {
            let listing = Listing {
                sort: Some(column.to_owned()),
                columns: Some(vec!["id".to_owned()]),
                ..Listing::default()
            };
            said(&listing, Format::Plain).map(|text| text.replace('\n', " "))
        };
        assert_eq!(by("id").unwrap(), "8 9 10 ", "as numbers");
        assert_eq!(by("-id").unwrap(), "10 9 8 ");
        // Nothing is neither small nor large.
        assert_eq!(by("p95").unwrap(), "9 8 10 ");
        assert_eq!(by("-p95").unwrap(), "8 9 10 ");
        assert_eq!(by("-name").unwrap(), "10 9 8 ");
        assert_eq!(
            by("p59").unwrap_err(),
            "there is no column \"p59\"\nhint: id, name, p95"
        );
    }

    #[test]
    fn rows_are_chosen_and_counted_and_headers_left_out() {
        let listing = Listing {
            matching: vec![matching("name=^(nor|sou)th$").unwrap()],
            sort: Some("-id".to_owned()),
            limit: Some(1),
            no_headers: true,
            ..Listing::default()
        };
        assert_eq!(said(&listing, Format::Csv).unwrap(), "10,south,\n");
        // As wide as below its headers.
        assert_eq!(said(&listing, Format::Table).unwrap(), "10  south    -\n");
        assert_eq!(
            said(&listing, Format::Jsonl).unwrap(),
            "{\"id\":10,\"name\":\"south\",\"p95\":null}\n"
        );
        assert!(listing.is_asked() && !Listing::default().is_asked());
        assert!(matching("name").is_err() && matching("name=(").is_err());
        let wrong = Listing {
            matching: vec![matching("nmae=x").unwrap()],
            ..Listing::default()
        };
        assert!(said(&wrong, Format::Csv).is_err());
    }
}
