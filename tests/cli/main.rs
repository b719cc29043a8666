//! The command line with the real binary, on both kinds of database: each verb, its exit code,
//! what it prints into a pipe; the classic names to the byte; and bad inputs, after which
//! nothing is half started.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod audit;
mod bad;
mod bulk;
mod care;
mod classic;
mod diff;
mod dry;
mod events;
mod guard;
mod import;
mod lists;
mod looking;
mod metrics;
mod migrate;
mod mikrotik;
mod monitoring;
mod nases;
mod operators;
mod programs;
mod schemes;
mod shown;
mod tools;
mod why;

use std::process::Stdio;

use lab::daemon::{Lab, PATIENCE};
use serde_json::Value;

/// A scheme that sends nothing, found in the checkout.
const RECORD: &str = "Record";

/// What a command said and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// Standard output, if it ended well.
    fn fine(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Ended with `code`, and stderr holds every text.
    fn failed(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for text in texts {
            assert!(self.err.contains(text), "{text:?} is not in {self:?}");
        }
    }

    /// Standard output as JSON.
    fn json(self) -> Value {
        let text = self.fine();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }
}

/// Runs the binary with the lab's configuration and without a terminal.
async fn ned(lab: &Lab, args: &[&str]) -> Said {
    named(lab, "nas_event_daemon", args, "").await
}

/// The same under another name, with something to read.
async fn named(lab: &Lab, name: &str, args: &[&str], stdin: &str) -> Said {
    let file = lab.path("ned.toml");
    let mut command = command(name, args);
    command.env("NED_CONFIG", file).current_dir(lab.root());
    finished(command, stdin).await
}

fn command(name: &str, args: &[&str]) -> tokio::process::Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test is a program"
    )]
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_nas_event_daemon"));
    command
        .arg0(name)
        .args(args)
        .env_remove("NED_CONFIG")
        .env_remove("NED_LOG")
        .env_remove("NED_OUTPUT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A program that is not ours: one that reads what ours prints, or a tool of the database's.
fn judge(program: &str, args: &[&str]) -> tokio::process::Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "an independent judge is a program of its own"
    )]
    let mut command = tokio::process::Command::new(program);
    command
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .env("MANPAGER", "cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn finished(mut command: tokio::process::Command, stdin: &str) -> Said {
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A command that reads nothing may have ended already.
    let _ = tokio::io::AsyncWriteExt::write_all(&mut pipe, stdin.as_bytes()).await;
    drop(pipe);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("the command does not end")
        .unwrap();
    Said {
        code: output.status.code().expect("ended by a signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
