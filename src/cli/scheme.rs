//! `scheme …`: which schemes there are, what is in one, whether it can be used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde_json::{Value, json};

use super::exit::{DONE, Failed, NOT_FOUND, Outcome, UNHEALTHY, remark, say};
use super::table::{Table, one_line};
use super::{Console, scheme_new, scheme_run, scheme_test, scheme_vars};
use crate::config::{Config, Paths};
use crate::daemon;
use crate::event::Cmd;
use crate::nas::{Mode, Nas, NasId};
use crate::scheme::native::{FILE, Finding, NativeScheme, Severity};
use crate::scheme::{resolve, traps};
use crate::store::Store;

/// Verbs of schemes.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Every scheme that a relative oss_path can name.
    List,
    /// What is in one scheme.
    Show {
        /// Its name, or a directory
        name: String,
    },
    /// Check schemes as the daemon does when it loads them.
    Lint {
        /// Directories, their scheme.toml, or names
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// What a scheme would send for an event; sends nothing.
    Run(scheme_run::Run),
    /// Run a scheme's own example events against simulators.
    Test {
        /// Its name, or a directory
        name: String,
    },
    /// A scheme to begin with, in oss/local.
    New(scheme_new::New),
    /// Which variables a scheme uses and where they come from; without a name, all well-known ones.
    Vars {
        /// Its name, or a directory
        name: Option<String>,
    },
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let config = console.config()?;
    match verb {
        Verb::List => {
            list(console, &config.paths);
            Ok(DONE)
        }
        Verb::Show { name } => show(console, &config, &name),
        Verb::Lint { paths } => lint(console, &config, &paths),
        Verb::Run(args) => scheme_run::run(console, &config, args).await,
        Verb::Test { name } => scheme_test::run(console, &config, &name).await,
        Verb::New(args) => scheme_new::run(console, &config, &args),
        Verb::Vars { name } => scheme_vars::run(console, &config, name.as_deref()),
    }
}

/// Where a scheme is: an existing directory as given, else below the search path.
pub fn directory(paths: &Paths, name: &str) -> Result<PathBuf, Failed> {
    let given = Path::new(name);
    if given.file_name().is_some_and(|file| file == FILE) && given.is_file() {
        let dir = given.parent().filter(|p| !p.as_os_str().is_empty());
        return Ok(dir.unwrap_or(Path::new(".")).to_owned());
    }
    let roots = resolve::roots(paths);
    let tried = std::iter::once(given.to_owned()).chain(roots.iter().map(|r| r.join(given)));
    let tried: Vec<PathBuf> = tried.collect();
    tried
        .iter()
        .find(|dir| kind(dir).is_some())
        .or_else(|| tried.iter().find(|dir| dir.is_dir()))
        .cloned()
        .ok_or_else(|| {
            let places: Vec<_> = roots.iter().map(|r| r.display().to_string()).collect();
            Failed::new(
                NOT_FOUND,
                format!(
                    "there is no scheme {name:?}\nhint: looked for in {}; scheme list shows all",
                    places.join(", ")
                ),
            )
            .numbered(503)
        })
}

/// `session` or `native`; none for what is no scheme.
pub fn kind(dir: &Path) -> Option<&'static str> {
    if dir.join("bin/session").is_file() {
        Some("session")
    } else if dir.join(FILE).is_file() {
        Some("native")
    } else {
        None
    }
}

fn list(console: &Console, paths: &Paths) {
    let mut table = Table::new(&["name", "kind", "driver", "place", "description"]);
    let mut seen: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut places = BTreeSet::new();
    for root in resolve::roots(paths) {
        if !places.insert(root.canonicalize().unwrap_or_else(|_| root.clone())) {
            continue;
        }
        let entries = std::fs::read_dir(&root).into_iter().flatten().flatten();
        let mut dirs: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        dirs.sort();
        for dir in dirs {
            let (Some(kind), Some(name)) = (kind(&dir), dir.file_name()) else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            let (driver, mut said) = match (kind, NativeScheme::load(&dir)) {
                ("native", Ok(scheme)) => (scheme.driver(), scheme.description().to_owned()),
                ("native", Err(_)) => ("", "cannot be used: scheme lint says why".to_owned()),
                _ => ("bash", String::new()),
            };
            if let Some(first) = seen.get(&name) {
                said = format!("hidden by {}", first.display());
            }
            let place = json!(dir.display().to_string());
            table.push(vec![
                json!(name),
                json!(kind),
                json!(driver),
                place,
                json!(said),
            ]);
            seen.entry(name).or_insert(dir);
        }
    }
    console.list(&table);
}

fn show(console: &Console, config: &Config, name: &str) -> Outcome {
    let dir = directory(&config.paths, name)?;
    if kind(&dir).is_none() {
        let text = format!("{} holds no scheme", dir.display());
        let hint = "hint: scheme list names all; a scheme has scheme.toml or bin/session";
        return Err(Failed::new(NOT_FOUND, format!("{text}\n{hint}")));
    }
    let mut properties: Vec<(&'static str, Value)> = vec![
        ("place", json!(dir.display().to_string())),
        ("kind", json!(kind(&dir))),
    ];
    if kind(&dir) == Some("native") {
        let scheme = NativeScheme::load(&dir).map_err(|findings| unusable(&findings))?;
        let cmds: Vec<&str> = scheme.cmds().map(Cmd::as_str).collect();
        properties.extend([
            ("description", json!(scheme.description())),
            ("driver", json!(scheme.driver())),
            ("fresh", json!(scheme.fresh())),
            ("warnings", json!(scheme.warnings().len())),
            ("cmds", json!(cmds.join(" "))),
        ]);
    }
    let hash = resolve::hash(&dir).map_err(Failed::config)?;
    properties.push(("files_hash", json!(hash)));
    console.record(&properties);
    Ok(DONE)
}

/// Findings as an error of a verb that needs a usable scheme.
pub fn unusable(findings: &[Finding]) -> Failed {
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    Failed::config(format!("the scheme cannot be used\n{}", lines.join("\n")))
}

fn lint(console: &Console, config: &Config, names: &[String]) -> Outcome {
    let mut table = Table::new(&["file", "line", "severity", "text", "hint"]);
    let mut errors = 0;
    let mut warnings = 0;
    for name in names {
        let dir = directory(&config.paths, name)?;
        let found = match kind(&dir) {
            Some("native") => match NativeScheme::load(&dir) {
                Ok(scheme) => scheme.warnings().to_vec(),
                Err(findings) => findings,
            },
            _ => session_findings(&dir, &config.paths),
        };
        for finding in &found {
            if console.wants_data() {
                table.push(vec![
                    json!(finding.file.display().to_string()),
                    json!(finding.line),
                    json!(finding.severity.as_str()),
                    json!(finding.text),
                    json!(finding.hint),
                ]);
            } else {
                say(one_line(&finding.to_string()));
            }
            match finding.severity {
                Severity::Error => errors += 1,
                Severity::Warning => warnings += 1,
            }
        }
        if found.is_empty() && !console.wants_data() {
            say(format!("{}: ok", dir.display()));
        }
    }
    if console.wants_data() {
        console.list(&table);
    }
    if errors + warnings > 0 {
        remark(format!("{errors} errors, {warnings} warnings"));
    }
    Ok(if errors > 0 { UNHEALTHY } else { DONE })
}

/// A session is judged as the daemon does before it serves a NAS with it.
fn session_findings(dir: &Path, paths: &Paths) -> Vec<Finding> {
    let absolute = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let nas = stand_in(Some(absolute.display().to_string()));
    let never = |_: &Path| Err("no native scheme".to_owned());
    match resolve::resolve(&nas, paths, &never) {
        Ok(_) => {
            let file = dir.join("bin/session");
            let text = std::fs::read(&file).unwrap_or_default();
            let mut found = traps::traps(&file, &String::from_utf8_lossy(&text));
            found.extend(traps::shellcheck(&file));
            found
        }
        Err(text) => vec![Finding {
            file: dir.join("bin/session"),
            line: 0,
            severity: Severity::Error,
            text,
            hint: "bash -n on the file shows the same".to_owned(),
        }],
    }
}

/// A NAS that is in no table, for looks at a scheme by itself.
pub fn stand_in(oss_path: Option<String>) -> Nas {
    Nas {
        mode: Mode::Observe,
        oss_path,
        // TEST-NET-1 (RFC 5737): belongs to nobody.
        ..Nas::new(NasId(0), "none", "192.0.2.1")
    }
}

/// Commands outside the catalogue that the schemes of the NASes define, as a daemon knows them.
pub async fn own_cmds(config: &Config, store: &dyn Store) -> Result<Vec<Cmd>, Failed> {
    let resolve = daemon::resolver(config, Arc::default());
    let nases = store.nases().await?;
    let usable = nases.iter().flatten().filter_map(|nas| resolve(nas).ok());
    let cmds: BTreeSet<Cmd> = usable.flat_map(|execute| execute.own_cmds()).collect();
    Ok(cmds.into_iter().filter(|cmd| !cmd.in_catalogue()).collect())
}
