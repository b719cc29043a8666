//! The daemon as a function: from a configuration to running tasks, with a ready answer and
//! stop tokens, so that tests and the demo start the real thing.
//!
//! Tasks, all owned by one `JoinSet` (the first that ends unexpectedly stops all): the settings
//! loop, expansion, the hand-over from expansion to the scheduler, the scheduler (which owns
//! the forks), one server per listener, the sign of life, the pruning of history.

pub mod alarms;
pub mod doors;
pub mod notify;
mod ownership;
pub mod process;
pub mod shutdown;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::exit::{self, Failed};
use crate::clock;
use crate::config::Config;
use crate::dispatch::parent::{Parent, Resolve};
use crate::dispatch::scheduler::Scheduler;
use crate::dispatch::status::Status;
use crate::dispatch::{MESSAGES, Message};
use crate::driver::sessions::Sessions;
use crate::expand::hold::Watch;
use crate::expand::level::Level;
use crate::expand::{BATCH_POSTGRES, BATCH_SQLITE, Expander};
use crate::intake::{access, health, later, rest, serve};
use crate::logs::Logs;
use crate::nas::NasId;
use crate::scheme::native::{NativeExecute, NativeScheme};
use crate::scheme::ride::{self, Rides};
use crate::scheme::{Execute, resolve};
use crate::store::{self, Error, Store, chain};

use ownership::{given_up, own, owned_by_another, sign_of_life};
use shutdown::{Signals, Stop};

/// How often the sign of life is renewed: several times within `STALE_MS`.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How often old done events are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// Done events deleted in one statement: small chunks never hold the writer for long.
const PRUNE_CHUNK: usize = 500;
/// Hash of a scheme's files and what loading it gave.
type Loaded = (String, Result<Arc<dyn Execute>, String>);

/// Process deaths after which an event is dead: it ran alone the last time.
const DEATHS_MAX: u32 = crate::dispatch::lanes::SUSPECT_DEATHS;

/// A started daemon, as tests, the demo and `run` see it.
pub struct Running {
    /// Addresses that are really listened on.
    pub addresses: Vec<SocketAddr>,
    /// The unix socket for operators.
    pub ctl: PathBuf,
    /// The open store.
    pub store: Arc<dyn Store>,
    /// What the scheduler says of itself.
    pub status: watch::Receiver<Status>,
    /// Pokes the settings loop.
    pub reload: Arc<Notify>,
    /// All logs.
    pub logs: Logs,
    /// [`clock::tick_ms`] of the settings loop's last turn.
    pub parent_tick: Arc<AtomicU64>,
    /// Ends it.
    pub stop: Stop,
    tasks: JoinSet<Result<&'static str, Error>>,
    servers: JoinSet<()>,
    epoch: i64,
    _pid: process::PidFile,
}

/// `nas_event_daemon run`: starts, follows the signals, waits for the end.
pub async fn run_with_signals(config: Config) -> Result<(), Failed> {
    process::forbid_core_dumps();
    process::raise_descriptor_limit();
    let signals = Signals::catch()
        .map_err(|e| Failed::new(exit::FAILED, format!("cannot catch signals: {e}")))?;
    let logs = open_logs(&config)?;
    let level = std::env::var("NED_LOG").ok();
    let subscriber = crate::logs::subscriber(&logs, level.as_deref())
        .map_err(|e| Failed::new(exit::USAGE, e.to_string()))?;
    // Fails only if a subscriber is set already, which then serves as well.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let settings_interval = config.dispatch.settings_interval;
    let running = start(config, logs.clone()).await.inspect_err(|failed| {
        tracing::error!("not started: {}", failed.text.replace('\n', "; "));
    })?;
    let mut following = JoinSet::new();
    if let Some(manager) = notify::Manager::of_environment() {
        let limit = health::live_limit_ms(settings_interval);
        following.spawn(manager.follow(
            Arc::clone(&running.store),
            running.status.clone(),
            Arc::clone(&running.parent_tick),
            limit,
            running.stop.soft.clone(),
        ));
    }
    following.spawn(signals.follow(running.stop.clone(), Arc::clone(&running.reload), logs));
    running.wait().await
}

/// Opens the logs below `paths.log`.
pub fn open_logs(config: &Config) -> Result<Logs, Failed> {
    Logs::open(&config.paths.log, &process::host(), std::process::id()).map_err(|e| {
        Failed::config(format!(
            "paths.log: {} cannot be used: {e}\nhint: create the directory and make it writable for this user",
            config.paths.log.display()
        ))
    })
}

/// Starts every task. When it returns, the doors are open and the settings have been read
/// once; when it fails, nothing is left running.
pub async fn start(config: Config, logs: Logs) -> Result<Running, Failed> {
    // Before anything is measured.
    let metrics = health::install_metrics();
    let store = store::connect(&config.database.url).await?;
    let missing = store.check_billing().await?;
    if !missing.is_empty() {
        return Err(Error::Billing(missing.join("; ")).into());
    }
    // Everything that can be refused is asked for before the ownership is taken.
    let mut listeners = Vec::new();
    for listen in &config.http.listen {
        let mut bound = TcpListener::bind(listen).await;
        if bound.is_err() {
            owned_by_another(store.as_ref()).await?;
            // A child that a killed daemon was just starting holds the port for a moment longer.
            bound = TcpListener::bind(listen).await;
        }
        let listener = bound.map_err(|e| {
            Failed::new(
                exit::BAD_CONFIG,
                format!("http.listen: {listen} cannot be listened on: {e}\nhint: another program may use the port (ss -ltnp); choose another one"),
            )
        })?;
        listeners.push(listener);
    }
    let run_failed = |e: std::io::Error| {
        Failed::config(format!(
            "paths.run: {} cannot be used: {e}\nhint: create the directory and make it writable for this user",
            config.paths.run.display()
        ))
    };
    std::fs::create_dir_all(&config.paths.run).map_err(run_failed)?;
    let epoch = own(store.as_ref()).await?;
    let ctl = config.paths.run.join("ctl.sock");
    let (ctl_listener, session_listener, pid) = match local_doors(&config, &ctl) {
        Ok(doors) => doors,
        Err(error) => {
            given_up(store.as_ref(), epoch).await;
            return Err(run_failed(error));
        }
    };
    let (returned, buried) = match store.recover(epoch, DEATHS_MAX).await {
        Ok(found) => found,
        Err(error) => {
            let _ = std::fs::remove_file(&ctl);
            given_up(store.as_ref(), epoch).await;
            return Err(error.into());
        }
    };
    if returned + buried > 0 {
        tracing::warn!(
            "the last daemon died: {returned} running events go back to ready, flagged possible_duplicate; {buried} died with it for the last time and are dead"
        );
    }

    let stop = Stop::default();
    let reload = Arc::new(Notify::new());
    let wake = Arc::new(Notify::new());
    let tick = Arc::new(AtomicU64::new(clock::tick_ms()));
    let (cmds_sender, cmds) = watch::channel(Vec::new());
    let (status_sender, status) = watch::channel(Status::default());
    let (sender, inbox) = mpsc::channel(MESSAGES);
    let (moved, mut handed) = mpsc::channel(MESSAGES);
    let (dropped, mut gone) = mpsc::channel(MESSAGES);
    let (resumed, mut again) = mpsc::channel(MESSAGES);
    let dispatch = Arc::new(config.dispatch.clone());
    let sqlite = config.database.url.starts_with("sqlite:");

    let (learned, keys) = mpsc::channel(MESSAGES);
    let sessions = Sessions::learning(Arc::new(move |nas, key| {
        // A full queue loses one; the next start of the daemon learns it again.
        let _ = learned.try_send((nas, key.to_owned()));
    }));
    let sessions = Arc::new(sessions);
    let rides = Rides::new(Arc::clone(&sessions), &config.paths.run);
    let mut parent = Parent::new(
        Arc::clone(&store),
        logs.clone(),
        resolver_riding(&config, Arc::clone(&sessions), Some(Arc::clone(&rides))),
        sender.clone(),
        Arc::clone(&reload),
        cmds_sender,
        Arc::clone(&tick),
        config.dispatch.settings_interval,
    );
    if let Err(error) = parent.round().await {
        let _ = std::fs::remove_file(&ctl);
        given_up(store.as_ref(), epoch).await;
        return Err(error.into());
    }
    let limited = Arc::new(AtomicBool::new(false));
    let held = Arc::new(AtomicUsize::new(0));
    let expander = Expander {
        store: Arc::clone(&store),
        wake: Arc::clone(&wake),
        poll: config.dispatch.poll_interval,
        batch: if sqlite { BATCH_SQLITE } else { BATCH_POSTGRES },
        cmds: cmds.clone(),
        moved,
        watch: Watch::new(Arc::clone(&store), config.dispatch.guard, epoch),
        level: Level::new(config.http.high_water, Arc::clone(&limited)),
        held: Arc::clone(&held),
    };
    let scheduler = Scheduler {
        store: Arc::clone(&store),
        logs: logs.clone(),
        config: dispatch,
        result_dir: (!config.compat.result_dir.is_empty())
            .then(|| PathBuf::from(&config.compat.result_dir)),
        epoch,
        status: status_sender,
        sender: sender.clone(),
    };

    let mut tasks: JoinSet<Result<&'static str, Error>> = JoinSet::new();
    let soft = stop.soft.clone();
    tasks.spawn(async move {
        parent.run(soft).await;
        Ok("the settings loop")
    });
    let soft = stop.soft.clone();
    tasks.spawn(async move {
        expander.run(soft).await;
        Ok("expansion")
    });
    tasks.spawn(async move {
        // Ends with expansion, which is asked to stop; the doors close later.
        loop {
            let message = tokio::select! {
                events = handed.recv() => match events {
                    Some(events) => Message::Waiting(events),
                    None => break,
                },
                Some((id, nas, user)) = gone.recv() => Message::Dropped(id, nas, user),
                Some(nas) = again.recv() => Message::Resumed(nas),
            };
            if sender.send(message).await.is_err() {
                break;
            }
        }
        Ok("the hand-over")
    });
    let (soft, hard) = (stop.soft.clone(), stop.hard.clone());
    // The sign of life goes on while running events drain.
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    tasks.spawn(async move {
        let _guard = guard;
        scheduler
            .run(inbox, soft, hard)
            .await
            .map(|()| "the scheduler")
    });
    tasks.spawn(sign_of_life(Arc::clone(&store), epoch, ended));
    tasks.spawn(doors::keep_sessions(
        Arc::clone(&sessions),
        status.clone(),
        stop.soft.clone(),
    ));
    let keep = (config.history.keep, config.audit.keep);
    tasks.spawn(prune(Arc::clone(&store), keep, stop.clone()));
    let due = later::run(Arc::clone(&store), Arc::clone(&wake), stop.soft.clone());
    tasks.spawn(async move {
        due.await;
        Ok("the retries that are due")
    });
    tasks.spawn(keep_host_keys(
        Arc::clone(&store),
        keys,
        Arc::clone(&reload),
        stop.clone(),
    ));

    let watched = alarms::Watched {
        store: Arc::clone(&store),
        status: status.clone(),
        limited: Arc::clone(&limited),
        held,
        logs: logs.clone(),
    };
    let alarm = config.alarm.clone();
    tasks.spawn(alarms::run(
        alarm,
        process::host(),
        watched,
        stop.soft.clone(),
    ));

    let given = rest::Doors {
        store: Arc::clone(&store),
        http: config.http.clone(),
        wake,
        dropped: Some(dropped),
        resumed: Some(resumed),
        reload: Arc::clone(&reload),
        cmds,
        parent_tick: Arc::clone(&tick),
        settings_interval: config.dispatch.settings_interval,
        metrics: Some(metrics.clone()),
        metrics_max_nas: config.metrics.max_nas,
        high_water: config.http.high_water,
        history_keep: config.history.keep,
        limited,
        logs: Some(logs.clone()),
        tester: Some(doors::tester(&config, Arc::clone(&store))),
        foresee: Some({
            let mode = config.dispatch.guard;
            Arc::new(move |asks, accounts, orders| doors::foreseen(asks, accounts, orders, mode))
        }),
        is_full: Some({
            let config = config.clone();
            Arc::new(move || process::is_database_full(&config))
        }),
        dispatch: Some({
            let status = status.clone();
            Arc::new(move || doors::with_sessions(&status.borrow(), &sessions))
        }),
    };
    let router = rest::router(given);
    let addresses = listeners
        .iter()
        .filter_map(|l| l.local_addr().ok())
        .collect();
    let mut servers = JoinSet::new();
    for listener in listeners {
        servers.spawn(serve::serve(listener, router.clone(), stop.soft.clone()));
    }
    let locals = access::Locals::of_this_machine();
    servers.spawn(serve::serve_ctl(
        ctl_listener,
        router,
        stop.soft.clone(),
        locals,
    ));
    // Scripts that still run while the daemon drains need their sessions: this door closes last,
    // when the servers are shut down.
    servers.spawn(rides.serve(session_listener, CancellationToken::new()));
    servers.spawn(health::metrics_upkeep(metrics, stop.soft.clone()));
    Ok(Running {
        addresses,
        ctl,
        store,
        status,
        reload,
        logs,
        parent_tick: tick,
        stop,
        tasks,
        servers,
        epoch,
        _pid: pid,
    })
}

impl Running {
    /// Waits until it has stopped, gives the ownership up, removes the sockets.
    pub async fn wait(mut self) -> Result<(), Failed> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let failure: Option<Failed> = match ended {
                Ok(Ok(_)) if self.stop.soft.is_cancelled() => None,
                Ok(Ok(who)) => Some(Failed::new(exit::BUG, format!("{who} ended by itself"))),
                Ok(Err(error)) => Some(error.into()),
                Err(error) if error.is_cancelled() => None,
                Err(error) => Some(Failed::new(
                    exit::BUG,
                    format!("a task of the daemon broke: {error}"),
                )),
            };
            if let Some(failed) = failure {
                tracing::error!("stopping: {}", failed.text.replace('\n', "; "));
                if result.is_ok() {
                    result = Err(failed);
                }
                self.stop.soft.cancel();
                self.stop.hard.cancel();
            }
        }
        self.stop.soft.cancel();
        self.servers.shutdown().await;
        if let Err(error) = self.store.disown(self.epoch).await {
            tracing::warn!("the ownership could not be given up: {}", chain(&error));
        }
        let _ = std::fs::remove_file(&self.ctl);
        let _ = std::fs::remove_file(self.ctl.with_file_name(ride::SOCKET));
        self.logs.daemon("Stopped");
        result
    }
}

/// The control socket, the scripts' socket with their helpers, and the pid file; all or none.
fn local_doors(
    config: &Config,
    ctl: &Path,
) -> std::io::Result<(
    tokio::net::UnixListener,
    tokio::net::UnixListener,
    process::PidFile,
)> {
    let listener = serve::bind_ctl(ctl)?;
    let run = &config.paths.run;
    let others = || {
        ride::link_helpers(run)?;
        ride::link_config(run, config.file.as_deref())?;
        let session = ride::bind(run)?;
        Ok((session, process::PidFile::write(run)?))
    };
    match others() {
        Ok((session, pid)) => Ok((listener, session, pid)),
        Err(error) => {
            let _ = std::fs::remove_file(ctl);
            Err(error)
        }
    }
}

/// Writes down each SSH host key that was learned, once; one that is there stays.
async fn keep_host_keys(
    store: Arc<dyn Store>,
    mut keys: mpsc::Receiver<(NasId, String)>,
    reload: Arc<Notify>,
    stop: Stop,
) -> Result<&'static str, Error> {
    loop {
        let (nas, key) = tokio::select! {
            () = stop.soft.cancelled() => return Ok("the keeping of host keys"),
            Some(learned) = keys.recv() => learned,
        };
        loop {
            match store.set_host_key(nas, None, Some(&key)).await {
                Ok(true) => {
                    tracing::info!("SSH host key learned nasid={nas} key={key:?}");
                    reload.notify_one();
                    break;
                }
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!("a learned host key could not be written: {}", chain(&error));
                }
            }
            tokio::select! {
                () = stop.soft.cancelled() => return Ok("the keeping of host keys"),
                () = tokio::time::sleep(SIGN_OF_LIFE) => {}
            }
        }
    }
}

/// Deletes done events and audit rows that are old enough; the first time at the start.
async fn prune(
    store: Arc<dyn Store>,
    (done, audit): (Duration, Duration),
    stop: Stop,
) -> Result<&'static str, Error> {
    let before = |keep: Duration| {
        let keep_ms = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
        clock::wall_ms().saturating_sub(keep_ms)
    };
    while !stop.soft.is_cancelled() {
        let mut more = true;
        while more && !stop.soft.is_cancelled() {
            let pruned = async {
                let done = store.prune_done(before(done), PRUNE_CHUNK).await?;
                let audit = store.prune_audit(before(audit), PRUNE_CHUNK).await?;
                Ok::<_, Error>(done.max(audit) >= PRUNE_CHUNK as u64)
            };
            more = pruned.await.unwrap_or_else(|error| {
                tracing::warn!("old rows could not be deleted: {}", chain(&error));
                false
            });
        }
        tokio::select! {
            () = stop.soft.cancelled() => {}
            () = tokio::time::sleep(PRUNE_EVERY) => {}
        }
    }
    Ok("the pruning of history")
}

/// Finds a NAS's scheme as `docs/schemes.md` says; native ones share the pooled sessions and
/// are loaded anew only when their files have changed.
pub fn resolver(config: &Config, sessions: Arc<Sessions>) -> Resolve {
    resolver_riding(config, sessions, None)
}

/// The same for the daemon itself, whose scripts ride on the sessions.
fn resolver_riding(config: &Config, sessions: Arc<Sessions>, rides: Option<Arc<Rides>>) -> Resolve {
    let paths = config.paths.clone();
    let loaded: Mutex<BTreeMap<PathBuf, Loaded>> = Mutex::new(BTreeMap::new());
    Arc::new(move |nas| {
        let native = |dir: &Path| -> Result<Arc<dyn Execute>, String> {
            let hash = resolve::hash(dir)?;
            let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((kept, result)) = loaded.get(dir)
                && *kept == hash
            {
                return result.clone();
            }
            let result = match NativeScheme::load(dir) {
                Ok(scheme) => {
                    for warning in scheme.warnings() {
                        tracing::warn!("{warning}");
                    }
                    Ok(
                        Arc::new(NativeExecute::new(Arc::new(scheme), Arc::clone(&sessions)))
                            as Arc<dyn Execute>,
                    )
                }
                Err(findings) => Err(findings
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" | ")),
            };
            loaded.insert(dir.to_owned(), (hash, result.clone()));
            result
        };
        resolve::resolve_riding(nas, &paths, &native, rides.as_ref())
    })
}
