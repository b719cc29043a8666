//! The requests that one socket waits for: identifiers, retransmission, and which replies
//! count. Pure: time and randomness are arguments, packets go in and out as bytes.
//!
//! Retransmission is RFC 5080 section 2.2.1: the identical bytes, waits that double with
//! jitter, an end after so many copies or so much time. A reply counts if identifier, kind,
//! Response Authenticator and Message-Authenticator fit a request that waits; anything else is
//! counted and changes nothing, so that a forger can neither answer nor stop a request.

use std::time::Duration;

use super::packet::{Authenticator, Avp, Code, Dressing, Packet, build};
use super::recent::Recent;

/// Identifiers of a socket (RFC 2865 section 3: one byte).
pub const IDS: usize = 256;
/// Upper bound of the first wait (RFC 5080: IRT).
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// Lower bound: a NAS on another continent answers within it.
const FIRST_WAIT_MIN: Duration = Duration::from_millis(50);
/// Longest wait between copies (RFC 5080: MRT).
const WAIT_MAX: Duration = Duration::from_secs(16);
/// Copies after the first (RFC 5080: MRC).
const COPIES_MAX: u32 = 5;
/// All of it (RFC 5080: MRD).
pub const PATIENCE: Duration = Duration::from_secs(30);
/// With less time, the first wait is this part of it, so that there are about three copies.
const PART: u32 = 6;

/// A request as the scheme wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `CoaRequest` or `DisconnectRequest`.
    pub code: Code,
    /// Attributes as bytes, made by `packet::put`.
    pub attributes: Vec<u8>,
}

/// How this NAS is spoken to.
#[derive(Clone, PartialEq, Eq)]
pub struct Manner {
    /// Shared secret.
    pub secret: Vec<u8>,
    /// Requests carry a Message-Authenticator.
    pub message_authenticator: bool,
    /// Replies must carry one.
    pub require_message_authenticator: bool,
    /// Requests carry an Event-Timestamp.
    pub event_timestamp: bool,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// ACK or NAK.
    pub code: Code,
    /// Attributes in the order of the packet.
    pub avps: Vec<Avp>,
    /// Copies of the request that had been sent.
    pub copies: u32,
}

/// Packets that came and did not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Not a RADIUS packet: truncated, wrong lengths.
    pub malformed: u64,
    /// Nobody waits for this identifier: late, repeated, invented.
    pub late: u64,
    /// Signed by nobody who knows the secret, or of another kind.
    pub forged: u64,
}

impl Ignored {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.malformed + self.late + self.forged
    }
}

/// Identifier, packet, its authenticator.
type Dressed = (u8, Vec<u8>, Authenticator);

struct Waiting<W> {
    code: Code,
    bytes: Vec<u8>,
    authenticator: Authenticator,
    waiter: W,
    copies: u32,
    /// Milliseconds until the next copy, from the last one.
    wait_ms: u64,
    next_at: u64,
    until: u64,
    /// Forged replies to this identifier meanwhile.
    forged: u64,
}

/// One request that nobody answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Silence<W> {
    /// Who waited.
    pub waiter: W,
    /// Copies that had been sent.
    pub copies: u32,
    /// Replies to it that did not count.
    pub forged: u64,
}

/// The outstanding requests of one socket; `W` is who waits for the answer.
pub struct Exchange<W> {
    slots: Vec<Option<Waiting<W>>>,
    recent: Recent,
    next: u8,
    open: usize,
    manner: Manner,
    ignored: Ignored,
}

impl<W> Exchange<W> {
    /// Nothing waits; `first` is where identifiers begin, any number.
    pub fn new(manner: Manner, first: u8) -> Self {
        Self {
            slots: std::iter::repeat_with(|| None).take(IDS).collect(),
            recent: Recent::default(),
            next: first,
            open: 0,
            manner,
            ignored: Ignored::default(),
        }
    }

    /// Requests that wait.
    pub fn open(&self) -> usize {
        self.open
    }

    /// What came and did not count, since the start.
    pub fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// Takes an identifier, the one that was free for the longest time and under which the device
    /// does not know these very bytes, and gives the bytes to send. `now` and `until` are ms of the
    /// monotonic clock, `wall_s` seconds since 1970.
    pub fn begin(
        &mut self,
        request: &Request,
        waiter: W,
        now: u64,
        until: u64,
        wall_s: u32,
        dice: u32,
    ) -> Result<&[u8], (W, String)> {
        self.recent.forget(now);
        let (id, bytes, authenticator) = match self.dressed(request, wall_s) {
            Ok(dressed) => dressed,
            Err(reason) => return Err((waiter, reason)),
        };
        self.recent.sent(&authenticator, now);
        self.next = id.wrapping_add(1);
        self.open += 1;
        let budget = Duration::from_millis(until.saturating_sub(now)).min(PATIENCE);
        let first = (budget / PART).clamp(FIRST_WAIT_MIN, FIRST_WAIT);
        let wait_ms = jittered(millis(first), dice);
        let waiting = Waiting {
            code: request.code,
            bytes,
            authenticator,
            waiter,
            copies: 1,
            wait_ms,
            next_at: now.saturating_add(wait_ms),
            until: now.saturating_add(millis(budget)),
            forged: 0,
        };
        let slot = self.slots.get_mut(usize::from(id));
        Ok(slot.map_or(&[], |slot| &slot.insert(waiting).bytes))
    }

    fn dressed(&self, request: &Request, wall_s: u32) -> Result<Dressed, String> {
        let dressing = Dressing {
            message_authenticator: self.manner.message_authenticator,
            event_timestamp: self.manner.event_timestamp.then_some(wall_s),
        };
        let mut reason = "all 256 identifiers of the socket wait";
        let ids = (0..=u8::MAX).map(|n| self.next.wrapping_add(n));
        for id in ids {
            if !self.slots.get(usize::from(id)).is_some_and(Option::is_none) {
                continue;
            }
            let secret = &self.manner.secret;
            let (code, attributes) = (request.code, &request.attributes);
            let bytes = build(code, id, [0; 16], attributes, dressing, secret)?;
            let parsed = Packet::parse(&bytes).map(|p| p.authenticator());
            let authenticator = parsed.unwrap_or_default();
            if !self.recent.knows(&authenticator) {
                return Ok((id, bytes, authenticator));
            }
            reason = "this very request was sent under every free identifier of the socket within \
                      the last 35 s: the device would take it for a copy and not do it again";
        }
        Err(reason.to_owned())
    }

    /// When [`Self::tick`] has something to do.
    pub fn due(&self) -> Option<u64> {
        if self.open == 0 {
            return None;
        }
        let times = self.slots.iter().flatten();
        times.map(|w| w.next_at.min(w.until)).min()
    }

    /// The next copies to send are handed to `send`; gives back who has waited in vain, or is
    /// no longer `wanted`.
    pub fn tick(
        &mut self,
        now: u64,
        dice: u32,
        wanted: impl Fn(&W) -> bool,
        mut send: impl FnMut(&[u8]),
    ) -> Vec<Silence<W>> {
        let mut ended = Vec::new();
        let ids = 0_u32..;
        for (slot, id) in self.slots.iter_mut().zip(ids) {
            let Some(waiting) = slot else { continue };
            let due = now >= waiting.next_at;
            let over = now >= waiting.until || (due && waiting.copies > COPIES_MAX);
            if over || !wanted(&waiting.waiter) {
                if let Some(gone) = slot.take() {
                    self.open -= 1;
                    ended.push(Silence {
                        waiter: gone.waiter,
                        copies: gone.copies,
                        forged: gone.forged,
                    });
                }
                continue;
            }
            if due {
                // The identical bytes: a NAS that has them already repeats its answer.
                send(&waiting.bytes);
                waiting.copies += 1;
                let doubled = waiting.wait_ms.saturating_mul(2).min(millis(WAIT_MAX));
                waiting.wait_ms =
                    jittered(doubled, dice.wrapping_add(id.wrapping_mul(2_654_435_761)));
                waiting.next_at = now.saturating_add(waiting.wait_ms);
            }
        }
        ended
    }

    /// A datagram from the NAS; gives the waiter whom it answers.
    pub fn receive(&mut self, bytes: &[u8]) -> Option<(W, Answer)> {
        let Ok(packet) = Packet::parse(bytes) else {
            self.ignored.malformed += 1;
            return None;
        };
        let Some(slot) = self.slots.get_mut(usize::from(packet.id())) else {
            self.ignored.malformed += 1;
            return None;
        };
        let Some(waiting) = slot else {
            self.ignored.late += 1;
            return None;
        };
        let code = packet.code().filter(|code| code.answers(waiting.code));
        let genuine = packet.verify_reply(
            &waiting.authenticator,
            &self.manner.secret,
            self.manner.require_message_authenticator,
        );
        let (Some(code), Ok(())) = (code, genuine) else {
            waiting.forged += 1;
            self.ignored.forged += 1;
            return None;
        };
        let done = slot.take()?;
        self.open -= 1;
        let answer = Answer {
            code,
            avps: packet.avps(),
            copies: done.copies,
        };
        Some((done.waiter, answer))
    }

    /// Everybody who waits, with the copies that were sent; afterwards nothing waits.
    pub fn give_up(&mut self) -> Vec<Silence<W>> {
        self.open = 0;
        let gone = self.slots.iter_mut().filter_map(Option::take);
        gone.map(|w| Silence {
            waiter: w.waiter,
            copies: w.copies,
            forged: w.forged,
        })
        .collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// ± 10 % (RFC 5080: RAND).
fn jittered(wait_ms: u64, dice: u32) -> u64 {
    let tenth = wait_ms / 10;
    let part = u64::from(dice) % (2 * tenth + 1);
    wait_ms - tenth + part
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    const SECRET: &[u8] = b"servicemode";

    fn manner() -> Manner {
        Manner {
            secret: SECRET.to_vec(),
            message_authenticator: true,
            require_message_authenticator: false,
            event_timestamp: true,
        }
    }

    fn request() -> Request {
        Request {
            code: Code::CoaRequest,
            attributes: vec![1, 3, b'u'],
        }
    }

    fn reply(code: Code, to: &[u8], secret: &[u8]) -> Vec<u8> {
        let packet = Packet::parse(to).unwrap();
        let dressing = Dressing {
            message_authenticator: true,
            event_timestamp: None,
        };
        build(
            code,
            packet.id(),
            packet.authenticator(),
            &[],
            dressing,
            secret,
        )
        .unwrap()
    }

    /// Runs one request against silence; the times of its copies and of its end.
    fn silence(budget: u64, dice: u32) -> (Vec<u64>, u64, u32) {
        let mut exchange = Exchange::new(manner(), 0);
        let first = exchange
            .begin(&request(), (), 0, budget, 1_700_000_000, dice)
            .unwrap()
            .to_vec();
        let mut times = vec![0];
        while let Some(due) = exchange.due() {
            let mut sent = Vec::new();
            let ended = exchange.tick(due, dice, |()| true, |b| sent.push(b.to_vec()));
            for bytes in sent {
                assert_eq!(bytes, first, "a copy is not the same");
                times.push(due);
            }
            if let Some(end) = ended.first() {
                assert_eq!(exchange.open(), 0);
                return (times, due, end.copies);
            }
        }
        panic!("it never ends");
    }

    #[test]
    fn silence_is_retried_as_rfc_5080_says() {
        let (times, end, copies) = silence(60_000, 0);
        // 1.8 s, then doubled and shortened by a tenth each time.
        assert_eq!(times[..3], [0, 1_800, 1_800 + 3_240]);
        assert_eq!(usize::try_from(copies).unwrap(), times.len());
        assert!(times.len() <= 6 && end <= 30_000, "{times:?} {end}");
        let (times, end, _) = silence(1_000, 7);
        assert!((3..=4).contains(&times.len()) && end == 1_000, "{times:?}");
    }

    #[test]
    fn only_the_right_answer_counts() {
        let mut exchange = Exchange::new(manner(), 250);
        let sent = exchange
            .begin(&request(), "a", 0, 9_000, 1, 0)
            .unwrap()
            .to_vec();
        let good = reply(Code::CoaNak, &sent, SECRET);
        let mut other_id = good.clone();
        other_id[1] = other_id[1].wrapping_add(1);
        for bad in [
            &reply(Code::CoaNak, &sent, b"guessed")[..],
            &reply(Code::DisconnectAck, &sent, SECRET),
            &reply(Code::CoaRequest, &sent, SECRET),
            &sent,
            &other_id,
            &good[..good.len() - 1],
            &[],
            &[44; 5000],
        ] {
            assert!(exchange.receive(bad).is_none());
        }
        assert_eq!(exchange.open(), 1);
        let counted = Ignored {
            malformed: 3,
            late: 1,
            forged: 4,
        };
        assert_eq!(exchange.ignored(), counted);
        let (who, answer) = exchange.receive(&good).unwrap();
        assert_eq!((who, answer.code, answer.copies), ("a", Code::CoaNak, 1));
        // A copy of it, and whatever comes later, is late.
        assert!(exchange.receive(&good).is_none());
        assert_eq!((exchange.ignored().late, exchange.open()), (2, 0));
    }

    #[test]
    fn a_strict_nas_must_sign_twice() {
        let strict = Manner {
            require_message_authenticator: true,
            ..manner()
        };
        for (manner, counts) in [(strict, false), (manner(), true)] {
            let mut exchange = Exchange::new(manner, 0);
            let sent = exchange
                .begin(&request(), (), 0, 9_000, 1, 0)
                .unwrap()
                .to_vec();
            let packet = Packet::parse(&sent).unwrap();
            let bare = Dressing {
                message_authenticator: false,
                event_timestamp: None,
            };
            let bytes = build(
                Code::CoaAck,
                packet.id(),
                packet.authenticator(),
                &[],
                bare,
                SECRET,
            );
            assert_eq!(exchange.receive(&bytes.unwrap()).is_some(), counts);
        }
    }

    #[test]
    fn identifiers_run_out_and_come_back_in_turn() {
        let mut exchange = Exchange::new(manner(), 200);
        let mut sent = Vec::new();
        for n in 0..IDS {
            let begun = exchange.begin(&request(), n, 0, 9_000, 1, 0);
            sent.push(begun.unwrap().to_vec());
        }
        let mut ids: Vec<u8> = sent.iter().map(|b| b[1]).collect();
        assert_eq!(ids[..2], [200, 201]);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), IDS);
        let (who, reason) = exchange.begin(&request(), 999, 0, 9_000, 1, 0).unwrap_err();
        assert!(who == 999 && reason.contains("256"));
        exchange
            .receive(&reply(Code::CoaAck, &sent[7], SECRET))
            .unwrap();
        let again = exchange.begin(&request(), 1_000, 0, 9_000, 2, 0).unwrap();
        assert_eq!(again[1], sent[7][1]);
    }

    #[test]
    fn the_same_request_is_no_copy_of_an_earlier_one() {
        let mut exchange = Exchange::new(manner(), 0);
        let mut asked = |now, wall_s, attributes: &[u8]| {
            let request = Request {
                attributes: attributes.to_vec(),
                ..request()
            };
            let bytes = exchange
                .begin(&request, (), now, 9_000, wall_s, 0)
                .map(<[u8]>::to_vec);
            let bytes = bytes.map_err(|((), reason)| reason)?;
            let answer = reply(Code::CoaAck, &bytes, SECRET);
            assert!(exchange.receive(&answer).is_some());
            Ok::<_, String>(bytes)
        };
        let open = [1, 3, b'u'];
        let other = [1, 3, b'v'];
        let first = asked(0, 1, &open).unwrap();
        for _ in 1..IDS {
            asked(0, 1, &other).unwrap();
        }
        // Identifier 0 is next; the device may still know these bytes under it.
        let second = asked(900, 1, &open).unwrap();
        assert_eq!((first[1], second[1]), (0, 1));
        assert_eq!(asked(950, 1, &other).unwrap()[1], 0);
        // Nor is it one when another has had the identifier in between.
        assert_eq!(asked(960, 1, &open).unwrap()[1], 2);
        // Of another second it is a request of its own.
        assert_eq!(asked(999, 2, &open).unwrap()[1], 3);
        for _ in 0..IDS {
            asked(2_000, 3, &open).unwrap();
        }
        let refused = asked(2_000, 3, &open).unwrap_err();
        assert!(refused.contains("copy"), "{refused}");
        assert!(asked(36_999, 3, &open).is_err() && asked(37_000, 3, &open).is_ok());
    }

    #[test]
    fn who_no_longer_waits_frees_the_identifier() {
        let mut exchange = Exchange::new(manner(), 0);
        exchange.begin(&request(), 1, 0, 9_000, 1, 0).unwrap();
        exchange.begin(&request(), 2, 0, 9_000, 1, 0).unwrap();
        let ended = exchange.tick(1, 0, |who| *who == 2, |_| panic!("too early"));
        assert_eq!((ended[0].waiter, exchange.open()), (1, 1));
        assert_eq!(exchange.give_up().len(), 1);
    }

    /// What a hostile or slow network does with the packets.
    #[derive(Debug, Clone)]
    enum Happens {
        Begin,
        Answer(usize, u8),
        Garbage(Vec<u8>),
        Flip(usize, usize),
        Time(u64),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            3 => Just(Happens::Begin),
            3 => (any::<usize>(), 40..47_u8).prop_map(|(n, code)| Happens::Answer(n, code)),
            1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Happens::Garbage),
            1 => (any::<usize>(), any::<usize>()).prop_map(|(n, bit)| Happens::Flip(n, bit)),
            2 => (0..4_000_u64).prop_map(Happens::Time),
        ]
    }

    proptest! {
        /// Each request ends exactly once, by its own genuine answer or by silence in time.
        #[test]
        fn each_request_ends_once(steps in prop::collection::vec(happens(), 1..120), dice in any::<u32>()) {
            let mut exchange = Exchange::new(manner(), 0);
            let mut now = 0;
            let mut sent: Vec<(Vec<u8>, u64)> = Vec::new();
            let mut ended: BTreeMap<usize, &str> = BTreeMap::new();
            for step in steps {
                match step {
                    Happens::Begin if exchange.open() < IDS => {
                        let n = sent.len();
                        let bytes = exchange.begin(&request(), n, now, now + 20_000, 1, dice).unwrap();
                        sent.push((bytes.to_vec(), now));
                    }
                    Happens::Begin => {}
                    Happens::Answer(n, code) if !sent.is_empty() => {
                        let n = n % sent.len();
                        let Some(code) = Code::of(code) else { continue };
                        let bytes = reply(code, &sent[n].0, SECRET);
                        let got = exchange.receive(&bytes);
                        if let Some((who, answer)) = got {
                            // Identical bytes cannot be told apart, and need not be.
                            prop_assert_eq!(&sent[who].0, &sent[n].0);
                            prop_assert!(answer.code.answers(Code::CoaRequest));
                            prop_assert!(ended.insert(who, "answer").is_none());
                        }
                    }
                    Happens::Flip(n, bit) if !sent.is_empty() => {
                        let mut bytes = reply(Code::CoaAck, &sent[n % sent.len()].0, SECRET);
                        let bit = bit % (bytes.len() * 8);
                        bytes[bit / 8] ^= 1 << (bit % 8);
                        prop_assert!(exchange.receive(&bytes).is_none());
                    }
                    Happens::Answer(..) | Happens::Flip(..) => {}
                    Happens::Garbage(bytes) => prop_assert!(exchange.receive(&bytes).is_none()),
                    Happens::Time(ms) => {
                        now += ms;
                        for silent in exchange.tick(now, dice, |_| true, |_| ()) {
                            prop_assert!(ended.insert(silent.waiter, "silence").is_none());
                        }
                    }
                }
                prop_assert_eq!(exchange.open(), sent.len() - ended.len());
            }
            for silent in exchange.tick(now + 40_000, dice, |_| true, |_| ()) {
                prop_assert!(ended.insert(silent.waiter, "silence").is_none());
            }
            prop_assert_eq!(ended.len(), sent.len());
        }
    }
}
