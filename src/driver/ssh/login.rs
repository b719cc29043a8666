//! Connecting and logging in: TCP, key exchange with the check of the host key (RFC 4253), then
//! the methods `publickey`, `password` and `keyboard-interactive` (RFC 4252, RFC 4256).

use std::borrow::Cow;
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use russh::client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use russh::{MethodKind, MethodSet, Preferred, cipher, kex, mac};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::driver::ssh::trust::Trust;
use crate::driver::ssh::watch::{Watch, Watched, locked};
use crate::driver::ssh::{Learn, Limits, Target};

/// Rounds of questions in `keyboard-interactive`: a password, perhaps one more, never a dialogue.
const ROUNDS_MAX: usize = 4;
/// Methods tried in one login; each is tried once.
const METHODS_MAX: usize = 4;
/// A server that says nothing is asked for a sign of life after this time.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Signs of life that may stay away.
const KEEPALIVES_MAX: usize = 3;
/// Nothing at all for this long, also during key exchange: the session's task ends by itself.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// Bytes on their way for one channel. Together with [`MESSAGES`] it bounds what a rude server
/// can make us hold.
const WINDOW: u32 = 256 * 1024;
/// Messages of one channel that wait for their reader.
const MESSAGES: usize = 16;

/// Why there is no connection.
pub(super) enum Refusal {
    /// Trying again at once makes no sense.
    Unreachable(Failure),
    /// The login failed; a busy server refuses now and then.
    Login(Failure),
    /// Only a person can help.
    Final(Failure),
}

/// Shuts the socket down when dropped: the task that reads it ends at once, whatever it waits for.
pub(super) struct Cord(std::net::TcpStream);

impl Drop for Cord {
    fn drop(&mut self) {
        // Fails if the other side was faster.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A connection that is logged in.
pub(super) struct Link {
    pub(super) handle: Handle<Watch>,
    pub(super) cord: Cord,
}

/// Connects and logs in.
pub(super) async fn open(
    target: &Target,
    limits: &Limits,
    trust: &Arc<Mutex<Trust>>,
    watched: &Arc<Watched>,
    learn: &Learn,
) -> Result<Link, Refusal> {
    let (stream, cord) = connect(target, limits).await?;
    let watch = Watch {
        watched: Arc::clone(watched),
        trust: Arc::clone(trust),
        learn: Some(Arc::clone(learn)),
    };
    let dialogue = async {
        let algorithm = locked(trust).algorithm();
        let mut handle = client::connect_stream(config(target, algorithm), stream, watch)
            .await
            .map_err(|error| broken(target, &error))?;
        log_in(target, &mut handle).await?;
        Ok(handle)
    };
    let ended = timeout(limits.login_timeout, dialogue).await;
    if let Some(failure) = locked(&watched.distrust).take() {
        return Err(Refusal::Final(at(target, failure)));
    }
    match ended {
        Ok(Ok(handle)) => Ok(Link { handle, cord }),
        Ok(Err(refusal)) => Err(refusal),
        Err(_) => {
            let ms = limits.login_timeout.as_millis();
            let why = format!("no end of the login within {ms} ms");
            Err(Refusal::Unreachable(lost(target, &why)))
        }
    }
}

/// The key that the server presents; see [`super::host_key`].
pub(super) async fn present(target: &Target, limits: &Limits) -> Result<String, Failure> {
    let refused = |refusal| match refusal {
        Refusal::Unreachable(f) | Refusal::Login(f) | Refusal::Final(f) => f,
    };
    let (stream, _cord) = connect(target, limits).await.map_err(refused)?;
    let watched = Watched::new(Arc::default());
    let watch = Watch {
        watched: Arc::clone(&watched),
        trust: Arc::default(),
        learn: None,
    };
    let algorithm = target.trust.algorithm();
    let exchange = client::connect_stream(config(target, algorithm), stream, watch);
    let ended = timeout(limits.login_timeout, exchange).await;
    let presented = locked(&watched.presented).take();
    match (presented, ended) {
        (Some(line), _) => Ok(line),
        (None, Ok(Err(error))) => Err(refused(broken(target, &error))),
        (None, _) => Err(lost(target, "it presented no host key in time")),
    }
}

async fn connect(target: &Target, limits: &Limits) -> Result<(TcpStream, Cord), Refusal> {
    let Target { host, port, .. } = target;
    let unreachable = |why: String| Refusal::Unreachable(lost(target, &why));
    let connected = TcpStream::connect((host.as_str(), *port));
    let stream = match timeout(limits.connect_timeout, connected).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            let why = format!("cannot connect: {e}; is the NAS up and its SSH server on?");
            return Err(unreachable(why));
        }
        Err(_) => {
            let ms = limits.connect_timeout.as_millis();
            let why = format!("cannot connect within {ms} ms; is a firewall in the way?");
            return Err(unreachable(why));
        }
    };
    // Only slower without it.
    let _ = stream.set_nodelay(true);
    let split = || -> std::io::Result<(TcpStream, Cord)> {
        let stream = stream.into_std()?;
        let cord = Cord(stream.try_clone()?);
        Ok((TcpStream::from_std(stream)?, cord))
    };
    split().map_err(|e| unreachable(format!("the socket cannot be used: {e}")))
}

fn config(target: &Target, known: Option<Algorithm>) -> Arc<client::Config> {
    Arc::new(client::Config {
        window_size: WINDOW,
        channel_buffer_size: MESSAGES,
        preferred: preferred(target.legacy, known),
        inactivity_timeout: Some(SILENCE_MAX),
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVES_MAX,
        nodelay: true,
        ..client::Config::default()
    })
}

/// Algorithms in the order of preference. Those with SHA-1, CBC, 3DES or 1024-bit groups only
/// where the NAS is said to be old.
fn preferred(legacy: bool, known: Option<Algorithm>) -> Preferred {
    let base = Preferred::DEFAULT;
    let (mut kexes, mut keys) = (base.kex.into_owned(), base.key.into_owned());
    let (mut ciphers, mut macs) = (base.cipher.into_owned(), base.mac.into_owned());
    // Before the extension markers, which are no algorithms.
    let at = kexes
        .iter()
        .position(|k| *k == kex::EXTENSION_SUPPORT_AS_CLIENT)
        .unwrap_or(kexes.len());
    let mut more = vec![
        kex::ECDH_SHA2_NISTP256,
        kex::ECDH_SHA2_NISTP384,
        kex::ECDH_SHA2_NISTP521,
    ];
    let sha1 = Algorithm::Rsa { hash: None };
    keys.retain(|k| *k != sha1);
    if legacy {
        more.extend([kex::DH_G14_SHA1, kex::DH_GEX_SHA1, kex::DH_G1_SHA1]);
        keys.push(sha1);
        ciphers.extend([
            cipher::AES_256_CBC,
            cipher::AES_192_CBC,
            cipher::AES_128_CBC,
            cipher::TRIPLE_DES_CBC,
        ]);
        macs.extend([mac::HMAC_SHA1_ETM, mac::HMAC_SHA1]);
    }
    kexes.splice(at..at, more);
    if let Some(known) = known {
        let same = |k: &Algorithm| match (k, &known) {
            (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
            (k, known) => k == known,
        };
        keys.sort_by_key(|k| !same(k));
    }
    Preferred {
        kex: Cow::Owned(kexes),
        key: Cow::Owned(keys),
        cipher: Cow::Owned(ciphers),
        mac: Cow::Owned(macs),
        ..base
    }
}

/// Each method that we can serve and the server offers, once.
async fn log_in(target: &Target, handle: &mut Handle<Watch>) -> Result<(), Refusal> {
    let mut tried: Vec<MethodKind> = Vec::new();
    let mut offered: Option<MethodSet> = None;
    let key = private_key(target)?;
    for _ in 0..METHODS_MAX {
        let possible = |method: &MethodKind| {
            let have = match method {
                MethodKind::PublicKey => key.is_some(),
                _ => !target.password.is_empty(),
            };
            have && !tried.contains(method) && offered.as_ref().is_none_or(|o| o.contains(method))
        };
        let methods = [
            MethodKind::PublicKey,
            MethodKind::Password,
            MethodKind::KeyboardInteractive,
        ];
        let Some(method) = methods.into_iter().find(|m| possible(m)) else {
            break;
        };
        tried.push(method);
        let login = target.login.clone();
        let result = match (method, &key) {
            (MethodKind::PublicKey, Some(key)) => by_key(target, handle, key).await,
            (MethodKind::KeyboardInteractive, _) => interactive(target, handle).await,
            _ => {
                let password = target.password.clone();
                handle.authenticate_password(login, password).await
            }
        };
        match result.map_err(|error| broken(target, &error))? {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure {
                remaining_methods,
                partial_success,
            } => {
                // The same password by another method of the same server is the same refusal.
                let refused_here = method == MethodKind::Password
                    && !partial_success
                    && remaining_methods.contains(&MethodKind::Password);
                if refused_here {
                    tried.push(MethodKind::KeyboardInteractive);
                }
                offered = Some(remaining_methods);
            }
        }
    }
    let words = |methods: &[MethodKind]| {
        let words: Vec<&str> = methods.iter().map(<&str>::from).collect();
        words.join(", ")
    };
    let text = if tried.is_empty() {
        "nas_secret has neither ssh_key nor password for this NAS".to_owned()
    } else {
        format!(
            "the login is refused for {:?} by {}; the server takes {}. Check login, password and ssh_key in nas_secret",
            target.login,
            words(&tried),
            offered.as_deref().map(words).unwrap_or_default()
        )
    };
    let failure = Failure {
        scope: Scope::Nas,
        class: FailureClass::Refused,
        code: Failure::CODE_PERMANENT,
        text,
        parks: true,
    };
    Err(if tried.is_empty() {
        Refusal::Final(at(target, failure))
    } else {
        Refusal::Login(at(target, failure))
    })
}

/// RSA signs with the best hash that the server says it takes; with SHA-1 only for an old one.
async fn by_key(
    target: &Target,
    handle: &mut Handle<Watch>,
    key: &Arc<PrivateKey>,
) -> Result<AuthResult, russh::Error> {
    let mut hashes = vec![None];
    if key.algorithm().is_rsa() {
        // A server that says nothing is older than the question (RFC 8308).
        let said = handle.best_supported_rsa_hash().await?.flatten();
        hashes = vec![said.or(Some(HashAlg::Sha256))];
        if target.legacy {
            hashes.push(None);
        }
    }
    let mut result = AuthResult::Failure {
        remaining_methods: MethodSet::empty(),
        partial_success: false,
    };
    for hash in hashes {
        let signer = PrivateKeyWithHashAlg::new(Arc::clone(key), hash);
        result = handle
            .authenticate_publickey(target.login.clone(), signer)
            .await?;
        match &result {
            AuthResult::Failure {
                partial_success: false,
                ..
            } => {}
            AuthResult::Success | AuthResult::Failure { .. } => break,
        }
    }
    Ok(result)
}

fn private_key(target: &Target) -> Result<Option<Arc<PrivateKey>>, Refusal> {
    if target.key.trim().is_empty() {
        return Ok(None);
    }
    let useless = |why: &str| {
        Refusal::Final(Failure {
            parks: true,
            scope: Scope::Nas,
            ..Failure::permanent(format!(
                "nas_secret.ssh_key {why}; store the private key in OpenSSH form without a passphrase"
            ))
        })
    };
    match russh::keys::decode_secret_key(&target.key, None) {
        Ok(key) if key.is_encrypted() => Err(useless("has a passphrase")),
        Ok(key) => Ok(Some(Arc::new(key))),
        Err(russh::keys::Error::KeyIsEncrypted) => Err(useless("has a passphrase")),
        // The reason could hold a part of the key.
        Err(_) => Err(useless("is no private key that can be read")),
    }
}

/// The password to each hidden question, the login to each visible one.
async fn interactive(
    target: &Target,
    handle: &mut Handle<Watch>,
) -> Result<AuthResult, russh::Error> {
    let mut step = handle
        .authenticate_keyboard_interactive_start(target.login.clone(), None)
        .await?;
    for _ in 0..ROUNDS_MAX {
        match step {
            KeyboardInteractiveAuthResponse::Success => return Ok(AuthResult::Success),
            KeyboardInteractiveAuthResponse::Failure {
                remaining_methods,
                partial_success,
            } => {
                return Ok(AuthResult::Failure {
                    remaining_methods,
                    partial_success,
                });
            }
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                let answers = prompts.iter().map(|prompt| {
                    if prompt.echo {
                        target.login.clone()
                    } else {
                        target.password.clone()
                    }
                });
                step = handle
                    .authenticate_keyboard_interactive_respond(answers.collect())
                    .await?;
            }
        }
    }
    Ok(AuthResult::Failure {
        remaining_methods: MethodSet::empty(),
        partial_success: false,
    })
}

/// The connection broke before the login was decided.
fn broken(target: &Target, error: &russh::Error) -> Refusal {
    match error {
        russh::Error::NoCommonAlgo { kind, theirs, .. } => {
            let hint = if target.legacy {
                "no further ones are known here"
            } else {
                "if it is that old, put \"ssh_legacy\": true into nas.vars"
            };
            let theirs: Vec<String> = theirs.iter().map(|name| one_line(name)).collect();
            Refusal::Final(at(
                target,
                Failure {
                    scope: Scope::Nas,
                    parks: true,
                    ..Failure::permanent(format!(
                        "no common algorithm ({kind:?}): the server offers {}; {hint}",
                        theirs.join(", ")
                    ))
                },
            ))
        }
        error => {
            let why = format!("broke before the login: {}", one_line(&error.to_string()));
            Refusal::Login(lost(target, &why))
        }
    }
}

/// A failure of the connection, with the place.
pub(super) fn lost(target: &Target, why: &str) -> Failure {
    at(target, Failure::transport(why))
}

fn at(target: &Target, failure: Failure) -> Failure {
    let Target { host, port, .. } = target;
    Failure {
        text: format!("SSH at {host}:{port}: {}", failure.text),
        ..failure
    }
}

/// Longest text of a server that goes into an error, characters.
const TOLD_MAX: usize = 300;

/// What a server says of itself, made harmless.
pub(super) fn one_line(text: &str) -> String {
    let line = text.chars().take(TOLD_MAX);
    let line: String = line.map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.trim().to_owned()
}
