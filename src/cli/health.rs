//! `health` and `status`: does the daemon live, and how do the stacks and NASes stand?

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::ctl::Ctl;
use super::exit::{DONE, FAILED, Failed, NOT_REACHABLE, Outcome, UNHEALTHY, remark, say};
use super::table::{Format, one_line};
use super::{Console, nas};
use crate::config::Config;

/// For one look; a daemon whose loops turn answers in milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks `/healthz`, over the control socket, else over the first TCP address.
pub async fn health(console: &Console) -> Outcome {
    let config = console.config()?;
    let ctl = Ctl::new(&config)?;
    let (from, answer) = match ctl.raw(Method::GET, "/healthz", None).await? {
        Some(answer) => (ctl.socket(), answer),
        None => match over_tcp(&config).await? {
            Some(answer) => answer,
            None => {
                return Err(Failed::new(
                    NOT_REACHABLE,
                    format!(
                        "no daemon listens on {} or on {:?}\nhint: is it running, and with this configuration (config show)?",
                        ctl.socket(),
                        config.http.listen
                    ),
                ).numbered(401));
            }
        },
    };
    let (status, body) = answer;
    let body = one_line(body.trim());
    if status.is_success() {
        say(format!("ok {body}"));
        return Ok(DONE);
    }
    say(format!("unhealthy {body}"));
    remark(format!(
        "{from} answered {status}; the daemon log says more"
    ));
    Ok(UNHEALTHY)
}

type Answered = (String, (reqwest::StatusCode, String));

async fn over_tcp(config: &Config) -> Result<Option<Answered>, Failed> {
    let client = crate::driver::tls::plain_client()
        .timeout(TIMEOUT)
        .build()
        .map_err(|e| Failed::new(FAILED, format!("cannot make an HTTP client: {e}")))?;
    for listen in &config.http.listen {
        let Ok(mut address) = listen.parse::<SocketAddr>() else {
            continue;
        };
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let url = format!("http://{address}/healthz");
        if let Ok(answer) = client.get(&url).send().await {
            let status = answer.status();
            return Ok(Some((
                url,
                (status, answer.text().await.unwrap_or_default()),
            )));
        }
    }
    Ok(None)
}

/// The stacks in numbers, then every NAS; from the daemon, else from the database.
pub async fn status(console: &Console) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let live = Ctl::new(&config)?.get("/api/v1/status").await?;
    if live.is_none() {
        remark("no daemon is running: read from the database");
    }
    let counts = store.counts().await?;
    let main: i64 = counts.main.iter().map(|(_, n)| n).sum();
    let of_state = |state: &str| -> i64 {
        let rows = counts.by_nas.iter().filter(|(_, s, _)| s == state);
        rows.map(|(_, _, n)| n).sum()
    };
    let limited = live.as_ref().and_then(|l| l.pointer("/intake/limited"));
    let mut numbers: Vec<(&'static str, Value)> = vec![
        (
            "daemon",
            json!(if live.is_some() {
                "running"
            } else {
                "not running"
            }),
        ),
        (
            "version",
            json!(live.as_ref().and_then(|l| l.get("version"))),
        ),
        ("compact", json!(counts.compact)),
        ("unexpandable", json!(counts.unexpandable)),
        ("main", json!(main)),
        ("ready", json!(of_state("ready"))),
        ("running", json!(of_state("running"))),
        ("deferred", json!(of_state("deferred"))),
        ("dead", json!(counts.dead)),
        ("oldest_s", json!(counts.oldest_s)),
    ];
    if limited.and_then(Value::as_bool) == Some(true) {
        numbers.push((
            "intake",
            json!("limited: above http.high_water, only those who paid are expanded"),
        ));
    }
    let nases = nas::listed(&config, store.as_ref(), live.as_ref()).await?;
    match console.format() {
        Format::Json | Format::Jsonl => {
            // One document, so that a program reads it at once.
            let rows = serde_json::from_str::<Value>(&nases.text(Format::Json));
            let mut all: serde_json::Map<String, Value> = numbers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect();
            all.insert("nas".to_owned(), rows.unwrap_or_default());
            say(Value::Object(all).to_string());
        }
        Format::Table | Format::Plain | Format::Csv => {
            console.record(&numbers);
            say("");
            console.list(&nases);
        }
    }
    Ok(DONE)
}
