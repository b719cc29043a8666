//! Lists of steps and the keys that every kind of step may have: `when`, `each`, `save`,
//! `ok_on`, `retry_on`, `fail_on`, `fail`, `pause`.

use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use super::expression::{Use, find_outside_strings};
use super::file::{Item, Keys, Notes, table, text, whole, wrong};
use super::kinds;
use super::load::{Shared, expression};
use super::names::{RESERVED, WELL_KNOWN};
use super::step::{Answered, Each, Step, Verdicts};
use crate::config::parse_duration;
use crate::event::is_name;

/// Longest `pause`: an attempt holds a slot of its NAS meanwhile.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// `[[on.<cmd>]]` and `[[part.<name>]]`.
pub(super) fn lists(
    item: &Item<'_>,
    line: usize,
    key: &str,
    shared: &Shared,
    notes: &mut Notes<'_>,
) -> Vec<(String, usize, Vec<Step>)> {
    let mut lists = Vec::new();
    let Some(table) = table(item, line, key, notes) else {
        return lists;
    };
    for (name, line, item) in Keys::new(table, key, notes).drain() {
        let place = format!("{key}.{name}");
        let Some(array) = item.get_ref().as_array() else {
            notes.error(
                line,
                format!("`{place}` is not a list of steps"),
                format!("write [[{place}]] with two brackets"),
            );
            continue;
        };
        let mut steps = Vec::with_capacity(array.len());
        for item in array.iter() {
            let line = notes.line(&item.span());
            let Some(table) = super::file::table(item, line, &place, notes) else {
                continue;
            };
            let keys = Keys::new(table, format!("a step of {place}"), notes);
            steps.extend(step(keys, line, shared, notes));
        }
        lists.push((name.to_owned(), line, steps));
    }
    lists
}

fn step(
    mut keys: Keys<'_, '_>,
    line: usize,
    shared: &Shared,
    notes: &mut Notes<'_>,
) -> Option<Step> {
    let mut uses = Vec::new();
    let each = keys
        .take("each")
        .and_then(|(line, item)| each(item, line, shared, &mut uses, notes));
    let mut inner: Vec<Use> = Vec::new();
    let when = keys.take("when").and_then(|(line, item)| {
        let source = text(item, line, "when", notes)?;
        flag_warning(source, line, notes);
        expression(source, line, shared, &mut inner, notes)
    });
    let when_each = each
        .as_ref()
        .is_some_and(|each| inner.iter().any(|u| u.name == each.name));
    let save = keys.take("save").and_then(|(line, item)| {
        let name = text(item, line, "save", notes)?;
        local_name(name, line, "save", notes)
    });
    let verdicts = Verdicts {
        ok: answers(&mut keys, "ok_on", notes),
        retry: answers(&mut keys, "retry_on", notes),
        fail: answers(&mut keys, "fail_on", notes),
    };
    let go_on = match keys.take("fail") {
        Some((line, item)) => match text(item, line, "fail", notes) {
            Some("continue") => true,
            Some("stop") | None => false,
            Some(other) => {
                notes.error(
                    line,
                    format!("`fail` is {other:?}"),
                    "write fail = \"continue\", or leave it out to stop",
                );
                false
            }
        },
        None => false,
    };
    let pause = pause(&mut keys, notes);
    let kind = kinds::read(&mut keys, line, shared, &mut inner, notes);
    let (kind, allowed) = match kind {
        Some((kind, allowed)) => (Some(kind), allowed),
        None => {
            keys.drain();
            (None, "")
        }
    };
    keys.end(
        &format!("{allowed}when, each, save, ok_on, retry_on, fail_on, fail, pause"),
        notes,
    );
    if let Some(each) = &each {
        inner.retain(|u| u.name != each.name);
    }
    uses.extend(inner);
    Some(Step {
        line,
        kind: kind?,
        when,
        when_each,
        each,
        save,
        verdicts,
        go_on,
        pause,
        uses,
    })
}

/// Flags of an account are `0` and `1`, and the text `"0"` is true: they must be compared.
fn flag_warning(source: &str, line: usize, notes: &mut Notes<'_>) {
    let word = source.trim().trim_start_matches("not ").trim();
    if matches!(
        word,
        "accept" | "redirect" | "logged" | "deleted" | "auth_type"
    ) {
        notes.warning(
            line,
            format!("`when = \"{}\"` does not compare", source.trim()),
            format!("write for example \"{word} == 1\""),
        );
    }
}

fn pause(keys: &mut Keys<'_, '_>, notes: &mut Notes<'_>) -> Duration {
    let Some((line, item)) = keys.take("pause") else {
        return Duration::ZERO;
    };
    let Some(word) = text(item, line, "pause", notes) else {
        return Duration::ZERO;
    };
    match parse_duration(word) {
        Ok(pause) if pause <= PAUSE_MAX => pause,
        Ok(_) => {
            notes.error(
                line,
                format!("`pause` is {word}, at most 5s is allowed"),
                "a slot of the NAS is held meanwhile; use `otherwise = \"defer\"` to look later",
            );
            Duration::ZERO
        }
        Err(reason) => {
            notes.error(line, reason, "write for example pause = \"500ms\"");
            Duration::ZERO
        }
    }
}

fn each(
    item: &Item<'_>,
    line: usize,
    shared: &Shared,
    uses: &mut Vec<Use>,
    notes: &mut Notes<'_>,
) -> Option<Each> {
    let source = text(item, line, "each", notes)?;
    let hint = "write each = \"a in list\" or \"a in list if condition\"";
    let Some((name, rest)) = source.trim().split_once(" in ") else {
        notes.error(line, format!("`each = {source:?}` has no ` in `"), hint);
        return None;
    };
    let name = local_name(name.trim(), line, "each", notes)?;
    let (list, condition) = split_condition(rest);
    let list = expression(list, line, shared, uses, notes)?;
    let condition = match condition {
        Some(source) => {
            let mut inner = Vec::new();
            let condition = expression(source, line, shared, &mut inner, notes)?;
            inner.retain(|u| u.name != name);
            uses.extend(inner);
            Some(condition)
        }
        None => None,
    };
    Some(Each {
        name,
        list,
        condition,
    })
}

/// `LIST if CONDITION`; `A if B else C` is one expression and stays whole.
fn split_condition(rest: &str) -> (&str, Option<&str>) {
    let mut depth_at = None;
    let mut from = 0;
    while let Some(at) = rest
        .get(from..)
        .and_then(|tail| find_outside_strings(tail, " if "))
    {
        let at = from + at;
        let before = rest.get(..at).unwrap_or_default();
        let open = before.matches(['(', '[', '{']).count();
        let closed = before.matches([')', ']', '}']).count();
        if open == closed {
            depth_at = Some(at);
            break;
        }
        from = at + 4;
    }
    let Some(at) = depth_at else {
        return (rest, None);
    };
    let condition = rest.get(at + 4..).unwrap_or_default();
    if find_outside_strings(condition, " else ").is_some() {
        return (rest, None);
    }
    (rest.get(..at).unwrap_or_default(), Some(condition))
}

fn local_name(name: &str, line: usize, key: &str, notes: &mut Notes<'_>) -> Option<Arc<str>> {
    let taken = RESERVED.contains(&name) || WELL_KNOWN.iter().any(|(known, _)| *known == name);
    if !is_name(name) || taken {
        notes.error(
            line,
            format!("`{key}` cannot bind the name {name:?}"),
            "choose another name: a-z, 0-9 and _, not one of PARAMS or of the daemon",
        );
        return None;
    }
    Some(name.into())
}

fn answers(keys: &mut Keys<'_, '_>, key: &str, notes: &mut Notes<'_>) -> Vec<Answered> {
    let mut answers = Vec::new();
    let Some((line, item)) = keys.take(key) else {
        return answers;
    };
    for one in super::file::items(item) {
        match one.get_ref() {
            DeValue::Integer(n) => match whole(n).map(i32::try_from) {
                Some(Ok(code)) => answers.push(Answered::Code(code)),
                _ => wrong(one, line, key, "codes and regular expressions", notes),
            },
            DeValue::String(source) => {
                answers.extend(pattern(source, line, key, notes).map(Answered::Like))
            }
            _ => wrong(one, line, key, "codes and regular expressions", notes),
        }
    }
    answers
}

/// A regular expression written in the file.
pub(super) fn pattern(
    source: &str,
    line: usize,
    key: &str,
    notes: &mut Notes<'_>,
) -> Option<fancy_regex::Regex> {
    match fancy_regex::Regex::new(source) {
        Ok(regex) => Some(regex),
        Err(e) => {
            notes.error(
                line,
                format!("`{key}`: {source:?} is not a regular expression: {e}"),
                "in TOML write it in single quotes, so that backslashes stay",
            );
            None
        }
    }
}
