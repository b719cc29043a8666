//! What a call would do, before it is made: how many events, on which NAS, for how long, and what
//! the intent guard would say. Nothing is stored.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::clock;
use crate::event::{CompactEvent, UserId, poster};
use crate::intake::access::Caller;
use crate::intake::rest::{Desk, Refusal};
use crate::intake::waiting;
use crate::nas::NasId;

/// What one command takes where nothing was measured yet, ms: the original's norm.
const NORM_MS: i64 = 300;
/// Accounts that are asked for one by one; more are read together.
const SINGLE_MAX: usize = 20;

/// What a plan has to know of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Command.
    pub cmd: String,
    /// Account.
    pub user: Option<UserId>,
    /// NAS; after [`of`] has looked, the account's too.
    pub nas: Option<NasId>,
    /// Whose order it is, as the guard sees it.
    pub source: String,
    nas_ip: Option<String>,
}

impl From<CompactEvent> for Ask {
    fn from(event: CompactEvent) -> Self {
        Self {
            cmd: event.cmd,
            user: event.user_id.map(UserId),
            nas: event.nas_id.map(NasId),
            source: match &event.source {
                Some(source) => poster(source).to_owned(),
                None => event.owner_script.unwrap_or_default(),
            },
            nas_ip: event.nas_ip,
        }
    }
}

/// One NAS of a plan.
#[derive(Debug, Default, PartialEq)]
struct Share {
    events: usize,
    lanes: BTreeMap<UserId, usize>,
}

impl Share {
    /// Until the last of them is done, seconds: `waiting` come before, `forks` work at once, and
    /// the events of one account never do.
    fn seconds(&self, waiting: i64, forks: i64, each_ms: i64) -> i64 {
        let events = i64::try_from(self.events).unwrap_or(i64::MAX);
        let longest = self.lanes.values().copied().max().unwrap_or(0);
        let longest = i64::try_from(longest).unwrap_or(i64::MAX);
        let rounds = waiting.saturating_add(events).saturating_add(forks - 1) / forks.max(1);
        rounds
            .max(longest)
            .saturating_mul(each_ms)
            .saturating_add(999)
            / 1_000
    }
}

/// The plan of a call.
pub async fn of(desk: &Desk, caller: &Caller, mut asks: Vec<Ask>) -> Result<Value, Refusal> {
    for ask in &asks {
        caller.may_post(&ask.cmd)?;
    }
    let store = desk.doors.store.as_ref();
    let rows = store.nases().await.map_err(Refusal::store)?;
    let (homes, accounts) = homes(desk, &asks).await?;
    let (mut unknown, mut nowhere) = (BTreeSet::new(), 0_usize);
    let mut shares: BTreeMap<NasId, Share> = BTreeMap::new();
    for ask in &mut asks {
        let home = ask.user.and_then(|user| homes.get(&user));
        if let (Some(user), None) = (ask.user, home) {
            unknown.insert(user);
        }
        let by_ip = || {
            let ip = ask.nas_ip.as_deref()?;
            let mut fit = rows.iter().flatten().filter(|nas| nas.ip == ip);
            fit.next()
                .filter(|_| fit.next().is_none())
                .map(|nas| nas.id)
        };
        ask.nas = match (ask.nas, &ask.nas_ip) {
            (Some(nas), _) => Some(nas),
            (None, Some(_)) => by_ip(),
            (None, None) => home.copied().flatten(),
        };
        let Some(nas) = ask.nas else {
            nowhere += 1;
            continue;
        };
        let share = shares.entry(nas).or_default();
        share.events += 1;
        if let Some(user) = ask.user {
            *share.lanes.entry(user).or_default() += 1;
        }
    }
    let mut by_cmd: BTreeMap<&str, usize> = BTreeMap::new();
    for ask in &asks {
        *by_cmd.entry(ask.cmd.as_str()).or_default() += 1;
    }
    let live = json!({ "dispatch": desk.doors.dispatch.as_ref().map(|say| say()) });
    let states = store.nas_states().await.map_err(Refusal::store)?;
    let now = clock::wall_ms();
    let mut longest = 0;
    let nases: Vec<Value> = shares
        .iter()
        .map(|(id, share)| {
            let mut facts = waiting::Facts::default();
            waiting::of_the_daemon(&mut facts, Some(&live), id.0);
            let of_live = |name: &str| number(&live, *id, name);
            let name = rows.iter().flatten().find(|nas| nas.id == *id);
            let set = states.get(id).and_then(|state| state.forks);
            let set = set.or_else(|| i64::try_from(name?.forks.get()).ok());
            let forks = of_live("forks").or(set).unwrap_or(1).max(1);
            let waiting = of_live("waiting").unwrap_or(0);
            let measured = of_live("p95_ms").filter(|ms| *ms > 0);
            let paused = states
                .get(id)
                .and_then(|state| waiting::paused_text(state, now));
            let stands = facts
                .skipped
                .map(|why| format!("not served: {why}"))
                .or(paused)
                .or(facts
                    .breaker
                    .map(|(state, why)| format!("breaker {state}: {why}")));
            let each_ms = measured.unwrap_or(NORM_MS);
            let seconds = share.seconds(waiting, forks, each_ms);
            longest = longest.max(seconds);
            json!({
                "nas_id": id, "name": name.map(|nas| &nas.name),
                "events": share.events, "accounts": share.lanes.len(),
                "waiting": waiting, "forks": forks,
                "ms_each": each_ms, "measured": measured.is_some(),
                "seconds": seconds, "stands_still": stands,
            })
        })
        .collect();
    let guard = match &desk.doors.foresee {
        Some(foresee) => {
            let orders = store.guard_orders().await.map_err(Refusal::store)?;
            foresee(&asks, &accounts, &orders)
        }
        None => Value::Null,
    };
    let backlog = store
        .backlog(desk.doors.high_water)
        .await
        .map_err(Refusal::store)?;
    let after = backlog.compact + backlog.main + asks.len();
    Ok(json!({
        "plan": true,
        "events": asks.len(),
        "by_cmd": by_cmd,
        "unknown_accounts": unknown.len(),
        "without_nas": nowhere,
        "nas": nases,
        "seconds": longest,
        "above_high_water": desk.doors.high_water > 0 && after > desk.doors.high_water,
        "guard": guard,
    }))
}

/// A number that the dispatcher says of a NAS.
fn number(live: &Value, nas: NasId, name: &str) -> Option<i64> {
    let nases = live.pointer("/dispatch/nases")?.as_array()?;
    let of_nas = nases
        .iter()
        .find(|each| each.get("id").and_then(Value::as_i64) == Some(nas.0))?;
    of_nas.get(name)?.as_i64()
}

/// The NAS of each account that is asked about, and how many accounts each NAS has.
async fn homes(
    desk: &Desk,
    asks: &[Ask],
) -> Result<(BTreeMap<UserId, Option<NasId>>, BTreeMap<NasId, usize>), Refusal> {
    let store = desk.doors.store.as_ref();
    let users: BTreeSet<UserId> = asks.iter().filter_map(|ask| ask.user).collect();
    let mut homes = BTreeMap::new();
    let mut accounts: BTreeMap<NasId, usize> = BTreeMap::new();
    if users.len() <= SINGLE_MAX {
        // So few are no burst, however few accounts there are.
        for user in users {
            let flags = store.account_flags(None, Some(user)).await;
            for flags in flags.map_err(Refusal::store)? {
                homes.insert(UserId(flags.user_id), flags.nas_id.map(NasId));
            }
        }
        return Ok((homes, accounts));
    }
    let all = store.account_flags(None, None).await;
    for flags in all.map_err(Refusal::store)? {
        let (user, nas) = (UserId(flags.user_id), flags.nas_id.map(NasId));
        if let Some(nas) = nas.filter(|_| !flags.deleted) {
            *accounts.entry(nas).or_default() += 1;
        }
        if users.contains(&user) {
            homes.insert(user, nas);
        }
    }
    Ok((homes, accounts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_share_the_work_but_not_an_account() {
        let mut share = Share {
            events: 100,
            ..Share::default()
        };
        assert_eq!(share.seconds(0, 10, 300), 3);
        assert_eq!(share.seconds(900, 10, 300), 30);
        assert_eq!(share.seconds(0, 1, 300), 30);
        share.lanes.insert(UserId(1), 50);
        assert_eq!(share.seconds(0, 100, 300), 15);
        assert_eq!(Share::default().seconds(0, 5, 300), 0);
    }
}
