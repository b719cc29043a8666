//! `event retry` and `event drop`: posts anew what died, gives up what shall not run; by number, or
//! all that match, counted first with `--dry-run`, a retry also spread over time.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use regex::Regex;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::ctl::{Ctl, refusal};
use super::event::{BRIEF, brief, find, time};
use super::exit::{DONE, Failed, Outcome, PART_FAILED, REFUSED, USAGE, remark};
use super::progress::Progress;
use super::request::Request;
use super::table::Table;
use super::{Console, Reason, given, logs, who};
use crate::clock;
use crate::config::{Config, parse_duration};
use crate::event::EventId;
use crate::intake::later;
use crate::store::walk::{self, Looked};
use crate::store::{self, EventRow, Filter, Store};

/// Events read at once; the store's own limit.
const PAGE: usize = 1000;
/// What means something else than itself in a regular expression.
const SPECIAL: &[char] = &[
    '\\', '.', '+', '*', '?', '(', ')', '|', '[', ']', '{', '}', '^', '$', '\0',
];
/// Events that are named before a question; more do not fit a screen.
const NAMED: usize = 20;

/// Which events, by what they are.
#[derive(Debug, Args, Default)]
pub struct Which {
    /// Only of this NAS
    #[arg(long, value_name = "ID")]
    pub nas: Option<i64>,
    /// Only of this account
    #[arg(long, value_name = "ID")]
    pub user: Option<i64>,
    /// Only of this abonent
    #[arg(long, value_name = "ID")]
    pub abonent: Option<i64>,
    /// Only this command
    #[arg(long)]
    pub cmd: Option<String>,
    /// Only of this bulk call
    #[arg(long)]
    pub batch: Option<String>,
    /// Only those in whose error this regular expression is found
    #[arg(long, value_name = "REGEX")]
    pub error: Option<Regex>,
    /// Only accepted since: 30m, YYYY-MM-DD or "YYYY-MM-DD HH:MM" in the server's time
    #[arg(long, value_name = "TIME", value_parser = logs::since)]
    pub since: Option<i64>,
}

impl Which {
    /// Whether something is asked that the API does not know.
    pub fn is_only_here(&self) -> bool {
        self.since.is_some() || (self.error.is_some() && self.error_text().is_none())
    }

    /// The text of `--error`, if it is no more than a text: the database looks for that.
    pub fn error_text(&self) -> Option<&str> {
        let text = self.error.as_ref()?.as_str();
        (!text.contains(SPECIAL)).then_some(text)
    }

    fn fits(&self, row: &EventRow) -> bool {
        let error = row.error.as_deref().unwrap_or_default();
        self.since.is_none_or(|since| row.event_date_ms >= since)
            && self
                .error
                .as_ref()
                .is_none_or(|regex| regex.is_match(error))
    }

    /// Ids grow with the time of acceptance: what follows such a page, newest first, is older still.
    fn too_old(&self, page: &[EventRow]) -> bool {
        let last = page.last().zip(self.since);
        last.is_some_and(|(row, since)| row.event_date_ms < since)
    }

    /// The events that match, newest first, at most `most`; and the event down to which was looked,
    /// if there was no time for older ones.
    pub async fn rows(
        &self,
        store: &dyn Store,
        state: Option<String>,
        before: Option<i64>,
        most: usize,
    ) -> Result<(Vec<EventRow>, Option<i64>), Failed> {
        let mut filter = Filter {
            state,
            nas: self.nas,
            user: self.user,
            abonent: self.abonent,
            cmd: self.cmd.clone(),
            batch: self.batch.clone(),
            error: self.error_text().map(str::to_owned),
            from: None,
            before,
            limit: if self.is_only_here() {
                PAGE
            } else {
                most.min(PAGE)
            },
            unbounded: most == usize::MAX,
        };
        let (mut found, began) = (Vec::new(), clock::tick_ms());
        loop {
            let look = match filter.unbounded {
                true => store.events(&filter).await.map(|rows| Looked {
                    rows,
                    down_to: None,
                }),
                false => walk::look(store, &filter).await,
            };
            let (page, down_to) = match look {
                Ok(Looked { rows, down_to }) => (rows, down_to.map(|id| id.0)),
                // What was found before it counts, and from there one can go on.
                Err(store::Error::TooLong) if filter.before != before => {
                    return Ok((found, filter.before));
                }
                Err(store::Error::Refused(text)) => return Err(Failed::new(USAGE, text)),
                Err(other) => return Err(other.into()),
            };
            filter.before = page.last().map(|row| row.id.0);
            let full = page.len() >= filter.limit;
            let too_old = self.too_old(&page);
            let fits = page.into_iter().filter(|row| self.fits(row));
            // Many may match, and nobody here asks for what is large.
            found.extend(fits.map(|row| EventRow {
                params: None,
                answer: None,
                ..row
            }));
            if down_to.is_some() && found.len() < most && !too_old {
                return Ok((found, down_to));
            }
            if !full || too_old || found.len() >= most {
                found.truncate(most);
                return Ok((found, None));
            }
            // Who wants all of them is about to change them, and waits; who looks does not.
            let took = Duration::from_millis(clock::tick_ms().saturating_sub(began));
            if most < usize::MAX && took >= store::LOOK_MAX {
                return Ok((found, filter.before));
            }
        }
    }

    /// All of one state that were not retried already. Of two dead events of one lane the later
    /// one says what the account shall have, and a retry of the earlier one would then undo it:
    /// newest first.
    async fn all(&self, store: &dyn Store, state: String) -> Result<Vec<EventRow>, Failed> {
        let (mut rows, _) = self.rows(store, Some(state), None, usize::MAX).await?;
        rows.retain(|row| row.retried_as.is_none());
        Ok(rows)
    }

    /// What the API takes for the same.
    fn order<'a>(&self, state: Option<&str>, more: (&'a str, Value)) -> Vec<(&'a str, Value)> {
        vec![
            ("state", json!(state)),
            ("nas", json!(self.nas)),
            ("user", json!(self.user)),
            ("abonent", json!(self.abonent)),
            ("cmd", json!(self.cmd)),
            ("batch", json!(self.batch)),
            ("error", json!(self.error_text())),
            more,
        ]
    }
}

/// Which dead events to post anew.
#[derive(Debug, Args)]
pub struct Retry {
    /// Numbers of dead events
    #[arg(conflicts_with_all = ["state", "Which"], required_unless_present = "state")]
    ids: Vec<i64>,
    /// All that match; only "dead" is possible
    #[arg(long, value_parser = ["dead"])]
    state: Option<String>,
    #[command(flatten)]
    which: Which,
    /// One after the other by the daemon, all within this time: a NAS that has just come back gets
    /// no rush
    #[arg(long, value_name = "TIME", value_parser = spread, requires = "state")]
    spread: Option<Duration>,
    #[command(flatten)]
    reason: Reason,
}

fn spread(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        time if time <= later::SPREAD_MAX => Ok(time),
        _ => Err("at most 24h".to_owned()),
    }
}

/// Which events to give up.
#[derive(Debug, Args)]
pub struct Give {
    /// Numbers of events
    #[arg(conflicts_with_all = ["state", "Which"], required_unless_present = "state")]
    ids: Vec<i64>,
    /// All that match
    #[arg(long, value_parser = ["compact", "ready", "deferred", "held", "dead"])]
    state: Option<String>,
    #[command(flatten)]
    which: Which,
    /// Why; kept with the event
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

impl Retry {
    /// The same over the API, one by one or by what they are.
    pub fn requests(&self) -> Vec<Request> {
        let Some(state) = &self.state else {
            let each = self.ids.iter().map(|id| {
                let path = format!("/api/v1/events/{id}/retry");
                Request::post(path, &[self.reason.field()])
            });
            return each.collect();
        };
        if self.which.is_only_here() {
            return Vec::new();
        }
        let spread = self.spread.map(|time| format!("{}ms", time.as_millis()));
        let mut order = self.which.order(Some(state), ("spread", json!(spread)));
        order.push(self.reason.field());
        vec![Request::post("/api/v1/events/retry", &order)]
    }
}

impl Give {
    /// The same over the API, one by one or by what they are.
    pub fn requests(&self) -> Vec<Request> {
        let why = ("why", json!(self.reason));
        let Some(state) = &self.state else {
            let each = self.ids.iter().map(|id| {
                Request::post(
                    format!("/api/v1/events/{id}/drop"),
                    std::slice::from_ref(&why),
                )
            });
            return each.collect();
        };
        if self.which.is_only_here() {
            return Vec::new();
        }
        vec![Request::post(
            "/api/v1/events/drop",
            &self.which.order(Some(state), why),
        )]
    }
}

async fn named(store: &dyn Store, ids: &[i64]) -> Result<Vec<EventRow>, Failed> {
    let mut rows = Vec::new();
    for id in ids {
        rows.push(find(store, EventId(*id)).await?);
    }
    Ok(rows)
}

/// What is noted of many events before anything is done to them.
fn meant(rows: &[EventRow]) -> String {
    let ids = || rows.iter().map(|row| row.id);
    match (ids().min(), ids().max()) {
        (Some(first), Some(last)) => format!("n={} events={first}..{last}", rows.len()),
        _ => "n=0".to_owned(),
    }
}

/// Posts dead events anew.
pub async fn retry(console: &Console, args: Retry) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let bulk = args.state.is_some();
    // Whether a lane has later events is read from what is kept of them.
    if args.spread.is_some_and(|time| time >= config.history.keep) {
        return Err(Failed::new(
            USAGE,
            format!(
                "--spread is not below history.keep, {:?}",
                config.history.keep
            ),
        ));
    }
    let rows = match args.state {
        Some(state) => args.which.all(store.as_ref(), state).await?,
        None => named(store.as_ref(), &args.ids).await?,
    };
    if console.dry_run {
        console.list(&brief(BRIEF, &rows));
        remark(format!(
            "dry run: {} dead events would be looked at",
            rows.len()
        ));
        return Ok(DONE);
    }
    if bulk {
        // Before the first of them: who is killed in the middle has changed something.
        let spread = args.spread.map(|time| format!(" spread={time:?}"));
        let detail = meant(&rows) + &spread.unwrap_or_default();
        let detail = args.reason.of(&detail);
        store.audit(&who(), "retry_many", &detail).await?;
    }
    if let Some(spread) = args.spread {
        return retry_later(console, &config, store.as_ref(), &rows, spread).await;
    }
    let mut table = Table::new(&["id", "retried_as"]);
    let mut skipped = Vec::new();
    let bar = Progress::of("retrying", rows.len() as u64);
    for (index, row) in rows.iter().enumerate() {
        match store.retry_dead(row.id).await? {
            Some(new) => {
                let detail = args.reason.of(&format!("event={} as={new}", row.id));
                store.audit(&who(), "retry", &detail).await?;
                table.push(vec![json!(row.id), json!(new)]);
            }
            None => skipped.push(row.id),
        }
        bar.at(index as u64 + 1);
    }
    bar.end();
    console.list(&table);
    let done = rows.len() - skipped.len();
    if bulk {
        remark(format!(
            "{done} retried, {} skipped: their lane has a later event, waiting or done, which a retry would undo",
            skipped.len()
        ));
        return Ok(DONE);
    }
    for id in &skipped {
        remark(format!(
            "event {id} was not retried: it is not dead, was retried already, or its account has a later event, waiting or done, which a retry would undo"
        ));
    }
    Ok(match (skipped.len(), done) {
        (0, _) => DONE,
        (_, 0) => REFUSED,
        _ => PART_FAILED,
    })
}

/// Gives dead events dates; the daemon retries them, whether it runs now or is started later.
async fn retry_later(
    console: &Console,
    config: &Config,
    store: &dyn Store,
    rows: &[EventRow],
    spread: Duration,
) -> Outcome {
    let later::Ordered { dates, dated, left } = later::order(store, rows, spread).await?;
    let mut table = Table::new(&["id", "next_try"]);
    for (id, at) in &dates {
        table.push(vec![json!(id), time(Some(*at))]);
    }
    console.list(&table);
    remark(format!(
        "the daemon retries {dated} events within {spread:?}; what a later event of its lane would be undone by stays dead\nevent list --state dead shows their dates, event drop takes one out"
    ));
    if left > 0 {
        remark(format!(
            "{left} get no date: a later event of their lane is retried, which they would undo"
        ));
    }
    if !Ctl::new(config)?.is_there().await {
        remark("no daemon is running: they are retried once one is started");
    }
    Ok(DONE)
}

/// Drops events.
pub async fn give_up(console: &Console, args: Give) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let rows = match args.state.clone() {
        Some(state) => args.which.all(store.as_ref(), state).await?,
        None => named(store.as_ref(), &args.ids).await?,
    };
    if console.dry_run {
        console.list(&brief(BRIEF, &rows));
        remark(format!("dry run: {} events would be dropped", rows.len()));
        return Ok(DONE);
    }
    if rows.is_empty() {
        remark("no event matches");
        return Ok(DONE);
    }
    if !agreed(console, &rows)? {
        remark("nothing was dropped");
        return Ok(REFUSED);
    }
    let ctl = Ctl::new(&config)?;
    if args.state.is_some() {
        let detail = format!("{} why={:?}", meant(&rows), args.reason);
        store.audit(&who(), "drop_many", &detail).await?;
    }
    let mut table = Table::new(&["id", "result"]);
    let mut refused = 0;
    let mut failed = None;
    let bar = Progress::of("dropping", rows.len() as u64);
    for (index, row) in rows.iter().enumerate() {
        match dropped(&ctl, store.as_ref(), row.id, &args).await {
            Ok(true) => table.push(vec![json!(row.id), json!("dropped")]),
            Ok(false) => {
                refused += 1;
                let state = store
                    .event(row.id)
                    .await?
                    .map_or("gone".to_owned(), |row| row.state);
                let why = match &args.state {
                    Some(wanted) if *wanted != state => format!("no longer {wanted}"),
                    Some(_) | None => {
                        "only events that are neither running nor done can be dropped".to_owned()
                    }
                };
                remark(format!("event {} is {state}: {why}", row.id));
            }
            Err(error) => {
                failed = Some((row.id, error));
                break;
            }
        }
        bar.at(index as u64 + 1);
    }
    bar.end();
    // What was dropped is told, also if the rest was not.
    console.list(&table);
    if let Some((id, error)) = failed {
        return Err(Failed::new(
            error.code,
            format!(
                "event {id} and those after it were not dropped: {}",
                error.text
            ),
        ));
    }
    Ok(match refused {
        0 => DONE,
        n if n == rows.len() => REFUSED,
        _ => PART_FAILED,
    })
}

/// Drops one event. The daemon does it, if there is one: it knows which lane waits for the event.
/// Of those that were chosen by their state one may have gone on since, while somebody was asked.
async fn dropped(ctl: &Ctl, store: &dyn Store, id: EventId, args: &Give) -> Result<bool, Failed> {
    let (why, state) = (&args.reason, args.state.as_deref());
    let path = format!("/api/v1/events/{id}/drop");
    let mut order = json!({ "why": why });
    if let Some(map) = order.as_object_mut() {
        map.extend(state.map(|state| ("state".to_owned(), json!(state))));
    }
    match ctl.raw(Method::POST, &path, Some(&order)).await? {
        Some((status, _)) if status.is_success() => return Ok(true),
        Some((StatusCode::CONFLICT, _)) => return Ok(false),
        // Who may change the database need not be who runs the daemon.
        Some((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)) => remark(format!(
            "the daemon takes no orders from this user: if event {id} was deferred, its lane goes on when it would have been due"
        )),
        Some((status, text)) => return Err(refusal(status, &text)),
        None => {}
    }
    let reason = if why.is_empty() {
        who()
    } else {
        format!("{}: {why}", who())
    };
    let gone = store.drop_event(id, state, &reason).await?;
    if gone {
        let detail = format!("event={id} why={why:?}");
        store.audit(&who(), "drop", &detail).await?;
    }
    Ok(gone)
}

fn agreed(console: &Console, rows: &[EventRow]) -> Result<bool, Failed> {
    if !console.yes && std::io::stdin().is_terminal() {
        for row in rows.iter().take(NAMED) {
            remark(format!(
                "{} {} user={} nas={} {} {}",
                row.id,
                row.cmd,
                given(&row.user_id),
                given(&row.nas_id),
                row.state,
                clock::local_text(row.event_date_ms)
            ));
        }
        if rows.len() > NAMED {
            remark(format!("… and {} more", rows.len() - NAMED));
        }
    }
    let question = format!("drop {} events for good?", rows.len());
    console.agreed("dropping is for good", &question)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::WhereIs;

    #[test]
    fn each_condition_narrows() {
        let row = EventRow {
            abonent_id: Some(7),
            event_date_ms: 5_000,
            error: Some("no route to host".to_owned()),
            ..EventRow::new(EventId(1), WhereIs::Dead, "dead", "user_add")
        };
        let error = |text: &str| Which {
            error: Some(Regex::new(text).unwrap()),
            ..Which::default()
        };
        let since = |since: i64| Which {
            since: Some(since),
            ..Which::default()
        };
        let abonent = |id: i64| Which {
            abonent: Some(id),
            ..Which::default()
        };
        assert!(Which::default().fits(&row) && !Which::default().is_only_here());
        assert!(error("^no route").fits(&row) && !error("login").fits(&row));
        assert!(since(5_000).fits(&row) && !since(5_001).fits(&row));
        let newer = EventRow {
            event_date_ms: 6_000,
            ..row.clone()
        };
        let page = [newer, row.clone()];
        assert!(since(5_001).too_old(&page) && !since(5_000).too_old(&page));
        assert!(!since(5_001).too_old(&[]) && !Which::default().too_old(&page));
        // The database looks for the abonent, and for what is no more than a text.
        assert!(abonent(8).fits(&row) && !abonent(8).is_only_here());
        assert!(since(1).is_only_here() && error("^x").is_only_here());
        assert_eq!(error("no route").error_text(), Some("no route"));
        for special in ["^x", "a.b", "(?i)x", "x|y", r"\d", "a{2}"] {
            assert_eq!(error(special).error_text(), None, "{special}");
        }
    }
}
