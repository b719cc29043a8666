//! Retries that are spread over time. Each dead event keeps its own date, written with all others
//! of its order in one transaction; the daemon retries what is due. So an order outlives the daemon
//! that took it, and who wrote it down need not stay.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::event::EventId;
use crate::store::{Result, Store, chain};

/// How often somebody looks whether something was dated, and so how far from now the first date
/// is: nearer, it could be missed, and would come together with the second.
const LOOK: Duration = Duration::from_secs(1);
/// Dates that are read at once.
const READ: usize = 100;

/// Dates for these events, in their order, evenly within `spread`.
pub fn dates(ids: &[EventId], spread: Duration, now_ms: i64) -> Vec<(EventId, i64)> {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let many = u32::try_from(ids.len()).unwrap_or(u32::MAX).max(1);
    let first = now_ms.saturating_add(ms(LOOK));
    let dated = ids.iter().zip(0_u32..).map(|(id, n)| {
        let after = spread.saturating_mul(n).checked_div(many);
        (*id, first.saturating_add(ms(after.unwrap_or_default())))
    });
    dated.collect()
}

/// Retries what is due, until `stop`. Told of it is `wake`: there is something to expand.
pub async fn run(store: Arc<dyn Store>, wake: Arc<Notify>, stop: CancellationToken) {
    let mut moved = false;
    while !stop.is_cancelled() {
        let turn = async {
            if !moved {
                let many = store.move_retries(clock::wall_ms()).await?;
                if many > 0 {
                    tracing::info!("{many} retries that are spread over time go on");
                }
                moved = true;
            }
            turn(store.as_ref(), &wake).await
        };
        let pause = turn.await.unwrap_or_else(|error| {
            tracing::warn!("retries that are due have to wait: {}", chain(&error));
            LOOK
        });
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Retries what is due by now; how long nothing more will be.
async fn turn(store: &dyn Store, wake: &Notify) -> Result<Duration> {
    let now = clock::wall_ms();
    let next = store.retries_due(READ).await?;
    for (id, at) in &next {
        if let Ok(left @ 1..) = u64::try_from(at.saturating_sub(now)) {
            return Ok(Duration::from_millis(left).min(LOOK));
        }
        match store.retry_dead(*id).await? {
            Some(new) => {
                tracing::info!("event={id} retried as event={new}");
                wake.notify_one();
            }
            None => {
                tracing::info!("event={id} not retried: its lane has a later event");
                store.forgo_retry(*id).await?;
            }
        }
    }
    Ok(if next.len() < READ {
        LOOK
    } else {
        Duration::ZERO
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_even_and_end_within_the_time() {
        let ids = [EventId(9), EventId(8), EventId(7), EventId(6)];
        let dated = dates(&ids, Duration::from_secs(40), 5_000);
        let first = 5_000 + 1_000;
        assert_eq!(
            dated,
            [
                (EventId(9), first),
                (EventId(8), first + 10_000),
                (EventId(7), first + 20_000),
                (EventId(6), first + 30_000)
            ]
        );
        assert_eq!(dates(&[], Duration::from_secs(40), 0), []);
    }
}
