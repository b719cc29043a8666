//! Every parser of what comes from outside, with seeds that are mutated by a repeatable dice:
//! none may panic, hang, or give what does not fit its promise. The seeds are in `corpus/` and
//! serve cargo-fuzz, too (`fuzz/`).

use std::path::Path;

use nas_event_daemon::attempt::{Line, LineKind};
use nas_event_daemon::clock::tick_ms;
use nas_event_daemon::config::Config;
use nas_event_daemon::driver::mikrotik::wire::{Bounds, Decoder, encode, text};
use nas_event_daemon::event::{Cmd, EventId, UserId};
use nas_event_daemon::intake::{compact, form, json};
use nas_event_daemon::logs::line::{Key, Origin, Records};
use nas_event_daemon::scheme::native::NativeScheme;

use crate::{Dice, from_environment, hostile, say};

/// Inputs of the quick form, for each parser that is cheap; `NED_MUTATIONS` changes it.
const INPUTS: u64 = 20_000;
/// Longest time that one small input may take, on a busy machine.
const SLOW_MS: u64 = 2_000;

/// The seeds of one parser.
fn corpus(parser: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(parser);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    assert!(seeds.len() >= 3, "{parser} has too few seeds");
    seeds
}

/// One mutation: flips, cuts, doubles, splices with another seed, or puts something hostile in.
fn mutated(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[dice.index(seeds.len())].clone();
    for _ in 0..=dice.roll(4) {
        let at = dice.index(bytes.len() + 1);
        match dice.roll(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
            1 if at < bytes.len() => bytes[at] = u8::try_from(dice.roll(256)).unwrap(),
            2 => bytes.truncate(at),
            3 => {
                let end = (at + dice.index(40)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            4 => {
                let other = &seeds[dice.index(seeds.len())];
                let from = dice.index(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            5 => {
                let piece = hostile(dice, "/nonexistent/canary");
                bytes.splice(at..at, piece.into_bytes());
            }
            6 => {
                let end = (at + dice.index(20)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => bytes.insert(
                at,
                dice.one(&[0, 0x7f, 0x80, 0xff, b'%', b'&', b'"', b'{', b'[']),
            ),
        }
    }
    bytes.truncate(64 * 1024);
    bytes
}

fn each(parser: &str, share: u64, mut check: impl FnMut(&[u8])) {
    let seed = from_environment("NED_SEED").unwrap_or(3);
    let seeds = corpus(parser);
    let mut dice = Dice(seed);
    let inputs = from_environment("NED_MUTATIONS").unwrap_or(INPUTS) / share;
    say(&format!("{parser}: NED_SEED={seed}, {inputs} inputs"));
    for seed in &seeds {
        check(seed);
    }
    for n in 0..inputs {
        let bytes = mutated(&mut dice, &seeds);
        let began = tick_ms();
        check(&bytes);
        let took = tick_ms() - began;
        assert!(took < SLOW_MS, "input {n} took {took} ms: {bytes:?}");
    }
}

const BOUNDS: Bounds = Bounds {
    words: 64,
    word: 4_096,
    sentence: 16_384,
};

fn sentences(parts: &[&[u8]]) -> Result<Vec<Vec<Vec<u8>>>, String> {
    let mut decoder = Decoder::new(BOUNDS);
    let mut all = Vec::new();
    for part in parts {
        decoder.feed(part);
        while let Some(sentence) = decoder.next().map_err(|e| e.to_string())? {
            all.push(sentence);
        }
    }
    Ok(all)
}

#[test]
fn routeros_words() {
    each("words", 1, |bytes| {
        let whole = sentences(&[bytes]);
        // However it is split, it is the same.
        let middle = bytes.len() / 2;
        let halves = sentences(&[&bytes[..middle], &bytes[middle..]]);
        assert_eq!(whole, halves);
        let Ok(whole) = whole else { return };
        for sentence in whole {
            let size: usize = sentence.iter().map(Vec::len).sum();
            assert!(sentence.len() <= BOUNDS.words && size <= BOUNDS.sentence);
            // What was read is written and read again as it was.
            let mut out = Vec::new();
            let words = sentence.iter().map(Vec::as_slice);
            encode(words, BOUNDS, &mut out).unwrap();
            assert_eq!(sentences(&[&out]).unwrap(), std::slice::from_ref(&sentence));
            for word in &sentence {
                assert!(!text(word).is_empty());
            }
        }
    });
}

#[test]
fn bodies_of_the_classic_call() {
    each("form", 1, |bytes| {
        if let Err(error) = form::read(bytes) {
            assert!(!error.to_string().is_empty());
        }
    });
}

#[test]
fn events_as_json() {
    each("event", 1, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        if let Ok((value, used)) = json::first_json(text) {
            assert!(text.is_char_boundary(used));
            if let Ok(event) = compact::read(value, "fuzz", &[]) {
                assert!(Cmd::parse(&event.cmd).is_ok());
                assert!(
                    event.user_id.is_some() || event.nas_id.is_some() || event.nas_ip.is_some()
                );
            }
        }
        let _ = json::strict_json(text);
    });
}

#[test]
fn scheme_files() {
    let dir = tempfile::tempdir().unwrap();
    each("scheme", 10, |bytes| {
        std::fs::write(dir.path().join("scheme.toml"), bytes).unwrap();
        if let Err(findings) = NativeScheme::load(dir.path()) {
            assert!(findings.iter().all(|f| !f.text.is_empty()));
            assert!(!findings.is_empty());
        }
    });
}

#[test]
fn configuration_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ned.toml");
    each("config", 10, |bytes| {
        std::fs::write(&file, bytes).unwrap();
        if let Err(error) = Config::load(Some(&file), std::iter::empty()) {
            assert!(!error.reason.is_empty() && !error.hint.is_empty());
        }
    });
}

#[test]
fn log_records() {
    let key = Key {
        event: EventId(7),
        user: Some(UserId(1424)),
        cmd: "user_add",
        try_count: 1,
    };
    each("record", 1, |bytes| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut out = Vec::new();
        let mut records = Records::new(Origin::new("bras", 1));
        for kind in [LineKind::Command, LineKind::Answer] {
            let line = Line {
                at_ms: 0,
                kind,
                text: text.clone(),
            };
            records.line(&mut out, &key, &line);
        }
        records.daemon(&mut out, 0, &text);
        // Three records are three lines, whatever they hold.
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.matches('\n').count(), 3, "{out:?}");
        assert!(
            !out.contains(['\r', '\u{1b}', '\u{2028}', '\u{202e}']),
            "{out:?}"
        );
    });
}

/// The negative control: a decoder that is told a larger bound than it has is found out.
#[test]
fn a_parser_that_breaks_its_promise_is_found() {
    let result = std::panic::catch_unwind(|| {
        each("words", 1, |bytes| {
            let found = sentences(&[bytes]).unwrap_or_default();
            assert!(found.iter().all(|s| s.len() < 5), "a long sentence");
        });
    });
    assert!(result.is_err());
}
