//! A line between a client and PostgreSQL on which the answer to a COMMIT gets lost: the server has
//! committed, the client cannot know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
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
                let lost = asked[..n].windows(6).any(|w| w == b"COMMIT")
                    && state.armed.swap(false, Ordering::SeqCst);
                if server.write_all(&asked[..n]).await.is_err() {
                    return;
                }
                if lost {
                    // The server has committed once its answer is here; the client never sees it.
                    let _answer = server.read(&mut answered).await;
                    state.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
            n = server.read(&mut answered) => {
                let Ok(n @ 1..) = n else { return };
                if client.write_all(&answered[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
