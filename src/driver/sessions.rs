//! The pooled sessions of every NAS, shared by its forks; replaced when address or
//! credentials change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::driver::mikrotik::{Limits, Mikrotik, Report, Target};
use crate::nas::{Nas, NasId, NasSecret};

/// TCP port of the RouterOS API (MikroTik manual, "Services").
const API_PORT: u16 = 8728;
/// The same over TLS.
const API_TLS_PORT: u16 = 8729;
/// Connections of a NAS that says nothing of `max_sessions`.
const CONNECTIONS: u16 = 3;
/// For TCP connect and login, unless the NAS's own time-out is shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is closed after this time.
const LINGER: Duration = Duration::from_secs(60);

/// One per daemon.
#[derive(Default)]
pub struct Sessions {
    mikrotik: Mutex<BTreeMap<NasId, Kept>>,
}

struct Kept {
    target: Target,
    limits: Limits,
    tls: bool,
    sessions: Arc<Mikrotik>,
}

impl Sessions {
    /// The RouterOS sessions of `nas`: the same object as long as address, port, limits and
    /// credentials stay the same. A replaced one ends when its last command has ended.
    pub fn mikrotik(&self, nas: &Nas, secret: &NasSecret) -> Arc<Mikrotik> {
        let port = if nas.api_tls { API_TLS_PORT } else { API_PORT };
        let target = Target {
            host: nas.ip.clone(),
            port: nas.api_port.unwrap_or(port),
            login: secret.login.clone(),
            password: secret.password.clone(),
        };
        let connections = nas.max_sessions.unwrap_or(CONNECTIONS).clamp(1, 100);
        let limits = Limits {
            connections: usize::from(connections),
            connect_timeout: nas
                .timeout
                .map_or(CONNECT_TIMEOUT, |t| t.min(CONNECT_TIMEOUT)),
            linger: LINGER,
        };
        let mut all = self.all();
        if let Some(kept) = all.get(&nas.id)
            && kept.target == target
            && kept.limits == limits
            && kept.tls == nas.api_tls
        {
            return Arc::clone(&kept.sessions);
        }
        let sessions = Arc::new(if nas.api_tls {
            Mikrotik::broken(target.clone(), limits.clone(), no_tls())
        } else {
            Mikrotik::new(target.clone(), limits.clone())
        });
        let kept = Kept {
            target,
            limits,
            tls: nas.api_tls,
            sessions: Arc::clone(&sessions),
        };
        all.insert(nas.id, kept);
        sessions
    }

    /// Lets go of the sessions of every NAS that is not in `wanted`.
    pub fn keep_only(&self, wanted: &BTreeSet<NasId>) {
        self.all().retain(|id, _| wanted.contains(id));
    }

    /// Connections and commands in flight of each NAS that has been spoken to.
    pub fn report(&self) -> BTreeMap<NasId, Report> {
        let all = self.all();
        all.iter()
            .map(|(id, kept)| (*id, kept.sessions.report()))
            .collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<NasId, Kept>> {
        self.mikrotik.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A setting of the NAS that cannot be obeyed: its events must not die of it.
fn no_tls() -> Failure {
    Failure {
        scope: Scope::Nas,
        class: FailureClass::Permanent,
        code: Failure::CODE_PERMANENT,
        text: "api_tls is set, but the RouterOS API over TLS is not supported yet; \
               use the plain API on a management network, or set api_tls = 0"
            .to_owned(),
        parks: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nas::{Forks, Mode};
    use serde_json::Map;

    fn nas() -> Nas {
        Nas {
            id: NasId(7),
            name: "t".into(),
            ip: "127.0.0.1".into(),
            mode: Mode::Active,
            forks: Forks::DEFAULT,
            forks_warning: None,
            oss_path: None,
            script_name: None,
            api_port: Some(1),
            api_tls: false,
            ssh_port: None,
            ssh_host_key: None,
            telnet_port: None,
            coa_port: None,
            http_url: None,
            max_sessions: None,
            max_rate: None,
            timeout: None,
            on_error: None,
            vars: Map::new(),
        }
    }

    #[test]
    fn replaced_only_when_something_that_matters_changed() {
        let sessions = Sessions::default();
        let secret = NasSecret {
            login: "a".into(),
            password: "b".into(),
            ..NasSecret::default()
        };
        let first = sessions.mikrotik(&nas(), &secret);
        let mut renamed = nas();
        renamed.name = "other".into();
        assert!(Arc::ptr_eq(&first, &sessions.mikrotik(&renamed, &secret)));
        let changes: [fn(&mut Nas, &mut NasSecret); 6] = [
            |n, _| n.ip = "127.0.0.2".into(),
            |n, _| n.api_port = None,
            |n, _| n.max_sessions = Some(9),
            |n, _| n.timeout = Some(Duration::from_secs(1)),
            |_, s| s.login = "c".into(),
            |_, s| s.password = "c".into(),
        ];
        for change in changes {
            let before = sessions.mikrotik(&nas(), &secret);
            let (mut nas, mut secret) = (nas(), secret.clone());
            change(&mut nas, &mut secret);
            let after = sessions.mikrotik(&nas, &secret);
            assert!(!Arc::ptr_eq(&before, &after));
        }
        assert_eq!(sessions.report().len(), 1);
        sessions.keep_only(&BTreeSet::new());
        assert!(sessions.report().is_empty());
    }

    #[tokio::test]
    async fn tls_is_refused_with_a_hint() {
        let mut nas = nas();
        nas.api_tls = true;
        let sessions = Sessions::default().mikrotik(&nas, &NasSecret::default());
        let command = crate::driver::mikrotik::Command {
            path: "/system/identity/print".into(),
            ..Default::default()
        };
        let failure = sessions
            .talk(&command, Duration::from_secs(1))
            .await
            .unwrap_err();
        assert_eq!(failure.class, FailureClass::Permanent);
        assert_eq!((failure.scope, failure.parks), (Scope::Nas, true));
        assert!(failure.text.contains("api_tls = 0"));
    }
}
