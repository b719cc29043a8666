//! Steps whose drivers speak lines or HTTP: `exec`, `request`. All are rendered and checked in
//! full; sending lines waits for their drivers.

use serde_json::Value as Json;

use super::step::{DriverName, Exec, JsonTemplate, Request};
use super::walk::{Halt, Walk, rendered};
use crate::attempt::Failure;
use crate::driver::{Reply, http};
use crate::shell::quote;

/// Not sent yet: says so, finally, so that nothing waits for it.
fn later(driver: &str) -> Halt {
    Halt::Device(Failure::permanent(format!(
        "driver {driver} comes later: this version sends RouterOS commands, RADIUS and HTTP requests only; set the NAS to mode observe, or use a session scheme"
    )))
}

/// `exec`: the lines in order; `stdin` as one batch.
pub(super) fn exec(walk: &mut Walk<'_>, driver: DriverName, step: &Exec) -> Result<Reply, Halt> {
    let nas = walk.scope.job().nas.id;
    let stdin = match &step.stdin {
        Some(template) => Some(
            template
                .render(&walk.scope)
                .map_err(|e| format!("stdin: {e}"))?,
        ),
        None => None,
    };
    for template in &step.lines {
        let line = template
            .render(&walk.scope)
            .map_err(|e| format!("exec (line {}): {e}", template.line))?;
        let helper = match driver {
            DriverName::Telnet => "send_telnet_cmd",
            DriverName::Ssh => "send_ssh_cmd",
            DriverName::Record | DriverName::Mikrotik | DriverName::Radius | DriverName::Http => "",
        };
        walk.note_command(if helper.is_empty() {
            line
        } else {
            let shown = format!("{helper} --nas {nas} {}", quote(&line));
            match &stdin {
                Some(batch) => format!("{shown} <<< {}", quote(batch.trim_end_matches('\n'))),
                None => shown,
            }
        });
    }
    // Rendered now, so that a mistake shows before the line that it would repair has run.
    for template in &step.abort {
        template
            .render(&walk.scope)
            .map_err(|e| format!("abort: {e}"))?;
    }
    if walk.silent() {
        return Ok(Reply::default());
    }
    Err(later(driver.as_str()))
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
    let Some((sessions, left)) = walk.way()? else {
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
