//! What is made for eyes and for the shell: bars on a terminal, the manual, completions, each
//! judged by its own reader.

use std::collections::BTreeSet;

use clap::CommandFactory;
use nas_event_daemon::cli::Cli;

use crate::lab::daemon::{Lab, PATIENCE};
use crate::lab::db::Kind;
use crate::{RECORD, Said, command, finished, judge, ned};

/// What takes the place of the screen (ECMA-48, CUP and ED).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// What the shell and the reader of the manual make of what is printed, not only that it is.
#[tokio::test]
async fn the_shell_and_the_manual_can_read_what_is_made_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("man8");
    let written = finished(
        command("nas_event_daemon", &["man", place.to_str().unwrap()]),
        "",
    );
    written.await.fine();
    // A page for each verb of the command line itself, and for each name of the binary.
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    verbs(&Cli::command(), "nas_event_daemon", &mut wanted);
    assert!(wanted.len() > 80, "{wanted:?}");
    for name in [
        "event_count.sh",
        "sqlexec",
        "send_mikrotik_cmd",
        "send_http_cmd",
        "send_ssh_cmd",
        "send_telnet_cmd",
        "send_radius_cmd",
    ] {
        wanted.insert(format!("{name}.8"));
    }
    let pages: BTreeSet<String> = std::fs::read_dir(&place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(pages, wanted);
    let paths: Vec<String> = pages
        .iter()
        .map(|page| place.join(page).display().to_string())
        .collect();
    let complaints = async |paths: &[String]| {
        let args: Vec<&str> = ["--warnings", "-E", "UTF-8", "-l"]
            .into_iter()
            .chain(paths.iter().map(String::as_str))
            .collect();
        let said = finished(judge("man", &args), "").await;
        assert_eq!(said.code, 0, "{said:?}");
        said.err
    };
    assert_eq!(complaints(&paths).await, "");
    let planted = dir.path().join("planted.8");
    std::fs::write(&planted, ".TH planted 8\n.SH NAME\n.no-such-macro\n").unwrap();
    let planted = planted.display().to_string();
    assert!(complaints(&[planted]).await.contains("no-such-macro"));

    let script = finished(command("nas_event_daemon", &["completions", "bash"]), "").await;
    let script = script.fine();
    let read = async |script: &str| finished(judge("bash", &["-n"]), script).await;
    let said = read(&script).await;
    assert!(said.code == 0 && said.err.is_empty(), "{said:?}");
    assert_ne!(read(&script.replacen("esac", "", 1)).await.code, 0);
    // It completes: the verbs of a noun, as who presses the tabulator sees them.
    let typed = format!(
        "{script}\nCOMP_WORDS=(ned nas p) COMP_CWORD=2\n\
         complete -p ned >/dev/null && _ned ned p nas; echo \"${{COMPREPLY[@]}}\"\n"
    );
    let said = finished(judge("bash", &["--norc"]), &typed).await;
    assert_eq!(said.fine(), "pause\n");
}

/// The page of a verb and of each below it.
fn verbs(command: &clap::Command, name: &str, all: &mut BTreeSet<String>) {
    all.insert(format!("{name}.8"));
    for verb in command.get_subcommands() {
        verbs(verb, &format!("{name}-{}", verb.get_name()), all);
    }
}

/// Bars where a terminal is there, and nothing of them in a pipe. The terminal is made by
/// script(1).
#[tokio::test]
async fn long_work_shows_a_bar_on_a_terminal_only() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, RECORD, 2, &[]).await;
    lab.accounts(5, 1..=20).await;
    lab.accounts(6, 1_001..=1_400).await;
    let daemon = lab.start().await;
    let written = |name: &str, text: String| {
        let path = lab.path(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ids: String = (0..3000).map(|n| format!("{}\n", n % 20 + 1)).collect();
    let ids = written("ids.txt", ids);
    let rows: String = (1..=700).map(|n| format!("{n},name{n}\n")).collect();
    let accounts = written("accounts.csv", format!("id,login\n{rows}"));
    let copies = ["one.db", "two.db"].map(|name| lab.path(name).display().to_string());
    let bulk = [
        "event",
        "bulk",
        &ids,
        "--format",
        "ids",
        "--cmd",
        "user_auth",
    ];
    let retry = ["event", "retry", "--state", "dead", "--nas", "6"];
    dead(&lab, 1_001..=1_200).await;
    for (words, bar, whole) in [
        (&bulk[..], "posting [", " of 3000"),
        (&["nas", "resync", "5"], "posting [", " of 80"),
        (&retry, "retrying [", " of 200"),
        (&["import", "accounts", &accounts], "importing [", " of 700"),
        (&["db", "backup", &copies[0]], "copying [", " of "),
    ] {
        let seen = on_a_terminal(&lab, words).await.fine();
        assert!(
            seen.contains(bar) && seen.contains(whole),
            "{words:?}: {seen:?}"
        );
        let rest = seen.rsplit("\r\u{1b}[K").next().unwrap();
        assert!(!rest.contains(bar), "{words:?}: it stays: {seen:?}");
    }
    let seen = on_a_terminal(&lab, &bulk).await.fine();
    assert!(seen.contains("accepted:"), "{seen:?}");
    dead(&lab, 1_201..=1_400).await;
    for (words, data) in [
        (&bulk[..], "accepted\t3000\n"),
        (&["nas", "resync", "5"], "user_add\t20\n"),
        (&retry, "10001400\t"),
        (&["import", "accounts", &accounts], "users\t700\t"),
        (&["db", "backup", &copies[1]], "two.db\n"),
    ] {
        let piped = ned(&lab, words).await;
        assert!(piped.code == 0 && piped.out.contains(data), "{piped:?}");
        let all = format!("{}{}", piped.out, piped.err);
        assert!(!all.contains(['\r', '[', '\u{1b}']), "{words:?}: {all}");
    }
    daemon.kill_9().await;
}

/// Events of these accounts of NAS 6 that died.
async fn dead(lab: &Lab, users: std::ops::RangeInclusive<i64>) {
    let rows: Vec<String> = users
        .map(|user| {
            let id = user + 10_000_000;
            format!("({id}, 'user_add', {user}, 6, 1, '2026-01-01 00:00:00', 'x')")
        })
        .collect();
    lab.sql(&format!(
        "insert into events_dead (id, event_type, user_id, nas_id, class, event_date, reason) values {}",
        rows.join(", ")
    ))
    .await;
}

/// `--watch` on a terminal: each look takes the place of the last one, shows what is so by then, and
/// Ctrl-C ends it and leaves the terminal as it was. The shell around it is the one at the prompt.
#[tokio::test]
async fn a_watched_look_is_redrawn_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    let script = format!(
        "trap : INT; before=$(stty -g); {} --watch=200ms nas list; code=$?; \
         [ \"$before\" = \"$(stty -g)\" ] && echo \"intact after $code\"",
        env!("CARGO_BIN_EXE_nas_event_daemon")
    );
    // A shell that starts another one dies of the key, too, unless it gives way to it.
    let line = format!("exec sh -c '{script}'");
    let mut terminal = judge("script", &["-qec", &line, "/dev/null"]);
    terminal.env("NED_CONFIG", lab.path("ned.toml"));
    let mut child = terminal.spawn().unwrap();
    let (mut keys, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = String::new();
    let mut read_until = async |what: &str, is_there: &dyn Fn(&str) -> bool| -> String {
        let reading = async {
            while !is_there(&seen) {
                let mut bytes = [0_u8; 4096];
                let n = tokio::io::AsyncReadExt::read(&mut out, &mut bytes)
                    .await
                    .unwrap();
                assert!(n > 0, "it ended before {what}: {seen:?}");
                seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        };
        tokio::time::timeout(PATIENCE, reading)
            .await
            .expect("no look");
        seen.clone()
    };
    let redraws = |seen: &str| seen.matches(CLEAR).count();
    read_until("three looks", &|seen| redraws(seen) >= 3).await;
    ned(&lab, &["nas", "pause", "5", "--reason", "works"])
        .await
        .fine();
    let looks = read_until("the pause", &|seen| {
        seen.rsplit(CLEAR)
            .nth(1)
            .is_some_and(|whole| whole.contains(": works"))
    });
    let looks = looks.await;
    for look in looks.split(CLEAR).skip(1) {
        // One look holds one table: nothing of the last one is left, nothing is drawn twice.
        assert!(look.matches("BREAKER").count() <= 1, "{look:?}");
    }
    tokio::io::AsyncWriteExt::write_all(&mut keys, b"\x03")
        .await
        .unwrap();
    let all = read_until("the prompt", &|seen| seen.contains("intact after")).await;
    assert!(all.contains("intact after 130"), "{all:?}");
    // No other screen, no hidden cursor, no colour that stays.
    let rest = all.replace(CLEAR, "");
    assert!(!rest.contains('\u{1b}'), "{rest:?}");
    assert!(child.wait().await.unwrap().success());
}

/// What cannot be taken back is asked at a terminal, with what it is about.
#[tokio::test]
async fn who_sits_at_a_terminal_is_asked() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [1]).await;
    // Made here: no daemon runs that would carry them out.
    lab.ned(&["event", "post", "--user", "1", "--cmd", "user_add"])
        .await;
    let id = lab.rows("select id from events_stack_compact").await[0][0].clone();
    let held =
        "insert into events_stack (id, event_type, user_id, nas_id, class, event_date, state, params)
                values (900, 'user_drop', 1, 5, 1, '2026-01-01 00:00:00', 'held', '{}')";
    lab.sql(held).await;
    let drop = ["event", "drop", &id];
    let deny = ["guard", "deny", "900"];
    for (words, question) in [
        (&drop[..], "drop 1 events for good? [y/N]"),
        (&deny, "give 1 held events up for good? [y/N]"),
    ] {
        for (typed, code) in [("n\n", 6), ("\n", 6), ("y\n", 0)] {
            let said = typed_on_a_terminal(&lab, words, typed).await;
            assert_eq!(said.code, code, "{typed:?}: {said:?}");
            assert_eq!(said.out.matches(question).count(), 1, "{said:?}");
        }
    }
    assert_eq!(lab.waiting().await, 0, "both are gone");
    lab.sql(held).await;
    let said = on_a_terminal(&lab, &[&deny[..], &["-y"]].concat()).await;
    assert!(said.code == 0 && !said.out.contains("[y/N]"), "{said:?}");
}

/// What somebody at a terminal sees of a verb.
async fn on_a_terminal(lab: &Lab, words: &[&str]) -> Said {
    typed_on_a_terminal(lab, words, "").await
}

async fn typed_on_a_terminal(lab: &Lab, words: &[&str], typed: &str) -> Said {
    let line = format!(
        "{} {}",
        env!("CARGO_BIN_EXE_nas_event_daemon"),
        words.join(" ")
    );
    let mut terminal = judge("script", &["-qec", &line, "/dev/null"]);
    terminal.env("NED_CONFIG", lab.path("ned.toml"));
    finished(terminal, typed).await
}

/// Who types the name alone may have looked for something else than a daemon.
#[tokio::test]
async fn a_bare_call_on_a_terminal_says_what_it_is() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let nowhere = lab.path("none.toml").display().to_string();
    let hint = "no verb: this is run";
    // A file that is not there ends it before it is a daemon.
    let bare = ["--config", &nowhere];
    let said = on_a_terminal(&lab, &bare).await;
    assert_eq!(said.code, 3, "{said:?}");
    assert_eq!(said.out.matches(hint).count(), 1, "{said:?}");
    let run = [&bare[..], &["run"]].concat();
    let said = on_a_terminal(&lab, &run).await;
    assert!(said.code == 3 && !said.out.contains(hint), "{said:?}");
    // A service manager's log has no use for it.
    let said = ned(&lab, &bare).await;
    assert!(said.code == 3 && !said.err.contains(hint), "{said:?}");
}
