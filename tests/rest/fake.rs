//! A store in memory: what the doors ask of one, and switches for its failures.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use nas_event_daemon::config::Http;
use nas_event_daemon::event::{Cmd, CompactEvent, EventId, UserId, Waiting};
use nas_event_daemon::intake::access::Peer;
use nas_event_daemon::intake::rest::{Doors, router};
use nas_event_daemon::nas::{BadNas, Nas, NasChange, NasId, NasSecret, NasState};
use nas_event_daemon::store::query::{Column, Model, Query};
use nas_event_daemon::store::{
    AccountFlags, After, Backlog, Cause, Counts, Error, EventRow, Expansion, Filter, GuardOrder,
    Idempotency, OrderKind, Owner, Post, Posted, Result, SqlAnswer, Store, Token, Turn, Turned,
    WhereIs,
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore, watch};
use tower::ServiceExt;

use crate::constraint::Constraint;

/// A store in memory.
pub(crate) struct Fake {
    /// Every accepted call.
    pub(crate) posts: Mutex<Vec<Vec<CompactEvent>>>,
    /// Every audit row.
    pub(crate) audits: Mutex<Vec<(String, String, String)>>,
    /// Rows by id.
    pub(crate) rows: Mutex<BTreeMap<i64, EventRow>>,
    /// Operators' settings.
    pub(crate) states: Mutex<BTreeMap<NasId, NasState>>,
    /// Rows of the main stack.
    pub(crate) main: AtomicI64,
    /// Every call fails from now on.
    pub(crate) broken: AtomicBool,
    /// Counting never ends.
    pub(crate) stuck: AtomicBool,
    /// Posts that may go through; the others wait.
    pub(crate) gate: Semaphore,
    /// How many posts came with each call.
    pub(crate) batches: Mutex<Vec<usize>>,
    /// A command for whose row the database refuses a whole transaction.
    pub(crate) trouble: Mutex<Option<&'static str>>,
    posting: AtomicI64,
    keys: Mutex<BTreeMap<String, (String, Vec<EventId>)>>,
}

impl Fake {
    fn new() -> Self {
        Self {
            posts: Mutex::default(),
            audits: Mutex::default(),
            rows: Mutex::default(),
            states: Mutex::default(),
            main: AtomicI64::new(0),
            broken: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            batches: Mutex::default(),
            trouble: Mutex::default(),
            posting: AtomicI64::new(0),
            keys: Mutex::default(),
        }
    }

    fn works(&self) -> Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::Sql {
                doing: "talking to the database",
                source: sqlx::Error::PoolClosed,
            });
        }
        Ok(())
    }

    /// Moves an event to done or dead.
    pub(crate) fn end(&self, id: i64, place: WhereIs, answer: Option<&str>) {
        let mut rows = self.rows.lock().unwrap();
        let row = rows.get_mut(&id).unwrap();
        row.place = place;
        row.state = if place == WhereIs::Dead {
            "dead"
        } else {
            "done"
        }
        .to_owned();
        row.answer = answer.map(str::to_owned);
    }

    /// Waits until so many posts have come to the store.
    pub(crate) async fn arrived(&self, posts: i64) {
        while self.posting.load(Ordering::SeqCst) < posts {
            tokio::task::yield_now().await;
        }
    }

    fn known(&self, guard: &Idempotency) -> Option<Posted> {
        let keys = self.keys.lock().unwrap();
        let (hash, ids) = keys.get(&guard.key)?;
        Some(if *hash == guard.body_hash {
            Posted::Again(ids.clone())
        } else {
            Posted::Conflict
        })
    }

    fn put(&self, post: &Post<'_>) -> Posted {
        if let Some(known) = post.guard.and_then(|guard| self.known(guard)) {
            return known;
        }
        let mut rows = self.rows.lock().unwrap();
        let mut ids = Vec::new();
        for event in post.events {
            let id = EventId(rows.last_key_value().map_or(1, |(id, _)| id + 1));
            rows.insert(id.0, row(id, event));
            ids.push(id);
        }
        self.posts.lock().unwrap().push(post.events.to_vec());
        if let Some(guard) = post.guard {
            let kept = (guard.body_hash.clone(), ids.clone());
            self.keys.lock().unwrap().insert(guard.key.clone(), kept);
        }
        Posted::New(ids)
    }

    /// All accepted events.
    pub(crate) fn events(&self) -> Vec<CompactEvent> {
        self.posts.lock().unwrap().concat()
    }

    /// The audit table as text.
    pub(crate) fn audit_lines(&self) -> Vec<String> {
        let audits = self.audits.lock().unwrap();
        audits
            .iter()
            .map(|(who, what, detail)| format!("{who} {what} {detail}"))
            .collect()
    }
}

fn row(id: EventId, event: &CompactEvent) -> EventRow {
    EventRow {
        user_id: event.user_id,
        nas_id: event.nas_id,
        source: event.source.clone(),
        batch_id: event.batch_id.clone(),
        event_date_ms: 1_767_323_045_678,
        ..EventRow::new(id, WhereIs::Compact, "compact", &event.cmd)
    }
}

fn no<T>() -> Result<T> {
    Err(Error::Refused("not needed by the doors".to_owned()))
}

#[async_trait]
impl Store for Fake {
    async fn check_billing(&self) -> Result<Vec<String>> {
        no()
    }
    async fn own(&self, _: &str, _: After) -> Result<i64> {
        no()
    }
    async fn owner(&self) -> Result<Option<Owner>> {
        self.works()?;
        if self.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(None)
    }
    async fn still_own(&self, _: i64) -> Result<bool> {
        no()
    }
    async fn disown(&self, _: i64) -> Result<()> {
        no()
    }
    async fn recover(&self, _: i64, _: u32) -> Result<(u64, u64)> {
        no()
    }

    async fn post_all(&self, posts: &[Post<'_>]) -> Result<Vec<Result<Posted>>> {
        self.works()?;
        self.batches.lock().unwrap().push(posts.len());
        let trouble = *self.trouble.lock().unwrap();
        if let Some(bad) = trouble
            && posts.iter().any(|p| p.events.iter().any(|e| e.cmd == bad))
        {
            return Err(Error::Sql {
                doing: "insert a compact event",
                source: sqlx::Error::Database(Box::new(Constraint)),
            });
        }
        let mut answers = Vec::new();
        for post in posts {
            self.posting.fetch_add(1, Ordering::SeqCst);
            self.gate.acquire().await.unwrap().forget();
            let done = self.put(post);
            if let (Some(who), Posted::New(ids)) = (post.who, &done) {
                let cmd = post.events.first().map_or("", |e| e.cmd.as_str());
                let detail = ids.iter().map(|id| format!("event={id} cmd={cmd}"));
                let detail = detail.collect::<Vec<_>>().join("; ");
                let row = (who.to_owned(), "post".to_owned(), detail);
                self.audits.lock().unwrap().push(row);
            }
            answers.push(Ok(done));
        }
        Ok(answers)
    }

    async fn confirm_keys(&self, _: &[String]) -> Result<()> {
        no()
    }

    async fn posted_before(&self, guard: &Idempotency) -> Result<Option<Posted>> {
        Ok(self.known(guard))
    }

    async fn expand(&self, _: usize, _: &[Cmd]) -> Result<Expansion> {
        no()
    }
    async fn expand_urgent(&self, _: usize, _: &[Cmd]) -> Result<Expansion> {
        no()
    }
    async fn retry_expansion(&self) -> Result<u64> {
        no()
    }
    async fn load(&self, _: NasId, _: EventId, _: usize) -> Result<Vec<Waiting>> {
        no()
    }
    async fn refill(&self, _: &[(NasId, Option<UserId>)], _: usize) -> Result<Vec<Waiting>> {
        no()
    }
    async fn params_now(&self, _event: EventId) -> Result<Option<nas_event_daemon::event::Params>> {
        Err(Error::Refused("not in the fake".to_owned()))
    }

    async fn stacked_nases(&self) -> Result<Vec<NasId>> {
        no()
    }
    async fn turn(&self, _: &Turn) -> Result<Turned> {
        no()
    }

    async fn causes(&self, _: &[EventId]) -> Result<Vec<Cause>> {
        no()
    }
    async fn hold(&self, _: i64, _: &[(EventId, String)]) -> Result<Vec<EventId>> {
        no()
    }
    async fn guard_orders(&self) -> Result<Vec<GuardOrder>> {
        no()
    }
    async fn add_guard_order(&self, _: &GuardOrder) -> Result<i64> {
        no()
    }
    async fn remove_guard_order(&self, _: i64, _: OrderKind) -> Result<bool> {
        no()
    }

    async fn nases(&self) -> Result<Vec<std::result::Result<Nas, BadNas>>> {
        self.works()?;
        let bad = |id, ip: &str| BadNas {
            id: NasId(id),
            ip: ip.to_owned(),
            reason: "mode is 'x'".to_owned(),
        };
        Ok(vec![Ok(test_nas()), Err(bad(7, "10.0.0.7"))])
    }

    async fn nas_states(&self) -> Result<BTreeMap<NasId, NasState>> {
        Ok(self.states.lock().unwrap().clone())
    }

    async fn set_host_key(&self, _: NasId, _: Option<&str>, _: Option<&str>) -> Result<bool> {
        Ok(true)
    }

    async fn change_nas(&self, nas: NasId, change: &NasChange) -> Result<()> {
        let mut states = self.states.lock().unwrap();
        states.entry(nas).or_default().apply(change);
        Ok(())
    }

    async fn secret(&self, _: NasId) -> Result<NasSecret> {
        no()
    }

    async fn counts(&self) -> Result<Counts> {
        self.works()?;
        if self.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let main = self.main.load(Ordering::SeqCst);
        let rows = self.rows.lock().unwrap();
        let compact = rows
            .values()
            .filter(|r| r.place == WhereIs::Compact)
            .count();
        Ok(Counts {
            compact: i64::try_from(compact).unwrap(),
            main: vec![("user_add".to_owned(), main)],
            by_nas: vec![(1116, "ready".to_owned(), main)],
            ..Counts::default()
        })
    }

    async fn backlog(&self, most: usize) -> Result<Backlog> {
        let counts = self.counts().await?;
        let main: i64 = counts.main.iter().map(|(_, n)| n).sum();
        let upto = |n: i64| usize::try_from(n).unwrap().min(most);
        Ok(Backlog {
            compact: upto(counts.compact),
            main: upto(main),
        })
    }

    async fn events(&self, filter: &Filter) -> Result<Vec<EventRow>> {
        self.works()?;
        let rows = self.rows.lock().unwrap();
        let fits = |r: &&EventRow| {
            filter.state.as_ref().is_none_or(|s| r.state == *s)
                && filter.user.is_none_or(|u| r.user_id == Some(u))
                && filter.cmd.as_ref().is_none_or(|c| r.cmd == *c)
                && filter.before.is_none_or(|b| r.id.0 < b)
        };
        let newest_first = rows.values().rev().filter(fits);
        Ok(newest_first.take(filter.limit).cloned().collect())
    }

    async fn event(&self, id: EventId) -> Result<Option<EventRow>> {
        self.works()?;
        Ok(self.rows.lock().unwrap().get(&id.0).cloned())
    }

    // The models are read from real databases only: `models.rs`.
    fn columns(&self, _: Model) -> Vec<Column> {
        Vec::new()
    }
    /// It has no rows so far down.
    async fn find(&self, _: &Query) -> Result<Vec<Map<String, Value>>> {
        Ok(Vec::new())
    }
    async fn count(&self, _: &Query) -> Result<i64> {
        no()
    }
    async fn rewrite(&self, _: EventId, _: &CompactEvent) -> Result<bool> {
        no()
    }

    async fn retry_dead(&self, id: EventId) -> Result<Option<EventId>> {
        let rows = self.rows.lock().unwrap();
        let dead = rows.get(&id.0).is_some_and(|r| r.place == WhereIs::Dead);
        Ok(dead.then_some(EventId(id.0 + 100)))
    }

    async fn retry_later(&self, _: &[(EventId, i64)]) -> Result<u64> {
        no()
    }
    async fn retries_due(&self, _: usize) -> Result<Vec<(EventId, i64)>> {
        no()
    }
    async fn forgo_retry(&self, _: EventId) -> Result<()> {
        no()
    }
    async fn move_retries(&self, _: i64) -> Result<u64> {
        no()
    }

    async fn drop_event(&self, id: EventId, state: Option<&str>, why: &str) -> Result<bool> {
        let mut rows = self.rows.lock().unwrap();
        let Some(row) = rows.get_mut(&id.0) else {
            return Ok(false);
        };
        if row.state == "running" || state.is_some_and(|state| row.state != state) {
            return Ok(false);
        }
        row.place = WhereIs::Done;
        row.state = "dropped".to_owned();
        row.error = Some(why.to_owned());
        Ok(true)
    }

    async fn account_flags(
        &self,
        _: Option<NasId>,
        _: Option<UserId>,
    ) -> Result<Vec<AccountFlags>> {
        no()
    }
    async fn prune_done(&self, _: i64, _: usize) -> Result<u64> {
        no()
    }
    async fn prune_audit(&self, _: i64, _: usize) -> Result<u64> {
        no()
    }
    async fn add_token(&self, _: &Token) -> Result<()> {
        no()
    }

    /// The token `t-viewer` has the scope viewer, and so on.
    async fn token(&self, hash: &str) -> Result<Option<Token>> {
        self.works()?;
        let known = ["viewer", "support", "operator", "admin"].iter();
        Ok(known
            .map(|scope| Token {
                name: format!("crm-{scope}"),
                scope: (*scope).to_owned(),
                hash: format!("{:x}", Sha256::digest(format!("t-{scope}"))),
            })
            .find(|token| token.hash == hash))
    }

    async fn audit(&self, who: &str, what: &str, detail: &str) -> Result<()> {
        let row = (who.to_owned(), what.to_owned(), detail.to_owned());
        self.audits.lock().unwrap().push(row);
        Ok(())
    }

    fn sql_allowed(&self, _: &str, _: bool) -> Result<()> {
        no()
    }
    async fn sql(&self, _: &str, _: bool) -> Result<SqlAnswer> {
        no()
    }
}

fn test_nas() -> Nas {
    let vars = serde_json::json!({ "hidden": "servicemode" });
    Nas {
        http_url: Some("https://admin:servicemode@10.90.185.2/".to_owned()),
        vars: vars.as_object().unwrap().clone(),
        ..Nas::new(NasId(1116), "Test_NAS", "10.90.185.2")
    }
}

/// The doors over a fake store.
pub(crate) struct House {
    /// The store behind them.
    pub(crate) fake: Arc<Fake>,
    /// The doors.
    pub(crate) router: Router,
    /// Expansion's bell.
    pub(crate) wake: Arc<Notify>,
    /// The parent loop's bell.
    pub(crate) reload: Arc<Notify>,
    /// When the parent loop turned last.
    pub(crate) parent_tick: Arc<AtomicU64>,
}

/// Doors that are open from 10.1.2.0/24 and loopback; `high_water` 0 = no mark.
pub(crate) fn house(high_water: usize) -> House {
    let fake = Arc::new(Fake::new());
    let store = Arc::clone(&fake) as Arc<dyn Store>;
    built(fake, store, high_water)
}

/// The same doors over a real database; the fake has no part in it.
pub(crate) fn house_on(store: Arc<dyn Store>) -> House {
    built(Arc::new(Fake::new()), store, 0)
}

fn built(fake: Arc<Fake>, store: Arc<dyn Store>, high_water: usize) -> House {
    let wake = Arc::new(Notify::new());
    let reload = Arc::new(Notify::new());
    let (_, cmds) = watch::channel(vec![Cmd::parse("my_own").unwrap()]);
    let parent_tick = Arc::new(AtomicU64::new(nas_event_daemon::clock::tick_ms()));
    let doors = Doors {
        store,
        http: Http {
            listen: vec!["127.0.0.1:8082".to_owned()],
            high_water,
            open_from: vec![
                "10.1.2.0/24".parse().unwrap(),
                "127.0.0.1/32".parse().unwrap(),
            ],
        },
        dropped: None,
        resumed: None,
        wake: Arc::clone(&wake),
        reload: Arc::clone(&reload),
        cmds,
        parent_tick: Arc::clone(&parent_tick),
        settings_interval: Duration::from_secs(60),
        metrics: Some(nas_event_daemon::intake::rest::install_metrics()),
        metrics_max_nas: 300,
        high_water,
        history_keep: Duration::from_secs(7_200),
        limited: Arc::new(AtomicBool::new(false)),
        logs: None,
        tester: None,
        foresee: None,
        is_full: None,
        dispatch: Some(Arc::new(|| serde_json::json!({ "turns": 7 }))),
    };
    House {
        fake,
        router: router(doors),
        wake,
        reload,
        parent_tick,
    }
}

/// An answer: status, headers by name, body.
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// The head.
    pub(crate) head: axum::http::HeaderMap,
    /// The body.
    pub(crate) text: String,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
}

impl House {
    /// Sends a request from 192.0.2.9 unless it has a peer.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Answer {
        if request.extensions().get::<Peer>().is_none() {
            let peer = Peer::Tcp("192.0.2.9:4000".parse().unwrap());
            request.extensions_mut().insert(peer);
        }
        let answer: Response<Body> = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            head: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    /// With the token of a scope.
    pub(crate) async fn with(&self, scope: &str, method: &str, path: &str, body: &str) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1:8082")
            .header("authorization", format!("Bearer t-{scope}"))
            .body(Body::from(body.to_owned()))
            .unwrap();
        self.send(request).await
    }

    /// From an open network, with more headers.
    pub(crate) async fn open(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::builder().method("POST").uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(body.to_owned())).unwrap();
        let peer = Peer::Tcp("10.1.2.3:4000".parse().unwrap());
        request.extensions_mut().insert(peer);
        self.send(request).await
    }
}

/// Far above anything that is waited for here, even on a machine that is busy with other tests.
pub(crate) const LONG: Duration = Duration::from_secs(90);

/// Whether the bell has rung (or rings while it is waited for, if `wait`).
pub(crate) async fn rung(bell: &Notify, wait: bool) -> bool {
    let time = if wait { LONG } else { Duration::ZERO };
    tokio::time::timeout(time, bell.notified()).await.is_ok()
}
