//! `scheme.toml` beside `bin/session`: what the exit codes of its functions mean, and whether
//! they may run in observe mode. What belongs to a native scheme has no meaning here, for
//! `bin/session` has the commands; it is left alone, so that an operator may try a session
//! scheme in the directory of a native one. A key that neither knows is an error.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::file::{Keys, Notes, wrong};
use super::load::policy;
use super::{FILE, Finding, Severity};
use crate::scheme::ExitPolicy;

const KEYS: &str = "exit, on_error, observe; bin/session holds the commands";
/// What only a native scheme has.
const NATIVE: [&str; 8] = [
    "driver",
    "description",
    "vars",
    "own",
    "shell",
    "fresh",
    "on",
    "part",
];

/// What a session scheme says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beside {
    /// What exit codes mean.
    pub policy: ExitPolicy,
    /// Functions run in observe mode, too: they promise to send by our helpers only, which then
    /// send nothing.
    pub observe: bool,
}

impl Beside {
    /// Reads the file of a scheme's directory; without one everything is as usual.
    pub fn load(dir: &Path) -> Result<Self, Vec<Finding>> {
        let file = dir.join(FILE);
        match std::fs::read_to_string(&file) {
            Ok(source) => parse(&file, &source),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(vec![Finding {
                file,
                line: 0,
                severity: Severity::Error,
                text: format!("cannot be read: {e}"),
                hint: "check that the file is UTF-8 text and may be read".to_owned(),
            }]),
        }
    }
}

fn parse(file: &Path, source: &str) -> Result<Beside, Vec<Finding>> {
    let mut findings = Vec::new();
    let mut notes = Notes::new(file, source, &mut findings);
    let mut beside = Beside::default();
    match DeTable::parse(source) {
        Ok(tree) => {
            let mut keys = Keys::new(tree.get_ref(), "a file beside bin/session", &notes);
            beside.policy = policy(&mut keys, &mut notes);
            if let Some((line, item)) = keys.take("observe") {
                match item.get_ref() {
                    DeValue::Boolean(observe) => beside.observe = *observe,
                    DeValue::String(_)
                    | DeValue::Integer(_)
                    | DeValue::Float(_)
                    | DeValue::Datetime(_)
                    | DeValue::Array(_)
                    | DeValue::Table(_) => {
                        wrong(item, line, "observe", "true or false", &mut notes)
                    }
                }
            }
            for native in NATIVE {
                keys.take(native);
            }
            keys.end(KEYS, &mut notes);
        }
        Err(e) => {
            let line = e.span().map_or(1, |span| notes.line(&span));
            notes.error(line, e.message(), "the file must be TOML");
        }
    }
    if findings.is_empty() {
        Ok(beside)
    } else {
        Err(findings)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::nas::OnError;

    #[test]
    fn codes_and_observe_are_read_and_the_rest_is_named_with_its_line() {
        let read = |source: &str| parse(Path::new("/s/scheme.toml"), source);
        assert_eq!(read(""), Ok(Beside::default()));
        let all =
            "exit = { done = [1], defer = [75, 254] }\non_error = \"retry\"\nobserve = true\n";
        let policy = ExitPolicy {
            done: BTreeSet::from([0, 1]),
            defer: BTreeSet::from([75, 254]),
            on_error: Some(OnError::Retry),
        };
        let observe = true;
        assert_eq!(read(all), Ok(Beside { policy, observe }));
        let native =
            "driver = \"mikrotik\"\non_error = \"retry\"\n[[on.user_add]]\ncall = \"/x\"\n";
        assert_eq!(
            read(native).map(|b| b.policy.on_error),
            Ok(Some(OnError::Retry))
        );
        for (source, line, said) in [
            ("\ndrive = \"mikrotik\"", 2, "unknown key `drive`"),
            ("\n\nobserve = 1", 3, "`observe`"),
            ("exit = { don = [1] }", 1, "unknown key `don` in exit"),
            ("on_error = \"never\"", 1, "never"),
            ("exit = {", 1, ""),
        ] {
            let findings = read(source).unwrap_err();
            assert_eq!(findings[0].line, line, "{findings:?}");
            assert!(findings[0].to_string().contains(said), "{findings:?}");
        }
    }
}
