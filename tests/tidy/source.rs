//! Reading Rust as far as the rules of `tests/tidy.rs` need it: code without comments, texts
//! and tests; the text literals; the paths that name modules of the crate.

/// A text literal outside tests.
pub(crate) struct Text {
    /// First line, from 1.
    pub(crate) line: usize,
    /// As written, escapes unresolved.
    pub(crate) text: String,
}

/// A file with comments, the insides of texts, and test code blanked out; lines stay lines.
pub(crate) struct Source {
    /// Code; what was blanked is spaces.
    pub(crate) code: String,
    /// Text literals.
    pub(crate) texts: Vec<Text>,
}

impl Source {
    /// Never fails: what is no Rust gives nonsense, and the compiler complains.
    pub(crate) fn read(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
        let mut code: Vec<char> = Vec::with_capacity(chars.len());
        let mut texts: Vec<(usize, String)> = Vec::new();
        let blank = |c: char| if c == '\n' { '\n' } else { ' ' };
        while code.len() < chars.len() {
            let i = code.len();
            let before = i.checked_sub(1).map_or(' ', at);
            let end = if at(i) == '/' && at(i + 1) == '/' {
                (i..chars.len())
                    .find(|&k| at(k) == '\n')
                    .unwrap_or(chars.len())
            } else if at(i) == '/' && at(i + 1) == '*' {
                end_of_comment(&at, i, chars.len())
            } else if let Some(hashes) = raw_text(&at, i).filter(|_| !is_word(before)) {
                let open = (i..chars.len()).find(|&k| at(k) == '"').unwrap_or(i) + 1;
                let close = (open..chars.len())
                    .find(|&k| at(k) == '"' && (1..=hashes).all(|n| at(k + n) == '#'))
                    .unwrap_or(chars.len());
                texts.push((i, chars.iter().take(close).skip(open).collect()));
                close + 1 + hashes
            } else if at(i) == '"' {
                let close = end_of_quote(&at, i + 1, chars.len(), '"');
                texts.push((i, chars.iter().take(close).skip(i + 1).collect()));
                close + 1
            } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
                end_of_quote(&at, i + 1, chars.len(), '\'') + 1 // else a lifetime
            } else {
                code.push(at(i));
                continue;
            };
            code.extend((i..end.min(chars.len())).map(|k| blank(at(k))));
        }
        for (from, to) in test_code(&code) {
            for c in code.iter_mut().take(to).skip(from) {
                *c = blank(*c);
            }
            texts.retain(|(start, _)| !(from..to).contains(start));
        }
        let line = |index: usize| 1 + chars.iter().take(index).filter(|c| **c == '\n').count();
        let texts = texts
            .into_iter()
            .map(|(start, text)| Text {
                line: line(start),
                text,
            })
            .collect();
        Self {
            code: code.into_iter().collect(),
            texts,
        }
    }

    /// Lines of code with their numbers, from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(n, line)| (n + 1, line))
    }
}

/// A letter of a name.
pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `r"`, `r#"`, `br"`, `cr#"` …: the number of hashes.
fn raw_text(at: &impl Fn(usize) -> char, i: usize) -> Option<usize> {
    let r = if matches!(at(i), 'b' | 'c') { i + 1 } else { i };
    let hashes = (1..).take_while(|n| at(r + n) == '#').count();
    (at(r) == 'r' && at(r + 1 + hashes) == '"').then_some(hashes)
}

fn end_of_quote(at: &impl Fn(usize) -> char, from: usize, end: usize, quote: char) -> usize {
    let mut i = from;
    while i < end && at(i) != quote {
        i += if at(i) == '\\' { 2 } else { 1 };
    }
    i
}

/// Block comments nest.
fn end_of_comment(at: &impl Fn(usize) -> char, from: usize, end: usize) -> usize {
    let (mut i, mut depth) = (from, 0);
    while i < end {
        match (at(i), at(i + 1)) {
            ('/', '*') => (i, depth) = (i + 2, depth + 1),
            ('*', '/') => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    end
}

/// Ranges of items under `#[cfg(test)]`, to their closing brace or semicolon.
fn test_code(code: &[char]) -> Vec<(usize, usize)> {
    const MARK: &str = "#[cfg(test)]";
    let text: String = code.iter().collect();
    let mut ranges = Vec::new();
    for (byte, _) in text.match_indices(MARK) {
        let from = text.get(..byte).unwrap_or_default().chars().count();
        let (mut depth, mut to) = (0_usize, code.len());
        for (i, c) in code.iter().enumerate().skip(from + MARK.len()) {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && matches!(c, '}' | ';') {
                to = i + 1;
                break;
            }
        }
        ranges.push((from, to));
    }
    ranges
}

/// Every path that starts at the crate's root, `crate::` cut off, groups taken apart.
pub(crate) fn named_paths(
    path: &str,
    source: &Source,
    is_module: impl Fn(&str) -> bool,
) -> Vec<(usize, String)> {
    // What reaches the root from this file without saying `crate`.
    let depth = path.split('/').count() - usize::from(path.ends_with("/mod.rs"));
    let climb = "super::".repeat(depth.saturating_sub(1));
    let mut found = Vec::new();
    for root in ["crate::", climb.as_str()] {
        for (start, _) in source.code.match_indices(root) {
            let before = source.code.get(..start).unwrap_or_default();
            if before.ends_with(|c: char| is_word(c) || c == ':' || c == '$') {
                continue;
            }
            let line = 1 + before.matches('\n').count();
            let rest = source.code.get(start + root.len()..).unwrap_or_default();
            let names = flattened(rest).0;
            // An inline module also says `super::`; only names of top modules count there.
            let names = names.into_iter().filter(|name| {
                let top = name.split("::").next().unwrap_or_default();
                root == "crate::" || is_module(top)
            });
            found.extend(names.map(|name| (line, name)));
        }
    }
    found
}

/// `a::{b, c::d}` → `a::b`, `a::c::d`; and the number of bytes that were read.
fn flattened(text: &str) -> (Vec<String>, usize) {
    let mut prefix = String::new();
    let mut read = 0;
    while let Some(rest) = text.get(read..) {
        let blank = rest.len() - rest.trim_start().len();
        let rest = rest.trim_start();
        read += blank;
        let word = rest
            .find(|c: char| !is_word(c) && c != '*')
            .unwrap_or(rest.len());
        if let Some(group) = rest.strip_prefix('{') {
            let mut all = Vec::new();
            read += 1;
            let mut inside = group;
            while !inside.is_empty() && !inside.starts_with('}') {
                let (names, used) = flattened(inside);
                all.extend(
                    names
                        .into_iter()
                        .filter(|n| !n.is_empty())
                        .map(|n| format!("{prefix}{n}")),
                );
                let skip = inside
                    .get(used..)
                    .unwrap_or_default()
                    .find([',', '}'])
                    .unwrap_or(inside.len() - used);
                let comma = usize::from(
                    inside
                        .get(used + skip..)
                        .unwrap_or_default()
                        .starts_with(','),
                );
                read += used + skip + comma;
                inside = inside.get(used + skip + comma..).unwrap_or_default();
                if used + skip + comma == 0 {
                    break;
                }
            }
            return (all, read + 1);
        }
        prefix.push_str(rest.get(..word).unwrap_or_default());
        read += word;
        if word == 0 || !rest.get(word..).unwrap_or_default().starts_with("::") {
            break;
        }
        prefix.push_str("::");
        read += 2;
    }
    (vec![prefix.trim_end_matches("::").to_owned()], read)
}
