//! Records of a log read back, as [`line`](super::line) writes them. Texts stay escaped.

/// Letters of the time that a record begins with, `YYYY-MM-DD HH:MM:SS`.
pub const TIME: usize = 19;

/// A record of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Event.
    pub event: i64,
    /// Account; none = an event of the NAS as a whole.
    pub user: Option<i64>,
    /// Command.
    pub cmd: &'a str,
    /// Number of the try, from 1.
    pub try_count: u32,
    /// What follows, as it is.
    pub said: &'a str,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End<'a> {
    /// `done`, `deferred`, `dead` …
    pub result: Option<&'a str>,
    /// Exit code, trap category or HTTP status; 0 = none.
    pub code: Option<i64>,
    /// Duration, ms.
    pub ms: Option<i64>,
    /// When it is tried again, in the server's time.
    pub next_try: Option<&'a str>,
    /// What went wrong.
    pub error: Option<&'a str>,
}

/// When a line was written (empty for a torn one), and what it says.
pub fn message(line: &str) -> (&str, &str) {
    let time = line.get(..TIME).unwrap_or_default();
    let message = line.split_once("]: ").map_or(line, |(_, message)| message);
    (time, message)
}

/// What a message says of an attempt; none = it is another one.
pub fn record(message: &str) -> Option<Record<'_>> {
    let (event, rest) = message.strip_prefix("event=")?.split_once(" user=")?;
    let (user, rest) = rest.split_once(" cmd=")?;
    let (cmd, rest) = rest.split_once(" try=")?;
    let (try_count, said) = rest.split_once(' ')?;
    Some(Record {
        event: event.parse().ok()?,
        user: user.parse().ok(),
        cmd,
        try_count: try_count.parse().ok()?,
        said,
    })
}

/// The end that a record tells.
pub fn end(said: &str) -> Option<End<'_>> {
    let words = said.strip_prefix("end ")?;
    // The error comes last and may hold anything; the time before it has a space.
    let (words, error) = match words.split_once(" error=\"") {
        Some((words, error)) => (words, Some(error.strip_suffix('"').unwrap_or(error))),
        None => (words, None),
    };
    let (words, next_try) = match words.split_once(" next_try=") {
        Some((words, time)) => (words, Some(time)),
        None => (words, None),
    };
    let word = |name: &str| words.split(' ').find_map(|word| word.strip_prefix(name));
    Some(End {
        result: word("result="),
        code: word("code=").and_then(|n| n.parse().ok()),
        ms: word("ms=").and_then(|n| n.parse().ok()),
        next_try,
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_not_taken_for_fields() {
        let line = "2026-01-02 03:04:05 bras nas_event_daemon[812]: event=7 user=- cmd=user_add try=2 > /x comment=\"]: event=8 try=3 \"";
        let (time, text) = message(line);
        assert_eq!(time, "2026-01-02 03:04:05");
        let read = record(text).unwrap();
        assert_eq!(
            (read.event, read.user, read.cmd, read.try_count),
            (7, None, "user_add", 2)
        );
        assert!(read.said.starts_with("> /x") && end(read.said).is_none());
        let told = end(
            "end result=deferred code=254 ms=12 next_try=2026-01-02 03:05:07 error=\"said ms=9\"",
        );
        let told = told.unwrap();
        assert_eq!(
            (told.result, told.code, told.ms),
            (Some("deferred"), Some(254), Some(12))
        );
        assert_eq!(
            (told.next_try, told.error),
            (Some("2026-01-02 03:05:07"), Some("said ms=9"))
        );
        assert_eq!(message("torn"), ("", "torn"));
        assert_eq!(record("Start work with nas nasid=5"), None);
    }
}
