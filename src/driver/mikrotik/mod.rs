//! The RouterOS API (MikroTik manual, "API"): commands multiplexed by tags over few pooled
//! connections.

pub mod wire;

use std::time::Duration;

use crate::attempt::Failure;
use crate::driver::Reply;
use crate::nas::NasId;
use crate::shell;

/// One API sentence, still as data: nothing in a value can become another word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// `/queue/simple/add`.
    pub path: String,
    /// `=key=value` words, in order.
    pub args: Vec<(String, String)>,
    /// Query words as they go out, `?name=x`, `?#&`, in order.
    pub queries: Vec<String>,
    /// `.proplist`, empty = all properties.
    pub proplist: Vec<String>,
}

impl Command {
    /// What an operator can paste to repeat it.
    pub fn pasteable(&self, nas: NasId) -> String {
        let mut words = vec![
            format!("send_mikrotik_cmd --nas {nas}"),
            shell::quote(&self.path),
        ];
        words.extend(
            self.args
                .iter()
                .map(|(k, v)| shell::quote(&format!("{k}={v}"))),
        );
        words.extend(self.queries.iter().map(|q| shell::quote(q)));
        if !self.proplist.is_empty() {
            words.push(shell::quote(&format!(
                ".proplist={}",
                self.proplist.join(",")
            )));
        }
        words.join(" ")
    }
}

/// Where and as whom to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Address or name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Login.
    pub login: String,
    /// Password.
    pub password: String,
}

/// Bounds of the pool of one NAS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, 1..=100.
    pub connections: usize,
    /// For TCP connect and for the login dialogue, each.
    pub connect_timeout: Duration,
    /// An idle connection is closed after this time.
    pub linger: Duration,
}

/// The pooled sessions of one NAS.
pub struct Mikrotik {}

impl Mikrotik {
    /// Nothing is connected before the first command.
    pub fn new(_target: Target, _limits: Limits) -> Self {
        Self {}
    }

    /// Sends one command and waits for its `!done`, at most `deadline` in all.
    pub async fn talk(&self, _command: &Command, _deadline: Duration) -> Result<Reply, Failure> {
        Err(Failure::transport("not written yet"))
    }
}
