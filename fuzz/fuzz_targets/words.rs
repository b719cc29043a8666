//! RouterOS API words: however a stream is split, the same sentences come out, within their
//! bounds, and are written as they were read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nas_event_daemon::driver::mikrotik::wire::{Bounds, Decoder, encode};

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

fuzz_target!(|bytes: &[u8]| {
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    let whole = sentences(&[bytes]);
    assert_eq!(whole, sentences(&[head, tail]));
    for sentence in whole.unwrap_or_default() {
        let mut out = Vec::new();
        encode(sentence.iter().map(Vec::as_slice), BOUNDS, &mut out).unwrap();
        assert_eq!(sentences(&[&out]).unwrap(), [sentence]);
    }
});
