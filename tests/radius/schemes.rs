//! The shipped RADIUS schemes: what each command says, to the byte, and what becomes of a
//! simulated NAS when it is said once, twice, to nobody, and after a change of address.
//!
//! The texts are in `tests/schemes/golden`; `NED_GOLDEN=write` writes them anew, to be read
//! before they are committed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nas_event_daemon::attempt::{Job, Report, Transcript, Verdict};
use nas_event_daemon::driver::sessions::Sessions;
use nas_event_daemon::event::{Cmd, EventId, Params, UserId};
use nas_event_daemon::nas::{Nas, NasId, NasSecret};
use nas_event_daemon::scheme::Execute;
use nas_event_daemon::scheme::native::{NativeExecute, NativeScheme};
use nas_event_daemon::sim::radius::{Faults, Session, Sim};
use serde_json::{Value, json};

use crate::{SECRET, sim};

const SCHEMES: [&str; 5] = [
    "Mikrotik-CoA",
    "Cisco-ISG",
    "Juniper-MX",
    "VasExperts-SKAT",
    "accel-ppp",
];

/// Knows sessions by their address alone, and is told words instead of attributes.
const WORDS: &str = "XGE";

fn load(name: &str) -> NativeScheme {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("oss/core")
        .join(name);
    NativeScheme::load(&dir).unwrap_or_else(|findings| panic!("{findings:#?}"))
}

fn account() -> Value {
    json!({
        "user_id": 1424, "login": "ivanov", "ip": "10.88.0.15", "acct_session_id": "81a00001",
        "ceil_in": 10_000, "ceil_out": 20_000, "accept": 1, "redirect": 0,
        "addresses": ["10.88.0.15", "2001:db8:1::/56"], "usluga_id": 7,
    })
}

fn with(mut account: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        account[name] = value.clone();
    }
    account
}

fn job(cmd: &str, params: &Value, port: u16, vars: &Value) -> Job {
    let cmd = Cmd::parse(cmd).unwrap();
    let nas = Nas {
        coa_port: Some(port),
        vars: vars.as_object().cloned().unwrap_or_default(),
        ..Nas::new(NasId(1), "bras", "127.0.0.1")
    };
    Job {
        event: EventId(7),
        epoch: 1,
        try_count: 1,
        possible_duplicate: false,
        class: cmd.class(),
        cmd,
        user: Some(UserId(1424)),
        abonent: Some(1375),
        usluga: Some(7),
        params: Params(params.as_object().cloned().unwrap()),
        nas: Arc::new(nas),
        secret: Arc::new(NasSecret {
            coa_secret: SECRET.to_owned(),
            ..NasSecret::default()
        }),
        deadline: Duration::from_secs(60),
    }
}

/// A scheme, a simulated NAS and the settings of one.
struct Bras {
    execute: NativeExecute,
    nas: Sim,
    vars: Value,
}

impl Bras {
    async fn new(name: &str, sessions: &[Value]) -> Self {
        let bras = Self {
            execute: NativeExecute::new(Arc::new(load(name)), Arc::new(Sessions::default())),
            nas: sim(Faults::default()).await,
            vars: json!({}),
        };
        bras.nas.load(&json!({ "sessions": sessions })).unwrap();
        bras
    }

    async fn run(&self, cmd: &str, params: &Value) -> (Report, String) {
        let job = job(cmd, params, self.nas.addr().port(), &self.vars);
        let said = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&said);
        let mut transcript = Transcript::new(
            job.secret.texts(),
            Box::new(move |lines| sink.lock().unwrap().extend(lines)),
        );
        let report = self.execute.run(&job, &mut transcript).await;
        drop(transcript);
        let lines = said.lock().unwrap();
        let text: Vec<_> = lines.iter().map(|line| line.text.clone()).collect();
        (report, text.join("\n"))
    }

    async fn done(&self, cmd: &str, params: &Value) -> Report {
        let (report, said) = self.run(cmd, params).await;
        assert_eq!(report.verdict, Verdict::Done, "{cmd}: {said}");
        report
    }

    /// What a second run must not change: how often RADIUS was asked again does not count.
    fn state(&self) -> Vec<Session> {
        let mut all = self.nas.sessions();
        for session in &mut all {
            session.authorizations = 0;
        }
        all
    }
}

fn online(ip: &str) -> Value {
    json!({"Acct-Session-Id": "81a00001", "User-Name": "ivanov", "Framed-IP-Address": ip})
}

fn neighbour() -> Value {
    json!({"Acct-Session-Id": "81a00002", "User-Name": "petrov", "Framed-IP-Address": "10.88.0.16"})
}

#[tokio::test]
async fn each_command_says_what_is_written_down() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/schemes/golden");
    for name in SCHEMES {
        let scheme = load(name);
        let findings: Vec<_> = scheme.warnings().iter().map(ToString::to_string).collect();
        assert_eq!(findings, [""; 0], "{name}");
        let mut text = String::new();
        let unknown = json!({"acct_session_id": ""});
        let redirected =
            json!({"redirect": 1, "service": {"policy": "IPTV", "profile": "iptv", "number": 11}});
        for (title, params) in [
            ("session known", account()),
            ("session unknown", with(account(), &unknown)),
            (
                "no money, a service with a profile",
                with(account(), &redirected),
            ),
            (
                "blocked",
                with(
                    account(),
                    &json!({"accept": 0, "ceil_in": null, "ceil_out": ""}),
                ),
            ),
        ] {
            for cmd in scheme.cmds() {
                let job = job(cmd.as_str(), &params, 3799, &json!({}));
                let lines = scheme.render_dry(&job).await.unwrap().unwrap();
                text.push_str(&format!("# {title}: {cmd}\n"));
                for line in lines {
                    text.push_str(&line.replace("send_radius_cmd --nas 1 ", ""));
                    text.push('\n');
                }
            }
        }
        let file = golden.join(format!("{name}.txt"));
        if std::env::var_os("NED_GOLDEN").is_some() {
            std::fs::create_dir_all(&golden).unwrap();
            std::fs::write(&file, &text).unwrap();
        }
        let wanted = std::fs::read_to_string(&file).unwrap();
        assert_eq!(
            text,
            wanted,
            "{name}: NED_GOLDEN=write writes {}",
            file.display()
        );
    }
}

#[tokio::test]
async fn what_is_said_twice_changes_nothing_the_second_time() {
    for name in SCHEMES.into_iter().chain([WORDS]) {
        let cmds: Vec<String> = load(name).cmds().map(ToString::to_string).collect();
        for cmd in cmds {
            for changes in [json!({}), json!({"redirect": 1}), json!({"accept": 0})] {
                let params = with(account(), &changes);
                let bras = Bras::new(name, &[online("10.88.0.15"), neighbour()]).await;
                bras.done(&cmd, &params).await;
                let once = bras.state();
                bras.done(&cmd, &params).await;
                assert_eq!(bras.state(), once, "{name} {cmd} {changes}");
                let other = once.last().unwrap();
                assert_eq!(other.attributes["User-Name"], ["petrov"], "{name} {cmd}");
                assert_eq!(
                    (other.attributes.len(), other.services.len()),
                    (3, 0),
                    "{name} {cmd}"
                );
            }
        }
    }
}

/// An account that is offline, or has never been online, has nothing on the NAS to change.
#[tokio::test]
async fn an_account_that_is_offline_is_done() {
    for name in SCHEMES {
        let cmds: Vec<String> = load(name).cmds().map(ToString::to_string).collect();
        let bras = Bras::new(name, &[neighbour()]).await;
        let before = bras.state();
        let never = json!({"acct_session_id": "", "login": "", "ip": "", "addresses": []});
        for cmd in cmds {
            bras.done(&cmd, &account()).await;
            bras.done(&cmd, &with(account(), &never)).await;
        }
        assert_eq!(bras.state(), before, "{name}");
    }
}

/// `user_del` with old data, `user_add` with new: nothing of the old address is left, and
/// whoever has it now is not touched.
#[tokio::test]
async fn a_change_of_address_leaves_nothing_of_the_old_one() {
    for name in SCHEMES {
        for known in [true, false] {
            let id = |text: &str| {
                if known {
                    text.to_owned()
                } else {
                    String::new()
                }
            };
            let old = with(account(), &json!({"acct_session_id": id("81a00001")}));
            let new = json!({"ip": "10.88.0.77", "addresses": ["10.88.0.77"], "acct_session_id": id("81a00077")});
            let new = with(account(), &new);
            let bras = Bras::new(name, &[online("10.88.0.15"), neighbour()]).await;
            bras.done("user_redirect", &old).await;
            bras.done("user_del", &old).await;
            assert_eq!(
                bras.nas.sessions().len(),
                1,
                "{name}: the old session is up"
            );
            // He comes back with the new address; the old one belongs to somebody else.
            let heir = json!({"Acct-Session-Id": "81a00088", "User-Name": "sidorov", "Framed-IP-Address": "10.88.0.15"});
            let mine = json!({"Acct-Session-Id": "81a00077", "User-Name": "ivanov", "Framed-IP-Address": "10.88.0.77"});
            bras.nas.load(&json!({"sessions": [&heir, &mine]})).unwrap();
            // Said again after a crash, with the old data.
            let again = json!({"acct_session_id": "81a00001"});
            bras.done("user_del", &with(old.clone(), &again)).await;
            if name == "VasExperts-SKAT" {
                // It knows sessions by login alone: the new one has ended, and comes back.
                let up = bras.nas.sessions();
                assert_eq!(up.len(), 1, "{name}: {up:?}");
                assert_eq!(up[0].attributes["User-Name"], ["sidorov"]);
                bras.nas.load(&json!({"sessions": [heir, mine]})).unwrap();
            }
            bras.done("user_add", &new).await;
            let now = bras.nas.sessions();
            assert_eq!(now.len(), 2, "{name}");
            assert_eq!(
                (now[0].attributes.len(), now[0].services.len()),
                (3, 0),
                "{name}: the heir"
            );
            assert_eq!(now[1].attributes["Framed-IP-Address"], ["10.88.0.77"]);
            let told = now[1].attributes.len() > 3 || !now[1].services.is_empty();
            assert!(told || now[1].authorizations > 0, "{name}: {:?}", now[1]);
        }
    }
}

/// What the READMEs say of accounts that are known by nothing but an address: a late `user_del` ends the
/// session of whoever has it now. A scheme that learns better must say so there.
#[tokio::test]
async fn without_login_and_session_an_address_is_all_there_is() {
    let bare = json!({"acct_session_id": "", "login": ""});
    for name in ["Mikrotik-CoA", "Cisco-ISG", "Juniper-MX", "VasExperts-SKAT"] {
        let heir = json!({"Acct-Session-Id": "81a00088", "User-Name": "sidorov", "Framed-IP-Address": "10.88.0.15"});
        let bras = Bras::new(name, &[heir]).await;
        bras.done("user_del", &with(account(), &bare)).await;
        assert_eq!(bras.nas.sessions(), [], "{name}");
    }
}

/// The same where the session is known by its address: nothing is said of the old one any more, so
/// that whoever has it now is not touched.
#[tokio::test]
async fn a_change_of_address_is_told_with_old_and_new_words() {
    let bras = Bras::new(WORDS, &[online("10.88.0.15"), neighbour()]).await;
    bras.done("user_redirect", &account()).await;
    let (report, said) = bras.run("user_del", &account()).await;
    assert_eq!(report.verdict, Verdict::Done, "{said}");
    for word in ["stop", "remove"] {
        let text = format!("'Filter-Id=session 10.88.0.15 {word}'");
        assert!(said.contains(&text), "{text} is not in {said}");
    }
    assert!(!said.contains("10.88.0.16"), "{said}");
    let heir = json!({"Acct-Session-Id": "81a00088", "User-Name": "sidorov", "Framed-IP-Address": "10.88.0.15"});
    bras.nas
        .load(&json!({"sessions": [heir, online("10.88.0.77")]}))
        .unwrap();
    let new = with(
        account(),
        &json!({"ip": "10.88.0.77", "addresses": ["10.88.0.77"], "accept": 0, "snatip": "198.51.100.7"}),
    );
    let (report, said) = bras.run("user_add", &new).await;
    assert_eq!(report.verdict, Verdict::Done, "{said}");
    assert!(!said.contains("10.88.0.15"), "{said}");
    for word in ["redirect blocked", "nat 198.51.100.7", "rate set in"] {
        assert!(
            said.contains(&format!("session 10.88.0.77 {word}")),
            "{said}"
        );
    }
    let now = bras.nas.sessions();
    assert_eq!(now[0].attributes.len(), 3, "the heir: {:?}", now[0]);
    // What is gone already needs no taking away.
    bras.nas.load(&json!({"sessions": []})).unwrap();
    bras.done("user_del", &new).await;
}

fn services(session: &Session) -> Vec<&str> {
    session.services.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn isg_never_leaves_a_session_without_a_rate() {
    let mut session = online("10.88.0.15");
    session["services"] = json!(["policy_in1024", "policy_in2048", "INTERNET"]);
    let bras = Bras::new("Cisco-ISG", &[session]).await;
    let report = bras.run("user_rate_set", &account()).await;
    assert_eq!(report.0.verdict, Verdict::Done, "{}", report.1);
    let activated = report.1.find("=activate-service").unwrap();
    assert!(activated < report.1.find("=deactivate-service").unwrap());
    assert_eq!(
        services(&bras.nas.sessions()[0]),
        ["INTERNET", "policy_in10000"]
    );
    let seen = bras.nas.seen().requests;
    bras.done("user_rate_set", &account()).await;
    assert_eq!(
        bras.nas.seen().requests - seen,
        1,
        "one look, nothing to do"
    );
    bras.done("user_redirect", &account()).await;
    let info = bras.done("user_info", &account()).await.answer.unwrap();
    assert!(info.contains("Cisco-Service-Info: N1L4REDIRECT"), "{info}");
    let test = bras.done("user_test", &account()).await.answer.unwrap();
    assert_eq!(
        test,
        "session is up, services: INTERNET, L4REDIRECT, policy_in10000"
    );
    bras.done("user_redirect_cancel", &account()).await;
    bras.done("user_rate_set_cancel", &account()).await;
    assert_eq!(services(&bras.nas.sessions()[0]), ["INTERNET"]);
    bras.nas.load(&json!({"sessions": []})).unwrap();
    let test = bras.done("user_test", &account()).await.answer.unwrap();
    assert_eq!(test, "no session");
    // A box that does not know the service must read its policy anew.
    let bras = Bras::new("Cisco-ISG", &[online("10.88.0.15")]).await;
    bras.nas.set_faults(Faults {
        nak: Some(404),
        ..Faults::default()
    });
    let (report, said) = bras.run("user_rate_set", &account()).await;
    assert!(
        matches!(report.verdict, Verdict::Failed(_)),
        "the query itself is refused: {said}"
    );
}

#[tokio::test]
async fn a_refused_change_ends_the_session_so_that_it_reads_anew() {
    for (name, attribute) in [
        ("Mikrotik-CoA", "Mikrotik-Rate-Limit"),
        ("Juniper-MX", "ERX-Service-Activate:1"),
    ] {
        let bras = Bras::new(name, &[online("10.88.0.15"), neighbour()]).await;
        bras.nas.set_faults(Faults {
            unsupported: vec![attribute.to_owned()],
            ..Faults::default()
        });
        bras.done("user_rate_set", &account()).await;
        assert_eq!(bras.nas.sessions().len(), 1, "{name}");
        // A NAS that is silent is no reason to go on.
        bras.nas.set_faults(Faults {
            silent: true,
            ..Faults::default()
        });
        let mut quick = job(
            "user_rate_set",
            &account(),
            bras.nas.addr().port(),
            &json!({}),
        );
        quick.deadline = Duration::from_millis(400);
        let mut transcript = Transcript::discard();
        let report = bras.execute.run(&quick, &mut transcript).await;
        let Verdict::Failed(failure) = report.verdict else {
            panic!("{report:?}")
        };
        assert_eq!(failure.code, 254, "{failure}");
    }
}

#[tokio::test]
async fn pairs_of_commands_undo_each_other() {
    for (name, pairs) in [
        (
            "Cisco-ISG",
            &[
                ("user_redirect", "user_redirect_cancel"),
                ("user_drop", "user_accept"),
                ("own_disabled", "own_disabled_cancel"),
                ("usluga_add", "usluga_del"),
                ("user_rate_set", "user_rate_set_cancel"),
            ][..],
        ),
        (
            "Juniper-MX",
            &[
                ("user_redirect", "user_redirect_cancel"),
                ("user_drop", "user_accept"),
                ("usluga_activate", "usluga_deactivate"),
                ("user_rate_set", "user_rate_set_cancel"),
            ],
        ),
    ] {
        let bras = Bras::new(name, &[online("10.88.0.15")]).await;
        let before = bras.state();
        for (give, take) in pairs {
            bras.done(give, &account()).await;
            assert_ne!(bras.state(), before, "{name} {give}");
            bras.done(take, &account()).await;
            assert_eq!(bras.state(), before, "{name} {take}");
        }
    }
    let bras = Bras::new("Mikrotik-CoA", &[online("10.88.0.15")]).await;
    for (cmd, changes, list) in [
        ("user_redirect", json!({"redirect": 1}), "crb_negbal"),
        ("user_redirect_cancel", json!({}), "crb_auth"),
        ("user_drop", json!({"accept": 0}), "crb_blocked"),
        (
            "user_redirect",
            json!({"accept": 0, "redirect": 1}),
            "crb_blocked",
        ),
        ("user_accept", json!({"redirect": 1}), "crb_negbal"),
        ("user_accept", json!({}), "crb_auth"),
    ] {
        bras.done(cmd, &with(account(), &changes)).await;
        let session = bras.nas.sessions().remove(0);
        assert_eq!(
            session.attributes["Mikrotik-Address-List"],
            [list],
            "{cmd} {changes}"
        );
        assert_eq!(session.attributes["Mikrotik-Rate-Limit"], ["10000k/20000k"]);
    }
    let mut bras = Bras::new("VasExperts-SKAT", &[online("10.88.0.15")]).await;
    bras.done("user_redirect", &account()).await;
    assert_eq!(bras.nas.sessions()[0].authorizations, 1);
    bras.vars = json!({"full": "yes", "redirect_profile": "stub"});
    bras.done("user_redirect", &account()).await;
    let session = bras.nas.sessions().remove(0);
    assert_eq!(session.attributes["VasExperts-Service-Profile"], ["5:stub"]);
    let mut bras = Bras::new("accel-ppp", &[online("10.88.0.15")]).await;
    bras.vars = json!({"rate_redirect": "64/64"});
    for (cmd, changes, rate) in [
        ("user_rate_set", json!({}), "20000/10000"),
        ("user_redirect", json!({"redirect": 1}), "64/64"),
        ("user_rate_set", json!({"redirect": 1}), "64/64"),
        ("user_redirect_cancel", json!({}), "20000/10000"),
    ] {
        bras.done(cmd, &with(account(), &changes)).await;
        let session = bras.nas.sessions().remove(0);
        assert_eq!(session.attributes["Filter-Id"], [rate], "{cmd} {changes}");
    }
}

/// What a service desk may ask of each scheme, and what a billing sends without fail.
#[test]
fn every_scheme_has_the_commands_of_the_catalogue() {
    for name in SCHEMES {
        let has: BTreeSet<String> = load(name).cmds().map(ToString::to_string).collect();
        for cmd in [
            "user_add",
            "user_del",
            "user_edit",
            "user_accept",
            "user_drop",
            "user_redirect",
            "user_redirect_cancel",
            "user_rate_set",
            "user_rate_set_cancel",
            "user_disconnect",
            "own_disabled",
            "own_disabled_cancel",
            "user_info",
        ] {
            assert!(has.contains(cmd), "{name} lacks {cmd}");
        }
        for (file, said) in [
            ("README.md", "What the NAS must have"),
            ("README.md", "rendered only"),
        ] {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("oss/core")
                .join(name)
                .join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(said), "{}: {said:?}", path.display());
        }
    }
}

/// Values of subscribers stay values, whatever is in them.
#[tokio::test]
async fn hostile_values_arrive_as_data() {
    let hostile = "x\", Filter-Id = \"y\n$(reboot) Acct-Session-Id=81a00002";
    for name in SCHEMES {
        let mut session = online("10.88.0.15");
        session["User-Name"] = json!(hostile);
        let bras = Bras::new(name, &[session, neighbour()]).await;
        let params = json!({"login": hostile, "acct_session_id": ""});
        bras.done("user_disconnect", &with(account(), &params))
            .await;
        let left = bras.nas.sessions();
        assert_eq!(left.len(), 1, "{name}");
        assert_eq!(left[0].attributes["User-Name"], ["petrov"], "{name}");
    }
}
