//! `exec` over telnet: the lines of a step in one session, which the attempt keeps to its end,
//! so that `configure terminal` holds for the lines after it. Each answer is judged by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::exec::Told;
use super::step::{Exec, Step};
use super::walk::{Halt, Walk};
use crate::attempt::{Failure, FailureClass};
use crate::driver::Row;
use crate::driver::dialogue::{Manners, not_understood};
use crate::driver::telnet::{Command, Leased, NOT_UNDERSTOOD, Telnet};

/// Lines of one answer that go to the log; the whole answer is at hand for later steps.
const LOGGED_LINES: usize = 32;
/// Bytes of all answers of a step that are kept for later steps.
const KEPT_MAX: usize = 1024 * 1024;

/// A session in the hands of an attempt, and where it belongs.
pub(super) struct Held {
    home: Arc<Telnet>,
    leased: Leased,
}

impl Held {
    /// Back to the others; a remark if it cannot be used again.
    pub(super) fn give_back(self) -> Option<&'static str> {
        self.home.give_back(self.leased)
    }
}

/// Runs the rendered `lines`, and `abort` if a later one than the first failed.
pub(super) async fn telnet(
    walk: &mut Walk<'_>,
    step: &Step,
    exec: &Exec,
    lines: Vec<String>,
    abort: Vec<String>,
) -> Result<Told, Halt> {
    let mut told = Told::default();
    note_lines(walk, &lines, &exec.expect);
    if walk.sessions().is_none() {
        return Ok(told);
    }
    lease(walk).await?;
    for (n, line) in lines.iter().enumerate() {
        let (code, text, own) = match say(walk, line, &exec.expect).await {
            Ok(text) => {
                let own = not_understood(&text).map(|said| Failure {
                    code: NOT_UNDERSTOOD,
                    ..Failure::permanent(format!("{line:?} was not understood: {}", said.trim()))
                });
                (own.as_ref().map_or(0, |f| f.code), text, own)
            }
            Err(failure) => (failure.code, failure.text.clone(), Some(failure)),
        };
        told.rows.push(row(line, code, &text));
        if told.text.len() + text.len() <= KEPT_MAX {
            told.add(&text);
        }
        let failure = walk.weigh(step, code, &text, own);
        if told.failure.is_none() {
            told.code = code;
            told.failure = failure.clone();
        }
        // Without its session the rest has no meaning, whatever the step says.
        let lost = walk.telnet.is_none();
        if lost || (failure.is_some() && !step.go_on) {
            if n > 0 && !lost && !abort.is_empty() {
                note_lines(walk, &abort, &[]);
                for line in &abort {
                    if say(walk, line, &[]).await.is_err() {
                        break;
                    }
                }
            }
            if lost && n + 1 < lines.len() && told.failure.is_none() {
                told.failure = Some(Failure::permanent(format!(
                    "the session ended after {line:?}, before the lines that follow"
                )));
            }
            break;
        }
    }
    Ok(told)
}

/// The session of this attempt: at the first line a place is waited for.
async fn lease(walk: &mut Walk<'_>) -> Result<(), Halt> {
    if walk.telnet.is_some() {
        return Ok(());
    }
    let manners = Manners::of(|name| walk.setting(name)).map_err(Failure::setting)?;
    let (Some(sessions), left) = (walk.sessions(), walk.left()?) else {
        return Ok(());
    };
    let job = walk.scope.job();
    let home = sessions.telnet(&job.nas, &job.secret, manners)?;
    let leased = match home.lease(&walk.waits, left).await {
        Ok(leased) => leased,
        Err(failure) => {
            walk.note(failure.to_string());
            return Err(failure.into());
        }
    };
    walk.heard_from(leased.is_new);
    if leased.is_new
        && let Some(said) = leased.setup_said()
    {
        let said = format!("a line of setup was not understood: {said}");
        walk.note(said);
    }
    walk.telnet = Some(Held { home, leased });
    Ok(())
}

/// One line and its answer. After a failure that leaves the session in an unknown state it is
/// gone.
async fn say(
    walk: &mut Walk<'_>,
    line: &str,
    expect: &[fancy_regex::Regex],
) -> Result<String, Failure> {
    let left = walk.way().await?.map_or(Duration::ZERO, |(_, left)| left);
    let Some(mut held) = walk.telnet.take() else {
        return Err(Failure::transport("there is no session"));
    };
    match held.leased.run(line, expect, left).await {
        Ok(answer) => {
            if !answer.closed {
                walk.telnet = Some(held);
            }
            note(walk, &answer.text);
            Ok(answer.text)
        }
        Err(failure) => {
            if failure.class == FailureClass::Permanent {
                walk.telnet = Some(held);
            }
            walk.note(failure.to_string());
            Err(failure)
        }
    }
}

/// All lines as one command that a person can repeat.
fn note_lines(walk: &mut Walk<'_>, lines: &[String], expect: &[fancy_regex::Regex]) {
    let command = Command {
        lines: lines.to_vec(),
        expect: expect.iter().map(|like| like.as_str().to_owned()).collect(),
    };
    let shown = command.pasteable(walk.scope.job().nas.id);
    walk.note_command(shown);
}

fn note(walk: &mut Walk<'_>, text: &str) {
    let mut lines = text.lines();
    for line in lines.by_ref().take(LOGGED_LINES) {
        walk.note(line);
    }
    let more = lines.count();
    if more > 0 {
        walk.note(format!("… {more} more lines"));
    } else if text.is_empty() {
        walk.note("done");
    }
}

fn row(line: &str, code: i32, text: &str) -> Row {
    BTreeMap::from([
        ("line".to_owned(), line.to_owned()),
        ("code".to_owned(), code.to_string()),
        ("out".to_owned(), text.to_owned()),
    ])
}
