//! The daemon's control socket as the command line uses it: the same HTTP paths as on TCP,
//! spoken over `<run>/ctl.sock`, where who may is asked of the kernel.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde_json::Value;

use super::exit::{FAILED, Failed, NOT_FOUND, NOT_REACHABLE, REFUSED, USAGE, remark};
use crate::config::Config;
use crate::driver::tls;
use crate::intake::refusals;

/// For the connection; a local socket connects at once or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For a whole request: above the database's own busy timeout.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// For what only adds to the database's own answer; a daemon whose loops turn needs milliseconds.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// For a bulk call: 256 MiB of lines are read, checked and stored within it.
const BULK_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest part of an answer that is no JSON which an error repeats, characters.
const SHOWN_MAX: usize = 200;

/// The socket of one daemon.
pub struct Ctl {
    client: Client,
    socket: PathBuf,
    hangs: AtomicBool,
}

impl Ctl {
    /// Nothing is connected yet.
    pub fn new(config: &Config) -> Result<Self, Failed> {
        let socket = config.paths.run.join("ctl.sock");
        let client = tls::plain_client()
            .unix_socket(socket.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|e| Failed::new(FAILED, format!("cannot make an HTTP client: {e}")))?;
        Ok(Self {
            client,
            socket,
            hangs: AtomicBool::new(false),
        })
    }

    /// The socket's path, for messages.
    pub fn socket(&self) -> String {
        self.socket.display().to_string()
    }

    /// Whether somebody listens; who may not ask him does not matter.
    pub async fn is_there(&self) -> bool {
        let connected = tokio::net::UnixStream::connect(&self.socket);
        match tokio::time::timeout(CONNECT_TIMEOUT, connected).await {
            Ok(Err(e)) => !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
            Ok(Ok(_)) | Err(_) => true,
        }
    }

    /// Reads a path. `None`: no daemon listens.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, Failed> {
        self.asked(Method::GET, path, None).await
    }

    /// Reads a path for a verb that can do without: also `None`, with a remark, if a daemon listens
    /// that does not answer.
    pub async fn look(&self, path: &str) -> Result<Option<Value>, Failed> {
        match tokio::time::timeout(LOOK_TIMEOUT, self.get(path)).await {
            Ok(found) => found,
            Err(_) => {
                self.hangs.store(true, Ordering::Relaxed);
                remark(format!(
                    "the daemon behind {} gave no answer within {LOOK_TIMEOUT:?}: read from the database",
                    self.socket.display()
                ));
                Ok(None)
            }
        }
    }

    /// Whether a look was not answered in time.
    pub fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }

    /// Posts to a path. `None`: no daemon listens, so nothing was done.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Option<Value>, Failed> {
        self.asked(Method::POST, path, Some(body)).await
    }

    /// Status and body of any path. `None`: no daemon listens.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<(StatusCode, String)>, Failed> {
        if !self.socket.exists() {
            return Ok(None);
        }
        let mut request = self
            .client
            .request(method, format!("http://localhost{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        self.sent(request).await
    }

    /// Posts lines to a door that remembers `key`, so that a lost answer can be asked for again.
    pub async fn lines(
        &self,
        path: &str,
        body: String,
        key: &str,
    ) -> Result<Option<(StatusCode, String)>, Failed> {
        if !self.socket.exists() {
            return Ok(None);
        }
        let request = self.client.post(format!("http://localhost{path}"));
        let request = request.header("Idempotency-Key", key).body(body);
        self.sent(request.timeout(BULK_TIMEOUT)).await
    }

    async fn sent(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<Option<(StatusCode, String)>, Failed> {
        let lost = |e: reqwest::Error| {
            let why = if e.is_timeout() {
                format!("gave no answer within {REQUEST_TIMEOUT:?}")
            } else {
                format!("broke off: {}", crate::store::chain(&e))
            };
            Failed::new(
                NOT_REACHABLE,
                format!(
                    "the daemon behind {} {why}\nhint: whether it acted is not known; look with event list, and at the daemon's log",
                    self.socket.display()
                ),
            ).numbered(402)
        };
        match request.send().await {
            Ok(answer) => {
                let status = answer.status();
                Ok(Some((status, answer.text().await.map_err(lost)?)))
            }
            Err(e) if e.is_connect() => Ok(None),
            Err(e) => Err(lost(e)),
        }
    }

    async fn asked(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>, Failed> {
        let Some((status, text)) = self.raw(method, path, body).await? else {
            return Ok(None);
        };
        if status.is_success() {
            return Ok(Some(value_of(&text)));
        }
        Err(refusal(status, &text))
    }
}

fn value_of(text: &str) -> Value {
    serde_json::from_str(text)
        .unwrap_or_else(|_| Value::from(text.chars().take(SHOWN_MAX).collect::<String>()))
}

/// What an answer that is no success means for a command: what was said, and the exit code.
pub fn refusal(status: StatusCode, text: &str) -> Failed {
    let value = value_of(text);
    let part = |name: &str| value.pointer(name).and_then(Value::as_str);
    let mut said = part("/error/message").map_or_else(
        || format!("the daemon answered {status}: {value}"),
        str::to_owned,
    );
    if let Some(hint) = part("/error/hint") {
        said.push_str(&format!("\nhint: {hint}"));
    }
    let code = match status {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => USAGE,
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::CONFLICT
        | StatusCode::TOO_MANY_REQUESTS => REFUSED,
        StatusCode::NOT_FOUND => NOT_FOUND,
        StatusCode::SERVICE_UNAVAILABLE => NOT_REACHABLE,
        _ => FAILED,
    };
    let failed = Failed::new(code, said);
    match part("/error/code").and_then(refusals::number) {
        Some(number) => failed.numbered(number),
        None => failed,
    }
}
