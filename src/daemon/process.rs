//! The process as others see it: its name as an owner, the pid file, the run directory.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::store::{Owner, sqlite_file};

/// Who this process is, for the `owner` table: host, pid, and what tells a live process from
/// another one that got the same pid later.
pub fn holder() -> String {
    format!(
        "{} pid={} boot={} start={}",
        host(),
        std::process::id(),
        boot_id(),
        start_time(std::process::id())
    )
}

/// Whether a holder can be seen to be dead: it ran on this host, and no such process lives.
/// What cannot be seen (another host) counts as alive.
pub fn is_dead(holder: &str) -> bool {
    let field = |name: &str| {
        holder
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name).and_then(|w| w.strip_prefix('=')))
    };
    if holder.split_whitespace().next() != Some(host().as_str()) {
        return false;
    }
    let (Some(pid), Some(boot), Some(start)) = (field("pid"), field("boot"), field("start")) else {
        return false;
    };
    if boot != boot_id() {
        return true;
    }
    pid.parse::<u32>().is_ok_and(|pid| start_time(pid) != start)
}

/// Free bytes below which a file system counts as full; a day of logs of a middling daemon.
pub const ROOM_MIN: u64 = 16 * 1024 * 1024;
/// Free bytes below which an SQLite file may not take the next event: its journal grows by pages.
const ROOM_LAST: u64 = 1024 * 1024;

/// A file system that the daemon writes to and that has no room: the database's before the logs'.
pub fn full_disk(config: &Config) -> Option<String> {
    full_database(config).or_else(|| full_logs(config))
}

/// The logs' file system, if it has no room; that stops nothing.
pub fn full_logs(config: &Config) -> Option<String> {
    full(&config.paths.log, ROOM_MIN)
}

/// The database's, if it has none.
pub fn full_database(config: &Config) -> Option<String> {
    full(database_dir(config)?, ROOM_MIN)
}

/// Whether it may not take the next event.
pub fn is_database_full(config: &Config) -> bool {
    database_dir(config).is_some_and(|dir| full(dir, ROOM_LAST).is_some())
}

/// Where an SQLite database lies.
pub fn database_dir(config: &Config) -> Option<&Path> {
    let dir = sqlite_file(&config.database.url)?.parent()?;
    Some(if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    })
}

/// Free bytes there, for who is not root.
pub fn free(place: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(place).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn full(place: &Path, least: u64) -> Option<String> {
    let free = free(place)?;
    (free < least).then(|| format!("{} ({free} bytes are free)", place.display()))
}

/// A holder that gave no sign of life for so long is taken over, and is no daemon any more, ms.
pub const STALE_MS: i64 = 10_000;

/// Whether a daemon still works as this owner, as far as can be seen from here.
pub fn works(owner: &Owner) -> bool {
    !is_dead(&owner.holder) && owner.seen_ms < STALE_MS
}

/// A holder as people are shown it: host and pid.
pub fn shown(holder: &str) -> &str {
    holder.split(" boot=").next().unwrap_or_default()
}

/// Whether a holder ran on this host, so that `is_dead` can tell.
pub fn is_here(holder: &str) -> bool {
    holder.split_whitespace().next() == Some(host().as_str()) && holder.contains(" boot=")
}

/// The host's name, one word.
pub fn host() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|n| n.into_string().ok())
        .unwrap_or_default();
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '_' })
        .collect();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |t| t.trim().to_owned())
}

/// Start time of a process in clock ticks since boot (proc(5), field 22 of stat); `gone` if it
/// does not live, or is a zombie.
fn start_time(pid: u32) -> String {
    let gone = || "gone".to_owned();
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return gone();
    };
    // The name in parentheses may hold spaces and parentheses.
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return gone();
    };
    let fields: Vec<&str> = rest.split(' ').collect();
    match (fields.first(), fields.get(19)) {
        (Some(&"Z"), _) | (_, None) => gone(),
        (_, Some(start)) => (*start).to_owned(),
    }
}

/// The pid file; removed when dropped.
#[derive(Debug)]
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes `<run>/nas_event_daemon.pid`, creating the directory.
    pub fn write(run: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(run)?;
        let path = run.join("nas_event_daemon.pid");
        let mut file = std::fs::File::create(&path)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Raises the limit of open descriptors to what the system allows: scripts need pipes.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Leaves no picture of the memory behind, which holds the passwords of every NAS: no core file,
/// no pipe to a collector of cores, and nobody but root looks in (proc(5), ptrace(2)). Scripts are
/// not concerned: a new program is dumpable again, and has a limit of its own.
pub fn forbid_core_dumps() {
    use nix::sys::prctl::set_dumpable;
    use nix::sys::resource::{Resource, setrlimit};
    // Neither needs a right that a process may lack; a kernel without them dumps what it dumps.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = set_dumpable(false);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_holder_is_told_from_a_dead_one() {
        assert!(!is_dead(&holder()));
        assert!(
            !is_dead("elsewhere pid=1 boot=x start=1"),
            "another host cannot be seen"
        );
        assert!(
            is_dead(&holder().replace("start=", "start=9")),
            "the pid was given to another process"
        );
        let text = holder().replace(&format!("pid={}", std::process::id()), "pid=4194304");
        assert!(is_dead(&text));
    }
}
