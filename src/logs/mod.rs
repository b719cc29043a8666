//! The three families of logs: the daemon's, one per NAS, one per account. They are evidence:
//! written with one write(2) each, never buffered in the process, so that what has been
//! returned from survives kill −9; and never in the way: a full disk costs records, which are
//! counted and reported, but never an event.
//!
//! ```text
//! <log>/nas_event_daemon.log
//! <log>/nas_event_daemon/<name>_<ip>.log
//! <log>/abonents/<abonent_id>/event_<user_id>.log
//! ```
//!
//! Here: what `tracing` says becomes records of the daemon log.

pub mod files;
pub mod line;
pub mod prune;
pub mod read;

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Registry};

pub use files::{Logs, NasLog};
pub use prune::{Pruned, prune};

/// Other crates' events are only shown from this level on, unless `NED_LOG` names them: at
/// `debug` they would say more than ours, and what they say has not been read for secrets.
const OTHERS_LEVEL: &str = "warn";

/// `NED_LOG` cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "NED_LOG={value:?} is no level of the daemon log ({reason}); write off, error, warn, info, \
     debug or trace, or directives such as info,nas_event_daemon::dispatch=debug"
)]
pub struct BadLevel {
    value: String,
    reason: String,
}

/// Makes `tracing` write to the daemon log; give the result to
/// `tracing::subscriber::set_global_default`. `level`: the value of `NED_LOG`, `info` if unset.
pub fn subscriber(
    logs: &Logs,
    level: Option<&str>,
) -> Result<impl Subscriber + Send + Sync + use<>, BadLevel> {
    Ok(Registry::default()
        .with(filter(level)?)
        .with(DaemonLog(logs.clone())))
}

fn filter(level: Option<&str>) -> Result<EnvFilter, BadLevel> {
    let value = level.unwrap_or_default().trim();
    let word = value.to_ascii_lowercase();
    let directives = match word.as_str() {
        "" => format!("{OTHERS_LEVEL},nas_event_daemon=info"),
        "info" | "debug" | "trace" => format!("{OTHERS_LEVEL},nas_event_daemon={word}"),
        "off" | "error" | "warn" => word,
        _ => value.to_owned(),
    };
    EnvFilter::try_new(directives).map_err(|e| BadLevel {
        value: value.to_owned(),
        reason: e.to_string(),
    })
}

/// The layer behind [`subscriber`]. An `info` event is written as it is; others start with
/// their level (`warning: …`), so that they can be searched for. Fields follow as `key=value`.
struct DaemonLog(Logs);

impl<S: Subscriber> Layer<S> for DaemonLog {
    fn on_event(&self, event: &Event<'_>, _ctx: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let level = *event.metadata().level();
        let mark = match level {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            Level::DEBUG => "debug: ",
            Level::TRACE => "trace: ",
            _ => "",
        };
        let mut text = said.message;
        text.push_str(&said.fields);
        self.0.daemon(&format!("{mark}{}", text.trim()));
    }
}

#[derive(Default)]
struct Said {
    message: String,
    fields: String,
}

impl Said {
    fn field(&mut self, name: &str, value: &str) {
        if name == "message" {
            self.message.push_str(value);
        } else if value.is_empty() || value.contains(char::is_whitespace) && !value.starts_with('"')
        {
            self.fields.push_str(&format!(" {name}={value:?}"));
        } else {
            self.fields.push_str(&format!(" {name}={value}"));
        }
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field.name(), value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        self.field(field.name(), &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        if write!(text, "{value:?}").is_ok() {
            self.field(field.name(), &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(level: Option<&str>, speak: impl FnOnce()) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path(), "bras", 812).unwrap();
        logs.echo(false);
        tracing::subscriber::with_default(subscriber(&logs, level).unwrap(), speak);
        std::fs::read_to_string(dir.path().join("nas_event_daemon.log"))
            .unwrap()
            .lines()
            .map(|l| l.split_once("]: ").unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn events_become_records() {
        let lines = said(None, || {
            tracing::info!("Start work with nas nasid={} script_name=<null>", 1116);
            tracing::warn!(nas = 7, reason = "no route\nto host", "skipped");
            tracing::error!(error = %"disk full", path = "");
            tracing::debug!("not at info");
        });
        assert_eq!(
            lines,
            [
                "Start work with nas nasid=1116 script_name=<null>",
                "warning: skipped nas=7 reason=\"no route\\nto host\"",
                "error: error=\"disk full\" path=\"\"",
            ]
        );
    }

    #[test]
    fn the_level_is_for_our_own_events() {
        let lines = said(Some("DEBUG"), || {
            tracing::debug!("ours");
            tracing::debug!(target: "sqlx::query", "theirs");
            tracing::warn!(target: "sqlx::query", "theirs");
        });
        assert_eq!(lines, ["debug: ours", "warning: theirs"]);
        assert_eq!(said(Some("sqlx=debug"), || tracing::info!("ours")).len(), 0);
        let error = filter(Some("nas=loud=7")).unwrap_err().to_string();
        assert!(error.contains("nas=loud=7"), "{error}");
    }
}
