//! The pooled sessions of every NAS, shared by its forks; replaced when address or
//! credentials change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::attempt::Failure;
use crate::driver::dialogue::Manners;
use crate::driver::http::{self, Allow, Auth, Http};
use crate::driver::mikrotik::{self, Limits, Mikrotik, Report, Target};
use crate::driver::radius::{self, Radius};
use crate::driver::rate::Bucket;
use crate::driver::ssh::trust::Trust;
use crate::driver::ssh::{self, Ssh};
use crate::driver::telnet::{self, Telnet, settings};
use crate::driver::tls;
use crate::nas::{Nas, NasId, NasSecret};

/// TCP port of the RouterOS API (MikroTik manual, "Services").
pub const API_PORT: u16 = 8728;
/// The same over TLS.
pub const API_TLS_PORT: u16 = 8729;
/// Connections of a NAS that says nothing of `max_sessions`.
pub(super) const CONNECTIONS: u16 = 3;
/// For TCP connect and login, unless the NAS's own time-out is shorter.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is closed after this time.
pub(super) const LINGER: Duration = Duration::from_secs(60);

/// Logins of one NAS in a minute, where it does not say otherwise: a kept connection needs one;
/// a device that closes after each command needs one for each.
const LOGINS_PER_MINUTE: usize = 60;

/// Seconds' worth of commands that attempts on a NAS with a `max_rate` may hold ready.
const PACED_SECONDS: f64 = 2.0;

/// Told about a host key that was learned: the NAS, the key as an OpenSSH public key line.
pub type Learned = Arc<dyn Fn(NasId, &str) + Send + Sync>;

/// One per daemon.
#[derive(Default)]
pub struct Sessions {
    mikrotik: Mutex<BTreeMap<NasId, KeptMikrotik>>,
    ssh: Mutex<BTreeMap<NasId, KeptSsh>>,
    /// Host keys learned since the settings were last read.
    known: Arc<Mutex<BTreeMap<NasId, String>>>,
    learned: Option<Learned>,
    http: Mutex<BTreeMap<NasId, KeptHttp>>,
    telnet: Mutex<BTreeMap<NasId, KeptTelnet>>,
    radius: Mutex<BTreeMap<NasId, KeptRadius>>,
    /// Commands per second, of NASes with a `max_rate`.
    rates: Mutex<BTreeMap<NasId, Bucket>>,
}

/// Numbers of one NAS's sessions over one driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// `mikrotik`, `ssh`, `telnet`, `http`, `radius`.
    pub driver: &'static str,
    /// Connections that are logged in; of RADIUS, sockets.
    pub open: usize,
    /// Commands under way on them.
    pub leased: usize,
    /// Commands that wait for a place.
    pub waiting: usize,
    /// Commands allowed at once now, where that is known.
    pub window: Option<usize>,
    /// Logins since the start, where they are counted.
    pub logins: Option<u64>,
    /// Why the last connection could not be opened, or ended.
    pub last_error: Option<String>,
}

/// Sessions, and what they were made of: they are replaced when that changes.
struct Kept<K, S> {
    of: K,
    sessions: Arc<S>,
}

/// SSH is kept without its trust, which changes by itself when a key is learned.
type KeptSsh = Kept<(ssh::Target, ssh::Limits), Ssh>;
type KeptMikrotik = Kept<(Target, Limits, Result<Option<tls::Settings>, Failure>), Mikrotik>;
type KeptTelnet = Kept<(telnet::Target, telnet::Limits), Telnet>;
type KeptRadius = Kept<(radius::Target, Option<String>), Radius>;
type KeptHttp = Kept<(Result<(http::Target, Allow), String>, http::Limits), Http>;

/// The sessions of `nas`: the same object as long as `of` stays the same. A replaced one ends
/// when its last command has ended.
fn kept<K: PartialEq, S>(
    all: &Mutex<BTreeMap<NasId, Kept<K, S>>>,
    nas: NasId,
    of: K,
    open: impl FnOnce(&K) -> S,
) -> Arc<S> {
    let mut all = locked(all);
    if let Some(kept) = all.get(&nas)
        && kept.of == of
    {
        return Arc::clone(&kept.sessions);
    }
    let sessions = Arc::new(open(&of));
    let kept = Kept {
        of,
        sessions: Arc::clone(&sessions),
    };
    all.insert(nas, kept);
    sessions
}

impl Sessions {
    /// Sessions whose learned host keys are told to `learned`, which must not block.
    pub fn learning(learned: Learned) -> Self {
        Self {
            learned: Some(learned),
            ..Self::default()
        }
    }

    /// TCP port of the SSH server of `nas`.
    pub fn ssh_port(nas: &Nas) -> u16 {
        nas.ssh_port.unwrap_or(ssh::settings::PORT)
    }

    /// The SSH sessions of `nas`: the same object as long as address, limits, credentials and
    /// believed keys stay the same. A setting that cannot be obeyed is a failure of the NAS.
    pub fn ssh(&self, nas: &Nas, secret: &NasSecret) -> Result<Arc<Ssh>, Failure> {
        let (mut target, limits) = ssh::settings::of(nas, secret)?;
        let trust = {
            let mut known = locked(&self.known);
            if nas.ssh_known_key.is_some() {
                known.remove(&nas.id);
            }
            let known = nas.ssh_known_key.as_ref().or_else(|| known.get(&nas.id));
            Trust::of(nas.ssh_host_key.as_deref(), known.map(String::as_str))
                .map_err(Failure::setting)?
        };
        let mut all = locked(&self.ssh);
        if let Some(kept) = all.get(&nas.id)
            && (&kept.of.0, &kept.of.1) == (&target, &limits)
            && kept.sessions.trust() == trust
        {
            return Ok(Arc::clone(&kept.sessions));
        }
        let bare = target.clone();
        target.trust = trust;
        let (id, known, learned) = (nas.id, Arc::clone(&self.known), self.learned.clone());
        let learn: ssh::Learn = Arc::new(move |line| {
            locked(&known).insert(id, line.to_owned());
            if let Some(learned) = &learned {
                learned(id, line);
            }
        });
        let kept = KeptSsh {
            of: (bare, limits.clone()),
            sessions: Arc::new(Ssh::new(target, limits, learn)),
        };
        let sessions = Arc::clone(&kept.sessions);
        all.insert(nas.id, kept);
        Ok(sessions)
    }

    /// TCP port of the telnet server of `nas`.
    pub fn telnet_port(nas: &Nas) -> u16 {
        nas.telnet_port.unwrap_or(settings::PORT)
    }

    /// Attempts that the command line of `nas` serves side by side: twice its sessions, so
    /// that the next one stands ready while the last is written down. A place that
    /// `nas.vars.spare_sessions` keeps free for people does not count.
    pub fn telnet_places(nas: &Nas) -> usize {
        2 * settings::sessions(nas)
    }

    /// The same over SSH. `dialogue`: lines to a device's command line, which leave one channel
    /// for commands without one.
    pub fn ssh_places(nas: &Nas, dialogue: bool) -> usize {
        let channels = ssh::settings::channels(nas);
        2 * if dialogue {
            ssh::dialogues_of(channels)
        } else {
            channels
        }
    }

    /// The same over HTTP.
    pub fn http_places(nas: &Nas) -> usize {
        2 * settings::sessions(nas)
    }

    /// Attempts that a `max_rate` lets go on side by side, none of them waiting long for its
    /// next command.
    pub fn paced_places(nas: &Nas) -> usize {
        // 100 forks are the most; a smaller number is found by counting.
        nas.max_rate.map_or(usize::MAX, |rate| {
            (1..100_u32)
                .find(|n| f64::from(*n) >= rate * PACED_SECONDS)
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(usize::MAX)
        })
    }

    /// The sessions on the command line of `nas`, kept in the same way.
    pub fn telnet(
        &self,
        nas: &Nas,
        secret: &NasSecret,
        manners: Manners,
    ) -> Result<Arc<Telnet>, Failure> {
        let of = settings::of(nas, secret, manners)?;
        Ok(kept(&self.telnet, nas.id, of, |(target, limits)| {
            Telnet::new(target.clone(), limits.clone())
        }))
    }

    /// Takes the places of `n` commands in the commands per second of `nas`; how long to wait
    /// before the last may go. Takes none if that is longer than `most`, which is the error.
    pub fn pace(
        &self,
        nas: &Nas,
        n: usize,
        most: Duration,
        now_ms: u64,
    ) -> Result<Duration, Duration> {
        let mut rates = locked(&self.rates);
        let Some(rate) = nas.max_rate else {
            rates.remove(&nas.id);
            return Ok(Duration::ZERO);
        };
        let bucket = rates
            .entry(nas.id)
            .and_modify(|bucket| {
                if bucket.rate() != rate {
                    *bucket = Bucket::of_rate(rate, now_ms);
                }
            })
            .or_insert_with(|| Bucket::of_rate(rate, now_ms));
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        let wait = bucket.take_within(n, most, now_ms);
        wait.map(Duration::from_millis)
            .map_err(Duration::from_millis)
    }

    /// How the sessions of each NAS that has been spoken to stand, for status pages.
    pub fn seen(&self) -> BTreeMap<NasId, Vec<Seen>> {
        let mut seen: BTreeMap<NasId, Vec<Seen>> = BTreeMap::new();
        for (id, kept) in self.all().iter() {
            let report = kept.sessions.report();
            seen.entry(*id).or_default().push(Seen {
                driver: "mikrotik",
                open: report.connections,
                leased: report.in_flight,
                waiting: report.waiting,
                logins: Some(kept.sessions.logins()),
                last_error: kept.sessions.last_error(),
                ..Seen::default()
            });
        }
        for (id, kept) in locked(&self.ssh).iter() {
            let report = kept.sessions.report();
            seen.entry(*id).or_default().push(Seen {
                driver: "ssh",
                open: report.open,
                leased: report.leased,
                waiting: report.waiting,
                window: Some(report.window),
                logins: Some(report.logins),
                last_error: Some(report.last_error).filter(|e| !e.is_empty()),
            });
        }
        for (id, kept) in locked(&self.telnet).iter() {
            let report = kept.sessions.seen();
            seen.entry(*id).or_default().push(Seen {
                driver: "telnet",
                open: report.idle + report.leased,
                leased: report.leased,
                waiting: report.waiting,
                logins: Some(report.logins),
                last_error: report.last_error,
                ..Seen::default()
            });
        }
        for (id, kept) in locked(&self.http).iter() {
            let report = kept.sessions.report();
            seen.entry(*id).or_default().push(Seen {
                driver: "http",
                open: report.in_flight,
                leased: report.in_flight,
                waiting: report.waiting,
                last_error: report.last_error,
                ..Seen::default()
            });
        }
        for (id, kept) in locked(&self.radius).iter() {
            let report = kept.sessions.report();
            seen.entry(*id).or_default().push(Seen {
                driver: "radius",
                open: report.sockets,
                leased: report.waiting,
                waiting: report.queued,
                last_error: kept.sessions.last_error(),
                ..Seen::default()
            });
        }
        seen
    }

    /// The RouterOS sessions of `nas`: the same object as long as address, port, limits and
    /// credentials stay the same. A replaced one ends when its last command has ended.
    pub fn mikrotik(&self, nas: &Nas, secret: &NasSecret) -> Arc<Mikrotik> {
        let target = Target {
            host: nas.ip.clone(),
            port: Self::api_port(nas),
            login: secret.login.clone(),
            password: secret.password.clone(),
        };
        let logins = logins_per_minute(nas);
        let limits = Limits {
            connections: settings::sessions(nas),
            connect_timeout: nas
                .timeout
                .map_or(CONNECT_TIMEOUT, |t| t.min(CONNECT_TIMEOUT)),
            linger: LINGER,
            logins_per_minute: *logins.as_ref().unwrap_or(&LOGINS_PER_MINUTE),
            know_rows: knows_rows(nas),
        };
        let tls = nas.api_tls.then(|| tls::Settings::of(&nas.vars));
        let tls = tls
            .transpose()
            .map_err(|why| Failure::setting(mikrotik::over_tls(&why)));
        let of = (target, limits, logins.and(tls));
        kept(&self.mikrotik, nas.id, of, |of| {
            let (target, limits) = (of.0.clone(), of.1.clone());
            match &of.2 {
                Ok(None) => Mikrotik::new(target, limits),
                Ok(Some(settings)) => Mikrotik::over_tls(target, limits, settings),
                Err(failure) => Mikrotik::broken(target, limits, failure.clone()),
            }
        })
    }

    /// TCP port of the RouterOS API of `nas`.
    pub fn api_port(nas: &Nas) -> u16 {
        let usual = if nas.api_tls { API_TLS_PORT } else { API_PORT };
        nas.api_port.unwrap_or(usual)
    }

    /// The HTTP connections of `nas`, kept in the same way.
    pub fn http(&self, nas: &Nas, secret: &NasSecret) -> Arc<Http> {
        let target = http_target(nas, secret);
        let limits = http::Limits {
            connections: settings::sessions(nas),
            // Half of the NAS's own time-out: what cannot be reached shall be told as that, and
            // not as an answer that did not come.
            connect_timeout: nas
                .timeout
                .map_or(CONNECT_TIMEOUT, |t| (t / 2).min(CONNECT_TIMEOUT)),
            linger: LINGER,
        };
        kept(
            &self.http,
            nas.id,
            (target, limits),
            |(target, limits)| match target {
                Ok((target, allow)) => Http::within(target, limits, allow),
                Err(why) => Http::broken(why.clone()),
            },
        )
    }

    /// The RADIUS sockets of `nas`: the same object as long as address, port, secret and
    /// switches stay the same.
    pub fn radius(&self, nas: &Nas, secret: &NasSecret) -> Arc<Radius> {
        let of = radius::settings::of(nas, secret);
        kept(&self.radius, nas.id, of, |(target, wrong)| match wrong {
            Some(reason) => Radius::broken(target.clone(), Failure::setting(reason.clone())),
            None => Radius::new(target.clone()),
        })
    }

    /// Lets go of what routers are no longer believed to have in their tables.
    pub fn forget_old(&self) {
        let routers: Vec<_> = self
            .all()
            .values()
            .map(|k| Arc::clone(&k.sessions))
            .collect();
        routers.iter().for_each(|router| router.forget());
    }

    /// Lets go of the sessions of every NAS that is not in `wanted`. They end when their last
    /// command has ended.
    pub fn keep_only(&self, wanted: &BTreeSet<NasId>) {
        self.all().retain(|id, _| wanted.contains(id));
        locked(&self.ssh).retain(|id, _| wanted.contains(id));
        locked(&self.telnet).retain(|id, _| wanted.contains(id));
        locked(&self.radius).retain(|id, _| wanted.contains(id));
        locked(&self.rates).retain(|id, _| wanted.contains(id));
        locked(&self.http).retain(|id, _| wanted.contains(id));
    }

    /// Connections and commands in flight of each NAS that has been spoken to.
    pub fn report(&self) -> BTreeMap<NasId, Report> {
        let all = self.all();
        all.iter()
            .map(|(id, kept)| (*id, kept.sessions.report()))
            .collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<NasId, KeptMikrotik>> {
        locked(&self.mikrotik)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `nas.vars.know_rows`: anything but `no` and `false` is yes.
fn knows_rows(nas: &Nas) -> bool {
    let no = |value: &Value| *value == Value::Bool(false) || *value == "no";
    !nas.vars.get("know_rows").is_some_and(no)
}

/// `nas.vars.logins_per_minute`, 1 to 10000.
pub(super) fn logins_per_minute(nas: &Nas) -> Result<usize, Failure> {
    match nas.vars.get("logins_per_minute") {
        None => Ok(LOGINS_PER_MINUTE),
        Some(value) => value
            .as_u64()
            .filter(|n| (1..=10_000).contains(n))
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| {
                Failure::setting(format!(
                    "vars.logins_per_minute is {value}, expected 1 to 10000"
                ))
            }),
    }
}

fn http_target(nas: &Nas, secret: &NasSecret) -> Result<(http::Target, Allow), String> {
    let url = nas.http_url.clone();
    let url =
        url.ok_or("http_url of the NAS is not set, for example https://billing.example/hook")?;
    let wish = match nas.vars.get("http_auth") {
        None | Some(Value::Null) => "",
        Some(Value::String(wish)) => wish,
        Some(_) => return Err("http_auth in nas.vars is not a text".to_owned()),
    };
    let target = http::Target {
        url,
        auth: Auth::of(wish, &secret.login, &secret.password)?,
        trust: tls::Settings::of(&nas.vars)?.trust,
    };
    Ok((target, Allow::of(&nas.vars)?))
}

#[cfg(test)]
#[path = "sessions_test.rs"]
mod tests;
