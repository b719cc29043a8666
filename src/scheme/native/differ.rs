//! `nas diff`: one account after the other, what its flags call for against what stands on the
//! router, and at the end the rows with our mark that belong to no account at all.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::look::{Difference, FOREIGN, Look};
use super::step::{DriverName, Kind, Step};
use super::walk::{Halt, Via, Walk, rendered, value};
use super::{NativeScheme, ros};
use crate::attempt::{Failure, FailureClass, Job, Transcript};
use crate::driver::mikrotik::Command;
use crate::driver::sessions::Sessions;
use crate::event::UserId;

/// Stands for an account in a mark: no billing has so many.
const NOBODY: i64 = 987_654_321_987_654;

/// What RouterOS says of a menu that it has not.
const NO_SUCH_MENU: &str = "no such command";

/// Rows of accounts that nobody speaks of.
#[derive(Debug, Default)]
pub struct Orphans {
    /// Marks of the scheme name the account; without that nothing was looked for.
    pub marked: bool,
    /// Account and row.
    pub rows: Vec<(i64, Difference)>,
    /// Menus that could not be read, and why.
    pub unread: Vec<(String, Failure)>,
    /// Steps whose menu shows only with an account.
    pub untold: usize,
}

/// What one account came to.
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

    /// Rows that carry our mark for an account that is `foreign`, in `walked` and in every menu
    /// that a step names: what nobody's flags speak of any more stands there, too. `job` is one
    /// of any account, or of none: its mark shows how marks look.
    pub async fn orphans(
        &self,
        job: &Job,
        walked: &BTreeSet<String>,
        foreign: impl Fn(i64) -> bool,
        sessions: &Sessions,
    ) -> Result<Orphans, Failure> {
        let job = nobody(job);
        let mut transcript = Transcript::discard();
        let mut walk = Walk::new(self, &job, &mut transcript, Via::Silent);
        let own = rendered(&self.own, &walk.scope).map_err(Failure::permanent)?;
        let text = NOBODY.to_string();
        let mut orphans = Orphans::default();
        let Some((key, mark)) = own.into_iter().find(|(_, mark)| mark.contains(&text)) else {
            return Ok(orphans);
        };
        orphans.marked = true;
        let (before, after) = mark.split_once(&text).unwrap_or_default();
        let mut menus = walked.clone();
        orphans.untold = self.menus(&mut walk, &mut menus);
        let router = sessions.mikrotik(&job.nas, &job.secret);
        for path in menus.iter().filter(|path| !ros::is_session_menu(path)) {
            let all = Command {
                path: format!("{path}/print"),
                proplist: vec![".id".to_owned(), key.to_string()],
                ..Command::default()
            };
            let rows = match router.talk(&all, job.deadline).await {
                Ok(reply) => reply.rows,
                // A router without IPv6, or without the package: nothing stands there.
                Err(failure) if failure.text.contains(NO_SUCH_MENU) => continue,
                Err(failure) => {
                    let gone = failure.class == FailureClass::Transport;
                    orphans.unread.push((path.clone(), failure));
                    if gone {
                        break;
                    }
                    continue;
                }
            };
            for row in rows {
                let marked = value(&row, &key);
                let user = marked
                    .strip_prefix(before)
                    .and_then(|rest| rest.strip_suffix(after));
                let user = user.and_then(|user| user.parse::<i64>().ok());
                if let Some(user) = user.filter(|user| foreign(*user)) {
                    orphans.rows.push((
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
        Ok(orphans)
    }

    /// Adds the menus in which its steps keep rows, for addresses of both families; gives the
    /// number of steps whose menu shows only with an account.
    fn menus(&self, walk: &mut Walk<'_>, menus: &mut BTreeSet<String>) -> usize {
        let mut untold = 0;
        for step in self.lists().flatten() {
            let path = match &step.kind {
                Kind::Ensure(ensure) => &ensure.path,
                Kind::Absent(absent) => &absent.path,
                Kind::Read(_)
                | Kind::Call(_)
                | Kind::Coa(_)
                | Kind::Disconnect(_)
                | Kind::Exec(_)
                | Kind::Request(_)
                | Kind::Run(_)
                | Kind::Answer(_)
                | Kind::Assert { .. } => continue,
            };
            if let Some(path) = path.literal() {
                menus.insert(path);
                continue;
            }
            let items = step.each.as_ref().map(|each| {
                let list = each.list.defined(&walk.scope).ok();
                let items = list.and_then(|list| Some(list.try_iter().ok()?.collect::<Vec<_>>()));
                (Arc::clone(&each.name), items.unwrap_or_default())
            });
            let mut told = Vec::new();
            match items {
                None => told.extend(path.render(&walk.scope).ok()),
                Some((name, items)) => {
                    for item in items {
                        walk.scope.bind(&name, item);
                        told.extend(path.render(&walk.scope).ok());
                    }
                    walk.scope.unbind(&name);
                }
            }
            told.retain(|path| ros::is_path(path));
            untold += usize::from(told.is_empty());
            menus.extend(told);
        }
        untold
    }

    /// Whether anything that it makes can be compared with what stands: `ensure` and `absent`
    /// speak to a RouterOS whatever the `driver` of the other steps.
    pub fn compares(&self) -> bool {
        let compares = |step: &Step| matches!(step.kind, Kind::Ensure(_) | Kind::Absent(_));
        self.driver != DriverName::Record && self.lists().flatten().any(compares)
    }
}

/// The same for an account that no billing has, with addresses of both families (of RFC 5737 and
/// RFC 3849: nobody's).
fn nobody(job: &Job) -> Job {
    let mut job = job.clone();
    job.user = Some(UserId(NOBODY));
    let params = &mut job.params.0;
    params.insert("user_id".to_owned(), NOBODY.to_string().into());
    params.insert(
        "addresses".to_owned(),
        vec!["192.0.2.1", "2001:db8::1"].into(),
    );
    job
}
