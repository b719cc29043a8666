//! RADIUS packets as bytes: built and signed, cut into attributes, verified. Pure.
//!
//! - Request Authenticator of CoA and Disconnect: MD5 over the packet with zeros in its place,
//!   then the secret (RFC 5176 section 2.3, as RFC 2866 section 3).
//! - Response Authenticator: the same with the request's in its place (RFC 2865 section 3).
//! - Message-Authenticator: HMAC-MD5 with itself zero (RFC 2869 section 5.14), over zeros in a
//!   request and over the request's authenticator in a reply (RFC 5176 section 3).

use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

use super::dictionary::VENDOR_SPECIFIC;

/// Smallest packet: code, identifier, length, authenticator.
pub const HEADER: usize = 20;
/// Largest packet (RFC 2865 section 3).
pub const PACKET_MAX: usize = 4096;
/// Attribute 80, `Message-Authenticator`.
pub const MESSAGE_AUTHENTICATOR: u8 = 80;
/// Attribute 55, `Event-Timestamp`.
pub const EVENT_TIMESTAMP: u8 = 55;
/// Attribute 33, `Proxy-State`.
pub const PROXY_STATE: u8 = 33;
/// Bytes of an authenticator of either kind.
pub const AUTHENTICATOR: usize = 16;

/// An authenticator.
pub type Authenticator = [u8; AUTHENTICATOR];

/// Kinds of packets of RFC 5176.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// End a session.
    DisconnectRequest,
    /// It has ended.
    DisconnectAck,
    /// It has not.
    DisconnectNak,
    /// Change a session.
    CoaRequest,
    /// It has changed.
    CoaAck,
    /// It has not.
    CoaNak,
}

impl Code {
    /// The byte.
    pub fn byte(self) -> u8 {
        match self {
            Self::DisconnectRequest => 40,
            Self::DisconnectAck => 41,
            Self::DisconnectNak => 42,
            Self::CoaRequest => 43,
            Self::CoaAck => 44,
            Self::CoaNak => 45,
        }
    }

    /// From the byte.
    pub fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            40 => Self::DisconnectRequest,
            41 => Self::DisconnectAck,
            42 => Self::DisconnectNak,
            43 => Self::CoaRequest,
            44 => Self::CoaAck,
            45 => Self::CoaNak,
            _ => return None,
        })
    }

    /// The word in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DisconnectRequest => "Disconnect-Request",
            Self::DisconnectAck => "Disconnect-ACK",
            Self::DisconnectNak => "Disconnect-NAK",
            Self::CoaRequest => "CoA-Request",
            Self::CoaAck => "CoA-ACK",
            Self::CoaNak => "CoA-NAK",
        }
    }

    /// Whether `self` may answer `request`.
    pub fn answers(self, request: Self) -> bool {
        matches!(
            (request, self),
            (Self::CoaRequest, Self::CoaAck | Self::CoaNak)
                | (
                    Self::DisconnectRequest,
                    Self::DisconnectAck | Self::DisconnectNak
                )
        )
    }

    /// Whether it says yes.
    pub fn is_ack(self) -> bool {
        matches!(self, Self::CoaAck | Self::DisconnectAck)
    }
}

/// One attribute as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Avp {
    /// Enterprise number; 0 = of the RFCs.
    pub vendor: u32,
    /// Number.
    pub number: u8,
    /// Value with its tag.
    pub value: Vec<u8>,
}

/// Adds one attribute. A value that has no room is refused; `value::encode` never gives one.
pub fn put(out: &mut Vec<u8>, avp: &Avp) -> Result<(), String> {
    let value = &avp.value;
    let head = if avp.vendor == 0 { 2 } else { 8 };
    let length = u8::try_from(value.len() + head)
        .map_err(|_| format!("an attribute of {} bytes has no room", value.len()))?;
    if avp.vendor == 0 {
        out.extend([avp.number, length]);
    } else {
        out.extend([VENDOR_SPECIFIC, length]);
        out.extend(avp.vendor.to_be_bytes());
        out.extend([avp.number, length - 6]);
    }
    out.extend(value);
    Ok(())
}

/// What goes into a packet beside its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dressing {
    /// With a Message-Authenticator, as the first attribute.
    pub message_authenticator: bool,
    /// With this Event-Timestamp, seconds since 1970.
    pub event_timestamp: Option<u32>,
}

/// A signed packet. `authenticator` is zero for a request and the request's for a reply;
/// `attributes` are bytes made by [`put`].
pub fn build(
    code: Code,
    id: u8,
    authenticator: Authenticator,
    attributes: &[u8],
    dressing: Dressing,
    secret: &[u8],
) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(HEADER + 24 + attributes.len());
    bytes.extend([code.byte(), id, 0, 0]);
    bytes.extend(authenticator);
    if dressing.message_authenticator {
        bytes.extend([MESSAGE_AUTHENTICATOR, 18]);
        bytes.extend([0; AUTHENTICATOR]);
    }
    if let Some(seconds) = dressing.event_timestamp {
        bytes.extend([EVENT_TIMESTAMP, 6]);
        bytes.extend(seconds.to_be_bytes());
    }
    bytes.extend(attributes);
    let length = u16::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= PACKET_MAX)
        .ok_or_else(|| {
            format!(
                "the request has {} bytes, a RADIUS packet has at most {PACKET_MAX}",
                bytes.len()
            )
        })?;
    write(&mut bytes, 2, &length.to_be_bytes());
    if dressing.message_authenticator {
        let sum = hmac(secret, &[&bytes]);
        write(&mut bytes, HEADER + 2, &sum);
    }
    let sum = md5(&[&bytes, secret]);
    write(&mut bytes, 4, &sum);
    Ok(bytes)
}

fn write(bytes: &mut [u8], at: usize, what: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + what.len()) {
        place.copy_from_slice(what);
    }
}

fn md5(parts: &[&[u8]]) -> Authenticator {
    let mut sum = Md5::new();
    for part in parts {
        sum.update(part);
    }
    sum.finalize().into()
}

fn hmac(secret: &[u8], parts: &[&[u8]]) -> Authenticator {
    // HMAC takes keys of any length; the fallback is never reached.
    let Ok(mut mac) = Hmac::<Md5>::new_from_slice(secret) else {
        return [0; AUTHENTICATOR];
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// A received packet whose form is right; nothing is verified yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'b> {
    bytes: &'b [u8],
    code: u8,
    id: u8,
}

/// Why a packet is nothing that could be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header or than it says.
    Truncated,
    /// Its length field is below the header or above the largest packet.
    Length,
    /// An attribute that ends outside.
    Attribute,
}

impl<'b> Packet<'b> {
    /// Checks lengths. Bytes after the packet's own length are padding (RFC 2865 section 3).
    pub fn parse(bytes: &'b [u8]) -> Result<Self, Malformed> {
        let [code, id, high, low, ..] = *bytes else {
            return Err(Malformed::Truncated);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(HEADER..=PACKET_MAX).contains(&length) {
            return Err(Malformed::Length);
        }
        let bytes = bytes.get(..length).ok_or(Malformed::Truncated)?;
        let packet = Self { bytes, code, id };
        let mut rest = packet.rest();
        while !rest.is_empty() {
            (_, rest) = cut(rest).ok_or(Malformed::Attribute)?;
        }
        Ok(packet)
    }

    /// Its kind, if it is one of RFC 5176.
    pub fn code(&self) -> Option<Code> {
        Code::of(self.code)
    }

    /// Identifier.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// The authenticator as it came.
    pub fn authenticator(&self) -> Authenticator {
        let found = self.bytes.get(4..HEADER);
        found.and_then(|a| a.try_into().ok()).unwrap_or_default()
    }

    fn rest(&self) -> &'b [u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// Number and value of each attribute, vendors' ones still closed.
    fn outer(&self) -> impl Iterator<Item = (u8, &'b [u8])> {
        let mut rest = self.rest();
        std::iter::from_fn(move || {
            let (found, left) = cut(rest)?;
            rest = left;
            Some(found)
        })
    }

    /// Every attribute in the order of the packet. What does not have the form of a vendor's
    /// attributes stays attribute 26.
    pub fn avps(&self) -> Vec<Avp> {
        let mut avps = Vec::new();
        for (number, value) in self.outer() {
            match (number == VENDOR_SPECIFIC).then(|| inner(value)).flatten() {
                Some(inside) => avps.extend(inside),
                None => avps.push(Avp {
                    vendor: 0,
                    number,
                    value: value.to_vec(),
                }),
            }
        }
        avps
    }

    /// Whether `secret` has signed this reply to the request with `authenticator`, in constant
    /// time. With `must_have`, a missing Message-Authenticator is refused, too.
    pub fn verify_reply(
        &self,
        authenticator: &Authenticator,
        secret: &[u8],
        must_have: bool,
    ) -> Result<(), Forged> {
        self.verify(authenticator, secret, must_have)
    }

    /// The same for a request of RFC 5176.
    pub fn verify_request(&self, secret: &[u8], must_have: bool) -> Result<(), Forged> {
        self.verify(&[0; AUTHENTICATOR], secret, must_have)
    }

    fn verify(
        &self,
        authenticator: &Authenticator,
        secret: &[u8],
        must_have: bool,
    ) -> Result<(), Forged> {
        let head = self.bytes.get(..4).unwrap_or_default();
        let sum = md5(&[head, authenticator, self.rest(), secret]);
        if !bool::from(sum.ct_eq(&self.authenticator())) {
            return Err(Forged::Authenticator);
        }
        let Some((at, found)) = self.message_authenticator() else {
            return if must_have {
                Err(Forged::NoMessageAuthenticator)
            } else {
                Ok(())
            };
        };
        let before = self.bytes.get(HEADER..at).unwrap_or_default();
        let after = self.bytes.get(at + AUTHENTICATOR..).unwrap_or_default();
        let zeros = [0; AUTHENTICATOR];
        let sum = hmac(secret, &[head, authenticator, before, &zeros, after]);
        if bool::from(sum.ct_eq(found)) {
            Ok(())
        } else {
            Err(Forged::MessageAuthenticator)
        }
    }

    /// Place and value of the Message-Authenticator; a value of another length is not one that
    /// could be right, and is found as zeros would be: wrong.
    fn message_authenticator(&self) -> Option<(usize, &'b [u8])> {
        let mut at = HEADER;
        for (number, value) in self.outer() {
            if number == MESSAGE_AUTHENTICATOR {
                return Some((at + 2, value));
            }
            at += value.len() + 2;
        }
        None
    }
}

/// Why a packet is not from somebody who knows the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forged {
    /// Its authenticator is wrong.
    Authenticator,
    /// Its Message-Authenticator is wrong.
    MessageAuthenticator,
    /// It has none, and must have one.
    NoMessageAuthenticator,
}

/// Number and value of an attribute.
type Raw<'b> = (u8, &'b [u8]);

/// The first attribute and what follows.
fn cut(bytes: &[u8]) -> Option<(Raw<'_>, &[u8])> {
    let [number, length, ..] = *bytes else {
        return None;
    };
    let (this, rest) = bytes.split_at_checked(usize::from(length))?;
    Some(((number, this.get(2..)?), rest))
}

/// Attributes of a vendor, if the value has their usual form.
fn inner(value: &[u8]) -> Option<Vec<Avp>> {
    let (vendor, mut rest) = value.split_at_checked(4)?;
    let vendor = u32::from_be_bytes(vendor.try_into().ok()?);
    if vendor == 0 || rest.is_empty() {
        return None;
    }
    let mut avps = Vec::new();
    while !rest.is_empty() {
        let ((number, value), left) = cut(rest)?;
        avps.push(Avp {
            vendor,
            number,
            value: value.to_vec(),
        });
        rest = left;
    }
    Some(avps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &[u8] = b"servicemode";
    const FULL: Dressing = Dressing {
        message_authenticator: true,
        event_timestamp: Some(1_700_000_000),
    };
    const BARE: Dressing = Dressing {
        message_authenticator: false,
        event_timestamp: None,
    };

    fn attributes(avps: &[Avp]) -> Vec<u8> {
        let mut out = Vec::new();
        for avp in avps {
            put(&mut out, avp).unwrap();
        }
        out
    }

    fn avp() -> impl Strategy<Value = Avp> {
        (
            prop_oneof![Just(0_u32), 1..100_000_u32],
            1..=255_u8,
            prop::collection::vec(any::<u8>(), 1..247),
        )
            .prop_filter("not one of ours", |(vendor, number, _)| {
                *vendor > 0 || ![VENDOR_SPECIFIC, MESSAGE_AUTHENTICATOR].contains(number)
            })
            .prop_map(|(vendor, number, value)| Avp {
                vendor,
                number,
                value,
            })
    }

    #[test]
    fn the_authenticator_is_the_one_of_the_rfc() {
        let request = build(
            Code::CoaRequest,
            7,
            [0; 16],
            &attributes(&[Avp {
                vendor: 0,
                number: 1,
                value: b"u".to_vec(),
            }]),
            BARE,
            b"secret",
        )
        .unwrap();
        assert_eq!(request.len(), 23);
        assert_eq!(request[..4], [43, 7, 0, 23]);
        // MD5 of 2b 07 00 17, 16 zeros, 01 03 75, "secret".
        let by_hand = md5(&[&[43, 7, 0, 23], &[0; 16], &[1, 3, b'u'], b"secret"]);
        assert_eq!(request[4..20], by_hand);
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let avps = attributes(&[Avp {
            vendor: 9,
            number: 1,
            value: b"subscriber:command=session-query".to_vec(),
        }]);
        for dressing in [FULL, BARE] {
            let request = build(Code::CoaRequest, 3, [0; 16], &avps, dressing, SECRET).unwrap();
            let sent = Packet::parse(&request).unwrap();
            assert_eq!(
                sent.verify_request(SECRET, dressing.message_authenticator),
                Ok(())
            );
            assert!(sent.verify_request(b"servicemodf", false).is_err());
            let mine = sent.authenticator();
            let reply = build(Code::CoaAck, 3, mine, &[], dressing, SECRET).unwrap();
            let got = Packet::parse(&reply).unwrap();
            assert_eq!(got.verify_reply(&mine, SECRET, false), Ok(()));
            assert!(got.verify_reply(&[1; 16], SECRET, false).is_err());
            for (bytes, zero) in [(&request, [0; 16]), (&reply, mine)] {
                for bit in 0..bytes.len() * 8 {
                    let mut bad = bytes.clone();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    let fine =
                        Packet::parse(&bad).is_ok_and(|p| p.verify(&zero, SECRET, false).is_ok());
                    assert!(!fine, "bit {bit}");
                }
            }
        }
    }

    /// Whoever knows the authenticator's sum, but not the secret of the second check.
    #[test]
    fn a_wrong_or_missing_message_authenticator_is_refused() {
        let mut avps = vec![MESSAGE_AUTHENTICATOR, 18];
        avps.extend([7; 16]);
        let request = build(Code::CoaRequest, 3, [0; 16], &avps, BARE, SECRET).unwrap();
        let packet = Packet::parse(&request).unwrap();
        assert_eq!(
            packet.verify_request(SECRET, false),
            Err(Forged::MessageAuthenticator)
        );
        let short = build(Code::CoaRequest, 3, [0; 16], &[80, 3, 1], BARE, SECRET).unwrap();
        let packet = Packet::parse(&short).unwrap();
        assert_eq!(
            packet.verify_request(SECRET, false),
            Err(Forged::MessageAuthenticator)
        );
        let bare = build(Code::CoaRequest, 3, [0; 16], &[], BARE, SECRET).unwrap();
        let packet = Packet::parse(&bare).unwrap();
        assert_eq!(
            packet.verify_request(SECRET, true),
            Err(Forged::NoMessageAuthenticator)
        );
    }

    #[test]
    fn lengths_are_checked_first() {
        let good = build(Code::CoaAck, 1, [0; 16], &[1, 3, 65], BARE, SECRET).unwrap();
        for cut in 0..good.len() {
            assert!(Packet::parse(&good[..cut]).is_err(), "{cut}");
        }
        let padded = [good.clone(), vec![9; 9]].concat();
        assert_eq!(
            Packet::parse(&padded).unwrap().avps(),
            Packet::parse(&good).unwrap().avps()
        );
        for (length, why) in [
            (19_u16, Malformed::Length),
            (4097, Malformed::Length),
            (24, Malformed::Truncated),
        ] {
            let mut bad = good.clone();
            bad[2..4].copy_from_slice(&length.to_be_bytes());
            assert_eq!(Packet::parse(&bad), Err(why));
        }
        for attribute in [&[1][..], &[1, 0], &[1, 1], &[1, 9, 0]] {
            let bytes = build(Code::CoaAck, 1, [0; 16], attribute, BARE, SECRET).unwrap();
            assert_eq!(Packet::parse(&bytes), Err(Malformed::Attribute));
        }
        let large = vec![1; PACKET_MAX];
        assert!(build(Code::CoaRequest, 1, [0; 16], &large, BARE, SECRET).is_err());
    }

    proptest! {
        #[test]
        fn what_is_put_is_found(avps in prop::collection::vec(avp(), 0..12), id in any::<u8>()) {
            let bytes = build(Code::CoaRequest, id, [0; 16], &attributes(&avps), FULL, SECRET).unwrap();
            let packet = Packet::parse(&bytes).unwrap();
            prop_assert_eq!(packet.verify_request(SECRET, true), Ok(()));
            prop_assert_eq!((packet.id(), packet.code()), (id, Some(Code::CoaRequest)));
            prop_assert_eq!(&packet.avps()[2..], &avps[..]);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.avps().len() <= bytes.len());
                prop_assert!(packet.verify_reply(&[1; 16], SECRET, false).is_err());
            }
        }

        #[test]
        fn well_formed_garbage_is_never_genuine(avps in prop::collection::vec(avp(), 0..5), id in any::<u8>()) {
            let bytes = build(Code::CoaAck, id, [3; 16], &attributes(&avps), FULL, b"another").unwrap();
            let packet = Packet::parse(&bytes).unwrap();
            prop_assert!(packet.verify_reply(&[3; 16], SECRET, false).is_err());
        }
    }
}
