//! What the tests of this folder share: a scheme in a temporary directory, a job for it, and
//! looks at the process table.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nas_event_daemon::attempt::{Job, LineKind, Report, Transcript};
use nas_event_daemon::clock::tick_ms;
use nas_event_daemon::event::{Cmd, EventId, Params, UserId};
use nas_event_daemon::nas::{Nas, NasId, NasSecret};
use nas_event_daemon::scheme::Execute;
use nas_event_daemon::scheme::native::beside::Beside;
use nas_event_daemon::scheme::session::SessionScheme;
use serde_json::{Value, json};

/// A condition that has not come by then never will, on a busy machine either.
const PATIENCE_MS: u64 = 90_000;

pub(crate) fn shim() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_nas_event_daemon"))
}

pub(crate) fn nas() -> Nas {
    Nas::new(NasId(1116), "Test_NAS", "10.90.185.2")
}

/// Unique per call: one job's processes are told from all others by it.
pub(crate) fn mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}x{next}x", std::process::id())
}

pub(crate) fn job(cmd: &str) -> Job {
    let cmd = Cmd::parse(cmd).unwrap();
    let params = json!({"user_id": 1424, "ip": "10.88.0.15", "test_mark": mark()});
    Job {
        event: EventId(77),
        epoch: 1,
        try_count: 1,
        possible_duplicate: false,
        class: cmd.class(),
        cmd,
        user: Some(UserId(1424)),
        abonent: Some(1375),
        usluga: None,
        params: Params(params.as_object().unwrap().clone()),
        nas: Arc::new(nas()),
        secret: Arc::new(NasSecret {
            login: "admin".into(),
            password: "s3cret-pass".into(),
            coa_secret: "c0a-secret".into(),
            ..NasSecret::default()
        }),
        deadline: Duration::from_millis(PATIENCE_MS),
    }
}

pub(crate) fn with_param(mut job: Job, name: &str, value: impl Into<Value>) -> Job {
    job.params.0.insert(name.to_owned(), value.into());
    job
}

/// A scheme directory that vanishes with the test.
pub(crate) struct Scheme {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) runs: SessionScheme,
}

pub(crate) fn session(text: impl AsRef<[u8]>) -> Scheme {
    session_beside(text, "")
}

/// With a `scheme.toml` beside it.
pub(crate) fn session_beside(text: impl AsRef<[u8]>, beside: &str) -> Scheme {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    std::fs::write(dir.path().join("bin/session"), text).unwrap();
    std::fs::write(dir.path().join("scheme.toml"), beside).unwrap();
    let beside = Beside::load(dir.path()).unwrap();
    let runs = SessionScheme::session(dir.path(), "abc".into(), beside)
        .with_shim(shim(), Duration::from_millis(300));
    Scheme { dir, runs }
}

pub(crate) fn script(text: impl AsRef<[u8]>) -> Scheme {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("old script.sh");
    std::fs::write(&file, text).unwrap();
    let runs = SessionScheme::script(&file, None, "abc".into())
        .with_shim(shim(), Duration::from_millis(300));
    Scheme { dir, runs }
}

/// What a run told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) report: Report,
    pub(crate) command: String,
    pub(crate) lines: Vec<String>,
}

impl Scheme {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn run(&self, job: &Job) -> Told {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let mut transcript = Transcript::new(
            job.secret.texts(),
            Box::new(move |lines| sink.lock().unwrap().extend(lines)),
        );
        let report = self.runs.run(job, &mut transcript).await;
        let mut lines = std::mem::take(&mut *seen.lock().unwrap());
        lines.extend(transcript.into_rest());
        let of = |kind| {
            let kept = lines.iter().filter(move |line| line.kind == kind);
            kept.map(|line| line.text.clone()).collect::<Vec<_>>()
        };
        Told {
            report,
            command: of(LineKind::Command).join("\n"),
            lines: of(LineKind::Answer),
        }
    }
}

/// Waits for a condition; `what` is said if it does not come.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = tick_ms() + PATIENCE_MS;
    while !condition() {
        assert!(tick_ms() < end, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Living processes that carry the mark of this job in their environment.
pub(crate) fn marked(job: &Job) -> BTreeSet<i32> {
    let mark = format!("test_mark={}", job.params.text("test_mark"));
    pids()
        .filter(|pid| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|b| *b == 0).any(|e| e == mark.as_bytes())
        })
        .collect()
}

pub(crate) fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
}

pub(crate) fn argv(pid: i32) -> String {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .replace('\0', " ")
        .trim_end()
        .to_owned()
}

pub(crate) fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// A program that stands beside the daemon: an operator's shell.
#[expect(
    clippy::disallowed_methods,
    reason = "the test is the operator who starts it"
)]
pub(crate) fn bash(text: &str) -> std::process::Command {
    let mut command = std::process::Command::new("bash");
    command.arg("-c").arg(text);
    command
}

pub(crate) fn exists(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|text| text.ends_with(b"\n"))
}
