//! One attempt: runs the job, asks the breaker and `settle` what it means, writes the logs,
//! tells the scheduler. Runs in a task of the scheduler's `JoinSet`; one that was obeyed in two,
//! so that its fork is free for the next while the logs are written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Finished;
use super::attempts::Ended;
use super::breaker::{Breaker, Change, Evidence, Ticket};
use super::doubt::{self, Doubt};
use super::settle::{self, Facts};
use crate::attempt::{
    ANSWER_MAX, Failure, Job, Line, LineKind, Outcome, Report, Scope, Transcript, Verdict, WAIT_MAX,
};
use crate::clock;
use crate::config;
use crate::event::{Class, EventId, StoredParams, UserId};
use crate::logs::line::{End, Key, OPENED, Records, result_word};
use crate::logs::{Logs, NasLog};
use crate::scheme::Execute;
use crate::store::{SettleTo, Store, chain};

/// An executor must end by its own deadline plus the grace of killing a process group, and the
/// time that it waited for its turn on the NAS; this
/// much later the attempt is given up, whatever it does.
const LAST_RESORT: Duration = Duration::from_secs(40).saturating_add(WAIT_MAX);
/// An attempt that ends within this time writes its logs once, when it has ended and its fork is
/// free; of a longer one an operator sees what is being waited for.
const LOG_AFTER: Duration = Duration::from_millis(20);
/// Longest error text kept with an event, bytes.
const ERROR_MAX: usize = 1_000;

/// What an attempt needs beside the job.
#[derive(Clone)]
pub struct Fork {
    /// The NAS's scheme.
    pub execute: Arc<dyn Execute>,
    /// The NAS's breaker.
    pub breaker: Arc<Mutex<Breaker>>,
    /// Given by the breaker at the start.
    pub ticket: Ticket,
    /// All logs.
    pub logs: Logs,
    /// The NAS's log.
    pub log: NasLog,
    /// `[dispatch]`.
    pub config: Arc<config::Dispatch>,
    /// Directory of the classic result files, if set.
    pub result_dir: Option<std::path::PathBuf>,
    /// Where PARAMS are read again, for schemes that ask for it.
    pub store: Arc<dyn Store>,
    /// A remark for the log, such as `cross_nas_overtake`.
    pub remark: Option<&'static str>,
}

/// The records of one attempt on their way to the logs.
struct Book {
    logs: Logs,
    log: NasLog,
    account: Option<(Option<i64>, UserId)>,
    records: Records,
    out: Vec<u8>,
    /// Its attempt takes longer than most: what it says is written at once.
    open: bool,
}

impl Book {
    fn open(&mut self) {
        self.open = true;
        self.write();
    }

    fn write(&mut self) {
        self.logs.write(&self.log, self.account, &self.out);
        self.out.clear();
    }
}

impl Drop for Book {
    /// An attempt that breaks or is cut leaves what it did until then.
    fn drop(&mut self) {
        self.write();
    }
}

/// What remains of an attempt when nothing more is sent.
pub struct Rest {
    fork: Fork,
    job: Job,
    book: Arc<Mutex<Book>>,
    report: Report,
    error: Option<String>,
    ms: i64,
}

impl Fork {
    /// Runs the job with `params` as its variables.
    pub async fn run(self, mut job: Job, params: StoredParams) -> Ended {
        let began = clock::tick_ms();
        job.params = params.read();
        drop(params);
        let owned = (job.event, job.user, job.cmd.clone(), job.try_count);
        let key = || key_of(&job);
        let account = job.user.map(|user| (job.abonent, user));
        let mut book = Book {
            logs: self.logs.clone(),
            log: self.log.clone(),
            account,
            records: self.logs.records(),
            out: Vec::with_capacity(512),
            open: false,
        };
        book.records.start(&mut book.out, clock::wall_ms(), &key());
        if let Some(remark) = self.remark {
            let line = Line {
                at_ms: clock::wall_ms(),
                kind: LineKind::Answer,
                text: remark.to_owned(),
            };
            book.records.line(&mut book.out, &key(), &line);
        }
        let book = Arc::new(Mutex::new(book));
        let sink_book = Arc::clone(&book);
        let sink_key = owned.clone();
        let mut transcript = Transcript::new(
            job.secrets(),
            Box::new(move |lines: Vec<Line>| {
                let key = Key {
                    event: sink_key.0,
                    user: sink_key.1,
                    cmd: sink_key.2.as_str(),
                    try_count: sink_key.3,
                };
                let mut book = sink_book.lock().unwrap_or_else(PoisonError::into_inner);
                let book = &mut *book;
                for line in &lines {
                    book.records.line(&mut book.out, &key, line);
                }
                if book.open {
                    book.write();
                }
            }),
        );
        let mut report = {
            let running = async {
                match self.refresh(&mut job).await {
                    Ok(()) => self.attempt(&job, &mut transcript).await,
                    Err(failure) => Report::of(Verdict::Failed(failure)),
                }
            };
            tokio::pin!(running);
            tokio::select! {
                biased;
                report = &mut running => report,
                () = tokio::time::sleep(LOG_AFTER) => {
                    book.lock().unwrap_or_else(PoisonError::into_inner).open();
                    running.await
                }
            }
        };
        redact(&mut report, &transcript);
        let error = error_text(&report);
        let ms = i64::try_from(clock::tick_ms().saturating_sub(began)).unwrap_or(i64::MAX);
        // What was said is in the logs, whatever becomes of the rest.
        keep(&book, &job, &report, &transcript.into_rest());
        let obeyed = Evidence::of(&report, self.execute.policy()) == Evidence::Success;
        let rest = Rest {
            fork: self,
            job,
            book,
            report,
            error,
            ms,
        };
        if obeyed {
            Ended::Obeyed(Box::new(rest))
        } else {
            // What it says against the NAS is known before anything else starts there.
            Ended::Finished(Box::new(rest.conclude()))
        }
    }

    /// Reads the PARAMS again that the scheme calls `fresh`.
    async fn refresh(&self, job: &mut Job) -> Result<(), Failure> {
        let names = self.execute.fresh();
        if names.is_empty() || job.user.is_none() {
            return Ok(());
        }
        let now = self.store.params_now(job.event).await.map_err(|error| {
            let text = format!("PARAMS could not be read again: {}", chain(&error));
            Failure {
                scope: Scope::Nas,
                ..Failure::transport(text)
            }
        })?;
        for (name, value) in now.map(|p| p.0).unwrap_or_default() {
            if names.contains(&name) {
                job.params.0.insert(name, value);
            }
        }
        Ok(())
    }

    async fn attempt(&self, job: &Job, transcript: &mut Transcript) -> Report {
        let limit = job.deadline + LAST_RESORT;
        match tokio::time::timeout(limit, self.execute.run(job, transcript)).await {
            Ok(report) => report,
            Err(_) => Report::of(Verdict::Failed(Failure::timeout(format!(
                "the attempt did not end within its deadline of {:?}",
                job.deadline
            )))),
        }
    }

    fn judge(&self, job: &Job, report: &Report) -> (Outcome, Doubt, Option<Change>) {
        let policy = self.execute.policy();
        let evidence = Evidence::of(report, policy);
        super::status::count_error(&job.nas, &report.verdict);
        let facts = Facts {
            try_count: job.try_count,
            class: job.class,
            max_tries: self.config.max_tries,
            retry_base: self.config.retry_base,
            policy,
            on_error: settle::on_error(job.nas.on_error, policy, self.config.on_error),
        };
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::tick_ms();
        let free = breaker.is_free(&evidence);
        let alone = doubt::alone(facts.retry_base).as_millis();
        let alone_ms = u64::try_from(alone).unwrap_or(u64::MAX);
        // An operator waits for the one; nothing that the NAS does changes the other.
        let doubt = if job.class == Class::Interactive || report.certain {
            Doubt::None
        } else {
            breaker.doubt(now, job.event, job.user, &evidence, alone_ms)
        };
        let outcome = settle::weighed(settle::settle(report, &facts), &facts, free, doubt);
        // Only a failure is followed by a wait.
        let jitter = match outcome {
            Outcome::Done(_) => 0,
            Outcome::Deferred(_) | Outcome::Dead(_) | Outcome::Released => random(),
        };
        let change = breaker.ended(now, self.ticket, job.user, evidence, jitter);
        (outcome, doubt, change)
    }

    fn destination(&self, job: &Job, outcome: &Outcome, report: Report) -> (SettleTo, u64) {
        let possible_duplicate = settle::possible_duplicate(&report);
        match outcome {
            Outcome::Done(result) => {
                let mut answer = report.answer;
                if let Some(text) = &mut answer {
                    cut(text, ANSWER_MAX);
                    self.classic_result(job, text);
                }
                (
                    SettleTo::Done {
                        result: *result,
                        answer,
                        scheme_hash: report.scheme_hash,
                    },
                    0,
                )
            }
            Outcome::Deferred(wait) => {
                let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                let until_ms =
                    clock::wall_ms().saturating_add(i64::try_from(wait).unwrap_or(i64::MAX));
                (
                    SettleTo::Deferred {
                        until_ms,
                        possible_duplicate,
                    },
                    clock::tick_ms().saturating_add(wait),
                )
            }
            Outcome::Dead(reason) => {
                let mut reason = reason.clone();
                cut(&mut reason, ERROR_MAX);
                (
                    SettleTo::Dead {
                        reason,
                        possible_duplicate,
                    },
                    0,
                )
            }
            Outcome::Released => (SettleTo::Ready { possible_duplicate }, 0),
        }
    }

    /// The original's contract: the answer of a diagnostic in `<dir>/<user_id>_<cmd>`, written
    /// under another name and renamed, so that a reader never sees half of it.
    fn classic_result(&self, job: &Job, text: &str) {
        let (Some(dir), Some(user)) = (&self.result_dir, job.user) else {
            return;
        };
        let path = dir.join(format!("{user}_{}", job.cmd));
        let part = dir.join(format!(".{user}_{}.{}", job.cmd, job.event));
        if let Err(e) = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path)) {
            tracing::warn!(path = %path.display(), error = %e, "compat.result_dir: the answer was not written");
        }
    }

    fn tell(&self, job: &Job, change: Option<Change>) {
        let (id, ip) = (job.nas.id, &job.nas.ip);
        match change {
            None => {}
            Some(Change::Opened { reason }) => {
                tracing::warn!(
                    "NAS does not obey, its events wait nasid={id} nas_ip={ip} reason={reason:?}"
                );
            }
            Some(Change::Parked { reason }) => {
                tracing::error!(
                    "NAS is parked until its settings change, probed every 5 minutes nasid={id} nas_ip={ip} reason={reason:?}"
                );
            }
            Some(Change::Closed) => {
                tracing::info!("NAS obeys again nasid={id} nas_ip={ip}");
            }
        }
    }
}

impl Rest {
    /// Event.
    pub fn event(&self) -> EventId {
        self.job.event
    }

    /// Weighs what was reported and writes the logs.
    pub fn conclude(self) -> Finished {
        let Self {
            fork,
            job,
            book,
            report,
            mut error,
            ms,
        } = self;
        let (outcome, doubt, change) = fork.judge(&job, &report);
        if let (Some(text), Outcome::Deferred(_)) = (&mut error, &outcome) {
            text.push_str(remark_of(doubt));
        }
        let code = code_of(&report);
        let (to, due) = fork.destination(&job, &outcome, report);
        {
            let key = key_of(&job);
            let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
            let book = &mut *book;
            let next_try_ms = match &to {
                SettleTo::Deferred { until_ms, .. } => Some(*until_ms),
                SettleTo::Done { .. } | SettleTo::Dead { .. } | SettleTo::Ready { .. } => None,
            };
            let end = End {
                result: result_word(&outcome),
                code,
                ms,
                next_try_ms,
                error: error.as_deref(),
            };
            book.records
                .end(&mut book.out, clock::wall_ms(), &key, &end);
            book.write();
        }
        fork.tell(&job, change);
        Finished {
            id: job.event,
            user: job.user,
            nas: job.nas.id,
            try_count: job.try_count,
            to,
            due,
            code,
            ms,
            error,
        }
    }
}

/// The last lines of an attempt into its book.
fn keep(book: &Mutex<Book>, job: &Job, report: &Report, lines: &[Line]) {
    let key = key_of(job);
    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
    let book = &mut *book;
    if report.new_session == Some(true) {
        // Before the last answers, which a reader looks for at the end.
        let line = Line {
            at_ms: lines.first().map_or_else(clock::wall_ms, |line| line.at_ms),
            kind: LineKind::Answer,
            text: OPENED.to_owned(),
        };
        book.records.line(&mut book.out, &key, &line);
    }
    for line in lines {
        book.records.line(&mut book.out, &key, line);
    }
}

fn key_of(job: &Job) -> Key<'_> {
    Key {
        event: job.event,
        user: job.user,
        cmd: job.cmd.as_str(),
        try_count: job.try_count,
    }
}

fn redact(report: &mut Report, transcript: &Transcript) {
    if let Verdict::Failed(failure) = &mut report.verdict {
        failure.text = transcript.redacted(std::mem::take(&mut failure.text));
    }
    report.answer = report.answer.take().map(|a| transcript.redacted(a));
}

fn error_text(report: &Report) -> Option<String> {
    match &report.verdict {
        Verdict::Done | Verdict::Observed | Verdict::NotImplemented | Verdict::Exit(0) => None,
        Verdict::Exit(code) => Some(format!("the script ended with code {code}")),
        Verdict::Failed(failure) => {
            let mut text = failure.text.clone();
            cut(&mut text, ERROR_MAX);
            Some(text)
        }
    }
}

/// Why an event waits that was refused for good.
fn remark_of(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::None => "",
        Doubt::Alone => " (tried once more before this is final)",
        Doubt::Shared => {
            " (others are refused alike and nobody is obeyed: tried again, until it is known whose fault it is)"
        }
    }
}

fn code_of(report: &Report) -> i32 {
    match &report.verdict {
        Verdict::Done | Verdict::Observed | Verdict::NotImplemented => 0,
        Verdict::Exit(code) => *code,
        Verdict::Failed(failure) => failure.code,
    }
}

fn cut(text: &mut String, max: usize) {
    text.truncate(text.floor_char_boundary(max));
}

/// For the jitter of probes only; a failure of the source means no jitter.
pub(super) fn random() -> u32 {
    let mut bytes = [0; 4];
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::stand_test::{Answer, FRESH, Stand};

    fn failed(text: &str) -> Report {
        Report::of(Verdict::Failed(Failure::permanent(text)))
    }

    #[test]
    fn an_end_has_its_code_and_its_words() {
        let exit = |code| Report::of(Verdict::Exit(code));
        for (report, code, error) in [
            (Report::of(Verdict::Done), 0, None),
            (Report::of(Verdict::Observed), 0, None),
            (exit(0), 0, None),
            (exit(143), 143, Some("the script ended with code 143")),
            (exit(-9), -9, Some("the script ended with code -9")),
            (
                failed("no such rate"),
                Failure::CODE_PERMANENT,
                Some("no such rate"),
            ),
        ] {
            let told = error_text(&report);
            assert_eq!(
                (code_of(&report), told.as_deref()),
                (code, error),
                "{report:?}"
            );
        }
        let long = error_text(&failed(&"ы".repeat(ERROR_MAX))).unwrap();
        assert_eq!(long.len(), ERROR_MAX, "cut between two letters");
    }

    #[tokio::test]
    async fn a_short_attempt_writes_its_log_once_its_fork_is_free() {
        let mut stand = Stand::new(1).await;
        let done = Answer::Report(Report::of(Verdict::Done));
        stand.device.answers.lock().unwrap().push_back(done);
        stand.add(1, 7, Class::Access);
        stand.claim(FRESH);
        stand.end().await;
        assert_eq!((stand.runs(1), stand.log().as_str()), (false, ""));
        stand.end().await;
        let log = stand.log();
        for part in [" start", " > what was sent", " end result=done"] {
            assert!(log.contains(part), "{part}: {log}");
        }
    }

    #[tokio::test]
    async fn what_is_waited_for_is_in_the_log() {
        let mut stand = Stand::new(1).await;
        stand.add(1, 7, Class::Access);
        stand.claim(FRESH);
        while !stand.log().contains(" > what was sent") {
            tokio::task::yield_now().await;
        }
        assert!(stand.runs(1) && !stand.log().contains(" end "));
    }

    #[test]
    fn a_doubt_is_told() {
        assert_eq!(remark_of(Doubt::None), "");
        assert!(remark_of(Doubt::Alone).contains("tried once more"));
        assert!(remark_of(Doubt::Shared).contains("others are refused alike"));
    }

    #[test]
    fn probes_are_spread_by_chance() {
        let some: std::collections::BTreeSet<u32> = (0..8).map(|_| random()).collect();
        assert!(some.len() > 1, "{some:?}");
    }
}
