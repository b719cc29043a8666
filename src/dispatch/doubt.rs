//! Permanent answers that are not believed yet. Whether a device refuses one event, or everybody's
//! since its firmware was changed, shows only in how it treats the others; until that is known the
//! event waits at the head of its lane, and nothing dies of it. Pure.
//!
//! An answer is final when the NAS has obeyed somebody since the event was refused first, or when
//! nobody else has had the same answer for a while. As long as others are refused alike and nobody
//! is obeyed, it stays open: until the breaker parks the NAS, or the event has used up its tries.

use std::collections::VecDeque;
use std::time::Duration;

use crate::event::EventId;

/// How long an answer stays open that nobody else has had: long enough for others to run on a NAS
/// that has work to do, short enough for an operator who waits.
const ALONE: Duration = Duration::from_secs(5);
/// Events remembered; a forgotten one is tried once more.
const DOUBTS_MAX: usize = 256;

/// Whether a permanent answer may be held against its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// It is final.
    None,
    /// Nobody else had it yet, and nobody was obeyed.
    Alone,
    /// Others had it, and nobody was obeyed.
    Shared,
}

/// The wait for others to show what is refused; never longer than the first wait of any event.
pub fn alone(retry_base: Duration) -> Duration {
    ALONE.min(retry_base)
}

#[derive(Debug, Clone)]
struct Refused {
    event: EventId,
    /// Monotonic ms of the first refusal.
    at: u64,
    /// Attempts that had started by then.
    starts: u64,
}

/// The open answers of one NAS.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubts {
    refused: VecDeque<Refused>,
    starts: u64,
    /// The last start that was obeyed.
    obeyed: u64,
}

impl Doubts {
    /// Numbers an attempt: obedience proves something only if it started after a refusal.
    pub(super) fn started(&mut self) -> u64 {
        self.starts += 1;
        self.starts
    }

    /// Attempts that have started.
    pub(super) fn starts(&self) -> u64 {
        self.starts
    }

    /// Whether the event was refused before.
    pub(super) fn knows(&self, event: EventId) -> bool {
        self.refused.iter().any(|r| r.event == event)
    }

    /// The NAS did what the attempt of this number asked for.
    pub(super) fn obeyed(&mut self, start: u64) {
        self.obeyed = self.obeyed.max(start);
    }

    /// The settings changed: what was refused before says nothing.
    pub(super) fn clear(&mut self) {
        self.refused.clear();
    }

    /// Judges a permanent answer to this event. `shared`: other accounts had it, too, since the
    /// NAS last obeyed; `alone_ms`: see [`alone`].
    pub(super) fn judge(&mut self, now: u64, event: EventId, shared: bool, alone_ms: u64) -> Doubt {
        let doubt = if shared { Doubt::Shared } else { Doubt::Alone };
        let Some(at) = self.refused.iter().position(|r| r.event == event) else {
            if self.refused.len() >= DOUBTS_MAX {
                self.refused.pop_front();
            }
            self.refused.push_back(Refused {
                event,
                at: now,
                starts: self.starts,
            });
            return doubt;
        };
        let is_final = self.refused.get(at).is_none_or(|first| {
            self.obeyed > first.starts || (!shared && now >= first.at.saturating_add(alone_ms))
        });
        if is_final {
            self.refused.remove(at);
            return Doubt::None;
        }
        doubt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const E: EventId = EventId(1);

    #[test]
    fn a_refusal_that_nobody_shares_is_final_after_the_wait() {
        let mut d = Doubts::default();
        assert_eq!(d.judge(0, E, false, 5_000), Doubt::Alone);
        // A new event of the account cut the wait short.
        assert_eq!(d.judge(4_999, E, false, 5_000), Doubt::Alone);
        assert_eq!(d.judge(5_000, E, false, 5_000), Doubt::None);
    }

    #[test]
    fn a_shared_refusal_is_final_when_somebody_was_obeyed_since() {
        let mut d = Doubts::default();
        let before = d.started();
        assert_eq!(d.judge(0, E, false, 5_000), Doubt::Alone);
        for minute in 1..60 {
            assert_eq!(d.judge(minute * 60_000, E, true, 5_000), Doubt::Shared);
        }
        // It was on its way when the event was refused: the firmware was perhaps another one.
        d.obeyed(before);
        assert_eq!(d.judge(3_600_000, E, true, 5_000), Doubt::Shared);
        let after = d.started();
        d.obeyed(after);
        assert_eq!(d.judge(3_700_000, E, true, 5_000), Doubt::None);
    }

    #[test]
    fn changed_settings_and_a_full_memory_give_one_more_try() {
        let mut d = Doubts::default();
        d.judge(0, E, false, 5_000);
        d.clear();
        assert_eq!(d.judge(9_000, E, false, 5_000), Doubt::Alone);
        for other in 0..DOUBTS_MAX {
            let event = EventId(2 + i64::try_from(other).unwrap());
            d.judge(9_000, event, true, 5_000);
        }
        assert_eq!(d.judge(99_000, E, false, 5_000), Doubt::Alone);
    }

    #[test]
    fn the_wait_is_never_longer_than_that_of_any_event() {
        assert_eq!(alone(Duration::from_millis(100)).as_millis(), 100);
        assert_eq!(alone(Duration::from_millis(61_200)), ALONE);
    }
}
