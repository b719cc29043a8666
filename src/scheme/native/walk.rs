//! One attempt walks through the steps of its command: conditions, loops, judgements, kept
//! answers, the deadline. Steps run in file order; the first failure stops, unless the step
//! says `fail = "continue"`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use minijinja::value::Value;

use super::exec_telnet::Held;
use super::look::Look;
use super::names::{NAS_VERSION, Scope};
use super::render::Template;
use super::saved::{Saved, logged, reply_text};
use super::step::{Answered, DriverName, Each, Kind, Pair, Step};
use super::{NativeScheme, lines, radius, ros};
use crate::attempt::{
    ANSWER_MAX, Failure, FailureClass, Job, Scope as Reach, Transcript, WAIT_MAX,
};
use crate::clock;
use crate::driver::mikrotik::{Command, Mikrotik};
use crate::driver::radius as radius_driver;
use crate::driver::radius::dictionary::Dictionary;
use crate::driver::sessions::Sessions;
use crate::driver::waits::Waits;
use crate::driver::{Reply, Row};
use crate::scheme::ExitPolicy;

/// Items of one `each`: an account has a handful of addresses and services.
const EACH_MAX: usize = 1_000;
/// `run` inside `run`; the lint allows three levels, this is the guard behind it.
const DEPTH_MAX: usize = 4;

/// Where commands go.
pub(super) enum Via<'a> {
    /// To the NAS, over its pooled sessions.
    Sessions(&'a Sessions),
    /// To the NAS, but only what reads.
    Look(&'a Look<'a>),
    /// Nowhere: rendered and logged. What would be read is assumed to be empty.
    Silent,
    /// A table in memory, for tests.
    #[cfg(test)]
    Table(&'a std::sync::Mutex<super::table::Table>),
}

/// Why a step ended early.
pub(super) enum Halt {
    /// Rendering failed or the scheme's own guard spoke: the event is dead, whatever
    /// `fail` and `ok_on` say.
    Dead(String),
    /// The device or the driver failed; the step's judgement applies.
    Device(Failure),
    /// The same, with an answer that `save` keeps.
    Refused(Failure, Reply),
}

impl From<String> for Halt {
    fn from(reason: String) -> Self {
        Self::Dead(reason)
    }
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Device(failure)
    }
}

impl Halt {
    /// What the attempt reports.
    pub(super) fn into_failure(self) -> Failure {
        match self {
            Self::Dead(reason) => Failure::permanent(reason),
            Self::Device(failure) | Self::Refused(failure, _) => failure,
        }
    }
}

/// The walk of one attempt.
pub(super) struct Walk<'a> {
    pub(super) scheme: &'a NativeScheme,
    pub(super) scope: Scope<'a>,
    pub(super) transcript: &'a mut Transcript,
    pub(super) via: Via<'a>,
    /// The NAS's sessions, looked up at the first command.
    router: Option<Arc<Mikrotik>>,
    /// A session on the device's command line, kept to the end of the attempt.
    pub(super) telnet: Option<Held>,
    /// For turns on the NAS, which do not count.
    pub(super) waits: Waits,
    /// Tick at which the attempt began; not read on the silent way, which has no deadline.
    pub(super) started_ms: u64,
    depth: usize,
    commands: usize,
    answers: Vec<String>,
    new_session: Option<bool>,
}

/// A boxed step list: lists contain lists (`run`), so the future needs an end.
type Steps<'w> = Pin<Box<dyn Future<Output = Result<(), Halt>> + Send + 'w>>;

impl<'a> Walk<'a> {
    /// Nothing is sent before `steps`.
    pub(super) fn new(
        scheme: &'a NativeScheme,
        job: &'a Job,
        transcript: &'a mut Transcript,
        via: Via<'a>,
    ) -> Self {
        let started_ms = if matches!(via, Via::Silent) {
            0
        } else {
            clock::tick_ms()
        };
        Self {
            scheme,
            scope: Scope::new(job, &scheme.vars),
            transcript,
            via,
            router: None,
            telnet: None,
            waits: Waits::up_to(WAIT_MAX),
            started_ms,
            depth: 0,
            commands: 0,
            answers: Vec::new(),
            new_session: None,
        }
    }

    /// The joined answer, at most [`ANSWER_MAX`] bytes, and whether a session was opened.
    pub(super) fn end(mut self) -> (Option<String>, Option<bool>) {
        if let Some(remark) = self.telnet.take().and_then(Held::give_back) {
            self.transcript.answer(remark);
        }
        if self.commands == 0 {
            self.transcript
                .answer("no command: no step applied to this account");
        }
        if self.answers.is_empty() {
            return (None, self.new_session);
        }
        let mut text = self.answers.join("\n");
        text.truncate(text.floor_char_boundary(ANSWER_MAX));
        (Some(text), self.new_session)
    }

    /// Nothing is sent.
    pub(super) fn silent(&self) -> bool {
        matches!(self.via, Via::Silent)
    }

    /// Nothing that changes anything is sent; what stands is compared.
    pub(super) fn look(&self) -> Option<&'a Look<'a>> {
        match self.via {
            Via::Look(look) => Some(look),
            Via::Sessions(_) | Via::Silent => None,
            #[cfg(test)]
            Via::Table(_) => None,
        }
    }

    /// The scheme's `own` mark.
    pub(super) fn own(&self) -> &'a [Pair] {
        &self.scheme.own
    }

    /// Notes a command that is rendered, not sent.
    pub(super) fn note_command(&mut self, text: String) {
        self.commands += 1;
        self.transcript.command(text);
    }

    /// Notes a further line of a step.
    pub(super) fn note_line(&mut self, line: &str) {
        self.note_command(lines::pasteable(self, line, None));
    }

    /// What `exec` speaks to.
    pub(super) fn driver(&self) -> DriverName {
        self.scheme.driver
    }

    /// `shell = "plain"`: lines are a dialogue with a device.
    pub(super) fn is_plain(&self) -> bool {
        self.scheme.plain
    }

    /// What exit codes mean.
    pub(super) fn policy(&self) -> &'a ExitPolicy {
        &self.scheme.policy
    }

    /// A session answered; `opened` for this.
    pub(super) fn heard_from(&mut self, opened: bool) {
        self.new_session = Some(self.new_session.unwrap_or(false) || opened);
    }

    /// Notes something that an operator should see beside the answers.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.transcript.answer(text);
    }

    /// Runs a list of steps.
    pub(super) fn steps<'w>(&'w mut self, steps: &'w [Step]) -> Steps<'w>
    where
        'a: 'w,
    {
        Box::pin(async move {
            if self.depth >= DEPTH_MAX {
                return Err(Halt::Dead("`run` goes deeper than 3 levels".to_owned()));
            }
            self.depth += 1;
            let mut ended = Ok(());
            for step in steps {
                ended = self.step(step).await;
                if ended.is_err() {
                    break;
                }
            }
            self.depth -= 1;
            ended
        })
    }

    async fn step(&mut self, step: &Step) -> Result<(), Halt> {
        if !step.when_each && !self.allowed(step)? {
            if let Some(name) = &step.save {
                self.scope.bind(name, Saved::skipped());
            }
            return Ok(());
        }
        let Some(each) = &step.each else {
            let saved = self.once(step).await?;
            if let (Some(name), Some(value)) = (&step.save, saved) {
                self.scope.bind(name, value);
            }
            return Ok(());
        };
        let items = self.items(step, each)?;
        let mut saved = Vec::new();
        for item in items {
            self.scope.bind(&each.name, item);
            if let Some(condition) = &each.condition {
                let wanted = condition
                    .evaluate(&self.scope)
                    .map_err(|e| dead(step, &e))?;
                if !wanted.is_true() {
                    continue;
                }
            }
            if step.when_each && !self.allowed(step)? {
                continue;
            }
            saved.extend(self.once(step).await?);
        }
        self.scope.unbind(&each.name);
        if let Some(name) = &step.save {
            self.scope.bind(name, Value::from(saved));
        }
        Ok(())
    }

    fn items(&self, step: &Step, each: &Each) -> Result<Vec<Value>, Halt> {
        let list = each.list.defined(&self.scope).map_err(|e| dead(step, &e))?;
        if list.as_str().is_some() {
            let text = each.list.text();
            return Err(dead(
                step,
                &format!("`each`: `{text}` is a text, not a list"),
            ));
        }
        let items = list.try_iter().map_err(|_| {
            dead(
                step,
                &format!("`each`: `{}` is not a list", each.list.text()),
            )
        })?;
        let items: Vec<_> = items.take(EACH_MAX + 1).collect();
        if items.len() > EACH_MAX {
            return Err(dead(
                step,
                &format!(
                    "`each`: `{}` has more than {EACH_MAX} items",
                    each.list.text()
                ),
            ));
        }
        Ok(items)
    }

    fn allowed(&self, step: &Step) -> Result<bool, Halt> {
        let Some(when) = &step.when else {
            return Ok(true);
        };
        when.defined(&self.scope)
            .map(|v| v.is_true())
            .map_err(|e| dead(step, &e))
    }

    /// One repetition; gives what `save` keeps.
    async fn once(&mut self, step: &Step) -> Result<Option<Value>, Halt> {
        if let Some(look) = self.look()
            && look.skips(&step.kind)
        {
            return Ok(step.save.is_some().then(Saved::skipped));
        }
        if !step.pause.is_zero() && !self.silent() && self.look().is_none() {
            self.transcript.flush();
            tokio::time::sleep(step.pause.min(self.left()?)).await;
        }
        let result = match &step.kind {
            Kind::Run(name) => {
                let ended = match self.scheme.target(name) {
                    Some(steps) => self.steps(steps).await,
                    None => Err(dead(step, &format!("`run`: there is no {name:?}"))),
                };
                return match ended {
                    Err(Halt::Device(_) | Halt::Refused(..)) if step.go_on => Ok(None),
                    other => other.map(|()| None),
                };
            }
            Kind::Answer(template) => {
                self.answer(step, template)?;
                return Ok(None);
            }
            Kind::Assert { check, defer } => {
                // Nothing was read on the silent way, so there is nothing to judge.
                if self.silent() {
                    return Ok(None);
                }
                let value = check.evaluate(&self.scope).map_err(|e| dead(step, &e))?;
                if value.is_true() {
                    return Ok(None);
                }
                let text = format!("assert `{}` does not hold", check.text());
                self.note(text.clone());
                if step.go_on {
                    return Ok(None);
                }
                return Err(if *defer {
                    Halt::Device(again(text))
                } else {
                    dead(step, &text)
                });
            }
            Kind::Ensure(e) => ros::ensure(self, e).await,
            Kind::Absent(a) => ros::absent(self, a).await,
            Kind::Read(r) => ros::read(self, r).await,
            Kind::Call(c) => ros::call(self, c).await,
            Kind::Coa(a) => radius::send(self, radius_driver::Kind::Coa, a).await,
            Kind::Disconnect(a) => radius::send(self, radius_driver::Kind::Disconnect, a).await,
            Kind::Exec(e) => {
                return match lines::exec(self, step, e).await {
                    Ok(told) => told.conclude(step),
                    Err(Halt::Dead(reason)) => Err(dead(step, &reason)),
                    Err(Halt::Device(failure) | Halt::Refused(failure, _)) => {
                        self.judge(step, Err(failure.into()))
                    }
                };
            }
            Kind::Request(r) => lines::request(self, r).await,
        };
        self.judge(step, result)
    }

    fn answer(&mut self, step: &Step, template: &Template) -> Result<(), Halt> {
        match template.render(&self.scope) {
            Ok(text) => self.answers.push(text),
            // What it would show was not read.
            Err(_) if self.silent() => {}
            Err(reason) => return Err(dead(step, &reason)),
        }
        Ok(())
    }

    /// The order: `ok_on`, `retry_on`, `fail_on`, then the driver's own verdict.
    fn judge(&mut self, step: &Step, result: Result<Reply, Halt>) -> Result<Option<Value>, Halt> {
        let mut refusal_rows = Vec::new();
        let result = match result {
            Ok(reply) => Ok(reply),
            Err(Halt::Device(failure)) => Err(failure),
            Err(Halt::Refused(failure, reply)) => {
                refusal_rows = reply.rows;
                Err(failure)
            }
            Err(Halt::Dead(reason)) => return Err(dead(step, &reason)),
        };
        let keep = step.save.is_some();
        if !keep && step.verdicts.is_empty() {
            return match result {
                Err(failure) if !step.go_on => Err(failure.into()),
                _ => Ok(None),
            };
        }
        let (code, class, text) = match &result {
            Ok(reply) => (reply.code, "ok", reply_text(reply)),
            Err(failure) => (failure.code, failure.class.as_str(), failure.text.clone()),
        };
        // Nothing was answered on the silent way: there is nothing to judge.
        let judged = !self.silent();
        let says = |list: &[Answered]| judged && list.iter().any(|a| fits(a, code, &text));
        let (failure, rows) = match result {
            Ok(reply) if says(&step.verdicts.ok) => (None, reply.rows),
            Err(_) if says(&step.verdicts.ok) => (None, refusal_rows),
            result => {
                let (own, rows) = match result {
                    Ok(reply) => (None, reply.rows),
                    Err(failure) => (Some(failure), refusal_rows),
                };
                let failure = if says(&step.verdicts.retry) {
                    Some(judged_as(own, FailureClass::Refused, &text))
                } else if says(&step.verdicts.fail) {
                    Some(judged_as(own, FailureClass::Permanent, &text))
                } else {
                    own
                };
                (failure, rows)
            }
        };
        let class = failure.as_ref().map_or(class, |f| f.class.as_str());
        let value = keep.then(|| Saved::keep(failure.is_none(), class, code, text, rows));
        match failure {
            Some(failure) if !step.go_on => Err(failure.into()),
            _ => Ok(value),
        }
    }

    /// One line of a step, judged in the same order.
    pub(super) fn weigh(
        &self,
        step: &Step,
        code: i32,
        text: &str,
        own: Option<Failure>,
    ) -> Option<Failure> {
        let says = |list: &[Answered]| list.iter().any(|a| fits(a, code, text));
        if says(&step.verdicts.ok) {
            None
        } else if says(&step.verdicts.retry) {
            Some(judged_as(own, FailureClass::Refused, text))
        } else if says(&step.verdicts.fail) {
            Some(judged_as(own, FailureClass::Permanent, text))
        } else {
            own
        }
    }

    /// Notes what came back.
    pub(super) fn note_result(&mut self, result: &Result<Reply, Failure>) {
        match result {
            Ok(reply) => {
                self.new_session = Some(self.new_session.unwrap_or(false) || reply.new_session);
                for line in logged(reply) {
                    self.transcript.answer(line);
                }
            }
            Err(failure) => self.transcript.answer(failure.to_string()),
        }
    }

    /// Binds `nas_version`, for a scheme that uses it.
    async fn bind_version(&mut self) -> Result<(), Halt> {
        if !self.scheme.asks_version {
            return Ok(());
        }
        let way = match self.look() {
            Some(look) => Some((look.sessions, self.left()?)),
            None => self.way().await?,
        };
        let Some((sessions, left)) = way else {
            return Ok(());
        };
        let job = self.scope.job();
        let router = sessions.mikrotik(&job.nas, &job.secret);
        let version = Value::from(router.version(left).await?);
        self.scope.bind(&Arc::from(NAS_VERSION), version);
        Ok(())
    }

    /// Runs a command's steps.
    pub(super) async fn run(&mut self, steps: &[Step]) -> Result<(), Halt> {
        self.bind_version().await?;
        self.steps(steps).await
    }

    /// Names of RADIUS attributes.
    pub(super) fn dictionary(&self) -> Arc<Dictionary> {
        Arc::clone(&self.scheme.dictionary)
    }

    /// The NAS's sessions over the RouterOS API, if anything may be changed.
    pub(super) fn router(&mut self) -> Option<&Arc<Mikrotik>> {
        let Via::Sessions(sessions) = &self.via else {
            return None;
        };
        let job: &Job = self.scope.job();
        let router = &mut self.router;
        Some(router.get_or_insert_with(|| sessions.mikrotik(&job.nas, &job.secret)))
    }

    /// Sends one RouterOS command and notes both ways.
    pub(super) async fn talk(&mut self, command: &Command) -> Result<Reply, Failure> {
        let job: &Job = self.scope.job();
        self.note_command(command.pasteable(job.nas.id));
        let way = self.way().await?;
        let result = match &self.via {
            Via::Silent => return Ok(Reply::default()),
            Via::Look(look) => {
                if !command.path.ends_with("/print") {
                    return Ok(Reply::default());
                }
                let router = look.sessions.mikrotik(&job.nas, &job.secret);
                router.talk(command, self.left()?).await
            }
            Via::Sessions(_) => {
                let left = way.map_or(Duration::ZERO, |(_, left)| left);
                match self.router() {
                    Some(router) => router.talk(command, left).await,
                    None => return Ok(Reply::default()),
                }
            }
            #[cfg(test)]
            Via::Table(table) => {
                self.left()?;
                table.lock().unwrap().talk(command)
            }
        };
        self.note_result(&result);
        result
    }
}

fn fits(answered: &Answered, code: i32, text: &str) -> bool {
    match answered {
        Answered::Code(wanted) => *wanted == code,
        // A pattern that runs into its own limit says nothing about the answer.
        Answered::Like(regex) => regex.is_match(text).unwrap_or(false),
    }
}

fn judged_as(own: Option<Failure>, class: FailureClass, text: &str) -> Failure {
    let code = match class {
        FailureClass::Permanent => Failure::CODE_PERMANENT,
        FailureClass::Transport | FailureClass::Refused | FailureClass::Unknown => {
            Failure::CODE_TRANSPORT
        }
    };
    Failure {
        scope: Reach::Event,
        class,
        code: own
            .as_ref()
            .map(|f| f.code)
            .filter(|c| *c != 0)
            .unwrap_or(code),
        text: own.map_or_else(|| text.replace('\n', " | "), |f| f.text),
        parks: false,
    }
}

/// Worth another try.
pub(super) fn again(text: String) -> Failure {
    Failure {
        scope: Reach::Event,
        class: FailureClass::Refused,
        code: Failure::CODE_TRANSPORT,
        text,
        parks: false,
    }
}

/// The event is dead, with the place in the scheme.
fn dead(step: &Step, reason: &str) -> Halt {
    Halt::Dead(format!("scheme.toml:{}: {reason}", step.line))
}

/// Renders a table of templates.
pub(super) fn rendered(
    pairs: &[Pair],
    scope: &Scope<'_>,
) -> Result<Vec<(Arc<str>, String)>, String> {
    pairs
        .iter()
        .map(|(key, template)| {
            let text = template.render(scope).map_err(|e| format!("{key}: {e}"))?;
            Ok((Arc::clone(key), text))
        })
        .collect()
}

/// A value of a row; a property that RouterOS leaves out is empty.
pub(super) fn value<'r>(row: &'r Row, key: &str) -> &'r str {
    row.get(key).map_or("", String::as_str)
}
