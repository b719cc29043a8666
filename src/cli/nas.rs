//! `nas …`: how each NAS stands, pausing it, its forks, testing it, setting it right.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::ctl::Ctl;
use super::exit::{DONE, Failed, NOT_FOUND, Outcome, REFUSED, remark};
use super::logs::{self, Look};
use super::nas_pause::{self, Drain, Pause, Resume};
use super::request::Request;
use super::{Console, Reason, given, nas_diff, nas_show, nas_test, rekey, resync, who};
use crate::config::Config;
use crate::nas::{BadNas, Forks, Mode, Nas, NasChange, NasId};
use crate::store::Store;

/// Verbs of NASes.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Every NAS with its numbers and what keeps it from working.
    List,
    /// Settings of one NAS, its scheme, its state; never its credentials.
    Show {
        /// nas.id
        id: i64,
    },
    /// Start nothing new on a NAS; running events finish, waiting ones stay ready.
    Pause(Pause),
    /// End a pause, and try a NAS that does not obey at once.
    Resume(Resume),
    /// Pause a NAS and wait until nothing runs there any more.
    Drain(Drain),
    /// Try a NAS that does not obey at once; a pause stays.
    ResetBreaker {
        /// nas.id
        id: i64,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Override nas.forks.
    Forks {
        /// nas.id
        id: i64,
        /// 1 to 100, or "default" for what the billing says
        #[arg(value_parser = forks)]
        forks: Override,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Send commands from now on, whatever nas.mode says (but off).
    Activate {
        /// nas.id
        id: i64,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Send nothing from now on: everything is rendered, ordered and logged only.
    Observe {
        /// nas.id
        id: i64,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Override nas.mode, or take the override back.
    Mode {
        /// nas.id
        id: i64,
        /// active, observe, or "default" for what the billing says
        #[arg(value_parser = mode)]
        mode: ModeOverride,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Log in and time one harmless command.
    Test {
        /// nas.id
        id: i64,
    },
    /// The end of its log: the same as logs nas.
    Log {
        /// nas.id
        id: i64,
        /// Which lines.
        #[command(flatten)]
        look: Look,
    },
    /// Let the daemon read the settings of all NASes now, not within settings_interval.
    Reload(Reason),
    /// Show the SSH host keys that are believed and presented, and take the new one.
    Rekey(rekey::Rekey),
    /// Compare what the flags of its accounts call for with what stands on it; changes nothing.
    Diff(nas_diff::Diff),
    /// Post the commands that the flags of its accounts call for.
    Resync(Resync),
}

/// Which NAS, and how fast.
#[derive(Debug, Args)]
pub struct Resync {
    /// nas.id
    id: i64,
    /// Events per second; default: as fast as the database takes them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Why.
    #[command(flatten)]
    reason: Reason,
}

/// A number of forks, or none.
#[derive(Debug, Clone, Copy)]
pub struct Override(Option<i64>);

fn forks(text: &str) -> Result<Override, String> {
    if text == "default" {
        return Ok(Override(None));
    }
    match text.parse() {
        Ok(n) if (1..=i64::from(Forks::MAX)).contains(&n) => Ok(Override(Some(n))),
        _ => Err("expected 1 to 100, or default".to_owned()),
    }
}

/// A mode, or none.
#[derive(Debug, Clone, Copy)]
pub struct ModeOverride(Option<Mode>);

fn mode(text: &str) -> Result<ModeOverride, String> {
    match text {
        "default" => Ok(ModeOverride(None)),
        "active" => Ok(ModeOverride(Some(Mode::Active))),
        "observe" => Ok(ModeOverride(Some(Mode::Observe))),
        _ => Err("expected active, observe or default (pause stops a NAS)".to_owned()),
    }
}

impl Verb {
    /// The same over the API.
    pub fn requests(&self) -> Vec<Request> {
        let path = |id: &i64, what: &str| format!("/api/v1/nas/{id}{what}");
        // null takes an override back, and must be said.
        let set = |id: &i64, what: &'static str, value: Value, reason: &Reason| {
            let is_back = value.is_null();
            let post = Request::post(path(id, what), &[(&what[1..], value), reason.field()]);
            vec![if is_back { post.null(&what[1..]) } else { post }]
        };
        match self {
            Self::List => vec![Request::get("/api/v1/nas")],
            Self::Show { id } => vec![Request::get(path(id, ""))],
            Self::Pause(args) => args.requests(),
            Self::Resume(args) => args.requests(),
            Self::Reload(reason) => vec![Request::post("/api/v1/reload", &[reason.field()])],
            Self::Forks { id, forks, reason } => set(id, "/forks", json!(forks.0), reason),
            Self::Activate { id, reason } => set(id, "/mode", json!(Mode::Active), reason),
            Self::Observe { id, reason } => set(id, "/mode", json!(Mode::Observe), reason),
            Self::Mode { id, mode, reason } => set(id, "/mode", json!(mode.0), reason),
            Self::Test { id } => vec![Request::post(path(id, "/test"), &[])],
            Self::Log { id, look } => look.requests(&format!("nas/{id}")),
            // The call alone would also end a pause.
            Self::ResetBreaker { .. }
            | Self::Drain(_)
            | Self::Rekey(_)
            | Self::Resync(_)
            | Self::Diff(_) => Vec::new(),
        }
    }
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let config = console.config()?;
    let store = console.store(&config).await?;
    match verb {
        Verb::List => nas_show::list(console, &config, store.as_ref()).await,
        Verb::Show { id } => nas_show::show(console, &config, store.as_ref(), NasId(id)).await,
        Verb::Pause(args) => nas_pause::pause(console, &config, store.as_ref(), &args).await,
        Verb::Resume(args) => nas_pause::resume(console, &config, store.as_ref(), &args).await,
        Verb::Drain(args) => nas_pause::drain(console, &config, store.as_ref(), &args).await,
        Verb::ResetBreaker { id, reason } => {
            nas_pause::reset_breaker(console, &config, store.as_ref(), id, &reason).await
        }
        Verb::Forks { id, forks, reason } => {
            let detail = reason.of(&format!("nas={id} forks={}", given(&forks.0)));
            let set = NasChange::Forks(forks.0);
            change(
                console,
                &config,
                store.as_ref(),
                NasId(id),
                "nas_forks",
                &detail,
                set,
            )
            .await
        }
        Verb::Activate { id, reason } => {
            let mode = Some(Mode::Active);
            set_mode(console, &config, store.as_ref(), id, mode, &reason).await
        }
        Verb::Observe { id, reason } => {
            let mode = Some(Mode::Observe);
            set_mode(console, &config, store.as_ref(), id, mode, &reason).await
        }
        Verb::Mode { id, mode, reason } => {
            set_mode(console, &config, store.as_ref(), id, mode.0, &reason).await
        }
        Verb::Test { id } => nas_test::test(console, &config, store.as_ref(), NasId(id)).await,
        Verb::Log { id, look } => {
            let path = logs::of_nas(console, &config, NasId(id)).await?;
            logs::shown(console, &path, &look).await
        }
        Verb::Diff(args) => nas_diff::diff(console, &config, store.as_ref(), args).await,
        Verb::Reload(_) if console.dry_run => {
            let is_there = Ctl::new(&config)?.is_there().await;
            remark(if is_there {
                "dry run: the daemon would read the settings of all NASes now"
            } else {
                "dry run: no daemon is running, nobody would be told"
            });
            Ok(DONE)
        }
        Verb::Reload(reason) => {
            poke_because(&config, &reason).await;
            Ok(DONE)
        }
        Verb::Rekey(args) => rekey::rekey(console, &config, store.as_ref(), args).await,
        Verb::Resync(args) => {
            let _ = find(store.as_ref(), NasId(args.id)).await?;
            let whom = resync::Whom::Nas(NasId(args.id));
            resync::resync(console, &config, store, whom, args.rate, &args.reason).await
        }
    }
}

/// The row of one NAS, good or bad.
pub async fn find(store: &dyn Store, id: NasId) -> Result<Result<Nas, BadNas>, Failed> {
    let rows = store.nases().await?;
    let mut found = rows.into_iter().find(|row| id_of(row) == id);
    if let Some(Ok(nas)) = &mut found {
        let mut states = store.nas_states().await?;
        nas.ssh_known_key = states.remove(&id).and_then(|state| state.ssh_host_key);
    }
    found.ok_or_else(|| {
        Failed::new(
            NOT_FOUND,
            format!("there is no NAS {id}\nhint: nas list shows all"),
        )
        .numbered(301)
    })
}

pub(super) fn id_of(row: &Result<Nas, BadNas>) -> NasId {
    match row {
        Ok(nas) => nas.id,
        Err(bad) => bad.id,
    }
}

/// Changes what an operator sets of a NAS, and tells the daemon.
pub(super) async fn change(
    console: &Console,
    config: &Config,
    store: &dyn Store,
    id: NasId,
    what: &str,
    detail: &str,
    change: NasChange,
) -> Outcome {
    let _ = find(store, id).await?;
    if console.dry_run {
        remark(format!(
            "dry run: nothing was changed; it is: {what} {detail}"
        ));
        return Ok(DONE);
    }
    store.change_nas(id, &change).await?;
    store.audit(&who(), what, detail).await?;
    poke(config).await;
    Ok(DONE)
}

async fn set_mode(
    console: &Console,
    config: &Config,
    store: &dyn Store,
    id: i64,
    mode: Option<Mode>,
    reason: &Reason,
) -> Outcome {
    let id = NasId(id);
    match find(store, id).await? {
        Ok(nas) if nas.mode == Mode::Off && mode.is_some() => {
            return Err(Failed::new(
                REFUSED,
                format!(
                    "the billing says nas.mode = 'off' for NAS {id}\nhint: set it to active or observe there first"
                ),
            ));
        }
        Ok(_) => {}
        Err(bad) => {
            return Err(Failed::new(
                REFUSED,
                format!(
                    "NAS {id} cannot be served: {}\nhint: correct its row",
                    bad.reason
                ),
            ));
        }
    }
    let word = mode.map_or("default", Mode::as_str);
    let detail = reason.of(&format!("nas={id} mode={word}"));
    change(
        console,
        config,
        store,
        id,
        "nas_mode",
        &detail,
        NasChange::Mode(mode),
    )
    .await?;
    // What it comes to, for those who took an override back.
    if !console.dry_run
        && let Ok(nas) = find(store, id).await?
    {
        remark(format!("NAS {id} is in the mode {}", nas.mode.as_str()));
    }
    Ok(DONE)
}

/// Makes a running daemon read its settings now; without one there is nobody to tell.
pub(super) async fn poke(config: &Config) {
    poke_because(config, &Reason::default()).await;
}

async fn poke_because(config: &Config, reason: &Reason) {
    let (key, why) = reason.field();
    let told = match Ctl::new(config) {
        Ok(ctl) => ctl.post("/api/v1/reload", &json!({ key: why })).await,
        Err(failed) => Err(failed),
    };
    match told {
        Ok(Some(_)) => {}
        Ok(None) => remark("no daemon is running: stored for the next one"),
        Err(failed) => remark(format!(
            "stored, but the daemon was not told, and will see it within {:?}: {}",
            config.dispatch.settings_interval, failed.text
        )),
    }
}
