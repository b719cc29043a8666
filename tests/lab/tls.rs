//! Certificates of a test: a CA of its own, and what it signed, as PEM files.

use std::path::{Path, PathBuf};

use nas_event_daemon::sim::Identity;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sha2::{Digest, Sha256};

/// A CA with one certificate for 127.0.0.1 and localhost.
pub struct Pki {
    pub ca: PathBuf,
    pub identity: Identity,
    /// SHA-256 of the certificate, hexadecimal.
    pub pin: String,
}

impl Pki {
    /// Writes the files `<name>-ca.pem`, `<name>.pem`, `<name>.key` into `dir`.
    pub fn new(dir: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // With one name for both, others take the certificate for a self-signed one.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("CA {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut leaf = CertificateParams::new(names).unwrap();
        leaf.distinguished_name
            .push(DnType::CommonName, "localhost");
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        let put = |file: String, text: String| {
            let path = dir.join(file);
            std::fs::write(&path, text).unwrap();
            path
        };
        let pin = Sha256::digest(leaf.der());
        Self {
            ca: put(format!("{name}-ca.pem"), ca.pem()),
            identity: Identity {
                cert: put(format!("{name}.pem"), leaf.pem()),
                key: put(format!("{name}.key"), leaf_key.serialize_pem()),
            },
            pin: pin.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }
}
