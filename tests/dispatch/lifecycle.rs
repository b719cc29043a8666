//! The end of a daemon, and two daemons on one database.

use std::sync::Arc;

use nas_event_daemon::clock;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::daemon::{Daemon, Lab};
use crate::lab::db::{Db, Kind};
use crate::lab::journal::{self, Entry, gated, let_through, running, starts};
use crate::lab::lossy::Lossy;
use crate::lab::on_each_store;

on_each_store!(
    a_second_daemon_is_refused_and_told_who_is_there,
    of_daemons_that_start_together_after_a_crash_one_works,
    sigterm_lets_running_events_finish,
    sigterm_stops_claiming_at_once,
    a_second_signal_ends_what_runs,
    the_drain_is_bounded,
    a_frozen_daemon_is_taken_over_and_fenced,
    an_event_that_kills_the_daemon_runs_alone_and_is_buried,
    what_is_older_than_it_is_kept_vanishes_after_the_start,
);

/// Exit code of "another daemon owns the database".
const REFUSED: i32 = 6;

/// One NAS with a gated script and the accounts 10 to 19.
async fn gated_lab(kind: Kind, dispatch: &str) -> Lab {
    let lab = Lab::new(kind, dispatch).await;
    scheme(&lab, &lab);
    lab.nas(1, "Mine", 2, &[]).await;
    lab.accounts(1, 10..20).await;
    lab
}

/// The gated scheme of `owner` in `place`; it notes its process ids beside the journal.
fn scheme(place: &Lab, owner: &Lab) {
    let body = format!(
        "echo $BASHPID >> {}\n{}",
        owner.path("pids").display(),
        gated(&owner.path("gate"))
    );
    place.session("Mine", &journal::session(&owner.path("journal"), &body));
}

fn entries(lab: &Lab) -> Vec<Entry> {
    journal::read_script(&lab.path("journal"))
}

/// Waits until this one runs and has noted its process id, which it does after its start.
async fn until_running(lab: &Lab, id: i64) {
    lab.until("it runs", async || {
        let noted = std::fs::read_to_string(lab.path("pids")).is_ok_and(|p| p.ends_with('\n'));
        (noted && running(&entries(lab)) == [id]).then_some(())
    })
    .await;
}

/// Waits until no script of this lab lives.
async fn scripts_gone(lab: &Lab) {
    let pids = std::fs::read_to_string(lab.path("pids")).unwrap();
    lab.until("the script is gone", async || {
        let alive = |pid: &str| std::path::Path::new("/proc").join(pid).exists();
        (!pids.lines().any(alive)).then_some(())
    })
    .await;
}

async fn a_second_daemon_is_refused_and_told_who_is_there(kind: Kind) {
    let lab = gated_lab(kind, "").await;
    let_through(&lab.path("gate"), "all");
    let first = lab.start().await;
    let other = Lab::on(Arc::clone(&lab.db), "");
    scheme(&other, &lab);
    let mut second = other.spawn();
    assert_eq!(second.end().await.code(), Some(REFUSED));
    let said = other.stderr();
    assert!(said.contains(&format!("pid={}", first.pid)), "{said}");
    assert!(said.contains("hint: "), "{said}");
    assert!(!other.is_up().await, "nothing half-started");
    let id = lab.event(10, "user_redirect").await;
    assert_eq!(lab.ended(id).await.1, "done", "the first goes on");
    // Once the first has gone in order, the place is free at once.
    first.stop().await;
    let second = other.start().await;
    let id = other.event(11, "user_redirect").await;
    assert_eq!(other.ended(id).await.1, "done");
    second.stop().await;
}

async fn of_daemons_that_start_together_after_a_crash_one_works(kind: Kind) {
    let lab = gated_lab(kind, "").await;
    let_through(&lab.path("gate"), "all");
    // One pair shares the port too, the other only the database.
    for same_port in [true, false] {
        lab.start().await.kill_9().await;
        let other = Lab::on(Arc::clone(&lab.db), "");
        let place = if same_port { &lab } else { &other };
        scheme(place, &lab);
        let mut pair = [lab.spawn(), place.spawn()];
        let (loser, code) = lab
            .until("one of them ends", async || {
                let mut ended = pair.iter_mut().map(|d| d.child.try_wait().unwrap());
                let at = ended.position(|status| status.is_some())?;
                let status = pair[at].child.try_wait().unwrap()?;
                Some((at, status.code()))
            })
            .await;
        assert_eq!(code, Some(REFUSED), "{}{}", lab.stderr(), other.stderr());
        let winner = &pair[1 - loser];
        let place = if loser == 0 { place } else { &lab };
        place
            .until("the other works", async || {
                place.is_up().await.then_some(())
            })
            .await;
        let id = place.event(10, "user_redirect").await;
        assert_eq!(place.ended(id).await.1, "done");
        winner.signal(Signal::SIGTERM);
        assert!(pair[1 - loser].end().await.success());
    }
}

/// Starts an event that runs and one of its account that waits.
async fn one_runs_one_waits(lab: &Lab) -> (i64, i64) {
    let runs = lab.event(10, "user_redirect").await;
    let waits = lab.event(10, "user_redirect_cancel").await;
    until_running(lab, runs).await;
    (runs, waits)
}

async fn sigterm_lets_running_events_finish(kind: Kind) {
    let lab = gated_lab(kind, "").await;
    let mut daemon = lab.start().await;
    let (runs, waits) = one_runs_one_waits(&lab).await;
    daemon.signal(Signal::SIGTERM);
    lab.said("stopping: ").await;
    lab.until("the doors are closed", async || {
        (!lab.is_up().await).then_some(())
    })
    .await;
    // A row inserted now is nobody's until the next daemon.
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_redirect', 11)")
        .await;
    assert!(daemon.child.try_wait().unwrap().is_none(), "it drains");
    let_through(&lab.path("gate"), "all");
    let status = daemon.end().await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(starts(&entries(&lab)), [(runs, 1, false)]);
    let done = lab
        .rows("select id, result, attempts from events_done")
        .await;
    assert_eq!(done, [[&runs.to_string(), "done", "1"]]);
    let left = lab
        .rows("select id, state, try_count from events_stack")
        .await;
    assert_eq!(left, [[&waits.to_string(), "ready", "0"]]);
    assert!(!lab.path("run/ctl.sock").exists());
    assert!(!lab.path("run/nas_event_daemon.pid").exists());
    let daemon = lab.start().await;
    lab.drained().await;
    assert_eq!(journal::repeated(&entries(&lab)), 0);
    assert_eq!(lab.number("select count(*) from events_done").await, 3);
    daemon.stop().await;
}

/// After the end: the cut event is back, flagged, its script is gone, and it is run again.
async fn comes_back_flagged(lab: &Lab, mut daemon: Daemon, runs: i64, waits: i64) {
    daemon.end().await;
    scripts_gone(lab).await;
    assert_eq!(running(&entries(lab)), [runs], "it was cut, it did not end");
    let left = lab
        .rows("select id, state, possible_duplicate from events_stack order by id")
        .await;
    assert_eq!(
        left,
        [
            [&runs.to_string(), "ready", "1"],
            [&waits.to_string(), "ready", "0"]
        ]
    );
    let_through(&lab.path("gate"), "all");
    let daemon = lab.start().await;
    lab.drained().await;
    let record = format!(
        "event={runs} user=10 cmd=user_redirect try=1 end result=ready code=0 ms=0 error=\"cut short by a shutdown of the daemon\""
    );
    for log in [lab.nas_log(1), lab.account_log(10)] {
        let of_try = format!("event={runs} user=10 cmd=user_redirect try=1 ");
        let all: Vec<&String> = log.iter().filter(|line| line.contains(&of_try)).collect();
        assert!(all[0].ends_with(" start"), "{log:?}");
        assert!(all.iter().any(|line| line.ends_with(&record)), "{log:?}");
    }
    let again = starts(&entries(lab));
    assert_eq!((again[1].0, again[1].2), (runs, true), "{again:?}");
    assert_eq!(again[2], (waits, 1, false));
    assert_eq!(again.len(), 3);
    daemon.stop().await;
}

/// Promised are 100 ms (12 ms were measured); the bar is what a busy machine can keep. Claims carry
/// their time, so that slow starts of programs do not count.
const CLAIMED_AFTER_MS: i64 = 1_000;

async fn sigterm_stops_claiming_at_once(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.session("Mine", "user_add() { sleep 0.05; }");
    lab.nas(1, "Mine", 10, &[]).await;
    lab.accounts(1, 1..2_000).await;
    let mut daemon = lab.start().await;
    lab.sql("insert into events_stack_compact (cmd, user_id) select 'user_add', id from users")
        .await;
    lab.until("it is busy", async || {
        (lab.number("select count(*) from events_done").await > 50).then_some(())
    })
    .await;
    let stopped = clock::wall_ms();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.end().await.success());
    let last = match kind {
        Kind::Sqlite => "cast(round(unixepoch(max(started_at), 'subsec') * 1000) as integer)",
        Kind::Postgres => "cast(extract(epoch from max(started_at)) * 1000 as bigint)",
    };
    let last = lab.number(&format!("select {last} from events_done")).await;
    assert!(
        last - stopped < CLAIMED_AFTER_MS,
        "claimed {} ms after the signal",
        last - stopped
    );
    let left = lab
        .rows("select state, count(*) from events_stack group by 1")
        .await;
    let compact = lab
        .number("select count(*) from events_stack_compact")
        .await;
    assert!(left.iter().all(|row| row[0] == "ready"), "{left:?}");
    assert!(!left.is_empty() || compact > 0, "there was more to do");
}

async fn a_second_signal_ends_what_runs(kind: Kind) {
    let lab = gated_lab(kind, "drain = \"1h\"").await;
    let daemon = lab.start().await;
    let (runs, waits) = one_runs_one_waits(&lab).await;
    daemon.signal(Signal::SIGTERM);
    lab.said("stopping: ").await;
    daemon.signal(Signal::SIGINT);
    comes_back_flagged(&lab, daemon, runs, waits).await;
    lab.said("second signal").await;
}

async fn the_drain_is_bounded(kind: Kind) {
    let lab = gated_lab(kind, "drain = \"100ms\"").await;
    let daemon = lab.start().await;
    let (runs, waits) = one_runs_one_waits(&lab).await;
    daemon.signal(Signal::SIGTERM);
    comes_back_flagged(&lab, daemon, runs, waits).await;
}

/// Stops every thread of an idle daemon, and none within a transaction: what that had locked
/// would stay locked for the heir, too.
async fn freeze(lab: &Lab, daemon: &Daemon) {
    lab.scheduled(1, 1).await;
    let stopped = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid)).unwrap();
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    };
    lab.until("it is stopped outside of transactions", async || {
        daemon.signal(Signal::SIGSTOP);
        lab.until("all threads are stopped", async || stopped().then_some(()))
            .await;
        let free = lab.db.is_free().await;
        if !free {
            daemon.signal(Signal::SIGCONT);
        }
        free.then_some(())
    })
    .await;
}

/// Longest wait for one answer of a starter, and for a starter; then the next one is tried.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(5);
const STARTER_MS: u64 = 20_000;

/// A daemon that follows in `place` as soon as it may, and how many were refused before it.
async fn heir(place: &Lab) -> (Daemon, usize) {
    let mut refused = 0;
    let heir = place
        .until("the silent one is taken over", async || {
            let mut heir = place.spawn();
            let began = clock::tick_ms();
            loop {
                if let Some(status) = heir.child.try_wait().unwrap() {
                    // A database that has no time for it on a busy machine says nothing of the owner.
                    let said = |text: &str| place.stderr().contains(text);
                    let unheard = match status.code() {
                        Some(1) => said("NED-0206"),
                        Some(4) => said("no answer from the database within"),
                        _ => false,
                    };
                    assert!(
                        unheard || status.code() == Some(REFUSED),
                        "{status}: {}",
                        place.stderr()
                    );
                    refused += usize::from(!unheard);
                    return None;
                }
                // An answer that does not come is none: it is asked again, or the next starter is.
                let asked = tokio::time::timeout(ANSWER, place.is_up()).await;
                if asked.is_ok_and(|up| up) {
                    return Some(heir);
                }
                if clock::tick_ms().saturating_sub(began) > STARTER_MS {
                    return None;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    (heir, refused)
}

/// Silence after which an owner that cannot be seen to be dead is followed, ms.
const SILENCE_MS: i64 = 10_000;

/// Notes, in the database itself, for how long an owner had been silent when it was followed.
async fn note_silence(lab: &Lab) {
    lab.sql("create table followed (silent_ms integer)").await;
    lab.sql(match lab.db.kind {
        Kind::Sqlite => {
            "create trigger note_silence before update of epoch on owner begin
               insert into followed
               values (round((julianday(new.seen_at) - julianday(old.seen_at)) * 86400000));
             end"
        }
        Kind::Postgres => {
            "create function note_silence() returns trigger language plpgsql as $$ begin
               insert into followed
               values (extract(epoch from new.seen_at - old.seen_at) * 1000);
               return new;
             end $$;
             create trigger note_silence before update of epoch on owner
               for each row execute function note_silence()"
        }
    })
    .await;
}

async fn a_frozen_daemon_is_taken_over_and_fenced(kind: Kind) {
    let lab = gated_lab(kind, "").await;
    let mut frozen = lab.start().await;
    note_silence(&lab).await;
    let (runs, waits) = one_runs_one_waits(&lab).await;
    freeze(&lab, &frozen).await;
    // It cannot be seen to be dead; only its silence tells.
    let other = Lab::on(Arc::clone(&lab.db), "");
    scheme(&other, &lab);
    // A start may take longer than the silence lasts on a busy machine. The last sign of life is put
    // on by an hour, so that this one comes in time.
    let (on, back) = match kind {
        Kind::Sqlite => (
            "strftime('%Y-%m-%d %H:%M:%f', seen_at, '+1 hour')",
            "strftime('%Y-%m-%d %H:%M:%f', seen_at, '-1 hour')",
        ),
        Kind::Postgres => ("seen_at + interval '1 hour'", "seen_at - interval '1 hour'"),
    };
    lab.sql(&format!("update owner set seen_at = {on}")).await;
    let mut early = other.spawn();
    assert_eq!(
        early.end().await.code(),
        Some(REFUSED),
        "it was alive at first"
    );
    lab.sql(&format!("update owner set seen_at = {back}")).await;
    let (heir, _) = heir(&other).await;
    let silent = lab.number("select min(silent_ms) from followed").await;
    assert!(silent >= SILENCE_MS, "followed after {silent} ms");
    lab.until("the heir runs it again", async || {
        (starts(&entries(&lab)).len() == 2).then_some(())
    })
    .await;
    let again = starts(&entries(&lab))[1];
    assert_eq!((again.0, again.2), (runs, true), "flagged");
    frozen.signal(Signal::SIGCONT);
    let_through(&lab.path("gate"), "all");
    assert_eq!(frozen.end().await.code(), Some(REFUSED));
    lab.said("another daemon owns the database now").await;
    lab.drained().await;
    let done = lab
        .rows("select id, result from events_done order by id")
        .await;
    assert_eq!(
        done,
        [[&runs.to_string(), "done"], [&waits.to_string(), "done"]]
    );
    assert_eq!(starts(&entries(&lab)).len(), 3);
    heir.stop().await;
}

/// The answer to its COMMIT comes when another daemon has followed: what it has claimed runs there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_frozen_between_commit_and_start_starts_nothing() {
    let db = Db::new(Kind::Postgres).await;
    let line = Lossy::before(&db.url).await;
    let direct = Lab::with(db, "").await;
    let by_line = Db::at(line.url.clone(), Kind::Postgres).await;
    let lab = Lab::on(Arc::new(by_line), "");
    scheme(&lab, &lab);
    scheme(&direct, &lab);
    lab.nas(1, "Mine", 2, &[]).await;
    lab.accounts(1, 10..20).await;
    let mut frozen = lab.start().await;
    let (runs, waits) = one_runs_one_waits(&lab).await;
    // The end of the one and the start of the other are one turn.
    line.hold();
    let_through(&lab.path("gate"), "all");
    lab.until("its COMMIT has no answer", async || {
        line.held().then_some(())
    })
    .await;
    frozen.signal(Signal::SIGSTOP);
    let (heir, _) = heir(&direct).await;
    direct
        .until("it runs with the heir", async || {
            let all = starts(&entries(&lab));
            all.iter()
                .any(|s| (s.0, s.2) == (waits, true))
                .then_some(())
        })
        .await;
    direct.drained().await;
    line.release();
    frozen.signal(Signal::SIGCONT);
    // One of them wants to know whose the database is; who does not ask has started it by now.
    lab.until("it asks", async || (line.muted() >= 3).then_some(()))
        .await;
    line.unmute();
    assert_eq!(frozen.end().await.code(), Some(REFUSED));
    let started = starts(&entries(&lab));
    assert_eq!(started.len(), 2, "{started:?}");
    assert_eq!((started[0].0, started[1].0), (runs, waits));
    heir.stop().await;
}

async fn an_event_that_kills_the_daemon_runs_alone_and_is_buried(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let journal = lab.path("journal");
    let body = format!(
        "[[ $cmd != user_redirect ]] || kill -9 $(< {})\nsleep 0.2",
        lab.path("run/nas_event_daemon.pid").display(),
    );
    lab.session("Mine", &journal::session(&journal, &body));
    lab.nas(1, "Mine", 5, &[]).await;
    lab.accounts(1, 10..20).await;
    let mut daemon = lab.start().await;
    // There is always something else to do, and four forks are at it when the daemon dies.
    let others: Vec<_> = (11..15)
        .cycle()
        .take(12)
        .map(|user| json!({"cmd": "user_add", "user_id": user}))
        .collect();
    let others = lab.post(json!({ "events": others })).await;
    let poison = lab.event(10, "user_redirect").await;
    let mut deaths = 0;
    loop {
        let buried = lab
            .until("it dies, or the poison is buried", async || {
                if daemon.child.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                let dead = "select count(*) from events_dead";
                (lab.number(dead).await == 1).then_some(true)
            })
            .await;
        if buried {
            break;
        }
        deaths += 1;
        journal::note_kill(&journal, &lab.running().await);
        daemon = lab.spawn();
    }
    assert_eq!(deaths, 4, "three deaths make a suspect, the fourth buries");
    let (place, reason) = lab.ended(poison).await;
    assert_eq!(place, "dead");
    assert!(reason.starts_with("the daemon died 4 times"), "{reason}");
    for id in others {
        assert_eq!(lab.ended(id).await.1, "done");
    }
    let entries = entries(&lab);
    let tries = starts(&entries);
    let tries: Vec<_> = tries.iter().filter(|t| t.0 == poison).collect();
    let again = |number| (poison, number, true);
    assert_eq!(
        tries,
        [&(poison, 1, false), &again(2), &again(3), &again(4)]
    );
    // At its last try it was alone: nothing ran, and nothing started beside it.
    let last = |entry: &Entry| matches!(entry, Entry::Start { event, try_count: 4, .. } if *event == poison);
    let place = entries.iter().position(last).unwrap();
    assert_eq!(running(&entries[..=place]), [poison]);
    let beside = entries[place + 1..]
        .iter()
        .take_while(|entry| !matches!(entry, Entry::Kill { .. }))
        .find(|entry| matches!(entry, Entry::Start { .. }));
    assert_eq!(beside, None);
    daemon.stop().await;
}

async fn what_is_older_than_it_is_kept_vanishes_after_the_start(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.configure("[history]\nkeep = \"2h\"\n[audit]\nkeep = \"40d\"", "");
    let ago = |hours: i64| match kind {
        Kind::Sqlite => format!("strftime('%Y-%m-%d %H:%M:%f', 'now', '-{hours} hours')"),
        Kind::Postgres => format!("now() - interval '{hours} hours'"),
    };
    // More than one statement deletes at once, the older ones first.
    let rows: Vec<String> = (1..=1_200)
        .map(|id| format!("({id}, 'user_add', {at}, {at}, 'done')", at = ago(3)))
        .collect();
    lab.sql(&format!(
        "insert into events_done (id, event_type, event_date, finished_at, result) values {}",
        rows.join(", ")
    ))
    .await;
    lab.sql(&format!(
        "insert into events_done (id, event_type, event_date, finished_at, result)
           values (1201, 'user_add', {hour}, {hour}, 'done');
         insert into audit (at, who, what) values
           ({old}, 'crm', 'old'), ({young}, 'crm', 'young')",
        hour = ago(1),
        old = ago(41 * 24),
        young = ago(39 * 24),
    ))
    .await;
    let daemon = lab.start().await;
    lab.until("what is too old is gone", async || {
        let done = lab.number("select count(*) from events_done").await;
        let audit = lab.number("select count(*) from audit").await;
        (done <= 1 && audit <= 1).then_some(())
    })
    .await;
    let left = lab.rows("select id from events_done").await;
    assert_eq!(left, [["1201"]], "an hour is less than history.keep");
    let left = lab.rows("select what from audit").await;
    assert_eq!(left, [["young"]], "39 days are less than audit.keep");
    daemon.stop().await;
}
