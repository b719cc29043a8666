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
use nas_event_daemon::driver::mikrotik::{Command, Limits, Mikrotik, REPLY_MAX, ROWS_MAX, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than anything here takes, on a busy machine too; a test that needs it has failed.
const LONG: Duration = Duration::from_secs(90);
/// Shorter than what the peer takes, long enough for a login.
const SHORT: Duration = Duration::from_secs(2);

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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target {
        host: "127.0.0.1".into(),
        port: listener.local_addr().unwrap().port(),
        login: "admin".into(),
        password: "s3cret".into(),
    };
    let limits = Limits {
        connections: 1,
        connect_timeout: LONG,
        linger: LONG,
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
    let wide = "x".repeat(Bounds::DRIVER.word - 64);
    for (value, rows) in [("b", ROWS_MAX + 1), (&wide, REPLY_MAX / wide.len() + 1)] {
        let (listener, driver) = listening().await;
        let answer = async {
            let mut peer = Peer::logged_in(&listener).await;
            let tag = tag_of(&peer.request().await.unwrap());
            let mut row = Vec::new();
            let word = format!("=a={value}");
            let words = ["!re", &tag, &word].map(str::as_bytes);
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
        assert_eq!(failure.class, FailureClass::Permanent);
        assert!(failure.text.contains("more than"));
    }
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
