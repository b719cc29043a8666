//! Hostile names, logins and comments through the whole daemon: REST, expansion, the shipped
//! Mikrotik-Simple and a strict simulated router, and a session script. They arrive as they are,
//! as values, and nothing else happens: no canary, no command more than without them, no forged
//! record, no file outside the log tree. The other schemes are in `shipped`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::lab::daemon::{Daemon, Lab, address};
use crate::lab::db::Kind;
use crate::lab::sim::Router;
use crate::{Dice, from_environment, hostile, say};
use nas_event_daemon::sim::mikrotik::Faults;

/// Texts of the quick form, unless `NED_HOSTILE` says otherwise.
const TEXTS: u64 = 6_000;
/// Variables of an event that hold one each.
const VARIABLES: [&str; 6] = [
    "login",
    "comment",
    "abonent_name",
    "vlan",
    "circuit_id",
    "mac",
];
/// Events of one call.
const CALL: usize = 200;
/// Accounts of each NAS.
const ACCOUNTS: i64 = 40;

/// Every file below a directory.
fn files(dir: &std::path::Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path.to_string_lossy().into_owned());
        }
    }
}

/// A daemon of which every file is known that it, or a script of it, makes, writes, renames or
/// removes, wherever that is.
async fn start_watched(lab: &Lab) -> Daemon {
    std::fs::create_dir(lab.path("trace")).unwrap();
    let record = lab.path("trace/of").to_string_lossy().into_owned();
    let calls = "trace=open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,\
                 linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mknod,mknodat,truncate,bind";
    // -D: the daemon stays our child; -ff: no call of one thread is cut by another's.
    let by = [
        "strace",
        "-D",
        "-ff",
        "--seccomp-bpf",
        "-q",
        "-y",
        "-s",
        "4096",
        "-o",
        &record,
        "-e",
        calls,
    ];
    lab.start_by(&by).await
}

/// When every thread has ended: the files that were touched and are none of those that an event may touch: logs, what the
/// script writes, the database, the daemon's own.
async fn strangers(lab: &Lab) -> BTreeSet<String> {
    let root = lab.root().to_string_lossy().into_owned();
    let database = lab.db.file().unwrap().to_string_lossy().into_owned();
    let allowed = ["log/", "values/", "run/"].map(|dir| format!("{root}/{dir}"));
    let belongs = |path: &str| {
        let inside = allowed.iter().any(|dir| path.starts_with(dir));
        let up = path.split('/').any(|part| part == "..");
        let terminal = ["/dev/null", "/dev/tty"].contains(&path) || path.starts_with("/dev/pts/");
        !up && (inside || path.starts_with(&database) || terminal)
    };
    let texts = lab
        .until("every record has its end", async || {
            let mut records = Vec::new();
            files(&lab.path("trace"), &mut records);
            let text =
                |record| String::from_utf8_lossy(&std::fs::read(record).unwrap()).into_owned();
            let texts: Vec<String> = records.into_iter().map(text).collect();
            let ended = |text: &String| text.lines().last().is_some_and(|l| l.starts_with("+++ "));
            texts.iter().all(ended).then_some(texts)
        })
        .await;
    let mut found = BTreeSet::new();
    for text in &texts {
        let paths = text.lines().flat_map(touched);
        found.extend(paths.filter(|path| !belongs(path)));
    }
    found
}

/// A line of a record as call and result: the first closing bracket outside of quotes, since a name
/// may hold anything.
fn call_and_result(line: &str) -> Option<(&str, &str)> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, sign) in line.char_indices() {
        match sign {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ')' if !quoted => {
                let rest = line[at + 1..].trim_start();
                if let Some(result) = rest.strip_prefix("= ") {
                    return Some((&line[..at], result));
                }
            }
            _ => {}
        }
    }
    None
}

/// The paths that a successful call of a record touched, other than to read.
fn touched(line: &str) -> Vec<String> {
    let Some((call, result)) = call_and_result(line) else {
        return Vec::new();
    };
    if result.starts_with('-') {
        return Vec::new();
    }
    // The file that was opened, as the system calls it.
    if call.starts_with("open") || call.starts_with("creat(") {
        let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "creat("];
        if !writes.iter().any(|word| call.contains(word)) {
            return Vec::new();
        }
        let path = result.split_once('<').and_then(|(_, p)| p.rsplit_once('>'));
        return vec![path.unwrap_or_else(|| panic!("{line}")).0.to_owned()];
    }
    // A socket that has a file; others have an address, or a name that is none.
    if call.starts_with("bind(") {
        let named = call.split_once("sun_path=\"");
        let name = named.and_then(|(_, rest)| rest.rsplit_once('"'));
        return name.map(|(name, _)| name.to_owned()).into_iter().collect();
    }
    // Each name is below the directory before it, unless it is absolute.
    let mut all = Vec::new();
    let mut parts = call.split('"');
    while let (Some(before), Some(name)) = (parts.next(), parts.next()) {
        let dir = before.rsplit_once('<').map_or("", |(_, dir)| dir);
        let dir = dir.split_once('>').map_or("", |(dir, _)| dir);
        all.push(if name.starts_with('/') {
            name.to_owned()
        } else {
            format!("{dir}/{name}")
        });
    }
    // What a link leads to is not touched.
    if call.starts_with("symlink") {
        all.remove(0);
    }
    all
}

/// To touch a file without opening it.
const OTHER_WAYS: &str = "import os, socket, sys
name = sys.argv[1]
os.rmdir(name + \".gone\")
os.mkfifo(name + \".pipe\")
os.truncate(name + \".short\", 0)
socket.socket(socket.AF_UNIX).bind(name + \".socket\")";

/// The negative control: a scheme that makes a file of what a subscriber is called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_elsewhere_is_found() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    lab.session(
        "Careless",
        &format!(
            "user_del() {{ echo x > \"$comment\"; mkdir \"$comment.d\"; \
             /usr/bin/python3 -IBc '{OTHER_WAYS}' \"$comment\"; }}"
        ),
    );
    lab.nas(1, "Careless", 1, &[]).await;
    lab.accounts(1, [100]).await;
    let daemon = start_watched(&lab).await;
    let place = lab.path("elsewhere").to_string_lossy().into_owned();
    std::fs::create_dir(format!("{place}.gone")).unwrap();
    std::fs::write(format!("{place}.short"), "x").unwrap();
    let event = json!({"cmd": "user_del", "user_id": 100, "params": {"comment": place}});
    let id = lab.post(event).await[0];
    assert_eq!(lab.ended(id).await.1, "done");
    daemon.stop().await;
    let found = strangers(&lab).await;
    let ends = ["", ".d", ".gone", ".pipe", ".short", ".socket"];
    let wanted = ends.map(|end| format!("{place}{end}"));
    assert_eq!(found, BTreeSet::from(wanted));
}

#[test]
fn what_a_call_touches_is_understood() {
    for (line, wanted) in [
        (r#"rmdir("/x/a")   = 0"#, Some("/x/a")),
        (
            r#"mknodat(AT_FDCWD</y>, "p", S_IFIFO|0644) = 0"#,
            Some("/y/p"),
        ),
        (r#"truncate("/x/a", 0) = 0"#, Some("/x/a")),
        (r#"truncate("/x/a", 0) = -1 ENOENT (No such file)"#, None),
        (
            r#"bind(3<socket:[7]>, {sa_family=AF_UNIX, sun_path="/x/s"}, 110) = 0"#,
            Some("/x/s"),
        ),
        (
            r#"bind(3<socket:[7]>, {sa_family=AF_UNIX, sun_path=@"name"}, 110) = 0"#,
            None,
        ),
        (
            r#"bind(3<TCP:[7]>, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("127.0.0.1")}, 16) = 0"#,
            None,
        ),
    ] {
        assert_eq!(touched(line).first().map(String::as_str), wanted, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_texts_are_data_all_the_way() {
    let seed = from_environment("NED_SEED").unwrap_or(5);
    say(&format!("NED_SEED={seed}"));
    let mut dice = Dice(seed);
    let lab = Lab::new(Kind::Sqlite, "guard = \"off\"").await;
    let canary = lab.path("canary").to_string_lossy().into_owned();
    let values = lab.path("values");
    std::fs::create_dir(&values).unwrap();
    lab.session(
        "Mine",
        &format!(
            "user_del() {{ printf '%s\\0' \"$login\" \"$comment\" \"$vlan\" > {}/$event_id; echo \"got $login\"; }}",
            values.display()
        ),
    );
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 1, "Mikrotik-Simple", 8).await;
    let his = json!({"list": "crb_negbal", "address": "10.99.0.1", "comment": "crb_99"});
    let neighbour = json!({"/ip/firewall/address-list": [his],
        "/ppp/active": [{"name": "petrov", "address": "10.99.0.1"}]});
    router.sim.load(&neighbour).unwrap();
    lab.nas(2, "Mine", 4, &[]).await;
    lab.accounts(1, 1_000..1_000 + ACCOUNTS).await;
    lab.accounts(2, 2_000..2_000 + ACCOUNTS).await;
    let daemon = start_watched(&lab).await;

    let events = from_environment("NED_HOSTILE").unwrap_or(TEXTS) / VARIABLES.len() as u64;
    // A script costs a process: one event in twenty.
    let mut wanted: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    let mut sent = 0;
    let mut refused = 0;
    while sent < events {
        let mut call = Vec::new();
        let mut texts = Vec::new();
        while call.len() < CALL && sent < events {
            let params: Vec<(&str, String)> = VARIABLES
                .iter()
                .map(|name| (*name, hostile(&mut dice, &canary)))
                .collect();
            let script = sent % 20 == 0;
            let user = i64::try_from(dice.roll(ACCOUNTS.unsigned_abs())).unwrap();
            let user = user + if script { 2_000 } else { 1_000 };
            let map: serde_json::Map<String, Value> = params
                .iter()
                .map(|(name, text)| ((*name).to_owned(), Value::from(text.as_str())))
                .collect();
            let cmd = if script || dice.roll(2) == 0 {
                "user_del"
            } else {
                "user_redirect"
            };
            call.push(json!({"cmd": cmd, "user_id": user, "params": map}));
            texts.push(script.then(|| {
                [0, 1, 3]
                    .into_iter()
                    .map(|n| params[n].1.clone())
                    .collect::<Vec<_>>()
            }));
            sent += 1;
        }
        let ids = lab.post(json!({ "events": call })).await;
        for (id, texts) in ids.into_iter().zip(texts) {
            if let Some(texts) = texts {
                wanted.insert(id, texts);
            }
        }
        // No more than a few calls ahead of the router.
        lab.until("the daemon keeps up", async || {
            (lab.waiting().await < 2 * CALL as i64).then_some(())
        })
        .await;
    }
    lab.drained().await;

    for (id, texts) in &wanted {
        let state = lab.ended(*id).await;
        if state.0 == "dead" {
            refused += 1;
            continue;
        }
        let written = std::fs::read(values.join(id.to_string())).unwrap();
        let found: Vec<&[u8]> = written.split(|b| *b == 0).collect();
        let exact: Vec<&[u8]> = texts.iter().map(|t| t.as_bytes()).collect();
        assert_eq!(found[..3], exact, "event {id}");
    }
    say(&format!(
        "{events} events with {} texts, {} seen by scripts, {refused} refused",
        events * VARIABLES.len() as u64,
        wanted.len()
    ));
    let dead = lab.rows("select reason from events_dead").await;
    assert!(dead.is_empty(), "{:?}", dead.first());
    let ended = lab.number("select count(*) from events_done").await;
    assert_eq!(ended.unsigned_abs(), events);
    assert!(
        !std::path::Path::new(&canary).exists(),
        "something was executed"
    );

    // The router carried out what the scheme asks for and nothing else: rows of the event's own
    // account come and go.
    let journal = std::fs::read_to_string(&router.journal).unwrap();
    let mut changes = 0;
    for line in journal.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let row = match record["path"].as_str().unwrap_or_default() {
            "/ip/firewall/address-list/add" => &record["args"],
            "/ip/firewall/address-list/remove" => &record["rows"][0],
            _ => panic!("{line}"),
        };
        let user = row["comment"].as_str().unwrap().strip_prefix("crb_");
        let user: i64 = user.unwrap().parse().unwrap();
        assert!((1_000..1_000 + ACCOUNTS).contains(&user), "{line}");
        assert_eq!(row["address"], address(user), "{line}");
        assert_eq!(row["list"], "crb_negbal", "{line}");
        // A row that is there already is not made again.
        let trap = record["trap"].as_str().unwrap_or_default();
        let there = "failure: already have such entry";
        assert!(trap.is_empty() || trap == there, "{line}");
        assert!(record["rows"].as_array().unwrap().len() <= 1, "{line}");
        changes += 1;
    }
    assert!(changes > 100 && changes <= events, "{changes} changes");
    assert!(
        router
            .listed("crb_negbal")
            .contains(&"10.99.0.1".to_owned())
    );
    assert_eq!(router.sim.rows("/ppp/active").len(), 1);
    // Each record is a line of its own event.
    let mut paths = Vec::new();
    files(&lab.path("log"), &mut paths);
    let mut records = 0;
    for path in &paths {
        if path.ends_with("/nas_event_daemon.log") {
            continue;
        }
        let name = path.rsplit('/').next().unwrap();
        let account = name
            .strip_prefix("event_")
            .and_then(|n| n.strip_suffix(".log"));
        let text = std::fs::read_to_string(path).unwrap();
        for line in text.split('\n').filter(|l| !l.is_empty()) {
            let rest = line.split_once("]: event=").expect(line).1;
            let user = rest.split(' ').nth(1).unwrap();
            assert!(line.starts_with("20"), "{line}");
            if let Some(account) = account {
                assert_eq!(user, format!("user={account}"), "{line}");
            }
            assert!(
                !line.contains(['\r', '\u{1b}', '\u{2028}', '\u{202e}']),
                "{line:?}"
            );
            records += 1;
        }
    }
    assert!(records >= 3 * events, "{records} records");
    let allowed = 2 + 2 * ACCOUNTS + 1;
    assert!(i64::try_from(paths.len()).unwrap() <= allowed, "{paths:?}");
    daemon.stop().await;
    // Nor is there one anywhere else.
    let strangers = strangers(&lab).await;
    assert!(strangers.is_empty(), "{strangers:#?}");
}
