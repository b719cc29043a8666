//! Journals that the fake NASes write themselves, and the checker over them: nothing lost,
//! nothing reordered within an account, never two at once, every repetition announced.
//!
//! A script appends `start <event> <user> <try> <dup>` and `end <event> <try>` with `O_APPEND`,
//! so the order of lines is the order of what happened. The simulated router writes one record
//! per carried-out sentence with the times of its arrival and its end; whose it is stands in
//! its comment: `<event> <user> <try> <dup>`. The test itself puts `kill` between them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

/// (event, try)
pub type Attempt = (i64, u32);

/// What happened on one NAS, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An attempt reached the NAS.
    Start {
        event: i64,
        user: i64,
        try_count: u32,
        dup: bool,
    },
    /// It ended there.
    End { event: i64, try_count: u32 },
    /// The daemon was killed while these attempts were `running` in its database.
    Kill { running: BTreeSet<Attempt> },
}

/// An event whose acceptance was told to its producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub event: i64,
    pub user: i64,
}

/// What the checker found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Accepted and never executed.
    Lost { event: i64 },
    /// Executed, but nobody was told of its acceptance.
    Alien { event: i64 },
    /// `later` was accepted after `earlier` and executed before it.
    Reordered { earlier: i64, later: i64 },
    /// `second` started while `first` of the same account ran.
    Overlap { first: i64, second: i64 },
    /// Executed again without a warning.
    Unflagged { event: i64, try_count: u32 },
    /// Executed more often than it was running at a kill.
    Repeated {
        event: i64,
        times: usize,
        kills: usize,
    },
    /// It reached the NAS and neither ended nor was cut by a kill.
    Stuck { event: i64 },
    /// The NAS was left by `found` although `wanted` was the account's last event there.
    Diverged {
        user: i64,
        wanted: i64,
        found: Option<i64>,
    },
    /// The database says that it is done, and nothing of it reached the NAS.
    Unseen { event: i64 },
    /// The database has it in this many places.
    Misplaced { event: i64, places: usize },
}

/// What is compared beside the order of things, once everything has come to rest.
#[derive(Debug, Default)]
pub struct Rest {
    /// Which event each account's state on the NAS comes from, by what the NAS itself holds.
    pub state: BTreeMap<i64, i64>,
    /// Done events, by the database.
    pub done: BTreeSet<i64>,
    /// In how many of the tables each event stands that is in any.
    pub places: BTreeMap<i64, usize>,
}

/// Compares a NAS at rest, and the database, with what was accepted: every account is as its
/// last event that was not `excused` left it, every event stands in one place, and none is done
/// that never reached the NAS.
pub fn check_rest(
    accepted: &[Accepted],
    excused: &BTreeSet<i64>,
    entries: &[Entry],
    rest: &Rest,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let started: BTreeSet<i64> = starts(entries).iter().map(|(event, ..)| *event).collect();
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    for Accepted { event, user } in accepted {
        let places = rest.places.get(event).copied().unwrap_or(0);
        if places != 1 {
            findings.push(Finding::Misplaced {
                event: *event,
                places,
            });
        }
        if rest.done.contains(event) && !started.contains(event) {
            findings.push(Finding::Unseen { event: *event });
        }
        if !excused.contains(event) {
            last.insert(*user, *event);
        }
    }
    for (user, wanted) in last {
        let found = rest.state.get(&user).copied();
        // What was buried after it may have been obeyed.
        let later = found.is_some_and(|f| f > wanted && excused.contains(&f));
        if found != Some(wanted) && !later {
            findings.push(Finding::Diverged {
                user,
                wanted,
                found,
            });
        }
    }
    let open = running(entries);
    findings.extend(open.into_iter().map(|event| Finding::Stuck { event }));
    findings
}

/// Which event each account's state comes from, by a script's journal: a script NAS is as the
/// last script that ended, or that was cut, left it.
pub fn state_of_script(entries: &[Entry]) -> BTreeMap<i64, i64> {
    let mut state = BTreeMap::new();
    for entry in entries {
        if let Entry::Start { event, user, .. } = entry {
            state.insert(*user, *event);
        }
    }
    state
}

/// Checks the journal of one NAS. `accepted` holds its events only, each account's in the
/// order in which its one producer was told of them; `excused` need not have been executed.
pub fn check(accepted: &[Accepted], excused: &BTreeSet<i64>, entries: &[Entry]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let known: BTreeSet<i64> = accepted.iter().map(|a| a.event).collect();
    let mut firsts: Vec<i64> = Vec::new();
    let mut starts: BTreeMap<i64, usize> = BTreeMap::new();
    let mut kills: BTreeMap<i64, BTreeSet<u32>> = BTreeMap::new();
    // Of each account the attempt that runs; attempts that a kill should have ended; and of
    // each account the last event that started after a kill.
    let mut open: BTreeMap<i64, Attempt> = BTreeMap::new();
    let mut cut: BTreeMap<Attempt, Option<i64>> = BTreeMap::new();
    let mut fresh: BTreeMap<i64, i64> = BTreeMap::new();
    for entry in entries {
        match entry {
            Entry::Start {
                event,
                user,
                try_count,
                dup,
            } => {
                let attempt = (*event, *try_count);
                let times = starts.entry(*event).or_default();
                *times += 1;
                if *times == 1 {
                    firsts.push(*event);
                } else if !dup {
                    findings.push(Finding::Unflagged {
                        event: *event,
                        try_count: *try_count,
                    });
                }
                let first = if let Some(user_of_cut) = cut.get_mut(&attempt) {
                    // A process that a killed daemon had started gets to its first line late.
                    *user_of_cut = Some(*user);
                    fresh.get(user).copied()
                } else {
                    fresh.insert(*user, *event);
                    open.insert(*user, attempt).map(|(first, _)| first)
                };
                if let Some(first) = first {
                    findings.push(Finding::Overlap {
                        first,
                        second: *event,
                    });
                }
            }
            Entry::End { event, try_count } => {
                let attempt = (*event, *try_count);
                if let Some(Some(user)) = cut.get(&attempt)
                    && let Some(second) = fresh.get(user)
                {
                    // It outlived its daemon until something of its account had started.
                    findings.push(Finding::Overlap {
                        first: *event,
                        second: *second,
                    });
                }
                open.retain(|_, running| *running != attempt);
            }
            Entry::Kill { running } => {
                for (event, try_count) in running {
                    kills.entry(*event).or_default().insert(*try_count);
                    cut.entry((*event, *try_count)).or_default();
                }
                for (user, attempt) in std::mem::take(&mut open) {
                    cut.insert(attempt, Some(user));
                }
                fresh.clear();
            }
        }
    }
    for (event, times) in &starts {
        if !known.contains(event) {
            findings.push(Finding::Alien { event: *event });
        }
        let kills = kills.get(event).map_or(0, BTreeSet::len);
        if *times > 1 + kills {
            findings.push(Finding::Repeated {
                event: *event,
                times: *times,
                kills,
            });
        }
    }
    let place: BTreeMap<i64, usize> = firsts.iter().enumerate().map(|(n, e)| (*e, n)).collect();
    let mut last: BTreeMap<i64, (usize, i64)> = BTreeMap::new();
    for Accepted { event, user } in accepted {
        let Some(at) = place.get(event) else {
            if !excused.contains(event) {
                findings.push(Finding::Lost { event: *event });
            }
            continue;
        };
        if let Some((before, earlier)) = last.get(user)
            && at < before
        {
            findings.push(Finding::Reordered {
                earlier: *earlier,
                later: *event,
            });
            continue;
        }
        last.insert(*user, (*at, *event));
    }
    findings
}

/// The attempts that run after each entry, in the order of their starts; a kill ends all, also
/// those that have yet to show up.
fn open_after(entries: &[Entry]) -> Vec<Vec<Attempt>> {
    let mut open = Vec::new();
    let mut cut = BTreeSet::new();
    let mut after = Vec::with_capacity(entries.len());
    for entry in entries {
        match entry {
            Entry::Start {
                event, try_count, ..
            } => {
                let attempt = (*event, *try_count);
                if !cut.contains(&attempt) && !open.contains(&attempt) {
                    open.push(attempt);
                }
            }
            Entry::End { event, try_count } => open.retain(|a| *a != (*event, *try_count)),
            Entry::Kill { running } => {
                cut.extend(running.iter().copied());
                open.clear();
            }
        }
        after.push(open.clone());
    }
    after
}

/// Most attempts that ran at once.
pub fn peak(entries: &[Entry]) -> usize {
    let all = open_after(entries);
    all.iter().map(Vec::len).max().unwrap_or(0)
}

/// Most attempts that ran at once after the entries from `from` on, up to `to`.
pub fn peak_between(entries: &[Entry], from: usize, to: usize) -> usize {
    let all = open_after(entries);
    all[from..to].iter().map(Vec::len).max().unwrap_or(0)
}

/// The events that have started and not ended, in the order of their starts.
pub fn running(entries: &[Entry]) -> Vec<i64> {
    let last = open_after(entries).pop().unwrap_or_default();
    last.into_iter().map(|(event, _)| event).collect()
}

/// Repetitions: starts beyond the first of each event.
pub fn repeated(entries: &[Entry]) -> usize {
    let all = starts(entries);
    let events: BTreeSet<i64> = all.iter().map(|(event, ..)| *event).collect();
    all.len() - events.len()
}

/// A session scheme whose every state-changing function writes the journal; `body` runs between
/// its two lines.
pub fn session(journal: &Path, body: &str) -> String {
    let journal = nas_event_daemon::shell::quote(&journal.to_string_lossy());
    let mut text = format!(
        "note() {{ printf '%s\\n' \"$*\" >> {journal}; }}\n\
         work() {{\n\
           note start $event_id $user_id $try_count $possible_duplicate\n\
           {body}\n\
           note end $event_id $try_count\n\
         }}\n"
    );
    for cmd in CMDS {
        text.push_str(&format!("{cmd}() {{ work; }}\n"));
    }
    text
}

/// A body for [`session`]: goes on until the test has made a file `all`, or one that is named
/// as the event, in `gate`.
pub fn gated(gate: &Path) -> String {
    std::fs::create_dir_all(gate).unwrap();
    let gate = gate.display();
    format!("until [[ -e {gate}/$event_id || -e {gate}/all ]]; do sleep 0.05; done")
}

/// Lets one event, or `all`, through the gate.
pub fn let_through(gate: &Path, who: impl ToString) {
    std::fs::write(gate.join(who.to_string()), "").unwrap();
}

/// Every start, as (event, try, flagged).
pub fn starts(entries: &[Entry]) -> Vec<(i64, u32, bool)> {
    let start = |entry: &Entry| match entry {
        Entry::Start {
            event,
            try_count,
            dup,
            ..
        } => Some((*event, *try_count, *dup)),
        Entry::End { .. } | Entry::Kill { .. } => None,
    };
    entries.iter().filter_map(start).collect()
}

/// A native scheme of which every command writes who it is into one queue per account.
pub fn native() -> String {
    let mut text = "driver = \"mikrotik\"\n".to_owned();
    for cmd in CMDS {
        text.push_str(&format!(
            "[[on.{cmd}]]\n\
             ensure = \"/queue/simple\"\n\
             where = {{ name = \"u{{{{ user_id }}}}\" }}\n\
             set = {{ target = \"{{{{ ip }}}}\", comment = \"{{{{ event_id }}}} {{{{ user_id }}}} {{{{ try_count }}}} {{{{ possible_duplicate }}}}\" }}\n"
        ));
    }
    text
}

/// Commands that both schemes know, one of each class that changes something.
pub const CMDS: [&str; 4] = [
    "user_redirect_cancel",
    "user_redirect",
    "user_rate_set",
    "user_add",
];

/// The entries in a script's journal; none if there is no such file.
pub fn read_script(journal: &Path) -> Vec<Entry> {
    of_script(&std::fs::read_to_string(journal).unwrap_or_default())
}

/// The entries in the journal of a simulated router.
pub fn read_router(journal: &Path) -> Vec<Entry> {
    of_router(&std::fs::read_to_string(journal).unwrap_or_default())
}

/// Notes in a script's journal that the daemon was killed.
pub fn note_kill(journal: &Path, running: &BTreeSet<Attempt>) {
    let mut line = "kill".to_owned();
    for (event, try_count) in running {
        line.push_str(&format!(" {event}/{try_count}"));
    }
    append(journal, &format!("{line}\n"));
}

/// The same in the journal of a simulated router.
pub fn note_kill_of_router(journal: &Path, running: &BTreeSet<Attempt>, at_us: i64) {
    let record = serde_json::json!({"killed_at_us": at_us, "running": running});
    append(journal, &format!("{record}\n"));
}

fn append(journal: &Path, line: &str) {
    use std::io::Write;
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(journal)
        .unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

fn attempt(word: &str) -> Attempt {
    let (event, try_count) = word.split_once('/').unwrap();
    (event.parse().unwrap(), try_count.parse().unwrap())
}

/// Reads a script's journal.
pub fn of_script(text: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| -> i64 { words[at].parse().unwrap() };
        match words[0] {
            "start" => Entry::Start {
                event: number(1),
                user: number(2),
                try_count: words[3].parse().unwrap(),
                dup: words[4] == "1",
            },
            "end" => Entry::End {
                event: number(1),
                try_count: words[2].parse().unwrap(),
            },
            "kill" => Entry::Kill {
                running: words[1..].iter().map(|w| attempt(w)).collect(),
            },
            other => panic!("{other:?} in a journal"),
        }
    };
    text.lines().map(entry).collect()
}

struct Sentences {
    from_us: i64,
    to_us: i64,
    user: i64,
    dup: bool,
    obeyed: bool,
}

/// Reads the journal of a simulated router: the sentences of one attempt are one interval. An
/// attempt of which the router refused every sentence has changed nothing and is left out.
pub fn of_router(text: &str) -> Vec<Entry> {
    let mut moments: Vec<(i64, u8, Entry)> = Vec::new();
    let mut attempts: BTreeMap<Attempt, Sentences> = BTreeMap::new();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let us = |name: &str| record[name].as_i64().unwrap();
        if let Some(at_us) = record["killed_at_us"].as_i64() {
            let running = serde_json::from_value(record["running"].clone()).unwrap();
            moments.push((at_us, 1, Entry::Kill { running }));
            continue;
        }
        let comment = record["args"]["comment"].as_str().unwrap();
        let words: Vec<&str> = comment.split(' ').collect();
        let key = (words[0].parse().unwrap(), words[2].parse().unwrap());
        let attempt = attempts.entry(key).or_insert(Sentences {
            from_us: us("at_us"),
            to_us: us("done_at_us"),
            user: words[1].parse().unwrap(),
            dup: words[3] == "1",
            obeyed: false,
        });
        attempt.from_us = attempt.from_us.min(us("at_us"));
        attempt.to_us = attempt.to_us.max(us("done_at_us"));
        attempt.obeyed |= record["trap"].is_null();
    }
    for ((event, try_count), attempt) in attempts.into_iter().filter(|(_, a)| a.obeyed) {
        let start = Entry::Start {
            event,
            user: attempt.user,
            try_count,
            dup: attempt.dup,
        };
        moments.push((attempt.from_us, 2, start));
        moments.push((attempt.to_us, 0, Entry::End { event, try_count }));
    }
    // In the same microsecond an end comes before a start: they touch, they do not overlap.
    // An attempt within one microsecond is put right by its length of at least that.
    for moment in &mut moments {
        if moment.1 == 0 {
            moment.0 += 1;
        }
    }
    moments.sort_by_key(|(at, kind, _)| (*at, *kind));
    moments.into_iter().map(|(_, _, entry)| entry).collect()
}
