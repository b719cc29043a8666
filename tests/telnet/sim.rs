//! The simulator that ships with the product, by the driver and as a process.

use std::process::Stdio;
use std::time::Duration;

use nas_event_daemon::attempt::FailureClass;
use nas_event_daemon::driver::dialogue::{Credentials, Manners};
use nas_event_daemon::driver::telnet::{Command, Target, Telnet};
use nas_event_daemon::driver::waits::Waits;
use nas_event_daemon::sim::telnet::{Faults, Options, Sim};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::sshd::program;
use crate::peers::limits;

const LONG: Duration = Duration::from_secs(30);

async fn started(faults: Faults) -> Sim {
    let options = Options {
        login: "ned".into(),
        password: "servicemode".into(),
        enable_password: "raised".into(),
        page: 5,
        faults,
        ..Options::default()
    };
    Sim::start(options).await.unwrap()
}

fn client(sim: &Sim) -> Telnet {
    let target = Target {
        host: "127.0.0.1".into(),
        port: sim.addr().port(),
        credentials: Credentials {
            login: "ned".into(),
            password: "servicemode".into(),
            enable_password: "raised".into(),
        },
        manners: Manners::default(),
    };
    Telnet::new(target, limits(LONG))
}

fn lines(lines: &[&str]) -> Command {
    Command {
        lines: lines.iter().map(|l| (*l).to_owned()).collect(),
        expect: vec![r"\[confirm\]$".into()],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_change_what_can_be_read_back() {
    let sim = started(Faults::default()).await;
    let telnet = client(&sim);
    let mut all = vec!["configure terminal".to_owned()];
    all.extend((0..23).map(|n| format!("ip route 10.0.0.{n}/32 Null0")));
    all.push("end".into());
    let command = Command {
        lines: all,
        expect: Vec::new(),
    };
    telnet.talk(&command, LONG).await.unwrap();
    assert_eq!(sim.config().len(), 23);
    let shown = telnet
        .talk(&lines(&["show running-config"]), LONG)
        .await
        .unwrap();
    assert_eq!(shown.text.lines().collect::<Vec<_>>(), sim.config());
    let asked = lines(&["clear subscriber 7", "y", "show version"]);
    let said = telnet.talk(&asked, LONG).await.unwrap();
    assert!(
        said.text.contains("[confirm]") && said.text.ends_with("version 1"),
        "{said:?}"
    );
    let wrong = telnet.talk(&lines(&["ip rout"]), LONG).await.unwrap_err();
    assert_eq!((wrong.class, wrong.code), (FailureClass::Permanent, 249));
    assert_eq!((sim.seen().logins, sim.seen().sessions_peak), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_faults_are_told_apart() {
    let drop_after = Faults {
        drop_after: Some(1),
        ..Faults::default()
    };
    let garbage = Faults {
        garbage: true,
        ..Faults::default()
    };
    for faults in [drop_after, garbage] {
        let sim = started(faults).await;
        let failure = client(&sim)
            .talk(&lines(&["show version"]), LONG)
            .await
            .unwrap_err();
        assert_eq!(failure.class, FailureClass::Unknown, "{failure}");
    }
    let sim = started(Faults {
        session_limit: Some(0),
        ..Faults::default()
    })
    .await;
    let failure = client(&sim).talk(&lines(&["x"]), LONG).await.unwrap_err();
    assert_eq!(
        (failure.class, failure.parks),
        (FailureClass::Transport, false),
        "{failure}"
    );
    let sim = started(Faults {
        refuse_logins: true,
        ..Faults::default()
    })
    .await;
    let failure = client(&sim).talk(&lines(&["x"]), LONG).await.unwrap_err();
    assert_eq!(
        (failure.class, failure.parks),
        (FailureClass::Refused, true),
        "{failure}"
    );
    let sim = started(Faults {
        trickle_ms: Some(5),
        ..Faults::default()
    })
    .await;
    let said = client(&sim)
        .talk(&lines(&["show version"]), LONG)
        .await
        .unwrap();
    assert!(said.text.ends_with("version 1"), "{said:?}");
    sim.set_faults(Faults {
        silent: true,
        ..Faults::default()
    });
    let short = Duration::from_secs(3);
    let failure = client(&sim)
        .talk(&lines(&["show version"]), short)
        .await
        .unwrap_err();
    assert_eq!(failure.class, FailureClass::Unknown, "{failure}");
    let nowhere = Options {
        listen: "0.0.0.0:0".parse().unwrap(),
        ..Options::default()
    };
    assert!(Sim::start(nowhere).await.is_err());
}

/// A device with two lines and many events for it: with `spare` of them kept free for people, a
/// person gets in meanwhile, and no event suffers.
async fn a_person_comes_while_many_events_wait(spare: u64) {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let busy = Faults {
        session_limit: Some(2),
        latency_ms: 100,
        ..Faults::default()
    };
    let sim = started(busy.clone()).await;
    lab.native(
        "Vty",
        "driver = \"telnet\"\n[[on.user_drop]]\nexec = [\"show version\"]\n",
    );
    let columns = [
        ("telnet_port", sim.addr().port().to_string()),
        ("max_sessions", "2".to_owned()),
        ("vars", format!("'{{\"spare_sessions\": {spare}}}'")),
    ];
    lab.nas(1, "Vty", 100, &columns).await;
    lab.secret(1, "ned", "servicemode").await;
    lab.accounts(1, 10..90).await;
    let daemon = lab.start().await;
    let events: Vec<String> = (10..90)
        .map(|user| format!("('user_drop', {user})"))
        .collect();
    let events = events.join(", ");
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values {events}"
    ))
    .await;
    let full = sim.wait_until(|seen| seen.logins == 2 - spare && seen.lines > 0);
    tokio::time::timeout(LONG, full).await.unwrap();
    let person = client(&sim);
    let limit = if spare > 0 {
        LONG
    } else {
        Duration::from_millis(1_500)
    };
    let came = person.lease(&Waits::up_to(LONG), limit).await;
    if spare > 0 {
        let said = came.unwrap().run("show version", &[], LONG).await.unwrap();
        assert_eq!(said.text, "Simulated router, version 1");
        assert_eq!(sim.seen().sessions_refused, 0);
    } else {
        // Without it the lines are all in use: what the person gets is owed to the setting.
        assert!(came.unwrap_err().text.contains("no place"));
        assert!(sim.seen().sessions_refused > 0);
    }
    assert!(lab.waiting().await > 0, "many events still wait");
    sim.set_faults(Faults {
        latency_ms: 0,
        ..busy
    });
    lab.drained().await;
    let done = "select count(*) from events_done where result = 'done' and attempts = 1";
    assert_eq!(lab.number(done).await, 80, "{:#?}", lab.daemon_log());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_kept_free_lets_a_person_in() {
    a_person_comes_while_many_events_wait(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_line_kept_free_a_person_stays_outside() {
    a_person_comes_while_many_events_wait(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_a_process_it_says_where_it_listens() {
    let mut child = program(env!("CARGO_BIN_EXE_nas_event_daemon"))
        .args([
            "sim",
            "telnet",
            "--listen",
            "127.0.0.1:0",
            "--login",
            "",
            "--enable",
            "e",
        ])
        .env("NED_SIM_PASSWORD", "servicemode")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = said.next_line().await.unwrap().unwrap();
    let port = line.strip_prefix("listening on 127.0.0.1:").unwrap();
    let output = program(env!("CARGO_BIN_EXE_nas_event_daemon"))
        .arg0("send_telnet_cmd")
        .args([
            "--port",
            port,
            "-s",
            "127.0.0.1",
            "",
            "servicemode",
            "show",
            "version",
        ])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"Simulated router, version 1\n");
    child.kill().await.unwrap();
}
