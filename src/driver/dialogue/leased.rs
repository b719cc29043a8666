//! A session on a device's command line in the hands of one attempt, whatever carries it: telnet
//! or a terminal of SSH. It goes back only from the prompt at which it was found, and is
//! believed again only after a look.

use std::fmt;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::shell::Shell;
use super::{Answer, Trouble};
use crate::attempt::{Failure, FailureClass, Scope};
use crate::driver::leases::{Leases, Turn};
use crate::driver::waits::Stint;

/// A session that was idle for so long is asked for its prompt before it is used: a device
/// that was switched off does not close its connections.
const ASK_AFTER_MS: u64 = 2_000;
/// For the answer to that, and never more than half of the time that is left: a login shall
/// still fit into the other half.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// A session in the hands of one attempt.
pub struct Leased<S> {
    turn: Turn<Shell<S>>,
    shell: Shell<S>,
    place: String,
    /// Its device was logged in to for this attempt.
    pub is_new: bool,
}

impl<S> fmt::Debug for Leased<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a session of {}", self.place)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Leased<S> {
    /// The session that was used last and is still at its prompt, in the place of `turn`; else
    /// the turn alone, for a new one. `stint`: what the look may take, of which at least half
    /// is left after it.
    pub(in crate::driver) async fn kept(
        turn: Turn<Shell<S>>,
        place: &str,
        stint: &Stint<'_>,
    ) -> Result<Self, Turn<Shell<S>>> {
        Self::kept_for(ASK_AFTER_MS, turn, place, stint).await
    }

    async fn kept_for(
        ask_after_ms: u64,
        mut turn: Turn<Shell<S>>,
        place: &str,
        stint: &Stint<'_>,
    ) -> Result<Self, Turn<Shell<S>>> {
        while let Some((mut shell, idle_ms)) = turn.take_idle() {
            let limit = ASK_LIMIT.min(stint.left() / 2);
            // The limit is around both.
            let look = async {
                !shell.is_closed().await
                    && (idle_ms < ask_after_ms || shell.run("", &[], Duration::MAX).await.is_ok())
            };
            match timeout(limit, look).await {
                Ok(true) if shell.is_home() => {
                    return Ok(Self {
                        turn,
                        shell,
                        place: place.to_owned(),
                        is_new: false,
                    });
                }
                Ok(_) => {}
                // The others have been idle for longer. To ask each would leave no time for a
                // login.
                Err(_) => while turn.take_idle().is_some() {},
            }
        }
        Err(turn)
    }

    /// One that was opened for this attempt; `is_new`: with a login.
    pub(in crate::driver) fn opened(
        turn: Turn<Shell<S>>,
        shell: Shell<S>,
        place: String,
        is_new: bool,
    ) -> Self {
        turn.opened();
        Self {
            turn,
            shell,
            place,
            is_new,
        }
    }

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
        let perhaps = |text: &str| format!("{text}; the line may have been carried out");
        let failure = match trouble {
            Trouble::Unfit(text) => Failure::permanent(text),
            trouble if !self.shell.was_sent() => {
                Failure::transport(format!("not sent: {}", trouble.text()))
            }
            Trouble::Late(text) => Failure::timeout(perhaps(&text)),
            Trouble::Busy(_) | Trouble::Refused(_) | Trouble::Closed(_) | Trouble::TooLong(_) => {
                Failure {
                    scope: Scope::Event,
                    class: FailureClass::Unknown,
                    ..Failure::transport(perhaps(trouble.text()))
                }
            }
        };
        Err(placed(&self.place, failure))
    }

    /// The prompt of the login.
    pub fn prompt(&self) -> &str {
        self.shell.prompt()
    }

    /// A line of `setup` that the device did not understand.
    pub fn setup_said(&self) -> Option<&str> {
        self.shell.setup_said()
    }

    /// Back to `leases`, whose turn it had. One that is not at its prompt is closed; says so then.
    pub(in crate::driver) fn give_back(self, leases: &Leases<Shell<S>>) -> Option<&'static str> {
        if self.shell.is_home() {
            leases.keep(self.turn, self.shell);
            return None;
        }
        Some("the session was left in another mode than it was found in, and is closed")
    }
}

/// The failure, with the place where it happened.
pub(in crate::driver) fn placed(place: &str, failure: Failure) -> Failure {
    Failure {
        text: format!("{place}: {}", failure.text),
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinSet;

    use super::*;
    use crate::clock;
    use crate::driver::dialogue::{Credentials, Manners};
    use crate::driver::leases::Rules;
    use crate::driver::telnet::options::Options;
    use crate::driver::waits::Waits;

    const LONG: Duration = Duration::from_secs(30);
    /// Sessions that are kept when the device goes.
    const KEPT: usize = 6;

    /// Lets in, answers `lines` lines, then `end`s.
    async fn device<E: Future<Output = ()>>(
        mut stream: DuplexStream,
        lines: usize,
        end: impl FnOnce(DuplexStream) -> E,
    ) {
        stream.write_all(b"\r\nsw#").await.unwrap();
        let mut read = [0; 64];
        // One more: the empty line that proves the prompt.
        for _ in 0..=lines {
            let _ = stream.read(&mut read).await.unwrap();
            stream.write_all(b"\r\nsw#").await.unwrap();
        }
        end(stream).await;
    }

    async fn silent(stream: DuplexStream) {
        let _open = stream;
        std::future::pending::<()>().await;
    }

    async fn closing(stream: DuplexStream) {
        drop(stream);
    }

    async fn shell(stream: DuplexStream) -> Shell<DuplexStream> {
        let credentials = Credentials {
            login: "ned".into(),
            password: "servicemode".into(),
            enable_password: String::new(),
        };
        let options = Some(Options::new());
        Shell::login(stream, options, Manners::default(), credentials, LONG)
            .await
            .unwrap()
    }

    /// `KEPT` sessions with devices that behave so after their login.
    async fn leases<E>(
        devices: &mut JoinSet<()>,
        lines: usize,
        end: fn(DuplexStream) -> E,
    ) -> Leases<Shell<DuplexStream>>
    where
        E: Future<Output = ()> + Send + 'static,
    {
        let leases = Leases::new(Rules {
            sessions: KEPT,
            logins_per_minute: 600.0,
            linger: LONG,
        });
        let mut out = Vec::new();
        for _ in 0..KEPT {
            let (ours, theirs) = duplex(4096);
            devices.spawn(device(theirs, lines, end));
            let turn = leases.turn(&Waits::up_to(LONG)).await.unwrap();
            out.push(Leased::opened(
                turn,
                shell(ours).await,
                "here".to_owned(),
                true,
            ));
        }
        for leased in out {
            assert!(leased.give_back(&leases).is_none());
        }
        assert_eq!(leases.seen().idle, KEPT);
        leases
    }

    async fn kept_of(
        leases: &Leases<Shell<DuplexStream>>,
        limit: Duration,
    ) -> Result<Leased<DuplexStream>, Turn<Shell<DuplexStream>>> {
        let waits = Waits::up_to(LONG);
        let turn = leases.turn(&waits).await.unwrap();
        let stint = Stint::begin(&waits, limit);
        let began = clock::tick_ms();
        let kept = timeout(LONG, Leased::kept_for(0, turn, "here", &stint)).await;
        let took = Duration::from_millis(clock::tick_ms() - began);
        assert!(took < limit, "{took:?}");
        let rest = stint.left();
        assert!(
            rest >= limit / 4,
            "a login must still fit in: {rest:?} of {limit:?}"
        );
        kept.unwrap()
    }

    #[tokio::test]
    async fn sessions_of_a_device_that_is_gone_take_half_of_the_time_at_most() {
        let mut devices = JoinSet::new();
        let limit = Duration::from_secs(2);
        let leases = leases(&mut devices, 0, silent).await;
        assert!(kept_of(&leases, limit).await.is_err());
        assert_eq!(leases.seen().idle, 0, "the others are as old");
    }

    #[tokio::test]
    async fn a_session_that_answers_is_used_again_and_the_others_stay() {
        let mut devices = JoinSet::new();
        let leases = leases(&mut devices, 1, silent).await;
        let leased = kept_of(&leases, LONG).await.unwrap();
        assert!(
            !leased.is_new && leased.prompt() == "sw#",
            "{:?}",
            leased.prompt()
        );
        assert_eq!(leases.seen().idle, KEPT - 1);
    }

    #[tokio::test]
    async fn sessions_that_were_closed_cost_no_time() {
        let mut devices = JoinSet::new();
        let leases = leases(&mut devices, 0, closing).await;
        while devices.join_next().await.is_some() {}
        assert!(kept_of(&leases, LONG).await.is_err());
    }
}
