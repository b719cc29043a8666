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

impl Manners {
    /// From settings by name: `enable`, `setup` (a list, or one line), `prompt`,
    /// `login_prompt`, `password_prompt` (regular expressions). Fails on one of another kind.
    pub fn of(
        get: impl Fn(&str) -> Result<Option<serde_json::Value>, String>,
    ) -> Result<Self, String> {
        use serde_json::Value;
        let text = |name: &str| match get(name)? {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("{name} is not a text")),
        };
        let regex = |name: &str| {
            let source = text(name)?;
            let regex = source.map(|s| Regex::new(&s)).transpose();
            regex.map_err(|_| format!("{name} is not a regular expression"))
        };
        let setup = match get("setup")? {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(line)) => vec![line],
            Some(Value::Array(lines)) => lines
                .into_iter()
                .map(|line| match line {
                    Value::String(line) => Ok(line),
                    _ => Err("setup holds something that is not a text".to_owned()),
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err("setup is not a list of lines".to_owned()),
        };
        let enable = text("enable")?;
        if setup
            .iter()
            .chain(&enable)
            .any(|line| line.chars().any(char::is_control))
        {
            return Err("a line of setup or enable holds a control character".to_owned());
        }
        Ok(Self {
            enable,
            setup: setup.into_iter().filter(|line| !line.is_empty()).collect(),
            prompt: regex("prompt")?,
            login_prompt: regex("login_prompt")?,
            password_prompt: regex("password_prompt")?,
        })
    }
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

/// Why a dialogue cannot go on. Texts may hold what the device said, never a secret of ours:
/// what the device repeats of them is blotted out.
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

    /// Without our own secrets, which some devices repeat.
    pub(super) fn without(mut self, known: &Credentials) -> Self {
        let (Self::Busy(text)
        | Self::Refused(text)
        | Self::Closed(text)
        | Self::Late(text)
        | Self::TooLong(text)
        | Self::Unfit(text)) = &mut self;
        for secret in [&known.password, &known.enable_password] {
            if !secret.is_empty() && text.contains(secret.as_str()) {
                *text = crate::nas::without(text, secret);
            }
        }
        self
    }
}
