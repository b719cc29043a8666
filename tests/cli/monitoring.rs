//! What watches a daemon: the metrics as `promtool` and the shipped rules and dashboard read
//! them, the service manager's socket, the systemd unit.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::Value;

use crate::lab::daemon::{Lab, PATIENCE};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::Router;
use crate::{RECORD, command};

on_each_store!(
    the_metrics_are_what_the_rules_and_the_dashboard_ask_for,
    the_service_manager_hears_of_progress,
);

/// Runs a peer and gives its whole output; it must end well if `well`.
async fn peer(program: &str, args: &[&str], input: &str, well: bool) -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "an independent judge is a program of its own"
    )]
    let mut command = tokio::process::Command::new(program);
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|e| panic!("{program} is missing (scripts/test --install): {e}"));
    let mut pipe = child.stdin.take().unwrap();
    let _ = tokio::io::AsyncWriteExt::write_all(&mut pipe, input.as_bytes()).await;
    drop(pipe);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("the peer does not end")
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), well, "{program} {args:?}: {text}");
    text.into_owned()
}

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(path).unwrap()
}

/// Every name of ours in a text, without the suffixes of histograms.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    let ours = words.filter(|w| w.starts_with("nas_event_daemon_"));
    ours.map(|w| {
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|s| w.strip_suffix(s));
        base.unwrap_or(w).to_owned()
    })
    .collect()
}

async fn the_metrics_are_what_the_rules_and_the_dashboard_ask_for(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, "No-Such-Scheme", 2, &[]).await;
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 7, "Mikrotik-Simple", 2).await;
    lab.accounts(5, [50]).await;
    lab.accounts(7, [70]).await;
    let daemon = lab.start().await;
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_add', 50), ('user_redirect', 70)")
        .await;
    lab.drained().await;
    let asked = async |path: &str| {
        let answer = lab.client.get(lab.url(path)).send().await.unwrap();
        answer.text().await.unwrap()
    };
    let ask = async || asked("/metrics").await;
    ask().await;
    let text = lab
        .until("both NASes in the metrics", async || {
            let text = ask().await;
            let attempts = text.contains(
                "nas_event_daemon_dispatch_attempts_total{nas_id=\"5\",result=\"done\"} 1",
            );
            let skipped = text.contains("nas_event_daemon_nas_served{nas_id=\"6\",nas=\"\"} 0");
            (attempts && skipped).then_some(text)
        })
        .await;
    for line in [
        "nas_event_daemon_attempt_duration_seconds_bucket{nas_id=\"5\",le=\"0.3\"} 1",
        "nas_event_daemon_forks_configured{nas_id=\"5\",nas=\"bras5\"} 2",
        "nas_event_daemon_breaker_state{nas_id=\"5\",nas=\"bras5\",state=\"closed\"} 1",
        "nas_event_daemon_breaker_state{nas_id=\"5\",nas=\"bras5\",state=\"open\"} 0",
        "nas_event_daemon_nas_last_success_timestamp_seconds{nas_id=\"5\"}",
        "nas_event_daemon_settings_age_seconds ",
        "nas_event_daemon_claim_batch_events_count",
        "nas_event_daemon_expand_duration_seconds_count",
        "nas_event_daemon_sse_clients 0",
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "process_cpu_seconds_total ",
        "nas_event_daemon_events_total{cmd=\"user_add\",result=\"done\"} 1",
        "nas_event_daemon_event_latency_seconds_count{result=\"done\"} 2",
        "nas_event_daemon_event_latency_seconds_bucket{result=\"done\",le=\"86400\"} 2",
        "nas_event_daemon_connect_duration_seconds_count{driver=\"mikrotik\"} 1",
        "nas_event_daemon_connect_duration_seconds_bucket{driver=\"mikrotik\",le=\"0.3\"} ",
        "nas_event_daemon_db_query_duration_seconds_count{op=\"turn\"} ",
        "nas_event_daemon_db_query_duration_seconds_count{op=\"expand\"} ",
        "nas_event_daemon_db_query_duration_seconds_count{op=\"settings\"} ",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    // Accounts and subscribers' addresses are no labels.
    assert!(!text.contains("user=") && !text.contains(&crate::lab::daemon::address(50)));
    peer("promtool", &["check", "metrics"], &text, true).await;
    let detailed = asked("/metrics/detailed?nas=5,6").await;
    peer("promtool", &["check", "metrics"], &detailed, true).await;
    assert!(
        detailed.contains("nas_event_daemon_forks_configured{nas_id=\"5\",nas=\"bras5\"} 2")
            && !detailed.contains("nas_id=\"7\"")
            && !detailed.contains("process_"),
        "{detailed}"
    );
    let none = asked("/metrics/detailed?nas=99").await;
    assert!(none.contains("no numbers of these NASes"), "{none}");
    assert!(asked("/metrics/detailed").await.contains("nas_id=\"7\""));
    // The judge bites.
    let wrong = "# TYPE ned_wait_ms counter\nned_wait_ms 1\n";
    peer("promtool", &["check", "metrics"], wrong, false).await;

    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus/alerts.yml");
    peer(
        "promtool",
        &["check", "rules", rules.to_str().unwrap()],
        "",
        true,
    )
    .await;
    // Some counters are there only once something went wrong.
    let mut known = names(&text);
    known.insert("nas_event_daemon_log_write_errors_total".to_owned());
    known.insert("nas_event_daemon_turn_errors_total".to_owned());
    known.insert("nas_event_daemon_attempt_errors_total".to_owned());
    known.insert("nas_event_daemon_events_received_total".to_owned());
    for name in [
        "packaging/prometheus/alerts.yml",
        "packaging/grafana/nas_event_daemon.json",
    ] {
        let asked = names(&file(name));
        assert!(asked.len() > 5, "{name}: {asked:?}");
        let unknown: Vec<_> = asked.difference(&known).collect();
        assert!(unknown.is_empty(), "{name} asks for {unknown:?}");
    }
    let board: Value =
        serde_json::from_str(&file("packaging/grafana/nas_event_daemon.json")).unwrap();
    for panel in board["panels"].as_array().unwrap() {
        assert!(panel["description"].as_str().unwrap().len() > 10, "{panel}");
    }
    daemon.stop().await;
    // Of more NASes than that there are sums.
    lab.configure("", "[metrics]\nmax_nas = 2\n");
    let daemon = lab.start().await;
    let sums = lab
        .until("the sums of three NASes", async || {
            let text = ask().await;
            let forks = text.contains("nas_event_daemon_forks_configured 4\n");
            let served = "nas_event_daemon_nas_served{nas_id=";
            let each = text.lines().filter(|line| line.starts_with(served));
            (forks && each.count() == 3).then_some(text)
        })
        .await;
    assert!(!sums.contains("forks_configured{"), "{sums}");
    peer("promtool", &["check", "metrics"], &sums, true).await;
    assert!(
        asked("/metrics/detailed?nas=7")
            .await
            .contains("nas_id=\"7\"")
    );
    daemon.stop().await;
}

async fn the_service_manager_hears_of_progress(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    let path = lab.path("notify");
    let manager = tokio::net::UnixDatagram::bind(&path).unwrap();
    let mut daemon = command("nas_event_daemon", &["run"]);
    daemon
        .env("NED_CONFIG", lab.path("ned.toml"))
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000")
        .current_dir(lab.root())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = daemon.spawn().unwrap();
    let heard = async || {
        let mut bytes = [0; 512];
        let received = tokio::time::timeout(PATIENCE, manager.recv(&mut bytes)).await;
        let length = received.expect("the manager hears nothing").unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert_eq!(heard().await, "READY=1");
    let (mut signs, mut status) = (0, false);
    while signs < 3 || !status {
        match heard().await {
            text if text == "WATCHDOG=1" => signs += 1,
            text if text.starts_with("STATUS=") => {
                status |= text.contains("1 NAS, 0 waiting, 0 running")
            }
            other => panic!("{other}"),
        }
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    while !heard().await.starts_with("STOPPING=1") {}
    let status = tokio::time::timeout(PATIENCE, child.wait()).await;
    assert!(status.expect("the daemon does not end").unwrap().success());
}

#[tokio::test]
async fn the_unit_is_hardened() {
    // The judge asks for a file under its real name, and for nothing that is installed.
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("nas_event_daemon.service");
    std::fs::write(&unit, file("packaging/systemd/nas_event_daemon.service")).unwrap();
    let judged = |threshold: &'static str| {
        let unit = unit.to_str().unwrap().to_owned();
        async move {
            let args = [
                "security",
                "--offline=true",
                "--no-pager",
                threshold,
                unit.as_str(),
            ];
            peer("systemd-analyze", &args, "", threshold.ends_with("25")).await
        }
    };
    let text = judged("--threshold=25").await;
    assert!(text.contains("Overall exposure level"), "{text}");
    judged("--threshold=1").await;
}
