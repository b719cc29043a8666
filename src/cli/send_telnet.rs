//! `send_telnet_cmd`: lines to the command line of a device over telnet, in one session.
//!
//! ```text
//! send_telnet_cmd -s HOST LOGIN PASS show version
//! send_telnet_cmd --nas 1116 'configure terminal' ';' 'ip route 10.88.0.15/32 blackhole' ';' end
//! ```
//!
//! The words are joined by blanks, a lone `;` begins the next line; without words the lines are
//! read from standard input. Login, `enable`, prompts and pagers are seen to. Exit codes: 249
//! wrong parameters or a line that the device did not understand, 254 not reached or no answer
//! in time (so that a scheme tries again), 1 any other refusal. Password and lines cross the
//! network in plain text.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::classic::{self, CONNECT_TIMEOUT, LATER, PARAMETER, REFUSED, Refusal, Ridden, Ride};
use super::exit::{Failed, say};
use super::table::one_line;
use super::{Console, nas};
use crate::attempt::{Failure, FailureClass};
use crate::config::parse_duration;
use crate::driver::dialogue::{Credentials, Manners};
use crate::driver::leases::Rules;
use crate::driver::sessions::Sessions;
use crate::driver::telnet::{Command, Limits, NOT_UNDERSTOOD, Target, Telnet};
use crate::nas::NasId;
use crate::scheme::ride::words::To;
use crate::scheme::session::OBSERVE;

/// TCP port of telnet (RFC 854).
const TELNET_PORT: u16 = 23;
/// Most that is read from standard input, bytes.
const STDIN_MAX: u64 = 1024 * 1024;

/// Sends lines to a device over telnet.
#[derive(Debug, Parser)]
#[command(name = "send_telnet_cmd", version)]
struct Args {
    /// Where to send them
    #[arg(short = 's', num_args = 3, value_names = ["HOST", "LOGIN", "PASS"], allow_hyphen_values = true, conflicts_with = "nas", required_unless_present = "nas")]
    to: Vec<String>,
    /// Take address, credentials and manners from the database
    #[arg(long, value_name = "ID")]
    nas: Option<i64>,
    /// TCP port; default 23, or nas.telnet_port
    #[arg(long, short = 'P')]
    port: Option<u16>,
    /// Password of `enable`; without it nothing is raised
    #[arg(
        long,
        value_name = "PASS",
        default_value = "",
        hide_default_value = true
    )]
    enable: String,
    /// A prompt that does not look like one, as a regular expression
    #[arg(long, value_name = "REGEX")]
    prompt: Option<regex::Regex>,
    /// A question that also ends an answer, as a regular expression; may be repeated
    #[arg(long, value_name = "REGEX")]
    expect: Vec<String>,
    /// For connection, login and all answers together
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// Print the lines, send nothing
    #[arg(long)]
    dry_run: bool,
    /// Configuration file, for --nas.
    #[arg(short, long, env = "NED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The line; a lone `;` begins the next
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "WORDS"
    )]
    words: Vec<String>,
}

/// Its description, for the manual.
pub fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command()
}

/// `send_telnet_cmd …`; the result is the exit code.
pub fn by_name(args: Vec<OsString>) -> u8 {
    classic::by_name(args, async |args: Args| send(&args).await.map(|()| 0))
}

async fn send(args: &Args) -> Result<(), Refusal> {
    let command = Command {
        lines: lines(args)?,
        expect: args.expect.clone(),
    };
    let shown = command.shown();
    command
        .check()
        .map_err(|why| Refusal::parameter(why, &shown))?;
    let recorded = || {
        for line in &command.lines {
            say(one_line(line));
        }
        Ok(())
    };
    // A script that runs in observe mode: nothing may be sent.
    if args.dry_run || std::env::var_os(OBSERVE).is_some() {
        return recorded();
    }
    let meant = To {
        nas: args.nas,
        host: args.to.first().cloned(),
        login: args.to.get(1).cloned(),
        port: args.port,
    };
    let ride = Ride::find(args.config.clone(), meant).await;
    let ridden = match ride {
        Some(mut ride) => {
            let ridden = ride.talk(command.clone().into(), args.timeout).await;
            ridden.map_err(|why| Refusal::parameter(why, &shown))?
        }
        None => Ridden::ByYourself,
    };
    let result = match ridden {
        Ridden::Recorded => return recorded(),
        Ridden::Answer(result) => result,
        Ridden::ByYourself => {
            let telnet = match args.nas {
                Some(id) => on_nas(args, NasId(id))
                    .await
                    .map_err(|failed| Refusal::settings(failed, &shown))?,
                None => std::sync::Arc::new(typed(args)),
            };
            telnet.talk(&command, args.timeout).await
        }
    };
    let reply = result.map_err(|failure| refusal(failure, &shown))?;
    for row in reply.text.lines() {
        say(one_line(row));
    }
    Ok(())
}

/// The lines of the words, else of standard input.
fn lines(args: &Args) -> Result<Vec<String>, Refusal> {
    let lines: Vec<String> = if args.words.is_empty() {
        let stdin = std::io::stdin();
        let mut text = String::new();
        if !stdin.is_terminal() {
            let read = stdin.lock().take(STDIN_MAX).read_to_string(&mut text);
            let told = |e| Refusal::parameter(format!("standard input cannot be read: {e}"), "");
            read.map_err(told)?;
        }
        text.lines().map(str::to_owned).collect()
    } else {
        args.words
            .split(|word| word == ";")
            .map(|words| words.join(" "))
            .collect()
    };
    let lines: Vec<String> = lines.into_iter().filter(|l| !l.trim().is_empty()).collect();
    if lines.is_empty() {
        return Err(Refusal::parameter("no line, such as show version", ""));
    }
    if let Some(line) = lines.iter().find(|l| l.chars().any(char::is_control)) {
        return Err(Refusal::parameter(
            "a line holds a control character; a lone ';' begins the next line",
            line,
        ));
    }
    Ok(lines)
}

/// The address was typed.
fn typed(args: &Args) -> Telnet {
    let part = |at: usize| args.to.get(at).cloned().unwrap_or_default();
    let target = Target {
        host: part(0),
        port: args.port.unwrap_or(TELNET_PORT),
        credentials: Credentials {
            login: part(1),
            password: part(2),
            enable_password: args.enable.clone(),
        },
        manners: Manners {
            prompt: args.prompt.clone(),
            ..Manners::default()
        },
    };
    let limits = Limits {
        rules: Rules {
            sessions: 1,
            logins_per_minute: 60.0,
            linger: args.timeout,
        },
        connect_timeout: args.timeout.min(CONNECT_TIMEOUT),
        login_timeout: args.timeout,
    };
    Telnet::new(target, limits)
}

async fn on_nas(args: &Args, id: NasId) -> Result<std::sync::Arc<Telnet>, Failed> {
    let console = Console {
        file: args.config.clone(),
        ..Console::default()
    };
    let config = console.config()?;
    let store = console.store(&config).await?;
    let mut row = nas::find(store.as_ref(), id)
        .await?
        .map_err(|bad| Failed::skipped(id, bad.reason))?;
    row.telnet_port = args.port.or(row.telnet_port);
    let mut secret = store.secret(id).await?;
    if !args.enable.is_empty() {
        secret.enable_password.clone_from(&args.enable);
    }
    let mut manners = Manners::of(|name| Ok(row.vars.get(name).cloned()))
        .map_err(|why| Failed::config(format!("NAS {id}: nas.vars: {why}")))?;
    manners.prompt = args.prompt.clone().or(manners.prompt);
    Sessions::default()
        .telnet(&row, &secret, manners)
        .map_err(|failure| Failed::config(failure.text))
}

fn refusal(failure: Failure, line: &str) -> Refusal {
    let (kind, code) = match failure.class {
        FailureClass::Transport => ("ConnectionError", LATER),
        FailureClass::Unknown => ("Timeout", LATER),
        FailureClass::Refused => ("LoginError", REFUSED),
        FailureClass::Permanent if failure.code == NOT_UNDERSTOOD => {
            ("UnknownParameter", PARAMETER)
        }
        FailureClass::Permanent => ("Refused", REFUSED),
    };
    Refusal {
        kind,
        message: failure.text,
        command: line.to_owned(),
        code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_lines() {
        let lines_of = |words: &[&str]| {
            let mut all = vec!["send_telnet_cmd", "--nas", "1"];
            all.extend(words);
            lines(&Args::try_parse_from(all).unwrap())
        };
        assert_eq!(lines_of(&["show", "version"]).unwrap(), ["show version"]);
        let three = lines_of(&["conf t", ";", "ip route", "x", ";", "end"]).unwrap();
        assert_eq!(three, ["conf t", "ip route x", "end"]);
        let command = Command {
            lines: three,
            expect: Vec::new(),
        };
        assert_eq!(command.shown(), "'conf t' ';' 'ip route x' ';' end");
        for wrong in [&["a\nreload"][..], &[";"], &["a\u{3}"]] {
            assert_eq!(lines_of(wrong).unwrap_err().code, PARAMETER, "{wrong:?}");
        }
        let code = |failure| refusal(failure, "").code;
        assert_eq!(code(Failure::transport("x")), LATER);
        assert_eq!(code(Failure::timeout("x")), LATER);
        assert_eq!(code(Failure::permanent("x")), REFUSED);
    }
}
