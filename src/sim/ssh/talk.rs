//! One connection of the simulated SSH server: login, sessions, commands and their answers.

use std::collections::HashMap;
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use russh::keys::PublicKey;
use russh::server::{self, Auth, ChannelOpenHandle, Handle, Msg, Response, Session};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Sig};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::{Answer, State};
use crate::clock;
use crate::sim::latency::latency;
use crate::sim::running::locked;

/// Connections served at once.
const CONNECTIONS_MAX: usize = 200;
/// Largest batch, bytes.
const STDIN_MAX: usize = 16 * 1024 * 1024;
/// Bytes of an endless answer that are sent at once.
const PIECE: usize = 16 * 1024;

type Error = russh::Error;

/// Serves until it is dropped.
pub(super) async fn accept(state: Arc<State>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        if connections.len() < CONNECTIONS_MAX {
            state.see(|seen| seen.connections += 1);
            connections.spawn(serve(Arc::clone(&state), stream));
        }
    }
}

/// Shuts the socket down, so that russh's own task ends with ours.
struct Cord(std::net::TcpStream);

impl Drop for Cord {
    fn drop(&mut self) {
        // Fails if the other side was faster.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

async fn serve(state: Arc<State>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = stream.into_std() else {
        return;
    };
    let Ok(cord) = stream.try_clone().map(|s| Arc::new(Cord(s))) else {
        return;
    };
    let Ok(stream) = TcpStream::from_std(stream) else {
        return;
    };
    let mut methods = MethodSet::empty();
    if state.authorized.is_some() {
        methods.push(MethodKind::PublicKey);
    }
    if !state.options.password.is_empty() {
        if !state.options.interactive_only {
            methods.push(MethodKind::Password);
        }
        methods.push(MethodKind::KeyboardInteractive);
    }
    let config = server::Config {
        methods,
        keys: vec![state.host_key()],
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        nodelay: true,
        ..server::Config::default()
    };
    let talk = Talk {
        state,
        cord: Arc::clone(&cord),
        sessions: Sessions::default(),
        commands: 0,
        tasks: JoinSet::new(),
    };
    if let Ok(session) = server::run_stream(Arc::new(config), stream, talk).await {
        // How the other side left is of no interest.
        let _ = session.await;
    }
    drop(cord);
}

/// The open sessions of a connection. A command that has ended takes its own away: russh does
/// not tell of the answer to our close.
type Sessions = Arc<Mutex<HashMap<ChannelId, Asked>>>;

/// A session: what it was asked to run, what it was given to read.
#[derive(Default)]
struct Asked {
    line: Option<String>,
    stdin: Vec<u8>,
    running: Option<AbortHandle>,
}

struct Talk {
    state: Arc<State>,
    cord: Arc<Cord>,
    sessions: Sessions,
    commands: u64,
    /// One per running command; they end with the connection.
    tasks: JoinSet<()>,
}

impl Talk {
    fn verdict(&self, good: bool) -> Auth {
        if good && !self.state.faults.borrow().refuse_logins {
            self.state.see(|seen| seen.logins += 1);
            return Auth::Accept;
        }
        self.state.see(|seen| seen.logins_refused += 1);
        Auth::reject()
    }

    fn is_login(&self, user: &str, password: &str) -> bool {
        let options = &self.state.options;
        !options.password.is_empty() && user == options.login && password == options.password
    }

    fn begin(&mut self, id: ChannelId, handle: Handle) {
        let mut sessions = locked(&self.sessions);
        let Some(asked) = sessions.get_mut(&id) else {
            return;
        };
        let Some(line) = asked.line.clone() else {
            return;
        };
        if asked.running.is_some() {
            return;
        }
        self.commands += 1;
        let run = Run {
            state: Arc::clone(&self.state),
            cord: Arc::clone(&self.cord),
            sessions: Arc::clone(&self.sessions),
            handle,
            id,
            number: self.commands,
        };
        let stdin = String::from_utf8_lossy(&asked.stdin).into_owned();
        while self.tasks.try_join_next().is_some() {}
        asked.running = Some(self.tasks.spawn(run.answer(line, stdin)));
    }
}

impl server::Handler for Talk {
    type Error = Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Error> {
        let good = !self.state.options.interactive_only && self.is_login(user, password);
        Ok(self.verdict(good))
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, Error> {
        let data = |key: &PublicKey| key.key_data().clone();
        let known = self.state.authorized.as_ref().map(data);
        let good = user == self.state.options.login && known == Some(data(key.public_key));
        Ok(self.verdict(good))
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Error> {
        let Some(mut response) = response else {
            return Ok(Auth::Partial {
                name: "".into(),
                instructions: "".into(),
                prompts: vec![("Password: ".into(), false)].into(),
            });
        };
        let said = response.next();
        let said = said
            .as_ref()
            .map(|s| String::from_utf8_lossy(s).into_owned());
        let good = said.is_some_and(|said| self.is_login(user, &said));
        Ok(self.verdict(good))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        let limit = self.state.faults.borrow().session_limit;
        let open = locked(&self.sessions).len();
        if limit.is_some_and(|limit| open >= limit) {
            self.state.see(|seen| seen.sessions_refused += 1);
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        }
        locked(&self.sessions).insert(channel.id(), Asked::default());
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Error> {
        if self.state.faults.borrow().no_exec {
            return session.channel_failure(id);
        }
        if let Some(asked) = locked(&self.sessions).get_mut(&id) {
            asked.line = Some(String::from_utf8_lossy(data).into_owned());
        }
        session.channel_success(id)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Error> {
        if let Some(asked) = locked(&self.sessions).get_mut(&id) {
            asked.line = Some(String::new());
        }
        session.channel_success(id)
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Error> {
        if let Some(asked) = locked(&self.sessions).get_mut(&id)
            && asked.stdin.len() + data.len() <= STDIN_MAX
        {
            asked.stdin.extend_from_slice(data);
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Error> {
        self.begin(id, session.handle());
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Error> {
        let asked = locked(&self.sessions).remove(&id);
        if let Some(running) = asked.and_then(|asked| asked.running) {
            running.abort();
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        session: &mut Session,
    ) -> Result<(), Error> {
        let asked = locked(&self.sessions).remove(&id);
        let running = asked.and_then(|asked| asked.running);
        if let Some(running) = running {
            running.abort();
            self.state.see(|seen| seen.killed += 1);
            session.exit_signal_request(id, signal, false, "", "")?;
            session.close(id)?;
        }
        Ok(())
    }
}

/// Counts a command for as long as it runs, also if it is ended.
struct Counted(Arc<State>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.see(|seen| seen.running -= 1);
    }
}

/// One command.
struct Run {
    state: Arc<State>,
    cord: Arc<Cord>,
    sessions: Sessions,
    handle: Handle,
    id: ChannelId,
    number: u64,
}

impl Run {
    async fn answer(self, line: String, stdin: String) {
        self.state.see(|seen| {
            seen.commands += 1;
            seen.running += 1;
            seen.running_peak = seen.running_peak.max(seen.running);
        });
        let _counted = Counted(Arc::clone(&self.state));
        self.note(&line, &stdin);
        let faults = self.state.faults.borrow().clone();
        if faults.silent {
            return std::future::pending().await;
        }
        let answer = self.find(&line, &stdin);
        latency(faults.latency_ms + answer.delay_ms).await;
        let breaks = faults.drop_after == Some(self.number);
        let stdout = answer.stdout.as_bytes();
        let half = stdout.get(..stdout.len() / 2).unwrap_or_default();
        let sent = if breaks { half } else { stdout };
        let said = self.say(sent, faults.trickle_ms, faults.endless).await;
        if breaks {
            let _ = self.cord.0.shutdown(Shutdown::Both);
            return;
        }
        if said.is_none() {
            return;
        }
        let errors = answer.stderr.into_bytes();
        // The other side may be gone by now.
        if !errors.is_empty() {
            let _ = self.handle.extended_data(self.id, 1, errors).await;
        }
        if !faults.no_status {
            let _ = self
                .handle
                .exit_status_request(self.id, answer.status)
                .await;
        }
        let _ = self.handle.eof(self.id).await;
        locked(&self.sessions).remove(&self.id);
        let _ = self.handle.close(self.id).await;
    }

    /// `None` = the other side is gone.
    async fn say(&self, text: &[u8], trickle_ms: Option<u64>, endless: bool) -> Option<()> {
        if let Some(ms) = trickle_ms {
            for byte in text {
                latency(ms).await;
                self.handle.data(self.id, vec![*byte]).await.ok()?;
            }
        } else if !text.is_empty() {
            self.handle.data(self.id, text.to_vec()).await.ok()?;
        }
        if !endless {
            return Some(());
        }
        loop {
            self.handle.data(self.id, vec![b'x'; PIECE]).await.ok()?;
            tokio::task::yield_now().await;
        }
    }

    fn find(&self, line: &str, stdin: &str) -> Answer {
        let asked = format!("{line}\n{stdin}");
        let mut fitting = self
            .state
            .answers
            .iter()
            .filter(|(like, _)| like.is_match(&asked));
        fitting
            .next()
            .map(|(_, answer)| answer.clone())
            .unwrap_or_default()
    }

    fn note(&self, line: &str, stdin: &str) {
        let record = json!({"at_us": clock::wall_us(), "line": line, "stdin": stdin});
        // A journal that cannot be written is missed by whoever reads it.
        let _ = self.state.note(&record);
    }
}
