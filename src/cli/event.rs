//! `event …`: post one and follow it, look, retry what died, drop what shall not run.

use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::ctl::{Ctl, refusal};
use super::exit::{
    DONE, FAILED, Failed, NOT_FOUND, Outcome, PART_FAILED, REFUSED, USAGE, remark, say,
};
use super::post::{Inbox, checked};
use super::request::Request;
use super::table::Table;
use super::{Console, bulk, follow, scheme, waiting, who};
use crate::clock;
use crate::config::parse_duration;
use crate::event::EventId;
use crate::store::{EventRow, Filter, Store, WhereIs};

/// Events looked at per page of a bulk retry; the store's own limit.
const PAGE: usize = 1000;

/// Verbs of events.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Post one event; prints its id.
    Post(Post),
    /// Post many events from a file or a pipe.
    Bulk(bulk::Bulk),
    /// List events, newest first.
    List(List),
    /// Everything about one event, and why it waits.
    Show {
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
    /// Print the event, post nothing
    #[arg(long)]
    dry_run: bool,
}

/// Which events.
#[derive(Debug, Args)]
pub struct List {
    /// compact, ready, running, deferred, held, dead, done, all; default: all that wait
    #[arg(long)]
    state: Option<String>,
    /// Only this NAS
    #[arg(long, value_name = "ID")]
    nas: Option<i64>,
    /// Only this account
    #[arg(long, value_name = "ID")]
    user: Option<i64>,
    /// Only this command
    #[arg(long)]
    cmd: Option<String>,
    /// Only this bulk call
    #[arg(long)]
    batch: Option<String>,
    /// Only older ones than this event: the next page
    #[arg(long, value_name = "ID")]
    before: Option<i64>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

/// Which dead events to post anew.
#[derive(Debug, Args)]
pub struct Retry {
    /// Numbers of dead events
    #[arg(conflicts_with_all = ["state", "nas", "user", "cmd", "batch"], required_unless_present = "state")]
    ids: Vec<i64>,
    /// All that match; only "dead" is possible
    #[arg(long, value_parser = ["dead"])]
    state: Option<String>,
    /// Only of this NAS
    #[arg(long, value_name = "ID", requires = "state")]
    nas: Option<i64>,
    /// Only of this account
    #[arg(long, value_name = "ID", requires = "state")]
    user: Option<i64>,
    /// Only this command
    #[arg(long, requires = "state")]
    cmd: Option<String>,
    /// Only of this bulk call
    #[arg(long, requires = "state")]
    batch: Option<String>,
    /// Say what would be retried, post nothing
    #[arg(long)]
    dry_run: bool,
}

/// Which events to give up.
#[derive(Debug, Args)]
pub struct Give {
    /// Numbers of events
    #[arg(required = true)]
    ids: Vec<i64>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Why; kept with the event
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

impl Verb {
    /// The same over the API.
    pub fn request(&self) -> Result<Option<Request>, Failed> {
        let text = |id: &Option<i64>| id.map(|id| id.to_string());
        Ok(match self {
            Self::Post(args) => compact(args)?.as_object().map(|event| {
                let fields: Vec<(&str, Value)> = event
                    .iter()
                    .filter(|(name, _)| *name != "source")
                    .map(|(name, value)| (name.as_str(), value.clone()))
                    .collect();
                Request::post("/api/v1/events", &fields)
            }),
            Self::List(args) => Some(Request::get("/api/v1/events").with(&[
                ("state", args.state.clone()),
                ("nas", text(&args.nas)),
                ("user", text(&args.user)),
                ("cmd", args.cmd.clone()),
                ("batch", args.batch.clone()),
                ("before", text(&args.before)),
                ("limit", Some(args.limit.to_string())),
            ])),
            Self::Show { id } => Some(Request::get(format!("/api/v1/events/{id}"))),
            Self::Retry(args) => match args.ids.as_slice() {
                [id] => Some(Request::post(format!("/api/v1/events/{id}/retry"), &[])),
                _ => None,
            },
            Self::Drop(args) => match args.ids.as_slice() {
                [id] => Some(Request::post(
                    format!("/api/v1/events/{id}/drop"),
                    &[("why", json!(args.reason))],
                )),
                _ => None,
            },
            Self::Bulk(_) => None,
        })
    }
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    match verb {
        Verb::Post(args) => post(console, args).await,
        Verb::Bulk(args) => bulk::bulk(console, args).await,
        Verb::List(args) => list(console, args).await,
        Verb::Show { id } => show(console, EventId(id)).await,
        Verb::Retry(args) => retry(console, args).await,
        Verb::Drop(args) => drop_events(console, args).await,
    }
}

async fn post(console: &Console, args: Post) -> Outcome {
    let event = compact(&args)?;
    let config = console.config()?;
    if args.dry_run {
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
    follow::tell_id(console, id);
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
    "id", "state", "cmd", "user", "nas", "tries", "accepted", "next_try", "ended", "code", "ms",
    "batch", "error",
];

async fn list(console: &Console, args: List) -> Outcome {
    let filter = Filter {
        state: args.state,
        nas: args.nas,
        user: args.user,
        cmd: args.cmd,
        batch: args.batch,
        before: args.before,
        limit: usize::from(args.limit),
    };
    let store = console.store(&console.config()?).await?;
    let rows = store.events(&filter).await.map_err(|e| match e {
        crate::store::Error::Refused(text) => Failed::new(USAGE, text),
        other => other.into(),
    })?;
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
        ]);
    }
    console.list(&table);
    if rows.len() >= filter.limit
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

async fn find(store: &dyn Store, id: EventId) -> Result<EventRow, Failed> {
    store.event(id).await?.ok_or_else(|| {
        Failed::new(
            NOT_FOUND,
            format!(
                "there is no event {id}\nhint: done events are kept for history.keep; older ones are in the account's log only"
            ),
        ).numbered(502)
    })
}

async fn show(console: &Console, id: EventId) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let row = find(store.as_ref(), id).await?;
    let why = waiting::why(&config, store.as_ref(), &row).await?;
    let place = match row.place {
        WhereIs::Compact => "events_stack_compact",
        WhereIs::Stack => "events_stack",
        WhereIs::Dead => "events_dead",
        WhereIs::Done => "events_done",
    };
    console.record(&[
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
    ]);
    Ok(DONE)
}

async fn retry(console: &Console, args: Retry) -> Outcome {
    let store = console.store(&console.config()?).await?;
    let bulk = args.state.is_some();
    let ids = if bulk {
        matching(store.as_ref(), &args).await?
    } else {
        let mut ids = Vec::new();
        for id in &args.ids {
            ids.push(find(store.as_ref(), EventId(*id)).await?.id);
        }
        ids
    };
    if args.dry_run {
        let mut table = Table::new(&["id"]);
        ids.iter().for_each(|id| table.push(vec![json!(id)]));
        console.list(&table);
        remark(format!(
            "dry run: {} dead events would be looked at",
            ids.len()
        ));
        return Ok(DONE);
    }
    let mut table = Table::new(&["id", "retried_as"]);
    let mut skipped = Vec::new();
    for id in &ids {
        match store.retry_dead(*id).await? {
            Some(new) => {
                let detail = format!("event={id} as={new}");
                store.audit(&who(), "retry", &detail).await?;
                table.push(vec![json!(id), json!(new)]);
            }
            None => skipped.push(*id),
        }
    }
    console.list(&table);
    let done = ids.len() - skipped.len();
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

/// The dead events that match, newest first: of two dead events of one lane the later one
/// says what the account shall have, and a retry of the earlier one would then undo it.
async fn matching(store: &dyn Store, args: &Retry) -> Result<Vec<EventId>, Failed> {
    let mut filter = Filter {
        state: Some("dead".to_owned()),
        nas: args.nas,
        user: args.user,
        cmd: args.cmd.clone(),
        batch: args.batch.clone(),
        before: None,
        limit: PAGE,
    };
    let mut ids = Vec::new();
    loop {
        let rows = store.events(&filter).await?;
        filter.before = rows.last().map(|row| row.id.0);
        let full = rows.len() >= PAGE;
        let fresh = rows.iter().filter(|row| row.retried_as.is_none());
        ids.extend(fresh.map(|row| row.id));
        if !full {
            return Ok(ids);
        }
    }
}

async fn drop_events(console: &Console, args: Give) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let mut rows = Vec::new();
    for id in &args.ids {
        rows.push(find(store.as_ref(), EventId(*id)).await?);
    }
    if !args.yes && !agreed(&rows)? {
        remark("nothing was dropped");
        return Ok(REFUSED);
    }
    let ctl = Ctl::new(&config)?;
    let mut table = Table::new(&["id", "result"]);
    let mut refused = 0;
    let mut failed = None;
    for row in &rows {
        match dropped(&ctl, store.as_ref(), row.id, &args.reason).await {
            Ok(true) => table.push(vec![json!(row.id), json!("dropped")]),
            Ok(false) => {
                refused += 1;
                let state = store
                    .event(row.id)
                    .await?
                    .map_or("gone".to_owned(), |row| row.state);
                remark(format!(
                    "event {} is {state}: only events that are neither running nor done can be dropped",
                    row.id
                ));
            }
            Err(error) => {
                failed = Some((row.id, error));
                break;
            }
        }
    }
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
async fn dropped(ctl: &Ctl, store: &dyn Store, id: EventId, why: &str) -> Result<bool, Failed> {
    let path = format!("/api/v1/events/{id}/drop");
    match ctl
        .raw(Method::POST, &path, Some(&json!({ "why": why })))
        .await?
    {
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
    let gone = store.drop_event(id, &reason).await?;
    if gone {
        let detail = format!("event={id} why={why:?}");
        store.audit(&who(), "drop", &detail).await?;
    }
    Ok(gone)
}

fn agreed(rows: &[EventRow]) -> Result<bool, Failed> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failed::new(
            USAGE,
            "dropping is for good, and nobody can be asked here\nhint: say -y",
        )
        .numbered(3));
    }
    for row in rows {
        remark(format!(
            "{} {} user={:?} nas={:?} {}",
            row.id, row.cmd, row.user_id, row.nas_id, row.state
        ));
    }
    remark(format!("drop {} events for good? [y/N]", rows.len()));
    let mut line = String::new();
    stdin
        .lock()
        .read_line(&mut line)
        .map_err(|e| Failed::new(FAILED, format!("cannot read the answer: {e}")))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
