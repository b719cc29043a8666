//! `nas resync` and `account resync`: posts the commands that bring a NAS to the state which
//! the billing's flags describe, after a reset, a replacement or a change by hand.
//!
//! | flags of the account | commands, in this order |
//! |---|---|
//! | `deleted` | `user_del` |
//! | not `deleted` | `user_add` (its permanent objects; what an account with a NAS always got) |
//! | … and has a rate | `user_rate_set` |
//! | … `accept` | `user_accept`, else `user_drop` |
//! | … `redirect` | `user_redirect`, else `user_redirect_cancel` |
//!
//! From the vendor's state model: each flag names the command that brings the device to it.
//! `logged` is left out: it says what a subscriber did, and a resync must not throw him out.
//! Commands keep their own class, so that nobody's access waits behind everybody's rates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::exit::{DONE, Failed, NOT_FOUND, Outcome, remark};
use super::post::Inbox;
use super::progress::Progress;
use super::table::Table;
use super::{Console, Reason, who};
use crate::clock;
use crate::config::Config;
use crate::event::UserId;
use crate::nas::NasId;
use crate::store::{AccountFlags, Store};

/// Events of one call: one transaction, which must not keep other writers out for long.
const CHUNK: usize = 500;
/// With `--rate`, a part is sent this often.
const BEAT: Duration = Duration::from_millis(100);

/// Whose accounts.
#[derive(Debug, Clone, Copy)]
pub enum Whom {
    /// All of a NAS.
    Nas(NasId),
    /// One.
    Account(UserId),
}

/// The commands that an account's flags call for, in the order in which they must run.
pub fn commands(flags: &AccountFlags) -> Vec<&'static str> {
    if flags.deleted {
        return vec!["user_del"];
    }
    let mut commands = vec!["user_add"];
    if flags.rated {
        commands.push("user_rate_set");
    }
    commands.push(if flags.accept {
        "user_accept"
    } else {
        "user_drop"
    });
    commands.push(if flags.redirect {
        "user_redirect"
    } else {
        "user_redirect_cancel"
    });
    commands
}

/// Posts them, `rate` per second, and prints how many of each.
pub async fn resync(
    console: &Console,
    config: &Config,
    store: Arc<dyn Store>,
    whom: Whom,
    rate: Option<u32>,
    reason: &Reason,
) -> Outcome {
    let (flags, name) = match whom {
        Whom::Nas(nas) => (
            store.account_flags(Some(nas), None).await?,
            format!("nas{nas}"),
        ),
        Whom::Account(user) => {
            let flags = store.account_flags(None, Some(user)).await?;
            if flags.is_empty() {
                return Err(Failed::new(
                    NOT_FOUND,
                    format!(
                        "there is no account {user}\nhint: users.id of the billing is asked for, not the abonent"
                    ),
                ).numbered(501));
            }
            (flags, format!("user{user}"))
        }
    };
    let batch = format!("resync-{name}-{}", stamp(clock::wall_ms()));
    let mut counts: BTreeMap<&'static str, i64> = BTreeMap::new();
    let mut events = Vec::new();
    for account in &flags {
        for cmd in commands(account) {
            *counts.entry(cmd).or_default() += 1;
            events.push(event(account.user_id, cmd, &batch));
        }
    }
    let total = events.len();
    if !console.dry_run {
        let mut inbox = Inbox::new(config, Arc::clone(&store))?;
        post(&mut inbox, events, rate).await?;
        let detail = format!("batch={batch} accounts={} events={total}", flags.len());
        let detail = reason.of(&detail);
        store.audit(&who(), "resync", &detail).await?;
    }
    let mut table = Table::new(&["cmd", "count"]);
    for (cmd, count) in &counts {
        table.push(vec![json!(cmd), json!(count)]);
    }
    console.list(&table);
    remark(if console.dry_run {
        format!(
            "dry run: {total} events for {} accounts would be posted",
            flags.len()
        )
    } else {
        format!(
            "{total} events for {} accounts posted; event list --batch {batch}",
            flags.len()
        )
    });
    Ok(DONE)
}

/// `20260102T030405`, UTC.
fn stamp(now_ms: i64) -> String {
    let text = clock::utc_text(now_ms);
    let text: String = text.chars().take(19).filter(char::is_ascii_digit).collect();
    let (date, time) = text.split_at_checked(8).unwrap_or((&text, ""));
    format!("{date}T{time}")
}

fn event(user: i64, cmd: &str, batch: &str) -> Value {
    json!({ "cmd": cmd, "user_id": user, "batch_id": batch, "source": "cli" })
}

async fn post(inbox: &mut Inbox, events: Vec<Value>, rate: Option<u32>) -> Result<(), Failed> {
    let began = clock::tick_ms();
    let total = events.len();
    let mut rest = events.into_iter();
    let mut sent: usize = 0;
    let bar = Progress::of("posting", total as u64);
    while sent < total {
        let part = match rate {
            None => CHUNK,
            Some(rate) => allowed(rate, clock::tick_ms().saturating_sub(began), sent),
        };
        let part: Vec<Value> = rest.by_ref().take(part).collect();
        if part.is_empty() {
            tokio::time::sleep(BEAT).await;
            continue;
        }
        let now = part.len();
        inbox.post(part).await.map_err(|failed| {
            let before = format!("after {sent} of {total} events: {}", failed.text);
            Failed::new(failed.code, before)
        })?;
        sent += now;
        bar.at(sent as u64);
    }
    Ok(())
}

/// How many may go now so that `rate` per second is kept since the beginning; the first part
/// goes at once.
fn allowed(rate: u32, passed_ms: u64, sent: usize) -> usize {
    let beat = u64::try_from(BEAT.as_millis()).unwrap_or(100);
    let due = u64::from(rate).saturating_mul(passed_ms + beat) / 1000;
    usize::try_from(due.max(1))
        .unwrap_or(CHUNK)
        .saturating_sub(sent)
        .min(CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(deleted: bool, accept: bool, redirect: bool, rated: bool) -> AccountFlags {
        AccountFlags {
            user_id: 1,
            nas_id: Some(1),
            deleted,
            accept,
            redirect,
            rated,
        }
    }

    #[test]
    fn every_combination_of_flags_has_its_commands() {
        for accept in [false, true] {
            for redirect in [false, true] {
                for rated in [false, true] {
                    let gone = commands(&flags(true, accept, redirect, rated));
                    assert_eq!(gone, ["user_del"]);
                    let here = commands(&flags(false, accept, redirect, rated));
                    assert_eq!(here.first(), Some(&"user_add"));
                    assert_eq!(here.contains(&"user_rate_set"), rated);
                    assert_eq!(here.contains(&"user_accept"), accept);
                    assert_eq!(here.contains(&"user_drop"), !accept);
                    assert_eq!(here.contains(&"user_redirect"), redirect);
                    assert_eq!(here.contains(&"user_redirect_cancel"), !redirect);
                    assert!(!here.contains(&"user_del"));
                }
            }
        }
    }

    #[test]
    fn the_rate_is_kept() {
        assert_eq!(allowed(10, 0, 0), 1);
        assert_eq!(allowed(10, 0, 1), 0);
        assert_eq!(allowed(10, 900, 1), 9);
        assert_eq!(allowed(1, 0, 0), 1);
        assert_eq!(allowed(1, 900, 1), 0);
        assert_eq!(allowed(1, 1_900, 1), 1);
        assert_eq!(allowed(100_000, 10_000, 0), CHUNK);
    }

    #[test]
    fn batches_are_named_by_the_time() {
        assert_eq!(stamp(1_767_323_045_678), "20260102T030405");
    }
}
