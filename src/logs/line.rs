//! The form of log records: one record, one line, whatever the text holds. Pure, and hot (four
//! records per event): everything is appended to a buffer of the caller, and the formatted
//! second is kept between records.
//!
//! ```text
//! 2026-07-01 10:00:00 bras nas_event_daemon[812]: event=7 user=1424 cmd=user_add try=1 start
//! …: event=7 user=1424 cmd=user_add try=1 > send_mikrotik_cmd --nas 1116 /queue/simple/print
//! …: event=7 user=1424 cmd=user_add try=1 < name=crb_10.0.0.15 rate=10M/10M
//! …: event=7 user=1424 cmd=user_add try=1 end result=done code=0 ms=12
//! ```
//!
//! Escaping. Characters that could forge a line, a direction or a colour
//! ([`shell::must_escape`]) are written `\n`, `\r`, `\t`, `\x1b` (below U+0080) or `\u{2028}`.
//! In `>` and `<` lines nothing else is touched: a command, which `shell::quote` has already
//! freed of such characters, stays pasteable byte for byte. In `error="…"` backslash and quote
//! are also escaped, so that it can be read back exactly.
//!
//! Length. A text longer than [`TEXT_MAX`] bytes is cut and ends in `… cut, N bytes`, N being
//! its whole length.

use std::sync::Arc;

use crate::attempt::{Line, LineKind, Outcome};
use crate::clock;
use crate::event::{EventId, UserId};
use crate::shell;

/// Longest text of one record, bytes before escaping: 64 KiB, and room for the marker of a
/// transcript line that has been cut to 64 KiB already, so that it is not cut again.
pub const TEXT_MAX: usize = 64 * 1024 + 64;

/// What an answer line says of an attempt that paid for a login, before the device's last answers;
/// most find a kept session.
pub const OPENED: &str = "a session was opened for this";

/// ` host nas_event_daemon[pid]: `, what follows the time in every record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Arc<str>);

impl Origin {
    /// A host name that has spaces or worse gets `_` in their place: the name is one word.
    pub fn new(host: &str, pid: u32) -> Self {
        let mut host: String = host
            .chars()
            .map(|c| if c.is_ascii_graphic() { c } else { '_' })
            .collect();
        if host.is_empty() {
            host.push_str("localhost");
        }
        Self(format!(" {host} nas_event_daemon[{pid}]: ").into())
    }
}

/// Which attempt a record belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a> {
    /// Event.
    pub event: EventId,
    /// Account; none = `user=-`, an event of the NAS as a whole.
    pub user: Option<UserId>,
    /// Command.
    pub cmd: &'a str,
    /// Number of the try, from 1.
    pub try_count: u32,
}

/// The last record of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// `done`, `observed`, `expired`, `deferred`, `dead` …; see [`result_word`].
    pub result: &'a str,
    /// Exit code, trap category or HTTP status; 0 = none.
    pub code: i32,
    /// Duration of the attempt, ms.
    pub ms: i64,
    /// Wall time (ms) before which it is not tried again.
    pub next_try_ms: Option<i64>,
    /// What went wrong.
    pub error: Option<&'a str>,
}

/// The word after `result=`, the same as the event's new state or result in the tables.
pub fn result_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done(result) => result.as_str(),
        Outcome::Deferred(_) => "deferred",
        Outcome::Dead(_) => "dead",
        Outcome::Released => "ready",
    }
}

/// Writes records. Each caller keeps its own; nothing is shared.
#[derive(Debug, Clone)]
pub struct Records {
    origin: Origin,
    now: Second,
    next_try: Second,
}

impl Records {
    /// For records of this process.
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            now: Second::default(),
            next_try: Second::default(),
        }
    }

    /// Formats this second beforehand, so that clones need not do it each for itself.
    pub fn look(&mut self, at_ms: i64) {
        self.now.text(at_ms);
    }

    /// `start`. `at_ms` is the wall time, here and below.
    pub fn start(&mut self, out: &mut Vec<u8>, at_ms: i64, key: &Key<'_>) {
        self.key(out, at_ms, key);
        out.extend_from_slice(b"start\n");
    }

    /// `> …` or `< …`.
    pub fn line(&mut self, out: &mut Vec<u8>, key: &Key<'_>, line: &Line) {
        self.key(out, line.at_ms, key);
        out.extend_from_slice(match line.kind {
            LineKind::Command => b"> ",
            LineKind::Answer => b"< ",
        });
        text(out, &line.text, Quotes::Bare);
        out.push(b'\n');
    }

    /// `end result=… code=… ms=… [next_try=…] [error="…"]`.
    pub fn end(&mut self, out: &mut Vec<u8>, at_ms: i64, key: &Key<'_>, end: &End<'_>) {
        self.key(out, at_ms, key);
        out.extend_from_slice(b"end result=");
        text(out, end.result, Quotes::Bare);
        out.extend_from_slice(b" code=");
        number(out, i64::from(end.code));
        out.extend_from_slice(b" ms=");
        number(out, end.ms);
        if let Some(at_ms) = end.next_try_ms {
            out.extend_from_slice(b" next_try=");
            out.extend_from_slice(self.next_try.text(at_ms));
        }
        if let Some(error) = end.error {
            out.extend_from_slice(b" error=\"");
            text(out, error, Quotes::Inside);
            out.push(b'"');
        }
        out.push(b'\n');
    }

    /// A record of the daemon log: the prefix, then `message`.
    pub fn daemon(&mut self, out: &mut Vec<u8>, at_ms: i64, message: &str) {
        self.prefix(out, at_ms);
        text(out, message, Quotes::Bare);
        out.push(b'\n');
    }

    fn prefix(&mut self, out: &mut Vec<u8>, at_ms: i64) {
        out.extend_from_slice(self.now.text(at_ms));
        out.extend_from_slice(self.origin.0.as_bytes());
    }

    fn key(&mut self, out: &mut Vec<u8>, at_ms: i64, key: &Key<'_>) {
        self.prefix(out, at_ms);
        out.extend_from_slice(b"event=");
        number(out, key.event.0);
        out.extend_from_slice(b" user=");
        match key.user {
            Some(user) => number(out, user.0),
            None => out.push(b'-'),
        }
        out.extend_from_slice(b" cmd=");
        text(out, key.cmd, Quotes::Bare);
        out.extend_from_slice(b" try=");
        number(out, i64::from(key.try_count));
        out.push(b' ');
    }
}

/// `YYYY-MM-DD HH:MM:SS` of the last second asked for.
#[derive(Debug, Clone, Default)]
struct Second {
    at: Option<i64>,
    text: String,
}

impl Second {
    fn text(&mut self, at_ms: i64) -> &[u8] {
        let at = at_ms.div_euclid(1_000);
        if self.at != Some(at) {
            self.text = clock::local_text(at_ms);
            self.at = Some(at);
        }
        self.text.as_bytes()
    }
}

/// Where a text stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Bare,
    Inside,
}

/// Appends `text`, escaped and cut.
fn text(out: &mut Vec<u8>, text: &str, quotes: Quotes) {
    let kept = if text.len() > TEXT_MAX {
        text.get(..text.floor_char_boundary(TEXT_MAX))
            .unwrap_or_default()
    } else {
        text
    };
    escape(out, kept, quotes);
    if kept.len() < text.len() {
        out.extend_from_slice("… cut, ".as_bytes());
        number(out, i64::try_from(text.len()).unwrap_or(i64::MAX));
        out.extend_from_slice(b" bytes");
    }
}

fn escape(out: &mut Vec<u8>, text: &str, quotes: Quotes) {
    let is_quote = |c: char| quotes == Quotes::Inside && matches!(c, '"' | '\\');
    // Nearly every text is plain ASCII: one look at the bytes, one copy.
    if text
        .bytes()
        .all(|b| matches!(b, b' '..=b'~') && !is_quote(char::from(b)))
    {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let mut utf8 = [0; 4];
    for c in text.chars() {
        match c {
            '\n' => out.extend_from_slice(br"\n"),
            '\r' => out.extend_from_slice(br"\r"),
            '\t' => out.extend_from_slice(br"\t"),
            c if is_quote(c) => {
                out.push(b'\\');
                out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
            }
            c if shell::must_escape(c) && c.is_ascii() => {
                out.extend_from_slice(format!(r"\x{:02x}", u32::from(c)).as_bytes());
            }
            c if shell::must_escape(c) => {
                out.extend_from_slice(format!(r"\u{{{:x}}}", u32::from(c)).as_bytes());
            }
            c => out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes()),
        }
    }
}

/// Digits without the formatting machinery: a record has three to five numbers.
fn number(out: &mut Vec<u8>, n: i64) {
    if n < 0 {
        out.push(b'-');
    }
    let start = out.len();
    let mut rest = n.unsigned_abs();
    loop {
        out.push(b'0' + u8::try_from(rest % 10).unwrap_or(0));
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::attempt::DoneResult;

    const AT: i64 = 1_782_900_000_000;

    fn key(cmd: &str) -> Key<'_> {
        Key {
            event: EventId(7),
            user: Some(UserId(1424)),
            cmd,
            try_count: 2,
        }
    }

    fn records() -> Records {
        Records::new(Origin::new("bras", 812))
    }

    fn said(write: impl FnOnce(&mut Records, &mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut records(), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn line(kind: LineKind, text: &str) -> String {
        let line = Line {
            at_ms: AT,
            kind,
            text: text.to_owned(),
        };
        said(|r, out| r.line(out, &key("user_add"), &line))
    }

    fn error(text: &str) -> String {
        let end = End {
            result: "dead",
            code: 1,
            ms: 3,
            next_try_ms: None,
            error: Some(text),
        };
        said(|r, out| r.end(out, AT, &key("user_add"), &end))
    }

    fn prefix() -> String {
        format!(
            "{} bras nas_event_daemon[812]: event=7 user=1424 cmd=user_add try=2 ",
            clock::local_text(AT)
        )
    }

    #[test]
    fn records_look_as_promised() {
        let start = said(|r, out| r.start(out, AT, &key("user_add")));
        assert_eq!(start, format!("{}start\n", prefix()));
        let command = r"send_mikrotik_cmd --nas 1 /ip/arp/add comment='a\nb' $'\x1b'";
        assert_eq!(
            line(LineKind::Command, command),
            format!("{}> {command}\n", prefix())
        );
        assert_eq!(
            line(LineKind::Answer, "имя=\u{1b}[2J\u{2028}\u{85}\r\n\0"),
            format!(
                "{}< имя=\\x1b[2J\\u{{2028}}\\u{{85}}\\r\\n\\x00\n",
                prefix()
            )
        );
        let end = End {
            result: result_word(&Outcome::Deferred(Duration::ZERO)),
            code: -254,
            ms: 60_000,
            next_try_ms: Some(AT + 61_200),
            error: Some("no \"route\" \\ a\nb"),
        };
        assert_eq!(
            said(|r, out| r.end(out, AT, &key("user_add"), &end)),
            format!(
                "{}end result=deferred code=-254 ms=60000 next_try={} error=\"no \\\"route\\\" \\\\ a\\nb\"\n",
                prefix(),
                clock::local_text(AT + 61_200)
            )
        );
        let of_nas = Key {
            user: None,
            ..key("users_from_nas")
        };
        let start = said(|r, out| r.start(out, AT, &of_nas));
        assert!(start.contains("]: event=7 user=- cmd=users_from_nas try=2 start\n"));
        let text = "Start work with nas nasid=1116 script_name=<null>";
        assert_eq!(
            said(|r, out| r.daemon(out, AT, text)),
            format!(
                "{} bras nas_event_daemon[812]: {text}\n",
                clock::local_text(AT)
            )
        );
    }

    #[test]
    fn words_of_results_are_those_of_the_tables() {
        assert_eq!(result_word(&Outcome::Done(DoneResult::Expired)), "expired");
        assert_eq!(result_word(&Outcome::Dead("x".to_owned())), "dead");
        assert_eq!(result_word(&Outcome::Released), "ready");
    }

    #[test]
    fn the_kept_second_follows_the_time_both_ways() {
        let mut r = records();
        for at in [AT, AT + 999, AT + 1_000, AT - 86_400_000, -1, i64::MAX, AT] {
            let mut out = Vec::new();
            r.daemon(&mut out, at, "x");
            let start = clock::local_text(at);
            assert!(out.starts_with(start.as_bytes()), "{at}");
        }
    }

    #[test]
    fn a_host_name_is_one_word() {
        assert_eq!(
            Origin::new("a b\n[", 1).0.as_ref(),
            " a_b_[ nas_event_daemon[1]: "
        );
        assert_eq!(
            Origin::new("", 1).0.as_ref(),
            " localhost nas_event_daemon[1]: "
        );
    }

    #[test]
    fn a_long_text_is_cut_once_and_says_how_long_it_was() {
        let long = line(LineKind::Answer, &"ы".repeat(100_000));
        assert!(long.ends_with("ы… cut, 200000 bytes\n"), "{}", long.len());
        assert!(long.len() < TEXT_MAX + 200);
        let cut_before = format!("{}… cut, 1000000 bytes", "x".repeat(64 * 1024));
        assert!(line(LineKind::Answer, &cut_before).ends_with("x… cut, 1000000 bytes\n"));
    }

    /// Reads what stands between `error="` and the last quote.
    fn read_back(escaped: &str) -> String {
        let mut text = String::new();
        let mut rest = escaped.chars();
        while let Some(c) = rest.next() {
            if c != '\\' {
                assert_ne!(c, '"', "a bare quote");
                text.push(c);
                continue;
            }
            match rest.next().unwrap() {
                'n' => text.push('\n'),
                'r' => text.push('\r'),
                't' => text.push('\t'),
                'x' => {
                    let hex: String = rest.by_ref().take(2).collect();
                    text.push(char::from(u8::from_str_radix(&hex, 16).unwrap()));
                }
                'u' => {
                    let hex: String = rest.by_ref().take_while(|c| *c != '}').collect();
                    let n = u32::from_str_radix(hex.trim_start_matches('{'), 16).unwrap();
                    text.push(char::from_u32(n).unwrap());
                }
                c => text.push(c),
            }
        }
        text
    }

    fn hostile() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            any::<String>(),
            Just("\n".to_owned()),
            Just("\r\n2026-07-01 10:00:00 bras nas_event_daemon[812]: forged".to_owned()),
            Just("\u{1b}]0;x\u{7}".to_owned()),
            Just("\u{202e}\u{2066}\u{2029}\u{9b}".to_owned()),
            Just("\" result=done error=\"".to_owned()),
            Just("\\n\\".to_owned()),
        ];
        proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn one_record_is_one_line_without_control_characters(text in hostile()) {
            let whole = [
                line(LineKind::Command, &text),
                line(LineKind::Answer, &text),
                error(&text),
                said(|r, out| r.daemon(out, AT, &text)),
                said(|r, out| r.start(out, AT, &key(&text))),
            ];
            for record in whole {
                let body = record.strip_suffix('\n').unwrap();
                prop_assert!(!body.chars().any(shell::must_escape), "{:?}", body);
            }
        }

        #[test]
        fn an_error_can_be_read_back(text in hostile()) {
            let record = error(&text);
            let (_, quoted) = record.split_once(" error=\"").unwrap();
            prop_assert_eq!(read_back(quoted.strip_suffix("\"\n").unwrap()), text);
        }

        #[test]
        fn a_quoted_command_is_not_touched(words in proptest::collection::vec(hostile(), 1..4)) {
            let command = words.iter().map(|w| shell::quote(w)).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(
                line(LineKind::Command, &command),
                format!("{}> {command}\n", prefix())
            );
        }

        #[test]
        fn numbers_are_decimal(n in any::<i64>()) {
            let mut out = Vec::new();
            number(&mut out, n);
            prop_assert_eq!(String::from_utf8(out).unwrap(), n.to_string());
        }
    }

    #[test]
    fn nothing_is_written_as_nothing() {
        let end = End {
            result: "done",
            code: 0,
            ms: 0,
            next_try_ms: None,
            error: None,
        };
        assert_eq!(
            said(|r, out| r.end(out, AT, &key("user_add"), &end)),
            format!("{}end result=done code=0 ms=0\n", prefix())
        );
    }

    #[test]
    fn an_error_of_quotes_alone_is_escaped_too() {
        assert!(error(r#""\""#).ends_with("error=\"\\\"\\\\\\\"\"\n"));
    }

    #[test]
    fn who_looks_hands_its_second_on() {
        let mut r = records();
        r.look(AT);
        assert_eq!(r.clone().now.at, Some(AT / 1_000));
    }
}
