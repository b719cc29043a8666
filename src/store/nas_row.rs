//! One row of the billing's `nas`, checked: both stores read it as texts, so that a bad value
//! affects that NAS alone and is told in words.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::nas::{BadNas, Forks, Mode, Nas, NasChange, NasId, NasState, OnError};

/// Longest deadline of one attempt that a row may ask for, ms (24 h).
const TIMEOUT_MAX_MS: i64 = 86_400_000;

/// Name under which both stores read what the operator said instead of `nas.mode`.
pub(super) const OPERATORS_MODE: &str = "operators_mode";

/// NAS, begin and end of the pause (wall ms), its reason, forks, mode, and the learned host key
/// of a row of `nas_state`.
pub(super) type StateRow = (
    i64,
    Option<i64>,
    Option<i64>,
    String,
    Option<i64>,
    Option<String>,
    Option<String>,
);

/// What a row of `nas_state` says.
pub(super) fn state_from(row: StateRow) -> (NasId, NasState) {
    let (id, paused_from_ms, paused_until_ms, pause_reason, forks, mode, ssh_host_key) = row;
    (
        NasId(id),
        NasState {
            paused_from_ms,
            paused_until_ms,
            pause_reason,
            forks,
            mode: operators_mode(mode),
            ssh_host_key,
        },
    )
}

/// What a change writes, and over which columns of a row that is there already.
pub(super) fn changed(change: &NasChange) -> (NasState, &'static str) {
    let mut state = NasState::default();
    state.apply(change);
    let columns = match change {
        NasChange::Pause { .. } | NasChange::Resume => {
            "paused_from = excluded.paused_from, paused_until = excluded.paused_until,
             pause_reason = excluded.pause_reason"
        }
        NasChange::Forks(_) => "forks = excluded.forks",
        NasChange::Mode(_) => "mode = excluded.mode",
    };
    (state, columns)
}

/// Reads it; a word of a newer version means nothing here.
pub(super) fn operators_mode(text: Option<String>) -> Option<Mode> {
    text.and_then(|text| Mode::parse(Some(&text)).ok())
}

/// Whether it may be an address or a host name.
pub fn is_host(ip: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '%');
    !ip.is_empty() && ip.chars().all(plain)
}

/// Builds a NAS from its columns as texts; NULL is none.
pub(super) fn nas_from(id: i64, column: impl Fn(&str) -> Option<String>) -> Result<Nas, BadNas> {
    let ip = column("ip")
        .map(|ip| ip.trim().to_owned())
        .unwrap_or_default();
    let bad = |reason: String| BadNas {
        id: NasId(id),
        ip: ip.clone(),
        reason,
    };
    if !is_host(&ip) {
        return Err(bad(format!(
            "ip {ip:?} is neither an address nor a host name"
        )));
    }
    let number = |name: &str| -> Result<Option<f64>, BadNas> {
        match column(name).filter(|t| !t.trim().is_empty()) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<f64>() {
                Ok(n) if n.is_finite() => Ok(Some(n)),
                _ => Err(bad(format!("{name} is {text:?}, expected a number"))),
            },
        }
    };
    let port = |name: &str| -> Result<Option<u16>, BadNas> {
        match number(name)? {
            None => Ok(None),
            Some(n) if n.fract() == 0.0 && (1.0..=65_535.0).contains(&n) =>
            {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "range checked"
                )]
                Ok(Some(n as u16))
            }
            Some(n) => Err(bad(format!("{name} is {n}, expected 1..65535"))),
        }
    };
    let whole = |n: f64| -> i64 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "saturates; ranges are checked by the caller"
        )]
        {
            n as i64
        }
    };
    let (forks, forks_warning) = match number("forks")? {
        None => (Forks::DEFAULT, None),
        Some(n) => Forks::clamped(whole(n)),
    };
    let vars = match column("vars").filter(|t| !t.trim().is_empty()) {
        None => Map::new(),
        Some(text) => match serde_json::from_str::<Value>(&text) {
            Ok(Value::Object(map)) => map,
            Ok(_) => return Err(bad("vars is not a JSON object".to_owned())),
            Err(e) => return Err(bad(format!("vars is not JSON: {e}"))),
        },
    };
    let timeout = match number("timeout_ms")? {
        None => None,
        Some(n) if (1..=TIMEOUT_MAX_MS).contains(&whole(n)) => {
            Some(Duration::from_millis(u64::try_from(whole(n)).unwrap_or(1)))
        }
        Some(n) => {
            return Err(bad(format!(
                "timeout_ms is {n}, expected 1..{TIMEOUT_MAX_MS}"
            )));
        }
    };
    let max_sessions =
        number("max_sessions")?.map(|n| u16::try_from(whole(n).clamp(1, 100)).unwrap_or(1));
    let max_rate = match number("max_rate")? {
        Some(n) if n <= 0.0 => {
            return Err(bad(format!(
                "max_rate is {n}, expected more than 0 commands per second"
            )));
        }
        other => other,
    };
    let api_tls = column("api_tls").is_some_and(|t| {
        matches!(
            t.trim().to_ascii_lowercase().as_str(),
            "1" | "t" | "true" | "yes"
        )
    });
    let text = |name: &str| {
        column(name)
            .map(|t| t.trim().to_owned())
            .filter(|t| !t.is_empty())
    };
    Ok(Nas {
        id: NasId(id),
        name: column("name").unwrap_or_default(),
        mode: Mode::parse(column("mode").as_deref())
            .map_err(&bad)?
            .overridden(operators_mode(column(OPERATORS_MODE))),
        forks,
        forks_warning,
        oss_path: text("oss_path"),
        script_name: text("script_name"),
        api_port: port("api_port")?,
        api_tls,
        ssh_port: port("ssh_port")?,
        ssh_host_key: text("ssh_host_key"),
        ssh_known_key: None,
        telnet_port: port("telnet_port")?,
        coa_port: port("coa_port")?,
        http_url: text("http_url"),
        max_sessions,
        max_rate,
        timeout,
        on_error: OnError::parse(column("on_error").as_deref()).map_err(&bad)?,
        vars,
        ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pairs: &[(&str, &str)]) -> Result<Nas, BadNas> {
        nas_from(7, |name| {
            pairs.iter().find(|p| p.0 == name).map(|p| p.1.to_owned())
        })
    }

    #[test]
    fn a_bad_value_is_told_and_a_good_row_is_read() {
        let good = row(&[
            ("ip", "10.0.0.1"),
            ("name", "A"),
            ("forks", "101"),
            ("api_port", "8728"),
            ("vars", "{\"a\":1}"),
        ]);
        let nas = good.unwrap();
        assert_eq!(
            (nas.forks.get(), nas.api_port, nas.mode),
            (100, Some(8728), Mode::Active)
        );
        assert!(nas.forks_warning.is_some());
        for (name, value) in [
            ("mode", "maybe"),
            ("api_port", "70000"),
            ("vars", "[1]"),
            ("vars", "{"),
            ("on_error", "panic"),
            ("timeout_ms", "0"),
            ("forks", "many"),
            ("max_rate", "-1"),
        ] {
            let error = row(&[("ip", "10.0.0.1"), (name, value)]).unwrap_err();
            assert!(error.reason.contains(name), "{name}: {}", error.reason);
        }
        let mode = |billing: &str, operator: &str| {
            let row = row(&[
                ("ip", "10.0.0.1"),
                ("mode", billing),
                (OPERATORS_MODE, operator),
            ]);
            row.unwrap().mode
        };
        assert_eq!(mode("observe", "active"), Mode::Active);
        assert_eq!(mode("active", "observe"), Mode::Observe);
        assert_eq!(
            mode("off", "active"),
            Mode::Off,
            "the billing's off is kept"
        );
        assert!(row(&[("ip", "$(reboot)")]).is_err());
        assert!(row(&[]).is_err());
    }
}
