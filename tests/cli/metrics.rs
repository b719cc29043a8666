//! The list of metrics that was promised, by name, kind and labels, held against what `/metrics`
//! serves; and the manual's table of labels against the values that are served.

use std::collections::{BTreeMap, BTreeSet};

use nas_event_daemon::event::Cmd;

const OURS: &str = "nas_event_daemon_";

/// Name, kind, and the labels without `le`.
type Promise = (&'static str, &'static str, &'static [&'static str]);

const OF_NAS: &[&str] = &["nas_id", "nas"];
const PROMISED: &[Promise] = &[
    ("build_info", "gauge", &["version", "revision", "rustc"]),
    ("stack_events", "gauge", &["stack", "cmd"]),
    ("queue_events", "gauge", &["nas_id", "nas", "state"]),
    ("dead_events", "gauge", OF_NAS),
    ("queue_oldest_age_seconds", "gauge", OF_NAS),
    ("events_received_total", "counter", &["source", "cmd"]),
    ("expand_errors_total", "counter", &["reason"]),
    ("expand_duration_seconds", "histogram", &[]),
    ("events_total", "counter", &["cmd", "result"]),
    ("event_latency_seconds", "histogram", &["result"]),
    (
        "dispatch_attempts_total",
        "counter",
        &["nas_id", "nas", "driver", "result"],
    ),
    (
        "attempt_errors_total",
        "counter",
        &["nas_id", "nas", "class"],
    ),
    (
        "attempt_duration_seconds",
        "histogram",
        &["nas_id", "nas", "driver"],
    ),
    ("connect_duration_seconds", "histogram", &["driver"]),
    ("sessions_open", "gauge", &["nas_id", "nas", "driver"]),
    ("forks_configured", "gauge", OF_NAS),
    ("forks_busy", "gauge", OF_NAS),
    ("breaker_state", "gauge", &["nas_id", "nas", "state"]),
    ("nas_paused", "gauge", OF_NAS),
    ("nas_observe", "gauge", OF_NAS),
    ("nas_served", "gauge", OF_NAS),
    ("nas_not_served", "gauge", &["nas_id", "nas", "reason"]),
    ("nas_last_success_timestamp_seconds", "gauge", OF_NAS),
    ("reload_last_success_timestamp_seconds", "gauge", &[]),
    ("config_last_reload_successful", "gauge", &[]),
    ("loop_lag_seconds", "histogram", &[]),
    ("claim_batch_events", "histogram", &[]),
    ("db_query_duration_seconds", "histogram", &["op"]),
    ("db_pool_connections", "gauge", &["state"]),
    (
        "http_requests_total",
        "counter",
        &["handler", "method", "code"],
    ),
    (
        "http_request_duration_seconds",
        "histogram",
        &["handler", "method"],
    ),
    ("sse_clients", "gauge", &[]),
    ("log_write_errors_total", "counter", &["kind"]),
    ("child_processes", "gauge", &["kind"]),
];
/// Bounds that a histogram must have.
const BOUNDS: &[(&str, &[&str])] = &[
    (
        "attempt_duration_seconds",
        &["0.01", "0.025", "0.05", "0.1", "0.3", "1", "3", "10", "30"],
    ),
    ("event_latency_seconds", &["0.1", "86400"]),
];
/// Parts that are not built, by how their metrics would begin; the manual says so.
const NOT_BUILT: &[&str] = &["ha_", "satellite_", "amqp_", "pg_", "gateway_"];

/// Whether a label may have this value although the manual cannot list it: these are bounded by the
/// NASes, the catalogue, the paths of the API, what HTTP knows, and one build. None = it has a list.
fn is_open(label: &str, value: &str) -> Option<bool> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    Some(match label {
        "nas" | "version" | "revision" | "rustc" => true,
        "nas_id" => digits(value) || value == "none",
        "cmd" => {
            let known = Cmd::parse(value).is_ok_and(|cmd| cmd.in_catalogue());
            known || ["", "other"].contains(&value)
        }
        "handler" => {
            let path = value.starts_with('/') && !value.split('/').any(digits);
            path || value == "none"
        }
        "code" => digits(value) && value.len() == 3,
        "le" => value.parse::<f64>().is_ok(),
        _ => return None,
    })
}

/// One family of the text: its kind, its help, labels of each sample with their values.
#[derive(Default)]
struct Family {
    kind: String,
    help: String,
    samples: Vec<BTreeMap<String, String>>,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut all: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines().filter_map(|l| l.strip_prefix("# ")) {
        let mut words = line.splitn(3, ' ');
        let (what, name, rest) = (words.next(), words.next().unwrap(), words.next());
        let family = all.entry(name.to_owned()).or_default();
        let rest = rest.unwrap_or_default().to_owned();
        match what {
            Some("TYPE") => family.kind = rest,
            Some("HELP") => family.help = rest,
            _ => panic!("{line}"),
        }
    }
    let form = regex::Regex::new(r#"([a-z_]+)="((?:[^"\\]|\\.)*)""#).unwrap();
    for line in text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
    {
        let name = line.split(['{', ' ']).next().unwrap();
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .filter(|base| all.contains_key(*base));
        let family = all.get_mut(base.unwrap_or(name)).unwrap();
        let (labels, _) = line.rsplit_once(' ').unwrap();
        let pairs = form.captures_iter(labels);
        let pairs = pairs.map(|c| (c[1].to_owned(), c[2].to_owned()));
        family.samples.push(pairs.collect());
    }
    all
}

/// What of the promise the text does not keep.
fn broken(text: &str) -> Vec<String> {
    let all = families(text);
    let mut wrong = Vec::new();
    for (name, kind, labels) in PROMISED {
        let Some(family) = all.get(&format!("{OURS}{name}")) else {
            wrong.push(format!("{name} is not there"));
            continue;
        };
        if family.kind != *kind {
            wrong.push(format!("{name} is a {}", family.kind));
        }
        let wanted: BTreeSet<&str> = labels.iter().copied().collect();
        for sample in &family.samples {
            let has = sample.keys().map(String::as_str).filter(|l| *l != "le");
            let has: BTreeSet<&str> = has.collect();
            if has != wanted {
                wrong.push(format!("{name} has the labels {has:?}"));
            }
        }
    }
    for (name, bounds) in BOUNDS {
        let family = all.get(&format!("{OURS}{name}"));
        let samples = family.map(|family| family.samples.as_slice());
        let has: BTreeSet<&str> = samples
            .unwrap_or_default()
            .iter()
            .filter_map(|sample| sample.get("le").map(String::as_str))
            .collect();
        let missing = bounds.iter().filter(|bound| !has.contains(**bound));
        wrong.extend(missing.map(|bound| format!("{name} has no bound {bound}")));
    }
    for (name, family) in &all {
        if family.help.is_empty() {
            wrong.push(format!("{name} has no help"));
        }
        let bare = name.strip_prefix(OURS).unwrap_or(name);
        if NOT_BUILT.iter().any(|part| bare.starts_with(part)) {
            wrong.push(format!("{name} is of a part that is not built"));
        }
    }
    wrong
}

/// Fails where the text does not keep the promise.
pub(crate) fn judge(text: &str) {
    let wrong = broken(text);
    assert!(wrong.is_empty(), "{wrong:#?}\n{text}");
    // The judge bites.
    for (from, to, complaint) in [
        ("build_info", "build_info_of", "build_info is not there"),
        ("source=", "sauce=", "events_received_total has the labels"),
        ("le=\"0.3\"", "le=\"0.31\"", "no bound 0.3"),
        ("forks_busy gauge", "forks_busy counter", "is a counter"),
        (
            "# HELP nas_event_daemon_turns_total ",
            "# HELP x ",
            "no help",
        ),
        ("turns_total", "ha_role", "not built"),
    ] {
        let wrong = broken(&text.replace(from, to));
        let said = wrong.iter().any(|w| w.contains(complaint));
        assert!(said, "{from}: {wrong:?}");
    }
}

/// The manual's table of labels: each, and the words that it gives as values.
fn of_the_manual(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let (_, table) = page.split_once("\n| label | its values |").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let words = |cell: &str| -> Vec<String> {
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted.map(str::to_owned).collect()
    };
    let mut all = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let (labels, values) = line.trim_start_matches("| ").split_once(" | ").unwrap();
        for label in words(labels) {
            all.insert(label, words(values).into_iter().collect());
        }
    }
    all
}

/// What the manual does not say of the labels, or says in vain.
fn untold(text: &str, page: &str) -> Vec<String> {
    let manual = of_the_manual(page);
    let mut wrong = Vec::new();
    let mut served = BTreeSet::new();
    for (label, value) in families(text)
        .into_values()
        .flat_map(|family| family.samples)
        .flatten()
    {
        match manual.get(&label) {
            None => wrong.push(format!("the label {label}")),
            Some(values) if is_open(&label, &value).unwrap_or_else(|| values.contains(&value)) => {}
            Some(_) => wrong.push(format!("{label}={value}")),
        }
        served.insert(label);
    }
    let in_vain = manual.keys().filter(|label| !served.contains(*label));
    wrong.extend(in_vain.map(|label| format!("{label} is no label")));
    wrong
}

/// Fails where the manual's table of labels is not true.
pub(crate) fn judge_labels(text: &str, page: &str) {
    let wrong = untold(text, page);
    assert!(wrong.is_empty(), "{wrong:#?}\n{text}");
    // The judge bites.
    for (from, to, complaint) in [
        ("op=\"turn\"", "op=\"spin\"", "op=spin"),
        ("driver=\"record\"", "login=\"record\"", "the label login"),
        ("stack=", "heap=", "stack is no label"),
        ("cmd=\"user_add\"", "cmd=\"my_own\"", "cmd=my_own"),
        (
            "handler=\"/metrics\"",
            "handler=\"/nas/7\"",
            "handler=/nas/7",
        ),
    ] {
        let wrong = untold(&text.replace(from, to), page);
        assert!(wrong.iter().any(|w| w == complaint), "{from}: {wrong:?}");
    }
}
