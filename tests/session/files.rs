//! Files as operators leave them: without +x, from Windows, with a broken first line.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

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

const EXAMPLE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/oss/core/Example-Session/bin/session"
);

#[tokio::test]
async fn the_shipped_example_runs_and_sends_nothing() {
    let scheme = session(std::fs::read(EXAMPLE).unwrap());
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

/// A stand-in for `ssh` and the router behind it: each ipset is a file in `ROUTER`, one entry a line.
/// As the real one it takes the login and one command line, which a shell over there reads.
const ROUTER: &str = r#"
ssh() {
    [ -e ROUTER/down ] && return 255
    [ "$1 $2 $3 $4 $5" = "-o BatchMode=yes -o ConnectTimeout=5 $telnet_login@$nas_ip" ] || return 9
    eval "set -- $6"
    [ "$1" = ipset ] && [ "$3" = -exist ] || return 8
    local set=ROUTER/sets/$4
    touch "$set"
    case $2 in
    add) grep -qxF "$5" "$set" || echo "$5" >>"$set" ;;
    del) grep -vxF "$5" "$set" >"$set.new"; mv "$set.new" "$set" ;;
    *) return 7 ;;
    esac
}
"#;

/// The sets that are not empty.
fn sets(router: &Path) -> BTreeMap<String, String> {
    let files = std::fs::read_dir(router.join("sets")).unwrap();
    let all = files.map(|file| {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        (name, std::fs::read_to_string(file.path()).unwrap())
    });
    all.filter(|(_, entries)| !entries.is_empty()).collect()
}

#[tokio::test]
async fn the_shipped_example_repeats_without_harm_and_changes_the_address() {
    let router = tempfile::tempdir().unwrap();
    let at = router.path();
    std::fs::create_dir(at.join("sets")).unwrap();
    let text = std::fs::read_to_string(EXAMPLE).unwrap();
    let acting = text.replace("\ndry_run=yes\n", "\ndry_run=no\n");
    assert_ne!(acting, text, "Example-Session says dry_run otherwise");
    let stand_in = ROUTER.replace("ROUTER", at.to_str().unwrap());
    let scheme = session(acting + &stand_in);
    let (old, new) = ("10.88.0.15", "10.88.0.77");
    let both = |sets: &[&str], ip: &str| -> BTreeMap<String, String> {
        let entry = |set: &&str| ((*set).to_owned(), format!("{ip}\n"));
        sets.iter().map(entry).collect()
    };
    for (cmd, ip, want) in [
        ("user_add", old, both(&["allowed"], old)),
        ("user_redirect", old, both(&["allowed", "redirect"], old)),
        (
            "user_drop",
            old,
            both(&["allowed", "blocked", "redirect"], old),
        ),
        ("user_del", old, BTreeMap::new()),
        ("user_add", new, both(&["allowed"], new)),
        ("user_redirect", new, both(&["allowed", "redirect"], new)),
        ("user_redirect_cancel", new, both(&["allowed"], new)),
    ] {
        // Each twice, as after a crash.
        for _ in 0..2 {
            let told = scheme.run(&with_param(job(cmd), "ip", ip)).await;
            assert_eq!(told.report.verdict, Verdict::Done, "{cmd}: {told:?}");
            assert_eq!(sets(at), want, "{cmd}");
        }
    }
    // A router that cannot be reached is asked again later.
    std::fs::write(at.join("down"), "").unwrap();
    let told = scheme.run(&with_param(job("user_del"), "ip", new)).await;
    assert_eq!(told.report.verdict, Verdict::Exit(254), "{told:?}");
    assert_eq!(sets(at), both(&["allowed"], new));
}
