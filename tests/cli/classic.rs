//! `event_count.sh` and `sqlexec`, under their classic names, to the byte.

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::{RECORD, finished, named, ned};

on_each_store!(
    both_stacks_are_counted_as_ever,
    sqlexec_prints_both_shapes,
    sqlexec_only_reads,
);

async fn both_stacks_are_counted_as_ever(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let header =
        "                COUNT EVENT_TYPE\n===================== ===============================\n";
    let empty = format!(
        "# compact stack\nTOTAL\n\n                COUNT\n=====================\n                    0\n\n# main stack\n\n{header}\n"
    );
    assert_eq!(named(&lab, "event_count.sh", &[], "").await.fine(), empty);
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [1, 2]).await;
    for (user, cmd) in [(1, "user_redirect"), (2, "user_redirect"), (1, "b_negbal")] {
        lab.sql(&format!(
            "insert into events_stack_compact (cmd, user_id) values ('{cmd}', {user})"
        ))
        .await;
    }
    let moved = lab.db.store.expand(100, &[]).await.unwrap();
    assert_eq!(moved.moved.len(), 3);
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_add', 1)")
        .await;
    let full = format!(
        "# compact stack\nTOTAL\n\n                COUNT\n=====================\n                    1\n\n# main stack\n\n{header}\
         \x20                   1 b_negbal\n                    2 user_redirect\n\n"
    );
    assert_eq!(named(&lab, "event_count.sh", &[], "").await.fine(), full);
    assert_eq!(
        ned(&lab, &["stack", "count", "--classic"]).await.fine(),
        full
    );
    assert_eq!(
        named(&lab, "event_count.sh", &["--by-nas"], "")
            .await
            .fine(),
        "5\tready\t3\n"
    );
    let rows = named(&lab, "event_count.sh", &["-o", "json"], "")
        .await
        .json();
    assert_eq!(rows[0]["stack"], "compact");
    assert_eq!(
        ned(&lab, &["stack", "count"]).await.fine(),
        "compact\t\t1\nmain\tb_negbal\t1\nmain\tuser_redirect\t2\ndead\t\t0\n"
    );
    assert_eq!(
        ned(&lab, &["stack", "count", "--by", "nas"]).await.fine(),
        "5\tready\t3\n"
    );
    assert_eq!(
        ned(&lab, &["-o", "jsonl", "stack", "count", "--by", "cmd"])
            .await
            .fine(),
        "{\"cmd\":\"b_negbal\",\"count\":1}\n{\"cmd\":\"user_redirect\",\"count\":2}\n"
    );
    // The script finds the binary by NED_BIN and keeps the name.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/event_count.sh");
    #[expect(clippy::disallowed_methods, reason = "the shipped script is a program")]
    let mut script = tokio::process::Command::new(path);
    script
        .env("NED_BIN", env!("CARGO_BIN_EXE_nas_event_daemon"))
        .env("NED_CONFIG", lab.path("ned.toml"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    assert_eq!(finished(script, "").await.fine(), full);
}

async fn sqlexec_prints_both_shapes(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(1112, RECORD, 2, &[]).await;
    lab.accounts(1112, [7, 8]).await;
    lab.sql("update users set mac = null, login = 'it''s' where id = 7")
        .await;
    let list = "set list; select id, mac, login from users u where nas_id=1112 order by id";
    let expected = "\nID                              7\n\
                    MAC                             <null>\n\
                    LOGIN                           it's\n\n\
                    ID                              8\n\
                    MAC                             <null>\n\
                    LOGIN                           login8\n\n";
    let said = named(&lab, "sqlexec", &[list], "").await.fine();
    assert_eq!(said, expected);
    // As the documentation of the original picks ids out: awk '$2{print $2}'.
    let ids: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("ID "))
        .map(str::trim)
        .collect();
    assert_eq!(ids, ["7", "8"]);
    let on = "set list on;\nselect id, mac, login from users where nas_id = 1112 order by id;\n";
    assert_eq!(named(&lab, "sqlexec", &[], on).await.fine(), expected);
    let file = lab.path("q.sql");
    std::fs::write(&file, on).unwrap();
    let file = file.display().to_string();
    assert_eq!(
        named(&lab, "sqlexec", &["-f", &file], "").await.fine(),
        expected
    );
    assert_eq!(ned(&lab, &["db", "sql", list]).await.fine(), expected);
    assert_eq!(
        named(
            &lab,
            "sqlexec",
            &["select id, login from users order by id"],
            ""
        )
        .await
        .fine(),
        "\n                   ID LOGIN\n===================== ======\n\
         \x20                   7 it's\n                    8 login8\n\n"
    );
    assert_eq!(
        named(&lab, "sqlexec", &["select id from users where id = 99"], "")
            .await
            .fine(),
        ""
    );
}

async fn sqlexec_only_reads(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.secret(5, "admin", "servicemode").await;
    lab.accounts(5, [7]).await;
    for change in [
        "delete from users",
        "with x as (select 1) delete from users",
        "pragma query_only = off; delete from users",
        "pragma journal_mode(delete)",
        "set default_transaction_read_only = off; delete from users",
    ] {
        let said = named(&lab, "sqlexec", &[change], "").await;
        assert_eq!(said.code, 1, "{change}: {said:?}");
    }
    assert_eq!(lab.number("select count(*) from users").await, 1);
    for secret in [
        "select password from nas_secret",
        "select hash from \"token\"",
    ] {
        let said = named(&lab, "sqlexec", &[secret], "").await;
        said.failed(1, &["never readable"]);
        assert!(!said.out.contains("servicemode"));
    }
    named(&lab, "sqlexec", &["select nope from users"], "")
        .await
        .failed(1, &["nope"]);
    named(&lab, "sqlexec", &["selekt 1"], "")
        .await
        .failed(1, &["only select"]);
    let write = ["--write", "update users set login = 'x' where id = 7"];
    named(&lab, "sqlexec", &write, "")
        .await
        .failed(0, &["1 rows changed"]);
    assert_eq!(lab.rows("select login from users").await, [["x"]]);
    let audit = lab
        .rows("select who, detail from audit where what = 'sql'")
        .await;
    assert!(
        audit[0][0].starts_with("cli:") && audit[0][1].contains("update users"),
        "{audit:?}"
    );
    // Noted before it runs, and how it ended if it failed; what is refused for its words is not.
    for failing in [
        "update users set login = 'y' where nope = 7",
        "update nas_secret set password = 'geheim'",
    ] {
        let said = named(&lab, "sqlexec", &["--write", failing], "").await;
        assert_eq!(said.code, 1, "{said:?}");
    }
    let audit = lab
        .rows("select what, detail from audit where what like 'sql%' order by id")
        .await;
    assert_eq!(audit.len(), 3, "{audit:?}");
    assert_eq!(audit[1][0], "sql");
    assert!(audit[1][1].contains("where nope = 7"), "{audit:?}");
    assert_eq!(audit[2][0], "sql_failed");
    assert!(audit[2][1].contains("nope"), "{audit:?}");
    // An audit that takes no such row hides nothing.
    lab.sql(match kind {
        Kind::Sqlite => {
            "create trigger no_room before insert on audit when new.what = 'sql_failed'
             begin select raise(abort, 'no_room'); end"
        }
        Kind::Postgres => {
            "alter table audit add constraint no_room check (what <> 'sql_failed') not valid"
        }
    })
    .await;
    let failing = ["--write", "update users set login = 'y' where nope = 7"];
    named(&lab, "sqlexec", &failing, "")
        .await
        .failed(1, &["not in the audit", "no_room", "nope"]);
}
