//! What goes into a dialogue and what comes out of it: manners and credentials of a NAS, steps,
//! answers, troubles.

use std::fmt;

use regex::Regex;

/// How a NAS wants to be spoken to, beyond what is found out by itself.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Command that raises the privilege: `enable`, `super`. Sent if it is set, or if there is
    /// an enable password.
    pub enable: Option<String>,
    /// Lines sent after the login, such as `terminal length 0`.
    pub setup: Vec<String>,
    /// A prompt that does not look like one.
    pub prompt: Option<Regex>,
    /// How a login is asked for, if in no usual words.
    pub login_prompt: Option<Regex>,
    /// The same for a password.
    pub password_prompt: Option<Regex>,
}

impl PartialEq for Manners {
    fn eq(&self, other: &Self) -> bool {
        fn text(regex: &Option<Regex>) -> Option<&str> {
            regex.as_ref().map(Regex::as_str)
        }
        self.enable == other.enable
            && self.setup == other.setup
            && text(&self.prompt) == text(&other.prompt)
            && text(&self.login_prompt) == text(&other.login_prompt)
            && text(&self.password_prompt) == text(&other.password_prompt)
    }
}

/// Who logs in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Name.
    pub login: String,
    /// Password.
    pub password: String,
    /// Password of `enable`; empty = none.
    pub enable_password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.login)
    }
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed, or the time `until` (ms of the caller's clock).
    Wait {
        /// Ask again then; `None` = only bytes can change anything.
        until: Option<u64>,
    },
    /// Logged in, at the prompt; a line can be sent.
    Ready,
    /// The line has been answered.
    Answer(Answer),
    /// The dialogue is over.
    Failed(Trouble),
}

/// What a device answered to one line: without echo, prompt, pagers and escape sequences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Lines, without the last line end.
    pub text: String,
    /// The device is at the prompt of the login again, not in a deeper mode or at a question.
    pub home: bool,
    /// It closed the connection, as it was told to.
    pub closed: bool,
}

/// Why a dialogue cannot go on. Texts may hold what the device said, never a secret of ours
/// unless the device repeated it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The device has no place for us now.
    Busy(String),
    /// Name, password or `enable` refused.
    Refused(String),
    /// The connection ended.
    Closed(String),
    /// Time is over.
    Late(String),
    /// More bytes than anybody needs.
    TooLong(String),
    /// The line cannot be sent; nothing was.
    Unfit(String),
}

impl Trouble {
    /// What happened.
    pub fn text(&self) -> &str {
        match self {
            Self::Busy(text)
            | Self::Refused(text)
            | Self::Closed(text)
            | Self::Late(text)
            | Self::TooLong(text)
            | Self::Unfit(text) => text,
        }
    }
}
