//! The simulator speaks the real wire format: clients that others wrote log in, add, print,
//! fail and send megabytes. Install them with `scripts/install-peers DIR` and point
//! `NED_TEST_PEERS` at DIR.
#![expect(
    clippy::panic,
    clippy::disallowed_methods,
    reason = "helpers of tests; starting the peers is what this file is for"
)]

#[path = "lab/mod.rs"]
mod lab;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nas_event_daemon::sim::mikrotik::{Faults, Options, Sim};
use tokio::process::Command;
use tokio::time::timeout;

/// Longer than any of these takes on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn peers() -> PathBuf {
    match std::env::var_os("NED_TEST_PEERS") {
        Some(dir) => PathBuf::from(dir),
        None => panic!(
            "NED_TEST_PEERS is not set: run scripts/install-peers DIR, then set NED_TEST_PEERS=DIR"
        ),
    }
}

fn sim(old_login: bool, faults: Faults) -> Sim {
    let options = Options {
        password: "s3cret".into(),
        old_login,
        faults,
        ..Options::default()
    };
    match Sim::start(options) {
        Ok(sim) => sim,
        Err(e) => panic!("the simulator does not start: {e}"),
    }
}

/// Runs one script and gives back what went wrong, if anything did.
async fn run(script: &str, sim: &Sim, args: &[&str]) {
    let dir = peers();
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/peers")
        .join(script);
    let program = if script.ends_with(".py") {
        "python3"
    } else {
        "node"
    };
    let output = Command::new(program)
        .arg(path)
        .arg(sim.addr().port().to_string())
        .args(args)
        .env("PYTHONPATH", dir.join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("NODE_PATH", dir.join("node_modules"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match timeout(LONG, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(e)) => panic!("cannot run {program}: {e}; see scripts/install-peers"),
        Err(_) => panic!(
            "{script} {args:?} hangs; the simulator saw {:?}",
            sim.seen()
        ),
    };
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && out.trim() == "ok",
        "{script} {args:?}: {}\n{out}{err}",
        output.status
    );
}

/// Both logins, the tag in both places.
async fn everything(script: &str) {
    for old in [false, true] {
        for tag_last in [false, true] {
            let faults = Faults {
                tag_last,
                ..Faults::default()
            };
            let sim = sim(old, faults);
            run(script, &sim, &[if old { "old" } else { "plain" }]).await;
            assert!(sim.rows("/queue/simple").is_empty());
        }
    }
}

/// Five commands at once on one connection, by the simulator's own count.
async fn side_by_side(script: &str) {
    // The last is sent before the first is answered, on a busy machine too.
    let faults = Faults {
        latency_ms: 3_000,
        ..Faults::default()
    };
    let sim = sim(false, faults);
    run(script, &sim, &["plain", "slow"]).await;
    let seen = sim.seen();
    assert_eq!((seen.running_peak, seen.sessions_peak), (5, 1));
}

#[tokio::test]
async fn librouteros() {
    everything("librouteros_peer.py").await;
}

#[tokio::test]
async fn librouteros_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let pki = lab::tls::Pki::new(dir.path(), "router");
    let sim = Sim::start(Options {
        password: "s3cret".into(),
        tls: Some(pki.identity.clone()),
        ..Options::default()
    })
    .unwrap();
    let ca = pki.ca.display().to_string();
    run("librouteros_peer.py", &sim, &["plain", &ca]).await;
    assert!(sim.rows("/queue/simple").is_empty());
}

#[tokio::test]
async fn routeros_api() {
    everything("routeros_api_peer.py").await;
    side_by_side("routeros_api_peer.py").await;
}

#[tokio::test]
async fn node_routeros() {
    everything("node_routeros_peer.js").await;
    side_by_side("node_routeros_peer.js").await;
}
