//! Which connection an answer came on: made for it or kept, also after the device or a pause has
//! closed the last one; and never that of a request that was given up.

use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::attempt::FailureClass;
use nas_event_daemon::driver::http::{Auth, Http, Limits, Target};
use nas_event_daemon::driver::tls::Trust;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;

use crate::{LONG, get, talk};

/// What a server does with a connection once it has answered.
#[derive(Clone)]
enum Habit {
    /// Keeps it.
    Keeps,
    /// Says that it closes it, and does.
    SaysClose,
    /// Closes it without a word.
    Closes,
    /// Keeps it; the first answers wait for each other.
    Together(Arc<Barrier>),
    /// Keeps it; the first answer on the first connection waits until it is asked for.
    Late(watch::Receiver<bool>),
}

/// Answers each request with the number of its connection.
struct Server {
    url: String,
    /// Connections that the client has closed.
    closed: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(habit: Habit) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (tell, closed) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            let tell = Arc::new(tell);
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let (habit, tell) = (habit.clone(), Arc::clone(&tell));
                open.spawn(async move {
                    serve(stream, number, habit).await;
                    tell.send_modify(|n| *n += 1);
                });
                number += 1;
            }
        });
        Self {
            url,
            closed,
            _tasks: tasks,
        }
    }

    /// Waits until the client has closed so many connections.
    async fn closed(&mut self, times: usize) {
        let closed = self.closed.wait_for(|n| *n >= times);
        tokio::time::timeout(LONG, closed).await.unwrap().unwrap();
    }
}

/// Until the client closes the connection.
async fn serve(mut stream: TcpStream, number: usize, habit: Habit) {
    let mut first = true;
    while request(&mut stream).await.is_some() {
        match &habit {
            Habit::Together(barrier) if first => {
                barrier.wait().await;
            }
            Habit::Late(now) if first && number == 0 => {
                // The sender is there as long as the test.
                let _ = now.clone().wait_for(|now| *now).await;
            }
            _ => {}
        }
        first = false;
        let more = match habit {
            Habit::SaysClose => "Connection: close\r\n",
            _ => "",
        };
        let body = format!("connection {number}");
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // Who has gone is not told.
        let _ = stream.write_all(answer.as_bytes()).await;
        if matches!(habit, Habit::SaysClose | Habit::Closes) {
            let _ = stream.shutdown().await;
        }
    }
}

/// One request without a body; none at the end of the connection.
async fn request(stream: &mut TcpStream) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(())
}

fn device(server: &Server, connections: usize, linger: Duration) -> Http {
    let target = Target {
        url: server.url.clone(),
        auth: Auth::None,
        trust: Trust::System,
    };
    let limits = Limits {
        connections,
        connect_timeout: LONG,
        linger,
    };
    Http::new(&target, &limits)
}

/// The connection that the answer came on, and whether it was made for it.
async fn told(device: &Http) -> (String, bool) {
    let reply = talk(device, "/").await.unwrap();
    (reply.text, reply.new_session)
}

fn made(number: usize) -> (String, bool) {
    (format!("connection {number}"), true)
}

fn kept(number: usize) -> (String, bool) {
    (format!("connection {number}"), false)
}

#[tokio::test]
async fn an_answer_tells_whether_its_connection_was_made_for_it() {
    let server = Server::start(Habit::Keeps).await;
    let keeping = device(&server, 2, LONG);
    assert_eq!(told(&keeping).await, made(0));
    for _ in 0..3 {
        assert_eq!(told(&keeping).await, kept(0));
    }
    let server = Server::start(Habit::SaysClose).await;
    let closing = device(&server, 2, LONG);
    for number in 0..3 {
        assert_eq!(told(&closing).await, made(number));
    }
}

#[tokio::test]
async fn after_the_device_or_a_pause_has_closed_one_the_next_is_new() {
    let mut server = Server::start(Habit::Closes).await;
    let device_closes = device(&server, 2, LONG);
    for number in 0..3 {
        assert_eq!(told(&device_closes).await, made(number));
        server.closed(number + 1).await;
    }
    let mut server = Server::start(Habit::Keeps).await;
    let pausing = device(&server, 2, Duration::from_millis(200));
    for number in 0..3 {
        assert_eq!(told(&pausing).await, made(number));
        server.closed(number + 1).await;
    }
}

#[tokio::test]
async fn each_of_several_connections_is_new_once() {
    let both = Arc::new(Barrier::new(2));
    let server = Server::start(Habit::Together(both)).await;
    let device = device(&server, 2, LONG);
    let (one, other) = tokio::join!(told(&device), told(&device));
    let mut first = [one, other];
    first.sort();
    assert_eq!(first, [made(0), made(1)]);
    for _ in 0..4 {
        let (number, is_new) = told(&device).await;
        assert!(!is_new, "{number}");
    }
}

/// The answer to a request that was given up is nobody's, whether it comes before the next
/// request or while that waits.
#[tokio::test]
async fn a_late_answer_is_not_the_next_requests() {
    for before in [true, false] {
        let (now, late) = watch::channel(false);
        let mut server = Server::start(Habit::Late(late)).await;
        // One place: nothing but the connection of the first could be used again.
        let device = device(&server, 1, LONG);
        let limit = Duration::from_millis(300);
        let failure = device.talk(&get("/"), limit).await.unwrap_err();
        assert_eq!((failure.class, failure.code), (FailureClass::Unknown, 143));
        if before {
            now.send(true).unwrap();
            server.closed(1).await;
        }
        assert_eq!(told(&device).await, made(1), "before: {before}");
        now.send(true).unwrap();
        server.closed(1).await;
        assert_eq!(told(&device).await, kept(1), "before: {before}");
    }
}
