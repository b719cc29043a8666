//! `config reference`: the page docs/configuration.md. Its sentences stand in the page; its tables
//! are made here, from the configuration itself, each time. `tests/config.rs` holds that the page
//! in the tree is what this prints, and that defaults and ranges are the real ones.

use crate::config::Config;

/// The page, for its sentences.
const PAGE: &str = include_str!("../../docs/configuration.md");
/// First line of a table of keys.
const HEAD: &str = "| key | type | default | range | environment |";

/// One key: name, kind, range as it stands in the page. Order and sections are the file's.
const KEYS: &[(&str, &str, &str)] = &[
    ("database.url", "URL", ""),
    ("paths.oss", "directory", ""),
    ("paths.log", "directory", ""),
    ("paths.run", "directory", ""),
    ("paths.share", "directory", ""),
    ("http.listen", "list of `address:port`", ""),
    ("http.open_from", "list of networks", ""),
    ("http.high_water", "number of events", "0..100000000"),
    ("metrics.max_nas", "number of NASes", "0..100000"),
    ("dispatch.settings_interval", "duration", "100ms..1h"),
    ("dispatch.poll_interval", "duration", "5ms..60s"),
    ("dispatch.retry_base", "duration", "10ms..24h"),
    ("dispatch.max_tries", "number", "1..1000"),
    ("dispatch.on_error", "word", ""),
    ("dispatch.script_timeout", "duration", "10ms..24h"),
    ("dispatch.cross_nas_wait", "duration", "0s..1h"),
    ("dispatch.window", "number of events", "1000..10000000"),
    ("dispatch.drain", "duration", "0s..1h"),
    ("dispatch.guard", "word", ""),
    ("history.keep", "duration", ""),
    ("audit.keep", "duration", ""),
    ("alarm.webhook", "URL", ""),
    ("alarm.after", "duration", "100ms..1h"),
    ("compat.result_dir", "directory", ""),
];

/// The whole page.
pub fn page() -> String {
    let mut out = String::new();
    let mut section = "";
    let mut lines = PAGE.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = line
            .strip_prefix("## `[")
            .and_then(|l| l.strip_suffix("]`"))
        {
            section = name;
        }
        if line == HEAD {
            while lines.peek().is_some_and(|next| next.starts_with('|')) {
                lines.next();
            }
            out.push_str(&table(section));
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

fn table(section: &str) -> String {
    let defaults = defaults();
    let mut out = format!("{HEAD}\n|---|---|---|---|---|\n");
    for (key, kind, range) in KEYS {
        let Some((of, name)) = key.split_once('.') else {
            continue;
        };
        if of != section {
            continue;
        }
        let default = defaults.get(of).and_then(|section| section.get(name));
        let default = default.map(written).unwrap_or_default();
        let env = format!("NED_{of}__{name}").to_ascii_uppercase();
        let range = if range.is_empty() {
            String::new()
        } else {
            format!("{range} ")
        };
        out.push_str(&format!(
            "| `{key}` | {kind} | `{default}` | {range}| `{env}` |\n"
        ));
    }
    out
}

fn defaults() -> toml::Table {
    toml::Table::try_from(Config::default()).unwrap_or_default()
}

/// A value as a person writes it: a minute and more of whole units, not of milliseconds.
fn written(value: &toml::Value) -> String {
    let text = value.to_string();
    let inner = text.trim_matches('"');
    let seconds = inner
        .strip_suffix('s')
        .and_then(|number| number.parse::<u64>().ok());
    if let Some(seconds) = seconds.filter(|s| *s > 0 && s % 86_400 == 0) {
        return format!("\"{}d\"", seconds / 86_400);
    }
    let ms = inner
        .strip_suffix("ms")
        .and_then(|number| number.parse::<f64>().ok());
    if let Some(ms) = ms.filter(|ms| *ms >= 1000.0) {
        return format!("\"{}s\"", ms / 1000.0);
    }
    text
}

/// A file with every key at its default, each behind a `#`.
pub fn default_file() -> String {
    let mut out =
        "# Every key at its default; nas_event_daemon config reference explains them.\n".to_owned();
    for (section, keys) in &defaults() {
        out.push_str(&format!("\n[{section}]\n"));
        for (key, value) in keys.as_table().into_iter().flatten() {
            out.push_str(&format!("# {key} = {}\n", written(value)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_line() {
        let mut known: Vec<&str> = KEYS.iter().map(|(key, ..)| *key).collect();
        let mut real: Vec<String> = Vec::new();
        for (section, keys) in &defaults() {
            let keys = keys.as_table().unwrap();
            real.extend(keys.keys().map(|key| format!("{section}.{key}")));
        }
        known.sort_unstable();
        real.sort();
        assert_eq!(
            known, real,
            "add the key to KEYS, then say what it does in docs/configuration.md"
        );
    }

    #[test]
    fn the_default_file_changes_nothing() {
        let text = default_file();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        let all = text.replace("\n# ", "\n");
        assert_eq!(toml::from_str::<Config>(&all).unwrap(), Config::default());
    }
}
