//! The real binary as a child process in a directory of its own: configuration, logs, schemes,
//! sockets, all gone at the end. Also the two ways in (REST, SQL) and the ways to look.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::daemon::process;
use nas_event_daemon::driver::tls;
use nas_event_daemon::store::Token;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};

use super::db::{Db, Kind, run_sql};
use super::journal::Attempt;

/// Far above anything that is waited for here, even on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(10);
/// A token that the lab puts into every database.
pub const SECRET: &str = "token-of-the-lab";

/// Waits until `probe` gives something. `None` after `PATIENCE`.
pub async fn wait_for<T>(mut probe: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let looking = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.ok()
}

/// A database, a directory and a configuration; daemons are started in it.
pub struct Lab {
    pub db: Arc<Db>,
    pub port: u16,
    pub client: reqwest::Client,
    dir: tempfile::TempDir,
    _port: TcpSocket,
}

/// A daemon; killed when dropped.
pub struct Daemon {
    pub child: Child,
    pub pid: i32,
}

impl Lab {
    /// `dispatch`: lines of `[dispatch]`. Settings are read again at SIGHUP, and otherwise so
    /// seldom that only a test that asks for it sees it.
    pub async fn new(kind: Kind, dispatch: &str) -> Self {
        Self::with(Db::new(kind).await, dispatch).await
    }

    /// The same on a given database.
    pub async fn with(db: Db, dispatch: &str) -> Self {
        let lab = Self::on(Arc::new(db), dispatch);
        lab.token("lab", "admin", SECRET).await;
        lab
    }

    /// One more token.
    pub async fn token(&self, name: &str, scope: &str, secret: &str) {
        let token = Token {
            name: name.to_owned(),
            scope: scope.to_owned(),
            hash: hex(&Sha256::digest(secret.as_bytes())),
        };
        self.db.store.add_token(&token).await.unwrap();
    }

    /// Another place on a database that is there already.
    pub fn on(db: Arc<Db>, dispatch: &str) -> Self {
        let (port, kept) = own_port();
        let lab = Self {
            port,
            client: tls::plain_client().build().unwrap(),
            db,
            dir: tempfile::tempdir().unwrap(),
            _port: kept,
        };
        for name in ["log", "run", "oss/local"] {
            std::fs::create_dir_all(lab.path(name)).unwrap();
        }
        lab.configure("", dispatch);
        lab
    }

    /// Writes the configuration anew, for the next daemon.
    pub fn configure(&self, more: &str, dispatch: &str) {
        let interval = if dispatch.contains("settings_interval") {
            ""
        } else {
            "settings_interval = \"1h\""
        };
        let text = format!(
            "[database]\nurl = {url:?}\n\
             [paths]\noss = {oss:?}\nlog = {log:?}\nrun = {run:?}\nshare = {share:?}\n\
             [http]\nlisten = [\"127.0.0.1:{port}\"]\nopen_from = [\"127.0.0.1/32\"]\n\
             {more}\n\
             [dispatch]\npoll_interval = \"10ms\"\n{interval}\n{dispatch}\n",
            url = self.db.url,
            oss = self.path("oss"),
            log = self.path("log"),
            run = self.path("run"),
            share = env!("CARGO_MANIFEST_DIR"),
            port = self.port,
        );
        std::fs::write(self.path("ned.toml"), text).unwrap();
    }

    /// A path below the lab's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The lab's directory.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    // -- schemes and rows ---------------------------------------------------------------------

    /// A native scheme of the operator.
    pub fn native(&self, name: &str, text: &str) {
        let dir = self.path("oss/local").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("scheme.toml"), text).unwrap();
    }

    /// A session scheme of the operator.
    pub fn session(&self, name: &str, text: &str) {
        let dir = self.path("oss/local").join(name).join("bin");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("session"), text).unwrap();
    }

    /// A NAS with a scheme; `more` are further columns, `("api_port", "8728")`.
    pub async fn nas(&self, id: i64, oss_path: &str, forks: i64, more: &[(&str, String)]) {
        let mut names = "id, name, ip, forks, oss_path".to_owned();
        let mut values = format!("{id}, 'bras{id}', '127.0.0.1', {forks}, '{oss_path}'");
        for (name, value) in more {
            names.push_str(&format!(", {name}"));
            values.push_str(&format!(", {value}"));
        }
        self.db
            .sql(&format!("insert into nas ({names}) values ({values})"))
            .await;
    }

    /// Credentials of a NAS.
    pub async fn secret(&self, nas: i64, login: &str, password: &str) {
        self.db
            .sql(&format!(
                "insert into nas_secret (nas_id, login, password) values ({nas}, '{login}', '{password}')"
            ))
            .await;
    }

    /// Accounts `users` of one abonent each (abonent = account + 1,000,000) on a NAS.
    pub async fn accounts(&self, nas: i64, users: impl IntoIterator<Item = i64>) {
        let (mut abonents, mut rows) = (Vec::new(), Vec::new());
        for user in users {
            let abonent = abonent(user);
            let ip = address(user);
            abonents.push(format!("({abonent}, 'Abonent {user}')"));
            rows.push(format!(
                "({user}, {abonent}, {nas}, 'login{user}', '{ip}', '[\"{ip}\"]', 10240, 20480)"
            ));
        }
        self.db
            .sql(&format!(
                "insert into abonents (id, name) values {};
                 insert into users (id, abonent_id, nas_id, login, ip, addresses, ceil_in, ceil_out) values {}",
                abonents.join(", "),
                rows.join(", ")
            ))
            .await;
    }

    // -- the process --------------------------------------------------------------------------

    /// The daemons that are started from now on tell everything, wire included.
    pub fn debug(&self) {
        std::fs::write(self.path("debug"), "").unwrap();
    }

    /// Starts a daemon without waiting for anything.
    pub fn spawn(&self) -> Daemon {
        self.spawn_by(&[])
    }

    /// The same by a program that becomes the daemon: `unshare …`, `strace …`.
    pub fn spawn_by(&self, by: &[&str]) -> Daemon {
        let stderr = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("stderr"))
            .unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "the program under test is a program"
        )]
        let mut command = match by {
            [] => Command::new(env!("CARGO_BIN_EXE_nas_event_daemon")),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command
                    .args(rest)
                    .arg(env!("CARGO_BIN_EXE_nas_event_daemon"));
                command
            }
        };
        if self.path("debug").exists() {
            command.env("NED_LOG", "debug");
        } else {
            command.env_remove("NED_LOG");
        }
        let child = command
            .arg("--config")
            .arg(self.path("ned.toml"))
            .env_remove("NED_CONFIG")
            .current_dir(self.root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        Daemon { child, pid }
    }

    /// Starts a daemon whose doors are open and whose settings have been read.
    pub async fn start(&self) -> Daemon {
        self.start_by(&[]).await
    }

    /// The same by a program that becomes the daemon.
    pub async fn start_by(&self, by: &[&str]) -> Daemon {
        let mut daemon = self.spawn_by(by);
        self.until("the doors are open", async || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended: {status}\n{}", self.evidence());
            }
            self.is_up().await.then_some(())
        })
        .await;
        daemon
    }

    /// Whether a daemon answers.
    pub async fn is_up(&self) -> bool {
        let request = self.client.get(self.url("/healthz")).send().await;
        request.is_ok_and(|answer| answer.status().is_success())
    }

    /// Waits for a condition; fails the test with what the daemon said meanwhile.
    pub async fn until<T>(&self, what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
        match wait_for(probe).await {
            Some(found) => found,
            None => panic!("in vain: {what}\n{}", self.evidence()),
        }
    }

    /// What the daemons of this lab wrote to stderr.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    fn evidence(&self) -> String {
        let mut text = String::new();
        for name in ["log/nas_event_daemon.log", "stderr"] {
            let whole = std::fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<&str> = whole.lines().collect();
            let last = &lines[lines.len().saturating_sub(30)..];
            text.push_str(&format!("-- {name}\n{}\n", last.join("\n")));
        }
        text
    }

    // -- the ways in --------------------------------------------------------------------------

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// `POST /api/v1/events…`; the ids.
    pub async fn post(&self, body: Value) -> Vec<i64> {
        let (status, answer) = self.try_post("/api/v1/events", &body, None).await.unwrap();
        assert_eq!(status, 201, "{answer}");
        ids(&answer)
    }

    /// What a path answers to the lab's token, as text.
    pub async fn get(&self, path: &str) -> String {
        let request = self.client.get(self.url(path)).bearer_auth(SECRET);
        request.send().await.unwrap().text().await.unwrap()
    }

    /// A path that goes on answering.
    pub async fn stream(&self, path: &str) -> reqwest::Response {
        let request = self.client.get(self.url(path)).bearer_auth(SECRET);
        request.send().await.unwrap()
    }

    /// What our own command prints, however it ends.
    pub async fn ned(&self, args: &[&str]) -> String {
        #[expect(
            clippy::disallowed_methods,
            reason = "the program under test is a program"
        )]
        let mut command = Command::new(env!("CARGO_BIN_EXE_nas_event_daemon"));
        command
            .arg("--config")
            .arg(self.path("ned.toml"))
            .args(args)
            .env_remove("NED_CONFIG")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await;
        String::from_utf8_lossy(&output.unwrap().unwrap().stdout).into_owned()
    }

    /// One event of an account.
    pub async fn event(&self, user: i64, cmd: &str) -> i64 {
        self.post(json!({"cmd": cmd, "user_id": user})).await[0]
    }

    /// A call with the lab's token; the status and the answer, or why there is none.
    pub async fn try_post(
        &self,
        path: &str,
        body: &Value,
        key: Option<&str>,
    ) -> Result<(u16, Value), reqwest::Error> {
        let mut request = self
            .client
            .post(self.url(path))
            .bearer_auth(SECRET)
            .json(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await?))
    }

    /// A statement as another program would run it.
    pub async fn sql(&self, statement: &str) {
        run_sql(&self.db.url, statement).await;
    }

    // -- the ways to look ---------------------------------------------------------------------

    /// Rows as texts; NULL is empty.
    pub async fn rows(&self, statement: &str) -> Vec<Vec<String>> {
        let answer = self.db.store.sql(statement, false).await.unwrap();
        let row = |r: Vec<Option<String>>| r.into_iter().map(Option::unwrap_or_default).collect();
        answer.rows.into_iter().map(row).collect()
    }

    /// The first column of the first row as a number.
    pub async fn number(&self, statement: &str) -> i64 {
        self.rows(statement).await[0][0].parse().unwrap()
    }

    /// Rows on both stacks.
    pub async fn waiting(&self) -> i64 {
        self.number("select (select count(*) from events_stack_compact) + (select count(*) from events_stack)")
            .await
    }

    /// Waits until both stacks are empty, for as long as they become shorter.
    pub async fn drained(&self) {
        let mut left = self.waiting().await;
        while left > 0 {
            let what = format!("fewer than {left} events on both stacks");
            left = self
                .until(&what, async || {
                    let now = self.waiting().await;
                    (now < left).then_some(now)
                })
                .await;
        }
    }

    /// Waits until the scheduler runs and holds so many events: what has been expanded is known
    /// to it a moment after it stands on the main stack.
    pub async fn scheduled(&self, running: usize, held: usize) {
        let what = format!("{running} events run and {held} are held");
        self.until(&what, async || {
            let now = self.scheduler().await?;
            (now["running"] == running && now["held"] == held).then_some(())
        })
        .await;
    }

    /// What the scheduler says of itself. The daemon log tells of changed settings a moment
    /// before they are in force there.
    pub async fn scheduler(&self) -> Option<Value> {
        let request = self.client.get(self.url("/api/v1/status"));
        let answer = request.bearer_auth(SECRET).send().await.ok()?;
        let mut status: Value = answer.json().await.ok()?;
        Some(status["dispatch"].take())
    }

    /// What the database has `running`.
    pub async fn running(&self) -> BTreeSet<Attempt> {
        let statement = "select id, try_count from events_stack where state = 'running'";
        let rows = self.rows(statement).await;
        let attempt = |row: &Vec<String>| (row[0].parse().unwrap(), row[1].parse().unwrap());
        rows.iter().map(attempt).collect()
    }

    /// Waits until this event is done or dead; its place and state.
    pub async fn ended(&self, id: i64) -> (String, String) {
        self.until(&format!("event {id} ends"), async || {
            let statement = format!(
                "select 'done', result from events_done where id = {id}
                 union all select 'dead', reason from events_dead where id = {id}"
            );
            let mut rows = self.rows(&statement).await;
            let row = rows.pop()?;
            Some((row[0].clone(), row[1].clone()))
        })
        .await
    }

    /// The lines of a log below `paths.log`; none if there is no such file.
    pub fn log(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("log").join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn daemon_log(&self) -> Vec<String> {
        self.log("nas_event_daemon.log")
    }

    /// The log of a NAS made by [`Self::nas`].
    pub fn nas_log(&self, nas: i64) -> Vec<String> {
        self.log(&format!("nas_event_daemon/bras{nas}_127.0.0.1.log"))
    }

    /// Attempts on a NAS whose log says that they opened a session.
    pub fn opened(&self, nas: i64) -> usize {
        let mut lines = self.nas_log(nas);
        lines.retain(|line| line.ends_with(" < a session was opened for this"));
        lines.len()
    }

    /// The log of an account made by [`Self::accounts`].
    pub fn account_log(&self, user: i64) -> Vec<String> {
        self.log(&account_log_name(user))
    }

    /// Waits for a line of the daemon log that contains `text`.
    pub async fn said(&self, text: &str) -> String {
        self.said_times(text, 1).await.remove(0)
    }

    /// Waits until `times` lines of the daemon log contain `text`.
    pub async fn said_times(&self, text: &str, times: usize) -> Vec<String> {
        self.until(
            &format!("{times} × {text:?} in the daemon log"),
            async || {
                let mut lines = self.daemon_log();
                lines.retain(|line| line.contains(text));
                (lines.len() >= times).then_some(lines)
            },
        )
        .await
    }

    /// Sends SIGHUP and waits until the daemon has noticed it: the settings are read next.
    pub async fn reload(&self, daemon: &Daemon) {
        let before = self.reloads();
        daemon.signal(Signal::SIGHUP);
        self.until("SIGHUP is noticed", async || {
            (self.reloads() > before).then_some(())
        })
        .await;
    }

    fn reloads(&self) -> usize {
        let lines = self.daemon_log();
        lines.iter().filter(|l| l.contains("SIGHUP: ")).count()
    }
}

impl Daemon {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap();
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill_9(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until it has ended.
    pub async fn end(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .expect("the daemon does not end")
            .unwrap()
    }

    /// SIGTERM, and waits until it has ended well.
    pub async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.end().await;
        assert!(status.success(), "{status}");
    }
}

/// What every record begins with, after its 19 characters of time.
pub fn origin(daemon: &Daemon) -> String {
    format!(" {} nas_event_daemon[{}]: ", process::host(), daemon.pid)
}

/// The abonent of an account made by [`Lab::accounts`].
pub fn abonent(user: i64) -> i64 {
    user + 1_000_000
}

/// The address of an account made by [`Lab::accounts`].
pub fn address(user: i64) -> String {
    format!(
        "10.{}.{}.{}",
        user / 65_536 % 256,
        user / 256 % 256,
        user % 256
    )
}

/// The account log, seen from `paths.log`.
pub fn account_log_name(user: i64) -> String {
    format!("abonents/{}/event_{user}.log", abonent(user))
}

/// `{"ids": […]}`
pub fn ids(answer: &Value) -> Vec<i64> {
    let ids = answer["ids"].as_array().unwrap();
    ids.iter().map(|id| id.as_i64().unwrap()).collect()
}

/// A port chosen by the system, and what keeps it ours until the lab ends: a socket that is
/// bound and never listens. With `SO_REUSEADDR` on both sides a daemon can listen there, again
/// and again, and until it does connections are refused; but the system gives the port to nobody
/// else, as it would while a daemon is down.
pub fn own_port() -> (u16, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    (socket.local_addr().unwrap().port(), socket)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
