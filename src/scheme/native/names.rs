//! What a name in a scheme means: reserved names, PARAMS, `[vars]`, `nas`, saved answers and
//! loop variables. Names are sorted out when the scheme is loaded, so that an attempt looks up
//! only what its step uses.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use minijinja::value::Value;
use serde_json::Value as Json;

use super::VarValue;
use super::filters::{ALL_PARAMS, parse_prefix};
use crate::attempt::Job;
use crate::event::value_text;
use crate::nas::Nas;

/// Form of a well-known PARAM, and what it is when the account lacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Text; empty when absent.
    Text,
    /// Whole number (also if it arrives as text, so that it can be compared and counted with);
    /// empty when absent.
    Number,
    /// List; no items when absent.
    List,
    /// Map; no keys when absent.
    Map,
}

/// Well-known PARAMS. An account that lacks one has it empty; every other name is whatever
/// column the billing's views have, and undefined (event dead, with the reason) if they have
/// it not. Meaning: rates in kbit/s, `in` = from the subscriber, `out` = to the subscriber.
pub(super) const WELL_KNOWN: &[(&str, Form)] = &[
    ("user_id", Form::Number),
    ("abonent_id", Form::Number),
    ("usluga_id", Form::Number),
    ("usluga_name", Form::Text),
    ("login", Form::Text),
    ("ip", Form::Text),
    ("mac", Form::Text),
    ("vlan", Form::Number),
    ("snatip", Form::Text),
    ("ifname", Form::Text),
    ("switch_ip", Form::Text),
    ("switch_port", Form::Text),
    ("circuit_id", Form::Text),
    ("acct_session_id", Form::Text),
    ("auth_type", Form::Number),
    ("accept", Form::Number),
    ("redirect", Form::Number),
    ("logged", Form::Number),
    ("deleted", Form::Number),
    ("rate_in", Form::Number),
    ("rate_out", Form::Number),
    ("ceil_in", Form::Number),
    ("ceil_out", Form::Number),
    ("burst_in", Form::Number),
    ("burst_out", Form::Number),
    ("cburst_in", Form::Number),
    ("cburst_out", Form::Number),
    ("service", Form::Map),
    ("services", Form::List),
    ("sessions", Form::List),
];

/// The device's software, asked once per session pool; empty where it is not known.
pub(super) const NAS_VERSION: &str = "nas_version";

/// Names that the daemon sets and nothing overlays.
pub(super) const RESERVED: &[&str] = &[
    "cmd",
    "event_id",
    "event_type",
    "try_count",
    "possible_duplicate",
    "nas_id",
    "nas_ip",
    "nas_name",
    "oss_path",
    NAS_VERSION,
    "nas",
    ALL_PARAMS,
    "addresses",
    "nets",
];

/// Promised by the format, but not given by anything yet: undefined unless PARAMS bring it.
pub(super) const PROMISED: &[&str] = &["slot"];

/// Columns of `nas` that a scheme may read as `nas.<column>`; the rest is `nas.vars`.
pub(super) const NAS_COLUMNS: &[&str] = &[
    "id",
    "name",
    "ip",
    "mode",
    "forks",
    "oss_path",
    "script_name",
    "api_port",
    "api_tls",
    "ssh_port",
    "telnet_port",
    "coa_port",
    "http_url",
    "max_sessions",
    "max_rate",
    "timeout_ms",
    "on_error",
];

/// Where the value of a name comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// `cmd`, `event_type`.
    Cmd,
    /// `event_id`.
    EventId,
    /// `try_count`.
    TryCount,
    /// `possible_duplicate`, `1` or `0`.
    PossibleDuplicate,
    /// `nas_id`.
    NasId,
    /// `nas_ip`.
    NasIp,
    /// `nas_name`.
    NasName,
    /// `oss_path`.
    OssPath,
    /// `nas_version`, bound when the attempt begins.
    NasVersion,
    /// `nas.<column>` and `nas.vars`.
    Nas,
    /// All PARAMS as a map.
    AllParams,
    /// All addresses of the account; `[ip]` if the billing gives none.
    Addresses,
    /// `addresses` as prefixes.
    Nets,
    /// One of the scheme's `[vars]`, by its place in the file.
    Var(usize),
    /// A well-known PARAM.
    Known(Form),
    /// Some column of the billing, a loop variable or a saved answer.
    Other,
}

/// Sorts a name out; `vars` are the names of `[vars]` in file order.
pub(super) fn source(name: &str, vars: &[Arc<str>]) -> Source {
    match name {
        "cmd" | "event_type" => Source::Cmd,
        "event_id" => Source::EventId,
        "try_count" => Source::TryCount,
        "possible_duplicate" => Source::PossibleDuplicate,
        "nas_id" => Source::NasId,
        "nas_ip" => Source::NasIp,
        "nas_name" => Source::NasName,
        "oss_path" => Source::OssPath,
        NAS_VERSION => Source::NasVersion,
        "nas" => Source::Nas,
        ALL_PARAMS => Source::AllParams,
        "addresses" => Source::Addresses,
        "nets" => Source::Nets,
        _ => {
            if let Some(at) = vars.iter().position(|v| &**v == name) {
                return Source::Var(at);
            }
            WELL_KNOWN
                .iter()
                .find(|(known, _)| *known == name)
                .map_or(Source::Other, |(_, form)| Source::Known(*form))
        }
    }
}

/// The names of one attempt.
pub(super) struct Scope<'a> {
    job: &'a Job,
    vars: &'a [super::Var],
    locals: Vec<(Arc<str>, Value)>,
    nas: OnceLock<Value>,
}

impl<'a> Scope<'a> {
    /// Of one job under one scheme.
    pub(super) fn new(job: &'a Job, vars: &'a [super::Var]) -> Self {
        Self {
            job,
            vars,
            locals: Vec::new(),
            nas: OnceLock::new(),
        }
    }

    /// The job.
    pub(super) fn job(&self) -> &'a Job {
        self.job
    }

    /// Binds a loop variable or a saved answer; the newest wins.
    pub(super) fn bind(&mut self, name: &Arc<str>, value: Value) {
        if let Some(slot) = self.locals.iter_mut().find(|(n, _)| n == name) {
            slot.1 = value;
        } else {
            self.locals.push((Arc::clone(name), value));
        }
    }

    /// Forgets a loop variable.
    pub(super) fn unbind(&mut self, name: &Arc<str>) {
        self.locals.retain(|(n, _)| n != name);
    }

    fn local(&self, name: &str) -> Option<&Value> {
        self.locals
            .iter()
            .find(|(n, _)| &**n == name)
            .map(|(_, value)| value)
    }

    /// Canonical text of a name; `None` = not defined.
    pub(super) fn text(&self, name: &str, source: Source) -> Result<Option<Cow<'_, str>>, String> {
        if let Some(value) = self.local(name) {
            return super::expression::value_text(value).map(|t| Some(Cow::Owned(t.into_owned())));
        }
        let job = self.job;
        Ok(Some(match source {
            Source::Cmd => Cow::Borrowed(job.cmd.as_str()),
            Source::EventId => Cow::Owned(job.event.to_string()),
            Source::TryCount => Cow::Owned(job.try_count.to_string()),
            Source::PossibleDuplicate => Cow::Borrowed(flag(job.possible_duplicate)),
            Source::NasId => Cow::Owned(job.nas.id.to_string()),
            Source::NasIp => Cow::Borrowed(job.nas.ip.as_str()),
            Source::NasName => Cow::Borrowed(job.nas.name.as_str()),
            Source::NasVersion => Cow::Borrowed(""),
            Source::OssPath => Cow::Borrowed(job.nas.oss_path.as_deref().unwrap_or_default()),
            Source::Known(form) => match job.params.0.get(name) {
                Some(Json::String(s)) => Cow::Borrowed(s.as_str()),
                Some(value) if !value.is_null() => Cow::Owned(value_text(value)),
                Some(_) | None => self.absent_text(name, form),
            },
            Source::Other => match job.params.0.get(name) {
                Some(Json::String(s)) => Cow::Borrowed(s.as_str()),
                Some(value) => Cow::Owned(value_text(value)),
                None => return Ok(None),
            },
            Source::Nas | Source::AllParams | Source::Addresses | Source::Nets | Source::Var(_) => {
                let Some(value) = self.value(name, source)? else {
                    return Ok(None);
                };
                Cow::Owned(super::expression::value_text(&value)?.into_owned())
            }
        }))
    }

    /// Value of a name for an expression; `None` = not defined.
    pub(super) fn value(&self, name: &str, source: Source) -> Result<Option<Value>, String> {
        if let Some(value) = self.local(name) {
            return Ok(Some(value.clone()));
        }
        let job = self.job;
        Ok(Some(match source {
            Source::Cmd => Value::from(job.cmd.as_str()),
            Source::EventId => Value::from(job.event.0),
            Source::TryCount => Value::from(job.try_count),
            Source::PossibleDuplicate => Value::from(i64::from(job.possible_duplicate)),
            Source::NasId => Value::from(job.nas.id.0),
            Source::NasIp => Value::from(&job.nas.ip),
            Source::NasName => Value::from(&job.nas.name),
            Source::NasVersion => Value::from(""),
            Source::OssPath => Value::from(job.nas.oss_path.as_deref().unwrap_or_default()),
            Source::Nas => self.nas.get_or_init(|| nas_value(&job.nas)).clone(),
            Source::AllParams => self.all_params(),
            Source::Addresses => Value::from(self.addresses()),
            Source::Nets => Value::from(self.nets()?),
            Source::Var(at) => return self.var(at).map(Some),
            Source::Known(form) => self.known(name, form),
            Source::Other => match job.params.0.get(name) {
                Some(value) => from_json(value),
                None => return Ok(None),
            },
        }))
    }

    /// One of `[vars]`, or what the NAS has in its place.
    fn var(&self, at: usize) -> Result<Value, String> {
        let Some(var) = self.vars.get(at) else {
            return Err(format!("the scheme has no [vars] number {at}"));
        };
        if let Some(own) = self.job.nas.vars.get(&*var.name) {
            return Ok(from_json(own));
        }
        match &var.value {
            VarValue::One(template) => template.evaluate(self),
            VarValue::Map(pairs) => {
                let mut map = Vec::with_capacity(pairs.len());
                for (key, template) in pairs {
                    map.push((key.clone(), template.evaluate(self)?));
                }
                Ok(Value::from_pairs(map))
            }
            VarValue::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for template in items {
                    list.push(template.evaluate(self)?);
                }
                Ok(Value::from(list))
            }
        }
    }

    fn absent_text(&self, name: &str, form: Form) -> Cow<'_, str> {
        match form {
            Form::Text => Cow::Borrowed(""),
            Form::Number => self
                .number_of_job(name)
                .map_or(Cow::Borrowed(""), |n| Cow::Owned(n.to_string())),
            Form::List => Cow::Borrowed("[]"),
            Form::Map => Cow::Borrowed("{}"),
        }
    }

    /// The event's own columns stand in for PARAMS that lack them.
    fn number_of_job(&self, name: &str) -> Option<i64> {
        match name {
            "user_id" => self.job.user.map(|u| u.0),
            "abonent_id" => self.job.abonent,
            "usluga_id" => self.job.usluga,
            _ => None,
        }
    }

    fn known(&self, name: &str, form: Form) -> Value {
        let json = self.job.params.0.get(name).filter(|v| !v.is_null());
        match (form, json) {
            (Form::Number, Some(Json::String(s))) => {
                whole(s).map_or_else(|| Value::from(s), Value::from)
            }
            (_, Some(value)) => from_json(value),
            (Form::Text, None) => Value::from(""),
            (Form::Number, None) => self
                .number_of_job(name)
                .map_or_else(|| Value::from(""), Value::from),
            (Form::List, None) => Value::from(Vec::<Value>::new()),
            (Form::Map, None) => Value::from_pairs(std::iter::empty::<(String, Value)>()),
        }
    }

    fn addresses(&self) -> Vec<Value> {
        let params = &self.job.params.0;
        let list: Vec<_> = match params.get("addresses") {
            Some(Json::Array(items)) => items
                .iter()
                .filter(|i| !value_text(i).is_empty())
                .map(from_json)
                .collect(),
            Some(Json::String(one)) => one
                .split([',', ' '])
                .filter(|a| !a.is_empty())
                .map(Value::from)
                .collect(),
            _ => Vec::new(),
        };
        if !list.is_empty() {
            return list;
        }
        let ip = self.job.params.text("ip");
        if ip.is_empty() {
            Vec::new()
        } else {
            vec![Value::from(ip)]
        }
    }

    fn nets(&self) -> Result<Vec<Value>, String> {
        self.addresses()
            .iter()
            .map(|a| {
                let text = super::expression::value_text(a)?;
                parse_prefix(&text)
                    .map(|net: IpNet| Value::from(net.trunc().to_string()))
                    .ok_or_else(|| format!("addresses hold {text:?}, which is not an address"))
            })
            .collect()
    }

    fn all_params(&self) -> Value {
        let mut map: std::collections::BTreeMap<String, Value> = WELL_KNOWN
            .iter()
            .map(|(name, form)| ((*name).to_owned(), self.known(name, *form)))
            .collect();
        for (name, value) in &self.job.params.0 {
            if !WELL_KNOWN.iter().any(|(known, _)| known == name) {
                map.insert(name.clone(), from_json(value));
            }
        }
        let job = self.job;
        for (name, value) in [
            ("cmd", Value::from(job.cmd.as_str())),
            ("event_id", Value::from(job.event.0)),
            ("nas_id", Value::from(job.nas.id.0)),
            ("nas_ip", Value::from(&job.nas.ip)),
            ("nas_name", Value::from(&job.nas.name)),
        ] {
            map.insert(name.to_owned(), value);
        }
        Value::from_pairs(map)
    }
}

fn flag(set: bool) -> &'static str {
    if set { "1" } else { "0" }
}

/// A whole number in canonical form: `7`, `-7`, not `007`, not `+7`.
fn whole(text: &str) -> Option<i64> {
    text.parse::<i64>().ok().filter(|n| n.to_string() == text)
}

/// A PARAM as a template sees it: NULL is empty, booleans are 1 and 0.
pub(super) fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(""),
        Json::Bool(set) => Value::from(i64::from(*set)),
        Json::Number(n) => n
            .as_i64()
            .map_or_else(|| Value::from(n.to_string()), Value::from),
        Json::String(s) => Value::from(s),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.clone(), from_json(v)))),
    }
}

fn nas_value(nas: &Nas) -> Value {
    let number = |n: Option<u16>| n.map_or_else(|| Value::from(""), Value::from);
    let words = |t: &Option<String>| Value::from(t.as_deref().unwrap_or_default());
    let mut map: std::collections::BTreeMap<String, Value> = nas
        .vars
        .iter()
        .map(|(name, value)| (name.clone(), from_json(value)))
        .collect();
    let timeout = nas.timeout.and_then(|t| i64::try_from(t.as_millis()).ok());
    let on_error = match nas.on_error {
        Some(crate::nas::OnError::Dead) => "dead",
        Some(crate::nas::OnError::Retry) => "retry",
        Some(crate::nas::OnError::Drop) => "drop",
        None => "",
    };
    for (name, value) in [
        ("id", Value::from(nas.id.0)),
        ("name", Value::from(&nas.name)),
        ("ip", Value::from(&nas.ip)),
        ("mode", Value::from(nas.mode.as_str())),
        ("forks", Value::from(nas.forks.get())),
        ("oss_path", words(&nas.oss_path)),
        ("script_name", words(&nas.script_name)),
        ("api_port", number(nas.api_port)),
        ("api_tls", Value::from(i64::from(nas.api_tls))),
        ("ssh_port", number(nas.ssh_port)),
        ("telnet_port", number(nas.telnet_port)),
        ("coa_port", number(nas.coa_port)),
        ("http_url", words(&nas.http_url)),
        ("max_sessions", number(nas.max_sessions)),
        (
            "max_rate",
            nas.max_rate.map_or_else(|| Value::from(""), Value::from),
        ),
        (
            "timeout_ms",
            timeout.map_or_else(|| Value::from(""), Value::from),
        ),
        ("on_error", Value::from(on_error)),
    ] {
        map.insert(name.to_owned(), value);
    }
    Value::from_pairs(map)
}
