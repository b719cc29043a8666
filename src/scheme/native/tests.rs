//! Tests of whole schemes: findings at load, and steps over a table in memory.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::table::Table;
use super::*;
use crate::attempt::FailureClass;
use crate::event::{EventId, Params, UserId};
use crate::nas::{Forks, Nas, NasId, NasSecret};

pub(crate) fn nas(vars: &Json) -> Nas {
    Nas {
        id: NasId(1),
        name: "Test".into(),
        ip: "10.90.185.2".into(),
        mode: Mode::Active,
        forks: Forks::DEFAULT,
        forks_warning: None,
        oss_path: Some("Mikrotik-Simple".into()),
        script_name: None,
        api_port: None,
        api_tls: false,
        ssh_port: None,
        ssh_host_key: None,
        telnet_port: None,
        coa_port: None,
        http_url: None,
        max_sessions: None,
        max_rate: None,
        timeout: None,
        on_error: None,
        vars: vars.as_object().cloned().unwrap_or_default(),
    }
}

fn job(cmd: &str, params: &Json) -> Job {
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

fn account() -> Json {
    json!({
        "user_id": 1424, "login": "ivanov", "ip": "10.88.0.15", "ceil_in": "10000",
        "ceil_out": 20000, "accept": 1, "redirect": 0,
        "addresses": ["10.88.0.15", "2001:db8:1::/56"],
    })
}

fn parse(text: &str) -> Result<NativeScheme, Vec<Finding>> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), text).unwrap();
    NativeScheme::load(dir.path())
}

fn at(path: &str) -> NativeScheme {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    NativeScheme::load(&dir).unwrap_or_else(|findings| panic!("{findings:#?}"))
}

async fn run(scheme: &NativeScheme, job: &Job, table: &Mutex<Table>) -> (Report, Vec<String>) {
    table.lock().unwrap().log.clear();
    let mut transcript = Transcript::discard();
    let via = Via::Table(table);
    let report = run_via(scheme, job, &mut transcript, via, Verdict::Done).await;
    let sentences = table.lock().unwrap().sentences();
    (report, sentences)
}

fn failure(report: &Report) -> &Failure {
    match &report.verdict {
        Verdict::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn silent(scheme: NativeScheme) -> NativeExecute {
    NativeExecute::new(Arc::new(scheme), Arc::default())
}

fn steps(head: &str, steps: &str) -> NativeScheme {
    parse(&format!("driver = \"mikrotik\"\n{head}\n{steps}"))
        .unwrap_or_else(|findings| panic!("{findings:#?}"))
}

const QUEUE: &str = r#"
[[on.user_add]]
ensure = "/queue/simple"
where = { name = "crb_{{ user_id }}" }
set = { target = "{{ nets|join(',') }}", max-limit = "{{ ceil_in|bps }}/{{ ceil_out|bps }}" }
add = { place-before = "{{ nas.before|default('') }}" }
"#;
const OWN: &str = r#"own = { comment = "crb_{{ user_id }}" }"#;

// --- load and lint -----------------------------------------------------------------------

#[test]
fn yardstick_and_shipped_schemes_load_without_surprise() {
    for (path, wanted) in [
        ("oss/core/Mikrotik-Simple", &[][..]),
        ("oss/core/Record", &[]),
        ("tests/schemes/Mikrotik-Simple-minimal", &[]),
        ("tests/schemes/Mikrotik-Simple", &["queue_before"]),
        ("tests/schemes/Cisco-ISG", &["svc_redirect"]),
        ("tests/schemes/Linux-SSH", &["dev_down"]),
    ] {
        let scheme = at(path);
        for finding in scheme.warnings() {
            assert!(
                wanted
                    .iter()
                    .any(|w| finding.text.contains(&format!("nas.{w}"))),
                "{finding}"
            );
        }
        assert_eq!(scheme.warnings().is_empty(), wanted.is_empty(), "{path}");
    }
}

#[test]
fn shipped_schemes_know_the_catalogue() {
    let record = at("oss/core/Record");
    let simple = at("oss/core/Mikrotik-Simple");
    for (name, _) in crate::event::CATALOGUE {
        let cmd = Cmd::parse(name).unwrap();
        assert!(record.steps(&cmd).is_some(), "{name}");
        let left_out = name.contains("negbal")
            || name.starts_with("usluga_act")
            || name.starts_with("usluga_deact")
            || *name == "users_from_nas";
        assert_eq!(simple.steps(&cmd).is_none(), left_out, "{name}");
    }
    assert!(silent(record).own_cmds().is_empty());
}

#[test]
fn every_mistake_is_found_with_its_line() {
    let text = r#"driver = "mikrotik"
colour = "red"
shell = "tcsh"
[vars]
a = "{{ b }}"
b = "x"
cmd = "y"
[[on.user_add]]
ensure = "/queue/simple"
where = { name = "crb_{{ user_id|nosuch }}" }
sett = { target = "x" }
[[on.user_add]]
absent = "/queue/simple"
[[on.user_add]]
ensure = "/queue/simple"
absent = "/queue/simple"
where = { name = "x" }
[[on.user_add]]
when = "user_id =="
read = "/ppp/active"
[[on.user_add]]
read = "/ppp/active"
ok_on = ["(unclosed"]
[[on.user_add]]
assert = "later.ok"
[[on.user_add]]
read = "/ppp/active"
save = "later"
[[on.user_add]]
run = "nowhere"
[[on.user_add]]
each = "a of b"
read = "/ppp/active"
[[on.user_add]]
exec = ["reboot"]
[[on.user_add]]
pause = "6s"
read = "/ppp/active"
[[on.user_add]]
absent = "/ppp/active"
where = { name = "x" }
match = { name = "[" }
at_most = 0
[[on.user_add]]
read = "/ppp/active where"
[[on.user_add]]
nothing = 1
[[on.user_info]]
absent = "/ppp/active"
where = { name = "x" }
[[on.User]]
answer = "x"
[on.user_del]
answer = "x"
[[part.one]]
run = "two"
[[part.two]]
run = "one"
[[on.user_edit]]
run = "one"
[[on.user_edit]]
disconnect = { Reply-Message = "x" }
[[on.user_edit]]
answer = "{{ nas.id }"
"#;
    let findings = parse(text).unwrap_err();
    for (line, part) in [
        (2, "unknown key `colour`"),
        (3, "unknown shell"),
        (7, "[vars] cannot define `cmd`"),
        (5, "`b` is not a well-known name"),
        (10, "unknown filter `nosuch`"),
        (11, "unknown key `sett`"),
        (12, "`absent` without `where`"),
        (14, "several kinds: ensure, absent"),
        (19, "is not an expression"),
        (23, "is not a regular expression"),
        (24, "used before a step saves it"),
        (29, "no part and no command \"nowhere\""),
        (32, "has no ` in `"),
        (34, "`exec` is impossible with driver mikrotik"),
        (37, "at most 5s"),
        (42, "`match` of `name`"),
        (43, "`at_most` is of type integer"),
        (45, "is not a path of RouterOS"),
        (46, "the step has no kind"),
        (48, "interactive commands only look"),
    ] {
        let hit = findings
            .iter()
            .any(|f| f.line == line && f.to_string().contains(part));
        assert!(hit, "line {line}: {part}\n{findings:#?}");
    }
    for part in [
        "does not match ^[a-z]",
        "write [[on.user_del]]",
        "`run` goes in a circle",
        "names no session",
        "is not a template",
    ] {
        assert!(
            findings.iter().any(|f| f.to_string().contains(part)),
            "{part}\n{findings:#?}"
        );
    }
    assert!(
        findings
            .iter()
            .all(|f| f.file.ends_with(FILE) && !f.hint.is_empty())
    );
}

#[test]
fn more_mistakes() {
    for (text, part) in [
        (
            "driver = \"ssh\"\n[[on.user_add]]\nensure = \"/queue/simple\"\nwhere = { name = \"x\" }\n",
            "impossible with driver ssh",
        ),
        (
            "driver = \"ssh\"\n[[on.user_add]]\nexec = [\"echo '{{ ip }}'\"]\n",
            "a value inside quotes",
        ),
        (
            "driver = \"ssh\"\n[[on.user_add]]\nexec = [\"sh -c {{ ip }}\"]\n",
            "reads twice",
        ),
        (
            "driver = \"ssh\"\n[[on.user_add]]\nexec = [\"echo $(( {{ ip }} ))\"]\n",
            "substitution",
        ),
        (
            "driver = \"fax\"\n[[on.user_add]]\nanswer = \"x\"\n",
            "unknown driver",
        ),
        ("[[on.user_add]]\nanswer = \"x\"\n", "has no `driver`"),
        ("driver = \"record\"\n", "defines no command"),
        ("driver = \"record\"\n[[on.user_add]\n", "scheme.toml:2"),
        (
            "driver = \"record\"\nexit = { done = [0, 143] }\n[[on.user_add]]\nanswer = \"x\"\n",
            "143 is in `done` and in `defer`",
        ),
        (
            "driver = \"mikrotik\"\nown = { comment = \"x\" }\n[[on.user_add]]\nensure = \"/queue/simple\"\nwhere = { name = \"x\" }\nset = { comment = \"y\" }\n",
            "in `own` and in `set`",
        ),
        (
            "driver = \"record\"\n[[on.user_add]]\nrun = \"a\"\n[[part.a]]\nrun = \"b\"\n[[part.b]]\nrun = \"c\"\n[[part.c]]\nrun = \"d\"\n[[part.d]]\nanswer = \"x\"\n",
            "deeper than 3",
        ),
        (
            "driver = \"record\"\n[[on.user_add]]\nread = \"/ppp/active\"\nsave = \"ip\"\n",
            "cannot bind",
        ),
    ] {
        let findings = parse(text).unwrap_err();
        assert!(
            findings.iter().any(|f| f.to_string().contains(part)),
            "{part}: {findings:#?}"
        );
    }
    let scheme = parse("driver = \"record\"\n[[on.user_rediret]]\nwhen = \"accept\"\nanswer = \"{{ colour }}\"\n[[part.idle]]\nanswer = \"x\"\n").unwrap();
    let text: Vec<_> = scheme.warnings().iter().map(ToString::to_string).collect();
    let text = text.join("\n");
    for part in [
        "is `user_redirect` meant?",
        "does not compare",
        "`colour` is not a well-known",
        "part `idle` is never run",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert_eq!(silent(scheme).own_cmds().len(), 1);
}

#[test]
fn policy_and_identity() {
    let scheme = parse("driver = \"record\"\non_error = \"retry\"\nfresh = [\"acct_session_id\"]\nexit = { done = [1], defer = [75] }\n[[on.user_add]]\nanswer = \"x\"\n").unwrap();
    assert_eq!(scheme.fresh(), ["acct_session_id"]);
    let exec = silent(scheme);
    assert_eq!(exec.policy().done, BTreeSet::from([0, 1]));
    assert_eq!(exec.policy().defer, BTreeSet::from([75]));
    assert_eq!(exec.policy().on_error, Some(crate::nas::OnError::Retry));
    assert_eq!(
        (exec.identity().kind, exec.identity().hash.len()),
        ("native", 16)
    );
}

// --- ensure --------------------------------------------------------------------------------

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

// --- absent --------------------------------------------------------------------------------

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

// --- the shipped scheme as a whole ---------------------------------------------------------

#[tokio::test]
async fn a_change_of_address_leaves_nothing_of_the_old_one() {
    let scheme = at("oss/core/Mikrotik-Simple");
    let table = Mutex::new(Table::default());
    let mut old = account();
    old["redirect"] = json!(1);
    let mut new = old.clone();
    new["ip"] = json!("10.88.0.77");
    new["addresses"] = json!(["10.88.0.77"]);
    for (cmd, params) in [("user_add", &old), ("user_del", &old), ("user_add", &new)] {
        let (report, _) = run(&scheme, &job(cmd, params), &table).await;
        assert_eq!(report.verdict, Verdict::Done, "{cmd}");
    }
    let t = table.lock().unwrap();
    assert!(t.menus["/ipv6/firewall/address-list"].is_empty());
    let rows = &t.menus["/ip/firewall/address-list"];
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0]["list"].as_str(), rows[0]["address"].as_str()),
        ("crb_negbal", "10.88.0.77")
    );
    assert_eq!(t.menus["/queue/simple"][0]["target"], "10.88.0.77/32");
}

#[tokio::test]
async fn pairs_of_commands_undo_each_other_and_repeat_without_harm() {
    let scheme = at("oss/core/Mikrotik-Simple");
    for (give, take) in [
        ("user_redirect", "user_redirect_cancel"),
        ("user_drop", "user_accept"),
        ("own_disabled", "own_disabled_cancel"),
        ("b_sys", "u_b_sys"),
        ("b_admin", "u_b_admin"),
        ("user_auth", "user_disconnect"),
        ("usluga_add", "usluga_del"),
        ("user_rate_set", "user_rate_set_cancel"),
        ("user_edit", "user_del"),
    ] {
        let table = Mutex::new(Table::default());
        let mut params = account();
        params["usluga_id"] = json!("5");
        for cmd in [give, give, take, take] {
            let (report, sent) = run(&scheme, &job(cmd, &params), &table).await;
            assert_eq!(report.verdict, Verdict::Done, "{cmd}: {sent:?}");
            let t = table.lock().unwrap();
            let rows: usize = t.menus.values().map(Vec::len).sum();
            assert_eq!(rows == 0, cmd == take, "{cmd}: {:?}", t.menus);
        }
    }
}

#[tokio::test]
async fn a_fresh_redirect_is_one_sentence_per_address() {
    let scheme = at("oss/core/Mikrotik-Simple");
    let table = Mutex::new(Table::default());
    let (_, sent) = run(&scheme, &job("user_redirect", &account()), &table).await;
    assert_eq!(
        sent,
        [
            "/ip/firewall/address-list/add list=crb_negbal address=10.88.0.15 comment=crb_1424",
            "/ipv6/firewall/address-list/add list=crb_negbal address=2001:db8:1::/56 comment=crb_1424",
        ]
    );
}

#[tokio::test]
async fn settings_of_the_nas_override_vars() {
    let scheme = at("oss/core/Mikrotik-Simple");
    let table = Mutex::new(Table::default());
    table.lock().unwrap().put(
        "/ip/firewall/connection",
        &[("protocol", "tcp"), ("src-address", "10.88.0.15:99")],
    );
    let mut job = job("user_drop", &account());
    job.nas = Arc::new(nas(
        &json!({"prefix": "isp", "flush": "yes", "queue_before": "all"}),
    ));
    let (report, sent) = run(&scheme, &job, &table).await;
    assert_eq!(report.verdict, Verdict::Done);
    assert!(sent[0].contains("list=isp_blocked"), "{sent:?}");
    assert!(
        sent.last()
            .unwrap()
            .starts_with("/ip/firewall/connection/remove"),
        "{sent:?}"
    );
    job.cmd = Cmd::parse("user_add").unwrap();
    let (_, sent) = run(&scheme, &job, &table).await;
    assert!(sent[0].contains("place-before=all"), "{sent:?}");
}

#[tokio::test]
async fn diagnostics_answer() {
    let scheme = at("oss/core/Mikrotik-Simple");
    let table = Mutex::new(Table::default());
    {
        let mut t = table.lock().unwrap();
        t.put(
            "/ip/firewall/address-list",
            &[
                ("list", "crb_negbal"),
                ("address", "10.88.0.15"),
                ("comment", "crb_1424"),
            ],
        );
        t.put(
            "/ppp/active",
            &[
                ("name", "ivanov"),
                ("uptime", "1h2m"),
                ("address", "10.88.0.15"),
            ],
        );
        t.put(
            "/ip/arp",
            &[
                ("address", "10.88.0.15"),
                ("mac-address", "AA:BB:CC:00:11:22"),
                ("interface", "bridge"),
            ],
        );
        let row = |time: &str| [("time".to_owned(), time.to_owned())].into();
        t.replies.insert(
            "/ping".into(),
            crate::driver::Reply {
                rows: vec![
                    row("1ms"),
                    row("2ms"),
                    [("status".to_owned(), "timeout".to_owned())].into(),
                ],
                ..Default::default()
            },
        );
    }
    let answer = async |cmd: &str| {
        run(&scheme, &job(cmd, &account()), &table)
            .await
            .0
            .answer
            .unwrap()
    };
    assert_eq!(
        answer("user_test").await,
        "ping 10.88.0.15: 2 of 3 answered"
    );
    assert_eq!(answer("user_get_mac").await, "AA:BB:CC:00:11:22");
    let info = answer("user_info").await;
    for part in [
        "list crb_negbal: 10.88.0.15",
        "queue: none",
        "ppp: 10.88.0.15 for 1h2m",
        "arp: AA:BB:CC:00:11:22 on bridge",
    ] {
        assert!(info.contains(part), "{part}\n{info}");
    }
}

// --- walking -------------------------------------------------------------------------------

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
        "[[on.user_add]]\nrequest = { method = \"PUT\", path = \"/u/{{ login }}\", headers = { X-Id = \"{{ user_id }}\" }, json = { rate = \"{{ ceil_in|kbit }}\", on = true, who = \"u {{ login }}\" } }\n[[on.user_del]]\ncoa = { User-Name = \"{{ login }}\" }\n",
    );
    let mut job = job("user_add", &json!({"login": "a/../b", "ceil_in": 1000}));
    assert_eq!(
        scheme.render_dry(&job).await.unwrap().unwrap(),
        [
            r#"send_http_cmd --nas 1 PUT /u/a%2F..%2Fb -H 'X-Id: 1424' --json '{"rate":1000,"on":true,"who":"u a/../b"}'"#
        ]
    );
    job.cmd = Cmd::parse("user_del").unwrap();
    let table = Mutex::new(Table::default());
    let (report, _) = run(&scheme, &job, &table).await;
    assert!(failure(&report).text.contains("driver radius comes later"));
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
