//! Interactive sessions over SSH: the dialogue with a device's command line, as over telnet, in
//! a terminal on the kept connection. A session belongs to one attempt at a time, and goes back
//! only from the prompt at which it was found.

use std::time::Duration;

use tokio::io::DuplexStream;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::clock;
use crate::driver::dialogue::shell::Shell;
use crate::driver::dialogue::{Answer, Credentials, Trouble};
use crate::driver::leases::{Leases, Rules, Turn};
use crate::driver::ssh::{Limits, Ssh, Target};
use crate::driver::waits::Waits;

/// A session that was idle for so long is asked for its prompt before it is used: a device may
/// have gone without a word.
const ASK_AFTER_MS: u64 = 2_000;
/// For the answer to that.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// Terminals per minute: opening one is no login, so this is a guard and no wish of devices.
const OPENED_PER_MINUTE: f64 = 6_000.0;

/// The interactive sessions of one NAS.
pub(super) type Dialogues = Leases<Shell<DuplexStream>>;

/// Of so many channels: all but one, which commands without a dialogue need.
pub fn dialogues_of(channels: usize) -> usize {
    channels.saturating_sub(1).max(1)
}

/// The sessions of a NAS with these limits.
pub(super) fn dialogues(limits: &Limits) -> Dialogues {
    Leases::new(Rules {
        sessions: dialogues_of(limits.channels),
        logins_per_minute: OPENED_PER_MINUTE,
        linger: limits.linger,
    })
}

/// A session in the hands of one attempt.
pub struct Leased {
    turn: Turn<Shell<DuplexStream>>,
    shell: Shell<DuplexStream>,
    place: String,
    /// A connection was opened for it.
    pub new_session: bool,
}

impl Ssh {
    /// A session at its prompt. `waits`: for a place; `limit`: until the prompt.
    pub async fn lease(&self, waits: &Waits, limit: Duration) -> Result<Leased, Failure> {
        let place = place(&self.target);
        let mut turn = self
            .dialogues
            .turn(waits)
            .await
            .map_err(|f| placed(&place, f))?;
        while let Some((mut shell, idle_ms)) = turn.take_idle() {
            if shell.is_closed().await {
                continue;
            }
            let asked =
                idle_ms < ASK_AFTER_MS || shell.run("", &[], ASK_LIMIT.min(limit)).await.is_ok();
            if asked && shell.is_home() {
                return Ok(Leased {
                    turn,
                    shell,
                    place,
                    new_session: false,
                });
            }
        }
        let began = clock::tick_ms();
        let waited = waits.total();
        let (stream, new_session) = self.terminal_in_turn(waits, limit).await?;
        let gone = Duration::from_millis(clock::tick_ms().saturating_sub(began));
        let gone = gone.saturating_sub(waits.total().saturating_sub(waited));
        let Target {
            login,
            password,
            enable_password,
            manners,
            ..
        } = &self.target;
        let credentials = Credentials {
            login: login.clone(),
            password: password.clone(),
            enable_password: enable_password.clone(),
        };
        let left = limit.saturating_sub(gone);
        let at_prompt = Shell::login(stream, None, manners.clone(), credentials, left).await;
        match at_prompt {
            Ok(shell) => {
                turn.opened();
                Ok(Leased {
                    turn,
                    shell,
                    place,
                    new_session,
                })
            }
            Err(trouble) => {
                let failure = placed(&place, no_prompt(trouble));
                turn.failed(&failure);
                Err(failure)
            }
        }
    }

    /// Gives a session back. One that is not at its prompt is closed; says so then.
    pub fn give_back(&self, leased: Leased) -> Option<&'static str> {
        if leased.shell.is_home() {
            self.dialogues.keep(leased.turn, leased.shell);
            return None;
        }
        Some("the session was left in another mode than it was found in, and is closed")
    }
}

impl Leased {
    /// Sends one line and waits for its answer, at most `limit`. After a failure of class
    /// transport or unknown the session is not to be given back.
    pub async fn run(
        &mut self,
        line: &str,
        expect: &[fancy_regex::Regex],
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let trouble = match self.shell.run(line, expect, limit).await {
            Ok(answer) => return Ok(answer),
            Err(trouble) => trouble,
        };
        let sent = self.shell.was_sent();
        let perhaps = |text: &str| format!("{text}; the line may have been carried out");
        Err(placed(
            &self.place,
            match trouble {
                Trouble::Unfit(text) => Failure::permanent(text),
                trouble if !sent => Failure::transport(format!("not sent: {}", trouble.text())),
                Trouble::Late(text) => Failure::timeout(perhaps(&text)),
                trouble => Failure {
                    scope: Scope::Event,
                    class: FailureClass::Unknown,
                    ..Failure::transport(perhaps(trouble.text()))
                },
            },
        ))
    }

    /// A line of `setup` that the device did not understand.
    pub fn setup_said(&self) -> Option<&str> {
        self.shell.setup_said()
    }
}

/// Why there is no prompt, although the login over SSH was granted.
fn no_prompt(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::Refused(text) => Failure {
            scope: Scope::Nas,
            class: FailureClass::Refused,
            code: Failure::CODE_PERMANENT,
            text: format!("login or enable refused: {text}"),
            parks: true,
        },
        trouble => Failure::transport(format!("no prompt: {}", trouble.text())),
    }
}

fn place(target: &Target) -> String {
    format!("SSH terminal at {}:{}", target.host, target.port)
}

fn placed(place: &str, failure: Failure) -> Failure {
    Failure {
        text: format!("{place}: {}", failure.text),
        ..failure
    }
}
