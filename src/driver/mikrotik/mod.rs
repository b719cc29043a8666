//! The RouterOS API (MikroTik manual, "API"): commands multiplexed by tags over few pooled
//! connections.

pub mod answer;
mod known;
mod login;
mod pool;
mod session;
mod stream;
pub mod wire;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::clock;
use crate::driver::mikrotik::known::Known;
use crate::driver::mikrotik::pool::Pool;
use crate::driver::mikrotik::session::Ended;
use crate::driver::mikrotik::stream::Tls;
use crate::driver::mikrotik::wire::Bounds;
use crate::driver::tls;
use crate::driver::{Reply, Row};
use crate::nas::NasId;
use crate::shell;

pub use session::{REPLY_MAX, ROWS_MAX, WORD_COST};

/// How often a command that was not sent moves on to another connection.
const MOVES: usize = 3;

/// For reading a busy menu.
const READ_TIME: Duration = Duration::from_secs(30);

/// One API sentence, still as data: nothing in a value can become another word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// `/queue/simple/add`.
    pub path: String,
    /// `=key=value` words, in order.
    pub args: Vec<(String, String)>,
    /// Query words as they go out, `?name=x`, `?#&`, in order.
    pub queries: Vec<String>,
    /// `.proplist`, empty = all properties.
    pub proplist: Vec<String>,
}

impl Command {
    /// What an operator can paste to repeat it.
    pub fn pasteable(&self, nas: NasId) -> String {
        let mut words = vec![
            format!("send_mikrotik_cmd --nas {nas}"),
            shell::quote(&self.path),
        ];
        words.extend(
            self.args
                .iter()
                .map(|(k, v)| shell::quote(&format!("{k}={v}"))),
        );
        words.extend(self.queries.iter().map(|q| shell::quote(q)));
        if !self.proplist.is_empty() {
            words.push(shell::quote(&format!(
                ".proplist={}",
                self.proplist.join(",")
            )));
        }
        words.join(" ")
    }

    /// The sentence without its end. Refuses what would not arrive as it is meant.
    fn encoded(&self) -> Result<Vec<u8>, String> {
        if !self.path.starts_with('/') || self.path.contains(['=', '\n']) {
            return Err(format!("{:?} is not a path of the API", self.path));
        }
        if let Some((key, _)) = self
            .args
            .iter()
            .find(|(key, _)| key.is_empty() || key.contains('='))
        {
            return Err(format!("{key:?} is not the name of an argument"));
        }
        if let Some(query) = self.queries.iter().find(|q| !q.starts_with('?')) {
            return Err(format!("the query word {query:?} does not begin with '?'"));
        }
        let mut words = vec![self.path.clone().into_bytes()];
        words.extend(
            self.args
                .iter()
                .map(|(key, value)| format!("={key}={value}").into_bytes()),
        );
        if !self.proplist.is_empty() {
            words.push(format!("=.proplist={}", self.proplist.join(",")).into_bytes());
        }
        words.extend(self.queries.iter().map(|q| q.clone().into_bytes()));
        let mut bytes = Vec::new();
        wire::encode(words.iter().map(Vec::as_slice), Bounds::DRIVER, &mut bytes)?;
        // The tag comes last, then the end.
        bytes.pop();
        Ok(bytes)
    }
}

/// Where and as whom to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Address or name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Login.
    pub login: String,
    /// Password.
    pub password: String,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.login, self.host, self.port)
    }
}

/// Bounds of the pool of one NAS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, 1..=100.
    pub connections: usize,
    /// For TCP connect and for the login dialogue, each.
    pub connect_timeout: Duration,
    /// An idle connection is closed after this time.
    pub linger: Duration,
    /// Logins in a minute, at least 1; as many as there may be connections may come at once after
    /// a pause.
    pub logins_per_minute: usize,
    /// Rows of busy menus are read once and kept for a minute.
    pub know_rows: bool,
}

/// A setting of TLS that cannot be obeyed.
pub(crate) fn over_tls(why: &str) -> String {
    format!("RouterOS API over TLS: {why}")
}

/// Numbers for status pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Open connections.
    pub connections: usize,
    /// Commands that wait for their answer.
    pub in_flight: usize,
    /// Commands that wait for a connection, or for a place on one.
    pub waiting: usize,
}

/// The pooled sessions of one NAS. Dropping it closes them.
pub struct Mikrotik {
    pool: Arc<Pool>,
    /// One task per connection; they end with this object.
    tasks: Mutex<JoinSet<()>>,
    /// Settings with which nothing can be sent.
    broken: Option<Failure>,
    /// What the router says that it runs, and how many connections had been opened then.
    version: AsyncMutex<Option<(u64, String)>>,
    known: Known,
    know_rows: bool,
}

impl Mikrotik {
    /// Nothing is connected before the first command.
    pub fn new(target: Target, limits: Limits) -> Self {
        Self::with(target, limits, None)
    }

    /// The same over TLS (RouterOS service `api-ssl`, port 8729).
    pub fn over_tls(target: Target, limits: Limits, settings: &tls::Settings) -> Self {
        match Tls::new(settings, &target.host) {
            Ok(tls) => Self::with(target, limits, Some(tls)),
            Err(why) => Self::broken(target, limits, Failure::setting(over_tls(&why))),
        }
    }

    fn with(target: Target, limits: Limits, tls: Option<Tls>) -> Self {
        Self {
            know_rows: limits.know_rows,
            known: Known::default(),
            pool: Arc::new(Pool::new(target, limits, tls)),
            tasks: Mutex::default(),
            broken: None,
            version: AsyncMutex::default(),
        }
    }

    /// One whose settings cannot be obeyed: its events must not die of it.
    pub(crate) fn broken(target: Target, limits: Limits, failure: Failure) -> Self {
        Self {
            broken: Some(failure),
            ..Self::with(target, limits, None)
        }
    }

    /// Sends one command and waits for its `!done`, at most `deadline` in all. A command that
    /// was certainly not sent moves to another connection; one that was is cancelled on the
    /// router when its time is over.
    pub async fn talk(&self, command: &Command, deadline: Duration) -> Result<Reply, Failure> {
        let mut heard = Heard {
            known: &self.known,
            command,
            open: true,
        };
        let result = self.told(command, deadline).await;
        let ret = result.as_ref().map(|reply| reply.ret.as_deref());
        self.known.heard(command, ret, clock::tick_ms());
        heard.open = false;
        result
    }

    /// The rows of `path` that carry `mark`, with the properties `props`, if they are known: see
    /// [`known`]. What is not among them may be there nevertheless.
    pub(crate) fn known(
        self: &Arc<Self>,
        path: &str,
        mark: (&str, &str),
        props: &[String],
    ) -> Vec<Row> {
        if !self.know_rows {
            return Vec::new();
        }
        let (now, ended) = (clock::tick_ms(), self.pool.ended());
        let found = self.known.find(path, mark, props, now, ended);
        self.read_soon(path, mark.0, found.read);
        found.rows
    }

    /// Somebody looks for such rows: of a busy menu all are read.
    pub(crate) fn looked(self: &Arc<Self>, path: &str, mark: &str, props: &[String]) {
        if self.know_rows {
            let (now, ended) = (clock::tick_ms(), self.pool.ended());
            let props = self.known.looked(path, mark, props, now, ended);
            self.read_soon(path, mark, props);
        }
    }

    /// These rows of ours were found by a look.
    pub(crate) fn seen(&self, path: &str, mark: &str, rows: &[Row]) {
        self.known.seen(path, mark, rows, clock::tick_ms());
    }

    /// Lets go of rows that are no longer believed.
    pub(crate) fn forget(&self) {
        self.known.forget(clock::tick_ms(), self.pool.ended());
    }

    /// Beside the event that asked: a large table takes its time.
    fn read_soon(self: &Arc<Self>, path: &str, mark: &str, props: Option<Vec<String>>) {
        let Some(props) = props else { return };
        let (router, path, mark) = (Arc::clone(self), path.to_owned(), mark.to_owned());
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move { router.read_known(&path, &mark, props).await });
    }

    async fn read_known(&self, path: &str, mark: &str, proplist: Vec<String>) {
        let print = Command {
            path: format!("{path}/print"),
            proplist,
            ..Command::default()
        };
        let began = clock::tick_ms();
        let rows = self.talk(&print, READ_TIME).await.map(|reply| reply.rows);
        let now = clock::tick_ms();
        let ms = now.saturating_sub(began);
        match &rows {
            Ok(rows) => tracing::debug!("read {} rows of {path} in {ms} ms", rows.len()),
            Err(failure) => tracing::debug!("the rows of {path} are not read at once: {failure}"),
        }
        self.known
            .read(path, mark, rows.ok(), now, self.pool.ended());
    }

    async fn told(&self, command: &Command, deadline: Duration) -> Result<Reply, Failure> {
        if let Some(failure) = &self.broken {
            return Err(failure.clone());
        }
        let words = command.encoded().map_err(Failure::permanent)?;
        let start = clock::tick_ms();
        let left = || {
            let gone = Duration::from_millis(clock::tick_ms().saturating_sub(start));
            deadline.saturating_sub(gone)
        };
        // A row's `.id` is true of the router that told it; behind the next connection may be another.
        let of_row = command.args.iter().any(|(key, _)| key == ".id");
        let ended = self.pool.ended();
        let mut why = String::new();
        for n in 0..=MOVES {
            if n > 0 && of_row && self.pool.ended() != ended {
                break;
            }
            let acquired = timeout(left(), self.pool.acquire(&self.tasks)).await;
            let (slot, opened) = match acquired {
                Ok(acquired) => acquired?,
                Err(_) => return Err(self.pool.waited_in_vain(deadline)),
            };
            match slot.talk(&words, left()).await {
                Ended::Reply(mut reply) => {
                    reply.new_session = opened;
                    return Ok(reply);
                }
                Ended::Failed(failure) => return Err(failure),
                Ended::NotSent(text) => why = text,
            }
        }
        Err(Failure::transport(format!("not sent: {why}")))
    }

    /// The version of RouterOS, `7.16.2`; empty if the router does not tell it to this login.
    /// Asked once for the sessions that are open, and again when they had to be opened anew: an
    /// upgrade ends them all. Fails only where any command would.
    pub async fn version(&self, deadline: Duration) -> Result<String, Failure> {
        let mut known = self.version.lock().await;
        if let Some((opened, version)) = &*known
            && self.report().connections > 0
            && *opened == self.pool.opened()
        {
            return Ok(version.clone());
        }
        let command = Command {
            path: "/system/resource/print".to_owned(),
            proplist: vec!["version".to_owned()],
            ..Command::default()
        };
        let version = match self.talk(&command, deadline).await {
            Ok(reply) => {
                let told = reply.rows.first().and_then(|row| row.get("version"));
                let word = told.and_then(|text| text.split_whitespace().next());
                word.unwrap_or_default().to_owned()
            }
            Err(failure) => match (failure.scope, failure.class) {
                (Scope::Event, FailureClass::Refused | FailureClass::Permanent) => String::new(),
                _ => return Err(failure),
            },
        };
        *known = Some((self.pool.opened(), version.clone()));
        Ok(version)
    }

    /// Logins so far.
    pub fn logins(&self) -> u64 {
        self.pool.opened()
    }

    /// Why the last connection could not be opened, if none was opened since.
    pub fn last_error(&self) -> Option<String> {
        self.pool.last_error()
    }

    /// Connections and commands in flight now.
    pub fn report(&self) -> Report {
        self.pool.report()
    }
}

/// A command under way: who gives up waiting for its answer does not know what it has changed.
struct Heard<'a> {
    known: &'a Known,
    command: &'a Command,
    open: bool,
}

impl Drop for Heard<'_> {
    fn drop(&mut self) {
        if self.open {
            let nobody = Failure::timeout("nobody waited for the answer".to_owned());
            let now = clock::tick_ms();
            self.known.heard(self.command, Err(&nobody), now);
        }
    }
}
