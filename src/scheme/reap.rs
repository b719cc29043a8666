//! Ending what a script left behind: the tree below the shim while it lives, and everything
//! that carries an attempt's token if the shim itself was killed.
//!
//! A process group is not enough: a grandchild that called `setsid` has left it. The shim is a
//! subreaper, so such a grandchild becomes its child as soon as its parent ends.

use std::collections::BTreeMap;
use std::fs;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The number of the signal by which operators and systems end a process.
pub const SIGTERM: i32 = Signal::SIGTERM as i32;
/// Rounds of [`end_marked`]: a process may fork while it is being looked for.
const ROUNDS_MAX: usize = 50;

/// What one look for ended children found.
#[derive(Debug, Default, Clone, Copy)]
pub struct Reaped {
    /// How the leader ended, if it was among them.
    pub leader: Option<WaitStatus>,
    /// No child is left. As every orphan below a subreaper becomes its child in the same
    /// instant, this means that no descendant is left either.
    pub childless: bool,
}

/// Collects every child that has ended, without waiting.
pub fn reap(leader: Pid) -> Reaped {
    let mut reaped = Reaped::default();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return reaped,
            Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..))) => {
                if pid == leader {
                    reaped.leader = Some(status);
                }
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => {
                reaped.childless = true;
                return reaped;
            }
        }
    }
}

/// Signals a process group; one that is gone is fine.
pub fn signal_group(leader: Pid, signal: Signal) {
    let _ = killpg(leader, signal);
}

/// Signals every process below `root` (not `root` itself) and returns how many there are.
pub fn signal_below(root: Pid, signal: Signal) -> usize {
    let below = below(root.as_raw(), &parents());
    for pid in &below {
        let _ = kill(Pid::from_raw(*pid), signal);
    }
    below.len()
}

/// Kills every process whose environment carries `NED_ATTEMPT=token`, until none is left.
/// Only for a shim that died without a report: its children have been adopted by init, and
/// neither group nor parent leads to them any more.
pub fn end_marked(token: &str) -> usize {
    let mark = format!("NED_ATTEMPT={token}").into_bytes();
    let mut ended = 0;
    for _ in 0..ROUNDS_MAX {
        let marked: Vec<i32> = pids().filter(|pid| carries(*pid, &mark)).collect();
        if marked.is_empty() {
            break;
        }
        for pid in &marked {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        ended = ended.max(marked.len());
        // They are init's children now, so no `waitpid` tells when they are gone; the kernel
        // takes a moment. This thread may block: the caller keeps it off the runtime.
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    ended
}

fn carries(pid: i32, mark: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|b| *b == 0).any(|entry| entry == mark))
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Process → its parent, for everything alive (zombies left out: they are dead already).
fn parents() -> BTreeMap<i32, i32> {
    pids()
        .filter_map(|pid| {
            let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parent_in_stat(&String::from_utf8_lossy(&stat))?))
        })
        .collect()
}

/// Fourth field of `/proc/PID/stat` (proc(5)); the second may hold blanks and brackets.
fn parent_in_stat(stat: &str) -> Option<i32> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z" && state != "X").then_some(parent)
}

fn below(root: i32, parents: &BTreeMap<i32, i32>) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        found.extend(
            parents
                .iter()
                .filter(|(_, p)| **p == parent)
                .map(|(pid, _)| *pid),
        );
    }
    found.remove(0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_walked_below_its_root_only() {
        let parents = BTreeMap::from([(1, 0), (7, 1), (8, 7), (9, 8), (10, 7), (11, 1)]);
        assert_eq!(below(7, &parents), vec![8, 10, 9]);
        assert_eq!(below(11, &parents), Vec::<i32>::new());
    }

    #[test]
    fn stat_with_brackets_in_the_name_is_read() {
        assert_eq!(parent_in_stat("12 (a) b (c) ) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in_stat("12 (x) Z 7 12 12 0"), None);
        assert_eq!(parent_in_stat("garbage"), None);
    }
}
