//! The doors: one bulk call, and single posts over kept connections.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Bench, Kind};
use crate::parts::{kinds, setting};

const TOKEN: &str = "token-of-the-bench";
/// Events of the bulk call.
const BULK: i64 = 100_000;
/// What it may take.
const BULK_MAX: Duration = Duration::from_secs(5);
/// Single posts a second on PostgreSQL, at least.
const POSTS_MIN: f64 = 5_000.0;
/// Kept connections that post at once.
const POSTERS: usize = 64;

/// Bulk and single posts; fails where the bulk call takes longer than [`BULK_MAX`], or PostgreSQL takes
/// fewer single posts than [`POSTS_MIN`]. The NASes are
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
    let mut on_postgres = None;
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
        if kind == Kind::Postgres {
            on_postgres = Some(posts);
        }
    }
    println!();
    assert!(longest < BULK_MAX, "a bulk call took {longest:?}");
    if let Some(posts) = on_postgres {
        assert!(posts >= POSTS_MIN, "{posts:.0} posts a second");
    }
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

pub async fn pause(bench: &mut Bench) {
    bench
        .sql
        .run("insert into nas_state (nas_id, paused_until) select id, '2999-01-01 00:00:00' from nas")
        .await;
}

pub async fn token(bench: &Bench) {
    let store = nas_event_daemon::store::connect(&bench.url).await.unwrap();
    let token = nas_event_daemon::store::Token {
        name: "bench".to_owned(),
        scope: "admin".to_owned(),
        hash: format!("{:x}", Sha256::digest(TOKEN)),
    };
    store.add_token(&token).await.unwrap();
}

/// One request and its whole answer.
pub async fn call(stream: &mut TcpStream, method: &str, path: &str, body: &str) -> String {
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
