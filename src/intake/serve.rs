//! The sockets under the doors: TCP listeners and the operators' control socket. Owns every
//! bound that keeps one bad client from hurting the others: connections, header time, time
//! without progress, header size; and the orderly end.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::clock;
use crate::intake::access::{Locals, Peer};

/// Bounds of one listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's backlog. Each costs a file and some KiB.
    pub connections: usize,
    /// From the first byte of a connection, or the last answer, to the end of the next
    /// header: also the idle time of a kept-alive connection.
    pub header: Duration,
    /// Longest time in which no byte is read or written; above `?wait=`'s 60 s.
    pub stalled: Duration,
    /// What requests get to end when the daemon stops.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            header: Duration::from_secs(10),
            stalled: Duration::from_secs(120),
            grace: Duration::from_secs(5),
        }
    }
}

/// Largest request head, bytes; longer ones get 431.
const HEAD_MAX: usize = 16 * 1024;
/// Read buffer of one connection, bytes; above [`HEAD_MAX`], so that bodies come in large parts.
const BUFFER_MAX: usize = 64 * 1024;
/// Pause after a failed accept (no files left): others may close one meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long the user database may take to say in which groups a peer is.
const PEER_TIME: Duration = Duration::from_secs(5);
/// Owner and group may connect; who they are is then asked of the kernel.
const CTL_MODE: u32 = 0o660;

/// Serves TCP clients until `stop`, then lets open requests end.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    serve_tcp(listener, router, stop, Limits::default()).await;
}

/// Serves the control socket until `stop`; `locals` says who may what there.
pub async fn serve_ctl(
    listener: UnixListener,
    router: Router,
    stop: CancellationToken,
    locals: Locals,
) {
    let mut open = Open::new(router, stop, Limits::default());
    while let Some(permit) = open.slot().await {
        let accepted = tokio::select! {
            () = open.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream))) {
            Ok((cred, stream)) => {
                let peer = local_peer(locals.clone(), cred.uid(), cred.gid());
                open.start(stream, peer, permit);
            }
            Err(error) => refused_accept(&error).await,
        }
    }
    open.finish().await;
}

/// [`serve`] with other bounds than the defaults.
pub async fn serve_tcp(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    limits: Limits,
) {
    let mut open = Open::new(router, stop, limits);
    while let Some(permit) = open.slot().await {
        let accepted = tokio::select! {
            () = open.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                // Answers are small and waited for.
                let _ = stream.set_nodelay(true);
                open.start(stream, std::future::ready(Peer::Tcp(address)), permit);
            }
            Err(error) => refused_accept(&error).await,
        }
    }
    open.finish().await;
}

/// Who a peer of the control socket is; whom the user database does not know in time is a stranger.
async fn local_peer(locals: Locals, uid: u32, gid: u32) -> Peer {
    let asked = tokio::task::spawn_blocking(move || locals.scope(uid, gid));
    let scope = match tokio::time::timeout(PEER_TIME, asked).await {
        Ok(scope) => scope.ok().flatten(),
        Err(_) => None,
    };
    Peer::Unix { uid, scope }
}

/// Binds the control socket, replacing one that nobody listens on any more.
pub fn bind_ctl(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another daemon listens on {}", path.display()),
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(CTL_MODE))?;
    Ok(listener)
}

async fn refused_accept(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// The open connections of one listener.
struct Open {
    router: Router,
    stop: CancellationToken,
    limits: Limits,
    slots: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Open {
    fn new(router: Router, stop: CancellationToken, limits: Limits) -> Self {
        Self {
            router,
            stop,
            limits,
            slots: Arc::new(Semaphore::new(limits.connections)),
            tasks: JoinSet::new(),
        }
    }

    /// Waits for a free place; `None` = stop.
    async fn slot(&mut self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        while self.tasks.try_join_next().is_some() {}
        tokio::select! {
            () = self.stop.cancelled() => None,
            permit = Arc::clone(&self.slots).acquire_owned() => permit.ok(),
        }
    }

    fn start<S>(
        &mut self,
        stream: S,
        peer: impl Future<Output = Peer> + Send + 'static,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, stop, limits) = (self.router.clone(), self.stop.clone(), self.limits);
        self.tasks.spawn(async move {
            connection(stream, peer.await, router, stop, limits).await;
            drop(permit);
        });
    }

    async fn finish(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.limits.grace, all).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

async fn connection<S>(
    stream: S,
    peer: Peer,
    router: Router,
    stop: CancellationToken,
    limits: Limits,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let moved = Arc::new(AtomicU64::new(clock::tick_ms()));
    let io = TokioIo::new(Watched {
        stream,
        moved: Arc::clone(&moved),
    });
    let answer = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let mut router = router.clone();
        async move { router.call(request.map(Body::new)).await }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_header_size(HEAD_MAX)
        .max_buf_size(BUFFER_MAX);
    let http = builder.serve_connection(io, answer);
    let mut http = std::pin::pin!(http);
    tokio::select! {
        _ = http.as_mut() => return,
        () = stalled(&moved, limits.stalled) => return,
        () = stop.cancelled() => http.as_mut().graceful_shutdown(),
    }
    // Broken connections are the client's affair; there is nobody to tell.
    let _ = http.await;
}

/// Returns when nothing has moved for `limit`.
async fn stalled(moved: &AtomicU64, limit: Duration) {
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    loop {
        let still = clock::tick_ms().saturating_sub(moved.load(Ordering::Relaxed));
        if still >= limit {
            return;
        }
        tokio::time::sleep(Duration::from_millis(limit - still)).await;
    }
}

/// A stream that notes when a byte last moved.
struct Watched<S> {
    stream: S,
    moved: Arc<AtomicU64>,
}

impl<S> Watched<S> {
    fn mark(&self) {
        self.moved.store(clock::tick_ms(), Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            self.mark();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if polled.is_ready() {
            self.mark();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
