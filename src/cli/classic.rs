//! What the helper commands of scripts have in common: the original's exit codes and error
//! line, the settings of a NAS from the database, and the ride on the daemon's sessions.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::exit::{self, remark};
use super::table::one_line;
use super::{Console, nas};
use crate::attempt::{Failure, WAIT_MAX};
use crate::driver::Reply;
use crate::nas::{Nas, NasId, NasSecret};
use crate::scheme::ride::words::{Ask, TIMEOUT_MAX_MS, TOLD_MAX, To, Told, What, failure};
use crate::scheme::ride::{self, SOCKET};

/// Exit code: another refusal.
pub const REFUSED: u8 = 1;
/// Exit code: wrong parameters.
pub const PARAMETER: u8 = 249;
/// Exit code: try again later.
pub const LATER: u8 = 254;
/// For TCP connect and login, each, unless the time-out is shorter.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The daemon answers this much later than the time-out at most; then it is not there any more.
const GRACE: Duration = Duration::from_secs(10);
/// The script's token.
const ATTEMPT: &str = "NED_ATTEMPT";

/// What went wrong, in the original's words.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `ConnectionError` and so on.
    pub kind: &'static str,
    /// Why.
    pub message: String,
    /// The command, without secrets.
    pub command: String,
    /// Exit code.
    pub code: u8,
}

impl Refusal {
    /// Wrong parameters.
    pub fn parameter(message: impl Into<String>, command: &str) -> Self {
        Self {
            kind: "UnknownParameter",
            message: message.into(),
            command: command.to_owned(),
            code: PARAMETER,
        }
    }

    /// Settings or database.
    pub fn settings(failed: exit::Failed, command: &str) -> Self {
        Self {
            kind: "Settings",
            message: failed.text,
            command: command.to_owned(),
            code: match failed.code {
                exit::NOT_REACHABLE => LATER,
                exit::NOT_FOUND => PARAMETER,
                _ => REFUSED,
            },
        }
    }
}

/// A runtime for one command: a script may call hundreds, so it has no threads of its own.
pub fn runtime() -> Result<tokio::runtime::Runtime, exit::Failed> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| exit::Failed::new(exit::FAILED, format!("cannot start the runtime: {e}")))
}

/// One command by its own name: its words read, `send` run; the exit code.
pub fn by_name<A: clap::Parser>(
    args: Vec<OsString>,
    send: impl AsyncFnOnce(A) -> Result<u8, Refusal>,
) -> u8 {
    if let Some(flag) = misplaced(&A::command(), &args) {
        let text = format!("{flag} stands where the words of -s are expected; put it before -s");
        return told(Refusal::parameter(text, ""));
    }
    let args = match A::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { PARAMETER } else { 0 };
        }
    };
    let sent = match runtime() {
        Ok(runtime) => runtime.block_on(send(args)),
        Err(failed) => Err(Refusal::settings(failed, "")),
    };
    sent.unwrap_or_else(told)
}

/// A flag of ours among the words of `-s`: it would be taken for a login, and what follows, the
/// password, for a part of the command.
fn misplaced(command: &clap::Command, args: &[OsString]) -> Option<String> {
    let to = command
        .get_arguments()
        .find(|arg| arg.get_short() == Some('s'))?;
    let words = to.get_num_args()?.max_values();
    let at = args.iter().position(|word| word == "-s")?;
    // Where the address comes from the database, it is a word of the command.
    if args.iter().take(at).any(|word| word == "--nas") {
        return None;
    }
    let flags: Vec<&str> = command
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .collect();
    let is_ours = |word: &&str| {
        let name = word
            .strip_prefix("--")
            .and_then(|word| word.split('=').next());
        name.is_some_and(|name| flags.contains(&name))
    };
    let words = args
        .iter()
        .skip(at + 1)
        .take(words)
        .filter_map(|word| word.to_str());
    let flag = words
        .filter(is_ours)
        .map(|word| word.split('=').next().unwrap_or_default());
    flag.map(str::to_owned).next()
}

/// Says what went wrong, as the original does; the exit code.
fn told(refusal: Refusal) -> u8 {
    remark(format!(
        "ERROR: {} message: '{}', command: '{}' exit code: {}",
        refusal.kind,
        one_line(&refusal.message),
        one_line(&refusal.command),
        refusal.code
    ));
    refusal.code
}

/// Address and credentials of a NAS, from the database.
pub async fn from_database(
    config: Option<PathBuf>,
    id: NasId,
) -> Result<(Nas, NasSecret), exit::Failed> {
    let console = Console {
        file: config,
        ..Console::default()
    };
    let config = console.config()?;
    let store = console.store(&config).await?;
    let row = nas::find(store.as_ref(), id)
        .await?
        .map_err(|bad| exit::Failed::skipped(id, bad.reason))?;
    let secret = store.secret(id).await?;
    Ok((row, secret))
}

/// The flags of TLS in the form in which `nas.vars` says the same.
pub fn tls_vars(ca: Option<&Path>, pin: Option<&str>, insecure: bool) -> Map<String, Value> {
    let mut vars = Map::new();
    if let Some(ca) = ca {
        // A relative path is meant from here.
        let ca = std::path::absolute(ca).unwrap_or_else(|_| ca.to_owned());
        vars.insert("tls_ca".to_owned(), ca.display().to_string().into());
    }
    if let Some(pin) = pin {
        vars.insert("tls_pin".to_owned(), pin.into());
    }
    if insecure {
        vars.insert("tls_insecure".to_owned(), true.into());
    }
    vars
}

/// A ride on the sessions of the daemon whose script this is.
pub struct Ride {
    token: String,
    to: To,
    stream: BufReader<UnixStream>,
}

/// What a ride gave.
pub enum Ridden {
    /// The device's answer, or why there is none.
    Answer(Result<Reply, Failure>),
    /// Observe mode: nothing was sent.
    Recorded,
    /// The daemon does not speak so to this NAS: connect by yourself.
    ByYourself,
}

impl Ride {
    /// Inside a script of the daemon, its socket; none elsewhere. A script whose daemon cannot
    /// be found connects by itself.
    pub async fn find(config: Option<PathBuf>, to: To) -> Option<Self> {
        let token = std::env::var(ATTEMPT).ok().filter(|t| !t.is_empty())?;
        for path in places(config) {
            if let Ok(stream) = UnixStream::connect(&path).await {
                return Some(Self {
                    token,
                    to,
                    stream: BufReader::new(stream),
                });
            }
        }
        None
    }

    /// Sends one command; the error is a whole sentence.
    pub async fn talk(&mut self, what: What, limit: Duration) -> Result<Ridden, String> {
        let ask = Ask {
            token: self.token.clone(),
            to: self.to.clone(),
            timeout_ms: u64::try_from(limit.as_millis())
                .unwrap_or(TIMEOUT_MAX_MS)
                .min(TIMEOUT_MAX_MS),
            what,
        };
        let mut line = serde_json::to_vec(&ask).map_err(|e| e.to_string())?;
        line.push(b'\n');
        let talk = async {
            self.stream.write_all(&line).await?;
            let mut told = Vec::new();
            let mut bounded = (&mut self.stream).take(TOLD_MAX as u64 + 1);
            bounded.read_until(b'\n', &mut told).await?;
            Ok::<_, std::io::Error>(told)
        };
        let lost = |why: String| {
            Ok(Ridden::Answer(Err(Failure::timeout(format!(
                "the daemon gave no answer over {SOCKET}: {why}; the command may have been carried out"
            )))))
        };
        // The daemon bounds the answer, and the wait for its turn before that.
        let told = match timeout(limit + WAIT_MAX + GRACE, talk).await {
            Ok(Ok(told)) => told,
            Ok(Err(e)) => return lost(e.to_string()),
            Err(_) => return lost("it is late".to_owned()),
        };
        match serde_json::from_slice(&told) {
            Ok(Told::Done {
                rows,
                ret,
                text,
                code,
            }) => Ok(Ridden::Answer(Ok(Reply {
                rows,
                ret,
                text,
                code,
                ..Reply::default()
            }))),
            Ok(Told::Failed {
                nas,
                class,
                code,
                text,
            }) => Ok(Ridden::Answer(Err(failure(nas, &class, code, text)))),
            Ok(Told::Recorded) => Ok(Ridden::Recorded),
            Ok(Told::ByYourself) => Ok(Ridden::ByYourself),
            Ok(Told::Refused { text }) => Err(text),
            Err(_) if told.is_empty() => lost("it closed the connection".to_owned()),
            Err(e) => lost(format!("not understood: {e}")),
        }
    }
}

/// Where the socket may be: the helper itself lies in `<run>/bin`, which is on the script's
/// `PATH`; else as the configuration says.
fn places(config: Option<PathBuf>) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = near(SOCKET).collect();
    if !places.is_empty() {
        return places;
    }
    let console = Console {
        file: config,
        ..Console::default()
    };
    if let Ok(config) = console.config() {
        places.push(config.paths.run.join(SOCKET));
    }
    places
}

/// What has this name in the `run` directory of the daemon whose script this is: its `bin` stands
/// in front of the script's PATH.
fn near(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let dirs = dirs.into_iter();
    let ours =
        dirs.filter(|dir| dir.ends_with("bin") && dir.join("send_mikrotik_cmd").is_symlink());
    ours.filter_map(move |dir| Some(dir.parent()?.join(name)))
        .filter(|found| found.exists())
}

/// Inside a script of a daemon, that daemon's configuration.
pub fn configuration() -> Option<PathBuf> {
    std::env::var_os(ATTEMPT)?;
    near(ride::CONFIG).next()
}
