//! Firebird by its own `isql`: a child process per question, so that no client library has to
//! be linked. Values come as one line each: `+` and the text with its line ends escaped, `-` for
//! NULL, `!` for a text that is too long (`Source::text` makes them so).

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::map::Cell;
use super::source::PATIENCE;

/// Most bytes of an answer: a thousand rows of the longest kind.
const ANSWER_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of a complaint that are told.
const COMPLAINT_MAX: usize = 500;
/// Width of the name in `set list` output (isql of Firebird 2.1 to 4).
const NAME_WIDTH: usize = 32;

/// How the client is called.
pub(super) struct Isql {
    /// `isql-fb`
    pub(super) program: PathBuf,
    /// `host:/path` or an alias.
    pub(super) database: String,
    /// Login.
    pub(super) user: Option<String>,
    /// Given by environment, never as an argument.
    pub(super) password: Option<String>,
}

impl Isql {
    /// Rows of one question.
    pub(super) async fn rows(&self, select: &str, width: usize) -> Result<Vec<Vec<Cell>>, String> {
        let answer = self
            .run(&format!("set list on;\nset heading off;\n{select};\n"))
            .await?;
        read_rows(&answer, width)
    }

    /// Changes in one transaction; if one fails, none is kept.
    pub(super) async fn change(&self, statements: &[String]) -> Result<(), String> {
        let mut script =
            "set autoddl off;\nset transaction wait isolation level read committed record_version;\n"
                .to_owned();
        for statement in statements {
            script.push_str(statement);
            script.push_str(";\n");
        }
        script.push_str("commit;\n");
        self.run(&script).await.map(drop)
    }

    async fn run(&self, script: &str) -> Result<String, String> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the client of Firebird is a program; see tests/tidy.rs"
        )]
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args([
                "-quiet",
                "-bail",
                "-charset",
                "UTF8",
                "-input",
                "/dev/stdin",
            ])
            .arg(&self.database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(user) = &self.user {
            command.env("ISC_USER", user);
        }
        if let Some(password) = &self.password {
            command.env("ISC_PASSWORD", password);
        }
        let shown = self.program.display();
        let mut child = command.spawn().map_err(|e| {
            format!(
                "{shown} cannot be started: {e} (Debian's package firebird3.0-utils has isql-fb)"
            )
        })?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(format!("{shown} has no pipes"));
        };
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        let talk = async {
            let say = async {
                // One that ended early is told by its exit code.
                let _ = stdin.write_all(script.as_bytes()).await;
                drop(stdin);
            };
            let (mut out, mut err) = (stdout.take(ANSWER_MAX), stderr.take(ANSWER_MAX));
            let (_, out, err) = tokio::join!(
                say,
                out.read_to_end(&mut answer),
                err.read_to_end(&mut complaint)
            );
            out.and(err)?;
            child.wait().await
        };
        let status = tokio::time::timeout(PATIENCE, talk)
            .await
            .map_err(|_| format!("{shown} gave no answer in {PATIENCE:?}"))?
            .map_err(|e| format!("{shown}: {e}"))?;
        let complaint = String::from_utf8_lossy(&complaint);
        if !status.success() || complaint.contains("Statement failed") {
            let words: Vec<&str> = complaint.split_whitespace().collect();
            let text: String = words.join(" ").chars().take(COMPLAINT_MAX).collect();
            return Err(format!("{shown}: {text} ({status})"));
        }
        String::from_utf8(answer).map_err(|_| format!("{shown}: the answer is not UTF-8"))
    }
}

/// `C0                              +1424`, a line per column, a blank line between rows.
fn read_rows(answer: &str, width: usize) -> Result<Vec<Vec<Cell>>, String> {
    let mut rows = Vec::new();
    let mut row = Vec::with_capacity(width);
    for line in answer.lines().filter(|line| !line.trim().is_empty()) {
        let name = format!("C{}", row.len());
        let value = line
            .split_at_checked(NAME_WIDTH)
            .filter(|(head, _)| head.trim_end() == name)
            .map(|(_, value)| value.trim_end_matches(' ').trim_start_matches(' '))
            .ok_or_else(|| format!("an answer that is not understood, where {name} should be"))?;
        row.push(cell(value)?);
        if row.len() == width {
            rows.push(std::mem::take(&mut row));
        }
    }
    if row.is_empty() {
        Ok(rows)
    } else {
        Err("the answer ends within a row".to_owned())
    }
}

fn cell(value: &str) -> Result<Cell, String> {
    match value.as_bytes().first() {
        Some(b'-') if value.len() == 1 => Ok(Cell::Null),
        Some(b'!') if value.len() == 1 => Ok(Cell::TooLong),
        Some(b'+') => {
            let mut text = String::with_capacity(value.len());
            let mut rest = value.chars().skip(1);
            while let Some(c) = rest.next() {
                text.push(match c {
                    '\\' => match rest.next() {
                        Some('n') => '\n',
                        Some('r') => '\r',
                        Some(other) => other,
                        None => return Err("a value ends within an escape".to_owned()),
                    },
                    other => other,
                });
            }
            Ok(Cell::Text(text))
        }
        _ => Err("a value of an unknown form".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_set_list_are_read_and_nothing_else() {
        let line = |name: &str, value: &str| format!("{name:<32}{value}\n");
        let answer = format!(
            "\n{}{}\n{}{}",
            line("C0", "+7"),
            line("C1", "+a\\nC1 +b\\\\n\\r"),
            line("C0", "+8"),
            line("C1", "-")
        );
        let rows = read_rows(&answer, 2).unwrap();
        let text = |t: &str| Cell::Text(t.to_owned());
        assert_eq!(rows[0], [text("7"), text("a\nC1 +b\\n\r")]);
        assert_eq!(rows[1], [text("8"), Cell::Null]);
        assert_eq!(read_rows(&line("C0", "!"), 1).unwrap()[0], [Cell::TooLong]);
        assert!(read_rows("", 2).unwrap().is_empty());
        for bad in [
            line("C1", "+7"),
            line("C0", "7"),
            line("C0", "+\\"),
            "C0 +7\n".to_owned(),
        ] {
            assert!(read_rows(&bad, 1).is_err(), "{bad}");
        }
        assert!(read_rows(&line("C0", "+7"), 2).is_err());
    }
}
