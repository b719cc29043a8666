//! Hints keep their word: every page of the manual, and every section of it, that a message or a
//! comment of the program names is there; so is every page that another page links to.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.to_str().unwrap().ends_with(ending) {
            found.push(path);
        }
    }
}

/// `docs/operate.md` and the section in quotes behind it, if there is one.
fn named(text: &str) -> Vec<(String, Option<String>)> {
    let form = regex::Regex::new(r#"docs/([a-z]+\.md)(?:`?, \\?"([^"\\\n]+)\\?")?"#).unwrap();
    let each = form.captures_iter(text);
    each.map(|c| {
        let section = c.get(2).map(|section| section.as_str().to_owned());
        (c.get(1).unwrap().as_str().to_owned(), section)
    })
    .collect()
}

fn headings(page: &str) -> Vec<String> {
    let lines = page.lines().filter(|line| line.starts_with('#'));
    lines
        .map(|line| line.trim_start_matches(['#', ' ']).to_owned())
        .collect()
}

/// A heading as a link names it.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn pages_and_sections_that_hints_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    files(&root.join("src"), ".rs", &mut sources);
    let (mut wrong, mut sections) = (Vec::new(), 0);
    for source in sources {
        for (page, section) in named(&std::fs::read_to_string(&source).unwrap()) {
            let Ok(text) = std::fs::read_to_string(root.join("docs").join(&page)) else {
                wrong.push(format!("{}: there is no docs/{page}", source.display()));
                continue;
            };
            let Some(section) = section else { continue };
            sections += 1;
            let more = format!("{section}:");
            let is = |heading: &String| *heading == section || heading.starts_with(&more);
            if !headings(&text).iter().any(is) {
                wrong.push(format!(
                    "{}: docs/{page} has no section {section:?}",
                    source.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        sections >= 2,
        "only {sections} sections are named: is the form still found?"
    );
}

#[test]
fn links_between_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![
        root.join("README.md"),
        root.join("README.ru.md"),
        root.join("CONTRIBUTING.md"),
        root.join("CHANGELOG.md"),
    ];
    files(&root.join("docs"), ".md", &mut pages);
    let form = regex::Regex::new(r"\]\(([A-Za-z0-9_./-]*)(?:#([^)\s]+))?\)").unwrap();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in form.captures_iter(&text) {
            seen += 1;
            let file = link.get(1).map_or("", |file| file.as_str());
            let to = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            let shown = format!("{}: {}", page.display(), link.get(0).unwrap().as_str());
            if !to.exists() {
                wrong.push(format!("{shown}: there is no such file"));
            } else if let Some(wanted) = link.get(2) {
                let there = headings(&std::fs::read_to_string(&to).unwrap());
                if !there
                    .iter()
                    .any(|heading| anchor(heading) == wanted.as_str())
                {
                    wrong.push(format!("{shown}: there is no such section"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 20, "only {seen} links found");
}
