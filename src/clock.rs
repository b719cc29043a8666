//! The two clocks. Everything else takes `now` as an argument, so that pure parts can be
//! tested without waiting; only loops and writers of records call these functions.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC; for rows, records and expiry.
#[expect(
    clippy::disallowed_methods,
    reason = "the one reader of the wall clock"
)]
pub fn wall_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Microseconds since 1970-01-01 UTC; for the journal of the simulators.
#[expect(
    clippy::disallowed_methods,
    reason = "the one reader of the wall clock"
)]
pub fn wall_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// What `tick_ms` says at the start of the process: 30 days, so that the age of an event that
/// was accepted before fits below it.
const TICK_START: u64 = 30 * 86_400_000;

/// Milliseconds, never going back; for waits, deadlines and ages.
pub fn tick_ms() -> u64 {
    TICK_START.saturating_add(up_us() / 1_000)
}

/// Milliseconds since the clock was first asked, which is the start of the process.
pub fn up_ms() -> u64 {
    up_us() / 1_000
}

/// The same in microseconds, for what is shorter than a millisecond.
#[expect(
    clippy::disallowed_methods,
    reason = "the one reader of the monotonic clock"
)]
pub fn up_us() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let run = START.get_or_init(Instant::now).elapsed();
    u64::try_from(run.as_micros()).unwrap_or(u64::MAX)
}

/// `YYYY-MM-DD HH:MM:SS.mmm` in UTC, the form in which SQLite rows keep times.
pub fn utc_text(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(String::new, |t| {
        t.format("%Y-%m-%d %H:%M:%S%.3f").to_string()
    })
}

/// `YYYY-MM-DD HH:MM:SS` in the server's time zone, the form of log records.
pub fn local_text(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(String::new, |t| {
        t.with_timezone(&chrono::Local)
            .format("%Y-%m-%d %H:%M:%S")
            .to_string()
    })
}
