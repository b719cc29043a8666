//! What is made for eyes and for the shell: the manual and completions, each judged by
//! its own reader.

use std::collections::BTreeSet;

use clap::CommandFactory;
use nas_event_daemon::cli::Cli;

use crate::{command, finished, judge};

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
