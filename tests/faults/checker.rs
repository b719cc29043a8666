//! Negative controls of the checker over journals: it finds whatever is planted in a sound one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::lab::journal::{
    self, Accepted, Attempt, Entry, Finding, Rest, check, check_rest, peak, repeated,
};

fn start(event: i64, user: i64, try_count: u32, dup: bool) -> Entry {
    Entry::Start {
        event,
        user,
        try_count,
        dup,
    }
}

fn end(event: i64, try_count: u32) -> Entry {
    Entry::End { event, try_count }
}

fn kill(running: &[Attempt]) -> Entry {
    Entry::Kill {
        running: running.iter().copied().collect(),
    }
}

/// Two accounts, 7 with the events 1 and 3, 8 with 2; a kill while 1 runs, which runs again.
fn sound() -> (Vec<Accepted>, Vec<Entry>) {
    let accepted = [(1, 7), (2, 8), (3, 7)].map(|(event, user)| Accepted { event, user });
    let entries = vec![
        start(1, 7, 1, false),
        start(2, 8, 1, false),
        end(2, 1),
        kill(&[(1, 1)]),
        start(1, 7, 2, true),
        end(1, 2),
        start(3, 7, 1, false),
        end(3, 1),
    ];
    (accepted.to_vec(), entries)
}

fn found(change: impl FnOnce(&mut Vec<Accepted>, &mut Vec<Entry>)) -> Vec<Finding> {
    let (mut accepted, mut entries) = sound();
    change(&mut accepted, &mut entries);
    check(&accepted, &BTreeSet::new(), &entries)
}

#[test]
fn a_sound_journal_has_no_findings() {
    assert_eq!(found(|_, _| {}), []);
    let (_, entries) = sound();
    assert_eq!((peak(&entries), repeated(&entries)), (2, 1));
}

#[test]
fn a_lost_event_is_found() {
    let lost = found(|_, entries| entries.truncate(6));
    assert_eq!(lost, [Finding::Lost { event: 3 }]);
    let (accepted, entries) = sound();
    assert_eq!(check(&accepted, &BTreeSet::from([3]), &entries[..6]), []);
    let alien = found(|accepted, _| {
        accepted.pop();
    });
    assert_eq!(alien, [Finding::Alien { event: 3 }]);
}

#[test]
fn a_reordered_event_is_found() {
    let findings = found(|accepted, _| accepted.swap(0, 2));
    let expected = Finding::Reordered {
        earlier: 3,
        later: 1,
    };
    assert_eq!(findings, [expected]);
}

#[test]
fn overlapping_events_are_found() {
    let both = Finding::Overlap {
        first: 1,
        second: 3,
    };
    let findings = found(|_, entries| entries.swap(5, 6));
    assert_eq!(findings, [both]);
    // The first attempt outlives its daemon, until after it was started again.
    let same = Finding::Overlap {
        first: 1,
        second: 1,
    };
    let findings = found(|_, entries| entries.insert(5, end(1, 1)));
    assert_eq!(findings, std::slice::from_ref(&same));
    // Or it even starts after that; in time it would have been only late.
    let findings = found(|_, entries| {
        let late = entries.remove(0);
        entries.insert(4, late);
        entries[4] = start(1, 7, 1, true);
    });
    assert_eq!(findings, [same]);
    let findings = found(|_, entries| {
        let late = entries.remove(0);
        entries.insert(3, late);
    });
    assert_eq!(findings, []);
}

#[test]
fn an_unannounced_repetition_is_found() {
    let findings = found(|_, entries| entries[4] = start(1, 7, 2, false));
    let expected = Finding::Unflagged {
        event: 1,
        try_count: 2,
    };
    assert_eq!(findings, [expected]);
}

#[test]
fn a_repetition_without_a_kill_is_found() {
    let findings = found(|_, entries| entries[3] = kill(&[(2, 1)]));
    let expected = Finding::Repeated {
        event: 1,
        times: 2,
        kills: 0,
    };
    assert_eq!(findings, [expected]);
}

/// What the sound journal leaves behind.
fn rest() -> Rest {
    Rest {
        state: BTreeMap::from([(7, 3), (8, 2)]),
        done: BTreeSet::from([1, 2, 3]),
        places: BTreeMap::from([(1, 1), (2, 1), (3, 1)]),
    }
}

fn found_at_rest(excused: &[i64], change: impl FnOnce(&mut Vec<Entry>, &mut Rest)) -> Vec<Finding> {
    let (accepted, mut entries) = sound();
    let mut rest = rest();
    change(&mut entries, &mut rest);
    check_rest(
        &accepted,
        &excused.iter().copied().collect(),
        &entries,
        &rest,
    )
}

#[test]
fn what_a_journal_leaves_behind_is_compared() {
    assert_eq!(found_at_rest(&[], |_, _| {}), []);
    let (_, entries) = sound();
    assert_eq!(journal::state_of_script(&entries), rest().state);
}

#[test]
fn a_nas_that_diverged_is_found() {
    let found = found_at_rest(&[], |_, rest| {
        rest.state.insert(7, 1);
        rest.state.remove(&8);
    });
    let diverged = |user, wanted, found| Finding::Diverged {
        user,
        wanted,
        found,
    };
    assert_eq!(found, [diverged(7, 3, Some(1)), diverged(8, 2, None)]);
    // The last event was buried: it may have been obeyed, or the one before it counts.
    assert_eq!(found_at_rest(&[3], |_, _| {}), []);
    let before = found_at_rest(&[3], |_, rest| {
        rest.state.insert(7, 1);
    });
    assert_eq!(before, []);
}

#[test]
fn an_event_that_never_ends_is_found() {
    let found = found_at_rest(&[], |entries, _| {
        entries.pop();
    });
    assert_eq!(found, [Finding::Stuck { event: 3 }]);
}

#[test]
fn a_database_that_says_something_else_is_found() {
    let found = found_at_rest(&[], |entries, _| {
        entries.remove(1);
        entries.remove(1);
    });
    assert_eq!(found, [Finding::Unseen { event: 2 }]);
    let found = found_at_rest(&[], |_, rest| {
        rest.places.insert(1, 2);
        rest.places.remove(&2);
    });
    let misplaced = |event, places| Finding::Misplaced { event, places };
    assert_eq!(found, [misplaced(1, 2), misplaced(2, 0)]);
}

#[test]
fn journals_are_read_as_they_are_written() {
    let text = "start 1 7 1 0\nend 1 1\nkill 1/1 2/3\nkill\n";
    let expected = [
        start(1, 7, 1, false),
        end(1, 1),
        kill(&[(1, 1), (2, 3)]),
        kill(&[]),
    ];
    assert_eq!(journal::of_script(text), expected);
    let record = |from: i64, to: i64, comment: &str, trap: Option<&str>| {
        json!({"at_us": from, "path": "/queue/simple/add", "args": {"comment": comment},
            "rows": [], "trap": trap, "done_at_us": to})
    };
    let lines = [
        record(10, 20, "1 7 1 0", Some("failure: already have such name")),
        record(21, 30, "1 7 1 0", None),
        record(25, 26, "2 8 1 0", Some("failure: already have such name")),
        json!({"killed_at_us": 31, "running": [[2, 1]]}),
        record(40, 40, "2 8 2 1", None),
    ];
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    let expected = [
        start(1, 7, 1, false),
        end(1, 1),
        kill(&[(2, 1)]),
        start(2, 8, 2, true),
        end(2, 2),
    ];
    assert_eq!(journal::of_router(&text), expected);
}
