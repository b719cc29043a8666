//! What the intent guard would say of events that were not posted yet. Pure: a guard of its own
//! counts them as if they all came now, so what other calls have cut off already is not in it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::guard::{Allowance, Cut, Guard};
use crate::config::GuardMode;
use crate::event::{Class, Cmd, UserId};
use crate::nas::NasId;

/// What would be said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Foreseen {
    /// What happens to a burst.
    pub mode: GuardMode,
    /// Events that cut an account off.
    pub cuts: usize,
    /// Of these: covered by announced batches.
    pub announced: usize,
    /// Of these: beyond the limit, which would be held in the mode `hold`.
    pub beyond: usize,
    /// The reasons, one per NAS and one for all.
    pub says: Vec<String>,
}

/// One event.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Whose order it is.
    pub source: &'a str,
    /// Command.
    pub cmd: &'a str,
    /// Where.
    pub nas: NasId,
    /// Whom.
    pub user: UserId,
}

/// Judges events in their order. `accounts`: of each NAS.
pub fn foresee<'a>(
    events: impl Iterator<Item = Event<'a>>,
    accounts: &BTreeMap<NasId, usize>,
    allowances: &[Allowance],
    mode: GuardMode,
    wall_ms: i64,
) -> Foreseen {
    let mut guard = Guard::default();
    let in_all: usize = accounts.values().sum();
    let mut out = Foreseen {
        mode,
        cuts: 0,
        announced: 0,
        beyond: 0,
        says: Vec::new(),
    };
    let mut says: BTreeMap<(Option<NasId>, String), String> = BTreeMap::new();
    // A speed is compared with the account's last one, which a plan does not know.
    let cuts = events.filter(|e| Cmd::parse(e.cmd).is_ok_and(|cmd| cmd.class() == Class::Cut));
    for event in cuts {
        out.cuts += 1;
        let cut = Cut {
            source: event.source,
            cmd: event.cmd,
            nas: event.nas,
            user: event.user,
        };
        if guard.is_allowed(&cut, allowances, wall_ms) {
            out.announced += 1;
            continue;
        }
        let counted = guard.count(&cut, 0);
        if !counted.is_much() {
            continue;
        }
        let here = accounts.get(&event.nas).copied().unwrap_or(0);
        let Some(burst) = guard.weigh(&cut, counted, here, in_all, 0) else {
            continue;
        };
        out.beyond += 1;
        let everywhere = burst.reason.contains(" on all NASes ");
        let nas = (!everywhere).then_some(event.nas);
        // The last one has the whole count.
        says.insert((nas, event.source.to_owned()), burst.reason);
    }
    out.says = match mode {
        GuardMode::Off => Vec::new(),
        GuardMode::Warn | GuardMode::Hold => says.into_values().collect(),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(users: i64, mode: GuardMode, allowances: &[Allowance]) -> Foreseen {
        let events = (1..=users).map(|user| Event {
            source: "crm",
            cmd: "user_drop",
            nas: NasId(5),
            user: UserId(user),
        });
        let accounts = BTreeMap::from([(NasId(5), 100), (NasId(6), 100_000)]);
        foresee(events, &accounts, allowances, mode, 1_000)
    }

    /// The reasons for `each` accounts on both of two NASes.
    fn on_two(each: i64, on_nas: usize, elsewhere: usize) -> Vec<String> {
        let events = (1..=2 * each).map(|user| Event {
            source: "crm",
            cmd: "user_drop",
            nas: NasId(5 + user % 2),
            user: UserId(user),
        });
        let accounts = BTreeMap::from([
            (NasId(5), on_nas),
            (NasId(6), on_nas),
            (NasId(7), elsewhere),
        ]);
        foresee(events, &accounts, &[], GuardMode::Hold, 1_000).says
    }

    #[test]
    fn bursts_are_told_once_for_each_nas_or_once_for_all() {
        let apart = on_two(60, 100, 100_000);
        assert_eq!(apart.len(), 2, "{apart:?}");
        let together = on_two(110, 1_000, 0);
        assert_eq!(together.len(), 1, "{together:?}");
        assert!(
            together[0].contains("all NASes 220 accounts"),
            "{together:?}"
        );
    }

    #[test]
    fn a_burst_is_told_with_its_whole_count() {
        let few = plan(50, GuardMode::Hold, &[]);
        assert_eq!((few.cuts, few.beyond, few.says.len()), (50, 0, 0));
        let many = plan(60, GuardMode::Hold, &[]);
        assert_eq!((many.cuts, many.beyond), (60, 10));
        assert_eq!(many.says.len(), 1);
        assert!(
            many.says[0].contains("60 accounts within a minute"),
            "{many:?}"
        );
        assert!(plan(60, GuardMode::Off, &[]).says.is_empty());
        let announced = Allowance {
            id: 1,
            source: "crm".to_owned(),
            cmd: None,
            from_ms: 0,
            for_ms: 10_000,
            most: 20,
            monthly: false,
        };
        let some = plan(60, GuardMode::Hold, &[announced]);
        assert_eq!((some.announced, some.beyond), (20, 0));
    }
}
