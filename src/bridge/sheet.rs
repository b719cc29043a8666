//! `import.toml`: where the NASes and accounts of a foreign database are, and which of its columns
//! mean what. Only read from, page by page in the order of the key.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::map::{Cell, Place, is_identifier};
use super::source::{Error, Source};

/// Rows of one question.
const PAGE: usize = 1_000;
/// Most rows of one table: they are held in memory, and no provider of ours has more accounts.
const ROWS_MAX: usize = 2_000_000;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sheets {
    /// Where the database is, as in `bridge.toml`.
    pub source: Place,
    /// Its NASes.
    pub nas: Option<Sheet>,
    /// Its accounts.
    pub accounts: Option<Sheet>,
}

/// One table, view or join there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sheet {
    /// Name, `schema.table` where needed.
    pub table: String,
    /// Condition, in the source's SQL.
    #[serde(default, rename = "where")]
    pub only: String,
    /// Our name → an SQL expression over a row there. `id` is a whole number.
    pub columns: BTreeMap<String, String>,
}

impl Sheets {
    /// Reads and checks the file.
    pub fn load(file: &Path) -> Result<Self, String> {
        let shown = file.display();
        let text =
            std::fs::read_to_string(file).map_err(|e| format!("{shown} cannot be read: {e}"))?;
        Self::parse(&text).map_err(|reason| format!("{shown}: {reason}"))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let sheets: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        sheets.source.check()?;
        let both = [("nas", &sheets.nas), ("accounts", &sheets.accounts)];
        for (name, sheet) in both {
            if let Some(sheet) = sheet {
                sheet.check().map_err(|why| format!("[{name}] {why}"))?;
            }
        }
        Ok(sheets)
    }
}

impl Sheet {
    fn check(&self) -> Result<(), String> {
        if !is_identifier(&self.table) {
            return Err(format!("table: {:?} is no name of a table", self.table));
        }
        if !self.columns.contains_key("id") {
            return Err("columns.id is missing: rows are told apart by it".to_owned());
        }
        let bad = |text: &String| text.trim().is_empty() || text.contains(';');
        if self.columns.values().any(bad) {
            return Err("columns: each is one SQL expression over the row".to_owned());
        }
        Ok(())
    }

    /// All rows, cells in the order of `columns`.
    pub async fn rows(&self, source: &Source) -> Result<Vec<Vec<Cell>>, Error> {
        let id = self.columns.get("id").map_or("id", String::as_str);
        let mut cells = vec![(id, false)];
        let columns = self.columns.iter();
        cells.extend(columns.map(|(name, expr)| (expr.as_str(), name == "vars")));
        let mut all: Vec<Vec<Cell>> = Vec::new();
        let mut after: Option<i64> = None;
        loop {
            let mut only = Vec::new();
            if !self.only.trim().is_empty() {
                only.push(format!("({})", self.only));
            }
            only.extend(after.map(|after| format!("({id}) > {after}")));
            let page = source.rows((&self.table, id), &cells, &only, PAGE).await?;
            let full = page.len() >= PAGE;
            for mut row in page {
                let key = match row.first() {
                    Some(Cell::Text(text)) => text.trim().parse::<i64>().ok(),
                    Some(Cell::Null | Cell::TooLong) | None => None,
                };
                if key.is_none() || all.len() >= ROWS_MAX {
                    return Err(source.failed(&format!(
                        "columns.id of {} is not a whole number in each row, or there are more than {ROWS_MAX}",
                        self.table
                    )));
                }
                after = key;
                row.remove(0);
                all.push(row);
            }
            if !full {
                return Ok(all);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_checked() {
        let source = "[source]\nname = \"old\"\nkind = \"firebird\"\ndatabase = \"/x\"\n";
        let parse = |rest: &str| Sheets::parse(&format!("{source}{rest}"));
        let good = parse("[nas]\ntable = \"NAS\"\ncolumns = { id = \"ID\", ip = \"trim(IP)\" }\n");
        assert!(good.unwrap().accounts.is_none());
        for (rest, why) in [
            (
                "[nas]\ntable = \"NAS\"\ncolumns = { ip = \"IP\" }\n",
                "columns.id",
            ),
            (
                "[nas]\ntable = \"a; b\"\ncolumns = { id = \"ID\" }\n",
                "no name",
            ),
            (
                "[accounts]\ntable = \"U\"\ncolumns = { id = \"1; drop\" }\n",
                "[accounts]",
            ),
            ("[users]\ntable = \"U\"\n", "unknown field"),
        ] {
            let told = parse(rest).unwrap_err();
            assert!(told.contains(why), "{rest}: {told}");
        }
    }
}
