//! A daemon that stands says so: `/healthz` to the monitoring, silence to the service manager.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use nas_event_daemon::clock;
use nas_event_daemon::daemon::notify::Manager;
use nas_event_daemon::dispatch::status::Status;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::fake::{Answer, House, LONG, house};

async fn healthz(h: &House) -> Answer {
    let request = Request::get("/healthz").body(Body::empty()).unwrap();
    h.send(request).await
}

#[tokio::test]
async fn healthz_says_that_the_parent_loop_stands() {
    let h = house(0);
    assert_eq!(healthz(&h).await.status, 200);
    // The settings are read once a minute: three turns and ten seconds are 190 s.
    let now = clock::tick_ms();
    h.parent_tick.store(now - 150_000, Ordering::SeqCst);
    assert_eq!(healthz(&h).await.status, 200, "one lost turn is no death");
    h.parent_tick.store(now - 190_000, Ordering::SeqCst);
    let stands = healthz(&h).await;
    assert_eq!(stands.status, 503, "{}", stands.text);
    let said = stands.json();
    assert_eq!(said["error"]["code"], "parent_loop_stands");
    assert_eq!(said["error"]["number"], "NED-0900");
    assert!(
        said["error"]["message"]
            .as_str()
            .unwrap()
            .ends_with("the limit is 190000 ms"),
        "{said}"
    );
    // What is asked for by `status` tells the same.
    let status = h.with("viewer", "GET", "/api/v1/status", "").await.json();
    assert!(status["parent_turned_ms_ago"].as_u64().unwrap() >= 190_000);
    h.parent_tick.store(clock::tick_ms(), Ordering::SeqCst);
    assert_eq!(healthz(&h).await.status, 200);
}

/// The service manager's end of the socket.
struct Listening(UnixDatagram);

impl Listening {
    async fn next(&self) -> String {
        let mut bytes = [0; 256];
        let read = tokio::time::timeout(LONG, self.0.recv(&mut bytes)).await;
        let length = read.expect("the manager hears nothing").unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    /// Waits for a sign of life.
    async fn alive(&self) {
        while self.next().await != "WATCHDOG=1" {}
    }

    /// Waits until the line of status has been renewed five times without a sign of life between.
    async fn silent(&self) {
        let mut lines = 0;
        while lines < 5 {
            let said = self.next().await;
            lines = if said == "WATCHDOG=1" { 0 } else { lines + 1 };
        }
    }
}

#[tokio::test]
async fn the_watchdog_falls_silent_while_nothing_moves() {
    let h = house(0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = Listening(UnixDatagram::bind(&path).unwrap());
    // Told twice within its time; the database has a third of it.
    let told = Manager::new(&path.into_os_string(), Some(Duration::from_millis(60))).unwrap();
    let (_status, status) = watch::channel(Status::default());
    let turned = Arc::new(AtomicU64::new(clock::tick_ms()));
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let store = Arc::clone(&h.fake) as Arc<dyn nas_event_daemon::store::Store>;
    // The test itself may stand for a while on a busy machine.
    let limit_ms = 10 * u64::try_from(LONG.as_millis()).unwrap();
    tasks.spawn(told.follow(store, status, Arc::clone(&turned), limit_ms, stop.clone()));
    assert_eq!(manager.next().await, "READY=1");
    manager.alive().await;
    // A database that never answers, and one that refuses.
    for switch in [&h.fake.stuck, &h.fake.broken] {
        switch.store(true, Ordering::SeqCst);
        manager.silent().await;
        switch.store(false, Ordering::SeqCst);
        manager.alive().await;
    }
    // The database answers, but the settings loop stands.
    turned.store(clock::tick_ms() - limit_ms, Ordering::SeqCst);
    manager.silent().await;
    turned.store(clock::tick_ms(), Ordering::SeqCst);
    manager.alive().await;
    stop.cancel();
    while !manager.next().await.starts_with("STOPPING=1") {}
    tasks.join_next().await.unwrap().unwrap();
}
