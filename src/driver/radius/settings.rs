//! What `nas.vars` and the secrets of a NAS say of speaking RADIUS to it.

use super::exchange::Manner;
use super::{PORT, Target};
use crate::nas::{Nas, NasSecret};

/// Switch in `nas.vars`: `on` (default), `off` = not sent, `require` = replies must have one.
const MESSAGE_AUTHENTICATOR: &str = "radius_message_authenticator";
/// Switch in `nas.vars`: `on` (default), `off` = not sent.
const EVENT_TIMESTAMP: &str = "radius_event_timestamp";

/// Where and how `nas` is spoken to, and what is wrong with that, if something is.
pub fn of(nas: &Nas, secret: &NasSecret) -> (Target, Option<String>) {
    let (manner, wrong) = match manner(nas, secret) {
        Ok(manner) => (manner, None),
        Err((manner, reason)) => (manner, Some(reason)),
    };
    let target = Target {
        host: nas.ip.clone(),
        port: nas.coa_port.unwrap_or(PORT),
        manner,
    };
    (target, wrong)
}

/// How a NAS is spoken to by RADIUS; the switches are in `nas.vars`.
fn manner(nas: &Nas, secret: &NasSecret) -> Result<Manner, (Manner, String)> {
    let mut manner = Manner {
        secret: secret.coa_secret.clone().into_bytes(),
        message_authenticator: true,
        require_message_authenticator: false,
        event_timestamp: true,
    };
    let word = |name: &str| {
        let value = nas.vars.get(name)?;
        Some(match value.as_bool() {
            Some(on) => if on { "on" } else { "off" }.to_owned(),
            None => value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        })
    };
    match word(MESSAGE_AUTHENTICATOR).as_deref() {
        None | Some("" | "on") => {}
        Some("off") => manner.message_authenticator = false,
        Some("require") => manner.require_message_authenticator = true,
        Some(other) => {
            let reason =
                format!("nas.vars: {MESSAGE_AUTHENTICATOR} is {other:?}; write on, off or require");
            return Err((manner, reason));
        }
    }
    match word(EVENT_TIMESTAMP).as_deref() {
        None | Some("" | "on") => {}
        Some("off") => manner.event_timestamp = false,
        Some(other) => {
            let reason = format!("nas.vars: {EVENT_TIMESTAMP} is {other:?}; write on or off");
            return Err((manner, reason));
        }
    }
    Ok(manner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::nas::NasId;

    fn nas() -> Nas {
        Nas::new(NasId(7), "t", "127.0.0.1")
    }

    #[test]
    fn everything_that_matters_is_in_the_target() {
        let secret = NasSecret {
            coa_secret: "servicemode".into(),
            ..NasSecret::default()
        };
        let usual = of(&nas(), &secret);
        assert_eq!(usual, of(&nas(), &secret));
        assert_eq!((usual.0.port, &usual.1), (PORT, &None));
        let changes: [fn(&mut Nas, &mut NasSecret); 6] = [
            |n, _| n.ip = "127.0.0.2".into(),
            |n, _| n.coa_port = Some(1700),
            |n, _| drop(n.vars.insert(MESSAGE_AUTHENTICATOR.into(), json!("off"))),
            |n, _| {
                drop(
                    n.vars
                        .insert(MESSAGE_AUTHENTICATOR.into(), json!("require")),
                )
            },
            |n, _| drop(n.vars.insert(EVENT_TIMESTAMP.into(), json!(false))),
            |_, s| s.coa_secret = "c".into(),
        ];
        for change in changes {
            let (mut nas, mut secret) = (nas(), secret.clone());
            change(&mut nas, &mut secret);
            assert_ne!(of(&nas, &secret), usual);
        }
        for (name, said) in [
            (MESSAGE_AUTHENTICATOR, "on, off or require"),
            (EVENT_TIMESTAMP, "on or off"),
        ] {
            let mut nas = nas();
            nas.vars.insert(name.into(), json!("maybe"));
            let wrong = of(&nas, &secret).1.unwrap();
            assert!(wrong.contains(name) && wrong.contains(said), "{wrong}");
        }
    }
}
