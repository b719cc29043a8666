//! `send_radius_cmd` and `sim radius` as commands.

use std::process::Stdio;

use nas_event_daemon::sim::radius::Faults;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{LONG, SECRET, sim};

on_each_store!(settings_come_from_the_database);

fn command(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nas_event_daemon"));
    command
        .arg0(name)
        .args(args)
        .env_remove("NED_CONFIG")
        .env_remove("NED_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Code, output, errors.
async fn finished(mut command: Command) -> (i32, String, String) {
    let output = timeout(LONG, command.output())
        .await
        .expect("it hangs")
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

async fn send(port: u16, args: &[&str]) -> (i32, String, String) {
    let port = port.to_string();
    let to = ["--port", &port, "-s", "127.0.0.1", SECRET];
    finished(command("send_radius_cmd", &[&to[..], args].concat())).await
}

#[tokio::test]
async fn each_outcome_has_its_code() {
    let nas = sim(Faults::default()).await;
    let port = nas.addr().port();
    let fine = (0, String::new(), String::new());
    assert_eq!(
        send(
            port,
            &["coa", "User-Name=ivanov", "Mikrotik-Rate-Limit=1M/2M"]
        )
        .await,
        fine
    );
    let pair = "Cisco-AVPair=subscriber:command=session-query";
    let (code, out, _) = send(port, &["coa", "User-Name=ivanov", pair]).await;
    assert!(
        code == 0 && out.contains("Mikrotik-Rate-Limit=1M/2M\n"),
        "{out}"
    );
    let (code, out, err) = send(port, &["coa", "User-Name=nobody"]).await;
    assert_eq!(
        (code, &*out),
        (1, "Error-Cause=Session-Context-Not-Found\n")
    );
    assert!(
        err.starts_with("ERROR: Nak message: 'CoA-NAK, Error-Cause 503"),
        "{err}"
    );
    assert!(
        err.ends_with("command: 'coa User-Name=nobody' exit code: 1\n"),
        "{err}"
    );
    // Nothing to end is what was wanted.
    assert_eq!(send(port, &["disconnect", "User-Name=nobody"]).await.0, 0);
    for bad in [
        &["coa", "Usr-Name=x"][..],
        &["coa", "Filter-Id=x"],
        &["coa", "User-Name="],
        &["coa", "User-Name"],
        &["coa", "User-Name=x", "Framed-IP-Address=999.0.0.1"],
        &["coa"],
        &["bye", "User-Name=x"],
    ] {
        let (code, _, err) = send(port, bad).await;
        assert_eq!(code, 249, "{bad:?}: {err}");
        assert!(!err.contains(SECRET), "{err}");
    }
    assert_eq!(nas.sessions().len(), 1);
    let (code, out, _) = send(port, &["--dry-run", "disconnect", "User-Name=iv anov"]).await;
    assert_eq!((code, &*out), (0, "disconnect 'User-Name=iv anov'\n"));
    assert_eq!(nas.sessions().len(), 1);
    nas.set_faults(Faults {
        silent: true,
        ..Faults::default()
    });
    let (code, _, err) = send(port, &["--timeout", "300ms", "coa", "User-Name=ivanov"]).await;
    assert!(code == 254 && err.contains("Timeout"), "{err}");
    nas.set_faults(Faults {
        nak: Some(506),
        ..Faults::default()
    });
    assert_eq!(send(port, &["coa", "User-Name=ivanov"]).await.0, 254);
}

async fn settings_come_from_the_database(kind: Kind) {
    let nas = sim(Faults::default()).await;
    let lab = Lab::new(kind, "").await;
    let port = ("coa_port", nas.addr().port().to_string());
    lab.native(
        "Mine",
        "driver = \"radius\"\n[[on.user_del]]\ndisconnect = { My-Session = \"{{ login }}\" }\n",
    );
    let folder = lab.path("oss/local/Mine/dictionaries");
    std::fs::create_dir_all(&folder).unwrap();
    let words = "VENDOR My 99999\nBEGIN-VENDOR My\nATTRIBUTE My-Session 1 string session\n";
    std::fs::write(folder.join("my.txt"), words).unwrap();
    lab.nas(1116, "Mine", 2, &[port]).await;
    lab.db
        .sql(&format!(
            "insert into nas_secret (nas_id, coa_secret) values (1116, '{SECRET}')"
        ))
        .await;
    let sent = async |args: &[&str]| {
        let mut command = command("send_radius_cmd", args);
        command
            .env("NED_CONFIG", lab.path("ned.toml"))
            .current_dir(lab.root());
        finished(command).await
    };
    let (code, _, err) = sent(&["--nas", "1116", "disconnect", "User-Name=ivanov"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(nas.sessions().is_empty());
    // The names of the operator's own dictionary beside the scheme: sent, and known to nobody
    // else.
    let (code, _, err) = sent(&["--nas", "1116", "disconnect", "My-Session=x"]).await;
    assert!(code == 1 && err.contains("Error-Cause 402"), "{err}");
    let (code, _, err) = send(1, &["disconnect", "My-Session=x"]).await;
    assert!(code == 249 && err.contains("no dictionary has"), "{err}");
    let (code, _, err) = sent(&["--nas", "99", "disconnect", "User-Name=x"]).await;
    assert!(code == 249 && err.contains("there is no NAS 99"), "{err}");
    // And what a scheme says with them is checked, too.
    let mut lint = command("nas_event_daemon", &["scheme", "lint", "Mine"]);
    lint.env("NED_CONFIG", lab.path("ned.toml"));
    let (code, out, err) = finished(lint).await;
    assert_eq!(code, 0, "{out}{err}");
    let mut test = command("nas_event_daemon", &["nas", "test", "1116"]);
    test.env("NED_CONFIG", lab.path("ned.toml"))
        .current_dir(lab.root());
    let (code, out, err) = finished(test).await;
    assert!(
        code == 0 && out.contains("the secret is right"),
        "{out}{err}"
    );
}

/// Inside a script the helper speaks over the daemon's own sockets, to that NAS only, and what
/// it says is in the logs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_rides_on_the_daemons_sockets() {
    let nas = sim(Faults::default()).await;
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.session(
        "Ride",
        r#"
user_rate_set() { send_radius_cmd --nas "$nas_id" coa Acct-Session-Id=a1 "Mikrotik-Rate-Limit=${ceil_in}k/${ceil_out}k"; }
user_disconnect() { send_radius_cmd -s "$nas_ip" "$coa_psw" disconnect User-Name=nobody; }
user_redirect() { send_radius_cmd -s 192.0.2.1 x coa User-Name=ivanov; }
user_drop() { send_radius_cmd --nas "$nas_id" coa User-Name=nobody Filter-Id=x; }
user_edit() { send_radius_cmd --nas "$nas_id" coa Acct-Session-Id=a1 My-Speed=5; }
user_accept() {
  send_radius_cmd --dry-run -s x x coa Acct-Session-Id=a1 My-Speed=6 || return 1
  unset NED_ATTEMPT
  send_radius_cmd --port "$port" -s "$nas_ip" "$coa_psw" coa Acct-Session-Id=a1 My-Class=7
}
"#,
    );
    // Words of the operator's own, which the daemon and a helper that goes alone both know.
    let folder = lab.path("oss/local/Ride/dictionaries");
    std::fs::create_dir_all(&folder).unwrap();
    let words = "VENDOR My 99999\nBEGIN-VENDOR My\nATTRIBUTE My-Speed 2 integer\nATTRIBUTE My-Class 3 integer\n";
    std::fs::write(folder.join("my.txt"), words).unwrap();
    let port = ("coa_port", nas.addr().port().to_string());
    lab.nas(1, "Ride", 3, &[port]).await;
    lab.db
        .sql(&format!(
            "insert into nas_secret (nas_id, coa_secret) values (1, '{SECRET}')"
        ))
        .await;
    lab.accounts(1, [1]).await;
    let _daemon = lab.start().await;
    for (cmd, place) in [
        ("user_rate_set", "done"),
        ("user_disconnect", "done"),
        ("user_redirect", "dead"),
        ("user_drop", "dead"),
        ("user_edit", "done"),
        ("user_accept", "done"),
        ("user_edit", "dead"),
    ] {
        if (cmd, place) == ("user_edit", "dead") {
            std::fs::write(folder.join("wrong.txt"), "NONSENSE\n").unwrap();
        }
        let port = json!({ "port": nas.addr().port() });
        let event = json!({ "cmd": cmd, "user_id": 1, "params": port });
        let id = lab.post(event).await[0];
        let (ended, why) = lab.ended(id).await;
        assert_eq!(ended, place, "{cmd}: {why}\n{:#?}", lab.nas_log(1));
    }
    let session = nas.sessions().remove(0);
    assert_eq!(session.attributes["Mikrotik-Rate-Limit"], ["10240k/20480k"]);
    for (own, value) in [("Attr-26.99999.2", 5_u32), ("Attr-26.99999.3", 7)] {
        let sent = session.attributes.get(own);
        assert_eq!(sent, Some(&vec![format!("0x{value:08x}")]), "{session:?}");
    }
    let log = lab.nas_log(1).join("\n");
    for wanted in [
        "> send_radius_cmd --nas 1 coa Acct-Session-Id=a1 Mikrotik-Rate-Limit=10240k/20480k",
        "< CoA-ACK",
        "< Disconnect-NAK Error-Cause=Session-Context-Not-Found",
        "not for 192.0.2.1",
        "wrong.txt:1: \"NONSENSE\" is not ATTRIBUTE",
    ] {
        assert!(log.contains(wanted), "{wanted}\n{log}");
    }
    assert!(!log.contains(SECRET));
}

#[tokio::test]
async fn the_simulator_is_a_command_with_a_door() {
    let dir = tempfile::tempdir().unwrap();
    let state = json!({"sessions": [{"User-Name": "ivanov", "Framed-IP-Address": "10.88.0.15"}]});
    std::fs::write(dir.path().join("state"), state.to_string()).unwrap();
    let file = dir.path().join("state").display().to_string();
    let args = [
        "sim",
        "radius",
        "--listen",
        "127.0.0.1:0",
        "--control",
        "127.0.0.1:0",
        "--load",
        &file,
    ];
    let mut sim = command("nas_event_daemon", &args);
    let mut child = sim.env("NED_SIM_SECRET", SECRET).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = async || {
        timeout(LONG, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    };
    let first = line().await;
    let port: u16 = first.rsplit_once(':').unwrap().1.parse().unwrap();
    let door = line().await;
    let door = door.strip_prefix("control on ").unwrap().to_owned();
    assert_eq!(
        send(
            port,
            &["coa", "Framed-IP-Address=10.88.0.15", "Filter-Id=fast"]
        )
        .await
        .0,
        0
    );
    let client = nas_event_daemon::driver::tls::plain_client()
        .build()
        .unwrap();
    let get = async |path: &str| -> Value {
        let answer = client
            .get(format!("http://{door}{path}"))
            .send()
            .await
            .unwrap();
        answer.json().await.unwrap()
    };
    assert_eq!(get("/state").await["sessions"][0]["Filter-Id"], "fast");
    assert_eq!(get("/seen").await["acks"], 1);
    let put = client.put(format!("http://{door}/faults"));
    let answer = put.json(&json!({"nak": 404})).send().await.unwrap();
    assert!(answer.status().is_success());
    assert_eq!(
        send(port, &["coa", "User-Name=ivanov", "Filter-Id=slow"])
            .await
            .0,
        1
    );
    child.start_kill().unwrap();
}
