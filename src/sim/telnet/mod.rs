//! A simulated router with a Cisco-like command line over telnet: login in pieces, `enable`, modes,
//! a pager, a running configuration that lines really change; faults on demand. For the demo,
//! for tests of schemes without a router, and for what a real one will not do.

pub mod console;
mod talk;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use regex::Regex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::sim::running::{Inside, Running, cannot_listen, journal, locked, may_listen};

/// Connections served at once; routers have a handful of lines.
const CONNECTIONS_MAX: usize = 200;

/// How the simulator is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address; port 0 = chosen by the system.
    pub listen: SocketAddr,
    /// Without it only loopback addresses are accepted: the password is a toy.
    pub allow_public: bool,
    /// Name in the prompt.
    pub hostname: String,
    /// Account that may log in; empty = only a password is asked for.
    pub login: String,
    /// Its password.
    pub password: String,
    /// Password of `enable`; empty = `enable` asks for none.
    pub enable_password: String,
    /// Said before the login.
    pub banner: String,
    /// Rows of a page, until `terminal length 0`; 0 = no pager.
    pub page: usize,
    /// What lines are answered beside the router's own commands, and before them: the first
    /// expression that fits counts.
    pub answers: Vec<(Regex, String)>,
    /// Lines that it does not know are answered with nothing, instead of "Invalid input".
    pub lenient: bool,
    /// Every line after the login is appended here before it is answered.
    pub journal: Option<PathBuf>,
    /// Behaviour from the start on.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            allow_public: false,
            hostname: "sim".to_owned(),
            login: "admin".to_owned(),
            password: String::new(),
            enable_password: String::new(),
            banner: "\r\nUser Access Verification\r\n\r\n".to_owned(),
            page: 24,
            answers: Vec::new(),
            lenient: false,
            journal: None,
            faults: Faults::default(),
        }
    }
}

/// How the simulator misbehaves; can be changed while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Before each line is answered, ms.
    pub latency_ms: u64,
    /// Sessions at once; further ones are told that all lines are in use.
    pub session_limit: Option<usize>,
    /// Every login is refused.
    pub refuse_logins: bool,
    /// Each connection breaks in the middle of the answer to its n-th line.
    pub drop_after: Option<u64>,
    /// One byte at a time, each after so many ms.
    pub trickle_ms: Option<u64>,
    /// Answers are binary garbage without end.
    pub garbage: bool,
    /// Lines are taken and never answered.
    pub silent: bool,
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
    /// Connections refused for the limit.
    pub sessions_refused: u64,
    /// Lines after the login, empty ones aside.
    pub lines: u64,
    /// Connections open now.
    pub sessions: usize,
    /// Most connections at once.
    pub sessions_peak: usize,
}

/// A running simulator; it ends when dropped.
pub type Sim = Running<Router, Faults, Seen>;

type State = Inside<Router, Faults, Seen>;

/// What a simulated router has of its own.
pub struct Router {
    options: Options,
    /// The running configuration, in the order in which its lines came.
    config: Mutex<Vec<String>>,
}

impl Sim {
    /// Binds and serves. Fails if the address is taken, or is not loopback without
    /// `allow_public`, or the journal cannot be opened.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listen = options.listen;
        may_listen(listen, options.allow_public)?;
        let journal = journal(options.journal.as_ref())?;
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|e| cannot_listen(listen, &e))?;
        let addr = listener.local_addr()?;
        let faults = options.faults.clone();
        let router = Router {
            config: Mutex::default(),
            options,
        };
        let mut sim = Self::new(router, faults, journal, addr);
        sim.tasks.spawn(accept(Arc::clone(&sim.state), listener));
        Ok(sim)
    }

    /// The running configuration.
    pub fn config(&self) -> Vec<String> {
        locked(&self.state.config).clone()
    }

    /// Replaces the running configuration.
    pub fn load(&self, lines: &[&str]) {
        *locked(&self.state.config) = lines.iter().map(|line| (*line).to_owned()).collect();
    }
}

async fn accept(state: Arc<State>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                if let Ok((stream, _)) = accepted {
                    // Echo and answer are small: each would wait for the other's ACK.
                    let _ = stream.set_nodelay(true);
                    state.see(|seen| seen.connections += 1);
                    connections.spawn(talk::serve(Arc::clone(&state), stream));
                }
            }
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}
