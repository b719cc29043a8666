//! A simulated HTTP device: a tree of JSON documents that GET, PUT, PATCH and DELETE work on,
//! and a list of what was POSTed, as a web hook takes it. A repeated `Idempotency-Key` changes
//! nothing. It asks for credentials, and is slow or refuses on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::clock;
use crate::sim::Identity;
use crate::sim::latency::latency;
use crate::sim::running::{Inside, Running, cannot_listen, journal, locked, may_listen};

/// Connections served at once.
const CONNECTIONS_MAX: usize = 1_000;
/// Requests remembered; the oldest go.
const TAKEN_MAX: usize = 10_000;
/// From the first byte of a connection to the end of the next header.
const HEADER_LIMIT: Duration = Duration::from_secs(60);

/// How the simulator is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address; port 0 = chosen by the system.
    pub listen: SocketAddr,
    /// Without it only loopback addresses are accepted: the password is a toy.
    pub allow_public: bool,
    /// `Authorization` that every request must carry; none = nobody is asked.
    pub authorization: Option<String>,
    /// With it HTTPS is spoken, and nothing else.
    pub tls: Option<Identity>,
    /// Every request is appended here before it is answered, one JSON object a line.
    pub journal: Option<PathBuf>,
    /// Behaviour from the start on.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            allow_public: false,
            authorization: None,
            tls: None,
            journal: None,
            faults: Faults::default(),
        }
    }
}

/// How the simulator misbehaves; can be changed while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Before each request is carried out, ms.
    pub latency_ms: u64,
    /// Every request is answered with this status and not carried out.
    pub status: Option<u16>,
    /// With a `status` of 3xx: where it leads.
    pub location: Option<String>,
}

/// What the simulator has seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Accepted connections.
    pub connections: u64,
    /// Requests, all of them.
    pub requests: u64,
    /// Requests without the right credentials.
    pub unauthorized: u64,
    /// Requests that changed something.
    pub changes: u64,
    /// POSTs whose `Idempotency-Key` was known.
    pub repeated: u64,
}

/// One request that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Fields, lower case; credentials are left out.
    pub headers: BTreeMap<String, String>,
    /// Body; null if there was none or it was not JSON.
    pub body: Value,
}

impl Taken {
    /// A line of the journal; `at_us`: when the request came.
    fn record(&self, at_us: i64) -> Value {
        json!({
            "at_us": at_us,
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "body": self.body,
        })
    }
}

/// A running simulator; it ends when dropped.
pub type Sim = Running<Device, Faults, Seen>;

type State = Inside<Device, Faults, Seen>;

/// What a simulated device has of its own.
pub struct Device {
    authorization: Option<String>,
    documents: Mutex<Documents>,
}

#[derive(Default)]
struct Documents {
    tree: BTreeMap<String, Value>,
    keys: BTreeSet<String>,
    taken: std::collections::VecDeque<Taken>,
}

impl Sim {
    /// Binds and serves. Fails if the address is taken, is not loopback without
    /// `allow_public`, or a file cannot be opened.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listen = options.listen;
        may_listen(listen, options.allow_public)?;
        let journal = journal(options.journal.as_ref())?;
        let acceptor = options.tls.as_ref().map(Identity::acceptor).transpose()?;
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|e| cannot_listen(listen, &e))?;
        let addr = listener.local_addr()?;
        let device = Device {
            authorization: options.authorization,
            documents: Mutex::default(),
        };
        let mut sim = Self::new(device, options.faults, journal, addr);
        sim.tasks
            .spawn(accept(Arc::clone(&sim.state), listener, acceptor));
        Ok(sim)
    }

    /// What was taken, oldest first.
    pub fn taken(&self) -> Vec<Taken> {
        locked(&self.state.documents)
            .taken
            .iter()
            .cloned()
            .collect()
    }

    /// The documents by path.
    pub fn documents(&self) -> BTreeMap<String, Value> {
        locked(&self.state.documents).tree.clone()
    }
}

async fn accept(state: Arc<State>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                let Ok((stream, _)) = accepted else {
                    // Out of descriptors; the next turn may work.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                state.see(|seen| seen.connections += 1);
                let (state, tls) = (Arc::clone(&state), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(state, stream).await,
                        Some(tls) => {
                            // A client that does not trust us is the point of some tests.
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(state, stream).await;
                            }
                        }
                    }
                });
            }
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve(state: Arc<State>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let router = Router::new().fallback(answer).with_state(state);
    let service = TowerToHyperService::new(router);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT);
    // A broken connection is the client's affair.
    let _ = builder
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    Shared(state): Shared<Arc<State>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let at_us = clock::wall_us();
    let faults = state.faults.borrow().clone();
    latency(faults.latency_ms).await;
    state.see(|seen| seen.requests += 1);
    let given = headers.get("authorization").and_then(|v| v.to_str().ok());
    if state.authorization.is_some() && given != state.authorization.as_deref() {
        state.see(|seen| seen.unauthorized += 1);
        return (
            StatusCode::UNAUTHORIZED,
            Json(json!({"error": "who are you?"})),
        )
            .into_response();
    }
    let taken = Taken {
        method: method.to_string(),
        path: uri.to_string(),
        headers: headers
            .iter()
            .filter(|(name, _)| *name != "authorization")
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.to_string(), value)
            })
            .collect(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    };
    if let Err(e) = state.note(&taken.record(at_us)) {
        let told = json!({"error": format!("journal: {e}")});
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(told)).into_response();
    }
    if let Some(status) = faults.status.and_then(|s| StatusCode::from_u16(s).ok()) {
        let told = Json(json!({"error": "as it was told to"}));
        return match &faults.location {
            Some(to) => (status, [("location", to.clone())], told).into_response(),
            None => (status, told).into_response(),
        };
    }
    let mut documents = locked(&state.documents);
    let (status, told, change) = documents.carry_out(&taken);
    if documents.taken.len() >= TAKEN_MAX {
        documents.taken.pop_front();
    }
    documents.taken.push_back(taken);
    drop(documents);
    state.see(|seen| match change {
        Change::Made => seen.changes += 1,
        Change::Repeated => seen.repeated += 1,
        Change::None => {}
    });
    match told {
        Some(told) => (status, Json(told)).into_response(),
        None => status.into_response(),
    }
}

enum Change {
    Made,
    Repeated,
    None,
}

impl Documents {
    fn carry_out(&mut self, taken: &Taken) -> (StatusCode, Option<Value>, Change) {
        let path = taken.path.split('?').next().unwrap_or_default().to_owned();
        let missing = || {
            let told = json!({"error": "no such document"});
            (StatusCode::NOT_FOUND, Some(told), Change::None)
        };
        match taken.method.as_str() {
            "GET" => match self.tree.get(&path) {
                Some(document) => (StatusCode::OK, Some(document.clone()), Change::None),
                None => missing(),
            },
            "PUT" => {
                let old = self.tree.insert(path, taken.body.clone());
                match old {
                    None => (StatusCode::CREATED, None, Change::Made),
                    Some(old) if old == taken.body => (StatusCode::OK, None, Change::None),
                    Some(_) => (StatusCode::OK, None, Change::Made),
                }
            }
            "PATCH" => match (self.tree.get_mut(&path), &taken.body) {
                (Some(Value::Object(document)), Value::Object(changes)) => {
                    let before = document.clone();
                    document.extend(changes.clone());
                    let changed = *document != before;
                    let change = if changed { Change::Made } else { Change::None };
                    (StatusCode::OK, None, change)
                }
                _ => missing(),
            },
            "DELETE" => match self.tree.remove(&path) {
                Some(_) => (StatusCode::NO_CONTENT, None, Change::Made),
                None => missing(),
            },
            "POST" => {
                let cmd = taken.body.get("cmd").and_then(Value::as_str);
                let user = taken.body.get("user_id").unwrap_or(&Value::Null);
                let answer = format!("simulated: {} of user {user}", cmd.unwrap_or("?"));
                let told = Some(json!({ "answer": answer }));
                let key = taken.headers.get("idempotency-key");
                if let Some(key) = key
                    && !self.keys.insert(key.clone())
                {
                    return (StatusCode::OK, told, Change::Repeated);
                }
                (StatusCode::ACCEPTED, told, Change::Made)
            }
            _ => (StatusCode::METHOD_NOT_ALLOWED, None, Change::None),
        }
    }
}

/// Arguments of `sim http`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address; port 0 = chosen by the system
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Also listen on addresses that are not loopback
    #[arg(long)]
    pub allow_public: bool,
    /// Bearer token that every request must carry; none = nobody is asked
    #[arg(long, env = "NED_SIM_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Speak HTTPS with this certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Append every request to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Before each request is carried out
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub latency: u64,
    /// Answer every request with this status and carry nothing out
    #[arg(long, value_name = "STATUS")]
    pub status: Option<u16>,
}

/// Runs until `stop` is ready. Prints `listening on ADDR` before anything else.
pub async fn run(args: &Args, stop: impl Future<Output = ()>) -> io::Result<()> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(Identity {
            cert: cert.clone(),
            key: key.clone(),
        }),
        _ => None,
    };
    let sim = Sim::start(Options {
        listen: args.listen,
        allow_public: args.allow_public,
        authorization: args.token.as_ref().map(|token| format!("Bearer {token}")),
        tls,
        journal: args.journal.clone(),
        faults: Faults {
            latency_ms: args.latency,
            status: args.status,
            location: None,
        },
    })
    .await?;
    sim.serve("", stop).await
}
