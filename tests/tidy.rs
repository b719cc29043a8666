//! The shape of the source tree, kept by a test: who may import whom, which file owns which
//! power, how files look. Every rule is a table at the top and a function of (path, text);
//! every function has a negative control below that plants what it must find.
//!
//! To change the architecture, change a table here first, and say why in the same commit.

#[path = "tidy/planted.rs"]
mod planted;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/waits.rs"]
mod waits;

use std::path::{Path, PathBuf};

use source::{Source, named_paths};

/// Top module under `src/` → top modules that it may name. `ALL` = the wiring and the tools.
/// Steps of the pipeline never import each other sideways: they meet in `store` and `daemon`.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    // words
    ("clock", &[]),
    ("shell", &[]),
    ("nas", &[]),
    ("account", &["nas", "event"]),
    ("config", &["nas"]),
    ("event", &["nas"]),
    ("attempt", &["clock", "event", "nas"]),
    // the ground
    ("logs", &["attempt", "clock", "event", "nas", "shell"]),
    (
        "store",
        &["account", "attempt", "clock", "config", "event", "nas"],
    ),
    // the pipeline
    // The logs are shown, never written, by the doors.
    (
        "intake",
        &["clock", "config", "event", "logs", "nas", "store"],
    ),
    ("bridge", &["attempt", "config", "event", "store"]),
    // The guard settles what it held (attempt: the result word) and is told how strict it is.
    (
        "expand",
        &[
            "account", "attempt", "clock", "config", "event", "nas", "store",
        ],
    ),
    (
        "dispatch",
        &[
            "attempt", "clock", "config", "event", "logs", "nas", "scheme", "store",
        ],
    ),
    (
        "scheme",
        &[
            "attempt", "clock", "config", "driver", "event", "nas", "shell",
        ],
    ),
    ("driver", &["attempt", "clock", "nas", "shell"]),
    // devices for tests and the demo
    ("sim", &["clock", "driver", "event", "nas", "shell"]),
    // the process
    ("daemon", ALL),
    ("cli", ALL),
];

/// May import everything.
const ALL: &[&str] = &["*"];

/// Allowed modules of which a part is off limits: (importer, path, why).
const OFF_LIMITS: &[(&str, &str, &str)] = &[
    (
        "dispatch",
        "scheme::native",
        "dispatch knows the trait Execute only, so that a satellite can stand in",
    ),
    (
        "dispatch",
        "scheme::session",
        "dispatch knows the trait Execute only, so that a satellite can stand in",
    ),
    (
        "dispatch",
        "scheme::shim",
        "dispatch knows the trait Execute only, so that a satellite can stand in",
    ),
    (
        "sim",
        "driver::sessions",
        "a simulator shares the codec with the driver, not its sessions",
    ),
];

/// Where a needle is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// Code without comments, texts and tests.
    Code,
    /// Text literals outside tests that read like SQL.
    Sql,
}

/// One owner per power: outside `owners` (path prefixes) the needles must not occur.
struct Power {
    name: &'static str,
    look_in: Where,
    needles: &'static [&'static str],
    owners: &'static [&'static str],
}

const POWERS: &[Power] = &[
    Power {
        name: "SQL text",
        look_in: Where::Sql,
        needles: &[],
        // The bridge speaks the SQL of stacks that are not ours.
        owners: &["src/store/", "src/cli/sqlexec", "src/bridge/"],
    },
    Power {
        name: "starting programs",
        look_in: Where::Code,
        needles: &["Command::new("],
        owners: &["src/scheme/", "src/bridge/isql.rs"],
    },
    Power {
        name: "ending the process",
        look_in: Where::Code,
        needles: &["process::exit", "process::abort"],
        owners: &["src/main.rs"],
    },
    Power {
        name: "signals",
        look_in: Where::Code,
        needles: &["tokio::signal", "sys::signal", "signal::unix"],
        owners: &[
            "src/daemon/shutdown.rs",
            "src/scheme/shim",
            "src/scheme/reap",
            "src/sim/",
        ],
    },
    Power {
        name: "device bytes",
        look_in: Where::Code,
        needles: &["TcpStream::connect", "UdpSocket::bind"],
        owners: &["src/driver/", "src/sim/"],
    },
    Power {
        name: "appending to files",
        look_in: Where::Code,
        needles: &[".append(true)"],
        owners: &["src/logs/files", "src/sim/"],
    },
    Power {
        name: "reading the clock",
        look_in: Where::Code,
        needles: &["SystemTime::now", "Instant::now", "Utc::now", "Local::now"],
        owners: &["src/clock.rs"],
    },
];

/// Needles that must not occur below a path: (path prefix, needle, the form that is fine, why).
const BANNED: &[(&str, &str, &str, &str)] = &[
    ("src/store/sqlite", ".begin()", "writer.begin()", DEFERRED),
    ("src/store/sqlite", "Connection::begin(", "", DEFERRED),
    ("src/store/sqlite", "Acquire::begin(", "", DEFERRED),
];

/// Measured: 3,504 of 4,000 such transactions failed under load, whatever the busy timeout.
const DEFERRED: &str = "a deferred transaction fails with 'locked' at once; write through the one \
                        writer, whose begin() says BEGIN IMMEDIATE";

/// Functions that compare with what only the holder of a secret can have computed: (file, function,
/// comparisons). `==` tells by its time how much of a forgery was right.
const CONSTANT_TIME: &[(&str, &str, usize)] = &[("src/driver/radius/packet.rs", "verify", 2)];

/// Names that say nothing about the field.
const EMPTY_NAMES: &[&str] = &[
    "utils",
    "util",
    "common",
    "helpers",
    "helper",
    "manager",
    "service",
    "handler",
    "processor",
    "base",
    "misc",
];

/// A file that does not fit on a few screens has two subjects.
const LINES_MAX: usize = 600;
/// A shorter file belongs into its neighbour.
const LINES_MIN: usize = 60;
/// Short by nature, whatever folder they are in.
const SHORT_NAMES: &[&str] = &["main.rs", "lib.rs", "mod.rs"];
/// Short for a reason of their own.
const SHORT: &[(&str, &str)] = &[
    ("src/clock.rs", "the only reader of clocks; two functions"),
    (
        "src/shell.rs",
        "one quoting rule, used by logs and drivers alike",
    ),
    (
        "src/cli/waiting.rs",
        "what four verbs say of waiting; the sentence itself is the API's",
    ),
    ("src/cli/run.rs", "one verb, which is the daemon itself"),
    ("src/cli/sim.rs", "one noun; the simulators are in src/sim"),
];
/// Folders below `src/`.
const FOLDERS_MAX: usize = 2;

// -- rules ----------------------------------------------------------------------------------

type Complaints = Vec<String>;

/// Each rule that judges one file by itself.
const RULES: &[fn(&str, &str) -> Complaints] = &[
    imports,
    looks,
    size,
    place,
    names,
    powers,
    banned,
    immediate,
    constant_time,
];

fn imports(path: &str, text: &str) -> Complaints {
    let Some(module) = top_module(path) else {
        return Vec::new(); // lib.rs and main.rs are above the modules
    };
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
        return vec![format!(
            "{path}: module '{module}' is not in the import table of tests/tidy.rs"
        )];
    };
    let mut found = Vec::new();
    for (line, name) in named_paths(path, &Source::read(text), in_table) {
        let other = name.split("::").next().unwrap_or_default();
        let at = format!("{path}:{line}");
        if other == module {
            continue;
        }
        if !in_table(other) {
            found.push(format!(
                "{at}: crate::{name} names no module of the import table"
            ));
        } else if *allowed != ALL && !allowed.contains(&other) {
            found.push(format!("{at}: {module} may not import {other}"));
        }
        for (_, off, why) in OFF_LIMITS.iter().filter(|(who, ..)| *who == module) {
            if name == *off || name.starts_with(&format!("{off}::")) {
                found.push(format!("{at}: {module} may not import {off}: {why}"));
            }
        }
    }
    found
}

fn looks(path: &str, text: &str) -> Complaints {
    if text.starts_with("//!") {
        return Vec::new();
    }
    vec![format!(
        "{path}: does not start with //! (what it is, and why)"
    )]
}

fn size(path: &str, text: &str) -> Complaints {
    let lines = text.lines().count();
    if lines > LINES_MAX {
        return vec![format!(
            "{path}: {lines} lines, at most {LINES_MAX}: it has two subjects"
        )];
    }
    let file = path.rsplit('/').next().unwrap_or_default();
    let excused = SHORT_NAMES.contains(&file) || SHORT.iter().any(|(short, _)| *short == path);
    // Documentation alone holds the place of a file that is not written yet.
    let is_empty = || Source::read(text).code.trim().is_empty();
    if lines < LINES_MIN && !excused && !is_empty() {
        return vec![format!(
            "{path}: {lines} lines, at least {LINES_MIN} (or a reason in SHORT)"
        )];
    }
    Vec::new()
}

fn place(path: &str, _: &str) -> Complaints {
    let folders = path.split('/').count().saturating_sub(2); // without src and the file
    if folders > FOLDERS_MAX {
        return vec![format!(
            "{path}: {folders} folders below src, at most {FOLDERS_MAX}"
        )];
    }
    Vec::new()
}

fn names(path: &str, text: &str) -> Complaints {
    let mut found = Vec::new();
    for part in path.split('/') {
        let stem = part.strip_suffix(".rs").unwrap_or(part);
        if EMPTY_NAMES.contains(&stem) {
            found.push(format!(
                "{path}: '{stem}' says nothing; use a word of the field"
            ));
        }
    }
    for (line, text) in Source::read(text).lines() {
        let mut words = text
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|w| !w.is_empty());
        if words.any(|w| w == "mod")
            && let Some(name) = words.next()
            && EMPTY_NAMES.contains(&name)
        {
            found.push(format!(
                "{path}:{line}: module '{name}' says nothing; use a word of the field"
            ));
        }
    }
    found
}

fn powers(path: &str, text: &str) -> Complaints {
    let source = Source::read(text);
    let mut found = Vec::new();
    for power in POWERS {
        if is_test_file(path) || power.owners.iter().any(|owner| path.starts_with(owner)) {
            continue;
        }
        let lines: Vec<usize> = match power.look_in {
            Where::Code => source
                .lines()
                .filter(|(_, code)| power.needles.iter().any(|needle| code.contains(needle)))
                .map(|(line, _)| line)
                .collect(),
            Where::Sql => source
                .texts
                .iter()
                .filter(|t| reads_like_sql(&t.text))
                .map(|t| t.line)
                .collect(),
        };
        for line in lines {
            found.push(format!(
                "{path}:{line}: {} belongs to {}",
                power.name,
                power.owners.join(", ")
            ));
        }
    }
    found
}

fn banned(path: &str, text: &str) -> Complaints {
    let mut found = Vec::new();
    for (_, needle, fine, why) in BANNED.iter().filter(|(below, ..)| path.starts_with(below)) {
        let source = Source::read(text);
        for (line, code) in source.lines() {
            let rest = if fine.is_empty() {
                code.to_owned()
            } else {
                code.replace(fine, "")
            };
            if rest.contains(needle) {
                found.push(format!("{path}:{line}: {needle} is banned here: {why}"));
            }
        }
    }
    found
}

/// The writer of SQLite takes the write lock when it begins, wherever a transaction begins.
fn immediate(path: &str, text: &str) -> Complaints {
    if !path.starts_with("src/store/sqlite") {
        return Vec::new();
    }
    let source = Source::read(text);
    let begun = source.code.matches("begin_with(").count();
    let said = source
        .texts
        .iter()
        .filter(|t| t.text == "BEGIN IMMEDIATE")
        .count();
    if begun > said {
        return vec![format!(
            "{path}: begin_with without \"BEGIN IMMEDIATE\": {DEFERRED}"
        )];
    }
    Vec::new()
}

/// Each comparison of `CONSTANT_TIME` is one by `ct_eq`, and none is by an operator.
fn constant_time(path: &str, text: &str) -> Complaints {
    let mut found = Vec::new();
    for (_, function, wanted) in CONSTANT_TIME.iter().filter(|(file, ..)| *file == path) {
        let code = Source::read(text).code;
        let body = code
            .split_once(&format!("fn {function}("))
            .map(|(_, rest)| rest.split("\n    }\n").next().unwrap_or_default());
        let Some(body) = body else {
            found.push(format!(
                "{path}: fn {function} of CONSTANT_TIME is not there"
            ));
            continue;
        };
        let there = body.matches(".ct_eq(").count();
        let other = [
            "==",
            "!=",
            ".eq(",
            ".ne(",
            ".cmp(",
            "matches!",
            "starts_with",
        ];
        let other: Vec<_> = other.iter().filter(|word| body.contains(**word)).collect();
        if there != *wanted || !other.is_empty() {
            found.push(format!(
                "{path}: fn {function} compares {there} times by ct_eq, {wanted} expected, and by \
                 {other:?}, none expected: how long it takes would tell how to forge"
            ));
        }
    }
    found
}

/// The module right below `src/`; none for `lib.rs` and `main.rs`.
fn top_module(path: &str) -> Option<&str> {
    let first = path.strip_prefix("src/")?.split('/').next()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (!is_test_file(path) && !matches!(module, "lib" | "main")).then_some(module)
}

fn in_table(module: &str) -> bool {
    MAY_IMPORT.iter().any(|(known, _)| *known == module)
}

/// `<step>/tests.rs`, `<step>/<file>_test.rs` and `<step>/tests/…` are compiled for tests only.
fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_test.rs") || path.contains("/tests/")
}

/// A statement, not a sentence that happens to hold the word.
fn reads_like_sql(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .collect();
    // `select(` is a filter of templates, and a call in other languages.
    let begins = |word: &str| {
        let rest = text.trim_start().strip_prefix(word);
        rest.is_some_and(|rest| rest.starts_with(char::is_whitespace))
    };
    let pair = |a: &str, b: &str| words.windows(2).any(|two| two == [a, b]);
    pair("insert", "into")
        || pair("delete", "from")
        || text.contains("(select ")
        || begins("select")
        || (begins("update") && words.contains(&"set"))
}

// -- the tree -------------------------------------------------------------------------------

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}

#[test]
fn the_tree_is_tidy() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files)?;
    assert!(
        files.len() > 20,
        "only {} files found: is this the right place?",
        files.len()
    );
    let mut found = Vec::new();
    for file in files {
        let path = file
            .strip_prefix(root)
            .unwrap_or(&file)
            .to_string_lossy()
            .replace('\\', "/");
        let text = std::fs::read_to_string(&file)?;
        found.extend(RULES.iter().flat_map(|rule| rule(&path, &text)));
    }
    for (path, _) in SHORT {
        if !root.join(path).exists() {
            found.push(format!(
                "{path}: in SHORT of tests/tidy.rs, but there is no such file"
            ));
        }
    }
    assert!(
        found.is_empty(),
        "{} complaints\n{}",
        found.len(),
        found.join("\n")
    );
    Ok(())
}
