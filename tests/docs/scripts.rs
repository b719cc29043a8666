//! What only developers type is not run again from within the tests that it runs: each script is
//! there, and takes the words that a page gives it, as its own usage has them.

use crate::{blocks, page, root};

/// What `scripts/test` hands to nextest on our pages, and how many words follow.
const NEXTEST: &[(&str, usize)] = &[("-E", 1), ("--no-capture", 0), ("--retries", 1)];

#[test]
fn what_only_developers_type_can_be_typed() {
    let mut read = 0;
    for name in ["CONTRIBUTING.md", "docs/reliability.md"] {
        for (first, text) in blocks(&page(name)) {
            for (number, line) in text.lines().enumerate() {
                let said = typed(line);
                assert!(said.is_ok(), "{name}:{}: {said:?}", first + number);
                read += 1;
            }
        }
    }
    assert!(read > 15, "only {read} lines are read");
}

#[test]
fn what_cannot_be_typed_is_found() {
    for (line, why) in [
        ("scripts/fautls kills", "scripts/fautls is not there"),
        ("scripts/faults kils      # all", "no stage kils"),
        ("NED_KILLS=9 scripts/faults stops kils", "no stage kils"),
        ("scripts/faults --fast", "no stage --fast"),
        ("scripts/fuzz -s 90", "no flag -s"),
        ("scripts/fuzz -t", "-t takes a value"),
        ("scripts/fuzz -r -t 90 wrods", "no parser wrods"),
        ("scripts/test --instal", "no flag --instal"),
        (
            "scripts/test -E 'test(no_such_test)'",
            "no test no_such_test",
        ),
        ("scripts/package --no-buidl", "no flag --no-buidl"),
        (".ci/run fast", "takes no words"),
        (
            "NED_NO_SUCH=1 scripts/faults kills",
            "nobody reads NED_NO_SUCH",
        ),
    ] {
        assert_eq!(typed(line), Err(why.to_owned()), "{line}");
    }
    for line in [
        "",
        "# a remark",
        "scripts/faults",
        "scripts/faults kills stops",
        "NED_SEED=7 scripts/faults kills  # one",
        "scripts/fuzz -r -t 60 words form",
        "scripts/test --install -E 'test(every_seed)'",
    ] {
        assert_eq!(typed(line), Ok(()), "{line}");
    }
}

/// Whether a line of a page can be typed, or why not.
fn typed(line: &str) -> Result<(), String> {
    let line = line.split('#').next().unwrap_or_default();
    let mut words = line.split_whitespace().peekable();
    while let Some((name, _)) = words.peek().and_then(|word| word.split_once('=')) {
        if !sources().any(|text| text.contains(name)) {
            return Err(format!("nobody reads {name}"));
        }
        words.next();
    }
    let Some(script) = words.next() else {
        return Ok(());
    };
    let rest: Vec<&str> = words.map(|word| word.trim_matches('\'')).collect();
    let Ok(text) = std::fs::read_to_string(root().join(script)) else {
        return Err(format!("{script} is not there"));
    };
    match script {
        "scripts/faults" => rest.iter().try_for_each(|stage| {
            // A stage that is only spoken of is none, nor is one that nobody is told of.
            let is = usage(&text).iter().any(|(word, _)| word == stage)
                && text.contains(&format!("\n    {stage}) "));
            is.then_some(()).ok_or_else(|| format!("no stage {stage}"))
        }),
        "scripts/fuzz" => {
            let named = flags(&text, &[], &rest)?;
            named.iter().try_for_each(|parser| {
                let is = root().join("fuzz/corpus").join(parser).is_dir();
                is.then_some(())
                    .ok_or_else(|| format!("no parser {parser}"))
            })
        }
        "scripts/test" => {
            let filters = rest.iter().filter_map(|word| word.strip_prefix("test("));
            for name in filters.map(|word| word.trim_end_matches(')')) {
                let is_named = |line: &str| line.contains("fn ") && line.contains(name);
                let is = sources().any(|text| {
                    text.lines().any(is_named) || text.contains(&format!("mod {name};"))
                });
                is.then_some(()).ok_or_else(|| format!("no test {name}"))?;
            }
            flags(&text, NEXTEST, &rest).map(drop)
        }
        "scripts/package" => flags(&text, &[], &rest).map(drop),
        _ if rest.is_empty() => Ok(()),
        _ => Err("takes no words".to_owned()),
    }
}

/// The words that are no flags of the script's usage, or of these, and no values of such.
fn flags(text: &str, more: &[(&str, usize)], words: &[&str]) -> Result<Vec<String>, String> {
    let mut known = usage(text);
    known.extend(
        more.iter()
            .map(|(word, values)| ((*word).to_owned(), *values)),
    );
    let (mut others, mut words) = (Vec::new(), words.iter());
    while let Some(word) = words.next() {
        if !word.starts_with('-') {
            others.push((*word).to_owned());
            continue;
        }
        let found = known.iter().find(|(flag, _)| flag == word);
        let (_, values) = found.ok_or_else(|| format!("no flag {word}"))?;
        if words.by_ref().take(*values).count() < *values {
            return Err(format!("{word} takes a value"));
        }
    }
    Ok(others)
}

/// What the usage of a script explains, a word a line, and how many values each takes.
fn usage(text: &str) -> Vec<(String, usize)> {
    let usage = text.split("<<'TEXT'\n").nth(1).unwrap_or_default();
    let usage = usage.split("\nTEXT\n").next().unwrap_or_default();
    let explained = usage.lines().filter_map(|line| {
        let (term, _) = line.strip_prefix("  ")?.split_once("  ")?;
        let mut words = term.split(' ').filter(|word| !word.is_empty());
        Some((words.next()?.to_owned(), words.count()))
    });
    explained.collect()
}

/// Every source file of ours.
fn sources() -> impl Iterator<Item = String> {
    let mut left = ["src", "tests", "scripts"]
        .map(|dir| root().join(dir))
        .to_vec();
    std::iter::from_fn(move || {
        loop {
            let path = left.pop()?;
            if path.is_dir() {
                left.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            } else if !path.ends_with("tests/docs/scripts.rs")
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                return Some(text);
            }
        }
    })
}
