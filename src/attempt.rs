//! The words for one try: a `Job` is executed, writes a `Transcript`, ends in a `Report`;
//! `dispatch::settle` turns the report into an `Outcome`. Key: event, epoch, try.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::event::{Class, Cmd, EventId, Params, UserId};
use crate::nas::{self, Nas, NasSecret};

/// Everything that an executor needs; a satellite can run it unchanged.
#[derive(Debug, Clone)]
pub struct Job {
    /// Event number.
    pub event: EventId,
    /// Ownership epoch of the daemon that started it.
    pub epoch: i64,
    /// Number of this try, from 1.
    pub try_count: u32,
    /// The same event may have been executed before (crash, or time-out after sending).
    pub possible_duplicate: bool,
    /// Command.
    pub cmd: Cmd,
    /// Its class.
    pub class: Class,
    /// Account; none = event of the NAS as a whole.
    pub user: Option<UserId>,
    /// Abonent of the account.
    pub abonent: Option<i64>,
    /// Service.
    pub usluga: Option<i64>,
    /// Variables.
    pub params: Params,
    /// Target, as the settings were when the attempt started.
    pub nas: Arc<Nas>,
    /// Credentials of the target.
    pub secret: Arc<NasSecret>,
    /// The whole attempt must end within this time.
    pub deadline: Duration,
}

impl Job {
    /// Texts that must not appear in a log or an answer: the credentials of the NAS, and what its
    /// `vars` call a secret.
    pub fn secrets(&self) -> Vec<String> {
        let of_vars = self.nas.secret_vars().map(str::to_owned);
        self.secret.texts().into_iter().chain(of_vars).collect()
    }
}

/// Whom a failure concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The NAS as a whole: burns no try, opens the breaker.
    Nas,
    /// This event: burns a try.
    Event,
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// Not reached, or the connection broke before anything was sent.
    Transport,
    /// The device said no, but may say yes later.
    Refused,
    /// Perhaps applied: the answer did not come. Sets `possible_duplicate`.
    Unknown,
    /// Will never work as it is.
    Permanent,
}

impl FailureClass {
    /// The word in logs, schemes (`x.class`), tables and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transport => "transport",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Permanent => "permanent",
        }
    }
}

/// A failure, with the text exactly as the device or the script gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// NAS or event.
    pub scope: Scope,
    /// Kind.
    pub class: FailureClass,
    /// Exit status, trap category, Error-Cause or HTTP status; 254 = transport, 143 = time-out.
    pub code: i32,
    /// What happened, in one line; never holds a secret.
    pub text: String,
    /// The login was refused for good: parks the NAS.
    pub parks: bool,
}

/// How long an attempt may wait for its turn on the NAS (a session, the commands per second)
/// beside its deadline, in all.
pub const WAIT_MAX: Duration = Duration::from_secs(300);

impl Failure {
    /// Code of "could not reach the NAS", as in the original's scripts.
    pub const CODE_TRANSPORT: i32 = 254;
    /// Code of "ended by our deadline": 128 + SIGTERM.
    pub const CODE_TIMEOUT: i32 = 143;
    /// Code of a permanent failure that has no number of its own.
    pub const CODE_PERMANENT: i32 = 1;

    /// The NAS cannot be reached.
    pub fn transport(text: impl Into<String>) -> Self {
        Self {
            scope: Scope::Nas,
            class: FailureClass::Transport,
            code: Self::CODE_TRANSPORT,
            text: text.into(),
            parks: false,
        }
    }

    /// A setting of the NAS that cannot be obeyed: its events must not die of it.
    pub fn setting(text: impl Into<String>) -> Self {
        Self {
            scope: Scope::Nas,
            parks: true,
            ..Self::permanent(text)
        }
    }

    /// The event can never succeed as it is.
    pub fn permanent(text: impl Into<String>) -> Self {
        Self {
            scope: Scope::Event,
            class: FailureClass::Permanent,
            code: Self::CODE_PERMANENT,
            text: text.into(),
            parks: false,
        }
    }

    /// Sent, but no answer within the deadline.
    pub fn timeout(text: impl Into<String>) -> Self {
        Self {
            scope: Scope::Event,
            class: FailureClass::Unknown,
            code: Self::CODE_TIMEOUT,
            text: text.into(),
            parks: false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (code {}): {}",
            self.class.as_str(),
            self.code,
            self.text
        )
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The NAS obeys.
    Done,
    /// Rendered and logged, nothing sent.
    Observed,
    /// The scheme has no such command.
    NotImplemented,
    /// Driver or scheme knows why.
    Failed(Failure),
    /// A script ended with a code that is not 0 and that `settle` must judge.
    Exit(i32),
}

/// What an executor gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub verdict: Verdict,
    /// Answer of an interactive command, at most 64 KiB.
    pub answer: Option<String>,
    /// A new session was opened for it (`None` = no session involved).
    pub new_session: Option<bool>,
    /// Short hash of the scheme that ran.
    pub scheme_hash: String,
    /// A failure is the scheme's own word or the data's fault, whatever the NAS does.
    pub certain: bool,
}

impl Report {
    /// A report without an answer.
    pub fn of(verdict: Verdict) -> Self {
        Self {
            verdict,
            answer: None,
            new_session: None,
            scheme_hash: String::new(),
            certain: false,
        }
    }
}

/// Largest stored answer, bytes.
pub const ANSWER_MAX: usize = 64 * 1024;

/// Results of done events, as in `events_done.result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoneResult {
    /// Executed.
    Done,
    /// Observe mode.
    Observed,
    /// Its time to live ended first.
    Expired,
    /// A later event made it pointless.
    Superseded,
    /// The scheme has no such command.
    NotImplemented,
    /// Failed, and `on_error = drop`.
    Dropped,
}

impl DoneResult {
    /// The word in tables, logs and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Observed => "observed",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::NotImplemented => "not_implemented",
            Self::Dropped => "dropped",
        }
    }
}

/// What becomes of the event after an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Leaves the stack.
    Done(DoneResult),
    /// Waits this long, then is tried again; blocks its lane.
    Deferred(Duration),
    /// Kept in `events_dead`; releases its lane.
    Dead(String),
    /// Back to ready without burning a try: the NAS is at fault.
    Released,
}

/// One line of a transcript, with the wall time at which it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Wall time, ms.
    pub at_ms: i64,
    /// Direction.
    pub kind: LineKind,
    /// Text; may hold anything, the record writer escapes it.
    pub text: String,
}

/// Direction of a transcript line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineKind {
    /// `> ` a command that can be pasted into a shell.
    Command,
    /// `< ` a line of the answer.
    Answer,
}

/// Where flushed lines go; `dispatch` gives one that writes the NAS and account logs.
pub type Sink = Box<dyn FnMut(Vec<Line>) + Send>;

/// Longest line kept, bytes; the rest is cut with a marker.
const LINE_MAX: usize = 64 * 1024;
/// Most lines kept of one attempt; the rest is counted.
const LINES_MAX: usize = 2_000;
/// Shorter texts are not redacted: replacing `1` everywhere would destroy the log.
const SECRET_MIN: usize = 3;

/// What an attempt sent and got. Drivers and schemes write here, never into a log.
pub struct Transcript {
    lines: Vec<Line>,
    written: usize,
    skipped: usize,
    secrets: Vec<String>,
    sink: Sink,
}

impl Transcript {
    /// `secrets` never reach the sink: each occurrence of a line of theirs becomes `***`.
    pub fn new(secrets: Vec<String>, sink: Sink) -> Self {
        // A key has several lines, and transcripts are cut into lines.
        let mut secrets: Vec<_> = secrets
            .iter()
            .flat_map(|s| s.lines())
            .map(|line| line.trim().to_owned())
            .filter(|s| s.len() >= SECRET_MIN)
            .collect();
        secrets.sort_by_key(|s| std::cmp::Reverse(s.len()));
        Self {
            lines: Vec::new(),
            written: 0,
            skipped: 0,
            secrets,
            sink,
        }
    }

    /// One that keeps nothing, for tests and for `--dry-run` callers that read `lines`.
    pub fn discard() -> Self {
        Self::new(Vec::new(), Box::new(|_| {}))
    }

    /// Notes a command in a form that can be pasted.
    pub fn command(&mut self, text: impl Into<String>) {
        self.push(LineKind::Command, text.into());
    }

    /// Notes one line of the answer.
    pub fn answer(&mut self, text: impl Into<String>) {
        self.push(LineKind::Answer, text.into());
    }

    /// Hands the lines so far to the log; call it before waiting for a device, so that an
    /// operator sees what is being waited for.
    pub fn flush(&mut self) {
        if !self.lines.is_empty() {
            (self.sink)(std::mem::take(&mut self.lines));
        }
    }

    /// Replaces every secret of this attempt in `text` by `***`.
    pub fn redacted(&self, mut text: String) -> String {
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                text = nas::without(&text, secret);
            }
        }
        text
    }

    /// The lines not yet flushed; ends the transcript.
    pub fn into_rest(mut self) -> Vec<Line> {
        if self.skipped > 0 {
            let text = format!("… {} more lines not kept", self.skipped);
            self.lines.push(Line {
                at_ms: clock::wall_ms(),
                kind: LineKind::Answer,
                text,
            });
        }
        std::mem::take(&mut self.lines)
    }

    fn push(&mut self, kind: LineKind, text: String) {
        if self.written >= LINES_MAX {
            self.skipped += 1;
            return;
        }
        self.written += 1;
        let mut text = self.redacted(text);
        if text.len() > LINE_MAX {
            let full = text.len();
            text.truncate(text.floor_char_boundary(LINE_MAX));
            text.push_str(&format!("… cut, {full} bytes"));
        }
        self.lines.push(Line {
            at_ms: clock::wall_ms(),
            kind,
            text,
        });
    }
}

impl Drop for Transcript {
    /// An attempt that breaks or is cut leaves what it did until then.
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_bounds() {
        let mut t = Transcript::new(vec!["servicemode".into(), "a".into()], Box::new(|_| {}));
        t.command("login admin servicemode");
        t.answer("x".repeat(LINE_MAX + 5));
        for _ in 0..LINES_MAX {
            t.answer("more");
        }
        let lines = t.into_rest();
        assert_eq!(lines[0].text, "login admin ***");
        assert!(lines[1].text.ends_with("cut, 65541 bytes"));
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert!(lines[LINES_MAX].text.contains("2 more lines"));
    }
}
