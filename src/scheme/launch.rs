//! What exactly is executed for an operator's script: which interpreter, which words, and a
//! cleaned copy where the file was saved with CRLF line ends or a byte order mark.
//!
//! The interpreter of a `#!` line is started by us and not by the kernel, so that neither a
//! missing `+x`, nor a `noexec` mount, nor `#/bin/bash` ends in a bare "Exec format error".

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

/// How a file is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Sourced; the function named by the cmd is called.
    Session,
    /// Executed with the cmd as its first argument.
    Script,
}

/// A file larger than this is a program, not a text; nobody writes such a session by hand.
const TEXT_MAX: u64 = 4 * 1024 * 1024;

/// Where bash is found; the first that exists is taken.
const BASH: [&str; 3] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"];

/// Lowest number of the descriptor on which a missing function is told; bash keeps its own
/// from 10 on and at 255, operators count from 3.
const ABSENT_FD: i32 = 100;

/// Sourced with no positional parameters, so that a dispatcher at the end of an operator's
/// file (`"$@"`) does not run the command a second time. The event's function runs in a
/// subshell if an after hook follows it: `exit` must end the function and not the hook. An
/// `exit` in the before hook is caught by the EXIT trap, which goes on with the event. `set -e`
/// of the operator holds inside the function only: our own lines must see its code. That the
/// function is not there is told on a descriptor of its own: the file may have moved stdout and
/// stderr elsewhere, and any exit code may be the operator's.
const SESSION: &str = r#". ./FILE; _ned_r=$?; if ! declare -F CMD >/dev/null; then builtin echo "$_ned_r" >&ABSENT; exit 127; fi; _ned_e=$-; set +e; _ned_event() { if declare -F user_event_after >/dev/null; then ( if [[ $_ned_e == *e* ]]; then set -e; fi; CMD ); _ned_r=$?; ( user_event_after "$_ned_r" ); exit "$_ned_r"; fi; if [[ $_ned_e == *e* ]]; then set -e; fi; CMD; exit; }; if declare -F user_event_before >/dev/null; then _ned_t=$(trap -p EXIT); trap _ned_event EXIT; user_event_before; eval "${_ned_t:-trap - EXIT}"; fi; _ned_event"#;

/// A command that is ready to be started in the scheme's directory.
#[derive(Debug)]
pub struct Launch {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// `argv[0]`.
    pub name: OsString,
    /// The other words; never a variable of the event.
    pub args: Vec<OsString>,
    /// What had to be put right, for the operator.
    pub note: Option<String>,
    /// The cleaned copy, open until the program runs; the program reads `/dev/fd/N`.
    pub copy: Option<OwnedFd>,
    /// Empty unless the session has no function of this name; then it holds the code with which
    /// the file was sourced.
    pub absent: Option<fs::File>,
}

/// Decides what to run for `file` (relative to the current directory). The error is a whole
/// sentence with what to do.
pub fn launch(kind: Kind, file: &Path, cmd: &str) -> Result<Launch, String> {
    let shown = file.display();
    let meta = fs::metadata(file).map_err(|e| {
        format!("script {shown} is missing: {e}; put it back or correct the NAS settings")
    })?;
    if !meta.is_file() {
        return Err(format!("script {shown} is not a file"));
    }
    if kind == Kind::Script && (meta.len() > TEXT_MAX || begins_as_program(file)) {
        return compiled(file, cmd, meta.permissions().mode());
    }
    let readable = readable(file)?;
    let absent = match kind {
        Kind::Session => Some(in_memory(b"")?),
        Kind::Script => None,
    };
    let (program, name, args) = match &absent {
        Some(absent) => session(file, &readable.path, absent, cmd)?,
        None => script(file, &readable, cmd)?,
    };
    Ok(Launch {
        program,
        name,
        args,
        note: readable.wrong.map(|wrong| {
            format!("note: {shown} has {wrong}; a cleaned copy is run, save the file without")
        }),
        copy: readable.copy,
        absent: absent.map(fs::File::from),
    })
}

/// A script's text, and the path from which a shell reads it as it should be.
#[derive(Debug)]
pub struct Readable {
    /// The file itself, or `/dev/fd/N` of the copy.
    pub path: PathBuf,
    /// What is wrong with the file, if a cleaned copy is read.
    pub wrong: Option<String>,
    /// The copy.
    pub copy: Option<OwnedFd>,
    text: Vec<u8>,
}

/// Reads `file` and cleans it in memory where that is needed.
pub fn readable(file: &Path) -> Result<Readable, String> {
    let shown = file.display();
    let cannot =
        |e| format!("script {shown} cannot be read: {e}; the daemon's user needs read permission");
    let mut text = Vec::new();
    let open = fs::File::open(file).map_err(cannot)?;
    open.take(TEXT_MAX + 1)
        .read_to_end(&mut text)
        .map_err(cannot)?;
    if text.len() as u64 > TEXT_MAX {
        return Err(format!("script {shown} is larger than {TEXT_MAX} bytes"));
    }
    Ok(
        match cleaned(&text).map_err(|reason| format!("script {shown} {reason}"))? {
            None => Readable {
                path: if file.is_absolute() {
                    file.to_owned()
                } else {
                    PathBuf::from("./").join(file)
                },
                wrong: None,
                copy: None,
                text,
            },
            Some((text, wrong)) => {
                let copy = in_memory(&text)?;
                Readable {
                    path: PathBuf::from(format!("/dev/fd/{}", copy.as_raw_fd())),
                    wrong: Some(wrong),
                    copy: Some(copy),
                    text,
                }
            }
        },
    )
}

/// The magic number of ELF (elf(5)).
fn begins_as_program(file: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(file)
        .and_then(|mut open| open.read_exact(&mut magic))
        .is_ok_and(|()| &magic == b"\x7fELF")
}

type Words = (PathBuf, OsString, Vec<OsString>);

fn session(file: &Path, read_from: &Path, absent: &OwnedFd, cmd: &str) -> Result<Words, String> {
    // out of the reach of an operator's `exec 3<>/dev/tcp/…`
    let absent = fcntl(absent, FcntlArg::F_DUPFD(ABSENT_FD))
        .map_err(|e| format!("no descriptor for the session: {e}"))?;
    // `cmd` and the path are safe words: the one by its form, the other is ours.
    let driver = SESSION
        .replace("./FILE", &read_from.display().to_string())
        .replace("ABSENT", &absent.to_string())
        .replace("CMD", cmd);
    let args = vec![
        "--norc".into(),
        "--noprofile".into(),
        "-c".into(),
        driver.into(),
        file.into(),
    ];
    Ok((bash()?, "bash".into(), args))
}

fn script(file: &Path, readable: &Readable, cmd: &str) -> Result<Words, String> {
    let (program, name, option) = match interpreter(&readable.text) {
        Some((path, option)) => {
            if !path.exists() {
                return Err(format!(
                    "script {}: its interpreter {} is not there; install it or correct the first line",
                    file.display(),
                    path.display()
                ));
            }
            (path.clone(), path.into_os_string(), option)
        }
        None => (bash()?, "bash".into(), None),
    };
    let shell = [
        Some(name.to_string_lossy()),
        option.as_deref().map(Into::into),
    ]
    .into_iter()
    .flatten()
    .any(|word| {
        let last = word.rsplit(['/', ' ']).next().unwrap_or_default();
        matches!(last, "sh" | "bash" | "dash" | "ksh" | "zsh")
    });
    let mut args: Vec<OsString> = option.map(Into::into).into_iter().collect();
    if readable.copy.is_some() && shell {
        // keeps `$0`, by which scripts find their neighbours
        args.push("-c".into());
        args.push(format!(". {}", readable.path.display()).into());
        args.push(PathBuf::from("./").join(file).into());
    } else {
        args.push(readable.path.clone().into());
    }
    args.push(cmd.into());
    Ok((program, name, args))
}

fn compiled(file: &Path, cmd: &str, mode: u32) -> Result<Launch, String> {
    if mode & 0o111 == 0 {
        return Err(format!(
            "program {0} is not executable; run: chmod +x {0}",
            file.display()
        ));
    }
    let path = PathBuf::from("./").join(file);
    Ok(Launch {
        program: path.clone(),
        name: path.into(),
        args: vec![cmd.into()],
        note: None,
        copy: None,
        absent: None,
    })
}

/// The bash of this machine.
pub fn bash() -> Result<PathBuf, String> {
    BASH.iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or_else(|| format!("bash is not installed (looked for {})", BASH.join(", ")))
}

/// Path and option of a `#!` line, as the kernel reads it (execve(2)): one option at most.
fn interpreter(text: &[u8]) -> Option<(PathBuf, Option<String>)> {
    let line = text.split(|b| *b == b'\n').next()?.strip_prefix(b"#!")?;
    let line = String::from_utf8_lossy(line);
    let (path, option) = line
        .trim()
        .split_once([' ', '\t'])
        .unwrap_or((line.trim(), ""));
    if path.is_empty() {
        return None;
    }
    let option = Some(option.trim().to_owned()).filter(|o| !o.is_empty());
    Some((PathBuf::from(path), option))
}

/// The text without byte order mark and carriage returns, and what was wrong; none if it can
/// run as it is. A file counts as CRLF if more than half of its lines end so: a single one may
/// be meant (a here-document for a device).
fn cleaned(text: &[u8]) -> Result<Option<(Vec<u8>, String)>, String> {
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return Err("is UTF-16; save it as UTF-8 with LF line ends".to_owned());
    }
    if text.contains(&0) {
        return Err("holds NUL bytes: it is neither a script nor a program of Linux".to_owned());
    }
    let body = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let lines = body.iter().filter(|b| **b == b'\n').count();
    let crlf = body.windows(2).filter(|pair| pair == b"\r\n").count();
    let mut wrong = Vec::new();
    if body.len() < text.len() {
        wrong.push("a byte order mark");
    }
    let mut clean = body.to_vec();
    if crlf * 2 > lines {
        wrong.push("CRLF line ends");
        clean = Vec::with_capacity(body.len());
        let mut rest = body.iter().peekable();
        while let Some(byte) = rest.next() {
            let ends = *byte == b'\r' && matches!(rest.peek(), None | Some(b'\n'));
            if !ends {
                clean.push(*byte);
            }
        }
    }
    Ok((!wrong.is_empty()).then(|| (clean, wrong.join(" and "))))
}

/// A file without a name, inherited by the program that reads it.
fn in_memory(text: &[u8]) -> Result<OwnedFd, String> {
    let cannot = |e: std::io::Error| format!("no memory file for the cleaned copy: {e}");
    let fd = memfd_create(c"script", MFdFlags::empty()).map_err(|e| cannot(e.into()))?;
    let mut file = fs::File::from(fd);
    file.write_all(text).map_err(cannot)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        let of = |text: &str| interpreter(text.as_bytes());
        assert_eq!(of("#!/bin/bash\n"), Some(("/bin/bash".into(), None)));
        assert_eq!(
            of("#! /usr/bin/env  python3 -u \nx"),
            Some(("/usr/bin/env".into(), Some("python3 -u".into())))
        );
        assert_eq!(of("#/bin/bash\n"), None);
        assert_eq!(of("#!\n"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn only_what_is_wrong_is_cleaned() {
        assert_eq!(cleaned(b"a\nb\r\nc\n").unwrap(), None);
        let (text, what) = cleaned(b"\xef\xbb\xbfa\r\nb\r\nx\ry\r").unwrap().unwrap();
        assert_eq!(text, b"a\nb\nx\ry");
        assert_eq!(what, "a byte order mark and CRLF line ends");
        assert!(cleaned(b"\xff\xfea\0").unwrap_err().contains("UTF-16"));
        assert!(cleaned(b"MZ\0\0").unwrap_err().contains("NUL"));
    }

    #[test]
    fn the_driver_holds_no_word_that_a_process_list_is_searched_for() {
        assert!(!SESSION.contains("nas_event_daemon"));
        assert!(!SESSION.contains('\n'));
    }
}
