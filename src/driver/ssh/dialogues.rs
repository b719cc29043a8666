//! Interactive sessions over SSH: the dialogue with a device's command line, as over telnet, in
//! a terminal on the kept connection. A session belongs to one attempt at a time, and goes back
//! only from the prompt at which it was found.

use std::time::Duration;

use tokio::io::DuplexStream;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::driver::dialogue::leased::{self, placed};
use crate::driver::dialogue::shell::Shell;
use crate::driver::dialogue::{Credentials, Trouble};
use crate::driver::leases::{Leases, Rules};
use crate::driver::ssh::{Limits, Ssh, Target};
use crate::driver::waits::{Stint, Waits};

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

/// A session in the hands of one attempt; new = a connection was opened for it.
pub type Leased = leased::Leased<DuplexStream>;

impl Ssh {
    /// A session at its prompt. `waits`: for a place and the next login; `limit`: for all else,
    /// until the prompt.
    pub async fn lease(&self, waits: &Waits, limit: Duration) -> Result<Leased, Failure> {
        let place = place(&self.target);
        let turn = self.dialogues.turn(waits).await;
        let turn = turn.map_err(|f| placed(&place, f))?;
        let stint = Stint::begin(waits, limit);
        let turn = match Leased::kept(turn, &place, &stint).await {
            Ok(leased) => return Ok(leased),
            Err(turn) => turn,
        };
        let (stream, is_new) = self.terminal_in_turn(waits, stint.left()).await?;
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
        let manners = manners.clone();
        match Shell::login(stream, None, manners, credentials, stint.left()).await {
            Ok(shell) => Ok(Leased::opened(turn, shell, place, is_new)),
            Err(trouble) => {
                let failure = placed(&place, no_prompt(trouble));
                turn.failed(&failure);
                Err(failure)
            }
        }
    }

    /// Gives a session back. One that is not at its prompt is closed; says so then.
    pub fn give_back(&self, leased: Leased) -> Option<&'static str> {
        leased.give_back(&self.dialogues)
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
