//! A simulated SSH server: real key exchange and logins (russh), commands answered from a table,
//! faults on demand. For the demo, for tests of schemes without a router, and for what a real
//! server will not do: break in the middle, trickle, change its key.

pub mod console;
mod talk;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use regex::Regex;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, PublicKey};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::sim::running::{Inside, Running, cannot_listen, journal, may_listen};

/// How the simulator is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address; port 0 = chosen by the system.
    pub listen: SocketAddr,
    /// Without it only loopback addresses are accepted: the password is a toy.
    pub allow_public: bool,
    /// Account that may log in.
    pub login: String,
    /// Its password, for `password` and `keyboard-interactive`; empty = neither.
    pub password: String,
    /// The password only by `keyboard-interactive`, as with some PAM set-ups.
    pub interactive_only: bool,
    /// Its public key, an OpenSSH line; none = no login by key.
    pub authorized: Option<String>,
    /// What commands answer; the first that fits counts.
    pub answers: Vec<Answer>,
    /// Every command is appended here with its batch before it is answered.
    pub journal: Option<PathBuf>,
    /// Behaviour from the start on.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            allow_public: false,
            login: "admin".to_owned(),
            password: String::new(),
            interactive_only: false,
            authorized: None,
            answers: Vec::new(),
            journal: None,
            faults: Faults::default(),
        }
    }
}

/// One line of the table of answers. What fits none is answered with nothing and status 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    /// Regular expression over the command line and, after a line break, its batch.
    pub like: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit status.
    pub status: u32,
    /// Before it is given, ms.
    pub delay_ms: u64,
}

/// How the simulator misbehaves; can be changed while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Before each command is answered, ms.
    pub latency_ms: u64,
    /// Sessions open on one connection at once; further ones are refused.
    pub session_limit: Option<usize>,
    /// Every login is refused.
    pub refuse_logins: bool,
    /// Each connection breaks in the middle of the answer to its n-th command.
    pub drop_after: Option<u64>,
    /// One byte of the answer at a time, each after so many ms.
    pub trickle_ms: Option<u64>,
    /// Answers never end.
    pub endless: bool,
    /// Commands are taken and never answered.
    pub silent: bool,
    /// No exit status is sent, as some network devices do.
    pub no_status: bool,
    /// Commands are refused: there is an interactive shell only.
    pub no_exec: bool,
    /// Shows its n-th host key to new connections.
    pub host_key: u8,
}

/// What the simulator has seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Accepted TCP connections.
    pub connections: u64,
    /// Successful logins.
    pub logins: u64,
    /// Refused logins.
    pub logins_refused: u64,
    /// Sessions refused for the limit.
    pub sessions_refused: u64,
    /// Commands that were asked for.
    pub commands: u64,
    /// Commands that run now.
    pub running: u64,
    /// Most commands that ran at once.
    pub running_peak: u64,
    /// Commands that the other side ended by a signal.
    pub killed: u64,
}

/// A running simulator; it ends when dropped.
pub type Sim = Running<Server, Faults, Seen>;

type State = Inside<Server, Faults, Seen>;

/// What a simulated server has of its own.
pub struct Server {
    options: Options,
    authorized: Option<PublicKey>,
    answers: Vec<(Regex, Answer)>,
    /// Seed of the host keys, so that each simulator has its own.
    seed: [u8; 32],
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

impl Sim {
    /// Binds and serves. Fails if the address is taken or not loopback without `allow_public`,
    /// an answer's expression or the authorized key cannot be read, or the journal cannot be
    /// opened. Needs a tokio runtime around it.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listen = options.listen;
        may_listen(listen, options.allow_public)?;
        let authorized =
            match &options.authorized {
                None => None,
                Some(line) => Some(PublicKey::from_openssh(line.trim()).map_err(|e| {
                    invalid(format!("the authorized key is no public key line: {e}"))
                })?),
            };
        let mut answers = Vec::new();
        for answer in &options.answers {
            let like = Regex::new(&format!("(?s){}", answer.like))
                .map_err(|e| invalid(format!("answer {:?}: {e}", answer.like)))?;
            answers.push((like, answer.clone()));
        }
        let journal = journal(options.journal.as_ref())?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| io::Error::other(e.to_string()))?;
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|e| cannot_listen(listen, &e))?;
        let addr = listener.local_addr()?;
        let faults = options.faults.clone();
        let server = Server {
            authorized,
            answers,
            seed,
            options,
        };
        let mut sim = Self::new(server, faults, journal, addr);
        sim.tasks
            .spawn(talk::accept(Arc::clone(&sim.state), listener));
        Ok(sim)
    }

    /// The host key that new connections are shown, an OpenSSH line.
    pub fn host_key(&self) -> String {
        let key = self.state.host_key();
        key.public_key().to_openssh().unwrap_or_default()
    }
}

impl State {
    fn host_key(&self) -> PrivateKey {
        let mut seed = self.seed;
        if let Some(last) = seed.last_mut() {
            *last = last.wrapping_add(self.faults.borrow().host_key);
        }
        PrivateKey::from(Ed25519Keypair::from_seed(&seed))
    }
}
