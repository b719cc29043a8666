//! Files as operators leave them: without +x, from Windows, with a broken first line.

use std::os::unix::fs::PermissionsExt as _;

use nas_event_daemon::attempt::Verdict;

use crate::bench::{Scheme, job, script, session, with_param};

async fn refused(scheme: &Scheme, wanted: &[&str]) {
    let told = scheme.run(&job("user_add")).await;
    let Verdict::Failed(failure) = told.report.verdict else {
        panic!("{:?}", told.report.verdict);
    };
    for part in wanted {
        assert!(failure.text.contains(part), "{failure}");
    }
}

#[tokio::test]
async fn sessions_from_windows_run() {
    for text in [
        "#!/bin/bash\r\nuser_add() {\r\n  echo \"hello\"\r\n  if true; then\r\n    exit 3\r\n  fi\r\n}\r\n",
        "\u{feff}#!/bin/bash\nuser_add() { echo hello; exit 3; }\n",
        "\u{feff}user_add() {\r\necho hello\r\nexit 3\r\n}",
        "#/bin/bash\nuser_add() { echo hello; exit 3; }\n",
    ] {
        let told = session(text).run(&job("user_add")).await;
        assert_eq!(told.report.verdict, Verdict::Exit(3), "{text:?} {told:?}");
        assert_eq!(told.lines.last().unwrap(), "hello");
        let noted = told.lines.iter().any(|line| line.contains("cleaned copy"));
        assert_eq!(noted, !text.starts_with("#/"), "{told:?}");
    }
}

#[tokio::test]
async fn old_scripts_run_whatever_their_first_line() {
    for text in [
        "#!/bin/bash\necho \"$1 ${0##*/}\"; exit 3\n",
        "#/bin/bash\necho \"$1 ${0##*/}\"; exit 3\n",
        "echo \"$1 ${0##*/}\"; exit 3\n",
        "#!/bin/bash\r\necho \"$1 ${0##*/}\"\r\nexit 3\r\n",
        "#!/usr/bin/env bash\r\necho \"$1 ${0##*/}\"\r\nexit 3\r\n",
        "\u{feff}#!/bin/sh\necho \"$1 ${0##*/}\"; exit 3\n",
        "#!/bin/bash -e\nf() { false; echo no; }\necho \"$1 ${0##*/}\"; (exit 3)\necho no\n",
    ] {
        let scheme = script(text);
        let told = scheme.run(&job("user_add")).await;
        assert_eq!(told.report.verdict, Verdict::Exit(3), "{text:?} {told:?}");
        assert_eq!(
            told.lines.last().unwrap(),
            "user_add old script.sh",
            "{text:?}"
        );
    }
}

#[tokio::test]
async fn what_cannot_run_says_why_and_what_to_do() {
    let gone = script("true\n");
    std::fs::remove_file(gone.file("old script.sh")).unwrap();
    refused(&gone, &["old script.sh is missing", "put it back"]).await;

    let gone = session("true\n");
    std::fs::remove_dir_all(gone.dir.path()).unwrap();
    refused(&gone, &["cannot be entered", "NAS settings"]).await;

    refused(
        &script("#!/opt/no/such/perl\n"),
        &["/opt/no/such/perl is not there"],
    )
    .await;
    refused(&script(b"\xff\xfee\0c\0"), &["UTF-16", "save it as UTF-8"]).await;
    refused(&script(b"MZ\x90\0\x03"), &["NUL bytes"]).await;
    refused(&session(b"\xff\xfee\0c\0"), &["bin/session is UTF-16"]).await;

    let program = script(std::fs::read("/bin/true").unwrap());
    refused(&program, &["is not executable", "chmod +x"]).await;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(program.file("old script.sh"), mode).unwrap();
    let told = program.run(&job("user_add")).await;
    assert_eq!(told.report.verdict, Verdict::Done);
}

#[tokio::test]
async fn the_shipped_example_runs_and_sends_nothing() {
    let shipped = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/oss/core/Example-Session/bin/session"
    );
    let scheme = session(std::fs::read(shipped).unwrap());
    for (cmd, shown) in [
        (
            "user_add",
            "nothing is sent: ipset add -exist allowed 10.88.0.15",
        ),
        (
            "user_redirect_cancel",
            "nothing is sent: ipset del -exist redirect 10.88.0.15",
        ),
        (
            "user_info",
            "nothing is sent: ipset test allowed 10.88.0.15",
        ),
    ] {
        let told = scheme.run(&job(cmd)).await;
        assert_eq!(told.report.verdict, Verdict::Done, "{cmd}");
        assert!(told.lines[0].contains(shown), "{told:?}");
    }
    let told = scheme.run(&job("b_negbal")).await;
    assert_eq!(told.report.verdict, Verdict::NotImplemented);
    // an empty address ends the event and touches nothing
    let told = scheme.run(&with_param(job("user_del"), "ip", "")).await;
    assert_eq!(told.report.verdict, Verdict::Exit(1));
    assert_eq!(told.lines, ["ip is empty in the data of account 1424"]);
}
