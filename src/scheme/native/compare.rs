//! Comparing what a router prints with what a scheme wants. RouterOS gives canonical forms
//! back (`10M` as `10000000`, `10.88.0.15` in a queue as `10.88.0.15/32`, `24:00:00` as `1d`);
//! a comparison of texts would change the same row for ever.

use std::time::Duration;

use super::filters::parse_prefix;

/// Properties that are names or free text: only the exact text is equal.
const TEXT_KEYS: &[&str] = &[
    "name",
    "comment",
    "list",
    "login",
    "user",
    "password",
    "profile",
    "service",
    "parent",
    "queue",
    "chain",
    "action",
    "interface",
    "server",
    "caller-id",
    ".id",
];

/// Whether a property is a name or free text.
pub(super) fn is_text(key: &str) -> bool {
    TEXT_KEYS.contains(&key)
}

/// Whether the router's value and the wanted one mean the same.
pub(super) fn same(key: &str, have: &str, want: &str) -> bool {
    if have == want {
        return true;
    }
    if is_text(key) {
        return false;
    }
    if have.contains(',') || want.contains(',') {
        return same_list(have, want);
    }
    same_one(have, want)
}

/// Comma lists are sets: `a,b` and `b, a` are equal.
fn same_list(have: &str, want: &str) -> bool {
    let mut have: Vec<_> = have.split(',').map(str::trim).collect();
    let want: Vec<_> = want.split(',').map(str::trim).collect();
    if have.len() != want.len() {
        return false;
    }
    want.iter().all(|w| {
        have.iter()
            .position(|h| h == w || same_one(h, w))
            .map(|at| have.swap_remove(at))
            .is_some()
    })
}

fn same_one(have: &str, want: &str) -> bool {
    if let (Some(a), Some(b)) = (parse_prefix(have), parse_prefix(want)) {
        // Host bits count (10.0.0.1/24 is not 10.0.0.2/24), unless the router has cut them.
        return a == b || a == b.trunc();
    }
    if let (Some((a1, a2)), Some((b1, b2))) = (have.split_once('/'), want.split_once('/')) {
        return same_pair(a1, b1) && same_pair(a2, b2);
    }
    same_pair(have, want)
}

fn same_pair(have: &str, want: &str) -> bool {
    let (have, want) = (have.trim(), want.trim());
    have == want
        || equal(flag(have), flag(want))
        || equal(rate(have), rate(want))
        || equal(duration(have), duration(want))
        || equal(mac(have), mac(want))
}

fn equal<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
    a.is_some() && a == b
}

/// `yes` and `true` (the API prints `true`, its manual writes `yes`).
pub(super) fn flag(text: &str) -> Option<bool> {
    match text {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    }
}

/// Bits per second; the suffixes are powers of 1000 (RouterOS manual, "Queues").
fn rate(text: &str) -> Option<u64> {
    let (digits, factor) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (text.get(..at)?, 1_000),
        (at, 'M') => (text.get(..at)?, 1_000_000),
        (at, 'G') => (text.get(..at)?, 1_000_000_000),
        _ => (text, 1),
    };
    if let Some((whole, part)) = digits.split_once('.') {
        let scale = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
        let number = whole.parse::<u64>().ok()?.checked_mul(scale)?;
        let number = number.checked_add(part.parse::<u64>().ok()?)?;
        return number.checked_mul(factor).map(|n| n / scale);
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// `1w2d3h4m5s`, `500ms`, `1d02:03:04`, `24:00:00`, `00:05`, seconds as a bare number.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        if rest.contains(':') && !rest.contains(['w', 'd', 'h', 'm', 's']) {
            return total.checked_add(clock_time(rest)?);
        }
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let letters = rest
            .find(|c: char| !c.is_ascii_lowercase())
            .unwrap_or(rest.len());
        let unit = rest.get(..letters)?;
        rest = rest.get(letters..)?;
        let seconds = match unit {
            "ms" => {
                total = total.checked_add(Duration::from_millis(number))?;
                continue;
            }
            "w" => 604_800,
            "d" => 86_400,
            "h" => 3_600,
            "m" => 60,
            "s" => 1,
            "" if rest.is_empty() && total.is_zero() => 1,
            _ => return None,
        };
        total = total.checked_add(Duration::from_secs(number.checked_mul(seconds)?))?;
    }
    Some(total)
}

/// `HH:MM:SS` or `HH:MM`.
fn clock_time(text: &str) -> Option<Duration> {
    let mut seconds = 0_u64;
    let mut parts = 0;
    for part in text.split(':') {
        parts += 1;
        seconds = seconds.checked_mul(60)?.checked_add(part.parse().ok()?)?;
    }
    match parts {
        2 => Some(Duration::from_secs(seconds.checked_mul(60)?)),
        3 => Some(Duration::from_secs(seconds)),
        _ => None,
    }
}

/// Six bytes, whatever the case and the separator.
pub(super) fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next()?;
        if part.len() != 2 {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms_are_equal() {
        for (key, have, want) in [
            ("max-limit", "10000000/5000000", "10M/5M"),
            ("max-limit", "1500000/64000", "1.5M/64k"),
            ("target", "10.88.0.15/32", "10.88.0.15"),
            (
                "target",
                "10.88.0.15/32,2001:db8:1::/56",
                "2001:db8:1::/56,10.88.0.15",
            ),
            ("address", "2001:db8::1/128", "2001:DB8:0::1"),
            ("address", "10.88.0.0/24", "10.88.0.15/24"),
            ("timeout", "1d", "24:00:00"),
            ("timeout", "1d00:00:10", "1d10s"),
            ("interval", "5m", "300"),
            ("disabled", "false", "no"),
            ("mac-address", "AA:BB:CC:00:11:22", "aa-bb-cc-00-11-22"),
            ("burst-time", "0s/0s", "0/0"),
        ] {
            assert!(same(key, have, want), "{key}: {have} = {want}");
        }
    }

    #[test]
    fn different_things_stay_different() {
        for (key, have, want) in [
            ("max-limit", "10000000/5000000", "5M/10M"),
            ("target", "10.88.0.15/32", "10.88.0.1"),
            (
                "target",
                "10.88.0.15/32,10.88.0.15/32",
                "10.88.0.15/32,10.88.0.16/32",
            ),
            ("address", "10.88.0.0/24", "10.88.0.0/25"),
            ("address", "10.0.0.1/24", "10.0.0.2/24"),
            ("name", "10M", "10000000"),
            ("comment", "10.88.0.15/32", "10.88.0.15"),
            ("list", "yes", "true"),
            ("disabled", "", "no"),
            ("timeout", "1d", "1h"),
            ("max-limit", "", "10M/10M"),
        ] {
            assert!(!same(key, have, want), "{key}: {have} != {want}");
        }
    }
}
