//! Tests of the breaker: the rules one by one, and a simulated NAS under random outages.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::attempt::Failure;

const MID: u32 = u32::MAX / 2;
const MINUTE: u64 = 60_000;

fn user(n: i64) -> Option<UserId> {
    Some(UserId(n))
}

fn down(text: &str) -> Evidence {
    Evidence::NasFailure {
        text: text.to_owned(),
        parks: false,
    }
}

fn refused() -> Evidence {
    Evidence::NasFailure {
        text: "login refused".to_owned(),
        parks: true,
    }
}

fn permanent(text: &str) -> Evidence {
    Evidence::Permanent {
        text: text.to_owned(),
    }
}

/// One attempt from start to end, as a probe where only a probe may start.
fn attempt(b: &mut Breaker, now: u64, user: Option<UserId>, e: Evidence) -> Option<Change> {
    let probe = match b.may_start(now) {
        Start::Free => false,
        Start::Probe => true,
        Start::Wait { until } => panic!("nothing may start before {until}, it is {now}"),
    };
    let ticket = b.started(probe);
    b.ended(now, ticket, user, e, MID)
}

fn opened() -> Breaker {
    let mut b = Breaker::new();
    let change = attempt(&mut b, 0, user(1), down("no route"));
    assert_eq!(
        change,
        Some(Change::Opened {
            reason: "no route".to_owned()
        })
    );
    b
}

#[test]
fn steps_double_up_to_a_minute_and_each_allows_one_probe() {
    let mut b = opened();
    let mut now = 0;
    let mut waits = Vec::new();
    for _ in 0..9 {
        let next = b.next_probe().unwrap();
        waits.push(next - now);
        assert_eq!(b.may_start(next - 1), Start::Wait { until: next });
        now = next;
        assert_eq!(b.may_start(now), Start::Probe);
        let ticket = b.started(true);
        assert!(ticket.is_probe());
        assert_eq!(b.state(), "half-open");
        assert_eq!(b.next_probe(), None);
        assert_eq!(b.may_start(now), Start::Wait { until: u64::MAX });
        assert!(b.is_free(&down("x")));
        assert_eq!(b.ended(now, ticket, user(2), down("x"), MID), None);
        assert_eq!(b.state(), "open");
    }
    let about: Vec<_> = waits.iter().map(|w| (w + 10) / 1_000).collect();
    assert_eq!(about, [1, 2, 4, 8, 16, 32, 66, 66, 66]);
    assert_eq!(b.reason(), "x");
}

#[test]
fn jitter_spreads_by_a_fifth_and_never_probes_faster_than_once_a_minute() {
    assert_eq!(spread(1_000, 0), 800);
    assert_eq!(spread(1_000, u32::MAX), 1_200);
    assert_eq!(spread(STEP_LAST_MS, 0), 60_000);
    assert_eq!(spread(STEP_LAST_MS, u32::MAX), 72_000);
    assert_eq!(spread(PARKED_STEP_MS, 0), 240_000);
}

#[test]
fn attempts_started_before_it_opened_do_not_disturb() {
    let mut b = Breaker::new();
    let late: Vec<_> = (0..5).map(|_| b.started(false)).collect();
    let first = b.started(false);
    assert!(b.ended(0, first, user(1), down("a"), MID).is_some());
    let next = b.next_probe();
    for ticket in &late[0..2] {
        assert!(b.is_free(&down("late")), "the outage's fault, too");
        assert_eq!(b.ended(500, *ticket, user(2), down("late"), MID), None);
    }
    assert_eq!(b.ended(600, late[2], user(3), refused(), MID), None);
    assert_eq!((b.next_probe(), b.reason()), (next, "a"));

    let probe = b.started(true);
    assert_eq!(b.ended(1_100, late[3], user(4), down("late"), MID), None);
    assert_eq!(b.state(), "half-open", "only the probe ends the probing");
    b.ended(1_200, probe, user(5), Evidence::Success, MID);
    assert_eq!(b.state(), "closed");
    assert_eq!(b.ended(1_300, late[4], user(6), down("late"), MID), None);
    assert_eq!(b.state(), "closed", "a time-out of the old outage is stale");
}

#[test]
fn a_late_success_closes_and_the_probe_of_then_is_forgotten() {
    let mut b = Breaker::new();
    let late = b.started(false);
    attempt(&mut b, 0, user(1), down("a"));
    let probe = b.started(true);
    b.ended(900, late, user(2), Evidence::Success, MID);
    assert_eq!(b.may_start(900), Start::Free);
    assert!(!b.is_free(&down("a")));
    assert_eq!(b.ended(950, probe, user(3), down("a"), MID), None);
    assert_eq!(b.state(), "closed");
}

#[test]
fn a_probe_of_the_outage_before_is_not_the_one_of_this() {
    let mut b = Breaker::new();
    let late = b.started(false);
    attempt(&mut b, 0, user(1), down("a"));
    let before = b.started(true);
    b.ended(900, late, user(2), Evidence::Success, MID);
    attempt(&mut b, 1_000, user(1), down("b"));
    let probe = b.started(true);
    assert_eq!(b.ended(9_000, before, user(3), down("a"), MID), None);
    assert_eq!((b.state(), b.reason()), ("half-open", "b"));
    b.ended(9_100, probe, user(4), down("c"), MID);
    assert_eq!((b.state(), b.reason()), ("open", "c"));
}

#[test]
fn what_starts_late_counts_from_its_start() {
    let mut b = Breaker::new();
    let (picked, other) = (b.started(false), b.started(false));
    b.ended(5, other, user(2), Evidence::Success, MID);
    let ticket = b.renewed(picked);
    b.ended(10, ticket, user(1), Evidence::Silence, MID);
    assert_eq!(
        b.last.back(),
        Some(&(user(1), true)),
        "nobody was heard since"
    );
    b.poke(20);
    let ticket = b.renewed(picked);
    let change = b.ended(30, ticket, user(1), refused(), MID);
    assert!(
        matches!(change, Some(Change::Parked { .. })),
        "with the new settings"
    );
}

#[test]
fn after_healthy_minutes_it_begins_anew_though_nobody_looked() {
    let mut b = opened();
    for _ in 0..4 {
        let next = b.next_probe().unwrap();
        attempt(&mut b, next, user(1), down("a"));
    }
    let next = b.next_probe().unwrap();
    attempt(&mut b, next, user(1), Evidence::Success);
    let again = next + HEALTH_MS;
    attempt(&mut b, again, user(1), down("b"));
    assert!(b.next_probe().unwrap() <= again + 1_200);
}

#[test]
fn all_clear_after_five_healthy_minutes() {
    let mut b = opened();
    assert_eq!(attempt(&mut b, 2_000, user(1), Evidence::Success), None);
    assert_eq!((b.state(), b.may_start(2_000)), ("closed", Start::Free));
    assert_eq!(b.tick(2_000 + HEALTH_MS - 1), None);
    assert_eq!(b.tick(2_000 + HEALTH_MS), Some(Change::Closed));
    assert_eq!(b.tick(3_000 + HEALTH_MS), None);
    assert_eq!(b.reason(), "");
    let again = attempt(&mut b, 9_000_000, user(1), down("b"));
    assert!(matches!(again, Some(Change::Opened { .. })));
    assert!(
        b.next_probe().unwrap() <= 9_000_000 + 1_200,
        "first step again"
    );
}

#[test]
fn a_link_that_flaps_30_times_an_hour() {
    let mut b = Breaker::new();
    let mut probes = Vec::new();
    let mut changes = Vec::new();
    // 24 hours: down in every even minute, up in every odd one; then up for good.
    let end = 24 * 60 * MINUTE;
    let mut now = 0;
    while now < end + 10 * MINUTE {
        let is_up = now >= end || (now / MINUTE) % 2 == 1;
        let start = b.may_start(now);
        if !matches!(start, Start::Wait { .. }) {
            let evidence = if is_up {
                Evidence::Success
            } else {
                down("link")
            };
            if start == Start::Probe {
                probes.push(now);
            }
            changes.extend(attempt(&mut b, now, user(1), evidence));
        }
        changes.extend(b.tick(now));
        now += 100;
    }
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(matches!(changes[0], Change::Opened { .. }));
    assert_eq!(changes[1], Change::Closed);
    let steady: Vec<_> = probes.iter().filter(|at| **at > 5 * MINUTE).collect();
    assert!(steady.windows(2).all(|w| w[1] - w[0] >= 30_000));
    assert!(probes.len() <= 24 * 120, "{} probes", probes.len());
}

#[test]
fn a_refused_login_parks_until_the_settings_change() {
    let mut b = Breaker::new();
    let change = attempt(&mut b, 0, user(1), refused());
    assert!(matches!(change, Some(Change::Parked { .. })));
    assert_eq!(b.state(), "parked");
    let next = b.next_probe().unwrap();
    assert!((240_000..=360_000).contains(&next));
    assert_eq!(attempt(&mut b, next, user(1), refused()), None);
    assert!(b.next_probe().unwrap() >= next + 240_000);

    b.poke(next + 1_000);
    assert_eq!(b.may_start(next + 1_000), Start::Probe);
    let probe = b.started(true);
    b.poke(next + 2_000);
    b.ended(next + 3_000, probe, user(1), refused(), MID);
    assert_eq!(
        b.may_start(next + 3_000),
        Start::Probe,
        "that probe still used the old password"
    );
    attempt(&mut b, next + 4_000, user(1), Evidence::Success);
    assert_eq!(b.state(), "closed");
    assert_eq!(b.tick(next + 4_000 + HEALTH_MS), Some(Change::Closed));
}

#[test]
fn a_failure_with_the_old_settings_counts_for_nothing() {
    let mut b = Breaker::new();
    let old = b.started(false);
    b.poke(10);
    assert_eq!(b.ended(20, old, user(1), refused(), MID), None);
    assert_eq!(b.state(), "closed");
}

#[test]
fn an_outage_that_turns_into_a_refused_login_is_told_twice_only() {
    let mut b = opened();
    let change = attempt(&mut b, 2_000, user(1), refused());
    assert!(matches!(change, Some(Change::Parked { .. })));
    attempt(&mut b, 400_000, user(1), Evidence::Success);
    assert_eq!(attempt(&mut b, 401_000, user(1), down("again")), None);
    assert_eq!(b.state(), "open");
}

#[test]
fn equal_permanent_answers_of_many_accounts_park() {
    let feed = |text_of: fn(i64) -> &'static str, users: i64, success_at: i64| {
        let mut b = Breaker::new();
        for n in 0..22 {
            if b.state() == "closed" {
                attempt(&mut b, 0, user(n % users), permanent(text_of(n)));
            }
            if n == success_at {
                attempt(&mut b, 0, user(0), Evidence::Success);
            }
        }
        b
    };
    assert_eq!(feed(|_| "unknown parameter", 10, 99).state(), "parked");
    assert_eq!(feed(|_| "unknown parameter", 9, 99).state(), "closed");
    assert_eq!(feed(|_| "unknown parameter", 10, 10).state(), "closed");
    let two = |n| if n % 2 == 0 { "a" } else { "b" };
    assert_eq!(feed(two, 20, 99).state(), "closed");

    let mut b = feed(|_| "unknown parameter", 10, 99);
    let told = b.reason();
    assert!(
        told.starts_with("unknown parameter: the same 20 times for 10 accounts"),
        "{told}"
    );
    for (n, answer) in [permanent("unknown parameter"), Evidence::Other]
        .into_iter()
        .enumerate()
    {
        let now = b.next_probe().unwrap();
        let ticket = b.started(true);
        assert_eq!(b.is_free(&answer), n == 0);
        b.ended(now, ticket, user(1), answer, MID);
        assert_eq!(b.state(), "parked", "only a success proves the mend");
    }
    let now = b.next_probe().unwrap();
    attempt(&mut b, now, user(1), Evidence::Success);
    assert_eq!(b.state(), "closed");
}

#[test]
fn a_permanent_answer_is_doubted_until_somebody_is_obeyed() {
    let mut b = Breaker::new();
    let answer = permanent("unknown parameter");
    let refuse = |b: &mut Breaker, now, event, account| {
        let doubt = b.doubt(now, EventId(event), user(account), &answer, 5_000);
        attempt(b, now, user(account), answer.clone());
        doubt
    };
    assert_eq!(refuse(&mut b, 0, 1, 1), Doubt::Alone);
    assert_eq!(refuse(&mut b, 10, 2, 1), Doubt::Alone, "the same account");
    assert_eq!(refuse(&mut b, 20, 3, 2), Doubt::Shared);
    assert_eq!(refuse(&mut b, 60_000, 1, 1), Doubt::Shared);
    attempt(&mut b, 60_000, user(3), Evidence::Success);
    assert_eq!(refuse(&mut b, 60_000, 1, 1), Doubt::None);
    assert_eq!(refuse(&mut b, 60_000, 4, 4), Doubt::Shared, "a new one");
    b.poke(60_000);
    assert_eq!(refuse(&mut b, 60_000, 3, 2), Doubt::Alone, "other settings");
    let other = b.doubt(60_000, EventId(9), user(9), &Evidence::Other, 5_000);
    assert_eq!(other, Doubt::None);
}

#[test]
fn ten_refused_events_do_not_park_it_however_often_they_are_tried() {
    let mut b = Breaker::new();
    let answer = permanent("no such pool");
    let mut refuse = |event| {
        b.doubt(0, EventId(event), user(event), &answer, 5_000);
        attempt(&mut b, 0, user(event), answer.clone());
        b.state()
    };
    for _ in 0..9 {
        assert!((0..19).all(|event| refuse(event) == "closed"));
    }
    assert_eq!(refuse(19), "parked", "the twentieth event");
}

#[test]
fn silence_counts_only_while_nobody_else_is_answered() {
    let mut b = Breaker::new();
    let tickets: Vec<Ticket> = (0..8).map(|_| b.started(false)).collect();
    attempt(&mut b, 0, user(9), Evidence::Success);
    for (n, ticket) in (0..).zip(tickets) {
        let change = b.ended(60_000, ticket, user(n), Evidence::Silence, MID);
        assert_eq!(change, None);
    }
    assert_eq!(
        b.state(),
        "closed",
        "it answered somebody while they waited"
    );
    for n in 0..5 {
        attempt(&mut b, 60_000, user(n), Evidence::Silence);
    }
    assert_eq!(b.state(), "open");
}

#[test]
fn different_answers_are_counted_apart_and_bounded() {
    let mut b = Breaker::new();
    for n in 0..1_000 {
        attempt(&mut b, 0, user(n), permanent(&format!("no item {n}")));
    }
    assert!(b.answers.len() <= ANSWERS_MAX);
    assert_eq!(b.state(), "closed");
    for n in 0..40 {
        if b.state() == "closed" {
            let text = if n % 2 == 0 { "no rate" } else { "no pool" };
            attempt(&mut b, 0, user(n), permanent(text));
        }
    }
    assert_eq!(b.state(), "parked", "two firmware faults at once");
}

#[test]
fn attempts_that_all_get_no_answer_open_it() {
    let mut b = Breaker::new();
    for n in 0..4 {
        assert_eq!(attempt(&mut b, 0, user(n), Evidence::Silence), None);
    }
    attempt(&mut b, 0, user(9), Evidence::Success);
    for n in 0..4 {
        attempt(&mut b, 0, user(n % 2), Evidence::Silence);
    }
    attempt(&mut b, 0, user(0), Evidence::Silence);
    assert_eq!(b.state(), "closed", "two accounts do not stop a NAS");
    let change = attempt(&mut b, 0, user(2), Evidence::Silence);
    assert!(matches!(change, Some(Change::Opened { .. })));
    let ticket = b.started(true);
    assert!(b.is_free(&Evidence::Silence));
    b.ended(1_000, ticket, user(3), Evidence::Silence, MID);
    assert_eq!(b.state(), "open");
    attempt(&mut b, 5_000, user(3), Evidence::Other);
    assert_eq!(
        b.state(),
        "closed",
        "any other exit code means that it answered"
    );
}

#[test]
fn who_can_be_reached_again_is_probed_soon_and_in_short_steps() {
    let mut b = opened();
    for _ in 0..8 {
        let next = b.next_probe().unwrap();
        attempt(&mut b, next, user(1), down("no route"));
    }
    let due = b.next_probe().unwrap();
    b.reached(due + 1);
    assert_eq!(b.next_probe(), Some(due), "never later");
    b.reached(due - 50_000);
    assert_eq!(b.next_probe(), Some(due - 50_000));
    // Its port is open, and it does not let in yet.
    attempt(&mut b, due - 50_000, user(1), down("starting"));
    assert_eq!(
        b.next_probe(),
        Some(due - 50_000 + spread(STEP_FIRST_MS, MID))
    );
    // A line on which now one and now the other is true is not believed for ever. Twice so far.
    for n in 3..=6 {
        let due = b.next_probe().unwrap();
        b.reached(due - 500);
        let next = b.next_probe().unwrap();
        assert_eq!(next, if n < 6 { due - 500 } else { due });
        attempt(&mut b, next, user(1), down("starting"));
    }
    let due = b.next_probe().unwrap();
    let ticket = b.started(true);
    b.reached(0);
    assert_eq!(b.next_probe(), None, "a probe is running");
    let _ = b.ended(due, ticket, user(1), refused(), MID);
    let parked = b.next_probe();
    b.reached(0);
    assert_eq!(b.next_probe(), parked, "a human is needed");
}

#[test]
fn a_probe_that_never_ran_is_due_again_at_once() {
    let mut b = opened();
    let ticket = b.started(false);
    assert!(!ticket.is_probe());
    let probe = b.started(true);
    assert!(!b.is_free(&Evidence::Nothing));
    b.ended(1_500, probe, user(1), Evidence::Nothing, MID);
    assert_eq!(b.may_start(1_500), Start::Probe);
}

#[test]
fn evidence_is_read_from_reports() {
    let policy = ExitPolicy::default();
    let of = |verdict| Evidence::of(&Report::of(verdict), &policy);
    assert_eq!(of(Verdict::Done), Evidence::Success);
    assert_eq!(of(Verdict::Exit(0)), Evidence::Success);
    assert_eq!(of(Verdict::NotImplemented), Evidence::Nothing);
    assert_eq!(of(Verdict::Observed), Evidence::Nothing);
    for code in [143, 254] {
        assert_eq!(of(Verdict::Exit(code)), Evidence::Silence);
    }
    assert_eq!(of(Verdict::Exit(1)), Evidence::Other);
    let timeout = Verdict::Failed(Failure::timeout("60 s"));
    assert_eq!(of(timeout), Evidence::Silence);
    let transport = Verdict::Failed(Failure::transport("no route"));
    assert_eq!(of(transport), down("no route"));
    let never = Verdict::Failed(Failure::permanent("unknown parameter"));
    assert_eq!(of(never), permanent("unknown parameter"));
}

proptest! {
    /// A NAS with random outages, attempts of random length: what is promised at every moment.
    #[test]
    fn under_random_outages(
        outages in vec((1..400_u64, 1..400_u64), 1..12),
        lengths in vec(1..90_u64, 1..40),
        jitters in vec(any::<u32>(), 1..20),
    ) {
        let mut b = Breaker::new();
        let mut running: Vec<(u64, Ticket, bool)> = Vec::new();
        let mut alarm_open = false;
        let mut last_probe: Option<u64> = None;
        let (mut n, mut at) = (0_usize, 0_u64);
        let mut edges = Vec::new();
        for (up, down) in outages {
            at += up;
            edges.push((at, at + down));
            at += down;
        }
        let healthy_from = at;
        for second in 0..healthy_from + 500 {
            let now = second * 1_000;
            let is_up = !edges.iter().any(|(from, to)| (*from..*to).contains(&second));
            let mut changes = Vec::new();
            let (ended, rest): (Vec<_>, Vec<_>) =
                running.drain(..).partition(|(until, ..)| *until <= second);
            running = rest;
            for (_, ticket, was_up) in ended {
                n += 1;
                let evidence = if was_up { Evidence::Success } else { down("down") };
                let jitter = jitters[n % jitters.len()];
                changes.extend(b.ended(now, ticket, user(1), evidence, jitter));
            }
            changes.extend(b.tick(now));
            for change in changes {
                match change {
                    Change::Opened { .. } => {
                        prop_assert!(!alarm_open, "two alarms in one outage");
                        alarm_open = true;
                    }
                    Change::Closed => {
                        prop_assert!(alarm_open, "all-clear without an alarm");
                        alarm_open = false;
                    }
                    Change::Parked { .. } => prop_assert!(false, "nobody refused a login"),
                }
            }
            for _ in 0..3 {
                let probe = match b.may_start(now) {
                    Start::Free => false,
                    Start::Probe => true,
                    Start::Wait { until } => {
                        prop_assert!(until > now);
                        continue;
                    }
                };
                if probe {
                    prop_assert!(!running.iter().any(|(_, t, _)| t.probe == b.probe && b.probe.is_some()));
                    if let Some(last) = last_probe {
                        prop_assert!(now - last >= 800, "two probes in one step");
                    }
                    last_probe = Some(now);
                }
                n += 1;
                let ticket = b.started(probe);
                prop_assert_eq!(ticket.is_probe(), probe);
                running.push((second + lengths[n % lengths.len()], ticket, is_up));
            }
        }
        prop_assert_eq!(b.state(), "closed");
        prop_assert_eq!(b.may_start((healthy_from + 500) * 1_000), Start::Free);
    }
}
