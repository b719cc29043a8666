//! A disk that takes 20 ms for each sync, as a busy one behind a controller without a cache does:
//! every `fsync` and `fdatasync` of the daemon returns so much later.

use std::time::Duration;

use crate::daemon::{Bench, Kind};

/// What a sync takes longer, ms.
const SYNC_MS: u64 = 20;

/// Drain on SQLite, on the disk as it is and on the slow one, in turn.
pub async fn slowdisk() {
    let n = crate::parts::setting("NED_BENCH_EVENTS", 20_000) as i64;
    println!(
        "Drain of {n} events on SQLite as above (record driver, 10 NASes × 10 forks, 10,000 accounts), each `fsync` and `fdatasync` held back for {SYNC_MS} ms by `strace`; the first line under `strace`, too, which holds nothing back there. Goal: 1,000 events/s.\n"
    );
    println!("| a sync takes longer by | events/s | syncs | events per sync |\n|---|---|---|---|");
    for ms in [0, SYNC_MS] {
        let mut bench = Bench::new(Kind::Sqlite, "Record", 10, 10, 10_000).await;
        bench.warm(10_000).await;
        bench.insert(n, "user_rate_set", "1 + i % 10000").await;
        let record = bench.dir.path().join("syncs").display().to_string();
        let inject = format!("inject=fsync,fdatasync:delay_exit={}", ms * 1_000);
        let mut by = vec![
            "strace",
            // The daemon stays our child.
            "-D",
            "-f",
            "--seccomp-bpf",
            "-q",
            "-o",
            record.as_str(),
            "-e",
            "trace=fsync,fdatasync",
        ];
        if ms > 0 {
            by.extend(["-e", inject.as_str()]);
        }
        let mut daemon = bench.start_by(&by);
        let took = bench.drained(&mut daemon, Duration::from_secs(300)).await;
        let done = "select count(*) from events_done where result = 'done'";
        assert_eq!(bench.sql.number(done).await, n);
        let last = format!("{} ", daemon.child.id());
        daemon.stop();
        let text = loop {
            let text = std::fs::read_to_string(&record).unwrap();
            let ended = |l: &str| l.starts_with(&last) && l.contains("+++ exited");
            if text.lines().any(ended) {
                break text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let syncs = text.lines().filter(|l| l.contains("sync(")).count();
        assert!(syncs > 0, "strace saw no sync");
        println!(
            "| {ms} ms | {:.0} | {syncs} | {:.0} |",
            n as f64 / took.as_secs_f64(),
            n as f64 / syncs as f64
        );
    }
    println!();
}
