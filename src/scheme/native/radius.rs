//! The steps `coa` and `disconnect`: attributes in order, arrays repeat, empty values left
//! out, maps of `[vars]` merged; then one exchange with the NAS.

use minijinja::value::ValueKind;

use super::expression::value_text;
use super::step::Attribute;
use super::walk::{Halt, Walk};
use crate::driver::Reply;
use crate::driver::radius::{Kind, Request, pasteable};

/// Renders, notes and sends one request.
pub(super) async fn send(
    walk: &mut Walk<'_>,
    kind: Kind,
    attributes: &[Attribute],
) -> Result<Reply, Halt> {
    let pairs = pairs(walk, attributes)?;
    let dictionary = walk.dictionary();
    // Before the note: a command that cannot be sent is not one that could be pasted.
    let request = Request::new(kind, &pairs, &dictionary)
        .map_err(|e| Halt::Dead(format!("{}: {e}", kind.as_str())))?;
    let nas = walk.scope.job().nas.id;
    walk.note_command(pasteable(nas, kind, &pairs));
    let Some((sessions, left)) = walk.way().await? else {
        return Ok(Reply::default());
    };
    let job = walk.scope.job();
    let radius = sessions.radius(&job.nas, &job.secret);
    let told = radius.talk(&request, &dictionary, left).await;
    if !told.line.is_empty() {
        walk.note(told.line);
        walk.heard_from(told.reply.new_session);
    }
    match told.failure {
        None => Ok(told.reply),
        Some(failure) => {
            if told.reply.rows.is_empty() {
                walk.note(failure.to_string());
            }
            Err(Halt::Refused(failure, told.reply))
        }
    }
}

fn pairs(walk: &Walk<'_>, attributes: &[Attribute]) -> Result<Vec<(String, String)>, Halt> {
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
                let no_map = || Halt::Dead(format!("`{}` is not a map", expr.text()));
                if map.kind() != ValueKind::Map {
                    return Err(no_map());
                }
                for name in map.try_iter().map_err(|_| no_map())? {
                    let value = map.get_item(&name).map_err(|_| no_map())?;
                    let name = value_text(&name)?.into_owned();
                    if value.kind() == ValueKind::Seq {
                        for one in value.try_iter().map_err(|_| no_map())? {
                            pairs.push((name.clone(), value_text(&one)?.into_owned()));
                        }
                    } else {
                        pairs.push((name, value_text(&value)?.into_owned()));
                    }
                }
            }
        }
    }
    pairs.retain(|(_, text)| !text.is_empty());
    Ok(pairs)
}
