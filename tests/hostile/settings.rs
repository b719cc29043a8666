//! Secrets that stand in settings and not in `nas_secret`: the password in `database.url`, a token
//! in `alarm.webhook`, `nas.vars` whose names say what they are, credentials in `nas.http_url`.
//! They are used, they fail, and nothing tells them. Nor does the daemon's memory leave the
//! process.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;

use nas_event_daemon::sim::http;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sshd::program;
use crate::secrets::{MARK, argument_lists, canary, no_place_tells};

on_each_store!(no_setting_tells_its_secret);

/// Says what a setting of the NAS holds, to the device, to the log and to whoever asks.
const SCHEME: &str = "driver = \"http\"\n\
    [[on.user_info]]\n\
    request = { method = \"PUT\", path = \"/said\", headers = { X-Key = \"{{ nas.api_token }}\" }, json = { community = \"{{ nas.snmp_community }}\" } }\n\
    [[on.user_info]]\n\
    request = { method = \"GET\", path = \"/said\" }\nsave = \"x\"\n\
    [[on.user_info]]\nanswer = \"{{ x.text }} {{ nas.api_token }}\"\n\
    [[on.user_drop]]\nrequest = { method = \"DELETE\", path = \"/{{ nas.api_token }}\" }\n";

/// The database's URL with a role of its own, whose password is a canary.
async fn as_canary(lab: &Lab) -> String {
    let role = format!("canary_{:016x}", getrandom::u64().unwrap());
    let password = canary(0, "database");
    lab.sql(&format!(
        "create role {role} superuser login password '{password}'"
    ))
    .await;
    let (scheme, rest) = lab.db.url.split_once("://").unwrap();
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    format!("{scheme}://{role}:{password}@{place}")
}

/// Writes the configuration anew with this database.
fn at_url(lab: &Lab, url: &str) {
    let file = lab.path("ned.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let old = format!("{:?}", lab.db.url);
    assert!(text.contains(&old), "{text}");
    std::fs::write(file, text.replace(&old, &format!("{url:?}"))).unwrap();
}

async fn no_setting_tells_its_secret(kind: Kind) {
    let dispatch = "retry_base = \"50ms\"\nmax_tries = 2";
    let lab = Lab::new(kind, dispatch).await;
    lab.debug();
    // Nothing listens there.
    let hook = canary(0, "webhook");
    let alarm = format!(
        "[alarm]\nafter = \"100ms\"\nwebhook = \"http://ned:{hook}@127.0.0.1:1/services/{hook}?token={hook}\""
    );
    lab.configure(&alarm, dispatch);
    let url = match kind {
        Kind::Sqlite => None,
        Kind::Postgres => Some(as_canary(&lab).await),
    };
    if let Some(url) = &url {
        at_url(&lab, url);
    }
    lab.native("Vars", SCHEME);
    let sim = http::Sim::start(http::Options::default()).await.unwrap();
    let vars = json!({"api_token": canary(1, "vars"), "snmp_community": canary(1, "vars")});
    let with_vars = [
        ("http_url", format!("'http://{}'", sim.addr())),
        ("vars", format!("'{vars}'")),
    ];
    lab.nas(1, "Vars", 2, &with_vars).await;
    let in_url = canary(2, "url");
    let url_of = |text: String| [("http_url", format!("'{text}'"))];
    lab.nas(
        2,
        "HTTP-Webhook",
        2,
        &url_of(format!("http://ned:{in_url}@127.0.0.1:1/")),
    )
    .await;
    lab.nas(
        3,
        "HTTP-Webhook",
        2,
        &url_of(format!("http://127.0.0.1:1/?key={in_url}")),
    )
    .await;
    for nas in 1..=3 {
        lab.accounts(nas, [nas * 100]).await;
    }
    let daemon = lab.start().await;
    let mut ids = vec![
        lab.event(100, "user_info").await,
        lab.event(100, "user_drop").await,
    ];
    for nas in 2..=3 {
        ids.push(lab.event(nas * 100, "user_redirect").await);
    }
    assert_eq!(lab.ended(ids[0]).await.1, "done");
    assert_eq!(lab.ended(ids[1]).await.0, "dead");
    lab.said("alarm.webhook http://127.0.0.1:1 did not take")
        .await;
    lab.until("all were tried", async || {
        let tried = |nas| lab.nas_log(nas).iter().any(|l| l.contains("end result="));
        (1..=3).all(tried).then_some(())
    })
    .await;
    // They were used where they belong.
    // A question is not in its account's lane: what is deleted may come before it.
    let taken = sim.taken();
    let said = taken.iter().find(|t| t.method == "PUT").unwrap();
    assert_eq!(said.headers["x-key"], canary(1, "vars"));
    assert_eq!(said.body["community"], canary(1, "vars"));
    let log = lab.nas_log(1).join("\n");
    assert!(log.contains("X-Key: ***"), "{log}");
    if url.is_some() {
        // The connections break; what is said of it has the URL at hand.
        lab.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename like 'canary_%'",
        )
        .await;
        let after = lab.event(100, "user_info").await;
        assert_eq!(lab.ended(after).await.1, "done");
        ids.push(after);
    }

    let mut told = BTreeMap::from([("argument lists".to_owned(), argument_lists())]);
    for args in [
        &["config", "show"][..],
        &["config", "check"],
        &["status"],
        &["nas", "list"],
        &["nas", "show", "1"],
        &["nas", "show", "2"],
        &["nas", "test", "2"],
        &["nas", "test", "3"],
        &["why", "200"],
        &["why", "100"],
        &["doctor"],
        &["doctor", "--bundle", "bundle"],
        &[
            "scheme",
            "run",
            "Vars",
            "--user",
            "100",
            "--cmd",
            "user_drop",
            "--nas",
            "1",
            "--dry-run",
        ],
    ] {
        let mut command = program(env!("CARGO_BIN_EXE_nas_event_daemon"));
        command.arg("--config").arg(lab.path("ned.toml")).args(args);
        command.current_dir(lab.root());
        command.env_remove("NED_CONFIG").env("NED_LOG", "debug");
        let output = command.output().await.unwrap();
        let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        told.insert(args.join(" "), text.concat());
    }
    let bundle = std::fs::read_to_string(lab.path("bundle")).unwrap();
    told.insert("the bundle".to_owned(), bundle);
    no_place_tells(&lab, &ids, told, &[MARK]).await;
    daemon.stop().await;
}

/// Neither by its limit, nor where the kernel gives cores to a program and asks no limit: then it
/// matters that nobody may look into the process. Without CAP_SYS_PTRACE that is seen by a reader
/// who is the same user.
#[tokio::test]
async fn the_daemons_memory_leaves_no_core_file() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let bare = ["setpriv", "--bounding-set=-sys_ptrace"];
    let mut daemon = lab.start_by(&bare).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid)).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size"));
    let words: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{limits}");
    let looks = async |pid: i32| {
        let mut reader = program(bare[0]);
        reader
            .arg(bare[1])
            .args(["readlink", &format!("/proc/{pid}/exe")]);
        let output = reader.output().await.unwrap();
        output.status.success() && !output.stdout.is_empty()
    };
    assert!(!looks(daemon.pid).await, "it can be looked into");
    // Any other process of the same user can be looked into.
    let mut other = program(bare[0]);
    let mut other = other.arg(bare[1]).args(["sleep", "1000"]).spawn().unwrap();
    let pid = i32::try_from(other.id().unwrap()).unwrap();
    lab.until("another process is looked into", async || {
        looks(pid).await.then_some(())
    })
    .await;
    other.kill().await.unwrap();
    daemon.signal(Signal::SIGABRT);
    let status = daemon.end().await;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
    assert!(!status.core_dumped(), "{status}");
}
