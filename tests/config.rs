//! `docs/configuration.md` is the reference of every key: its names, defaults, ranges and
//! environment variables are those of `src/config.rs`, and none is missing on either side.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use nas_event_daemon::config::{Config, parse_duration};

/// One row of a table of keys.
struct Row {
    /// `dispatch.poll_interval`.
    key: String,
    /// As it stands in a file.
    default: String,
    /// `5ms..60s`, or nothing.
    range: String,
    /// `NED_DISPATCH__POLL_INTERVAL`.
    env: String,
}

/// Rows are recognised by a key with a dot in the first cell.
fn rows(page: &str) -> Vec<Row> {
    let cell = |text: &str| text.trim().trim_matches('`').to_owned();
    let mut rows = Vec::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        if let [key, _, default, range, env] = cells.as_slice()
            && key.contains('.')
        {
            rows.push(Row {
                key: cell(key),
                default: cell(default),
                range: cell(range),
                env: cell(env),
            });
        }
    }
    rows
}

fn documented() -> std::io::Result<Vec<Row>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    Ok(rows(&std::fs::read_to_string(page)?))
}

/// `section.key` of every field, from the only complete list there is: the Debug form.
fn fields(config: &Config) -> BTreeSet<String> {
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in format!("{config:#?}").lines() {
        let indent = line.len() - line.trim_start().len();
        let name = line.trim().split(':').next().unwrap_or_default();
        let is_field = line.contains(": ");
        match indent {
            4 if is_field => section = name.to_owned(),
            8 if is_field => {
                found.insert(format!("{section}.{name}"));
            }
            _ => {}
        }
    }
    found
}

/// Loads an empty file with one variable set.
fn with(env: &str, value: &str) -> Result<Config, String> {
    let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    let variable = std::iter::once((env.to_owned(), value.to_owned()));
    Config::load(Some(file.path()), variable).map_err(|e| e.to_string())
}

#[test]
fn every_key_is_documented_and_no_other() -> std::io::Result<()> {
    let rows = documented()?;
    let named: BTreeSet<String> = rows.iter().map(|row| row.key.clone()).collect();
    assert_eq!(named.len(), rows.len(), "a key is documented twice");
    assert_eq!(named, fields(&Config::default()));
    Ok(())
}

#[test]
fn documented_defaults_and_variables_are_the_real_ones() -> std::io::Result<()> {
    for row in documented()? {
        let variable = format!("NED_{}", row.key.replace('.', "__").to_ascii_uppercase());
        assert_eq!(row.env, variable, "{}", row.key);
        // But for the file itself.
        let config = with(&row.env, &row.default).map(|config| Config {
            file: None,
            ..config
        });
        assert_eq!(
            config,
            Ok(Config::default()),
            "{} = {}",
            row.key,
            row.default
        );
    }
    Ok(())
}

/// The value one step outside, as text; none if there is nothing outside (below 0).
fn outside(bound: &str, down: bool) -> Option<String> {
    if let Ok(number) = bound.parse::<u64>() {
        let next = if down {
            number.checked_sub(1)
        } else {
            number.checked_add(1)
        };
        return next.map(|n| n.to_string());
    }
    let step = Duration::from_millis(1);
    let at = parse_duration(bound).ok()?;
    let next = if down {
        at.checked_sub(step)
    } else {
        at.checked_add(step)
    };
    next.map(|d| format!("{}ms", d.as_millis()))
}

#[test]
fn documented_ranges_are_the_real_ones() -> std::io::Result<()> {
    let mut checked = 0;
    for row in documented()? {
        let Some((least, most)) = row.range.split_once("..") else {
            continue;
        };
        for (bound, down) in [(least, true), (most, false)] {
            assert!(
                with(&row.env, bound).is_ok(),
                "{} = {bound} is refused",
                row.key
            );
            if let Some(value) = outside(bound, down) {
                let refused = with(&row.env, &value);
                assert!(refused.is_err(), "{} = {value} is accepted", row.key);
            }
            checked += 1;
        }
    }
    assert!(checked >= 16, "only {checked} bounds found on the page");
    Ok(())
}

#[test]
fn the_page_is_the_generated_one() -> std::io::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(path)?;
    let generated = nas_event_daemon::cli::reference::page();
    assert!(
        page == generated,
        "run: nas_event_daemon config reference > docs/configuration.md, and build again\n{generated}"
    );
    Ok(())
}

#[test]
fn planted_errors_are_found() {
    let page = "| `dispatch.drain` | duration | `\"30s\"` | 0s..1h | `NED_DISPATCH__DRAIN` |\n\
                | key | type | default | range | environment |\n|---|---|---|---|---|\n";
    let found = rows(page);
    assert_eq!(found.len(), 1);
    assert!(
        found
            .iter()
            .all(|row| row.default == "\"30s\"" && row.range == "0s..1h")
    );
    assert!(fields(&Config::default()).contains("paths.share"));
    assert_eq!(outside("0s", true), None);
    assert_eq!(outside("60s", false).as_deref(), Some("60001ms"));
    assert_eq!(outside("1", true).as_deref(), Some("0"));
}
