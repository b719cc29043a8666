//! Device drivers: a closed set, one folder or file each. They own sessions and bytes, know
//! nothing of events or schemes, and give back a reply or a `Failure` with scope and class.

pub mod dialogue;
pub mod http;
pub mod knock;
pub mod leases;
pub mod mikrotik;
pub mod radius;
pub mod rate;
pub mod sessions;
pub mod ssh;
pub mod telnet;
pub mod tls;
pub mod waits;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::clock;

/// One row of a device's answer; values that are not UTF-8 are kept with `\xNN` escapes.
pub type Row = BTreeMap<String, String>;

/// Counts one of many for as long as it lives, also when its caller gives up.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Notes how long a session took to open, its login included; failures are counted elsewhere.
async fn timed<T, E>(
    driver: &'static str,
    opening: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let began = clock::tick_ms();
    let opened = opening.await;
    if opened.is_ok() {
        let took = Duration::from_millis(clock::tick_ms().saturating_sub(began));
        metrics::histogram!("nas_event_daemon_connect_duration_seconds", "driver" => driver)
            .record(took.as_secs_f64());
    }
    opened
}

/// What a device answered to one command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// Rows of a table, in the order in which they came.
    pub rows: Vec<Row>,
    /// `=ret=` of RouterOS (the `.id` of an added row).
    pub ret: Option<String>,
    /// The answer as text, for drivers that speak text.
    pub text: String,
    /// The device's own number for success: 0, HTTP status, or Error-Cause of RADIUS.
    pub code: i32,
    /// A session was opened for this command.
    pub new_session: bool,
}

/// Bytes as text; what is not UTF-8 (comments in CP1251) becomes `\xNN`.
pub fn text(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}
