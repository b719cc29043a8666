//! A simulated NAS that takes CoA and Disconnect (RFC 5176): it checks who has signed, keeps
//! sessions, and can be deaf, slow and rude on demand. `tests/radius/peers.rs` proves it with
//! `radclient` and pyrad, which others wrote.

pub mod console;
mod sessions;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::clock;
use crate::driver::radius::dictionary::Dictionary;
use crate::driver::radius::packet::{
    Authenticator, Avp, Code, Dressing, MESSAGE_AUTHENTICATOR, PACKET_MAX, Packet, build, put,
};
use crate::driver::radius::value;
use crate::sim::latency::latency;
use crate::sim::running::{Inside, Running, cannot_listen, journal, locked, may_listen};
use sessions::{Sessions, Verdict};

pub use sessions::Session;

/// Answers kept for copies of a request (RFC 5080 section 2.2.2).
const KEPT_MAX: usize = 10_000;
/// How long it knows a request again, ms: the longest useful `cleanup_delay` of FreeRADIUS.
const KEPT_MS: u64 = 30_000;
/// Delayed answers at once.
const DELAYED_MAX: usize = 1_000;

/// How the simulator is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address; port 0 = chosen by the system.
    pub listen: SocketAddr,
    /// Without it only loopback addresses are accepted: the secret is a toy.
    pub allow_public: bool,
    /// Shared secret.
    pub secret: String,
    /// Requests without a Message-Authenticator are dropped.
    pub require_message_authenticator: bool,
    /// Each carried out request, one JSON object a line.
    pub journal: Option<PathBuf>,
    /// Behaviour at the start.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            allow_public: false,
            secret: "secret".to_owned(),
            require_message_authenticator: false,
            journal: None,
            faults: Faults::default(),
        }
    }
}

/// How the simulator misbehaves; can be changed while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Nothing is answered.
    pub silent: bool,
    /// The first copies of each request that are lost.
    pub drop_first: u32,
    /// Answers that are lost after the request was carried out, per request.
    pub drop_answers: u32,
    /// Before each answer, ms.
    pub delay_ms: u64,
    /// A second request for a session is dropped while the first waits, as accel-ppp does.
    pub one_per_session: bool,
    /// Everything is refused with this Error-Cause; 0 = without one.
    pub nak: Option<u32>,
    /// Attributes that this NAS does not know: 401.
    pub unsupported: Vec<String>,
    /// Before each answer come an ACK with a wrong authenticator, one for another identifier,
    /// one with a wrong Message-Authenticator, one cut short, and a good one from another port.
    pub forge: bool,
    /// The genuine answer never comes.
    pub only_forged: bool,
    /// Datagrams of garbage before each answer.
    pub flood: u32,
    /// Answers without a Message-Authenticator.
    pub unsigned: bool,
}

/// What the simulator has seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Datagrams.
    pub packets: u64,
    /// Of these: not RADIUS, or no CoA and no Disconnect.
    pub malformed: u64,
    /// Signed wrongly, or without the Message-Authenticator that must be there.
    pub forged: u64,
    /// Copies of a request that was there already.
    pub copies: u64,
    /// Different requests.
    pub requests: u64,
    /// Of these with a Message-Authenticator.
    pub signed: u64,
    /// Answers: yes.
    pub acks: u64,
    /// Answers: no.
    pub naks: u64,
    /// Requests that changed something.
    pub changes: u64,
    /// Requests dropped because one for the session waited.
    pub second: u64,
    /// Requests whose answer is delayed now.
    pub waiting: u64,
    /// The most of them at once.
    pub waiting_peak: u64,
}

/// A running simulator; it ends when dropped.
pub type Sim = Running<Nas, Faults, Seen>;

type State = Inside<Nas, Faults, Seen>;

/// What a simulated NAS has of its own.
pub struct Nas {
    options: Options,
    dictionary: Arc<Dictionary>,
    sessions: Mutex<Sessions>,
}

impl Sim {
    /// Binds and serves. Fails if the address is taken, is not loopback without
    /// `allow_public`, or the journal cannot be opened.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listen = options.listen;
        may_listen(listen, options.allow_public)?;
        let journal = journal(options.journal.as_ref())?;
        let socket = UdpSocket::bind(listen).await;
        let socket = socket.map_err(|e| cannot_listen(listen, &e))?;
        let addr = socket.local_addr()?;
        let faults = options.faults.clone();
        let nas = Nas {
            dictionary: Dictionary::shipped(),
            sessions: Mutex::default(),
            options,
        };
        let mut sim = Self::new(nas, faults, journal, addr);
        sim.tasks
            .spawn(serve(Arc::clone(&sim.state), Arc::new(socket)));
        Ok(sim)
    }

    /// The sessions of now.
    pub fn sessions(&self) -> Vec<Session> {
        locked(&self.state.sessions).list()
    }

    /// Replaces the state by `{"sessions": [{"User-Name": "…", "services": ["…"]}]}`. Nothing
    /// changes on an error.
    pub fn load(&self, state: &Value) -> Result<(), String> {
        locked(&self.state.sessions).load(state)
    }

    /// The state in the form that [`Self::load`] takes.
    pub fn dump(&self) -> Value {
        locked(&self.state.sessions).dump()
    }
}

/// Which request a copy belongs to (RFC 5080 section 2.2.2).
type Key = (SocketAddr, u8, Authenticator);

/// What became of a request.
#[derive(Default)]
struct Known {
    first_at: u64,
    copies: u32,
    answer: Option<Vec<u8>>,
    answers: u32,
}

async fn serve(state: Arc<State>, socket: Arc<UdpSocket>) {
    let mut known: HashMap<Key, Known> = HashMap::new();
    let busy: Arc<Mutex<HashSet<String>>> = Arc::default();
    let mut delayed: JoinSet<()> = JoinSet::new();
    let mut buffer = vec![0; PACKET_MAX + 1];
    loop {
        while delayed.try_join_next().is_some() {}
        let Ok((size, from)) = socket.recv_from(&mut buffer).await else {
            continue; // the answer to somebody who is gone
        };
        let bytes = buffer.get(..size).unwrap_or_default();
        let Some((key, code, avps)) = state.genuine(bytes, from) else {
            continue;
        };
        if known.len() > KEPT_MAX {
            known.clear();
        }
        let faults = state.faults.borrow().clone();
        let now = clock::tick_ms();
        let entry = known.entry(key).or_default();
        if now.saturating_sub(entry.first_at) > KEPT_MS {
            *entry = Known {
                first_at: now,
                ..Known::default()
            };
        }
        let first = entry.copies == 0;
        entry.copies += 1;
        state.see(|seen| {
            seen.copies += u64::from(!first);
            seen.requests += u64::from(first);
        });
        if faults.silent || entry.copies <= faults.drop_first {
            continue;
        }
        let request = sessions::read(&avps, &state.dictionary);
        let who = state.who(&request);
        if entry.answer.is_none() {
            if faults.one_per_session && locked(&busy).contains(&who) {
                known.remove(&key);
                state.see(|seen| seen.second += 1);
                continue;
            }
            entry.answer = state.answer(code, key, &request, &faults);
        }
        entry.answers += 1;
        let (Some(answer), true) = (&entry.answer, entry.answers > faults.drop_answers) else {
            continue;
        };
        let answer = answer.clone();
        let (state, socket) = (Arc::clone(&state), Arc::clone(&socket));
        if faults.delay_ms == 0 {
            say(&state, &socket, &faults, key, &answer).await;
        } else if delayed.len() < DELAYED_MAX {
            locked(&busy).insert(who.clone());
            let busy = Arc::clone(&busy);
            delayed.spawn(async move {
                state.see(|seen| {
                    seen.waiting += 1;
                    seen.waiting_peak = seen.waiting_peak.max(seen.waiting);
                });
                latency(faults.delay_ms).await;
                locked(&busy).remove(&who);
                state.see(|seen| seen.waiting -= 1);
                say(&state, &socket, &faults, key, &answer).await;
            });
        }
    }
}

/// Sends an answer, and before it what the faults ask for.
async fn say(state: &State, socket: &UdpSocket, faults: &Faults, key: Key, answer: &[u8]) {
    let (to, id, authenticator) = key;
    for n in 0..faults.flood {
        let length = usize::try_from(n % 64).unwrap_or_default();
        drop(socket.send_to(&vec![0x2c; length], to).await);
    }
    if faults.forge || faults.only_forged {
        for bad in state.forgeries(id, authenticator, answer) {
            drop(socket.send_to(&bad, to).await);
        }
        if let Ok(other) = UdpSocket::bind((state.options.listen.ip(), 0)).await {
            drop(other.send_to(answer, to).await);
        }
    }
    if !faults.only_forged {
        drop(socket.send_to(answer, to).await);
    }
}

impl State {
    /// A request that somebody with the secret has signed.
    fn genuine(&self, bytes: &[u8], from: SocketAddr) -> Option<(Key, Code, Vec<Avp>)> {
        self.see(|seen| seen.packets += 1);
        let packet = Packet::parse(bytes).ok();
        let code = packet.and_then(|p| p.code());
        let (Some(packet), Some(code @ (Code::CoaRequest | Code::DisconnectRequest))) =
            (packet, code)
        else {
            self.see(|seen| seen.malformed += 1);
            return None;
        };
        let secret = self.options.secret.as_bytes();
        let must = self.options.require_message_authenticator;
        if packet.verify_request(secret, must).is_err() {
            self.see(|seen| seen.forged += 1);
            return None;
        }
        let avps = packet.avps();
        let signed = |avp: &Avp| avp.vendor == 0 && avp.number == MESSAGE_AUTHENTICATOR;
        if avps.iter().any(signed) {
            self.see(|seen| seen.signed += 1);
        }
        Some(((from, packet.id(), packet.authenticator()), code, avps))
    }

    /// The identifiers of a request as one text.
    fn who(&self, request: &[(String, String)]) -> String {
        let named = request
            .iter()
            .filter(|(name, _)| self.dictionary.names_session(name));
        named
            .map(|(name, text)| format!("{name}={text} "))
            .collect()
    }

    fn answer(
        &self,
        code: Code,
        (from, id, authenticator): Key,
        request: &[(String, String)],
        faults: &Faults,
    ) -> Option<Vec<u8>> {
        let verdict = match faults.nak {
            Some(cause) => Verdict {
                cause: (cause != 0).then_some(cause),
                ..Verdict::default()
            },
            None => {
                let mut sessions = locked(&self.sessions);
                let unsupported = &faults.unsupported;
                let verdict = sessions.carry_out(code, request, &self.dictionary, unsupported);
                self.told(from, code, request, &verdict);
                verdict
            }
        };
        self.see(|seen| {
            seen.acks += u64::from(verdict.ack);
            seen.naks += u64::from(!verdict.ack);
            seen.changes += u64::from(verdict.changed);
        });
        let mut attributes = Vec::new();
        let mut pairs = verdict.attributes.clone();
        if let Some(cause) = verdict.cause {
            pairs.push(("Error-Cause".to_owned(), cause.to_string()));
        }
        for (name, text) in &pairs {
            let (attribute, tag) = self.dictionary.find(name).ok()?;
            let avp = Avp {
                vendor: attribute.vendor,
                number: attribute.number,
                value: value::encode(&attribute, tag, text).ok()?,
            };
            put(&mut attributes, &avp).ok()?;
        }
        let answer = match (code, verdict.ack) {
            (Code::DisconnectRequest, true) => Code::DisconnectAck,
            (Code::DisconnectRequest, false) => Code::DisconnectNak,
            (_, true) => Code::CoaAck,
            (_, false) => Code::CoaNak,
        };
        let dressing = Dressing {
            message_authenticator: !faults.unsigned,
            event_timestamp: None,
        };
        let secret = self.options.secret.as_bytes();
        build(answer, id, authenticator, &attributes, dressing, secret).ok()
    }

    fn told(&self, from: SocketAddr, code: Code, request: &[(String, String)], verdict: &Verdict) {
        let record = json!({
            "at_us": clock::wall_us(),
            "from": from.to_string(),
            "code": code.as_str(),
            "attributes": request,
            "ack": verdict.ack,
            "cause": verdict.cause,
            "changed": verdict.changed,
        });
        // A full disk of a simulator hurts nobody.
        drop(self.note(&record));
    }

    /// Answers that must not count.
    fn forgeries(&self, id: u8, authenticator: Authenticator, answer: &[u8]) -> Vec<Vec<u8>> {
        let signed = Dressing {
            message_authenticator: true,
            event_timestamp: None,
        };
        let bare = Dressing {
            message_authenticator: false,
            event_timestamp: None,
        };
        let secret = self.options.secret.as_bytes();
        let code = answer.first().copied().and_then(Code::of);
        let code = match code {
            Some(Code::DisconnectAck | Code::DisconnectNak) => Code::DisconnectAck,
            _ => Code::CoaAck,
        };
        let wrong = [&[MESSAGE_AUTHENTICATOR, 18][..], &[7; 16]].concat();
        let forged = [
            build(code, id, authenticator, &[], signed, b"guessed"),
            build(code, id.wrapping_add(1), authenticator, &[], signed, secret),
            build(code, id, authenticator, &wrong, bare, secret),
            build(code, id, [9; 16], &[], signed, secret),
        ];
        let mut all: Vec<_> = forged.into_iter().flatten().collect();
        let short = answer.len().saturating_sub(1);
        all.push(answer.get(..short).unwrap_or_default().to_vec());
        all
    }
}
