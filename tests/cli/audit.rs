//! What the command line changes is in the audit: who, what, and with what; what only looks or
//! counts is not.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, ned};

on_each_store!(what_the_command_line_changes_is_in_the_audit);

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
    let copy = lab.path("copy.db").display().to_string();
    let prune = ["logs", "prune", "--older-than", "400d"];
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
            &["token", "revoke", "shop"],
            Some("token_revoke"),
            &["name=shop"],
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
