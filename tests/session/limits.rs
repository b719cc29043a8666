//! Nothing of a script outlives its attempt, and no script holds a fork longer than it may.

use std::process::Stdio;
use std::time::Duration;

use nas_event_daemon::attempt::{FailureClass, Job, Verdict};
use nas_event_daemon::clock::tick_ms;
use nas_event_daemon::scheme::launch::Kind;
use nas_event_daemon::scheme::shim::Order;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::{Scheme, bash, exists, job, marked, parent, session, shim, until};

/// Leaves the group and its parent, and hears no polite signal.
const ESCAPE: &str = "escape() {
    (setsid bash -c 'trap \"\" TERM HUP; (setsid bash -c \"trap : TERM; echo > deep; while :; do sleep 1000; done\" &) ; while :; do sleep 1000; done' &)
    until [ -e deep ]; do sleep 0.01; done
}
";

fn short(cmd: &str) -> Job {
    let mut job = job(cmd);
    job.deadline = Duration::from_millis(400);
    job
}

async fn times_out(scheme: &Scheme, cmd: &str) {
    let job = short(cmd);
    let begun = tick_ms();
    let told = scheme.run(&job).await;
    // Without the deadline it would go on for a quarter of an hour.
    assert!(tick_ms() - begun < 60_000, "{cmd}");
    let Verdict::Failed(failure) = told.report.verdict else {
        panic!("{cmd}: {:?}", told.report.verdict);
    };
    assert_eq!((failure.code, failure.class), (143, FailureClass::Unknown));
    assert!(failure.text.contains("0.4 s"), "{failure}");
    assert!(marked(&job).is_empty(), "{cmd} left {:?}", marked(&job));
}

#[tokio::test]
async fn what_hangs_is_gone_after_its_deadline() {
    let scheme = session(format!(
        "{ESCAPE}
         user_add() {{ sleep 1000; }}
         user_del() {{ trap '' TERM; while :; do sleep 1000; done; }}
         user_drop() {{ escape; sleep 1000; }}
         user_accept() {{ while :; do echo flood; done; }}
         user_auth() {{ exec <&- >&- 2>&-; sleep 1000; }}
         user_edit() {{ kill -STOP $$; }}
         user_redirect() {{ trap 'exit 0' TERM; while :; do sleep 0.01; done; }}",
    ));
    for cmd in [
        "user_add",
        "user_del",
        "user_drop",
        "user_accept",
        "user_auth",
        "user_edit",
        "user_redirect",
    ] {
        let _ = std::fs::remove_file(scheme.file("deep"));
        times_out(&scheme, cmd).await;
    }
}

#[tokio::test]
async fn what_a_script_leaves_behind_is_ended_with_it() {
    let scheme = session(format!(
        "{ESCAPE}
         user_add() {{ sleep 1000 & echo started; }}
         user_del() {{ escape; exit 3; }}
         user_drop() {{ (sleep 1000 >/dev/null 2>&1 &) ; }}",
    ));
    for (cmd, verdict) in [
        ("user_add", Verdict::Done),
        ("user_del", Verdict::Exit(3)),
        ("user_drop", Verdict::Done),
    ] {
        let job = job(cmd);
        let told = scheme.run(&job).await;
        assert_eq!(told.report.verdict, verdict, "{cmd}");
        assert!(marked(&job).is_empty(), "{cmd} left {:?}", marked(&job));
        let noted = told.lines.iter().any(|line| line.contains("left behind"));
        assert!(noted, "{cmd}: {told:?}");
    }
}

#[tokio::test]
async fn a_flood_is_capped_counted_and_does_no_harm() {
    let scheme = session(
        "user_info() { yes 0123456789abcdef | head -c 10000000; echo >&2 problem; exit 3; }
         user_test() { head -c 10000000 /dev/zero | tr '\\0' x; }",
    );
    let told = scheme.run(&job("user_info")).await;
    assert_eq!(told.report.verdict, Verdict::Exit(3));
    assert!(told.report.answer.unwrap().len() <= 64 * 1024);
    let kept: usize = told.lines.iter().map(|line| line.len() + 1).sum();
    assert!(kept < 300_000, "{kept}");
    let told = scheme.run(&job("user_test")).await;
    let last = told.lines.last().unwrap();
    assert!(last.contains("more bytes of stdout not kept"), "{last}");
    assert!(told.report.answer.unwrap().len() == 64 * 1024);
}

#[tokio::test]
async fn scripts_run_with_limits_and_without_input() {
    let scheme = session(
        "user_add() { ulimit -c; ulimit -n; ulimit -u; ulimit -f; cat; ps -o sid= -p $$ >/dev/null; \
         [ -t 0 ] || echo no_terminal; trap -p; }",
    );
    let told = scheme.run(&job("user_add")).await;
    // Processes of the user: what we set, unless less is allowed to us. 4 GiB in KiB.
    let own = getrlimit(Resource::RLIMIT_NPROC).unwrap().1.min(32_768);
    let own = own.to_string();
    assert_eq!(told.lines, ["0", "1024", &own, "4194304", "no_terminal"]);
}

#[tokio::test]
async fn giving_up_an_attempt_ends_its_script() {
    let scheme = session(format!(
        "{ESCAPE}\nuser_add() {{ escape; echo > ready; sleep 1000; }}"
    ));
    let job = job("user_add");
    tokio::select! {
        told = scheme.run(&job) => panic!("{told:?}"),
        () = until("the script runs", || exists(&scheme.file("ready"))) => {}
    }
    until("everything is gone", || marked(&job).is_empty()).await;
}

#[tokio::test]
async fn a_killed_daemon_takes_its_scripts_along() {
    let scheme = session(format!(
        "{ESCAPE}\nuser_add() {{ escape; echo > ready; sleep 1000; }}"
    ));
    let job = job("user_add");
    let order = Order {
        kind: Kind::Session,
        dir: scheme.dir.path().to_owned(),
        file: "bin/session".into(),
        cmd: "user_add".into(),
        env: nas_event_daemon::scheme::environ::environ(&job, "", "0").unwrap(),
        deadline_ms: 3_600_000,
        waits_max_ms: 0,
        kill_after_ms: 3_600_000,
        output_max: 1_000,
    };
    let mut text = serde_json::to_string(&order).unwrap();
    text.push('\n');
    std::fs::write(scheme.file("order"), text).unwrap();
    // stands for the daemon: it alone holds the other end of the shim's pipe
    let mut daemon =
        bash("exec > >(exec env -i NED_SHIM=1 \"$0\" >/dev/null); cat order; exec sleep 1000")
            .arg(shim())
            .current_dir(scheme.dir.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
    until("the script runs", || exists(&scheme.file("ready"))).await;
    assert!(marked(&job).len() >= 3, "{:?}", marked(&job));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    until("everything is gone", || marked(&job).is_empty()).await;
}

/// The shim of a running job.
fn shim_of(job: &Job) -> Pid {
    let running = marked(job);
    let of = running.iter().find_map(|pid| {
        let parent = parent(*pid)?;
        (!running.contains(&parent) && parent > 1).then_some(parent)
    });
    Pid::from_raw(of.unwrap())
}

/// Whether this process reads its signals from a descriptor. Its signal mask would not tell:
/// all are blocked for a moment while a child is started, too.
fn hears_signals(pid: Pid) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let links = fds.into_iter().flatten().flatten();
    links
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .any(|link| link.as_os_str() == "anon_inode:[signalfd]")
}

#[tokio::test]
async fn a_killed_shim_leaves_no_script_and_an_unknown_outcome() {
    let scheme = session(format!(
        "{ESCAPE}\nuser_add() {{ escape; echo > ready; sleep 1000; }}"
    ));
    let job = job("user_add");
    let murder = async {
        until("the script runs", || exists(&scheme.file("ready"))).await;
        kill(shim_of(&job), Signal::SIGKILL).unwrap();
    };
    let (told, ()) = tokio::join!(scheme.run(&job), murder);
    let Verdict::Failed(failure) = told.report.verdict else {
        panic!("{:?}", told.report.verdict);
    };
    assert_eq!(failure.class, FailureClass::Unknown);
    assert!(failure.text.contains("without a report"), "{failure}");
    until("everything is gone", || marked(&job).is_empty()).await;
}

#[tokio::test]
async fn a_terminated_fork_is_deferred_like_a_terminated_script() {
    let scheme = session("user_add() { echo > ready; sleep 1000; }");
    let job = job("user_add");
    let end = async {
        until("the script runs", || exists(&scheme.file("ready"))).await;
        let shim = shim_of(&job);
        // The script may be faster than the shim that started it.
        until("the shim listens to signals", || hears_signals(shim)).await;
        kill(shim, Signal::SIGTERM).unwrap();
    };
    let (told, ()) = tokio::join!(scheme.run(&job), end);
    assert_eq!(told.report.verdict, Verdict::Exit(143));
    assert!(marked(&job).is_empty());
}

#[tokio::test]
async fn a_fork_terminated_before_it_listens_is_deferred_as_well() {
    let scheme = session("user_add() { sleep 1000; }");
    for _ in 0..20 {
        let job = job("user_add");
        let end = async {
            let mut shim = None;
            until("the shim is there", || {
                shim = children().find(|pid| environ(*pid).contains(&"NED_SHIM=1".to_owned()));
                shim.is_some()
            })
            .await;
            kill(shim.unwrap(), Signal::SIGTERM).unwrap();
        };
        let (told, ()) = tokio::join!(scheme.run(&job), end);
        assert_eq!(told.report.verdict, Verdict::Exit(143));
        assert!(marked(&job).is_empty());
    }
}

/// Children of this process; every test is a process of its own.
fn children() -> impl Iterator<Item = Pid> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| parent(*pid) == Some(std::process::id().cast_signed()))
        .map(Pid::from_raw)
}

fn environ(pid: Pid) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes
        .split(|b| *b == 0)
        .map(|entry| String::from_utf8_lossy(entry).into_owned())
        .collect()
}
