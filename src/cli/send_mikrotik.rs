//! `send_mikrotik_cmd`: one RouterOS command from a shell or a script, as the original's.
//!
//! ```text
//! send_mikrotik_cmd -s HOST LOGIN PASS /queue simple remove comment=crb_10.88.0.15
//! send_mikrotik_cmd --nas 1116 /ip/firewall/address-list/print ?list=crb_negbal
//! ```
//!
//! `remove`, `set`, `enable` and `disable` need an `.id` in the API; as in the original, a
//! comment or a name will do: the rows are looked for first. To find nothing is fine for
//! `remove`. Exit codes are the original's: 249 wrong parameters, 254 not reached or no answer
//! in time (so that a scheme tries again), 1 any other refusal.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use super::classic::{
    self, CONNECT_TIMEOUT, LATER, PARAMETER, REFUSED, Refusal, Ridden, Ride, from_database,
    tls_vars,
};
use super::exit::say;
use super::table::one_line;
use crate::attempt::{Failure, FailureClass, Scope};
use crate::clock;
use crate::config::parse_duration;
use crate::driver::Reply;
use crate::driver::mikrotik::answer::{self, CODE_PARAMETER};
use crate::driver::mikrotik::{Command, Limits, Mikrotik, Target};
use crate::driver::sessions::{API_PORT, API_TLS_PORT, Sessions};
use crate::driver::tls;
use crate::event::refused_name;
use crate::nas::NasId;
use crate::scheme::ride::words::To;
use crate::scheme::session::OBSERVE;
use crate::shell::quote;

/// Words that act on rows which are already there.
const ON_ROWS: &[&str] = &["remove", "set", "enable", "disable", "unset"];
/// What a row is recognised by in `set`, where other words are new values; the first that is
/// given counts.
const MARKS: &[&str] = &["comment", "name"];
/// By what RouterOS tells that it has such a row already; the first of which all are given counts.
const ALIKE: &[&[&str]] = &[&["list", "address"], &["name"], &["comment"]];
/// What says where or from what a row is made, and is no value of it.
const ONLY_NEW: &[&str] = &["place-before", "copy-from"];

/// Sends one command to a MikroTik over the RouterOS API.
#[derive(Debug, Parser)]
#[command(name = "send_mikrotik_cmd", version)]
struct Args {
    /// Where to send it
    #[arg(short = 's', num_args = 3, value_names = ["HOST", "LOGIN", "PASS"], allow_hyphen_values = true, conflicts_with = "nas", required_unless_present = "nas")]
    to: Vec<String>,
    /// Take address and credentials from the database
    #[arg(long, value_name = "ID")]
    nas: Option<i64>,
    /// TCP port; default 8728, or nas.api_port
    #[arg(long)]
    port: Option<u16>,
    /// For connection, login and answer together
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
    /// Speak TLS (port 8729), with a certificate that a CA of this machine has signed
    #[arg(long)]
    tls: bool,
    /// Speak TLS, with a certificate that a CA of this PEM file has signed
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Speak TLS, with the certificate of this SHA-256 fingerprint
    #[arg(long, value_name = "HEX")]
    tls_pin: Option<String>,
    /// Speak TLS with anybody
    #[arg(long)]
    tls_insecure: bool,
    /// Print the sentence, send nothing
    #[arg(long)]
    dry_run: bool,
    /// Configuration file, for --nas.
    #[arg(short, long, env = "NED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// /path command name=value … ?name=value …
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "WORDS"
    )]
    words: Vec<String>,
}

/// Its description, for the manual.
pub fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command()
}

/// `send_mikrotik_cmd …`; the result is the exit code.
pub fn by_name(args: Vec<OsString>) -> u8 {
    classic::by_name(args, async |args: Args| send(args).await.map(|()| 0))
}

/// Where the command goes.
enum Way {
    Own(Arc<Mikrotik>),
    Ride(Box<Ride>),
}

async fn send(args: Args) -> Result<(), Refusal> {
    let command = parse(&args.words)?;
    // A script that runs in observe mode: nothing may be sent.
    if args.dry_run || std::env::var_os(OBSERVE).is_some() {
        say(one_line(&shown(&command)));
        return Ok(());
    }
    let mut way = match Ride::find(args.config.clone(), args.meant()).await {
        Some(ride) => Way::Ride(Box::new(ride)),
        None => Way::Own(sessions(&args, &command).await?),
    };
    let until = clock::tick_ms().saturating_add(ms(args.timeout));
    let mut talk = async |command: &Command| -> Result<Reply, Refusal> {
        let left = || Duration::from_millis(until.saturating_sub(clock::tick_ms()));
        if let Way::Ride(ride) = &mut way {
            let ridden = ride.talk(command.clone().into(), left()).await;
            match ridden.map_err(|why| Refusal::parameter(why, &shown(command)))? {
                Ridden::Answer(reply) => {
                    return reply.map_err(|failure| refusal(&failure, command));
                }
                Ridden::Recorded => {
                    say(one_line(&shown(command)));
                    return Ok(Reply::default());
                }
                Ridden::ByYourself => way = Way::Own(sessions(&args, command).await?),
            }
        }
        let Way::Own(router) = &way else {
            return Ok(Reply::default());
        };
        let reply = router.talk(command, left()).await;
        reply.map_err(|failure| refusal(&failure, command))
    };
    let Some(found) = lookup(&command)? else {
        let refused = match talk(&command).await {
            Ok(reply) => {
                print(&reply);
                return Ok(());
            }
            Err(refusal) => refusal,
        };
        // Who adds wants it to be there, as given: a script that is run again ends well.
        let is_there = answer::is_there(&refused.message);
        let Some((look, values)) = is_there.then(|| alike(&command)).flatten() else {
            return Err(refused);
        };
        let rows = talk(&look).await?.rows;
        let mut ids = rows.iter().filter_map(|row| row.get(".id"));
        let (Some(id), None) = (ids.next(), ids.next()) else {
            return Err(refused);
        };
        if !values.is_empty() {
            let menu = command.path.strip_suffix("add").unwrap_or_default();
            let mut set = Command {
                path: format!("{menu}set"),
                args: vec![(".id".to_owned(), id.clone())],
                ..Command::default()
            };
            set.args.extend(values);
            talk(&set).await?;
        }
        return Ok(());
    };
    let rows = talk(&found.look).await?.rows;
    let mut ids: Vec<String> = Vec::new();
    for row in &rows {
        match row.get(".id") {
            Some(id) => ids.push(id.clone()),
            // A menu with one row, such as /system/identity, has no ids: the words are values.
            None => return talk(&command).await.map(|reply| print(&reply)),
        }
    }
    if ids.is_empty() && !found.none_is_fine {
        // Nothing matches, or the menu has one row only, whose name shall change.
        let all = Command {
            queries: Vec::new(),
            ..found.look.clone()
        };
        let all = talk(&all).await?.rows;
        if all.len() == 1 && all.iter().all(|row| !row.contains_key(".id")) {
            return talk(&command).await.map(|reply| print(&reply));
        }
        return Err(Refusal {
            kind: "Trap",
            message: "no such item".to_owned(),
            command: shown(&command),
            code: REFUSED,
        });
    }
    for id in ids {
        let mut one = Command {
            path: command.path.clone(),
            args: vec![(".id".to_owned(), id)],
            ..Command::default()
        };
        one.args.extend(found.values.clone());
        match talk(&one).await {
            Ok(reply) => print(&reply),
            // Somebody else was faster, which is what was wanted.
            Err(refusal) if found.none_is_fine && refusal.message.contains("no such item") => {}
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(())
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Args {
    /// Whom the caller means.
    fn meant(&self) -> To {
        To {
            nas: self.nas,
            host: self.to.first().cloned(),
            login: self.to.get(1).cloned(),
            port: self.port,
        }
    }
}

async fn sessions(args: &Args, command: &Command) -> Result<Arc<Mikrotik>, Refusal> {
    if let [host, login, password] = args.to.as_slice() {
        let over_tls =
            args.tls || args.tls_ca.is_some() || args.tls_pin.is_some() || args.tls_insecure;
        let usual = if over_tls { API_TLS_PORT } else { API_PORT };
        let target = Target {
            host: host.clone(),
            port: args.port.unwrap_or(usual),
            login: login.clone(),
            password: password.clone(),
        };
        let limits = Limits {
            connections: 1,
            connect_timeout: args.timeout.min(CONNECT_TIMEOUT),
            linger: args.timeout,
            // One session: what paces its logins is the pause after a refusal.
            logins_per_minute: 600,
            know_rows: false,
        };
        if !over_tls {
            return Ok(Arc::new(Mikrotik::new(target, limits)));
        }
        let vars = tls_vars(
            args.tls_ca.as_deref(),
            args.tls_pin.as_deref(),
            args.tls_insecure,
        );
        let settings = tls::Settings::of(&vars)
            .map_err(|why| Refusal::parameter(why.replace(" in nas.vars", ""), &shown(command)))?;
        return Ok(Arc::new(Mikrotik::over_tls(target, limits, &settings)));
    }
    let id = NasId(args.nas.unwrap_or_default());
    let (mut row, secret) = from_database(args.config.clone(), id)
        .await
        .map_err(|failed| Refusal::settings(failed, &shown(command)))?;
    row.api_port = args.port.or(row.api_port);
    Ok(Sessions::default().mikrotik(&row, &secret))
}

/// Words before the first `name=value` or `?query` are the path, with or without slashes.
fn parse(words: &[String]) -> Result<Command, Refusal> {
    let mut path = String::new();
    let mut command = Command::default();
    let line = || words.join(" ");
    for word in words {
        let bare = word.strip_prefix('=').unwrap_or(word);
        if word.starts_with('?') {
            command.queries.push(word.clone());
        } else if let Some((name, value)) = bare.split_once('=') {
            if name.is_empty() {
                let text = format!("{word:?} has no name before '='");
                return Err(Refusal::parameter(text, &line()));
            }
            if name == ".proplist" {
                let names = value.split(',').filter(|n| !n.is_empty());
                command.proplist.extend(names.map(str::to_owned));
            } else {
                command.args.push((name.to_owned(), value.to_owned()));
            }
        } else if command.args.is_empty() && command.queries.is_empty() {
            for part in word.split('/').filter(|part| !part.is_empty()) {
                path.push('/');
                path.push_str(part);
            }
        } else {
            let text = format!("{word:?} is neither name=value nor ?name=value");
            return Err(Refusal::parameter(text, &line()));
        }
    }
    if path.is_empty() {
        let text = "no path, such as /queue simple remove";
        return Err(Refusal::parameter(text, &line()));
    }
    command.path = path;
    Ok(command)
}

fn verb(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// How the row is found that is in the way of an `add`, and what it shall hold.
fn alike(command: &Command) -> Option<(Command, Vec<(String, String)>)> {
    let menu = command.path.strip_suffix("/add")?;
    let given = |mark: &&str| {
        let mut args = command.args.iter();
        args.any(|(name, value)| name == mark && !value.is_empty())
    };
    let marks = ALIKE.iter().find(|marks| marks.iter().all(given))?;
    let (marks, values): (Vec<_>, Vec<_>) = command
        .args
        .iter()
        .filter(|(name, _)| !ONLY_NEW.contains(&name.as_str()))
        .cloned()
        .partition(|(name, _)| marks.contains(&name.as_str()));
    let look = Command {
        path: format!("{menu}/print"),
        args: Vec::new(),
        queries: marks
            .iter()
            .map(|(name, value)| format!("?{name}={value}"))
            .collect(),
        proplist: vec![".id".to_owned()],
    };
    Some((look, values))
}

/// How the rows of a command without `.id` are found.
struct Lookup {
    look: Command,
    /// What is changed in each.
    values: Vec<(String, String)>,
    /// Finding nothing is what was wanted.
    none_is_fine: bool,
}

/// None: the command goes out as it is. An empty value is refused: in a query it means "every
/// row that has none", which no script wants whose variable happened to be empty.
fn lookup(command: &Command) -> Result<Option<Lookup>, Refusal> {
    let verb = verb(&command.path);
    let has_id = command
        .args
        .iter()
        .any(|(name, _)| matches!(name.as_str(), ".id" | "numbers"));
    if !ON_ROWS.contains(&verb) || has_id {
        return Ok(None);
    }
    let changes = matches!(verb, "set" | "unset");
    let (marks, values): (Vec<_>, Vec<_>) = if !changes {
        (command.args.clone(), Vec::new())
    } else if !command.queries.is_empty() {
        (Vec::new(), command.args.clone())
    } else {
        let given = |mark: &&&str| command.args.iter().any(|(name, _)| name == **mark);
        let mark = MARKS.iter().find(given);
        command
            .args
            .iter()
            .cloned()
            .partition(|(name, _)| mark.is_some_and(|mark| name == mark))
    };
    if marks.is_empty() && command.queries.is_empty() {
        if verb == "remove" {
            let text = "which rows? give .id=, comment=, name= or ?name=value";
            return Err(Refusal::parameter(text, &shown(command)));
        }
        return Ok(None);
    }
    let empty_query = |query: &&String| query.ends_with('=');
    if let Some((name, _)) = marks.iter().find(|(_, value)| value.is_empty()) {
        let text = format!("{name}= is empty: it would match every row without one");
        return Err(Refusal::parameter(text, &shown(command)));
    }
    if let Some(query) = command.queries.iter().find(empty_query) {
        let text = format!("{query} is empty: it would match every row without one");
        return Err(Refusal::parameter(text, &shown(command)));
    }
    let menu = command.path.strip_suffix(verb).unwrap_or_default();
    let mut queries = command.queries.clone();
    queries.extend(marks.iter().map(|(name, value)| format!("?{name}={value}")));
    Ok(Some(Lookup {
        look: Command {
            path: format!("{menu}print"),
            args: Vec::new(),
            queries,
            proplist: vec![".id".to_owned()],
        },
        values,
        none_is_fine: verb == "remove",
    }))
}

/// The sentence for people; a password among its words is not repeated.
fn shown(command: &Command) -> String {
    let mut words = vec![quote(&command.path)];
    words.extend(command.args.iter().map(|(name, value)| {
        let value = if refused_name(name) { "***" } else { value };
        quote(&format!("{name}={value}"))
    }));
    if !command.proplist.is_empty() {
        words.push(quote(&format!(".proplist={}", command.proplist.join(","))));
    }
    words.extend(command.queries.iter().map(|query| quote(query)));
    words.join(" ")
}

fn print(reply: &Reply) {
    let mut first = true;
    for row in &reply.rows {
        if !first {
            say("");
        }
        first = false;
        for (name, value) in row {
            say(one_line(&format!("{name}={value}")));
        }
    }
    if let Some(ret) = &reply.ret {
        say(one_line(&format!("ret={ret}")));
    }
}

fn refusal(failure: &Failure, command: &Command) -> Refusal {
    let (kind, code) = match (failure.class, failure.scope) {
        (FailureClass::Transport, _) => ("ConnectionError", LATER),
        (FailureClass::Unknown, _) => ("Timeout", LATER),
        (_, Scope::Nas) => ("LoginError", REFUSED),
        (FailureClass::Permanent, Scope::Event) if failure.code == CODE_PARAMETER => {
            ("UnknownParameter", PARAMETER)
        }
        (FailureClass::Permanent | FailureClass::Refused, Scope::Event) => ("Trap", REFUSED),
    };
    Refusal {
        kind,
        message: failure.text.clone(),
        command: shown(command),
        code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Result<Command, Refusal> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(&words)
    }

    /// Queries, then what is changed.
    type Found = (Vec<String>, Vec<(String, String)>);

    fn found(line: &str) -> Option<Found> {
        let look = lookup(&command(line).unwrap()).unwrap()?;
        Some((look.look.queries, look.values))
    }

    #[test]
    fn words_become_a_sentence() {
        let c = command("/queue simple remove comment=crb_10.88.0.15").unwrap();
        assert_eq!(c.path, "/queue/simple/remove");
        assert_eq!(c.args, [("comment".into(), "crb_10.88.0.15".into())]);
        let c = command("/ip/address print ?interface=a=b .proplist=.id,address").unwrap();
        assert_eq!(c.path, "/ip/address/print");
        assert_eq!(c.queries, ["?interface=a=b"]);
        assert_eq!(c.proplist, [".id", "address"]);
        let c = command("ip address remove =.id=*1").unwrap();
        assert_eq!((c.path.as_str(), c.args.len()), ("/ip/address/remove", 1));
        assert_eq!(command("comment=x").unwrap_err().code, PARAMETER);
        assert_eq!(command("/a print x=1 bare").unwrap_err().code, PARAMETER);
        assert_eq!(command("/a print ==1").unwrap_err().code, PARAMETER);
    }

    #[test]
    fn rows_are_found_by_their_marks() {
        let none = Vec::new();
        assert_eq!(
            found("/queue simple remove comment=x name=y"),
            Some((vec!["?comment=x".into(), "?name=y".into()], none.clone()))
        );
        let limit = vec![("max-limit".to_owned(), "1M/1M".to_owned())];
        assert_eq!(
            found("/queue simple set max-limit=1M/1M comment=x"),
            Some((vec!["?comment=x".into()], limit.clone()))
        );
        assert_eq!(
            found("/queue simple set ?target=10.0.0.1/32 max-limit=1M/1M"),
            Some((vec!["?target=10.0.0.1/32".into()], limit))
        );
        for as_it_is in [
            "/queue simple remove .id=*1",
            "/queue simple add name=x",
            "/ip dns set servers=10.0.0.1",
            "/queue simple print ?name=x",
        ] {
            assert_eq!(found(as_it_is), None, "{as_it_is}");
        }
    }

    #[test]
    fn an_empty_value_never_widens_a_command() {
        for line in [
            "/queue simple remove comment=",
            "/queue simple remove ?comment=",
            "/queue simple remove",
            "/queue simple set comment= max-limit=1M/1M",
            "/queue simple disable name=",
        ] {
            let refused = lookup(&command(line).unwrap()).err().unwrap();
            assert_eq!(refused.code, PARAMETER, "{line}");
        }
    }

    #[test]
    fn failures_have_the_originals_codes() {
        let c = command("/ppp secret add name=a password=servicemode").unwrap();
        let code = |f: Failure| refusal(&f, &c).code;
        assert_eq!(code(Failure::transport("refused")), LATER);
        assert_eq!(code(Failure::timeout("late")), LATER);
        assert_eq!(code(Failure::permanent("x")), REFUSED);
        let parameter = Failure {
            code: CODE_PARAMETER,
            ..Failure::permanent("unknown parameter foo")
        };
        let told = refusal(&parameter, &c);
        assert_eq!((told.kind, told.code), ("UnknownParameter", PARAMETER));
        assert!(!told.command.contains("servicemode"), "{}", told.command);
    }
}
