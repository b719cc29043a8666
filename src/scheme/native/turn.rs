//! When the next command of an attempt may go: the NAS's sessions, its commands per second, what
//! is left of the time, and what the NAS's settings say of how it is spoken to.

use std::time::Duration;

use super::names::Source;
use super::walk::{Via, Walk, again};
use crate::attempt::Failure;
use crate::clock;
use crate::driver::sessions::Sessions;

impl<'a> Walk<'a> {
    /// The NAS's sessions; none where nothing is sent.
    pub(super) fn sessions(&self) -> Option<&'a Sessions> {
        match self.via {
            Via::Sessions(sessions) => Some(sessions),
            Via::Silent | Via::Look(_) => None,
            #[cfg(test)]
            Via::Table(_) => None,
        }
    }

    /// The NAS's sessions and what is left of the time, when `nas.max_rate` lets the next
    /// command go; none where nothing is sent. What has been noted is in the log before the
    /// device is waited for.
    pub(super) async fn way(&mut self) -> Result<Option<(&'a Sessions, Duration)>, Failure> {
        let Some(sessions) = self.sessions() else {
            return Ok(None);
        };
        self.transcript.flush();
        let paced = sessions.pace(
            &self.scope.job().nas,
            1,
            self.waits.left(),
            clock::tick_ms(),
        );
        let (Ok(wait) | Err(wait)) = paced;
        if !wait.is_zero() {
            let asleep =
                paced.is_ok() && self.waits.during(tokio::time::sleep(wait)).await.is_some();
            if !asleep {
                return Err(again(format!(
                    "nas.max_rate: the next command may go in {} ms only",
                    wait.as_millis()
                )));
            }
        }
        Ok(Some((sessions, self.left()?)))
    }

    /// What is left of the attempt's time.
    pub(super) fn left(&self) -> Result<Duration, Failure> {
        let job = self.scope.job();
        let spent = Duration::from_millis(clock::tick_ms().saturating_sub(self.started_ms));
        let spent = spent.saturating_sub(self.waits.total());
        match job.deadline.checked_sub(spent) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(Failure::timeout(format!(
                "the attempt used up its {} ms before this step",
                job.deadline.as_millis()
            ))),
        }
    }

    /// A name of `[vars]`, which `nas.vars` overrides and adds to; none = not said.
    pub(super) fn setting(&self, name: &str) -> Result<Option<serde_json::Value>, String> {
        let at = self.scheme.vars.iter().position(|var| &*var.name == name);
        match at {
            Some(at) => {
                let value = self.scope.value(name, Source::Var(at))?;
                value
                    .map(|v| serde_json::to_value(v).map_err(|e| format!("{name}: {e}")))
                    .transpose()
            }
            None => Ok(self.scope.job().nas.vars.get(name).cloned()),
        }
    }
}
