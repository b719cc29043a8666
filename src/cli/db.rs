//! `db …`: SQL, a copy of the database while the daemon works, and back from one.
//!
//! A copy holds what was done by then; nothing of that is done twice after a restore. What waited
//! then may have been done since: it is run again, marked `possible_duplicate`, as after a crash.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::ctl::Ctl;
use super::exit::{DONE, FAILED, Failed, NOT_FOUND, Outcome, REFUSED, remark};
use super::progress::Progress;
use super::{Console, sqlexec, who};
use crate::clock;
use crate::config::Config;
use crate::daemon::process;
use crate::store::sqlite::backup;
use crate::store::{self, Store, shown_url, sqlite_file};

/// Verbs of the database.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Its size, version, rows, owner, and when it was last copied.
    Status,
    /// Run SQL statements; reads only, unless --write.
    Sql(sqlexec::Sql),
    /// Copy the database into a new file while the daemon works (SQLite).
    Backup {
        /// Must not exist yet
        file: PathBuf,
    },
    /// Put a copy in place of the database (SQLite); no daemon may run.
    Restore(Restore),
    /// Tell a database that was restored by other means (pg_restore) that it was.
    Restored,
}

/// Which copy.
#[derive(Debug, Args)]
pub struct Restore {
    /// Made by db backup
    file: PathBuf,
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    match verb {
        Verb::Status => status(console).await,
        Verb::Sql(args) => sqlexec::run(console, args).await,
        Verb::Backup { file } => copy(console, &file).await,
        Verb::Restore(args) => restore(console, &args).await,
        Verb::Restored => {
            let config = console.config()?;
            let store = console.store(&config).await?;
            idle(&config, Some(store.as_ref())).await?;
            if console.dry_run {
                remark("dry run: what waits would be marked as possibly done already");
                return Ok(DONE);
            }
            agreed(
                console,
                "mark everything that waits as possibly done already?",
            )?;
            let waiting = store.restored().await?;
            store.audit(&who(), "db_restored", "").await?;
            console.record(&[("waiting", json!(waiting))]);
            Ok(DONE)
        }
    }
}

async fn status(console: &Console) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let url = &config.database.url;
    let about = store::about::about(store.as_ref(), sqlite_file(url).is_some()).await?;
    let owner = store.owner().await?;
    let works = owner.as_ref().is_some_and(process::works);
    let mut all = vec![
        ("database", json!(shown_url(url))),
        ("kind", json!(about.kind)),
        ("version", json!(about.version)),
        ("mode", json!(about.mode)),
        ("bytes", json!(about.bytes)),
        ("free_bytes", json!(about.free_bytes)),
        ("schema", json!(about.schema)),
    ];
    all.extend(about.rows.iter().map(|(name, rows)| (*name, json!(rows))));
    let holder = owner.as_ref().map(|owner| process::shown(&owner.holder));
    let copy = |(at, file): &(String, String)| (json!(at), json!(file));
    let (at, file) = about.last_backup.as_ref().map(copy).unwrap_or_default();
    all.extend([
        ("owner", json!(holder)),
        ("owner_works", json!(works)),
        ("last_backup", at),
        ("last_backup_file", file),
    ]);
    console.record(&all);
    Ok(DONE)
}

async fn copy(console: &Console, file: &Path) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    if file.exists() {
        let text = format!("{} exists already\nhint: name a new file", file.display());
        return Err(Failed::new(REFUSED, text));
    }
    let from = sqlite_file(&config.database.url);
    if console.dry_run {
        let Some(from) = from else {
            return Err(store::Error::Refused(store::about::OWN_COPIES.to_owned()).into());
        };
        let place = file.parent().filter(|dir| !dir.as_os_str().is_empty());
        if let Some(dir) = place.filter(|dir| !dir.is_dir()) {
            let text = format!("there is no directory {}", dir.display());
            return Err(Failed::new(NOT_FOUND, text).numbered(504));
        }
        console.record(&[
            ("file", json!(file.display().to_string())),
            ("bytes", json!(bytes(from))),
        ]);
        remark("dry run: nothing was copied");
        return Ok(DONE);
    }
    let whole = from.map_or(0, bytes);
    let progress = Progress::watch("copying", whole, {
        let file = file.to_path_buf();
        move || bytes(&file)
    });
    let copied = store.backup(file).await;
    progress.end();
    copied?;
    let detail = format!("file={}", file.display());
    store.audit(&who(), "db_backup", &detail).await?;
    console.record(&[
        ("file", json!(file.display().to_string())),
        ("bytes", json!(bytes(file))),
    ]);
    remark("it holds the credentials of your NASes: keep it as safe as the database");
    Ok(DONE)
}

async fn restore(console: &Console, args: &Restore) -> Outcome {
    let config = console.config()?;
    let Some(place) = sqlite_file(&config.database.url) else {
        return Err(Failed::new(
            REFUSED,
            "the configured database is not a file\nhint: pg_restore, then db restored",
        ));
    };
    if !args.file.exists() {
        let text = format!("there is no file {}", args.file.display());
        return Err(
            Failed::new(NOT_FOUND, format!("{text}\nhint: db backup makes one")).numbered(504),
        );
    }
    backup::check(&args.file).await?;
    if place.exists() {
        let store = store::connect(&config.database.url).await?;
        idle(&config, Some(store.as_ref())).await?;
    } else {
        idle(&config, None).await?;
    }
    if console.dry_run {
        console.record(&[
            ("file", json!(args.file.display().to_string())),
            ("database", json!(place.display().to_string())),
        ]);
        remark("dry run: the copy is whole and no daemon runs; nothing was changed");
        return Ok(DONE);
    }
    agreed(
        console,
        &format!(
            "put {} in place of {}?",
            args.file.display(),
            place.display()
        ),
    )?;
    let failed = |doing: &str, path: &Path, e: std::io::Error| {
        let text = format!("cannot {doing} {}: {e}", path.display());
        Failed::new(FAILED, format!("{text}\nhint: nothing else was changed"))
    };
    let fresh = beside(place, "restoring");
    let _ = std::fs::remove_file(&fresh);
    std::fs::copy(&args.file, &fresh).map_err(|e| failed("copy to", &fresh, e))?;
    inherit(place, &fresh).map_err(|e| failed("give to the daemon's user", &fresh, e))?;
    let store = store::connect(&format!("sqlite://{}", fresh.display())).await?;
    let waiting = store.restored().await?;
    let detail = format!("file={}", args.file.display());
    store.audit(&who(), "db_restore", &detail).await?;
    drop(store);
    let old = beside(
        place,
        &format!("before-restore-{}", clock::wall_ms() / 1000),
    );
    for end in ["", "-wal", "-shm"] {
        let from = beside_end(place, end);
        if from.exists() {
            let to = beside_end(&old, end);
            std::fs::rename(&from, &to).map_err(|e| failed("set aside", &from, e))?;
        }
    }
    for end in ["-wal", "-shm", ""] {
        let from = beside_end(&fresh, end);
        if from.exists() {
            let to = beside_end(place, end);
            std::fs::rename(&from, &to).map_err(|e| failed("put in place", &to, e))?;
        }
    }
    console.record(&[
        ("database", json!(place.display().to_string())),
        (
            "before",
            json!(old.exists().then(|| old.display().to_string())),
        ),
        ("waiting", json!(waiting)),
    ]);
    remark(
        "what waits may have been done since the copy was made: it runs marked possible_duplicate",
    );
    Ok(DONE)
}

/// No daemon works on the database.
async fn idle(config: &Config, store: Option<&dyn Store>) -> Result<(), Failed> {
    let stop = "hint: systemctl stop nas_event_daemon";
    if Ctl::new(config)?.get("/api/v1/status").await?.is_some() {
        return Err(Failed::new(REFUSED, format!("a daemon is running\n{stop}")));
    }
    let owner = match store {
        Some(store) => store.owner().await?,
        None => None,
    };
    match owner {
        Some(owner) if process::works(&owner) => Err(store::Error::Owned(owner).into()),
        Some(_) | None => Ok(()),
    }
}

/// Asks, if there is a terminal to ask at.
fn agreed(console: &Console, question: &str) -> Result<(), Failed> {
    if console.agreed("this cannot be taken back", question)? {
        Ok(())
    } else {
        Err(Failed::new(REFUSED, "nothing was changed"))
    }
}

/// Owner and mode of the database, else of its directory's owner and nobody else's to read.
fn inherit(place: &Path, fresh: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let model = std::fs::metadata(place);
    let mode = model.as_ref().map_or(0o600, |meta| meta.mode() & 0o777);
    let owner = match (model, place.parent()) {
        (Ok(meta), _) => Some(meta),
        (Err(_), Some(dir)) => std::fs::metadata(dir).ok(),
        (Err(_), None) => None,
    };
    std::fs::set_permissions(fresh, std::fs::Permissions::from_mode(mode))?;
    if let Some(owner) = owner
        && nix::unistd::geteuid().is_root()
    {
        std::os::unix::fs::chown(fresh, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

fn beside(place: &Path, what: &str) -> PathBuf {
    beside_end(place, &format!(".{what}"))
}

fn beside_end(place: &Path, end: &str) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}
