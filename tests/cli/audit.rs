//! What the command line changes is in the audit: who, what, and with what; what only looks or
//! counts is not.

use std::path::PathBuf;
use std::time::Duration;

use nas_event_daemon::sim::ssh;
use serde_json::Value;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, ned};

on_each_store!(
    what_the_command_line_changes_is_in_the_audit,
    a_reload_is_in_the_audit_of_the_daemon_that_reads,
);

async fn audit(lab: &Lab) -> Vec<Value> {
    let rows = ned(lab, &["-o", "json", "audit", "--limit", "1000"]).await;
    rows.json().as_array().unwrap().clone()
}

/// Two logs of accounts, one of them old; their directory.
pub(crate) fn old_log(lab: &Lab) -> PathBuf {
    let dir = lab.path("log/abonents/1");
    std::fs::create_dir_all(&dir).unwrap();
    for (name, days) in [("event_1.log", 500), ("event_2.log", 1)] {
        let file = std::fs::File::create(dir.join(name)).unwrap();
        #[expect(clippy::disallowed_methods, reason = "the age of a file is the case")]
        let now = std::time::SystemTime::now();
        file.set_modified(now - Duration::from_secs(days * 86_400))
            .unwrap();
    }
    dir
}

async fn what_the_command_line_changes_is_in_the_audit(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [7]).await;
    old_log(&lab);
    // A NAS whose key is learned, events that the guard holds, one that is dead.
    let device = ssh::Sim::start(ssh::Options {
        password: "servicemode".to_owned(),
        ..ssh::Options::default()
    });
    let device = device.await.unwrap();
    let port = device.addr().port().to_string();
    let learned = [("ssh_port", port), ("ssh_host_key", "'tofu'".to_owned())];
    lab.nas(6, "Linux-SSH", 2, &learned).await;
    lab.secret(6, "admin", "servicemode").await;
    let held: Vec<String> = (900_001..=900_003)
        .map(|id| {
            format!("({id}, 'user_redirect', 7, 5, '{{}}', 2, '2026-01-01 00:00:00.000', 'held')")
        })
        .collect();
    lab.sql(&format!(
        "insert into events_stack (id, event_type, user_id, nas_id, params, class, event_date, state) values {};
         insert into events_dead (id, event_type, user_id, nas_id, class, event_date, reason) values
           (900010, 'user_add', 7, 5, 1, '2026-01-01 00:00:00', 'x'),
           (900011, 'user_add', 8, 5, 1, '2026-01-01 00:00:00', 'x'),
           (900012, 'user_add', 9, 5, 1, '2026-01-01 00:00:00', 'x')",
        held.join(", ")
    ))
    .await;
    let copy = lab.path("copy.db").display().to_string();
    let prune = ["logs", "prune", "--older-than", "400d"];
    let sheet = |name: &str, text: &str| {
        std::fs::write(lab.path(name), text).unwrap();
        lab.path(name).display().to_string()
    };
    let nases = sheet(
        "nas.csv",
        "id,name,ip,oss_path\n7,B7,10.0.0.7,Record\n8,B8,10.0.0.8,Record\n",
    );
    let accounts = sheet("accounts.csv", "id,nas_id,login\n70,7,u70\n");
    let dry = ["import", "nas", &nases, "--dry-run"];
    let import_nas = ["import", "nas", &nases];
    let import_accounts = ["import", "accounts", &accounts];
    // Verbs, the word of the audit (none = there is no row), parts of the detail.
    type Change<'a> = (&'a [&'a str], Option<&'a str>, &'a [&'a str]);
    let mut changes: Vec<Change<'_>> = vec![
        (
            &["token", "create", "shop", "--scope", "support"],
            Some("token_create"),
            &["name=shop scope=support"],
        ),
        (&["token", "list"], None, &[]),
        (
            &["token", "revoke", "shop", "--reason", "it leaked"],
            Some("token_revoke"),
            &["name=shop why=\"it leaked\""],
        ),
        // Before the posts below, which would be undone.
        (
            &["event", "retry", "900010", "--reason", "core is back"],
            Some("retry"),
            &["event=900010 as=", "why=\"core is back\""],
        ),
        (
            &[
                "guard", "allow", "--source", "crm", "--for", "1h", "--max", "9", "--reason",
                "tariffs",
            ],
            Some("guard allow"),
            &["batch=1 source=\"crm\"", "max=9 why=\"tariffs\""],
        ),
        (
            &[
                "event", "retry", "--state", "dead", "--user", "8", "--reason", "a try",
            ],
            Some("retry_many"),
            &["n=1 events=900011..900011 why=\"a try\""],
        ),
        (
            &["event", "drop", "--state", "dead", "-y", "--reason", "gone"],
            Some("drop_many"),
            &["n=1 events=900012..900012 why=\"gone\""],
        ),
        (&["guard", "list"], None, &[]),
        (
            &["guard", "revoke", "1", "--reason", "put off"],
            Some("guard revoke"),
            &["batch=1 why=\"put off\""],
        ),
        (
            &["guard", "deny", "900001", "--reason", "not meant"],
            Some("guard deny"),
            &["events=1 ", "ids=900001 why=\"not meant\""],
        ),
        (
            &["guard", "approve", "900002", "900003", "--reason", "meant"],
            Some("guard approve"),
            &["events=2 ", "ids=900002,900003 why=\"meant\""],
        ),
        (
            &["nas", "rekey", "6", "-y", "--reason", "new board"],
            Some("nas_rekey"),
            &["nas=6 was=\"none yet", "is=", "why=\"new board\""],
        ),
        (
            &["nas", "forks", "5", "7", "--reason", "evening"],
            Some("nas_forks"),
            &["nas=5 forks=7 why=\"evening\""],
        ),
        (
            &["nas", "pause", "5", "--reason", "firmware"],
            Some("nas_pause"),
            &["nas=5", "reason=\"firmware\""],
        ),
        (
            &["nas", "resume", "5", "--reason", "done"],
            Some("nas_resume"),
            &["nas=5 why=\"done\""],
        ),
        (
            &["nas", "mode", "5", "default", "--reason", "as planned"],
            Some("nas_mode"),
            &["nas=5 mode=default why=\"as planned\""],
        ),
        (
            &["nas", "activate", "5", "--reason", "night 3"],
            Some("nas_mode"),
            &["nas=5 mode=active why=\"night 3\""],
        ),
        (
            &["account", "resync", "7", "--reason", "he called"],
            Some("resync"),
            &[
                "batch=resync-user7-",
                "accounts=1 events=",
                "why=\"he called\"",
            ],
        ),
        (
            &[
                "db",
                "sql",
                "--write",
                "update users set login = 'a' where id = 7",
            ],
            Some("sql"),
            &["update users set login = 'a' where id = 7"],
        ),
        (
            &["event", "post", "--user", "7", "--cmd", "user_add"],
            Some("post"),
            &["event=", "cmd=user_add"],
        ),
        (&["event", "list"], None, &[]),
        (
            &["nas", "observe", "5"],
            Some("nas_mode"),
            &["nas=5 mode=observe"],
        ),
        (
            &["logs", "prune", "--older-than", "400d", "--dry-run"],
            None,
            &[],
        ),
        (&prune, Some("logs_prune"), &["files=1", "directories=0"]),
        // Nothing is left to remove.
        (&prune, None, &[]),
        (&dry, None, &[]),
        (&import_nas, Some("import"), &["what=nas added=2 changed=0"]),
        (
            &import_accounts,
            Some("import"),
            &["what=accounts added=1 changed=0"],
        ),
        // Nobody is there who could read anything.
        (&["nas", "reload", "--reason", "new card"], None, &[]),
    ];
    let restore = ["db", "restore", &copy, "-y"];
    let backup = ["db", "backup", &copy];
    match kind {
        Kind::Sqlite => {
            changes.push((&backup, Some("db_backup"), &["copy.db"]));
            changes.push((&restore, Some("db_restore"), &["copy.db"]));
        }
        Kind::Postgres => changes.push((&["db", "restored", "-y"], Some("db_restored"), &[])),
    }
    for (args, what, parts) in changes {
        let before = audit(&lab).await;
        ned(&lab, args).await.fine();
        let mut fresh = audit(&lab).await;
        fresh.retain(|row| !before.contains(row));
        let Some(what) = what else {
            assert_eq!(fresh, Vec::<Value>::new(), "{args:?}");
            continue;
        };
        // Each part of these is noted, too.
        for (many, part) in [
            ("resync", "post"),
            ("retry_many", "retry"),
            ("drop_many", "drop"),
        ] {
            if what == many {
                fresh.retain(|row| row["what"] != part);
            }
        }
        let [row] = fresh.as_slice() else {
            panic!("{args:?}: {fresh:?}")
        };
        let who = format!("cli:uid:{}", nix::unistd::getuid());
        assert_eq!(
            (&row["who"], &row["what"]),
            (&who.into(), &what.into()),
            "{args:?}"
        );
        let detail = row["detail"].as_str().unwrap();
        for part in parts {
            assert!(detail.contains(part), "{args:?}: {row}");
        }
    }
}

async fn a_reload_is_in_the_audit_of_the_daemon_that_reads(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let daemon = lab.start().await;
    let reloads = async || {
        let mut rows = audit(&lab).await;
        rows.retain(|row| row["what"] == "reload");
        rows
    };
    ned(&lab, &["nas", "reload", "--dry-run"]).await.fine();
    assert_eq!(reloads().await, Vec::<Value>::new());
    ned(&lab, &["nas", "reload", "--reason", "new card"])
        .await
        .fine();
    let rows = reloads().await;
    let [row] = rows.as_slice() else {
        panic!("{rows:?}")
    };
    let who = format!("uid:{}", nix::unistd::getuid());
    assert_eq!(
        (&row["who"], &row["detail"]),
        (&who.into(), &"why=\"new card\"".into())
    );
    daemon.kill_9().await;
}

/// Logs are pruned also where the database is away, which a full disk may be the reason of.
#[tokio::test]
async fn logs_are_pruned_without_a_database_and_that_is_said() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    old_log(&lab);
    let text = std::fs::read_to_string(lab.path("ned.toml")).unwrap();
    let elsewhere = lab.path("elsewhere.toml");
    std::fs::write(
        &elsewhere,
        text.replace(&lab.db.url, "sqlite:///nonexistent/x.db"),
    )
    .unwrap();
    let elsewhere = elsewhere.display().to_string();
    let args = [
        "--config",
        &elsewhere,
        "logs",
        "prune",
        "--older-than",
        "400d",
    ];
    let said = ned(&lab, &args).await;
    said.failed(
        0,
        &["the audit does not know of it", "there is no such file"],
    );
    assert!(!lab.path("log/abonents/1/event_1.log").exists());
}
