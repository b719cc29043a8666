//! The pooled sessions of every NAS, shared by its forks; replaced when address or
//! credentials change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::driver::http::{self, Auth, Http};
use crate::driver::mikrotik::{Limits, Mikrotik, Report, Target};
use crate::driver::radius::exchange::Manner;
use crate::driver::radius::{self, Radius};
use crate::driver::tls;
use crate::nas::{Nas, NasId, NasSecret};

/// TCP port of the RouterOS API (MikroTik manual, "Services").
pub const API_PORT: u16 = 8728;
/// The same over TLS.
pub const API_TLS_PORT: u16 = 8729;
/// Connections of a NAS that says nothing of `max_sessions`.
const CONNECTIONS: u16 = 3;
/// For TCP connect and login, unless the NAS's own time-out is shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is closed after this time.
const LINGER: Duration = Duration::from_secs(60);

/// Switch in `nas.vars`: `on` (default), `off` = not sent, `require` = replies must have one.
const MESSAGE_AUTHENTICATOR: &str = "radius_message_authenticator";
/// Switch in `nas.vars`: `on` (default), `off` = not sent.
const EVENT_TIMESTAMP: &str = "radius_event_timestamp";

/// One per daemon.
#[derive(Default)]
pub struct Sessions {
    mikrotik: Mutex<BTreeMap<NasId, Kept>>,
    http: Mutex<BTreeMap<NasId, KeptHttp>>,
    radius: Mutex<BTreeMap<NasId, KeptRadius>>,
}

struct KeptRadius {
    target: radius::Target,
    wrong: Option<String>,
    sessions: Arc<Radius>,
}

struct Kept {
    target: Target,
    limits: Limits,
    tls: Option<Result<tls::Settings, String>>,
    sessions: Arc<Mikrotik>,
}

struct KeptHttp {
    target: Result<http::Target, String>,
    limits: http::Limits,
    sessions: Arc<Http>,
}

impl Sessions {
    /// The RouterOS sessions of `nas`: the same object as long as address, port, limits and
    /// credentials stay the same. A replaced one ends when its last command has ended.
    pub fn mikrotik(&self, nas: &Nas, secret: &NasSecret) -> Arc<Mikrotik> {
        let target = Target {
            host: nas.ip.clone(),
            port: Self::api_port(nas),
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
        let tls = nas.api_tls.then(|| tls::Settings::of(&nas.vars));
        let mut all = self.all();
        if let Some(kept) = all.get(&nas.id)
            && kept.target == target
            && kept.limits == limits
            && kept.tls == tls
        {
            return Arc::clone(&kept.sessions);
        }
        let sessions = Arc::new(match &tls {
            None => Mikrotik::new(target.clone(), limits.clone()),
            Some(Ok(settings)) => Mikrotik::over_tls(target.clone(), limits.clone(), settings),
            Some(Err(why)) => Mikrotik::broken(target.clone(), limits.clone(), why),
        });
        let kept = Kept {
            target,
            limits,
            tls,
            sessions: Arc::clone(&sessions),
        };
        all.insert(nas.id, kept);
        sessions
    }

    /// TCP port of the RouterOS API of `nas`.
    pub fn api_port(nas: &Nas) -> u16 {
        let usual = if nas.api_tls { API_TLS_PORT } else { API_PORT };
        nas.api_port.unwrap_or(usual)
    }

    /// The HTTP connections of `nas`, kept in the same way.
    pub fn http(&self, nas: &Nas, secret: &NasSecret) -> Arc<Http> {
        let target = http_target(nas, secret);
        let connections = nas.max_sessions.unwrap_or(CONNECTIONS).clamp(1, 100);
        let limits = http::Limits {
            connections: usize::from(connections),
            // Half of the NAS's own time-out: what cannot be reached shall be told as that, and
            // not as an answer that did not come.
            connect_timeout: nas
                .timeout
                .map_or(CONNECT_TIMEOUT, |t| (t / 2).min(CONNECT_TIMEOUT)),
            linger: LINGER,
        };
        let mut all = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = all.get(&nas.id)
            && kept.target == target
            && kept.limits == limits
        {
            return Arc::clone(&kept.sessions);
        }
        let sessions = Arc::new(match &target {
            Ok(target) => Http::new(target, &limits),
            Err(why) => Http::broken(why.clone()),
        });
        let kept = KeptHttp {
            target,
            limits,
            sessions: Arc::clone(&sessions),
        };
        all.insert(nas.id, kept);
        sessions
    }

    /// The RADIUS sockets of `nas`: the same object as long as address, port, secret and
    /// switches stay the same.
    pub fn radius(&self, nas: &Nas, secret: &NasSecret) -> Arc<Radius> {
        let (manner, wrong) = match manner(nas, secret) {
            Ok(manner) => (manner, None),
            Err((manner, reason)) => (manner, Some(reason)),
        };
        let target = radius::Target {
            host: nas.ip.clone(),
            port: nas.coa_port.unwrap_or(radius::PORT),
            manner,
        };
        let mut all = self.radius.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = all.get(&nas.id)
            && kept.target == target
            && kept.wrong == wrong
        {
            return Arc::clone(&kept.sessions);
        }
        let sessions = Arc::new(match &wrong {
            Some(reason) => Radius::broken(target.clone(), setting(reason.clone())),
            None => Radius::new(target.clone()),
        });
        let kept = KeptRadius {
            target,
            wrong,
            sessions: Arc::clone(&sessions),
        };
        all.insert(nas.id, kept);
        sessions
    }

    /// Lets go of the sessions of every NAS that is not in `wanted`.
    pub fn keep_only(&self, wanted: &BTreeSet<NasId>) {
        self.all().retain(|id, _| wanted.contains(id));
        let mut http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        http.retain(|id, _| wanted.contains(id));
        let mut radius = self.radius.lock().unwrap_or_else(PoisonError::into_inner);
        radius.retain(|id, _| wanted.contains(id));
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

fn http_target(nas: &Nas, secret: &NasSecret) -> Result<http::Target, String> {
    let url = nas.http_url.clone();
    let url =
        url.ok_or("http_url of the NAS is not set, for example https://billing.example/hook")?;
    let wish = match nas.vars.get("http_auth") {
        None | Some(serde_json::Value::Null) => "",
        Some(serde_json::Value::String(wish)) => wish,
        Some(_) => return Err("http_auth in nas.vars is not a text".to_owned()),
    };
    Ok(http::Target {
        url,
        auth: Auth::of(wish, &secret.login, &secret.password)?,
        trust: tls::Settings::of(&nas.vars)?.trust,
    })
}

/// A setting of the NAS that cannot be obeyed: its events must not die of it.
fn setting(text: String) -> Failure {
    Failure {
        scope: Scope::Nas,
        class: FailureClass::Permanent,
        code: Failure::CODE_PERMANENT,
        text,
        parks: true,
    }
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

    #[test]
    fn radius_is_replaced_when_something_that_matters_changed() {
        let sessions = Sessions::default();
        let secret = NasSecret {
            coa_secret: "servicemode".into(),
            ..NasSecret::default()
        };
        let first = sessions.radius(&nas(), &secret);
        assert!(Arc::ptr_eq(&first, &sessions.radius(&nas(), &secret)));
        let changes: [fn(&mut Nas, &mut NasSecret); 5] = [
            |n, _| n.ip = "127.0.0.2".into(),
            |n, _| n.coa_port = Some(1700),
            |n, _| drop(n.vars.insert(MESSAGE_AUTHENTICATOR.into(), "off".into())),
            |n, _| drop(n.vars.insert(EVENT_TIMESTAMP.into(), "maybe".into())),
            |_, s| s.coa_secret = "c".into(),
        ];
        for change in changes {
            let before = sessions.radius(&nas(), &secret);
            let (mut nas, mut secret) = (nas(), secret.clone());
            change(&mut nas, &mut secret);
            assert!(!Arc::ptr_eq(&before, &sessions.radius(&nas, &secret)));
        }
        sessions.keep_only(&BTreeSet::new());
        assert!(!Arc::ptr_eq(&first, &sessions.radius(&nas(), &secret)));
    }

    #[tokio::test]
    async fn radius_settings_that_cannot_be_obeyed_park_the_nas() {
        let all = radius::dictionary::Dictionary::shipped();
        let pairs = [("User-Name".to_owned(), "u".to_owned())];
        let request = radius::Request::new(radius::Kind::Coa, &pairs, &all).unwrap();
        let mut bad = nas();
        bad.vars
            .insert(MESSAGE_AUTHENTICATOR.into(), "maybe".into());
        let known = NasSecret {
            coa_secret: "servicemode".into(),
            ..NasSecret::default()
        };
        for (nas, secret, said) in [
            (bad, known, "on, off or require"),
            (nas(), NasSecret::default(), "coa_secret"),
        ] {
            let radius = Sessions::default().radius(&nas, &secret);
            let told = radius.talk(&request, &all, Duration::from_secs(1)).await;
            let failure = told.failure.unwrap();
            assert_eq!((failure.scope, failure.parks), (Scope::Nas, true));
            assert!(failure.text.contains(said), "{failure}");
        }
    }

    #[tokio::test]
    async fn settings_that_cannot_be_obeyed_park_the_nas_and_say_so() {
        let mut nas = nas();
        nas.api_tls = true;
        nas.vars
            .insert("tls_pin".into(), serde_json::json!("not hexadecimal"));
        let sessions = Sessions::default();
        let router = sessions.mikrotik(&nas, &NasSecret::default());
        let command = crate::driver::mikrotik::Command {
            path: "/system/identity/print".into(),
            ..Default::default()
        };
        let limit = Duration::from_secs(1);
        let told = router.talk(&command, limit).await.unwrap_err();
        assert_eq!(told.class, FailureClass::Permanent);
        assert_eq!((told.scope, told.parks), (Scope::Nas, true));
        assert!(told.text.contains("tls_pin"), "{told}");
        let request = http::Request {
            method: "GET".into(),
            path: "/".into(),
            ..http::Request::default()
        };
        for (url, named) in [(None, "http_url"), (Some("https://a"), "tls_pin")] {
            nas.http_url = url.map(str::to_owned);
            let hook = sessions.http(&nas, &NasSecret::default());
            let told = hook.talk(&request, limit).await.unwrap_err();
            assert_eq!((told.scope, told.parks), (Scope::Nas, true));
            assert!(told.text.contains(named), "{told}");
        }
        nas.vars.clear();
        let first = sessions.http(&nas, &NasSecret::default());
        assert!(Arc::ptr_eq(
            &first,
            &sessions.http(&nas, &NasSecret::default())
        ));
        nas.vars
            .insert("tls_insecure".into(), serde_json::json!(true));
        assert!(!Arc::ptr_eq(
            &first,
            &sessions.http(&nas, &NasSecret::default())
        ));
    }
}
