//! Notices at once that a NAS is back which could not be reached: while events wait for it and its
//! breaker is open, its scheme's driver knocks at its port every few seconds. Nothing is sent and
//! nobody logs in, so it is no probe; only the next probe comes sooner.
//!
//! A NAS that can be reached and does not obey is knocked at once only after each failed probe: a
//! line of its log, or a line of its terminals, is not taken every few seconds. RADIUS has no
//! connection and a script's way to the NAS is not known: there the steps of the breaker are all.

use tokio::task::JoinSet;

use crate::scheme::Knocking;

/// Knocks at the door of one NAS.
#[derive(Debug, Default)]
pub(super) struct Knock {
    /// Gives whether the NAS has come back; it ends with this object.
    task: JoinSet<bool>,
    /// The failed probe after which it began.
    after: Option<u64>,
}

impl Knock {
    /// Whether the NAS has come back since the last look. `probe`: how many probes it was sent so
    /// far, if it is to be knocked at.
    pub(super) fn is_back(
        &mut self,
        probe: Option<u64>,
        knock: impl FnOnce() -> Option<Knocking>,
    ) -> bool {
        let Some(probe) = probe else {
            // With what it may have found already: the next outage is another one.
            *self = Self::default();
            return false;
        };
        let back = matches!(self.task.try_join_next(), Some(Ok(true)));
        if !back
            && self.task.is_empty()
            && self.after != Some(probe)
            && let Some(knocking) = knock()
        {
            self.after = Some(probe);
            self.task.spawn(knocking);
        }
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(back: bool) -> Option<Knocking> {
        Some(Box::pin(async move { back }))
    }

    /// Looks until the knocks after `probe` have ended.
    async fn ended(knock: &mut Knock, probe: u64) -> bool {
        loop {
            if knock.is_back(Some(probe), || unreachable!("knocked already")) {
                return true;
            }
            if knock.task.is_empty() {
                return false;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_was_away_and_opens_is_back_once() {
        let mut knock = Knock::default();
        assert!(!knock.is_back(Some(1), || ending(true)));
        assert!(ended(&mut knock, 1).await);
        assert!(!ended(&mut knock, 1).await);
    }

    #[tokio::test]
    async fn what_was_found_in_one_outage_is_not_told_in_the_next() {
        let mut knock = Knock::default();
        assert!(!knock.is_back(Some(1), || ending(true)));
        tokio::task::yield_now().await;
        assert!(!knock.is_back(None, || unreachable!("it obeys")));
        assert!(!knock.is_back(Some(2), || ending(false)));
        assert!(!ended(&mut knock, 2).await);
    }

    #[tokio::test]
    async fn who_can_be_reached_is_knocked_once_for_each_probe() {
        let mut knock = Knock::default();
        for probe in 1..=2 {
            assert!(!knock.is_back(Some(probe), || ending(false)));
            assert!(!ended(&mut knock, probe).await, "it was never away");
        }
    }

    #[tokio::test]
    async fn who_is_not_to_be_knocked_at_is_left_alone() {
        let mut knock = Knock::default();
        let forever = || Some(Box::pin(std::future::pending()) as Knocking);
        assert!(!knock.is_back(Some(1), forever) && !knock.task.is_empty());
        assert!(!knock.is_back(None, || unreachable!("it obeys")));
        assert!(knock.task.is_empty());
        assert!(!knock.is_back(Some(1), || None), "it may begin anew");
        assert!(knock.after.is_none(), "a script's NAS has no door");
    }
}
