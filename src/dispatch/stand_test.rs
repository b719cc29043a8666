//! A scheduler without its loop: tests take its steps one by one, with a device that does what they
//! say, and look at the state between them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::breaker::Evidence;
use super::parent::Settings;
use super::plan::Step;
use super::pool::{Pool, Served};
use super::scheduler::{Scheduler, State};
use super::status::Status;
use super::{Message, Skipped};
use crate::attempt::{Job, Report, Transcript};
use crate::clock;
use crate::config;
use crate::event::{Class, Cmd, EventId, StoredParams, UserId, Waiting};
use crate::logs::Logs;
use crate::nas::{Forks, Nas, NasId};
use crate::scheme::{Execute, ExitPolicy, Identity};
use crate::store::{Started, Turn, Turned, connect};

/// What an attempt does; without an answer it never ends.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Report(Report),
    Panic,
}

#[derive(Default)]
pub(super) struct Device {
    pub(super) answers: Mutex<VecDeque<Answer>>,
    driver: &'static str,
    identity: Identity,
    policy: ExitPolicy,
    own: BTreeSet<Cmd>,
}

impl Device {
    pub(super) fn with_driver(driver: &'static str) -> Self {
        Self {
            driver,
            ..Self::default()
        }
    }

    pub(super) fn with_cmds(own: BTreeSet<Cmd>) -> Self {
        Self {
            own,
            ..Self::default()
        }
    }
}

#[async_trait]
impl Execute for Device {
    async fn run(&self, _: &Job, transcript: &mut Transcript) -> Report {
        transcript.command("what was sent");
        transcript.flush();
        let answer = self.answers.lock().unwrap().pop_front();
        match answer {
            Some(Answer::Report(report)) => report,
            Some(Answer::Panic) => panic!("planted"),
            None => std::future::pending().await,
        }
    }
    fn policy(&self) -> &ExitPolicy {
        &self.policy
    }
    fn identity(&self) -> &Identity {
        &self.identity
    }
    fn has(&self, _: &Cmd) -> bool {
        true
    }
    fn driver(&self) -> &'static str {
        self.driver
    }
    fn own_cmds(&self) -> BTreeSet<Cmd> {
        self.own.clone()
    }
}

pub(super) const NAS: NasId = NasId(1);
/// Later than any clock of a test: a claim since then is never late, and nothing has changed since.
pub(super) const FRESH: u64 = u64::MAX / 2;

pub(super) fn served(nas: NasId, forks: i64, device: &Arc<Device>) -> Served {
    Served {
        nas: Arc::new(Nas {
            forks: Forks::clamped(forks).0,
            ..Nas::new(nas, "Bras", "10.90.185.2")
        }),
        secret: Arc::default(),
        execute: Arc::clone(device) as Arc<dyn Execute>,
        scheme_hash: "a".to_owned(),
        log_name: "Bras.log".to_owned(),
        paused_from_ms: None,
        paused_until_ms: None,
    }
}

pub(super) fn waiting(id: i64, user: i64, class: Class) -> Waiting {
    Waiting {
        id: EventId(id),
        nas: NAS,
        user: Some(UserId(user)),
        class,
        since_ms: 0,
        next_try_ms: 0,
        expires_ms: 0,
        tries: 0,
        deaths: 0,
    }
}

pub(super) fn started(id: EventId) -> Started {
    Started {
        id,
        cmd: "user_add".to_owned(),
        user: Some(UserId(7)),
        abonent: None,
        usluga: None,
        params: StoredParams::default(),
        accepted_ms: 0,
        try_count: 3,
        possible_duplicate: false,
    }
}

pub(super) fn failed(parks: bool) -> Evidence {
    Evidence::NasFailure {
        text: "no connection".to_owned(),
        parks,
    }
}

/// What a test does to the state before it looks.
pub(super) type Change = fn(&mut Stand);

pub(super) struct Stand {
    pub(super) scheduler: Scheduler,
    pub(super) s: State,
    pub(super) device: Arc<Device>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) inbox: mpsc::Receiver<Message>,
    _dir: tempfile::TempDir,
}

impl Stand {
    /// One NAS with so many forks.
    pub(super) async fn new(forks: i64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/ned.db", dir.path().display());
        let (sender, inbox) = mpsc::channel(64);
        let (told, status) = watch::channel(Status::default());
        let scheduler = Scheduler {
            store: connect(&url).await.unwrap(),
            logs: Logs::open(dir.path(), "bras", 1).unwrap(),
            config: Arc::new(config::Dispatch::default()),
            result_dir: None,
            epoch: 1,
            status: told,
            sender,
        };
        let s = State::new(CancellationToken::new(), &scheduler.config);
        let mut stand = Self {
            scheduler,
            s,
            device: Arc::default(),
            status,
            inbox,
            _dir: dir,
        };
        let nas = served(NAS, forks, &stand.device);
        stand.apply(vec![Step::Start(NAS, nas)]);
        // Nothing is read from the store unless a test says so.
        stand.s.lanes.wanted();
        stand.s.lanes.loaded(NAS, &[], false, 0, 0);
        stand
    }

    pub(super) fn apply(&mut self, steps: Vec<Step<Served>>) {
        let skipped = Skipped::new();
        let settings = Settings { steps, skipped };
        self.scheduler
            .apply(&mut self.s, settings, clock::tick_ms());
    }

    pub(super) fn pool(&mut self) -> &mut Pool {
        self.s.pools.get_mut(&NAS).unwrap()
    }

    pub(super) fn add(&mut self, id: i64, user: i64, class: Class) {
        self.s.lanes.add(&waiting(id, user, class), 0, 0);
    }

    /// What a turn of this moment would start.
    pub(super) fn pick(&mut self, now: u64) -> Turn {
        let mut turn = Turn::default();
        let wall_ms = clock::wall_ms();
        self.scheduler.pick(&mut self.s, &mut turn, now, wall_ms);
        turn
    }

    /// The database has written the turn.
    pub(super) fn written(&mut self, turn: &Turn, since: u64) {
        let turned = Turned {
            settled: Vec::new(),
            started: turn.starts.iter().map(|id| started(*id)).collect(),
        };
        self.scheduler.start(&mut self.s, turn, turned, since);
    }

    /// Claims what waits and starts what finds a fork; at most four more for each of them.
    pub(super) fn claim(&mut self, since: u64) -> Vec<i64> {
        let now = clock::tick_ms();
        self.pool().took(now, 0);
        let turn = self.pick(now);
        self.written(&turn, since);
        turn.starts.iter().map(|id| id.0).collect()
    }

    pub(super) fn runs(&self, id: i64) -> bool {
        self.s
            .out
            .get(&EventId(id))
            .is_some_and(|out| out.holds_fork)
    }

    /// Claimed, at work, and ahead.
    pub(super) fn counts(&mut self) -> (usize, usize, usize) {
        let pool = self.pool();
        (pool.taken, pool.running, pool.ahead.len())
    }

    /// The NAS does not obey; when it may be probed.
    pub(super) fn breaks(&mut self) -> u64 {
        let now = clock::tick_ms();
        let mut breaker = self.pool().breaker();
        let ticket = breaker.started(false);
        let _ = breaker.ended(now, ticket, Some(UserId(9)), failed(false), 0);
        breaker.next_probe().unwrap()
    }

    pub(super) fn pause(&mut self) {
        self.pool().served.paused_until_ms = Some(i64::MAX);
    }

    /// One attempt ends.
    pub(super) async fn end(&mut self) {
        let ended = self.s.attempts.next().await;
        self.scheduler.ended(&mut self.s, ended);
    }

    pub(super) fn log(&self) -> String {
        let log = self.scheduler.logs.nas_file("Bras.log");
        std::fs::read_to_string(self.scheduler.logs.nas_path(&log)).unwrap_or_default()
    }
}
