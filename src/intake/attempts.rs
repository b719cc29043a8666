//! The attempts of an event, read back from the log that has them: the account's, or the NAS's for
//! an event of the NAS as a whole. The database keeps how many there were and how the last one
//! ended; what was sent and answered is in the logs alone.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;

use crate::event::EventId;
use crate::logs::read;

/// How far back from its end a log is searched, bytes: thousands of records.
pub const TAIL_MAX: u64 = 4 * 1024 * 1024;
/// Attempts that are told, the latest; `dispatch.max_tries` is 10 by default.
const ATTEMPTS_MAX: usize = 50;
/// Lines of one attempt that are told, the first.
const LINES_MAX: usize = 500;

/// One attempt, as its records tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Number of the try, from 1.
    #[serde(rename = "try")]
    pub try_count: u32,
    /// `YYYY-MM-DD HH:MM:SS` in the server's time zone.
    pub started: Option<String>,
    /// The same; none while it runs, or if the daemon died with it.
    pub ended: Option<String>,
    /// `done`, `deferred`, `dead` …
    pub result: Option<String>,
    /// Exit code, trap category or HTTP status; 0 = none.
    pub code: Option<i64>,
    /// Duration, ms.
    pub ms: Option<i64>,
    /// What went wrong.
    pub error: Option<String>,
    /// `> command` and `< answer`, as they are in the log.
    pub lines: Vec<String>,
}

/// The end of a file, at most so many bytes; broken text is shown as far as it can be.
pub fn tail(path: &Path, most: u64) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The attempts of one event among the records of a log, in their order.
pub fn of_event(log: &str, event: EventId) -> Vec<Attempt> {
    let mark = format!("]: event={event} ");
    let mut attempts: Vec<Attempt> = Vec::new();
    for line in log.lines().filter(|line| line.contains(&mark)) {
        let (time, message) = read::message(line);
        let Some(record) = read::record(message).filter(|r| r.event == event.0) else {
            continue;
        };
        let (tried, said) = (record.try_count, record.said);
        let at = Some(time.to_owned()).filter(|time| !time.is_empty());
        let open = attempts
            .last()
            .is_some_and(|a| a.try_count == tried && a.ended.is_none());
        // Written again after a crash: the same try, another attempt.
        if said == "start" || !open {
            attempts.push(Attempt {
                try_count: tried,
                ..Attempt::default()
            });
        }
        let Some(attempt) = attempts.last_mut() else {
            continue;
        };
        if said == "start" {
            attempt.started = at;
        } else if let Some(end) = read::end(said) {
            attempt.ended = at;
            attempt.result = end.result.map(str::to_owned);
            attempt.code = end.code;
            attempt.ms = end.ms;
            attempt.error = end.error.map(str::to_owned);
        } else if attempt.lines.len() < LINES_MAX {
            attempt.lines.push(said.to_owned());
        }
    }
    let surplus = attempts.len().saturating_sub(ATTEMPTS_MAX);
    attempts.drain(..surplus);
    attempts
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-01-02 03:04:05 bras nas_event_daemon[812]: event=7 user=1 cmd=user_add try=1 start
2026-01-02 03:04:05 bras nas_event_daemon[812]: event=7 user=1 cmd=user_add try=1 > /x =a=event=8
2026-01-02 03:04:05 bras nas_event_daemon[812]: event=8 user=1 cmd=user_del try=1 start
2026-01-02 03:04:06 bras nas_event_daemon[812]: event=7 user=1 cmd=user_add try=1 < !trap
2026-01-02 03:04:06 bras nas_event_daemon[812]: event=7 user=1 cmd=user_add try=1 end result=deferred code=254 ms=1000 next_try=2026-01-02 03:05:07 error=\"said \\\"ms=9\\\"\"
2026-01-02 03:05:07 bras nas_event_daemon[812]: event=7 user=1 cmd=user_add try=2 start
2026-01-02 03:06:00 bras nas_event_daemon[900]: event=7 user=1 cmd=user_add try=2 start
2026-01-02 03:06:01 bras nas_event_daemon[900]: event=7 user=1 cmd=user_add try=2 end result=done code=0 ms=12
broken line event=7
";

    #[test]
    fn each_start_is_an_attempt() {
        let attempts = of_event(LOG, EventId(7));
        let short: Vec<_> = attempts
            .iter()
            .map(|a| (a.try_count, a.result.as_deref(), a.ms))
            .collect();
        assert_eq!(
            short,
            [
                (1, Some("deferred"), Some(1000)),
                (2, None, None),
                (2, Some("done"), Some(12))
            ]
        );
        assert_eq!(attempts[0].lines, ["> /x =a=event=8", "< !trap"]);
        assert_eq!(attempts[0].code, Some(254));
        assert_eq!(attempts[0].started.as_deref(), Some("2026-01-02 03:04:05"));
        assert_eq!(attempts[0].error.as_deref(), Some("said \\\"ms=9\\\""));
        assert_eq!(of_event(LOG, EventId(8)).len(), 1);
        assert_eq!(of_event(LOG, EventId(1)), []);
    }

    #[test]
    fn the_latest_are_told() {
        let line = |n: usize| {
            format!(
                "2026-01-02 03:04:05 b nas_event_daemon[1]: event=7 user=1 cmd=x try={n} start\n"
            )
        };
        let log: String = (1..=60).map(line).collect();
        let attempts = of_event(&log, EventId(7));
        assert_eq!((attempts.len(), attempts[0].try_count), (50, 11));
    }
}
