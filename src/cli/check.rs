//! `check`: one line and an exit code as Nagios and its relatives expect of a plugin (0 OK,
//! 1 WARNING, 2 CRITICAL, 3 UNKNOWN), with the numbers behind the bar. The only verb whose codes
//! are not those of the others.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::Console;
use super::ctl::Ctl;
use super::exit::{Failed, NOT_REACHABLE, Outcome, say};
use super::table::one_line;
use crate::daemon::process;

/// Levels; the defaults are the norms of the original's documentation.
#[derive(Debug, Args)]
pub struct Check {
    /// Waiting events from which on it warns
    #[arg(long, default_value_t = USUAL.warn, value_name = "N")]
    warn: i64,
    /// Waiting events from which on it is critical
    #[arg(long, default_value_t = USUAL.crit, value_name = "N")]
    crit: i64,
    /// Age of the oldest waiting event from which on it is critical, seconds
    #[arg(long, default_value_t = USUAL.age, value_name = "S")]
    age: i64,
    /// Waiting events per account from which on it is critical, if they are more than --warn
    #[arg(long, default_value_t = USUAL.per_account, value_name = "N")]
    per_account: i64,
}

/// The plugins' code for what could not be found out.
pub const UNKNOWN: u8 = 3;

/// Where nobody says otherwise.
const USUAL: Check = Check {
    warn: 200,
    crit: 1000,
    age: 600,
    per_account: 5,
};

/// A daemon that says nothing for so long hangs; plugins are given 10 s by most monitors.
const PATIENCE: Duration = Duration::from_secs(8);

/// What the line is made of.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Numbers {
    waiting: i64,
    oldest_s: i64,
    dead: i64,
    unexpandable: i64,
    held: i64,
    limited: bool,
    nases: usize,
    open: Vec<String>,
    skipped: usize,
    /// A file system without room: the database's, the logs'.
    full_database: Option<String>,
    full_logs: Option<String>,
    /// None: the billing does not say.
    accounts: Option<i64>,
}

/// Prints the line.
pub async fn check(console: &Console, args: Check) -> Outcome {
    if args.warn > args.crit {
        let text = format!("--warn {} is above --crit {}", args.warn, args.crit);
        return Ok(told(console, State::Unknown, &text));
    }
    let config = match console.config() {
        Ok(config) => config,
        Err(failed) => {
            let text = failed.text.lines().next().unwrap_or_default();
            return Ok(told(console, State::Unknown, &one_line(text)));
        }
    };
    let asked = async {
        let status = Ctl::new(&config)?.get("/api/v1/status").await?;
        let full = (process::full_database(&config), process::full_logs(&config));
        Ok::<_, Failed>(status.map(|status| (status, full)))
    };
    let (state, said) = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(Some((status, (full_database, full_logs))))) => {
            let n = Numbers {
                full_database,
                full_logs,
                ..numbers(&status)
            };
            let (state, said) = judged(&n, &args);
            if console.wants_data() {
                console.record(&n.record(state, &said));
            } else {
                let text = format!("{} - {said} | {}", state.word(), n.behind_the_bar(&args));
                say(one_line(&text));
            }
            return Ok(state.code());
        }
        Ok(Ok(None)) => (State::Critical, "no daemon is running".to_owned()),
        Ok(Err(failed)) => {
            let text = failed.text.lines().next().unwrap_or_default();
            // The daemon is there and cannot work; else nothing is known of it.
            let state = match failed.code {
                NOT_REACHABLE => State::Critical,
                _ => State::Unknown,
            };
            (state, one_line(text))
        }
        Err(_) => {
            let text = format!("the daemon does not answer within {PATIENCE:?}");
            (State::Critical, text)
        }
    };
    Ok(told(console, state, &said))
}

/// Without numbers.
fn told(console: &Console, state: State, said: &str) -> u8 {
    if console.wants_data() {
        console.record(&state.record(said));
    } else {
        say(format!("{} - {said}", state.word()));
    }
    state.code()
}

/// The plugins' four answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Warning,
    Critical,
    Unknown,
}

impl State {
    fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => UNKNOWN,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    fn record(self, said: &str) -> Vec<(&'static str, Value)> {
        vec![
            ("state", json!(self.word())),
            ("code", json!(self.code())),
            ("said", json!(said)),
        ]
    }
}

fn numbers(status: &Value) -> Numbers {
    let number = |name: &str| status.get(name).and_then(Value::as_i64).unwrap_or(0);
    let main = status.get("main").and_then(Value::as_object);
    let main: i64 = main
        .into_iter()
        .flatten()
        .filter_map(|(_, n)| n.as_i64())
        .sum();
    let list = |name: &str| {
        let list = status
            .get("dispatch")
            .and_then(|d| d.get(name))
            .and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    };
    let text = |nas: &Value, name: &str| {
        let text = nas.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    // Nobody has to look after what an operator has paused or the billing has switched off.
    let is_paused = |nas: &&Value| nas.get("paused").and_then(Value::as_bool) == Some(true);
    let is_off = |nas: &&Value| nas.get(2).and_then(Value::as_str) == Some("off");
    let paused = list("nases").iter().filter(is_paused);
    let off = list("skipped").iter().filter(is_off);
    let meant: Vec<i64> = paused
        .filter_map(|nas| nas.get("id")?.as_i64())
        .chain(off.filter_map(|nas| nas.get(0)?.as_i64()))
        .collect();
    let open = list("nases")
        .iter()
        .filter(|nas| text(nas, "breaker") != "closed" && !is_paused(nas));
    let held = status.get("by_nas").and_then(Value::as_array);
    let held = held.into_iter().flatten();
    Numbers {
        waiting: number("compact") + main,
        oldest_s: oldest_s(status, &meant),
        dead: number("dead"),
        unexpandable: number("unexpandable"),
        held: held
            .filter(|row| row.get("state").and_then(Value::as_str) == Some("held"))
            .filter_map(|row| row.get("events").and_then(Value::as_i64))
            .sum(),
        limited: status.pointer("/intake/limited").and_then(Value::as_bool) == Some(true),
        nases: list("nases").len(),
        open: open
            .map(|nas| format!("{} {}", text(nas, "name"), text(nas, "breaker")))
            .collect(),
        skipped: list("skipped").iter().filter(|nas| !is_off(nas)).count(),
        accounts: status.get("accounts").and_then(Value::as_i64),
        full_database: None,
        full_logs: None,
    }
}

/// Age of the oldest event that waits for no person: neither on a NAS of `meant` nor held by the
/// guard, which has a word of its own. A daemon that does not tell them apart has one number for all.
fn oldest_s(status: &Value, meant: &[i64]) -> i64 {
    let Some(by_nas) = status.get("oldest_by_nas").and_then(Value::as_array) else {
        return status.get("oldest_s").and_then(Value::as_i64).unwrap_or(0);
    };
    let each = by_nas.iter().filter_map(|row| {
        let nas = row.get("nas_id")?.as_i64()?;
        (!meant.contains(&nas)).then(|| row.get("age_s")?.as_i64())?
    });
    let compact = status.get("oldest_compact_s").and_then(Value::as_i64);
    each.chain(compact).max().unwrap_or(0)
}

/// What is not well at the usual levels, the worst first; and the numbers in a sentence.
pub fn complaints(status: &Value) -> (Vec<String>, String) {
    let n = numbers(status);
    let (mut critical, warning) = found(&n, &USUAL);
    critical.extend(warning);
    (critical, n.sentence())
}

impl Numbers {
    fn sentence(&self) -> String {
        format!("{} NASes, {} events wait", self.nases, self.waiting)
    }

    fn record(&self, state: State, said: &str) -> Vec<(&'static str, Value)> {
        let mut all = state.record(said);
        all.extend([
            ("waiting", json!(self.waiting)),
            ("oldest_s", json!(self.oldest_s)),
            ("dead", json!(self.dead)),
            ("held", json!(self.held)),
            ("unexpandable", json!(self.unexpandable)),
            ("not_obeying", json!(self.open.len())),
            ("not_served", json!(self.skipped)),
            ("accounts", json!(self.accounts)),
        ]);
        all
    }

    /// The plugins' performance data.
    fn behind_the_bar(&self, levels: &Check) -> String {
        format!(
            "waiting={};{};{};0 oldest={}s;;{};0 dead={};;;0 not_obeying={};;1;0 not_served={};1;;0 accounts={}",
            self.waiting,
            levels.warn,
            levels.crit,
            self.oldest_s,
            levels.age,
            self.dead,
            self.open.len(),
            self.skipped,
            // `U`: not known.
            self.accounts
                .map_or_else(|| "U".to_owned(), |n| format!("{n};;;0")),
        )
    }
}

/// What is critical, and what is only a warning.
fn found(n: &Numbers, levels: &Check) -> (Vec<String>, Vec<String>) {
    let mut critical = Vec::new();
    let mut warning = Vec::new();
    let each =
        |accounts: &i64| *accounts > 0 && n.waiting >= accounts.saturating_mul(levels.per_account);
    let much = n.accounts.filter(|_| n.waiting >= levels.warn).filter(each);
    if let Some(accounts) = much {
        critical.push(format!(
            "{} events wait, {} or more for each of {accounts} accounts",
            n.waiting, levels.per_account
        ));
    } else if n.waiting >= levels.crit {
        critical.push(format!("{} events wait", n.waiting));
    } else if n.waiting >= levels.warn {
        warning.push(format!("{} events wait", n.waiting));
    }
    if let Some(full) = &n.full_database {
        critical.push(format!("there is no room left on {full}"));
    }
    if let Some(full) = &n.full_logs {
        warning.push(format!("logs are lost: there is no room left on {full}"));
    }
    if n.oldest_s >= levels.age {
        critical.push(format!("the oldest waits for {} s", n.oldest_s));
    }
    if !n.open.is_empty() {
        critical.push(format!("not obeying: {}", n.open.join(", ")));
    }
    if n.limited {
        critical.push("above http.high_water: only those who paid are expanded".to_owned());
    }
    if n.held > 0 {
        warning.push(format!("the guard holds {} events", n.held));
    }
    if n.skipped > 0 {
        warning.push(format!("{} NASes are not served", n.skipped));
    }
    if n.unexpandable > 0 {
        warning.push(format!("{} events cannot be expanded", n.unexpandable));
    }
    (critical, warning)
}

fn judged(n: &Numbers, levels: &Check) -> (State, String) {
    let (critical, warning) = found(n, levels);
    let state = match (critical.is_empty(), warning.is_empty()) {
        (false, _) => State::Critical,
        (true, false) => State::Warning,
        (true, true) => State::Ok,
    };
    let mut said: Vec<String> = critical.into_iter().chain(warning).collect();
    if said.is_empty() {
        said.push(n.sentence());
    }
    // A bar would begin the numbers.
    (state, said.join("; ").replace('|', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: &Numbers) -> (u8, String) {
        let (state, said) = judged(n, &USUAL);
        let bar = n.behind_the_bar(&USUAL);
        (state.code(), format!("{} - {said} | {bar}", state.word()))
    }

    #[test]
    fn each_level_has_its_word() {
        let of = |n: Numbers| line(&n);
        let (code, text) = of(Numbers::default());
        assert_eq!(code, 0);
        assert!(text.starts_with("OK - 0 NASes"), "{text}");
        assert!(
            text.contains("| waiting=0;200;1000;0 oldest=0s;;600;0"),
            "{text}"
        );
        let waiting = |waiting| Numbers {
            waiting,
            ..Numbers::default()
        };
        assert_eq!(of(waiting(199)).0, 0);
        assert_eq!(of(waiting(200)).0, 1);
        assert_eq!(of(waiting(1000)).0, 2);
        // Five per account are much only where they are more than usual.
        let both = |accounts, waiting| Numbers {
            waiting,
            accounts: Some(accounts),
            ..Numbers::default()
        };
        assert_eq!(of(both(10, 199)).0, 0);
        assert_eq!(of(both(100, 499)).0, 1);
        let (code, text) = of(both(100, 500));
        assert_eq!(code, 2);
        assert!(
            text.starts_with("CRITICAL - 500 events wait, 5 or more for each of 100 accounts |"),
            "{text}"
        );
        assert!(text.ends_with(" accounts=100;;;0"), "{text}");
        assert_eq!(of(both(0, 500)).0, 1, "nobody is counted");
        let limited = Numbers {
            limited: true,
            ..Numbers::default()
        };
        assert_eq!(of(limited).0, 2);
        let full = Numbers {
            full_database: Some("/var/lib (7 bytes are free)".to_owned()),
            ..Numbers::default()
        };
        let (code, text) = of(full);
        assert!(
            code == 2 && text.contains("no room left on /var/lib"),
            "{text}"
        );
        let logs = Numbers {
            full_logs: Some("/var/log (7 bytes are free)".to_owned()),
            ..Numbers::default()
        };
        assert_eq!(of(logs).0, 1, "it stops nothing");
        let held = Numbers {
            held: 3,
            ..Numbers::default()
        };
        let (code, text) = of(held);
        assert_eq!(code, 1);
        assert!(text.contains("the guard holds 3 events"), "{text}");
        let told = serde_json::json!({
            "by_nas": [{ "nas_id": 5, "state": "held", "events": 2 }, { "nas_id": 5, "state": "ready", "events": 9 }],
            "intake": { "limited": true }
        });
        let told = numbers(&told);
        assert_eq!((told.held, told.limited), (2, true));
        let open = Numbers {
            open: vec!["a|b open".to_owned()],
            skipped: 1,
            ..Numbers::default()
        };
        let (code, text) = of(open);
        assert_eq!(code, 2);
        assert!(
            text.starts_with("CRITICAL - not obeying: a/b open; 1 NASes"),
            "{text}"
        );
        assert_eq!(text.matches('|').count(), 1);
    }

    #[test]
    fn an_old_event_and_a_nas_that_does_not_obey_are_critical() {
        let of = |status: Value| line(&numbers(&status));
        assert_eq!(of(serde_json::json!({ "oldest_s": 599 })).0, 0);
        let (code, text) = of(serde_json::json!({ "oldest_s": 600 }));
        assert_eq!(code, 2);
        assert!(text.contains("waits for 600 s") && text.contains("oldest=600s;;600;0"));
        for state in ["open", "half-open", "parked"] {
            let (code, text) = of(serde_json::json!({ "dispatch": { "nases": [
                { "name": "a", "breaker": "closed" }, { "name": "b", "breaker": state }
            ] } }));
            assert_eq!(code, 2, "{text}");
            assert!(
                text.contains(&format!("not obeying: b {state} |")),
                "{text}"
            );
            assert!(text.contains("not_obeying=1;;1;0"), "{text}");
        }
    }

    #[test]
    fn what_is_paused_or_off_is_meant() {
        let of = |paused: bool, obstacle: &str| {
            let status = serde_json::json!({
                "oldest_s": 9_000, "oldest_compact_s": 5,
                "oldest_by_nas": [{ "nas_id": 5, "age_s": 9_000 }, { "nas_id": 6, "age_s": 8_000 },
                    { "nas_id": 7, "age_s": 0 }],
                "dispatch": {
                    "nases": [{ "id": 5, "name": "a", "breaker": "open", "paused": paused },
                        { "id": 7, "name": "c", "breaker": "closed", "paused": false }],
                    "skipped": [[6, "it is so", obstacle, "b"]],
                },
            });
            line(&numbers(&status))
        };
        let (code, text) = of(true, "off");
        assert_eq!(code, 0, "{text}");
        assert!(
            text.contains("oldest=5s;") && text.contains("not_served=0;"),
            "{text}"
        );
        let (code, text) = of(false, "off");
        assert_eq!(code, 2, "{text}");
        assert!(
            text.contains("waits for 9000 s; not obeying: a open |"),
            "{text}"
        );
        let (code, text) = of(true, "scheme");
        assert_eq!(code, 2, "{text}");
        assert!(
            text.contains("waits for 8000 s; 1 NASes are not served |"),
            "{text}"
        );
    }
}
