//! The words for a network access server: one settings row, its secrets, its forks, and the
//! name of its log file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

/// Number of a NAS in the billing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NasId(pub i64);

impl fmt::Display for NasId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the daemon does with a NAS's events (`nas.mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Commands are sent.
    Active,
    /// Everything is expanded, ordered, rendered and logged; nothing is sent.
    Observe,
    /// The NAS is skipped; its events stay ready.
    Off,
}

impl Mode {
    /// Reads the column; NULL and empty mean `active`.
    pub fn parse(text: Option<&str>) -> Result<Self, String> {
        match text.map(str::trim).unwrap_or_default() {
            "" | "active" => Ok(Self::Active),
            "observe" => Ok(Self::Observe),
            "off" => Ok(Self::Off),
            other => Err(format!(
                "mode is '{other}', expected active, observe or off"
            )),
        }
    }

    /// What holds where an operator said another mode than the billing: the operator's word, but
    /// what the billing has switched off stays off.
    pub fn overridden(self, by: Option<Self>) -> Self {
        match self {
            Self::Off => Self::Off,
            Self::Active | Self::Observe => by.unwrap_or(self),
        }
    }

    /// The word in the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Observe => "observe",
            Self::Off => "off",
        }
    }
}

/// What becomes of an event whose failure is neither "done" nor "try later".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Kept in `events_dead`, visible, can be retried.
    Dead,
    /// Deferred like a time-out.
    Retry,
    /// Done with result `dropped`.
    Drop,
}

impl OnError {
    /// Reads a column or a key; NULL and empty mean "not set here".
    pub fn parse(text: Option<&str>) -> Result<Option<Self>, String> {
        match text.map(str::trim).unwrap_or_default() {
            "" => Ok(None),
            "dead" => Ok(Some(Self::Dead)),
            "retry" => Ok(Some(Self::Retry)),
            "drop" => Ok(Some(Self::Drop)),
            other => Err(format!(
                "on_error is '{other}', expected dead, retry or drop"
            )),
        }
    }
}

/// How many events of one NAS run at once: 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Forks(u16);

impl Forks {
    /// The default of the original's documentation is silent; five suits the RouterOS API.
    pub const DEFAULT: Self = Self(5);
    /// Hard cap, as in the original.
    pub const MAX: u16 = 100;

    /// Clamps to 1..=100 and says so if the value was outside.
    pub fn clamped(wanted: i64) -> (Self, Option<String>) {
        let forks = u16::try_from(wanted.clamp(1, i64::from(Self::MAX))).unwrap_or(1);
        let warning = (i64::from(forks) != wanted)
            .then(|| format!("forks={wanted} is outside 1..100, {forks} is used"));
        (Self(forks), warning)
    }

    /// The number itself.
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

/// One row of the billing's `nas`, checked. Secrets are apart, in [`NasSecret`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Nas {
    /// Primary key.
    pub id: NasId,
    /// Free text; only ever a log file name after [`log_file_names`].
    pub name: String,
    /// Management address or host name.
    pub ip: String,
    /// `nas.mode`, or what the operator said instead (`nas activate`, `nas observe`).
    pub mode: Mode,
    /// Slots.
    pub forks: Forks,
    /// Said once in the daemon log when `forks` was outside its range.
    pub forks_warning: Option<String>,
    /// Scheme directory: absolute, or relative to `oss/local`, `oss/core`, the shipped schemes.
    pub oss_path: Option<String>,
    /// Old-style script, executed with the cmd as its first argument.
    pub script_name: Option<String>,
    /// RouterOS API, TCP; 8728 if not set (8729 with `api_tls`).
    pub api_port: Option<u16>,
    /// RouterOS API over TLS.
    pub api_tls: bool,
    /// SSH, TCP; 22 if not set.
    pub ssh_port: Option<u16>,
    /// NULL = refused with a hint, `tofu` = learned, else the pinned key.
    pub ssh_host_key: Option<String>,
    /// The key learned under `tofu`, from our `nas_state`; not a column of the billing.
    pub ssh_known_key: Option<String>,
    /// Telnet, TCP; 23 if not set.
    pub telnet_port: Option<u16>,
    /// RADIUS CoA, UDP; 3799 if not set (RFC 5176 section 2).
    pub coa_port: Option<u16>,
    /// Base URL of an HTTP device.
    pub http_url: Option<String>,
    /// Device sessions kept at once, 1..=100; 3 if not set.
    pub max_sessions: Option<u16>,
    /// Commands per second, no limit if not set.
    pub max_rate: Option<f64>,
    /// Deadline of one attempt; the driver's or the script's default if not set.
    pub timeout: Option<Duration>,
    /// Overrides the scheme's and the global `on_error`.
    pub on_error: Option<OnError>,
    /// JSON object that overrides the scheme's `[vars]`.
    pub vars: Map<String, Value>,
}

/// What the name of a setting holds that is a secret.
const SECRET_WORDS: [&str; 7] = [
    "psw",
    "passw",
    "secret",
    "token",
    "community",
    "api_key",
    "apikey",
];

impl Nas {
    /// Values of `vars` that are secrets, by their names: they reach the device, and no log.
    pub fn secret_vars(&self) -> impl Iterator<Item = &str> {
        // `password_prompt` is what a device asks with.
        let is_secret = |name: &str| {
            SECRET_WORDS.iter().any(|word| name.contains(word)) && !name.ends_with("_prompt")
        };
        self.vars
            .iter()
            .filter(move |(name, _)| is_secret(&name.to_ascii_lowercase()))
            .filter_map(|(_, value)| value.as_str())
    }

    /// An active NAS of which nothing else is said: every other setting is at its default.
    pub fn new(id: NasId, name: &str, ip: &str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            ip: ip.to_owned(),
            mode: Mode::Active,
            forks: Forks::DEFAULT,
            forks_warning: None,
            oss_path: None,
            script_name: None,
            api_port: None,
            api_tls: false,
            ssh_port: None,
            ssh_host_key: None,
            ssh_known_key: None,
            telnet_port: None,
            coa_port: None,
            http_url: None,
            max_sessions: None,
            max_rate: None,
            timeout: None,
            on_error: None,
            vars: Map::new(),
        }
    }
}

/// A row that cannot be served, and why. It affects that NAS alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadNas {
    /// Primary key.
    pub id: NasId,
    /// As far as it could be read.
    pub ip: String,
    /// For `Skip nas … reason=…`.
    pub reason: String,
}

/// Operator's settings that live in our `nas_state`, beside the billing's row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NasState {
    /// The pause begins at this wall time (ms); none = it has begun.
    pub paused_from_ms: Option<i64>,
    /// Nothing is started until this wall time (ms); `i64::MAX` = until resumed.
    pub paused_until_ms: Option<i64>,
    /// Why, in the operator's words.
    pub pause_reason: String,
    /// Overrides `nas.forks`.
    pub forks: Option<i64>,
    /// Overrides `nas.mode`, unless that is `off`; [`Nas::mode`] tells what holds.
    pub mode: Option<Mode>,
    /// SSH host key learned under `ssh_host_key = 'tofu'`, an OpenSSH public key line.
    pub ssh_host_key: Option<String>,
}

/// A change of the operator's settings of one NAS. The others stay as they are, also if somebody
/// else changes them at the same moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NasChange {
    /// Starts nothing from `from` (wall ms; none = now) until `until`.
    Pause {
        /// [`NasState::paused_from_ms`].
        from: Option<i64>,
        /// [`NasState::paused_until_ms`].
        until: i64,
        /// [`NasState::pause_reason`].
        reason: String,
    },
    /// Takes a pause back, also one that has not begun.
    Resume,
    /// [`NasState::forks`].
    Forks(Option<i64>),
    /// [`NasState::mode`].
    Mode(Option<Mode>),
}

impl NasState {
    /// Makes a change.
    pub fn apply(&mut self, change: &NasChange) {
        match change {
            NasChange::Pause {
                from,
                until,
                reason,
            } => {
                self.paused_from_ms = *from;
                self.paused_until_ms = Some(*until);
                self.pause_reason.clone_from(reason);
            }
            NasChange::Resume => {
                self.paused_from_ms = None;
                self.paused_until_ms = None;
                self.pause_reason = String::new();
            }
            NasChange::Forks(forks) => self.forks = *forks,
            NasChange::Mode(mode) => self.mode = *mode,
        }
    }

    /// When the pause ends that holds now.
    pub fn paused(&self, now_ms: i64) -> Option<i64> {
        let begun = self.paused_from_ms.is_none_or(|from| from <= now_ms);
        self.paused_until_ms
            .filter(|until| begun && *until > now_ms)
    }
}

/// Credentials, joined at the start of an attempt; never stored with an event.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct NasSecret {
    /// Login for API, SSH and telnet.
    pub login: String,
    /// Its password.
    pub password: String,
    /// Cisco-like `enable`.
    pub enable_password: String,
    /// Shared secret of RADIUS CoA.
    pub coa_secret: String,
    /// Private key, OpenSSH format.
    pub ssh_key: String,
}

impl fmt::Debug for NasSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NasSecret(***)")
    }
}

impl NasSecret {
    /// Texts that must never appear in a transcript.
    pub fn texts(&self) -> Vec<String> {
        [
            &self.password,
            &self.enable_password,
            &self.coa_secret,
            &self.ssh_key,
        ]
        .into_iter()
        .filter(|s| !s.is_empty())
        .cloned()
        .collect()
    }
}

/// Longest name part of a log file, bytes; file systems allow 255 for the whole name.
const LOG_NAME_MAX: usize = 120;

/// `<name>_<ip>.log` for each NAS: letters of any alphabet, digits, blanks inside and `. _ - + :` stay;
/// never hidden, never two alike (also where letter case does not count). What had to be changed
/// ends in `_id<id>`, and keeps its name whoever comes later.
pub fn log_file_names<'a>(
    nases: impl Iterator<Item = (NasId, &'a str, &'a str)>,
) -> BTreeMap<NasId, String> {
    let mut rows: Vec<_> = nases.collect();
    rows.sort_by_key(|row| row.0);
    let mut taken = BTreeSet::new();
    let mut names = BTreeMap::new();
    for (id, name, ip) in rows {
        let (name, name_changed) = safe_part(name);
        let (ip, ip_changed) = safe_part(ip);
        let mut file = format!("{name}_{ip}");
        if name_changed || ip_changed {
            file.push_str(&format!("_id{id}"));
        }
        while taken.contains(&file.to_lowercase()) {
            file.push_str(&format!("_id{id}"));
        }
        taken.insert(file.to_lowercase());
        names.insert(id, format!("{file}.log"));
    }
    names
}

/// A name as a part of a file's name, and whether it had to be changed.
pub fn safe_part(text: &str) -> (String, bool) {
    let plain = |c: char| c.is_alphanumeric() || " ._-+:".contains(c);
    let mut safe: String = text
        .trim()
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    safe.truncate(safe.floor_char_boundary(LOG_NAME_MAX));
    if safe.starts_with(['.', '-']) {
        safe.replace_range(0..1, "_");
    }
    if safe.is_empty() {
        safe.push_str("nas");
    }
    let changed = safe != text;
    (safe, changed)
}

/// Names of ours that a text may hold although a secret is a part of them: `secret` is one.
const NAMES: [&str; 6] = [
    "coa_secret",
    "nas_secret",
    "enable_password",
    "telnet_password",
    "ssh_key",
    "coa_psw",
];

/// `text` with `***` for each `secret`. Inside one of our own names it says nothing of the secret,
/// and a hint without the name helps nobody.
pub fn without(text: &str, secret: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(secret).filter(|_| !secret.is_empty()) {
        let (before, from) = rest.split_at(at);
        let (found, after) = from.split_at(secret.len());
        out.push_str(before);
        let in_a_name = NAMES.iter().any(|name| {
            let mut starts = name.match_indices(secret).map(|(start, _)| start);
            name.len() > secret.len()
                && starts.any(|start| {
                    let (head, tail) = name.split_at(start);
                    let tail = tail.get(secret.len()..).unwrap_or_default();
                    out.ends_with(head) && after.starts_with(tail)
                })
        });
        out.push_str(if in_a_name { found } else { "***" });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_masked_and_our_own_names_stay() {
        let of = |text| without(text, "secret");
        assert_eq!(of("-psecret secretsecret"), "-p*** ******");
        assert_eq!(
            of("check coa_secret, nas_secret.coa_secret: secret"),
            "check coa_secret, nas_secret.coa_secret: ***"
        );
        assert_eq!(of("coa_secre secret_"), "coa_secre ***_");
        assert_eq!(of("moa_secret"), "moa_***");
        assert_eq!(without("coa_secret", "coa_secret"), "***");
        assert_eq!(
            without("enable_password=password", "password"),
            "enable_password=***"
        );
        assert_eq!(without("любой", ""), "любой");
    }

    #[test]
    fn plain_names_stay_and_others_become_distinct() {
        let rows = [
            (NasId(1), "Test_NAS", "10.90.185.2"),
            (NasId(2), "../../etc/passwd", "10.0.0.1"),
            (NasId(3), "test_nas", "10.90.185.2"),
            (NasId(4), "a/b", "10.0.0.9"),
            (NasId(5), "a b", "10.0.0.9"),
            (NasId(6), "", "fe80::1"),
            (NasId(7), "a_b", "10.0.0.9"),
            (NasId(8), "Узел 8", "10.0.0.8"),
        ];
        let names = log_file_names(rows.into_iter());
        assert_eq!(names[&NasId(1)], "Test_NAS_10.90.185.2.log");
        assert_eq!(names[&NasId(2)], "_._.._etc_passwd_10.0.0.1_id2.log");
        assert_eq!(names[&NasId(3)], "test_nas_10.90.185.2_id3.log");
        assert_eq!(names[&NasId(4)], "a_b_10.0.0.9_id4.log");
        assert_eq!(names[&NasId(5)], "a b_10.0.0.9.log");
        assert_eq!(names[&NasId(6)], "nas_fe80::1_id6.log");
        assert_eq!(names[&NasId(7)], "a_b_10.0.0.9.log");
        assert_eq!(names[&NasId(8)], "Узел 8_10.0.0.8.log");
        let distinct: BTreeSet<_> = names.values().collect();
        assert_eq!(distinct.len(), names.len());
        assert!(
            names
                .values()
                .all(|n| !n.contains('/') && !n.starts_with('.'))
        );
    }

    #[test]
    fn forks_are_clamped_with_a_warning() {
        assert_eq!(Forks::clamped(101).0.get(), 100);
        assert!(Forks::clamped(101).1.is_some());
        assert_eq!(Forks::clamped(-5).0.get(), 1);
        assert_eq!(Forks::clamped(7), (Forks(7), None));
    }
}
