//! The guard against a naive count, its limits at their edges, and announced batches.

use std::collections::BTreeSet;

use chrono::{TimeZone, Utc};
use proptest::prelude::*;

use super::*;

fn cut(user: i64) -> Cut<'static> {
    Cut {
        source: "crm",
        cmd: "user_redirect",
        nas: NasId(1),
        user: UserId(user),
    }
}

fn at(year: i32, month: u32, day: u32, hour: u32) -> i64 {
    Utc.with_ymd_and_hms(year, month, day, hour, 0, 0)
        .unwrap()
        .timestamp_millis()
}

/// The first cut that is a burst, of accounts 1, 2, 3 …, one every `step` ms.
fn first_burst(on_nas: usize, in_all: usize, step: u64) -> (i64, String) {
    let mut guard = Guard::default();
    for user in 1_i64.. {
        let now = user.unsigned_abs() * step;
        let cut = cut(user);
        let counted = guard.count(&cut, now);
        if let Some(burst) = guard.weigh(&cut, counted, on_nas, in_all, now) {
            assert!(burst.tell && counted.is_much());
            return (user, burst.reason);
        }
        assert!(user < 100_000, "no burst at all");
    }
    unreachable!()
}

#[test]
fn each_window_has_its_share() {
    let many = 1_000_000;
    let (user, reason) = first_burst(1_000, many, 10);
    assert_eq!(user, 301);
    assert!(reason.contains("within a minute"), "{reason}");
    let (user, reason) = first_burst(1_000, many, 1_000);
    assert_eq!(user, 401);
    assert!(reason.contains("within an hour"), "{reason}");
    let (user, reason) = first_burst(1_000, many, 20_000);
    assert_eq!(user, 601);
    assert!(reason.contains("within a day"), "{reason}");
    let (user, reason) = first_burst(10_000, 20_000, 10);
    assert_eq!(user, 2_001);
    assert!(reason.contains("all NASes") && reason.contains("within ten minutes"));
    // However few there are.
    assert_eq!(first_burst(0, 0, 10).0, 51);
    assert_eq!(first_burst(100, many, 10).0, 51);
}

#[test]
fn a_burst_is_told_once_and_again_after_ten_minutes() {
    let mut guard = Guard::default();
    let mut told = Vec::new();
    for user in 1..=700_i64 {
        let now = user.unsigned_abs() * 1_000;
        let cut = cut(user);
        let counted = guard.count(&cut, now);
        if guard
            .weigh(&cut, counted, 100, 1_000_000, now)
            .is_some_and(|b| b.tell)
        {
            told.push(user);
        }
    }
    assert_eq!(told, [51, 651]);
}

#[test]
fn other_sources_and_nases_are_counted_apart() {
    let mut guard = Guard::default();
    for user in 1..=50 {
        assert!(!guard.count(&cut(user), 1).is_much());
    }
    let other_source = Cut {
        source: "cron",
        ..cut(51)
    };
    assert!(!guard.count(&other_source, 1).is_much());
    let other_nas = Cut {
        nas: NasId(2),
        ..cut(51)
    };
    let counted = guard.count(&other_nas, 1);
    assert!(counted.is_much(), "51 over all NASes");
    assert_eq!(guard.weigh(&other_nas, counted, 10, 1_000, 1), None);
}

#[test]
fn only_cuts_are_cuts() {
    let mut guard = Guard::default();
    let mut is = |cmd: &str, rate| guard.is_cut(&Cmd::parse(cmd).unwrap(), UserId(7), rate);
    for cmd in [
        "user_redirect",
        "user_drop",
        "user_disconnect",
        "user_del",
        "b_negbal",
    ] {
        assert!(is(cmd, None), "{cmd}");
    }
    for cmd in ["user_redirect_cancel", "user_add", "user_info", "u_b_sys"] {
        assert!(!is(cmd, Some(1.0)), "{cmd}");
    }
    assert!(!is("user_rate_set", Some(100.0)), "nothing to compare with");
    assert!(!is("user_rate_set", Some(10.0)), "a tenth is not under it");
    assert!(is("user_rate_set", Some(0.9)));
    assert!(!is("user_rate_set", Some(100.0)), "up again");
    assert!(!is("user_rate_set", None));
}

#[test]
fn speeds_of_many_accounts_are_remembered_up_to_a_bound() {
    let mut guard = Guard::default();
    let rate = Cmd::parse("user_rate_set").unwrap();
    for user in 1..=i64::try_from(RATES_MAX).unwrap() {
        assert!(!guard.is_cut(&rate, UserId(user), Some(100.0)));
    }
    assert!(guard.is_cut(&rate, UserId(1), Some(0.9)), "still known");
    assert_eq!(guard.rates.len(), RATES_MAX);
    assert!(!guard.is_cut(&rate, UserId(0), Some(100.0)));
    assert_eq!(guard.rates.len(), 1, "one more than fits");
}

#[test]
fn speeds_are_read_as_billings_write_them() {
    for (text, value) in [("512k", 512e3), ("10M", 10e6), (" 7 ", 7.0), ("1G", 1e9)] {
        assert_eq!(speed(text), Some(value), "{text}");
    }
    for text in ["", "fast", "-1", "0", "NaN", "M", "é"] {
        assert_eq!(speed(text), None, "{text}");
    }
}

fn allowance(monthly: bool) -> Allowance {
    Allowance {
        id: 1,
        source: "crm".to_owned(),
        cmd: Some("user_redirect".to_owned()),
        from_ms: at(2026, 1, 31, 22),
        for_ms: 4 * 3_600_000,
        most: 2,
        monthly,
    }
}

#[test]
fn an_announced_batch_covers_what_it_says() {
    let mut guard = Guard::default();
    let all = [allowance(false)];
    let inside = at(2026, 1, 31, 23);
    let later = at(2026, 2, 28, 23);
    assert_eq!(allowance(false).window(later), None, "once only");
    assert!(!guard.is_allowed(&cut(1), &all, at(2026, 1, 31, 21)));
    assert!(!guard.is_allowed(&cut(1), &all, at(2026, 2, 1, 2)));
    let other = Cut {
        source: "cron",
        ..cut(1)
    };
    assert!(!guard.is_allowed(&other, &all, inside));
    let other = Cut {
        cmd: "user_del",
        ..cut(1)
    };
    assert!(!guard.is_allowed(&other, &all, inside));
    assert!(guard.is_allowed(&cut(1), &all, inside));
    assert!(guard.is_allowed(&cut(2), &all, inside));
    assert!(!guard.is_allowed(&cut(3), &all, inside), "it is used up");
}

#[test]
fn a_monthly_batch_comes_again_with_all_of_its_events() {
    let monthly = allowance(true);
    assert_eq!(monthly.window(at(2025, 12, 31, 23)), None, "not before");
    for (moment, from) in [
        (at(2026, 1, 31, 22), Some(at(2026, 1, 31, 22))),
        (at(2026, 2, 1, 1), Some(at(2026, 1, 31, 22))),
        (at(2026, 2, 1, 2), None),
        (at(2026, 2, 28, 23), Some(at(2026, 2, 28, 22))),
        (at(2026, 3, 1, 1), Some(at(2026, 2, 28, 22))),
        (at(2027, 6, 30, 22), Some(at(2027, 6, 30, 22))),
        (at(2027, 6, 29, 22), None),
    ] {
        assert_eq!(monthly.window(moment), from, "{moment}");
    }
    let mut guard = Guard::default();
    let all = [monthly];
    for month in [1, 2, 3] {
        let day = [31, 28, 31][month - 1];
        let moment = at(2026, u32::try_from(month).unwrap(), day, 23);
        assert!(guard.is_allowed(&cut(1), &all, moment));
        assert!(guard.is_allowed(&cut(2), &all, moment));
        assert!(!guard.is_allowed(&cut(3), &all, moment));
    }
}

#[test]
fn of_too_many_sources_the_quietest_is_forgotten() {
    let mut guard = Guard::default();
    let name = |n: usize| format!("source{n}");
    let mut count = |n: usize, now: u64| {
        let source = name(n);
        let cut = Cut {
            source: &source,
            ..cut(i64::try_from(now).unwrap())
        };
        let counted = guard.count(&cut, now);
        assert!(guard.pairs.len() <= PAIRS_MAX);
        (counted.nas[2], counted.everywhere)
    };
    for n in 0..PAIRS_MAX {
        assert_eq!(count(n, n as u64), (1, 1));
    }
    // One that is known costs nobody's place, and is not the quietest any more.
    assert_eq!(count(0, 20_000), (2, 2));
    assert_eq!(count(PAIRS_MAX, 20_001), (1, 1));
    assert_eq!(count(2, 20_002), (2, 2));
    assert_eq!(count(1, 20_003), (1, 1), "it was forgotten, everywhere");
}

proptest! {
    #[test]
    fn it_counts_as_one_counts_by_hand(
        cuts in proptest::collection::vec((1_i64..80, 1_i64..3, 0_u64..40_000), 1..300),
        on_nas in 0_usize..400,
    ) {
        let mut guard = Guard::default();
        let mut past: Vec<(u64, i64, i64)> = Vec::new();
        let mut now = 0;
        for (user, nas, step) in cuts {
            now += step;
            past.push((now, nas, user));
            let cut = Cut { nas: NasId(nas), ..cut(user) };
            let counted = guard.count(&cut, now);
            let within = |span: u64, here: bool| -> usize {
                let users: BTreeSet<i64> = past
                    .iter()
                    .filter(|(at, n, _)| at + span > now && (!here || *n == nas))
                    .map(|(_, _, user)| *user)
                    .collect();
                users.len()
            };
            let by_hand = Counted {
                nas: [within(60_000, true), within(3_600_000, true), within(86_400_000, true)],
                everywhere: within(600_000, false),
            };
            prop_assert_eq!(counted, by_hand);
            let over = |n: usize, share: usize| n > LEAST.max(on_nas * share / 100);
            let expected = over(by_hand.nas[0], 30) || over(by_hand.nas[1], 40) || over(by_hand.nas[2], 60);
            let burst = guard.weigh(&cut, counted, on_nas, 1_000_000, now);
            prop_assert_eq!(burst.is_some(), expected);
        }
    }
}
