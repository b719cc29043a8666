//! `scheme new NAME`: a commented scheme to begin with, or a copy of another one, in the
//! operator's own directory, with an example that `scheme test` runs.

use std::io;
use std::path::{Component, Path, PathBuf};

use clap::{Args, ValueEnum};

use super::Console;
use super::exit::{DONE, FAILED, Failed, Outcome, REFUSED, USAGE, remark, say};
use super::scheme::directory;
use super::scheme_test::EXAMPLES;
use crate::config::Config;

/// Files that a copy takes along; a scheme has a handful.
const FILES_MAX: usize = 2_000;
/// Folders below a scheme's directory.
const DEPTH_MAX: usize = 8;

/// Which kind of scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// scheme.toml for a MikroTik
    Mikrotik,
    /// scheme.toml for a NAS that takes RADIUS CoA
    Radius,
    /// scheme.toml for commands over SSH
    Ssh,
    /// scheme.toml for a device's command line over telnet
    Telnet,
    /// scheme.toml for an HTTP device
    Http,
    /// bin/session: bash
    Session,
}

/// What to make.
#[derive(Debug, Args)]
pub struct New {
    /// Name of the directory below oss/local
    name: String,
    /// What to begin with
    #[arg(long, value_enum, default_value = "mikrotik")]
    kind: Kind,
    /// Copy this scheme instead
    #[arg(long, value_name = "SCHEME", conflicts_with = "kind")]
    from: Option<String>,
}

/// Makes it and says where it is.
pub fn run(console: &Console, config: &Config, args: &New) -> Outcome {
    let name = Path::new(&args.name);
    let plain = matches!(
        name.components().collect::<Vec<_>>().as_slice(),
        [Component::Normal(_)]
    );
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !plain || !args.name.chars().all(good) || args.name.starts_with(['.', '-']) {
        return Err(Failed::new(
            USAGE,
            format!(
                "{:?} is not a name: letters, digits, '.', '_' and '-'",
                args.name
            ),
        ));
    }
    let dir = config.paths.oss.join("local").join(name);
    if dir.exists() {
        return Err(Failed::new(
            REFUSED,
            format!(
                "{} is there already\nhint: choose another name; nothing is overwritten",
                dir.display()
            ),
        ));
    }
    let failed = |e: io::Error| {
        Failed::new(
            FAILED,
            format!(
                "{} cannot be made: {e}\nhint: paths.oss must be writable for you",
                dir.display()
            ),
        )
    };
    if console.dry_run {
        match &args.from {
            Some(from) => {
                let from = directory(&config.paths, from)?;
                remark(format!("dry run: a copy of {}", from.display()));
                say(dir.display().to_string());
            }
            None => {
                let paths = files(args.kind).into_iter().map(|(file, _)| dir.join(file));
                paths.for_each(|path| say(path.display().to_string()));
                remark("dry run: nothing was made");
            }
        }
        return Ok(DONE);
    }
    match &args.from {
        Some(from) => {
            let from = directory(&config.paths, from)?;
            let mut left = FILES_MAX;
            copy(&from, &dir, 0, &mut left).map_err(failed)?;
        }
        None => {
            for (file, text) in files(args.kind) {
                put(&dir.join(file), text).map_err(failed)?;
            }
        }
    }
    say(dir.display().to_string());
    remark(format!(
        "next: edit it; scheme lint {0}; scheme test {0}; then nas.oss_path = '{0}', first with nas.mode = 'observe'",
        args.name
    ));
    Ok(DONE)
}

fn put(path: &PathBuf, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, text)
}

fn copy(from: &Path, to: &Path, depth: usize, left: &mut usize) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let to = to.join(entry.file_name());
        if kind.is_dir() && depth < DEPTH_MAX {
            copy(&entry.path(), &to, depth + 1, left)?;
        } else if kind.is_file() {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| io::Error::other("more files than a scheme has"))?;
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn files(kind: Kind) -> Vec<(String, &'static str)> {
    let example = format!("{EXAMPLES}/redirect.json");
    match kind {
        Kind::Mikrotik => vec![
            ("scheme.toml".to_owned(), MIKROTIK),
            (example, MIKROTIK_EXAMPLE),
        ],
        Kind::Radius => vec![
            ("scheme.toml".to_owned(), RADIUS),
            (example, RADIUS_EXAMPLE),
        ],
        Kind::Ssh => vec![("scheme.toml".to_owned(), SSH), (example, SSH_EXAMPLE)],
        Kind::Telnet => vec![
            ("scheme.toml".to_owned(), TELNET),
            (example, TELNET_EXAMPLE),
        ],
        Kind::Http => vec![("scheme.toml".to_owned(), HTTP), (example, HTTP_EXAMPLE)],
        Kind::Session => vec![
            ("bin/session".to_owned(), SESSION),
            (example, MIKROTIK_EXAMPLE),
        ],
    }
}

const MIKROTIK: &str = r#"# Steps run in the order of the file; each must be idempotent, for an event may come twice.
# docs/schemes.md explains every key; scheme vars shows the variables.

driver = "mikrotik"
description = "what it is for, in one line"

# Added to every row that is created, and required before a row is changed or removed.
own = { comment = "{{ prefix }}_{{ user_id }}" }

# Templates over the variables of the event; nas.vars overrides them for one NAS.
[vars]
prefix = "my"

# The "no money" page: the firewall must redirect who is in this list.
[[on.user_redirect]]
each = "a in addresses"                 # all addresses of the account, IPv4 and IPv6
ensure = "{{ a|fw }}"                   # the address list of its family
where = { list = "{{ prefix }}_negbal", address = "{{ a }}" }

# Found by our mark, not by the address, which may belong to somebody else by now.
[[on.user_redirect_cancel]]
each = "menu in addresses|map('fw')|unique"
absent = "{{ menu }}"
where = { list = "{{ prefix }}_negbal", comment = "{{ prefix }}_{{ user_id }}" }

# Speed: kbit/s in the variables; in = upload, out = download.
#[[on.user_rate_set]]
#ensure = "/queue/simple"
#where = { name = "{{ prefix }}_{{ user_id }}" }
#set = { target = "{{ nets|join(',') }}", max-limit = "{{ ceil_in|bps }}/{{ ceil_out|bps }}" }

# Answers of an operator's question.
[[on.user_info]]
each = "a in addresses"
read = "{{ a|fw }}"
where = { address = "{{ a }}" }
only = ["list", "address"]
save = "lists"
[[on.user_info]]
answer = "{% for found in lists %}{% for row in found.rows %}list {{ row.list }}: {{ row.address }}\n{% endfor %}{% endfor %}"
"#;

const MIKROTIK_EXAMPLE: &str = r#"{
  "about": "a subscriber has not paid, then pays",
  "events": [
    {"cmd": "user_redirect", "user_id": 1424,
     "params": {"ip": "10.88.0.15", "addresses": ["10.88.0.15"]},
     "left": {"/ip/firewall/address-list": [{"list": "my_negbal", "address": "10.88.0.15"}]}},
    {"cmd": "user_redirect_cancel", "user_id": 1424,
     "params": {"ip": "10.88.0.15", "addresses": ["10.88.0.15"]},
     "left": {"/ip/firewall/address-list": []}}
  ]
}
"#;

const RADIUS: &str = r##"# CoA and Disconnect requests; each must be idempotent, for an event may come twice.
# docs/schemes.md, "RADIUS", explains every key; scheme vars shows the variables. Attributes that
# no dictionary has: dictionaries/*.txt beside this file.

driver = "radius"
description = "what it is for, in one line"
# A session id is old after each login: read again at the attempt.
fresh = ["acct_session_id", "ip"]

# Which session. Empty values are left out; if nothing is left, the event is dead.
[vars]
sid = { "Acct-Session-Id" = "{{ acct_session_id }}", "User-Name" = "{{ '' if acct_session_id else login }}" }
list_redirect = "negbal"
list_open = "open"

# Offline (503) is fine: the answer of RADIUS at the next login says the same.
[[on.user_redirect]]
coa = { "*" = "sid", "Filter-Id" = "{{ list_redirect }}" }
ok_on = [503]

[[on.user_redirect_cancel]]
coa = { "*" = "sid", "Filter-Id" = "{{ list_open }}" }
ok_on = [503]

[[on.user_disconnect]]
disconnect = { "*" = "sid" }
"##;

const RADIUS_EXAMPLE: &str = r#"{
  "about": "a subscriber has not paid, then pays",
  "state": {"sessions": [{"Acct-Session-Id": "81a00001", "User-Name": "ivanov"}]},
  "events": [
    {"cmd": "user_redirect", "user_id": 1424,
     "params": {"login": "ivanov", "acct_session_id": "81a00001"},
     "sends": ["send_radius_cmd --nas 1 coa Acct-Session-Id=81a00001 Filter-Id=negbal"],
     "left": {"sessions": [{"Acct-Session-Id": "81a00001", "User-Name": "ivanov", "Filter-Id": "negbal"}]}},
    {"cmd": "user_redirect_cancel", "user_id": 1424,
     "params": {"login": "ivanov", "acct_session_id": "81a00001"},
     "left": {"sessions": [{"Acct-Session-Id": "81a00001", "User-Name": "ivanov", "Filter-Id": "open"}]}}
  ]
}
"#;

const SSH: &str = r##"# Commands over SSH, each in a session of its own on the kept connection; each must be
# idempotent, for an event may come twice. docs/schemes.md, "Commands over SSH", explains every
# key; scheme vars shows the variables.

driver = "ssh"
description = "what it is for, in one line"

[vars]
table = "my"

# One batch is one transaction of nft: all addresses of the account, IPv4 and IPv6, at once.
[[on.user_redirect]]
exec = ["nft -f -"]
stdin = """
{% for a in addresses %}add element inet {{ table }} negbal{{ a|fam }} { {{ a }} }
{% endfor %}"""

# nft refuses to delete what is not there: added first, it always is.
[[on.user_redirect_cancel]]
exec = ["nft -f -"]
stdin = """
{% for a in addresses %}add element inet {{ table }} negbal{{ a|fam }} { {{ a }} }
delete element inet {{ table }} negbal{{ a|fam }} { {{ a }} }
{% endfor %}"""

# The exit status is the outcome, unless ok_on, retry_on or fail_on say otherwise.
#[[on.user_rate_set_cancel]]
#exec = ["tc class del dev lan0 classid 1:{{ user_id|hex }}"]
#ok_on = ["No such file or directory"]

# Answers of an operator's question.
[[on.user_info]]
each = "a in addresses"
exec = ["nft get element inet {{ table }} negbal{{ a|fam }} { {{ a }} }"]
save = "found"
fail = "continue"
[[on.user_info]]
answer = "{% for f in found %}{{ 'no money' if f.code == 0 else 'open' }}\n{% endfor %}"
"##;

const SSH_EXAMPLE: &str = r#"{
  "about": "a subscriber has not paid, then pays",
  "answers": [{"like": "^nft get element ", "status": 1, "stderr": "No such file or directory"}],
  "events": [
    {"cmd": "user_redirect", "user_id": 1424, "params": {"addresses": ["10.88.0.15"]},
     "left": {"commands": ["nft -f -\nadd element inet my negbal4 { 10.88.0.15 }"]}},
    {"cmd": "user_redirect_cancel", "user_id": 1424, "params": {"addresses": ["10.88.0.15"]}},
    {"cmd": "user_info", "user_id": 1424, "params": {"addresses": ["10.88.0.15"]}, "answer": "open"}
  ]
}
"#;

const TELNET: &str = r#"# Lines for a device's command line; each step must be idempotent, for an event may come twice.
# docs/schemes.md, "Lines over telnet", explains every key; scheme vars shows the variables.

driver = "telnet"
description = "what it is for, in one line"

# After the login; nas.vars overrides it for one NAS.
[vars]
setup = ["terminal length 0"]

# A mode that was entered is left again: the next event finds the prompt of the login.
[[on.user_drop]]
each = "a in addresses"
exec = ["configure terminal", "{{ 'ipv6' if a|fam == '6' else 'ip' }} route {{ a|net }} Null0", "end"]
abort = ["end"]
fail_on = ['(?m)^% ']

# It is not there: that is what was wanted.
[[on.user_accept]]
each = "a in addresses"
exec = ["configure terminal", "no {{ 'ipv6' if a|fam == '6' else 'ip' }} route {{ a|net }} Null0", "end"]
abort = ["end"]
ok_on = ['non-existent route', 'No matching route']
fail_on = ['(?m)^% ?']
"#;

const TELNET_EXAMPLE: &str = r#"{
  "about": "a subscriber is blocked and let in again",
  "events": [
    {"cmd": "user_drop", "user_id": 1424, "params": {"addresses": ["10.88.0.15", "2001:db8:15::/56"]},
     "left": {"config": ["ip route 10.88.0.15/32 Null0", "ipv6 route 2001:db8:15::/56 Null0"]}},
    {"cmd": "user_accept", "user_id": 1424, "params": {"addresses": ["10.88.0.15", "2001:db8:15::/56"]},
     "left": {"config": []}}
  ]
}
"#;

const HTTP: &str = r#"# One request per event to nas.http_url; docs/schemes.md explains every key.

driver = "http"
description = "what it is for, in one line"

# 2xx is done; 408, 425, 429 and 5xx are tried later; everything else is final.
[[on.user_redirect]]
request = { method = "PUT", path = "/subscribers/{{ user_id }}", json = { redirect = true, ip = "{{ ip }}" } }

[[on.user_redirect_cancel]]
request = { method = "DELETE", path = "/subscribers/{{ user_id }}" }
ok_on = [404]                           # it is not there: that is what was wanted

[[on.user_info]]
request = { method = "GET", path = "/subscribers/{{ user_id }}" }
ok_on = [404]
save = "now"
[[on.user_info]]
answer = "{{ now.text }}"
"#;

const HTTP_EXAMPLE: &str = r#"{
  "about": "a subscriber has not paid, then pays",
  "events": [
    {"cmd": "user_redirect", "user_id": 1424, "params": {"ip": "10.88.0.15"},
     "left": {"/subscribers/1424": {"redirect": true, "ip": "10.88.0.15"}}},
    {"cmd": "user_redirect_cancel", "user_id": 1424, "params": {"ip": "10.88.0.15"},
     "left": {"/subscribers/1424": null}}
  ]
}
"#;

const SESSION: &str = r#"#!/bin/bash
# One function per command; a command without a function is done, not_implemented.
# Variables are in the environment (scheme vars shows them). Exit codes: 0 done, 254 try again
# later, anything else as on_error says. Each function must be idempotent: events come twice.
#
# send_mikrotik_cmd and its sisters use the daemon's own sessions here: no login per command.

list=/ip/firewall/address-list

user_redirect() {
    # An entry that is there already is what was wanted.
    [ -n "$(send_mikrotik_cmd --nas "$nas_id" $list/print "?list=my_negbal" "?address=$ip" .proplist=.id)" ] && return 0
    send_mikrotik_cmd --nas "$nas_id" $list/add list=my_negbal "address=$ip" "comment=my_$user_id"
}

user_redirect_cancel() {
    send_mikrotik_cmd --nas "$nas_id" $list/remove list=my_negbal "comment=my_$user_id"
}

# stdout is the answer that the operator sees
user_info() {
    send_mikrotik_cmd --nas "$nas_id" $list/print "?address=$ip" .proplist=list
}
"#;
