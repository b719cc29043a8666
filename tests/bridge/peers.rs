//! Foreign databases of a test's own: a Firebird and a MariaDB server in a directory that goes
//! with them, or a database on the test run's PostgreSQL. Loopback or a socket only.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use sqlx::{Connection as _, Row as _};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::lab::daemon::{own_port, wait_for};
use crate::lab::db::{Kind, fresh_url, run_sql};

/// Of every server here.
pub(crate) const PASSWORD: &str = "canary-of-the-source";
/// Where Debian's firebird3.0-server keeps what a server needs.
const FIREBIRD: &str = "/usr/lib/x86_64-linux-gnu/firebird/3.0";
const SECURITY: &str = "/usr/share/firebird/3.0/security.sql";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Firebird,
    Mariadb,
    Postgres,
}

/// A source with an empty table `stack`.
pub(crate) struct Peer {
    which: Which,
    dir: tempfile::TempDir,
    /// For connections of the test.
    url: String,
    _server: Option<Child>,
}

fn program(name: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the peers are programs")]
    let mut command = Command::new(name);
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

impl Peer {
    pub(crate) async fn start(which: Which) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("password"), format!("{PASSWORD}\n")).unwrap();
        let (url, server) = match which {
            Which::Firebird => firebird(dir.path()).await,
            Which::Mariadb => mariadb(dir.path()).await,
            Which::Postgres => (fresh_url(Kind::Postgres).await.0, None),
        };
        let peer = Self {
            which,
            dir,
            url,
            _server: server,
        };
        let long = match which {
            Which::Firebird => "blob sub_type text",
            Which::Mariadb | Which::Postgres => "text",
        };
        peer.sql(&format!(
            "create table stack (id bigint not null primary key, cmd varchar(64), user_id bigint, \
             usluga_id integer, params {long}, hold integer default 0 not null, ned bigint, \
             state varchar(20), tries integer, err varchar(250), answer varchar(250))"
        ))
        .await;
        peer
    }

    /// Lines of `[source]`.
    pub(crate) fn place(&self) -> String {
        let password = self.dir.path().join("password");
        match self.which {
            Which::Firebird => format!(
                "kind = \"firebird\"\ndatabase = {:?}\nuser = \"SYSDBA\"\npassword_file = {password:?}\n",
                self.url
            ),
            Which::Mariadb => format!(
                "kind = \"mysql\"\ndatabase = {:?}\npassword_file = {password:?}\n",
                self.url
            ),
            Which::Postgres => format!("kind = \"postgres\"\ndatabase = {:?}\n", self.url),
        }
    }

    pub(crate) async fn insert(&self, id: i64, cmd: &str, user: i64, params: Option<&str>) {
        let params = params.map_or("null".to_owned(), |p| {
            let quoted = p.replace('\'', "''");
            match self.which {
                // Backslashes escape in MariaDB's texts.
                Which::Mariadb => format!("'{}'", quoted.replace('\\', "\\\\")),
                Which::Firebird | Which::Postgres => format!("'{quoted}'"),
            }
        });
        let cmd = if cmd.is_empty() {
            "null".to_owned()
        } else {
            format!("'{cmd}'")
        };
        self.sql(&format!(
            "insert into stack (id, cmd, user_id, usluga_id, params) values ({id}, {cmd}, {user}, 0, {params})"
        ))
        .await;
    }

    pub(crate) async fn sql(&self, statement: &str) {
        match self.which {
            Which::Firebird => drop(self.isql(&format!("{statement};\ncommit;\n")).await),
            Which::Mariadb => {
                let mut conn = self.mysql().await;
                let text = sqlx::AssertSqlSafe(statement.to_owned());
                sqlx::raw_sql(text).execute(&mut conn).await.unwrap();
            }
            Which::Postgres => {
                let statement = statement.replace("drop hold2", "drop column hold2");
                run_sql(&self.url, &statement).await;
            }
        }
    }

    /// Rows as texts; NULL is empty.
    pub(crate) async fn rows(&self, select: &str) -> Vec<Vec<String>> {
        match self.which {
            Which::Firebird => {
                let text = self.isql(&format!("set list on;\n{select};\n")).await;
                let value = |line: &str| {
                    let text = line.get(32..).unwrap_or_default().trim_matches(' ');
                    if text == "<null>" {
                        String::new()
                    } else {
                        text.to_owned()
                    }
                };
                let blocks = text.split("\n\n").filter(|block| !block.trim().is_empty());
                blocks
                    .map(|block| {
                        let lines = block.lines().filter(|line| !line.trim().is_empty());
                        lines.map(value).collect()
                    })
                    .collect()
            }
            Which::Mariadb => {
                let mut conn = self.mysql().await;
                let text = sqlx::AssertSqlSafe(select.to_owned());
                let rows = sqlx::raw_sql(text).fetch_all(&mut conn).await.unwrap();
                rows.iter()
                    .map(|row| {
                        let cell = |i| {
                            let text = row.try_get_unchecked::<Option<String>, _>(i);
                            text.unwrap().unwrap_or_default()
                        };
                        (0..row.len()).map(cell).collect()
                    })
                    .collect()
            }
            Which::Postgres => {
                let mut conn = sqlx::PgConnection::connect(&self.url).await.unwrap();
                let text = sqlx::AssertSqlSafe(select.to_owned());
                let rows = sqlx::raw_sql(text).fetch_all(&mut conn).await.unwrap();
                rows.iter()
                    .map(|row| {
                        let cell = |i| {
                            let text = row.try_get_unchecked::<Option<String>, _>(i);
                            text.unwrap().unwrap_or_default()
                        };
                        (0..row.len()).map(cell).collect()
                    })
                    .collect()
            }
        }
    }

    /// Waits until nobody else is connected: what a client had sent before it died is done, or undone.
    pub(crate) async fn alone(&self) {
        let others = match self.which {
            Which::Firebird => {
                "select count(*) from mon$attachments where mon$system_flag = 0 and mon$attachment_id <> current_connection"
            }
            Which::Mariadb => {
                "select cast(count(*) as char) from information_schema.processlist where id <> connection_id()"
            }
            Which::Postgres => {
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            }
        };
        wait_for(async || (self.rows(others).await == [["0"]]).then_some(()))
            .await
            .expect("a client stays connected");
    }

    async fn mysql(&self) -> sqlx::MySqlConnection {
        let options: sqlx::mysql::MySqlConnectOptions = self.url.parse().unwrap();
        let options = options.password(PASSWORD);
        sqlx::MySqlConnection::connect_with(&options).await.unwrap()
    }

    async fn isql(&self, script: &str) -> String {
        isql(&self.url, script, Some(PASSWORD)).await
    }
}

async fn isql(database: &str, script: &str, password: Option<&str>) -> String {
    said(database, script, password)
        .await
        .unwrap_or_else(|e| panic!("{e}: {script}"))
}

async fn said(database: &str, script: &str, password: Option<&str>) -> Result<String, String> {
    let mut command = program("isql-fb");
    command
        .args([
            "-quiet",
            "-bail",
            "-charset",
            "UTF8",
            "-input",
            "/dev/stdin",
        ])
        .arg(database)
        .env("ISC_USER", "SYSDBA")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(password) = password {
        command.env("ISC_PASSWORD", password);
    }
    let mut child = command
        .spawn()
        .expect("isql-fb is not there; see scripts/test --install");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() || complaint.contains("Statement failed") {
        return Err(complaint);
    }
    Ok(String::from_utf8(output.stdout).unwrap())
}

/// A server with a root directory of its own: configuration, security database, locks.
async fn firebird(dir: &Path) -> (String, Option<Child>) {
    for name in ["intl", "plugins", "firebird.msg", "plugins.conf"] {
        let from = PathBuf::from(FIREBIRD).join(name);
        std::os::unix::fs::symlink(&from, dir.join(name)).unwrap();
    }
    let security = dir.join("security3.fdb");
    let tables = std::fs::read_to_string(SECURITY)
        .expect("firebird3.0-server is not there; see scripts/test --install");
    let (port, _kept) = own_port();
    let config = format!(
        "RemoteBindAddress = 127.0.0.1\nRemoteServicePort = {port}\nSecurityDatabase = {}\nWireCrypt = Enabled\n",
        security.display()
    );
    std::fs::write(dir.join("firebird.conf"), config).unwrap();
    std::fs::write(dir.join("databases.conf"), "").unwrap();
    std::fs::create_dir(dir.join("lock")).unwrap();
    // Without a server: the engine itself makes and opens the files, whoever runs the tests.
    let make = format!("create database '{}';\n{tables}\n", security.display());
    let own = format!(
        "create or alter user SYSDBA password '{PASSWORD}' using plugin Srp;\ncommit;\n\
         create database '{}/source.fdb' default character set utf8;\n",
        dir.display()
    );
    for (script, database) in [(make, None), (own, Some(&security))] {
        let mut prepare = program("isql-fb");
        prepare
            .args(["-quiet", "-bail", "-user", "SYSDBA", "-input", "/dev/stdin"])
            .args(database)
            .env("FIREBIRD", dir)
            .env("FIREBIRD_LOCK", dir.join("lock"))
            .stdin(Stdio::piped());
        let mut child = prepare.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(script.as_bytes()).await.unwrap();
        drop(stdin);
        assert!(
            child.wait().await.unwrap().success(),
            "no Firebird database"
        );
    }
    let server = program("/usr/sbin/firebird")
        .env("FIREBIRD", dir)
        .env("FIREBIRD_LOCK", dir.join("lock"))
        .spawn()
        .unwrap();
    let url = format!("127.0.0.1/{port}:{}/source.fdb", dir.display());
    wait_for(async || {
        let answer = said(&url, "select 1 from rdb$database;\n", Some(PASSWORD)).await;
        answer.is_ok().then_some(())
    })
    .await
    .expect("Firebird does not start");
    (url, Some(server))
}

/// A server that listens on a socket only.
async fn mariadb(dir: &Path) -> (String, Option<Child>) {
    let data = dir.join("data");
    let socket = dir.join("socket");
    let as_root = nix::unistd::geteuid().is_root();
    let user: &[&str] = if as_root { &["--user=root"] } else { &[] };
    let made = program("mariadb-install-db")
        .args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ])
        .arg(format!("--datadir={}", data.display()))
        .args(user)
        .stdout(Stdio::null())
        .status()
        .await
        .expect("mariadb-server is not there; see scripts/test --install");
    assert!(made.success(), "no MariaDB database");
    let server = program("mariadbd")
        .args([
            "--no-defaults",
            "--skip-networking",
            "--innodb-buffer-pool-size=16M",
        ])
        .arg(format!("--datadir={}", data.display()))
        .arg(format!("--socket={}", socket.display()))
        .arg(format!("--pid-file={}", dir.join("pid").display()))
        .args(user)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let options = sqlx::mysql::MySqlConnectOptions::new()
        .socket(&socket)
        .username("root");
    let mut conn = wait_for(async || sqlx::MySqlConnection::connect_with(&options).await.ok())
        .await
        .expect("MariaDB does not start");
    let text = format!(
        "create database source character set utf8mb4; create user bridge@localhost identified by \
         '{PASSWORD}'; grant all on source.* to bridge@localhost;"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(text))
        .execute(&mut conn)
        .await
        .unwrap();
    let url = format!(
        "mysql://bridge@localhost/source?socket={}",
        socket.display()
    );
    (url, Some(server))
}
