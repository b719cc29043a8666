//! `why ACCOUNT`: one screen for whoever picks up the telephone. What the billing wants, what
//! the NAS confirmed last, what waits and what it waits for, the last command and its answer,
//! the cause and the one next step. With `--live` the device itself is asked, read-only.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::ctl::Ctl;
use super::exit::{DONE, Failed, NOT_FOUND, Outcome};
use super::post::Inbox;
use super::table::one_line;
use super::verdict::{Case, Device, verdict};
use super::waiting::Facts;
use super::{Console, nas, nas_diff, nas_show, resync, waiting};
use crate::clock;
use crate::config::Config;
use crate::daemon::process;
use crate::event::{Class, Cmd, EventId};
use crate::intake::waiting::is_limited;
use crate::logs::line::OPENED;
use crate::nas::{Mode, NasId};
use crate::store::query::{Model, Query};
use crate::store::{EventRow, Filter, Store, WhereIs};

/// Events of each kind that are looked at: the cause is among the newest.
const ROWS: usize = 500;
/// End of a log that is searched for the last command, bytes.
const TAIL: u64 = 256 * 1024;
/// Other NASes that `--live` asks for a session of this account.
const OTHERS_MAX: usize = 8;

/// Which account.
#[derive(Debug, Args)]
pub struct Why {
    /// users.id
    account: i64,
    /// Ask the device too: posts user_info and waits for its answer
    #[arg(long)]
    live: bool,
    /// How long --live waits for each answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = crate::config::parse_duration)]
    timeout: Duration,
}

impl Why {
    /// Whether it posts something.
    pub fn asks_the_device(&self) -> bool {
        self.live
    }
}

/// Prints the screen.
pub async fn why(console: &Console, args: Why) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    let user = args.account;
    let flags = store
        .account_flags(None, Some(crate::event::UserId(user)))
        .await?;
    let flags = flags.into_iter().next();
    let mut case = Case {
        user,
        flags,
        live: args.live,
        ..Case::default()
    };
    events(&mut case, store.as_ref()).await?;
    let ctl = Ctl::new(&config)?;
    let live = ctl.look("/api/v1/status").await?;
    case.hangs = ctl.hangs();
    case.facts.daemon = live.is_some();
    case.facts.limited = live.as_ref().is_some_and(is_limited);
    case.facts.now_ms = clock::wall_ms();
    case.foreign_owner =
        foreign_owner(&config, store.as_ref(), live.is_some() || case.hangs).await?;
    case.full_disk = process::full_disk(&config);
    let nas_id = case.flags.as_ref().and_then(|f| f.nas_id);
    let nas_text = match nas_id {
        Some(id) => of_nas(&mut case, store.as_ref(), live.as_ref(), id).await?,
        None => "none".to_owned(),
    };
    let here = case.waiting.iter().find(|row| row.nas_id == nas_id);
    if let Some(row) = here.or(case.waiting.first()).cloned() {
        let facts = waiting::facts(store.as_ref(), &row, live.as_ref()).await?;
        case.first = Some((row, facts));
    }
    let account = account(store.as_ref(), user).await?;
    let addresses = addresses(&account);
    if args.live && case.flags.is_some() && case.facts.daemon && case.nas_known {
        case.device = Some(match unasked(&case.facts) {
            // A question to it would only end badly.
            Some(why) => Device {
                failed: Some(why),
                addresses,
                ..Device::default()
            },
            None => {
                let others = others(store.as_ref(), nas_id, live.as_ref()).await?;
                let mut device = ask(
                    &config,
                    store.clone(),
                    user,
                    nas_id,
                    &others,
                    args.timeout,
                    addresses,
                )
                .await?;
                if !case.observed && device.failed.is_none() && device.elsewhere.is_none() {
                    device.differs = differs(&config, &case, store.as_ref(), args.timeout).await?;
                }
                device
            }
        });
    }
    let abonent = case
        .waiting
        .first()
        .or(case.done.first())
        .and_then(|r| r.abonent_id);
    let abonent = account
        .get("abonent_id")
        .and_then(Value::as_i64)
        .or(abonent);
    let (command, answer) = last_command(&config, abonent, user);
    let wants = case.flags.as_ref().map(resync::commands);
    let conclusion = verdict(&case);
    let rows = |rows: &[EventRow]| -> Value {
        let texts: Vec<String> = rows.iter().take(5).map(row_text).collect();
        json!(texts.join("; "))
    };
    let confirmed = case.done.iter().find(|row| row.state == "done");
    console.record(&[
        ("account", json!(user)),
        ("login", account.get("login").cloned().unwrap_or_default()),
        ("abonent", json!(abonent)),
        ("nas", json!(nas_text)),
        ("wants", json!(wants.map(|w| w.join(", ")))),
        ("confirmed", json!(confirmed.map(row_text))),
        ("waiting", rows(&case.waiting)),
        ("dead", rows(&case.dead)),
        ("last_command", json!(command)),
        ("last_answer", json!(answer)),
        (
            "device",
            json!(case.device.as_ref().map(|d| one_line(&d.answer))),
        ),
        ("cause", json!(conclusion.cause)),
        ("verdict", json!(one_line(&conclusion.text))),
        ("next", json!(conclusion.next)),
    ]);
    if conclusion.cause == "unknown_account" {
        return Err(Failed::new(
            NOT_FOUND,
            format!("{}\nhint: {}", conclusion.text, conclusion.next),
        )
        .numbered(501));
    }
    Ok(DONE)
}

async fn events(case: &mut Case, store: &dyn Store) -> Result<(), Failed> {
    let of = |state: Option<&str>| Filter {
        state: state.map(str::to_owned),
        user: Some(case.user),
        limit: ROWS,
        unbounded: true,
        ..Filter::default()
    };
    let mut waiting = store.events(&of(None)).await?;
    waiting.reverse();
    let dead = store.events(&of(Some("dead"))).await?;
    let done = store.events(&of(Some("done"))).await?;
    // Looks change nothing, and may be many.
    let changes =
        |row: &EventRow| Cmd::parse(&row.cmd).is_ok_and(|cmd| cmd.class() != Class::Interactive);
    case.waiting = waiting;
    case.dead = dead
        .into_iter()
        .filter(|row| row.retried_as.is_none() && changes(row))
        .collect();
    case.done = done.into_iter().filter(changes).collect();
    Ok(())
}

fn row_text(row: &EventRow) -> String {
    let mut text = format!("event {} {} {}", row.id, row.cmd, row.state);
    let at = row.ended_ms.unwrap_or(row.event_date_ms);
    text.push_str(&format!(" {}", clock::local_text(at)));
    if let Some(next) = row.next_try_ms.filter(|_| row.state == "deferred") {
        text.push_str(&format!(" next_try={}", clock::local_text(next)));
    }
    if let Some(error) = row.error.as_deref().filter(|e| !e.is_empty()) {
        text.push_str(&format!(" error={error:?}"));
    }
    one_line(&text)
}

/// What is known of the account's NAS; also puts it into the case.
async fn of_nas(
    case: &mut Case,
    store: &dyn Store,
    live: Option<&Value>,
    id: i64,
) -> Result<String, Failed> {
    let found = nas::find(store, NasId(id)).await;
    let row = match found {
        Ok(row) => row,
        Err(failed) if failed.code == NOT_FOUND => {
            return Ok(format!("{id}, which does not exist"));
        }
        Err(failed) => return Err(failed),
    };
    case.nas_known = true;
    let states = store.nas_states().await?;
    let now = case.facts.now_ms;
    case.facts.paused = states
        .get(&NasId(id))
        .and_then(|state| nas_show::paused_text(state, now));
    waiting::of_the_daemon(&mut case.facts, live, id);
    Ok(match row {
        Ok(nas) => {
            case.observed = nas.mode == Mode::Observe;
            if !case.facts.daemon && nas.mode == Mode::Off {
                case.facts.skipped = Some("mode=off".to_owned());
            }
            let script = nas.script_name.filter(|name| !name.trim().is_empty());
            let scheme = script.or(nas.oss_path).unwrap_or_default();
            let breaker = case.facts.breaker.as_ref();
            let breaker = breaker.map_or("closed", |(state, _)| state.as_str());
            one_line(&format!(
                "{id} {} {} {} scheme={scheme} breaker={breaker}",
                nas.name,
                nas.ip,
                nas.mode.as_str()
            ))
        }
        Err(bad) => {
            case.nas_bad = Some(bad.reason.clone());
            one_line(&format!("{id} {}: {}", bad.ip, bad.reason))
        }
    })
}

/// The owner of the database, if it lives and is not the daemon of this configuration.
async fn foreign_owner(
    config: &Config,
    store: &dyn Store,
    ours_runs: bool,
) -> Result<Option<String>, Failed> {
    let Some(owner) = store.owner().await? else {
        return Ok(None);
    };
    if !process::works(&owner) {
        return Ok(None);
    }
    let pid = std::fs::read_to_string(config.paths.run.join("nas_event_daemon.pid"));
    let mine = pid.map(|pid| format!(" pid={} ", pid.trim()));
    let is_mine = ours_runs && mine.is_ok_and(|mine| owner.holder.contains(&mine));
    Ok((!is_mine).then(|| one_line(process::shown(&owner.holder))))
}

async fn account(store: &dyn Store, user: i64) -> Result<serde_json::Map<String, Value>, Failed> {
    let known = store.columns(Model::Users);
    let wanted = ["login", "abonent_id", "ip", "addresses"];
    let query = Query {
        columns: wanted
            .iter()
            .filter(|name| known.iter().any(|c| c.name == **name))
            .map(|name| (*name).to_owned())
            .collect(),
        ..Query::one_of(Model::Users, user)
    };
    Ok(store.find(&query).await?.pop().unwrap_or_default())
}

fn addresses(account: &serde_json::Map<String, Value>) -> Vec<String> {
    let listed = account.get("addresses").and_then(Value::as_array);
    let listed = listed.into_iter().flatten().filter_map(Value::as_str);
    let own = account.get("ip").and_then(Value::as_str);
    let mut all: Vec<String> = listed.chain(own).map(str::to_owned).collect();
    all.retain(|address| !address.is_empty());
    all.sort();
    all.dedup();
    all
}

/// Why a NAS cannot be asked now.
fn unasked(facts: &Facts) -> Option<String> {
    let skipped = facts
        .skipped
        .as_ref()
        .map(|why| format!("it is not served: {why}"));
    let paused = || facts.paused.as_ref().map(|why| format!("it is {why}"));
    let broken = || {
        let (state, reason) = facts.breaker.as_ref()?;
        Some(format!(
            "it fails for everybody (breaker {state}): {reason}"
        ))
    };
    skipped.or_else(paused).or_else(broken)
}

/// Other NASes that can answer now.
async fn others(
    store: &dyn Store,
    mine: Option<i64>,
    live: Option<&Value>,
) -> Result<Vec<(i64, String)>, Failed> {
    let rows = store.nases().await?.into_iter().flatten();
    let states = store.nas_states().await?;
    let now = clock::wall_ms();
    let answers = |id: NasId| {
        let mut facts = Facts {
            paused: states
                .get(&id)
                .and_then(|state| nas_show::paused_text(state, now)),
            ..Facts::default()
        };
        waiting::of_the_daemon(&mut facts, live, id.0);
        unasked(&facts).is_none()
    };
    let others =
        rows.filter(|nas| nas.mode == Mode::Active && Some(nas.id.0) != mine && answers(nas.id));
    let shown = others.map(|nas| (nas.id.0, format!("{} {} ({})", nas.id, nas.name, nas.ip)));
    Ok(shown.take(OTHERS_MAX).collect())
}

/// Posts `user_info` to the account's NAS, and where that has no session to the others.
async fn ask(
    config: &Config,
    store: std::sync::Arc<dyn Store>,
    user: i64,
    nas: Option<i64>,
    others: &[(i64, String)],
    timeout: Duration,
    addresses: Vec<String>,
) -> Result<Device, Failed> {
    let mut inbox = Inbox::new(config, store.clone())?;
    let mut device = Device {
        addresses,
        ..Device::default()
    };
    match info(&mut inbox, store.as_ref(), user, nas, timeout).await? {
        Ok(answer) => device.answer = answer,
        Err(reason) => {
            device.failed = Some(reason);
            return Ok(device);
        }
    }
    if device
        .answer
        .lines()
        .any(|line| line.ends_with("no session"))
    {
        for (id, name) in others {
            if let Ok(answer) = info(&mut inbox, store.as_ref(), user, Some(*id), timeout).await?
                && answer.contains("ppp: ")
                && !answer.contains("ppp: no session")
            {
                device.elsewhere = Some(one_line(name));
                break;
            }
        }
    }
    Ok(device)
}

/// The first of what `nas diff` would name, in a sentence.
async fn differs(
    config: &Config,
    case: &Case,
    store: &dyn Store,
    timeout: Duration,
) -> Result<Option<String>, Failed> {
    let Some((flags, nas)) = case.flags.as_ref().and_then(|f| Some((f, f.nas_id?))) else {
        return Ok(None);
    };
    let Ok(nas) = nas::find(store, NasId(nas)).await? else {
        return Ok(None);
    };
    let found = nas_diff::of_account(config, store, nas, flags, timeout).await?;
    Ok(found.unwrap_or_default().first().map(|first| {
        one_line(&format!(
            "{} {} is {} on the device: {:?}, not {:?}",
            first.path, first.row, first.kind, first.has, first.wants
        ))
    }))
}

async fn info(
    inbox: &mut Inbox,
    store: &dyn Store,
    user: i64,
    nas: Option<i64>,
    timeout: Duration,
) -> Result<Result<String, String>, Failed> {
    let event = json!({ "cmd": "user_info", "user_id": user, "nas_id": nas, "source": "cli" });
    let ids = inbox.post(vec![event]).await?;
    let id = ids.first().copied().unwrap_or(EventId(0));
    let limit = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let until = clock::tick_ms().saturating_add(limit);
    loop {
        if let Some(row) = store.event(id).await? {
            match (row.place, row.state.as_str()) {
                (WhereIs::Done, "done") => return Ok(Ok(row.answer.unwrap_or_default())),
                (WhereIs::Done, "not_implemented") => {
                    return Ok(Err("its scheme has no user_info".to_owned()));
                }
                (WhereIs::Done | WhereIs::Dead, state) => {
                    let error = row.error.unwrap_or_else(|| state.to_owned());
                    return Ok(Err(error));
                }
                (WhereIs::Compact | WhereIs::Stack, _) => {}
            }
        }
        if clock::tick_ms() >= until {
            return Ok(Err(format!("no answer within {timeout:?}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The last command and the last answer of the account's log.
fn last_command(
    config: &Config,
    abonent: Option<i64>,
    user: i64,
) -> (Option<String>, Option<String>) {
    let path = super::logs::of_account(config, abonent, user);
    let text = super::logs::tail(&path, TAIL).unwrap_or_default();
    // Questions, our own among them, change nothing.
    let asks = |line: &str| {
        let cmd = line
            .split(" cmd=")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let cmd = cmd.and_then(|cmd| Cmd::parse(cmd).ok());
        cmd.is_some_and(|cmd| cmd.class() == Class::Interactive)
    };
    let last = |mark: &str| {
        let mut lines = text.lines().rev();
        let line =
            lines.find(|line| line.contains(mark) && !line.ends_with(OPENED) && !asks(line))?;
        Some(one_line(line))
    };
    (last(" > "), last(" < ").or_else(|| last(" end result=")))
}
