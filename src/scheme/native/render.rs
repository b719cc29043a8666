//! Templates and expressions of a scheme: compiled once, rendered value by value. What comes
//! out of `{{ }}` is data: depending on its place it is taken as it is, refused when empty,
//! escaped for a regular expression, or made exactly one word of a command line.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Expression, UndefinedBehavior};

use super::filters::{self, ALL_PARAMS};
use super::names::{Scope, Source, source};

/// Instructions that one template may execute: a loop over the largest list fits many times.
const FUEL: u64 = 1_000_000;

/// Compiles and runs every expression; holds no templates of its own.
static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(engine);

fn engine() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_fuel(Some(FUEL));
    env.set_debug(false);
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        env.set_syntax(syntax);
    }
    filters::install(&mut env);
    env
}

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

/// Part of a template's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'s> {
    /// Literal text.
    Text(&'s str),
    /// `{{ … }}`, without the braces.
    Emit(&'s str),
    /// `{% … %}`, without the braces.
    Tag(&'s str),
    /// `{# … #}`.
    Comment,
}

/// Cuts a template into its parts; strings inside `{{ }}` and `{% %}` may hold braces.
pub(super) fn pieces(template: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = template;
    loop {
        let open = ["{{", "{%", "{#"]
            .iter()
            .filter_map(|mark| rest.find(mark))
            .min();
        let Some(open) = open else {
            if !rest.is_empty() {
                pieces.push(Piece::Text(rest));
            }
            return Ok(pieces);
        };
        let (before, from) = rest.split_at(open);
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        let inner = from.get(2..).unwrap_or_default();
        let (mark, close) = match from.as_bytes().get(1) {
            Some(b'{') => ("{{", "}}"),
            Some(b'%') => ("{%", "%}"),
            _ => ("{#", "#}"),
        };
        let end = if mark == "{#" {
            inner.find(close)
        } else {
            find_outside_strings(inner, close)
        }
        .ok_or_else(|| format!("`{mark}` is not closed by `{close}`"))?;
        let body = inner.get(..end).unwrap_or_default();
        pieces.push(match mark {
            "{{" => Piece::Emit(body),
            "{%" => Piece::Tag(body),
            _ => Piece::Comment,
        });
        rest = inner.get(end + close.len()..).unwrap_or_default();
    }
}

/// First place of `what` that is not inside a quoted string.
pub(super) fn find_outside_strings(text: &str, what: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if text.get(at..).is_some_and(|t| t.starts_with(what)) => return Some(at),
            None if c == '\'' || c == '"' => quote = Some(c),
            None => {}
        }
    }
    None
}

/// Text of a value in canonical form: whole numbers without a point, lists as compact JSON.
pub(super) fn value_text(value: &Value) -> Result<Cow<'_, str>, String> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    match value.kind() {
        ValueKind::Undefined => Err("is undefined".to_owned()),
        ValueKind::None => Ok(Cow::Borrowed("")),
        ValueKind::Number => {
            let text = value.to_string();
            Ok(Cow::Owned(
                text.strip_suffix(".0").map(str::to_owned).unwrap_or(text),
            ))
        }
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => serde_json::to_string(value)
            .map(Cow::Owned)
            .map_err(|e| format!("cannot be written as text: {e}")),
        _ => Ok(Cow::Owned(value.to_string())),
    }
}

/// Puts one value where it belongs. `word_start`: nothing of the word stands before it.
fn put(place: Place, out: &mut String, text: &str, word_start: bool) -> Result<(), String> {
    match place {
        Place::Data => out.push_str(text),
        Place::Exact | Place::Pattern if text.is_empty() => {
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

/// What went wrong, in one line and without the template's own source listing.
fn explain(error: &Error) -> String {
    let mut text = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

/// A name that a template or an expression uses, for the lint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Use {
    /// The name itself.
    pub(super) name: Arc<str>,
    /// First attribute, as in `nas.queue_before`.
    pub(super) attribute: Option<Arc<str>>,
    /// It has a `default` or is only asked whether it is defined.
    pub(super) optional: bool,
}

/// A compiled expression.
pub(super) struct Expr {
    compiled: Expression<'static, 'static>,
    text: Arc<str>,
    names: Vec<(Arc<str>, Source)>,
}

impl Expr {
    /// Compiles; names are sorted out against `vars`.
    pub(super) fn compile(text: &str, vars: &[Arc<str>]) -> Result<(Self, Vec<Use>), String> {
        let text = text.trim();
        check_words(text)?;
        let compiled = ENGINE
            .compile_expression_owned(text.to_owned())
            .map_err(|e| format!("`{text}` is not an expression: {}", explain(&e)))?;
        let uses = uses(compiled.undeclared_variables(true), text);
        let names = sorted_names(&uses, vars, text);
        let expr = Self {
            compiled,
            text: text.into(),
            names,
        };
        Ok((expr, uses))
    }

    /// Its source, for messages.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Evaluates; the result may be undefined.
    pub(super) fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, String> {
        let context = context(&self.names, scope)?;
        self.compiled
            .eval(context)
            .map_err(|e| self.broken(&explain(&e), scope))
    }

    /// Evaluates to something that is defined.
    pub(super) fn defined(&self, scope: &Scope<'_>) -> Result<Value, String> {
        let value = self.evaluate(scope)?;
        if value.is_undefined() {
            return Err(self.broken("is undefined", scope));
        }
        Ok(value)
    }

    /// Names the expression, and the names in it that the event does not have.
    fn broken(&self, reason: &str, scope: &Scope<'_>) -> String {
        let lacking: Vec<_> = self
            .names
            .iter()
            .filter(|(name, source)| matches!(scope.value(name, *source), Ok(None)))
            .map(|(name, _)| &**name)
            .collect();
        if lacking.is_empty() {
            format!("`{}`: {reason}", self.text)
        } else {
            let lacking = lacking.join(", ");
            format!("`{}`: {reason}; the event has no {lacking}", self.text)
        }
    }
}

fn context(names: &[(Arc<str>, Source)], scope: &Scope<'_>) -> Result<Value, String> {
    let mut pairs = Vec::with_capacity(names.len());
    for (name, source) in names {
        if let Some(value) = scope.value(name, *source)? {
            pairs.push((Arc::clone(name), value));
        }
    }
    Ok(Value::from_pairs(pairs))
}

fn sorted_names(uses: &[Use], vars: &[Arc<str>], text: &str) -> Vec<(Arc<str>, Source)> {
    let mut names: Vec<(Arc<str>, Source)> = Vec::new();
    for name in uses.iter().map(|u| &u.name) {
        if !names.iter().any(|(n, _)| n == name) {
            names.push((Arc::clone(name), source(name, vars)));
        }
    }
    // The classic filter reads PARAMS by itself.
    if words_after(text, '|').any(|w| w == "classic")
        && !names.iter().any(|(n, _)| &**n == ALL_PARAMS)
    {
        names.push((ALL_PARAMS.into(), Source::AllParams));
    }
    names
}

fn uses(names: std::collections::HashSet<String>, text: &str) -> Vec<Use> {
    let globals: Vec<&str> = ENGINE.globals().map(|(name, _)| name).collect();
    let mut uses: Vec<_> = names
        .into_iter()
        .map(|dotted| {
            let optional = is_optional(&dotted, text);
            let mut parts = dotted.split('.');
            Use {
                name: parts.next().unwrap_or_default().into(),
                attribute: parts.next().map(Into::into),
                optional,
            }
        })
        .filter(|u| !globals.contains(&&*u.name))
        .collect();
    uses.sort_by(|a, b| (&a.name, &a.attribute).cmp(&(&b.name, &b.attribute)));
    uses
}

/// `name|default…`, `name|d(…)`, `name is [not] defined`.
fn is_optional(name: &str, text: &str) -> bool {
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        rest = rest.get(at + name.len()..).unwrap_or_default();
        let after = rest.trim_start();
        if let Some(filter) = after.strip_prefix('|') {
            let filter = filter.trim_start();
            if filter.starts_with("default") || filter.starts_with("d(") {
                return true;
            }
        }
        let words: Vec<_> = after.split_whitespace().take(3).collect();
        if matches!(
            words.as_slice(),
            ["is", "defined", ..] | ["is", "not", "defined"]
        ) {
            return true;
        }
    }
    false
}

/// Words that follow `mark` outside strings: with `|` the filters of an expression.
fn words_after(text: &str, mark: char) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut buffer = [0; 4];
        let at = find_outside_strings(rest, mark.encode_utf8(&mut buffer))?;
        rest = rest.get(at + mark.len_utf8()..)?.trim_start();
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        rest.get(..end)
    })
}

/// Filters and tests are looked up when they run; a misspelt one must be found at load.
fn check_words(text: &str) -> Result<(), String> {
    let mut state = ENGINE.empty_state();
    let mut mapped = Vec::new();
    let mut filters: Vec<&str> = words_after(text, '|').collect();
    let mut tests: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(at) = find_outside_strings(rest, " is ") {
        rest = rest.get(at + 4..).unwrap_or_default();
        let word = rest.trim_start();
        let word = word.strip_prefix("not ").map_or(word, str::trim_start);
        let end = word
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(word.len());
        tests.push(word.get(..end).unwrap_or_default());
    }
    for (call, into_tests) in [("map(", false), ("select(", true), ("reject(", true)] {
        let mut rest = text;
        while let Some(at) = find_outside_strings(rest, call) {
            rest = rest.get(at + call.len()..).unwrap_or_default();
            let inner = rest.trim_start();
            let quoted = inner.chars().next().filter(|c| matches!(c, '\'' | '"'));
            if let Some(name) = quoted.and_then(|q| inner.get(1..)?.split(q).next()) {
                mapped.push((name, into_tests));
            }
        }
    }
    for (name, into_tests) in mapped {
        if into_tests {
            tests.push(name);
        } else {
            filters.push(name);
        }
    }
    let nothing = Value::from("");
    for filter in filters {
        let answer = state.apply_filter(filter, std::slice::from_ref(&nothing));
        if answer.is_err_and(|e| e.kind() == ErrorKind::UnknownFilter) {
            return Err(format!("unknown filter `{filter}` in `{text}`"));
        }
    }
    for test in tests {
        let answer = state.perform_test(test, std::slice::from_ref(&nothing));
        if answer.is_err_and(|e| e.kind() == ErrorKind::UnknownTest) {
            return Err(format!("unknown test `{test}` in `{text}`"));
        }
    }
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
    names: Vec<(Arc<str>, Source)>,
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
                    let in_expr = |e: String| format!("`{}` {e}", expr.text);
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
        let names = sorted_names(&uses, vars, text);
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
