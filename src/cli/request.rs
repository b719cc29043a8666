//! `--show-request`: the `curl` line that does what a verb does, instead of doing it. For people
//! who write a service and have just found the verb that does the right thing.

use serde_json::{Map, Value};

use super::exit::{DONE, Failed, Outcome, USAGE, say};
use crate::config::Config;
use crate::shell::quote;

/// A call of the API.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    method: &'static str,
    path: String,
    body: Option<Value>,
    /// A file whose lines are the body, and headers beside it.
    lines: Option<(String, Vec<String>)>,
}

impl Request {
    /// Reads a path.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET",
            path: path.into(),
            body: None,
            lines: None,
        }
    }

    /// The same with what is set of these parameters.
    pub fn with(self, parameters: &[(&str, Option<String>)]) -> Self {
        let set: Vec<String> = parameters
            .iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_deref()?))))
            .collect();
        let path = match set.as_slice() {
            [] => self.path,
            set => format!("{}?{}", self.path, set.join("&")),
        };
        Self { path, ..self }
    }

    /// Posts an object of what is set.
    pub fn post(path: impl Into<String>, fields: &[(&str, Value)]) -> Self {
        let set = fields.iter().filter(|(_, value)| !value.is_null());
        let body: Map<String, Value> = set.map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        Self {
            method: "POST",
            path: path.into(),
            body: Some(Value::Object(body)),
            lines: None,
        }
    }

    /// Posts the lines of a file there, `-` = of standard input.
    pub fn lines(self, file: &str, headers: Vec<String>) -> Self {
        Self {
            lines: Some((file.to_owned(), headers)),
            ..self
        }
    }

    /// With a field that is null on purpose.
    pub fn null(mut self, name: &str) -> Self {
        if let Some(Value::Object(body)) = &mut self.body {
            body.insert(name.to_owned(), Value::Null);
        }
        self
    }

    fn line(&self, config: &Config) -> String {
        let socket = config.paths.run.join("ctl.sock").display().to_string();
        let url = format!("http://localhost{}", self.path);
        let mut words = vec![
            "curl".to_owned(),
            "-sS".to_owned(),
            "--unix-socket".to_owned(),
            quote(&socket),
        ];
        if let Some(body) = &self.body {
            words.extend([
                "-X".to_owned(),
                self.method.to_owned(),
                "-H".to_owned(),
                quote("content-type: application/json"),
                "-d".to_owned(),
                quote(&body.to_string()),
            ]);
        }
        if let Some((file, headers)) = &self.lines {
            for header in headers {
                words.extend(["-H".to_owned(), quote(header)]);
            }
            words.extend(["--data-binary".to_owned(), quote(&format!("@{file}"))]);
        }
        words.push(quote(&url));
        words.join(" ")
    }
}

/// Prints them, a line each; a verb that is no call of the API is wrong usage.
pub fn show(config: &Config, requests: &[Request]) -> Outcome {
    if requests.is_empty() {
        return Err(Failed::new(
            USAGE,
            "no call of the API does what this verb does\nhint: docs/api.md lists the calls",
        ));
    }
    for request in requests {
        say(request.line(config));
    }
    Ok(DONE)
}

/// For a query string (RFC 3986 section 2.1).
pub fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_line_can_be_pasted() {
        let mut config = Config::default();
        config.paths.run = "/run/a b".into();
        let post = Request::post(
            "/api/v1/events",
            &[("cmd", json!("it's")), ("x", Value::Null)],
        );
        assert_eq!(
            post.line(&config),
            "curl -sS --unix-socket '/run/a b/ctl.sock' -X POST \
             -H 'content-type: application/json' -d '{\"cmd\":\"it'\\''s\"}' \
             http://localhost/api/v1/events"
        );
        let get = Request::get("/api/v1/events").with(&[
            ("state", Some("dead".to_owned())),
            ("batch", Some("a b&c".to_owned())),
            ("nas", None),
        ]);
        assert_eq!(get.path, "/api/v1/events?state=dead&batch=a%20b%26c");
        assert_eq!(encoded("a b/&"), "a%20b%2F%26");
    }
}
