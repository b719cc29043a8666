//! Telnet (RFC 854): command lines of devices that have nothing better. A session belongs to
//! one attempt at a time and goes back only from the prompt at which it was found. Name,
//! password and commands cross the network in plain text, which `status` says.

pub mod options;
pub mod settings;

use std::fmt;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::clock;
use crate::driver::dialogue::leased::{self, placed};
use crate::driver::dialogue::shell::Shell;
use crate::driver::dialogue::{ANSWER_MAX, Credentials, Manners, Trouble, not_understood};
use crate::driver::leases::{Leases, Rules, Seen};
use crate::driver::waits::{Stint, Waits};
use crate::driver::{Reply, timed};
use crate::nas::NasId;
use crate::shell::quote;
use options::Options;

/// Code of a line that the device did not understand, as of a wrong parameter elsewhere.
pub const NOT_UNDERSTOOD: i32 = 249;
/// Lines that a script may send at once.
const LINES_MAX: usize = 10_000;
/// Waits before the second, third and fourth try of a login that failed.
const LOGIN_PAUSES_MS: [u64; 3] = [100, 500, 2_000];
/// Where and as whom to log in.
#[derive(Clone, PartialEq)]
pub struct Target {
    /// Address or name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Name and passwords.
    pub credentials: Credentials,
    /// How the device wants to be spoken to.
    pub manners: Manners,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.credentials.login, self.host, self.port)
    }
}

/// Lines of one session, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// The lines.
    pub lines: Vec<String>,
    /// Questions that end an answer, too, as regular expressions.
    pub expect: Vec<String>,
}

impl Command {
    /// What an operator can paste to repeat it: a lone `;` begins the next line.
    pub fn pasteable(&self, nas: NasId) -> String {
        let mut words = vec![format!("send_telnet_cmd --nas {nas}")];
        for question in &self.expect {
            words.push(format!("--expect {}", quote(question)));
        }
        words.push(self.shown());
        words.join(" ")
    }

    /// The lines as words of a shell.
    pub fn shown(&self) -> String {
        let lines: Vec<String> = self.lines.iter().map(|line| quote(line)).collect();
        lines.join(" ';' ")
    }

    /// The questions, compiled; fails on lines and questions that cannot be meant.
    pub fn check(&self) -> Result<Vec<fancy_regex::Regex>, String> {
        if self.lines.is_empty() || self.lines.iter().any(|line| line.trim().is_empty()) {
            return Err("there is no line to send".to_owned());
        }
        if self.lines.len() > LINES_MAX || self.expect.len() > LINES_MAX {
            return Err(format!("more than {LINES_MAX} lines in one session"));
        }
        if let Some(line) = self.lines.iter().find(|l| l.chars().any(char::is_control)) {
            return Err(format!("the line {line:?} holds a control character"));
        }
        let compiled = self.expect.iter().map(|source| {
            fancy_regex::Regex::new(source).map_err(|_| format!("{source:?} is no expression"))
        });
        compiled.collect()
    }
}

/// Bounds of one NAS.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Sessions at once, logins per minute, how long an idle session is kept.
    pub rules: Rules,
    /// For the TCP connection.
    pub connect_timeout: Duration,
    /// For the dialogue from the first byte to the prompt, `enable` included.
    pub login_timeout: Duration,
}

/// The sessions of one NAS. Dropping it closes those that are idle.
#[derive(Debug)]
pub struct Telnet {
    target: Target,
    limits: Limits,
    leases: Leases<Shell<TcpStream>>,
}

/// A session in the hands of one attempt.
pub type Leased = leased::Leased<TcpStream>;

impl Telnet {
    /// Nothing is connected before the first lease.
    pub fn new(target: Target, limits: Limits) -> Self {
        let leases = Leases::new(limits.rules.clone());
        Self {
            target,
            limits,
            leases,
        }
    }

    /// Sends all lines in one session and gives it back. A line that is not understood ends it.
    pub async fn talk(&self, command: &Command, limit: Duration) -> Result<Reply, Failure> {
        self.talk_in_turn(command, &Waits::up_to(limit), limit)
            .await
    }

    /// The same, where `limit` does not count the waits for a place and for the next login.
    pub async fn talk_in_turn(
        &self,
        command: &Command,
        waits: &Waits,
        limit: Duration,
    ) -> Result<Reply, Failure> {
        let expect = command.check().map_err(Failure::permanent)?;
        let stint = Stint::begin(waits, limit);
        let mut leased = self.lease(waits, limit).await?;
        let mut reply = Reply {
            new_session: leased.is_new,
            ..Reply::default()
        };
        for (n, line) in command.lines.iter().enumerate() {
            let answer = leased.run(line, &expect, stint.left()).await?;
            if !reply.text.is_empty() && !answer.text.is_empty() {
                reply.text.push('\n');
            }
            reply.text.push_str(&answer.text);
            let failure = if let Some(said) = not_understood(&answer.text) {
                Some(Failure {
                    code: NOT_UNDERSTOOD,
                    ..Failure::permanent(format!("{line:?} was not understood: {}", said.trim()))
                })
            } else if reply.text.len() > ANSWER_MAX {
                Some(Failure::permanent(format!(
                    "the answers have more than {ANSWER_MAX} bytes"
                )))
            } else if answer.closed && n + 1 < command.lines.len() {
                Some(Failure::permanent(format!(
                    "the session ended after {line:?}, before the lines that follow"
                )))
            } else {
                None
            };
            if let Some(failure) = failure {
                self.give_back(leased);
                return Err(failure);
            }
        }
        self.give_back(leased);
        Ok(reply)
    }

    /// A session at its prompt. `waits`: for a place and the next login; `limit`: for all else,
    /// which is a look at those that are kept, connection and login. A login is tried again
    /// after 0.1, 0.5 and 2 s.
    pub async fn lease(&self, waits: &Waits, limit: Duration) -> Result<Leased, Failure> {
        let place = self.place();
        let turn = self.leases.turn(waits).await.map_err(|f| self.placed(f))?;
        let stint = Stint::begin(waits, limit);
        let turn = match Leased::kept(turn, &place, &stint).await {
            Ok(leased) => return Ok(leased),
            Err(turn) => turn,
        };
        if let Some(failure) = turn.failed_meanwhile() {
            return Err(failure);
        }
        let pause = Duration::from_millis(turn.login_wait_ms(clock::tick_ms()));
        if !pause.is_zero() && waits.during(tokio::time::sleep(pause)).await.is_none() {
            let text = format!(
                "nas.vars.logins_per_minute: the next login may begin in {} ms only",
                pause.as_millis()
            );
            return Err(self.placed(Failure::transport(text)));
        }
        match self.open(stint.left()).await {
            Ok(shell) => Ok(Leased::opened(turn, shell, place, true)),
            Err(failure) => {
                turn.failed(&failure);
                Err(failure)
            }
        }
    }

    /// Gives a session back. One that is not at its prompt is closed; says so then.
    pub fn give_back(&self, leased: Leased) -> Option<&'static str> {
        leased.give_back(&self.leases)
    }

    /// Numbers of this moment.
    pub fn seen(&self) -> Seen {
        self.leases.seen()
    }

    async fn open(&self, limit: Duration) -> Result<Shell<TcpStream>, Failure> {
        let began = clock::tick_ms();
        let mut pauses = LOGIN_PAUSES_MS.into_iter();
        loop {
            let gone = Duration::from_millis(clock::tick_ms().saturating_sub(began));
            let left = limit.saturating_sub(gone);
            let trouble = match timed("telnet", self.login(left)).await {
                Ok(shell) => return Ok(shell),
                Err(Refusal::Final(failure)) => return Err(self.placed(failure)),
                Err(Refusal::Again(failure)) => failure,
            };
            let pause = pauses.next().map(Duration::from_millis);
            let gone = Duration::from_millis(clock::tick_ms().saturating_sub(began));
            match pause {
                Some(pause) if gone + pause < limit => tokio::time::sleep(pause).await,
                None => return Err(self.placed(trouble)),
                // Not all tries have been made: too early to park the NAS.
                Some(_) => {
                    let early = Failure {
                        parks: false,
                        ..trouble
                    };
                    return Err(self.placed(early));
                }
            }
        }
    }

    async fn login(&self, left: Duration) -> Result<Shell<TcpStream>, Refusal> {
        let Target { host, port, .. } = &self.target;
        let began = clock::tick_ms();
        let limit = self.limits.connect_timeout.min(left);
        let connected = timeout(limit, TcpStream::connect((host.as_str(), *port))).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => {
                let why = format!("cannot connect: {e}; is the NAS up and its telnet on?");
                return Err(Refusal::Final(Failure::transport(why)));
            }
            Err(_) => {
                let ms = limit.as_millis();
                let why = format!("cannot connect within {ms} ms; is a firewall in the way?");
                return Err(Refusal::Final(Failure::transport(why)));
            }
        };
        // Only slower without it.
        let _ = stream.set_nodelay(true);
        let gone = Duration::from_millis(clock::tick_ms().saturating_sub(began));
        let left = left.saturating_sub(gone);
        let logged_in = Shell::login(
            stream,
            Some(Options::new()),
            self.target.manners.clone(),
            self.target.credentials.clone(),
            self.limits.login_timeout.min(left),
        );
        logged_in.await.map_err(|trouble| match trouble {
            Trouble::Busy(text) => Refusal::Again(Failure::transport(format!("no place: {text}"))),
            Trouble::Refused(text) => Refusal::Again(Failure {
                scope: Scope::Nas,
                class: FailureClass::Refused,
                code: Failure::CODE_PERMANENT,
                text: format!("login refused: {text}"),
                parks: true,
            }),
            Trouble::Closed(text) => {
                Refusal::Again(Failure::transport(format!("during the login: {text}")))
            }
            Trouble::Late(text) | Trouble::TooLong(text) | Trouble::Unfit(text) => {
                Refusal::Final(Failure::transport(format!("during the login: {text}")))
            }
        })
    }

    fn place(&self) -> String {
        format!("telnet {}:{}", self.target.host, self.target.port)
    }

    fn placed(&self, failure: Failure) -> Failure {
        placed(&self.place(), failure)
    }
}

/// Why there is no session.
enum Refusal {
    /// To try again at once makes no sense.
    Final(Failure),
    /// A busy device does this now and then.
    Again(Failure),
}
