//! Sick NASes in virtual time, to the millisecond: what half a network that is dead, slow or
//! resetting costs the other half, and what a day's outage, a changed password, a refused
//! parameter and a flapping link do to the events of one NAS.

use super::model::State;
use super::say;
use super::scene::{ACCOUNTS, DEADLINE, HOUR, MINUTE, Manner, SECOND, Scene};
use super::world::START;

// -- half of the network --------------------------------------------------------------------

const NASES: i64 = 500;
/// Events of each NAS: 8 a second for 3 s.
const EVENTS: u64 = 24;
const EVERY: u64 = 125;
/// What is planted in the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    WaitsForDevices,
    NoBreaker,
}
/// Ways of being sick while others are not.
const KINDS: [Manner; 4] = [
    Manner::BlackHole,
    Manner::TarPit,
    Manner::Resets,
    Manner::Drips,
];

/// The 99th percentile of the healthy half's time from acceptance to obedience, ms, and how many
/// were done within the time of the load. Odd NASes are sick.
fn half(sick: Option<Manner>, planted: Option<Flaw>) -> (u64, usize) {
    let mut scene = Scene::new(NASES, 4, 3);
    scene.waits_for_devices = planted == Some(Flaw::WaitsForDevices);
    scene.daemon.without_breaker = planted == Some(Flaw::NoBreaker);
    for nas in 1..=NASES {
        if let Some(manner) = sick
            && nas % 2 == 1
        {
            scene.manners.insert(nas, manner);
        }
        scene.load(nas, EVENTS, EVERY, 10);
    }
    scene.run(START + EVENTS * EVERY + SECOND);
    let mut times: Vec<u64> = scene
        .obeyed
        .iter()
        .filter(|one| one.nas % 2 == 0)
        .map(|one| one.at - scene.posted[&one.event].2)
        .collect();
    times.sort_unstable();
    scene.check_order();
    let p99 = times.get(times.len() * 99 / 100).copied();
    (p99.unwrap_or(u64::MAX), times.len())
}

#[test]
fn a_sick_half_of_the_network_costs_the_other_half_nothing() {
    let (p99, done) = half(None, None);
    assert_eq!(
        done,
        usize::try_from(NASES / 2 * 24).unwrap(),
        "all are done"
    );
    for sick in KINDS {
        let (with, some) = half(Some(sick), None);
        say(&format!(
            "{sick:?}: p99 {p99} → {with} ms, {done} → {some} done"
        ));
        assert!(with * 10 <= p99 * 11, "{sick:?}: p99 {p99} → {with} ms");
        assert!(some * 100 >= done * 95, "{sick:?}: {done} → {some} done");
    }
}

/// The negative controls, for each way of being sick: a loop that waits for its devices, and for
/// those that answer too fast for that, one that tries again at once.
#[test]
fn a_flawed_loop_is_found_out() {
    let (p99, done) = half(None, None);
    for sick in KINDS {
        let flaw = match sick {
            Manner::Resets => Flaw::NoBreaker,
            _ => Flaw::WaitsForDevices,
        };
        let (with, some) = half(Some(sick), Some(flaw));
        say(&format!(
            "{sick:?}, {flaw:?}: p99 {p99} → {with} ms, {done} → {some} done"
        ));
        assert!(
            with * 10 > p99 * 11 || some * 100 < done * 95,
            "{sick:?} with {flaw:?} costs nothing"
        );
    }
}

// -- one NAS --------------------------------------------------------------------------------

const SICK: i64 = 1;
const SCRIPT: i64 = 2;
const FORKS: usize = 8;
const QUEUED: u64 = 5_000;

/// Attempts without an answer, by a script or a device, before nobody is tried but by a probe.
const BELIEVED: usize = 5;

/// Events obeyed in each whole second after the first, but for the last second.
fn rate(scene: &Scene) -> Vec<usize> {
    let first = scene.obeyed.first().unwrap().at;
    let mut seconds = Vec::new();
    for one in &scene.obeyed {
        let at = usize::try_from((one.at - first) / SECOND).unwrap();
        seconds.resize(seconds.len().max(at + 1), 0);
        seconds[at] += 1;
    }
    seconds.pop();
    seconds
}

/// A day without a NAS, with 5,000 events that wait; it is back after 24 hours.
fn day_long(nas: i64, manner: Manner, forks: usize) {
    let mut healthy = Scene::new(2, forks, 7);
    healthy.load(nas, QUEUED, 0, 1_000);
    healthy.run(START + 10 * MINUTE);
    let full = rate(&healthy).into_iter().min().unwrap();

    let mut scene = Scene::new(2, forks, 7);
    scene.manners.insert(nas, manner);
    scene.load(nas, QUEUED, 0, 1_000);
    let (begin, back) = (START, START + 24 * HOUR);
    scene.run(back);
    assert_eq!((scene.obeyed.len(), scene.dead()), (0, 0), "{manner:?}");
    assert_eq!(scene.told(nas), ["opened"]);
    // At most one probe a minute once the steps have grown, and about one a minute then.
    let steady = scene.started(nas, begin + 5 * MINUTE, back);
    assert!(
        steady.windows(2).all(|w| w[1] - w[0] >= MINUTE),
        "{manner:?}"
    );
    assert!(steady.len() > 600, "{} probes", steady.len());
    // At most what was in flight burnt a try: nothing where the NAS is known to be away, and what
    // silence needs to be believed. The probe that is out has taken one that it gives back.
    let waits = scene.model.stack.values();
    let burnt: u32 = waits
        .filter(|row| row.state != State::Running)
        .map(|row| row.tries)
        .sum();
    let most = match manner {
        Manner::ScriptDefers | Manner::TarPit | Manner::Drips => BELIEVED.max(forks),
        _ => 0,
    };
    assert!(burnt <= u32::try_from(most).unwrap(), "{burnt} are burnt");

    scene.manners.insert(nas, Manner::Obeys);
    scene.run(back + 10 * MINUTE);
    let first = scene.obeyed.first().unwrap().at;
    // The longest step, behind a probe that was under way.
    let late = first - back;
    assert!(
        late <= 72 * SECOND + DEADLINE + 25,
        "noticed after {late} ms"
    );
    // One second after the first probe that succeeded it is as fast as a NAS that was never away.
    let after = rate(&scene);
    assert!(
        after.len() > 5 && after[1..].iter().all(|n| n * 100 >= full * 95),
        "{after:?}, a healthy one {full} a second"
    );
    say(&format!(
        "{manner:?}, {forks} forks: {} probes, {burnt} tries burnt, noticed after {late} ms, then \
         {} a second at least, a healthy one {full}",
        steady.len(),
        after[1..].iter().min().unwrap()
    ));
    let all = usize::try_from(QUEUED).unwrap();
    assert_eq!((scene.done(), scene.dead()), (all, 0));
    assert_eq!(scene.told(nas), ["opened", "closed"]);
    scene.check_order();
}

#[test]
fn a_day_without_a_nas_burns_no_tries_and_ends_at_full_rate() {
    day_long(SICK, Manner::BlackHole, FORKS);
    day_long(SICK, Manner::Resets, FORKS);
    day_long(SICK, Manner::TarPit, FORKS);
    day_long(SICK, Manner::Drips, FORKS);
    for forks in [1, FORKS] {
        day_long(SCRIPT, Manner::ScriptDefers, forks);
    }
}

/// The negative control: without a breaker an outage of two hours kills.
#[test]
fn an_outage_without_a_breaker_is_found_out() {
    let mut scene = Scene::new(2, FORKS, 7);
    scene.daemon.without_breaker = true;
    scene.manners.insert(SCRIPT, Manner::ScriptDefers);
    scene.load(SCRIPT, 200, 0, 100);
    scene.run(START + 2 * HOUR);
    assert!(scene.dead() > 0, "nothing is dead");
    assert!(scene.starts.len() > 1_000, "it is hardly tried");
}

/// A password that was changed on the NAS: parked with one alarm, probed every five minutes, and
/// at once when the settings say the new one.
#[test]
fn a_changed_password_kills_nothing() {
    let mut scene = Scene::new(1, FORKS, 9);
    scene.load(SICK, QUEUED, 10, 1_000);
    scene.run(START + 10 * SECOND);
    let before = scene.obeyed.len();
    assert!(before > 900, "{before}");
    scene.manners.insert(SICK, Manner::WrongPassword);
    let broke = scene.now;
    scene.run(broke + 2 * HOUR);
    assert_eq!((scene.told(SICK), scene.dead()), (vec!["parked"], 0));
    let probes = scene.started(SICK, broke + SECOND, scene.now);
    assert!(probes.windows(2).all(|w| w[1] - w[0] >= 4 * MINUTE));
    assert!((20..=30).contains(&probes.len()), "{} probes", probes.len());
    let mended = scene.mend(SICK);
    scene.run(mended + 5 * MINUTE + SECOND);
    let all = usize::try_from(QUEUED).unwrap();
    assert_eq!((scene.done(), scene.dead()), (all, 0));
    let next = scene.obeyed[before..].iter().find(|o| o.at > mended);
    assert!(next.unwrap().at - mended <= SECOND, "not at once");
    assert_eq!(scene.told(SICK), ["parked", "closed"]);
    scene.check_order();
}

/// The negative control: without a breaker the NAS gets thousands of wrong logins.
#[test]
fn a_changed_password_without_a_breaker_is_found_out() {
    let mut scene = Scene::new(1, FORKS, 9);
    scene.daemon.without_breaker = true;
    scene.manners.insert(SICK, Manner::WrongPassword);
    scene.load(SICK, 100, 10, 100);
    scene.run(START + 20 * SECOND);
    assert!(scene.starts.len() > 1_000, "{} logins", scene.starts.len());
}

/// A firmware that refuses a parameter, with this many events and forks and ms between events; it
/// is mended after two hours.
fn refused_parameter(events: u64, forks: usize, every: u64, answers_are_final: bool) -> Scene {
    let mut scene = Scene::new(1, forks, 11);
    scene.daemon.answers_are_final = answers_are_final;
    scene.load(SICK, events, every, 1_000);
    scene.run(START + 20);
    let broke = scene.now;
    scene.manners.insert(SICK, Manner::WrongParameter);
    scene.run(broke + 2 * HOUR);
    assert_eq!(scene.told(SICK), ["parked"]);
    let refused = scene.started(SICK, broke, scene.now).len();
    let mended = scene.mend(SICK);
    scene.run(mended + HOUR);
    let all = usize::try_from(events).unwrap();
    assert_eq!(scene.done() + scene.dead(), all);
    assert_eq!(scene.told(SICK), ["parked", "closed"]);
    say(&format!(
        "{events} events, {forks} forks, one in {every} ms: {refused} refusals, {} dead",
        scene.dead()
    ));
    scene.check_order();
    scene
}

/// Everybody gets the same answer: the NAS is parked, nobody is dead, and after the mend all is
/// done; be it many at once or one a minute.
#[test]
fn a_refused_parameter_kills_nothing() {
    for (events, forks, every) in [
        (QUEUED, FORKS, 0),
        (1_000, 1, 0),
        (1_000, 100, 0),
        (1_000, FORKS, SECOND),
        (1_000, 1, 3 * SECOND),
    ] {
        let scene = refused_parameter(events, forks, every, false);
        assert_eq!(scene.dead(), 0, "{forks} forks, one in {every} ms");
    }
    // The negative control: answers that nobody doubts kill until the breaker parks.
    assert!(refused_parameter(1_000, FORKS, 0, true).dead() >= 20);
}

/// One account's event is refused, the others are obeyed: it is dead soon, and nothing is parked.
#[test]
fn a_refusal_of_one_account_is_final_after_seconds() {
    let mut scene = Scene::new(1, FORKS, 12);
    scene.load(SICK, 20, SECOND, 20);
    scene.run(START + 30 * SECOND);
    scene.manners.insert(SICK, Manner::WrongParameter);
    scene.post(SICK * ACCOUNTS + 1);
    scene.run(scene.now + SECOND);
    assert_eq!((scene.done(), scene.dead()), (20, 0), "it is kept open");
    scene.run(scene.now + 6 * SECOND);
    assert_eq!((scene.done(), scene.dead()), (20, 1), "it is final");
    assert_eq!(scene.told(SICK), [""; 0]);
}

/// A link that is gone for a minute thirty times an hour: one alarm, one all-clear.
fn flapping(without_memory: bool) -> Scene {
    let mut scene = Scene::new(1, FORKS, 13);
    scene.daemon.without_memory = without_memory;
    scene.load(SICK, 3_600, SECOND, 100);
    for minute in 0..60 {
        let manner = if minute % 2 == 0 {
            Manner::Resets
        } else {
            Manner::Obeys
        };
        scene.manners.insert(SICK, manner);
        scene.run(START + (minute + 1) * MINUTE);
    }
    scene
}

#[test]
fn a_flapping_link_alarms_once() {
    let mut scene = flapping(false);
    assert_eq!(scene.told(SICK), ["opened"]);
    scene.run(START + 80 * MINUTE);
    assert_eq!(scene.told(SICK), ["opened", "closed"]);
    assert_eq!((scene.done(), scene.dead()), (3_600, 0));
    scene.check_order();
    // The negative control: an outage that ends with the first success alarms each time.
    let alarms = flapping(true).told(SICK).len();
    assert!(alarms > 20, "{alarms} alarms");
}
