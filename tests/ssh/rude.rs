//! Servers that no OpenSSH would be: silent, endless, broken, or not SSH at all. Whatever they
//! do, it takes bounded time and memory, and the failure has the right scope and class.

use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::attempt::{Failure, FailureClass, Scope};
use nas_event_daemon::clock;
use nas_event_daemon::driver::ssh::trust::Trust;
use nas_event_daemon::driver::ssh::{Command, Limits, Ssh, Target};
use nas_event_daemon::driver::waits::Waits;
use nas_event_daemon::sim::ssh::{Answer, Faults, Options, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::lab::daemon::PATIENCE;
use crate::lab::rss_kib;
use crate::lab::sshd::{Sshd, limits, sessions};
use crate::sessions::command;

const PASSWORD: &str = "servicemode";

async fn device(faults: Faults) -> Sim {
    let answer = |like: &str, stdout: String| Answer {
        like: like.to_owned(),
        stdout,
        ..Answer::default()
    };
    let options = Options {
        password: PASSWORD.to_owned(),
        answers: vec![
            answer("^long", "x".repeat(100_000)),
            answer("^echo", "well\n".to_owned()),
            Answer {
                status: 4,
                stderr: "no\n".to_owned(),
                ..answer("^fail .*batch", "out\n".to_owned())
            },
        ],
        faults,
        ..Options::default()
    };
    Sim::start(options).await.unwrap()
}

fn target(port: u16, trust: Trust) -> Target {
    Target {
        host: "127.0.0.1".to_owned(),
        port,
        login: "admin".to_owned(),
        password: PASSWORD.to_owned(),
        key: String::new(),
        enable_password: String::new(),
        manners: nas_event_daemon::driver::dialogue::Manners::default(),
        trust,
        legacy: false,
    }
}

fn to(sim: &Sim, bounds: Limits) -> Ssh {
    let trust = Trust::of(Some(&sim.host_key()), None).unwrap();
    Ssh::new(target(sim.addr().port(), trust), bounds, Arc::new(|_| {}))
}

async fn fails(ssh: &Ssh, line: &str, limit: Duration) -> Failure {
    let began = clock::tick_ms();
    let failure = ssh.exec(&command(line), limit).await.unwrap_err();
    let took = Duration::from_millis(clock::tick_ms() - began);
    assert!(
        took < limit + Duration::from_secs(10),
        "{took:?} for {failure}"
    );
    failure
}

#[tokio::test]
async fn answers_of_the_simulator_are_as_its_table_says() {
    let sim = device(Faults::default()).await;
    let ssh = to(&sim, limits(4));
    let said = ssh.exec(&command("echo"), PATIENCE).await.unwrap();
    assert_eq!((said.status, said.stdout.as_str()), (0, "well\n"));
    let fed = Command {
        line: "fail".to_owned(),
        stdin: Some("a batch\n".to_owned()),
    };
    // The expression spans line and batch only where it says so.
    let said = ssh.exec(&fed, PATIENCE).await.unwrap();
    assert_eq!(said.status, 0, "{said:?}");
    let fed = Command {
        line: "fail now".to_owned(),
        ..fed
    };
    let said = ssh.exec(&fed, PATIENCE).await.unwrap();
    assert_eq!((said.status, said.text().as_str()), (4, "out\nno"));
    assert_eq!((sim.seen().logins, sim.seen().commands), (1, 3));
}

#[tokio::test]
async fn what_breaks_in_the_middle_may_have_been_carried_out() {
    let sim = device(Faults {
        drop_after: Some(2),
        ..Faults::default()
    })
    .await;
    let ssh = to(&sim, limits(1));
    ssh.exec(&command("echo"), PATIENCE).await.unwrap();
    let failure = fails(&ssh, "long", PATIENCE).await;
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Event, FailureClass::Unknown)
    );
    assert!(!failure.parks && failure.code == 254, "{failure}");
    let said = ssh.exec(&command("echo"), PATIENCE).await.unwrap();
    assert!(said.new_session);
}

#[tokio::test]
async fn what_never_answers_trickles_or_never_ends_is_ended_and_told_so() {
    let second = Duration::from_secs(1);
    let sim = device(Faults {
        silent: true,
        ..Faults::default()
    })
    .await;
    let ssh = to(&sim, limits(2));
    ssh.exec(&command("echo"), second).await.unwrap_err();
    let seen = sim
        .wait_until(|seen| seen.killed == 1 && seen.running == 0)
        .await;
    assert_eq!(seen.logins, 1);
    sim.set_faults(Faults {
        trickle_ms: Some(100),
        ..Faults::default()
    });
    let failure = fails(&ssh, "long", second).await;
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Event, FailureClass::Unknown)
    );
    assert_eq!(failure.code, 143, "{failure}");
    sim.set_faults(Faults {
        endless: true,
        ..Faults::default()
    });
    let failure = fails(&ssh, "echo", PATIENCE).await;
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Event, FailureClass::Unknown)
    );
    sim.set_faults(Faults::default());
    ssh.exec(&command("echo"), PATIENCE).await.unwrap();
    assert_eq!(sim.seen().logins, 1, "the connection was kept");
}

#[tokio::test]
async fn a_device_without_exit_status_is_believed_and_one_without_exec_parks() {
    let sim = device(Faults {
        no_status: true,
        ..Faults::default()
    })
    .await;
    let ssh = to(&sim, limits(2));
    let said = ssh.exec(&command("echo"), PATIENCE).await.unwrap();
    assert_eq!((said.status, said.stdout.as_str()), (0, "well\n"));
    sim.set_faults(Faults {
        no_exec: true,
        ..Faults::default()
    });
    let failure = fails(&ssh, "echo", PATIENCE).await;
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Nas, FailureClass::Permanent)
    );
    assert!(failure.parks, "{failure}");
}

#[tokio::test]
async fn refused_sessions_are_asked_for_again_with_fewer_at_once() {
    let sim = device(Faults {
        session_limit: Some(2),
        latency_ms: 2,
        ..Faults::default()
    })
    .await;
    let ssh = Arc::new(to(&sim, limits(8)));
    let mut forks = JoinSet::new();
    for _ in 0..10 {
        let ssh = Arc::clone(&ssh);
        forks.spawn(async move {
            for _ in 0..50 {
                ssh.exec(&command("echo"), PATIENCE).await.unwrap();
            }
        });
    }
    while let Some(ended) = forks.join_next().await {
        ended.unwrap();
    }
    let seen = sim.seen();
    assert_eq!((seen.commands, seen.running_peak), (500, 2), "{seen:?}");
    assert!(
        seen.sessions_refused > 0 && seen.sessions_refused < 250,
        "{seen:?}"
    );
    assert!(ssh.report().window < 8, "{:?}", ssh.report());
}

#[tokio::test]
async fn logins_are_bounded_however_often_a_server_hangs_up() {
    let sim = device(Faults {
        drop_after: Some(1),
        ..Faults::default()
    })
    .await;
    let bounds = Limits {
        logins_per_minute: 3,
        ..limits(1)
    };
    let ssh = to(&sim, bounds);
    for _ in 0..3 {
        let failure = fails(&ssh, "long", PATIENCE).await;
        assert_eq!(failure.class, FailureClass::Unknown, "{failure}");
    }
    let failure = fails(&ssh, "long", Duration::from_millis(500)).await;
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Nas, FailureClass::Transport)
    );
    assert!(!failure.parks, "{failure}");
    assert_eq!(sim.seen().logins, 3);
}

#[tokio::test]
async fn refused_logins_are_tried_again_inside_the_attempt() {
    let sim = Arc::new(
        device(Faults {
            refuse_logins: true,
            ..Faults::default()
        })
        .await,
    );
    let ssh = to(&sim, limits(1));
    let watched = Arc::clone(&sim);
    let mut later = JoinSet::new();
    later.spawn(async move {
        watched.wait_until(|seen| seen.logins_refused >= 2).await;
        watched.set_faults(Faults::default());
    });
    ssh.exec(&command("echo"), PATIENCE).await.unwrap();
    assert!(sim.seen().connections >= 2);
    sim.set_faults(Faults {
        refuse_logins: true,
        ..Faults::default()
    });
    let before = sim.seen().connections;
    let refused = to(&sim, limits(1));
    let failure = fails(&refused, "echo", PATIENCE).await;
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Nas, FailureClass::Refused)
    );
    assert!(failure.parks, "{failure}");
    assert_eq!(sim.seen().connections - before, 4, "one try and three more");
}

/// A TCP peer that is no SSH server.
#[derive(Clone, Copy)]
enum Peer {
    Silent,
    HangsUp,
    EndlessBanner,
    Binary,
    Http,
    Trickle,
}

async fn not_ssh(peer: Peer, mut stream: TcpStream) {
    let mut chunk = [0; 1024];
    let junk: Vec<u8> = (0..64 * 1024_u32).map(|n| (n * 7 % 251) as u8).collect();
    match peer {
        Peer::HangsUp => {}
        Peer::Silent => while stream.read(&mut chunk).await.is_ok_and(|n| n > 0) {},
        Peer::EndlessBanner => while stream.write_all(b"welcome, welcome\r\n").await.is_ok() {},
        Peer::Binary => {
            let _ = stream.write_all(b"SSH-2.0-x\r\n").await;
            while stream.write_all(&junk).await.is_ok() {}
        }
        Peer::Http => {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            while stream.read(&mut chunk).await.is_ok_and(|n| n > 0) {}
        }
        Peer::Trickle => {
            for byte in b"SSH-2.0-slow".iter().cycle() {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_ssh_server_is_a_nas_that_cannot_be_reached() {
    for peer in [
        Peer::Silent,
        Peer::HangsUp,
        Peer::EndlessBanner,
        Peer::Binary,
        Peer::Http,
        Peer::Trickle,
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut peers = JoinSet::new();
        peers.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(not_ssh(peer, stream));
            }
        });
        let bounds = Limits {
            login_timeout: Duration::from_millis(700),
            ..limits(1)
        };
        let ssh = Ssh::new(target(port, Trust::Anybody), bounds, Arc::new(|_| {}));
        let before = rss_kib();
        let failure = fails(&ssh, "echo", Duration::from_secs(20)).await;
        assert_eq!(
            (failure.scope, failure.class),
            (Scope::Nas, FailureClass::Transport)
        );
        assert!(!failure.parks, "{failure}");
        let grown = rss_kib().saturating_sub(before);
        assert!(grown < 32 * 1024, "{grown} KiB more: {failure}");
    }
}

/// What a login finds behind its terminal, by the word in the file `kind`.
const DEVICE: &str = r#"kind=$(cat "$1")
case $kind in
banner) exec yes welcome ;;
hello) while :; do printf x; sleep 0.1; done ;;
esac
while printf 'sw# ' && read -r line; do
    [ -n "$line" ] || continue
    case $kind in
    flood) exec yes '10.0.0.0/8 via 10.0.0.1' ;;
    binary) exec cat /dev/urandom ;;
    drip) while :; do printf s; sleep 0.1; done ;;
    esac
    echo "got $line"
done
"#;

/// The dialogue is that of telnet; what carries it here has windows and buffers of its own.
#[tokio::test]
async fn what_a_terminal_shows_is_bounded_in_time_and_memory() {
    let sshd = Sshd::start(&["ForceCommand /bin/sh $D/device $D/kind"]).await;
    std::fs::write(sshd.path("device"), DEVICE).unwrap();
    let behave = |kind: &str| std::fs::write(sshd.path("kind"), kind).unwrap();
    let ssh = sessions(sshd.target(), 2);
    let waits = Waits::up_to(PATIENCE);
    let second = Duration::from_secs(1);
    let bounded = |what: &str, began: u64, before: u64| {
        let took = clock::tick_ms() - began;
        assert!(took < 20_000, "{took} ms: {what}");
        let grown = rss_kib().saturating_sub(before);
        assert!(grown < 32 * 1024, "{grown} KiB more: {what}");
    };
    for (kind, limit) in [("banner", PATIENCE), ("hello", second)] {
        behave(kind);
        let (began, before) = (clock::tick_ms(), rss_kib());
        let failure = ssh.lease(&waits, limit).await.unwrap_err();
        bounded(kind, began, before);
        assert_eq!(
            (failure.scope, failure.class, failure.parks),
            (Scope::Nas, FailureClass::Transport, false),
            "{kind}: {failure}"
        );
    }
    for (kind, limit, code) in [
        ("flood", PATIENCE, 254),
        ("binary", PATIENCE, 254),
        ("drip", second, 143),
    ] {
        behave(kind);
        let mut leased = ssh.lease(&waits, PATIENCE).await.unwrap();
        let (began, before) = (clock::tick_ms(), rss_kib());
        let failure = leased.run("show x", &[], limit).await.unwrap_err();
        bounded(kind, began, before);
        assert_eq!(
            (failure.scope, failure.class, failure.code),
            (Scope::Event, FailureClass::Unknown, code),
            "{kind}: {failure}"
        );
        assert!(
            ssh.give_back(leased).is_some(),
            "{kind}: such a session is not used again"
        );
    }
    // None of this cost the connection, nor a place on it.
    behave("well");
    let mut leased = ssh.lease(&waits, PATIENCE).await.unwrap();
    let said = leased.run("show x", &[], PATIENCE).await.unwrap();
    assert_eq!(said.text, "got show x");
    assert_eq!(ssh.give_back(leased), None);
    assert_eq!(sshd.logins(), 1);
}
