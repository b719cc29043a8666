//! Servers that lie, stall, flood and break: each is told apart, in bounded time and memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nas_event_daemon::attempt::{Failure, FailureClass, Scope};
use nas_event_daemon::driver::http::BODY_MAX;
use nas_event_daemon::driver::tls::Trust;
use nas_event_daemon::sim::http::{Faults, Options, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::lab::growth_kib;
use crate::lab::tls::Pki;
use crate::{LONG, device, device_within, get, talk};

/// What a rude server does with each connection once a request has come.
#[derive(Clone, Copy)]
enum Manners {
    /// Says this and closes.
    Says(&'static [u8]),
    /// This head, then bytes without an end.
    Endless(&'static [u8]),
    /// A head that does not end.
    Heads,
    /// A head, then one byte now and then.
    Drips,
    /// Reads and says nothing.
    Silent,
}

/// Bytes that the endless server got rid of.
static FLOODED: AtomicUsize = AtomicUsize::new(0);
/// What the driver may take, and the buffers of the system.
const FLOOD_MAX: usize = 64 * 1024 * 1024;
/// What a server may make this process grow by, KiB: an answer has 1 MiB at most, and is copied.
const GROWTH_MAX: u64 = 32 * 1024;
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n";

async fn serve(manners: Manners) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.spawn(one(stream, manners));
        }
    });
    (url, tasks)
}

async fn one(mut stream: TcpStream, manners: Manners) {
    let mut head = [0; 4096];
    let _ = stream.read(&mut head).await;
    match manners {
        Manners::Says(bytes) => {
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
        }
        Manners::Endless(head) => {
            let _ = stream.write_all(head).await;
            let much = vec![b'x'; 64 * 1024];
            while stream.write_all(&much).await.is_ok() {
                let all = FLOODED.fetch_add(much.len(), Ordering::Relaxed);
                assert!(all < FLOOD_MAX, "it reads on and on");
            }
        }
        Manners::Heads => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
            let much = b"X-Much: more\r\n".repeat(1_000);
            while stream.write_all(&much).await.is_ok() {}
        }
        Manners::Drips => {
            let _ = stream.write_all(CHUNKED).await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Manners::Silent => std::future::pending().await,
    }
}

async fn told(manners: Manners, limit: Duration) -> Failure {
    let (url, _tasks) = serve(manners).await;
    let device = device(&url, Trust::System);
    let request = get("/x");
    let talk = tokio::time::timeout(LONG, device.talk(&request, limit));
    let (result, grown) = growth_kib(talk).await;
    assert!(grown < GROWTH_MAX, "{grown} KiB more");
    result.expect("bounded").unwrap_err()
}

#[tokio::test]
async fn what_is_not_an_answer_is_unknown_and_bounded() {
    let short = Duration::from_millis(500);
    let event = |f: &Failure| assert_eq!((f.scope, f.parks), (Scope::Event, false), "{f}");
    for says in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x01\xff\xfe\xfd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ] {
        let failure = told(Manners::Says(says), LONG).await;
        event(&failure);
        assert_eq!(failure.class, FailureClass::Unknown, "{failure}");
    }
    let failure = told(Manners::Heads, LONG).await;
    event(&failure);
    assert_eq!(failure.class, FailureClass::Unknown, "{failure}");
    let failure = told(Manners::Silent, short).await;
    event(&failure);
    assert_eq!((failure.class, failure.code), (FailureClass::Unknown, 143));
    let failure = told(Manners::Drips, short).await;
    event(&failure);
    assert_eq!((failure.class, failure.code), (FailureClass::Unknown, 143));
    assert!(failure.text.contains("did not end"), "{failure}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut() {
    let big = b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n";
    for manners in [
        Manners::Endless(CHUNKED),
        Manners::Endless(big),
        Manners::Says(big),
    ] {
        let failure = told(manners, LONG).await;
        assert_eq!(failure.class, FailureClass::Permanent);
        assert_eq!((failure.scope, failure.code), (Scope::Event, 200));
        assert!(failure.text.contains(&BODY_MAX.to_string()), "{failure}");
        let flooded = FLOODED.load(Ordering::Relaxed);
        assert!(flooded < FLOOD_MAX, "{flooded} bytes were taken");
    }
}

#[tokio::test]
async fn nobody_there_is_the_nas_own_failure() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let failure = talk(&device(&url, Trust::System), "/").await.unwrap_err();
    assert_eq!(
        (failure.scope, failure.class, failure.code),
        (Scope::Nas, FailureClass::Transport, 254)
    );
    assert!(!failure.parks);
}

#[tokio::test]
async fn who_never_finishes_connecting_has_been_sent_nothing() {
    let (url, _tasks) = serve(Manners::Silent).await;
    let url = url.replace("http:", "https:");
    let device = device_within(&url, Trust::Insecure, Duration::from_millis(300));
    let failure = talk(&device, "/").await.unwrap_err();
    assert_eq!(
        (failure.scope, failure.class, failure.code),
        (Scope::Nas, FailureClass::Transport, 254),
        "{failure}"
    );
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = Sim::start(Options::default()).await.unwrap();
    let sim = Sim::start(Options {
        faults: Faults {
            status: Some(307),
            location: Some(format!("http://{}/stolen", other.addr())),
            ..Faults::default()
        },
        ..Options::default()
    })
    .await
    .unwrap();
    let url = format!("http://{}", sim.addr());
    let failure = talk(&device(&url, Trust::System), "/a").await.unwrap_err();
    assert_eq!(
        (failure.scope, failure.class, failure.code),
        (Scope::Event, FailureClass::Permanent, 307)
    );
    assert_eq!(
        other.seen().connections,
        0,
        "credentials would have gone there"
    );
}

#[tokio::test]
async fn statuses_credentials_and_proxies() {
    let sim = Sim::start(Options {
        authorization: Some("Bearer t0ken-of-the-hook".into()),
        ..Options::default()
    })
    .await
    .unwrap();
    let url = format!("http://{}", sim.addr());
    let ours = device(&url, Trust::System);
    let missing = talk(&ours, "/none").await.unwrap_err();
    assert_eq!(
        (missing.class, missing.code),
        (FailureClass::Permanent, 404)
    );
    for (status, class) in [(503, FailureClass::Refused), (429, FailureClass::Refused)] {
        sim.set_faults(Faults {
            status: Some(status),
            ..Faults::default()
        });
        let failure = talk(&ours, "/none").await.unwrap_err();
        assert_eq!((failure.scope, failure.class), (Scope::Event, class));
        assert_eq!(failure.code, i32::from(status));
    }
    assert_eq!(sim.seen().unauthorized, 0);
    assert_eq!(sim.seen().connections, 1, "the connection is kept");
    let target = nas_event_daemon::driver::http::Target {
        url,
        auth: nas_event_daemon::driver::http::Auth::None,
        trust: Trust::System,
    };
    let limits = nas_event_daemon::driver::http::Limits {
        connections: 1,
        connect_timeout: LONG,
        linger: LONG,
    };
    let nobody = nas_event_daemon::driver::http::Http::new(&target, &limits);
    let failure = talk(&nobody, "/none").await.unwrap_err();
    assert_eq!((failure.scope, failure.code), (Scope::Nas, 401));
    assert!(
        failure.parks && failure.text.contains("nas_secret"),
        "{failure}"
    );
}

#[tokio::test]
async fn only_the_trusted_certificate_is_spoken_to() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (Pki::new(dir.path(), "right"), Pki::new(dir.path(), "wrong"));
    let sim = Sim::start(Options {
        tls: Some(right.identity.clone()),
        ..Options::default()
    })
    .await
    .unwrap();
    let url = format!("https://{}", sim.addr());
    let pin = |text: &str| {
        Trust::Pinned(vec![
            nas_event_daemon::driver::tls::fingerprint(text).unwrap(),
        ])
    };
    for trust in [
        Trust::Ca(right.ca.clone()),
        pin(&right.pin),
        Trust::Insecure,
    ] {
        let failure = talk(&device(&url, trust), "/a").await.unwrap_err();
        assert_eq!(failure.code, 404, "{failure}");
    }
    let before = sim.seen().requests;
    for trust in [Trust::Ca(wrong.ca.clone()), pin(&wrong.pin), Trust::System] {
        let failure = talk(&device(&url, trust), "/a").await.unwrap_err();
        assert_eq!(
            (failure.scope, failure.class, failure.parks),
            (Scope::Nas, FailureClass::Transport, true),
            "{failure}"
        );
        assert!(failure.text.contains(&right.pin), "{failure}");
    }
    // The right CA, but a certificate for another name.
    let port = sim.addr().port();
    let named = device(
        &format!("https://127.0.0.2:{port}"),
        Trust::Ca(right.ca.clone()),
    );
    let failure = talk(&named, "/a").await.unwrap_err();
    assert_eq!(failure.scope, Scope::Nas);
    // Plain HTTP where HTTPS is spoken, and the other way round.
    let failure = talk(
        &device(&format!("http://127.0.0.1:{port}"), Trust::System),
        "/a",
    )
    .await;
    assert!(failure.is_err());
    let (plain, _tasks) = serve(Manners::Says(b"HTTP/1.1 200 OK\r\n\r\n")).await;
    let plain = plain.replace("http:", "https:");
    let failure = talk(&device(&plain, Trust::Insecure), "/a")
        .await
        .unwrap_err();
    assert_eq!(
        (failure.scope, failure.class, failure.parks),
        (Scope::Nas, FailureClass::Transport, false),
        "{failure}"
    );
    assert_eq!(
        sim.seen().requests,
        before,
        "nothing was sent to the untrusted"
    );
}
