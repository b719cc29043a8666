//! The telnet servers of Linux: all their options are refused, and a shell is spoken to.

use std::time::Duration;

use nas_event_daemon::driver::dialogue::{Credentials, Manners};
use nas_event_daemon::driver::leases::Rules;
use nas_event_daemon::driver::telnet::{Limits, Target, Telnet};
use nas_event_daemon::driver::waits::Waits;

use crate::lab::daemon::{Lab, own_port, wait_for};
use crate::lab::db::Kind;
use crate::lab::sshd::run;
use crate::lab::vty::{ASKING, Group, asks_and_refuses};

const LONG: Duration = Duration::from_secs(30);

pub(crate) fn telnet(port: u16, login: &str, password: &str) -> Telnet {
    let target = Target {
        host: "127.0.0.1".into(),
        port,
        credentials: Credentials {
            login: login.into(),
            password: password.into(),
            enable_password: String::new(),
        },
        manners: Manners::default(),
    };
    Telnet::new(target, limits(LONG))
}

pub(crate) fn limits(login_timeout: Duration) -> Limits {
    Limits {
        rules: Rules {
            sessions: 1,
            logins_per_minute: 600.0,
            linger: LONG,
        },
        connect_timeout: LONG,
        login_timeout,
    }
}

/// A user of the system, gone with its home when dropped.
struct User(String);

impl User {
    async fn add(name: &str) -> Self {
        let name = format!("{name}{}", std::process::id());
        run(&["useradd", "-m", "-s", "/bin/bash", &name]).await;
        let set = format!("echo '{name}:servicemode' | chpasswd");
        run(&["sh", "-c", &set]).await;
        Self(name)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let name = self.0.clone();
        #[expect(clippy::disallowed_methods, reason = "the peers are programs")]
        let mut command = std::process::Command::new("userdel");
        // Nothing can be done about it here.
        let _ = command.args(["-rf", &name]).output();
    }
}

async fn up(port: u16) {
    let connected = wait_for(async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .ok()
    });
    assert!(connected.await.is_some(), "the server did not come up");
}

async fn talks(telnet: &Telnet) {
    let mut leased = telnet.lease(&Waits::up_to(LONG), LONG).await.unwrap();
    for n in 0..3 {
        let answer = leased
            .run(&format!("echo one; printf 'two %s\\n' {n}"), &[], LONG)
            .await
            .unwrap();
        assert_eq!(answer.text, format!("one\ntwo {n}"));
        assert!(answer.home);
    }
    let long = format!("echo {}", "word ".repeat(60));
    let answer = leased.run(&long, &[], LONG).await.unwrap();
    let words: Vec<&str> = answer.text.split_whitespace().collect();
    assert!(
        words.len() == 60 && words.iter().all(|w| *w == "word"),
        "{answer:?}"
    );
    assert_eq!(leased.run("true", &[], LONG).await.unwrap().text, "");
    assert_eq!(telnet.give_back(leased), None);
    let again = telnet.lease(&Waits::up_to(LONG), LONG).await.unwrap();
    assert!(!again.is_new);
    assert_eq!(telnet.seen().logins, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busybox_with_a_login() {
    let user = User::add("nedbb").await;
    let (port, _kept) = own_port();
    let at = format!("127.0.0.1:{port}");
    let _server = Group::start(&["busybox", "telnetd", "-F", "-b", &at, "-l", "/bin/login"]);
    up(port).await;
    talks(&telnet(port, &user.0, "servicemode")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busybox_with_a_bare_shell() {
    let (port, _kept) = own_port();
    let at = format!("127.0.0.1:{port}");
    let _server = Group::start(&["busybox", "telnetd", "-F", "-b", &at, "-l", "/bin/sh"]);
    up(port).await;
    talks(&telnet(port, "", "")).await;
}

/// more(1) pages, and script(1) keeps what it showed: that there was a pager is seen there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pager_is_paged_to_its_end() {
    let (port, _kept) = own_port();
    let at = format!("127.0.0.1:{port}");
    // A pager on a terminal that it takes for a printer asks with other words.
    let by = ["env", "TERM=vt100", "busybox", "telnetd"];
    let server = [&by[..], &["-F", "-b", &at, "-l", "/bin/sh"]].concat();
    let _server = Group::start(&server);
    up(port).await;
    let dir = tempfile::tempdir().unwrap();
    let shown = dir.path().join("shown");
    let telnet = telnet(port, "", "");
    let mut leased = telnet.lease(&Waits::up_to(LONG), LONG).await.unwrap();
    let line = format!("script -qc 'seq 1 200 | more' {}", shown.display());
    let answer = leased.run(&line, &[], LONG).await.unwrap();
    let numbers: Vec<String> = (1..=200).map(|n: u32| n.to_string()).collect();
    assert_eq!(answer.text.lines().collect::<Vec<_>>(), numbers);
    let shown = std::fs::read_to_string(shown).unwrap();
    let pages = shown.matches("--More--").count();
    assert!(pages > 3, "{pages} pages: {shown}");
    // And nothing is left of it.
    let answer = leased.run("echo well", &[], LONG).await.unwrap();
    assert_eq!((answer.text.as_str(), answer.home), ("well", true));
}

/// From an event to a question of the device, and to its refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheme_answers_questions_and_names_refusals() {
    let (port, _kept) = own_port();
    let at = format!("127.0.0.1:{port}");
    let _server = Group::start(&["busybox", "telnetd", "-F", "-b", &at, "-l", "/bin/sh"]);
    up(port).await;
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.native("Asking", &format!("driver = \"telnet\"\n{ASKING}"));
    let columns = [
        ("telnet_port", port.to_string()),
        ("vars", format!("'{{\"dir\": {:?}}}'", lab.root())),
    ];
    lab.nas(1, "Asking", 5, &columns).await;
    lab.secret(1, "", "").await;
    lab.accounts(1, [10]).await;
    let daemon = lab.start().await;
    asks_and_refuses(&lab).await;
    // Whoever pastes the line is asked as well.
    let log = lab.account_log(10).join("\n");
    let pasteable = r"> send_telnet_cmd --nas 1 --expect '\[confirm\]$' ";
    assert!(log.contains(pasteable), "{log}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inetutils_with_all_its_options() {
    let user = User::add("nediu").await;
    let (port, _kept) = own_port();
    let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork");
    let _server = Group::start(&["socat", &listen, "EXEC:/usr/sbin/telnetd -h,nofork"]);
    up(port).await;
    talks(&telnet(port, &user.0, "servicemode")).await;
    let refused = telnet(port, &user.0, "wrong-one")
        .lease(&Waits::up_to(LONG), LONG)
        .await;
    let refused = refused.err().unwrap();
    assert!(refused.text.contains("login refused"), "{refused}");
    assert!(!refused.text.contains("wrong-one"), "{refused}");
}
