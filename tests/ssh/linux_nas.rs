//! The scheme Linux-SSH on a real Linux NAS: three network namespaces (a subscriber, the NAS, an
//! internet with a portal), the NAS's own sshd, the rule set that is shipped. Every command of
//! the catalogue is posted as an event; what it did is read back with `nft -j` and `tc -j`, and
//! tried with connections of both families.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::lab::daemon::{Lab, wait_for};
use crate::lab::db::Kind;
use crate::lab::sshd::{Sshd, program, run};

/// The account under test, and one beside it that nothing may touch.
const USER: i64 = 10;
const OTHER: i64 = 11;
const V4: &str = "10.0.0.10";
const V6: &str = "2001:db8:0:10::1";
const PREFIX: &str = "2001:db8:0:10::/64";
/// Beyond the NAS.
const FAR: [&str; 2] = ["198.51.100.2", "2001:db8:f::2"];

/// Greets with where it was reached, then gives back each line.
const SERVER: &str = r#"
import socket, threading
def talk(s):
    name = s.getsockname()[0]
    s.sendall(b"portal\n" if name in ("::ffff:192.0.2.80", "2001:db8:ffff::80") else b"internet\n")
    for line in s.makefile("rb"):
        s.sendall(line)
def serve(port):
    l = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        s, _ = l.accept()
        threading.Thread(target=talk, args=(s,), daemon=True).start()
threading.Thread(target=serve, args=(80,), daemon=True).start()
serve(8080)
"#;

/// Connects from one address to another; says what greeted it, then passes lines on.
const CLIENT: &str = r#"
import socket, sys
src, dst, port = sys.argv[1:4]
try:
    s = socket.create_connection((dst, int(port)), timeout=2, source_address=(src, 0))
    f = s.makefile("rb")
    print(f.readline().decode().strip(), flush=True)
    for line in sys.stdin:
        s.sendall(line.encode())
        print(f.readline().decode().strip(), flush=True)
except OSError as e:
    print("cut", flush=True)
"#;

/// Three namespaces with unique names, removed at the end.
struct Net {
    sub: String,
    nas: String,
    far: String,
    server: Option<Child>,
}

impl Net {
    async fn new() -> Self {
        let id = format!("{:08x}", getrandom::u32().unwrap());
        let name = |role: &str| format!("ned-{role}-{id}");
        let net = Self {
            sub: name("sub"),
            nas: name("nas"),
            far: name("far"),
            server: None,
        };
        let (sub, nas, far) = (&net.sub, &net.nas, &net.far);
        let script = format!(
            "set -e
             for n in {sub} {nas} {far}; do ip netns add $n; ip -n $n link set lo up; done
             ip -n {nas} link add lan0 type veth peer name sub0 netns {sub}
             ip -n {nas} link add wan0 type veth peer name far0 netns {far}
             ip -n {nas} link set lan0 up; ip -n {nas} link set wan0 up
             ip -n {sub} link set sub0 up; ip -n {far} link set far0 up
             ip -n {nas} addr add 10.0.0.1/24 dev lan0
             ip -n {nas} addr add 198.51.100.1/24 dev wan0
             ip -n {nas} addr add 2001:db8:f::1/64 dev wan0 nodad
             ip -n {far} addr add 198.51.100.2/24 dev far0
             ip -n {far} addr add 2001:db8:f::2/64 dev far0 nodad
             ip -n {far} addr add 192.0.2.80/32 dev lo
             ip -n {far} addr add 2001:db8:ffff::80/128 dev lo nodad
             for u in 10 11; do
               ip -n {sub} addr add 10.0.0.$u/24 dev sub0
               ip -n {sub} addr add 2001:db8:0:$u::1/64 dev sub0 nodad
               ip -n {nas} addr add 2001:db8:0:$u::ff/64 dev lan0 nodad
             done
             ip -n {sub} route add default via 10.0.0.1
             ip -n {sub} route add default via 2001:db8:0:10::ff
             ip -n {far} route add default via 198.51.100.1
             ip -n {far} route add default via 2001:db8:f::1
             ip -n {nas} route add 192.0.2.80 via 198.51.100.2
             ip -n {nas} route add 2001:db8:ffff::80 via 2001:db8:f::2
             ip netns exec {nas} sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
             ip netns exec {nas} nft -f {root}/oss/core/Linux-SSH/crb.nft
             for d in lan0 wan0; do
               ip netns exec {nas} tc qdisc replace dev $d root handle 1: htb default fffe
               ip netns exec {nas} tc class replace dev $d parent 1: classid 1:ffff htb rate 1gbit quantum 1514
               ip netns exec {nas} tc class replace dev $d parent 1:ffff classid 1:fffe htb rate 1gbit quantum 1514
             done",
            root = env!("CARGO_MANIFEST_DIR"),
        );
        run(&["bash", "-c", &script]).await;
        let mut net = net;
        let server = program("ip")
            .args(["netns", "exec", &net.far, "python3", "-c", SERVER])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        net.server = Some(server);
        net
    }

    /// What greets a connection from `from` to `to`; `cut` if nothing does.
    async fn reaches(&self, from: &str, to: &str, port: u16) -> String {
        self.open(from, to, port).await.0
    }

    /// The same, and the open connection.
    async fn open(&self, from: &str, to: &str, port: u16) -> (String, Open) {
        let port = port.to_string();
        let mut child = program("ip")
            .args([
                "netns", "exec", &self.sub, "python3", "-c", CLIENT, from, to, &port,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut open = Open {
            stdin: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        };
        (open.line().await, open)
    }

    /// Where the account under test gets to, IPv4 then IPv6.
    async fn both(&self, port: u16) -> [String; 2] {
        [
            self.reaches(V4, FAR[0], port).await,
            self.reaches(V6, FAR[1], port).await,
        ]
    }

    async fn json(&self, words: &[&str]) -> Value {
        let mut all = vec!["ip", "netns", "exec", self.nas.as_str()];
        all.extend(words);
        serde_json::from_str(&run(&all).await).unwrap()
    }

    /// Every non-empty set and map of the table with its elements; a map's as `key:class`.
    async fn sets(&self) -> BTreeMap<String, BTreeSet<String>> {
        let dump = self
            .json(&["nft", "-j", "list", "table", "inet", "crb"])
            .await;
        let mut found = BTreeMap::new();
        for item in dump["nftables"].as_array().unwrap() {
            let set = if item["set"].is_object() {
                &item["set"]
            } else {
                &item["map"]
            };
            let Some(elements) = set["elem"].as_array() else {
                continue;
            };
            let texts = elements.iter().map(|element| match element.as_array() {
                Some(pair) => format!("{}={}", address(&pair[0]), pair[1].as_str().unwrap()),
                None => address(element),
            });
            let name = set["name"].as_str().unwrap().to_owned();
            found.insert(name, texts.collect());
        }
        found
    }

    /// Rate and ceil in bit/s of the account's class on both interfaces, and bytes sent by it.
    async fn class(&self, dev: &str, id: &str) -> Option<(String, String, u64)> {
        let words = [
            "ip", "netns", "exec", &self.nas, "tc", "-s", "class", "show", "dev", dev,
        ];
        let text = run(&words).await;
        let at = text.find(&format!("class htb {id} "))?;
        let block: Vec<&str> = text[at..].split_whitespace().collect();
        let after = |word: &str| {
            let n = block.iter().position(|w| *w == word).unwrap();
            block[n + 1].to_owned()
        };
        let sent = after("Sent").parse().unwrap();
        Some((after("rate"), after("ceil"), sent))
    }
}

fn address(element: &Value) -> String {
    match element {
        Value::String(text) => text.clone(),
        other => {
            let prefix = &other["prefix"];
            format!("{}/{}", prefix["addr"].as_str().unwrap(), prefix["len"])
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.server = None;
        for name in [&self.sub, &self.nas, &self.far] {
            #[expect(clippy::disallowed_methods, reason = "the peers are programs")]
            let _ = std::process::Command::new("ip")
                .args(["netns", "del", name])
                .output();
        }
    }
}

/// A connection of the subscriber.
struct Open {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Open {
    async fn line(&mut self) -> String {
        self.lines.next_line().await.unwrap().unwrap_or_default()
    }

    /// Whether what is said still comes back.
    async fn says(&mut self, text: &str) -> String {
        self.stdin
            .write_all(format!("{text}\n").as_bytes())
            .await
            .unwrap();
        self.line().await
    }
}

/// The daemon, the NAS, two accounts with both families each.
struct Stage {
    lab: Lab,
    net: Net,
    _sshd: Sshd,
}

impl Stage {
    async fn new() -> Self {
        let net = Net::new().await;
        let sshd = Sshd::start_in(&net.nas, &[]).await;
        let lab = Lab::new(Kind::Sqlite, "retry_base = \"100ms\"\nmax_tries = 3").await;
        let columns = [
            ("ssh_port", sshd.port.to_string()),
            ("ssh_host_key", "'tofu'".to_owned()),
        ];
        lab.nas(1, "Linux-SSH", 10, &columns).await;
        lab.sql(&format!(
            "insert into nas_secret (nas_id, login, ssh_key) values (1, 'root', '{}')",
            sshd.client_key()
        ))
        .await;
        lab.accounts(1, [USER, OTHER]).await;
        for user in [USER, OTHER] {
            let addresses = json!([format!("10.0.0.{user}"), format!("2001:db8:0:{user}::/64")]);
            lab.sql(&format!(
                "update users set addresses = '{addresses}', ip = '10.0.0.{user}' where id = {user}"
            ))
            .await;
        }
        lab.sql("insert into usluga (id, name, lists) values (5, 'social', '[\"social\"]')")
            .await;
        Self {
            lab,
            net,
            _sshd: sshd,
        }
    }

    /// Posts one event of the account and waits for its end.
    async fn event(&self, body: Value) -> i64 {
        let id = self.lab.post(body).await[0];
        let done = ("done".to_owned(), "done".to_owned());
        assert_eq!(
            self.lab.ended(id).await,
            done,
            "{:#?}",
            self.lab.account_log(USER)
        );
        id
    }

    /// A command of the account, run twice: the second time changes nothing.
    async fn twice(&self, cmd: &str) -> BTreeMap<String, BTreeSet<String>> {
        let body = json!({"cmd": cmd, "user_id": USER, "usluga_id": 5});
        self.event(body.clone()).await;
        let (sets, classes) = (self.net.sets().await, self.classes().await);
        self.event(body).await;
        assert_eq!(
            (self.net.sets().await, self.classes().await),
            (sets.clone(), classes)
        );
        sets
    }

    async fn classes(&self) -> Vec<Option<(String, String)>> {
        let mut found = Vec::new();
        for (dev, id) in [("lan0", "1:a"), ("wan0", "1:a"), ("lan0", "1:b")] {
            let class = self.net.class(dev, id).await;
            found.push(class.map(|(rate, ceil, _)| (rate, ceil)));
        }
        found
    }
}

fn both(set: &str) -> Vec<(String, BTreeSet<String>)> {
    vec![
        (format!("{set}4"), BTreeSet::from([V4.to_owned()])),
        (format!("{set}6"), BTreeSet::from([PREFIX.to_owned()])),
    ]
}

#[tokio::test]
async fn every_event_turns_into_the_state_that_it_should() {
    let stage = Stage::new().await;
    let daemon = stage.lab.start().await;
    let net = &stage.net;
    let up = wait_for(async || (net.both(8080).await == ["internet", "internet"]).then_some(()));
    assert!(up.await.is_some(), "the network of the test does not work");
    // Pairs: the first puts the account into both sets of a name, the second out of them.
    for (give, take, set) in [
        ("user_redirect", "user_redirect_cancel", "negbal"),
        ("user_drop", "user_accept", "blocked"),
        ("user_auth", "user_disconnect", "auth"),
        ("own_disabled", "own_disabled_cancel", "own_disabled"),
        ("b_sys", "u_b_sys", "b_sys"),
        ("b_own", "u_b_own", "b_own"),
        ("b_admin", "u_b_admin", "b_admin"),
        ("usluga_add", "usluga_del", "social"),
    ] {
        let sets = stage.twice(give).await;
        assert_eq!(sets, both(set).into_iter().collect(), "{give}");
        let sets = stage.twice(take).await;
        assert_eq!(sets, BTreeMap::new(), "{take}");
    }
    // Speed: a class of its own in both directions, and packets of both families in it.
    let sets = stage.twice("user_rate_set").await;
    let want = [
        ("class4", format!("{V4}=1:a")),
        ("class6", format!("{PREFIX}=1:a")),
    ];
    let want = want.map(|(name, text)| (name.to_owned(), BTreeSet::from([text])));
    assert_eq!(sets, want.clone().into(), "user_rate_set");
    let speeds = ("20480Kbit".to_owned(), "20480Kbit".to_owned());
    let up_speeds = ("10240Kbit".to_owned(), "10240Kbit".to_owned());
    assert_eq!(stage.classes().await, [Some(speeds), Some(up_speeds), None]);
    for (from, to) in [(V4, FAR[0]), (V6, FAR[1])] {
        let before = (
            net.class("lan0", "1:a").await.unwrap().2,
            net.class("wan0", "1:a").await.unwrap().2,
        );
        assert_eq!(net.reaches(from, to, 8080).await, "internet");
        let after = (
            net.class("lan0", "1:a").await.unwrap().2,
            net.class("wan0", "1:a").await.unwrap().2,
        );
        assert!(
            after.0 > before.0 && after.1 > before.1,
            "{from}: {before:?} {after:?}"
        );
    }
    stage
        .lab
        .sql("update users set ceil_out = 4096, rate_out = 1024 where id = 10")
        .await;
    stage.twice("user_rate_set").await;
    let (rate, ceil, _) = net.class("lan0", "1:a").await.unwrap();
    assert_eq!((rate.as_str(), ceil.as_str()), ("1024Kbit", "4096Kbit"));
    let sets = stage.twice("user_rate_set_cancel").await;
    assert_eq!(
        (sets, stage.classes().await),
        (BTreeMap::new(), vec![None; 3])
    );
    // The account as a whole, with its flags.
    stage
        .lab
        .sql("update users set accept = 0, redirect = 1 where id = 10")
        .await;
    let sets = stage.twice("user_add").await;
    let mut want: BTreeMap<_, _> = want.into();
    want.extend(both("negbal"));
    want.extend(both("blocked"));
    assert_eq!(sets, want);
    stage
        .lab
        .sql("update users set accept = 1, redirect = 0 where id = 10")
        .await;
    let sets = stage.twice("user_edit").await;
    assert_eq!(sets.keys().collect::<Vec<_>>(), ["class4", "class6"]);
    for cmd in ["user_auth", "user_redirect", "user_drop", "b_own"] {
        stage.twice(cmd).await;
    }
    let sets = stage.twice("user_del").await;
    assert_eq!(
        (sets, stage.classes().await),
        (BTreeMap::new(), vec![None; 3])
    );
    daemon.stop().await;
}

#[tokio::test]
async fn no_family_passes_after_a_redirect_and_the_portal_does() {
    let stage = Stage::new().await;
    let daemon = stage.lab.start().await;
    let net = &stage.net;
    let up = wait_for(async || (net.both(8080).await == ["internet", "internet"]).then_some(()));
    assert!(up.await.is_some(), "the network of the test does not work");
    assert_eq!(net.both(80).await, ["internet", "internet"]);
    let (_, mut old4) = net.open(V4, FAR[0], 8080).await;
    let (_, mut old6) = net.open(V6, FAR[1], 8080).await;
    assert_eq!(old4.says("before").await, "before");
    assert_eq!(old6.says("before").await, "before");
    stage
        .event(json!({"cmd": "user_redirect", "user_id": USER}))
        .await;
    assert_eq!(net.both(8080).await, ["cut", "cut"], "new connections");
    assert_eq!(
        net.both(80).await,
        ["portal", "portal"],
        "the page that says why"
    );
    assert_eq!(old4.says("after").await, "cut", "an open one, IPv4");
    assert_eq!(old6.says("after").await, "cut", "an open one, IPv6");
    // The account beside it never noticed.
    assert_eq!(net.reaches("10.0.0.11", FAR[0], 8080).await, "internet");
    assert_eq!(
        net.reaches("2001:db8:0:11::1", FAR[1], 8080).await,
        "internet"
    );
    stage
        .event(json!({"cmd": "user_redirect_cancel", "user_id": USER}))
        .await;
    assert_eq!(net.both(8080).await, ["internet", "internet"]);
    stage
        .event(json!({"cmd": "user_drop", "user_id": USER}))
        .await;
    assert_eq!(net.both(80).await, ["cut", "cut"], "blocked is blocked");
    stage
        .event(json!({"cmd": "user_accept", "user_id": USER}))
        .await;
    assert_eq!(net.both(8080).await, ["internet", "internet"]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_change_of_address_leaves_nothing_old_and_diagnostics_answer() {
    let stage = Stage::new().await;
    let daemon = stage.lab.start().await;
    let net = &stage.net;
    stage
        .lab
        .sql("update users set redirect = 1 where id = 10")
        .await;
    stage
        .event(json!({"cmd": "user_add", "user_id": USER}))
        .await;
    let old = json!({"ip": V4, "addresses": [V4, PREFIX]});
    let new = "[\"10.0.0.77\", \"2001:db8:0:77::/64\"]";
    stage
        .lab
        .sql(&format!(
            "update users set addresses = '{new}', ip = '10.0.0.77' where id = 10"
        ))
        .await;
    stage
        .event(json!({"cmd": "user_del", "user_id": USER, "params": old}))
        .await;
    assert_eq!(net.sets().await, BTreeMap::new());
    stage
        .event(json!({"cmd": "user_add", "user_id": USER}))
        .await;
    let sets = net.sets().await;
    assert_eq!(sets.len(), 4, "{sets:?}");
    let text = format!("{sets:?}");
    assert!(
        text.contains("10.0.0.77") && text.contains("2001:db8:0:77::/64"),
        "{text}"
    );
    assert!(!text.contains(V4) && !text.contains(PREFIX), "{text}");
    // An address that still leads to another account's class is refused, not taken over.
    stage
        .lab
        .sql(&format!(
            "update users set addresses = '{new}', ip = '10.0.0.77' where id = 11"
        ))
        .await;
    let taken = stage.lab.event(OTHER, "user_rate_set").await;
    let (table, reason) = stage.lab.ended(taken).await;
    assert_eq!(table, "dead", "{reason}");
    assert!(reason.contains("File exists"), "{reason}");
    // tc has no class for this number: told, and nothing is sent.
    let big = json!({"cmd": "user_rate_set", "user_id": USER, "params": {"slot": 70_000}});
    let (table, reason) = stage.lab.ended(stage.lab.post(big).await[0]).await;
    assert_eq!(table, "dead", "{reason}");
    assert!(reason.contains("65000"), "{reason}");
    // Interactive events answer, and change nothing.
    let answer = async |cmd: &str| -> String {
        let id = stage.event(json!({"cmd": cmd, "user_id": USER})).await;
        let statement = format!("select answer from events_done where id = {id}");
        stage.lab.rows(&statement).await[0][0].clone()
    };
    let info = answer("user_info").await;
    for part in [
        "negbal4 10.0.0.77",
        "negbal6 2001:db8:0:77::/64",
        "class4",
        "htb 1:a",
    ] {
        assert!(info.contains(part), "{part} in {info}");
    }
    assert!(!info.contains("blocked"), "{info}");
    stage
        .lab
        .sql("update users set addresses = '[\"10.0.0.11\"]', ip = '10.0.0.11' where id = 10")
        .await;
    let test = answer("user_test").await;
    assert!(
        test.contains("3 received") || test.contains("3 packets received"),
        "{test}"
    );
    let mac = answer("user_get_mac").await;
    assert_eq!(mac.matches(':').count(), 5, "{mac}");
    assert_eq!(net.sets().await, sets);
    daemon.stop().await;
}
