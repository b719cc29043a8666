//! The gauges of `/metrics` that are read when somebody asks: the stacks from the database's
//! counts, each NAS from what the dispatcher says of itself. What is gone shows 0, not its last
//! number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use serde_json::Value;

use crate::event;
use crate::store::Counts;

const STACK: &str = "nas_event_daemon_stack_events";
const DEAD: &str = "nas_event_daemon_dead_events";
const UNEXPANDABLE: &str = "nas_event_daemon_unexpandable_events";
const OLDEST: &str = "nas_event_daemon_stack_oldest_age_seconds";
const QUEUE: &str = "nas_event_daemon_queue_events";
const QUEUE_OLDEST: &str = "nas_event_daemon_queue_oldest_age_seconds";
const ACCOUNTS: &str = "nas_event_daemon_accounts";
const FORKS: &str = "nas_event_daemon_forks_configured";
const BUSY: &str = "nas_event_daemon_forks_busy";
const BREAKER: &str = "nas_event_daemon_breaker_state";
const PAUSED: &str = "nas_event_daemon_nas_paused";
const OBSERVE: &str = "nas_event_daemon_nas_observe";
const SERVED: &str = "nas_event_daemon_nas_served";
const NOT_SERVED: &str = "nas_event_daemon_nas_not_served";
const STREAMS: &str = "nas_event_daemon_sse_clients";
const LIMITED: &str = "nas_event_daemon_intake_limited";
const SESSIONS: &str = "nas_event_daemon_sessions_open";

/// States of a breaker, as its label.
const BREAKERS: [&str; 4] = ["closed", "open", "half-open", "parked"];
/// States of an event on the main stack, as its label.
const STATES: [&str; 4] = ["ready", "running", "deferred", "held"];
/// Why a NAS is not served, as its label: what the dispatcher says, and the last for a NAS that it
/// does not mention any more.
const REASONS: [&str; 4] = ["off", "row", "scheme", GONE];
const GONE: &str = "gone";
/// The label of rows that have no NAS.
const NO_NAS: &str = "none";

/// What was shown before.
#[derive(Debug, Default)]
pub struct Shown {
    cmds: Mutex<BTreeSet<&'static str>>,
    /// With the first name that was heard: under a second one the first would go on being told.
    nases: Mutex<BTreeMap<i64, String>>,
    /// NASes that were not served at some time.
    missed: Mutex<BTreeSet<i64>>,
    /// Labels of dead rows of what is no NAS of ours.
    strangers: Mutex<BTreeSet<String>>,
}

/// Help texts of all metrics, also of those that other parts count.
pub fn describe() {
    describe_gauge!(STACK, "Rows of the compact and the main stack");
    describe_gauge!(DEAD, "Rows of events_dead that were not retried, by NAS");
    describe_gauge!(
        ACCOUNTS,
        "Rows of the billing's users, at most ten minutes ago"
    );
    describe_gauge!(
        QUEUE_OLDEST,
        "Age of the oldest row of a NAS on the main stack that the guard does not hold"
    );
    describe_gauge!(
        OBSERVE,
        "1 for a NAS that is in observe mode: nothing is sent"
    );
    describe_gauge!(
        NOT_SERVED,
        "1 for the reason for which the NAS is not served"
    );
    describe_gauge!(
        "nas_event_daemon_reload_last_success_timestamp_seconds",
        "When the NAS settings were last read"
    );
    describe_gauge!(
        "nas_event_daemon_config_last_reload_successful",
        "1 if the NAS settings could be read the last time, 0 while the last ones stay in force"
    );
    describe_gauge!(
        "nas_event_daemon_db_pool_connections",
        "Connections for looks and doors by state; writing and expansion have their own"
    );
    describe_gauge!(
        "nas_event_daemon_child_processes",
        "Processes that watch an operator's script"
    );
    describe_histogram!(
        "nas_event_daemon_loop_lag_seconds",
        "How late a task runs that is due"
    );
    describe_gauge!(
        UNEXPANDABLE,
        "Rows of the compact stack that carry an error"
    );
    describe_gauge!(OLDEST, "Age of the oldest waiting row");
    describe_gauge!(QUEUE, "Rows of the main stack by NAS and state");
    describe_gauge!(FORKS, "Slots of a NAS");
    describe_gauge!(BUSY, "Slots of a NAS that are taken");
    describe_gauge!(BREAKER, "1 for the state in which the NAS's breaker is");
    describe_gauge!(PAUSED, "1 while an operator has paused the NAS");
    describe_gauge!(SERVED, "0 for a NAS that is skipped, off, or gone");
    describe_gauge!(STREAMS, "Logs that are being followed");
    describe_counter!(
        "nas_event_daemon_attempt_errors_total",
        "Failed attempts by NAS and class of failure"
    );
    describe_histogram!(
        "nas_event_daemon_connect_duration_seconds",
        "To open a session with a NAS, its login included, by driver"
    );
    describe_histogram!(
        "nas_event_daemon_db_query_duration_seconds",
        "What the database took, by kind of question"
    );
    describe_histogram!(
        "nas_event_daemon_claim_batch_events",
        "Events that one writer turn starts"
    );
    describe_histogram!(
        "nas_event_daemon_expand_duration_seconds",
        "Duration of one batch of expansion"
    );
    describe_counter!(
        "nas_event_daemon_expand_errors_total",
        "Rows that could not be expanded, each time, by reason"
    );
    describe_gauge!("process_resident_memory_bytes", "Memory that is in use");
    describe_gauge!("process_open_fds", "Open files and sockets");
    describe_gauge!("process_max_fds", "Files and sockets that may be open");
    describe_gauge!("process_threads", "Threads");
    describe_counter!(
        "process_cpu_seconds_total",
        "Processor time, user and system"
    );
    describe_gauge!(LIMITED, "1 while the main stack is above http.high_water");
    describe_gauge!(SESSIONS, "Sessions with a NAS that are logged in");
    describe_counter!(
        "nas_event_daemon_dispatch_attempts_total",
        "Ended attempts by NAS, driver and result"
    );
    describe_histogram!(
        "nas_event_daemon_attempt_duration_seconds",
        "Duration of attempts by NAS and driver"
    );
    describe_counter!(
        "nas_event_daemon_events_total",
        "Events that reached their end, by command and result"
    );
    describe_histogram!(
        "nas_event_daemon_event_latency_seconds",
        "From acceptance to the end of an event"
    );
    describe_gauge!(
        "nas_event_daemon_nas_last_success_timestamp_seconds",
        "When an event was last done on the NAS"
    );
    describe_counter!(
        "nas_event_daemon_events_expanded_total",
        "Events moved to the main stack"
    );
    describe_counter!(
        "nas_event_daemon_log_write_errors_total",
        "Log records that could not be written"
    );
    describe_counter!(
        "nas_event_daemon_radius_ignored_total",
        "RADIUS answers that did not count, by what was wrong with them"
    );
    describe_counter!("nas_event_daemon_turns_total", "Writer turns");
    describe_counter!(
        "nas_event_daemon_turn_errors_total",
        "Writer turns that failed and are tried again"
    );
    describe_counter!(
        "nas_event_daemon_turns_retaken_total",
        "Writer turns that were taken step by step"
    );
    describe_counter!(
        "nas_event_daemon_fenced_settles_total",
        "Settlements that another owner's epoch refused"
    );
    describe_counter!(
        "nas_event_daemon_guard_events_total",
        "Events that the intent guard found to be too many"
    );
    begin();
}

/// What may happen once in a year is counted from 0: a counter that is born with its first count
/// has not grown, as far as `increase()` knows, and the alarm would miss the first burst.
fn begin() {
    for kind in ["daemon", "nas", "account"] {
        counter!("nas_event_daemon_log_write_errors_total", "kind" => kind).increment(0);
    }
    for kind in ["malformed", "late", "forged"] {
        counter!("nas_event_daemon_radius_ignored_total", "kind" => kind).increment(0);
    }
    for name in [
        "nas_event_daemon_turns_total",
        "nas_event_daemon_turn_errors_total",
        "nas_event_daemon_turns_retaken_total",
        "nas_event_daemon_fenced_settles_total",
        "nas_event_daemon_events_expanded_total",
        "nas_event_daemon_guard_events_total",
    ] {
        counter!(name).increment(0);
    }
    gauge!("nas_event_daemon_child_processes", "kind" => "script").increment(0.0);
}

/// Shows the counts of the stacks.
#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are f64; exact up to 2^53 rows"
)]
pub fn stacks(shown: &Shown, counts: &Counts) {
    gauge!(STACK, "stack" => "compact", "cmd" => "").set(counts.compact as f64);
    gauge!(UNEXPANDABLE).set(counts.unexpandable as f64);
    gauge!(OLDEST).set(counts.oldest_s as f64);
    let mut cmds = shown.cmds.lock().unwrap_or_else(PoisonError::into_inner);
    let mut main: BTreeMap<&'static str, i64> = cmds.iter().map(|cmd| (*cmd, 0)).collect();
    for (cmd, rows) in &counts.main {
        *main.entry(event::label(cmd)).or_default() += rows;
    }
    for (cmd, rows) in main {
        gauge!(STACK, "stack" => "main", "cmd" => cmd).set(rows as f64);
        cmds.insert(cmd);
    }
    let nases = shown.nases.lock().unwrap_or_else(PoisonError::into_inner);
    for (id, name) in nases.iter() {
        for state in STATES {
            let rows = counts
                .by_nas
                .iter()
                .filter(|(nas, s, _)| nas == id && s == state);
            let rows: i64 = rows.map(|(_, _, n)| *n).sum();
            gauge!(QUEUE, "nas_id" => id.to_string(), "nas" => name.clone(), "state" => state)
                .set(rows as f64);
        }
        let of_it = counts.oldest_by_nas.iter().find(|(nas, _)| nas == id);
        gauge!(QUEUE_OLDEST, "nas_id" => id.to_string(), "nas" => name.clone())
            .set(of_it.map_or(0, |(_, age)| *age) as f64);
        let of_it = counts.dead_by_nas.iter().find(|(nas, _)| *nas == Some(*id));
        gauge!(DEAD, "nas_id" => id.to_string(), "nas" => name.clone())
            .set(of_it.map_or(0, |(_, rows)| *rows) as f64);
    }
    // They may have died of a NAS whose row is gone.
    let known = |nas: &Option<i64>| nas.is_some_and(|id| nases.contains_key(&id));
    let mut strangers = shown
        .strangers
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    // One that has been met since, without a name, has the same labels.
    let is_nas = |label: &str| {
        let name = label.parse().ok().and_then(|id: i64| nases.get(&id));
        name.is_some_and(String::is_empty)
    };
    strangers.retain(|label| !is_nas(label));
    let mut dead: BTreeMap<String, i64> = strangers.iter().map(|nas| (nas.clone(), 0)).collect();
    for (nas, rows) in counts.dead_by_nas.iter().filter(|(nas, _)| !known(nas)) {
        let label = nas.map_or_else(|| NO_NAS.to_owned(), |id| id.to_string());
        dead.insert(label, *rows);
    }
    for (nas, rows) in dead {
        gauge!(DEAD, "nas_id" => nas.clone(), "nas" => "").set(rows as f64);
        strangers.insert(nas);
    }
}

/// Shows how many accounts there are, so that rules know how much is much.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 rows")]
pub fn accounts(accounts: i64) {
    gauge!(ACCOUNTS).set(accounts as f64);
}

/// Shows what the kernel says of this process (proc(5)); what it does not say is left out.
pub fn process() {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let number = |text: &str, name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let status = read("status");
    if let Some(kib) = number(&status, "VmRSS:") {
        gauge!("process_resident_memory_bytes").set(kib * 1024.0);
    }
    if let Some(threads) = number(&status, "Threads:") {
        gauge!("process_threads").set(threads);
    }
    if let Some(most) = number(&read("limits"), "Max open files") {
        gauge!("process_max_fds").set(most);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        gauge!("process_open_fds").set(f64::from(u32::try_from(files.count()).unwrap_or(u32::MAX)));
    }
    // Behind the name in brackets: the 14th and 15th field, in hundredths of a second.
    let stat = read("stat");
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' '));
    let ticks: Option<u64> = fields.map(|fields| {
        let two = fields.skip(11).take(2);
        two.filter_map(|n| n.parse::<u64>().ok()).sum()
    });
    if let Some(ticks) = ticks {
        counter!("process_cpu_seconds_total").absolute(ticks / 100);
    }
}

/// Shows whether only urgent events are expanded, and how many logs are followed.
pub fn intake(limited: bool, streams: usize) {
    gauge!(STREAMS).set(f64::from(u32::try_from(streams).unwrap_or(u32::MAX)));
    gauge!(LIMITED).set(f64::from(u8::from(limited)));
}

/// Shows each NAS as the dispatcher's status has it.
pub fn dispatch(shown: &Shown, status: &Value) {
    let list = |name: &str| {
        let list = status.get(name).and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    };
    let mut nases = shown.nases.lock().unwrap_or_else(PoisonError::into_inner);
    let mut served = BTreeSet::new();
    for nas in list("nases") {
        let Some(id) = nas.get("id").and_then(Value::as_i64) else {
            continue;
        };
        let text = |name: &str| nas.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| nas.get(name).and_then(Value::as_f64).unwrap_or_default();
        let shown = nases.entry(id).or_insert_with(|| text("name").to_owned());
        let (label, name) = (id.to_string(), shown.clone());
        served.insert(id);
        let of = |metric: &'static str, value: f64| {
            gauge!(metric, "nas_id" => label.clone(), "nas" => name.clone()).set(value);
        };
        of(FORKS, number("forks"));
        of(BUSY, number("running"));
        for (metric, name) in [(PAUSED, "paused"), (OBSERVE, "observe")] {
            let is = nas.get(name).and_then(Value::as_bool) == Some(true);
            of(metric, f64::from(u8::from(is)));
        }
        of(SERVED, 1.0);
        let sessions = nas.get("sessions").and_then(Value::as_array);
        for kept in sessions.into_iter().flatten() {
            let driver = kept
                .get("driver")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let open = kept.get("open").and_then(Value::as_f64).unwrap_or_default();
            gauge!(SESSIONS, "nas_id" => label.clone(), "nas" => name.clone(),
                "driver" => driver.to_owned())
            .set(open);
        }
        for state in BREAKERS {
            let is = f64::from(u8::from(text("breaker") == state));
            gauge!(BREAKER, "nas_id" => label.clone(), "nas" => name.clone(), "state" => state)
                .set(is);
        }
    }
    let mut reasons = BTreeMap::new();
    for skip in list("skipped") {
        if let Some(id) = skip.get(0).and_then(Value::as_i64) {
            let text = |at: usize| skip.get(at).and_then(Value::as_str);
            let name = || text(3).unwrap_or_default().to_owned();
            nases.entry(id).or_insert_with(name);
            reasons.extend(text(2).map(|why| (id, why)));
        }
    }
    let mut missed = shown.missed.lock().unwrap_or_else(PoisonError::into_inner);
    for (id, name) in nases.iter() {
        let is_served = served.contains(id);
        if !is_served {
            for metric in [BUSY, SERVED] {
                gauge!(metric, "nas_id" => id.to_string(), "nas" => name.clone()).set(0.0);
            }
            missed.insert(*id);
        }
        if missed.contains(id) {
            let why = (!is_served).then(|| *reasons.get(id).unwrap_or(&GONE));
            for reason in REASONS {
                gauge!(NOT_SERVED, "nas_id" => id.to_string(), "nas" => name.clone(),
                    "reason" => reason)
                .set(f64::from(u8::from(why == Some(reason))));
            }
        }
    }
}
