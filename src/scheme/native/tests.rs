//! Tests of the RouterOS steps over a table in memory, and what the other tests share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::table::Table;
use super::*;
use crate::attempt::FailureClass;
use crate::event::{EventId, Params, UserId};
use crate::nas::{Nas, NasId, NasSecret};

pub(super) fn nas(vars: &Json) -> Nas {
    Nas {
        oss_path: Some("Mikrotik-Simple".into()),
        vars: vars.as_object().cloned().unwrap_or_default(),
        ..Nas::new(NasId(1), "Test", "10.90.185.2")
    }
}

pub(super) fn job(cmd: &str, params: &Json) -> Job {
    let cmd = Cmd::parse(cmd).unwrap();
    Job {
        event: EventId(7),
        epoch: 1,
        try_count: 1,
        possible_duplicate: false,
        class: cmd.class(),
        cmd,
        user: Some(UserId(1424)),
        abonent: Some(1375),
        usluga: None,
        params: Params(params.as_object().cloned().unwrap()),
        nas: Arc::new(nas(&json!({}))),
        secret: Arc::new(NasSecret::default()),
        deadline: Duration::from_secs(60),
    }
}

pub(super) fn account() -> Json {
    json!({
        "user_id": 1424, "login": "ivanov", "ip": "10.88.0.15", "ceil_in": "10000",
        "ceil_out": 20000, "accept": 1, "redirect": 0,
        "addresses": ["10.88.0.15", "2001:db8:1::/56"],
    })
}

pub(super) fn parse(text: &str) -> Result<NativeScheme, Vec<Finding>> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), text).unwrap();
    NativeScheme::load(dir.path())
}

pub(super) fn at(path: &str) -> NativeScheme {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    NativeScheme::load(&dir).unwrap_or_else(|findings| panic!("{findings:#?}"))
}

pub(super) async fn run(
    scheme: &NativeScheme,
    job: &Job,
    table: &Mutex<Table>,
) -> (Report, Vec<String>) {
    table.lock().unwrap().log.clear();
    let mut transcript = Transcript::discard();
    let via = Via::Table(table);
    let report = run_via(scheme, job, &mut transcript, via, Verdict::Done).await;
    let sentences = table.lock().unwrap().sentences();
    (report, sentences)
}

pub(super) fn failure(report: &Report) -> &Failure {
    match &report.verdict {
        Verdict::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

pub(super) fn silent(scheme: NativeScheme) -> NativeExecute {
    NativeExecute::new(Arc::new(scheme), Arc::default())
}

pub(super) fn steps(head: &str, steps: &str) -> NativeScheme {
    parse(&format!("driver = \"mikrotik\"\n{head}\n{steps}"))
        .unwrap_or_else(|findings| panic!("{findings:#?}"))
}

pub(super) const QUEUE: &str = r#"
[[on.user_add]]
ensure = "/queue/simple"
where = { name = "crb_{{ user_id }}" }
set = { target = "{{ nets|join(',') }}", max-limit = "{{ ceil_in|bps }}/{{ ceil_out|bps }}" }
add = { place-before = "{{ nas.before|default('') }}" }
"#;
pub(super) const OWN: &str = r#"own = { comment = "crb_{{ user_id }}" }"#;

#[tokio::test]
async fn ensure_adds_once_and_a_second_run_sends_no_set() {
    let scheme = steps(OWN, QUEUE);
    let table = Mutex::new(Table::default());
    let job = job("user_add", &account());
    let (report, sent) = run(&scheme, &job, &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert_eq!(
        sent,
        [
            "/queue/simple/add name=crb_1424 target=10.88.0.15/32,2001:db8:1::/56 max-limit=10000000/20000000 comment=crb_1424"
        ]
    );
    let (report, sent) = run(&scheme, &job, &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert!(!sent.iter().any(|s| s.contains("/set")), "{sent:?}");
    assert_eq!(table.lock().unwrap().menus["/queue/simple"].len(), 1);
}

#[tokio::test]
async fn ensure_sets_only_what_differs() {
    let scheme = steps(OWN, QUEUE);
    let table = Mutex::new(Table::default());
    table.lock().unwrap().put(
        "/queue/simple",
        &[
            ("name", "crb_1424"),
            ("target", "10.88.0.15/32,2001:db8:1::/56"),
            ("max-limit", "1000000/1000000"),
            ("comment", "crb_1424"),
        ],
    );
    let (report, sent) = run(&scheme, &job("user_add", &account()), &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert_eq!(
        sent.last().unwrap(),
        "/queue/simple/set '.id=*1' max-limit=10000000/20000000"
    );
}

#[tokio::test]
async fn foreign_rows_are_refused_and_dynamic_rows_left_alone() {
    let scheme = steps(OWN, QUEUE);
    let table = Mutex::new(Table::default());
    table.lock().unwrap().put(
        "/queue/simple",
        &[("name", "crb_1424"), ("comment", "by hand")],
    );
    let (report, sent) = run(&scheme, &job("user_add", &account()), &table).await;
    let failed = failure(&report);
    assert_eq!(failed.class, FailureClass::Refused);
    assert!(failed.text.contains("foreign row"), "{failed}");
    assert!(!sent.iter().any(|s| s.contains("/set")), "{sent:?}");

    let table = Mutex::new(Table::default());
    table.lock().unwrap().put(
        "/queue/simple",
        &[("name", "crb_1424"), ("dynamic", "true")],
    );
    let (report, sent) = run(&scheme, &job("user_add", &account()), &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert!(!sent.iter().any(|s| s.contains("/set")), "{sent:?}");
}

#[tokio::test]
async fn menus_that_allow_doubles_are_looked_at_first() {
    let scheme = steps(
        "",
        "[[on.user_add]]\nensure = \"/ip/arp\"\nwhere = { address = \"{{ ip }}\" }\nset = { mac-address = \"aa:bb:cc:dd:ee:ff\" }\n",
    );
    let table = Mutex::new(Table::default());
    let job = job("user_add", &account());
    let (_, sent) = run(&scheme, &job, &table).await;
    assert_eq!(
        sent,
        [
            "/ip/arp/print '?address=10.88.0.15' '?address=10.88.0.15/32' '?#|' .proplist=.id,address,mac-address",
            "/ip/arp/add address=10.88.0.15 mac-address=aa:bb:cc:dd:ee:ff"
        ]
    );
    table.lock().unwrap().menus.get_mut("/ip/arp").unwrap()[0]
        .insert("mac-address".into(), "AA:BB:CC:DD:EE:FF".into());
    let (_, sent) = run(&scheme, &job, &table).await;
    assert_eq!(sent.len(), 1, "{sent:?}");
}

#[tokio::test]
async fn an_empty_value_never_widens_a_command() {
    for (step, part) in [
        (
            "absent = \"/ppp/active\"\nwhere = { name = \"{{ login }}\" }",
            "`login` is empty",
        ),
        (
            "absent = \"/ppp/active\"\nwhere = { name = \"crb_{{ login }}\" }",
            "`login` is empty",
        ),
        ("absent = \"{{ login }}\"\nwhere = { name = \"x\" }", "path"),
        (
            "absent = \"/ppp/active\"\nwhere = { service = \"pppoe\" }\nmatch = { name = \"^{{ login }}\" }",
            "`login` is empty",
        ),
        (
            "call = \"/ping\"\nargs = { address = \"{{ login }}\" }",
            "address is empty",
        ),
        (
            "ensure = \"/queue/simple\"\nwhere = { name = \"x\" }\nset = { target = \"{{ login }}\" }",
            "target is empty",
        ),
        (
            "call = \"/ping\"\nargs = { address = \"{{ no_such_column }}\" }",
            "the event has no no_such_column",
        ),
        (
            "call = \"/ping\"\nargs = { address = \"{{ no_such_column ~ 'x' }}\" }",
            "the event has no no_such_column",
        ),
        (
            "call = \"/ping\"\nargs = { address = \"{{ ip|bps }}\" }",
            "is not a rate",
        ),
        ("read = \"/{{ ip }}/x\"", "is not a path"),
    ] {
        let scheme = steps(
            "",
            &format!("[[on.user_del]]\n{step}\nfail = \"continue\"\nok_on = [1]\n"),
        );
        let table = Mutex::new(Table::default());
        let (report, sent) = run(
            &scheme,
            &job("user_del", &json!({"ip": "10.0.0.1; x", "login": ""})),
            &table,
        )
        .await;
        let failed = failure(&report);
        assert_eq!(failed.class, FailureClass::Permanent, "{step}");
        assert!(failed.text.contains(part), "{step}: {failed}");
        assert!(failed.text.starts_with("scheme.toml:3:"), "{failed}");
        assert!(sent.is_empty(), "{sent:?}");
    }
}

#[tokio::test]
async fn absent_removes_ours_only_and_none_is_success() {
    let scheme = at("oss/core/Mikrotik-Simple");
    let table = Mutex::new(Table::default());
    let list = "/ip/firewall/address-list";
    {
        let mut t = table.lock().unwrap();
        t.put(
            list,
            &[
                ("list", "crb_negbal"),
                ("address", "10.88.0.15"),
                ("comment", "crb_2001"),
            ],
        );
        t.put(
            list,
            &[
                ("list", "crb_blocked"),
                ("address", "10.88.0.15"),
                ("comment", "crb_1424"),
            ],
        );
        t.put(
            list,
            &[
                ("list", "other"),
                ("address", "10.88.0.15"),
                ("comment", "by hand"),
            ],
        );
        t.put(
            "/queue/simple",
            &[("name", "crb_1424"), ("comment", "crb_1424")],
        );
        t.put("/ppp/active", &[("name", "ivanov")]);
        t.put("/ppp/active", &[("name", "ivanov2")]);
    }
    let job = job("user_del", &account());
    let (report, sent) = run(&scheme, &job, &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert!(
        sent.contains(&format!("{list}/remove '.id=*2'")),
        "{sent:?}"
    );
    {
        let t = table.lock().unwrap();
        assert_eq!(t.menus[list].len(), 2);
        assert!(t.menus["/queue/simple"].is_empty());
        assert_eq!(t.menus["/ppp/active"].len(), 1);
    }
    let (report, sent) = run(&scheme, &job, &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert!(!sent.iter().any(|s| s.contains("/remove")), "{sent:?}");
}

#[tokio::test]
async fn absent_refuses_more_than_at_most_and_escapes_match() {
    let scheme = steps(
        "",
        "[[on.user_del]]\nabsent = \"/ip/firewall/connection\"\nwhere = { protocol = \"tcp\" }\nmatch = { src-address = \"^{{ ip }}:\" }\nat_most = 2\n",
    );
    let table = Mutex::new(Table::default());
    let menu = "/ip/firewall/connection";
    for address in [
        "10.88.0.15:1",
        "10x88.0.15:1",
        "10.88.0.155:1",
        "10.88.0.15:2",
    ] {
        table
            .lock()
            .unwrap()
            .put(menu, &[("protocol", "tcp"), ("src-address", address)]);
    }
    let job = job("user_del", &account());
    let (report, sent) = run(&scheme, &job, &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert_eq!(
        sent.last().unwrap(),
        "/ip/firewall/connection/remove '.id=*1,*4'"
    );
    for port in 1..4 {
        table.lock().unwrap().put(
            menu,
            &[
                ("protocol", "tcp"),
                ("src-address", &format!("10.88.0.15:{port}")),
            ],
        );
    }
    let (report, sent) = run(&scheme, &job, &table).await;
    assert!(failure(&report).text.contains("at_most is 2"), "{report:?}");
    assert_eq!(failure(&report).class, FailureClass::Permanent);
    assert_eq!(sent.len(), 1, "{sent:?}");
}

#[tokio::test]
async fn a_row_that_vanished_meanwhile_is_success() {
    let scheme = steps(
        "",
        "[[on.user_del]]\nabsent = \"/ppp/active\"\nwhere = { name = \"{{ login }}\" }\n",
    );
    let table = Mutex::new(Table::default());
    table.lock().unwrap().replies.insert(
        "/ppp/active/print".into(),
        crate::driver::Reply {
            rows: vec![
                [
                    (".id".to_owned(), "*99".to_owned()),
                    ("name".to_owned(), "ivanov".to_owned()),
                ]
                .into(),
            ],
            ..Default::default()
        },
    );
    let (report, sent) = run(&scheme, &job("user_del", &account()), &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert_eq!(sent.len(), 2, "{sent:?}");
}

#[tokio::test]
async fn one_vanished_row_does_not_keep_the_others() {
    let scheme = steps(
        "",
        "[[on.user_del]]\nabsent = \"/ppp/active\"\nwhere = { name = \"{{ login }}\" }\n",
    );
    let table = Mutex::new(Table::default());
    let row = |id: &str| {
        [
            (".id".to_owned(), id.to_owned()),
            ("name".to_owned(), "ivanov".to_owned()),
        ]
        .into()
    };
    {
        let mut t = table.lock().unwrap();
        t.put("/ppp/active", &[("name", "ivanov")]);
        let rows = vec![row("*99"), row("*1")];
        let reply = crate::driver::Reply {
            rows,
            ..Default::default()
        };
        t.replies.insert("/ppp/active/print".into(), reply);
    }
    let (report, _) = run(&scheme, &job("user_del", &account()), &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert!(table.lock().unwrap().menus["/ppp/active"].is_empty());
}

#[tokio::test]
async fn an_entry_that_exists_but_does_not_match_is_refused() {
    let scheme = steps(
        "",
        "[[on.user_add]]\nensure = \"/queue/simple\"\nwhere = { name = \"q\", parent = \"a\" }\n",
    );
    let table = Mutex::new(Table::default());
    table
        .lock()
        .unwrap()
        .put("/queue/simple", &[("name", "q"), ("parent", "b")]);
    let (report, sent) = run(&scheme, &job("user_add", &account()), &table).await;
    let failed = failure(&report);
    assert_eq!(failed.class, FailureClass::Refused);
    assert!(
        failed
            .text
            .contains("no row of /queue/simple has name=q parent=a"),
        "{failed}"
    );
    assert_eq!(sent.len(), 2, "{sent:?}");
}

#[tokio::test]
async fn events_without_an_account_have_no_mark() {
    let scheme = steps(OWN, QUEUE);
    let table = Mutex::new(Table::default());
    let mut job = job(
        "user_add",
        &json!({"ip": "10.0.0.1", "ceil_in": 1, "ceil_out": 1}),
    );
    job.user = None;
    let (report, sent) = run(&scheme, &job, &table).await;
    assert!(
        failure(&report).text.contains("`user_id` is empty"),
        "{report:?}"
    );
    assert!(sent.is_empty());
}
