//! Whether a device's certificate is trusted: by the system's CAs, by one CA file, by pinned
//! fingerprints, or not asked at all, as `nas.vars` says. The provider of the algorithms is
//! given to each configuration, so that nothing global has to be installed first.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Where Linux distributions keep their CAs; the first that is there counts.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Fingerprints of one NAS: today's certificate and the next few.
const PINS_MAX: usize = 8;

/// SHA-256 of a certificate in DER, as `openssl x509 -fingerprint -sha256` prints it.
pub type Fingerprint = [u8; 32];

/// Which certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Trust {
    /// Those that a CA of the system has signed for the device's name or address.
    #[default]
    System,
    /// Those that a CA of this PEM file has signed for the device's name or address.
    Ca(PathBuf),
    /// The one with one of these fingerprints, whatever it says of itself.
    Pinned(Vec<Fingerprint>),
    /// Any: whoever is in the way reads and changes everything.
    Insecure,
}

/// How TLS is spoken with one device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Which certificates are trusted.
    pub trust: Trust,
    /// Name that the certificate must carry, where it is not the address that is connected to.
    pub name: Option<String>,
}

impl Settings {
    /// `tls_ca`, `tls_pin`, `tls_insecure` (at most one of them) and `tls_name` of `nas.vars`.
    pub fn of(vars: &Map<String, Value>) -> Result<Self, String> {
        let mut found = Vec::new();
        if let Some(value) = given(vars, "tls_ca") {
            let path = value.as_str().map(PathBuf::from);
            let path = path.filter(|p| p.is_absolute());
            let path = path.ok_or("tls_ca in nas.vars is not the absolute path of a PEM file")?;
            found.push(("tls_ca", Trust::Ca(path)));
        }
        if let Some(value) = given(vars, "tls_pin") {
            found.push(("tls_pin", Trust::Pinned(pins(value)?)));
        }
        if given(vars, "tls_insecure").is_some_and(is_set) {
            found.push(("tls_insecure", Trust::Insecure));
        }
        if found.len() > 1 {
            let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "nas.vars has {}: leave one, or it is not clear what is trusted",
                names.join(" and ")
            ));
        }
        let name = match given(vars, "tls_name") {
            None => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err("tls_name in nas.vars is not a text".to_owned()),
        };
        let trust = found.pop().map_or(Trust::System, |(_, trust)| trust);
        Ok(Self { trust, name })
    }
}

fn given<'v>(vars: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    let value = vars.get(name)?;
    let empty = value.is_null() || value.as_str().is_some_and(str::is_empty);
    (!empty).then_some(value)
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Bool(set) => *set,
        Value::Number(n) => n.as_i64() == Some(1),
        Value::String(word) => matches!(word.as_str(), "1" | "true" | "yes"),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

fn pins(value: &Value) -> Result<Vec<Fingerprint>, String> {
    let texts: Vec<&str> = match value {
        Value::String(one) => one.split([',', ' ']).filter(|t| !t.is_empty()).collect(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let pins: Option<Vec<_>> = texts.into_iter().map(fingerprint).collect();
    pins.filter(|pins| (1..=PINS_MAX).contains(&pins.len()))
        .ok_or_else(|| {
            format!(
                "tls_pin in nas.vars is not 1 to {PINS_MAX} SHA-256 fingerprints of 64 hexadecimal \
                 digits (openssl x509 -noout -fingerprint -sha256 -in cert.pem)"
            )
        })
}

/// Reads a fingerprint: hexadecimal, with or without colons and `sha256:` before it.
pub fn fingerprint(text: &str) -> Option<Fingerprint> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_prefix("sha256:").unwrap_or(&text);
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The configuration of a client. The error is one sentence with what to do.
pub fn client_config(trust: &Trust) -> Result<Arc<ClientConfig>, String> {
    let provider = provider();
    let roots = match trust {
        Trust::System => {
            let file = SYSTEM_CAS.iter().map(Path::new).find(|p| p.exists());
            let file = file.ok_or(
                "this machine has no CA certificates: install ca-certificates, or set tls_ca or \
                 tls_pin in nas.vars",
            )?;
            Some(roots(file)?)
        }
        Trust::Ca(file) => Some(roots(file)?),
        Trust::Pinned(_) | Trust::Insecure => None,
    };
    let chain = match roots {
        Some(roots) => Some(
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|e| format!("the CA certificates cannot be used: {e}"))?,
        ),
        None => None,
    };
    let judge = Judge {
        trust: trust.clone(),
        chain,
        provider: Arc::clone(&provider),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("no version of TLS can be spoken: {e}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A client for plain HTTP on this machine or a Unix socket; it trusts no certificate.
pub fn plain_client() -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder().no_proxy();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map(|config| {
            config
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        });
    match config {
        Ok(config) => builder.tls_backend_preconfigured(config),
        // The versions of ring's provider are never empty.
        Err(_) => builder,
    }
}

/// The algorithms: ring's.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(file: &Path) -> Result<RootCertStore, String> {
    let at = file.display();
    let certificates = CertificateDer::pem_file_iter(file)
        .map_err(|e| format!("the CA file {at} cannot be read: {e}; the daemon's user needs it"))?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    if added == 0 {
        return Err(format!(
            "the CA file {at} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"
        ));
    }
    Ok(roots)
}

/// Judges certificates, and names the fingerprint of one that it refuses.
#[derive(Debug)]
struct Judge {
    trust: Trust,
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let print: Fingerprint = Sha256::digest(end_entity.as_ref()).into();
        let refused = |why: &dyn fmt::Display| {
            let print: String = print.iter().map(|b| format!("{b:02x}")).collect();
            rustls::Error::General(format!(
                "its certificate is not trusted: {why}; its SHA-256 fingerprint is {print}; if it \
                 is the right one, set tls_pin or tls_ca in nas.vars"
            ))
        };
        match (&self.trust, &self.chain) {
            (Trust::Insecure, _) => Ok(ServerCertVerified::assertion()),
            (Trust::Pinned(pins), _) => {
                if pins.iter().any(|pin| bool::from(pin.ct_eq(&print))) {
                    Ok(ServerCertVerified::assertion())
                } else {
                    Err(refused(&"none of the pinned fingerprints is its own"))
                }
            }
            (Trust::System | Trust::Ca(_), Some(chain)) => chain
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
                .map_err(|e| refused(&e)),
            (Trust::System | Trust::Ca(_), None) => Err(refused(&"there is no CA")),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Why a certificate was refused, if that is what `error` is about.
pub fn distrust(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        match error.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::General(text)) => return Some(text.clone()),
            Some(e @ rustls::Error::InvalidCertificate(_)) => return Some(e.to_string()),
            Some(_) | None => {}
        }
        // What an I/O error wraps is not its source, and may be an I/O error again.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(vars: &Value) -> Result<Settings, String> {
        Settings::of(vars.as_object().unwrap())
    }

    #[test]
    fn one_way_of_trust_is_chosen() {
        let hex = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        let pin = Trust::Pinned(vec![[0xab; 32]]);
        assert_eq!(of(&json!({})).unwrap(), Settings::default());
        assert_eq!(of(&json!({"tls_pin": hex})).unwrap().trust, pin);
        assert_eq!(of(&json!({"tls_pin": [colons]})).unwrap().trust, pin);
        let ca = of(&json!({"tls_ca": "/etc/ca.pem", "tls_name": "r1.isp"})).unwrap();
        assert_eq!(ca.trust, Trust::Ca("/etc/ca.pem".into()));
        assert_eq!(ca.name.as_deref(), Some("r1.isp"));
        assert_eq!(
            of(&json!({"tls_insecure": true})).unwrap().trust,
            Trust::Insecure
        );
        // What is not said clearly is never taken for "trust everybody".
        assert_eq!(
            of(&json!({"tls_insecure": "no"})).unwrap().trust,
            Trust::System
        );
        for bad in [
            json!({"tls_pin": "abcd"}),
            json!({"tls_pin": []}),
            json!({"tls_pin": 5}),
            json!({"tls_ca": "ca.pem"}),
            json!({"tls_ca": 1}),
            json!({"tls_name": 1}),
            json!({"tls_insecure": 1, "tls_ca": "/etc/ca.pem"}),
        ] {
            assert!(of(&bad).unwrap_err().contains("nas.vars"), "{bad}");
        }
    }

    #[test]
    fn a_ca_file_without_a_certificate_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let missing = client_config(&Trust::Ca(dir.path().join("none"))).unwrap_err();
        assert!(missing.contains("cannot be read"), "{missing}");
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, "no certificate\n").unwrap();
        let empty = client_config(&Trust::Ca(file)).unwrap_err();
        assert!(empty.contains("no certificate"), "{empty}");
        assert!(client_config(&Trust::Insecure).is_ok());
        assert!(plain_client().build().is_ok());
    }

    #[test]
    fn distrust_is_found_however_deep_it_is() {
        let inner = rustls::Error::General("not this one".into());
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner));
        assert_eq!(distrust(&wrapped).as_deref(), Some("not this one"));
        assert_eq!(distrust(&io::Error::other("reset")), None);
    }
}
