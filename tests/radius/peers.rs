//! The simulator speaks the real wire format: `radclient` and pyrad, which others wrote, ask it
//! and believe its answers.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use nas_event_daemon::sim::radius::{Faults, Sim};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::{LONG, SECRET, sim};

/// What it printed, and whether it was content.
async fn radclient(nas: &Sim, kind: &str, secret: &str, attributes: &str) -> (bool, String) {
    let mut child = Command::new("radclient")
        .args(["-x", "-r", "1", "-t", "2"])
        .arg(nas.addr().to_string())
        .args([kind, secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("radclient cannot be started; scripts/test --install installs freeradius-utils");
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(attributes.as_bytes()).await.unwrap();
    drop(pipe);
    let output = timeout(LONG, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.success(), text)
}

#[tokio::test]
async fn radclient_changes_and_ends_a_session() {
    let nas = sim(Faults::default()).await;
    let change = "User-Name=ivanov,Message-Authenticator=0x00,Mikrotik-Rate-Limit=\"10M/20M\",Cisco-AVPair=\"subscriber:command=activate-service\",Cisco-AVPair+=\"subscriber:service-name=L4R\"\n";
    let (fine, said) = radclient(&nas, "coa", SECRET, change).await;
    assert!(fine && said.contains("Received CoA-ACK"), "{said}");
    let session = nas.sessions().remove(0);
    assert_eq!(session.attributes["Mikrotik-Rate-Limit"], ["10M/20M"]);
    assert!(session.services.contains("L4R"));
    assert_eq!((nas.seen().signed, nas.seen().forged), (1, 0));
    // The answer is signed by what it expects, or radclient would not take it.
    let query = "User-Name=ivanov,Cisco-AVPair=\"subscriber:command=session-query\"\n";
    let (fine, said) = radclient(&nas, "coa", SECRET, query).await;
    assert!(
        fine && said.contains("Cisco-Service-Info = \"N1L4R\""),
        "{said}"
    );
    let nobody = "User-Name=nobody\n";
    let (fine, said) = radclient(&nas, "disconnect", SECRET, nobody).await;
    assert!(
        !fine && said.contains("Error-Cause = Session-Context-Not-Found"),
        "{said}"
    );
    let (fine, said) = radclient(&nas, "disconnect", SECRET, "User-Name=ivanov\n").await;
    assert!(fine && said.contains("Received Disconnect-ACK"), "{said}");
    assert!(nas.sessions().is_empty());
    let (fine, _) = radclient(&nas, "disconnect", "not-this-one", "User-Name=ivanov\n").await;
    assert!(!fine && nas.seen().forged >= 1);
}

#[tokio::test]
async fn pyrad_checks_our_answers() {
    let Some(dir) = std::env::var_os("NED_TEST_PEERS").map(PathBuf::from) else {
        panic!(
            "NED_TEST_PEERS is not set: run scripts/install-peers DIR, then set NED_TEST_PEERS=DIR"
        )
    };
    let nas = sim(Faults::default()).await;
    nas.load(&json!({"sessions": [{"User-Name": "ivanov"}, {"User-Name": "petrov"}]}))
        .unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/pyrad_peer.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(nas.addr().port().to_string())
        .arg(SECRET)
        .env("PYTHONPATH", dir.join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(LONG, output).await.expect("pyrad hangs").unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.trim() == "ok", "{text}");
    let left = nas.sessions();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].attributes["Filter-Id"], ["fast"]);
}
