//! HTTP devices: the driver against rude and against independent servers, the shipped web hook
//! against the simulator, the command line, and the way from the event to the device.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod bodies;
mod cli;
mod kept;
mod peer;
mod rude;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::attempt::Failure;
use nas_event_daemon::driver::Reply;
use nas_event_daemon::driver::http::{Auth, Http, Limits, Request, Target};
use nas_event_daemon::driver::tls::Trust;

/// A condition that has not come by then never will, on a busy machine either.
const LONG: Duration = Duration::from_secs(60);

fn device(url: &str, trust: Trust) -> Arc<Http> {
    device_within(url, trust, Duration::from_secs(20))
}

fn device_within(url: &str, trust: Trust, connect_timeout: Duration) -> Arc<Http> {
    let target = Target {
        url: url.to_owned(),
        auth: Auth::Bearer("t0ken-of-the-hook".into()),
        trust,
    };
    let limits = Limits {
        connections: 2,
        connect_timeout,
        linger: Duration::from_secs(20),
    };
    Arc::new(Http::new(&target, &limits))
}

fn get(path: &str) -> Request {
    Request {
        method: "GET".into(),
        path: path.into(),
        ..Request::default()
    }
}

async fn talk(device: &Http, path: &str) -> Result<Reply, Failure> {
    device.talk(&get(path), LONG).await
}
