//! Command lines of others, started by the tests: FRR's vty in a network namespace, telnet
//! servers of Linux; and devices that misbehave. Needs root.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::Child;
use tokio::task::JoinSet;

use super::daemon::{Lab, wait_for};
use super::sshd::{program, run};

/// Password of the vty.
pub const PASSWORD: &str = "servicemode";
/// Password of `enable`.
pub const ENABLE: &str = "raised-mode";

/// A group of processes; all are killed when it is dropped.
pub struct Group(Child);

impl Group {
    /// Starts a program as the leader of a group of its own.
    pub fn start(words: &[&str]) -> Self {
        let mut command = program(words[0]);
        command
            .args(&words[1..])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn();
        Self(child.unwrap_or_else(|e| panic!("{words:?}: {e}; see scripts/test --install")))
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id().unwrap()).unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.id() {
            // Gone already, if it fails.
            let _ = killpg(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
    }
}

/// What tells FRR that the window has 80 columns and 10 lines (RFC 1073): who has not told it gets
/// no pager.
const WINDOW: [u8; 12] = [
    0xff, 0xfb, 0x1f, 0xff, 0xfa, 0x1f, 0x00, 0x50, 0x00, 0x0a, 0xff, 0xf0,
];

/// FRR's zebra and staticd in a network namespace; their vty is reached over loopback here.
pub struct Frr {
    pub port: u16,
    said: Arc<Mutex<Vec<u8>>>,
    group: Group,
    _relay: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Frr {
    /// Without a pager.
    pub async fn start() -> Self {
        Self::with(&[], "").await
    }

    /// With one, and with these lines of configuration.
    pub async fn start_paging(config: &str) -> Self {
        Self::with(&WINDOW, config).await
    }

    async fn with(first: &'static [u8], config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path().display().to_string();
        for (name, more) in [("z.conf", ""), ("s.conf", config)] {
            let text =
                format!("hostname nas-frr\npassword {PASSWORD}\nenable password {ENABLE}\n{more}");
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        std::fs::create_dir(dir.path().join("run")).unwrap();
        run(&["chown", "-R", "frr:frr", &d]).await;
        // In a network namespace of its own, so any port is free; unix sockets lead out of it.
        let daemon = |name: &str, file: &str, port: u16| {
            format!(
                "/usr/lib/frr/{name} -f {d}/{file}.conf -i {d}/{file}.pid -z {d}/zserv.api \
                 --vty_socket {d}/run -A 127.0.0.1 -P {port} -u frr -g frr &\n"
            )
        };
        let script = format!(
            "ip link set lo up\n\
             ip link add nas0 type veth peer name cli0\n\
             ip addr add 10.90.0.1/24 dev nas0; ip addr add 2001:db8:90::1/64 dev nas0 nodad\n\
             ip link set nas0 up; ip link set cli0 up\n\
             {}until [ -S {d}/zserv.api ]; do sleep 0.05; done\n{}\
             socat UNIX-LISTEN:{d}/vty.sock,fork TCP:127.0.0.1:2616 &\nwait\n",
            daemon("zebra", "z", 2601),
            daemon("staticd", "s", 2616),
        );
        let group = Group::start(&["unshare", "-n", "sh", "-c", &script]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let socket = dir.path().join("vty.sock");
        let mut relay = JoinSet::new();
        let said = Arc::default();
        relay.spawn(relayed(listener, socket.clone(), first, Arc::clone(&said)));
        let up = wait_for(async || {
            let mut stream = UnixStream::connect(&socket).await.ok()?;
            let mut byte = [0];
            (stream.read(&mut byte).await.ok()? == 1).then_some(())
        });
        up.await
            .expect("FRR did not come up; see scripts/test --install");
        Self {
            port,
            said,
            group,
            _relay: relay,
            _dir: dir,
        }
    }

    /// Everything that it has said since it was asked last, as it was.
    pub fn said(&self) -> String {
        let said = std::mem::take(&mut *self.said.lock().unwrap());
        String::from_utf8_lossy(&said).into_owned()
    }

    /// `ip -4 route` or `ip -6 route` of the router, the lines that begin with `net` or with
    /// `blackhole net`.
    pub async fn routes(&self, family: &str, net: &str) -> Vec<String> {
        let pid = self.group.pid().to_string();
        let text = run(&["nsenter", "-t", &pid, "-n", "ip", family, "route"]).await;
        text.lines()
            .map(|line| line.trim().to_owned())
            .filter(|line| {
                let line = line.strip_prefix("blackhole ").unwrap_or(line);
                line.split(' ').next() == Some(net)
            })
            .collect()
    }
}

/// Says `first` to each connection before its client does, and keeps what comes back.
async fn relayed(
    listener: TcpListener,
    socket: PathBuf,
    first: &'static [u8],
    said: Arc<Mutex<Vec<u8>>>,
) {
    let mut open = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let (socket, said) = (socket.clone(), Arc::clone(&said));
        open.spawn(async move {
            let mut far = UnixStream::connect(socket).await?;
            far.write_all(first).await?;
            let (mut answers, mut to_far) = far.into_split();
            let (mut typed, mut to_near) = near.into_split();
            let there = async {
                tokio::io::copy(&mut typed, &mut to_far).await?;
                to_far.shutdown().await
            };
            let back = async {
                let mut chunk = [0; 4096];
                loop {
                    let n = answers.read(&mut chunk).await?;
                    if n == 0 {
                        return to_near.shutdown().await;
                    }
                    said.lock().unwrap().extend_from_slice(&chunk[..n]);
                    to_near.write_all(&chunk[..n]).await?;
                }
            };
            // Either side may just go away.
            tokio::try_join!(there, back)
        });
    }
}

/// A device of our own making: `talk` is run for each connection, which it may leave open.
pub struct Device {
    pub port: u16,
    _tasks: JoinSet<()>,
}

impl Device {
    pub async fn start<F>(talk: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(talk(stream, number));
                number += 1;
            }
        });
        Self {
            port,
            _tasks: tasks,
        }
    }
}

/// The next line that a client sends, without its end; none at the end of the connection.
pub async fn line(stream: &mut TcpStream) -> Option<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await.ok()? {
            b'\r' => {
                // CR NUL or CR LF (RFC 854).
                stream.read_u8().await.ok()?;
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            byte => line.push(byte),
        }
    }
}

/// Lets a client in with name and password, up to the prompt `sw#`.
pub async fn let_in(stream: &mut TcpStream) -> Option<()> {
    stream.write_all(b"\r\nUsername: ").await.ok()?;
    let name = line(stream).await?;
    stream
        .write_all(format!("{name}\r\nPassword: ").as_bytes())
        .await
        .ok()?;
    line(stream).await?;
    stream.write_all(b"\r\nsw#").await.ok()
}

/// Lines for a shell of Linux, as a device asks and refuses; the driver's name comes before them.
/// `nas.dir` is where they leave their marks.
pub const ASKING: &str = r#"
[[on.user_drop]]
exec = [
    "read -p 'Clear {{ login }}? [confirm]' sure; echo $sure >{{ nas.dir }}/sure",
    "y",
    "echo cleared",
]
expect = ['\[confirm\]$']
save = "t"
[[on.user_drop]]
assert = "t.rows[0].out == 'Clear ' ~ login ~ '? [confirm]' and t.rows[2].out == 'cleared'"
otherwise = "dead"
[[part.refused]]
exec = ["true", "echo '% Error 17: no such subscriber'", "touch {{ nas.dir }}/after"]
abort = ["touch {{ nas.dir }}/undone"]
fail_on = ['(?m)^% ']
[[on.user_add]]
run = "refused"
[[on.user_accept]]
exec = ["echo '% Error 17: no such subscriber'"]
"#;

/// Runs them on NAS 1 for account 10: the question is answered, the refusal is one and is undone.
pub async fn asks_and_refuses(lab: &Lab) {
    let done = ("done".to_owned(), "done".to_owned());
    let id = lab.event(10, "user_drop").await;
    assert_eq!(lab.ended(id).await, done, "{:#?}", lab.account_log(10));
    let sure = std::fs::read_to_string(lab.path("sure")).unwrap();
    assert_eq!(sure, "y\n");
    let id = lab.event(10, "user_add").await;
    let (table, reason) = lab.ended(id).await;
    assert_eq!(table, "dead", "{:#?}", lab.account_log(10));
    assert!(reason.contains("Error 17: no such subscriber"), "{reason}");
    assert!(lab.path("undone").exists() && !lab.path("after").exists());
    // The same words are an answer where nobody calls them a failure.
    let id = lab.event(10, "user_accept").await;
    assert_eq!(lab.ended(id).await, done, "{:#?}", lab.account_log(10));
}
