//! Lanes against a small model of the store: whatever comes late, is deferred, overflows or is
//! refilled, each lane runs in order, one event at a time, and everything ends.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::lane::item;
use super::lanes::{Gone, Lanes, Owner, REFILL_ROWS, Wanted};
use crate::event::{Class, EventId, UserId, Waiting};
use crate::nas::NasId;

fn waiting(id: i64, nas: i64, user: i64, class: Class) -> Waiting {
    Waiting {
        id: EventId(id),
        nas: NasId(nas),
        user: Some(UserId(user)),
        class,
        since_ms: 0,
        next_try_ms: 0,
        expires_ms: 0,
        tries: 0,
        deaths: 0,
    }
}

fn ids(lanes: &mut Lanes, nas: i64, now: u64) -> Vec<i64> {
    std::iter::from_fn(|| lanes.take(NasId(nas), now))
        .map(|t| t.id.0)
        .collect()
}

#[test]
fn one_at_a_time_in_order_and_classes_before_age() {
    let mut lanes = Lanes::new(1000, 30_000);
    for (id, user, class) in [
        (1, 1, Class::Rate),
        (2, 2, Class::Rate),
        (3, 3, Class::Access),
        (4, 1, Class::Access),
        (5, 9, Class::Interactive),
        (6, 3, Class::Cut),
    ] {
        let asked = lanes.has_interactive(NasId(1));
        assert_eq!(asked, id > 5, "{id}");
        lanes.add(&waiting(id, 1, user, class), 1000, 0);
    }
    assert_eq!(
        ids(&mut lanes, 1, 1000),
        vec![5, 3, 1, 2],
        "4 waits for 1, 6 waits for 3"
    );
    lanes.settled(EventId(1), Gone::Finished, 1000);
    lanes.settled(EventId(3), Gone::Finished, 1000);
    assert_eq!(ids(&mut lanes, 1, 1000), vec![4, 6]);
}

#[test]
fn the_walls_times_become_ticks() {
    let mut row = waiting(1, 1, 1, Class::Rest);
    (row.since_ms, row.next_try_ms) = (400, 1_500);
    let it = item(&row, 10_000, 1_000);
    assert_eq!((it.since, it.due), (9_400, 10_500));
    row.next_try_ms = 500;
    assert_eq!(item(&row, 10_000, 1_000).due, 0, "it is due");
    row.next_try_ms = 0;
    assert_eq!(item(&row, 10_000, -1_000).due, 0, "whatever the clock says");
}

#[test]
fn a_head_rises_one_class_a_minute() {
    let mut lanes = Lanes::new(1000, 0);
    lanes.add(&waiting(1, 1, 1, Class::Rest), 0, 0);
    lanes.add(&waiting(2, 1, 2, Class::Cut), 119_999, 119_999);
    assert_eq!(lanes.take(NasId(1), 119_999).unwrap().id.0, 2);
    let mut lanes = Lanes::new(1000, 0);
    lanes.add(&waiting(1, 1, 1, Class::Rest), 0, 0);
    let mut young = waiting(2, 1, 2, Class::Cut);
    young.since_ms = 120_000;
    lanes.add(&young, 120_000, 120_000);
    assert_eq!(
        lanes.take(NasId(1), 120_000).unwrap().id.0,
        1,
        "two minutes: rest is as good as cut, and older"
    );
}

#[test]
fn what_a_nas_gave_back_goes_behind_the_others_of_its_class() {
    let mut lanes = Lanes::new(1000, 0);
    for (id, user) in [(1, 1), (2, 2), (3, 1)] {
        lanes.add(&waiting(id, 1, user, Class::Access), 1000, 1000);
    }
    let mut probes = Vec::new();
    for now in [2000, 3000, 4000] {
        let probe = lanes.take(NasId(1), now).unwrap().id;
        lanes.settled(probe, Gone::Released, now);
        probes.push(probe.0);
    }
    assert_eq!(probes, [1, 2, 1], "3 waits for 1 as before");
}

#[test]
fn a_deferred_head_blocks_and_a_new_event_wakes_it_once() {
    let mut lanes = Lanes::new(1000, 0);
    lanes.add(&waiting(1, 1, 1, Class::Cut), 0, 0);
    assert_eq!(ids(&mut lanes, 1, 0), vec![1]);
    lanes.settled(EventId(1), Gone::Deferred(60_000), 0);
    assert_eq!(ids(&mut lanes, 1, 10), Vec::<i64>::new());
    assert_eq!(lanes.next_wake(), Some(60_000));
    lanes.add(&waiting(2, 1, 1, Class::Access), 20, 0);
    assert_eq!(
        ids(&mut lanes, 1, 20),
        vec![1],
        "the payer's event makes the head ready"
    );
    lanes.settled(EventId(1), Gone::Deferred(60_000), 30);
    assert_eq!(
        ids(&mut lanes, 1, 40),
        Vec::<i64>::new(),
        "once per new event"
    );
    lanes.wake(60_000);
    assert_eq!(ids(&mut lanes, 1, 60_000), vec![1]);
    lanes.settled(EventId(1), Gone::Finished, 60_001);
    assert_eq!(ids(&mut lanes, 1, 60_001), vec![2]);
}

#[test]
fn the_later_nas_waits_for_the_earlier() {
    let mut lanes = Lanes::new(1000, 30_000);
    lanes.add(&waiting(1, 1, 7, Class::Cut), 0, 0);
    lanes.add(&waiting(2, 2, 7, Class::Rest), 0, 0);
    assert_eq!(ids(&mut lanes, 2, 0), Vec::<i64>::new());
    assert_eq!(ids(&mut lanes, 1, 0), vec![1]);
    assert_eq!(
        ids(&mut lanes, 2, 10),
        Vec::<i64>::new(),
        "1 is out, not settled"
    );
    lanes.settled(EventId(1), Gone::Finished, 20);
    assert_eq!(ids(&mut lanes, 2, 20), vec![2]);

    let mut lanes = Lanes::new(1000, 30_000);
    lanes.add(&waiting(1, 1, 7, Class::Cut), 0, 0);
    lanes.add(&waiting(2, 2, 7, Class::Rest), 0, 0);
    assert!(lanes.take(NasId(2), 0).is_none());
    lanes.wake(30_000);
    let taken = lanes.take(NasId(2), 30_000).unwrap();
    assert!(taken.overtakes && taken.id.0 == 2);

    let mut lanes = Lanes::new(1000, 30_000);
    lanes.add(&waiting(1, 1, 7, Class::Cut), 0, 0);
    lanes.add(&waiting(2, 2, 7, Class::Rest), 0, 0);
    lanes.set_dark(NasId(1), true);
    assert!(
        lanes.take(NasId(2), 0).unwrap().overtakes,
        "nobody waits for a dark NAS"
    );
    assert!(
        !lanes.take(NasId(1), 0).unwrap().overtakes,
        "the earlier one"
    );
}

#[test]
fn events_expire_wherever_they_wait() {
    let mut lanes = Lanes::new(1000, 0);
    lanes.add(&waiting(1, 1, 1, Class::Cut), 0, 0);
    for (id, user, class) in [(2, 1, Class::Cut), (3, 2, Class::Interactive)] {
        lanes.add(
            &Waiting {
                expires_ms: 500,
                ..waiting(id, 1, user, class)
            },
            0,
            0,
        );
    }
    assert_eq!(lanes.expire(0, 499), vec![]);
    assert_eq!(
        lanes.expire(0, 500),
        vec![(EventId(2), NasId(1)), (EventId(3), NasId(1))]
    );
    assert_eq!(ids(&mut lanes, 1, 0), vec![1]);
    assert_eq!(lanes.held(), 0);
}

#[test]
fn a_dropped_head_lets_its_lane_go_on() {
    let mut lanes = Lanes::new(1000, 30_000);
    for (id, nas) in [(1, 1), (2, 1), (3, 2)] {
        lanes.add(&waiting(id, nas, 7, Class::Cut), 0, 0);
    }
    assert_eq!(ids(&mut lanes, 1, 0), vec![1]);
    lanes.settled(EventId(1), Gone::Deferred(60_000), 0);
    assert_eq!(ids(&mut lanes, 1, 20), Vec::<i64>::new());
    assert_eq!(ids(&mut lanes, 2, 20), Vec::<i64>::new(), "3 waits for 1");
    lanes.drop_event(EventId(1), NasId(1), Some(UserId(7)), 30);
    assert_eq!(ids(&mut lanes, 1, 30), vec![2]);
    lanes.settled(EventId(2), Gone::Finished, 40);
    assert_eq!(ids(&mut lanes, 2, 40), vec![3]);
    lanes.settled(EventId(3), Gone::Finished, 50);
    assert_eq!(lanes.held(), 0);

    // Rows that were read before the drop come late; a diagnostic is dropped like any other.
    let late = Waiting {
        next_try_ms: 60_000,
        tries: 1,
        ..waiting(1, 1, 7, Class::Cut)
    };
    lanes.loaded(
        NasId(1),
        &[late, waiting(4, 1, 7, Class::Cut)],
        false,
        60,
        60,
    );
    assert_eq!(ids(&mut lanes, 1, 60), vec![4]);
    lanes.add(&waiting(5, 1, 7, Class::Interactive), 70, 70);
    lanes.drop_event(EventId(5), NasId(1), Some(UserId(7)), 70);
    assert_eq!(ids(&mut lanes, 1, 70), Vec::<i64>::new());
    assert_eq!(lanes.held(), 0);
}

#[test]
fn a_head_waits_for_other_nases_as_long_as_any() {
    for expires in [false, true] {
        let mut lanes = Lanes::new(1000, 30_000);
        lanes.add(&waiting(1, 1, 7, Class::Cut), 0, 0);
        assert_eq!(ids(&mut lanes, 1, 0), vec![1]);
        let first = Waiting {
            expires_ms: if expires { 29_000 } else { 0 },
            ..waiting(2, 2, 7, Class::Cut)
        };
        lanes.add(&first, 0, 0);
        lanes.add(&waiting(3, 2, 7, Class::Cut), 0, 0);
        assert_eq!(ids(&mut lanes, 2, 0), Vec::<i64>::new(), "2 waits for 1");
        if expires {
            let gone = lanes.expire(29_000, 29_000);
            assert_eq!(gone, [(EventId(2), NasId(2))]);
        } else {
            lanes.drop_event(EventId(2), NasId(2), Some(UserId(7)), 29_000);
        }
        assert_eq!(ids(&mut lanes, 2, 29_000), Vec::<i64>::new());
        lanes.wake(58_999);
        assert_eq!(
            ids(&mut lanes, 2, 58_999),
            Vec::<i64>::new(),
            "not 2's wait"
        );
        lanes.wake(59_000);
        assert_eq!(ids(&mut lanes, 2, 59_000), vec![3]);
    }
}

#[test]
fn what_was_next_may_be_taken_while_it_is_ready_and_nothing_must_run_before_it() {
    let suspect = Waiting {
        deaths: 3,
        ..waiting(5, 1, 7, Class::Cut)
    };
    let mut lanes = Lanes::new(1000, 30_000);
    lanes.add(&suspect, 0, 0);
    let next = lanes.next(NasId(1), 0).unwrap();
    assert!(next.taken.suspect && next == lanes.next(NasId(1), 0).unwrap());
    // Nobody overtakes it, but an event of its account that was committed late goes first.
    lanes.add(&waiting(6, 1, 8, Class::Access), 10, 0);
    assert!(lanes.may_take(NasId(1), &next, 10));
    lanes.add(&waiting(4, 2, 7, Class::Cut), 20, 0);
    assert!(!lanes.may_take(NasId(1), &next, 20));
    assert_eq!(ids(&mut lanes, 2, 20), vec![4]);
    lanes.settled(EventId(4), Gone::Finished, 30);
    assert!(lanes.may_take(NasId(1), &next, 30));
    assert_eq!(lanes.take_at(NasId(1), next).unwrap().id.0, 5);
    assert!(!lanes.may_take(NasId(1), &next, 30), "it is out");
    lanes.settled(EventId(5), Gone::Finished, 40);
    assert_eq!(ids(&mut lanes, 1, 40), vec![6]);
    lanes.settled(EventId(6), Gone::Finished, 50);
    // A diagnostic likewise.
    lanes.add(&waiting(7, 1, 7, Class::Interactive), 60, 0);
    let next = lanes.next(NasId(1), 60).unwrap();
    assert!(lanes.may_take(NasId(1), &next, 60));
    lanes.drop_event(EventId(7), NasId(1), Some(UserId(7)), 70);
    assert!(!lanes.may_take(NasId(1), &next, 70));
    assert_eq!(lanes.held(), 0);
}

#[test]
fn rows_asked_for_before_a_nas_was_given_up_are_read_anew() {
    let mut lanes = Lanes::new(1000, 0);
    lanes.expect(NasId(1));
    assert_eq!(lanes.wanted(), [Wanted::Load(NasId(1), EventId(0))]);
    let low = [waiting(1, 1, 7, Class::Cut), waiting(2, 1, 8, Class::Cut)];
    lanes.loaded(NasId(1), &low, true, 0, 0);
    assert_eq!(lanes.wanted(), [Wanted::Load(NasId(1), EventId(3))]);
    // It is given up and served again while that page is on its way.
    lanes.drop_nas(NasId(1));
    lanes.expect(NasId(1));
    lanes.loaded(NasId(1), &[waiting(5, 1, 7, Class::Cut)], false, 0, 0);
    assert_eq!(ids(&mut lanes, 1, 0), Vec::<i64>::new(), "1 comes first");
    assert_eq!(lanes.wanted(), [Wanted::Load(NasId(1), EventId(0))]);
    // The same with the rows of one lane.
    lanes.add(&waiting(9, 1, 9, Class::Cut), 0, 0);
    let refill = Wanted::Refill(NasId(1), Owner::User(UserId(9)));
    assert_eq!(lanes.wanted(), [refill]);
    lanes.drop_nas(NasId(1));
    lanes.expect(NasId(1));
    lanes.refilled(
        NasId(1),
        Owner::User(UserId(9)),
        Some(&[waiting(9, 1, 9, Class::Cut)]),
        0,
        0,
    );
    assert_eq!(ids(&mut lanes, 1, 0), Vec::<i64>::new());
    assert!(lanes.wanted().contains(&refill));
}

#[test]
fn a_nas_that_does_not_obey_leaves_the_others_their_share_of_the_window() {
    let mut lanes = Lanes::new(20, 0);
    lanes.expect(NasId(2));
    assert_eq!(lanes.wanted(), [Wanted::Load(NasId(2), EventId(0))]);
    lanes.loaded(NasId(2), &[], false, 0, 0);
    for user in 1..=30 {
        lanes.add(&waiting(user, 1, user, Class::Rest), 0, 0);
    }
    assert_eq!(lanes.held_of(NasId(1)), 20, "the window");
    for user in 1..=20 {
        // Its lanes are refilled, but not each with all that it has.
        let rows: Vec<Waiting> = (0..17)
            .map(|n| waiting(100 * user + n, 1, user, Class::Rest))
            .collect();
        lanes.add(&rows[0], 0, 0);
        lanes.refilled(NasId(1), Owner::User(UserId(user)), Some(&rows), 0, 0);
    }
    assert!(
        lanes.held() >= 40,
        "more than twice the window: {}",
        lanes.held()
    );
    for n in 0..12 {
        lanes.add(&waiting(9_000 + n, 2, 500 + n, Class::Rest), 0, 0);
    }
    assert_eq!(lanes.held_of(NasId(2)), 10, "its share");
    assert_eq!(ids(&mut lanes, 2, 0)[0], 9_000);
}

#[test]
fn pages_are_read_while_there_is_room_or_half_a_share_is_free() {
    for (on_one, on_two, read) in [
        (14, 0, &[1, 2][..]),
        (15, 0, &[2]),
        (16, 4, &[2]),
        (16, 5, &[]),
    ] {
        let mut lanes = Lanes::new(20, 0);
        for id in 1..=on_one + on_two {
            lanes.add(
                &waiting(id, 1 + i64::from(id > on_one), id, Class::Rest),
                0,
                0,
            );
        }
        let all: Vec<Wanted> = read
            .iter()
            .map(|n| Wanted::Load(NasId(*n), EventId(0)))
            .collect();
        (1..=2).for_each(|nas| lanes.expect(NasId(nas)));
        // In the order of a hash map.
        let wanted = lanes.wanted();
        let same = wanted.len() == all.len() && all.iter().all(|w| wanted.contains(w));
        assert!(same, "{on_one} {on_two}: {wanted:?}");
    }
}

#[test]
fn rows_that_are_yet_to_be_read_may_be_earlier() {
    let mut lanes = Lanes::new(1000, 30_000);
    lanes.expect(NasId(1));
    assert_eq!(lanes.wanted(), [Wanted::Load(NasId(1), EventId(0))]);
    lanes.add(&waiting(5, 1, 7, Class::Cut), 0, 0);
    lanes.add(&waiting(6, 2, 7, Class::Cut), 0, 0);
    assert_eq!(
        ids(&mut lanes, 2, 0),
        Vec::<i64>::new(),
        "5 is not read yet"
    );
    let rows = [waiting(5, 1, 7, Class::Cut)];
    lanes.refilled(NasId(1), Owner::User(UserId(7)), Some(&rows), 0, 0);
    assert_eq!(ids(&mut lanes, 1, 0), vec![5]);
    lanes.settled(EventId(5), Gone::Finished, 0);
    assert_eq!(ids(&mut lanes, 2, 0), vec![6]);
}

#[test]
fn a_payer_gets_in_although_the_window_is_full() {
    let mut lanes = Lanes::new(10, 0);
    for id in 1..=100 {
        lanes.add(&waiting(id, 1, id, Class::Rate), 0, 0);
    }
    lanes.add(&waiting(101, 1, 5000, Class::Access), 0, 0);
    let wanted = lanes.wanted();
    let refill = Wanted::Refill(NasId(1), Owner::User(UserId(5000)));
    assert!(wanted.contains(&refill), "{wanted:?}");
    lanes.refilled(
        NasId(1),
        Owner::User(UserId(5000)),
        Some(&[waiting(101, 1, 5000, Class::Access)]),
        0,
        0,
    );
    assert_eq!(lanes.take(NasId(1), 0).unwrap().id.0, 101);
    assert!(lanes.held() <= 20);
}

/// The store as lanes see it: rows in state ready or deferred, and what is out.
#[derive(Default)]
struct Model {
    rows: BTreeMap<i64, Waiting>,
    out: BTreeMap<i64, (i64, i64)>,
    order: BTreeMap<(i64, i64), Vec<i64>>,
}

impl Model {
    fn read(&self, wanted: Wanted, lanes: &mut Lanes, now: u64) {
        match wanted {
            Wanted::Refill(nas, owner) => {
                let rows: Vec<Waiting> = self
                    .rows
                    .values()
                    .filter(|w| w.nas == nas && w.user.map(Owner::User) == Some(owner))
                    .take(REFILL_ROWS)
                    .copied()
                    .collect();
                lanes.refilled(nas, owner, Some(&rows), now, 0);
            }
            Wanted::Load(nas, from) => {
                let page: Vec<Waiting> = self
                    .rows
                    .values()
                    .filter(|w| w.nas == nas && w.id >= from)
                    .take(7)
                    .copied()
                    .collect();
                lanes.loaded(nas, &page, page.len() == 7, now, 0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn lanes_keep_order_and_lose_nothing(
        ops in proptest::collection::vec((0u8..10, 1i64..7, 0i64..3, 0u8..5), 1..400),
        window in 5usize..60,
        preloaded in 0i64..60,
    ) {
        let mut lanes = Lanes::new(window, 50);
        let mut model = Model::default();
        let mut next_id = 1;
        let mut now = 1_000;
        for id in 0..preloaded {
            let w = waiting(next_id, id % 3, id % 7 % 5 + 1, Class::Rate);
            model.rows.insert(next_id, w);
            model.order.entry((w.nas.0, id % 7 % 5 + 1)).or_default().push(next_id);
            next_id += 1;
        }
        for nas in 0..3 {
            lanes.expect(NasId(nas));
        }
        let mut done = 0;
        let total_ops = ops.len();
        for (step, (op, user, nas, class)) in ops.into_iter().chain(std::iter::repeat_n((9, 0, 0, 0), 4_000)).enumerate() {
            if step > total_ops && model.rows.is_empty() && model.out.is_empty() {
                break;
            }
            match op {
                0..=3 => {
                    let class = Class::ALL[usize::from(class)];
                    let w = waiting(next_id, nas, user, class);
                    model.rows.insert(next_id, w);
                    if class != Class::Interactive {
                        model.order.entry((nas, user)).or_default().push(next_id);
                    }
                    next_id += 1;
                    lanes.add(&w, now, 0);
                }
                4 => {
                    now += 40;
                    lanes.wake(now);
                }
                5 => {
                    let wanted = lanes.wanted();
                    for w in wanted {
                        model.read(w, &mut lanes, now);
                    }
                }
                6 => {
                    // Deferred or released: comes back first.
                    if let Some((&id, &(nas, user))) = model.out.iter().next() {
                        model.out.remove(&id);
                        let class = if user < 0 { Class::Interactive } else { Class::Rate };
                        let mut w = waiting(id, nas, user.abs(), class);
                        w.since_ms = 0;
                        model.rows.insert(id, w);
                        let gone = if step % 2 == 0 { Gone::Released } else { Gone::Deferred(now + 30) };
                        lanes.settled(EventId(id), gone, now);
                    }
                }
                7 => {
                    for nas in 0..3 {
                        if let Some(t) = lanes.take(NasId(nas), now) {
                            start(&mut model, t.id.0)?;
                        }
                    }
                }
                8 => {
                    if let Some((&id, _)) = model.out.iter().next() {
                        finish(&mut model, &mut lanes, id, now)?;
                        done += 1;
                    }
                }
                _ => {
                    now += 40;
                    lanes.wake(now);
                    for w in lanes.wanted() {
                        model.read(w, &mut lanes, now);
                    }
                    for nas in 0..3 {
                        while let Some(t) = lanes.take(NasId(nas), now) {
                            start(&mut model, t.id.0)?;
                        }
                    }
                    let out: Vec<i64> = model.out.keys().copied().collect();
                    for id in out {
                        finish(&mut model, &mut lanes, id, now)?;
                        done += 1;
                    }
                }
            }
            prop_assert!(lanes.held() <= 2 * window + 60, "bounded");
        }
        prop_assert!(model.rows.is_empty(), "left behind: {:?}", model.rows.keys().collect::<Vec<_>>());
        prop_assert_eq!(done, next_id - 1);
        prop_assert_eq!(lanes.held(), 0);
    }
}

fn start(model: &mut Model, id: i64) -> Result<(), TestCaseError> {
    let w = model.rows.remove(&id);
    prop_assert!(w.is_some(), "{} was taken but does not wait", id);
    let w = w.unwrap();
    let user = w.user.unwrap().0;
    if w.class == Class::Interactive {
        model.out.insert(id, (w.nas.0, -user));
        return Ok(());
    }
    let beside: BTreeSet<_> = model
        .out
        .values()
        .copied()
        .filter(|o| *o == (w.nas.0, user) && user > 0)
        .collect();
    prop_assert!(beside.is_empty(), "{} overlaps in its lane", id);
    let order = &model.order[&(w.nas.0, user)];
    prop_assert_eq!(
        order.first(),
        Some(&id),
        "order of lane {}/{}: {:?}",
        w.nas.0,
        user,
        order
    );
    model.out.insert(id, (w.nas.0, user));
    Ok(())
}

fn finish(model: &mut Model, lanes: &mut Lanes, id: i64, now: u64) -> Result<(), TestCaseError> {
    let Some((nas, user)) = model.out.remove(&id) else {
        return Ok(());
    };
    if user >= 0
        && let Some(order) = model.order.get_mut(&(nas, user))
        && order.first() == Some(&id)
    {
        order.remove(0);
    }
    lanes.settled(EventId(id), Gone::Finished, now);
    Ok(())
}
