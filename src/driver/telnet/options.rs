//! Telnet's own bytes (RFC 854, RFC 855): commands and options are taken out of the stream.
//! Every option is refused, which RFC 854 allows and which leaves the network virtual
//! terminal; by the rules of RFC 1143 a refusal is never answered and a settled state never
//! announced again, so two sides cannot talk about options for ever.

const IAC: u8 = 255;
const DONT: u8 = 254;
const DO: u8 = 253;
const WONT: u8 = 252;
const WILL: u8 = 251;
const SB: u8 = 250;
const SE: u8 = 240;

/// Refusals of one request of one option: a sound peer asks once, perhaps again after a
/// change of state; a broken one is not answered for ever.
const REFUSALS_MAX: u8 = 8;
/// Bytes of one subnegotiation; none is wanted, a longer one is not one.
const SUBNEGOTIATION_MAX: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Data,
    /// After CR: NUL belongs to it (RFC 854, "The NVT printer and keyboard").
    Return,
    /// After IAC.
    Command,
    /// After IAC and WILL, WONT, DO or DONT.
    Option(u8),
    /// In a subnegotiation, by its length so far.
    Subnegotiation(usize),
    /// After IAC in it.
    SubnegotiationCommand(usize),
}

/// The state of one connection.
#[derive(Debug)]
pub struct Options {
    state: State,
    /// Refusals of WILL and of DO, by option.
    refused: Vec<(u8, u8)>,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// Of a connection on which nothing has been said.
    pub fn new() -> Self {
        Self {
            state: State::Data,
            refused: vec![(0, 0); 256],
        }
    }

    /// Takes received bytes apart: text goes to `data`, what has to be sent to `reply`, which
    /// is at most as long as `bytes`.
    pub fn take(&mut self, bytes: &[u8], data: &mut Vec<u8>, reply: &mut Vec<u8>) {
        for byte in bytes {
            self.byte(*byte, data, reply);
        }
    }

    fn byte(&mut self, byte: u8, data: &mut Vec<u8>, reply: &mut Vec<u8>) {
        self.state = match (self.state, byte) {
            (State::Data | State::Return, IAC) => State::Command,
            (State::Return, 0) => State::Data,
            (State::Data | State::Return, b'\r') => {
                data.push(byte);
                State::Return
            }
            (State::Data | State::Return, _) => {
                data.push(byte);
                State::Data
            }
            (State::Command, IAC) => {
                data.push(IAC);
                State::Data
            }
            (State::Command, WILL | WONT | DO | DONT) => State::Option(byte),
            (State::Command, SB) => State::Subnegotiation(0),
            // NOP, DM, BRK, IP, AO, AYT, EC, EL, GA, and what is newer: nothing to a client.
            (State::Command, _) => State::Data,
            (State::Option(verb), option) => {
                self.refuse(verb, option, reply);
                State::Data
            }
            (State::Subnegotiation(size), IAC) => State::SubnegotiationCommand(size),
            (State::Subnegotiation(size), _) => longer(size),
            (State::SubnegotiationCommand(_), SE) => State::Data,
            (State::SubnegotiationCommand(size), IAC) => longer(size),
            // Its end is missing; this is the next command (RFC 855).
            (State::SubnegotiationCommand(_), WILL | WONT | DO | DONT) => State::Option(byte),
            (State::SubnegotiationCommand(_), SB) => State::Subnegotiation(0),
            (State::SubnegotiationCommand(_), _) => State::Data,
        };
    }

    fn refuse(&mut self, verb: u8, option: u8, reply: &mut Vec<u8>) {
        let Some((will, request)) = self.refused.get_mut(usize::from(option)) else {
            return;
        };
        let (count, answer) = match verb {
            WILL => (will, DONT),
            DO => (request, WONT),
            // WONT and DONT name the state that is: to answer would begin a loop (RFC 1143).
            _ => return,
        };
        if *count < REFUSALS_MAX {
            *count += 1;
            reply.extend([IAC, answer, option]);
        }
    }

    /// Text as it goes out: a carriage return is followed by NUL, IAC is doubled (RFC 854).
    pub fn encode(&self, text: &[u8], out: &mut Vec<u8>) {
        for byte in text {
            out.push(*byte);
            match *byte {
                b'\r' => out.push(0),
                IAC => out.push(IAC),
                _ => {}
            }
        }
    }
}

fn longer(size: usize) -> State {
    if size >= SUBNEGOTIATION_MAX {
        State::Data
    } else {
        State::Subnegotiation(size + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut data, mut reply) = (Vec::new(), Vec::new());
        Options::new().take(bytes, &mut data, &mut reply);
        (data, reply)
    }

    #[test]
    fn commands_leave_the_stream_and_options_are_refused() {
        // What inetutils' telnetd opens with: DO AUTHENTICATION, WILL ECHO.
        let (data, reply) = taken(b"\xff\xfd\x25a\xff\xfb\x01b\xff\xf9c");
        assert_eq!(
            (data.as_slice(), reply.as_slice()),
            (&b"abc"[..], &b"\xff\xfc\x25\xff\xfe\x01"[..])
        );
        let (data, reply) = taken(b"x\xff\xfc\x01\xff\xfe\x01y");
        assert_eq!(
            (data.as_slice(), reply.len()),
            (&b"xy"[..], 0),
            "a refusal is not answered"
        );
        let (data, _) = taken(b"a\xff\xffb\r\0c\r\nd\0e");
        assert_eq!(data, b"a\xffb\rc\r\nd\0e");
        let (data, _) = taken(b"1\xff\xfa\x18\x01 \xff\xff \xff\xf02");
        assert_eq!(data, b"12");
        let (data, reply) = taken(b"1\xff\xfa\x18\x01\xff\xfd\x182");
        assert_eq!(
            (data.as_slice(), reply.as_slice()),
            (&b"12"[..], &b"\xff\xfc\x18"[..])
        );
    }

    #[test]
    fn a_peer_that_asks_for_ever_is_not_answered_for_ever() {
        let ask: Vec<u8> = [IAC, WILL, 3].repeat(10_000);
        let (_, reply) = taken(&ask);
        assert_eq!(reply.len(), 3 * usize::from(REFUSALS_MAX));
        let mut endless = vec![IAC, SB];
        endless.resize(10 * SUBNEGOTIATION_MAX, b'x');
        endless.extend(b"\r\nprompt> ");
        let (data, _) = taken(&endless);
        assert!(data.ends_with(b"prompt> "));
    }

    #[test]
    fn lines_go_out_as_the_virtual_terminal_wants_them() {
        let mut out = Vec::new();
        Options::new().encode(b"show\r\xff", &mut out);
        assert_eq!(out, b"show\r\0\xff\xff");
    }

    proptest! {
        #[test]
        fn however_it_is_split_it_is_the_same(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(IAC), 239..=255_u8], 0..300),
            cuts in proptest::collection::vec(0..300_usize, 0..10),
        ) {
            let whole = taken(&bytes);
            let (mut data, mut reply) = (Vec::new(), Vec::new());
            let mut options = Options::new();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for to in cuts.into_iter().chain([bytes.len()]) {
                options.take(&bytes[from..to], &mut data, &mut reply);
                from = to;
            }
            prop_assert!(reply.len() <= bytes.len());
            prop_assert_eq!((data, reply), whole);
        }
    }
}
