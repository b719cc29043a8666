//! The words for what a billing asks: the command catalogue, the compact event that a
//! producer inserts, the expanded event, and PARAMS.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::nas::NasId;

/// Number of an event; the same in the compact stack, the main stack, dead and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub i64);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a user account (`users.id`): what a lane belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub i64);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A command name: `^[a-z][a-z0-9_]{0,63}$`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Cmd(Arc<str>);

/// Which lane gets the next free fork: the lower class first, then the older head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Class {
    /// An operator waits for the answer; only reads.
    Interactive = 0,
    /// Gives access: a payer must never wait behind a batch.
    Access = 1,
    /// Takes access away.
    Cut = 2,
    /// Changes a speed.
    Rate = 3,
    /// Everything else.
    Rest = 4,
}

impl Class {
    /// All, in order of precedence.
    pub const ALL: [Self; 5] = [
        Self::Interactive,
        Self::Access,
        Self::Cut,
        Self::Rate,
        Self::Rest,
    ];

    /// The number in `events_stack.class`.
    pub fn number(self) -> i16 {
        self as i16
    }

    /// Reads the column; an unknown number is `Rest`.
    pub fn from_number(n: i64) -> Self {
        match n {
            0 => Self::Interactive,
            1 => Self::Access,
            2 => Self::Cut,
            3 => Self::Rate,
            _ => Self::Rest,
        }
    }
}

/// The command catalogue of the original (reference: the vendor's list of OSS commands), with
/// the class of each. `u_b_*` and `b_*` are listed by name.
pub const CATALOGUE: &[(&str, Class)] = &[
    ("user_info", Class::Interactive),
    ("user_test", Class::Interactive),
    ("user_get_mac", Class::Interactive),
    ("user_redirect_cancel", Class::Access),
    ("user_accept", Class::Access),
    ("user_auth", Class::Access),
    ("own_disabled_cancel", Class::Access),
    ("u_b_negbal", Class::Access),
    ("u_b_sys", Class::Access),
    ("u_b_own", Class::Access),
    ("u_b_admin", Class::Access),
    ("user_redirect", Class::Cut),
    ("user_drop", Class::Cut),
    ("user_disconnect", Class::Cut),
    ("user_del", Class::Cut),
    ("b_negbal", Class::Cut),
    ("b_sys", Class::Cut),
    ("b_own", Class::Cut),
    ("b_admin", Class::Cut),
    ("user_rate_set", Class::Rate),
    ("user_rate_set_cancel", Class::Rate),
    ("user_add", Class::Rest),
    ("user_edit", Class::Rest),
    ("own_disabled", Class::Rest),
    ("usluga_add", Class::Rest),
    ("usluga_del", Class::Rest),
    ("usluga_activate", Class::Rest),
    ("usluga_activated", Class::Rest),
    ("usluga_deactivate", Class::Rest),
    ("usluga_deactivated", Class::Rest),
    ("users_from_nas", Class::Rest),
];

/// A command as a label: those of the catalogue by name, schemes' own together, so that no label
/// has more values than a graph has colours.
pub fn label(cmd: &str) -> &'static str {
    let known = CATALOGUE.iter().find(|(name, _)| *name == cmd);
    known.map_or("other", |(name, _)| name)
}

/// The commands of a class: those of the catalogue, and of `own`, which loaded schemes define.
pub fn of_class(class: Class, own: &[Cmd]) -> Vec<&str> {
    let fits = CATALOGUE.iter().filter(|(_, known)| *known == class);
    let own = own.iter().filter(|cmd| cmd.class() == class);
    let names = fits.map(|(name, _)| *name);
    names.chain(own.map(Cmd::as_str)).collect()
}

/// Longest life of an interactive event, seconds: the operator has given up by then.
const INTERACTIVE_TTL_S: i64 = 60;
/// Longest life of `user_disconnect`, seconds: a kick of yesterday evening must not run today.
const DISCONNECT_TTL_S: i64 = 600;

impl Cmd {
    /// Checks the form of the name, not whether anything knows it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if is_name(text) {
            Ok(Self(Arc::from(text)))
        } else {
            let shown: String = text.chars().take(80).collect();
            Err(format!(
                "cmd {shown:?} does not match ^[a-z][a-z0-9_]{{0,63}}$"
            ))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the catalogue of the original has it.
    pub fn in_catalogue(&self) -> bool {
        CATALOGUE.iter().any(|(name, _)| *name == &*self.0)
    }

    /// Its class; commands outside the catalogue are `rest`.
    pub fn class(&self) -> Class {
        if let Some((_, class)) = CATALOGUE.iter().find(|(name, _)| *name == &*self.0) {
            return *class;
        }
        if self.0.starts_with("u_b_") {
            Class::Access
        } else if self.0.starts_with("b_") {
            Class::Cut
        } else {
            Class::Rest
        }
    }

    /// How long after acceptance it may still run, in ms; none for most commands.
    pub fn ttl_ms(&self) -> Option<i64> {
        if self.class() == Class::Interactive {
            Some(INTERACTIVE_TTL_S * 1000)
        } else if &*self.0 == "user_disconnect" {
            Some(DISCONNECT_TTL_S * 1000)
        } else {
            None
        }
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Ends the name of who posted, in a source that goes on with what the event says itself. No name
/// of a token has it.
pub const POSTER_END: char = '/';

/// Who posted, by a source: whom the intent guard counts.
pub fn poster(source: &str) -> &str {
    let first = source.split(POSTER_END).next().unwrap_or_default();
    if first.is_empty() { source } else { first }
}

/// The form shared by commands and PARAMS names.
pub fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 64
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
}

/// What a producer inserts. Only `cmd` and `user_id` (or a NAS) are needed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CompactEvent {
    /// Checked by the door that it came through; rows inserted by SQL are checked by expansion.
    pub cmd: String,
    /// Absent for an event of the NAS as a whole.
    pub user_id: Option<i64>,
    /// Filled from the account if absent.
    pub abonent_id: Option<i64>,
    /// Wins over `nas_ip` and over the account's NAS.
    pub nas_id: Option<i64>,
    /// Wins over the account's NAS.
    pub nas_ip: Option<String>,
    /// Service, for `usluga_*`.
    pub usluga_id: Option<i64>,
    /// RADIUS session.
    pub acct_session_id: Option<String>,
    /// Variables of the event itself; they overlay the account's.
    pub params: Option<Map<String, Value>>,
    /// `params` is the whole set: no account row is needed.
    pub params_complete: bool,
    /// Core subsystem that added it.
    pub owner_script: Option<String>,
    /// Its function.
    pub owner_function: Option<String>,
    /// Who posted it: token name, `cli`, name of a bridge; behind [`POSTER_END`] what a token's
    /// event says itself. None for a row that came by SQL.
    pub source: Option<String>,
    /// Groups the events of one bulk call.
    pub batch_id: Option<String>,
    /// Wall time (ms) after which it is done as `expired`.
    pub expires_at_ms: Option<i64>,
    /// The dead event that this one retries.
    pub retried_from: Option<EventId>,
}

/// What `lanes` needs to know of an expanded event; PARAMS stay in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Its number.
    pub id: EventId,
    /// Where it goes.
    pub nas: NasId,
    /// Whose lane; none = an event of the NAS as a whole.
    pub user: Option<UserId>,
    /// Precedence.
    pub class: Class,
    /// Wall time (ms) of acceptance, for ageing.
    pub since_ms: i64,
    /// Wall time (ms) until which it is deferred; 0 = ready.
    pub next_try_ms: i64,
    /// Wall time (ms) of expiry; 0 = never.
    pub expires_ms: i64,
    /// Tries already burnt; bounds the wait at load.
    pub tries: u32,
    /// Process deaths during its execution; 3 make it a suspect.
    pub deaths: u32,
}

/// The variables handed to a scheme. Scalars are JSON strings or whole numbers in canonical
/// text; a JSON column is a list or a map.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Params(pub Map<String, Value>);

impl Params {
    /// The canonical text of one value, as scripts see it: empty for an absent one, `1`/`0`
    /// for booleans, compact JSON for lists and maps.
    pub fn text(&self, name: &str) -> String {
        self.0.get(name).map(value_text).unwrap_or_default()
    }
}

/// PARAMS as the row of the main stack keeps them. Reading them costs more than most of what
/// the scheduler does with an event, so it is left to the fork that needs them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredParams(pub String);

impl StoredParams {
    /// What the text says; nothing if it is no JSON object, which expansion never writes.
    pub fn read(&self) -> Params {
        Params(serde_json::from_str(&self.0).unwrap_or_default())
    }
}

impl Params {
    /// PARAMS of an event: the account's row, overlaid by the service's row, overlaid by the
    /// event's own object. Names of the event's own object are checked; a bad one is named.
    pub fn overlaid(
        account: Map<String, Value>,
        service: Option<Map<String, Value>>,
        own: Option<&Map<String, Value>>,
    ) -> Result<Self, String> {
        let mut all = account;
        all.extend(service.unwrap_or_default());
        for (name, value) in own.into_iter().flatten() {
            if !is_name(name) {
                let shown: String = name.chars().take(80).collect();
                return Err(format!(
                    "params: {shown:?} is no variable name (^[a-z][a-z0-9_]{{0,63}}$)"
                ));
            }
            if refused_name(name) {
                return Err(format!(
                    "params: {name} is refused: secrets and proxies are no variables"
                ));
            }
            all.insert(name.clone(), canonical(value));
        }
        Ok(Self(all))
    }
}

impl Params {
    /// A row of the account as JSON, without the names that the event's own object (JSON) has.
    pub fn without(account: &str, own: Option<&str>) -> Self {
        let mut all: Map<String, Value> = serde_json::from_str(account).unwrap_or_default();
        let own: Map<String, Value> = own
            .and_then(|own| serde_json::from_str(own).ok())
            .unwrap_or_default();
        all.retain(|name, _| !own.contains_key(name));
        Self(all)
    }
}

/// Names that never become variables: they would leak secrets or steer programs.
pub fn refused_name(name: &str) -> bool {
    name.ends_with("_proxy")
        || ["psw", "password", "secret"]
            .iter()
            .any(|part| name.contains(part))
}

/// The form in which PARAMS keep a value: NULL is empty, booleans are 1 and 0, whole numbers
/// stay numbers, other numbers are plain decimal text.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Null => Value::String(String::new()),
        Value::Bool(b) => Value::from(i64::from(*b)),
        Value::Number(n) if n.is_f64() => {
            let f = n.as_f64().unwrap_or_default();
            let text = format!("{f:.10}");
            let text = text.trim_end_matches('0').trim_end_matches('.');
            text.parse::<i64>()
                .map_or_else(|_| Value::String(text.to_owned()), Value::from)
        }
        Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => value.clone(),
    }
}

/// Canonical text of one JSON value.
pub fn value_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "1".to_owned(),
        Value::Bool(false) => "0".to_owned(),
        Value::String(s) => s.clone(),
        Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["user_add", "a", "u_b_negbal", &"a".repeat(64)] {
            assert!(Cmd::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "User",
            "1a",
            "a-b",
            "a b",
            "a\n",
            "ä",
            &"a".repeat(65),
            "$(x)",
        ] {
            assert!(Cmd::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn classes_and_ttls() {
        let class = |c: &str| Cmd::parse(c).unwrap().class();
        assert_eq!(class("user_redirect_cancel"), Class::Access);
        assert_eq!(class("u_b_whatever"), Class::Access);
        assert_eq!(class("b_whatever"), Class::Cut);
        assert_eq!(class("user_rate_set"), Class::Rate);
        assert_eq!(class("my_own"), Class::Rest);
        assert_eq!(Cmd::parse("user_info").unwrap().ttl_ms(), Some(60_000));
        assert_eq!(
            Cmd::parse("user_disconnect").unwrap().ttl_ms(),
            Some(600_000)
        );
        assert_eq!(Cmd::parse("user_add").unwrap().ttl_ms(), None);
        for c in Class::ALL {
            assert_eq!(Class::from_number(i64::from(c.number())), c);
        }
    }
}
