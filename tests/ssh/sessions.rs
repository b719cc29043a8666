//! Commands on the one kept connection: what comes back, how many run at once, what a server's
//! limit or death means.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::attempt::{FailureClass, Scope};
use nas_event_daemon::driver::ssh::{Command, Limits, Output, Ssh, settings};
use nas_event_daemon::nas::{Nas, NasId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinSet;

use crate::lab::daemon::{PATIENCE, wait_for};
use crate::lab::rss_kib;
use crate::lab::sshd::{Sshd, User, limits, sessions};

pub(crate) fn command(line: &str) -> Command {
    Command {
        line: line.to_owned(),
        stdin: None,
    }
}

async fn ran(ssh: &Ssh, line: &str) -> Output {
    ssh.exec(&command(line), PATIENCE).await.unwrap()
}

#[tokio::test]
async fn a_command_gives_both_outputs_and_its_status() {
    let sshd = Sshd::start(&[]).await;
    let ssh = sessions(sshd.target(), 4);
    let first = ran(&ssh, "echo out; echo err >&2; exit 3").await;
    let want = Output {
        status: 3,
        stdout: "out\n".to_owned(),
        stderr: "err\n".to_owned(),
        new_session: true,
    };
    assert_eq!(first, want);
    assert_eq!(first.text(), "out\nerr");
    // Without a batch a command reads an end of file; the second rides on the same connection.
    let second = ran(&ssh, "cat; echo end").await;
    assert_eq!(
        (second.stdout.as_str(), second.new_session),
        ("end\n", false)
    );
    // A batch larger than any buffer on the way.
    let batch = "add element inet crb negbal4 { 10.0.0.1 }\n".repeat(20_000);
    let big = Command {
        line: "sha256sum; wc -c >&2 </dev/null".to_owned(),
        stdin: Some(batch.clone()),
    };
    let big = ssh.exec(&big, PATIENCE).await.unwrap();
    let sum = <sha2::Sha256 as sha2::Digest>::digest(batch.as_bytes());
    let sum: String = sum.iter().map(|b| format!("{b:02x}")).collect();
    assert!(big.stdout.starts_with(&sum), "{big:?}");
    assert_eq!(ran(&ssh, "kill -TERM $$").await.status, 128 + 15);
    assert_eq!(ran(&ssh, "no-such-program").await.status, 127);
    // What a command leaves behind does not hold its answer.
    let left = ran(&ssh, "sleep 5 & echo started").await;
    assert_eq!(left.stdout, "started\n");
    assert_eq!(sshd.logins(), 1);
    assert_eq!(ssh.report().logins, 1);
}

/// All commands of ten forks, on a server with this limit and a NAS that says nothing of its own.
async fn all_run_within(limit: usize) {
    let channels = settings::channels(&Nas::new(NasId(1), "server", "127.0.0.1"));
    let sshd = Sshd::start(&[&format!("MaxSessions {limit}")]).await;
    let ssh = Arc::new(sessions(sshd.target(), channels));
    let mut forks = JoinSet::new();
    for fork in 0..10 {
        let ssh = Arc::clone(&ssh);
        forks.spawn(async move {
            for n in 0..20 {
                let said = ran(&ssh, &format!("echo {fork}-{n}")).await;
                assert_eq!(said.stdout, format!("{fork}-{n}\n"));
            }
        });
    }
    while let Some(ended) = forks.join_next().await {
        ended.unwrap();
    }
    let report = ssh.report();
    assert_eq!((report.leased, report.waiting), (0, 0), "{report:?}");
    assert!(report.logins < 10, "{report:?}");
    let refused = sshd.log().contains("no more sessions");
    assert_eq!(refused, report.window < channels, "{report:?}");
    assert!(limit < channels || !refused, "{report:?}");
}

#[tokio::test]
async fn a_server_that_allows_one_session_carries_out_all() {
    all_run_within(1).await;
}

#[tokio::test]
async fn a_server_that_allows_two_sessions_carries_out_all() {
    all_run_within(2).await;
}

#[tokio::test]
async fn a_server_with_its_usual_limit_is_never_asked_for_more() {
    all_run_within(10).await;
}

/// One session only, and a command that does not end: it must be free again. OpenSSH kills for
/// users; for root it cannot, and a new connection has to do.
async fn given_back(login: Option<&User>) {
    let sshd = Sshd::start(&["MaxSessions 1"]).await;
    let mut target = sshd.target();
    if let Some(user) = login {
        target.login.clone_from(&user.name);
    }
    let ssh = sessions(target, 1);
    ran(&ssh, "true").await;
    let mark = sshd.path("open/pid");
    let line = format!("echo $$ >{}; exec sleep 200", mark.display());
    let limit = Duration::from_secs(3);
    let failure = ssh.exec(&command(&line), limit).await.unwrap_err();
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Event, FailureClass::Unknown)
    );
    assert_eq!(failure.code, 143);
    assert!(failure.text.contains("did not end within"), "{failure}");
    assert_eq!(ran(&ssh, "echo free").await.stdout, "free\n");
    if login.is_some() {
        let pid = sshd.read("open/pid");
        let gone = format!("/proc/{}", pid.trim());
        let gone = wait_for(async || (!Path::new(&gone).exists()).then_some(())).await;
        assert!(gone.is_some(), "process {pid} still runs");
    }
    let mut begun_here = vec![sshd.read("open/pid")];
    // A caller that goes away ends its command, too.
    std::fs::remove_file(&mark).unwrap();
    let again = command(&line);
    let begun = async || {
        let text = std::fs::read_to_string(&mark).ok()?;
        text.ends_with('\n').then_some(())
    };
    tokio::select! {
        ended = ssh.exec(&again, PATIENCE) => panic!("{ended:?}"),
        _ = wait_for(begun) => {}
    }
    assert_eq!(ran(&ssh, "echo free").await.stdout, "free\n");
    // What root's server could not kill.
    begun_here.push(sshd.read("open/pid"));
    for pid in begun_here {
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

#[tokio::test]
async fn a_command_that_never_ends_is_killed_and_gives_its_session_back() {
    let user = User::new().await;
    given_back(Some(&user)).await;
}

#[tokio::test]
async fn a_command_of_root_that_never_ends_does_not_hold_the_nas() {
    given_back(None).await;
}

#[tokio::test]
async fn a_server_killed_in_mid_command_leaves_an_unknown_outcome() {
    let mut sshd = Sshd::start(&[]).await;
    let ssh = Arc::new(sessions(sshd.target(), 4));
    ran(&ssh, "true").await;
    let mark = sshd.path("started");
    let line = format!("echo x >{}; exec sleep 1000", mark.display());
    let mut running = JoinSet::new();
    let same = Arc::clone(&ssh);
    running.spawn(async move { same.exec(&command(&line), PATIENCE).await });
    let begun = wait_for(async || mark.exists().then_some(())).await;
    assert!(begun.is_some(), "the command never began");
    sshd.kill_sessions();
    let failure = running.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Event, FailureClass::Unknown)
    );
    assert_eq!((failure.code, failure.parks), (254, false), "{failure}");
    assert!(
        failure.text.contains("may have been carried out"),
        "{failure}"
    );
    // The next command logs in anew.
    let next = ran(&ssh, "echo back").await;
    assert_eq!((next.stdout.as_str(), next.new_session), ("back\n", true));
    sshd.down().await;
    let failure = ssh.exec(&command("true"), PATIENCE).await.unwrap_err();
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Nas, FailureClass::Transport)
    );
    assert!(!failure.parks && failure.code == 254, "{failure}");
    sshd.up().await;
    assert_eq!(ran(&ssh, "echo up").await.stdout, "up\n");
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_the_next_command_logs_in_anew() {
    let sshd = Sshd::start(&[]).await;
    let bounds = Limits {
        linger: Duration::from_millis(100),
        ..limits(2)
    };
    let ssh = Ssh::new(sshd.target(), bounds, Arc::new(|_| {}));
    // A command that runs for longer is no idleness.
    assert_eq!(ran(&ssh, "sleep 0.5; echo end").await.stdout, "end\n");
    let closed = wait_for(async || (ssh.report().open == 0).then_some(())).await;
    assert!(closed.is_some(), "{:?}", ssh.report());
    let gone = wait_for(async || sshd.log().contains("Received disconnect").then_some(())).await;
    assert!(gone.is_some(), "{}", sshd.log());
    assert_eq!(ssh.report().last_error, "", "this is no trouble");
    let next = ran(&ssh, "echo back").await;
    assert_eq!((next.stdout.as_str(), next.new_session), ("back\n", true));
    assert_eq!((ssh.report().logins, sshd.logins()), (2, 2));
}

#[tokio::test]
async fn endless_binary_and_slow_answers_are_bounded() {
    let sshd = Sshd::start(&[]).await;
    let ssh = sessions(sshd.target(), 4);
    let before = rss_kib();
    for line in [
        "exec yes",
        "exec cat /dev/zero",
        "exec cat /dev/urandom",
        "exec yes >&2",
    ] {
        let failure = ssh.exec(&command(line), PATIENCE).await.unwrap_err();
        assert_eq!(
            (failure.scope, failure.class),
            (Scope::Event, FailureClass::Unknown)
        );
        assert!(failure.text.contains("1048576 bytes"), "{line}: {failure}");
        assert!(!failure.parks, "{line}");
    }
    let grown = rss_kib().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB more than before");
    let binary = ran(&ssh, "printf '\\000\\377\\033[2Jx\\n'").await;
    assert!(
        binary.stdout.starts_with('\0') && binary.stdout.ends_with("x\n"),
        "{binary:?}"
    );
    let slow = "while :; do printf x; sleep 0.2; done";
    let failure = ssh
        .exec(&command(slow), Duration::from_secs(2))
        .await
        .unwrap_err();
    assert_eq!(
        (failure.scope, failure.code),
        (Scope::Event, 143),
        "{failure}"
    );
    // None of this cost the connection.
    assert_eq!(ran(&ssh, "echo well").await.stdout, "well\n");
    assert_eq!(sshd.logins(), 1);
}

/// Reads the screen until `text` stands on it.
async fn until(terminal: &mut DuplexStream, text: &str) -> String {
    let mut seen = Vec::new();
    let mut chunk = [0; 1024];
    let reading = async {
        loop {
            let n = terminal.read(&mut chunk).await.unwrap();
            assert!(n > 0, "ended: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&chunk[..n]);
            let shown = String::from_utf8_lossy(&seen).into_owned();
            if shown.contains(text) {
                return shown;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap()
}

#[tokio::test]
async fn a_terminal_is_a_session_of_its_own_and_ends_with_its_stream() {
    let sshd = Sshd::start(&["MaxSessions 1"]).await;
    let ssh = sessions(sshd.target(), 1);
    let (mut terminal, new) = ssh.terminal(PATIENCE).await.unwrap();
    assert!(new);
    // It is one: a shell that knows its terminal, and keeps what was said before.
    terminal.write_all(b"tty; x=41\n").await.unwrap();
    until(&mut terminal, "/dev/pts/").await;
    terminal
        .write_all(b"echo sum=$((x + 1)) pid=$$.\n")
        .await
        .unwrap();
    let shown = until(&mut terminal, "sum=42 pid=").await;
    let (_, pid) = shown.split_once("sum=42 pid=").unwrap();
    let pid = match pid.split_once('.') {
        Some((pid, _)) => pid.to_owned(),
        None => format!(
            "{pid}{}",
            until(&mut terminal, ".").await.split('.').next().unwrap()
        ),
    };
    assert_eq!((ssh.report().leased, ssh.report().open), (1, 1));
    // The only session of the server is taken: a command waits until the terminal is gone.
    let short = Duration::from_millis(300);
    let failure = ssh.exec(&command("true"), short).await.unwrap_err();
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Nas, FailureClass::Transport)
    );
    drop(terminal);
    assert_eq!(ran(&ssh, "echo free").await.stdout, "free\n");
    let gone = format!("/proc/{pid}");
    let gone = wait_for(async || (!Path::new(&gone).exists()).then_some(())).await;
    assert!(gone.is_some(), "the shell {pid} still runs");
    // A shell that ends by itself ends the stream.
    let (mut terminal, new) = ssh.terminal(PATIENCE).await.unwrap();
    assert!(!new, "on the kept connection");
    terminal.write_all(b"exit\n").await.unwrap();
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, terminal.read_to_end(&mut rest));
    read.await.unwrap().unwrap();
    assert_eq!(sshd.logins(), 1);
}
