//! A loaded scheme as data: its steps, compiled. Made by `load`, checked by `lint`, run by
//! `walk`.

use std::sync::Arc;
use std::time::Duration;

use super::expression::{Expr, Use};
use super::render::Template;

/// What `exec` speaks to, and the default of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DriverName {
    /// RouterOS API.
    Mikrotik,
    /// SSH.
    Ssh,
    /// Telnet.
    Telnet,
    /// RADIUS CoA and Disconnect.
    Radius,
    /// HTTP.
    Http,
    /// Renders and logs steps of any kind, sends nothing.
    Record,
}

impl DriverName {
    /// All, with their words.
    pub(super) const ALL: [(&'static str, Self); 6] = [
        ("mikrotik", Self::Mikrotik),
        ("ssh", Self::Ssh),
        ("telnet", Self::Telnet),
        ("radius", Self::Radius),
        ("http", Self::Http),
        ("record", Self::Record),
    ];

    /// The word in the file.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Mikrotik => "mikrotik",
            Self::Ssh => "ssh",
            Self::Telnet => "telnet",
            Self::Radius => "radius",
            Self::Http => "http",
            Self::Record => "record",
        }
    }
}

/// A template with its key.
pub(super) type Pair = (Arc<str>, Template);

/// One step.
pub(super) struct Step {
    /// Line of the file where it begins.
    pub(super) line: usize,
    /// What it does.
    pub(super) kind: Kind,
    /// Only if this is true.
    pub(super) when: Option<Expr>,
    /// `when` speaks of the loop variable: asked for each item, else once before.
    pub(super) when_each: bool,
    /// Once for each item.
    pub(super) each: Option<Each>,
    /// Name under which the answer is kept.
    pub(super) save: Option<Arc<str>>,
    /// Judgement over the driver's own.
    pub(super) verdicts: Verdicts,
    /// `fail = "continue"`.
    pub(super) go_on: bool,
    /// Wait before the command.
    pub(super) pause: Duration,
    /// Names used by it, for the lint; the loop variable is not among them.
    pub(super) uses: Vec<Use>,
}

/// `each = "a in list [if …]"`.
pub(super) struct Each {
    /// `a`.
    pub(super) name: Arc<str>,
    /// `list`.
    pub(super) list: Expr,
    /// What follows `if`.
    pub(super) condition: Option<Expr>,
}

/// `ok_on`, `retry_on`, `fail_on`; asked in this order.
#[derive(Default)]
pub(super) struct Verdicts {
    /// These answers are fine.
    pub(super) ok: Vec<Answered>,
    /// These are worth another try.
    pub(super) retry: Vec<Answered>,
    /// These are final.
    pub(super) fail: Vec<Answered>,
}

impl Verdicts {
    /// Nothing is said.
    pub(super) fn is_empty(&self) -> bool {
        self.ok.is_empty() && self.retry.is_empty() && self.fail.is_empty()
    }
}

/// One condition over an answer.
pub(super) enum Answered {
    /// Exit status, Error-Cause, HTTP status, trap category.
    Code(i32),
    /// Regular expression over the text.
    Like(fancy_regex::Regex),
}

/// What a step does.
pub(super) enum Kind {
    /// A row must be there.
    Ensure(Ensure),
    /// Rows must be gone.
    Absent(Absent),
    /// Look only.
    Read(Read),
    /// Any other API command.
    Call(Call),
    /// RADIUS CoA-Request.
    Coa(Vec<Attribute>),
    /// RADIUS Disconnect-Request.
    Disconnect(Vec<Attribute>),
    /// Command lines.
    Exec(Exec),
    /// HTTP.
    Request(Request),
    /// Another list of steps.
    Run(Arc<str>),
    /// Text for the operator who waits.
    Answer(Template),
    /// Check of the effect.
    Assert {
        /// Must be true.
        check: Expr,
        /// A false one is worth another try; else the event is dead.
        defer: bool,
    },
}

impl Kind {
    /// Its word in the file.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Ensure(_) => "ensure",
            Self::Absent(_) => "absent",
            Self::Read(_) => "read",
            Self::Call(_) => "call",
            Self::Coa(_) => "coa",
            Self::Disconnect(_) => "disconnect",
            Self::Exec(_) => "exec",
            Self::Request(_) => "request",
            Self::Run(_) => "run",
            Self::Answer(_) => "answer",
            Self::Assert { .. } => "assert",
        }
    }
}

/// `ensure`.
pub(super) struct Ensure {
    /// Menu.
    pub(super) path: Template,
    /// Finds the row.
    pub(super) find: Vec<Pair>,
    /// Must be so.
    pub(super) set: Vec<Pair>,
    /// Only at creation; an empty one is left out.
    pub(super) add: Vec<Pair>,
}

/// `absent`.
pub(super) struct Absent {
    /// Menu.
    pub(super) path: Template,
    /// Finds the rows.
    pub(super) find: Vec<Pair>,
    /// Regular expressions over properties.
    pub(super) like: Vec<Pair>,
    /// More rows than this are refused.
    pub(super) at_most: usize,
}

/// `read`.
pub(super) struct Read {
    /// Menu.
    pub(super) path: Template,
    /// Finds the rows; may be none.
    pub(super) find: Vec<Pair>,
    /// Properties wanted; none = all.
    pub(super) only: Vec<String>,
}

/// `call`.
pub(super) struct Call {
    /// Menu and command.
    pub(super) path: Template,
    /// Words; `?…` are queries.
    pub(super) args: Vec<Pair>,
}

/// One attribute of a RADIUS request.
pub(super) enum Attribute {
    /// `"*" = "name"`: a map of `[vars]`.
    Merge(Expr),
    /// `Name`, `Name:tag`, and its values in order.
    Values(Arc<str>, Vec<Template>),
}

/// `exec`.
pub(super) struct Exec {
    /// Lines.
    pub(super) lines: Vec<Template>,
    /// One batch for standard input.
    pub(super) stdin: Option<Template>,
    /// Prompts to wait for.
    pub(super) expect: Vec<fancy_regex::Regex>,
    /// Lines sent when a later line failed.
    pub(super) abort: Vec<Template>,
}

/// `request`.
pub(super) struct Request {
    /// `GET`, `POST`, …
    pub(super) method: &'static str,
    /// Path below the NAS's `http_url`.
    pub(super) path: Template,
    /// Header fields.
    pub(super) headers: Vec<Pair>,
    /// Body.
    pub(super) json: Option<JsonTemplate>,
}

/// JSON whose strings are templates; a string that is one `{{ }}` keeps the type of its value.
pub(super) enum JsonTemplate {
    /// A string.
    Text(Template),
    /// A number, a boolean.
    Plain(serde_json::Value),
    /// A list.
    List(Vec<JsonTemplate>),
    /// A map.
    Map(Vec<(String, JsonTemplate)>),
}
