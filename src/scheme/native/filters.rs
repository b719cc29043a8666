//! The filters and tests that a scheme may use beside minijinja's own. All of them are pure;
//! a value that a filter cannot read makes the event dead with the reason.
//!
//! | filter | takes | gives |
//! |---|---|---|
//! | `bps` | a rate | bits per second: `1000` → `1000000` |
//! | `kbit` | a rate | kbit/s as a whole number, rounded up: `10M` → `10000` |
//! | `mbit` | a rate | Mbit/s: `1500` → `1.5` |
//! | `net` | address or prefix | prefix: `10.88.0.15` → `10.88.0.15/32` |
//! | `host` | address or prefix | the address alone |
//! | `fam` | address or prefix | `4` or `6` |
//! | `fw` | address or prefix | menu of RouterOS: `/ip/firewall/address-list` or `/ipv6/…` |
//! | `hex` | whole number ≥ 0 | lower-case hexadecimal without `0x` |
//! | `classic` | text with `$name` | PARAMS put in textually, longest known name first |
//! | `service` | a `Cisco-Service-Info` value | name of the service in it |
//!
//! A rate is kbit/s as in PARAMS (`rate_in`, `ceil_out`, …), or bits per second with one of
//! the suffixes `k`, `M`, `G` (powers of 1000, as RouterOS reads them). The test `match` is
//! true if a text matches a regular expression: `names|select('match', '^policy_in')`.

use ipnet::IpNet;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use std::net::IpAddr;

/// Name under which a template finds all of PARAMS.
pub(super) const ALL_PARAMS: &str = "params";

/// Bits in a kbit, and so on: network rates are decimal.
const KILO: u64 = 1_000;

/// Makes the filters known.
pub(super) fn install(env: &mut Environment<'_>) {
    env.add_filter("bps", |v: &Value| rate(v));
    env.add_filter("kbit", |v: &Value| rate(v).map(|b| b.div_ceil(KILO)));
    env.add_filter("mbit", |v: &Value| rate(v).map(mbit));
    env.add_filter("net", |v: &Value| prefix(v).map(|n| n.to_string()));
    env.add_filter("host", |v: &Value| prefix(v).map(|n| n.addr().to_string()));
    env.add_filter("fam", |v: &Value| prefix(v).map(|n| family(&n)));
    env.add_filter("fw", |v: &Value| prefix(v).map(|n| menu(&n)));
    env.add_filter("hex", hex);
    env.add_filter("classic", classic);
    env.add_filter("service", |v: &Value| service(&text(v)));
    env.add_test("match", matches);
}

fn bad(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Text of a scalar, as far as a filter needs it.
fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Bits per second of a kbit/s number or of a text with suffix.
fn rate(value: &Value) -> Result<u64, Error> {
    let text = text(value);
    let wrong = || {
        bad(format!(
            "{text:?} is not a rate; expected kbit/s like 1000, or bits per second like 10M"
        ))
    };
    let text = text.trim();
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), KILO),
        Some((at, 'M')) => (text.get(..at), KILO * KILO),
        Some((at, 'G')) => (text.get(..at), KILO * KILO * KILO),
        _ => (Some(text), KILO),
    };
    let digits = digits.unwrap_or_default();
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    // Six decimals are enough: a rate of millionths of a unit does not exist.
    if whole.is_empty() || !all_digits(whole) || !all_digits(part) || part.len() > 6 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let scale = 10_u64.pow(u32::try_from(part.len()).unwrap_or(6));
    let part: u64 = if part.is_empty() {
        0
    } else {
        part.parse().map_err(|_| wrong())?
    };
    whole
        .checked_mul(scale)
        .and_then(|w| w.checked_add(part))
        .and_then(|n| n.checked_mul(factor))
        .map(|n| n / scale)
        .ok_or_else(wrong)
}

fn mbit(bits: u64) -> String {
    let million = KILO * KILO;
    let (whole, part) = (bits / million, bits % million);
    if part == 0 {
        return whole.to_string();
    }
    let part = format!("{part:06}");
    format!("{whole}.{}", part.trim_end_matches('0'))
}

fn prefix(value: &Value) -> Result<IpNet, Error> {
    let text = text(value);
    parse_prefix(&text)
        .map(|net| net.trunc())
        .ok_or_else(|| bad(format!("{text:?} is not an IPv4 or IPv6 address or prefix")))
}

/// Address or prefix; an address counts as the prefix of one host. Host bits stay.
pub(super) fn parse_prefix(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address));
    }
    text.parse::<IpNet>().ok()
}

fn family(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "4",
        IpNet::V6(_) => "6",
    }
}

fn menu(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "/ip/firewall/address-list",
        IpNet::V6(_) => "/ipv6/firewall/address-list",
    }
}

fn hex(value: &Value) -> Result<String, Error> {
    let text = text(value);
    text.trim()
        .parse::<u64>()
        .map(|n| format!("{n:x}"))
        .map_err(|_| bad(format!("{text:?} is not a whole number, `hex` needs one")))
}

/// The vendor's RADIUS templates (`$ceil_outk/$ceil_ink`): plain textual substitution, where
/// `$ceil_outk` is `$ceil_out` and a `k`. The longest known name wins; `${name}` also works.
fn classic(state: &State<'_, '_>, template: &str) -> Result<String, Error> {
    let params = state
        .lookup(ALL_PARAMS)
        .filter(|p| p.kind() == ValueKind::Map)
        .ok_or_else(|| bad("PARAMS are not at hand".to_owned()))?;
    let known = |name: &str| {
        params
            .get_attr(name)
            .ok()
            .filter(|v| !v.is_undefined())
            .map(|v| text(&v))
    };
    let mut out = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = from.get(1..).unwrap_or_default();
        if let Some((name, tail)) = after.strip_prefix('{').and_then(|t| t.split_once('}')) {
            let value = known(name).ok_or_else(|| bad(format!("PARAMS have no `{name}`")))?;
            out.push_str(&value);
            rest = tail;
            continue;
        }
        let longest = after
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(after.len());
        if longest == 0 {
            out.push('$');
            rest = after;
            continue;
        }
        let found = (1..=longest)
            .rev()
            .find_map(|n| after.get(..n).and_then(known).map(|value| (n, value)));
        let Some((n, value)) = found else {
            let name = after.get(..longest).unwrap_or_default();
            return Err(bad(format!("no name in PARAMS begins `${name}`")));
        };
        out.push_str(&value);
        rest = after.get(n..).unwrap_or_default();
    }
    out.push_str(rest);
    Ok(out)
}

/// `N1policy;…` or `Npolicy;…` of Cisco's session query → `policy`: the code letter `N`, an
/// optional state digit before a letter, and what follows the first `;` are cut.
fn service(text: &str) -> String {
    let name = text.split(';').next().unwrap_or_default();
    let name = name.strip_prefix('N').unwrap_or(name);
    match name.strip_prefix(['0', '1']) {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_alphabetic()) => rest.to_owned(),
        _ => name.to_owned(),
    }
}

fn matches(value: &str, pattern: &str) -> Result<bool, Error> {
    fancy_regex::Regex::new(pattern)
        .and_then(|p| p.is_match(value))
        .map_err(|e| bad(format!("the regular expression {pattern:?} fails: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(expr: &str) -> Result<String, String> {
        let mut env = Environment::new();
        install(&mut env);
        let params = Value::from_pairs([
            ("ceil_out", "2000"),
            ("ceil_in", "1000"),
            ("ceil", "7"),
            ("burst_out", ""),
            ("login", "o'hara $ceil"),
        ]);
        let ctx = Value::from_pairs([(ALL_PARAMS, params)]);
        env.compile_expression(expr)
            .and_then(|e| e.eval(ctx))
            .map(|v| text(&v))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn rates() {
        for (expr, want) in [
            ("'1000'|bps", "1000000"),
            ("1000|bps", "1000000"),
            ("'10M'|bps", "10000000"),
            ("'1.5M'|bps", "1500000"),
            ("'10M'|kbit", "10000"),
            ("'1500'|kbit", "1500"),
            ("1500|mbit", "1.5"),
            ("'1G'|mbit", "1000"),
        ] {
            assert_eq!(eval(expr).unwrap(), want, "{expr}");
        }
        for wrong in [
            "''|bps",
            "'fast'|bps",
            "'-1'|bps",
            "'1e9'|kbit",
            "'99999999999999999999'|bps",
        ] {
            assert!(eval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses() {
        for (expr, want) in [
            ("'10.88.0.15'|net", "10.88.0.15/32"),
            ("'10.88.0.15/24'|net", "10.88.0.0/24"),
            ("'2001:DB8:1::/56'|net", "2001:db8:1::/56"),
            ("'10.88.0.15/32'|host", "10.88.0.15"),
            ("'10.0.0.1'|fam", "4"),
            ("'2001:db8::1'|fam", "6"),
            ("'10.0.0.1'|fw", "/ip/firewall/address-list"),
            ("'2001:db8::/64'|fw", "/ipv6/firewall/address-list"),
        ] {
            assert_eq!(eval(expr).unwrap(), want, "{expr}");
        }
        assert!(eval("''|net").is_err());
        assert!(eval("'10.0.0.1; /system/reset'|fw").is_err());
    }

    #[test]
    fn classic_takes_the_longest_known_name_and_substitutes_once() {
        assert_eq!(
            eval("'$ceil_outk/$ceil_ink'|classic").unwrap(),
            "2000k/1000k"
        );
        assert!(eval("'$5'|classic").is_err());
        assert_eq!(eval("'${ceil}x $ceilx $ a'|classic").unwrap(), "7x 7x $ a");
        assert_eq!(eval("'[$burst_out]'|classic").unwrap(), "[]");
        assert_eq!(eval("'$login'|classic").unwrap(), "o'hara $ceil");
        assert!(eval("'$nothing'|classic").is_err());
    }

    #[test]
    fn hex_service_and_match() {
        assert_eq!(eval("255|hex").unwrap(), "ff");
        assert!(eval("'-1'|hex").is_err());
        assert_eq!(
            eval("'N1policy_in512;12;3'|service").unwrap(),
            "policy_in512"
        );
        assert_eq!(eval("'Npolicy'|service").unwrap(), "policy");
        assert_eq!(
            eval("['policy_in1','other']|select('match','^policy_in')|join(',')").unwrap(),
            "policy_in1"
        );
    }
}
