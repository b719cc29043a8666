//! Bad inputs: an exit code, a text with the place, the reason and a hint, and nothing half
//! started: no socket, no pid file, no ownership, no port taken.

use std::path::Path;

use sqlx::Connection as _;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, Said, named, ned};

on_each_store!(
    a_wrong_configuration_is_told_with_its_place,
    a_billing_that_lacks_a_column_is_told_by_name,
    a_port_in_use_starts_nothing,
    a_run_directory_of_another_daemon_starts_nothing,
    a_second_daemon_names_the_first,
    a_bad_nas_or_scheme_hurts_that_nas_alone,
);

fn nothing_is_left(lab: &Lab, said: &Said) {
    let run = lab.path("run");
    for name in ["ctl.sock", "nas_event_daemon.pid", "session.sock"] {
        assert!(!run.join(name).exists(), "{name} is left: {said:?}");
    }
}

async fn nobody_owns(lab: &Lab) {
    let held = lab
        .number("select count(*) from owner where holder <> ''")
        .await;
    assert_eq!(held, 0, "the ownership was kept");
}

async fn a_wrong_configuration_is_told_with_its_place(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let file = lab.path("bad.toml");
    let path = file.display().to_string();
    let table = [
        (
            "[dispatch]\nmax_trys = 3\n",
            ":2:1: unknown field `max_trys`",
        ),
        ("[dispatch]\nmax_tries = \"3\"\n", ":2:13: invalid type"),
        ("[dispatch]\npoll_interval = 50\n", ":2:"),
        ("[dispatch\n", ":1:"),
        (
            "[http]\nlisten = [\"here\"]\n",
            ": http.listen: \"here\" is not address:port",
        ),
        (
            "[http]\nopen_from = [\"10.0.0.0/8\"]\n",
            "is wider than /24",
        ),
        (
            "[database]\nurl = \"mysql://x\"\n",
            ": database.url: is neither",
        ),
        ("[dispatch]\nmax_tries = 0\n", "is outside 1..1000"),
    ];
    for (text, told) in table {
        std::fs::write(&file, text).unwrap();
        for verb in [
            &["run"][..],
            &[],
            &["config", "check"],
            &["event", "list"],
            &["nas", "list"],
        ] {
            let args = [&["--config", &path][..], verb].concat();
            let said = ned(&lab, &args).await;
            said.failed(3, &[&path, told, "\nhint: "]);
            assert_eq!(said.out, "", "{said:?}");
            nothing_is_left(&lab, &said);
        }
        named(&lab, "event_count.sh", &["--config", &path], "")
            .await
            .failed(3, &[told]);
        named(&lab, "sqlexec", &["--config", &path, "select 1"], "")
            .await
            .failed(3, &[told]);
    }
    ned(&lab, &["--config", "/no/such/file"])
        .await
        .failed(3, &["/no/such/file: cannot be read"]);
    nobody_owns(&lab).await;
}

/// Runs the daemon and the tools with another database.
async fn with_database(lab: &Lab, url: &str) -> Vec<Said> {
    let text = std::fs::read_to_string(lab.path("ned.toml")).unwrap();
    let file = lab.path("other.toml");
    std::fs::write(&file, text.replace(&lab.db.url, url)).unwrap();
    let path = file.display().to_string();
    let mut all = Vec::new();
    for verb in [
        &["run"][..],
        &["event", "list"],
        &["stack", "count"],
        &["config", "check"],
    ] {
        all.push(ned(lab, &[&["--config", &path][..], verb].concat()).await);
    }
    all.push(named(lab, "event_count.sh", &["--config", &path], "").await);
    all
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_4() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let garbage = lab.path("garbage.db");
    std::fs::write(
        &garbage,
        "this is no database at all, only some text".repeat(200),
    )
    .unwrap();
    std::fs::create_dir(lab.path("directory.db")).unwrap();
    let urls = [
        format!("sqlite://{}", garbage.display()),
        format!("sqlite://{}", lab.path("directory.db").display()),
        format!("sqlite://{}", lab.path("no/such/dir/ned.db").display()),
        "postgres://nobody:s3cret@127.0.0.1:1/none".to_owned(),
    ];
    for url in urls {
        for said in with_database(&lab, &url).await {
            said.failed(4, &["hint: "]);
            assert!(!said.err.contains("s3cret"), "{said:?}");
            nothing_is_left(&lab, &said);
        }
    }
    // A tool never makes a database that is not there.
    let missing = lab.path("missing.db");
    let url = format!("sqlite://{}", missing.display());
    let file = lab.path("missing.toml");
    let text = std::fs::read_to_string(lab.path("ned.toml")).unwrap();
    std::fs::write(&file, text.replace(&lab.db.url, &url)).unwrap();
    let path = file.display().to_string();
    ned(&lab, &["--config", &path, "nas", "list"])
        .await
        .failed(4, &["there is no such file"]);
    let check = ned(&lab, &["--config", &path, "config", "check"])
        .await
        .fine();
    assert!(check.contains("not there yet"), "{check}");
    assert!(!missing.exists());
}

async fn a_billing_that_lacks_a_column_is_told_by_name(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.sql("drop view event_params").await;
    lab.sql("create view event_params as select id as user_id, nas_id, login from users")
        .await;
    for verb in [&["run"][..], &["config", "check"]] {
        let said = ned(&lab, verb).await;
        said.failed(3, &["event_params.abonent_id is missing", "\nhint: "]);
        nothing_is_left(&lab, &said);
    }
    nobody_owns(&lab).await;
    lab.sql("drop view event_params").await;
    ned(&lab, &["run"])
        .await
        .failed(3, &["event_params is missing"]);
}

async fn a_port_in_use_starts_nothing(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let _taken = std::net::TcpListener::bind(("127.0.0.1", lab.port)).unwrap();
    let said = ned(&lab, &["run"]).await;
    said.failed(
        3,
        &["http.listen", &lab.port.to_string(), "in use", "\nhint: "],
    );
    nothing_is_left(&lab, &said);
    nobody_owns(&lab).await;
}

async fn a_run_directory_of_another_daemon_starts_nothing(kind: Kind) {
    let first = Lab::new(Kind::Sqlite, "").await;
    let daemon = first.start().await;
    let second = Lab::new(kind, "").await;
    let text = std::fs::read_to_string(second.path("ned.toml")).unwrap();
    let run = |lab: &Lab| lab.path("run").display().to_string();
    std::fs::write(
        second.path("ned.toml"),
        text.replace(&run(&second), &run(&first)),
    )
    .unwrap();
    ned(&second, &["run"])
        .await
        .failed(3, &["another daemon listens on", "\nhint: "]);
    nobody_owns(&second).await;
    assert!(
        Path::new(&run(&first)).join("ctl.sock").exists(),
        "the first one's socket stays"
    );
    ned(&first, &["health"]).await.fine();
    daemon.stop().await;
}

async fn a_second_daemon_names_the_first(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let daemon = lab.start().await;
    let text = std::fs::read_to_string(lab.path("ned.toml")).unwrap();
    let run = lab.path("run").display().to_string();
    let other = lab.path("second").display().to_string();
    let port = format!("127.0.0.1:{}", lab.port);
    let text = text.replace(&run, &other).replace(&port, "127.0.0.1:0");
    let file = lab.path("second.toml");
    std::fs::write(&file, text).unwrap();
    let said = ned(&lab, &["--config", &file.display().to_string(), "run"]).await;
    said.failed(
        6,
        &["is owned by", &format!("pid={}", daemon.pid), "\nhint: "],
    );
    assert!(!lab.path("second/ctl.sock").exists());
    ned(&lab, &["health"]).await.fine();
    daemon.stop().await;
}

async fn a_bad_nas_or_scheme_hurts_that_nas_alone(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.native("Bad", "driver = \"record\"\nunknown_key = 1\n");
    lab.nas(1, RECORD, 2, &[]).await;
    lab.nas(2, "Bad", 2, &[]).await;
    lab.nas(3, RECORD, 2, &[("on_error", "'panic'".into())])
        .await;
    lab.nas(4, "../../etc", 2, &[]).await;
    lab.accounts(1, [1]).await;
    lab.accounts(2, [2]).await;
    let daemon = lab.start().await;
    for (nas, reason) in [
        (2, "scheme.toml:2: error:"),
        (3, "on_error is 'panic'"),
        (4, "may not contain '..'"),
    ] {
        let line = lab.said(&format!("Skip nas nasid={nas} ")).await;
        assert!(line.contains("reason=") && line.contains(reason), "{line}");
    }
    let waits = lab.event(2, "user_add").await;
    let done = [
        "event", "post", "--user", "1", "--cmd", "user_add", "--follow",
    ];
    assert!(ned(&lab, &done).await.fine().contains("result=done"));
    let shown = ned(&lab, &["event", "show", &waits.to_string()])
        .await
        .fine();
    assert!(shown.contains("NAS 2 is not served: "), "{shown}");
    daemon.stop().await;
}

/// A prompt with an open transaction, or a daemon that was stopped within one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_database_is_waited_for_and_told() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.nas(5, RECORD, 1, &[]).await;
    lab.accounts(5, [1]).await;
    let mut holder = sqlx::SqliteConnection::connect(&lab.db.url).await.unwrap();
    sqlx::raw_sql("begin immediate")
        .execute(&mut holder)
        .await
        .unwrap();
    let post = ["event", "post", "--user", "1", "--cmd", "user_add"];
    ned(&lab, &post).await.failed(
        4,
        &[
            "database is locked",
            "hint: another process holds",
            "kill -CONT",
        ],
    );
    let mut daemon = lab.spawn();
    lab.said("the database has been locked for").await;
    assert!(daemon.child.try_wait().unwrap().is_none(), "it waits");
    sqlx::raw_sql("rollback")
        .execute(&mut holder)
        .await
        .unwrap();
    lab.until("it works as soon as it can", async || {
        lab.is_up().await.then_some(())
    })
    .await;
    let id = lab.event(1, "user_add").await;
    assert_eq!(lab.ended(id).await, ("done".into(), "done".into()));
    daemon.stop().await;
}
