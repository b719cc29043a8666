//! The network of the Linux NAS: three namespaces (a subscriber, the NAS, an internet with a portal),
//! connections through them, and what `nft` and `tc` say of the NAS.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::lab::sshd::{program, run};

/// Addresses of the account under test.
pub(crate) const V4: &str = "10.0.0.10";
pub(crate) const V6: &str = "2001:db8:0:10::1";
pub(crate) const PREFIX: &str = "2001:db8:0:10::/64";
/// Beyond the NAS.
pub(crate) const FAR: [&str; 2] = ["198.51.100.2", "2001:db8:f::2"];

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
pub(crate) struct Net {
    sub: String,
    pub(crate) nas: String,
    far: String,
    server: Option<Child>,
}

impl Net {
    pub(crate) async fn new() -> Self {
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
    pub(crate) async fn reaches(&self, from: &str, to: &str, port: u16) -> String {
        self.open(from, to, port).await.0
    }

    /// The same, and the open connection.
    pub(crate) async fn open(&self, from: &str, to: &str, port: u16) -> (String, Open) {
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
    pub(crate) async fn both(&self, port: u16) -> [String; 2] {
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

    /// Every non-empty set and map of the table with its elements; a map's as `key=value`.
    pub(crate) async fn sets(&self) -> BTreeMap<String, BTreeSet<String>> {
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
                Some(pair) => {
                    let to = pair[1].as_str();
                    let to = to.map_or_else(|| pair[1].to_string(), str::to_owned);
                    format!("{}={to}", address(&pair[0]))
                }
                None => address(element),
            });
            let name = set["name"].as_str().unwrap().to_owned();
            found.insert(name, texts.collect());
        }
        found
    }

    /// Rate and ceil in bit/s of the account's class on both interfaces, and bytes sent by it.
    pub(crate) async fn class(&self, dev: &str, id: &str) -> Option<(String, String, u64)> {
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
pub(crate) struct Open {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Open {
    async fn line(&mut self) -> String {
        self.lines.next_line().await.unwrap().unwrap_or_default()
    }

    /// Whether what is said still comes back.
    pub(crate) async fn says(&mut self, text: &str) -> String {
        self.stdin
            .write_all(format!("{text}\n").as_bytes())
            .await
            .unwrap();
        self.line().await
    }
}
