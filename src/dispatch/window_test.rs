//! Tests of what lanes ask the store for, and of whom they wait for on other NASes.

use super::lanes::{Gone, Lanes, Owner, Wanted};
use super::stand_test::waiting;
use crate::event::{Class, EventId, UserId, Waiting};
use crate::nas::NasId;

const CUT: Class = Class::Cut;

fn add(lanes: &mut Lanes, id: i64, nas: i64, user: i64) {
    let w = Waiting {
        nas: NasId(nas),
        ..waiting(id, user, CUT)
    };
    lanes.add(&w, 0, 0);
}

/// A window of 16 ids and two NASes, of which the first and the second hold so many.
fn holding(first: i64, second: i64) -> Lanes {
    let mut lanes = Lanes::new(16, 30_000);
    lanes.set_dark(NasId(1), false);
    lanes.set_dark(NasId(2), false);
    for n in 0..first {
        add(&mut lanes, 100 + n, 1, 100 + n);
    }
    for n in 0..second {
        add(&mut lanes, 200 + n, 2, 200 + n);
    }
    lanes
}

fn pages(lanes: &mut Lanes, nas: i64) -> usize {
    lanes.expect(NasId(nas));
    let wanted = lanes.wanted();
    let page = Wanted::Load(NasId(nas), EventId(0));
    assert!(wanted.iter().all(|w| *w == page), "{wanted:?}");
    wanted.len()
}

#[test]
fn pages_are_asked_for_while_a_quarter_of_the_window_is_free() {
    assert_eq!(pages(&mut holding(11, 0), 1), 1);
    assert_eq!(pages(&mut holding(12, 0), 1), 0);
    // A NAS with less than half of its share gets a page in any case.
    assert_eq!(pages(&mut holding(12, 0), 2), 1);
    assert_eq!(pages(&mut holding(12, 3), 2), 1);
    assert_eq!(pages(&mut holding(12, 4), 2), 0);
}

#[test]
fn one_page_of_a_nas_is_read_at_a_time() {
    let mut lanes = holding(0, 0);
    assert_eq!((pages(&mut lanes, 1), pages(&mut lanes, 1)), (1, 0));
    lanes.loaded(NasId(1), &[], false, 0, 0);
    assert_eq!(
        lanes.wanted(),
        [Wanted::Load(NasId(1), EventId(0))],
        "it was expected meanwhile"
    );
    lanes.load_failed(NasId(1));
    assert_eq!(lanes.wanted(), [Wanted::Load(NasId(1), EventId(0))]);
}

#[test]
fn a_lane_asks_once_for_its_rest() {
    let mut lanes = Lanes::new(1_000, 0);
    for id in 1..=9 {
        add(&mut lanes, id, 1, 7);
    }
    assert!(lanes.wanted().is_empty(), "it has enough");
    for id in 1..=6 {
        assert_eq!(lanes.take(NasId(1), 0).unwrap().id, EventId(id));
        lanes.settled(EventId(id), Gone::Finished, 0);
    }
    add(&mut lanes, 10, 1, 7);
    add(&mut lanes, 11, 1, 7);
    assert_eq!(
        lanes.wanted(),
        [Wanted::Refill(NasId(1), Owner::User(UserId(7)))]
    );
    assert!(lanes.wanted().is_empty());
}

#[test]
fn nobody_waits_if_all_who_come_before_are_on_dark_nases() {
    let mut lanes = Lanes::new(1_000, 30_000);
    for (id, nas) in [(1, 1), (9, 3), (5, 2)] {
        add(&mut lanes, id, nas, 7);
    }
    assert!(lanes.take(NasId(2), 0).is_none(), "1 comes first");
    lanes.set_dark(NasId(1), true);
    lanes.look_again(Owner::User(UserId(7)), 0);
    let taken = lanes.take(NasId(2), 0).unwrap();
    assert!(taken.id == EventId(5) && taken.overtakes);
    // A second one that comes first, on a NAS that is not dark.
    let mut lanes = Lanes::new(1_000, 30_000);
    for (id, nas) in [(1, 1), (2, 3), (5, 2)] {
        add(&mut lanes, id, nas, 7);
    }
    lanes.set_dark(NasId(1), true);
    assert!(lanes.take(NasId(2), 0).is_none());
    // Who is first waits for nobody, and does not say that it overtakes.
    assert!(lanes.take(NasId(3), 0).is_none_or(|taken| taken.overtakes));
    assert!(
        lanes
            .take(NasId(1), 0)
            .is_some_and(|taken| !taken.overtakes)
    );
}

#[test]
fn what_still_runs_on_a_nas_that_is_given_up_makes_nobody_wait() {
    let mut lanes = Lanes::new(1_000, 30_000);
    add(&mut lanes, 1, 1, 7);
    assert!(lanes.take(NasId(1), 0).is_some());
    add(&mut lanes, 2, 2, 7);
    assert!(lanes.take(NasId(2), 0).is_none());
    assert!(lanes.drop_nas(NasId(1)).is_empty());
    lanes.look_again(Owner::User(UserId(7)), 0);
    assert!(lanes.take(NasId(2), 0).is_some_and(|taken| taken.overtakes));
}

#[test]
fn a_page_behind_what_was_left_out_is_read_anew() {
    let nas = NasId(1);
    let mut lanes = holding(0, 0);
    assert_eq!(pages(&mut lanes, 1), 1);
    lanes.loaded(nas, &[waiting(12, 6, CUT)], true, 0, 0);
    assert_eq!(lanes.wanted(), [Wanted::Load(nas, EventId(13))]);
    // It is taken up anew while that page is under way: what stands before it is not known.
    lanes.expect(nas);
    lanes.loaded(nas, &[waiting(23, 7, CUT)], false, 0, 0);
    assert_eq!(lanes.held(), 1);
    assert_eq!(lanes.wanted(), [Wanted::Load(nas, EventId(0))]);
    let all = [(11, 7), (12, 6), (23, 7)].map(|(id, user)| waiting(id, user, CUT));
    lanes.loaded(nas, &all, false, 0, 0);
    let first: Vec<EventId> = (0..2).map(|_| lanes.take(nas, 0).unwrap().id).collect();
    assert_eq!(first, [EventId(11), EventId(12)]);
    assert_eq!(
        lanes.take(nas, 0),
        None,
        "an account's events go one by one"
    );
}

#[test]
fn what_waits_for_its_time_is_not_ready() {
    let nas = NasId(1);
    let mut lanes = holding(1, 0);
    assert!(lanes.has_ready(nas) && !lanes.has_ready(NasId(2)));
    let id = lanes.take(nas, 0).unwrap().id;
    lanes.settled(id, Gone::Deferred(100), 0);
    assert!(lanes.held_of(nas) == 1 && !lanes.has_ready(nas));
    lanes.wake(100);
    assert!(lanes.has_ready(nas));
}
