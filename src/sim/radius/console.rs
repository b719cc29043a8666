//! `nas_event_daemon sim radius`: the simulator as a process, with an HTTP door on loopback
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

use super::{Faults, Options, Seen, Sim, State, locked};

/// Largest state that can be put, bytes: about a hundred thousand sessions.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// Arguments of `sim radius`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address for CoA and Disconnect; port 0 = chosen by the system
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3799")]
    pub listen: SocketAddr,
    /// Also listen on addresses that are not loopback
    #[arg(long)]
    pub allow_public: bool,
    /// Shared secret
    #[arg(
        long,
        env = "NED_SIM_SECRET",
        hide_env_values = true,
        default_value = "secret"
    )]
    pub secret: String,
    /// Drop requests without a Message-Authenticator
    #[arg(long)]
    pub require_message_authenticator: bool,
    /// State to start with: JSON, {"sessions": [{"User-Name": "…"}]}
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Append every carried out request to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Before each answer
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub delay: u64,
    /// Lose the first N copies of each request
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub drop_first: u32,
    /// Drop a second request for a session while the first waits, as accel-ppp does
    #[arg(long)]
    pub one_per_session: bool,
    /// Send forged answers before each genuine one
    #[arg(long)]
    pub forge: bool,
    /// Refuse everything with this Error-Cause
    #[arg(long, value_name = "CAUSE")]
    pub nak: Option<u32>,
    /// HTTP on loopback: GET and PUT /state, GET and PUT /faults, GET /seen
    #[arg(long, value_name = "ADDR")]
    pub control: Option<SocketAddr>,
}

impl Args {
    fn options(&self) -> Options {
        Options {
            listen: self.listen,
            allow_public: self.allow_public,
            secret: self.secret.clone(),
            require_message_authenticator: self.require_message_authenticator,
            journal: self.journal.clone(),
            faults: Faults {
                delay_ms: self.delay,
                drop_first: self.drop_first,
                one_per_session: self.one_per_session,
                forge: self.forge,
                nak: self.nak,
                ..Faults::default()
            },
        }
    }
}

/// Runs until `stop` is ready. Prints `listening on ADDR` and, with a control door,
/// `control on ADDR` to standard output before anything else.
pub async fn serve(args: &Args, stop: impl Future<Output = ()>) -> io::Result<()> {
    let sim = Sim::start(args.options()).await?;
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

async fn state_of(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    Json(locked(&state.sessions).dump())
}

async fn load(
    Shared(state): Shared<Arc<State>>,
    Json(body): Json<Value>,
) -> Result<StatusCode, (StatusCode, String)> {
    locked(&state.sessions)
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
