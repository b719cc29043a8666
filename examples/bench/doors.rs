//! The doors: one bulk call, single posts over kept connections, and pages beside a million done
//! events.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Bench, Kind, numbers};
use crate::parts::{kinds, setting};

const TOKEN: &str = "token-of-the-bench";
/// Events of the bulk call.
const BULK: i64 = 100_000;
/// What it may take.
const BULK_MAX: Duration = Duration::from_secs(5);
/// Kept connections that post at once.
const POSTERS: usize = 64;

/// Bulk and single posts; fails where the bulk call takes longer than [`BULK_MAX`]. The NASes are
/// paused, so that what is measured is the door.
pub async fn doors() {
    println!(
        "### Doors\n\nOne bulk call of 100,000 events (NDJSON, body sent at once) until it is answered; single classic posts over {POSTERS} kept connections for {} s, each answered after its commit, once the bulk call is expanded. Expansion runs meanwhile, the NASes are paused.\n",
        setting("NED_BENCH_SECONDS", 10)
    );
    println!(
        "| store | bulk of 100,000, s | single posts/s | slowest post, ms |\n|---|---|---|---|"
    );
    let mut longest = Duration::ZERO;
    for kind in kinds() {
        let mut bench = Bench::new(kind, "Record", 10, 10, 10_000).await;
        pause(&mut bench).await;
        token(&bench).await;
        let daemon = bench.start();
        bench.up().await;
        let body: String = (0..BULK)
            .map(|i| {
                format!(
                    "{{\"cmd\":\"user_rate_set\",\"user_id\":{}}}\n",
                    1 + i % 10_000
                )
            })
            .collect();
        let began = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", bench.port)).await.unwrap();
        let answer = call(&mut stream, "POST", "/api/v1/events/bulk", &body).await;
        let bulk = began.elapsed();
        assert!(answer.contains("\"accepted\":100000"), "{answer}");
        // What the bulk call left to expand must not be measured as the posts' own.
        let waiting = "select count(*) from events_stack_compact";
        while bench.sql.number(waiting).await > 0 {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let (posts, slowest) = singles(bench.port).await;
        println!(
            "| {} | {:.2} | {posts:.0} | {:.0} |",
            kind.name(),
            bulk.as_secs_f64(),
            slowest.as_secs_f64() * 1e3
        );
        daemon.stop();
        longest = longest.max(bulk);
    }
    println!();
    assert!(longest < BULK_MAX, "a bulk call took {longest:?}");
}

async fn singles(port: u16) -> (f64, Duration) {
    let seconds = setting("NED_BENCH_SECONDS", 10);
    let began = Instant::now();
    let mut posters = tokio::task::JoinSet::new();
    for poster in 0..POSTERS {
        posters.spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut posted, mut slowest) = (0_u64, Duration::ZERO);
            while began.elapsed().as_secs() < seconds {
                let user = 1 + (posted as usize * POSTERS + poster) % 10_000;
                let body = format!(
                    "method1=objects.create&arg1={{\"user_id\": {user},\"cmd\":\"user_rate_set\"}}"
                );
                let at = Instant::now();
                let answer = call(
                    &mut stream,
                    "POST",
                    "/rest_api/v2/EventsStackCompact/",
                    &body,
                )
                .await;
                slowest = slowest.max(at.elapsed());
                assert!(answer.contains("\"result\""), "{answer}");
                posted += 1;
            }
            (posted, slowest)
        });
    }
    let (mut all, mut slowest) = (0, Duration::ZERO);
    while let Some(done) = posters.join_next().await {
        let (posted, worst) = done.unwrap();
        all += posted;
        slowest = slowest.max(worst);
    }
    (all as f64 / began.elapsed().as_secs_f64(), slowest)
}

/// Lists and pages beside 1,000,000 done, 200,000 dead and 50,000 ready events; fails above 1 s.
pub async fn pages() {
    println!(
        "### Lists and pages\n\nBeside 1,000,000 done, 200,000 dead and 50,000 ready events of 50,000 accounts on 40 NASes (paused); the slowest of three calls each, ms.\n"
    );
    println!("| page | SQLite | PostgreSQL |\n|---|---|---|");
    let mut table: Vec<(String, Vec<String>)> = Vec::new();
    let mut worst = 0.0_f64;
    for kind in kinds() {
        let mut bench = Bench::new(kind, "Record", 40, 10, 50_000).await;
        fill(&mut bench, kind).await;
        pause(&mut bench).await;
        token(&bench).await;
        let daemon = bench.start();
        bench.up().await;
        for path in PAGES {
            let mut slowest = 0.0_f64;
            for _ in 0..3 {
                let mut stream = TcpStream::connect(("127.0.0.1", bench.port)).await.unwrap();
                let began = Instant::now();
                let (method, path, body) = match path.split_once(' ') {
                    Some((path, body)) => ("POST", path, body),
                    None => ("GET", *path, ""),
                };
                let answer = call(&mut stream, method, path, body).await;
                slowest = slowest.max(began.elapsed().as_secs_f64() * 1e3);
                assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
            }
            worst = worst.max(slowest);
            match table.iter_mut().find(|(name, _)| name == path) {
                Some((_, cells)) => cells.push(format!("{slowest:.0}")),
                None => table.push(((*path).to_owned(), vec![format!("{slowest:.0}")])),
            }
        }
        daemon.stop();
    }
    for (path, cells) in table {
        println!("| `{path}` | {} |", cells.join(" | "));
    }
    println!();
    assert!(worst < 1_000.0, "a page took {worst:.0} ms");
}

const PAGES: &[&str] = &[
    "/api/v1/status",
    "/metrics",
    "/api/v1/events",
    "/api/v1/events?state=all",
    "/api/v1/events?state=done",
    "/api/v1/events?state=done&before=500000",
    "/api/v1/events?state=done&nas=7",
    "/api/v1/events?state=done&nas=99",
    "/api/v1/events?state=done&cmd=user_del",
    "/api/v1/events?state=all&user=777",
    "/api/v1/events?state=all&batch=none",
    "/api/v1/events?state=dead",
    "/api/v1/events?state=dead&nas=7&limit=1000",
    "/api/v1/events?state=dead&cmd=user_del",
    "/api/v1/events?state=held",
    "/api/v1/events/500",
    "/api/v1/batches/b3",
    "/api/v1/accounts/777",
    "/api/v1/accounts/777/history",
    "/api/v1/nas",
    "/api/v1/nas/7",
    "/api/v1/audit",
    "/api/v1/events/retry {\"state\":\"dead\",\"nas\":7,\"dry_run\":true}",
    "/rest_api/v2/EventsDone/ method1=objects.filter&arg1={\"user_id\":777}",
    "/rest_api/v2/EventsDone/ method1=objects.count&arg1={}",
    "/rest_api/v2/EventsDead/ method1=objects.filter&arg1={\"nas_id\":7}&limit=100",
    "/rest_api/v2/EventsStack/ method1=objects.all&arg1={}&limit=100",
];

async fn fill(bench: &mut Bench, kind: Kind) {
    let done = numbers(kind, 1_000_000);
    bench.sql.run(&format!(
        "insert into events_done (id, event_type, user_id, nas_id, event_date, result, batch_id) {done}
         select i, 'user_rate_set', 1 + i % 50000, 1 + i % 40, '2026-01-01 00:00:00', 'done',
           case when i <= 100000 then 'b3' end from n"
    )).await;
    let dead = numbers(kind, 200_000);
    bench.sql.run(&format!(
        "insert into events_dead (id, event_type, user_id, nas_id, params, event_date, reason) {dead}
         select 1000000 + i, 'user_rate_set', 1 + i % 50000, 1 + i % 40,
           '{{\"login\": \"user\", \"ip\": \"10.0.0.1\", \"rate_in\": \"1024\", \"rate_out\": \"1024\"}}', '2026-01-01 00:00:00', 'no such command' from n"
    )).await;
    let ready = numbers(kind, 50_000);
    bench.sql.run(&format!(
        "insert into events_stack (id, event_type, user_id, nas_id, params, class, event_date) {ready}
         select 1200000 + i, 'user_rate_set', 1 + i % 50000, 1 + i % 40, '{{\"login\": \"user\"}}', 3, '2026-01-01 00:00:00' from n"
    )).await;
    bench.sql.run("analyze").await;
}

async fn pause(bench: &mut Bench) {
    bench
        .sql
        .run("insert into nas_state (nas_id, paused_until) select id, '2999-01-01 00:00:00' from nas")
        .await;
}

async fn token(bench: &Bench) {
    let store = nas_event_daemon::store::connect(&bench.url).await.unwrap();
    let token = nas_event_daemon::store::Token {
        name: "bench".to_owned(),
        scope: "admin".to_owned(),
        hash: format!("{:x}", Sha256::digest(TOKEN)),
    };
    store.add_token(&token).await.unwrap();
}

/// One request and its whole answer.
async fn call(stream: &mut TcpStream, method: &str, path: &str, body: &str) -> String {
    let bearer = if path.starts_with("/api/") {
        format!("Authorization: Bearer {TOKEN}\r\n")
    } else {
        String::new()
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{bearer}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::with_capacity(1024);
    loop {
        let text = String::from_utf8_lossy(&got);
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "));
            if rest.len() >= length.unwrap().parse().unwrap() {
                return text.into_owned();
            }
        }
        assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0, "closed");
    }
}
