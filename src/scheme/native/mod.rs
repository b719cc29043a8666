//! Native schemes: a directory with a `scheme.toml`, whose steps speak to the NAS through a
//! driver. Everything that can be known beforehand is compiled and checked at load (`load`,
//! `lint`); an attempt only renders values (`render`, `expression`, `names`, `filters`) and runs steps
//! (`walk`, `ros` for RouterOS, `radius`, `exec` over SSH, `lines` for the other kinds, `compare` for values).

pub mod beside;
mod compare;
mod differ;
mod exec;
mod exec_telnet;
mod expression;
mod file;
mod filters;
mod kinds;
mod lines;
mod lint;
mod load;
mod look;
mod names;
mod radius;
mod render;
mod ros;
mod saved;
mod step;
mod steps;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_frr;
#[cfg(test)]
mod tests_linux;
#[cfg(test)]
mod tests_load;
#[cfg(test)]
mod tests_simple;
#[cfg(test)]
mod tests_walk;
mod turn;
mod variables;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use crate::attempt::{Failure, Job, LineKind, Report, Transcript, Verdict};
use crate::driver::dialogue::Manners;
use crate::driver::knock;
use crate::driver::radius::dictionary::{self, Dictionary};
use crate::driver::sessions::Sessions;
use crate::event::{Class, Cmd, EventId, Params};
use crate::nas::{Mode, Nas};
use crate::scheme::{Execute, ExitPolicy, Identity, Knocking};

pub use differ::{Compared, Orphans};
pub use look::Difference;
pub use ros::is_session_menu;
pub use variables::{Variable, well_known};

pub(in crate::scheme) use saved::logged;

use render::Template;
use step::{DriverName, Pair, Step};
use walk::{Halt, Via, Walk};

/// Name of the file in a scheme's directory.
pub const FILE: &str = "scheme.toml";

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The scheme cannot be used.
    Error,
    /// It can be used, but is probably not what was meant.
    Warning,
}

impl Severity {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something in a scheme that an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The scheme file.
    pub file: PathBuf,
    /// Line, from 1; 0 = the file as a whole.
    pub line: usize,
    /// How bad.
    pub severity: Severity,
    /// What, in one line.
    pub text: String,
    /// What to do about it, in one line.
    pub hint: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.severity.as_str();
        let Self {
            line, text, hint, ..
        } = self;
        write!(f, "{}:{line}: {word}: {text}; {hint}", self.file.display())
    }
}

/// One of `[vars]`.
struct Var {
    name: Arc<str>,
    value: VarValue,
    uses: Vec<expression::Use>,
    line: usize,
}

enum VarValue {
    One(Template),
    Map(Vec<(String, Template)>),
    List(Vec<Template>),
}

/// A loaded scheme; immutable, shared by every NAS that uses it.
pub struct NativeScheme {
    description: String,
    driver: DriverName,
    /// `shell = "plain"`.
    plain: bool,
    /// Names of RADIUS attributes.
    dictionary: Arc<Dictionary>,
    vars: Vec<Var>,
    own: Vec<Pair>,
    own_uses: Vec<expression::Use>,
    fresh: Vec<String>,
    policy: ExitPolicy,
    on: BTreeMap<Cmd, Vec<Step>>,
    by_name: BTreeMap<Arc<str>, Cmd>,
    parts: BTreeMap<Arc<str>, (usize, Vec<Step>)>,
    identity: Identity,
    warnings: Vec<Finding>,
    /// A step or a variable uses `nas_version`.
    asks_version: bool,
}

impl fmt::Debug for NativeScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NativeScheme")
            .field("identity", &self.identity)
            .field("cmds", &self.on.keys())
            .finish_non_exhaustive()
    }
}

impl NativeScheme {
    /// Reads and checks `<dir>/scheme.toml`. Findings with at least one error: not usable;
    /// warnings of a usable scheme are in [`Self::warnings`].
    pub fn load(dir: &Path) -> Result<Self, Vec<Finding>> {
        let file = dir.join(FILE);
        let text = std::fs::read_to_string(&file).map_err(|e| {
            vec![Finding {
                file: file.clone(),
                line: 0,
                severity: Severity::Error,
                text: format!("cannot be read: {e}"),
                hint: "check that the file exists, is UTF-8 text and may be read".to_owned(),
            }]
        })?;
        let mut findings = Vec::new();
        let dictionary = Dictionary::with_folder(&dir.join(dictionary::FOLDER));
        let dictionary = dictionary.unwrap_or_else(|reason| {
            findings.push(Finding {
                file: dir.join(dictionary::FOLDER),
                line: 0,
                severity: Severity::Error,
                text: reason,
                hint: "docs/schemes.md, \"Dictionaries\", has the form".to_owned(),
            });
            Dictionary::shipped()
        });
        let scheme = load::scheme(dir, &file, &text, dictionary, &mut findings);
        if let Some(scheme) = &scheme {
            lint::check(scheme, &file, &mut findings);
        }
        findings.sort_by(|a, b| (a.line, a.severity, &a.text).cmp(&(b.line, b.severity, &b.text)));
        findings.dedup();
        match scheme {
            Some(mut scheme) if findings.iter().all(|f| f.severity != Severity::Error) => {
                let mut sum = Sha256::new();
                sum.update(text.as_bytes());
                // What its own dictionaries say goes over the wire as much as the file does.
                let folder = dir.join(dictionary::FOLDER);
                if folder.is_dir()
                    && let Ok(words) = super::resolve::hash(&folder)
                {
                    sum.update(words.as_bytes());
                }
                let digest = sum.finalize();
                let hex = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
                scheme.identity = Identity {
                    kind: "native",
                    oss_pathname: Some(dir.to_owned()),
                    script_name: None,
                    hash: hex,
                };
                scheme.warnings = findings;
                scheme.asks_version = scheme.uses_version();
                Ok(scheme)
            }
            _ => Err(findings),
        }
    }

    /// What was found that does not prevent its use.
    pub fn warnings(&self) -> &[Finding] {
        &self.warnings
    }

    /// `description` of the file.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// `driver` of the file.
    pub fn driver(&self) -> &'static str {
        self.driver.as_str()
    }

    /// Its lines are a dialogue in a terminal over SSH.
    pub fn is_terminal(&self) -> bool {
        self.driver == DriverName::Ssh && self.plain
    }

    /// How `nas` wants to be spoken to on its command line: `[vars]` under `nas.vars`.
    pub fn manners(&self, nas: &Nas) -> Result<Manners, String> {
        let job = Job {
            event: EventId(0),
            epoch: 0,
            try_count: 1,
            possible_duplicate: false,
            cmd: Cmd::parse("user_test")?,
            class: Class::Rest,
            user: None,
            abonent: None,
            usluga: None,
            params: Params::default(),
            nas: Arc::new(nas.clone()),
            secret: Arc::default(),
            deadline: std::time::Duration::ZERO,
        };
        let mut transcript = Transcript::discard();
        let walk = Walk::new(self, &job, &mut transcript, Via::Silent);
        Manners::of(|name| walk.setting(name))
    }

    /// PARAMS that are to be read again at the attempt.
    pub fn fresh(&self) -> &[String] {
        &self.fresh
    }

    /// The commands that it has.
    pub fn cmds(&self) -> impl Iterator<Item = &Cmd> {
        self.on.keys()
    }

    /// The commands that `job` would send, ready to be pasted, without sending any: reading
    /// finds nothing. `None` = the scheme has no such command.
    pub async fn render_dry(&self, job: &Job) -> Result<Option<Vec<String>>, Failure> {
        let Some(steps) = self.steps(&job.cmd) else {
            return Ok(None);
        };
        let mut transcript = Transcript::new(job.secrets(), Box::new(|_| {}));
        Walk::new(self, job, &mut transcript, Via::Silent)
            .run(steps)
            .await
            .map_err(Halt::into_failure)?;
        let lines = transcript.into_rest().into_iter();
        let commands = lines.filter(|l| l.kind == LineKind::Command);
        Ok(Some(commands.map(|l| l.text).collect()))
    }

    /// Every list of steps, commands first.
    fn lists(&self) -> impl Iterator<Item = &[Step]> {
        let on = self.on.values().map(Vec::as_slice);
        on.chain(self.parts.values().map(|(_, steps)| steps.as_slice()))
    }

    fn uses_version(&self) -> bool {
        let steps = self.lists().flatten().flat_map(|step| &step.uses);
        let vars = self.vars.iter().flat_map(|var| &var.uses);
        let mut uses = steps.chain(vars).chain(&self.own_uses);
        self.driver == DriverName::Mikrotik && uses.any(|used| *used.name == *names::NAS_VERSION)
    }

    fn steps(&self, cmd: &Cmd) -> Option<&[Step]> {
        self.on.get(cmd).map(Vec::as_slice)
    }

    /// The steps that `run = "name"` means: a part, or another command's.
    fn target(&self, name: &str) -> Option<&[Step]> {
        if let Some((_, steps)) = self.parts.get(name) {
            return Some(steps);
        }
        self.by_name.get(name).and_then(|cmd| self.steps(cmd))
    }
}

/// Runs the jobs of one native scheme.
pub struct NativeExecute {
    scheme: Arc<NativeScheme>,
    sessions: Arc<Sessions>,
}

impl NativeExecute {
    /// `sessions` are shared by all executors of the daemon.
    pub fn new(scheme: Arc<NativeScheme>, sessions: Arc<Sessions>) -> Self {
        Self { scheme, sessions }
    }

    /// The scheme itself.
    pub fn scheme(&self) -> &NativeScheme {
        &self.scheme
    }
}

#[async_trait]
impl Execute for NativeExecute {
    async fn run(&self, job: &Job, transcript: &mut Transcript) -> Report {
        let scheme = &*self.scheme;
        let observe = match job.nas.mode {
            Mode::Observe => true,
            Mode::Active | Mode::Off => false,
        };
        let via = if observe || scheme.driver == DriverName::Record {
            Via::Silent
        } else {
            Via::Sessions(&self.sessions)
        };
        let done = if observe {
            Verdict::Observed
        } else {
            Verdict::Done
        };
        run_via(scheme, job, transcript, via, done).await
    }

    fn fresh(&self) -> &[String] {
        &self.scheme.fresh
    }

    fn policy(&self) -> &ExitPolicy {
        &self.scheme.policy
    }

    fn identity(&self) -> &Identity {
        &self.scheme.identity
    }

    fn has(&self, cmd: &Cmd) -> bool {
        self.scheme.on.contains_key(cmd)
    }

    fn driver(&self) -> &'static str {
        self.scheme.driver()
    }

    fn knock(&self, nas: &Nas) -> Option<Knocking> {
        let door = knock::door(self.scheme.driver(), nas)?;
        Some(Box::pin(knock::until_open(door)))
    }

    fn room(&self, nas: &Nas) -> usize {
        let places = match self.scheme.driver {
            DriverName::Telnet => Sessions::telnet_places(nas),
            DriverName::Ssh => Sessions::ssh_places(nas, self.scheme.plain),
            DriverName::Http => Sessions::http_places(nas),
            DriverName::Mikrotik | DriverName::Radius | DriverName::Record => usize::MAX,
        };
        places.min(Sessions::paced_places(nas))
    }

    fn own_cmds(&self) -> BTreeSet<Cmd> {
        let own = self.scheme.on.keys().filter(|c| !c.in_catalogue());
        own.cloned().collect()
    }
}

async fn run_via(
    scheme: &NativeScheme,
    job: &Job,
    transcript: &mut Transcript,
    via: Via<'_>,
    done: Verdict,
) -> Report {
    let mut report = Report::of(Verdict::NotImplemented);
    report.scheme_hash.clone_from(&scheme.identity.hash);
    let Some(steps) = scheme.steps(&job.cmd) else {
        return report;
    };
    let mut walk = Walk::new(scheme, job, transcript, via);
    let ended = walk.run(steps).await;
    let (answer, new_session) = walk.end();
    report.verdict = match ended {
        Ok(()) => done,
        Err(halt) => {
            report.certain = matches!(halt, Halt::Dead(_));
            let mut failure = halt.into_failure();
            failure.text = transcript.redacted(failure.text);
            Verdict::Failed(failure)
        }
    };
    report.answer = answer.map(|text| transcript.redacted(text));
    report.new_session = new_session;
    report
}
