//! From the first byte to the first prompt: name, password, what banners ask, the proof of the
//! prompt, `enable`, the lines of `setup`.

use regex::Regex;

use super::phrases;
use super::prompt::{Prompt, Seen};
use super::terms::Step;
use super::{ASK_QUIET_MS, Asked, Dialogue, GUESS_QUIET_MS, PAGER_QUIET_MS, Phase, not_understood};

/// Names, passwords and empty lines that one login may take.
const TURNS_MAX: usize = 12;
/// A name that was asked for again at once went astray, perhaps in a banner.
const NAMES_MAX: usize = 3;

impl Dialogue {
    pub(super) fn login(&mut self, row: &str, now: u64) -> Step {
        if self.turns > TURNS_MAX {
            return self.refuse("the login never comes to an end");
        }
        if let Some(asked) = self.asked(row) {
            return match self.quiet(ASK_QUIET_MS, now) {
                Err(wait) => wait,
                Ok(()) => self.give(asked, now),
            };
        }
        if phrases::asks_to_change_password(row) {
            return match self.quiet(ASK_QUIET_MS, now) {
                Err(wait) => wait,
                Ok(()) => self.press(b"n\r", now),
            };
        }
        if let Some(key) = phrases::goes_on(row) {
            return match self.quiet(ASK_QUIET_MS, now) {
                Err(wait) => wait,
                Ok(()) => self.press(key, now),
            };
        }
        let Some(candidate) = Prompt::learn(row, self.manners.prompt.as_ref()) else {
            return Step::Wait { until: None };
        };
        let told = self
            .manners
            .prompt
            .as_ref()
            .is_some_and(|p| p.is_match(row));
        let wait = if told { PAGER_QUIET_MS } else { GUESS_QUIET_MS };
        if let Err(wait) = self.quiet(wait, now) {
            return wait;
        }
        self.prompt = Some(candidate);
        self.turns += 1;
        self.say(String::new(), now);
        self.phase = Phase::Probe;
        Step::Wait { until: None }
    }

    fn asked(&self, row: &str) -> Option<Asked> {
        let told = |own: &Option<Regex>| own.as_ref().is_some_and(|own| own.is_match(row));
        if told(&self.manners.login_prompt) || phrases::asks_name(row) {
            Some(Asked::Name)
        } else if phrases::asks_to_change_password(row) {
            None
        } else if told(&self.manners.password_prompt) || phrases::asks_password(row) {
            Some(Asked::Password)
        } else {
            None
        }
    }

    fn give(&mut self, asked: Asked, now: u64) -> Step {
        self.turns += 1;
        match asked {
            Asked::Name if self.named > 0 && (self.given || self.named >= NAMES_MAX) => {
                self.refuse("it asked for the login again")
            }
            Asked::Name if self.credentials.login.is_empty() => {
                self.refuse("it asks for a login, and nas_secret.login is empty")
            }
            Asked::Name => {
                self.named += 1;
                // A password that was asked for before belonged to the line, not to us.
                self.given = false;
                let login = self.credentials.login.clone();
                self.secret(&login, now)
            }
            Asked::Password if self.given => self.refuse("it asked for the password again"),
            Asked::Password => {
                self.given = true;
                let password = self.credentials.password.clone();
                self.secret(&password, now)
            }
        }
    }

    pub(super) fn probe(&mut self, row: &str, now: u64) -> Step {
        if self.turns > TURNS_MAX {
            return self.refuse("the login never comes to an end");
        }
        if self.asked(row).is_some() {
            // It was no prompt, but the end of a banner.
            return match self.quiet(ASK_QUIET_MS, now) {
                Err(wait) => wait,
                Ok(()) => {
                    self.prompt = None;
                    self.phase = Phase::Login;
                    self.login(row, now)
                }
            };
        }
        let known = self.manners.prompt.as_ref();
        let seen = self.prompt.as_ref().and_then(|p| p.seen(row, known));
        match seen {
            Some(Seen::Sure) if self.screen.newlines() > 0 => {}
            Some(_) => {
                if let Err(wait) = self.quiet(GUESS_QUIET_MS, now) {
                    return wait;
                }
                self.bare = self.screen.newlines() == 0;
            }
            None => {
                // Something else came, perhaps the real prompt after the end of a banner.
                self.phase = Phase::Login;
                let step = self.login(row, now);
                if self.phase == Phase::Login && matches!(step, Step::Wait { .. }) {
                    self.phase = Phase::Probe;
                }
                return step;
            }
        }
        self.prompt = Prompt::learn(row, known).or_else(|| self.prompt.take());
        self.at_prompt(now)
    }

    /// Logged in: what is left before work can begin?
    fn at_prompt(&mut self, now: u64) -> Step {
        let low = self.prompt.as_ref().is_some_and(Prompt::is_unprivileged);
        let told = self.manners.enable.is_some();
        if told || (low && !self.credentials.enable_password.is_empty()) {
            let command = self.manners.enable.clone();
            self.given = false;
            self.say(command.unwrap_or_else(|| "enable".to_owned()), now);
            self.phase = Phase::Enable;
            return Step::Wait { until: None };
        }
        self.next_setup(0, now)
    }

    pub(super) fn enable(&mut self, row: &str, now: u64) -> Step {
        if self.asked(row) == Some(Asked::Password) {
            if let Err(wait) = self.quiet(ASK_QUIET_MS, now) {
                return wait;
            }
            if self.given {
                return self.refuse("enable was refused: it asked for the password again");
            }
            if self.credentials.enable_password.is_empty() {
                return self
                    .refuse("enable asks for a password, and nas_secret.enable_password is empty");
            }
            self.given = true;
            let password = self.credentials.enable_password.clone();
            return self.secret(&password, now);
        }
        if let Err(wait) = self.prompt_seen(row, now) {
            return wait;
        }
        let known = self.manners.prompt.as_ref();
        let Some(now_at) = Prompt::learn(row, known) else {
            return Step::Wait { until: None };
        };
        let cisco = self.manners.enable.as_deref().unwrap_or("enable") == "enable";
        let said = self.screen.finished();
        let refused = phrases::refusal(&said).is_some() || not_understood(&said).is_some();
        if refused || (cisco && now_at.is_unprivileged()) {
            return self.refuse("enable was refused");
        }
        self.prompt = Some(now_at);
        self.next_setup(0, now)
    }

    fn next_setup(&mut self, at: usize, now: u64) -> Step {
        let Some(line) = self.manners.setup.get(at).cloned() else {
            self.screen.clear();
            self.phase = Phase::Idle;
            return Step::Ready;
        };
        self.say(line, now);
        self.phase = Phase::Setup(at);
        Step::Wait { until: None }
    }

    pub(super) fn setup(&mut self, at: usize, row: &str, now: u64) -> Step {
        if let Some(wait) = self.page(row, now) {
            return wait;
        }
        if let Err(wait) = self.prompt_seen(row, now) {
            return wait;
        }
        let answer = self.answer();
        if let Some(said) = not_understood(&answer.text) {
            self.setup_said
                .get_or_insert_with(|| format!("{:?}: {said}", self.line));
        }
        self.next_setup(at + 1, now)
    }
}
