//! Words and sentences of the RouterOS API as bytes, with bounds (MikroTik manual, "API",
//! "API words", "API sentences"). A word is its length and its bytes, so no value can become
//! syntax; a sentence ends with a word of length zero. Shared with the simulator.

use std::collections::VecDeque;

use mikrotik_rs::proto::codec::{self, Decode};

pub use crate::driver::text;

/// The words of one sentence, without the terminator.
pub type Sentence = Vec<Vec<u8>>;

/// How much a peer may send before it is taken for broken or hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Longest word, bytes.
    pub word: usize,
    /// Most words of a sentence.
    pub words: usize,
    /// Longest sentence, bytes without the length prefixes.
    pub sentence: usize,
}

impl Bounds {
    /// What the driver accepts: the longest value of RouterOS is a script of 64 KiB, a row has
    /// less than a hundred properties; 1 MiB and 1024 leave room.
    pub const DRIVER: Self = Self {
        word: 1024 * 1024,
        words: 1024,
        sentence: 4 * 1024 * 1024,
    };
}

/// Why the bytes of a peer cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// 0xF8 and above are reserved for control bytes that nobody has defined.
    #[error("control byte 0x{0:02x} where a word length was expected; this is not a RouterOS API")]
    Control(u8),
    /// One word.
    #[error("a word of {length} bytes was announced, at most {bound} are accepted")]
    WordTooLong {
        /// Announced.
        length: usize,
        /// Accepted.
        bound: usize,
    },
    /// One sentence, by count or by size.
    #[error("a sentence has more than {words} words or {bytes} bytes")]
    SentenceTooLong {
        /// Accepted words.
        words: usize,
        /// Accepted bytes.
        bytes: usize,
    },
}

/// Appends one sentence. Fails on what the format or `bounds` cannot carry; an empty word
/// would end the sentence early.
pub fn encode<'a>(
    words: impl IntoIterator<Item = &'a [u8]>,
    bounds: Bounds,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let start = out.len();
    let mut count = 0;
    for word in words {
        count += 1;
        let size = out.len() - start + word.len();
        if word.is_empty() {
            out.truncate(start);
            return Err("an empty word would end the sentence".to_owned());
        }
        if word.len() > bounds.word || size > bounds.sentence || count > bounds.words {
            out.truncate(start);
            return Err(format!(
                "the sentence is too long: word {count} has {} bytes; at most {} words of {} bytes, {} together",
                word.len(),
                bounds.words,
                bounds.word,
                bounds.sentence
            ));
        }
        codec::encode_word(word, out);
    }
    codec::encode_terminator(out);
    Ok(())
}

/// Ends a sentence whose words are in `out` with its tag.
pub fn end_with_tag(tag: u32, out: &mut Vec<u8>) {
    codec::encode_word(format!(".tag={tag}").as_bytes(), out);
    codec::encode_terminator(out);
}

/// Takes bytes as they come, however they are split, and gives back whole sentences.
#[derive(Debug)]
pub struct Decoder {
    bounds: Bounds,
    buffer: VecDeque<u8>,
    words: Sentence,
    size: usize,
}

/// Longest length prefix, bytes.
const PREFIX_MAX: usize = 5;

impl Decoder {
    /// Empty.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            buffer: VecDeque::new(),
            words: Vec::new(),
            size: 0,
        }
    }

    /// Adds received bytes. Call [`Self::next`] until it gives `None` before feeding more:
    /// then at most one word is buffered here.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// The next whole sentence. Empty sentences are skipped, as RouterOS does. After an error
    /// the position in the stream is lost: close the connection.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would promise that None is the end; here it means 'feed me'"
    )]
    pub fn next(&mut self) -> Result<Option<Sentence>, WireError> {
        loop {
            let head: Vec<u8> = self.buffer.iter().take(PREFIX_MAX).copied().collect();
            let (length, prefix) = match codec::decode_length(&head) {
                Ok(Decode::Complete { value, .. }) => value,
                Ok(Decode::Incomplete { .. }) => return Ok(None),
                Err(_) => return Err(WireError::Control(head.first().copied().unwrap_or(0))),
            };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > self.bounds.word {
                return Err(WireError::WordTooLong {
                    length,
                    bound: self.bounds.word,
                });
            }
            if length == 0 {
                self.buffer.drain(..prefix);
                if self.words.is_empty() {
                    continue;
                }
                self.size = 0;
                return Ok(Some(std::mem::take(&mut self.words)));
            }
            if self.words.len() >= self.bounds.words || self.size + length > self.bounds.sentence {
                return Err(WireError::SentenceTooLong {
                    words: self.bounds.words,
                    bytes: self.bounds.sentence,
                });
            }
            if self.buffer.len() < prefix + length {
                return Ok(None);
            }
            self.buffer.drain(..prefix);
            self.size += length;
            self.words.push(self.buffer.drain(..length).collect());
        }
    }

    /// Whether the stream stands inside a sentence.
    pub fn is_inside(&self) -> bool {
        !self.words.is_empty() || !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDE: Bounds = Bounds {
        word: 4 * 1024 * 1024,
        words: 64,
        sentence: 8 * 1024 * 1024,
    };

    fn encoded(words: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(words.iter().copied(), WIDE, &mut out).unwrap();
        out
    }

    #[test]
    fn length_borders() {
        for (length, prefix) in [
            (0x7f, 1),
            (0x80, 2),
            (0x3fff, 2),
            (0x4000, 3),
            (0x1f_ffff, 3),
            (0x20_0000, 4),
        ] {
            let word = vec![b'x'; length];
            let bytes = encoded(&[&word]);
            assert_eq!(bytes.len(), length + prefix + 1, "{length:#x}");
            let mut decoder = Decoder::new(WIDE);
            decoder.feed(&bytes);
            assert_eq!(decoder.next().unwrap().unwrap(), vec![word]);
            assert!(!decoder.is_inside());
        }
        // Lengths that are announced only; nobody needs a quarter of a gigabyte here.
        for (prefix, length) in [
            (&[0xef, 0xff, 0xff, 0xff][..], 0xfff_ffff),
            (&[0xf0, 0x10, 0x00, 0x00, 0x00], 0x1000_0000),
        ] {
            let mut decoder = Decoder::new(WIDE);
            decoder.feed(&prefix[..prefix.len() - 1]);
            assert_eq!(decoder.next(), Ok(None));
            decoder.feed(&prefix[prefix.len() - 1..]);
            let bound = WIDE.word;
            assert_eq!(
                decoder.next(),
                Err(WireError::WordTooLong { length, bound })
            );
        }
    }

    #[test]
    fn bounds_hold_before_the_bytes_have_come() {
        let bounds = Bounds {
            word: 10,
            words: 3,
            sentence: 20,
        };
        let mut decoder = Decoder::new(bounds);
        decoder.feed(&[0xf0, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(
            decoder.next(),
            Err(WireError::WordTooLong {
                length: 0xffff_ffff,
                ..
            })
        ));
        let mut decoder = Decoder::new(bounds);
        decoder.feed(&encoded(&[b"1", b"2", b"3", b"4"]));
        assert!(matches!(
            decoder.next(),
            Err(WireError::SentenceTooLong { .. })
        ));
        let mut decoder = Decoder::new(bounds);
        decoder.feed(&encoded(&[b"0123456789", b"0123456789", b"x"]));
        assert!(matches!(
            decoder.next(),
            Err(WireError::SentenceTooLong { .. })
        ));
        let mut out = Vec::new();
        assert!(encode([b"01234567890".as_slice()], bounds, &mut out).is_err());
        assert!(encode([b"1".as_slice(), b""], bounds, &mut out).is_err());
        assert!(out.is_empty());
    }

    #[test]
    fn control_bytes_end_the_stream() {
        for byte in 0xf8..=0xff {
            let mut decoder = Decoder::new(WIDE);
            decoder.feed(&[byte]);
            assert_eq!(decoder.next(), Err(WireError::Control(byte)));
        }
    }

    #[test]
    fn empty_sentences_are_skipped() {
        let mut decoder = Decoder::new(WIDE);
        decoder.feed(&[0, 0, 1, b'a', 0, 0]);
        assert_eq!(decoder.next().unwrap(), Some(vec![b"a".to_vec()]));
        assert_eq!(decoder.next().unwrap(), None);
    }

    #[test]
    fn other_encodings_stay_readable() {
        assert_eq!(text("Вася".as_bytes()), "Вася");
        assert_eq!(text(b"\xc2\xe0a"), "\\xc2\\xe0a");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn split_anywhere(
            sentences in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u8>(), 1..150), 1..4), 1..4),
        ) {
            let mut bytes = Vec::new();
            for sentence in &sentences {
                encode(sentence.iter().map(Vec::as_slice), WIDE, &mut bytes).unwrap();
            }
            for cut in 0..=bytes.len() {
                let mut decoder = Decoder::new(WIDE);
                let mut got = Vec::new();
                for part in [&bytes[..cut], &bytes[cut..]] {
                    decoder.feed(part);
                    while let Some(sentence) = decoder.next().unwrap() {
                        got.push(sentence);
                    }
                }
                prop_assert_eq!(&got, &sentences);
                prop_assert!(!decoder.is_inside());
            }
        }

        #[test]
        fn garbage_never_panics_nor_grows(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let bounds = Bounds { word: 64, words: 8, sentence: 256 };
            let mut decoder = Decoder::new(bounds);
            for byte in bytes {
                decoder.feed(&[byte]);
                match decoder.next() {
                    Ok(_) => {}
                    Err(_) => break,
                }
                prop_assert!(decoder.buffer.len() <= bounds.word + PREFIX_MAX);
                prop_assert!(decoder.words.len() <= bounds.words);
            }
        }
    }
}
