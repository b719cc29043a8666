//! What a script gets and what its end means.

use std::collections::BTreeMap;
use std::sync::Arc;

use nas_event_daemon::attempt::{FailureClass, Scope, Verdict};
use nas_event_daemon::nas::Mode;
use nas_event_daemon::scheme::Execute as _;
use nas_event_daemon::scheme::environ::{HOME, LANG, PATH};

use crate::bench::{
    argv, bash, exists, job, marked, parent, pids, script, session, session_beside, shim, until,
    with_param,
};

#[tokio::test]
async fn exit_codes_and_signals() {
    let scheme = session(
        "user_add() { true; }
         user_del() { exit 3; }
         user_drop() { return 143; }
         user_accept() { exit 254; }
         user_auth() { kill -TERM $$; sleep 100; }
         user_edit() { kill -SEGV $$; }
         user_redirect() { exit 249; }",
    );
    for (cmd, verdict) in [
        ("user_add", Verdict::Done),
        ("user_del", Verdict::Exit(3)),
        ("user_drop", Verdict::Exit(143)),
        ("user_accept", Verdict::Exit(254)),
        ("user_auth", Verdict::Exit(143)),
        ("user_edit", Verdict::Exit(139)),
        ("user_redirect", Verdict::Exit(249)),
        ("user_test", Verdict::NotImplemented),
    ] {
        let told = scheme.run(&job(cmd)).await;
        assert_eq!(told.report.verdict, verdict, "{cmd}");
        assert_eq!(told.report.scheme_hash, "abc");
    }
}

#[tokio::test]
async fn hooks_run_around_the_event_and_change_nothing() {
    let scheme = session(
        "user_event_before() { list=from_before; echo before; exit 9; }
         user_event_after() { echo \"after $1 $list\"; exit 8; }
         user_add() { echo \"event $list\"; exit 254; }
         user_del() { list=lost; }",
    );
    let told = scheme.run(&job("user_add")).await;
    assert_eq!(told.report.verdict, Verdict::Exit(254));
    assert_eq!(
        told.lines,
        ["before", "event from_before", "after 254 from_before"]
    );
    let told = scheme.run(&job("user_del")).await;
    assert_eq!(told.report.verdict, Verdict::Done);
    assert_eq!(told.lines, ["before", "after 0 from_before"]);
    // no hook for what is not there
    let told = scheme.run(&job("user_edit")).await;
    assert_eq!(told.report.verdict, Verdict::NotImplemented);
    assert_eq!(told.lines, [""; 0]);
}

#[tokio::test]
async fn bash_habits_of_operators_keep_their_meaning() {
    let scheme = session(
        "set -eu -o pipefail
         trap 'echo cleanup' EXIT
         user_event_before() { false; echo never_shown; }
         user_event_after() { echo after; }
         user_add() { false; echo never_shown; }
         user_del() { true; }",
    );
    let told = scheme.run(&job("user_add")).await;
    assert_eq!(told.report.verdict, Verdict::Exit(1));
    assert!(told.lines.contains(&"after".to_owned()), "{told:?}");
    assert!(told.lines.contains(&"cleanup".to_owned()), "{told:?}");
    let told = scheme.run(&job("user_del")).await;
    assert_eq!(told.report.verdict, Verdict::Done);
    // a dispatcher at the end must not run the command a second time
    let scheme = session("user_add() { echo once; }\n\"$@\"\n[ -z \"$1\" ] || user_add\n");
    assert_eq!(scheme.run(&job("user_add")).await.lines, ["once"]);
}

#[tokio::test]
async fn a_missing_function_is_known_whatever_the_file_does() {
    let scheme =
        session("exec >/dev/null 2>&1 3</dev/null\nuser_add() { :; }\nunset NED_ATTEMPT\n");
    let told = scheme.run(&job("user_del")).await;
    assert_eq!(told.report.verdict, Verdict::NotImplemented);
    // a code that looks like bash's own "not found" is the operator's
    let scheme = session("user_add() { exit 127; }");
    let told = scheme.run(&job("user_add")).await;
    assert_eq!(told.report.verdict, Verdict::Exit(127));
    // a file that does not load is not "has no such command"
    for text in [
        "user_add( {\nuser_del() { :; }\n",
        "return 4\nuser_del() { :; }\n",
    ] {
        let told = session(text).run(&job("user_del")).await;
        let Verdict::Failed(failure) = told.report.verdict else {
            panic!("{:?}", told.report.verdict);
        };
        assert_eq!(failure.class, FailureClass::Permanent);
        assert!(
            failure.text.contains("did not define user_del"),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn the_environment_is_exact() {
    let scheme = session("user_add() { env -0 > \"$oss_path/env\"; }");
    let mut job = job("user_add");
    job.possible_duplicate = true;
    job.try_count = 3;
    job = with_param(job, "accept", true);
    job = with_param(job, "mac", serde_json::Value::Null);
    job = with_param(job, "addresses", serde_json::json!(["10.0.0.1", "fd00::1"]));
    job = with_param(job, "nas_ip", "6.6.6.6");
    job = with_param(job, "telnet_password", "stolen");
    assert_eq!(scheme.run(&job).await.report.verdict, Verdict::Done);
    let text = std::fs::read_to_string(scheme.file("env")).unwrap();
    let mut env: BTreeMap<_, _> = text
        .split_terminator('\0')
        .map(|entry| entry.split_once('=').unwrap())
        .collect();
    for of_bash in ["PWD", "SHLVL", "_", "OLDPWD"] {
        env.remove(of_bash);
    }
    let token = env.remove("NED_ATTEMPT").unwrap();
    assert!(token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit()));
    let dir = scheme.dir.path().to_str().unwrap();
    let mark = job.params.text("test_mark");
    let wanted = BTreeMap::from([
        ("HOME", HOME),
        ("LANG", LANG),
        ("PATH", PATH),
        ("abonent_id", "1375"),
        ("accept", "1"),
        ("addresses", "[\"10.0.0.1\",\"fd00::1\"]"),
        ("cmd", "user_add"),
        ("coa_psw", "c0a-secret"),
        ("event_id", "77"),
        ("event_type", "user_add"),
        ("ip", "10.88.0.15"),
        ("mac", ""),
        ("nas_id", "1116"),
        ("nas_ip", "10.90.185.2"),
        ("nas_name", "Test_NAS"),
        ("oss_path", dir),
        ("possible_duplicate", "1"),
        ("telnet_ip", "10.90.185.2"),
        ("telnet_login", "admin"),
        ("telnet_password", "s3cret-pass"),
        ("test_mark", &mark),
        ("try_count", "3"),
        ("user_id", "1424"),
    ]);
    assert_eq!(env, wanted);
}

const HOSTILE: [&str; 8] = [
    "$(touch pwned)",
    "`touch pwned`",
    "a'b\"c\\d",
    "two\nlines\r\n\ttab",
    "; touch pwned #",
    "() { :; }; touch pwned",
    "{{ ip }} %s \u{202e} é",
    "-e",
];

#[tokio::test]
async fn hostile_values_arrive_as_data_and_the_logged_command_does_the_same() {
    let scheme = session("user_add() { printf '%s|' \"$name\" > got; }");
    for value in HOSTILE {
        let told = scheme
            .run(&with_param(job("user_add"), "name", value))
            .await;
        assert_eq!(told.report.verdict, Verdict::Done, "{value:?}");
        let got = || std::fs::read_to_string(scheme.file("got")).unwrap();
        assert_eq!(got(), format!("{value}|"));
        assert!(
            !told.command.contains('\n'),
            "one record, one line: {value:?}"
        );
        std::fs::write(scheme.file("got"), "").unwrap();
        let pasted = bash(&told.command).status();
        assert!(pasted.unwrap().success(), "{}", told.command);
        assert_eq!(got(), format!("{value}|"), "{}", told.command);
        assert!(!scheme.file("pwned").exists(), "{value:?}");
    }
}

#[tokio::test]
async fn values_that_no_environment_carries_are_refused_by_name() {
    let scheme = session("user_add() { touch ran; }");
    let large = "x".repeat(128 * 1024);
    for (name, value) in [
        ("comment", "a\0b"),
        ("comment", large.as_str()),
        ("http_proxy", "x"),
        ("my_psw", "x"),
        ("user_password", "x"),
        ("the_secret", "x"),
        ("LD_PRELOAD", "x"),
        ("a-b", "x"),
    ] {
        let told = scheme.run(&with_param(job("user_add"), name, value)).await;
        let Verdict::Failed(failure) = told.report.verdict else {
            panic!("{name}: {:?}", told.report.verdict);
        };
        assert_eq!(
            (failure.class, failure.scope),
            (FailureClass::Permanent, Scope::Event)
        );
        assert!(failure.text.contains(name), "{failure}");
    }
    let mut many = job("user_add");
    for n in 0..16 {
        many = with_param(many, &format!("v{n}"), "x".repeat(100_000));
    }
    let told = scheme.run(&many).await;
    assert!(
        matches!(&told.report.verdict, Verdict::Failed(f) if f.text.contains("unsafe value")),
        "{:?}",
        told.report.verdict
    );
    assert!(!scheme.file("ran").exists());
    // just below the limit it runs
    let told = scheme
        .run(&with_param(job("user_add"), "v", "x".repeat(131_000)))
        .await;
    assert_eq!(told.report.verdict, Verdict::Done);
}

#[tokio::test]
async fn the_process_list_shows_one_titled_line_and_no_secret() {
    let scheme = session("user_add() { echo > ready; read -r _ < go; }");
    let go = scheme.file("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut job = job("user_add");
    job.try_count = 4242;
    let looks = async {
        until("the script runs", || exists(&scheme.file("ready"))).await;
        let bash = *marked(&job).first().unwrap();
        let shim = parent(bash).unwrap();
        assert_eq!(
            argv(shim),
            "nas_event_daemon: nas=1116 ip=10.90.185.2 user=1424 cmd=user_add try=4242"
        );
        for pid in pids().filter(|pid| *pid != shim) {
            let argv = argv(pid);
            assert!(!argv.contains("try=4242"), "{argv}");
            assert!(!argv.contains("s3cret-pass"), "{argv}");
            assert!(!argv.contains("c0a-secret"), "{argv}");
        }
        assert!(!argv(bash).contains("nas_event_daemon"), "{}", argv(bash));
        let environ = std::fs::read(format!("/proc/{shim}/environ")).unwrap();
        // Nothing of the daemon's own: a mark, and no huge pages for so small a process.
        let mut of_shim: Vec<&[u8]> = environ
            .split(|b| *b == 0)
            .filter(|v| !v.is_empty())
            .collect();
        of_shim.sort_unstable();
        assert_eq!(of_shim, [&b"MIMALLOC_ALLOW_THP=0"[..], b"NED_SHIM=1"]);
        std::fs::write(&go, "\n").unwrap();
    };
    let (told, ()) = tokio::join!(scheme.run(&job), looks);
    assert_eq!(told.report.verdict, Verdict::Done);
    for shown in [
        "telnet_password=\"$NAS_PASSWORD\"",
        "coa_psw=\"$NAS_COA_SECRET\"",
    ] {
        assert!(told.command.contains(shown), "{}", told.command);
    }
    assert!(!told.command.contains("s3cret-pass"), "{}", told.command);
}

#[tokio::test]
async fn interactive_commands_answer_and_secrets_are_redacted() {
    let scheme = session(
        "user_info() { echo up; echo; echo \"pass $telnet_password\"; echo noise >&2; }
         user_add() { echo out; }",
    );
    let told = scheme.run(&job("user_info")).await;
    assert_eq!(told.report.answer.as_deref(), Some("up\n\npass ***"));
    assert!(told.lines.contains(&"noise".to_owned()), "{told:?}");
    let told = scheme.run(&job("user_add")).await;
    assert_eq!(told.report.answer, None);
    assert_eq!(told.lines, ["out"]);
}

#[tokio::test]
async fn lines_are_shown_while_the_script_still_runs() {
    let scheme = session("user_add() { echo working; read -r _ < go; }");
    let go = scheme.file("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (told_early, mut early) = tokio::sync::mpsc::channel(16);
    let mut transcript = nas_event_daemon::attempt::Transcript::new(
        Vec::new(),
        Box::new(move |lines| {
            for line in lines {
                let _ = told_early.try_send(line.text);
            }
        }),
    );
    let job = job("user_add");
    let watch = async {
        while early.recv().await.unwrap() != "working" {}
        std::fs::write(&go, "\n").unwrap();
    };
    let (report, ()) = tokio::join!(scheme.runs.run(&job, &mut transcript), watch);
    assert_eq!(report.verdict, Verdict::Done);
}

#[tokio::test]
async fn observe_mode_notes_the_command_and_runs_nothing() {
    let scheme = session("touch sourced\nuser_add() { touch ran; }");
    let mut job = job("user_add");
    let mut nas = crate::bench::nas();
    nas.mode = Mode::Observe;
    job.nas = Arc::new(nas);
    let told = scheme.run(&job).await;
    assert_eq!(told.report.verdict, Verdict::Observed);
    assert!(told.command.contains("user_id=1424"), "{}", told.command);
    assert!(!scheme.file("sourced").exists() && !scheme.file("ran").exists());
}

#[tokio::test]
async fn a_scheme_that_says_so_runs_in_observe_mode_and_its_helpers_send_nothing() {
    // Nobody listens on port 1: what is sent fails.
    let helper = shim().display().to_string();
    let text = format!(
        "send() {{ (exec -a send_mikrotik_cmd {helper} -s 127.0.0.1 u p --port 1 /queue simple print); }}\n\
         user_add() {{ send; }}\nuser_del() {{ exit 3; }}"
    );
    let scheme = session_beside(text, "observe = true");
    for (mode, cmd, verdict, said) in [
        (
            Mode::Observe,
            "user_add",
            Verdict::Observed,
            "/queue/simple/print",
        ),
        (Mode::Observe, "user_del", Verdict::Observed, "code 3"),
        (Mode::Active, "user_add", Verdict::Exit(254), "ERROR"),
    ] {
        let mut job = job(cmd);
        let mut nas = crate::bench::nas();
        nas.mode = mode;
        job.nas = Arc::new(nas);
        let told = scheme.run(&job).await;
        assert_eq!(told.report.verdict, verdict, "{told:?}");
        let lines = told.lines.join("\n");
        assert!(lines.contains(said), "{told:?}");
        let tried = lines.contains("ERROR");
        assert_eq!(tried, mode == Mode::Active, "{told:?}");
    }
}

#[tokio::test]
async fn an_old_script_gets_the_cmd_as_its_first_argument() {
    let scheme = script("#!/bin/bash\necho \"$# $1 $cmd $user_id ${0##*/}\"; exit 254\n");
    let told = scheme.run(&job("user_del")).await;
    assert_eq!(told.report.verdict, Verdict::Exit(254));
    assert_eq!(told.lines, ["1 user_del user_del 1424 old script.sh"]);
    assert!(
        told.command.ends_with("'./old script.sh' user_del"),
        "{}",
        told.command
    );
}
