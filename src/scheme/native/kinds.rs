//! The keys of each kind of step. Exactly one kind per step; a key that belongs to another
//! kind stays untaken and becomes a finding.

use std::sync::Arc;

use toml::de::DeValue;

use super::expression::{Piece, Use, pieces};
use super::file::{Item, Keys, Notes, items, scalar, table, text, texts, whole, wrong};
use super::load::{Shared, expression, pairs, template};
use super::render::{Place, Template};
use super::step::{
    Absent, Attribute, Call, DriverName, Ensure, Exec, JsonTemplate, Kind, Pair, Read, Request,
};
use super::steps::pattern;
use crate::driver::http::METHODS;

/// Words of the kinds, in the order of the documentation.
pub(super) const KINDS: [&str; 11] = [
    "ensure",
    "absent",
    "read",
    "call",
    "coa",
    "disconnect",
    "exec",
    "request",
    "run",
    "answer",
    "assert",
];
/// Rows that `absent` removes if `at_most` says nothing: an account has a handful.
const AT_MOST: usize = 16;
/// Rows that `at_most` may allow: an account's connections, not a router's.
const AT_MOST_MAX: usize = 65_536;

/// The kind with its keys, and the names of those keys for a hint.
pub(super) fn read(
    keys: &mut Keys<'_, '_>,
    line: usize,
    shared: &Shared,
    uses: &mut Vec<Use>,
    notes: &mut Notes<'_>,
) -> Option<(Kind, &'static str)> {
    let present: Vec<_> = KINDS.into_iter().filter(|k| keys.has(k)).collect();
    let word = match present.as_slice() {
        [one] => *one,
        [] => {
            notes.error(
                line,
                "the step has no kind",
                format!("write one of {}", KINDS.join(", ")),
            );
            return None;
        }
        several => {
            notes.error(
                line,
                format!("the step has several kinds: {}", several.join(", ")),
                "write one step for each, in the order in which they shall run",
            );
            return None;
        }
    };
    let (line, item) = keys.take(word)?;
    let mut reader = Reader {
        shared,
        uses,
        notes,
    };
    let kind = match word {
        "ensure" => Kind::Ensure(Ensure {
            path: reader.path(item, line, word)?,
            find: reader.pairs(keys, "where", Place::Exact),
            set: reader.pairs(keys, "set", Place::Data),
            add: reader.pairs(keys, "add", Place::Data),
        }),
        "absent" => Kind::Absent(Absent {
            path: reader.path(item, line, word)?,
            find: reader.pairs(keys, "where", Place::Exact),
            like: reader.like(keys),
            at_most: reader.at_most(keys),
        }),
        "read" => Kind::Read(Read {
            path: reader.path(item, line, word)?,
            find: reader.pairs(keys, "where", Place::Exact),
            only: keys.take("only").map_or_else(Vec::new, |(line, item)| {
                let names = texts(item, line, "only", reader.notes);
                names.into_iter().map(|(name, _)| name).collect()
            }),
        }),
        "call" => Kind::Call(Call {
            path: reader.path(item, line, word)?,
            args: reader.pairs(keys, "args", Place::Data),
        }),
        "coa" => Kind::Coa(reader.attributes(item, line, word)?),
        "disconnect" => Kind::Disconnect(reader.attributes(item, line, word)?),
        "exec" => Kind::Exec(reader.exec(keys, item, line)),
        "request" => Kind::Request(reader.request(item, line)?),
        "run" => Kind::Run(Arc::from(text(item, line, word, reader.notes)?)),
        "answer" => Kind::Answer(reader.one(item, line, word, Place::Data)?),
        _ => reader.assert(keys, item, line)?,
    };
    Some((kind, allowed(word)))
}

fn allowed(word: &str) -> &'static str {
    match word {
        "ensure" => "ensure, where, set, add, ",
        "absent" => "absent, where, match, at_most, ",
        "read" => "read, where, only, ",
        "call" => "call, args, ",
        "exec" => "exec, stdin, expect, abort, ",
        "assert" => "assert, otherwise, ",
        _ => "",
    }
}

struct Reader<'r, 'n> {
    shared: &'r Shared,
    uses: &'r mut Vec<Use>,
    notes: &'r mut Notes<'n>,
}

impl Reader<'_, '_> {
    fn template(&mut self, source: &str, line: usize, place: Place) -> Option<Template> {
        template(
            source,
            line,
            place,
            &self.shared.vars,
            self.uses,
            self.notes,
        )
    }

    fn one(&mut self, item: &Item<'_>, line: usize, key: &str, place: Place) -> Option<Template> {
        let source = text(item, line, key, self.notes)?;
        self.template(source, line, place)
    }

    fn path(&mut self, item: &Item<'_>, line: usize, key: &str) -> Option<Template> {
        let source = text(item, line, key, self.notes)?;
        if !source.contains("{{") && !source.contains("{%") && !super::ros::is_path(source) {
            self.notes.error(
                line,
                format!("{source:?} is not a path of RouterOS"),
                "write it with slashes, for example /ip/firewall/address-list",
            );
            return None;
        }
        self.template(source, line, Place::Exact)
    }

    fn pairs(&mut self, keys: &mut Keys<'_, '_>, key: &str, place: Place) -> Vec<Pair> {
        let Some((line, item)) = keys.take(key) else {
            return Vec::new();
        };
        pairs(item, line, key, place, self.shared, self.uses, self.notes)
    }

    /// `match`: checked with a harmless word in place of each value.
    fn like(&mut self, keys: &mut Keys<'_, '_>) -> Vec<Pair> {
        let Some((line, item)) = keys.take("match") else {
            return Vec::new();
        };
        if let Some(table) = item.get_ref().as_table() {
            for (name, line, item) in Keys::new(table, "match", self.notes).drain() {
                let Some(source) = item.get_ref().as_str() else {
                    continue;
                };
                let parts = pieces(source).unwrap_or_default();
                let trial: String = parts
                    .iter()
                    .map(|p| match p {
                        Piece::Text(text) => text,
                        Piece::Emit(_) => "x",
                        Piece::Tag(_) | Piece::Comment => "",
                    })
                    .collect();
                if let Err(e) = regex::Regex::new(&trial) {
                    let reason = e.to_string();
                    let reason = reason.lines().last().unwrap_or_default().to_owned();
                    self.notes.error(
                        line,
                        format!(
                            "`match` of `{name}`: {source:?} is not a regular expression: {reason}"
                        ),
                        "in TOML write it in single quotes, so that backslashes stay",
                    );
                }
            }
        }
        pairs(
            item,
            line,
            "match",
            Place::Pattern,
            self.shared,
            self.uses,
            self.notes,
        )
    }

    fn at_most(&mut self, keys: &mut Keys<'_, '_>) -> usize {
        let Some((line, item)) = keys.take("at_most") else {
            return AT_MOST;
        };
        let number = item.get_ref().as_integer().and_then(whole);
        match number.and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=AT_MOST_MAX).contains(&n) => n,
            _ => {
                wrong(
                    item,
                    line,
                    "at_most",
                    "a number from 1 to 65536",
                    self.notes,
                );
                AT_MOST
            }
        }
    }

    fn attributes(&mut self, item: &Item<'_>, line: usize, key: &str) -> Option<Vec<Attribute>> {
        let map = table(item, line, key, self.notes)?;
        let mut attributes = Vec::new();
        for (name, line, item) in Keys::new(map, key, self.notes).drain() {
            if name == "*" {
                let Some(source) = text(item, line, name, self.notes) else {
                    continue;
                };
                let expr = expression(source, line, self.shared, self.uses, self.notes);
                attributes.extend(expr.map(Attribute::Merge));
                continue;
            }
            let (bare, tag) = name
                .split_once(':')
                .map_or((name, None), |(n, t)| (n, Some(t)));
            let good = !bare.is_empty()
                && bare
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
            // RFC 2868 section 3.1: tags are 0x01 to 0x1f.
            let good_tag = tag.is_none_or(|t| t.parse::<u8>().is_ok_and(|n| (1..=31).contains(&n)));
            if !good || !good_tag {
                self.notes.error(
                    line,
                    format!("{name:?} is not the name of a RADIUS attribute"),
                    "write \"Name\", or \"Name:3\" with a tag from 1 to 31",
                );
                continue;
            }
            let mut values = Vec::new();
            for one in items(item) {
                let Some(source) = scalar(one.get_ref()) else {
                    wrong(one, line, name, "strings and numbers", self.notes);
                    continue;
                };
                values.extend(self.template(&source, line, Place::Data));
            }
            attributes.push(Attribute::Values(name.into(), values));
        }
        Some(attributes)
    }

    fn exec(&mut self, keys: &mut Keys<'_, '_>, item: &Item<'_>, line: usize) -> Exec {
        let lines = self.lines(item, line, "exec");
        let stdin = keys
            .take("stdin")
            .and_then(|(line, item)| self.one(item, line, "stdin", Place::Plain));
        let expect = keys.take("expect").map_or_else(Vec::new, |(line, item)| {
            let sources = texts(item, line, "expect", self.notes);
            sources
                .iter()
                .filter_map(|(source, line)| pattern(source, *line, "expect", self.notes))
                .collect()
        });
        let abort = keys
            .take("abort")
            .map_or_else(Vec::new, |(line, item)| self.lines(item, line, "abort"));
        Exec {
            lines,
            stdin,
            expect,
            abort,
        }
    }

    fn lines(&mut self, item: &Item<'_>, line: usize, key: &str) -> Vec<Template> {
        let place = self.shared.line_place;
        let mut lines = Vec::new();
        for (source, line) in texts(item, line, key, self.notes) {
            if source.trim().is_empty() || source.contains(['\n', '\r']) {
                self.notes.error(
                    line,
                    format!("`{key}` holds an empty line or a line break"),
                    "write one string per line; a batch goes into `stdin`",
                );
                continue;
            }
            if place == Place::Posix
                && let Some(reason) = unquotable(&source)
            {
                self.notes.error(
                    line,
                    format!("`{key}`: {reason} in {source:?}"),
                    "leave {{ }} outside quotes: each value becomes one quoted word by itself",
                );
                continue;
            }
            lines.extend(self.template(&source, line, place));
        }
        lines
    }

    fn request(&mut self, item: &Item<'_>, line: usize) -> Option<Request> {
        let map = table(item, line, "request", self.notes)?;
        let mut keys = Keys::new(map, "request", self.notes);
        let word = match keys.take("method") {
            Some((line, item)) => text(item, line, "method", self.notes)?,
            None => "GET",
        };
        let method = METHODS.into_iter().find(|m| *m == word);
        if method.is_none() {
            self.notes.error(
                line,
                format!("unknown method {word:?}"),
                format!("write one of {}", METHODS.join(", ")),
            );
        }
        let path = match keys.take("path") {
            Some((line, item)) => self.one(item, line, "path", Place::Url),
            None => {
                self.notes
                    .error(line, "`request` has no `path`", "write path = \"/…\"");
                None
            }
        };
        let headers = self.pairs(&mut keys, "headers", Place::Data);
        let json = keys
            .take("json")
            .and_then(|(line, item)| self.json(item, line));
        keys.end("method, path, headers, json", self.notes);
        Some(Request {
            method: method?,
            path: path?,
            headers,
            json,
        })
    }

    fn json(&mut self, item: &Item<'_>, line: usize) -> Option<JsonTemplate> {
        Some(match item.get_ref() {
            DeValue::String(source) => {
                JsonTemplate::Text(self.template(source, line, Place::Data)?)
            }
            DeValue::Integer(n) => JsonTemplate::Plain(whole(n)?.into()),
            DeValue::Float(n) => JsonTemplate::Plain(n.as_str().parse::<f64>().ok()?.into()),
            DeValue::Boolean(set) => JsonTemplate::Plain((*set).into()),
            DeValue::Datetime(when) => JsonTemplate::Plain(when.to_string().into()),
            DeValue::Array(items) => {
                JsonTemplate::List(items.iter().filter_map(|i| self.json(i, line)).collect())
            }
            DeValue::Table(map) => {
                let keys = Keys::new(map, "json", self.notes).drain();
                let mut pairs = Vec::with_capacity(keys.len());
                for (name, line, item) in keys {
                    pairs.push((name.to_owned(), self.json(item, line)?));
                }
                JsonTemplate::Map(pairs)
            }
        })
    }

    fn assert(&mut self, keys: &mut Keys<'_, '_>, item: &Item<'_>, line: usize) -> Option<Kind> {
        let source = text(item, line, "assert", self.notes)?;
        let check = expression(source, line, self.shared, self.uses, self.notes);
        let word = match keys.take("otherwise") {
            Some((line, item)) => text(item, line, "otherwise", self.notes)?,
            None => "defer",
        };
        let defer = match word {
            "defer" => true,
            "dead" => false,
            other => {
                self.notes.error(
                    line,
                    format!("`otherwise` is {other:?}"),
                    "write otherwise = \"defer\" (look again later) or \"dead\"",
                );
                return None;
            }
        };
        Some(Kind::Assert {
            check: check?,
            defer,
        })
    }
}

/// Why a value cannot be made one word at its place in a line for a POSIX shell.
pub(super) fn unquotable(line: &str) -> Option<&'static str> {
    let parts = pieces(line).ok()?;
    if !parts.iter().any(|p| matches!(p, Piece::Emit(_))) {
        return None;
    }
    let mut quote = None;
    let mut escaped = false;
    let mut before = ' ';
    let mut words = String::new();
    for part in parts {
        match part {
            Piece::Text(text) => {
                words.push_str(text);
                for c in text.chars() {
                    match quote {
                        _ if escaped => escaped = false,
                        Some('\'') if c == '\'' => quote = None,
                        Some('\'') => {}
                        _ if c == '\\' => escaped = true,
                        Some(q) if c == q => quote = None,
                        Some(_) => {}
                        None if c == '\'' || c == '"' => quote = Some(c),
                        None if c == '#' && before.is_whitespace() => {
                            return Some("a comment");
                        }
                        None => {}
                    }
                    before = c;
                }
            }
            Piece::Emit(_) if escaped => return Some("a value after a backslash"),
            Piece::Emit(_) if quote.is_some() => return Some("a value inside quotes"),
            Piece::Emit(_) => {
                words.push('x');
                before = 'x';
            }
            Piece::Tag(_) | Piece::Comment => {}
        }
    }
    if words.contains('`') || words.contains("$(") || words.contains("${") {
        return Some("a value beside a substitution of the shell");
    }
    if words.contains("<<") {
        return Some("a value beside a here-document");
    }
    let words: Vec<_> = words.split_whitespace().collect();
    let twice = |pair: &[&str]| matches!(pair, [shell, "-c"] if shell.ends_with("sh"));
    if words
        .first()
        .is_some_and(|w| matches!(*w, "eval" | "source" | "."))
        || words.contains(&"eval")
        || words.windows(2).any(twice)
    {
        return Some("a value in a command that the shell reads twice");
    }
    None
}

/// Whether a driver can run `exec` lines.
pub(super) fn speaks_lines(driver: DriverName) -> bool {
    match driver {
        DriverName::Ssh | DriverName::Telnet | DriverName::Record => true,
        DriverName::Mikrotik | DriverName::Radius | DriverName::Http => false,
    }
}
