//! `nas diff`: one account after the other, what its flags call for against what stands on the
//! router, and at the end the rows with our mark that belong to no account at all.

use std::collections::BTreeSet;

use super::look::{Difference, FOREIGN, Look};
use super::step::DriverName;
use super::walk::{Halt, Via, Walk, rendered, value};
use super::{NativeScheme, ros};
use crate::attempt::{Failure, Job, Transcript};
use crate::driver::mikrotik::Command;
use crate::driver::sessions::Sessions;
use crate::event::UserId;

/// Stands for an account in a mark: no billing has so many.
const NOBODY: i64 = 987_654_321_987_654;

/// What one account, or a NAS, came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compared {
    /// What stands otherwise.
    pub differences: Vec<Difference>,
    /// Menus in which rows of ours may stand.
    pub paths: BTreeSet<String>,
    /// Steps that cannot be compared: lines, RADIUS, HTTP, calls.
    pub skipped: usize,
}

impl NativeScheme {
    /// Compares what the commands of one account, in their order, would make of the NAS with
    /// what stands there. Commands that the scheme lacks want nothing.
    pub async fn compare(&self, jobs: &[Job], sessions: &Sessions) -> Result<Compared, Failure> {
        let look = Look::new(sessions);
        for job in jobs {
            let Some(steps) = self.steps(&job.cmd) else {
                continue;
            };
            let mut transcript = Transcript::discard();
            let mut walk = Walk::new(self, job, &mut transcript, Via::Look(&look));
            walk.run(steps).await.map_err(Halt::into_failure)?;
        }
        let (differences, found) = look.end();
        Ok(Compared {
            differences,
            paths: found.paths,
            skipped: found.skipped,
        })
    }

    /// Rows of `paths` that carry our mark for an account that is not among `known`, with that
    /// account. `job` is one of any account: its mark shows how marks look.
    pub async fn orphans(
        &self,
        job: &Job,
        paths: &BTreeSet<String>,
        known: &BTreeSet<i64>,
        sessions: &Sessions,
    ) -> Result<Vec<(i64, Difference)>, Failure> {
        let mut job = job.clone();
        job.user = Some(UserId(NOBODY));
        let text = NOBODY.to_string();
        job.params
            .0
            .insert("user_id".to_owned(), text.clone().into());
        let mut transcript = Transcript::discard();
        let walk = Walk::new(self, &job, &mut transcript, Via::Silent);
        let own = rendered(&self.own, &walk.scope).map_err(Failure::permanent)?;
        let Some((key, mark)) = own.into_iter().find(|(_, mark)| mark.contains(&text)) else {
            return Ok(Vec::new());
        };
        let (before, after) = mark.split_once(&text).unwrap_or_default();
        let router = sessions.mikrotik(&job.nas, &job.secret);
        let mut found = Vec::new();
        for path in paths.iter().filter(|path| !ros::is_session_menu(path)) {
            let all = Command {
                path: format!("{path}/print"),
                proplist: vec![".id".to_owned(), key.to_string()],
                ..Command::default()
            };
            for row in router.talk(&all, job.deadline).await?.rows {
                let marked = value(&row, &key);
                let user = marked
                    .strip_prefix(before)
                    .and_then(|rest| rest.strip_suffix(after));
                let user = user.and_then(|user| user.parse::<i64>().ok());
                if let Some(user) = user.filter(|user| !known.contains(user)) {
                    found.push((
                        user,
                        Difference {
                            kind: FOREIGN,
                            path: path.clone(),
                            row: format!(".id={}", value(&row, ".id")),
                            has: format!("{key}={marked}"),
                            wants: String::new(),
                        },
                    ));
                }
            }
        }
        Ok(found)
    }

    /// Whether any of its steps can be compared at all.
    pub fn compares(&self) -> bool {
        self.driver == DriverName::Mikrotik
    }
}
