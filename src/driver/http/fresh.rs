//! Which answer is the first on its connection: the client keeps connections by itself and says
//! of none whether it was made for this request.
//!
//! A connection is known by our end of it, which no other has while it lives. Counting would
//! not do: a request may get a kept connection while the one begun for it goes to another.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper::http::Extensions;
use hyper_util::client::legacy::connect::{Connection, HttpInfo};
use tower_layer::Layer;
use tower_service::Service;

/// Our ends of the connections that have not carried an answer yet. One that never will leaves
/// its entry, of which there are as many as a host has ports, at most.
#[derive(Debug, Clone, Default)]
pub(super) struct Fresh(Arc<Mutex<HashSet<SocketAddr>>>);

impl Fresh {
    /// Whether an answer is the first on its connection; asked once for each.
    pub(super) fn first(&self, answer: &Extensions) -> bool {
        our_end(answer).is_some_and(|end| self.ends(|ends| ends.remove(&end)))
    }

    fn made(&self, connection: &impl Connection) {
        let mut extras = Extensions::new();
        connection.connected().get_extras(&mut extras);
        if let Some(end) = our_end(&extras) {
            self.ends(|ends| ends.insert(end));
        }
    }

    fn ends(&self, change: impl FnOnce(&mut HashSet<SocketAddr>) -> bool) -> bool {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn our_end(extras: &Extensions) -> Option<SocketAddr> {
    extras.get::<HttpInfo>().map(HttpInfo::local_addr)
}

impl<S> Layer<S> for Fresh {
    type Service = Noting<S>;

    fn layer(&self, connector: S) -> Noting<S> {
        Noting {
            connector,
            fresh: self.clone(),
        }
    }
}

/// Makes connections, TLS included, and notes each.
#[derive(Debug, Clone)]
pub(super) struct Noting<S> {
    connector: S,
    fresh: Fresh,
}

impl<S, To> Service<To> for Noting<S>
where
    S: Service<To, Response: Connection, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, to: To) -> Self::Future {
        let connecting = self.connector.call(to);
        let fresh = self.fresh.clone();
        Box::pin(async move {
            let made = connecting.await;
            if let Ok(connection) = &made {
                fresh.made(connection);
            }
            made
        })
    }
}
