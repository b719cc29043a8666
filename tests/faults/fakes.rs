//! One simulated NAS of each driver that came after MikroTik's, each with a journal of its own,
//! and schemes that leave in it who has sent what: event, account, try, warning.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nas_event_daemon::sim::{http, radius, ssh, telnet};
use serde_json::{Value, json};

use crate::lab::daemon::Lab;
use crate::lab::journal::{self, Attempt, CMDS, Entry};
use crate::lab::sim::{LOGIN, PASSWORD};

/// What each NAS takes for one command, ms: long enough to be killed in.
pub(crate) const LATENCY_MS: u64 = 20;
/// Password of `enable` of the router behind telnet.
const ENABLE: &str = "raised";
/// RADIUS secret.
const SECRET: &str = "coa-secret";
/// Who sends it, in what is sent.
const WHO: &str = "{{ event_id }} {{ user_id }} {{ try_count }} {{ possible_duplicate }}";

/// A NAS that speaks one of the drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Driver {
    Ssh,
    Telnet,
    Radius,
    Http,
}

impl Driver {
    pub(crate) const ALL: [Self; 4] = [Self::Ssh, Self::Telnet, Self::Radius, Self::Http];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Telnet => "telnet",
            Self::Radius => "radius",
            Self::Http => "http",
        }
    }

    /// The id of its NAS.
    pub(crate) fn nas(self) -> i64 {
        match self {
            Self::Ssh => 11,
            Self::Telnet => 12,
            Self::Radius => 13,
            Self::Http => 14,
        }
    }

    fn steps(self) -> String {
        match self {
            Self::Ssh => format!("exec = [\"obey {WHO}\"]"),
            Self::Telnet => {
                format!("exec = [\"configure terminal\", \"description {WHO}\", \"end\"]")
            }
            Self::Radius => {
                format!("coa = {{ User-Name = \"{{{{ login }}}}\", Filter-Id = \"{WHO}\" }}")
            }
            Self::Http => format!(
                "request = {{ method = \"PUT\", path = \"/accounts/{{{{ user_id }}}}\", json = {{ who = \"{WHO}\" }} }}"
            ),
        }
    }

    fn scheme(self) -> String {
        let mut text = format!("driver = \"{}\"\n", self.name());
        for cmd in CMDS {
            text.push_str(&format!("[[on.{cmd}]]\n{}\n", self.steps()));
        }
        text
    }

    /// Who has sent what stands in a line of its journal; none = a line of the way there.
    fn who(self, record: &Value) -> Option<String> {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        match self {
            Self::Ssh => text(&record["line"])?
                .strip_prefix("obey ")
                .map(str::to_owned),
            Self::Telnet => text(&record["line"])?
                .strip_prefix("description ")
                .map(str::to_owned),
            Self::Radius => {
                assert_eq!(record["ack"], true, "{record}");
                let attributes = record["attributes"].as_array()?;
                let mut all = attributes.iter().filter(|a| a[0] == "Filter-Id");
                text(&all.next()?[1])
            }
            Self::Http => text(&record["body"]["who"]),
        }
    }
}

/// A kill of the daemon: when, and what its database had `running`.
pub(crate) type Kill = (i64, std::collections::BTreeSet<Attempt>);

/// The NASes; they end when dropped.
pub(crate) struct Fakes {
    pub(crate) ssh: ssh::Sim,
    pub(crate) telnet: telnet::Sim,
    pub(crate) radius: radius::Sim,
    pub(crate) http: http::Sim,
    dir: PathBuf,
}

impl Fakes {
    /// Starts them, and makes a NAS of each in `lab` with `forks` and these accounts.
    pub(crate) async fn start(lab: &Lab, forks: i64, users: impl Fn(Driver) -> Vec<i64>) -> Self {
        let dir = lab.root().to_owned();
        let journal = |driver| Some(journal_in(&dir, driver));
        let ssh = ssh::Sim::start(ssh::Options {
            login: LOGIN.into(),
            password: PASSWORD.into(),
            journal: journal(Driver::Ssh),
            faults: ssh::Faults {
                latency_ms: LATENCY_MS,
                ..Default::default()
            },
            ..Default::default()
        });
        let telnet = telnet::Sim::start(telnet::Options {
            login: LOGIN.into(),
            password: PASSWORD.into(),
            enable_password: ENABLE.into(),
            journal: journal(Driver::Telnet),
            faults: telnet::Faults {
                latency_ms: LATENCY_MS,
                ..Default::default()
            },
            ..Default::default()
        });
        let radius = radius::Sim::start(radius::Options {
            secret: SECRET.into(),
            journal: journal(Driver::Radius),
            faults: radius::Faults {
                delay_ms: LATENCY_MS,
                ..Default::default()
            },
            ..Default::default()
        });
        let http = http::Sim::start(http::Options {
            authorization: Some(format!("Bearer {PASSWORD}")),
            journal: journal(Driver::Http),
            faults: http::Faults {
                latency_ms: LATENCY_MS,
                ..Default::default()
            },
            ..Default::default()
        });
        let fakes = Self {
            ssh: ssh.await.unwrap(),
            telnet: telnet.await.unwrap(),
            radius: radius.await.unwrap(),
            http: http.await.unwrap(),
            dir: dir.clone(),
        };
        let online = users(Driver::Radius);
        let online = online
            .iter()
            .map(|user| json!({"User-Name": format!("login{user}")}));
        let online = json!({"sessions": online.collect::<Vec<_>>()});
        fakes.radius.load(&online).unwrap();
        for driver in Driver::ALL {
            fakes.serve(lab, driver, forks, users(driver)).await;
        }
        fakes
    }

    async fn serve(&self, lab: &Lab, driver: Driver, forks: i64, users: Vec<i64>) {
        row(lab, driver, driver.nas(), forks, self.port(driver)).await;
        lab.accounts(driver.nas(), users).await;
    }

    /// Where one listens.
    pub(crate) fn port(&self, driver: Driver) -> u16 {
        match driver {
            Driver::Ssh => self.ssh.addr().port(),
            Driver::Telnet => self.telnet.addr().port(),
            Driver::Radius => self.radius.addr().port(),
            Driver::Http => self.http.addr().port(),
        }
    }

    /// What the journal of one says, with the kills between.
    pub(crate) fn entries(&self, driver: Driver, kills: &[Kill]) -> Vec<Entry> {
        let text = std::fs::read_to_string(journal_in(&self.dir, driver)).unwrap_or_default();
        journal::of_router(&as_router(driver, &text, kills))
    }

    /// Commands of events that one has been given; what belongs to a login does not count.
    pub(crate) fn obeyed(&self, driver: Driver) -> usize {
        let records = self.records(driver);
        records.iter().filter_map(|r| driver.who(r)).count()
    }

    /// The records of one's journal.
    pub(crate) fn records(&self, driver: Driver) -> Vec<Value> {
        let text = std::fs::read_to_string(journal_in(&self.dir, driver)).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Which event left each account as it is, by what the NAS itself holds; where it holds
    /// nothing, by its journal.
    pub(crate) fn state(&self, driver: Driver, entries: &[Entry]) -> BTreeMap<i64, i64> {
        let held: Vec<String> = match driver {
            Driver::Ssh => return journal::state_of_script(entries),
            Driver::Telnet => {
                let config = self.telnet.config();
                let lines = config.iter().filter_map(|l| l.strip_prefix("description "));
                lines.map(str::to_owned).collect()
            }
            Driver::Radius => {
                let sessions = self.radius.sessions();
                let mut all = sessions.into_iter().map(|s| s.attributes);
                let held = all.by_ref().filter_map(|mut a| a.remove("Filter-Id"));
                held.flatten().collect()
            }
            Driver::Http => {
                let documents = self.http.documents();
                let held = documents.values().map(|d| d["who"].as_str().unwrap());
                held.map(str::to_owned).collect()
            }
        };
        let number = |word: &str| -> i64 { word.parse().unwrap() };
        let words = held.iter().map(|text| text.split(' ').collect::<Vec<_>>());
        words.map(|w| (number(w[1]), number(w[0]))).collect()
    }
}

/// A NAS of `driver` behind `port` of this machine, with its scheme and credentials.
pub(crate) async fn row(lab: &Lab, driver: Driver, nas: i64, forks: i64, port: u16) {
    let scheme = format!("Fake-{}", driver.name());
    lab.native(&scheme, &driver.scheme());
    let port_of = |column| vec![(column, port.to_string())];
    let more = match driver {
        Driver::Ssh => {
            let mut more = port_of("ssh_port");
            more.push(("ssh_host_key", "'tofu'".to_owned()));
            more
        }
        Driver::Telnet => port_of("telnet_port"),
        Driver::Radius => port_of("coa_port"),
        Driver::Http => vec![("http_url", format!("'http://127.0.0.1:{port}'"))],
    };
    lab.nas(nas, &scheme, forks, &more).await;
    // With a login it would be basic authentication.
    let login = if driver == Driver::Http { "" } else { LOGIN };
    lab.sql(&format!(
        "insert into nas_secret (nas_id, login, password, enable_password, coa_secret)
         values ({nas}, '{login}', '{PASSWORD}', '{ENABLE}', '{SECRET}')"
    ))
    .await;
}

fn journal_in(dir: &Path, driver: Driver) -> PathBuf {
    dir.join(format!("{}.jsonl", driver.name()))
}

/// A journal in the words of the simulated router's, with the kills: no answer leaves before
/// the NAS's latency has passed, so what it takes lasts at least so long.
pub(crate) fn as_router(driver: Driver, text: &str, kills: &[Kill]) -> String {
    let latency_us = i64::try_from(LATENCY_MS).unwrap() * 1_000;
    let mut told = String::new();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let Some(who) = driver.who(&record) else {
            continue;
        };
        let at_us = record["at_us"].as_i64().unwrap();
        let record = json!({"at_us": at_us, "path": driver.name(), "args": {"comment": who},
            "rows": [], "trap": null, "done_at_us": at_us + latency_us});
        told.push_str(&format!("{record}\n"));
    }
    for (at_us, running) in kills {
        let record = json!({"killed_at_us": at_us, "running": running});
        told.push_str(&format!("{record}\n"));
    }
    told
}
