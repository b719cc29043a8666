//! The intent guard at work: looks at what was expanded before (`hold`) or after (`warn`) it is
//! handed over, marks what goes beyond the limit `held`, and carries out what operators decide.
//! A held event is superseded when a later one gives its account access, and when it would run
//! after a later one. If the database does not answer, events go on: the guard must not become
//! an outage of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::guard::{Allowance, Cut, Guard, speed};
use crate::attempt::DoneResult;
use crate::clock;
use crate::config::GuardMode;
use crate::event::{Class, Cmd, EventId, UserId, Waiting};
use crate::nas::NasId;
use crate::store::{
    Filter, GuardOrder, OrderKind, Result, Settle, SettleTo, Store, Turn, WhereIs, chain,
};

/// How often orders of operators are looked for, ms.
const ORDERS_MS: u64 = 1_000;
/// How often held events of more than one page are compared with the rows, ms; of one page, at each
/// look for orders.
const COMPARE_MS: u64 = 10_000;
/// How old the number of accounts may be, ms.
const ACCOUNTS_MS: u64 = 600_000;
/// Rows of a page when held events are read at the start.
const PAGE: usize = 1_000;
/// Events released in one turn.
const RELEASE_MAX: usize = 200;
/// Later events of a lane that are looked at before a held one is released.
const LATER_MAX: usize = 200;

/// A held event.
#[derive(Debug, Clone)]
struct Held {
    nas: NasId,
    user: UserId,
    cmd: String,
    source: String,
}

/// The guard with what it needs.
pub struct Watch {
    store: Arc<dyn Store>,
    mode: GuardMode,
    epoch: i64,
    guard: Guard,
    held: BTreeMap<EventId, Held>,
    /// Released in the store, not yet handed to the lanes.
    freed: Vec<(EventId, Held)>,
    lanes: HashMap<(NasId, UserId), BTreeSet<EventId>>,
    orders: Vec<GuardOrder>,
    looked_at: Option<u64>,
    compared_at: Option<u64>,
    accounts: Option<(u64, BTreeMap<NasId, usize>)>,
}

impl Watch {
    /// One that remembers nothing yet.
    pub fn new(store: Arc<dyn Store>, mode: GuardMode, epoch: i64) -> Self {
        Self {
            store,
            mode,
            epoch,
            guard: Guard::default(),
            held: BTreeMap::new(),
            freed: Vec::new(),
            lanes: HashMap::new(),
            orders: Vec::new(),
            looked_at: None,
            compared_at: None,
            accounts: None,
        }
    }

    /// How many events are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Reads the events that an earlier daemon held.
    pub async fn remember(&mut self) {
        if let Err(error) = self.read_held().await {
            tracing::warn!(
                "guard: held events cannot be read, they stay held until the next start: {}",
                chain(&error)
            );
        }
    }

    async fn read_held(&mut self) -> Result<()> {
        let mut filter = held_page();
        loop {
            let rows = self.store.events(&filter).await?;
            let ids: Vec<EventId> = rows.iter().map(|r| r.id).collect();
            let causes = self.store.causes(&ids).await?;
            let sources: HashMap<EventId, String> =
                causes.into_iter().map(|c| (c.id, c.source)).collect();
            for row in &rows {
                if let (Some(nas), Some(user)) = (row.nas_id, row.user_id) {
                    let held = Held {
                        nas: NasId(nas),
                        user: UserId(user),
                        cmd: row.cmd.clone(),
                        source: sources.get(&row.id).cloned().unwrap_or_default(),
                    };
                    self.note(row.id, held);
                }
            }
            filter.before = rows.last().map(|row| row.id.0);
            if rows.len() < PAGE {
                return Ok(());
            }
        }
    }

    fn note(&mut self, id: EventId, held: Held) {
        let lane = (held.nas, held.user);
        self.lanes.entry(lane).or_default().insert(id);
        self.held.insert(id, held);
    }

    fn forget(&mut self, id: EventId) {
        let Some(held) = self.held.remove(&id) else {
            return;
        };
        let lane = (held.nas, held.user);
        if let Some(ids) = self.lanes.get_mut(&lane) {
            ids.remove(&id);
            if ids.is_empty() {
                self.lanes.remove(&lane);
            }
        }
    }

    /// What of `moved` may be handed over, and what is to be looked at after that.
    pub async fn before(&mut self, moved: Vec<Waiting>) -> (Vec<Waiting>, Vec<Waiting>) {
        self.supersede(&moved).await;
        let suspicious: Vec<Waiting> = moved
            .iter()
            .filter(|w| matches!(w.class, Class::Cut | Class::Rate) && w.user.is_some())
            .copied()
            .collect();
        match self.mode {
            GuardMode::Off => (moved, Vec::new()),
            GuardMode::Warn => (moved, suspicious),
            GuardMode::Hold => {
                let held = self.look(&suspicious).await;
                let go = moved.into_iter().filter(|w| !held.contains(&w.id));
                (go.collect(), Vec::new())
            }
        }
    }

    /// Looks at what has been handed over.
    pub async fn after(&mut self, seen: &[Waiting]) {
        if !seen.is_empty() {
            self.look(seen).await;
        }
    }

    /// Counts, tells of bursts, and holds if it is to; the ids that are held.
    async fn look(&mut self, seen: &[Waiting]) -> BTreeSet<EventId> {
        match self.judge(seen).await {
            Ok(held) => held,
            Err(error) => {
                tracing::warn!(
                    "guard: {} events went through unseen: {}",
                    seen.len(),
                    chain(&error)
                );
                BTreeSet::new()
            }
        }
    }

    async fn judge(&mut self, seen: &[Waiting]) -> Result<BTreeSet<EventId>> {
        let ids: Vec<EventId> = seen.iter().map(|w| w.id).collect();
        if ids.is_empty() {
            return Ok(BTreeSet::new());
        }
        let causes = self.store.causes(&ids).await?;
        let by_id: HashMap<EventId, &Waiting> = seen.iter().map(|w| (w.id, w)).collect();
        let (now, wall_ms) = (clock::tick_ms(), clock::wall_ms());
        let allowances: Vec<Allowance> = self.orders.iter().filter_map(allowance).collect();
        let mut beyond = Vec::new();
        let mut reasons = Vec::new();
        for cause in causes {
            let Some((w, user)) = by_id.get(&cause.id).and_then(|w| Some((w, w.user?))) else {
                continue;
            };
            let Ok(cmd) = Cmd::parse(&cause.cmd) else {
                continue;
            };
            let fastest = cause
                .speeds
                .iter()
                .filter_map(|s| speed(s))
                .reduce(f64::max);
            if !self.guard.is_cut(&cmd, user, fastest) {
                continue;
            }
            let cut = Cut {
                source: &cause.source,
                cmd: &cause.cmd,
                nas: w.nas,
                user,
            };
            // Announced for who posted, or for the source as it stands in the row.
            let told = Cut {
                source: &cause.told,
                ..cut
            };
            let mut allowed = |cut| self.guard.is_allowed(cut, &allowances, wall_ms);
            if allowed(&cut) || (told.source != cut.source && allowed(&told)) {
                continue;
            }
            let counted = self.guard.count(&cut, now);
            if !counted.is_much() {
                continue;
            }
            let (on_nas, in_all) = self.accounts(w.nas, now).await?;
            let Some(burst) = self.guard.weigh(&cut, counted, on_nas, in_all, now) else {
                continue;
            };
            if burst.tell {
                self.tell(&burst.reason);
            }
            metrics::counter!("nas_event_daemon_guard_events_total").increment(1);
            let held = Held {
                nas: w.nas,
                user,
                cmd: cause.cmd,
                source: cause.source,
            };
            beyond.push((cause.id, held));
            reasons.push((cause.id, burst.reason));
        }
        if self.mode != GuardMode::Hold || beyond.is_empty() {
            return Ok(BTreeSet::new());
        }
        let held = self.store.hold(self.epoch, &reasons).await?;
        let held: BTreeSet<EventId> = held.into_iter().collect();
        for (id, facts) in beyond {
            if held.contains(&id) {
                self.note(id, facts);
            }
        }
        Ok(held)
    }

    fn tell(&self, reason: &str) {
        match self.mode {
            GuardMode::Hold => tracing::error!(
                "{reason}: what goes beyond is held; see `guard list`, then `guard approve` or `guard deny`"
            ),
            GuardMode::Warn | GuardMode::Off => tracing::error!(
                "{reason}: it is carried out (dispatch.guard = \"warn\"); `guard allow` announces a batch that is meant"
            ),
        }
    }

    /// Accounts of one NAS, and of all.
    async fn accounts(&mut self, nas: NasId, now: u64) -> Result<(usize, usize)> {
        let old = self
            .accounts
            .as_ref()
            .is_none_or(|(at, _)| now.saturating_sub(*at) >= ACCOUNTS_MS);
        if old {
            let mut counts = BTreeMap::new();
            for account in self.store.account_flags(None, None).await? {
                if let Some(nas) = account.nas_id.filter(|_| !account.deleted) {
                    *counts.entry(NasId(nas)).or_default() += 1;
                }
            }
            self.accounts = Some((now, counts));
        }
        Ok(self.accounts.as_ref().map_or((0, 0), |(_, counts)| {
            let here = counts.get(&nas).copied().unwrap_or(0);
            (here, counts.values().sum())
        }))
    }

    /// A later event that gives access makes the account's held ones pointless.
    async fn supersede(&mut self, moved: &[Waiting]) {
        if self.held.is_empty() {
            return;
        }
        let mut gone = Vec::new();
        for w in moved.iter().filter(|w| w.class == Class::Access) {
            let lane = w.user.and_then(|user| self.lanes.get(&(w.nas, user)));
            gone.extend(lane.into_iter().flatten().filter(|id| **id < w.id).copied());
        }
        if gone.is_empty() {
            return;
        }
        let settles = gone.iter().map(|id| settle(*id, superseded())).collect();
        if let Err(error) = self.write(settles).await {
            // It stays held: that errs on the account's side.
            tracing::warn!(
                "guard: superseded events stay held until they are released or denied: {}",
                chain(&error)
            );
            return;
        }
        for id in gone {
            self.forget(id);
        }
    }

    async fn write(&self, settles: Vec<Settle>) -> Result<()> {
        let turn = Turn {
            epoch: self.epoch,
            settles,
            ..Turn::default()
        };
        self.store.turn(&turn).await.map(|_| ())
    }

    /// Carries out what operators decided; events that may run now.
    pub async fn orders(&mut self) -> Vec<Waiting> {
        let now = clock::tick_ms();
        if self
            .looked_at
            .is_some_and(|at| now.saturating_sub(at) < ORDERS_MS)
        {
            return Vec::new();
        }
        self.looked_at = Some(now);
        match self.carry_out().await {
            Ok(()) => {}
            Err(error) => tracing::warn!("guard: orders wait: {}", chain(&error)),
        }
        if let Err(error) = self.compare(now).await {
            tracing::warn!(
                "guard: it is not known which events are still held: {}",
                chain(&error)
            );
        }
        match self.hand_over().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!("guard: released events wait: {}", chain(&error));
                Vec::new()
            }
        }
    }

    /// Forgets what is held no more because it was denied or dropped, which is done on the rows.
    async fn compare(&mut self, now: u64) -> Result<()> {
        let fresh = |at: u64| now.saturating_sub(at) < COMPARE_MS;
        let many = self.held.len() > PAGE;
        if self.held.is_empty() || (many && self.compared_at.is_some_and(fresh)) {
            return Ok(());
        }
        self.compared_at = Some(now);
        // By their ids: to ask for the state would read the whole stack.
        let ids: Vec<EventId> = self.held.keys().copied().collect();
        for some in ids.chunks(PAGE) {
            let causes = self.store.causes(some).await?;
            let there: HashSet<EventId> = causes.into_iter().map(|cause| cause.id).collect();
            for id in some.iter().filter(|id| !there.contains(*id)) {
                self.forget(*id);
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self) -> Result<()> {
        self.orders = self.store.guard_orders().await?;
        let approvals: Vec<GuardOrder> = self
            .orders
            .iter()
            .filter(|o| o.kind == OrderKind::Approve)
            .cloned()
            .collect();
        for order in approvals {
            let fits = |(id, held): &(&EventId, &Held)| {
                order.event.is_none_or(|event| event == **id)
                    && order.source.as_ref().is_none_or(|s| *s == held.source)
                    && order.cmd.as_ref().is_none_or(|cmd| *cmd == held.cmd)
            };
            let ids: Vec<EventId> = self.held.iter().filter(fits).map(|(id, _)| *id).collect();
            for part in ids.chunks(RELEASE_MAX) {
                self.release(part).await?;
            }
            self.store
                .remove_guard_order(order.id, OrderKind::Approve)
                .await?;
            tracing::info!("guard: {} released {} held events", order.who, ids.len());
        }
        Ok(())
    }

    async fn release(&mut self, ids: &[EventId]) -> Result<()> {
        let mut settles = Vec::with_capacity(ids.len());
        let mut ready = Vec::new();
        for id in ids {
            let Some(held) = self.held.get(id).cloned() else {
                continue;
            };
            // Nothing enters a lane in the past.
            if self.has_later(*id, &held).await? {
                settles.push(settle(*id, superseded()));
            } else {
                let to = SettleTo::Ready {
                    possible_duplicate: false,
                };
                settles.push(settle(*id, to));
                ready.push((*id, held));
            }
        }
        self.write(settles).await?;
        for id in ids {
            self.forget(*id);
        }
        self.freed.extend(ready);
        Ok(())
    }

    /// Rows of released events, for their lanes; what cannot be read now is read next time.
    async fn hand_over(&mut self) -> Result<Vec<Waiting>> {
        let mut all = Vec::new();
        while !self.freed.is_empty() {
            let part = self.freed.len().min(RELEASE_MAX);
            let ids: HashSet<EventId> = self.freed.iter().take(part).map(|(id, _)| *id).collect();
            let lanes: Vec<(NasId, Option<UserId>)> = self
                .freed
                .iter()
                .take(part)
                .map(|(_, held)| (held.nas, Some(held.user)))
                .collect();
            match self.store.refill(&lanes, LATER_MAX).await {
                Ok(mut rows) => {
                    rows.retain(|w| ids.contains(&w.id));
                    all.append(&mut rows);
                }
                // Those that were read are handed over all the same.
                Err(error) if all.is_empty() => return Err(error),
                Err(_) => break,
            }
            self.freed.drain(..part);
        }
        // An account with two of them has its lane read twice.
        all.sort_by_key(|w| w.id);
        all.dedup_by_key(|w| w.id);
        Ok(all)
    }

    /// Whether a later event of the lane that changes something waits, runs or is done.
    async fn has_later(&self, id: EventId, held: &Held) -> Result<bool> {
        let changes =
            |cmd: &str| Cmd::parse(cmd).is_ok_and(|cmd| cmd.class() != Class::Interactive);
        for state in [None, Some("done".to_owned())] {
            let rows = self
                .store
                .events(&Filter {
                    state,
                    nas: Some(held.nas.0),
                    user: Some(held.user.0),
                    limit: LATER_MAX,
                    unbounded: true,
                    ..Filter::default()
                })
                .await?;
            if rows.iter().any(|row| {
                row.id > id
                    && row.state != "held"
                    && row.place != WhereIs::Compact
                    && row.state != DoneResult::Superseded.as_str()
                    && row.state != DoneResult::Dropped.as_str()
                    && changes(&row.cmd)
            }) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The newest held events.
fn held_page() -> Filter {
    Filter {
        state: Some("held".to_owned()),
        unbounded: true,
        limit: PAGE,
        ..Filter::default()
    }
}

/// An announced batch among the orders.
pub fn allowance(order: &GuardOrder) -> Option<Allowance> {
    (order.kind == OrderKind::Allow).then(|| Allowance {
        id: order.id,
        source: order.source.clone().unwrap_or_default(),
        cmd: order.cmd.clone(),
        from_ms: order.from_ms,
        for_ms: order.for_ms,
        most: u64::try_from(order.most).unwrap_or(0),
        monthly: order.monthly,
    })
}

fn superseded() -> SettleTo {
    SettleTo::Done {
        result: DoneResult::Superseded,
        answer: None,
        scheme_hash: String::new(),
    }
}

/// Of an event that was never started.
fn settle(id: EventId, to: SettleTo) -> Settle {
    let error = match &to {
        SettleTo::Done { .. } => Some("a later event of the account came first".to_owned()),
        SettleTo::Ready { .. } | SettleTo::Deferred { .. } | SettleTo::Dead { .. } => None,
    };
    Settle {
        id,
        try_count: None,
        to,
        code: 0,
        ms: 0,
        error,
    }
}

#[cfg(test)]
#[path = "hold_test.rs"]
mod tests;
