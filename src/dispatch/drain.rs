//! The end of the scheduler: nothing starts any more, what runs gets its time.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Message;
use super::lanes::Gone;
use super::scheduler::{Scheduler, State};
use crate::clock;
use crate::event::EventId;
use crate::nas::NasId;
use crate::store::{Error, Settle, SettleTo};

impl Scheduler {
    /// Nothing starts any more; running events get their time, then are ended and go back to
    /// ready, flagged.
    pub(super) async fn drain(
        &self,
        s: &mut State,
        inbox: &mut mpsc::Receiver<Message>,
        hard: &CancellationToken,
    ) -> Result<(), Error> {
        self.give_back(s, clock::tick_ms(), clock::wall_ms(), true);
        while !s.settles.is_empty() {
            self.round(s, true, hard).await?;
        }
        let end = tokio::time::sleep(self.config.drain);
        tokio::pin!(end);
        while !s.attempts.is_empty() {
            tokio::select! {
                ended = s.attempts.next() => self.ended(s, ended),
                message = inbox.recv() => if let Some(Message::Finished(f)) = message { self.finished(s, f) },
                () = &mut end => break,
                () = hard.cancelled() => break,
            }
            self.reap(s);
            while !s.settles.is_empty() {
                self.round(s, true, hard).await?;
            }
        }
        s.attempts.cut();
        while !s.attempts.is_empty() {
            match s.attempts.next().await {
                Err(error) if error.is_cancelled() => {}
                ended => self.ended(s, ended),
            }
        }
        let cut: Vec<(EventId, NasId, u32)> = s
            .out
            .iter()
            .filter(|(_, o)| !o.finished && o.try_count > 0)
            .map(|(id, o)| (*id, o.nas, o.try_count))
            .collect();
        for (id, nas, try_count) in cut {
            tracing::warn!("event={id} was cut short by the shutdown and goes back to ready");
            let settle = Settle {
                id,
                try_count: Some(try_count),
                to: SettleTo::Ready {
                    possible_duplicate: true,
                },
                code: 0,
                ms: 0,
                error: Some("cut short by a shutdown of the daemon".to_owned()),
            };
            s.settles.push((settle, Gone::Released));
            self.untold(s, id, nas);
        }
        while !s.settles.is_empty() {
            self.round(s, true, hard).await?;
        }
        self.told(s).await;
        Ok(())
    }
}
