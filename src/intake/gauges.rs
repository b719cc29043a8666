//! The gauges of `/metrics` that are read when somebody asks: the stacks from the database's
//! counts, each NAS from what the dispatcher says of itself. What is gone shows 0, not its last
//! number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use metrics::{describe_counter, describe_gauge, describe_histogram, gauge};
use serde_json::Value;

use crate::store::Counts;

const STACK: &str = "nas_event_daemon_stack_events";
const DEAD: &str = "nas_event_daemon_dead_events";
const UNEXPANDABLE: &str = "nas_event_daemon_unexpandable_events";
const OLDEST: &str = "nas_event_daemon_stack_oldest_age_seconds";
const QUEUE: &str = "nas_event_daemon_queue_events";
const FORKS: &str = "nas_event_daemon_forks_configured";
const BUSY: &str = "nas_event_daemon_forks_busy";
const BREAKER: &str = "nas_event_daemon_breaker_state";
const PAUSED: &str = "nas_event_daemon_nas_paused";
const SERVED: &str = "nas_event_daemon_nas_served";
const STREAMS: &str = "nas_event_daemon_sse_clients";
const LIMITED: &str = "nas_event_daemon_intake_limited";
const SESSIONS: &str = "nas_event_daemon_sessions_open";
const PARENT: &str = "nas_event_daemon_settings_age_seconds";

/// States of a breaker, as its label.
const BREAKERS: [&str; 4] = ["closed", "open", "half-open", "parked"];
/// States of an event on the main stack, as its label.
const STATES: [&str; 4] = ["ready", "running", "deferred", "held"];

/// What was shown before.
#[derive(Debug, Default)]
pub struct Shown {
    cmds: Mutex<BTreeSet<String>>,
    nases: Mutex<BTreeMap<i64, String>>,
}

/// Help texts of all metrics, also of those that other parts count.
pub fn describe() {
    describe_gauge!(STACK, "Rows of the compact and the main stack");
    describe_gauge!(DEAD, "Rows of events_dead that were not retried");
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
        "Failed attempts by NAS and kind of failure"
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
        "Rows that could not be expanded, each time"
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
    describe_gauge!(PARENT, "Time since the settings loop turned");
    describe_counter!(
        "nas_event_daemon_dispatch_attempts_total",
        "Ended attempts by NAS and result"
    );
    describe_histogram!(
        "nas_event_daemon_attempt_duration_seconds",
        "Duration of attempts by NAS"
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
}

/// Shows the counts of the stacks.
#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are f64; exact up to 2^53 rows"
)]
pub fn stacks(shown: &Shown, counts: &Counts) {
    gauge!(STACK, "stack" => "compact", "cmd" => "").set(counts.compact as f64);
    gauge!(DEAD).set(counts.dead as f64);
    gauge!(UNEXPANDABLE).set(counts.unexpandable as f64);
    gauge!(OLDEST).set(counts.oldest_s as f64);
    let mut cmds = shown.cmds.lock().unwrap_or_else(PoisonError::into_inner);
    for cmd in cmds.iter() {
        gauge!(STACK, "stack" => "main", "cmd" => cmd.clone()).set(0.0);
    }
    for (cmd, rows) in &counts.main {
        gauge!(STACK, "stack" => "main", "cmd" => cmd.clone()).set(*rows as f64);
        cmds.insert(cmd.clone());
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
    }
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
        metrics::counter!("process_cpu_seconds_total").absolute(ticks / 100);
    }
}

/// Shows whether only urgent events are expanded, and how many logs are followed.
pub fn intake(limited: bool, streams: usize) {
    gauge!(STREAMS).set(f64::from(u32::try_from(streams).unwrap_or(u32::MAX)));
    gauge!(LIMITED).set(f64::from(u8::from(limited)));
}

/// Shows how long ago the settings loop turned.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 ms")]
pub fn parent(age_ms: u64) {
    gauge!(PARENT).set(age_ms as f64 / 1000.0);
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
        let (label, name) = (id.to_string(), text("name").to_owned());
        served.insert(id);
        nases.insert(id, name.clone());
        let of = |metric: &'static str, value: f64| {
            gauge!(metric, "nas_id" => label.clone(), "nas" => name.clone()).set(value);
        };
        of(FORKS, number("forks"));
        of(BUSY, number("running"));
        let paused = nas.get("paused").and_then(Value::as_bool) == Some(true);
        of(PAUSED, f64::from(u8::from(paused)));
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
    for pair in list("skipped") {
        if let Some(id) = pair.get(0).and_then(Value::as_i64) {
            nases.entry(id).or_default();
        }
    }
    for (id, name) in nases.iter().filter(|(id, _)| !served.contains(id)) {
        for metric in [BUSY, SERVED] {
            gauge!(metric, "nas_id" => id.to_string(), "nas" => name.clone()).set(0.0);
        }
    }
}
