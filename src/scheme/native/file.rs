//! Reading `scheme.toml` with the line of everything: a thin layer over the TOML parser's
//! spanned tree, so that each finding can name its line.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Finding, Severity};

/// A value with its place.
pub(super) type Item<'i> = Spanned<DeValue<'i>>;

/// Collects what is wrong and knows where lines begin.
pub(super) struct Notes<'f> {
    file: PathBuf,
    starts: Vec<usize>,
    findings: &'f mut Vec<Finding>,
}

impl<'f> Notes<'f> {
    /// Of one file.
    pub(super) fn new(file: &Path, text: &str, findings: &'f mut Vec<Finding>) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            file: file.to_owned(),
            starts: std::iter::once(0).chain(ends).collect(),
            findings,
        }
    }

    /// Line of a place, from 1.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.starts.partition_point(|start| *start <= span.start)
    }

    /// Notes an error.
    pub(super) fn error(&mut self, line: usize, text: impl Into<String>, hint: impl Into<String>) {
        self.note(line, Severity::Error, text.into(), hint.into());
    }

    /// Notes a warning.
    pub(super) fn warning(
        &mut self,
        line: usize,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.note(line, Severity::Warning, text.into(), hint.into());
    }

    fn note(&mut self, line: usize, severity: Severity, text: String, hint: String) {
        self.findings.push(Finding {
            file: self.file.clone(),
            line,
            severity,
            text: text.replace('\n', " "),
            hint,
        });
    }
}

/// A table's keys in file order; what is not taken is unknown.
pub(super) struct Keys<'t, 'i> {
    entries: Vec<(&'t str, usize, &'t Item<'i>)>,
    what: String,
}

impl<'t, 'i> Keys<'t, 'i> {
    /// `what` names the table in findings.
    pub(super) fn new(table: &'t DeTable<'i>, what: impl Into<String>, notes: &Notes<'_>) -> Self {
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| (key.span().start, key, value))
            .collect();
        entries.sort_by_key(|(start, ..)| *start);
        Self {
            entries: entries
                .into_iter()
                .map(|(_, key, value)| (key.get_ref().as_ref(), notes.line(&key.span()), value))
                .collect(),
            what: what.into(),
        }
    }

    /// Takes a key with its line.
    pub(super) fn take(&mut self, key: &str) -> Option<(usize, &'t Item<'i>)> {
        let at = self.entries.iter().position(|(k, ..)| *k == key)?;
        let (_, line, item) = self.entries.remove(at);
        Some((line, item))
    }

    /// Everything not yet taken, in file order.
    pub(super) fn drain(&mut self) -> Vec<(&'t str, usize, &'t Item<'i>)> {
        std::mem::take(&mut self.entries)
    }

    /// Whether a key is there and not yet taken.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(k, ..)| *k == key)
    }

    /// What is left is an error each.
    pub(super) fn end(mut self, allowed: &str, notes: &mut Notes<'_>) {
        for (key, line, _) in self.drain() {
            notes.error(
                line,
                format!("unknown key `{key}` in {}", self.what),
                format!("known here: {allowed}"),
            );
        }
    }
}

/// A string, or nothing with a finding.
pub(super) fn text<'t>(
    item: &'t Item<'_>,
    line: usize,
    key: &str,
    notes: &mut Notes<'_>,
) -> Option<&'t str> {
    let text = item.get_ref().as_str();
    if text.is_none() {
        wrong(item, line, key, "a string", notes);
    }
    text
}

/// A table, or nothing with a finding.
pub(super) fn table<'t, 'i>(
    item: &'t Item<'i>,
    line: usize,
    key: &str,
    notes: &mut Notes<'_>,
) -> Option<&'t DeTable<'i>> {
    let table = item.get_ref().as_table();
    if table.is_none() {
        wrong(item, line, key, "a table", notes);
    }
    table
}

/// The items of an array; a single value counts as an array of one.
pub(super) fn items<'t, 'i>(item: &'t Item<'i>) -> Vec<&'t Item<'i>> {
    match item.get_ref() {
        DeValue::Array(items) => items.iter().collect(),
        _ => vec![item],
    }
}

/// Strings of an array or of a single string.
pub(super) fn texts(
    item: &Item<'_>,
    line: usize,
    key: &str,
    notes: &mut Notes<'_>,
) -> Vec<(String, usize)> {
    let mut texts = Vec::new();
    for one in items(item) {
        let place = notes.line(&one.span()).max(line);
        if let Some(t) = text(one, place, key, notes) {
            texts.push((t.to_owned(), place));
        }
    }
    texts
}

/// A scalar as the text that a device gets: booleans are `yes` and `no`.
pub(super) fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(s) => Some(s.to_string()),
        DeValue::Integer(n) => whole(n).map(|n| n.to_string()),
        DeValue::Float(n) => Some(n.as_str().replace('_', "")),
        DeValue::Boolean(true) => Some("yes".to_owned()),
        DeValue::Boolean(false) => Some("no".to_owned()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// A whole number, also a hexadecimal one.
pub(super) fn whole(n: &toml::de::DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(&n.as_str().replace('_', ""), n.radix()).ok()
}

/// Notes a value of the wrong type.
pub(super) fn wrong(item: &Item<'_>, line: usize, key: &str, want: &str, notes: &mut Notes<'_>) {
    let have = item.get_ref().type_str();
    notes.error(
        line,
        format!("`{key}` is of type {have}"),
        format!("`{key}` takes {want}"),
    );
}
