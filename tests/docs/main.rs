//! The shell blocks of the READMEs and of docs/ are run as they stand, in their order, as a
//! newcomer would type them: an empty home, a network of its own with a simulated MikroTik at the
//! address that the READMEs use. What builds or tests this project is not run again from within
//! its tests; that such a command, its stages and flags exist is checked.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed step fails the test"
)]

mod numbers;
mod scripts;
mod typed;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Before the blocks: commands of the reader's machine that mean something else here.
const PREAMBLE: &str = r#"
set -euo pipefail
ip link set lo up
ip address add 10.90.185.2/32 dev lo
# Where the package puts the daemon's sockets.
mount -t tmpfs none /run
ln -s ~/ned/run /run/nas_event_daemon
# Building and testing are the reader's; what is built is here already.
cargo() {
    case "$1 $*" in
    "install "*"--path ."*) ;;
    "run "*"-- demo") nas_event_daemon demo --once ;;
    *) echo "unexpected: cargo $*" >&2; return 1 ;;
    esac
}
scripts/test() { [[ -x $PWD/scripts/test && $* == --install ]]; }
systemctl() {
    case "$*" in
    "stop nas_event_daemon") kill "$(cat ~/ned/run/nas_event_daemon.pid)"
        while [[ -e /proc/$(cat ~/ned/run/nas_event_daemon.pid 2>/dev/null || echo none) ]]; do sleep 0.1; done ;;
    "start nas_event_daemon") nas_event_daemon run & wait_for_it ;;
    *) echo "unexpected: systemctl $*" >&2; return 1 ;;
    esac
}
wait_for_port() {
    for _ in $(seq 600); do
        if (: <"/dev/tcp/${2-127.0.0.1}/$1") 2>/dev/null; then return 0; fi
        sleep 0.1
    done
    echo "nobody listens on $1" >&2
    return 1
}
wait_for_it() {
    for _ in $(seq 600); do
        if nas_event_daemon health >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    echo "the daemon is not up" >&2
    return 1
}
nas_event_daemon sim mikrotik --allow-public --listen 10.90.185.2:8728 --login api --password secret >/dev/null &
wait_for_port 8728 10.90.185.2
"#;

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// First line and text of every block that begins with three backticks and `sh`.
fn blocks(page: &str) -> Vec<(usize, String)> {
    blocks_of(page, "```sh")
}

/// The same of another kind.
fn blocks_of(page: &str, kind: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, usize, String)> = None;
    for (number, line) in page.lines().enumerate() {
        let bare = line.trim_start();
        match &mut open {
            None if bare == kind => {
                open = Some((number + 2, line.len() - bare.len(), String::new()));
            }
            None => {}
            Some(_) if bare == "```" => {
                let (first, _, text) = open.take().unwrap();
                found.push((first, text));
            }
            Some((_, indent, text)) => {
                text.push_str(line.get(*indent..).unwrap_or_default());
                text.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// A script of the blocks of these pages; each says where it stands before it runs.
fn script(pages: &[&str]) -> String {
    let mut script = PREAMBLE.to_owned();
    for name in pages {
        for (line, text) in blocks(&page(name)) {
            script.push_str(&format!("echo '=== {name}:{line}'\n{text}"));
            // Who types reads the daemon's first lines before he goes on.
            if text.contains("nas_event_daemon run &") {
                script.push_str("wait_for_it\n");
            }
            if text.contains(" sim radius ") {
                script.push_str("wait_for_port 8800\n");
            }
        }
    }
    script.push_str("echo '=== end'\n");
    script
}

/// Runs a script in namespaces of its own, so that every process ends with it.
fn run(script: &str) -> (bool, String) {
    let home = tempfile::tempdir().unwrap();
    let bin = home.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_nas_event_daemon"));
    for name in [
        "nas_event_daemon",
        "send_radius_cmd",
        "send_mikrotik_cmd",
        "sqlexec",
    ] {
        std::os::unix::fs::symlink(binary, bin.join(name)).unwrap();
    }
    let file = home.path().join("typed.sh");
    std::fs::write(&file, script).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a newcomer's shell is a program")]
    let mut command = Command::new("timeout");
    let output = command
        .args([
            "--kill-after=5",
            "240",
            "unshare",
            "--map-root-user",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
        ])
        .args(["--mount-proc", "bash"])
        .arg(&file)
        .current_dir(root())
        .env_clear()
        .env("HOME", home.path())
        .env("LANG", "C.UTF-8")
        .env(
            "PATH",
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()),
        )
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("timeout or unshare is missing (scripts/test --install): {e}"));
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

fn typed(pages: &[&str]) -> String {
    let (fine, text) = run(&script(pages));
    assert!(fine && text.contains("=== end"), "{text}");
    text
}

#[test]
fn a_newcomer_can_follow_the_readme_and_the_docs() {
    let said = typed(&[
        "README.md",
        "docs/api.md",
        "docs/schemes.md",
        "docs/operate.md",
    ]);
    for expected in [
        "NAS state equals billing state",
        "result=observed",
        "send_mikrotik_cmd --nas 1 ",
        "logged in",
        "norm 300 ms",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }
    // The three schemes that docs/schemes.md builds are clean after each step, show what they
    // would send, and do on simulated devices what their examples say.
    let steps = page("docs/schemes.md")
        .matches("scheme lint Street-")
        .count();
    let clean = said
        .lines()
        .filter(|line| line.contains("/Street-") && line.ends_with(": ok"));
    assert!(steps > 8, "only {steps} steps are checked");
    assert_eq!(clean.count(), steps, "{said}");
    for rendered in [
        "redirect.json: ok, 4 events, not paid, asked about, paid, kicked",
        "redirect.json: ok, 6 events, a new speed takes the place of the old one",
        "redirect.json: ok, 5 events, both families at once",
        "/ip/firewall/address-list/add list=negbal address=10.88.0.15 comment=street_1424",
        "/queue/simple/add name=street_1424 target=10.88.0.15/32 max-limit=20000000/20000000",
        "send_radius_cmd --nas 1 disconnect Cisco-Account-Info=S10.88.0.15",
        "Cisco-AVPair=subscriber:service-name=L4REDIRECT",
        "'nft -f -' <<< 'add element inet street negbal4 { 10.88.0.15 }'",
        "classid 1:590 htb rate 20000kbit",
    ] {
        assert!(said.contains(rendered), "{rendered:?} is not in {said}");
    }
}

#[test]
fn a_newcomer_can_follow_the_russian_readme() {
    let said = typed(&["README.ru.md"]);
    assert!(said.contains("result=observed"), "{said}");
    // The same steps as in English: the blocks differ in their comments only.
    let code = |name: &str| -> Vec<String> {
        let bare = |line: &str| {
            line.split(" #")
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let all = blocks(&page(name))
            .into_iter()
            .flat_map(|(_, text)| text.lines().map(bare).collect::<Vec<_>>());
        all.filter(|line| {
            !line.is_empty() && !line.starts_with('#') && !line.contains("abonents (id, name)")
        })
        .collect()
    };
    assert_eq!(code("README.ru.md"), code("README.md"));
}

/// The prose says as much, too: as many points, rows and links in each section.
#[test]
fn the_russian_readme_is_as_full_as_the_english_one() {
    let english = fullness(&page("README.md"));
    let russian: Vec<_> = fullness(&page("README.ru.md"))
        .into_iter()
        // A glossary, which only the translation needs.
        .filter(|section| section.heading != "## Слова")
        .collect();
    assert!(english.len() > 3, "{english:?}");
    let all = |of: fn(&Section) -> usize| english.iter().map(of).sum::<usize>();
    assert!(
        all(|s| s.points) > 10 && all(|s| s.links) > 10,
        "{english:?}"
    );
    assert_eq!(unequal(&english, &russian), "");
    // A point, a row or a link that only one of them has is found.
    let russian = page("README.ru.md");
    let point = russian.lines().find(|line| line.starts_with("- ")).unwrap();
    for planted in [
        russian.replacen(point, "", 1),
        russian.replacen("](", "", 1),
        russian.replacen("\n## ", "\n| a | b |\n## ", 1),
    ] {
        let planted: Vec<_> = fullness(&planted)
            .into_iter()
            .filter(|section| section.heading != "## Слова")
            .collect();
        assert_ne!(unequal(&english, &planted), "");
    }
}

#[derive(Debug, Default)]
struct Section {
    heading: String,
    points: usize,
    rows: usize,
    links: usize,
}

/// What stands in each section, code left out.
fn fullness(page: &str) -> Vec<Section> {
    let (mut all, mut code) = (vec![Section::default()], false);
    for line in page.lines() {
        let bare = line.trim_start();
        if bare.starts_with("```") {
            code = !code;
        } else if line.starts_with('#') && !code {
            all.push(Section {
                heading: line.to_owned(),
                ..Section::default()
            });
        } else if let (Some(section), false) = (all.last_mut(), code) {
            let number = bare.split_once(". ").map_or("", |(number, _)| number);
            let numbered = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            section.points += usize::from(bare.starts_with("- ") || numbered);
            section.rows += usize::from(bare.starts_with('|'));
            section.links += line.matches("](").count();
        }
    }
    all
}

/// Sections that do not hold as much as their counterparts.
fn unequal(one: &[Section], other: &[Section]) -> String {
    let amounts = |s: &Section| {
        (
            s.heading.split(' ').next().map(str::to_owned),
            s.points,
            s.rows,
            s.links,
        )
    };
    let pairs = one.iter().zip(other);
    let unequal = pairs.filter(|(a, b)| amounts(a) != amounts(b));
    let mut said: Vec<String> = unequal.map(|(a, b)| format!("{a:?} {b:?}")).collect();
    if one.len() != other.len() {
        said.push(format!("{} sections and {}", one.len(), other.len()));
    }
    said.join("\n")
}

#[test]
fn errors_have_their_pages() {
    let generated = nas_event_daemon::cli::errors::document();
    assert!(
        page("docs/errors.md") == generated,
        "run: nas_event_daemon explain > docs/errors.md\n{generated}"
    );
}

#[test]
fn every_file_that_a_page_links_to_is_there() {
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    let mut pages: Vec<String> = docs
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    pages.extend(["README.md", "README.ru.md", "CONTRIBUTING.md"].map(str::to_owned));
    let mut checked = 0;
    for name in pages {
        let text = page(&name);
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if file.contains("://") || link.contains(' ') {
                continue;
            }
            let target = if file.is_empty() {
                root().join(&name)
            } else {
                root().join(&name).parent().unwrap().join(file)
            };
            assert!(target.exists(), "{name} links to {link}");
            if !anchor.is_empty() {
                let text = std::fs::read_to_string(&target).unwrap();
                assert!(
                    anchors(&text).contains(&anchor.to_owned()),
                    "{name} links to {link}"
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} links found");
}

/// Names of the headings, as they are linked to.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let name = |line: &str| -> String {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(name).collect()
}

#[test]
fn a_wrong_block_is_found() {
    let page = "x\n\n   ```sh\n   nas_event_daemon no-such-verb\n   ```\n";
    let found = blocks(page);
    assert_eq!(found, [(4, "nas_event_daemon no-such-verb\n".to_owned())]);
    let (fine, text) = run(&format!("set -e\n{}", found[0].1));
    assert!(!fine && text.contains("no-such-verb"), "{text}");
    assert!(anchors("## What a resync: posts?\n").contains(&"what-a-resync-posts".to_owned()));
}
