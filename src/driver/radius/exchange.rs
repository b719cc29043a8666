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

/// Why a request is not sent.
#[derive(Debug, PartialEq, Eq)]
pub enum NotSent {
    /// It is none.
    Never(String),
    /// It will be later.
    NotNow(&'static str),
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
    ) -> Result<&[u8], (W, NotSent)> {
        self.recent.forget(now);
        let (id, bytes, authenticator) = match self.dressed(request, now, wall_s) {
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

    fn dressed(&self, request: &Request, now: u64, wall_s: u32) -> Result<Dressed, NotSent> {
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
            let bytes =
                build(code, id, [0; 16], attributes, dressing, secret).map_err(NotSent::Never)?;
            let parsed = Packet::parse(&bytes).map(|p| p.authenticator());
            let authenticator = parsed.unwrap_or_default();
            if !self.recent.knows(&authenticator, now) {
                return Ok((id, bytes, authenticator));
            }
            reason = "this very request was sent under every free identifier of the socket within \
                      the last 35 s: the device would take it for a copy and not do it again";
        }
        Err(NotSent::NotNow(reason))
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
                self.recent.sent(&waiting.authenticator, now);
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
#[path = "exchange_test.rs"]
mod tests;
