//! The text of `/metrics` cut to size (Prometheus text format 0.0.4): a network of a thousand NASes
//! has tens of thousands of series, which nobody wants every 15 s. Above `metrics.max_nas` they are
//! added up over the NASes; `/metrics/detailed` has those of the NASes that are asked for.

use std::collections::BTreeSet;

/// The label that tells NASes apart, and the one beside it.
const NAS: &str = "nas_id";
const NAME: &str = "nas";

/// A sample that has labels.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: &'a str,
}

impl Sample<'_> {
    fn nas(&self) -> Option<i64> {
        let label = self.labels.iter().find(|(name, _)| *name == NAS)?;
        label.1.parse().ok()
    }

    /// Name and labels without those of the NAS.
    fn of_all(&self) -> String {
        let labels = self.labels.iter().filter(|(n, _)| ![NAS, NAME].contains(n));
        let labels: Vec<String> = labels
            .map(|(n, value)| format!("{n}=\"{value}\""))
            .collect();
        match labels.is_empty() {
            true => self.name.to_owned(),
            false => format!("{}{{{}}}", self.name, labels.join(",")),
        }
    }
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, mut rest) = line.split_once('{').filter(|_| !line.starts_with('#'))?;
    let mut labels = Vec::new();
    loop {
        let (label, quoted) = rest.split_once("=\"")?;
        let end = end_of(quoted)?;
        labels.push((label, quoted.get(..end)?));
        rest = quoted.get(end + 1..)?;
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    let value = rest.strip_prefix('}')?.trim();
    Some(Sample {
        name,
        labels,
        value,
    })
}

/// Where the quote that ends a value stands: the first that no backslash precedes.
fn end_of(quoted: &str) -> Option<usize> {
    let mut escaped = false;
    quoted.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// How many NASes the text tells apart.
pub fn nases(text: &str) -> usize {
    let all: BTreeSet<i64> = text.lines().filter_map(|l| sample(l)?.nas()).collect();
    all.len()
}

/// What alarms tell of each NAS, however many there are.
const OF_EACH: [&str; 5] = [
    "nas_event_daemon_breaker_state",
    "nas_event_daemon_nas_not_served",
    "nas_event_daemon_nas_paused",
    "nas_event_daemon_nas_served",
    "nas_event_daemon_queue_oldest_age_seconds",
];

/// The text with the series of all NASes added up, but for [`OF_EACH`]; of times the latest.
pub fn summed(text: &str) -> String {
    let mut out = String::with_capacity(text.len() / 8);
    let mut sums: Vec<(String, f64)> = Vec::new();
    for line in text.lines() {
        let added = |s: &Sample<'_>| s.nas().is_some() && !OF_EACH.contains(&s.name);
        if let Some(of_nas) = sample(line).filter(added) {
            let (series, value) = (of_nas.of_all(), of_nas.value.parse().unwrap_or(0.0));
            let is_time = of_nas.name.ends_with("_timestamp_seconds");
            match sums.iter_mut().find(|(known, _)| *known == series) {
                Some((_, sum)) if is_time => *sum = sum.max(value),
                Some((_, sum)) => *sum += value,
                None => sums.push((series, value)),
            }
            continue;
        }
        // Not between two samples: a family may have some that belong to no NAS.
        if line.is_empty() || line.starts_with('#') {
            write(&mut out, &mut sums);
        }
        out.push_str(line);
        out.push('\n');
    }
    write(&mut out, &mut sums);
    out
}

fn write(out: &mut String, sums: &mut Vec<(String, f64)>) {
    for (series, value) in sums.drain(..) {
        out.push_str(&format!("{series} {value}\n"));
    }
}

/// What the text says of these NASes.
pub fn only(text: &str, wanted: &BTreeSet<i64>) -> String {
    let mut out = String::new();
    // Help and type of a family come before its samples, and only with one of them.
    let mut family = String::new();
    let mut begun = true;
    for line in text.lines() {
        if line.starts_with('#') {
            if begun {
                family.clear();
                begun = false;
            }
            family.push_str(line);
            family.push('\n');
        } else if !line.is_empty() {
            begun = true;
            let nas = sample(line).and_then(|s| s.nas());
            if nas.is_some_and(|nas| wanted.contains(&nas)) {
                out.push_str(&family);
                family.clear();
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP forks Slots
# TYPE forks gauge
forks{nas_id=\"5\",nas=\"a\\\"},b\"} 2
forks{nas_id=\"6\",nas=\"c\"} 3

# TYPE took histogram
took_bucket{nas_id=\"5\",le=\"0.3\"} 1
took_bucket{nas_id=\"5\",le=\"+Inf\"} 2
took_bucket{nas_id=\"6\",le=\"0.3\"} 10
took_bucket{nas_id=\"6\",le=\"+Inf\"} 20
took_sum{nas_id=\"5\"} 0.5
took_sum{nas_id=\"6\"} 0.25

# TYPE last_timestamp_seconds gauge
last_timestamp_seconds{nas_id=\"6\"} 1700000001.5
last_timestamp_seconds{nas_id=\"5\"} 1700000000

# TYPE stack gauge
stack{stack=\"main\",cmd=\"user_add\"} 7
dead 1
";
    const OF_ONE: &str = "nas_event_daemon_nas_paused{nas_id=\"7\",nas=\"d\"} 1\n";
    const MIXED: &str = "dead{nas_id=\"5\"} 1\ndead{nas_id=\"none\"} 7\ndead{nas_id=\"6\"} 2\n";

    #[test]
    fn the_series_of_all_nases_are_added_up() {
        assert_eq!(nases(TEXT), 2);
        let sums = summed(TEXT);
        assert_eq!(
            sums,
            "\
# HELP forks Slots
# TYPE forks gauge
forks 5

# TYPE took histogram
took_bucket{le=\"0.3\"} 11
took_bucket{le=\"+Inf\"} 22
took_sum 0.75

# TYPE last_timestamp_seconds gauge
last_timestamp_seconds 1700000001.5

# TYPE stack gauge
stack{stack=\"main\",cmd=\"user_add\"} 7
dead 1
"
        );
        assert_eq!(nases(&sums), 0);
        assert_eq!(summed(OF_ONE), OF_ONE, "an alarm names its NAS");
        assert_eq!(summed(MIXED), "dead{nas_id=\"none\"} 7\ndead 3\n", "once");
    }

    #[test]
    fn one_nas_is_cut_out() {
        let six = only(TEXT, &BTreeSet::from([6]));
        assert_eq!(
            six,
            "\
# HELP forks Slots
# TYPE forks gauge
forks{nas_id=\"6\",nas=\"c\"} 3
# TYPE took histogram
took_bucket{nas_id=\"6\",le=\"0.3\"} 10
took_bucket{nas_id=\"6\",le=\"+Inf\"} 20
took_sum{nas_id=\"6\"} 0.25
# TYPE last_timestamp_seconds gauge
last_timestamp_seconds{nas_id=\"6\"} 1700000001.5
"
        );
        let five = only(TEXT, &BTreeSet::from([5]));
        assert!(
            five.contains("forks{nas_id=\"5\",nas=\"a\\\"},b\"} 2"),
            "{five}"
        );
        assert_eq!(only(TEXT, &BTreeSet::from([7])), "");
    }
}
