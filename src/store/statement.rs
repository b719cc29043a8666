//! A question of the classic API as SQL, for both databases alike: names come from lists and
//! catalogues, values are bound and stand in the order of their numbers.

use super::query::{Bound, Column, Condition, Kind, Model, Query, ROWS_MAX, Relation, Test};
use super::{Error, Result};

/// How a database writes what the two write differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// A finished statement: its text, and the values in the order of their numbers.
pub(super) type Finished = (String, Vec<Bound>);

/// One row per object, one column: the object as JSON text.
pub(super) fn objects(
    dialect: Dialect,
    columns: &dyn Fn(Model) -> Vec<Column>,
    query: &Query,
) -> Result<Finished> {
    let mut statement = Statement::new(dialect, columns);
    statement.objects(query)?;
    Ok((statement.text, statement.bound))
}

/// One row with the number of objects.
pub(super) fn number(
    dialect: Dialect,
    columns: &dyn Fn(Model) -> Vec<Column>,
    query: &Query,
) -> Result<Finished> {
    let mut statement = Statement::new(dialect, columns);
    statement.text = format!("select count(*) from {}", query.model.table());
    statement.conditions(query)?;
    Ok((statement.text, statement.bound))
}

/// A statement under construction.
struct Statement<'a> {
    dialect: Dialect,
    columns: &'a dyn Fn(Model) -> Vec<Column>,
    text: String,
    bound: Vec<Bound>,
}

impl<'a> Statement<'a> {
    fn new(dialect: Dialect, columns: &'a dyn Fn(Model) -> Vec<Column>) -> Self {
        Self {
            dialect,
            columns,
            text: String::new(),
            bound: Vec::new(),
        }
    }

    fn column(&self, model: Model, name: &str) -> Result<Column> {
        let columns = (self.columns)(model);
        columns
            .into_iter()
            .find(|c| c.name == name)
            .ok_or_else(|| Error::Refused(format!("{} has no field {name:?}", model.name())))
    }

    fn objects(&mut self, query: &Query) -> Result<()> {
        let mut pairs = Vec::new();
        for name in &query.columns {
            let column = self.column(query.model, name)?;
            pairs.push(match self.dialect {
                Dialect::Sqlite => format!("'{name}', {}", column.json),
                Dialect::Postgres => format!("{} as \"{name}\"", column.json),
            });
        }
        let pairs = pairs.join(", ");
        self.text = match self.dialect {
            Dialect::Sqlite => format!("select json_object({pairs}) as row"),
            Dialect::Postgres => format!("select row_to_json(v)::text as row from (select {pairs}"),
        };
        self.text
            .push_str(&format!(" from {}", query.model.table()));
        let limit = query.limit.clamp(1, ROWS_MAX);
        let page = format!(" limit {limit} offset {}", query.offset);
        if query.model.is_theirs() || (query.order.is_empty() && query.offset == 0) {
            self.conditions(query)?;
            self.order(query)?;
            self.text.push_str(&page);
        } else {
            // Numbers are sorted and skipped; only the rows of the page are read and shown.
            let table = query.model.table();
            self.text
                .push_str(&format!(" where id in (select id from {table}"));
            self.conditions(query)?;
            self.order(query)?;
            self.text.push_str(&page);
            self.text.push(')');
            self.order(query)?;
        }
        if self.dialect == Dialect::Postgres {
            self.text.push_str(") v");
        }
        Ok(())
    }

    fn order(&mut self, query: &Query) -> Result<()> {
        let mut parts = Vec::new();
        for (name, descending) in &query.order {
            let column = self.column(query.model, name)?;
            let direction = if *descending { "desc" } else { "asc" };
            // The two databases put NULL at different ends.
            parts.push(format!("({}) is null", column.compare));
            parts.push(format!("{} {direction}", self.sortable(&column)));
        }
        let direction = if query.model.is_theirs() {
            "asc"
        } else {
            "desc"
        };
        parts.push(format!("id {direction}"));
        self.text.push_str(" order by ");
        self.text.push_str(&parts.join(", "));
        Ok(())
    }

    /// Text is ordered by bytes in both databases.
    fn sortable(&self, column: &Column) -> String {
        match (self.dialect, column.kind) {
            (Dialect::Postgres, Kind::Text) => format!("({}) collate \"C\"", column.compare),
            _ => column.compare.clone(),
        }
    }

    fn conditions(&mut self, query: &Query) -> Result<()> {
        let mut parts = Vec::new();
        for group in &query.groups {
            let mut all = Vec::new();
            for condition in &group.all {
                all.push(self.condition(query.model, &condition.path, condition)?);
            }
            if all.is_empty() {
                all.push("1 = 1".to_owned());
            }
            let all = all.join(" and ");
            parts.push(if group.negated {
                format!("({all}) is not true")
            } else {
                format!("({all})")
            });
        }
        if !parts.is_empty() {
            self.text.push_str(" where ");
            self.text.push_str(&parts.join(" and "));
        }
        Ok(())
    }

    fn condition(
        &mut self,
        model: Model,
        path: &[&'static Relation],
        condition: &Condition,
    ) -> Result<String> {
        let Some((relation, rest)) = path.split_first() else {
            let column = self.column(model, &condition.column)?;
            return Ok(self.test(&column, &condition.test));
        };
        let here = self.column(model, relation.from)?;
        let there = self.column(relation.model, relation.to)?;
        let inner = self.condition(relation.model, rest, condition)?;
        Ok(format!(
            "{} in (select {} from {} where {inner})",
            here.compare,
            there.compare,
            relation.model.table()
        ))
    }

    fn test(&mut self, column: &Column, test: &Test) -> String {
        let c = &column.compare;
        match test {
            Test::In(values) if values.is_empty() => "1 = 0".to_owned(),
            Test::In(values) => {
                let list: Vec<String> = values.iter().map(|v| self.bind(v)).collect();
                format!("{c} in ({})", list.join(", "))
            }
            Test::Above(value) => format!("{} > {}", self.sortable(column), self.bind(value)),
            Test::From(value) => format!("{} >= {}", self.sortable(column), self.bind(value)),
            Test::Below(value) => format!("{} < {}", self.sortable(column), self.bind(value)),
            Test::To(value) => format!("{} <= {}", self.sortable(column), self.bind(value)),
            Test::IsNull(true) => format!("({c}) is null"),
            Test::IsNull(false) => format!("({c}) is not null"),
            Test::Contains(part) => {
                let part = self.bind(&Bound::Text(part.clone()));
                match self.dialect {
                    Dialect::Sqlite => format!("instr({c}, {part}) > 0"),
                    Dialect::Postgres => format!("strpos(({c})::text, {part}) > 0"),
                }
            }
            Test::StartsWith(part) => {
                let part = self.bind(&Bound::Text(part.clone()));
                match self.dialect {
                    Dialect::Sqlite => format!("substr({c}, 1, length({part})) = {part}"),
                    Dialect::Postgres => format!("starts_with(({c})::text, {part})"),
                }
            }
        }
    }

    fn bind(&mut self, value: &Bound) -> String {
        self.bound.push(value.clone());
        let number = self.bound.len();
        match (self.dialect, value) {
            (Dialect::Sqlite, Bound::Decimal(_)) => format!("cast(?{number} as numeric)"),
            (Dialect::Sqlite, _) => format!("?{number}"),
            (Dialect::Postgres, Bound::Integer(_)) => format!("${number}::bigint"),
            (Dialect::Postgres, Bound::Decimal(_)) => format!("${number}::numeric"),
            (Dialect::Postgres, Bound::Boolean(_)) => format!("${number}::boolean"),
            (Dialect::Postgres, Bound::Text(_)) => format!("${number}::text"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::query::{Group, Kind};

    fn columns(model: Model) -> Vec<Column> {
        let own = model.ours().unwrap_or(&[("id", "id", Kind::Integer, true)]);
        own.iter()
            .map(|(name, sql, kind, shown)| Column {
                name: (*name).to_owned(),
                kind: *kind,
                shown: *shown,
                compare: (*sql).to_owned(),
                json: (*sql).to_owned(),
            })
            .collect()
    }

    #[test]
    fn values_are_bound_and_names_are_known() {
        let hostile = "x'; drop table nas; --";
        let mut query = Query::all(Model::Done);
        query.groups.push(Group {
            negated: true,
            all: vec![Condition {
                path: Vec::new(),
                column: "answer".to_owned(),
                test: Test::Contains(hostile.to_owned()),
            }],
        });
        for dialect in [Dialect::Sqlite, Dialect::Postgres] {
            let mut statement = Statement::new(dialect, &columns);
            statement.objects(&query).unwrap();
            assert!(!statement.text.contains("drop"), "{}", statement.text);
            assert_eq!(statement.bound, [Bound::Text(hostile.to_owned())]);
        }
        query.columns = vec![hostile.to_owned()];
        let mut statement = Statement::new(Dialect::Sqlite, &columns);
        assert!(statement.objects(&query).is_err());
        let mut query = Query::all(Model::Done);
        query.order.push((hostile.to_owned(), false));
        assert!(statement.objects(&query).is_err());
    }
}
