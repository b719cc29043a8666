//! What is measured, one function each.

use std::time::{Duration, Instant};

use crate::daemon::{Bench, Daemon, Kind};

const KINDS: [Kind; 2] = [Kind::Sqlite, Kind::Postgres];

pub fn kinds() -> Vec<Kind> {
    let only = std::env::var("NED_BENCH_ONLY").unwrap_or_default();
    KINDS
        .into_iter()
        .filter(|k| only.is_empty() || k.name().eq_ignore_ascii_case(&only))
        .collect()
}

/// How many events are drained: `NED_BENCH_EVENTS`, else both sizes.
fn sizes() -> Vec<i64> {
    match std::env::var("NED_BENCH_EVENTS") {
        Ok(n) => vec![n.parse().unwrap()],
        Err(_) => vec![50_000, 500_000],
    }
}

/// Drain of events that wait: expansion, order, history and logs included.
pub async fn drain() {
    println!(
        "### Drain\n\nRecord driver, one `exec` step, 10 NASes × 10 forks, 10,000 accounts whose log files exist; from the start of the process to empty stacks, expansion, history and logs included.\n"
    );
    println!(
        "| store | events | events/s | peak memory, MiB | CPU of ours, µs per event |\n|---|---|---|---|---|"
    );
    for kind in kinds() {
        for n in sizes() {
            let mut bench = Bench::new(kind, "Record", 10, 10, 10_000).await;
            bench.warm(10_000).await;
            bench.insert(n, "user_rate_set", "1 + i % 10000").await;
            let mut daemon = bench.start();
            let took = bench.drained(&mut daemon, Duration::from_secs(300)).await;
            let done = bench
                .sql
                .number("select count(*) from events_done where result = 'done'")
                .await;
            assert_eq!(done, n);
            println!(
                "| {} | {n} | {:.0} | {:.0} | {:.1} |",
                kind.name(),
                n as f64 / took.as_secs_f64(),
                daemon.peak_mib(),
                daemon.cpu_s() * 1e6 / n as f64
            );
            daemon.stop();
        }
    }
    println!();
}

/// One account with a huge backlog must not slow the others, nor fill the memory.
pub async fn lane() {
    println!(
        "### One account with 300,000 of 1,000,000 waiting events\n\nAll wait on the main stack already. Rate of the other 700,000 against the same 700,000 without it.\n"
    );
    println!(
        "| store | others alone, events/s | with the huge lane, events/s | ratio | peak memory, MiB |\n|---|---|---|---|---|"
    );
    for kind in kinds() {
        let mut rates = Vec::new();
        let mut peak = 0.0;
        for huge in [false, true] {
            let mut bench = Bench::new(kind, "Record", 10, 10, 10_000).await;
            bench.warm(10_000).await;
            let (waiting, account) = if huge {
                (
                    1_000_000,
                    "case when i % 10 < 3 then 5000 else 1 + i / 10 % 9999 + (case when 1 + i / 10 % 9999 >= 5000 then 1 else 0 end) end",
                )
            } else {
                (
                    700_000,
                    "1 + i % 9999 + (case when 1 + i % 9999 >= 5000 then 1 else 0 end)",
                )
            };
            bench.waiting(waiting, "user_rate_set", account).await;
            let mut daemon = bench.start();
            let others = loop {
                tokio::time::sleep(Duration::from_millis(250)).await;
                assert!(
                    daemon.started.elapsed() < Duration::from_secs(400),
                    "too slow"
                );
                assert!(daemon.child.try_wait().unwrap().is_none());
                // By index: a look at every row would cost more the longer the huge lane is.
                let left = "select case when exists (select 1 from nas n where
                    exists (select 1 from events_stack e where e.nas_id = n.id and e.user_id < 5000)
                    or exists (select 1 from events_stack e where e.nas_id = n.id and e.user_id > 5000)) then 1 else 0 end";
                if bench.sql.number(left).await == 0 {
                    break daemon.started.elapsed();
                }
            };
            rates.push(700_000.0 / others.as_secs_f64());
            peak = daemon.peak_mib();
            daemon.stop();
        }
        println!(
            "| {} | {:.0} | {:.0} | {:.2} | {peak:.0} |",
            kind.name(),
            rates[0],
            rates[1],
            rates[1] / rates[0]
        );
    }
    println!();
}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(default)
}

/// The queue's table with its indexes, bytes.
const TABLE_SIZE: &str = "select pg_total_relation_size('events_stack')";
/// How much larger than early on it may be at the end: by half, and by so many MB, which is what
/// autovacuum leaves between two of its visits.
const GROWTH: (f64, f64) = (1.5, 20.0);

/// Sizes of the queue's table in the course of a run, MB.
struct Grown {
    /// The largest one of the second to the fourth window: the first fills the table.
    early: f64,
    most: f64,
    last: f64,
}

impl Grown {
    fn of(sizes: &[f64]) -> Self {
        let largest = |sizes: &[f64]| sizes.iter().copied().fold(0.0, f64::max);
        Self {
            early: largest(sizes.get(1..4).unwrap_or(sizes)),
            most: largest(sizes),
            last: sizes.last().copied().unwrap_or_default(),
        }
    }

    fn is_steady(&self) -> bool {
        self.last <= GROWTH.0 * self.early + GROWTH.1
    }
}

/// A steady offer on PostgreSQL with autovacuum on: `NED_BENCH_SECONDS` (60) at
/// `NED_BENCH_OFFERED` events/s (15,000). With `NED_BENCH_LEAST` it fails if a window of 5 s
/// does less, if the queue's table grows without end, or if a plan flipped.
pub async fn sustained() {
    let seconds = setting("NED_BENCH_SECONDS", 60);
    let offered = setting("NED_BENCH_OFFERED", 15_000);
    let bar = setting("NED_BENCH_LEAST", 0);
    println!(
        "### Sustained\n\nPostgreSQL, autovacuum on, {offered} events/s offered for {seconds} s, 20 inserts a second.\n"
    );
    let mut bench = Bench::new(Kind::Postgres, "Record", 10, 10, 10_000).await;
    bench.warm(10_000).await;
    let daemon = bench.start();
    bench.up().await;
    let mut looker = crate::daemon::Sql::open(&bench.url).await;
    let began = Instant::now();
    let (mut windows, mut sizes) = (Vec::new(), Vec::new());
    let (mut done_before, mut looked_at) = (0, began);
    let mut sent = 0_u64;
    while began.elapsed().as_secs() <= seconds {
        bench
            .insert(
                (offered / 20) as i64,
                "user_rate_set",
                &format!("1 + ({sent} + i * 7919) % 10000"),
            )
            .await;
        sent += offered / 20;
        let window = looked_at.elapsed().as_secs_f64();
        if window >= 5.0 {
            looked_at = Instant::now();
            let done = looker.number("select count(*) from events_done").await;
            windows.push((done - done_before) as f64 / window);
            let size = looker.number(TABLE_SIZE).await as f64 / 1e6;
            sizes.push(size);
            eprintln!(
                "   {window:.1} s: {} done, the table has {size:.1} MB",
                done - done_before
            );
            done_before = done;
        }
        let due = Duration::from_secs_f64(sent as f64 / offered as f64);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
    }
    let behind = looker
        .number("select (select count(*) from events_stack_compact) + (select count(*) from events_stack)")
        .await;
    // Settling and marking go by the primary key; the other indexes are for loading alone.
    let mut scans = async |which: &str| {
        looker
            .number(&format!(
                "select coalesce(sum(idx_scan), 0) from pg_stat_user_indexes where relname = 'events_stack' and indexrelname {which} 'events_stack_pkey'"
            ))
            .await as f64
    };
    let other = scans("<>").await / scans("=").await.max(1.0);
    let least = windows.iter().skip(1).copied().fold(f64::MAX, f64::min);
    let mean = windows.iter().sum::<f64>() / windows.len() as f64;
    let grown = Grown::of(&sizes);
    println!(
        "| offered/s | seconds | mean/s | least 5 s window/s | waiting at the end | events_stack, MB: after 20 s | at most | at the end | other indexes ÷ primary key | CPU of ours, % of a core |\n|---|---|---|---|---|---|---|---|---|---|"
    );
    println!(
        "| {:.0} | {seconds} | {mean:.0} | {least:.0} | {behind} | {:.1} | {:.1} | {:.1} | {other:.4} | {:.0} |\n",
        sent as f64 / began.elapsed().as_secs_f64(),
        grown.early,
        grown.most,
        grown.last,
        daemon.cpu_s() * 100.0 / began.elapsed().as_secs_f64()
    );
    daemon.stop();
    if bar > 0 {
        assert!(least >= bar as f64, "a window of {least}/s, at least {bar}");
        assert!(
            grown.is_steady(),
            "events_stack grows without end: {sizes:?} MB"
        );
        assert!(other < 0.01, "a turn uses another index: {other}");
    }
}

/// Scripts against `xargs`.
pub async fn scripts() {
    println!(
        "### Scripts\n\nSession scheme, 20 forks, SQLite; against `xargs -P 20 bash -c \". bin/session; user_rate_set\"`, the same file and function, in turn.\n"
    );
    println!("| script | ours, runs/s | xargs, runs/s | ratio |\n|---|---|---|---|");
    for (name, body, n) in [
        ("sleeps 50 ms", "sleep 0.05", 2_000_i64),
        ("empty", ":", 3_000),
    ] {
        let mut bench = Bench::new(Kind::Sqlite, "Script", 1, 20, 10_000).await;
        let dir = bench.dir.path().join("oss/core/Script/bin");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(
            dir.join("session"),
            format!("user_rate_set() {{ {body}; }}\n"),
        )
        .unwrap();
        bench.insert(n, "user_rate_set", "i").await;
        let mut daemon = bench.start();
        let ours = n as f64
            / bench
                .drained(&mut daemon, Duration::from_secs(300))
                .await
                .as_secs_f64();
        daemon.stop();
        let began = Instant::now();
        let status = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!(
                "seq {n} | xargs -P 20 -I{{}} bash --norc --noprofile -c '. bin/session; user_rate_set'"
            ))
            .current_dir(dir.parent().unwrap())
            .status()
            .unwrap();
        assert!(status.success());
        let xargs = n as f64 / began.elapsed().as_secs_f64();
        println!("| {name} | {ours:.0} | {xargs:.0} | {:.2} |", ours / xargs);
    }
    println!();
}

pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

/// From an insert, or a post, to the first byte at the NAS, which notes the time itself.
pub async fn latency() {
    println!(
        "### Latency\n\nFrom the committed insert (plain SQL, or the answer of the classic REST call) to the arrival at a simulated RouterOS NAS, 300 events, one at a time.\n"
    );
    println!(
        "| store | SQL p50, ms | SQL p99, ms | REST answer p50, ms | REST answer p99, ms | REST to NAS p50, ms | REST to NAS p99, ms |\n|---|---|---|---|---|---|---|"
    );
    for kind in kinds() {
        let mut bench = Bench::new(kind, "Mikrotik-Simple", 1, 10, 10_000).await;
        let journal = bench.dir.path().join("journal");
        let sim =
            nas_event_daemon::sim::mikrotik::Sim::start(nas_event_daemon::sim::mikrotik::Options {
                password: "bench".to_owned(),
                journal: Some(journal.clone()),
                ..Default::default()
            })
            .unwrap();
        bench
            .sql
            .run(&format!(
                "update nas set ip = '127.0.0.1', api_port = {}",
                sim.addr().port()
            ))
            .await;
        bench
            .sql
            .run("insert into nas_secret (nas_id, login, password) values (1, 'admin', 'bench')")
            .await;
        let daemon = bench.start();
        bench.up().await;
        let client = nas_event_daemon::driver::tls::plain_client()
            .build()
            .unwrap();
        let url = format!(
            "http://127.0.0.1:{}/rest_api/v2/EventsStackCompact/",
            bench.port
        );
        let (mut by_sql, mut answers, mut by_rest) = (Vec::new(), Vec::new(), Vec::new());
        for i in 1..=610_i64 {
            let rest = i % 2 == 0;
            let before = now_us();
            if rest {
                let began = Instant::now();
                let body = format!(
                    "method1=objects.create&arg1={{\"user_id\": {i},\"cmd\":\"user_redirect\"}}"
                );
                let answer = client.post(&url).body(body).send().await.unwrap();
                assert!(answer.status().is_success());
                answers.push(began.elapsed().as_secs_f64() * 1e3);
            } else {
                bench.sql.run(&format!("insert into events_stack_compact (cmd, user_id) values ('user_redirect', {i})")).await;
            }
            let wanted = format!("crb_{i}\"");
            let at = loop {
                let text = std::fs::read_to_string(&journal).unwrap_or_default();
                if let Some(line) = text.lines().rev().find(|l| l.contains(&wanted)) {
                    break serde_json::from_str::<serde_json::Value>(line).unwrap()["at_us"]
                        .as_i64()
                        .unwrap();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            // The first ones open the sessions.
            if i > 10 {
                let ms = (at - before) as f64 / 1e3;
                if rest {
                    by_rest.push(ms)
                } else {
                    by_sql.push(ms)
                }
            }
        }
        for list in [&mut by_sql, &mut answers, &mut by_rest] {
            list.sort_by(f64::total_cmp);
        }
        println!(
            "| {} | {:.1} | {:.1} | {:.2} | {:.2} | {:.1} | {:.1} |",
            kind.name(),
            quantile(&by_sql, 0.5),
            quantile(&by_sql, 0.99),
            quantile(&answers, 0.5),
            quantile(&answers, 0.99),
            quantile(&by_rest, 0.5),
            quantile(&by_rest, 0.99)
        );
        daemon.stop();
        sim.stop().await;
    }
    println!();
}

fn now_us() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_micros() as i64
}

/// A payer during a batch of rate events on a slow NAS.
pub async fn payer() {
    println!(
        "### A payer during a batch\n\n20,000 `user_rate_set` wait on a NAS that takes 300 ms per command with 5 forks; every 500 ms another account's `user_redirect_cancel` comes, 60 in all.\n"
    );
    let mut bench = Bench::new(Kind::Sqlite, "Mikrotik-Simple", 1, 5, 21_000).await;
    let sim =
        nas_event_daemon::sim::mikrotik::Sim::start(nas_event_daemon::sim::mikrotik::Options {
            password: "bench".to_owned(),
            faults: nas_event_daemon::sim::mikrotik::Faults {
                latency_ms: 300,
                ..Default::default()
            },
            ..Default::default()
        })
        .unwrap();
    bench
        .sql
        .run(&format!(
            "update nas set ip = '127.0.0.1', api_port = {}",
            sim.addr().port()
        ))
        .await;
    bench
        .sql
        .run("insert into nas_secret (nas_id, login, password) values (1, 'admin', 'bench')")
        .await;
    bench.insert(20_000, "user_rate_set", "i").await;
    let daemon: Daemon = bench.start();
    bench.up().await;
    let mut ids = Vec::new();
    for i in 0..60 {
        bench.sql.run(&format!("insert into events_stack_compact (cmd, user_id) values ('user_redirect_cancel', {})", 20_001 + i)).await;
        ids.push(20_001 + i);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut waits: Vec<f64> = Vec::new();
    for user in ids {
        let ms = bench
            .sql
            .number(&format!(
                "select ifnull((select cast((unixepoch(finished_at, 'subsec') - unixepoch(event_date, 'subsec')) * 1000 as integer) from events_done where user_id = {user} and event_type = 'user_redirect_cancel'), 999999)"
            ))
            .await;
        waits.push(ms as f64);
    }
    waits.sort_by(f64::total_cmp);
    println!(
        "| p50, ms | p95, ms | max, ms |\n|---|---|---|\n| {:.0} | {:.0} | {:.0} |\n",
        quantile(&waits, 0.5),
        quantile(&waits, 0.95),
        waits[waits.len() - 1]
    );
    daemon.stop();
    sim.stop().await;
}

/// A thousand NASes without work.
pub async fn idle() {
    println!("### 1,000 idle NASes\n");
    println!("| store | peak memory, MiB | CPU, % of a core over 30 s |\n|---|---|---|");
    for kind in kinds() {
        let bench = Bench::new(kind, "Record", 1_000, 5, 1_000).await;
        let daemon = bench.start();
        bench.up().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = daemon.cpu_s();
        tokio::time::sleep(Duration::from_secs(30)).await;
        println!(
            "| {} | {:.0} | {:.2} |",
            kind.name(),
            daemon.peak_mib(),
            (daemon.cpu_s() - before) * 100.0 / 30.0
        );
        daemon.stop();
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_grows_without_end_is_no_steady_one() {
        let level = [3.0, 40.0, 44.0, 41.0, 43.0, 40.0, 47.0, 42.0];
        assert!(Grown::of(&level).is_steady());
        // 8 MB/s, as where nobody vacuums: far below 500 MB after a minute.
        let growing: Vec<f64> = (1..=12).map(|window| f64::from(window) * 40.0).collect();
        let grown = Grown::of(&growing);
        assert_eq!((grown.early, grown.most, grown.last), (160.0, 480.0, 480.0));
        assert!(!grown.is_steady());
        // What a longer transaction of somebody else has kept is free again at the end.
        let peak = [3.0, 40.0, 44.0, 41.0, 190.0, 190.0, 84.0, 80.0];
        assert!(Grown::of(&peak).is_steady());
    }
}
