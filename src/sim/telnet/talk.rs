//! One connection to the simulated router: name and password, then lines in three modes.

use std::sync::Arc;

use regex::Regex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::State;
use crate::clock;
use crate::driver::telnet::options::Options;
use crate::sim::latency::latency;
use crate::sim::running::locked;

/// Longest line that it takes; what follows is dropped, as a router's line buffer does.
const LINE_MAX: usize = 4096;
/// Tries of the password before it closes.
const TRIES: usize = 3;

/// Nobody is there any more.
struct Gone;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    User,
    Privileged,
    Config,
}

struct Talk {
    state: Arc<State>,
    stream: TcpStream,
    options: Options,
    /// Text that has come and was not read yet.
    ahead: Vec<u8>,
    mode: Mode,
    page: usize,
    lines: u64,
}

/// Counts open connections, also when one breaks.
struct Open(Arc<State>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.see(|seen| seen.sessions -= 1);
    }
}

pub(super) async fn serve(state: Arc<State>, stream: TcpStream) {
    let limit = state.faults.borrow().session_limit;
    state.see(|seen| {
        seen.sessions += 1;
        seen.sessions_peak = seen.sessions_peak.max(seen.sessions);
    });
    let open = Open(Arc::clone(&state));
    let mut talk = Talk {
        page: state.options.page,
        state,
        stream,
        options: Options::new(),
        ahead: Vec::new(),
        mode: Mode::User,
        lines: 0,
    };
    let sessions = talk.state.seen.borrow().sessions;
    if limit.is_some_and(|limit| sessions > limit) {
        talk.state.see(|seen| seen.sessions_refused += 1);
        let _ = talk.put("All lines are in use, try again later\r\n").await;
    } else {
        // It ends when the other side goes, or is told to.
        let _ = talk.run().await;
    }
    drop(open);
}

impl Talk {
    async fn run(&mut self) -> Result<(), Gone> {
        // WILL ECHO, WILL SUPPRESS-GO-AHEAD, DO NAWS: what such routers open with.
        self.raw(b"\xff\xfb\x01\xff\xfb\x03\xff\xfd\x1f").await?;
        let banner = self.state.options.banner.clone();
        self.put(&banner).await?;
        if !self.login().await? {
            return self.put("% Bad passwords, too many failures\r\n").await;
        }
        self.state.see(|seen| seen.logins += 1);
        loop {
            let prompt = self.prompt();
            self.put(&prompt).await?;
            let line = self.line(true).await?;
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            self.note(line);
            // `enable` belongs to the login.
            if line == "enable" {
                self.command(line).await?;
                continue;
            }
            self.lines += 1;
            let faults = self.state.faults.borrow().clone();
            latency(faults.latency_ms).await;
            if faults.silent {
                std::future::pending::<()>().await;
            }
            if faults.drop_after.is_some_and(|n| self.lines >= n) {
                return self.put("half of an ans").await;
            }
            if faults.garbage {
                loop {
                    self.raw(b"\x00\xfe\x1b[9\x9b\xff\xff\x80\r").await?;
                }
            }
            if !self.command(line).await? {
                return Ok(());
            }
        }
    }

    async fn login(&mut self) -> Result<bool, Gone> {
        let refuse = self.state.faults.borrow().refuse_logins;
        for _ in 0..TRIES {
            let (login, password) = {
                let options = &self.state.options;
                (options.login.clone(), options.password.clone())
            };
            let mut right = true;
            if !login.is_empty() {
                self.put("Username: ").await?;
                right = self.line(true).await? == login;
            }
            self.put("Password: ").await?;
            right &= self.line(false).await? == password;
            if right && !refuse {
                return Ok(true);
            }
            self.state.see(|seen| seen.logins_refused += 1);
            self.put("% Login invalid\r\n\r\n").await?;
        }
        Ok(false)
    }

    fn prompt(&self) -> String {
        let name = &self.state.options.hostname;
        match self.mode {
            Mode::User => format!("{name}>"),
            Mode::Privileged => format!("{name}#"),
            Mode::Config => format!("{name}(config)#"),
        }
    }

    /// `false`: it was told to close.
    async fn command(&mut self, line: &str) -> Result<bool, Gone> {
        let mut answers = self.state.options.answers.iter();
        if let Some((_, said)) = answers.find(|(like, _)| like.is_match(line)) {
            let said: String = said.lines().map(|row| format!("{row}\r\n")).collect();
            self.put(&said).await?;
            return Ok(true);
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match (self.mode, words.as_slice()) {
            (Mode::Config, ["end" | "exit"]) => self.mode = Mode::Privileged,
            (_, ["exit" | "quit" | "logout"]) => return Ok(false),
            (Mode::Config, ["no", rest @ ..]) if !rest.is_empty() => {
                let gone = untagged(rest);
                let before = locked(&self.state.config).len();
                locked(&self.state.config).retain(|kept| without_tag(kept) != gone);
                if before == locked(&self.state.config).len() {
                    let route = matches!(rest, ["ip" | "ipv6", "route", ..]);
                    // As FRR says it.
                    self.put(if route {
                        "% Refusing to remove a non-existent route\r\n"
                    } else {
                        "% No such line\r\n"
                    })
                    .await?;
                }
            }
            (
                Mode::Config,
                [
                    "ip" | "ipv6" | "subscriber" | "interface" | "description",
                    _,
                    ..,
                ],
            ) => {
                let kept = words.join(" ");
                let mut config = locked(&self.state.config);
                let same = |line: &&mut String| without_tag(line) == untagged(&words);
                match config.iter_mut().find(same) {
                    Some(line) => *line = kept,
                    None => config.push(kept),
                }
            }
            (Mode::User, ["enable"]) => {
                let wanted = self.state.options.enable_password.clone();
                if !wanted.is_empty() {
                    self.put("Password: ").await?;
                    if self.line(false).await? != wanted {
                        self.put("% Access denied\r\n").await?;
                        return Ok(true);
                    }
                }
                self.mode = Mode::Privileged;
            }
            (Mode::Privileged, ["configure", "terminal"]) => self.mode = Mode::Config,
            (Mode::User | Mode::Privileged, ["terminal", "length", rows]) => {
                self.page = rows.parse().unwrap_or(self.page);
            }
            (Mode::User | Mode::Privileged, ["show", "version"]) => {
                self.put("Simulated router, version 1\r\n").await?;
            }
            (Mode::Privileged, ["show", "running-config"]) => {
                let config = locked(&self.state.config).clone();
                self.pages(&config).await?;
            }
            (Mode::Privileged, ["show", "running-config", "|", "include", ..]) => {
                let (_, like) = line.split_once("include ").unwrap_or_default();
                match Regex::new(like) {
                    Ok(like) => {
                        let mut config = locked(&self.state.config).clone();
                        config.retain(|line| like.is_match(line));
                        self.pages(&config).await?;
                    }
                    Err(_) => self.put("% Bad regexp\r\n").await?,
                }
            }
            (Mode::Privileged, ["clear", "subscriber", who]) => {
                self.put(&format!("Clear {who}? [confirm]")).await?;
                self.line(true).await?;
            }
            _ if self.state.options.lenient => {}
            _ => {
                let mark = "            ^\r\n% Invalid input detected at '^' marker.\r\n\r\n";
                self.put(mark).await?;
            }
        }
        Ok(true)
    }

    async fn pages(&mut self, rows: &[String]) -> Result<(), Gone> {
        for (n, row) in rows.iter().enumerate() {
            if self.page > 0 && n > 0 && n % self.page == 0 {
                self.put(" --More-- ").await?;
                let key = self.byte().await?;
                self.put("\r          \r").await?;
                if key == b'q' {
                    break;
                }
            }
            self.put(&format!("{row}\r\n")).await?;
        }
        Ok(())
    }

    fn note(&self, line: &str) {
        self.state.see(|seen| seen.lines += 1);
        let record = json!({ "at_us": clock::wall_us(), "line": line });
        // A journal that cannot be written shows in the test that reads it.
        let _ = self.state.note(&record);
    }

    /// The next line; `echo`: what was typed is sent back.
    async fn line(&mut self, echo: bool) -> Result<String, Gone> {
        let mut line = Vec::new();
        loop {
            let byte = self.byte().await?;
            match byte {
                b'\r' => {
                    self.put("\r\n").await?;
                    return Ok(String::from_utf8_lossy(&line).into_owned());
                }
                b'\n' => {}
                _ if line.len() < LINE_MAX => {
                    line.push(byte);
                    if echo {
                        self.raw(&[byte]).await?;
                    }
                }
                _ => {}
            }
        }
    }

    async fn byte(&mut self) -> Result<u8, Gone> {
        while self.ahead.is_empty() {
            let mut chunk = [0; 512];
            let n = self.stream.read(&mut chunk).await.map_err(|_| Gone)?;
            if n == 0 {
                return Err(Gone);
            }
            let bytes = chunk.get(..n).unwrap_or_default();
            // Refusals of what was offered need no answer.
            let mut answer = Vec::new();
            self.options.take(bytes, &mut self.ahead, &mut answer);
        }
        Ok(self.ahead.remove(0))
    }

    async fn put(&mut self, text: &str) -> Result<(), Gone> {
        let bytes = text.as_bytes().to_vec();
        let trickle = self.state.faults.borrow().trickle_ms;
        let Some(ms) = trickle else {
            return self.raw(&bytes).await;
        };
        for byte in bytes {
            self.raw(&[byte]).await?;
            latency(ms).await;
        }
        Ok(())
    }

    async fn raw(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.stream.write_all(bytes).await.map_err(|_| Gone)
    }
}

/// A configuration line by which it is known: the tag of a route says nothing of which it is.
fn untagged(words: &[&str]) -> String {
    let tag = match words {
        ["ip" | "ipv6", "route", ..] => words.iter().position(|word| *word == "tag"),
        _ => None,
    };
    let kept = words.iter().enumerate();
    let kept = kept.filter(|(n, _)| tag.is_none_or(|tag| *n != tag && *n != tag + 1));
    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}

fn without_tag(line: &str) -> String {
    untagged(&line.split_whitespace().collect::<Vec<_>>())
}
