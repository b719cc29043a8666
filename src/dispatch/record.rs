//! Records of events that ended without an attempt that could tell it: expired, a diagnostic
//! that nobody could be asked, an attempt that broke or was cut. They are written after the
//! settlement, from the row as it then stands: lanes know little more of an event than its
//! number, and shall not.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::scheduler::{Scheduler, State};
use crate::clock;
use crate::event::{self, EventId, UserId};
use crate::logs::line::{End, Key};
use crate::logs::{Logs, NasLog};
use crate::nas::NasId;
use crate::store::{EventRow, Settle, SettleTo, Turn, Turned, chain};

/// Turns whose records are being written at once; the next turn waits, so that a million
/// expired events do not gather in memory.
const TURNS_MAX: usize = 2;
/// Longest wait for the last records at the end.
const LAST: Duration = Duration::from_secs(5);

/// Settlements that nobody has told, each with the log of its NAS.
pub(super) type Told = Vec<(Settle, Option<NasLog>)>;

/// An event that ended without an attempt has not been counted by one.
fn count(settle: &Settle, row: Option<&EventRow>) {
    let result = match &settle.to {
        SettleTo::Done { result, .. } => result.as_str(),
        SettleTo::Dead { .. } => "dead",
        SettleTo::Deferred { .. } | SettleTo::Ready { .. } => return,
    };
    if let (None, Some(row)) = (settle.try_count, row) {
        super::status::count_event(event::label(&row.cmd), result, row.event_date_ms);
    }
}

impl Scheduler {
    /// Nobody has written how this event ends: its settlement will be followed by a record.
    pub(super) fn untold(&self, s: &mut State, id: EventId, nas: NasId) {
        let log = match s.pools.get(&nas) {
            Some(pool) => Some(pool.log.clone()),
            None => {
                let skip = s.skipped.get(&nas);
                skip.map(|skip| self.logs.nas_file(&skip.log_name))
            }
        };
        s.untold.insert(id, log);
    }

    /// What a turn settled untold.
    pub(super) fn to_tell(s: &mut State, turn: &Turn, turned: &Turned) -> Told {
        if s.untold.is_empty() {
            return Vec::new();
        }
        let settled: HashSet<EventId> = turned.settled.iter().copied().collect();
        let mut told = Vec::new();
        for settle in &turn.settles {
            if let Some(log) = s.untold.remove(&settle.id)
                && settled.contains(&settle.id)
            {
                told.push((settle.clone(), log));
            }
        }
        told
    }

    /// Writes the records of what a turn settled untold, beside the turns that follow.
    pub(super) async fn tell(&self, s: &mut State, told: Told, hard: &CancellationToken) {
        if told.is_empty() {
            return;
        }
        while s.records.len() >= TURNS_MAX {
            tokio::select! {
                _ = s.records.join_next() => {}
                // Their forks are free for the next, and their logs are theirs alone.
                ended = s.attempts.next() => self.ended(s, ended),
                // There is no time left to wait, and not much left to tell.
                () = hard.cancelled() => break,
            }
        }
        let (store, logs) = (Arc::clone(&self.store), self.logs.clone());
        s.records.spawn(async move {
            for (settle, log) in told {
                let row = store.event(settle.id).await.unwrap_or_else(|error| {
                    tracing::warn!(
                        "event={}: its last record lacks what the database says of it: {}",
                        settle.id,
                        chain(&error)
                    );
                    None
                });
                record(&logs, log.as_ref(), &settle, row.as_ref());
            }
        });
    }

    /// Waits for the records that are still being written.
    pub(super) async fn told(&self, s: &mut State) {
        let rest = async { while s.records.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST, rest).await.is_err() {
            tracing::warn!("the last records of the NAS and account logs could not be written");
        }
    }
}

fn record(logs: &Logs, log: Option<&NasLog>, settle: &Settle, row: Option<&EventRow>) {
    count(settle, row);
    let user = row.and_then(|r| r.user_id).map(UserId);
    let tries = row.map_or(0, |r| u32::try_from(r.try_count).unwrap_or(0));
    let key = Key {
        event: settle.id,
        user,
        cmd: row.map_or("-", |r| r.cmd.as_str()),
        try_count: settle.try_count.unwrap_or(tries),
    };
    let end = End {
        result: match &settle.to {
            SettleTo::Done { result, .. } => result.as_str(),
            SettleTo::Deferred { .. } => "deferred",
            SettleTo::Dead { .. } => "dead",
            SettleTo::Ready { .. } => "ready",
        },
        code: settle.code,
        ms: settle.ms,
        next_try_ms: None,
        error: settle.error.as_deref(),
    };
    let mut out = Vec::new();
    logs.records().end(&mut out, clock::wall_ms(), &key, &end);
    let account = user.map(|user| (row.and_then(|r| r.abonent_id), user));
    match (log, account) {
        (Some(log), account) => logs.write(log, account, &out),
        // The NAS has no log: its row is gone.
        (None, Some((abonent, user))) => logs.write_account(abonent, user, &out),
        (None, None) => {}
    }
}
