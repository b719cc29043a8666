//! SSH (RFC 4251 to 4254): one kept connection per NAS, shared by its forks; each command runs
//! on a channel of its own. Measured against OpenSSH 9.2: fresh connections give 16 commands per
//! second, channels of one connection 1,300.

mod channel;
mod dialogues;
mod login;
mod pool;
pub mod settings;
mod terminal;
pub mod trust;
mod watch;
mod window;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::attempt::Failure;
use crate::driver::Reply;
use crate::driver::dialogue::Manners;
use crate::driver::ssh::channel::Ended;
use crate::driver::ssh::dialogues::{Dialogues, dialogues};
use crate::driver::ssh::pool::{Pool, Used};
use crate::driver::ssh::trust::Trust;
use crate::driver::ssh::window::Place;
use crate::driver::waits::{Stint, Waits};
use crate::nas::NasId;
use crate::shell::quote;

/// How often a command that was not sent moves on to another connection.
const MOVES: usize = 3;
/// Waits after a refused channel while no other of ours is open: the server still clears away
/// the last one (it counts a session until its process is reaped). Together about a second.
const BUSY_PAUSES_MS: [u64; 7] = [5, 10, 25, 60, 150, 300, 450];
/// Wait after a refused channel while others of ours are open, ms.
const CROWDED_PAUSE_MS: u64 = 10;

pub use dialogues::{Leased, dialogues_of};

/// Told about each host key that is seen for the first time, as an OpenSSH public key line.
pub type Learn = Arc<dyn Fn(&str) + Send + Sync>;

/// Where and as whom to log in.
#[derive(Clone, PartialEq)]
pub struct Target {
    /// Address or name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Login.
    pub login: String,
    /// Its password, for the methods `password` and `keyboard-interactive`; may be empty.
    pub password: String,
    /// Private key in OpenSSH or PEM form, without a passphrase; may be empty.
    pub key: String,
    /// Which host keys are believed.
    pub trust: Trust,
    /// For `enable` in a dialogue; empty = none.
    pub enable_password: String,
    /// How a dialogue is led.
    pub manners: Manners,
    /// Also offer algorithms that are too weak today (SHA-1, CBC, 3DES, 1024-bit groups).
    pub legacy: bool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.login, self.host, self.port)
    }
}

/// Bounds of the sessions of one NAS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Channels at once, 1..=100.
    pub channels: usize,
    /// For the TCP connection.
    pub connect_timeout: Duration,
    /// For key exchange and login together.
    pub login_timeout: Duration,
    /// An idle connection is closed after this time.
    pub linger: Duration,
    /// Logins in any 60 seconds; further ones wait.
    pub logins_per_minute: usize,
}

/// One command line for the shell of the other side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// The line; empty = the login shell itself, which then reads the batch.
    pub line: String,
    /// What the command reads from its standard input; none = it reads an end of file.
    pub stdin: Option<String>,
}

impl Command {
    /// What keeps it from being one command line.
    pub fn check(&self) -> Result<(), String> {
        if self.line.contains(['\n', '\r', '\0']) {
            return Err("the command line holds a line break".to_owned());
        }
        if self.line.is_empty() && self.stdin.is_none() {
            return Err("no command: neither words nor standard input".to_owned());
        }
        Ok(())
    }

    /// What an operator can paste to repeat it.
    pub fn pasteable(&self, nas: NasId) -> String {
        let shown = format!("send_ssh_cmd --nas {nas} {}", quote(&self.line));
        match &self.stdin {
            Some(batch) => format!("{shown} <<< {}", quote(batch.trim_end_matches('\n'))),
            None => shown,
        }
    }
}

/// Output and errors apart, for a caller that wants them so: a row with `out` and `err`.
impl From<Output> for Reply {
    fn from(output: Output) -> Self {
        let row = [("out", output.stdout), ("err", output.stderr)];
        Self {
            rows: vec![row.map(|(name, text)| (name.to_owned(), text)).into()],
            code: output.status,
            new_session: output.new_session,
            ..Self::default()
        }
    }
}

/// What a command said and how it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit status, 0..=255; death by a signal is 128 + its number, as a shell says it. A
    /// server that sends none (some network devices) counts as 0.
    pub status: i32,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// A connection was opened for it.
    pub new_session: bool,
}

impl Output {
    /// Both, as a terminal would show them.
    pub fn text(&self) -> String {
        let (out, err) = (self.stdout.trim_end(), self.stderr.trim_end());
        match (out.is_empty(), err.is_empty()) {
            (_, true) => out.to_owned(),
            (true, false) => err.to_owned(),
            (false, false) => format!("{out}\n{err}"),
        }
    }
}

/// Numbers for status pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Open connections: 1, or 0; 2 while one is being replaced.
    pub open: usize,
    /// Channels in use.
    pub leased: usize,
    /// Callers that wait for a channel or a terminal.
    pub waiting: usize,
    /// Channels allowed now; below the limit while the server refuses more.
    pub window: usize,
    /// Logins since the start.
    pub logins: u64,
    /// Why the last connection could not be opened or ended; empty = no trouble so far.
    pub last_error: String,
}

/// The sessions of one NAS. Dropping it closes them.
pub struct Ssh {
    target: Target,
    dialogues: Dialogues,
    pool: Arc<Pool>,
    /// One task per connection and one per running command; they end with this object.
    tasks: Mutex<JoinSet<()>>,
}

impl Ssh {
    /// Nothing is connected before the first command.
    pub fn new(target: Target, limits: Limits, learn: Learn) -> Self {
        Self {
            dialogues: dialogues(&limits),
            pool: Arc::new(Pool::new(target.clone(), limits, learn)),
            target,
            tasks: Mutex::default(),
        }
    }

    /// Runs one command and waits for its end, at most `deadline` in all. A command that was
    /// certainly not started moves to another connection; one that was is ended on the server
    /// when its time is over. Dropping the future ends it, too.
    pub async fn exec(&self, command: &Command, deadline: Duration) -> Result<Output, Failure> {
        self.exec_in_turn(command, &Waits::up_to(deadline), deadline)
            .await
    }

    /// The same, where `limit` does not count the waits for a channel and for the next login.
    pub async fn exec_in_turn(
        &self,
        command: &Command,
        waits: &Waits,
        limit: Duration,
    ) -> Result<Output, Failure> {
        let start = |used, place, limit, caller| {
            self.spawn(channel::run(used, place, command.clone(), limit, caller));
        };
        let (output, new_session) = self.started(waits, limit, start).await?;
        self.pool.window.went_well();
        Ok(Output {
            new_session,
            ..output
        })
    }

    /// A login shell behind a terminal, at most `deadline` until it is there, and whether a
    /// connection was opened for it. What is written is typed, what is read is shown on the
    /// screen. Dropping the stream closes the session; it holds one of the channels until then.
    pub async fn terminal(&self, deadline: Duration) -> Result<(DuplexStream, bool), Failure> {
        self.terminal_in_turn(&Waits::up_to(deadline), deadline)
            .await
    }

    async fn terminal_in_turn(
        &self,
        waits: &Waits,
        limit: Duration,
    ) -> Result<(DuplexStream, bool), Failure> {
        let start = |used, place, limit, caller| {
            self.spawn(terminal::run(used, place, limit, caller));
        };
        self.started(waits, limit, start).await
    }

    /// Finds a place and a connection, and has a session begun there by `start`, again where
    /// the server refuses one or the connection is gone before it began.
    async fn started<T>(
        &self,
        waits: &Waits,
        limit: Duration,
        start: impl Fn(Used, Place, Duration, oneshot::Sender<Ended<T>>),
    ) -> Result<(T, bool), Failure> {
        let stint = Stint::begin(waits, limit);
        let no_turn = || self.pool.waited_in_vain(waits.most());
        let (mut moves, mut busy) = (0, 0);
        let mut opened = false;
        loop {
            let turn = async {
                let place = self.pool.window.take().await;
                self.pool.login_turn().await;
                place
            };
            let (place, _) = waits.during(turn).await.ok_or_else(no_turn)?;
            let (connection, new) = timeout(stint.left(), self.pool.connection(&self.tasks))
                .await
                .map_err(|_| self.pool.waited_in_vain(limit))??;
            opened |= new;
            let (caller, ended) = oneshot::channel();
            start(connection.enter(), place, stint.left(), caller);
            let why = match ended.await {
                Ok(Ended::Done(done)) => return Ok((done, opened)),
                Ok(Ended::Failed(failure)) => return Err(failure),
                Ok(Ended::Busy) => {
                    if let Some(pause) = self.refused(&mut busy) {
                        // What is taken on the server is waited for like a place of ours.
                        let paused = waits.during(tokio::time::sleep(pause)).await;
                        paused.ok_or_else(no_turn)?;
                        if stint.left().is_zero() {
                            return Err(self.pool.waited_in_vain(limit));
                        }
                        continue;
                    }
                    // A command that hangs on the server may hold the last place for ever.
                    connection.retire("the server opens no further session");
                    "the server opens no session".to_owned()
                }
                Ok(Ended::NotSent(why)) => why,
                Err(_) => "the connection is gone".to_owned(),
            };
            moves += 1;
            if moves > MOVES {
                return Err(self.pool.lost(&format!("not sent: {why}")));
            }
        }
    }

    /// The server refused a session: how long to wait before the next try on this connection;
    /// none = it has refused for long enough although no other session of ours is open.
    fn refused(&self, busy: &mut usize) -> Option<Duration> {
        self.pool.window.refused();
        if self.pool.window.leased() > 0 {
            return Some(Duration::from_millis(CROWDED_PAUSE_MS));
        }
        let pause = BUSY_PAUSES_MS.get(*busy).copied();
        *busy = if pause.is_some() { *busy + 1 } else { 0 };
        pause.map(Duration::from_millis)
    }

    /// Which host keys are believed now; a learned one counts at once.
    pub fn trust(&self) -> Trust {
        self.pool.trust()
    }

    /// Connections and channels now. A terminal that waits for its next attempt has a channel, and
    /// is not in use.
    pub fn report(&self) -> Report {
        let (report, terminals) = (self.pool.report(), self.dialogues.seen());
        Report {
            leased: report.leased.saturating_sub(terminals.idle),
            waiting: report.waiting + terminals.waiting,
            ..report
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

/// The key that a server presents, as an OpenSSH public key line, believed or not: for a person
/// who compares it. Nobody logs in.
pub async fn host_key(target: &Target, limits: &Limits) -> Result<String, Failure> {
    login::present(target, limits).await
}
