//! Steps whose drivers speak lines or HTTP: `exec`, `request`.

use serde_json::Value as Json;

use super::exec::Told;
use super::render::Template;
use super::step::{DriverName, Exec, JsonTemplate, Request, Step};
use super::walk::{Halt, Walk, rendered};
use crate::attempt::Failure;
use crate::driver::ssh::Command;
use crate::driver::{Reply, http};
use crate::shell::quote;

/// No such step for this driver: says so, finally, so that nothing waits for it.
fn speechless(driver: &str) -> Halt {
    Halt::Device(Failure::permanent(format!(
        "a step of lines needs driver = \"ssh\" or \"telnet\", the scheme has {driver:?}"
    )))
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
        return Err(speechless(walk.driver().as_str()));
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
    let result = device.talk_in_turn(&request, &walk.waits, left).await;
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
