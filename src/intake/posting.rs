//! Posts that come at the same time share a commit: one task takes what is queued, writes it in
//! one transaction and answers each post after that. What gathers meanwhile is the next
//! transaction, so a lone post never waits for others. A post that is refused, or whose key is
//! known, concerns nobody else; if the database refuses a transaction for a row in it, each post
//! goes by itself.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::event::CompactEvent;
use crate::intake::rest::Refusal;
use crate::store::{Idempotency, Post, Posted, Store};

/// Most posts of one transaction.
const SHARING_MAX: usize = 100;
/// Most events of a post that shares its transaction: with [`SHARING_MAX`] such posts it has 500
/// rows, as many as SQLite's writer may take at once. More are worth a commit of their own.
const SMALL: usize = 5;
/// Most bytes of the `params` of an event that does: one of its neighbours may not hold them up.
const PARAMS_MAX: usize = 4096;
/// Posts that may be queued; who finds the queue full waits at its end.
const QUEUE: usize = 1024;

/// What a caller posts.
#[derive(Debug)]
pub struct Ask {
    /// All or none.
    pub events: Vec<CompactEvent>,
    /// Its guard against being done twice.
    pub guard: Option<Idempotency>,
    /// Who it is, for the audit table.
    pub who: String,
}

/// The way of posts into the store.
pub struct Posting {
    store: Arc<dyn Store>,
    queue: mpsc::Sender<Queued>,
    /// Ends with its owner.
    _task: JoinSet<()>,
}

/// What became of a post; none = nothing was written, it shall go by itself.
type Answer = Option<Result<Posted, Refusal>>;

struct Queued {
    ask: Arc<Ask>,
    answer: oneshot::Sender<Answer>,
}

impl Posting {
    /// Starts the task.
    pub fn new(store: Arc<dyn Store>) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        task.spawn(run(Arc::clone(&store), queued));
        Self {
            store,
            queue,
            _task: task,
        }
    }

    /// Returns when the post is committed, or nothing of it is written.
    pub async fn post(&self, ask: &Arc<Ask>) -> Result<Posted, Refusal> {
        if ask.is_small() {
            let (answer, answered) = oneshot::channel();
            let queued = Queued {
                ask: Arc::clone(ask),
                answer,
            };
            if self.queue.send(queued).await.is_ok() {
                match answered.await {
                    Ok(Some(done)) => return done,
                    Ok(None) => {}
                    Err(_) => return Err(Refusal::stopping()),
                }
            }
        }
        let posted = self.store.post_all(&[ask.post()]).await;
        let done = posted.map_err(Refusal::store)?.into_iter().next();
        done.ok_or_else(Refusal::stopping)?.map_err(Refusal::store)
    }
}

async fn run(store: Arc<dyn Store>, mut queue: mpsc::Receiver<Queued>) {
    let mut sharing = Vec::with_capacity(SHARING_MAX);
    while queue.recv_many(&mut sharing, SHARING_MAX).await > 0 {
        let posts: Vec<Post<'_>> = sharing.iter().map(|queued| queued.ask.post()).collect();
        let answers: Vec<Answer> = match store.post_all(&posts).await {
            Ok(each) => {
                let each = each.into_iter();
                each.map(|done| Some(done.map_err(Refusal::store)))
                    .collect()
            }
            Err(error) if posts.len() > 1 && error.blames_a_row() => {
                tracing::warn!(%error, "{} posts go one by one: the database refuses one of them",
                    posts.len());
                vec![None; posts.len()]
            }
            Err(error) => {
                let refused = Some(Err(Refusal::store(error)));
                // Who waits behind them would wait as long for the same.
                while let Ok(queued) = queue.try_recv() {
                    let _ = queued.answer.send(refused.clone());
                }
                vec![refused; posts.len()]
            }
        };
        for (queued, answer) in sharing.drain(..).zip(answers) {
            // Nobody listens any more if the daemon stops.
            let _ = queued.answer.send(answer);
        }
    }
}

impl Ask {
    fn is_small(&self) -> bool {
        let short = |event: &CompactEvent| {
            let params = event.params.as_ref().map(serde_json::to_string);
            params.is_none_or(|text| text.is_ok_and(|text| text.len() <= PARAMS_MAX))
        };
        self.events.len() <= SMALL && self.events.iter().all(short)
    }

    fn post(&self) -> Post<'_> {
        Post {
            events: &self.events,
            guard: self.guard.as_ref(),
            who: Some(&self.who),
        }
    }
}
