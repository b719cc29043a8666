//! The attempts that are under way: those whose NAS is being spoken to, and those that have been
//! obeyed and are only written down. A shutdown may cut the former, never the latter.

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::Finished;
use super::fork::Rest;

/// How far a task of an attempt has come.
pub enum Ended {
    /// The NAS has obeyed: the fork is free, what remains is to write it down.
    Obeyed(Box<Rest>),
    /// Written down.
    Finished(Box<Finished>),
}

/// A task that has ended.
pub(super) type Joined = Result<(Id, Ended), JoinError>;

/// All tasks of attempts.
#[derive(Default)]
pub(super) struct Attempts {
    forks: JoinSet<Ended>,
    rests: JoinSet<Ended>,
}

impl Attempts {
    /// Starts a fork.
    pub(super) fn start(
        &mut self,
        fork: impl Future<Output = Ended> + Send + 'static,
    ) -> AbortHandle {
        self.forks.spawn(fork)
    }

    /// Writes down what remains of one.
    pub(super) fn conclude(&mut self, rest: Box<Rest>) -> AbortHandle {
        let concluding = async move {
            // The next sentence goes to the NAS first.
            tokio::task::yield_now().await;
            Ended::Finished(Box::new(rest.conclude()))
        };
        self.rests.spawn(concluding)
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.forks.is_empty() && self.rests.is_empty()
    }

    /// Waits for the next that ends; for ever if there is none. Cancel-safe, as `join_next` is.
    pub(super) async fn next(&mut self) -> Joined {
        tokio::select! {
            Some(ended) = self.forks.join_next_with_id() => ended,
            Some(ended) = self.rests.join_next_with_id() => ended,
            else => std::future::pending().await,
        }
    }

    /// One that has ended already.
    pub(super) fn try_next(&mut self) -> Option<Joined> {
        self.forks
            .try_join_next_with_id()
            .or_else(|| self.rests.try_join_next_with_id())
    }

    /// Ends every fork: dropping it drops its session and closes the pipe of its shim, which ends
    /// the script. What was obeyed before is given by [`Self::next`].
    pub(super) fn cut(&mut self) {
        self.forks.abort_all();
    }
}
