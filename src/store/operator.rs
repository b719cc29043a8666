//! The operator's own SQL (`sqlexec`): what both stores refuse by its words. The rest is the
//! databases' own: transactions that only read, triggers, and their plans, which name every table
//! that a statement would open.

use std::borrow::Cow;

use super::{Error, Result};

/// Tables that no operator's statement may read.
pub(super) const HIDDEN: [&str; 2] = ["nas_secret", "token"];
/// Who changed what, and where SQLite keeps how far its rows are numbered.
const AUDIT: [&str; 2] = ["audit", "sqlite_sequence"];
/// How names of its triggers and their function, its sequence and its key begin.
const KEEPERS: [&str; 3] = ["audit_is_", "audit_id_", "audit_pkey"];
/// First words of statements that leave the rows of the audit alone. Not `insert`: after a row with
/// the highest number there is none for the next.
const FINE: [&str; 7] = [
    "select", "values", "table", "show", "with", "explain", "analyze",
];
/// First words of statements that may hold another one.
const AROUND: [&str; 2] = ["with", "explain"];
/// What that other one may not have: a row is put in `into` a table.
const CHANGING: [&str; 3] = ["into", "update", "delete"];
/// Where texts are not told from names by quotes alone: escapes, `$$`, comments, other quotes.
const UNCLEAR: [&str; 6] = ["\\", "$", "--", "/*", "[", "`"];

/// What may stand between `create`, `alter` or `drop` and the kind of object.
const BEFORE_KIND: [&str; 17] = [
    "or",
    "replace",
    "temp",
    "temporary",
    "global",
    "local",
    "unlogged",
    "recursive",
    "materialized",
    "unique",
    "constraint",
    "event",
    "trusted",
    "procedural",
    "default",
    "access",
    "text",
];
/// `create or replace temporary recursive view`
const VIEW_WITHIN: usize = 6;
/// How PostgreSQL's `create view` may end after its body.
const CHECKS: [&str; 3] = [
    "with check option",
    "with local check option",
    "with cascaded check option",
];

/// The word that a statement begins with, in small letters; empty if it begins with a comment.
pub(super) fn first_word(lower: &str) -> String {
    lower
        .trim_start_matches(|c: char| c.is_whitespace() || c == '(')
        .chars()
        .take_while(char::is_ascii_alphabetic)
        .collect()
}

/// Words and names of a statement in small letters, quoted or not.
pub(super) fn words(lower: &str) -> impl Iterator<Item = &str> {
    lower
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// A statement in small letters without what it says in texts. A text that is one word stays, for
/// SQLite takes it for a name where it wants one; a statement that is hard to read stays whole.
pub(super) fn outside(lower: &str) -> Cow<'_, str> {
    if UNCLEAR.iter().any(|sign| lower.contains(sign)) {
        return Cow::Borrowed(lower);
    }
    let mut kept = String::with_capacity(lower.len());
    let mut rest = lower;
    while let Some(at) = rest.find(['\'', '"']) {
        let (before, quoted) = rest.split_at(at);
        kept.push_str(before);
        let (quote, quoted) = quoted.split_at(1);
        let Some((inside, after)) = quoted.split_once(quote) else {
            return Cow::Borrowed(lower);
        };
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        kept.push_str(quote);
        if quote == "\"" || inside.chars().all(is_word) {
            kept.push_str(inside);
        }
        kept.push_str(quote);
        rest = after;
    }
    kept.push_str(rest);
    Cow::Owned(kept)
}

/// The kind of object that a `create`, `alter` or `drop` is about; none where a comment could hide it.
pub(super) fn kind(lower: &str) -> Option<&str> {
    if lower.contains("--") || lower.contains("/*") {
        return None;
    }
    words(lower)
        .skip(1)
        .find(|word| !BEFORE_KIND.contains(word))
}

/// How it is said of the hidden tables.
pub const NEVER: &str = "are never readable here";

/// Refuses what names a hidden table.
pub(super) fn hides_secrets(lower: &str) -> Result<()> {
    let [secret, token] = HIDDEN;
    // The shorter one is a word that people use, too.
    if lower.contains(secret) || words(&outside(lower)).any(|word| word == token) {
        return Err(Error::Refused(format!(
            "the tables {} {NEVER}",
            HIDDEN.join(" and ")
        )));
    }
    Ok(())
}

/// What is said of a statement that would open a hidden table, whatever it calls it.
pub(super) fn would_open(table: &str) -> Error {
    Error::Refused(format!(
        "the statement would read {table}: the tables {} {NEVER}, nor what shows them",
        HIDDEN.join(" and ")
    ))
}

/// Refuses what would change the audit, its triggers, or what else keeps it: what may change the
/// rows of other tables may still not cover its traces.
pub(super) fn keeps_the_audit(lower: &str, first: &str) -> Result<()> {
    let named = outside(lower);
    let keeps = |word: &str| AUDIT.contains(&word) || KEEPERS.iter().any(|k| word.starts_with(k));
    if !words(&named).any(keeps) {
        return Ok(());
    }
    let hidden_change =
        AROUND.contains(&first) && words(&named).any(|word| CHANGING.contains(&word));
    if FINE.contains(&first) && !hidden_change {
        return Ok(());
    }
    Err(Error::Refused(
        "the audit table is only ever appended to, by the daemon and its verbs; audit.keep says how \
         long its rows are kept"
            .to_owned(),
    ))
}

/// What a statement would read, if that is another statement inside it: the body of a view that it
/// creates. A view shows later, also to expansion, what was not read when it was made.
pub(super) fn body<'a>(statement: &'a str, first: &str) -> Option<&'a str> {
    let lower = statement.to_ascii_lowercase();
    let commented = lower.contains("/*") || lower.contains("--");
    let within = if commented { usize::MAX } else { VIEW_WITHIN };
    if first != "create" || !words(&lower).take(within).any(|word| word == "view") {
        return None;
    }
    // What is not the word itself (in a comment, in a name) leaves a rest that is no statement.
    let at = lower.match_indices("as").find(|(at, word)| {
        let before = lower.get(..*at).and_then(|text| text.chars().last());
        let after = lower
            .get(at + word.len()..)
            .and_then(|text| text.chars().next());
        let apart = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
        apart(before) && apart(after)
    });
    let from = at.map_or(lower.len(), |(at, word)| at + word.len());
    let end = CHECKS
        .iter()
        .find_map(|check| lower.trim_end().strip_suffix(check));
    statement.get(from..end.map_or(statement.len(), |kept| kept.len().max(from)))
}

/// Refuses a text that is not one statement by SQLite's rules of quoting (sqlite.org, "SQL Language
/// Expressions", "Keywords"): a second one would not have been looked at.
pub(super) fn is_one(statement: &str) -> Result<()> {
    let refused = |text: &str| Err(Error::Refused(text.to_owned()));
    if statement.contains('\0') {
        return refused("the statement holds a NUL character (U+0000)");
    }
    let mut chars = statement.chars().peekable();
    let mut ended = false;
    while let Some(c) = chars.next() {
        let closing = match c {
            '\'' | '"' | '`' => Some(c),
            '[' => Some(']'),
            _ => None,
        };
        match c {
            '-' if chars.peek() == Some(&'-') => {
                chars.by_ref().find(|c| *c == '\n');
                continue;
            }
            '/' if chars.peek() == Some(&'*') => {
                chars.next();
                let mut last = ' ';
                for inner in chars.by_ref() {
                    if last == '*' && inner == '/' {
                        break;
                    }
                    last = inner;
                }
                continue;
            }
            ';' => {
                ended = true;
                continue;
            }
            // As `$a(…)` a name of a parameter goes on to the bracket, over quotes and semicolons.
            '$' | '@' | '#' | ':' => {
                return refused(
                    "`$`, `@`, `#` and `:` stand in quotes only: a parameter has no value here",
                );
            }
            c if c.is_whitespace() => continue,
            _ => {}
        }
        if ended {
            return refused("one statement at a time: only the first would be looked at");
        }
        if let Some(closing) = closing {
            chars.by_ref().find(|c| *c == closing);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_is_read_and_added_to_only() {
        let refused = |text: &str| {
            let lower = text.to_ascii_lowercase();
            keeps_the_audit(&lower, &first_word(&lower)).is_err()
        };
        for fine in [
            "select replace(detail, 'a', 'b') from audit where what = 'drop'",
            "with a as (select * from audit) select 'insert into it' from a",
            "update users set login = 'the audit'",
            "insert into notes values ('it''s in the audit', \"a\")",
            "update users set login = 'see audit_id_seq'",
            "explain select * from audit",
            "with a as (select * from audit) select count(*) from a",
            "drop table audit_of_mine",
            "update users set login = 'x'",
        ] {
            assert!(!refused(fine), "{fine}");
        }
        for change in [
            "Drop table \"audit\"",
            "drop trigger audit_is_kept on audit",
            "drop function audit_is_appended_to cascade",
            "alter table [audit] rename to other",
            "truncate users, audit",
            "replace into audit (id, who, what) values (1, 'x', 'y')",
            "delete from audit",
            "update main.audit set who = 'x'",
            "create trigger t before insert on audit begin select raise(ignore); end",
            "with gone as (delete from audit returning id) select * from gone",
            "explain analyze delete from audit",
            "/* select */ drop table audit",
            "insert into audit (id, who, what) values (9223372036854775807, 'x', 'y')",
            "with a as (select 1) insert into audit (id) select 9223372036854775807",
            "update sqlite_sequence set seq = 9223372036854775807",
            "update sqlite_sequence set seq = 9 where name = 'audit'",
            "alter sequence audit_id_seq restart 1",
            "alter index public.audit_pkey rename to x",
            // SQLite takes a text for a name; what is not clear is read whole.
            "drop table 'audit'",
            "drop table /* ' */ audit /* ' */",
            "drop table audit -- '",
            "alter table [it's] rename to audit --'",
            "update users set login = e'\\'' where login = 'audit'",
        ] {
            assert!(refused(change), "{change}");
        }
    }

    #[test]
    fn the_body_of_a_view_is_found() {
        for (view, inner) in [
            ("create view v as select 1", Some(" select 1")),
            (
                "CREATE OR REPLACE TEMP VIEW cases (a) As(select 1)",
                Some("(select 1)"),
            ),
            (
                "create view v as select 1 with local check option",
                Some(" select 1 "),
            ),
            (
                "create view v /* as */ as select 1",
                Some(" */ as select 1"),
            ),
            (
                "create /* a b c d e f */ view v as select 1",
                Some(" select 1"),
            ),
            ("create view v", Some("")),
            ("create table view_of (a text)", None),
            ("select 1 as view", None),
        ] {
            let first = first_word(&view.to_ascii_lowercase());
            assert_eq!(body(view, &first), inner, "{view}");
        }
    }

    #[test]
    fn a_second_statement_is_seen() {
        for one in [
            "select 1",
            "select ';' as \"a;b\", [c;d], `e;f` -- ;\n from t /* ; */ ; ; -- end",
            "select 'it''s;'",
            "select '$a(', \"@b\", [#c], `:d` -- $e(\n /* :f( */",
        ] {
            assert!(is_one(one).is_ok(), "{one}");
        }
        for two in [
            "select 1; select 2",
            "select 1 as [']; drop table users; select [']",
            "select 1 as `'`; drop table users --'",
            "; select 1",
            "select 1 /* ; */; select 2",
            "select $a('); drop table users --'",
            "select :a('); drop table users --'",
            "select @a('); drop table users --'",
            "select #a('); drop table users --'",
            "select 1\0; select 2",
        ] {
            assert!(is_one(two).is_err(), "{two}");
        }
    }
}
