//! What becomes of an event after an attempt. Pure: the report and the rules go in, the
//! outcome comes out.
//!
//! The wait after the n-th failed try is `retry_base` × n. With the defaults (61.2 s, 10
//! tries; the original's "0.017 × attempt", read as hours):
//!
//! | failed try | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 |
//! |---|---|---|---|---|---|---|---|---|---|---|
//! | wait, s | 61.2 | 122.4 | 183.6 | 244.8 | 306.0 | 367.2 | 428.4 | 489.6 | 550.8 | dead |
//! | waited in all, min | 1.0 | 3.1 | 6.1 | 10.2 | 15.3 | 21.4 | 28.6 | 36.7 | 45.9 | – |

use std::time::Duration;

use super::doubt::{self, Doubt};
use crate::attempt::{DoneResult, Failure, FailureClass, Outcome, Report, Scope, Verdict};
use crate::event::Class;
use crate::nas::OnError;
use crate::scheme::ExitPolicy;

/// What a script's death by SIGTERM looks like: 128 + 15.
const EXIT_SIGTERM: i32 = Failure::CODE_TIMEOUT;
/// What scripts return on purpose when the NAS did not answer.
const EXIT_NO_ANSWER: i32 = Failure::CODE_TRANSPORT;
/// Exit codes of deaths by a signal: 128 + 1 to 128 + 64 (bash manual, section 3.7.5).
const EXIT_SIGNALS: std::ops::RangeInclusive<i32> = 129..=192;

/// What `settle` must know beside the report.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Number of the try that ended, from 1.
    pub try_count: u32,
    /// Class of the event.
    pub class: Class,
    /// Tries before it is dead, from 1 (`dispatch.max_tries`).
    pub max_tries: u32,
    /// `dispatch.retry_base`.
    pub retry_base: Duration,
    /// The scheme's map of exit codes.
    pub policy: &'a ExitPolicy,
    /// What a failure means that is neither "done" nor "try later": the NAS's setting, else
    /// the scheme's, else the global one (see [`on_error`]).
    pub on_error: OnError,
}

/// The one `on_error` that counts: the NAS's, else the scheme's, else the global one.
pub fn on_error(nas: Option<OnError>, policy: &ExitPolicy, global: OnError) -> OnError {
    nas.or(policy.on_error).unwrap_or(global)
}

/// Judges one attempt.
///
/// - A failure of the NAS as a whole gives the event back and burns no try.
/// - "Try later" (exit 143, 254 or as the scheme maps them; transport, refused and unknown
///   failures of the event) defers until `max_tries`, then the event is dead.
/// - Everything else is as `on_error` says; a permanent answer once it is sure ([`weighed`]).
/// - An interactive event has one try: whatever fails is final, kept and visible.
pub fn settle(report: &Report, facts: &Facts<'_>) -> Outcome {
    match &report.verdict {
        Verdict::Done => Outcome::Done(DoneResult::Done),
        Verdict::Observed => Outcome::Done(DoneResult::Observed),
        Verdict::NotImplemented => Outcome::Done(DoneResult::NotImplemented),
        Verdict::Failed(failure) if failure.scope == Scope::Nas => {
            if facts.class == Class::Interactive {
                Outcome::Dead(failure.to_string())
            } else {
                Outcome::Released
            }
        }
        Verdict::Failed(failure) => match failure.class {
            FailureClass::Transport | FailureClass::Refused | FailureClass::Unknown => {
                later(&failure.to_string(), facts)
            }
            FailureClass::Permanent => failed(&failure.to_string(), facts),
        },
        Verdict::Exit(code) if is_done(*code, facts.policy) => Outcome::Done(DoneResult::Done),
        Verdict::Exit(code) if is_later(*code, facts.policy) => later(&exit_text(*code), facts),
        Verdict::Exit(code) => failed(&exit_text(*code), facts),
    }
}

/// What becomes of the event when it is known what the attempt says about its NAS: nothing is held
/// against an event that is the NAS's fault (`free`), and a permanent answer not before it is sure.
/// An interactive event has its one try all the same.
pub fn weighed(outcome: Outcome, facts: &Facts<'_>, free: bool, doubt: Doubt) -> Outcome {
    let (failed, last) = match &outcome {
        Outcome::Done(DoneResult::Dropped) | Outcome::Dead(_) => (true, true),
        Outcome::Deferred(_) => (true, false),
        Outcome::Done(_) | Outcome::Released => (false, false),
    };
    if !failed || facts.class == Class::Interactive {
        return outcome;
    }
    if free {
        return Outcome::Released;
    }
    if !last || facts.try_count >= facts.max_tries {
        return outcome;
    }
    match doubt {
        Doubt::None => outcome,
        Doubt::Alone => Outcome::Deferred(doubt::alone(facts.retry_base)),
        Doubt::Shared => Outcome::Deferred(facts.retry_base.saturating_mul(facts.try_count.max(1))),
    }
}

/// Whether the NAS may have obeyed although the attempt failed: the answer was lost, or the
/// script died or gave up after it may have sent something. The next try is told so.
pub fn possible_duplicate(report: &Report) -> bool {
    match &report.verdict {
        Verdict::Done | Verdict::Observed | Verdict::NotImplemented => false,
        Verdict::Failed(failure) => failure.class == FailureClass::Unknown,
        Verdict::Exit(code) => *code == EXIT_NO_ANSWER || EXIT_SIGNALS.contains(code),
    }
}

/// Whether this exit code means done: 0, or as the scheme maps it.
pub fn is_done(code: i32, policy: &ExitPolicy) -> bool {
    code == 0 || policy.done.contains(&code)
}

/// Whether this exit code, if not mapped to done, means "try later": death by SIGTERM, or as
/// the scheme maps it (143 and 254 by default).
pub fn is_later(code: i32, policy: &ExitPolicy) -> bool {
    code == EXIT_SIGTERM || policy.defer.contains(&code)
}

fn exit_text(code: i32) -> String {
    match code {
        EXIT_SIGTERM => "the script was ended by SIGTERM or by its time-out (143)".to_owned(),
        EXIT_NO_ANSWER => "the script got no answer from the NAS (254)".to_owned(),
        code => format!("the script ended with code {code}"),
    }
}

fn later(reason: &str, facts: &Facts<'_>) -> Outcome {
    if facts.class == Class::Interactive {
        return Outcome::Dead(reason.to_owned());
    }
    if facts.try_count >= facts.max_tries {
        return Outcome::Dead(format!("{} tries, the last: {reason}", facts.try_count));
    }
    Outcome::Deferred(facts.retry_base.saturating_mul(facts.try_count.max(1)))
}

fn failed(reason: &str, facts: &Facts<'_>) -> Outcome {
    if facts.class == Class::Interactive {
        return Outcome::Dead(reason.to_owned());
    }
    match facts.on_error {
        OnError::Dead => Outcome::Dead(reason.to_owned()),
        OnError::Retry => later(reason, facts),
        OnError::Drop => Outcome::Done(DoneResult::Dropped),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const BASE: Duration = Duration::from_millis(61_200);

    fn facts(policy: &ExitPolicy, try_count: u32) -> Facts<'_> {
        Facts {
            try_count,
            class: Class::Access,
            max_tries: 10,
            retry_base: BASE,
            policy,
            on_error: OnError::Dead,
        }
    }

    fn exit(code: i32) -> Report {
        Report::of(Verdict::Exit(code))
    }

    fn failure(scope: Scope, class: FailureClass) -> Report {
        Report::of(Verdict::Failed(Failure {
            scope,
            class,
            code: 7,
            text: "no such item".to_owned(),
            parks: false,
        }))
    }

    #[test]
    fn ten_tries_wait_45_9_minutes_in_all() {
        let policy = ExitPolicy::default();
        let mut waited = Duration::ZERO;
        for n in 1..10 {
            let Outcome::Deferred(wait) = settle(&exit(254), &facts(&policy, n)) else {
                panic!("try {n} must be deferred");
            };
            assert_eq!(wait, BASE * n);
            waited += wait;
        }
        assert_eq!(waited, Duration::from_secs(2_754));
        let Outcome::Dead(reason) = settle(&exit(254), &facts(&policy, 10)) else {
            panic!("the tenth failure must be the last");
        };
        assert!(reason.starts_with("10 tries"), "{reason}");
        assert!(reason.contains("254"), "{reason}");
    }

    #[test]
    fn the_nearer_on_error_wins() {
        let mut policy = ExitPolicy::default();
        assert_eq!(on_error(None, &policy, OnError::Dead), OnError::Dead);
        policy.on_error = Some(OnError::Drop);
        assert_eq!(on_error(None, &policy, OnError::Dead), OnError::Drop);
        assert_eq!(
            on_error(Some(OnError::Retry), &policy, OnError::Dead),
            OnError::Retry
        );
    }

    #[test]
    fn an_unknown_code_is_as_on_error_says() {
        let policy = ExitPolicy::default();
        let mut f = facts(&policy, 3);
        for report in [
            exit(1),
            exit(127),
            failure(Scope::Event, FailureClass::Permanent),
        ] {
            f.on_error = OnError::Dead;
            assert!(matches!(settle(&report, &f), Outcome::Dead(_)));
            f.on_error = OnError::Drop;
            assert_eq!(settle(&report, &f), Outcome::Done(DoneResult::Dropped));
            f.on_error = OnError::Retry;
            assert_eq!(settle(&report, &f), Outcome::Deferred(BASE * 3));
        }
    }

    #[test]
    fn a_scheme_maps_codes_but_never_sigterm_away() {
        let policy = ExitPolicy {
            done: BTreeSet::from([1]),
            defer: BTreeSet::from([75]),
            on_error: None,
        };
        let f = facts(&policy, 1);
        assert_eq!(settle(&exit(0), &f), Outcome::Done(DoneResult::Done));
        assert_eq!(settle(&exit(1), &f), Outcome::Done(DoneResult::Done));
        assert_eq!(settle(&exit(75), &f), Outcome::Deferred(BASE));
        assert_eq!(settle(&exit(143), &f), Outcome::Deferred(BASE));
        assert!(matches!(settle(&exit(254), &f), Outcome::Dead(_)));
    }

    #[test]
    fn what_may_have_been_applied_is_flagged() {
        for report in [
            exit(143),
            exit(137),
            exit(254),
            failure(Scope::Event, FailureClass::Unknown),
        ] {
            assert!(possible_duplicate(&report), "{report:?}");
        }
        for report in [
            exit(1),
            exit(255),
            exit(128),
            failure(Scope::Nas, FailureClass::Transport),
            failure(Scope::Event, FailureClass::Refused),
            Report::of(Verdict::Done),
        ] {
            assert!(!possible_duplicate(&report), "{report:?}");
        }
    }

    #[test]
    fn what_may_be_the_nas_s_fault_is_not_held_against_the_event() {
        let policy = ExitPolicy::default();
        let mut f = facts(&policy, 2);
        let dead = || Outcome::Dead("no".to_owned());
        let dropped = || Outcome::Done(DoneResult::Dropped);
        for last in [dead, dropped] {
            assert_eq!(weighed(last(), &f, true, Doubt::None), Outcome::Released);
            assert_eq!(weighed(last(), &f, false, Doubt::None), last());
            let alone = Outcome::Deferred(doubt::alone(BASE));
            assert_eq!(weighed(last(), &f, false, Doubt::Alone), alone);
            let shared = Outcome::Deferred(BASE * 2);
            assert_eq!(weighed(last(), &f, false, Doubt::Shared), shared);
        }
        for other in [
            Outcome::Deferred(BASE),
            Outcome::Released,
            Outcome::Done(DoneResult::Done),
        ] {
            let same = weighed(other.clone(), &f, false, Doubt::Shared);
            assert_eq!(same, other);
        }
        f.try_count = 10;
        assert_eq!(weighed(dead(), &f, false, Doubt::Shared), dead());
        f.class = Class::Interactive;
        assert_eq!(weighed(dead(), &f, true, Doubt::Alone), dead());
    }

    fn verdicts() -> impl Strategy<Value = Verdict> {
        let scope = prop_oneof![Just(Scope::Nas), Just(Scope::Event)];
        let class = prop_oneof![
            Just(FailureClass::Transport),
            Just(FailureClass::Refused),
            Just(FailureClass::Unknown),
            Just(FailureClass::Permanent),
        ];
        prop_oneof![
            Just(Verdict::Done),
            Just(Verdict::Observed),
            Just(Verdict::NotImplemented),
            (-5..300_i32).prop_map(Verdict::Exit),
            (scope, class, any::<bool>()).prop_map(|(scope, class, parks)| Verdict::Failed(
                Failure {
                    scope,
                    class,
                    code: 1,
                    text: "text".to_owned(),
                    parks
                }
            )),
        ]
    }

    fn any_facts() -> impl Strategy<Value = (u32, Class, u32, u64, OnError)> {
        let on_error = prop_oneof![
            Just(OnError::Dead),
            Just(OnError::Retry),
            Just(OnError::Drop)
        ];
        let class = (0..5_i64).prop_map(Class::from_number);
        (
            prop_oneof![1..20_u32, Just(u32::MAX)],
            class,
            1..20_u32,
            0..100_000_u64,
            on_error,
        )
    }

    proptest! {
        #[test]
        fn tries_are_bounded_and_burnt_only_by_the_event(
            verdict in verdicts(),
            (try_count, class, max_tries, base_ms, on_error) in any_facts(),
        ) {
            let policy = ExitPolicy::default();
            let facts = Facts {
                try_count,
                class,
                max_tries,
                retry_base: Duration::from_millis(base_ms),
                policy: &policy,
                on_error,
            };
            let good = match &verdict {
                Verdict::Done | Verdict::Observed | Verdict::NotImplemented => true,
                Verdict::Exit(code) => *code == 0,
                Verdict::Failed(_) => false,
            };
            let of_nas = matches!(&verdict, Verdict::Failed(f) if f.scope == Scope::Nas);
            match settle(&Report::of(verdict), &facts) {
                Outcome::Done(DoneResult::Dropped) => {
                    prop_assert!(!good && on_error == OnError::Drop);
                    prop_assert!(class != Class::Interactive);
                }
                Outcome::Done(_) => prop_assert!(good),
                Outcome::Deferred(wait) => {
                    prop_assert!(!good && !of_nas && class != Class::Interactive);
                    prop_assert!(try_count < max_tries);
                    prop_assert_eq!(wait, facts.retry_base * try_count);
                }
                Outcome::Dead(reason) => {
                    prop_assert!(!good && !reason.is_empty() && !reason.contains('\n'));
                    prop_assert!(!of_nas || class == Class::Interactive);
                }
                Outcome::Released => prop_assert!(of_nas && class != Class::Interactive),
            }
        }
    }
}
