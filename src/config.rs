//! The configuration file (TOML), every key optional. Precedence: flag, then
//! `NED_SECTION__KEY` in the environment, then the file, then the defaults here.
//! `docs/configuration.md` is the reference; `tests/config.rs` keeps the two equal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::nas::OnError;

/// Where `--config` looks when neither the flag nor `NED_CONFIG` is given.
pub const DEFAULT_FILE: &str = "/etc/nas_event_daemon/nas_event_daemon.toml";

/// Widest network that may use the classic API without a token, IPv4 prefix length.
const OPEN_FROM_MIN_V4: u8 = 24;
/// The same for IPv6: one subnet's hosts, /120.
const OPEN_FROM_MIN_V6: u8 = 120;

/// The whole configuration.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where events are kept.
    pub database: Database,
    /// Directories.
    pub paths: Paths,
    /// REST.
    pub http: Http,
    /// `/metrics`.
    pub metrics: Metrics,
    /// Scheduling.
    pub dispatch: Dispatch,
    /// Done events.
    pub history: History,
    /// Who changed what.
    pub audit: Audit,
    /// Who is told of trouble.
    pub alarm: Alarm,
    /// Contracts of the original.
    pub compat: Compat,
    /// The file that it was read from, if one was named.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// `[database]`
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `sqlite:///absolute/path` or `postgres://user@host/db`.
    pub url: String,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: "sqlite:///var/lib/nas_event_daemon/nas_event_daemon.db".to_owned(),
        }
    }
}

/// `[paths]`
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// Operator's schemes: `local/` then `core/` below it.
    pub oss: PathBuf,
    /// Logs of the daemon, the NASes and the accounts.
    pub log: PathBuf,
    /// Sockets and pid file.
    pub run: PathBuf,
    /// Schemes shipped with the product, the last place that is searched.
    pub share: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            oss: "/var/oss".into(),
            log: "/var/log/nas_event_daemon".into(),
            run: "/run/nas_event_daemon".into(),
            share: "/usr/share/nas_event_daemon".into(),
        }
    }
}

/// `[http]`
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// `address:port` each; empty = no TCP.
    pub listen: Vec<String>,
    /// Networks that may use the classic API without a token.
    pub open_from: Vec<IpNet>,
    /// Waiting events from which on posts get 429 and expansion takes payers only,
    /// 0..100000000; 0 = no mark.
    pub high_water: usize,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:8082".to_owned()],
            open_from: Vec::new(),
            high_water: 1_000_000,
        }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// NASes that have series of their own in `/metrics`, 0..100000; of more there are sums.
    pub max_nas: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { max_nas: 300 }
    }
}

/// `[dispatch]`
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Dispatch {
    /// How often NAS settings are read again, 1s..1h.
    #[serde(deserialize_with = "duration", serialize_with = "duration_text")]
    pub settings_interval: Duration,
    /// How often rows inserted by others are looked for, 5ms..60s.
    #[serde(deserialize_with = "duration", serialize_with = "duration_text")]
    pub poll_interval: Duration,
    /// Wait after the n-th failed try is n times this, 10ms..24h.
    #[serde(deserialize_with = "duration", serialize_with = "duration_text")]
    pub retry_base: Duration,
    /// Tries before an event is dead, 1..1000.
    pub max_tries: u32,
    /// What an unknown exit code means.
    pub on_error: OnError,
    /// Hard deadline of one attempt, 10ms..24h.
    #[serde(deserialize_with = "duration", serialize_with = "duration_text")]
    pub script_timeout: Duration,
    /// How long a later event on another NAS waits for an earlier one, 0..1h.
    #[serde(deserialize_with = "duration", serialize_with = "duration_text")]
    pub cross_nas_wait: Duration,
    /// Ids of waiting events kept in memory, 1000..10000000.
    pub window: usize,
    /// Time that running events get at SIGTERM, 0..1h.
    #[serde(deserialize_with = "duration", serialize_with = "duration_text")]
    pub drain: Duration,
    /// What the intent guard does about a burst of cutting commands.
    pub guard: GuardMode,
}

/// `dispatch.guard`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// Nothing is counted.
    Off,
    /// A burst is reported, and goes through.
    #[default]
    Warn,
    /// What goes beyond the limit is held until an operator decides.
    Hold,
}

impl Default for Dispatch {
    fn default() -> Self {
        Self {
            settings_interval: Duration::from_secs(60),
            poll_interval: Duration::from_millis(50),
            retry_base: Duration::from_millis(61_200),
            max_tries: 10,
            on_error: OnError::Dead,
            script_timeout: Duration::from_secs(60),
            cross_nas_wait: Duration::from_secs(30),
            window: 200_000,
            drain: Duration::from_secs(30),
            guard: GuardMode::Warn,
        }
    }
}

/// `[history]`
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct History {
    /// How long done events are kept.
    #[serde(deserialize_with = "duration", serialize_with = "duration_text")]
    pub keep: Duration,
}

impl Default for History {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(7 * 86_400),
        }
    }
}

/// `[audit]`
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// How long rows of the audit table are kept.
    #[serde(deserialize_with = "duration", serialize_with = "duration_text")]
    pub keep: Duration,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(1_095 * 86_400),
        }
    }
}

/// `[alarm]`
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Alarm {
    /// `http://` or `https://`; gets a POST for each alarm that begins or ends. Empty = none.
    pub webhook: String,
    /// How long something has to be wrong, 100ms..1h.
    #[serde(deserialize_with = "duration", serialize_with = "duration_text")]
    pub after: Duration,
}

impl Default for Alarm {
    fn default() -> Self {
        Self {
            webhook: String::new(),
            after: Duration::from_secs(30),
        }
    }
}

/// `[compat]`
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Compat {
    /// Directory for the classic `<user_id>_user_info` files; empty = none.
    pub result_dir: String,
}

/// A configuration that cannot be used: file, place, reason, hint.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}\nhint: {hint}")]
pub struct ConfigError {
    /// `FILE:LINE:COLUMN`, or the environment variable.
    pub place: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

impl ConfigError {
    /// Number of its page in docs/errors.md.
    pub fn number(&self) -> u16 {
        if self.reason.starts_with("cannot be read") {
            101
        } else if self.place.starts_with("environment variable") {
            104
        } else if self.place.contains(": ") {
            103
        } else {
            102
        }
    }
}

impl Config {
    /// Reads `file` (or the default file if it exists) and the environment.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let (name, text) = read_file(file)?;
        Ok(Self {
            file: file.map(Path::to_owned),
            ..Self::of_text(&name, &text, env)?
        })
    }

    /// The same of what stands, or is to stand, in the file `name`.
    pub fn of_text(
        name: &str,
        text: &str,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let wrong = |e: toml::de::Error| from_toml(name, text, &e);
        let mut config: Self = toml::from_str(text).map_err(wrong)?;
        let mut table: toml::Table = toml::from_str(text).map_err(wrong)?;
        let mut overrides: Vec<_> = env
            .filter(|(k, _)| k.starts_with("NED_") && k.contains("__"))
            .collect();
        overrides.sort();
        for (key, value) in overrides {
            config = overridden(&mut table, &key, &value)?;
        }
        config.check(name)?;
        Ok(config)
    }

    fn check(&self, place: &str) -> Result<(), ConfigError> {
        let bad = |key: &str, reason: String, hint: &str| ConfigError {
            place: format!("{place}: {key}"),
            reason,
            hint: hint.to_owned(),
        };
        if !["sqlite:", "postgres:", "postgresql:"]
            .iter()
            .any(|s| self.database.url.starts_with(s))
        {
            return Err(bad(
                "database.url",
                "is neither sqlite:///path nor postgres://user@host/db".to_owned(),
                "write url = \"sqlite:///var/lib/nas_event_daemon/nas_event_daemon.db\"",
            ));
        }
        for listen in &self.http.listen {
            if listen.parse::<std::net::SocketAddr>().is_err() {
                return Err(bad(
                    "http.listen",
                    format!("{listen:?} is not address:port"),
                    "write listen = [\"127.0.0.1:8082\"], or [] for no TCP",
                ));
            }
        }
        for net in &self.http.open_from {
            let narrow = match net {
                IpNet::V4(n) => n.prefix_len() >= OPEN_FROM_MIN_V4,
                IpNet::V6(n) => n.prefix_len() >= OPEN_FROM_MIN_V6,
            };
            if !narrow {
                return Err(bad(
                    "http.open_from",
                    format!("{net} is wider than /24"),
                    "name the hosts of the billing, at most a /24 (IPv6: /120) each, or use tokens",
                ));
            }
        }
        if self.http.high_water > 100_000_000 {
            return Err(bad(
                "http.high_water",
                format!("{} is outside 0..100000000", self.http.high_water),
                "the default is 1000000 waiting events; 0 switches the mark off",
            ));
        }
        if self.metrics.max_nas > 100_000 {
            return Err(bad(
                "metrics.max_nas",
                format!("{} is outside 0..100000", self.metrics.max_nas),
                "the default is 300 NASes; 0 = sums only",
            ));
        }
        let webhook = &self.alarm.webhook;
        if !webhook.is_empty()
            && !["http://", "https://"]
                .iter()
                .any(|s| webhook.starts_with(s))
        {
            return Err(bad(
                "alarm.webhook",
                "begins with neither http:// nor https://".to_owned(),
                "write webhook = \"https://HOST/PATH\", or leave it out",
            ));
        }
        if self.audit.keep < ms(30 * 86_400_000) {
            return Err(bad(
                "audit.keep",
                format!("{:?} is less than 30d", self.audit.keep),
                "the default is 1095d, three years",
            ));
        }
        if self.alarm.after < ms(100) || self.alarm.after > ms(3_600_000) {
            return Err(bad(
                "alarm.after",
                format!("{:?} is outside 100ms..1h", self.alarm.after),
                "the default is 30s",
            ));
        }
        let d = &self.dispatch;
        let ranges: [(&str, Duration, Duration, Duration); 6] = [
            (
                "settings_interval",
                d.settings_interval,
                ms(100),
                ms(3_600_000),
            ),
            ("poll_interval", d.poll_interval, ms(5), ms(60_000)),
            ("retry_base", d.retry_base, ms(10), ms(86_400_000)),
            ("script_timeout", d.script_timeout, ms(10), ms(86_400_000)),
            ("cross_nas_wait", d.cross_nas_wait, ms(0), ms(3_600_000)),
            ("drain", d.drain, ms(0), ms(3_600_000)),
        ];
        for (key, value, least, most) in ranges {
            if value < least || value > most {
                return Err(bad(
                    &format!("dispatch.{key}"),
                    format!("{value:?} is outside {least:?}..{most:?}"),
                    "see docs/configuration.md for the ranges",
                ));
            }
        }
        if !(1..=1000).contains(&d.max_tries) {
            return Err(bad(
                "dispatch.max_tries",
                format!("{} is outside 1..1000", d.max_tries),
                "the default is 10",
            ));
        }
        if !(1_000..=10_000_000).contains(&d.window) {
            return Err(bad(
                "dispatch.window",
                format!("{} is outside 1000..10000000", d.window),
                "the default is 200000 ids, about 30 MB",
            ));
        }
        Ok(())
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn read_file(file: Option<&Path>) -> Result<(String, String), ConfigError> {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((path.display().to_string(), text)),
        Err(e) if file.is_none() && e.kind() == std::io::ErrorKind::NotFound => {
            Ok(("built-in defaults".to_owned(), String::new()))
        }
        Err(e) => Err(ConfigError {
            place: path.display().to_string(),
            reason: format!("cannot be read: {e}"),
            hint: "check the path after --config (or NED_CONFIG) and its permissions".to_owned(),
        }),
    }
}

fn from_toml(name: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let (line, column) = error.span().map_or((1, 1), |span| {
        let before = text.get(..span.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let last = before.rsplit('\n').next().unwrap_or_default();
        let column = last.chars().count() + 1;
        (line, column)
    });
    let reason = error.message().trim().replace('\n', " ");
    let hint = if reason.contains("unknown field") {
        "check the spelling; docs/configuration.md lists every key"
    } else {
        "docs/configuration.md shows the type and an example of every key"
    };
    ConfigError {
        place: format!("{name}:{line}:{column}"),
        reason,
        hint: hint.to_owned(),
    }
}

/// Sets one `NED_SECTION__KEY`: the value is read as TOML, else taken as a plain string.
fn overridden(table: &mut toml::Table, key: &str, text: &str) -> Result<Config, ConfigError> {
    let bad = |reason: String| ConfigError {
        place: format!("environment variable {key}"),
        reason,
        hint: "the form is NED_SECTION__KEY=value, for example NED_DISPATCH__MAX_TRIES=5"
            .to_owned(),
    };
    let Some((section, name)) = key.strip_prefix("NED_").and_then(|k| k.split_once("__")) else {
        return Err(bad("is not of the form NED_SECTION__KEY".to_owned()));
    };
    let (section, name) = (section.to_ascii_lowercase(), name.to_ascii_lowercase());
    let plain = toml::Value::String(text.to_owned());
    let read = toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| plain.clone());
    let mut last = None;
    for value in [read, plain] {
        let mut trial = table.clone();
        trial
            .entry(section.clone())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| bad(format!("{section} is not a section")))?
            .insert(name.clone(), value);
        match trial.clone().try_into::<Config>() {
            Ok(config) => {
                *table = trial;
                return Ok(config);
            }
            Err(e) => {
                last.get_or_insert(e.message().trim().replace('\n', " "));
            }
        }
    }
    Err(bad(last.unwrap_or_default()))
}

/// `"60s"`, `"50ms"`, `"61.2s"`, `"30m"`, `"2h"`, `"7d"`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let wrong = || {
        format!("{text:?} is not a duration; write for example \"500ms\", \"60s\", \"30m\", \"7d\"")
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit.trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(serde::de::Error::custom)
}

/// The form that [`parse_duration`] reads: whole seconds, else milliseconds.
fn duration_text<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    if value.subsec_nanos() == 0 {
        serializer.serialize_str(&format!("{}s", value.as_secs()))
    } else {
        serializer.serialize_str(&format!("{}ms", value.as_secs_f64() * 1000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(
            Some(&file),
            env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        )
    }

    #[test]
    fn unknown_keys_and_bad_types_name_line_and_column() {
        let e = load("[dispatch]\nmax_tries = 3\nretry_bass = \"1s\"\n", &[]).unwrap_err();
        assert!(e.place.ends_with("c.toml:3:1"), "{e}");
        assert!(e.reason.contains("retry_bass"), "{e}");
        let e = load("[dispatch]\npoll_interval = 50\n", &[]).unwrap_err();
        assert!(e.place.contains("c.toml:2:"), "{e}");
        let e = load("[http]\nopen_from = [\"10.0.0.0/8\"]\n", &[]).unwrap_err();
        assert!(e.to_string().contains("wider"), "{e}");
    }

    #[test]
    fn environment_wins_over_the_file() {
        let c = load(
            "[dispatch]\nmax_tries = 3\n",
            &[
                ("NED_DISPATCH__MAX_TRIES", "5"),
                ("NED_DISPATCH__DRAIN", "2s"),
                ("NED_HTTP__LISTEN", "[]"),
            ],
        )
        .unwrap();
        assert_eq!(c.dispatch.max_tries, 5);
        assert_eq!(c.dispatch.drain, Duration::from_secs(2));
        assert!(c.http.listen.is_empty());
        let e = load("", &[("NED_DISPATCH__MAX_TRY", "5")]).unwrap_err();
        assert!(e.place.contains("NED_DISPATCH__MAX_TRY"), "{e}");
    }

    #[test]
    fn durations() {
        assert_eq!(
            parse_duration("61.2s").unwrap(),
            Duration::from_millis(61_200)
        );
        assert_eq!(parse_duration("7d").unwrap(), Duration::from_secs(604_800));
        for bad in ["", "5", "s", "-1s", "1w", "1e400s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
