//! HTTP devices and web hooks: JSON over HTTP/1.1, to the host of `nas.http_url` and nowhere
//! else. No redirects, no proxies; time, size and the number of requests are bounded.
//!
//! | answer | class | scope |
//! |---|---|---|
//! | 2xx | done | |
//! | 401, 403 | refused, parks the NAS | NAS |
//! | 408, 425, 429, 5xx | refused | event |
//! | 3xx (never followed), other 4xx | permanent | event |
//! | no connection | transport | NAS |
//! | a certificate that is not trusted | transport, parks the NAS | NAS |
//! | none after the request was sent | unknown | event |
//!
//! The code is the HTTP status (RFC 9110 section 15).

mod allow;
mod fresh;
mod request;

use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::clock;
use crate::driver::tls::{self, Trust};
use crate::driver::waits::Waits;
use crate::driver::{Counted, Reply};
use crate::nas;

pub use allow::Allow;
use fresh::Fresh;
pub use request::{Auth, JSON_MAX, METHODS, Request};

/// Largest answer kept, bytes: an account's state, not a dump.
pub const BODY_MAX: usize = 1024 * 1024;
/// Part of a refusal's body that the error repeats, characters.
const SHOWN_MAX: usize = 300;
/// Where requests go and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `http://host[:port][/path]` or `https://…`.
    pub url: String,
    /// As whom.
    pub auth: Auth,
    /// Which certificates of `https` are trusted.
    pub trust: Trust,
}

/// Bounds of one NAS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests at once, 1..=100.
    pub connections: usize,
    /// For TCP and TLS together.
    pub connect_timeout: Duration,
    /// An idle connection is closed after this time.
    pub linger: Duration,
}

/// Numbers for status pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests that wait for their answer.
    pub in_flight: usize,
    /// Requests that wait for a connection.
    pub waiting: usize,
    /// Why the last request got no answer, if none got one since.
    pub last_error: Option<String>,
}

/// The connections to one NAS; dropping it closes them.
#[derive(Debug)]
pub struct Http {
    ready: Result<Ready, Failure>,
    places: Semaphore,
    in_flight: AtomicUsize,
    waiting: AtomicUsize,
    last: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Ready {
    client: Client,
    fresh: Fresh,
    base: Url,
    auth: Option<(HeaderName, HeaderValue)>,
    /// What a device that repeats our request must not bring into a log.
    secret: Option<String>,
}

impl Http {
    /// Nothing is connected before the first request. Settings that cannot be obeyed are told
    /// by every request.
    pub fn new(target: &Target, limits: &Limits) -> Self {
        Self::within(target, limits, &Allow::default())
    }

    /// The same, where the host must have one of these addresses.
    pub fn within(target: &Target, limits: &Limits, allow: &Allow) -> Self {
        Self {
            ready: Ready::new(target, limits, allow).map_err(unusable),
            places: Semaphore::new(limits.connections),
            in_flight: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            last: Mutex::default(),
        }
    }

    /// One whose settings cannot be obeyed.
    pub(crate) fn broken(why: String) -> Self {
        Self {
            ready: Err(unusable(why)),
            places: Semaphore::new(1),
            in_flight: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            last: Mutex::default(),
        }
    }

    /// Sends one request and waits for the whole answer, at most `limit`.
    pub async fn talk(&self, request: &Request, limit: Duration) -> Result<Reply, Failure> {
        self.talk_in_turn(request, &Waits::up_to(limit), limit)
            .await
    }

    /// The same, where `limit` does not count the wait for a connection.
    pub async fn talk_in_turn(
        &self,
        request: &Request,
        waits: &Waits,
        limit: Duration,
    ) -> Result<Reply, Failure> {
        request.check().map_err(Failure::permanent)?;
        let ready = self.ready.as_ref().map_err(Clone::clone)?;
        let built = ready.build(request).map_err(Failure::permanent)?;
        let ms = limit.as_millis();
        let at = || ready.at();
        let place = {
            let _counted = Counted::new(&self.waiting);
            waits.during(self.places.acquire()).await
        };
        let Some(place) = place else {
            return Err(Failure::transport(format!(
                "HTTP at {}: no free connection within {} ms",
                at(),
                waits.most().as_millis()
            )));
        };
        // Never closed, so this is always a place.
        let _place = place;
        let _counted = Counted::new(&self.in_flight);
        let start = clock::tick_ms();
        let left = || {
            let gone = Duration::from_millis(clock::tick_ms().saturating_sub(start));
            limit.saturating_sub(gone)
        };
        let response = match timeout(left(), ready.client.execute(built)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let failure = lost(&at(), error);
                self.reached(Some(&failure));
                return Err(failure);
            }
            Err(_) => {
                return Err(Failure::timeout(format!(
                    "HTTP at {}: no answer within {ms} ms; the request may have been carried out",
                    at()
                )));
            }
        };
        self.reached(None);
        let new_session = ready.fresh.first(response.extensions());
        let status = response.status();
        let text = match timeout(left(), body(response)).await {
            Ok(Ok(text)) => ready.redacted(text),
            Ok(Err(Broken::TooLarge)) => {
                return Err(Failure {
                    code: i32::from(status.as_u16()),
                    ..Failure::permanent(format!(
                        "HTTP {}: the answer has more than {BODY_MAX} bytes; it is not read on",
                        said(status)
                    ))
                });
            }
            Ok(Err(Broken::Lost(why))) => {
                return Err(Failure {
                    code: Failure::CODE_TRANSPORT,
                    ..Failure::timeout(format!(
                        "HTTP {}, then the answer broke off ({why}); it may have been carried out",
                        said(status)
                    ))
                });
            }
            Err(_) => {
                return Err(Failure::timeout(format!(
                    "HTTP {}, but the answer did not end within {ms} ms; it may have been carried out",
                    said(status)
                )));
            }
        };
        judge(status, text, new_session)
    }

    /// Requests in flight and waiting now, and the last that reached nobody.
    pub fn report(&self) -> Report {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        Report {
            in_flight: self.in_flight.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            last_error: last.clone(),
        }
    }

    /// Notes what became of the connection.
    fn reached(&self, failure: Option<&Failure>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = failure.map(ToString::to_string);
    }
}

impl Ready {
    fn new(target: &Target, limits: &Limits, allow: &Allow) -> Result<Self, String> {
        let base = base(&target.url)?;
        allow.check(&base)?;
        let trust = if base.scheme() == "https" {
            target.trust.clone()
        } else {
            // No certificate is ever asked about.
            Trust::Pinned(Vec::new())
        };
        let config = tls::client_config(&trust)?;
        let fresh = Fresh::default();
        let client = allow
            .sift(Client::builder())
            .tls_backend_preconfigured(config.as_ref().clone())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(concat!("nas_event_daemon/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(limits.connect_timeout)
            .pool_idle_timeout(limits.linger)
            .pool_max_idle_per_host(limits.connections)
            .connector_layer(fresh.clone())
            .build()
            .map_err(|e| format!("no HTTP client can be made: {e}"))?;
        Ok(Self {
            client,
            fresh,
            base,
            auth: target.auth.field()?,
            secret: target.auth.secret(),
        })
    }

    /// Without our credentials: `Basic` ones are encoded, so that nobody else would know them.
    fn redacted(&self, text: String) -> String {
        match &self.secret {
            Some(secret) if text.contains(secret.as_str()) => nas::without(&text, secret),
            Some(_) | None => text,
        }
    }

    /// Host and port, for texts.
    fn at(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port_or_known_default() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    fn build(&self, request: &Request) -> Result<reqwest::Request, String> {
        let text = format!(
            "{}{}",
            self.base.as_str().trim_end_matches('/'),
            request.path
        );
        let url = Url::parse(&text).map_err(|e| format!("path {:?}: {e}", request.path))?;
        let same = url.scheme() == self.base.scheme()
            && url.host() == self.base.host()
            && url.port() == self.base.port()
            && url.username().is_empty()
            && url.password().is_none();
        if !same {
            return Err(format!(
                "path {:?} would lead to another host than http_url",
                request.path
            ));
        }
        let method = Method::from_bytes(request.method.as_bytes())
            .map_err(|_| format!("{:?} is not a method", request.method))?;
        let mut built = reqwest::Request::new(method, url);
        let headers = built.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
        if request.json.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let fields = request.fields()?;
        for name in fields.keys() {
            headers.remove(name);
        }
        for (name, value) in &fields {
            headers.append(name, value.clone());
        }
        if let Some((name, value)) = &self.auth {
            headers.insert(name, value.clone());
        }
        if let Some(json) = &request.json {
            *built.body_mut() = Some(json.clone().into());
        }
        Ok(built)
    }
}

/// `nas.http_url`, checked.
fn base(text: &str) -> Result<Url, String> {
    let bad = |why: &str| {
        Err(format!(
            "http_url {why}, expected https://host[:port][/path]"
        ))
    };
    let Ok(url) = Url::parse(text) else {
        return bad("is not a URL");
    };
    if !url.username().is_empty() || url.password().is_some() {
        return bad("holds credentials, which belong into nas_secret");
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return bad("is neither http:// nor https://");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return bad("has a query or a fragment");
    }
    Ok(url)
}

/// A setting of the NAS that cannot be obeyed: its events must not die of it.
fn unusable(why: String) -> Failure {
    Failure {
        scope: Scope::Nas,
        class: FailureClass::Permanent,
        code: Failure::CODE_PERMANENT,
        text: format!("HTTP: {why}"),
        parks: true,
    }
}

enum Broken {
    TooLarge,
    Lost(String),
}

async fn body(mut response: Response) -> Result<String, Broken> {
    let told = response.content_length().unwrap_or_default();
    if told > BODY_MAX as u64 {
        return Err(Broken::TooLarge);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|e| Broken::Lost(causes(&e)))?
    {
        if bytes.len() + chunk.len() > BODY_MAX {
            return Err(Broken::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn lost(at: &str, error: reqwest::Error) -> Failure {
    if let Some(why) = tls::distrust(&error) {
        return Failure {
            parks: true,
            ..Failure::transport(format!("HTTP at {at}: {why}"))
        };
    }
    let why = causes(&error);
    if error.is_connect() {
        let hint = "is it up, and is http_url right?";
        return Failure::transport(format!("HTTP at {at}: cannot connect: {why}; {hint}"));
    }
    Failure {
        code: Failure::CODE_TRANSPORT,
        ..Failure::timeout(format!(
            "HTTP at {at}: the connection ended before the answer came ({why}); the request may have been carried out"
        ))
    }
}

/// What happened below, without the URL, which a subscriber's data may be part of.
fn causes(error: &reqwest::Error) -> String {
    let mut texts = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        texts.push(cause.to_string());
        next = cause.source();
    }
    texts.dedup();
    if texts.is_empty() {
        texts.push("no reason is given".to_owned());
    }
    texts.join(": ")
}

fn said(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

fn judge(status: StatusCode, text: String, new_session: bool) -> Result<Reply, Failure> {
    let code = i32::from(status.as_u16());
    if status.is_success() {
        return Ok(Reply {
            text,
            code,
            new_session,
            ..Reply::default()
        });
    }
    let shown: String = text.chars().take(SHOWN_MAX).collect();
    let mut told = format!("HTTP {}", said(status));
    if !shown.trim().is_empty() {
        told.push_str(": ");
        told.push_str(shown.trim());
    }
    if text.len() > shown.len() {
        told.push('…');
    }
    let (scope, class, parks) = match status.as_u16() {
        401 | 403 => {
            told.push_str("; check nas_secret and http_auth in nas.vars");
            (Scope::Nas, FailureClass::Refused, true)
        }
        408 | 425 | 429 | 500.. => (Scope::Event, FailureClass::Refused, false),
        300..=399 => {
            told.push_str("; redirects are not followed, correct http_url or the path");
            (Scope::Event, FailureClass::Permanent, false)
        }
        _ => (Scope::Event, FailureClass::Permanent, false),
    };
    Err(Failure {
        scope,
        class,
        code,
        text: told,
        parks,
    })
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
