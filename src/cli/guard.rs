//! `guard …`: what the intent guard holds, releasing and giving up held events, announcing
//! batches that are meant.

use std::time::Duration;

use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, NaiveTime, TimeZone};
use clap::{Args, Subcommand};
use serde_json::json;

use super::event::time;
use super::exit::{DONE, Failed, NOT_FOUND, Outcome, PART_FAILED, REFUSED, USAGE, remark, say};
use super::table::Table;
use super::{Console, Reason, given, who};
use crate::clock;
use crate::config::parse_duration;
use crate::event::{Cmd, EventId};
use crate::store::{EventRow, Filter, GuardOrder, OrderKind, Store};

/// Rows of a page; the store's own limit.
const PAGE: usize = 1_000;

/// Held events that the audit names one by one.
const NAMED: usize = 100;

/// Verbs of the intent guard.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Held events with the reason, and announced batches.
    List,
    /// Let held events run; one that a later event overtook is superseded instead.
    Approve(Which),
    /// Give held events up: done, with the result "dropped".
    Deny(Which),
    /// Announce a batch: what it covers is neither counted nor held.
    Allow(Allow),
    /// Take an announced batch back.
    Revoke {
        /// Its number in `guard list`
        id: i64,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
}

/// Which held events.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["ids", "source", "all"])))]
pub struct Which {
    /// Numbers of held events
    ids: Vec<i64>,
    /// All of this source
    #[arg(long)]
    source: Option<String>,
    /// All
    #[arg(long)]
    all: bool,
    /// Of these only this command
    #[arg(long, conflicts_with = "ids")]
    cmd: Option<String>,
    /// Why.
    #[command(flatten)]
    reason: Reason,
}

/// A batch that is meant.
#[derive(Debug, Args)]
pub struct Allow {
    /// Whose: the name of the token, else the script that adds the events
    #[arg(long)]
    source: String,
    /// Only this command
    #[arg(long)]
    cmd: Option<String>,
    /// When it begins, in the server's time zone; default: now
    #[arg(long, value_name = "YYYY-MM-DD HH:MM", value_parser = local)]
    from: Option<i64>,
    /// How long it goes on
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    lasts: Duration,
    /// Most events of one batch
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    max: i64,
    /// Again each month, on this day and hour (UTC)
    #[arg(long)]
    monthly: bool,
    /// Why.
    #[command(flatten)]
    reason: Reason,
}

/// A moment in the server's time zone, wall ms.
pub fn local(text: &str) -> Result<i64, String> {
    ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
        .and_then(|naive| Local.from_local_datetime(&naive).earliest())
        .map(|moment| moment.timestamp_millis())
        .ok_or_else(|| "expected YYYY-MM-DD HH:MM".to_owned())
}

/// A time to come: of day, or a moment, in the server's time zone.
pub fn coming(text: &str) -> Result<i64, String> {
    coming_after(text, clock::wall_ms())
}

fn coming_after(text: &str, now_ms: i64) -> Result<i64, String> {
    let wrong = || "expected HH:MM or \"YYYY-MM-DD HH:MM\"".to_owned();
    let at = match NaiveTime::parse_from_str(text, "%H:%M") {
        Ok(time) => {
            let now = DateTime::from_timestamp_millis(now_ms).ok_or_else(wrong)?;
            let today = now.with_timezone(&Local).date_naive();
            let of_day = |day: NaiveDate| {
                let at = Local.from_local_datetime(&day.and_time(time)).earliest();
                at.map(|at| at.timestamp_millis())
            };
            let tomorrow = today.succ_opt().ok_or_else(wrong)?;
            of_day(today)
                .filter(|at| *at > now_ms)
                .or_else(|| of_day(tomorrow))
        }
        Err(_) => local(text).ok(),
    }
    .ok_or_else(wrong)?;
    if at <= now_ms {
        return Err(format!("{} is over", clock::local_text(at)));
    }
    Ok(at)
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let store = store.as_ref();
    match verb {
        Verb::List => list(console, store).await,
        Verb::Approve(which) | Verb::Deny(which) if console.dry_run => {
            would(console, store, &which).await
        }
        Verb::Approve(which) => approve(console, store, which).await,
        Verb::Deny(which) => deny(console, store, which).await,
        Verb::Allow(args) => allow(console, store, args).await,
        Verb::Revoke { id, .. } if console.dry_run => {
            let orders = store.guard_orders().await?;
            let is_it = |order: &GuardOrder| order.id == id && order.kind == OrderKind::Allow;
            let known = orders.iter().any(is_it);
            remark(if known {
                format!("dry run: the announced batch {id} would be taken back")
            } else {
                format!("dry run: there is no announced batch {id}")
            });
            Ok(if known { DONE } else { NOT_FOUND })
        }
        Verb::Revoke { id, reason } => {
            if !store.remove_guard_order(id, OrderKind::Allow).await? {
                let text = format!("there is no announced batch {id}\nhint: see guard list");
                return Err(Failed::new(NOT_FOUND, text));
            }
            let detail = reason.of(&format!("batch={id}"));
            store.audit(&who(), "guard revoke", &detail).await?;
            remark(format!("the announced batch {id} was taken back"));
            Ok(DONE)
        }
    }
}

/// A held event and whose it is.
struct Held {
    row: EventRow,
    source: String,
}

async fn held(store: &dyn Store) -> Result<Vec<Held>, Failed> {
    let mut filter = Filter {
        state: Some("held".to_owned()),
        limit: PAGE,
        // With a full stack, when an operator's word is needed most, no index tells them apart.
        unbounded: true,
        ..Filter::default()
    };
    let mut all = Vec::new();
    loop {
        let rows = store.events(&filter).await?;
        filter.before = rows.last().map(|row| row.id.0);
        let full = rows.len() >= PAGE;
        let ids: Vec<EventId> = rows.iter().map(|row| row.id).collect();
        let causes = store.causes(&ids).await?;
        all.extend(rows.into_iter().map(|row| {
            let cause = causes.iter().find(|c| c.id == row.id);
            let source = cause.map(|c| c.source.clone()).unwrap_or_default();
            Held { row, source }
        }));
        if !full {
            return Ok(all);
        }
    }
}

async fn list(console: &Console, store: &dyn Store) -> Outcome {
    let mut table = Table::new(&[
        "what", "id", "source", "cmd", "user", "nas", "since", "for_s", "max", "monthly", "reason",
    ]);
    for Held { row, source } in held(store).await? {
        table.push(vec![
            json!("held"),
            json!(row.id),
            json!(source),
            json!(row.cmd),
            json!(row.user_id),
            json!(row.nas_id),
            time(Some(row.event_date_ms)),
            json!(null),
            json!(null),
            json!(null),
            json!(row.error),
        ]);
    }
    for order in store.guard_orders().await? {
        table.push(vec![
            json!(order.kind.as_str()),
            json!(order.id),
            json!(order.source),
            json!(order.cmd),
            json!(null),
            json!(null),
            time((order.from_ms > 0).then_some(order.from_ms)),
            json!((order.for_ms > 0).then_some(order.for_ms / 1_000)),
            json!((order.most > 0).then_some(order.most)),
            json!((order.kind == OrderKind::Allow).then_some(order.monthly)),
            json!(order.who),
        ]);
    }
    console.list(&table);
    Ok(DONE)
}

/// The held events that are meant; names that are not held.
async fn chosen(store: &dyn Store, which: &Which) -> Result<(Vec<Held>, Vec<i64>), Failed> {
    let all = held(store).await?;
    let missing: Vec<i64> = which
        .ids
        .iter()
        .filter(|id| !all.iter().any(|h| h.row.id.0 == **id))
        .copied()
        .collect();
    let fits = |h: &Held| {
        (which.ids.is_empty() || which.ids.contains(&h.row.id.0))
            && which.source.as_ref().is_none_or(|s| *s == h.source)
            && which.cmd.as_ref().is_none_or(|cmd| *cmd == h.row.cmd)
    };
    Ok((all.into_iter().filter(fits).collect(), missing))
}

fn told(missing: &[i64], done: usize) -> Outcome {
    for id in missing {
        remark(format!("event {id} is not held"));
    }
    Ok(match (missing.len(), done) {
        (0, _) => DONE,
        (_, 0) => NOT_FOUND,
        _ => PART_FAILED,
    })
}

/// The events that would be approved or denied.
async fn would(console: &Console, store: &dyn Store, which: &Which) -> Outcome {
    let (held, missing) = chosen(store, which).await?;
    let mut table = Table::new(&["id", "source", "cmd", "user", "nas"]);
    for h in &held {
        table.push(vec![
            json!(h.row.id),
            json!(h.source),
            json!(h.row.cmd),
            json!(h.row.user_id),
            json!(h.row.nas_id),
        ]);
    }
    console.list(&table);
    remark(format!(
        "dry run: {} held events are meant, nothing was changed",
        held.len()
    ));
    told(&missing, held.len())
}

async fn approve(console: &Console, store: &dyn Store, which: Which) -> Outcome {
    let (held, missing) = chosen(store, &which).await?;
    let order = |event: Option<EventId>| GuardOrder {
        id: 0,
        kind: OrderKind::Approve,
        source: which.source.clone(),
        cmd: which.cmd.clone(),
        event,
        from_ms: 0,
        for_ms: 0,
        most: 0,
        monthly: false,
        who: who(),
    };
    if which.ids.is_empty() {
        if !held.is_empty() {
            store.add_guard_order(&order(None)).await?;
        }
    } else {
        for h in &held {
            store.add_guard_order(&order(Some(h.row.id))).await?;
        }
    }
    let detail = which.reason.of(&format!(
        "events={} source={} cmd={} ids={}",
        held.len(),
        given(&which.source),
        given(&which.cmd),
        numbers(held.iter().map(|h| h.row.id))
    ));
    store.audit(&who(), "guard approve", &detail).await?;
    if console.wants_data() {
        console.record(&[("released", json!(held.len()))]);
    } else {
        say(held.len().to_string());
    }
    remark(format!(
        "{} held events are released; the daemon takes them within a second, if it runs",
        held.len()
    ));
    told(&missing, held.len())
}

async fn deny(console: &Console, store: &dyn Store, which: Which) -> Outcome {
    let (held, missing) = chosen(store, &which).await?;
    let question = format!("give {} held events up for good?", held.len());
    if !held.is_empty() && !console.not_refused(&question)? {
        remark("nothing was changed");
        return Ok(REFUSED);
    }
    let mut table = Table::new(&["id", "result"]);
    let mut gone = Vec::new();
    let colon = if which.reason.reason.is_empty() {
        ""
    } else {
        ": "
    };
    let why = format!(
        "{}: denied at the guard{colon}{}",
        who(),
        which.reason.reason
    );
    for h in &held {
        if store.drop_event(h.row.id, Some("held"), &why).await? {
            gone.push(h.row.id);
            table.push(vec![json!(h.row.id), json!("dropped")]);
        }
    }
    let detail = which.reason.of(&format!(
        "events={} source={} cmd={} ids={}",
        gone.len(),
        given(&which.source),
        given(&which.cmd),
        numbers(gone.iter().copied())
    ));
    store.audit(&who(), "guard deny", &detail).await?;
    console.list(&table);
    told(&missing, gone.len())
}

/// Numbers of events for the audit: the smallest and the largest of many.
fn numbers(ids: impl Iterator<Item = EventId>) -> String {
    let mut ids: Vec<EventId> = ids.collect();
    ids.sort_unstable();
    match ids.as_slice() {
        [first, .., last] if ids.len() > NAMED => format!("{first}..{last}"),
        ids => ids
            .iter()
            .map(EventId::to_string)
            .collect::<Vec<_>>()
            .join(","),
    }
}

async fn allow(console: &Console, store: &dyn Store, args: Allow) -> Outcome {
    if let Some(cmd) = &args.cmd {
        Cmd::parse(cmd).map_err(|text| Failed::new(USAGE, text))?;
    }
    let for_ms = i64::try_from(args.lasts.as_millis()).unwrap_or(i64::MAX);
    if for_ms == 0 {
        return Err(Failed::new(USAGE, "--for is 0: the batch would never be"));
    }
    let order = GuardOrder {
        id: 0,
        kind: OrderKind::Allow,
        source: Some(args.source),
        cmd: args.cmd,
        event: None,
        from_ms: args.from.unwrap_or_else(clock::wall_ms),
        for_ms,
        most: args.max,
        monthly: args.monthly,
        who: who(),
    };
    if console.dry_run {
        remark("dry run: nothing was announced");
        return Ok(DONE);
    }
    let id = store.add_guard_order(&order).await?;
    let detail = args.reason.of(&format!(
        "batch={id} source={} cmd={} max={}",
        given(&order.source),
        given(&order.cmd),
        order.most
    ));
    store.audit(&who(), "guard allow", &detail).await?;
    if console.wants_data() {
        console.record(&[("id", json!(id))]);
    } else {
        say(id.to_string());
    }
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_day_is_the_next_one() {
        let now = local("2026-03-10 12:00").unwrap();
        let at = |text: &str| coming_after(text, now).map(clock::local_text);
        assert_eq!(at("13:30").unwrap(), "2026-03-10 13:30:00");
        assert_eq!(at("12:00").unwrap(), "2026-03-11 12:00:00");
        assert_eq!(at("02:00").unwrap(), "2026-03-11 02:00:00");
        assert_eq!(at("2026-04-01 02:00").unwrap(), "2026-04-01 02:00:00");
        assert!(at("2026-03-01 02:00").unwrap_err().contains("is over"));
        assert!(at("tonight").unwrap_err().contains("HH:MM"));
    }
}
