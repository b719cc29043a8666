//! The RouterOS driver against the simulator and its faults.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of the functions that clippy knows as tests"
)]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::attempt::{Failure, FailureClass, Scope};
use nas_event_daemon::clock;
use nas_event_daemon::driver::Reply;
use nas_event_daemon::driver::mikrotik::wire::Bounds;
use nas_event_daemon::driver::mikrotik::{Command, Limits, Mikrotik, Target};
use nas_event_daemon::driver::sessions::Sessions;
use nas_event_daemon::nas::{Nas, NasId, NasSecret};
use nas_event_daemon::sim::mikrotik::{Faults, Options, Seen, Sim};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than anything here takes, on a busy machine too; a test that needs it has failed.
const LONG: Duration = Duration::from_secs(90);
/// Shorter than what the test makes the router take, long enough for a login.
const SHORT: Duration = Duration::from_secs(2);
/// What a router takes that never answers in time, ms.
const NEVER_MS: u64 = 300_000;

const NAS_TRANSPORT: (Scope, FailureClass, i32) = (Scope::Nas, FailureClass::Transport, 254);
const LOST: (Scope, FailureClass, i32) = (Scope::Event, FailureClass::Unknown, 254);

fn sim(faults: Faults) -> Sim {
    Sim::start(Options {
        password: "s3cret".into(),
        faults,
        ..Options::default()
    })
    .unwrap()
}

fn driver(addr: SocketAddr, connections: usize, linger: Duration) -> Arc<Mikrotik> {
    let target = Target {
        host: addr.ip().to_string(),
        port: addr.port(),
        login: "admin".into(),
        password: "s3cret".into(),
    };
    let limits = Limits {
        connections,
        connect_timeout: LONG,
        linger,
        logins_per_minute: 10_000,
        know_rows: true,
    };
    Arc::new(Mikrotik::new(target, limits))
}

fn driver_to(addr: SocketAddr, connections: usize) -> Arc<Mikrotik> {
    driver(addr, connections, Duration::from_secs(60))
}

fn command(path: &str, args: &[(&str, &str)], queries: &[&str]) -> Command {
    let pair = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    Command {
        path: path.into(),
        args: args.iter().map(pair).collect(),
        queries: queries.iter().map(|q| (*q).into()).collect(),
        proplist: Vec::new(),
    }
}

fn identity() -> Command {
    command("/system/identity/print", &[], &[])
}

async fn ask(driver: &Mikrotik) -> Result<Reply, Failure> {
    driver.talk(&identity(), LONG).await
}

/// As many callers at once.
async fn crowd(driver: &Arc<Mikrotik>, callers: usize) -> Vec<Result<Reply, Failure>> {
    let mut set = JoinSet::new();
    for _ in 0..callers {
        let driver = Arc::clone(driver);
        set.spawn(async move { ask(&driver).await });
    }
    set.join_all().await
}

async fn until(sim: &Sim, condition: impl FnMut(&Seen) -> bool) {
    timeout(LONG, sim.wait_until(condition)).await.unwrap();
}

fn kind(failure: &Failure) -> (Scope, FailureClass, i32) {
    (failure.scope, failure.class, failure.code)
}

#[tokio::test]
async fn rows_come_and_go_with_both_logins_and_both_places_of_the_tag() {
    for (old_login, tag_last, version) in [
        (false, false, "7.16"),
        (true, false, "6.42.1"),
        (false, true, "7.18"),
        (true, true, "6.42"),
    ] {
        let sim = Sim::start(Options {
            password: "s3cret".into(),
            old_login,
            version: version.into(),
            faults: Faults {
                tag_last,
                ..Faults::default()
            },
            ..Options::default()
        })
        .unwrap();
        let driver = driver_to(sim.addr(), 2);
        let hostile = "a=b \u{1b}$(x)\n!done";
        let add = command(
            "/queue/simple/add",
            &[
                ("name", "crb_1"),
                ("target", "10.88.0.15"),
                ("max-limit", "10M/10M"),
                ("comment", hostile),
            ],
            &[],
        );
        let added = driver.talk(&add, LONG).await.unwrap();
        assert_eq!(added.ret.as_deref(), Some("*1"));
        assert!(added.new_session);

        let mut print = command("/queue/simple/print", &[], &["?name=crb_1"]);
        print.proplist = ["max-limit", "target", "comment"].map(String::from).into();
        let found = driver.talk(&print, LONG).await.unwrap();
        assert!(!found.new_session);
        assert_eq!(found.rows.len(), 1);
        assert_eq!(found.rows[0]["max-limit"], "10000000/10000000");
        assert_eq!(found.rows[0]["target"], "10.88.0.15/32");
        assert_eq!(found.rows[0]["comment"], hostile);
        assert_eq!(found.rows[0].len(), 3);

        let args = [(".id", "*1"), ("max-limit", "1k/2k")];
        let set = command("/queue/simple/set", &args, &[]);
        driver.talk(&set, LONG).await.unwrap();
        assert_eq!(sim.rows("/queue/simple")[0]["max-limit"], "1000/2000");
        let remove = command("/queue/simple/remove", &[(".id", "crb_1")], &[]);
        driver.talk(&remove, LONG).await.unwrap();
        assert!(driver.talk(&print, LONG).await.unwrap().rows.is_empty());
        assert_eq!(sim.seen().logins, 1);
    }
}

#[tokio::test]
async fn refusals_keep_their_text_and_the_session() {
    use FailureClass::{Permanent, Refused};
    let sim = sim(Faults::default());
    let driver = driver_to(sim.addr(), 1);
    let entry = [("list", "l"), ("address", "10.0.0.1")];
    let path = "/ip/firewall/address-list/add";
    let add = command(path, &entry, &[]);
    driver.talk(&add, LONG).await.unwrap();
    let unknown = command(path, &[("lisst", "l")], &[]);
    let gone = command("/ip/arp/remove", &[(".id", "*9")], &[]);
    let nothing = command("/ip/nothing/print", &[], &[]);
    let frob = command("/ip/arp/frob", &[], &[]);
    for (command, class, code, text) in [
        (add, Refused, 1, "failure: already have such entry"),
        (gone, Refused, 1, "no such item"),
        (unknown, Permanent, 249, "unknown parameter lisst"),
        (nothing, Permanent, 249, "no such command prefix"),
        (frob, Permanent, 249, "no such command"),
    ] {
        let failure = driver.talk(&command, LONG).await.unwrap_err();
        assert_eq!(kind(&failure), (Scope::Event, class, code));
        assert_eq!(failure.text, text);
    }
    assert_eq!(sim.seen().connections, 1);
}

#[tokio::test]
async fn what_cannot_be_a_sentence_is_refused_before_anything_is_sent() {
    let sim = sim(Faults::default());
    let driver = driver_to(sim.addr(), 1);
    let long = "x".repeat(Bounds::DRIVER.word);
    for bad in [
        command("", &[], &[]),
        command("queue/simple/print", &[], &[]),
        command("/ip/arp/print", &[], &[""]),
        command("/ip/arp/print", &[], &["=x"]),
        command("/ip/arp/set", &[("", "x")], &[]),
        command("/ip/arp/set", &[("a=b", "x")], &[]),
        command("/ip/arp/set", &[("comment", &long)], &[]),
    ] {
        let failure = driver.talk(&bad, LONG).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::Permanent);
    }
    assert_eq!(sim.seen().connections, 0);
}

#[tokio::test]
async fn fifty_callers_share_one_connection() {
    // The last command is sent before the first is answered, on a busy machine too.
    let sim = sim(Faults {
        latency_ms: 3_000,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    assert!(crowd(&driver, 50).await.iter().all(Result::is_ok));
    let seen = sim.seen();
    assert_eq!((seen.running_peak, seen.connections), (50, 1));
    assert_eq!(driver.report().in_flight, 0);
}

#[tokio::test]
async fn more_callers_than_places_wait_for_one() {
    let sim = sim(Faults {
        latency_ms: 20,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    assert!(crowd(&driver, 400).await.iter().all(Result::is_ok));
    assert!(sim.seen().running_peak <= 128);
}

#[tokio::test]
async fn few_callers_stay_on_one_connection_and_many_get_more() {
    let sim = sim(Faults {
        latency_ms: 100,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 3);
    assert!(crowd(&driver, 4).await.iter().all(Result::is_ok));
    assert_eq!(sim.seen().sessions_peak, 1);
    for _ in 0..20 {
        assert!(crowd(&driver, 50).await.iter().all(Result::is_ok));
    }
    assert!(crowd(&driver, 100).await.iter().all(Result::is_ok));
    assert_eq!(sim.seen().sessions_peak, 3);
}

#[tokio::test]
async fn a_wrong_password_parks_the_nas() {
    let sim = sim(Faults {
        refuse_logins: true,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 3);
    for reply in crowd(&driver, 10).await {
        let failure = reply.unwrap_err();
        assert_eq!(kind(&failure), (Scope::Nas, FailureClass::Refused, 6));
        assert_eq!(failure.text, "invalid user name or password (6)");
        assert!(failure.parks);
    }
    // One try for all, three times again, and nothing more.
    assert_eq!(sim.seen().logins_refused, 4);
}

#[tokio::test]
async fn a_login_refused_once_is_tried_again_inside_the_call() {
    let sim = sim(Faults {
        refuse_logins: true,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    let calm = async {
        until(&sim, |seen| seen.logins_refused >= 1).await;
        sim.set_faults(Faults::default());
    };
    let (reply, ()) = tokio::join!(ask(&driver), calm);
    assert!(reply.unwrap().new_session);
}

#[tokio::test]
async fn a_deadline_during_refused_logins_tells_the_refusal_but_does_not_park() {
    let sim = sim(Faults {
        refuse_logins: true,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    let failure = driver.talk(&identity(), SHORT).await.unwrap_err();
    assert_eq!(kind(&failure), (Scope::Nas, FailureClass::Refused, 6));
    assert!(!failure.parks);
    assert!(!format!("{failure:?}").contains("s3cret"));
}

#[tokio::test]
async fn a_session_limit_is_the_trouble_of_the_nas_and_one_session_is_enough() {
    let none = sim(Faults {
        session_limit: Some(0),
        ..Faults::default()
    });
    let failure = ask(&driver_to(none.addr(), 3)).await.unwrap_err();
    assert_eq!(kind(&failure), NAS_TRANSPORT);
    assert!(failure.text.contains("too many sessions"));
    assert!(!failure.parks);

    let one = sim(Faults {
        session_limit: Some(1),
        latency_ms: 50,
        ..Faults::default()
    });
    let driver = driver_to(one.addr(), 3);
    assert!(crowd(&driver, 50).await.iter().all(Result::is_ok));
    // One try to get a second session, with its three repetitions; then the pool leaves it.
    until(&one, |seen| seen.logins_refused == 4).await;
    assert!(crowd(&driver, 50).await.iter().all(Result::is_ok));
    let seen = one.seen();
    assert_eq!((seen.sessions_peak, seen.logins_refused), (1, 4));
}

#[tokio::test]
async fn an_unreachable_router_fails_everybody_at_once_and_comes_back() {
    let sim = sim(Faults {
        refuse_connections: true,
        ..Faults::default()
    });
    // The listener goes away a moment after the start.
    while TcpStream::connect(sim.addr()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // Its port is not given to another program meanwhile.
    let taken = TcpSocket::new_v4().unwrap().bind(sim.addr());
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::AddrInUse);
    let driver = driver_to(sim.addr(), 3);
    for reply in crowd(&driver, 20).await {
        let failure = reply.unwrap_err();
        assert_eq!(kind(&failure), NAS_TRANSPORT);
        assert!(failure.text.contains(&sim.addr().to_string()));
    }
    sim.set_faults(Faults::default());
    // Back-off answers for a moment with the last failure.
    let back = async {
        while ask(&driver).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, back).await.unwrap();
}

#[tokio::test]
async fn death_in_the_middle_of_a_reply_leaves_the_outcome_unknown() {
    let sim = sim(Faults {
        drop_after: Some(1),
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    let entry = [("list", "l"), ("address", "10.0.0.1")];
    let add = command("/ip/firewall/address-list/add", &entry, &[]);
    let failure = driver.talk(&add, LONG).await.unwrap_err();
    assert_eq!(kind(&failure), LOST);
    assert!(failure.text.contains("may have been carried out"));
    assert_eq!(sim.rows("/ip/firewall/address-list").len(), 1);
    sim.set_faults(Faults::default());
    ask(&driver).await.unwrap();
    assert_eq!(sim.seen().logins, 2);
}

#[tokio::test]
async fn fatal_reaches_everybody_on_the_connection() {
    for (text, wanted) in [("out of memory", LOST), ("not logged in", NAS_TRANSPORT)] {
        let sim = sim(Faults {
            drop_after: Some(5),
            fatal: Some(text.into()),
            latency_ms: 50,
            ..Faults::default()
        });
        let replies = crowd(&driver_to(sim.addr(), 1), 5).await;
        let failures: Vec<_> = replies.into_iter().filter_map(Result::err).collect();
        assert!(!failures.is_empty());
        for failure in failures {
            assert_eq!(kind(&failure), wanted, "{}", failure.text);
            assert!(failure.text.contains(text));
        }
    }
}

#[tokio::test]
async fn a_deadline_cancels_the_command_and_keeps_the_connection() {
    let sim = sim(Faults {
        latency_ms: NEVER_MS,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    let failure = driver.talk(&identity(), SHORT).await.unwrap_err();
    let timeout = (Scope::Event, FailureClass::Unknown, Failure::CODE_TIMEOUT);
    assert_eq!(kind(&failure), timeout);
    until(&sim, |seen| {
        seen.cancels == 1 && seen.interrupted == 1 && seen.running == 0
    })
    .await;
    sim.set_faults(Faults::default());
    ask(&driver).await.unwrap();
    assert_eq!(sim.seen().connections, 1);
    assert_eq!(driver.report().in_flight, 0);
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_its_command() {
    let sim = sim(Faults {
        latency_ms: NEVER_MS,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    tokio::select! {
        _ = ask(&driver) => panic!("it cannot be answered yet"),
        () = until(&sim, |seen| seen.running == 1) => {}
    }
    until(&sim, |seen| seen.interrupted == 1).await;
}

#[tokio::test]
async fn a_connection_deaf_to_cancel_gets_nothing_new() {
    let sim = sim(Faults {
        latency_ms: NEVER_MS,
        deaf_to_cancel: true,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    driver.talk(&identity(), SHORT).await.unwrap_err();
    until(&sim, |seen| seen.cancels == 1).await;
    sim.set_faults(Faults::default());
    until(&sim, |seen| seen.sessions == 0).await;
    ask(&driver).await.unwrap();
    assert_eq!(sim.seen().connections, 2);
}

#[tokio::test]
async fn idle_connections_are_closed_and_the_end_closes_the_rest() {
    let sim = sim(Faults::default());
    let short = driver(sim.addr(), 1, Duration::from_millis(50));
    ask(&short).await.unwrap();
    until(&sim, |seen| seen.logins == 1 && seen.sessions == 0).await;
    assert!(ask(&short).await.unwrap().new_session);

    let long = driver_to(sim.addr(), 1);
    ask(&long).await.unwrap();
    drop(long);
    until(&sim, |seen| seen.logins == 3 && seen.sessions == 0).await;
}

#[tokio::test]
async fn every_third_refused_login_is_no_trouble_for_callers() {
    let sim = sim(Faults {
        refuse_every: Some(3),
        drop_after: Some(2),
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    for _ in 0..6 {
        ask(&driver).await.unwrap();
        assert_eq!(kind(&ask(&driver).await.unwrap_err()), LOST);
    }
    assert_eq!(sim.seen().logins, 6);
    assert_eq!(sim.seen().logins_refused, 2);
}

/// The driver of a NAS with such settings, as the daemon has it.
fn of_nas(addr: SocketAddr, sessions: u16, vars: &serde_json::Value) -> Arc<Mikrotik> {
    let nas = Nas {
        api_port: Some(addr.port()),
        max_sessions: Some(sessions),
        vars: vars.as_object().cloned().unwrap(),
        ..Nas::new(NasId(1), "bras", &addr.ip().to_string())
    };
    let secret = NasSecret {
        login: "admin".into(),
        password: "s3cret".into(),
        ..NasSecret::default()
    };
    Sessions::default().mikrotik(&nas, &secret)
}

#[tokio::test]
async fn a_session_is_kept_free_for_people_while_a_hundred_are_busy() {
    let sim = sim(Faults {
        session_limit: Some(2),
        latency_ms: 1_000,
        ..Faults::default()
    });
    let vars = serde_json::json!({"spare_sessions": 1});
    let driver = of_nas(sim.addr(), 2, &vars);
    let person = async {
        until(&sim, |seen| seen.running >= 50).await;
        driver_to(sim.addr(), 1).talk(&identity(), LONG).await
    };
    let (replies, person) = tokio::join!(crowd(&driver, 100), person);
    assert!(replies.iter().all(Result::is_ok));
    person.unwrap();
    assert_eq!(sim.seen().logins_refused, 0);
}

#[tokio::test]
async fn logins_are_few_however_often_the_router_hangs_up() {
    let each = Faults {
        drop_after: Some(1),
        ..Faults::default()
    };
    // 300 a minute: one in 200 ms.
    let sim = sim(each);
    let vars = serde_json::json!({"logins_per_minute": 300});
    let driver = of_nas(sim.addr(), 1, &vars);
    let began = clock::tick_ms();
    for _ in 0..6 {
        assert_eq!(kind(&ask(&driver).await.unwrap_err()), LOST);
    }
    let took = clock::tick_ms() - began;
    assert!(took >= 990, "{took} ms");
    assert_eq!(sim.seen().logins, 6);
    // Who has no time to wait for the next one is told why there is no connection.
    let vars = serde_json::json!({"logins_per_minute": 1});
    let driver = of_nas(sim.addr(), 1, &vars);
    assert_eq!(kind(&ask(&driver).await.unwrap_err()), LOST);
    let failure = driver.talk(&identity(), SHORT / 4).await.unwrap_err();
    assert_eq!(kind(&failure), NAS_TRANSPORT);
    let why = "(logins_per_minute in nas.vars is 1)";
    assert!(failure.text.contains(why), "{failure}");
    assert_eq!((driver.logins(), sim.seen().logins), (1, 7));
    // A bound that cannot be obeyed is the NAS's trouble, and nothing is sent.
    let vars = serde_json::json!({"logins_per_minute": 0});
    let failure = ask(&of_nas(sim.addr(), 1, &vars)).await.unwrap_err();
    assert_eq!((failure.scope, failure.parks), (Scope::Nas, true));
    assert!(failure.text.contains("logins_per_minute"), "{failure}");
    assert_eq!(sim.seen().connections, 7);
}

/// A caller that asks again at once and for ever is answered each time; the router is tried a few
/// times a second.
#[tokio::test]
async fn a_router_that_cannot_be_had_is_tried_seldom() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target {
        host: "127.0.0.1".into(),
        port: listener.local_addr().unwrap().port(),
        login: "admin".into(),
        password: "s3cret".into(),
    };
    // A login that is not answered in time is final for everybody who waits.
    let limits = Limits {
        connections: 3,
        connect_timeout: Duration::from_millis(20),
        linger: LONG,
        logins_per_minute: 10_000,
        know_rows: true,
    };
    let driver = Mikrotik::new(target, limits);
    let mut asked = 0_u64;
    let asking = async {
        loop {
            assert_eq!(kind(&ask(&driver).await.unwrap_err()), NAS_TRANSPORT);
            asked += 1;
            tokio::task::yield_now().await;
        }
    };
    let began = clock::tick_ms();
    let tries = async {
        let mut held = Vec::new();
        while held.len() < 6 {
            held.push(listener.accept().await.unwrap());
        }
        clock::tick_ms() - began
    };
    let took = tokio::select! {
        took = timeout(LONG, tries) => took.unwrap(),
        _ = asking => unreachable!(),
    };
    // 50, 100, 200, 400 and 400 ms between them.
    assert!(took >= 1_150, "6 tries within {took} ms");
    assert!(asked > 100, "{asked}");
}

#[test]
fn debug_output_of_a_target_has_no_password() {
    let target = Target {
        host: "h".into(),
        port: 1,
        login: "l".into(),
        password: "s3cret".into(),
    };
    assert_eq!(format!("{target:?}"), "l@h:1");
}
