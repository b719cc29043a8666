//! How many channels may be open on a NAS at once. Servers refuse more than their limit, and say
//! nothing of it beforehand: a refusal makes the window smaller, a long time without one larger.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Commands without a refusal after which one more channel is tried.
const GROW_AFTER: u32 = 32;
/// The same after many refusals: each of them doubles the count up to this.
const GROW_AFTER_MAX: u32 = 4_096;
/// A window above this is halved, one below it loses one channel.
const STEEP: usize = 4;

/// The window; waiting is fair (first come, first served).
pub(super) struct Window {
    places: Arc<Semaphore>,
    size: Arc<Mutex<Size>>,
    waiting: AtomicUsize,
}

struct Size {
    limit: usize,
    now: usize,
    leased: usize,
    /// Places that are taken away as soon as they are given back.
    debt: usize,
    well: u32,
    grow_after: u32,
}

/// One place; given back when dropped.
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    size: Arc<Mutex<Size>>,
}

/// Counts a caller that waits, also if it gives up.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock(size: &Mutex<Size>) -> MutexGuard<'_, Size> {
    size.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Window {
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.max(1);
        Self {
            places: Arc::new(Semaphore::new(limit)),
            size: Arc::new(Mutex::new(Size {
                limit,
                now: limit,
                leased: 0,
                debt: 0,
                well: 0,
                grow_after: GROW_AFTER,
            })),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a place.
    pub(super) async fn take(&self) -> Place {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        // Never closed, so there is always a permit.
        let permit = Arc::clone(&self.places).acquire_owned().await.ok();
        lock(&self.size).leased += 1;
        Place {
            permit,
            size: Arc::clone(&self.size),
        }
    }

    /// The server refused a channel.
    pub(super) fn refused(&self) {
        let mut size = lock(&self.size);
        size.well = 0;
        size.grow_after = size.grow_after.saturating_mul(2).min(GROW_AFTER_MAX);
        let smaller = if size.now > STEEP {
            size.now / 2
        } else {
            size.now - 1
        };
        let smaller = smaller.max(1);
        let cut = size.now - smaller;
        size.debt += cut - self.places.forget_permits(cut);
        size.now = smaller;
    }

    /// A command ran.
    pub(super) fn went_well(&self) {
        let mut size = lock(&self.size);
        size.well += 1;
        if size.well >= size.grow_after && size.now < size.limit {
            size.well = 0;
            size.now += 1;
            if size.debt > 0 {
                size.debt -= 1;
            } else {
                self.places.add_permits(1);
            }
        }
    }

    /// Places in use.
    pub(super) fn leased(&self) -> usize {
        lock(&self.size).leased
    }

    /// Places allowed now.
    pub(super) fn size(&self) -> usize {
        lock(&self.size).now
    }

    /// Callers that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut size = lock(&self.size);
        size.leased -= 1;
        if size.debt > 0
            && let Some(permit) = self.permit.take()
        {
            size.debt -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn taken(window: &Window, n: usize) -> Vec<Place> {
        let mut places = Vec::new();
        for _ in 0..n {
            places.push(window.take().await);
        }
        places
    }

    fn free(window: &Window) -> usize {
        window.places.available_permits()
    }

    #[tokio::test]
    async fn refusals_make_it_smaller_and_success_larger() {
        let window = Window::new(4);
        let mut places = taken(&window, 4).await;
        window.refused();
        window.refused();
        assert_eq!((window.size(), window.leased()), (2, 4));
        places.truncate(2);
        assert_eq!(free(&window), 0, "two are still out");
        drop(places);
        assert_eq!((free(&window), window.leased()), (2, 0));
        for _ in 0..GROW_AFTER * 4 {
            window.went_well();
        }
        assert_eq!((window.size(), free(&window)), (3, 3));
        for _ in 0..10 {
            window.refused();
        }
        assert_eq!((window.size(), free(&window)), (1, 1));
    }

    #[tokio::test]
    async fn it_never_grows_beyond_its_limit_nor_loses_a_place() {
        let window = Window::new(2);
        for _ in 0..10 * GROW_AFTER {
            window.went_well();
        }
        assert_eq!((window.size(), free(&window)), (2, 2));
        let places = taken(&window, 2).await;
        window.refused();
        window.refused();
        for _ in 0..GROW_AFTER_MAX {
            window.went_well();
        }
        drop(places);
        assert_eq!((window.size(), free(&window)), (2, 2));
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(1), async {
            let _both = taken(&window, 2).await;
            window.take().await;
        });
        assert!(given_up.await.is_err());
        assert_eq!((window.waiting(), free(&window)), (0, 2));
    }
}
