//! A strict simulator of the RouterOS API server: what RouterOS refuses, it refuses, and it
//! can be slow, forgetful and rude on demand. `tests/peers_routeros.rs` proves its wire
//! format with clients that others wrote.

mod catalogue;
pub mod console;
mod login;
mod query;
mod tables;
mod talk;
mod values;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::clock;
use crate::driver::Row;
use crate::driver::mikrotik::wire::{self, Bounds};
use crate::sim::Identity;
use crate::sim::mikrotik::catalogue::Menu;
use crate::sim::mikrotik::query::Query;
use crate::sim::mikrotik::tables::{Tables, Trap};
use crate::sim::running::{Inside, Running, cannot_listen, journal, locked, may_listen};

/// Connections served at once; RouterOS itself allows fewer.
const CONNECTIONS_MAX: usize = 1_000;
/// Waiting connections of the listener, as in the kernel's default.
const BACKLOG: u32 = 128;

/// How the simulator is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address; port 0 = chosen by the system.
    pub listen: SocketAddr,
    /// Without it only loopback addresses are accepted: the password is a toy.
    pub allow_public: bool,
    /// Account that may log in.
    pub login: String,
    /// Its password.
    pub password: String,
    /// Login by challenge, as before RouterOS 6.43.
    pub old_login: bool,
    /// `/system/resource/print`; from 7.18 on an empty print is answered with `!empty`.
    pub version: String,
    /// `/system/identity/print`.
    pub identity: String,
    /// Longest accepted word, bytes.
    pub word_max: usize,
    /// Every state-changing sentence is appended here before its `!done`.
    pub journal: Option<PathBuf>,
    /// With it TLS is spoken, as the service `api-ssl` does, and nothing else.
    pub tls: Option<Identity>,
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
            old_login: false,
            version: "7.16.2 (stable)".to_owned(),
            identity: "simulated".to_owned(),
            word_max: 4 * 1024 * 1024,
            journal: None,
            tls: None,
            faults: Faults::default(),
        }
    }
}

/// How the simulator misbehaves; can be changed while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Before each sentence is carried out, ms.
    pub latency_ms: u64,
    /// For each printed row, ms.
    pub row_latency_ms: u64,
    /// Before a login is answered, ms.
    pub login_latency_ms: u64,
    /// Logged-in sessions at once.
    pub session_limit: Option<usize>,
    /// Every n-th login is refused.
    pub refuse_every: Option<u64>,
    /// Every login is refused.
    pub refuse_logins: bool,
    /// Nothing listens.
    pub refuse_connections: bool,
    /// Each connection breaks in the middle of the reply to its n-th sentence after login.
    pub drop_after: Option<u64>,
    /// Instead of breaking, `drop_after` ends in `!fatal` with this text.
    pub fatal: Option<String>,
    /// `.tag` as the last word of replies instead of the second.
    pub tag_last: bool,
    /// `/cancel` is counted and otherwise ignored.
    pub deaf_to_cancel: bool,
    /// Addresses that `/ping` does not reach.
    pub unreachable: Vec<String>,
    /// `/system/resource/print` tells this version, as after an upgrade.
    pub version: Option<String>,
}

/// What the simulator has seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Accepted TCP connections.
    pub connections: u64,
    /// Successful logins.
    pub logins: u64,
    /// Refused logins, the session limit included.
    pub logins_refused: u64,
    /// Sentences after login, `/cancel` included.
    pub sentences: u64,
    /// `/cancel` sentences.
    pub cancels: u64,
    /// Commands that ended by `/cancel`.
    pub interrupted: u64,
    /// State-changing sentences that were carried out.
    pub changes: u64,
    /// Commands that run now.
    pub running: u64,
    /// Most commands that ran at once.
    pub running_peak: u64,
    /// Sessions logged in now.
    pub sessions: usize,
    /// Most sessions at once.
    pub sessions_peak: usize,
}

/// A running simulator; it ends when dropped.
pub type Sim = Running<Router, Faults, Seen>;

type State = Inside<Router, Faults, Seen>;

/// What a simulated router has of its own.
pub struct Router {
    options: Options,
    bounds: Bounds,
    tables: Mutex<Tables>,
    /// Counts logins for `refuse_every`.
    attempts: Mutex<u64>,
}

impl Sim {
    /// Binds and serves. Fails if the address is taken, is not loopback without
    /// `allow_public`, or the journal cannot be opened. Needs a tokio runtime around it.
    pub fn start(options: Options) -> io::Result<Self> {
        may_listen(options.listen, options.allow_public)?;
        let journal = journal(options.journal.as_ref())?;
        let tls = options.tls.as_ref().map(Identity::acceptor).transpose()?;
        let (addr, port) = reserve(options.listen)?;
        let listener = listen(addr)?;
        let bounds = Bounds {
            word: options.word_max,
            words: Bounds::DRIVER.words,
            sentence: options.word_max.saturating_mul(2),
        };
        let faults = options.faults.clone();
        let router = Router {
            bounds,
            tables: Mutex::default(),
            attempts: Mutex::default(),
            options,
        };
        let mut sim = Self::new(router, faults, journal, addr);
        let state = Arc::clone(&sim.state);
        sim.tasks.spawn(accept(state, listener, addr, port, tls));
        Ok(sim)
    }

    /// The rows of one menu, `.id` included; empty for an unknown menu.
    pub fn rows(&self, path: &str) -> Vec<Row> {
        let Some(menu) = Menu::find(path) else {
            return Vec::new();
        };
        let printed =
            locked(&self.state.tables).print(menu, &Query::default(), &[], clock::tick_ms());
        let row = |r: Vec<(String, Vec<u8>)>| r.into_iter().map(|(k, v)| (k, wire::text(&v)));
        printed.into_iter().map(|r| row(r).collect()).collect()
    }

    /// Replaces the whole state by `{"/path": [{"property": "value"}]}`. Values may be in any
    /// form that RouterOS takes. Nothing changes on an error.
    pub fn load(&self, state: &Value) -> Result<(), String> {
        self.state.load(state)
    }

    /// The whole state in the form that [`Self::load`] takes.
    pub fn dump(&self) -> Value {
        self.state.dump()
    }
}

/// A socket that is bound and never listens: while connections are refused, the system gives
/// the port to nobody else. `SO_REUSEADDR` on both lets another socket listen there.
fn reserve(addr: SocketAddr) -> io::Result<(SocketAddr, TcpSocket)> {
    let socket = bind(addr)?;
    Ok((socket.local_addr()?, socket))
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    bind(addr)?
        .listen(BACKLOG)
        .map_err(|e| cannot_listen(addr, &e))
}

fn bind(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr).map_err(|e| cannot_listen(addr, &e))?;
    Ok(socket)
}

async fn accept(
    state: Arc<State>,
    listener: TcpListener,
    addr: SocketAddr,
    _port: TcpSocket,
    tls: Option<TlsAcceptor>,
) {
    let mut faults = state.faults.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        let refuse = faults.borrow_and_update().refuse_connections;
        if refuse {
            listener = None;
            connections.abort_all();
        } else if listener.is_none() {
            listener = listen(addr).ok();
        }
        tokio::select! {
            changed = faults.changed() => if changed.is_err() { return },
            accepted = next(listener.as_ref()), if connections.len() < CONNECTIONS_MAX => {
                if let Ok((stream, _)) = accepted {
                    state.see(|seen| seen.connections += 1);
                    let (state, tls) = (Arc::clone(&state), tls.clone());
                    connections.spawn(async move {
                        // Only slower without it.
                        let _ = stream.set_nodelay(true);
                        match tls {
                            None => talk::serve(state, stream).await,
                            Some(tls) => {
                                // A client that does not trust us goes away.
                                if let Ok(stream) = tls.accept(stream).await {
                                    talk::serve(state, stream).await;
                                }
                            }
                        }
                    });
                } else {
                    // Out of descriptors; the next turn may work.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn next(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

impl State {
    fn load(&self, state: &Value) -> Result<(), String> {
        let object = state
            .as_object()
            .ok_or("expected an object of menus, each a list of rows")?;
        locked(&self.tables).load(object, clock::tick_ms())
    }

    fn dump(&self) -> Value {
        Value::Object(locked(&self.tables).dump(clock::tick_ms()))
    }

    /// Carries out one state-changing sentence and journals it, in one critical section: the
    /// order of the journal is the order of the changes.
    fn change(
        &self,
        menu: &'static Menu,
        verb: &str,
        args: &[(String, Vec<u8>)],
        at_us: i64,
    ) -> Result<Option<String>, Trap> {
        let mut tables = locked(&self.tables);
        let result = tables.change(menu, verb, args, clock::tick_ms());
        let args: Map<String, Value> = args
            .iter()
            .map(|(k, v)| (k.clone(), Value::String(wire::text(v))))
            .collect();
        let (rows, trap): (Vec<_>, _) = match &result {
            Ok(change) => (change.rows.iter().map(tables::json).collect(), None),
            Err(trap) => (Vec::new(), Some(&trap.message)),
        };
        let record = json!({
            "at_us": at_us,
            "path": format!("{}/{verb}", menu.path),
            "args": args,
            "rows": rows,
            "trap": trap,
            "done_at_us": clock::wall_us(),
        });
        self.note(&record)
            .map_err(|e| Trap::failure(format!("failure: journal: {e}")))?;
        if result.is_ok() {
            self.see(|seen| seen.changes += 1);
        }
        result.map(|change| change.ret)
    }
}
