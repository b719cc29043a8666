//! Traps of bash in a session scheme: what runs, but does something else than it says. Found by
//! reading the text line by line, so that a scheme author sees them before a subscriber does;
//! where `shellcheck` is installed, its errors are told too.

use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;

use super::native::{Finding, Severity};

/// Largest output of shellcheck that is read, bytes.
const SAID_MAX: usize = 1024 * 1024;

/// What is wrong with the text of `bin/session`, in the order of its lines.
pub fn traps(file: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |line: usize, text: &str, hint: &str| {
        findings.push(Finding {
            file: file.to_owned(),
            line,
            severity: Severity::Warning,
            text: text.to_owned(),
            hint: hint.to_owned(),
        });
    };
    if text.starts_with('\u{feff}') {
        found(
            1,
            "begins with a byte order mark",
            "save it as UTF-8 without one",
        );
    }
    if let Some(n) = text.lines_with_cr().next() {
        found(
            n,
            "has CRLF line ends, which put a carriage return into values",
            "save it with LF line ends: sed -i 's/\\r$//' bin/session",
        );
    }
    let code: Vec<(usize, String)> = code_lines(text);
    for (n, line) in &code {
        if words(line).any(|word| word == "eval") {
            found(
                *n,
                "`eval` runs what stands in its variables, a subscriber's name included",
                "call the command directly; \"$@\" and arrays keep words apart",
            );
        }
        if exits_in_pipe(line) {
            found(
                *n,
                "`exit` or `return` in a pipeline ends the pipeline only, not the function",
                "read from a process instead: while read …; do …; done < <(command), or keep the \
                 code and exit after the pipeline",
            );
        }
    }
    for (n, line) in last_lines(&code) {
        if is_guard(&line) {
            found(
                n,
                "the last line `[ … ] && …` makes the function fail when the test is false",
                "write if [ … ]; then …; fi, or add `return 0` below",
            );
        }
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

/// What `shellcheck` says is an error; nothing where it is not installed.
pub fn shellcheck(file: &Path) -> Vec<Finding> {
    #[derive(Deserialize)]
    struct Comment {
        line: usize,
        code: u32,
        message: String,
    }
    #[derive(Deserialize)]
    struct Said {
        comments: Vec<Comment>,
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "programs are started by scheme only"
    )]
    let mut command = std::process::Command::new("shellcheck");
    let output = command
        .args(["--shell=bash", "--severity=error", "--format=json1", "--"])
        .arg(file)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        return Vec::new();
    };
    if output.stdout.len() > SAID_MAX {
        return Vec::new();
    }
    let Ok(said) = serde_json::from_slice::<Said>(&output.stdout) else {
        return Vec::new();
    };
    let finding = |comment: Comment| Finding {
        file: file.to_owned(),
        line: comment.line,
        severity: Severity::Warning,
        text: comment.message,
        hint: format!("shellcheck SC{}", comment.code),
    };
    said.comments.into_iter().map(finding).collect()
}

trait Lines {
    fn lines_with_cr(&self) -> impl Iterator<Item = usize>;
}

impl Lines for str {
    fn lines_with_cr(&self) -> impl Iterator<Item = usize> {
        let numbered = self.split('\n').enumerate();
        numbered.filter_map(|(n, line)| line.ends_with('\r').then_some(n + 1))
    }
}

/// Lines with their numbers; comments, here-documents and what stands in quotes are taken out,
/// and lines that end in a backslash, a pipe or `&&` are joined with the next.
fn code_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut quote = None;
    let mut until: Option<String> = None;
    let mut open: Option<(usize, String)> = None;
    for (n, raw) in text.lines().enumerate() {
        if let Some(word) = &until {
            if raw.trim() == word {
                until = None;
            }
            continue;
        }
        let mut line = String::new();
        let mut before = ' ';
        let mut chars = raw.chars().peekable();
        while let Some(c) = chars.next() {
            match quote {
                Some('\'') if c == '\'' => quote = None,
                Some('"') if c == '"' => quote = None,
                Some('"') if c == '\\' => {
                    chars.next();
                }
                Some(_) => {}
                None if c == '\\' => match chars.next() {
                    Some(_) => line.push('_'),
                    None => line.push('\\'),
                },
                None if c == '\'' || c == '"' => {
                    quote = Some(c);
                    line.push('_');
                }
                None if c == '#' && (before.is_whitespace() || before == ';') => break,
                None => line.push(c),
            }
            before = c;
        }
        if quote.is_none()
            && let Some(word) = here_document(raw)
        {
            until = Some(word);
        }
        let (at, mut whole) = open.take().unwrap_or((n + 1, String::new()));
        whole.push_str(&line);
        let goes_on = whole.trim_end();
        if quote.is_some()
            || goes_on.ends_with('\\')
            || goes_on.ends_with('|')
            || goes_on.ends_with("&&")
        {
            let whole = goes_on.strip_suffix('\\').unwrap_or(goes_on);
            open = Some((at, format!("{whole} ")));
            continue;
        }
        lines.push((at, whole));
    }
    lines.extend(open);
    lines
}

/// The word that ends a here-document which begins in this line.
fn here_document(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("<<")?;
    // `<<<` is a here-string.
    if rest.starts_with('<') || line.trim_start().starts_with('#') {
        return None;
    }
    let rest = rest.strip_prefix('-').unwrap_or(rest).trim_start();
    let word: String = rest
        .chars()
        .filter(|c| !matches!(c, '\'' | '"' | '\\'))
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!word.is_empty()).then_some(word)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| c.is_whitespace() || "(){};&|`".contains(c))
        .filter(|word| !word.is_empty())
}

/// A command after a pipe, in the same line or in a loop that a pipe feeds, exits.
fn exits_in_pipe(line: &str) -> bool {
    let single = line.replace("||", "__").replace("|&", "| ");
    let Some((_, after)) = single.split_once('|') else {
        return false;
    };
    // What stands in front of the next list operator belongs to the pipeline.
    let braces = after.contains('{') || after.contains("while ") || after.contains('(');
    let end = if braces {
        None
    } else {
        after.find(['&', ';', '_']).filter(|at| {
            after.get(*at..).is_some_and(|rest| {
                rest.starts_with("&&") || rest.starts_with(';') || rest.starts_with("__")
            })
        })
    };
    let part = end.and_then(|at| after.get(..at)).unwrap_or(after);
    words(part).any(|word| word == "exit" || word == "return")
}

/// The last line of every function, with its number.
fn last_lines(code: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut last = Vec::new();
    let mut inside = false;
    let mut line: Option<(usize, String)> = None;
    for (n, text) in code {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            continue;
        }
        let begins = !text.starts_with(char::is_whitespace)
            && (trimmed.contains("()") || trimmed.starts_with("function "));
        if begins {
            inside = true;
            line = None;
            let body = trimmed.split_once('{').map(|(_, body)| body.trim());
            if let Some(body) = body.filter(|body| !body.is_empty()) {
                match body.strip_suffix('}') {
                    Some(body) => {
                        let end = body.trim().trim_end_matches(';');
                        let end = end.rsplit(';').next().unwrap_or_default();
                        last.push((*n, end.trim().to_owned()));
                        inside = false;
                    }
                    None => line = Some((*n, body.to_owned())),
                }
            }
        } else if inside && text.starts_with('}') {
            last.extend(line.take());
            inside = false;
        } else if inside {
            line = Some((*n, trimmed.to_owned()));
        }
    }
    last
}

/// `[ x ] && y` or `[[ x ]] && y` without an alternative.
fn is_guard(line: &str) -> bool {
    let line = line.trim().trim_end_matches(';');
    line.starts_with('[') && line.contains("] &&") && !line.contains("||")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, String)> {
        let findings = traps(Path::new("bin/session"), text);
        let word = |f: &Finding| f.text.split('`').nth(1).unwrap_or("other").to_owned();
        findings.iter().map(|f| (f.line, word(f))).collect()
    }

    #[test]
    fn each_trap_is_named_with_its_line() {
        assert_eq!(found("user_add() {\r\n  :\r\n}\r\n")[0].0, 1);
        assert_eq!(found("\u{feff}a() { :; }\n")[0].0, 1);
        let eval = "user_add() {\n    eval \"$cmdline\"\n}\n";
        assert_eq!(found(eval), [(2, "eval".into())]);
        for pipe in [
            "user_add() {\n    cat list | while read a; do exit 254; done\n}\n",
            "user_add() {\n    radclient x | grep -q ok || exit 1\n    echo x | { read a; exit 254; }\n    true\n}\n",
            "user_add() {\n    cat list |\n    while read a; do return 254; done\n}\n",
        ] {
            let all = found(pipe);
            assert_eq!(all.len(), 1, "{pipe}: {all:?}");
            assert_eq!(all[0].1, "exit", "{pipe}");
        }
        for guard in [
            "user_add() {\n    do_it\n    [ -n \"$ip\" ] && put \"$ip\"\n}\n",
            "user_add() { [[ $a == 1 ]] && put; }\n",
            "function user_add {\n    [ -n \"$ip\" ] &&\n        put\n}\n",
        ] {
            assert_eq!(found(guard).len(), 1, "{guard}");
        }
    }

    #[test]
    fn what_is_fine_is_left_alone() {
        let fine = r#"
# eval and exit | in a comment
user_add() {
    # cat x | exit 1
    send "$ip" || exit 254
    radclient <<< "User-Name=$login" | grep -q ACK || exit 254
    echo "eval | exit"
    cat <<EOF
eval | exit 3
EOF
    while read -r a; do exit 1; done < <(list)
    [ -n "$ip" ] && put "$ip"
    return 0
}
user_del() { [ -n "$ip" ] && take "$ip" || true; }
user_edit() {
    if [ -n "$ip" ]; then put; fi
}
evaluate() { :; }
"#;
        assert_eq!(found(fine), []);
    }

    proptest::proptest! {
        #[test]
        fn nothing_breaks_the_reader(text in "[\\x00-\\x7fю\\n|&{}\\[\\]'\"<]{0,300}") {
            let _ = found(&text);
        }
    }

    #[test]
    fn the_shipped_example_has_no_trap() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("oss/core/Example-Session");
        let file = dir.join("bin/session");
        let text = std::fs::read_to_string(&file).unwrap();
        let found = traps(&file, &text);
        let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{lines:#?}");
    }
}
