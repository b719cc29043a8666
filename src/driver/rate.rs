//! `nas.max_rate`: commands per second that a NAS is given, as a token bucket. Pure: `now` is
//! an argument. Who takes a token is told how long to wait before the command goes out, so
//! that commands leave in the order in which they came.

/// Commands that may go out at once after a pause, as a share of one second's: a NAS that has
/// rested may get a short burst, never a whole second's worth on top.
const BURST_SHARE: f64 = 0.1;
/// Longest wait that is told, ms: more is a wrong setting, not a rate.
const WAIT_MAX_MS: f64 = 600_000.0;

/// One bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    /// Below zero: promised to commands that still wait.
    tokens: f64,
    at_ms: u64,
}

impl Bucket {
    /// Full. `rate`: per second, above 0; `burst`: how many may go at once, at least 1.
    pub fn new(rate: f64, burst: f64, now_ms: u64) -> Self {
        let rate = if rate.is_finite() && rate > 0.0 {
            rate
        } else {
            f64::INFINITY
        };
        let burst = burst.max(1.0);
        Self {
            rate,
            burst,
            tokens: burst,
            at_ms: now_ms,
        }
    }

    /// Of a `nas.max_rate`.
    pub fn of_rate(rate: f64, now_ms: u64) -> Self {
        Self::new(rate, rate * BURST_SHARE, now_ms)
    }

    /// Commands per second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Takes one token; ms to wait until it may be used.
    pub fn take(&mut self, now_ms: u64) -> u64 {
        self.fill(now_ms);
        self.tokens -= 1.0;
        if self.tokens >= 0.0 {
            return 0;
        }
        whole_ms((-self.tokens / self.rate * 1_000.0).ceil())
    }

    /// Takes `n` tokens; ms to wait until the last may be used. If that is more than `most_ms`
    /// none is taken, and the wait is the error: who gives up leaves no debt behind.
    pub fn take_within(&mut self, n: usize, most_ms: u64, now_ms: u64) -> Result<u64, u64> {
        let before = self.clone();
        let mut wait = 0;
        for _ in 0..n {
            wait = self.take(now_ms);
            if wait > most_ms {
                *self = before;
                return Err(wait);
            }
        }
        Ok(wait)
    }

    /// Whether a token could be used at once.
    pub fn is_ready(&mut self, now_ms: u64) -> bool {
        self.fill(now_ms);
        self.tokens >= 1.0
    }

    fn fill(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        // Exact below 2^53 ms, which is far beyond any pause.
        let seconds = std::time::Duration::from_millis(passed).as_secs_f64();
        self.tokens = (self.tokens + seconds * self.rate).min(self.burst);
    }
}

/// Milliseconds as a number of the clock.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to a range that both types hold"
)]
fn whole_ms(ms: f64) -> u64 {
    ms.clamp(0.0, WAIT_MAX_MS) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commands_leave_at_the_rate_and_in_order() {
        let mut bucket = Bucket::of_rate(10.0, 5_000);
        let waits: Vec<u64> = (0..5).map(|_| bucket.take(5_000)).collect();
        assert_eq!(waits, [0, 100, 200, 300, 400]);
        // What was promised counts: the next one waits behind them.
        assert_eq!(bucket.take(5_200), 300);
        // After a rest there is the burst, and no more.
        assert_eq!((bucket.take(60_000), bucket.take(60_000)), (0, 100));
        let mut fast = Bucket::of_rate(100.0, 0);
        let at_once = (0..20).filter(|_| fast.take(0) == 0).count();
        assert_eq!(at_once, 10);
    }

    #[test]
    fn slow_rates_and_nonsense() {
        let mut slow = Bucket::of_rate(0.5, 0);
        assert_eq!(
            (slow.take(0), slow.take(0), slow.take(1_000)),
            (0, 2_000, 3_000)
        );
        assert!(!slow.is_ready(1_000) && slow.is_ready(8_000));
        for rate in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            let mut none = Bucket::new(rate, 1.0, 0);
            assert!((0..100).all(|_| none.take(0) == 0), "{rate}");
        }
        let mut tiny = Bucket::of_rate(f64::MIN_POSITIVE, 0);
        tiny.take(0);
        assert_eq!(tiny.take(0), 600_000);
    }

    proptest! {
        /// In no stretch of time do more leave than the rate allows, and none waits longer
        /// than all before it need.
        #[test]
        fn never_faster_than_the_rate(rate in 0.5..200.0_f64, gaps in proptest::collection::vec(0..500_u64, 1..100)) {
            let mut bucket = Bucket::of_rate(rate, 0);
            let mut now = 0;
            let mut leave = Vec::new();
            for gap in gaps {
                now += gap;
                leave.push(now + bucket.take(now));
            }
            prop_assert!(leave.is_sorted());
            let burst = (rate * BURST_SHARE).max(1.0);
            for (n, from) in leave.iter().enumerate() {
                for (m, to) in leave.iter().enumerate().skip(n) {
                    let allowed = burst + rate * ((to - from + 1) as f64) / 1_000.0;
                    prop_assert!((m - n) as f64 <= allowed + 0.001, "{n}..{m} in {} ms", to - from);
                }
            }
        }
    }
}
