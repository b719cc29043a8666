//! Dialogues with a command line over SSH: FRR's (package frr), a router's CLI with modes, behind
//! sshd in a network namespace, where an event really changes a route; and a shell's.

use std::process::Stdio;

use tokio::process::Child;

use crate::lab::daemon::{Lab, wait_for};
use crate::lab::db::Kind;
use crate::lab::sshd::{Sshd, program, run};
use crate::lab::vty::{ASKING, asks_and_refuses};

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
        for words in [
            "link set lo up",
            "link add nas0 type veth peer name cli0",
            "addr add 10.90.0.1/24 dev nas0",
            "addr add 2001:db8:90::1/64 dev nas0 nodad",
            "link set nas0 up",
            "link set cli0 up",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            run(&[&["ip", "-n", &frr.netns][..], &words].concat()).await;
        }
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

    /// Waits until the route of exactly this net says so; empty: until there is none.
    async fn route(&self, net: &str, wanted: &str) {
        let family = if net.contains(':') { "-6" } else { "-4" };
        let mut last = String::new();
        let so = wait_for(async || {
            let words = [
                "ip",
                "-n",
                &self.netns,
                family,
                "route",
                "show",
                "exact",
                net,
            ];
            last = run(&words).await;
            let fits = if wanted.is_empty() {
                last.trim().is_empty()
            } else {
                last.contains(wanted)
            };
            fits.then_some(())
        });
        assert!(so.await.is_some(), "{net}, not {wanted:?}: {last}");
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

/// A login whose shell is FRR's, in its namespace.
async fn vtysh(frr: &Frr) -> Sshd {
    let d = frr.dir.path().display();
    let vtysh = format!("ForceCommand /usr/bin/vtysh --vty_socket {d}/run --config_dir {d}");
    Sshd::start_in(&frr.netns, &[&vtysh]).await
}

/// oss/core/FRR-Vty with two other lines at its top, as its README says.
#[tokio::test]
async fn the_shipped_scheme_for_frr_speaks_over_ssh_as_well() {
    let frr = Frr::new().await;
    let sshd = vtysh(&frr).await;
    let lab = Lab::new(Kind::Sqlite, "").await;
    let shipped = include_str!("../../oss/core/FRR-Vty/scheme.toml");
    let telnet = "\ndriver = \"telnet\"\n";
    assert_eq!(shipped.matches(telnet).count(), 1);
    let scheme = shipped.replace(telnet, "\ndriver = \"ssh\"\nshell = \"plain\"\n");
    nas_of(&lab, &sshd, &scheme).await;
    lab.sql(
        "update nas set vars = '{\"via\": \"10.90.0.2\", \"via6\": \"2001:db8:90::2\"}';
         update users set addresses = '[\"10.0.0.10\", \"2001:db8:1::/56\"]' where id = 10",
    )
    .await;
    let daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    let go = async |cmd: &str| {
        let id = lab.event(10, cmd).await;
        let ended = lab.ended(id).await;
        assert_eq!(ended, done, "{cmd}: {:#?}", lab.account_log(10));
        id
    };
    let stands = async |v4: &str, v6: &str| {
        frr.route("10.0.0.10/32", v4).await;
        frr.route("2001:db8:1::/56", v6).await;
    };
    let open = ("via 10.90.0.2", "via 2001:db8:90::2");
    // Each twice: the second changes nothing.
    for cmd in ["user_add", "user_add"] {
        go(cmd).await;
        stands(open.0, open.1).await;
    }
    let accept = async |flag: i64| {
        lab.sql(&format!("update users set accept = {flag} where id = 10"))
            .await;
    };
    accept(0).await;
    for cmd in ["user_drop", "user_drop"] {
        go(cmd).await;
        stands("blackhole", "blackhole").await;
    }
    let info = go("user_info").await;
    let answer = format!("select answer from events_done where id = {info}");
    let answer = lab.rows(&answer).await.remove(0).remove(0);
    for line in [
        "ip route 10.0.0.10/32 blackhole",
        "ipv6 route 2001:db8:1::/56 blackhole",
    ] {
        assert!(answer.contains(line), "{line} in {answer}");
    }
    accept(1).await;
    for cmd in ["user_accept", "user_accept"] {
        go(cmd).await;
        stands(open.0, open.1).await;
    }
    for cmd in ["user_del", "user_del"] {
        go(cmd).await;
        stands("", "").await;
    }
    assert_eq!(sshd.logins(), 1);
    let log = lab.account_log(10).join("\n");
    assert!(!log.contains("is closed"), "{log}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_event_changes_a_route_of_frr_behind_sshd() {
    let frr = Frr::new().await;
    let sshd = vtysh(&frr).await;
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
[[on.user_drop]]
exec = ["script -qc 'seq 1 1200 | more' {{ nas.dir }}/shown", "echo well"]
save = "t"
[[on.user_drop]]
assert = "t.lines|length == 1201 and t.lines[1199] == '1200' and t.rows[1].out == 'well'"
otherwise = "dead"
"#;
    nas_of(&lab, &sshd, scheme).await;
    marks_in(&lab).await;
    let daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    for user in 10..16 {
        let id = lab.event(user, "user_add").await;
        assert_eq!(lab.ended(id).await, done, "{:#?}", lab.account_log(user));
    }
    let id = lab.event(10, "user_del").await;
    assert_eq!(lab.ended(id).await, done, "a long answer");
    // A pager: script(1) keeps what it showed.
    let id = lab.event(10, "user_drop").await;
    assert_eq!(lab.ended(id).await, done, "{:#?}", lab.account_log(10));
    let shown = std::fs::read_to_string(lab.path("shown")).unwrap();
    let pages = shown.matches("--More--").count();
    assert!(pages > 1, "{pages} pages: {shown}");
    assert_eq!(sshd.logins(), 1);
    daemon.stop().await;
}

/// From an event to a question of the device, and to its refusal.
#[tokio::test]
async fn a_scheme_answers_questions_and_names_refusals() {
    let sshd = Sshd::start(&[]).await;
    let lab = Lab::new(Kind::Sqlite, "").await;
    let scheme = format!("driver = \"ssh\"\nshell = \"plain\"\n{ASKING}");
    nas_of(&lab, &sshd, &scheme).await;
    marks_in(&lab).await;
    let daemon = lab.start().await;
    asks_and_refuses(&lab).await;
    assert_eq!(sshd.logins(), 1);
    daemon.stop().await;
}

/// Commands leave their marks in the lab's directory.
async fn marks_in(lab: &Lab) {
    lab.sql(&format!(
        "update nas set vars = '{{\"dir\": {:?}}}'",
        lab.root()
    ))
    .await;
}
