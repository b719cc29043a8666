//! One connection of the simulated router: sentences side by side by their tags,
//! replies one after the other, `/cancel`, and the faults.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::driver::mikrotik::wire::{self, Bounds, Decoder, Sentence};
use crate::sim::latency::latency;
use crate::sim::mikrotik::catalogue::{MENUS, Menu};
use crate::sim::mikrotik::login::Login;
use crate::sim::mikrotik::query::Query;
use crate::sim::mikrotik::tables::{Attributes, Trap};
use crate::sim::mikrotik::{State, values};
use crate::sim::running::locked;

/// Sentences of one connection that run at once; more wait in the socket.
const RUNNING_MAX: usize = 1_024;
/// Bytes read at once, and bytes of rows written at once.
const CHUNK: usize = 64 * 1024;
/// RouterOS pings once a second.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Pings of one command without `count`.
const PINGS_MAX: u64 = 65_535;

pub(crate) struct Connection {
    pub(crate) state: Arc<State>,
    writer: AsyncMutex<Box<dyn AsyncWrite + Unpin + Send>>,
    /// Running commands by tag.
    running: Mutex<HashMap<Vec<u8>, CancellationToken>>,
    /// The connection is to be torn down.
    broken: CancellationToken,
}

/// One request, taken apart.
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) tag: Option<Vec<u8>>,
    pub(crate) args: Vec<(String, Vec<u8>)>,
    queries: Vec<Vec<u8>>,
}

/// What a command answers.
#[derive(Default)]
struct Answer {
    rows: Vec<Attributes>,
    ret: Option<String>,
    /// It was a `print` whose result may be empty.
    table: bool,
}

pub(crate) async fn serve(
    state: Arc<State>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let (mut reader, writer) = tokio::io::split(stream);
    let connection = Arc::new(Connection {
        state,
        writer: AsyncMutex::new(Box::new(writer)),
        running: Mutex::default(),
        broken: CancellationToken::new(),
    });
    let broken = connection.broken.clone();
    let work = async {
        let mut decoder = Decoder::new(connection.state.bounds);
        let mut chunk = vec![0; CHUNK];
        let mut commands = JoinSet::new();
        let mut login = Login::default();
        let mut count = 0;
        loop {
            match decoder.next() {
                Ok(Some(sentence)) => match Request::parse(sentence) {
                    Some(request) if login.is_done() => {
                        count += 1;
                        connection.start(request, count, &mut commands).await;
                        while commands.try_join_next().is_some() {}
                        while commands.len() >= RUNNING_MAX {
                            commands.join_next().await;
                        }
                    }
                    Some(request) => login.step(&connection, &request).await,
                    None => connection.fatal(None, "malformed sentence").await,
                },
                Ok(None) => match reader.read(&mut chunk).await {
                    Ok(0) | Err(_) => return,
                    Ok(n) => decoder.feed(chunk.get(..n).unwrap_or_default()),
                },
                Err(e) => connection.fatal(None, &e.to_string()).await,
            }
        }
    };
    tokio::select! {
        biased;
        () = broken.cancelled() => {}
        () = work => {}
    }
}

/// Counts one running command for as long as it runs.
struct Running {
    connection: Arc<Connection>,
    tag: Option<Vec<u8>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(tag) = &self.tag {
            locked(&self.connection.running).remove(tag);
        }
        self.connection.state.see(|seen| seen.running -= 1);
    }
}

impl Request {
    fn parse(sentence: Sentence) -> Option<Self> {
        let mut words = sentence.into_iter();
        let path = String::from_utf8(words.next()?).ok()?;
        if !path.starts_with('/') {
            return None;
        }
        let mut request = Self {
            path,
            tag: None,
            args: Vec::new(),
            queries: Vec::new(),
        };
        for word in words {
            if let Some(tag) = word.strip_prefix(b".tag=") {
                request.tag = Some(tag.to_vec());
            } else if let Some(body) = word.strip_prefix(b"=") {
                let at = body.iter().position(|b| *b == b'=').unwrap_or(body.len());
                let name = wire::text(body.get(..at)?);
                let value = body.get(at + 1..).unwrap_or_default().to_vec();
                request.args.push((name, value));
            } else if word.first() == Some(&b'?') {
                request.queries.push(word);
            } else {
                return None;
            }
        }
        Some(request)
    }
}

impl Connection {
    async fn start(self: &Arc<Self>, request: Request, count: u64, commands: &mut JoinSet<()>) {
        self.state.see(|seen| seen.sentences += 1);
        match request.path.as_str() {
            "/quit" => {
                let tag = request.tag.as_deref();
                return self.fatal(tag, "session terminated on request").await;
            }
            "/cancel" => return self.cancel(&request).await,
            _ => {}
        }
        let token = CancellationToken::new();
        if let Some(tag) = &request.tag {
            let taken = locked(&self.running).insert(tag.clone(), token.clone());
            if taken.is_some() {
                return self.fatal(None, "the tag is in use").await;
            }
        }
        self.state.see(|seen| {
            seen.running += 1;
            seen.running_peak = seen.running_peak.max(seen.running);
        });
        let running = Running {
            connection: Arc::clone(self),
            tag: request.tag.clone(),
        };
        let connection = Arc::clone(self);
        let tagged = request.tag.is_some();
        let run = async move {
            connection.run(request, count, token, running).await;
        };
        if tagged {
            commands.spawn(run);
        } else {
            run.await;
        }
    }

    async fn cancel(&self, request: &Request) {
        self.state.see(|seen| seen.cancels += 1);
        if self.state.faults.borrow().deaf_to_cancel {
            return;
        }
        let wanted = request.args.iter().find(|(n, _)| n == "tag");
        for (tag, token) in locked(&self.running).iter() {
            if wanted.is_none_or(|(_, w)| w == tag) {
                token.cancel();
            }
        }
        let done = self.sentence("!done", request.tag.as_deref(), &[]);
        self.write(&[done]).await;
    }

    async fn run(
        self: &Arc<Self>,
        request: Request,
        count: u64,
        token: CancellationToken,
        running: Running,
    ) {
        let at_us = clock::wall_us();
        let faults = self.state.faults.borrow().clone();
        let tag = request.tag.as_deref();
        let interrupted = Trap {
            category: Some(2),
            message: "interrupted".to_owned(),
        };
        let result = tokio::select! {
            biased;
            () = token.cancelled() => Err(interrupted.clone()),
            () = latency(faults.latency_ms) => match request.path.as_str() {
                "/ping" => self.ping(&request, &token).await,
                _ => self.carry_out(&request, at_us),
            },
        };
        let mut end = Vec::new();
        let mut rows = Vec::new();
        match result {
            Ok(answer) => {
                if answer.table && answer.rows.is_empty() && self.says_empty() {
                    end.push(self.sentence("!empty", tag, &[]));
                }
                rows = answer.rows;
                let ret = answer.ret.as_deref().map(|r| ("ret", r.as_bytes()));
                end.push(self.sentence("!done", tag, ret.as_slice()));
            }
            Err(trap) => {
                if trap == interrupted {
                    self.state.see(|seen| seen.interrupted += 1);
                }
                end.push(self.trap(tag, &trap));
                end.push(self.sentence("!done", tag, &[]));
            }
        }
        if faults.drop_after == Some(count) {
            drop(running);
            let first = rows.first().map(|row| self.row(tag, row));
            return self
                .break_off(&first.unwrap_or_else(|| end.concat()), faults.fatal)
                .await;
        }
        let mut pending = Vec::new();
        for row in &rows {
            let mut paused = Ok(());
            if faults.row_latency_ms > 0 {
                paused = tokio::select! {
                    () = token.cancelled() => Err(()),
                    () = latency(faults.row_latency_ms) => Ok(()),
                };
            }
            if paused.is_err() {
                self.state.see(|seen| seen.interrupted += 1);
                end = vec![
                    self.trap(tag, &interrupted),
                    self.sentence("!done", tag, &[]),
                ];
                break;
            }
            pending.extend(self.row(tag, row));
            if faults.row_latency_ms > 0 || pending.len() > CHUNK {
                self.write(&[std::mem::take(&mut pending)]).await;
            }
        }
        pending.extend(end.concat());
        // The tag is free before its !done is out, so that it can be used again at once.
        drop(running);
        self.write(&[pending]).await;
    }

    /// Half of a reply, then nothing more; or a `!fatal`.
    async fn break_off(&self, reply: &[u8], fatal: Option<String>) {
        if let Some(text) = fatal {
            return self.fatal(None, &text).await;
        }
        let half = reply.get(..reply.len() / 2).unwrap_or_default();
        let mut writer = self.writer.lock().await;
        let _ = writer.write_all(half).await;
        let _ = writer.flush().await;
        // Before anybody else has the writer: no reply comes behind the half of this one.
        self.broken.cancel();
    }

    fn carry_out(&self, request: &Request, at_us: i64) -> Result<Answer, Trap> {
        let missing = |message: &str| Err(Trap::missing(message));
        let options = &self.state.options;
        let one = |row: &[(&str, &str)]| {
            let row = row
                .iter()
                .map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec()));
            Ok(Answer {
                rows: vec![row.collect()],
                ..Answer::default()
            })
        };
        match request.path.as_str() {
            "/system/identity/print" => return one(&[("name", &options.identity)]),
            "/system/resource/print" => {
                let upgraded = self.state.faults.borrow().version.clone();
                let version = upgraded.unwrap_or_else(|| options.version.clone());
                return one(&[
                    ("uptime", &values::duration_text(clock::tick_ms() / 1000)),
                    ("version", &version),
                    ("cpu-load", "1"),
                    ("architecture-name", "x86_64"),
                    ("board-name", "CHR"),
                    ("platform", "MikroTik"),
                ]);
            }
            _ => {}
        }
        let (path, verb) = request.path.rsplit_once('/').unwrap_or_default();
        let Some(menu) = Menu::find(path) else {
            let below = format!("{path}/");
            return if MENUS.iter().any(|m| m.path.starts_with(&below)) {
                missing("no such command")
            } else {
                missing("no such command prefix")
            };
        };
        if verb == "print" {
            return self.print(menu, request);
        }
        if !menu.verbs.contains(&verb) {
            return missing("no such command");
        }
        let ret = self.state.change(menu, verb, &request.args, at_us)?;
        Ok(Answer {
            ret,
            ..Answer::default()
        })
    }

    fn print(&self, menu: &'static Menu, request: &Request) -> Result<Answer, Trap> {
        let mut proplist = Vec::new();
        let mut count_only = false;
        for (name, value) in &request.args {
            match name.as_str() {
                ".proplist" => {
                    let names = wire::text(value);
                    proplist = names.split(',').map(str::to_owned).collect();
                }
                "count-only" => count_only = true,
                "detail" | "stats" | "brief" | "terse" | "without-paging" => {}
                _ => return Err(Trap::argument(format!("unknown parameter {name}"))),
            }
        }
        let query = Query::parse(request.queries.iter().map(Vec::as_slice))?;
        let now = clock::tick_ms();
        let rows = locked(&self.state.tables).print(menu, &query, &proplist, now);
        Ok(if count_only {
            Answer {
                ret: Some(rows.len().to_string()),
                ..Answer::default()
            }
        } else {
            Answer {
                rows,
                ret: None,
                table: true,
            }
        })
    }

    async fn ping(&self, request: &Request, token: &CancellationToken) -> Result<Answer, Trap> {
        let mut address = None;
        let mut count = None;
        for (name, value) in &request.args {
            let text = wire::text(value);
            let bad = || Trap::argument(format!("invalid value for argument {name}"));
            match name.as_str() {
                "address" => {
                    address = Some(text.parse::<std::net::IpAddr>().map_err(|_| bad())?);
                }
                "count" => count = Some(text.parse::<u64>().map_err(|_| bad())?),
                "interval" => drop(values::duration_s(&text).ok_or_else(bad)?),
                "size" | "src-address" | "interface" | "ttl" => {}
                _ => return Err(Trap::argument(format!("unknown parameter {name}"))),
            }
        }
        let address = address
            .ok_or_else(|| Trap::missing("missing =address="))?
            .to_string();
        let reached = !self.state.faults.borrow().unreachable.contains(&address);
        let mut rows = Vec::new();
        let mut received = 0;
        for seq in 0..count.unwrap_or(PINGS_MAX).min(PINGS_MAX) {
            // With a count the answer comes at once; a test need not wait for real time.
            let wait = if count.is_some() {
                Duration::ZERO
            } else {
                PING_INTERVAL
            };
            tokio::select! {
                biased;
                () = token.cancelled() => {
                    return Err(Trap { category: Some(2), message: "interrupted".to_owned() });
                }
                () = tokio::time::sleep(wait), if !wait.is_zero() => {}
                () = std::future::ready(()), if wait.is_zero() => {}
            }
            received += u64::from(reached);
            let sent = seq + 1;
            let mut row = vec![("seq", seq.to_string()), ("host", address.clone())];
            if reached {
                row.push(("size", "56".to_owned()));
                row.push(("ttl", "64".to_owned()));
                row.push(("time", "1ms200us".to_owned()));
            } else {
                row.push(("status", "timeout".to_owned()));
            }
            row.push(("sent", sent.to_string()));
            row.push(("received", received.to_string()));
            row.push(("packet-loss", ((sent - received) * 100 / sent).to_string()));
            let row = row.into_iter().map(|(k, v)| (k.to_owned(), v.into_bytes()));
            rows.push(row.collect());
        }
        Ok(Answer {
            rows,
            ..Answer::default()
        })
    }

    /// RouterOS says `!empty` since 7.18.
    fn says_empty(&self) -> bool {
        let mut numbers = self
            .state
            .options
            .version
            .split(|c: char| !c.is_ascii_digit())
            .map(|n| n.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (7, 18)
    }

    fn row(&self, tag: Option<&[u8]>, row: &Attributes) -> Vec<u8> {
        let attributes: Vec<_> = row
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_slice()))
            .collect();
        self.sentence("!re", tag, &attributes)
    }

    pub(crate) fn trap(&self, tag: Option<&[u8]>, trap: &Trap) -> Vec<u8> {
        let category = trap.category.map(|c| c.to_string());
        let mut attributes = Vec::new();
        if let Some(category) = &category {
            attributes.push(("category", category.as_bytes()));
        }
        attributes.push(("message", trap.message.as_bytes()));
        self.sentence("!trap", tag, &attributes)
    }

    pub(crate) fn sentence(
        &self,
        word: &str,
        tag: Option<&[u8]>,
        attributes: &[(&str, &[u8])],
    ) -> Vec<u8> {
        let mut words = vec![word.as_bytes().to_vec()];
        words.extend(
            attributes
                .iter()
                .map(|(name, value)| [b"=", name.as_bytes(), b"=", value].concat()),
        );
        if let Some(tag) = tag {
            let place = if self.state.faults.borrow().tag_last {
                words.len()
            } else {
                1
            };
            words.insert(place, [b".tag=", tag].concat());
        }
        let mut out = Vec::new();
        let bounds = Bounds {
            word: self.state.bounds.word + 64,
            sentence: usize::MAX,
            ..self.state.bounds
        };
        // What was taken in can be given back: the bounds are the same.
        let _ = wire::encode(words.iter().map(Vec::as_slice), bounds, &mut out);
        out
    }

    /// `!fatal` has its reason as a bare word; then the connection ends.
    pub(crate) async fn fatal(&self, tag: Option<&[u8]>, text: &str) {
        let mut words = vec![b"!fatal".to_vec(), text.as_bytes().to_vec()];
        if let Some(tag) = tag {
            words.push([b".tag=", tag].concat());
        }
        let mut out = Vec::new();
        let words = words.iter().map(Vec::as_slice);
        if wire::encode(words, self.state.bounds, &mut out).is_ok() {
            self.write(&[out]).await;
        }
        self.broken.cancel();
        // The caller is dropped here, so that nothing else of this connection runs.
        std::future::pending::<()>().await;
    }

    pub(crate) async fn write(&self, parts: &[Vec<u8>]) {
        let mut writer = self.writer.lock().await;
        if self.broken.is_cancelled() {
            return;
        }
        let parts = parts.concat();
        let written = async {
            writer.write_all(&parts).await?;
            writer.flush().await
        };
        if written.await.is_err() {
            self.broken.cancel();
        }
    }
}
