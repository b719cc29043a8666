//! A scheme with the simulated device that it speaks to: one command is run, and what reached the
//! device is read from the device's own journal, always in the same form. Before each run the
//! device holds what the account has there and what a neighbour has.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nas_event_daemon::attempt::{Job, Line, LineKind, Report, Transcript};
use nas_event_daemon::driver::sessions::Sessions;
use nas_event_daemon::event::{Cmd, EventId, Params, UserId};
use nas_event_daemon::nas::{Mode, Nas, NasId, NasSecret};
use nas_event_daemon::scheme::Execute;
use nas_event_daemon::scheme::native::beside::Beside;
use nas_event_daemon::scheme::native::{NativeExecute, NativeScheme};
use nas_event_daemon::scheme::session::SessionScheme;
use nas_event_daemon::sim::{http, mikrotik, radius, ssh, telnet};
use serde_json::{Value, json};

/// Login of every device.
const LOGIN: &str = "ned";
/// Every secret of theirs; nothing hostile holds it.
const SECRET: &str = "servicemode";
/// Far above anything that is waited for, on a busy machine too.
const LONG: Duration = Duration::from_secs(60);
/// What Example-Session says before a command that it would send.
const DRY: &str = "dry run, nothing is sent: ";
/// The account, and who lives beside it on the same NAS.
pub(crate) const ACCOUNT: i64 = 1424;
const MINE: &str = "crb_1424";
const HIS: &str = "crb_1425";
/// Lines of the router with routes: ours, and the neighbour's.
const MY_ROUTES: [&str; 2] = [
    "ip route 10.88.0.15/32 blackhole tag 1424",
    "ipv6 route 2001:db8:1::/56 blackhole tag 1424",
];
const HIS_ROUTE: &str = "ip route 10.88.0.16/32 blackhole tag 1425";

/// What a device was told, in names and values; `sh` = a line for a shell.
pub(crate) type Sentence = Vec<(String, String)>;

/// What one run did.
pub(crate) struct Did {
    pub(crate) report: Report,
    /// By the device's journal.
    pub(crate) sent: Vec<Sentence>,
    /// Sentences to a router, what only reads included; 0 elsewhere.
    pub(crate) sentences: u64,
    /// The transcript, as it goes to the logs.
    pub(crate) lines: Vec<Line>,
}

impl Did {
    /// The logged commands.
    pub(crate) fn commands(&self) -> Vec<&str> {
        let commands = self.lines.iter().filter(|l| l.kind == LineKind::Command);
        commands.map(|line| line.text.as_str()).collect()
    }
}

enum Device {
    Router(mikrotik::Sim),
    #[expect(dead_code, reason = "it ends when dropped")]
    Ssh(ssh::Sim),
    Telnet(telnet::Sim),
    Radius(radius::Sim),
    #[expect(dead_code, reason = "it ends when dropped")]
    Http(http::Sim),
    /// bash, which says what it would send.
    Script,
    /// Rendered and noted only.
    Paper,
}

/// A scheme and its device; both end when dropped.
pub(crate) struct Stand {
    pub(crate) name: String,
    pub(crate) cmds: Vec<Cmd>,
    execute: Box<dyn Execute>,
    device: Device,
    nas: Arc<Nas>,
    secret: Arc<NasSecret>,
    journal: PathBuf,
}

impl Stand {
    /// `scheme`: its directory; the journal is made in `place`.
    pub(crate) async fn new(scheme: &Path, place: &Path) -> Self {
        let name = scheme.file_name().unwrap().to_str().unwrap().to_owned();
        let journal = place.join(format!("{name}.jsonl"));
        let mut nas = Nas::new(NasId(1), "bras", "127.0.0.1");
        // What is sent for a text is held against what is sent for its twin: the same way each time.
        nas.vars.insert("know_rows".into(), "no".into());
        let (execute, device, cmds): (Box<dyn Execute>, _, _) =
            if scheme.join("bin/session").exists() {
                let session =
                    SessionScheme::session(scheme, "abc".into(), Beside::load(scheme).unwrap());
                let shim = PathBuf::from(env!("CARGO_BIN_EXE_nas_event_daemon"));
                let session = session.with_shim(shim, Duration::from_millis(300));
                let cmds = ["user_add", "user_del", "user_drop", "user_rate_set"];
                let cmds = cmds.map(|cmd| Cmd::parse(cmd).unwrap()).to_vec();
                (Box::new(session), Device::Script, cmds)
            } else {
                let native = NativeScheme::load(scheme).unwrap();
                let device = device(&native, &mut nas, &journal, &name).await;
                // Pings for two seconds, and has no text in it but the address.
                let slow =
                    |cmd: &Cmd| matches!(device, Device::Router(_)) && cmd.as_str() == "user_test";
                let cmds = native.cmds().filter(|cmd| !slow(cmd)).cloned().collect();
                let execute = NativeExecute::new(Arc::new(native), Arc::new(Sessions::default()));
                (Box::new(execute), device, cmds)
            };
        let secret = NasSecret {
            login: if matches!(device, Device::Http(_)) {
                String::new()
            } else {
                LOGIN.to_owned()
            },
            password: SECRET.to_owned(),
            enable_password: SECRET.to_owned(),
            coa_secret: SECRET.to_owned(),
            ..NasSecret::default()
        };
        Self {
            name,
            cmds,
            execute,
            device,
            nas: Arc::new(nas),
            secret: Arc::new(secret),
            journal,
        }
    }

    /// Whether the device is bash, at the cost of a process for each run.
    pub(crate) fn is_script(&self) -> bool {
        matches!(self.device, Device::Script)
    }

    /// Whether an event takes much longer than elsewhere.
    pub(crate) fn is_slow(&self) -> bool {
        matches!(self.device, Device::Script | Device::Telnet(_))
    }

    /// Whether the device is a RouterOS router.
    pub(crate) fn is_router(&self) -> bool {
        matches!(self.device, Device::Router(_))
    }

    /// Whether a shell reads what a logged command carries.
    pub(crate) fn is_ssh(&self) -> bool {
        matches!(self.device, Device::Ssh(_))
    }

    /// Puts the device into its first state: what is the neighbour's, and what is that of an
    /// account with this login and session id. `false` = such texts it does not take.
    pub(crate) fn prepare(&self, own: Option<(&str, &str)>) -> bool {
        match &self.device {
            Device::Router(sim) => sim.load(&menus(own.map(|(login, _)| login))).is_ok(),
            Device::Radius(sim) => sim.load(&online(own)).is_ok(),
            Device::Telnet(sim) => {
                sim.load(&[MY_ROUTES[0], MY_ROUTES[1], HIS_ROUTE]);
                true
            }
            Device::Ssh(_) | Device::Http(_) | Device::Script | Device::Paper => true,
        }
    }

    /// Runs one command.
    pub(crate) async fn run(&self, cmd: &Cmd, usluga: Option<i64>, params: Params) -> Did {
        let job = Job {
            event: EventId(7),
            epoch: 1,
            try_count: 1,
            possible_duplicate: false,
            class: cmd.class(),
            cmd: cmd.clone(),
            user: Some(UserId(ACCOUNT)),
            abonent: Some(1375),
            usluga,
            params,
            nas: Arc::clone(&self.nas),
            secret: Arc::clone(&self.secret),
            deadline: LONG,
        };
        if let Ok(journal) = std::fs::File::options().write(true).open(&self.journal) {
            journal.set_len(0).unwrap();
        }
        let sentences = self.sentences();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let mut transcript = Transcript::new(
            job.secret.texts(),
            Box::new(move |lines| sink.lock().unwrap().extend(lines)),
        );
        let report = self.execute.run(&job, &mut transcript).await;
        let mut lines = std::mem::take(&mut *seen.lock().unwrap());
        lines.extend(transcript.into_rest());
        let sent = match &self.device {
            Device::Script => {
                let said = lines.iter().filter_map(|l| l.text.strip_prefix(DRY));
                said.map(|line| vec![("sh".to_owned(), line.to_owned())])
                    .collect()
            }
            _ => {
                let records = self.records();
                let told = records.iter().filter_map(|record| self.sentence(record));
                told.collect()
            }
        };
        Did {
            report,
            sent,
            sentences: self.sentences() - sentences,
            lines,
        }
    }

    fn sentences(&self) -> u64 {
        match &self.device {
            Device::Router(sim) => sim.seen().sentences,
            _ => 0,
        }
    }

    fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.journal).unwrap_or_default();
        let lines = text.lines();
        lines.map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// One record of the journal without what differs from run to run: times, ports, numbers of
    /// rows. What belongs to a login is none.
    fn sentence(&self, record: &Value) -> Option<Sentence> {
        let text = |name: &str| record[name].as_str().unwrap().to_owned();
        let mut told = Vec::new();
        match &self.device {
            Device::Router(_) => {
                told.push(("path".to_owned(), text("path")));
                flat("", &record["args"], &mut told);
                told.retain(|(name, _)| !["/.id", "/numbers"].contains(&name.as_str()));
            }
            Device::Ssh(_) => {
                told.push(("sh".to_owned(), text("line")));
                told.push(("stdin".to_owned(), text("stdin")));
            }
            Device::Telnet(_) => {
                let line = text("line");
                if ["enable", "terminal length 0"].contains(&line.as_str()) {
                    return None;
                }
                told.push(("line".to_owned(), line));
            }
            Device::Radius(_) => {
                told.push(("code".to_owned(), text("code")));
                for pair in record["attributes"].as_array().unwrap() {
                    let name = pair[0].as_str().unwrap();
                    if !["Event-Timestamp", "Message-Authenticator"].contains(&name) {
                        told.push((name.to_owned(), pair[1].as_str().unwrap().to_owned()));
                    }
                }
            }
            Device::Http(_) => {
                for name in ["method", "path"] {
                    told.push((name.to_owned(), text(name)));
                }
                flat("headers", &record["headers"], &mut told);
                told.retain(|(name, _)| name != "headers/content-length");
                flat("body", &record["body"], &mut told);
            }
            Device::Script | Device::Paper => return None,
        }
        Some(told)
    }

    /// Whether the neighbour has what he had, and nobody else has anything: why not.
    pub(crate) fn harm(&self, login: &str) -> Option<String> {
        match &self.device {
            Device::Router(sim) => {
                for (menu, wanted) in menus(None).as_object().unwrap() {
                    let rows = sim.rows(menu);
                    for want in wanted.as_array().unwrap() {
                        let want = want.as_object().unwrap();
                        let there = rows.iter().any(|row| {
                            let same = |(k, v): (&String, &Value)| {
                                row.get(k).map(String::as_str) == v.as_str()
                            };
                            want.iter().all(same)
                        });
                        if !there {
                            return Some(format!("{menu} lost {want:?}: {rows:?}"));
                        }
                    }
                    let known = |name: &str, value: &str| match name {
                        "comment" => [MINE, HIS].contains(&value),
                        "name" | "user" => [MINE, HIS, "petrov", login].contains(&value),
                        "mac-address" => value.starts_with("02:00:00:00:00:1"),
                        _ => false,
                    };
                    let strange = rows
                        .iter()
                        .find(|row| !row.iter().any(|(k, v)| known(k, v)));
                    if let Some(strange) = strange {
                        return Some(format!("{menu} has {strange:?}"));
                    }
                }
                None
            }
            Device::Radius(sim) => {
                let all = sim.sessions();
                let his = all
                    .iter()
                    .find(|s| s.attributes.get("User-Name") == Some(&vec!["petrov".to_owned()]));
                let Some(his) = his else {
                    return Some(format!("the neighbour is offline: {all:?}"));
                };
                let same = (his.attributes.len(), his.services.len(), his.authorizations);
                (same != (3, 0, 0)).then(|| format!("{his:?}"))
            }
            Device::Telnet(sim) => {
                let config = sim.config();
                let known = |l: &String| l == HIS_ROUTE || MY_ROUTES.contains(&l.as_str());
                let fine = config.iter().any(|line| line == HIS_ROUTE)
                    && config
                        .iter()
                        .all(|l| known(l) || l.starts_with("description "));
                (!fine).then(|| format!("{config:?}"))
            }
            Device::Ssh(_) | Device::Http(_) | Device::Script | Device::Paper => None,
        }
    }
}

async fn device(scheme: &NativeScheme, nas: &mut Nas, journal: &Path, name: &str) -> Device {
    let journal = Some(journal.to_owned());
    match scheme.driver() {
        "mikrotik" => {
            let sim = mikrotik::Sim::start(mikrotik::Options {
                login: LOGIN.into(),
                password: SECRET.into(),
                journal,
                ..Default::default()
            });
            let sim = sim.unwrap();
            nas.api_port = Some(sim.addr().port());
            Device::Router(sim)
        }
        "telnet" => {
            let sim = telnet::Sim::start(telnet::Options {
                login: LOGIN.into(),
                password: SECRET.into(),
                enable_password: SECRET.into(),
                journal,
                ..Default::default()
            });
            let sim = sim.await.unwrap();
            nas.telnet_port = Some(sim.addr().port());
            Device::Telnet(sim)
        }
        "radius" => {
            let sim = radius::Sim::start(radius::Options {
                secret: SECRET.into(),
                journal,
                ..Default::default()
            });
            let sim = sim.await.unwrap();
            nas.coa_port = Some(sim.addr().port());
            Device::Radius(sim)
        }
        "http" => {
            let sim = http::Sim::start(http::Options {
                journal,
                ..Default::default()
            });
            let sim = sim.await.unwrap();
            nas.http_url = Some(format!("http://{}/hook", sim.addr()));
            Device::Http(sim)
        }
        // The simulator has no terminal; what would be typed is in the transcript.
        "ssh" if name.ends_with("-plain") => {
            nas.mode = Mode::Observe;
            Device::Paper
        }
        "ssh" => {
            let sim = ssh::Sim::start(ssh::Options {
                login: LOGIN.into(),
                password: SECRET.into(),
                journal,
                ..Default::default()
            });
            let sim = sim.await.unwrap();
            nas.ssh_port = Some(sim.addr().port());
            nas.ssh_host_key = Some(sim.host_key());
            Device::Ssh(sim)
        }
        "record" => Device::Paper,
        other => panic!("{name}: no simulator for the driver {other:?}"),
    }
}

/// The router's rows: the neighbour's, and those of an account with this login.
fn menus(login: Option<&str>) -> Value {
    let (ip, mac) = ("10.88.0.16", "02:00:00:00:00:16");
    let mut menus = json!({
        "/ip/firewall/address-list": [{"list": "crb_negbal", "address": ip, "comment": HIS}],
        "/ipv6/firewall/address-list":
            [{"list": "crb_negbal", "address": "2001:db8:2::/56", "comment": HIS}],
        "/queue/simple": [{"name": HIS, "target": "10.88.0.16/32", "comment": HIS}],
        "/ppp/active": [{"name": "petrov", "address": ip}],
        "/ip/hotspot/active": [{"user": "petrov", "address": ip, "mac-address": mac}],
        "/ip/hotspot/cookie": [{"user": "petrov", "mac-address": mac}],
        "/ip/hotspot/host": [{"address": ip, "mac-address": mac}],
        "/ip/hotspot/ip-binding": [{"mac-address": mac, "type": "blocked", "comment": HIS}],
    });
    let Some(login) = login else {
        return menus;
    };
    let (ip, mac) = ("10.88.0.15", "02:00:00:00:00:15");
    let mut own = vec![
        (
            "/ip/firewall/address-list",
            json!({"list": "crb_negbal", "address": ip, "comment": MINE}),
        ),
        (
            "/ip/hotspot/host",
            json!({"address": ip, "mac-address": mac}),
        ),
    ];
    if !login.is_empty() {
        own.extend([
            ("/ppp/active", json!({"name": login, "address": ip})),
            (
                "/ip/hotspot/active",
                json!({"user": login, "address": ip, "mac-address": mac}),
            ),
            (
                "/ip/hotspot/cookie",
                json!({"user": login, "mac-address": mac}),
            ),
        ]);
    }
    for (menu, row) in own {
        menus[menu].as_array_mut().unwrap().push(row);
    }
    menus
}

/// The sessions: the neighbour's, and that of an account with this login and session id.
fn online(own: Option<(&str, &str)>) -> Value {
    let mut all = vec![json!({"Acct-Session-Id": "81a00002", "User-Name": "petrov",
        "Framed-IP-Address": "10.88.0.16"})];
    if let Some((login, session)) = own {
        let or = |text: &str, other: &str| if text.is_empty() { other } else { text }.to_owned();
        all.push(
            json!({"Acct-Session-Id": or(session, "81a0000f"), "User-Name": or(login, "nobody"),
            "Framed-IP-Address": "10.88.0.15", "services": ["policy_in512"]}),
        );
    }
    json!({ "sessions": all })
}

/// The texts and numbers of a JSON value with their places.
pub(crate) fn flat(place: &str, value: &Value, out: &mut Sentence) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                flat(&format!("{place}/{name}"), value, out);
            }
        }
        Value::Array(items) => {
            for (n, value) in items.iter().enumerate() {
                flat(&format!("{place}/{n}"), value, out);
            }
        }
        Value::String(text) => out.push((place.to_owned(), text.clone())),
        other => out.push((place.to_owned(), other.to_string())),
    }
}
