//! The settings loop: every `settings_interval`, and when poked, reads the NAS settings,
//! resolves their schemes and tells the scheduler the difference. It waits for the database
//! and the disk, never for a device.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::plan::{Step, plan};
use super::pool::Served;
use super::{Message, Obstacle, Skip, Skipped};
use crate::clock;
use crate::event::Cmd;
use crate::logs::Logs;
use crate::nas::{BadNas, Forks, Mode, Nas, NasId, log_file_names};
use crate::scheme::Execute;
use crate::store::{Result, Store, chain};

/// What changed since the last round.
#[derive(Debug)]
pub struct Settings {
    /// NASes to stop, change or start serving.
    pub steps: Vec<Step<Served>>,
    /// NASes that are not served, with the reason.
    pub skipped: Skipped,
}

/// Whether the settings could be read the last time.
const READ_WELL: &str = "nas_event_daemon_config_last_reload_successful";
/// When the settings were last read, seconds since 1970. A loop that turns in vain leaves it alone,
/// so an alarm on its age hears of a loop that stands and of a database that refuses.
const READ_AT: &str = "nas_event_daemon_reload_last_success_timestamp_seconds";

/// Turns a settings row into something that executes, or says why it cannot.
pub type Resolve = Arc<dyn Fn(&Nas) -> std::result::Result<Arc<dyn Execute>, String> + Send + Sync>;

/// A NAS that is not served.
struct Missed {
    name: String,
    ip: String,
    why: String,
    obstacle: Obstacle,
}

impl Missed {
    fn of(nas: Nas, why: String, obstacle: Obstacle) -> (NasId, Self) {
        let Nas { id, name, ip, .. } = nas;
        let missed = Self {
            name,
            ip,
            why,
            obstacle,
        };
        (id, missed)
    }
}

type Unserved = BTreeMap<NasId, Missed>;

/// The loop and what it needs.
pub struct Parent {
    /// Where settings come from.
    pub store: Arc<dyn Store>,
    /// For `Start work with nas …`.
    pub logs: Logs,
    /// Finds schemes.
    pub resolve: Resolve,
    /// To the scheduler.
    pub sender: mpsc::Sender<Message>,
    /// Pokes the loop (SIGHUP, `nas pause`, REST).
    pub reload: Arc<Notify>,
    /// Commands outside the catalogue that loaded schemes define.
    pub cmds: watch::Sender<Vec<Cmd>>,
    /// Set to the monotonic time of each round, for `/healthz`.
    pub tick: Arc<AtomicU64>,
    /// `dispatch.settings_interval`
    pub interval: Duration,
    running: BTreeMap<NasId, Served>,
    told: BTreeMap<NasId, String>,
    warned: BTreeSet<String>,
}

impl Parent {
    /// A loop that serves nothing yet.
    #[expect(
        clippy::too_many_arguments,
        reason = "the wiring of one task, named at its only call"
    )]
    pub fn new(
        store: Arc<dyn Store>,
        logs: Logs,
        resolve: Resolve,
        sender: mpsc::Sender<Message>,
        reload: Arc<Notify>,
        cmds: watch::Sender<Vec<Cmd>>,
        tick: Arc<AtomicU64>,
        interval: Duration,
    ) -> Self {
        Self {
            store,
            logs,
            resolve,
            sender,
            reload,
            cmds,
            tick,
            interval,
            running: BTreeMap::new(),
            told: BTreeMap::new(),
            warned: BTreeSet::new(),
        }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let read = self.round().await;
            metrics::gauge!(READ_WELL).set(f64::from(u8::from(read.is_ok())));
            if let Err(error) = read {
                tracing::error!(
                    "NAS settings cannot be read, the last ones stay in force: {}",
                    chain(&error)
                );
            }
            self.tick.store(clock::tick_ms(), Ordering::Relaxed);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.reload.notified() => {}
                () = tokio::time::sleep(self.interval) => {}
            }
        }
    }

    /// One reading of the settings.
    pub async fn round(&mut self) -> Result<()> {
        // The billing may have got a column meanwhile: the variable exists from now on.
        for missing in self.store.check_billing().await? {
            self.warn_once(format!(
                "the billing's tables do not fit any more: {missing}"
            ));
        }
        let rows = self.store.nases().await?;
        let states = self.store.nas_states().await?;
        let names = {
            let all = rows.iter().map(|row| match row {
                Ok(nas) => (nas.id, nas.name.as_str(), nas.ip.as_str()),
                Err(bad) => (bad.id, "", bad.ip.as_str()),
            });
            log_file_names(all)
        };
        let mut wanted = BTreeMap::new();
        let mut skipped = Unserved::new();
        let mut cmds = BTreeSet::new();
        for row in rows {
            let mut nas = match row {
                Ok(nas) => nas,
                Err(BadNas { id, ip, reason }) => {
                    let missed = Missed {
                        name: String::new(),
                        ip,
                        why: reason,
                        obstacle: Obstacle::Row,
                    };
                    skipped.insert(id, missed);
                    continue;
                }
            };
            if nas.mode == Mode::Off {
                skipped.extend([Missed::of(nas, "mode=off".to_owned(), Obstacle::Off)]);
                continue;
            }
            let state = states.get(&nas.id);
            if let Some(forks) = state.and_then(|s| s.forks) {
                (nas.forks, nas.forks_warning) = Forks::clamped(forks);
            }
            nas.ssh_known_key = state.and_then(|s| s.ssh_host_key.clone());
            let execute = match (self.resolve)(&nas) {
                Ok(execute) => execute,
                Err(reason) => {
                    skipped.extend([Missed::of(nas, reason, Obstacle::Scheme)]);
                    continue;
                }
            };
            cmds.extend(execute.own_cmds());
            let secret = self.store.secret(nas.id).await?;
            if let Some(warning) = &nas.forks_warning {
                self.warn_once(format!("nasid={} nas_ip={} {warning}", nas.id, nas.ip));
            }
            let served = Served {
                secret: Arc::new(secret),
                scheme_hash: execute.identity().hash.clone(),
                log_name: names
                    .get(&nas.id)
                    .cloned()
                    .unwrap_or_else(|| format!("nas_id{}.log", nas.id)),
                paused_from_ms: state.and_then(|s| s.paused_from_ms),
                paused_until_ms: state.and_then(|s| s.paused_until_ms),
                execute,
                nas: Arc::new(nas),
            };
            wanted.insert(served.nas.id, served);
        }
        let steps = plan(&self.running, &wanted);
        let told: Vec<String> = steps.iter().map(|s| self.told_of(s, &skipped)).collect();
        self.tell_skipped(&skipped);
        let changed = !steps.is_empty();
        let own: Vec<Cmd> = cmds.into_iter().filter(|c| !c.in_catalogue()).collect();
        let new_cmds = self.cmds.send_if_modified(|kept| {
            let differs = *kept != own;
            *kept = own;
            differs
        });
        let skipped: Skipped = skipped
            .into_iter()
            .map(|(id, missed)| {
                let skip = Skip {
                    name: missed.name,
                    why: missed.why,
                    obstacle: missed.obstacle,
                    log_name: names.get(&id).cloned().unwrap_or_default(),
                };
                (id, skip)
            })
            .collect();
        let message = Message::Settings(Settings { steps, skipped });
        if self.sender.send(message).await.is_ok() {
            // Only now: whoever reads that a NAS is observed relies on it.
            told.iter().for_each(|line| self.logs.daemon(line));
            self.running = wanted;
        }
        if changed || new_cmds {
            self.store.retry_expansion().await?;
        }
        let now = Duration::from_millis(u64::try_from(clock::wall_ms()).unwrap_or_default());
        metrics::gauge!(READ_AT).set(now.as_secs_f64());
        Ok(())
    }

    fn told_of(&self, step: &Step<Served>, skipped: &Unserved) -> String {
        match step {
            Step::Start(id, served) => {
                let identity = served.execute.identity();
                let path = |p: &Option<std::path::PathBuf>| {
                    p.as_ref()
                        .map_or_else(|| "<null>".to_owned(), |p| p.display().to_string())
                };
                format!(
                    "Start work with nas nasid={id} nas_ip={} oss_pathname={} script_name={}",
                    served.nas.ip,
                    path(&identity.oss_pathname),
                    path(&identity.script_name)
                )
            }
            Step::Change(id, served) => {
                format!(
                    "Change work with nas nasid={id} nas_ip={} forks={} mode={} scheme={}{}",
                    served.nas.ip,
                    served.nas.forks.get(),
                    served.nas.mode.as_str(),
                    served.scheme_hash,
                    if served.paused_until_ms.is_some() {
                        " paused"
                    } else {
                        ""
                    }
                )
            }
            Step::Stop(id) => {
                let why = skipped
                    .get(id)
                    .map_or("its row is gone", |missed| missed.why.as_str());
                let ip = self.running.get(id).map_or("", |s| s.nas.ip.as_str());
                format!("Stop work with nas nasid={id} nas_ip={ip} reason={why}")
            }
        }
    }

    fn tell_skipped(&mut self, skipped: &Unserved) {
        for (id, Missed { ip, why, .. }) in skipped {
            if self.told.get(id) != Some(why) {
                self.logs
                    .daemon(&format!("Skip nas nasid={id} nas_ip={ip} reason={why}"));
                self.told.insert(*id, why.clone());
            }
        }
        self.told.retain(|id, _| skipped.contains_key(id));
    }

    fn warn_once(&mut self, warning: String) {
        if self.warned.insert(warning.clone()) {
            tracing::warn!("{warning}");
        }
    }
}

#[cfg(test)]
#[path = "parent_test.rs"]
mod tests;
