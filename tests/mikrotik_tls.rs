//! The RouterOS API over TLS: whom the driver trusts, against our simulator and against OpenSSL;
//! the way from the event to the router; the version of the router in a scheme.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "lab/mod.rs"]
mod lab;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lab::daemon::Lab;
use lab::db::Kind;
use lab::on_each_store;
use lab::tls::Pki;
use nas_event_daemon::attempt::{FailureClass, Scope};
use nas_event_daemon::driver::mikrotik::{Command, Limits, Mikrotik, Target};
use nas_event_daemon::driver::tls::{Settings, Trust, fingerprint};
use nas_event_daemon::sim::mikrotik::{Faults, Options, Sim};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

on_each_store!(events_reach_the_router_over_tls);

/// A condition that has not come by then never will, on a busy machine either.
const LONG: Duration = Duration::from_secs(60);

fn sim(pki: Option<&Pki>) -> Sim {
    Sim::start(Options {
        password: "servicemode".into(),
        tls: pki.map(|pki| pki.identity.clone()),
        ..Options::default()
    })
    .unwrap()
}

fn router(port: u16, trust: Trust) -> Mikrotik {
    let target = Target {
        host: "127.0.0.1".into(),
        port,
        login: "admin".into(),
        password: "servicemode".into(),
    };
    let limits = Limits {
        connections: 2,
        connect_timeout: Duration::from_secs(20),
        linger: Duration::from_secs(20),
        logins_per_minute: 10_000,
        know_rows: true,
    };
    let settings = Settings { trust, name: None };
    Mikrotik::over_tls(target, limits, &settings)
}

fn command(path: &str, args: &[(&str, &str)]) -> Command {
    Command {
        path: path.into(),
        args: args
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..Command::default()
    }
}

fn pin(text: &str) -> Trust {
    Trust::Pinned(vec![fingerprint(text).unwrap()])
}

#[tokio::test]
async fn only_the_trusted_router_gets_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (Pki::new(dir.path(), "right"), Pki::new(dir.path(), "wrong"));
    let sim = sim(Some(&right));
    let port = sim.addr().port();
    let look = command("/system/identity/print", &[]);
    for trust in [
        Trust::Ca(right.ca.clone()),
        pin(&right.pin),
        Trust::Insecure,
    ] {
        let reply = router(port, trust).talk(&look, LONG).await.unwrap();
        assert_eq!(reply.rows[0]["name"], "simulated");
    }
    let seen = sim.seen();
    assert_eq!((seen.logins, seen.logins_refused), (3, 0));
    for trust in [Trust::Ca(wrong.ca.clone()), pin(&wrong.pin), Trust::System] {
        let failure = router(port, trust).talk(&look, LONG).await.unwrap_err();
        assert_eq!(
            (failure.scope, failure.class, failure.parks),
            (Scope::Nas, FailureClass::Transport, true),
            "{failure}"
        );
        assert!(failure.text.contains(&right.pin), "{failure}");
        assert!(!failure.text.contains("servicemode"));
    }
    let seen = sim.seen();
    assert_eq!(
        (seen.logins, seen.logins_refused),
        (3, 0),
        "no password left"
    );
}

#[tokio::test]
async fn a_port_without_tls_is_told() {
    let plain = sim(None);
    let failure = router(plain.addr().port(), Trust::Insecure)
        .talk(&command("/system/identity/print", &[]), LONG)
        .await
        .unwrap_err();
    assert_eq!(
        (failure.scope, failure.class, failure.parks),
        (Scope::Nas, FailureClass::Transport, false)
    );
    assert!(failure.text.contains("api-ssl"), "{failure}");
    assert_eq!(plain.seen().logins, 0);
}

#[tokio::test]
async fn large_answers_and_many_commands_pass_through_openssl() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path(), "front");
    let behind = sim(None);
    #[expect(
        clippy::disallowed_methods,
        reason = "an independent program is a program"
    )]
    let mut front = tokio::process::Command::new("python3");
    let mut front = front
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/tls_front.py"))
        .arg(&pki.identity.cert)
        .arg(&pki.identity.key)
        .arg(behind.addr().port().to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(front.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LONG, lines.next_line()).await;
    let port = line.unwrap().unwrap().expect("python3 is installed");
    let router = std::sync::Arc::new(router(port.parse().unwrap(), Trust::Ca(pki.ca.clone())));
    let mut adding = tokio::task::JoinSet::new();
    for n in 0..100 {
        let router = std::sync::Arc::clone(&router);
        adding.spawn(async move {
            let comment = "x".repeat(40_000);
            let name = format!("q{n}");
            let add = command(
                "/queue/simple/add",
                &[("name", &name), ("comment", &comment)],
            );
            router.talk(&add, LONG).await.unwrap();
        });
    }
    while let Some(added) = adding.join_next().await {
        added.unwrap();
    }
    let rows = router
        .talk(&command("/queue/simple/print", &[]), LONG)
        .await
        .unwrap()
        .rows;
    assert_eq!(rows.len(), 100);
    assert!(rows.iter().all(|row| row["comment"].len() == 40_000));
    assert!(behind.seen().logins <= 2);
}

async fn events_reach_the_router_over_tls(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let pki = Pki::new(lab.root(), "router");
    let sim = sim(Some(&pki));
    let nas = async |id: i64, vars: serde_json::Value| {
        let more = [
            ("api_tls", "1".to_owned()),
            ("api_port", sim.addr().port().to_string()),
            ("vars", format!("'{vars}'")),
        ];
        lab.nas(id, "Mikrotik-Simple", 3, &more).await;
        lab.secret(id, "admin", "servicemode").await;
    };
    nas(7, json!({"tls_pin": pki.pin})).await;
    nas(8, json!({"tls_pin": "00".repeat(32)})).await;
    lab.accounts(7, 1..=10).await;
    lab.accounts(8, [80]).await;
    let daemon = lab.start().await;
    // Another certificate than the pinned one: nothing is sent, and the NAS is parked.
    let waits = lab.event(80, "user_redirect").await;
    let line = lab.said("NAS is parked").await;
    assert!(
        line.contains("nasid=8") && line.contains(&pki.pin),
        "{line}"
    );
    for user in 1..=10 {
        lab.event(user, "user_redirect").await;
    }
    lab.until("all but one are done", async || {
        (lab.waiting().await == 1).then_some(())
    })
    .await;
    assert_eq!(sim.rows("/ip/firewall/address-list").len(), 10);
    assert!(sim.seen().logins <= 3, "{:?}", sim.seen());
    let statement = format!("select try_count from events_stack where id = {waits}");
    assert!(lab.number(&statement).await <= 1, "no try is burnt");
    // The settings change, and the event that waited goes on by itself.
    let fixed = json!({"tls_ca": pki.ca});
    lab.sql(&format!("update nas set vars = '{fixed}' where id = 8"))
        .await;
    lab.reload(&daemon).await;
    lab.drained().await;
    assert_eq!(sim.rows("/ip/firewall/address-list").len(), 11);
    daemon.stop().await;
}

/// Which way a scheme goes depends on what runs on the router, asked once for all events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheme_knows_the_version_of_its_router() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.native(
        "By-Version",
        r#"
driver = "mikrotik"
[[on.user_add]]
when = "nas_version[:2] == '7.'"
ensure = "/ip/firewall/address-list"
where = { list = "seven", address = "{{ ip }}" }
[[on.user_add]]
when = "nas_version[:2] != '7.'"
ensure = "/ip/firewall/address-list"
where = { list = "not_{{ nas_version }}", address = "{{ ip }}" }
"#,
    );
    let start = |version: &str| {
        Sim::start(Options {
            password: "servicemode".into(),
            version: version.into(),
            faults: Faults::default(),
            ..Options::default()
        })
        .unwrap()
    };
    let (seven, six) = (start("7.16.2 (stable)"), start("6.49.10 (long-term)"));
    for (nas, sim) in [(7, &seven), (6, &six)] {
        let port = sim.addr().port().to_string();
        lab.nas(nas, "By-Version", 2, &[("api_port", port)]).await;
        lab.secret(nas, "admin", "servicemode").await;
        lab.accounts(nas, nas * 100..nas * 100 + 10).await;
    }
    let daemon = lab.start().await;
    for user in (600..610).chain(700..710) {
        lab.event(user, "user_add").await;
    }
    lab.drained().await;
    for (sim, list) in [(&seven, "seven"), (&six, "not_6.49.10")] {
        let rows = sim.rows("/ip/firewall/address-list");
        assert_eq!(rows.iter().filter(|row| row["list"] == list).count(), 10);
        assert_eq!(sim.seen().sentences, 11, "the version is asked once");
    }
    // An upgrade ends the sessions; the next event finds what runs now.
    let upgraded = |refuse_connections: bool| Faults {
        version: Some("7.20 (stable)".into()),
        refuse_connections,
        ..Faults::default()
    };
    six.set_faults(upgraded(true));
    six.wait_until(|seen| seen.sessions == 0).await;
    six.set_faults(upgraded(false));
    lab.event(601, "user_add").await;
    lab.drained().await;
    let rows = six.rows("/ip/firewall/address-list");
    assert_eq!(rows.iter().filter(|row| row["list"] == "seven").count(), 1);
    daemon.stop().await;
}

/// `sim mikrotik` and `send_mikrotik_cmd` as commands, both over TLS.
#[tokio::test]
async fn the_commands_speak_tls() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (Pki::new(dir.path(), "right"), Pki::new(dir.path(), "wrong"));
    let binary = |name: &str| {
        #[expect(
            clippy::disallowed_methods,
            reason = "the program under test is a program"
        )]
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_nas_event_daemon"));
        command
            .arg0(name)
            .env_remove("NED_CONFIG")
            .env_remove("NED_ATTEMPT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    };
    let mut sim = binary("nas_event_daemon")
        .args(["sim", "mikrotik", "--listen", "127.0.0.1:0"])
        .arg("--tls-cert")
        .arg(&right.identity.cert)
        .arg("--tls-key")
        .arg(&right.identity.key)
        .env("NED_SIM_PASSWORD", "servicemode")
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(sim.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LONG, lines.next_line()).await;
    let line = line.unwrap().unwrap().unwrap();
    let port = line.rsplit(':').next().unwrap();
    let send = async |flags: &[&str]| {
        let output = binary("send_mikrotik_cmd")
            .args(["--port", port])
            .args(flags)
            .args(["-s", "127.0.0.1", "admin", "servicemode"])
            .arg("/system/identity/print")
            .output();
        let output = tokio::time::timeout(LONG, output).await.unwrap().unwrap();
        let text =
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    };
    let (ca, other) = (
        right.ca.display().to_string(),
        wrong.ca.display().to_string(),
    );
    for flags in [
        &["--tls-ca", &ca][..],
        &["--tls-pin", &right.pin],
        &["--tls-insecure"],
    ] {
        let (code, text) = send(flags).await;
        assert_eq!(code, 0, "{flags:?} {text}");
        assert!(text.contains("name=simulated"), "{text}");
    }
    for (flags, code, part) in [
        (&["--tls"][..], 254, right.pin.as_str()),
        (&["--tls-ca", &other], 254, right.pin.as_str()),
        (&["--tls-pin", &wrong.pin], 254, right.pin.as_str()),
        (&["--tls-pin", "abc"], 249, "tls_pin"),
        (
            &["--tls-insecure", "--tls-pin", &right.pin],
            249,
            "leave one",
        ),
        (&[], 254, "exit code: 254"),
    ] {
        let (got, text) = send(flags).await;
        assert_eq!(got, code, "{flags:?} {text}");
        assert!(text.contains(part), "{flags:?} {text}");
        assert!(!text.contains("servicemode"), "{text}");
    }
}
