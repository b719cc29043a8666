//! Throw-away databases: an SQLite file in a temporary directory, or a database of its own on
//! the server that `scripts/test` started (`NED_TEST_PG`).

use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::store::{Store, connect};
use sqlx::Connection;
use sqlx::sqlite::SqliteConnectOptions;

/// How long a statement of a test waits for the daemon's transactions, on a busy machine too.
const BUSY: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// A fresh, migrated database; SQLite files vanish with it.
pub struct Db {
    pub store: Arc<dyn Store>,
    pub url: String,
    pub kind: Kind,
    _dir: Option<tempfile::TempDir>,
}

/// A fresh database without our tables in it.
pub async fn fresh_url(kind: Kind) -> (String, Option<tempfile::TempDir>) {
    match kind {
        Kind::Sqlite => {
            let dir = tempfile::tempdir().unwrap();
            (
                format!("sqlite://{}/ned.db", dir.path().display()),
                Some(dir),
            )
        }
        Kind::Postgres => {
            let server = std::env::var("NED_TEST_PG").expect(
                "NED_TEST_PG is not set: run the tests by scripts/test, which starts a server",
            );
            // Random: process numbers come again, and a server may serve several runs.
            let name = format!("t{:016x}", getrandom::u64().unwrap());
            let mut conn = sqlx::PgConnection::connect(&server).await.unwrap();
            let statement = sqlx::AssertSqlSafe(format!("create database {name}"));
            sqlx::raw_sql(statement).execute(&mut conn).await.unwrap();
            let base = server.rsplit_once('/').unwrap().0;
            (format!("{base}/{name}"), None)
        }
    }
}

impl Db {
    pub async fn new(kind: Kind) -> Self {
        let (url, dir) = fresh_url(kind).await;
        Self {
            _dir: dir,
            ..Self::at(url, kind).await
        }
    }

    /// The database behind this URL, migrated.
    pub async fn at(url: String, kind: Kind) -> Self {
        let store = connect(&url).await.unwrap();
        Self {
            store,
            url,
            kind,
            _dir: None,
        }
    }

    /// Its file, if it is one.
    pub fn file(&self) -> Option<std::path::PathBuf> {
        let path = self.url.strip_prefix("sqlite://")?;
        Some(path.split('?').next().unwrap_or(path).into())
    }

    /// Runs a statement as a foreign program would.
    pub async fn sql(&self, statement: &str) {
        run_sql(&self.url, statement).await;
    }

    /// The same, where the database may refuse it.
    pub async fn try_sql(&self, statement: &str) -> Result<(), sqlx::Error> {
        try_sql(&self.url, statement).await
    }

    /// Whether nobody holds a lock that a new owner needs.
    pub async fn is_free(&self) -> bool {
        match self.kind {
            Kind::Sqlite => {
                let options: SqliteConnectOptions = self.url.parse().unwrap();
                let options = options.busy_timeout(Duration::ZERO);
                let mut conn = sqlx::SqliteConnection::connect_with(&options)
                    .await
                    .unwrap();
                let text = "begin immediate; rollback";
                sqlx::raw_sql(text).execute(&mut conn).await.is_ok()
            }
            Kind::Postgres => {
                let mut conn = sqlx::PgConnection::connect(&self.url).await.unwrap();
                let text = "select 1 from owner for update nowait";
                sqlx::raw_sql(text).execute(&mut conn).await.is_ok()
            }
        }
    }

    /// Dead events 1 to `rows`, of which every 500th says `refused 50%`; each costs the database some
    /// tenths of a millisecond to look at, as if there were millions.
    pub async fn slow_dead(&self, rows: u32) {
        let slow = match self.kind {
            Kind::Sqlite => "length(hex(zeroblob(100000 + id % 2))) > 0",
            Kind::Postgres => "looked_at(id)",
        };
        if self.kind == Kind::Postgres {
            self.sql(
                "create function looked_at(id bigint) returns boolean language plpgsql cost 0.0001 as
                   $$ begin return length(md5(repeat('x', 40000 + (id % 2)::integer))) > 0; end $$",
            )
            .await;
        }
        self.sql(&format!(
            "with recursive n (i) as (select 1 union all select i + 1 from n where i < {rows})
             insert into events_dead (id, event_type, user_id, abonent_id, nas_id, event_date, reason)
             select i, 'user_add', i, i % 1000, i % 40, '2026-01-01 00:00:00',
               case when i % 500 = 0 then 'refused 50%' else 'no route' end from n;
             alter table events_dead rename to events_dead_rows;
             create view events_dead as select * from events_dead_rows where {slow};
             analyze events_dead_rows"
        ))
        .await;
    }

    /// A view with a column of every type.
    pub async fn replace_params_view(&self) {
        self.sql("drop view event_params").await;
        self.sql(match self.kind {
            Kind::Sqlite => {
                "create table every (t_null text, t_true boolean, t_false boolean, t_int integer, t_big integer,
                   t_dec numeric(10,2), t_whole real, t_text text, t_time timestamp, t_date date, t_list json, t_map json, t_digits text,
                   t_tenth real, t_small real, t_sum real, t_minus real, t_tiny real, t_wide bigint);
                 insert into every values (null, true, false, -42, 9007199254740993, 50.50, 50.0, 'it''s \"q\" ' || char(10) || '$(x) юзер',
                   '2026-01-02T03:04:05.678Z', '2026-01-02', '[\"10.88.0.1\", \"2001:db8::/56\"]', '{\"a\": 1}', '007',
                   0.1, 1e-7, 0.1 + 0.2, -1.5, -1e-11, 12345678901234567);
                 create view event_params as select u.id as user_id, u.abonent_id, u.nas_id, e.* from users u, every e"
            }
            Kind::Postgres => {
                "create domain port_number as integer;
                 create table every (t_null text, t_true boolean, t_false boolean, t_int integer, t_big bigint,
                   t_dec numeric(10,2), t_whole double precision, t_text text, t_time timestamptz, t_date date, t_list jsonb, t_map json, t_digits text,
                   t_tenth double precision, t_small double precision, t_sum double precision, t_minus double precision, t_tiny double precision, t_wide bigint,
                   t_inet inet, t_net inet, t_inet6 inet, t_cidr cidr, t_real real, t_huge numeric,
                   t_local timestamp, t_bytes bytea, t_array inet[], t_uuid uuid, t_domain port_number,
                   t_json_text jsonb, t_json_true json, t_json_null jsonb, t_json_number jsonb);
                 insert into every values (null, true, false, -42, 9007199254740993, 50.50, 50.0, 'it''s \"q\" ' || chr(10) || '$(x) юзер',
                   '2026-01-02T03:04:05.678Z', '2026-01-02', '[\"10.88.0.1\", \"2001:db8::/56\"]', '{\"a\": 1}', '007',
                   0.1, 1e-7, 0.1::float8 + 0.2::float8, -1.5, -1e-11, 12345678901234567, '10.0.0.1/32', '10.0.0.0/24', '2001:db8::1', '10.1.0.0/16', 0.1, 12345678901234567890,
                   '2026-01-02 03:04:05.678', '\\x00ff', '{10.0.0.2,10.0.0.3}', '00000000-0000-0000-0000-00000000000a', 7,
                   '\"plain\"', 'true', 'null', '2.50');
                 create view event_params as select u.id as user_id, u.abonent_id, u.nas_id, e.* from users u, every e"
            }
        })
        .await;
        self.store.check_billing().await.unwrap();
    }
}

/// Runs statements over a connection of its own.
pub async fn run_sql(url: &str, statement: &str) {
    try_sql(url, statement).await.unwrap();
}

async fn try_sql(url: &str, statement: &str) -> Result<(), sqlx::Error> {
    let text = sqlx::AssertSqlSafe(statement.to_owned());
    if url.starts_with("sqlite") {
        let options: SqliteConnectOptions = url.parse().unwrap();
        let options = options.busy_timeout(BUSY);
        let mut conn = sqlx::SqliteConnection::connect_with(&options)
            .await
            .unwrap();
        sqlx::raw_sql(text).execute(&mut conn).await?;
        conn.close().await
    } else {
        let mut conn = sqlx::PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(text).execute(&mut conn).await?;
        conn.close().await
    }
}

/// A foreign program that inserts rows over one connection.
pub enum Foreign {
    Sqlite(sqlx::SqliteConnection),
    Postgres(sqlx::PgConnection),
}

impl Foreign {
    pub async fn connect(url: &str) -> Self {
        if url.starts_with("sqlite") {
            Self::Sqlite(sqlx::SqliteConnection::connect(url).await.unwrap())
        } else {
            Self::Postgres(sqlx::PgConnection::connect(url).await.unwrap())
        }
    }

    /// Runs statements; a transaction that they begin stays open.
    pub async fn run(&mut self, text: &'static str) {
        match self {
            Self::Sqlite(conn) => sqlx::raw_sql(text).execute(conn).await.map(|_| ()),
            Self::Postgres(conn) => sqlx::raw_sql(text).execute(conn).await.map(|_| ()),
        }
        .unwrap();
    }

    /// Inserts one event as billing services do; its id once it is committed, or why it is not.
    pub async fn insert(&mut self, cmd: &str, user: i64) -> Result<i64, sqlx::Error> {
        let text = sqlx::AssertSqlSafe(format!(
            "insert into events_stack_compact (cmd, user_id) values ('{cmd}', {user}) returning id"
        ));
        match self {
            Self::Sqlite(conn) => sqlx::query_scalar(text).fetch_one(conn).await,
            Self::Postgres(conn) => sqlx::query_scalar(text).fetch_one(conn).await,
        }
    }
}
