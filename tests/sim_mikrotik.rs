//! The simulated router is as strict as RouterOS: what it takes, gives back and refuses.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, outside of the functions that clippy knows as tests"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use nas_event_daemon::attempt::Failure;
use nas_event_daemon::clock;
use nas_event_daemon::driver::mikrotik::wire::{self, Bounds, Decoder};
use nas_event_daemon::driver::mikrotik::{Command, Limits, Mikrotik, Target};
use nas_event_daemon::driver::{Reply, Row};
use nas_event_daemon::sim::mikrotik::console::{self, Args};
use nas_event_daemon::sim::mikrotik::{Faults, Options, Sim};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than anything here takes, on a busy machine too.
const LONG: Duration = Duration::from_secs(90);

struct Router {
    sim: Sim,
    driver: Mikrotik,
}

impl Router {
    fn start(options: Options) -> Self {
        let sim = Sim::start(options).unwrap();
        let driver = driver_to(sim.addr());
        Self { sim, driver }
    }

    /// Words as they go out: `k=v` arguments, `?…` queries.
    async fn say(&self, path: &str, words: &[&str]) -> Result<Reply, Failure> {
        say(&self.driver, path, words).await
    }

    async fn refusal(&self, path: &str, words: &[&str]) -> String {
        match self.say(path, words).await {
            Ok(reply) => format!("accepted: {reply:?}"),
            Err(failure) => failure.text,
        }
    }

    fn row(&self, path: &str) -> Row {
        self.sim.rows(path).remove(0)
    }
}

fn driver_to(addr: SocketAddr) -> Mikrotik {
    let target = Target {
        host: addr.ip().to_string(),
        port: addr.port(),
        login: "admin".into(),
        password: String::new(),
    };
    let limits = Limits {
        connections: 1,
        connect_timeout: LONG,
        linger: LONG,
        logins_per_minute: 10_000,
        know_rows: true,
    };
    Mikrotik::new(target, limits)
}

async fn say(driver: &Mikrotik, path: &str, words: &[&str]) -> Result<Reply, Failure> {
    let (queries, args): (Vec<&str>, Vec<&str>) = words.iter().partition(|w| w.starts_with('?'));
    let pair = |w: &&str| {
        let (k, v) = w.split_once('=').unwrap_or((w, ""));
        (k.to_owned(), v.to_owned())
    };
    let command = Command {
        path: path.into(),
        args: args.iter().map(pair).collect(),
        queries: queries.into_iter().map(str::to_owned).collect(),
        proplist: Vec::new(),
    };
    driver.talk(&command, LONG).await
}

#[tokio::test]
async fn queues() {
    let router = Router::start(Options::default());
    let add = "/queue/simple/add";
    let words = ["name=a", "target=10.88.0.15", "max-limit=10M/1G"];
    router.say(add, &words).await.unwrap();
    let row = router.row("/queue/simple");
    assert_eq!(row["max-limit"], "10000000/1000000000");
    assert_eq!(row["target"], "10.88.0.15/32");
    assert_eq!((&*row["disabled"], &*row["dynamic"]), ("false", "false"));
    assert!(!row.contains_key("comment"));
    for (words, text) in [
        (&["name=a"][..], "failure: already have such name"),
        (
            &["name=b", "max-limit=fast"],
            "invalid value for argument max-limit",
        ),
        (&["name=b", "frob=1"], "unknown parameter frob"),
        (&["name=b", "bytes=1/1"], "unknown parameter bytes"),
        (&["name=b", "place-before=*77"], "no such item"),
    ] {
        assert_eq!(router.refusal(add, words).await, text);
    }
    router
        .say(add, &["name=b", "place-before=a"])
        .await
        .unwrap();
    router.say(add, &[]).await.unwrap();
    let names: Vec<_> = router.sim.rows("/queue/simple");
    let names: Vec<_> = names.iter().map(|r| &*r["name"]).collect();
    assert_eq!(names, ["b", "a", "queue3"]);

    let set = "/queue/simple/set";
    for (words, text) in [
        (&["max-limit=1/1"][..], "missing =.id="),
        (&[".id=*99", "max-limit=1/1"], "no such item"),
        (&[".id=a,zz", "max-limit=1/1"], "no such item"),
        (
            &[".id=a", "place-before=b"],
            "unknown parameter place-before",
        ),
        (&[".id=a,b", "name=c"], "failure: already have such name"),
        (&[".id=a", "name=b"], "failure: already have such name"),
    ] {
        assert_eq!(router.refusal(set, words).await, text);
    }
    // A refused change changes nothing, and the names stay taken and free as they were.
    assert_eq!(
        router.sim.rows("/queue/simple")[1]["max-limit"],
        "10000000/1000000000"
    );
    router.say(set, &[".id=a,*3", "comment=x"]).await.unwrap();
    router.say(set, &[".id=a", "name=c"]).await.unwrap();
    router.say(add, &["name=a"]).await.unwrap();
    router.say(set, &[".id=c", "comment="]).await.unwrap();
    assert!(!router.sim.rows("/queue/simple")[1].contains_key("comment"));
    router
        .say("/queue/simple/disable", &[".id=c"])
        .await
        .unwrap();
    assert_eq!(router.sim.rows("/queue/simple")[1]["disabled"], "true");
    router
        .say("/queue/simple/remove", &[".id=a,b,c,queue3"])
        .await
        .unwrap();
    assert!(router.sim.rows("/queue/simple").is_empty());
}

#[tokio::test]
async fn dynamic_and_read_only_rows() {
    let router = Router::start(Options::default());
    router
        .sim
        .load(&json!({
            "/queue/simple": [{"name": "d", "dynamic": "true", "target": "10.0.0.1"}],
            "/ppp/active": [{"name": "u1", "address": "10.0.0.1"}],
        }))
        .unwrap();
    let text = router.refusal("/queue/simple/set", &[".id=d", "comment=x"]);
    assert_eq!(text.await, "failure: can not change dynamic");
    let text = router.refusal("/queue/simple/remove", &[".id=d"]).await;
    assert_eq!(text, "failure: can not remove dynamic");
    let text = router.refusal("/ppp/active/add", &["name=x"]).await;
    assert_eq!(text, "no such command");
    router.say("/ppp/active/remove", &[".id=*1"]).await.unwrap();
    assert!(router.sim.rows("/ppp/active").is_empty());
}

#[tokio::test]
async fn address_lists_of_both_families() {
    let router = Router::start(Options::default());
    for (path, given, back) in [
        ("/ip/firewall/address-list", "10.0.0.1/32", "10.0.0.1"),
        ("/ip/firewall/address-list", "10.0.1.7/24", "10.0.1.0/24"),
        (
            "/ipv6/firewall/address-list",
            "2001:DB8::1",
            "2001:db8::1/128",
        ),
    ] {
        let add = format!("{path}/add");
        let words = ["list=l", &format!("address={given}")];
        router.say(&add, &words).await.unwrap();
        let row = router.sim.rows(path).pop().unwrap();
        assert_eq!(row["address"], back);
        let again = ["list=l", &format!("address={back}")];
        let text = router.refusal(&add, &again).await;
        assert_eq!(text, "failure: already have such entry");
    }
    let add = "/ip/firewall/address-list/add";
    assert_eq!(router.refusal(add, &["list=l"]).await, "missing =address=");
    assert_eq!(
        router.refusal(add, &["list=l", "address=10.0.0"]).await,
        "invalid value for argument address"
    );
    let words = ["list=t", "address=10.0.0.1", "timeout=24:00:00"];
    router.say(add, &words).await.unwrap();
    let row = router.sim.rows("/ip/firewall/address-list").pop().unwrap();
    assert_eq!((&*row["timeout"], &*row["dynamic"]), ("1d", "true"));
    let words = ["list=t", "address=10.0.0.2", "timeout=0s"];
    router.say(add, &words).await.unwrap();
    assert_eq!(router.sim.rows("/ip/firewall/address-list").len(), 3);
}

#[tokio::test]
async fn queries_proplist_and_counts() {
    let router = Router::start(Options::default());
    for n in 0..5 {
        let words = [
            "list=l",
            &format!("address=10.0.0.{n}"),
            &format!("comment={}", n % 2),
        ];
        let add = "/ip/firewall/address-list/add";
        router.say(add, &words).await.unwrap();
    }
    let print = "/ip/firewall/address-list/print";
    for (words, count) in [
        (&["?comment=1"][..], 2),
        (&["?address=10.0.0.0", "?address=10.0.0.1", "?#|"], 2),
        (&["?comment=1", "?#!"], 3),
        (&["?-timeout"], 5),
        (&["?.id=*1"], 1),
        (&["?list=l", "?comment=0"], 3),
    ] {
        assert_eq!(router.say(print, words).await.unwrap().rows.len(), count);
        let mut words = words.to_vec();
        words.push("count-only=");
        let ret = router.say(print, &words).await.unwrap().ret;
        assert_eq!(ret, Some(count.to_string()));
    }
    let words = ["?comment=1", ".proplist=address,.id,nothing"];
    let rows = router.say(print, &words).await.unwrap().rows;
    let row = Row::from([
        (".id".to_owned(), "*2".to_owned()),
        ("address".to_owned(), "10.0.0.1".to_owned()),
    ]);
    assert_eq!(rows[0], row);
    assert_eq!(
        router.refusal(print, &["where=x"]).await,
        "unknown parameter where"
    );
    assert_eq!(
        router.refusal(print, &["?#|"]).await,
        "invalid query: nothing to combine"
    );
}

#[tokio::test]
async fn pings_and_system() {
    let router = Router::start(Options {
        faults: Faults {
            unreachable: vec!["10.0.0.2".into()],
            ..Faults::default()
        },
        ..Options::default()
    });
    let words = ["address=10.0.0.1", "count=3"];
    let rows = router.say("/ping", &words).await.unwrap().rows;
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|r| r.contains_key("time")));
    let words = ["address=10.0.0.2", "count=3"];
    let rows = router.say("/ping", &words).await.unwrap().rows;
    assert!(rows.iter().all(|r| r["status"] == "timeout"));
    assert_eq!(rows[2]["packet-loss"], "100");
    assert_eq!(
        router.refusal("/ping", &["address=x"]).await,
        "invalid value for argument address"
    );
    let rows = router
        .say("/system/resource/print", &[])
        .await
        .unwrap()
        .rows;
    assert!(rows[0]["version"].starts_with("7.16"));
}

#[tokio::test]
async fn state_can_be_read_and_loaded_and_a_wrong_one_changes_nothing() {
    let router = Router::start(Options::default());
    let good = json!({
        "/queue/simple": [{"name": "a", "max-limit": "1M/1M"}, {".id": "*F", "name": "b"}],
        "/ip/dhcp-server/lease": [{"address": "10.0.0.1", "mac-address": "aa:bb:cc:dd:ee:ff"}],
    });
    router.sim.load(&good).unwrap();
    let dump = router.sim.dump();
    assert_eq!(dump["/queue/simple"][0]["max-limit"], "1000000/1000000");
    assert_eq!(dump["/queue/simple"][1][".id"], "*F");
    for bad in [
        json!([]),
        json!({"/nothing": []}),
        json!({"/queue/simple": {}}),
        json!({"/queue/simple": [1]}),
        json!({"/queue/simple": [{"frob": "x"}]}),
        json!({"/queue/simple": [{"name": "x"}, {"name": "x"}]}),
        json!({"/queue/simple": [{".id": "*1"}, {".id": "*1"}]}),
        json!({"/queue/simple": [{".id": "7"}]}),
    ] {
        router.sim.load(&bad).unwrap_err();
        assert_eq!(router.sim.dump(), dump);
    }
    router.sim.load(&dump).unwrap();
    assert_eq!(router.sim.dump(), dump);
    // New rows never take an id that is in use.
    router.say("/queue/simple/add", &[]).await.unwrap();
    assert_eq!(router.sim.dump()["/queue/simple"][2][".id"], "*10");
}

#[tokio::test]
async fn the_journal_tells_every_change_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let router = Router::start(Options {
        journal: Some(journal.clone()),
        ..Options::default()
    });
    let add = "/queue/simple/add";
    let words = ["name=a\nb", "max-limit=1k/1k"];
    router.say(add, &words).await.unwrap();
    router.refusal(add, &["name=a\nb"]).await;
    router.say("/queue/simple/print", &[]).await.unwrap();
    let remove = "/queue/simple/remove";
    router.say(remove, &[".id=*1"]).await.unwrap();
    let text = std::fs::read_to_string(&journal).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["path"], add);
    assert_eq!(lines[0]["args"]["name"], "a\nb");
    assert_eq!(lines[0]["rows"][0]["max-limit"], "1000/1000");
    assert!(lines[0]["trap"].is_null());
    assert_eq!(lines[1]["trap"], "failure: already have such name");
    assert_eq!(lines[2]["path"], remove);
    assert_eq!(lines[2]["rows"][0]["name"], "a\nb");
    for line in &lines {
        assert!(line["at_us"].as_i64().unwrap() <= line["done_at_us"].as_i64().unwrap());
    }
}

#[tokio::test]
async fn public_addresses_need_a_word() {
    let listen = SocketAddr::from(([0, 0, 0, 0], 0));
    let options = Options {
        listen,
        ..Options::default()
    };
    let error = Sim::start(options.clone()).err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    let taken = Sim::start(Options::default()).unwrap();
    let options = Options {
        listen: taken.addr(),
        ..options
    };
    let error = Sim::start(options).err().unwrap();
    assert!(error.to_string().contains(&taken.addr().to_string()));
}

/// The first words of all replies to these sentences, as they come over the wire.
async fn heard(addr: SocketAddr, sentences: &[&[&str]]) -> Vec<String> {
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let mut decoder = Decoder::new(Bounds::DRIVER);
    let (mut heard, mut ended) = (Vec::new(), 0);
    for (n, sentence) in sentences.iter().enumerate() {
        let mut out = Vec::new();
        let words = sentence.iter().map(|word| word.as_bytes());
        wire::encode(words, Bounds::DRIVER, &mut out).unwrap();
        stream.write_all(&out).await.unwrap();
        while ended <= n {
            while let Some(reply) = decoder.next().unwrap() {
                heard.push(String::from_utf8(reply[0].clone()).unwrap());
                ended += usize::from(reply[0] == b"!done");
            }
            if ended <= n {
                let mut chunk = [0; 4096];
                let read = stream.read(&mut chunk).await.unwrap();
                assert_ne!(read, 0, "closed after {heard:?}");
                decoder.feed(&chunk[..read]);
            }
        }
    }
    heard
}

/// RouterOS says `!empty` since 7.18, of a `print` without rows and of nothing else.
#[tokio::test]
async fn an_empty_print_is_said_to_be_empty_since_7_18() {
    let login = &["/login", "=name=admin", "=password="][..];
    let print = &["/queue/simple/print"][..];
    for (version, empty) in [
        ("7.18", true),
        ("7.18.2 (stable)", true),
        ("8.0", true),
        ("7.17.9", false),
        ("6.49.10 (long-term)", false),
    ] {
        let sim = Sim::start(Options {
            version: version.into(),
            ..Options::default()
        })
        .unwrap();
        let said = heard(sim.addr(), &[login, print]).await;
        let wanted = if empty {
            &["!done", "!empty", "!done"][..]
        } else {
            &["!done", "!done"]
        };
        assert_eq!(said, wanted, "{version}");
        let add = &["/queue/simple/add", "=name=a"][..];
        let said = heard(sim.addr(), &[login, add, print]).await;
        assert_eq!(said, ["!done", "!done", "!re", "!done"], "{version}");
        // And the driver takes both for a table without rows.
        let driver = driver_to(sim.addr());
        let reply = say(&driver, print[0], &["?name=b"]).await.unwrap();
        assert!(reply.rows.is_empty(), "{version}");
    }
}

#[tokio::test]
async fn it_takes_its_time_for_logins_sentences_and_rows() {
    let router = Router::start(Options {
        faults: Faults {
            login_latency_ms: 150,
            ..Faults::default()
        },
        ..Options::default()
    });
    let rows: Vec<Value> = (0..20)
        .map(|n| json!({"name": format!("q{n}"), "comment": if n < 5 { "few" } else { "more" }}))
        .collect();
    router.sim.load(&json!({ "/queue/simple": rows })).unwrap();
    let took = async |words: &[&str]| {
        let began = clock::tick_ms();
        let reply = router.say("/queue/simple/print", words).await.unwrap();
        (clock::tick_ms() - began, reply.rows.len())
    };
    let (first, rows) = took(&[]).await;
    assert!(first >= 150 && rows == 20, "login: {first} ms, {rows} rows");
    router.sim.set_faults(Faults {
        row_latency_ms: 20,
        ..Faults::default()
    });
    let (few, rows) = took(&["?comment=few"]).await;
    assert!(few >= 100 && rows == 5, "{few} ms, {rows} rows");
    let (all, rows) = took(&[]).await;
    assert!(all >= 400 && rows == 20, "{all} ms, {rows} rows");
    let (_, rows) = took(&["?comment=none"]).await;
    assert_eq!(rows, 0);
    router.sim.set_faults(Faults {
        latency_ms: 120,
        ..Faults::default()
    });
    let (sentence, _) = took(&["?comment=none"]).await;
    assert!(sentence >= 120, "{sentence} ms");
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

#[tokio::test]
async fn the_console_serves_until_it_is_stopped_and_its_door_reads_and_loads() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.json");
    std::fs::write(&file, r#"{"/queue/simple": [{"name": "a"}]}"#).unwrap();
    // Two ports that nobody else is given: sockets are bound to them and never listen. The
    // console prints its own, but a test of the library has no second standard output to read.
    let kept = [(); 2].map(|()| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        socket
    });
    let [api, door] = [0, 1].map(|n| kept[n].local_addr().unwrap());
    let line = format!(
        "sim --listen {api} --control {door} --load {} --latency 1",
        file.display()
    );
    let cli = Cli::parse_from(line.split(' '));
    let stop = Arc::new(tokio::sync::Notify::new());
    let work = async {
        let driver = driver_to(api);
        while say(&driver, "/queue/simple/add", &["name=b"])
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
        let http = nas_event_daemon::driver::tls::plain_client()
            .build()
            .unwrap();
        let url = |path: &str| format!("http://{door}{path}");
        let text = http.get(url("/state")).send().await.unwrap();
        let state: Value = text.json().await.unwrap();
        assert_eq!(state["/queue/simple"][1]["name"], "b");
        let put = http.put(url("/state")).json(&json!({"/x": []})).send();
        assert_eq!(put.await.unwrap().status(), 422);
        let put = http.put(url("/state")).json(&json!({})).send();
        assert_eq!(put.await.unwrap().status(), 204);
        let put = http.put(url("/faults")).json(&json!({"tag_last": true}));
        assert_eq!(put.send().await.unwrap().status(), 204);
        let put = http.put(url("/faults")).json(&json!({"frob": true}));
        assert_eq!(put.send().await.unwrap().status(), 422);
        let faults: Faults = http
            .get(url("/faults"))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert!(faults.tag_last && faults.latency_ms == 0);
        let seen = http.get(url("/seen")).send().await.unwrap();
        let seen: Value = seen.json().await.unwrap();
        assert!(seen["changes"].as_u64() >= Some(1));
        stop.notify_one();
    };
    let (served, ()) = tokio::join!(console::serve(&cli.args, stop.notified()), work);
    served.unwrap();
    assert!(tokio::net::TcpStream::connect(api).await.is_err());
}
