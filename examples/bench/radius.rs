//! CoA against FreeRADIUS: `radclient -p 32`, our driver alone with 32 at once, and the whole
//! daemon, in turn against the same server.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use nas_event_daemon::driver::radius::dictionary::Dictionary;
use nas_event_daemon::driver::radius::exchange::Manner;
use nas_event_daemon::driver::radius::{Kind as Ask, Radius, Request, Target};

use crate::daemon::{Bench, Kind};

const SECRET: &str = "bench";
/// As many as `radclient -p 32` has under way.
const AT_ONCE: usize = 32;

struct Server {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let d = dir.path().display();
        let config = format!(
            "name = bench\nraddbdir = {d}\nlogdir = {d}\nrun_dir = {d}\nlibdir = /usr/lib/freeradius\n\
             max_request_time = 30\ncleanup_delay = 2\nmax_requests = 65536\nhostname_lookups = no\n\
             security {{\n max_attributes = 200\n reject_delay = 0\n status_server = no\n}}\n\
             thread pool {{\n start_servers = 2\n max_servers = 4\n min_spare_servers = 1\n max_spare_servers = 4\n max_requests_per_server = 0\n}}\n\
             modules {{\n always ok {{\n rcode = ok\n }}\n}}\n\
             client t {{\n ipaddr = 127.0.0.1\n secret = {SECRET}\n require_message_authenticator = yes\n}}\n\
             server coa {{\n listen {{\n type = coa\n ipaddr = 127.0.0.1\n port = {port}\n }}\n recv-coa {{\n ok\n }}\n send-coa {{\n ok\n }}\n}}\n"
        );
        std::fs::write(dir.path().join("radiusd.conf"), config).unwrap();
        std::fs::write(
            dir.path().join("dictionary"),
            "$INCLUDE /usr/share/freeradius/dictionary\n",
        )
        .unwrap();
        let log = dir.path().join("radius.log");
        let child = Command::new("freeradius")
            .args(["-f", "-d"])
            .arg(dir.path())
            .arg("-l")
            .arg(&log)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("freeradius (scripts/test --install)");
        let server = Self { child, dir, port };
        for _ in 0..1_000 {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("Ready to process requests") {
                return server;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!(
            "FreeRADIUS does not start: {:?}",
            std::fs::read_to_string(log)
        );
    }

    /// Requests per second of `radclient -p 32`.
    fn radclient(&self, n: u64) -> f64 {
        let mut text = String::new();
        for i in 1..=n {
            text.push_str(&format!(
                "Message-Authenticator = 0x00\nUser-Name = \"user{i}\"\nMikrotik-Rate-Limit = \"2048k/2048k\"\nMikrotik-Address-List = \"crb_auth\"\n\n"
            ));
        }
        let file = self.dir.path().join("requests");
        std::fs::write(&file, text).unwrap();
        let began = Instant::now();
        let output = Command::new("radclient")
            .args(["-q", "-p", "32", "-f"])
            .arg(&file)
            .arg(format!("127.0.0.1:{}", self.port))
            .args(["coa", SECRET])
            .output()
            .expect("radclient (scripts/test --install)");
        let rate = n as f64 / began.elapsed().as_secs_f64();
        assert!(output.status.success(), "{output:?}");
        rate
    }

    /// The same by our driver.
    async fn driver(&self, n: u64) -> f64 {
        let all = Dictionary::shipped();
        let radius = Arc::new(Radius::new(Target {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            manner: Manner {
                secret: SECRET.as_bytes().to_vec(),
                message_authenticator: true,
                require_message_authenticator: false,
                event_timestamp: true,
            },
        }));
        let began = Instant::now();
        let mut asked = futures_util::stream::iter(1..=n)
            .map(|i| {
                let (radius, all) = (Arc::clone(&radius), Arc::clone(&all));
                async move {
                    let pairs = [
                        ("User-Name", format!("user{i}")),
                        ("Mikrotik-Rate-Limit", "2048k/2048k".to_owned()),
                        ("Mikrotik-Address-List", "crb_auth".to_owned()),
                    ]
                    .map(|(name, text)| (name.to_owned(), text));
                    let request = Request::new(Ask::Coa, &pairs, &all).unwrap();
                    radius.talk(&request, &all, Duration::from_secs(30)).await
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some(told) = asked.next().await {
            assert_eq!(told.failure, None);
        }
        n as f64 / began.elapsed().as_secs_f64()
    }

    /// The same by events: expansion, order, history and logs included.
    async fn events(&self, n: i64) -> f64 {
        let mut bench = Bench::new(Kind::Sqlite, "Mikrotik-CoA", 1, AT_ONCE as i64, n).await;
        bench
            .sql
            .run(&format!(
                "update nas set ip = '127.0.0.1', coa_port = {}",
                self.port
            ))
            .await;
        bench
            .sql
            .run(&format!(
                "insert into nas_secret (nas_id, coa_secret) values (1, '{SECRET}')"
            ))
            .await;
        bench.warm(n).await;
        bench.insert(n, "user_rate_set", "i").await;
        let mut daemon = bench.start();
        let took = bench.drained(&mut daemon, Duration::from_secs(300)).await;
        let done = bench
            .sql
            .number("select count(*) from events_done where result = 'done'")
            .await;
        assert_eq!(done, n);
        daemon.stop();
        n as f64 / took.as_secs_f64()
    }
}

/// Three rounds, the middle one of each counts.
pub async fn radius() {
    let n = crate::parts::setting("NED_BENCH_EVENTS", 20_000);
    println!(
        "{n} CoA-Requests of three attributes and a Message-Authenticator to FreeRADIUS on the same machine, {AT_ONCE} at once, in turn, the middle one of three rounds. The daemon: one NAS, {AT_ONCE} forks, SQLite, from the start of the process to empty stacks.\n"
    );
    let server = Server::start();
    server.radclient(1_000);
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..3 {
        rates[0].push(server.radclient(n));
        rates[1].push(server.driver(n).await);
        rates[2].push(server.events(n as i64).await);
    }
    let [radclient, driver, events] = rates.map(|mut r| {
        r.sort_by(f64::total_cmp);
        r[1]
    });
    println!("| what | requests/s | ÷ radclient |\n|---|---|---|");
    for (what, rate) in [
        ("`radclient -p 32`", radclient),
        ("our driver", driver),
        ("the daemon, events", events),
    ] {
        println!("| {what} | {rate:.0} | {:.2} |", rate / radclient);
    }
    println!();
}
