//! Why an event waits, in one sentence: from its row, its lane, its NAS, and what the dispatcher
//! says of itself. The sentence is pure; gathering the facts is not. Said by the API and by the
//! command line alike.

use serde_json::Value;

use crate::clock;
use crate::event::{Class, Cmd, EventId};
use crate::nas::{NasId, NasState};
use crate::store::{self, EventRow, Filter, Store, WhereIs};

/// What the sentence is made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Wall time, ms.
    pub now_ms: i64,
    /// A daemon answers.
    pub daemon: bool,
    /// `paused until …: reason`.
    pub paused: Option<String>,
    /// Why the daemon does not serve the NAS.
    pub skipped: Option<String>,
    /// State of the breaker and its reason, if it is not closed.
    pub breaker: Option<(String, String)>,
    /// Above `http.high_water`: only who paid is expanded.
    pub limited: bool,
    /// Running attempts and slots of the NAS.
    pub slots: Option<(i64, i64)>,
    /// The event of the lane that is before this one: id, state, deferred until (ms).
    pub ahead: Option<(EventId, String, Option<i64>)>,
    /// An earlier event of the account on another NAS, which goes first: id, NAS, state.
    pub crossed: Option<(EventId, i64, String)>,
    /// Events that wait for the same forks and have a more urgent class; none are counted while a
    /// fork is free.
    pub urgent: usize,
}

/// Rows that are looked at for what goes first; more than a lane of one account has.
const EARLIER: usize = 100;
/// Ready events of a NAS, the newest, among which the more urgent ones are counted.
const READY: usize = 200;
/// With more NASes that work, nobody looks whether an earlier event stands on one of them.
const OTHERS_MAX: usize = 20;

/// Gathers the facts about an event. `live`: `/api/v1/status` of the daemon; none = there is none.
pub async fn facts(
    store: &dyn Store,
    row: &EventRow,
    live: Option<&Value>,
) -> store::Result<Facts> {
    let mut facts = Facts {
        now_ms: clock::wall_ms(),
        daemon: live.is_some(),
        limited: live.is_some_and(is_limited),
        ..Facts::default()
    };
    match row.place {
        WhereIs::Done | WhereIs::Dead => return Ok(facts),
        WhereIs::Compact | WhereIs::Stack => {}
    }
    if let Some(nas) = row.nas_id {
        let states = store.nas_states().await?;
        let state = states.get(&NasId(nas));
        facts.paused = state.and_then(|state| paused_text(state, facts.now_ms));
        of_the_daemon(&mut facts, live, nas);
    }
    let own_lane = class(row) == Class::Interactive;
    if let (Some(_), false) = (row.user_id, own_lane) {
        facts.ahead = ahead(store, row).await?;
        facts.crossed = crossed(store, row, live).await?;
    }
    if facts.are_forks_busy() {
        facts.urgent = urgent(store, row).await?;
    }
    Ok(facts)
}

impl Facts {
    /// Whether every fork of the NAS is taken.
    pub fn are_forks_busy(&self) -> bool {
        self.slots.is_some_and(|(running, forks)| running >= forks)
    }
}

fn class(row: &EventRow) -> Class {
    Cmd::parse(&row.cmd).map_or(Class::Rest, |cmd| cmd.class())
}

/// An earlier event of the account on another NAS that can run; nobody waits for a NAS that is
/// paused, not served, or does not obey.
async fn crossed(
    store: &dyn Store,
    row: &EventRow,
    live: Option<&Value>,
) -> store::Result<Option<(EventId, i64, String)>> {
    if row.place != WhereIs::Stack || row.state != "ready" {
        return Ok(None);
    }
    // NAS by NAS, for a lane has an index and an account has none.
    let others: Vec<i64> = working(live)
        .filter(|nas| Some(*nas) != row.nas_id)
        .collect();
    if others.len() > OTHERS_MAX {
        return Ok(None);
    }
    for nas in others {
        for state in ["running", "ready", "deferred"] {
            let filter = Filter {
                state: Some(state.to_owned()),
                nas: Some(nas),
                user: row.user_id,
                before: Some(row.id.0),
                limit: EARLIER,
                ..Filter::default()
            };
            let earlier = store.events(&filter).await?;
            let first = earlier.into_iter().find(|e| class(e) != Class::Interactive);
            if let Some(other) = first {
                return Ok(Some((other.id, nas, other.state)));
            }
        }
    }
    Ok(None)
}

/// The NASes that the daemon serves and where nothing keeps events from starting.
fn working(live: Option<&Value>) -> impl Iterator<Item = i64> {
    let nases = live.and_then(|live| live.pointer("/dispatch/nases"));
    let nases = nases.and_then(Value::as_array).into_iter().flatten();
    nases
        .filter(|status| {
            status.get("breaker").and_then(Value::as_str) == Some("closed")
                && status.get("paused").and_then(Value::as_bool) != Some(true)
        })
        .filter_map(|status| status.get("id").and_then(Value::as_i64))
}

/// How many ready events of its NAS have a more urgent class.
async fn urgent(store: &dyn Store, row: &EventRow) -> store::Result<usize> {
    let filter = Filter {
        state: Some("ready".to_owned()),
        nas: row.nas_id,
        limit: READY,
        ..Filter::default()
    };
    let ready = store.events(&filter).await?;
    Ok(ready
        .iter()
        .filter(|other| class(other) < class(row))
        .count())
}

/// What the daemon says of a NAS, into the facts.
pub fn of_the_daemon(facts: &mut Facts, live: Option<&Value>, nas: i64) {
    let Some(dispatch) = live.and_then(|live| live.get("dispatch")) else {
        return;
    };
    let list = |name: &str| {
        let list = dispatch.get(name).and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    };
    let text = |value: &Value, name: &str| {
        let text = value.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let skipped = list("skipped")
        .iter()
        .find(|pair| pair.get(0).and_then(Value::as_i64) == Some(nas));
    facts.skipped = skipped.map(|pair| {
        let reason = pair.get(1).and_then(Value::as_str);
        reason.unwrap_or_default().to_owned()
    });
    if let Some(status) = list("nases")
        .iter()
        .find(|status| status.get("id").and_then(Value::as_i64) == Some(nas))
    {
        let breaker = text(status, "breaker");
        facts.breaker = (breaker != "closed").then(|| (breaker, text(status, "reason")));
        let number = |name: &str| status.get(name).and_then(Value::as_i64);
        facts.slots = number("running").zip(number("forks"));
    } else if facts.skipped.is_none() && !(list("nases").is_empty() && list("skipped").is_empty()) {
        // A daemon that knows none at all has only just started.
        facts.skipped = Some("the daemon does not know it; is it in the table nas?".to_owned());
    }
}

/// The event of the same lane that must go first.
async fn ahead(
    store: &dyn Store,
    row: &EventRow,
) -> store::Result<Option<(EventId, String, Option<i64>)>> {
    for state in ["running", "deferred", "ready"] {
        let filter = Filter {
            state: Some(state.to_owned()),
            nas: row.nas_id,
            user: row.user_id,
            before: Some(row.id.0),
            limit: 1,
            ..Filter::default()
        };
        if let Some(first) = store.events(&filter).await?.first() {
            return Ok(Some((first.id, first.state.clone(), first.next_try_ms)));
        }
    }
    Ok(None)
}

/// Whether the daemon of this status is above `http.high_water`.
pub fn is_limited(live: &Value) -> bool {
    live.pointer("/intake/limited").and_then(Value::as_bool) == Some(true)
}

/// `paused until …: reason`, if it is paused now.
pub fn paused_text(state: &NasState, now_ms: i64) -> Option<String> {
    let until = state.paused(now_ms)?;
    let mut text = if until == i64::MAX {
        "paused until resumed".to_owned()
    } else {
        format!("paused until {}", clock::local_text(until))
    };
    if !state.pause_reason.is_empty() {
        text.push_str(&format!(": {}", state.pause_reason));
    }
    Some(text)
}

/// The sentence.
pub fn sentence(row: &EventRow, facts: &Facts) -> Option<String> {
    let at = |ms: Option<i64>| ms.map(clock::local_text).unwrap_or_default();
    let error = row.error.as_deref().filter(|e| !e.is_empty());
    let idle = "no daemon is running: it waits until one does";
    Some(match (row.place, row.state.as_str()) {
        (WhereIs::Done, _) => return None,
        (WhereIs::Dead, _) => match row.retried_as {
            Some(new) => format!("failed for good, and was posted anew as event {new}"),
            None => format!(
                "failed for good ({}); event retry {} posts it anew",
                error.unwrap_or("no reason kept"),
                row.id
            ),
        },
        (WhereIs::Compact, _) if error.is_some() => format!(
            "cannot be expanded: {}; tried again at {}, and when settings change",
            error.unwrap_or_default(),
            at(row.next_try_ms)
        ),
        (WhereIs::Compact, _) if facts.daemon && facts.limited => {
            "waits to be expanded: more events wait than http.high_water, and those of subscribers who paid go first"
                .to_owned()
        }
        (WhereIs::Compact, _) if facts.daemon => "waits for the next expansion".to_owned(),
        (WhereIs::Stack, "running") if facts.daemon => "is being executed now".to_owned(),
        (WhereIs::Stack, "running") => {
            "was running when the daemon ended; the next one runs it again".to_owned()
        }
        (WhereIs::Stack, "held") => {
            format!(
                "held by the guard: guard approve {0} lets it run, guard deny {0} drops it",
                row.id
            )
        }
        _ if !facts.daemon => idle.to_owned(),
        (WhereIs::Stack, "deferred") if row.next_try_ms.is_some_and(|t| t > facts.now_ms) => {
            format!(
                "deferred until {} after try {}: {}",
                at(row.next_try_ms),
                row.try_count,
                error.unwrap_or("no error kept")
            )
        }
        _ => stuck(facts, row.nas_id),
    })
}

fn stuck(facts: &Facts, nas: Option<i64>) -> String {
    let nas = nas.map_or_else(|| "its NAS".to_owned(), |id| format!("NAS {id}"));
    if let Some(reason) = &facts.skipped {
        return format!("{nas} is not served: {reason}");
    }
    if let Some(paused) = &facts.paused {
        return format!("{nas} is {paused}");
    }
    if let Some((id, state, until)) = &facts.ahead {
        let until = until.map(|ms| format!(" until {}", clock::local_text(ms)));
        return format!(
            "the account is busy with its earlier event {id}, which is {state}{}",
            until.unwrap_or_default()
        );
    }
    if let Some((state, reason)) = &facts.breaker {
        return format!("{nas} fails for everybody (breaker {state}): {reason}");
    }
    if let Some((id, other, state)) = &facts.crossed {
        return format!(
            "the account's earlier event {id} on NAS {other}, which is {state}, goes first, but no longer than cross_nas_wait"
        );
    }
    match facts.slots {
        Some((running, forks)) if running >= forks => {
            let mut text = format!("waits for a free fork: all {forks} of {nas} are busy");
            if facts.urgent > 0 {
                text.push_str(&format!(
                    ", and events of a more urgent class go first: {}",
                    facts.urgent
                ));
            }
            text
        }
        _ => "may start at any moment".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(place: WhereIs, state: &str) -> EventRow {
        EventRow {
            user_id: Some(1),
            nas_id: Some(5),
            try_count: 2,
            ..EventRow::new(EventId(9), place, state, "user_add")
        }
    }

    #[test]
    fn the_strongest_reason_is_said() {
        let up = Facts {
            now_ms: 1_000,
            daemon: true,
            ..Facts::default()
        };
        let ready = row(WhereIs::Stack, "ready");
        let say = |row: &EventRow, facts: &Facts| sentence(row, facts).unwrap_or_default();
        assert!(say(&ready, &Facts::default()).contains("no daemon"));
        assert!(say(&ready, &up).contains("any moment"));
        let mut facts = Facts {
            slots: Some((5, 5)),
            ..up.clone()
        };
        assert!(say(&ready, &facts).ends_with("all 5 of NAS 5 are busy"));
        facts.urgent = 3;
        assert!(say(&ready, &facts).ends_with("of a more urgent class go first: 3"));
        facts.crossed = Some((EventId(8), 12, "running".into()));
        assert!(say(&ready, &facts).contains("earlier event 8 on NAS 12, which is running"));
        facts.breaker = Some(("open".into(), "no route".into()));
        assert!(say(&ready, &facts).contains("breaker open): no route"));
        facts.ahead = Some((EventId(7), "running".into(), None));
        assert!(say(&ready, &facts).contains("earlier event 7, which is running"));
        facts.paused = Some("paused: works".into());
        assert!(say(&ready, &facts).contains("NAS 5 is paused: works"));
        facts.skipped = Some("mode=off".into());
        assert!(say(&ready, &facts).contains("not served: mode=off"));
        let mut deferred = row(WhereIs::Stack, "deferred");
        deferred.next_try_ms = Some(2_000);
        deferred.error = Some("rc 254".into());
        assert!(say(&deferred, &up).starts_with("deferred until 19"));
        assert!(say(&deferred, &up).contains("after try 2: rc 254"));
        let mut compact = row(WhereIs::Compact, "compact");
        assert!(say(&compact, &up).contains("next expansion"));
        compact.error = Some("no such account".into());
        assert!(say(&compact, &up).contains("cannot be expanded: no such account"));
        assert_eq!(sentence(&row(WhereIs::Done, "done"), &up), None);
        assert!(say(&row(WhereIs::Dead, "dead"), &up).contains("event retry 9"));
    }
}
