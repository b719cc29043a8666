//! `send_http_cmd` and `sim http` with the real binary.

use std::process::Stdio;

use nas_event_daemon::sim::http::{Faults, Options, Sim};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::LONG;
use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::tls::Pki;

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn binary(name: &str) -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test is a program"
    )]
    let mut command = Command::new(env!("CARGO_BIN_EXE_nas_event_daemon"));
    command
        .arg0(name)
        .env_remove("NED_CONFIG")
        .env_remove("NED_ATTEMPT")
        // A proxy of the environment is never used.
        .env("http_proxy", "http://127.0.0.1:1")
        .env("https_proxy", "http://127.0.0.1:1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn said(mut command: Command) -> Said {
    let output = tokio::time::timeout(LONG, command.output()).await;
    let output = output.unwrap().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn send(url: &str, args: &[&str]) -> Said {
    let mut command = binary("send_http_cmd");
    command.args(["-s", url, "ned", "servicemode"]).args(args);
    said(command).await
}

#[tokio::test]
async fn requests_are_sent_and_failures_have_the_classic_codes() {
    let sim = Sim::start(Options {
        authorization: Some("Basic bmVkOnNlcnZpY2Vtb2Rl".into()),
        ..Options::default()
    })
    .await
    .unwrap();
    let url = format!("http://{}/api", sim.addr());
    let body = json!({"rate": 10, "name": "it's"});
    let put = send(&url, &["PUT", "/u/1", "--json", &body.to_string()]).await;
    assert_eq!((put.code, put.out.as_str()), (0, ""), "{}", put.err);
    let got = send(&url, &["get", "/u/1"]).await;
    assert_eq!(got.out.trim(), body.to_string());
    assert_eq!(sim.documents()["/api/u/1"], body);
    for (args, code, text) in [
        (&["GET", "/none"][..], 1, "HTTP 404"),
        (&["GET", "none"], 249, "begin with '/'"),
        (&["GET", "/../x"], 249, "'..'"),
        (&["TRACE", "/"], 249, "none of"),
        (&["POST", "/", "--json", "{"], 249, "--json"),
        (&["GET", "/", "-H", "Host: x"], 249, "driver alone"),
        (&["GET", "/", "--auth", "digest"], 249, "http_auth"),
        (&["GET"], 249, ""),
    ] {
        let said = send(&url, args).await;
        assert_eq!(said.code, code, "{args:?} {}", said.err);
        assert!(said.err.contains(text), "{args:?} {}", said.err);
        assert!(!said.err.contains("servicemode"), "{}", said.err);
    }
    let nobody = send("http://127.0.0.1:1", &["GET", "/"]).await;
    assert_eq!(nobody.code, 254);
    assert!(
        nobody.err.starts_with("ERROR: ConnectionError message: '"),
        "{}",
        nobody.err
    );
    assert!(nobody.err.ends_with("exit code: 254\n"), "{}", nobody.err);
    let wrong = send(&url, &["--auth", "bearer", "GET", "/u/1"]).await;
    assert_eq!(wrong.code, 1);
    assert!(wrong.err.contains("LoginError"), "{}", wrong.err);
    sim.set_faults(Faults {
        status: Some(503),
        ..Faults::default()
    });
    assert_eq!(send(&url, &["GET", "/u/1"]).await.code, 254);
    let before = sim.seen().requests;
    let dry = send(&url, &["--dry-run", "POST", "/a b", "--json", "{}"]).await;
    assert_eq!(dry.code, 249, "a path is checked also then");
    let dry = send(&url, &["--dry-run", "POST", "/a", "--json", "{}"]).await;
    assert_eq!((dry.code, dry.out.as_str()), (0, "POST /a --json '{}'\n"));
    assert_eq!(sim.seen().requests, before);
}

#[tokio::test]
async fn settings_come_from_the_database() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let pki = Pki::new(lab.root(), "hook");
    let sim = Sim::start(Options {
        tls: Some(pki.identity.clone()),
        authorization: Some("Bearer servicemode".into()),
        ..Options::default()
    })
    .await
    .unwrap();
    let vars = json!({"tls_pin": pki.pin, "http_auth": "bearer"}).to_string();
    let url = format!("'https://{}'", sim.addr());
    lab.nas(
        7,
        "HTTP-Webhook",
        5,
        &[("http_url", url), ("vars", format!("'{vars}'"))],
    )
    .await;
    lab.secret(7, "ned", "servicemode").await;
    let mut command = binary("send_http_cmd");
    command.env("NED_CONFIG", lab.path("ned.toml"));
    command.args(["--nas", "7", "POST", "/events", "--json", "{\"cmd\":\"x\"}"]);
    let told = said(command).await;
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(told.out.contains("simulated: x"), "{}", told.out);
    let mut command = binary("send_http_cmd");
    command.env("NED_CONFIG", lab.path("ned.toml"));
    command.args(["--nas", "8", "GET", "/"]);
    assert_eq!(said(command).await.code, 249);
}

#[tokio::test]
async fn the_simulator_is_a_command() {
    let mut sim = binary("nas_event_daemon");
    sim.args(["sim", "http", "--listen", "127.0.0.1:0", "--token", "t"]);
    let mut sim = sim.spawn().unwrap();
    let mut lines = BufReader::new(sim.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LONG, lines.next_line()).await;
    let line = line.unwrap().unwrap().unwrap();
    let addr = line.strip_prefix("listening on ").unwrap();
    let mut command = binary("send_http_cmd");
    command.args([
        "-s",
        &format!("http://{addr}"),
        "",
        "t",
        "PUT",
        "/x",
        "--json",
        "1",
    ]);
    let told = said(command).await;
    assert_eq!(told.code, 0, "{}", told.err);
    let mut public = binary("nas_event_daemon");
    public.args(["sim", "http", "--listen", "0.0.0.0:0"]);
    let public = said(public).await;
    assert!(
        public.code != 0 && public.err.contains("loopback"),
        "{}",
        public.err
    );
}
