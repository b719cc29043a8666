//! The file that `doctor --bundle` writes: what somebody who helps from afar needs to know. One
//! text, so that whoever sends it can read it before. Secrets are never put in, and are looked for
//! once more in the whole; addresses and subscribers' names become numbers, the same number for
//! the same one, so that what belongs together still can be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use regex::Regex;
use serde_json::Value;

use super::config::shown;
use super::exit::{FAILED, Failed, REFUSED};
use super::logs::tail;
use super::table::{Format, one_line};
use super::{given, nas_show};
use crate::config::Config;
use crate::nas;
use crate::store::query::{Model, Query};
use crate::store::{Filter, Store};

/// Newest dead events that are shown.
const DEAD: usize = 100;
/// End of the daemon's log, bytes.
const LOG_TAIL: u64 = 64 * 1024;
/// Accounts whose names are looked up in order to be replaced.
const ACCOUNTS_MAX: usize = 1000;
/// A shorter secret would be found in the middle of words.
const SECRET_MIN: usize = 4;

/// The whole text.
pub async fn text(
    config: &Config,
    store: Option<&dyn Store>,
    live: Option<&Value>,
    findings: &str,
) -> Result<String, Failed> {
    let mut text = String::new();
    let mut section = |name: &str, body: &str| {
        text.push_str(&format!("== {name}\n{}\n\n", body.trim_end()));
    };
    section(
        "version",
        concat!("nas_event_daemon ", env!("CARGO_PKG_VERSION")),
    );
    section("system", &system());
    section("doctor", findings);
    section("configuration", &shown(config)?);
    let names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("NED_"))
        .collect();
    section(
        "variables that are set (without their values)",
        &names.join("\n"),
    );
    if let Some(live) = live {
        let pretty = serde_json::to_string_pretty(live).unwrap_or_default();
        section("status", &pretty);
    }
    let mut mask = Mask::default();
    mask.secret(password(&config.database.url));
    if let Some(store) = store {
        section(
            "NASes",
            &nas_show::listed(config, store, live)
                .await?
                .text(Format::Csv),
        );
        section("dead events", &dead(store, &mut mask).await?);
        for row in store.nases().await?.into_iter().flatten() {
            mask.nas(&row.name);
            let secret = store.secret(row.id).await?;
            mask.secret(&secret.login);
            for text in secret.texts() {
                text.lines().for_each(|line| mask.secret(line));
            }
            // Values may be secrets of the operator's own.
            for value in row.vars.values().filter_map(Value::as_str) {
                mask.secret(value);
            }
        }
    }
    let log = tail(&config.paths.log.join("nas_event_daemon.log"), LOG_TAIL);
    let lines: String = log
        .unwrap_or_default()
        .lines()
        .map(|line| one_line(line) + "\n")
        .collect();
    section("end of the daemon's log", &lines);
    Ok(mask.masked(&text))
}

/// Writes it, readable for its owner only.
pub fn write(file: &Path, text: &str) -> Result<(), Failed> {
    let mut options = std::fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(file);
    let written = made.and_then(|mut open| open.write_all(text.as_bytes()));
    written.map_err(|e| {
        let code = if e.kind() == std::io::ErrorKind::AlreadyExists {
            REFUSED
        } else {
            FAILED
        };
        let text = format!("{} cannot be written: {e}", file.display());
        Failed::new(code, format!("{text}\nhint: name a new file"))
    })
}

fn system() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/etc/os-release");
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or_default();
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or_default();
    format!(
        "{name}\nLinux {}load {}{memory}",
        read("/proc/sys/kernel/osrelease"),
        read("/proc/loadavg")
    )
}

async fn dead(store: &dyn Store, mask: &mut Mask) -> Result<String, Failed> {
    let filter = Filter {
        state: Some("dead".to_owned()),
        limit: DEAD,
        ..Filter::default()
    };
    let rows = store.events(&filter).await?;
    let users: BTreeSet<i64> = rows.iter().filter_map(|row| row.user_id).collect();
    for user in users.into_iter().take(ACCOUNTS_MAX) {
        names(store, user, mask).await?;
    }
    let lines = rows.iter().map(|row| {
        let error = row.error.as_deref().unwrap_or_default();
        one_line(&format!(
            "event={} cmd={} nas={} user={} try={} code={} error={error:?}",
            row.id,
            row.cmd,
            given(&row.nas_id),
            given(&row.user_id),
            row.try_count,
            given(&row.code)
        )) + "\n"
    });
    Ok(lines.collect())
}

/// The texts by which an account and its abonent may be named in an error.
async fn names(store: &dyn Store, user: i64, mask: &mut Mask) -> Result<(), Failed> {
    let of = async |model: Model, id: i64, wanted: &[&str]| {
        let known = store.columns(model);
        let mut query = Query::one_of(model, id);
        query.columns = wanted
            .iter()
            .filter(|name| known.iter().any(|c| c.name == **name))
            .map(|name| (*name).to_owned())
            .collect();
        store
            .find(&query)
            .await
            .map(|mut rows| rows.pop().unwrap_or_default())
    };
    let account = of(Model::Users, user, &["login", "abonent_id"]).await?;
    mask.person(account.get("login").and_then(Value::as_str));
    if let Some(abonent) = account.get("abonent_id").and_then(Value::as_i64) {
        let row = of(Model::Abonents, abonent, &["name"]).await?;
        mask.person(row.get("name").and_then(Value::as_str));
    }
    Ok(())
}

/// The password in a URL, also in its parameters.
fn password(url: &str) -> &str {
    let user = url
        .split_once("://")
        .and_then(|(_, rest)| rest.rsplit_once('@'))
        .map_or("", |(user, _)| user);
    let parameter = || {
        let (_, rest) = url.split_once("password=")?;
        rest.split('&').next()
    };
    user.split_once(':')
        .map(|(_, password)| password)
        .or_else(parameter)
        .unwrap_or_default()
}

/// What is replaced by what.
#[derive(Debug, Default)]
struct Mask {
    secrets: BTreeSet<String>,
    persons: BTreeSet<String>,
    /// Each with the number of its NAS: its name, and as a part of its log's name.
    nases: BTreeMap<String, usize>,
}

impl Mask {
    fn secret(&mut self, text: &str) {
        if text.len() >= SECRET_MIN {
            self.secrets.insert(text.to_owned());
        }
    }

    fn person(&mut self, name: Option<&str>) {
        if let Some(name) = name.filter(|name| name.len() >= SECRET_MIN) {
            self.persons.insert(name.to_owned());
        }
    }

    fn nas(&mut self, name: &str) {
        let number = self.nases.values().max().map_or(1, |last| last + 1);
        for name in [name.to_owned(), nas::safe_part(name).0] {
            if name.len() >= SECRET_MIN {
                self.nases.entry(name).or_insert(number);
            }
        }
    }

    fn masked(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // The longest first: one may be a part of another.
        let mut secrets: Vec<&String> = self.secrets.iter().collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        for secret in secrets {
            text = nas::without(&text, secret);
        }
        let persons = (1..)
            .zip(&self.persons)
            .map(|(n, name)| ("person", n, name));
        let nases = self.nases.iter().map(|(name, n)| ("nas", *n, name));
        let mut names: Vec<(&str, usize, &String)> = persons.chain(nases).collect();
        names.sort_by_key(|(_, _, name)| std::cmp::Reverse(name.len()));
        for (word, n, name) in names {
            text = text.replace(name.as_str(), &format!("{word}-{n}"));
        }
        let text = numbered(
            &text,
            r"(?i)\b(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}\b",
            "mac",
            |_| true,
        );
        let text = numbered(&text, r"\b\d{1,3}(?:\.\d{1,3}){3}\b", "ip", |found| {
            found
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|ip| !ip.is_loopback() && !ip.is_unspecified())
        });
        numbered(&text, r"(?i)[0-9a-f:]*::?[0-9a-f:]+", "ipv6", |found| {
            found
                .parse::<std::net::Ipv6Addr>()
                .is_ok_and(|ip| !ip.is_loopback() && !ip.is_unspecified())
        })
    }
}

/// Replaces each different text that fits by a name with a number.
fn numbered(text: &str, pattern: &str, name: &str, fits: impl Fn(&str) -> bool) -> String {
    let Ok(regex) = Regex::new(pattern) else {
        return String::new();
    };
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let replaced = regex.replace_all(text, |found: &regex::Captures<'_>| {
        let found = found.get(0).map_or("", |m| m.as_str());
        if !fits(found) {
            return found.to_owned();
        }
        let next = known.len() + 1;
        let number = *known.entry(found.to_ascii_lowercase()).or_insert(next);
        format!("{name}-{number}")
    });
    replaced.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_leave_the_house_is_replaced() {
        let mut mask = Mask::default();
        mask.secret("s3cret");
        mask.secret("s3cret-and-longer");
        mask.secret("ab");
        mask.person(Some("ivanov"));
        mask.person(Some("ivanovskij"));
        mask.nas("BRAS-1");
        mask.nas("BRAS-10");
        assert_eq!(
            mask.masked("BRAS-10 BRAS-1_x ivanovskij"),
            "nas-2 nas-1_x person-2"
        );
        let said = mask.masked(
            "at 10:00:00 s3cret-and-longer s3cret ab ivanov 10.88.0.15 10.88.0.16 10.88.0.15 \
             127.0.0.1:8082 00:0C:29:aa:bb:cc 2001:db8::1 2001:db8::1 ::1 1.2.3",
        );
        assert_eq!(
            said,
            "at 10:00:00 *** *** ab person-1 ip-1 ip-2 ip-1 \
             127.0.0.1:8082 mac-1 ipv6-1 ipv6-1 ::1 1.2.3"
        );
    }

    #[test]
    fn the_password_of_a_url() {
        assert_eq!(password("postgres://u:p%40ss@h/d"), "p%40ss");
        assert_eq!(password("postgres://u@h/d?password=abcd&x=1"), "abcd");
        assert_eq!(password("sqlite:///a/b.db"), "");
    }
}
