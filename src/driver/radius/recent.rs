//! What a device may still know: the packets that were sent a moment ago. A CoA-Request's
//! authenticator is a digest of its content (RFC 5176 section 2.3), so the same request under the
//! same identifier has the same bytes, and a device takes it for a copy: it repeats its old answer
//! instead of doing again what was undone in between (RFC 5080 section 2.2.2).

use std::collections::{HashMap, VecDeque};

use super::packet::Authenticator;

/// FreeRADIUS keeps an answer for 5 s, at most for 30 (radiusd.conf, `cleanup_delay`), from when it
/// has it; a little more than that, for the way. Milliseconds, from the last copy on.
pub(super) const REMEMBERED_MS: u64 = 35_000;

/// The authenticators of one socket's last requests, by their first half.
#[derive(Default)]
pub(super) struct Recent {
    /// When it was sent last.
    known: HashMap<u64, u64>,
    /// Each once, by when it may be forgotten; looked at again if it was sent anew meanwhile.
    order: VecDeque<(u64, u64)>,
}

impl Recent {
    /// Whether the device may know it at `now`.
    pub(super) fn knows(&self, authenticator: &Authenticator, now: u64) -> bool {
        let sent = self.known.get(&half(authenticator));
        sent.is_some_and(|at| !is_old(*at, now))
    }

    /// It is sent at `now`, ms of the monotonic clock; also a copy.
    pub(super) fn sent(&mut self, authenticator: &Authenticator, now: u64) {
        let half = half(authenticator);
        if self.known.insert(half, now).is_none() {
            self.order.push_back((now, half));
        }
    }

    /// Forgets what is old enough.
    pub(super) fn forget(&mut self, now: u64) {
        while let Some((_, half)) = self.order.pop_front_if(|(at, _)| is_old(*at, now)) {
            match self.known.get(&half) {
                Some(at) if !is_old(*at, now) => self.order.push_back((*at, half)),
                Some(_) | None => drop(self.known.remove(&half)),
            }
        }
    }
}

fn is_old(at: u64, now: u64) -> bool {
    now.saturating_sub(at) >= REMEMBERED_MS
}

fn half(authenticator: &Authenticator) -> u64 {
    authenticator
        .first_chunk()
        .map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_known_for_its_time() {
        let mut recent = Recent::default();
        let (one, two) = ([1; 16], [2; 16]);
        recent.sent(&one, 1_000);
        recent.sent(&two, 2_000);
        let now = 1_000 + REMEMBERED_MS;
        recent.forget(now - 1);
        assert!(recent.knows(&one, now - 1) && recent.knows(&two, now - 1));
        assert!(!recent.knows(&[3; 16], now) && !recent.knows(&one, now));
        recent.forget(now);
        assert!(!recent.knows(&one, now - 1) && recent.knows(&two, now));
        recent.forget(2_000 + REMEMBERED_MS);
        assert!(recent.known.is_empty() && recent.order.is_empty());
        // A copy that comes late is remembered from then on.
        recent.sent(&one, 1_000);
        recent.sent(&one, 20_000);
        recent.forget(now);
        assert!(recent.knows(&one, now));
        recent.forget(20_000 + REMEMBERED_MS);
        assert!(!recent.knows(&one, now) && recent.order.is_empty());
    }
}
