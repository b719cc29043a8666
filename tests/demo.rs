//! `demo` as a newcomer meets it: progress while it works, the counts, a log, the proof, three
//! commands that work; several at once; and nothing left behind, whenever Ctrl-C comes.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed step fails the test"
)]

#[path = "lab/mod.rs"]
mod lab;

use std::path::Path;
use std::process::Stdio;

use lab::daemon::PATIENCE;
use nas_event_daemon::clock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: Vec<String>,
}

impl Demo {
    fn start(place: &Path, args: &[&str]) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the program under test is a program"
        )]
        let mut command = Command::new(env!("CARGO_BIN_EXE_nas_event_daemon"));
        let mut child = command
            .arg("demo")
            .args(args)
            .env("TMPDIR", place)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// Reads until a line with this text; that line.
    async fn until(&mut self, text: &str) -> String {
        loop {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("never said {text:?}: {:#?}", self.said));
            let Some(line) = line.unwrap() else {
                panic!("ended without {text:?}: {:#?}", self.said)
            };
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(self.child.id().unwrap().cast_signed()),
            signal,
        )
        .unwrap();
    }

    /// Exit code and stderr.
    async fn ended(self) -> (Option<i32>, String) {
        let mut lines = self.lines;
        let rest = async {
            while lines.next_line().await.unwrap().is_some() {}
            self.child.wait_with_output().await.unwrap()
        };
        let output = tokio::time::timeout(PATIENCE, rest)
            .await
            .expect("it does not end");
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }
}

fn left_in(place: &Path) -> Vec<String> {
    let all = std::fs::read_dir(place).unwrap();
    all.map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The column `done` of a NAS's line of progress.
fn done_of(line: &str) -> u64 {
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[tokio::test]
async fn it_shows_the_product_and_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let began = clock::tick_ms();
    let mut demo = Demo::start(place.path(), &["--accounts", "200", "--events", "60"]);
    demo.until("200 accounts on 3 simulated RouterOS NASes")
        .await;
    demo.until("waiting   done deferred  rate/s p95 ms").await;
    let first_ms = clock::tick_ms() - began;
    demo.until("BRAS-moody ").await;
    let table = &demo.said[demo.said.len() - 3..];
    let done: u64 = table.iter().map(|line| done_of(line)).sum();
    assert!(
        done < 60,
        "{first_ms} ms after the start all is over: {table:#?}"
    );
    demo.until("# compact stack").await;
    demo.until("the log of account 1003").await;
    demo.until("> send_mikrotik_cmd --nas ").await;
    let refused = demo.until("BRAS-moody refused ").await;
    assert_ne!(
        refused, "BRAS-moody refused 0 logins.",
        "the third NAS is no healthy one"
    );
    let proof = demo.until("NAS state equals billing state").await;
    assert!(
        proof.contains(": 200 of 200 accounts (60 events"),
        "{proof}"
    );
    let tables = demo
        .said
        .iter()
        .filter(|line| line.contains("rate/s"))
        .count();
    assert!(
        tables >= 2,
        "progress is shown while it works: {:#?}",
        demo.said
    );
    let url = demo.until("stays up at http://127.0.0.1:").await;
    let first = demo.until("event post --user 1003").await;
    demo.until("nas pause 2").await;
    demo.until("curl 'http://127.0.0.1:").await;
    // The first command as it stands there.
    #[expect(clippy::disallowed_methods, reason = "as an operator's shell does")]
    let mut shell = Command::new("sh");
    let said = shell
        .args(["-c", &first])
        .env_remove("NED_CONFIG")
        .output()
        .await
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    assert!(
        String::from_utf8_lossy(&said.stdout).contains("done"),
        "{said:?}"
    );
    // Another one beside it gets ports of its own.
    let beside = Demo::start(
        place.path(),
        &["--once", "--accounts", "30", "--events", "6"],
    );
    let (code, err) = beside.ended().await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(left_in(place.path()).len(), 1, "only the one that is up");
    demo.signal(Signal::SIGINT);
    let (code, err) = demo.ended().await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(left_in(place.path()), Vec::<String>::new());
    let port = url.split("127.0.0.1:").nth(1).unwrap();
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    let door = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await;
    assert!(door.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn stopped_in_the_middle_it_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(place.path(), &["--once"]);
    demo.until("rate/s").await;
    demo.signal(Signal::SIGINT);
    let (code, err) = demo.ended().await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("stopped before the proof"), "{err}");
    assert_eq!(left_in(place.path()), Vec::<String>::new());
}
