//! `demo`: the whole product in a temporary directory. Three simulated RouterOS NASes that
//! speak the real API over TCP on loopback, an SQLite billing with a thousand accounts, the
//! shipped scheme, events through the public REST door, and the proof that the NASes obey.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::exit::{DONE, FAILED, Failed, Outcome, remark, say};
use super::{runtime, stack};
use crate::clock;
use crate::config::Config;
use crate::daemon::shutdown::Signals;
use crate::daemon::{self, Running};
use crate::dispatch::status::Status;
use crate::logs;
use crate::sim::mikrotik::{Faults, Options, Sim};
use crate::store::{self, Store};

/// Latency of the slow NAS, ms.
const SLOW_MS: u64 = 250;
/// The moody NAS refuses every n-th login.
const REFUSE_EVERY: u64 = 3;
/// It drops each connection after this part of all events, since who logged in once would never be
/// refused: often enough that it happens, seldom enough that the breaker's pauses stay short.
const DROP_AFTER: u64 = 7;
/// The demo must have ended by then, ms.
const LIMIT_MS: u64 = 60_000;
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(250);
/// Posts at once.
const POSTERS: usize = 4;
/// The account whose log is shown: the first that is redirected.
const SHOWN_ACCOUNT: i64 = 1003;

/// `demo` options.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the proof: exit 0 only if it holds.
    #[arg(long)]
    once: bool,
    /// Accounts, 10..20000.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    accounts: u32,
    /// Events, at most one per account.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(3..=20_000))]
    events: u32,
    /// Leave the temporary directory behind.
    #[arg(long)]
    keep: bool,
}

/// What the billing wants of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    user: i64,
    nas: i64,
    ip: String,
    redirect: bool,
    rate: String,
}

/// Runs the demo.
pub fn demo(args: &DemoArgs) -> Outcome {
    let runtime = runtime()?;
    runtime.block_on(run(args))
}

async fn run(args: &DemoArgs) -> Outcome {
    let dir = tempfile::Builder::new()
        .prefix("nas_event_daemon_demo_")
        .tempdir()
        .map_err(|e| Failed::new(FAILED, format!("cannot make a temporary directory: {e}")))?;
    let place = dir.path().to_owned();
    let outcome = inside(args, &place).await;
    if args.keep {
        say(format!("kept: {}", dir.keep().display()));
    }
    outcome
}

async fn inside(args: &DemoArgs, dir: &Path) -> Outcome {
    let events = args.events.min(args.accounts);
    let began = clock::tick_ms();
    let signals =
        Signals::catch().map_err(|e| Failed::new(FAILED, format!("cannot catch signals: {e}")))?;
    let password = format!("demo-{:08x}", random());
    let sims = start_sims(&password, events)?;
    let config = write_config(dir)?;
    fill_billing(&config, &sims, &password, args.accounts, events).await?;
    let logs = daemon::open_logs(&config)?;
    logs.echo(false);
    if let Ok(subscriber) = logs::subscriber(&logs, std::env::var("NED_LOG").ok().as_deref()) {
        let _ = tracing::subscriber::set_global_default(subscriber);
    }
    let running = daemon::start(config, logs.clone()).await?;
    let mut following = tokio::task::JoinSet::new();
    following.spawn(signals.follow(running.stop.clone(), Arc::clone(&running.reload), logs));
    let url = running
        .addresses
        .first()
        .map(|a| format!("http://{a}"))
        .unwrap_or_default();
    write_client_config(dir, &url)?;
    say(format!(
        "{} accounts on 3 simulated RouterOS NASes: one healthy, one slow ({SLOW_MS} ms), one that refuses every {REFUSE_EVERY}rd login.",
        args.accounts
    ));
    say(format!(
        "{events} events go in by {url}/rest_api/v2/EventsStackCompact/ …"
    ));

    let store = Arc::clone(&running.store);
    let mut posting = tokio::task::JoinSet::new();
    posting.spawn(post_all(url.clone(), events));
    watch(&running, store.as_ref(), events, &mut posting).await?;
    if running.stop.soft.is_cancelled() {
        running.wait().await?;
        for sim in sims {
            sim.stop().await;
        }
        return Err(Failed::new(FAILED, "stopped before the proof"));
    }
    let counts = store.counts().await?;
    let took = clock::tick_ms().saturating_sub(began);
    say("");
    say("event_count.sh");
    say(stack::classic(&counts).trim_end());
    say("");
    let log = dir.join(format!(
        "log/abonents/{}/event_{SHOWN_ACCOUNT}.log",
        SHOWN_ACCOUNT - 500
    ));
    say(format!(
        "the log of account {SHOWN_ACCOUNT} ({}):",
        log.strip_prefix(dir).unwrap_or(&log).display()
    ));
    say(std::fs::read_to_string(&log)
        .unwrap_or_else(|e| format!("cannot be read: {e}"))
        .trim_end());
    say("");
    let refused = sims.last().map_or(0, |sim| sim.seen().logins_refused);
    say(format!("BRAS-moody refused {refused} logins."));
    let wanted = wanted(store.as_ref()).await?;
    let wrong = differences(&wanted, &sims);
    for line in wrong.iter().take(10) {
        remark(line);
    }
    let right = wanted.len().saturating_sub(wrong.len());
    say(format!(
        "NAS state equals billing state: {right} of {} accounts ({events} events in {:.1} s)",
        wanted.len(),
        Duration::from_millis(took).as_secs_f64()
    ));
    if !args.once && !running.stop.soft.is_cancelled() {
        stay(&running, dir, &url).await;
    }
    running.stop.soft.cancel();
    running.wait().await?;
    for sim in sims {
        sim.stop().await;
    }
    verdict(wrong.len(), counts.dead)
}

fn start_sims(password: &str, events: u32) -> Result<Vec<Sim>, Failed> {
    let faults = [
        Faults::default(),
        Faults {
            latency_ms: SLOW_MS,
            ..Faults::default()
        },
        Faults {
            refuse_every: Some(REFUSE_EVERY),
            drop_after: Some(2 + u64::from(events) / DROP_AFTER),
            ..Faults::default()
        },
    ];
    faults
        .into_iter()
        .map(|faults| {
            let options = Options {
                login: "billing".to_owned(),
                password: password.to_owned(),
                faults,
                ..Options::default()
            };
            Sim::start(options)
                .map_err(|e| Failed::new(FAILED, format!("cannot start a simulated NAS: {e}")))
        })
        .collect()
}

fn write_config(dir: &Path) -> Result<Config, Failed> {
    let text = config_text(dir, "127.0.0.1:0");
    let file = dir.join("nas_event_daemon.toml");
    let scheme = dir.join("share/oss/core/Mikrotik-Simple");
    let written = std::fs::write(&file, text)
        .and_then(|()| std::fs::create_dir_all(&scheme))
        .and_then(|()| {
            let shipped = include_str!("../../oss/core/Mikrotik-Simple/scheme.toml");
            std::fs::write(scheme.join("scheme.toml"), shipped)
        });
    written
        .map_err(|e| Failed::new(FAILED, format!("cannot write below {}: {e}", dir.display())))?;
    // The environment of the operator's shell has no say in the demo.
    Config::load(Some(&file), std::iter::empty()).map_err(|e| Failed::config(e.to_string()))
}

/// The port is known only after the start; the commands to try next read it from here.
fn write_client_config(dir: &Path, url: &str) -> Result<(), Failed> {
    let listen = url.trim_start_matches("http://");
    std::fs::write(dir.join("nas_event_daemon.toml"), config_text(dir, listen))
        .map_err(|e| Failed::new(FAILED, format!("cannot write below {}: {e}", dir.display())))
}

fn config_text(dir: &Path, listen: &str) -> String {
    let dir = dir.display();
    format!(
        "[database]\nurl = \"sqlite://{dir}/demo.db\"\n[paths]\noss = \"{dir}/oss\"\nlog = \"{dir}/log\"\nrun = \"{dir}/run\"\nshare = \"{dir}/share\"\n[http]\nlisten = [\"{listen}\"]\nopen_from = [\"127.0.0.1/32\"]\n[dispatch]\nretry_base = \"500ms\"\n"
    )
}

async fn fill_billing(
    config: &Config,
    sims: &[Sim],
    password: &str,
    accounts: u32,
    events: u32,
) -> Result<(), Failed> {
    let store = store::connect(&config.database.url).await?;
    let fill = |text: &str| {
        let mut text = text
            .replace("{accounts}", &accounts.to_string())
            .replace("{events}", &events.to_string())
            .replace("{password}", password);
        for (i, sim) in sims.iter().enumerate() {
            text = text.replace(
                &format!("{{port{}}}", i + 1),
                &sim.addr().port().to_string(),
            );
        }
        text
    };
    store
        .fill_sample(&fill(include_str!("../../migrations/demo/before.sql")))
        .await?;
    let before = wanted(store.as_ref()).await?;
    for (i, sim) in sims.iter().enumerate() {
        let state = sim_state(&before, i64::try_from(i).unwrap_or(0) + 1);
        sim.load(&state)
            .map_err(|e| Failed::new(FAILED, format!("cannot preload a simulated NAS: {e}")))?;
    }
    store
        .fill_sample(&fill(include_str!("../../migrations/demo/after.sql")))
        .await?;
    Ok(())
}

async fn wanted(store: &dyn Store) -> Result<Vec<Wanted>, Failed> {
    let answer = store
        .sql(include_str!("../../migrations/demo/wanted.sql"), false)
        .await?;
    let mut all = Vec::with_capacity(answer.rows.len());
    for row in answer.rows {
        let text = |i: usize| row.get(i).cloned().flatten().unwrap_or_default();
        let number = |i: usize| text(i).parse::<i64>().unwrap_or_default();
        all.push(Wanted {
            user: number(0),
            nas: number(1),
            ip: text(2),
            redirect: number(3) != 0,
            rate: format!("{}/{}", number(4) * 1000, number(5) * 1000),
        });
    }
    Ok(all)
}

/// The rows that a NAS should hold, in the form that the simulator loads.
fn sim_state(all: &[Wanted], nas: i64) -> Value {
    let here = || all.iter().filter(move |w| w.nas == nas);
    let queues: Vec<Value> = here()
        .map(|w| {
            let mark = format!("crb_{}", w.user);
            json!({"name": mark, "target": format!("{}/32", w.ip), "max-limit": w.rate, "comment": mark})
        })
        .collect();
    let lists: Vec<Value> = here()
        .filter(|w| w.redirect)
        .map(|w| json!({"list": "crb_negbal", "address": w.ip, "comment": format!("crb_{}", w.user)}))
        .collect();
    json!({"/queue/simple": queues, "/ip/firewall/address-list": lists})
}

/// What one account has: (NAS, list) by its address, (NAS, target, rate) by its queue's name.
type Lists = BTreeMap<String, Vec<(i64, String)>>;
type Queues = BTreeMap<String, Vec<(i64, String, String)>>;

/// Reads the simulators back: one line per account that is not as the billing wants it, and
/// one per name or address that belongs to nobody.
fn differences(all: &[Wanted], sims: &[Sim]) -> Vec<String> {
    let (mut queues, mut lists) = (Queues::new(), Lists::new());
    let field = |row: &crate::driver::Row, name: &str| row.get(name).cloned().unwrap_or_default();
    for (nas, sim) in (1..).zip(sims) {
        for row in sim.rows("/queue/simple") {
            queues.entry(field(&row, "name")).or_default().push((
                nas,
                field(&row, "target"),
                field(&row, "max-limit"),
            ));
        }
        for row in sim.rows("/ip/firewall/address-list") {
            lists
                .entry(field(&row, "address"))
                .or_default()
                .push((nas, field(&row, "list")));
        }
    }
    let mut wrong = Vec::new();
    for w in all {
        let queue = queues
            .remove(&format!("crb_{}", w.user))
            .unwrap_or_default();
        let on = lists.remove(&w.ip).unwrap_or_default();
        let blocked = w.redirect.then(|| (w.nas, "crb_negbal".to_owned()));
        let shaped = (w.nas, format!("{}/32", w.ip), w.rate.clone());
        if on != Vec::from_iter(blocked) || queue != [shaped] {
            wrong.push(format!(
                "account {} on NAS {}: wanted redirect={} rate={}, found lists={on:?} queues={queue:?}",
                w.user, w.nas, w.redirect, w.rate
            ));
        }
    }
    let strays = queues
        .into_iter()
        .map(|(name, at)| format!("queue {name} of no account: {at:?}"));
    wrong.extend(strays);
    let strays = lists
        .into_iter()
        .map(|(ip, at)| format!("address {ip} of no account: {at:?}"));
    wrong.extend(strays);
    wrong
}

/// The demo has succeeded only if every NAS is as the billing wants it and no event is dead.
fn verdict(wrong: usize, dead: i64) -> Outcome {
    if wrong == 0 && dead == 0 {
        return Ok(DONE);
    }
    Err(Failed::new(
        FAILED,
        format!("the proof does not hold: {wrong} accounts differ, {dead} events are dead"),
    ))
}

/// Posts the events as a billing would: the classic body, one call each.
async fn post_all(url: String, events: u32) -> Result<(), String> {
    let client = crate::driver::tls::plain_client()
        .build()
        .map_err(|e| e.to_string())?;
    let mut posters = tokio::task::JoinSet::new();
    for part in 0..POSTERS {
        let (client, url) = (client.clone(), url.clone());
        posters.spawn(async move {
            for i in (1..=events).filter(|i| *i as usize % POSTERS == part) {
                let cmd = match i % 3 {
                    0 => "user_redirect",
                    1 => "user_redirect_cancel",
                    _ => "user_rate_set",
                };
                let body = format!(
                    r#"method1=objects.create&arg1={{"user_id": {},"cmd":"{cmd}"}}"#,
                    1000 + i
                );
                let answer = client
                    .post(format!("{url}/rest_api/v2/EventsStackCompact/"))
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(body)
                    .send()
                    .await
                    .map_err(|e| e.to_string())?;
                if !answer.status().is_success() {
                    return Err(format!(
                        "{}: {}",
                        answer.status(),
                        answer.text().await.unwrap_or_default()
                    ));
                }
            }
            Ok(())
        });
    }
    while let Some(ended) = posters.join_next().await {
        ended.map_err(|e| e.to_string())??;
    }
    Ok(())
}

/// Shows progress until every event has ended.
async fn watch(
    running: &Running,
    store: &dyn Store,
    events: u32,
    posting: &mut tokio::task::JoinSet<Result<(), String>>,
) -> Result<(), Failed> {
    let began = clock::tick_ms();
    let terminal = std::io::stdout().is_terminal();
    let mut shown = 0;
    let mut last = String::new();
    loop {
        if running.stop.soft.is_cancelled() {
            // The doors close, too: what is still being posted is refused, and no failure.
            return Ok(());
        }
        while let Some(ended) = posting.try_join_next() {
            if let Ok(Err(reason)) = ended {
                if running.stop.soft.is_cancelled() {
                    return Ok(());
                }
                return Err(Failed::new(
                    FAILED,
                    format!("an event was refused at the REST door: {reason}"),
                ));
            }
        }
        let elapsed = clock::tick_ms().saturating_sub(began);
        let status = running.status.borrow().clone();
        let counts = store.counts().await?;
        let waiting = counts.compact + counts.main.iter().map(|m| m.1).sum::<i64>();
        let done: u64 = status.nases.iter().map(|n| n.done + n.dead).sum();
        let ended = posting.is_empty() && waiting == 0 && done >= u64::from(events);
        let table = table(&status, elapsed);
        // Before the pools have started there is nothing to show.
        if table != last && !status.nases.is_empty() {
            if terminal && shown > 0 {
                say(format!("\x1b[{shown}A\x1b[J{table}"));
            } else {
                say(&table);
            }
            shown = table.lines().count();
            last = table;
        }
        if ended {
            return Ok(());
        }
        if elapsed > LIMIT_MS {
            return Err(Failed::new(
                FAILED,
                format!("{waiting} events still wait after {LIMIT_MS} ms"),
            ));
        }
        tokio::time::sleep(SHOW_EVERY).await;
    }
}

fn table(status: &Status, elapsed_ms: u64) -> String {
    let mut text = format!(
        "{:<14} {:>7} {:>6} {:>8} {:>7} {:>6}  {}",
        "NAS", "waiting", "done", "deferred", "rate/s", "p95 ms", "breaker"
    );
    for nas in &status.nases {
        let rate = nas.done.saturating_mul(1000) / elapsed_ms.max(1);
        text.push_str(&format!(
            "\n{:<14} {:>7} {:>6} {:>8} {:>7} {:>6}  {}",
            nas.name,
            nas.waiting + nas.running,
            nas.done,
            nas.deferred,
            rate,
            nas.p95_ms,
            nas.breaker
        ));
    }
    text
}

/// Up until Ctrl-C, with something to try.
async fn stay(running: &Running, dir: &Path, url: &str) {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("nas_event_daemon"));
    let call = format!(
        "{} --config {}/nas_event_daemon.toml",
        program.display(),
        dir.display()
    );
    say("");
    say(format!(
        "The daemon stays up at {url} (Ctrl-C ends it and removes everything). Try in another terminal:"
    ));
    say(format!(
        "  {call} event post --user {SHOWN_ACCOUNT} --cmd user_info --follow"
    ));
    say(format!("  {call} nas pause 2 --for 1m --reason \"a look\""));
    say(format!(
        "  curl '{url}/rest_api/v2/EventsStackCompact/' -d 'method1=objects.create&arg1={{\"user_id\": {SHOWN_ACCOUNT},\"cmd\":\"user_redirect_cancel\"}}'"
    ));
    running.stop.soft.cancelled().await;
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Account 1001 is blocked on NAS 1, 1002 free on NAS 2, 1003 blocked on NAS 3.
    fn accounts() -> Vec<Wanted> {
        let account = |n: i64| Wanted {
            user: 1000 + n,
            nas: n,
            ip: format!("10.88.0.{n}"),
            redirect: n != 2,
            rate: "2048000/4096000".to_owned(),
        };
        (1..=3).map(account).collect()
    }

    /// The rows of one menu of what is preloaded.
    fn rows<'a>(state: &'a mut Value, menu: &str) -> &'a mut Vec<Value> {
        state[menu].as_array_mut().unwrap()
    }

    /// What is told of NASes that were preloaded right and then changed.
    fn told(plant: impl FnOnce(&mut [Value])) -> Vec<String> {
        let (all, sims) = (accounts(), start_sims("pw", 3).unwrap());
        let mut states: Vec<Value> = (1..=3).map(|nas| sim_state(&all, nas)).collect();
        plant(&mut states);
        for (sim, state) in sims.iter().zip(&states) {
            sim.load(state).unwrap();
        }
        differences(&all, &sims)
    }

    /// Takes place in `told`: each is one way in which a NAS may not obey.
    type Plant = fn(&mut [Value]);

    const LIST: &str = "/ip/firewall/address-list";
    const QUEUE: &str = "/queue/simple";

    #[tokio::test]
    async fn every_difference_is_told_with_its_account() {
        assert_eq!(told(|_| {}), Vec::<String>::new());
        let planted: [(&str, &str, Plant); 9] = [
            ("not blocked", "account 1001 ", |s| {
                rows(&mut s[0], LIST).clear()
            }),
            ("not freed", "account 1002 ", |s| {
                rows(&mut s[1], LIST).push(json!({"list": "crb_negbal", "address": "10.88.0.2"}));
            }),
            ("on another list", "account 1003 ", |s| {
                rows(&mut s[2], LIST)[0]["list"] = json!("crb_blocked");
            }),
            ("on a second list", "account 1003 ", |s| {
                rows(&mut s[2], LIST).push(json!({"list": "crb_blocked", "address": "10.88.0.3"}));
            }),
            ("another speed", "account 1001 ", |s| {
                rows(&mut s[0], QUEUE)[0]["max-limit"] = json!("512000/512000");
            }),
            ("another target", "account 1002 ", |s| {
                rows(&mut s[1], QUEUE)[0]["target"] = json!("10.88.0.9/32");
            }),
            ("no queue", "account 1003 ", |s| {
                rows(&mut s[2], QUEUE).clear()
            }),
            ("on another NAS", "account 1001 ", |s| {
                let row = rows(&mut s[0], LIST).remove(0);
                rows(&mut s[1], LIST).push(row);
            }),
            ("of nobody", "address 10.88.0.9 ", |s| {
                rows(&mut s[1], LIST).push(json!({"list": "crb_negbal", "address": "10.88.0.9"}));
            }),
        ];
        for (what, whose, plant) in planted {
            let wrong = told(plant);
            assert_eq!(wrong.len(), 1, "{what}: {wrong:?}");
            assert!(wrong[0].starts_with(whose), "{what}: {wrong:?}");
        }
    }

    #[test]
    fn only_a_proof_that_holds_is_a_success() {
        assert_eq!(verdict(0, 0).unwrap(), DONE);
        for (wrong, dead) in [(1, 0), (0, 1), (1000, 300)] {
            let failed = verdict(wrong, dead).unwrap_err();
            assert_eq!(failed.code, FAILED);
            let told = format!("{wrong} accounts differ, {dead} events are dead");
            assert!(failed.text.contains(&told), "{}", failed.text);
        }
    }
}
