//! What a helper command inside a script and the daemon say to each other over `session.sock`:
//! one JSON object a line, each way. Everything in it is checked again here; whoever can open
//! the socket may still have sent anything.

use serde::{Deserialize, Serialize};

use crate::attempt::{Failure, FailureClass, Scope};
use crate::driver::{Reply, Row, http, mikrotik, radius, ssh, telnet};

/// Longest line that a helper may send, bytes: above the driver's largest body.
pub const ASK_MAX: usize = 6 * 1024 * 1024;
/// Longest line that the daemon answers, bytes; a helper's caller wants rows, not a dump.
pub const TOLD_MAX: usize = 16 * 1024 * 1024;
/// Longest time that a helper may ask for, ms (one hour); the attempt's own end comes first.
pub const TIMEOUT_MAX_MS: u64 = 3_600_000;

/// One command for the NAS of the attempt whose token it carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// `NED_ATTEMPT` of the script.
    pub token: String,
    /// Whom the script means, as far as it said so.
    pub to: To,
    /// For the answer, ms.
    pub timeout_ms: u64,
    /// What to send.
    pub what: What,
}

/// Whom a script means.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// `--nas ID`.
    pub nas: Option<i64>,
    /// HOST of `-s` (for HTTP: the URL).
    pub host: Option<String>,
    /// LOGIN of `-s`.
    pub login: Option<String>,
    /// `--port`.
    pub port: Option<u16>,
}

/// One command of one driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum What {
    /// A sentence of the RouterOS API.
    Mikrotik {
        /// `/queue/simple/add`.
        path: String,
        /// `=key=value` words.
        args: Vec<(String, String)>,
        /// `?…` words.
        queries: Vec<String>,
        /// `.proplist`.
        proplist: Vec<String>,
    },
    /// An HTTP request.
    Http {
        /// `GET` and so on.
        method: String,
        /// Below `http_url`.
        path: String,
        /// Further fields.
        headers: Vec<(String, String)>,
        /// Body.
        json: Option<String>,
    },
    /// Lines over telnet.
    Telnet {
        /// The lines of one session.
        lines: Vec<String>,
        /// Questions that end an answer, too.
        expect: Vec<String>,
    },
    /// A RADIUS request.
    Radius {
        /// `coa` or `disconnect`.
        kind: radius::Kind,
        /// Attributes by name, in order.
        attributes: Vec<(String, String)>,
    },
    /// A command line over SSH.
    Ssh {
        /// The line; empty = the login shell, which reads the batch.
        line: String,
        /// What it reads.
        stdin: Option<String>,
    },
}

impl What {
    /// How many commands it is, for the commands per second of the NAS.
    pub fn commands(&self) -> usize {
        match self {
            Self::Mikrotik { .. } | Self::Http { .. } | Self::Radius { .. } | Self::Ssh { .. } => 1,
            Self::Telnet { lines, .. } => lines.len(),
        }
    }
}

impl From<ssh::Command> for What {
    fn from(command: ssh::Command) -> Self {
        Self::Ssh {
            line: command.line,
            stdin: command.stdin,
        }
    }
}

impl From<telnet::Command> for What {
    fn from(command: telnet::Command) -> Self {
        Self::Telnet {
            lines: command.lines,
            expect: command.expect,
        }
    }
}

impl From<mikrotik::Command> for What {
    fn from(command: mikrotik::Command) -> Self {
        Self::Mikrotik {
            path: command.path,
            args: command.args,
            queries: command.queries,
            proplist: command.proplist,
        }
    }
}

impl From<http::Request> for What {
    fn from(request: http::Request) -> Self {
        Self::Http {
            method: request.method,
            path: request.path,
            headers: request.headers,
            json: request.json,
        }
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Told {
    /// The device's answer.
    Done {
        /// Rows of a table.
        rows: Vec<Row>,
        /// `=ret=`.
        ret: Option<String>,
        /// Text.
        text: String,
        /// The device's number for success.
        code: i32,
    },
    /// The device or the driver failed.
    Failed {
        /// `nas` or `event`.
        nas: bool,
        /// A word of [`FailureClass`].
        class: String,
        /// The driver's number.
        code: i32,
        /// Why.
        text: String,
    },
    /// Observe mode: noted, not sent.
    Recorded,
    /// The same NAS, but another login or port than the daemon's own: connect by yourself.
    ByYourself,
    /// Not allowed, or not understood.
    Refused {
        /// Why.
        text: String,
    },
}

impl Told {
    /// Of what a driver gave back.
    pub fn of(result: Result<Reply, Failure>) -> Self {
        match result {
            Ok(reply) => Self::Done {
                rows: reply.rows,
                ret: reply.ret,
                text: reply.text,
                code: reply.code,
            },
            Err(failure) => Self::Failed {
                nas: failure.scope == Scope::Nas,
                class: failure.class.as_str().to_owned(),
                code: failure.code,
                text: failure.text,
            },
        }
    }

    /// One line.
    pub fn line(&self) -> Vec<u8> {
        let encoded = serde_json::to_vec(self).ok();
        let mut line = encoded
            .filter(|line| line.len() < TOLD_MAX)
            .unwrap_or_else(|| {
                let text = format!(
                    "the answer has more than {TOLD_MAX} bytes; ask with a query or a .proplist"
                );
                let told = Self::of(Err(Failure::permanent(text)));
                serde_json::to_vec(&told).unwrap_or_default()
            });
        line.push(b'\n');
        line
    }
}

/// What a driver gave back, on the helper's side.
pub fn failure(nas: bool, class: &str, code: i32, text: String) -> Failure {
    let classes = [
        FailureClass::Transport,
        FailureClass::Refused,
        FailureClass::Unknown,
        FailureClass::Permanent,
    ];
    let class = classes.into_iter().find(|known| known.as_str() == class);
    Failure {
        scope: if nas { Scope::Nas } else { Scope::Event },
        class: class.unwrap_or(FailureClass::Unknown),
        code,
        text,
        parks: false,
    }
}

/// Reads one line of a helper.
pub fn ask(line: &[u8]) -> Result<Ask, String> {
    if line.len() > ASK_MAX {
        return Err(format!("a line of more than {ASK_MAX} bytes"));
    }
    let ask: Ask = serde_json::from_slice(line).map_err(|e| format!("not understood: {e}"))?;
    if ask.token.len() != TOKEN_LEN || !ask.token.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("NED_ATTEMPT is not a token".to_owned());
    }
    if ask.timeout_ms > TIMEOUT_MAX_MS {
        return Err(format!("a time of more than {TIMEOUT_MAX_MS} ms"));
    }
    Ok(ask)
}

/// Hexadecimal digits of a token.
const TOKEN_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Ask {
        Ask {
            token: "0123456789abcdef0123456789abcdef".into(),
            to: To {
                nas: Some(7),
                ..To::default()
            },
            timeout_ms: 1_000,
            what: What::Mikrotik {
                path: "/queue/simple/add".into(),
                args: vec![("name".into(), "a\nb".into())],
                queries: Vec::new(),
                proplist: Vec::new(),
            },
        }
    }

    #[test]
    fn words_arrive_as_they_were_meant() {
        let line = serde_json::to_vec(&example()).unwrap();
        assert!(!line.contains(&b'\n'), "one line is one object");
        assert_eq!(ask(&line), Ok(example()));
        let told = Told::of(Err(Failure::timeout("late")));
        let line = told.line();
        assert_eq!(line.last(), Some(&b'\n'));
        let back: Told = serde_json::from_slice(&line).unwrap();
        assert_eq!(back, told);
        let Told::Failed {
            nas,
            class,
            code,
            text,
        } = back
        else {
            panic!("{back:?}");
        };
        assert_eq!(failure(nas, &class, code, text), Failure::timeout("late"));
    }

    #[test]
    fn what_is_not_a_command_is_refused() {
        let text = serde_json::to_string(&example()).unwrap();
        for (from, to) in [
            ("0123456789abcdef0123456789abcdef", "../../etc/passwd"),
            ("0123456789abcdef0123456789abcdef", ""),
            ("1000", "99999999999"),
            ("mikrotik", "shell"),
            ("\"to\"", "\"too\""),
        ] {
            let bad = text.replace(from, to);
            assert!(ask(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(ask(&vec![b'['; 1_000_000]).is_err());
    }

    #[test]
    fn an_answer_is_never_longer_than_its_reader_takes() {
        let told = Told::of(Ok(Reply {
            text: "x".repeat(TOLD_MAX),
            ..Reply::default()
        }));
        let line = told.line();
        assert!(line.len() < 1_000);
        assert!(String::from_utf8_lossy(&line).contains("permanent"));
    }

    proptest! {
        #[test]
        fn nothing_breaks_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = ask(&bytes);
        }

        #[test]
        fn half_a_line_is_no_command(cut in 0_usize..150) {
            let line = serde_json::to_vec(&example()).unwrap();
            let part = &line[..cut.min(line.len() - 1)];
            prop_assert!(ask(part).is_err());
        }
    }
}
