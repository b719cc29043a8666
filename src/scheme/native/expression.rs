//! Expressions of a scheme: compiled once, with their names sorted out, evaluated over the
//! names that they use and no others. Misspelt filters and tests are found at load.

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

pub(super) fn engine() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_fuel(Some(FUEL));
    env.set_debug(false);
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        env.set_syntax(syntax);
    }
    // Would show all of PARAMS, also in places where a value must be one word.
    env.remove_global("debug");
    filters::install(&mut env);
    env
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
        ValueKind::Bool => Ok(Cow::Borrowed(if value.is_true() {
            "true"
        } else {
            "false"
        })),
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

/// What went wrong, in one line and without the template's own source listing.
pub(super) fn explain(error: &Error) -> String {
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
    names: Names,
}

/// Names of an expression. The engine's own list lacks what stands before a slice (`cmd[2:]`),
/// so every word of the text that may be a name is looked up too.
pub(super) struct Names {
    all: Vec<(Arc<str>, Source)>,
    /// That many are surely names; the rest are words of the text.
    sure: usize,
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
            .all
            .iter()
            .take(self.names.sure)
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

pub(super) fn context(names: &Names, scope: &Scope<'_>) -> Result<Value, String> {
    let mut pairs = Vec::with_capacity(names.all.len());
    for (name, source) in &names.all {
        if let Some(value) = scope.value(name, *source)? {
            pairs.push((Arc::clone(name), value));
        }
    }
    Ok(Value::from_pairs(pairs))
}

/// `text` is an expression, or the inside of a template's tags.
pub(super) fn sorted_names(uses: &[Use], vars: &[Arc<str>], text: &str) -> Names {
    let mut all: Vec<(Arc<str>, Source)> = Vec::new();
    let mut add = |name: &str| {
        if !all.iter().any(|(n, _)| &**n == name) {
            all.push((name.into(), source(name, vars)));
        }
        all.len()
    };
    let mut sure = 0;
    for used in uses {
        sure = add(&used.name);
    }
    // The classic filter reads PARAMS by itself.
    if words_after(text, '|').any(|w| w == "classic") {
        sure = add(ALL_PARAMS);
    }
    for word in words(text) {
        add(&word);
    }
    Names { all, sure }
}

/// Words outside strings that are not attributes, filters or keywords.
fn words(text: &str) -> Vec<String> {
    const KEYWORDS: &[&str] = &[
        "and", "or", "not", "in", "is", "if", "elif", "else", "endif", "for", "endfor", "set",
        "true", "false", "none",
    ];
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let bare = without_strings(text);
    let mut words = Vec::new();
    let mut rest = bare.as_str();
    while let Some(at) = rest.find(in_word) {
        let (before, tail) = rest.split_at(at);
        let (word, after) = tail.split_at(tail.find(|c| !in_word(c)).unwrap_or(tail.len()));
        let named = !before.trim_end().ends_with(['.', '|']);
        if named && !word.starts_with(|c: char| c.is_ascii_digit()) && !KEYWORDS.contains(&word) {
            words.push(word.to_owned());
        }
        rest = after;
    }
    words
}

fn without_strings(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut quote = None;
    let mut escaped = false;
    for c in text.chars() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                bare.push(' ');
            }
            None => bare.push(c),
        }
    }
    bare
}

/// The names that the engine found, without its own functions.
pub(super) fn uses(names: std::collections::HashSet<String>, text: &str) -> Vec<Use> {
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
pub(super) fn check_words(text: &str) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_template() {
        use Piece::{Comment, Emit, Tag, Text};
        assert_eq!(
            pieces("a{{ '}}' }}b{% if x %}{# {{ #}").unwrap(),
            [Text("a"), Emit(" '}}' "), Text("b"), Tag(" if x "), Comment]
        );
        for open in ["{{ x", "{% x", "{# x", "{{ 'x }}"] {
            assert!(pieces(open).is_err(), "{open}");
        }
    }

    #[test]
    fn names_are_found_also_before_a_slice() {
        let names = |text| {
            let (expr, _) = Expr::compile(text, &[]).unwrap();
            let mut names: Vec<_> = expr.names.all.iter().map(|(n, _)| n.to_string()).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(names("cmd[2:]"), "cmd");
        assert_eq!(names("a.b | default('c d') ~ e['f']"), "a e");
        assert_eq!(names("x if 'y' in z else \"q\""), "x z");
        assert_eq!(names("'$ip'|classic"), "params");
    }

    #[test]
    fn misspelt_words_are_found() {
        for text in [
            "ip|nett",
            "ip is adress",
            "l|map('nett')|list",
            "l|select('odder')",
        ] {
            assert!(Expr::compile(text, &[]).is_err(), "{text}");
        }
        for text in [
            "ip|net",
            "ip is defined",
            "l|map(attribute='x')|list",
            "'a|b' == ip",
        ] {
            assert!(Expr::compile(text, &[]).is_ok(), "{text}");
        }
    }

    #[test]
    fn canonical_text() {
        for (value, want) in [
            (Value::from(1.5), "1.5"),
            (Value::from(1500.0), "1500"),
            (Value::from(true), "true"),
            (Value::from(()), ""),
            (Value::from(vec![1, 2]), "[1,2]"),
        ] {
            assert_eq!(value_text(&value).unwrap(), want);
        }
        assert!(value_text(&Value::UNDEFINED).is_err());
    }
}
