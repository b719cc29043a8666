//! What the shim process does: one script, from its order on stdin to the report on stdout.
//!
//! The daemon starts its own binary under the title of the fork. The shim has one thread and no
//! runtime: it makes a session, becomes subreaper, sets limits, starts the script in a process
//! group of its own, passes its lines on, holds the deadline, and ends everything below it. The
//! order comes over a pipe that the daemon holds open: when it closes, the daemon is gone or has
//! lost interest, and the shim ends everything too. (`PR_SET_PDEATHSIG` would do the same for
//! the *thread* that started it, and threads of a runtime come and go.)
//!
//! While a command of the script waits for its turn on the NAS, the deadline's clock stands still.
//!
//! ```text
//! daemon ── order (one JSON line), then open as life line, w g ──► shim ──► bash …
//!        ◄── o<line> e<line> n<note> … =<End as JSON> ────────────
//! ```

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Seek as _};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ChildStderr, ChildStdout, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, getpid, setsid};
use serde::{Deserialize, Serialize};

use super::launch::{Kind, launch};
use super::reap;
use super::relay::{Outbox, Stream};
use crate::clock;

/// By this variable `main` knows that it is a shim; scripts never see it.
pub const MARK: &str = "NED_SHIM";

/// After the script has ended: how long its output is drained, and how long what it left behind
/// may take to obey SIGTERM, ms.
const LINGER_MS: u64 = 1_000;
/// Pause between two sweeps with SIGKILL, ms: a killed process needs a moment to vanish.
const SWEEP_MS: u64 = 10;
/// SIGKILL is tried for this long, ms; what then still lives hangs in the kernel.
const SWEEP_MAX_MS: u64 = 2_000;
/// Longest single wait, ms; `poll` counts in 32 bits.
const WAIT_MAX_MS: u64 = 60_000;
/// On the life line: the script waits for its turn on the NAS.
pub const WAITS: u8 = b'w';
/// On the life line: it goes on.
pub const GOES: u8 = b'g';
/// Largest order, bytes: the environment of an `execve` is smaller (`MAX_ARG_STRLEN` and a
/// quarter of the stack, execve(2)), its JSON may be six times as long.
const ORDER_MAX: u64 = 16 * 1024 * 1024;
/// Open files of a script.
const FILES_MAX: rlim_t = 1_024;
/// Largest file that a script may write, bytes: a log of its own, not the disk.
const FILE_MAX: rlim_t = 4 * 1024 * 1024 * 1024;
/// Processes of the daemon's user, all forks together: 100 NASes of 100 forks have room.
const PROCESSES_MAX: rlim_t = 32_768;

/// What to run. It holds secrets: it only ever travels over the pipe.
#[derive(Serialize, Deserialize)]
pub struct Order {
    /// Sourced or executed.
    pub kind: Kind,
    /// Working directory, absolute.
    pub dir: PathBuf,
    /// Script, relative to `dir`.
    pub file: PathBuf,
    /// Command.
    pub cmd: String,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The script must end within this time, ms.
    pub deadline_ms: u64,
    /// And may wait for its turns on the NAS for this time beside it, ms.
    pub waits_max_ms: u64,
    /// SIGKILL follows SIGTERM after this time, ms.
    pub kill_after_ms: u64,
    /// Bytes of output passed on per stream; the rest is counted.
    pub output_max: usize,
}

/// How it ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct End {
    /// Exit code of the script.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// It was still running at its deadline.
    pub timed_out: bool,
    /// The session has no such function; the code with which the file was sourced.
    pub absent: Option<i32>,
    /// Bytes of stdout that were not passed on.
    pub lost_out: u64,
    /// Bytes of stderr that were not passed on.
    pub lost_err: u64,
    /// Processes that the script left behind and that were ended.
    pub left: usize,
    /// Nothing was run, and why.
    pub refused: Option<String>,
}

/// Whether this process has been started as a shim.
pub fn is_shim() -> bool {
    std::env::var_os(MARK).is_some_and(|value| value == "1")
}

/// Runs one order; the exit code is 0 if a report could be given.
pub fn shim_main() -> i32 {
    let _ = setsid();
    let _ = prctl::set_child_subreaper(true);
    let _ = prctl::set_name(c"nas_event_fork");
    let mut end = End::default();
    let mut outbox = Outbox::default();
    let run = read_order().and_then(|order| run(&order, &mut outbox, &mut end));
    if let Err(reason) = run {
        end.refused = Some(reason);
    }
    let Ok(report) = serde_json::to_vec(&end) else {
        return 70;
    };
    outbox.push(b'=', &report);
    i32::from(!outbox.finish())
}

/// Reads up to the end of the line; the pipe stays open.
fn read_order() -> Result<Order, String> {
    let mut text = Vec::new();
    let mut stdin = std::io::stdin().lock().take(ORDER_MAX);
    let mut buffer = [0; 4 * 1024];
    while text.last() != Some(&b'\n') {
        match stdin.read(&mut buffer) {
            Ok(0) => return Err("the order ends too early".to_owned()),
            Ok(n) => text.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("the order cannot be read: {e}")),
        }
    }
    serde_json::from_slice(&text).map_err(|e| {
        // not the text of the error: it may quote a value
        format!("the order cannot be understood (column {})", e.column())
    })
}

fn limit(resource: Resource, most: rlim_t) {
    let hard = getrlimit(resource).map_or(most, |(_, hard)| hard.min(most));
    let _ = setrlimit(resource, hard, hard);
}

fn run(order: &Order, outbox: &mut Outbox, end: &mut End) -> Result<(), String> {
    std::env::set_current_dir(&order.dir).map_err(|e| {
        format!(
            "directory {} cannot be entered: {e}; put it back or correct the NAS settings",
            order.dir.display()
        )
    })?;
    let launch = launch(order.kind, &order.file, &order.cmd)?;
    if let Some(note) = &launch.note {
        outbox.push(b'n', note.as_bytes());
    }
    limit(Resource::RLIMIT_CORE, 0);
    limit(Resource::RLIMIT_NOFILE, FILES_MAX);
    limit(Resource::RLIMIT_NPROC, PROCESSES_MAX);
    limit(Resource::RLIMIT_FSIZE, FILE_MAX);
    #[expect(
        clippy::disallowed_methods,
        reason = "programs are started by scheme only"
    )]
    let mut command = std::process::Command::new(&launch.program);
    command
        .arg0(&launch.name)
        .args(&launch.args)
        .env_clear()
        .envs(&order.env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command
        .spawn()
        .map_err(|e| cannot_start(&launch.program, &e))?;
    drop(launch.copy);
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("the script has no output pipes".to_owned());
    };
    let leader = i32::try_from(child.id()).map_err(|_| "no process id".to_owned())?;
    let mut watch = Watch {
        leader: Pid::from_raw(leader),
        status: None,
        childless: false,
        out: Stream::new(b'o', out, order.output_max),
        err: Stream::new(b'e', err, order.output_max),
        deadline_at: clock::tick_ms().saturating_add(order.deadline_ms),
        waits_since: None,
        waits_left_ms: order.waits_max_ms,
        kill_at: None,
        kills_since: None,
        drain_until: None,
        stopping: false,
        gone: false,
        timed_out: false,
        left: 0,
    };
    watch.run(order.kill_after_ms, outbox)?;
    match watch.status {
        Some(WaitStatus::Exited(_, code)) => end.code = Some(code),
        Some(WaitStatus::Signaled(_, signal, _)) => end.signal = Some(signal as i32),
        // not even SIGKILL ended it
        _ => end.signal = Some(Signal::SIGKILL as i32),
    }
    end.timed_out = watch.timed_out;
    end.left = watch.left;
    end.lost_out = watch.out.lost();
    end.lost_err = watch.err.lost();
    if let Some(mut absent) = launch.absent {
        end.absent = told(&mut absent);
    }
    Ok(())
}

/// What the driver text wrote; its offset is shared with the writer, so from the start.
fn told(file: &mut std::fs::File) -> Option<i32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn cannot_start(program: &std::path::Path, e: &std::io::Error) -> String {
    let hint = match e.kind() {
        ErrorKind::ArgumentListTooLong => {
            "the variables of the event are too large for a program's environment"
        }
        ErrorKind::NotFound => "it, or the loader that it names, is not there",
        ErrorKind::PermissionDenied => "check its permissions and the mount options",
        _ => "try it by hand in the scheme's directory",
    };
    format!("{} cannot be started: {e}; {hint}", program.display())
}

/// One running script. Times are `clock::tick_ms`.
struct Watch {
    leader: Pid,
    status: Option<WaitStatus>,
    childless: bool,
    out: Stream<ChildStdout>,
    err: Stream<ChildStderr>,
    deadline_at: u64,
    /// The clock stands still since then.
    waits_since: Option<u64>,
    /// For how long it may yet.
    waits_left_ms: u64,
    /// SIGKILL for everything, and again until nothing is left.
    kill_at: Option<u64>,
    kills_since: Option<u64>,
    /// Set when the leader has ended.
    drain_until: Option<u64>,
    /// SIGTERM has been sent.
    stopping: bool,
    /// The daemon has closed its end.
    gone: bool,
    timed_out: bool,
    left: usize,
}

impl Watch {
    fn run(&mut self, kill_after_ms: u64, outbox: &mut Outbox) -> Result<(), String> {
        let failed = |e: nix::Error| format!("the script cannot be watched: {e}");
        // Blocked only now: the script would have inherited the mask. What ended in between is
        // found by the first turn, which looks before it waits.
        let mut mask = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
        ] {
            mask.add(signal);
        }
        mask.thread_block().map_err(failed)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK).map_err(failed)?;
        nonblocking(&std::io::stdout()).map_err(failed)?;
        self.out.prepare().map_err(failed)?;
        self.err.prepare().map_err(failed)?;
        loop {
            self.look_for_ended();
            self.out.pump(outbox);
            self.err.pump(outbox);
            let now = clock::tick_ms();
            if self.over(now) {
                self.out.end(outbox);
                self.err.end(outbox);
                return Ok(());
            }
            self.enforce(now, kill_after_ms);
            if !self.gone && !outbox.flush() {
                self.gone = true;
                self.stop(now, LINGER_MS);
            }
            self.wait(&signals, outbox, now).map_err(failed)?;
        }
    }

    fn look_for_ended(&mut self) {
        if self.childless {
            return;
        }
        let reaped = reap::reap(self.leader);
        self.childless = reaped.childless;
        if let Some(status) = reaped.leader {
            self.status = Some(status);
            let now = clock::tick_ms();
            self.drain_until = Some(now + LINGER_MS);
            if !self.childless {
                self.left = reap::signal_below(getpid(), Signal::SIGTERM);
                self.kill_by(now + LINGER_MS);
            }
        }
    }

    fn over(&self, now: u64) -> bool {
        let unkillable = self
            .kills_since
            .is_some_and(|since| now >= since + SWEEP_MAX_MS);
        let drained = self.out.ended() && self.err.ended();
        let enough = self.drain_until.is_some_and(|until| now >= until);
        unkillable || (self.status.is_some() && self.childless && (drained || enough))
    }

    fn enforce(&mut self, now: u64, kill_after_ms: u64) {
        if now >= self.due_at() && self.status.is_none() && !self.stopping {
            self.timed_out = true;
            self.stop(now, kill_after_ms);
        }
        if !self.childless && self.kill_at.is_some_and(|at| now >= at) {
            reap::signal_below(getpid(), Signal::SIGKILL);
            self.kills_since.get_or_insert(now);
            self.kill_at = Some(now + SWEEP_MS);
        }
    }

    /// When the script is stopped, by what is known now.
    fn due_at(&self) -> u64 {
        match self.waits_since {
            None => self.deadline_at,
            Some(_) => self.deadline_at.saturating_add(self.waits_left_ms),
        }
    }

    /// What the daemon says over the life line.
    fn heard(&mut self, word: u8, now: u64) {
        match (word, self.waits_since) {
            (WAITS, None) => self.waits_since = Some(now),
            (GOES, Some(since)) => {
                let waited = now.saturating_sub(since).min(self.waits_left_ms);
                self.waits_since = None;
                self.waits_left_ms -= waited;
                self.deadline_at = self.deadline_at.saturating_add(waited);
            }
            _ => {}
        }
    }

    /// SIGTERM to the script's group, SIGKILL to everything later.
    fn stop(&mut self, now: u64, kill_after_ms: u64) {
        if !self.stopping && self.status.is_none() {
            reap::signal_group(self.leader, Signal::SIGTERM);
        }
        self.stopping = true;
        self.kill_by(now.saturating_add(kill_after_ms));
    }

    fn kill_by(&mut self, at: u64) {
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Waits for output, an ended child, a signal, the daemon's end, or the next due time.
    fn wait(&mut self, signals: &SignalFd, outbox: &Outbox, now: u64) -> Result<(), nix::Error> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        let due = [
            (self.status.is_none() && !self.stopping).then_some(self.due_at()),
            self.kill_at.filter(|_| !self.childless),
            self.drain_until.filter(|_| self.childless),
        ];
        let timeout = due
            .into_iter()
            .flatten()
            .min()
            .map_or(PollTimeout::NONE, |at| {
                let ms = at.saturating_sub(now).min(WAIT_MAX_MS);
                PollTimeout::try_from(ms).unwrap_or(PollTimeout::ZERO)
            });
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.out.poll_fd());
        fds.extend(self.err.poll_fd());
        if !self.gone {
            if !outbox.is_empty() {
                fds.push(PollFd::new(stdout.as_fd(), PollFlags::POLLOUT));
            }
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e),
        }
        let life_line = !self.gone && fds.last().and_then(PollFd::any).unwrap_or(false);
        drop(fds);
        let mut asked = false;
        while let Ok(Some(info)) = signals.read_signal() {
            asked |= info.ssi_signo != Signal::SIGCHLD as u32;
        }
        if life_line {
            let mut words = [0; 64];
            match nix::unistd::read(&stdin, &mut words) {
                Ok(n @ 1..) => {
                    let now = clock::tick_ms();
                    for word in words.get(..n).unwrap_or_default() {
                        self.heard(*word, now);
                    }
                }
                Ok(_) | Err(_) => self.gone = true,
            }
        }
        if self.gone || asked {
            self.stop(clock::tick_ms(), LINGER_MS);
        }
        Ok(())
    }
}

/// Makes reads and writes of a pipe end return at once.
pub(super) fn nonblocking(fd: &impl AsFd) -> Result<(), nix::Error> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}
