//! Half of the NASes of every driver are dead, each in one of three ways, over real sockets: the
//! healthy half is served meanwhile as if they were not there.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::fakes::{Driver, Fakes, row};
use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::journal;
use crate::lab::sim::{LOGIN, PASSWORD, Router};

/// Dead NASes of each driver, and as many healthy ones.
const EACH: i64 = 20;
/// Accounts of a NAS, and its forks: one for each.
const ACCOUNTS: i64 = 2;
const FORKS: i64 = ACCOUNTS;
/// First NAS of the dead and of the healthy of a driver; the drivers are 100 apart.
const DEAD: i64 = 1_000;
const HEALTHY: i64 = 2_000;
/// First NAS of the routers over MikroTik's API among them.
const ROUTERS: i64 = 400;
/// Between two bytes of a device that drips.
const DRIP: Duration = Duration::from_millis(100);

/// In which way a NAS is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It takes the connection, or the packet, and never says a word.
    BlackHole,
    /// It ends every connection with a reset; a packet is answered with what is no answer.
    Reset,
    /// It says a byte now and then, or answers with what is no answer.
    Drip,
}

impl Manner {
    fn of(n: i64) -> Self {
        match n % 3 {
            0 => Self::BlackHole,
            1 => Self::Reset,
            _ => Self::Drip,
        }
    }
}

/// A dead device; it ends with `tasks`.
struct Dead {
    nas: i64,
    port: u16,
    manner: Manner,
    /// Connections or packets so far.
    tried: Arc<AtomicUsize>,
}

impl Dead {
    async fn tcp(nas: i64, manner: Manner, tasks: &mut JoinSet<()>) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tried = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tried);
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                open.spawn(answer(stream, manner));
            }
        });
        Self {
            nas,
            port,
            manner,
            tried,
        }
    }

    async fn udp(nas: i64, manner: Manner, tasks: &mut JoinSet<()>) -> Self {
        let socket = UdpSocket::bind(loopback()).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let tried = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tried);
        tasks.spawn(async move {
            let mut packet = [0; 4096];
            loop {
                // A peer that is gone is told as an error of the next call.
                let Ok((n, from)) = socket.recv_from(&mut packet).await else {
                    continue;
                };
                count.fetch_add(1, Ordering::SeqCst);
                match manner {
                    Manner::BlackHole => {}
                    // Nothing but the first byte of an answer, and an answer that is forged.
                    Manner::Reset | Manner::Drip => {
                        packet[0] = 44;
                        let _ = socket.send_to(&packet[..1], from).await;
                        let _ = socket.send_to(&packet[..n], from).await;
                    }
                }
            }
        });
        Self {
            nas,
            port,
            manner,
            tried,
        }
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn answer(mut stream: TcpStream, manner: Manner) {
    match manner {
        Manner::BlackHole => std::future::pending().await,
        Manner::Reset => {
            stream.set_zero_linger().unwrap();
        }
        Manner::Drip => {
            while stream.write_all(b"S").await.is_ok() {
                tokio::time::sleep(DRIP).await;
            }
        }
    }
}

fn users(nas: i64) -> Vec<i64> {
    (nas * 10..nas * 10 + ACCOUNTS).collect()
}

async fn router(lab: &Lab, nas: i64, port: u16) {
    lab.nas(nas, "Queue", FORKS, &[("api_port", port.to_string())])
        .await;
    lab.secret(nas, LOGIN, PASSWORD).await;
}

/// One event for each account of the NASes from `first` on.
async fn load(lab: &Lab, first: i64) {
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id)
         select 'user_redirect', id from users where nas_id >= {first} and nas_id < {}",
        first + 1_000
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_nases_of_every_driver_delay_no_healthy_one() {
    let lab = Lab::new(Kind::Sqlite, "retry_base = \"1s\"").await;
    let mut tasks = JoinSet::new();
    let mut dead = Vec::new();
    // The four that came later; of each, one NAS more than is counted.
    let fakes = Fakes::start(&lab, FORKS, |driver| users(driver.nas())).await;
    let mut online = Vec::new();
    let mut http = BTreeSet::new();
    for (at, driver) in (0..).zip(Driver::ALL) {
        for n in 0..EACH {
            let nas = DEAD + at * 100 + n;
            let manner = Manner::of(n);
            let device = if driver == Driver::Radius {
                Dead::udp(nas, manner, &mut tasks).await
            } else {
                Dead::tcp(nas, manner, &mut tasks).await
            };
            if driver == Driver::Http {
                http.insert(nas);
            }
            row(&lab, driver, nas, FORKS, device.port).await;
            lab.accounts(nas, users(nas)).await;
            dead.push(device);
            let nas = HEALTHY + at * 100 + n;
            row(&lab, driver, nas, FORKS, fakes.port(driver)).await;
            lab.accounts(nas, users(nas)).await;
            online.extend(users(nas));
        }
    }
    let online = online
        .iter()
        .map(|user| json!({"User-Name": format!("login{user}")}));
    let online = json!({"sessions": online.collect::<Vec<_>>()});
    fakes.radius.load(&online).unwrap();
    lab.native("Queue", &journal::native());
    let healthy = Router::start(lab.root(), "router", Faults::default());
    for n in 0..EACH {
        let device = Dead::tcp(DEAD + ROUTERS + n, Manner::of(n), &mut tasks).await;
        router(&lab, device.nas, device.port).await;
        lab.accounts(device.nas, users(device.nas)).await;
        dead.push(device);
        let nas = HEALTHY + ROUTERS + n;
        router(&lab, nas, healthy.sim.addr().port()).await;
        lab.accounts(nas, users(nas)).await;
    }
    // Longer than this test may take: what is sent to a silent web server still runs at its end.
    lab.sql(&format!(
        "update nas set timeout_ms = 600000 where id >= {DEAD} and id < {HEALTHY}"
    ))
    .await;
    let _daemon = lab.start().await;
    load(&lab, DEAD).await;
    lab.until("every dead NAS has been tried", async || {
        let untried = |d: &&Dead| d.tried.load(Ordering::SeqCst) == 0;
        (dead.iter().filter(untried).count() == 0).then_some(())
    })
    .await;
    load(&lab, HEALTHY).await;
    let all = 5 * EACH * ACCOUNTS;
    let mut last = 0;
    lab.until("the healthy ones are all done", async || {
        last = lab.number(&done(HEALTHY)).await;
        (last == all).then_some(())
    })
    .await;
    // Each at its first try, while all of the dead still wait.
    let tries = format!("{} and attempts = 1 and result = 'done'", done(HEALTHY));
    assert_eq!(lab.number(&tries).await, all);
    assert_eq!(lab.number(&done(DEAD)).await, 0);
    assert_eq!(lab.number("select count(*) from events_dead").await, 0);
    // What was sent to a web server that is silent: its first attempts still run.
    let holes = dead.iter().filter(|d| d.manner == Manner::BlackHole);
    let silent: Vec<String> = holes
        .filter(|d| http.contains(&d.nas))
        .map(|d| d.nas.to_string())
        .collect();
    let running = format!(
        "select count(*) from events_stack
         where state = 'running' and possible_duplicate = 0 and nas_id in ({})",
        silent.join(", ")
    );
    let each = i64::try_from(silent.len()).unwrap() * FORKS;
    assert_eq!(lab.number(&running).await, each);
}

fn done(first: i64) -> String {
    format!(
        "select count(*) from events_done where nas_id >= {first} and nas_id < {}",
        first + 1_000
    )
}
