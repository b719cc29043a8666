//! What a scheme makes of an answer's body, over the driver `http`: `ok_on`, `retry_on`, `fail_on`
//! over the text and the status, `x.json` in `assert`; and that nothing leads an event to another
//! host than the NAS has.

use std::path::Path;
use std::sync::Arc;

use nas_event_daemon::attempt::{FailureClass, Job, Report, Scope, Transcript, Verdict};
use nas_event_daemon::driver::sessions::Sessions;
use nas_event_daemon::event::{Cmd, EventId, Params, UserId};
use nas_event_daemon::nas::{Nas, NasId, NasSecret};
use nas_event_daemon::scheme::Execute as _;
use nas_event_daemon::scheme::native::{NativeExecute, NativeScheme};
use nas_event_daemon::sim::http::{Faults, Options, Sim};
use serde_json::{Value, json};

use crate::LONG;

/// A device that answers 200 whatever it thinks: the body says what became of it.
const SCHEME: &str = r#"
driver = "http"
[[on.user_add]]
request = { method = "GET", path = "/{{ login }}" }
save = "x"
ok_on = ['"told": *"fine"', 418]
retry_on = ['"told": *"(busy|later)"']
fail_on = ['(?i)"told": *"broken', 200]
[[on.user_add]]
answer = "{{ x.code }} {{ x.json.told if x.json is mapping else x.text }}"

[[on.user_drop]]
request = { method = "GET", path = "/{{ login }}" }
save = "x"
ok_on = ['no such document']
[[on.user_drop]]
assert = "x.json.state == 'blocked' and x.json.sessions|length == 0"
otherwise = "defer"

[[on.user_del]]
request = { method = "GET", path = "/{{ login }}" }
save = "x"
[[on.user_del]]
assert = "x.json.state == 'gone'"
otherwise = "dead"
"#;

struct Device {
    sim: Sim,
    execute: NativeExecute,
    _dir: tempfile::TempDir,
}

impl Device {
    async fn new(scheme: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("scheme.toml"), scheme).unwrap();
        let scheme = NativeScheme::load(Path::new(dir.path())).unwrap();
        Self {
            sim: Sim::start(Options::default()).await.unwrap(),
            execute: NativeExecute::new(Arc::new(scheme), Arc::new(Sessions::default())),
            _dir: dir,
        }
    }

    /// Puts a document there, as its owner would.
    async fn holds(&self, name: &str, document: &Value) {
        let client = nas_event_daemon::driver::tls::plain_client()
            .build()
            .unwrap();
        let url = format!("http://{}/{name}", self.sim.addr());
        let put = client.put(url).json(document).send().await.unwrap();
        assert!(put.status().is_success());
    }

    async fn run(&self, cmd: &str, login: &str) -> Report {
        let cmd = Cmd::parse(cmd).unwrap();
        let params = json!({ "login": login });
        let job = Job {
            event: EventId(7),
            epoch: 1,
            try_count: 1,
            possible_duplicate: false,
            class: cmd.class(),
            cmd,
            user: Some(UserId(1424)),
            abonent: None,
            usluga: None,
            params: Params(params.as_object().cloned().unwrap()),
            nas: Arc::new(Nas {
                http_url: Some(format!("http://{}", self.sim.addr())),
                ..Nas::new(NasId(1), "device", "127.0.0.1")
            }),
            secret: Arc::new(NasSecret::default()),
            deadline: LONG,
        };
        self.execute.run(&job, &mut Transcript::discard()).await
    }
}

fn failed(report: &Report) -> (Scope, FailureClass, i32) {
    match &report.verdict {
        Verdict::Failed(failure) => (failure.scope, failure.class, failure.code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_body_says_what_its_status_does_not() {
    let device = Device::new(SCHEME).await;
    for (name, told) in [
        ("fine", json!({"told": "fine"})),
        ("busy", json!({"told": "busy"})),
        ("broken", json!({"told": "BROKEN cable"})),
        ("mute", json!({"said": 1})),
    ] {
        device.holds(name, &told).await;
    }
    // Asked in this order: what is fine is fine although `fail_on` has its status, too.
    let report = device.run("user_add", "fine").await;
    assert_eq!(report.verdict, Verdict::Done);
    assert_eq!(report.answer.as_deref(), Some("200 fine"));
    for (name, class) in [
        ("busy", FailureClass::Refused),
        ("broken", FailureClass::Permanent),
        ("mute", FailureClass::Permanent),
        // By its status alone: 404.
        ("nobody", FailureClass::Permanent),
    ] {
        let (scope, found, _) = failed(&device.run("user_add", name).await);
        assert_eq!((scope, found), (Scope::Event, class), "{name}");
    }
    // A status that is a failure, and that the scheme takes for an answer: its body is in the text,
    // and not read as JSON.
    device.sim.set_faults(Faults {
        status: Some(418),
        ..Faults::default()
    });
    let report = device.run("user_add", "fine").await;
    assert_eq!(report.verdict, Verdict::Done);
    let answer = report.answer.unwrap();
    assert!(answer.starts_with("418 HTTP 418"), "{answer}");
    assert!(answer.contains("as it was told to"), "{answer}");
}

#[tokio::test]
async fn json_of_a_body_is_asserted() {
    let device = Device::new(SCHEME).await;
    device
        .holds("done", &json!({"state": "blocked", "sessions": []}))
        .await;
    device
        .holds(
            "half",
            &json!({"state": "blocked", "sessions": [{"id": 1}]}),
        )
        .await;
    device.holds("text", &json!("state=blocked")).await;
    assert_eq!(device.run("user_drop", "done").await.verdict, Verdict::Done);
    let (scope, class, _) = failed(&device.run("user_drop", "half").await);
    assert_eq!((scope, class), (Scope::Event, FailureClass::Refused));
    let (scope, class, _) = failed(&device.run("user_del", "half").await);
    assert_eq!((scope, class), (Scope::Event, FailureClass::Permanent));
    // No JSON of that form: the scheme cannot judge, so the event does not pass.
    let (scope, class, _) = failed(&device.run("user_del", "text").await);
    assert_eq!((scope, class), (Scope::Event, FailureClass::Permanent));
    // A text of the body turns a 404 into an answer; what it does not hold does not hold.
    let report = device.run("user_drop", "nobody").await;
    assert!(matches!(report.verdict, Verdict::Failed(_)), "{report:?}");
}

/// `nas.http_url` is the whole list of allowed hosts.
#[tokio::test]
async fn nothing_leads_an_event_to_another_host() {
    let other = Sim::start(Options::default()).await.unwrap();
    let device = Device::new(SCHEME).await;
    // Neither a redirect…
    for status in [301, 302, 303, 307, 308] {
        device.sim.set_faults(Faults {
            status: Some(status),
            location: Some(format!("http://{}/stolen", other.addr())),
            ..Faults::default()
        });
        let (scope, class, code) = failed(&device.run("user_add", "fine").await);
        assert_eq!((scope, class), (Scope::Event, FailureClass::Permanent));
        assert_eq!(code, i32::from(status));
    }
    // … nor what an event says …
    device.sim.set_faults(Faults::default());
    let before = device.sim.seen().requests;
    for login in [
        format!("/{}/stolen", other.addr()),
        format!("http://{}/stolen", other.addr()),
        format!("@{}/stolen", other.addr()),
        format!("x\r\nHost: {}", other.addr()),
        "../../stolen".to_owned(),
    ] {
        device.run("user_add", &login).await;
    }
    assert_eq!(
        device.sim.seen().requests - before,
        5,
        "not with the device"
    );
    assert_eq!(device.sim.seen().connections, 1, "one is enough");
    // … nor what the scheme says.
    let place = other.addr();
    for (path, field) in [
        (format!("http://{place}/x"), String::new()),
        (format!("//{place}/x"), String::new()),
        (
            "/x".to_owned(),
            format!(", headers = {{ Host = \"{place}\" }}"),
        ),
    ] {
        let text = format!(
            "driver = \"http\"\n[[on.user_add]]\nrequest = {{ method = \"GET\", path = \"{path}\"{field} }}\n"
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("scheme.toml"), &text).unwrap();
        if NativeScheme::load(dir.path()).is_err() {
            continue;
        }
        let device = Device::new(&text).await;
        let (scope, class, _) = failed(&device.run("user_add", "fine").await);
        assert_eq!(
            (scope, class),
            (Scope::Event, FailureClass::Permanent),
            "{text}"
        );
        assert_eq!(device.sim.seen().requests, 0);
    }
    assert_eq!(other.seen().connections, 0);
}

/// Whoever answers for a name cannot lead requests, and what they carry, out of the networks that
/// the NAS allows: neither an address nor a changed answer of DNS reaches anybody there.
#[tokio::test]
async fn a_name_leads_into_the_allowed_networks_only() {
    let sim = Sim::start(Options::default()).await.unwrap();
    let (name, address) = (
        format!("http://localhost:{}", sim.addr().port()),
        format!("http://{}", sim.addr()),
    );
    // The same for all: it is a change of the NAS that counts.
    let sessions = Sessions::default();
    let ask = async |url: &str, allow: Value| {
        let mut nas = Nas {
            http_url: Some(url.to_owned()),
            ..Nas::new(NasId(1), "device", "127.0.0.1")
        };
        nas.vars.insert("http_allow".to_owned(), allow);
        let device = sessions.http(&nas, &NasSecret::default());
        let before = sim.seen().requests;
        let failure = crate::talk(&device, "/none").await.unwrap_err();
        (failure, sim.seen().requests - before)
    };
    for url in [&name, &address] {
        for allow in [Value::Null, json!(["127.0.0.0/8"]), json!("127.0.0.1")] {
            let (failure, requests) = ask(url, allow).await;
            assert_eq!((failure.code, requests), (404, 1), "{failure}");
        }
    }
    let elsewhere = json!(["10.0.0.0/8", "2001:db8::/32"]);
    let (failure, requests) = ask(&name, elsewhere.clone()).await;
    assert_eq!(
        (failure.scope, failure.class, failure.parks, requests),
        (Scope::Nas, FailureClass::Transport, false, 0),
        "{failure}"
    );
    for part in ["localhost leads to ", "127.0.0.1", "http_allow"] {
        assert!(failure.text.contains(part), "{failure}");
    }
    // An address is a setting, which no time mends.
    for (url, allow) in [(&address, elsewhere), (&name, json!("10.0.0.0/33"))] {
        let (failure, requests) = ask(url, allow).await;
        assert_eq!(
            (failure.scope, failure.class, failure.parks, requests),
            (Scope::Nas, FailureClass::Permanent, true, 0),
            "{failure}"
        );
        assert!(failure.text.contains("http_allow"), "{failure}");
    }
}
