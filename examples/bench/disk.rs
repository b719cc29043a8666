//! A disk that takes 20 ms for each sync, as a busy one behind a controller without a cache does:
//! every `fsync` and `fdatasync` of the database returns so much later, and is counted.
//! `scripts/bench` compiles what does it (`scripts/bench.d/slow_sync.c`), starts PostgreSQL with it,
//! and calls this once for each delay.

use std::time::Duration;

use crate::daemon::{Bench, Kind};

fn from_script(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name}: use scripts/bench --only slowdisk"))
}

/// Drain on both databases, on a disk whose syncs take `NED_SYNC_US` longer: one row for each.
pub async fn slowdisk() {
    let n = crate::parts::setting("NED_BENCH_EVENTS", 20_000) as i64;
    let library = from_script("NED_SYNC_LIBRARY");
    let count = from_script("NED_SYNC_COUNT");
    let us: u64 = from_script("NED_SYNC_US").parse().unwrap();
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let mut bench = Bench::new(kind, "Record", 10, 10, 10_000).await;
        bench.warm(10_000).await;
        bench.insert(n, "user_rate_set", "1 + i % 10000").await;
        std::fs::write(&count, "").unwrap();
        let preload = format!("LD_PRELOAD={library}");
        let by: &[&str] = match kind {
            Kind::Sqlite => &["env", &preload],
            // It is the server that syncs.
            Kind::Postgres => &[],
        };
        let mut daemon = bench.start_by(by);
        let took = bench.drained(&mut daemon, Duration::from_secs(300)).await;
        let syncs = std::fs::metadata(&count).unwrap().len();
        let done = "select count(*) from events_done where result = 'done'";
        assert_eq!(bench.sql.number(done).await, n);
        daemon.stop();
        assert!(syncs > 0, "no sync went through {library}");
        println!(
            "| {} | {} ms | {:.0} | {syncs} | {:.0} |",
            kind.name(),
            us / 1_000,
            n as f64 / took.as_secs_f64(),
            n as f64 / syncs as f64
        );
    }
}
