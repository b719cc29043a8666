//! FreeRADIUS as the NAS: what it writes into its detail file is what we have said, in names
//! and texts that others gave to our bytes.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nas_event_daemon::attempt::{FailureClass, Scope};
use nas_event_daemon::driver::radius::Kind;
use nas_event_daemon::driver::radius::dictionary::Dictionary;
use nas_event_daemon::driver::radius::exchange::Manner;

use crate::lab::daemon::{Lab, wait_for};
use crate::lab::db::Kind as Store;
use crate::{LONG, SECRET, manner, radius, talk};

/// Where the package has its dictionaries.
const DICTIONARIES: &str = "/usr/share/freeradius";

/// A server; killed when dropped.
struct FreeRadius {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for FreeRadius {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl FreeRadius {
    /// With a `coa` listener that writes every request into a detail file; "nosuch" has no
    /// session, nor has 10.0.0.61 in the words of XGE.
    async fn start(require_message_authenticator: bool) -> Self {
        let mut why = String::new();
        for _ in 0..5 {
            // Somebody else may take the port before the server does.
            match Self::try_start(require_message_authenticator).await {
                Ok(server) => return server,
                Err(log) => why = log,
            }
        }
        panic!("FreeRADIUS does not start: {why}")
    }

    async fn try_start(require: bool) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let port = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let at = dir.path().display();
        let require = if require { "yes" } else { "no" };
        let config = format!(
            r#"
name = ned_test
raddbdir = {at}
logdir = {at}
run_dir = {at}
libdir = /usr/lib/freeradius
max_request_time = 30
cleanup_delay = 5
max_requests = 16384
hostname_lookups = no
security {{
    max_attributes = 200
    reject_delay = 0
    status_server = no
}}
thread pool {{
    start_servers = 2
    max_servers = 4
    min_spare_servers = 1
    max_spare_servers = 4
    max_requests_per_server = 0
}}
modules {{
    detail coadetail {{
        filename = {at}/detail
    }}
    always ok {{
        rcode = ok
    }}
    always reject {{
        rcode = reject
    }}
}}
client t {{
    ipaddr = 127.0.0.1
    secret = {SECRET}
    require_message_authenticator = {require}
}}
server coa {{
    listen {{
        type = coa
        ipaddr = 127.0.0.1
        port = {port}
    }}
    recv-coa {{
        coadetail
        if ((&User-Name && &User-Name == "nosuch") || (&Filter-Id && &Filter-Id == "session 10.0.0.61 disconnect")) {{
            update reply {{
                Error-Cause := Session-Context-Not-Found
                Reply-Message := "nobody here"
            }}
            reject
        }}
        ok
    }}
    send-coa {{
        ok
    }}
}}
"#
        );
        std::fs::write(dir.path().join("radiusd.conf"), config).unwrap();
        let include = format!("$INCLUDE {DICTIONARIES}/dictionary\n");
        std::fs::write(dir.path().join("dictionary"), include).unwrap();
        let log = dir.path().join("radius.log");
        let child = Command::new("freeradius")
            .arg("-f")
            .arg("-d")
            .arg(dir.path())
            .arg("-l")
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("freeradius cannot be started; scripts/test --install installs it");
        let mut server = Self { child, dir, port };
        let ready = wait_for(async || {
            if server.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.contains("Ready to process requests").then_some(true)
        });
        if ready.await == Some(true) {
            return Ok(server);
        }
        Err(std::fs::read_to_string(&log).unwrap_or_default())
    }

    fn detail_file(&self) -> PathBuf {
        self.dir.path().join("detail")
    }

    /// Lines of the detail file, once it has one that contains `text`.
    async fn detail(&self, text: &str) -> Vec<String> {
        let found = wait_for(async || {
            let all = std::fs::read_to_string(self.detail_file()).unwrap_or_default();
            all.contains(text).then_some(all)
        });
        let all = found
            .await
            .unwrap_or_else(|| panic!("{text:?} is not in the detail file"));
        all.lines().map(|line| line.trim().to_owned()).collect()
    }
}

#[tokio::test]
async fn attributes_arrive_as_they_are_meant() {
    let server = FreeRadius::start(true).await;
    let radius = radius(server.port, manner(SECRET));
    let words = [
        ("Acct-Session-Id", "81a0'\"\\$(x)"),
        ("User-Name", "иванов"),
        ("Framed-IP-Address", "10.88.0.15"),
        ("Framed-IPv6-Prefix", "2001:db8:1::/56"),
        ("Delegated-IPv6-Prefix", "2001:db8:2::/48"),
        ("Framed-Interface-Id", "0:0:0:1"),
        ("Service-Type", "Framed-User"),
        ("Session-Timeout", "86400"),
        ("Class", "0x00ff41"),
        ("Mikrotik-Rate-Limit", "10M/20M"),
        ("Mikrotik-Host-IP", "10.0.0.1"),
        ("Cisco-AVPair", "subscriber:command=activate-service"),
        ("Cisco-AVPair", "subscriber:service-name=L4R"),
        ("Cisco-Account-Info", "S10.88.0.15"),
        ("ERX-Service-Activate:3", "SPEED(10m,20m)"),
        ("HTTP-Redirect-URL", "http://pay.example/"),
        ("Huawei-Input-Peak-Rate", "10000000"),
        ("MS-Primary-DNS-Server", "10.0.0.53"),
        ("VasExperts-Policing-Profile", "BV##100000#100000#++++++++"),
        ("VasExperts-NAT-IP", "192.0.2.7"),
        ("Tunnel-Type:2", "L2TP"),
    ];
    let told = talk(&radius, Kind::Coa, &words, LONG).await;
    assert_eq!((told.failure, &*told.line), (None, "CoA-ACK"));
    let lines = server.detail("Tunnel-Type").await;
    for wanted in [
        "Packet-Type = CoA-Request",
        r#"Acct-Session-Id = "81a0'\"\\$(x)""#,
        r#"User-Name = "иванов""#,
        "Framed-IP-Address = 10.88.0.15",
        "Framed-IPv6-Prefix = 2001:db8:1::/56",
        "Delegated-IPv6-Prefix = 2001:db8:2::/48",
        "Framed-Interface-Id = 0:0:0:1",
        "Service-Type = Framed-User",
        "Session-Timeout = 86400",
        "Class = 0x00ff41",
        r#"Mikrotik-Rate-Limit = "10M/20M""#,
        "Mikrotik-Host-IP = 10.0.0.1",
        r#"Cisco-AVPair = "subscriber:command=activate-service""#,
        r#"Cisco-AVPair = "subscriber:service-name=L4R""#,
        r#"Cisco-Account-Info = "S10.88.0.15""#,
        r#"ERX-Service-Activate:3 = "SPEED(10m,20m)""#,
        r#"HTTP-Redirect-URL = "http://pay.example/""#,
        "Huawei-Input-Peak-Rate = 10000000",
        "MS-Primary-DNS-Server = 10.0.0.53",
        r#"VasExperts-Policing-Profile = "BV##100000#100000#++++++++""#,
        "VasExperts-NAT-IP = 192.0.2.7",
        "Tunnel-Type:2 = L2TP",
    ] {
        assert!(lines.iter().any(|l| l == wanted), "{wanted}\n{lines:#?}");
    }
    let pair = |l: &String| l.starts_with("Cisco-AVPair");
    let pairs: Vec<_> = lines.iter().filter(|l| pair(l)).collect();
    assert!(pairs[0].contains("command") && pairs[1].contains("service-name"));
}

#[tokio::test]
async fn answers_mean_what_the_rfc_says() {
    let server = FreeRadius::start(false).await;
    let bare = Manner {
        message_authenticator: false,
        event_timestamp: false,
        ..manner(SECRET)
    };
    for manner in [manner(SECRET), bare] {
        let radius = radius(server.port, manner);
        let fine = talk(&radius, Kind::Coa, &[("User-Name", "ivanov")], LONG).await;
        assert_eq!(fine.failure, None);
        let words = [("User-Name", "nosuch")];
        let gone = talk(&radius, Kind::Disconnect, &words, LONG).await;
        assert_eq!((gone.failure, gone.reply.code), (None, 503));
        let refused = talk(&radius, Kind::Coa, &words, LONG).await;
        let failure = refused.failure.unwrap();
        assert_eq!(
            (failure.scope, failure.class),
            (Scope::Event, FailureClass::Refused)
        );
        assert_eq!(
            failure.text,
            "CoA-NAK, Error-Cause 503 Session-Context-Not-Found: nobody here"
        );
        let rows = &refused.reply.rows;
        assert!(
            rows.iter()
                .any(|r| r.get("Reply-Message").is_some_and(|t| t == "nobody here"))
        );
        let report = radius.report();
        assert_eq!(
            (report.answers, report.ignored.sum(), report.sockets),
            (3, 0, 1)
        );
    }
}

/// The server drops in silence what it does not believe.
#[tokio::test]
async fn without_the_right_signature_there_is_silence() {
    let server = FreeRadius::start(true).await;
    let unsigned = Manner {
        message_authenticator: false,
        ..manner(SECRET)
    };
    for manner in [unsigned, manner("not-this-one")] {
        let radius = radius(server.port, manner);
        let words = [("User-Name", "ivanov")];
        let told = talk(&radius, Kind::Coa, &words, Duration::from_millis(900)).await;
        let failure = told.failure.unwrap();
        assert_eq!(
            (failure.scope, failure.class),
            (Scope::Nas, FailureClass::Unknown)
        );
        assert!(failure.text.contains("coa_secret"), "{failure}");
        assert!(radius.report().copies >= 1);
    }
    // The control: the same request with both is answered.
    let radius = radius(server.port, manner(SECRET));
    let told = talk(&radius, Kind::Coa, &[("User-Name", "ivanov")], LONG).await;
    assert_eq!(told.failure, None);
}

/// A hundred at once, each with its own answer.
#[tokio::test]
async fn many_requests_share_a_socket() {
    let server = FreeRadius::start(true).await;
    let radius = radius(server.port, manner(SECRET));
    let all = (0..100).map(|n| {
        let radius = &radius;
        async move {
            let login = format!("login{n}");
            talk(radius, Kind::Coa, &[("User-Name", &login)], LONG).await
        }
    });
    for told in futures_util::future::join_all(all).await {
        assert_eq!(told.failure, None);
    }
    assert_eq!(radius.report().sockets, 1);
}

/// Numbers and kinds of every shipped attribute are those that FreeRADIUS has, and its files
/// can be read as they are.
#[test]
fn dictionaries_agree_with_those_of_others() {
    let mut theirs = Dictionary::default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(DICTIONARIES)
        .expect("freeradius-config or freeradius is not installed")
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut read = 0;
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let vendors = [
            "cisco",
            "mikrotik",
            "erx",
            "juniper",
            "ericsson.ab",
            "huawei",
            "microsoft",
            "vasexperts",
            "wispr",
            "alcatel.sr",
        ];
        let wanted = name
            .strip_prefix("dictionary.")
            .is_some_and(|n| vendors.contains(&n) || n.starts_with("rfc"));
        // The DSL forum's file and those of inner protocols have other forms.
        if !wanted || name.ends_with("rfc4679") || name.ends_with("rfc5447") {
            continue;
        }
        let bytes = std::fs::read(&file).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        theirs.add(&name, &text).unwrap();
        read += 1;
    }
    assert!(read > 30, "{read} files");
    let mut compared = 0;
    for ours in Dictionary::shipped().iter() {
        let Some(their) = theirs.iter().find(|a| a.name == ours.name) else {
            assert!(ours.name.starts_with("Accel-"), "{} is nobody's", ours.name);
            continue;
        };
        compared += 1;
        let what = &ours.name;
        assert_eq!(
            (ours.vendor, ours.number),
            (their.vendor, their.number),
            "{what}"
        );
        assert_eq!(
            (ours.tagged, ours.encrypted),
            (their.tagged, their.encrypted),
            "{what}"
        );
        // The one deviation: its first byte is a code.
        if &**what != "Cisco-Command-Code" {
            assert_eq!(ours.kind, their.kind, "{what}");
        }
    }
    assert!(compared > 900, "{compared} attributes");
}

/// The whole way: an event, a shipped scheme, the wire, a server that others wrote. Each of the
/// schemes with names that others gave to their attributes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_becomes_a_request() {
    let server = FreeRadius::start(true).await;
    let lab = Lab::new(Store::Sqlite, "").await;
    let schemes: [(&str, &str, &[&str]); 6] = [
        (
            "Mikrotik-CoA",
            "user_rate_set",
            &[
                r#"Mikrotik-Rate-Limit = "10240k/20480k""#,
                r#"Mikrotik-Address-List = "crb_auth""#,
            ],
        ),
        (
            "Cisco-ISG",
            "user_redirect",
            &[
                r#"Cisco-AVPair = "subscriber:command=activate-service""#,
                r#"Cisco-AVPair = "subscriber:service-name=L4REDIRECT""#,
                r#"Cisco-Account-Info = "S10.0.0.20""#,
            ],
        ),
        (
            "Juniper-MX",
            "user_rate_set",
            &[r#"ERX-Service-Activate:1 = "SPEED(10240k,20480k)""#],
        ),
        (
            "VasExperts-SKAT",
            "user_rate_set",
            &[r#"VasExperts-Policing-Profile = "BV##20480#10240#++++++++""#],
        ),
        (
            "accel-ppp",
            "user_rate_set",
            &[r#"Filter-Id = "20480/10240""#],
        ),
        (
            "XGE",
            "user_redirect",
            &[
                r#"Filter-Id = "session 10.0.0.60 redirect negbal""#,
                "Framed-IP-Address = 10.0.0.60",
            ],
        ),
    ];
    for (n, (scheme, ..)) in (1..).zip(schemes) {
        let port = ("coa_port", server.port.to_string());
        let vars = ("vars", r#"'{"full": "yes"}'"#.to_owned());
        lab.nas(n, scheme, 5, &[port, vars]).await;
        lab.db
            .sql(&format!(
                "insert into nas_secret (nas_id, coa_secret) values ({n}, '{SECRET}')"
            ))
            .await;
        lab.accounts(n, [n * 10, n * 10 + 1]).await;
        lab.db
            .sql(&format!(
                "update users set login = 'nosuch' where id = {}",
                n * 10 + 1
            ))
            .await;
    }
    let daemon = lab.start().await;
    for (n, (scheme, cmd, wanted)) in (1..).zip(schemes) {
        let id = lab.event(n * 10, cmd).await;
        assert_eq!(lab.ended(id).await.1, "done", "{scheme}");
        for wanted in wanted {
            let lines = server.detail(wanted).await;
            assert!(lines.iter().any(|l| l == wanted), "{wanted}\n{lines:#?}");
        }
        // Known by login and address; ISG by its own account information, XGE by address alone.
        if !["Cisco-ISG", "XGE"].contains(&scheme) {
            server
                .detail(&format!("User-Name = \"login{}\"", n * 10))
                .await;
        }
        // Offline is fine, and is to be seen.
        let id = lab.event(n * 10 + 1, "user_disconnect").await;
        assert_eq!(lab.ended(id).await.1, "done", "{scheme}");
    }
    let words = lab.nas_log(6).join("\n");
    assert!(
        words.contains("< CoA-NAK Error-Cause=Session-Context-Not-Found"),
        "{words}"
    );
    assert_eq!(lab.opened(1), 1);
    let log = lab.nas_log(1);
    let has = |text: &str| log.iter().any(|l| l.contains(text));
    assert!(
        has(
            "> send_radius_cmd --nas 1 coa Framed-IP-Address=10.0.0.10 User-Name=login10 Mikrotik-Rate-Limit="
        ),
        "{log:#?}"
    );
    assert!(
        has("< Disconnect-NAK Error-Cause=Session-Context-Not-Found"),
        "{log:#?}"
    );
    assert!(!has(SECRET));
    daemon.stop().await;
}
