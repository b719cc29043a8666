//! What a simulated device takes for an answer. Timers of the runtime count whole milliseconds:
//! 5 ms become 6, and what was asked within one of them is answered together, which no device
//! does.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for `ms`, to some hundredths of a millisecond; not at all for 0.
pub(super) async fn latency(ms: u64) {
    if ms == 0 {
        return;
    }
    let wait = Duration::from_millis(ms);
    match timer(wait) {
        Ok(timer) if timer.readable().await.is_ok() => {}
        // Without a descriptor to spare the runtime's own will do.
        _ => tokio::time::sleep(wait).await,
    }
}

fn timer(wait: Duration) -> std::io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
    let once = Expiration::OneShot(TimeSpec::from_duration(wait));
    timer.set(once, TimerSetTimeFlags::empty())?;
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe, for others than an OwnedFd"
    )]
    AsyncFd::with_interest(timer.into(), Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::up_us;

    #[tokio::test]
    async fn five_milliseconds_are_five() {
        let mut quickest = u64::MAX;
        for _ in 0..50 {
            let began = up_us();
            latency(5).await;
            quickest = quickest.min(up_us() - began);
        }
        // The runtime's own timer never took less than six.
        assert!((5_000..6_000).contains(&quickest), "{quickest} µs");
    }

    #[tokio::test]
    async fn nothing_is_not_waited_for() {
        let began = up_us();
        for _ in 0..1_000 {
            latency(0).await;
        }
        assert!(up_us() - began < 1_000_000);
    }
}
