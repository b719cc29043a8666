//! The smaller verbs: configuration, health, schemes, logs, tokens, the simulator.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::PASSWORD;
use crate::{RECORD, command, finished, named, ned};

on_each_store!(
    the_configuration_is_checked_and_shown,
    health_is_told_by_the_exit_code,
    a_scheme_is_rendered_with_an_accounts_variables,
    a_token_opens_the_api,
    looks_without_a_daemon_say_so,
);

async fn the_configuration_is_checked_and_shown(kind: Kind) {
    let lab = Lab::new(kind, "max_tries = 4").await;
    lab.nas(5, RECORD, 2, &[]).await;
    let file = lab.path("ned.toml").display().to_string();
    let said = ned(&lab, &["config", "check"]).await.fine();
    assert!(said.starts_with(&format!("{file}: ok\n")), "{said}");
    assert!(said.ends_with("NAS 5 127.0.0.1: ok\n"), "{said}");
    lab.nas(6, "No-Such-Scheme", 2, &[]).await;
    let said = ned(&lab, &["config", "check"]).await;
    said.failed(3, &["1 NASes would be skipped"]);
    assert!(
        said.out
            .contains("NAS 6 127.0.0.1: skipped: scheme directory missing"),
        "{said:?}"
    );
    // What a service manager asks before it starts the daemon is the same, and starts none.
    let asked = ned(&lab, &["run", "--check-config"]).await;
    assert_eq!((asked.code, &asked.out), (said.code, &said.out));
    assert!(!lab.path("run/ctl.sock").exists());
    let shown = ned(&lab, &["config", "show"]).await.fine();
    assert!(shown.contains("max_tries = 4\n"), "{shown}");
    assert!(shown.contains("cross_nas_wait = \"30s\"\n"), "{shown}");
    let origin = ned(&lab, &["config", "show", "--origin"]).await.fine();
    let of = |line: String| assert!(origin.lines().any(|l| l == line), "{line}: {origin}");
    of(format!("dispatch.max_tries\t4\t{file}"));
    of("dispatch.cross_nas_wait\t30s\tdefault".to_owned());
    let again = lab.path("again.toml");
    std::fs::write(&again, &shown).unwrap();
    let again = again.display().to_string();
    assert_eq!(
        ned(&lab, &["--config", &again, "config", "show"])
            .await
            .fine(),
        shown
    );
}

async fn health_is_told_by_the_exit_code(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    ned(&lab, &["health"])
        .await
        .failed(4, &["no daemon listens on", "hint:"]);
    ned(&lab, &["health", "ready"])
        .await
        .failed(4, &["no daemon listens on"]);
    let daemon = lab.start().await;
    assert!(ned(&lab, &["health"]).await.fine().starts_with("ok "));
    let ready = ["-o", "json", "health", "ready"];
    assert_eq!(ned(&lab, &ready).await.json()["well"], true);
    // By TCP, from a machine that has no control socket.
    let text = std::fs::read_to_string(lab.path("ned.toml")).unwrap();
    let elsewhere = lab.path("elsewhere.toml");
    let run = lab.path("run").display().to_string();
    std::fs::write(&elsewhere, text.replace(&run, "/nonexistent")).unwrap();
    let elsewhere = elsewhere.display().to_string();
    let said = ned(&lab, &["--config", &elsewhere, "health"]).await.fine();
    assert!(said.starts_with("ok "), "{said}");
    daemon.stop().await;
}

async fn looks_without_a_daemon_say_so(kind: Kind) {
    const SAID: &str = "no daemon is running: read from the database";
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [50]).await;
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_add', 50)")
        .await;
    let id = lab.rows("select id from events_stack_compact").await[0][0].clone();
    let looks: [&[&str]; 12] = [
        &["status"],
        &["why", "50"],
        &["event", "list"],
        &["event", "show", &id],
        &["account", "show", "50"],
        &["account", "history", "50"],
        &["nas", "list"],
        &["nas", "show", "5"],
        &["stack", "count"],
        &["stack", "count", "--classic"],
        &["guard", "list"],
        &["audit"],
    ];
    let classic = async || {
        let counted = named(&lab, "event_count.sh", &[], "").await;
        let asked = named(&lab, "sqlexec", &["select 1 as n"], "").await;
        for said in [counted, asked] {
            assert!(said.code == 0 && said.err.is_empty(), "{said:?}");
        }
    };
    for words in looks {
        let said = ned(&lab, words).await;
        said.failed(0, &[SAID]);
        assert_eq!(
            said.err.matches("no daemon is running").count(),
            1,
            "{said:?}"
        );
        assert!(!said.out.contains(SAID), "it is data: {said:?}");
    }
    // Scripts of the original know no such line.
    classic().await;
    let daemon = lab.start().await;
    lab.drained().await;
    for words in looks {
        let said = ned(&lab, words).await;
        assert!(said.code == 0 && said.err.is_empty(), "{words:?}: {said:?}");
    }
    classic().await;
    daemon.stop().await;
}

#[tokio::test]
async fn an_unhealthy_daemon_is_told_by_9() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let listener = tokio::net::UnixListener::bind(lab.path("run/ctl.sock")).unwrap();
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let n = stream.read(&mut head).await.unwrap();
        assert!(head[..n].starts_with(b"GET /readyz "));
        let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\nConnection: close\r\n\r\nstuck";
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let (said, ()) = tokio::join!(ned(&lab, &["health", "ready"]), answering);
    said.failed(9, &["503"]);
    assert_eq!(said.out, "unhealthy stuck\n");
}

async fn a_scheme_is_rendered_with_an_accounts_variables(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(
        1116,
        "Mikrotik-Simple",
        2,
        &[("vars", "'{\"prefix\": \"isp1\"}'".into())],
    )
    .await;
    lab.secret(1116, "admin", PASSWORD).await;
    lab.accounts(1116, [1424]).await;
    let run = [
        "scheme",
        "run",
        "Mikrotik-Simple",
        "--user",
        "1424",
        "--cmd",
        "user_redirect",
    ];
    ned(&lab, &run).await.failed(2, &["--dry-run"]);
    let said = ned(&lab, &[&run[..], &["--dry-run"]].concat()).await;
    said.failed(0, &["nothing was sent"]);
    let out = said.fine();
    assert!(
        out.contains("send_mikrotik_cmd --nas 1116 /ip/firewall/address-list/add"),
        "{out}"
    );
    assert!(
        out.contains("list=isp1_negbal") && out.contains("comment=isp1_1424"),
        "{out}"
    );
    let file = lab.path("event.json");
    std::fs::write(
        &file,
        "{\"cmd\": \"user_add\", \"user_id\": 1424, \"params\": {\"ceil_out\": 7}}",
    )
    .unwrap();
    let file = file.display().to_string();
    let event = [
        "scheme",
        "run",
        "Mikrotik-Simple",
        "--dry-run",
        "--event",
        &file,
    ];
    let out = ned(&lab, &event).await.fine();
    assert!(
        out.contains("/queue/simple/add") && out.contains("/7000"),
        "{out}"
    );
    let none = [
        "scheme",
        "run",
        RECORD,
        "--dry-run",
        "--user",
        "99",
        "--cmd",
        "user_add",
    ];
    ned(&lab, &none).await.failed(5, &["no row for account 99"]);
    let lost = [
        "scheme",
        "run",
        "Lost",
        "--dry-run",
        "--user",
        "1",
        "--cmd",
        "user_add",
    ];
    ned(&lab, &lost)
        .await
        .failed(5, &["there is no scheme \"Lost\"", "looked for in"]);
    lab.session("Mine", "user_add() { :; }\n");
    let mine = [
        "scheme",
        "run",
        "Mine",
        "--dry-run",
        "--user",
        "1424",
        "--cmd",
        "user_add",
    ];
    let said = ned(&lab, &mine).await;
    said.failed(0, &["cannot be asked"]);
    let out = said.fine();
    assert!(
        out.contains("cmd=user_add\n") && out.contains("login=login1424\n"),
        "{out}"
    );
    assert!(!out.contains(PASSWORD), "{out}");
    assert_eq!(lab.waiting().await, 0);
}

#[tokio::test]
async fn schemes_are_listed_shown_and_linted() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.native(
        RECORD,
        "driver = \"record\"\n[[on.user_add]]\nexec = [\"{{ nope }}\"]\nfoo = 1\n",
    );
    lab.session("Broken", "user_add() {\n");
    let list = ned(&lab, &["-o", "json", "scheme", "list"]).await.json();
    let places: Vec<(&str, &str)> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (
                row["name"].as_str().unwrap(),
                row["description"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(places[0].0, "Broken");
    assert!(places[1].1.contains("scheme lint"), "{places:?}");
    assert!(
        places
            .iter()
            .any(|(name, text)| *name == RECORD && text.starts_with("hidden by"))
    );
    let shown = ned(&lab, &["-o", "json", "scheme", "show", "Mikrotik-Simple"])
        .await
        .json();
    assert_eq!(shown["driver"], "mikrotik");
    assert!(
        shown["cmds"]
            .as_str()
            .unwrap()
            .contains("user_redirect_cancel")
    );
    let said = ned(
        &lab,
        &["scheme", "lint", RECORD, "Mikrotik-Simple", "Broken"],
    )
    .await;
    said.failed(9, &["errors"]);
    assert!(said.out.contains("scheme.toml:4: error:"), "{said:?}");
    assert!(
        said.out
            .contains("bin/session:0: error: bin/session cannot be loaded"),
        "{said:?}"
    );
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/oss/core/Record/scheme.toml");
    let said = ned(&lab, &["scheme", "lint", shipped]).await.fine();
    assert!(said.ends_with("oss/core/Record: ok\n"), "{said}");
    ned(&lab, &["scheme", "show", RECORD])
        .await
        .failed(3, &["scheme.toml:4: error:"]);
}

async fn a_token_opens_the_api(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let said = ned(&lab, &["token", "create", "shop", "--scope", "viewer"])
        .await
        .fine();
    let secret = said.split_whitespace().last().unwrap();
    assert_eq!(secret.len(), 43);
    let stored = lab.db.store.clone();
    assert!(
        stored.token(secret).await.unwrap().is_none(),
        "only its hash is kept"
    );
    ned(&lab, &["token", "create", "shop", "--scope", "viewer"])
        .await
        .failed(6, &["exists already"]);
    ned(&lab, &["token", "create", "a b", "--scope", "viewer"])
        .await
        .failed(2, &["1 to 64"]);
    ned(&lab, &["token", "create", "x", "--scope", "root"])
        .await
        .failed(2, &["viewer"]);
    let daemon = lab.start().await;
    let get = lab
        .client
        .get(lab.url("/api/v1/status"))
        .bearer_auth(secret);
    let status: Value = get.send().await.unwrap().json().await.unwrap();
    assert!(status["dispatch"]["nases"].is_array(), "{status}");
    let post = lab
        .client
        .post(lab.url("/api/v1/reload"))
        .bearer_auth(secret);
    assert_eq!(post.send().await.unwrap().status().as_u16(), 403);
    daemon.stop().await;
}

#[tokio::test]
async fn old_account_logs_are_pruned() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let dir = super::audit::old_log(&lab);
    let prune = ["logs", "prune", "--older-than", "400d"];
    let dry = ned(&lab, &[&prune[..], &["--dry-run"]].concat()).await;
    dry.failed(0, &["nothing was removed"]);
    assert!(dry.fine().starts_with("files\t1\n"));
    assert!(dir.join("event_1.log").exists());
    assert!(ned(&lab, &prune).await.fine().starts_with("files\t1\n"));
    assert!(!dir.join("event_1.log").exists());
    assert!(dir.join("event_2.log").exists());
    ned(&lab, &["logs", "prune"])
        .await
        .failed(2, &["--older-than"]);
}

#[tokio::test]
async fn the_simulator_runs_until_a_signal() {
    let args = [
        "sim",
        "mikrotik",
        "--listen",
        "127.0.0.1:0",
        "--login",
        "ned",
        "--password",
        PASSWORD,
    ];
    let mut child = command("nas_event_daemon", &args).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let port = line.rsplit(':').next().unwrap();
    let send = [
        "--port",
        port,
        "-s",
        "127.0.0.1",
        "ned",
        PASSWORD,
        "/system/identity/print",
    ];
    let said = finished(command("send_mikrotik_cmd", &send), "")
        .await
        .fine();
    assert!(said.starts_with("name="), "{said}");
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(child.wait().await.unwrap().success());
    let public = ["sim", "mikrotik", "--listen", "0.0.0.0:0"];
    finished(command("nas_event_daemon", &public), "")
        .await
        .failed(1, &["loopback"]);
}

#[tokio::test]
async fn names_and_versions() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let version = concat!("nas_event_daemon ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(ned(&lab, &["version"]).await.fine(), version);
    let json = ned(&lab, &["-o", "json", "version"]).await.json();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    named(&lab, "send_radius_cmd", &[], "")
        .await
        .failed(249, &["send_radius_cmd"]);
    ned(&lab, &["evnt", "list"]).await.failed(2, &["event"]);
}
