//! The sessions of a simulated NAS, and what a request does to them. Pure: no socket, no clock.
//!
//! A session is a set of attributes and of active services. A CoA-Request replaces the
//! attributes that it brings; the service commands of Cisco ISG (`subscriber:command=…` in
//! `Cisco-AVPair`) and Junos (`ERX-Service-Activate`, `ERX-Service-Deactivate`) change the
//! services; `Service-Type` Authenticate-Only or Authorize-Only asks for a new authorization. A
//! session may know questions: a CoA-Request that brings one of its texts in any attribute is
//! answered with the text beside it, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::driver::radius::dictionary::Dictionary;
use crate::driver::radius::packet::{Avp, Code};
use crate::driver::radius::value;

/// Error-Cause values (RFC 5176 section 3.6).
pub(super) const MISSING: u32 = 402;
const INVALID: u32 = 404;
const NOT_FOUND: u32 = 503;
const INITIATED: u32 = 507;
const SEVERAL: u32 = 508;
const UNSUPPORTED: u32 = 401;

/// Key of the services in JSON; no attribute has a name like it.
const SERVICES: &str = "services";
/// Key of the count of new authorizations in JSON.
const AUTHORIZED: &str = "authorizations";
/// Key of the questions and their answers in JSON.
const ANSWERS: &str = "answers";

/// One session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    /// `Name` or `Name:3` → values.
    pub attributes: BTreeMap<String, Vec<String>>,
    /// Active services.
    pub services: BTreeSet<String>,
    /// New authorizations that were asked for.
    pub authorizations: u64,
    /// Question → what the `Reply-Message` of its ACK says.
    pub answers: BTreeMap<String, String>,
}

/// What a NAS answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// No = NAK, with this Error-Cause.
    pub(super) cause: Option<u32>,
    /// ACK or NAK.
    pub(super) ack: bool,
    /// Attributes of the answer.
    pub(super) attributes: Vec<(String, String)>,
    /// Something is different now.
    pub(super) changed: bool,
}

impl Verdict {
    fn nak(cause: u32) -> Self {
        Self {
            cause: Some(cause),
            ..Self::default()
        }
    }

    fn ack(changed: bool) -> Self {
        Self {
            ack: true,
            changed,
            ..Self::default()
        }
    }
}

/// A request in names and texts, in the order of the packet.
pub(super) fn read(avps: &[Avp], dictionary: &Dictionary) -> Vec<(String, String)> {
    avps.iter()
        .map(|avp| {
            let attribute = dictionary.by_number(avp.vendor, avp.number);
            let (tag, text) = value::decode(&attribute, &avp.value);
            let name = match tag {
                Some(tag) => format!("{}:{tag}", attribute.name),
                None => attribute.name.to_string(),
            };
            (name, text)
        })
        .collect()
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: Vec<Session>,
}

impl Sessions {
    /// Replaces everything; nothing changes on an error.
    pub(super) fn load(&mut self, state: &Value) -> Result<(), String> {
        let list = state
            .get("sessions")
            .and_then(Value::as_array)
            .ok_or("expected {\"sessions\": [{\"User-Name\": \"…\"}]}")?;
        let mut all = Vec::with_capacity(list.len());
        for (n, one) in list.iter().enumerate() {
            let map = one
                .as_object()
                .ok_or_else(|| format!("session {n} is no object"))?;
            all.push(session(map).map_err(|e| format!("session {n}: {e}"))?);
        }
        self.all = all;
        Ok(())
    }

    /// In the form that [`Self::load`] takes.
    pub(super) fn dump(&self) -> Value {
        let list: Vec<Value> = self.all.iter().map(shown).collect();
        json!({ "sessions": list })
    }

    /// A copy.
    pub(super) fn list(&self) -> Vec<Session> {
        self.all.clone()
    }

    /// Carries out one request. `unsupported` are names that this NAS does not know.
    pub(super) fn carry_out(
        &mut self,
        code: Code,
        request: &[(String, String)],
        dictionary: &Dictionary,
        unsupported: &[String],
    ) -> Verdict {
        if request.iter().any(|(name, _)| unsupported.contains(name)) {
            return Verdict::nak(UNSUPPORTED);
        }
        let wanted: Vec<_> = request
            .iter()
            .filter(|(name, _)| dictionary.names_session(name))
            .collect();
        if wanted.is_empty() {
            return Verdict::nak(MISSING);
        }
        let fits = |s: &Session| wanted.iter().all(|(name, text)| is(s, name, text));
        let found: Vec<usize> = (0..self.all.len())
            .filter(|n| self.all.get(*n).is_some_and(fits))
            .collect();
        let [only] = *found.as_slice() else {
            if found.is_empty() {
                return Verdict::nak(NOT_FOUND);
            }
            if code == Code::DisconnectRequest {
                self.all.retain(|s| !fits(s));
                return Verdict::ack(true);
            }
            return Verdict::nak(SEVERAL);
        };
        if code == Code::DisconnectRequest {
            self.all.remove(only);
            return Verdict::ack(true);
        }
        let rest: Vec<_> = request
            .iter()
            .filter(|(name, _)| !dictionary.names_session(name))
            .cloned()
            .collect();
        if commands(&rest).any(|c| c == "account-logoff") {
            self.all.remove(only);
            return Verdict::ack(true);
        }
        self.all
            .get_mut(only)
            .map_or_else(|| Verdict::nak(NOT_FOUND), |s| change(s, &rest))
    }
}

fn session(map: &Map<String, Value>) -> Result<Session, String> {
    let mut session = Session::default();
    for (name, value) in map {
        if let (ANSWERS, Value::Object(said)) = (name.as_str(), value) {
            for (question, answer) in said {
                session.answers.insert(question.clone(), text(answer)?);
            }
            continue;
        }
        let list = match value {
            Value::Array(items) => items.iter().map(text).collect::<Result<Vec<_>, _>>()?,
            one => vec![text(one)?],
        };
        match name.as_str() {
            SERVICES => session.services = list.into_iter().collect(),
            AUTHORIZED => session.authorizations = value.as_u64().unwrap_or_default(),
            _ => {
                // What no packet can carry, no session has (RFC 2865 section 5).
                if let Some(long) = list.iter().find(|text| text.len() > value::VALUE_MAX) {
                    let (len, max) = (long.len(), value::VALUE_MAX);
                    return Err(format!("{name} is {len} bytes long, RADIUS carries {max}"));
                }
                session.attributes.insert(name.clone(), list);
            }
        }
    }
    Ok(session)
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(n) => Ok(n.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err(format!("{value} is neither text nor number"))
        }
    }
}

fn shown(session: &Session) -> Value {
    let mut map = Map::new();
    for (name, values) in &session.attributes {
        let value = match values.as_slice() {
            [one] => json!(one),
            several => json!(several),
        };
        map.insert(name.clone(), value);
    }
    if !session.services.is_empty() {
        map.insert(SERVICES.to_owned(), json!(session.services));
    }
    if session.authorizations > 0 {
        map.insert(AUTHORIZED.to_owned(), json!(session.authorizations));
    }
    if !session.answers.is_empty() {
        map.insert(ANSWERS.to_owned(), json!(session.answers));
    }
    Value::Object(map)
}

/// Whether an identifier fits. Cisco's account information is `S` and the address.
fn is(session: &Session, name: &str, text: &str) -> bool {
    let has = |name: &str, text: &str| {
        let values = session.attributes.get(name);
        values.is_some_and(|values| values.iter().any(|v| v == text))
    };
    match (name, text.strip_prefix('S')) {
        ("Cisco-Account-Info", Some(address)) => has("Framed-IP-Address", address),
        ("VasExperts-UserName", _) => has("User-Name", text) || has(name, text),
        _ => has(name, text),
    }
}

fn commands(request: &[(String, String)]) -> impl Iterator<Item = &str> {
    pairs(request, "subscriber:command=")
}

fn pairs<'r>(request: &'r [(String, String)], key: &'r str) -> impl Iterator<Item = &'r str> {
    let pairs = request.iter().filter(|(name, _)| name == "Cisco-AVPair");
    pairs.filter_map(move |(_, text)| text.strip_prefix(key))
}

fn change(session: &mut Session, request: &[(String, String)]) -> Verdict {
    let answers = request
        .iter()
        .filter_map(|(_, text)| session.answers.get(text));
    let answers = answers.map(|said| ("Reply-Message".to_owned(), said.clone()));
    let mut verdict = Verdict::ack(false);
    verdict.attributes = answers.collect();
    if !verdict.attributes.is_empty() {
        return verdict;
    }
    let before = session.clone();
    let services: Vec<&str> = pairs(request, "subscriber:service-name=").collect();
    for command in commands(request) {
        match command {
            "activate-service" | "deactivate-service" if services.is_empty() => {
                return Verdict::nak(INVALID);
            }
            "activate-service" => session
                .services
                .extend(services.iter().map(|s| (*s).to_owned())),
            "deactivate-service" => {
                for service in &services {
                    if !session.services.remove(*service) {
                        *session = before;
                        return Verdict::nak(NOT_FOUND);
                    }
                }
            }
            "session-query" => {
                let name = |(name, values): (&String, &Vec<String>)| {
                    values.first().map(|v| (name.clone(), v.clone()))
                };
                verdict.attributes = session.attributes.iter().filter_map(name).collect();
                let active = session
                    .services
                    .iter()
                    .map(|service| format!("N1{service}"));
                let active = active.map(|text| ("Cisco-Service-Info".to_owned(), text));
                verdict.attributes.extend(active);
            }
            "reauthenticate" => session.authorizations += 1,
            _ => return Verdict::nak(INVALID),
        }
    }
    let bare = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    let mut replaced: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    // Junos takes all deactivations first, then the activations.
    for (name, text) in request {
        if bare(name) == "ERX-Service-Deactivate" && !session.services.remove(text) {
            *session = before;
            return Verdict::nak(NOT_FOUND);
        }
    }
    for (name, text) in request {
        match bare(name).as_str() {
            "ERX-Service-Activate" => drop(session.services.insert(text.clone())),
            "ERX-Service-Deactivate" | "Cisco-AVPair" => {}
            "Service-Type" if text == "Authenticate-Only" || text == "8" => {
                session.authorizations += 1;
            }
            "Service-Type" if text == "Authorize-Only" => {
                session.authorizations += 1;
                verdict = Verdict::nak(INITIATED);
            }
            "Message-Authenticator"
            | "Event-Timestamp"
            | "Proxy-State"
            | "NAS-Identifier"
            | "NAS-IP-Address" => {}
            _ => replaced.entry(name).or_default().push(text.clone()),
        }
    }
    for (name, values) in replaced {
        session.attributes.insert(name.to_owned(), values);
    }
    // To be asked again changes nothing here.
    let asked = Session {
        authorizations: session.authorizations,
        ..before
    };
    verdict.changed = *session != asked;
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        let mut sessions = Sessions::default();
        let state = json!({"sessions": [
            {"Acct-Session-Id": "a", "User-Name": "ivanov", "Framed-IP-Address": "10.88.0.15"},
            {"Acct-Session-Id": "b", "User-Name": "ivanov", "Framed-IP-Address": "10.88.0.16", "services": ["old"]},
        ]});
        sessions.load(&state).unwrap();
        assert_eq!(sessions.dump(), state);
        sessions
    }

    fn ask(sessions: &mut Sessions, code: Code, words: &[(&str, &str)]) -> Verdict {
        let own = words
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        let request: Vec<_> = own.collect();
        sessions.carry_out(
            code,
            &request,
            &Dictionary::shipped(),
            &["Class".to_owned()],
        )
    }

    #[test]
    fn who_is_meant_decides() {
        let mut s = sessions();
        for (words, cause) in [
            (&[("Filter-Id", "x")][..], MISSING),
            (&[("User-Name", "nobody")], NOT_FOUND),
            (&[("User-Name", "ivanov"), ("Filter-Id", "x")], SEVERAL),
            (&[("Acct-Session-Id", "a"), ("Class", "x")], UNSUPPORTED),
        ] {
            assert_eq!(ask(&mut s, Code::CoaRequest, words), Verdict::nak(cause));
        }
        let words = [("User-Name", "ivanov"), ("Framed-IP-Address", "10.88.0.15")];
        assert!(ask(&mut s, Code::DisconnectRequest, &words).ack);
        assert_eq!(s.list().len(), 1);
    }

    #[test]
    fn a_question_is_answered_and_changes_nothing() {
        let mut s = Sessions::default();
        let one = json!({"User-Name": "ivanov", "answers": {"how fast?": "10 Mbit/s"}});
        let state = json!({ "sessions": [one] });
        s.load(&state).unwrap();
        let words = [("User-Name", "ivanov"), ("Filter-Id", "how fast?")];
        let said = ask(&mut s, Code::CoaRequest, &words);
        assert!(said.ack && !said.changed);
        assert_eq!(
            said.attributes,
            [("Reply-Message".to_owned(), "10 Mbit/s".to_owned())]
        );
        assert_eq!(s.dump(), state);
        let words = [("User-Name", "ivanov"), ("Filter-Id", "how slow?")];
        let said = ask(&mut s, Code::CoaRequest, &words);
        assert!(said.changed && said.attributes.is_empty());
        assert!(
            s.load(&json!({"sessions": [{"answers": {"x": []}}]}))
                .is_err()
        );
        let mut named = |name: &str| s.load(&json!({"sessions": [{"User-Name": name}]}));
        assert!(named(&"x".repeat(253)).is_ok());
        let why = named(&"x".repeat(254)).unwrap_err();
        assert!(why.contains("session 0: User-Name is 254 bytes"), "{why}");
    }

    #[test]
    fn services_and_attributes() {
        let mut s = sessions();
        let b = ("Cisco-Account-Info", "S10.88.0.16");
        let pair = |text| ("Cisco-AVPair", text);
        let on = [
            b,
            pair("subscriber:command=activate-service"),
            pair("subscriber:service-name=new"),
        ];
        assert!(ask(&mut s, Code::CoaRequest, &on).changed);
        assert!(!ask(&mut s, Code::CoaRequest, &on).changed);
        let query = [b, pair("subscriber:command=session-query")];
        let told = ask(&mut s, Code::CoaRequest, &query).attributes;
        assert!(told.contains(&("Cisco-Service-Info".into(), "N1new".into())));
        let off = [
            b,
            pair("subscriber:command=deactivate-service"),
            pair("subscriber:service-name=gone"),
        ];
        assert_eq!(ask(&mut s, Code::CoaRequest, &off).cause, Some(NOT_FOUND));
        let junos = [
            ("Acct-Session-Id", "b"),
            ("ERX-Service-Deactivate", "old"),
            ("ERX-Service-Activate:1", "fast"),
            ("Filter-Id", "1"),
            ("Filter-Id", "2"),
        ];
        assert!(ask(&mut s, Code::CoaRequest, &junos).ack);
        let b = &s.list()[1];
        assert_eq!(b.services, ["fast".to_owned(), "new".to_owned()].into());
        assert_eq!(b.attributes["Filter-Id"], ["1", "2"]);
        let again = [("Acct-Session-Id", "b"), ("Service-Type", "Authorize-Only")];
        assert_eq!(ask(&mut s, Code::CoaRequest, &again).cause, Some(INITIATED));
    }
}
