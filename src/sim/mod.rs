//! NAS simulators that ship with the product: the demo, the tests and
//! `nas_event_daemon sim …` speak to them over real sockets.

mod control;
pub mod http;
mod latency;
pub mod mikrotik;
pub mod radius;
mod running;
pub mod ssh;
pub mod telnet;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

pub use running::{Inside, Running};

/// Certificate and key of a simulator that speaks TLS, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and its CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Identity {
    /// What accepts TLS connections with it.
    pub(crate) fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let at = |path: &PathBuf, e: &dyn std::fmt::Display| {
            let text = format!("{}: {e}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let certs = CertificateDer::pem_file_iter(&self.cert).map_err(|e| at(&self.cert, &e))?;
        let certs: Result<Vec<_>, _> = certs.collect();
        let certs = certs.map_err(|e| at(&self.cert, &e))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| at(&self.key, &e))?;
        let config = ServerConfig::builder_with_provider(crate::driver::tls::provider())
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(certs, key))
            .map_err(|e| at(&self.cert, &e))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
