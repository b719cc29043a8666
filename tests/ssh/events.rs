//! From an event to a command on a NAS: the real daemon, a scheme with `driver = "ssh"`, and a
//! real server.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::daemon::{Lab, account_log_name};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sshd::Sshd;
use crate::logins::old_server;
use crate::tools::ned;

on_each_store!(
    an_event_becomes_a_command_and_its_exit_status_the_outcome,
    a_host_key_is_learned_and_a_changed_one_parks_the_nas,
    a_server_that_dies_in_mid_command_means_perhaps,
    scripts_ride_on_the_daemons_connection,
);

const SCHEME: &str = r#"
driver = "ssh"
exit = { done = [0, 5], defer = [75] }
[[on.user_redirect]]
exec = ["cat >>{{ nas.dir }}/$USER.batch", ]
stdin = "add {{ ip }}\n"
[[on.user_redirect]]
exec = ["echo {{ login }} >>{{ nas.dir }}/words", "echo second"]
save = "said"
[[on.user_redirect]]
assert = "said.lines == ['second'] and said.code == 0 and said.rows|length == 2"
otherwise = "dead"
[[on.user_add]]
exec = ["exit 5"]
[[on.user_drop]]
exec = ["echo broken >&2; exit 1"]
[[on.user_accept]]
exec = ["exit 75"]
[[on.user_del]]
exec = ["echo 'No such file' >&2; exit 1", "echo 'Permission denied' >&2; exit 1", "touch {{ nas.dir }}/after"]
abort = ["touch {{ nas.dir }}/undone"]
ok_on = ["No such file"]
[[on.user_edit]]
exec = ["echo x >>{{ nas.dir }}/began; test -e {{ nas.dir }}/go || exec sleep 60"]
[[on.user_info]]
exec = ["exit 4", "echo seen {{ ip }}"]
save = "t"
fail = "continue"
[[on.user_info]]
answer = "{{ t.code }} {{ t.rows[0].code }} {{ t.lines[-1] }}"
"#;

/// A NAS behind `sshd` with the scheme above.
async fn nas_of(lab: &Lab, sshd: &Sshd, host_key: &str) {
    lab.native("Ssh", SCHEME);
    let vars = format!("'{{\"dir\": \"{}\"}}'", lab.root().display());
    let columns = [
        ("ssh_port", sshd.port.to_string()),
        ("ssh_host_key", format!("'{host_key}'")),
        ("vars", vars),
    ];
    lab.nas(1, "Ssh", 10, &columns).await;
    lab.sql(&format!(
        "insert into nas_secret (nas_id, login, ssh_key) values (1, 'root', '{}')",
        sshd.client_key()
    ))
    .await;
}

async fn an_event_becomes_a_command_and_its_exit_status_the_outcome(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"100ms\"\nmax_tries = 2").await;
    let sshd = Sshd::start(&[]).await;
    nas_of(&lab, &sshd, &sshd.fingerprint("host").await).await;
    lab.accounts(1, 10..20).await;
    lab.sql("update users set login = 'it''s $(touch /tmp/never) `x`' where id = 10")
        .await;
    let daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    let id = lab.event(10, "user_redirect").await;
    assert_eq!(lab.ended(id).await, done, "{:?}", lab.account_log(10));
    let words = std::fs::read_to_string(lab.path("words")).unwrap();
    assert_eq!(words, "it's $(touch /tmp/never) `x`\n");
    let batch = std::fs::read_to_string(lab.path("root.batch")).unwrap();
    assert_eq!(batch, "add 10.0.0.10\n");
    let log = lab.account_log(10).join("\n");
    for part in ["> send_ssh_cmd --nas 1 ", "<<< 'add 10.0.0.10'", "< second"] {
        assert!(log.contains(part), "{part} in {log}");
    }
    let add = lab.event(11, "user_add").await;
    assert_eq!(lab.ended(add).await, done, "the scheme maps 5 to done");
    let drop = lab.event(12, "user_drop").await;
    let (table, reason) = lab.ended(drop).await;
    assert_eq!(table, "dead");
    assert!(reason.contains("exit status 1: broken"), "{reason}");
    let later = lab.event(13, "user_accept").await;
    let (table, reason) = lab.ended(later).await;
    assert_eq!(table, "dead");
    assert!(reason.contains("2 tries"), "{reason}");
    // An answer that is fine for one line excuses no other, and what began is undone.
    let del = lab.event(14, "user_del").await;
    let (table, reason) = lab.ended(del).await;
    assert_eq!(table, "dead");
    assert!(reason.contains("Permission denied"), "{reason}");
    assert!(lab.path("undone").exists() && !lab.path("after").exists());
    let info = lab.event(15, "user_info").await;
    assert_eq!(lab.ended(info).await, done, "{:?}", lab.account_log(15));
    let answer = format!("select answer from events_done where id = {info}");
    assert_eq!(lab.rows(&answer).await[0][0], "4 4 seen 10.0.0.15");
    // How its sessions stand is told.
    let status = lab.scheduler().await.unwrap();
    let seen = &status["nases"][0]["sessions"][0];
    assert_eq!(
        (&seen["driver"], &seen["open"]),
        (&json!("ssh"), &json!(1)),
        "{status}"
    );
    assert_eq!(
        (&seen["logins"], &seen["waiting"]),
        (&json!(1), &json!(0)),
        "{status}"
    );
    // One login served them all, which the log says of the first; and no log holds the key.
    assert_eq!((sshd.logins(), lab.opened(1)), (1, 1));
    let secret = sshd.client_key();
    let secret = secret.lines().nth(2).unwrap();
    for log in ["nas_event_daemon.log", &account_log_name(10)] {
        assert!(!lab.log(log).join("\n").contains(secret), "{log}");
    }
    daemon.stop().await;
}

async fn a_host_key_is_learned_and_a_changed_one_parks_the_nas(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let mut sshd = Sshd::start(&[]).await;
    nas_of(&lab, &sshd, "tofu").await;
    lab.accounts(1, 10..20).await;
    let daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    let id = lab.event(10, "user_redirect").await;
    assert_eq!(lab.ended(id).await, done);
    let known = lab
        .until("the key is written down", async || {
            let rows = lab.rows("select ssh_host_key from nas_state").await;
            rows.first().map(|row| row[0].clone())
        })
        .await;
    assert!(sshd.read("host.pub").starts_with(&known), "{known}");
    // Another key: nothing is sent, no try is burnt, an alarm names both.
    let old = sshd.fingerprint("host").await;
    sshd.down().await;
    sshd.key("host", &["-t", "ed25519"]).await;
    sshd.up().await;
    let waits = lab.event(11, "user_redirect").await;
    let alarm = lab.said("NAS is parked").await;
    let new = sshd.fingerprint("host").await;
    for part in ["host key has changed", &old, &new] {
        assert!(alarm.contains(part), "{part} in {alarm}");
    }
    let stands = format!("select state, try_count from events_stack where id = {waits}");
    lab.until("the event waits and has lost no try", async || {
        let row = lab.rows(&stands).await.pop()?;
        (row == ["ready", "0"]).then_some(())
    })
    .await;
    // The operator looks at both. Where nobody can be asked, that changes nothing.
    let rekey = async |args: &[&str]| {
        let words = [&["nas", "rekey", "1"][..], args].concat();
        let said = ned(&lab, "nas_event_daemon", &words).await;
        for (name, key) in [("believed: ", &old), ("presented: ", &new)] {
            let shown = |line: &str| line.starts_with(name) && line.contains(key.as_str());
            assert!(said.out.lines().any(shown), "{name} {key} in {}", said.out);
        }
        said
    };
    let believed = async || {
        lab.rows("select ssh_host_key from nas_state")
            .await
            .remove(0)
    };
    let rekeyed = "select count(*) from audit where what = 'nas_rekey'";
    let looked = rekey(&[]).await;
    assert_eq!(looked.code, 2, "{}", looked.err);
    assert!(looked.err.contains("-y"), "{}", looked.err);
    let tried = rekey(&["-y", "--dry-run"]).await;
    assert_eq!(tried.code, 0, "{}", tried.err);
    assert!(tried.err.contains("dry run: "), "{}", tried.err);
    assert_eq!(believed().await, [known.as_str()]);
    assert_eq!(lab.number(rekeyed).await, 0);
    assert_eq!(lab.rows(&stands).await, [["ready", "0"]]);
    // He takes the new one: the event runs.
    let took = rekey(&["-y"]).await;
    assert_eq!(took.code, 0, "{}", took.err);
    let now = believed().await.remove(0);
    assert!(sshd.read("host.pub").starts_with(&now), "{now}");
    daemon.signal(Signal::SIGHUP);
    assert_eq!(lab.ended(waits).await, done);
    assert_eq!(lab.number(rekeyed).await, 1);
    daemon.stop().await;
}

/// `nas.vars.ssh_legacy` on its way from the row to the handshake.
#[tokio::test]
async fn an_old_server_obeys_once_its_nas_says_so() {
    let lab = Lab::new(Kind::Sqlite, "").await;
    let sshd = old_server().await;
    nas_of(&lab, &sshd, "tofu").await;
    lab.accounts(1, [10]).await;
    let daemon = lab.start().await;
    let id = lab.event(10, "user_redirect").await;
    let alarm = lab.said("NAS is parked").await;
    assert!(alarm.contains("ssh_legacy"), "{alarm}");
    assert_eq!(sshd.logins(), 0);
    let vars = json!({"dir": lab.root(), "ssh_legacy": true});
    lab.sql(&format!("update nas set vars = '{vars}' where id = 1"))
        .await;
    lab.reload(&daemon).await;
    let done = ("done".to_owned(), "done".to_owned());
    assert_eq!(lab.ended(id).await, done, "{:?}", lab.account_log(10));
    assert!(lab.path("root.batch").exists());
    assert_eq!(sshd.logins(), 1);
    daemon.stop().await;
}

async fn a_server_that_dies_in_mid_command_means_perhaps(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"100ms\"").await;
    let sshd = Sshd::start(&[]).await;
    nas_of(&lab, &sshd, "tofu").await;
    lab.accounts(1, 10..20).await;
    let daemon = lab.start().await;
    let id = lab.event(10, "user_edit").await;
    let other = lab.event(11, "user_edit").await;
    let began = lab.path("began");
    lab.until("both commands run", async || {
        let text = std::fs::read_to_string(&began).ok()?;
        (text == "x\nx\n").then_some(())
    })
    .await;
    std::fs::write(lab.path("go"), "").unwrap();
    sshd.kill_sessions();
    for id in [id, other] {
        let done = ("done".to_owned(), "done".to_owned());
        assert_eq!(lab.ended(id).await, done, "{:?}", lab.nas_log(1));
        let row = format!("select attempts, possible_duplicate from events_done where id = {id}");
        let row = lab.rows(&row).await.remove(0);
        assert_eq!(row[0], "2", "it was run again");
        assert!(matches!(row[1].as_str(), "1" | "t" | "true"), "{row:?}");
    }
    let log = lab.nas_log(1).join("\n");
    assert!(log.contains("may have been carried out"), "{log}");
    assert!(log.contains("end result=deferred code=254"), "{log}");
    daemon.stop().await;
}

/// Uses the helper as an operator's script does, the password-free form and the classic one.
const SCRIPT: &str = r#"
user_redirect() {
    out=$(send_ssh_cmd --nas "$nas_id" "cat; echo from $ip; exit 3" <<< batch 2>/dev/null)
    [ $? = 3 ] && [ "$out" = "batch
from $ip" ] && exit 0
    echo "got: $out"
    exit 1
}
user_drop() { send_ssh_cmd -s 192.0.2.1 root x true; exit $?; }
"#;

async fn scripts_ride_on_the_daemons_connection(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let sshd = Sshd::start(&[]).await;
    nas_of(&lab, &sshd, "tofu").await;
    lab.session("Script", SCRIPT);
    lab.sql("update nas set oss_path = 'Script' where id = 1")
        .await;
    lab.accounts(1, 10..20).await;
    let daemon = lab.start().await;
    let mut ids = Vec::new();
    for user in 10..16 {
        ids.push(lab.event(user, "user_redirect").await);
    }
    for id in ids {
        let done = ("done".to_owned(), "done".to_owned());
        assert_eq!(lab.ended(id).await, done, "{:#?}", lab.nas_log(1));
    }
    assert_eq!(sshd.logins(), 1, "one login for six scripts");
    let log = lab.account_log(10).join("\n");
    for part in [
        "> send_ssh_cmd --nas 1 'cat; echo from ",
        "<<< batch",
        "< from 10.0.0.10",
    ] {
        assert!(log.contains(part), "{part} in {log}");
    }
    // Another device is not for this script.
    let drop = lab.event(16, "user_drop").await;
    let (table, reason) = lab.ended(drop).await;
    assert_eq!(table, "dead", "{reason}");
    assert!(lab.account_log(16).join("\n").contains("not for 192.0.2.1"));
    daemon.stop().await;
}
