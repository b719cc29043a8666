//! A scheme whose file is changed while a daemon runs and an attempt is under way: the attempt
//! goes on as it began, the next event runs what the file says now, and the history tells by the
//! scheme's hash which of them it was.

use std::sync::Arc;

use nas_event_daemon::driver::sessions::Sessions;
use nas_event_daemon::scheme::native::{NativeExecute, NativeScheme};
use nas_event_daemon::scheme::{Execute as _, resolve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::journal::{gated, let_through};
use crate::lab::on_each_store;

on_each_store!(a_changed_scheme_is_used_from_the_next_event_on);

/// Nobody pokes the daemon: it finds the change by itself.
const DISPATCH: &str = "settings_interval = \"200ms\"";

/// An HTTP device that tells of each request, and answers the first ones only when it may.
struct Device {
    url: String,
    paths: mpsc::Receiver<String>,
    open: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Device {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (told, paths) = mpsc::channel(16);
        let (open, may) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                all.spawn(answer(stream, told.clone(), may.clone()));
            }
        });
        Self {
            url,
            paths,
            open,
            _tasks: tasks,
        }
    }

    async fn next(&mut self) -> String {
        let told = tokio::time::timeout(crate::lab::daemon::PATIENCE, self.paths.recv()).await;
        told.expect("no request comes").unwrap()
    }
}

async fn answer(mut stream: TcpStream, told: mpsc::Sender<String>, mut may: watch::Receiver<bool>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut some = [0; 1024];
        match stream.read(&mut some).await {
            Ok(n) if n > 0 => head.extend_from_slice(&some[..n]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let waits = path == "/gate";
    told.send(path).await.unwrap();
    if waits {
        may.wait_for(|open| *open).await.unwrap();
    }
    let reply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    // Who has gone away misses nothing.
    let _ = stream.write_all(reply.as_bytes()).await;
}

/// Two requests; between them the attempt waits for the device.
fn native(second: &str) -> String {
    format!(
        "driver = \"http\"\n\
         [[on.user_redirect]]\nrequest = {{ method = \"POST\", path = \"/gate\" }}\n\
         [[on.user_redirect]]\nrequest = {{ method = \"POST\", path = \"/{second}\" }}\n\
         [[on.user_drop]]\nrequest = {{ method = \"POST\", path = \"/{second}\" }}\n"
    )
}

fn session(gate: &std::path::Path, word: &str) -> String {
    format!(
        "say() {{ echo \"this is {word}\"; }}\n\
         user_redirect() {{ echo waits; {}; say; }}\n\
         user_drop() {{ say; }}\n",
        gated(gate)
    )
}

async fn a_changed_scheme_is_used_from_the_next_event_on(kind: Kind) {
    let lab = Lab::new(kind, DISPATCH).await;
    let mut device = Device::start().await;
    let gate = lab.path("gate");
    lab.native("Native", &native("one"));
    lab.session("Session", &session(&gate, "one"));
    let native_hash = || {
        let scheme = NativeScheme::load(&lab.path("oss/local/Native")).unwrap();
        let execute = NativeExecute::new(Arc::new(scheme), Arc::new(Sessions::default()));
        execute.identity().hash.clone()
    };
    let session_hash = || resolve::hash(&lab.path("oss/local/Session")).unwrap();
    let url = ("http_url", format!("'{}'", device.url));
    lab.nas(1, "Native", 2, &[url]).await;
    lab.nas(2, "Session", 2, &[]).await;
    lab.accounts(1, [11, 12]).await;
    lab.accounts(2, [21, 22]).await;
    let before = [native_hash(), session_hash()];
    let daemon = lab.start().await;

    // Both attempts are under way.
    let first = [
        lab.event(11, "user_redirect").await,
        lab.event(21, "user_redirect").await,
    ];
    assert_eq!(device.next().await, "/gate");
    lab.until("the script waits", async || {
        let log = lab.account_log(21);
        log.iter().any(|l| l.ends_with("< waits")).then_some(())
    })
    .await;
    for (name, text) in [
        ("Native/scheme.toml", native("two")),
        ("Session/bin/session", session(&gate, "two")),
    ] {
        // As an editor saves it: nobody ever sees half of it.
        std::fs::write(lab.path("saved"), text).unwrap();
        std::fs::rename(lab.path("saved"), lab.path("oss/local").join(name)).unwrap();
    }
    let after = [native_hash(), session_hash()];
    assert!(before[0] != after[0] && before[1] != after[1]);
    for (nas, hash) in [(1, &after[0]), (2, &after[1])] {
        let said = |line: &String| {
            line.contains(&format!("Change work with nas nasid={nas} ")) && line.contains(hash)
        };
        lab.until("the change is noticed", async || {
            lab.daemon_log().iter().any(said).then_some(())
        })
        .await;
    }

    // The next events, while the first ones still run.
    let next = [
        lab.event(12, "user_drop").await,
        lab.event(22, "user_drop").await,
    ];
    for id in next {
        assert_eq!(lab.ended(id).await.1, "done");
    }
    assert_eq!(device.next().await, "/two");
    device.open.send(true).unwrap();
    let_through(&gate, "all");
    for id in first {
        assert_eq!(lab.ended(id).await.1, "done");
    }
    assert_eq!(
        device.next().await,
        "/one",
        "the attempt changed its scheme"
    );

    for (user, id, word) in [(21, first[1], "one"), (22, next[1], "two")] {
        let said = format!("event={id} user={user} ");
        let log = lab.account_log(user);
        let fits = |line: &&String| line.contains(&said) && line.contains("< this is ");
        let said: Vec<_> = log.iter().filter(fits).collect();
        assert_eq!(said.len(), 1, "{log:?}");
        assert!(said[0].ends_with(&format!("< this is {word}")), "{log:?}");
    }
    for (ids, hashes) in [(first, before), (next, after)] {
        for (id, hash) in ids.into_iter().zip(hashes) {
            let told = format!("select scheme_hash from events_done where id = {id}");
            assert_eq!(lab.rows(&told).await, [[hash]], "event {id}");
        }
    }
    daemon.stop().await;
}
