//! The login of the simulated router, in both styles, and its refusals (MikroTik manual,
//! "API", "Initial login").

use std::sync::Arc;

use md5::{Digest, Md5};

use crate::sim::latency::latency;
use crate::sim::mikrotik::State;
use crate::sim::mikrotik::tables::Trap;
use crate::sim::mikrotik::talk::{Connection, Request};
use crate::sim::running::locked;

/// Bytes of a login challenge, before RouterOS 6.43.
const CHALLENGE: usize = 16;

/// Counts one logged-in session for as long as it lives.
struct Session(Arc<State>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.see(|seen| seen.sessions -= 1);
    }
}

/// How far the login of one connection has come.
#[derive(Default)]
pub(crate) struct Login {
    session: Option<Session>,
    challenge: Option<[u8; CHALLENGE]>,
}

impl Login {
    /// Whether commands may follow.
    pub(crate) fn is_done(&self) -> bool {
        self.session.is_some()
    }

    /// Answers one sentence that came before the login was done.
    pub(crate) async fn step(&mut self, connection: &Arc<Connection>, request: &Request) {
        let state = &connection.state;
        let tag = request.tag.as_deref();
        match request.path.as_str() {
            "/login" => {}
            "/quit" => return connection.fatal(tag, "session terminated on request").await,
            _ => return connection.fatal(tag, "not logged in").await,
        }
        let faults = state.faults.borrow().clone();
        latency(faults.login_latency_ms).await;
        let arg = |name: &str| {
            let found = request.args.iter().find(|(n, _)| n == name);
            found.map(|(_, v)| v.as_slice())
        };
        let old = state.options.old_login;
        if old && arg("response").is_none() {
            let mut challenge = [0; CHALLENGE];
            if getrandom::fill(&mut challenge).is_err() {
                return connection.fatal(tag, "no randomness").await;
            }
            self.challenge = Some(challenge);
            let ret = hex(&challenge);
            return connection
                .write(&[connection.sentence("!done", tag, &[("ret", ret.as_bytes())])])
                .await;
        }
        let known = arg("name") == Some(state.options.login.as_bytes());
        let right = if old {
            let wanted = self.challenge.take().map(|c| {
                let mut hash = Md5::new();
                hash.update([0]);
                hash.update(state.options.password.as_bytes());
                hash.update(c);
                format!("00{}", hex(&hash.finalize()))
            });
            wanted.is_some() && wanted.as_deref().map(str::as_bytes) == arg("response")
        } else {
            arg("password") == Some(state.options.password.as_bytes())
        };
        let nth = {
            let mut attempts = locked(&state.attempts);
            *attempts += 1;
            *attempts
        };
        let unlucky = faults
            .refuse_every
            .is_some_and(|n| n > 0 && nth.is_multiple_of(n));
        if !known || !right || faults.refuse_logins || unlucky {
            state.see(|seen| seen.logins_refused += 1);
            let message = if old {
                "cannot log in"
            } else {
                "invalid user name or password (6)"
            };
            let trap = Trap::failure(message);
            return connection
                .write(&[
                    connection.trap(tag, &trap),
                    connection.sentence("!done", tag, &[]),
                ])
                .await;
        }
        let mut full = false;
        state.see(|seen| {
            full = faults
                .session_limit
                .is_some_and(|limit| seen.sessions >= limit);
            if full {
                seen.logins_refused += 1;
            } else {
                seen.logins += 1;
                seen.sessions += 1;
                seen.sessions_peak = seen.sessions_peak.max(seen.sessions);
            }
        });
        if full {
            return connection.fatal(tag, "too many sessions").await;
        }
        self.session = Some(Session(Arc::clone(state)));
        connection
            .write(&[connection.sentence("!done", tag, &[])])
            .await;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
