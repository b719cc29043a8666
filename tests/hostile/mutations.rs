//! Every parser of what comes from outside, with seeds that are mutated by a repeatable dice:
//! none may panic, hang, or give what does not fit its promise. Seeds and promises are those of
//! libFuzzer, too (`fuzz/`).

use std::path::Path;

use nas_event_daemon::clock::tick_ms;

use crate::targets::{TARGETS, sentences};
use crate::{Dice, from_environment, hostile, say};

/// Inputs of the quick form, for each parser that is cheap; `NED_MUTATIONS` changes it.
const INPUTS: u64 = 10_000;
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

/// A test of this name for each parser.
macro_rules! parsers {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            let (name, run, share) = TARGETS
                .iter()
                .find(|(known, ..)| *known == stringify!($name))
                .unwrap();
            each(name, *share, run);
        })*

        #[test]
        fn every_parser_is_here() {
            let here = [$(stringify!($name)),*];
            let all: Vec<&str> = TARGETS.iter().map(|(name, ..)| *name).collect();
            assert_eq!(all, here);
        }
    };
}
parsers!(
    words,
    form,
    event,
    chain,
    scheme,
    config,
    record,
    session,
    telnet,
    dialogue,
    hostkey,
    http,
    radius,
    dictionary,
    traps,
    fingerprint
);

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
