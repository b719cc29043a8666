//! What every verb of the command line is given: where its settings are, how it prints, which
//! database it works on.

use std::io::{BufRead as _, IsTerminal};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::classic;
use super::ctl::Ctl;
use super::exit::{self, FAILED, Failed, NOT_REACHABLE, USAGE};
use super::listing::Listing;
use super::table::{self, Format};
use crate::config::Config;
use crate::store::{self, Store, shown_url, sqlite_file};

/// Where a verb reads its settings from and how it prints.
#[derive(Debug, Default)]
pub struct Console {
    /// `--config` or `NED_CONFIG`.
    pub file: Option<PathBuf>,
    /// `--output`.
    pub output: Option<Format>,
    /// `--dry-run`.
    pub dry_run: bool,
    /// `--yes`.
    pub yes: bool,
    /// Which part of a list is printed, and how.
    pub listing: Listing,
    /// A verb that looks only: where no daemon runs, that is said.
    pub looks: bool,
    pub(super) said: AtomicBool,
    /// Why a list was not printed.
    pub(super) wrong: Mutex<Option<String>>,
}

/// What a look is, where no daemon runs.
pub const ALONE: &str =
    "no daemon is running: read from the database, without what only a daemon knows";

impl Console {
    /// The effective configuration.
    pub fn config(&self) -> Result<Config, Failed> {
        let file = self.file.clone().or_else(classic::configuration);
        Config::load(file.as_deref(), std::env::vars())
            .map_err(|e| Failed::config(e.to_string()).numbered(e.number()))
    }

    /// How to print: as asked, else by what stdout is.
    pub fn format(&self) -> Format {
        self.output.unwrap_or_else(|| {
            if std::io::stdout().is_terminal() {
                Format::Table
            } else {
                Format::Plain
            }
        })
    }

    /// Whether a program reads it: what is a sentence for people is a record then.
    pub fn wants_data(&self) -> bool {
        matches!(
            self.output,
            Some(Format::Json | Format::Jsonl | Format::Csv)
        )
    }

    /// Whether somebody wants it: `danger` is why it is asked, and the text where nobody can be.
    pub fn agreed(&self, danger: &str, question: &str) -> Result<bool, Failed> {
        if !self.yes && !std::io::stdin().is_terminal() {
            let text = format!("{danger}, and nobody can be asked here\nhint: say -y");
            return Err(Failed::new(USAGE, text).numbered(3));
        }
        if !self.yes {
            exit::remark(danger);
        }
        self.not_refused(question)
    }

    /// The same for what programs do, too: only who sits at a terminal is asked.
    pub fn not_refused(&self, question: &str) -> Result<bool, Failed> {
        let stdin = std::io::stdin();
        if self.yes || !stdin.is_terminal() {
            return Ok(true);
        }
        exit::remark(format!("{question} [y/N]"));
        let mut line = String::new();
        let read = stdin.lock().read_line(&mut line);
        read.map_err(|e| Failed::new(FAILED, format!("cannot read the answer: {e}")))?;
        Ok(matches!(line.trim(), "y" | "Y" | "yes"))
    }

    /// Prints one thing and lists that belong to it: for a program one document.
    pub fn record_with(
        &self,
        properties: &[(&'static str, Value)],
        lists: &[(&str, &table::Table)],
    ) {
        let format = self.format();
        if matches!(format, Format::Json | Format::Jsonl) {
            let mut all: serde_json::Map<String, Value> = properties
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            for (name, list) in lists {
                let rows = serde_json::from_str(&list.text(Format::Json)).unwrap_or_default();
                all.insert((*name).to_owned(), rows);
            }
            let all = Value::Object(all);
            exit::say(match format {
                Format::Json => serde_json::to_string_pretty(&all).unwrap_or_default(),
                _ => all.to_string(),
            });
            return;
        }
        self.record(properties);
        for (_, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
            exit::say("");
            self.list(list);
        }
    }

    /// How many rows of a list are read: what was asked for, within what one look may be.
    pub fn limit(&self, usual: usize, most: usize) -> Result<usize, Failed> {
        let limit = self.listing.limit.unwrap_or(usual);
        if (1..=most).contains(&limit) {
            return Ok(limit);
        }
        let text = format!("--limit {limit} is not 1..{most}\nhint: --before ID goes on");
        Err(Failed::new(USAGE, text))
    }

    /// Prints one thing, a line per property (or one object).
    pub fn record(&self, properties: &[(&'static str, Value)]) {
        exit::say_all(&table::record(self.format(), properties));
    }

    /// Prints a list.
    pub fn list(&self, table: &table::Table) {
        match self.listing.text(table, self.format()) {
            Ok(text) => exit::say_all(&text),
            Err(wrong) => *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(wrong),
        }
    }

    /// Opens the database. An SQLite file that is not there is never made by a tool: a
    /// mistyped path would look like an empty stack.
    pub async fn store(&self, config: &Config) -> Result<Arc<dyn Store>, Failed> {
        let url = &config.database.url;
        if let Some(path) = sqlite_file(url)
            && !path.exists()
        {
            return Err(Failed::new(
                NOT_REACHABLE,
                format!(
                    "cannot open the database {}: there is no such file\n\
                     hint: check database.url (config show); the daemon makes the file when it starts",
                    shown_url(url)
                ),
            )
            .numbered(201));
        }
        let store = store::connect(url).await?;
        if self.looks
            && !self.said.swap(true, Ordering::Relaxed)
            && !Ctl::new(config)?.is_there().await
        {
            exit::remark(ALONE);
        }
        Ok(store)
    }
}
