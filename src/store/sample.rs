//! Rows from elsewhere for the sample billing: providers without a billing of their own keep NASes
//! and accounts in its tables. Only into those: whoever brings tables or views of these names keeps
//! them himself.

use serde_json::{Map, Value};

use super::{Error, Result};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A whole number.
    Whole,
    /// A whole number, never NULL.
    WholeAlways,
    /// A number.
    Number,
    /// A text.
    Text,
    /// A text, never NULL.
    TextAlways,
    /// A JSON document.
    Json,
}

/// A table of the sample billing: its name, its key, and all other columns.
#[derive(Debug, PartialEq, Eq)]
pub struct Sheet {
    /// Name.
    pub table: &'static str,
    /// Key, a whole number.
    pub key: &'static str,
    /// The rest.
    pub columns: &'static [(&'static str, Holds)],
    /// Values of rows that are new and do not say otherwise.
    pub at_first: &'static [(&'static str, &'static str)],
}

/// NASes. A new one sends nothing until it is activated.
pub const NAS: Sheet = Sheet {
    table: "nas",
    key: "id",
    columns: &[
        ("name", Holds::TextAlways),
        ("ip", Holds::TextAlways),
        ("mode", Holds::TextAlways),
        ("forks", Holds::WholeAlways),
        ("oss_path", Holds::Text),
        ("script_name", Holds::Text),
        ("api_port", Holds::Whole),
        ("api_tls", Holds::WholeAlways),
        ("ssh_port", Holds::Whole),
        ("ssh_host_key", Holds::Text),
        ("telnet_port", Holds::Whole),
        ("coa_port", Holds::Whole),
        ("http_url", Holds::Text),
        ("max_sessions", Holds::Whole),
        ("max_rate", Holds::Number),
        ("timeout_ms", Holds::Whole),
        ("on_error", Holds::Text),
        ("vars", Holds::Json),
    ],
    at_first: &[("mode", "observe")],
};

/// Their credentials.
pub const NAS_SECRET: Sheet = Sheet {
    table: "nas_secret",
    key: "nas_id",
    columns: &[
        ("login", Holds::Text),
        ("password", Holds::Text),
        ("enable_password", Holds::Text),
        ("coa_secret", Holds::Text),
        ("ssh_key", Holds::Text),
    ],
    at_first: &[],
};

/// Accounts.
pub const USERS: Sheet = Sheet {
    table: "users",
    key: "id",
    columns: &[
        ("abonent_id", Holds::Whole),
        ("nas_id", Holds::Whole),
        ("login", Holds::Text),
        ("ip", Holds::Text),
        ("mac", Holds::Text),
        ("snatip", Holds::Text),
        ("auth_type", Holds::WholeAlways),
        ("accept", Holds::WholeAlways),
        ("redirect", Holds::WholeAlways),
        ("logged", Holds::WholeAlways),
        ("deleted", Holds::WholeAlways),
        ("rate_in", Holds::Whole),
        ("rate_out", Holds::Whole),
        ("ceil_in", Holds::Whole),
        ("ceil_out", Holds::Whole),
        ("burst_in", Holds::Whole),
        ("burst_out", Holds::Whole),
        ("cburst_in", Holds::Whole),
        ("cburst_out", Holds::Whole),
        ("acct_session_id", Holds::Text),
        ("addresses", Holds::Json),
        ("vlan", Holds::Text),
        ("switch_ip", Holds::Text),
        ("switch_port", Holds::Text),
        ("circuit_id", Holds::Text),
    ],
    at_first: &[],
};

/// Whose accounts they are.
pub const ABONENTS: Sheet = Sheet {
    table: "abonents",
    key: "id",
    columns: &[("name", Holds::TextAlways)],
    at_first: &[],
};

/// Rows for one table. Each is an object of the key and of `columns`.
#[derive(Debug, Clone)]
pub struct Filling {
    /// The table.
    pub sheet: &'static Sheet,
    /// Columns that are given, without the key.
    pub columns: Vec<&'static str>,
    /// Rows of different keys.
    pub rows: Vec<Map<String, Value>>,
}

/// Hears how many rows have been put in so far.
pub type Told<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// What rows did to a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filled {
    /// New ones.
    pub added: i64,
    /// Those that were there and are another now.
    pub changed: i64,
    /// Those that were there as they are.
    pub same: i64,
    /// Rows of the table that were not given; they stay.
    pub not_given: i64,
}

impl Filling {
    /// The statement that puts `rows` in, given what they are read from (a source `r` of the same
    /// column names) and how "differs" is written.
    pub(super) fn upsert(&self, source: &str, differs: &str) -> String {
        let Sheet { table, key, .. } = self.sheet;
        let first = self.sheet.at_first.iter();
        let first: Vec<_> = first
            .filter(|(name, _)| !self.columns.contains(name))
            .collect();
        let mut names = vec![*key];
        names.extend(&self.columns);
        let mut values: Vec<String> = names.iter().map(|name| format!("r.{name}")).collect();
        for (name, value) in first {
            names.push(name);
            values.push(format!("'{value}'"));
        }
        let set: Vec<String> = self
            .columns
            .iter()
            .map(|name| format!("{name} = excluded.{name}"))
            .collect();
        let other: Vec<String> = self
            .columns
            .iter()
            .map(|name| format!("{table}.{name} {differs} excluded.{name}"))
            .collect();
        let conflict = if set.is_empty() {
            "nothing".to_owned()
        } else {
            format!("update set {} where {}", set.join(", "), other.join(" or "))
        };
        format!(
            "insert into {table} ({}) select {} from {source} where true on conflict ({key}) do {conflict}",
            names.join(", "),
            values.join(", ")
        )
    }

    /// Counts from how many rows there were, how many of them were given, and what changed.
    pub(super) fn filled(&self, there: i64, given_there: i64, touched: i64) -> Filled {
        let given = i64::try_from(self.rows.len()).unwrap_or(i64::MAX);
        let added = given - given_there;
        Filled {
            added,
            changed: touched - added,
            same: given_there - (touched - added),
            not_given: there - given_there,
        }
    }
}

/// Rows as the JSON text that a statement reads them from.
pub(super) fn text_of(rows: &[Map<String, Value>]) -> String {
    let rows: Value = rows.iter().cloned().map(Value::Object).collect();
    rows.to_string()
}

/// Refuses a table that is not the sample's: a view, or other columns.
pub(super) fn ours(sheet: &Sheet, is_table: bool, columns: &[String]) -> Result<()> {
    let known =
        |name: &String| name == sheet.key || sheet.columns.iter().any(|(column, _)| column == name);
    if is_table && columns.len() == sheet.columns.len() + 1 && columns.iter().all(known) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} belongs to your billing: it is {}, and only the sample billing of this daemon is filled \
         by it\nhint: what the billing's tables and views hold is changed there",
        sheet.table,
        if is_table {
            "a table with columns of its own"
        } else {
            "no table of ours"
        }
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_touches_only_what_differs() {
        let filling = Filling {
            sheet: &NAS,
            columns: vec!["ip", "forks"],
            rows: Vec::new(),
        };
        assert_eq!(
            filling.upsert("s r", "is distinct from"),
            "insert into nas (id, ip, forks, mode) select r.id, r.ip, r.forks, 'observe' from s r \
             where true on conflict (id) do update set ip = excluded.ip, forks = excluded.forks \
             where nas.ip is distinct from excluded.ip or nas.forks is distinct from excluded.forks"
        );
        let with_mode = Filling {
            columns: vec!["mode"],
            ..filling.clone()
        };
        assert!(
            with_mode
                .upsert("s r", "is not")
                .contains("(id, mode) select r.id, r.mode from")
        );
        let keys = Filling {
            columns: Vec::new(),
            sheet: &ABONENTS,
            ..filling
        };
        assert!(keys.upsert("s r", "is not").ends_with("do nothing"));
    }

    #[test]
    fn only_the_sample_is_ours() {
        let own = |sheet: &Sheet| {
            let mut names = vec![sheet.key.to_owned()];
            names.extend(sheet.columns.iter().map(|(name, _)| (*name).to_owned()));
            names
        };
        let mut columns = own(&ABONENTS);
        assert!(ours(&ABONENTS, true, &columns).is_ok());
        let view = ours(&ABONENTS, false, &columns).unwrap_err().to_string();
        assert!(view.contains("belongs to your billing"), "{view}");
        columns.push("balance".to_owned());
        assert!(ours(&ABONENTS, true, &columns).is_err());
        assert!(ours(&NAS, true, &own(&USERS)).is_err());
    }
}
