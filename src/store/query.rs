//! A small typed question about the rows of one model of the classic API, and the SQL that it
//! becomes. Names of columns come from the lists here or from the database's own catalogue,
//! values are only ever bound, so nothing that a caller writes becomes part of a statement.

use super::{Error, Result};

/// Most conditions of one question: each costs the planner something.
pub const CONDITIONS_MAX: usize = 64;
/// Most values of one `in`.
pub const IN_MAX: usize = 1_000;
/// Most rows of one answer.
pub const ROWS_MAX: usize = 1_001;

/// What can be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Model {
    /// `events_stack_compact`
    Compact,
    /// `events_stack`
    Stack,
    /// `events_dead`
    Dead,
    /// `events_done`
    Done,
    /// The billing's `nas`, without what may hold a secret.
    Nas,
    /// The billing's `users`.
    Users,
    /// The billing's `abonents`.
    Abonents,
    /// The billing's `usluga`.
    Usluga,
}

impl Model {
    /// All of them, as the classic API lists them.
    pub const ALL: [Self; 8] = [
        Self::Compact,
        Self::Stack,
        Self::Dead,
        Self::Done,
        Self::Nas,
        Self::Users,
        Self::Abonents,
        Self::Usluga,
    ];

    /// Name in the classic API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compact => "EventsStackCompact",
            Self::Stack => "EventsStack",
            Self::Dead => "EventsDead",
            Self::Done => "EventsDone",
            Self::Nas => "Nas",
            Self::Users => "Users",
            Self::Abonents => "Abonents",
            Self::Usluga => "Usluga",
        }
    }

    /// Table or view.
    pub fn table(self) -> &'static str {
        match self {
            Self::Compact => "events_stack_compact",
            Self::Stack => "events_stack",
            Self::Dead => "events_dead",
            Self::Done => "events_done",
            Self::Nas => "nas",
            Self::Users => "users",
            Self::Abonents => "abonents",
            Self::Usluga => "usluga",
        }
    }

    /// The billing's table: only read.
    pub fn is_theirs(self) -> bool {
        match self {
            Self::Compact | Self::Stack | Self::Dead | Self::Done => false,
            Self::Nas | Self::Users | Self::Abonents | Self::Usluga => true,
        }
    }

    /// Where its columns lead to, by the name in `a__b`.
    pub fn relations(self) -> &'static [Relation] {
        match self {
            Self::Compact | Self::Stack | Self::Dead | Self::Done => OF_EVENTS,
            Self::Users => OF_USERS,
            Self::Abonents => OF_ABONENTS,
            Self::Nas => OF_NAS,
            Self::Usluga => &[],
        }
    }

    /// Columns of our own tables; none for the billing's, whose catalogue says them.
    pub(super) fn ours(self) -> Option<&'static [Own]> {
        match self {
            Self::Compact => Some(COMPACT),
            Self::Stack => Some(STACK),
            Self::Dead => Some(DEAD),
            Self::Done => Some(DONE),
            Self::Nas | Self::Users | Self::Abonents | Self::Usluga => None,
        }
    }
}

/// A way from one model to another: `from` here equals `to` there.
#[derive(Debug, PartialEq, Eq)]
pub struct Relation {
    /// As in `user__login`.
    pub name: &'static str,
    /// Column here.
    pub from: &'static str,
    /// The other model.
    pub model: Model,
    /// Column there.
    pub to: &'static str,
    /// There may be several.
    pub many: bool,
}

const fn one(name: &'static str, from: &'static str, model: Model) -> Relation {
    Relation {
        name,
        from,
        model,
        to: "id",
        many: false,
    }
}

const fn many(name: &'static str, model: Model, to: &'static str) -> Relation {
    Relation {
        name,
        from: "id",
        model,
        to,
        many: true,
    }
}

const OF_EVENTS: &[Relation] = &[
    one("user", "user_id", Model::Users),
    one("abonent", "abonent_id", Model::Abonents),
    one("nas", "nas_id", Model::Nas),
    one("usluga", "usluga_id", Model::Usluga),
];
const OF_USERS: &[Relation] = &[
    one("abonent", "abonent_id", Model::Abonents),
    one("nas", "nas_id", Model::Nas),
];
const OF_ABONENTS: &[Relation] = &[many("users", Model::Users, "abonent_id")];
const OF_NAS: &[Relation] = &[many("users", Model::Users, "nas_id")];

/// What a column holds, and so which tests it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whole numbers.
    Integer,
    /// Other numbers.
    Decimal,
    /// True or false.
    Boolean,
    /// Texts, and what is only ever compared as text.
    Text,
    /// A point in time.
    Time,
    /// A list or an object; only `isnull` and `contains`.
    Json,
}

impl Kind {
    /// As the pages of the models call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Decimal => "decimal",
            Self::Boolean => "boolean",
            Self::Text => "text",
            Self::Time => "datetime",
            Self::Json => "object",
        }
    }
}

/// One column of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name in answers and look-ups.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// Part of an answer that asks for no certain fields.
    pub shown: bool,
    /// SQL that is compared.
    pub(super) compare: String,
    /// SQL of the value as JSON.
    pub(super) json: String,
}

impl Column {
    /// One of no database.
    #[cfg(test)]
    pub fn for_tests(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            shown: true,
            compare: name.to_owned(),
            json: name.to_owned(),
        }
    }
}

/// A column of our own tables: name, SQL, kind, shown.
pub(super) type Own = (&'static str, &'static str, Kind, bool);

const COMPACT: &[Own] = &[
    ("id", "id", Kind::Integer, true),
    ("cmd", "cmd", Kind::Text, true),
    ("event_type", "cmd", Kind::Text, false),
    ("user_id", "user_id", Kind::Integer, true),
    ("abonent_id", "abonent_id", Kind::Integer, true),
    ("nas_id", "nas_id", Kind::Integer, true),
    ("nas_ip", "nas_ip", Kind::Text, true),
    ("usluga_id", "usluga_id", Kind::Integer, true),
    ("acct_session_id", "acct_session_id", Kind::Text, true),
    ("params", "params", Kind::Json, true),
    ("params_complete", "params_complete", Kind::Boolean, true),
    ("owner_script", "owner_script", Kind::Text, true),
    ("owner_function", "owner_function", Kind::Text, true),
    ("source", "source", Kind::Text, true),
    ("batch_id", "batch_id", Kind::Text, true),
    ("expires_at", "expires_at", Kind::Time, true),
    ("created_at", "created_at", Kind::Time, true),
    ("event_date", "created_at", Kind::Time, true),
    ("state", "'compact'", Kind::Text, true),
    ("error", "error", Kind::Text, true),
    ("expand_tries", "expand_tries", Kind::Integer, true),
    ("next_expand_at", "next_expand_at", Kind::Time, true),
];

const STACK: &[Own] = &[
    ("id", "id", Kind::Integer, true),
    ("event_type", "event_type", Kind::Text, true),
    ("cmd", "event_type", Kind::Text, false),
    ("state", "state", Kind::Text, true),
    ("user_id", "user_id", Kind::Integer, true),
    ("abonent_id", "abonent_id", Kind::Integer, true),
    ("nas_id", "nas_id", Kind::Integer, true),
    ("usluga_id", "usluga_id", Kind::Integer, true),
    ("acct_session_id", "acct_session_id", Kind::Text, true),
    ("class", "class", Kind::Integer, true),
    ("source", "source", Kind::Text, true),
    ("batch_id", "batch_id", Kind::Text, true),
    ("owner_script", "owner_script", Kind::Text, true),
    ("owner_function", "owner_function", Kind::Text, true),
    ("event_date", "event_date", Kind::Time, true),
    ("expires_at", "expires_at", Kind::Time, true),
    ("try_count", "try_count", Kind::Integer, true),
    ("deaths", "deaths", Kind::Integer, true),
    ("next_try_at", "next_try_at", Kind::Time, true),
    ("started_at", "started_at", Kind::Time, true),
    (
        "possible_duplicate",
        "possible_duplicate",
        Kind::Boolean,
        true,
    ),
    ("last_code", "last_code", Kind::Integer, true),
    ("code", "last_code", Kind::Integer, false),
    ("last_error", "last_error", Kind::Text, true),
    ("error", "last_error", Kind::Text, false),
    ("params", "params", Kind::Json, true),
];

const DEAD: &[Own] = &[
    ("id", "id", Kind::Integer, true),
    ("event_type", "event_type", Kind::Text, true),
    ("cmd", "event_type", Kind::Text, false),
    ("state", "'dead'", Kind::Text, true),
    ("user_id", "user_id", Kind::Integer, true),
    ("abonent_id", "abonent_id", Kind::Integer, true),
    ("nas_id", "nas_id", Kind::Integer, true),
    ("usluga_id", "usluga_id", Kind::Integer, true),
    ("acct_session_id", "acct_session_id", Kind::Text, true),
    ("source", "source", Kind::Text, true),
    ("batch_id", "batch_id", Kind::Text, true),
    ("owner_script", "owner_script", Kind::Text, true),
    ("owner_function", "owner_function", Kind::Text, true),
    ("event_date", "event_date", Kind::Time, true),
    ("try_count", "try_count", Kind::Integer, true),
    ("died_at", "died_at", Kind::Time, true),
    ("ended_at", "died_at", Kind::Time, false),
    (
        "possible_duplicate",
        "possible_duplicate",
        Kind::Boolean,
        true,
    ),
    ("last_code", "last_code", Kind::Integer, true),
    ("code", "last_code", Kind::Integer, false),
    ("last_error", "last_error", Kind::Text, true),
    ("reason", "reason", Kind::Text, true),
    ("error", "reason", Kind::Text, false),
    ("params", "params", Kind::Json, true),
    ("retried_as", "retried_as", Kind::Integer, true),
];

const DONE: &[Own] = &[
    ("id", "id", Kind::Integer, true),
    ("event_type", "event_type", Kind::Text, true),
    ("cmd", "event_type", Kind::Text, false),
    ("result", "result", Kind::Text, true),
    ("state", "result", Kind::Text, false),
    ("user_id", "user_id", Kind::Integer, true),
    ("abonent_id", "abonent_id", Kind::Integer, true),
    ("nas_id", "nas_id", Kind::Integer, true),
    ("usluga_id", "usluga_id", Kind::Integer, true),
    ("acct_session_id", "acct_session_id", Kind::Text, true),
    ("source", "source", Kind::Text, true),
    ("batch_id", "batch_id", Kind::Text, true),
    ("owner_script", "owner_script", Kind::Text, true),
    ("owner_function", "owner_function", Kind::Text, true),
    ("event_date", "event_date", Kind::Time, true),
    ("started_at", "started_at", Kind::Time, true),
    ("finished_at", "finished_at", Kind::Time, true),
    ("ended_at", "finished_at", Kind::Time, false),
    ("attempts", "attempts", Kind::Integer, true),
    ("try_count", "attempts", Kind::Integer, false),
    (
        "possible_duplicate",
        "possible_duplicate",
        Kind::Boolean,
        true,
    ),
    ("code", "code", Kind::Integer, true),
    ("ms", "ms", Kind::Integer, true),
    ("error", "error", Kind::Text, true),
    ("answer", "answer", Kind::Text, true),
    ("scheme_hash", "scheme_hash", Kind::Text, true),
];

/// Columns of the billing's tables that may hold a secret, beside those whose names say so: a
/// look-up by them would tell it letter by letter.
const HIDDEN: &[&str] = &["vars", "http_url"];

/// Whether the classic API knows a column of the billing at all.
pub(super) fn may_be_asked(name: &str) -> bool {
    crate::event::is_name(name) && !crate::event::refused_name(name) && !HIDDEN.contains(&name)
}

/// A value to compare with.
#[derive(Debug, Clone, PartialEq)]
pub enum Bound {
    /// Also wall time, ms.
    Integer(i64),
    /// Plain decimal text.
    Decimal(String),
    /// True or false.
    Boolean(bool),
    /// Text, without NUL characters.
    Text(String),
}

/// What is asked of one column.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// Equal to one of them; to none of an empty list.
    In(Vec<Bound>),
    /// `>`
    Above(Bound),
    /// `>=`
    From(Bound),
    /// `<`
    Below(Bound),
    /// `<=`
    To(Bound),
    /// NULL, or not.
    IsNull(bool),
    /// Holds this text, in the same letter case.
    Contains(String),
    /// Begins with this text, in the same letter case.
    StartsWith(String),
}

/// One test of a column, here or behind relations.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The way to the column's model, one relation after the other.
    pub path: Vec<&'static Relation>,
    /// Column at its end.
    pub column: String,
    /// What is asked.
    pub test: Test,
}

/// Conditions that must all hold, or (negated) must not all hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// `exclude`
    pub negated: bool,
    /// Empty = everything.
    pub all: Vec<Condition>,
}

/// A question about one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// About what.
    pub model: Model,
    /// All of them must hold.
    pub groups: Vec<Group>,
    /// Columns, and whether each descends; `id` is always the last.
    pub order: Vec<(String, bool)>,
    /// Wanted columns, in their order.
    pub columns: Vec<String>,
    /// At most so many rows, 1..=[`ROWS_MAX`].
    pub limit: usize,
    /// Rows that are skipped.
    pub offset: u64,
}

impl Query {
    /// Every row of a model, newest events first, accounts by their number.
    pub fn all(model: Model) -> Self {
        Self {
            model,
            groups: Vec::new(),
            order: Vec::new(),
            columns: vec!["id".to_owned()],
            limit: ROWS_MAX,
            offset: 0,
        }
    }
}

/// How a database writes what the two write differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// A finished statement: its text, and the values in the order of their numbers.
pub(super) type Finished = (String, Vec<Bound>);

/// One row per object, one column: the object as JSON text.
pub(super) fn objects(
    dialect: Dialect,
    columns: &dyn Fn(Model) -> Vec<Column>,
    query: &Query,
) -> Result<Finished> {
    let mut statement = Statement::new(dialect, columns);
    statement.objects(query)?;
    Ok((statement.text, statement.bound))
}

/// One row with the number of objects.
pub(super) fn number(
    dialect: Dialect,
    columns: &dyn Fn(Model) -> Vec<Column>,
    query: &Query,
) -> Result<Finished> {
    let mut statement = Statement::new(dialect, columns);
    statement.text = format!("select count(*) from {}", query.model.table());
    statement.conditions(query)?;
    Ok((statement.text, statement.bound))
}

/// A statement under construction.
struct Statement<'a> {
    dialect: Dialect,
    columns: &'a dyn Fn(Model) -> Vec<Column>,
    text: String,
    bound: Vec<Bound>,
}

impl<'a> Statement<'a> {
    fn new(dialect: Dialect, columns: &'a dyn Fn(Model) -> Vec<Column>) -> Self {
        Self {
            dialect,
            columns,
            text: String::new(),
            bound: Vec::new(),
        }
    }

    fn column(&self, model: Model, name: &str) -> Result<Column> {
        let columns = (self.columns)(model);
        columns
            .into_iter()
            .find(|c| c.name == name)
            .ok_or_else(|| Error::Refused(format!("{} has no field {name:?}", model.name())))
    }

    fn objects(&mut self, query: &Query) -> Result<()> {
        let mut pairs = Vec::new();
        for name in &query.columns {
            let column = self.column(query.model, name)?;
            pairs.push(match self.dialect {
                Dialect::Sqlite => format!("'{name}', {}", column.json),
                Dialect::Postgres => format!("{} as \"{name}\"", column.json),
            });
        }
        let pairs = pairs.join(", ");
        self.text = match self.dialect {
            Dialect::Sqlite => format!("select json_object({pairs}) as row"),
            Dialect::Postgres => format!("select row_to_json(v)::text as row from (select {pairs}"),
        };
        self.text
            .push_str(&format!(" from {}", query.model.table()));
        self.conditions(query)?;
        self.order(query)?;
        let limit = query.limit.clamp(1, ROWS_MAX);
        self.text
            .push_str(&format!(" limit {limit} offset {}", query.offset));
        if self.dialect == Dialect::Postgres {
            self.text.push_str(") v");
        }
        Ok(())
    }

    fn order(&mut self, query: &Query) -> Result<()> {
        let mut parts = Vec::new();
        for (name, descending) in &query.order {
            let column = self.column(query.model, name)?;
            let direction = if *descending { "desc" } else { "asc" };
            // The two databases put NULL at different ends.
            parts.push(format!("({}) is null", column.compare));
            parts.push(format!("{} {direction}", self.sortable(&column)));
        }
        let direction = if query.model.is_theirs() {
            "asc"
        } else {
            "desc"
        };
        parts.push(format!("id {direction}"));
        self.text.push_str(" order by ");
        self.text.push_str(&parts.join(", "));
        Ok(())
    }

    /// Text is ordered by bytes in both databases.
    fn sortable(&self, column: &Column) -> String {
        match (self.dialect, column.kind) {
            (Dialect::Postgres, Kind::Text) => format!("({}) collate \"C\"", column.compare),
            _ => column.compare.clone(),
        }
    }

    fn conditions(&mut self, query: &Query) -> Result<()> {
        let mut parts = Vec::new();
        for group in &query.groups {
            let mut all = Vec::new();
            for condition in &group.all {
                all.push(self.condition(query.model, &condition.path, condition)?);
            }
            if all.is_empty() {
                all.push("1 = 1".to_owned());
            }
            let all = all.join(" and ");
            parts.push(if group.negated {
                format!("({all}) is not true")
            } else {
                format!("({all})")
            });
        }
        if !parts.is_empty() {
            self.text.push_str(" where ");
            self.text.push_str(&parts.join(" and "));
        }
        Ok(())
    }

    fn condition(
        &mut self,
        model: Model,
        path: &[&'static Relation],
        condition: &Condition,
    ) -> Result<String> {
        let Some((relation, rest)) = path.split_first() else {
            let column = self.column(model, &condition.column)?;
            return Ok(self.test(&column, &condition.test));
        };
        let here = self.column(model, relation.from)?;
        let there = self.column(relation.model, relation.to)?;
        let inner = self.condition(relation.model, rest, condition)?;
        Ok(format!(
            "{} in (select {} from {} where {inner})",
            here.compare,
            there.compare,
            relation.model.table()
        ))
    }

    fn test(&mut self, column: &Column, test: &Test) -> String {
        let c = &column.compare;
        match test {
            Test::In(values) if values.is_empty() => "1 = 0".to_owned(),
            Test::In(values) => {
                let list: Vec<String> = values.iter().map(|v| self.bind(v)).collect();
                format!("{c} in ({})", list.join(", "))
            }
            Test::Above(value) => format!("{} > {}", self.sortable(column), self.bind(value)),
            Test::From(value) => format!("{} >= {}", self.sortable(column), self.bind(value)),
            Test::Below(value) => format!("{} < {}", self.sortable(column), self.bind(value)),
            Test::To(value) => format!("{} <= {}", self.sortable(column), self.bind(value)),
            Test::IsNull(true) => format!("({c}) is null"),
            Test::IsNull(false) => format!("({c}) is not null"),
            Test::Contains(part) => {
                let part = self.bind(&Bound::Text(part.clone()));
                match self.dialect {
                    Dialect::Sqlite => format!("instr({c}, {part}) > 0"),
                    Dialect::Postgres => format!("strpos(({c})::text, {part}) > 0"),
                }
            }
            Test::StartsWith(part) => {
                let part = self.bind(&Bound::Text(part.clone()));
                match self.dialect {
                    Dialect::Sqlite => format!("substr({c}, 1, length({part})) = {part}"),
                    Dialect::Postgres => format!("starts_with(({c})::text, {part})"),
                }
            }
        }
    }

    fn bind(&mut self, value: &Bound) -> String {
        self.bound.push(value.clone());
        let number = self.bound.len();
        match (self.dialect, value) {
            (Dialect::Sqlite, Bound::Decimal(_)) => format!("cast(?{number} as numeric)"),
            (Dialect::Sqlite, _) => format!("?{number}"),
            (Dialect::Postgres, Bound::Integer(_)) => format!("${number}::bigint"),
            (Dialect::Postgres, Bound::Decimal(_)) => format!("${number}::numeric"),
            (Dialect::Postgres, Bound::Boolean(_)) => format!("${number}::boolean"),
            (Dialect::Postgres, Bound::Text(_)) => format!("${number}::text"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(model: Model) -> Vec<Column> {
        let own = model.ours().unwrap_or(&[("id", "id", Kind::Integer, true)]);
        own.iter()
            .map(|(name, sql, kind, shown)| Column {
                name: (*name).to_owned(),
                kind: *kind,
                shown: *shown,
                compare: (*sql).to_owned(),
                json: (*sql).to_owned(),
            })
            .collect()
    }

    #[test]
    fn values_are_bound_and_names_are_known() {
        let hostile = "x'; drop table nas; --";
        let mut query = Query::all(Model::Done);
        query.groups.push(Group {
            negated: true,
            all: vec![Condition {
                path: Vec::new(),
                column: "answer".to_owned(),
                test: Test::Contains(hostile.to_owned()),
            }],
        });
        for dialect in [Dialect::Sqlite, Dialect::Postgres] {
            let mut statement = Statement::new(dialect, &columns);
            statement.objects(&query).unwrap();
            assert!(!statement.text.contains("drop"), "{}", statement.text);
            assert_eq!(statement.bound, [Bound::Text(hostile.to_owned())]);
        }
        query.columns = vec![hostile.to_owned()];
        let mut statement = Statement::new(Dialect::Sqlite, &columns);
        assert!(statement.objects(&query).is_err());
        let mut query = Query::all(Model::Done);
        query.order.push((hostile.to_owned(), false));
        assert!(statement.objects(&query).is_err());
    }

    #[test]
    fn secrets_of_the_billing_are_no_fields() {
        for hidden in ["vars", "http_url", "web_password", "psw", "Name", "a\"b"] {
            assert!(!may_be_asked(hidden), "{hidden}");
        }
        assert!(may_be_asked("login"));
    }
}
