//! `--dry-run` of the verbs that make or end something: what would be done is said, and nothing is.

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::Router;
use crate::{RECORD, command, finished, ned};

on_each_store!(
    tokens_copies_and_schemes_are_only_spoken_of,
    a_test_and_a_reload_are_only_spoken_of,
    what_cannot_be_tried_refuses_the_flag,
);

async fn dry(lab: &Lab, words: &[&str], said: &[&str]) -> String {
    let tried = ned(lab, &[words, &["--dry-run"]].concat()).await;
    tried.failed(0, &[&["dry run: "], said].concat());
    tried.out
}

async fn tokens_copies_and_schemes_are_only_spoken_of(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let create = ["token", "create", "shop", "--scope", "viewer"];
    let out = dry(&lab, &create, &["shop (viewer)"]).await;
    assert_eq!(out, "", "no secret is made");
    // What would be refused is refused.
    ned(&lab, &["token", "revoke", "shop", "--dry-run"])
        .await
        .failed(5, &["no token named \"shop\""]);
    let wrong = ["token", "create", "a b", "--scope", "viewer", "--dry-run"];
    ned(&lab, &wrong).await.failed(2, &["the name of a token"]);
    ned(&lab, &create).await.fine();
    ned(&lab, &[&create[..], &["--dry-run"]].concat())
        .await
        .failed(6, &["exists already"]);
    dry(&lab, &["token", "revoke", "shop"], &["shop"]).await;
    let list = ned(&lab, &["token", "list"]).await.fine();
    assert!(list.contains("shop\tviewer"), "{list}");
    let noted = "select count(*) from audit where what like 'token%'";
    assert_eq!(lab.number(noted).await, 1);

    let copy = lab.path("copy.db").display().to_string();
    match kind {
        Kind::Sqlite => {
            let out = dry(&lab, &["db", "backup", &copy], &["nothing was copied"]).await;
            assert!(out.contains(&copy) && out.contains("bytes"), "{out}");
            let nowhere = lab.path("none/copy.db").display().to_string();
            ned(&lab, &["db", "backup", &nowhere, "--dry-run"])
                .await
                .failed(5, &["no directory"]);
        }
        Kind::Postgres => ned(&lab, &["db", "backup", &copy, "--dry-run"])
            .await
            .failed(6, &["pg_dump"]),
    }
    assert!(!lab.path("copy.db").exists());
    assert_eq!(
        lab.number("select count(*) from audit where what = 'db_backup'")
            .await,
        0
    );

    let new = ["scheme", "new", "Mine", "--kind", "ssh"];
    let out = dry(&lab, &new, &["nothing was made"]).await;
    let file = lab.path("oss/local/Mine/scheme.toml").display().to_string();
    assert!(out.lines().any(|line| line == file), "{out}");
    let copied = ["scheme", "new", "Mine", "--from", RECORD];
    dry(&lab, &copied, &["a copy of", "Record"]).await;
    let wrong = ["scheme", "new", "Mine", "--from", "No-Such", "--dry-run"];
    assert_eq!(ned(&lab, &wrong).await.code, 5);
    assert!(!lab.path("oss/local/Mine").exists());
    // The control: without the flag it is there.
    ned(&lab, &new).await.fine();
    assert!(lab.path("oss/local/Mine/scheme.toml").exists());
}

async fn a_test_and_a_reload_are_only_spoken_of(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Default::default());
    router.serve_as(&lab, 5, "Mikrotik-Simple", 2).await;
    lab.nas(6, RECORD, 2, &[]).await;
    let out = dry(&lab, &["nas", "test", "5"], &["nothing was sent"]).await;
    assert!(
        out.contains("log in by mikrotik") && out.contains("/system/identity/print"),
        "{out}"
    );
    // Nobody connects: where nobody listens, that is no matter.
    drop(router);
    dry(&lab, &["nas", "test", "5"], &["nothing was sent"]).await;
    ned(&lab, &["nas", "test", "5"])
        .await
        .failed(4, &["NED-0303"]);
    ned(&lab, &["nas", "test", "99", "--dry-run"])
        .await
        .failed(5, &["no NAS 99"]);
    // What sends nothing is as it is.
    let record = ned(&lab, &["nas", "test", "6", "--dry-run"]).await.fine();
    assert!(record.contains("sends nothing"), "{record}");

    dry(&lab, &["nas", "reload"], &["nobody would be told"]).await;
    let daemon = lab.start().await;
    lab.nas(7, RECORD, 2, &[]).await;
    dry(&lab, &["nas", "reload"], &["would read the settings"]).await;
    let noted = "select count(*) from audit where what = 'reload'";
    assert_eq!(lab.number(noted).await, 0);
    ned(&lab, &["nas", "reload"]).await.fine();
    lab.said("Start work with nas nasid=7").await;
    assert_eq!(lab.number(noted).await, 1);
    daemon.kill_9().await;
}

async fn what_cannot_be_tried_refuses_the_flag(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let bundle = lab.path("bundle.txt").display().to_string();
    let man = lab.path("man").display().to_string();
    for words in [
        &["run"][..],
        &["demo", "--once"],
        &["doctor", "--bundle", &bundle],
        &["sim", "mikrotik"],
        &["man", &man],
        &["scheme", "test", RECORD],
        &["db", "sql", "--write", "delete from users"],
    ] {
        ned(&lab, &[words, &["--dry-run"]].concat())
            .await
            .failed(2, &["has no --dry-run: nothing was done"]);
    }
    assert!(!lab.path("bundle.txt").exists() && !lab.path("man").exists());
}

#[tokio::test]
async fn a_first_configuration_is_shown_before_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("ned").display().to_string();
    let init = |more: &[&str]| {
        let words = [
            &["init", "--dir", &place, "--open-from", "127.0.0.1/32"][..],
            more,
        ]
        .concat();
        finished(command("nas_event_daemon", &words), "")
    };
    let said = init(&["--dry-run"]).await;
    said.failed(0, &["dry run: nothing was made"]);
    let file = format!("{place}/nas_event_daemon.toml");
    for part in [
        &format!("{file}: would be written:") as &str,
        "    open_from = [\"127.0.0.1/32\"]",
        &format!("{place}/log: would be made"),
        &format!("sqlite://{place}/nas_event_daemon.db: would be made"),
    ] {
        assert!(said.out.contains(part), "{part} is not in {said:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // The environment counts as it will, and nobody reads a password.
    let url = |host: &str| format!("postgres://ned:canary-{host}@{host}/b?password=canary-{host}");
    let words = ["init", "--dir", &place, "--db", &url("first"), "--dry-run"];
    let mut both = command("nas_event_daemon", &words);
    both.env("NED_DATABASE__URL", url("second"));
    let said = finished(both, "").await;
    said.failed(0, &["is not shown here"]);
    for part in [
        "    url = \"postgres://ned@first/b\"",
        "\npostgres://ned@second/b: our tables",
    ] {
        assert!(said.out.contains(part), "{part} is not in {said:?}");
    }
    assert!(!format!("{said:?}").contains("canary"), "{said:?}");
    init(&[]).await.fine();
    let said = init(&["--dry-run"]).await;
    assert!(said.out.contains("is there, left as it is"), "{said:?}");
    assert!(!said.out.contains("would be made\n"), "{said:?}");
}
