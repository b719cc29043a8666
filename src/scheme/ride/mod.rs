//! Scripts ride on our sessions: inside a script `send_mikrotik_cmd` and its sisters speak to
//! `<run>/session.sock` instead of logging in by themselves. Each attempt has a random token,
//! which reaches that attempt's NAS alone and is dead when the attempt has ended. What is sent
//! and answered goes into the attempt's transcript.

pub mod words;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::native::logged;
use crate::attempt::{Failure, Job, LineKind, WAIT_MAX};
use crate::clock;
use crate::driver::dialogue::Manners;
use crate::driver::radius::dictionary::{self, Dictionary};
use crate::driver::sessions::Sessions;
use crate::driver::waits::Waits;
use crate::driver::{Reply, http, mikrotik, radius, ssh, telnet};
use crate::nas::{Nas, NasSecret};
use words::{ASK_MAX, Ask, To, Told, What};

/// Names under which this binary is a helper of scripts (design of the command line).
pub const HELPERS: [&str; 8] = [
    "send_mikrotik_cmd",
    "send_ssh_cmd",
    "ssh_send",
    "send_telnet_cmd",
    "send_radius_cmd",
    "send_http_cmd",
    "sqlexec",
    "event_count.sh",
];
/// Name of the socket below `paths.run`.
pub const SOCKET: &str = "session.sock";
/// Name of the directory with the helpers below `paths.run`.
const BIN: &str = "bin";
/// Connections at once, of all scripts; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 512;
/// Commands of one attempt at once: a script that starts helpers in the background.
const AT_ONCE: usize = 16;
/// A helper that says nothing, or takes nothing, for so long is let go.
const IDLE: Duration = Duration::from_secs(10);
/// Lines on their way to the transcript.
const LINES: usize = 64;
/// Pause after a failed accept (no descriptors left): others may close one meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Nobody but the daemon's user (as whom scripts run) and root may connect.
const MODE: u32 = 0o600;

/// A line for the transcript.
pub type Line = (LineKind, String);

/// The attempts that may ride now.
pub struct Rides {
    sessions: Arc<Sessions>,
    bin: PathBuf,
    open: Mutex<BTreeMap<String, Arc<Rider>>>,
}

struct Rider {
    nas: Arc<Nas>,
    secret: Arc<NasSecret>,
    /// Observe mode: noted, not sent.
    record: bool,
    /// Folder of the operator's own dictionaries, which need not exist.
    dictionaries: Option<PathBuf>,
    /// Monotonic ms at which the attempt ends, if it need not wait for its turn.
    until_ms: u64,
    waits: Arc<Waits>,
    lines: mpsc::Sender<Line>,
    places: Semaphore,
    gone: CancellationToken,
}

/// One attempt's right to ride; dropping it ends the right and what is under way.
pub struct Ride {
    rides: Arc<Rides>,
    token: String,
    gone: CancellationToken,
    /// What was sent and answered.
    pub lines: mpsc::Receiver<Line>,
    /// Time that does not count against the attempt's deadline.
    pub waits: Arc<Waits>,
}

impl Drop for Ride {
    fn drop(&mut self) {
        self.gone.cancel();
        self.rides.open().remove(&self.token);
    }
}

impl Rides {
    /// `run` is `paths.run`; the helpers are found in `<run>/bin`.
    pub fn new(sessions: Arc<Sessions>, run: &Path) -> Arc<Self> {
        Arc::new(Self {
            sessions,
            bin: run.join(BIN),
            open: Mutex::default(),
        })
    }

    /// Directory of the helpers, for the `PATH` of scripts.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Lets the attempt of `job` ride under `token` until the ride is dropped. `scheme`: its
    /// directory, whose dictionaries count.
    pub fn begin(
        self: &Arc<Self>,
        token: &str,
        job: &Job,
        record: bool,
        scheme: Option<&Path>,
    ) -> Ride {
        let (sender, lines) = mpsc::channel(LINES);
        let gone = CancellationToken::new();
        let waits = Arc::new(Waits::up_to(WAIT_MAX));
        let deadline = u64::try_from(job.deadline.as_millis()).unwrap_or(u64::MAX);
        let rider = Rider {
            nas: Arc::clone(&job.nas),
            secret: Arc::clone(&job.secret),
            record,
            dictionaries: scheme.map(|dir| dir.join(dictionary::FOLDER)),
            until_ms: clock::tick_ms().saturating_add(deadline),
            waits: Arc::clone(&waits),
            lines: sender,
            places: Semaphore::new(AT_ONCE),
            gone: gone.clone(),
        };
        self.open().insert(token.to_owned(), Arc::new(rider));
        Ride {
            rides: Arc::clone(self),
            token: token.to_owned(),
            gone,
            lines,
            waits,
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Rider>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves helpers until `stop`.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut open = JoinSet::new();
        loop {
            while open.try_join_next().is_some() {}
            let next = async {
                // Never closed.
                let place = Arc::clone(&places).acquire_owned().await.ok();
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = stop.cancelled() => return,
                next = next => next,
            };
            match accepted {
                Ok((stream, _)) if is_ours(&stream) => {
                    let rides = Arc::clone(&self);
                    open.spawn(async move {
                        rides.connection(stream).await;
                        drop(place);
                    });
                }
                Ok(_) => tracing::warn!("session.sock: a process of another user was refused"),
                Err(error) => {
                    tracing::warn!(%error, "session.sock: cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, stream: UnixStream) {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut bounded = (&mut reader).take(ASK_MAX as u64);
            let read = timeout(IDLE, bounded.read_until(b'\n', &mut line)).await;
            if !matches!(read, Ok(Ok(n)) if n > 0) {
                return;
            }
            let whole = line.pop() == Some(b'\n');
            let told = if whole {
                self.answer(&line).await
            } else {
                Told::Refused {
                    text: format!("a line that does not end, or has more than {ASK_MAX} bytes"),
                }
            };
            let sent = timeout(IDLE, writer.write_all(&told.line())).await;
            if !whole || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }

    async fn answer(&self, line: &[u8]) -> Told {
        let refused = |text: String| Told::Refused { text };
        let ask = match words::ask(line) {
            Ok(ask) => ask,
            Err(why) => return refused(why),
        };
        let Some(rider) = self.open().get(&ask.token).map(Arc::clone) else {
            return refused(
                "this attempt has ended, or NED_ATTEMPT is another daemon's; unset NED_ATTEMPT to \
                 connect by yourself"
                    .to_owned(),
            );
        };
        let gone = rider.gone.clone();
        tokio::select! {
            biased;
            () = gone.cancelled() => refused("the attempt has ended".to_owned()),
            told = self.carry(&rider, ask) => told,
        }
    }

    async fn carry(&self, rider: &Rider, ask: Ask) -> Told {
        match whom(&rider.nas, &rider.secret, &ask.to, &ask.what) {
            Whom::Ours => {}
            Whom::OursOtherwise => return Told::ByYourself,
            Whom::Other(named) => {
                return Told::Refused {
                    text: format!(
                        "this attempt is for NAS {} ({}), not for {named}; to speak to another \
                         device, unset NED_ATTEMPT before the command",
                        rider.nas.id, rider.nas.ip
                    ),
                };
            }
        }
        // Never closed; waiting ends with the attempt.
        let _place = rider.places.acquire().await;
        if !rider.record {
            let (n, most) = (ask.what.commands(), rider.waits.left());
            let paced = self.sessions.pace(&rider.nas, n, most, clock::tick_ms());
            let asleep = match paced {
                Ok(wait) if wait.is_zero() => true,
                Ok(wait) => rider.waits.during(tokio::time::sleep(wait)).await.is_some(),
                Err(_) => false,
            };
            if !asleep {
                let (Ok(wait) | Err(wait)) = paced;
                return Told::of(Err(Failure::transport(format!(
                    "nas.max_rate: the next command may go in {} ms only",
                    wait.as_millis()
                ))));
            }
        }
        let left = rider.left();
        let limit = Duration::from_millis(ask.timeout_ms).min(left);
        let waits = &*rider.waits;
        let nas = rider.nas.id;
        let result = match ask.what {
            What::Mikrotik {
                path,
                args,
                queries,
                proplist,
            } => {
                let command = mikrotik::Command {
                    path,
                    args,
                    queries,
                    proplist,
                };
                rider.note(LineKind::Command, command.pasteable(nas)).await;
                if rider.record {
                    return Told::Recorded;
                }
                let router = self.sessions.mikrotik(&rider.nas, &rider.secret);
                router.talk(&command, limit).await
            }
            What::Http {
                method,
                path,
                headers,
                json,
            } => {
                let request = http::Request {
                    method,
                    path,
                    headers,
                    json,
                };
                rider.note(LineKind::Command, request.pasteable(nas)).await;
                if rider.record {
                    return Told::Recorded;
                }
                let device = self.sessions.http(&rider.nas, &rider.secret);
                device.talk_in_turn(&request, waits, limit).await
            }
            What::Telnet { lines, expect } => {
                let command = telnet::Command { lines, expect };
                if let Err(why) = command.check() {
                    return Told::Refused { text: why };
                }
                rider.note(LineKind::Command, command.pasteable(nas)).await;
                if rider.record {
                    return Told::Recorded;
                }
                let vars = &rider.nas.vars;
                let manners = Manners::of(|name| Ok(vars.get(name).cloned()));
                let device = manners
                    .map_err(Failure::setting)
                    .and_then(|m| self.sessions.telnet(&rider.nas, &rider.secret, m));
                match device {
                    Ok(device) => device.talk_in_turn(&command, waits, limit).await,
                    Err(failure) => Err(failure),
                }
            }
            What::Ssh { line, stdin } => {
                let command = ssh::Command { line, stdin };
                if let Err(why) = command.check() {
                    return Told::Refused { text: why };
                }
                rider.note(LineKind::Command, command.pasteable(nas)).await;
                if rider.record {
                    return Told::Recorded;
                }
                let result = match self.sessions.ssh(&rider.nas, &rider.secret) {
                    Ok(ssh) => ssh.exec_in_turn(&command, waits, limit).await,
                    Err(failure) => Err(failure),
                };
                // The log has both outputs as a terminal shows them, the script has them apart.
                let shown = result.as_ref().map_err(Clone::clone).map(|output| Reply {
                    text: output.text(),
                    code: output.status,
                    ..Reply::default()
                });
                rider.note_result(&shown).await;
                return Told::of(result.map(Reply::from));
            }
            What::Radius { kind, attributes } => {
                return self.radius(rider, kind, &attributes, limit).await;
            }
        };
        rider.note_result(&result).await;
        Told::of(result)
    }

    /// A refusal of RADIUS has an answer, too.
    async fn radius(
        &self,
        rider: &Rider,
        kind: radius::Kind,
        attributes: &[(String, String)],
        limit: Duration,
    ) -> Told {
        let dictionary = match rider.dictionary().await {
            Ok(dictionary) => dictionary,
            Err(text) => return Told::of(Err(Failure::setting(text))),
        };
        let request = match radius::Request::new(kind, attributes, &dictionary) {
            Ok(request) => request,
            Err(text) => return Told::Refused { text },
        };
        let line = radius::pasteable(rider.nas.id, kind, attributes);
        rider.note(LineKind::Command, line).await;
        if rider.record {
            return Told::Recorded;
        }
        let nas = self.sessions.radius(&rider.nas, &rider.secret);
        let told = nas.talk(&request, &dictionary, limit).await;
        match (&told.failure, told.line.is_empty()) {
            (Some(failure), true) => rider.note(LineKind::Answer, failure.to_string()).await,
            (_, _) => rider.note(LineKind::Answer, told.line).await,
        }
        Told::of(told.failure.map_or(Ok(told.reply), Err))
    }
}

impl Rider {
    /// Of the attempt's time; what it waited for its turns does not count.
    fn left(&self) -> Duration {
        let ms = self.until_ms.saturating_sub(clock::tick_ms());
        let waited = self.waits.total();
        Duration::from_millis(ms).saturating_add(waited)
    }

    /// As it is now: a changed file counts from the next command on.
    async fn dictionary(&self) -> Result<Arc<Dictionary>, String> {
        let Some(folder) = self.dictionaries.clone() else {
            return Ok(Dictionary::shipped());
        };
        tokio::task::spawn_blocking(move || Dictionary::with_folder(&folder))
            .await
            .unwrap_or_else(|e| Err(format!("the dictionaries could not be read: {e}")))
    }

    async fn note(&self, kind: LineKind, text: String) {
        // Nobody listens any more: the attempt has ended, and with it what is being done here.
        let _ = self.lines.send((kind, text)).await;
    }

    async fn note_result(&self, result: &Result<Reply, Failure>) {
        match result {
            Ok(reply) => {
                for line in logged(reply) {
                    self.note(LineKind::Answer, line).await;
                }
            }
            Err(failure) => self.note(LineKind::Answer, failure.to_string()).await,
        }
    }
}

/// Whom a command is for.
#[derive(Debug, PartialEq, Eq)]
enum Whom {
    /// The attempt's NAS as the daemon speaks to it.
    Ours,
    /// The attempt's NAS by another login or port.
    OursOtherwise,
    /// Somebody else.
    Other(String),
}

fn whom(nas: &Nas, secret: &NasSecret, to: &To, what: &What) -> Whom {
    if let Some(id) = to.nas
        && id != nas.id.0
    {
        return Whom::Other(format!("NAS {id}"));
    }
    let (own_host, own_port) = match what {
        What::Mikrotik { .. } => (Some(nas.ip.as_str()), Sessions::api_port(nas)),
        What::Http { .. } => (nas.http_url.as_deref(), 0),
        What::Ssh { .. } => (Some(nas.ip.as_str()), Sessions::ssh_port(nas)),
        What::Telnet { .. } => (Some(nas.ip.as_str()), Sessions::telnet_port(nas)),
        What::Radius { .. } => (Some(nas.ip.as_str()), nas.coa_port.unwrap_or(radius::PORT)),
    };
    if let Some(host) = &to.host {
        let bare = |text: &str| text.trim_end_matches('/').to_ascii_lowercase();
        if own_host.map(bare) != Some(bare(host)) {
            return Whom::Other(host.chars().take(80).collect());
        }
    }
    let same_login = to.login.as_ref().is_none_or(|l| *l == secret.login);
    let same_port = to.port.is_none_or(|port| port == own_port);
    if same_login && same_port {
        Whom::Ours
    } else {
        Whom::OursOtherwise
    }
}

fn is_ours(stream: &UnixStream) -> bool {
    let me = nix::unistd::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == me || peer.uid() == 0)
}

/// Binds the socket in `run`, in place of one that a killed daemon left there. Call it only
/// while nobody else can be serving from this directory.
pub fn bind(run: &Path) -> io::Result<UnixListener> {
    let path = run.join(SOCKET);
    gone(&path)?;
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(MODE))?;
    Ok(listener)
}

/// Puts the helpers into `<run>/bin`: links to the binary that runs now.
pub fn link_helpers(run: &Path) -> io::Result<()> {
    let dir = run.join(BIN);
    std::fs::create_dir_all(&dir)?;
    let binary = std::env::current_exe()?;
    for name in HELPERS {
        let link = dir.join(name);
        if std::fs::read_link(&link).is_ok_and(|to| to == binary) {
            continue;
        }
        gone(&link)?;
        symlink(&binary, &link)?;
    }
    Ok(())
}

/// Name of the link to the daemon's configuration in `run`.
pub const CONFIG: &str = "nas_event_daemon.toml";

/// Says in `run` which configuration its daemon has, so that helpers in a script find the same
/// database; none = the default one.
pub fn link_config(run: &Path, file: Option<&Path>) -> io::Result<()> {
    let link = run.join(CONFIG);
    let Some(file) = file else {
        return gone(&link);
    };
    let fresh = run.join(format!(".{CONFIG}"));
    gone(&fresh)?;
    symlink(std::path::absolute(file)?, &fresh)?;
    std::fs::rename(fresh, link)
}

fn gone(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[path = "ride_test.rs"]
mod tests;
