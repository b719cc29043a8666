//! What the tests share: throw-away databases, the daemon as a child process, simulated
//! routers, journals of what was executed and the checker over them, waiting for conditions.

#![allow(
    dead_code,
    unreachable_pub,
    unused_macros,
    unused_imports,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "each test file uses its part; a failed step fails the test"
)]

pub mod daemon;
pub mod db;
pub mod dice;
pub mod journal;
pub mod lossy;
pub mod queue;
pub mod server;
pub mod sim;
pub mod sshd;
pub mod tls;
pub mod vty;

/// A number that a long run sets.
pub fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Seeds and counts, for who reads the log.
pub fn say(text: &str) {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{text}\n"));
}

/// Writes each test twice, once per kind of database: `async fn name(kind: Kind)`.
macro_rules! on_each_store {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::lab::db::Kind::Sqlite).await; })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::lab::db::Kind::Postgres).await; })*
        }
    };
}
pub(crate) use on_each_store;

/// Resident memory of this process, KiB.
pub fn rss_kib() -> u64 {
    memory_kib("VmRSS:")
}

/// How many KiB more than at its beginning this process held meanwhile, at the peak: what was
/// read and given back at once counts as well.
pub async fn growth_kib<T>(work: impl Future<Output = T>) -> (T, u64) {
    // The peak begins anew (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = rss_kib();
    let result = work.await;
    (result, memory_kib("VmHWM:").saturating_sub(before))
}

fn memory_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
