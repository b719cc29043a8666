//! Notices at once that a NAS is back which could not be reached: a bare TCP connection to the port
//! of its driver, every few seconds while events wait for it and its breaker is open. Nothing is
//! sent and nobody logs in, so it is no probe; only the next probe comes sooner.
//!
//! A NAS that can be reached and does not obey is knocked at once only after each failed probe: a
//! line of its log, or a line of its terminals, is not taken every few seconds. RADIUS has no
//! connection and a script's way to the NAS is not known: there the steps of the breaker are all.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Pause between two knocks, and the time that each of them gets.
const PAUSE: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(2);

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
    /// far, if it is to be knocked at; `door`: host and TCP port.
    pub(super) fn is_back(
        &mut self,
        probe: Option<u64>,
        door: impl FnOnce() -> Option<(String, u16)>,
    ) -> bool {
        let Some(probe) = probe else {
            self.task.abort_all();
            self.after = None;
            return false;
        };
        let back = matches!(self.task.try_join_next(), Some(Ok(true)));
        if !back
            && self.task.is_empty()
            && self.after != Some(probe)
            && let Some(door) = door()
        {
            self.after = Some(probe);
            self.task.spawn(knock(door));
        }
        back
    }
}

/// Until a connection opens; whether one had failed before.
async fn knock(door: (String, u16)) -> bool {
    let mut was_away = false;
    loop {
        let open = TcpStream::connect((door.0.as_str(), door.1));
        match tokio::time::timeout(LIMIT, open).await {
            Ok(Ok(_)) => return was_away,
            Ok(Err(_)) | Err(_) => was_away = true,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Looks until the task has ended.
    async fn ended(knock: &mut Knock, probe: u64, door: &(String, u16)) -> bool {
        loop {
            if knock.is_back(Some(probe), || Some(door.clone())) {
                return true;
            }
            if knock.task.is_empty() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn who_was_away_and_opens_is_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = (
            "127.0.0.1".to_owned(),
            listener.local_addr().unwrap().port(),
        );
        drop(listener);
        let mut knock = Knock::default();
        assert!(!knock.is_back(Some(1), || Some(door.clone())));
        let (back, _listener) = tokio::join!(ended(&mut knock, 1, &door), async {
            tokio::time::sleep(PAUSE / 2).await;
            TcpListener::bind(("127.0.0.1", door.1)).await.unwrap()
        });
        assert!(back);
    }

    #[tokio::test]
    async fn who_can_be_reached_is_knocked_once_for_each_probe() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = (
            "127.0.0.1".to_owned(),
            listener.local_addr().unwrap().port(),
        );
        let mut knock = Knock::default();
        for probe in 1..=2 {
            assert!(!knock.is_back(Some(probe), || Some(door.clone())));
            let (back, accepted) = tokio::join!(ended(&mut knock, probe, &door), listener.accept());
            assert!(!back && accepted.is_ok(), "it was never away");
            assert!(!knock.is_back(Some(probe), || unreachable!("knocked already")));
        }
    }

    #[tokio::test]
    async fn who_is_not_to_be_knocked_at_is_left_alone() {
        let mut knock = Knock::default();
        let door = || Some(("192.0.2.1".to_owned(), 8728));
        assert!(!knock.is_back(Some(1), door) && !knock.task.is_empty());
        assert!(!knock.is_back(None, || unreachable!("it obeys")));
        while knock.task.join_next().await.is_some() {}
        assert!(!knock.is_back(Some(1), || None), "it may begin anew");
        assert!(knock.after.is_none(), "a script's NAS has no door");
    }
}
