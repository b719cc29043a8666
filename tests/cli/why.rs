//! `why ACCOUNT` on seeded faults: each account has one, and the answer names it.

use nas_event_daemon::sim::mikrotik::Faults;
use nas_event_daemon::sim::radius::{self, Options};
use nas_event_daemon::store::After;
use serde_json::{Value, json};

use crate::lab::daemon::{Lab, address};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::{LOGIN, Router};
use crate::{RECORD, finished, ned};

on_each_store!(
    the_cause_of_each_seeded_fault_is_named,
    the_device_is_asked_and_believed,
    without_a_daemon_the_database_says_why,
    a_full_queue_is_named,
);

/// Fails for good, fails for now, works, hangs.
const FAILING: &str = "user_add() { exit 3; }\nuser_redirect() { echo busy >&2; exit 254; }\n\
                       user_drop() { :; }\nuser_accept() { sleep 300; }\n";

async fn why(lab: &Lab, user: i64, more: &[&str]) -> Value {
    let user = user.to_string();
    let args = [&["-o", "json", "why", &user][..], more].concat();
    ned(lab, &args).await.json()
}

/// Waits until the cause is this one.
async fn cause(lab: &Lab, user: i64, cause: &str, more: &[&str]) -> Value {
    let last = std::cell::RefCell::new(Value::Null);
    let found = crate::lab::daemon::wait_for(async || {
        let said = why(lab, user, more).await;
        let found = said["cause"] == cause;
        last.replace(said);
        found.then_some(())
    })
    .await;
    let last = last.into_inner();
    assert!(found.is_some(), "{user} is not {cause}, but {last}");
    assert!(!last["verdict"].as_str().unwrap().is_empty(), "{last}");
    assert!(!last["next"].as_str().unwrap().is_empty(), "{last}");
    last
}

async fn post(lab: &Lab, cmd: &str, user: i64) {
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values ('{cmd}', {user})"
    ))
    .await;
}

async fn the_cause_of_each_seeded_fault_is_named(kind: Kind) {
    let lab = Lab::new(kind, "script_timeout = \"120s\"\ncross_nas_wait = \"1h\"").await;
    lab.session("Failing", FAILING);
    let closed = crate::lab::daemon::own_port();
    let full = Router::start(
        lab.root(),
        "full",
        Faults {
            session_limit: Some(0),
            ..Faults::default()
        },
    );
    let locked = Router::start(lab.root(), "locked", Faults::default());
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, RECORD, 2, &[("mode", "'off'".to_owned())]).await;
    lab.nas(7, "No-Such-Scheme", 2, &[]).await;
    lab.nas(8, RECORD, 2, &[("vars", "'[1]'".to_owned())]).await;
    let port = closed.0.to_string();
    lab.nas(9, "Mikrotik-Simple", 2, &[("api_port", port)])
        .await;
    lab.secret(9, LOGIN, "x").await;
    let port = locked.sim.addr().port().to_string();
    lab.nas(10, "Mikrotik-Simple", 2, &[("api_port", port)])
        .await;
    lab.secret(10, LOGIN, "wrong").await;
    lab.nas(11, "Failing", 4, &[]).await;
    lab.nas(12, "Failing", 1, &[]).await;
    lab.nas(13, RECORD, 2, &[("mode", "'observe'".to_owned())])
        .await;
    lab.nas(14, RECORD, 2, &[]).await;
    full.serve_as(&lab, 15, "Mikrotik-Simple", 2).await;
    lab.nas(16, "Failing", 2, &[("timeout_ms", "300".to_owned())])
        .await;
    for (nas, users) in [
        (5, &[50, 51, 52, 53, 54, 55, 56][..]),
        (6, &[60]),
        (7, &[70]),
        (8, &[80]),
        (9, &[90]),
        (10, &[100]),
        (11, &[110, 111, 112, 113]),
        (12, &[120, 121, 122]),
        (13, &[130]),
        (14, &[140]),
        (15, &[150]),
        (16, &[160]),
        (99, &[990]),
    ] {
        lab.accounts(nas, users.iter().copied()).await;
    }
    lab.sql("update users set nas_id = null where id = 54")
        .await;
    // RADIUS: answers that somebody else has signed, and a NAS that drops what we sign.
    let radius = async |faults, secret: &str| {
        let options = Options {
            secret: secret.to_owned(),
            faults,
            ..Options::default()
        };
        let sim = radius::Sim::start(options).await.unwrap();
        let port = sim.addr().port().to_string();
        (sim, port)
    };
    let forged = radius::Faults {
        only_forged: true,
        ..radius::Faults::default()
    };
    let (_forging, port) = radius(forged, "ours").await;
    // What nobody may answer is waited for to its end.
    let short = || ("timeout_ms", "1500".to_owned());
    lab.nas(17, "Mikrotik-CoA", 2, &[("coa_port", port), short()])
        .await;
    let (_dropping, port) = radius(radius::Faults::default(), "theirs").await;
    lab.nas(18, "Mikrotik-CoA", 2, &[("coa_port", port), short()])
        .await;
    lab.sql("insert into nas_secret (nas_id, coa_secret) values (17, 'ours'), (18, 'ours')")
        .await;
    lab.accounts(17, [170]).await;
    lab.accounts(18, [180]).await;
    let daemon = lab.start().await;
    ned(&lab, &["nas", "pause", "14", "--reason", "firmware"])
        .await
        .fine();

    for (cmd, user) in [
        ("user_add", 50),
        ("user_redirect", 51),
        ("user_add", 60),
        ("user_add", 70),
        ("user_add", 90),
        ("user_add", 100),
        ("user_add", 110),
        ("user_redirect", 111),
        ("user_del", 112),
        ("user_redirect", 113),
        ("user_accept", 120),
        ("user_add", 130),
        ("user_add", 140),
        ("user_add", 150),
        ("user_accept", 160),
        ("user_disconnect", 170),
        ("user_disconnect", 180),
    ] {
        post(&lab, cmd, user).await;
    }
    lab.sql(
        "insert into events_stack_compact (cmd, user_id, params) values ('user_add', 52, '{\"Bad Name\": 1}');
         insert into events_stack_compact (cmd, user_id, expires_at) values ('user_add', 53, '2020-01-01 00:00:00.000');
         insert into events_stack (id, event_type, user_id, nas_id, params, class, event_date, state)
           values (900001, 'user_redirect', 55, 5, '{}', 2, '2026-01-01 00:00:00.000', 'held')",
    )
    .await;

    let said = cause(&lab, 50, "confirmed", &[]).await;
    assert!(
        said["last_command"].as_str().unwrap().contains(" > "),
        "{said}"
    );
    assert!(
        said["confirmed"]
            .as_str()
            .unwrap()
            .contains("user_add done"),
        "{said}"
    );
    let answer = said["last_answer"].as_str().unwrap();
    assert!(
        answer.contains("cmd=user_add") && answer.contains("end result=done"),
        "{said}"
    );
    assert_eq!(
        said["wants"],
        "user_add, user_rate_set, user_accept, user_redirect_cancel"
    );
    let said = cause(&lab, 51, "not_sent", &[]).await;
    assert!(
        said["verdict"]
            .as_str()
            .unwrap()
            .contains("call for user_redirect_cancel"),
        "{said}"
    );
    assert!(
        said["next"].as_str().unwrap().contains("account resync 51"),
        "{said}"
    );
    let said = cause(&lab, 52, "not_expandable", &[]).await;
    assert!(
        said["verdict"].as_str().unwrap().contains("Bad Name"),
        "{said}"
    );
    cause(&lab, 53, "expired", &[]).await;
    cause(&lab, 54, "no_nas", &[]).await;
    cause(&lab, 55, "held", &[]).await;
    // Asking the device too hides nothing of what was found without it.
    let live = ["--live", "--timeout", "2s"];
    for (user, word) in [(51, "not_sent"), (55, "held")] {
        let bare = why(&lab, user, &[]).await;
        let said = cause(&lab, user, word, &live).await;
        assert_eq!(said["verdict"], bare["verdict"], "{said}");
        assert_eq!(said["next"], bare["next"], "{said}");
    }
    cause(&lab, 60, "nas_off", &[]).await;
    let said = cause(&lab, 70, "scheme_wrong", &[]).await;
    assert!(
        said["verdict"].as_str().unwrap().contains("No-Such-Scheme"),
        "{said}"
    );
    let said = cause(&lab, 80, "nas_row_wrong", &[]).await;
    assert!(said["verdict"].as_str().unwrap().contains("vars"), "{said}");
    // What is in the way is named: the breaker and why it is open; until when it waits.
    let said = cause(&lab, 90, "nas_down", &[]).await;
    let verdict = said["verdict"].as_str().unwrap();
    let begins =
        ["open", "half-open"].map(|is| format!("NAS 9 fails for everybody (breaker {is}): "));
    assert!(
        begins.iter().any(|begin| verdict.starts_with(begin)),
        "{said}"
    );
    assert!(verdict.contains("onnect"), "and the reason: {said}");
    assert!(
        said["nas"].as_str().unwrap().contains(" breaker="),
        "{said}"
    );
    let said = cause(&lab, 100, "login_refused", &[]).await;
    assert!(!said.to_string().contains("wrong\""), "no password: {said}");
    let said = cause(&lab, 110, "dead", &[]).await;
    let answer = said["last_answer"].as_str().unwrap();
    assert!(
        answer.contains("cmd=user_add") && answer.contains("end result=dead"),
        "{said}"
    );
    assert!(
        said["next"].as_str().unwrap().contains("event retry"),
        "{said}"
    );
    let said = cause(&lab, 111, "deferred", &[]).await;
    next_try_is_named(&said, "code 254");
    let said = cause(&lab, 112, "missing_function", &[]).await;
    assert!(
        said["verdict"].as_str().unwrap().contains("no user_del"),
        "{said}"
    );
    cause(&lab, 120, "running", &[]).await;
    post(&lab, "user_drop", 121).await;
    let said = cause(&lab, 121, "forks_busy", &[]).await;
    assert!(!said["verdict"].to_string().contains("urgent"), "{said}");
    // A rate waits behind the cut of 121, whatever comes first.
    post(&lab, "user_rate_set", 122).await;
    let said = cause(&lab, 122, "forks_busy", &[]).await;
    assert!(
        said["verdict"].to_string().contains("class go first: 1"),
        "{said}"
    );
    // Moved from a NAS that is busy to one that is idle: the events keep their order.
    lab.sql(
        "insert into events_stack_compact (cmd, user_id, nas_id) values ('user_add', 56, 12);
         insert into events_stack_compact (cmd, user_id, nas_id) values ('user_add', 56, 5)",
    )
    .await;
    lab.until("the earlier event is named", async || {
        let said = cause(&lab, 56, "waiting", &[]).await;
        let text = said["verdict"].as_str().unwrap();
        text.contains("on NAS 12, which is ready, goes first")
            .then_some(())
    })
    .await;
    let said = cause(&lab, 56, "waiting", &live).await;
    assert!(
        said["verdict"]
            .as_str()
            .unwrap()
            .contains("on NAS 12, which is ready, goes first"),
        "{said}"
    );
    cause(&lab, 130, "observed", &[]).await;
    let said = cause(&lab, 140, "nas_paused", &[]).await;
    assert!(
        said["verdict"].as_str().unwrap().contains("firmware"),
        "{said}"
    );
    cause(&lab, 150, "session_limit", &[]).await;
    cause(&lab, 160, "timed_out", &[]).await;
    cause(&lab, 990, "nas_unknown", &[]).await;
    cause(&lab, 170, "wrong_secret", &[]).await;
    let said = cause(&lab, 180, "radius_silent", &[]).await;
    assert!(
        said["verdict"].as_str().unwrap().contains("coa_secret"),
        "{said}"
    );
    // Where the logs lie, and where the database lies, if it is a file.
    let mut disks = vec![lab.path("log")];
    disks.extend(
        lab.db
            .file()
            .and_then(|file| Some(file.parent()?.to_owned())),
    );
    for disk in disks {
        let said = on_a_full_disk(&lab, 110, &disk).await;
        assert_eq!(said["cause"], "disk_full", "{said}");
        let verdict = said["verdict"].as_str().unwrap();
        assert!(verdict.contains(&disk.display().to_string()), "{said}");
        assert!(
            said["next"].as_str().unwrap().contains("logs prune"),
            "{said}"
        );
    }
    let waiting = cause(&lab, 113, "deferred", &["--live", "--timeout", "2s"]).await;
    next_try_is_named(&waiting, "code 254");
    let id = waiting["waiting"]
        .as_str()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned();
    ned(
        &lab,
        &["event", "drop", &id, "-y", "--reason", "by mistake"],
    )
    .await
    .fine();
    let said = cause(&lab, 113, "dropped", &[]).await;
    assert!(
        said["verdict"].as_str().unwrap().contains("by mistake"),
        "{said}"
    );
    ned(&lab, &["why", "777"])
        .await
        .failed(5, &["no account 777", "users.id"]);
    // Fits one screen.
    let plain = ned(&lab, &["why", "110"]).await.fine();
    assert!(plain.lines().count() <= 20, "{plain}");
    daemon.kill_9().await;
}

/// A deferred event's verdict says until when it waits, after which try, and for what error: the
/// moment is the one of its row.
fn next_try_is_named(said: &Value, error: &str) {
    let waiting = said["waiting"].as_str().unwrap();
    let (_, at) = waiting.split_once(" next_try=").unwrap();
    let at = at.get(..19).unwrap();
    let sentence = format!(": deferred until {at} after try 1: ");
    let verdict = said["verdict"].as_str().unwrap();
    assert!(
        verdict.contains(&sentence) && verdict.contains(error),
        "{sentence:?} is not in {said}"
    );
}

/// The same question where this directory is a file system without room; what is in it goes along.
async fn on_a_full_disk(lab: &Lab, user: i64, disk: &std::path::Path) -> Value {
    // Room for a database, and for nothing that a daemon would still write: `process::ROOM_MIN`.
    let script = "copy=$(mktemp -d) && cp -a \"$1/.\" \"$copy\" && \
                  mount -t tmpfs -o size=12m none \"$1\" && cp -a \"$copy/.\" \"$1\" && \
                  rm -r \"$copy\" && exec \"$2\" -o json why \"$3\"";
    #[expect(
        clippy::disallowed_methods,
        reason = "a mount of its own needs unshare(1)"
    )]
    let mut command = tokio::process::Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(disk)
        .arg(env!("CARGO_BIN_EXE_nas_event_daemon"))
        .arg(user.to_string())
        .env("NED_CONFIG", lab.path("ned.toml"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    finished(command, "").await.json()
}

async fn a_full_queue_is_named(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.configure("high_water = 4", "");
    lab.nas(5, RECORD, 2, &[]).await;
    lab.nas(6, RECORD, 2, &[]).await;
    lab.accounts(5, 1..=8).await;
    lab.accounts(6, [9]).await;
    lab.sql("insert into nas_state (nas_id, paused_until) values (5, '2999-01-01 00:00:00')")
        .await;
    let daemon = lab.start().await;
    for user in 1..=6 {
        post(&lab, "user_edit", user).await;
    }
    lab.until("the mark is passed", async || {
        let status: Value = serde_json::from_str(&lab.get("/api/v1/status").await).ok()?;
        (status["intake"]["limited"] == true).then_some(())
    })
    .await;
    post(&lab, "user_edit", 9).await;
    let said = cause(&lab, 9, "queue_full", &[]).await;
    assert!(
        said["verdict"].to_string().contains("http.high_water"),
        "{said}"
    );
    ned(&lab, &["nas", "resume", "5"]).await.fine();
    cause(&lab, 9, "confirmed", &[]).await;
    daemon.stop().await;
}

async fn the_device_is_asked_and_believed(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let mine = Router::start(lab.root(), "mine", Faults::default());
    let other = Router::start(lab.root(), "other", Faults::default());
    mine.serve_as(&lab, 16, "Mikrotik-Simple", 2).await;
    other.serve_as(&lab, 17, "Mikrotik-Simple", 2).await;
    lab.accounts(16, [500, 501]).await;
    let daemon = lab.start().await;
    cause(&lab, 501, "never_sent", &[]).await;
    ned(&lab, &["account", "resync", "500"]).await.fine();
    cause(&lab, 500, "confirmed", &[]).await;
    lab.drained().await;
    let live = &["--live"];
    let said = cause(&lab, 500, "open", live).await;
    assert!(
        said["device"].as_str().unwrap().contains("queue: "),
        "{said}"
    );

    // Somebody at the router.
    let mark = json!({"list": "crb_negbal", "address": address(500), "comment": "crb_500"});
    let lists = json!({ "/ip/firewall/address-list": [mark] });
    mine.sim.load(&lists).unwrap();
    let said = cause(&lab, 500, "device_differs", live).await;
    assert_eq!(said["next"], "account resync 500");
    ned(&lab, &["account", "resync", "500"]).await.fine();
    cause(&lab, 500, "open", live).await;

    // Another tariff than the queue has, of which the answer says nothing that is judged.
    lab.sql("update users set ceil_in = 77000, rate_in = 77000 where id = 500")
        .await;
    let said = cause(&lab, 500, "device_differs", live).await;
    assert!(
        said["verdict"].as_str().unwrap().contains("/queue/simple"),
        "{said}"
    );
    ned(&lab, &["account", "resync", "500"]).await.fine();
    cause(&lab, 500, "open", live).await;

    // Redirected over IPv4, open over IPv6: the answer names the address that is open.
    let both = "'[\"10.0.1.244\", \"2001:db8::5\"]'";
    lab.sql(&format!(
        "update users set redirect = 1, addresses = {both} where id = 500"
    ))
    .await;
    ned(&lab, &["account", "resync", "500"]).await.fine();
    cause(&lab, 500, "open", live).await;
    let mut state = mine.sim.dump();
    state["/ipv6/firewall/address-list"] = json!([]);
    mine.sim.load(&state).unwrap();
    let said = cause(&lab, 500, "device_differs", live).await;
    assert!(
        said["verdict"]
            .as_str()
            .unwrap()
            .contains("does not redirect 2001:db8::5"),
        "{said}"
    );
    ned(&lab, &["account", "resync", "500"]).await.fine();
    cause(&lab, 500, "open", live).await;

    let active = |router: &Router, sessions: Value| {
        let mut state = router.sim.dump();
        state["/ppp/active"] = sessions;
        router.sim.load(&state).unwrap();
    };
    let session = |router: &Router, address: &str| {
        let row = json!({"name": "login500", "address": address,
            "uptime": "1h", "caller-id": "x", "service": "pppoe"});
        active(router, json!([row]));
    };
    for elsewhere in ["2001:db8::5", "10.0.1.244"] {
        session(&other, elsewhere);
        let said = cause(&lab, 500, "session_elsewhere", live).await;
        assert!(
            said["verdict"].as_str().unwrap().contains("bras17"),
            "{said}"
        );
        active(&other, json!([]));
        cause(&lab, 500, "open", live).await;
    }
    session(&mine, "10.200.0.9");
    let said = cause(&lab, 500, "other_address", live).await;
    assert!(
        said["verdict"].as_str().unwrap().contains("10.200.0.9"),
        "{said}"
    );
    session(&mine, "2001:db8::99");
    cause(&lab, 500, "other_address", live).await;
    session(&mine, &address(500));
    cause(&lab, 500, "open", live).await;

    // The flags were changed and nobody said so, or an event is held: the device answers, and the
    // cause is found where it is all the same.
    lab.sql("update users set redirect = 0, addresses = null where id = 500")
        .await;
    let said = cause(&lab, 500, "not_sent", live).await;
    assert!(
        said["verdict"]
            .as_str()
            .unwrap()
            .contains("call for user_redirect_cancel")
            && said["device"].as_str().unwrap().contains("queue: "),
        "{said}"
    );
    lab.sql(
        "insert into events_stack (id, event_type, user_id, nas_id, params, class, event_date, state)
           values (900001, 'user_redirect', 501, 16, '{}', 2, '2026-01-01 00:00:00.000', 'held')",
    )
    .await;
    let said = cause(&lab, 501, "held", live).await;
    assert!(
        said["verdict"]
            .as_str()
            .unwrap()
            .contains("event 900001 user_redirect is held")
            && said["device"].as_str().unwrap().contains("queue: "),
        "{said}"
    );
    ned(&lab, &["account", "resync", "500"]).await.fine();
    cause(&lab, 500, "open", live).await;

    // An ISG answers in words of its own, and the others hold no session of the account.
    let isg = radius::Sim::start(Options::default()).await.unwrap();
    let port = isg.addr().port().to_string();
    lab.nas(18, "Cisco-ISG", 2, &[("coa_port", port)]).await;
    lab.sql("insert into nas_secret (nas_id, coa_secret) values (18, 'secret')")
        .await;
    lab.accounts(18, [510]).await;
    ned(&lab, &["nas", "reload"]).await.fine();
    let said = cause(&lab, 510, "device_unread", live).await;
    assert!(
        said["device"].as_str().unwrap().starts_with("no session"),
        "{said}"
    );
    let (verdict, next) = (said["verdict"].to_string(), said["next"].to_string());
    assert!(
        verdict.contains("no session") && verdict.contains("cannot be compared"),
        "{said}"
    );
    assert!(next.contains("account resync 510"), "{said}");

    drop(mine);
    cause(&lab, 500, "device_silent", &["--live", "--timeout", "5s"]).await;
    daemon.kill_9().await;
}

async fn without_a_daemon_the_database_says_why(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, RECORD, 2, &[]).await;
    lab.accounts(5, [50]).await;
    cause(&lab, 50, "never_sent", &[]).await;
    let said = cause(&lab, 50, "no_daemon", &["--live"]).await;
    assert!(
        said["verdict"].to_string().contains("was not asked"),
        "{said}"
    );
    post(&lab, "user_add", 50).await;
    let said = cause(&lab, 50, "no_daemon", &[]).await;
    assert!(
        said["next"].as_str().unwrap().contains("systemctl start"),
        "{said}"
    );
    let epoch = lab
        .db
        .store
        .own("elsewhere pid=9 boot=x start=1", After::Silence(0))
        .await
        .unwrap();
    let said = cause(&lab, 50, "other_daemon", &[]).await;
    assert!(
        said["verdict"].to_string().contains("elsewhere pid=9"),
        "{said}"
    );
    lab.db.store.disown(epoch).await.unwrap();
    cause(&lab, 50, "no_daemon", &[]).await;
}
