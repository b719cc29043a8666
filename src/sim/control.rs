//! The control door of a simulator that runs as a process: HTTP on loopback, through which its
//! state and its behaviour can be read and changed.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpListener;

use super::running::{Inside, Running};

/// Largest state that can be put, bytes: about a hundred thousand rows.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// What can be asked of a simulator: its state as JSON, and another in its place.
pub(super) struct Door<X, F, S> {
    pub(super) dump: fn(&Inside<X, F, S>) -> Value,
    pub(super) load: Load<X, F, S>,
}

impl<X, F, S> Clone for Door<X, F, S> {
    fn clone(&self) -> Self {
        Self {
            dump: self.dump,
            load: self.load,
        }
    }
}

type Load<X, F, S> = fn(&Inside<X, F, S>, &Value) -> Result<(), String>;
type Held<X, F, S> = (Arc<Inside<X, F, S>>, Door<X, F, S>);
type Asked<X, F, S> = Shared<Held<X, F, S>>;

/// The simulator as a process that starts with the state in the file `load` and opens the door
/// at `control`. Prints `listening on ADDR` and, with a door, `control on ADDR`.
pub(super) async fn serve<X, F, S>(
    sim: Running<X, F, S>,
    door: Door<X, F, S>,
    load: Option<&Path>,
    control: Option<SocketAddr>,
    stop: impl Future<Output = ()>,
) -> io::Result<()>
where
    X: Send + Sync + 'static,
    F: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    S: Clone + Serialize + Send + Sync + 'static,
{
    if let Some(file) = load {
        let at = |e: &dyn std::fmt::Display| {
            let text = format!("cannot load {}: {e}", file.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let text = std::fs::read_to_string(file).map_err(|e| at(&e))?;
        let state: Value = serde_json::from_str(&text).map_err(|e| at(&e))?;
        (door.load)(&sim.state, &state).map_err(|e| at(&e))?;
    }
    let Some(addr) = control else {
        return sim.serve("", stop).await;
    };
    if !addr.ip().is_loopback() {
        let text = format!("{addr} is not a loopback address: the control door has no login");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let listener = TcpListener::bind(addr).await?;
    let more = format!("control on {}\n", listener.local_addr()?);
    let served = axum::serve(listener, router((Arc::clone(&sim.state), door)));
    tokio::select! {
        ended = sim.serve(&more, stop) => ended,
        ended = served.into_future() => ended,
    }
}

fn router<X, F, S>(asked: Held<X, F, S>) -> Router
where
    X: Send + Sync + 'static,
    F: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    S: Clone + Serialize + Send + Sync + 'static,
{
    let state_of = |Shared((state, door)): Asked<X, F, S>| async move { Json((door.dump)(&state)) };
    let load = |Shared((state, door)): Asked<X, F, S>, Json(body): Json<Value>| async move {
        (door.load)(&state, &body)
            .map(|()| StatusCode::NO_CONTENT)
            .map_err(|e| (StatusCode::UNPROCESSABLE_ENTITY, format!("{e}\n")))
    };
    let faults_of =
        |Shared((state, _)): Asked<X, F, S>| async move { Json(state.faults.borrow().clone()) };
    let set_faults = |Shared((state, _)): Asked<X, F, S>, Json(faults): Json<F>| async move {
        state.faults.send_replace(faults);
        StatusCode::NO_CONTENT
    };
    let seen_of =
        |Shared((state, _)): Asked<X, F, S>| async move { Json(state.seen.borrow().clone()) };
    Router::new()
        .route("/state", get(state_of).put(load))
        .route("/faults", get(faults_of).put(set_faults))
        .route("/seen", get(seen_of))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(asked)
}
