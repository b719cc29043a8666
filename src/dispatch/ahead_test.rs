//! Events ahead under random turns, attempts and silences, beside a model that is a plain list:
//! each that is claimed is started once or goes back once, never after it is overdue, and in the
//! order that is promised.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::ahead::{Ahead, Claimed};
use crate::event::EventId;

/// Ticks after which an event ahead goes back, as docs/architecture.md says it.
const BACK_MS: u64 = 250;
/// Most for each fork.
const FOR_EACH_FORK: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// A turn claims as many as there are places, at most so many; which of them somebody waits for.
    Turn(Vec<bool>),
    /// An attempt of so many ms ended, and its fork takes the next.
    Ended(i64),
    /// So many ms pass.
    Pass(u64),
    /// The scheduler looks for who must go back; all, if the NAS may not be sent anything.
    Overdue(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => vec(any::<bool>(), 1..30).prop_map(Step::Turn),
        6 => prop_oneof![0..5_i64, 0..400_i64].prop_map(Step::Ended),
        4 => prop_oneof![0..10_u64, 0..400_u64].prop_map(Step::Pass),
        1 => prop::bool::weighted(0.2).prop_map(Step::Overdue),
    ]
}

/// A claimed event as the model knows it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    id: i64,
    interactive: bool,
    since: u64,
}

/// The one that goes first: who waits for an answer, then the oldest claim.
fn first(model: &[Known]) -> Option<Known> {
    let waited_for = model.iter().find(|known| known.interactive);
    waited_for.or(model.first()).copied()
}

proptest! {
    #[test]
    fn each_is_started_once_or_goes_back_once(
        forks in 1..12_usize,
        turn_ms in 0.1..50.0_f64,
        steps in vec(step(), 1..200),
    ) {
        let mut ahead = Ahead::default();
        let mut model: Vec<Known> = Vec::new();
        let (mut now, mut claimed, mut left) = (1_000, 0, BTreeSet::new());
        let mut last_end = None;
        for step in steps {
            match step {
                Step::Turn(wanted) => {
                    let places = ahead.places(forks, now, turn_ms);
                    prop_assert!(places <= forks * FOR_EACH_FORK);
                    if last_end.is_none() {
                        prop_assert_eq!(places, 0, "nothing is known of the NAS");
                    }
                    let room = places.saturating_sub(ahead.len());
                    for interactive in wanted.into_iter().take(room) {
                        claimed += 1;
                        let known = Known { id: claimed, interactive, since: now };
                        ahead.push(Claimed {
                            id: EventId(known.id),
                            interactive,
                            since: now,
                            start: (),
                        });
                        model.push(known);
                    }
                    prop_assert!(ahead.len() <= forks * FOR_EACH_FORK);
                }
                Step::Ended(ms) => {
                    ahead.ended(now, ms);
                    last_end = Some(now);
                    let wanted = first(&model);
                    let late = wanted.is_some_and(|known| now - known.since >= BACK_MS);
                    prop_assert_eq!(ahead.is_late(now), late);
                    if !late {
                        let next = ahead.pop().map(|c| (c.id.0, c.interactive, c.since));
                        prop_assert_eq!(next, wanted.map(|k| (k.id, k.interactive, k.since)));
                        model.retain(|known| Some(*known) != wanted);
                        if let Some((id, ..)) = next {
                            prop_assert!(left.insert(id), "{} was started before", id);
                        }
                    }
                }
                Step::Pass(ms) => now += ms,
                Step::Overdue(all) => {
                    let gone: BTreeSet<i64> =
                        ahead.overdue(now, all).into_iter().map(|c| c.id.0).collect();
                    let late = |known: &Known| all || now - known.since >= BACK_MS;
                    let wanted = model.iter().filter(|known| late(known));
                    prop_assert_eq!(&gone, &wanted.map(|known| known.id).collect());
                    model.retain(|known| !late(known));
                    for id in gone {
                        prop_assert!(left.insert(id), "{} had left before", id);
                    }
                }
            }
            prop_assert_eq!(ahead.len(), model.len());
            let oldest = model.iter().map(|known| known.since).min();
            prop_assert_eq!(ahead.next_overdue(), oldest.map(|since| since + BACK_MS));
            if last_end.is_some_and(|at: u64| now - at > 4_000) {
                prop_assert_eq!(ahead.places(forks, now, turn_ms), 0, "it answers nobody");
            }
        }
        for gone in ahead.overdue(now, true) {
            prop_assert!(left.insert(gone.id.0));
        }
        prop_assert_eq!(left.len(), usize::try_from(claimed).unwrap(), "none is forgotten");
    }
}
