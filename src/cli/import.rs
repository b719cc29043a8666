//! `import nas|accounts`: rows of a CSV file or of a foreign database into the sample billing, for
//! providers who keep their NASes and accounts here. All or nothing; the same file again changes
//! nothing, and nothing is ever removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::exit::{DONE, FAILED, Failed, NOT_REACHABLE, Outcome, PART_FAILED, remark};
use super::progress::Progress;
use super::table::Table;
use super::{Console, who};
use crate::bridge::map::Cell;
use crate::bridge::sheet::Sheets;
use crate::bridge::source::Source;
use crate::intake::bulk;
use crate::store::is_host;
use crate::store::sample::{ABONENTS, Filling, Holds, NAS, NAS_SECRET, Sheet, USERS};

/// Mistakes that are told.
const TOLD_MAX: usize = 20;
/// Name of the abonent, in a row of an account.
const ABONENT_NAME: &str = "abonent_name";
const COLUMNS: &[&str] = &["table", "rows", "added", "changed", "same", "not_given"];

/// What is brought.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// NASes and their credentials; new ones send nothing until `nas activate`.
    Nas(From),
    /// Accounts, and the abonents they belong to.
    Accounts(From),
}

/// Where from.
#[derive(Debug, Args)]
pub struct From {
    /// A CSV file in UTF-8, its first line names the columns; `,` or `;` between values
    #[arg(
        value_name = "FILE",
        required_unless_present = "map",
        conflicts_with = "map"
    )]
    file: Option<PathBuf>,
    /// import.toml: a foreign database and its columns (docs/migrate.md)
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
}

/// Rows as texts; an empty one is none.
#[derive(Debug, Default)]
struct Given {
    names: Vec<String>,
    /// Where each stands, for messages, and its values.
    rows: Vec<(String, Vec<Option<String>>)>,
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let (what, from) = match &verb {
        Verb::Nas(from) => ("nas", from),
        Verb::Accounts(from) => ("accounts", from),
    };
    let given = match (&from.file, &from.map) {
        (Some(file), _) => of_csv(file)?,
        (None, Some(map)) => of_source(map, &verb).await?,
        (None, None) => Given::default(),
    };
    let fillings = fillings(&verb, &given)?;
    let config = console.config()?;
    let store = console.store(&config).await?;
    let whole = fillings.iter().map(|filling| filling.rows.len() as u64);
    let bar = Progress::of("importing", whole.sum());
    let told = |rows| bar.at(rows);
    let filled = store.fill(&fillings, !console.dry_run, &told).await?;
    bar.end();
    let mut table = Table::new(COLUMNS);
    for (filling, did) in fillings.iter().zip(&filled) {
        table.push(vec![
            json!(filling.sheet.table),
            json!(filling.rows.len()),
            json!(did.added),
            json!(did.changed),
            json!(did.same),
            json!(did.not_given),
        ]);
    }
    console.list(&table);
    if console.dry_run {
        remark("dry run: nothing was written");
        return Ok(DONE);
    }
    let (added, changed) = filled
        .iter()
        .fold((0, 0), |(a, c), did| (a + did.added, c + did.changed));
    let detail = format!("what={what} added={added} changed={changed}");
    store.audit(&who(), "import", &detail).await?;
    if what == "accounts" {
        return Ok(DONE);
    }
    let mut bad = 0;
    for row in store.nases().await? {
        if let Err(nas) = row {
            bad += 1;
            remark(format!("nas {} cannot be served: {}", nas.id, nas.reason));
        }
    }
    remark("the daemon reads them within dispatch.settings_interval, or now: nas reload");
    if filled.first().is_some_and(|nas| nas.added > 0) && !given.names.iter().any(|n| n == "mode") {
        remark("new NASes are in mode observe and send nothing: nas test ID, then nas activate ID");
    }
    Ok(if bad > 0 { PART_FAILED } else { DONE })
}

fn of_csv(file: &Path) -> Result<Given, Failed> {
    let shown = file.display();
    let bytes = std::fs::read(file)
        .map_err(|e| Failed::new(FAILED, format!("{shown} cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|_| {
        Failed::new(
            FAILED,
            format!("{shown} is not UTF-8\nhint: iconv -f cp1251 -t utf-8 FILE > NEW"),
        )
    })?;
    read_csv(&text).map_err(|why| {
        Failed::new(
            FAILED,
            format!(
                "{shown}: {why}\nhint: docs/migrate.md, \"NASes and accounts\"; nothing was written"
            ),
        )
    })
}

fn read_csv(text: &str) -> Result<Given, String> {
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let header = lines.next().map(|(_, line)| line).unwrap_or_default();
    let between = if header.contains(';') { ';' } else { ',' };
    let names = bulk::cells(header, between).map_err(|why| format!("line 1 {why}"))?;
    let mut given = Given {
        names,
        rows: Vec::new(),
    };
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("line {}", number + 1);
        let cells = bulk::cells(line, between).map_err(|why| format!("{place} {why}"))?;
        if cells.len() != given.names.len() {
            return Err(format!(
                "{place} has {} values, the header has {}",
                cells.len(),
                given.names.len()
            ));
        }
        let cells = cells.into_iter().map(|c| Some(c).filter(|c| !c.is_empty()));
        given.rows.push((place, cells.collect()));
    }
    Ok(given)
}

async fn of_source(map: &Path, verb: &Verb) -> Result<Given, Failed> {
    let wrong = |reason: String| {
        Failed::config(format!(
            "{reason}\nhint: docs/migrate.md, \"NASes and accounts\""
        ))
    };
    let sheets = Sheets::load(map).map_err(wrong)?;
    let (name, sheet) = match verb {
        Verb::Nas(_) => ("nas", sheets.nas),
        Verb::Accounts(_) => ("accounts", sheets.accounts),
    };
    let sheet = sheet.ok_or_else(|| wrong(format!("{} has no [{name}]", map.display())))?;
    let failed = |e: crate::bridge::source::Error| {
        Failed::new(
            NOT_REACHABLE,
            format!("{e}\nhint: look at [source] and [{name}] of the map; nothing was written"),
        )
    };
    let source = Source::open(&sheets.source).map_err(failed)?;
    let mut given = Given {
        names: sheet.columns.keys().cloned().collect(),
        rows: Vec::new(),
    };
    for (number, row) in sheet
        .rows(&source)
        .await
        .map_err(failed)?
        .into_iter()
        .enumerate()
    {
        let place = format!("row {}", number + 1);
        let mut cells = Vec::with_capacity(row.len());
        for (cell, column) in row.into_iter().zip(&given.names) {
            cells.push(match cell {
                Cell::Null => None,
                Cell::Text(text) => Some(text.trim_end().to_owned()).filter(|t| !t.is_empty()),
                Cell::TooLong => {
                    let text = format!("{place}: {column} is too long; nothing was written");
                    return Err(Failed::new(FAILED, text));
                }
            });
        }
        given.rows.push((place, cells));
    }
    Ok(given)
}

/// The tables that a verb fills, its own first.
fn sheets(verb: &Verb) -> [&'static Sheet; 2] {
    match verb {
        Verb::Nas(_) => [&NAS, &NAS_SECRET],
        Verb::Accounts(_) => [&USERS, &ABONENTS],
    }
}

fn fillings(verb: &Verb, given: &Given) -> Result<Vec<Filling>, Failed> {
    let failed = |mistakes: &[String]| {
        let told: Vec<&str> = mistakes.iter().take(TOLD_MAX).map(String::as_str).collect();
        let more = mistakes.len().saturating_sub(TOLD_MAX);
        let more = if more > 0 {
            format!("\nand {more} more")
        } else {
            String::new()
        };
        Failed::new(
            FAILED,
            format!("{}{more}\nhint: nothing was written", told.join("\n")),
        )
    };
    let [own, beside] = sheets(verb);
    let known = |name: &str| -> Option<(&'static Sheet, &'static str, Holds)> {
        let of = |sheet: &'static Sheet| {
            let found = sheet.columns.iter().find(|(column, _)| *column == name);
            found.map(|(column, holds)| (sheet, *column, *holds))
        };
        match verb {
            Verb::Nas(_) => of(own).or_else(|| of(beside)),
            Verb::Accounts(_) if name == ABONENT_NAME => Some((beside, "name", Holds::TextAlways)),
            Verb::Accounts(_) => of(own),
        }
    };
    let mut mistakes = Vec::new();
    let mut seen = BTreeSet::new();
    let mut columns = Vec::new();
    for name in &given.names {
        let column = if name == "id" { None } else { known(name) };
        if column.is_none() && name != "id" {
            // Not its name: where the line of names is missing, it is the value of a row.
            let at = columns.len() + 1;
            mistakes.push(format!(
                "column {at} of the first line has no name of a column of {}",
                own.table
            ));
        } else if !seen.insert(name.as_str()) {
            mistakes.push(format!("the column {name} is given twice"));
        }
        columns.push(column);
    }
    if !seen.contains("id") {
        mistakes.push("the column id is missing: rows are told apart by it".to_owned());
    }
    if !mistakes.is_empty() {
        return Err(failed(&mistakes));
    }
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    let mut others: BTreeMap<i64, Map<String, Value>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (place, cells) in &given.rows {
        let mut row = Map::new();
        let mut other = Map::new();
        for (column, cell) in columns.iter().zip(cells) {
            let cell = cell.as_deref();
            let Some((sheet, name, holds)) = column else {
                match cell.and_then(|id| id.trim().parse::<i64>().ok()) {
                    Some(id) if ids.insert(id) => drop(row.insert("id".to_owned(), json!(id))),
                    Some(id) => mistakes.push(format!("{place}: id {id} came before")),
                    None => mistakes.push(format!("{place}: id is not a whole number")),
                }
                continue;
            };
            let into = if *sheet == own { &mut row } else { &mut other };
            match value(cell, *holds) {
                Ok(value) => match odd(sheet, name, &value) {
                    Some(why) => mistakes.push(format!("{place}: {name} {why}")),
                    None => drop(into.insert((*name).to_owned(), value)),
                },
                // What it is instead is not told: it may be a password in the wrong column.
                Err(why) => mistakes.push(format!("{place}: {name} {why}")),
            }
        }
        let key = match verb {
            Verb::Nas(_) => row.get("id"),
            Verb::Accounts(_) => row.get("abonent_id"),
        };
        let key = key.and_then(Value::as_i64);
        if other.values().any(|value| !value.is_null()) {
            match key {
                Some(key) => {
                    other.insert(beside.key.to_owned(), json!(key));
                    others.entry(key).or_insert(other);
                }
                None => mistakes.push(format!("{place}: {ABONENT_NAME} without abonent_id")),
            }
        }
        rows.push(row);
    }
    if !mistakes.is_empty() {
        return Err(failed(&mistakes));
    }
    let names = |sheet: &Sheet| -> Vec<&'static str> {
        let all = columns.iter().flatten();
        all.filter(|(of, ..)| *of == sheet)
            .map(|(_, name, _)| *name)
            .collect()
    };
    let mut all = vec![Filling {
        sheet: own,
        columns: names(own),
        rows,
    }];
    if !others.is_empty() {
        all.push(Filling {
            sheet: beside,
            columns: names(beside),
            rows: others.into_values().collect(),
        });
    }
    Ok(all)
}

/// What is wrong with a value that its column could hold.
fn odd(sheet: &Sheet, column: &str, value: &Value) -> Option<&'static str> {
    match column {
        "ip" if *sheet == NAS => {
            let fits = is_host(value.as_str()?);
            (!fits).then_some("is neither an address nor a host name")
        }
        "ip" | "snatip" => {
            let text = value.as_str()?;
            let fits = text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok();
            (!fits).then_some("is no IP address")
        }
        "forks" => {
            let forks = value.as_i64()?;
            (!(1..=100).contains(&forks)).then_some("is not 1..100")
        }
        _ => None,
    }
}

/// A cell as its column holds it.
fn value(cell: Option<&str>, holds: Holds) -> Result<Value, &'static str> {
    let Some(text) = cell else {
        return match holds {
            Holds::WholeAlways | Holds::TextAlways => Err("is empty"),
            Holds::Whole | Holds::Number | Holds::Text | Holds::Json => Ok(Value::Null),
        };
    };
    match holds {
        Holds::Whole | Holds::WholeAlways => match text.trim() {
            "true" | "t" => Ok(json!(1)),
            "false" | "f" => Ok(json!(0)),
            text => {
                let number = text.parse::<i64>();
                number
                    .map(|n| json!(n))
                    .map_err(|_| "is not a whole number")
            }
        },
        Holds::Number => {
            let number = text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
            number.map(|n| json!(n)).ok_or("is not a number")
        }
        Holds::Text | Holds::TextAlways if text.contains('\0') => Err("holds a NUL character"),
        Holds::Text | Holds::TextAlways => Ok(json!(text)),
        Holds::Json => serde_json::from_str(text).map_err(|_| "is not JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from() -> From {
        From {
            file: None,
            map: None,
        }
    }

    #[test]
    fn rows_go_where_they_belong() {
        let csv = "\u{feff}id;name;ip;forks;password;vars\r\n1;\"BRAS; 1\";10.0.0.1;5;secret;\"{\"\"a\"\":1}\"\r\n2;B;10.0.0.2;3;;\r\n";
        let given = read_csv(csv).unwrap();
        let all = fillings(&Verb::Nas(from()), &given).unwrap();
        assert_eq!(all[0].columns, ["name", "ip", "forks", "vars"]);
        assert_eq!(
            Value::Object(all[0].rows[0].clone()),
            json!({"id": 1, "name": "BRAS; 1", "ip": "10.0.0.1", "forks": 5, "vars": {"a": 1}})
        );
        assert_eq!(all[0].rows[1]["vars"], Value::Null);
        // A NAS without credentials in the file keeps those that it has.
        assert_eq!(all[1].rows.len(), 1);
        assert_eq!(
            Value::Object(all[1].rows[0].clone()),
            json!({"nas_id": 1, "password": "secret"})
        );
        let csv = "id,abonent_id,abonent_name,accept\n7,70,Ann,1\n8,70,Ann,0\n";
        let all = fillings(&Verb::Accounts(from()), &read_csv(csv).unwrap()).unwrap();
        assert_eq!((all[0].rows.len(), all[1].rows.len()), (2, 1));
        assert_eq!(
            Value::Object(all[1].rows[0].clone()),
            json!({"id": 70, "name": "Ann"})
        );
    }

    #[test]
    fn mistakes_are_named_without_what_was_written() {
        let told = |csv: &str| {
            let given = read_csv(csv)?;
            fillings(&Verb::Nas(from()), &given).map_err(|failed| failed.text)
        };
        for (csv, why) in [
            (
                "id,name,ip,forks\n1,A,10.0.0.1,s3cret\n",
                "line 2: forks is not a whole number",
            ),
            (
                "id,name,ip,forks\n1,A,10.0.0.1,\n",
                "line 2: forks is empty",
            ),
            (
                "id,name,ip,forks\n1,A,10.0.0.0/24,5\n",
                "line 2: ip is neither an address nor a host name",
            ),
            (
                "id,name,ip,forks\n1,A,bras-1.isp,500\n",
                "line 2: forks is not 1..100",
            ),
            ("id,ip\n1,a\n1,b\n", "line 3: id 1 came before"),
            ("name\nA\n", "the column id is missing"),
            ("id,id\n1,1\n", "given twice"),
            (
                "id,balance\n1,1\n",
                "column 2 of the first line has no name of a column of nas",
            ),
            ("id,ip\n1\n", "line 2 has 1 values"),
            ("id,vars\n1,{\n", "line 2: vars is not JSON"),
        ] {
            let text = told(csv).unwrap_err();
            assert!(text.contains(why), "{csv}: {text}");
            assert!(!text.contains("s3cret"), "{text}");
        }
    }
}
