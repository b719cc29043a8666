//! The RouterOS driver against peers that speak the wire format but break the rules above it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, outside of the functions that clippy knows as tests"
)]

use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::attempt::{Failure, FailureClass, Scope};
use nas_event_daemon::driver::Reply;
use nas_event_daemon::driver::mikrotik::wire::{self, Bounds, Decoder};
use nas_event_daemon::driver::mikrotik::{
    Command, Limits, Mikrotik, REPLY_MAX, ROWS_MAX, Target, WORD_COST,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than anything here takes, on a busy machine too; a test that needs it has failed.
const LONG: Duration = Duration::from_secs(90);
/// Shorter than what the peer takes, long enough for a login.
const SHORT: Duration = Duration::from_secs(2);

/// Shorter still, and between two bytes of a peer that drips.
const MOMENT: Duration = Duration::from_millis(700);
const DRIP: Duration = Duration::from_millis(50);

const NAS_TRANSPORT: (Scope, FailureClass, i32) = (Scope::Nas, FailureClass::Transport, 254);
const LOST: (Scope, FailureClass, i32) = (Scope::Event, FailureClass::Unknown, 254);

fn kind(failure: &Failure) -> (Scope, FailureClass, i32) {
    (failure.scope, failure.class, failure.code)
}

fn identity() -> Command {
    Command {
        path: "/system/identity/print".into(),
        ..Command::default()
    }
}

async fn ask(driver: &Mikrotik) -> Result<Reply, Failure> {
    driver.talk(&identity(), LONG).await
}

/// A peer that knows the wire format and nothing else: it says what a test tells it to say.
struct Peer {
    stream: TcpStream,
    decoder: Decoder,
}

impl Peer {
    async fn logged_in(listener: &TcpListener) -> Self {
        let (stream, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
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
    listening_for(LONG).await
}

/// `login`: what the driver gives a login.
async fn listening_for(login: Duration) -> (TcpListener, Arc<Mikrotik>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target {
        host: "127.0.0.1".into(),
        port: listener.local_addr().unwrap().port(),
        login: "admin".into(),
        password: "s3cret".into(),
    };
    let limits = Limits {
        connections: 1,
        connect_timeout: login,
        linger: LONG,
        logins_per_minute: 10_000,
        know_rows: true,
    };
    (listener, Arc::new(Mikrotik::new(target, limits)))
}

#[tokio::test]
async fn what_was_not_sent_moves_to_another_connection_and_what_was_does_not() {
    let (listener, driver) = listening().await;
    let mut set = JoinSet::new();
    for _ in 0..16 {
        let driver = Arc::clone(&driver);
        // Together more than any socket buffer takes.
        let part = "x".repeat(Bounds::DRIVER.word - 64);
        let big = Command {
            path: "/x/add".into(),
            args: ["a", "b", "c"].map(|k| (k.into(), part.clone())).into(),
            ..Command::default()
        };
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
async fn an_endless_reply_is_cut_off_by_rows_and_by_bytes_and_cancelled() {
    let (before, _) = memory_kib();
    let wide = "x".repeat(Bounds::DRIVER.word - 64);
    let narrow: Vec<String> = (0..1_000).map(|n| format!("={n}=")).collect();
    let cost = narrow.iter().map(|word| word.len() + WORD_COST);
    let narrow_rows = REPLY_MAX / cost.sum::<usize>() + 1;
    for (properties, rows) in [
        (vec!["=a=b".to_owned()], ROWS_MAX + 1),
        (vec![format!("=a={wide}")], REPLY_MAX / wide.len() + 1),
        (narrow, narrow_rows),
    ] {
        let (listener, driver) = listening().await;
        let answer = async {
            let mut peer = Peer::logged_in(&listener).await;
            let tag = tag_of(&peer.request().await.unwrap());
            let mut row = Vec::new();
            let head = ["!re", &tag].map(str::as_bytes);
            let words = head
                .into_iter()
                .chain(properties.iter().map(String::as_bytes));
            wire::encode(words, Bounds::DRIVER, &mut row).unwrap();
            let many = (65_536 / row.len()).max(1);
            for _ in 0..rows.div_ceil(many) {
                peer.stream.write_all(&row.repeat(many)).await.unwrap();
            }
            let cancel = timeout(LONG, peer.request()).await.unwrap().unwrap();
            assert_eq!(cancel[0], b"/cancel");
            assert_eq!(cancel[1], tag.replacen('.', "=", 1).as_bytes());
        };
        let (reply, ()) = tokio::join!(ask(&driver), answer);
        let failure = reply.unwrap_err();
        let wanted = (Scope::Event, FailureClass::Permanent, 1);
        assert_eq!(kind(&failure), wanted, "{failure}");
        assert!(failure.text.contains("more than"));
        let (_, peak) = memory_kib();
        let grown = peak.saturating_sub(before);
        assert!(grown < 192 * 1024, "{grown} KiB more: {failure}");
    }
}

/// Resident memory of this process, now and at its highest.
fn memory_kib() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Says `bytes` one by one, slowly, then nothing more.
async fn drip(stream: &mut TcpStream, bytes: &[u8]) {
    for byte in bytes {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(DRIP).await;
    }
    std::future::pending().await
}

/// A row that takes a minute at that pace.
fn long_row(tag: &[&str]) -> Vec<u8> {
    let value = format!("=a={}", "x".repeat(1_200));
    let words = [&["!re"][..], tag, &[&value]].concat();
    let mut bytes = Vec::new();
    let words = words.iter().map(|word| word.as_bytes());
    wire::encode(words, Bounds::DRIVER, &mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_reply_byte_by_byte_ends_at_the_deadline_and_costs_the_connection() {
    let (listener, driver) = listening().await;
    let dripping = async {
        let mut peer = Peer::logged_in(&listener).await;
        let tag = tag_of(&peer.request().await.unwrap());
        drip(&mut peer.stream, &long_row(&[&tag])).await;
    };
    let command = identity();
    let talk = async {
        let failure = driver.talk(&command, MOMENT).await.unwrap_err();
        let wanted = (Scope::Event, FailureClass::Unknown, Failure::CODE_TIMEOUT);
        assert_eq!(kind(&failure), wanted, "{failure}");
        // The rest of that reply would be in the way of others.
        let gone = async {
            while driver.report().connections > 0 {
                tokio::time::sleep(DRIP).await;
            }
        };
        timeout(LONG, gone).await.unwrap();
        let again = async {
            let mut peer = Peer::logged_in(&listener).await;
            let tag = tag_of(&peer.request().await.unwrap());
            peer.say(&["!done", &tag]).await;
            peer
        };
        let (reply, _peer) = tokio::join!(ask(&driver), again);
        assert!(reply.unwrap().new_session);
    };
    tokio::select! {
        () = talk => {}
        () = dripping => {}
    }
}

/// Before the login is answered it is the NAS that failed: bytes one by one, and bytes that are
/// nothing of this protocol.
#[tokio::test]
async fn a_login_byte_by_byte_or_in_binary_is_the_trouble_of_the_nas() {
    for binary in [false, true] {
        let login = if binary { LONG } else { MOMENT };
        let (listener, driver) = listening_for(login).await;
        let command = identity();
        let peer = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if binary {
                    let _ = stream.write_all(&[0xff, 0x00, 0xfe, 0x1b]).await;
                } else {
                    drip(&mut stream, &long_row(&[])).await;
                }
            }
        };
        let failure = tokio::select! {
            reply = driver.talk(&command, LONG) => reply.unwrap_err(),
            _ = peer => unreachable!(),
        };
        assert_eq!(kind(&failure), NAS_TRANSPORT, "{failure}");
        assert!(!failure.parks, "{failure}");
        assert_eq!(driver.last_error(), Some(failure.to_string()));
    }
}

#[tokio::test]
async fn an_empty_table_is_no_rows_and_no_failure() {
    let (listener, driver) = listening().await;
    let answer = async {
        let mut peer = Peer::logged_in(&listener).await;
        let tag = tag_of(&peer.request().await.unwrap());
        peer.say(&["!empty", &tag]).await;
        peer.say(&["!done", &tag]).await;
        peer
    };
    let (reply, _peer) = tokio::join!(ask(&driver), answer);
    let reply = reply.unwrap();
    assert!(reply.rows.is_empty() && reply.ret.is_none(), "{reply:?}");
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
