//! What `why` concludes: from the facts about an account one cause, one sentence, one next step.
//! Pure, and in one order: what keeps everybody from working comes before what keeps this NAS,
//! that before what became of this account's own events.

use super::verdict_device::of_the_device;
use super::waiting::{self, Facts};
use crate::event::{Class, Cmd};
use crate::store::{AccountFlags, EventRow, WhereIs};

/// The conclusion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// A word for programs; part of the interface.
    pub cause: &'static str,
    /// For people.
    pub text: String,
    /// What to do now.
    pub next: String,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Case {
    /// What the billing wants of the account; none = it does not know the account.
    pub flags: Option<AccountFlags>,
    /// `users.id`.
    pub user: i64,
    /// The account's NAS is in the table `nas`.
    pub nas_known: bool,
    /// Its row cannot be used, and why.
    pub nas_bad: Option<String>,
    /// Nothing is sent there.
    pub observed: bool,
    /// What the daemon says of the NAS.
    pub facts: Facts,
    /// A live daemon that is not ours owns the database.
    pub foreign_owner: Option<String>,
    /// A file system of the daemon has no room, and which.
    pub full_disk: Option<String>,
    /// A daemon listens and does not answer.
    pub hangs: bool,
    /// Waiting and running events, oldest first.
    pub waiting: Vec<EventRow>,
    /// The one of them that counts, the first on the account's NAS, and what it waits for.
    pub first: Option<(EventRow, Facts)>,
    /// Dead ones that were not retried, newest first.
    pub dead: Vec<EventRow>,
    /// Done ones, newest first.
    pub done: Vec<EventRow>,
    /// The device was to be asked (`--live`).
    pub live: bool,
    /// What the device itself says, if it was asked.
    pub device: Option<Device>,
}

/// The answer of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Why it could not be asked.
    pub failed: Option<String>,
    /// Its answer to `user_info`.
    pub answer: String,
    /// The account's addresses.
    pub addresses: Vec<String>,
    /// Another NAS that holds a session of this account.
    pub elsewhere: Option<String>,
    /// What stands there otherwise than the scheme would leave it, where that can be compared.
    pub differs: Option<String>,
}

pub(super) fn say(
    cause: &'static str,
    text: impl Into<String>,
    next: impl Into<String>,
) -> Verdict {
    Verdict {
        cause,
        text: text.into(),
        next: next.into(),
    }
}

/// The conclusion of a case.
pub fn verdict(case: &Case) -> Verdict {
    let user = case.user;
    let Some(flags) = &case.flags else {
        return say(
            "unknown_account",
            format!("the billing's table users has no account {user}"),
            "give users.id, not the number of the abonent; event list --user shows what was posted for it",
        );
    };
    everybody(case)
        .or_else(|| of_the_nas(case, flags))
        .or_else(|| of_the_lane(case))
        .or_else(|| ended(case))
        .or_else(|| not_sent(case, flags))
        .or_else(|| {
            let said = of_the_device(case, flags)?;
            // What it lacks was never posted to it.
            let lacks = ["the device does not redirect", "the device does not block"];
            let silent = never_posted(case, flags)
                .filter(|_| lacks.iter().any(|text| said.text.contains(text)));
            Some(silent.map_or(said.clone(), |silent| Verdict {
                text: format!("{}; {}", silent.text, said.text),
                next: said.next,
                ..silent
            }))
        })
        .or_else(|| never_posted(case, flags).filter(|_| case.device.is_none()))
        .unwrap_or_else(|| fine(case))
}

/// What stops all accounts.
fn everybody(case: &Case) -> Option<Verdict> {
    if let Some(owner) = &case.foreign_owner {
        return Some(say(
            "other_daemon",
            format!("the database is owned by another daemon: {owner}"),
            "ask that one (with its configuration), or stop it: only one may work on a database",
        ));
    }
    if let Some(full) = &case.full_disk {
        return Some(say(
            "disk_full",
            format!("there is no room left on {full}"),
            "make room: logs prune --older-than 90d, and look at what else lies there",
        ));
    }
    if case.hangs {
        return Some(say(
            "no_daemon",
            "the daemon does not answer: it hangs or was stopped; what is said here is from the database",
            "systemctl restart nas_event_daemon, then look at the end of nas_event_daemon.log",
        ));
    }
    if !case.facts.daemon && (case.live || !case.waiting.is_empty()) {
        let wait = format!("{} events of this account wait", case.waiting.len());
        let unasked = "the device was not asked";
        return Some(say(
            "no_daemon",
            match (case.live, case.waiting.is_empty()) {
                (true, true) => format!("no daemon is running: {unasked}"),
                (true, false) => format!("no daemon is running: {wait}, {unasked}"),
                (false, _) => format!("no daemon is running: {wait}"),
            },
            "systemctl start nas_event_daemon, then look at the end of nas_event_daemon.log",
        ));
    }
    None
}

/// What keeps its NAS from working.
fn of_the_nas(case: &Case, flags: &AccountFlags) -> Option<Verdict> {
    if let Some(row) = case
        .waiting
        .iter()
        .find(|row| row.place == WhereIs::Compact)
        && let Some(error) = row.error.as_deref().filter(|e| !e.is_empty())
    {
        return Some(say(
            "not_expandable",
            format!("event {} {} cannot be expanded: {error}", row.id, row.cmd),
            format!(
                "correct that in the billing; the event is tried again by itself, or event drop {}",
                row.id
            ),
        ));
    }
    let Some(nas) = flags.nas_id else {
        return Some(say(
            "no_nas",
            "the account has no NAS (users.nas_id is empty)",
            format!("set it in the billing; then account resync {}", case.user),
        ));
    };
    if !case.nas_known {
        return Some(say(
            "nas_unknown",
            format!("the account's NAS {nas} is not in the table nas"),
            "correct users.nas_id, or add the NAS in the billing",
        ));
    }
    if let Some(reason) = &case.nas_bad {
        return Some(say(
            "nas_row_wrong",
            format!("NAS {nas} is not served, its row is wrong: {reason}"),
            "correct the row in the billing; it is read again within a minute",
        ));
    }
    // An account that has moved may wait for the NAS that it came from.
    let first = case.first.as_ref();
    let elsewhere = first.and_then(|(row, facts)| Some((row.nas_id?, facts)));
    if let Some((other, facts)) = elsewhere.filter(|(other, _)| *other != nas) {
        return not_served(other, facts).or_else(|| not_obeying(other, facts));
    }
    not_served(nas, &case.facts).or_else(|| {
        let waits = !case.waiting.is_empty();
        waits.then(|| not_obeying(nas, &case.facts)).flatten()
    })
}

/// What the daemon says of a NAS that it does not serve.
fn not_served(nas: i64, facts: &Facts) -> Option<Verdict> {
    let reason = facts.skipped.as_ref()?;
    Some(if reason.contains("mode=off") {
        say(
            "nas_off",
            format!("NAS {nas} is switched off (mode=off)"),
            format!(
                "when it shall work: set nas.mode of NAS {nas} to active in the billing, then nas reload"
            ),
        )
    } else {
        say(
            "scheme_wrong",
            format!("NAS {nas} is not served: {reason}"),
            format!(
                "correct nas.oss_path or the scheme: nas show {nas} names its directory, scheme lint DIRECTORY says what is wrong with it"
            ),
        )
    })
}

/// Why nothing of what waits for a NAS is sent.
fn not_obeying(nas: i64, facts: &Facts) -> Option<Verdict> {
    if let Some(paused) = &facts.paused {
        return Some(say(
            "nas_paused",
            format!("NAS {nas} is {paused}"),
            format!("nas resume {nas}, when what it was paused for is over"),
        ));
    }
    let (state, reason) = facts.breaker.as_ref()?;
    let lower = reason.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let test = format!("nas test {nas}");
    // A line that ends in the middle of a login says nothing of the password.
    let broke = has(&["broke", "closed", "timed out", "no answer", "no prompt"]);
    Some(if has(&["host key"]) {
        say(
            "host_key",
            format!("the SSH host key of NAS {nas} is not believed (breaker {state}): {reason}"),
            if has(&["is not known", "pinned is"]) {
                format!(
                    "nas rekey {nas} shows what it presents: compare it on the NAS, then write it into nas.ssh_host_key in the billing"
                )
            } else {
                format!("nas rekey {nas} shows what it presents, and takes it if that is right")
            },
        )
    } else if has(&["session limit", "too many", "max sessions"]) {
        say(
            "session_limit",
            format!("NAS {nas} takes no further session: {reason}"),
            format!("lower nas.max_sessions or end other programs' sessions; then {test}"),
        )
    } else if !broke
        && has(&[
            "password",
            "login",
            "denied",
            "authentication",
            "not allowed",
        ])
    {
        say(
            "login_refused",
            format!("NAS {nas} refuses the login (breaker {state}): {reason}"),
            format!("correct nas_secret in the billing; then {test}"),
        )
    } else if has(&["did not fit our secret", "authenticator"]) {
        say(
            "wrong_secret",
            format!("NAS {nas} answers with another RADIUS secret (breaker {state}): {reason}"),
            format!("correct nas_secret.coa_secret in the billing; then {test}"),
        )
    } else if has(&["no radius secret"]) {
        say(
            "wrong_secret",
            format!("NAS {nas} cannot be spoken to: {reason}"),
            format!("set nas_secret.coa_secret in the billing; then {test}"),
        )
    } else if has(&["no answer"]) && has(&["coa_secret"]) {
        // RFC 5176 section 3.5: what does not fit the secret is dropped without a word.
        say(
            "radius_silent",
            format!(
                "NAS {nas} does not answer RADIUS (breaker {state}): it is down, it does not take CoA from this host, or nas_secret.coa_secret is another than its own, for which a NAS keeps silent: {reason}"
            ),
            format!(
                "ping it; if it lives, compare nas_secret.coa_secret, nas.coa_port and the clients that it allows; then {test}"
            ),
        )
    } else {
        say(
            "nas_down",
            format!("NAS {nas} fails for everybody (breaker {state}): {reason}"),
            format!("look at the NAS and the way to it; {test}; its events wait and burn no try"),
        )
    })
}

/// What its own events wait for.
fn of_the_lane(case: &Case) -> Option<Verdict> {
    let find = |state: &str| case.waiting.iter().find(|row| row.state == state);
    if let Some(row) = find("held") {
        return Some(say(
            "held",
            format!("event {} {} is held by the guard", row.id, row.cmd),
            format!(
                "guard approve {0} lets it run, guard deny {0} drops it; guard list says why",
                row.id
            ),
        ));
    }
    if let Some(row) = find("running") {
        return Some(say(
            "running",
            format!("event {} {} is being executed now", row.id, row.cmd),
            format!("wait; event show {}", row.id),
        ));
    }
    if let Some(row) = find("deferred") {
        let error = row.error.as_deref().unwrap_or("no error kept");
        let text = waiting::sentence(row, &case.facts).unwrap_or_default();
        let timed = [
            "deadline",
            "timed out",
            "did not end within",
            "no answer within",
        ]
        .iter()
        .any(|word| error.contains(word));
        return Some(say(
            if timed { "timed_out" } else { "deferred" },
            format!("event {} {}: {text}", row.id, row.cmd),
            "correct what the error names; a new event for the account starts the waiting one at once",
        ));
    }
    let (first, facts) = case.first.as_ref()?;
    if facts.limited && first.place == WhereIs::Compact {
        let text = waiting::sentence(first, facts).unwrap_or_default();
        return Some(say(
            "queue_full",
            format!("event {} {} {text}", first.id, first.cmd),
            "status names the NAS that is behind (nas list --sort -waiting); the event goes on by itself when it has caught up",
        ));
    }
    let text = waiting::sentence(first, facts).unwrap_or_default();
    let text = format!("event {} {}: {text}", first.id, first.cmd);
    Some(if let Some((earlier, ..)) = &facts.crossed {
        let next = format!("event show {earlier} says what that one waits for");
        say("waiting", text, next)
    } else if facts.are_forks_busy() {
        let next = "wait, or raise nas forks if the NAS can do more at once";
        say("forks_busy", text, next)
    } else {
        say("waiting", text, "wait a moment and ask again")
    })
}

/// What became of its last state-changing event.
fn ended(case: &Case) -> Option<Verdict> {
    let changes =
        |row: &&EventRow| Cmd::parse(&row.cmd).is_ok_and(|cmd| cmd.class() != Class::Interactive);
    let done = case.done.iter().find(changes);
    let dead = case.dead.iter().find(changes);
    if let Some(dead) = dead
        && done.is_none_or(|done| done.id < dead.id)
    {
        let error = dead.error.as_deref().unwrap_or("no reason kept");
        return Some(say(
            "dead",
            format!("event {} {} failed for good: {error}", dead.id, dead.cmd),
            format!("correct the cause, then event retry {}", dead.id),
        ));
    }
    let done = done?;
    let (id, cmd) = (done.id, &done.cmd);
    match done.state.as_str() {
        "not_implemented" => Some(say(
            "missing_function",
            format!("event {id} {cmd} did nothing: the NAS's scheme has no {cmd}"),
            format!("add {cmd} to the scheme, then account resync {}", case.user),
        )),
        "expired" => Some(say(
            "expired",
            format!("event {id} {cmd} expired before it could run"),
            "post it again if it is still wanted",
        )),
        "dropped" => Some(say(
            "dropped",
            format!(
                "event {id} {cmd} was dropped: {}",
                done.error.as_deref().unwrap_or("no reason kept")
            ),
            format!("account resync {}, if it is wanted after all", case.user),
        )),
        "observed" => Some(say(
            "observed",
            format!(
                "event {id} {cmd} was only observed: its NAS is in the mode observe, nothing is sent"
            ),
            activate(done.nas_id),
        )),
        _ => None,
    }
}

/// Whether the last command of each kind is what the flags call for now.
fn not_sent(case: &Case, flags: &AccountFlags) -> Option<Verdict> {
    let last = |names: &[&str]| {
        let of = |row: &&EventRow| names.contains(&row.cmd.as_str());
        case.done.iter().find(of).map(|row| row.cmd.as_str())
    };
    let wants = |yes: bool, on: &'static str, off: &'static str| if yes { on } else { off };
    let pairs: [(&[&str], &str); 3] = [
        (
            &["user_add", "user_del"],
            wants(flags.deleted, "user_del", "user_add"),
        ),
        (
            &["user_accept", "user_drop"],
            wants(flags.accept, "user_accept", "user_drop"),
        ),
        (
            &["user_redirect", "user_redirect_cancel"],
            wants(flags.redirect, "user_redirect", "user_redirect_cancel"),
        ),
    ];
    let used = if flags.deleted { 1 } else { pairs.len() };
    for (names, wanted) in pairs.iter().take(used) {
        if let Some(sent) = last(names)
            && sent != *wanted
        {
            return Some(say(
                "not_sent",
                format!(
                    "the flags call for {wanted}, but the last command was {sent}: the billing sent nothing since they changed"
                ),
                format!(
                    "account resync {} sets it right; then look why the billing was silent",
                    case.user
                ),
            ));
        }
    }
    None
}

/// What the flags call for and no command ever said, where others were posted.
fn never_posted(case: &Case, flags: &AccountFlags) -> Option<Verdict> {
    let posted = |name: &str| case.done.iter().any(|row| row.cmd == name);
    // As far as history is kept: it reaches back to when the account was added.
    if flags.deleted || !posted("user_add") {
        return None;
    }
    let pairs = [
        (!flags.accept, "user_drop", "user_accept"),
        (flags.redirect, "user_redirect", "user_redirect_cancel"),
    ];
    let (_, wanted, _) = pairs
        .into_iter()
        .find(|(wants, on, off)| *wants && !posted(on) && !posted(off))?;
    Some(say(
        "not_sent",
        format!(
            "the flags call for {wanted}, which was never posted: unless they were so when the account was added, the billing sent nothing since they changed"
        ),
        format!(
            "why {0} --live asks the device; account resync {0} sets it right",
            case.user
        ),
    ))
}

fn fine(case: &Case) -> Verdict {
    match &case.device {
        Some(_) => say(
            "open",
            "the device holds what the billing wants: nothing is in the way here",
            "look at the subscriber's side: his router, DNS, the browser's cache",
        ),
        None if case.observed => say(
            "observed",
            "the NAS is in the mode observe: nothing is sent",
            activate(case.flags.as_ref().and_then(|flags| flags.nas_id)),
        ),
        None if case.done.is_empty() => say(
            "never_sent",
            "no command that changes something was ever posted for this account, as far as history is kept",
            format!("account resync {} posts what its flags call for", case.user),
        ),
        None => say(
            "confirmed",
            "every command was confirmed by the NAS, nothing waits",
            format!("why {} --live asks the device itself", case.user),
        ),
    }
}

fn activate(nas: Option<i64>) -> String {
    let nas = nas.map_or_else(|| "ID".to_owned(), |nas| nas.to_string());
    format!("nas activate {nas} makes it send, when it shall work")
}

#[cfg(test)]
#[path = "verdict_test.rs"]
pub(super) mod tests;
