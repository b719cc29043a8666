//! `send_mikrotik_cmd` against the simulator: rows found by their marks, the original's error
//! line and exit codes. No database but for `--nas`.

use nas_event_daemon::sim::mikrotik::Faults;
use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::{LOGIN, PASSWORD, Router};
use crate::{Said, command, finished, named};

on_each_store!(settings_come_from_the_database);

const NAME: &str = "send_mikrotik_cmd";

fn router(faults: Faults) -> (tempfile::TempDir, Router) {
    let dir = tempfile::tempdir().unwrap();
    let router = Router::start(dir.path(), "router", faults);
    let queue = |name: &str, comment: &str| json!({"name": name, "target": "10.88.0.15/32", "comment": comment});
    let state = json!({ "/queue/simple": [queue("a", "crb_10.88.0.15"), queue("b", "crb_10.88.0.15"), queue("c", "")] });
    router.sim.load(&state).unwrap();
    (dir, router)
}

async fn send(router: &Router, password: &str, words: &[&str]) -> Said {
    let port = router.sim.addr().port().to_string();
    let to = ["--port", &port, "-s", "127.0.0.1", LOGIN, password];
    finished(command(NAME, &[&to[..], words].concat()), "").await
}

fn names(router: &Router) -> Vec<String> {
    let rows = router.sim.rows("/queue/simple");
    rows.iter().map(|row| row["name"].clone()).collect()
}

#[tokio::test]
async fn the_documented_call_removes_what_it_names() {
    let (_dir, router) = router(Faults::default());
    let words = ["/queue", "simple", "remove", "comment=crb_10.88.0.15"];
    assert_eq!(send(&router, PASSWORD, &words).await.fine(), "");
    assert_eq!(names(&router), ["c"]);
    // Nothing to remove is what was wanted.
    assert_eq!(send(&router, PASSWORD, &words).await.fine(), "");
    for words in [
        &["/queue", "simple", "remove", "comment="][..],
        &["/queue/simple/remove"],
        &["/queue/simple/remove", "?comment="],
    ] {
        let said = send(&router, PASSWORD, words).await;
        said.failed(
            249,
            &["ERROR: UnknownParameter message: '", "exit code: 249"],
        );
    }
    assert_eq!(
        names(&router),
        ["c"],
        "an empty value never widens a command"
    );
}

#[tokio::test]
async fn who_adds_what_is_there_gets_it_as_given() {
    let (_dir, router) = router(Faults::default());
    let add = |more: &'static str| {
        let words = ["/queue/simple/add", "name=c", "target=10.0.0.9/32", more];
        let router = &router;
        async move { send(router, PASSWORD, &words).await }
    };
    assert_eq!(add("comment=crb_7").await.fine(), "");
    assert_eq!(names(&router), ["a", "b", "c"]);
    let row = &router.sim.rows("/queue/simple")[2];
    assert_eq!(
        (&*row["target"], &*row["comment"]),
        ("10.0.0.9/32", "crb_7")
    );
    let list = |address: &'static str| {
        let path = "/ip/firewall/address-list/add";
        let words = [path, "list=negbal", address, "comment=crb_8"];
        let router = &router;
        async move { send(router, PASSWORD, &words).await }
    };
    assert!(list("address=10.0.0.8").await.fine().starts_with("ret=*"));
    assert_eq!(list("address=10.0.0.8").await.fine(), "");
    assert_eq!(router.sim.rows("/ip/firewall/address-list").len(), 1);
    // Other words for the same, and words that only an `add` knows.
    let secret = |more: &'static str| {
        let words = ["/ppp/secret/add", "name=ivanov", more];
        let router = &router;
        async move { send(router, PASSWORD, &words).await }
    };
    assert!(secret("password=a").await.fine().starts_with("ret=*"));
    assert_eq!(secret("password=b").await.fine(), "");
    assert_eq!(&*router.sim.rows("/ppp/secret")[0]["password"], "b");
    assert_eq!(add("place-before=*1").await.fine(), "");
    // What is wrong with the words stays an error.
    add("max-limit=much").await.failed(249, &["exit code: 249"]);
}

#[tokio::test]
async fn rows_are_printed_added_and_set() {
    let (_dir, router) = router(Faults::default());
    let add = [
        "/queue/simple/add",
        "name=d",
        "target=10.0.0.9/32",
        "comment=two words",
    ];
    let out = send(&router, PASSWORD, &add).await.fine();
    assert!(out.starts_with("ret=*"), "{out}");
    let set = ["/queue", "simple", "set", "name=d", "max-limit=1M/2M"];
    assert_eq!(send(&router, PASSWORD, &set).await.fine(), "");
    let print = [
        "/queue/simple/print",
        "?name=d",
        ".proplist=name,max-limit,comment",
    ];
    assert_eq!(
        send(&router, PASSWORD, &print).await.fine(),
        "comment=two words\nmax-limit=1000000/2000000\nname=d\n"
    );
    let both = [
        "/queue/simple/print",
        "?comment=crb_10.88.0.15",
        ".proplist=name",
    ];
    assert_eq!(
        send(&router, PASSWORD, &both).await.fine(),
        "name=a\n\nname=b\n"
    );
    let none = ["/queue", "simple", "set", "name=zz", "max-limit=1M/2M"];
    send(&router, PASSWORD, &none)
        .await
        .failed(1, &["ERROR: Trap message: 'no such item'"]);
    let dry = [
        "--dry-run",
        "/queue",
        "simple",
        "add",
        "name=e f",
        "password=servicemode",
    ];
    assert_eq!(
        send(&router, PASSWORD, &dry).await.fine(),
        "/queue/simple/add 'name=e f' 'password=***'\n"
    );
    assert_eq!(names(&router), ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn failures_have_the_originals_line_and_code() {
    let (_dir, router) = router(Faults::default());
    let bad = [
        "/queue/simple/add",
        "name=x",
        "target=10.0.0.9/32",
        "no-such-thing=1",
    ];
    let said = send(&router, PASSWORD, &bad).await;
    said.failed(
        249,
        &[
            "ERROR: UnknownParameter message: 'unknown parameter",
            "command: '/queue/simple/add",
        ],
    );
    assert!(said.err.ends_with("exit code: 249\n"), "{said:?}");
    send(&router, PASSWORD, &["/no/such/print"])
        .await
        .failed(249, &["exit code: 249"]);
    let gone = ["/queue/simple/set", ".id=*FFFF", "target=10.0.0.9/32"];
    send(&router, PASSWORD, &gone)
        .await
        .failed(1, &["ERROR: Trap message: '", "exit code: 1"]);
    let said = send(&router, "not-this-one", &["/system/identity/print"]).await;
    said.failed(1, &["ERROR: LoginError message: '", "exit code: 1"]);
    assert!(!said.err.contains("not-this-one"), "{said:?}");
    finished(command(NAME, &["-s", "127.0.0.1", "a"]), "")
        .await
        .failed(249, &["LOGIN"]);
    // Taken for a login, it would make a word of the command of the password.
    let misplaced = [
        "-s",
        "127.0.0.1",
        "--port",
        "1",
        "login",
        "pa55word",
        "/x/print",
    ];
    let said = finished(command(NAME, &misplaced), "").await;
    said.failed(249, &["--port stands where the words of -s are expected"]);
    assert!(!said.err.contains("pa55word"), "{said:?}");
    finished(
        command(
            NAME,
            &["--port", "1", "-s", "127.0.0.1", "a", "b", "/x/print"],
        ),
        "",
    )
    .await
    .failed(
        254,
        &["ERROR: ConnectionError message: '", "exit code: 254"],
    );
    router.sim.set_faults(Faults {
        latency_ms: 60_000,
        ..Faults::default()
    });
    let late = ["--timeout", "300ms", "/system/identity/print"];
    send(&router, PASSWORD, &late)
        .await
        .failed(254, &["exit code: 254"]);
}

async fn settings_come_from_the_database(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 1116, "Mikrotik-Simple", 2).await;
    let words = ["--nas", "1116", "/system/identity/print"];
    let said = named(&lab, NAME, &words, "").await.fine();
    assert!(said.starts_with("name="), "{said}");
    let unknown = ["--nas", "99", "/system/identity/print"];
    named(&lab, NAME, &unknown, "")
        .await
        .failed(249, &["there is no NAS 99"]);
}
