//! `send_ssh_cmd`, `ssh_send`, `nas test`, `nas rekey`: the real binary by its names.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::lab::daemon::{Lab, PATIENCE};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sshd::{Sshd, User, program};

on_each_store!(a_line_of_a_log_can_be_pasted);

/// What a command said.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The binary by a name, without a terminal.
pub(crate) async fn ned(lab: &Lab, name: &str, args: &[&str]) -> Said {
    fed(lab, name, args, "").await
}

async fn fed(lab: &Lab, name: &str, args: &[&str], stdin: &str) -> Said {
    let mut child = program(env!("CARGO_BIN_EXE_nas_event_daemon"))
        .arg0(name)
        .args(args)
        .env("NED_CONFIG", lab.path("ned.toml"))
        .env_remove("NED_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A command that reads nothing may have ended already.
    let _ = pipe.write_all(stdin.as_bytes()).await;
    drop(pipe);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output());
    let output = output.await.unwrap().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn a_line_of_a_log_can_be_pasted(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let sshd = Sshd::start(&[]).await;
    lab.native(
        "Ssh",
        "driver = \"ssh\"\n[[on.user_add]]\nexec = [\"true\"]\n",
    );
    let columns = [
        ("ssh_port", sshd.port.to_string()),
        ("ssh_host_key", "'tofu'".to_owned()),
    ];
    lab.nas(1, "Ssh", 2, &columns).await;
    lab.sql(&format!(
        "insert into nas_secret (nas_id, login, ssh_key) values (1, 'root', '{}')",
        sshd.client_key()
    ))
    .await;
    let tested = ned(&lab, "nas_event_daemon", &["nas", "test", "1"]).await;
    // 9: it works, but this machine is busy.
    assert!(matches!(tested.code, 0 | 9), "{}", tested.err);
    assert!(tested.out.contains("logged in"), "{}", tested.out);
    let known = lab.rows("select ssh_host_key from nas_state").await;
    assert!(sshd.read("host.pub").starts_with(&known[0][0]));
    let batch = ["--nas", "1", "cat; echo err >&2; exit 7"];
    let said = fed(&lab, "send_ssh_cmd", &batch, "add element\n").await;
    assert_eq!(
        (said.code, said.out.as_str()),
        (7, "add element\n"),
        "{}",
        said.err
    );
    assert!(said.err.contains("err"), "{}", said.err);
    let dry = ned(
        &lab,
        "send_ssh_cmd",
        &["--nas", "1", "--dry-run", "touch", "x"],
    )
    .await;
    assert_eq!((dry.code, dry.out.as_str()), (0, "touch x\n"));
    // Nothing to confirm with, nothing changed.
    let same = ned(&lab, "nas_event_daemon", &["nas", "rekey", "1"]).await;
    assert_eq!(same.code, 0, "{}", same.err);
    let nobody = ned(&lab, "send_ssh_cmd", &["--nas", "9", "true"]).await;
    assert_eq!(nobody.code, 249, "{}", nobody.err);
    assert!(nobody.err.contains("exit code: 249"), "{}", nobody.err);
}

#[tokio::test]
async fn the_classic_forms_work_and_have_the_classic_codes() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let user = User::new().await;
    let mut sshd = Sshd::start(&["UsePAM yes", "PasswordAuthentication yes"]).await;
    let (port, print) = (sshd.port.to_string(), sshd.fingerprint("host").await);
    let to = [
        "--port",
        &port,
        "-s",
        "127.0.0.1",
        &user.name,
        &user.password,
    ];
    let with = |more: &[&'static str]| -> Vec<String> {
        let words = to.iter().copied().chain(more.iter().copied());
        words.map(str::to_owned).collect()
    };
    let sent = async |words: &[String]| -> Said {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        ned(&lab, "send_ssh_cmd", &words).await
    };
    let said = sent(&with(&["id", "-un"])).await;
    assert_eq!(
        (said.code, said.out.trim()),
        (0, user.name.as_str()),
        "{}",
        said.err
    );
    assert!(said.err.contains("--host-key"), "{}", said.err);
    assert!(!said.err.contains(&user.password), "{}", said.err);
    let mut checked = vec!["--host-key".to_owned(), print];
    checked.extend(with(&["exit 42"]));
    let said = sent(&checked).await;
    assert_eq!((said.code, said.err.as_str()), (42, ""));
    checked[1] = format!("SHA256:{}", "A".repeat(43));
    let said = sent(&checked).await;
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.contains("host key has changed"), "{}", said.err);
    // Commands on standard input, ended by exit.
    let old = [
        "--port",
        &port,
        "-u",
        &user.name,
        "-p",
        &user.password,
        "127.0.0.1",
    ];
    let said = fed(
        &lab,
        "ssh_send",
        &old,
        "echo one\necho two\nexit 5\necho three\n",
    )
    .await;
    // A login shell may greet first.
    let ended = said.code == 5 && said.out.ends_with("one\ntwo\n");
    assert!(ended, "{}{}", said.out, said.err);
    let wrong = [
        "--port",
        &port,
        "-s",
        "127.0.0.1",
        &user.name,
        "wrong-word",
        "true",
    ];
    let said = ned(&lab, "send_ssh_cmd", &wrong).await;
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(!said.err.contains("wrong-word"), "{}", said.err);
    for bad in [&["true"][..], &["--nas", "x", "true"], &["-s", "a", "b"]] {
        assert_eq!(ned(&lab, "send_ssh_cmd", bad).await.code, 249, "{bad:?}");
    }
    sshd.down().await;
    let said = sent(&with(&["true"])).await;
    assert_eq!(said.code, 254, "{}", said.err);
    assert!(said.err.contains("exit code: 254"), "{}", said.err);
}

#[tokio::test]
async fn a_simulated_device_answers_from_its_table() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let answers = r#"[{"like": "^show version", "stdout": "VRP 8.1\n"}, {"like": "^bad", "stderr": "no\n", "status": 3}]"#;
    std::fs::write(lab.path("answers.json"), answers).unwrap();
    let journal = lab.path("journal.jsonl");
    let mut sim = program(env!("CARGO_BIN_EXE_nas_event_daemon"))
        .args([
            "sim",
            "ssh",
            "--listen",
            "127.0.0.1:0",
            "--password",
            "servicemode",
        ])
        .arg("--answers")
        .arg(lab.path("answers.json"))
        .arg("--journal")
        .arg(&journal)
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(sim.stdout.take().unwrap()).lines();
    let mut said = async |start: &str| -> String {
        let line = lines.next_line().await.unwrap().unwrap();
        line.strip_prefix(start).unwrap().to_owned()
    };
    let addr = said("listening on 127.0.0.1:").await;
    let key = said("host key ").await;
    let sent = async |words: &[&str]| -> Said {
        let mut all = vec![
            "--port",
            &addr,
            "--host-key",
            &key,
            "-s",
            "127.0.0.1",
            "admin",
            "servicemode",
        ];
        all.extend(words);
        ned(&lab, "send_ssh_cmd", &all).await
    };
    let version = sent(&["show", "version"]).await;
    assert_eq!(
        (version.code, version.out.as_str()),
        (0, "VRP 8.1\n"),
        "{}",
        version.err
    );
    let bad = sent(&["bad"]).await;
    assert_eq!((bad.code, bad.err.as_str()), (3, "no\n"));
    let written = std::fs::read_to_string(&journal).unwrap();
    assert!(written.contains(r#""line":"show version""#), "{written}");
    sim.kill().await.unwrap();
}
