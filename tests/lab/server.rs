//! A PostgreSQL server of a test's own, which it may kill: the shared one serves every other test.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use nas_event_daemon::clock;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Does what it is told, a word a line, and answers each with a line; the end of its input stops
/// the server and removes its directory.
const KEEPER: &str = r#"
set -e
source scripts/lib-postgres.sh
read -ra PG_UNDER <<<"${NED_UNDER-}"
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

/// Puts a file system of `$1` bytes over the directory `$2` and becomes the rest of its arguments,
/// which see it; as the user `$3`, since PostgreSQL does not run as root.
const SMALL_DISK: &str = r#"
set -e
size=$1 dir=$2 user=$3
shift 3
mount -t tmpfs -o "size=$size,mode=755" none "$dir"
if [ "$user" = 0 ]; then
    exec "$@"
fi
exec unshare --map-user="$user" "$@"
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
        Self::start_by(&[], &std::env::temp_dir(), settings).await
    }

    /// The same with its data in `dir`, on a file system of `size` bytes in memory that only the
    /// server sees.
    pub async fn on_small_disk(size: &str, dir: &Path, settings: &[&str]) -> Self {
        let user = nix::unistd::geteuid().to_string();
        // Only root may mount; it keeps its users, since the server needs one of them.
        let root: &[&str] = if user == "0" {
            &[]
        } else {
            &["--map-root-user"]
        };
        let text = dir.to_string_lossy();
        let disk = ["--mount", "sh", "-c", SMALL_DISK, "sh", size, &text, &user];
        let by = [&["unshare"][..], root, &disk[..]].concat();
        Self::start_by(&by, dir, settings).await
    }

    /// The same with a clock that shows what `clock` says against the true one, `+1d`; `library` is
    /// libfaketime. The file must be readable for the server's user.
    pub async fn with_clock(library: &Path, clock: &Path) -> Self {
        let under = format!(
            "NED_UNDER=env LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1",
            library.display(),
            clock.display()
        );
        Self::start_by(&["env", &under], &std::env::temp_dir(), &[]).await
    }

    async fn start_by(by: &[&str], dir: &Path, settings: &[&str]) -> Self {
        let words = [by, &["bash", "-c", KEEPER, "keeper"], settings].concat();
        #[expect(clippy::disallowed_methods, reason = "the peer is a program")]
        let mut command = Command::new(words[0]);
        let mut keeper = command
            .args(&words[1..])
            .env("TMPDIR", dir)
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

    /// A path as the server sees it.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let pid = self.keeper.id().unwrap();
        PathBuf::from(format!("/proc/{pid}/root{}", path.display()))
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
