//! The dialogue with a device's command line, as a person has it at a terminal: login in
//! pieces, `enable`, prompts in every mode, echo, paging, questions. Without input and output
//! of its own: bytes and the time go in, bytes to send and steps come out. Telnet and ssh
//! shells share it; [`shell::Shell`] moves the bytes.
//!
//! What may be a prompt is believed in three degrees. A learned prompt counts at once. A row
//! that asks for a name or a password, a pager, an `expect`ed question count when nothing
//! follows for a moment, because the same letters may be the beginning of a longer row. A row
//! that only looks like a prompt must stay for longer, and is then proved by an empty line:
//! who answers with the same row is at his prompt.

pub mod leased;
mod login;
mod phrases;
mod prompt;
mod screen;
pub mod shell;
mod terms;
#[cfg(test)]
mod tests;

use phrases::Said;
use prompt::{Prompt, Seen};
use screen::Screen;

pub(crate) use phrases::not_understood;
pub use terms::{Answer, Credentials, Manners, Step, Trouble};

/// A row that asks for a name or a password counts after this much silence, ms.
const ASK_QUIET_MS: u64 = 60;
/// A pager or an expected question, ms.
const PAGER_QUIET_MS: u64 = 20;
/// A row that looks like a prompt, or a learned prompt where it was not due, ms.
const GUESS_QUIET_MS: u64 = 300;
/// Bytes of everything that is said before the first prompt: banners, message of the day.
const BANNER_MAX: usize = 1024 * 1024;
/// Bytes of one answer.
pub const ANSWER_MAX: usize = 1024 * 1024;
/// Of a banner this much is kept, bytes: the end, where a refusal says why.
const BANNER_KEPT: usize = 4 * 1024;
/// Longest line that is sent, bytes: what the smallest input buffers of devices take.
const LINE_MAX: usize = 4 * 1024;
/// Bytes of the device's own words in an error.
const SAID_MAX: usize = 300;
/// Lines after which a device closes the connection because it was told to.
const FAREWELLS: [&str; 5] = ["exit", "quit", "logout", "logoff", "bye"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Name, password, banners.
    Login,
    /// An empty line was sent: the same row must come again.
    Probe,
    /// `enable` was sent.
    Enable,
    /// A line of `setup` by its number.
    Setup(usize),
    /// At a prompt.
    Idle,
    /// A line waits for its answer.
    Command,
    Over,
}

/// One dialogue, from the first byte of the connection to its end.
#[derive(Debug)]
pub struct Dialogue {
    manners: Manners,
    credentials: Credentials,
    phase: Phase,
    screen: Screen,
    out: Vec<u8>,
    prompt: Option<Prompt>,
    /// The line under way.
    line: String,
    /// Between two prompts there is no line end: the device does not echo the return key.
    bare: bool,
    /// The device has been seen to echo lines.
    echoes: bool,
    /// How often the name was given.
    named: usize,
    /// The password was given after it.
    given: bool,
    turns: usize,
    last_ms: u64,
    ended: Option<String>,
    setup_said: Option<String>,
}

impl Dialogue {
    /// For a connection on which nothing has been said. `now`: ms of any clock, the same in all
    /// calls.
    pub fn new(manners: Manners, credentials: Credentials, now: u64) -> Self {
        Self {
            manners,
            credentials,
            phase: Phase::Login,
            screen: Screen::new(),
            out: Vec::new(),
            prompt: None,
            line: String::new(),
            bare: false,
            echoes: false,
            named: 0,
            given: false,
            turns: 0,
            last_ms: now,
            ended: None,
            setup_said: None,
        }
    }

    /// Takes received bytes.
    pub fn feed(&mut self, bytes: &[u8], now: u64) {
        if bytes.is_empty() {
            return;
        }
        self.last_ms = now;
        self.screen.take(bytes);
        if self.phase != Phase::Command {
            self.screen.shorten(BANNER_KEPT);
        }
    }

    /// The device sends nothing any more.
    pub fn closed(&mut self, why: impl Into<String>) {
        self.ended.get_or_insert_with(|| why.into());
    }

    /// Bytes to send now; the end of a line is a carriage return.
    pub fn take_out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// What a line of `setup` was answered with that was not understood.
    pub fn setup_said(&self) -> Option<&str> {
        self.setup_said.as_deref()
    }

    /// The prompt of the login, once there is one.
    pub fn prompt(&self) -> Option<&str> {
        self.prompt.as_ref().map(Prompt::row)
    }

    /// Sends a line. It must be one line of at most 4 KiB, and the dialogue [`Step::Ready`].
    /// What came unasked since the last answer is dropped.
    pub fn send(&mut self, line: &str, now: u64) -> Result<(), Trouble> {
        if line.len() > LINE_MAX {
            let text = format!(
                "a line of {} bytes cannot be sent, at most {LINE_MAX}",
                line.len()
            );
            return Err(Trouble::Unfit(text));
        }
        if let Some(c) = line.chars().find(|c| c.is_control()) {
            let text = format!("a line with the control character {c:?} cannot be sent");
            return Err(Trouble::Unfit(text));
        }
        if let Some(why) = &self.ended {
            return Err(Trouble::Closed(why.clone()));
        }
        if self.phase != Phase::Idle {
            return Err(Trouble::Unfit("the device is not at a prompt".to_owned()));
        }
        self.say(line.to_owned(), now);
        self.phase = Phase::Command;
        Ok(())
    }

    /// What time has run out for; the words of the device are in it.
    pub fn late(&self, limit_ms: u128) -> Trouble {
        let said = self.said();
        match self.phase {
            Phase::Login | Phase::Probe | Phase::Enable | Phase::Setup(_) => {
                match phrases::refusal(&said) {
                    Some(Said::Busy) => Trouble::Busy(said),
                    Some(Said::Refused) if self.given => Trouble::Refused(said),
                    _ if said.is_empty() => {
                        Trouble::Late(format!("no prompt within {limit_ms} ms, nothing was said"))
                    }
                    _ => Trouble::Late(format!("no prompt within {limit_ms} ms; it said {said:?}")),
                }
            }
            Phase::Idle | Phase::Command | Phase::Over => Trouble::Late(format!(
                "no prompt within {limit_ms} ms after the line; it said {said:?}"
            )),
        }
    }

    /// What comes next. `expect`: questions that also end the answer to a line.
    pub fn step(&mut self, expect: &[fancy_regex::Regex], now: u64) -> Step {
        let max = if self.phase == Phase::Command {
            ANSWER_MAX
        } else {
            BANNER_MAX
        };
        if self.screen.taken() > max && !matches!(self.phase, Phase::Idle | Phase::Over) {
            self.phase = Phase::Over;
            let text = format!("it said more than {max} bytes without a prompt");
            return Step::Failed(Trouble::TooLong(text));
        }
        let row = self.screen.row();
        let step = match self.phase {
            Phase::Login => self.login(&row, now),
            Phase::Probe => self.probe(&row, now),
            Phase::Enable => self.enable(&row, now),
            Phase::Setup(at) => self.setup(at, &row, now),
            Phase::Idle => Step::Ready,
            Phase::Command => self.command(&row, expect, now),
            Phase::Over => self.over(),
        };
        match step {
            Step::Wait { .. } if self.ended.is_some() && self.out.is_empty() => {
                let farewell = FAREWELLS.contains(&self.line.trim().to_lowercase().as_str());
                if self.phase == Phase::Command && farewell {
                    let mut answer = self.answer();
                    answer.closed = true;
                    self.phase = Phase::Over;
                    return Step::Answer(answer);
                }
                let trouble = self.ended_trouble();
                self.phase = Phase::Over;
                Step::Failed(trouble)
            }
            step => step,
        }
    }

    fn over(&self) -> Step {
        let why = self.ended.as_deref().unwrap_or("the dialogue is over");
        Step::Failed(Trouble::Closed(why.to_owned()))
    }

    // -- lines ------------------------------------------------------------------------------

    fn command(&mut self, row: &str, expect: &[fancy_regex::Regex], now: u64) -> Step {
        match self.prompt_seen(row, now) {
            Ok(()) => {
                let answer = self.answer();
                self.phase = Phase::Idle;
                return Step::Answer(answer);
            }
            Err(Step::Wait { until: Some(until) }) => return Step::Wait { until: Some(until) },
            Err(_) => {}
        }
        // A pattern that runs into its own limit says nothing about the row.
        let asked = |like: &fancy_regex::Regex| like.is_match(row).unwrap_or(false);
        if !row.trim().is_empty() && expect.iter().any(asked) {
            if let Err(wait) = self.quiet(PAGER_QUIET_MS, now) {
                return wait;
            }
            let mut answer = self.answer();
            if !answer.text.is_empty() {
                answer.text.push('\n');
            }
            answer.text.push_str(row.trim_end());
            answer.home = false;
            self.phase = Phase::Idle;
            return Step::Answer(answer);
        }
        self.page(row, now).unwrap_or(Step::Wait { until: None })
    }

    /// Goes on if this row is a pager.
    fn page(&mut self, row: &str, now: u64) -> Option<Step> {
        let key = phrases::goes_on(row)?;
        Some(match self.quiet(PAGER_QUIET_MS, now) {
            Err(wait) => wait,
            Ok(()) => {
                self.screen.wipe_row();
                self.out.extend(key);
                self.last_ms = now;
                Step::Wait { until: None }
            }
        })
    }

    /// `Ok` if the row is the prompt that ends what is under way.
    fn prompt_seen(&self, row: &str, now: u64) -> Result<(), Step> {
        let known = self.manners.prompt.as_ref();
        let seen = self.prompt.as_ref().and_then(|p| p.seen(row, known));
        let due = (self.bare || self.screen.newlines() > 0)
            && (!self.echoes
                || self.line.is_empty()
                || self.screen.after_echo(&self.line).is_some());
        match seen {
            None => Err(Step::Wait { until: None }),
            Some(Seen::Sure) if due => Ok(()),
            Some(Seen::Sure | Seen::Maybe) => self.quiet(GUESS_QUIET_MS, now),
        }
    }

    /// What was said to the line under way.
    fn answer(&mut self) -> Answer {
        let after = self.screen.after_echo(&self.line).filter(|_| !self.bare);
        self.echoes |= after.is_some();
        let text = after.unwrap_or_else(|| self.screen.finished());
        let lines = text.lines().filter(|line| phrases::goes_on(line).is_none());
        let text = lines.collect::<Vec<_>>().join("\n");
        let row = self.screen.row();
        Answer {
            text: text.trim_matches('\n').to_owned(),
            home: self.prompt.as_ref().is_some_and(|p| p.is_home(&row)),
            closed: false,
        }
    }

    // -- pieces -----------------------------------------------------------------------------

    fn quiet(&self, ms: u64, now: u64) -> Result<(), Step> {
        let until = self.last_ms.saturating_add(ms);
        if now >= until || self.ended.is_some() {
            Ok(())
        } else {
            Err(Step::Wait { until: Some(until) })
        }
    }

    fn say(&mut self, line: String, now: u64) {
        self.screen.clear();
        self.out.extend(line.as_bytes());
        self.out.push(b'\r');
        self.line = line;
        self.last_ms = now;
    }

    /// Sends what must not be looked for as an echo.
    fn secret(&mut self, text: &str, now: u64) -> Step {
        self.say(text.to_owned(), now);
        self.line.clear();
        Step::Wait { until: None }
    }

    fn press(&mut self, key: &[u8], now: u64) -> Step {
        self.turns += 1;
        self.screen.wipe_row();
        self.out.extend(key);
        self.last_ms = now;
        Step::Wait { until: None }
    }

    fn refuse(&mut self, why: &str) -> Step {
        let said = self.said();
        self.phase = Phase::Over;
        let text = if said.is_empty() {
            why.to_owned()
        } else {
            format!("{why}; it said {said:?}")
        };
        Step::Failed(match phrases::refusal(&said) {
            Some(Said::Busy) => Trouble::Busy(text),
            Some(Said::Refused) | None => Trouble::Refused(text),
        })
    }

    fn ended_trouble(&self) -> Trouble {
        let why = self.ended.clone().unwrap_or_default();
        let said = self.said();
        let text = if said.is_empty() {
            why
        } else {
            format!("{why}; it said {said:?}")
        };
        match self.phase {
            Phase::Login | Phase::Probe | Phase::Enable => match phrases::refusal(&said) {
                Some(Said::Busy) => Trouble::Busy(text),
                Some(Said::Refused) => Trouble::Refused(text),
                None => Trouble::Closed(text),
            },
            Phase::Setup(_) | Phase::Idle | Phase::Command | Phase::Over => Trouble::Closed(text),
        }
    }

    /// The last words of the device.
    fn said(&self) -> String {
        let all = format!("{}{}", self.screen.finished(), self.screen.row());
        let all = all.trim();
        let from = all.ceil_char_boundary(all.len().saturating_sub(SAID_MAX));
        all.get(from..).unwrap_or_default().replace('\n', " | ")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Name,
    Password,
}
