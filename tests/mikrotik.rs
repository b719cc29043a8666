//! The RouterOS driver against the simulator and against peers that break the rules.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, outside of the functions that clippy knows as tests"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::attempt::{Failure, FailureClass, Scope};
use nas_event_daemon::driver::Reply;
use nas_event_daemon::driver::mikrotik::wire::{self, Bounds, Decoder};
use nas_event_daemon::driver::mikrotik::{Command, Limits, Mikrotik, ROWS_MAX, Target};
use nas_event_daemon::sim::mikrotik::{Faults, Options, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Longer than anything here takes; a test that needs it has failed.
const LONG: Duration = Duration::from_secs(20);
/// Shorter than what the test makes the router take.
const SHORT: Duration = Duration::from_millis(300);

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
        connect_timeout: Duration::from_secs(5),
        linger,
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
    let sim = sim(Faults {
        latency_ms: 300,
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
        sim.wait_until(|seen| seen.logins_refused >= 1).await;
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
    one.wait_until(|seen| seen.logins_refused >= 1).await;
    assert_eq!(one.seen().sessions_peak, 1);
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
    let driver = driver_to(sim.addr(), 3);
    for reply in crowd(&driver, 20).await {
        let failure = reply.unwrap_err();
        assert_eq!(kind(&failure), NAS_TRANSPORT);
        assert!(failure.text.contains(&sim.addr().to_string()));
    }
    sim.set_faults(Faults::default());
    // Back-off answers for a moment with the last failure.
    while ask(&driver).await.is_err() {
        tokio::task::yield_now().await;
    }
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
        latency_ms: 20_000,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    let failure = driver.talk(&identity(), SHORT).await.unwrap_err();
    let timeout = (Scope::Event, FailureClass::Unknown, Failure::CODE_TIMEOUT);
    assert_eq!(kind(&failure), timeout);
    sim.wait_until(|seen| seen.cancels == 1 && seen.interrupted == 1 && seen.running == 0)
        .await;
    sim.set_faults(Faults::default());
    ask(&driver).await.unwrap();
    assert_eq!(sim.seen().connections, 1);
    assert_eq!(driver.report().in_flight, 0);
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_its_command() {
    let sim = sim(Faults {
        latency_ms: 20_000,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    tokio::select! {
        _ = ask(&driver) => panic!("it cannot be answered yet"),
        _ = sim.wait_until(|seen| seen.running == 1) => {}
    }
    sim.wait_until(|seen| seen.interrupted == 1).await;
}

#[tokio::test]
async fn a_connection_deaf_to_cancel_gets_nothing_new() {
    let sim = sim(Faults {
        latency_ms: 60_000,
        deaf_to_cancel: true,
        ..Faults::default()
    });
    let driver = driver_to(sim.addr(), 1);
    driver.talk(&identity(), SHORT).await.unwrap_err();
    sim.wait_until(|seen| seen.cancels == 1).await;
    sim.set_faults(Faults::default());
    sim.wait_until(|seen| seen.sessions == 0).await;
    ask(&driver).await.unwrap();
    assert_eq!(sim.seen().connections, 2);
}

#[tokio::test]
async fn idle_connections_are_closed_and_the_end_closes_the_rest() {
    let sim = sim(Faults::default());
    let short = driver(sim.addr(), 1, Duration::from_millis(50));
    ask(&short).await.unwrap();
    sim.wait_until(|seen| seen.logins == 1 && seen.sessions == 0)
        .await;
    assert!(ask(&short).await.unwrap().new_session);

    let long = driver_to(sim.addr(), 1);
    ask(&long).await.unwrap();
    drop(long);
    sim.wait_until(|seen| seen.logins == 3 && seen.sessions == 0)
        .await;
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

/// A peer that knows the wire format and nothing else: it says what a test tells it to say.
struct Peer {
    stream: TcpStream,
    decoder: Decoder,
}

impl Peer {
    async fn logged_in(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let mut peer = Self {
            stream,
            decoder: Decoder::new(Bounds::DRIVER),
        };
        assert_eq!(peer.request().await.unwrap()[0], b"/login");
        peer.say(&["!done"]).await;
        peer
    }

    async fn request(&mut self) -> Option<wire::Sentence> {
        loop {
            if let Some(sentence) = self.decoder.next().unwrap() {
                return Some(sentence);
            }
            let mut chunk = vec![0; 65_536];
            let n = self.stream.read(&mut chunk).await.unwrap_or(0);
            if n == 0 {
                return None;
            }
            self.decoder.feed(&chunk[..n]);
        }
    }

    async fn say(&mut self, words: &[&str]) {
        let mut out = Vec::new();
        let words = words.iter().map(|w| w.as_bytes());
        wire::encode(words, Bounds::DRIVER, &mut out).unwrap();
        // The driver may have hung up by now; its own result tells.
        let _ = self.stream.write_all(&out).await;
    }
}

fn tag_of(sentence: &wire::Sentence) -> String {
    let tag = sentence.iter().find(|w| w.starts_with(b".tag=")).unwrap();
    String::from_utf8(tag.clone()).unwrap()
}

async fn listening() -> (TcpListener, Arc<Mikrotik>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let driver = driver_to(listener.local_addr().unwrap(), 1);
    (listener, driver)
}

#[tokio::test]
async fn what_was_not_sent_moves_to_another_connection_and_what_was_does_not() {
    let (listener, driver) = listening().await;
    let mut set = JoinSet::new();
    for _ in 0..16 {
        let driver = Arc::clone(&driver);
        // Together more than any socket buffer takes.
        let part = "x".repeat(Bounds::DRIVER.word - 64);
        let args = [("a", &*part), ("b", &part), ("c", &part)];
        let big = command("/x/add", &args, &[]);
        set.spawn(async move { driver.talk(&big, LONG).await });
    }
    let mut first = Peer::logged_in(&listener).await;
    first.request().await.unwrap();
    drop(first);
    let mut second = Peer::logged_in(&listener).await;
    let answer = async {
        let mut answered = 0;
        while let Some(request) = second.request().await {
            second.say(&["!done", &tag_of(&request)]).await;
            answered += 1;
        }
        answered
    };
    let wait = async {
        let replies = set.join_all().await;
        drop(driver);
        replies
    };
    let (answered, replies) = tokio::join!(answer, wait);
    let (ok, failed): (Vec<_>, Vec<_>) = replies.into_iter().partition(Result::is_ok);
    assert!(!ok.is_empty() && !failed.is_empty(), "{} ok", ok.len());
    assert_eq!(answered, ok.len());
    for failure in failed {
        assert_eq!(kind(&failure.unwrap_err()), LOST);
    }
}

#[tokio::test]
async fn late_tags_ret_and_unknown_replies_are_understood() {
    let (listener, driver) = listening().await;
    let answer = async {
        let mut peer = Peer::logged_in(&listener).await;
        let tag = tag_of(&peer.request().await.unwrap());
        peer.say(&["!re", "=a=1", ".tag=99999"]).await;
        peer.say(&["!surprise", &tag]).await;
        peer.say(&["!re", "=a=2"]).await;
        peer.say(&["!re", "=b=3", &tag, "=c=4"]).await;
        peer.say(&["!done", "=ret=*7", &tag]).await;
        peer
    };
    let (reply, _peer) = tokio::join!(ask(&driver), answer);
    let reply = reply.unwrap();
    assert_eq!(reply.ret.as_deref(), Some("*7"));
    assert_eq!(reply.rows.len(), 1);
    assert_eq!((&*reply.rows[0]["b"], &*reply.rows[0]["c"]), ("3", "4"));
}

#[tokio::test]
async fn an_endless_reply_is_cut_off_and_cancelled() {
    let (listener, driver) = listening().await;
    let answer = async {
        let mut peer = Peer::logged_in(&listener).await;
        let tag = tag_of(&peer.request().await.unwrap());
        let mut rows = Vec::new();
        for _ in 0..1_000 {
            let words = ["!re", &tag, "=a=b"].map(str::as_bytes);
            wire::encode(words, Bounds::DRIVER, &mut rows).unwrap();
        }
        for _ in 0..=ROWS_MAX / 1_000 {
            peer.stream.write_all(&rows).await.unwrap();
        }
        let cancel = peer.request().await.unwrap();
        assert_eq!(cancel[0], b"/cancel");
        assert_eq!(cancel[1], tag.replacen('.', "=", 1).as_bytes());
    };
    let (reply, ()) = tokio::join!(ask(&driver), answer);
    let failure = reply.unwrap_err();
    assert_eq!(failure.class, FailureClass::Permanent);
    assert!(failure.text.contains("more than"));
}

#[tokio::test]
async fn a_peer_that_breaks_the_format_loses_the_connection() {
    for bytes in [&[0xff][..], &[0xf0, 0xff, 0xff, 0xff, 0xff]] {
        let (listener, driver) = listening().await;
        let answer = async {
            let mut peer = Peer::logged_in(&listener).await;
            peer.request().await.unwrap();
            peer.stream.write_all(bytes).await.unwrap();
            assert!(peer.request().await.is_none());
        };
        let (reply, ()) = tokio::join!(ask(&driver), answer);
        assert_eq!(kind(&reply.unwrap_err()), LOST);
    }
}

#[tokio::test]
async fn a_trap_without_done_is_told_at_the_deadline() {
    let (listener, driver) = listening().await;
    let answer = async {
        let mut peer = Peer::logged_in(&listener).await;
        let tag = tag_of(&peer.request().await.unwrap());
        peer.say(&["!trap", &tag, "=message=no such item"]).await;
        peer.request().await
    };
    let command = identity();
    let (reply, _) = tokio::join!(driver.talk(&command, SHORT), answer);
    assert_eq!(reply.unwrap_err().text, "no such item");
}
