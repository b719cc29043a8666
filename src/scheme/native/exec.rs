//! `exec` over SSH, as commands or as a dialogue: the lines of a step one after the other, each judged by itself, so that an
//! answer that is fine for one line (`No such file or directory`) never excuses another.

use std::collections::BTreeMap;
use std::time::Duration;

use minijinja::value::Value;

use super::saved::Saved;
use super::step::Step;
use super::walk::{Halt, Walk};
use crate::attempt::{Failure, FailureClass, Scope};
use crate::driver::Row;
use crate::driver::dialogue::not_understood;
use crate::driver::ssh::{Command, Output, Ssh};

/// Lines of one answer that go to the log; the whole answer is at hand for later steps.
const LOGGED_LINES: usize = 32;
/// Longest quotation of an answer in an error, characters.
const QUOTED_MAX: usize = 300;

/// What a step of several lines came to: already judged, line by line.
#[derive(Default)]
pub(super) struct Told {
    /// The first failure.
    pub(super) failure: Option<Failure>,
    /// Its code, else that of the first line.
    pub(super) code: i32,
    /// All answers.
    pub(super) text: String,
    /// One row per line that ran.
    pub(super) rows: Vec<Row>,
}

impl Told {
    /// Adds an answer.
    pub(super) fn add(&mut self, text: &str) {
        if !self.text.is_empty() && !text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(text);
    }

    /// Keeps what the step came to, and stops at its failure.
    pub(super) fn conclude(self, step: &Step) -> Result<Option<Value>, Halt> {
        let class = self.failure.as_ref().map_or("ok", |f| f.class.as_str());
        let (ok, keep) = (self.failure.is_none(), step.save.is_some());
        let value = keep.then(|| Saved::keep(ok, class, self.code, self.text, self.rows));
        match self.failure {
            Some(failure) if !step.go_on => Err(failure.into()),
            _ => Ok(value),
        }
    }
}

/// Runs the rendered `lines`, and `abort` if a later one than the first failed.
pub(super) async fn ssh(
    walk: &mut Walk<'_>,
    step: &Step,
    lines: Vec<Command>,
    abort: Vec<String>,
) -> Result<Told, Halt> {
    let mut told = Told::default();
    let Some(sessions) = walk.sessions() else {
        return Ok(told);
    };
    let job = walk.scope.job();
    let ssh = sessions.ssh(&job.nas, &job.secret)?;
    for (n, command) in lines.iter().enumerate() {
        if n > 0 {
            walk.note_line(&command.line);
        }
        let result = match walk.way().await? {
            Some((_, left)) => ssh.exec_in_turn(command, &walk.waits, left).await,
            None => return Ok(told),
        };
        let (code, text, own) = match result {
            Ok(output) => {
                walk.heard_from(output.new_session);
                note(walk, &output);
                let text = output.text();
                let own = verdict(walk, &output);
                told.rows.push(row(command, &output));
                told.add(&text);
                (output.status, text, own)
            }
            Err(failure) => {
                walk.note(failure.to_string());
                told.add(&failure.text);
                (failure.code, failure.text.clone(), Some(failure))
            }
        };
        let failure = walk.weigh(step, code, &text, own);
        if told.failure.is_none() {
            told.code = code;
            told.failure = failure.clone();
        }
        if let Some(failure) = failure
            && !step.go_on
        {
            // Who lost the connection cannot be told anything more.
            if n > 0 && failure.class != FailureClass::Transport {
                undo(walk, &ssh, abort).await;
            }
            break;
        }
    }
    Ok(told)
}

/// The same as a dialogue with the device's command line: the lines share one session, with its
/// modes; what the device does not understand is final.
pub(super) async fn dialogue(
    walk: &mut Walk<'_>,
    step: &Step,
    lines: Vec<String>,
    expect: &[fancy_regex::Regex],
    abort: Vec<String>,
) -> Result<Told, Halt> {
    let mut told = Told::default();
    let (Some(sessions), left) = (walk.sessions(), walk.left()?) else {
        return Ok(told);
    };
    let job = walk.scope.job();
    let ssh = sessions.ssh(&job.nas, &job.secret)?;
    let mut leased = match ssh.lease(&walk.waits, left).await {
        Ok(leased) => leased,
        Err(failure) => {
            walk.note(failure.to_string());
            return Err(failure.into());
        }
    };
    walk.heard_from(leased.is_new);
    if let Some(said) = leased.setup_said() {
        walk.note(format!("a line of setup was not understood: {said}"));
    }
    let mut usable = true;
    for (n, line) in lines.iter().enumerate() {
        if n > 0 {
            walk.note_line(line);
        }
        let result = match walk.way().await? {
            Some((_, left)) => leased.run(line, expect, left).await,
            None => return Ok(told),
        };
        let (code, text, own) = match result {
            Ok(answer) => {
                note_text(walk, &answer.text);
                let own = not_understood(&answer.text).map(Failure::permanent);
                let code = own.as_ref().map_or(0, |f| f.code);
                told.rows.push(BTreeMap::from([
                    ("line".to_owned(), line.clone()),
                    ("code".to_owned(), code.to_string()),
                    ("out".to_owned(), answer.text.clone()),
                    ("err".to_owned(), String::new()),
                ]));
                (code, answer.text, own)
            }
            Err(failure) => {
                walk.note(failure.to_string());
                usable = failure.class == FailureClass::Permanent;
                (failure.code, failure.text.clone(), Some(failure))
            }
        };
        told.add(&text);
        let failure = walk.weigh(step, code, &text, own);
        let failed = failure.is_some();
        if told.failure.is_none() {
            told.code = code;
            told.failure = failure;
        }
        if !usable {
            return Ok(told);
        }
        if failed && !step.go_on {
            if n > 0 {
                for line in &abort {
                    walk.note_line(line);
                    let left = walk.way().await?.map_or(Duration::ZERO, |(_, left)| left);
                    match leased.run(line, expect, left).await {
                        Ok(answer) => note_text(walk, &answer.text),
                        Err(failure) => {
                            walk.note(failure.to_string());
                            return Ok(told);
                        }
                    }
                }
            }
            break;
        }
    }
    if let Some(why) = ssh.give_back(leased) {
        walk.note(why);
    }
    Ok(told)
}

fn note_text(walk: &mut Walk<'_>, text: &str) {
    let mut lines = text.lines();
    for line in lines.by_ref().take(LOGGED_LINES) {
        walk.note(line.to_owned());
    }
    let more = lines.count();
    if more > 0 {
        walk.note(format!("… {more} more lines"));
    } else if text.trim().is_empty() {
        walk.note("done");
    }
}

/// `abort`: sent in order, whatever comes back.
async fn undo(walk: &mut Walk<'_>, ssh: &Ssh, lines: Vec<String>) {
    for line in lines {
        walk.note_line(&line);
        let left = match walk.way().await {
            Ok(Some((_, left))) => left,
            Ok(None) | Err(_) => Duration::ZERO,
        };
        let command = Command { line, stdin: None };
        match ssh.exec_in_turn(&command, &walk.waits, left).await {
            Ok(output) => note(walk, &output),
            Err(failure) => walk.note(failure.to_string()),
        }
    }
}

/// What an exit status means by itself: as the scheme's `exit` map says, like a script's.
fn verdict(walk: &Walk<'_>, output: &Output) -> Option<Failure> {
    let policy = walk.policy();
    let status = output.status;
    if status == 0 || policy.done.contains(&status) {
        return None;
    }
    let said = if output.stderr.trim().is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    let said: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let said: String = said.join(" | ").chars().take(QUOTED_MAX).collect();
    let class = match status {
        code if policy.defer.contains(&code) => FailureClass::Refused,
        // Died by a signal: nobody knows how far it came.
        129..=192 => FailureClass::Unknown,
        _ => FailureClass::Permanent,
    };
    Some(Failure {
        scope: Scope::Event,
        class,
        code: status,
        text: format!("exit status {status}: {said}"),
        parks: false,
    })
}

fn row(command: &Command, output: &Output) -> Row {
    BTreeMap::from([
        ("line".to_owned(), command.line.clone()),
        ("code".to_owned(), output.status.to_string()),
        ("out".to_owned(), output.stdout.trim_end().to_owned()),
        ("err".to_owned(), output.stderr.trim_end().to_owned()),
    ])
}

fn note(walk: &mut Walk<'_>, output: &Output) {
    let mut silent = true;
    for (mark, text) in [("", &output.stdout), ("stderr: ", &output.stderr)] {
        let mut lines = text.lines();
        for line in lines.by_ref().take(LOGGED_LINES) {
            silent = false;
            walk.note(format!("{mark}{line}"));
        }
        let more = lines.count();
        if more > 0 {
            walk.note(format!("{mark}… {more} more lines"));
        }
    }
    if output.status != 0 {
        walk.note(format!("exit status {}", output.status));
    } else if silent {
        walk.note("done");
    }
}
