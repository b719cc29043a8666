//! One connection that is logged in: many commands at once, told apart by their tags; reading
//! and writing go on at the same time, so that neither side waits for the other's buffers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::clock;
use crate::driver::mikrotik::answer::{self, Answer, Kind};
use crate::driver::mikrotik::wire::{self, Decoder};
use crate::driver::{Reply, Row};

/// Commands of one connection that wait for their `!done`: more than a NAS has forks.
pub(crate) const IN_FLIGHT_MAX: usize = 128;
/// Sentences on their way to the writer: each command may be followed by its `/cancel`.
const OUTGOING: usize = 2 * IN_FLIGHT_MAX;
/// Rows of one reply; who asks for more should ask with a query.
pub const ROWS_MAX: usize = 100_000;
/// Bytes of one reply, with [`WORD_COST`] for each of its words.
pub const REPLY_MAX: usize = 64 * 1024 * 1024;
/// What it takes to keep a property beside its bytes: without it a reply of empty properties would
/// take twenty times the memory that its bytes say.
pub const WORD_COST: usize = 48;
/// Bytes read at once, and bytes written at once.
const CHUNK: usize = 64 * 1024;
/// A `/cancel` that is not answered in this time, ms, means a connection that gets no further
/// commands.
const CANCEL_GRACE_MS: u64 = 2_000;

/// How a command on a connection ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Reply(Reply),
    Failed(Failure),
    /// Certainly not seen by the router: may go out on another connection.
    NotSent(String),
}

/// One connection.
pub(crate) struct Session {
    calls: Mutex<Calls>,
    outgoing: mpsc::Sender<Outgoing>,
    changed: Arc<Notify>,
}

struct Calls {
    open: HashMap<u32, Call>,
    last_tag: u32,
    closed: bool,
    /// Gets no new commands.
    retired: bool,
    /// Monotonic ms since which nothing has been open.
    idle_since: u64,
}

struct Call {
    caller: Option<oneshot::Sender<Ended>>,
    sent: bool,
    /// Monotonic ms since which nobody waits for it.
    abandoned: Option<u64>,
    rows: Vec<Row>,
    bytes: usize,
    trap: Option<Failure>,
}

enum Outgoing {
    Command { tag: u32, bytes: Vec<u8> },
    Cancel { tag: u32 },
}

/// The writer's end of a new session; belongs into [`Session::run`].
pub(crate) struct Mailbox(mpsc::Receiver<Outgoing>);

/// A reserved tag. Dropping it before the answer cancels the command on the router.
pub(crate) struct Slot {
    session: Arc<Session>,
    tag: u32,
    answer: oneshot::Receiver<Ended>,
    finished: bool,
}

/// Why a connection ended.
struct Why {
    text: String,
    /// `!fatal` about the session itself: says nothing about the commands.
    session_trouble: bool,
}

impl Why {
    fn lost(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            session_trouble: false,
        }
    }
}

impl Session {
    /// `changed` is told whenever a place becomes free or the session ends.
    pub(crate) fn new(changed: Arc<Notify>) -> (Arc<Self>, Mailbox) {
        let (outgoing, mailbox) = mpsc::channel(OUTGOING);
        let session = Self {
            calls: Mutex::new(Calls {
                open: HashMap::new(),
                last_tag: 0,
                closed: false,
                retired: false,
                idle_since: clock::tick_ms(),
            }),
            outgoing,
            changed,
        };
        (Arc::new(session), Mailbox(mailbox))
    }

    /// Commands in flight, `None` if it takes no more.
    pub(crate) fn load(&self) -> Option<usize> {
        let calls = self.calls();
        let usable = !calls.closed && !calls.retired && calls.open.len() < IN_FLIGHT_MAX;
        usable.then_some(calls.open.len())
    }

    /// Commands in flight, whatever its state.
    pub(crate) fn in_flight(&self) -> usize {
        self.calls().open.len()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.calls().closed
    }

    /// Takes a place.
    pub(crate) fn reserve(self: &Arc<Self>) -> Option<Slot> {
        let (caller, answer) = oneshot::channel();
        let mut calls = self.calls();
        if calls.closed || calls.retired || calls.open.len() >= IN_FLIGHT_MAX {
            return None;
        }
        // Tags are used anew after four thousand million commands; those are long answered.
        calls.last_tag = calls.last_tag.wrapping_add(1);
        let tag = calls.last_tag;
        let call = Call {
            caller: Some(caller),
            sent: false,
            abandoned: None,
            rows: Vec::new(),
            bytes: 0,
            trap: None,
        };
        calls.open.insert(tag, call);
        Some(Slot {
            session: Arc::clone(self),
            tag,
            answer,
            finished: false,
        })
    }

    /// Serves the connection until it breaks, is idle for `linger`, or is retired and empty.
    pub(crate) async fn run(
        &self,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
        decoder: Decoder,
        mailbox: Mailbox,
        linger: Duration,
    ) {
        let why = tokio::select! {
            why = self.read(reader, decoder) => why,
            why = self.write(writer, mailbox) => why,
            why = self.watch(linger) => why,
        };
        self.close(&why);
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin, mut decoder: Decoder) -> Why {
        let mut chunk = vec![0; CHUNK];
        loop {
            loop {
                match decoder.next() {
                    Ok(Some(sentence)) => {
                        let size = sentence.iter().map(|word| word.len() + WORD_COST).sum();
                        if let Some(why) = self.take(Answer::read(&sentence), size) {
                            return why;
                        }
                    }
                    Ok(None) => break,
                    Err(e) => return Why::lost(e.to_string()),
                }
            }
            match reader.read(&mut chunk).await {
                Ok(0) => return Why::lost("closed by the router"),
                Ok(n) => decoder.feed(chunk.get(..n).unwrap_or_default()),
                Err(e) => return Why::lost(e.to_string()),
            }
        }
    }

    async fn write(&self, mut writer: impl AsyncWrite + Unpin, mut mailbox: Mailbox) -> Why {
        let mut buffer = Vec::new();
        while let Some(first) = mailbox.0.recv().await {
            buffer.clear();
            let mut next = Some(first);
            while let Some(outgoing) = next {
                self.append(outgoing, &mut buffer);
                next = if buffer.len() < CHUNK {
                    mailbox.0.try_recv().ok()
                } else {
                    None
                };
            }
            let written = async {
                writer.write_all(&buffer).await?;
                // TLS keeps records back until it is told to let them go.
                writer.flush().await
            };
            if let Err(e) = written.await {
                return Why::lost(e.to_string());
            }
        }
        Why::lost("no longer needed")
    }

    /// From here on the command counts as sent: its bytes go to the system next.
    fn append(&self, outgoing: Outgoing, buffer: &mut Vec<u8>) {
        match outgoing {
            Outgoing::Command { tag, bytes } => {
                if let Some(call) = self.calls().open.get_mut(&tag) {
                    call.sent = true;
                    buffer.extend(bytes);
                }
            }
            Outgoing::Cancel { tag } => {
                // Its own reply has a tag that nobody waits for.
                let own = {
                    let mut calls = self.calls();
                    calls.last_tag = calls.last_tag.wrapping_add(1);
                    calls.last_tag
                };
                let words = [
                    "/cancel".to_owned(),
                    format!("=tag={tag}"),
                    format!(".tag={own}"),
                ];
                let words = words.iter().map(|w| w.as_bytes());
                // Three short words are always within the bounds.
                let _ = wire::encode(words, wire::Bounds::DRIVER, buffer);
            }
        }
    }

    async fn watch(&self, linger: Duration) -> Why {
        let linger_ms = u64::try_from(linger.as_millis()).unwrap_or(u64::MAX);
        let turn = Duration::from_millis((linger_ms / 4).clamp(10, 1_000));
        loop {
            tokio::time::sleep(turn).await;
            let now = clock::tick_ms();
            let mut calls = self.calls();
            let overdue = |c: &Call| {
                c.abandoned
                    .is_some_and(|since| now.saturating_sub(since) >= CANCEL_GRACE_MS)
            };
            if calls.open.values().any(overdue) {
                calls.retired = true;
            }
            let live = calls.open.values().any(|c| c.abandoned.is_none());
            let idle = calls.open.is_empty() && now.saturating_sub(calls.idle_since) >= linger_ms;
            if idle || (calls.retired && !live) {
                // Under the same lock that `reserve` takes: nobody gets in after this.
                calls.closed = true;
                return Why::lost("closed, nothing to do");
            }
        }
    }

    /// One reply; gives back why the connection ends, if it does.
    fn take(&self, answer: Answer, size: usize) -> Option<Why> {
        if answer.kind == Kind::Fatal {
            let reason = answer.reason();
            return Some(Why {
                session_trouble: answer::is_session_trouble(&reason),
                text: format!("!fatal {reason}"),
            });
        }
        if answer.is_garbled() {
            return Some(Why::lost(format!(
                "a reply of the router is garbled: {:?}",
                answer.bare.chars().take(60).collect::<String>()
            )));
        }
        let tag = answer.tag?;
        let mut calls = self.calls();
        let call = calls.open.get_mut(&tag)?;
        match answer.kind {
            Kind::Row => {
                call.bytes += size;
                if call.abandoned.is_some() {
                    return None;
                }
                if call.rows.len() >= ROWS_MAX || call.bytes > REPLY_MAX {
                    let text = format!(
                        "the reply has more than {ROWS_MAX} rows or {REPLY_MAX} bytes; ask with a query or a .proplist"
                    );
                    call.finish(Ended::Failed(Failure::permanent(text)));
                    drop(calls);
                    self.give_up(tag);
                } else {
                    call.rows.push(answer.attributes.into_iter().collect());
                }
            }
            Kind::Trap => {
                if call.trap.is_none() {
                    call.trap = Some(answer::trap(answer.category(), &answer.reason()));
                }
            }
            Kind::Done => {
                if let Some(mut call) = calls.open.remove(&tag) {
                    let ended = match call.trap.take() {
                        Some(failure) => Ended::Failed(failure),
                        None => Ended::Reply(Reply {
                            rows: std::mem::take(&mut call.rows),
                            ret: answer.get("ret").map(str::to_owned),
                            ..Reply::default()
                        }),
                    };
                    call.finish(ended);
                }
                calls.idle_since = clock::tick_ms();
                drop(calls);
                self.changed.notify_waiters();
            }
            Kind::Empty | Kind::Fatal | Kind::Other => {}
        }
        None
    }

    /// Nobody waits for this command any more. Says what is known of it.
    fn give_up(&self, tag: u32) -> (bool, Option<Failure>) {
        let mut calls = self.calls();
        let Some(call) = calls.open.get_mut(&tag) else {
            return (true, None);
        };
        let (sent, trap) = (call.sent, call.trap.take());
        if sent {
            call.abandoned = Some(clock::tick_ms());
            call.rows = Vec::new();
            if self.outgoing.try_send(Outgoing::Cancel { tag }).is_err() {
                calls.retired = true;
            }
        } else {
            calls.open.remove(&tag);
            calls.idle_since = clock::tick_ms();
            drop(calls);
            self.changed.notify_waiters();
        }
        (sent, trap)
    }

    fn close(&self, why: &Why) {
        let mut calls = self.calls();
        calls.closed = true;
        for (_, mut call) in calls.open.drain() {
            let ended = if !call.sent {
                Ended::NotSent(why.text.clone())
            } else if let Some(failure) = call.trap.take() {
                Ended::Failed(failure)
            } else if why.session_trouble {
                Ended::Failed(Failure::transport(why.text.clone()))
            } else {
                Ended::Failed(Failure {
                    scope: Scope::Event,
                    class: FailureClass::Unknown,
                    code: Failure::CODE_TRANSPORT,
                    text: format!(
                        "the connection ended before the answer came ({}); the command may have been carried out",
                        why.text
                    ),
                    parks: false,
                })
            };
            call.finish(ended);
        }
        drop(calls);
        self.changed.notify_waiters();
    }
}

impl Call {
    fn finish(&mut self, ended: Ended) {
        if let Some(caller) = self.caller.take() {
            // Nobody listens: the caller has given up in this instant.
            let _ = caller.send(ended);
        }
    }
}

impl Slot {
    /// Sends `words` (a sentence without its end) and waits for the answer.
    pub(crate) async fn talk(mut self, words: &[u8], limit: Duration) -> Ended {
        let mut bytes = words.to_vec();
        wire::end_with_tag(self.tag, &mut bytes);
        let tag = self.tag;
        if self
            .session
            .outgoing
            .try_send(Outgoing::Command { tag, bytes })
            .is_err()
        {
            return Ended::NotSent("the connection takes no more commands".to_owned());
        }
        if let Ok(ended) = timeout(limit, &mut self.answer).await {
            self.finished = true;
            return ended.unwrap_or_else(|_| Ended::NotSent("the connection is gone".to_owned()));
        }
        self.finished = true;
        let given_up = self.session.give_up(tag);
        // The answer may have come in this very instant.
        if let Ok(ended) = self.answer.try_recv() {
            return ended;
        }
        let ms = limit.as_millis();
        match given_up {
            (_, Some(trap)) => Ended::Failed(trap),
            (true, None) => Ended::Failed(Failure::timeout(format!(
                "no answer within {ms} ms; cancelled, but the command may have been carried out"
            ))),
            (false, None) => {
                // The router has not even taken the bytes: nothing new should go this way.
                self.session.calls().retired = true;
                Ended::Failed(Failure::transport(format!(
                    "the router has taken nothing for {ms} ms"
                )))
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.finished {
            self.session.give_up(self.tag);
        }
    }
}
