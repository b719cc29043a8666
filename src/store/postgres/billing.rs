//! The billing's side: tables and views that the daemon only reads. The sample is created
//! where none of their names exists; otherwise every missing name and column is told. Names
//! are looked up along the connection's `search_path`, like in the statements themselves.

use std::collections::BTreeMap;

use sqlx::{Connection, PgConnection};

use super::sql;
use crate::event::{self, refused_name};
use crate::store::Result;
use crate::store::billing as needs;

/// Key of the advisory lock that serialises two daemons creating the sample; any fixed number.
const SAMPLE_LOCK: i64 = 0x6e65_645f_7361;

/// One column of theirs.
#[derive(Debug, Clone)]
struct Column {
    name: String,
    /// Base type as in `pg_type.typname`; domains are looked through.
    base: String,
    /// `pg_type.typcategory`: `A` array, `B` boolean, `C` composite, `N` number, `S` text.
    category: String,
    /// The base type as SQL writes it, for casts.
    cast: String,
}

/// What stands in the database, and the expressions that turn a view's row into PARAMS.
#[derive(Debug, Clone, Default)]
pub(super) struct Shape {
    tables: BTreeMap<String, Vec<Column>>,
    /// JSON object over `event_params p`.
    pub(super) params: String,
    /// The same, overlaid by `b.acct_session_id` where that is not null; none if the view has
    /// no such column.
    pub(super) params_of_session: Option<String>,
    /// JSON object over `event_usluga s`.
    pub(super) usluga: String,
}

impl Shape {
    pub(super) async fn read(conn: &mut PgConnection) -> Result<Self> {
        let names: Vec<&str> = needs::NEEDED.iter().map(|(table, _, _)| *table).collect();
        let rows: Vec<(String, String, String, String, String)> = sqlx::query_as(
            "select w.name, a.attname::text, t.typname::text, t.typcategory::text, format_type(t.oid, null)
             from unnest($1::text[]) w(name)
             join pg_attribute a on a.attrelid = to_regclass(quote_ident(w.name)) and a.attnum > 0 and not a.attisdropped
             cross join lateral (
               with recursive base(oid, of) as (
                 select oid, typbasetype from pg_type where oid = a.atttypid
                 union all select t.oid, t.typbasetype from base join pg_type t on t.oid = base.of)
               select oid from base where of = 0) d
             join pg_type t on t.oid = d.oid
             order by w.name, a.attnum",
        )
        .bind(names)
        .fetch_all(conn)
        .await
        .map_err(sql("read the columns of the billing's tables"))?;
        let mut tables: BTreeMap<String, Vec<Column>> = BTreeMap::new();
        for (table, name, base, category, cast) in rows {
            tables.entry(table).or_default().push(Column {
                name,
                base,
                category,
                cast,
            });
        }
        let columns = |table: &str| tables.get(table).map(Vec::as_slice).unwrap_or_default();
        let params = object(columns("event_params"), "p", None);
        let session = columns("event_params")
            .iter()
            .any(|c| c.name == "acct_session_id");
        let params_of_session =
            session.then(|| object(columns("event_params"), "p", Some("acct_session_id")));
        let usluga = object(columns("event_usluga"), "s", None);
        Ok(Self {
            params,
            params_of_session,
            usluga,
            tables,
        })
    }

    /// One text per table or column that is missing, and per column that cannot be a variable.
    pub(super) fn missing(&self) -> Vec<String> {
        needs::missing(|table| {
            self.tables
                .get(table)
                .map(|c| c.iter().map(|c| c.name.clone()).collect())
        })
    }

    /// Names, base types and categories of one table.
    pub(super) fn columns(&self, table: &str) -> impl Iterator<Item = (&str, &str, &str)> {
        let columns = self.tables.get(table).into_iter().flatten();
        columns.map(|c| (c.name.as_str(), c.base.as_str(), c.category.as_str()))
    }

    fn column(&self, table: &str, name: &str) -> Option<&Column> {
        self.tables.get(table)?.iter().find(|c| c.name == name)
    }

    /// Canonical text of a column; `null` if the table lacks it.
    pub(super) fn text(&self, table: &str, name: &str) -> String {
        match self.column(table, name) {
            None => "null::text".to_owned(),
            Some(c) if matches!(c.base.as_str(), "inet" | "cidr") => {
                format!("abbrev(\"{name}\"::inet)")
            }
            Some(_) => format!("\"{name}\"::text"),
        }
    }

    /// A column as a number; `null` if the table lacks it.
    pub(super) fn number(&self, table: &str, name: &str) -> String {
        match self.column(table, name) {
            None => "null::bigint".to_owned(),
            Some(_) => format!("\"{name}\"::bigint"),
        }
    }

    /// A column as a boolean: not 0, not empty, not a word for no.
    pub(super) fn flag(&self, table: &str, name: &str, default: bool) -> String {
        match self.column(table, name) {
            None => default.to_string(),
            Some(c) if c.category == "B" => format!("coalesce(\"{name}\", {default})"),
            Some(c) if c.category == "N" => format!("coalesce(\"{name}\" <> 0, {default})"),
            Some(_) => format!(
                "coalesce(lower(trim(\"{name}\"::text)) not in ('', '0', 'f', 'false', 'n', 'no'), {default})"
            ),
        }
    }

    /// `value` cast to the type of their column, so that their index on it can be used.
    pub(super) fn like(&self, table: &str, name: &str, value: &str) -> String {
        match self.column(table, name) {
            None => value.to_owned(),
            Some(c) => format!("({value})::{}", c.cast),
        }
    }
}

/// `(select row_to_json(…) …)`: unlike `json_build_object` it takes more than 50 columns.
fn object(columns: &[Column], alias: &str, session: Option<&str>) -> String {
    let values: Vec<String> = columns
        .iter()
        .filter(|c| event::is_name(&c.name) && !refused_name(&c.name))
        .map(|c| {
            let value = canonical(alias, c);
            let name = &c.name;
            if session == Some(name.as_str()) {
                format!("coalesce(to_json(b.\"{name}\"), to_json({value})) as \"{name}\"")
            } else {
                format!("{value} as \"{name}\"")
            }
        })
        .collect();
    if values.is_empty() {
        return "'{}'::json".to_owned();
    }
    format!(
        "(select row_to_json(v) from (select {}) v)",
        values.join(", ")
    )
}

/// Canonical value of one column (design §4 "Expansion"): NULL is empty, whole numbers stay
/// numbers, other numbers are plain decimals, times are `YYYY-MM-DD HH:MM:SS` in UTC (the
/// connection's time zone), JSON arrays and objects stay what they are.
fn canonical(alias: &str, column: &Column) -> String {
    let c = format!("{alias}.\"{}\"", column.name);
    let number = |n: &str| {
        format!(
            "case when {n} = trunc({n}) and abs({n}) < 1e15 then to_json({n}::bigint)
               else to_json(rtrim(rtrim(round({n}, 10)::text, '0'), '.')) end"
        )
    };
    let or_empty = |json: String| format!("coalesce({json}, '\"\"')");
    match column.base.as_str() {
        "bool" => or_empty(format!("to_json({c}::int)")),
        "int2" | "int4" | "int8" => or_empty(format!("to_json({c})")),
        "oid" => or_empty(format!("to_json({c}::bigint)")),
        "numeric" => or_empty(number(&c)),
        // By text: the direct cast to numeric keeps 15 digits only.
        "float4" | "float8" => or_empty(format!(
            "(select {} from (select {c}::text::numeric as n) f)",
            number("n")
        )),
        "timestamptz" | "timestamp" => {
            format!("coalesce(to_char({c}, 'YYYY-MM-DD HH24:MI:SS'), {c}::text, '')")
        }
        "date" => format!("coalesce(to_char({c}, 'YYYY-MM-DD'), {c}::text, '')"),
        "inet" | "cidr" => format!("coalesce(abbrev({c}::inet), '')"),
        "bytea" => format!("coalesce(encode({c}, 'hex'), '')"),
        "json" | "jsonb" => {
            let text = format!("{c} #>> '{{}}'");
            let kind = if column.base == "json" {
                "json_typeof"
            } else {
                "jsonb_typeof"
            };
            or_empty(format!(
                "case {kind}({c}) when 'array' then {c}::json when 'object' then {c}::json when 'null' then null
                   when 'string' then to_json({text}) when 'boolean' then to_json(({text})::boolean::int)
                   when 'number' then (select {} from (select ({text})::numeric as n) f) end",
                number("n")
            ))
        }
        _ if matches!(column.category.as_str(), "A" | "C") => or_empty(format!("to_json({c})")),
        _ => format!("coalesce({c}::text, '')"),
    }
}

/// Creates the sample billing if not one of its names exists.
pub(super) async fn create_sample(conn: &mut PgConnection) -> Result<()> {
    let doing = "create the sample billing";
    let names: Vec<&str> = needs::NEEDED.iter().map(|(table, _, _)| *table).collect();
    let mut tx = Connection::begin(conn).await.map_err(sql(doing))?;
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(SAMPLE_LOCK)
        .execute(&mut *tx)
        .await
        .map_err(sql(doing))?;
    let (found,): (bool,) = sqlx::query_as(
        "select exists (select 1 from unnest($1::text[]) w(name) where to_regclass(quote_ident(w.name)) is not null)",
    )
    .bind(names)
    .fetch_one(&mut *tx)
    .await
    .map_err(sql("look for the billing's tables"))?;
    if !found {
        sqlx::raw_sql(include_str!("../../../migrations/billing/postgres.sql"))
            .execute(&mut *tx)
            .await
            .map_err(sql(doing))?;
    }
    tx.commit().await.map_err(sql(doing))
}
