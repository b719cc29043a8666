//! A poison event kills the daemon whenever it runs. Whoever works beside it goes on, in each life
//! of the daemon; who was hit with it becomes a suspect with it, runs alone like it, and only the
//! poison is dead. Scripts that die badly by themselves hurt nobody at all.

use std::collections::BTreeMap;

use nas_event_daemon::clock;

use crate::lab::daemon::{Daemon, Lab};
use crate::lab::db::Kind;
use crate::lab::journal::{self, Entry, gated, let_through, running, starts};
use crate::lab::on_each_store;

on_each_store!(
    others_go_on_beside_a_poison_event,
    scripts_that_die_badly_hurt_nobody_beside_them,
);

/// Deaths that make a suspect.
const SUSPECT: u32 = 3;
/// Longest time from a start of the daemon to the end of an event that waited meanwhile, ms.
const DELAY_MS: u64 = 5_000;
const BYSTANDER: i64 = 20;
const POISON: i64 = 21;

fn entries(lab: &Lab) -> Vec<Entry> {
    journal::read_script(&lab.path("journal"))
}

async fn until_running(lab: &Lab, what: &[i64]) {
    lab.until(&format!("{what:?} run"), async || {
        let mut now = running(&entries(lab));
        now.sort_unstable();
        (now == what).then_some(())
    })
    .await;
}

/// Lets the poison do it in its current try, and notes the death.
async fn dies(lab: &Lab, mut daemon: Daemon, try_count: u32) {
    std::fs::write(lab.path(&format!("kill-{try_count}")), "").unwrap();
    daemon.end().await;
    journal::note_kill(&lab.path("journal"), &lab.running().await);
}

async fn done(lab: &Lab, id: i64) {
    assert_eq!(
        lab.ended(id).await,
        ("done".to_owned(), "done".to_owned()),
        "event {id}"
    );
}

async fn others_go_on_beside_a_poison_event(kind: Kind) {
    let lab = Lab::new(kind, "script_timeout = \"1h\"").await;
    let gate = lab.path("gate");
    // The poison waits for its moment, the bystander for the test, the others for nobody.
    let kill = format!(
        "until [[ -e {root}/kill-$try_count ]]; do sleep 0.02; done
         kill -9 $(< {root}/run/nas_event_daemon.pid)",
        root = lab.root().display(),
    );
    let body = format!(
        "case $user_id in {POISON}) {kill} ;; {BYSTANDER}) {} ;; esac",
        gated(&gate)
    );
    lab.session("Mine", &journal::session(&lab.path("journal"), &body));
    lab.nas(1, "Mine", 4, &[]).await;
    lab.nas(2, "Mine", 4, &[]).await;
    lab.accounts(1, 10..12).await;
    lab.accounts(2, [12, BYSTANDER, POISON]).await;
    let mut daemon = lab.start().await;
    let bystander = lab.event(BYSTANDER, "user_redirect").await;
    until_running(&lab, &[bystander]).await;
    let poison = lab.event(POISON, "user_redirect").await;
    let mut others = Vec::new();
    for life in 1..=SUSPECT {
        until_running(&lab, &[bystander, poison]).await;
        // On the same NAS and on another one.
        for user in [10, 11, 12] {
            others.push(lab.event(user, "user_rate_set").await);
        }
        for id in &others[others.len() - 3..] {
            done(&lab, *id).await;
        }
        until_running(&lab, &[bystander, poison]).await;
        dies(&lab, daemon, life).await;
        daemon = lab.start().await;
    }

    // Both were hit as often. First one has its turn alone, then the other.
    until_running(&lab, &[bystander]).await;
    let waits = lab.event(10, "user_rate_set").await;
    lab.until("it is known to the scheduler", async || {
        let known = "select count(*) from events_stack where user_id = 10";
        (lab.number(known).await == 1).then_some(())
    })
    .await;
    assert_eq!(running(&entries(&lab)), [bystander], "alone");
    let_through(&gate, bystander);
    until_running(&lab, &[poison]).await;
    dies(&lab, daemon, SUSPECT + 1).await;
    let again = clock::tick_ms();
    daemon = lab.start().await;
    done(&lab, waits).await;
    let delay = clock::tick_ms() - again;
    assert!(delay <= DELAY_MS, "{delay} ms behind the last death");

    let (place, reason) = lab.ended(poison).await;
    assert_eq!(place, "dead");
    assert!(
        reason.starts_with("the daemon died 4 times while it ran"),
        "{reason}"
    );
    done(&lab, bystander).await;
    // Whom a death hit ran again with a warning; nobody else ran twice.
    let mut tries: BTreeMap<i64, Vec<bool>> = BTreeMap::new();
    for (event, _, flagged) in starts(&entries(&lab)) {
        tries.entry(event).or_default().push(flagged);
    }
    let hit = [false, true, true, true];
    assert_eq!(tries[&poison], hit);
    assert_eq!(tries[&bystander], hit);
    for id in others {
        assert_eq!(tries[&id], [false], "event {id}");
    }
    // Nothing had started beside a suspect.
    let entries = entries(&lab);
    for suspect in [bystander, poison] {
        let last = |entry: &Entry| matches!(entry, Entry::Start { event, try_count: 4, .. } if *event == suspect);
        let from = entries.iter().position(last).unwrap();
        assert_eq!(running(&entries[..=from]), [suspect]);
        let next = &entries[from + 1];
        assert!(!matches!(next, Entry::Start { .. }), "{next:?}");
    }
    daemon.stop().await;
}

async fn scripts_that_die_badly_hurt_nobody_beside_them(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"50ms\"\nmax_tries = 2").await;
    // How, and what is said of it.
    let bad = [
        ("kill -SEGV $BASHPID", "the script ended with code 139"),
        ("kill -9 0", "the script ended with code 137"),
        (
            "kill -9 $PPID",
            "2 tries, the last: unknown (code 143): the process that watched the script ended",
        ),
        // It may not have so much memory.
        (
            "ulimit -v 20000; x=$(printf '%0100000000d' 1)",
            "the script ended with code 2",
        ),
    ];
    let cases = (0..)
        .zip(bad)
        .map(|(n, (line, _))| format!("{}) {line} ;; ", POISON + n));
    let body = format!("case $user_id in {} esac", cases.collect::<String>());
    lab.session("Mine", &journal::session(&lab.path("journal"), &body));
    lab.nas(1, "Mine", 8, &[]).await;
    let all = bad.len() as i64;
    lab.accounts(1, 10..14).await;
    lab.accounts(1, POISON..POISON + all).await;
    let mut daemon = lab.start().await;
    let mut others = Vec::new();
    let mut deadly = Vec::new();
    for n in 0..all {
        others.push(lab.event(10 + n % 4, "user_rate_set").await);
        deadly.push(lab.event(POISON + n, "user_redirect").await);
        others.push(lab.event(10 + n % 4, "user_redirect").await);
    }
    for id in &others {
        done(&lab, *id).await;
    }
    for (id, (how, wanted)) in deadly.iter().zip(bad) {
        let (place, reason) = lab.ended(*id).await;
        assert_eq!(place, "dead", "{how}");
        assert!(reason.starts_with(wanted), "{how}: {reason}");
    }
    assert_eq!(daemon.child.try_wait().unwrap(), None, "it died");
    let touched = "select count(*) from events_done where attempts <> 1 or possible_duplicate";
    assert_eq!(lab.number(touched).await, 0);
    daemon.stop().await;
}
