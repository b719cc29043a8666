//! `health` and `status`: does the daemon live, and how do the stacks and NASes stand?

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::ctl::Ctl;
use super::exit::{DONE, FAILED, Failed, NOT_REACHABLE, Outcome, UNHEALTHY, remark, say};
use super::table::{Table, one_line};
use super::{ALONE, Console, check, event, nas_show};
use crate::clock;
use crate::config::Config;
use crate::daemon::process;
use crate::event::{Class, Cmd};
use crate::store::{self, Filter, Store};

/// For one look; a daemon whose loops turn answers in milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Problems that `status` names; more do not fit a screen.
const PROBLEMS: usize = 10;

/// "Of late", and the most dead events that are looked at.
const OF_LATE_MS: i64 = 15 * 60 * 1000;
const DEAD_MOST: usize = 1000;

/// What is asked; a deeper question has more reasons for a no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// Its loops turn. Never asks the database.
    Live,
    /// The database answers, too.
    Ready,
    /// Nothing waits too long, every NAS obeys, nobody's event died of late, the disk has room. For
    /// people and monitoring: nothing is to be restarted for it.
    Deep,
}

impl Stage {
    /// Where it is asked.
    pub fn path(self) -> &'static str {
        match self {
            Self::Live => "/healthz",
            Self::Ready => "/readyz",
            Self::Deep => "/api/v1/status",
        }
    }
}

/// Asks over the control socket, else over the first TCP address.
pub async fn health(console: &Console, stage: Stage) -> Outcome {
    let config = console.config()?;
    let ctl = Ctl::new(&config)?;
    if stage == Stage::Deep {
        return deep(console, &config, &ctl).await;
    }
    let (from, answer) = match ctl.raw(Method::GET, stage.path(), None).await? {
        Some(answer) => (ctl.socket(), answer),
        None => match over_tcp(&config, stage).await? {
            Some(answer) => answer,
            None => {
                let places = format!("{} or on {:?}", ctl.socket(), config.http.listen);
                return Err(nobody(&places));
            }
        },
    };
    let (status, body) = answer;
    let body = one_line(body.trim());
    if status.is_success() {
        judged(console, true, &body);
        return Ok(DONE);
    }
    judged(console, false, &body);
    remark(format!(
        "{from} answered {status}; the daemon log says more"
    ));
    Ok(UNHEALTHY)
}

fn judged(console: &Console, well: bool, said: &str) {
    if console.wants_data() {
        console.record(&[("well", json!(well)), ("said", json!(said))]);
    } else {
        let word = if well { "ok" } else { "unhealthy" };
        say(format!("{word} {said}"));
    }
}

fn nobody(places: &str) -> Failed {
    Failed::new(
        NOT_REACHABLE,
        format!("no daemon listens on {places}\nhint: is it running, and with this configuration (config show)?"),
    )
    .numbered(401)
}

/// What needs no restart and yet somebody's eyes; over the control socket alone, as the numbers of
/// the stacks are not for everybody.
async fn deep(console: &Console, config: &Config, ctl: &Ctl) -> Outcome {
    let status = ctl.get(Stage::Deep.path()).await?;
    let status = status.ok_or_else(|| nobody(&ctl.socket()))?;
    let (mut wrong, sentence) = check::complaints(&status);
    wrong.extend(process::full_disk(config).map(|disk| format!("there is no room left on {disk}")));
    match ctl
        .get(&format!("/api/v1/events?state=dead&limit={DEAD_MOST}"))
        .await
    {
        Ok(dead) => {
            let told = died(dead.as_ref(), clock::wall_ms());
            if told.is_none() && has_more(dead.as_ref()) {
                remark(format!(
                    "of the dead events only the {DEAD_MOST} accepted last were looked at: whether an older one died of late is not known"
                ));
            }
            wrong.extend(told);
        }
        Err(failed) => remark(format!(
            "whether events died of late is not known: {}",
            failed.text
        )),
    }
    if wrong.is_empty() {
        judged(console, true, &one_line(&sentence));
        return Ok(DONE);
    }
    judged(console, false, &one_line(&wrong.join("; ")));
    remark("doctor says what to do");
    Ok(UNHEALTHY)
}

/// A list by id that ends before its end: what waited for long may have died of late, too.
fn has_more(list: Option<&Value>) -> bool {
    list.and_then(|list| list.get("next_before"))
        .is_some_and(|next| !next.is_null())
}

/// Events that died of late and were not retried, as the rule `NasEventsDead` looks at them.
fn died(dead: Option<&Value>, now_ms: i64) -> Option<String> {
    let rows = dead?.get("events")?.as_array()?;
    let of_late = |row: &&Value| {
        let at = row.get("ended_ms").and_then(Value::as_i64);
        // A question that nobody answered leaves no subscriber worse off.
        let asked = row.get("cmd").and_then(Value::as_str);
        let asked = asked.and_then(|cmd| Cmd::parse(cmd).ok());
        asked.is_none_or(|cmd| cmd.class() != Class::Interactive)
            && at.is_some_and(|at| at > now_ms.saturating_sub(OF_LATE_MS))
            && row.get("retried_as").is_none_or(Value::is_null)
    };
    let count = rows.iter().filter(of_late).count();
    (count > 0).then(|| format!("{count} events died within 15 minutes"))
}

type Answered = (String, (reqwest::StatusCode, String));

async fn over_tcp(config: &Config, stage: Stage) -> Result<Option<Answered>, Failed> {
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
        let url = format!("http://{address}{}", stage.path());
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

/// The events that died or were deferred last, the newest first.
async fn problems(store: &dyn Store, deferred: bool) -> Result<Table, Failed> {
    let mut rows = Vec::new();
    for state in ["dead", "deferred"] {
        // Where there is none, all that waits would be read in vain.
        if state == "deferred" && !deferred {
            continue;
        }
        let filter = Filter {
            state: Some(state.to_owned()),
            limit: PROBLEMS,
            ..Filter::default()
        };
        // What was retried is no problem any more.
        let found = match store.events(&filter).await {
            Ok(found) => found,
            Err(error @ store::Error::TooLong) => {
                remark(format!("the last {state} events are not named: {error}"));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        rows.extend(found.into_iter().filter(|row| row.retried_as.is_none()));
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.id));
    rows.truncate(PROBLEMS);
    let headings = &["event", "state", "cmd", "user", "nas", "error"];
    Ok(event::brief(headings, &rows))
}

/// The stacks in numbers, every NAS, the last problems; from the daemon, else from the database.
pub async fn status(console: &Console) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let ctl = Ctl::new(&config)?;
    let live = ctl.look("/api/v1/status").await?;
    if live.is_none() && !ctl.hangs() {
        remark(ALONE);
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
            } else if ctl.hangs() {
                "does not answer"
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
        ("held", json!(of_state("held"))),
        ("dead", json!(counts.dead)),
        ("oldest_s", json!(counts.oldest_s)),
    ];
    if limited.and_then(Value::as_bool) == Some(true) {
        numbers.push((
            "intake",
            json!("limited: above http.high_water, only those who paid are expanded"),
        ));
    }
    let nases = nas_show::listed(&config, store.as_ref(), live.as_ref()).await?;
    let problems = problems(store.as_ref(), of_state("deferred") > 0).await?;
    console.record_with(&numbers, &[("nas", &nases), ("problems", &problems)]);
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_died_of_late_counts() {
        let row = |at: i64, retried: Value| json!({ "ended_ms": at, "retried_as": retried });
        let now = 10_000_000;
        let said = |rows: Vec<Value>| died(Some(&json!({ "events": rows })), now);
        let young = now - OF_LATE_MS + 1;
        assert_eq!(said(vec![row(now - OF_LATE_MS, Value::Null)]), None);
        assert_eq!(said(vec![row(young, json!(7))]), None);
        assert_eq!(
            said(vec![row(young, Value::Null), row(now, Value::Null)]),
            Some("2 events died within 15 minutes".to_owned())
        );
        assert_eq!(died(None, now), None);
        let cut = |next: Value| has_more(Some(&json!({ "events": [], "next_before": next })));
        assert!(cut(json!(7)) && !cut(Value::Null) && !has_more(None));
    }
}
