//! Tests of what the dispatcher says of itself, as it is read.

use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;
use crate::dispatch::plan::Step;
use crate::dispatch::stand_test::{Device, FRESH, NAS, Stand, served};
use crate::dispatch::{Obstacle, Skip};
use crate::event::Class;
use crate::nas::NasId;

/// What would be scraped after this.
fn scraped(what: impl FnOnce()) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, what);
    recorder.handle().render()
}

/// The value behind a series that begins so.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn nas() -> Nas {
    Nas::new(NasId(7), "Bras", "10.90.185.2")
}

#[test]
fn each_failure_has_its_kind() {
    let failed = |failure: Failure| Verdict::Failed(failure);
    let refused = Failure {
        class: FailureClass::Refused,
        ..Failure::permanent("no")
    };
    for (verdict, class) in [
        (Verdict::Done, None),
        (Verdict::Observed, None),
        (Verdict::NotImplemented, None),
        (Verdict::Exit(0), None),
        (Verdict::Exit(1), Some("exit")),
        (Verdict::Exit(Failure::CODE_TIMEOUT), Some("timeout")),
        (failed(Failure::timeout("late".to_owned())), Some("timeout")),
        (failed(Failure::transport("gone")), Some("transport")),
        (failed(Failure::permanent("never")), Some("permanent")),
        (failed(refused), Some("refused")),
    ] {
        let text = scraped(|| count_error(&nas(), &verdict));
        let series = "nas_event_daemon_attempt_errors_total{";
        assert_eq!(
            value(&text, series),
            class.map(|_| 1.0),
            "{verdict:?}\n{text}"
        );
        let class = class.map(|class| format!("nas_id=\"7\",nas=\"Bras\",class=\"{class}\""));
        assert!(
            class.is_none_or(|class| text.contains(&class)),
            "{verdict:?}\n{text}"
        );
    }
}

#[test]
fn failures_are_counted_from_nothing_on() {
    let text = scraped(|| count_from_now_on(&nas()));
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("class="))
        .collect();
    assert_eq!(lines.len(), CLASSES.len(), "{text}");
    assert!(lines.iter().all(|line| line.ends_with(" 0")), "{text}");
}

#[test]
fn an_attempt_is_counted_with_its_driver_and_only_success_is_dated() {
    for (driver, shown) in [("", "script"), ("mikrotik", "mikrotik")] {
        let device = Device::with_driver(driver);
        let served = served(NAS, 1, &std::sync::Arc::new(device));
        for (result, dated) in [("done", true), ("dead", false)] {
            let text = scraped(|| count_attempt(&served, result, 2_000));
            let labels = format!("nas_id=\"1\",nas=\"Bras\",driver=\"{shown}\"");
            let attempts =
                format!("nas_event_daemon_dispatch_attempts_total{{{labels},result=\"{result}\"}}");
            assert_eq!(value(&text, &attempts), Some(1.0), "{text}");
            let sum = format!("nas_event_daemon_attempt_duration_seconds_sum{{{labels}}}");
            assert_eq!(value(&text, &sum), Some(2.0), "{text}");
            let last = value(
                &text,
                "nas_event_daemon_nas_last_success_timestamp_seconds{",
            );
            assert_eq!(last.is_some_and(|at| at > 1.7e9), dated, "{text}");
        }
    }
}

#[test]
fn an_event_is_counted_with_the_time_since_its_acceptance() {
    let text = scraped(|| count_event("user_add", "done", clock::wall_ms() - 5_000));
    let events = "nas_event_daemon_events_total{cmd=\"user_add\",result=\"done\"}";
    assert_eq!(value(&text, events), Some(1.0), "{text}");
    let took = value(
        &text,
        "nas_event_daemon_event_latency_seconds_sum{result=\"done\"}",
    );
    assert!(took.is_some_and(|s| (5.0..60.0).contains(&s)), "{text}");
    // A clock that was set back.
    let text = scraped(|| count_event("user_add", "done", i64::MAX));
    let took = value(
        &text,
        "nas_event_daemon_event_latency_seconds_sum{result=\"done\"}",
    );
    assert_eq!(took, Some(0.0), "{text}");
}

#[tokio::test]
async fn all_of_a_nas_is_told() {
    let mut stand = Stand::new(2).await;
    for id in 1..=4 {
        stand.add(id, id, Class::Cut);
    }
    assert_eq!(stand.claim(FRESH), [1, 2, 3, 4]);
    for id in 5..=7 {
        stand.add(id, 1, Class::Cut);
    }
    stand.pause();
    let pool = stand.pool();
    (pool.done, pool.deferred, pool.dead) = (31, 32, 33);
    pool.took(0, 40);
    stand.s.turns = 9;
    let skip = Skip {
        name: "Off".to_owned(),
        why: "mode=off".to_owned(),
        obstacle: Obstacle::Off,
        log_name: String::new(),
    };
    stand.s.skipped.insert(NasId(5), skip);
    stand.s.status_at = 0;
    stand.scheduler.publish(&mut stand.s, clock::wall_ms());
    let status = stand.status.borrow().clone();
    let nas = NasStatus {
        id: 1,
        name: "Bras".to_owned(),
        ip: "10.90.185.2".to_owned(),
        waiting: 3 + 2,
        running: 2,
        forks: 2,
        done: 31,
        deferred: 32,
        dead: 33,
        breaker: "closed",
        reason: String::new(),
        paused: true,
        observe: false,
        p95_ms: 40,
    };
    assert_eq!(
        status,
        Status {
            turns: 9,
            held: 3,
            running: 2,
            nases: vec![nas],
            skipped: vec![(5, "mode=off".to_owned(), Obstacle::Off, "Off".to_owned())],
        }
    );
}

#[tokio::test]
async fn the_state_is_told_now_and_then_and_as_it_is() {
    let mut stand = Stand::new(1).await;
    stand.s.status_at = clock::tick_ms() + 60_000;
    stand.s.turns = 5;
    stand.scheduler.publish(&mut stand.s, 0);
    assert!(
        stand.s.unpublished && stand.status.borrow().turns == 0,
        "too soon"
    );
    stand.breaks();
    let mut new = served(NAS, 1, &stand.device.clone());
    new.nas = std::sync::Arc::new(Nas {
        mode: Mode::Observe,
        ..Nas::new(NAS, "Bras", "10.90.185.2")
    });
    stand.apply(vec![Step::Change(NAS, new)]);
    stand.s.status_at = 0;
    stand.scheduler.publish(&mut stand.s, 0);
    assert!(!stand.s.unpublished && stand.s.status_at > 0);
    let told = stand.status.borrow().nases[0].clone();
    assert_eq!(
        (told.breaker, told.reason.as_str()),
        ("open", "no connection")
    );
    assert!(told.observe && !told.paused);
}
