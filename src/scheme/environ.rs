//! The environment of an operator's script: the event's PARAMS and the reserved names, and
//! nothing of the daemon's own. Values are data: they reach the script by `execve` alone.

use std::collections::BTreeMap;

use crate::attempt::{Failure, Job};
use crate::event::is_name;
use crate::shell::quote;

/// Where a script finds its programs.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Home directory; the daemon's own may hold keys.
pub const HOME: &str = "/var/lib/nas_event_daemon";
/// UTF-8 without a country's rules for numbers and sorting.
pub const LANG: &str = "C.UTF-8";

/// Longest `name=value` with its NUL, bytes: `MAX_ARG_STRLEN` of Linux, execve(2).
const ENTRY_MAX: usize = 128 * 1024;
/// The whole environment, bytes: `execve` allows a quarter of the stack limit (2 MiB of the
/// usual 8), pointers and arguments included.
const TOTAL_MAX: usize = 1_500 * 1024;

/// Names that PARAMS never set: a billing cannot overlay what a scheme relies on.
pub const RESERVED: [&str; 13] = [
    "cmd",
    "event_id",
    "event_type",
    "try_count",
    "possible_duplicate",
    "nas_id",
    "nas_ip",
    "nas_name",
    "oss_path",
    "telnet_ip",
    "telnet_login",
    "telnet_password",
    "coa_psw",
];

/// How a secret is written in a logged command: the operator fills the variable in.
const SHOWN: [(&str, &str); 2] = [
    ("telnet_password", "\"$NAS_PASSWORD\""),
    ("coa_psw", "\"$NAS_COA_SECRET\""),
];

/// Names that only a credential or a proxy setting would have; they are refused from PARAMS,
/// because values of PARAMS are logged and handed to every program that a script starts.
fn is_suspect(name: &str) -> bool {
    name.ends_with("_proxy")
        || ["psw", "password", "secret"]
            .iter()
            .any(|w| name.contains(w))
}

/// The whole environment of the script of `job`; `oss_path` is the scheme's directory, empty
/// for a bare `script_name`; `token` the attempt's. The failure names the variable.
pub fn environ(
    job: &Job,
    oss_path: &str,
    token: &str,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut vars = BTreeMap::new();
    for name in job.params.0.keys() {
        if RESERVED.contains(&name.as_str()) {
            continue;
        }
        if !is_name(name) {
            let shown: String = name.chars().take(80).collect();
            return Err(refused(&format!(
                "the name {shown:?} in PARAMS does not match ^[a-z][a-z0-9_]{{0,63}}$"
            )));
        }
        if is_suspect(name) {
            return Err(refused(&format!(
                "PARAMS may not set {name}: credentials and proxies belong to the NAS settings"
            )));
        }
        vars.insert(name.clone(), job.params.text(name));
    }
    for (name, number) in [
        ("user_id", job.user.map(|user| user.0)),
        ("abonent_id", job.abonent),
        ("usluga_id", job.usluga),
    ] {
        if let Some(number) = number {
            vars.entry(name.to_owned())
                .or_insert_with(|| number.to_string());
        }
    }
    let reserved = [
        ("cmd", job.cmd.to_string()),
        ("event_id", job.event.to_string()),
        ("event_type", job.cmd.to_string()),
        ("try_count", job.try_count.to_string()),
        (
            "possible_duplicate",
            u8::from(job.possible_duplicate).to_string(),
        ),
        ("nas_id", job.nas.id.to_string()),
        ("nas_ip", job.nas.ip.clone()),
        ("nas_name", job.nas.name.clone()),
        ("oss_path", oss_path.to_owned()),
        ("telnet_ip", job.nas.ip.clone()),
        ("telnet_login", job.secret.login.clone()),
        ("telnet_password", job.secret.password.clone()),
        ("coa_psw", job.secret.coa_secret.clone()),
        ("NED_ATTEMPT", token.to_owned()),
        ("PATH", PATH.to_owned()),
        ("HOME", HOME.to_owned()),
        ("LANG", LANG.to_owned()),
    ];
    vars.extend(reserved.map(|(name, value)| (name.to_owned(), value)));
    check_sizes(&vars)?;
    Ok(vars)
}

fn check_sizes(vars: &BTreeMap<String, String>) -> Result<(), Failure> {
    let mut total = 0;
    for (name, value) in vars {
        let entry = name.len() + value.len() + 2;
        total += entry;
        if value.contains('\0') {
            return Err(refused(&format!(
                "unsafe value: {name} holds a NUL byte, which no program's environment can carry"
            )));
        }
        if entry > ENTRY_MAX {
            return Err(refused(&format!(
                "unsafe value: {name} has {} bytes, a variable carries at most {ENTRY_MAX}",
                value.len()
            )));
        }
    }
    if total > TOTAL_MAX {
        let largest = vars.iter().max_by_key(|(_, value)| value.len());
        return Err(refused(&format!(
            "unsafe value: the variables have {total} bytes together, a program's environment \
             carries {TOTAL_MAX}; the largest is {}",
            largest.map_or("", |(name, _)| name.as_str())
        )));
    }
    Ok(())
}

fn refused(text: &str) -> Failure {
    Failure::permanent(format!("{text}; correct the account's data"))
}

/// `name=value …` for a logged command, every value one shell word, secrets as variables. What
/// only this attempt has (its token) or what a login shell has anyway is left out.
pub fn assignments(vars: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, value) in vars {
        let hidden = SHOWN.iter().find(|(secret, _)| secret == name);
        match hidden {
            Some(_) if value.is_empty() => {}
            Some((_, shown)) => text.push_str(&format!("{name}={shown} ")),
            None if matches!(&**name, "PATH" | "HOME" | "LANG" | "NED_ATTEMPT") => {}
            None => text.push_str(&format!("{name}={} ", quote(value))),
        }
    }
    text.truncate(text.trim_end().len());
    text
}
