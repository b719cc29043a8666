//! `send_http_cmd`: one HTTP request from a shell or a script, with the bounds of the driver:
//! one host, no redirects, no proxies, an answer of bounded size.
//!
//! ```text
//! send_http_cmd -s https://billing.example/hook LOGIN PASS POST /events --json '{"a":1}'
//! send_http_cmd --nas 1116 DELETE /subscribers/1424
//! ```
//!
//! The body of the answer goes to stdout. Exit codes as those of `send_mikrotik_cmd`: 249 wrong
//! parameters; 254 try again later (not reached, no answer in time, HTTP 408, 425, 429, 5xx);
//! 1 any other refusal.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use super::classic::{
    self, CONNECT_TIMEOUT, LATER, PARAMETER, REFUSED, Refusal, Ridden, Ride, from_database,
    tls_vars,
};
use super::exit::{say, say_all};
use super::table::one_line;
use crate::attempt::{Failure, FailureClass, Scope};
use crate::config::parse_duration;
use crate::driver::http::{Auth, Http, Limits, METHODS, Request, Target};
use crate::driver::sessions::Sessions;
use crate::driver::tls;
use crate::nas::NasId;
use crate::scheme::ride::words::To;
use crate::scheme::session::OBSERVE;
use crate::shell::quote;

/// Sends one HTTP request to the NAS's `http_url` or a given URL.
#[derive(Debug, Parser)]
#[command(name = "send_http_cmd", version)]
struct Args {
    /// Where to send it; an empty LOGIN with a PASS is a bearer token
    #[arg(short = 's', num_args = 3, value_names = ["URL", "LOGIN", "PASS"], allow_hyphen_values = true, conflicts_with = "nas", required_unless_present = "nas")]
    to: Vec<String>,
    /// Take URL and credentials from the database
    #[arg(long, value_name = "ID")]
    nas: Option<i64>,
    /// How to authenticate with -s: basic, bearer, none, header:NAME
    #[arg(long, value_name = "HOW", default_value = "")]
    auth: String,
    /// A header field
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// JSON body
    #[arg(long, value_name = "TEXT")]
    json: Option<String>,
    /// For connection and answer together
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
    /// Trust the CAs of this PEM file, with -s
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Trust the certificate of this SHA-256 fingerprint, with -s
    #[arg(long, value_name = "HEX")]
    tls_pin: Option<String>,
    /// Trust anybody, with -s
    #[arg(long)]
    tls_insecure: bool,
    /// Print the request, send nothing
    #[arg(long)]
    dry_run: bool,
    /// Configuration file, for --nas.
    #[arg(short, long, env = "NED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// GET, POST, PUT, PATCH or DELETE
    method: String,
    /// Path below the URL, percent-encoded
    path: String,
}

/// Its description, for the manual.
pub fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command()
}

/// `send_http_cmd …`; the result is the exit code.
pub fn by_name(args: Vec<OsString>) -> u8 {
    classic::by_name(args, async |args: Args| send(args).await.map(|()| 0))
}

async fn send(args: Args) -> Result<(), Refusal> {
    let request = request(&args)?;
    let line = shown(&request);
    request
        .check()
        .map_err(|why| Refusal::parameter(why, &line))?;
    // A script that runs in observe mode: nothing may be sent.
    if args.dry_run || std::env::var_os(OBSERVE).is_some() {
        say(one_line(&line));
        return Ok(());
    }
    let meant = To {
        nas: args.nas,
        host: args.to.first().cloned(),
        login: args.to.get(1).cloned(),
        port: None,
    };
    let mut reply = None;
    if let Some(mut ride) = Ride::find(args.config.clone(), meant).await {
        let ridden = ride.talk(request.clone().into(), args.timeout).await;
        match ridden.map_err(|why| Refusal::parameter(why, &line))? {
            Ridden::Answer(answer) => reply = Some(answer),
            Ridden::Recorded => {
                say(one_line(&line));
                return Ok(());
            }
            Ridden::ByYourself => {}
        }
    }
    let reply = match reply {
        Some(reply) => reply,
        None => {
            device(&args, &line)
                .await?
                .talk(&request, args.timeout)
                .await
        }
    };
    let reply = reply.map_err(|failure| refusal(&failure, &line))?;
    if !reply.text.is_empty() {
        say_all(&reply.text);
        if !reply.text.ends_with('\n') {
            say("");
        }
    }
    Ok(())
}

fn request(args: &Args) -> Result<Request, Refusal> {
    let mut headers = Vec::with_capacity(args.headers.len());
    for field in &args.headers {
        let Some((name, value)) = field.split_once(':') else {
            let text = format!("{field:?} is not a header field, NAME: VALUE");
            return Err(Refusal::parameter(text, &args.path));
        };
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    if let Some(json) = &args.json
        && let Err(e) = serde_json::from_str::<serde::de::IgnoredAny>(json)
    {
        return Err(Refusal::parameter(format!("--json: {e}"), &args.path));
    }
    let method = args.method.to_ascii_uppercase();
    if !METHODS.contains(&method.as_str()) {
        let methods = METHODS.join(", ");
        let text = format!("method {:?} is none of {methods}", args.method);
        return Err(Refusal::parameter(text, &args.path));
    }
    Ok(Request {
        method,
        path: args.path.clone(),
        headers,
        json: args.json.clone(),
    })
}

async fn device(args: &Args, line: &str) -> Result<Arc<Http>, Refusal> {
    let bad = |why: String| Refusal::parameter(why.replace(" in nas.vars", ""), line);
    if let [url, login, password] = args.to.as_slice() {
        let vars = tls_vars(
            args.tls_ca.as_deref(),
            args.tls_pin.as_deref(),
            args.tls_insecure,
        );
        let target = Target {
            url: url.clone(),
            auth: Auth::of(&args.auth, login, password).map_err(bad)?,
            trust: tls::Settings::of(&vars).map_err(bad)?.trust,
        };
        let limits = Limits {
            connections: 1,
            connect_timeout: (args.timeout / 2).min(CONNECT_TIMEOUT),
            linger: args.timeout,
        };
        return Ok(Arc::new(Http::new(&target, &limits)));
    }
    let id = NasId(args.nas.unwrap_or_default());
    let (row, secret) = from_database(args.config.clone(), id)
        .await
        .map_err(|failed| Refusal::settings(failed, line))?;
    Ok(Sessions::default().http(&row, &secret))
}

/// The request for people.
fn shown(request: &Request) -> String {
    let mut line = format!("{} {}", request.method, quote(&request.path));
    for (name, value) in &request.headers {
        line.push_str(&format!(" -H {}", quote(&format!("{name}: {value}"))));
    }
    if let Some(json) = &request.json {
        line.push_str(&format!(" --json {}", quote(json)));
    }
    line
}

fn refusal(failure: &Failure, line: &str) -> Refusal {
    let (kind, code) = match (failure.class, failure.scope) {
        (FailureClass::Transport, _) => ("ConnectionError", LATER),
        (FailureClass::Unknown, _) => ("Timeout", LATER),
        (FailureClass::Refused, Scope::Event) => ("Refused", LATER),
        (FailureClass::Refused, Scope::Nas) => ("LoginError", REFUSED),
        (FailureClass::Permanent, Scope::Nas) => ("Settings", PARAMETER),
        (FailureClass::Permanent, Scope::Event) => ("Refused", REFUSED),
    };
    Refusal {
        kind,
        message: failure.text.clone(),
        command: line.to_owned(),
        code,
    }
}
