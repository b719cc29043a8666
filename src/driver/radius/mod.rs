//! RADIUS dynamic authorization (RFC 5176): CoA-Request and Disconnect-Request, with an
//! exchange of our own. `packet`, `value`, `dictionary`, `exchange` and `cause` are pure;
//! `socket` owns the sockets; this file is the pool of one NAS.
//!
//! At most one request of a session waits at a time: some NASes drop the second without an
//! answer (accel-ppp, `dm_coa.c`).

pub mod cause;
pub mod dictionary;
pub mod exchange;
pub mod packet;
mod recent;
mod request;
pub mod settings;
mod socket;
pub mod value;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::dictionary::Dictionary;
use self::exchange::{Answer, Manner, NotSent};
use self::packet::{Code, EVENT_TIMESTAMP, MESSAGE_AUTHENTICATOR, PROXY_STATE};
use self::socket::{Heard, Line, Numbers};
use crate::attempt::{Failure, FailureClass, Scope};
use crate::clock;
use crate::driver::{Counted, Reply, Row};

pub use self::exchange::Ignored;
pub use self::request::{Kind, Request, pasteable};

/// UDP port of dynamic authorization (RFC 5176 section 2.3).
pub const PORT: u16 = 3799;
/// Sockets to one NAS, 256 requests each: more than 100 forks ever need.
const SOCKETS_MAX: usize = 8;
/// Tries with another socket, when one is closed for idleness at the same moment.
const MOVES: usize = 3;
/// For the look-up of a host name.
const LOOKUP: Duration = Duration::from_secs(5);

/// Which NAS, and how it is spoken to.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Address or name.
    pub host: String,
    /// UDP port.
    pub port: u16,
    /// Secret and switches.
    pub manner: Manner,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Numbers for status pages and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Open sockets.
    pub sockets: usize,
    /// Requests that wait for an answer.
    pub waiting: usize,
    /// Requests that wait until another of their session is answered, or for an identifier.
    pub queued: usize,
    /// Genuine answers so far.
    pub answers: u64,
    /// Copies sent beyond the first.
    pub copies: u64,
    /// Packets that came and did not count.
    pub ignored: Ignored,
}

/// What a request came to. A refusal has an answer, too: `reply` holds its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// One row per attribute; `code` is the Error-Cause, if there was one.
    pub reply: Reply,
    /// The word for logs: `CoA-ACK Reply-Message=…`; empty without an answer.
    pub line: String,
    /// Why the step has failed, if it has.
    pub failure: Option<Failure>,
}

/// The sockets to one NAS. Dropping it closes them.
pub struct Radius {
    target: Target,
    lines: tokio::sync::Mutex<Vec<Line>>,
    tasks: Mutex<JoinSet<()>>,
    numbers: Arc<Numbers>,
    /// Sessions with a request that waits.
    busy: Mutex<HashMap<Vec<u8>, Arc<tokio::sync::Mutex<()>>>>,
    queued: AtomicUsize,
    /// Settings with which nothing can be sent.
    broken: Option<Failure>,
    last: Mutex<Option<String>>,
}

impl Radius {
    /// Nothing is opened before the first request.
    pub fn new(target: Target) -> Self {
        let broken = target.manner.secret.is_empty().then(|| Failure {
            scope: Scope::Nas,
            class: FailureClass::Permanent,
            code: Failure::CODE_PERMANENT,
            text: "the NAS has no RADIUS secret: set nas_secret.coa_secret".to_owned(),
            parks: true,
        });
        Self {
            target,
            lines: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
            numbers: Arc::default(),
            busy: Mutex::default(),
            queued: AtomicUsize::new(0),
            broken,
            last: Mutex::default(),
        }
    }

    /// One that answers everything with `failure`.
    pub(crate) fn broken(target: Target, failure: Failure) -> Self {
        Self {
            broken: Some(failure),
            ..Self::new(target)
        }
    }

    /// Sends one request and waits for its answer, at most `deadline` in all.
    pub async fn talk(
        &self,
        request: &Request,
        dictionary: &Dictionary,
        deadline: Duration,
    ) -> Told {
        let heard = self.heard(request, deadline).await;
        *locked(&self.last) = heard.as_ref().err().map(ToString::to_string);
        match heard {
            Ok((answer, opened)) => told(request, &answer, dictionary, opened),
            Err(failure) => Told {
                reply: Reply::default(),
                line: String::new(),
                failure: Some(failure),
            },
        }
    }

    async fn heard(
        &self,
        request: &Request,
        deadline: Duration,
    ) -> Result<(Answer, bool), Failure> {
        if let Some(failure) = &self.broken {
            return Err(failure.clone());
        }
        let until = clock::tick_ms().saturating_add(millis(deadline));
        let left = || Duration::from_millis(until.saturating_sub(clock::tick_ms()));
        let queued = Counted::new(&self.queued);
        let turn = timeout(left(), self.turn(&request.session)).await;
        drop(queued);
        let Ok(_turn) = turn else {
            return Err(Failure {
                class: FailureClass::Refused,
                ..Failure::timeout("an earlier request for the same session is not answered yet")
            });
        };
        let mut why = String::new();
        for _ in 0..MOVES {
            let queued = Counted::new(&self.queued);
            let line = timeout(left(), self.line()).await;
            drop(queued);
            let (asks, id, opened) = match line {
                Ok(Ok(line)) => line,
                Ok(Err(reason)) => return Err(Failure::transport(reason)),
                Err(_) => {
                    return Err(Failure::transport(format!(
                        "{} requests to {:?} wait already",
                        self.report().waiting,
                        self.target
                    )));
                }
            };
            let before = self.numbers.answers.load(Ordering::Relaxed);
            let wire = Arc::clone(&request.wire);
            match socket::ask(&asks, id, wire, until).await {
                Some(Heard::Answer(answer)) => return Ok((answer, opened)),
                Some(Heard::Silence { copies, forged }) => {
                    let others = self.numbers.answers.load(Ordering::Relaxed) > before;
                    return Err(self.silence(copies, forged, others));
                }
                Some(Heard::Refused { copies, sure }) => return Err(self.refused(copies, sure)),
                Some(Heard::NotSent(NotSent::Never(why))) => return Err(Failure::permanent(why)),
                Some(Heard::NotSent(NotSent::NotNow(why))) => {
                    return Err(Failure {
                        class: FailureClass::Refused,
                        ..Failure::timeout(why)
                    });
                }
                None => "the socket was closed meanwhile".clone_into(&mut why),
            }
        }
        Err(Failure::transport(format!("not sent: {why}")))
    }

    /// Waits until no other request of this session waits.
    async fn turn(&self, session: &[u8]) -> Turn<'_> {
        let lock = {
            let mut busy = locked(&self.busy);
            Arc::clone(busy.entry(session.to_vec()).or_default())
        };
        // Made before the wait: who gives up waiting leaves nothing behind either.
        let mut turn = Turn {
            busy: &self.busy,
            session: session.to_vec(),
            lock: Some(lock),
            guard: None,
        };
        if let Some(lock) = &turn.lock {
            turn.guard = Some(Arc::clone(lock).lock_owned().await);
        }
        turn
    }

    /// A socket with a free identifier; whether it had to be opened.
    async fn line(
        &self,
    ) -> Result<
        (
            tokio::sync::mpsc::Sender<socket::Ask>,
            tokio::sync::OwnedSemaphorePermit,
            bool,
        ),
        String,
    > {
        let ids = {
            let mut lines = self.lines.lock().await;
            lines.retain(|line| !line.is_closed());
            for line in lines.iter() {
                if let Some(id) = line.try_id() {
                    return Ok((line.sender(), id, false));
                }
            }
            if lines.len() < SOCKETS_MAX {
                let to = self.address().await?;
                let manner = self.target.manner.clone();
                let (line, task) = Line::open(to, manner, Arc::clone(&self.numbers)).await?;
                {
                    let mut tasks = locked(&self.tasks);
                    while tasks.try_join_next().is_some() {}
                    tasks.spawn(task);
                }
                let id = line.try_id().ok_or("the new socket has no identifier")?;
                let asks = line.sender();
                lines.push(line);
                return Ok((asks, id, true));
            }
            // All are full: whoever is first to come free there.
            let fullest = lines
                .iter()
                .max_by_key(|line| line.ids().available_permits());
            fullest.map(|line| (line.ids(), line.sender()))
        };
        let (ids, asks) = ids.ok_or("no socket")?;
        let id = ids.acquire_owned().await.map_err(|e| e.to_string())?;
        Ok((asks, id, false))
    }

    async fn address(&self) -> Result<SocketAddr, String> {
        let Target { host, port, .. } = &self.target;
        let found = timeout(LOOKUP, tokio::net::lookup_host((host.as_str(), *port))).await;
        match found {
            Ok(Ok(mut found)) => found
                .next()
                .ok_or_else(|| format!("{host} has no address; check nas.ip")),
            Ok(Err(e)) => Err(format!("{host} cannot be resolved: {e}; check nas.ip")),
            Err(_) => Err(format!(
                "{host} cannot be resolved: the name server is silent"
            )),
        }
    }

    /// Silence concerns the NAS, unless it has answered others meanwhile.
    fn silence(&self, copies: u32, forged: u64, others: bool) -> Failure {
        let mut text = format!("no answer from {:?} to {copies} copies", self.target);
        if forged > 0 {
            text.push_str(&format!(
                "; {forged} replies did not fit our secret and were ignored: check nas_secret.coa_secret, or somebody forges them"
            ));
        } else if others {
            text.push_str("; it has answered other requests meanwhile, so it drops this one");
        } else {
            text.push_str(
                "; check coa_port, coa_secret, and that the NAS takes CoA from this host's address",
            );
        }
        Failure {
            scope: if others { Scope::Event } else { Scope::Nas },
            class: FailureClass::Unknown,
            code: Failure::CODE_TRANSPORT,
            text,
            parks: false,
        }
    }

    fn refused(&self, copies: u32, sure: bool) -> Failure {
        let text = format!(
            "nobody listens on {:?} (UDP, after {copies} copies); check that CoA is enabled there, and coa_port",
            self.target
        );
        Failure {
            class: if sure {
                FailureClass::Transport
            } else {
                FailureClass::Unknown
            },
            ..Failure::transport(text)
        }
    }

    /// Why the last request was not answered, if it was not.
    pub fn last_error(&self) -> Option<String> {
        locked(&self.last).clone()
    }

    /// Numbers of now.
    pub fn report(&self) -> Report {
        let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        let sockets = self.lines.try_lock().map_or(0, |lines| {
            lines.iter().filter(|line| !line.is_closed()).count()
        });
        Report {
            sockets,
            waiting: self.numbers.waiting.load(Ordering::Relaxed),
            queued: self.queued.load(Ordering::Relaxed),
            answers: count(&self.numbers.answers),
            copies: count(&self.numbers.copies),
            ignored: Ignored {
                malformed: count(&self.numbers.malformed),
                late: count(&self.numbers.late),
                forged: count(&self.numbers.forged),
            },
        }
    }
}

/// The right to have the one request of a session that waits.
struct Turn<'r> {
    busy: &'r Mutex<HashMap<Vec<u8>, Arc<tokio::sync::Mutex<()>>>>,
    session: Vec<u8>,
    lock: Option<Arc<tokio::sync::Mutex<()>>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard = None;
        self.lock = None;
        let mut busy = locked(self.busy);
        // The map's own is the only one: nobody waits.
        if busy
            .get(&self.session)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            busy.remove(&self.session);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Attributes as rows, and what the answer means.
fn told(request: &Request, answer: &Answer, dictionary: &Dictionary, opened: bool) -> Told {
    let mut rows = Vec::new();
    let mut cause = None;
    let mut said = String::new();
    let mut line = answer.code.as_str().to_owned();
    for avp in &answer.avps {
        let own = [MESSAGE_AUTHENTICATOR, EVENT_TIMESTAMP, PROXY_STATE];
        if avp.vendor == 0 && own.contains(&avp.number) {
            continue;
        }
        let attribute = dictionary.by_number(avp.vendor, avp.number);
        let (tag, text) = value::decode(&attribute, &avp.value);
        let name = match tag {
            Some(tag) => format!("{}:{tag}", attribute.name),
            None => attribute.name.to_string(),
        };
        match &*name {
            "Error-Cause" => {
                let number = <[u8; 4]>::try_from(avp.value.as_slice()).map(i32::from_be_bytes);
                cause = number.ok().or(cause);
            }
            "Reply-Message" => said.push_str(&text),
            _ => {}
        }
        line.push(' ');
        line.push_str(&crate::shell::quote(&format!("{name}={text}")));
        rows.push(Row::from([(name, text)]));
    }
    if answer.copies > 1 {
        line.push_str(&format!(" (after {} copies)", answer.copies));
    }
    let done = answer.code.is_ack() || cause::is_done(request.wire.code, cause);
    let failure = (!done).then(|| cause::failure(answer.code, cause, &said));
    Told {
        reply: Reply {
            rows,
            code: cause.unwrap_or(0),
            new_session: opened,
            ..Reply::default()
        },
        line,
        failure,
    }
}

/// The word of a request in a scheme and for `send_radius_cmd`.
impl Kind {
    /// `coa`, `disconnect`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coa => "coa",
            Self::Disconnect => "disconnect",
        }
    }

    fn code(self) -> Code {
        match self {
            Self::Coa => Code::CoaRequest,
            Self::Disconnect => Code::DisconnectRequest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever waits for his turn, has it, or gives up: in the end nobody is remembered.
    #[tokio::test]
    async fn sessions_are_forgotten_when_nobody_waits() {
        let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let radius = Radius::new(Target {
            host: "127.0.0.1".to_owned(),
            port: deaf.local_addr().unwrap().port(),
            manner: Manner {
                secret: b"servicemode".to_vec(),
                message_authenticator: true,
                require_message_authenticator: false,
                event_timestamp: true,
            },
        });
        let all = Dictionary::shipped();
        let pairs = [("Acct-Session-Id".to_owned(), "a".to_owned())];
        let request = Request::new(Kind::Coa, &pairs, &all).unwrap();
        let first = radius.talk(&request, &all, Duration::from_millis(400));
        let second = radius.talk(&request, &all, Duration::from_millis(100));
        let third = radius.talk(&request, &all, Duration::from_secs(3));
        let (first, second, third) = tokio::join!(first, second, third);
        let class = |told: Told| told.failure.unwrap().class;
        assert_eq!(class(first), FailureClass::Unknown);
        assert_eq!(class(second), FailureClass::Refused);
        assert_eq!(class(third), FailureClass::Unknown);
        assert!(locked(&radius.busy).is_empty());
        assert_eq!(radius.report().waiting, 0);
    }
}
