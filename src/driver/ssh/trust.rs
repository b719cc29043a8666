//! Whether the key that a server presents is the one that is meant (RFC 4251 section 4.1).
//! Nothing is believed by default: a NAS says which key it has, or that the first one seen is
//! to be learned.

use russh::keys::{HashAlg, PublicKey};

use crate::attempt::{Failure, FailureClass, Scope};

/// The word in `nas.ssh_host_key` that has the first key learned.
pub const TOFU: &str = "tofu";
/// How a pinned fingerprint begins, as `ssh-keygen -l` prints it.
const PRINT: &str = "SHA256:";
/// Characters of a SHA-256 fingerprint in base64 without padding.
const PRINT_CHARS: usize = 43;

/// One key that is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pin {
    /// The key itself.
    Key(Box<PublicKey>),
    /// Its fingerprint, `SHA256:…`.
    Print(String),
}

/// Which host keys of one NAS are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// None: the operator has not said.
    #[default]
    Nobody,
    /// Whichever comes first; it is then kept.
    First,
    /// These.
    Pinned(Pins),
    /// Any: the caller typed the address and looks at the fingerprint himself.
    Anybody,
}

/// Keys that are believed, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    pins: Vec<Pin>,
    /// Learned by us, not written by the operator.
    learned: bool,
}

impl Trust {
    /// From `nas.ssh_host_key` and what was learned before. The column holds nothing, `tofu`,
    /// or one key per line: `SHA256:…`, or a public key as in `ssh_host_*_key.pub`.
    pub fn of(column: Option<&str>, known: Option<&str>) -> Result<Self, String> {
        let column = column.map(str::trim).unwrap_or_default();
        let (text, learned) = match column {
            "" => return Ok(Self::Nobody),
            TOFU => match known.map(str::trim).filter(|k| !k.is_empty()) {
                None => return Ok(Self::First),
                Some(known) => (known, true),
            },
            pinned => (pinned, false),
        };
        let pins: Result<Vec<Pin>, String> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(pin)
            .collect();
        Ok(Self::Pinned(Pins {
            pins: pins?,
            learned,
        }))
    }

    /// From now on this key alone.
    pub(super) fn learned(key: &PublicKey) -> Self {
        let bare = PublicKey::new(key.key_data().clone(), "");
        Self::Pinned(Pins {
            pins: vec![Pin::Key(Box::new(bare))],
            learned: true,
        })
    }

    /// Judges a key: `Ok(true)` = believed and to be learned.
    pub(super) fn judge(&self, key: &PublicKey) -> Result<bool, Failure> {
        match self {
            Self::Anybody => Ok(false),
            Self::First => Ok(true),
            Self::Nobody => Err(distrust(format!(
                "the host key is not known: it is {}. Compare it on the NAS (ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub), \
                 then write it, or the word {TOFU} to believe the first one, into nas.ssh_host_key",
                shown(key)
            ))),
            Self::Pinned(pins) if pins.pins.iter().any(|pin| pin.is(key)) => Ok(false),
            Self::Pinned(pins) => {
                let known: Vec<String> = pins.pins.iter().map(Pin::shown).collect();
                let how = if pins.learned { "learned" } else { "pinned" };
                Err(distrust(format!(
                    "the host key has changed: {how} is {}, the server shows {}. The NAS was replaced, or somebody stands in between; \
                     nothing was sent. `nas rekey` shows both and takes the new one",
                    known.join(" or "),
                    shown(key)
                )))
            }
        }
    }

    /// Algorithm of a believed key, to be asked for first: a server with several keys then shows
    /// the one that is known.
    pub(super) fn algorithm(&self) -> Option<russh::keys::Algorithm> {
        match self {
            Self::Pinned(pins) => pins.pins.iter().find_map(|pin| match pin {
                Pin::Key(key) => Some(key.algorithm()),
                Pin::Print(_) => None,
            }),
            Self::Nobody | Self::First | Self::Anybody => None,
        }
    }
}

impl Pin {
    fn is(&self, key: &PublicKey) -> bool {
        match self {
            Self::Key(pinned) => pinned.key_data() == key.key_data(),
            Self::Print(print) => *print == fingerprint(key),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Key(key) => shown(key),
            Self::Print(print) => print.clone(),
        }
    }
}

fn pin(line: &str) -> Result<Pin, String> {
    if let Some(hash) = line.strip_prefix(PRINT) {
        let hash = hash.trim_end_matches('=');
        let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
        return if hash.len() == PRINT_CHARS && hash.chars().all(base64) {
            Ok(Pin::Print(format!("{PRINT}{hash}")))
        } else {
            Err(format!(
                "ssh_host_key {line:?} is not a SHA-256 fingerprint of {PRINT_CHARS} characters"
            ))
        };
    }
    PublicKey::from_openssh(line)
        .map(|key| Pin::Key(Box::new(key)))
        .map_err(|_| {
            format!(
                "ssh_host_key {line:?} is neither {TOFU}, nor {PRINT}…, nor a public key like 'ssh-ed25519 AAAA…'"
            )
        })
}

/// `SHA256:…`
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Type and fingerprint, for people.
pub fn shown(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), fingerprint(key))
}

/// The form in which a key is learned: without its comment, which the server does not prove.
pub fn line(key: &PublicKey) -> String {
    let bare = PublicKey::new(key.key_data().clone(), "");
    bare.to_openssh().unwrap_or_else(|_| fingerprint(key))
}

/// Only a person can help.
fn distrust(text: String) -> Failure {
    Failure {
        scope: Scope::Nas,
        class: FailureClass::Permanent,
        code: Failure::CODE_PERMANENT,
        text,
        parks: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ a@nas";
    const B: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_in_the_column_believes_no_other_key(text in "(SHA256:|ssh-ed25519 |tofu)?[ -~\\n]{0,80}") {
            if let Ok(trust) = Trust::of(Some(&text), None) {
                let first = trust == Trust::First;
                proptest::prop_assert_eq!(trust.judge(&key(A)).is_ok(), first);
            }
        }
    }

    #[test]
    fn nothing_is_believed_by_default() {
        let trust = Trust::of(None, Some(A)).unwrap();
        let refused = trust.judge(&key(A)).unwrap_err();
        assert!(refused.parks, "{refused}");
        assert_eq!(refused.scope, Scope::Nas);
        assert!(refused.text.contains("SHA256:"), "{refused}");
        assert!(refused.text.contains("nas.ssh_host_key"), "{refused}");
    }

    #[test]
    fn the_first_is_learned_and_another_is_told() {
        let trust = Trust::of(Some("tofu"), None).unwrap();
        assert_eq!(trust.judge(&key(A)), Ok(true));
        let learned = line(&key(A));
        assert!(!learned.contains("a@nas"), "{learned}");
        let trust = Trust::of(Some(" tofu "), Some(&learned)).unwrap();
        assert_eq!(trust.judge(&key(A)), Ok(false));
        let changed = trust.judge(&key(B)).unwrap_err();
        assert!(changed.parks, "{changed}");
        for print in [fingerprint(&key(A)), fingerprint(&key(B))] {
            assert!(changed.text.contains(&print), "{changed}");
        }
    }

    #[test]
    fn pins_are_keys_or_fingerprints() {
        let print = fingerprint(&key(A));
        for pinned in [A.to_owned(), print.clone(), format!("{B}\n{print}\n")] {
            let trust = Trust::of(Some(&pinned), Some(B)).unwrap();
            assert_eq!(trust.judge(&key(A)), Ok(false), "{pinned}");
        }
        // What was learned does not widen what is pinned.
        let trust = Trust::of(Some(A), Some(B)).unwrap();
        assert!(trust.judge(&key(B)).is_err());
        for wrong in ["yes", "SHA256:short", "SHA256:", "ssh-ed25519 AAAA"] {
            let reason = Trust::of(Some(wrong), None).unwrap_err();
            assert!(reason.contains(wrong), "{reason}");
        }
    }
}
