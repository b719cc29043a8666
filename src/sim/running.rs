//! What every simulator has: behaviour that can be changed while it runs, counters that can be
//! waited for, a journal, and an end.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A running simulator; it ends when dropped. `X` is what it has of its own, `F` how it
/// misbehaves, `S` what it has seen.
pub struct Running<X, F, S> {
    pub(super) state: Arc<Inside<X, F, S>>,
    pub(super) tasks: JoinSet<()>,
    addr: SocketAddr,
}

/// What the tasks of a simulator share.
pub struct Inside<X, F, S> {
    pub(super) own: X,
    pub(super) faults: watch::Sender<F>,
    pub(super) seen: watch::Sender<S>,
    journal: Option<Mutex<File>>,
}

impl<X, F, S> Deref for Inside<X, F, S> {
    type Target = X;

    fn deref(&self) -> &X {
        &self.own
    }
}

impl<X, F, S> Inside<X, F, S> {
    pub(super) fn see(&self, change: impl FnOnce(&mut S)) {
        self.seen.send_modify(change);
    }

    /// Appends a line to the journal, if there is one.
    pub(super) fn note(&self, record: &Value) -> io::Result<()> {
        match &self.journal {
            Some(journal) => locked(journal).write_all(format!("{record}\n").as_bytes()),
            None => Ok(()),
        }
    }
}

impl<X, F, S: Default> Running<X, F, S> {
    /// Without tasks yet.
    pub(super) fn new(own: X, faults: F, journal: Option<File>, addr: SocketAddr) -> Self {
        let state = Arc::new(Inside {
            own,
            faults: watch::Sender::new(faults),
            seen: watch::Sender::new(S::default()),
            journal: journal.map(Mutex::new),
        });
        Self {
            state,
            tasks: JoinSet::new(),
            addr,
        }
    }
}

impl<X, F, S> Running<X, F, S> {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Changes the behaviour from now on.
    pub fn set_faults(&self, faults: F) {
        self.state.faults.send_replace(faults);
    }

    /// What it has seen so far.
    pub fn seen(&self) -> S
    where
        S: Clone,
    {
        self.state.seen.borrow().clone()
    }

    /// Waits until what it has seen fulfils `condition`.
    pub async fn wait_until(&self, condition: impl FnMut(&S) -> bool) -> S
    where
        S: Clone,
    {
        let mut receiver = self.state.seen.subscribe();
        match receiver.wait_for(condition).await {
            Ok(seen) => seen.clone(),
            Err(_) => self.seen(),
        }
    }

    /// Ends it and all its connections.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// As a process: prints `listening on ADDR` and `more` to standard output, then runs until
    /// `stop` is ready.
    pub(super) async fn serve(self, more: &str, stop: impl Future<Output = ()>) -> io::Result<()> {
        let mut out = io::stdout();
        write!(out, "listening on {}\n{more}", self.addr)?;
        out.flush()?;
        stop.await;
        self.stop().await;
        Ok(())
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a simulator may listen there.
pub(super) fn may_listen(addr: SocketAddr, allow_public: bool) -> io::Result<()> {
    if allow_public || addr.ip().is_loopback() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{addr} is not a loopback address: a simulator has no real protection; allow it explicitly if that is wanted"
        ),
    ))
}

pub(super) fn cannot_listen(addr: SocketAddr, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}"))
}

/// Opens a journal for appending.
pub(super) fn journal(path: Option<&PathBuf>) -> io::Result<Option<File>> {
    let open = |path: &Path| {
        let opened = File::options().create(true).append(true).open(path);
        opened.map_err(|e| {
            let text = format!("cannot open the journal {}: {e}", path.display());
            io::Error::new(e.kind(), text)
        })
    };
    path.map(|path| open(path)).transpose()
}
