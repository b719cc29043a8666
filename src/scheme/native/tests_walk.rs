//! Tests of the walk: judgements, kept answers, loops, the deadline, the silent ways, and the
//! kinds that are not sent yet.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::table::Table;
use super::tests::{QUEUE, account, at, failure, job, nas, run, silent, steps};
use super::*;
use crate::attempt::FailureClass;
use crate::event::Params;

#[tokio::test]
async fn answers_are_judged_in_order() {
    for (keys, class) in [
        ("", Some(FailureClass::Refused)),
        ("ok_on = ['device says']", None),
        ("ok_on = [254]", None),
        (
            "retry_on = [1]\nfail_on = ['says no$']",
            Some(FailureClass::Permanent),
        ),
        (
            "retry_on = ['no']\nfail_on = ['no']",
            Some(FailureClass::Refused),
        ),
        ("fail = \"continue\"", None),
    ] {
        let scheme = steps(
            "",
            &format!("[[on.user_add]]\ncall = \"/system/x\"\n{keys}\n"),
        );
        let table = Mutex::new(Table::default());
        table
            .lock()
            .unwrap()
            .failures
            .push(walk::again("device says no".into()));
        let (report, _) = run(&scheme, &job("user_add", &account()), &table).await;
        match class {
            Some(class) => assert_eq!(failure(&report).class, class, "{keys}"),
            None => assert_eq!(report.verdict, Verdict::Done, "{keys}"),
        }
    }
}

#[tokio::test]
async fn saved_answers_loops_conditions_and_checks() {
    let scheme = steps(
        "",
        r#"
[[on.user_add]]
when = "1 == 2"
read = "/ppp/active"
save = "never"
[[on.user_add]]
each = "a in addresses if ':' not in a"
call = "/first"
args = { address = "{{ a }}" }
save = "first"
fail = "continue"
[[on.user_add]]
read = "/rows"
save = "got"
[[on.user_add]]
answer = "{{ never.class }} {{ first|length }} {{ first[0].ok }} {{ first[0].text }} {{ got.all('name')|join(',') }} {{ got.rows[0]['name'] }} {{ got.lines|length }} {{ got.code }}"
[[on.user_add]]
assert = "got.rows|length == 9"
otherwise = "defer"
"#,
    );
    let table = Mutex::new(Table::default());
    {
        let mut t = table.lock().unwrap();
        t.put("/rows", &[("name", "a")]);
        t.put("/rows", &[("name", "b")]);
    }
    let (report, sent) = run(&scheme, &job("user_add", &account()), &table).await;
    assert_eq!(
        report.answer.as_deref(),
        Some("skipped 1 false no such command: first a,b a 2 0"),
        "{sent:?}"
    );
    let failed = failure(&report);
    assert_eq!((failed.class, failed.code), (FailureClass::Refused, 254));
    assert!(failed.text.contains("got.rows"), "{failed}");
}

#[tokio::test]
async fn the_deadline_is_kept() {
    let scheme = steps("", QUEUE);
    let table = Mutex::new(Table::default());
    let mut job = job("user_add", &account());
    job.deadline = Duration::ZERO;
    let (report, _) = run(&scheme, &job, &table).await;
    assert_eq!(failure(&report).code, Failure::CODE_TIMEOUT);
    assert!(table.lock().unwrap().log.is_empty());
}

/// The device gets its time before the look; where nothing is sent nobody waits.
#[tokio::test(start_paused = true)]
async fn a_pause_is_waited_for_before_its_step() {
    let scheme = steps(
        "",
        "[[on.user_add]]\ncall = \"/first\"\nfail = \"continue\"\n\
         [[on.user_add]]\neach = \"a in addresses\"\nread = \"/rows\"\npause = \"1500ms\"\n",
    );
    let table = Mutex::new(Table::default());
    let job = job("user_add", &account());
    let walk = run(&scheme, &job, &table);
    tokio::pin!(walk);
    // Each of the two repetitions waits for itself: looked at after 1,400, 1,600 and 2,900 ms.
    for (ms, reads) in [(1_400, 0), (200, 1), (1_300, 1)] {
        let early = tokio::time::timeout(Duration::from_millis(ms), &mut walk).await;
        assert!(early.is_err(), "{early:?}");
        let sent = table.lock().unwrap().sentences();
        assert_eq!(sent.len(), 1 + reads, "{sent:?}");
    }
    let ended = tokio::time::timeout(Duration::from_millis(200), walk).await;
    let (report, sent) = ended.unwrap();
    assert_eq!(
        (report.verdict, sent.len()),
        (Verdict::Done, 1 + 2),
        "{sent:?}"
    );
    let dry = scheme.render_dry(&job);
    let dry = tokio::time::timeout(Duration::from_millis(1), dry).await;
    assert!(dry.is_ok(), "a dry run waits");
}

#[tokio::test]
async fn observe_and_record_send_nothing_and_show_everything() {
    let exec = silent(at("oss/core/Mikrotik-Simple"));
    let mut observed = job("user_add", &account());
    let mut watched = nas(&json!({}));
    watched.mode = Mode::Observe;
    observed.nas = Arc::new(watched);
    let mut transcript = Transcript::discard();
    let report = exec.run(&observed, &mut transcript).await;
    assert_eq!(report.verdict, Verdict::Observed);
    let lines = transcript.into_rest();
    assert_eq!(lines.len(), 1);
    assert_eq!(
        lines[0].text,
        "send_mikrotik_cmd --nas 1 /queue/simple/add name=crb_1424 target=10.88.0.15/32,2001:db8:1::/56 max-limit=10000000/20000000 comment=crb_1424"
    );
    assert_eq!(
        exec.scheme().render_dry(&observed).await.unwrap().unwrap(),
        [lines[0].text.clone()]
    );
    observed.cmd = Cmd::parse("b_negbal").unwrap();
    assert_eq!(exec.scheme().render_dry(&observed).await.unwrap(), None);
    let mut transcript = Transcript::discard();
    assert_eq!(
        exec.run(&observed, &mut transcript).await.verdict,
        Verdict::NotImplemented
    );

    let exec = silent(at("oss/core/Record"));
    let mut transcript = Transcript::discard();
    let hostile = json!({"ip": "10.0.0.1'; reboot", "user_id": 5});
    let report = exec
        .run(&job("user_redirect", &hostile), &mut transcript)
        .await;
    assert_eq!(report.verdict, Verdict::Done);
    assert_eq!(
        transcript.into_rest()[0].text,
        r"nas 1 user 5 user_redirect '10.0.0.1'\''; reboot'"
    );
}

#[tokio::test]
async fn the_other_kinds_are_rendered() {
    let dry = async |path: &str, cmd: &str, params: &Json, vars: Json| {
        let scheme = at(path);
        let mut job = job(cmd, params);
        job.nas = Arc::new(nas(&vars));
        scheme.render_dry(&job).await.map(Option::unwrap)
    };
    let isg = "tests/schemes/Cisco-ISG";
    let vars = json!({"svc_redirect": "L4R"});
    assert_eq!(
        dry(isg, "user_redirect", &account(), vars.clone())
            .await
            .unwrap(),
        [
            "send_radius_cmd --nas 1 coa Cisco-Account-Info=S10.88.0.15 Cisco-AVPair=subscriber:command=activate-service Cisco-AVPair=subscriber:service-name=L4R"
        ]
    );
    let failed = dry(isg, "user_redirect", &account(), json!({}))
        .await
        .unwrap_err();
    assert!(failed.text.contains("nas.svc_redirect"), "{failed}");
    let linux = "tests/schemes/Linux-SSH";
    let lines = dry(linux, "user_redirect", &account(), json!({}))
        .await
        .unwrap();
    assert_eq!(
        lines[0],
        r"send_ssh_cmd --nas 1 'nft -f -' <<< $'add element inet crb negbal4 { 10.88.0.15 }\nadd element inet crb negbal6 { 2001:db8:1::/56 }'"
    );
    assert_eq!(
        lines[1],
        "send_ssh_cmd --nas 1 'conntrack -D -s 10.88.0.15'"
    );
    let failed = dry(
        linux,
        "user_redirect",
        &json!({"addresses": ["10.0.0.1 } ; flush ruleset"]}),
        json!({}),
    )
    .await
    .unwrap_err();
    assert_eq!(failed.class, FailureClass::Permanent);
    let scheme = steps(
        "",
        "[[on.user_add]]\nrequest = { method = \"PUT\", path = \"/u/{{ login }}\", headers = { X-Id = \"{{ user_id }}\" }, json = { rate = \"{{ ceil_in|kbit }}\", on = true, who = \"u {{ login }}\" } }\n[[on.user_del]]\ndisconnect = { User-Name = \"{{ login }}\" }\n",
    );
    let mut job = job("user_add", &json!({"login": "a/../b", "ceil_in": 1000}));
    assert_eq!(
        scheme.render_dry(&job).await.unwrap().unwrap(),
        [
            r#"send_http_cmd --nas 1 PUT /u/a%2F..%2Fb -H 'X-Id: 1424' --json '{"rate":1000,"on":true,"who":"u a/../b"}'"#
        ]
    );
    job.cmd = Cmd::parse("user_del").unwrap();
    assert_eq!(
        scheme.render_dry(&job).await.unwrap().unwrap(),
        ["send_radius_cmd --nas 1 disconnect User-Name=a/../b"]
    );
    job.params = Params::default();
    assert!(
        scheme
            .render_dry(&job)
            .await
            .unwrap_err()
            .text
            .contains("no session identifier")
    );
}

#[tokio::test]
async fn continue_on_run_forgives_the_device_and_not_the_scheme() {
    for (inner, done) in [
        ("call = \"/system/x\"", true),
        ("read = \"/{{ nothing }}\"", false),
    ] {
        let scheme = steps(
            "",
            &format!("[[on.user_add]]\nrun = \"p\"\nfail = \"continue\"\n[[part.p]]\n{inner}\n"),
        );
        let table = Mutex::new(Table::default());
        table
            .lock()
            .unwrap()
            .failures
            .push(Failure::permanent("no"));
        let (report, _) = run(&scheme, &job("user_add", &account()), &table).await;
        assert_eq!(report.verdict == Verdict::Done, done, "{inner}: {report:?}");
    }
}

#[tokio::test]
async fn secrets_do_not_leave_in_answers_or_failures() {
    let scheme = steps(
        "",
        "[[on.user_info]]\nread = \"/x\"\nsave = \"x\"\n[[on.user_info]]\nanswer = \"{{ x.text }}\"\n[[on.user_info]]\ncall = \"/y\"\n",
    );
    let table = Mutex::new(Table::default());
    table
        .lock()
        .unwrap()
        .put("/x", &[("password", "servicemode")]);
    table.lock().unwrap().menus.entry("/y".into()).or_default();
    let job = Job {
        secret: Arc::new(crate::nas::NasSecret {
            password: "servicemode".into(),
            ..Default::default()
        }),
        ..job("user_info", &account())
    };
    let mut transcript = Transcript::new(job.secret.texts(), Box::new(|_| {}));
    let report = run_via(
        &scheme,
        &job,
        &mut transcript,
        Via::Table(&table),
        Verdict::Done,
    )
    .await;
    let shown = format!("{report:?} {:?}", transcript.into_rest());
    assert!(
        shown.contains("***") && !shown.contains("servicemode"),
        "{shown}"
    );
}
