//! Steps for RouterOS: `ensure`, `absent`, `read`, `call`. Rows are found by queries over
//! forms that RouterOS is known to print, then compared here by kind; rows without our mark
//! are never changed or removed. During a batch what was read of a menu within the last minute
//! counts, and no look is needed (`driver::mikrotik`).

use std::sync::Arc;

use super::compare;
use super::filters::parse_prefix;
use super::render::Template;
use super::step::{Absent, Call, Ensure, Read};
use super::walk::{Halt, Walk, again, rendered, value};
use crate::attempt::Failure;
use crate::driver::mikrotik::{Command, answer};
use crate::driver::{Reply, Row};

/// Rows of ours that one `ensure` may change: more means that `where` is too wide.
const ENSURE_ROWS_MAX: usize = 16;
/// Rounds of add and look when somebody else changes the same rows meanwhile.
const ROUNDS: usize = 3;
/// Ids in one `remove` sentence: far below any limit of a word.
const REMOVE_AT_ONCE: usize = 64;

/// Menus whose rows are made unique by these properties, so that adding first is safe: a
/// second row is refused with "already have such entry", never doubled.
const UNIQUE: &[(&str, &[&str])] = &[
    ("/ip/firewall/address-list", &["list", "address"]),
    ("/ipv6/firewall/address-list", &["list", "address"]),
    ("/queue/simple", &["name"]),
    ("/queue/tree", &["name"]),
    ("/queue/type", &["name"]),
    ("/ppp/profile", &["name"]),
];

/// Menus that show what goes on, not what is configured: their rows carry no mark of ours and
/// are dynamic by nature; removing one ends a session or a connection.
const SESSIONS: &[&str] = &[
    "/ppp/active",
    "/ip/firewall/connection",
    "/ipv6/firewall/connection",
    "/ip/hotspot/active",
    "/ip/hotspot/cookie",
    "/ip/hotspot/host",
    "/ip/dhcp-server/lease",
    "/ipv6/dhcp-server/binding",
    "/ip/arp",
    "/interface/pppoe-server",
    "/interface/wireless/registration-table",
    "/interface/wifi/registration-table",
    "/caps-man/registration-table",
];

/// Whether the rows of a menu show what goes on, and carry no mark.
pub fn is_session_menu(path: &str) -> bool {
    SESSIONS.contains(&path)
}

/// A menu or command path: `/queue/simple`.
pub(super) fn is_path(path: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    path.strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(part))
}

type Words = Vec<(Arc<str>, String)>;

fn path(walk: &Walk<'_>, template: &Template) -> Result<String, Halt> {
    let path = template
        .render(&walk.scope)
        .map_err(|e| format!("path: {e}"))?;
    if !is_path(&path) {
        return Err(Halt::Dead(format!("{path:?} is not a path of RouterOS")));
    }
    Ok(path)
}

fn find_words(walk: &Walk<'_>, pairs: &[super::step::Pair]) -> Result<Words, Halt> {
    let words = rendered(pairs, &walk.scope).map_err(|e| format!("where: {e}"))?;
    if let Some((key, _)) = words.iter().find(|(_, v)| v.is_empty()) {
        return Err(Halt::Dead(format!(
            "where: {key} is empty; an empty value would widen the command"
        )));
    }
    Ok(words)
}

/// Values that are sent: an empty one only if the scheme writes it so.
fn sent_words(walk: &Walk<'_>, key: &str, pairs: &[super::step::Pair]) -> Result<Words, Halt> {
    let words = rendered(pairs, &walk.scope).map_err(|e| format!("{key}: {e}"))?;
    for ((name, value), (_, template)) in words.iter().zip(pairs) {
        if value.is_empty() && !template.is_empty_literal() {
            return Err(Halt::Dead(format!(
                "{key}: {name} is empty; give it a default, or write \"\" to clear it"
            )));
        }
    }
    Ok(words)
}

fn own_words(walk: &Walk<'_>, path: &str) -> Result<Words, Halt> {
    if SESSIONS.contains(&path) {
        return Ok(Vec::new());
    }
    let words = rendered(walk.own(), &walk.scope).map_err(|e| format!("own: {e}"))?;
    if let Some((key, _)) = words.iter().find(|(_, v)| v.is_empty()) {
        return Err(Halt::Dead(format!("own: {key} is empty")));
    }
    Ok(words)
}

/// Forms in which RouterOS may print a value, or none if it cannot be asked for by text.
fn forms(key: &str, value: &str) -> Option<Vec<String>> {
    if compare::is_text(key) {
        return Some(vec![value.to_owned()]);
    }
    if let Some(net) = parse_prefix(value) {
        let mut forms = vec![net.to_string()];
        if net.trunc() != net {
            forms.push(net.trunc().to_string());
        }
        if net.prefix_len() == net.max_prefix_len() {
            forms.insert(0, net.addr().to_string());
        }
        return Some(forms);
    }
    if let Some(set) = compare::flag(value) {
        let forms = if set {
            ["true", "yes"]
        } else {
            ["false", "no"]
        };
        return Some(forms.map(str::to_owned).to_vec());
    }
    if compare::mac(value).is_some() {
        let canonical = value.to_ascii_uppercase().replace('-', ":");
        return Some(vec![canonical]);
    }
    let timed = ["time", "interval", "lease"]
        .iter()
        .any(|t| key.contains(t));
    if !timed && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(vec![value.to_owned()]);
    }
    // Rates, durations, lists and ranges have too many forms: compared here instead.
    let shaped = value.starts_with(|c: char| c.is_ascii_digit()) || value.contains([',', '/']);
    (!shaped).then(|| vec![value.to_owned()])
}

/// `print` with query words (MikroTik manual, "API", section "Queries"): the forms of one
/// property are joined by `?#|`, the properties by the implied and.
fn print(path: &str, find: &[(Arc<str>, String)], proplist: Vec<String>) -> Command {
    let mut queries = Vec::with_capacity(find.len());
    for (key, value) in find {
        for (n, form) in forms(key, value).unwrap_or_default().iter().enumerate() {
            queries.push(format!("?{key}={form}"));
            if n > 0 {
                queries.push("?#|".to_owned());
            }
        }
    }
    Command {
        path: format!("{path}/print"),
        args: Vec::new(),
        queries,
        proplist,
    }
}

fn proplist(path: &str, groups: &[&Words]) -> Vec<String> {
    let mut names = vec![".id".to_owned()];
    let keys = groups.iter().flat_map(|g| g.iter().map(|(k, _)| &**k));
    let dynamic = (!SESSIONS.contains(&path)).then_some("dynamic");
    for key in keys.chain(dynamic) {
        if !names.iter().any(|n| n == key) {
            names.push(key.to_owned());
        }
    }
    names
}

fn fits(row: &Row, words: &[(Arc<str>, String)]) -> bool {
    words
        .iter()
        .all(|(key, want)| compare::same(key, value(row, key), want))
}

fn is_dynamic(row: &Row) -> bool {
    compare::flag(value(row, "dynamic")) == Some(true)
}

fn words(groups: &[&Words]) -> Vec<(String, String)> {
    let mut args: Vec<(String, String)> = Vec::new();
    for (key, value) in groups.iter().flat_map(|g| g.iter()) {
        if let Some(known) = args.iter_mut().find(|(k, _)| *k == **key) {
            known.1.clone_from(value);
        } else {
            args.push((key.to_string(), value.clone()));
        }
    }
    args
}

fn gone(failure: &Failure) -> bool {
    failure.text.to_ascii_lowercase().contains("no such item")
}

fn refused(text: String) -> Halt {
    Halt::Device(again(text))
}

/// `ensure`: exactly the wanted row, changed only where it differs.
pub(super) async fn ensure(walk: &mut Walk<'_>, step: &Ensure) -> Result<Reply, Halt> {
    let path = path(walk, &step.path)?;
    let find = find_words(walk, &step.find)?;
    let set = sent_words(walk, "set", &step.set)?;
    let mut add = rendered(&step.add, &walk.scope).map_err(|e| format!("add: {e}"))?;
    add.retain(|(_, value)| !value.is_empty());
    let own = own_words(walk, &path)?;
    let adding = Command {
        path: format!("{path}/add"),
        args: words(&[&find, &set, &add, &own]),
        ..Command::default()
    };
    if walk.silent() {
        return Ok(walk.talk(&adding).await?);
    }
    if let Some(look) = walk.look() {
        let asked = print(&path, &find, proplist(&path, &[&find, &set, &own]));
        let mut rows = walk.talk(&asked).await?.rows;
        rows.retain(|r| fits(r, &find));
        let ours = |r: &&Row| !is_dynamic(r) && fits(r, &own);
        let mine: Vec<&Row> = rows.iter().filter(ours).collect();
        // A row of the router's own serves as well.
        if !mine.is_empty() || rows.is_empty() || !rows.iter().all(is_dynamic) {
            look.wanted(&path, &find, &set, &adding.args, &mine, !rows.is_empty());
        }
        return Ok(Reply {
            rows,
            ..Reply::default()
        });
    }
    let mut add_now = add_first(&path, &find);
    let props = proplist(&path, &[&find, &set, &own]);
    let known = known(walk, &path, &own, &props);
    let known: Vec<&Row> = known.iter().filter(|row| fits(row, &find)).collect();
    if !known.is_empty() && known.len() <= ENSURE_ROWS_MAX {
        let differs = known.iter().any(|row| !fits(row, &set));
        if differs && assign(walk, &path, &known, &set).await? {
            return Ok(Reply {
                rows: known.into_iter().cloned().collect(),
                ..Reply::default()
            });
        }
        // That nothing differs is for the router to say, or where the row has gone.
        add_now = false;
    }
    for _ in 0..ROUNDS {
        let mut refusal = None;
        if add_now {
            match walk.talk(&adding).await {
                Ok(reply) => return Ok(reply),
                Err(failure) if answer::is_there(&failure.text) => refusal = Some(failure),
                Err(failure) => return Err(failure.into()),
            }
        }
        let rows = looked_for(walk, &path, &find, &own, &props).await?;
        let found: Vec<Row> = rows.into_iter().filter(|r| fits(r, &find)).collect();
        if found.is_empty() {
            if let Some(failure) = refusal {
                return Err(refused(format!(
                    "{}; but no row of {path} has {}",
                    failure.text,
                    shown(&find)
                )));
            }
            add_now = true;
            continue;
        }
        let ours = |r: &&Row| !is_dynamic(r) && fits(r, &own);
        let mine: Vec<&Row> = found.iter().filter(ours).collect();
        if mine.is_empty() {
            if found.iter().all(is_dynamic) {
                walk.note(format!(
                    "dynamic: the row of {path} belongs to the router itself (ppp, radius, …) and is left alone"
                ));
                return Ok(Reply {
                    rows: found,
                    ..Reply::default()
                });
            }
            return Err(refused(format!(
                "foreign row: {path} has a row with {} without our mark {}; nothing was changed",
                shown(&find),
                shown(&own)
            )));
        }
        if mine.len() > ENSURE_ROWS_MAX {
            return Err(Halt::Dead(format!(
                "{} rows of {path} have {}, more than {ENSURE_ROWS_MAX}; nothing was changed",
                mine.len(),
                shown(&find)
            )));
        }
        if repair(walk, &path, &mine, &set).await? {
            return Ok(Reply {
                rows: found,
                ..Reply::default()
            });
        }
        add_now = true;
    }
    Err(refused(format!(
        "the rows of {path} with {} keep changing",
        shown(&find)
    )))
}

/// Rows of ours that are known without asking; none says nothing.
fn known(walk: &mut Walk<'_>, path: &str, own: &Words, props: &[String]) -> Vec<Row> {
    let Some((key, mark)) = own.first() else {
        return Vec::new();
    };
    let router = walk.router();
    let mut rows = router.map_or_else(Vec::new, |r| r.known(path, (key, mark), props));
    rows.retain(|row| fits(row, own));
    rows
}

/// All rows that a step looks at; many such looks, and the menu is read as a whole.
async fn looked_for(
    walk: &mut Walk<'_>,
    path: &str,
    find: &Words,
    own: &Words,
    props: &[String],
) -> Result<Vec<Row>, Failure> {
    if let (Some((key, _)), Some(router)) = (own.first(), walk.router()) {
        router.looked(path, key, props);
    }
    let look = print(path, find, props.to_vec());
    let rows = walk.talk(&look).await?.rows;
    if let (Some((key, _)), Some(router)) = (own.first(), walk.router()) {
        let ours: Vec<Row> = rows.iter().filter(|row| fits(row, own)).cloned().collect();
        router.seen(path, key, &ours);
    }
    Ok(rows)
}

/// Sets all of it, for who has not looked: what is known may be a minute old. `false` = a row
/// vanished meanwhile.
async fn assign(
    walk: &mut Walk<'_>,
    path: &str,
    rows: &[&Row],
    set: &Words,
) -> Result<bool, Failure> {
    let ids: Vec<&str> = rows.iter().map(|row| value(row, ".id")).collect();
    let mut args = vec![(".id".to_owned(), ids.join(","))];
    args.extend(set.iter().map(|(k, v)| (k.to_string(), v.clone())));
    let command = Command {
        path: format!("{path}/set"),
        args,
        ..Command::default()
    };
    match walk.talk(&command).await {
        Ok(_) => Ok(true),
        Err(failure) if gone(&failure) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Sets what differs; `false` = a row vanished meanwhile.
async fn repair(
    walk: &mut Walk<'_>,
    path: &str,
    rows: &[&Row],
    set: &Words,
) -> Result<bool, Failure> {
    for row in rows {
        let differs =
            |(key, want): &&(Arc<str>, String)| !compare::same(key, value(row, key), want);
        let changes: Vec<_> = set.iter().filter(differs).collect();
        if changes.is_empty() {
            continue;
        }
        let mut args = vec![(".id".to_owned(), value(row, ".id").to_owned())];
        args.extend(changes.into_iter().map(|(k, v)| (k.to_string(), v.clone())));
        let command = Command {
            path: format!("{path}/set"),
            args,
            ..Command::default()
        };
        match walk.talk(&command).await {
            Ok(_) => {}
            Err(failure) if gone(&failure) => return Ok(false),
            Err(failure) => return Err(failure),
        }
    }
    Ok(true)
}

fn add_first(path: &str, find: &Words) -> bool {
    UNIQUE.iter().any(|(menu, keys)| {
        *menu == path
            && keys
                .iter()
                .all(|k| find.iter().any(|(have, _)| &**have == *k))
    })
}

fn shown(words: &[(Arc<str>, String)]) -> String {
    let words: Vec<_> = words.iter().map(|(k, v)| format!("{k}={v}")).collect();
    words.join(" ")
}

/// `absent`: no row of ours matches any more.
pub(super) async fn absent(walk: &mut Walk<'_>, step: &Absent) -> Result<Reply, Halt> {
    let path = path(walk, &step.path)?;
    let find = find_words(walk, &step.find)?;
    let own = own_words(walk, &path)?;
    let like = rendered(&step.like, &walk.scope).map_err(|e| format!("match: {e}"))?;
    let mut patterns = Vec::with_capacity(like.len());
    for (key, source) in &like {
        let pattern = regex::Regex::new(source)
            .map_err(|_| format!("match: {source:?} is not a regular expression"))?;
        patterns.push((Arc::clone(key), pattern));
    }
    let props = proplist(&path, &[&find, &like, &own]);
    let matches =
        |row: &Row| fits(row, &find) && patterns.iter().all(|(k, p)| p.is_match(value(row, k)));
    let mut known = known(walk, &path, &own, &props);
    known.retain(matches);
    if !known.is_empty() && known.len() <= step.at_most.min(REMOVE_AT_ONCE) {
        let ids: Vec<&str> = known.iter().map(|row| value(row, ".id")).collect();
        match remove_once(walk, &path, &ids.join(",")).await {
            Ok(()) => {
                return Ok(Reply {
                    rows: known,
                    ..Reply::default()
                });
            }
            // Somebody else was faster: the router says what is left.
            Err(failure) if gone(&failure) => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    let rows = looked_for(walk, &path, &find, &own, &props).await?;
    if walk.silent() {
        walk.note("rows of ours that match would be removed by their .id");
        return Ok(Reply::default());
    }
    let mut rows: Vec<Row> = rows.into_iter().filter(matches).collect();
    let matching = rows.len();
    rows.retain(|r| SESSIONS.contains(&path.as_str()) || (!is_dynamic(r) && fits(r, &own)));
    if let Some(look) = walk.look() {
        if !path.ends_with("/connection") {
            look.unwanted(&path, &rows, |row| matches(row) && fits(row, &own));
        }
        return Ok(Reply {
            rows,
            ..Reply::default()
        });
    }
    let left_alone = matching - rows.len();
    if left_alone > 0 {
        walk.note(format!(
            "left alone: {left_alone} rows of {path} that are dynamic or lack our mark {}",
            shown(&own)
        ));
    }
    if rows.len() > step.at_most {
        return Err(Halt::Device(Failure::permanent(format!(
            "refused: {} rows of {path} match, at_most is {}; nothing was removed",
            rows.len(),
            step.at_most
        ))));
    }
    let ids: Vec<&str> = rows
        .iter()
        .map(|r| value(r, ".id"))
        .filter(|id| !id.is_empty())
        .collect();
    for some in ids.chunks(REMOVE_AT_ONCE) {
        remove(walk, &path, some).await?;
    }
    Ok(Reply {
        rows,
        ..Reply::default()
    })
}

/// Removes by id. If one of several is gone already, RouterOS refuses the sentence as a whole
/// or in part, so they are tried again one by one.
async fn remove(walk: &mut Walk<'_>, path: &str, ids: &[&str]) -> Result<(), Failure> {
    match remove_once(walk, path, &ids.join(",")).await {
        Err(failure) if gone(&failure) && ids.len() > 1 => {
            for id in ids {
                match remove_once(walk, path, id).await {
                    Err(failure) if !gone(&failure) => return Err(failure),
                    _ => {}
                }
            }
            Ok(())
        }
        Err(failure) if gone(&failure) => Ok(()),
        other => other,
    }
}

async fn remove_once(walk: &mut Walk<'_>, path: &str, ids: &str) -> Result<(), Failure> {
    let command = Command {
        path: format!("{path}/remove"),
        args: vec![(".id".to_owned(), ids.to_owned())],
        ..Command::default()
    };
    walk.talk(&command).await.map(|_| ())
}

/// `read`: the rows that `where` finds, with all or only some properties.
pub(super) async fn read(walk: &mut Walk<'_>, step: &Read) -> Result<Reply, Halt> {
    let path = path(walk, &step.path)?;
    let find = find_words(walk, &step.find)?;
    let mut wanted = Vec::new();
    if !step.only.is_empty() {
        wanted = proplist(&path, &[&find]);
        wanted.retain(|n| n != "dynamic");
        for name in &step.only {
            if !wanted.contains(name) {
                wanted.push(name.clone());
            }
        }
    }
    let mut reply = walk.talk(&print(&path, &find, wanted)).await?;
    reply.rows.retain(|r| fits(r, &find));
    Ok(reply)
}

/// `call`: any command; `?…` words are queries, `.proplist` is what it is.
pub(super) async fn call(walk: &mut Walk<'_>, step: &Call) -> Result<Reply, Halt> {
    let path = path(walk, &step.path)?;
    let mut command = Command {
        path,
        ..Command::default()
    };
    for (key, value) in sent_words(walk, "args", &step.args)? {
        match &*key {
            ".proplist" => command.proplist = value.split(',').map(str::to_owned).collect(),
            // `?#|`, and `?name`: has the property at all.
            query if query.starts_with('?') && value.is_empty() => {
                command.queries.push(query.to_owned());
            }
            query if query.starts_with('?') => command.queries.push(format!("{query}={value}")),
            word => command.args.push((word.to_owned(), value)),
        }
    }
    Ok(walk.talk(&command).await?)
}
