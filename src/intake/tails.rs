//! `/api/v1/logs/…`: the end of a log, as JSON, or followed as server-sent events (WHATWG HTML,
//! "Server-sent events"): a frame a second at most, of at most [`FRAME_LINES`] lines, and a
//! sign of life in between. Rotated and shortened files are followed by their name.

use std::convert::Infallible;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path as Part, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::event::UserId;
use crate::intake::access::{At, Viewer};
use crate::intake::api::{Asked, asked, number};
use crate::intake::attempts::{TAIL_MAX, tail};
use crate::intake::rest::{Desk, Refusal};
use crate::logs::Logs;
use crate::nas::{NasId, log_file_names};
use crate::store::query::{Model, Query as Rows};

/// Streams at once: each reads its file once a second.
pub const STREAMS_MAX: usize = 200;
/// Lines of one frame; the rest is counted, so that a storm does not drown a browser.
const FRAME_LINES: usize = 50;
/// Between two looks, which is also the shortest time between two frames.
const LOOK: Duration = Duration::from_secs(1);
/// Looks without a line after which a comment is sent, so that proxies keep the connection.
const SILENT_LOOKS: u32 = 15;
/// Bytes that are read in one look.
const READ_MAX: u64 = 1024 * 1024;
/// Lines of an answer, and without `lines`.
const LINES_MAX: usize = 1_000;
const LINES: usize = 50;

/// Query of a tail.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailQuery {
    lines: Option<usize>,
    follow: Option<bool>,
}

/// `GET /api/v1/logs/daemon`.
pub async fn of_daemon(
    State(desk): State<Desk>,
    At(_): Viewer,
    query: Asked<TailQuery>,
) -> Result<Response, Refusal> {
    let path = logs(&desk)?.daemon_path();
    answer(&desk, path, asked(query)?).await
}

/// `GET /api/v1/logs/nas/{id}`.
pub async fn of_nas(
    State(desk): State<Desk>,
    At(_): Viewer,
    Part(id): Part<String>,
    query: Asked<TailQuery>,
) -> Result<Response, Refusal> {
    let id = number(&id)?;
    let path = nas_path(&desk, NasId(id)).await?.ok_or_else(|| {
        Refusal::not_found(
            format!("there is no NAS {id}"),
            "GET /api/v1/nas lists them",
        )
    })?;
    answer(&desk, path, asked(query)?).await
}

/// `GET /api/v1/logs/accounts/{id}`.
pub async fn of_account(
    State(desk): State<Desk>,
    At(_): Viewer,
    Part(id): Part<String>,
    query: Asked<TailQuery>,
) -> Result<Response, Refusal> {
    let user = number(&id)?;
    let store = &desk.doors.store;
    let mut rows = Rows::one_of(Model::Users, user);
    let columns = store.columns(Model::Users);
    rows.columns.extend(
        columns
            .into_iter()
            .map(|c| c.name)
            .filter(|name| name == "abonent_id"),
    );
    let row = store.find(&rows).await.map_err(Refusal::store)?.pop();
    let row = row.ok_or_else(|| {
        Refusal::not_found(
            format!("there is no account {user}"),
            "users.id of the billing is asked for, not the abonent",
        )
    })?;
    let abonent = row.get("abonent_id").and_then(Value::as_i64);
    let path = logs(&desk)?.account_path(abonent, UserId(user));
    answer(&desk, path, asked(query)?).await
}

/// The logs of this process.
pub fn logs(desk: &Desk) -> Result<&Logs, Refusal> {
    desk.doors.logs.as_ref().ok_or_else(|| {
        Refusal::not_found(
            "this process keeps no logs".to_owned(),
            "ask the daemon itself",
        )
    })
}

/// Where the log of a NAS is; none = there is no such NAS.
pub async fn nas_path(desk: &Desk, id: NasId) -> Result<Option<PathBuf>, Refusal> {
    let rows = desk.doors.store.nases().await.map_err(Refusal::store)?;
    let all = rows.iter().map(|row| match row {
        Ok(nas) => (nas.id, nas.name.as_str(), nas.ip.as_str()),
        Err(bad) => (bad.id, "", bad.ip.as_str()),
    });
    let names = log_file_names(all);
    let logs = logs(desk)?;
    Ok(names
        .get(&id)
        .map(|name| logs.nas_path(&logs.nas_file(name))))
}

async fn answer(desk: &Desk, path: PathBuf, query: TailQuery) -> Result<Response, Refusal> {
    let most = query.lines.unwrap_or(LINES);
    if most > LINES_MAX {
        return Err(Refusal::malformed(format!(
            "lines is outside 0..{LINES_MAX}"
        )));
    }
    let place = match query.follow {
        Some(true) => Some(
            desk.tails
                .clone()
                .try_acquire_owned()
                .map_err(|_| Refusal {
                    retry_after: Some(5),
                    ..Refusal::new(
                        429,
                        "too_many_tails",
                        format!("{STREAMS_MAX} logs are followed at once"),
                        "close one, or ask without follow",
                    )
                })?,
        ),
        Some(false) | None => None,
    };
    let mut followed = Followed::new(path);
    let read = tokio::task::spawn_blocking(move || {
        let lines = followed.last(most);
        (followed, lines)
    });
    let (followed, lines) = read.await.map_err(|_| lost())?;
    Ok(match place {
        None => Json(json!({ "lines": lines })).into_response(),
        Some(place) => stream(followed, lines, place),
    })
}

fn lost() -> Refusal {
    Refusal::new(
        503,
        "unavailable",
        "the log could not be read".to_owned(),
        "try again",
    )
}

/// What a stream has between two frames.
struct Following {
    file: Followed,
    first: Option<Vec<String>>,
    silent: u32,
    _place: OwnedSemaphorePermit,
}

fn stream(file: Followed, first: Vec<String>, place: OwnedSemaphorePermit) -> Response {
    let state = Following {
        file,
        first: Some(first),
        silent: 0,
        _place: place,
    };
    let frames = futures_util::stream::unfold(state, |mut state| async move {
        if let Some(lines) = state.first.take() {
            return Some((Ok::<_, Infallible>(frame(&lines)), state));
        }
        loop {
            tokio::time::sleep(LOOK).await;
            let mut file = state.file;
            let read = tokio::task::spawn_blocking(move || {
                let lines = file.more();
                (file, lines)
            });
            let (file, lines) = read.await.ok()?;
            state.file = file;
            if !lines.is_empty() {
                state.silent = 0;
                return Some((Ok(frame(&lines)), state));
            }
            state.silent += 1;
            if state.silent >= SILENT_LOOKS {
                state.silent = 0;
                return Some((Ok(": \n\n".to_owned()), state));
            }
        }
    });
    let head = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (StatusCode::OK, head, Body::from_stream(frames)).into_response()
}

/// One event: each line of the log is a line of its data.
fn frame(lines: &[String]) -> String {
    let mut text = "event: lines\n".to_owned();
    let left_out = lines.len().saturating_sub(FRAME_LINES);
    if left_out > 0 {
        text.push_str(&format!("data: … {left_out} more\n"));
    }
    for line in lines.iter().skip(left_out) {
        // A carriage return would end the line for the reader.
        text.push_str(&format!("data: {}\n", line.replace('\r', "\\r")));
    }
    text.push('\n');
    text
}

/// A file that others append to, rename and shorten.
struct Followed {
    path: PathBuf,
    inode: u64,
    at: u64,
    part: Vec<u8>,
}

impl Followed {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            inode: 0,
            at: 0,
            part: Vec::new(),
        }
    }

    /// The last lines; what comes after them is for [`Self::more`].
    fn last(&mut self, most: usize) -> Vec<String> {
        if let Ok(known) = std::fs::metadata(&self.path) {
            self.inode = known.ino();
            self.at = known.len();
        }
        let text = tail(&self.path, TAIL_MAX).unwrap_or_default();
        let mut lines: Vec<String> = text.lines().rev().take(most).map(str::to_owned).collect();
        lines.reverse();
        lines
    }

    /// Whole lines that were written since.
    fn more(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let Ok(known) = std::fs::metadata(&self.path) else {
            return lines; // between renaming and the next record there is none
        };
        if known.ino() != self.inode {
            // What was written between the last look and the renaming stands in the old file; and
            // while the new one is empty, the daemon still writes there.
            let whole = self
                .set_aside()
                .is_none_or(|old| self.read(&old, &mut lines));
            if known.len() == 0 || !whole {
                return lines;
            }
            self.inode = known.ino();
            self.at = 0;
            self.part.clear();
        } else if known.len() < self.at {
            self.at = 0;
            self.part.clear();
        }
        let path = self.path.clone();
        self.read(&path, &mut lines);
        lines
    }

    /// The file that was followed, under the name that a rotation gave it; none = it is gone, or
    /// compressed already.
    fn set_aside(&self) -> Option<PathBuf> {
        let name = self.path.file_name()?.to_str()?;
        let is_it = |entry: &std::fs::DirEntry| {
            let named = entry.file_name();
            named.to_str().is_some_and(|other| other.starts_with(name))
                && entry
                    .metadata()
                    .is_ok_and(|known| known.ino() == self.inode)
        };
        let beside = std::fs::read_dir(self.path.parent()?).ok()?;
        beside.flatten().find(is_it).map(|entry| entry.path())
    }

    /// Reads on; whether it came to the end.
    fn read(&mut self, path: &Path, lines: &mut Vec<String>) -> bool {
        let mut bytes = Vec::new();
        let read =
            open_at(path, self.at).and_then(|file| file.take(READ_MAX).read_to_end(&mut bytes));
        let Ok(read) = read else { return true };
        let read = u64::try_from(read).unwrap_or(READ_MAX);
        self.at = self.at.saturating_add(read);
        for byte in bytes {
            if byte == b'\n' {
                lines.push(String::from_utf8_lossy(&self.part).into_owned());
                self.part.clear();
            } else if self.part.len() < crate::logs::line::TEXT_MAX * 2 {
                self.part.push(byte);
            }
        }
        read < READ_MAX
    }
}

fn open_at(path: &Path, at: u64) -> std::io::Result<std::fs::File> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn rotation_and_truncation_lose_nothing_that_is_written_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let write = |text: &str| {
            let mut options = std::fs::OpenOptions::new();
            let file = options.create(true).append(true).open(&path);
            file.unwrap().write_all(text.as_bytes()).unwrap();
        };
        let mut followed = Followed::new(path.clone());
        assert_eq!(followed.last(3), Vec::<String>::new());
        write("1\n2\n3\n4\n");
        assert_eq!(followed.more(), ["1", "2", "3", "4"]);
        assert_eq!(Followed::new(path.clone()).last(2), ["3", "4"]);
        write("half");
        assert_eq!(followed.more(), Vec::<String>::new());
        write(" a line\n");
        assert_eq!(followed.more(), ["half a line"]);
        std::fs::rename(&path, dir.path().join("a.log.1")).unwrap();
        assert_eq!(followed.more(), Vec::<String>::new());
        write("new\n");
        assert_eq!(followed.more(), ["new"]);
        std::fs::File::create(&path).unwrap();
        write("x\n");
        assert_eq!(followed.more(), ["x"]);
        // Written between the last look and the renaming, also while the new file is empty.
        let rename = |to: &str| std::fs::rename(&path, dir.path().join(to)).unwrap();
        write("late\n");
        rename("a.log.2");
        write("");
        assert_eq!(followed.more(), ["late"]);
        let old = std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join("a.log.2"));
        old.unwrap().write_all(b"later\n").unwrap();
        assert_eq!(followed.more(), ["later"]);
        write("y\n");
        assert_eq!(followed.more(), ["y"]);
        write("last\n");
        rename("a.log.3");
        write("z\n");
        assert_eq!(followed.more(), ["last", "z"]);
        // Compressed at once: what is there is told.
        rename("a.log.4");
        write("gone on\n");
        std::fs::remove_file(dir.path().join("a.log.4")).unwrap();
        assert_eq!(followed.more(), ["gone on"]);
    }

    #[test]
    fn a_storm_is_counted() {
        let lines: Vec<String> = (0..60).map(|n| n.to_string()).collect();
        let text = frame(&lines);
        assert!(
            text.starts_with("event: lines\ndata: … 10 more\ndata: 10\n"),
            "{text}"
        );
        assert!(text.ends_with("data: 59\n\n"));
        assert_eq!(frame(&["a\rb".to_owned()]), "event: lines\ndata: a\\rb\n\n");
    }
}
