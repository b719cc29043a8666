//! State changes on a MikroTik: the daemon with the shipped scheme, and ten connections of
//! `librouteros` in ten threads, in turn on the same simulated router with a large table.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nas_event_daemon::driver::mikrotik::{Command, Limits, Mikrotik, Target};
use nas_event_daemon::sim::mikrotik::{Faults, Options, Sim};
use serde_json::{Value, json};

use crate::daemon::{Bench, Kind};
use crate::parts::{quantile, setting};

/// What the router takes for a sentence, ms.
const LATENCY_MS: u64 = 5;
/// Forks of ours, connections of the other.
const FORKS: i64 = 10;
/// Queues, and entries of address lists, that are there before.
const ROWS: i64 = 20_000;
const PASSWORD: &str = "bench";
/// The changes, and which part of `NED_BENCH_EVENTS` ours and the other make of each: to find a row
/// the simulator reads its table, as the real one does.
const CHANGES: [(&str, u64, u64); 3] = [
    ("user_redirect", 1, 5),
    ("user_redirect_cancel", 5, 5),
    ("user_rate_set", 5, 5),
];

/// What one of the two did with one change.
#[derive(Clone, Copy)]
struct Shown {
    /// Changes per second between the first and the last tenth.
    rate: f64,
    /// Sentences of one change.
    sentences: f64,
}

/// `NED_BENCH_RUNS` (3) rounds with `NED_BENCH_EVENTS` (10,000) accounts, the middle one counts.
pub async fn mikrotik() {
    let runs = setting("NED_BENCH_RUNS", 3);
    let accounts = setting("NED_BENCH_EVENTS", 10_000);
    assert!(
        accounts <= ROWS.unsigned_abs(),
        "there are {ROWS} queues only"
    );
    let peers = std::env::var("NED_TEST_PEERS")
        .expect("NED_TEST_PEERS: scripts/install-peers DIR installs librouteros there");
    let sim = Sim::start(Options {
        password: PASSWORD.to_owned(),
        ..Options::default()
    })
    .unwrap();
    let port = sim.addr().port();
    // The logs of the accounts are there; nothing is sent for that.
    let mut bench = Bench::new(Kind::Sqlite, "Record", 1, FORKS, ROWS).await;
    bench.warm(ROWS).await;
    let router = format!(
        "update nas set oss_path = 'Mikrotik-Simple', ip = '127.0.0.1', api_port = {port};
         insert into nas_secret (nas_id, login, password) values (1, 'admin', '{PASSWORD}')"
    );
    bench.sql.run(&router).await;
    sim.set_faults(Faults {
        latency_ms: LATENCY_MS,
        ..Faults::default()
    });
    let one_ms = alone(&sim).await;
    let mut shown: [[Vec<Shown>; 2]; 3] = Default::default();
    let mut blind = Vec::new();
    let mut rounds = 0;
    for run in 0..runs {
        for ours in [true, false] {
            sim.load(&table(rounds)).unwrap();
            rounds += 1;
            // A router's table is not changed for another one beneath its sessions.
            let daemon = ours.then(|| bench.start());
            if ours {
                bench.up().await;
            }
            if !ours {
                blind.push(librouteros(&peers, &sim, "blind", accounts.max(20)).await);
            }
            for (at, (change, our_part, its_part)) in CHANGES.into_iter().enumerate() {
                let part = if ours { our_part } else { its_part };
                let n = (accounts / part).max(20);
                let one = if ours {
                    events(&mut bench, &sim, change, n, run).await
                } else {
                    librouteros(&peers, &sim, change, n).await
                };
                eprintln!(
                    "   run {run}, ours: {ours}, {change}: {:.0}/s, {:.2} sentences",
                    one.rate, one.sentences
                );
                shown[at][usize::from(!ours)].push(one);
            }
            if let Some(daemon) = daemon {
                daemon.stop();
            }
        }
    }
    sim.stop().await;
    let bound = FORKS as f64 * 1_000.0 / one_ms;
    println!(
        "Simulated MikroTik with {LATENCY_MS} ms per sentence (a sentence alone took {one_ms:.2} ms), {ROWS} queues and as many entries of address lists; ours: `Mikrotik-Simple`, {FORKS} forks, SQLite, in steady state, logs included; `librouteros`: {FORKS} connections in as many threads. Rates between the first and the last tenth of the changes, in turn, the middle one of {runs} rounds. To find a row the simulator reads its whole table, on the same cores. Goals: at least 95 % of forks ÷ latency ({bound:.0} sentences/s here), at most 1.2 sentences per state change, ahead of `librouteros`.\n"
    );
    println!(
        "| change | ours, changes/s | sentences per change | sentences/s ÷ (forks ÷ latency) | `librouteros`, changes/s | sentences per change | ours ÷ `librouteros` |\n|---|---|---|---|---|---|---|"
    );
    for ((change, ..), [ours, other]) in CHANGES.into_iter().zip(&shown) {
        let (ours, other) = (middle(ours), middle(other));
        println!(
            "| `{change}` | {:.0} | {:.2} | {:.0} % | {:.0} | {:.2} | {:.2} |",
            ours.rate,
            ours.sentences,
            ours.rate * ours.sentences * 100.0 / bound,
            other.rate,
            other.sentences,
            ours.rate / other.rate
        );
    }
    let [[ours, _], ..] = &shown;
    let (ours, blind) = (middle(ours), middle(&blind));
    println!(
        "\n`librouteros` adding without a look, which a router refuses for who is redirected already: {:.0}/s, {:.2} sentences; ours of `user_redirect` is {:.2} of that.\n",
        blind.rate,
        blind.sentences,
        ours.rate / blind.rate
    );
}

fn middle(of: &[Shown]) -> Shown {
    Shown {
        rate: median(of, |s| s.rate),
        sentences: median(of, |s| s.sentences),
    }
}

fn median(of: &[Shown], what: fn(&Shown) -> f64) -> f64 {
    let mut all: Vec<f64> = of.iter().map(what).collect();
    all.sort_by(f64::total_cmp);
    quantile(&all, 0.5)
}

/// The state of the router before each turn: a queue of every account, and an entry in a list. As
/// on a real router no `.id` comes twice.
fn table(round: i64) -> Value {
    let id = |n| format!("*{:X}", round * 10 * ROWS + n);
    let queue = |n| {
        json!({
            ".id": id(n),
            "name": format!("crb_{n}"),
            "target": address(n),
            "max-limit": "1M/1M",
            "comment": format!("crb_{n}"),
        })
    };
    let entry = |n| {
        json!({
            ".id": id(n),
            "list": "crb_auth",
            "address": address(n),
            "comment": format!("crb_{n}"),
        })
    };
    json!({
        "/queue/simple": (1..=ROWS).map(queue).collect::<Vec<_>>(),
        "/ip/firewall/address-list": (1..=ROWS).map(entry).collect::<Vec<_>>(),
    })
}

/// As in [`Bench::new`].
fn address(n: i64) -> String {
    format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256)
}

/// What a sentence takes when nothing else is under way, ms: the timer of the simulator adds to
/// its latency.
async fn alone(sim: &Sim) -> f64 {
    let target = Target {
        host: "127.0.0.1".to_owned(),
        port: sim.addr().port(),
        login: "admin".to_owned(),
        password: PASSWORD.to_owned(),
    };
    let limits = Limits {
        connections: 1,
        connect_timeout: Duration::from_secs(5),
        linger: Duration::from_secs(60),
        logins_per_minute: 60,
        know_rows: false,
    };
    let router = Mikrotik::new(target, limits);
    let identity = Command {
        path: "/system/identity/print".to_owned(),
        ..Command::default()
    };
    let mut all = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        router
            .talk(&identity, Duration::from_secs(5))
            .await
            .unwrap();
        all.push(began.elapsed().as_secs_f64() * 1e3);
    }
    all.sort_by(f64::total_cmp);
    quantile(&all, 0.5)
}

/// Watches `n` changes come in.
async fn watched(sim: &Sim, n: u64, mut changing: impl AsyncFnMut()) -> Shown {
    let before = sim.seen();
    let reach = async |n: u64| {
        let limit = Duration::from_secs(300);
        let reached = sim.wait_until(|seen| seen.changes >= before.changes + n);
        tokio::time::timeout(limit, reached)
            .await
            .unwrap_or_else(|_| panic!("{n} changes: not within {limit:?}: {:?}", sim.seen()));
        Instant::now()
    };
    let clock = async {
        let first = reach(n / 10).await;
        let last = reach(n - n / 10).await;
        last - first
    };
    let (took, ()) = tokio::join!(clock, changing());
    let after = sim.seen();
    assert_eq!(after.changes - before.changes, n, "{after:?}");
    Shown {
        rate: (n - 2 * (n / 10)) as f64 / took.as_secs_f64(),
        sentences: (after.sentences - before.sentences) as f64 / n as f64,
    }
}

/// The daemon's, which runs already.
async fn events(bench: &mut Bench, sim: &Sim, change: &str, n: u64, run: u64) -> Shown {
    // A rate that differs from that of the table.
    let ceil = 2_048 + run;
    let rate = format!("update users set ceil_in = {ceil}, ceil_out = {ceil}");
    bench.sql.run(&rate).await;
    let all = sim.seen().changes + n;
    let shown = watched(sim, n, async || {
        bench.insert(n as i64, change, "i").await;
        // Looking at the database takes from the cores that both share.
        sim.wait_until(|seen| seen.changes >= all).await;
        while !bench.is_empty().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let shown = shown.await;
    let done = "select count(*) from events_done where result <> 'done' or attempts <> 1";
    assert_eq!(bench.sql.number(done).await, 0);
    shown
}

async fn librouteros(peers: &str, sim: &Sim, change: &str, n: u64) -> Shown {
    let script = std::env::current_dir()
        .unwrap()
        .join("scripts/bench.d/routeros_threads.py");
    watched(sim, n, async || {
        let status = tokio::process::Command::new("python3")
            .arg(&script)
            .arg(sim.addr().port().to_string())
            .args([change, &n.to_string(), &FORKS.to_string()])
            .env("PYTHONPATH", PathBuf::from(peers).join("python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await
            .expect("python3");
        assert!(status.success(), "{status}");
    })
    .await
}
