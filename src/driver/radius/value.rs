//! Values of attributes: from the text of a scheme to bytes, and back. What does not fit its
//! kind is an error with the reason, never a shorter or other value.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::dictionary::{Attribute, Kind};

/// Longest value of an attribute of the RFCs (RFC 2865 section 5).
pub const VALUE_MAX: usize = 253;
/// Longest value of a vendor's attribute: six bytes go to vendor, type and length.
pub const VENDOR_VALUE_MAX: usize = 247;

/// Bytes of one value, tag included.
pub fn encode(attribute: &Attribute, tag: Option<u8>, text: &str) -> Result<Vec<u8>, String> {
    let wrong = || {
        format!(
            "{}: {:?} is not {}",
            attribute.name,
            shortened(text),
            wanted(attribute.kind)
        )
    };
    let mut bytes = match attribute.kind {
        Kind::Text => text.as_bytes().to_vec(),
        Kind::Octets => match text.strip_prefix("0x") {
            Some(hex) => from_hex(hex).ok_or_else(wrong)?,
            None => text.as_bytes().to_vec(),
        },
        Kind::Integer => whole(attribute, text)
            .ok_or_else(wrong)?
            .to_be_bytes()
            .to_vec(),
        Kind::Integer64 => text
            .parse::<u64>()
            .map_err(|_| wrong())?
            .to_be_bytes()
            .to_vec(),
        Kind::Short => u16::try_from(whole(attribute, text).ok_or_else(wrong)?)
            .map_err(|_| wrong())?
            .to_be_bytes()
            .to_vec(),
        Kind::Byte => {
            vec![u8::try_from(whole(attribute, text).ok_or_else(wrong)?).map_err(|_| wrong())?]
        }
        Kind::Signed => text
            .parse::<i32>()
            .map_err(|_| wrong())?
            .to_be_bytes()
            .to_vec(),
        Kind::Date => date(text).ok_or_else(wrong)?.to_be_bytes().to_vec(),
        Kind::Ipv4 => host(text)
            .parse::<Ipv4Addr>()
            .map_err(|_| wrong())?
            .octets()
            .to_vec(),
        Kind::Ipv6 => host(text)
            .parse::<Ipv6Addr>()
            .map_err(|_| wrong())?
            .octets()
            .to_vec(),
        Kind::Ipv4Prefix => ipv4_prefix(text).ok_or_else(wrong)?,
        Kind::Ipv6Prefix => ipv6_prefix(text).ok_or_else(wrong)?,
        Kind::InterfaceId => interface_id(text).ok_or_else(wrong)?,
        Kind::Ether => ether(text).ok_or_else(wrong)?,
    };
    if attribute.tagged {
        match (attribute.kind, tag) {
            // RFC 2868 section 3.1: the tag stands in the place of the highest byte.
            (Kind::Integer, tag) => match bytes.first_mut() {
                Some(first) if *first == 0 => *first = tag.unwrap_or(0),
                _ => return Err(format!("{}: a tagged number has 24 bits", attribute.name)),
            },
            (_, Some(tag)) => bytes.insert(0, tag),
            (_, None) => {}
        }
    }
    let most = if attribute.vendor == 0 {
        VALUE_MAX
    } else {
        VENDOR_VALUE_MAX
    };
    if bytes.is_empty() {
        return Err(format!("{}: an empty value cannot be sent", attribute.name));
    }
    if bytes.len() > most {
        return Err(format!(
            "{}: {} bytes, an attribute has room for {most}",
            attribute.name,
            bytes.len()
        ));
    }
    Ok(bytes)
}

/// Text of one value as it came, and its tag. What does not fit its kind is shown as octets.
pub fn decode(attribute: &Attribute, bytes: &[u8]) -> (Option<u8>, String) {
    let (tag, value) = untagged(attribute, bytes);
    let text = text_of(attribute, &value).unwrap_or_else(|| octets(&value));
    (tag, text)
}

fn untagged(attribute: &Attribute, bytes: &[u8]) -> (Option<u8>, Vec<u8>) {
    let first = bytes.first().copied().unwrap_or_default();
    // RFC 2868 section 3.3: a first byte above 0x1f belongs to the text.
    if !attribute.tagged || first > 31 {
        return (None, bytes.to_vec());
    }
    let tag = (first > 0).then_some(first);
    let rest = bytes.get(1..).unwrap_or_default();
    if attribute.kind == Kind::Integer {
        return (tag, [&[0], rest].concat());
    }
    (tag, rest.to_vec())
}

fn text_of(attribute: &Attribute, bytes: &[u8]) -> Option<String> {
    let named = |number: u32| {
        let name = attribute.values.iter().find(|(_, n)| *n == number);
        name.map_or_else(|| number.to_string(), |(name, _)| name.clone())
    };
    Some(match attribute.kind {
        Kind::Text => crate::driver::text(bytes),
        Kind::Octets => octets(bytes),
        Kind::Integer => named(u32::from_be_bytes(bytes.try_into().ok()?)),
        Kind::Integer64 => u64::from_be_bytes(bytes.try_into().ok()?).to_string(),
        Kind::Short => named(u16::from_be_bytes(bytes.try_into().ok()?).into()),
        Kind::Byte => named(u8::from_be_bytes(bytes.try_into().ok()?).into()),
        Kind::Signed => i32::from_be_bytes(bytes.try_into().ok()?).to_string(),
        Kind::Date => u32::from_be_bytes(bytes.try_into().ok()?).to_string(),
        Kind::Ipv4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string(),
        Kind::Ipv6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string(),
        Kind::Ipv4Prefix => {
            let [_, length, a, b, c, d] = <[u8; 6]>::try_from(bytes).ok()?;
            format!("{}/{}", Ipv4Addr::new(a, b, c, d), length & 63)
        }
        Kind::Ipv6Prefix => {
            let (head, rest) = bytes.split_at_checked(2)?;
            let mut full = [0_u8; 16];
            full.get_mut(..rest.len())?.copy_from_slice(rest);
            format!("{}/{}", Ipv6Addr::from(full), head.get(1)?)
        }
        Kind::InterfaceId => {
            let parts = <[u8; 8]>::try_from(bytes).ok()?;
            let words: Vec<String> = parts
                .chunks(2)
                .map(|two| two.iter().fold(0_u16, |n, b| n << 8 | u16::from(*b)))
                .map(|word| format!("{word:x}"))
                .collect();
            words.join(":")
        }
        Kind::Ether => {
            let parts = <[u8; 6]>::try_from(bytes).ok()?;
            let words: Vec<String> = parts.iter().map(|b| format!("{b:02x}")).collect();
            words.join(":")
        }
    })
}

fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "a text",
        Kind::Octets => "octets: write 0x and an even number of hexadecimal digits",
        Kind::Integer => "a number of 32 bits, nor one of its named values",
        Kind::Integer64 => "a number of 64 bits",
        Kind::Short => "a number up to 65535",
        Kind::Byte => "a number up to 255",
        Kind::Signed => "a number of 32 bits with a sign",
        Kind::Date => "a time: seconds since 1970, or YYYY-MM-DD HH:MM:SS in UTC",
        Kind::Ipv4 => "an IPv4 address",
        Kind::Ipv6 => "an IPv6 address",
        Kind::Ipv4Prefix => "an IPv4 prefix",
        Kind::Ipv6Prefix => "an IPv6 prefix",
        Kind::InterfaceId => "an interface id such as 0:0:0:1",
        Kind::Ether => "a MAC address",
    }
}

/// Enough of a value for an error.
fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

fn whole(attribute: &Attribute, text: &str) -> Option<u32> {
    if let Some((_, number)) = attribute.values.iter().find(|(name, _)| name == text) {
        return Some(*number);
    }
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn date(text: &str) -> Option<u32> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let when = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").ok()?;
    u32::try_from(when.and_utc().timestamp()).ok()
}

/// An address; the mask of one host may stand behind it, as in some billings.
fn host(text: &str) -> &str {
    text.strip_suffix("/32")
        .or_else(|| text.strip_suffix("/128"))
        .unwrap_or(text)
}

fn ipv4_prefix(text: &str) -> Option<Vec<u8>> {
    let net: ipnet::Ipv4Net = if text.contains('/') {
        text.parse().ok()?
    } else {
        format!("{text}/32").parse().ok()?
    };
    let mut bytes = vec![0, net.prefix_len()];
    bytes.extend(net.network().octets());
    Some(bytes)
}

fn ipv6_prefix(text: &str) -> Option<Vec<u8>> {
    let net: ipnet::Ipv6Net = if text.contains('/') {
        text.parse().ok()?
    } else {
        format!("{text}/128").parse().ok()?
    };
    let mut bytes = vec![0, net.prefix_len()];
    let used = usize::from(net.prefix_len().div_ceil(8));
    bytes.extend(net.network().octets().iter().take(used));
    Some(bytes)
}

fn interface_id(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(8);
    for word in text.split(':') {
        bytes.extend(u16::from_str_radix(word, 16).ok()?.to_be_bytes());
    }
    (bytes.len() == 8).then_some(bytes)
}

fn ether(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.chars().filter(|c| !":-.".contains(*c)).collect();
    from_hex(&digits).filter(|bytes| bytes.len() == 6)
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = (0..digits.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect()
}

/// `0x…`.
fn octets(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("0x{digits}")
}

#[cfg(test)]
mod tests {
    use super::super::dictionary::Dictionary;
    use super::*;
    use proptest::prelude::*;

    fn attribute(name: &str) -> (std::sync::Arc<Attribute>, Option<u8>) {
        Dictionary::shipped().find(name).unwrap()
    }

    fn bytes(name: &str, text: &str) -> Result<Vec<u8>, String> {
        let (attribute, tag) = attribute(name);
        encode(&attribute, tag, text)
    }

    #[test]
    fn each_kind_has_its_bytes() {
        for (name, text, want) in [
            ("User-Name", "ivanov", b"ivanov".to_vec()),
            ("User-Name", "0x41", b"0x41".to_vec()),
            ("Class", "0x0041", vec![0, 0x41]),
            ("Class", "plain", b"plain".to_vec()),
            ("Service-Type", "Authorize-Only", vec![0, 0, 0, 17]),
            ("Service-Type", "8", vec![0, 0, 0, 8]),
            ("Framed-IP-Address", "10.88.0.15/32", vec![10, 88, 0, 15]),
            (
                "Framed-IPv6-Prefix",
                "2001:db8::/56",
                vec![0, 56, 0x20, 1, 0xd, 0xb8, 0, 0, 0],
            ),
            (
                "Framed-Interface-Id",
                "0:0:0:1",
                vec![0, 0, 0, 0, 0, 0, 0, 1],
            ),
            ("Event-Timestamp", "1970-01-01 00:00:10", vec![0, 0, 0, 10]),
            ("ERX-Service-Activate:3", "svc(1)", b"\x03svc(1)".to_vec()),
            ("ERX-Service-Activate", "svc", b"svc".to_vec()),
            ("Tunnel-Type:2", "1", vec![2, 0, 0, 1]),
            ("Tunnel-Type", "1", vec![0, 0, 0, 1]),
            ("Cisco-Command-Code", "0x0b41", vec![0x0b, 0x41]),
        ] {
            assert_eq!(bytes(name, text).unwrap(), want, "{name}={text}");
        }
        for (name, text) in [
            ("Service-Type", "Nonsense"),
            ("Service-Type", "4294967296"),
            ("Framed-IP-Address", "2001:db8::1"),
            ("Framed-IP-Address", "10.88.0.0/24"),
            ("Framed-IPv6-Prefix", "2001:db8::/129"),
            ("Class", "0x0"),
            ("Class", "0xzz"),
            ("Tunnel-Type:2", "16777216"),
            ("User-Name", ""),
        ] {
            assert!(bytes(name, text).is_err(), "{name}={text}");
        }
        assert!(bytes("User-Name", &"x".repeat(253)).is_ok());
        assert!(bytes("User-Name", &"x".repeat(254)).is_err());
        assert!(bytes("Cisco-AVPair", &"x".repeat(247)).is_ok());
        assert!(bytes("Cisco-AVPair", &"x".repeat(248)).is_err());
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        for (name, text) in [
            ("User-Name", "иванов"),
            ("Class", "0x0041ff"),
            ("Service-Type", "Authorize-Only"),
            ("Session-Timeout", "86400"),
            ("Framed-IP-Address", "10.88.0.15"),
            ("Framed-IPv6-Prefix", "2001:db8::/56"),
            ("Delegated-IPv6-Prefix", "2001:db8:1::/64"),
            ("Framed-IPv6-Address", "2001:db8::1"),
            ("Framed-Interface-Id", "0:0:0:1"),
            ("Event-Timestamp", "1700000000"),
            ("ERX-Service-Activate:3", "svc(1)"),
            ("Tunnel-Type:2", "L2TP"),
            (
                "VasExperts-Acct-Traffic-Class-Input-Octets",
                "18446744073709551615",
            ),
        ] {
            let (attribute, tag) = attribute(name);
            let bytes = encode(&attribute, tag, text).unwrap();
            assert_eq!(decode(&attribute, &bytes), (tag, text.to_owned()), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_kept(text in ".{0,300}") {
            for attribute in Dictionary::shipped().iter().step_by(7) {
                if let Ok(bytes) = encode(attribute, None, &text) {
                    prop_assert!(!bytes.is_empty() && bytes.len() <= VALUE_MAX);
                    if attribute.kind == Kind::Text && !attribute.tagged {
                        prop_assert_eq!(&decode(attribute, &bytes).1, &text);
                    }
                }
            }
        }

        #[test]
        fn any_bytes_have_a_text(bytes in prop::collection::vec(any::<u8>(), 0..253)) {
            for attribute in Dictionary::shipped().iter().step_by(5) {
                let (_, text) = decode(attribute, &bytes);
                prop_assert!(text.len() <= 4 * bytes.len() + 64);
            }
        }
    }
}
