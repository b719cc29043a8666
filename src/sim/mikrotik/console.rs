//! `nas_event_daemon sim mikrotik`: the simulator as a process, with an HTTP door on loopback
//! through which its state and its behaviour can be read and changed.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::sim::Identity;
use crate::sim::mikrotik::{Faults, Options, Seen, Sim, State};

/// Arguments of `sim mikrotik`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the API; port 0 = chosen by the system
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8728")]
    pub listen: SocketAddr,
    /// Also listen on addresses that are not loopback
    #[arg(long)]
    pub allow_public: bool,
    /// Account that may log in
    #[arg(long, default_value = "admin")]
    pub login: String,
    /// Its password
    #[arg(
        long,
        env = "NED_SIM_PASSWORD",
        hide_env_values = true,
        default_value = ""
    )]
    pub password: String,
    /// State to start with: JSON, menu path to list of rows
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Append every state-changing sentence to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Before each sentence is carried out
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub latency: u64,
    /// For each printed row
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub row_latency: u64,
    /// Before a login is answered
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub login_latency: u64,
    /// Logged-in sessions at once
    #[arg(long, value_name = "N")]
    pub session_limit: Option<usize>,
    /// Refuse every n-th login
    #[arg(long, value_name = "N")]
    pub refuse_every: Option<u64>,
    /// Break each connection in the middle of the reply to its n-th sentence
    #[arg(long, value_name = "N")]
    pub drop_after: Option<u64>,
    /// `.tag` as the last word of replies
    #[arg(long)]
    pub tag_last: bool,
    /// Login by challenge, as before RouterOS 6.43
    #[arg(long)]
    pub old_login: bool,
    /// RouterOS version to report; from 7.18 on an empty print is answered with !empty
    #[arg(long = "ros-version", value_name = "VERSION")]
    pub ros_version: Option<String>,
    /// Speak TLS with this certificate (PEM), as the service api-ssl
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Longest accepted word in bytes
    #[arg(long, value_name = "BYTES")]
    pub word_max: Option<usize>,
    /// HTTP on loopback: GET and PUT /state, GET and PUT /faults, GET /seen
    #[arg(long, value_name = "ADDR")]
    pub control: Option<SocketAddr>,
}

impl Args {
    fn options(&self) -> Options {
        let base = Options::default();
        Options {
            listen: self.listen,
            allow_public: self.allow_public,
            login: self.login.clone(),
            password: self.password.clone(),
            old_login: self.old_login,
            version: self.ros_version.clone().unwrap_or(base.version),
            identity: base.identity,
            word_max: self.word_max.unwrap_or(base.word_max),
            journal: self.journal.clone(),
            tls: match (&self.tls_cert, &self.tls_key) {
                (Some(cert), Some(key)) => Some(Identity {
                    cert: cert.clone(),
                    key: key.clone(),
                }),
                _ => None,
            },
            faults: Faults {
                latency_ms: self.latency,
                row_latency_ms: self.row_latency,
                login_latency_ms: self.login_latency,
                session_limit: self.session_limit,
                refuse_every: self.refuse_every,
                drop_after: self.drop_after,
                tag_last: self.tag_last,
                ..Faults::default()
            },
        }
    }
}

/// Runs until `stop` is ready. Prints `listening on ADDR` and, with a control door,
/// `control on ADDR` to standard output before anything else.
pub async fn serve(args: &Args, stop: impl Future<Output = ()>) -> io::Result<()> {
    let sim = Sim::start(args.options())?;
    if let Some(file) = &args.load {
        let at = |e: &dyn std::fmt::Display| {
            let text = format!("cannot load {}: {e}", file.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let text = std::fs::read_to_string(file).map_err(|e| at(&e))?;
        let state: Value = serde_json::from_str(&text).map_err(|e| at(&e))?;
        sim.load(&state).map_err(|e| at(&e))?;
    }
    let mut lines = format!("listening on {}\n", sim.addr());
    let control = match args.control {
        Some(addr) => {
            if !addr.ip().is_loopback() {
                let text =
                    format!("{addr} is not a loopback address: the control door has no login");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
            let listener = TcpListener::bind(addr).await?;
            lines.push_str(&format!("control on {}\n", listener.local_addr()?));
            Some(listener)
        }
        None => None,
    };
    let mut out = io::stdout();
    out.write_all(lines.as_bytes())?;
    out.flush()?;
    let door = async {
        match control {
            Some(listener) => axum::serve(listener, router(Arc::clone(&sim.state))).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop => {}
        ended = door => ended?,
    }
    sim.stop().await;
    Ok(())
}

fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/state", get(state_of).put(load))
        .route("/faults", get(faults_of).put(set_faults))
        .route("/seen", get(seen_of))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_MAX))
        .with_state(state)
}

/// Largest state that can be put, bytes: about a hundred thousand rows.
const BODY_MAX: usize = 64 * 1024 * 1024;

async fn state_of(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    Json(state.dump())
}

async fn load(
    Shared(state): Shared<Arc<State>>,
    Json(body): Json<Value>,
) -> Result<StatusCode, (StatusCode, String)> {
    state
        .load(&body)
        .map(|()| StatusCode::NO_CONTENT)
        .map_err(|e| (StatusCode::UNPROCESSABLE_ENTITY, format!("{e}\n")))
}

async fn faults_of(Shared(state): Shared<Arc<State>>) -> Json<Faults> {
    Json(state.faults.borrow().clone())
}

async fn set_faults(Shared(state): Shared<Arc<State>>, Json(faults): Json<Faults>) -> StatusCode {
    state.faults.send_replace(faults);
    StatusCode::NO_CONTENT
}

async fn seen_of(Shared(state): Shared<Arc<State>>) -> Json<Seen> {
    Json(state.seen.borrow().clone())
}
