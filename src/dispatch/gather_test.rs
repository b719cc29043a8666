//! When a turn is put off, and for how long.

use super::*;
use crate::dispatch::breaker::Start;
use crate::dispatch::stand_test::{Change, FRESH, NAS, Stand, waiting};
use crate::event::Class;

const ACCESS: Class = Class::Access;

/// Two forks at work, eight events ahead for them, ten more that wait.
async fn busy() -> Stand {
    let mut stand = Stand::new(2).await;
    for id in 1..=20 {
        stand.add(id, id, ACCESS);
    }
    stand.claim(FRESH);
    assert_eq!(stand.counts(), (10, 2, 8));
    stand
}

/// The last attempt ended in this moment, however slow the machine is.
fn awaited(stand: &mut Stand) -> bool {
    let now = clock::tick_ms();
    stand.pool().took(now, 0);
    stand.s.is_awaited(now, clock::wall_ms())
}

/// So many fewer are ahead.
fn used_up(stand: &mut Stand, n: usize) {
    for _ in 0..n {
        stand.pool().ahead.pop().unwrap();
        stand.pool().taken -= 1;
    }
}

#[tokio::test]
async fn who_waits_for_a_turn_gets_it() {
    let reasons: [(&str, Change); 8] = [
        ("an answer is to be written", |stand| {
            stand.s.answers = true;
        }),
        ("a person asks", |stand| {
            stand.add(90, 90, Class::Interactive);
        }),
        ("a person asks of a NAS that is paused", |stand| {
            stand.pause();
            stand.add(90, 90, Class::Interactive);
        }),
        ("a fork is free", |stand| stand.pool().taken = 1),
        ("little is ahead", |stand| {
            // Five last for 0.6 ms, and the next turn takes one.
            used_up(stand, 3);
        }),
        ("nothing is ahead", |stand| used_up(stand, 8)),
        ("a suspect runs alone", |stand| {
            stand.s.alone = Some(crate::event::EventId(1));
        }),
        ("a probe is due", |stand| {
            stand.breaks();
            let reached = clock::tick_ms().saturating_sub(1);
            stand.pool().breaker().reached(reached);
            assert_eq!(stand.pool().may_start(clock::tick_ms()), Start::Probe);
        }),
    ];
    for (what, change) in reasons {
        let mut stand = busy().await;
        assert!(!awaited(&mut stand), "{what}: before");
        change(&mut stand);
        assert!(awaited(&mut stand), "{what}");
    }
}

#[tokio::test]
async fn where_nothing_may_start_nobody_waits() {
    let reasons: [(&str, Change); 3] = [
        ("it is paused", Stand::pause),
        ("it does not obey", |stand| {
            stand.breaks();
        }),
        ("nothing waits", |stand| {
            stand.s.lanes.drop_nas(NAS);
        }),
    ];
    for (what, change) in reasons {
        let mut stand = busy().await;
        used_up(&mut stand, 7);
        stand.pool().running = 0;
        assert!(awaited(&mut stand), "{what}: before");
        change(&mut stand);
        assert!(!awaited(&mut stand), "{what}");
    }
}

#[tokio::test]
async fn a_turn_is_put_off_for_a_while_and_hears_meanwhile() {
    let Stand {
        scheduler,
        mut s,
        mut inbox,
        ..
    } = busy().await;
    let go_on = CancellationToken::new();
    let began = clock::tick_ms();
    scheduler.gather(&mut s, &mut inbox, &go_on).await;
    assert!(clock::tick_ms() >= began + GATHER_MS, "it was put off");

    let asked = Message::Waiting(vec![waiting(90, 90, Class::Interactive)]);
    scheduler.sender.send(asked).await.unwrap();
    scheduler.gather(&mut s, &mut inbox, &go_on).await;
    assert!(s.lanes.has_interactive(NAS), "it was heard");

    // Who waits is not put off, and nothing more is heard before.
    let more = scheduler.sender.send(Message::Resumed(NAS));
    more.await.unwrap();
    scheduler.gather(&mut s, &mut inbox, &go_on).await;
    assert_eq!(inbox.len(), 1, "a person is not put off");

    let stop = CancellationToken::new();
    stop.cancel();
    s.lanes.drop_nas(NAS);
    scheduler.gather(&mut s, &mut inbox, &stop).await;
    assert_eq!(inbox.len(), 1, "a stop is not put off");
}
