//! Templates of a scheme: compiled once, rendered value by value. What comes out of `{{ }}` is
//! data: depending on its place it is taken as it is, refused when empty, escaped for a
//! regular expression, or made exactly one word of a command line.

use std::sync::Arc;

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

use super::expression::{
    Expr, Names, Piece, Use, check_words, context, engine, explain, pieces, sorted_names, uses,
    value_text,
};
use super::names::{Scope, Source, source};

/// Where a rendered value goes, which says what may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// An API word, an attribute, an answer: anything.
    Data,
    /// `where`, a path, an own mark: an empty value would widen the command.
    Exact,
    /// A part of a regular expression.
    Pattern,
    /// A line for a POSIX shell: one quoted word.
    Posix,
    /// A line for a device without quoting.
    Plain,
    /// A path of a URL: percent-encoded (RFC 3986 section 2).
    Url,
}

/// Puts one value where it belongs. `word_start`: nothing of the word stands before it.
fn put(place: Place, out: &mut String, text: &str, word_start: bool) -> Result<(), String> {
    match place {
        Place::Data => out.push_str(text),
        Place::Exact | Place::Pattern | Place::Url if text.is_empty() => {
            return Err("is empty; an empty value would widen the command".to_owned());
        }
        Place::Exact => out.push_str(text),
        Place::Pattern => out.push_str(&regex::escape(text)),
        Place::Posix => {
            option_check(text, word_start)?;
            posix_word(out, text)?;
        }
        Place::Plain => {
            option_check(text, word_start)?;
            let good = |c: char| c.is_ascii_alphanumeric() || "._:/@+,-".contains(c);
            if let Some(c) = text.chars().find(|c| !good(*c)) {
                return Err(format!(
                    "holds {c:?}; a plain line takes only letters, digits and ._:/@+,-"
                ));
            }
            out.push_str(text);
        }
        Place::Url => {
            for byte in text.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    out.push(char::from(byte));
                } else {
                    out.push_str(&format!("%{byte:02X}"));
                }
            }
        }
    }
    Ok(())
}

/// A word that begins with `-` would be an option of the command.
fn option_check(text: &str, word_start: bool) -> Result<(), String> {
    if word_start && text.starts_with('-') {
        return Err("begins with `-` and would be read as an option".to_owned());
    }
    Ok(())
}

/// One word of any POSIX shell (POSIX.1-2017, XCU 2.2.2 "Single-Quotes").
fn posix_word(out: &mut String, text: &str) -> Result<(), String> {
    if let Some(c) = text.chars().find(|c| c.is_control()) {
        return Err(format!("holds the control character {c:?}"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/@+,-%^".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        out.push_str(text);
        return Ok(());
    }
    out.push('\'');
    for (n, part) in text.split('\'').enumerate() {
        if n > 0 {
            out.push_str(r"'\''");
        }
        out.push_str(part);
    }
    out.push('\'');
    Ok(())
}

enum Segment {
    /// Literal text.
    Text(Box<str>),
    /// `{{ name }}`: no engine needed.
    Name(Arc<str>, Source),
    /// `{{ expression }}`.
    Expr(Box<Expr>),
    /// A template with `{% %}`: rendered as a whole, each value put by the formatter.
    Block(Box<Block>),
}

struct Block {
    engine: Environment<'static>,
    names: Names,
}

/// Name of the only template of a block's own environment.
const BLOCK: &str = "block";

/// One value of a scheme.
pub(super) struct Template {
    segments: Vec<Segment>,
    place: Place,
    /// Written empty on purpose.
    empty: bool,
    /// Line of the file.
    pub(super) line: usize,
}

impl Template {
    /// Compiles; the names that it uses are added to `found`.
    pub(super) fn compile(
        text: &str,
        line: usize,
        place: Place,
        vars: &[Arc<str>],
        found: &mut Vec<Use>,
    ) -> Result<Self, String> {
        let pieces = pieces(text)?;
        let simple = pieces.iter().all(|p| match p {
            Piece::Text(_) => true,
            // `{{-` and `-}}` eat the text around them: left to the engine.
            Piece::Emit(body) => !body.starts_with(['-', '+']) && !body.ends_with('-'),
            Piece::Tag(_) | Piece::Comment => false,
        });
        let segments = if simple {
            let mut segments = Vec::with_capacity(pieces.len());
            for piece in pieces {
                segments.push(match piece {
                    Piece::Text(text) => Segment::Text(text.into()),
                    Piece::Emit(body) => emit(body, vars, found)?,
                    Piece::Tag(_) | Piece::Comment => continue,
                });
            }
            segments
        } else {
            for piece in &pieces {
                if let Piece::Emit(body) | Piece::Tag(body) = piece {
                    check_words(body)?;
                }
            }
            vec![Segment::Block(Box::new(block(text, place, vars, found)?))]
        };
        Ok(Self {
            segments,
            place,
            empty: text.is_empty(),
            line,
        })
    }

    /// The scheme says the empty text literally, which is a wish and not an accident.
    pub(super) fn is_empty_literal(&self) -> bool {
        self.empty
    }

    /// The text, if nothing in it is rendered.
    pub(super) fn literal(&self) -> Option<String> {
        let text = |segment: &Segment| {
            match segment {
                Segment::Text(text) => Some(&**text),
                Segment::Name(..) | Segment::Expr(_) | Segment::Block(_) => None,
            }
            .map(str::to_owned)
        };
        self.segments.iter().map(text).collect()
    }

    /// Renders.
    pub(super) fn render(&self, scope: &Scope<'_>) -> Result<String, String> {
        self.render_place(scope, self.place)
    }

    fn render_place(&self, scope: &Scope<'_>, place: Place) -> Result<String, String> {
        let mut out = String::with_capacity(64);
        for segment in &self.segments {
            match segment {
                Segment::Text(text) => out.push_str(text),
                Segment::Name(name, source) => {
                    let text = scope.text(name, *source)?;
                    let text = text
                        .ok_or_else(|| format!("`{name}` is undefined: the event has no {name}"))?;
                    let start = out.ends_with(char::is_whitespace) || out.is_empty();
                    put(place, &mut out, &text, start).map_err(|e| format!("`{name}` {e}"))?;
                }
                Segment::Expr(expr) => {
                    let value = expr.defined(scope)?;
                    let in_expr = |e: String| format!("`{}` {e}", expr.text());
                    let text = value_text(&value).map_err(in_expr)?;
                    let start = out.ends_with(char::is_whitespace) || out.is_empty();
                    put(place, &mut out, &text, start).map_err(in_expr)?;
                }
                Segment::Block(block) => out.push_str(&block.render(scope)?),
            }
        }
        Ok(out)
    }

    /// The value itself where the template is one `{{ }}` (a list stays a list), else its text.
    pub(super) fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, String> {
        match self.segments.as_slice() {
            [Segment::Name(name, source)] => scope
                .value(name, *source)?
                .ok_or_else(|| format!("`{name}` is undefined: the event has no {name}")),
            [Segment::Expr(expr)] => expr.defined(scope),
            _ => self.render(scope).map(Value::from),
        }
    }
}

fn emit(body: &str, vars: &[Arc<str>], found: &mut Vec<Use>) -> Result<Segment, String> {
    let (expr, uses) = Expr::compile(body, vars)?;
    found.extend(uses.iter().cloned());
    let bare = uses.first().filter(|u| &*u.name == body.trim());
    Ok(match bare {
        Some(only) => Segment::Name(Arc::clone(&only.name), source(&only.name, vars)),
        None => Segment::Expr(Box::new(expr)),
    })
}

fn block(
    text: &str,
    place: Place,
    vars: &[Arc<str>],
    found: &mut Vec<Use>,
) -> Result<Block, String> {
    let mut engine = engine();
    engine.set_formatter(move |out, _state, value| {
        let text = value_text(value).map_err(|e| bad(format!("a value {e}")))?;
        let mut safe = String::with_capacity(text.len());
        // What stands before it is not known here, so the strict rule holds.
        put(place, &mut safe, &text, true).map_err(|e| bad(format!("a value {e}")))?;
        out.write_str(&safe).map_err(Error::from)
    });
    engine
        .add_template_owned(BLOCK, text.to_owned())
        .map_err(|e| format!("not a template: {}", explain(&e)))?;
    let names = {
        let template = engine.get_template(BLOCK).map_err(|e| explain(&e))?;
        let uses = uses(template.undeclared_variables(true), text);
        let parts = pieces(text)?;
        let inside: Vec<_> = parts
            .iter()
            .filter_map(|p| match p {
                Piece::Emit(body) | Piece::Tag(body) => Some(*body),
                Piece::Text(_) | Piece::Comment => None,
            })
            .collect();
        let names = sorted_names(&uses, vars, &inside.join(" "));
        found.extend(uses);
        names
    };
    Ok(Block { engine, names })
}

fn bad(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

impl Block {
    fn render(&self, scope: &Scope<'_>) -> Result<String, String> {
        let context = context(&self.names, scope)?;
        self.engine
            .get_template(BLOCK)
            .and_then(|t| t.render(context))
            .map_err(|e| explain(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(place: Place, text: &str, word_start: bool) -> Result<String, String> {
        let mut out = String::new();
        put(place, &mut out, text, word_start).map(|()| out)
    }

    #[test]
    fn a_value_stays_a_value() {
        for (place, text, want) in [
            (Place::Data, "a\nb'", "a\nb'"),
            (Place::Pattern, "10.88.0.15", r"10\.88\.0\.15"),
            (Place::Posix, "10.88.0.15/32", "10.88.0.15/32"),
            (Place::Posix, "", "''"),
            (Place::Posix, "a b$(reboot)", "'a b$(reboot)'"),
            (Place::Posix, "it's", r"'it'\''s'"),
            (Place::Plain, "crb_1424", "crb_1424"),
            (Place::Url, "a/b?c=d é", "a%2Fb%3Fc%3Dd%20%C3%A9"),
        ] {
            assert_eq!(placed(place, text, true).unwrap(), want, "{place:?}");
        }
        for (place, text) in [
            (Place::Exact, ""),
            (Place::Pattern, ""),
            (Place::Url, ""),
            (Place::Posix, "-rf"),
            (Place::Posix, "a\nreboot"),
            (Place::Posix, "a\0b"),
            (Place::Plain, "-x"),
            (Place::Plain, "a b"),
            (Place::Plain, "a;b"),
            (Place::Plain, "a\nb"),
        ] {
            assert!(placed(place, text, true).is_err(), "{place:?} {text:?}");
        }
        assert_eq!(placed(Place::Posix, "-5", false).unwrap(), "-5");
    }
}
