//! `scheme vars [NAME]`: the variables that a scheme uses and where each comes from; without a
//! name those that every scheme may use.

use std::collections::BTreeSet;

use serde_json::json;

use super::Console;
use super::exit::{DONE, Failed, NOT_FOUND, Outcome};
use super::scheme::{directory, kind, unusable};
use super::table::Table;
use crate::config::Config;
use crate::scheme::environ;
use crate::scheme::native::{NativeScheme, Variable, well_known};

/// Prints a table: of a native scheme what its steps use, of a session what its text names.
pub fn run(console: &Console, config: &Config, name: Option<&str>) -> Outcome {
    let found = match name {
        None => well_known(),
        Some(name) => {
            let dir = directory(&config.paths, name)?;
            if kind(&dir) == Some("native") {
                let scheme = NativeScheme::load(&dir).map_err(|findings| unusable(&findings))?;
                scheme.variables()
            } else {
                let file = dir.join("bin/session");
                let text = std::fs::read(&file).map_err(|e| {
                    let text = format!("{} cannot be read: {e}", file.display());
                    Failed::new(NOT_FOUND, text)
                })?;
                named_in(&String::from_utf8_lossy(&text))
            }
        }
    };
    let mut table = Table::new(&["name", "source", "meaning", "used_by"]);
    for one in found {
        table.push(vec![
            json!(one.name),
            json!(one.source),
            json!(one.meaning),
            json!(one.used_by.join(" ")),
        ]);
    }
    console.list(&table);
    Ok(DONE)
}

/// The well-known and reserved names that a script's text uses as `$name` or `${name…}`.
fn named_in(text: &str) -> Vec<Variable> {
    let mut all = well_known();
    for name in environ::RESERVED {
        if !all.iter().any(|known| known.name == name) {
            all.push(Variable::of_daemon(name));
        }
    }
    let mut used = BTreeSet::new();
    for part in text.split('$').skip(1) {
        let part = part.trim_start_matches(['{', '!', '#']);
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        used.insert(part.get(..end.unwrap_or(part.len())).unwrap_or_default());
    }
    all.retain(|one| used.contains(one.name.as_str()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_script_are_found() {
        let text = "send \"$ip\" ${ceil_in}kbit $telnet_password ${login:-nobody} $mine ip cmd\n";
        let found = named_in(text);
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["login", "ip", "ceil_in", "telnet_password"]);
    }
}
