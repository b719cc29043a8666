//! What the pages tell an operator to type and nobody runs here, because it needs his NASes: every
//! command is parsed as it would be there, and what is said not to be offered is not there.

use std::sync::LazyLock;

use clap::CommandFactory;
use clap::error::ErrorKind;
use nas_event_daemon::bridge::map::Map;
use nas_event_daemon::bridge::sheet::Sheets;
use nas_event_daemon::cli::Cli;

use crate::{blocks_of, page};

/// Pages for those who type; what a release brought may be gone by now.
fn pages() -> Vec<String> {
    let docs = std::fs::read_dir(crate::root().join("docs")).unwrap();
    let names = docs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut pages: Vec<String> = names
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    pages.extend(["README.md", "README.ru.md"].map(str::to_owned));
    pages.sort();
    pages
}

/// What an operator types at a machine that these tests have not: parsed as it would be there.
#[test]
fn commands_of_blocks_that_are_not_run_can_be_typed() {
    let mut lines = 0;
    for name in pages() {
        let (read, wrong) = mistyped(&page(&name));
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        lines += read;
    }
    assert!(lines > 20, "only {lines} lines are commands");
}

/// How many lines of `text` blocks are commands of ours, and those that clap refuses, with why.
fn mistyped(page: &str) -> (usize, Vec<String>) {
    let (mut read, mut wrong) = (0, Vec::new());
    for (first, text) in blocks_of(page, "```text") {
        for (number, line) in text.lines().enumerate() {
            let typed = line.split(" #").next().unwrap_or_default().trim();
            // The form of all of them, in the synopsis, names none.
            if !typed.starts_with("nas_event_daemon ") || typed.contains(" VERB ") {
                continue;
            }
            read += 1;
            if let Err(why) = parsed(typed) {
                wrong.push(format!("line {}: {typed}: {why}", first + number));
            }
        }
    }
    (read, wrong)
}

/// Whether clap takes a whole command line; brackets say what may be left out.
fn parsed(line: &str) -> Result<(), clap::Error> {
    let line = line.replace(['[', ']'], "");
    match Cli::command().try_get_matches_from(words(&line)) {
        Err(e) if e.kind() != ErrorKind::DisplayHelp => Err(e),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The words of a line, quoted ones without their quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Commands that tables name, such as `nas pause ID…`, also without the name of the program.
#[test]
fn commands_of_tables_are_there() {
    let mut named = 0;
    for name in pages() {
        let text = page(&name);
        // What is not there has a table of its own.
        let there = text.split(NOT_OFFERED).enumerate().map(|(part, text)| {
            let after = text.split_once("\n\n**").map_or("", |(_, after)| after);
            if part == 0 { text } else { after }
        });
        for line in there.flat_map(str::lines) {
            for code in cells(line).iter().flat_map(|cell| codes(cell)) {
                if let Some(there) = offered(&code) {
                    assert!(there.is_ok(), "{name}: `{code}`: {there:?}");
                    named += 1;
                }
            }
        }
    }
    assert!(named > 60, "only {named} commands are named");
    for wrong in [
        "nas puase ID",
        "event retry ID --evry 5m",
        "nas_event_daemon no-such",
    ] {
        assert!(offered(wrong).unwrap().is_err(), "{wrong}");
    }
    for right in [
        "nas pause ID…",
        "event bulk [FILE] [--format jsonl|csv]",
        "event retry",
    ] {
        assert!(offered(right).unwrap().is_ok(), "{right}");
    }
    assert!(offered("nas.forks").is_none() && offered("oss_path").is_none());
}

/// The table of what is not there says the truth, too.
#[test]
fn what_is_not_offered_is_not_there() {
    let text = page("docs/operate.md");
    let (_, table) = text.split_once(NOT_OFFERED).unwrap();
    let (table, _) = table.split_once("\n\n**").unwrap();
    let mut left_out = 0;
    for line in table.lines() {
        // What is named instead is there.
        for code in cells(line).iter().skip(1).flat_map(|cell| codes(cell)) {
            let there = offered(&code).unwrap_or(Ok(()));
            assert!(there.is_ok(), "`{code}`: {there:?}");
        }
        let mut noun = None;
        for code in cells(line).first().iter().flat_map(|cell| codes(cell)) {
            // `nas add`, `set`, `rm`
            let typed = match (code.split_once(' '), &noun) {
                (Some((first, _)), _) => {
                    noun = Some(first.to_owned());
                    code
                }
                (None, Some(noun)) if !code.starts_with('-') => format!("{noun} {code}"),
                (None, _) => code,
            };
            let line = match typed.starts_with('-') {
                true => format!("nas_event_daemon status {typed}"),
                false => format!("nas_event_daemon {typed}"),
            };
            let why = parsed(&line).err().map(|e| e.kind());
            let unknown = [
                ErrorKind::UnknownArgument,
                ErrorKind::InvalidSubcommand,
                ErrorKind::InvalidValue,
            ];
            assert!(
                why.is_some_and(|kind| unknown.contains(&kind)),
                "{line} is there: {why:?}"
            );
            left_out += 1;
        }
    }
    assert!(left_out > 20, "only {left_out} are left out");
}

/// Before the table of what is not there.
const NOT_OFFERED: &str = "\n**Not offered";

/// The cells of a row of a table; none of another line.
fn cells(line: &str) -> Vec<String> {
    let line = line.trim();
    if !line.starts_with('|') {
        return Vec::new();
    }
    let line = line.replace("\\|", "\u{1}");
    let cells = line.trim_matches('|').split('|');
    cells.map(|cell| cell.replace('\u{1}', "|")).collect()
}

/// What stands between backticks.
fn codes(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Whether verbs and flags of a piece of code are there; none if it is no command of ours.
/// What it takes is not looked at: a manual says ID, FILE and TIME.
fn offered(code: &str) -> Option<Result<(), String>> {
    let mut rest: Vec<&str> = code.split_whitespace().collect();
    let by_name = rest.first() == Some(&"nas_event_daemon") && rest.len() > 1;
    if by_name {
        rest.remove(0);
    }
    static CLI: LazyLock<clap::Command> = LazyLock::new(|| {
        let mut cli = Cli::command();
        cli.build();
        cli
    });
    let cli = &*CLI;
    let mut at = cli;
    let verb = rest.first()?;
    if !by_name && at.find_subcommand(verb).is_none() {
        return None;
    }
    let mut below = true;
    for word in rest {
        let word = word.trim_matches(['[', ']', '…', ',']);
        let flag = word.split(['=', '[']).next().unwrap_or_default();
        if let Some(long) = flag.strip_prefix("--") {
            let is = |a: &clap::Arg| {
                a.get_long() == Some(long)
                    || a.get_all_aliases().is_some_and(|all| all.contains(&long))
            };
            let known = |c: &clap::Command| c.get_arguments().any(is);
            if !known(at) && !known(cli) {
                return Some(Err(format!("no flag --{long}")));
            }
        } else if below
            && !word.is_empty()
            && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        {
            match at.find_subcommand(word) {
                Some(verb) => at = verb,
                None if at.has_subcommands() && at.get_positionals().next().is_none() => {
                    return Some(Err(format!("no verb {word}")));
                }
                None => below = false,
            }
        }
    }
    Some(Ok(()))
}

/// Commands in the middle of a sentence, and in the steps of a list.
#[test]
fn commands_of_sentences_are_there() {
    let mut named = 0;
    for name in pages() {
        for code in prose(&page(&name)).iter().flat_map(|text| codes(text)) {
            if let Some(there) = offered(&code) {
                assert!(there.is_ok(), "{name}: `{code}`: {there:?}");
                named += 1;
            }
        }
    }
    assert!(named > 60, "only {named} commands are named");
    let planted = "A step:\n`nas puase\nID`, then `nas pause ID`.\n\n```text\n`no such`\n```\n| `nas gone` |\n";
    let found = prose(planted);
    let found: Vec<String> = found.iter().flat_map(|text| codes(text)).collect();
    assert_eq!(found, ["nas puase ID", "nas pause ID"]);
    assert!(offered(&found[0]).unwrap().is_err());
}

/// Paragraphs, each as one line; neither blocks nor tables.
fn prose(page: &str) -> Vec<String> {
    let (mut all, mut text, mut is_block) = (Vec::new(), String::new(), false);
    for line in page.lines() {
        let line = line.trim();
        let ends = line.is_empty() || line.starts_with('|');
        if line.starts_with("```") {
            is_block = !is_block;
        } else if !is_block && !ends {
            text.push_str(line);
            text.push(' ');
            continue;
        }
        all.push(std::mem::take(&mut text));
    }
    all.push(text);
    all.retain(|text| !text.is_empty());
    all
}

/// The files that docs/migrate.md shows, as they stand and with every line that is commented out.
#[test]
fn maps_of_the_manual_can_be_read() {
    let blocks = blocks_of(&page("docs/migrate.md"), "```toml");
    let [(_, import), (_, bridge)] = &blocks[..] else {
        panic!("{} blocks", blocks.len());
    };
    let all = |text: &str| text.replace("\n# ", "\n");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("import.toml");
    let load = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Sheets::load(&file)
    };
    for text in [import.clone(), all(import)] {
        let sheets = load(&text).unwrap();
        assert!(sheets.nas.is_some() && sheets.accounts.is_some());
    }
    assert!(load(&import.replace("table =", "tabel =")).is_err());
    assert!(all(bridge).contains("\nisql = ") && all(bridge).contains("\nparams = "));
    for text in [bridge.clone(), all(bridge)] {
        assert!(Map::parse(&text).unwrap().back.is_some());
    }
    assert!(Map::parse(&bridge.replace("mark =", "mrak =")).is_err());
}

#[test]
fn a_mistyped_line_is_found() {
    let planted = "1. x\n\n   ```text\n   nas_event_daemon nas rekey 7   # both\n   nas_event_daemon nas rekye 7\n   \
                   nas_event_daemon nas resync 7 --rat 5\n   nas_event_daemon nas pause --reason \"a b\" 7\n   ```\n";
    let (read, wrong) = mistyped(planted);
    assert_eq!(read, 4);
    let [verb, flag] = &wrong[..] else {
        panic!("{wrong:?}")
    };
    assert!(
        verb.starts_with("line 5: ") && verb.contains("rekye"),
        "{verb}"
    );
    assert!(
        flag.starts_with("line 6: ") && flag.contains("--rat"),
        "{flag}"
    );
}
