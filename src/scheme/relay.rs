//! The shim's pipes: lines of the script's output, bounded, into frames for the daemon. Nothing
//! here waits: a script that floods or a daemon that is slow must not hold up the deadline.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use super::shim::nonblocking;

/// A longer line is passed on in pieces of this size, bytes.
const PIECE_MAX: usize = 60 * 1024;
/// Bytes read from one stream before the other things get their turn.
const TURN_MAX: usize = 1024 * 1024;

/// Frames on their way to the daemon: a kind byte, one line, a newline. Bounded by the caps of
/// the streams that fill it.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    broken: bool,
}

impl Outbox {
    /// Adds a frame; `line` holds no newline.
    pub(super) fn push(&mut self, kind: u8, line: &[u8]) {
        self.bytes.reserve(line.len() + 2);
        self.bytes.push(kind);
        self.bytes.extend_from_slice(line);
        self.bytes.push(b'\n');
    }

    /// Whether everything has been taken.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes what the pipe takes now; `false` = nobody reads any more.
    pub(super) fn flush(&mut self) -> bool {
        let stdout = std::io::stdout();
        while !self.broken && self.sent < self.bytes.len() {
            match write(&stdout, self.bytes.get(self.sent..).unwrap_or_default()) {
                Ok(n) => self.sent += n,
                Err(Errno::EAGAIN) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => self.broken = true,
            }
        }
        self.bytes.clear();
        self.sent = 0;
        !self.broken
    }

    /// Writes the rest, waiting for the daemon: nothing else is left to be done.
    pub(super) fn finish(&mut self) -> bool {
        let stdout = std::io::stdout();
        while self.flush() {
            if self.is_empty() {
                return true;
            }
            let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut fds, PollTimeout::NONE);
        }
        false
    }
}

/// One output stream of the script.
pub(super) struct Stream<R> {
    kind: u8,
    pipe: Option<R>,
    partial: Vec<u8>,
    room: usize,
    lost: u64,
}

impl<R: AsFd> Stream<R> {
    /// `kind` is the frame's letter, `room` the bytes that may pass.
    pub(super) fn new(kind: u8, pipe: R, room: usize) -> Self {
        Self {
            kind,
            pipe: Some(pipe),
            partial: Vec::new(),
            room,
            lost: 0,
        }
    }

    /// Makes its pipe return at once when empty.
    pub(super) fn prepare(&self) -> Result<(), Errno> {
        self.pipe.as_ref().map_or(Ok(()), nonblocking)
    }

    /// Every writer has closed it.
    pub(super) fn ended(&self) -> bool {
        self.pipe.is_none()
    }

    /// Bytes that did not pass.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// What to wait for.
    pub(super) fn poll_fd(&self) -> Option<PollFd<'_>> {
        self.pipe
            .as_ref()
            .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
    }

    /// Takes what is there.
    pub(super) fn pump(&mut self, outbox: &mut Outbox) {
        let mut buffer = [0; 4 * 1024];
        let mut taken = 0;
        while let Some(pipe) = &self.pipe {
            match read(pipe, &mut buffer) {
                Ok(0) => self.end(outbox),
                Ok(n) => {
                    taken += n;
                    self.take(buffer.get(..n).unwrap_or_default(), outbox);
                    if taken >= TURN_MAX {
                        return;
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(_) => self.end(outbox),
            }
        }
    }

    /// Closes it and passes on a last line without a newline.
    pub(super) fn end(&mut self, outbox: &mut Outbox) {
        self.pipe = None;
        if !self.partial.is_empty() {
            let line = std::mem::take(&mut self.partial);
            self.pass(&line, outbox);
        }
    }

    fn take(&mut self, mut bytes: &[u8], outbox: &mut Outbox) {
        while let Some(at) = bytes.iter().position(|b| *b == b'\n') {
            let (line, rest) = bytes.split_at(at);
            bytes = rest.get(1..).unwrap_or_default();
            if self.partial.is_empty() {
                self.pass(line, outbox);
            } else {
                self.partial.extend_from_slice(line);
                let line = std::mem::take(&mut self.partial);
                self.pass(&line, outbox);
            }
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() > PIECE_MAX {
            let piece = std::mem::take(&mut self.partial);
            self.pass(&piece, outbox);
        }
    }

    fn pass(&mut self, line: &[u8], outbox: &mut Outbox) {
        // two bytes for the frame: a flood of empty lines is a flood too
        match self.room.checked_sub(line.len() + 2) {
            Some(room) => {
                self.room = room;
                outbox.push(self.kind, line);
            }
            None => {
                self.room = 0;
                self.lost += line.len() as u64 + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn relayed(input: &[u8], room: usize) -> (String, u64) {
        let (from, mut to) = std::io::pipe().unwrap();
        let mut outbox = Outbox::default();
        let mut stream = Stream::new(b'o', from, room);
        stream.prepare().unwrap();
        for part in input.chunks(4_096) {
            to.write_all(part).unwrap();
            stream.pump(&mut outbox);
        }
        drop(to);
        stream.pump(&mut outbox);
        assert!(stream.ended());
        (String::from_utf8(outbox.bytes).unwrap(), stream.lost())
    }

    #[test]
    fn lines_become_frames_and_the_last_needs_no_newline() {
        assert_eq!(relayed(b"a\n\nlast", 100), ("oa\no\nolast\n".to_owned(), 0));
    }

    #[test]
    fn output_is_capped_and_counted() {
        let (frames, lost) = relayed(&b"123456\n".repeat(10), 20);
        assert_eq!(frames, "o123456\no123456\n");
        assert_eq!(lost, 56);
        let (frames, lost) = relayed(&vec![b'x'; 300_000], 100_000);
        assert!(frames.len() <= 100_002, "{}", frames.len());
        assert!(lost >= 200_000, "{lost}");
    }
}
