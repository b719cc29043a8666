//! The numbers of our errors, and a page for each: `explain NED-0201`, docs/errors.md. A number
//! never changes its meaning; the first digits say where to look: 01 configuration, 02 database,
//! 03 NAS, 04 daemon, 05 what is named, 06 to 09 the exit code alone.

use clap::Args;
use serde_json::{Value, json};

use super::Console;
use super::exit::{BAD_CONFIG, BUG, DONE, Failed, NOT_FOUND, NOT_REACHABLE, Outcome, PART_FAILED};
use super::exit::{REFUSED, TIMED_OUT, UNHEALTHY, USAGE, say_all};
use super::table::Table;
use crate::intake::refusals;

/// Which one.
#[derive(Debug, Args)]
pub struct Explain {
    /// NED-0201, 201, or a word of the API like stack_full; default: all
    #[arg(value_parser = number)]
    number: Option<u16>,
}

/// What is said of one error.
struct Page {
    number: u16,
    title: &'static str,
    exit: u8,
    what: &'static str,
    remedy: &'static str,
}

const PAGES: &[Page] = &[
    Page {
        number: 1,
        title: "It failed",
        exit: 1,
        what: "What was asked was not done, for a reason that has no number of its own. The text says which.",
        remedy: "Read the text and its hint; run the verb again with `NED_LOG=debug` if it is not enough.",
    },
    Page {
        number: 2,
        title: "Wrong usage",
        exit: 2,
        what: "A flag, an argument or a value is not one that the verb knows, or two do not go together.",
        remedy: "`nas_event_daemon help VERB` shows every flag.",
    },
    Page {
        number: 3,
        title: "Nobody can be asked",
        exit: 2,
        what: "The verb does something that cannot be taken back and wants a yes, but there is no terminal.",
        remedy: "Say `-y` if it is meant.",
    },
    Page {
        number: 70,
        title: "A bug",
        exit: 70,
        what: "Something happened that must not.",
        remedy: "Please report it with `doctor --bundle`.",
    },
    Page {
        number: 100,
        title: "The configuration cannot be used",
        exit: 3,
        what: "Configuration, shape of the database, or a scheme is wrong; the text says which.",
        remedy: "`nas_event_daemon config check` names every fault at once.",
    },
    Page {
        number: 101,
        title: "The configuration file cannot be read",
        exit: 3,
        what: "The file after `--config` or in `NED_CONFIG` is not there, or this user may not read it.",
        remedy: "Check the path. The package's file is readable for the group `nas_event_daemon` only: run the verb as that user or as root.",
    },
    Page {
        number: 102,
        title: "The configuration file is wrong",
        exit: 3,
        what: "A line is no TOML, a key is unknown, or a value has another type. File, line and column stand before the reason.",
        remedy: "Correct the line; [configuration.md](configuration.md) has every key.",
    },
    Page {
        number: 103,
        title: "A setting is out of its range",
        exit: 3,
        what: "The value is understood, but it is outside of what makes sense.",
        remedy: "[configuration.md](configuration.md) has the range of every key.",
    },
    Page {
        number: 104,
        title: "A variable of the environment is wrong",
        exit: 3,
        what: "`NED_SECTION__KEY` names no key, or its value does not fit.",
        remedy: "Correct or unset it; `config show` prints what is in force.",
    },
    Page {
        number: 201,
        title: "The database cannot be opened",
        exit: 4,
        what: "No such file or server, no rights, or the server refuses the login.",
        remedy: "Check `database.url`, that the server runs (or the directory exists and is writable), and the rights.",
    },
    Page {
        number: 202,
        title: "The database cannot be migrated",
        exit: 3,
        what: "Our tables are of another version; usually a newer program has been here.",
        remedy: "Install that version again, or restore the copy from before the upgrade: `db restore`.",
    },
    Page {
        number: 203,
        title: "The billing's tables do not fit",
        exit: 3,
        what: "A table, view or column that the daemon reads is missing.",
        remedy: "[operate.md](operate.md) lists what must be there; views may stand in for tables.",
    },
    Page {
        number: 204,
        title: "Another daemon owns the database",
        exit: 6,
        what: "Only one may work on a database; its host and process stand in the text.",
        remedy: "Stop that one, or give this one a database of its own. A dead owner is followed by itself.",
    },
    Page {
        number: 205,
        title: "The ownership is over",
        exit: 6,
        what: "Another daemon has taken the database over; this process must stop.",
        remedy: "Let the other one work, or stop it first. Nothing was done twice: late writes are refused.",
    },
    Page {
        number: 206,
        title: "A statement failed",
        exit: 1,
        what: "The database refused a statement; what was being done stands in the text.",
        remedy: "The log of the database says more. It may work later: a full disk, a lock, a restart.",
    },
    Page {
        number: 207,
        title: "The database refuses this",
        exit: 6,
        what: "What was asked makes no sense there, or is not allowed: writing without `--write`, reading credentials.",
        remedy: "The text says what.",
    },
    Page {
        number: 208,
        title: "A look-up took too long",
        exit: 2,
        what: "No index helps it, and it was ended after 900 ms (what a retry or drop of many over the API concerns is looked for during 30 s), so that it holds nobody up. Nothing was changed.",
        remedy: "Narrow it: by account, NAS or batch, by a range of ids (they grow with time), by a state. Lists of events are walked from the newest on and end with what was found (`time_is_up`, `go on with --before`) instead. `guard`, `why`, `account`, `event retry` and `event drop` wait instead; `sqlexec` reads without this limit.",
    },
    Page {
        number: 301,
        title: "There is no such NAS",
        exit: 5,
        what: "The table `nas` has no row with this id.",
        remedy: "`nas list` shows all.",
    },
    Page {
        number: 302,
        title: "The NAS is skipped",
        exit: 3,
        what: "Its row or its scheme cannot be used, so that the daemon does not serve it.",
        remedy: "Correct the row in the billing, or the scheme: `nas show ID`, `scheme lint`.",
    },
    Page {
        number: 303,
        title: "The NAS is not reached",
        exit: 4,
        what: "No connection, or no answer in time.",
        remedy: "Check address and port, that the service is on, certificates, and firewalls in between; then `nas test ID`.",
    },
    Page {
        number: 304,
        title: "The NAS refuses the login",
        exit: 6,
        what: "Name, password, key, host key or shared secret is not what the device wants.",
        remedy: "Correct `nas_secret` in the billing, then `nas test ID`. A new host key: `nas rekey ID`.",
    },
    Page {
        number: 305,
        title: "The NAS refuses the command",
        exit: 1,
        what: "The login works, the command does not.",
        remedy: "Look whether the scheme is the right one for this device, and whether the login has the rights for the command.",
    },
    Page {
        number: 400,
        title: "Not reachable",
        exit: 4,
        what: "A server, the daemon or a device does not answer; the text says which.",
        remedy: "Look whether it runs, and whether it is reachable from here.",
    },
    Page {
        number: 401,
        title: "No daemon listens",
        exit: 4,
        what: "There is no daemon behind the control socket, and the verb needs one.",
        remedy: "`systemctl start nas_event_daemon`; `config show` says which socket is meant.",
    },
    Page {
        number: 402,
        title: "The daemon's answer was lost",
        exit: 4,
        what: "The connection broke after the order was sent: whether it was carried out is not known.",
        remedy: "Look with `event list` and at the daemon's log before you order it again.",
    },
    Page {
        number: 403,
        title: "The daemon takes no orders from you",
        exit: 6,
        what: "The user or the token has not the right for it.",
        remedy: "Call as root, as the daemon's user or as a member of the group `nas_event_daemon`, or take a token of a higher scope.",
    },
    Page {
        number: 404,
        title: "The daemon refuses it now",
        exit: 6,
        what: "It contradicts the present state, or there is too much at once.",
        remedy: "The text says what is in the way; wait, or change that.",
    },
    Page {
        number: 405,
        title: "The call is not understood",
        exit: 2,
        what: "A path, method, key or value is not one that the API knows, the body is too large or did not come in time, or more would be concerned than one call may.",
        remedy: "Nothing was stored. The text says what is wrong; [api.md](api.md) and `/api/openapi.json` have the calls.",
    },
    Page {
        number: 406,
        title: "The call comes from another site",
        exit: 6,
        what: "A browser sends it for a page of another site (`Origin`), or to a name that may be somebody else's (`Host`).",
        remedy: "Call the daemon by its address or by a name in `http.listen`, and from a program.",
    },
    Page {
        number: 500,
        title: "Not found",
        exit: 5,
        what: "What was named is not there; the text says what.",
        remedy: "Check the number or the name.",
    },
    Page {
        number: 501,
        title: "There is no such account",
        exit: 5,
        what: "The table `users` has no row with this id.",
        remedy: "Give `users.id`, not the number of the abonent.",
    },
    Page {
        number: 502,
        title: "There is no such event",
        exit: 5,
        what: "It is on no stack, not dead, and not among the done ones that are still kept.",
        remedy: "Done events are kept for `history.keep`; older ones are in the log of the account only.",
    },
    Page {
        number: 503,
        title: "There is no such scheme",
        exit: 5,
        what: "Neither `oss/local`, nor `oss/core`, nor the shipped schemes have it.",
        remedy: "`scheme list` shows all.",
    },
    Page {
        number: 504,
        title: "There is no such file or log",
        exit: 5,
        what: "The file is not there, or has another name.",
        remedy: "A log begins with its first event; read it as the daemon's user.",
    },
    Page {
        number: 600,
        title: "Refused",
        exit: 6,
        what: "The state of things, a right, or a rule forbids it; the text says which.",
        remedy: "The hint says what to do instead.",
    },
    Page {
        number: 700,
        title: "Timed out waiting",
        exit: 7,
        what: "What was waited for is still under way. It goes on.",
        remedy: "`event show ID` says how it stands.",
    },
    Page {
        number: 800,
        title: "A part of it failed",
        exit: 8,
        what: "Some of many were refused; they are listed, the others are done.",
        remedy: "Correct the listed ones and send only those again.",
    },
    Page {
        number: 900,
        title: "A check says: not well",
        exit: 9,
        what: "The check worked, and what it looked at is not well.",
        remedy: "The text says what; `doctor` says what to do.",
    },
];

/// The number of a failure that has none of its own.
pub fn usual(code: u8) -> u16 {
    match code {
        USAGE => 2,
        BAD_CONFIG => 100,
        NOT_REACHABLE => 400,
        NOT_FOUND => 500,
        REFUSED => 600,
        TIMED_OUT => 700,
        PART_FAILED => 800,
        UNHEALTHY => 900,
        BUG => 70,
        _ => 1,
    }
}

/// `NED-0201`.
pub fn shown(number: u16) -> String {
    format!("NED-{number:04}")
}

/// Reads `NED-0201`, `ned-201`, `201`, or a word of the API.
pub fn number(text: &str) -> Result<u16, String> {
    if let Some(number) = refusals::number(text) {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let digits = upper.strip_prefix("NED-").unwrap_or(&upper);
    digits
        .parse()
        .map_err(|_| "expected a number like NED-0201, or a word of the API".to_owned())
}

/// Prints a page, or all.
pub fn explain(console: &Console, args: &Explain) -> Outcome {
    let Some(number) = args.number else {
        if console.wants_data() {
            let mut table = Table::new(&["number", "title", "exit", "what", "remedy", "words"]);
            for page in PAGES {
                let cells = properties(page).into_iter().map(|(_, value)| value);
                table.push(cells.collect());
            }
            console.list(&table);
        } else {
            say_all(&document());
        }
        return Ok(DONE);
    };
    let page = PAGES
        .iter()
        .find(|page| page.number == number)
        .ok_or_else(|| {
            let text = format!("there is no error {}", shown(number));
            Failed::new(NOT_FOUND, format!("{text}\nhint: explain prints all"))
        })?;
    if console.wants_data() {
        console.record(&properties(page));
    } else {
        say_all(&text(page));
    }
    Ok(DONE)
}

fn properties(page: &Page) -> [(&'static str, Value); 6] {
    let words: Vec<&str> = refusals::of(page.number).collect();
    [
        ("number", json!(shown(page.number))),
        ("title", json!(page.title)),
        ("exit", json!(page.exit)),
        ("what", json!(page.what)),
        ("remedy", json!(page.remedy)),
        ("words", json!(words)),
    ]
}

fn text(page: &Page) -> String {
    let words: Vec<String> = refusals::of(page.number)
        .map(|word| format!("`{word}`"))
        .collect();
    let words = match words.as_slice() {
        [] => String::new(),
        words => format!("\n\nIn answers of the API: {}.", words.join(", ")),
    };
    format!(
        "## {}\n\n**{}** (exit code {})\n\n{}{words}\n\nWhat to do: {}\n",
        shown(page.number),
        page.title,
        page.exit,
        page.what,
        page.remedy
    )
}

/// `docs/errors.md`; `tests/config.rs` keeps them equal.
pub fn document() -> String {
    let mut out = "# Errors\n\n\
        Every failure of a command says what happened, where and why, and a number: `error[NED-0201]: …`.\n\
        The API answers with the same numbers (`error.number`) beside a word for programs (`error.code`).\n\
        `nas_event_daemon explain NED-0201` (or `help NED-0201`) prints its page. Numbers keep their\n\
        meaning for ever. The exit code is coarser, see [operate.md](operate.md#exit-codes). The causes that\n\
        `why` names have words of their own: [operate.md](operate.md#the-command-line).\n".to_owned();
    for page in PAGES {
        out.push('\n');
        out.push_str(&text(page));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_order_and_every_usual_one_has_its_page() {
        assert!(PAGES.windows(2).all(|two| two[0].number < two[1].number));
        for code in 0..=u8::MAX {
            let page = PAGES.iter().find(|page| page.number == usual(code));
            let page = page.unwrap_or_else(|| panic!("{code} has no page"));
            assert!(page.exit == code || page.number == 1, "{code}");
        }
        for (word, number) in refusals::WORDS {
            let page = PAGES.iter().find(|page| page.number == *number);
            assert!(page.is_some(), "{word} has no page");
        }
        for page in PAGES {
            assert!(![143, 249, 254].contains(&page.exit));
            assert!(
                page.what.ends_with('.') && page.remedy.ends_with('.'),
                "{}",
                page.number
            );
        }
    }

    #[test]
    fn numbers_are_read() {
        for text in ["NED-0201", "ned-201", "201"] {
            assert_eq!(number(text), Ok(201));
        }
        assert_eq!(number("stack_full"), Ok(404));
        assert!(number("pause").is_err());
        assert_eq!(shown(3), "NED-0003");
    }
}
