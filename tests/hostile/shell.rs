//! A logged command that is pasted into bash gives the same words: our quoting against bash
//! itself, as root would paste it.

use std::process::Stdio;

use nas_event_daemon::shell::quote;

use crate::{Dice, from_environment, hostile, say};

/// Words of the quick form, unless `NED_HOSTILE` says otherwise.
const WORDS: u64 = 20_000;
/// Words given to one bash: far below what one command line may hold.
const BATCH: u64 = 500;

/// What bash makes of these command lines: the words of each, as it passes them on.
pub(crate) fn words_by_bash(script: &str) -> Vec<Vec<u8>> {
    #[expect(clippy::disallowed_methods, reason = "the peer is a program")]
    let mut command = std::process::Command::new("bash");
    let mut child = command
        .args(["--norc", "--noprofile", "-s"])
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let script = script.to_owned();
    let feeder = std::thread::spawn(move || {
        std::io::Write::write_all(&mut input, script.as_bytes()).unwrap();
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    let mut words: Vec<Vec<u8>> = output
        .stdout
        .split(|b| *b == 0)
        .map(<[u8]>::to_vec)
        .collect();
    words.pop();
    words
}

fn pasted(words: &[String], quoted: impl Fn(&str) -> String) -> Vec<Vec<u8>> {
    let line: Vec<String> = words.iter().map(|w| quoted(w)).collect();
    words_by_bash(&format!("printf '%s\\0' {}\n", line.join(" ")))
}

#[test]
fn a_pasted_command_gives_the_same_words() {
    let seed = from_environment("NED_SEED").unwrap_or(1);
    say(&format!("NED_SEED={seed}"));
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    let mut dice = Dice(seed);
    let mut left = from_environment("NED_HOSTILE").unwrap_or(WORDS);
    while left > 0 {
        let n = left.min(BATCH);
        let words: Vec<String> = (0..n)
            .map(|_| hostile(&mut dice, &canary.to_string_lossy()))
            .collect();
        let wanted: Vec<Vec<u8>> = words.iter().map(|w| w.as_bytes().to_vec()).collect();
        let found = pasted(&words, quote);
        for (wanted, found) in wanted.iter().zip(&found) {
            assert_eq!(
                String::from_utf8_lossy(found),
                String::from_utf8_lossy(wanted)
            );
        }
        assert_eq!(found, wanted);
        // No line is forged by it either: what is pasted is one line.
        assert!(words.iter().all(|w| !quote(w).contains(['\n', '\r'])));
        left -= n;
    }
    assert!(!canary.exists(), "something was executed");
}

/// The negative control: words in plain double quotes are taken apart, and the canary shows it.
#[test]
fn a_careless_quoting_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    let word = format!("$(touch {})", canary.display());
    let found = pasted(std::slice::from_ref(&word), |w| format!("\"{w}\""));
    assert_ne!(found, [word.as_bytes().to_vec()]);
    assert!(canary.exists());
}
