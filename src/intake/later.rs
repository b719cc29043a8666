//! Retries that are spread over time. Each dead event keeps its own date, written when the order
//! comes; the daemon retries what is due. So an order outlives the daemon that took it, and who
//! wrote it down need not stay.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::event::{Class, Cmd, EventId};
use crate::store::{Error, EventRow, Result, Store, chain};

/// Longest time over which a retry is spread.
pub const SPREAD_MAX: Duration = Duration::from_secs(24 * 3600);

/// How often somebody looks whether something was dated, and so how far from now the first date
/// is: nearer, it could be missed, and would come together with the second.
const LOOK: Duration = Duration::from_secs(1);
/// Dates that are read at once.
const READ: usize = 100;
/// Later than this nobody was there to retry: all dates move on, that the rest comes no faster than
/// was wanted.
const LATE_MS: i64 = 10_000;

/// An order that was written down.
pub struct Ordered {
    /// When each event is retried.
    pub dates: Vec<(EventId, i64)>,
    /// How many of them still were dead.
    pub dated: u64,
    /// Events without a date: a later one of their lane is retried.
    pub left: usize,
}

/// Gives these dead events, newest first, dates within `spread`.
pub async fn order(store: &dyn Store, rows: &[EventRow], spread: Duration) -> Result<Ordered> {
    // Before others are dated: what was to come in the middle of an old order would move with it.
    if let Some((_, first)) = store.retries_due(1).await?.first() {
        move_late(store, *first, LATE_MS).await?;
    }
    let (wanted, left) = newest(rows);
    // An order before this one may have dated them.
    for row in left.iter().filter(|row| row.next_try_ms.is_some()) {
        store.forgo_retry(row.id).await?;
    }
    let ids: Vec<EventId> = wanted.iter().map(|row| row.id).collect();
    let dates = dates(&ids, spread, clock::wall_ms());
    let dated = store.retry_later(&dates).await?;
    Ok(Ordered {
        dates,
        dated,
        left: left.len(),
    })
}

/// Of events of one lane that change something only the first, the newest, and all that change
/// nothing; the others. Retried at once, the newest would keep the others from it; over time it may
/// be dead again when their turn comes.
fn newest(rows: &[EventRow]) -> (Vec<&EventRow>, Vec<&EventRow>) {
    let mut lanes = HashSet::new();
    rows.iter().partition(|row| {
        let looks = Cmd::parse(&row.cmd).is_ok_and(|cmd| cmd.class() == Class::Interactive);
        match (row.nas_id, row.user_id) {
            (Some(nas), Some(user)) if !looks => lanes.insert((nas, user)),
            _ => true,
        }
    })
}

/// Moves all dates on if the first is over for longer than this; whether it was.
async fn move_late(store: &dyn Store, first: i64, late_ms: i64) -> Result<bool> {
    let now = clock::wall_ms();
    if now.saturating_sub(first) <= late_ms {
        return Ok(false);
    }
    let many = store.move_retries(now).await?;
    tracing::info!("{many} retries that are spread over time go on");
    Ok(true)
}

/// Dates for these events, in their order, evenly within `spread`.
fn dates(ids: &[EventId], spread: Duration, now_ms: i64) -> Vec<(EventId, i64)> {
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
    // Whatever was due before the start was not retried for want of a daemon.
    let mut late_ms = 0;
    while !stop.is_cancelled() {
        let pause = match turn(store.as_ref(), &wake, late_ms).await {
            Ok(pause) => {
                late_ms = LATE_MS;
                pause
            }
            Err(error) => {
                tracing::warn!("retries that are due have to wait: {}", chain(&error));
                LOOK
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Retries what is due by now; how long nothing more will be.
async fn turn(store: &dyn Store, wake: &Notify, late_ms: i64) -> Result<Duration> {
    let now = clock::wall_ms();
    let next = store.retries_due(READ).await?;
    if let Some((_, first)) = next.first()
        && move_late(store, *first, late_ms).await?
    {
        return Ok(Duration::ZERO);
    }
    for (id, at) in &next {
        if let Ok(left @ 1..) = u64::try_from(at.saturating_sub(now)) {
            return Ok(Duration::from_millis(left).min(LOOK));
        }
        let why = match store.retry_dead(*id).await {
            Ok(Some(new)) => {
                tracing::info!("event={id} retried as event={new}");
                wake.notify_one();
                continue;
            }
            Ok(None) => "its lane has a later event".to_owned(),
            // It would be refused again, and keep all others from their turn.
            Err(error @ Error::Refused(_)) => chain(&error),
            Err(error) if error.blames_a_row() => chain(&error),
            Err(error) => return Err(error),
        };
        tracing::info!("event={id} not retried: {why}");
        store.forgo_retry(*id).await?;
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
    use crate::store::WhereIs;

    #[test]
    fn of_a_lane_only_the_newest_is_dated() {
        let row = |id: i64, cmd: &str, nas: i64, user: i64| EventRow {
            nas_id: Some(nas),
            user_id: Some(user),
            ..EventRow::new(EventId(id), WhereIs::Dead, "dead", cmd)
        };
        let rows = [
            row(9, "user_rate_set", 1, 1),
            row(8, "user_info", 1, 1),
            row(7, "user_add", 1, 1),
            row(6, "no_such_command", 2, 1),
            row(5, "user_add", 2, 1),
            row(4, "user_add", 1, 2),
            EventRow::new(EventId(3), WhereIs::Dead, "dead", "nas_check"),
            EventRow::new(EventId(2), WhereIs::Dead, "dead", "nas_check"),
        ];
        let ids = |rows: Vec<&EventRow>| rows.iter().map(|row| row.id.0).collect::<Vec<_>>();
        let (wanted, left) = newest(&rows);
        assert_eq!(ids(wanted), [9, 8, 6, 4, 3, 2]);
        assert_eq!(ids(left), [7, 5]);
    }

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
