//! `scripts/test` on a machine that lacks everything: it names what is missing and fails, starts
//! nothing, installs nothing that it was not asked to. And no test passes because a peer is not
//! there: none is ignored, none goes home early.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step fails the test"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nas_event_daemon::clock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

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

/// The packages with what drivers and schemes are proved against, programs that were not written
/// here: without one of them a run must not begin.
const PEERS: &[&str] = &[
    "bsdutils",
    "busybox-static",
    "firebird3.0-server",
    "firebird3.0-utils",
    "freeradius",
    "freeradius-utils",
    "frr",
    "hostapd",
    "inetutils-telnetd",
    "iproute2",
    "iputils-ping",
    "libfaketime",
    "logrotate",
    "mariadb-server",
    "nftables",
    "nodejs",
    "openssh-client",
    "openssh-server",
    "passwd",
    "procps",
    "prometheus",
    "python3",
    "python3-pip",
    "python3-yaml",
    "shellcheck",
    "socat",
    "sqlite3",
    "strace",
    "systemd",
    "util-linux",
    "wpasupplicant",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs it with a PATH that holds `TOOLS` and nothing else.
fn run(args: &[&str]) -> Output {
    run_script(&root().join("scripts/test"), args)
}

fn run_script(script: &Path, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    for tool in TOOLS {
        let mut from = ["/usr/bin", "/bin"]
            .iter()
            .map(|place| Path::new(place).join(tool));
        let from = from.find(|path| path.exists()).expect(tool);
        std::os::unix::fs::symlink(from, dir.path().join(tool)).unwrap();
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the script under test is a program"
    )]
    let mut command = Command::new(dir.path().join("bash"));
    command
        .arg(script)
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

/// This in place of `scripts/test`, beside all other scripts.
fn beside_the_others(script: &str) -> (TempDir, PathBuf) {
    let dir = open_dir();
    let scripts = dir.path().join("scripts");
    std::fs::create_dir(&scripts).unwrap();
    for file in std::fs::read_dir(root().join("scripts")).unwrap() {
        let file = file.unwrap();
        if file.file_name() != "test" {
            std::os::unix::fs::symlink(file.path(), scripts.join(file.file_name())).unwrap();
        }
    }
    let path = scripts.join("test");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

/// Those of `PEERS` that this `scripts/test` would not miss on a machine without them. Some are
/// looked for by their path, so that such a machine is one where these paths lead nowhere.
fn not_missed(script: &str) -> Vec<&'static str> {
    let bare = script
        .replace("/usr/", "/nowhere/")
        .replace(":/sbin", ":/nowhere");
    let (_dir, script) = beside_the_others(&bare);
    let said = run_script(&script, &[]);
    let err = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(1), "{err}");
    assert!(
        err.contains("clients of others (scripts/install-peers"),
        "{err}"
    );
    let missed = |peer: &&&str| {
        let line = format!("  package {peer} (apt-get install {peer})");
        err.lines().any(|said| said == line)
    };
    PEERS.iter().filter(|peer| !missed(peer)).copied().collect()
}

#[test]
fn a_missing_peer_fails_the_run() {
    let script = std::fs::read_to_string(root().join("scripts/test")).unwrap();
    assert_eq!(
        not_missed(&script),
        [""; 0],
        "missing_packages must look for them"
    );
    // Each by itself: whoever takes a line out of the script is told.
    for peer in ["freeradius", "openssh-server"] {
        let ending = format!("|| echo {peer}");
        let kept: Vec<_> = script
            .lines()
            .filter(|line| !line.ends_with(&ending))
            .collect();
        assert_eq!(not_missed(&kept.join("\n")), [peer]);
    }
}

/// Lines after a question for a peer in which its answer must have been dealt with.
const AFTER: usize = 5;

/// Where `text` would let a test pass that has not run: `path:line: what`.
fn passes_without_its_peer(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let at = format!("{path}:{}", n + 1);
        let begin = line.trim_start();
        if begin.starts_with("//") {
            continue;
        }
        if begin.starts_with(concat!("#[", "ignore")) || begin.contains(concat!(", ", "ignore")) {
            found.push(format!("{at}: an ignored test"));
        }
        let until = lines.len().min(n + AFTER);
        let next = lines.get(n..until).unwrap_or_default().join("\n");
        let asked = line.contains("var") && line.contains(concat!("\"NED_", "TEST_"));
        let fails = ["expect(", "panic!(", "unwrap()", "assert!("];
        let skips = begin.starts_with("if ") || !fails.iter().any(|word| next.contains(word));
        if asked && skips {
            found.push(format!("{at}: does not fail without it"));
        }
        let looked = [concat!(".exi", "sts()"), concat!(".is_", "file()")];
        let looked = looked.iter().any(|word| line.contains(word));
        if (asked || looked) && next.contains("return") {
            found.push(format!("{at}: goes home without it"));
        }
    }
    found
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_test_passes_without_its_peer() {
    let mut files = Vec::new();
    rust_files(&root().join("tests"), &mut files);
    assert!(files.len() > 50, "{files:?}");
    let mut found = Vec::new();
    for file in files {
        let path = file.strip_prefix(root()).unwrap().display().to_string();
        let text = std::fs::read_to_string(&file).unwrap();
        found.extend(passes_without_its_peer(&path, &text));
    }
    // What the program does without a file is its own affair; its tests are ignored as little.
    let mut own = Vec::new();
    rust_files(&root().join("src"), &mut own);
    for file in own {
        let path = file.strip_prefix(root()).unwrap().display().to_string();
        let all = passes_without_its_peer(&path, &std::fs::read_to_string(&file).unwrap());
        found.extend(
            all.into_iter()
                .filter(|what| what.ends_with("an ignored test")),
        );
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    // A filter of the runner's own would do the same.
    for place in [".config/nextest.toml", ".cargo/config.toml"] {
        let text = std::fs::read_to_string(root().join(place)).unwrap_or_default();
        assert!(!text.contains("default-filter"), "{place}");
    }
}

#[test]
fn a_test_that_would_pass_without_its_peer_is_found() {
    for (planted, what) in [
        (
            concat!("#[test]\n#[", "ignore = \"no sshd\"]\nfn a() {}\n"),
            ":2: an ignored test",
        ),
        (
            concat!("#[cfg_attr(not(ssh), ", "ignore)]\nfn a() {}\n"),
            ":1: an ignored test",
        ),
        (
            concat!(
                "let Ok(dir) = env::var(\"NED_",
                "TEST_PEERS\") else {\n    return;\n};\n"
            ),
            ":1: goes home",
        ),
        (
            concat!(
                "if let Ok(pg) = env::var(\"NED_",
                "TEST_PG\") {\n    assert!(is(pg));\n}\n"
            ),
            ":1: does not fail",
        ),
        (
            concat!(
                "if !Path::new(\"/usr/sbin/sshd\").ex",
                "ists() {\n    return;\n}\n"
            ),
            ":1: goes home",
        ),
    ] {
        let found = passes_without_its_peer("tests/planted.rs", planted).join("\n");
        assert!(
            found.contains(&format!("tests/planted.rs{what}")),
            "{planted}{found}"
        );
    }
    let fine = concat!(
        "// Nothing is ignored, ",
        "ignore\nlet pg = std::env::var(\"NED_",
        "TEST_PG\")\n",
        "    .expect(\"run the tests by scripts/test\");\n"
    );
    assert_eq!(passes_without_its_peer("tests/fine.rs", fine), [""; 0]);
}

/// The stages of `.ci/run` in their order, each with what it must call.
const STAGES: &[(&str, &str)] = &[
    ("tests", "scripts/test --install --retries 1 "),
    ("fuzz", "stage fuzz scripts/fuzz -t "),
    ("form", "stage form cargo fmt --check"),
    (
        "lints",
        "stage lints cargo clippy --all-targets --locked -- -D warnings",
    ),
    (
        "licences",
        "    cargo deny --offline check licenses bans sources",
    ),
    (
        "release",
        "        cargo build --release --locked --bin nas_event_daemon --example bench ",
    ),
    ("demo", "./nas_event_daemon demo --once"),
    ("sustained", "/release/examples/bench\" sustained"),
    ("package", "scripts/package --install --no-build"),
];

/// What this `.ci/run` leaves out.
fn left_out(text: &str) -> Vec<&'static str> {
    let stages: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("stage ")?.split(' ').next())
        .collect();
    let mut at = 0;
    let mut missing = Vec::new();
    for (name, call) in STAGES {
        let place = stages.iter().skip(at).position(|stage| stage == name);
        match place {
            Some(steps) if text.contains(call) => at += steps + 1,
            _ => missing.push(*name),
        }
    }
    missing
}

#[test]
fn the_whole_check_leaves_nothing_out() {
    let text = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    assert_eq!(left_out(&text), [""; 0]);
    assert!(
        text.contains("\nset -euo pipefail\n"),
        "a stage that fails ends it"
    );
    assert!(
        text.contains("\nbegin_release\nstage tests ")
            && text.contains("    wait \"$release_build\" || result=$?\n"),
        "the build of the release is begun, and what became of it is asked"
    );
    for (name, call) in STAGES {
        // Neither the stage nor what it calls may go.
        let stage = format!("stage {name} ");
        for gone in [stage.as_str(), call] {
            let kept: Vec<&str> = text.lines().filter(|line| !line.contains(gone)).collect();
            assert_eq!(left_out(&kept.join("\n")), [*name], "without {gone:?}");
        }
    }
}

/// Processes with one of these places in their command line.
fn at_work_in(places: &[&Path]) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let lines = processes.filter_map(|process| {
        let line = std::fs::read(process.unwrap().path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    let place = |line: &String| {
        places
            .iter()
            .any(|place| line.contains(place.to_str().unwrap()))
    };
    lines.filter(place).collect()
}

/// A directory that the server's user may enter.
fn open_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Waits for a condition, for two minutes at most.
fn waited_for(mut holds: impl FnMut() -> bool) -> bool {
    let began = clock::tick_ms();
    while !holds() {
        if clock::tick_ms() - began > 120_000 {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A run of `scripts/test` whose tests do not end by themselves; it has ended when this is dropped.
struct Run {
    run: Child,
    /// Where it puts what it needs.
    place: TempDir,
    /// What stands for the tests: it leaves `cargo.said` when they run.
    bin: TempDir,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.ended();
    }
}

impl Run {
    fn start(script: &Path) -> Self {
        let (place, bin) = (open_dir(), open_dir());
        let cargo = bin.path().join("cargo");
        let stub = "#!/bin/sh\n[ \"$*\" = 'nextest --version' ] && exit\n\
            echo \"$NED_TEST_PG\" > \"$0.said\"\nexec tail -f \"$0\"\n";
        std::fs::write(&cargo, stub).unwrap();
        std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!(
            "{}:{}",
            bin.path().display(),
            std::env::var("PATH").unwrap()
        );
        let peers = std::env::var("NED_TEST_PEERS").expect("run the tests by scripts/test");
        #[expect(
            clippy::disallowed_methods,
            reason = "the script under test is a program"
        )]
        let mut command = Command::new(script);
        let run = command
            .env("PATH", path)
            .env("TMPDIR", place.path())
            .env("CARGO_TARGET_DIR", Path::new(&peers).parent().unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { run, place, bin }
    }

    fn until_its_tests_run(&mut self) {
        let said = self.bin.path().join("cargo.said");
        let begun = waited_for(|| said.exists() || self.run.try_wait().unwrap().is_some());
        assert!(begun && said.exists(), "it does not come to the tests");
    }

    fn at_work(&self) -> Vec<String> {
        at_work_in(&[self.place.path(), self.bin.path()])
    }

    fn left(&self) -> usize {
        std::fs::read_dir(self.place.path()).unwrap().count()
    }

    /// Asks it to end, unless it has, and waits until it has cleaned up.
    fn ended(&mut self) -> std::io::Result<Option<i32>> {
        if self.run.try_wait()?.is_none() {
            kill(Pid::from_raw(self.run.id().cast_signed()), Signal::SIGTERM)?;
        }
        Ok(self.run.wait()?.code())
    }
}

#[test]
fn a_run_that_is_ended_leaves_nothing_behind() {
    let mut run = Run::start(&root().join("scripts/test"));
    run.until_its_tests_run();
    let busy = run.at_work();
    for program in ["postgres -D ", "tail -f "] {
        assert!(busy.iter().any(|line| line.contains(program)), "{busy:#?}");
    }
    assert_eq!(run.left(), 1, "the data of the server");
    assert_eq!(run.ended().unwrap(), Some(143));
    assert_eq!(run.at_work(), [""; 0]);
    assert_eq!(run.left(), 0, "in {}", run.place.path().display());
}

/// A signal between the start of a stage and the look at its number ends that stage, too.
#[test]
fn a_run_that_is_ended_as_a_stage_begins_leaves_nothing_behind() {
    let script = std::fs::read_to_string(root().join("scripts/test")).unwrap();
    let begin = "    setsid \"$@\" &\n";
    assert!(script.contains(begin), "where does a stage begin?");
    let ended = format!(
        "{begin}    until [[ -e $(command -v cargo).said ]]; do sleep 0.02; done; kill -TERM $$\n"
    );
    let (dir, script) = beside_the_others(&script.replace(begin, &ended));
    let mut run = Run::start(&script);
    run.until_its_tests_run();
    assert_eq!(run.run.wait().unwrap().code(), Some(143));
    assert_eq!(run.at_work(), [""; 0]);
    assert_eq!(run.left(), 0, "in {}", run.place.path().display());
    drop(dir);
}
