//! A request from names and texts to attributes: what a scheme or an operator writes, checked
//! against the dictionary, with the session that it concerns.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dictionary::Dictionary;
use super::packet::{Avp, Code, put};
use super::value;
use super::{exchange, packet};
use crate::nas::NasId;
use crate::shell::quote;

/// Attributes of one request: a packet has no room for more.
const ATTRIBUTES_MAX: usize = 500;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Change the session.
    Coa,
    /// End the session.
    Disconnect,
}

/// A request that can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// As bytes.
    pub(super) wire: Arc<exchange::Request>,
    /// Equal for requests that concern the same session in the same words.
    pub(super) session: Vec<u8>,
}

impl Request {
    /// From `Name` or `Name:3` and values, in this order; empty values are left out. Refused
    /// if a name is unknown, a value does not fit its kind, or nothing says which session is
    /// meant.
    pub fn new(
        kind: Kind,
        pairs: &[(String, String)],
        dictionary: &Dictionary,
    ) -> Result<Self, String> {
        let mut attributes = Vec::new();
        let mut identity: Vec<Avp> = Vec::new();
        let mut count = 0;
        for (name, text) in pairs.iter().filter(|(_, text)| !text.is_empty()) {
            let (attribute, tag) = dictionary.find(name)?;
            if attribute.vendor == 0
                && [
                    packet::MESSAGE_AUTHENTICATOR,
                    packet::EVENT_TIMESTAMP,
                    packet::PROXY_STATE,
                ]
                .contains(&attribute.number)
            {
                return Err(format!("{name} is added by the driver itself"));
            }
            count += 1;
            if count > ATTRIBUTES_MAX {
                return Err(format!("more than {ATTRIBUTES_MAX} attributes"));
            }
            let avp = Avp {
                vendor: attribute.vendor,
                number: attribute.number,
                value: value::encode(&attribute, tag, text)?,
            };
            put(&mut attributes, &avp)?;
            if attribute.session {
                identity.push(avp);
            }
        }
        if identity.is_empty() {
            return Err(
                "no session identifier is left, the request could concern anybody".to_owned(),
            );
        }
        let most = packet::PACKET_MAX - packet::HEADER - 24;
        if attributes.len() > most {
            return Err(format!(
                "the attributes have {} bytes, a packet has room for {most}",
                attributes.len()
            ));
        }
        Ok(Self {
            session: session(&identity),
            wire: Arc::new(exchange::Request {
                code: kind.code(),
                attributes,
            }),
        })
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self.wire.code {
            Code::DisconnectRequest => Kind::Disconnect,
            Code::CoaRequest
            | Code::CoaAck
            | Code::CoaNak
            | Code::DisconnectAck
            | Code::DisconnectNak => Kind::Coa,
        }
    }
}

/// What an operator can paste to repeat it.
pub fn pasteable(nas: NasId, kind: Kind, pairs: &[(String, String)]) -> String {
    let mut line = format!("send_radius_cmd --nas {nas} {}", kind.as_str());
    for (name, text) in pairs.iter().filter(|(_, text)| !text.is_empty()) {
        line.push(' ');
        line.push_str(&quote(&format!("{name}={text}")));
    }
    line
}

/// Acct-Session-Id alone if it is there: it names one session, whatever stands beside it.
fn session(identity: &[Avp]) -> Vec<u8> {
    /// RFC 2866 section 5.5.
    const ACCT_SESSION_ID: u8 = 44;
    let one = identity
        .iter()
        .find(|avp| avp.vendor == 0 && avp.number == ACCT_SESSION_ID);
    let mut key = Vec::new();
    for avp in one.map_or(identity, std::slice::from_ref) {
        key.extend(avp.vendor.to_be_bytes());
        key.push(avp.number);
        key.extend(
            u16::try_from(avp.value.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        key.extend(&avp.value);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(words: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = words
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        own.collect()
    }

    #[test]
    fn order_repetition_and_left_out_values() {
        let all = Dictionary::shipped();
        let words = pairs(&[
            ("Acct-Session-Id", ""),
            ("User-Name", "ivanov"),
            ("Cisco-AVPair", "a"),
            ("Cisco-AVPair", "b"),
        ]);
        let request = Request::new(Kind::Coa, &words, &all).unwrap();
        let want = [
            &[1, 8][..],
            b"ivanov",
            &[26, 9, 0, 0, 0, 9, 1, 3, b'a'],
            &[26, 9, 0, 0, 0, 9, 1, 3, b'b'],
        ]
        .concat();
        assert_eq!(request.wire.attributes, want);
        assert_eq!(
            pasteable(NasId(7), Kind::Coa, &words),
            "send_radius_cmd --nas 7 coa User-Name=ivanov Cisco-AVPair=a Cisco-AVPair=b"
        );
    }

    #[test]
    fn what_could_concern_anybody_is_refused() {
        let all = Dictionary::shipped();
        for (words, said) in [
            (pairs(&[("User-Name", "")]), "no session identifier"),
            (pairs(&[("Filter-Id", "x")]), "no session identifier"),
            (pairs(&[("Usr-Name", "x")]), "is User-Name meant?"),
            (
                pairs(&[("User-Name", "x"), ("Framed-IP-Address", "10.0.0")]),
                "not an IPv4 address",
            ),
            (
                pairs(&[("User-Name", "x"), ("Message-Authenticator", "0x00")]),
                "by the driver",
            ),
            (
                vec![("User-Name".to_owned(), "x".repeat(200)); 30],
                "has room for",
            ),
        ] {
            let reason = Request::new(Kind::Disconnect, &words, &all).unwrap_err();
            assert!(reason.contains(said), "{reason}");
        }
    }

    #[test]
    fn the_same_session_has_the_same_key() {
        let all = Dictionary::shipped();
        let key = |words: &[(&str, &str)]| {
            let request = Request::new(Kind::Coa, &pairs(words), &all);
            request.unwrap().session
        };
        let named = key(&[("Acct-Session-Id", "a")]);
        assert_eq!(
            named,
            key(&[("User-Name", "u"), ("Acct-Session-Id", "a"), ("Class", "1")])
        );
        assert_ne!(named, key(&[("Acct-Session-Id", "b")]));
        assert_ne!(named, key(&[("User-Name", "a")]));
        assert_ne!(
            key(&[("User-Name", "ab"), ("NAS-Port-Id", "c")]),
            key(&[("User-Name", "a"), ("NAS-Port-Id", "bc")])
        );
    }
}
