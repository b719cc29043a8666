//! Who may: a bearer token with a scope, a peer of the control socket (root, the daemon's own
//! user, the group of its operators), or (classic API only) an address in `http.open_from`.
//! Refuses what a browser would send on behalf of a foreign page: the classic body is a "simple
//! request" that any page may post, and DNS rebinding makes a foreign name point at us.

use std::net::{IpAddr, SocketAddr};

use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, Uri, header, request::Parts};
use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::intake::rest::{Desk, Refusal};
use crate::store::Token;

/// Longest secret that is looked up, bytes; ours have 43.
const TOKEN_MAX: usize = 256;
/// Its members may by the control socket what operators may; the package makes it.
const GROUP: &str = "nas_event_daemon";

/// The other end of a connection; `serve` puts it into each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP client.
    Tcp(SocketAddr),
    /// A client of the control socket: its effective user id (`SO_PEERCRED`).
    Unix {
        /// User id.
        uid: u32,
        /// What [`Locals`] let it do; none = nothing without a token.
        scope: Option<Scope>,
    },
}

/// Who may do what by the control socket.
#[derive(Debug, Clone)]
pub struct Locals {
    /// User ids that may everything.
    pub admins: Vec<u32>,
    /// Members of this group may what operators may; none = there is no such group.
    pub group: Option<u32>,
}

impl Locals {
    /// Root and the daemon's own user; the members of the group that the package makes.
    pub fn of_this_machine() -> Self {
        let group = Group::from_name(GROUP)
            .inspect_err(|e| tracing::warn!("the group {GROUP} cannot be looked up: {e}"));
        Self {
            admins: vec![0, geteuid().as_raw()],
            group: group.ok().flatten().map(|group| group.gid.as_raw()),
        }
    }

    /// What a peer with these effective ids may. Of a stranger the user database is asked, which
    /// may be on a server that does not answer: not to be called where others would wait.
    pub fn scope(&self, uid: u32, gid: u32) -> Option<Scope> {
        if self.admins.contains(&uid) {
            return Some(Scope::Admin);
        }
        let group = self.group?;
        (gid == group || is_member(uid, group)).then_some(Scope::Operator)
    }
}

/// Whether the user database has this user in this group, as its first one or another.
fn is_member(uid: u32, group: u32) -> bool {
    let groups = || {
        let user = User::from_uid(Uid::from_raw(uid)).ok()??;
        let name = std::ffi::CString::new(user.name).ok()?;
        getgrouplist(&name, user.gid).ok()
    };
    groups().is_some_and(|groups| groups.contains(&Gid::from_raw(group)))
}

/// What a caller may do; each scope includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Scope {
    /// Reads.
    Viewer = 0,
    /// Also posts `user_info` and `user_test`.
    Support = 1,
    /// Also posts any event, retries, drops, pauses NASes.
    Operator = 2,
    /// Everything; no call of today needs more than `operator`.
    Admin = 3,
}

impl Scope {
    /// Reads the column of a token.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "viewer" => Some(Self::Viewer),
            "support" => Some(Self::Support),
            "operator" => Some(Self::Operator),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }

    /// The word in tokens and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Support => "support",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// For the audit table: token name, `uid:0`, `open:10.0.0.5`.
    pub who: String,
    /// What it may do.
    pub scope: Scope,
}

impl Caller {
    /// Lets it pass, or says which scope is needed.
    pub fn at_least(&self, scope: Scope) -> Result<(), Refusal> {
        if self.scope >= scope {
            return Ok(());
        }
        Err(Refusal::new(
            403,
            "scope_too_narrow",
            format!(
                "{} has the scope {}, this needs {}",
                self.who,
                self.scope.as_str(),
                scope.as_str()
            ),
            "use a token of that scope: nas_event_daemon token create NAME --scope …",
        ))
    }

    /// Posting: reading commands need `support`, all others `operator`.
    pub fn may_post(&self, cmd: &str) -> Result<(), Refusal> {
        if ["user_info", "user_test"].contains(&cmd) {
            self.at_least(Scope::Support)
        } else {
            self.at_least(Scope::Operator)
        }
    }
}

/// Which doors stand open without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Openness {
    /// A token or the control socket.
    Closed,
    /// Also addresses in `http.open_from`, which then may do what an operator may.
    Classic,
    /// Also loopback, to read.
    Loopback,
}

/// An extractor that lets in callers of a scope; the constants below name its values.
pub struct At<const SCOPE: u8>(pub Caller);

/// May read.
pub type Viewer = At<{ Scope::Viewer as u8 }>;
/// May post the commands that only read.
pub type Support = At<{ Scope::Support as u8 }>;
/// May change.
pub type Operator = At<{ Scope::Operator as u8 }>;

impl<const SCOPE: u8> FromRequestParts<Desk> for At<SCOPE> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, desk: &Desk) -> Result<Self, Refusal> {
        let caller = caller(desk, parts, Openness::Closed).await?;
        let needed = [Scope::Viewer, Scope::Support, Scope::Operator]
            .into_iter()
            .find(|s| *s as u8 == SCOPE)
            .unwrap_or(Scope::Admin);
        caller.at_least(needed)?;
        Ok(Self(caller))
    }
}

/// Finds out who asks.
pub async fn caller(desk: &Desk, parts: &Parts, open: Openness) -> Result<Caller, Refusal> {
    if let Some(secret) = bearer(&parts.headers)? {
        return of_token(desk, secret).await;
    }
    let peer = parts.extensions.get::<Peer>().copied();
    match peer {
        Some(Peer::Unix { uid, scope }) => {
            return match scope {
                Some(scope) => Ok(Caller {
                    who: format!("uid:{uid}"),
                    scope,
                }),
                None => Err(Refusal::new(
                    401,
                    "token_missing",
                    format!("no token, and the user {uid} has no access without one"),
                    "call as root, as the daemon's user, or as a member of the group \
                     nas_event_daemon; or send Authorization: Bearer TOKEN",
                )),
            };
        }
        // What came through a proxy has the proxy's address, which says nothing.
        Some(Peer::Tcp(address)) if !forwarded(&parts.headers) => {
            let ip = address.ip().to_canonical();
            let (let_in, scope) = match open {
                Openness::Closed => (false, Scope::Viewer),
                Openness::Classic => (is_open(desk, ip), Scope::Operator),
                Openness::Loopback => (ip.is_loopback(), Scope::Viewer),
            };
            if let_in {
                let who = format!("open:{ip}");
                return Ok(Caller { who, scope });
            }
        }
        Some(Peer::Tcp(_)) | None => {}
    }
    let hint = match open {
        Openness::Classic => {
            "send Authorization: Bearer TOKEN (nas_event_daemon token create NAME --scope \
             operator), or list the address in http.open_from"
        }
        Openness::Closed | Openness::Loopback => {
            "send Authorization: Bearer TOKEN (nas_event_daemon token create NAME --scope …)"
        }
    };
    Err(Refusal::new(
        401,
        "token_missing",
        "no token, and this address has no access without one".to_owned(),
        hint,
    ))
}

fn is_open(desk: &Desk, ip: IpAddr) -> bool {
    desk.doors
        .http
        .open_from
        .iter()
        .any(|net| net.contains(&ip))
}

fn forwarded(headers: &HeaderMap) -> bool {
    ["forwarded", "x-forwarded-for", "x-real-ip", "via"]
        .iter()
        .any(|name| headers.contains_key(*name))
}

/// The secret after `Authorization: Bearer` (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let secret = value.to_str().ok().and_then(|text| {
        let (kind, secret) = text.split_once(' ')?;
        let secret = secret.trim();
        let fits = !secret.is_empty() && secret.len() <= TOKEN_MAX;
        (kind.eq_ignore_ascii_case("bearer") && fits).then_some(secret)
    });
    secret.map(Some).ok_or_else(|| {
        Refusal::new(
            401,
            "token_malformed",
            "the Authorization header is not \"Bearer TOKEN\"".to_owned(),
            "copy the token as `nas_event_daemon token create` printed it",
        )
    })
}

async fn of_token(desk: &Desk, secret: &str) -> Result<Caller, Refusal> {
    let hash = hex(&Sha256::digest(secret.as_bytes()));
    let found = desk
        .doors
        .store
        .token(&hash)
        .await
        .map_err(Refusal::store)?;
    // Only hashes are compared, and those in constant time: timing says nothing of a secret.
    let found = found.filter(|t| bool::from(t.hash.as_bytes().ct_eq(hash.as_bytes())));
    let unknown = || {
        Refusal::new(
            401,
            "token_unknown",
            "this token is not known".to_owned(),
            "it was revoked or belongs to another daemon; make one with token create",
        )
    };
    let Token { name, scope, .. } = found.ok_or_else(unknown)?;
    let scope = Scope::parse(&scope).ok_or_else(unknown)?;
    Ok(Caller { who: name, scope })
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Refuses what a foreign web page makes a browser send: an `Origin` that is not the `Host`,
/// and a `Host` that is a name which somebody else may own (DNS rebinding).
pub fn same_site(uri: &Uri, headers: &HeaderMap, listen: &[String]) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|h| h.to_str().unwrap_or("?"));
    let named = [host, uri.authority().map(|a| a.as_str())];
    let mine = named.iter().flatten().all(|host| is_ours(host, listen));
    if hosts.next().is_some() || !mine {
        return Err(Refusal::new(
            403,
            "foreign_host",
            "the Host header is neither an address, nor localhost, nor a name in http.listen"
                .to_owned(),
            "call the daemon by its address",
        ));
    }
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("?");
        let from = origin.split_once("://").map(|(_, from)| from);
        let same = match (from, host) {
            (Some(from), Some(host)) => from.eq_ignore_ascii_case(host),
            (None, _) | (_, None) => false,
        };
        if !same {
            return Err(Refusal::new(
                403,
                "foreign_origin",
                "the request was started by a page of another site".to_owned(),
                "pages of other sites cannot use this API; call it from a program",
            ));
        }
    }
    Ok(())
}

fn is_ours(host: &str, listen: &[String]) -> bool {
    let name = without_port(host);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || listen
            .iter()
            .any(|own| without_port(own).eq_ignore_ascii_case(name))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(pairs: &[(&str, &str)]) -> Result<(), u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: header::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        let listen = ["bras.example.net:8082".to_owned()];
        same_site(&Uri::from_static("/x"), &headers, &listen).map_err(|r| r.status.as_u16())
    }

    #[test]
    fn hosts_and_origins() {
        for good in [
            "127.0.0.1:8082",
            "169.254.80.82:8082",
            "10.0.0.1",
            "[::1]:8082",
            "[2001:db8::1]",
            "localhost",
            "LOCALHOST:8082",
            "bras.example.net:8082",
        ] {
            assert_eq!(judge(&[("host", good)]), Ok(()), "{good}");
            let origin = format!("http://{good}");
            assert_eq!(
                judge(&[("host", good), ("origin", &origin)]),
                Ok(()),
                "{good}"
            );
        }
        assert_eq!(judge(&[]), Ok(()));
        for bad in [
            "evil.example",
            "evil.example:8082",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil.example",
        ] {
            assert_eq!(judge(&[("host", bad)]), Err(403), "{bad}");
        }
        for origin in [
            "null",
            "http://evil.example",
            "http://127.0.0.1:9999",
            "http://127.0.0.1",
        ] {
            let pairs = [("host", "127.0.0.1:8082"), ("origin", origin)];
            assert_eq!(judge(&pairs), Err(403), "{origin}");
        }
        assert_eq!(judge(&[("origin", "http://127.0.0.1")]), Err(403));
        assert_eq!(
            judge(&[("host", "127.0.0.1"), ("host", "evil.example")]),
            Err(403)
        );
        let absolute = Uri::from_static("http://evil.example/x");
        assert!(same_site(&absolute, &HeaderMap::new(), &[]).is_err());
    }

    #[test]
    fn who_may_what_by_the_control_socket() {
        let locals = |admins: &[u32], group| Locals {
            admins: admins.to_vec(),
            group,
        };
        // Nobody has these ids, and the user database has nobody of them.
        let (stranger, group) = (4_000_000_001, 4_000_000_002);
        let strict = locals(&[stranger], Some(group));
        assert_eq!(strict.scope(stranger, 1), Some(Scope::Admin));
        assert_eq!(strict.scope(stranger + 1, group), Some(Scope::Operator));
        assert_eq!(strict.scope(stranger + 1, 1), None);
        assert_eq!(strict.scope(0, 0), None);
        assert_eq!(locals(&[], None).scope(stranger, group), None);
        // Root's own group, which the user database knows whatever the peer's is now.
        assert_eq!(locals(&[], Some(0)).scope(0, 1), Some(Scope::Operator));
        assert_eq!(locals(&[], Some(0)).scope(stranger, 1), None);
        let own = geteuid().as_raw();
        let here = Locals::of_this_machine();
        assert_eq!(here.scope(own, 1), Some(Scope::Admin));
        assert_eq!(here.scope(0, 1), Some(Scope::Admin));
        assert_eq!(here.scope(stranger, stranger), None);
    }

    #[test]
    fn scopes_include_the_lower_ones() {
        let caller = |scope| Caller {
            who: "t".to_owned(),
            scope,
        };
        assert!(caller(Scope::Viewer).may_post("user_info").is_err());
        assert!(caller(Scope::Support).may_post("user_info").is_ok());
        assert!(caller(Scope::Support).may_post("user_get_mac").is_err());
        assert!(caller(Scope::Support).may_post("user_del").is_err());
        assert!(caller(Scope::Operator).may_post("user_del").is_ok());
        assert!(caller(Scope::Operator).at_least(Scope::Admin).is_err());
        for scope in [Scope::Viewer, Scope::Support, Scope::Operator, Scope::Admin] {
            assert_eq!(Scope::parse(scope.as_str()), Some(scope));
        }
    }
}
