//! What watches a daemon: the metrics as `promtool` and the shipped rules and dashboard read
//! them, the service manager's socket, the systemd unit.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::Value;

use crate::lab::daemon::{Lab, PATIENCE, own_port};
use crate::lab::db::Kind;
use crate::lab::journal::{gated, let_through, session};
use crate::lab::on_each_store;
use crate::lab::sim::{PASSWORD, Router};
use crate::{RECORD, command};

on_each_store!(
    the_metrics_are_what_the_rules_and_the_dashboard_ask_for,
    a_network_in_trouble_is_seen,
    settings_that_cannot_be_read_grow_old,
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

/// The value of a series.
fn value(text: &str, series: &str) -> Option<f64> {
    let of = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(of)
}

/// The names in the first column of the manual's table of metrics; those of the process are as
/// usual.
fn of_the_manual(page: &str) -> BTreeSet<String> {
    let (_, table) = page.split_once("\n| metric | labels |").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let cells = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    let names = cells.flat_map(|cell| cell.split('`').step_by(2));
    let bare = names.filter(|name| !name.is_empty() && *name != "process_*");
    bare.map(str::to_owned).collect()
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
                "nas_event_daemon_dispatch_attempts_total{nas_id=\"5\",nas=\"bras5\",driver=\"record\",result=\"done\"} 1",
            );
            let skipped =
                text.contains("nas_event_daemon_nas_served{nas_id=\"6\",nas=\"bras6\"} 0");
            (attempts && skipped).then_some(text)
        })
        .await;
    for line in [
        "nas_event_daemon_attempt_duration_seconds_bucket{nas_id=\"5\",nas=\"bras5\",driver=\"record\",le=\"0.3\"} 1",
        "nas_event_daemon_forks_configured{nas_id=\"5\",nas=\"bras5\"} 2",
        "nas_event_daemon_breaker_state{nas_id=\"5\",nas=\"bras5\",state=\"closed\"} 1",
        "nas_event_daemon_breaker_state{nas_id=\"5\",nas=\"bras5\",state=\"open\"} 0",
        "nas_event_daemon_nas_last_success_timestamp_seconds{nas_id=\"5\",nas=\"bras5\"}",
        "nas_event_daemon_nas_not_served{nas_id=\"6\",nas=\"bras6\",reason=\"scheme\"} 1",
        "nas_event_daemon_nas_not_served{nas_id=\"6\",nas=\"bras6\",reason=\"off\"} 0",
        "nas_event_daemon_reload_last_success_timestamp_seconds ",
        "nas_event_daemon_events_received_total{source=\"sql\",cmd=\"user_add\"} 1",
        "nas_event_daemon_accounts 2",
        "nas_event_daemon_loop_lag_seconds_count ",
        "nas_event_daemon_db_pool_connections{state=\"idle\"} ",
        "nas_event_daemon_build_info{version=\"",
        // What may go wrong is counted before it does.
        "nas_event_daemon_log_write_errors_total{kind=\"account\"} 0",
        "nas_event_daemon_turn_errors_total 0",
        "nas_event_daemon_expand_errors_total{reason=\"account\"} 0",
        "nas_event_daemon_attempt_errors_total{nas_id=\"7\",nas=\"bras7\",class=\"transport\"} 0",
        "nas_event_daemon_dead_events{nas_id=\"5\",nas=\"bras5\"} 0",
        "nas_event_daemon_queue_oldest_age_seconds{nas_id=\"5\",nas=\"bras5\"} 0",
        "nas_event_daemon_sessions_open{nas_id=\"7\",nas=\"bras7\",driver=\"mikrotik\"} 1",
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
    // Accounts, subscribers' addresses and credentials are no labels.
    for told in ["user=", &crate::lab::daemon::address(50), PASSWORD] {
        assert!(!text.contains(told), "{told} in\n{text}");
    }
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
    crate::metrics::judge(&text);
    crate::metrics::judge_labels(&text, &file("docs/operate.md"));
    // The judge bites.
    let wrong = "# TYPE ned_wait_ms counter\nned_wait_ms 1\n";
    peer("promtool", &["check", "metrics"], wrong, false).await;

    let known = names(&text);
    for name in [
        "packaging/prometheus/alerts.yml",
        "packaging/grafana/nas_event_daemon.json",
    ] {
        let asked = names(&file(name));
        assert!(asked.len() > 5, "{name}: {asked:?}");
        let unknown: Vec<_> = asked.difference(&known).collect();
        assert!(unknown.is_empty(), "{name} asks for {unknown:?}");
    }
    // The manual's table names each of them, and no other.
    let manual = of_the_manual(&file("docs/operate.md"));
    let served: BTreeSet<String> = known
        .iter()
        .map(|name| name.replace("nas_event_daemon_", ""))
        .collect();
    let apart: Vec<_> = served.symmetric_difference(&manual).collect();
    assert!(
        apart.is_empty(),
        "in the manual or served, not both: {apart:?}"
    );
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

/// One NAS that works, one that is paused, one that nobody answers for, one that says no, one that
/// is observed and one that is off.
async fn a_network_in_trouble_is_seen(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"100ms\"").await;
    let gate = lab.path("gate");
    lab.session("Slow", &session(&lab.path("journal"), &gated(&gate)));
    lab.session("No", "user_add() { exit 3; }\n");
    let (port, _nobody) = own_port();
    lab.nas(5, "Slow", 2, &[]).await;
    lab.nas(6, RECORD, 2, &[]).await;
    lab.nas(7, "Mikrotik-Simple", 2, &[("api_port", port.to_string())])
        .await;
    lab.secret(7, "ned", "servicemode").await;
    lab.nas(8, "No", 2, &[]).await;
    let observe = [("mode", "'observe'".to_owned())];
    lab.nas(9, RECORD, 2, &observe).await;
    lab.nas(10, RECORD, 2, &[("mode", "'off'".to_owned())])
        .await;
    for nas in 5..=8 {
        lab.accounts(nas, [nas * 10]).await;
    }
    lab.sql("insert into nas_state (nas_id, paused_until) values (6, '2999-01-01 00:00:00')")
        .await;
    let daemon = lab.start().await;
    lab.sql(
        "insert into events_stack_compact (cmd, user_id, created_at) values
           ('user_add', 50, '2020-01-01 00:00:00'), ('user_add', 60, '2020-01-01 00:00:00'),
           ('user_add', 70, '2020-01-01 00:00:00'), ('user_add', 80, '2020-01-01 00:00:00'),
           ('user_add', 4711, '2020-01-01 00:00:00')",
    )
    .await;
    let mut log = lab.stream("/api/v1/logs/daemon?follow=true").await;
    assert!(log.chunk().await.unwrap().is_some());
    // Lines, and series that are above 0.
    let shows = async |lines: &[&str], above: &[&str]| {
        let mut missing = String::new();
        let seen = crate::lab::daemon::wait_for(async || {
            let text = lab.get("/metrics").await;
            let not = |line: &&&str| !text.lines().any(|l| l.starts_with(**line));
            let low = |series: &&&str| value(&text, series).is_none_or(|n| n <= 0.0);
            let of = lines.iter().filter(not).chain(above.iter().filter(low));
            missing = format!("{:?}", of.collect::<Vec<_>>());
            (missing == "[]").then_some(text)
        });
        seen.await.unwrap_or_else(|| panic!("in vain: {missing}"))
    };
    let seen = [
        "nas_event_daemon_forks_busy{nas_id=\"5\",nas=\"bras5\"} 1",
        "nas_event_daemon_child_processes{kind=\"script\"} 1",
        "nas_event_daemon_queue_events{nas_id=\"5\",nas=\"bras5\",state=\"running\"} 1",
        "nas_event_daemon_queue_events{nas_id=\"6\",nas=\"bras6\",state=\"ready\"} 1",
        "nas_event_daemon_nas_paused{nas_id=\"6\",nas=\"bras6\"} 1",
        "nas_event_daemon_nas_paused{nas_id=\"5\",nas=\"bras5\"} 0",
        "nas_event_daemon_breaker_state{nas_id=\"7\",nas=\"bras7\",state=\"open\"} 1",
        "nas_event_daemon_breaker_state{nas_id=\"7\",nas=\"bras7\",state=\"closed\"} 0",
        "nas_event_daemon_dispatch_attempts_total{nas_id=\"8\",nas=\"bras8\",driver=\"script\",result=\"dead\"} 1",
        "nas_event_daemon_events_total{cmd=\"user_add\",result=\"dead\"} 1",
        "nas_event_daemon_dead_events{nas_id=\"8\",nas=\"bras8\"} 1",
        "nas_event_daemon_dead_events{nas_id=\"5\",nas=\"bras5\"} 0",
        "nas_event_daemon_unexpandable_events 1",
        "nas_event_daemon_events_received_total{source=\"sql\",cmd=\"user_add\"} 5",
        "nas_event_daemon_nas_observe{nas_id=\"9\",nas=\"bras9\"} 1",
        "nas_event_daemon_nas_observe{nas_id=\"5\",nas=\"bras5\"} 0",
        "nas_event_daemon_nas_served{nas_id=\"10\",nas=\"bras10\"} 0",
        "nas_event_daemon_nas_not_served{nas_id=\"10\",nas=\"bras10\",reason=\"off\"} 1",
        "nas_event_daemon_sse_clients 1",
    ];
    let again_and_again = [
        "nas_event_daemon_attempt_errors_total{nas_id=\"7\",nas=\"bras7\",class=\"transport\"}",
        "nas_event_daemon_attempt_errors_total{nas_id=\"8\",nas=\"bras8\",class=\"exit\"}",
        "nas_event_daemon_expand_errors_total{reason=\"account\"}",
    ];
    let text = shows(&seen, &again_and_again).await;
    let age = |nas: &str| {
        let name = "nas_event_daemon_queue_oldest_age_seconds";
        value(
            &text,
            &format!("{name}{{nas_id=\"{nas}\",nas=\"bras{nas}\"}}"),
        )
        .unwrap()
    };
    for nas in ["5", "6", "7"] {
        assert!(age(nas) > 1e8, "{nas}: {text}");
    }
    assert!(age("8") < 1.0, "{text}");
    // All is well again.
    drop(log);
    let_through(&gate, "all");
    lab.sql("update nas set mode = 'active' where id in (9, 10)")
        .await;
    lab.ned(&["nas", "resume", "6"]).await;
    let well = [
        "nas_event_daemon_forks_busy{nas_id=\"5\",nas=\"bras5\"} 0",
        "nas_event_daemon_child_processes{kind=\"script\"} 0",
        "nas_event_daemon_nas_paused{nas_id=\"6\",nas=\"bras6\"} 0",
        "nas_event_daemon_queue_oldest_age_seconds{nas_id=\"6\",nas=\"bras6\"} 0",
        "nas_event_daemon_dispatch_attempts_total{nas_id=\"5\",nas=\"bras5\",driver=\"script\",result=\"done\"} 1",
        "nas_event_daemon_nas_observe{nas_id=\"9\",nas=\"bras9\"} 0",
        "nas_event_daemon_nas_served{nas_id=\"10\",nas=\"bras10\"} 1",
        "nas_event_daemon_nas_not_served{nas_id=\"10\",nas=\"bras10\",reason=\"off\"} 0",
        "nas_event_daemon_sse_clients 0",
    ];
    shows(&well, &[]).await;
    daemon.stop().await;
}

/// The loop turns and the doors answer, but what is in force is old: only that tells of it.
async fn settings_that_cannot_be_read_grow_old(kind: Kind) {
    let lab = Lab::new(kind, "settings_interval = \"100ms\"").await;
    lab.nas(5, RECORD, 2, &[]).await;
    let daemon = lab.start().await;
    let read_at = async || {
        let text = lab.get("/metrics").await;
        let name = "nas_event_daemon_reload_last_success_timestamp_seconds";
        value(&text, name).unwrap()
    };
    let read_well = async || {
        let text = lab.get("/metrics").await;
        value(&text, "nas_event_daemon_config_last_reload_successful").unwrap() > 0.0
    };
    let newer_than = async |old: f64| {
        let what = "the settings are read again";
        lab.until(what, async || (read_at().await > old).then_some(()))
            .await;
    };
    newer_than(read_at().await).await;
    assert!(read_well().await);
    let log = lab.path("log/nas_event_daemon.log");
    let refused = |times: usize| {
        let text = std::fs::read_to_string(&log).unwrap();
        let told = text.matches("NAS settings cannot be read").count();
        (told >= times).then_some(told)
    };
    lab.sql("alter table nas rename to nas_away").await;
    let told = lab.until("a refusal", async || refused(1)).await;
    let old = read_at().await;
    lab.until("three more", async || refused(told + 3)).await;
    assert!((read_at().await - old).abs() < f64::EPSILON, "it stays");
    assert!(!read_well().await);
    assert!(lab.is_up().await, "a restart would not help");
    lab.sql("alter table nas_away rename to nas").await;
    newer_than(old).await;
    assert!(read_well().await);
    daemon.stop().await;
}

#[tokio::test]
async fn every_panel_of_the_dashboard_asks_what_prometheus_understands() {
    let board: Value =
        serde_json::from_str(&file("packaging/grafana/nas_event_daemon.json")).unwrap();
    let mut asked = Vec::new();
    for panel in board["panels"].as_array().unwrap() {
        assert!(panel["description"].as_str().unwrap().len() > 10, "{panel}");
        let targets = panel["targets"].as_array().into_iter().flatten();
        asked.extend(targets.map(|target| target["expr"].as_str().unwrap()));
    }
    assert!(asked.len() > 25, "{asked:?}");
    // Grafana's variables stand within quotes, where any text may stand; as rules that record,
    // the judge of rules reads them.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("panels.yml");
    let judged = async |asked: &[&str], well: bool| {
        let mut rules = "groups:\n- name: panels\n  rules:\n".to_owned();
        for (number, expr) in asked.iter().enumerate() {
            let expr = Value::from(*expr);
            rules.push_str(&format!("  - record: panel:{number}\n    expr: {expr}\n"));
        }
        std::fs::write(&path, rules).unwrap();
        let args = ["check", "rules", path.to_str().unwrap()];
        peer("promtool", &args, "", well).await
    };
    let said = judged(&asked, true).await;
    let found = format!("SUCCESS: {} rules found", asked.len());
    assert!(said.contains(&found), "{said}");
    // A bracket that is missing in any of them is found.
    let at = asked.iter().rposition(|expr| expr.ends_with(')')).unwrap();
    let broken = &asked[at][..asked[at].len() - 1];
    asked[at] = broken;
    let said = judged(&asked, false).await;
    assert!(said.contains("could not parse expression"), "{said}");
}

#[tokio::test]
async fn each_alarm_fires_on_what_it_is_made_for() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus");
    let of = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    peer("promtool", &["check", "rules", &of("alerts.yml")], "", true).await;
    let test = of("alerts_test.yml");
    peer("promtool", &["test", "rules", &test], "", true).await;
    let (rules, tests) = (
        file("packaging/prometheus/alerts.yml"),
        file("packaging/prometheus/alerts_test.yml"),
    );
    let alarms: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alarms.len() > 15, "{alarms:?}");
    for alarm in &alarms {
        let fires = format!("alertname: {alarm}\n        exp_alerts:");
        assert!(tests.contains(&fires), "{alarm} is not seen to fire");
        let silent = format!("alertname: {alarm} }}");
        assert!(tests.contains(&silent), "{alarm} is not seen to be silent");
    }
    // A rule that is gone, or that one paused NAS mutes for all, is noticed.
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("alerts_test.yml"), &tests).unwrap();
    let test = other.path().join("alerts_test.yml");
    for (from, to) in [
        (
            "queue_oldest_age_seconds > 600",
            "queue_oldest_age_seconds > 1e9",
        ),
        (
            "unless on (instance, nas_id) nas_event_daemon_nas_paused == 1",
            "unless on (instance) max by (instance) (nas_event_daemon_nas_paused) == 1",
        ),
    ] {
        assert!(rules.contains(from), "{from}");
        std::fs::write(other.path().join("alerts.yml"), rules.replace(from, to)).unwrap();
        let args = ["test", "rules", test.to_str().unwrap()];
        let said = peer("promtool", &args, "", false).await;
        assert!(said.contains("NasEventQueueStuck"), "{said}");
    }
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
