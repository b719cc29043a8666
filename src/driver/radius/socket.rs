//! One UDP socket to one NAS and the task that owns it. The socket is connected: the system
//! itself drops what comes from any other address, and tells when nobody listens there.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::exchange::{Answer, Exchange, IDS, Ignored, Manner, NotSent, Request, Silence};
use super::packet::PACKET_MAX;
use crate::clock;

/// A socket that nobody used for this long is closed.
const LINGER: Duration = Duration::from_secs(60);
/// Datagrams taken in one turn: a flood must not keep the timers waiting.
const TURN_MAX: usize = 64;
/// Replies that did not count, of all NASes.
const IGNORED: &str = "nas_event_daemon_radius_ignored_total";
/// Room for one datagram and a byte more, so that a longer one is seen to be longer.
const ROOM: usize = PACKET_MAX + 1;

/// How a request ended on the wire.
#[derive(Debug)]
pub(super) enum Heard {
    /// A genuine answer.
    Answer(Answer),
    /// No answer to so many copies; so many replies did not count.
    Silence { copies: u32, forged: u64 },
    /// The host says that nobody listens on the port. `sure`: nothing was delivered before.
    Refused { copies: u32, sure: bool },
    /// It could not be sent.
    NotSent(NotSent),
}

/// One request on its way to the task.
pub(super) struct Ask {
    request: Arc<Request>,
    until: u64,
    tell: oneshot::Sender<Heard>,
    _id: OwnedSemaphorePermit,
}

/// Shared numbers of all sockets of a NAS.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Genuine answers.
    pub(super) answers: AtomicU64,
    /// Copies beyond the first.
    pub(super) copies: AtomicU64,
    /// Packets that did not count.
    pub(super) malformed: AtomicU64,
    /// The same.
    pub(super) late: AtomicU64,
    /// The same.
    pub(super) forged: AtomicU64,
    /// Requests that wait.
    pub(super) waiting: AtomicUsize,
}

/// An open socket; dropping it ends its task once nothing waits.
pub(super) struct Line {
    asks: mpsc::Sender<Ask>,
    ids: Arc<Semaphore>,
}

impl Line {
    /// Opens a socket to `to`; what drives it is to be spawned.
    pub(super) async fn open(
        to: SocketAddr,
        manner: Manner,
        numbers: Arc<Numbers>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), String> {
        let from: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(from)
            .await
            .map_err(|e| format!("no UDP socket: {e}"))?;
        socket
            .connect(to)
            .await
            .map_err(|e| format!("{to} cannot be reached: {e}"))?;
        let (asks, heard) = mpsc::channel(IDS);
        let first = random().to_be_bytes();
        let task = Task {
            socket,
            exchange: Exchange::new(manner, first.first().copied().unwrap_or_default()),
            asks: heard,
            numbers,
            counted: Ignored::default(),
        };
        let line = Self {
            asks,
            ids: Arc::new(Semaphore::new(IDS)),
        };
        Ok((line, task.run()))
    }

    /// An identifier, if one is free and the socket lives.
    pub(super) fn try_id(&self) -> Option<OwnedSemaphorePermit> {
        if self.asks.is_closed() {
            return None;
        }
        Arc::clone(&self.ids).try_acquire_owned().ok()
    }

    /// Whether its task has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.asks.is_closed()
    }

    /// Where identifiers come free.
    pub(super) fn ids(&self) -> Arc<Semaphore> {
        Arc::clone(&self.ids)
    }

    /// The way to the task; a clone, so that no lock is held meanwhile.
    pub(super) fn sender(&self) -> mpsc::Sender<Ask> {
        self.asks.clone()
    }
}

/// Sends one request and waits for how it ends.
pub(super) async fn ask(
    asks: &mpsc::Sender<Ask>,
    id: OwnedSemaphorePermit,
    request: Arc<Request>,
    until: u64,
) -> Option<Heard> {
    let (tell, heard) = oneshot::channel();
    let ask = Ask {
        request,
        until,
        tell,
        _id: id,
    };
    asks.send(ask).await.ok()?;
    heard.await.ok()
}

struct Task {
    socket: UdpSocket,
    exchange: Exchange<Ask>,
    asks: mpsc::Receiver<Ask>,
    numbers: Arc<Numbers>,
    /// What `numbers` have of the exchange's own count.
    counted: Ignored,
}

impl Task {
    async fn run(mut self) {
        let mut buffer = vec![0; ROOM];
        loop {
            let now = clock::tick_ms();
            let sleep = match self.exchange.due() {
                Some(due) => Duration::from_millis(due.saturating_sub(now)),
                None => LINGER,
            };
            tokio::select! {
                asked = self.asks.recv() => match asked {
                    Some(ask) => {
                        self.begin(ask).await;
                        while let Ok(ask) = self.asks.try_recv() {
                            self.begin(ask).await;
                        }
                    }
                    None if self.exchange.open() == 0 => return,
                    // The pool is gone; who waits still gets an answer.
                    None => self.wait_closed(sleep, &mut buffer).await,
                },
                got = self.socket.recv(&mut buffer) => self.got(got, &mut buffer),
                () = tokio::time::sleep(sleep) => {
                    if self.exchange.open() == 0 {
                        self.asks.close();
                        if self.asks.is_empty() {
                            return;
                        }
                    }
                }
            }
            self.tick().await;
        }
    }

    async fn wait_closed(&mut self, sleep: Duration, buffer: &mut [u8]) {
        tokio::select! {
            got = self.socket.recv(buffer) => self.got(got, buffer),
            () = tokio::time::sleep(sleep) => {}
        }
    }

    async fn begin(&mut self, ask: Ask) {
        let (now, until) = (clock::tick_ms(), ask.until);
        let wall_s = u32::try_from(clock::wall_ms() / 1_000).unwrap_or_default();
        let request = Arc::clone(&ask.request);
        self.numbers.waiting.fetch_add(1, Ordering::Relaxed);
        let begun = self
            .exchange
            .begin(&request, ask, now, until, wall_s, random());
        match begun {
            Ok(bytes) => {
                let bytes = bytes.to_vec();
                self.send(&bytes).await;
            }
            Err((ask, reason)) => self.tell(ask, Heard::NotSent(reason)),
        }
    }

    /// What the network loses, the next copy repairs.
    async fn send(&mut self, bytes: &[u8]) {
        let sent = self.socket.send(bytes).await;
        if sent.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            self.refused();
        }
    }

    fn got(&mut self, got: std::io::Result<usize>, buffer: &mut [u8]) {
        let mut got = got;
        for _ in 0..TURN_MAX {
            match got {
                Ok(size) => {
                    let bytes = buffer.get(..size).unwrap_or_default();
                    if let Some((ask, answer)) = self.exchange.receive(bytes) {
                        self.numbers.answers.fetch_add(1, Ordering::Relaxed);
                        self.tell(ask, Heard::Answer(answer));
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                    self.refused();
                    break;
                }
                // A passing trouble of the network; the timers decide.
                Err(_) => break,
            }
            got = self.socket.try_recv(buffer);
        }
        let (before, now) = (self.counted, self.exchange.ignored());
        if before == now {
            return;
        }
        let add = |to: &AtomicU64, kind: &'static str, more: u64| {
            to.fetch_add(more, Ordering::Relaxed);
            metrics::counter!(IGNORED, "kind" => kind).increment(more);
        };
        let numbers = &self.numbers;
        add(
            &numbers.malformed,
            "malformed",
            now.malformed - before.malformed,
        );
        add(&numbers.late, "late", now.late - before.late);
        add(&numbers.forged, "forged", now.forged - before.forged);
        self.counted = now;
    }

    /// Whose packet it was is not said. With one request, sent once, nothing was delivered.
    fn refused(&mut self) {
        let gone = self.exchange.give_up();
        let alone = gone.len() == 1;
        for Silence { waiter, copies, .. } in gone {
            let sure = alone && copies == 1;
            self.tell(waiter, Heard::Refused { copies, sure });
        }
    }

    async fn tick(&mut self) {
        let now = clock::tick_ms();
        if self.exchange.due().is_none_or(|due| due > now) {
            return;
        }
        let mut copies: Vec<Vec<u8>> = Vec::new();
        let ended = self.exchange.tick(
            now,
            random(),
            |ask| !ask.tell.is_closed(),
            |bytes| copies.push(bytes.to_vec()),
        );
        for silent in ended {
            let heard = Heard::Silence {
                copies: silent.copies,
                forged: silent.forged,
            };
            self.tell(silent.waiter, heard);
        }
        for bytes in copies {
            self.numbers.copies.fetch_add(1, Ordering::Relaxed);
            self.send(&bytes).await;
        }
    }

    fn tell(&self, ask: Ask, heard: Heard) {
        self.numbers.waiting.fetch_sub(1, Ordering::Relaxed);
        // Who has gone away is told nothing.
        drop(ask.tell.send(heard));
    }
}

fn random() -> u32 {
    getrandom::u32().unwrap_or_default()
}
