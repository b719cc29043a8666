//! A PostgreSQL server of a test's own, which it may kill: the shared one serves every other test.

use std::process::Stdio;

use nas_event_daemon::clock;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Does what it is told, a word a line, and answers each with a line; the end of its input stops
/// the server and removes its directory.
const KEEPER: &str = r#"
set -e
source scripts/lib-postgres.sh
trap postgres_stop EXIT
postgres_start "$@"
echo "$PG_URL"
while read -r word; do
    case $word in
        kill) postgres_kill ;;
        up) until postgres_up; do sleep 0.1; done ;;
    esac
    echo "$word"
done
"#;

/// How long its end may take on a busy machine, ms.
const END_MS: u64 = 60_000;

/// The server; it has ended when this has been dropped.
pub struct Server {
    pub url: String,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    keeper: Child,
}

impl Drop for Server {
    /// Its keeper is told by the end of its input, and waited for: what outlives a test is a leak.
    fn drop(&mut self) {
        self.input.take();
        let until = clock::tick_ms() + END_MS;
        while let Ok(None) = self.keeper.try_wait() {
            if clock::tick_ms() > until {
                let _ = self.keeper.start_kill();
                return;
            }
            // Between two questions: a drop cannot await, and the keeper's end is the condition.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Server {
    /// Starts one with these settings, `key=value`.
    pub async fn start(settings: &[&str]) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the peer is a program")]
        let mut command = Command::new("bash");
        let mut keeper = command
            .args(["-c", KEEPER, "keeper"])
            .args(settings)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = keeper.stdin.take().unwrap();
        let mut output = BufReader::new(keeper.stdout.take().unwrap()).lines();
        let url = output
            .next_line()
            .await
            .unwrap()
            .expect("PostgreSQL does not start; see scripts/test --install");
        Self {
            url,
            input: Some(input),
            output,
            keeper,
        }
    }

    /// SIGKILL, as a power cut of its host would look to its clients.
    pub async fn kill(&mut self) {
        self.tell("kill").await;
    }

    /// Starts it again on the same data and port, and waits until it answers.
    pub async fn up(&mut self) {
        self.tell("up").await;
    }

    async fn tell(&mut self, word: &str) {
        let line = format!("{word}\n");
        let input = self.input.as_mut().unwrap();
        input.write_all(line.as_bytes()).await.unwrap();
        let answer = self.output.next_line().await.unwrap();
        assert_eq!(answer.as_deref(), Some(word));
    }
}
