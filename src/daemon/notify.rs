//! What the service manager is told (sd_notify(3)): ready, one line of status, stopping, and
//! that the daemon is alive. The sign of life is sent only for real progress: the settings loop
//! turned and the database answered. A timer alone would keep a stuck daemon alive for ever.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::dispatch::status::Status;
use crate::store::Store;

/// How often the status line is renewed when the manager keeps no watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for the database's answer, as a part of the watchdog's time.
const ANSWER_PART: u32 = 3;

/// The manager's socket.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Between two signs of life at most; none = nobody watches.
    watchdog: Option<Duration>,
}

impl Manager {
    /// As the environment says; none = no manager started us.
    pub fn of_environment() -> Option<Self> {
        let path = std::env::var_os("NOTIFY_SOCKET")?;
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0);
        Self::new(&path, watchdog.map(Duration::from_micros))
    }

    /// A path, or (beginning with `@`) an abstract name.
    pub fn new(path: &OsString, watchdog: Option<Duration>) -> Option<Self> {
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(path),
        };
        let opened = address.and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Ok(Self {
                socket,
                address,
                watchdog,
            })
        });
        opened
            .inspect_err(|error| tracing::warn!("NOTIFY_SOCKET cannot be used: {error}"))
            .ok()
    }

    /// One datagram; a manager that does not listen is no reason to stop working.
    pub fn tell(&self, text: &str) {
        if let Err(error) = self.socket.send_to_addr(text.as_bytes(), &self.address) {
            tracing::debug!("the service manager was not told: {error}");
        }
    }

    /// Tells of the status and of life until `stop`, then that the daemon stops.
    pub async fn follow(
        self,
        store: Arc<dyn Store>,
        status: watch::Receiver<Status>,
        parent_tick: Arc<AtomicU64>,
        parent_limit_ms: u64,
        stop: CancellationToken,
    ) {
        self.tell("READY=1");
        // Twice within its time, so that one lost turn is no death.
        let every = self.watchdog.map_or(STATUS_EVERY, |limit| {
            (limit / 2).clamp(Duration::from_millis(10), STATUS_EVERY)
        });
        let answer_time = self.watchdog.unwrap_or(STATUS_EVERY) / ANSWER_PART;
        loop {
            let line = line(&status.borrow());
            self.tell(&format!("STATUS={line}"));
            if self.watchdog.is_some() {
                let age = clock::tick_ms().saturating_sub(parent_tick.load(Ordering::Relaxed));
                let asked = tokio::time::timeout(answer_time, store.owner()).await;
                match stuck(age, parent_limit_ms, matches!(asked, Ok(Ok(_)))) {
                    None => self.tell("WATCHDOG=1"),
                    Some(why) => tracing::warn!("no sign of life for the service manager: {why}"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(every) => {}
            }
        }
        self.tell("STOPPING=1\nSTATUS=running events finish");
    }
}

/// Why there is no progress; none = there is.
fn stuck(parent_age_ms: u64, parent_limit_ms: u64, database: bool) -> Option<String> {
    if parent_age_ms >= parent_limit_ms {
        return Some(format!(
            "the settings loop turned last {parent_age_ms} ms ago, the limit is {parent_limit_ms} ms"
        ));
    }
    (!database).then(|| "the database does not answer".to_owned())
}

/// `12 NAS (1 open), 451 waiting, 3 running`
fn line(status: &Status) -> String {
    let open = status
        .nases
        .iter()
        .filter(|n| n.breaker != "closed")
        .count();
    let mut text = format!("{} NAS", status.nases.len());
    if open > 0 {
        text.push_str(&format!(" ({open} not obeying)"));
    }
    if !status.skipped.is_empty() {
        text.push_str(&format!(", {} not served", status.skipped.len()));
    }
    text.push_str(&format!(
        ", {} waiting, {} running",
        status.held, status.running
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_is_progress() {
        assert_eq!(stuck(10, 100, true), None);
        assert!(stuck(100, 100, true).unwrap().contains("settings loop"));
        assert!(stuck(10, 100, false).unwrap().contains("database"));
    }

    #[test]
    fn a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        Manager::new(&path.clone().into_os_string(), None)
            .unwrap()
            .tell("READY=1");
        let mut bytes = [0; 64];
        let length = by_path.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1");

        let name = format!("ned-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let manager = Manager::new(&format!("@{name}").into(), None).unwrap();
        manager.tell("STATUS=x");
        let length = by_name.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"STATUS=x");
        // Nobody listens any more: nothing happens.
        drop(by_name);
        manager.tell("STATUS=y");
    }

    #[test]
    fn the_line_counts() {
        assert_eq!(line(&Status::default()), "0 NAS, 0 waiting, 0 running");
    }
}
