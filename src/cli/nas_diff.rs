//! `nas diff ID`: what the flags of a NAS's accounts call for, beside what stands on it. Looks
//! only: nothing that changes anything is sent. `nas resync` is what sets it right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::Console;
use super::exit::{
    DONE, FAILED, Failed, NOT_FOUND, NOT_REACHABLE, Outcome, PART_FAILED, REFUSED, UNHEALTHY,
    remark,
};
use super::nas::find;
use super::nas_test::number;
use super::resync::commands;
use super::table::Table;
use crate::attempt::{Failure, FailureClass, Job, Scope};
use crate::config::Config;
use crate::daemon;
use crate::driver::sessions::Sessions;
use crate::event::{Cmd, EventId, Params, UserId};
use crate::nas::{Nas, NasId, NasSecret};
use crate::scheme::native::{Compared, Difference, NativeScheme, Orphans, is_session_menu};
use crate::store::{AccountFlags, Store, preview};

/// Accounts in a row that a NAS as a whole failed for (no answer, no login), before the others are
/// not asked any more: each would cost the whole time-out, or one more refused login.
const FAILED_MAX: usize = 3;

/// Which NAS.
#[derive(Debug, Args)]
pub struct Diff {
    /// nas.id
    id: i64,
    /// Only this account
    #[arg(long, value_name = "N")]
    user: Option<i64>,
    /// For all that is read of one account
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::config::parse_duration)]
    timeout: Duration,
}

/// Prints one line per difference; exit code 9 if there is one, 8 if something could not be read.
pub async fn diff(console: &Console, config: &Config, store: &dyn Store, args: Diff) -> Outcome {
    let id = NasId(args.id);
    let nas = find(store, id)
        .await?
        .map_err(|bad| Failed::skipped(id, bad.reason))?;
    let scheme = scheme(config, &nas)?;
    let flags = store.account_flags(Some(id), args.user.map(UserId)).await?;
    if flags.is_empty() && args.user.is_some() {
        return Err(Failed::new(
            NOT_FOUND,
            format!(
                "NAS {id} has no account {}\nhint: users.id of the billing is asked for, not the abonent",
                args.user.unwrap_or_default()
            ),
        )
        .numbered(501));
    }
    let asker = Asker {
        store,
        nas: Arc::new(nas),
        secret: Arc::new(store.secret(id).await?),
        deadline: args.timeout,
    };
    let sessions = Sessions::default();
    let mut found = Found::default();
    for account in &flags {
        let user = account.user_id;
        if found.failed >= FAILED_MAX {
            found.unasked += 1;
            continue;
        }
        let jobs = match asker.wants(account).await? {
            Wants::Jobs(jobs) => jobs,
            Wants::Wrong(reason) => {
                found.unread(json!(user), "", &Failure::permanent(reason));
                found.judged.insert(user);
                continue;
            }
            Wants::Unknown => {
                remark(format!(
                    "event_params has no row for account {user}: what it wants is not known, and all of its rows are shown as foreign"
                ));
                continue;
            }
        };
        found.judged.insert(user);
        match scheme.compare(&jobs, &sessions).await {
            Ok(compared) => found.compared(user, compared),
            Err(failure) => found.unread(json!(user), "", &failure),
        }
        found.any = found.any.or(jobs.into_iter().next());
    }
    // Of one account, its own rows were looked at already, unless nothing says what it wants.
    if args.user.is_none_or(|user| !found.judged.contains(&user)) && found.failed < FAILED_MAX {
        let job = match found.any.take() {
            Some(job) => job,
            None => asker.job("user_del", None, Params::default())?,
        };
        let judged = std::mem::take(&mut found.judged);
        let foreign = |user| args.user.map_or(!judged.contains(&user), |one| user == one);
        match scheme.orphans(&job, &found.paths, foreign, &sessions).await {
            Ok(orphans) => found.orphans(orphans),
            Err(failure) => found.unread(Value::Null, "", &failure),
        }
    }
    found.tell(console, id)
}

/// What stands otherwise on a NAS than the flags and variables of one account call for; none: its
/// scheme cannot be compared, or the NAS could not be read.
pub async fn of_account(
    config: &Config,
    store: &dyn Store,
    nas: Nas,
    account: &AccountFlags,
    deadline: Duration,
) -> Result<Option<Vec<Difference>>, Failed> {
    let id = nas.id;
    let Ok(scheme) = scheme(config, &nas) else {
        return Ok(None);
    };
    let asker = Asker {
        store,
        nas: Arc::new(nas),
        secret: Arc::new(store.secret(id).await?),
        deadline,
    };
    let Wants::Jobs(jobs) = asker.wants(account).await? else {
        return Ok(None);
    };
    let compared = scheme.compare(&jobs, &Sessions::default()).await;
    Ok(compared.ok().map(|compared| {
        let mut found = compared.differences;
        // What goes on is no state: who is to be thrown out comes back by himself.
        found.retain(|d| account.deleted || !is_session_menu(&d.path));
        found
    }))
}

/// What was found so far.
struct Found {
    table: Table,
    /// Accounts whose flags were compared, or could not be.
    judged: BTreeSet<i64>,
    paths: BTreeSet<String>,
    any: Option<Job>,
    compared: usize,
    differences: usize,
    skipped: usize,
    unread: usize,
    /// Accounts in a row that the NAS as a whole failed for.
    failed: usize,
    unasked: usize,
    last: Option<Failure>,
    /// Rows of accounts that are none of this NAS's.
    strangers: usize,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            table: Table::new(&["user", "kind", "path", "row", "has", "wants"]),
            judged: BTreeSet::new(),
            paths: BTreeSet::new(),
            any: None,
            compared: 0,
            differences: 0,
            skipped: 0,
            unread: 0,
            failed: 0,
            unasked: 0,
            last: None,
            strangers: 0,
        }
    }
}

impl Found {
    fn push(&mut self, user: i64, found: &Difference) {
        self.differences += 1;
        self.table.push(vec![
            json!(user),
            json!(found.kind),
            json!(found.path),
            json!(found.row),
            json!(found.has),
            json!(found.wants),
        ]);
    }

    fn compared(&mut self, user: i64, mut compared: Compared) {
        compared.differences.iter().for_each(|d| self.push(user, d));
        self.skipped += compared.skipped;
        self.paths.append(&mut compared.paths);
        self.compared += 1;
        self.failed = 0;
    }

    /// An account, or a menu, of which nothing is known.
    fn unread(&mut self, user: Value, path: &str, failure: &Failure) {
        self.table.push(vec![
            user,
            json!("unread"),
            json!(path),
            json!(""),
            json!(failure.to_string()),
            json!(""),
        ]);
        self.unread += 1;
        self.failed = match (failure.scope, failure.class) {
            (Scope::Nas, _) | (Scope::Event, FailureClass::Unknown) => self.failed + 1,
            (Scope::Event, _) => 0,
        };
        self.last = Some(failure.clone());
    }

    fn orphans(&mut self, orphans: Orphans) {
        self.strangers += orphans.rows.len();
        for (user, difference) in &orphans.rows {
            self.push(*user, difference);
        }
        for (path, failure) in &orphans.unread {
            self.unread(Value::Null, path, failure);
        }
        if !orphans.marked {
            remark(
                "rows of accounts that nobody knows were not looked for: `own` of the scheme does not name the account",
            );
        } else if orphans.untold > 0 {
            remark(format!(
                "{} steps name their menu only for an account: rows of others there are not seen",
                orphans.untold
            ));
        }
    }

    fn tell(self, console: &Console, id: NasId) -> Outcome {
        console.list(&self.table);
        if self.skipped > 0 {
            remark(format!(
                "{} steps were not compared: only ensure, absent and read can be",
                self.skipped
            ));
        }
        remark(format!(
            "{} accounts compared, {} differences; nothing was changed",
            self.compared, self.differences
        ));
        if self.unasked > 0 {
            remark(format!(
                "the NAS failed for {FAILED_MAX} accounts in a row: {} others were not asked",
                self.unasked
            ));
        }
        if let Some(last) = &self.last {
            if self.compared == 0 && self.differences == 0 {
                return Err(unread(last));
            }
            remark(format!(
                "{} could not be read (kind unread), so this is not all",
                self.unread
            ));
            return Ok(PART_FAILED);
        }
        if self.differences == 0 {
            return Ok(DONE);
        }
        if self.strangers < self.differences {
            remark(format!("nas resync {id} posts what sets accounts right"));
        }
        if self.strangers > 0 {
            remark(format!(
                "{} rows are of accounts that are not on this NAS, which a resync leaves alone: event post --cmd user_del --user ID --nas {id} takes them away, if the billing knows the account; else remove them on the NAS",
                self.strangers
            ));
        }
        Ok(UNHEALTHY)
    }
}

fn scheme(config: &Config, nas: &Nas) -> Result<NativeScheme, Failed> {
    let id = nas.id;
    let resolve = daemon::resolver(config, Arc::default());
    let execute = resolve(nas).map_err(|reason| Failed::skipped(id, reason))?;
    let identity = execute.identity();
    let refused = |why: String| {
        Failed::new(
            REFUSED,
            format!(
                "the scheme of NAS {id} cannot be compared: {why}\nhint: nas resync {id} sends what the flags call for; user_info asks the NAS about one account"
            ),
        )
    };
    let dir = identity
        .oss_pathname
        .as_deref()
        .filter(|_| identity.kind == "native");
    let Some(scheme) = dir.and_then(|dir| NativeScheme::load(dir).ok()) else {
        return Err(refused(
            "it is a script, and only that knows what it changes".to_owned(),
        ));
    };
    if !scheme.compares() {
        return Err(refused(format!(
            "it has no ensure and no absent step, only orders (driver {}); what they have made of the device cannot be looked up",
            scheme.driver()
        )));
    }
    Ok(scheme)
}

/// What the flags of an account call for.
enum Wants {
    /// These commands.
    Jobs(Vec<Job>),
    /// `event_params` has no row for it.
    Unknown,
    /// Its row cannot be used, for this reason.
    Wrong(String),
}

/// Makes the jobs that are compared.
struct Asker<'a> {
    store: &'a dyn Store,
    nas: Arc<Nas>,
    secret: Arc<NasSecret>,
    deadline: Duration,
}

impl Asker<'_> {
    /// The commands that the account's flags call for, with its variables of now.
    async fn wants(&self, account: &AccountFlags) -> Result<Wants, Failed> {
        let user = account.user_id;
        let Some(row) = preview::account(self.store, user).await? else {
            return Ok(Wants::Unknown);
        };
        let params = match Params::overlaid(row, None, None) {
            Ok(params) => params,
            Err(reason) => return Ok(Wants::Wrong(reason)),
        };
        let job = |cmd| self.job(cmd, Some(UserId(user)), params.clone());
        let jobs: Result<Vec<Job>, Failed> = commands(account).into_iter().map(job).collect();
        jobs.map(Wants::Jobs)
    }

    fn job(&self, cmd: &str, user: Option<UserId>, params: Params) -> Result<Job, Failed> {
        let cmd = Cmd::parse(cmd).map_err(|reason| Failed::new(FAILED, reason))?;
        Ok(Job {
            event: EventId(0),
            epoch: 0,
            try_count: 1,
            possible_duplicate: false,
            class: cmd.class(),
            cmd,
            user,
            abonent: None,
            usluga: None,
            params,
            nas: Arc::clone(&self.nas),
            secret: Arc::clone(&self.secret),
            deadline: self.deadline,
        })
    }
}

fn unread(failure: &Failure) -> Failed {
    let code = match failure.class {
        FailureClass::Transport | FailureClass::Unknown => NOT_REACHABLE,
        FailureClass::Refused => REFUSED,
        FailureClass::Permanent => FAILED,
    };
    Failed::new(
        code,
        format!("{failure}\nhint: nas test shows what the NAS says"),
    )
    .numbered(number(code))
}
