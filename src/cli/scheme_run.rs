//! `scheme run NAME … --dry-run`: the commands that an event would send, rendered with real
//! variables, sent nowhere. For a session scheme, whose script cannot be asked without being
//! run, the variables that it would get.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::Console;
use super::exit::{DONE, FAILED, Failed, NOT_FOUND, Outcome, USAGE, remark, say};
use super::scheme::{directory, stand_in, unusable};
use super::table::{Table, one_line};
use crate::attempt::Job;
use crate::config::Config;
use crate::event::{Cmd, CompactEvent, EventId, Params, UserId};
use crate::intake::compact;
use crate::nas::{Nas, NasId, NasSecret};
use crate::scheme::environ;
use crate::scheme::native::{FILE, NativeScheme};
use crate::store::preview;

/// An event that stands in no stack.
const NO_EVENT: EventId = EventId(0);
/// Rendering asks no device.
const DEADLINE: Duration = Duration::from_secs(10);

/// Which scheme and which event.
#[derive(Debug, Args)]
pub struct Run {
    /// Its name, or a directory
    name: String,
    /// An event as JSON, as the API takes it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cmd", "user", "usluga"], required_unless_present = "cmd")]
    event: Option<PathBuf>,
    /// Command
    #[arg(long)]
    cmd: Option<String>,
    /// Account whose variables are taken from the database
    #[arg(long, value_name = "ID")]
    user: Option<i64>,
    /// Service
    #[arg(long, value_name = "ID", requires = "user")]
    usluga: Option<i64>,
    /// NAS whose settings and vars are used; default: the event's or the account's
    #[arg(long, value_name = "ID")]
    nas: Option<i64>,
}

/// Prints the commands, one per line.
pub async fn run(console: &Console, config: &Config, args: Run) -> Outcome {
    if !console.dry_run {
        return Err(Failed::new(
            USAGE,
            "scheme run only renders: say --dry-run\nhint: event post --follow runs an event for real",
        ));
    }
    let dir = directory(&config.paths, &args.name)?;
    let native = dir.join(FILE).is_file() && !dir.join("bin/session").is_file();
    let scheme = if native {
        Some(NativeScheme::load(&dir).map_err(|findings| unusable(&findings))?)
    } else {
        None
    };
    let own: Vec<Cmd> = scheme.iter().flat_map(|s| s.cmds().cloned()).collect();
    let event = event(&args, &own)?;
    let job = job(console, config, &args, event).await?;
    let Some(scheme) = scheme else {
        let vars = environ::environ(&job, &dir.display().to_string(), "dry-run");
        let vars = vars.map_err(|failure| Failed::new(FAILED, failure.to_string()))?;
        let mut table = Table::new(&["name", "value"]);
        for (name, value) in vars.iter().filter(|(name, _)| *name != "NED_ATTEMPT") {
            if console.wants_data() {
                table.push(vec![json!(name), json!(value)]);
            } else {
                say(one_line(&format!("{name}={value}")));
            }
        }
        if console.wants_data() {
            console.list(&table);
        }
        remark("a script cannot be asked what it would send: above are its variables");
        return Ok(DONE);
    };
    let rendered = scheme.render_dry(&job).await;
    let rendered = rendered.map_err(|failure| Failed::new(FAILED, failure.to_string()))?;
    if console.wants_data() {
        let mut table = Table::new(&["command"]);
        for line in rendered.iter().flatten() {
            table.push(vec![json!(line)]);
        }
        console.list(&table);
    }
    match rendered {
        Some(lines) => {
            if !console.wants_data() {
                lines.iter().for_each(|line| say(one_line(line)));
            }
            remark("dry run: nothing was sent; what a NAS holds already was taken as empty");
        }
        None => remark(format!(
            "the scheme has no {}: the event would be done, not_implemented",
            job.cmd
        )),
    }
    Ok(DONE)
}

fn event(args: &Run, own: &[Cmd]) -> Result<CompactEvent, Failed> {
    let value = match &args.event {
        Some(file) => {
            let at = file.display();
            let text = std::fs::read_to_string(file)
                .map_err(|e| Failed::new(USAGE, format!("{at} cannot be read: {e}")))?;
            serde_json::from_str(&text)
                .map_err(|e| Failed::new(USAGE, format!("{at} is not JSON: {e}")))?
        }
        None => {
            let mut map = Map::new();
            for (name, value) in [
                ("cmd", args.cmd.clone().map(Value::from)),
                ("user_id", args.user.map(Value::from)),
                ("usluga_id", args.usluga.map(Value::from)),
                (
                    "nas_id",
                    args.nas
                        .or(args.user.is_none().then_some(0))
                        .map(Value::from),
                ),
            ] {
                if let Some(value) = value {
                    map.insert(name.to_owned(), value);
                }
            }
            Value::Object(map)
        }
    };
    compact::read(value, "cli", own).map_err(|reason| Failed::new(USAGE, reason))
}

async fn job(
    console: &Console,
    config: &Config,
    args: &Run,
    event: CompactEvent,
) -> Result<Job, Failed> {
    let cmd = Cmd::parse(&event.cmd).map_err(|reason| Failed::new(USAGE, reason))?;
    let nas_id = args.nas.or(event.nas_id).filter(|id| *id != 0);
    // A complete event needs no database at all.
    let alone = nas_id.is_none() && (event.params_complete || event.user_id.is_none());
    let (account, service, nas) = if alone {
        (Map::new(), None, None)
    } else {
        let store = console.store(config).await?;
        let store = store.as_ref();
        let account = match event.user_id.filter(|_| !event.params_complete) {
            None => Map::new(),
            Some(user) => {
                let row = preview::account(store, user).await?;
                row.ok_or_else(|| {
                    Failed::new(
                        NOT_FOUND,
                        format!("event_params has no row for account {user}\nhint: users.id is asked for"),
                    )
                    .numbered(501)
                })?
            }
        };
        let service = match (event.user_id, event.usluga_id) {
            (Some(user), Some(usluga)) => preview::service(store, user, usluga).await?,
            _ => None,
        };
        let of_account = account.get("nas_id").and_then(Value::as_i64);
        let nas = match nas_id.or(of_account) {
            None => None,
            Some(id) => Some(settings(store, id).await?),
        };
        (account, service, nas)
    };
    let params = Params::overlaid(account, service, event.params.as_ref())
        .map_err(|reason| Failed::new(FAILED, reason))?;
    let nas = nas.unwrap_or_else(|| {
        remark("no NAS is known: 192.0.2.1 stands in for it");
        stand_in(None)
    });
    Ok(Job {
        event: NO_EVENT,
        epoch: 0,
        try_count: 1,
        possible_duplicate: false,
        class: cmd.class(),
        cmd,
        user: event.user_id.map(UserId),
        abonent: event
            .abonent_id
            .or_else(|| params.0.get("abonent_id").and_then(Value::as_i64)),
        usluga: event.usluga_id,
        params,
        nas: Arc::new(nas),
        // Rendering needs no credentials, and none can leak.
        secret: Arc::new(NasSecret::default()),
        deadline: DEADLINE,
    })
}

async fn settings(store: &dyn crate::store::Store, id: i64) -> Result<Nas, Failed> {
    super::nas::find(store, NasId(id))
        .await?
        .map_err(|bad| Failed::skipped(id, bad.reason))
}
