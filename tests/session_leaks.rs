//! Many runs leave nothing: no zombie, no orphan, no descriptor, no memory, however the scripts
//! behave. Alone in its process, because it counts what the whole process holds. `NED_ZOO` changes
//! the number of rounds; `scripts/faults zoo` runs until 10,000 scripts have ended.

#[path = "session/bench.rs"]
#[cfg(test)]
#[expect(dead_code, reason = "shared with tests/session, which uses all of it")]
mod bench;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Arc;
    use std::time::Duration;

    use nas_event_daemon::attempt::{FailureClass, Verdict};
    use nas_event_daemon::clock::tick_ms;
    use nas_event_daemon::scheme::session::KILL_AFTER;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::bench;

    /// How badly scripts can behave, and whether the attempt can end well.
    const ZOO: &[(&str, &str, bool)] = &[
        ("hangs", "sleep 1000", false),
        (
            "ignores_term",
            "trap '' TERM; while :; do sleep 1; done",
            false,
        ),
        (
            "forks_twice",
            "( setsid bash -c 'setsid sleep 1000 & sleep 1000' & ) & :",
            true,
        ),
        ("floods", "yes 'a line that nobody reads' ", false),
        ("floods_and_ends", "yes | head -c 600000", true),
        ("holds_stdout", "( sleep 1000 ) & exit 0", true),
        ("is_binary", "head -c 300000 /dev/urandom", true),
        (
            "closes_everything",
            "exec 0<&- 1>&- 2>&-; sleep 1000",
            false,
        ),
        (
            "forks_many",
            "for n in $(seq 40); do sleep 1000 & done; wait",
            false,
        ),
        ("kills_its_shim", "kill -9 $PPID; sleep 1000", false),
    ];
    /// Rounds of the zoo: each runs every animal this many times at once, 100 forks in all.
    const ROUNDS: usize = 1;
    /// Rounds of the quick animals before the first count.
    const WARM: usize = 2;
    /// What memory may grow by, however many rounds there are.
    const GROWTH_KIB: u64 = 8_000;
    const AT_ONCE: usize = 10;
    /// The deadline of each attempt, and what half of each kind may take beyond it: the promise.
    const DEADLINE: Duration = Duration::from_secs(8);
    const PROMISED: Duration = Duration::from_secs(5);
    /// What the slowest may take beyond it on a machine that is busy with other tests.
    const AFTER: Duration = Duration::from_secs(25);

    /// Each counts what the whole process holds: one at a time.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    fn say(text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The longest that this machine takes to start and end the least of programs, while others
    /// work: from the deadline on, until it is dropped.
    async fn stalls(longest: &std::cell::Cell<Duration>) {
        let from = tick_ms() + DEADLINE.as_secs() * 1_000;
        loop {
            let began = tick_ms();
            let status = tokio::process::Command::from(bench::bash(":"))
                .status()
                .await;
            assert!(status.unwrap().success());
            if began >= from {
                let took = Duration::from_millis(tick_ms() - began);
                longest.set(longest.get().max(took));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Each of these animals as often as the zoo does at once; what they leave is looked at. How long
    /// each took until it and all of its processes were gone, the quickest first.
    async fn round(
        scheme: &Arc<bench::Scheme>,
        animals: &[&(&'static str, &str, bool)],
    ) -> BTreeMap<&'static str, Vec<Duration>> {
        let mut runs = tokio::task::JoinSet::new();
        for (name, _, well) in animals {
            for _ in 0..AT_ONCE {
                let scheme = Arc::clone(scheme);
                let mut job = bench::job(name);
                job.deadline = DEADLINE;
                let (name, well) = (*name, *well);
                runs.spawn(async move {
                    let began = tick_ms();
                    let told = scheme.run(&job).await;
                    bench::until(name, || bench::marked(&job).is_empty()).await;
                    let took = Duration::from_millis(tick_ms() - began);
                    (name, well, took, told)
                });
            }
        }
        let mut times: BTreeMap<_, Vec<_>> = BTreeMap::new();
        while let Some(ended) = runs.join_next().await {
            let (name, well, took, told) = ended.unwrap();
            assert!(took < DEADLINE + AFTER, "{name} took {took:?}");
            match &told.report.verdict {
                Verdict::Done => assert!(well, "{name} ended well"),
                Verdict::Failed(failure) => {
                    assert!(!well, "{name}: {failure}");
                    assert_eq!(failure.class, FailureClass::Unknown, "{name}: {failure}");
                }
                Verdict::Exit(code) => assert!(!well && *code > 128, "{name}: {code}"),
                other => panic!("{name}: {other:?}"),
            }
            let size: usize = told.lines.iter().map(String::len).sum();
            assert!(size < 2_000_000, "{name} left {size} bytes of output");
            times.entry(name).or_default().push(took);
        }
        for times in times.values_mut() {
            times.sort_unstable();
        }
        times
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hundred_forks_of_bad_scripts_leave_nothing() {
        let _alone = ALONE.lock().await;
        let text: String = ZOO
            .iter()
            .map(|(name, body, _)| format!("{name}() {{ {body}; }}\n"))
            .collect();
        // With the daemon's own patience between SIGTERM and SIGKILL.
        let bench::Scheme { dir, runs } = bench::session(text);
        let runs = runs.with_shim(bench::shim(), KILL_AFTER);
        let scheme = Arc::new(bench::Scheme { dir, runs });
        let rounds = std::env::var("NED_ZOO").map_or(ROUNDS, |n| n.parse().unwrap());
        // Those that end by themselves fill pools and caches of the runtime in a moment.
        let quick: Vec<_> = ZOO.iter().filter(|(.., well)| *well).collect();
        for _ in 0..WARM {
            round(&scheme, &quick).await;
        }
        let (fds, kib) = (descriptors(), resident_kib());
        for n in 0..rounds {
            let stall = std::cell::Cell::new(Duration::ZERO);
            let all = ZOO.iter().collect::<Vec<_>>();
            let times = tokio::select! {
                times = round(&scheme, &all) => times,
                () = stalls(&stall) => unreachable!(),
            };
            bench::until("no child is left", || children() == 0).await;
            let most = DEADLINE + PROMISED + stall.get();
            for (name, times) in &times {
                let (half, slowest) = (times[times.len() / 2], times[times.len() - 1]);
                say(&format!(
                    "{name}: half within {half:?}, the slowest {slowest:?}"
                ));
                assert!(half < most, "{name}, {most:?}: {times:?}");
            }
            let now = (descriptors(), resident_kib());
            say(&format!(
                "round {n}: {} descriptors, {} KiB; before {fds}, {kib}",
                now.0, now.1
            ));
            assert_eq!(now.0, fds, "round {n}");
            assert!(now.1 < kib + GROWTH_KIB, "{} KiB, at first {kib}", now.1);
        }
    }

    /// Processes that the bomb's user may have, and a user that nobody else is.
    const BOUND: u64 = 100;
    const NOBODY_ELSE: u32 = 64_321;

    fn of_the_bomb() -> usize {
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let is_its = |entry: &std::fs::DirEntry| {
            let name = entry.file_name();
            let pid = name.to_string_lossy().bytes().all(|b| b.is_ascii_digit());
            pid && entry.metadata().is_ok_and(|m| m.uid() == NOBODY_ELSE)
        };
        pids.filter(is_its).count()
    }

    /// The limit of processes does not bind root, so the bomb gives its rights away; the limit is
    /// the one that the daemon's scripts inherit, made small.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_fork_bomb_stays_within_the_limit_and_is_ended() {
        let _alone = ALONE.lock().await;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        setrlimit(Resource::RLIMIT_NPROC, BOUND, BOUND).unwrap();
        let scheme = bench::session(format!(
            "bomb() {{ setpriv --reuid={NOBODY_ELSE} --regid=65534 --clear-groups \
             bash -c 'f() {{ f | f & }}; f; while :; do sleep 0.1; done'; }}"
        ));
        let mut job = bench::job("bomb");
        job.deadline = Duration::from_secs(2);
        let run = scheme.run(&job);
        tokio::pin!(run);
        let mut most = 0;
        let told = loop {
            tokio::select! {
                told = &mut run => break told,
                () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(of_the_bomb()),
            }
        };
        // Not allowed without CAP_SYS_RESOURCE; then this process has few left, which it is not
        // bound by as root.
        let _ = setrlimit(Resource::RLIMIT_NPROC, soft, hard);
        let Verdict::Failed(failure) = &told.report.verdict else {
            panic!("{told:?}");
        };
        assert_eq!(failure.class, FailureClass::Unknown, "{failure}");
        bench::until("the bomb is gone", || of_the_bomb() == 0).await;
        assert!(bench::marked(&job).is_empty());
        assert!(most > 50, "{most} processes are no bomb");
        assert!(most as u64 <= BOUND, "{most} processes");
    }

    /// Runs that are looked at.
    const RUNS: usize = 200;

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn children() -> usize {
        let me = i32::try_from(std::process::id()).unwrap();
        bench::pids()
            .filter(|pid| bench::parent(*pid) == Some(me))
            .count()
    }

    #[tokio::test]
    async fn two_hundred_runs_leave_no_zombie_and_no_descriptor() {
        let _alone = ALONE.lock().await;
        let scheme = bench::session("user_add() { (sleep 1000 &) ; echo $BASHPID; }");
        let first = scheme.run(&bench::job("user_add")).await;
        assert_eq!(first.report.verdict, Verdict::Done);
        let before = descriptors();
        for _ in 0..RUNS / 4 {
            let job = bench::job("user_add");
            let four = [(); 4].map(|()| scheme.run(&job));
            let [a, b, c, d] = four;
            let (a, b, c, d) = tokio::join!(a, b, c, d);
            for told in [a, b, c, d] {
                assert_eq!(told.report.verdict, Verdict::Done);
            }
            assert!(bench::marked(&job).is_empty());
        }
        assert_eq!(descriptors(), before);
        assert_eq!(children(), 0);
    }
}
