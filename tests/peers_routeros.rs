//! The simulator speaks the real wire format: clients that others wrote log in, add, print,
//! fail and send megabytes; and they make the same bytes of the same words as we do. Install them
//! with `scripts/install-peers DIR` and point `NED_TEST_PEERS` at DIR.
#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "helpers of tests; starting the peers is what this file is for"
)]

#[path = "lab/mod.rs"]
mod lab;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nas_event_daemon::driver::mikrotik::wire::{self, Bounds};
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

/// Sentences of any texts, with words on both sides of each border of the length prefix. No word is
/// empty, which would be the end.
fn sentences() -> Vec<Vec<String>> {
    const BORDERS: [usize; 3] = [0x80, 0x4000, 0x20_0000];
    const LETTERS: &[u8] = b"abz019=./!? \t\r\n\0\x1b\"'$[]{}\\;";
    const OTHERS: [&str; 5] = ["\u{e9}", "\u{44e}", "\u{6f22}", "\u{1f4a9}", "\u{202e}"];
    let mut dice = lab::dice::Dice(7);
    let mut roll = |below: usize| dice.index(below);
    let mut all = Vec::new();
    for _ in 0..2_000 {
        let mut words = vec!["!re".to_owned()];
        for _ in 0..roll(10) {
            let mut word = String::new();
            for _ in 0..=roll(200) {
                match roll(10) {
                    0 => word.push_str(OTHERS[roll(OTHERS.len())]),
                    _ => word.push(char::from(LETTERS[roll(LETTERS.len())])),
                }
            }
            words.push(word);
        }
        all.push(words);
    }
    for border in BORDERS {
        for length in border - 1..=border + 1 {
            all.push(vec![
                "!re".to_owned(),
                "w".repeat(length),
                "=y=z".to_owned(),
            ]);
        }
    }
    all
}

/// Both ways: the same bytes for the same words, and the same words in the same bytes, however
/// these are split.
#[tokio::test]
async fn librouteros_writes_and_reads_the_same_sentences() {
    const WIDE: Bounds = Bounds {
        word: 4 * 1024 * 1024,
        words: 64,
        sentence: 8 * 1024 * 1024,
    };
    let all = sentences();
    let mut ours = Vec::new();
    for words in &all {
        let words = words.iter().map(String::as_bytes);
        wire::encode(words, WIDE, &mut ours).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    std::fs::write(place("sentences.json"), serde_json::to_vec(&all).unwrap()).unwrap();
    std::fs::write(place("ours"), &ours).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/librouteros_wire.py");
    let status = Command::new("python3")
        .arg(script)
        .arg(dir.path())
        .env("PYTHONPATH", peers().join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true)
        .status();
    assert!(timeout(LONG, status).await.unwrap().unwrap().success());
    let theirs = std::fs::read(place("theirs")).unwrap();
    let differ = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert!(ours == theirs, "the bytes differ from {differ:?} on");
    let read = std::fs::read(place("read.json")).unwrap();
    let read: Vec<Vec<String>> = serde_json::from_slice(&read).unwrap();
    assert!(read == all, "it reads other words in our bytes");

    let mut decoder = wire::Decoder::new(WIDE);
    let mut found = Vec::new();
    // A length that no border has: every piece ends somewhere else in a sentence.
    for piece in theirs.chunks(4_093) {
        decoder.feed(piece);
        while let Some(sentence) = decoder.next().unwrap() {
            found.push(sentence);
        }
    }
    assert!(!decoder.is_inside());
    assert_eq!(found.len(), all.len());
    for (found, wanted) in found.iter().zip(&all) {
        let wanted = wanted.iter().map(String::as_bytes);
        assert!(found.iter().map(Vec::as_slice).eq(wanted), "other words");
    }
}
