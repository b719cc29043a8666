//! `scheme test NAME`: a scheme's own example events against the simulators, in the process.
//! Each event runs twice, as it may after a crash: the second run must end alike and change
//! nothing. A scheme that speaks to no device (`record`), or in a terminal over SSH, which has no
//! simulator here, is rendered only, which is said.
//!
//! An example is a file `examples/*.json` of the scheme's directory:
//!
//! | key | meaning |
//! |---|---|
//! | `about` | what it shows, in one line |
//! | `vars` | `nas.vars` |
//! | `state` | what stands there before it begins: rows of the router, `{"/menu": [{…}]}`; sessions of RADIUS, `{"sessions": [{"User-Name": "…"}]}` |
//! | `answers` | what the SSH server or the telnet router says: `[{"like": "REGEX", "stdout": "…", "stderr": "…", "status": 1}]`; what fits none is done, and answered with nothing |
//! | `events` | each with `cmd`, `user_id`, `usluga_id`, `params`, and what is expected of it: |
//! | … `sends` | the commands in the form of the log, in order |
//! | … `answer` | a part of the answer |
//! | … `ends` | `done` (default), `not_implemented`, `dead` or `later` |
//! | … `left` | what stands on the device then: of each menu exactly so many rows with these properties; of an HTTP device the document or null; `sessions`, all of them; `config`, all lines of the telnet router; `commands`, those that reached the SSH server since the event began, each with its batch below it |

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Console;
use super::exit::{DONE, FAILED, Failed, NOT_FOUND, Outcome, UNHEALTHY, remark, say};
use super::scheme::{directory, stand_in, unusable};
use super::table::{Table, one_line};
use crate::attempt::{FailureClass, Job, LineKind, Transcript, Verdict};
use crate::clock;
use crate::config::Config;
use crate::driver::sessions::Sessions;
use crate::event::{Cmd, EventId, Params, UserId};
use crate::nas::{Mode, Nas, NasId, NasSecret};
use crate::scheme::native::beside::Beside;
use crate::scheme::native::{NativeExecute, NativeScheme};
use crate::scheme::ride::{self, Rides};
use crate::scheme::session::SessionScheme;
use crate::scheme::{Execute, resolve};
use crate::sim;

/// Directory of the examples in a scheme's directory.
pub const EXAMPLES: &str = "examples";
/// Largest example, bytes.
const EXAMPLE_MAX: u64 = 4 * 1024 * 1024;
/// The simulators answer at once; a script may have to start a few programs.
const DEADLINE: Duration = Duration::from_secs(20);
/// Sessions of the simulated RADIUS NAS in `state` and `left`.
const SESSIONS: &str = "sessions";
/// Before what is wrong with them.
const ANSWERS: &str = "`answers` of the example: ";
/// The running configuration of the simulated telnet router in `left`.
const CONFIG: &str = "config";
/// What the simulated SSH server was asked to run, in `left`: it keeps no state.
const COMMANDS: &str = "commands";
/// Number of the NAS in logged commands.
const NAS: NasId = NasId(1);
/// Account of the simulators.
const LOGIN: &str = "test";
/// Its password; a toy.
const PASSWORD: &str = "simulated-by-scheme-test";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    #[serde(default)]
    about: String,
    #[serde(default)]
    vars: Map<String, Value>,
    #[serde(default)]
    state: Map<String, Value>,
    #[serde(default)]
    answers: Vec<sim::ssh::Answer>,
    events: Vec<Event>,
}

impl Example {
    /// What the telnet router answers beside its own commands.
    fn lines(&self) -> Result<Vec<(Regex, String)>, Failed> {
        let lines = self.answers.iter().map(|answer| {
            let like = Regex::new(&answer.like);
            let like = like.map_err(|e| Failed::config(format!("{ANSWERS}{e}")))?;
            Ok((like, answer.stdout.clone()))
        });
        lines.collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    cmd: String,
    user_id: Option<i64>,
    abonent_id: Option<i64>,
    usluga_id: Option<i64>,
    #[serde(default)]
    params: Map<String, Value>,
    sends: Option<Vec<String>>,
    answer: Option<String>,
    #[serde(default)]
    ends: Ends,
    #[serde(default)]
    left: Map<String, Value>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ends {
    #[default]
    Done,
    NotImplemented,
    Dead,
    Later,
}

/// Runs the examples of one scheme.
pub async fn run(console: &Console, config: &Config, name: &str) -> Outcome {
    let mut table = Table::new(&[
        "example",
        "ok",
        "rendered_only",
        "events",
        "about",
        "complaints",
    ]);
    let dir = directory(&config.paths, name)?;
    let dir = dir.canonicalize().unwrap_or(dir);
    let files = examples(&dir)?;
    if files.is_empty() {
        return Err(Failed::new(
            NOT_FOUND,
            format!(
                "{} has no {EXAMPLES}/*.json\nhint: docs/schemes.md shows one; scheme new writes one",
                dir.display()
            ),
        ));
    }
    let began = clock::tick_ms();
    let mut wrong = 0;
    for file in &files {
        let example = read(file)?;
        let events = example.events.len();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mut bench = Bench::new(&dir, &example).await?;
        let complaints = bench.example(&example).await;
        wrong += usize::from(!complaints.is_empty());
        if console.wants_data() {
            table.push(vec![
                json!(name),
                json!(complaints.is_empty()),
                json!(bench.rendered_only),
                json!(events),
                json!(example.about),
                json!(complaints),
            ]);
            continue;
        }
        let how = match (complaints.is_empty(), bench.rendered_only) {
            (true, false) => "ok",
            (true, true) => "ok, rendered only",
            (false, _) => "FAILED",
        };
        say(one_line(&format!(
            "{name}: {how}, {events} events, {}",
            example.about
        )));
        for complaint in complaints {
            say(format!("    {}", one_line(&complaint)));
        }
    }
    if console.wants_data() {
        console.list(&table);
    }
    let ms = clock::tick_ms().saturating_sub(began);
    remark(format!("{} examples, {wrong} failed, {ms} ms", files.len()));
    Ok(if wrong > 0 { UNHEALTHY } else { DONE })
}

fn examples(dir: &Path) -> Result<Vec<PathBuf>, Failed> {
    let place = dir.join(EXAMPLES);
    let entries = match std::fs::read_dir(&place) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => {
            let text = format!("{} cannot be read: {e}", place.display());
            return Err(Failed::new(FAILED, text));
        }
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<Example, Failed> {
    let bad = |why: String| Failed::config(format!("{}: {why}", file.display()));
    let size = std::fs::metadata(file).map_or(0, |meta| meta.len());
    if size > EXAMPLE_MAX {
        return Err(bad(format!("more than {EXAMPLE_MAX} bytes")));
    }
    let text = std::fs::read_to_string(file).map_err(|e| bad(format!("cannot be read: {e}")))?;
    serde_json::from_str(&text).map_err(|e| bad(format!("is not an example: {e}")))
}

/// The simulators and the scheme, for one example.
struct Bench {
    execute: Box<dyn Execute>,
    router: sim::mikrotik::Sim,
    hook: sim::http::Sim,
    radius: sim::radius::Sim,
    _ssh: sim::ssh::Sim,
    telnet: sim::telnet::Sim,
    /// What the SSH server was asked to run, one record a line.
    journal: PathBuf,
    nas: Arc<Nas>,
    secret: Arc<NasSecret>,
    /// The scheme speaks to no device, or to one that has no simulator.
    rendered_only: bool,
    _run: tempfile::TempDir,
    _served: JoinSet<()>,
}

/// What one run of one event did.
struct Did {
    verdict: Verdict,
    answer: String,
    sent: Vec<String>,
}

impl Bench {
    async fn new(dir: &Path, example: &Example) -> Result<Self, Failed> {
        let failed = |e: std::io::Error| Failed::new(FAILED, format!("the simulators: {e}"));
        let router = sim::mikrotik::Sim::start(sim::mikrotik::Options {
            login: LOGIN.to_owned(),
            password: PASSWORD.to_owned(),
            ..sim::mikrotik::Options::default()
        })
        .map_err(failed)?;
        let bad = |why| Failed::config(format!("`state` of the example: {why}"));
        let mut state = example.state.clone();
        let radius = sim::radius::Sim::start(sim::radius::Options {
            secret: PASSWORD.to_owned(),
            ..sim::radius::Options::default()
        });
        let radius = radius.await.map_err(failed)?;
        if let Some(sessions) = state.remove(SESSIONS) {
            radius
                .load(&serde_json::json!({ SESSIONS: sessions }))
                .map_err(bad)?;
        }
        router.load(&Value::Object(state)).map_err(bad)?;
        let hook = sim::http::Sim::start(sim::http::Options::default())
            .await
            .map_err(failed)?;
        let run = tempfile::tempdir().map_err(failed)?;
        let journal = run.path().join("ssh.journal");
        let ssh = sim::ssh::Sim::start(sim::ssh::Options {
            login: LOGIN.to_owned(),
            password: PASSWORD.to_owned(),
            answers: example.answers.clone(),
            journal: Some(journal.clone()),
            ..sim::ssh::Options::default()
        });
        let ssh = ssh
            .await
            .map_err(|e| Failed::config(format!("{ANSWERS}{e}")))?;
        let telnet = sim::telnet::Sim::start(sim::telnet::Options {
            login: LOGIN.to_owned(),
            password: PASSWORD.to_owned(),
            enable_password: PASSWORD.to_owned(),
            answers: example.lines()?,
            // Another maker's words are no mistake of the scheme.
            lenient: true,
            ..sim::telnet::Options::default()
        });
        let telnet = telnet.await.map_err(failed)?;
        let mut nas = stand_in(Some(dir.display().to_string()));
        nas.id = NAS;
        nas.ip = "127.0.0.1".to_owned();
        nas.mode = Mode::Active;
        nas.api_port = Some(router.addr().port());
        nas.http_url = Some(format!("http://{}", hook.addr()));
        nas.coa_port = Some(radius.addr().port());
        nas.ssh_port = Some(ssh.addr().port());
        nas.ssh_host_key = Some(ssh.host_key());
        nas.telnet_port = Some(telnet.addr().port());
        nas.vars = example.vars.clone();
        let secret = NasSecret {
            login: LOGIN.to_owned(),
            password: PASSWORD.to_owned(),
            coa_secret: PASSWORD.to_owned(),
            enable_password: PASSWORD.to_owned(),
            ..NasSecret::default()
        };
        let sessions = Arc::new(Sessions::default());
        let mut served = JoinSet::new();
        let mut rendered_only = false;
        let execute: Box<dyn Execute> = if dir.join("bin/session").is_file() {
            let rides = Rides::new(sessions, run.path());
            ride::link_helpers(run.path()).map_err(failed)?;
            let listener = ride::bind(run.path()).map_err(failed)?;
            served.spawn(Arc::clone(&rides).serve(listener, CancellationToken::new()));
            let beside = Beside::load(dir).map_err(|findings| unusable(&findings))?;
            let hash = resolve::hash(dir).map_err(Failed::config)?;
            Box::new(SessionScheme::session(dir, hash, beside).riding(Some(rides)))
        } else {
            let scheme = NativeScheme::load(dir).map_err(|findings| unusable(&findings))?;
            rendered_only = scheme.driver() == "record" || scheme.is_terminal();
            if rendered_only {
                nas.mode = Mode::Observe;
            }
            Box::new(NativeExecute::new(Arc::new(scheme), sessions))
        };
        Ok(Self {
            execute,
            router,
            hook,
            radius,
            _ssh: ssh,
            telnet,
            journal,
            nas: Arc::new(nas),
            secret: Arc::new(secret),
            rendered_only,
            _run: run,
            _served: served,
        })
    }

    async fn example(&mut self, example: &Example) -> Vec<String> {
        let mut wrong = Vec::new();
        for (n, event) in example.events.iter().enumerate() {
            let at = format!("event {} {}", n + 1, event.cmd);
            let job = match self.job(n, event) {
                Ok(job) => job,
                Err(why) => {
                    wrong.push(format!("{at}: {why}"));
                    continue;
                }
            };
            let before = self.commands().len();
            let first = self.once(&job).await;
            let changes = self.changes();
            let commands = self.commands().split_off(before);
            self.judge(event, &first, &commands, &mut |why| {
                wrong.push(format!("{at}: {why}"));
            });
            let second = self.once(&job).await;
            if ends(&second.verdict) != ends(&first.verdict) {
                wrong.push(format!(
                    "{at}: the second run ends otherwise: {}",
                    shown(&second.verdict)
                ));
            }
            if self.changes() != changes {
                wrong.push(format!(
                    "{at}: the second run changes something again: {}",
                    second.sent.join(" | ")
                ));
            }
        }
        wrong
    }

    fn job(&self, n: usize, event: &Event) -> Result<Job, String> {
        let cmd = Cmd::parse(&event.cmd)?;
        let mut params = event.params.clone();
        for (name, number) in [
            ("user_id", event.user_id),
            ("abonent_id", event.abonent_id),
            ("usluga_id", event.usluga_id),
        ] {
            if let Some(number) = number {
                params
                    .entry(name.to_owned())
                    .or_insert_with(|| number.into());
            }
        }
        Ok(Job {
            event: EventId(i64::try_from(n).unwrap_or(0).saturating_add(1)),
            epoch: 1,
            try_count: 1,
            possible_duplicate: false,
            class: cmd.class(),
            cmd,
            user: event.user_id.map(UserId),
            abonent: event.abonent_id,
            usluga: event.usluga_id,
            params: Params(params),
            nas: Arc::clone(&self.nas),
            secret: Arc::clone(&self.secret),
            deadline: DEADLINE,
        })
    }

    async fn once(&self, job: &Job) -> Did {
        let (sink, lines) = std::sync::mpsc::channel();
        let mut transcript = Transcript::new(
            job.secrets(),
            Box::new(move |some| {
                // Read below, as long as this lives.
                let _ = sink.send(some);
            }),
        );
        let report = self.execute.run(job, &mut transcript).await;
        let mut all = Vec::new();
        let rest = transcript.into_rest();
        while let Ok(some) = lines.try_recv() {
            all.extend(some);
        }
        all.extend(rest);
        let sent = all.into_iter().filter(|l| l.kind == LineKind::Command);
        Did {
            verdict: report.verdict,
            answer: report.answer.unwrap_or_default(),
            sent: sent.map(|line| line.text).collect(),
        }
    }

    /// What a second run must not change.
    fn changes(&self) -> ([u64; 3], Vec<String>) {
        let counts = [
            self.router.seen().changes,
            self.hook.seen().changes,
            self.radius.seen().changes,
        ];
        (counts, self.telnet.config())
    }

    /// What the SSH server was asked to run so far: command lines, each with its batch below it.
    fn commands(&self) -> Vec<String> {
        let journal = std::fs::read_to_string(&self.journal).unwrap_or_default();
        let records = journal.lines().filter_map(|line| {
            let record: Value = serde_json::from_str(line).ok()?;
            let text = |key: &str| record.get(key).and_then(Value::as_str).map(str::to_owned);
            let (line, batch) = (text("line")?, text("stdin")?);
            Some(if batch.is_empty() {
                line
            } else {
                format!("{line}\n{}", batch.trim_end())
            })
        });
        records.collect()
    }

    fn judge(
        &self,
        event: &Event,
        did: &Did,
        commands: &[String],
        complain: &mut dyn FnMut(String),
    ) {
        if ends(&did.verdict) != Some(event.ends) {
            complain(format!("ends otherwise: {}", shown(&did.verdict)));
        }
        if let Some(wanted) = &event.sends {
            for n in 0..wanted.len().max(did.sent.len()) {
                let (want, sent) = (wanted.get(n), did.sent.get(n));
                if want != sent {
                    let or =
                        |line: Option<&String>| line.map_or("nothing", String::as_str).to_owned();
                    complain(format!("sends {}, not {}", or(sent), or(want)));
                    break;
                }
            }
        }
        if let Some(part) = &event.answer
            && !self.rendered_only
            && !did.answer.contains(part)
        {
            complain(format!("answers {:?}, without {part:?}", did.answer));
        }
        if !self.rendered_only {
            for (place, wanted) in &event.left {
                if let Some(why) = self.differs(place, wanted, commands) {
                    complain(format!("{place}: {why}"));
                }
            }
        }
    }

    /// What stands at one place of the device, if it is not what was wanted.
    fn differs(&self, place: &str, wanted: &Value, commands: &[String]) -> Option<String> {
        if place == CONFIG || place == COMMANDS {
            let found = if place == CONFIG {
                Value::from(self.telnet.config())
            } else {
                Value::from(commands)
            };
            return (found != *wanted).then(|| format!("are {found}"));
        }
        if place == SESSIONS {
            let mut state = self.radius.dump();
            let found = state.get_mut(SESSIONS).map(Value::take);
            let found = found.unwrap_or_default();
            return (found != *wanted).then(|| format!("are {found}"));
        }
        let Value::Array(wanted) = wanted else {
            let documents = self.hook.documents();
            let found = documents.get(place).cloned().unwrap_or(Value::Null);
            return (found != *wanted).then(|| format!("holds {found}"));
        };
        let rows = self.router.rows(place);
        let has = |want: &Value| {
            let want = want.as_object();
            rows.iter().any(|row| {
                want.is_some_and(|want| {
                    want.iter()
                        .all(|(k, v)| row.get(k).map(String::as_str) == v.as_str())
                })
            })
        };
        if rows.len() != wanted.len() {
            return Some(format!("has {} rows, not {}", rows.len(), wanted.len()));
        }
        let missing = wanted.iter().find(|want| !has(want))?;
        Some(format!("has no row with {missing}"))
    }
}

/// The word for an end; none = something that no example expects.
fn ends(verdict: &Verdict) -> Option<Ends> {
    Some(match verdict {
        Verdict::Done | Verdict::Observed | Verdict::Exit(0) => Ends::Done,
        Verdict::NotImplemented => Ends::NotImplemented,
        Verdict::Exit(143 | 254) => Ends::Later,
        Verdict::Exit(_) => Ends::Dead,
        Verdict::Failed(failure) => match failure.class {
            FailureClass::Permanent => Ends::Dead,
            FailureClass::Refused => Ends::Later,
            FailureClass::Transport | FailureClass::Unknown => return None,
        },
    })
}

fn shown(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Done | Verdict::Observed => "done".to_owned(),
        Verdict::NotImplemented => "not_implemented".to_owned(),
        Verdict::Exit(code) => format!("exit code {code}"),
        Verdict::Failed(failure) => failure.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_read_strictly() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        for (text, fine) in [
            (r#"{"events": [{"cmd": "user_add", "user_id": 1}]}"#, true),
            (r#"{"events": [{"cmd": "user_add", "send": []}]}"#, false),
            (r#"{"event": []}"#, false),
            ("[", false),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read(&file).is_ok(), fine, "{text}");
        }
        assert!(examples(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn ends_have_words() {
        use crate::attempt::Failure;
        for (verdict, word) in [
            (Verdict::Done, Some(Ends::Done)),
            (Verdict::Exit(254), Some(Ends::Later)),
            (Verdict::Exit(3), Some(Ends::Dead)),
            (Verdict::Failed(Failure::permanent("x")), Some(Ends::Dead)),
            (Verdict::Failed(Failure::transport("x")), None),
        ] {
            assert_eq!(ends(&verdict), word);
        }
    }
}
