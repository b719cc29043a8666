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

    // What a server may open on a client is of no use here: everything is refused.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _refused_when_dropped: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _refused_when_dropped: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<client::Msg>,
        _refused_when_dropped: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<client::Msg>,
        _refused_when_dropped: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _refused_when_dropped: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _refused_when_dropped: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: u32,
        _refused_when_dropped: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
