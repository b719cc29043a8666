//! What a server does of its own accord on a connection: shows its key, hangs up, asks for
//! channels. russh calls from its own task; the rest of the driver looks at [`Watched`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::Channel;
use russh::client::{self, DisconnectReason};
use russh::keys::PublicKeyOrCertificate;
use tokio::sync::Notify;

use crate::attempt::Failure;
use crate::driver::ssh::Learn;
use crate::driver::ssh::login::one_line;
use crate::driver::ssh::trust::{self, Trust};

/// What a server may open on a client is of no use here. The library's own answer would be to
/// accept it; a handle that is dropped refuses.
macro_rules! refused {
    ($($name:ident($($what:ty),*);)*) => {$(
        async fn $name(
            &mut self,
            _: Channel<client::Msg>,
            $(_: $what,)*
            _refused_when_dropped: client::ChannelOpenHandle,
            _: &mut client::Session,
        ) -> Result<(), Self::Error> {
            Ok(())
        }
    )*};
}

/// What is seen of a connection from outside its own task.
pub(super) struct Watched {
    changed: Arc<Notify>,
    ended: AtomicBool,
    why: Mutex<String>,
    /// Why the host key is not believed.
    pub(super) distrust: Mutex<Option<Failure>>,
    /// The host key, an OpenSSH public key line.
    pub(super) presented: Mutex<Option<String>>,
}

impl Watched {
    pub(super) fn new(changed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            changed,
            ended: AtomicBool::new(false),
            why: Mutex::default(),
            distrust: Mutex::default(),
            presented: Mutex::default(),
        })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Why it ended.
    pub(super) fn why(&self) -> String {
        let why = locked(&self.why).clone();
        if why.is_empty() {
            "closed by the server".to_owned()
        } else {
            why
        }
    }

    fn end(&self, why: Option<String>) {
        if let Some(why) = why {
            *locked(&self.why) = why;
        }
        self.ended.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }
}

/// Answers what the server asks of its own accord.
pub(super) struct Watch {
    pub(super) watched: Arc<Watched>,
    /// A key that is learned is from now on the only one that is believed.
    pub(super) trust: Arc<Mutex<Trust>>,
    pub(super) learn: Option<Learn>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watched.end(None);
    }
}

impl client::Handler for Watch {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        server: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let key = server.public_key();
        *locked(&self.watched.presented) = Some(trust::line(&key));
        let mut trust = locked(&self.trust);
        match trust.judge(&key) {
            Ok(new) => {
                if new {
                    *trust = Trust::learned(&key);
                    if let Some(learn) = &self.learn {
                        learn(&trust::line(&key));
                    }
                }
                Ok(true)
            }
            Err(failure) => {
                *locked(&self.watched.distrust) = Some(failure);
                Ok(false)
            }
        }
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        let (why, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => (one_line(&info.message), Ok(())),
            DisconnectReason::Error(error) => (one_line(&error.to_string()), Err(error)),
        };
        self.watched.end(Some(why));
        result
    }

    refused! {
        server_channel_open_forwarded_tcpip(&str, u32, &str, u32);
        server_channel_open_forwarded_streamlocal(&str);
        server_channel_open_agent_forward();
        server_channel_open_session();
        server_channel_open_direct_tcpip(&str, u32, &str, u32);
        server_channel_open_direct_streamlocal(&str);
        server_channel_open_x11(&str, u32);
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
