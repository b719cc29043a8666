//! What every shipped scheme must have: a README with its parts, examples, a recording, and tests
//! of a second run and of a change of address. A scheme that is added without them is found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nas_event_daemon::event::CATALOGUE;
use nas_event_daemon::scheme::native::NativeScheme;

/// A test: its file and its name.
type Test = (&'static str, &'static str);

/// Where a scheme is run a second time, and where an account gets another address.
struct Proof {
    scheme: &'static str,
    twice: Test,
    moved: Test,
}

const fn proof(scheme: &'static str, twice: Test, moved: Test) -> Proof {
    Proof {
        scheme,
        twice,
        moved,
    }
}

const RADIUS: &str = "tests/radius/schemes.rs";
const RADIUS_TWICE: Test = (RADIUS, "what_is_said_twice_changes_nothing_the_second_time");
const RADIUS_MOVED: Test = (RADIUS, "a_change_of_address_leaves_nothing_of_the_old_one");
/// Acting, not as shipped, against a stand-in for `ssh`.
const SESSION: Test = (
    "tests/session/files.rs",
    "the_shipped_example_repeats_without_harm_and_changes_the_address",
);
/// Record sends nothing, so nothing of an old address can be left: its examples run twice.
const EXAMPLES: Test = (
    "tests/cli/schemes.rs",
    "shipped_schemes_pass_their_own_examples",
);

const PROOFS: &[Proof] = &[
    proof("Cisco-ISG", RADIUS_TWICE, RADIUS_MOVED),
    proof("Example-Session", SESSION, SESSION),
    proof(
        "FRR-Vty",
        ("tests/telnet/frr.rs", "an_event_changes_a_route"),
        ("tests/telnet/frr.rs", "an_event_changes_a_route"),
    ),
    proof(
        "HTTP-Webhook",
        (
            "tests/http/webhook.rs",
            "every_command_of_the_catalogue_is_one_post_and_a_repetition_changes_nothing",
        ),
        (
            "tests/http/webhook.rs",
            "a_change_of_address_is_told_with_old_and_new_data",
        ),
    ),
    proof("Juniper-MX", RADIUS_TWICE, RADIUS_MOVED),
    proof(
        "Linux-SSH",
        (
            "tests/ssh/linux_nas.rs",
            "every_event_turns_into_the_state_that_it_should",
        ),
        (
            "tests/ssh/linux_nas.rs",
            "a_change_of_address_leaves_nothing_old_and_diagnostics_answer",
        ),
    ),
    proof("Mikrotik-CoA", RADIUS_TWICE, RADIUS_MOVED),
    proof(
        "Mikrotik-Hotspot",
        (
            "tests/hotspot.rs",
            "pairs_of_commands_undo_each_other_and_repeat_without_harm",
        ),
        (
            "tests/hotspot.rs",
            "a_change_of_address_and_mac_leaves_nothing_of_the_old_ones",
        ),
    ),
    proof(
        "Mikrotik-Simple",
        (
            "src/scheme/native/tests_simple.rs",
            "pairs_of_commands_undo_each_other_and_repeat_without_harm",
        ),
        (
            "src/scheme/native/tests_simple.rs",
            "a_change_of_address_leaves_nothing_of_the_old_one",
        ),
    ),
    proof("Record", EXAMPLES, EXAMPLES),
    proof("VasExperts-SKAT", RADIUS_TWICE, RADIUS_MOVED),
    proof(
        "XGE",
        RADIUS_TWICE,
        (RADIUS, "a_change_of_address_is_told_with_old_and_new_words"),
    ),
    proof("accel-ppp", RADIUS_TWICE, RADIUS_MOVED),
];

/// Parts of a README, each by one of its names.
const PARTS: &[(&str, &[&str])] = &[
    (
        "what it sends",
        &["## What it sends", "## What it keeps on the router"],
    ),
    (
        "what the NAS must have",
        &[
            "## What the NAS must have",
            "## What the router must have",
            "## What the router needs",
        ],
    ),
    ("its source", &["Source:", "Sources:"]),
    (
        "its proof",
        &["**Proof:**", "**Proved", "**Rendered only**"],
    ),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the scheme in `dir` lacks.
fn lacks(dir: &Path) -> Vec<String> {
    let name = dir.file_name().unwrap().to_str().unwrap();
    let mut lacks = Vec::new();
    let readme = std::fs::read_to_string(dir.join("README.md")).unwrap_or_default();
    for (part, names) in PARTS {
        if !names.iter().any(|name| readme.contains(name)) {
            lacks.push(format!("README.md does not tell {part}: one of {names:?}"));
        }
    }
    for cmd in CATALOGUE.iter().map(|(cmd, _)| *cmd) {
        if !cmds(dir).contains(cmd) && !readme.contains(&format!("`{cmd}`")) {
            lacks.push(format!("README.md does not say why {cmd} is left out"));
        }
    }
    let examples = std::fs::read_dir(dir.join("examples"))
        .into_iter()
        .flatten();
    if examples.count() == 0 {
        lacks.push("examples/*.json: what scheme test runs".to_owned());
    }
    // What it does at all is recorded.
    let recorded = root().join("tests/replay").join(format!("{name}.log"));
    if !recorded.exists() {
        lacks.push(format!("tests/replay/{name}.log"));
    }
    let Some(proof) = PROOFS.iter().find(|proof| proof.scheme == name) else {
        lacks.push("a line in PROOFS with its tests".to_owned());
        return lacks;
    };
    for (what, (file, test)) in [
        ("a second run", proof.twice),
        ("a change of address", proof.moved),
    ] {
        let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        if !text.contains(&format!("fn {test}("))
            || !(text.contains(name) || (file, test) == EXAMPLES)
        {
            lacks.push(format!("a test of {what}: no {test} with {name} in {file}"));
        }
    }
    lacks
}

fn cmds(dir: &Path) -> BTreeSet<String> {
    if let Ok(script) = std::fs::read_to_string(dir.join("bin/session")) {
        let functions = script.lines().filter_map(|line| line.split_once("()"));
        return functions.map(|(name, _)| name.to_owned()).collect();
    }
    let scheme = NativeScheme::load(dir);
    scheme.map_or_else(
        |_| BTreeSet::new(),
        |scheme| scheme.cmds().map(ToString::to_string).collect(),
    )
}

fn shipped() -> Vec<PathBuf> {
    let all = std::fs::read_dir(root().join("oss/core")).unwrap();
    let mut all: Vec<PathBuf> = all.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn every_shipped_scheme_is_told_shown_and_proved() {
    let mut wrong = Vec::new();
    for dir in shipped() {
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        wrong.extend(
            lacks(&dir)
                .into_iter()
                .map(|what| format!("{name}: {what}")),
        );
        if !dir.join("bin/session").exists() {
            let warnings = match NativeScheme::load(&dir) {
                Ok(scheme) => scheme.warnings().to_vec(),
                Err(findings) => findings,
            };
            wrong.extend(warnings.iter().map(ToString::to_string));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let names: Vec<_> = PROOFS.iter().map(|proof| proof.scheme).collect();
    let there: Vec<_> = shipped();
    let there: Vec<_> = there
        .iter()
        .map(|dir| dir.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names, there, "PROOFS and oss/core");
}

#[test]
fn a_scheme_that_lacks_them_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("Brand-New");
    std::fs::create_dir(&new).unwrap();
    let text =
        "driver = \"radius\"\n[[on.user_del]]\ndisconnect = { User-Name = \"{{ login }}\" }\n";
    std::fs::write(new.join("scheme.toml"), text).unwrap();
    let lacks = lacks(&new).join("\n");
    for (part, _) in PARTS {
        assert!(lacks.contains(&format!("does not tell {part}")), "{lacks}");
    }
    for part in [
        "why user_drop is left out",
        "examples/*.json",
        "tests/replay/Brand-New.log",
        "PROOFS",
    ] {
        assert!(lacks.contains(part), "{part}: {lacks}");
    }
    assert!(!lacks.contains("user_del"), "{lacks}");
}
