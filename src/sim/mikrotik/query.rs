//! Query words of `print` (MikroTik manual, "API", "Queries"): each pushes a truth value,
//! `?#` words combine them, what is left at the end must all be true.

use crate::driver::mikrotik::wire;
use crate::sim::mikrotik::tables::Trap;

/// The query words of one sentence, parsed.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<Word>);

#[derive(Debug)]
enum Word {
    Has(String),
    Lacks(String),
    Equal(String, Vec<u8>),
    Less(String, Vec<u8>),
    Greater(String, Vec<u8>),
    Operations(Vec<u8>),
}

impl Query {
    /// Reads words that begin with `?`. What the manual does not define is refused.
    pub(crate) fn parse<'a>(words: impl Iterator<Item = &'a [u8]>) -> Result<Self, Trap> {
        let mut out = Vec::new();
        for word in words {
            out.push(parse_word(word).ok_or_else(|| {
                Trap::argument(format!("invalid query word {}", wire::text(word)))
            })?);
        }
        let query = Self(out);
        // An operation without operands is an error of the sentence, not of a row.
        query.stack(&|_| None)?;
        Ok(query)
    }

    /// Whether a row matches; `value` gives a property of it.
    pub(crate) fn matches<'r>(&self, value: &dyn Fn(&str) -> Option<&'r [u8]>) -> bool {
        self.stack(value)
            .is_ok_and(|stack| stack.into_iter().all(|truth| truth))
    }

    fn stack<'r>(&self, value: &dyn Fn(&str) -> Option<&'r [u8]>) -> Result<Vec<bool>, Trap> {
        let mut stack = Vec::new();
        // What is only "and" is decided by its first word that is not true.
        let combined = self.0.iter().any(|w| matches!(w, Word::Operations(_)));
        for word in &self.0 {
            if !combined && stack.last() == Some(&false) {
                break;
            }
            match word {
                Word::Has(name) => stack.push(value(name).is_some()),
                Word::Lacks(name) => stack.push(value(name).is_none()),
                Word::Equal(name, wanted) => stack.push(value(name) == Some(wanted)),
                Word::Less(name, than) => {
                    stack.push(value(name).is_some_and(|v| compare(v, than).is_lt()));
                }
                Word::Greater(name, than) => {
                    stack.push(value(name).is_some_and(|v| compare(v, than).is_gt()));
                }
                Word::Operations(operations) => operate(&mut stack, operations)
                    .ok_or_else(|| Trap::argument("invalid query: nothing to combine"))?,
            }
        }
        Ok(stack)
    }
}

fn operate(stack: &mut Vec<bool>, operations: &[u8]) -> Option<()> {
    for operation in operations {
        let top = stack.pop()?;
        let result = match operation {
            b'!' => !top,
            b'&' => stack.pop()? & top,
            _ => stack.pop()? | top,
        };
        stack.push(result);
    }
    Some(())
}

fn parse_word(word: &[u8]) -> Option<Word> {
    let body = word.strip_prefix(b"?")?;
    if let Some(operations) = body.strip_prefix(b"#") {
        return (!operations.is_empty() && operations.iter().all(|b| b"!&|".contains(b)))
            .then(|| Word::Operations(operations.to_vec()));
    }
    if let Some(name) = body.strip_prefix(b"-") {
        return Some(Word::Lacks(name_of(name)?));
    }
    let split = |body: &[u8]| -> Option<(String, Vec<u8>)> {
        let at = body.iter().position(|b| *b == b'=')?;
        Some((name_of(body.get(..at)?)?, body.get(at + 1..)?.to_vec()))
    };
    match body.first()? {
        b'<' => split(body.get(1..)?).map(|(n, v)| Word::Less(n, v)),
        b'>' => split(body.get(1..)?).map(|(n, v)| Word::Greater(n, v)),
        b'=' => split(body.get(1..)?).map(|(n, v)| Word::Equal(n, v)),
        _ => match split(body) {
            Some((name, value)) => Some(Word::Equal(name, value)),
            None => Some(Word::Has(name_of(body)?)),
        },
    }
}

fn name_of(bytes: &[u8]) -> Option<String> {
    let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    (!bytes.is_empty() && bytes.iter().all(fits)).then(|| wire::text(bytes))
}

/// Numbers by value, everything else by bytes.
fn compare(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    let number = |v: &[u8]| std::str::from_utf8(v).ok()?.parse::<i64>().ok();
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(words: &[&str]) -> Result<bool, Trap> {
        let row: &[(&str, &[u8])] = &[("name", b"a=b"), ("n", b"9"), ("comment", b"x")];
        let value = |name: &str| row.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        Query::parse(words.iter().map(|w| w.as_bytes())).map(|q| q.matches(&value))
    }

    #[test]
    fn words_and_operations() {
        for (words, wanted) in [
            (&[][..], true),
            (&["?name=a=b"], true),
            (&["?=name=a=b"], true),
            (&["?name=a"], false),
            (&["?name"], true),
            (&["?other"], false),
            (&["?-other"], true),
            (&["?-name"], false),
            (&["?>n=10"], false),
            (&["?<n=10"], true),
            (&["?>comment="], true),
            (&["?name=a=b", "?n=1"], false),
            (&["?name=zz", "?n=9", "?#|"], true),
            (&["?name=zz", "?n=8", "?#|!"], true),
            (&["?name=a=b", "?n=9", "?#&!"], false),
        ] {
            assert_eq!(matches(words).unwrap(), wanted, "{words:?}");
        }
        for bad in [
            &["?#|"][..],
            &["?n=9", "?#&"],
            &["?"],
            &["?#"],
            &["?#x"],
            &["?<n"],
            &["? x=1"],
        ] {
            assert!(matches(bad).is_err(), "{bad:?}");
        }
    }
}
