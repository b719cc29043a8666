//! What devices say, whoever made them: prompts for a name and a password, pagers, refusals.
//! Tables of lower-case texts; a device that says it otherwise is taught by `nas.vars`.

/// Longest row that can be a prompt or a pager.
const PROMPT_MAX: usize = 160;

/// Ends of a row that asks for the login.
const NAMES: &[&str] = &[
    "username:",
    "user name:",
    "login:",
    "login name:",
    "user:",
    "userid:",
    "user id:",
    "user-id:",
    "account:",
    "login as:",
    "имя пользователя:",
    "логин:",
];
/// Such ends which are something else: a line of the message of the day on its way.
const NOT_NAMES: &[&str] = &["last login:", "previous login:"];
/// Words of a row that ends in a colon and asks for a password.
const PASSWORDS: &[&str] = &["password", "passwd", "passcode", "passphrase", "пароль"];

/// Is the login asked for?
pub(super) fn asks_name(row: &str) -> bool {
    let Some(row) = prompt(row) else { return false };
    let ends = |list: &[&str]| list.iter().any(|end| row.ends_with(end));
    ends(NAMES) && !ends(NOT_NAMES)
}

/// Is a password asked for?
pub(super) fn asks_password(row: &str) -> bool {
    let Some(row) = prompt(row) else { return false };
    row.ends_with(':') && PASSWORDS.iter().any(|word| row.contains(word))
}

/// The row without its end, in lower case, if it is short enough to ask something.
fn prompt(row: &str) -> Option<String> {
    let row = row.trim();
    (!row.is_empty() && row.len() <= PROMPT_MAX).then(|| row.to_lowercase())
}

/// Texts of pagers beside the many forms of `--More--`.
const PAGERS: &[&str] = &[
    "press any key to continue",
    "press any key to page",
    "press <space>",
    "press space",
    "hit space",
    "space for more",
    "next page: space",
    "space n next page",
    "space next page",
    "q to quit)",
    "(q)uit",
    "quit(q)",
    "more: <space>",
    "hit any key",
];
/// Texts that want the return key.
const RETURNS: &[&str] = &[
    "press return",
    "press enter",
    "press <enter>",
    "press <return>",
    "hit enter",
    "hit return",
];

/// The key that goes on after a pager or "press a key", if this row is one.
pub(super) fn goes_on(row: &str) -> Option<&'static [u8]> {
    let row = prompt(row)?;
    let has = |list: &[&str]| list.iter().any(|part| row.contains(part));
    if has(PAGERS) || is_more(&row) {
        return Some(b" ");
    }
    if has(RETURNS) {
        return Some(b"\r");
    }
    // less(1) at the end of its text.
    (row == "(end)").then_some(b"q")
}

/// `--More--`, ` ---- More ----`, `<--- More --->`, `---(more 45%)---`, `--More-- (q to quit)`.
fn is_more(row: &str) -> bool {
    let inner = row.trim_start_matches(['-', '<', '(', ' ', '[', '=']);
    let before = row.get(..row.len() - inner.len()).unwrap_or_default();
    let after = inner.strip_prefix("more");
    before.contains('-') && after.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

/// A question of the login that is answered with no: to change the password now.
pub(super) fn asks_to_change_password(row: &str) -> bool {
    let Some(row) = prompt(row) else { return false };
    let asks = row.contains("[y/n]") || row.contains("(y/n)") || row.contains("yes/no");
    asks && row.contains("change")
}

/// The login or `enable` was refused.
const REFUSED: &[&str] = &[
    "login incorrect",
    "incorrect login",
    "authentication fail",
    "authentication error",
    "authorization fail",
    "login fail",
    "logon fail",
    "login invalid",
    "invalid login",
    "access denied",
    "access is denied",
    "permission denied",
    "bad password",
    "bad secret",
    "bad enable password",
    "bad user",
    "invalid password",
    "invalid user",
    "incorrect password",
    "password incorrect",
    "incorrect username",
    "wrong password",
    "wrong user",
    "unknown user",
    "username or password",
    "user name or password",
    "user or password",
    "password mismatch",
    "account is locked",
    "account locked",
    "account disabled",
    "account expired",
    "too many failures",
    "not authorized",
    "no password set",
    "password required, but none set",
    "неверн",
];
/// Refused now, but another time it may work.
const BUSY: &[&str] = &[
    "too many session",
    "too many connection",
    "too many user",
    "too many login",
    "too many client",
    "sessions exceed",
    "connections exceed",
    "session limit",
    "connection limit",
    "user limit",
    "maximum number of",
    "max number of",
    "maximum session",
    "maximum user",
    "max session",
    "no free",
    "no more session",
    "no more connection",
    "no available",
    "are busy",
    "is busy",
    "in use",
    "try again later",
    "try later",
    "connection refused",
    "out of vty",
];

/// What the words of a device say about a login that did not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// No place at the moment.
    Busy,
    /// Name or password are wrong.
    Refused,
}

/// Finds a refusal in what was said since the last answer of ours.
pub(super) fn refusal(text: &str) -> Option<Said> {
    let text = text.to_lowercase();
    let has = |list: &[&str]| list.iter().any(|part| text.contains(part));
    if has(BUSY) {
        Some(Said::Busy)
    } else if has(REFUSED) {
        Some(Said::Refused)
    } else {
        None
    }
}

/// Beginnings of a line that says: this is no command of mine, or not in this form.
const NOT_UNDERSTOOD: &[&str] = &[
    "% invalid input",
    "% unknown command",
    "% incomplete command",
    "% ambiguous command",
    "% unrecognized command",
    "% bad ip address",
    "% command incomplete",
    "% there is no matched command",
    "%error: invalid",
    "%error 20",
    "error: unrecognized command",
    "error: wrong parameter",
    "error: incomplete command",
    "error: ambiguous command",
    "error: too many parameters",
    "error: invalid input",
    "error:unrecognized command",
    "unknown command",
    "unrecognized command",
    "invalid command",
    "invalid input",
    "incomplete command",
    "ambiguous command",
    "syntax error",
    "available commands:",
];

/// The line of an answer that says the command was not understood, on Cisco, Huawei, Juniper,
/// D-Link and their likes. FRR puts the name of the daemon between: `% [ZEBRA] Unknown command`.
pub(crate) fn not_understood(answer: &str) -> Option<&str> {
    answer.lines().find(|line| {
        let mut low = line.trim().to_lowercase();
        if let Some(rest) = low.strip_prefix("% [")
            && let Some((_, rest)) = rest.split_once("] ")
        {
            low = format!("% {rest}");
        }
        NOT_UNDERSTOOD.iter().any(|start| low.starts_with(start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_of_many_makers() {
        for row in [
            "Username: ",
            "login: ",
            "bras login:",
            "User Name:",
            "  Login as: ",
            "UserName:",
            "логин: ",
        ] {
            assert!(asks_name(row), "{row}");
            assert!(!asks_password(row), "{row}");
        }
        for row in [
            "Last login: ",
            "Welcome, user",
            "",
            "login: admin",
            "Username",
        ] {
            assert!(!asks_name(row), "{row}");
        }
        for row in [
            "Password: ",
            "PassWord:",
            "admin's password:",
            "Password for admin: ",
            "Enter PASSCODE:",
            "Enable Password: ",
        ] {
            assert!(asks_password(row), "{row}");
            assert!(!asks_name(row), "{row}");
        }
        assert!(!asks_password("Your password expires in 3 days"));
        assert!(asks_to_change_password(
            "The password needs to be changed. Change now? [Y/N]:"
        ));
        assert!(!asks_to_change_password("Save? [Y/N]:"));
    }

    #[test]
    fn pagers_of_many_makers() {
        for row in [
            " --More-- ",
            "--More--",
            "  ---- More ----",
            "<--- More --->",
            "---(more 45%)---",
            "--More--(12%)",
            "-- MORE --, next page: Space, next line: Enter, quit: Control-C",
            "CTRL+C ESC q Quit SPACE n Next Page ENTER Next Entry a All",
            "Press any key to continue (Q to quit)",
            "Press <SPACE> to continue or <Q> to quit:",
            "More: <space>,  Quit: q, One line: <return>",
        ] {
            assert_eq!(goes_on(row), Some(&b" "[..]), "{row}");
        }
        assert_eq!(goes_on("Press RETURN to get started."), Some(&b"\r"[..]));
        assert_eq!(goes_on("(END)"), Some(&b"q"[..]));
        for row in ["nas# ", "more", "-moreover", "description --- moreover", ""] {
            assert_eq!(goes_on(row), None, "{row}");
        }
    }

    #[test]
    fn refusals_and_misunderstandings() {
        assert_eq!(refusal("% Login invalid"), Some(Said::Refused));
        assert_eq!(
            refusal("% Bad passwords, too many failures!"),
            Some(Said::Refused)
        );
        assert_eq!(
            refusal("Sorry, too many sessions. Try again later"),
            Some(Said::Busy)
        );
        assert_eq!(refusal("Welcome"), None);
        assert_eq!(
            not_understood("x\n% [ZEBRA] Unknown command: ip rout"),
            Some("% [ZEBRA] Unknown command: ip rout")
        );
        assert!(not_understood("% Invalid input detected at '^' marker.").is_some());
        assert!(not_understood("Error: Unrecognized command found at '^' position.").is_some());
        assert!(not_understood("%SYS-5-CONFIG_I: Configured from console").is_none());
        assert!(not_understood("description unknown command").is_none());
    }
}
