//! Bytes of a terminal into lines: what a person would see on one row of the screen. Escape
//! sequences (ECMA-48) are dropped, and those that move or erase within a row are obeyed, so
//! that an erased `--More--` and a redrawn command line leave no trace.

use crate::driver::text;

/// Columns of a row; whoever moves further right stays here.
const COLUMNS_MAX: usize = 4096;
/// Bytes of one escape sequence; a longer one is not a sequence.
const SEQUENCE_MAX: usize = 64;
/// Bytes of a row that may be the end of an echo that was scrolled sideways.
const SCROLLED_MIN: usize = 16;
/// Bytes of the flat copy in which an echo is looked for: it stands at the beginning.
const FLAT_MAX: usize = 16 * 1024;
/// Bytes of a string inside an escape sequence, such as a window title.
const STRING_MAX: usize = 4096;

const ESC: u8 = 0x1b;
const BELL: u8 = 0x07;

/// Where in an escape sequence the stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sequence {
    None,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate byte: one more follows.
    Charset,
    /// After ESC `[`: parameters so far.
    Control(Vec<u8>),
    /// In an operating system command or the like: bytes so far, and whether the last was ESC.
    Text(usize, bool),
}

/// Rows as they come: finished ones and the one under way.
#[derive(Debug)]
pub(super) struct Screen {
    finished: Vec<u8>,
    /// What was written, without anything that moves or erases: a wrapped line is whole here.
    flat: Vec<u8>,
    row: Vec<u8>,
    column: usize,
    /// Row of the last cursor address.
    address: usize,
    newlines: usize,
    taken: usize,
    sequence: Sequence,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            finished: Vec::new(),
            flat: Vec::new(),
            row: Vec::new(),
            column: 0,
            address: 0,
            newlines: 0,
            taken: 0,
            sequence: Sequence::None,
        }
    }

    /// Forgets what is on it; a sequence under way goes on.
    pub(super) fn clear(&mut self) {
        self.finished.clear();
        self.flat.clear();
        self.row.clear();
        self.column = 0;
        self.newlines = 0;
        self.taken = 0;
    }

    /// Bytes taken since it was cleared, whatever they left on it, and blanks that were left out.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Line ends since it was cleared.
    pub(super) fn newlines(&self) -> usize {
        self.newlines
    }

    /// The unfinished row.
    pub(super) fn row(&self) -> String {
        text(&self.row)
    }

    /// All finished rows, each with its line end.
    pub(super) fn finished(&self) -> String {
        text(&self.finished)
    }

    /// Finished rows after the echo of `line`. Blanks do not count, for devices wrap long
    /// lines; nothing else may stand in the row where the echo ends. `None`: no echo.
    pub(super) fn after_echo(&self, line: &str) -> Option<String> {
        let rows = match rows_of_echo(&text(&self.flat), line) {
            Some(rows) => rows,
            None => self.scrolled_echo(line)?,
        };
        let mut rest = self.finished.as_slice();
        for _ in 0..rows {
            let end = rest.iter().position(|b| *b == b'\n')?;
            rest = rest.get(end + 1..)?;
        }
        Some(text(rest))
    }

    /// A terminal that scrolls sideways shows the end of a long line only, behind a mark.
    fn scrolled_echo(&self, line: &str) -> Option<usize> {
        let first = self.finished.split(|b| *b == b'\n').next()?;
        let squeezed = |text: &str| -> String { text.split_whitespace().collect() };
        let row = squeezed(&text(first));
        let row = row.trim_start_matches(['<', '$']);
        let fits = row.len() >= SCROLLED_MIN && squeezed(line).ends_with(row);
        fits.then_some(1)
    }

    /// Forgets finished rows but the last `keep` bytes of them.
    pub(super) fn shorten(&mut self, keep: usize) {
        let gone = self.finished.len().saturating_sub(keep);
        self.finished.drain(..gone);
    }

    /// Wipes the unfinished row: it has been answered.
    pub(super) fn wipe_row(&mut self) {
        self.row.clear();
        self.column = 0;
    }

    /// Takes received bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.taken = self.taken.saturating_add(bytes.len());
        for byte in bytes {
            self.byte(*byte);
        }
    }

    fn byte(&mut self, byte: u8) {
        match std::mem::replace(&mut self.sequence, Sequence::None) {
            Sequence::None => self.plain(byte),
            Sequence::Escape => match byte {
                b'[' => self.sequence = Sequence::Control(Vec::new()),
                b']' | b'P' | b'X' | b'^' | b'_' => self.sequence = Sequence::Text(0, false),
                0x20..=0x2f => self.sequence = Sequence::Charset,
                0x00..=0x1f => self.plain(byte),
                // Index and next line move down (ECMA-48 8.3.86 NEL).
                b'D' | b'E' => self.finish_row(),
                _ => {}
            },
            Sequence::Charset => match byte {
                0x20..=0x2f => self.sequence = Sequence::Charset,
                0x00..=0x1f => self.plain(byte),
                _ => {}
            },
            Sequence::Control(mut parameters) => match byte {
                0x40..=0x7e => self.control(&parameters, byte),
                0x20..=0x3f if parameters.len() < SEQUENCE_MAX => {
                    parameters.push(byte);
                    self.sequence = Sequence::Control(parameters);
                }
                _ => self.plain(byte),
            },
            Sequence::Text(size, escaped) => match byte {
                BELL => {}
                b'\\' if escaped => {}
                b'\r' | b'\n' => self.plain(byte),
                _ if size >= STRING_MAX => {}
                _ => self.sequence = Sequence::Text(size + 1, byte == ESC),
            },
        }
    }

    fn plain(&mut self, byte: u8) {
        match byte {
            ESC => self.sequence = Sequence::Escape,
            b'\n' | 0x0b | 0x0c => self.finish_row(),
            b'\r' => self.column = 0,
            0x08 => self.left(1),
            b'\t' | 0x20..=0x7e | 0x80..=0xff => {
                self.flat(byte);
                if self.column < self.row.len() {
                    if let Some(old) = self.row.get_mut(self.column) {
                        *old = byte;
                    }
                } else if self.row.len() < COLUMNS_MAX {
                    // A few bytes may leave thousands of columns out: they count as sent.
                    self.taken = self.taken.saturating_add(self.column - self.row.len());
                    self.row.resize(self.column, b' ');
                    self.row.push(byte);
                } else {
                    // Longer than any row of a device: goes on in the next.
                    self.end_row();
                    self.row.push(byte);
                }
                self.column += 1;
            }
            _ => {}
        }
    }

    fn finish_row(&mut self) {
        self.newlines = self.newlines.saturating_add(1);
        self.end_row();
    }

    fn end_row(&mut self) {
        let end = self
            .row
            .iter()
            .rposition(|b| !matches!(b, b' ' | b'\t'))
            .map_or(0, |at| at + 1);
        self.finished
            .extend(self.row.get(..end).unwrap_or_default());
        self.finished.push(b'\n');
        self.flat(b'\n');
        self.wipe_row();
    }

    fn flat(&mut self, byte: u8) {
        if self.flat.len() < FLAT_MAX {
            self.flat.push(byte);
        }
    }

    /// One column is one character: continuation bytes of UTF-8 go with their first byte.
    fn left(&mut self, count: usize) {
        for _ in 0..count.min(self.column) {
            if self.column == 0 {
                return;
            }
            self.column -= 1;
            while self.column > 0 && self.row.get(self.column).is_some_and(|b| b & 0xc0 == 0x80) {
                self.column -= 1;
            }
        }
    }

    fn control(&mut self, parameters: &[u8], last: u8) {
        let numbers: Vec<usize> = parameters
            .split(|b| *b == b';')
            .map(|n| {
                let digits = std::str::from_utf8(n).unwrap_or_default();
                digits.parse().unwrap_or(0)
            })
            .collect();
        let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
        let count = number(0).max(1);
        let here = self.column.min(self.row.len());
        match last {
            // Erase in line, in page (ECMA-48 8.3.41 EL, 8.3.39 ED).
            b'K' | b'J' => match number(0) {
                0 => self.row.truncate(here),
                1 => self.row.iter_mut().take(here).for_each(|b| *b = b' '),
                _ => self.row.clear(),
            },
            b'D' => self.left(count),
            b'C' => self.column = self.column.saturating_add(count).min(COLUMNS_MAX),
            b'G' | b'`' => self.column = count.saturating_sub(1).min(COLUMNS_MAX),
            b'P' => {
                let end = here.saturating_add(count).min(self.row.len());
                self.row.drain(here..end);
            }
            b'X' => {
                let cells = self.row.iter_mut().skip(here).take(count);
                cells.for_each(|b| *b = b' ');
            }
            // Cursor address: another row ends this one (ECMA-48 8.3.21 CUP).
            b'H' | b'f' => {
                if self.address != count && !self.row.is_empty() {
                    self.finish_row();
                }
                self.address = count;
                self.column = number(1).saturating_sub(1).min(COLUMNS_MAX);
            }
            b'E' => self.finish_row(),
            _ => {}
        }
    }
}

/// How many rows of `flat` end with the echo of `line`.
fn rows_of_echo(flat: &str, line: &str) -> Option<usize> {
    let wanted: Vec<char> = line.chars().filter(|c| !c.is_whitespace()).collect();
    let letters: Vec<(usize, char)> = flat
        .char_indices()
        .filter(|(_, c)| !c.is_whitespace())
        .collect();
    if wanted.is_empty() {
        return None;
    }
    letters.windows(wanted.len()).find_map(|window| {
        if !window.iter().map(|(_, c)| c).eq(wanted.iter()) {
            return None;
        }
        let (at, last) = window.last()?;
        let end = at + last.len_utf8();
        let rest = flat.get(end..)?;
        let (tail, _) = rest.split_once('\n')?;
        let before = flat.get(..end)?.matches('\n').count();
        tail.trim().is_empty().then_some(before + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8]) -> (String, String) {
        let mut screen = Screen::new();
        screen.take(bytes);
        (screen.finished(), screen.row())
    }

    #[test]
    fn rows_are_what_a_person_sees() {
        for (bytes, finished, row) in [
            (&b"a\r\nb"[..], "a\n", "b"),
            (b"a\r\0\nb\n\rc", "a\nb\n", "c"),
            (b"\x1b[?2004hnas# \x1b[?2004l", "", "nas# "),
            (b"x\r\n --More-- \r         \rnext\r\n", "x\nnext\n", ""),
            (
                b" --More-- \x08\x08\x08\x08\x08\x08\x08\x08\x08\x08          \r\nz",
                "\n",
                "z",
            ),
            (
                b"---- More ----\x1b[14D              \x1b[14Dnext\n",
                "next\n",
                "",
            ),
            (b"--More--\r\x1b[Kline", "", "line"),
            (b"\x1b]0;title\x07p> ", "", "p> "),
            (b"\x1b]0;title\x1b\\p> ", "", "p> "),
            (b"\x1b(B\x1b[1;31mred\x1b[0m", "", "red"),
            (b"abc\x08\x1b[Pd", "", "abd"),
            (b"\x1b[24;1Hsw# \x1b[24;1H\x1b[24;5H", "", "sw# "),
            (b"one\x1b[2;1Htwo", "one\n", "two"),
            ("\u{43f}\u{44c}\x08\u{44f}".as_bytes(), "", "\u{43f}\u{44f}"),
            (b"\xff\xfeok", "", "\\xff\\xfeok"),
            (b"bell\x07\x00\x7f", "", "bell"),
            (b"wide  \t\r\n", "wide\n", ""),
        ] {
            assert_eq!(
                shown(bytes),
                (finished.to_owned(), row.to_owned()),
                "{bytes:?}"
            );
        }
    }

    /// Found by fuzzing: columns are counted in characters to the left, in bytes by the row.
    #[test]
    fn left_of_the_first_column_is_nothing() {
        assert_eq!(
            shown("\u{43f}\u{44c}\x1b[4D!".as_bytes()).1,
            "!\\xbf\u{44c}"
        );
        assert_eq!(shown(b"ab\x1b[9Dc").1, "cb");
    }

    #[test]
    fn what_is_left_out_counts_as_sent() {
        let mut screen = Screen::new();
        for _ in 0..100 {
            screen.take(b"\x1b[4000C#\n");
        }
        assert!(screen.finished.len() > 100 * 4_000);
        assert!(screen.taken() >= screen.finished.len());
    }

    #[test]
    fn nothing_makes_it_grow_beyond_what_was_sent() {
        let mut screen = Screen::new();
        screen.take(b"\x1b[99999999C#\x1b[4000000000G!");
        assert!(screen.row.len() <= COLUMNS_MAX + 1);
        let mut screen = Screen::new();
        screen.take(&vec![b'x'; 3 * COLUMNS_MAX]);
        assert!(screen.row.len() <= COLUMNS_MAX);
        screen.take(b"\x1b[");
        screen.take(&vec![b'1'; 10_000]);
        screen.take(b"\x1b]");
        screen.take(&vec![b'1'; 10_000]);
        assert!(screen.finished.len() < 8 * COLUMNS_MAX);
    }
}
