//! Which names a scheme uses and where each comes from, for `scheme vars`; and what the
//! well-known ones mean.

use std::collections::BTreeMap;

use super::names::{NAS_COLUMNS, PROMISED, RESERVED, WELL_KNOWN};
use super::{NativeScheme, expression};

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// As it stands in the scheme; columns and `nas.vars` as `nas.<name>`.
    pub name: String,
    /// `daemon`, `billing`, `[vars]`, `nas`, `nas.vars`, `step`.
    pub source: &'static str,
    /// In one line; empty for what only the scheme's author knows.
    pub meaning: &'static str,
    /// Commands and parts that use it.
    pub used_by: Vec<String>,
}

/// What the well-known and reserved names mean. `in` is from the subscriber, `out` to him.
const MEANINGS: &[(&str, &str)] = &[
    ("user_id", "number of the account"),
    ("abonent_id", "number of the abonent who has the account"),
    ("usluga_id", "number of the service, in events about one"),
    ("usluga_name", "its name"),
    ("login", "login of the account"),
    ("ip", "first address of the account"),
    ("mac", "MAC of the subscriber's device"),
    ("vlan", "VLAN of the subscriber"),
    ("snatip", "public address behind which the account is"),
    ("ifname", "interface of the session on the NAS"),
    ("switch_ip", "switch of the subscriber (option 82)"),
    ("switch_port", "its port"),
    ("circuit_id", "circuit of the subscriber (option 82)"),
    ("acct_session_id", "RADIUS session, as the NAS calls it"),
    (
        "auth_type",
        "how the account logs in; a number of the billing",
    ),
    ("accept", "1 = may pass, 0 = blocked by the administrator"),
    ("redirect", "1 = nothing is paid, shows the page"),
    ("logged", "1 = is logged in"),
    ("deleted", "1 = is in the trash"),
    ("rate_in", "guaranteed rate from the subscriber, kbit/s"),
    ("rate_out", "guaranteed rate to the subscriber, kbit/s"),
    ("ceil_in", "highest rate from the subscriber, kbit/s"),
    ("ceil_out", "highest rate to the subscriber, kbit/s"),
    (
        "burst_in",
        "burst from the subscriber, as the tariff has it",
    ),
    ("burst_out", "burst to the subscriber, as the tariff has it"),
    (
        "cburst_in",
        "burst above the highest rate, from the subscriber",
    ),
    (
        "cburst_out",
        "burst above the highest rate, to the subscriber",
    ),
    ("service", "the event's service, a map"),
    ("services", "all services of the account, a list of maps"),
    ("sessions", "live sessions of the account, a list of maps"),
    ("cmd", "the command"),
    ("event_type", "the command, as the original calls it"),
    ("event_id", "number of the event"),
    ("try_count", "number of this try, from 1"),
    ("possible_duplicate", "1 = may have been carried out before"),
    ("nas_id", "number of the NAS"),
    ("nas_ip", "its address"),
    ("nas_name", "its name"),
    ("oss_path", "directory of the scheme"),
    (
        "nas_version",
        "software of the router, as it says; may be empty",
    ),
    ("nas", "settings of the NAS: columns and nas.vars"),
    ("params", "all variables of the event, a map"),
    (
        "addresses",
        "all addresses and prefixes of the account, a list",
    ),
    ("nets", "the same as prefixes"),
    ("slot", "promised: smallest free number of the NAS"),
    ("telnet_ip", "address of the NAS, as the original calls it"),
    ("telnet_login", "login of the NAS"),
    ("telnet_password", "its password; never logged"),
    ("coa_psw", "RADIUS secret of the NAS; never logged"),
];

/// What a name means, if it is one of ours.
fn meaning(name: &str) -> &'static str {
    let found = MEANINGS.iter().find(|(known, _)| *known == name);
    found.map_or("", |(_, meaning)| meaning)
}

impl Variable {
    /// One that the daemon sets.
    pub fn of_daemon(name: &str) -> Self {
        Self::new(name, "daemon")
    }

    fn new(name: &str, source: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            source,
            meaning: meaning(name),
            used_by: Vec::new(),
        }
    }
}

/// The names that every scheme may use.
pub fn well_known() -> Vec<Variable> {
    let billing = WELL_KNOWN
        .iter()
        .map(|(name, _)| Variable::new(name, "billing"));
    let ours = RESERVED.iter().map(|name| Variable::of_daemon(name));
    billing.chain(ours).collect()
}

impl NativeScheme {
    /// The names that this scheme uses, sorted, with their sources.
    pub fn variables(&self) -> Vec<Variable> {
        let mut found: BTreeMap<String, Variable> = BTreeMap::new();
        let on = self.on.iter().map(|(cmd, steps)| (cmd.as_str(), steps));
        let parts = self.parts.iter();
        let parts = parts.map(|(name, (_, steps))| (&**name, steps));
        for (place, steps) in on.chain(parts) {
            for used in steps.iter().flat_map(|step| &step.uses) {
                self.note(&mut found, used, place);
            }
        }
        for used in self.vars.iter().flat_map(|var| &var.uses) {
            self.note(&mut found, used, "[vars]");
        }
        for used in &self.own_uses {
            self.note(&mut found, used, "own");
        }
        found.into_values().collect()
    }

    fn note(&self, found: &mut BTreeMap<String, Variable>, used: &expression::Use, place: &str) {
        let name = &*used.name;
        let (name, source) = match (name, &used.attribute) {
            ("nas", Some(column)) => {
                let known = NAS_COLUMNS.contains(&&**column);
                let source = if known { "nas" } else { "nas.vars" };
                (format!("nas.{column}"), source)
            }
            _ => (name.to_owned(), self.source_of(name)),
        };
        let variable = found
            .entry(name)
            .or_insert_with_key(|name| Variable::new(name, source));
        if !variable.used_by.iter().any(|known| known == place) {
            variable.used_by.push(place.to_owned());
        }
    }

    fn source_of(&self, name: &str) -> &'static str {
        let mut steps = self.lists().flatten();
        if self.vars.iter().any(|var| *var.name == *name) {
            "[vars]"
        } else if RESERVED.contains(&name) || PROMISED.contains(&name) {
            "daemon"
        } else if steps.any(|step| {
            let item = step.each.as_ref().map(|each| &*each.name);
            step.save.as_deref() == Some(name) || item == Some(name)
        }) {
            "step"
        } else {
            "billing"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    #[test]
    fn every_well_known_name_has_a_meaning() {
        for one in well_known() {
            assert!(!one.meaning.is_empty(), "{}", one.name);
        }
    }

    #[test]
    fn names_are_found_with_their_sources() {
        let all = at("oss/core/Mikrotik-Simple").variables();
        let of = |name: &str| {
            let found = all.iter().find(|v| v.name == name);
            found.map(|v| v.source)
        };
        for (name, source) in [
            ("addresses", "daemon"),
            ("ceil_in", "billing"),
            ("prefix", "[vars]"),
            ("nas.queue_before", "nas.vars"),
            ("ping", "step"),
        ] {
            assert_eq!(of(name), Some(source), "{name}");
        }
        let redirect = all.iter().find(|v| v.name == "redirect").unwrap();
        assert_eq!(redirect.used_by, ["user_add"]);
        assert!(of("vlan").is_none());
    }
}
