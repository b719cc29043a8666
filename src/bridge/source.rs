//! A foreign stack as rows of texts: what is asked, in each database's own SQL. PostgreSQL and
//! MySQL by connections, Firebird by its `isql`. What a row or an answer holds is never pasted:
//! numbers are numbers, texts go in as hexadecimal digits.

use std::time::Duration;

use sqlx::{Connection as _, MySqlPool, PgPool, Row as _, SqlSafeStr as _};

use super::isql::Isql;
use super::map::{Cell, Kind, Map, Place};

/// Longest wait for a connection, and for a statement of a source.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// For a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest text of a column of PostgreSQL or MySQL, bytes.
const TEXT_MAX: usize = 1024 * 1024;
/// Longest text of a column of Firebird, characters, and of `params`. A row of `isql` holds at
/// most 64 KiB, every character counted as four bytes, and twice for what must be escaped.
const ISQL_MAX: usize = 120;
const ISQL_PARAMS_MAX: usize = 3_000;

/// What went wrong at the source; no value of a row is in it.
#[derive(Debug, thiserror::Error)]
#[error("the source {name}: {text}")]
pub struct Error {
    /// `source.name`
    pub name: String,
    /// What happened.
    pub text: String,
}

/// An open source.
pub struct Source {
    name: String,
    kind: Kind,
    through: Through,
}

enum Through {
    Isql(Isql),
    Postgres(PgPool),
    Mysql(MySqlPool),
}

impl Source {
    /// Connects with the first question, and again whenever that is needed.
    pub fn open(place: &Place) -> Result<Self, Error> {
        let fail = |text: String| Error {
            name: place.name.clone(),
            text,
        };
        let password = match &place.password_file {
            None => None,
            Some(file) => Some(
                std::fs::read_to_string(file)
                    .map_err(|e| fail(format!("password_file {}: {e}", file.display())))?
                    .trim_end_matches(['\r', '\n'])
                    .to_owned(),
            ),
        };
        let through = match place.kind {
            Kind::Firebird => Through::Isql(Isql {
                program: place.isql.clone(),
                database: place.database.clone(),
                user: place.user.clone(),
                password,
            }),
            Kind::Postgres => {
                let mut options: sqlx::postgres::PgConnectOptions = place
                    .database
                    .parse()
                    .map_err(|e: sqlx::Error| fail(e.to_string()))?;
                if let Some(password) = password {
                    options = options.password(&password);
                }
                let pool = sqlx::postgres::PgPoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(PATIENCE);
                Through::Postgres(pool.connect_lazy_with(options))
            }
            Kind::Mysql => {
                let mut options: sqlx::mysql::MySqlConnectOptions = place
                    .database
                    .parse()
                    .map_err(|e: sqlx::Error| fail(e.to_string()))?;
                if let Some(password) = password {
                    options = options.password(&password);
                }
                let pool = sqlx::mysql::MySqlPoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(PATIENCE);
                Through::Mysql(pool.connect_lazy_with(options))
            }
        };
        Ok(Self {
            name: place.name.clone(),
            kind: place.kind,
            through,
        })
    }

    /// The first rows that nobody has taken, by id: key, then the columns in their order.
    pub async fn waiting(&self, map: &Map, limit: usize) -> Result<Vec<Vec<Cell>>, Error> {
        let mut cells = vec![(map.take.id.as_str(), false)];
        let columns = map.columns.iter();
        cells.extend(columns.map(|(name, expr)| (expr.as_str(), name == "params")));
        let mut only = Vec::new();
        only.extend(map.take.mark.as_ref().map(|mark| format!("{mark} is null")));
        if !map.take.only.trim().is_empty() {
            only.push(format!("({})", map.take.only));
        }
        self.rows((&map.take.table, &map.take.id), &cells, &only, limit)
            .await
    }

    /// Rows that were taken and whose end is not written there yet: key, our number, state,
    /// tries (if there is a column), with keys above `after`.
    pub async fn open_ends(
        &self,
        map: &Map,
        finals: &[&str],
        after: i64,
        limit: usize,
    ) -> Result<Vec<Vec<Cell>>, Error> {
        let (Some(mark), Some(back)) = (&map.take.mark, &map.back) else {
            return Ok(Vec::new());
        };
        let mut cells = vec![
            (map.take.id.as_str(), false),
            (mark.as_str(), false),
            (back.state.as_str(), false),
        ];
        cells.extend(back.tries.as_ref().map(|tries| (tries.as_str(), false)));
        let finals: Vec<String> = finals.iter().map(|word| format!("'{word}'")).collect();
        let state = &back.state;
        let only = [
            format!("{mark} > 0"),
            format!("{} > {after}", map.take.id),
            format!(
                "({state} is null or {state} not in ({}))",
                finals.join(", ")
            ),
        ];
        self.rows((&map.take.table, &map.take.id), &cells, &only, limit)
            .await
    }

    /// Rows of a table in the order of an expression.
    pub(super) async fn rows(
        &self,
        (table, order): (&str, &str),
        cells: &[(&str, bool)],
        only: &[String],
        limit: usize,
    ) -> Result<Vec<Vec<Cell>>, Error> {
        let columns: Vec<String> = cells
            .iter()
            .enumerate()
            .map(|(i, (expr, long))| format!("{} as c{i}", self.text(expr, *long)))
            .collect();
        let (first, last) = match self.kind {
            Kind::Firebird => (format!("first {limit} "), String::new()),
            Kind::Postgres | Kind::Mysql => (String::new(), format!(" limit {limit}")),
        };
        let only = if only.is_empty() {
            String::new()
        } else {
            format!(" where {}", only.join(" and "))
        };
        let text = format!(
            "select {first}{} from {table}{only} order by {order}{last}",
            columns.join(", "),
        );
        self.ask(text, cells.len()).await
    }

    /// Any expression as text.
    fn text(&self, expr: &str, long: bool) -> String {
        match self.kind {
            Kind::Postgres => format!("cast(({expr}) as text)"),
            Kind::Mysql => format!("cast(({expr}) as char)"),
            Kind::Firebird => {
                let max = if long { ISQL_PARAMS_MAX } else { ISQL_MAX };
                let escaped = [
                    ("'\\'", "'\\\\'"),
                    ("ascii_char(10)", "'\\n'"),
                    ("ascii_char(13)", "'\\r'"),
                ]
                .iter()
                .fold(
                    format!("cast({expr} as varchar({max}))"),
                    |text, (from, to)| format!("replace({text}, {from}, {to})"),
                );
                format!(
                    "case when ({expr}) is null then '-' \
                     when char_length({expr}) > {max} then '!' \
                     else cast('+' || {escaped} as varchar({})) end",
                    2 * max + 1
                )
            }
        }
    }

    /// A text as a value of a statement; nothing of it is ever read as SQL.
    pub fn literal(&self, text: &str) -> String {
        if text.is_empty() {
            return "''".to_owned();
        }
        let hex: String = text.bytes().map(|b| format!("{b:02x}")).collect();
        match self.kind {
            Kind::Postgres => format!("convert_from(decode('{hex}', 'hex'), 'UTF8')"),
            Kind::Mysql => format!("convert(x'{hex}' using utf8mb4)"),
            Kind::Firebird => {
                let chars = text.chars().count().max(1);
                format!("cast(x'{hex}' as varchar({chars}) character set utf8)")
            }
        }
    }

    async fn ask(&self, text: String, width: usize) -> Result<Vec<Vec<Cell>>, Error> {
        let fail = |e: sqlx::Error| self.failed(&e.to_string());
        let statement = sqlx::AssertSqlSafe(text.clone()).into_sql_str();
        let cell = |value: Option<String>| match value {
            None => Cell::Null,
            Some(text) if text.len() > TEXT_MAX => Cell::TooLong,
            Some(text) => Cell::Text(text),
        };
        let late = |_| self.failed("no answer in time");
        match &self.through {
            Through::Isql(isql) => isql
                .rows(&text, width)
                .await
                .map_err(|text| self.failed(&text)),
            Through::Postgres(pool) => {
                reached(pool).await.map_err(|why| self.failed(&why))?;
                let rows = sqlx::query(statement).persistent(false).fetch_all(pool);
                let rows = tokio::time::timeout(PATIENCE, rows).await.map_err(late)?;
                let rows = rows.map_err(fail)?;
                let read = |row: &sqlx::postgres::PgRow| {
                    (0..width).map(|i| row.try_get(i).map(cell)).collect()
                };
                rows.iter()
                    .map(read)
                    .collect::<Result<_, _>>()
                    .map_err(fail)
            }
            Through::Mysql(pool) => {
                reached(pool).await.map_err(|why| self.failed(&why))?;
                let rows = sqlx::query(statement).persistent(false).fetch_all(pool);
                let rows = tokio::time::timeout(PATIENCE, rows).await.map_err(late)?;
                let rows = rows.map_err(fail)?;
                let read = |row: &sqlx::mysql::MySqlRow| {
                    (0..width).map(|i| row.try_get(i).map(cell)).collect()
                };
                rows.iter()
                    .map(read)
                    .collect::<Result<_, _>>()
                    .map_err(fail)
            }
        }
    }

    /// Carries out changes in one transaction.
    pub async fn change(&self, statements: Vec<String>) -> Result<(), Error> {
        if statements.is_empty() {
            return Ok(());
        }
        match &self.through {
            Through::Isql(isql) => isql
                .change(&statements)
                .await
                .map_err(|text| self.failed(&text)),
            Through::Postgres(pool) => in_one(pool, statements)
                .await
                .map_err(|text| self.failed(&text)),
            Through::Mysql(pool) => in_one(pool, statements)
                .await
                .map_err(|text| self.failed(&text)),
        }
    }

    pub(super) fn failed(&self, text: &str) -> Error {
        Error {
            name: self.name.clone(),
            text: text.to_owned(),
        }
    }
}

/// A pool tries until its time is up and then does not say why it could not connect.
async fn reached<D: sqlx::Database>(pool: &sqlx::Pool<D>) -> Result<(), String> {
    if pool.size() > 0 {
        return Ok(());
    }
    let options = pool.connect_options();
    match tokio::time::timeout(CONNECT, D::Connection::connect_with(&options)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(format!("cannot connect: {e}")),
        Err(_) => Err(format!("cannot connect within {CONNECT:?}")),
    }
}

/// All of it or nothing, in time.
async fn in_one<D: sqlx::Database>(
    pool: &sqlx::Pool<D>,
    statements: Vec<String>,
) -> Result<(), String>
where
    for<'c> &'c mut D::Connection: sqlx::Executor<'c, Database = D>,
{
    let work = async {
        let mut tx = pool.begin().await?;
        for text in statements {
            sqlx::raw_sql(sqlx::AssertSqlSafe(text))
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await
    };
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done.map_err(|e: sqlx::Error| e.to_string()),
        Err(_) => Err("a change was not carried out in time".to_owned()),
    }
}
