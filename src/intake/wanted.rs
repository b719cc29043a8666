//! Which fields of the classic API's last object a caller wants: its own, and those of the
//! objects behind its relations (`user__abonent__name`). Pure.

use crate::intake::lookup::{self, Columns};
use crate::store::query::{Column, Model, Relation};

/// Which fields of an object are wanted, and of those behind its relations.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Own fields, in their order.
    pub names: Vec<String>,
    /// Objects behind relations.
    pub related: Vec<(&'static Relation, Wanted)>,
}

impl Wanted {
    /// All that a model shows.
    pub fn all(model: Model, columns: Columns<'_>) -> Self {
        let shown = columns(model).into_iter().filter(|c| c.shown);
        Self {
            names: shown.map(|c| c.name).collect(),
            related: Vec::new(),
        }
    }

    /// Reads `["login", "abonent__name"]`.
    pub fn read(model: Model, names: &[String], columns: Columns<'_>) -> Result<Self, String> {
        let mut wanted = Self::default();
        for name in names {
            let parts: Vec<&str> = name.split("__").collect();
            wanted.add(model, &parts, 0, columns).map_err(|reason| {
                format!("fields names {:?}, which {reason}", lookup::short(name))
            })?;
        }
        Ok(wanted)
    }

    fn add(
        &mut self,
        model: Model,
        parts: &[&str],
        depth: usize,
        columns: Columns<'_>,
    ) -> Result<(), String> {
        let Some((word, rest)) = parts.split_first() else {
            *self = Self::all(model, columns);
            return Ok(());
        };
        if let Some(relation) = model.relations().iter().find(|r| r.name == *word) {
            if depth >= lookup::STEPS_MAX {
                return Err(format!(
                    "goes over more than {} relations",
                    lookup::STEPS_MAX
                ));
            }
            let known = self.related.iter().position(|(r, _)| *r == relation);
            let place = known.unwrap_or_else(|| {
                self.related.push((relation, Self::default()));
                self.related.len() - 1
            });
            return match self.related.get_mut(place) {
                Some((_, wanted)) => wanted.add(relation.model, rest, depth + 1, columns),
                None => Ok(()),
            };
        }
        let known: Vec<Column> = columns(model);
        let word = if *word == "pk" { "id" } else { *word };
        if !rest.is_empty() || !known.iter().any(|c| c.name == word) {
            return Err(lookup::no_field(model, word, &known));
        }
        if !self.names.iter().any(|name| name == word) {
            self.names.push(word.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::query::Kind;

    fn columns(_: Model) -> Vec<Column> {
        ["id", "login"]
            .iter()
            .map(|name| Column::for_tests(name, Kind::Text))
            .collect()
    }

    fn wanted(names: &[&str]) -> Result<Wanted, String> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        Wanted::read(Model::Users, &names, &columns)
    }

    #[test]
    fn own_fields_and_those_behind_relations() {
        let read = wanted(&["pk", "login", "abonent__login", "abonent__pk", "nas"]).unwrap();
        assert_eq!(read.names, ["id", "login"]);
        let related: Vec<_> = read
            .related
            .iter()
            .map(|(r, w)| (r.name, w.names.len()))
            .collect();
        assert_eq!(related, [("abonent", 2), ("nas", 2)]);
        for wrong in [
            "pasport",
            "login__x",
            "abonent__pasport",
            "abonent__users__abonent__users",
        ] {
            assert!(wanted(&[wrong]).is_err(), "{wrong}");
        }
    }
}
