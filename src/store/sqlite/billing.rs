//! The billing's side: tables and views that the daemon only reads. The sample is created
//! where none of their names exists; otherwise every missing name and column is told.

use std::collections::BTreeMap;

use sqlx::{Row, SqliteConnection};

use super::sql;
use crate::event::{self, refused_name};
use crate::store::billing as needs;
use crate::store::{Error, Result};

/// What stands in the database: column names with declared types, and the expressions that
/// turn a view's row into canonical PARAMS.
#[derive(Debug, Clone, Default)]
pub(super) struct Shape {
    tables: BTreeMap<String, Vec<(String, String)>>,
    /// `json_object(…)` over `event_params p`.
    pub(super) params: String,
    /// `json_object(…)` over `event_usluga s`.
    pub(super) usluga: String,
}

impl Shape {
    pub(super) async fn read(conn: &mut SqliteConnection) -> Result<Self> {
        let mut tables = BTreeMap::new();
        for (table, _, _) in needs::NEEDED {
            let rows = sqlx::query("select name, type from pragma_table_info(?1) order by cid")
                .bind(table)
                .fetch_all(&mut *conn)
                .await
                .map_err(sql("read the columns of the billing's tables"))?;
            let mut columns = Vec::new();
            for row in rows {
                let name: String = row.try_get(0).map_err(sql("read a column name"))?;
                let declared: String = row.try_get(1).map_err(sql("read a column type"))?;
                columns.push((name.to_ascii_lowercase(), declared.to_ascii_uppercase()));
            }
            if !columns.is_empty() {
                tables.insert((*table).to_owned(), columns);
            }
        }
        let object = |table: &str, alias: &str| {
            let columns = tables.get(table).map(Vec::as_slice).unwrap_or_default();
            let pairs: Vec<String> = columns
                .iter()
                .filter(|(name, _)| event::is_name(name) && !refused_name(name))
                .map(|(name, declared)| format!("'{name}', {}", canonical(alias, name, declared)))
                .collect();
            format!("json_object({})", pairs.join(", "))
        };
        let params = object("event_params", "p");
        let usluga = object("event_usluga", "s");
        Ok(Self {
            params,
            usluga,
            tables,
        })
    }

    /// One text per table or column that is missing, and per column that cannot be a variable.
    pub(super) fn missing(&self) -> Vec<String> {
        needs::missing(|table| {
            self.tables
                .get(table)
                .map(|c| c.iter().map(|(name, _)| name.clone()).collect())
        })
    }

    /// Names and declared types of one table.
    pub(super) fn columns(&self, table: &str) -> &[(String, String)] {
        self.tables
            .get(table)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// `name` if the table has it, else `null`, so that optional columns may be absent.
    pub(super) fn column(&self, table: &str, name: &str) -> String {
        let has = self
            .tables
            .get(table)
            .is_some_and(|c| c.iter().any(|(n, _)| n == name));
        if has {
            name.to_owned()
        } else {
            format!("null as {name}")
        }
    }
}

/// Canonical text of one column (design §4 "Expansion"): NULL is empty, whole numbers stay
/// numbers, other numbers are plain decimals, times are `YYYY-MM-DD HH:MM:SS`, JSON arrays and
/// objects stay what they are.
fn canonical(alias: &str, name: &str, declared: &str) -> String {
    let c = format!("{alias}.\"{name}\"");
    let json =
        format!("when json_valid({c}) and substr(ltrim({c}), 1, 1) in ('[', '{{') then json({c})");
    // A number that is nothing to ten places has no sign either.
    let real = format!(
        "when typeof({c}) = 'real' then case when {c} = cast({c} as integer) and abs({c}) < 1e15
           then cast({c} as integer)
           else ifnull(nullif(rtrim(rtrim(printf('%.10f', {c}), '0'), '.'), '-0'), '0') end"
    );
    let blob = format!("when typeof({c}) = 'blob' then lower(hex({c}))");
    if declared.contains("JSON") {
        format!("case when {c} is null then '' {json} {real} {blob} else {c} end")
    } else if declared == "DATE" {
        format!("ifnull({c}, '')")
    } else if declared.contains("TIME") {
        format!(
            "case when {c} is null then '' else ifnull(strftime('%Y-%m-%d %H:%M:%S', {c}), {c}) end"
        )
    } else if ["CHAR", "TEXT", "CLOB", "INT", "BOOL"]
        .iter()
        .any(|kind| declared.contains(kind))
    {
        // Affinity has made text or whole numbers of them; a fraction among whole numbers stays
        // one, a blob is refused by json_object and told with its row.
        format!("ifnull({c}, '')")
    } else if declared.is_empty() {
        // A computed column: what json_array() and its like give is text without a mark.
        format!("case when {c} is null then '' {json} {real} {blob} else {c} end")
    } else {
        format!("case when {c} is null then '' {real} {blob} else {c} end")
    }
}

/// Creates the sample billing if not one of its names exists.
pub(super) async fn create_sample(conn: &mut SqliteConnection) -> Result<()> {
    let names: Vec<&str> = needs::NEEDED.iter().map(|(table, _, _)| *table).collect();
    let list = format!("'{}'", names.join("', '"));
    let text = format!("select count(*) from sqlite_master where lower(name) in ({list})");
    let (found,): (i64,) = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .fetch_one(&mut *conn)
        .await
        .map_err(sql("look for the billing's tables"))?;
    if found > 0 {
        return Ok(());
    }
    let mut tx = sqlx::Connection::begin_with(conn, "BEGIN IMMEDIATE")
        .await
        .map_err(sql("create the sample billing"))?;
    sqlx::raw_sql(include_str!("../../../migrations/billing/sqlite.sql"))
        .execute(&mut *tx)
        .await
        .map_err(sql("create the sample billing"))?;
    tx.commit()
        .await
        .map_err(sql("create the sample billing"))
        .map_err(|e| match e {
            Error::Sql { source, .. } => Error::Sql {
                doing: "commit the sample billing",
                source,
            },
            other => other,
        })
}
