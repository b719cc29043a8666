//! Records of a log read back, as [`line`](super::line) writes them. Texts stay escaped. Also the
//! files that a rotation has set aside, which hold what was written before.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use flate2::read::MultiGzDecoder;

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

/// A file that a rotation has set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// Where it is.
    pub path: PathBuf,
    /// When it was written to last, wall ms: the time of its last record.
    pub until_ms: i64,
}

/// What rotations have set aside of a log, the newest first: `name.log-20260102-1767312000`,
/// `name.log.1`, each also with `.gz`.
pub fn rotated(log: &Path) -> Vec<Rotated> {
    let name = log.file_name().and_then(|name| name.to_str());
    let (Some(name), Some(dir)) = (name, log.parent()) else {
        return Vec::new();
    };
    let is_one = |file: &str| {
        let rest = file.strip_prefix(name);
        let rest = rest.map(|rest| rest.strip_suffix(".gz").unwrap_or(rest));
        rest.and_then(|rest| rest.strip_prefix(['-', '.']))
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let mut found: Vec<Rotated> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_one))
        .filter_map(|entry| {
            let written = entry.metadata().ok()?.modified().ok()?;
            let since = written.duration_since(UNIX_EPOCH).ok()?;
            Some(Rotated {
                path: entry.path(),
                until_ms: i64::try_from(since.as_millis()).ok()?,
            })
        })
        .collect();
    found.sort_by(|a, b| (b.until_ms, &b.path).cmp(&(a.until_ms, &a.path)));
    found
}

/// Opens a log, or one that was set aside, to read its lines.
pub fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let file = File::open(path)?;
    Ok(if path.extension().is_some_and(|end| end == "gz") {
        Box::new(BufReader::new(MultiGzDecoder::new(file)))
    } else {
        Box::new(BufReader::new(file))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_aside_is_found_and_read() {
        use std::io::{Read, Write};
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, at: u64, text: &str| {
            let path = dir.path().join(name);
            if name.ends_with(".gz") {
                let file = File::create(&path).unwrap();
                let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
                gz.write_all(text.as_bytes()).unwrap();
                gz.finish().unwrap();
            } else {
                fs::write(&path, text).unwrap();
            }
            let file = File::options().append(true).open(&path).unwrap();
            let at = UNIX_EPOCH + std::time::Duration::from_secs(at);
            file.set_modified(at).unwrap();
        };
        write("event_5.log", 400, "now");
        write("event_5.log-20260102-1767312000", 300, "before");
        write("event_5.log-20260101-1767225600.gz", 200, "long before");
        write("event_5.log.2", 100, "first");
        write("event_51.log", 250, "another's");
        write("event_5.log-notes", 350, "a person's");
        let found = rotated(&dir.path().join("event_5.log"));
        let texts: Vec<(String, i64)> = found
            .iter()
            .map(|one| {
                let mut text = String::new();
                open(&one.path).unwrap().read_to_string(&mut text).unwrap();
                (text, one.until_ms)
            })
            .collect();
        let expected = [
            ("before", 300_000),
            ("long before", 200_000),
            ("first", 100_000),
        ];
        assert_eq!(texts, expected.map(|(text, at)| (text.to_owned(), at)));
        assert_eq!(rotated(Path::new("/nonexistent/x.log")), []);
    }

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
