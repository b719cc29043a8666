//! What a dead half of the network costs the living half, by wall clock: 500 simulated routers, all
//! alive or every second one dead, in turn. The dead swallow connections, take them and keep silent,
//! reset them, or say a byte a second.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nas_event_daemon::sim::mikrotik::{Faults, Options, Sim};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::daemon::{Bench, Daemon, Kind, numbers};
use crate::parts::{quantile, setting};

/// Ways of being dead, one listener for each.
const WAYS: usize = 4;
/// A simulator serves fewer connections than there are NASes.
const SIMS: usize = 4;
const PASSWORD: &str = "bench";
/// What a router takes for a sentence, ms.
const LATENCY_MS: u64 = 20;
/// Between two inserts of the steady load.
const TICK: Duration = Duration::from_millis(50);

/// What one run showed of the living half.
struct Shown {
    p50: f64,
    p99: f64,
    rate: f64,
    peak_mib: f64,
}

/// `NED_BENCH_RUNS` (5) pairs of runs with `NED_BENCH_NASES` (500): `NED_BENCH_SECONDS` (20) of
/// `NED_BENCH_OFFERED` (400) events/s, then `NED_BENCH_EVENTS` (20,000) at once; half of the
/// events are for the dead.
pub async fn isolation() {
    let nases = setting("NED_BENCH_NASES", 500) as i64;
    let runs = setting("NED_BENCH_RUNS", 5);
    let seconds = setting("NED_BENCH_SECONDS", 20);
    let offered = setting("NED_BENCH_OFFERED", 400) as i64;
    let burst = setting("NED_BENCH_EVENTS", 20_000) as i64;
    assert!(nases % 2 == 0, "half of {nases} NASes");
    println!(
        "{nases} simulated routers ({LATENCY_MS} ms per sentence), `Mikrotik-Simple`, 5 forks each, SQLite; {seconds} s of {offered} events/s over all of them, then {burst} at once. All alive, and every second one dead (connections swallowed, taken in silence, reset, a byte a second), in turn, {runs} runs of each. Of the living half: the time from acceptance to the end under the steady load, and events/s of the load at once; medians. Goals: p99 at most +10 %, throughput at least 95 %.\n"
    );
    let mut shown: [Vec<Shown>; 2] = Default::default();
    for run in 0..runs {
        for (kind, dead) in [false, true].into_iter().enumerate() {
            let one = once(nases, dead, seconds, offered, burst).await;
            eprintln!(
                "   run {run}, dead: {dead}: p99 {:.0} ms, {:.0}/s",
                one.p99, one.rate
            );
            shown[kind].push(one);
        }
    }
    let columns: [fn(&Shown) -> f64; 4] = [|s| s.p50, |s| s.p99, |s| s.rate, |s| s.peak_mib];
    println!("| | p50, ms | p99, ms | events/s | peak memory, MiB |\n|---|---|---|---|---|");
    let rows = [("all alive", &shown[0]), ("half dead", &shown[1])];
    for (name, of) in rows {
        let cells = columns.map(|what| format!("{:.0}", median(of, what)));
        println!("| {name} | {} |", cells.join(" | "));
    }
    let ratios = columns.map(|what| median(&shown[1], what) / median(&shown[0], what));
    let cells = ratios.map(|ratio| format!("{ratio:.2}"));
    println!("| half dead ÷ all alive | {} |\n", cells.join(" | "));
}

fn median(of: &[Shown], what: fn(&Shown) -> f64) -> f64 {
    let mut all: Vec<f64> = of.iter().map(what).collect();
    all.sort_by(f64::total_cmp);
    quantile(&all, 0.5)
}

/// Ends what it has when dropped.
struct Dead {
    ports: [u16; WAYS],
    _tasks: JoinSet<()>,
    _swallowed: (TcpListener, Vec<TcpStream>),
}

impl Dead {
    async fn start() -> Self {
        let mut tasks = JoinSet::new();
        let swallowing = black_hole().await;
        let mut ports = [swallowing.0.local_addr().unwrap().port(); WAYS];
        for (way, port) in ports.iter_mut().enumerate().skip(1) {
            let listener = TcpListener::bind(loopback()).await.unwrap();
            *port = listener.local_addr().unwrap().port();
            tasks.spawn(async move {
                let mut open = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    open.spawn(play_dead(stream, way));
                    while open.try_join_next().is_some() {}
                }
            });
        }
        Self {
            ports,
            _tasks: tasks,
            _swallowed: swallowing,
        }
    }
}

/// A listener that accepts nobody, with a full queue: the kernel drops further SYNs.
async fn black_hole() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(loopback()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut inside = Vec::new();
    let patience = Duration::from_millis(300);
    while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(addr)).await {
        inside.push(stream.unwrap());
        assert!(inside.len() < 100, "its queue never fills");
    }
    (listener, inside)
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn play_dead(mut stream: TcpStream, way: usize) {
    match way {
        1 => std::future::pending().await,
        2 => stream.set_zero_linger().unwrap(),
        _ => {
            // A long word, of which a byte comes now and then.
            while stream.write_all(b"S").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn once(nases: i64, dead: bool, seconds: u64, offered: i64, burst: i64) -> Shown {
    let accounts = 20 * nases;
    let mut bench = Bench::new(Kind::Sqlite, "Mikrotik-Simple", nases, 5, accounts).await;
    let sims: Vec<Sim> = (0..SIMS)
        .map(|_| {
            Sim::start(Options {
                password: PASSWORD.to_owned(),
                faults: Faults {
                    latency_ms: LATENCY_MS,
                    ..Faults::default()
                },
                ..Options::default()
            })
            .unwrap()
        })
        .collect();
    let killers = Dead::start().await;
    let ports = |list: Vec<u16>| {
        let arms: Vec<String> = (0..)
            .zip(list)
            .map(|(n, port)| format!("when {n} then {port}"))
            .collect();
        arms.join(" ")
    };
    let alive = ports(sims.iter().map(|sim| sim.addr().port()).collect());
    let gone = ports(killers.ports.to_vec());
    // The NAS of an account is 1 + account % nases; the even ones live.
    let places = format!(
        "insert into nas_secret (nas_id, login, password) select id, 'admin', '{PASSWORD}' from nas;
         update nas set ip = '127.0.0.1', max_sessions = 1, api_port = case id / 2 % {SIMS} {alive} end"
    );
    bench.sql.run(&places).await;
    if dead {
        let kill =
            format!("update nas set api_port = case id / 2 % {WAYS} {gone} end where id % 2 = 1");
        bench.sql.run(&kill).await;
    }
    let daemon = bench.start();
    bench.up().await;
    // Everybody has been tried before the clock starts.
    offer(&mut bench, nases, 0).await;
    let settled = living(&mut bench, &daemon, nases / 2).await;
    let mut sent = nases;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        let due = (began.elapsed().as_secs_f64() * offered as f64) as i64;
        let n = due - (sent - nases);
        if n > 0 {
            offer(&mut bench, n, sent).await;
            sent += n;
        }
        tokio::time::sleep(TICK).await;
    }
    // Accounts and NASes go round: every second event is for one of the living.
    let steady = (sent - nases) / 2;
    living(&mut bench, &daemon, settled + steady).await;
    let mut times = waits(&mut bench, nases / 2).await;
    times.sort_by(f64::total_cmp);
    let at = Instant::now();
    offer(&mut bench, burst, sent).await;
    living(&mut bench, &daemon, settled + steady + burst / 2).await;
    let rate = (burst / 2) as f64 / at.elapsed().as_secs_f64();
    let shown = Shown {
        p50: quantile(&times, 0.5),
        p99: quantile(&times, 0.99),
        rate,
        peak_mib: daemon.peak_mib(),
    };
    drop(daemon);
    shown
}

/// The next `n` events after `sent`, one account after the other, so that each is a change.
async fn offer(bench: &mut Bench, n: i64, sent: i64) {
    let table = numbers(bench.kind, n);
    let round = "(select count(*) from users)";
    bench
        .sql
        .run(&format!(
            "insert into events_stack_compact (cmd, user_id) {table}
             select case ({sent} + i - 1) / {round} % 2 when 0 then 'user_redirect' else 'user_redirect_cancel' end,
               1 + ({sent} + i - 1) % {round} from n"
        ))
        .await;
}

/// Waits until at least so many events of the living half are done; how many are.
async fn living(bench: &mut Bench, daemon: &Daemon, wanted: i64) -> i64 {
    let began = Instant::now();
    loop {
        let done = bench
            .sql
            .number("select count(*) from events_done where nas_id % 2 = 0 and result = 'done'")
            .await;
        if done >= wanted {
            return done;
        }
        assert!(
            began.elapsed() < Duration::from_secs(300),
            "{done} of {wanted} are done: {}",
            daemon.tail()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// From acceptance to the end, ms, of the living half but for its first `skip` events.
async fn waits(bench: &mut Bench, skip: i64) -> Vec<f64> {
    bench
        .sql
        .numbers(&format!(
            "select cast(round((julianday(finished_at) - julianday(event_date)) * 86400000) as integer)
             from events_done where nas_id % 2 = 0 and id > (select min(id) + 2 * {skip} - 1 from events_done)"
        ))
        .await
        .into_iter()
        .map(|ms| ms as f64)
        .collect()
}
