//! A bar on stderr while something takes long, where a terminal is there to show it; in a pipe
//! nothing at all.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::task::JoinSet;

/// Cells of the bar.
const WIDTH: u64 = 30;
/// Between two looks at what is watched.
const LOOK: Duration = Duration::from_millis(200);
/// Goes to the line's begin and clears it (ECMA-48, EL).
const CLEAR: &str = "\r\u{1b}[K";

/// One bar. Its line is cleared at the end, so that what follows begins on a clean one.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    what: &'static str,
    whole: u64,
    /// Aborted when this is dropped.
    watcher: JoinSet<()>,
}

impl Progress {
    /// Of `whole` pieces; shows nothing before the first [`Progress::at`].
    pub fn of(what: &'static str, whole: u64) -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
            what,
            whole,
            watcher: JoinSet::new(),
        }
    }

    /// Looks by itself how far it is, every 0.2 s.
    pub fn watch(what: &'static str, whole: u64, done: impl Fn() -> u64 + Send + 'static) -> Self {
        let mut progress = Self::of(what, whole);
        if progress.shown {
            // Also of what has ended before the first look of the watcher.
            draw(what, done(), whole);
            progress.watcher.spawn(async move {
                loop {
                    draw(what, done(), whole);
                    tokio::time::sleep(LOOK).await;
                }
            });
        }
        progress
    }

    /// So many pieces are done.
    pub fn at(&self, done: u64) {
        if self.shown {
            draw(self.what, done, self.whole);
        }
    }

    /// Clears the line.
    pub fn end(self) {}
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.watcher.abort_all();
        if self.shown {
            let _ = write!(std::io::stderr(), "{CLEAR}");
        }
    }
}

fn draw(what: &str, done: u64, whole: u64) {
    let _ = write!(std::io::stderr(), "{CLEAR}{}", line(what, done, whole));
    let _ = std::io::stderr().flush();
}

fn line(what: &str, done: u64, whole: u64) -> String {
    let done = done.min(whole);
    let percent = done.saturating_mul(100).checked_div(whole).unwrap_or(100);
    let full = usize::try_from(percent.saturating_mul(WIDTH) / 100).unwrap_or(0);
    let rest = usize::try_from(WIDTH).unwrap_or(0).saturating_sub(full);
    format!(
        "{what} [{}{}] {percent:>3} %  {done} of {whole}",
        "#".repeat(full),
        ".".repeat(rest)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar() {
        let cells = |done, whole| {
            let text = line("x", done, whole);
            (text.matches('#').count(), text.matches('.').count())
        };
        assert_eq!(cells(0, 10), (0, 30));
        assert_eq!(cells(5, 10), (15, 15));
        assert_eq!(cells(11, 10), (30, 0));
        assert_eq!(cells(0, 0), (30, 0));
        assert_eq!(
            line("copying", 5, 10),
            format!(
                "copying [{}{}]  50 %  5 of 10",
                "#".repeat(15),
                ".".repeat(15)
            )
        );
    }
}
