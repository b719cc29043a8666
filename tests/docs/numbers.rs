//! Numbers of errors: each that the sources give has its page, and each page is of a number that
//! they give.

use std::collections::BTreeSet;
use std::path::Path;

use nas_event_daemon::cli::errors;
use nas_event_daemon::intake::refusals;
use regex::Regex;

use crate::root;

/// What stands between the brackets of `.numbered(…)` where it is no number: the numbers are in a
/// function `number`, or a word of the API has them.
const BY_FUNCTION: [&str; 3] = ["number(code)", "e.number()", "number"];

/// Numbers that a source gives, and expressions that are none.
fn given(source: &str) -> (BTreeSet<u16>, BTreeSet<String>) {
    let (mut numbers, mut others) = (BTreeSet::new(), BTreeSet::new());
    let call = Regex::new(r"\.numbered\(\s*((?:[^()]|\([^()]*\))*?)\s*\)").unwrap();
    for found in call.captures_iter(source) {
        match found[1].parse() {
            Ok(number) => drop(numbers.insert(number)),
            Err(_) => drop(others.insert(found[1].to_owned())),
        }
    }
    let function =
        Regex::new(r"(?m)^( *)(?:pub(?:\(super\))? )?fn (?:number|number_of|usual)\(.*-> u16 \{$");
    let number = Regex::new(r"(?:=>|^) *(\d+),?$").unwrap();
    for found in function.unwrap().captures_iter(source) {
        let (head, end) = (found.get(0).unwrap(), format!("\n{}}}\n", &found[1]));
        let body = source[head.end()..].split(&end).next().unwrap();
        for line in body.lines() {
            let found = number.captures(line.trim());
            numbers.extend(found.map(|found| found[1].parse::<u16>().unwrap()));
        }
    }
    (numbers, others)
}

/// The same of a tree.
fn given_below(dir: &Path, numbers: &mut BTreeSet<u16>, others: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            given_below(&path, numbers, others);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let (more, unknown) = given(&std::fs::read_to_string(&path).unwrap());
            numbers.extend(more);
            others.extend(unknown);
        }
    }
}

/// Numbers of the pages.
fn paged(document: &str) -> BTreeSet<u16> {
    let heads = document
        .lines()
        .filter_map(|line| line.strip_prefix("## NED-"));
    heads.map(|number| number.parse().unwrap()).collect()
}

#[test]
fn every_number_has_its_page_and_every_page_its_number() {
    let (mut numbers, mut others) = (BTreeSet::new(), BTreeSet::new());
    given_below(&root().join("src"), &mut numbers, &mut others);
    let known = BY_FUNCTION.map(str::to_owned);
    assert_eq!(others, known.into_iter().collect(), "is its number found?");
    numbers.extend(refusals::WORDS.iter().map(|(_, number)| *number));
    let pages = paged(&errors::document());
    let missing: Vec<_> = numbers.difference(&pages).collect();
    assert!(missing.is_empty(), "without a page: {missing:?}");
    let idle: Vec<_> = pages.difference(&numbers).collect();
    assert!(idle.is_empty(), "nobody gives {idle:?}");
    assert!(numbers.len() > 30, "only {numbers:?}");
}

#[test]
fn numbers_are_found_however_they_stand() {
    let planted = "x.numbered(301)\n  .numbered(\n    502,\n  )\n  .numbered(other(1))\nfn number(code: u8) -> u16 {\n    \
                   match code {\n        A => 303,\n        _ => 305,\n    }\n}\n    pub fn number(&self) -> u16 {\n        \
                   if x {\n            101\n        }\n    }\nfn port() -> u16 {\n    22\n}\n";
    let planted = planted.replace("502,", "502");
    let (numbers, others) = given(&planted);
    assert_eq!(numbers, [101, 301, 303, 305, 502].into());
    assert_eq!(others, ["other(1)".to_owned()].into());
    let pages = paged("# Errors\n## NED-0001\n\n## NED-0205\n");
    assert_eq!(pages, [1, 205].into());
}
