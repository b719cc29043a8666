//! Steps whose drivers speak lines, RADIUS or HTTP: `exec`, `coa`, `disconnect`, `request`.
//! All are rendered and checked in full; sending RADIUS waits for its driver.

use minijinja::value::ValueKind;
use serde_json::Value as Json;

use super::exec::Told;
use super::expression::value_text;
use super::render::Template;
use super::step::{Attribute, DriverName, Exec, JsonTemplate, Request, Step};
use super::walk::{Halt, Walk, rendered};
use crate::attempt::Failure;
use crate::driver::ssh::Command;
use crate::driver::{Reply, http};
use crate::shell::quote;

/// Attributes that say which session is meant (RFC 5176 section 3), and the usual vendor ones.
/// A request without any of them would concern whichever session matches first.
pub(super) const SESSION_IDENTIFIERS: &[&str] = &[
    "User-Name",
    "NAS-Port",
    "NAS-Port-Id",
    "Framed-IP-Address",
    "Framed-Interface-Id",
    "Framed-IPv6-Prefix",
    "Framed-IPv6-Address",
    "Delegated-IPv6-Prefix",
    "Calling-Station-Id",
    "Acct-Session-Id",
    "Acct-Multi-Session-Id",
    "Chargeable-User-Identity",
    "Cisco-Account-Info",
    "Alc-Subsc-ID-Str",
];

/// Not sent yet: says so, finally, so that nothing waits for it.
fn later(driver: &str) -> Halt {
    Halt::Device(Failure::permanent(format!(
        "driver {driver} comes later: this version sends RouterOS commands, HTTP requests and lines over SSH and telnet only; set the NAS to mode observe, or use a session scheme"
    )))
}

/// `coa` and `disconnect`: attributes in order, empty ones left out.
pub(super) fn radius(
    walk: &mut Walk<'_>,
    request: &str,
    attributes: &[Attribute],
) -> Result<Reply, Halt> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for attribute in attributes {
        match attribute {
            Attribute::Values(name, templates) => {
                for template in templates {
                    let text = template
                        .render(&walk.scope)
                        .map_err(|e| format!("{name}: {e}"))?;
                    pairs.push((name.to_string(), text));
                }
            }
            Attribute::Merge(expr) => {
                let map = expr.defined(&walk.scope)?;
                if map.kind() != ValueKind::Map {
                    return Err(Halt::Dead(format!("`{}` is not a map", expr.text())));
                }
                let names = map
                    .try_iter()
                    .map_err(|_| format!("`{}` is not a map", expr.text()))?;
                for name in names {
                    let value = map
                        .get_item(&name)
                        .map_err(|_| format!("`{}` is not a map", expr.text()))?;
                    let (name, text) = (value_text(&name)?, value_text(&value)?);
                    pairs.push((name.into_owned(), text.into_owned()));
                }
            }
        }
    }
    pairs.retain(|(_, text)| !text.is_empty());
    let identifies = |name: &str| {
        let bare = name.split(':').next().unwrap_or_default();
        SESSION_IDENTIFIERS.contains(&bare)
    };
    if !pairs.iter().any(|(name, _)| identifies(name)) {
        return Err(Halt::Dead(format!(
            "{request}: no session identifier is left, the request could concern anybody"
        )));
    }
    let nas = walk.scope.job().nas.id;
    let words: Vec<_> = pairs
        .iter()
        .map(|(name, text)| quote(&format!("{name}={text}")))
        .collect();
    walk.note_command(format!(
        "send_radius_cmd --nas {nas} {request} {}",
        words.join(" ")
    ));
    if walk.silent() {
        return Ok(Reply::default());
    }
    Err(later("radius"))
}

/// `exec`: the lines in order; `stdin` as one batch. What is not the first line of a driver that
/// answers is noted when its turn comes.
pub(super) async fn exec(walk: &mut Walk<'_>, step: &Step, exec: &Exec) -> Result<Told, Halt> {
    let stdin = match &exec.stdin {
        Some(template) => Some(
            template
                .render(&walk.scope)
                .map_err(|e| format!("stdin: {e}"))?,
        ),
        None => None,
    };
    // All are rendered now, so that a mistake shows before anything has run.
    let rendered = |key: &str, templates: &[Template]| -> Result<Vec<String>, String> {
        let lines = templates.iter().map(|t| {
            let line = t.render(&walk.scope);
            line.map_err(|e| format!("{key} (line {}): {e}", t.line))
        });
        lines.collect()
    };
    let lines = rendered("exec", &exec.lines)?;
    let abort = rendered("abort", &exec.abort)?;
    if walk.driver() == DriverName::Telnet {
        if stdin.is_some() {
            let text = "stdin is for ssh: telnet has no batch; write its lines into exec";
            return Err(Halt::Dead(text.to_owned()));
        }
        return super::exec_telnet::telnet(walk, step, exec, lines, abort).await;
    }
    let speaks = walk.driver() == DriverName::Ssh && !walk.silent();
    let shown = if speaks { 1 } else { lines.len() };
    for line in lines.iter().take(shown) {
        let line = pasteable(walk, line, stdin.as_deref());
        walk.note_command(line);
    }
    if walk.silent() {
        return Ok(Told::default());
    }
    if !speaks {
        return Err(later(walk.driver().as_str()));
    }
    if walk.is_plain() && stdin.is_none() {
        return super::exec::dialogue(walk, step, lines, &exec.expect, abort).await;
    }
    let lines = lines.into_iter().map(|line| Command {
        line,
        stdin: stdin.clone(),
    });
    super::exec::ssh(walk, step, lines.collect(), abort).await
}

/// A line as a person can repeat it.
pub(super) fn pasteable(walk: &Walk<'_>, line: &str, stdin: Option<&str>) -> String {
    let nas = walk.scope.job().nas.id;
    match walk.driver() {
        DriverName::Ssh => {
            let command = Command {
                line: line.to_owned(),
                stdin: stdin.map(str::to_owned),
            };
            command.pasteable(nas)
        }
        DriverName::Telnet => format!("send_telnet_cmd --nas {nas} {}", quote(line)),
        DriverName::Record | DriverName::Mikrotik | DriverName::Radius | DriverName::Http => {
            line.to_owned()
        }
    }
}

/// `request`.
pub(super) async fn request(walk: &mut Walk<'_>, step: &Request) -> Result<Reply, Halt> {
    let path = step
        .path
        .render(&walk.scope)
        .map_err(|e| format!("path: {e}"))?;
    let headers = rendered(&step.headers, &walk.scope).map_err(|e| format!("headers: {e}"))?;
    let headers = headers.into_iter().map(|(k, v)| (k.to_string(), v));
    let body = match &step.json {
        Some(template) => {
            let body = json(walk, template).map_err(|e| format!("json: {e}"))?;
            Some(body.to_string())
        }
        None => None,
    };
    let request = http::Request {
        method: step.method.to_owned(),
        path,
        headers: headers.collect(),
        json: body,
    };
    // A line break would begin another field (RFC 9110 section 5.5), '..' another path.
    request.check().map_err(Halt::Dead)?;
    let job = walk.scope.job();
    walk.note_command(request.pasteable(job.nas.id));
    let Some((sessions, left)) = walk.way().await? else {
        return Ok(Reply::default());
    };
    let device = sessions.http(&job.nas, &job.secret);
    let result = device.talk(&request, left).await;
    walk.note_result(&result);
    Ok(result?)
}

fn json(walk: &Walk<'_>, template: &JsonTemplate) -> Result<Json, String> {
    Ok(match template {
        JsonTemplate::Plain(value) => value.clone(),
        JsonTemplate::Text(text) => {
            let value = text.evaluate(&walk.scope)?;
            serde_json::to_value(&value).map_err(|e| format!("cannot be JSON: {e}"))?
        }
        JsonTemplate::List(items) => Json::Array(
            items
                .iter()
                .map(|i| json(walk, i))
                .collect::<Result<_, _>>()?,
        ),
        JsonTemplate::Map(pairs) => Json::Object(
            pairs
                .iter()
                .map(|(k, v)| Ok((k.clone(), json(walk, v)?)))
                .collect::<Result<_, String>>()?,
        ),
    })
}
