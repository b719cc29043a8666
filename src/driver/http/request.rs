//! One HTTP request as data, and as whom it is made: what is refused before anything is sent,
//! because it could lead to another host, climb out of its path, or end the request early.

use std::fmt;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use crate::nas::NasId;
use crate::shell;

/// Methods that are spoken (RFC 9110 section 9; PATCH: RFC 5789).
pub const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];
/// Largest request body, bytes.
pub const JSON_MAX: usize = 4 * 1024 * 1024;
/// Fields of one request.
const HEADERS_MAX: usize = 64;
/// Fields that the driver owns; one of them from a scheme could change whom the request is for,
/// where it ends, or as whom it is made.
const OWN_FIELDS: [&str; 9] = [
    "host",
    "authorization",
    "proxy-authorization",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
];

/// One request, still as data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// One of [`METHODS`].
    pub method: String,
    /// Below the path of `nas.http_url`; begins with `/`, is percent-encoded, may have a query.
    pub path: String,
    /// Further fields, in order.
    pub headers: Vec<(String, String)>,
    /// JSON text.
    pub json: Option<String>,
}

impl Request {
    /// What an operator can paste to repeat it.
    pub fn pasteable(&self, nas: NasId) -> String {
        let Self { method, path, .. } = self;
        let mut line = format!("send_http_cmd --nas {nas} {method} {}", shell::quote(path));
        for (name, value) in &self.headers {
            line.push_str(" -H ");
            line.push_str(&shell::quote(&format!("{name}: {value}")));
        }
        if let Some(json) = &self.json {
            line.push_str(" --json ");
            line.push_str(&shell::quote(json));
        }
        line
    }

    /// Refuses what would not arrive as it is meant; the reason.
    pub fn check(&self) -> Result<(), String> {
        if !METHODS.contains(&self.method.as_str()) {
            let methods = METHODS.join(", ");
            return Err(format!("method {:?} is none of {methods}", self.method));
        }
        check_path(&self.path)?;
        if self.headers.len() > HEADERS_MAX {
            return Err(format!("more than {HEADERS_MAX} header fields"));
        }
        self.fields()?;
        match &self.json {
            Some(json) if json.len() > JSON_MAX => {
                Err(format!("the body has more than {JSON_MAX} bytes"))
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn fields(&self) -> Result<HeaderMap, String> {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            let field = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("{name:?} is not the name of a header field"))?;
            if OWN_FIELDS.contains(&field.as_str()) {
                return Err(format!(
                    "the header field {name} is set by the driver alone; credentials belong into \
                     nas_secret, see http_auth in nas.vars"
                ));
            }
            let value = HeaderValue::from_str(value)
                .or_else(|_| HeaderValue::from_bytes(value.as_bytes()))
                .map_err(|_| format!("header {name} holds a control character"))?;
            map.append(field, value);
        }
        Ok(map)
    }
}

/// A path can change neither the host nor climb out of where it was put.
fn check_path(path: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("path {path:?} {why}"));
    if !path.starts_with('/') {
        return bad("does not begin with '/'");
    }
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '\\' | '#' | '"' | '<' | '>');
    if !path.chars().all(plain) {
        return bad("holds a character that must be percent-encoded");
    }
    let before_query = path.split('?').next().unwrap_or_default();
    if before_query.contains("//") {
        return bad("has an empty segment ('//')");
    }
    let climbs = before_query.split('/').any(|segment| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        matches!(plain.as_str(), "." | "..")
    });
    if climbs {
        return bad("has a segment '.' or '..'");
    }
    Ok(())
}

/// As whom requests are made.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// As nobody.
    None,
    /// `Authorization: Basic` (RFC 7617).
    Basic {
        /// Login.
        login: String,
        /// Password.
        password: String,
    },
    /// `Authorization: Bearer` (RFC 6750).
    Bearer(String),
    /// A field of the device's own, such as `X-Api-Key`.
    Field {
        /// Its name.
        name: String,
        /// The secret.
        value: String,
    },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Basic { .. } => "basic ***",
            Self::Bearer(_) => "bearer ***",
            Self::Field { .. } => "header ***",
        })
    }
}

impl Auth {
    /// `http_auth` of `nas.vars`: `basic`, `bearer`, `none`, `header:NAME`. Not set: basic with a
    /// login, bearer with a password alone, else none.
    pub fn of(wish: &str, login: &str, password: &str) -> Result<Self, String> {
        let basic = || Self::Basic {
            login: login.to_owned(),
            password: password.to_owned(),
        };
        let missing = |what: &str| {
            Err(format!(
                "http_auth is {wish}, but nas_secret has no {what} for this NAS"
            ))
        };
        match wish {
            "" if !login.is_empty() => Ok(basic()),
            "" if !password.is_empty() => Ok(Self::Bearer(password.to_owned())),
            "" | "none" => Ok(Self::None),
            "basic" if login.is_empty() => missing("login"),
            "basic" => Ok(basic()),
            "bearer" if password.is_empty() => missing("password"),
            "bearer" => Ok(Self::Bearer(password.to_owned())),
            other => {
                let name = other.strip_prefix("header:").map(str::trim);
                let name = name.filter(|n| HeaderName::from_bytes(n.as_bytes()).is_ok());
                match name {
                    Some(_) if password.is_empty() => missing("password"),
                    Some(name) => Ok(Self::Field {
                        name: name.to_owned(),
                        value: password.to_owned(),
                    }),
                    None => Err(format!(
                        "http_auth in nas.vars is {other:?}, expected basic, bearer, none or header:NAME"
                    )),
                }
            }
        }
    }

    /// The part of the field that is secret.
    pub(super) fn secret(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Basic { login, password } => {
                Some(base64(format!("{login}:{password}").as_bytes()))
            }
            Self::Bearer(text) | Self::Field { value: text, .. } => Some(text.clone()),
        }
    }

    pub(super) fn field(&self) -> Result<Option<(HeaderName, HeaderValue)>, String> {
        let (name, text) = match self {
            Self::None => return Ok(None),
            Self::Basic { login, password } => {
                if login.contains(':') {
                    return Err("a login with ':' cannot be sent as basic (RFC 7617)".to_owned());
                }
                let pair = base64(format!("{login}:{password}").as_bytes());
                (AUTHORIZATION, format!("Basic {pair}"))
            }
            Self::Bearer(token) => (AUTHORIZATION, format!("Bearer {token}")),
            Self::Field { name, value } => {
                let name = HeaderName::from_bytes(name.as_bytes());
                let name = name.map_err(|_| "http_auth names no header field".to_owned())?;
                (name, value.clone())
            }
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| "the password holds a character that no header can carry".to_owned())?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }
}

/// RFC 4648 section 4.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let all = part
            .iter()
            .fold(0_u32, |all, byte| all << 8 | u32::from(*byte))
            << (8 * (3 - part.len()));
        for n in 0..4 {
            let index = (all >> (18 - 6 * n)) & 63;
            let letter = ALPHABET.get(index as usize).copied().unwrap_or(b'A');
            text.push(if n <= part.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}
