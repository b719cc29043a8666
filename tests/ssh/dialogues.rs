//! Dialogues with a command line over SSH: FRR's (package frr), a router's CLI with modes, behind
//! sshd in a network namespace, where an event really changes a route; and a shell's.

use std::process::Stdio;

use tokio::process::Child;

use crate::lab::daemon::{Lab, wait_for};
use crate::lab::db::Kind;
use crate::lab::sshd::{Sshd, program, run};

/// Routes as an operator would type them.
const SCHEME: &str = r#"
driver = "ssh"
shell = "plain"
[[part.block]]
exec = ["configure terminal", "ip route {{ ip }}/32 blackhole", "end"]
abort = ["end"]
[[on.user_drop]]
run = "block"
[[on.user_accept]]
exec = ["configure terminal", "no ip route {{ ip }}/32 blackhole", "end"]
ok_on = ["non-existent route"]
abort = ["end"]
[[on.user_redirect]]
exec = ["configure terminal", "no such command {{ ip }}", "end"]
abort = ["end"]
[[on.user_edit]]
exec = ["show ip route {{ login }}"]
[[on.user_info]]
exec = ["show ip route {{ ip }}"]
save = "t"
[[on.user_info]]
answer = "{{ 'blocked' if 'blackhole' in t.text else 'open' }}"
"#;

/// zebra and staticd in a namespace of their own; both end with it.
struct Frr {
    netns: String,
    dir: tempfile::TempDir,
    daemons: Vec<Child>,
}

impl Frr {
    async fn new() -> Self {
        let netns = format!("ned-frr-{:08x}", getrandom::u32().unwrap());
        run(&["ip", "netns", "add", &netns]).await;
        let frr = Self {
            netns,
            dir: tempfile::tempdir().unwrap(),
            daemons: Vec::new(),
        };
        run(&["ip", "-n", &frr.netns, "link", "set", "lo", "up"]).await;
        let d = frr.dir.path().display().to_string();
        std::fs::create_dir(frr.dir.path().join("run")).unwrap();
        for (name, text) in [("zebra", "hostname nas\n"), ("staticd", ""), ("vtysh", "")] {
            std::fs::write(frr.dir.path().join(format!("{name}.conf")), text).unwrap();
        }
        run(&["chmod", "755", &d]).await;
        run(&["chown", "-R", "frr:frr", &d]).await;
        let mut frr = frr;
        for name in ["zebra", "staticd"] {
            let file = |end: &str| format!("{d}/{name}.{end}");
            let child = program("ip")
                .args(["netns", "exec", &frr.netns, &format!("/usr/lib/frr/{name}")])
                .args([
                    "-f",
                    &file("conf"),
                    "-i",
                    &file("pid"),
                    "-z",
                    &format!("{d}/z.api"),
                ])
                .args([
                    "--vty_socket",
                    &format!("{d}/run"),
                    "-u",
                    "frr",
                    "-g",
                    "frr",
                    "-P",
                    "0",
                ])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            frr.daemons.push(child);
            let socket = frr.dir.path().join(format!("run/{name}.vty"));
            let up = wait_for(async || socket.exists().then_some(())).await;
            assert!(
                up.is_some(),
                "{name} does not start: scripts/test --install"
            );
        }
        frr
    }

    /// Waits until so many addresses are blocked: zebra tells the kernel a moment later.
    async fn blocks(&self, count: usize) {
        let mut last = String::new();
        let so_many = wait_for(async || {
            last = self.routes().await;
            (last.lines().count() == count).then_some(())
        });
        assert!(so_many.await.is_some(), "not {count}: {last}");
    }

    async fn routes(&self) -> String {
        run(&[
            "ip",
            "-n",
            &self.netns,
            "route",
            "show",
            "type",
            "blackhole",
        ])
        .await
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        self.daemons.clear();
        #[expect(clippy::disallowed_methods, reason = "the peers are programs")]
        let _ = std::process::Command::new("ip")
            .args(["netns", "del", &self.netns])
            .output();
    }
}

async fn nas_of(lab: &Lab, sshd: &Sshd, scheme: &str) {
    lab.native("Dialogue", scheme);
    let columns = [
        ("ssh_port", sshd.port.to_string()),
        ("ssh_host_key", "'tofu'".to_owned()),
    ];
    lab.nas(1, "Dialogue", 5, &columns).await;
    lab.sql(&format!(
        "insert into nas_secret (nas_id, login, ssh_key) values (1, 'root', '{}')",
        sshd.client_key()
    ))
    .await;
    lab.accounts(1, 10..30).await;
}

#[tokio::test]
async fn an_event_changes_a_route_of_frr_behind_sshd() {
    let frr = Frr::new().await;
    let d = frr.dir.path().display();
    let vtysh = format!("ForceCommand /usr/bin/vtysh --vty_socket {d}/run --config_dir {d}");
    let sshd = Sshd::start_in(&frr.netns, &[&vtysh]).await;
    let lab = Lab::new(Kind::Sqlite, "").await;
    nas_of(&lab, &sshd, SCHEME).await;
    let daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    let ended = async |user: i64, cmd: &str| {
        let id = lab.event(user, cmd).await;
        (id, lab.ended(id).await)
    };
    for round in 0..2 {
        assert_eq!(
            ended(10, "user_drop").await.1,
            done,
            "{round}: {:#?}",
            lab.account_log(10)
        );
        frr.blocks(1).await;
        assert!(frr.routes().await.contains("10.0.0.10"));
    }
    let (id, _) = ended(10, "user_info").await;
    let answer = format!("select answer from events_done where id = {id}");
    assert_eq!(lab.rows(&answer).await[0][0], "blocked");
    // What the device does not understand is final, and leaves no mode behind.
    let (_, (table, reason)) = ended(11, "user_redirect").await;
    assert_eq!(table, "dead");
    assert!(reason.contains("Unknown command"), "{reason}");
    let log = lab.account_log(11).join("\n");
    assert!(!log.contains("is closed"), "{log}");
    for _ in 0..2 {
        assert_eq!(
            ended(10, "user_accept").await.1,
            done,
            "{:#?}",
            lab.account_log(10)
        );
        frr.blocks(0).await;
    }
    // A value that could be syntax is refused before anything is sent.
    lab.sql("update users set login = '10.0.0.1 | exclude' where id = 12")
        .await;
    let (_, (table, reason)) = ended(12, "user_edit").await;
    assert!(
        table == "dead" && reason.contains("a plain line takes only"),
        "{reason}"
    );
    // Many at once share few sessions and one login.
    let mut ids = Vec::new();
    for user in 13..30 {
        ids.push(lab.event(user, "user_drop").await);
    }
    for id in ids {
        assert_eq!(lab.ended(id).await, done, "{:#?}", lab.nas_log(1));
    }
    frr.blocks(17).await;
    assert_eq!(sshd.logins(), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn lines_of_a_dialogue_share_one_session_and_its_mode() {
    let sshd = Sshd::start(&[]).await;
    std::fs::write(sshd.path(".bashrc"), "PS1='nas# '\n").unwrap();
    let lab = Lab::new(Kind::Sqlite, "").await;
    let scheme = r#"
driver = "ssh"
shell = "plain"
[[on.user_add]]
exec = ["x={{ user_id }}", "cd /usr/lib", "echo $PWD $x", "cd /"]
save = "t"
[[on.user_add]]
assert = "t.rows[2].out == '/usr/lib ' ~ user_id and t.rows|length == 4"
otherwise = "dead"
[[on.user_del]]
exec = ["seq 1 3000"]
save = "t"
[[on.user_del]]
assert = "t.lines|length == 3000 and t.lines[2999] == '3000'"
otherwise = "dead"
"#;
    nas_of(&lab, &sshd, scheme).await;
    let daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    for user in 10..16 {
        let id = lab.event(user, "user_add").await;
        assert_eq!(lab.ended(id).await, done, "{:#?}", lab.account_log(user));
    }
    let id = lab.event(10, "user_del").await;
    assert_eq!(lab.ended(id).await, done, "a long answer");
    assert_eq!(sshd.logins(), 1);
    daemon.stop().await;
}
