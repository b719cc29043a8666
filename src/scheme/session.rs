//! Operators' bash: a session scheme (`bin/session`, one function per cmd) or an old-style
//! `script_name`. Each run is one shim process under the title of its fork; this file starts
//! it, hands it the order, and turns what it tells into a transcript and a report.

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::watch;

use super::launch::Kind;
use super::native::beside::Beside;
use super::ride::{Line, Ride, Rides};
use super::shim::{End, GOES, MARK, Order, WAITS};
use super::{Execute, ExitPolicy, Identity, environ, reap};
use crate::attempt::{
    ANSWER_MAX, Failure, FailureClass, Job, LineKind, Report, Scope, Transcript, Verdict, WAIT_MAX,
};
use crate::clock;
use crate::event::{Class, Cmd, is_name};
use crate::nas::Mode;
use crate::shell::quote;

/// This binary itself: also when the file on disk has been replaced by an update, so that
/// daemon and shim always speak the same words.
const SELF: &str = "/proc/self/exe";
/// SIGKILL follows SIGTERM: everything is gone within 5 s of the deadline.
pub const KILL_AFTER: Duration = Duration::from_millis(4_500);
/// The daemon's own patience beyond the shim's deadline; only a stopped shim needs it.
const BACKSTOP: Duration = Duration::from_secs(15);
/// Output kept per stream and run, bytes; the rest is counted.
const OUTPUT_MAX: usize = 256 * 1024;
/// Largest frame of a shim, bytes: a piece of a line, or a report with its reason.
const FRAME_MAX: u64 = 128 * 1024;
/// Functions of a session that are taken as commands; more is not a scheme.
const OWN_MAX: usize = 500;
/// Longest address in a process title.
const TITLE_IP_MAX: usize = 64;
/// In the environment of a script that runs in observe mode: our helpers print and send nothing.
pub const OBSERVE: &str = "NED_OBSERVE";
/// Hooks of the original, not commands.
const HOOKS: [&str; 2] = ["user_event_before", "user_event_after"];

/// Runs scripts of one directory, or one script.
pub struct SessionScheme {
    kind: Kind,
    dir: PathBuf,
    file: PathBuf,
    shim: PathBuf,
    kill_after: Duration,
    identity: Identity,
    beside: Beside,
    own: BTreeSet<Cmd>,
    rides: Option<Arc<Rides>>,
}

impl fmt::Debug for SessionScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionScheme")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl SessionScheme {
    /// The scheme in `dir` (absolute), which holds `bin/session`; `hash` is that of its files.
    pub fn session(dir: &Path, hash: String, beside: Beside) -> Self {
        let file = PathBuf::from("bin/session");
        let text = std::fs::read(dir.join(&file)).unwrap_or_default();
        Self {
            kind: Kind::Session,
            own: functions(&String::from_utf8_lossy(&text)),
            file,
            beside,
            identity: Identity {
                kind: "session",
                oss_pathname: Some(dir.to_owned()),
                script_name: None,
                hash,
            },
            ..Self::empty(dir)
        }
    }

    /// The old-style script at `path` (absolute); `oss` is the scheme directory of its NAS.
    pub fn script(path: &Path, oss: Option<PathBuf>, hash: String) -> Self {
        let dir = path.parent().unwrap_or(Path::new("/"));
        Self {
            file: path.file_name().map(PathBuf::from).unwrap_or_default(),
            identity: Identity {
                kind: "script",
                oss_pathname: oss,
                script_name: Some(path.to_owned()),
                hash,
            },
            ..Self::empty(dir)
        }
    }

    fn empty(dir: &Path) -> Self {
        Self {
            kind: Kind::Script,
            dir: dir.to_owned(),
            file: PathBuf::new(),
            shim: PathBuf::from(SELF),
            kill_after: KILL_AFTER,
            identity: Identity::default(),
            beside: Beside::default(),
            own: BTreeSet::new(),
            rides: None,
        }
    }

    /// Helper commands inside the script use the daemon's sessions.
    #[must_use]
    pub fn riding(mut self, rides: Option<Arc<Rides>>) -> Self {
        self.rides = rides;
        self
    }

    /// Another binary as shim, and another time between SIGTERM and SIGKILL; for callers that
    /// are not `nas_event_daemon` themselves (tests).
    #[must_use]
    pub fn with_shim(mut self, shim: PathBuf, kill_after: Duration) -> Self {
        self.shim = shim;
        self.kill_after = kill_after;
        self
    }

    /// The command in a form that can be pasted: same directory, same variables, no secret.
    fn pasteable(&self, job: &Job, assignments: &str) -> String {
        let dir = quote(&self.dir.to_string_lossy());
        let file = self.file.to_string_lossy();
        let run = match self.kind {
            Kind::Session => format!("bash -c {}", quote(&format!(". {file}; {}", job.cmd))),
            Kind::Script => format!("{} {}", quote(&format!("./{file}")), job.cmd),
        };
        format!("cd {dir} && {assignments} {run}")
    }

    async fn attempt(&self, job: &Job, transcript: &mut Transcript, report: &mut Report) {
        let token = match token() {
            Ok(token) => token,
            Err(failure) => {
                report.certain = true;
                report.verdict = Verdict::Failed(failure);
                return;
            }
        };
        let oss = self.identity.oss_pathname.as_deref();
        let oss = oss.map(Path::to_string_lossy).unwrap_or_default();
        let mut env = match environ::environ(job, &oss, &token) {
            Ok(env) => env,
            Err(failure) => {
                report.verdict = Verdict::Failed(failure);
                return;
            }
        };
        transcript.command(self.pasteable(job, &environ::assignments(&env)));
        transcript.flush();
        let observed = job.nas.mode == Mode::Observe;
        if observed && !self.beside.observe {
            report.verdict = Verdict::Observed;
            return;
        }
        if observed {
            env.insert(OBSERVE.to_owned(), "1".to_owned());
        }
        let mut ride = self.rides.as_ref().map(|rides| {
            let path = format!("{}:{}", rides.bin().display(), environ::PATH);
            env.insert("PATH".to_owned(), path);
            let scheme = self.identity.oss_pathname.as_deref();
            rides.begin(&token, job, observed, scheme)
        });
        let order = Order {
            kind: self.kind,
            dir: self.dir.clone(),
            file: self.file.clone(),
            cmd: job.cmd.to_string(),
            env,
            deadline_ms: ms(job.deadline),
            waits_max_ms: ms(WAIT_MAX),
            kill_after_ms: ms(self.kill_after),
            output_max: OUTPUT_MAX,
        };
        let mut answer = (job.class == Class::Interactive).then(String::new);
        report.verdict = match self
            .supervise(job, &order, (&token, &mut ride), transcript, &mut answer)
            .await
        {
            Ok(end) => self.judge(job, &end, transcript),
            Err(failure) => Verdict::Failed(failure),
        };
        if observed {
            let how = match &report.verdict {
                Verdict::Done | Verdict::Observed => None,
                Verdict::NotImplemented => Some(format!("there is no {}", job.cmd)),
                Verdict::Exit(code) => Some(format!("the script ended with code {code}")),
                Verdict::Failed(failure) => Some(failure.text.clone()),
            };
            if let Some(how) = how {
                transcript.answer(format!(
                    "note: {how}; in observe mode it is not tried again"
                ));
            }
            report.verdict = Verdict::Observed;
        }
        report.answer = answer.map(|text| transcript.redacted(text));
    }

    /// Starts the shim and listens to it until its report. Dropping the future closes the
    /// shim's life line, at which it ends the script and everything below it.
    async fn supervise(
        &self,
        job: &Job,
        order: &Order,
        (token, ride): (&str, &mut Option<Ride>),
        transcript: &mut Transcript,
        answer: &mut Option<String>,
    ) -> Result<End, Failure> {
        let mut text = serde_json::to_vec(order)
            .map_err(|_| Failure::permanent("a path of the scheme is not UTF-8; rename it"))?;
        text.push(b'\n');
        let mut child = self.start(job).map_err(|e| {
            let text = format!(
                "cannot start a process for the script: {e}; look at memory and process limits \
                 of the daemon"
            );
            Failure::transport(text)
        })?;
        let _counted = Counted::new();
        let patience = job.deadline + self.kill_after + BACKSTOP;
        let waits = ride.as_ref().map(|ride| Arc::clone(&ride.waits));
        let (life_line, stdout) = (child.stdin.take(), child.stdout.take());
        let talk = async {
            let (Some(mut life_line), Some(stdout)) = (life_line, stdout) else {
                return None;
            };
            // a shim that is gone already is found by the missing report
            let _ = life_line.write_all(&text).await;
            let turns = waits.as_ref().map(|waits| waits.watch());
            tokio::select! {
                end = listen(stdout, ride, transcript, answer) => end,
                () = tell_waits(&mut life_line, turns) => None,
            }
        };
        let began = clock::tick_ms();
        let late = async {
            loop {
                let waited = waits.as_ref().map_or(Duration::ZERO, |waits| waits.total());
                let gone = Duration::from_millis(clock::tick_ms().saturating_sub(began));
                match (patience + waited).checked_sub(gone) {
                    Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                    _ => return,
                }
            }
        };
        let end = tokio::select! {
            end = talk => end,
            () = late => None,
        };
        if end.is_none() {
            let _ = child.start_kill();
        }
        let status = child.wait().await;
        if let Some(end) = end {
            return Ok(end);
        }
        let mark = token.to_owned();
        let ended = tokio::task::spawn_blocking(move || reap::end_marked(&mark)).await;
        let ended = ended.unwrap_or_default();
        if status
            .as_ref()
            .is_ok_and(|s| s.signal() == Some(reap::SIGTERM))
        {
            // Terminated before it listened to signals: the same as a terminated script.
            return Ok(End {
                signal: Some(reap::SIGTERM),
                left: ended,
                ..End::default()
            });
        }
        let how = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        Err(Failure {
            scope: Scope::Event,
            class: FailureClass::Unknown,
            code: Failure::CODE_TIMEOUT,
            text: format!(
                "the process that watched the script ended without a report ({how}); {ended} \
                 processes of the script were killed, it may have been applied"
            ),
            parks: false,
        })
    }

    fn start(&self, job: &Job) -> std::io::Result<Child> {
        #[expect(
            clippy::disallowed_methods,
            reason = "programs are started by scheme only"
        )]
        let mut command = tokio::process::Command::new(&self.shim);
        command
            .arg0(title(job))
            .env_clear()
            .env(MARK, "1")
            // A shim touches little memory: pages of 2 MiB cost it more time to clear than they save.
            .env("MIMALLOC_ALLOW_THP", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    }

    fn judge(&self, job: &Job, end: &End, transcript: &mut Transcript) -> Verdict {
        for (stream, lost) in [("stdout", end.lost_out), ("stderr", end.lost_err)] {
            if lost > 0 {
                transcript.answer(format!("… {lost} more bytes of {stream} not kept"));
            }
        }
        if end.left > 0 {
            transcript.answer(format!(
                "note: {} processes left behind were ended",
                end.left
            ));
        }
        if let Some(reason) = &end.refused {
            return Verdict::Failed(Failure::permanent(format!(
                "{reason} (in {})",
                self.dir.display()
            )));
        }
        if end.timed_out {
            let limit = job.deadline.as_secs_f64();
            return Verdict::Failed(Failure::timeout(format!(
                "the script did not end within {limit} s and was killed; it may have been applied"
            )));
        }
        match (end.absent, end.code, end.signal) {
            (Some(0), ..) => Verdict::NotImplemented,
            (Some(code), ..) => Verdict::Failed(Failure::permanent(format!(
                "{} ended with code {code} while it was sourced and did not define {}; run: \
                 bash -n {}",
                self.file.display(),
                job.cmd,
                quote(&self.dir.join(&self.file).to_string_lossy())
            ))),
            (None, Some(0), _) => Verdict::Done,
            (None, Some(code), _) => Verdict::Exit(code),
            (None, None, signal) => Verdict::Exit(128 + signal.unwrap_or(9)),
        }
    }
}

#[async_trait]
impl Execute for SessionScheme {
    async fn run(&self, job: &Job, transcript: &mut Transcript) -> Report {
        let mut report = Report::of(Verdict::NotImplemented);
        report.scheme_hash.clone_from(&self.identity.hash);
        self.attempt(job, transcript, &mut report).await;
        report
    }

    fn policy(&self) -> &ExitPolicy {
        &self.beside.policy
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn has(&self, _cmd: &Cmd) -> bool {
        true
    }

    fn own_cmds(&self) -> BTreeSet<Cmd> {
        self.own.clone()
    }
}

/// Counts a process that watches a script for as long as it lives.
struct Counted(metrics::Gauge);

impl Counted {
    fn new() -> Self {
        let count = metrics::gauge!("nas_event_daemon_child_processes", "kind" => "script");
        count.increment(1.0);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Tells the shim when the script waits for its turn on the NAS; never ends.
async fn tell_waits(life_line: &mut ChildStdin, turns: Option<watch::Receiver<bool>>) {
    let Some(mut turns) = turns else {
        return std::future::pending().await;
    };
    while turns.changed().await.is_ok() {
        let word = if *turns.borrow_and_update() {
            WAITS
        } else {
            GOES
        };
        // a shim that is gone is found by its missing report
        let _ = life_line.write_all(&[word]).await;
    }
    std::future::pending().await
}

/// Reads frames until the report; none if the shim went without one.
async fn listen(
    stdout: ChildStdout,
    ride: &mut Option<Ride>,
    transcript: &mut Transcript,
    answer: &mut Option<String>,
) -> Option<End> {
    let mut frames = BufReader::with_capacity(8 * 1024, stdout);
    let mut frame = Vec::new();
    loop {
        frame.clear();
        loop {
            // A frame that is cut by a line of the ride stays in `frame` and is read on.
            let room = FRAME_MAX.saturating_sub(frame.len() as u64);
            let mut bounded = (&mut frames).take(room);
            tokio::select! {
                // What was sent comes before what the script says of it.
                biased;
                line = ridden(ride) => {
                    note(transcript, line);
                    transcript.flush();
                }
                read = bounded.read_until(b'\n', &mut frame) => {
                    read.ok()?;
                    break;
                }
            }
        }
        while let Some(line) = ride.as_mut().and_then(|ride| ride.lines.try_recv().ok()) {
            note(transcript, line);
        }
        if frame.pop() != Some(b'\n') {
            return None;
        }
        let (kind, line) = frame.split_first()?;
        if *kind == b'=' {
            return serde_json::from_slice(line).ok();
        }
        let line = String::from_utf8_lossy(line);
        if let (b'o', Some(answer)) = (kind, answer.as_mut()) {
            append(answer, &line);
        }
        transcript.answer(line);
        if frames.buffer().is_empty() {
            transcript.flush();
        }
    }
}

/// The next line that a helper of the script sent or got; none ever without a ride.
async fn ridden(ride: &mut Option<Ride>) -> Line {
    if let Some(ride) = ride
        && let Some(line) = ride.lines.recv().await
    {
        return line;
    }
    std::future::pending().await
}

fn note(transcript: &mut Transcript, (kind, text): Line) {
    match kind {
        LineKind::Command => transcript.command(text),
        LineKind::Answer => transcript.answer(text),
    }
}

/// Adds a line to an answer that holds at most [`ANSWER_MAX`] bytes.
fn append(answer: &mut String, line: &str) {
    let between = usize::from(!answer.is_empty());
    let room = ANSWER_MAX.saturating_sub(answer.len() + between);
    let end = line.floor_char_boundary(room);
    if room > 0 {
        if between > 0 {
            answer.push('\n');
        }
        answer.push_str(line.get(..end).unwrap_or_default());
    }
}

/// What `ps` shows of a running script.
fn title(job: &Job) -> String {
    let ip: String = job
        .nas
        .ip
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '_' })
        .take(TITLE_IP_MAX)
        .collect();
    let user = job.user.map_or_else(|| "-".to_owned(), |u| u.to_string());
    format!(
        "nas_event_daemon: nas={} ip={ip} user={user} cmd={} try={}",
        job.nas.id, job.cmd, job.try_count
    )
}

/// 128 random bits in hex: the right to use this NAS's sessions, dead with the attempt.
fn token() -> Result<String, Failure> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::transport(format!("no random numbers from the system: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Names of functions that a bash text defines at the start of a line, hooks left out.
fn functions(text: &str) -> BTreeSet<Cmd> {
    text.lines()
        .filter_map(|line| {
            let line = line.strip_prefix('\u{feff}').unwrap_or(line).trim_start();
            let (name, keyword) = match line.strip_prefix("function ") {
                Some(rest) => (rest.trim_start(), true),
                None => (line, false),
            };
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let (name, rest) = name.split_at(end.unwrap_or(name.len()));
            let rest = rest.trim_start();
            let opens = rest.strip_prefix('(').map(str::trim_start);
            let defined = opens.is_some_and(|r| r.starts_with(')'))
                || (keyword && (rest.is_empty() || rest.starts_with('{')));
            (defined && is_name(name) && !HOOKS.contains(&name)).then(|| Cmd::parse(name).ok())?
        })
        .take(OWN_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_a_session_are_its_commands() {
        let text = "\u{feff}user_add() {\n:;}\nfunction my_own {\n}\nfunction other () {\r\n\
                    user_event_before() { :; }\nLog() { :; }\n# no() {\ncase x in x) :;; esac\n\
                    spaced ( ) {\ncall it\n";
        let names: Vec<_> = functions(text).iter().map(Cmd::to_string).collect();
        assert_eq!(names, ["my_own", "other", "spaced", "user_add"]);
    }

    #[test]
    fn answers_are_cut_at_a_character() {
        let mut answer = String::new();
        append(&mut answer, "first");
        append(&mut answer, "");
        append(&mut answer, &"é".repeat(ANSWER_MAX));
        append(&mut answer, "more");
        assert!(answer.starts_with("first\n\né"));
        assert!(answer.len() <= ANSWER_MAX && answer.len() > ANSWER_MAX - 2);
    }
}
