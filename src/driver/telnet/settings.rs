//! What the row of a NAS says of its telnet: where it is, how many sessions, how many logins.

use std::time::Duration;

use serde_json::Value;

use super::{Limits, Target};
use crate::attempt::Failure;
use crate::driver::dialogue::{Credentials, Manners};
use crate::driver::leases::Rules;
use crate::driver::sessions::{CONNECT_TIMEOUT, CONNECTIONS, LINGER, Sessions, logins_per_minute};
use crate::nas::{Nas, NasSecret};

/// TCP port of telnet (RFC 854).
pub const PORT: u16 = 23;
/// For the dialogue from the first byte to the prompt: some devices ask a RADIUS server first,
/// which may ask a second one when the first is down.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Target and bounds of `nas`. A setting that cannot be obeyed is a failure of the NAS.
pub fn of(nas: &Nas, secret: &NasSecret, manners: Manners) -> Result<(Target, Limits), Failure> {
    let target = Target {
        host: nas.ip.clone(),
        port: Sessions::telnet_port(nas),
        credentials: Credentials {
            login: secret.login.clone(),
            password: secret.password.clone(),
            enable_password: secret.enable_password.clone(),
        },
        manners,
    };
    let logins = u32::try_from(logins_per_minute(nas)?).unwrap_or(u32::MAX);
    let limits = Limits {
        rules: Rules {
            sessions: sessions(nas),
            logins_per_minute: f64::from(logins),
            linger: LINGER,
        },
        // Half of the NAS's own time-out: what cannot be reached shall be told as that.
        connect_timeout: nas
            .timeout
            .map_or(CONNECT_TIMEOUT, |t| (t / 2).min(CONNECT_TIMEOUT)),
        login_timeout: LOGIN_TIMEOUT,
    };
    Ok((target, limits))
}

/// Sessions on the command line of `nas`: `max_sessions` without the `spare_sessions` of
/// `nas.vars`, which stay free for people; one at least.
pub fn sessions(nas: &Nas) -> usize {
    for_events(nas, CONNECTIONS)
}

/// Sessions that events may have: `max_sessions` (else `usual`) without the `spare_sessions` of
/// `nas.vars`, which stay free for people; one at least.
pub(in crate::driver) fn for_events(nas: &Nas, usual: u16) -> usize {
    let spare = match nas.vars.get("spare_sessions") {
        Some(Value::Number(n)) => n.as_u64().unwrap_or(0),
        Some(Value::Bool(set)) => u64::from(*set),
        _ => 0,
    };
    usize::from(nas.max_sessions.unwrap_or(usual).clamp(1, 100))
        .saturating_sub(usize::try_from(spare).unwrap_or(usize::MAX))
        .max(1)
}
