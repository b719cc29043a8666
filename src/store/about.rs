//! What an operator wants to know of the database itself: how large, which version, how much is in
//! it, when it was copied. Built on the operator's own SQL, as the audit is.

use super::{Result, Store};

/// What is said where `db backup` is not the tool.
pub const OWN_COPIES: &str = "PostgreSQL makes its own copies: pg_dump -Fc -d DATABASE -f FILE";

/// The database itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// sqlite or postgresql.
    pub kind: &'static str,
    /// Of the program behind it.
    pub version: Option<String>,
    /// Its journal (SQLite), or whether it is the primary.
    pub mode: Option<String>,
    /// What it takes on the disk.
    pub bytes: Option<i64>,
    /// What of that is free for new rows, where that is known.
    pub free_bytes: Option<i64>,
    /// Number of the last migration of our tables.
    pub schema: Option<i64>,
    /// Rows, by the word that people use.
    pub rows: Vec<(&'static str, Option<i64>)>,
    /// When `db backup` was last called, UTC, and for which file; other tools leave no trace.
    pub last_backup: Option<(String, String)>,
}

/// Tables whose rows say how much there is.
const ROWS: [(&str, &str); 6] = [
    ("compact", "events_stack_compact"),
    ("main", "events_stack"),
    ("dead", "events_dead"),
    ("done", "events_done"),
    ("audit", "audit"),
    ("accounts", "users"),
];
const SQLITE: &str =
    "select sqlite_version(), journal_mode, page_count * page_size, freelist_count * page_size
     from pragma_journal_mode, pragma_page_count, pragma_page_size, pragma_freelist_count";
const POSTGRES: &str = "select current_setting('server_version'),
       case when pg_is_in_recovery() then 'standby' else 'primary' end,
       pg_database_size(current_database()), null";

/// One row of a look.
#[derive(Default)]
struct Row(Vec<Option<String>>);

impl Row {
    async fn of(store: &dyn Store, statement: &str) -> Result<Self> {
        let answer = store.sql(statement, false).await?;
        Ok(Self(answer.rows.into_iter().next().unwrap_or_default()))
    }

    fn text(&self, at: usize) -> Option<String> {
        self.0.get(at).cloned().flatten()
    }

    fn number(&self, at: usize) -> Option<i64> {
        self.text(at)?.parse().ok()
    }
}

/// Looks at it; rows are counted, not guessed. Where it does not answer at all, that is said; what it
/// does not tell of itself, or not in time, leaves the rest as it is.
pub async fn about(store: &dyn Store, is_file: bool) -> Result<About> {
    let (kind, statement) = match is_file {
        true => ("sqlite", SQLITE),
        false => ("postgresql", POSTGRES),
    };
    let itself = Row::of(store, statement).await?;
    let more = async |statement: &str| Row::of(store, statement).await.unwrap_or_default();
    let schema = more("select max(version) from _sqlx_migrations").await;
    let mut rows = Vec::new();
    for (name, table) in ROWS {
        let count = more(&format!("select count(*) from {table}")).await;
        rows.push((name, count.number(0)));
    }
    let copied = "select at, detail from audit where what = 'db_backup' order by id desc limit 1";
    let copied = more(copied).await;
    Ok(About {
        kind,
        version: itself.text(0),
        mode: itself.text(1),
        bytes: itself.number(2),
        free_bytes: itself.number(3),
        schema: schema.number(0),
        rows,
        last_backup: copied.text(0).zip(copied.text(1)).map(|(at, detail)| {
            let file = detail.strip_prefix("file=").unwrap_or(&detail);
            (at, file.to_owned())
        }),
    })
}
