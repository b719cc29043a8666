//! The shipped scheme HTTP-Webhook against the simulator: replay, a second run, a change of
//! address, answers, and the whole way from the event to the device.

use std::path::Path;
use std::sync::Arc;

use nas_event_daemon::attempt::{Job, Report, Transcript, Verdict};
use nas_event_daemon::driver::sessions::Sessions;
use nas_event_daemon::event::{CATALOGUE, Cmd, EventId, Params, UserId};
use nas_event_daemon::nas::{Nas, NasId, NasSecret};
use nas_event_daemon::scheme::Execute as _;
use nas_event_daemon::scheme::native::{NativeExecute, NativeScheme};
use nas_event_daemon::sim::http::{Options, Sim};
use serde_json::{Value, json};

use crate::LONG;
use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::tls::Pki;

on_each_store!(events_reach_the_hook_over_https);

struct Hook {
    sim: Sim,
    execute: NativeExecute,
}

impl Hook {
    async fn new() -> Self {
        let sim = Sim::start(Options {
            authorization: Some("Bearer t0ken".into()),
            ..Options::default()
        })
        .await
        .unwrap();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("oss/core/HTTP-Webhook");
        let scheme = NativeScheme::load(&dir).unwrap();
        assert!(scheme.warnings().is_empty(), "{:?}", scheme.warnings());
        Self {
            sim,
            execute: NativeExecute::new(Arc::new(scheme), Arc::new(Sessions::default())),
        }
    }

    fn job(&self, event: i64, cmd: &str, params: &Value) -> Job {
        let cmd = Cmd::parse(cmd).unwrap();
        Job {
            event: EventId(event),
            epoch: 1,
            try_count: 1,
            possible_duplicate: false,
            class: cmd.class(),
            cmd,
            user: Some(UserId(1424)),
            abonent: Some(1375),
            usluga: None,
            params: Params(params.as_object().cloned().unwrap()),
            nas: Arc::new(Nas {
                http_url: Some(format!("http://{}/hook", self.sim.addr())),
                ..Nas::new(NasId(1116), "hook", "127.0.0.1")
            }),
            secret: Arc::new(NasSecret {
                password: "t0ken".into(),
                ..NasSecret::default()
            }),
            deadline: LONG,
        }
    }

    async fn run(&self, job: &Job) -> Report {
        self.execute.run(job, &mut Transcript::discard()).await
    }
}

fn account() -> Value {
    json!({"user_id": 1424, "login": "ivanov\r\nX: y", "ip": "10.88.0.15", "accept": 1,
        "addresses": ["10.88.0.15", "2001:db8:1::/56"]})
}

#[tokio::test]
async fn every_command_of_the_catalogue_is_one_post_and_a_repetition_changes_nothing() {
    let hook = Hook::new().await;
    for (n, (cmd, _)) in CATALOGUE.iter().enumerate() {
        let job = hook.job(i64::try_from(n).unwrap(), cmd, &account());
        for _ in 0..2 {
            assert_eq!(hook.run(&job).await.verdict, Verdict::Done, "{cmd}");
        }
        let taken = hook.sim.taken();
        let last = taken.last().unwrap();
        assert_eq!(
            (last.method.as_str(), last.path.as_str()),
            ("POST", "/hook/events")
        );
        assert_eq!(last.body["cmd"], *cmd);
        assert_eq!(last.body["user_id"], 1424);
        assert_eq!(last.headers["idempotency-key"], n.to_string());
        assert_eq!(last.body["params"]["login"], "ivanov\r\nX: y");
        assert_eq!(last.body["params"]["addresses"][1], "2001:db8:1::/56");
    }
    let seen = hook.sim.seen();
    let all = CATALOGUE.len() as u64;
    assert_eq!((seen.changes, seen.repeated), (all, all));
    assert_eq!(seen.connections, 1);
}

#[tokio::test]
async fn a_change_of_address_is_told_with_old_and_new_data() {
    let hook = Hook::new().await;
    let mut new = account();
    new["ip"] = json!("10.88.0.77");
    new["addresses"] = json!(["10.88.0.77"]);
    let old = account();
    for (event, cmd, params) in [
        (1, "user_add", &old),
        (2, "user_del", &old),
        (3, "user_add", &new),
    ] {
        hook.run(&hook.job(event, cmd, params)).await;
    }
    let told: Vec<_> = hook.sim.taken().into_iter().map(|t| t.body).collect();
    let seen: Vec<_> = told
        .iter()
        .map(|b| {
            (
                b["cmd"].as_str().unwrap(),
                b["params"]["ip"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("user_add", "10.88.0.15"),
            ("user_del", "10.88.0.15"),
            ("user_add", "10.88.0.77")
        ]
    );
    assert!(!told[2].to_string().contains("10.88.0.15"));
}

#[tokio::test]
async fn the_receivers_answer_is_the_operators() {
    let hook = Hook::new().await;
    let report = hook.run(&hook.job(1, "user_info", &account())).await;
    let answer = report.answer.unwrap();
    assert_eq!(answer, "simulated: user_info of user 1424");
}

async fn events_reach_the_hook_over_https(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let pki = Pki::new(lab.root(), "hook");
    let sim = Sim::start(Options {
        tls: Some(pki.identity.clone()),
        authorization: Some("Basic bmVkOnNlcnZpY2Vtb2Rl".into()),
        ..Options::default()
    })
    .await
    .unwrap();
    let vars = json!({"tls_ca": pki.ca}).to_string();
    let url = format!("'https://{}'", sim.addr());
    let more = [("http_url", url), ("vars", format!("'{vars}'"))];
    lab.nas(7, "HTTP-Webhook", 5, &more).await;
    lab.secret(7, "ned", "servicemode").await;
    lab.accounts(7, 1..=20).await;
    let daemon = lab.start().await;
    for user in 1..=20 {
        lab.event(user, "user_redirect").await;
    }
    lab.drained().await;
    assert_eq!(
        lab.number("select count(*) from events_done where result = 'done'")
            .await,
        20
    );
    assert_eq!(sim.taken().len(), 20);
    // One that was begun beside others may never have been needed, and one that has just answered
    // may not yet be back when the next request looks for it.
    let (connections, opened) = (sim.seen().connections, lab.opened(7) as u64);
    assert!(connections <= 6, "{connections}");
    assert!(
        (1..=connections).contains(&opened),
        "{opened} of {connections}"
    );
    let log = lab.nas_log(7).join("\n");
    assert!(
        log.contains("> send_http_cmd --nas 7 POST /events -H 'Idempotency-Key: "),
        "{log}"
    );
    assert!(log.contains("< done code=202"), "{log}");
    assert!(!log.contains("servicemode") && !log.contains("bmVkOnNlcnZpY2Vtb2Rl"));
    daemon.stop().await;
}
