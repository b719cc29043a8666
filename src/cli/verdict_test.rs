//! One conclusion per case, in the order of what counts first.

use super::*;
use crate::event::EventId;

pub(in super::super) fn flags(redirect: bool) -> AccountFlags {
    AccountFlags {
        user_id: 7,
        nas_id: Some(5),
        deleted: false,
        accept: true,
        redirect,
        rated: true,
    }
}

pub(in super::super) fn well() -> Case {
    Case {
        flags: Some(flags(false)),
        user: 7,
        nas_known: true,
        facts: Facts {
            daemon: true,
            ..Facts::default()
        },
        ..Case::default()
    }
}

fn waiting(nas: i64, facts: Facts) -> Case {
    let row = EventRow {
        user_id: Some(7),
        nas_id: Some(nas),
        ..EventRow::new(EventId(9), WhereIs::Stack, "ready", "user_edit")
    };
    Case {
        waiting: vec![row.clone()],
        first: Some((row, facts)),
        ..well()
    }
}

#[test]
fn who_has_moved_waits_for_where_he_came_from() {
    let facts = |paused: Option<&str>, breaker: Option<&str>| Facts {
        daemon: true,
        paused: paused.map(str::to_owned),
        breaker: breaker.map(|reason| ("open".to_owned(), reason.to_owned())),
        ..Facts::default()
    };
    for (there, cause) in [
        (facts(Some("paused until resumed"), None), "nas_paused"),
        (facts(None, Some("cannot connect: refused")), "nas_down"),
        (
            facts(None, Some("invalid user name or password")),
            "login_refused",
        ),
        (
            facts(None, Some("the connection broke during the login")),
            "nas_down",
        ),
        (facts(None, Some("the host key is not known")), "host_key"),
        (
            facts(
                None,
                Some("no answer to 5 copies; check coa_port, coa_secret"),
            ),
            "radius_silent",
        ),
        (
            facts(
                None,
                Some("the NAS has no RADIUS secret: set nas_secret.coa_secret"),
            ),
            "wrong_secret",
        ),
        (facts(None, None), "waiting"),
    ] {
        let said = verdict(&waiting(6, there));
        assert_eq!(said.cause, cause, "{said:?}");
        assert!(
            cause == "waiting" || said.text.contains("NAS 6"),
            "{said:?}"
        );
    }
    // What his own NAS suffers from is not what he waits for.
    let mut case = waiting(6, facts(None, None));
    case.facts.paused = Some("paused until resumed".to_owned());
    assert_eq!(verdict(&case).cause, "waiting");
}

#[test]
fn a_full_queue_is_named() {
    let limited = Facts {
        daemon: true,
        limited: true,
        ..Facts::default()
    };
    let mut case = waiting(5, limited);
    assert_eq!(verdict(&case).cause, "waiting", "it is expanded");
    for row in case
        .waiting
        .iter_mut()
        .chain(case.first.as_mut().map(|(row, _)| row))
    {
        row.place = WhereIs::Compact;
    }
    assert_eq!(verdict(&case).cause, "queue_full");
    case.first.as_mut().unwrap().1.limited = false;
    assert_eq!(verdict(&case).cause, "waiting");
}

#[test]
fn what_was_never_posted_is_not_confirmed() {
    let done = |cmd: &str| EventRow {
        user_id: Some(7),
        nas_id: Some(5),
        ..EventRow::new(EventId(9), WhereIs::Done, "done", cmd)
    };
    let mut case = well();
    case.done = vec![done("user_add")];
    assert_eq!(verdict(&case).cause, "confirmed");
    case.flags = Some(flags(true));
    let said = verdict(&case);
    assert_eq!(said.cause, "not_sent");
    assert!(said.text.contains("user_redirect"), "{said:?}");
    // The device knows better: it was so when the account was added, or it was not.
    case.device = Some(Device {
        answer: "list crb_negbal: 10.0.0.7\nqueue: 1M/1M, now 0".to_owned(),
        addresses: vec!["10.0.0.7".to_owned()],
        ..Device::default()
    });
    assert_eq!(verdict(&case).cause, "open");
    if let Some(device) = &mut case.device {
        device.answer = "queue: 1M/1M, now 0".to_owned();
    }
    assert_eq!(verdict(&case).cause, "not_sent");
    case.done.push(done("user_redirect"));
    assert_eq!(verdict(&case).cause, "device_differs");
}

#[test]
fn what_was_compared_counts_before_what_cannot_be_read() {
    let of = |answer: &str, deleted: bool, differs: Option<&str>| {
        let mut case = well();
        let flags = AccountFlags {
            deleted,
            ..flags(true)
        };
        case.flags = Some(flags);
        case.device = Some(Device {
            answer: answer.to_owned(),
            addresses: vec!["10.0.0.7".to_owned()],
            differs: differs.map(str::to_owned),
            ..Device::default()
        });
        verdict(&case)
    };
    let row = Some("/queue/simple name=x is different");
    // In words that nobody here reads: the comparison alone, not a list that is not there.
    let said = of("rate 5", false, row);
    assert_eq!(said.cause, "device_differs");
    assert!(said.text.contains("/queue/simple"), "{said:?}");
    assert_eq!(of("rate 5", false, None).cause, "device_unread");
    // Nobody is gone of whom something stands.
    assert_eq!(of("queue: none", true, row).cause, "device_differs");
    assert_eq!(of("queue: none", true, None).cause, "gone");
}

#[test]
fn a_daemon_that_hangs_is_no_daemon() {
    let mut case = well();
    case.facts.daemon = false;
    case.hangs = true;
    let said = verdict(&case);
    assert_eq!(said.cause, "no_daemon");
    assert!(said.text.contains("does not answer"), "{said:?}");
}

#[test]
fn what_is_held_can_be_let_go_as_it_says() {
    let mut case = waiting(5, Facts::default());
    case.waiting[0].state = "held".to_owned();
    let said = verdict(&case);
    assert_eq!(said.cause, "held");
    assert!(said.next.starts_with("guard approve 9 "), "{said:?}");
}

#[test]
fn what_stops_everybody_comes_first() {
    let mut case = well();
    case.facts.daemon = false;
    case.live = true;
    let said = verdict(&case);
    assert_eq!(
        said.cause, "no_daemon",
        "not a word less than was asked for"
    );
    assert!(said.text.ends_with("the device was not asked"), "{said:?}");
    case.full_disk = Some("/var/log".to_owned());
    case.facts.paused = Some("paused".to_owned());
    assert_eq!(verdict(&case).cause, "disk_full");
    case.foreign_owner = Some("b pid=1".to_owned());
    assert_eq!(verdict(&case).cause, "other_daemon");
    case.flags = None;
    assert_eq!(verdict(&case).cause, "unknown_account");
}
