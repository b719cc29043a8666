//! What it is worth that scripts ride on the daemon's sessions: the same script with
//! `send_mikrotik_cmd` as it is, and connecting by itself.

use std::time::Duration;

use nas_event_daemon::sim::mikrotik::{Faults, Options, Sim};

use crate::daemon::{Bench, Kind};

/// A script that sends one command, in both ways, in turn.
pub async fn riding() {
    println!(
        "### Scripts that send one command\n\nSession scheme calling `send_mikrotik_cmd` once, SQLite; simulated MikroTik with 5 ms per sentence and 50 ms per login. Riding on the daemon's sessions, and connecting by itself (`env -u NED_ATTEMPT`).\n"
    );
    println!(
        "| forks | riding, events/s | logins | by itself, events/s | logins | ratio |\n|---|---|---|---|---|---|"
    );
    for (forks, n) in [(1_i64, 300_i64), (4, 600)] {
        let mut rates = Vec::new();
        let mut logins = Vec::new();
        for by_itself in ["", "env -u NED_ATTEMPT "] {
            let sim = Sim::start(Options {
                password: "bench".to_owned(),
                faults: Faults {
                    latency_ms: 5,
                    login_latency_ms: 50,
                    ..Faults::default()
                },
                ..Options::default()
            })
            .unwrap();
            let port = sim.addr().port();
            let mut bench = Bench::new(Kind::Sqlite, "Riding", 1, forks, 10_000).await;
            let dir = bench.dir.path().join("oss/core/Riding/bin");
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(
                dir.join("session"),
                format!(
                    "user_rate_set() {{ {by_itself}send_mikrotik_cmd --port {port} -s \"$nas_ip\" \"$telnet_login\" \"$telnet_password\" /ip/firewall/address-list/add list=l \"address=$ip\"; }}\n"
                ),
            )
            .unwrap();
            bench
                .sql
                .run(&format!(
                    "update nas set ip = '127.0.0.1', api_port = {port}; insert into nas_secret (nas_id, login, password) values (1, 'admin', 'bench')"
                ))
                .await;
            bench.insert(n, "user_rate_set", "i").await;
            let mut daemon = bench.start();
            let took = bench.drained(&mut daemon, Duration::from_secs(300)).await;
            daemon.stop();
            let done = bench
                .sql
                .number("select count(*) from events_done where result = 'done'")
                .await;
            assert_eq!(done, n);
            rates.push(n as f64 / took.as_secs_f64());
            logins.push(sim.seen().logins);
            sim.stop().await;
        }
        println!(
            "| {forks} | {:.0} | {} | {:.0} | {} | {:.2} |",
            rates[0],
            logins[0],
            rates[1],
            logins[1],
            rates[0] / rates[1]
        );
    }
    println!();
}
