//! Canonical forms: RouterOS stores values by kind and gives them back in one form, whatever
//! form they were given in (`10M/10M` comes back as `10000000/10000000`).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::sim::mikrotik::tables::Trap;

/// What a property holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any bytes.
    Text,
    /// Any bytes, at least one.
    Name,
    /// `yes`, `no`, `true`, `false`; comes back as `true` or `false`.
    Flag,
    /// `10M`, `512k`, `1G` in bit/s.
    Rate,
    /// Two rates, `up/down`; one alone means both.
    RatePair,
    /// A whole number.
    Count,
    /// Two numbers or words, `8/8`.
    Pair,
    /// Addresses and prefixes separated by commas, or an interface; hosts come back with /32.
    Targets,
    /// An address, prefix, range or DNS name; IPv4 hosts come back without a mask.
    ListAddress,
    /// The same for IPv6; hosts come back with /128.
    ListAddress6,
    /// One address.
    Address,
    /// `aa:bb:cc:dd:ee:ff`, comes back in upper case.
    Mac,
    /// `24:00:00`, `1d`, `30m`, seconds; comes back as `1d`.
    Duration,
    /// An address with a port, as in the connection table.
    Endpoint,
}

/// The form in which RouterOS answers, or its refusal.
pub(crate) fn canonical(kind: Kind, name: &str, value: &[u8]) -> Result<Vec<u8>, Trap> {
    let bad = || Trap::argument(format!("invalid value for argument {name}"));
    if matches!(kind, Kind::Text) {
        return Ok(value.to_vec());
    }
    if matches!(kind, Kind::Name) {
        return if value.is_empty() {
            Err(bad())
        } else {
            Ok(value.to_vec())
        };
    }
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    let out = match kind {
        Kind::Text | Kind::Name => None,
        Kind::Flag => match text {
            "yes" | "true" => Some("true".to_owned()),
            "no" | "false" => Some("false".to_owned()),
            _ => None,
        },
        Kind::Rate => rate(text).map(|n| n.to_string()),
        Kind::RatePair => {
            let (up, down) = text.split_once('/').unwrap_or((text, text));
            match (rate(up), rate(down)) {
                (Some(up), Some(down)) => Some(format!("{up}/{down}")),
                _ => None,
            }
        }
        Kind::Count => text.parse::<u64>().ok().map(|n| n.to_string()),
        Kind::Pair => {
            let (up, down) = text.split_once('/').unwrap_or((text, text));
            (!up.is_empty() && !down.is_empty()).then(|| format!("{up}/{down}"))
        }
        Kind::Targets => targets(text),
        Kind::ListAddress => list_address(text, false),
        Kind::ListAddress6 => list_address(text, true),
        Kind::Address => text.parse::<IpAddr>().ok().map(|ip| ip.to_string()),
        Kind::Mac => mac(text),
        Kind::Duration => duration_s(text).map(duration_text),
        Kind::Endpoint => Some(text.to_owned()),
    };
    out.map(String::into_bytes).ok_or_else(bad)
}

/// Bits per second; the letters are decimal multiples (MikroTik manual, "Queues").
fn rate(text: &str) -> Option<u64> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => match text.strip_suffix('M') {
            Some(digits) => (digits, 1_000_000),
            None => match text.strip_suffix('G') {
                Some(digits) => (digits, 1_000_000_000),
                None => (text, 1),
            },
        },
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn targets(text: &str) -> Option<String> {
    let mut out = Vec::new();
    for part in text.split(',') {
        if let Ok(net) = part.parse::<IpNet>() {
            out.push(net.trunc().to_string());
        } else if let Ok(ip) = part.parse::<IpAddr>() {
            out.push(IpNet::from(ip).to_string());
        } else if is_word(part) {
            out.push(part.to_owned());
        } else {
            return None;
        }
    }
    Some(out.join(","))
}

fn list_address(text: &str, six: bool) -> Option<String> {
    let fits = |ip: IpAddr| ip.is_ipv6() == six;
    if let Ok(net) = text.parse::<IpNet>() {
        let full = net.prefix_len() == net.max_prefix_len();
        return fits(net.addr()).then(|| {
            if full && !six {
                net.addr().to_string()
            } else {
                net.trunc().to_string()
            }
        });
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return fits(ip).then(|| {
            if six {
                IpNet::from(ip).to_string()
            } else {
                ip.to_string()
            }
        });
    }
    if let Some((from, to)) = text.split_once('-')
        && let (Ok(from), Ok(to)) = (from.parse::<IpAddr>(), to.parse::<IpAddr>())
    {
        return (fits(from) && fits(to) && from <= to).then(|| format!("{from}-{to}"));
    }
    // A name is resolved by the router; digits and dots alone are a wrong address.
    (is_word(text) && text.bytes().any(|b| b.is_ascii_alphabetic())).then(|| text.to_owned())
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-<>".contains(&b))
        && !text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

fn mac(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split(':').collect();
    let fits = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
    (parts.len() == 6 && parts.iter().all(fits)).then(|| text.to_ascii_uppercase())
}

/// Seconds of a RouterOS duration: `1w2d3h4m5s`, `1d02:03:04`, `24:00:00`, `90`.
pub(crate) fn duration_s(text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    let mut number: Option<u64> = None;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c == ':' {
            return clock_s(number?, rest).and_then(|s| total.checked_add(s));
        }
        rest = rest.get(c.len_utf8()..)?;
        if let Some(digit) = c.to_digit(10) {
            number = Some(
                number
                    .unwrap_or(0)
                    .checked_mul(10)?
                    .checked_add(u64::from(digit))?,
            );
            continue;
        }
        let factor = match c {
            'w' => 604_800,
            'd' => 86_400,
            'h' => 3_600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.take()?.checked_mul(factor)?)?;
    }
    if text.is_empty() {
        return None;
    }
    total.checked_add(number.unwrap_or(0))
}

fn clock_s(hours: u64, rest: &str) -> Option<u64> {
    let mut parts = rest.get(1..)?.split(':');
    let minutes: u64 = parts.next()?.parse().ok()?;
    let seconds: u64 = parts.next().unwrap_or("0").parse().ok()?;
    (parts.next().is_none() && minutes < 60 && seconds < 60)
        .then(|| hours.checked_mul(3600)?.checked_add(minutes * 60 + seconds))
        .flatten()
}

/// `1w2d3h4m5s` without the parts that are zero; `0s` for none.
pub(crate) fn duration_text(mut seconds: u64) -> String {
    if seconds == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    for (letter, factor) in [
        ('w', 604_800),
        ('d', 86_400),
        ('h', 3_600),
        ('m', 60),
        ('s', 1),
    ] {
        if seconds >= factor {
            out.push_str(&format!("{}{letter}", seconds / factor));
            seconds %= factor;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(kind: Kind, value: &str) -> Option<String> {
        canonical(kind, "x", value.as_bytes())
            .ok()
            .map(|v| String::from_utf8(v).unwrap())
    }

    #[test]
    fn forms() {
        for (kind, given, back) in [
            (Kind::RatePair, "10M/10M", Some("10000000/10000000")),
            (Kind::RatePair, "1k", Some("1000/1000")),
            (Kind::RatePair, "512k/1G", Some("512000/1000000000")),
            (Kind::RatePair, "fast/slow", None),
            (Kind::Rate, "99999999999999999999", None),
            (Kind::Targets, "10.88.0.15", Some("10.88.0.15/32")),
            (
                Kind::Targets,
                "10.88.0.15/24,2001:db8::1",
                Some("10.88.0.0/24,2001:db8::1/128"),
            ),
            (Kind::Targets, "ether1", Some("ether1")),
            (Kind::Targets, "10.88.0.300", None),
            (Kind::Targets, "a b", None),
            (Kind::ListAddress, "10.88.0.15/32", Some("10.88.0.15")),
            (Kind::ListAddress, "10.88.0.15/24", Some("10.88.0.0/24")),
            (
                Kind::ListAddress,
                "10.0.0.1-10.0.0.9",
                Some("10.0.0.1-10.0.0.9"),
            ),
            (
                Kind::ListAddress,
                "one.one.one.one",
                Some("one.one.one.one"),
            ),
            (Kind::ListAddress, "10.88.0", None),
            (Kind::ListAddress, "2001:db8::1", None),
            (Kind::ListAddress6, "2001:DB8::1", Some("2001:db8::1/128")),
            (Kind::Mac, "aa:bb:cc:dd:ee:0f", Some("AA:BB:CC:DD:EE:0F")),
            (Kind::Mac, "aa:bb", None),
            (Kind::Flag, "yes", Some("true")),
            (Kind::Flag, "1", None),
            (Kind::Duration, "24:00:00", Some("1d")),
            (Kind::Duration, "1d02:03:04", Some("1d2h3m4s")),
            (Kind::Duration, "90", Some("1m30s")),
            (Kind::Duration, "0", Some("0s")),
            (Kind::Duration, "8d", Some("1w1d")),
            (Kind::Duration, "1x", None),
            (Kind::Duration, "", None),
            (Kind::Name, "", None),
        ] {
            assert_eq!(form(kind, given).as_deref(), back, "{kind:?} {given}");
        }
        assert_eq!(canonical(Kind::Text, "x", b"\xff"), Ok(b"\xff".to_vec()));
        assert!(canonical(Kind::Flag, "x", b"\xff").is_err());
    }
}
