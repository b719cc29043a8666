//! `man` and `completions`: both made from the same description of the command line that parses
//! it, so that neither can be behind. The package carries what these print.

use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man as Page;

use super::exit::{DONE, FAILED, Failed, Outcome, say_all};
use super::{Cli, send_http, send_mikrotik, send_radius, send_ssh, send_telnet, sqlexec, stack};

/// Section of the manual: what an administrator runs.
const SECTION: &str = "8";
/// A second, short name of the program, which the package installs.
const SHORT: &str = "ned";

/// Which shell.
#[derive(Debug, Args)]
pub struct Completions {
    /// For example: source <(nas_event_daemon completions bash)
    #[arg(value_enum)]
    shell: Shell,
}

/// Where to.
#[derive(Debug, Args)]
pub struct Man {
    /// Write every page into this directory; it is made if it is not there
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the completions, also for the short name.
pub fn completions(args: &Completions) -> Outcome {
    let mut text = Vec::new();
    for name in ["nas_event_daemon", SHORT] {
        clap_complete::generate(args.shell, &mut Cli::command(), name, &mut text);
    }
    say_all(&String::from_utf8_lossy(&text));
    Ok(DONE)
}

/// Prints the first page, or writes all of them: one per verb, one per classic name.
pub fn man(args: &Man) -> Outcome {
    let Some(dir) = &args.dir else {
        let (_, text) = page(Cli::command())?;
        say_all(&text);
        return Ok(DONE);
    };
    let failed = |path: &Path, e: std::io::Error| {
        let text = format!("{} cannot be written: {e}", path.display());
        Failed::new(FAILED, format!("{text}\nhint: name a directory of yours"))
    };
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    for (name, text) in pages()? {
        let path = dir.join(format!("{name}.{SECTION}"));
        std::fs::write(&path, text).map_err(|e| failed(&path, e))?;
    }
    Ok(DONE)
}

/// Name and text of every page.
fn pages() -> Result<Vec<(String, String)>, Failed> {
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let mut all = vec![page(cli.clone())?];
    below(&cli, "nas_event_daemon", &mut all)?;
    for classic in [
        stack::command(),
        sqlexec::command(),
        send_mikrotik::command(),
        send_http::command(),
        send_radius::command(),
        send_ssh::command(),
        send_telnet::command(),
    ] {
        all.push(page(classic)?);
    }
    Ok(all)
}

fn below(command: &Command, name: &str, all: &mut Vec<(String, String)>) -> Result<(), Failed> {
    for verb in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = format!("{name}-{}", verb.get_name());
        all.push(page(verb.clone().display_name(name.clone()))?);
        below(verb, &name, all)?;
    }
    Ok(())
}

fn page(command: Command) -> Result<(String, String), Failed> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let mut text = Vec::new();
    Page::new(command)
        .section(SECTION)
        .source(concat!("nas_event_daemon ", env!("CARGO_PKG_VERSION")))
        .render(&mut text)
        .map_err(|e| Failed::new(FAILED, format!("the page {name} cannot be made: {e}")))?;
    Ok((name, String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_and_classic_name_has_its_page() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in [
            "nas_event_daemon",
            "nas_event_daemon-why",
            "nas_event_daemon-nas",
            "nas_event_daemon-nas-pause",
            "nas_event_daemon-event-post",
            "event_count.sh",
            "sqlexec",
            "send_mikrotik_cmd",
            "send_radius_cmd",
            "send_ssh_cmd",
        ] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        let (_, pause) = pages
            .iter()
            .find(|(n, _)| n == "nas_event_daemon-nas-pause")
            .unwrap();
        assert!(pause.contains("reason"), "{pause}");
    }
}
