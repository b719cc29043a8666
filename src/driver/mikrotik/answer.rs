//! What a router says, and what it means: reply sentences taken apart, and refusals mapped to
//! a failure with scope and class (MikroTik manual, "API", "Reply word", "!trap").
//!
//! | text or category of the `!trap` | class | code |
//! |---|---|---|
//! | not logged in, too many sessions | transport, the NAS's | 254 |
//! | no such command, unknown parameter, category 1, invalid value, … | permanent | 249 |
//! | not enough permissions | permanent | its number or 1 |
//! | category 2 (interrupted) | unknown | 2 |
//! | everything else (already have …, no such item, …) | refused | category if above 2, else 1 |

use crate::attempt::{Failure, FailureClass, Scope};
use crate::driver::mikrotik::wire::{self, Sentence};

/// Code of a wrong command or parameter, as in the original's `send_mikrotik_cmd`.
pub const CODE_PARAMETER: i32 = 249;

/// Whether a refusal says that such a row is there already ("already have such entry", "secret with
/// the same name already exists").
pub fn is_there(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("already have") || text.contains("already exists")
}

/// First word of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `!re`
    Row,
    /// `!done`
    Done,
    /// `!empty`
    Empty,
    /// `!trap`
    Trap,
    /// `!fatal`
    Fatal,
    /// Something that is newer than this program.
    Other,
}

/// One reply sentence. The tag may stand anywhere in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) kind: Kind,
    pub(crate) tag: Option<u32>,
    pub(crate) attributes: Vec<(String, String)>,
    /// Words without `=`: the reason of `!fatal`.
    pub(crate) bare: String,
    /// One of them does not begin with a dot, as `.section=` does.
    odd: bool,
}

impl Answer {
    pub(crate) fn read(sentence: &Sentence) -> Self {
        let mut words = sentence.iter();
        let kind = match words.next().map(Vec::as_slice) {
            Some(b"!re") => Kind::Row,
            Some(b"!done") => Kind::Done,
            Some(b"!empty") => Kind::Empty,
            Some(b"!trap") => Kind::Trap,
            Some(b"!fatal") => Kind::Fatal,
            _ => Kind::Other,
        };
        let mut answer = Self {
            kind,
            tag: None,
            attributes: Vec::new(),
            bare: String::new(),
            odd: false,
        };
        for word in words {
            if let Some(tag) = word.strip_prefix(b".tag=") {
                answer.tag = std::str::from_utf8(tag).ok().and_then(|t| t.parse().ok());
            } else if let Some(body) = word.strip_prefix(b"=") {
                let at = body.iter().position(|b| *b == b'=').unwrap_or(body.len());
                let name = wire::text(body.get(..at).unwrap_or_default());
                let value = wire::text(body.get(at + 1..).unwrap_or_default());
                answer.attributes.push((name, value));
            } else {
                answer.odd |= !word.starts_with(b".");
                if !answer.bare.is_empty() {
                    answer.bare.push(' ');
                }
                answer.bare.push_str(&wire::text(word));
            }
        }
        answer
    }

    /// An attribute by name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str())
    }

    /// Whether it is no sentence of a router: of `!re`, `!done` and `!empty` every word is an
    /// attribute, the tag, or begins with a dot. A failure must not be read as done because bytes
    /// of two sentences have run together.
    pub(crate) fn is_garbled(&self) -> bool {
        self.odd && matches!(self.kind, Kind::Row | Kind::Done | Kind::Empty)
    }

    /// The reason of a `!trap` or `!fatal`.
    pub(crate) fn reason(&self) -> String {
        self.get("message").unwrap_or(&self.bare).to_owned()
    }

    /// The category of a `!trap`.
    pub(crate) fn category(&self) -> Option<i32> {
        self.get("category").and_then(|c| c.parse().ok())
    }
}

/// What a `!trap` to a command means. The text stays as the router gave it.
pub(crate) fn trap(category: Option<i32>, text: &str) -> Failure {
    let has = |parts: &[&str]| parts.iter().any(|p| text.contains(p));
    if is_session_trouble(text) {
        return Failure::transport(text);
    }
    let (class, code) = if category == Some(2) {
        (FailureClass::Unknown, 2)
    } else if has(&["not enough permissions"]) {
        (
            FailureClass::Permanent,
            number_in(text).unwrap_or(Failure::CODE_PERMANENT),
        )
    } else if has(&[
        "no such command",
        "bad command name",
        "unknown parameter",
        "expected end of command",
        "syntax error",
        "invalid value",
        "ambiguous value",
        "input does not match any value",
        "missing value",
        "missing =",
    ]) || category == Some(1)
        || (text.starts_with("value of ") && has(&["expects", "must", "out of range"]))
    {
        (FailureClass::Permanent, CODE_PARAMETER)
    } else {
        (
            FailureClass::Refused,
            category.filter(|c| (3..=7).contains(c)).unwrap_or(1),
        )
    };
    Failure {
        scope: Scope::Event,
        class,
        code,
        text: text.to_owned(),
        parks: false,
    }
}

/// What a refused login means. Whether it parks the NAS is for the caller to say, who knows
/// how often it was tried.
pub(crate) fn login_refused(text: &str) -> Failure {
    if is_session_trouble(text) || text.contains("timeout") {
        return Failure::transport(text);
    }
    Failure {
        scope: Scope::Nas,
        class: FailureClass::Refused,
        code: number_in(text).unwrap_or(1),
        text: text.to_owned(),
        parks: true,
    }
}

/// Said about the session, not about the command: another session may do better.
pub(crate) fn is_session_trouble(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    [
        "not logged in",
        "too many sessions",
        "too many connections",
        "session limit",
    ]
    .iter()
    .any(|part| text.contains(part))
}

/// The number in `invalid user name or password (6)`.
fn number_in(text: &str) -> Option<i32> {
    let inside = text.rsplit_once('(')?.1.split_once(')')?.0;
    inside.parse().ok().filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(words: &[&str]) -> Answer {
        Answer::read(&words.iter().map(|w| w.as_bytes().to_vec()).collect())
    }

    #[test]
    fn tags_stand_anywhere_and_values_keep_equal_signs() {
        let first = answer(&["!done", ".tag=7", "=ret=*1"]);
        let last = answer(&["!done", "=ret=*1", ".tag=7"]);
        assert_eq!(first, last);
        assert_eq!((first.tag, first.get("ret")), (Some(7), Some("*1")));
        assert_eq!(answer(&["!re", "=comment=a=b"]).get("comment"), Some("a=b"));
        assert_eq!(answer(&["!re", "=.tag=3"]).tag, None);
        assert_eq!(
            answer(&["!fatal", "not", "logged in"]).reason(),
            "not logged in"
        );
        assert_eq!(answer(&["!new"]).kind, Kind::Other);
    }

    #[test]
    fn two_sentences_that_ran_together_are_no_success() {
        // Half of `!done .tag=4`, then a refusal: the length of the lost word takes `!trap` in.
        let together = answer(&["!done", "\x05!trap", ".tag=3", "=message=no such item"]);
        assert!(together.is_garbled());
        assert!(answer(&["!re", "name=x", ".tag=3"]).is_garbled());
        for fine in [
            &["!done", ".tag=3"][..],
            &["!re", ".section=1", ".tag=3", "=name=!x"],
            &["!trap", "interrupted"],
            &["!fatal", "not logged in"],
            &["!new", "word"],
        ] {
            assert!(!answer(fine).is_garbled(), "{fine:?}");
        }
    }

    #[test]
    fn refusals_have_scope_class_and_code() {
        use FailureClass::{Permanent, Refused, Transport, Unknown};
        for (category, text, class, code) in [
            (Some(0), "no such command", Permanent, 249),
            (Some(0), "no such command prefix", Permanent, 249),
            (None, "unknown parameter foo", Permanent, 249),
            (
                Some(1),
                "input does not match any value of queue",
                Permanent,
                249,
            ),
            (None, "invalid value for argument address", Permanent, 249),
            (
                None,
                "value of priority out of range (1..8)",
                Permanent,
                249,
            ),
            (Some(0), "missing =.id=", Permanent, 249),
            (None, "not enough permissions (9)", Permanent, 9),
            (Some(2), "interrupted", Unknown, 2),
            (None, "failure: already have such entry", Refused, 1),
            (Some(0), "no such item", Refused, 1),
            (Some(4), "failure: whatever", Refused, 4),
            (None, "failure: too many entries", Refused, 1),
            (None, "not logged in", Transport, 254),
        ] {
            let failure = trap(category, text);
            assert_eq!((failure.class, failure.code), (class, code), "{text}");
            assert_eq!(failure.text, text);
            assert_eq!(failure.scope == Scope::Nas, class == Transport, "{text}");
            assert!(!failure.parks);
        }
        let wrong = login_refused("invalid user name or password (6)");
        assert_eq!((wrong.class, wrong.code, wrong.parks), (Refused, 6, true));
        assert_eq!(login_refused("cannot log in").code, 1);
        assert_eq!(login_refused("too many sessions").class, Transport);
        assert!(!login_refused("too many sessions").parks);
    }
}
