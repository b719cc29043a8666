//! A router's tables in memory, for the tests of steps: the same answers as RouterOS gives,
//! without a wire.

use std::collections::BTreeMap;

use crate::attempt::Failure;
use crate::driver::mikrotik::Command;
use crate::driver::{Reply, Row};
use crate::scheme::native::walk::again;

/// Menus with their rows, and everything that was asked.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) menus: BTreeMap<String, Vec<Row>>,
    pub(crate) log: Vec<Command>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) replies: BTreeMap<String, Reply>,
    next: u32,
}

impl Table {
    pub(crate) fn put(&mut self, menu: &str, words: &[(&str, &str)]) {
        let words = words
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        self.insert(menu, words.collect());
    }

    fn insert(&mut self, menu: &str, mut row: Row) -> String {
        self.next += 1;
        let id = format!("*{:X}", self.next);
        row.insert(".id".into(), id.clone());
        self.menus.entry(menu.to_owned()).or_default().push(row);
        id
    }

    pub(crate) fn sentences(&self) -> Vec<String> {
        let nas = crate::nas::NasId(1);
        let strip = |c: &Command| {
            let text = c.pasteable(nas);
            text.trim_start_matches("send_mikrotik_cmd --nas 1 ")
                .to_owned()
        };
        self.log.iter().map(strip).collect()
    }

    pub(crate) fn talk(&mut self, command: &Command) -> Result<Reply, Failure> {
        self.log.push(command.clone());
        if let Some(failure) = self.failures.pop() {
            return Err(failure);
        }
        if let Some(reply) = self.replies.get(&command.path) {
            return Ok(reply.clone());
        }
        let (menu, verb) = command.path.rsplit_once('/').unwrap();
        let rows = self.menus.entry(menu.to_owned()).or_default();
        match verb {
            "print" => Ok(Reply {
                rows: rows
                    .iter()
                    .filter(|r| matches(r, &command.queries))
                    .cloned()
                    .collect(),
                ..Reply::default()
            }),
            "add" => {
                let mut row: Row = command.args.iter().cloned().collect();
                row.remove("place-before");
                canonical(menu, &mut row);
                let unique: &[&str] = match menu {
                    "/queue/simple" => &["name"],
                    m if m.ends_with("address-list") => &["list", "address"],
                    _ => &[],
                };
                let same = |r: &Row| unique.iter().all(|k| r.get(*k) == row.get(*k));
                if !unique.is_empty() && rows.iter().any(same) {
                    return Err(again("failure: already have such entry".into()));
                }
                let ret = Some(self.insert(menu, row));
                Ok(Reply {
                    ret,
                    ..Reply::default()
                })
            }
            "set" => {
                let id = &command.args[0].1;
                let row = rows.iter_mut().find(|r| &r[".id"] == id);
                let row = row.ok_or_else(|| again("no such item".into()))?;
                row.extend(command.args[1..].iter().cloned());
                canonical(menu, row);
                Ok(Reply::default())
            }
            "remove" => {
                for id in command.args[0].1.split(',') {
                    let at = rows.iter().position(|r| r[".id"] == id);
                    rows.remove(at.ok_or_else(|| again("no such item".into()))?);
                }
                Ok(Reply::default())
            }
            other => Err(again(format!("no such command: {other}"))),
        }
    }
}

/// What RouterOS makes of a value that it stores.
fn canonical(menu: &str, row: &mut Row) {
    let rate = |part: &str| {
        let digits = part.trim_end_matches(['k', 'M']);
        match part.chars().last() {
            Some('k') => format!("{digits}000"),
            Some('M') => format!("{digits}000000"),
            _ => part.to_owned(),
        }
    };
    if let Some(limit) = row.get_mut("max-limit") {
        *limit = limit.split('/').map(rate).collect::<Vec<_>>().join("/");
    }
    if let Some(target) = row.get_mut("target") {
        let host = |t: &str| match (t.contains('/'), t.contains(':')) {
            (true, _) => t.to_owned(),
            (false, true) => format!("{t}/128"),
            (false, false) => format!("{t}/32"),
        };
        *target = target.split(',').map(host).collect::<Vec<_>>().join(",");
    }
    if let Some(address) = row.get_mut("address") {
        if menu.starts_with("/ipv6") && !address.contains('/') {
            address.push_str("/128");
        }
        if menu == "/ip/firewall/address-list" {
            *address = address.trim_end_matches("/32").to_owned();
        }
    }
}

fn matches(row: &Row, queries: &[String]) -> bool {
    let mut stack: Vec<bool> = Vec::new();
    for query in queries {
        if query == "?#|" {
            let (a, b) = (stack.pop().unwrap(), stack.pop().unwrap());
            stack.push(a || b);
            continue;
        }
        let (key, want) = query[1..].split_once('=').unwrap();
        stack.push(row.get(key).is_some_and(|v| v == want));
    }
    stack.into_iter().all(|b| b)
}
