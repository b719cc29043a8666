//! Tests of loading: the yardstick schemes load, every mistake is found with its line.

use super::tests::{at, parse, silent};
use super::*;

#[test]
fn yardstick_and_shipped_schemes_load_without_surprise() {
    for (path, wanted) in [
        ("oss/core/Mikrotik-Simple", &[][..]),
        ("oss/core/Record", &[]),
        ("tests/schemes/Mikrotik-Simple-minimal", &[]),
        ("tests/schemes/Mikrotik-Simple", &["queue_before"]),
        ("tests/schemes/Cisco-ISG", &["svc_redirect"]),
        ("tests/schemes/Linux-SSH", &["dev_down"]),
    ] {
        let scheme = at(path);
        for finding in scheme.warnings() {
            assert!(
                wanted
                    .iter()
                    .any(|w| finding.text.contains(&format!("nas.{w}"))),
                "{finding}"
            );
        }
        assert_eq!(scheme.warnings().is_empty(), wanted.is_empty(), "{path}");
    }
}

#[test]
fn shipped_schemes_know_the_catalogue() {
    let record = at("oss/core/Record");
    let simple = at("oss/core/Mikrotik-Simple");
    for (name, _) in crate::event::CATALOGUE {
        let cmd = Cmd::parse(name).unwrap();
        assert!(record.steps(&cmd).is_some(), "{name}");
        let left_out = name.contains("negbal")
            || name.starts_with("usluga_act")
            || name.starts_with("usluga_deact")
            || *name == "users_from_nas";
        assert_eq!(simple.steps(&cmd).is_none(), left_out, "{name}");
    }
    assert!(silent(record).own_cmds().is_empty());
}

#[test]
fn every_mistake_is_found_with_its_line() {
    let text = r#"driver = "mikrotik"
colour = "red"
shell = "tcsh"
[vars]
a = "{{ b }}"
b = "x"
cmd = "y"
[[on.user_add]]
ensure = "/queue/simple"
where = { name = "crb_{{ user_id|nosuch }}" }
sett = { target = "x" }
[[on.user_add]]
absent = "/queue/simple"
[[on.user_add]]
ensure = "/queue/simple"
absent = "/queue/simple"
where = { name = "x" }
[[on.user_add]]
when = "user_id =="
read = "/ppp/active"
[[on.user_add]]
read = "/ppp/active"
ok_on = ["(unclosed"]
[[on.user_add]]
assert = "later.ok"
[[on.user_add]]
read = "/ppp/active"
save = "later"
[[on.user_add]]
run = "nowhere"
[[on.user_add]]
each = "a of b"
read = "/ppp/active"
[[on.user_add]]
exec = ["reboot"]
[[on.user_add]]
pause = "6s"
read = "/ppp/active"
[[on.user_add]]
absent = "/ppp/active"
where = { name = "x" }
match = { name = "[" }
at_most = 0
[[on.user_add]]
read = "/ppp/active where"
[[on.user_add]]
nothing = 1
[[on.user_info]]
absent = "/ppp/active"
where = { name = "x" }
[[on.User]]
answer = "x"
[on.user_del]
answer = "x"
[[part.one]]
run = "two"
[[part.two]]
run = "one"
[[on.user_edit]]
run = "one"
[[on.user_edit]]
disconnect = { Reply-Message = "x" }
[[on.user_edit]]
answer = "{{ nas.id }"
[[on.user_edit]]
when = "nobody.ok"
read = "/ppp/active"
"#;
    let findings = parse(text).unwrap_err();
    for (line, part) in [
        (2, "unknown key `colour`"),
        (3, "unknown shell"),
        (7, "[vars] cannot define `cmd`"),
        (5, "uses `b` before it is defined"),
        (10, "unknown filter `nosuch`"),
        (11, "unknown key `sett`"),
        (12, "`absent` without `where`"),
        (14, "several kinds: ensure, absent"),
        (19, "is not an expression"),
        (23, "is not a regular expression"),
        (24, "used before a step saves it"),
        (29, "no part and no command \"nowhere\""),
        (32, "has no ` in `"),
        (34, "`exec` is impossible with driver mikrotik"),
        (37, "at most 5s"),
        (42, "`match` of `name`"),
        (43, "`at_most` is of type integer"),
        (45, "is not a path of RouterOS"),
        (46, "the step has no kind"),
        (48, "interactive commands only look"),
    ] {
        let hit = findings
            .iter()
            .any(|f| f.line == line && f.to_string().contains(part));
        assert!(hit, "line {line}: {part}\n{findings:#?}");
    }
    for part in [
        "does not match ^[a-z]",
        "write [[on.user_del]]",
        "`run` goes in a circle",
        "names no session",
        "`nobody.ok` is of an answer, and no step saves `nobody`",
        "is not a template",
    ] {
        assert!(
            findings.iter().any(|f| f.to_string().contains(part)),
            "{part}\n{findings:#?}"
        );
    }
    assert!(
        findings
            .iter()
            .all(|f| f.file.ends_with(FILE) && !f.hint.is_empty())
    );
}

#[test]
fn more_mistakes() {
    for (text, part) in [
        (
            "driver = \"ssh\"\n[[on.user_add]]\nensure = \"/queue/simple\"\nwhere = { name = \"x\" }\n",
            "impossible with driver ssh",
        ),
        (
            "driver = \"ssh\"\n[[on.user_add]]\nexec = [\"echo '{{ ip }}'\"]\n",
            "a value inside quotes",
        ),
        (
            "driver = \"ssh\"\n[[on.user_add]]\nexec = [\"sh -c {{ ip }}\"]\n",
            "reads twice",
        ),
        (
            "driver = \"ssh\"\n[[on.user_add]]\nexec = [\"echo $(( {{ ip }} ))\"]\n",
            "substitution",
        ),
        (
            "driver = \"fax\"\n[[on.user_add]]\nanswer = \"x\"\n",
            "unknown driver",
        ),
        ("[[on.user_add]]\nanswer = \"x\"\n", "has no `driver`"),
        ("driver = \"record\"\n", "defines no command"),
        ("driver = \"record\"\n[[on.user_add]\n", "scheme.toml:2"),
        (
            "driver = \"record\"\nexit = { done = [0, 143] }\n[[on.user_add]]\nanswer = \"x\"\n",
            "143 is in `done` and in `defer`",
        ),
        (
            "driver = \"mikrotik\"\nown = { comment = \"x\" }\n[[on.user_add]]\nensure = \"/queue/simple\"\nwhere = { name = \"x\" }\nset = { comment = \"y\" }\n",
            "in `own` and in `set`",
        ),
        (
            "driver = \"record\"\n[[on.user_add]]\nrun = \"a\"\n[[part.a]]\nrun = \"b\"\n[[part.b]]\nrun = \"c\"\n[[part.c]]\nrun = \"d\"\n[[part.d]]\nanswer = \"x\"\n",
            "deeper than 3",
        ),
        (
            "driver = \"record\"\n[[on.user_add]]\nread = \"/ppp/active\"\nsave = \"ip\"\n",
            "cannot bind",
        ),
    ] {
        let findings = parse(text).unwrap_err();
        assert!(
            findings.iter().any(|f| f.to_string().contains(part)),
            "{part}: {findings:#?}"
        );
    }
    let scheme = parse("driver = \"record\"\n[[on.user_rediret]]\nwhen = \"accept\"\nanswer = \"{{ colour }}\"\n[[part.idle]]\nanswer = \"x\"\n").unwrap();
    let text: Vec<_> = scheme.warnings().iter().map(ToString::to_string).collect();
    let text = text.join("\n");
    for part in [
        "is `user_redirect` meant?",
        "does not compare",
        "`colour` is not a well-known",
        "part `idle` is never run",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert_eq!(silent(scheme).own_cmds().len(), 1);
}

#[test]
fn policy_and_identity() {
    let scheme = parse("driver = \"record\"\non_error = \"retry\"\nfresh = [\"acct_session_id\"]\nexit = { done = [1], defer = [75] }\n[[on.user_add]]\nanswer = \"x\"\n").unwrap();
    assert_eq!(scheme.fresh(), ["acct_session_id"]);
    let exec = silent(scheme);
    assert_eq!(exec.policy().done, BTreeSet::from([0, 1]));
    assert_eq!(exec.policy().defer, BTreeSet::from([75]));
    assert_eq!(exec.policy().on_error, Some(crate::nas::OnError::Retry));
    assert_eq!(
        (exec.identity().kind, exec.identity().hash.len()),
        ("native", 16)
    );
}

#[test]
fn attributes_that_cannot_be_sent_are_found_at_load() {
    let text = r#"driver = "radius"
[vars]
sid = { "User-Nam" = "{{ login }}" }
no_map = "x"
[[on.user_add]]
coa = { "User-Name" = "{{ login }}", "Mikrotik-Rate-Limt" = "1M/2M" }
[[on.user_del]]
disconnect = { "User-Name" = "{{ login }}", "Filter-Id:3" = "x" }
[[on.user_drop]]
coa = { "User-Name" = "{{ login }}", "Service-Type" = "Nonsense" }
[[on.user_accept]]
coa = { "*" = "sid" }
[[on.user_auth]]
coa = { "*" = "no_map", "Framed-IP-Address" = "{{ ip }}" }
[[on.user_edit]]
coa = { "User-Name" = "{{ login }}", "User-Password" = "x" }
"#;
    let findings = parse(text).unwrap_err();
    for (line, said) in [
        (5, "is Mikrotik-Rate-Limit meant?"),
        (7, "Filter-Id cannot have a tag"),
        (9, "nor one of its named values"),
        (11, "is User-Name meant?"),
        (11, "names no session"),
        (13, "takes a map"),
        (15, "would have to be encrypted"),
    ] {
        let found = findings
            .iter()
            .any(|f| f.line == line && f.to_string().contains(said));
        assert!(found, "{line} {said}: {findings:#?}");
    }
    assert_eq!(findings.len(), 7, "{findings:#?}");
    // A map of nas.vars is not known before: the attempt checks it.
    let later = "driver = \"radius\"\n[[on.user_add]]\ncoa = { \"*\" = \"nas.more\", User-Name = \"{{ login }}\" }\n";
    assert!(parse(later).is_ok());
}

#[test]
fn a_changed_dictionary_is_another_scheme() {
    let dir = tempfile::tempdir().unwrap();
    let text = "driver = \"radius\"\n[[on.user_drop]]\ndisconnect = { \"User-Name\" = \"u\" }\n";
    std::fs::write(dir.path().join(FILE), text).unwrap();
    let hash = || NativeScheme::load(dir.path()).unwrap().identity.hash;
    let alone = hash();
    assert_eq!(hash(), alone);
    let folder = dir.path().join(dictionary::FOLDER);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("own.txt"), "# nothing yet\n").unwrap();
    let with = hash();
    assert_ne!(with, alone);
    std::fs::write(folder.join("own.txt"), "# nothing still\n").unwrap();
    assert_ne!(hash(), with);
}
