//! Who may ride, and for how long, over a real socket with a simulated router behind.

use std::time::Duration;

use serde_json::json;

use super::words::failure;
use super::*;
use crate::attempt::FailureClass;
use crate::event::{Cmd, EventId, Params, UserId};
use crate::nas::NasId;
use crate::sim::mikrotik::{Options, Sim};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn job(nas: i64, port: u16) -> Job {
    let cmd = Cmd::parse("user_add").unwrap();
    Job {
        event: EventId(1),
        epoch: 1,
        try_count: 1,
        possible_duplicate: false,
        class: cmd.class(),
        cmd,
        user: Some(UserId(1)),
        abonent: None,
        usluga: None,
        params: Params(serde_json::Map::new()),
        nas: Arc::new(Nas {
            api_port: Some(port),
            http_url: Some("http://127.0.0.1:1/hook".into()),
            ..Nas::new(NasId(nas), "t", "127.0.0.1")
        }),
        secret: Arc::new(NasSecret {
            login: "admin".into(),
            password: "s3cret".into(),
            ..NasSecret::default()
        }),
        deadline: Duration::from_secs(30),
    }
}

struct Place {
    rides: Arc<Rides>,
    sim: Sim,
    dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Place {
    fn new() -> Self {
        let sim = Sim::start(Options {
            password: "s3cret".into(),
            ..Options::default()
        })
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let rides = Rides::new(Arc::default(), dir.path());
        let listener = bind(dir.path()).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&rides).serve(listener, CancellationToken::new()));
        Self {
            rides,
            sim,
            dir,
            _tasks: tasks,
        }
    }

    fn job(&self) -> Job {
        job(1116, self.sim.addr().port())
    }

    async fn raw(&self, line: &[u8]) -> Told {
        let mut stream = UnixStream::connect(self.dir.path().join(SOCKET))
            .await
            .unwrap();
        stream.write_all(line).await.unwrap();
        stream.write_all(b"\n").await.unwrap();
        let mut told = Vec::new();
        let mut reader = BufReader::new(stream);
        let read = reader.read_until(b'\n', &mut told);
        timeout(Duration::from_secs(30), read)
            .await
            .unwrap()
            .unwrap();
        serde_json::from_slice(&told).unwrap()
    }

    async fn ask(&self, token: &str, to: To) -> Told {
        let ask = Ask {
            token: token.into(),
            to,
            timeout_ms: 20_000,
            what: What::Mikrotik {
                path: "/system/identity/print".into(),
                args: Vec::new(),
                queries: Vec::new(),
                proplist: Vec::new(),
            },
        };
        self.raw(&serde_json::to_vec(&ask).unwrap()).await
    }
}

fn why(told: Told) -> String {
    match told {
        Told::Refused { text } => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_reaches_its_own_nas_and_dies_with_its_attempt() {
    let place = Place::new();
    let mut ride = place.rides.begin(TOKEN, &place.job(), false, None);
    for _ in 0..3 {
        let told = place.ask(TOKEN, To::default()).await;
        let Told::Done { rows, .. } = told else {
            panic!("{told:?}");
        };
        assert_eq!(rows[0]["name"], "simulated");
        let sent = ride.lines.recv().await.unwrap();
        assert_eq!(
            sent,
            (
                LineKind::Command,
                "send_mikrotik_cmd --nas 1116 /system/identity/print".to_owned()
            )
        );
        assert_eq!(ride.lines.recv().await.unwrap().0, LineKind::Answer);
    }
    assert_eq!(place.sim.seen().logins, 1, "one login for all");
    let text = why(place.ask(OTHER, To::default()).await);
    assert!(text.contains("has ended"), "{text}");
    drop(ride);
    let text = why(place.ask(TOKEN, To::default()).await);
    assert!(text.contains("has ended"), "{text}");
    assert_eq!(place.sim.seen().sentences, 3);
}

#[tokio::test]
async fn another_nas_is_refused_and_another_login_is_not_ours() {
    let place = Place::new();
    let _ride = place.rides.begin(TOKEN, &place.job(), false, None);
    let to = |nas: Option<i64>, host: Option<&str>, login: Option<&str>, port: Option<u16>| To {
        nas,
        host: host.map(Into::into),
        login: login.map(Into::into),
        port,
    };
    for other in [
        to(Some(1117), None, None, None),
        to(None, Some("10.0.0.1"), Some("admin"), None),
    ] {
        let text = why(place.ask(TOKEN, other).await);
        assert!(text.contains("for NAS 1116"), "{text}");
    }
    for otherwise in [
        to(None, Some("127.0.0.1"), Some("somebody"), None),
        to(None, None, None, Some(1)),
    ] {
        assert_eq!(place.ask(TOKEN, otherwise).await, Told::ByYourself);
    }
    assert_eq!(place.sim.seen().connections, 0);
    let ours = to(Some(1116), Some("127.0.0.1"), Some("admin"), None);
    assert!(matches!(place.ask(TOKEN, ours).await, Told::Done { .. }));
    let nas = place.job();
    let url = |host: &str| {
        let what = What::Http {
            method: "GET".into(),
            path: "/".into(),
            headers: Vec::new(),
            json: None,
        };
        let to = to(None, Some(host), None, None);
        whom(&nas.nas, &nas.secret, &to, &what)
    };
    assert_eq!(url("http://127.0.0.1:1/hook/"), Whom::Ours);
    assert!(matches!(url("http://127.0.0.1:2/hook"), Whom::Other(_)));
}

#[tokio::test]
async fn observe_mode_notes_and_sends_nothing() {
    let place = Place::new();
    let mut ride = place.rides.begin(TOKEN, &place.job(), true, None);
    assert_eq!(place.ask(TOKEN, To::default()).await, Told::Recorded);
    assert_eq!(ride.lines.recv().await.unwrap().0, LineKind::Command);
    assert_eq!(place.sim.seen().connections, 0);
}

#[tokio::test]
async fn the_end_of_an_attempt_ends_what_is_under_way() {
    let place = Place::new();
    place.sim.set_faults(crate::sim::mikrotik::Faults {
        latency_ms: 60_000,
        ..Default::default()
    });
    let ride = place.rides.begin(TOKEN, &place.job(), false, None);
    let asked = place.ask(TOKEN, To::default());
    let ends = async {
        place.sim.wait_until(|seen| seen.running == 1).await;
        drop(ride);
    };
    let (told, ()) = tokio::join!(asked, ends);
    assert!(why(told).contains("has ended"));
    place.sim.wait_until(|seen| seen.interrupted == 1).await;
}

#[tokio::test]
async fn what_is_no_ask_is_refused_and_hurts_nobody() {
    let place = Place::new();
    let _ride = place.rides.begin(TOKEN, &place.job(), false, None);
    for line in [&b""[..], b"{}", b"\xff\xfe", b"{\"token\":\"x\"}", b"[[[[["] {
        why(place.raw(line).await);
    }
    let told = place.ask(TOKEN, To::default()).await;
    assert!(matches!(told, Told::Done { .. }), "{told:?}");
    let late = failure(true, "transport", 254, "x".into());
    assert_eq!(late.class, FailureClass::Transport);
    let request = json!({"token": TOKEN, "to": {}, "timeout_ms": 20_000,
        "what": {"http": {"method": "GET", "path": "/x", "headers": [], "json": null}}});
    let told = place.raw(request.to_string().as_bytes()).await;
    let Told::Failed { nas, class, .. } = told else {
        panic!("{told:?}");
    };
    assert!(nas && class == "transport");
}

#[tokio::test]
async fn a_line_without_end_is_cut_and_idle_connections_keep_nobody_out() {
    let place = Place::new();
    let _ride = place.rides.begin(TOKEN, &place.job(), false, None);
    let socket = place.dir.path().join(SOCKET);
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(UnixStream::connect(&socket).await.unwrap());
    }
    let (reader, mut writer) = UnixStream::connect(&socket).await.unwrap().into_split();
    let flood = async {
        let much = vec![b'x'; 64 * 1024];
        let mut all = 0;
        while writer.write_all(&much).await.is_ok() {
            all += much.len();
        }
        all
    };
    let answer = async {
        let mut told = Vec::new();
        let mut reader = BufReader::new(reader);
        // The daemon may have closed before its answer was read.
        let _ = reader.read_until(b'\n', &mut told).await;
        drop(reader);
        told
    };
    let both = async { tokio::join!(flood, answer) };
    let (all, _) = timeout(Duration::from_secs(60), both).await.unwrap();
    assert!(all < ASK_MAX + 4 * 1024 * 1024, "{all} bytes were taken");
    let told = place.ask(TOKEN, To::default()).await;
    assert!(matches!(told, Told::Done { .. }), "{told:?}");
}

#[test]
fn helpers_are_links_to_this_binary() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        link_helpers(dir.path()).unwrap();
        for name in HELPERS {
            let to = std::fs::read_link(dir.path().join(BIN).join(name)).unwrap();
            assert_eq!(to, std::env::current_exe().unwrap());
        }
    }
}
