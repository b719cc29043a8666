//! Many runs leave nothing: no zombie, no descriptor. Alone in its process, because it counts
//! what the whole process holds.

#[path = "session/bench.rs"]
#[cfg(test)]
#[expect(dead_code, reason = "shared with tests/session, which uses all of it")]
mod bench;

#[cfg(test)]
mod tests {
    use nas_event_daemon::attempt::Verdict;

    use super::bench;

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
