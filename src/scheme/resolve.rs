//! From a NAS row to what executes its events: the scheme directory that `oss_path` names, or
//! the old-style `script_name`. Every refusal is one sentence for `Skip nas … reason=…`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::Execute;
use super::launch::bash;
use super::native::beside::Beside;
use super::ride::Rides;
use super::session::SessionScheme;
use crate::config::Paths;
use crate::nas::Nas;

/// Where a scheme directory may lie in a checkout, seen from the current directory.
const CHECKOUT: &str = "oss/core";
/// Files of a scheme that count for its hash; more is not a scheme but a home directory.
const FILES_MAX: usize = 2_000;
/// Bytes of a file that count for the hash.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// Folders below a scheme's directory.
const DEPTH_MAX: usize = 8;
/// Remembered syntax checks; a provider has tens of sessions, each with a few versions.
const CHECKED_MAX: usize = 1_000;

/// Builds the native scheme of a directory with `scheme.toml`; the error is the reason.
pub type Native<'a> = &'a dyn Fn(&Path) -> Result<Arc<dyn Execute>, String>;

/// What executes the events of `nas`, or why nothing can. `script_name` comes first: who names an
/// old-style script means it, also beside a scheme (its directory is then where the script is
/// looked for). Else a directory with `bin/session` is a session scheme (a `scheme.toml` beside it
/// says what its exit codes mean), else one with `scheme.toml` a native one. Relative paths are looked for in `local` and `core` of `paths.oss`, then in
/// the shipped schemes, then in the `oss/core` of a checkout.
pub fn resolve(nas: &Nas, paths: &Paths, native: Native<'_>) -> Result<Arc<dyn Execute>, String> {
    resolve_riding(nas, paths, native, None)
}

/// The same; scripts ride on the daemon's sessions, if it gives any.
pub fn resolve_riding(
    nas: &Nas,
    paths: &Paths,
    native: Native<'_>,
    rides: Option<&Arc<Rides>>,
) -> Result<Arc<dyn Execute>, String> {
    let oss_path = given(nas.oss_path.as_deref());
    let script_name = given(nas.script_name.as_deref());
    let roots = roots(paths);
    let dir = match oss_path {
        Some(text) => Some(directory(text, &roots)?),
        None => None,
    };
    if let (Some(dir), None) = (&dir, script_name) {
        if dir.join("bin/session").is_file() {
            if let Some(error) = syntax_error(&dir.join("bin/session"))? {
                return Err(format!("bin/session cannot be loaded: {error}"));
            }
            let beside = Beside::load(dir).map_err(|findings| {
                let texts: Vec<_> = findings.iter().map(ToString::to_string).collect();
                texts.join(" | ")
            })?;
            let scheme = SessionScheme::session(dir, hash(dir)?, beside);
            return Ok(Arc::new(scheme.riding(rides.map(Arc::clone))));
        }
        if dir.join("scheme.toml").is_file() {
            return native(dir);
        }
    }
    match (script_name, dir) {
        (Some(text), dir) => {
            let path = script(text, dir.as_deref(), &roots)?;
            let hash = hash(&path)?;
            let scheme = SessionScheme::script(&path, dir, hash);
            Ok(Arc::new(scheme.riding(rides.map(Arc::clone))))
        }
        (None, Some(dir)) => Err(format!(
            "{} has neither bin/session nor scheme.toml: the scheme is not initialised",
            dir.display()
        )),
        (None, None) => {
            Err("no scheme and no script: set oss_path or script_name of the NAS".to_owned())
        }
    }
}

fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

/// Where a relative `oss_path` is looked for, first found first taken.
pub fn roots(paths: &Paths) -> Vec<PathBuf> {
    let mut roots = vec![
        paths.oss.join("local"),
        paths.oss.join("core"),
        paths.share.join("oss/core"),
    ];
    if let Ok(here) = std::env::current_dir() {
        roots.push(here.join(CHECKOUT));
    }
    roots
}

/// Refuses what could lead out of the search path; a path of our own never needs it.
fn checked<'a>(what: &str, text: &'a str) -> Result<&'a Path, String> {
    let path = Path::new(text);
    let climbs = path.components().any(|c| matches!(c, Component::ParentDir));
    if climbs || text.contains('\0') {
        return Err(format!("{what} {text:?} may not contain '..' or NUL"));
    }
    Ok(path)
}

fn directory(text: &str, roots: &[PathBuf]) -> Result<PathBuf, String> {
    let path = checked("oss_path", text)?;
    let tried: Vec<_> = if path.is_absolute() {
        vec![path.to_owned()]
    } else {
        roots.iter().map(|root| root.join(path)).collect()
    };
    tried
        .iter()
        .find(|dir| dir.is_dir())
        .cloned()
        .ok_or_else(|| {
            if path.is_absolute() && path.exists() {
                format!("oss_path {text} is not a directory")
            } else {
                format!("scheme directory missing: {}", listed(&tried))
            }
        })
}

fn script(text: &str, dir: Option<&Path>, roots: &[PathBuf]) -> Result<PathBuf, String> {
    let path = checked("script_name", text)?;
    let tried: Vec<_> = if path.is_absolute() {
        vec![path.to_owned()]
    } else {
        let near = dir
            .into_iter()
            .flat_map(|dir| [dir.to_owned(), dir.join("bin")]);
        near.chain(roots.iter().cloned())
            .map(|root| root.join(path))
            .collect()
    };
    tried
        .iter()
        .find(|file| file.is_file())
        .cloned()
        .ok_or_else(|| {
            if path.is_absolute() && path.exists() {
                format!("script_name {text} is not a file")
            } else {
                format!("script missing: {}", listed(&tried))
            }
        })
}

fn listed(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    format!("looked for {}", shown.join(", "))
}

/// First 16 hex digits of SHA-256 over a file, or over all regular files below a directory
/// (relative path, length, content; in the order of their paths; hidden ones left out, as
/// editors and version control write there). Native schemes use the same.
pub fn hash(path: &Path) -> Result<String, String> {
    let mut files = BTreeMap::new();
    if path.is_dir() {
        collect(path, Path::new(""), 0, &mut files)?;
    } else {
        files.insert(PathBuf::new(), path.to_owned());
    }
    let mut sum = Sha256::new();
    for (name, file) in files {
        let text = read(&file)?;
        sum.update(name.as_os_str().as_encoded_bytes());
        sum.update([0]);
        sum.update((text.len() as u64).to_be_bytes());
        sum.update(&text);
    }
    Ok(short(&sum.finalize()))
}

fn short(digest: &[u8]) -> String {
    digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let cannot = |e| {
        format!(
            "{} cannot be read: {e}; the daemon's user needs read permission",
            file.display()
        )
    };
    let mut text = Vec::new();
    let open = fs::File::open(file).map_err(cannot)?;
    open.take(FILE_MAX).read_to_end(&mut text).map_err(cannot)?;
    Ok(text)
}

fn collect(
    dir: &Path,
    below: &Path,
    depth: usize,
    files: &mut BTreeMap<PathBuf, PathBuf>,
) -> Result<(), String> {
    let cannot = |e| format!("{} cannot be read: {e}", dir.display());
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let (name, path) = (entry.file_name(), entry.path());
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // what a link leads to belongs to the scheme; a broken one does not
        let Ok(meta) = fs::metadata(&path) else {
            continue;
        };
        if meta.is_dir() && depth < DEPTH_MAX {
            collect(&path, &below.join(name), depth + 1, files)?;
        } else if meta.is_file() {
            files.insert(below.join(name), path);
        }
        if files.len() > FILES_MAX {
            return Err(format!(
                "{} holds more than {FILES_MAX} files: is it a scheme?",
                dir.display()
            ));
        }
    }
    Ok(())
}

/// The first line of what `bash -n` says of a session, checked once per content: a file that
/// ends in the middle would take the functions behind it for "not implemented".
fn syntax_error(session: &Path) -> Result<Option<String>, String> {
    static CHECKED: Mutex<BTreeMap<[u8; 32], Option<String>>> = Mutex::new(BTreeMap::new());
    let text = read(session)?;
    let key: [u8; 32] = Sha256::digest(&text).into();
    let known = || CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(verdict) = known().get(&key) {
        return Ok(verdict.clone());
    }
    let launch = super::launch::readable(session)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "programs are started by scheme only"
    )]
    let mut command = std::process::Command::new(bash()?);
    let output = command
        .args(["--norc", "--noprofile", "-n"])
        .arg(&launch.path)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("bash cannot be started to check {}: {e}", session.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let verdict = (!output.status.success()).then(|| {
        let line = said.lines().next().unwrap_or("bash -n fails");
        line.replace(&launch.path.display().to_string(), "bin/session")
    });
    let mut known = known();
    if known.len() >= CHECKED_MAX {
        known.clear();
    }
    known.insert(key, verdict.clone());
    Ok(verdict)
}
