//! Signals and the two stop tokens: the first SIGTERM or SIGINT stops claiming and drains, the
//! second ends everything that still runs. SIGHUP re-reads the NAS settings and reopens logs.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::logs::Logs;

/// How the daemon is asked to end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Take nothing new, finish what runs.
    pub soft: CancellationToken,
    /// End what runs.
    pub hard: CancellationToken,
}

/// The signals, caught from here on.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Installs the handlers.
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT, for tools that only have to end.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }

    /// Turns signals into stops and pokes, until the second stop signal.
    pub async fn follow(mut self, stop: Stop, reload: Arc<Notify>, logs: Logs) {
        loop {
            tokio::select! {
                _ = self.hup.recv() => {
                    logs.reopen();
                    tracing::info!("SIGHUP: logs reopened, NAS settings are read again");
                    reload.notify_one();
                    continue;
                }
                _ = self.term.recv() => {}
                _ = self.int.recv() => {}
            }
            if stop.soft.is_cancelled() {
                tracing::warn!("second signal: running events are ended now");
                stop.hard.cancel();
                return;
            }
            tracing::info!("stopping: nothing new is started, running events get their time");
            stop.soft.cancel();
        }
    }
}
