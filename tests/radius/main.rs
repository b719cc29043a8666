//! RADIUS against software that others wrote: FreeRADIUS as a server of dynamic authorization,
//! hostapd with a real session, `radclient` and pyrad as clients of our simulator; then hostile
//! answers, the shipped schemes, and the helper command.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a failed step fails the test; starting the peers is what these files are for"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod command;
mod freeradius;

mod hostapd;
mod hostile;
mod outage;
mod peers;
mod schemes;

use std::time::Duration;

use nas_event_daemon::driver::radius::dictionary::Dictionary;
use nas_event_daemon::driver::radius::exchange::Manner;
use nas_event_daemon::driver::radius::{Kind, Radius, Request, Target, Told};
use nas_event_daemon::sim::radius::{Faults, Options, Sim};
use serde_json::json;

/// The secret between us and every peer here.
const SECRET: &str = "servicemode";
/// Far above anything that is waited for, on a busy machine too.
const LONG: Duration = Duration::from_secs(30);

fn manner(secret: &str) -> Manner {
    Manner {
        secret: secret.as_bytes().to_vec(),
        message_authenticator: true,
        require_message_authenticator: false,
        event_timestamp: true,
    }
}

fn radius(port: u16, manner: Manner) -> Radius {
    Radius::new(Target {
        host: "127.0.0.1".to_owned(),
        port,
        manner,
    })
}

fn request(kind: Kind, words: &[(&str, &str)]) -> Request {
    let own = words
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
    let pairs: Vec<_> = own.collect();
    Request::new(kind, &pairs, &Dictionary::shipped()).unwrap()
}

async fn talk(radius: &Radius, kind: Kind, words: &[(&str, &str)], deadline: Duration) -> Told {
    let request = request(kind, words);
    radius
        .talk(&request, &Dictionary::shipped(), deadline)
        .await
}

/// A simulated NAS with one session.
async fn sim(faults: Faults) -> Sim {
    let options = Options {
        secret: SECRET.to_owned(),
        faults,
        ..Options::default()
    };
    let sim = Sim::start(options).await.unwrap();
    let session =
        json!({"Acct-Session-Id": "a1", "User-Name": "ivanov", "Framed-IP-Address": "10.88.0.15"});
    sim.load(&json!({"sessions": [session]})).unwrap();
    sim
}
