//! Real sockets: the documented curl byte for byte, slow and silent clients, the connection
//! cap, the control socket, and the end.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nas_event_daemon::intake::access::Locals;
use nas_event_daemon::intake::serve::{Limits, bind_ctl, serve_ctl, serve_tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::fake::{House, LONG, house};

const CURL: &str = "POST /rest_api/v2/EventsStackCompact/ HTTP/1.1\r\n\
    Host: 127.0.0.1:8082\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\nContent-Length: 74\r\n\
    Content-Type: application/x-www-form-urlencoded\r\n\r\n\
    method1=objects.create&arg1={\"user_id\": 1424,\"cmd\":\"user_redirect_cancel\"}";
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

struct Served {
    house: House,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

async fn served(limits: Limits) -> Served {
    let house = house(0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_tcp(
        listener,
        house.router.clone(),
        stop.clone(),
        limits,
    ));
    Served {
        house,
        address,
        stop,
        tasks,
    }
}

impl Served {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn end(mut self) {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.tasks.join_next())
            .await
            .unwrap();
    }
}

/// One answer: the head, and as much body as it announces.
async fn answer(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut got = Vec::new();
    let read = async {
        loop {
            let text = String::from_utf8_lossy(&got).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|l| l.strip_prefix("content-length: "));
                if body.len() >= length.unwrap().parse().unwrap() {
                    return text;
                }
            }
            assert_ne!(
                stream.read_buf(&mut got).await.unwrap(),
                0,
                "closed after {text:?}"
            );
        }
    };
    tokio::time::timeout(LONG, read).await.unwrap()
}

/// Waits until the other side closes.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(LONG, stream.read_to_end(&mut rest))
        .await
        .unwrap();
    match end {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
}

#[tokio::test]
async fn the_documented_curl_byte_for_byte_and_keep_alive() {
    let s = served(Limits::default()).await;
    let mut stream = s.connect().await;
    for id in 1..=2 {
        stream.write_all(CURL.as_bytes()).await.unwrap();
        let got = answer(&mut stream).await;
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        let begin = format!(
            "{{\"call\":\"/rest_api/v2/EventsStackCompact/\",\"result\":{{\"pk\":{id},\
             \"model\":\"EventsStackCompact\",\"fields\":{{\"id\":{id},\
             \"cmd\":\"user_redirect_cancel\",\"user_id\":1424,"
        );
        assert!(got.contains(&begin), "{got}");
    }
    assert_eq!(s.house.fake.events().len(), 2);
    s.end().await;
}

#[tokio::test]
async fn a_head_that_does_not_end_closes_the_connection() {
    let limits = Limits {
        header: Duration::from_millis(100),
        ..Limits::default()
    };
    let s = served(limits).await;
    let mut slow = s.connect().await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost:")
        .await
        .unwrap();
    closed(&mut slow).await;
    let mut idle = s.connect().await;
    idle.write_all(HEALTH.as_bytes()).await.unwrap();
    assert!(answer(&mut idle).await.starts_with("HTTP/1.1 200"));
    closed(&mut idle).await;
    s.end().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_closes_the_connection() {
    let limits = Limits {
        stalled: Duration::from_millis(100),
        ..Limits::default()
    };
    let s = served(limits).await;
    let mut stream = s.connect().await;
    let (head, _) = CURL.split_once("method1").unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    closed(&mut stream).await;
    assert!(s.house.fake.events().is_empty());
    s.end().await;
}

#[tokio::test]
async fn connections_are_capped_and_a_freed_place_is_taken() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let s = served(limits).await;
    let mut first = s.connect().await;
    let mut second = s.connect().await;
    for stream in [&mut first, &mut second] {
        stream.write_all(HEALTH.as_bytes()).await.unwrap();
        answer(stream).await;
    }
    let mut third = s.connect().await;
    third.write_all(HEALTH.as_bytes()).await.unwrap();
    // The server has had its time: it has answered others, again and again.
    for _ in 0..20 {
        second.write_all(HEALTH.as_bytes()).await.unwrap();
        answer(&mut second).await;
    }
    let early = third.try_read(&mut [0; 1]);
    let early = early.map_err(|e| e.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "it was served");
    drop(first);
    assert!(answer(&mut third).await.starts_with("HTTP/1.1 200"));
    s.end().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let s = served(Limits::default()).await;
    let mut stream = s.connect().await;
    let head = format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let _ = stream.write_all(head.as_bytes()).await;
    let mut got = vec![0; 12];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, b"HTTP/1.1 431");
    s.end().await;
}

#[tokio::test]
async fn an_announced_large_body_is_refused_before_it_is_sent() {
    let s = served(Limits::default()).await;
    let mut stream = s.connect().await;
    let (head, _) = CURL.split_once("\r\n\r\n").unwrap();
    let head = head.replace("Content-Length: 74", "Content-Length: 1048577");
    stream
        .write_all(format!("{head}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 413"));
    s.end().await;
}

#[tokio::test]
async fn stopping_lets_an_open_request_end() {
    let limits = Limits {
        grace: LONG,
        ..Limits::default()
    };
    let mut s = served(limits).await;
    s.house.fake.gate.forget_permits(usize::MAX);
    let mut idle = s.connect().await;
    idle.write_all(HEALTH.as_bytes()).await.unwrap();
    answer(&mut idle).await;
    let mut busy = s.connect().await;
    busy.write_all(CURL.as_bytes()).await.unwrap();
    s.house.fake.arrived(1).await;
    // The idle connection is closed at once, the busy ones are waited for.
    let (head, body) = CURL.split_once("\r\n\r\n").unwrap();
    let mut half = s.connect().await;
    let asking = format!("{head}\r\nExpect: 100-continue\r\n\r\n");
    half.write_all(asking.as_bytes()).await.unwrap();
    let mut told = [0; 25];
    half.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    s.stop.cancel();
    closed(&mut idle).await;
    half.write_all(body.as_bytes()).await.unwrap();
    s.house.fake.gate.add_permits(2);
    assert!(answer(&mut busy).await.starts_with("HTTP/1.1 200"));
    assert!(answer(&mut half).await.starts_with("HTTP/1.1 200"));
    tokio::time::timeout(LONG, s.tasks.join_next())
        .await
        .unwrap();
    assert!(TcpStream::connect(s.address).await.is_err());
}

/// What `reload` gives by a control socket where `locals` may, and what the audit has of it.
async fn reloaded(path: &Path, locals: Locals) -> (String, Vec<String>) {
    let house = house(0);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let listener = bind_ctl(path).unwrap();
    let router = house.router.clone();
    tasks.spawn(serve_ctl(listener, router, stop.clone(), locals));
    let mut stream = UnixStream::connect(path).await.unwrap();
    let ask = "POST /api/v1/reload HTTP/1.1\r\nHost: ctl\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let answer = answer(&mut stream).await;
    stop.cancel();
    tokio::time::timeout(LONG, tasks.join_next()).await.unwrap();
    (answer, house.fake.audit_lines())
}

#[tokio::test]
async fn the_control_socket_knows_its_peers() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ctl.sock");
    let listener = bind_ctl(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(bind_ctl(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    // A socket that nobody listens on is replaced.
    drop(listener);
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid().as_raw());
    let (answer, audit) = reloaded(&path, Locals::of_this_machine()).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    assert_eq!(audit, [format!("uid:{uid} reload ")]);
    let strangers = |group| Locals {
        admins: Vec::new(),
        group,
    };
    // A member of the group is named as the user that it is.
    let (answer, audit) = reloaded(&path, strangers(Some(gid))).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    assert_eq!(audit, [format!("uid:{uid} reload ")]);
    // Nobody is in that group.
    for group in [None, Some(4_000_000_002)] {
        let (answer, audit) = reloaded(&path, strangers(group)).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(
            answer.contains("a member of the group nas_event_daemon"),
            "{answer}"
        );
        assert_eq!(audit, Vec::<String>::new());
    }
}
