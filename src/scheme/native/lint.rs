//! What can be said about a scheme without a NAS: names that nobody gives, answers used
//! before they are kept, `run` without a target or in a circle, steps that cannot work.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::expression::Use;
use super::file::Notes;
use super::kinds::speaks_lines;
use super::names::{NAS_COLUMNS, PROMISED, RESERVED, WELL_KNOWN};
use super::render::Template;
use super::step::{Attribute, DriverName, Kind, Step};
use super::{Finding, NativeScheme, VarValue};
use crate::driver::radius::value;
use crate::event::{CATALOGUE, Class};

/// What a saved answer has, and hardly a column of the billing that holds an object.
const OF_AN_ANSWER: [&str; 2] = ["ok", "all"];

/// Levels of `run` inside `run`.
const DEPTH_MAX: usize = 3;

/// Checks a scheme that could be read.
pub(super) fn check(scheme: &NativeScheme, file: &Path, findings: &mut Vec<Finding>) {
    let mut notes = Notes::new(file, "", findings);
    let mut lint = Lint {
        scheme,
        notes: &mut notes,
        used_parts: BTreeSet::new(),
        saves: saves(scheme),
    };
    lint.everywhere();
    for (cmd, steps) in &scheme.on {
        let mut saved = BTreeSet::new();
        let reads_only = cmd.class() == Class::Interactive;
        let mut way = vec![Arc::from(cmd.as_str())];
        lint.list(steps, &mut way, &mut saved, &BTreeSet::new(), reads_only);
        lint.spelling(cmd.as_str(), steps);
    }
    for (name, (line, _)) in &scheme.parts {
        if !lint.used_parts.contains(name) {
            lint.notes.warning(
                *line,
                format!("part `{name}` is never run"),
                format!("write run = \"{name}\" in a command, or remove it"),
            );
        }
    }
}

/// Every name that any step keeps.
fn saves(scheme: &NativeScheme) -> BTreeSet<Arc<str>> {
    let lists = scheme
        .on
        .values()
        .chain(scheme.parts.values().map(|(_, s)| s));
    lists
        .flatten()
        .filter_map(|step| step.save.clone())
        .collect()
}

struct Lint<'l, 'n> {
    scheme: &'l NativeScheme,
    notes: &'l mut Notes<'n>,
    used_parts: BTreeSet<Arc<str>>,
    saves: BTreeSet<Arc<str>>,
}

impl Lint<'_, '_> {
    /// What does not depend on who runs a step.
    fn everywhere(&mut self) {
        let scheme = self.scheme;
        for (n, var) in scheme.vars.iter().enumerate() {
            let later = |u: &&Use| scheme.vars.iter().skip(n).any(|v| v.name == u.name);
            for used in var.uses.iter().filter(later) {
                self.notes.error(
                    var.line,
                    format!(
                        "[vars] `{}` uses `{}` before it is defined",
                        var.name, used.name
                    ),
                    "write the used one above",
                );
            }
            self.names(&var.uses, var.line, &BTreeSet::new(), &BTreeSet::new());
        }
        let own_line = scheme.own.first().map_or(0, |(_, t)| t.line);
        self.names(
            &scheme.own_uses,
            own_line,
            &BTreeSet::new(),
            &BTreeSet::new(),
        );
        for (name, (line, _)) in &scheme.parts {
            if let Some(cmd) = scheme.by_name.get(name) {
                self.notes.error(
                    *line,
                    format!("`{name}` is a part and a command"),
                    format!("rename the part, so that run = \"{cmd}\" means one thing"),
                );
            }
        }
        let lists = scheme
            .on
            .values()
            .chain(scheme.parts.values().map(|(_, s)| s));
        for step in lists.flatten() {
            self.step(step);
        }
    }

    fn step(&mut self, step: &Step) {
        let line = step.line;
        let word = step.kind.word();
        if step.save.is_some() || !step.verdicts.is_empty() {
            match &step.kind {
                Kind::Run(_) | Kind::Answer(_) | Kind::Assert { .. } => self.notes.error(
                    line,
                    format!("a step `{word}` has no answer for save, ok_on, retry_on or fail_on"),
                    "put the key on the step that speaks to the device",
                ),
                Kind::Ensure(_)
                | Kind::Absent(_)
                | Kind::Read(_)
                | Kind::Call(_)
                | Kind::Coa(_)
                | Kind::Disconnect(_)
                | Kind::Exec(_)
                | Kind::Request(_) => {}
            }
        }
        match &step.kind {
            Kind::Ensure(e) => {
                self.routeros(line, word);
                if e.find.is_empty() {
                    self.notes.error(
                        line,
                        "`ensure` without `where` could be any row",
                        "say which row is meant: where = { name = \"…\" }",
                    );
                }
                for (key, _) in &self.scheme.own {
                    if e.set.iter().chain(&e.add).any(|(k, _)| k == key) {
                        self.notes.error(
                            line,
                            format!("`{key}` is in `own` and in `set` or `add`"),
                            "leave it to `own`: it is added by itself",
                        );
                    }
                }
                for (key, _) in &e.set {
                    if e.find.iter().any(|(k, _)| k == key) {
                        self.notes.error(
                            line,
                            format!("`{key}` is in `where` and in `set`"),
                            "a row that is found by it already has it",
                        );
                    }
                }
            }
            Kind::Absent(a) => {
                self.routeros(line, word);
                if a.find.is_empty() {
                    self.notes.error(
                        line,
                        "`absent` without `where` could remove everything",
                        "say which rows are meant: where = { comment = \"…\" }",
                    );
                }
            }
            Kind::Read(_) | Kind::Call(_) => self.routeros(line, word),
            Kind::Coa(attributes) | Kind::Disconnect(attributes) => {
                self.attributes(line, word, attributes);
            }
            Kind::Exec(exec) => {
                if !speaks_lines(self.scheme.driver) {
                    self.notes.error(
                        line,
                        format!(
                            "`exec` is impossible with driver {}",
                            self.scheme.driver.as_str()
                        ),
                        "driver must be ssh or telnet (or record)",
                    );
                }
                if exec.lines.is_empty() {
                    self.notes
                        .error(line, "`exec` has no line", "write exec = [\"…\"]");
                }
                if exec.stdin.is_some() && exec.lines.len() > 1 {
                    self.notes.error(
                        line,
                        "`stdin` with several lines: which one reads it?",
                        "write one step for the line that reads the batch",
                    );
                }
                if exec.stdin.is_some() && self.scheme.driver == DriverName::Telnet {
                    self.notes.error(
                        line,
                        "`stdin` is impossible with driver telnet",
                        "write its lines into `exec`",
                    );
                }
                let ssh = self.scheme.driver == DriverName::Ssh;
                if !exec.expect.is_empty() && ssh && !self.scheme.plain {
                    self.notes.warning(
                        line,
                        "`expect` is for prompts, a command of a shell has none",
                        "look at the answer with ok_on, retry_on and fail_on",
                    );
                }
            }
            Kind::Run(name) => {
                if self.scheme.target(name).is_none() {
                    self.notes.error(
                        line,
                        format!("`run`: there is no part and no command {name:?}"),
                        "check the spelling",
                    );
                }
            }
            Kind::Request(_) | Kind::Answer(_) | Kind::Assert { .. } => {}
        }
    }

    fn routeros(&mut self, line: usize, word: &str) {
        let driver = self.scheme.driver;
        match driver {
            DriverName::Ssh | DriverName::Telnet => self.notes.error(
                line,
                format!("`{word}` is impossible with driver {}", driver.as_str()),
                "it speaks the RouterOS API; use exec, or driver = \"mikrotik\"",
            ),
            DriverName::Mikrotik | DriverName::Radius | DriverName::Http | DriverName::Record => {}
        }
    }

    /// Names, tags and literal values are known now; what is rendered is checked when it is.
    fn attributes(&mut self, line: usize, word: &str, attributes: &[Attribute]) {
        let scheme = self.scheme;
        let mut possible = false;
        for attribute in attributes {
            match attribute {
                Attribute::Merge(expr) => {
                    let var = scheme.vars.iter().find(|v| &*v.name == expr.text().trim());
                    match var.map(|v| &v.value) {
                        Some(VarValue::Map(pairs)) => {
                            for (name, template) in pairs {
                                possible |= self.attribute(line, word, name, template);
                            }
                        }
                        Some(VarValue::One(_) | VarValue::List(_)) => self.notes.error(
                            line,
                            format!("`{word}`: \"*\" takes a map, `{}` is none", expr.text()),
                            "write for example sid = { \"Acct-Session-Id\" = \"{{ acct_session_id }}\" }",
                        ),
                        None => possible = true,
                    }
                }
                Attribute::Values(name, templates) => {
                    for template in templates {
                        possible |= self.attribute(line, word, name, template);
                    }
                }
            }
        }
        if !possible {
            self.notes.error(
                line,
                format!("`{word}` names no session"),
                "add Acct-Session-Id, User-Name or Framed-IP-Address",
            );
        }
    }

    /// Whether it says which session is meant.
    fn attribute(&mut self, line: usize, word: &str, name: &str, template: &Template) -> bool {
        let dictionary = &self.scheme.dictionary;
        let checked = dictionary.find(name).and_then(|(attribute, tag)| {
            match template.literal().filter(|text| !text.is_empty()) {
                Some(text) => value::encode(&attribute, tag, &text).map(drop),
                None => Ok(()),
            }
        });
        if let Err(reason) = checked {
            let (text, hint) = reason.split_once("; ").unwrap_or((
                &reason,
                "docs/schemes.md, \"RADIUS\", says what can be sent",
            ));
            self.notes.error(line, format!("`{word}`: {text}"), hint);
        }
        dictionary.names_session(name)
    }

    /// One list as one command runs it. `saved` grows; `loops` are the loop variables around.
    fn list(
        &mut self,
        steps: &[Step],
        way: &mut Vec<Arc<str>>,
        saved: &mut BTreeSet<Arc<str>>,
        loops: &BTreeSet<Arc<str>>,
        reads_only: bool,
    ) {
        for step in steps {
            self.names(&step.uses, step.line, saved, loops);
            match &step.kind {
                Kind::Ensure(_) | Kind::Absent(_) if reads_only => {
                    let cmd = way.first().cloned().unwrap_or_else(|| Arc::from(""));
                    self.notes.error(
                        step.line,
                        format!(
                            "`{}` in {cmd}, which may run beside other events",
                            step.kind.word()
                        ),
                        "interactive commands only look: use read, call and answer",
                    );
                }
                Kind::Run(name) => {
                    self.used_parts.insert(Arc::clone(name));
                    let mut inner = loops.clone();
                    inner.extend(step.each.as_ref().map(|e| Arc::clone(&e.name)));
                    self.run(step.line, name, way, saved, &inner, reads_only);
                }
                _ => {}
            }
            saved.extend(step.save.clone());
        }
    }

    fn run(
        &mut self,
        line: usize,
        name: &Arc<str>,
        way: &mut Vec<Arc<str>>,
        saved: &mut BTreeSet<Arc<str>>,
        loops: &BTreeSet<Arc<str>>,
        reads_only: bool,
    ) {
        if way.contains(name) {
            self.notes.error(
                line,
                format!("`run` goes in a circle: {} → {name}", way.join(" → ")),
                "move the shared steps into a part of their own",
            );
            return;
        }
        if way.len() > DEPTH_MAX {
            self.notes.error(
                line,
                format!(
                    "`run` goes deeper than 3 levels: {} → {name}",
                    way.join(" → ")
                ),
                "put the steps of the innermost part where they are used",
            );
            return;
        }
        let scheme = self.scheme;
        if let Some(steps) = scheme.target(name) {
            way.push(Arc::clone(name));
            self.list(steps, way, saved, loops, reads_only);
            way.pop();
        }
    }

    fn names(
        &mut self,
        uses: &[Use],
        line: usize,
        saved: &BTreeSet<Arc<str>>,
        loops: &BTreeSet<Arc<str>>,
    ) {
        for used in uses {
            let name = &*used.name;
            if name == "nas" {
                self.nas(used, line);
                continue;
            }
            let known = RESERVED.contains(&name)
                || PROMISED.contains(&name)
                || WELL_KNOWN.iter().any(|(n, _)| *n == name)
                || self.scheme.vars.iter().any(|v| v.name == used.name)
                || saved.contains(&used.name)
                || loops.contains(&used.name);
            if known {
                continue;
            }
            if self.saves.contains(&used.name) {
                self.notes.error(
                    line,
                    format!("`{name}` is used before a step saves it"),
                    "move the step with its `save` before this one",
                );
            } else if let Some(attribute) = used.attribute.as_deref()
                && !used.optional
                && OF_AN_ANSWER.contains(&attribute)
            {
                self.notes.error(
                    line,
                    format!("`{name}.{attribute}` is of an answer, and no step saves `{name}`"),
                    "write save = \"…\" at the step whose answer is meant",
                );
            } else if !used.optional {
                self.notes.warning(
                    line,
                    format!("`{name}` is not a well-known name"),
                    "fine if the view event_params has this column, else events will be dead",
                );
            }
        }
    }

    fn nas(&mut self, used: &Use, line: usize) {
        let Some(column) = &used.attribute else {
            return;
        };
        if !NAS_COLUMNS.contains(&&**column) && !used.optional {
            self.notes.warning(
                line,
                format!("`nas.{column}` is not a column of nas"),
                format!("each NAS with this scheme must have \"{column}\" in nas.vars"),
            );
        }
    }

    /// A command that is nearly one of the catalogue is probably misspelt.
    fn spelling(&mut self, cmd: &str, steps: &[Step]) {
        if CATALOGUE.iter().any(|(name, _)| *name == cmd) {
            return;
        }
        let near = CATALOGUE.iter().find(|(name, _)| distance(name, cmd) <= 2);
        if let Some((name, _)) = near {
            self.notes.warning(
                steps.first().map_or(0, |s| s.line),
                format!("command `{cmd}` is not in the catalogue"),
                format!("is `{name}` meant?"),
            );
        }
    }
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (n, x) in a.chars().enumerate() {
        let mut next = vec![n + 1];
        for (m, y) in b.iter().enumerate() {
            let change = row.get(m).copied().unwrap_or(usize::MAX - 1) + usize::from(x != *y);
            let drop = row.get(m + 1).copied().unwrap_or(usize::MAX - 1) + 1;
            let insert = next.last().copied().unwrap_or(usize::MAX - 1) + 1;
            next.push(change.min(drop).min(insert));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
