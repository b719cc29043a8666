//! The prompt of a device: learned from two equal rows after the login, then known again in
//! every mode (`nas#`, `nas(config-if)#`, `[nas-vlan7]`).

use regex::Regex;

/// What a prompt ends in, blanks aside.
const MARKS: [char; 5] = ['>', '#', '$', '%', ']'];
/// What may stand before the name: brackets, marks of unsaved changes.
const LEADS: [char; 7] = ['<', '[', '(', '*', '~', '!', ' '];
/// Longest prompt: a long host name in a deep mode.
const ROW_MAX: usize = 200;

/// A learned prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prompt {
    row: String,
    /// The host's name, without what changes: path, counter, mode.
    name: String,
    /// Blanks after the mark.
    tail: String,
}

/// How sure it is that a row is the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seen {
    /// Could be, if nothing follows.
    Maybe,
    /// It is.
    Sure,
}

impl Prompt {
    /// Takes a row for a prompt; `None` if it does not look like one and `known` (from
    /// `nas.vars`) does not say so.
    pub(super) fn learn(row: &str, known: Option<&Regex>) -> Option<Self> {
        let body = row.trim_end_matches(' ');
        let told = known.is_some_and(|k| k.is_match(row));
        if body.is_empty() || row.len() > ROW_MAX || !(told || body.ends_with(MARKS)) {
            return None;
        }
        let core = body
            .trim_start_matches(LEADS)
            .trim_end_matches(|c| MARKS.contains(&c) || c == ' ' || c == ')');
        // `user@host:~`, `host:/etc`: the path changes.
        let core = match core.find(":~").or_else(|| core.find(":/")) {
            Some(at) => core.get(..at).unwrap_or_default(),
            None => core,
        };
        Some(Self {
            row: row.to_owned(),
            name: without_counter(core).to_owned(),
            tail: row.get(body.len()..).unwrap_or_default().to_owned(),
        })
    }

    /// The row itself.
    pub(super) fn row(&self) -> &str {
        &self.row
    }

    /// `>` on a Cisco-like device means that `enable` has not been given.
    pub(super) fn is_unprivileged(&self) -> bool {
        self.row.trim_end().ends_with('>')
    }

    /// Whether `row` is this prompt, in whatever mode.
    pub(super) fn seen(&self, row: &str, known: Option<&Regex>) -> Option<Seen> {
        if row == self.row || known.is_some_and(|k| k.is_match(row)) {
            return Some(Seen::Sure);
        }
        if self.name.is_empty() || row.len() > ROW_MAX {
            return None;
        }
        let body = row.strip_suffix(self.tail.as_str())?;
        let inner = body.strip_suffix(MARKS)?;
        let start = inner.trim_start_matches(LEADS);
        let rest = start.strip_prefix(self.name.as_str())?;
        if inner.len() - start.len() > 4 {
            return None;
        }
        // A longer name that begins like ours is somebody else.
        if rest.starts_with(char::is_alphanumeric) {
            return None;
        }
        Some(if rest.trim_end().contains([' ', '\t']) {
            Seen::Maybe
        } else {
            Seen::Sure
        })
    }

    /// Whether `row` is the prompt in the mode in which it was learned.
    pub(super) fn is_home(&self, row: &str) -> bool {
        let plain = |row: &str| {
            let body = row.trim_start_matches(['*', ' ']).trim_end();
            let mark = body.chars().last();
            (
                mark,
                without_counter(body.trim_end_matches(MARKS).trim_end()).to_owned(),
            )
        };
        row == self.row || plain(row) == plain(&self.row)
    }
}

/// `X440.12`: some devices number their prompts.
fn without_counter(text: &str) -> &str {
    let bare = text.trim_end_matches(|c: char| c.is_ascii_digit());
    match bare.strip_suffix(['.', ':']) {
        Some(name) if bare.len() < text.len() && !name.is_empty() => name,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_many_makers() {
        for (learned, sure) in [
            (
                "nas-frr# ",
                &[
                    "nas-frr# ",
                    "nas-frr(config)# ",
                    "nas-frr(config-if)# ",
                    "nas-frr> ",
                ][..],
            ),
            ("R1#", &["R1#", "R1(config-if)#", "R1>"]),
            (
                "<HUAWEI>",
                &[
                    "<HUAWEI>",
                    "[HUAWEI]",
                    "[HUAWEI-GigabitEthernet0/0/1]",
                    "[~HUAWEI]",
                    "[*HUAWEI-aaa]",
                ],
            ),
            (
                "user@host:~$ ",
                &["user@host:~$ ", "user@host:/etc$ ", "user@host:~# "],
            ),
            ("admin@mx> ", &["admin@mx> ", "admin@mx# "]),
            ("X440.3 # ", &["X440.4 # ", "* X440.5 # "]),
            ("RP/0/RSP0/CPU0:bras#", &["RP/0/RSP0/CPU0:bras(config)#"]),
            ("-> ", &["-> "]),
            (
                "(Controller) >",
                &["(Controller) >", "(Controller) config>"],
            ),
        ] {
            let prompt = Prompt::learn(learned, None).unwrap();
            for row in sure {
                let seen = prompt.seen(row, None);
                assert!(seen >= Some(Seen::Maybe), "{learned} {row}");
                if !row.contains("config>") {
                    assert_eq!(seen, Some(Seen::Sure), "{learned} {row}");
                }
            }
        }
        let prompt = Prompt::learn("R1#", None).unwrap();
        for row in ["R1", "R10#", "xR1#", "hostname R1#", "R1# ", "", "#"] {
            assert_eq!(prompt.seen(row, None), None, "{row}");
        }
        assert_eq!(prompt.seen("R1 is the one #", None), Some(Seen::Maybe));
        for row in ["", "Username:", "Welcome", &"#".repeat(300)] {
            assert_eq!(Prompt::learn(row, None), None, "{row}");
        }
        let odd = Regex::new("^ready\\? $").unwrap();
        assert!(Prompt::learn("ready? ", Some(&odd)).is_some());
    }

    #[test]
    fn home_is_the_mode_of_the_first_prompt() {
        let prompt = Prompt::learn("R1#", None).unwrap();
        assert!(prompt.is_home("R1#"));
        assert!(!prompt.is_home("R1(config)#"));
        assert!(!prompt.is_home("R1>"));
        let counted = Prompt::learn("X440.3 # ", None).unwrap();
        assert!(counted.is_home("* X440.7 # "));
        assert!(!counted.is_home("X440.7 > "));
        let path = Prompt::learn("user@host:~$ ", None).unwrap();
        assert!(!path.is_home("user@host:/etc$ "));
    }
}
