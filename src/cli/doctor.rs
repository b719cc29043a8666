//! `doctor`: everything that keeps a daemon from working well and that can be seen from here, each
//! with what to type. Looks only; `--bundle` also writes what somebody who helps needs to know.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::ctl::Ctl;
use super::exit::{DONE, Failed, Outcome, UNHEALTHY};
use super::table::{Format, Table, one_line};
use super::{Console, bundle, nas_test, who};
use crate::config::{Config, DEFAULT_FILE};
use crate::daemon::{self, process};
use crate::nas::{Mode, NasId};
use crate::store::{Counts, Store, shown_url};

/// Waiting events up to which all is usual: the norm of the original's documentation.
const WAITING_NORM: i64 = 200;
/// Free bytes below which the disk is a worry.
const ROOM_WARN: u64 = 512 * 1024 * 1024;
/// Open files of a daemon without a running event, and of one script: pipes and sockets.
const FILES_IDLE: u64 = 600;
const FILES_PER_FORK: u64 = 8;

/// What to look at.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Also log in to this NAS and time a harmless command, as nas test does
    #[arg(long, value_name = "ID")]
    nas: Option<i64>,
    /// Write a file for those who help: settings, numbers, errors, without secrets; subscribers,
    /// NASes and addresses are replaced by numbers
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
}

/// How serious it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grade {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug)]
pub struct Finding {
    what: &'static str,
    grade: Grade,
    text: String,
    fix: String,
}

/// All of them, in order.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: &'static str, grade: Grade, text: impl Into<String>, fix: &str) {
        self.0.push(Finding {
            what,
            grade,
            text: one_line(&text.into()),
            fix: fix.to_owned(),
        });
    }

    fn ok(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(what, Grade::Ok, text, "");
    }

    fn warn(&mut self, what: &'static str, text: impl Into<String>, fix: &str) {
        self.add(what, Grade::Warn, text, fix);
    }

    fn fail(&mut self, what: &'static str, text: impl Into<String>, fix: &str) {
        self.add(what, Grade::Fail, text, fix);
    }

    /// For eyes.
    pub fn text(&self) -> String {
        let line = |f: &Finding| {
            let fix = if f.fix.is_empty() {
                String::new()
            } else {
                format!("       fix: {}\n", f.fix)
            };
            let mark = format!("[{}]", f.grade.word());
            format!("{mark:<6} {}: {}\n{fix}", f.what, f.text)
        };
        self.0.iter().map(line).collect()
    }
}

impl Grade {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// Looks at everything, prints it, and says by the exit code whether anything fails.
pub async fn doctor(console: &Console, args: Doctor) -> Outcome {
    let config = console.config()?;
    let mut found = Findings::default();
    files(&mut found, console.file.as_deref(), &config);
    room(&mut found, &config);
    let live = live(&mut found, &config).await?;
    let store = match console.store(&config).await {
        Ok(store) => Some(store),
        Err(failed) => {
            let (text, fix) = failed
                .text
                .split_once("\nhint: ")
                .unwrap_or((&failed.text, ""));
            found.fail("database", text, fix);
            None
        }
    };
    if let Some(store) = &store {
        database(&mut found, &config, store.as_ref(), live.is_some()).await?;
        nases(&mut found, &config, store.as_ref(), live.as_ref()).await?;
        stacks(&mut found, &store.counts().await?);
    }
    match console.format() {
        Format::Table | Format::Plain => super::exit::say_all(&found.text()),
        Format::Json | Format::Jsonl | Format::Csv => {
            let mut table = Table::new(&["check", "result", "text", "fix"]);
            for f in &found.0 {
                table.push(vec![
                    json!(f.what),
                    json!(f.grade.word()),
                    json!(f.text),
                    json!(f.fix),
                ]);
            }
            console.list(&table);
        }
    }
    if let Some(file) = &args.bundle {
        let text = bundle::text(&config, store.as_deref(), live.as_ref(), &found.text()).await?;
        bundle::write(file, &text)?;
        super::exit::remark(format!(
            "{}: read it before you send it; it holds no password, and numbers in place of addresses and names",
            file.display()
        ));
        if let Some(store) = &store {
            store.audit(&who(), "doctor_bundle", "").await?;
        }
    }
    let mut code = DONE;
    if found.0.iter().any(|f| f.grade == Grade::Fail) {
        code = UNHEALTHY;
    }
    if let (Some(id), Some(store)) = (args.nas, &store) {
        code = code.max(nas_test::test(console, &config, store.as_ref(), NasId(id)).await?);
    }
    Ok(code)
}

fn files(found: &mut Findings, given: Option<&Path>, config: &Config) {
    use std::os::unix::fs::PermissionsExt as _;
    let file = given.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::metadata(file) {
        Ok(meta) => {
            let password = config.database.url != shown_url(&config.database.url);
            if password && meta.permissions().mode() & 0o004 != 0 {
                found.warn(
                    "configuration",
                    format!(
                        "everybody may read {}, and it holds a password",
                        file.display()
                    ),
                    &format!("chmod 640 {0}; chgrp nas_event_daemon {0}", file.display()),
                );
            } else {
                found.ok("configuration", file.display().to_string());
            }
        }
        Err(_) => found.ok("configuration", "built-in defaults, there is no file"),
    }
    let dirs = [
        ("logs", &config.paths.log),
        ("run directory", &config.paths.run),
        ("schemes", &config.paths.oss),
    ];
    for (what, dir) in dirs {
        use nix::unistd::{AccessFlags, access};
        let shown = dir.display().to_string();
        if !dir.is_dir() {
            let fix = format!("nas_event_daemon init, or mkdir -p {shown}");
            match what {
                "logs" => found.fail(what, format!("{shown} is not there"), &fix),
                _ => found.warn(what, format!("{shown} is not there"), &fix),
            }
        } else if what == "logs" && access(dir, AccessFlags::W_OK).is_err() {
            let fix = "run doctor as the daemon's user or as root, or correct the owner";
            found.warn(what, format!("{shown} cannot be written by this user"), fix);
        } else {
            found.ok(what, shown);
        }
    }
    for listen in &config.http.listen {
        let loopback = listen
            .parse::<std::net::SocketAddr>()
            .is_ok_and(|a| a.ip().is_loopback());
        if !loopback {
            found.warn(
                "http",
                format!(
                    "{listen} is not on this machine only: tokens cross the network in plain text"
                ),
                "put a TLS proxy before it, or listen on 127.0.0.1",
            );
        }
    }
}

fn room(found: &mut Findings, config: &Config) {
    let places = [
        Some(config.paths.log.as_path()),
        process::database_dir(config),
    ];
    for place in places.into_iter().flatten() {
        let Some(free) = process::free(place) else {
            continue;
        };
        let text = format!("{} MB are free on {}", free / 1_000_000, place.display());
        let fix = "nas_event_daemon logs prune --older-than 90d, and look at what else lies there";
        match free {
            0..process::ROOM_MIN => found.fail("disk", text, fix),
            process::ROOM_MIN..ROOM_WARN => found.warn("disk", text, fix),
            _ => found.ok("disk", text),
        }
    }
}

async fn live(found: &mut Findings, config: &Config) -> Result<Option<Value>, Failed> {
    let ctl = Ctl::new(config)?;
    let live = match ctl.get("/api/v1/status").await {
        Ok(live) => live,
        Err(failed) => {
            found.fail(
                "daemon",
                failed.text.lines().next().unwrap_or_default(),
                "look at the end of nas_event_daemon.log",
            );
            return Ok(None);
        }
    };
    let Some(status) = &live else {
        found.warn(
            "daemon",
            format!("nobody listens on {}", ctl.socket()),
            "systemctl start nas_event_daemon",
        );
        return Ok(None);
    };
    let version = status.get("version").and_then(Value::as_str).unwrap_or("");
    if version == env!("CARGO_PKG_VERSION") {
        found.ok("daemon", format!("version {version} runs"));
    } else {
        found.warn(
            "daemon",
            format!("{version} runs, {} is installed", env!("CARGO_PKG_VERSION")),
            "systemctl restart nas_event_daemon",
        );
    }
    open_files(found, config, status);
    Ok(live)
}

/// Whether the running daemon may open what all of its forks need at once.
fn open_files(found: &mut Findings, config: &Config, status: &Value) {
    let pid = std::fs::read_to_string(config.paths.run.join("nas_event_daemon.pid"));
    let limits = pid
        .ok()
        .and_then(|pid| std::fs::read_to_string(format!("/proc/{}/limits", pid.trim())).ok());
    let limit = limits.as_deref().and_then(|text| {
        let line = text
            .lines()
            .find(|line| line.starts_with("Max open files"))?;
        line.split_whitespace().nth(3)?.parse::<u64>().ok()
    });
    let nases = status.pointer("/dispatch/nases").and_then(Value::as_array);
    let forks = nases.into_iter().flatten();
    let forks: u64 = forks
        .filter_map(|nas| nas.get("forks").and_then(Value::as_u64))
        .sum();
    let needed = FILES_IDLE.saturating_add(forks.saturating_mul(FILES_PER_FORK));
    match limit {
        Some(limit) if limit < needed => found.warn(
            "open files",
            format!("the daemon may open {limit} files, {forks} forks may need {needed}"),
            "LimitNOFILE=65536 in the unit, or ulimit -n",
        ),
        Some(limit) => found.ok("open files", format!("{limit} allowed, {needed} needed")),
        None => {}
    }
}

async fn database(
    found: &mut Findings,
    config: &Config,
    store: &dyn Store,
    ours_runs: bool,
) -> Result<(), Failed> {
    let url = shown_url(&config.database.url);
    let missing = store.check_billing().await?;
    if missing.is_empty() {
        found.ok("database", url);
    } else {
        let fix = "docs/operate.md, \"The billing's tables\", lists what must be there";
        found.fail("database", format!("{url}: {}", missing.join("; ")), fix);
    }
    match store.owner().await? {
        Some(owner) if !ours_runs && process::works(&owner) => {
            let holder = process::shown(&owner.holder);
            found.fail(
                "owner",
                format!("another daemon works on this database: {holder}"),
                "stop it, or ask it with its own configuration",
            );
        }
        Some(_) | None => {}
    }
    Ok(())
}

async fn nases(
    found: &mut Findings,
    config: &Config,
    store: &dyn Store,
    live: Option<&Value>,
) -> Result<(), Failed> {
    let resolve = daemon::resolver(config, std::sync::Arc::default());
    let running = live
        .and_then(|live| live.pointer("/dispatch/nases"))
        .and_then(Value::as_array);
    let of = |id: NasId, name: &str| {
        let all = running.into_iter().flatten();
        let mut mine = all.filter(|nas| nas.get("id").and_then(Value::as_i64) == Some(id.0));
        let text = mine
            .next()
            .and_then(|nas| nas.get(name))
            .and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let rows = store.nases().await?;
    if rows.is_empty() {
        found.warn(
            "NAS",
            "there is none",
            "add one to the table nas, in mode observe at first",
        );
    }
    for row in rows {
        match row {
            Err(bad) => found.fail(
                "NAS",
                format!("{} {}: {}", bad.id, bad.ip, bad.reason),
                "correct its row in the billing",
            ),
            Ok(nas) if nas.mode == Mode::Off => {
                found.ok("NAS", format!("{} {}: mode = off", nas.id, nas.name));
            }
            Ok(nas) => match resolve(&nas) {
                Err(reason) => found.fail(
                    "NAS",
                    format!("{} {}: {reason}", nas.id, nas.name),
                    "correct nas.oss_path or the scheme: scheme lint",
                ),
                Ok(_) => match of(nas.id, "breaker").as_str() {
                    // Empty: no daemon runs, and nobody knows.
                    "" | "closed" => found.ok("NAS", format!("{} {}", nas.id, nas.name)),
                    state => {
                        let reason = of(nas.id, "reason");
                        found.fail(
                            "NAS",
                            format!("{} {} does not obey ({state}): {reason}", nas.id, nas.name),
                            &format!("nas_event_daemon nas test {}", nas.id),
                        );
                    }
                },
            },
        }
    }
    Ok(())
}

fn stacks(found: &mut Findings, counts: &Counts) {
    let waiting: i64 = counts.compact + counts.main.iter().map(|(_, n)| n).sum::<i64>();
    let text = format!("{waiting} events wait");
    if waiting > WAITING_NORM {
        let fix = "docs/operate.md, \"A stack grows. What now?\"";
        found.warn("stacks", text, fix);
    } else {
        found.ok("stacks", text);
    }
    if counts.unexpandable > 0 {
        found.warn(
            "stacks",
            format!("{} events cannot be expanded", counts.unexpandable),
            "nas_event_daemon event list --state compact says why",
        );
    }
    if counts.dead > 0 {
        found.warn(
            "stacks",
            format!("{} events are dead", counts.dead),
            "nas_event_daemon event list --state dead, then event retry or event drop",
        );
    }
}
