//! Commands over SSH: the daemon, OpenSSH's own multiplexing, and a fresh login for each, all
//! against the same sshd with the same command, in turn.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::daemon::{Bench, Kind};

/// Commands at once, on every way.
const FORKS: i64 = 10;
/// Commands of each way.
const OURS: i64 = 10_000;
const MULTIPLEXED: i64 = 3_000;
const FRESH: i64 = 200;

/// OpenSSH's server in a directory of its own; ended with it.
struct Sshd {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Sshd {
    fn start(dir: &Path) -> Self {
        std::fs::create_dir_all("/run/sshd").unwrap();
        for name in ["host", "client"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(name))
                .status();
            assert!(made.unwrap().success(), "ssh-keygen");
        }
        std::fs::copy(dir.join("client.pub"), dir.join("authorized")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port.local_addr().unwrap().port();
        let d = dir.display();
        // A HOME of its own: what a login shell reads at its start is not what is measured.
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {d}/host\nPidFile none\nUsePAM no\n\
             PasswordAuthentication no\nStrictModes no\nAuthorizedKeysFile {d}/authorized\n\
             PermitRootLogin yes\nUseDNS no\nPrintMotd no\nMaxSessions 64\nMaxStartups 100:30:200\n\
             SetEnv HOME={d}\n"
        );
        std::fs::write(dir.join("sshd_config"), text).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-E"])
            .arg(dir.join("sshd.log"))
            .arg("-f")
            .arg(dir.join("sshd_config"))
            .stdin(Stdio::null())
            .spawn()
            .expect("sshd is missing: apt-get install openssh-server");
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            child,
            dir: dir.to_owned(),
            port,
        }
    }

    /// `ssh` with this server, and `more`, as words for a shell.
    fn client(&self, more: &str) -> String {
        let d = self.dir.display();
        format!(
            "ssh -F none -p {} -i {d}/client -o BatchMode=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile={d}/known -o LogLevel=ERROR {more} root@127.0.0.1",
            self.port
        )
    }

    /// Commands per second of `n` of them by `xargs`.
    fn xargs(&self, n: i64, at_once: i64, more: &str) -> f64 {
        let line = format!(
            "seq {n} | xargs -P {at_once} -I{{}} {} true",
            self.client(more)
        );
        let began = Instant::now();
        let status = Command::new("sh").arg("-c").arg(line).status().unwrap();
        assert!(status.success());
        n as f64 / began.elapsed().as_secs_f64()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `exec` with 10 forks, on SQLite.
pub async fn ssh() {
    let mut bench = Bench::new(Kind::Sqlite, "Ssh", 1, FORKS, 10_000).await;
    let dir = bench.dir.path().join("sshd");
    std::fs::create_dir_all(&dir).unwrap();
    let sshd = Sshd::start(&dir);
    let scheme = bench.dir.path().join("oss/core/Ssh");
    std::fs::create_dir_all(&scheme).unwrap();
    std::fs::write(
        scheme.join("scheme.toml"),
        "driver = \"ssh\"\n[[on.user_rate_set]]\nexec = [\"true\"]\n[[on.user_edit]]\nassert = \"1 == 1\"\n",
    )
    .unwrap();
    prepare(&mut bench, &sshd).await;
    bench.insert(OURS, "user_rate_set", "i").await;
    let mut daemon = bench.start();
    let took = bench.drained(&mut daemon, Duration::from_secs(300)).await;
    let done = "select count(*) from events_done where result = 'done'";
    assert_eq!(bench.sql.number(done).await, OURS);
    daemon.stop();
    let ours = OURS as f64 / took.as_secs_f64();
    let dialogue = dialogue(&sshd).await;
    let d = dir.display();
    let socket = format!("-S {d}/mux");
    let master = sshd.client(&format!("-M -N -f {socket}"));
    let up = Command::new("sh").arg("-c").arg(master).status().unwrap();
    assert!(up.success());
    let multiplexed = sshd.xargs(MULTIPLEXED, FORKS, &socket);
    let close = sshd.client(&format!("-O exit {socket}"));
    let _ = Command::new("sh").arg("-c").arg(close).status();
    let fresh = sshd.xargs(FRESH, FORKS, "-S none");
    let serial = sshd.xargs(FRESH / 4, 1, "-S none");
    println!(
        "### Commands over SSH\n\n`true` on an OpenSSH server of the same machine, {FORKS} at once, \
         SQLite, expansion, history and logs included; against `xargs -P {FORKS}` with OpenSSH's \
         client, in turn. Goals: 2 × multiplexed, 20 × fresh; as a dialogue 10 × multiplexed.\n"
    );
    println!("| way | commands/s | ours is … times that |\n|---|---|---|");
    println!("| ours | {ours:.0} | |");
    println!(
        "| ours, as a dialogue with a shell | {dialogue:.0} | {:.1} |",
        ours / dialogue
    );
    for (name, rate) in [
        ("`ssh` over a ControlMaster socket", multiplexed),
        ("a fresh `ssh` for each", fresh),
        ("the same, one after the other", serial),
    ] {
        println!("| {name} | {rate:.0} | {:.1} |", ours / rate);
    }
    println!();
    println!(
        "The dialogue is {:.1} times multiplexed.\n",
        dialogue / multiplexed
    );
}

/// Lines per second of a dialogue, where no process is started for a line.
async fn dialogue(sshd: &Sshd) -> f64 {
    std::fs::write(sshd.dir.join(".bashrc"), "PS1='nas# '\n").unwrap();
    let mut bench = Bench::new(Kind::Sqlite, "Shell", 1, FORKS, 10_000).await;
    let scheme = bench.dir.path().join("oss/core/Shell");
    std::fs::create_dir_all(&scheme).unwrap();
    std::fs::write(
        scheme.join("scheme.toml"),
        "driver = \"ssh\"\nshell = \"plain\"\n[[on.user_rate_set]]\nexec = [\"true\"]\n[[on.user_edit]]\nassert = \"1 == 1\"\n",
    )
    .unwrap();
    prepare(&mut bench, sshd).await;
    bench.insert(OURS, "user_rate_set", "i").await;
    let mut daemon = bench.start();
    let took = bench.drained(&mut daemon, Duration::from_secs(300)).await;
    daemon.stop();
    OURS as f64 / took.as_secs_f64()
}

/// Where the NAS is and how to log in; every account has its log.
async fn prepare(bench: &mut Bench, sshd: &Sshd) {
    let key = std::fs::read_to_string(sshd.dir.join("client")).unwrap();
    let port = sshd.port;
    bench
        .sql
        .run(&format!(
            "update nas set ssh_port = {port}, ssh_host_key = 'tofu', max_sessions = {FORKS};
             insert into nas_secret (nas_id, login, ssh_key) values (1, 'root', '{key}')"
        ))
        .await;
    bench.warm(10_000).await;
}
