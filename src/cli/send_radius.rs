//! `send_radius_cmd`: one CoA-Request or Disconnect-Request from a shell or a script.
//!
//! ```text
//! send_radius_cmd --nas 1116 coa Acct-Session-Id=81a0 Mikrotik-Rate-Limit=10M/20M
//! send_radius_cmd -s HOST SECRET disconnect User-Name=ivanov Framed-IP-Address=10.88.0.15
//! ```
//!
//! The attributes of the answer are printed, one a line. Exit codes as of its sisters: 0 done
//! (also "no such session" to a disconnect), 1 refused, 249 wrong parameters, 254 no answer (so
//! that a scheme tries again).

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::classic::{self, LATER, REFUSED, Refusal, Ridden, Ride};
use super::exit::{self, say};
use super::table::one_line;
use super::{Console, nas};
use crate::attempt::{Failure, FailureClass, Scope};
use crate::config::parse_duration;
use crate::driver::Reply;
use crate::driver::radius::dictionary::{self, Dictionary};
use crate::driver::radius::exchange::Manner;
use crate::driver::radius::{Kind, PORT, Radius, Request, Target};
use crate::driver::sessions::Sessions;
use crate::nas::NasId;
use crate::scheme::resolve::roots;
use crate::scheme::ride::words::{To, What};
use crate::scheme::session::OBSERVE;
use crate::shell::quote;

/// Directory of the scheme, in the environment of its scripts.
const SCHEME: &str = "oss_path";

/// Sends one RADIUS CoA-Request or Disconnect-Request to a NAS.
#[derive(Debug, Parser)]
#[command(name = "send_radius_cmd", version)]
struct Args {
    /// Where to send it
    #[arg(short = 's', num_args = 2, value_names = ["HOST", "SECRET"], allow_hyphen_values = true, conflicts_with = "nas", required_unless_present = "nas")]
    to: Vec<String>,
    /// Take address, secret and switches from the database
    #[arg(long, value_name = "ID")]
    nas: Option<i64>,
    /// UDP port; default 3799, or nas.coa_port
    #[arg(long)]
    port: Option<u16>,
    /// For all copies together
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
    /// With -s: Message-Authenticator: on, off (not sent), require (also in answers)
    #[arg(long, value_enum, default_value_t = Signed::On, value_name = "HOW")]
    message_authenticator: Signed,
    /// Folder with further dictionaries (*.txt); without it, that of the scheme of --nas or of the script
    #[arg(long, value_name = "DIR")]
    dictionaries: Option<PathBuf>,
    /// Print the request, send nothing
    #[arg(long)]
    dry_run: bool,
    /// Configuration file, for --nas.
    #[arg(short, long, env = "NED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// coa or disconnect
    #[arg(value_enum)]
    kind: Word,
    /// Name=value …, in the order in which they are sent; Name:3=value with a tag
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "ATTRIBUTES"
    )]
    attributes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Signed {
    On,
    Off,
    Require,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Word {
    Coa,
    Disconnect,
}

/// Its description, for the manual.
pub fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command()
}

/// `send_radius_cmd …`; the result is the exit code.
pub fn by_name(args: Vec<OsString>) -> u8 {
    classic::by_name(args, async |args: Args| send(&args).await.map(|()| 0))
}

async fn send(args: &Args) -> Result<(), Refusal> {
    let kind = match args.kind {
        Word::Coa => Kind::Coa,
        Word::Disconnect => Kind::Disconnect,
    };
    let command = shown(kind, &args.attributes);
    let parameter = |message: String| Refusal::parameter(message, &command);
    let pairs = pairs(&args.attributes).map_err(&parameter)?;
    let near = args.dictionaries.clone().or_else(of_script);
    // A script that runs in observe mode: nothing may be sent.
    if args.dry_run || std::env::var_os(OBSERVE).is_some() {
        let known = |folder| Request::new(kind, &pairs, &*dictionary(folder)?);
        if let Err(why) = known(near.clone()) {
            // Perhaps a word of the NAS's scheme; it is asked for only where it may matter.
            let folder = match (&near, args.nas) {
                (None, Some(_)) => of_nas(args, &command).await?.1,
                (_, _) => None,
            };
            if folder.is_none() {
                return Err(parameter(why));
            }
            known(folder).map_err(&parameter)?;
        }
        say(one_line(&command));
        return Ok(());
    }
    // The daemon knows those of its scheme, and no others.
    let riding = args.dictionaries.is_none();
    if riding && let Some(ridden) = ride(args, kind, &pairs).await {
        match ridden.map_err(&parameter)? {
            Ridden::Answer(Ok(reply)) => {
                print(&reply);
                return Ok(());
            }
            Ridden::Answer(Err(failure)) => return Err(refusal(&failure, command)),
            Ridden::Recorded => {
                say(one_line(&command));
                return Ok(());
            }
            Ridden::ByYourself => {}
        }
    }
    let (radius, folder) = if args.to.is_empty() {
        of_nas(args, &command).await?
    } else {
        (Arc::new(given(args, &args.to)), None)
    };
    let dictionary = dictionary(near.or(folder)).map_err(&parameter)?;
    let request = Request::new(kind, &pairs, &dictionary).map_err(&parameter)?;
    let told = radius.talk(&request, &dictionary, args.timeout).await;
    print(&told.reply);
    match told.failure {
        None => Ok(()),
        Some(failure) => Err(refusal(&failure, command)),
    }
}

/// Over the daemon's own sockets, inside one of its scripts.
async fn ride(
    args: &Args,
    kind: Kind,
    pairs: &[(String, String)],
) -> Option<Result<Ridden, String>> {
    let meant = To {
        nas: args.nas,
        host: args.to.first().cloned(),
        login: None,
        port: args.port,
    };
    let mut ride = Ride::find(args.config.clone(), meant).await?;
    let what = What::Radius {
        kind,
        attributes: pairs.to_vec(),
    };
    Some(ride.talk(what, args.timeout).await)
}

/// Inside a script: beside its scheme.
fn of_script() -> Option<PathBuf> {
    let scheme = std::env::var_os(SCHEME)?;
    let folder = PathBuf::from(scheme).join(dictionary::FOLDER);
    folder.is_dir().then_some(folder)
}

fn dictionary(folder: Option<PathBuf>) -> Result<Arc<Dictionary>, String> {
    match folder {
        Some(folder) => Dictionary::with_folder(&folder),
        None => Ok(Dictionary::shipped()),
    }
}

fn print(reply: &Reply) {
    for (name, text) in reply.rows.iter().flatten() {
        say(one_line(&format!("{name}={text}")));
    }
}

/// `Name=value`; an empty value is left out by the driver, as in a scheme.
fn pairs(words: &[String]) -> Result<Vec<(String, String)>, String> {
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err(format!("{word:?} is not Name=value")),
    };
    words.iter().map(pair).collect()
}

fn shown(kind: Kind, words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("{} {}", kind.as_str(), words.join(" "))
}

fn given(args: &Args, to: &[String]) -> Radius {
    let mut words = to.iter().cloned();
    let (host, secret) = (words.next(), words.next());
    Radius::new(Target {
        host: host.unwrap_or_default(),
        port: args.port.unwrap_or(PORT),
        manner: Manner {
            secret: secret.unwrap_or_default().into_bytes(),
            message_authenticator: args.message_authenticator != Signed::Off,
            require_message_authenticator: args.message_authenticator == Signed::Require,
            event_timestamp: true,
        },
    })
}

/// The NAS of the database, and the dictionaries of its scheme.
async fn of_nas(args: &Args, command: &str) -> Result<(Arc<Radius>, Option<PathBuf>), Refusal> {
    let id = NasId(args.nas.unwrap_or_default());
    let console = Console {
        file: args.config.clone(),
        ..Console::default()
    };
    let read = async {
        let config = console.config()?;
        let store = console.store(&config).await?;
        let mut row = nas::find(store.as_ref(), id)
            .await?
            .map_err(|bad| exit::Failed::skipped(id, bad.reason))?;
        row.coa_port = args.port.or(row.coa_port);
        let secret = store.secret(id).await?;
        let folder = row.oss_path.as_ref().and_then(|path| {
            let dirs = roots(&config.paths).into_iter().map(|root| root.join(path));
            let mut dirs = dirs.filter(|dir| dir.is_dir());
            dirs.next().map(|dir| dir.join(dictionary::FOLDER))
        });
        Ok((Sessions::default().radius(&row, &secret), folder))
    };
    read.await
        .map_err(|failed: exit::Failed| Refusal::settings(failed, command))
}

fn refusal(failure: &Failure, command: String) -> Refusal {
    let (kind, code) = match (failure.class, failure.scope) {
        (FailureClass::Transport, _) => ("ConnectionError", LATER),
        (FailureClass::Unknown, _) => ("Timeout", LATER),
        (FailureClass::Refused, Scope::Nas) => ("Nak", LATER),
        (FailureClass::Permanent, Scope::Nas) => ("Settings", REFUSED),
        (FailureClass::Refused | FailureClass::Permanent, Scope::Event) => ("Nak", REFUSED),
    };
    Refusal {
        kind,
        message: failure.text.clone(),
        command,
        code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
        let words = [
            "send_radius_cmd",
            "-s",
            "h",
            "-secret",
            "coa",
            "A=b=c",
            "-x=1",
        ];
        let args = Args::try_parse_from(words).unwrap();
        assert_eq!(args.to, ["h", "-secret"]);
        let got = pairs(&args.attributes).unwrap();
        assert_eq!(got[0], ("A".into(), "b=c".into()));
        assert!(pairs(&["nothing".into()]).is_err() && pairs(&["=x".into()]).is_err());
    }

    #[test]
    fn each_failure_has_its_code() {
        let code = |failure: Failure| refusal(&failure, String::new()).code;
        assert_eq!(code(Failure::transport("x")), LATER);
        assert_eq!(code(Failure::timeout("x")), LATER);
        assert_eq!(code(Failure::permanent("x")), REFUSED);
        let busy = Failure {
            scope: Scope::Nas,
            class: FailureClass::Refused,
            ..Failure::permanent("506")
        };
        assert_eq!(code(busy), LATER);
    }
}
