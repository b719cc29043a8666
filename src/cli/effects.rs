//! What commands in a log of a NAS come to: which row of which account stands or is gone, what
//! else was sent. Pure, and the same for the logs of the classic daemon and for ours, so that the
//! two can be compared by effect: other names of rows, other spellings of the same address or
//! rate, and what is only read do not count.

use std::collections::{BTreeMap, BTreeSet};

/// Programs by which schemes speak to devices, in their classic and in our names.
const PROGRAMS: &[&str] = &[
    "send_mikrotik_cmd",
    "send_radius_cmd",
    "radclient",
    "send_ssh_cmd",
    "ssh_send",
    "send_telnet_cmd",
    "send_http_cmd",
];
/// What stands in observe mode below a look that would have ended in a removal.
const WOULD_REMOVE: &str = "would be removed";
/// Where a row or a packet says whose it is, the surest first.
const WHOSE: &[&str] = &[
    "address",
    "target",
    "src-address",
    "framed-ip-address",
    "framed-ipv6-prefix",
    "user-name",
    "user",
    "name",
    "comment",
    "acct-session-id",
];
/// Words of a MikroTik command that name a row or its place, and are no effect.
const NAMES: &[&str] = &[
    "comment",
    "name",
    "place-before",
    "numbers",
    ".id",
    ".proplist",
];
/// Verbs that only look.
const LOOKS: &[&str] = &["print", "ping", "getall", "listen", "monitor"];

/// Addresses and logins of accounts, by which rows are found to be the same account's.
#[derive(Debug, Default)]
pub struct Accounts {
    users: BTreeSet<i64>,
    by_text: BTreeMap<String, i64>,
}

impl Accounts {
    /// One account with its addresses and its login.
    pub fn add<'a>(&mut self, user: i64, texts: impl Iterator<Item = &'a str>) {
        self.users.insert(user);
        for text in texts.filter(|text| !text.is_empty()) {
            self.by_text.insert(plain(text), user);
        }
    }

    /// `user 1424`, or the text itself where nobody is known by it.
    fn whose(&self, text: &str) -> Option<String> {
        let text = plain(text.split(',').next().unwrap_or(text));
        let marked = text.rsplit_once('_').map(|(_, last)| last);
        let known = [Some(text.as_str()), marked]
            .into_iter()
            .flatten()
            .find_map(|text| {
                let by_number = text.parse().ok().filter(|n| self.users.contains(n));
                self.by_text.get(text).copied().or(by_number)
            });
        known.map(|user| format!("user {user}"))
    }
}

/// How something stands after all commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stands {
    /// It is there, with these values.
    There(BTreeMap<String, String>),
    /// It is not there.
    Gone,
}

impl std::fmt::Display for Stands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone => f.write_str("not there"),
            Self::There(values) if values.is_empty() => f.write_str("there"),
            Self::There(values) => {
                let all: Vec<String> = values.iter().map(|(k, v)| format!("{k}={v}")).collect();
                f.write_str(&all.join(" "))
            }
        }
    }
}

/// Whose, and what: a list, a queue, the form of a packet or a line.
pub type Key = (String, String);

/// The state that the commands of one log lead to.
#[derive(Debug, Default)]
pub struct Effects {
    /// How each thing stands.
    pub stands: BTreeMap<Key, Stands>,
    /// Menus of which everything of an account was removed, whatever it was.
    cleared: BTreeSet<Key>,
    /// Commands that were understood.
    pub commands: usize,
}

/// One thing on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It stands alike.
    Same,
    /// It stands otherwise.
    Different,
    /// Only the other daemon touched it.
    Missing,
    /// Only ours touched it.
    Extra,
}

impl Match {
    /// The word in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Different => "different",
            Self::Missing => "missing",
            Self::Extra => "extra",
        }
    }
}

impl Effects {
    /// Reads a log, line by line; lines outside of `from..=to` (`YYYY-MM-DD HH:MM:SS`, as text)
    /// are left out, lines without a time are not.
    pub fn read(log: &str, accounts: &Accounts, from: &str, to: &str) -> Self {
        let mut effects = Self::default();
        let mut lines = log
            .lines()
            .filter(|line| match time(line) {
                Some(time) => (from.is_empty() || time >= from) && (to.is_empty() || time <= to),
                None => true,
            })
            .peekable();
        while let Some(line) = lines.next() {
            let removes = lines.peek().is_some_and(|next| next.contains(WOULD_REMOVE));
            if let Some(command) = command(line) {
                effects.take(&words(command), removes, accounts);
            }
        }
        effects
    }

    fn take(&mut self, words: &[String], removes: bool, accounts: &Accounts) {
        let at = words.iter().position(|w| PROGRAMS.contains(&file_name(w)));
        let Some((at, program)) = at.and_then(|at| Some((at, file_name(words.get(at)?)))) else {
            return;
        };
        let before = words.get(..at).unwrap_or_default();
        let after = words.get(at + 1..).unwrap_or_default();
        self.commands += 1;
        match program {
            "send_mikrotik_cmd" => self.mikrotik(after, removes, accounts),
            "radclient" => self.radius(after.iter().rev().nth(1), &fed(before), accounts),
            "send_radius_cmd" => {
                let kind = after.iter().position(|w| is_radius(w));
                let words = kind.and_then(|at| after.get(at..)).unwrap_or_default();
                let attributes = words.get(1..).unwrap_or_default().join(",\n");
                self.radius(words.first(), &attributes, accounts);
            }
            _ => self.lines(after, &fed(before), accounts),
        }
    }

    fn mikrotik(&mut self, words: &[String], removes: bool, accounts: &Accounts) {
        let start = words.iter().position(|w| w.starts_with('/'));
        let Some(rest) = start.and_then(|at| words.get(at..)) else {
            return;
        };
        let mut path: Vec<&str> = Vec::new();
        let mut values = BTreeMap::new();
        for word in rest.iter().filter(|word| !word.starts_with("?#")) {
            let pair = word.trim_start_matches(['?', '=']).split_once('=');
            match pair {
                Some((name, value)) => {
                    values.insert(name.to_ascii_lowercase(), value.to_owned());
                }
                None => path.extend(word.split('/').filter(|part| !part.is_empty())),
            }
        }
        let Some(verb) = path.pop() else { return };
        let menu = format!("/{}", path.join("/"));
        let removes = removes || verb == "remove";
        if LOOKS.contains(&verb) && !removes {
            return;
        }
        let whose = whose(&values, accounts);
        let list = values.get("list").cloned();
        let what = match &list {
            Some(list) => format!("{menu} {list}"),
            None => menu.clone(),
        };
        if removes {
            if list.is_none() {
                self.clear(&whose, &menu);
            }
            self.stands.insert((whose, what), Stands::Gone);
            return;
        }
        let told = values
            .into_iter()
            .filter(|(name, _)| !NAMES.contains(&name.as_str()));
        let told = told.map(|(name, value)| (name, canonical(&value)));
        self.stands
            .insert((whose, what), Stands::There(told.collect()));
    }

    /// Everything of the account in this menu is gone, whatever list it is on.
    fn clear(&mut self, whose: &str, menu: &str) {
        self.cleared.insert((whose.to_owned(), menu.to_owned()));
        for ((who, what), stands) in &mut self.stands {
            if who == whose && what.split(' ').next() == Some(menu) {
                *stands = Stands::Gone;
            }
        }
    }

    fn radius(&mut self, kind: Option<&String>, attributes: &str, accounts: &Accounts) {
        let Some(kind) = kind.filter(|kind| is_radius(kind)) else {
            return;
        };
        let mut values = BTreeMap::new();
        for pair in split_attributes(attributes) {
            if let Some((name, value)) = pair.split_once('=') {
                let value = value.trim_start_matches(['=', ' ']).trim_matches('"');
                values.insert(name.trim().to_ascii_lowercase(), value.to_owned());
            }
        }
        let whose = whose(&values, accounts);
        let told: BTreeMap<String, String> = values
            .into_iter()
            .filter(|(name, _)| !WHOSE.contains(&name.as_str()))
            .map(|(name, value)| (name, canonical(&value)))
            .collect();
        let form: Vec<String> = told
            .iter()
            .map(|(k, v)| format!("{k}={}", shape(v)))
            .collect();
        let what = format!("{kind} {}", form.join(" ")).trim_end().to_owned();
        self.stands.insert((whose, what), Stands::There(told));
    }

    /// A line of a command line device; each line of what it was fed with is one.
    fn lines(&mut self, words: &[String], fed: &str, accounts: &Accounts) {
        let here = words.iter().position(|w| w == "<<<");
        let (call, text) = match here {
            Some(at) => (
                words.get(..at),
                words.get(at + 1).map_or("", String::as_str),
            ),
            None => (Some(words), fed),
        };
        // Options of the helper and its host say where, not what; a command is one last word.
        let said = call
            .and_then(|call| call.last())
            .filter(|w| w.contains(' '));
        let program = said
            .map_or("", String::as_str)
            .trim_end_matches(" -")
            .trim();
        let program = program.trim_end_matches(" -f").trim_end_matches(" -batch");
        let lines: Vec<String> = if text.trim().is_empty() {
            vec![program.to_owned()]
        } else {
            text.lines()
                .map(|line| format!("{program} {line}"))
                .collect()
        };
        for line in lines {
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            if line.is_empty() || line == "exit" {
                continue;
            }
            let whose = line
                .split([' ', ',', ';'])
                .find_map(|word| accounts.whose(word));
            let what = shape(&line);
            let told = BTreeMap::from([("line".to_owned(), line)]);
            self.stands
                .insert((whose.unwrap_or_default(), what), Stands::There(told));
        }
    }

    fn look(&self, key: &Key) -> Option<Stands> {
        let menu = (
            key.0.clone(),
            key.1.split(' ').next().unwrap_or_default().to_owned(),
        );
        let gone = || self.cleared.contains(&menu).then_some(Stands::Gone);
        self.stands.get(key).cloned().or_else(gone)
    }

    /// Everything that either side touched, and how `ours` stands to `theirs`.
    pub fn compare<'a>(
        theirs: &'a Self,
        ours: &'a Self,
    ) -> impl Iterator<Item = (Key, Match, Option<Stands>, Option<Stands>)> + 'a {
        let keys: BTreeSet<&Key> = theirs.stands.keys().chain(ours.stands.keys()).collect();
        keys.into_iter().filter_map(|key| {
            let (was, is) = (theirs.look(key), ours.look(key));
            let verdict = match (&was, &is) {
                (None, None) => return None,
                (Some(_), None) => Match::Missing,
                (None, Some(_)) => Match::Extra,
                (Some(a), Some(b)) if alike(a, b) => Match::Same,
                (Some(_), Some(_)) => Match::Different,
            };
            Some((key.clone(), verdict, was, is))
        })
    }
}

/// Alike in everything that both of them name.
fn alike(a: &Stands, b: &Stands) -> bool {
    match (a, b) {
        (Stands::Gone, Stands::Gone) => true,
        (Stands::There(a), Stands::There(b)) => a
            .iter()
            .all(|(name, value)| b.get(name).is_none_or(|other| other == value)),
        (Stands::Gone, Stands::There(_)) | (Stands::There(_), Stands::Gone) => false,
    }
}

fn whose(values: &BTreeMap<String, String>, accounts: &Accounts) -> String {
    let named = || WHOSE.iter().filter_map(|name| values.get(*name));
    named()
        .find_map(|text| accounts.whose(text))
        .or_else(|| named().next().map(|text| plain(text)))
        .unwrap_or_default()
}

fn is_radius(word: &str) -> bool {
    matches!(word, "coa" | "disconnect")
}

fn file_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// `2026-07-01 10:00:00`, if the line begins with it.
fn time(line: &str) -> Option<&str> {
    let time = line.get(..19)?;
    let fits = time
        .bytes()
        .zip(b"0000-00-00 00:00:00")
        .all(|(c, form)| match form {
            b'0' => c.is_ascii_digit(),
            other => c == *other,
        });
    fits.then_some(time)
}

/// The part of a line that is a command of a helper; none for answers, which may quote one.
fn command(line: &str) -> Option<&str> {
    if line.contains("ERROR:") || line.contains(" < ") && !line.contains(" > ") {
        return None;
    }
    let is_start = |at: usize| {
        let before = line.get(..at).unwrap_or_default();
        before.is_empty() || before.ends_with([' ', '\t', '/', '|', ';', '('])
    };
    let at = PROGRAMS
        .iter()
        .filter_map(|name| {
            line.match_indices(name)
                .map(|(at, _)| at)
                .find(|at| is_start(*at))
        })
        .min()?;
    let head = line.get(..at).unwrap_or_default();
    let fed = ["echo ", "printf "].iter().filter_map(|word| {
        let mut found = head.match_indices(word).map(|(at, _)| at);
        found.find(|at| is_start(*at))
    });
    line.get(fed.min().unwrap_or(at)..)
}

/// What a pipe fed: the text of `echo` or `printf`.
fn fed(before: &[String]) -> String {
    let end = before.iter().position(|w| w == "|").unwrap_or(before.len());
    let words = before.get(..end).unwrap_or_default().iter().skip(1);
    let text: Vec<&str> = words
        .map(String::as_str)
        .filter(|w| !matches!(*w, "-e" | "-n"))
        .collect();
    text.join(" ").replace("\\n", "\n")
}

/// Words as a shell would see them; a bar outside of quotes is a word.
fn words(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' => all.extend(word.take()),
            '|' => {
                all.extend(word.take());
                all.push("|".to_owned());
            }
            '\'' => {
                let word = word.get_or_insert_default();
                word.extend(rest.by_ref().take_while(|c| *c != '\''));
            }
            '$' if rest.peek() == Some(&'\'') => {
                rest.next();
                let word = word.get_or_insert_default();
                while let Some(c) = rest.next().filter(|c| *c != '\'') {
                    word.push(match c {
                        '\\' => match rest.next() {
                            Some('n') => '\n',
                            Some('t') => '\t',
                            Some('r') => '\r',
                            other => other.unwrap_or('\\'),
                        },
                        other => other,
                    });
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                while let Some(c) = rest.next().filter(|c| *c != '"') {
                    word.push(if c == '\\' {
                        rest.next().unwrap_or('\\')
                    } else {
                        c
                    });
                }
            }
            '\\' => word.get_or_insert_default().extend(rest.next()),
            other => word.get_or_insert_default().push(other),
        }
    }
    all.extend(word);
    all
}

/// Attributes between commas or on lines, where a comma within quotes is none.
fn split_attributes(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' | '\n' if !quoted => all.push(String::new()),
            other => {
                if let Some(last) = all.last_mut() {
                    last.push(other);
                }
            }
        }
    }
    all
}

/// An address without the mask of one host, in lower case.
fn plain(text: &str) -> String {
    let text = text.trim().to_ascii_lowercase();
    let bare = text
        .strip_suffix("/32")
        .or_else(|| text.strip_suffix("/128"));
    bare.map_or(text.clone(), str::to_owned)
}

/// One spelling per value: rates in bit/s, addresses without the mask of one host.
fn canonical(value: &str) -> String {
    let each = value
        .split([',', ' '])
        .filter(|part| !part.is_empty())
        .map(|part| {
            let rates: Option<Vec<String>> = part.split('/').map(rate).collect();
            rates.map_or_else(|| plain(part), |rates| rates.join("/"))
        });
    each.collect::<Vec<_>>().join(" ")
}

/// `10M`, `512k`, `10000000`.
fn rate(text: &str) -> Option<String> {
    let (number, factor) = match text.bytes().last()? {
        b'k' | b'K' => (text.get(..text.len() - 1)?, 1_000),
        b'm' | b'M' => (text.get(..text.len() - 1)?, 1_000_000),
        b'g' | b'G' => (text.get(..text.len() - 1)?, 1_000_000_000),
        _ => (text, 1),
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(factor).map(|n| n.to_string())
}

/// A line with every number as `#`: two of one shape do the same thing with other values.
fn shape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
    out
}

#[cfg(test)]
#[path = "effects_test.rs"]
mod tests;
