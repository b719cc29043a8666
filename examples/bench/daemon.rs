//! The daemon under measurement: a child process in a temporary directory, its database, and
//! what the kernel says of it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Sqlite,
    Postgres,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// A connection of the bench's own, to fill and to look.
pub enum Sql {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Sql {
    pub async fn open(url: &str) -> Self {
        if url.starts_with("sqlite") {
            use std::str::FromStr;
            let options = sqlx::sqlite::SqliteConnectOptions::from_str(url)
                .unwrap()
                .busy_timeout(Duration::from_secs(30));
            Self::Sqlite(SqliteConnection::connect_with(&options).await.unwrap())
        } else {
            Self::Postgres(PgConnection::connect(url).await.unwrap())
        }
    }

    pub async fn run(&mut self, text: &str) {
        let text = AssertSqlSafe(text.to_owned());
        match self {
            Self::Sqlite(c) => drop(sqlx::raw_sql(text).execute(c).await.unwrap()),
            Self::Postgres(c) => drop(sqlx::raw_sql(text).execute(c).await.unwrap()),
        }
    }

    /// The first column of all rows.
    pub async fn numbers(&mut self, text: &str) -> Vec<i64> {
        let text = AssertSqlSafe(text.to_owned());
        match self {
            Self::Sqlite(c) => sqlx::query_scalar(text).fetch_all(c).await.unwrap(),
            Self::Postgres(c) => sqlx::query_scalar(text).fetch_all(c).await.unwrap(),
        }
    }

    pub async fn number(&mut self, text: &str) -> i64 {
        let text = AssertSqlSafe(format!("select cast(({text}) as bigint)"));
        match self {
            Self::Sqlite(c) => sqlx::query_scalar(text).fetch_one(c).await.unwrap(),
            Self::Postgres(c) => sqlx::query_scalar(text).fetch_one(c).await.unwrap(),
        }
    }
}

pub struct Bench {
    pub dir: tempfile::TempDir,
    pub kind: Kind,
    pub url: String,
    pub port: u16,
    pub sql: Sql,
}

/// `n` numbers from 1 as a table expression named `n(i)`.
pub fn numbers(kind: Kind, n: i64) -> String {
    match kind {
        Kind::Sqlite => {
            format!("with recursive n(i) as (select 1 union all select i + 1 from n where i < {n})")
        }
        Kind::Postgres => format!("with n(i) as (select generate_series(1, {n}))"),
    }
}

impl Bench {
    /// A migrated database with `nases` × `forks` and `accounts`; the daemon is not running.
    pub async fn new(kind: Kind, scheme: &str, nases: i64, forks: i64, accounts: i64) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ned_bench_")
            .tempdir()
            .unwrap();
        let url = match kind {
            Kind::Sqlite => format!("sqlite://{}/ned.db", dir.path().display()),
            Kind::Postgres => {
                let server = std::env::var("NED_BENCH_PG").expect("NED_BENCH_PG");
                let name = format!("bench_{}", std::process::id());
                let mut sql = Sql::open(&server).await;
                sql.run(&format!("drop database if exists {name} with (force)"))
                    .await;
                sql.run(&format!("create database {name}")).await;
                format!("{}/{name}", server.rsplit_once('/').unwrap().0)
            }
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let d = dir.path().display();
        let root = std::env::current_dir().unwrap();
        std::fs::write(
            dir.path().join("c.toml"),
            format!(
                "[database]\nurl = \"{url}\"\n[paths]\noss = \"{d}/oss\"\nlog = \"{d}/log\"\nrun = \"{d}/run\"\nshare = \"{}\"\n[http]\nlisten = [\"127.0.0.1:{port}\"]\nopen_from = [\"127.0.0.1/32\"]\n",
                root.display()
            ),
        )
        .unwrap();
        nas_event_daemon::store::connect(&url).await.unwrap();
        let mut sql = Sql::open(&url).await;
        let n = numbers(kind, nases);
        sql.run(&format!(
            "insert into nas (id, name, ip, forks, oss_path) {n} select i, 'nas' || i, '127.0.0.' || i, {forks}, '{scheme}' from n"
        ))
        .await;
        let n = numbers(kind, accounts);
        sql.run(&format!(
            "insert into users (id, abonent_id, nas_id, login, ip, mac, rate_in, rate_out, ceil_in, ceil_out) {n} select i, i, 1 + i % {nases}, 'user' || i, '10.' || (i / 65536) || '.' || (i / 256 % 256) || '.' || (i % 256), '00:11:22:33:44:55', 1024, 1024, 2048, 2048 from n"
        ))
        .await;
        Self {
            dir,
            kind,
            url,
            port,
            sql,
        }
    }

    /// Inserts `n` events as a foreign program would; `account` is an expression over `i`.
    pub async fn insert(&mut self, n: i64, cmd: &str, account: &str) {
        let table = numbers(self.kind, n);
        self.sql
            .run(&format!("insert into events_stack_compact (cmd, user_id) {table} select '{cmd}', {account} from n"))
            .await;
    }

    /// The same, expanded already: `n` events that wait on the main stack.
    pub async fn waiting(&mut self, n: i64, cmd: &str, account: &str) {
        let table = numbers(self.kind, n);
        let params = format!("{{\"comment\": \"{}\"}}", "x".repeat(580));
        self.sql
            .run(&format!("insert into events_stack (id, event_type, user_id, abonent_id, nas_id, params, class, event_date) {table}
                 select 1000000 + w.i, '{cmd}', u.id, u.abonent_id, u.nas_id, '{params}', 3, '2026-01-01 00:00:00'
                 from (select i, {account} as account from n) w join users u on u.id = w.account"))
            .await;
    }

    /// One event for each account, so that every log file exists: making a directory and a
    /// file costs more than an event, and happens once in an account's life.
    pub async fn warm(&mut self, accounts: i64) {
        self.insert(accounts, "user_edit", "i").await;
        let mut daemon = self.start();
        self.drained(&mut daemon, Duration::from_secs(120)).await;
        daemon.stop();
        self.sql.run("delete from events_done").await;
    }

    pub fn start(&self) -> Daemon {
        self.start_by(&[])
    }

    /// The same by a program that becomes the daemon, such as `strace -D …`.
    pub fn start_by(&self, by: &[&str]) -> Daemon {
        let bin = std::env::var("NED_BENCH_BIN").expect("NED_BENCH_BIN");
        let errors = std::fs::File::create(self.dir.path().join("stderr")).unwrap();
        let words: Vec<&str> = by.iter().copied().chain([bin.as_str()]).collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .arg("--config")
            .arg(self.dir.path().join("c.toml"))
            .arg("run")
            .env("NED_LOG", "warn")
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        Daemon {
            child,
            started: Instant::now(),
            log: self.dir.path().join("log/nas_event_daemon.log"),
        }
    }

    /// Waits until the daemon's door answers.
    pub async fn up(&self) {
        for _ in 0..2_000 {
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port))
                .await
                .is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!(
            "the daemon does not come up: {}",
            std::fs::read_to_string(self.dir.path().join("stderr")).unwrap()
        );
    }

    pub async fn is_empty(&mut self) -> bool {
        self.sql
            .number(
                "select case when exists (select 1 from events_stack_compact) or exists (select 1 from events_stack) then 0 else 1 end",
            )
            .await
            == 1
    }

    /// Waits until both stacks are empty.
    pub async fn drained(&mut self, daemon: &mut Daemon, limit: Duration) -> Duration {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(
                daemon.child.try_wait().unwrap().is_none(),
                "the daemon ended: {}",
                daemon.tail()
            );
            if self.is_empty().await {
                return daemon.started.elapsed();
            }
            assert!(
                daemon.started.elapsed() < limit,
                "not drained within {limit:?}: {}",
                daemon.tail()
            );
        }
    }
}

pub struct Daemon {
    pub child: Child,
    pub started: Instant,
    log: PathBuf,
}

impl Daemon {
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().take(5).collect::<Vec<_>>().join("\n")
    }

    /// Peak resident memory, MiB.
    pub fn peak_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            / 1024.0
    }

    /// CPU time used so far, s.
    pub fn cpu_s(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    /// Ends it by SIGTERM and waits.
    pub fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
