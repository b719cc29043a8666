//! The difference between the NASes that are served and those that should be. Pure: the
//! settings loop reads the wanted set every minute and carries out the steps; one that fails
//! is simply planned again next time.

use std::collections::BTreeMap;

use crate::nas::NasId;

/// One thing to do so that a NAS is served as wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// Served, but no longer wanted: running events finish, waiting ones stay.
    Stop(NasId),
    /// Served with other settings than wanted.
    Change(NasId, T),
    /// Wanted, but not served yet.
    Start(NasId, T),
}

/// What turns `running` into `wanted`: stops first, since they give back what starts may need
/// (log file names, sessions, window), then changes, then starts, each in the order of ids.
pub fn plan<T: PartialEq + Clone>(
    running: &BTreeMap<NasId, T>,
    wanted: &BTreeMap<NasId, T>,
) -> Vec<Step<T>> {
    let stops = running
        .keys()
        .filter(|id| !wanted.contains_key(id))
        .map(|id| Step::Stop(*id));
    let changes = wanted
        .iter()
        .filter(|(id, new)| running.get(id).is_some_and(|old| old != *new))
        .map(|(id, new)| Step::Change(*id, new.clone()));
    let starts = wanted
        .iter()
        .filter(|(id, _)| !running.contains_key(id))
        .map(|(id, new)| Step::Start(*id, new.clone()));
    stops.chain(changes).chain(starts).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    /// Carries the steps out, refusing those that make no sense where they stand.
    fn apply(mut state: BTreeMap<NasId, u8>, steps: &[Step<u8>]) -> BTreeMap<NasId, u8> {
        for step in steps {
            match step {
                Step::Stop(id) => assert!(state.remove(id).is_some(), "stopped twice"),
                Step::Change(id, new) => {
                    let old = state.insert(*id, *new);
                    assert!(old.is_some_and(|old| old != *new), "nothing to change");
                }
                Step::Start(id, new) => {
                    assert!(state.insert(*id, *new).is_none(), "started twice");
                }
            }
        }
        state
    }

    fn nases() -> impl Strategy<Value = BTreeMap<NasId, u8>> {
        btree_map((0..12_i64).prop_map(NasId), 0..3_u8, 0..12)
    }

    proptest! {
        #[test]
        fn the_plan_leads_to_what_is_wanted_and_then_nothing_is_left(
            running in nases(),
            wanted in nases(),
        ) {
            let steps = plan(&running, &wanted);
            let kept = running.iter().filter(|(id, v)| wanted.get(id) == Some(v)).count();
            prop_assert!(steps.len() <= running.len() + wanted.len() - 2 * kept);
            let state = apply(running, &steps);
            prop_assert_eq!(&state, &wanted);
            prop_assert!(plan(&state, &wanted).is_empty());
        }
    }

    #[test]
    fn stops_come_before_starts() {
        let running = BTreeMap::from([(NasId(1), 0), (NasId(2), 0), (NasId(3), 0)]);
        let wanted = BTreeMap::from([(NasId(0), 0), (NasId(2), 1), (NasId(3), 0)]);
        assert_eq!(
            plan(&running, &wanted),
            [
                Step::Stop(NasId(1)),
                Step::Change(NasId(2), 1),
                Step::Start(NasId(0), 0)
            ]
        );
    }
}
