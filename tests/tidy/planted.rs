//! Negative controls of `tests/tidy.rs`: each rule is fed what it must find.

use crate::*;

/// Whether exactly one complaint came, and holds `word`.
fn one(complaints: &[String], word: &str) -> bool {
    matches!(complaints, [only] if only.contains(word))
}

#[test]
fn imports_against_the_table_are_found() {
    let found = imports(
        "src/store/mod.rs",
        "//! x\nuse crate::nas::Nas;\nuse crate::daemon::Daemon;\n",
    );
    assert!(
        one(&found, "src/store/mod.rs:3: store may not import daemon"),
        "{found:?}"
    );
    let found = imports("src/intake/form.rs", "fn f() { crate::dispatch::go(); }");
    assert!(one(&found, "intake may not import dispatch"), "{found:?}");
    let found = imports(
        "src/expand/mod.rs",
        "use crate::{\n  nas::NasId,\n  scheme::{self, Execute},\n};",
    );
    assert_eq!(found.len(), 2, "{found:?}");
    let found = imports(
        "src/expand/mod.rs",
        "use super::dispatch::Lane;\nuse super::store;",
    );
    assert!(one(&found, "expand may not import dispatch"), "{found:?}");
    let found = imports(
        "src/expand/params.rs",
        "use super::super::intake::Form;\nuse super::dispatch;",
    );
    assert!(one(&found, "expand may not import intake"), "{found:?}");
    let found = imports("src/novelty/mod.rs", "");
    assert!(one(&found, "not in the import table"), "{found:?}");
    let found = imports("src/cli/run.rs", "use crate::novelty::X;");
    assert!(one(&found, "names no module"), "{found:?}");
}

#[test]
fn parts_that_are_off_limits_are_found() {
    let found = imports(
        "src/dispatch/pool.rs",
        "use crate::scheme::{Execute, native::Native, Identity};",
    );
    assert!(one(&found, "may not import scheme::native"), "{found:?}");
    assert!(
        imports(
            "src/dispatch/pool.rs",
            "use crate::scheme::{Execute, Identity};"
        )
        .is_empty()
    );
}

#[test]
fn tests_comments_and_texts_do_not_import() {
    let fine = "//! crate::cli\n/* crate::cli /* crate::cli */ */\n\
                const A: &str = \"crate::cli \\\" crate::cli\"; const B: char = '\"';\n\
                fn f<'a>(_: &'a str) -> &'static str { r#\"crate::cli \" \"# }\n\
                #[cfg(test)]\nmod tests { use crate::cli; fn g() { \"}\"; } }\n";
    assert_eq!(imports("src/store/mod.rs", fine), Vec::<String>::new());
    let after = format!("{fine}use crate::cli::X;\n");
    assert!(one(
        &imports("src/store/mod.rs", &after),
        ":7: store may not import cli"
    ));
}

#[test]
fn looks_size_place_and_names_are_found() {
    assert!(one(
        &looks("src/a.rs", "use std::fmt;\n//! late"),
        "does not start"
    ));
    assert!(one(
        &size("src/store/sqlite/turn.rs", &"x\n".repeat(LINES_MAX + 1)),
        "two subjects"
    ));
    assert!(size("src/store/sqlite/turn.rs", &"x\n".repeat(LINES_MAX)).is_empty());
    assert!(one(
        &size("src/store/sqlite/turn.rs", &"x\n".repeat(LINES_MIN - 1)),
        "at least"
    ));
    assert!(size("src/store/sqlite/mod.rs", "x\n").is_empty());
    assert!(one(&place("src/a/b/c/d.rs", ""), "3 folders"));
    assert!(place("src/a/b/c.rs", "").is_empty());
    assert!(one(&names("src/store/helpers.rs", ""), "'helpers'"));
    assert!(one(&names("src/manager/mod.rs", ""), "'manager'"));
    assert!(one(
        &names("src/lib.rs", "//! x\npub(crate) mod utils;\n"),
        ":2: module 'utils'"
    ));
}

#[test]
fn powers_outside_their_owner_are_found() {
    for (code, name) in [
        ("fn f() { q(\"select id\\n from nas\"); }", "SQL text"),
        (
            "fn f() { q(\"INSERT INTO events_stack (id) values (1)\"); }",
            "SQL text",
        ),
        (
            "fn f() { q(r#\"update nas set name = '' \"#); }",
            "SQL text",
        ),
        (
            "fn f() { q(\"with d as (delete from nas) \"); }",
            "SQL text",
        ),
        (
            "fn f() { std::process::Command::new(\"sh\"); }",
            "starting programs",
        ),
        ("fn f() { std::process::exit(1); }", "ending the process"),
        ("use tokio::signal::unix::SignalKind;", "signals"),
        ("use nix::sys::signal::kill;", "signals"),
        ("fn f() { TcpStream::connect(a); }", "device bytes"),
        (
            "fn f() { OpenOptions::new().append(true); }",
            "appending to files",
        ),
        ("fn f() { std::time::Instant::now(); }", "reading the clock"),
    ] {
        let found = powers("src/intake/rest.rs", code);
        assert!(one(&found, name), "{code}: {found:?}");
        let test = format!("#[cfg(test)]\nmod tests {{ {code} }}");
        assert!(powers("src/intake/rest.rs", &test).is_empty(), "{test}");
    }
    for power in POWERS {
        for needle in power.needles {
            let found = powers("src/intake/rest.rs", &format!("fn f() {{ x{needle} }}"));
            assert!(one(&found, power.name), "{needle}: {found:?}");
        }
        let code = format!(
            "fn f() {{ x{}y; q(\"select 1\"); }}",
            power.needles.first().unwrap_or(&"")
        );
        for owner in power.owners {
            let found = powers(owner, &code);
            assert!(!found.iter().any(|c| c.contains(power.name)), "{found:?}");
        }
    }
    for sentence in [
        "update the settings, deleted from memory",
        "pick a NAS; select it from the list",
        "select(",
    ] {
        let code = format!("const A: &str = \"{sentence}\";");
        assert!(powers("src/cli/nas.rs", &code).is_empty(), "{sentence}");
    }
}

#[test]
fn deferred_transactions_are_found() {
    let path = "src/store/sqlite/turn.rs";
    for (_, needle, fine, _) in BANNED {
        let found = banned(path, &format!("//! x\nasync fn f() {{ x{needle} }}"));
        assert!(
            one(&found, &format!(":2: {needle} is banned here")),
            "{found:?}"
        );
        assert!(banned(path, &format!("fn f() {{ {fine}; }}")).is_empty());
        assert!(
            banned(
                "src/store/postgres/turn.rs",
                &format!("fn f() {{ x{needle} }}")
            )
            .is_empty()
        );
    }
    let begin = |text: &str| format!("fn f() {{ c.begin_with(\n\"{text}\") }}");
    assert!(immediate(path, &begin("BEGIN IMMEDIATE")).is_empty());
    assert!(one(&immediate(path, &begin("BEGIN")), "begin_with without"));
    assert!(immediate("src/store/postgres/turn.rs", &begin("BEGIN")).is_empty());
}

#[test]
fn comparisons_that_tell_by_their_time_are_found() {
    let path = "src/driver/radius/packet.rs";
    let verify = |first: &str, second: &str| {
        format!(
            "//! x\nimpl P {{\n    pub fn verify_reply(&self) -> bool {{\n        self.verify()\n    \
             }}\n    fn verify(&self) -> bool {{\n        {first} &&\n            {second}\n    }}\n    \
             fn other(&self) -> bool {{\n        a == b // ct_eq\n    }}\n}}\n"
        )
    };
    let right = ["bool::from(sum.ct_eq(&a))", "bool::from(mac.ct_eq(b))"];
    assert!(constant_time(path, &verify(right[0], right[1])).is_empty());
    for wrong in [
        "sum == a",
        "sum != a",
        "sum.eq(&a)",
        "true",
        "/* sum.ct_eq(&a) */ true",
        "a != b && bool::from(sum.ct_eq(&a))",
    ] {
        for text in [verify(wrong, right[1]), verify(right[0], wrong)] {
            let found = constant_time(path, &text);
            assert!(one(&found, "fn verify compares"), "{wrong}: {found:?}");
        }
    }
    let found = constant_time(path, "//! x\nfn judge() {}\n");
    assert!(one(&found, "fn verify of CONSTANT_TIME"), "{found:?}");
    assert!(constant_time("src/driver/rate.rs", "fn verify() { a == b }").is_empty());
}
