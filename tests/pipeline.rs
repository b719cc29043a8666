//! The main job end to end, with the real binary: events in by REST and by SQL, the NAS obeys,
//! the logs tell. Every test runs on both kinds of database.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

mod lab;

use std::collections::BTreeSet;
use std::process::Stdio;

use lab::daemon::{Daemon, Lab, account_log_name, address, origin};
use lab::db::Kind;
use lab::on_each_store;
use lab::sim::{PASSWORD, Router};
use nas_event_daemon::sim::mikrotik::Faults;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

on_each_store!(
    the_classic_curl_reaches_the_router_and_the_logs,
    rows_inserted_by_sql_are_found,
    session_schemes_and_old_scripts_run,
    a_diagnostic_is_answered_through_rest,
    observe_mode_sends_nothing,
    a_nas_that_cannot_be_served_hurts_nobody,
    nases_come_change_and_go_on_sighup,
    nases_come_and_go_by_the_interval,
    hostile_values_arrive_as_data,
    logs_are_rotated_by_rename_without_a_signal,
);

/// The account of the classic example.
const USER: i64 = 1424;
const NAS: i64 = 1116;

/// Runs the documented command line, byte for byte but the port.
async fn curl(lab: &Lab, body: &str) -> Value {
    #[expect(
        clippy::disallowed_methods,
        reason = "the door is proved with the program that billing services call"
    )]
    let mut command = tokio::process::Command::new("curl");
    let output = command
        .args(["-s", "-XPOST"])
        .arg(lab.url("/rest_api/v2/EventsStackCompact/"))
        .args(["-d", body])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// One record without its time and origin, which are checked.
fn record<'a>(line: &'a str, daemon: &Daemon) -> &'a str {
    let (time, rest) = line.split_at(19);
    let form: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(form, "0000-00-00 00:00:00", "{line}");
    rest.strip_prefix(&origin(daemon)).expect(line)
}

async fn the_classic_curl_reaches_the_router_and_the_logs(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, NAS, "Mikrotik-Simple", 5).await;
    lab.accounts(NAS, [USER]).await;
    let daemon = lab.start().await;

    let blocked = lab.event(USER, "user_redirect").await;
    lab.drained().await;
    assert_eq!(router.listed("crb_negbal"), [address(USER)]);
    let body = "method1=objects.create&arg1={\"user_id\": 1424,\"cmd\":\"user_redirect_cancel\"}";
    let answer = curl(&lab, body).await;
    assert_eq!(answer["result"]["model"], "EventsStackCompact", "{answer}");
    assert_eq!(answer["result"]["fields"]["user_id"], 1424);
    let freed = answer["result"]["pk"].as_i64().unwrap();
    assert_eq!(lab.ended(freed).await, ("done".into(), "done".into()));
    assert_eq!(router.listed("crb_negbal"), [""; 0]);
    assert_eq!(lab.waiting().await, 0);
    let done = lab
        .rows("select id, event_type, result, attempts from events_done order by id")
        .await;
    assert_eq!(
        done,
        [
            [&blocked.to_string(), "user_redirect", "done", "1"],
            [&freed.to_string(), "user_redirect_cancel", "done", "1"]
        ]
    );

    let log = lab.daemon_log();
    let served: Vec<&str> = log
        .iter()
        .map(|line| record(line, &daemon))
        .filter(|line| line.starts_with("Start work"))
        .collect();
    let expected = format!(
        "Start work with nas nasid=1116 nas_ip=127.0.0.1 oss_pathname={}/oss/core/Mikrotik-Simple script_name=<null>",
        env!("CARGO_MANIFEST_DIR")
    );
    assert_eq!(served, [expected.as_str()]);

    let lines = lab.nas_log(NAS);
    assert_eq!(lines, lab.account_log(USER), "both logs hold the same");
    let mut records: Vec<&str> = lines.iter().map(|line| record(line, &daemon)).collect();
    for (id, cmd) in [(blocked, "user_redirect"), (freed, "user_redirect_cancel")] {
        let key = format!("event={id} user=1424 cmd={cmd} try=1 ");
        let mine: Vec<&str> = records
            .iter()
            .filter_map(|r| r.strip_prefix(&key))
            .collect();
        records.retain(|r| !r.starts_with(&key));
        assert_eq!(mine[0], "start", "{mine:?}");
        let sent = "> send_mikrotik_cmd --nas 1116 /ip/firewall/address-list/";
        assert!(mine.iter().any(|r| r.starts_with(sent)), "{mine:?}");
        for line in &mine[1..mine.len() - 1] {
            assert!(line.starts_with("> ") || line.starts_with("< "), "{line}");
        }
        let end = mine[mine.len() - 1].strip_prefix("end result=done code=0 ms=");
        assert!(end.is_some_and(|ms| ms.parse::<u32>().is_ok()), "{mine:?}");
    }
    assert_eq!(records, [""; 0], "nothing else in the NAS log");
    let said = [lab.daemon_log(), lines].concat().join("\n");
    assert!(!said.contains(PASSWORD), "the password is in a log");
    daemon.stop().await;
}

async fn rows_inserted_by_sql_are_found(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, NAS, "Mikrotik-Simple", 5).await;
    lab.accounts(NAS, 1..=5).await;
    let daemon = lab.start().await;
    // A row that cannot be expanded comes first and stands in nobody's way.
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_redirect', 77)")
        .await;
    for user in 1..=5 {
        lab.sql(&format!(
            "insert into events_stack_compact (cmd, user_id) values ('user_redirect', {user})"
        ))
        .await;
    }
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_redirect_cancel', 3)")
        .await;
    let left = lab
        .until("the good rows are done", async || {
            // The stack is asked first: the list is looked at only once nothing can change it.
            let ended = lab.waiting().await == 1;
            let listed = router.listed("crb_negbal");
            (ended && listed.len() == 4).then_some(listed)
        })
        .await;
    assert_eq!(left, [1, 2, 4, 5].map(address));
    let row = lab
        .rows("select user_id, error from events_stack_compact")
        .await;
    assert_eq!(row[0][0], "77");
    assert!(row[0][1].contains("77"), "the reason names it: {row:?}");
    lab.said("cannot be expanded").await;
    // The billing corrects its data: the row goes on by itself.
    lab.accounts(NAS, [77]).await;
    lab.drained().await;
    assert!(router.listed("crb_negbal").contains(&address(77)));
    daemon.stop().await;
}

async fn session_schemes_and_old_scripts_run(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let out = lab.path("out");
    lab.session(
        "Mine",
        &format!(
            "#/bin/bash\r\nuser_redirect() {{\r\n  echo \"session $cmd $user_id $ip $nas_id $nas_name $event_id $try_count $possible_duplicate $telnet_login\" >> {out}\r\n}}\r\n",
            out = out.display()
        ),
    );
    let script = lab.path("old-script");
    std::fs::write(
        &script,
        format!(
            "#!/bin/bash\necho \"script $1 $cmd $user_id $login\" >> {}\n",
            out.display()
        ),
    )
    .unwrap();
    lab.nas(1, "Mine", 2, &[]).await;
    lab.secret(1, "operator", PASSWORD).await;
    lab.sql(&format!(
        "insert into nas (id, name, ip, forks, script_name) values (2, 'old', '127.0.0.2', 1, '{}')",
        script.display()
    ))
    .await;
    lab.accounts(1, [10]).await;
    lab.accounts(2, [20]).await;
    let daemon = lab.start().await;
    let first = lab.event(10, "user_redirect").await;
    let second = lab.event(20, "user_accept").await;
    let third = lab.event(10, "user_accept").await;
    assert_eq!(lab.ended(first).await.1, "done");
    assert_eq!(lab.ended(second).await.1, "done");
    assert_eq!(
        lab.ended(third).await.1,
        "not_implemented",
        "the session has no function for it"
    );
    let text = std::fs::read_to_string(&out).unwrap();
    let lines: BTreeSet<&str> = text.lines().collect();
    let expected = format!("session user_redirect 10 0.0.10 1 bras1 {first} 1 0 operator");
    let expected = expected.replace(" 0.0.10 ", &format!(" {} ", address(10)));
    assert_eq!(
        lines,
        BTreeSet::from([
            expected.as_str(),
            "script user_accept user_accept 20 login20"
        ])
    );
    let line = lab.said("nasid=2 ").await;
    assert_eq!(
        record(&line, &daemon),
        format!(
            "Start work with nas nasid=2 nas_ip=127.0.0.2 oss_pathname=<null> script_name={}",
            script.display()
        )
    );
    daemon.stop().await;
}

async fn a_diagnostic_is_answered_through_rest(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let results = lab.path("results");
    std::fs::create_dir(&results).unwrap();
    lab.configure(&format!("[compat]\nresult_dir = {results:?}"), "");
    lab.session(
        "Mine",
        "user_info() { echo \"session of $login\"; echo \"second line\"; }",
    );
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 1, "Mikrotik-Simple", 1).await;
    lab.nas(2, "Mine", 1, &[]).await;
    lab.accounts(1, [10]).await;
    lab.accounts(2, [20]).await;
    let daemon = lab.start().await;
    lab.event(10, "user_redirect").await;
    lab.drained().await;
    let ask = async |user: i64| {
        let body = json!({"cmd": "user_info", "user_id": user});
        let (status, answer) = lab
            .try_post("/api/v1/events?wait=60s", &body, None)
            .await
            .unwrap();
        assert_eq!(status, 201, "{answer}");
        assert_eq!(answer["final"], true, "{answer}");
        let event = &answer["events"][0];
        assert_eq!(event["state"], "done", "{answer}");
        event["answer"].as_str().unwrap().to_owned()
    };
    let native = ask(10).await;
    assert!(native.contains("crb_negbal"), "{native}");
    assert!(native.contains(&address(10)), "{native}");
    assert_eq!(ask(20).await, "session of login20\nsecond line");
    let classic = std::fs::read_to_string(results.join("20_user_info")).unwrap();
    assert_eq!(classic, "session of login20\nsecond line");
    daemon.stop().await;
}

async fn observe_mode_sends_nothing(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let ran = lab.path("ran");
    lab.session(
        "Mine",
        &format!("user_redirect() {{ touch {}; }}", ran.display()),
    );
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 1, "Mikrotik-Simple", 2).await;
    lab.nas(2, "Mine", 2, &[]).await;
    lab.sql("update nas set mode = 'observe'").await;
    lab.accounts(1, [10]).await;
    lab.accounts(2, [20]).await;
    let daemon = lab.start().await;
    let native = lab.event(10, "user_redirect").await;
    let script = lab.event(20, "user_redirect").await;
    assert_eq!(lab.ended(native).await.1, "observed");
    assert_eq!(lab.ended(script).await.1, "observed");
    assert_eq!(router.sim.seen().connections, 0, "nobody connected");
    assert!(!ran.exists(), "no script ran");
    let log = lab.nas_log(1).join("\n");
    assert!(
        log.contains("> send_mikrotik_cmd --nas 1 /ip/firewall/address-list/add"),
        "{log}"
    );
    assert!(log.contains("end result=observed"), "{log}");
    // Switched over, the same event is really sent.
    lab.sql("update nas set mode = 'active'").await;
    daemon.signal(Signal::SIGHUP);
    lab.said("nasid=1 nas_ip=127.0.0.1 forks=2 mode=active")
        .await;
    lab.said("nasid=2 nas_ip=127.0.0.1 forks=2 mode=active")
        .await;
    lab.until("the commands arrive", async || {
        lab.event(10, "user_redirect").await;
        lab.event(20, "user_redirect").await;
        lab.drained().await;
        (ran.exists() && router.listed("crb_negbal").len() == 1).then_some(())
    })
    .await;
    daemon.stop().await;
}

async fn a_nas_that_cannot_be_served_hurts_nobody(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.native(
        "Broken",
        "driver = \"mikrotik\"\n[[on.user_add]]\nensure = 7\n",
    );
    lab.session("Unclosed", "user_redirect() { if true\n}\n");
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 1, "Mikrotik-Simple", 2).await;
    let bad = [
        (2, "Record", "'off'", "mode=off"),
        (3, "Record", "'sometimes'", "mode is 'sometimes'"),
        (4, "Broken", "'active'", "scheme.toml:3"),
        (5, "Nowhere", "'active'", "scheme directory missing"),
        (6, "Unclosed", "'active'", "bin/session cannot be loaded"),
    ];
    for (nas, scheme, mode, _) in bad {
        lab.nas(nas, scheme, 2, &[("mode", mode.to_owned())]).await;
    }
    for nas in 1..=6 {
        lab.accounts(nas, [nas * 10]).await;
    }
    let daemon = lab.start().await;
    let mut waiting = Vec::new();
    for (nas, ..) in bad {
        waiting.push(lab.event(nas * 10, "user_redirect").await);
    }
    let good = lab.event(10, "user_redirect").await;
    assert_eq!(lab.ended(good).await.1, "done");
    // Read again and again, each reason is told once.
    lab.reload(&daemon).await;
    lab.reload(&daemon).await;
    lab.native("Whole", &own_scheme());
    router.serve_as(&lab, 7, "Whole", 2).await;
    daemon.signal(Signal::SIGHUP);
    lab.said("Start work with nas nasid=7 ").await;
    let log = lab.daemon_log();
    for (nas, _, _, reason) in bad {
        let skip = format!("Skip nas nasid={nas} ");
        let lines: Vec<&String> = log.iter().filter(|l| l.contains(&skip)).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let (_, why) = lines[0].split_once(" reason=").unwrap();
        assert!(why.contains(reason), "{why}");
    }
    let left = lab
        .rows("select id, state, try_count from events_stack order by id")
        .await;
    let expected: Vec<Vec<String>> = waiting
        .iter()
        .map(|id| vec![id.to_string(), "ready".into(), "0".into()])
        .collect();
    assert_eq!(left, expected);
    // Mended, their events go on.
    lab.sql("update nas set mode = 'active', oss_path = 'Record' where id between 2 and 6")
        .await;
    daemon.signal(Signal::SIGHUP);
    lab.drained().await;
    daemon.stop().await;
}

/// A scheme that carries what the journals and some tests look for.
fn own_scheme() -> String {
    "driver = \"mikrotik\"\n\
     [[on.user_redirect]]\n\
     ensure = \"/ip/firewall/address-list\"\n\
     where = { list = \"l{{ user_id }}\", address = \"{{ ip }}\" }\n\
     set = { comment = \"{{ login }}\" }\n"
        .to_owned()
}

async fn nases_come_change_and_go_on_sighup(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let old = Router::start(lab.root(), "old", Faults::default());
    let new = Router::start(lab.root(), "new", Faults::default());
    lab.native("Own", &own_scheme());
    lab.accounts(1, [10, 11, 12]).await;
    let daemon = lab.start().await;
    // Nobody knows the NAS yet: its account's event waits on the compact stack.
    let first = lab.event(10, "user_redirect").await;
    lab.said("cannot be expanded").await;
    old.serve_as(&lab, 1, "Own", 2).await;
    daemon.signal(Signal::SIGHUP);
    lab.said("Start work with nas nasid=1 ").await;
    assert_eq!(lab.ended(first).await.1, "done");
    assert_eq!(old.listed("l10").len(), 1);
    // The NAS moves to another port.
    let port = new.sim.addr().port();
    lab.sql(&format!("update nas set api_port = {port} where id = 1"))
        .await;
    daemon.signal(Signal::SIGHUP);
    lab.said("Change work with nas nasid=1 ").await;
    lab.until("an event goes to the new router", async || {
        let id = lab.event(11, "user_redirect").await;
        lab.ended(id).await;
        (new.listed("l11").len() == 1).then_some(())
    })
    .await;
    // It is taken away with an event waiting, and comes back.
    lab.sql("update nas set mode = 'off' where id = 1").await;
    daemon.signal(Signal::SIGHUP);
    lab.said("Stop work with nas nasid=1 nas_ip=127.0.0.1 reason=mode=off")
        .await;
    lab.until("nothing is served", async || {
        (lab.scheduler().await?["nases"] == json!([])).then_some(())
    })
    .await;
    let waits = lab.event(12, "user_redirect").await;
    lab.until("it is expanded", async || {
        let state = format!("select state from events_stack where id = {waits}");
        (lab.rows(&state).await == [["ready"]]).then_some(())
    })
    .await;
    lab.sql("update nas set mode = 'active' where id = 1").await;
    daemon.signal(Signal::SIGHUP);
    assert_eq!(lab.ended(waits).await.1, "done");
    assert_eq!(new.listed("l12").len(), 1);
    lab.said_times("Start work with nas nasid=1 ", 2).await;
    daemon.stop().await;
}

async fn nases_come_and_go_by_the_interval(kind: Kind) {
    let lab = Lab::new(kind, "settings_interval = \"100ms\"").await;
    let daemon = lab.start().await;
    lab.nas(1, "Record", 2, &[]).await;
    lab.said("Start work with nas nasid=1 ").await;
    lab.sql("update nas set forks = 3 where id = 1").await;
    lab.said("Change work with nas nasid=1 nas_ip=127.0.0.1 forks=3 ")
        .await;
    lab.sql("delete from nas where id = 1").await;
    lab.said("Stop work with nas nasid=1 nas_ip=127.0.0.1 reason=its row is gone")
        .await;
    daemon.stop().await;
}

async fn hostile_values_arrive_as_data(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let canary = lab.path("canary");
    let touch = format!("touch {}", canary.display());
    let values = [
        "it's \"quoted\"".to_owned(),
        "two\nlines\r\nand a\ttab".to_owned(),
        format!("$({touch})`{touch}`; {touch} & {touch} | {touch}"),
        format!("'; {touch}; echo '\" ; {touch} #"),
        "${IFS} $0 \\ % %n {{ nas_ip }} {% raw %} ../../etc/passwd".to_owned(),
        "=.id=* ?name=x .tag=7 [/system reboot]".to_owned(),
        "-rf --config=/etc/shadow".to_owned(),
        "\u{1b}[31mred\u{202e} \u{2028} ünïcode ыйъ".to_owned(),
        "' or 1=1; drop table users; --".to_owned(),
        " ".to_owned(),
    ];
    let out = lab.path("values");
    std::fs::create_dir(&out).unwrap();
    lab.session(
        "Mine",
        &format!(
            "user_redirect() {{ printf %s \"$login\" > {}/$user_id; echo \"got $login\"; }}",
            out.display()
        ),
    );
    lab.native("Own", &own_scheme());
    let router = Router::start(lab.root(), "router", Faults::default());
    router.serve_as(&lab, 1, "Own", 2).await;
    lab.nas(2, "Mine", 2, &[]).await;
    lab.accounts(1, 100..100 + values.len() as i64).await;
    lab.accounts(2, 200..200 + values.len() as i64).await;
    let large = "1".repeat(1_000_000);
    lab.accounts(1, [190]).await;
    lab.accounts(2, [290]).await;
    let daemon = lab.start().await;
    let mut events = Vec::new();
    for (n, value) in (0..).zip(&values) {
        let quoted = value.replace('\'', "''");
        // Half of them stand in the billing, half come with the event.
        if n % 2 == 0 {
            lab.sql(&format!(
                "update users set login = '{quoted}' where id in ({}, {})",
                100 + n,
                200 + n
            ))
            .await;
        }
        for user in [100 + n, 200 + n] {
            let mut event = json!({"cmd": "user_redirect", "user_id": user});
            if n % 2 == 1 {
                event["params"] = json!({ "login": value });
            }
            events.push(lab.post(event).await[0]);
        }
    }
    for id in events {
        assert_eq!(lab.ended(id).await.1, "done", "event {id}");
    }
    for (n, value) in (0..).zip(&values) {
        let got = std::fs::read(out.join((200 + n).to_string())).unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), *value);
        let rows = router.sim.rows("/ip/firewall/address-list");
        let list = format!("l{}", 100 + n);
        let row = rows.iter().find(|r| r["list"] == list).unwrap();
        assert_eq!(row["comment"], *value);
    }
    // A megabyte: a router takes it, a program's environment cannot.
    lab.sql(&format!(
        "update users set login = '{large}' where id in (190, 290)"
    ))
    .await;
    let fits = lab.event(190, "user_redirect").await;
    assert_eq!(lab.ended(fits).await.1, "done");
    let rows = router.sim.rows("/ip/firewall/address-list");
    let row = rows.iter().find(|r| r["list"] == "l190").unwrap();
    assert!(row["comment"] == large);
    let cannot = lab.event(290, "user_redirect").await;
    let (place, reason) = lab.ended(cannot).await;
    assert_eq!(place, "dead");
    assert!(reason.contains("login has 1000000 bytes"), "{reason}");
    // NUL cannot be a text of a database everywhere, nor a variable of a program.
    let body = json!({"cmd": "user_redirect", "user_id": 200, "params": {"login": "a\u{0}b"}});
    let (status, answer) = lab.try_post("/api/v1/events", &body, None).await.unwrap();
    if status == 201 {
        let id = lab::daemon::ids(&answer)[0];
        let (place, reason) = lab.ended(id).await;
        assert_eq!(place, "dead");
        assert!(reason.contains("NUL"), "{reason}");
    } else {
        assert_eq!(status, 400, "{answer}");
        assert!(answer.to_string().contains("NUL"), "{answer}");
    }
    assert!(!canary.exists(), "a value was executed");
    for user in (100..110).chain(200..210) {
        for line in lab.account_log(user) {
            assert!(record(&line, &daemon).starts_with("event="), "{line}");
            assert!(!line.chars().any(char::is_control), "{line}");
        }
    }
    daemon.stop().await;
}

async fn logs_are_rotated_by_rename_without_a_signal(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(1, "Record", 2, &[]).await;
    lab.accounts(1, [10]).await;
    let daemon = lab.start().await;
    let names = [
        "nas_event_daemon.log".to_owned(),
        "nas_event_daemon/bras1_127.0.0.1.log".to_owned(),
        account_log_name(10),
    ];
    let first = lab.event(10, "user_redirect").await;
    lab.ended(first).await;
    for name in &names {
        let path = lab.path("log").join(name);
        std::fs::rename(&path, path.with_extension("log.1")).unwrap();
    }
    // A while may pass until the daemon looks whether its open file is still the named one.
    let last = lab
        .until("the new files are there", async || {
            let id = lab.event(10, "user_redirect_cancel").await;
            lab.ended(id).await;
            let found = !lab.nas_log(1).is_empty() && !lab.account_log(10).is_empty();
            found.then_some(id)
        })
        .await;
    lab.sql("update nas set forks = 3").await;
    daemon.signal(Signal::SIGHUP);
    lab.said("Change work with nas nasid=1 ").await;
    for name in &names[1..] {
        let old = lab.log(&format!("{name}.1")).join("\n");
        let new = lab.log(name).join("\n");
        let (first, last) = (format!("event={first} "), format!("event={last} "));
        assert!(old.contains(&first) && !new.contains(&first), "{name}");
        assert!(new.contains(&last) && !old.contains(&last), "{name}");
    }
    // Between the two files no record is missing.
    let events = lab.number("select count(*) from events_done").await;
    for name in &names[1..] {
        let all = [lab.log(&format!("{name}.1")), lab.log(name)].concat();
        let ends = all
            .iter()
            .filter(|l| l.contains(" end result=done "))
            .count();
        assert_eq!(i64::try_from(ends).unwrap(), events, "{name}");
    }
    daemon.stop().await;
}
