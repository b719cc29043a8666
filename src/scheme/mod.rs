//! OSS schemes: what a NAS runs for a command. Two kinds, an operator's bash (`session`) and
//! native steps (`native`, `scheme.toml`), behind one trait, so that a satellite can stand in.

pub mod environ;
pub mod launch;
pub mod native;
pub mod reap;
mod relay;
pub mod resolve;
pub mod ride;
pub mod session;
pub mod shim;
pub mod traps;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::Pin;

use async_trait::async_trait;

use crate::attempt::{Job, Report, Transcript};
use crate::event::Cmd;
use crate::nas::{Nas, OnError};

/// Knocks at a NAS: see [`Execute::knock`].
pub type Knocking = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Runs jobs. Implementations never write logs and never settle: they speak to the transcript
/// and report. `run` must end by `job.deadline` plus the grace of killing a process group.
#[async_trait]
pub trait Execute: Send + Sync {
    /// Executes one attempt.
    async fn run(&self, job: &Job, transcript: &mut Transcript) -> Report;

    /// What a failed attempt means, where the scheme says so.
    fn policy(&self) -> &ExitPolicy;

    /// Who this is, for `Start work with nas`, `nas show` and the history.
    fn identity(&self) -> &Identity;

    /// Whether the scheme has this command. A session script is only known when it has been
    /// sourced, so it says `true` and reports `NotImplemented` later.
    fn has(&self, cmd: &Cmd) -> bool;

    /// PARAMS that are read again at the attempt (`fresh = [names]`): a session id or an address
    /// may have changed while the event waited.
    fn fresh(&self) -> &[String] {
        &[]
    }

    /// What it speaks to the NAS with (`driver` of a native scheme); empty for a script.
    fn driver(&self) -> &'static str {
        ""
    }

    /// Ends when `nas` can be reached, with whether it could not before; none where that cannot
    /// be known without speaking to it.
    fn knock(&self, _nas: &Nas) -> Option<Knocking> {
        None
    }

    /// Attempts that the NAS can take side by side: more would only wait for its sessions, so
    /// they are not started.
    fn room(&self, _nas: &Nas) -> usize {
        usize::MAX
    }

    /// Commands outside the catalogue that this scheme defines.
    fn own_cmds(&self) -> BTreeSet<Cmd>;
}

/// Name, place and content hash of a scheme.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// `session`, `script` or `native`.
    pub kind: &'static str,
    /// Directory, for `oss_pathname=`; none for a bare `script_name`.
    pub oss_pathname: Option<PathBuf>,
    /// Old-style script, for `script_name=`.
    pub script_name: Option<PathBuf>,
    /// First 16 hex digits of SHA-256 over the scheme's files.
    pub hash: String,
}

/// `exit = { done = [0, 1], defer = [143, 254] }` and `on_error` of a scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitPolicy {
    /// Codes that mean done; 0 is always among them.
    pub done: BTreeSet<i32>,
    /// Codes that mean "try later".
    pub defer: BTreeSet<i32>,
    /// Overrides the global `dispatch.on_error`; `nas.on_error` overrides this.
    pub on_error: Option<OnError>,
}

impl Default for ExitPolicy {
    /// The original's contract: 0 done, 143 and 254 deferred.
    fn default() -> Self {
        Self {
            done: BTreeSet::from([0]),
            defer: BTreeSet::from([143, 254]),
            on_error: None,
        }
    }
}
