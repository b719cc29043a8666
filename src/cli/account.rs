//! `account …`: what an account shall have and had, its log; set right what a NAS holds of it.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::event::time;
use super::exit::{DONE, Failed, NOT_FOUND, Outcome, remark};
use super::logs::{self, Look};
use super::request::Request;
use super::table::Table;
use super::{Console, Reason, resync};
use crate::clock;
use crate::event::UserId;
use crate::store::query::{Model, Query};
use crate::store::{Filter, Store};

/// Rows of one page of the history; the store's own limit.
const PAGE: usize = 1000;

/// Verbs of accounts.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// What the billing wants of an account, and what waits for it.
    Show {
        /// users.id
        user: i64,
    },
    /// The account's log, its end first.
    Log(LogArgs),
    /// Every event of an account that is still kept, oldest first.
    History(History),
    /// Post the commands that the account's flags call for.
    Resync {
        /// users.id
        user: i64,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
}

/// Which lines.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// users.id
    user: i64,
    #[command(flatten)]
    look: Look,
}

/// Which events.
#[derive(Debug, Args)]
pub struct History {
    /// users.id
    user: i64,
    /// Not before: 2h (ago), YYYY-MM-DD or "YYYY-MM-DD HH:MM[:SS]", local as it is shown
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<i64>,
    /// Before: the same forms
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<i64>,
}

/// As everywhere, or with a zone of its own.
fn moment(text: &str) -> Result<i64, String> {
    let zoned = || crate::intake::compact::time_ms(text).filter(|_| text.contains('T'));
    logs::since(text).or_else(|wrong| zoned().ok_or(wrong))
}

impl Verb {
    /// The same over the API.
    pub fn requests(&self) -> Vec<Request> {
        let path = |user: &i64| format!("/api/v1/accounts/{user}");
        match self {
            Self::Show { user } => vec![Request::get(path(user))],
            Self::History(args) => {
                // Whole seconds, as they were said.
                let text = |at: Option<i64>| Some(clock::utc_text(at?).get(..19)?.to_owned());
                vec![
                    Request::get(path(&args.user) + "/history")
                        .with(&[("from", text(args.from)), ("to", text(args.to))]),
                ]
            }
            Self::Log(args) => args.look.requests(&format!("accounts/{}", args.user)),
            Self::Resync { .. } => Vec::new(),
        }
    }
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    match verb {
        Verb::Show { user } => show(console, store.as_ref(), user).await,
        Verb::Log(args) => {
            let abonent = abonent(store.as_ref(), args.user).await?;
            let path = logs::of_account(&config, abonent, args.user);
            logs::shown(console, &path, &args.look).await
        }
        Verb::History(args) => history(console, store.as_ref(), args).await,
        Verb::Resync { user, reason } => {
            let whom = resync::Whom::Account(UserId(user));
            resync::resync(console, &config, store, whom, None, &reason).await
        }
    }
}

async fn show(console: &Console, store: &dyn Store, user: i64) -> Outcome {
    let flags = store.account_flags(None, Some(UserId(user))).await?;
    let Some(flags) = flags.into_iter().next() else {
        return Err(Failed::new(
            NOT_FOUND,
            format!(
                "there is no account {user}\nhint: users.id of the billing is asked for, not the abonent"
            ),
        ).numbered(501));
    };
    let filter = Filter {
        user: Some(user),
        limit: PAGE,
        unbounded: true,
        ..Filter::default()
    };
    let waiting = store.events(&filter).await?;
    let names: Vec<String> = waiting
        .iter()
        .map(|row| format!("{} {} {}", row.id, row.cmd, row.state))
        .collect();
    console.record(&[
        ("account", json!(user)),
        ("abonent", json!(abonent(store, user).await?)),
        ("nas", json!(flags.nas_id)),
        ("deleted", json!(flags.deleted)),
        ("accept", json!(flags.accept)),
        ("redirect", json!(flags.redirect)),
        ("has_rate", json!(flags.rated)),
        ("wants", json!(resync::commands(&flags).join(", "))),
        ("waiting", json!(names.join("; "))),
    ]);
    Ok(DONE)
}

/// The account's abonent, as the billing has it.
pub(super) async fn abonent(store: &dyn Store, user: i64) -> Result<Option<i64>, Failed> {
    let mut query = Query::one_of(Model::Users, user);
    if store
        .columns(Model::Users)
        .iter()
        .any(|c| c.name == "abonent_id")
    {
        query.columns.push("abonent_id".to_owned());
    }
    let row = store.find(&query).await?.pop().unwrap_or_default();
    Ok(row.get("abonent_id").and_then(Value::as_i64))
}

const HISTORY: &[&str] = &[
    "id", "accepted", "ended", "cmd", "state", "nas", "source", "batch", "tries", "code", "ms",
    "error",
];

async fn history(console: &Console, store: &dyn Store, args: History) -> Outcome {
    let mut filter = Filter {
        state: Some("all".to_owned()),
        user: Some(args.user),
        limit: PAGE,
        unbounded: true,
        ..Filter::default()
    };
    let mut rows = Vec::new();
    loop {
        let page = store.events(&filter).await?;
        filter.before = page.last().map(|row| row.id.0);
        let full = page.len() >= PAGE;
        rows.extend(page);
        if !full {
            break;
        }
    }
    let known_by_rows = !rows.is_empty();
    rows.retain(|row| {
        args.from.is_none_or(|from| row.event_date_ms >= from)
            && args.to.is_none_or(|to| row.event_date_ms < to)
    });
    if !known_by_rows {
        let known = store.account_flags(None, Some(UserId(args.user))).await?;
        if known.is_empty() {
            let text = format!("there is no account {}", args.user);
            let hint = "hint: users.id of the billing is asked for, not the abonent";
            return Err(Failed::new(NOT_FOUND, format!("{text}\n{hint}")).numbered(501));
        }
    }
    // What is matched or sorted is cut behind that.
    let cuts = console.listing.matching.is_empty() && console.listing.sort.is_none();
    let limit = console.listing.limit.filter(|_| cuts);
    if let Some(limit) = limit.filter(|limit| rows.len() > *limit) {
        remark(format!("{} older ones are not shown", rows.len() - limit));
        rows.truncate(limit);
    }
    rows.reverse();
    let mut table = Table::new(HISTORY);
    for row in &rows {
        table.push(vec![
            json!(row.id),
            time(Some(row.event_date_ms)),
            time(row.ended_ms),
            json!(row.cmd),
            json!(row.state),
            json!(row.nas_id),
            json!(row.source),
            json!(row.batch_id),
            json!(row.try_count),
            json!(row.code),
            json!(row.ms),
            json!(row.error),
        ]);
    }
    console.list(&table);
    Ok(DONE)
}
