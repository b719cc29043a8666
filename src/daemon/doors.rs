//! What the daemon gives the doors so that they can show and do more than the database holds: the
//! dispatcher's word, a test of a NAS, and the intent guard's opinion of a plan. The doors import
//! none of these steps; they meet here, as dispatch and the sessions of its NASes do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::nas_test;
use crate::clock;
use crate::config::{Config, GuardMode};
use crate::dispatch::status::Status;
use crate::driver::sessions::Sessions;
use crate::expand::foresee;
use crate::expand::hold::allowance;
use crate::intake::plan::Ask;
use crate::intake::rest;
use crate::nas::NasId;
use crate::store::{Error, GuardOrder, Store};

/// How often what routers were believed to hold is looked through.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// What `nas test` does, for the doors.
pub fn tester(config: &Config, store: Arc<dyn Store>) -> Arc<rest::Tester> {
    let config = Arc::new(config.clone());
    Arc::new(move |id| {
        let (config, store) = (Arc::clone(&config), Arc::clone(&store));
        Box::pin(async move { nas_test::told(&config, store.as_ref(), id).await })
    })
}

/// What the intent guard would say of a plan.
pub fn foreseen(
    asks: &[Ask],
    accounts: &BTreeMap<NasId, usize>,
    orders: &[GuardOrder],
    mode: GuardMode,
) -> Value {
    let allowances: Vec<_> = orders.iter().filter_map(allowance).collect();
    let events = asks.iter().filter_map(|ask| {
        Some(foresee::Event {
            source: &ask.source,
            cmd: &ask.cmd,
            nas: ask.nas?,
            user: ask.user?,
        })
    });
    let said = foresee::foresee(events, accounts, &allowances, mode, clock::wall_ms());
    serde_json::to_value(said).unwrap_or_default()
}

/// The dispatcher's status, with the sessions of each NAS.
pub fn with_sessions(status: &Status, sessions: &Sessions) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    let seen = sessions.seen();
    let nases = value.get_mut("nases").and_then(Value::as_array_mut);
    for nas in nases.into_iter().flatten() {
        let id = nas.get("id").and_then(Value::as_i64).map(NasId);
        if let (Some(of_nas), Some(nas)) = (id.and_then(|id| seen.get(&id)), nas.as_object_mut()) {
            nas.insert(
                "sessions".to_owned(),
                serde_json::to_value(of_nas).unwrap_or_default(),
            );
        }
    }
    value
}

/// Ends the sessions of NASes that are served no longer, once nothing of them runs, and forgets
/// what is no longer true of the others.
pub async fn keep_sessions(
    sessions: Arc<Sessions>,
    mut status: watch::Receiver<Status>,
    stop: CancellationToken,
) -> Result<&'static str, Error> {
    let mut served = BTreeSet::new();
    let mut minute = tokio::time::interval(FORGET_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = minute.tick() => sessions.forget_old(),
            Ok(()) = status.changed() => {
                let now: BTreeSet<NasId> =
                    status.borrow_and_update().nases.iter().map(|nas| NasId(nas.id)).collect();
                if !served.is_subset(&now) {
                    sessions.keep_only(&now);
                }
                served = now;
            }
        }
    }
    stop.cancelled().await;
    Ok("the keeping of sessions")
}
