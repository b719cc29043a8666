//! A real OpenSSH server (package openssh-server) as a child process: on loopback, with keys and
//! a directory of its own; or behind a listener of ours inside a network namespace. Needs root.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nas_event_daemon::driver::ssh::trust::Trust;
use nas_event_daemon::driver::ssh::{Learn, Limits, Ssh, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::daemon::{own_port, wait_for};

const SSHD: &str = "/usr/sbin/sshd";

#[expect(clippy::disallowed_methods, reason = "the peers are programs")]
pub fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.kill_on_drop(true);
    command
}

/// Runs a program to its end; what it said, or the test fails.
pub async fn run(words: &[&str]) -> String {
    let output = program(words[0]).args(&words[1..]).output().await;
    let output = output.unwrap_or_else(|e| panic!("{words:?}: {e}; see scripts/test --install"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {text}{errors}");
    text
}

/// An SSH server; ended with everything it started when dropped.
pub struct Sshd {
    pub port: u16,
    dir: tempfile::TempDir,
    more: Vec<String>,
    child: Option<Child>,
    _port: Option<TcpSocket>,
    listener: JoinSet<()>,
}

impl Sshd {
    /// Lets root in by the lab's key; `more` are lines of `sshd_config` that come first, and
    /// so win.
    pub async fn start(more: &[&str]) -> Self {
        let (port, kept) = own_port();
        let mut sshd = Self::prepared(port, more).await;
        sshd._port = Some(kept);
        sshd.up().await;
        sshd
    }

    /// The same inside the network namespace `netns`: its commands see only that, while it is
    /// reached over loopback here.
    pub async fn start_in(netns: &str, more: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut sshd = Self::prepared(port, more).await;
        let (config, log) = (sshd.path("sshd_config"), sshd.path("log"));
        let netns = netns.to_owned();
        sshd.listener.spawn(async move {
            let mut sessions = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let socket = stream.into_std().unwrap();
                socket.set_nonblocking(false).unwrap();
                let socket = std::os::fd::OwnedFd::from(socket);
                let child = program("ip")
                    .args(["netns", "exec", &netns, SSHD, "-i", "-f"])
                    .arg(&config)
                    .arg("-E")
                    .arg(&log)
                    .stdin(Stdio::from(socket.try_clone().unwrap()))
                    .stdout(Stdio::from(socket))
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                sessions.push(child);
            }
        });
        sshd
    }

    async fn prepared(port: u16, more: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "a real sshd with logins takes root: run the tests as root"
        );
        std::fs::create_dir_all("/run/sshd").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let sshd = Self {
            port,
            more: more.iter().map(|line| (*line).to_owned()).collect(),
            child: None,
            _port: None,
            listener: JoinSet::new(),
            dir,
        };
        sshd.key("host", &["-t", "ed25519"]).await;
        sshd.key("client", &["-t", "ed25519"]).await;
        std::fs::copy(sshd.path("client.pub"), sshd.path("authorized")).unwrap();
        // Users other than root read their keys here, and leave marks below `open`.
        std::fs::create_dir(sshd.path("open")).unwrap();
        for (name, mode) in [("", 0o755), ("open", 0o777)] {
            let rights = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(sshd.path(name), rights).unwrap();
        }
        sshd.configure();
        sshd
    }

    /// Makes (or replaces) a key pair.
    pub async fn key(&self, name: &str, kind: &[&str]) {
        let _ = std::fs::remove_file(self.path(name));
        let file = self.path(name).display().to_string();
        let mut words = vec!["ssh-keygen", "-q", "-N", "", "-C", "lab", "-f", &file];
        words.extend(kind);
        run(&words).await;
    }

    /// Other lines for the next start; `$D` is its directory.
    pub fn reconfigure(&mut self, more: &[&str]) {
        self.more = more.iter().map(|line| (*line).to_owned()).collect();
        self.configure();
    }

    fn configure(&self) {
        let dir = self.dir.path().display();
        let more = self.more.join("\n");
        let host = if more.contains("HostKey ") {
            String::new()
        } else {
            format!("HostKey {dir}/host\n")
        };
        let text = format!(
            "{more}\n{host}Port {port}\nListenAddress 127.0.0.1\nPidFile none\n\
             AuthorizedKeysFile {dir}/authorized\nStrictModes no\nPermitRootLogin yes\n\
             UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             SetEnv HOME={dir}\nUseDNS no\nPrintMotd no\nMaxStartups 100:30:200\nLogLevel VERBOSE\n",
            port = self.port,
        );
        std::fs::write(
            self.path("sshd_config"),
            text.replace("$D", &dir.to_string()),
        )
        .unwrap();
    }

    /// Starts it (again), and waits until it listens.
    pub async fn up(&mut self) {
        let child = program(SSHD)
            .arg("-D")
            .arg("-f")
            .arg(self.path("sshd_config"))
            .arg("-E")
            .arg(self.path("log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sshd is missing: scripts/test --install");
        self.child = Some(child);
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port));
        let up = wait_for(async || TcpStream::connect(addr).await.ok()).await;
        assert!(up.is_some(), "sshd does not listen: {}", self.log());
    }

    /// Ends it with all its sessions and their commands.
    pub async fn down(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            end_all(pid);
        }
        let _ = child.kill().await;
    }

    /// Kills the sessions (`kill -9`) with the commands that they run; the server stays.
    pub fn kill_sessions(&self) {
        let pid = self.child.as_ref().and_then(Child::id).unwrap();
        end_all(i32::try_from(pid).unwrap());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// The private key that lets root in.
    pub fn client_key(&self) -> String {
        self.read("client")
    }

    /// `SHA256:…` of a key of this directory.
    pub async fn fingerprint(&self, name: &str) -> String {
        let file = self.path(name).with_extension("pub").display().to_string();
        let line = run(&["ssh-keygen", "-lf", &file]).await;
        line.split(' ').nth(1).unwrap().to_owned()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Logins that it granted.
    pub fn logins(&self) -> usize {
        let log = self.log();
        let granted = |line: &&str| line.contains("Accepted ") && line.contains(" from ");
        log.lines().filter(granted).count()
    }

    /// How root logs in by key, with the right host key pinned.
    pub fn target(&self) -> Target {
        Target {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            login: "root".to_owned(),
            password: String::new(),
            key: self.client_key(),
            enable_password: String::new(),
            manners: nas_event_daemon::driver::dialogue::Manners::default(),
            trust: Trust::of(Some(&self.read("host.pub")), None).unwrap(),
            legacy: false,
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if let Some(pid) = self.child.as_ref().and_then(Child::id) {
            end_all(i32::try_from(pid).unwrap());
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
    }
}

/// Bounds that suit a test.
pub fn limits(channels: usize) -> Limits {
    Limits {
        channels,
        connect_timeout: Duration::from_secs(20),
        login_timeout: Duration::from_secs(30),
        linger: Duration::from_secs(60),
        logins_per_minute: 1_000,
    }
}

/// Sessions that learn nothing.
pub fn sessions(target: Target, channels: usize) -> Ssh {
    let learn: Learn = std::sync::Arc::new(|_| {});
    Ssh::new(target, limits(channels), learn)
}

/// Kills everything below a process, deepest last; sessions of sshd have groups of their own.
fn end_all(root: i32) {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(Path::new("/proc").join(name).join("stat"));
        let stat = stat.unwrap_or_default();
        let after = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.trim())
            .unwrap_or_default();
        if let Some(parent) = after.split(' ').nth(1).and_then(|p| p.parse::<i32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut below = vec![root];
    let mut at = 0;
    while let Some(parent) = below.get(at).copied() {
        below.extend(
            parents
                .iter()
                .filter(|(_, p)| *p == parent)
                .map(|(pid, _)| *pid),
        );
        at += 1;
    }
    for pid in below.iter().skip(1) {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// A user of this machine with a password, for logins through PAM; removed when dropped.
pub struct User {
    pub name: String,
    pub password: String,
}

impl User {
    pub async fn new() -> Self {
        let name = format!("ned{:012x}", getrandom::u64().unwrap() & 0xffff_ffff_ffff);
        run(&["useradd", "-M", "-N", "-d", "/", "-s", "/bin/sh", &name]).await;
        let user = Self {
            password: format!("pw-{name} '\"\\"),
            name,
        };
        let mut child = program("chpasswd").stdin(Stdio::piped()).spawn().unwrap();
        let line = format!("{}:{}\n", user.name, user.password);
        let mut stdin = child.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, line.as_bytes())
            .await
            .unwrap();
        drop(stdin);
        assert!(child.wait().await.unwrap().success(), "chpasswd");
        user
    }
}

impl Drop for User {
    fn drop(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "the peers are programs")]
        let _ = std::process::Command::new("userdel")
            .args(["-f", &self.name])
            .output();
    }
}
