//! What a run did, so that two runs of one seed can be held against each other.

/// FNV-1a over every step: two runs of one seed must agree in all of them.
#[derive(Clone)]
pub struct Trace {
    pub hash: u64,
    /// Kept only where a person wants to read it.
    pub lines: Option<Vec<String>>,
}

impl Trace {
    pub fn new(keep: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            lines: keep.then(Vec::new),
        }
    }

    pub fn note(&mut self, what: &'static str, numbers: &[i64]) {
        let mut eat = |byte: u8| {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        };
        what.bytes().for_each(&mut eat);
        for n in numbers {
            n.to_le_bytes().into_iter().for_each(&mut eat);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{what} {numbers:?}"));
        }
    }
}
