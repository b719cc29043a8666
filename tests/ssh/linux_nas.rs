//! The scheme Linux-SSH on a real Linux NAS: three network namespaces (a subscriber, the NAS, an
//! internet with a portal), the NAS's own sshd, the rule set that is shipped. Every command of
//! the catalogue is posted as an event; what it did is read back with `nft -j` and `tc -j`, and
//! tried with connections of both families.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::lab::daemon::{Lab, wait_for};
use crate::lab::db::Kind;
use crate::lab::sshd::Sshd;
use crate::network::{FAR, Net, PREFIX, V4, V6};

/// The account under test, and one beside it that nothing may touch.
const USER: i64 = 10;
const OTHER: i64 = 11;

/// The daemon, the NAS, two accounts with both families each.
struct Stage {
    lab: Lab,
    net: Net,
    _sshd: Sshd,
}

impl Stage {
    /// The account under test is added while it has not paid.
    async fn add_redirected(&self) {
        let unpaid = "update users set redirect = 1 where id = 10";
        self.lab.sql(unpaid).await;
        self.event(json!({"cmd": "user_add", "user_id": USER}))
            .await;
    }

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

/// The account of a test holds its addresses.
fn held() -> [(String, BTreeSet<String>); 2] {
    [("holder4", V4), ("holder6", PREFIX)]
        .map(|(map, at)| (map.to_owned(), BTreeSet::from([format!("{at}={USER}")])))
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
    want.extend(held());
    assert_eq!(sets, want);
    stage
        .lab
        .sql("update users set accept = 1, redirect = 0 where id = 10")
        .await;
    let sets = stage.twice("user_edit").await;
    let names: Vec<_> = sets.keys().collect();
    assert_eq!(names, ["class4", "class6", "holder4", "holder6"]);
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
    stage.add_redirected().await;
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
    assert_eq!(sets.len(), 6, "{sets:?}");
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
        "class6",
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

/// The address goes from one account to another, and the first one's `user_del` comes last: the
/// sets, the speed and the other family of the new holder stay, and nothing of the old one does.
#[tokio::test]
async fn a_late_user_del_leaves_the_new_holder_alone() {
    let stage = Stage::new().await;
    let daemon = stage.lab.start().await;
    let net = &stage.net;
    stage.add_redirected().await;
    // IPv4 goes to the other account, who is blocked; IPv6 stays where it is for now.
    let theirs = format!("[\"{V4}\", \"2001:db8:0:11::/64\"]");
    stage
        .lab
        .sql(&format!(
            "update users set addresses = '{theirs}', ip = '{V4}', accept = 0, redirect = 1,
               ceil_in = null, ceil_out = null where id = 11"
        ))
        .await;
    let other = json!({"cmd": "user_add", "user_id": OTHER});
    stage.event(other.clone()).await;
    let of_other = |set: &str| {
        let at = [(4, V4), (6, "2001:db8:0:11::/64")];
        at.map(|(family, at)| (format!("{set}{family}"), BTreeSet::from([at.to_owned()])))
    };
    let holders = [
        ("holder4", format!("{V4}={OTHER}")),
        ("holder6", format!("2001:db8:0:11::/64={OTHER}")),
    ];
    let holders = holders.map(|(map, at)| (map.to_owned(), BTreeSet::from([at])));
    let sets = net.sets().await;
    assert_eq!(sets["holder4"], holders[0].1, "taken over");
    assert_eq!(sets["holder6"].len(), 2, "{sets:?}");
    let late = json!({"cmd": "user_del", "user_id": USER, "params": {"ip": V4, "addresses": [V4, PREFIX]}});
    let mut want = BTreeMap::from(holders);
    want.extend(of_other("negbal"));
    want.extend(of_other("blocked"));
    // Twice, as after a crash; then the new holder's own command once more.
    for body in [late.clone(), late, other] {
        stage.event(body).await;
        assert_eq!(net.sets().await, want);
        assert_eq!(stage.classes().await, vec![None; 3]);
    }
    assert_eq!(net.reaches(V4, FAR[0], 8080).await, "cut", "still blocked");
    stage
        .event(json!({"cmd": "user_del", "user_id": OTHER}))
        .await;
    assert_eq!(net.sets().await, BTreeMap::new());
    daemon.stop().await;
}
