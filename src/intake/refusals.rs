//! The words of refusals (`error.code`), each with the number of the page that says what it means
//! and what to do (docs/errors.md, `explain stack_full`). A program branches on the word, a person
//! looks the number up; the command line tells its own failures by the same numbers.

/// Word and number of its page, by number.
pub const WORDS: &[(&str, u16)] = &[
    ("too_long", 208),
    ("unavailable", 400),
    ("token_missing", 403),
    ("token_malformed", 403),
    ("token_unknown", 403),
    ("scope_too_narrow", 403),
    ("key_reused", 404),
    ("moved_on", 404),
    ("not_dropped", 404),
    ("not_retried", 404),
    ("stack_full", 404),
    ("too_many_tails", 404),
    ("too_many_tests", 404),
    ("too_many_waiting", 404),
    ("malformed", 405),
    ("no_such_method", 405),
    ("refused", 405),
    ("several", 405),
    ("too_large", 405),
    ("too_many", 405),
    ("too_slow", 405),
    ("foreign_host", 406),
    ("foreign_origin", 406),
    ("no_such_path", 500),
    ("not_found", 500),
    ("parent_loop_stands", 900),
];

/// The page of a word; none for what is no word of ours.
pub fn number(word: &str) -> Option<u16> {
    let known = WORDS.iter().find(|(known, _)| *known == word);
    known.map(|(_, number)| *number)
}

/// `NED-0404`; of a word that is none of ours the page of failures without one, `NED-0001`.
pub fn shown(word: &str) -> String {
    format!("NED-{:04}", number(word).unwrap_or(1))
}

/// The words of a page.
pub fn of(number: u16) -> impl Iterator<Item = &'static str> {
    let words = WORDS.iter().filter(move |(_, page)| *page == number);
    words.map(|(word, _)| *word)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Status and word of each refusal that the sources of the doors make.
    fn made() -> BTreeSet<(String, String)> {
        let form = regex::Regex::new(r#"\bnew\(\s*(\d{3}),\s*"([a-z_]+)""#).unwrap();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/intake");
        let files = std::fs::read_dir(dir).unwrap();
        let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        let found = |text: String| -> Vec<(String, String)> {
            let each = form.captures_iter(&text);
            each.map(|c| (c[1].to_owned(), c[2].to_owned())).collect()
        };
        texts.flat_map(found).collect()
    }

    #[test]
    fn every_word_has_a_page_and_stands_in_the_documentation() {
        let made = made();
        let words: BTreeSet<&str> = made.iter().map(|(_, word)| word.as_str()).collect();
        let known: BTreeSet<&str> = WORDS.iter().map(|(word, _)| *word).collect();
        assert_eq!(words, known);
        assert_eq!(known.len(), WORDS.len(), "a word has two pages");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md");
        let page = std::fs::read_to_string(path).unwrap();
        let cells = |line: &str| -> Option<[String; 4]> {
            let cells: Vec<String> = line
                .trim_matches('|')
                .split(" | ")
                .map(|cell| cell.trim().trim_matches('`').to_owned())
                .collect();
            cells.try_into().ok()
        };
        let rows = page.lines().filter_map(cells);
        let told: BTreeSet<(String, String)> = rows
            .filter(|[.., number]| number.starts_with("NED-"))
            .map(|[word, status, _, number]| {
                assert_eq!(number, shown(&word), "{word}");
                (status, word)
            })
            .collect();
        assert_eq!(told, made);
    }

    #[test]
    fn words_are_found_both_ways() {
        assert_eq!(shown("stack_full"), "NED-0404");
        assert_eq!(number("no such word"), None);
        assert_eq!(
            of(406).collect::<Vec<_>>(),
            ["foreign_host", "foreign_origin"]
        );
        assert!(WORDS.is_sorted_by_key(|(_, number)| number));
    }
}
