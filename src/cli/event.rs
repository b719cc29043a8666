//! `event …`: post one and follow it, look at what is there, at one with all that was tried. What
//! retries and drops is in [`event_end`].

use std::time::Duration;

use clap::{Args, Subcommand};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::event_end::{self, Give, Retry, Which};
use super::exit::{
    DONE, FAILED, Failed, NOT_FOUND, Outcome, PART_FAILED, TIMED_OUT, USAGE, remark, say,
};
use super::post::{Inbox, checked};
use super::request::Request;
use super::table::{Format, Table};
use super::{Console, bulk, follow, logs, scheme, waiting};
use crate::clock;
use crate::config::{Config, parse_duration};
use crate::event::EventId;
use crate::intake::attempts::{self, Attempt};
use crate::nas::NasId;
use crate::store::{EventRow, LOOK_MAX, Store, WhereIs};

/// Verbs of events.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Post one event; prints its id.
    Post(Post),
    /// Post many events from a file or a pipe.
    Bulk(bulk::Bulk),
    /// List events, newest first, 50 of them or -n N.
    List(List),
    /// Everything about one event: why it waits, and each attempt.
    Show {
        /// Number of the event.
        id: i64,
    },
    /// The same, and what was sent and answered, out of the logs.
    Describe {
        /// Number of the event.
        id: i64,
    },
    /// What was sent for one event, and what was answered, out of the logs.
    Log {
        /// Number of the event.
        id: i64,
    },
    /// Post dead events anew, with fresh variables, at the end of their lanes.
    Retry(Retry),
    /// Remove events that are not running.
    Drop(Give),
}

/// One event.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("whom").required(true).multiple(true).args(["user", "nas"])))]
pub struct Post {
    /// Command, for example user_redirect
    #[arg(long)]
    cmd: String,
    /// Account
    #[arg(long, value_name = "ID")]
    user: Option<i64>,
    /// NAS; without --user an event of the NAS as a whole
    #[arg(long, value_name = "ID")]
    nas: Option<i64>,
    /// Abonent; default: the account's
    #[arg(long, value_name = "ID")]
    abonent: Option<i64>,
    /// Service
    #[arg(long, value_name = "ID")]
    usluga: Option<i64>,
    /// A variable of this event; overlays the account's
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = pair)]
    param: Vec<(String, String)>,
    /// Variables as a JSON object
    #[arg(long, value_name = "JSON")]
    params: Option<String>,
    /// Wait for the end, print each change of state and the result
    #[arg(long)]
    follow: bool,
    /// How long --follow waits
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
}

/// Which events.
#[derive(Debug, Args)]
pub struct List {
    /// compact, ready, running, deferred, held, dead, done, all; default: all that wait
    #[arg(long)]
    state: Option<String>,
    #[command(flatten)]
    which: Which,
    /// Only older ones than this event: the next page
    #[arg(long, value_name = "ID")]
    before: Option<i64>,
}

/// Events of a list where nobody says how many, and in one look.
const ROWS: (usize, usize) = (50, 1000);

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

impl Verb {
    /// The same over the API.
    pub fn requests(&self, console: &Console) -> Result<Vec<Request>, Failed> {
        Ok(match self {
            Self::Post(args) => {
                let event = compact(args)?;
                let fields = event.as_object().into_iter().flatten();
                let fields: Vec<(&str, Value)> = fields
                    .filter(|(name, _)| *name != "source")
                    .map(|(name, value)| (name.as_str(), value.clone()))
                    .collect();
                vec![Request::post("/api/v1/events", &fields)]
            }
            Self::List(args) => args.requests(console)?,
            Self::Show { id } => vec![Request::get(format!("/api/v1/events/{id}"))],
            Self::Retry(args) => args.requests(),
            Self::Drop(args) => args.requests(),
            Self::Bulk(args) => args.requests(),
            Self::Describe { .. } | Self::Log { .. } => Vec::new(),
        })
    }
}

impl List {
    /// The same over the API.
    pub fn requests(&self, console: &Console) -> Result<Vec<Request>, Failed> {
        if self.which.is_only_here() {
            return Ok(Vec::new());
        }
        let text = |id: &Option<i64>| id.map(|id| id.to_string());
        let limit = console.limit(ROWS.0, ROWS.1)?;
        Ok(vec![Request::get("/api/v1/events").with(&[
            ("state", self.state.clone()),
            ("nas", text(&self.which.nas)),
            ("user", text(&self.which.user)),
            ("abonent", text(&self.which.abonent)),
            ("cmd", self.which.cmd.clone()),
            ("batch", self.which.batch.clone()),
            ("error", self.which.error_text().map(str::to_owned)),
            ("before", text(&self.before)),
            ("limit", Some(limit.to_string())),
        ])])
    }
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    match verb {
        Verb::Post(args) => post(console, args).await,
        Verb::Bulk(args) => bulk::bulk(console, args).await,
        Verb::List(args) => list(console, args).await,
        Verb::Show { id } => show(console, EventId(id), false).await,
        Verb::Describe { id } => show(console, EventId(id), true).await,
        Verb::Log { id } => log(console, EventId(id)).await,
        Verb::Retry(args) => event_end::retry(console, args).await,
        Verb::Drop(args) => event_end::give_up(console, args).await,
    }
}

async fn post(console: &Console, args: Post) -> Outcome {
    let event = compact(&args)?;
    let config = console.config()?;
    if console.dry_run {
        let store = console.store(&config).await?;
        let cmds = scheme::own_cmds(&config, store.as_ref()).await?;
        checked(vec![event.clone()], &cmds)?;
        say(event.to_string());
        remark("dry run: nothing was posted");
        return Ok(DONE);
    }
    let store = console.store(&config).await?;
    let mut inbox = Inbox::new(&config, store.clone())?;
    let ids = inbox.post(vec![event]).await?;
    let Some(id) = ids.first().copied() else {
        return Err(Failed::new(
            FAILED,
            "the event was taken, but its id is not known",
        ));
    };
    follow::tell_id(console, id, args.follow);
    if args.follow && inbox.is_alone() {
        if console.wants_data() {
            console.record(&follow::properties(id, None));
        }
        return Err(Failed::new(
            TIMED_OUT,
            format!(
                "event {id} waits: no daemon runs that could carry it out\nhint: start one; event show {id} says how it went"
            ),
        ));
    }
    if args.follow {
        return follow::follow(console, store.as_ref(), id, args.timeout).await;
    }
    Ok(DONE)
}

/// The event as an object, as every door takes it.
fn compact(args: &Post) -> Result<Value, Failed> {
    let mut params = match &args.params {
        None => Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(map)) => map,
            Ok(_) => return Err(Failed::new(USAGE, "--params is not a JSON object")),
            Err(e) => return Err(Failed::new(USAGE, format!("--params is not JSON: {e}"))),
        },
    };
    for (name, value) in &args.param {
        params.insert(name.clone(), Value::from(value.as_str()));
    }
    let mut event = Map::new();
    event.insert("cmd".to_owned(), Value::from(args.cmd.as_str()));
    for (name, number) in [
        ("user_id", args.user),
        ("nas_id", args.nas),
        ("abonent_id", args.abonent),
        ("usluga_id", args.usluga),
    ] {
        if let Some(number) = number {
            event.insert(name.to_owned(), Value::from(number));
        }
    }
    if !params.is_empty() {
        event.insert("params".to_owned(), Value::Object(params));
    }
    event.insert("source".to_owned(), Value::from("cli"));
    Ok(Value::Object(event))
}

const LIST: &[&str] = &[
    "id",
    "state",
    "cmd",
    "user",
    "nas",
    "tries",
    "accepted",
    "next_try",
    "ended",
    "code",
    "ms",
    "batch",
    "error",
    "retried_as",
];

/// Prints events, newest first.
pub async fn list(console: &Console, args: List) -> Outcome {
    let limit = console.limit(ROWS.0, ROWS.1)?;
    let store = console.store(&console.config()?).await?;
    let waits_only = args.state.is_none() && args.which.user.is_some();
    let rows = args
        .which
        .rows(store.as_ref(), args.state, args.before, limit);
    let (rows, ended) = rows.await?;
    let mut table = Table::new(LIST);
    for row in &rows {
        table.push(vec![
            json!(row.id),
            json!(row.state),
            json!(row.cmd),
            json!(row.user_id),
            json!(row.nas_id),
            json!(row.try_count),
            time(Some(row.event_date_ms)),
            time(row.next_try_ms),
            time(row.ended_ms),
            json!(row.code),
            json!(row.ms),
            json!(row.batch_id),
            json!(row.error),
            json!(row.retried_as),
        ]);
    }
    console.list(&table);
    if rows.is_empty() && waits_only {
        remark("no event waits; --state done, dead or all shows what has ended");
    }
    if let Some(last) = ended {
        remark(format!(
            "after {} ms the look-up was ended: events older than {last} were not looked at\nhint: go on with --before {last}, or narrow it by --user, --batch or --since",
            LOOK_MAX.as_millis()
        ));
        return Ok(PART_FAILED);
    }
    if rows.len() >= limit
        && let Some(last) = rows.last()
    {
        remark(format!("there may be more: --before {}", last.id));
    }
    Ok(DONE)
}

/// A wall time as people read it: the server's time zone.
pub fn time(ms: Option<i64>) -> Value {
    ms.map_or(Value::Null, |ms| Value::from(clock::local_text(ms)))
}

/// Headings of [`brief`] where only events are listed.
pub const BRIEF: &[&str; 6] = &["id", "state", "cmd", "user", "nas", "error"];

/// What events are and what is wrong with them, in the order of [`BRIEF`].
pub fn brief(headings: &'static [&'static str; 6], rows: &[EventRow]) -> Table {
    let mut table = Table::new(headings);
    for row in rows {
        table.push(vec![
            json!(row.id),
            json!(row.state),
            json!(row.cmd),
            json!(row.user_id),
            json!(row.nas_id),
            json!(row.error),
        ]);
    }
    table
}

/// One event, wherever it is.
pub async fn find(store: &dyn Store, id: EventId) -> Result<EventRow, Failed> {
    store.event(id).await?.ok_or_else(|| {
        Failed::new(
            NOT_FOUND,
            format!(
                "there is no event {id}\nhint: done events are kept for history.keep; older ones are in the account's log only"
            ),
        ).numbered(502)
    })
}

async fn show(console: &Console, id: EventId, whole: bool) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let row = find(store.as_ref(), id).await?;
    let why = waiting::why(&config, store.as_ref(), &row).await?;
    let records = records(console, &config, &row).await;
    // Who may ask the database need not be who may read the logs.
    let records = records.unwrap_or_else(|failed| {
        remark(failed.text);
        Vec::new()
    });
    let attempts = attempts::of_event(&records.join("\n"), id);
    let place = match row.place {
        WhereIs::Compact => "events_stack_compact",
        WhereIs::Stack => "events_stack",
        WhereIs::Dead => "events_dead",
        WhereIs::Done => "events_done",
    };
    let mut properties = vec![
        ("id", json!(row.id)),
        ("state", json!(row.state)),
        ("why", json!(why)),
        ("table", json!(place)),
        ("cmd", json!(row.cmd)),
        ("user_id", json!(row.user_id)),
        ("abonent_id", json!(row.abonent_id)),
        ("nas_id", json!(row.nas_id)),
        ("source", json!(row.source)),
        ("batch_id", json!(row.batch_id)),
        ("accepted", time(Some(row.event_date_ms))),
        ("tries", json!(row.try_count)),
        ("next_try", time(row.next_try_ms)),
        ("ended", time(row.ended_ms)),
        ("ms", json!(row.ms)),
        ("code", json!(row.code)),
        ("error", json!(row.error)),
        ("possible_duplicate", json!(row.possible_duplicate)),
        ("retried_as", json!(row.retried_as)),
        ("scheme_hash", json!(row.scheme_hash)),
        ("answer", json!(row.answer)),
        ("params", json!(row.params)),
    ];
    match console.format() {
        Format::Json | Format::Jsonl | Format::Csv => {
            properties.push(("attempts", json!(attempts)));
            properties.extend(whole.then(|| ("log", json!(records))));
            console.record(&properties);
        }
        Format::Table | Format::Plain => {
            console.record(&properties);
            if !attempts.is_empty() {
                say("");
                console.list(&tried(&attempts));
            }
            if whole && !records.is_empty() {
                say("");
                logs::print(console, records.iter().map(String::as_str));
            }
        }
    }
    Ok(DONE)
}

fn tried(attempts: &[Attempt]) -> Table {
    let mut table = Table::new(&["try", "started", "ended", "result", "code", "ms", "error"]);
    for attempt in attempts {
        table.push(vec![
            json!(attempt.try_count),
            json!(attempt.started),
            json!(attempt.ended),
            json!(attempt.result),
            json!(attempt.code),
            json!(attempt.ms),
            json!(attempt.error),
        ]);
    }
    table
}

/// What the log of an event's account, or of its NAS, says of it; nothing where there is none.
async fn records(
    console: &Console,
    config: &Config,
    row: &EventRow,
) -> Result<Vec<String>, Failed> {
    let path = match (row.user_id, row.nas_id) {
        (Some(user), _) => Ok(logs::of_account(config, row.abonent_id, user)),
        (None, Some(nas)) => logs::of_nas(console, config, NasId(nas)).await,
        (None, None) => return Ok(Vec::new()),
    };
    let grep = Regex::new(&format!(r"\]: event={} ", row.id))
        .map_err(|e| Failed::new(FAILED, e.to_string()))?;
    let look = logs::Look {
        grep: Some(grep),
        // Records have whole seconds.
        since: Some(row.event_date_ms.saturating_sub(1_000)),
        ..logs::Look::default()
    };
    match path.and_then(|path| logs::lines(&path, &look, usize::MAX)) {
        Ok((lines, _)) => Ok(lines.into()),
        Err(failed) if failed.code == NOT_FOUND => Ok(Vec::new()),
        Err(failed) => Err(failed),
    }
}

async fn log(console: &Console, id: EventId) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let row = find(store.as_ref(), id).await?;
    let records = records(console, &config, &row).await?;
    if records.is_empty() {
        return Err(Failed::new(
            NOT_FOUND,
            format!(
                "no log tells of event {id}\nhint: a log begins with the first attempt; event show {id} says what it waits for"
            ),
        )
        .numbered(504));
    }
    logs::print(console, records.iter().map(String::as_str));
    Ok(DONE)
}
