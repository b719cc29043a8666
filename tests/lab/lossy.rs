//! A line between a client and PostgreSQL on which the answer to a COMMIT gets lost: the server has
//! committed, the client cannot know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// When armed, it passes the next COMMIT on, swallows its answer and hangs up.
pub struct Lossy {
    /// Where clients connect to.
    pub url: String,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    armed: AtomicBool,
    lost: AtomicUsize,
    hold: AtomicBool,
    held: AtomicBool,
    release: Notify,
    mute: AtomicBool,
    muted: AtomicUsize,
    unmute: Notify,
    cut: AtomicBool,
}

impl Lossy {
    /// A line to the server behind `url`.
    pub async fn before(url: &str) -> Self {
        let (rest, database) = url.rsplit_once('/').unwrap();
        let (user, server) = rest.rsplit_once('@').unwrap();
        let server = server.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let mut tasks = JoinSet::new();
        let seen = Arc::clone(&state);
        tasks.spawn(async move {
            let mut lines = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                lines.spawn(carry(client, server, Arc::clone(&seen)));
            }
        });
        Self {
            url: format!("{user}@127.0.0.1:{port}/{database}"),
            state,
            _tasks: tasks,
        }
    }

    /// The next COMMIT gets no answer.
    pub fn arm(&self) {
        self.state.armed.store(true, Ordering::SeqCst);
    }

    /// The answer of the next COMMIT is kept back until [`Self::release`].
    pub fn hold(&self) {
        self.state.hold.store(true, Ordering::SeqCst);
    }

    /// Whether one is kept back, or was.
    pub fn held(&self) -> bool {
        self.state.held.load(Ordering::SeqCst)
    }

    /// The answer that is kept back goes on. What is asked from now on waits for [`Self::unmute`].
    pub fn release(&self) {
        self.state.mute.store(true, Ordering::SeqCst);
        self.state.release.notify_one();
    }

    /// How many have asked since, each on a line of its own.
    pub fn muted(&self) -> usize {
        self.state.muted.load(Ordering::SeqCst)
    }

    /// Everything goes on.
    pub fn unmute(&self) {
        self.state.mute.store(false, Ordering::SeqCst);
        self.state.unmute.notify_waiters();
    }

    /// While it is cut, lines that are there pass no answer on; new ones do once it is mended.
    pub fn cut(&self, cut: bool) {
        self.state.cut.store(cut, Ordering::SeqCst);
    }

    /// How many have got none.
    pub fn lost(&self) -> usize {
        self.state.lost.load(Ordering::SeqCst)
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, state: Arc<State>) {
    let mut asked = vec![0; 64 * 1024];
    let mut answered = vec![0; 64 * 1024];
    loop {
        tokio::select! {
            n = client.read(&mut asked) => {
                let Ok(n @ 1..) = n else { return };
                let unmuted = state.unmute.notified();
                if state.mute.load(Ordering::SeqCst) {
                    state.muted.fetch_add(1, Ordering::SeqCst);
                    unmuted.await;
                }
                let commit = asked[..n].windows(6).any(|w| w == b"COMMIT");
                let lost = commit && state.armed.swap(false, Ordering::SeqCst);
                let held = commit && state.hold.swap(false, Ordering::SeqCst);
                if server.write_all(&asked[..n]).await.is_err() {
                    return;
                }
                if lost {
                    // The server has committed once its answer is here; the client never sees it.
                    let _answer = server.read(&mut answered).await;
                    state.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                if held {
                    let n = server.read(&mut answered).await.unwrap_or(0);
                    state.held.store(true, Ordering::SeqCst);
                    state.release.notified().await;
                    if client.write_all(&answered[..n]).await.is_err() {
                        return;
                    }
                }
            }
            n = server.read(&mut answered) => {
                let Ok(n @ 1..) = n else { return };
                if state.cut.load(Ordering::SeqCst) {
                    // Nobody is told that it is gone.
                    while client.read(&mut asked).await.is_ok_and(|n| n > 0) {}
                    return;
                }
                if client.write_all(&answered[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
