//! What a NAK means: the Error-Cause (RFC 5176 section 3.6 and its successors), whom it
//! concerns, and whether another try can help.

use super::packet::Code;
use crate::attempt::{Failure, FailureClass, Scope};

/// `Session-Context-Not-Found`: for a Disconnect-Request that is what was wanted.
pub const SESSION_NOT_FOUND: i32 = 503;
/// `Request-Initiated`: the usual answer to `Service-Type = Authorize-Only` (section 3.2).
pub const REQUEST_INITIATED: i32 = 507;

/// What is done about an Error-Cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// The NAS as a whole cannot now.
    NasBusy,
    /// It is another NAS, or takes nothing from us: a human must look.
    NasRefuses,
    /// May work later.
    Later,
    /// Will never work as it is.
    Never,
}

/// Number, name (IANA, "Values for RADIUS Attribute 101"), meaning.
const CAUSES: &[(i32, &str, Means)] = &[
    (201, "Residual-Context-Removed", Means::Later),
    (202, "Invalid-EAP-Packet", Means::Never),
    (401, "Unsupported-Attribute", Means::Never),
    (402, "Missing-Attribute", Means::Never),
    (403, "NAS-Identification-Mismatch", Means::NasRefuses),
    (404, "Invalid-Request", Means::Never),
    (405, "Unsupported-Service", Means::Never),
    (406, "Unsupported-Extension", Means::Never),
    (407, "Invalid-Attribute-Value", Means::Never),
    (501, "Administratively-Prohibited", Means::Never),
    (502, "Proxy-Request-Not-Routable", Means::Later),
    (SESSION_NOT_FOUND, "Session-Context-Not-Found", Means::Later),
    (504, "Session-Context-Not-Removable", Means::Later),
    (505, "Proxy-Processing-Error", Means::Later),
    (506, "Resources-Unavailable", Means::NasBusy),
    (REQUEST_INITIATED, "Request-Initiated", Means::Later),
    (508, "Multiple-Session-Selection-Unsupported", Means::Never),
    (509, "Location-Info-Required", Means::Never),
    (601, "Response-Too-Big", Means::Never),
];

/// Code of a NAK that brings no Error-Cause: 1, as any refusal without a number of its own.
const WITHOUT: i32 = Failure::CODE_PERMANENT;

/// The name of an Error-Cause.
pub fn name(cause: i32) -> &'static str {
    CAUSES
        .iter()
        .find(|(number, ..)| *number == cause)
        .map_or("unknown", |(_, name, _)| name)
}

/// Whether this NAK to `request` says that all is as wanted.
pub fn is_done(request: Code, cause: Option<i32>) -> bool {
    match cause {
        Some(SESSION_NOT_FOUND) => request == Code::DisconnectRequest,
        Some(REQUEST_INITIATED) => true,
        Some(_) | None => false,
    }
}

/// The failure that a NAK is; `said` is the device's Reply-Message.
pub fn failure(answer: Code, cause: Option<i32>, said: &str) -> Failure {
    let means = CAUSES
        .iter()
        .find(|(number, ..)| Some(*number) == cause)
        .map_or(Means::Later, |(.., means)| *means);
    let mut text = match cause {
        Some(cause) => format!("{}, Error-Cause {cause} {}", answer.as_str(), name(cause)),
        None => format!("{} without an Error-Cause", answer.as_str()),
    };
    if !said.is_empty() {
        text.push_str(": ");
        text.push_str(said);
    }
    let (scope, class) = match means {
        Means::NasBusy => (Scope::Nas, FailureClass::Refused),
        Means::NasRefuses => (Scope::Nas, FailureClass::Permanent),
        Means::Later => (Scope::Event, FailureClass::Refused),
        Means::Never => (Scope::Event, FailureClass::Permanent),
    };
    if means == Means::NasRefuses {
        text.push_str(
            "; check nas.ip, and NAS-Identifier or NAS-IP-Address if the scheme sends them",
        );
    }
    Failure {
        scope,
        class,
        code: cause.filter(|c| *c != 0).unwrap_or(WITHOUT),
        text,
        parks: means == Means::NasRefuses,
    }
}

#[cfg(test)]
mod tests {
    use super::super::dictionary::Dictionary;
    use super::*;

    #[test]
    fn every_cause_has_its_scope_and_class() {
        let (event, nas) = (Scope::Event, Scope::Nas);
        let (later, never) = (FailureClass::Refused, FailureClass::Permanent);
        let known = [
            (Some(201), event, later, false),
            (Some(202), event, never, false),
            (Some(401), event, never, false),
            (Some(402), event, never, false),
            (Some(403), nas, never, true),
            (Some(404), event, never, false),
            (Some(405), event, never, false),
            (Some(406), event, never, false),
            (Some(407), event, never, false),
            (Some(501), event, never, false),
            (Some(502), event, later, false),
            (Some(503), event, later, false),
            (Some(504), event, later, false),
            (Some(505), event, later, false),
            (Some(506), nas, later, false),
            (Some(507), event, later, false),
            (Some(508), event, never, false),
            (Some(509), event, never, false),
            (Some(601), event, never, false),
        ];
        let numbers: Vec<_> = CAUSES.iter().map(|(number, ..)| Some(*number)).collect();
        assert_eq!(known.map(|(cause, ..)| cause).to_vec(), numbers);
        let unknown = [
            // The exit code of a Linux router's shell, 200 and the code.
            (Some(203), event, later, false),
            (None, event, later, false),
        ];
        for (cause, scope, class, parks) in known.into_iter().chain(unknown) {
            let failure = failure(Code::CoaNak, cause, "");
            let got = (failure.scope, failure.class, failure.parks);
            assert_eq!(got, (scope, class, parks), "{cause:?}");
            assert_eq!(failure.code, cause.unwrap_or(1));
        }
        assert!(is_done(Code::DisconnectRequest, Some(503)));
        assert!(!is_done(Code::CoaRequest, Some(503)));
        assert!(is_done(Code::CoaRequest, Some(507)));
        assert!(!is_done(Code::DisconnectRequest, None));
        let text = failure(Code::CoaNak, Some(404), "no such policy").text;
        assert_eq!(
            text,
            "CoA-NAK, Error-Cause 404 Invalid-Request: no such policy"
        );
    }

    #[test]
    fn the_names_are_those_of_the_dictionary() {
        let (attribute, _) = Dictionary::shipped().find("Error-Cause").unwrap();
        for (name, number) in &attribute.values {
            let number = i32::try_from(*number).unwrap();
            let known = CAUSES.iter().find(|(n, ..)| *n == number);
            assert!(known.is_some(), "{name} {number}");
        }
    }
}
