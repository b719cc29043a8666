//! Removal of old account logs, for `logs prune`. Not left to logrotate: twenty thousand files,
//! most of them touched once a month, would each need an entry in its state and a rename.

use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::clock;
use crate::logs::files::ACCOUNTS;

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Account logs.
    pub files: u64,
    /// Their size in all.
    pub bytes: u64,
    /// Directories of abonents that became empty.
    pub dirs: u64,
    /// What could not be read or removed.
    pub failed: u64,
    /// The first of those, with its reason.
    pub first_failure: Option<String>,
}

/// Removes the account logs under `dir` (`paths.log`) that were last written to more than
/// `older_than` ago, and directories left empty. Looks only at `abonents/<number>/event_*` and
/// follows no links. `dry_run` only counts. Fails if the directory itself cannot be read.
pub fn prune(dir: &Path, older_than: Duration, dry_run: bool) -> io::Result<Pruned> {
    let age = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
    before(dir, clock::wall_ms().saturating_sub(age), dry_run)
}

fn before(dir: &Path, before_ms: i64, dry_run: bool) -> io::Result<Pruned> {
    let mut pruned = Pruned::default();
    let root = dir.join(ACCOUNTS);
    match fs::symlink_metadata(&root) {
        Ok(at) if at.is_dir() => {}
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                format!(
                    "{} is a link or a file, nothing was removed; set paths.log to the real \
                     directory",
                    root.display()
                ),
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(pruned),
        Err(e) => return Err(e),
    }
    for abonent in fs::read_dir(&root)? {
        let abonent = abonent?;
        let named = abonent.file_name();
        let is_number = named.to_str().is_some_and(|n| n.parse::<i64>().is_ok());
        if !is_number || !abonent.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if let Err(error) = abonent_dir(&abonent.path(), before_ms, dry_run, &mut pruned) {
            failed(&mut pruned, &abonent.path(), &error);
        }
    }
    Ok(pruned)
}

fn abonent_dir(dir: &Path, before_ms: i64, dry_run: bool, pruned: &mut Pruned) -> io::Result<()> {
    let mut left = 0_u64;
    for file in fs::read_dir(dir)? {
        let file = file?;
        match old_log(&file, before_ms) {
            Ok(Some(bytes)) => {
                if !dry_run && let Err(error) = fs::remove_file(file.path()) {
                    failed(pruned, &file.path(), &error);
                    left += 1;
                    continue;
                }
                pruned.files += 1;
                pruned.bytes += bytes;
            }
            Ok(None) => left += 1,
            Err(error) => {
                failed(pruned, &file.path(), &error);
                left += 1;
            }
        }
    }
    // A record that arrives in between makes the directory stay, or makes it anew.
    if left == 0 && (dry_run || fs::remove_dir(dir).is_ok()) {
        pruned.dirs += 1;
    }
    Ok(())
}

/// The size of an account log (or a rotated one) that is old enough.
fn old_log(file: &DirEntry, before_ms: i64) -> io::Result<Option<u64>> {
    let named = file.file_name();
    if !named.to_str().is_some_and(|n| n.starts_with("event_")) || !file.file_type()?.is_file() {
        return Ok(None);
    }
    let at = file.metadata()?;
    let since = at.modified()?.duration_since(UNIX_EPOCH);
    let modified_ms = since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
    Ok((modified_ms < before_ms).then_some(at.len()))
}

fn failed(pruned: &mut Pruned, path: &Path, error: &io::Error) {
    pruned.failed += 1;
    pruned
        .first_failure
        .get_or_insert_with(|| format!("{}: {error}", path.display()));
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;
    use std::time::SystemTime;

    use super::*;

    const NOW: i64 = 1_700_000_000_000;
    const OLD: u64 = 1_600_000_000;
    const YOUNG: u64 = 1_700_000_001;

    fn write(root: &Path, path: &str, seconds: u64) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "12345").unwrap();
        touch(&path, seconds);
        path
    }

    fn touch(path: &Path, seconds: u64) {
        let at: SystemTime = UNIX_EPOCH + Duration::from_secs(seconds);
        File::options()
            .append(true)
            .open(path)
            .unwrap()
            .set_modified(at)
            .unwrap();
    }

    #[test]
    fn only_old_account_logs_go() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let gone = [
            write(root, "abonents/1/event_10.log", OLD),
            write(root, "abonents/2/event_20.log.1.gz", OLD),
        ];
        let kept = [
            write(root, "abonents/1/event_11.log", YOUNG),
            write(root, "abonents/1/notes.txt", OLD),
            write(root, "abonents/x/event_1.log", OLD),
            write(root, "nas_event_daemon/n_1.log", OLD),
            write(root, "abonents/event_5.log", OLD),
        ];
        let elsewhere = write(root, "elsewhere/event_9.log", OLD);
        std::os::unix::fs::symlink(root.join("elsewhere"), root.join("abonents/3")).unwrap();
        fs::create_dir(root.join("abonents/4")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, root.join("abonents/4/event_9.log")).unwrap();

        let expected = Pruned {
            files: 2,
            bytes: 10,
            dirs: 1,
            failed: 0,
            first_failure: None,
        };
        assert_eq!(before(root, NOW, true).unwrap(), expected);
        assert!(gone.iter().all(|p| p.exists()), "a dry run removes nothing");
        assert_eq!(before(root, NOW, false).unwrap(), expected);
        assert!(gone.iter().all(|p| !p.exists()));
        assert!(kept.iter().all(|p| p.exists()));
        assert!(elsewhere.exists());
        assert!(root.join("abonents/4/event_9.log").is_symlink());
        let all = before(root, i64::MAX, true).unwrap();
        assert_eq!(
            (all.files, all.failed),
            (1, 0),
            "only event_11.log, no links"
        );
        assert!(!root.join("abonents/2").exists(), "empty directories go");
    }

    #[test]
    fn a_link_in_place_of_the_tree_is_refused_and_no_tree_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(before(dir.path(), NOW, false).unwrap(), Pruned::default());
        let elsewhere = write(dir.path(), "elsewhere/1/event_9.log", OLD);
        let link = dir.path().join(ACCOUNTS);
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), link).unwrap();
        let error = before(dir.path(), NOW, false).unwrap_err();
        assert!(error.to_string().contains("paths.log"), "{error}");
        assert!(elsewhere.exists());
    }

    #[test]
    fn age_counts_from_now() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "abonents/1/event_10.log", OLD);
        let year = Duration::from_secs(365 * 86_400);
        let now = u64::try_from(clock::wall_ms() / 1_000).unwrap();
        write(dir.path(), "abonents/1/event_11.log", now);
        assert_eq!(prune(dir.path(), year, true).unwrap().files, 1);
        assert_eq!(prune(dir.path(), Duration::MAX, true).unwrap().files, 0);
    }
}
