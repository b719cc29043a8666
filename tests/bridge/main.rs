//! The bridge between real foreign databases (Firebird, MariaDB, PostgreSQL) and the daemon: what
//! a row becomes, what it hears of its event, and that a bridge which is killed between posting
//! and taking loses nothing and doubles nothing.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod peers;

use std::collections::BTreeSet;
use std::process::Stdio;

use lab::daemon::{Lab, PATIENCE};
use lab::db::Kind;
use peers::{Peer, Which};

/// Rows that are there while bridges are killed, and rows of one turn.
const ROWS: i64 = 120;
const BATCH: i64 = 15;
/// Bridges that are killed at least, and of them between posting and taking; more are tried until
/// so many were.
const KILLS: usize = 3;
const BETWEEN: usize = 2;
const KILLS_MAX: usize = 200;

macro_rules! of_each_source {
    ($($name:ident),* $(,)?) => {
        mod firebird {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Which::Firebird).await; })*
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Which::Mariadb).await; })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Which::Postgres).await; })*
        }
    };
}

of_each_source!(
    rows_become_events_and_hear_of_them,
    killed_between_posting_and_taking_it_loses_and_doubles_nothing,
    killed_between_posting_and_marking_it_loses_and_doubles_nothing,
    a_source_that_is_away_is_named_and_asked_again,
    nases_and_accounts_are_brought_from_it,
);

fn bridge(lab: &Lab, args: &[&str]) -> tokio::process::Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test is a program"
    )]
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_nas_event_daemon"));
    command
        .args(["bridge", "--map"])
        .arg(lab.path("bridge.toml"))
        .args(args)
        .env("NED_CONFIG", lab.path("ned.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Exit code, stdout, stderr of one run.
async fn ran(lab: &Lab, args: &[&str]) -> (i32, String, String) {
    let output = tokio::time::timeout(PATIENCE, bridge(lab, args).output())
        .await
        .expect("the bridge does not end")
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("ended by a signal");
    (code, text(output.stdout), text(output.stderr))
}

fn map(lab: &Lab, peer: &Peer, then: &str) {
    let text = format!(
        "[source]\nname = \"asr\"\n{}every = \"20ms\"\nbatch = {BATCH}\n\
         [take]\ntable = \"stack\"\nid = \"id\"\nwhere = \"hold = 0\"\n{then}\n",
        peer.place()
    );
    std::fs::write(lab.path("bridge.toml"), text).unwrap();
}

const MARK: &str = "then = \"mark\"\nmark = \"ned\"\n[back]\nstate = \"state\"\ntries = \"tries\"\nerror = \"err\"\nanswer = \"answer\"\n";
const COLUMNS: &str = "[columns]\ncmd = \"cmd\"\nuser_id = \"user_id\"\nusluga_id = \"nullif(usluga_id, 0)\"\nparams = \"params\"\n";

async fn rows_become_events_and_hear_of_them(which: Which) {
    let peer = Peer::start(which).await;
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.native(
        "Mine",
        "driver = \"record\"\nshell = \"posix\"\n[[on.user_add]]\nexec = [\"add {{ user_id }}\"]\n\
         [[on.user_info]]\nanswer = \"{{ user_id }}: {{ note }}\"\n",
    );
    lab.nas(1, "Mine", 2, &[]).await;
    lab.accounts(1, 10..14).await;
    map(&lab, &peer, &format!("{MARK}{COLUMNS}"));
    // What a subscriber typed stays a value, whatever it holds.
    let note = "it's \\ $(x)\\n\u{44e} \"q\"\nC1 +user_del;";
    let params = serde_json::json!({ "note": note }).to_string();
    peer.insert(1, "user_add", 10, None).await;
    peer.insert(2, "", 11, None).await;
    peer.insert(3, "user_info", 12, Some(&params)).await;
    peer.insert(4, "user_add", 99, None).await;
    peer.insert(5, "user_add", 13, Some(&"x".repeat(3_500)))
        .await;
    peer.sql(
        "insert into stack (id, cmd, user_id, usluga_id, hold) values (6, 'user_add', 13, 0, 1)",
    )
    .await;

    let (code, out, err) = ran(&lab, &["--dry-run"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("1\tuser_add\t10\t"), "{out}");
    assert!(out.contains("cmd is empty"), "{out}");
    assert_eq!(
        lab.number("select count(*) from events_stack_compact")
            .await,
        0
    );
    assert_eq!(
        peer.rows("select count(*) from stack where ned is not null")
            .await,
        [["0"]]
    );

    let daemon = lab.start().await;
    let (code, _, err) = ran(&lab, &["--once"]).await;
    assert_eq!(code, 8, "two rows are no events: {err}");
    assert!(err.contains("row 2 is no event: cmd is empty"), "{err}");
    assert!(err.contains("row 5 is no event: params is "), "{err}");
    let done = "select count(*) from events_done where source = 'asr'";
    lab.until("both good rows are done", async || {
        (lab.number(done).await == 2).then_some(())
    })
    .await;
    assert!(
        lab.account_log(10)
            .iter()
            .any(|line| line.contains("> ") && line.contains("add ")),
        "{:?}",
        lab.account_log(10)
    );
    lab.until("the rows have heard", async || {
        let (code, _, err) = ran(&lab, &["--once"]).await;
        assert_eq!(code, 0, "{err}");
        let rows = peer
            .rows("select id, state, tries from stack where id in (1, 3, 4) order by id")
            .await;
        (rows[0][1..] == ["done", "1"] && rows[1][1..] == ["done", "1"] && rows[2][1] == "compact")
            .then_some(())
    })
    .await;
    let rows = peer
        .rows("select ned, state, err from stack where id in (2, 5) order by id")
        .await;
    assert_eq!(rows[0], ["0", "refused", "cmd is empty"]);
    assert_eq!(rows[1][..2], ["0", "refused"]);
    // There and back, to the character.
    let wanted = format!("12: {note}");
    let answer = lab
        .rows("select answer from events_done where batch_id = 'asr:3'")
        .await;
    assert_eq!(answer, [[wanted.as_str()]]);
    let answer = peer
        .rows("select char_length(answer), substring(answer from 1 for 10) from stack where id = 3")
        .await;
    let length = wanted.chars().count().to_string();
    assert_eq!(answer, [[length.as_str(), "12: it's \\"]]);
    let error = peer.rows("select err from stack where id = 4").await;
    assert!(
        error[0][0].contains("99"),
        "the account that is not there: {error:?}"
    );
    let held = peer
        .rows("select count(*) from stack where id = 6 and ned is null")
        .await;
    assert_eq!(held, [["1"]], "the map's condition holds");
    let kept = lab
        .rows("select count(*) from events_done where batch_id in ('asr:1', 'asr:3')")
        .await;
    assert_eq!(kept, [["2"]]);
    daemon.stop().await;
}

async fn killed_between_posting_and_taking_it_loses_and_doubles_nothing(which: Which) {
    // The harder way: a row that is gone cannot say that it was taken.
    killed_between(which, "then = \"delete\"\n", "select id from stack").await;
}

async fn killed_between_posting_and_marking_it_loses_and_doubles_nothing(which: Which) {
    let stands = "select id from stack where ned is null";
    killed_between(which, "then = \"mark\"\nmark = \"ned\"\n", stands).await;
}

/// Kills bridges until some were hit between posting rows and taking them at the source: `stands`
/// has the rows there that are not taken.
async fn killed_between(which: Which, then: &str, stands: &str) {
    let peer = Peer::start(which).await;
    let lab = Lab::new(Kind::Sqlite, "").await;
    map(&lab, &peer, &format!("{then}{COLUMNS}"));
    let keys = async || -> BTreeSet<String> {
        let rows = lab.rows("select batch_id from events_stack_compact").await;
        rows.into_iter().flatten().collect()
    };
    let (mut last, mut kills, mut between) = (0, 0, 0);
    while kills < KILLS || between < BETWEEN {
        assert!(kills < KILLS_MAX, "{between} of {kills} kills were between");
        let mut posted = keys().await;
        if i64::try_from(posted.len()).unwrap() == last {
            for id in last + 1..=last + ROWS {
                peer.insert(id, "user_add", 1000 + id, None).await;
            }
            last += ROWS;
        }
        let before = posted.len();
        let mut bridge = bridge(&lab, &[]).spawn().unwrap();
        lab.until("it has posted", async || {
            posted = keys().await;
            (posted.len() > before).then_some(())
        })
        .await;
        bridge.kill().await.unwrap();
        kills += 1;
        // What it has sent to the source before it died may still be under way there.
        peer.alone().await;
        posted = keys().await;
        let waiting = peer.rows(stands).await;
        let hit = waiting.iter().flatten();
        let hit = hit
            .filter(|id| posted.contains(&format!("asr:{id}")))
            .count();
        between += usize::from(hit > 0);
    }
    let (code, _, err) = ran(&lab, &["--once"]).await;
    assert_eq!(code, 0, "{err}");
    while !peer.rows(stands).await.is_empty() {
        assert_eq!(ran(&lab, &["--once"]).await.0, 0);
    }
    let rows = lab
        .rows("select batch_id, user_id from events_stack_compact order by id")
        .await;
    let wanted: Vec<_> = (1..=last)
        .map(|id| vec![format!("asr:{id}"), (1000 + id).to_string()])
        .collect();
    assert_eq!(rows, wanted, "each once, in the order of the source");
    let again = lab.number("select count(*) from idempotency").await;
    assert_eq!(again, last, "the keys are what made it so");
}

async fn a_source_that_is_away_is_named_and_asked_again(which: Which) {
    let peer = Peer::start(which).await;
    let lab = Lab::new(Kind::Sqlite, "").await;
    map(&lab, &peer, &format!("{MARK}{COLUMNS}"));
    peer.sql("alter table stack add hold2 integer").await;
    let file = lab.path("bridge.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("hold = 0", "no_such_column = 0")).unwrap();
    let (code, _, err) = ran(&lab, &["--once"]).await;
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("the source asr: "), "{err}");
    assert!(err.to_lowercase().contains("no_such_column"), "{err}");
    assert!(!err.contains(peers::PASSWORD), "{err}");
    std::fs::write(&file, good.replace("mark = \"ned\"\n", "")).unwrap();
    let (code, _, err) = ran(&lab, &["--once"]).await;
    assert_eq!(code, 3, "{err}");
    assert!(
        err.contains("bridge.toml") && err.contains("take.mark"),
        "{err}"
    );
    // A running bridge lives through it.
    std::fs::write(&file, good.replace("hold = 0", "hold2 = 0")).unwrap();
    peer.sql("alter table stack drop hold2").await;
    let mut running = bridge(&lab, &[]).stderr(Stdio::inherit()).spawn().unwrap();
    peer.insert(1, "user_add", 10, None).await;
    peer.sql("alter table stack add hold2 integer default 0 not null")
        .await;
    lab.until("the row is taken", async || {
        (lab.number("select count(*) from events_stack_compact")
            .await
            == 1)
            .then_some(())
    })
    .await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(running.id().unwrap().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(running.wait().await.unwrap().code(), Some(0));
    assert_eq!(
        peer.rows("select count(*) from stack where ned > 0").await,
        [["1"]]
    );
}

async fn nases_and_accounts_are_brought_from_it(which: Which) {
    let peer = Peer::start(which).await;
    let lab = Lab::new(Kind::Sqlite, "").await;
    peer.sql("create table bras (id integer not null primary key, title varchar(40), addr varchar(40), psw varchar(40))")
        .await;
    peer.sql("insert into bras (id, title, addr, psw) values (7, 'Nord', '10.0.0.7', 'canary')")
        .await;
    peer.sql("insert into bras (id, title, addr) values (8, 'S\u{fc}d, 8', '10.0.0.8')")
        .await;
    peer.sql(
        "create table persons (num integer not null primary key, contract integer, ip varchar(40))",
    )
    .await;
    // More than one page of it.
    let mut person = 0;
    while person < 1_500 {
        let values: Vec<String> = (person..person + 50)
            .map(|n| match which {
                Which::Firebird => format!("select {n}, {}, '10.1.0.1' from rdb$database", n / 2),
                Which::Mariadb | Which::Postgres => format!("select {n}, {}, '10.1.0.1'", n / 2),
            })
            .collect();
        peer.sql(&format!(
            "insert into persons (num, contract, ip) {}",
            values.join(" union all ")
        ))
        .await;
        person += 50;
    }
    let text = format!(
        "[source]\nname = \"asr\"\n{}\
         [nas]\ntable = \"bras\"\n[nas.columns]\nid = \"id\"\nname = \"title\"\nip = \"addr\"\nforks = \"5\"\nlogin = \"'api'\"\npassword = \"psw\"\n\
         [accounts]\ntable = \"persons\"\nwhere = \"num > 0\"\n[accounts.columns]\nid = \"num\"\nabonent_id = \"contract\"\nip = \"ip\"\nnas_id = \"7\"\n",
        peer.place()
    );
    std::fs::write(lab.path("import.toml"), text).unwrap();
    let import = async |args: &[&str]| {
        #[expect(
            clippy::disallowed_methods,
            reason = "the program under test is a program"
        )]
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_nas_event_daemon"));
        command
            .args(["-o", "csv", "import"])
            .args(args)
            .arg("--map")
            .arg(lab.path("import.toml"))
            .env("NED_CONFIG", lab.path("ned.toml"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .expect("the import does not end")
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("canary"), "{said}");
        let out = String::from_utf8(output.stdout).unwrap();
        out.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        import(&["nas", "--dry-run"]).await,
        ["nas,2,2,0,0,0", "nas_secret,2,2,0,0,0"]
    );
    assert_eq!(lab.number("select count(*) from nas").await, 0);
    import(&["nas"]).await;
    assert_eq!(
        lab.rows("select id, name, ip, forks, mode from nas order by id")
            .await,
        [
            ["7", "Nord", "10.0.0.7", "5", "observe"],
            ["8", "S\u{fc}d, 8", "10.0.0.8", "5", "observe"]
        ]
    );
    assert_eq!(import(&["accounts"]).await, ["users,1499,1499,0,0,0"]);
    assert_eq!(import(&["accounts"]).await, ["users,1499,0,0,1499,0"]);
    let last = "select id, abonent_id, nas_id, ip from users order by id desc limit 1";
    assert_eq!(lab.rows(last).await, [["1499", "749", "7", "10.1.0.1"]]);
}
