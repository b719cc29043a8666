//! The shipped scheme Mikrotik-Hotspot against the simulated router: what a kick removes, that
//! repetitions change nothing, and that nothing of an old address or MAC stays.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "lab/mod.rs"]
mod lab;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lab::sim::{LOGIN, PASSWORD};
use nas_event_daemon::attempt::{FailureClass, Job, Report, Transcript, Verdict};
use nas_event_daemon::driver::sessions::Sessions;
use nas_event_daemon::event::{Cmd, EventId, Params, UserId};
use nas_event_daemon::nas::{Nas, NasId, NasSecret};
use nas_event_daemon::scheme::Execute as _;
use nas_event_daemon::scheme::native::{NativeExecute, NativeScheme};
use nas_event_daemon::sim::mikrotik::{Options, Sim};
use serde_json::{Value, json};

/// Every menu that the scheme touches.
const MENUS: [&str; 7] = [
    "/ip/hotspot/active",
    "/ip/hotspot/cookie",
    "/ip/hotspot/host",
    "/ip/hotspot/ip-binding",
    "/ip/firewall/address-list",
    "/ipv6/firewall/address-list",
    "/queue/simple",
];

struct Spot {
    sim: Sim,
    execute: NativeExecute,
    vars: Value,
}

impl Spot {
    fn new() -> Self {
        let sim = Sim::start(Options {
            login: LOGIN.into(),
            password: PASSWORD.into(),
            ..Options::default()
        })
        .unwrap();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("oss/core/Mikrotik-Hotspot");
        let scheme = NativeScheme::load(&dir).unwrap();
        assert!(scheme.warnings().is_empty(), "{:?}", scheme.warnings());
        Self {
            sim,
            execute: NativeExecute::new(Arc::new(scheme), Arc::new(Sessions::default())),
            vars: json!({}),
        }
    }

    /// Two subscribers are online.
    fn online(&self) {
        let active = |user: &str, address: &str, mac: &str| json!({"user": user, "address": address, "mac-address": mac, "uptime": "1h", "login-by": "cookie"});
        let cookie =
            |user: &str, mac: &str| json!({"user": user, "mac-address": mac, "expires-in": "3d"});
        let host = |address: &str, mac: &str| json!({"address": address, "mac-address": mac, "authorized": "true"});
        self.sim
            .load(&json!({
                "/ip/hotspot/active": [active("ivanov", "10.88.0.15", "AA:BB:CC:00:11:22"), active("petrov", "10.88.0.16", "AA:BB:CC:00:11:23")],
                "/ip/hotspot/cookie": [cookie("ivanov", "AA:BB:CC:00:11:22"), cookie("petrov", "AA:BB:CC:00:11:23")],
                "/ip/hotspot/host": [host("10.88.0.15", "AA:BB:CC:00:11:22"), host("10.88.0.16", "AA:BB:CC:00:11:23")],
            }))
            .unwrap();
    }

    async fn run(&self, cmd: &str, params: &Value) -> Report {
        let cmd = Cmd::parse(cmd).unwrap();
        let job = Job {
            event: EventId(7),
            epoch: 1,
            try_count: 1,
            possible_duplicate: false,
            class: cmd.class(),
            cmd,
            user: Some(UserId(1424)),
            abonent: Some(1375),
            usluga: Some(5),
            params: Params(params.as_object().cloned().unwrap()),
            nas: Arc::new(Nas {
                api_port: Some(self.sim.addr().port()),
                vars: self.vars.as_object().cloned().unwrap(),
                ..Nas::new(NasId(1116), "spot", "127.0.0.1")
            }),
            secret: Arc::new(NasSecret {
                login: LOGIN.into(),
                password: PASSWORD.into(),
                ..NasSecret::default()
            }),
            deadline: Duration::from_secs(60),
        };
        self.execute.run(&job, &mut Transcript::discard()).await
    }

    async fn done(&self, cmd: &str, params: &Value) {
        let report = self.run(cmd, params).await;
        assert_eq!(report.verdict, Verdict::Done, "{cmd}");
    }

    /// Values of one property in one menu.
    fn all(&self, menu: &str, name: &str) -> Vec<String> {
        let rows = self.sim.rows(menu);
        rows.iter().map(|row| row[name].clone()).collect()
    }

    /// Rows in all menus.
    fn rows(&self) -> usize {
        MENUS.iter().map(|menu| self.sim.rows(menu).len()).sum()
    }
}

fn account() -> Value {
    json!({
        "user_id": 1424, "login": "ivanov", "ip": "10.88.0.15", "mac": "aa-bb-cc-00-11-22",
        "ceil_in": "10000", "ceil_out": 20000, "accept": 1, "redirect": 0,
        "addresses": ["10.88.0.15", "2001:db8:1::/56"],
    })
}

#[tokio::test]
async fn a_kick_takes_session_cookie_and_host_and_of_nobody_else() {
    for cmd in ["user_disconnect", "user_drop", "user_del"] {
        for known in ["both", "mac", "login"] {
            let spot = Spot::new();
            spot.online();
            let mut params = account();
            match known {
                "mac" => params["login"] = json!(""),
                "login" => params["mac"] = json!(""),
                _ => {}
            }
            for _ in 0..2 {
                spot.done(cmd, &params).await;
                for menu in ["/ip/hotspot/active", "/ip/hotspot/cookie"] {
                    assert_eq!(spot.all(menu, "user"), ["petrov"], "{cmd} {known} {menu}");
                }
                let hosts = spot.all("/ip/hotspot/host", "address");
                assert_eq!(hosts, ["10.88.0.16"], "{cmd} {known}");
            }
        }
    }
}

#[tokio::test]
async fn an_account_without_mac_and_login_kicks_nobody() {
    let spot = Spot::new();
    spot.online();
    let params = json!({"user_id": 1424, "mac": "", "login": "", "ip": "", "addresses": []});
    spot.done("user_disconnect", &params).await;
    assert_eq!(spot.rows(), 6);
}

#[tokio::test]
async fn a_change_of_speed_keeps_the_cookie_or_kicks_nobody() {
    let mut spot = Spot::new();
    spot.online();
    spot.done("user_rate_set", &account()).await;
    assert_eq!(spot.all("/ip/hotspot/active", "user"), ["petrov"]);
    assert_eq!(spot.sim.rows("/ip/hotspot/cookie").len(), 2);
    assert!(spot.sim.rows("/queue/simple").is_empty());
    spot.vars = json!({"shaper": "queue", "prefix": "isp"});
    spot.online();
    for _ in 0..2 {
        spot.done("user_rate_set", &account()).await;
    }
    assert_eq!(spot.sim.rows("/ip/hotspot/active").len(), 2);
    assert_eq!(spot.all("/queue/simple", "name"), ["isp_1424"]);
    assert_eq!(
        spot.all("/queue/simple", "max-limit"),
        ["10000000/20000000"]
    );
    spot.done("user_rate_set_cancel", &account()).await;
    assert!(spot.sim.rows("/queue/simple").is_empty());
}

#[tokio::test]
async fn pairs_of_commands_undo_each_other_and_repeat_without_harm() {
    for (give, take) in [
        ("user_redirect", "user_redirect_cancel"),
        ("user_drop", "user_accept"),
        ("own_disabled", "own_disabled_cancel"),
        ("b_sys", "u_b_sys"),
        ("b_own", "u_b_own"),
        ("b_admin", "u_b_admin"),
        ("usluga_add", "usluga_del"),
        ("user_drop", "user_del"),
    ] {
        let spot = Spot::new();
        let mut changes = Vec::new();
        for cmd in [give, give, take, take] {
            spot.done(cmd, &account()).await;
            changes.push(spot.sim.seen().changes);
            assert_eq!(spot.rows() == 0, cmd == take, "{cmd}");
        }
        assert_eq!(changes[0], changes[1], "{give} again changes something");
        assert_eq!(changes[2], changes[3], "{take} again changes something");
    }
}

#[tokio::test]
async fn a_change_of_address_and_mac_leaves_nothing_of_the_old_ones() {
    let mut spot = Spot::new();
    spot.vars = json!({"shaper": "queue"});
    spot.online();
    let mut old = account();
    old["redirect"] = json!(1);
    old["accept"] = json!(0);
    let mut new = old.clone();
    new["ip"] = json!("10.88.0.77");
    new["addresses"] = json!(["10.88.0.77"]);
    new["mac"] = json!("aa:bb:cc:00:11:99");
    for (cmd, params) in [("user_add", &old), ("user_del", &old), ("user_add", &new)] {
        spot.done(cmd, params).await;
    }
    let left = spot.sim.dump().to_string();
    for old in ["10.88.0.15", "2001:db8:1", "11:22"] {
        assert!(!left.contains(old), "{old}: {left}");
    }
    assert_eq!(
        spot.all("/ip/hotspot/ip-binding", "mac-address"),
        ["AA:BB:CC:00:11:99"]
    );
    assert_eq!(spot.all("/queue/simple", "target"), ["10.88.0.77/32"]);
    let mut lists = spot.all("/ip/firewall/address-list", "list");
    lists.sort();
    assert_eq!(lists, ["crb_blocked", "crb_negbal"]);
    assert_eq!(
        spot.all("/ip/hotspot/active", "user"),
        ["petrov"],
        "nobody else was kicked"
    );
}

#[tokio::test]
async fn a_binding_of_somebody_else_is_left_alone() {
    let spot = Spot::new();
    let row = json!({"mac-address": "AA:BB:CC:00:11:22", "type": "blocked", "comment": "stolen, call the police"});
    spot.sim
        .load(&json!({"/ip/hotspot/ip-binding": [row]}))
        .unwrap();
    spot.done("user_accept", &account()).await;
    spot.done("user_del", &account()).await;
    assert_eq!(spot.sim.rows("/ip/hotspot/ip-binding").len(), 1);
    let report = spot.run("user_drop", &account()).await;
    let Verdict::Failed(failure) = report.verdict else {
        unreachable!("{:?}", report.verdict);
    };
    assert_eq!(failure.class, FailureClass::Refused);
    assert!(failure.text.contains("foreign row"), "{failure}");
}

#[tokio::test]
async fn diagnostics_answer() {
    let spot = Spot::new();
    spot.online();
    spot.done("user_redirect", &account()).await;
    let answer = async |cmd: &str| spot.run(cmd, &account()).await.answer.unwrap();
    assert_eq!(answer("user_get_mac").await, "AA:BB:CC:00:11:22");
    assert_eq!(
        answer("user_test").await,
        "ping 10.88.0.15: 3 of 3 answered"
    );
    let info = answer("user_info").await;
    for part in [
        "session: ivanov 10.88.0.15 for 1h from AA:BB:CC:00:11:22 by cookie",
        "cookie: AA:BB:CC:00:11:22 for 3d",
        "host: 10.88.0.15, authorized true",
        "list crb_negbal: 10.88.0.15",
    ] {
        assert!(info.contains(part), "{part}\n{info}");
    }
    assert_eq!(spot.rows(), 8, "looks change nothing");
}
