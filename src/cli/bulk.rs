//! `event bulk`: many events from a file or a pipe through the daemon's bulk door, in parts with
//! one batch; and `audit`: who changed what.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use clap::{Args, ValueEnum};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::Console;
use super::ctl::{Ctl, refusal};
use super::exit::{DONE, FAILED, Failed, NOT_REACHABLE, Outcome, PART_FAILED, USAGE, remark};
use super::progress::Progress;
use super::request::{Request, encoded};
use super::table::Table;
use crate::clock;
use crate::config::parse_duration;
use crate::intake::access::hex;
use crate::store::audit_rows;

/// Largest file that is taken, bytes: the door's own limit.
const FILE_MAX: u64 = 256 * 1024 * 1024;
/// Lines of one part: enough for speed, few enough for a bar that moves.
const PART: usize = 20_000;
/// Longest key, letters: the daemon takes 200, and parts are numbered.
const KEY_MAX: usize = 150;
/// How often one part is sent, and the pause between: about ten minutes of a full stack.
const TRIES_MAX: u32 = 120;
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// With `--rate` or `--spread` a part is sent this often, or when its one line is due.
const BEAT: Duration = Duration::from_millis(100);

/// From where.
#[derive(Debug, Args)]
pub struct Bulk {
    /// A file, or - for standard input
    #[arg(default_value = "-")]
    file: String,
    /// How it is written; default: by its first line
    #[arg(long, value_enum)]
    format: Option<Form>,
    /// The command of all of them; needed with --format ids
    #[arg(long, required_if_eq("format", "ids"))]
    cmd: Option<String>,
    /// Name of the batch; default: a new one
    #[arg(long, value_name = "NAME")]
    batch: Option<String>,
    /// Post nothing; say how many events go to which NAS, how long that takes, and what the guard says
    #[arg(long)]
    plan: bool,
    /// A name of this upload: sent again with the same one, nothing is stored twice (24 hours)
    #[arg(long, value_name = "KEY", value_parser = key)]
    key: Option<String>,
    /// Events per second; default: as fast as the daemon takes them
    #[arg(long, value_name = "N", conflicts_with = "spread", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// All of them evenly within this time, for example 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    spread: Option<Duration>,
}

/// Forms of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// One JSON object per line.
    Jsonl,
    /// Columns under a header.
    Csv,
    /// One account per line.
    Ids,
}

impl Bulk {
    /// The same over the API, if the file can go as it is.
    pub fn requests(&self) -> Vec<Request> {
        let form = match self.format {
            Some(Form::Jsonl) => Some("application/x-ndjson"),
            Some(Form::Csv) => Some("text/csv"),
            Some(Form::Ids) | None => None,
        };
        // Accounts become events, and a pace is kept, before they are sent.
        if self.rate.is_some() || self.spread.is_some() || self.cmd.is_some() {
            return Vec::new();
        }
        let mut headers: Vec<String> = form
            .map(|form| format!("content-type: {form}"))
            .into_iter()
            .collect();
        headers.extend(
            self.key
                .as_ref()
                .map(|key| format!("Idempotency-Key: {key}")),
        );
        let path = Request::get("/api/v1/events/bulk").with(&[
            ("batch_id", self.batch.clone()),
            ("plan", self.plan.then(|| "true".to_owned())),
        ]);
        vec![path.lines(&self.file, headers)]
    }
}

/// What the daemon takes as `Idempotency-Key`, with room for the number of a part.
fn key(text: &str) -> Result<String, String> {
    if (1..=KEY_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "expected 1 to {KEY_MAX} letters, digits and signs without spaces"
        ))
    }
}

/// One that nobody else has, so that within this run a lost answer can be asked for again.
fn own_key() -> Result<String, Failed> {
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random)
        .map_err(|e| Failed::new(FAILED, format!("the system gives no random numbers: {e}")))?;
    Ok(format!("cli-{}", hex(&random)))
}

/// Sends one part until it is answered: what was lost on the way is asked for again, and where
/// too much is waiting, it waits.
async fn sent(
    ctl: &Ctl,
    path: &str,
    body: &str,
    key: &str,
) -> Result<(StatusCode, String), Failed> {
    let mut tries = 0;
    loop {
        tries += 1;
        let answer = ctl.lines(path, body.to_owned(), key).await;
        let why = match answer {
            Ok(Some((status, _)))
                if status == StatusCode::TOO_MANY_REQUESTS
                    || status == StatusCode::SERVICE_UNAVAILABLE =>
            {
                format!("the daemon answered {status}")
            }
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) if tries == 1 => {
                return Err(Failed::new(
                    NOT_REACHABLE,
                    format!(
                        "no daemon listens on {}, 0 events are stored\nhint: bulk goes through the daemon: start it",
                        ctl.socket()
                    ),
                )
                .numbered(401));
            }
            Ok(None) => format!("no daemon listens on {}", ctl.socket()),
            Err(failed) => failed.text,
        };
        if tries >= TRIES_MAX {
            return Err(Failed::new(
                NOT_REACHABLE,
                format!(
                    "{why}\nhint: given up after {tries} tries; call again with --key {key:?} to add only the rest"
                ),
            ));
        }
        remark(format!("{why}: again in {AGAIN_AFTER:?}"));
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

const PLAN: &[&str] = &[
    "nas_id",
    "name",
    "events",
    "accounts",
    "waiting",
    "forks",
    "ms_each",
    "seconds",
    "stands_still",
];

/// Prints what the daemon says of the whole file.
async fn planned(console: &Console, ctl: &Ctl, body: &str) -> Outcome {
    let (status, text) = sent(ctl, "/api/v1/events/bulk?plan=true", body, &own_key()?).await?;
    if !status.is_success() {
        return Err(refusal(status, &text));
    }
    let plan: Value = serde_json::from_str(&text).unwrap_or_default();
    let field = |name: &str| plan.get(name).cloned().unwrap_or_default();
    let says = plan.pointer("/guard/says").and_then(Value::as_array);
    let says: Vec<&str> = says
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let record = [
        ("events", field("events")),
        ("rejected", field("rejected_total")),
        ("unknown_accounts", field("unknown_accounts")),
        ("without_nas", field("without_nas")),
        ("seconds", field("seconds")),
        ("above_high_water", field("above_high_water")),
        ("guard", json!(says.join("; "))),
    ];
    let mut table = Table::new(PLAN);
    for nas in plan
        .get("nas")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let cells = PLAN
            .iter()
            .map(|name| nas.get(*name).cloned().unwrap_or_default());
        table.push(cells.collect());
    }
    console.record_with(&record, &[("nas", &table)]);
    remark("plan: nothing was posted");
    Ok(DONE)
}

/// Posts them.
pub async fn bulk(console: &Console, args: Bulk) -> Outcome {
    let text = read(&args.file)?;
    let form = args.format.unwrap_or_else(|| form_of(&text));
    let (header, lines) = lines(&text, form, args.cmd.as_deref())?;
    if console.dry_run {
        console.record(&[("events", json!(lines.len()))]);
        remark("dry run: nothing was posted; each line is checked when it is");
        return Ok(DONE);
    }
    let config = console.config()?;
    let ctl = Ctl::new(&config)?;
    if args.plan {
        let mut body = header.map(|h| h + "\n").unwrap_or_default();
        body.push_str(&lines.join("\n"));
        return planned(console, &ctl, &body).await;
    }
    let key = args.key.map_or_else(own_key, Ok)?;
    let mut batch = args.batch;
    let (mut accepted, mut rejected) = (0, 0);
    let mut table = Table::new(&["line", "error"]);
    let bar = Progress::of("posting", lines.len() as u64);
    let pace = Pace::of(args.rate, args.spread, lines.len());
    let began = clock::tick_ms();
    for (index, part) in lines.chunks(pace.part).enumerate() {
        let passed = clock::tick_ms().saturating_sub(began);
        let due = pace.due_ms((index * pace.part) as u64);
        tokio::time::sleep(Duration::from_millis(due.saturating_sub(passed))).await;
        let mut body = header.clone().map(|h| h + "\n").unwrap_or_default();
        body.push_str(&part.join("\n"));
        let path = match &batch {
            Some(name) => format!("/api/v1/events/bulk?batch_id={}", encoded(name)),
            None => "/api/v1/events/bulk".to_owned(),
        };
        let (status, text) = sent(&ctl, &path, &body, &format!("{key}.{index}")).await?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        let number = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        if !status.is_success() && number("rejected_total") == 0 {
            return Err(refusal(status, &text));
        }
        accepted += number("accepted");
        rejected += number("rejected_total");
        let before = index * pace.part;
        for wrong in value
            .get("rejected")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let line = wrong.get("line").and_then(Value::as_u64).unwrap_or(0);
            let error = wrong.get("error").cloned().unwrap_or_default();
            table.push(vec![json!(line + before as u64), error]);
        }
        batch = batch.or_else(|| value.get("batch_id")?.as_str().map(str::to_owned));
        bar.at((before + part.len()) as u64);
    }
    bar.end();
    console.record_with(
        &[
            ("batch_id", json!(batch)),
            ("accepted", json!(accepted)),
            ("rejected", json!(rejected)),
        ],
        &[("rejected_lines", &table)],
    );
    Ok(if rejected > 0 { PART_FAILED } else { DONE })
}

/// How fast lines are sent.
#[derive(Debug, PartialEq, Eq)]
struct Pace {
    /// Lines of one part.
    part: usize,
    /// Time of a thousand lines, ms; 0 = no waiting.
    thousand_ms: u64,
}

impl Pace {
    fn of(rate: Option<u32>, spread: Option<Duration>, lines: usize) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let thousand_ms = match (rate, spread) {
            (Some(rate), _) => 1_000_000_u64.checked_div(u64::from(rate)),
            (None, Some(time)) => ms(time).saturating_mul(1_000).checked_div(lines as u64),
            (None, None) => None,
        };
        let thousand_ms = thousand_ms.unwrap_or(0);
        // So many fall into one beat; at least one goes with each.
        let part = ms(BEAT).saturating_mul(1_000).checked_div(thousand_ms);
        let part = part.and_then(|part| usize::try_from(part).ok());
        Self {
            part: part.unwrap_or(PART).clamp(1, PART),
            thousand_ms,
        }
    }

    /// When the line after so many is due, ms since the first.
    fn due_ms(&self, sent: u64) -> u64 {
        sent.saturating_mul(self.thousand_ms) / 1_000
    }
}

fn read(file: &str) -> Result<String, Failed> {
    let failed = |e: std::io::Error| Failed::new(USAGE, format!("{file} cannot be read: {e}"));
    let mut text = String::new();
    let read = if file == "-" {
        if std::io::stdin().is_terminal() {
            return Err(Failed::new(
                USAGE,
                "nothing to read\nhint: name a file, or send one: event bulk < events.jsonl",
            ));
        }
        std::io::stdin().take(FILE_MAX).read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(file).map_err(failed)?;
        file.take(FILE_MAX).read_to_string(&mut text)
    };
    read.map_err(failed)?;
    if text.len() as u64 >= FILE_MAX {
        return Err(Failed::new(
            FAILED,
            "the file is larger than 256 MiB\nhint: split it",
        ));
    }
    Ok(text)
}

fn form_of(text: &str) -> Form {
    let first = text.trim_start_matches('\u{feff}').trim_start();
    if first.starts_with('{') {
        Form::Jsonl
    } else if first
        .lines()
        .next()
        .is_some_and(|l| l.trim().parse::<i64>().is_ok())
    {
        Form::Ids
    } else {
        Form::Csv
    }
}

/// A header, if there is one, and the lines of events.
type Lines = (Option<String>, Vec<String>);

fn lines(text: &str, form: Form, cmd: Option<&str>) -> Result<Lines, Failed> {
    let mut all = text
        .trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned);
    let (header, lines): Lines = match form {
        Form::Jsonl => (None, all.collect()),
        Form::Csv => (all.next(), all.collect()),
        Form::Ids => {
            let cmd = cmd.ok_or_else(|| {
                Failed::new(
                    USAGE,
                    "lines of accounts need --cmd\nhint: event bulk ids.txt --cmd user_add",
                )
            })?;
            let events = all.map(|id| json!({ "user_id": id, "cmd": cmd }).to_string());
            (None, events.collect())
        }
    };
    if lines.is_empty() {
        return Err(Failed::new(USAGE, "there is no event in it"));
    }
    Ok((header, lines))
}

/// Which rows of the audit.
#[derive(Debug, Args)]
pub struct Audit {
    /// Only older ones than this number: the next page
    #[arg(long, value_name = "ID")]
    before: Option<i64>,
}

/// Rows of a list where nobody says how many, and in one look.
const ROWS: (usize, usize) = (50, 1000);

impl Audit {
    /// The same over the API.
    pub fn request(&self, console: &Console) -> Result<Request, Failed> {
        let limit = console.limit(ROWS.0, ROWS.1)?;
        Ok(Request::get("/api/v1/audit").with(&[
            ("before", self.before.map(|id| id.to_string())),
            ("limit", Some(limit.to_string())),
        ]))
    }
}

/// Who changed what, newest first.
pub async fn audit(console: &Console, args: Audit) -> Outcome {
    let limit = console.limit(ROWS.0, ROWS.1)?;
    let store = console.store(&console.config()?).await?;
    let rows = audit_rows(store.as_ref(), args.before, limit).await?;
    let mut table = Table::new(&["id", "at", "who", "what", "detail"]);
    for row in rows {
        table.push(vec![
            json!(row.id),
            json!(row.at),
            json!(row.who),
            json!(row.what),
            json!(row.detail),
        ]);
    }
    console.list(&table);
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_pace() {
        let second = Some(Duration::from_secs(1));
        let at_once = Pace::of(None, None, 5);
        assert_eq!((at_once.part, at_once.due_ms(1_000_000)), (PART, 0));
        let rate = Pace::of(Some(50), None, 1_000);
        assert_eq!((rate.part, rate.due_ms(50)), (5, 1_000));
        let slow = Pace::of(Some(1), None, 1_000);
        assert_eq!((slow.part, slow.due_ms(3)), (1, 3_000));
        let fast = Pace::of(Some(100_000), None, 1_000_000);
        assert_eq!((fast.part, fast.due_ms(1_000_000)), (10_000, 10_000));
        let few = Pace::of(None, second, 4);
        assert_eq!((few.part, few.due_ms(3)), (1, 750));
        let many = Pace::of(None, Some(Duration::from_secs(7_200)), 72_000);
        assert_eq!((many.part, many.due_ms(36_000)), (1, 3_600_000));
        // More than there is a beat for goes at once.
        let none = Pace::of(None, Some(Duration::ZERO), 10);
        assert_eq!((none.part, none.due_ms(9)), (PART, 0));
    }

    #[test]
    fn the_form_is_seen_and_ids_become_events() {
        assert_eq!(form_of("\u{feff}{\"cmd\":1}"), Form::Jsonl);
        assert_eq!(form_of("user_id,cmd\n"), Form::Csv);
        assert_eq!(form_of("1424\n7\n"), Form::Ids);
        let (header, lines) = lines("1\r\n\n2\n", Form::Ids, Some("user_add")).unwrap();
        assert_eq!(header, None);
        assert_eq!(
            lines,
            [
                r#"{"user_id":"1","cmd":"user_add"}"#,
                r#"{"user_id":"2","cmd":"user_add"}"#
            ]
        );
        assert!(super::lines("1\n", Form::Ids, None).is_err());
        assert!(super::lines("a,b\n", Form::Csv, None).is_err());
    }
}
