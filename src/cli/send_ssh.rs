//! `send_ssh_cmd` (and `ssh_send`): one command line on a device over SSH, from a shell or a
//! script, as the original's helper.
//!
//! ```text
//! send_ssh_cmd -s HOST LOGIN PASS nft list set inet crb negbal4
//! send_ssh_cmd --nas 1116 'nft -f -' <<< 'add element inet crb negbal4 { 10.88.0.15 }'
//! printf '%s\n' 'conf t' 'exit' | ssh_send --port 22 -u LOGIN -p PASS HOST
//! ```
//!
//! The words are joined by blanks, as `ssh` does; without words the login shell of the device
//! reads standard input. The exit code is the command's; 249 wrong parameters, 254 not reached
//! or no answer in time (so that a scheme tries again), 1 any other refusal.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;

use super::Console;
use super::classic::{self, CONNECT_TIMEOUT, LATER, REFUSED, Refusal, Ridden, Ride};
use super::exit::{Failed, remark, say};
use super::table::one_line;
use crate::attempt::{Failure, FailureClass};
use crate::config::parse_duration;
use crate::driver::dialogue::Manners;
use crate::driver::sessions::Sessions;
use crate::driver::ssh::trust::Trust;
use crate::driver::ssh::{Command, Limits, Output, Ssh, Target};
use crate::nas::NasId;
use crate::scheme::ride::words::To;
use crate::scheme::session::OBSERVE;

/// TCP port of SSH (RFC 4251 section 4).
const SSH_PORT: u16 = 22;
/// Largest batch that is read from standard input, bytes.
const STDIN_MAX: u64 = 16 * 1024 * 1024;
/// For the login, unless the time-out is shorter.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Runs one command line on a device over SSH.
#[derive(Debug, Parser)]
#[command(name = "send_ssh_cmd", version)]
struct Args {
    /// Where to run it
    #[arg(short = 's', num_args = 3, value_names = ["HOST", "LOGIN", "PASS"], allow_hyphen_values = true, conflicts_with_all = ["nas", "login"])]
    to: Vec<String>,
    /// Take address, credentials and host key from the database
    #[arg(long, value_name = "ID", conflicts_with = "login")]
    nas: Option<i64>,
    /// Login; the first word is then the host
    #[arg(short = 'u', long, value_name = "LOGIN")]
    login: Option<String>,
    /// Its password
    #[arg(
        short = 'p',
        long,
        value_name = "PASS",
        default_value = "",
        hide_default_value = true
    )]
    password: String,
    /// TCP port; default 22, or nas.ssh_port
    #[arg(long, short = 'P')]
    port: Option<u16>,
    /// The host key that is expected: SHA256:…, or a public key line
    #[arg(long, value_name = "KEY")]
    host_key: Option<String>,
    /// Also offer algorithms that are too weak today
    #[arg(long)]
    legacy: bool,
    /// For connection, login and command together
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// Read nothing from standard input
    #[arg(short = 'n', long)]
    no_stdin: bool,
    /// Print the line, send nothing
    #[arg(long)]
    dry_run: bool,
    /// Configuration file, for --nas.
    #[arg(short, long, env = "NED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The command line
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "WORDS"
    )]
    words: Vec<String>,
}

fn refusal(failure: Failure, line: &str) -> Refusal {
    let (kind, code) = match failure.class {
        FailureClass::Transport => ("ConnectionError", LATER),
        FailureClass::Unknown => ("Timeout", LATER),
        FailureClass::Refused => ("LoginError", REFUSED),
        FailureClass::Permanent => ("Refused", REFUSED),
    };
    Refusal {
        kind,
        message: failure.text,
        command: line.to_owned(),
        code,
    }
}

/// Its description, for the manual.
pub fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command()
}

/// `send_ssh_cmd …`, `ssh_send …`; the result is the exit code.
pub fn by_name(args: Vec<OsString>) -> u8 {
    classic::by_name(args, async |mut args: Args| send(&mut args).await)
}

async fn send(args: &mut Args) -> Result<u8, Refusal> {
    let host = match args.login {
        Some(_) if args.words.is_empty() => {
            return Err(wrong("no host after the flags"));
        }
        Some(_) => Some(args.words.remove(0)),
        None if args.to.is_empty() && args.nas.is_none() => {
            return Err(wrong(
                "where to? give -s HOST LOGIN PASS, --nas ID, or -u LOGIN -p PASS HOST",
            ));
        }
        None => None,
    };
    let line = args.words.join(" ");
    // A script that runs in observe mode: nothing may be sent.
    if args.dry_run || std::env::var_os(OBSERVE).is_some() {
        say(one_line(&line));
        return Ok(0);
    }
    let command = Command {
        stdin: batch(args)?,
        line,
    };
    command.check().map_err(wrong)?;
    let meant = To {
        nas: args.nas,
        host: args.to.first().or(host.as_ref()).cloned(),
        login: args.to.get(1).or(args.login.as_ref()).cloned(),
        port: args.port,
    };
    if let Some(mut ride) = Ride::find(args.config.clone(), meant).await {
        let ridden = ride.talk(command.clone().into(), args.timeout).await;
        match ridden.map_err(|why| Refusal::parameter(why, &command.line))? {
            Ridden::Answer(Ok(reply)) => {
                let row = reply.rows.first();
                let part = |name: &str| row.and_then(|r| r.get(name)).map_or("", String::as_str);
                return Ok(passed_on(reply.code, part("out"), part("err")));
            }
            Ridden::Answer(Err(failure)) => return Err(refusal(failure, &command.line)),
            Ridden::Recorded => {
                say(one_line(&command.line));
                return Ok(0);
            }
            Ridden::ByYourself => {}
        }
    }
    let output = match args.nas {
        Some(id) => on_nas(args, NasId(id), &command).await?,
        None => typed(args, host, &command).await?,
    };
    Ok(passed_on(output.status, &output.stdout, &output.stderr))
}

/// Both outputs as they came; the exit code.
fn passed_on(status: i32, stdout: &str, stderr: &str) -> u8 {
    // A reader that went away is no error.
    let _ = std::io::stdout().write_all(stdout.as_bytes());
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().write_all(stderr.as_bytes());
    u8::try_from(status).unwrap_or(REFUSED)
}

/// Wrong parameters, before there is a command line.
fn wrong(message: impl Into<String>) -> Refusal {
    Refusal::parameter(message, "")
}

/// What stands on standard input, unless a person sits there.
fn batch(args: &Args) -> Result<Option<String>, Refusal> {
    let stdin = std::io::stdin();
    if args.no_stdin || stdin.is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = stdin.lock().take(STDIN_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| wrong(format!("standard input cannot be read: {e}")))?;
    if bytes.len() as u64 > STDIN_MAX {
        return Err(wrong(format!(
            "standard input holds more than {STDIN_MAX} bytes"
        )));
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| wrong("standard input is not UTF-8 text"))
}

/// The address was typed: the host key is as `--host-key` says, else shown to who typed it.
async fn typed(args: &Args, host: Option<String>, command: &Command) -> Result<Output, Refusal> {
    let (host, login, password) = match (args.to.as_slice(), host) {
        ([host, login, password], _) => (host.clone(), login.clone(), password.clone()),
        (_, host) => (
            host.unwrap_or_default(),
            args.login.clone().unwrap_or_default(),
            args.password.clone(),
        ),
    };
    let trust = match &args.host_key {
        None => Trust::Anybody,
        Some(key) => Trust::of(Some(key), None).map_err(wrong)?,
    };
    if trust == Trust::First {
        return Err(wrong("--host-key takes a key or a fingerprint"));
    }
    let target = Target {
        host,
        port: args.port.unwrap_or(SSH_PORT),
        login,
        password,
        key: String::new(),
        enable_password: String::new(),
        manners: Manners::default(),
        trust,
        legacy: args.legacy,
    };
    let limits = Limits {
        channels: 1,
        connect_timeout: args.timeout.min(CONNECT_TIMEOUT),
        login_timeout: args.timeout.min(LOGIN_TIMEOUT),
        linger: args.timeout,
        logins_per_minute: 60,
    };
    if target.trust == Trust::Anybody {
        remark("the host key is not checked: say --host-key SHA256:…, or use --nas ID");
    }
    let ssh = Ssh::new(target, limits, Arc::new(|_| {}));
    let ended = ssh.exec(command, args.timeout).await;
    ended.map_err(|failure| refusal(failure, &command.line))
}

async fn on_nas(args: &Args, id: NasId, command: &Command) -> Result<Output, Refusal> {
    let settings = |failed: Failed| Refusal::settings(failed, &command.line);
    let console = Console {
        file: args.config.clone(),
        ..Console::default()
    };
    let config = console.config().map_err(settings)?;
    let store = console.store(&config).await.map_err(settings)?;
    let (mut row, secret) = classic::from_database(args.config.clone(), id)
        .await
        .map_err(settings)?;
    row.ssh_port = args.port.or(row.ssh_port);
    row.ssh_host_key = args.host_key.clone().or(row.ssh_host_key);
    let learned: Arc<Mutex<Option<String>>> = Arc::default();
    let keep = Arc::clone(&learned);
    let sessions = Sessions::learning(Arc::new(move |_, line| {
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(line.to_owned());
    }));
    let ended = match sessions.ssh(&row, &secret) {
        Ok(ssh) => ssh.exec(command, args.timeout).await,
        Err(failure) => Err(failure),
    };
    let learned = learned
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(key) = learned {
        let kept = store.set_host_key(id, None, Some(&key)).await;
        kept.map_err(|e| settings(e.into()))?;
    }
    ended.map_err(|failure| refusal(failure, &command.line))
}

#[cfg(test)]
mod tests {
    use super::super::exit;
    use super::*;

    fn parsed(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_classic_forms_are_understood() {
        let args = parsed("send_ssh_cmd -s 10.0.0.1 root -secret nft -f -").unwrap();
        assert_eq!(args.to, ["10.0.0.1", "root", "-secret"]);
        assert_eq!(args.words, ["nft", "-f", "-"]);
        let args = parsed("ssh_send --port 33 -u root -p servicemode 10.0.0.1").unwrap();
        assert_eq!((args.port, args.login.as_deref()), (Some(33), Some("root")));
        assert_eq!(
            (args.password.as_str(), args.words.len()),
            ("servicemode", 1)
        );
        let args = parsed("send_ssh_cmd --nas 7 --dry-run uptime").unwrap();
        assert_eq!((args.nas, args.dry_run), (Some(7), true));
        assert!(parsed("send_ssh_cmd --nas 7 -s a b c true").is_err());
        assert!(parsed("send_ssh_cmd --nas seven true").is_err());
    }

    #[test]
    fn failures_have_the_originals_codes() {
        let code = |failure: Failure| refusal(failure, "true").code;
        assert_eq!(code(Failure::transport("no route")), LATER);
        assert_eq!(code(Failure::timeout("late")), LATER);
        assert_eq!(code(Failure::permanent("no exec")), REFUSED);
        let not_found = Failed::new(exit::NOT_FOUND, "there is no NAS 9");
        assert_eq!(Refusal::settings(not_found, "").code, classic::PARAMETER);
    }
}
