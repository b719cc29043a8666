//! `scripts/test` on a machine that lacks everything: it names what is missing and fails, starts
//! nothing, installs nothing that it was not asked to.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step fails the test"
)]

use std::path::Path;
use std::process::{Command, Output};

/// What every machine has.
const TOOLS: &[&str] = &[
    "bash",
    "cat",
    "cut",
    "dirname",
    "env",
    "grep",
    "id",
    "mktemp",
    "printf",
    "readlink",
    "rm",
    "rmdir",
    "sha256sum",
    "sleep",
    "sort",
    "tail",
];

/// Runs it with a PATH that holds `TOOLS` and nothing else.
fn run(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    for tool in TOOLS {
        let mut from = ["/usr/bin", "/bin"]
            .iter()
            .map(|place| Path::new(place).join(tool));
        let from = from.find(|path| path.exists()).expect(tool);
        std::os::unix::fs::symlink(from, dir.path().join(tool)).unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    #[expect(
        clippy::disallowed_methods,
        reason = "the script under test is a program"
    )]
    let mut command = Command::new(dir.path().join("bash"));
    command
        .arg(root.join("scripts/test"))
        .args(args)
        .env_clear()
        .env("PATH", dir.path())
        .env("TMPDIR", dir.path())
        .output()
        .unwrap()
}

#[test]
fn what_is_missing_is_named_and_nothing_is_started() {
    for args in [&[][..], &["--install"]] {
        let said = run(args);
        let (out, err) = (
            String::from_utf8(said.stdout).unwrap(),
            String::from_utf8(said.stderr).unwrap(),
        );
        assert_eq!(said.status.code(), Some(1), "{args:?}: {out}{err}");
        assert!(err.contains("this machine lacks:"), "{err}");
        for package in ["build-essential", "perl", "python3", "nodejs", "curl"] {
            let line = format!("package {package} (apt-get install {package})");
            assert!(err.contains(&line), "{line} is not in {err}");
        }
        assert!(err.contains("cargo: the Rust toolchain"), "{err}");
        assert!(!out.contains("starting"), "{out}");
        assert!(!out.contains("installing"), "{out}");
        let hint = match args {
            [] => "scripts/test --install",
            _ => "It could not be installed from here",
        };
        assert!(err.contains(hint), "{err}");
    }
}

#[test]
fn the_usage_needs_nothing() {
    let said = run(&["--help"]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert!(
        String::from_utf8(said.stdout)
            .unwrap()
            .starts_with("usage: scripts/test")
    );
}
