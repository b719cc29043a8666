//! From the text of `scheme.toml` to compiled steps. Each mistake becomes a finding and the
//! reading goes on, so that one run of the lint shows all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::expression::{Expr, Use};
use super::file::{Item, Keys, Notes, scalar, table, text, texts, whole, wrong};
use super::names::RESERVED;
use super::render::{Place, Template};
use super::step::{DriverName, Pair};
use super::steps::lists;
use super::{Finding, NativeScheme, Var, VarValue};
use crate::driver::radius::dictionary::Dictionary;
use crate::event::{Cmd, is_name};
use crate::nas::OnError;
use crate::scheme::{ExitPolicy, Identity};

const FILE_KEYS: &str =
    "driver, description, vars, own, shell, fresh, exit, on_error, on.<cmd>, part.<name>";
/// Largest file: the largest scheme known has 300 lines; this is a typing error away from none.
const FILE_MAX: usize = 1024 * 1024;

/// What the steps of a file share while they are read.
pub(super) struct Shared {
    /// `shell`, or the driver's default.
    pub(super) line_place: Place,
    /// Names of `[vars]`, in file order.
    pub(super) vars: Vec<Arc<str>>,
}

/// Reads the whole file; `None` = not TOML, or nothing that could be checked further.
pub(super) fn scheme(
    dir: &Path,
    file: &Path,
    source: &str,
    dictionary: Arc<Dictionary>,
    findings: &mut Vec<Finding>,
) -> Option<NativeScheme> {
    let mut notes = Notes::new(file, source, findings);
    if source.len() > FILE_MAX {
        notes.error(0, "is larger than 1 MiB", "split it into several schemes");
        return None;
    }
    let tree = match DeTable::parse(source) {
        Ok(tree) => tree,
        Err(e) => {
            let line = e.span().map_or(1, |span| notes.line(&span));
            notes.error(line, e.message(), "the file must be TOML");
            return None;
        }
    };
    let mut keys = Keys::new(tree.get_ref(), "the file", &notes);
    let driver = driver(&mut keys, &mut notes);
    let description = keys
        .take("description")
        .and_then(|(line, item)| text(item, line, "description", &mut notes))
        .unwrap_or_default()
        .to_owned();
    let line_place = shell(&mut keys, driver, &mut notes);
    let vars = vars(&mut keys, &mut notes);
    let shared = Shared {
        line_place,
        vars: vars.iter().map(|v| Arc::clone(&v.name)).collect(),
    };
    let mut own_uses = Vec::new();
    let own = match keys.take("own") {
        Some((line, item)) => pairs(
            item,
            line,
            "own",
            Place::Exact,
            &shared,
            &mut own_uses,
            &mut notes,
        ),
        None => Vec::new(),
    };
    let fresh = keys.take("fresh").map_or_else(Vec::new, |(line, item)| {
        let names = texts(item, line, "fresh", &mut notes);
        for (name, line) in names.iter().filter(|(name, _)| !is_name(name)) {
            notes.error(
                *line,
                format!("`fresh` holds {name:?}"),
                "write names of PARAMS, for example acct_session_id",
            );
        }
        names.into_iter().map(|(name, _)| name).collect()
    });
    let policy = policy(&mut keys, &mut notes);
    let (mut on, mut by_name) = (BTreeMap::new(), BTreeMap::new());
    if let Some((line, item)) = keys.take("on") {
        for (name, line, steps) in lists(item, line, "on", &shared, &mut notes) {
            match Cmd::parse(&name) {
                Ok(cmd) => {
                    by_name.insert(Arc::from(name.as_str()), cmd.clone());
                    on.insert(cmd, steps);
                }
                Err(reason) => notes.error(line, reason, "rename the command"),
            }
        }
    }
    let mut parts = BTreeMap::new();
    if let Some((line, item)) = keys.take("part") {
        for (name, line, steps) in lists(item, line, "part", &shared, &mut notes) {
            parts.insert(Arc::from(name.as_str()), (line, steps));
        }
    }
    keys.end(FILE_KEYS, &mut notes);
    if on.is_empty() {
        notes.error(
            0,
            "defines no command",
            "write at least one [[on.<cmd>]], for example [[on.user_add]]",
        );
    }
    Some(NativeScheme {
        description,
        driver: driver.unwrap_or(DriverName::Record),
        plain: line_place == Place::Plain,
        dictionary,
        vars,
        own,
        own_uses,
        fresh,
        policy,
        on,
        by_name,
        parts,
        identity: Identity {
            kind: "native",
            oss_pathname: Some(dir.to_owned()),
            ..Identity::default()
        },
        warnings: Vec::new(),
        asks_version: false,
    })
}

fn driver(keys: &mut Keys<'_, '_>, notes: &mut Notes<'_>) -> Option<DriverName> {
    let words: Vec<_> = DriverName::ALL.iter().map(|(word, _)| *word).collect();
    let words = words.join(", ");
    let Some((line, item)) = keys.take("driver") else {
        notes.error(
            0,
            "has no `driver`",
            format!("write driver = one of {words}"),
        );
        return None;
    };
    let word = text(item, line, "driver", notes)?;
    let found = DriverName::ALL.iter().find(|(w, _)| *w == word);
    if found.is_none() {
        notes.error(
            line,
            format!("unknown driver {word:?}"),
            format!("known drivers: {words}"),
        );
    }
    found.map(|(_, driver)| *driver)
}

fn shell(keys: &mut Keys<'_, '_>, driver: Option<DriverName>, notes: &mut Notes<'_>) -> Place {
    let default = match driver {
        Some(DriverName::Telnet) => Place::Plain,
        Some(
            DriverName::Mikrotik
            | DriverName::Ssh
            | DriverName::Radius
            | DriverName::Http
            | DriverName::Record,
        )
        | None => Place::Posix,
    };
    let Some((line, item)) = keys.take("shell") else {
        return default;
    };
    match text(item, line, "shell", notes) {
        Some("posix") => Place::Posix,
        Some("plain") => Place::Plain,
        Some(other) => {
            notes.error(
                line,
                format!("unknown shell {other:?}"),
                "write shell = \"posix\" (values are quoted) or \"plain\" (values are checked)",
            );
            default
        }
        None => default,
    }
}

fn vars(keys: &mut Keys<'_, '_>, notes: &mut Notes<'_>) -> Vec<Var> {
    let mut vars: Vec<Var> = Vec::new();
    let Some((line, item)) = keys.take("vars") else {
        return vars;
    };
    let Some(table) = table(item, line, "vars", notes) else {
        return vars;
    };
    for (name, line, item) in Keys::new(table, "[vars]", notes).drain() {
        if !is_name(name) || RESERVED.contains(&name) {
            notes.error(
                line,
                format!("[vars] cannot define `{name}`"),
                "choose another name: a-z, 0-9 and _, not one that the daemon sets",
            );
            continue;
        }
        let before: Vec<_> = vars.iter().map(|v| Arc::clone(&v.name)).collect();
        let mut uses = Vec::new();
        let mut compile = |item: &Item<'_>, notes: &mut Notes<'_>| {
            let text = scalar(item.get_ref())?;
            template(&text, line, Place::Data, &before, &mut uses, notes)
        };
        let value = match item.get_ref() {
            DeValue::Table(map) => VarValue::Map(
                Keys::new(map, name, notes)
                    .drain()
                    .into_iter()
                    .filter_map(|(key, _, item)| Some((key.to_owned(), compile(item, notes)?)))
                    .collect(),
            ),
            DeValue::Array(items) => VarValue::List(
                items
                    .iter()
                    .filter_map(|item| compile(item, notes))
                    .collect(),
            ),
            _ => match compile(item, notes) {
                Some(template) => VarValue::One(template),
                None => continue,
            },
        };
        vars.push(Var {
            name: name.into(),
            value,
            uses,
            line,
        });
    }
    vars
}

pub(super) fn policy(keys: &mut Keys<'_, '_>, notes: &mut Notes<'_>) -> ExitPolicy {
    let mut policy = ExitPolicy::default();
    if let Some((line, item)) = keys.take("exit")
        && let Some(table) = table(item, line, "exit", notes)
    {
        let mut exit = Keys::new(table, "exit", notes);
        if let Some((line, item)) = exit.take("done") {
            policy.done = codes(item, line, "done", notes);
            policy.done.insert(0);
        }
        if let Some((line, item)) = exit.take("defer") {
            policy.defer = codes(item, line, "defer", notes);
        }
        exit.end("done, defer", notes);
        for code in policy.done.intersection(&policy.defer) {
            notes.error(
                line,
                format!("exit code {code} is in `done` and in `defer`"),
                "leave it in one of the two",
            );
        }
    }
    if let Some((line, item)) = keys.take("on_error")
        && let Some(word) = text(item, line, "on_error", notes)
    {
        match OnError::parse(Some(word)) {
            Ok(on_error) => policy.on_error = on_error,
            Err(reason) => notes.error(line, reason, "write dead, retry or drop"),
        }
    }
    policy
}

fn codes(item: &Item<'_>, line: usize, key: &str, notes: &mut Notes<'_>) -> BTreeSet<i32> {
    let mut codes = BTreeSet::new();
    for one in super::file::items(item) {
        match one
            .get_ref()
            .as_integer()
            .and_then(whole)
            .map(i32::try_from)
        {
            Some(Ok(code)) => {
                codes.insert(code);
            }
            _ => wrong(one, line, key, "exit codes, for example [0, 1]", notes),
        }
    }
    codes
}

/// An expression.
pub(super) fn expression(
    source: &str,
    line: usize,
    shared: &Shared,
    uses: &mut Vec<Use>,
    notes: &mut Notes<'_>,
) -> Option<Expr> {
    match Expr::compile(source, &shared.vars) {
        Ok((expr, found)) => {
            uses.extend(found);
            Some(expr)
        }
        Err(reason) => {
            notes.error(
                line,
                reason,
                "expressions are Jinja's; filters of ours: bps kbit mbit net host fam fw hex classic service",
            );
            None
        }
    }
}

/// A template.
pub(super) fn template(
    source: &str,
    line: usize,
    place: Place,
    vars: &[Arc<str>],
    uses: &mut Vec<Use>,
    notes: &mut Notes<'_>,
) -> Option<Template> {
    match Template::compile(source, line, place, vars, uses) {
        Ok(template) => Some(template),
        Err(reason) => {
            notes.error(
                line,
                format!("{source:?} is not a template: {reason}"),
                "values stand in {{ }}, conditions and loops in {% %}",
            );
            None
        }
    }
}

/// A table of templates, in file order.
pub(super) fn pairs(
    item: &Item<'_>,
    line: usize,
    key: &str,
    place: Place,
    shared: &Shared,
    uses: &mut Vec<Use>,
    notes: &mut Notes<'_>,
) -> Vec<Pair> {
    let Some(table) = table(item, line, key, notes) else {
        return Vec::new();
    };
    let mut pairs = Vec::new();
    for (name, line, item) in Keys::new(table, key, notes).drain() {
        let Some(source) = scalar(item.get_ref()) else {
            wrong(item, line, name, "a string, a number or a boolean", notes);
            continue;
        };
        let compiled = template(&source, line, place, &shared.vars, uses, notes);
        pairs.extend(compiled.map(|t| (Arc::from(name), t)));
    }
    pairs
}
