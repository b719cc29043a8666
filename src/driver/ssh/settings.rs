//! What the row of a NAS says of its SSH: where it is, how it is logged in to, how many channels.

use std::time::Duration;

use super::trust::Trust;
use super::{Limits, Target};
use crate::attempt::Failure;
use crate::driver::dialogue::Manners;
use crate::driver::sessions::{CONNECT_TIMEOUT, LINGER, Sessions, logins_per_minute};
use crate::driver::telnet::settings::for_events;
use crate::nas::{Nas, NasSecret};

/// TCP port of SSH (RFC 4251 section 4).
pub const PORT: u16 = 22;
/// Channels on an SSH server that is not known: sshd allows 10 by default and counts a session
/// until its process is reaped, so less than half of that is never refused.
const CHANNELS: u16 = 4;
/// For key exchange and login: an old device needs seconds for its arithmetic.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How `nas` is reached over SSH, without the host key. `nas.vars` may say `ssh_legacy` (weak
/// algorithms too) and `logins_per_minute`.
pub fn of(nas: &Nas, secret: &NasSecret) -> Result<(Target, Limits), Failure> {
    let legacy = match nas.vars.get("ssh_legacy") {
        None => false,
        Some(value) => value.as_bool().ok_or_else(|| {
            Failure::setting(format!(
                "vars.ssh_legacy is {value}, expected true or false"
            ))
        })?,
    };
    let logins = logins_per_minute(nas)?;
    let target = Target {
        host: nas.ip.clone(),
        port: Sessions::ssh_port(nas),
        login: secret.login.clone(),
        password: secret.password.clone(),
        key: secret.ssh_key.clone(),
        enable_password: secret.enable_password.clone(),
        manners: manners(nas)?,
        trust: Trust::default(),
        legacy,
    };
    let limits = Limits {
        channels: channels(nas),
        connect_timeout: nas
            .timeout
            .map_or(CONNECT_TIMEOUT, |t| t.min(CONNECT_TIMEOUT)),
        // Not bound by the attempt: a login goes on for whoever comes next.
        login_timeout: LOGIN_TIMEOUT,
        linger: LINGER,
        logins_per_minute: logins,
    };
    Ok((target, limits))
}

/// Channels on the SSH server of `nas`: `max_sessions` without the `spare_sessions`.
pub fn channels(nas: &Nas) -> usize {
    for_events(nas, CHANNELS)
}

/// How a dialogue with `nas` is led, by its `nas.vars`.
fn manners(nas: &Nas) -> Result<Manners, Failure> {
    Manners::of(|name| Ok(nas.vars.get(name).cloned()))
        .map_err(|why| Failure::setting(format!("nas.vars: {why}")))
}
