//! `config …`: is the configuration right, and what is in force?

use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::exit::{BAD_CONFIG, DONE, Failed, NOT_REACHABLE, Outcome, remark, say, say_all};
use super::table::{Format, Table, one_line};
use super::{Console, reference};
use crate::config::{Config, DEFAULT_FILE};
use crate::daemon;
use crate::daemon::alarms;
use crate::nas::{BadNas, Mode};
use crate::store::{self, Error, shown_url, sqlite_file};

/// Verbs of the configuration.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Check the file, the database, the billing's tables and the scheme of every NAS.
    Check,
    /// Print the configuration that is in force, as TOML.
    Show {
        /// Each key with its value and where that comes from: environment, file or default
        #[arg(long)]
        origin: bool,
    },
    /// Print a file with every key at its default.
    Default,
    /// Print the page that explains every key.
    Reference,
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    match verb {
        Verb::Default => {
            say_all(&reference::default_file());
            return Ok(DONE);
        }
        Verb::Reference => {
            say_all(&reference::page());
            return Ok(DONE);
        }
        Verb::Check | Verb::Show { .. } => {}
    }
    let config = console.config()?;
    match verb {
        Verb::Show { origin: true } => origins(console, &config),
        Verb::Show { origin: false } => in_force(console, &config),
        Verb::Check => check(console, &config).await,
        Verb::Default | Verb::Reference => Ok(DONE),
    }
}

/// The whole configuration; a password in the URL of the database is left out.
pub(super) fn shown(config: &Config) -> Result<String, Failed> {
    let mut config = config.clone();
    config.database.url = shown_url(&config.database.url);
    config.alarm.webhook = alarms::shown(&config.alarm.webhook);
    toml::to_string(&config).map_err(|e| {
        Failed::new(
            super::exit::BUG,
            format!("the configuration is no TOML: {e}"),
        )
    })
}

/// As TOML, or as the document or the rows that a program asked for.
fn in_force(console: &Console, config: &Config) -> Outcome {
    let text = shown(config)?;
    let document: toml::Table = toml::from_str(&text).map_err(|e| {
        Failed::new(
            super::exit::BUG,
            format!("the configuration is no TOML: {e}"),
        )
    })?;
    match console.output {
        Some(Format::Json) => say(serde_json::to_string_pretty(&document).unwrap_or_default()),
        Some(Format::Jsonl) => say(json!(document).to_string()),
        Some(Format::Csv) => return origins(console, config),
        Some(Format::Table | Format::Plain) | None => say_all(&text),
    }
    Ok(DONE)
}

/// Prints every key, its value, and who set it.
fn origins(console: &Console, config: &Config) -> Outcome {
    let file = console.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // Both were read before without a fault.
    let written: toml::Table = toml::from_str(&text).unwrap_or_default();
    let in_force: toml::Table = toml::from_str(&shown(config)?).unwrap_or_default();
    let mut table = Table::new(&["key", "value", "origin"]);
    for (section, keys) in &in_force {
        for (key, value) in keys.as_table().into_iter().flatten() {
            let variable = format!("NED_{section}__{key}").to_ascii_uppercase();
            let in_file = written.get(section).and_then(|keys| keys.get(key));
            let origin = if std::env::var_os(&variable).is_some() {
                variable
            } else if in_file.is_some() {
                file.display().to_string()
            } else {
                "default".to_owned()
            };
            let value = match value {
                toml::Value::String(text) => json!(text),
                other => json!(other.to_string()),
            };
            table.push(vec![
                json!(format!("{section}.{key}")),
                value,
                json!(origin),
            ]);
        }
    }
    console.list(&table);
    Ok(DONE)
}

/// What the check found: a line at once for people, rows at the end for programs.
struct Found<'c> {
    console: &'c Console,
    table: Table,
    wrong: usize,
}

impl<'c> Found<'c> {
    fn new(console: &'c Console) -> Self {
        Self {
            console,
            table: Table::new(&["what", "ok", "said"]),
            wrong: 0,
        }
    }

    fn ok(&mut self, what: &str, said: &str) {
        self.row(what, true, said);
    }

    fn skipped(&mut self, what: &str, reason: &str) {
        self.wrong += 1;
        self.row(what, false, &format!("skipped: {reason}"));
    }

    fn row(&mut self, what: &str, ok: bool, said: &str) {
        if self.console.wants_data() {
            self.table.push(vec![json!(what), json!(ok), json!(said)]);
        } else {
            say(one_line(&format!("{what}: {said}")));
        }
    }

    /// What was found before something failed is told, too.
    fn end(self, looked: Result<(), Failed>) -> Outcome {
        if self.console.wants_data() {
            self.console.list(&self.table);
        }
        looked?;
        if self.wrong > 0 {
            let wrong = self.wrong;
            remark(format!(
                "{wrong} NASes would be skipped; the daemon serves the others"
            ));
            return Ok(BAD_CONFIG);
        }
        Ok(DONE)
    }
}

async fn check(console: &Console, config: &Config) -> Outcome {
    let file = match &console.file {
        Some(file) => file.display().to_string(),
        None if Path::new(DEFAULT_FILE).exists() => DEFAULT_FILE.to_owned(),
        None => "built-in defaults".to_owned(),
    };
    let mut found = Found::new(console);
    found.ok(&file, "ok");
    let looked = look(&mut found, config).await;
    found.end(looked)
}

async fn look(found: &mut Found<'_>, config: &Config) -> Result<(), Failed> {
    let url = shown_url(&config.database.url);
    if let Some(path) = sqlite_file(&config.database.url)
        && !path.exists()
    {
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty());
        if dir.is_some_and(|dir| !dir.is_dir()) {
            return Err(Failed::new(
                NOT_REACHABLE,
                format!(
                    "{url}: the directory does not exist\nhint: create it, writable for the daemon's user"
                ),
            )
            .numbered(201));
        }
        found.ok(&url, "not there yet, the daemon makes it when it starts");
        return Ok(());
    }
    let store = store::connect(&config.database.url).await?;
    let missing = store.check_billing().await?;
    if !missing.is_empty() {
        return Err(Error::Billing(missing.join("; ")).into());
    }
    found.ok(&url, "ok");
    let resolve = daemon::resolver(config, std::sync::Arc::default());
    for row in store.nases().await? {
        let (id, ip, reason) = match &row {
            Err(BadNas { id, ip, reason }) => (*id, ip.as_str(), Some(reason.clone())),
            Ok(nas) if nas.mode == Mode::Off => (nas.id, nas.ip.as_str(), None),
            Ok(nas) => (nas.id, nas.ip.as_str(), resolve(nas).err()),
        };
        match reason {
            None => found.ok(&format!("NAS {id} {ip}"), "ok"),
            Some(reason) => found.skipped(&format!("NAS {id} {ip}"), &reason),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_again() {
        let mut config = Config::default();
        config.database.url = "postgres://ned:s3cret@db/billing".to_owned();
        config.alarm.webhook = "https://chat.example/services/s3cret".to_owned();
        config.dispatch.poll_interval = std::time::Duration::from_millis(7);
        let text = shown(&config).unwrap();
        assert!(!text.contains("s3cret"), "{text}");
        assert!(text.contains("postgres://ned@db/billing"), "{text}");
        let again: Config = toml::from_str(&text).unwrap();
        assert_eq!(again.dispatch, config.dispatch);
        assert_eq!(again.paths, config.paths);
        assert_eq!(again.history, config.history);
    }
}
