//! A small typed question about the rows of one model of the classic API; `statement` makes
//! SQL of it. Names of columns come from the lists here or from the database's own catalogue,
//! values are only ever bound, so nothing that a caller writes becomes part of a statement.

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
    /// The daemon's own look, or of a process of its own: [`LOOK_MAX`](super::LOOK_MAX) does not end
    /// it.
    pub unbounded: bool,
}

impl Query {
    /// The row of one number.
    pub fn one_of(model: Model, id: i64) -> Self {
        let is = Condition {
            path: Vec::new(),
            column: "id".to_owned(),
            test: Test::In(vec![Bound::Integer(id)]),
        };
        Self {
            groups: vec![Group {
                negated: false,
                all: vec![is],
            }],
            limit: 1,
            ..Self::all(model)
        }
    }

    /// Every row of a model, newest events first, accounts by their number.
    pub fn all(model: Model) -> Self {
        Self {
            model,
            groups: Vec::new(),
            order: Vec::new(),
            columns: vec!["id".to_owned()],
            limit: ROWS_MAX,
            offset: 0,
            unbounded: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_the_billing_are_no_fields() {
        for hidden in ["vars", "http_url", "web_password", "psw", "Name", "a\"b"] {
            assert!(!may_be_asked(hidden), "{hidden}");
        }
        assert!(may_be_asked("login"));
    }
}
