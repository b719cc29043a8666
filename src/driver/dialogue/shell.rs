//! Moves the bytes of a dialogue: any stream (a TCP connection with telnet's options, a channel
//! of ssh) on one side, [`Dialogue`] on the other, a limit of time around both.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::{Answer, Credentials, Dialogue, Manners, Step, Trouble};
use crate::clock;
use crate::driver::telnet::options::Options;

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Chunks that a session may have waiting when it is looked at before use.
const STALE_READS_MAX: usize = 64;

/// One session on a device's command line.
#[derive(Debug)]
pub struct Shell<S> {
    stream: S,
    /// Telnet's options; none on a clean stream.
    options: Option<Options>,
    dialogue: Dialogue,
    chunk: Vec<u8>,
    data: Vec<u8>,
    home: bool,
    /// For what must not be told, also if the device repeats it.
    credentials: Credentials,
    /// Bytes of a line have gone to the system since the login.
    sent: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Shell<S> {
    /// Logs in, in at most `limit`. `options`: telnet's, `None` for a stream without any.
    pub async fn login(
        stream: S,
        options: Option<Options>,
        manners: Manners,
        credentials: Credentials,
        limit: Duration,
    ) -> Result<Self, Trouble> {
        let mut shell = Self {
            stream,
            options,
            dialogue: Dialogue::new(manners, credentials.clone(), clock::tick_ms()),
            chunk: vec![0; CHUNK],
            data: Vec::with_capacity(CHUNK),
            home: true,
            credentials,
            sent: false,
        };
        match timeout(limit, shell.next(&[])).await {
            Ok(Ok(_)) => Ok(shell),
            Ok(Err(trouble)) => Err(trouble.without(&shell.credentials)),
            Err(_) => {
                let late = shell.dialogue.late(limit.as_millis());
                Err(late.without(&shell.credentials))
            }
        }
    }

    /// Sends one line and waits for its answer, in at most `limit`. After a trouble other than
    /// [`Trouble::Unfit`] the session is of no further use; [`Self::was_sent`] says whether the
    /// device may have got the line.
    pub async fn run(
        &mut self,
        line: &str,
        expect: &[fancy_regex::Regex],
        limit: Duration,
    ) -> Result<Answer, Trouble> {
        self.sent = false;
        self.dialogue.send(line, clock::tick_ms())?;
        let answered = match timeout(limit, self.next(expect)).await {
            Ok(answered) => answered,
            Err(_) => Err(self.dialogue.late(limit.as_millis())),
        };
        if let Ok(answer) = &answered {
            self.home = answer.home;
        } else {
            self.home = false;
        }
        answered.map_err(|trouble| trouble.without(&self.credentials))
    }

    /// Whether the device may have got the line of the last [`Self::run`].
    pub fn was_sent(&self) -> bool {
        self.sent
    }

    /// At the prompt of the login: somebody else may have the session.
    pub fn is_home(&self) -> bool {
        self.home
    }

    /// The prompt of the login.
    pub fn prompt(&self) -> &str {
        self.dialogue.prompt().unwrap_or_default()
    }

    /// What a line of `setup` was answered with that was not understood.
    pub fn setup_said(&self) -> Option<&str> {
        self.dialogue.setup_said()
    }

    /// Whether the device has closed it meanwhile, or said something that was not asked for;
    /// looked at without waiting, before the session is used again.
    pub async fn is_closed(&mut self) -> bool {
        for _ in 0..STALE_READS_MAX {
            match timeout(Duration::ZERO, self.stream.read(&mut self.chunk)).await {
                Ok(Ok(0) | Err(_)) => return true,
                // A message of the system log: dropped with the next line.
                Ok(Ok(n)) => {
                    if self.take(n, clock::tick_ms()).await.is_err() {
                        return true;
                    }
                }
                Err(_) => return false,
            }
        }
        // It talks without end: whatever it is, it is no prompt.
        true
    }

    async fn next(&mut self, expect: &[fancy_regex::Regex]) -> Result<Answer, Trouble> {
        loop {
            let step = self.dialogue.step(expect, clock::tick_ms());
            self.flush().await;
            let until = match step {
                Step::Ready => return Ok(Answer::default()),
                Step::Answer(answer) => return Ok(answer),
                Step::Failed(trouble) => return Err(trouble),
                Step::Wait { until } => until,
            };
            let read = self.stream.read(&mut self.chunk);
            let read = match until {
                None => read.await,
                Some(until) => {
                    let wait = until.saturating_sub(clock::tick_ms()).max(1);
                    match timeout(Duration::from_millis(wait), read).await {
                        Ok(read) => read,
                        Err(_) => continue,
                    }
                }
            };
            match read {
                Ok(0) => self.dialogue.closed("closed by the device"),
                Ok(n) => {
                    if let Err(why) = self.take(n, clock::tick_ms()).await {
                        self.dialogue.closed(why);
                    }
                }
                Err(e) => self.dialogue.closed(format!("the connection broke: {e}")),
            }
        }
    }

    /// Sends what the dialogue has to say. A device that has closed its side may still have
    /// said something that is worth reading, so a failure only marks the end.
    async fn flush(&mut self) {
        let out = self.dialogue.take_out();
        if out.is_empty() {
            return;
        }
        self.sent = true;
        let mut bytes = Vec::with_capacity(out.len() + 8);
        match &self.options {
            Some(options) => options.encode(&out, &mut bytes),
            None => bytes = out,
        }
        if let Err(e) = self.stream.write_all(&bytes).await {
            self.dialogue.closed(format!("the connection broke: {e}"));
        }
    }

    /// The first `n` bytes of the chunk have come.
    async fn take(&mut self, n: usize, now: u64) -> Result<(), String> {
        let bytes = self.chunk.get(..n).unwrap_or_default();
        let Some(options) = &mut self.options else {
            self.dialogue.feed(bytes, now);
            return Ok(());
        };
        self.data.clear();
        let mut reply = Vec::new();
        options.take(bytes, &mut self.data, &mut reply);
        self.dialogue.feed(&self.data, now);
        if !reply.is_empty() {
            let written = self.stream.write_all(&reply).await;
            written.map_err(|e| format!("the connection broke: {e}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_that_the_device_repeats_is_not_told() {
        let (ours, mut device) = tokio::io::duplex(4096);
        let credentials = Credentials {
            login: "admin".into(),
            password: "servicemode".into(),
            enable_password: String::new(),
        };
        let limit = Duration::from_secs(20);
        let login = Shell::login(ours, None, Manners::default(), credentials, limit);
        let acts = async {
            let mut read = [0; 64];
            device.write_all(b"\r\nUsername: ").await.unwrap();
            let _ = device.read(&mut read).await.unwrap();
            device.write_all(b"admin\r\nPassword: ").await.unwrap();
            let _ = device.read(&mut read).await.unwrap();
            let refusal = b"\r\nno account admin with servicemode\r\n% Login invalid\r\n";
            device.write_all(refusal).await.unwrap();
            drop(device);
        };
        let (told, ()) = tokio::join!(login, acts);
        let trouble = told.err().unwrap();
        let text = trouble.text();
        assert!(text.contains("with ***"), "{trouble:?}");
        assert!(!text.contains("servicemode"), "{trouble:?}");
    }
}
