//! Tests of a served NAS: its places, its pauses, what a change of its settings may mend.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::*;
use crate::attempt::{Job, Report, Transcript};
use crate::event::Cmd;
use crate::logs::Logs;
use crate::nas::{Forks, NasId};
use crate::scheme::{ExitPolicy, Identity};

/// A scheme with room for so many attempts.
struct Room(usize, Identity, ExitPolicy);

#[async_trait]
impl Execute for Room {
    async fn run(&self, _: &Job, _: &mut Transcript) -> Report {
        unreachable!("nothing is run")
    }
    fn policy(&self) -> &ExitPolicy {
        &self.2
    }
    fn identity(&self) -> &Identity {
        &self.1
    }
    fn has(&self, _: &Cmd) -> bool {
        true
    }
    fn room(&self, _: &Nas) -> usize {
        self.0
    }
    fn own_cmds(&self) -> BTreeSet<Cmd> {
        BTreeSet::new()
    }
}

fn served(forks: i64, room: usize) -> Served {
    Served {
        nas: Arc::new(Nas {
            forks: Forks::clamped(forks).0,
            ..Nas::new(NasId(1), "Test", "10.90.185.2")
        }),
        secret: Arc::default(),
        execute: Arc::new(Room(room, Identity::default(), ExitPolicy::default())),
        scheme_hash: "a".to_owned(),
        log_name: "Test".to_owned(),
        paused_from_ms: None,
        paused_until_ms: None,
    }
}

fn pool(served: Served) -> Pool {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::open(dir.path(), "bras", 1).unwrap();
    Pool::new(served, logs.nas_file("Test"))
}

#[test]
fn forks_and_room_bound_what_runs_and_what_is_claimed() {
    for (forks, room, most) in [(5, usize::MAX, 5), (5, 3, 3), (5, 0, 1)] {
        let mut pool = pool(served(forks, room));
        assert_eq!((pool.free(), pool.places(0, 5.0)), (most, most));
        pool.taken = 1;
        pool.running = most - 1;
        assert!(pool.has_fork());
        assert_eq!((pool.free(), pool.places(0, 5.0)), (most - 1, most - 1));
        pool.running = most;
        assert!(!pool.has_fork());
        pool.taken = most + 1;
        assert_eq!((pool.free(), pool.places(0, 5.0)), (0, 0));
        (pool.taken, pool.running, pool.stopping) = (0, 0, true);
        assert!(!pool.has_fork(), "it is not wanted any more");
        assert_eq!((pool.free(), pool.places(0, 5.0)), (0, 0));
    }
}

#[test]
fn short_attempts_are_claimed_ahead() {
    let mut pool = pool(served(5, usize::MAX));
    pool.took(1_000, 0);
    assert_eq!(pool.places(1_000, 5.0), 25, "five, and four more for each");
    pool.taken = 7;
    assert_eq!(pool.places(1_000, 5.0), 18);
}

#[test]
fn a_pause_has_its_begin_and_its_end() {
    let mut pool = pool(served(1, 1));
    assert!(!pool.is_paused(0));
    pool.served.paused_until_ms = Some(200);
    assert!(pool.is_paused(0) && pool.is_paused(199) && !pool.is_paused(200));
    pool.served.paused_from_ms = Some(100);
    assert!(!pool.is_paused(99) && pool.is_paused(100) && !pool.is_paused(200));
}

#[test]
fn the_slowest_twentieth_of_the_last_attempts() {
    let mut pool = pool(served(1, 1));
    assert_eq!(pool.p95_ms(), 0, "none yet");
    pool.took(0, 7);
    assert_eq!(pool.p95_ms(), 7);
    for ms in 1..=200 {
        pool.took(0, ms);
    }
    assert_eq!(pool.p95_ms(), 190);
    for _ in 0..200 {
        pool.took(0, 3);
    }
    assert_eq!(pool.p95_ms(), 3, "the older ones are forgotten");
}

#[test]
fn every_change_is_seen_and_only_some_may_mend() {
    let old = served(5, 1);
    let nas = |change: fn(&mut Nas)| {
        let mut new = old.clone();
        change(Arc::make_mut(&mut new.nas));
        new
    };
    let secret = NasSecret {
        password: "other".to_owned(),
        ..NasSecret::default()
    };
    let mending = [
        nas(|nas| nas.ip = "10.90.185.3".to_owned()),
        nas(|nas| nas.api_port = Some(9)),
        Served {
            secret: Arc::new(secret),
            ..old.clone()
        },
        Served {
            scheme_hash: "b".to_owned(),
            ..old.clone()
        },
    ];
    let others = [
        nas(|nas| nas.forks = Forks::clamped(7).0),
        nas(|nas| nas.forks_warning = Some("forks=0".to_owned())),
        Served {
            log_name: "Other".to_owned(),
            ..old.clone()
        },
        Served {
            paused_from_ms: Some(1),
            ..old.clone()
        },
        Served {
            paused_until_ms: Some(1),
            ..old.clone()
        },
    ];
    assert!(old == old.clone() && !old.may_mend(&old));
    for new in &mending {
        assert!(old != *new && new.may_mend(&old), "{:?}", new.nas);
    }
    for new in &others {
        assert!(old != *new && !new.may_mend(&old), "{:?}", new.nas);
    }
    let warned = &others[1];
    assert!(!old.may_mend(warned), "nor does the end of a warning");
}
