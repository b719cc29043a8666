//! Alarms to whoever is on duty: a POST to `alarm.webhook` when something needs a person, and one
//! when it is well again. What flaps rings once: an alarm begins when it has been there for
//! `alarm.after`, and ends when it has been away ten times as long.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config;
use crate::dispatch::Obstacle;
use crate::dispatch::status::Status;
use crate::driver::tls::{self, Trust};
use crate::logs::Logs;
use crate::store::{Counts, Error, Store, chain, shown_url};

/// It ends after this many times `alarm.after` without it.
const CLEAR_TIMES: u64 = 10;
/// Messages that wait for a receiver that does not answer; the oldest are given up.
const WAITING_MAX: usize = 100;
/// For one message.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// Between two tries of a message: the first, and the longest.
const AGAIN_FIRST_MS: u64 = 1_000;
const AGAIN_LAST_MS: u64 = 60_000;
/// Age of a waiting event from which somebody should know, seconds; as in the rules for Prometheus
/// and in `check`.
const OLD_S: i64 = 600;
/// Between two counts of the stacks for it: each reads all of their rows.
const COUNT_MOST: Duration = Duration::from_secs(30);
/// Between two looks, at most and at least.
const LOOK_MOST: Duration = Duration::from_secs(5);
const LOOK_LEAST: Duration = Duration::from_millis(50);

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The same name for the beginning and the end.
    pub alarm: String,
    /// `raised` or `cleared`.
    pub state: &'static str,
    /// For people.
    pub text: String,
}

#[derive(Debug)]
struct Seen {
    text: String,
    first: u64,
    last: u64,
    raised: bool,
}

/// Which alarms are on. Pure: `now` is an argument, ms.
#[derive(Debug)]
pub struct Alarms {
    after: u64,
    seen: BTreeMap<String, Seen>,
}

impl Alarms {
    /// `after`: how long something has to be wrong, ms.
    pub fn new(after: u64) -> Self {
        Self {
            after,
            seen: BTreeMap::new(),
        }
    }

    /// Takes what is wrong now, by name, and says what to tell.
    pub fn update(&mut self, now: u64, wrong: BTreeMap<String, String>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (alarm, text) in wrong {
            let seen = self.seen.entry(alarm.clone()).or_insert(Seen {
                text: String::new(),
                first: now,
                last: now,
                raised: false,
            });
            seen.last = now;
            seen.text = text;
            if !seen.raised && now.saturating_sub(seen.first) >= self.after {
                seen.raised = true;
                changes.push(Change {
                    alarm,
                    state: "raised",
                    text: seen.text.clone(),
                });
            }
        }
        let clear = self.after.saturating_mul(CLEAR_TIMES);
        self.seen.retain(|alarm, seen| {
            let over = now.saturating_sub(seen.last) >= clear.max(1);
            if over && seen.raised {
                changes.push(Change {
                    alarm: alarm.clone(),
                    state: "cleared",
                    text: seen.text.clone(),
                });
            }
            !over
        });
        changes
    }
}

/// What is looked at.
pub struct Watched {
    /// The database.
    pub store: Arc<dyn Store>,
    /// What the scheduler says of itself.
    pub status: watch::Receiver<Status>,
    /// The main stack is above its mark.
    pub limited: Arc<AtomicBool>,
    /// Events that the intent guard holds.
    pub held: Arc<AtomicUsize>,
    /// The logs, which may lose records.
    pub logs: Logs,
}

/// Events that wait too long, as of the last count.
#[derive(Debug, Default)]
struct Old {
    counted: Option<u64>,
    text: Option<String>,
}

impl Watched {
    /// `after`: how long something has to be wrong, ms.
    async fn wrong(&self, after: u64) -> BTreeMap<String, String> {
        let mut wrong = BTreeMap::new();
        // Lost once is lost: what was so long ago is told, too.
        let losing = self.logs.losing(after.saturating_mul(2));
        if !losing.is_empty() {
            let text = format!(
                "records of the log cannot be written ({}): events are executed all the same; \
                 make room, or mend the permissions",
                losing.join(", ")
            );
            wrong.insert("logs".to_owned(), text);
        }
        if let Err(error) = self.store.owner().await {
            let text = format!("the database does not answer: {}", chain(&error));
            wrong.insert("database".to_owned(), text);
        }
        if self.limited.load(Ordering::Relaxed) {
            let text = "the main stack is above http.high_water: only those who paid are expanded";
            wrong.insert("high_water".to_owned(), text.to_owned());
        }
        let held = self.held.load(Ordering::Relaxed);
        if held > 0 {
            let text =
                format!("the intent guard holds {held} events: guard list, then approve or deny");
            wrong.insert("guard".to_owned(), text);
        }
        wrong.extend(disobedient(&self.status.borrow()));
        wrong
    }
}

/// NASes that do not obey or are not served, by the names of their alarms. What an operator has paused
/// or the billing has switched off is meant.
fn disobedient(status: &Status) -> impl Iterator<Item = (String, String)> {
    let open = status
        .nases
        .iter()
        .filter(|nas| nas.breaker != "closed" && !nas.paused);
    let open = open.map(|nas| {
        let text = format!(
            "NAS {} {} ({}) does not obey, breaker {}: {}",
            nas.id, nas.name, nas.ip, nas.breaker, nas.reason
        );
        (nas.id, text)
    });
    let skipped = status
        .skipped
        .iter()
        .filter(|(_, _, obstacle, _)| *obstacle != Obstacle::Off);
    let skipped = skipped.map(|(id, why, ..)| (*id, format!("NAS {id} is not served: {why}")));
    open.chain(skipped)
        .map(|(id, text)| (format!("nas_{id}"), text))
}

/// Who waits too long. What an operator has paused or the billing has switched off is meant to wait,
/// and what the guard holds has an alarm of its own.
fn too_old(status: &Status, counts: &Counts) -> Option<String> {
    let old = counts.oldest_by_nas.iter().filter(|(_, age)| *age > OLD_S);
    // Of a NAS that the dispatcher has not looked at yet nobody knows whether it is paused.
    let each = old.filter_map(|(id, age)| {
        let served = status.nases.iter().find(|nas| nas.id == *id);
        let skipped = status.skipped.iter().find(|(nas, ..)| nas == id);
        let name = match (served, skipped) {
            (Some(nas), _) => (!nas.paused).then_some(&nas.name),
            (None, Some((.., Obstacle::Off, _)) | None) => None,
            (None, Some((.., name))) => Some(name),
        }?;
        Some(format!("NAS {id} {name}: {age} s"))
    });
    let each: Vec<String> = each.collect();
    let queued = (!each.is_empty()).then(|| {
        format!(
            "events wait for more than {OLD_S} s ({}): event show ID says why",
            each.join(", ")
        )
    });
    let age = counts.oldest_compact_s;
    let compact = (age > OLD_S)
        .then(|| format!("an event is not expanded for {age} s: event list --state compact"));
    let both: Vec<String> = queued.into_iter().chain(compact).collect();
    (!both.is_empty()).then(|| both.join("; "))
}

impl Old {
    /// Counts anew when that is due. A database that does not answer is another alarm.
    async fn look(&mut self, watched: &Watched, every: Duration) -> Option<String> {
        let now = clock::tick_ms();
        let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        let due = self
            .counted
            .is_none_or(|at| now.saturating_sub(at) >= every);
        if due && let Ok(counts) = watched.store.counts().await {
            self.text = too_old(&watched.status.borrow(), &counts);
            self.counted = Some(now);
        }
        self.text.clone()
    }
}

/// Looks and tells until `stop`; without a webhook it ends at once.
pub async fn run(
    settings: config::Alarm,
    host: String,
    watched: Watched,
    stop: CancellationToken,
) -> Result<&'static str, Error> {
    const WHO: &str = "the alarms";
    let client = match client(&settings.webhook) {
        Some(Ok(client)) => client,
        Some(Err(why)) => {
            tracing::error!(
                "alarm.webhook {} cannot be used: {why}",
                shown(&settings.webhook)
            );
            stop.cancelled().await;
            return Ok(WHO);
        }
        None => {
            stop.cancelled().await;
            return Ok(WHO);
        }
    };
    let after = u64::try_from(settings.after.as_millis()).unwrap_or(u64::MAX);
    let look = (settings.after / 5).clamp(LOOK_LEAST, LOOK_MOST);
    let mut alarms = Alarms::new(after);
    let mut old = Old::default();
    let mut waiting: VecDeque<Value> = VecDeque::new();
    let (mut again_at, mut pause) = (0, AGAIN_FIRST_MS);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(WHO),
            () = tokio::time::sleep(look) => {}
        }
        let mut wrong = watched.wrong(after).await;
        if let Some(text) = old.look(&watched, settings.after.min(COUNT_MOST)).await {
            wrong.insert("oldest".to_owned(), text);
        }
        for change in alarms.update(clock::tick_ms(), wrong) {
            if waiting.len() >= WAITING_MAX {
                waiting.pop_front();
                tracing::error!("alarm.webhook takes nothing: the oldest message is given up");
            }
            waiting.push_back(json!({
                "alarm": change.alarm, "state": change.state, "text": change.text,
                "host": host, "at": clock::utc_text(clock::wall_ms()),
            }));
        }
        while clock::tick_ms() >= again_at
            && let Some(message) = waiting.front()
        {
            let sent = tokio::select! {
                () = stop.cancelled() => return Ok(WHO),
                sent = send(&client, &settings.webhook, message) => sent,
            };
            match sent {
                Ok(()) => {
                    waiting.pop_front();
                    pause = AGAIN_FIRST_MS;
                }
                Err(why) => {
                    tracing::warn!(
                        "alarm.webhook {} did not take a message, again in {pause} ms: {why}",
                        shown(&settings.webhook)
                    );
                    again_at = clock::tick_ms().saturating_add(pause);
                    pause = (pause * 2).min(AGAIN_LAST_MS);
                }
            }
        }
    }
}

/// None without a URL.
fn client(url: &str) -> Option<Result<reqwest::Client, String>> {
    if url.is_empty() {
        return None;
    }
    let builder = if url.starts_with("https:") {
        match tls::client_config(&Trust::System) {
            Ok(config) => reqwest::Client::builder()
                .no_proxy()
                .tls_backend_preconfigured(config.as_ref().clone()),
            Err(why) => return Some(Err(why)),
        }
    } else {
        tls::plain_client()
    };
    let built = builder.timeout(SEND_LIMIT).build();
    Some(built.map_err(|e| chain(&e)))
}

/// A webhook as people may see it, scheme and host: with chat services the path is the secret.
pub fn shown(webhook: &str) -> String {
    let shown = shown_url(webhook);
    let (scheme, rest) = shown.split_once("://").unwrap_or(("", &shown));
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    if scheme.is_empty() {
        String::new()
    } else {
        format!("{scheme}://{host}")
    }
}

/// The reason names no URL: it may hold a token.
async fn send(client: &reqwest::Client, url: &str, message: &Value) -> Result<(), String> {
    let answer = client.post(url).json(message).send().await;
    match answer {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("HTTP {}", answer.status())),
        Err(error) => Err(chain(&error.without_url())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::status::NasStatus;

    fn told(alarms: &mut Alarms, now: u64, wrong: &[&str]) -> Vec<String> {
        let wrong = wrong.iter().map(|w| ((*w).to_owned(), "x".to_owned()));
        let changes = alarms.update(now, wrong.collect());
        let short = changes
            .into_iter()
            .map(|c| format!("{} {}", c.alarm, c.state));
        short.collect()
    }

    #[test]
    fn a_shown_webhook_is_its_host() {
        for (webhook, want) in [
            (
                "https://chat.example/services/T0/s3cret",
                "https://chat.example",
            ),
            (
                "https://ned:s3cret@chat.example:8443/x",
                "https://chat.example:8443",
            ),
            ("http://10.0.0.5?token=s3cret", "http://10.0.0.5"),
            ("", ""),
        ] {
            assert_eq!(shown(webhook), want, "{webhook}");
        }
    }

    #[test]
    fn who_waits_too_long_is_told() {
        let status = Status {
            nases: [(1, false), (2, true)]
                .into_iter()
                .map(|(id, paused)| NasStatus {
                    id,
                    paused,
                    name: format!("bras{id}"),
                    ..NasStatus::default()
                })
                .collect(),
            skipped: vec![
                (3, "mode=off".to_owned(), Obstacle::Off, "bras3".to_owned()),
                (
                    4,
                    "no scheme".to_owned(),
                    Obstacle::Scheme,
                    "bras4".to_owned(),
                ),
            ],
            ..Status::default()
        };
        let told = |by_nas: &[(i64, i64)], compact: i64| {
            let counts = Counts {
                // Of events that the guard holds, too.
                oldest_s: 90_000,
                oldest_compact_s: compact,
                oldest_by_nas: by_nas.to_vec(),
                ..Counts::default()
            };
            too_old(&status, &counts).unwrap_or_default()
        };
        // Held, paused, switched off, unknown.
        assert_eq!(told(&[(1, 0), (2, 9_000), (3, 9_000), (9, 9_000)], 600), "");
        let queued = "events wait for more than 600 s (NAS 1 bras1: 601 s, NAS 4 bras4: 700 s): \
                      event show ID says why";
        assert_eq!(told(&[(1, 601), (2, 9_000), (4, 700)], 0), queued);
        let compact = "an event is not expanded for 601 s: event list --state compact";
        assert_eq!(told(&[(2, 9_000)], 601), compact);
        assert_eq!(
            told(&[(1, 601), (4, 700)], 601),
            format!("{queued}; {compact}")
        );
    }

    #[test]
    fn a_nas_that_is_meant_to_stand_still_does_not_ring() {
        let nas = |id, breaker: &'static str, paused| NasStatus {
            id,
            breaker,
            paused,
            name: format!("bras{id}"),
            ..NasStatus::default()
        };
        let skip = |id, obstacle| (id, "because".to_owned(), obstacle, String::new());
        let status = Status {
            nases: vec![
                nas(1, "closed", false),
                nas(2, "open", false),
                nas(3, "open", true),
                nas(4, "parked", false),
            ],
            skipped: vec![skip(5, Obstacle::Off), skip(6, Obstacle::Scheme)],
            ..Status::default()
        };
        let ringing: Vec<String> = disobedient(&status).map(|(alarm, _)| alarm).collect();
        assert_eq!(ringing, ["nas_2", "nas_4", "nas_6"]);
    }

    #[test]
    fn what_flaps_rings_once() {
        let mut alarms = Alarms::new(100);
        assert!(told(&mut alarms, 0, &["nas_5"]).is_empty());
        assert!(told(&mut alarms, 99, &["nas_5"]).is_empty());
        assert_eq!(told(&mut alarms, 100, &["nas_5"]), ["nas_5 raised"]);
        for turn in 1..20 {
            let wrong: &[&str] = if turn % 2 == 0 { &["nas_5"] } else { &[] };
            assert!(
                told(&mut alarms, 100 + turn * 400, wrong).is_empty(),
                "{turn}"
            );
        }
        assert!(told(&mut alarms, 8_200, &[]).is_empty());
        assert_eq!(told(&mut alarms, 8_300, &[]), ["nas_5 cleared"]);
        assert!(told(&mut alarms, 20_000, &[]).is_empty());
        // What is short rings never.
        assert!(told(&mut alarms, 30_000, &["guard"]).is_empty());
        assert!(told(&mut alarms, 31_000, &[]).is_empty());
        assert!(told(&mut alarms, 40_000, &["guard"]).is_empty());
    }
}
