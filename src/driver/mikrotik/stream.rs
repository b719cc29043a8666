//! The line below a session: plain TCP, or TLS for the service `api-ssl` (MikroTik manual,
//! "API", "API SSL"). A router without a certificate offers only anonymous key exchange, which
//! nobody can trust and which is refused here.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::driver::tls::{self, Settings};

/// How TLS is begun with one router.
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Why TLS did not come about.
pub(crate) struct Refused {
    pub(crate) text: String,
    /// The certificate is another one than it should be: trying again does not help.
    pub(crate) untrusted: bool,
}

impl Tls {
    /// `host` is what the certificate must be for, unless the settings name something else.
    pub(crate) fn new(settings: &Settings, host: &str) -> Result<Self, String> {
        let name = settings.name.as_deref().unwrap_or(host);
        let name = match name.parse::<IpAddr>() {
            Ok(ip) => ServerName::IpAddress(ip.into()),
            Err(_) => ServerName::try_from(name.to_owned())
                .map_err(|_| format!("{name:?} can be the name of no certificate; set tls_name"))?,
        };
        Ok(Self {
            config: tls::client_config(&settings.trust)?,
            name,
        })
    }

    /// Speaks TLS over `stream`.
    pub(crate) async fn connect(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Refused> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let connected = connector.connect(self.name.clone(), stream).await;
        connected.map_err(|e| match tls::distrust(&e) {
            Some(text) => Refused {
                text,
                untrusted: true,
            },
            None => Refused {
                text: format!(
                    "no TLS: {e}; is this the port of api-ssl, and has the service a certificate \
                     (/ip service set api-ssl certificate=…)?"
                ),
                untrusted: false,
            },
        })
    }
}

/// One of the two.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
