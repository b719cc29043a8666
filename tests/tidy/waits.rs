//! No test waits for a fixed time: it waits for a condition. Where a test sleeps nevertheless, it
//! is between two looks at a condition, within a device that it plays, or until the random moment
//! of a fault, or the wait itself is what is measured; each such place stands in a table here, with
//! what it is.

use std::path::Path;

use crate::rust_files;
use crate::source::Source;

/// What a sleep of a test may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// Between two looks at a condition, in a loop that ends with it or fails.
    Look,
    /// How slow a device is that the test plays.
    Device,
    /// The random moment of a fault, or how long it lasts.
    Fault,
    /// What the code under test counts or ends: a time.
    Measured,
}

/// (file, its sleeps in order). A new one is a reason to look for the condition first.
const SLEEPS: &[(&str, &[Is])] = &[
    ("src/driver/knock.rs", &[Is::Fault]),
    ("src/driver/leases.rs", &[Is::Look, Is::Look]),
    ("src/driver/sessions_test.rs", &[Is::Look]),
    ("src/driver/waits.rs", &[Is::Measured; 8]),
    ("tests/faults/database.rs", &[Is::Fault, Is::Fault]),
    ("tests/faults/dead.rs", &[Is::Device]),
    ("tests/faults/drivers.rs", &[Is::Fault, Is::Fault]),
    ("tests/faults/main.rs", &[Is::Look, Is::Fault]),
    ("tests/faults/resize.rs", &[Is::Look]),
    ("tests/faults/stops.rs", &[Is::Fault, Is::Fault, Is::Fault]),
    ("tests/http/rude.rs", &[Is::Device]),
    ("tests/lab/daemon.rs", &[Is::Look]),
    ("tests/lab/server.rs", &[Is::Look]),
    ("tests/mikrotik_rude.rs", &[Is::Device, Is::Look]),
    ("tests/radius/hostile.rs", &[Is::Look]),
    ("tests/scripts.rs", &[Is::Look]),
    ("tests/session/bench.rs", &[Is::Look]),
    ("tests/session_leaks.rs", &[Is::Look, Is::Look]),
    ("tests/ssh/rude.rs", &[Is::Device]),
    (
        "tests/telnet/rude.rs",
        &[Is::Device, Is::Device, Is::Device],
    ),
];

/// A look stands in a loop, which begins on a line before it that is indented less.
fn begins_a_loop(line: &str) -> bool {
    let begins = line.trim();
    begins.ends_with("loop {") || begins.starts_with("while ") || begins.starts_with("for ")
}

/// The lines of a file that are code of tests; the others are empty.
fn test_lines(path: &str, text: &str) -> Vec<(usize, String)> {
    // Some files of tests say that they are for tests only, and mean all that is in them.
    let whole = Source::read(&text.replace("#[cfg(test)]", ""));
    let mut lines: Vec<(usize, String)> = whole.lines().map(|(n, l)| (n, l.to_owned())).collect();
    if !path.starts_with("tests/") && !crate::is_test_file(path) {
        let shipped = Source::read(text);
        for ((_, line), (_, shipped)) in lines.iter_mut().zip(shipped.lines()) {
            if !shipped.trim().is_empty() {
                line.clear();
            }
        }
    }
    lines
}

/// What sleeps in this file, against the table.
fn waits(path: &str, text: &str) -> Vec<String> {
    let known = SLEEPS.iter().find(|(file, _)| *file == path);
    let known = known.map_or(&[][..], |(_, known)| known);
    if known.is_empty() && !text.contains("sleep") {
        return Vec::new();
    }
    let code = test_lines(path, text);
    let lines: Vec<(usize, &str)> = code.iter().map(|(n, line)| (*n, line.as_str())).collect();
    let sleeps = lines.iter().filter(|(_, code)| {
        let code = code.replace("sleep_until(", "sleep(");
        let called = code
            .split("sleep(")
            .next()
            .filter(|before| before.len() < code.len());
        called.is_some_and(|before| !before.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
    });
    let mut found = Vec::new();
    let mut number = 0;
    for (line, code) in sleeps {
        let is = known.get(number);
        number += 1;
        match is {
            None => found.push(format!(
                "{path}:{line}: a test waits for a condition, never for a time (SLEEPS of tests/tidy/waits.rs)"
            )),
            Some(Is::Look) if !in_a_loop(&lines, *line, code) => found.push(format!(
                "{path}:{line}: that is no look at a condition: there is no loop around it"
            )),
            Some(_) => {}
        }
    }
    if number < known.len() {
        found.push(format!(
            "{path}: {} sleeps in SLEEPS of tests/tidy/waits.rs, and {number} there",
            known.len()
        ));
    }
    found
}

/// Whether a line before this one, indented less, begins a loop, and none in between a function.
fn in_a_loop(lines: &[(usize, &str)], line: usize, code: &str) -> bool {
    let indent = |code: &str| code.len() - code.trim_start().len();
    let mut depth = indent(code);
    for (_, before) in lines.iter().take(line - 1).rev() {
        if before.trim().is_empty() || indent(before) >= depth {
            continue;
        }
        depth = indent(before);
        if begins_a_loop(before) {
            return true;
        }
        if before.contains("fn ") {
            return false;
        }
    }
    false
}

#[test]
fn no_test_waits_for_a_fixed_time() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("tests"), &mut files).unwrap();
    rust_files(&root.join("src"), &mut files).unwrap();
    let mut found = Vec::new();
    for file in files {
        let path = file.strip_prefix(root).unwrap().to_string_lossy();
        found.extend(waits(&path, &std::fs::read_to_string(&file).unwrap()));
    }
    for (path, _) in SLEEPS {
        if !root.join(path).exists() {
            found.push(format!("{path}: in SLEEPS, but there is no such file"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_sleep_that_is_no_look_is_found() {
    let sleep = "tokio::time::sleep(Duration::from_millis(100)).await;";
    let whole = |body: &str| format!("//! x\nasync fn f() {{\n    {body}\n}}\n");
    let looped = format!("while !ready() {{\n        {sleep}\n    }}");
    // Nowhere but in the table.
    for body in [
        sleep,
        &looped,
        "std::thread::sleep(A);",
        "time::sleep_until(x).await;",
    ] {
        let found = waits("tests/rest/sockets.rs", &whole(body));
        assert!(
            matches!(&found[..], [one] if one.contains("never for a time")),
            "{body}: {found:?}"
        );
    }
    // Where it may be a look, it is in a loop.
    let file = "tests/lab/server.rs";
    assert!(waits(file, &whole(&looped)).is_empty());
    let found = waits(file, &whole(sleep));
    assert!(
        matches!(&found[..], [one] if one.contains("no loop")),
        "{found:?}"
    );
    // One more than the table says, and one less.
    let twice = whole(&format!("{looped}\n    {sleep}"));
    assert_eq!(waits(file, &twice).len(), 1);
    assert_eq!(waits(file, "//! x\n").len(), 1);
    // In a file of the program its tests are meant, and nothing else.
    let part = |body: &str| {
        let tests = format!(
            "#[cfg(test)]\nmod tests {{\n    async fn g() {{\n        {body}\n    }}\n}}\n"
        );
        waits("src/store/keys.rs", &format!("{}{tests}", whole(sleep)))
    };
    assert!(part("").is_empty());
    let found = part(sleep);
    assert!(
        matches!(&found[..], [one] if one.starts_with("src/store/keys.rs:8: a test waits")),
        "{found:?}"
    );
    // Scripts, comments and other names are not meant.
    for fine in [
        "run(\"sleep 1\");",
        "// sleep(1)",
        "x.fallen_asleep(1);",
        "q(\"sleep(1)\");",
    ] {
        assert!(
            waits("tests/rest/sockets.rs", &whole(fine)).is_empty(),
            "{fine}"
        );
    }
}
