//! The doors put together: what they share, how a request is refused, how events are taken
//! in, and the router. The hot path is read → [`Store::post`] → wake expansion → audit →
//! answer; a 2xx is given only for what is committed.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

pub use crate::intake::health::{install_metrics, metrics_upkeep};
pub use crate::intake::serve::{bind_ctl, serve, serve_ctl};

use crate::clock;
use crate::config;
use crate::event::{Class, Cmd, CompactEvent, EventId, UserId};
use crate::intake::access::{self, Caller, Peer};
use crate::intake::health::Seen;
use crate::intake::posting::{Ask, Posting};
use crate::intake::trail::Trail;
use crate::intake::{api, bulk, classic, crowd, form, health, nases, openapi, plan};
use crate::intake::{refusals, tails};
use crate::logs::Logs;
use crate::nas::NasId;
use crate::store::{self, GuardOrder, Idempotency, Posted, Store};

/// Largest body but for bulk calls, bytes; the longest sensible event has a few KiB.
pub const BODY_MAX: usize = 1024 * 1024;
/// Longest time for a body to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Longest `Idempotency-Key`, characters.
const KEY_MAX: usize = 200;
/// Changes that may be under way at once; twice the connections of a listener.
const CHANGES_MAX: usize = 2048;
/// Callers that may sit in `?wait=` at once: each asks the store some times a second.
const WAITERS_MAX: usize = 64;
/// Most events of one transaction; it must not keep other writers out for long.
const EVENTS_MAX: usize = 5_000;
/// What a producer is told to wait at the high-water mark, seconds.
const RETRY_AFTER_S: u32 = 5;

/// Tests one NAS: whether it is well, and what is told of it.
pub type Tester =
    dyn Fn(NasId) -> Pin<Box<dyn Future<Output = (bool, Value)> + Send>> + Send + Sync;
/// Judges what a plan would cut off, given the accounts of each NAS and announced batches.
pub type Foresee =
    dyn Fn(&[plan::Ask], &BTreeMap<NasId, usize>, &[GuardOrder]) -> Value + Send + Sync;

/// What the doors need of the daemon.
pub struct Doors {
    /// The durable log.
    pub store: Arc<dyn Store>,
    /// Listen addresses and open networks.
    pub http: config::Http,
    /// Notified after each accepted post: there is something to expand.
    pub wake: Arc<Notify>,
    /// Told of events that an operator dropped, so that their lanes go on; none = nobody asks.
    pub dropped: Option<mpsc::Sender<(EventId, NasId, Option<UserId>)>>,
    /// Told of NASes that an operator resumed, so that one that did not obey is tried at once;
    /// none = nobody asks.
    pub resumed: Option<mpsc::Sender<NasId>>,
    /// Notified when NAS settings shall be read now.
    pub reload: Arc<Notify>,
    /// Commands outside the catalogue that loaded schemes define.
    pub cmds: watch::Receiver<Vec<Cmd>>,
    /// [`clock::tick_ms`] of the parent loop's last turn.
    pub parent_tick: Arc<AtomicU64>,
    /// How often the parent loop turns.
    pub settings_interval: Duration,
    /// For `/metrics`; none = 404.
    pub metrics: Option<PrometheusHandle>,
    /// More NASes than these have no series of their own in `/metrics`.
    pub metrics_max_nas: usize,
    /// Waiting events above which posts get 429; 0 = no mark.
    pub high_water: usize,
    /// How long the end of an event is known; a spread retry asks it of lanes.
    pub history_keep: Duration,
    /// Set while the main stack is above the mark and expansion takes only what is urgent.
    pub limited: Arc<AtomicBool>,
    /// All logs, to show them; none = 404.
    pub logs: Option<Logs>,
    /// Logs in to a NAS and times one harmless command; none = 404.
    pub tester: Option<Arc<Tester>>,
    /// What the intent guard would say of a plan; none = nothing.
    pub foresee: Option<Arc<Foresee>>,
    /// Whether the database has no room to take an event; none = nobody looks.
    pub is_full: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
    /// What the dispatcher says of itself, for `/api/v1/status`; none = left out.
    pub dispatch: Option<Arc<dyn Fn() -> Value + Send + Sync>>,
}

/// [`Doors`] and what the doors keep among themselves; one for all listeners.
pub struct Shared {
    /// What the daemon gave.
    pub doors: Doors,
    /// The stacks as last counted.
    pub seen: Seen,
    /// The audit trail.
    pub trail: Trail,
    posting: Posting,
    /// Places for `?wait=`.
    pub waiters: Semaphore,
    /// Places for followed logs.
    pub tails: Arc<Semaphore>,
    /// Places for tests of NASes.
    pub tests: Semaphore,
    places: Arc<Semaphore>,
    changes: Mutex<JoinSet<()>>,
}

impl Shared {
    /// Runs something beside the request; the number of such tasks is bounded by the caller.
    pub fn beside(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        while changes.try_join_next().is_some() {}
        changes.spawn(work);
    }
}

/// Shared by all requests.
pub type Desk = Arc<Shared>;

/// Why a request is not served; each door writes it in its own shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// A word for programs, one of [`refusals::WORDS`].
    pub code: &'static str,
    /// What is wrong, for people; never holds a secret.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// `Retry-After`, seconds.
    pub retry_after: Option<u32>,
}

impl Refusal {
    /// With a status of 400..=599.
    pub fn new(status: u16, code: &'static str, message: String, hint: &str) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST),
            code,
            message,
            hint: hint.to_owned(),
            retry_after: None,
        }
    }

    /// The request cannot be understood.
    pub fn malformed(message: String) -> Self {
        Self::new(
            400,
            "malformed",
            message,
            "nothing was stored; see docs/api.md",
        )
    }

    /// There is no such thing.
    pub fn not_found(message: String, hint: &str) -> Self {
        Self::new(404, "not_found", message, hint)
    }

    /// The store failed. Whether a lost commit took place is not known here.
    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    pub fn store(error: store::Error) -> Self {
        match &error {
            store::Error::Refused(text) => {
                Self::new(400, "refused", text.clone(), "nothing was stored")
            }
            store::Error::TooLong => Self::new(
                400,
                "too_long",
                error.to_string(),
                "nothing was changed; sqlexec reads without this limit",
            ),
            store::Error::Open { .. }
            | store::Error::Migrate { .. }
            | store::Error::Billing(_)
            | store::Error::Owned(_)
            | store::Error::Fenced { .. }
            | store::Error::Sql { .. } => {
                tracing::warn!(%error, source = ?std::error::Error::source(&error).map(ToString::to_string),
                    "a request failed at the database");
                Self::unavailable(if error.is_full() {
                    format!("the database has no room on its disk: {error}")
                } else {
                    format!("the database does not answer: {error}")
                })
            }
        }
    }

    /// The daemon ends before the request does.
    pub fn stopping() -> Self {
        Self::unavailable("the daemon is stopping".to_owned())
    }

    fn unavailable(message: String) -> Self {
        Self {
            retry_after: Some(RETRY_AFTER_S),
            ..Self::new(
                503,
                "unavailable",
                message,
                "send it again; with the same Idempotency-Key nothing is done twice",
            )
        }
    }
}

impl Refusal {
    /// As an answer with more keys beside `error`.
    pub fn with(self, mut body: Value) -> Response {
        if let Some(map) = body.as_object_mut() {
            let number = refusals::shown(self.code);
            let error = json!({ "code": self.code, "number": number, "message": self.message,
                "hint": self.hint });
            map.insert("error".to_owned(), error);
        }
        self.answer(body)
    }

    /// As an answer with a body of the door's own shape.
    pub fn answer(self, body: Value) -> Response {
        let mut answer = (self.status, axum::Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            answer
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = header::HeaderValue::from_static("Bearer");
            answer
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        answer
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.with(json!({}))
    }
}

/// The paths of design §6 behind one router; give the same one to every listener.
pub fn router(doors: Doors) -> Router {
    health::describe();
    let desk: Desk = Arc::new(Shared {
        posting: Posting::new(Arc::clone(&doors.store)),
        doors,
        seen: Seen::default(),
        trail: Trail::default(),
        waiters: Semaphore::new(WAITERS_MAX),
        tails: Arc::new(Semaphore::new(tails::STREAMS_MAX)),
        tests: Semaphore::new(nases::TESTS_MAX),
        places: Arc::new(Semaphore::new(CHANGES_MAX)),
        changes: Mutex::new(JoinSet::new()),
    });
    Router::new()
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/metrics/detailed", get(health::detailed))
        .route("/rest_api/v2", get(classic::models))
        .route("/rest_api/v2/", get(classic::models))
        .route(
            "/rest_api/v2/{model}",
            get(classic::model).post(classic::call),
        )
        .route(
            "/rest_api/v2/{model}/",
            get(classic::model).post(classic::call),
        )
        .route("/api/openapi.json", get(openapi::served))
        .route("/api/v1/events", get(api::list).post(api::post))
        .route("/api/v1/events/bulk", post(bulk::post))
        .route("/api/v1/events/retry", post(crowd::retry))
        .route("/api/v1/events/drop", post(crowd::drop_many))
        .route("/api/v1/batches/{batch}", get(crowd::batch))
        .route("/api/v1/accounts/{id}", get(crowd::account))
        .route("/api/v1/accounts/{id}/history", get(crowd::history))
        .route("/api/v1/audit", get(crowd::audit))
        .route("/api/v1/events/{id}", get(api::show))
        .route("/api/v1/events/{id}/retry", post(api::retry))
        .route("/api/v1/events/{id}/drop", post(api::give_up))
        .route("/api/v1/nas", get(nases::nases))
        .route("/api/v1/nas/{id}", get(nases::nas))
        .route("/api/v1/nas/{id}/forks", post(nases::forks))
        .route("/api/v1/nas/{id}/mode", post(nases::mode))
        .route("/api/v1/nas/{id}/pause", post(nases::pause))
        .route("/api/v1/nas/{id}/resume", post(nases::resume))
        .route("/api/v1/nas/{id}/test", post(nases::test))
        .route("/api/v1/logs/daemon", get(tails::of_daemon))
        .route("/api/v1/logs/nas/{id}", get(tails::of_nas))
        .route("/api/v1/logs/accounts/{id}", get(tails::of_account))
        .route("/api/v1/reload", post(api::reload))
        .route("/api/v1/status", get(api::status))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&desk), gate))
        .with_state(desk)
}

/// In front of every path: foreign pages are refused, and every answer is counted.
async fn gate(
    State(desk): State<Desk>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let start = clock::tick_ms();
    let method = known_method(request.method());
    let classic = request.uri().path().starts_with(classic::ROOT);
    // No browser reaches a unix socket.
    let local = matches!(request.extensions().get(), Some(Peer::Unix { .. }));
    let judged = if local {
        Ok(())
    } else {
        access::same_site(request.uri(), request.headers(), &desk.doors.http.listen)
    };
    let text = form::decoded(request.uri().path(), "the path");
    let judged = judged.and(text.map_err(|e| Refusal::malformed(e.to_string())));
    let answer = match judged {
        Ok(_) => next.run(request).await,
        Err(refusal) if classic => classic::refused(request.uri().path(), refusal),
        Err(refusal) => refusal.into_response(),
    };
    let handler = path.as_ref().map_or("none", MatchedPath::as_str);
    let ms = clock::tick_ms().saturating_sub(start);
    health::count_request(handler, method, answer.status().as_u16(), ms);
    answer
}

/// Methods become metric labels, and a client may invent any.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}

async fn no_such_path(request: Request) -> Response {
    let path = request.uri().path();
    let shown: String = path.chars().take(120).collect();
    let refusal = Refusal::new(
        404,
        "no_such_path",
        format!("there is nothing at {shown}"),
        "GET /api/openapi.json lists the paths, GET /rest_api/v2/ the classic models",
    );
    if path.starts_with(classic::ROOT) {
        classic::refused(path, refusal)
    } else {
        refusal.into_response()
    }
}

async fn no_such_method(request: Request) -> Response {
    let path = request.uri().path();
    let refusal = Refusal::new(
        405,
        "no_such_method",
        match known_method(request.method()) {
            "other" => "this method is not possible here".to_owned(),
            known => format!("{known} is not possible here"),
        },
        "GET /api/openapi.json lists the methods of each path",
    );
    if path.starts_with(classic::ROOT) {
        classic::refused(path, refusal)
    } else {
        refusal.into_response()
    }
}

/// Reads a whole body of at most [`BODY_MAX`].
pub async fn whole_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let too_large = || {
        Refusal::new(
            413,
            "too_large",
            format!("the body is longer than {BODY_MAX} bytes"),
            "split it, or send it to /api/v1/events/bulk",
        )
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|n| n > BODY_MAX as u64) {
        return Err(too_large());
    }
    let read = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_MAX).collect()).await;
    match read {
        Ok(Ok(all)) => Ok(all.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(Refusal::malformed(format!("the body broke off: {e}"))),
        Err(_) => Err(Refusal::new(
            408,
            "too_slow",
            format!("the body did not arrive within {BODY_TIME:?}"),
            "nothing was stored; send it again",
        )),
    }
}

/// The producer's guard against doing a thing twice.
pub fn idempotency(headers: &HeaderMap, body: &[u8]) -> Result<Option<Idempotency>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = value.to_str().ok().map(str::trim).filter(|key| {
        (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic())
    });
    let Some(key) = key else {
        return Err(Refusal::malformed(format!(
            "Idempotency-Key is not 1 to {KEY_MAX} printable ASCII characters without spaces"
        )));
    };
    Ok(Some(Idempotency {
        key: key.to_owned(),
        body_hash: access::hex(&Sha256::digest(body)),
        lasting: false,
    }))
}

/// Events that are now on the compact stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// In the order of the events.
    pub ids: Vec<EventId>,
    /// They were accepted earlier, under the same `Idempotency-Key`.
    pub again: bool,
}

/// Takes events in: all or nothing. Once begun it ends, also if the client goes away.
pub async fn accept(
    desk: &Desk,
    caller: &Caller,
    events: Vec<CompactEvent>,
    guard: Option<Idempotency>,
) -> Result<Accepted, Refusal> {
    if events.is_empty() || events.len() > EVENTS_MAX {
        return Err(Refusal::new(
            400,
            "malformed",
            format!(
                "{} events in one call, 1 to {EVENTS_MAX} are possible",
                events.len()
            ),
            "nothing was stored; send more to /api/v1/events/bulk",
        ));
    }
    for event in &events {
        caller.may_post(&event.cmd)?;
    }
    if desk.seen.is_above_mark(desk) && !events.iter().all(|event| gets_through(&event.cmd)) {
        let before = match &guard {
            Some(guard) => desk.doors.store.posted_before(guard).await,
            None => Ok(None),
        };
        return match before.map_err(Refusal::store)? {
            Some(posted) => accepted(posted),
            None => Err(Refusal {
                retry_after: Some(RETRY_AFTER_S),
                ..Refusal::new(
                    429,
                    "stack_full",
                    format!("more than {} events are waiting", desk.doors.high_water),
                    "nothing was stored; send it again later (events that give access are taken, \
                     in posts of their own)",
                )
            }),
        };
    }
    let who = caller.who.clone();
    to_the_end(desk, move |desk| async move {
        let ask = Arc::new(Ask { events, guard, who });
        let done = accepted(desk.posting.post(&ask).await?)?;
        if !done.again {
            desk.doors.wake.notify_one();
            desk.seen.add(done.ids.len());
            health::count_events(&ask.events, ask.guard.as_ref());
        }
        Ok(done)
    })
    .await
}

/// Above the mark expansion takes such events first, so they need not wait outside.
fn gets_through(cmd: &str) -> bool {
    match Cmd::parse(cmd).map(|cmd| cmd.class()) {
        Ok(Class::Access | Class::Interactive) => true,
        Ok(Class::Cut | Class::Rate | Class::Rest) | Err(_) => false,
    }
}

fn accepted(posted: Posted) -> Result<Accepted, Refusal> {
    match posted {
        Posted::New(ids) => Ok(Accepted { ids, again: false }),
        Posted::Again(ids) => Ok(Accepted { ids, again: true }),
        Posted::Conflict => Err(Refusal::new(
            409,
            "key_reused",
            "this Idempotency-Key came before with another body".to_owned(),
            "nothing was stored; use a new key for each request",
        )),
    }
}

/// Runs a change in a task of its own, so that a client that hangs up in the middle does not
/// leave it half done (committed, but neither announced nor audited).
pub async fn to_the_end<T, F, Fut>(desk: &Desk, change: F) -> Result<T, Refusal>
where
    T: Send + 'static,
    F: FnOnce(Desk) -> Fut,
    Fut: Future<Output = Result<T, Refusal>> + Send + 'static,
{
    let place = Arc::clone(&desk.places).acquire_owned().await;
    let place = place.map_err(|_| Refusal::stopping())?;
    let (answer, answered) = tokio::sync::oneshot::channel();
    let change = change(Arc::clone(desk));
    desk.beside(async move {
        // Nobody listens any more if the client has hung up.
        let _ = answer.send(change.await);
        drop(place);
    });
    answered.await.map_err(|_| Refusal::stopping())?
}
